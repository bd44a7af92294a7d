//! An own small QMP client: what QEMU's monitor speaks (QEMU `docs/interop/qmp-spec.rst`).
//!
//! ```text
//!   Qmp (clone) --request--> queue --> task that owns the socket --line--> QEMU
//!      ^                                 |  pending: id -> reply             |
//!      `-------- reply, by id -----------'<------ replies, events ----------'
//!                                        `--> typed events --> keeper
//! ```
//!
//! - Each command has a deadline of its own. A reply that comes later is let go; the connection lives on.
//! - What is not understood is no error: garbage and new fields are passed over, new events are kept as they are
//!   for who listens to them ([`Qmp::raw_events`]).
//! - Who is too slow for a flood of events is told, in their order, how things are after it.
//! - The end of the stream ends all that is pending with [`crate::Error::Disconnected`].
//! - File descriptors travel with the command that needs them (`SCM_RIGHTS`).

mod client;
mod codec;
pub(super) mod jobs;
#[cfg(test)]
mod liar;

pub(super) use client::{Connected, Qmp};
pub(super) use codec::QmpEvent;

/// Reads bytes as a monitor's, and says whether anything in them made sense. For mutations of a corpus.
#[cfg(test)]
pub(crate) fn makes_sense(bytes: &[u8]) -> bool {
    let mut sense = false;
    let (mut whole, mut pieces) = (codec::Lines::default(), codec::Lines::default());
    whole.buffer.extend_from_slice(bytes);
    let mut lines = Vec::new();
    while let Ok(Some(line)) = whole.next() {
        let meaning = codec::parse(&line);
        if let codec::Incoming::Event(raw) = &meaning {
            // What it means for the power state may be nothing; finding that out must not fail.
            drop(codec::event(&raw.name, &raw.data));
        }
        sense |= meaning != codec::Incoming::Other;
        lines.push(meaning);
    }
    // However it is cut, it is the same.
    let mut again = lines.into_iter();
    for piece in bytes.chunks(7) {
        pieces.buffer.extend_from_slice(piece);
        while let Ok(Some(line)) = pieces.next() {
            assert_eq!(again.next(), Some(codec::parse(&line)));
        }
    }
    assert_eq!(again.next(), None);
    sense
}
