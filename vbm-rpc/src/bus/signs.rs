//! Signs of life: what one process tells another about all that it does for it, packed into one frame.
//!
//! ```text
//!  0    1         17        25        33
//!  +----+---------+---------+---------+--- the next one
//!  |what|request  |a        |b        |          1 I work on your request; a: items sent so far
//!  +----+---------+---------+---------+          2 I read your stream; you may send up to item a, byte b
//!                                                3 my own beat, to my own inbox
//! ```

use super::flow::Total;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use uuid::Uuid;

const SIGN_BYTES: usize = 33;

/// One sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sign {
    Works { id: Uuid, sent: u64 },
    Reads { id: Uuid, until: Total },
    Echo,
}

/// The body of one frame.
pub(crate) fn encode(signs: &[Sign]) -> Bytes {
    let mut out = BytesMut::with_capacity(signs.len() * SIGN_BYTES);
    for sign in signs {
        let (what, id, a, b) = match sign {
            Sign::Works { id, sent } => (1, *id, *sent, 0),
            Sign::Reads { id, until } => (2, *id, until.items, until.bytes),
            Sign::Echo => (3, Uuid::nil(), 0, 0),
        };
        out.put_u8(what);
        out.put_slice(id.as_bytes());
        out.put_u64(a);
        out.put_u64(b);
    }
    out.freeze()
}

/// The signs of one frame; those of an unknown sort, and a rest that is too short for one, are skipped.
pub(crate) fn decode(body: &Bytes) -> impl Iterator<Item = Sign> + '_ {
    body.chunks_exact(SIGN_BYTES).filter_map(|mut sign| {
        let what = sign.get_u8();
        let id = Uuid::from_u128(sign.get_u128());
        let (a, b) = (sign.get_u64(), sign.get_u64());
        match what {
            1 => Some(Sign::Works { id, sent: a }),
            2 => Some(Sign::Reads {
                id,
                until: Total { items: a, bytes: b },
            }),
            3 => Some(Sign::Echo),
            _ => None,
        }
    })
}

/// A number before a body, as items, progress and ends of streams have it.
pub(crate) fn numbered(number: u64, body: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(8 + body.len());
    out.put_u64(number);
    out.put_slice(body);
    out.freeze()
}

/// The number before a body, and the body.
pub(crate) fn split_number(mut body: Bytes) -> Option<(u64, Bytes)> {
    let number = body.try_get_u64().ok()?;
    Some((number, body))
}

/// What an `Accepted` says besides: how often its worker beats and how long the request had waited, in ms each.
pub(crate) fn accepted(every_ms: u32, waited_ms: u32) -> Bytes {
    let mut out = BytesMut::with_capacity(8);
    out.put_u32(every_ms);
    out.put_u32(waited_ms);
    out.freeze()
}

/// The same, read. Workers of the version before say neither.
pub(crate) fn read_accepted(mut body: Bytes) -> Option<(u32, u32)> {
    Some((body.try_get_u32().ok()?, body.try_get_u32().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sign() -> impl Strategy<Value = Sign> {
        (0u8..3, any::<u128>(), any::<u64>(), any::<u64>()).prop_map(|(what, id, a, b)| {
            let id = Uuid::from_u128(id);
            match what {
                0 => Sign::Works { id, sent: a },
                1 => Sign::Reads {
                    id,
                    until: Total { items: a, bytes: b },
                },
                _ => Sign::Echo,
            }
        })
    }

    proptest! {
        #[test]
        fn signs_survive_and_what_is_not_known_is_skipped(
            signs in proptest::collection::vec(sign(), 0..20), rest in proptest::collection::vec(any::<u8>(), 0..32)) {
            let mut body = BytesMut::from(&encode(&signs)[..]);
            body.put_u8(9);
            body.put_bytes(0, SIGN_BYTES - 1);
            body.put_slice(&rest);
            prop_assert_eq!(decode(&body.freeze()).collect::<Vec<_>>(), signs);
        }

        #[test]
        fn garbage_is_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let bytes = Bytes::from(bytes);
            let _count = decode(&bytes).count();
            let _parts = (split_number(bytes.clone()), read_accepted(bytes));
        }
    }

    #[test]
    fn numbers_stand_before_bodies() {
        let body = numbered(7, b"abc");
        assert_eq!(split_number(body), Some((7, Bytes::from_static(b"abc"))));
        assert_eq!(read_accepted(accepted(1_000, 7)), Some((1_000, 7)));
        assert_eq!(read_accepted(Bytes::new()), None);
    }
}
