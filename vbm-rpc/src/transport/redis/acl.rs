//! The least a member may do on Redis, as one `ACL SETUSER` line. Pure.
//!
//! | keys | rights | for |
//! |---|---|---|
//! | its own queue, presence, inboxes; the broadcasts of its shards; the queues, claims and liveness of its services | everything the bus does with them | being a member |
//! | presence and liveness of all | read | who is there, "no route" |
//! | inboxes of all | `XADD` | answering |
//! | recorded answers and tickets of its own queues, the list of due tickets beside them | everything | results |
//! | tickets of whom it may ask, and the lists of due ones | the hash and sorted set commands of tickets | submitting |
//! | leases and epochs of elections, for who may ask everybody | those of the one script | standing for election |
//! | dead letters and hops of all | `XADD`, `PEXPIRE` | giving up, recording |
//! | queues of whom it may ask ([`Reach`]) | `XADD`, `XDEL`, `XLEN` | asking; `XDEL` takes an entry back that nobody is there for |
//!
//! What Redis cannot tell apart, the seals of [`crate::auth`] do: whoever may add to an inbox may add anything, so a forged
//! reply is refused by its reader. What neither prevents: `XADD` has `MAXLEN`, so who may add to a queue may also empty
//! it. That is a denial of service, never a false effect; [`Reach`] keeps it small.
//!
//! Nothing here lets a member read the queue of another, list keys, run admin commands, or touch other keys of the server.
//! Scripts run with the rights of who runs them.

use super::{
    RedisConfig,
    connect::{Connector, Down},
    keys::{self, Keys},
    tls,
};
use crate::{BusError, Route, Service};
use std::fmt;
use vbm_core::{Name, NodePath};

/// Whom a member may ask.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reach {
    /// Nobody: it answers.
    Answers,
    /// Any or all of these services, and no node by its path.
    Services(Vec<Service>),
    /// Everybody.
    Everybody,
}

/// How a user proves who it is.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Login {
    /// By a password with this SHA-256, as 64 hexadecimal digits.
    Sha256(String),
    /// Not at all. For tests.
    Nothing,
}

/// One user of Redis.
#[derive(Clone, PartialEq, Eq)]
pub struct Rule {
    user: String,
    words: Vec<String>,
}

impl Rule {
    /// The user's name.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Also everything that is done with data of keys that match `pattern`: for what else a member keeps on this Redis.
    /// Not listing keys, and no admin commands.
    #[must_use]
    pub fn and_all_of(mut self, pattern: &str) -> Self {
        self.words.push(format!("({ALL_OF} ~{pattern})"));
        self
    }

    /// What comes after `ACL SETUSER`, word by word, the user first.
    pub fn words(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.user.as_str()).chain(self.words.iter().map(String::as_str))
    }

    /// As a line of Redis' ACL file (`aclfile`).
    pub fn file_line(&self) -> String {
        let words: Vec<&str> = self.words().collect();
        format!("user {}", words.join(" "))
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ACL SETUSER")?;
        self.words().try_for_each(|word| write!(f, " {word}"))
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rule({})", self.user)
    }
}

/// Makes the user of a rule on a Redis (a master, or every master of a cluster), or changes it. It lasts as long as the server, or until `ACL SAVE` there where it
/// has an `aclfile`.
///
/// # Errors
/// [`BusError::Unreachable`]; [`BusError::Unsuitable`] when it refuses, as it does to who may not.
///
/// # Cancel safety
/// Dropping the future may or may not make the user.
pub async fn apply(config: &RedisConfig, rule: &Rule) -> Result<(), BusError> {
    let unreachable = |Down(why): Down| BusError::Unreachable {
        server: config.to_string(),
        why,
    };
    let connector = Connector::new(config, tls::read(config).await?);
    // A user belongs to a server: in a cluster each master needs it.
    for (_host, mut commands) in connector.every_master().await.map_err(unreachable)? {
        let mut command = redis::cmd("ACL");
        command.arg("SETUSER");
        for word in rule.words() {
            command.arg(word);
        }
        if let Err(why) = commands.one(command).await.map_err(unreachable)? {
            return Err(BusError::Unsuitable {
                server: config.to_string(),
                why,
                fix: "log in as a user who may run ACL SETUSER, for example the default user".into(),
            });
        }
    }
    Ok(())
}

/// What needs no key: the connection, the time, the start-up checks, waiting for replicas, the map of a cluster.
///
/// `CLIENT SETINFO` is not among it: Redis 7.0 refuses a line with a command it does not know, and the client library
/// goes on without it.
const KEYLESS: [&str; 12] = [
    "+auth",
    "+hello",
    "+ping",
    "+select",
    "+time",
    "+info",
    "+client|id",
    "+client|setname",
    "+role",
    "+wait",
    "+asking",
    "+cluster|slots",
];

/// What a member does with its own keys. `EVAL` runs what the user may do without it.
const OWN: [&str; 36] = [
    "+xadd",
    "+xread",
    "+xreadgroup",
    "+xack",
    "+xdel",
    "+xtrim",
    "+xrange",
    "+xrevrange",
    "+hset",
    "+hsetnx",
    "+hget",
    "+hdel",
    "+hmget",
    "+hgetall",
    "+hincrby",
    "+xlen",
    "+xclaim",
    "+xpending",
    "+xinfo|stream",
    "+xinfo|consumers",
    "+xgroup|create",
    "+xgroup|destroy",
    "+xgroup|delconsumer",
    "+get",
    "+set",
    "+del",
    "+exists",
    "+pexpire",
    "+zadd",
    "+zrem",
    "+zremrangebyscore",
    "+zrangebyscore",
    "+zcount",
    "+zcard",
    "+eval",
    "+evalsha",
];

/// Everything that works on named keys.
const ALL_OF: &str = "+@read +@write +eval +evalsha -@dangerous -@admin -scan -dbsize -randomkey";

/// The user of a member: what it needs and no more.
///
/// `namespace` as in [`RedisConfig::namespace`](super::RedisConfig::namespace); `services` are those it offers.
pub fn for_node(
    namespace: &Name,
    path: &NodePath,
    services: &[Service],
    reach: &Reach,
    login: &Login,
) -> Rule {
    let keys = Keys::new(namespace.as_str());
    let mut words: Vec<String> = vec!["reset".into(), "on".into()];
    words.push(match login {
        Login::Sha256(hash) => format!("#{hash}"),
        Login::Nothing => "nopass".into(),
    });
    words.push("resetchannels".into());
    words.extend(
        own_keys(&keys, path, services)
            .into_iter()
            .map(|key| format!("~{key}")),
    );
    words.extend(KEYLESS.iter().chain(&OWN).map(|&word| word.to_owned()));
    let mut selector = |commands: &str, patterns: &[String]| {
        if !patterns.is_empty() {
            let patterns: Vec<String> = patterns.iter().map(|pattern| format!("~{pattern}")).collect();
            words.push(format!("({commands} {})", patterns.join(" ")));
        }
    };
    selector("+get +exists", &[keys.anywhere("p")]);
    selector("+zcount +zrangebyscore", &[keys.anywhere("l")]);
    selector("+xadd", &[keys.anywhere("r")]);
    // It may give a request up, but not read what others gave up.
    selector("+xadd +pexpire", &[keys.every_dead_letters(), keys.every_hops()]);
    selector("+sadd +pexpire", &[keys.dead_letter_shards()]);
    // A ticket is written by who submits and by who works on it; its id is not to be guessed.
    let mut tickets = |tickets: &[String]| {
        selector("+hset +hsetnx +hget +hmget +pexpire +del +eval", tickets);
        selector("+zadd +zrem +zrangebyscore +pexpire", &[keys.every_due()]);
    };
    match reach {
        Reach::Services(services) if !services.is_empty() => {
            let all: Vec<String> = services
                .iter()
                .map(|service| keys.tickets_of_any(service))
                .collect();
            tickets(&all);
        }
        Reach::Everybody => tickets(&[keys.anywhere("t")]),
        Reach::Answers | Reach::Services(_) => {}
    }
    match reach {
        Reach::Answers => {}
        Reach::Services(services) => {
            let lanes = |service| [keys.any_of(service), keys.any_control_of(service)];
            let queues: Vec<String> = services.iter().flat_map(lanes).collect();
            selector("+xadd +xdel +xlen", &queues);
            if !services.is_empty() {
                selector("+xadd", &[keys.broadcasts()]);
            }
        }
        Reach::Everybody => {
            let queues = [keys.anywhere("n"), keys.anywhere("g")];
            selector("+xadd +xdel +xlen", &queues);
            selector("+xadd", &[keys.broadcasts()]);
            // Who may command everybody may stand for election.
            selector("+eval +get +set +del +pexpire +pttl", &[keys.every_lease()]);
        }
    }
    Rule {
        user: user(namespace, path),
        words,
    }
}

/// What the user of a member is called: the namespace and the path with dots, which stand in no name.
pub fn user(namespace: &Name, path: &NodePath) -> String {
    let names: Vec<&str> = path.segments().iter().map(Name::as_str).collect();
    format!("{namespace}.{}", names.join("."))
}

fn own_keys(keys: &Keys, path: &NodePath, services: &[Service]) -> Vec<String> {
    let mut own = vec![
        keys.node(path),
        Keys::counts(&keys.node(path)),
        keys.control(path),
        keys.presence(path),
        keys.inbox(path, "*"),
    ];
    let mut homes = vec![Route::node(path.clone())];
    // Leaving, a member forgets the broadcasts of every shard above it where nobody is left.
    own.extend(keys::shards_above(path).iter().map(|shard| keys.broadcast(shard)));
    own.push(keys.broadcast(&keys::shard(path)));
    for scope in keys::scopes(path) {
        own.push(escaped(&keys.alive(&scope, None)));
        for service in services {
            own.push(keys.alive(&scope, Some(service)));
            for queue in keys.lanes(&scope, service) {
                own.push(Keys::counts(&queue));
                own.push(queue);
            }
            own.push(keys.rescuer(&scope, service));
            own.push(keys.claim(&scope, service, "*"));
            homes.push(Route::any(scope.clone(), service.clone()));
        }
    }
    for home in homes {
        own.push(keys.answers_of(&home));
        own.push(keys.tickets_of(&home));
        own.push(keys.due(&keys::home_shard(&home)));
    }
    own.sort();
    own.dedup();
    own
}

/// The key itself, not what it would match as a pattern.
fn escaped(key: &str) -> String {
    key.replace('*', "\\*")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(path: &str, services: &[&str], reach: &Reach) -> Rule {
        let services: Vec<Service> = services.iter().map(|name| Service::new(name).unwrap()).collect();
        for_node(
            &"vbm".parse().unwrap(),
            &path.parse().unwrap(),
            &services,
            reach,
            &Login::Nothing,
        )
    }

    #[test]
    fn the_line_of_a_node_names_its_keys_and_nobody_elses() {
        let line = rule("eu/r1/n1", &["agent"], &Reach::Answers).to_string();
        assert!(
            line.starts_with("ACL SETUSER vbm.eu.r1.n1 reset on nopass resetchannels ~"),
            "{line}"
        );
        for key in [
            "~vbm:v1:{eu/r1}:n:eu/r1/n1 ",
            "~vbm:v1:{eu/r1}:r:eu/r1/n1:* ",
            "~vbm:v1:{/}:g:/:agent ",
            "~vbm:v1:{eu}:l:eu:\\* ",
            "(+xadd ~vbm:v1:{*}:r:*)",
        ] {
            assert!(line.contains(key), "{key} is missing in {line}");
        }
        assert!(!line.contains("{*}:n:*") && !line.contains("{*}:g:*"), "{line}");
    }

    #[test]
    fn nothing_dangerous_is_allowed() {
        let line = rule("n1", &["agent"], &Reach::Everybody).to_string();
        for word in [
            "+@",
            "allcommands",
            "allkeys",
            "+acl",
            "+config",
            "+flush",
            "+keys",
            "+scan",
            "+script",
            "~* ",
        ] {
            assert!(!line.contains(word), "{word} in {line}");
        }
    }

    #[test]
    fn who_asks_a_service_reaches_its_queues_and_no_node() {
        let reach = Reach::Services(vec![Service::new("controller").unwrap()]);
        let line = rule("n1", &[], &reach).to_string();
        assert!(
            line.contains("~vbm:v1:{*}:g:*:controller ~vbm:v1:{*}:g:*:controller:ctl)")
                && !line.contains(":n:*"),
            "{line}"
        );
    }
}
