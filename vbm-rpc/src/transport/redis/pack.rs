//! Frames packed into one stream entry, and entries out of Redis' answers.
//!
//! An entry's frames stand one after the other, each behind its length as u32, big-endian. What cannot be read is
//! reported as garbage with its id, so that it can be skipped and removed; it never stops a reader.

use super::keys::{FIELD_FRAMES, FIELD_SCOPE, FIELD_SEAL, FIELD_SENT, FIELD_SERVICE};
use crate::envelope;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use redis::Value;
use std::time::Duration;

/// The most frames of one entry.
pub(super) const PACK_MAX_FRAMES: usize = 256;
/// The most frames of one entry that any member may take: what is taken together is not shared any more.
pub(super) const PACK_MAX_SHARED: usize = 64;
/// The most bytes of one entry, but for a single larger frame.
pub(super) const PACK_MAX_BYTES: usize = 256 * 1024;

/// Frames as the content of one entry.
pub(super) fn pack<'a>(frames: impl Iterator<Item = &'a Bytes> + Clone) -> Bytes {
    let length = frames.clone().map(|frame| frame.len() + 4).sum();
    let mut out = BytesMut::with_capacity(length);
    for frame in frames {
        out.put_u32(u32::try_from(frame.len()).unwrap_or(u32::MAX));
        out.put_slice(frame);
    }
    out.freeze()
}

/// The same for frames that waited in this process: none lives longer than the time that stands beside it.
pub(super) fn pack_within<'a>(frames: impl Iterator<Item = (&'a Bytes, Duration)> + Clone) -> Bytes {
    let length = frames.clone().map(|(frame, _)| frame.len() + 4).sum();
    let mut out = BytesMut::with_capacity(length);
    for (frame, left) in frames {
        out.put_u32(u32::try_from(frame.len()).unwrap_or(u32::MAX));
        let from = out.len();
        out.put_slice(frame);
        envelope::cap_ttl(&mut out[from..], left);
    }
    out.freeze()
}

/// The frames of one entry; `None` when it is anything else.
pub(super) fn unpack(mut content: Bytes) -> Option<Vec<Bytes>> {
    let mut frames = Vec::new();
    while content.has_remaining() {
        let length = usize::try_from(content.try_get_u32().ok()?).ok()?;
        if length > content.len() || frames.len() >= PACK_MAX_FRAMES {
            return None;
        }
        frames.push(content.split_to(length));
    }
    (!frames.is_empty()).then_some(frames)
}

/// One stream entry.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) id: String,
    /// Empty: garbage.
    pub(super) frames: Vec<Bytes>,
    pub(super) scope: Option<String>,
    pub(super) service: Option<String>,
    /// The frames as they were packed: what the seal is over.
    pub(super) content: Bytes,
    /// Who wrote it.
    pub(super) seal: Option<Bytes>,
    /// When its sender gave it to the connection, in Redis' ms as far as the sender knew it.
    pub(super) sent_ms: Option<u64>,
    /// Its seal was found to fit, and it was not seen before.
    pub(super) admitted: bool,
    /// It was removed since it was taken.
    pub(super) gone: bool,
}

/// The streams of an XREAD or XREADGROUP answer, with their entries. Nothing when the block timed out.
pub(super) fn streams(answer: Value) -> Vec<(String, Vec<Entry>)> {
    let Value::Array(streams) = answer else {
        return Vec::new();
    };
    streams
        .into_iter()
        .filter_map(|stream| {
            let Value::Array(mut pair) = stream else {
                return None;
            };
            let list = entries(pair.pop()?);
            Some((text(&pair.pop()?)?.to_owned(), list))
        })
        .collect()
}

/// The entries of an XRANGE, XCLAIM or one stream's answer.
pub(super) fn entries(list: Value) -> Vec<Entry> {
    let Value::Array(list) = list else {
        return Vec::new();
    };
    list.into_iter().filter_map(entry).collect()
}

fn entry(value: Value) -> Option<Entry> {
    let Value::Array(pair) = value else { return None };
    let mut pair = pair.into_iter();
    let id = text(&pair.next()?)?.to_owned();
    let mut entry = Entry {
        id,
        ..Entry::default()
    };
    let Some(Value::Array(fields)) = pair.next() else {
        entry.gone = true;
        return Some(entry);
    };
    let mut fields = fields.into_iter();
    while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
        match (text(&name), value) {
            (Some(FIELD_FRAMES), Value::BulkString(content)) => {
                entry.content = content.into();
                entry.frames = unpack(entry.content.clone()).unwrap_or_default();
            }
            (Some(FIELD_SEAL), Value::BulkString(seal)) => entry.seal = Some(seal.into()),
            (Some(FIELD_SENT), value) => entry.sent_ms = text(&value).and_then(|ms| ms.parse().ok()),
            (Some(FIELD_SCOPE), value) => entry.scope = text(&value).map(str::to_owned),
            (Some(FIELD_SERVICE), value) => entry.service = text(&value).map(str::to_owned),
            _ => {}
        }
    }
    Some(entry)
}

/// A string of Redis, if it is one.
pub(super) fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        Value::Okay => Some("OK"),
        _ => None,
    }
}

/// A number of Redis, if it is one.
pub(super) fn number(value: &Value) -> Option<i64> {
    match value {
        Value::Int(number) => Some(*number),
        other => text(other)?.parse().ok(),
    }
}

/// A list of strings.
pub(super) fn texts(value: &Value) -> Vec<&str> {
    match value {
        Value::Array(list) => list.iter().filter_map(text).collect(),
        _ => Vec::new(),
    }
}

/// What stands behind `name` in an answer of names and values, as those of XINFO.
pub(super) fn field<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    let Value::Array(list) = value else { return None };
    list.chunks_exact(2)
        .find(|pair| text(&pair[0]) == Some(name))
        .map(|pair| &pair[1])
}

/// The two numbers of a stream id.
pub(super) fn parse_id(id: &str) -> Option<(u64, u64)> {
    let (ms, count) = id.split_once('-')?;
    Some((ms.parse().ok()?, count.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    proptest! {
        #[test]
        fn frames_survive_packing(frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 1..20)) {
            let frames: Vec<Bytes> = frames.into_iter().map(Bytes::from).collect();
            prop_assert_eq!(unpack(pack(frames.iter())), Some(frames));
        }

        #[test]
        fn frames_that_waited_differ_in_their_time_to_live_alone(
            frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 1..20), left_ms in 0u64..9_000) {
            let frames: Vec<Bytes> = frames.into_iter().map(Bytes::from).collect();
            let left = Duration::from_millis(left_ms);
            let packed = pack_within(frames.iter().map(|frame| (frame, left)));
            let expected: Vec<Bytes> = frames.iter().map(|frame| envelope::within(frame, left)).collect();
            prop_assert_eq!(unpack(packed), Some(expected));
        }

        #[test]
        fn ids_order_as_their_numbers(a in any::<(u64, u64)>(), b in any::<(u64, u64)>()) {
            let id = |(ms, count): (u64, u64)| format!("{ms}-{count}");
            prop_assert_eq!(parse_id(&id(a)).cmp(&parse_id(&id(b))), a.cmp(&b));
            prop_assert!(parse_id("") < parse_id(&id(a)), "what cannot be read is before everything");
        }

        #[test]
        fn garbage_is_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ignored = unpack(bytes.into());
        }
    }

    #[test]
    fn an_entry_without_frames_is_kept_as_garbage_with_its_id() {
        let answer = Value::Array(vec![Value::Array(vec![
            bulk("key"),
            Value::Array(vec![
                Value::Array(vec![bulk("1-0"), Value::Array(vec![bulk("x"), bulk("y")])]),
                Value::Array(vec![bulk("2-0"), Value::Nil]),
                Value::Nil,
            ]),
        ])]);
        let streams = streams(answer);
        assert_eq!(streams[0].0, "key");
        let ids: Vec<_> = streams[0]
            .1
            .iter()
            .map(|e| (e.id.as_str(), e.frames.len()))
            .collect();
        assert_eq!(ids, [("1-0", 0), ("2-0", 0)]);
    }

    #[test]
    fn ids_compare_by_their_numbers() {
        assert!(parse_id("10-2") < parse_id("10-11") && parse_id("9-9") < parse_id("10-0"));
        assert_eq!(parse_id("x"), None);
    }
}
