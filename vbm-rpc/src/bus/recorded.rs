//! The receiving side's use of the shared result store: which answers are recorded and looked for, and how.
//!
//! ```text
//!   request with a key ------------------------------> look, run, record
//!   without one, its method is RECORDED:
//!      delivered again, sent again, after a failover -> look, run, record
//!      else -----------------------------------------> run, record
//!   any other ---------------------------------------> run
//! ```
//!
//! The window that is left: a process that dies after the effect and before the record is in the store lets the
//! request run again. Only the handler can close it, by writing the request id together with its effect.

use super::server::{Job, Server};
use crate::{
    codec::Codec,
    dedupe::{Answer, Key},
    envelope::Kind,
    router::Entry,
};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::time::Duration;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

/// How long to wait before the store is asked again when it did not answer.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(100);
/// The layout of a record.
const VERSION: u8 = 1;
/// A new request with the same key may run again.
const FLAG_REPEATABLE: u8 = 1;

/// One recorded answer. On the wire: version, kind, codec, flags (a byte each), request id (16), digest of method and
/// body (8, FNV-1a), body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) id: Uuid,
    pub(super) digest: u64,
    pub(super) answer: Answer,
}

impl Record {
    fn encode(&self) -> Bytes {
        let answer = &self.answer;
        let mut out = BytesMut::with_capacity(28 + answer.body.len());
        out.put_u8(VERSION);
        out.put_u8(answer.kind as u8);
        out.put_u8(answer.codec.byte());
        out.put_u8(if answer.repeatable { FLAG_REPEATABLE } else { 0 });
        out.put_slice(self.id.as_bytes());
        out.put_u64(self.digest);
        out.put_slice(&answer.body);
        out.freeze()
    }

    /// `None` when it is of another version, or garbage.
    fn decode(mut bytes: Bytes) -> Option<Self> {
        if bytes.try_get_u8().ok()? != VERSION {
            return None;
        }
        let kind = match bytes.try_get_u8().ok()? {
            kind if kind == Kind::Reply as u8 => Kind::Reply,
            kind if kind == Kind::Refusal as u8 => Kind::Refusal,
            _ => return None,
        };
        let codec = Codec::from_byte(bytes.try_get_u8().ok()?)?;
        let repeatable = bytes.try_get_u8().ok()? & FLAG_REPEATABLE != 0;
        let id = Uuid::from_u128(bytes.try_get_u128().ok()?);
        let digest = bytes.try_get_u64().ok()?;
        Some(Self {
            id,
            digest,
            answer: Answer {
                kind,
                codec,
                body: bytes,
                repeatable,
            },
        })
    }
}

/// The name of a record: `i` and the id, or `k`, the method, a zero byte and the key.
fn record_key(key: &Key) -> Bytes {
    match key {
        Key::Id(id) => [b"i", &id.as_bytes()[..]].concat().into(),
        Key::Chosen { method, key } => [b"k", method.as_bytes(), b"\0", key.as_bytes()].concat().into(),
    }
}

/// What a request asks for, the same in every process and version: FNV-1a of 64 bits over method, a zero byte, body.
fn digest(method: &str, body: &[u8]) -> u64 {
    let bytes = method.bytes().chain([0]).chain(body.iter().copied());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// What the store says about a request that may have run.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Looked {
    Fresh,
    Recorded(Answer),
    Conflict,
    /// The store did not answer until the deadline.
    Late,
}

/// Decides by a record what to do with a request.
fn judge(record: Option<Record>, id: Uuid, digest: u64) -> Looked {
    match record {
        Some(record) if record.digest != digest => Looked::Conflict,
        Some(record) if record.id == id || !record.answer.repeatable => Looked::Recorded(record.answer),
        _ => Looked::Fresh,
    }
}

impl Server {
    /// Whether the answer of this request is recorded with the transport.
    fn records(&self, entry: &Entry, job: &Job) -> bool {
        let chosen = entry.kept && matches!(job.key, Key::Chosen { .. });
        job.home.is_some() && (chosen || self.router.records(entry))
    }

    /// The recorded answer of a request that may have run, if there is one.
    pub(super) async fn look_for(&self, entry: &Entry, job: &Job) -> Looked {
        let doubtful = matches!(job.key, Key::Chosen { .. }) || job.again || job.request.attempt > 1;
        let (true, Some(home), Some(store)) =
            (doubtful && self.records(entry, job), &job.home, &self.results)
        else {
            return Looked::Fresh;
        };
        while job.deadline > Instant::now() {
            match store.find(home, record_key(&job.key)).await {
                Ok(found) => {
                    let record = found.and_then(Record::decode);
                    let digest = digest(&job.request.method, &job.request.body);
                    return judge(record, job.request.id, digest);
                }
                Err(error) => {
                    tracing::warn!(%error, id = %job.request.id, "a request that may have run waits for the result store");
                    sleep(ASK_AGAIN_AFTER).await;
                }
            }
        }
        Looked::Late
    }

    /// Records an answer, before it is sent.
    pub(super) async fn record(&self, entry: &Entry, job: &Job, answer: &Answer) {
        if !self.records(entry, job) {
            return;
        }
        if let (Some(home), Some(store)) = (&job.home, &self.results) {
            let record = Record {
                id: job.request.id,
                digest: digest(&job.request.method, &job.request.body),
                answer: answer.clone(),
            };
            store.keep(home, record_key(&job.key), record.encode()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(repeatable: bool) -> Record {
        Record {
            id: Uuid::from_u128(7),
            digest: digest("m", b"x"),
            answer: Answer {
                kind: Kind::Refusal,
                codec: Codec::Json,
                body: Bytes::from_static(b"no"),
                repeatable,
            },
        }
    }

    #[test]
    fn a_record_is_read_back() {
        for repeatable in [true, false] {
            assert_eq!(
                Record::decode(record(repeatable).encode()),
                Some(record(repeatable))
            );
        }
    }

    #[test]
    fn the_digest_is_the_published_function() {
        // Fowler, Noll, Vo: FNV-1a of the empty string is its offset; here a zero byte follows the method.
        assert_eq!(digest("", b""), 0xaf63_bd4c_8601_b7df);
        assert_ne!(digest("ab", b"c"), digest("a", b"bc"));
    }

    #[test]
    fn a_record_answers_the_same_request_and_a_repeatable_one_no_other() {
        let (own, other, same) = (Uuid::from_u128(7), Uuid::from_u128(8), digest("m", b"x"));
        assert_eq!(judge(None, own, same), Looked::Fresh);
        for id in [own, other] {
            assert_eq!(
                judge(Some(record(false)), id, same),
                Looked::Recorded(record(false).answer)
            );
            assert_eq!(judge(Some(record(false)), id, same ^ 1), Looked::Conflict);
        }
        assert_eq!(
            judge(Some(record(true)), own, same),
            Looked::Recorded(record(true).answer)
        );
        assert_eq!(judge(Some(record(true)), other, same), Looked::Fresh);
    }

    #[test]
    fn names_of_records_do_not_meet() {
        let chosen = |method: &str, key: &str| {
            record_key(&Key::Chosen {
                method: method.into(),
                key: key.into(),
            })
        };
        assert_ne!(chosen("a", "bc"), chosen("ab", "c"));
        assert_ne!(chosen("a", "b"), record_key(&Key::Id(Uuid::from_u128(1))));
    }

    proptest! {
        #[test]
        fn garbage_is_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ignored = Record::decode(bytes.into());
        }
    }
}
