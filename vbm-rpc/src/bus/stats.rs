//! What an attachment does at this moment, as numbers. Counting costs the hot path nothing: what is counted is rare,
//! and the rest is read from where it is.

use super::{Bus, Shared};
use crate::{BadCounts, bad_input::BadInputs, limits, transport::Delivery};
use std::sync::{Arc, Weak};
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
    /// What came in and was no frame of the bus, or none that fits there, since it was attached: a part of
    /// [`bad_input`](Self::bad_input).
    pub frames_refused: u64,
    /// What came in and could not be used as it was meant, by its kind, since it was attached.
    pub bad_input: BadCounts,
    /// Grows when the transport may have forgotten what it was given.
    pub generation: u64,
}

pub(super) struct Counters {
    pub(super) bad: Arc<BadInputs>,
    requests: mpsc::WeakSender<Delivery>,
    permits: Arc<Semaphore>,
}

impl Counters {
    pub(super) fn new(bad: Arc<BadInputs>, requests: mpsc::WeakSender<Delivery>) -> Self {
        Self {
            bad,
            requests,
            permits: Arc::new(Semaphore::new(limits::HANDLERS_MAX)),
        }
    }

    /// One for each handler that may run.
    pub(super) fn permits(&self) -> Arc<Semaphore> {
        self.permits.clone()
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
        let bad_input = self.counters.bad.counts();
        BusStats {
            unanswered: self.pending.len(),
            handlers_running: taken.saturating_sub(idle),
            requests_waiting: self.counters.requests.upgrade().map_or(0, room),
            frames_refused: bad_input.frames(),
            bad_input,
            generation: *self.link.generations().borrow(),
        }
    }
}
