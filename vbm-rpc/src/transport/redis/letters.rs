//! Dead letters: how one is written, and what the operator does with them.
//!
//! On a bus with seals a letter is signed by who gave it up, and one of an anycast queue holds the entry it came in, with
//! the seal of its sender. Who replays it checks both, and seals it anew with a key that relays: so nobody can make up a
//! letter and have an operator send it.
//!
//! An entry of `{shard}:dlq` has the frame alone in [`FIELD_FRAMES`], packed as everywhere, and beside it where it was
//! to go, why it is here, how often it was delivered, who had it last and when it was sent. Every letter is one request,
//! also when its entry held many.

use super::{
    Core, RedisAdmin,
    connect::Answer,
    guard::Guard,
    keys::{FIELD_FRAMES, FIELD_SEAL, Keys, Owner},
    op::Target,
    pack::{self, Entry},
};
use crate::{
    Member,
    admin::{DeadLetter, no_letter, nobody_takes, replayed},
    auth::{Bound, Refusal, Ring, Security, check_frames, open_for_any},
    limits::{DEAD_LETTERS_MAX, DEAD_LETTERS_TTL},
};
use bytes::Bytes;
use redis::{Pipeline, Value, cmd, pipe};
use std::{sync::Arc, time::Duration};
use vbm_core::{Error, ErrorKind, NodePath};

/// The run of an operator.
const RELAY_BOOT_ID: &str = "replay";
/// The key of the queue that it was taken from.
const FIELD_QUEUE: &str = "q";
const FIELD_REASON: &str = "reason";
const FIELD_DELIVERIES: &str = "n";
const FIELD_WORKER: &str = "by";
/// The id of the entry that it was part of: its time is when it was sent.
const FIELD_ENTRY: &str = "e";
/// There when it was taken from a sealed entry.
const FIELD_SEALED: &str = "sealed";
/// Of an anycast entry: all its frames as they were packed, and their seal, which proves who sent them.
const FIELD_PROOF: &str = "pf";
const FIELD_PROOF_SEAL: &str = "pa";
/// The largest proof that is kept with a letter.
const PROOF_MAX_BYTES: usize = 64 * 1024;

/// A request that is given up.
#[derive(Clone, Debug)]
pub(super) struct Letter {
    pub(super) queue: std::sync::Arc<str>,
    pub(super) entry: String,
    pub(super) frame: Bytes,
    pub(super) reason: String,
    pub(super) deliveries: u32,
    pub(super) worker: String,
    /// The frames of its anycast entry as they were packed, and their seal; with security on.
    pub(super) proof: Option<Proof>,
}

/// What proves who sent an entry to whoever reads it.
#[derive(Clone, Debug)]
pub(super) struct Proof {
    pub(super) content: Bytes,
    pub(super) seal: Bytes,
}

impl Proof {
    /// Of an entry with a group, whose seal is a signature: only its one reader can open any other.
    pub(super) fn of(entry: &Entry, group: bool) -> Option<Self> {
        let seal = entry.seal.as_ref().filter(|_| group)?;
        Some(Self {
            content: entry.content.clone(),
            seal: seal.clone(),
        })
    }
}

/// What the member that gives a letter up vouches for, besides the frame.
fn about(queue: &str, entry: &str, reason: &str, deliveries: u32, worker: &str) -> String {
    format!("{queue}\n{entry}\n{reason}\n{deliveries}\n{worker}")
}

/// The commands that keep a letter; their answers hold nothing of interest. Gives how many there are.
pub(super) fn add(core: &Core, batch: &mut Pipeline, letter: &Letter) -> usize {
    let keys = &core.keys;
    let Some((shard, owner)) = keys.parse(&letter.queue) else {
        return 0;
    };
    tracing::error!(to = %owner, reason = letter.reason, deliveries = letter.deliveries, worker = letter.worker,
        "a request goes to the dead letters: see `vbm bus dlq list`");
    let key = keys.dead_letters(&shard);
    let ttl = u64::try_from(DEAD_LETTERS_TTL.as_millis()).unwrap_or(u64::MAX);
    let add = batch
        .cmd("XADD")
        .arg(&key)
        .arg("MAXLEN")
        .arg("~")
        .arg(DEAD_LETTERS_MAX)
        .arg("*");
    let frames = pack::pack(std::iter::once(&letter.frame));
    add.arg(FIELD_FRAMES).arg(&frames[..]);
    add.arg(FIELD_QUEUE).arg(&*letter.queue);
    add.arg(FIELD_REASON).arg(&letter.reason);
    add.arg(FIELD_DELIVERIES).arg(letter.deliveries);
    add.arg(FIELD_WORKER).arg(&letter.worker);
    add.arg(FIELD_ENTRY).arg(&letter.entry);
    if let Some(guard) = &core.guard {
        let Letter {
            queue,
            entry,
            reason,
            deliveries,
            worker,
            ..
        } = letter;
        let about = about(queue, entry, reason, *deliveries, worker);
        add.arg(FIELD_SEALED).arg(1);
        add.arg(FIELD_SEAL)
            .arg(guard.vouch(&key, &about, &frames, core.now_ms()));
        if let Some(proof) = letter
            .proof
            .as_ref()
            .filter(|proof| proof.content.len() <= PROOF_MAX_BYTES)
        {
            add.arg(FIELD_PROOF).arg(&proof.content[..]);
            add.arg(FIELD_PROOF_SEAL).arg(&proof.seal[..]);
        }
    }
    batch.cmd("PEXPIRE").arg(&key).arg(ttl);
    let shards = keys.dead_letter_shards();
    batch.cmd("SADD").arg(&shards).arg(shard.to_string());
    batch.cmd("PEXPIRE").arg(&shards).arg(ttl);
    4
}

/// A letter as it was read.
struct Found {
    letter: DeadLetter,
    frame: Bytes,
    queue: String,
    owner: Option<Owner>,
    /// The id of the entry that it was part of.
    entry: String,
    sealed: bool,
    /// Of who gave it up.
    vouched: Option<Vec<u8>>,
    proof: Option<Proof>,
}

/// The name of a letter: its shard and its entry.
fn name(shard: &NodePath, entry: &str) -> String {
    format!("{shard}:{entry}")
}

fn parse_name(id: &str) -> Option<(NodePath, &str)> {
    let (shard, entry) = id.rsplit_once(':')?;
    pack::parse_id(entry)?;
    Some((shard.parse().ok()?, entry))
}

fn read(keys: &Keys, shard: &NodePath, entry: &Value) -> Option<Found> {
    let Value::Array(pair) = entry else { return None };
    let id = pack::text(pair.first()?)?;
    let fields = pair.get(1)?;
    let field = |name| pack::field(fields, name).and_then(pack::text).map(str::to_owned);
    let bytes = |name| match pack::field(fields, name) {
        Some(Value::BulkString(bytes)) => Some(bytes.clone()),
        _ => None,
    };
    let frame = match pack::field(fields, FIELD_FRAMES) {
        Some(Value::BulkString(content)) => pack::unpack(Bytes::copy_from_slice(content))
            .and_then(|frames| frames.into_iter().next())
            .unwrap_or_default(),
        _ => Bytes::new(),
    };
    let queue = field(FIELD_QUEUE).unwrap_or_default();
    let owner = keys.parse(&queue).map(|(_, owner)| owner);
    let to = owner.as_ref().map_or_else(|| queue.clone(), Owner::to_string);
    let mut letter = DeadLetter::of_frame(name(shard, id), to, &frame);
    letter.reason = field(FIELD_REASON).unwrap_or_default();
    letter.deliveries = field(FIELD_DELIVERIES)
        .and_then(|n| n.parse().ok())
        .unwrap_or_default();
    letter.worker = field(FIELD_WORKER).filter(|worker| !worker.is_empty());
    letter.buried_at_ms = pack::parse_id(id).map_or(0, |(ms, _)| ms);
    letter.sent_at_ms = field(FIELD_ENTRY)
        .and_then(|id| pack::parse_id(&id))
        .map(|(ms, _)| ms);
    Some(Found {
        letter,
        frame,
        queue,
        owner,
        entry: field(FIELD_ENTRY).unwrap_or_default(),
        sealed: pack::field(fields, FIELD_SEALED).is_some(),
        vouched: bytes(FIELD_SEAL),
        proof: bytes(FIELD_PROOF)
            .zip(bytes(FIELD_PROOF_SEAL))
            .map(|(content, seal)| Proof {
                content: content.into(),
                seal: seal.into(),
            }),
    })
}

impl RedisAdmin {
    pub(super) async fn letters(&self, scope: &NodePath) -> Result<Vec<DeadLetter>, Error> {
        let mut commands = self.commands().await?;
        let mut shards = cmd("SMEMBERS");
        shards.arg(self.keys.dead_letter_shards());
        let shards: Vec<NodePath> = pack::texts(&self.one(&mut commands, shards).await?)
            .iter()
            .filter_map(|text| text.parse().ok())
            .collect();
        let mut found = Vec::new();
        for shard in shards {
            let mut range = cmd("XRANGE");
            range.arg(self.keys.dead_letters(&shard)).arg("-").arg("+");
            let Value::Array(entries) = self.one(&mut commands, range).await? else {
                continue;
            };
            let below = entries
                .iter()
                .filter_map(|entry| read(&self.keys, &shard, entry))
                .filter(|found| {
                    scope.is_root()
                        || found
                            .owner
                            .as_ref()
                            .is_some_and(|owner| scope.contains(owner.scope()))
                });
            found.extend(below.map(|found| found.letter));
        }
        found.sort_by(|a, b| (a.buried_at_ms, &a.id).cmp(&(b.buried_at_ms, &b.id)));
        Ok(found)
    }

    async fn find(&self, id: &str) -> Result<(NodePath, Found), Error> {
        let (shard, entry) = parse_name(id).ok_or_else(|| no_letter(id))?;
        let mut commands = self.commands().await?;
        let mut range = cmd("XRANGE");
        range.arg(self.keys.dead_letters(&shard)).arg(entry).arg(entry);
        let answer = self.one(&mut commands, range).await?;
        let found = match &answer {
            Value::Array(entries) => entries.first().and_then(|entry| read(&self.keys, &shard, entry)),
            _ => None,
        };
        found.map(|found| (shard, found)).ok_or_else(|| no_letter(id))
    }

    pub(super) async fn letter(&self, id: &str) -> Result<(DeadLetter, Bytes), Error> {
        let (_, found) = self.find(id).await?;
        Ok((found.letter, found.frame))
    }

    pub(super) async fn replay_letter(&self, id: &str, ttl: Option<Duration>) -> Result<(), Error> {
        let (shard, found) = self.find(id).await?;
        let frame = replayed(&found.frame, ttl)?;
        let Some(owner) = found.owner.clone() else {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "this letter cannot be replayed",
                format!("'{}' is no request queue", found.queue),
                "drop it",
            ));
        };
        let mut commands = self.commands().await?;
        let now = self.now_ms(&mut commands).await?;
        let content = pack::pack(std::iter::once(&frame));
        let seal = match &self.security {
            Security::On(keys, trust) => {
                self.checked(&shard, &found, &owner, &trust.ring())?;
                let target = match &owner {
                    Owner::Node(path) => Target::Node(path.clone()),
                    Owner::Control(path) => Target::Control(path.clone()),
                    Owner::Any(scope, service) => Target::Any {
                        scope: scope.clone(),
                        service: service.clone(),
                    },
                    Owner::AnyControl(scope, service) => Target::AnyControl {
                        scope: scope.clone(),
                        service: service.clone(),
                    },
                };
                let guard = self.relay(keys, trust)?;
                if guard.can_seal(&target).is_err() {
                    return Err(refused(
                        &format!("no key is trusted for {owner}"),
                        "add its line to the trust list",
                    ));
                }
                Some(guard.seal(&target, &found.queue, &content, now))
            }
            Security::Off if found.sealed => {
                return Err(refused(
                    "members of this bus take sealed entries only, and the operator has no key",
                    "give a key whose line in the trust list says `relays`: --bus-key FILE --bus-trust FILE",
                ));
            }
            Security::Off => None,
        };
        let mut batch = pipe();
        match &owner {
            Owner::Node(path) | Owner::Control(path) => {
                batch.cmd("EXISTS").arg(self.keys.presence(path));
            }
            Owner::Any(scope, service) | Owner::AnyControl(scope, service) => {
                let alive = self.keys.alive(scope, Some(service));
                batch.cmd("ZCOUNT").arg(alive).arg(now).arg("+inf");
            }
        }
        let alive = self.run(&mut commands, &mut batch).await?;
        let alive = alive
            .first()
            .and_then(|answer| pack::number(answer.as_ref().ok()?));
        if alive.unwrap_or(0) == 0 {
            return Err(nobody_takes(&owner.to_string()));
        }
        let mut replay = cmd("EVAL");
        replay
            .arg(super::scripts::REPLAY)
            .arg(2)
            .arg(self.keys.dead_letters(&shard))
            .arg(&found.queue);
        replay.arg(parse_name(id).map_or("", |(_, entry)| entry));
        replay.arg(FIELD_FRAMES).arg(&content[..]);
        if let Some(seal) = seal {
            replay.arg(FIELD_SEAL).arg(seal);
        }
        match pack::number(&self.one(&mut commands, replay).await?) {
            Some(1) => Ok(()),
            Some(0) => Err(nobody_takes(&owner.to_string())),
            _ => Err(no_letter(id)),
        }
    }

    /// The guard of an operator, who speaks in the name that its key relays for.
    fn relay(&self, keys: &crate::auth::Keys, trust: &crate::auth::Trust) -> Result<Guard, Error> {
        let id = keys.active().id();
        let ring = trust.ring();
        let Some((path, _)) = ring.paths_of(id).find(|(_, trusted)| trusted.relays) else {
            return Err(Error::new(
                ErrorKind::PermissionDenied,
                "this letter cannot be replayed",
                format!("no line of the trust list says `relays` for the key {id}"),
                "add the line PATH PUBLIC-KEY relays to the trust list of every member (`vbm bus key show` prints it)",
            ));
        };
        let me = Member::new(path.clone(), RELAY_BOOT_ID).into_info(Vec::new())?;
        let security = Security::On(keys.clone(), trust.clone());
        let counts = (&self.counts, Arc::default());
        let guard = Guard::new(&security, &self.namespace, &me, counts)?;
        guard.ok_or_else(|| Error::internal("the operator has no guard", "security is on"))
    }

    /// A letter is what it says: who gave it up vouches for it and served that queue, and what came by way of a service
    /// was sent by its caller.
    fn checked(&self, shard: &NodePath, found: &Found, owner: &Owner, ring: &Ring) -> Result<(), Error> {
        let refuse = |refusal: Refusal| {
            self.counts.refused_one(&refusal);
            tracing::warn!(
                letter = found.letter.id,
                reason = refusal.name(),
                "a dead letter is not believed: {refusal}"
            );
            refused(
                &format!("it is not believed: {refusal}"),
                "find out who wrote it, then drop it",
            )
        };
        let letter = &found.letter;
        let worker = letter.worker.as_deref().unwrap_or_default();
        let about = about(
            &found.queue,
            &found.entry,
            &letter.reason,
            letter.deliveries,
            worker,
        );
        let frames = pack::pack(std::iter::once(&found.frame));
        let bound = Bound {
            stream: &self.keys.dead_letters(shard),
            scope: &about,
            service: "",
            frames: &frames,
        };
        let seal = found.vouched.as_ref().ok_or(Refusal::Missing).map_err(refuse)?;
        let (speaker, _) = open_for_any(seal, &bound, ring).map_err(refuse)?;
        let served = match owner {
            Owner::Node(path) | Owner::Control(path) => *path == speaker.path,
            Owner::Any(scope, _) | Owner::AnyControl(scope, _) => scope.contains(&speaker.path),
        };
        if !served {
            return Err(refuse(Refusal::NoSay { sender: speaker.path }));
        }
        if matches!(owner, Owner::Node(_) | Owner::Control(_)) {
            // It goes back to who vouches for it.
            return Ok(());
        }
        let proof = found.proof.as_ref().ok_or_else(|| {
            refused(
                "its entry was too large for its proof to be kept",
                "let its caller ask again, then drop it",
            )
        })?;
        let bound = Bound {
            stream: &found.queue,
            scope: "",
            service: "",
            frames: &proof.content,
        };
        let (speaker, trusted) = open_for_any(&proof.seal, &bound, ring).map_err(refuse)?;
        let frames = pack::unpack(proof.content.clone()).unwrap_or_default();
        check_frames(&speaker, &trusted, ring, &frames).map_err(refuse)?;
        match frames.contains(&found.frame) {
            true => Ok(()),
            false => Err(refuse(Refusal::WrongSeal)),
        }
    }

    pub(super) async fn forget_letter(&self, id: &str) -> Result<(), Error> {
        let (shard, entry) = parse_name(id).ok_or_else(|| no_letter(id))?;
        let mut commands = self.commands().await?;
        let mut drop = cmd("XDEL");
        drop.arg(self.keys.dead_letters(&shard)).arg(entry);
        match pack::number(&self.one(&mut commands, drop).await?) {
            Some(1) => Ok(()),
            _ => Err(no_letter(id)),
        }
    }
}

fn refused(why: &str, fix: &str) -> Error {
    Error::new(ErrorKind::Unsupported, "this letter cannot be replayed", why, fix)
}

/// For looking at the answers of several commands.
pub(super) fn number_of(answer: Option<&Answer>) -> u64 {
    let number = answer
        .and_then(|answer| pack::number(answer.as_ref().ok()?))
        .unwrap_or(0);
    u64::try_from(number).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_letter_is_read_back() {
        for shard in ["/", "eu", "eu/r1"] {
            let shard: NodePath = shard.parse().unwrap();
            assert_eq!(parse_name(&name(&shard, "12-3")), Some((shard, "12-3")));
        }
        for bad in ["", "eu", "eu:", "eu:x", "12-3"] {
            assert_eq!(parse_name(bad), None, "{bad}");
        }
    }
}
