//! The leases of a memory bus: as Redis keeps them, in a map.

use crate::election::{LeaseAnswer, LeaseOp};
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;
use vbm_core::{Epoch, Name};

/// Clones of one bus share it.
#[derive(Default)]
pub(super) struct Leases(Mutex<State>);

#[derive(Default)]
struct State {
    kept: HashMap<Name, Kept>,
    /// Its memory was wiped once: a name that is not known may have been.
    wiped: bool,
}

#[derive(Clone, Default)]
struct Kept {
    epoch: u64,
    held: Option<(String, Instant)>,
}

impl Leases {
    /// Forgets everything, as a Redis that was restarted empty.
    pub(super) fn wipe(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = State {
            wiped: true,
            ..State::default()
        };
    }

    pub(super) fn apply(&self, name: &Name, op: &LeaseOp, now: Instant) -> LeaseAnswer {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let wiped = state.wiped;
        let known = state.kept.get(name).cloned();
        let blank = known.is_none() && wiped;
        let mut kept = known.unwrap_or_default();
        kept.held = kept.held.filter(|(_, until)| now < *until);
        let answer = kept.apply(op, blank, now);
        if !matches!(answer, LeaseAnswer::Blank) {
            state.kept.insert(name.clone(), kept);
        }
        answer
    }
}

impl Kept {
    fn apply(&mut self, op: &LeaseOp, blank: bool, now: Instant) -> LeaseAnswer {
        let held_by = |who: &str, kept: &Self| kept.held.as_ref().is_some_and(|(holder, _)| holder == who);
        match op {
            LeaseOp::Take { holder, ttl, .. } if held_by(holder, self) => {
                self.held = Some((holder.clone(), now + *ttl));
                LeaseAnswer::Mine(Epoch(self.epoch))
            }
            LeaseOp::Take { blank: false, .. } if blank => LeaseAnswer::Blank,
            LeaseOp::Take {
                holder, ttl, floor, ..
            } if self.held.is_none() => self.hold(holder, *ttl, *floor, now),
            LeaseOp::Raise { holder, ttl, floor } if held_by(holder, self) => {
                self.hold(holder, *ttl, *floor, now)
            }
            LeaseOp::Renew { holder, epoch, ttl } if held_by(holder, self) && epoch.0 == self.epoch => {
                self.held = Some((holder.clone(), now + *ttl));
                LeaseAnswer::Mine(*epoch)
            }
            LeaseOp::Release { holder } if held_by(holder, self) => {
                self.held = None;
                LeaseAnswer::Free(Epoch(self.epoch))
            }
            _ => match &self.held {
                Some((holder, until)) => LeaseAnswer::Held {
                    holder: holder.clone(),
                    epoch: Epoch(self.epoch),
                    left: until.saturating_duration_since(now),
                },
                None if blank => LeaseAnswer::Blank,
                None => LeaseAnswer::Free(Epoch(self.epoch)),
            },
        }
    }

    fn hold(&mut self, holder: &str, ttl: Duration, floor: Epoch, now: Instant) -> LeaseAnswer {
        self.epoch = self.epoch.max(floor.0).saturating_add(1);
        self.held = Some((holder.to_owned(), now + ttl));
        LeaseAnswer::Mine(Epoch(self.epoch))
    }
}
