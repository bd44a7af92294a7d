//! What an attachment does at this moment, as numbers. Counting costs the hot path nothing: what is counted is rare,
//! and the rest is read from where it is.

use super::{Bus, Shared};
use crate::{limits, transport::Delivery};
use std::sync::{
    Arc, Weak,
    atomic::{AtomicU64, Ordering},
};
use tokio::sync::{Semaphore, mpsc};

/// What one attachment does at this moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BusStats {
    /// Calls of this side that wait for their answer, broadcasts included.
    pub unanswered: usize,
    /// Handlers that run. At most [`HANDLERS_MAX`](limits::HANDLERS_MAX).
    pub handlers_running: usize,
    /// Requests in this process that wait for a handler. At most [`REQUEST_QUEUE_MAX`](limits::REQUEST_QUEUE_MAX).
    pub requests_waiting: usize,
    /// Entries that were no frames of the bus, since it was attached.
    pub frames_refused: u64,
    /// Grows when the transport may have forgotten what it was given.
    pub generation: u64,
}

pub(super) struct Counters {
    frames_refused: AtomicU64,
    requests: mpsc::WeakSender<Delivery>,
    permits: Arc<Semaphore>,
}

impl Counters {
    pub(super) fn new(requests: mpsc::WeakSender<Delivery>) -> Self {
        Self {
            frames_refused: AtomicU64::new(0),
            requests,
            permits: Arc::new(Semaphore::new(limits::HANDLERS_MAX)),
        }
    }

    /// One for each handler that may run.
    pub(super) fn permits(&self) -> Arc<Semaphore> {
        self.permits.clone()
    }

    pub(super) fn frame_refused(&self) {
        self.frames_refused.fetch_add(1, Ordering::Relaxed);
    }
}

/// Reads an attachment's numbers without keeping it.
pub(crate) struct Probe(Weak<Shared>);

impl Probe {
    /// The member's path and its numbers; nothing when it has ended.
    pub(crate) fn read(&self) -> Option<(String, BusStats)> {
        let shared = self.0.upgrade()?;
        (!shared.ended.is_cancelled()).then(|| (shared.me.path.to_string(), shared.stats()))
    }
}

impl Bus {
    /// What this attachment does at this moment.
    pub fn stats(&self) -> BusStats {
        self.shared.stats()
    }

    pub(crate) fn probe(&self) -> Probe {
        Probe(Arc::downgrade(&self.shared))
    }
}

impl Shared {
    fn stats(&self) -> BusStats {
        let room = |sender: mpsc::Sender<Delivery>| sender.max_capacity() - sender.capacity();
        // The dispatcher holds one permit while it waits for a request.
        let taken = limits::HANDLERS_MAX.saturating_sub(self.counters.permits.available_permits());
        let idle = usize::from(!self.closing.is_cancelled());
        BusStats {
            unanswered: self.pending.len(),
            handlers_running: taken.saturating_sub(idle),
            requests_waiting: self.counters.requests.upgrade().map_or(0, room),
            frames_refused: self.counters.frames_refused.load(Ordering::Relaxed),
            generation: *self.link.generations().borrow(),
        }
    }
}
