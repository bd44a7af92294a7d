//! Which epochs may command.

use async_trait::async_trait;
use std::sync::atomic::{AtomicU64, Ordering};
use vbm_core::{Epoch, Error, ErrorKind};

/// Decides which epochs may command. The receiver of commands persists the highest epoch it has seen.
#[async_trait]
pub trait EpochGate: Send + Sync + 'static {
    /// Admits a command in the name of `epoch`, or refuses it because a higher one was seen before. A higher epoch
    /// must be on disk before this returns `Ok`.
    ///
    /// # Errors
    /// [`ErrorKind::Stale`] for a lower epoch (see [`stale_epoch`]); anything else when it cannot be persisted.
    ///
    /// # Cancel safety
    /// Must be safe: the future is dropped when the process shuts down.
    async fn admit(&self, epoch: Epoch) -> Result<(), Error>;
}

/// The refusal of a command with an epoch lower than the highest seen.
pub fn stale_epoch(given: Epoch, highest: Epoch) -> Error {
    Error::new(
        ErrorKind::Stale,
        "the command comes from a controller that no longer leads",
        format!("its epoch is {given}; epoch {highest} has commanded here"),
        "let the leading controller give the command",
    )
}

/// A gate that remembers the highest epoch in memory only: for tests, and for what need not survive a restart.
#[derive(Debug, Default)]
pub struct MemoryEpochGate(AtomicU64);

impl MemoryEpochGate {
    /// A gate that has seen `epoch`.
    pub const fn new(epoch: Epoch) -> Self {
        Self(AtomicU64::new(epoch.0))
    }
    /// The highest epoch seen.
    pub fn highest(&self) -> Epoch {
        Epoch(self.0.load(Ordering::SeqCst))
    }
    /// Notes an epoch; gives the highest before it.
    pub(crate) fn fetch_max(&self, epoch: Epoch) -> Epoch {
        Epoch(self.0.fetch_max(epoch.0, Ordering::SeqCst))
    }
}

#[async_trait]
impl EpochGate for MemoryEpochGate {
    async fn admit(&self, epoch: Epoch) -> Result<(), Error> {
        let highest = self.0.fetch_max(epoch.0, Ordering::SeqCst);
        if epoch.0 < highest {
            return Err(stale_epoch(epoch, Epoch(highest)));
        }
        Ok(())
    }
}
