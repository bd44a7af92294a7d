//! How many unanswered messages go to each destination.

use crate::{limits, transport::Destination};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Above so many destinations those without messages in flight are forgotten.
const SWEEP_ABOVE: usize = 1_024;

#[derive(Default)]
pub(crate) struct InFlight(Mutex<Counts>);

#[derive(Default)]
struct Counts {
    by_destination: HashMap<Destination, Arc<AtomicUsize>>,
    /// How many destinations the last sweep left.
    left: usize,
}

/// One message in flight; dropping it makes room.
pub(crate) struct Slot(Arc<AtomicUsize>);

impl InFlight {
    /// A place for one more, or `None` at the limit.
    pub(crate) fn enter(&self, to: &Destination) -> Option<Slot> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.by_destination.get(to) {
            // Only this side of the lock adds.
            if count.load(Ordering::Relaxed) >= limits::INFLIGHT_MAX_PER_DESTINATION {
                return None;
            }
            count.fetch_add(1, Ordering::Relaxed);
            return Some(Slot(count.clone()));
        }
        counts.sweep();
        let count = Arc::new(AtomicUsize::new(1));
        counts.by_destination.insert(to.clone(), count.clone());
        Some(Slot(count))
    }
}

impl Counts {
    /// Forgets idle destinations once there are twice as many as the last time: a constant cost for each new one.
    fn sweep(&mut self) {
        if self.by_destination.len() >= SWEEP_ABOVE.max(2 * self.left) {
            self.by_destination
                .retain(|_, count| count.load(Ordering::Relaxed) > 0);
            self.left = self.by_destination.len();
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Route;
    use vbm_core::NodePath;

    #[test]
    fn the_limit_holds_per_destination_and_room_comes_back() {
        let (flights, root) = (
            InFlight::default(),
            Destination::Route(Route::node(NodePath::root())),
        );
        let mut slots: Vec<_> = (0..limits::INFLIGHT_MAX_PER_DESTINATION)
            .map(|_| flights.enter(&root).unwrap())
            .collect();
        assert!(flights.enter(&root).is_none());
        let other = Destination::Route(Route::node("a".parse().unwrap()));
        assert!(flights.enter(&other).is_some());
        slots.pop();
        assert!(flights.enter(&root).is_some());
        drop(slots);
        assert!(flights.enter(&root).is_some());
    }

    #[test]
    fn destinations_without_messages_are_forgotten() {
        let flights = InFlight::default();
        let to = |n: usize| Destination::Route(Route::node(format!("n{n}").parse().unwrap()));
        let busy = flights.enter(&to(0));
        for n in 1..10 * SWEEP_ABOVE {
            drop(flights.enter(&to(n)));
        }
        let counts = flights.0.lock().unwrap();
        assert!(counts.by_destination.len() <= SWEEP_ABOVE);
        assert!(busy.is_some() && counts.by_destination.contains_key(&to(0)));
    }
}
