//! Recorded answers and tickets in Redis. All of it goes through the writer's queue, so that an answer is recorded
//! before its reply is written and before its request is forgotten, and costs no round trip of its own.
//!
//! - Answers: one hash for each destination and span of [`BUCKET_MS`]: `HSET bucket key answer key answer ...` once a
//!   batch, `HMGET` over the buckets of the last [`DEDUPE_TTL`](limits::DEDUPE_TTL) to look. A bucket expires by
//!   itself; what is more than a process may keep is taken out of it, the oldest first.
//! - Tickets: one hash each: `o` as opened, `b` who has begun, `e` how it ended. The first `HSETNX e` wins.
//! - What must be looked after (callbacks): a sorted set for each shard, by Redis' time.

use super::{Core, connect::Answer, pack};
use crate::{Route, limits, transport::TicketRecord};
use bytes::Bytes;
use redis::{Pipeline, Value};
use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// The span of one hash of answers.
const BUCKET_MS: u64 = 300_000;
/// How far another process may be ahead in reckoning Redis' time.
const CLOCK_SLACK_MS: u64 = 2_000;
/// How long the list of due tickets lives after the last one was written: longer than any ticket.
const DUE_TTL: Duration = Duration::from_secs(8 * 24 * 3600);
/// As opened.
const FIELD_OPENED: &str = "o";
/// Who has begun.
const FIELD_BEGUN: &str = "b";
/// How it ended.
const FIELD_END: &str = "e";

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
        done: Asked<Option<Bytes>>,
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

pub(super) enum TicketOp {
    Open(Bytes, Duration),
    Begun(Bytes, Duration),
    End(Bytes, Duration),
    Settle(Bytes, Duration, Asked<Bytes>),
    Look(Asked<Option<TicketRecord>>),
    Forget(Asked<()>),
}

/// What one batch does with what is kept.
#[derive(Default)]
pub(super) struct StorePlan {
    keeps: Vec<(Arc<Route>, Bytes, Bytes)>,
    finds: Vec<(Arc<Route>, Bytes, Asked<Option<Bytes>>)>,
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
    /// The finds of each destination and in how many buckets they were looked for.
    found: Vec<(Vec<usize>, usize)>,
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
        for (bucket, keys) in by_bucket(&self.displaced) {
            batch.cmd("HDEL").arg(&*bucket).arg(keys);
            layout.plain += 1;
        }
        for share in shares(plan.keeps.iter().map(|(home, ..)| home)) {
            let bucket: Arc<str> = core.keys.answers(&share.home, now / BUCKET_MS).into();
            let set = batch.cmd("HSET").arg(&*bucket);
            for &at in &share.members {
                let (_, key, value) = &plan.keeps[at];
                set.arg(&key[..]).arg(&value[..]);
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
            let mut spans = 0;
            for bucket in buckets(now) {
                let get = batch.cmd("HMGET").arg(core.keys.answers(&share.home, bucket));
                for &at in &share.members {
                    get.arg(&plan.finds[at].1[..]);
                }
                spans += 1;
            }
            layout.found.push((share.members, spans));
        }
        for op in &plan.others {
            add_other(core, batch, op, now);
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
            let spans: Vec<Answer> = answers.by_ref().take(spans).collect();
            for (place, at) in members.into_iter().enumerate() {
                let found = first_at(&spans, place);
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

/// The first value at a place of several lists.
fn first_at(spans: &[Answer], place: usize) -> Result<Option<Bytes>, String> {
    for span in spans {
        match span {
            Err(why) => return Err(why.clone()),
            Ok(Value::Array(values)) => {
                if let Some(Value::BulkString(value)) = values.get(place) {
                    return Ok(Some(Bytes::copy_from_slice(value)));
                }
            }
            Ok(_) => {}
        }
    }
    Ok(None)
}

fn add_other(core: &Core, batch: &mut Pipeline, op: &StoreOp, now: u64) {
    match op {
        StoreOp::Ticket { key, what, .. } => add_ticket(batch, key, what),
        StoreOp::Due { key, name, at_ms } => {
            match at_ms {
                Some(at) => batch.cmd("ZADD").arg(key).arg(*at).arg(name),
                None => batch.cmd("ZREM").arg(key).arg(name),
            };
            batch.cmd("PEXPIRE").arg(key).arg(ms(DUE_TTL));
        }
        StoreOp::Overdue { keys, .. } => {
            for key in keys {
                let list = batch.cmd("ZRANGEBYSCORE").arg(key).arg("-inf").arg(now);
                list.arg("LIMIT").arg(0).arg(limits::TICKET_SWEEP_MAX);
            }
        }
        StoreOp::Keep { .. } | StoreOp::Find { .. } => {
            tracing::error!(server = core.server, "a record strayed among other operations");
        }
    }
}

fn add_ticket(batch: &mut Pipeline, key: &str, what: &TicketOp) {
    match what {
        TicketOp::Open(value, life) => {
            batch.cmd("HSET").arg(key).arg(FIELD_OPENED).arg(&value[..]);
            batch.cmd("PEXPIRE").arg(key).arg(ms(*life));
        }
        TicketOp::Begun(value, life) => {
            batch.cmd("HSET").arg(key).arg(FIELD_BEGUN).arg(&value[..]);
            batch.cmd("PEXPIRE").arg(key).arg(ms(*life));
        }
        TicketOp::End(value, life) => {
            batch.cmd("HSETNX").arg(key).arg(FIELD_END).arg(&value[..]);
            batch.cmd("PEXPIRE").arg(key).arg(ms(*life));
        }
        TicketOp::Settle(value, life, _) => {
            batch.cmd("HSETNX").arg(key).arg(FIELD_END).arg(&value[..]);
            batch.cmd("PEXPIRE").arg(key).arg(ms(*life));
            batch.cmd("HGET").arg(key).arg(FIELD_END);
        }
        TicketOp::Look(_) => {
            let get = batch.cmd("HMGET").arg(key);
            get.arg(FIELD_OPENED).arg(FIELD_BEGUN).arg(FIELD_END);
        }
        TicketOp::Forget(_) => {
            batch.cmd("DEL").arg(key);
        }
    }
}

fn settle_other(op: StoreOp, answers: &mut impl Iterator<Item = Answer>) {
    let mut next = || answers.next().unwrap_or_else(|| Err("no answer".into()));
    let quiet = |answer: Answer| {
        if let Err(why) = answer {
            tracing::warn!(why, "a ticket was not written");
        }
    };
    // Where somebody is told: an error means that nobody waits any more.
    match op {
        StoreOp::Ticket { what, .. } => match what {
            TicketOp::Open(..) | TicketOp::Begun(..) | TicketOp::End(..) => {
                quiet(next());
                quiet(next());
            }
            TicketOp::Settle(_, _, done) => {
                let (set, _life, got) = (next(), next(), next());
                drop(done.send(set.and(got).and_then(|value| match value {
                    Value::BulkString(end) => Ok(end.into()),
                    _ => Err("the end of a ticket is not there after it was written".into()),
                })));
            }
            TicketOp::Look(done) => drop(done.send(next().map(record))),
            TicketOp::Forget(done) => drop(done.send(next().map(drop))),
        },
        StoreOp::Due { .. } => {
            quiet(next());
            quiet(next());
        }
        StoreOp::Overdue { keys, done } => {
            let mut names = Vec::new();
            let mut failed = None;
            for _ in keys {
                match next() {
                    Ok(list) => names.extend(pack::texts(&list).into_iter().map(str::to_owned)),
                    Err(why) => failed = Some(why),
                }
            }
            drop(done.send(match failed {
                Some(why) => Err(why),
                None => Ok(names),
            }));
        }
        StoreOp::Keep { .. } | StoreOp::Find { .. } => {}
    }
}

/// The three parts of a ticket; nothing when there is none of them.
fn record(value: Value) -> Option<TicketRecord> {
    let Value::Array(parts) = value else { return None };
    let mut parts = parts.into_iter().map(|part| match part {
        Value::BulkString(bytes) => Some(Bytes::from(bytes)),
        _ => None,
    });
    let mut part = || parts.next().flatten();
    let record = TicketRecord {
        opened: part(),
        begun: part(),
        end: part(),
    };
    (record != TicketRecord::default()).then_some(record)
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
        let spans = [list(&[None, Some("new")]), list(&[Some("x"), Some("old")])];
        assert_eq!(first_at(&spans, 1), Ok(Some(Bytes::from_static(b"new"))));
        assert_eq!(first_at(&spans, 0), Ok(Some(Bytes::from_static(b"x"))));
        assert_eq!(first_at(&spans, 2), Ok(None));
        assert!(first_at(&[Err("WRONGTYPE".into())], 0).is_err());
    }
}
