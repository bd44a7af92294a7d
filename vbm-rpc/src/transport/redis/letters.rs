//! Dead letters: how one is written, and what the operator does with them.
//!
//! An entry of `{shard}:dlq` has the frame alone in [`FIELD_FRAMES`], packed as everywhere, and beside it where it was
//! to go, why it is here, how often it was delivered, who had it last and when it was sent. Every letter is one request,
//! also when its entry held many.

use super::{
    RedisAdmin,
    connect::Answer,
    keys::{FIELD_FRAMES, Keys, Owner},
    pack,
};
use crate::{
    admin::{DeadLetter, no_letter, nobody_takes, replayed},
    limits::{DEAD_LETTERS_MAX, DEAD_LETTERS_TTL},
};
use bytes::Bytes;
use redis::{Pipeline, Value, cmd, pipe};
use std::time::Duration;
use vbm_core::{Error, ErrorKind, NodePath};

/// The key of the queue that it was taken from.
const FIELD_QUEUE: &str = "q";
const FIELD_REASON: &str = "reason";
const FIELD_DELIVERIES: &str = "n";
const FIELD_WORKER: &str = "by";
/// The id of the entry that it was part of: its time is when it was sent.
const FIELD_ENTRY: &str = "e";
/// There when it was taken from a sealed entry: its seal was for that entry, and is of no use here.
const FIELD_SEALED: &str = "sealed";

/// A request that is given up.
#[derive(Clone, Debug)]
pub(super) struct Letter {
    pub(super) queue: std::sync::Arc<str>,
    pub(super) entry: String,
    pub(super) frame: Bytes,
    pub(super) reason: String,
    pub(super) deliveries: u32,
    pub(super) worker: String,
}

/// The commands that keep a letter; their answers hold nothing of interest. Gives how many there are.
pub(super) fn add(keys: &Keys, batch: &mut Pipeline, letter: &Letter, sealed: bool) -> usize {
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
    add.arg(FIELD_FRAMES)
        .arg(&pack::pack(std::iter::once(&letter.frame))[..]);
    add.arg(FIELD_QUEUE).arg(&*letter.queue);
    add.arg(FIELD_REASON).arg(&letter.reason);
    add.arg(FIELD_DELIVERIES).arg(letter.deliveries);
    add.arg(FIELD_WORKER).arg(&letter.worker);
    add.arg(FIELD_ENTRY).arg(&letter.entry);
    if sealed {
        add.arg(FIELD_SEALED).arg(1);
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
    sealed: bool,
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
        sealed: pack::field(fields, FIELD_SEALED).is_some(),
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
        let Some(owner) = found.owner else {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "this letter cannot be replayed",
                format!("'{}' is no request queue", found.queue),
                "drop it",
            ));
        };
        if found.sealed {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "this letter cannot be replayed",
                "members of this bus take sealed entries only, and nobody but its sender can seal it",
                "let its caller ask again, then drop it",
            ));
        }
        let mut commands = self.commands().await?;
        let mut batch = pipe();
        match &owner {
            Owner::Node(path) | Owner::Control(path) => {
                batch.cmd("EXISTS").arg(self.keys.presence(path));
            }
            Owner::Any(scope, service) => {
                let alive = self.keys.alive(scope, Some(service));
                let now = self.now_ms(&mut commands).await?;
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
        replay
            .arg(FIELD_FRAMES)
            .arg(&pack::pack(std::iter::once(&frame))[..]);
        match pack::number(&self.one(&mut commands, replay).await?) {
            Some(1) => Ok(()),
            Some(0) => Err(nobody_takes(&owner.to_string())),
            _ => Err(no_letter(id)),
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
