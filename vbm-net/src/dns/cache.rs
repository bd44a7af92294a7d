//! What other servers said, for as long as they said it holds: bounded by entries and by bytes. Pure: the caller says what
//! time it is.
//!
//! A denial is kept as its SOA says (RFC 2308), a failure for a moment only (RFC 9520). When it is full, what was used least
//! recently goes.

use super::message::Asked;
use super::{
    CACHE_MAX_BYTES, CACHE_MAX_ENTRIES, CACHED_ANSWER_MAX_BYTES, CACHED_MAX_RECORDS, FAILURE_TTL_SECONDS,
    NEGATIVE_MAX_SECONDS, POSITIVE_MAX_SECONDS,
};
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{Name, RData, Record, RecordType},
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

const MS_PER_SECOND: u64 = 1_000;
/// What an entry costs beside its records: its key twice, both maps, the answer's own fields.
const ENTRY_OVERHEAD_BYTES: usize = 1_024;
/// What each text of a record costs beside its bytes.
const TEXT_OVERHEAD_BYTES: usize = 32;
/// How many times its bytes on the wire the data of any further sort of record takes at most: a parameter of an HTTPS record has
/// 4 bytes there and some 60 here.
const OTHER_EXPANSION: usize = 16;

/// A question, as far as it makes a difference to the answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    name: Name,
    kind: RecordType,
    wants_dnssec: bool,
    checking_disabled: bool,
}

impl From<&Asked> for Key {
    fn from(asked: &Asked) -> Self {
        Self {
            name: asked.query.name().to_lowercase(),
            kind: asked.query.query_type(),
            wants_dnssec: asked.wants_dnssec,
            checking_disabled: asked.checking_disabled,
        }
    }
}

/// What another server said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: ResponseCode,
    pub(crate) authentic: bool,
    pub(crate) answers: Vec<Record>,
    pub(crate) authorities: Vec<Record>,
    /// Its length as it came, in bytes.
    pub(crate) bytes: usize,
}

impl Said {
    /// Without the additional section: a stub resolver has no use for it.
    pub(crate) fn new(message: Message, bytes: usize) -> Self {
        Self {
            code: message.metadata.response_code,
            authentic: message.metadata.authentic_data,
            answers: message.answers,
            authorities: message.authorities,
            bytes,
        }
    }

    fn records(&self) -> impl Iterator<Item = &Record> {
        self.answers.iter().chain(&self.authorities)
    }

    /// How long it holds, in seconds; `None`: not at all.
    pub(crate) fn ttl_seconds(&self) -> Option<u32> {
        let ttl = match self.code {
            ResponseCode::NoError | ResponseCode::NXDomain => {
                let least = self.answers.iter().map(|r| r.ttl).min();
                let denial = self.authorities.iter().find_map(|r| match &r.data {
                    RData::SOA(soa) => Some(r.ttl.min(soa.minimum).min(NEGATIVE_MAX_SECONDS)),
                    _ => None,
                });
                match (least, self.code) {
                    (Some(least), ResponseCode::NoError) => least.min(POSITIVE_MAX_SECONDS),
                    // A chain of aliases that ends in a denial holds as long as its shortest part.
                    (Some(least), _) => least.min(denial?),
                    (None, _) => denial?,
                }
            }
            _ => FAILURE_TTL_SECONDS,
        };
        (ttl > 0).then_some(ttl)
    }
}

#[derive(Debug)]
struct Entry {
    said: Arc<Said>,
    from_ms: u64,
    until_ms: u64,
    used: u64,
}

/// The cache of one network.
#[derive(Debug)]
pub(crate) struct Cache {
    entries: HashMap<Key, Entry>,
    /// By when it was last used.
    order: BTreeMap<u64, Key>,
    uses: u64,
    bytes: usize,
    max_entries: usize,
    max_bytes: usize,
}

impl Default for Cache {
    fn default() -> Self {
        Self::new(CACHE_MAX_ENTRIES, CACHE_MAX_BYTES)
    }
}

impl Cache {
    pub(crate) fn new(max_entries: usize, max_bytes: usize) -> Self {
        Self {
            entries: HashMap::new(),
            order: BTreeMap::new(),
            uses: 0,
            bytes: 0,
            max_entries,
            max_bytes,
        }
    }

    /// What was said, and how many seconds ago, if it still holds.
    pub(crate) fn get(&mut self, key: &Key, now_ms: u64) -> Option<(Arc<Said>, u32)> {
        let entry = self.entries.get_mut(key)?;
        if now_ms >= entry.until_ms {
            self.remove(key);
            return None;
        }
        self.order.remove(&entry.used);
        self.uses += 1;
        entry.used = self.uses;
        self.order.insert(self.uses, key.clone());
        let age = now_ms.saturating_sub(entry.from_ms) / MS_PER_SECOND;
        Some((Arc::clone(&entry.said), u32::try_from(age).unwrap_or(u32::MAX)))
    }

    /// Keeps what was said, if it holds for any time and is not too large by itself.
    pub(crate) fn put(&mut self, key: Key, said: Arc<Said>, now_ms: u64) {
        let Some(ttl) = said.ttl_seconds() else { return };
        if said.records().count() > CACHED_MAX_RECORDS || said.bytes > CACHED_ANSWER_MAX_BYTES {
            return;
        }
        let cost = cost(&said);
        if cost > self.max_bytes {
            return;
        }
        self.remove(&key);
        while self.entries.len() >= self.max_entries || self.bytes + cost > self.max_bytes {
            let Some((_, oldest)) = self.order.first_key_value() else {
                break;
            };
            self.remove(&oldest.clone());
        }
        self.uses += 1;
        self.bytes += cost;
        self.order.insert(self.uses, key.clone());
        let until_ms = now_ms.saturating_add(u64::from(ttl) * MS_PER_SECOND);
        let entry = Entry {
            said,
            from_ms: now_ms,
            until_ms,
            used: self.uses,
        };
        self.entries.insert(key, entry);
    }

    fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.order.remove(&entry.used);
            self.bytes -= cost(&entry.said);
        }
    }

    /// Forgets all.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.order.clear();
        self.bytes = 0;
    }
}

/// What an answer takes in memory, rather too much than too little: a name that is two bytes on the wire, as a pointer to another, is
/// held in full by each record.
fn cost(said: &Said) -> usize {
    let known: usize = said.records().map(weight).sum();
    let is_other = |record: &Record| heap(&record.data).is_none();
    let others = if said.records().any(is_other) {
        said.bytes * OTHER_EXPANSION
    } else {
        said.bytes
    };
    ENTRY_OVERHEAD_BYTES + known + others
}

fn weight(record: &Record) -> usize {
    size_of::<Record>() + held(&record.name) + heap(&record.data).unwrap_or_default()
}

/// The bytes of a name, and one for the end of each of its labels.
fn held(name: &Name) -> usize {
    2 * name.len()
}

/// What the data of a record takes beside the record itself; `None`: it is of a sort that this does not know.
fn heap(data: &RData) -> Option<usize> {
    Some(match data {
        RData::A(_) | RData::AAAA(_) => 0,
        RData::CNAME(name) => held(&name.0),
        RData::NS(name) => held(&name.0),
        RData::PTR(name) => held(&name.0),
        RData::MX(mx) => held(&mx.exchange),
        RData::SRV(srv) => held(&srv.target),
        RData::SOA(soa) => held(&soa.mname) + held(&soa.rname),
        RData::TXT(text) => text.txt_data.iter().map(|t| t.len() + TEXT_OVERHEAD_BYTES).sum(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::rdata::{A, SOA};
    use proptest::prelude::*;

    fn key(name: &str) -> Key {
        Key {
            name: name.parse().unwrap(),
            kind: RecordType::A,
            wants_dnssec: false,
            checking_disabled: false,
        }
    }

    fn said(ttl: u32, bytes: usize) -> Arc<Said> {
        let record = Record::from_rdata(Name::root(), ttl, RData::A(A([192, 0, 2, 1].into())));
        Arc::new(Said {
            code: ResponseCode::NoError,
            authentic: false,
            answers: vec![record],
            authorities: vec![],
            bytes,
        })
    }

    fn denial(ttl: u32, minimum: u32) -> Said {
        let soa = SOA::new(Name::root(), Name::root(), 1, 1, 1, 1, minimum);
        let record = Record::from_rdata(Name::root(), ttl, RData::SOA(soa));
        Said {
            code: ResponseCode::NXDomain,
            authentic: false,
            answers: vec![],
            authorities: vec![record],
            bytes: 9,
        }
    }

    #[test]
    fn an_answer_holds_as_long_as_it_says_and_not_a_moment_longer() {
        let mut cache = Cache::new(8, 1 << 20);
        cache.put(key("a."), said(10, 50), 1_000);
        assert_eq!(cache.get(&key("a."), 4_999).unwrap().1, 3);
        assert!(cache.get(&key("a."), 11_000).is_none());
        assert_eq!((cache.entries.len(), cache.order.len(), cache.bytes), (0, 0, 0));
        cache.put(key("a."), said(0, 50), 0);
        assert!(
            cache.get(&key("a."), 0).is_none(),
            "what holds no time is not kept"
        );
    }

    /// An answer of so many aliases of long names, each of which is a pointer of two bytes on the wire.
    fn aliases(count: usize) -> Arc<Said> {
        let name: Name = format!("{0}.{0}.{0}.example.", "x".repeat(60)).parse().unwrap();
        let data = RData::CNAME(hickory_proto::rr::rdata::CNAME(name.clone()));
        let record = Record::from_rdata(name, 60, data);
        Arc::new(Said {
            bytes: 220 + count * 14,
            code: ResponseCode::NoError,
            answers: vec![record; count],
            authorities: vec![],
            authentic: false,
        })
    }

    #[test]
    fn an_answer_costs_what_it_takes_and_not_what_it_came_in() {
        let long = aliases(CACHED_MAX_RECORDS);
        let held = CACHED_MAX_RECORDS * (size_of::<Record>() + 2 * 180);
        assert!(cost(&long) > held, "{} for {held}", cost(&long));
        let mut cache = Cache::new(1_000, 1 << 20);
        for n in 0..1_000 {
            cache.put(key(&format!("n{n}.")), Arc::clone(&long), 0);
        }
        assert!(!cache.entries.is_empty());
        assert!(cache.entries.len() * held <= 1 << 20, "{}", cache.entries.len());
    }

    #[test]
    fn an_answer_that_is_too_long_is_passed_on_and_not_kept() {
        let mut cache = Cache::default();
        cache.put(key("a."), aliases(CACHED_MAX_RECORDS + 1), 0);
        cache.put(key("b."), said(60, CACHED_ANSWER_MAX_BYTES + 1), 0);
        assert!(cache.entries.is_empty());
        cache.put(key("c."), aliases(3), 0);
        assert_eq!(cache.entries.len(), 1);
    }

    #[test]
    fn denials_hold_as_their_soa_says_and_failures_for_a_moment() {
        assert_eq!(denial(60, 30).ttl_seconds(), Some(30));
        assert_eq!(denial(20, 30).ttl_seconds(), Some(20));
        assert_eq!(denial(90_000, 90_000).ttl_seconds(), Some(NEGATIVE_MAX_SECONDS));
        let bare = Said {
            authorities: vec![],
            ..denial(1, 1)
        };
        assert_eq!(bare.ttl_seconds(), None, "a denial without SOA is not kept");
        let failed = Said {
            code: ResponseCode::ServFail,
            ..denial(60, 60)
        };
        assert_eq!(failed.ttl_seconds(), Some(FAILURE_TTL_SECONDS));
        assert_eq!(said(u32::MAX, 1).ttl_seconds(), Some(POSITIVE_MAX_SECONDS));
    }

    #[test]
    fn what_was_used_least_recently_goes_first() {
        let mut cache = Cache::new(2, 1 << 20);
        cache.put(key("a."), said(60, 1), 0);
        cache.put(key("b."), said(60, 1), 0);
        assert!(cache.get(&key("a."), 1).is_some());
        cache.put(key("c."), said(60, 1), 1);
        assert!(cache.get(&key("a."), 1).is_some() && cache.get(&key("b."), 1).is_none());
    }

    proptest! {
        #[test]
        fn it_is_never_larger_than_it_may_be(puts in prop::collection::vec((0u8..40, 0u32..5, 0usize..3_000, 0u64..20_000), 0..200)) {
            let mut cache = Cache::new(10, 8_000);
            for (name, ttl, bytes, now_ms) in puts {
                cache.put(key(&format!("n{name}.")), said(ttl, bytes), now_ms);
                cache.get(&key(&format!("n{}.", name / 2)), now_ms);
                prop_assert!(cache.entries.len() <= 10 && cache.bytes <= 8_000);
                prop_assert_eq!(cache.order.len(), cache.entries.len());
                prop_assert_eq!(cache.bytes, cache.entries.values().map(|e| cost(&e.said)).sum::<usize>());
            }
        }
    }
}
