//! Every key of the bus. `{...}` is the hash tag: what belongs to a shard lies in one slot of a cluster.
//!
//! | key | type | what | lives |
//! |---|---|---|---|
//! | `ns:v1:{shard}:n:<path>` | stream | requests for one node | [`STREAM_TTL`], renewed by the node |
//! | `ns:v1:{shard}:n:<path>:ctl` | stream | the control lane of one node | [`STREAM_TTL`], renewed by the node |
//! | `ns:v1:{shard}:p:<path>` | string | presence of one node, JSON | [`PRESENCE_TTL`](crate::limits::PRESENCE_TTL) |
//! | `ns:v1:{shard}:r:<path>:<boot>` | stream | replies for one process | [`INBOX_TTL`], renewed by the process |
//! | `ns:v1:{shard}:b` | stream | broadcasts to a shard | [`STREAM_TTL`], renewed by its members |
//! | `ns:v1:{shard of scope}:g:<scope>:<service>` | stream, group | requests for any | [`STREAM_TTL`], renewed by its members |
//! | `ns:v1:{shard of scope}:g:<scope>:<service>:ctl` | stream, group | the control lane of those | [`STREAM_TTL`], renewed by its members |
//! | `ns:v1:{shard of scope}:l:<scope>:<service>` | sorted set | who is alive: path by expiry in Redis' ms | [`STREAM_TTL`] |
//! | `ns:v1:{shard}:idem:<home>:<bucket>` | hash | recorded answers, by key | [`DEDUPE_TTL`](crate::limits::DEDUPE_TTL) and a bucket |
//! | `ns:v1:{shard}:t:<home>:<id>` | hash | one ticket | until it is kept no longer |
//! | `ns:v1:{shard}:due` | sorted set | tickets to look after, by when in Redis' ms | [`STREAM_TTL`] from the last one |
//! | `<key of a request queue>:k` | hash | how often entries left over by a dead process were delivered | [`STREAM_TTL`] |
//! | `ns:v1:{shard of scope}:j:<scope>:<service>` | string | who looks after the dead of a group just now | 1 s |
//! | `ns:v1:{shard}:dlq` | stream | dead letters | [`DEAD_LETTERS_TTL`](crate::limits::DEAD_LETTERS_TTL) |
//! | `ns:v1:dlqs` | set | the shards that have dead letters | [`DEAD_LETTERS_TTL`](crate::limits::DEAD_LETTERS_TTL) |
//! | `ns:v1:{call}:t` | stream | the hops of a traced call | [`HOPS_TTL`](crate::limits::HOPS_TTL) |
//! | `ns:v1:{shard of scope}:a:<scope>:<service>:<seal>` | string | the entry a seal was first seen at; with security on | a minute and the deadline |
//! | `ns:v1:{e:<election>}:lease` | string | who leads: `epoch holder` | the lease |
//! | `ns:v1:{e:<election>}:epoch` | string | the last epoch of that election | for ever: it must only grow |

use crate::{Route, Service};
use std::{fmt, time::Duration};
use vbm_core::{Name, NodePath};

/// How many names of a path make its shard: `zone/cluster`.
const SHARD_DEPTH: usize = 2;
/// Queues live this long after their last owner: longer than the longest deadline.
pub(super) const STREAM_TTL: Duration = Duration::from_secs(2 * 3600);
/// A reply inbox lives this long after its process.
pub(super) const INBOX_TTL: Duration = Duration::from_secs(120);
/// The one consumer group of every anycast stream.
pub(super) const GROUP: &str = "workers";
/// The field of an entry that holds its packed frames.
pub(super) const FIELD_FRAMES: &str = "f";
/// The field of an entry that says who wrote it: see [`crate::auth`].
pub(super) const FIELD_SEAL: &str = "a";
/// The field of an entry of requests that says when it was given to the connection: the latest that it can have been, in
/// Redis' ms.
pub(super) const FIELD_SENT: &str = "t";
/// The field of a broadcast that holds its scope.
pub(super) const FIELD_SCOPE: &str = "s";
/// The field of a broadcast that holds its service.
pub(super) const FIELD_SERVICE: &str = "v";

/// How the key of a control lane ends.
const CONTROL: &str = "ctl";

#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: String,
}

/// Whose a request queue is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Node(NodePath),
    Control(NodePath),
    Any(NodePath, Service),
    AnyControl(NodePath, Service),
}

impl Owner {
    /// Where it lies in the tree.
    pub(super) const fn scope(&self) -> &NodePath {
        match self {
            Self::Node(path) | Self::Control(path) | Self::Any(path, _) | Self::AnyControl(path, _) => path,
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(path) => write!(f, "node {path}"),
            Self::Control(path) => write!(f, "control of node {path}"),
            Self::Any(scope, service) => write!(f, "any {service} in {scope}"),
            Self::AnyControl(scope, service) => write!(f, "control of any {service} in {scope}"),
        }
    }
}

/// The shard of a node: the first names of the path that holds it.
pub(super) fn shard(path: &NodePath) -> NodePath {
    ancestor(&path.parent().unwrap_or_default(), SHARD_DEPTH)
}

/// A path and every scope that holds it, the root last.
pub(super) fn scopes(path: &NodePath) -> Vec<NodePath> {
    std::iter::successors(Some(path.clone()), NodePath::parent).collect()
}

/// The scopes of a path that can be shards.
pub(super) fn shards_above(path: &NodePath) -> Vec<NodePath> {
    scopes(path)
        .into_iter()
        .filter(|scope| scope.segments().len() <= SHARD_DEPTH)
        .collect()
}

fn ancestor(path: &NodePath, depth: usize) -> NodePath {
    scopes(path)
        .into_iter()
        .find(|scope| scope.segments().len() <= depth)
        .unwrap_or_default()
}

impl Keys {
    pub(super) fn new(namespace: &str) -> Self {
        Self {
            prefix: format!("{namespace}:v1"),
        }
    }

    fn at(&self, shard: &NodePath, rest: &str) -> String {
        format!("{}:{{{shard}}}:{rest}", self.prefix)
    }

    pub(super) fn node(&self, path: &NodePath) -> String {
        self.at(&shard(path), &format!("n:{path}"))
    }
    pub(super) fn presence(&self, path: &NodePath) -> String {
        self.at(&shard(path), &format!("p:{path}"))
    }
    pub(super) fn inbox(&self, path: &NodePath, boot_id: &str) -> String {
        self.at(&shard(path), &format!("r:{path}:{boot_id}"))
    }
    pub(super) fn broadcast(&self, shard: &NodePath) -> String {
        self.at(shard, "b")
    }
    pub(super) fn any(&self, scope: &NodePath, service: &Service) -> String {
        self.at(&ancestor(scope, SHARD_DEPTH), &format!("g:{scope}:{service}"))
    }
    /// The control lane of an anycast queue.
    pub(super) fn any_control(&self, scope: &NodePath, service: &Service) -> String {
        format!("{}:{CONTROL}", self.any(scope, service))
    }
    /// Both lanes of an anycast queue.
    pub(super) fn lanes(&self, scope: &NodePath, service: &Service) -> [String; 2] {
        [self.any_control(scope, service), self.any(scope, service)]
    }
    pub(super) fn control(&self, path: &NodePath) -> String {
        self.at(&shard(path), &format!("n:{path}:{CONTROL}"))
    }
    /// How often leftovers of a request queue were delivered.
    pub(super) fn counts(queue: &str) -> String {
        format!("{queue}:k")
    }
    pub(super) fn rescuer(&self, scope: &NodePath, service: &Service) -> String {
        self.at(&ancestor(scope, SHARD_DEPTH), &format!("j:{scope}:{service}"))
    }
    pub(super) fn dead_letters(&self, shard: &NodePath) -> String {
        self.at(shard, "dlq")
    }
    pub(super) fn dead_letter_shards(&self) -> String {
        format!("{}:dlqs", self.prefix)
    }
    pub(super) fn hops(&self, call: uuid::Uuid) -> String {
        format!("{}:{{{call}}}:t", self.prefix)
    }

    /// Whose request queue has this key, and in which shard it lies.
    pub(super) fn parse(&self, key: &str) -> Option<(NodePath, Owner)> {
        let rest = key.strip_prefix(&self.prefix)?.strip_prefix(":{")?;
        let (shard, rest) = rest.split_once("}:")?;
        let mut parts = rest.split(':');
        let (kind, of, more, lane) = (parts.next()?, parts.next()?, parts.next(), parts.next());
        if parts.next().is_some() {
            return None;
        }
        let owner = match (kind, of, more, lane) {
            ("n", path, None, None) => Owner::Node(path.parse().ok()?),
            ("n", path, Some(CONTROL), None) => Owner::Control(path.parse().ok()?),
            ("g", scope, Some(service), None) => Owner::Any(scope.parse().ok()?, Service::new(service).ok()?),
            ("g", scope, Some(service), Some(CONTROL)) => {
                Owner::AnyControl(scope.parse().ok()?, Service::new(service).ok()?)
            }
            _ => return None,
        };
        Some((shard.parse().ok()?, owner))
    }
    /// Which entry a seal was first seen at.
    pub(super) fn claim(&self, scope: &NodePath, service: &Service, name: &str) -> String {
        self.at(
            &ancestor(scope, SHARD_DEPTH),
            &format!("a:{scope}:{service}:{name}"),
        )
    }
    /// Every key of one kind, as a pattern: `n`, `p`, `r`, `g`, `l`.
    pub(super) fn anywhere(&self, kind: &str) -> String {
        format!("{}:{{*}}:{kind}:*", self.prefix)
    }
    /// The anycast queues of a service in every scope, as a pattern.
    pub(super) fn any_of(&self, service: &Service) -> String {
        format!("{}:{{*}}:g:*:{service}", self.prefix)
    }
    /// The control lanes of those, as a pattern.
    pub(super) fn any_control_of(&self, service: &Service) -> String {
        format!("{}:{CONTROL}", self.any_of(service))
    }
    /// The dead letters of every shard, as a pattern.
    pub(super) fn every_dead_letters(&self) -> String {
        format!("{}:{{*}}:dlq", self.prefix)
    }
    /// The hops of every call, as a pattern.
    pub(super) fn every_hops(&self) -> String {
        format!("{}:{{*}}:t", self.prefix)
    }
    /// The broadcasts of every shard, as a pattern.
    pub(super) fn broadcasts(&self) -> String {
        format!("{}:{{*}}:b", self.prefix)
    }
    /// The hash that holds the answers which the members of `home` recorded in one span of time.
    pub(super) fn answers(&self, home: &Route, bucket: u64) -> String {
        let (shard, home) = home_parts(home);
        self.at(&shard, &format!("idem:{home}:{bucket}"))
    }
    pub(super) fn ticket(&self, home: &Route, id: &uuid::Uuid) -> String {
        let (shard, home) = home_parts(home);
        self.at(&shard, &format!("t:{home}:{}", id.simple()))
    }
    /// All recorded answers of one destination, as a pattern.
    pub(super) fn answers_of(&self, home: &Route) -> String {
        let (shard, home) = home_parts(home);
        self.at(&shard, &format!("idem:{home}:*"))
    }
    /// All tickets of one destination, as a pattern.
    pub(super) fn tickets_of(&self, home: &Route) -> String {
        let (shard, home) = home_parts(home);
        self.at(&shard, &format!("t:{home}:*"))
    }
    /// The tickets of a service in every scope, as a pattern.
    pub(super) fn tickets_of_any(&self, service: &Service) -> String {
        format!("{}:{{*}}:t:g:*:{service}:*", self.prefix)
    }
    /// The due tickets of every shard, as a pattern.
    pub(super) fn every_due(&self) -> String {
        format!("{}:{{*}}:due", self.prefix)
    }
    /// The tickets of a shard that somebody must look after.
    pub(super) fn due(&self, shard: &NodePath) -> String {
        self.at(shard, "due")
    }
    /// The leases and epochs of every election, as a pattern.
    pub(super) fn every_lease(&self) -> String {
        format!("{}:{{e:*}}:*", self.prefix)
    }
    pub(super) fn lease(&self, election: &Name) -> String {
        format!("{}:{{e:{election}}}:lease", self.prefix)
    }
    pub(super) fn lease_epoch(&self, election: &Name) -> String {
        format!("{}:{{e:{election}}}:epoch", self.prefix)
    }
    /// Who offers `service` below `scope`; without a service, who is there at all.
    pub(super) fn alive(&self, scope: &NodePath, service: Option<&Service>) -> String {
        let service = service.map_or("*", Service::as_str);
        self.at(&ancestor(scope, SHARD_DEPTH), &format!("l:{scope}:{service}"))
    }
}

/// The shard of a destination: where its queue lies.
pub(super) fn home_shard(home: &Route) -> NodePath {
    match home {
        Route::Node(path) => shard(path),
        Route::Any { scope, .. } | Route::All { scope, .. } => ancestor(scope, SHARD_DEPTH),
    }
}

/// The shard of a destination, and its name in keys: `n:<path>` or `g:<scope>:<service>`, as that of its queue.
fn home_parts(home: &Route) -> (NodePath, String) {
    let name = match home {
        Route::Node(path) => format!("n:{path}"),
        Route::Any { scope, service } | Route::All { scope, service } => format!("g:{scope}:{service}"),
    };
    (home_shard(home), name)
}

/// The consumer name of one run of one process.
pub(super) fn consumer(path: &NodePath, boot_id: &str) -> String {
    format!("{path}|{boot_id}")
}

/// Path and boot id of a consumer name.
pub(super) fn parse_consumer(name: &str) -> Option<(NodePath, &str)> {
    let (path, boot) = name.split_once('|')?;
    Some((path.parse().ok()?, boot))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> NodePath {
        text.parse().unwrap()
    }

    #[test]
    fn what_belongs_to_a_node_lies_in_the_slot_of_its_cluster() {
        let keys = Keys::new("vbm");
        let node = path("eu/r1/n1");
        assert_eq!(keys.node(&node), "vbm:v1:{eu/r1}:n:eu/r1/n1");
        assert_eq!(keys.presence(&node), "vbm:v1:{eu/r1}:p:eu/r1/n1");
        assert_eq!(keys.inbox(&node, "b1"), "vbm:v1:{eu/r1}:r:eu/r1/n1:b1");
        assert_eq!(keys.broadcast(&shard(&node)), "vbm:v1:{eu/r1}:b");
        assert_eq!(keys.node(&path("n1")), "vbm:v1:{/}:n:n1");
        assert_eq!(keys.node(&path("a/b/c/d")), "vbm:v1:{a/b}:n:a/b/c/d");
    }

    #[test]
    fn a_group_and_its_liveness_lie_in_one_slot() {
        let (keys, service) = (Keys::new("x"), Service::new("agent").unwrap());
        for scope in ["/", "eu", "eu/r1", "eu/r1/x/y"] {
            let (any, alive) = (
                keys.any(&path(scope), &service),
                keys.alive(&path(scope), Some(&service)),
            );
            let tag = |key: &str| {
                key.split_once('{')
                    .unwrap()
                    .1
                    .split_once('}')
                    .unwrap()
                    .0
                    .to_owned()
            };
            assert_eq!(tag(&any), tag(&alive));
        }
    }

    #[test]
    fn answers_and_tickets_lie_in_the_slot_of_the_queue() {
        let (keys, agent) = (Keys::new("vbm"), Service::new("agent").unwrap());
        let (node, any) = (
            Route::node(path("eu/r1/n1")),
            Route::any(path("eu/r1/x/y"), agent),
        );
        let id = uuid::Uuid::from_u128(7);
        assert_eq!(keys.answers(&node, 3), "vbm:v1:{eu/r1}:idem:n:eu/r1/n1:3");
        assert_eq!(
            keys.ticket(&any, &id),
            "vbm:v1:{eu/r1}:t:g:eu/r1/x/y:agent:00000000000000000000000000000007"
        );
        assert_eq!(keys.due(&home_shard(&any)), "vbm:v1:{eu/r1}:due");
    }

    #[test]
    fn the_owner_of_a_request_queue_is_read_back_from_its_key() {
        let (keys, service) = (Keys::new("x"), Service::new("agent").unwrap());
        let node = path("eu/r1/n1");
        let owners = [
            (keys.node(&node), Owner::Node(node.clone())),
            (keys.control(&node), Owner::Control(node.clone())),
            (
                keys.any(&path("eu"), &service),
                Owner::Any(path("eu"), service.clone()),
            ),
            (
                keys.any_control(&path("eu"), &service),
                Owner::AnyControl(path("eu"), service.clone()),
            ),
            (keys.any(&path("/"), &service), Owner::Any(path("/"), service)),
        ];
        for (key, owner) in owners {
            assert_eq!(keys.parse(&key).unwrap().1, owner, "{key}");
            assert_eq!(keys.parse(&Keys::counts(&key)), None);
        }
        assert_eq!(keys.parse(&keys.presence(&node)), None);
        assert_eq!(Keys::new("other").parse(&keys.node(&node)), None);
    }

    #[test]
    fn scopes_go_up_to_the_root() {
        let all: Vec<_> = scopes(&path("a/b/c")).iter().map(ToString::to_string).collect();
        assert_eq!(all, ["a/b/c", "a/b", "a", "/"]);
        assert_eq!(scopes(&NodePath::root()).len(), 1);
    }

    #[test]
    fn consumer_names_are_read_back() {
        let node = path("eu/r1/n1");
        assert_eq!(parse_consumer(&consumer(&node, "b-1")), Some((node, "b-1")));
        assert_eq!(parse_consumer("garbage"), None);
    }
}
