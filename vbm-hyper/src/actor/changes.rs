//! What happens to all VMs, numbered, so that who reads too slowly knows what he missed.
//!
//! ```text
//!   actors --tell--> number, send (one at a time) --> ring --> Changes: 1 2 3 ... Gap 9..=40 ... 41
//! ```
//!
//! Numbers begin with 1 and have no holes. After a [`Change::Gap`], look at [`Machines::list`](super::Machines::list): it tells how
//! things are, which is all that a reader can still learn.

use crate::{DriverEvent, limits};
use std::sync::{Mutex, PoisonError};
use tokio::sync::broadcast::{
    self,
    error::{RecvError, TryRecvError},
};

/// Something with its number.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Seq<T> {
    /// Its number; the one after it has the next one.
    pub number: u64,
    /// What it is.
    pub what: T,
}

/// Numbers that were missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Gap {
    /// The first number that was missed.
    pub first: u64,
    /// The last one.
    pub last: u64,
}

/// What a reader of changes gets.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// Something happened.
    Event(Seq<DriverEvent>),
    /// The reader was too slow, or the actors were: these are lost.
    Gap(Gap),
}

/// Gives changes their numbers, and hands them out.
#[derive(Debug)]
pub(super) struct Teller {
    last: Mutex<u64>,
    ring: broadcast::Sender<Change>,
}

impl Teller {
    pub(super) fn new() -> Self {
        Self {
            last: Mutex::new(0),
            ring: broadcast::channel(limits::EVENTS_MAX).0,
        }
    }

    pub(super) fn tell(&self, event: DriverEvent) {
        self.send(1, |number| Change::Event(Seq { number, what: event }));
    }

    /// So many events of the driver never came here.
    pub(super) fn missed(&self, events: u64) {
        self.send(events, |last| {
            Change::Gap(Gap {
                first: last - events + 1,
                last,
            })
        });
    }

    /// Numbers and sends in one go: the order of the numbers is that of the ring.
    fn send(&self, numbers: u64, change: impl FnOnce(u64) -> Change) {
        if numbers == 0 {
            return;
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last += numbers;
        // No reader is no failure.
        drop(self.ring.send(change(*last)));
    }

    pub(super) fn read(&self) -> Changes {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        Changes {
            next: *last + 1,
            held: None,
            ring: self.ring.subscribe(),
        }
    }
}

/// A reader of changes, from the moment on in which it was made.
#[derive(Debug)]
pub struct Changes {
    /// The number that comes next, if nothing is missed.
    next: u64,
    /// What came after a gap that was told first.
    held: Option<Change>,
    ring: broadcast::Receiver<Change>,
}

impl Changes {
    /// The next change; `None` once the machines were shut down and all was read.
    ///
    /// # Cancel safety
    /// Cancel safe: nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Change> {
        loop {
            if let Some(change) = self.held.take() {
                return Some(self.in_order(change));
            }
            match self.ring.recv().await {
                Ok(change) => self.held = Some(change),
                // What was lost shows by the next number.
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    }

    /// The next change, if there is one by now.
    pub fn try_next(&mut self) -> Option<Change> {
        loop {
            if let Some(change) = self.held.take() {
                return Some(self.in_order(change));
            }
            match self.ring.try_recv() {
                Ok(change) => self.held = Some(change),
                Err(TryRecvError::Lagged(_)) => {}
                Err(TryRecvError::Empty | TryRecvError::Closed) => return None,
            }
        }
    }

    /// The change, or the gap before it; then the change is held back.
    fn in_order(&mut self, change: Change) -> Change {
        let (first, last) = match &change {
            Change::Event(event) => (event.number, event.number),
            Change::Gap(gap) => (gap.first, gap.last),
        };
        if first > self.next {
            let gap = Gap {
                first: self.next,
                last: first - 1,
            };
            self.next = first;
            self.held = Some(change);
            return Change::Gap(gap);
        }
        self.next = last + 1;
        change
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Seen;
    use proptest::prelude::*;
    use vbm_core::{PowerEvent, PowerState, VmId};

    fn event(n: u128) -> DriverEvent {
        let id = VmId::from_uuid(uuid::Uuid::from_u128(n));
        DriverEvent::new(id, PowerEvent::Reset, Seen::resting(PowerState::Off))
    }

    /// Reads all; checks that the numbers have no holes. Answers events read, and numbers in gaps.
    fn read(changes: &mut Changes, mut next: u64) -> (u64, u64, u64) {
        let (mut events, mut lost) = (0, 0);
        while let Some(change) = changes.try_next() {
            match change {
                Change::Event(event) => {
                    assert_eq!(event.number, next);
                    events += 1;
                    next += 1;
                }
                Change::Gap(gap) => {
                    assert_eq!(gap.first, next);
                    assert!(gap.last >= gap.first);
                    lost += gap.last - gap.first + 1;
                    next = gap.last + 1;
                }
            }
        }
        (events, lost, next)
    }

    #[test]
    fn who_lags_is_told_what_he_missed_before_he_is_told_more() {
        let teller = Teller::new();
        teller.tell(event(0));
        let mut changes = teller.read();
        let many = u64::try_from(limits::EVENTS_MAX).unwrap() + 100;
        for n in 0..many {
            teller.tell(event(n.into()));
        }
        let Some(Change::Gap(gap)) = changes.try_next() else {
            panic!("the gap comes first")
        };
        assert_eq!(gap.first, 2, "what was before the reader is not his");
        let (events, lost, next) = read(&mut changes, gap.last + 1);
        assert_eq!(events + lost + gap.last - gap.first + 1, many);
        assert_eq!(next, many + 2);
    }

    #[tokio::test]
    async fn a_reader_ends_with_its_teller() {
        let teller = Teller::new();
        let mut changes = teller.read();
        teller.missed(3);
        teller.missed(0);
        drop(teller);
        assert_eq!(changes.next().await, Some(Change::Gap(Gap { first: 1, last: 3 })));
        assert_eq!(changes.next().await, None);
    }

    proptest! {
        #[test]
        fn numbers_have_no_holes_however_one_reads(steps in proptest::collection::vec(0..4_u8, 0..200)) {
            let teller = Teller::new();
            let mut changes = teller.read();
            let (mut next, mut told, mut got) = (1, 0, 0);
            for step in steps {
                match step {
                    0 | 1 => { teller.tell(event(1)); told += 1; }
                    2 => { teller.missed(5); told += 5; }
                    _ => { let (events, lost, after) = read(&mut changes, next); got += events + lost; next = after; }
                }
            }
            let (events, lost, _) = read(&mut changes, next);
            prop_assert_eq!(got + events + lost, told);
        }
    }
}
