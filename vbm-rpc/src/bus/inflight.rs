//! How many unanswered messages go to each destination.

use crate::{limits, transport::Destination};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

#[derive(Clone, Default)]
pub(crate) struct InFlight(Arc<Mutex<HashMap<Destination, usize>>>);

/// One message in flight; dropping it makes room.
pub(crate) struct Slot {
    counts: InFlight,
    to: Destination,
}

impl InFlight {
    /// A place for one more, or `None` at the limit.
    pub(crate) fn enter(&self, to: &Destination) -> Option<Slot> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match counts.get_mut(to) {
            Some(count) if *count >= limits::INFLIGHT_MAX_PER_DESTINATION => return None,
            Some(count) => *count += 1,
            None => {
                counts.insert(to.clone(), 1);
            }
        }
        drop(counts);
        Some(Slot {
            counts: self.clone(),
            to: to.clone(),
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut counts = self.counts.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.to) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.to);
            }
        }
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
        assert!(flights.0.lock().unwrap().is_empty());
    }
}
