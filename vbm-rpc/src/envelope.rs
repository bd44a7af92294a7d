//! The frame: a fixed binary header, four variable parts, a body.
//!
//! ```text
//!  0     2    3    4     5     6       8        24      28     36          37          38       40       44
//!  +-----+----+----+-----+-----+-------+--------+-------+------+-----------+-----------+--------+--------+
//!  |"VB" |ver |kind|flags|codec|attempt|  id    |ttl_ms |epoch |method_len |caller_len |tlv_len |body_len|
//!  +-----+----+----+-----+-----+-------+--------+-------+------+-----------+-----------+--------+--------+
//!  | method | caller (a node path) | TLVs: tag u8, length u16, bytes; unknown tags are skipped | body     |
//!  +--------+----------------------+-----------------------------------------------------------+----------+
//! ```
//!
//! `caller_len` has two bytes, all numbers are big-endian. Flags and reserved tags that a reader does not know
//! are ignored; a version or kind that it does not know makes the frame undecodable, and the frame is skipped.
//! Decoding never panics and never allocates by a length it has not checked.

mod kind;
mod look;

pub use kind::{EndCode, Kind};
pub(crate) use look::{
    FLAG_CONTROL, FLAG_TRACED, cap_ttl, flags, is_cancel, is_control, label, next_attempt, peek, within,
};

use crate::{BadInput, codec::Codec, limits};
use bytes::{BufMut, Bytes};
use std::{cell::RefCell, cmp::Ordering};
use uuid::Uuid;
use vbm_core::{Epoch, NodePath};

const MAGIC: [u8; 2] = *b"VB";
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 45;
const ATTEMPT_AT: usize = 6;
const TTL_AT: usize = 24;

/// The largest frame: the largest body, and room for everything before it.
pub const FRAME_MAX_BYTES: usize = limits::PAYLOAD_MAX_BYTES + 4096;

/// Tag and length of a TLV.
const TLV_HEADER_BYTES: usize = 3;
const TAG_TRACEPARENT: u8 = 1;
const TAG_IDEMPOTENCY_KEY: u8 = 2;
const TAG_BOOT_ID: u8 = 3;

/// One message of the bus, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// What it says.
    pub kind: Kind,
    /// How the body is written.
    pub codec: Codec,
    /// Which sending of the same request this is, from 1.
    pub attempt: u16,
    /// The call it belongs to: a reply has the id of its request.
    pub id: Uuid,
    /// What was left of the deadline when it was sent, in milliseconds.
    pub ttl_ms: u32,
    /// In whose name.
    pub epoch: Epoch,
    /// Which method; empty in what comes back.
    pub method: String,
    /// Who sent it.
    pub caller: NodePath,
    /// Which run of who sent it: with `caller`, the inbox for replies.
    pub boot_id: String,
    /// The trace it belongs to.
    pub traceparent: Option<String>,
    /// Requests with one key have one effect.
    pub idempotency_key: Option<String>,
    /// The content.
    pub body: Bytes,
}

/// Why bytes are not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a frame of the bus: {why}")]
pub struct DecodeError {
    what: BadInput,
    why: &'static str,
}

impl DecodeError {
    const CUT_OFF: Self = Self::new(BadInput::CutOff, "it is cut off");

    const fn new(what: BadInput, why: &'static str) -> Self {
        Self { what, why }
    }

    /// Which kind of bad input they are.
    pub const fn kind(&self) -> BadInput {
        self.what
    }
}

impl Envelope {
    /// Writes the frame. Parts that are too long for their length field are cut off by the checks of the caller.
    pub fn encode(&self) -> Bytes {
        Parts {
            kind: self.kind,
            flags: 0,
            codec: self.codec,
            attempt: self.attempt,
            id: self.id,
            ttl_ms: self.ttl_ms,
            epoch: self.epoch,
            method: &self.method,
            caller: &self.caller,
            boot_id: &self.boot_id,
            traceparent: self.traceparent.as_deref(),
            idempotency_key: self.idempotency_key.as_deref(),
            body: &self.body,
        }
        .encode()
    }

    /// Reads a frame; the body shares its memory.
    ///
    /// # Errors
    /// When the bytes are anything else.
    pub fn decode(frame: &Bytes) -> Result<Self, DecodeError> {
        if frame.len() > FRAME_MAX_BYTES {
            return Err(DecodeError::new(BadInput::TooLarge, "it is too long"));
        }
        let mut reader = Reader { frame, at: 0 };
        if reader.take(2)? != MAGIC {
            return Err(DecodeError::new(
                BadInput::NoFrame,
                "it does not begin with the magic",
            ));
        }
        if reader.u8()? != VERSION {
            return Err(DecodeError::new(BadInput::Version, "its version is not known"));
        }
        let (kind, flags) = (reader.u8()?, reader.u8()?);
        let kind = Kind::from_wire(kind, flags)
            .ok_or(DecodeError::new(BadInput::UnknownKind, "its kind is not known"))?;
        let codec = Codec::from_byte(reader.u8()?)
            .ok_or(DecodeError::new(BadInput::UnknownKind, "its codec is not known"))?;
        let attempt = reader.u16()?;
        let id = Uuid::from_slice(reader.take(16)?).map_err(|_| DecodeError::CUT_OFF)?;
        let ttl_ms = reader.u32()?;
        let epoch = Epoch(reader.u64()?);
        let method_len = usize::from(reader.u8()?);
        let caller_len = usize::from(reader.u16()?);
        let tlv_len = usize::from(reader.u16()?);
        let body_len = reader.u32()?;
        let method = reader.text(method_len)?.to_owned();
        let caller = known_path(reader.text(caller_len)?)?;
        let tlvs = Tlvs::read(reader.take(tlv_len)?)?;
        let (said, there) = (usize::try_from(body_len).ok(), frame.len() - reader.at);
        match said.map(|said| said.cmp(&there)) {
            Some(Ordering::Equal) => {}
            Some(Ordering::Less) => {
                return Err(DecodeError::new(BadInput::Damaged, "more follows behind it"));
            }
            _ => return Err(DecodeError::CUT_OFF),
        }
        Ok(Self {
            kind,
            codec,
            attempt,
            id,
            ttl_ms,
            epoch,
            method,
            caller,
            boot_id: tlvs.boot_id.unwrap_or_default(),
            traceparent: tlvs.traceparent,
            idempotency_key: tlvs.idempotency_key,
            body: frame.slice(reader.at..),
        })
    }
}

/// What a frame is written from: an [`Envelope`] whose parts stay where they are.
pub(crate) struct Parts<'a> {
    pub(crate) kind: Kind,
    /// Besides those of the kind.
    pub(crate) flags: u8,
    pub(crate) codec: Codec,
    pub(crate) attempt: u16,
    pub(crate) id: Uuid,
    pub(crate) ttl_ms: u32,
    pub(crate) epoch: Epoch,
    pub(crate) method: &'a str,
    pub(crate) caller: &'a NodePath,
    pub(crate) boot_id: &'a str,
    pub(crate) traceparent: Option<&'a str>,
    pub(crate) idempotency_key: Option<&'a str>,
    pub(crate) body: &'a [u8],
}

impl Parts<'_> {
    /// As [`Envelope::encode`].
    pub(crate) fn encode(&self) -> Bytes {
        let caller = self.caller.as_str();
        let tlvs = [
            (TAG_BOOT_ID, Some(self.boot_id)),
            (TAG_IDEMPOTENCY_KEY, self.idempotency_key),
            (TAG_TRACEPARENT, self.traceparent),
        ];
        let tlvs = || {
            tlvs.iter().filter_map(|&(tag, value)| {
                let value = value?;
                Some((tag, u16::try_from(value.len()).ok()?, value.as_bytes()))
            })
        };
        let tlv_len: usize = tlvs().map(|(.., value)| TLV_HEADER_BYTES + value.len()).sum();
        let length = HEADER_BYTES + self.method.len() + caller.len() + tlv_len + self.body.len();
        // Of exactly this size: nothing grows, and the buffer becomes the frame as it is.
        let mut out = Vec::with_capacity(length);
        out.put_slice(&MAGIC);
        out.put_u8(VERSION);
        let (kind, flags) = self.kind.on_wire();
        out.put_u8(kind);
        out.put_u8(flags | self.flags);
        out.put_u8(self.codec.byte());
        out.put_u16(self.attempt);
        out.put_slice(self.id.as_bytes());
        out.put_u32(self.ttl_ms);
        out.put_u64(self.epoch.0);
        out.put_u8(u8::try_from(self.method.len()).unwrap_or(u8::MAX));
        out.put_u16(u16::try_from(caller.len()).unwrap_or(u16::MAX));
        out.put_u16(u16::try_from(tlv_len).unwrap_or(u16::MAX));
        out.put_u32(u32::try_from(self.body.len()).unwrap_or(u32::MAX));
        out.put_slice(self.method.as_bytes());
        out.put_slice(caller.as_bytes());
        for (tag, length, value) in tlvs() {
            out.put_u8(tag);
            out.put_u16(length);
            out.put_slice(value);
        }
        out.put_slice(self.body);
        out.into()
    }
}

/// How many paths a thread remembers; their slot is chosen by their text.
const KNOWN_PATHS: usize = 256;

thread_local! {
    /// The paths read last: a process hears from few others, again and again.
    static KNOWN: RefCell<Vec<NodePath>> = const { RefCell::new(Vec::new()) };
}

/// The path with this text, mostly without making it.
fn known_path(text: &str) -> Result<NodePath, DecodeError> {
    // FNV-1a: a bad slot costs a second look, no more.
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let at = usize::try_from(hash >> 32).unwrap_or(0) % KNOWN_PATHS;
    KNOWN.with_borrow_mut(|known| {
        if let Some(path) = known.get(at).filter(|path| path.as_str() == text) {
            return Ok(path.clone());
        }
        let path: NodePath = text
            .parse()
            .map_err(|_| DecodeError::new(BadInput::Damaged, "its caller is no node path"))?;
        known.resize(KNOWN_PATHS, NodePath::root());
        known[at] = path.clone();
        Ok(path)
    })
}

#[derive(Default)]
struct Tlvs {
    boot_id: Option<String>,
    traceparent: Option<String>,
    idempotency_key: Option<String>,
}

impl Tlvs {
    fn read(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut found = Self::default();
        let mut reader = Reader { frame: bytes, at: 0 };
        while reader.at < bytes.len() {
            let tag = reader.u8()?;
            let length = usize::from(reader.u16()?);
            match tag {
                TAG_BOOT_ID => found.boot_id = Some(reader.text(length)?.to_owned()),
                TAG_TRACEPARENT => found.traceparent = Some(reader.text(length)?.to_owned()),
                TAG_IDEMPOTENCY_KEY => found.idempotency_key = Some(reader.text(length)?.to_owned()),
                _ => {
                    reader.take(length)?;
                }
            }
        }
        Ok(found)
    }
}

/// Reads from the front; every read is checked.
struct Reader<'a> {
    frame: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let end = self.at.checked_add(count).ok_or(DecodeError::CUT_OFF)?;
        let part = self.frame.get(self.at..end).ok_or(DecodeError::CUT_OFF)?;
        self.at = end;
        Ok(part)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        self.take(N)?.try_into().map_err(|_| DecodeError::CUT_OFF)
    }
    fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array::<1>().map(|[byte]| byte)
    }
    fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_be_bytes)
    }
    fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_be_bytes)
    }
    fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_be_bytes)
    }
    fn text(&mut self, count: usize) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.take(count)?)
            .map_err(|_| DecodeError::new(BadInput::Damaged, "its text is not UTF-8"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;
    use proptest::prelude::*;
    use std::time::Duration;

    fn sample() -> Envelope {
        Envelope {
            kind: Kind::Request,
            codec: Codec::MessagePack,
            attempt: 1,
            id: Uuid::from_u128(77),
            ttl_ms: 5_000,
            epoch: Epoch(3),
            method: "agent.vm.ensure".into(),
            caller: "eu/r1/c1".parse().unwrap(),
            boot_id: "boot-1".into(),
            traceparent: Some("00-aa-bb-01".into()),
            idempotency_key: Some("key".into()),
            body: Bytes::from_static(b"body"),
        }
    }

    #[test]
    fn a_frame_survives_the_wire() {
        let envelope = sample();
        assert_eq!(Envelope::decode(&envelope.encode()).unwrap(), envelope);
    }

    #[test]
    fn many_callers_are_told_apart() {
        for turn in 0..2 {
            for node in 0..2 * KNOWN_PATHS {
                let caller: NodePath = format!("eu/r{turn}/n{node}").parse().unwrap();
                let envelope = Envelope { caller, ..sample() };
                assert_eq!(Envelope::decode(&envelope.encode()).unwrap(), envelope);
            }
        }
    }

    #[test]
    fn an_unknown_tlv_is_skipped() {
        let envelope = sample();
        let frame = envelope.encode();
        let before_tlvs = HEADER_BYTES + envelope.method.len() + envelope.caller.to_string().len();
        let mut changed = frame.to_vec();
        let extra = [200u8, 0, 3, 1, 2, 3];
        changed.splice(before_tlvs..before_tlvs, extra);
        let tlv_len = u16::from_be_bytes([changed[39], changed[40]]) + 6;
        changed[39..41].copy_from_slice(&tlv_len.to_be_bytes());
        assert_eq!(Envelope::decode(&changed.into()).unwrap(), envelope);
    }

    #[test]
    fn a_kind_with_a_flag_survives_and_is_its_plain_kind_to_who_knows_no_flag() {
        for (kind, plain) in [
            (Kind::Open, Kind::Request),
            (Kind::Watched, Kind::Request),
            (Kind::Beat, Kind::Accepted),
            (Kind::Item, Kind::Item),
            (Kind::Finish, Kind::Finish),
        ] {
            let envelope = Envelope { kind, ..sample() };
            let mut frame = envelope.encode().to_vec();
            assert_eq!(Envelope::decode(&Bytes::from(frame.clone())).unwrap(), envelope);
            assert_eq!(Kind::from_byte(frame[3]), Some(plain), "{kind:?}");
            frame[4] |= 0x03;
            let decoded = Envelope::decode(&Bytes::from(frame.clone())).unwrap();
            assert_eq!(decoded, envelope, "other flags change nothing");
            frame[4] = 0x80;
            assert_eq!(Envelope::decode(&frame.into()).unwrap().kind, plain, "{kind:?}");
        }
    }

    #[test]
    fn a_frame_cut_anywhere_is_refused() {
        let frame = sample().encode();
        for end in 0..frame.len() {
            let refused = Envelope::decode(&frame.slice(..end)).unwrap_err();
            assert_eq!(refused.kind(), BadInput::CutOff, "cut at {end}");
        }
    }

    #[test]
    fn a_look_at_the_header_sees_what_decoding_does() {
        let (envelope, frame) = (sample(), sample().encode());
        let seen = peek(&frame).unwrap();
        let caller = envelope.caller.to_string();
        assert_eq!(
            (seen.kind, seen.ttl_ms, seen.epoch, seen.caller),
            (envelope.kind, envelope.ttl_ms, envelope.epoch, caller.as_str())
        );
        assert!((0..HEADER_BYTES).all(|end| peek(&frame[..end]).is_none()));
    }

    #[test]
    fn the_next_attempt_differs_in_attempt_and_ttl_alone() {
        let frame = next_attempt(&sample().encode(), 2, 99);
        let expected = Envelope {
            attempt: 2,
            ttl_ms: 99,
            ..sample()
        };
        assert_eq!(Envelope::decode(&frame).unwrap(), expected);
    }

    #[test]
    fn a_frame_lives_no_longer_than_its_caller_waits() {
        let frame = sample().encode();
        let ttl = |frame: &Bytes| Envelope::decode(frame).unwrap().ttl_ms;
        assert_eq!(ttl(&within(&frame, Duration::from_micros(1_999_900))), 1_999);
        assert_eq!(
            ttl(&within(&frame, Duration::from_secs(60))),
            5_000,
            "never longer"
        );
        assert_eq!(within(&Bytes::from_static(b"VB"), Duration::ZERO), &b"VB"[..]);
    }

    #[test]
    fn flags_are_ignored_by_who_does_not_know_them() {
        let plain = sample().encode();
        assert!(!is_control(&plain) && flags(&plain) == 0);
        let mut both = BytesMut::from(plain.as_ref());
        both[look::FLAGS_AT] |= FLAG_CONTROL | FLAG_TRACED;
        assert!(is_control(&both) && flags(&both) == FLAG_CONTROL | FLAG_TRACED);
        assert_eq!(Envelope::decode(&both.freeze()).unwrap(), sample());
        assert!(flags(b"x") == 0);
    }

    proptest! {
        #[test]
        fn garbage_is_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ignored = Envelope::decode(&Bytes::from(bytes));
        }

        #[test]
        fn a_damaged_frame_is_never_a_panic(at in 0usize..120, byte in any::<u8>(), cut in 0usize..120) {
            let mut frame = sample().encode().to_vec();
            if let Some(place) = frame.get_mut(at) { *place = byte; }
            frame.truncate(cut);
            let _ignored = Envelope::decode(&Bytes::from(frame));
        }

        #[test]
        fn any_content_survives(method in "[a-z.]{0,128}", body in proptest::collection::vec(any::<u8>(), 0..300),
                                key in proptest::option::of(".{0,60}"), attempt in any::<u16>(), epoch in any::<u64>()) {
            let envelope = Envelope { method, body: body.into(), idempotency_key: key, attempt,
                                      epoch: Epoch(epoch), ..sample() };
            prop_assert_eq!(Envelope::decode(&envelope.encode()).unwrap(), envelope);
        }
    }
}
