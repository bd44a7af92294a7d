//! Recorded answers and tickets in Redis. All of it goes through the writer's queue, so that an answer is recorded
//! before its reply is written and before its request is forgotten, and costs no round trip of its own.
//!
//! - Answers: one hash for each destination and span of [`BUCKET_MS`]: `HSET bucket key answer key answer ...` once a
//!   batch, `HMGET` over the buckets of the last [`DEDUPE_TTL`](limits::DEDUPE_TTL) to look. A bucket expires by
//!   itself; what is more than a process may keep is taken out of it, the oldest first.
//! - Tickets: one hash each: `o` as opened, `b` who has begun, `e` how it ended. The first `HSETNX e` wins.
//! - What must be looked after (callbacks): a sorted set for each shard, by Redis' time.
//!
//! With security on, every value is sealed as it is written: all that one batch writes for others with one signature. What
//! is read is opened by who asked ([`results`](super::results)), not by the writer.

mod sealed;
mod tickets;

use super::{Core, connect::Answer};
use crate::{Route, limits, transport::TicketRecord};
use bytes::Bytes;
use redis::{Pipeline, Value};
use sealed::Sealed;
use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};
use tickets::{add_other, settle_other};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// The span of one hash of answers.
const BUCKET_MS: u64 = 300_000;
/// How far another process may be ahead in reckoning Redis' time.
const CLOCK_SLACK_MS: u64 = 2_000;
/// How long the list of due tickets lives after the last one was written: longer than any ticket.
const DUE_TTL: Duration = Duration::from_secs(8 * 24 * 3600);
/// As opened.
pub(super) const FIELD_OPENED: &str = "o";
/// Who has begun.
pub(super) const FIELD_BEGUN: &str = "b";
/// How it ended.
pub(super) const FIELD_END: &str = "e";

fn ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// The spans in which a record that is still valid may lie, the newest first.
fn buckets(now_ms: u64) -> impl Iterator<Item = u64> {
    let oldest = now_ms.saturating_sub(ms(limits::DEDUPE_TTL)) / BUCKET_MS;
    let newest = (now_ms + CLOCK_SLACK_MS) / BUCKET_MS;
    (oldest..=newest).rev()
}

pub(super) type Asked<T> = oneshot::Sender<Result<T, String>>;

/// One thing to do with what is kept.
pub(super) enum StoreOp {
    Keep {
        home: Arc<Route>,
        key: Bytes,
        value: Bytes,
        _room: OwnedSemaphorePermit,
    },
    Find {
        home: Arc<Route>,
        key: Bytes,
        done: Asked<Vec<Found>>,
    },
    Ticket {
        key: String,
        what: TicketOp,
        _room: Option<OwnedSemaphorePermit>,
    },
    /// A ticket is due at a time, or no more.
    Due {
        key: String,
        name: String,
        at_ms: Option<u64>,
    },
    Overdue {
        keys: Vec<String>,
        done: Asked<Vec<String>>,
    },
}

/// A value as it was found, and the hash that it stands in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) bucket: Arc<str>,
    pub(super) value: Bytes,
}

pub(super) enum TicketOp {
    Open(Bytes, Duration),
    Begun(Bytes, Duration),
    End(Bytes, Duration),
    Settle(Bytes, Duration, Asked<Bytes>),
    /// Ends it although there is an end: this one, which is forged.
    Mend(Bytes, Bytes, Duration, Asked<Bytes>),
    Look(Asked<Option<TicketRecord>>),
    Forget(Asked<()>),
}

/// What one batch does with what is kept.
#[derive(Default)]
pub(super) struct StorePlan {
    keeps: Vec<(Arc<Route>, Bytes, Bytes)>,
    finds: Vec<(Arc<Route>, Bytes, Asked<Vec<Found>>)>,
    others: Vec<StoreOp>,
    rooms: Vec<OwnedSemaphorePermit>,
}

impl StorePlan {
    pub(super) fn add(&mut self, op: StoreOp) {
        match op {
            StoreOp::Keep {
                home,
                key,
                value,
                _room,
            } => {
                self.keeps.push((home, key, value));
                self.rooms.push(_room);
            }
            StoreOp::Find { home, key, done } => self.finds.push((home, key, done)),
            other => self.others.push(other),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.keeps.is_empty() && self.finds.is_empty() && self.others.is_empty()
    }
}

/// The records of one destination in one batch: which of the plan.
struct Share {
    home: Arc<Route>,
    members: Vec<usize>,
}

/// The records by destination, in order.
fn shares<'a>(homes: impl Iterator<Item = &'a Arc<Route>>) -> Vec<Share> {
    let mut shares: Vec<Share> = Vec::new();
    for (at, home) in homes.enumerate() {
        let same = |share: &&mut Share| Arc::ptr_eq(&share.home, home) || share.home == *home;
        match shares.iter_mut().find(same) {
            Some(share) => share.members.push(at),
            None => shares.push(Share {
                home: home.clone(),
                members: vec![at],
            }),
        }
    }
    shares
}

/// What the commands of a batch were, to read their answers.
#[derive(Default)]
pub(super) struct Layout {
    /// Commands whose answers say nothing but that they failed.
    plain: usize,
    /// The bucket of each share of records, and whether its life was set.
    kept: Vec<(Arc<str>, Vec<usize>)>,
    /// The finds of each destination and the buckets in which they were looked for.
    found: Vec<(Vec<usize>, Vec<Arc<str>>)>,
}

/// What this process has recorded. Owned by the writer.
#[derive(Default)]
pub(super) struct Recorded {
    /// The oldest first: bucket, key, bytes. A key recorded twice in one bucket stands here twice; its record goes
    /// with the older one, earlier than it might.
    ring: VecDeque<(Arc<str>, Bytes, usize)>,
    bytes: usize,
    /// Taken out of the ring and still in Redis.
    displaced: Vec<(Arc<str>, Bytes)>,
    /// Buckets whose life was set in this generation.
    living: HashSet<Arc<str>>,
    generation: u64,
}

impl Recorded {
    /// Adds the commands of a plan to a batch. Repeatable: the same plan may be written again after a broken connection.
    pub(super) fn add(&mut self, core: &Core, batch: &mut Pipeline, plan: &StorePlan) -> Layout {
        let mut layout = Layout::default();
        if plan.is_empty() {
            return layout;
        }
        let (now, generation) = (core.now_ms(), *core.generations.borrow());
        if generation != self.generation {
            self.generation = generation;
            self.living.clear();
        }
        let sealed = Sealed::of(core, plan, now);
        for (bucket, keys) in by_bucket(&self.displaced) {
            batch.cmd("HDEL").arg(&*bucket).arg(keys);
            layout.plain += 1;
        }
        for share in shares(plan.keeps.iter().map(|(home, ..)| home)) {
            let bucket: Arc<str> = core.keys.answers(&share.home, now / BUCKET_MS).into();
            let set = batch.cmd("HSET").arg(&*bucket);
            for &at in &share.members {
                let (_, key, value) = &plan.keeps[at];
                set.arg(&key[..]).arg(sealed.keep(at).unwrap_or(&value[..]));
            }
            layout.plain += 1;
            if !self.living.contains(&bucket) {
                let life = ms(limits::DEDUPE_TTL) + BUCKET_MS;
                batch.cmd("PEXPIRE").arg(&*bucket).arg(life);
                layout.plain += 1;
            }
            layout.kept.push((bucket, share.members));
        }
        for share in shares(plan.finds.iter().map(|(home, ..)| home)) {
            let mut spans: Vec<Arc<str>> = Vec::new();
            for bucket in buckets(now) {
                let bucket = core.keys.answers(&share.home, bucket);
                let get = batch.cmd("HMGET").arg(&bucket);
                for &at in &share.members {
                    get.arg(&plan.finds[at].1[..]);
                }
                spans.push(bucket.into());
            }
            layout.found.push((share.members, spans));
        }
        for (at, op) in plan.others.iter().enumerate() {
            add_other(core, batch, (op, sealed.other(at)), now);
        }
        layout
    }

    /// Reads the answers in the order of [`add`](Self::add), tells who asked, and remembers what was recorded.
    pub(super) fn settle(
        &mut self,
        plan: StorePlan,
        layout: Layout,
        answers: &mut impl Iterator<Item = Answer>,
    ) {
        if plan.is_empty() {
            return;
        }
        for why in answers.by_ref().take(layout.plain).filter_map(Result::err) {
            tracing::warn!(
                why,
                "an answer was not recorded: a repeated request may run again"
            );
        }
        self.displaced.clear();
        for (bucket, members) in layout.kept {
            for at in members {
                let (_, key, value) = &plan.keeps[at];
                self.remember(bucket.clone(), key.clone(), value.len());
            }
            self.living.insert(bucket);
        }
        let mut finds: Vec<_> = plan.finds.into_iter().map(|(_, _, done)| Some(done)).collect();
        for (members, spans) in layout.found {
            let answers: Vec<Answer> = answers.by_ref().take(spans.len()).collect();
            for (place, at) in members.into_iter().enumerate() {
                let found = all_at(&spans, &answers, place);
                if let Some(done) = finds.get_mut(at).and_then(Option::take) {
                    // An error means that nobody waits any more.
                    drop(done.send(found));
                }
            }
        }
        for op in plan.others {
            settle_other(op, answers);
        }
    }

    fn remember(&mut self, bucket: Arc<str>, key: Bytes, bytes: usize) {
        self.bytes += bytes;
        self.ring.push_back((bucket, key, bytes));
        while self.ring.len() > limits::DEDUPE_MAX_RECORDS || self.bytes > limits::DEDUPE_MAX_BYTES {
            let Some((bucket, key, bytes)) = self.ring.pop_front() else {
                return;
            };
            self.bytes = self.bytes.saturating_sub(bytes);
            if self.living.contains(&bucket) {
                self.displaced.push((bucket, key));
            }
        }
    }
}

/// Keys to take out, by bucket.
fn by_bucket(displaced: &[(Arc<str>, Bytes)]) -> Vec<(Arc<str>, Vec<&[u8]>)> {
    let mut grouped: Vec<(Arc<str>, Vec<&[u8]>)> = Vec::new();
    for (bucket, key) in displaced {
        match grouped.iter_mut().find(|(known, _)| known == bucket) {
            Some((_, keys)) => keys.push(key),
            None => grouped.push((bucket.clone(), vec![key])),
        }
    }
    grouped
}

/// The values at a place of several lists, in their order.
fn all_at(spans: &[Arc<str>], answers: &[Answer], place: usize) -> Result<Vec<Found>, String> {
    let mut found = Vec::new();
    for (bucket, answer) in spans.iter().zip(answers) {
        match answer {
            Err(why) => return Err(why.clone()),
            Ok(Value::Array(values)) => {
                if let Some(Value::BulkString(value)) = values.get(place) {
                    found.push(Found {
                        bucket: bucket.clone(),
                        value: Bytes::copy_from_slice(value),
                    });
                }
            }
            Ok(_) => {}
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_looked_for_as_long_as_it_is_valid() {
        let ttl = ms(limits::DEDUPE_TTL);
        for written in [0, 1, BUCKET_MS - 1, BUCKET_MS, 7 * BUCKET_MS + 5] {
            for age in [0, 1, BUCKET_MS, ttl] {
                let looked: Vec<_> = buckets(written + age).collect();
                assert!(looked.contains(&(written / BUCKET_MS)), "{written} after {age}");
            }
        }
        // Also by a process whose reckoning is behind.
        assert!(buckets(BUCKET_MS - 1).any(|bucket| bucket == 1));
    }

    #[test]
    fn what_is_recorded_is_bounded_and_the_oldest_goes_first() {
        let mut recorded = Recorded::default();
        let bucket: Arc<str> = "b".into();
        recorded.living.insert(bucket.clone());
        let most = u32::try_from(limits::DEDUPE_MAX_RECORDS).unwrap();
        for n in 0..most + 2 {
            recorded.remember(bucket.clone(), n.to_be_bytes().to_vec().into(), 10);
        }
        assert_eq!(recorded.ring.len(), limits::DEDUPE_MAX_RECORDS);
        let gone: Vec<_> = recorded.displaced.iter().map(|(_, key)| key.to_vec()).collect();
        assert_eq!(gone, [0u32.to_be_bytes(), 1u32.to_be_bytes()]);
        recorded.remember(bucket, Bytes::from_static(b"large"), limits::DEDUPE_MAX_BYTES);
        assert_eq!(recorded.ring.len(), 1, "bytes are bounded too");
    }

    #[test]
    fn the_newest_record_is_the_one_that_counts() {
        let list = |values: &[Option<&str>]| {
            Ok(Value::Array(
                values
                    .iter()
                    .map(|value| match value {
                        Some(text) => Value::BulkString(text.as_bytes().to_vec()),
                        None => Value::Nil,
                    })
                    .collect(),
            ))
        };
        let answers = [list(&[None, Some("new")]), list(&[Some("x"), Some("old")])];
        let spans: [Arc<str>; 2] = ["2".into(), "1".into()];
        let at = |place| {
            let found = all_at(&spans, &answers, place).unwrap();
            found
                .into_iter()
                .map(|found| (found.bucket, found.value))
                .collect::<Vec<_>>()
        };
        let value = |text: &'static str| Bytes::from_static(text.as_bytes());
        assert_eq!(at(1), [("2".into(), value("new")), ("1".into(), value("old"))]);
        assert_eq!(at(0), [("1".into(), value("x"))]);
        assert_eq!(at(2), []);
        assert!(all_at(&spans, &[Err("WRONGTYPE".into())], 0).is_err());
    }
}
