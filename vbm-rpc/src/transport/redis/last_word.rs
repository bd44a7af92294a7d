//! Who has the last word on a frame in the writer's queue: the caller, whose time is up, or the writer, who writes it.
//!
//! A caller that is told "expired" relies on the frame never being written; a flag that one side sets and the other
//! reads cannot promise that, as the writer may have decided to write just before it sets it. Here exactly one of
//! them wins, and the other one knows. `tests/loom.rs` includes this file and runs every interleaving.

use super::atomic::{AtomicU8, Ordering};

const WAITING: u8 = 0;
const TAKEN: u8 = 1;
const GIVEN_UP: u8 = 2;

/// The word on one frame.
pub(super) struct LastWord(AtomicU8);

impl LastWord {
    pub(super) fn new() -> Self {
        Self(AtomicU8::new(WAITING))
    }

    /// The writer: from now on it may be in Redis. `false` when the caller has given it up: it must not be written.
    pub(super) fn take(&self) -> bool {
        let was = self
            .0
            .compare_exchange(WAITING, TAKEN, Ordering::AcqRel, Ordering::Acquire);
        matches!(was, Ok(_) | Err(TAKEN))
    }

    /// The caller: it waits no longer. `true` when the frame was not written and never will be.
    pub(super) fn give_up(&self) -> bool {
        let was = self
            .0
            .compare_exchange(WAITING, GIVEN_UP, Ordering::AcqRel, Ordering::Acquire);
        was.is_ok()
    }
}
