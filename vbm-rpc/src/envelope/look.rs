//! What is known of a frame without decoding it, and what is changed in one that is written already.

use super::{ATTEMPT_AT, HEADER_BYTES, Kind, MAGIC, Reader, TTL_AT, VERSION};
use bytes::{Bytes, BytesMut};
use std::time::Duration;
use vbm_core::Epoch;

/// Flag: the frame goes on the control lane ([`Lane::Control`](crate::Lane)).
pub(crate) const FLAG_CONTROL: u8 = 0x01;
/// Flag: the hops of this call are recorded ([`CallOptions::traced`](crate::CallOptions::traced)).
pub(crate) const FLAG_TRACED: u8 = 0x02;
pub(super) const FLAGS_AT: usize = 4;

/// The flags of a frame, without decoding it; none when it is no frame.
pub(crate) fn flags(frame: &[u8]) -> u8 {
    frame.get(FLAGS_AT).copied().unwrap_or_default()
}

/// Whether the frame must not wait behind bulk: it says so, or it is a cancel.
pub(crate) fn is_control(frame: &[u8]) -> bool {
    is_cancel(frame) || flags(frame) & FLAG_CONTROL != 0
}

/// What a frame says about itself, read from its header alone.
pub(crate) struct Peek<'a> {
    pub(crate) kind: Kind,
    pub(crate) ttl_ms: u32,
    pub(crate) epoch: Epoch,
    pub(crate) caller: &'a str,
}

/// Looks at the header; `None` when this is no frame of this version.
pub(crate) fn peek(frame: &[u8]) -> Option<Peek<'_>> {
    let mut reader = Reader { frame, at: 0 };
    if reader.take(2).ok()? != MAGIC || reader.u8().ok()? != VERSION {
        return None;
    }
    let kind = Kind::from_byte(reader.u8().ok()?)?;
    reader.at = TTL_AT;
    let ttl_ms = reader.u32().ok()?;
    let epoch = Epoch(reader.u64().ok()?);
    let method_len = usize::from(reader.u8().ok()?);
    let caller_len = usize::from(reader.u16().ok()?);
    reader.at = HEADER_BYTES.checked_add(method_len)?;
    let caller = reader.text(caller_len).ok()?;
    Some(Peek {
        kind,
        ttl_ms,
        epoch,
        caller,
    })
}

/// Whether the frame is a cancel, without decoding it.
pub(crate) fn is_cancel(frame: &[u8]) -> bool {
    frame.get(3) == Some(&(Kind::Cancel as u8))
}

/// The same frame, sent once more with what is left of its deadline.
pub(crate) fn next_attempt(frame: &Bytes, attempt: u16, ttl_ms: u32) -> Bytes {
    let mut out = BytesMut::from(frame.as_ref());
    if out.len() >= HEADER_BYTES {
        out[ATTEMPT_AT..ATTEMPT_AT + 2].copy_from_slice(&attempt.to_be_bytes());
        out[TTL_AT..TTL_AT + 4].copy_from_slice(&ttl_ms.to_be_bytes());
    }
    out.freeze()
}

/// The same frame with no more time to live than `left`. A message that waited on its way must not live longer than
/// its caller waits: who receives it counts from when the transport was given it.
pub(crate) fn within(frame: &Bytes, left: Duration) -> Bytes {
    let mut out = BytesMut::new();
    match ttl(frame) {
        Some(ttl) if ttl > whole_ms(left) => {
            out.extend_from_slice(frame);
            cap_ttl(&mut out, left);
            out.freeze()
        }
        _ => frame.clone(),
    }
}

/// Does the same to a frame that is being written.
pub(crate) fn cap_ttl(frame: &mut [u8], left: Duration) {
    if let Some(ttl) = ttl(frame)
        && let Some(place) = frame.get_mut(TTL_AT..TTL_AT + 4)
    {
        place.copy_from_slice(&ttl.min(whole_ms(left)).to_be_bytes());
    }
}

fn ttl(frame: &[u8]) -> Option<u32> {
    let bytes = frame.get(TTL_AT..TTL_AT + 4)?;
    frame.starts_with(&MAGIC).then_some(())?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

/// Rounded down: what is told of the rest is never more than there is.
fn whole_ms(span: Duration) -> u32 {
    u32::try_from(span.as_millis()).unwrap_or(u32::MAX)
}

/// What a frame is called in the story of a test: its kind and the end of its id.
pub(crate) fn label(frame: &[u8]) -> String {
    let kind = frame.get(3).copied().and_then(Kind::from_byte);
    let id = frame.get(20..24).unwrap_or_default();
    let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    kind.map_or_else(|| "garbage".into(), |kind| format!("{kind:?} {id}"))
}
