//! Once-only effect: which requests were seen, and what was answered.
//!
//! ```text
//!   begin(key) --- unknown --------> New       the caller of `begin` runs the handler, then `finish`
//!              +-- being run ------> Joined    the answer goes to this asker too
//!              +-- answered -------> Recorded  the same answer again
//!              +-- other request --> Conflict  the key was used for something else
//! ```
//!
//! A request is known by its idempotency key and method, or else by its id. A refusal that changed nothing is
//! given again to the same id (a duplicate on the wire), but a new request with that key may try again.
//!
//! Pure: time comes in as an argument. Bounded by records, bytes and age; running requests are not evicted.

use crate::limits;
use bytes::Bytes;
use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState},
    time::Duration,
};
use tokio::time::Instant;
use uuid::Uuid;

/// How a request is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    Id(Uuid),
    Chosen { method: String, key: String },
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Self::Id(id) => {
                let (high, low) = id.as_u64_pair();
                state.write_u64(high);
                state.write_u64(low);
            }
            Self::Chosen { method, key } => (method, key).hash(state),
        }
    }
}

/// An answer: the kind byte of its frame and its body, enough to write the frame again for another asker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) kind: crate::envelope::Kind,
    pub(crate) codec: crate::codec::Codec,
    pub(crate) body: Bytes,
    /// A new request with the same key may run again: nothing was changed.
    pub(crate) repeatable: bool,
}

#[derive(Debug, PartialEq)]
pub(crate) enum Begun {
    New,
    Joined,
    Recorded(Answer),
    Conflict,
    /// Too many other requests with this key wait already. The same one sent again always finds its place: that it runs is
    /// no reason to end it.
    Full,
}

/// Who gets an answer: mostly one.
pub(crate) struct Askers<A> {
    first: Option<A>,
    /// As many as were delivered: each holds an entry that the transport keeps until it is completed.
    more: Vec<A>,
    /// The ids that wait besides that of the record, each once.
    others: Vec<Uuid>,
}

impl<A> Askers<A> {
    const fn none() -> Self {
        Self {
            first: None,
            more: Vec::new(),
            others: Vec::new(),
        }
    }

    /// Takes another asker, if there is room for its id.
    fn join(&mut self, is_first: bool, id: Uuid, asker: &mut Option<A>) -> bool {
        if !is_first && !self.others.contains(&id) {
            if self.others.len() + 1 >= limits::DEDUPE_MAX_WAITERS {
                return false;
            }
            self.others.push(id);
        }
        self.add(asker.take());
        true
    }

    pub(crate) fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.more.len()
    }

    fn add(&mut self, asker: Option<A>) {
        match self.first {
            None => self.first = asker,
            Some(_) => self.more.extend(asker),
        }
    }
}

impl<A> IntoIterator for Askers<A> {
    type Item = A;
    type IntoIter = std::iter::Chain<std::option::IntoIter<A>, std::vec::IntoIter<A>>;

    fn into_iter(self) -> Self::IntoIter {
        self.first.into_iter().chain(self.more)
    }
}

/// Ids are mixed well by who gives them, but that is another process: a number of our own makes its choice useless for
/// filling one slot of the table. Texts, which anybody may choose, are hashed as usual.
#[derive(Clone)]
struct KeyHashes {
    number: u64,
    texts: RandomState,
}

impl Default for KeyHashes {
    fn default() -> Self {
        let texts = RandomState::new();
        Self {
            number: texts.hash_one(0) | 1,
            texts,
        }
    }
}

impl BuildHasher for KeyHashes {
    type Hasher = KeyHasher;

    fn build_hasher(&self) -> KeyHasher {
        KeyHasher {
            number: self.number,
            texts: self.texts.clone(),
            id: 0,
            text: None,
        }
    }
}

struct KeyHasher {
    number: u64,
    texts: RandomState,
    id: u64,
    text: Option<DefaultHasher>,
}

impl Hasher for KeyHasher {
    fn write(&mut self, bytes: &[u8]) {
        let texts = &self.texts;
        self.text.get_or_insert_with(|| texts.build_hasher()).write(bytes);
    }

    fn write_u64(&mut self, half: u64) {
        // Folded: a multiplication alone mixes upwards only.
        let number = self.number.rotate_left(32);
        let product = u128::from(half ^ self.number) * u128::from(self.id ^ number);
        let (high, low) = Uuid::from_u128(product).as_u64_pair();
        self.id = high ^ low;
    }

    fn finish(&self) -> u64 {
        self.text.as_ref().map_or(self.id, Hasher::finish)
    }
}

enum State<A> {
    Running { waiters: Askers<A> },
    Done { answer: Answer, at: Instant },
}

struct Record<A> {
    id: Uuid,
    digest: u64,
    serial: u64,
    state: State<A>,
}

/// The table; `A` is an asker, who gets an answer.
pub(crate) struct Dedupe<A> {
    records: HashMap<Key, Record<A>, KeyHashes>,
    /// Done records, oldest first. An entry whose serial is not that of its record is stale.
    order: VecDeque<(Key, u64)>,
    bytes: usize,
    serial: u64,
    ttl: Duration,
    max_records: usize,
    max_bytes: usize,
}

impl<A> Default for Dedupe<A> {
    fn default() -> Self {
        Self::with_limits(
            limits::DEDUPE_TTL,
            limits::DEDUPE_MAX_RECORDS,
            limits::DEDUPE_MAX_BYTES,
        )
    }
}

impl<A> Dedupe<A> {
    pub(crate) fn with_limits(ttl: Duration, max_records: usize, max_bytes: usize) -> Self {
        Self {
            records: HashMap::default(),
            order: VecDeque::new(),
            bytes: 0,
            serial: 0,
            ttl,
            max_records,
            max_bytes,
        }
    }

    /// A request has come. The asker is taken when it gets the answer later (`New`, `Joined`), and left otherwise.
    pub(crate) fn begin(
        &mut self,
        key: &Key,
        id: Uuid,
        digest: u64,
        asker: &mut Option<A>,
        now: Instant,
    ) -> Begun {
        self.evict(now);
        if let Some(record) = self.records.get_mut(key) {
            if record.digest != digest {
                return Begun::Conflict;
            }
            match &mut record.state {
                State::Running { waiters } => {
                    return match waiters.join(record.id == id, id, asker) {
                        true => Begun::Joined,
                        false => Begun::Full,
                    };
                }
                State::Done { answer, .. } if record.id == id || !answer.repeatable => {
                    return Begun::Recorded(answer.clone());
                }
                State::Done { .. } => self.forget(key),
            }
        }
        self.serial += 1;
        let mut waiters = Askers::none();
        waiters.add(asker.take());
        self.records.insert(
            key.clone(),
            Record {
                id,
                digest,
                serial: self.serial,
                state: State::Running { waiters },
            },
        );
        Begun::New
    }

    /// The answer is there: who gets it.
    pub(crate) fn finish(&mut self, key: &Key, answer: Answer, now: Instant) -> Askers<A> {
        let Some(record) = self.records.get_mut(key) else {
            return Askers::none();
        };
        self.bytes += answer.body.len();
        let before = std::mem::replace(&mut record.state, State::Done { answer, at: now });
        self.order.push_back((key.clone(), record.serial));
        self.evict(now);
        match before {
            State::Running { waiters } => waiters,
            State::Done { answer, .. } => {
                self.bytes = self.bytes.saturating_sub(answer.body.len());
                Askers::none()
            }
        }
    }

    /// The request leaves no record, as it was not run or its answer is not for keeping: who was to get its answer.
    pub(crate) fn abandon(&mut self, key: &Key) -> Askers<A> {
        match self.records.remove(key).map(|record| record.state) {
            Some(State::Running { waiters }) => waiters,
            Some(State::Done { answer, .. }) => {
                self.bytes = self.bytes.saturating_sub(answer.body.len());
                Askers::none()
            }
            None => Askers::none(),
        }
    }

    fn forget(&mut self, key: &Key) {
        if let Some(Record {
            state: State::Done { answer, .. },
            ..
        }) = self.records.remove(key)
        {
            self.bytes = self.bytes.saturating_sub(answer.body.len());
        }
    }

    fn evict(&mut self, now: Instant) {
        while let Some((key, serial)) = self.order.front() {
            let stale = match self.records.get(key) {
                Some(Record {
                    serial: current,
                    state: State::Done { at, .. },
                    ..
                }) if current == serial => {
                    let full = self.order.len() > self.max_records || self.bytes > self.max_bytes;
                    if !full && now.saturating_duration_since(*at) < self.ttl {
                        return;
                    }
                    false
                }
                _ => true,
            };
            let Some((key, _)) = self.order.pop_front() else {
                return;
            };
            if !stale {
                self.forget(&key);
            }
        }
    }
}

#[cfg(test)]
mod model;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{codec::Codec, envelope::Kind};
    use proptest::prelude::*;

    const TTL: Duration = Duration::from_secs(10);

    fn table() -> Dedupe<u32> {
        Dedupe::with_limits(TTL, 3, 1_000)
    }
    fn key(name: &str) -> Key {
        Key::Chosen {
            method: "m".into(),
            key: name.into(),
        }
    }
    pub(super) fn told(askers: Askers<u32>) -> Vec<u32> {
        askers.into_iter().collect()
    }
    fn id(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }
    fn answer(text: &'static str, repeatable: bool) -> Answer {
        Answer {
            kind: Kind::Reply,
            codec: Codec::Json,
            body: Bytes::from_static(text.as_bytes()),
            repeatable,
        }
    }

    #[test]
    fn a_duplicate_gets_the_recorded_answer() {
        let (mut table, now) = (table(), Instant::now());
        assert_eq!(table.begin(&key("a"), id(1), 7, &mut Some(1), now), Begun::New);
        assert_eq!(told(table.finish(&key("a"), answer("x", false), now)), [1]);
        assert_eq!(
            table.begin(&key("a"), id(2), 7, &mut Some(2), now),
            Begun::Recorded(answer("x", false))
        );
    }

    #[test]
    fn a_duplicate_of_a_running_request_waits_for_its_answer() {
        let (mut table, now) = (table(), Instant::now());
        table.begin(&key("a"), id(1), 7, &mut Some(1), now);
        assert_eq!(table.begin(&key("a"), id(2), 7, &mut Some(2), now), Begun::Joined);
        assert_eq!(told(table.finish(&key("a"), answer("x", false), now)), [1, 2]);
    }

    #[test]
    fn only_so_many_requests_wait_for_one_answer_and_each_may_be_sent_again() {
        let (mut table, now) = (table(), Instant::now());
        table.begin(&key("a"), id(0), 7, &mut Some(0), now);
        for n in 1..limits::DEDUPE_MAX_WAITERS as u128 {
            assert_eq!(table.begin(&key("a"), id(n), 7, &mut Some(0), now), Begun::Joined);
        }
        assert_eq!(
            table.begin(&key("a"), id(1_000), 7, &mut Some(0), now),
            Begun::Full
        );
        for n in 0..1_000 {
            let known = id(n % limits::DEDUPE_MAX_WAITERS as u128);
            assert_eq!(table.begin(&key("a"), known, 7, &mut Some(0), now), Begun::Joined);
        }
        let askers = table.finish(&key("a"), answer("x", false), now);
        assert_eq!(told(askers).len(), limits::DEDUPE_MAX_WAITERS + 1_000);
    }

    #[test]
    fn a_key_used_for_another_request_is_a_conflict() {
        let (mut table, now) = (table(), Instant::now());
        table.begin(&key("a"), id(1), 7, &mut Some(1), now);
        assert_eq!(
            table.begin(&key("a"), id(2), 8, &mut Some(2), now),
            Begun::Conflict
        );
    }

    #[test]
    fn a_refusal_that_changed_nothing_is_replayed_to_a_duplicate_but_not_to_a_new_try() {
        let (mut table, now) = (table(), Instant::now());
        table.begin(&key("a"), id(1), 7, &mut Some(1), now);
        table.finish(&key("a"), answer("no", true), now);
        assert_eq!(
            table.begin(&key("a"), id(1), 7, &mut Some(1), now),
            Begun::Recorded(answer("no", true))
        );
        assert_eq!(table.begin(&key("a"), id(2), 7, &mut Some(1), now), Begun::New);
    }

    #[test]
    fn records_go_with_age_and_number() {
        let (mut table, now) = (table(), Instant::now());
        for name in ["a", "b", "c", "d"] {
            table.begin(&key(name), id(1), 7, &mut Some(1), now);
            table.finish(&key(name), answer("x", false), now);
        }
        assert_eq!(
            table.begin(&key("a"), id(1), 7, &mut Some(1), now),
            Begun::New,
            "the fourth pushed the first out"
        );
        assert!(matches!(
            table.begin(&key("d"), id(1), 7, &mut Some(1), now),
            Begun::Recorded(_)
        ));
        assert_eq!(
            table.begin(&key("d"), id(1), 7, &mut Some(1), now + TTL),
            Begun::New,
            "too old"
        );
    }

    proptest! {
        #[test]
        fn the_table_stays_within_its_limits_and_counts_its_bytes(
            steps in proptest::collection::vec((0u8..6, 0u8..3, 0u64..5_000), 1..200)) {
            let mut table = Dedupe::<u8>::with_limits(TTL, 3, 40);
            let mut now = Instant::now();
            for (name, what, forward_ms) in steps {
                now += Duration::from_millis(forward_ms);
                let key = key(&name.to_string());
                match what {
                    0 => { table.begin(&key, id(name.into()), 1, &mut Some(0), now); }
                    1 => { table.finish(&key, answer("0123456789abcdef", name % 2 == 0), now); }
                    _ => { table.abandon(&key); }
                }
                let held: usize = table.records.values().map(|r| match &r.state {
                    State::Done { answer, .. } => answer.body.len(), State::Running { .. } => 0 }).sum();
                prop_assert_eq!(held, table.bytes);
                prop_assert!(table.bytes <= 40);
            }
        }
    }
}
