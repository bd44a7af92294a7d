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
//! - What is not understood (new events, new fields, garbage) is passed over.
//! - The end of the stream ends all that is pending with [`crate::Error::Disconnected`].
//! - File descriptors travel with the command that needs them (`SCM_RIGHTS`).

mod client;
mod codec;

pub(super) use client::{Connected, Qmp};
pub(super) use codec::QmpEvent;
