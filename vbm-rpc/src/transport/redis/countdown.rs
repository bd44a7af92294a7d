//! An entry is completed when all its requests are: the last one to be done says so, once.
//!
//! `tests/loom.rs` includes this file and runs every interleaving.

use super::atomic::{AtomicUsize, Ordering};

/// How many are left.
pub(super) struct Countdown(AtomicUsize);

impl Countdown {
    pub(super) fn new(count: usize) -> Self {
        Self(AtomicUsize::new(count))
    }

    /// One is done. `true` for the last: what the others did before is then seen here.
    pub(super) fn done(&self) -> bool {
        self.0.fetch_sub(1, Ordering::AcqRel) == 1
    }
}
