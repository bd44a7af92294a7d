//! The decisions of a candidate, as a function of what it heard and of the time. No I/O, no clock of its own.
//!
//! ```text
//!               taken                     nobody saw this epoch or a higher one
//!   Following --------> Proposing(epoch) ---------------------------------------> Leading(epoch)
//!       ^    ^              |  ^  | somebody did: raise                              |  | renew
//!       |    |              |  +--+ max(redis, seen) + 1                             |  +----+
//!       |    +--------------+ not in time                                            |
//!       +------ not renewed until valid_until | somebody else has it | stood down ---+
//! ```
//!
//! `valid_until` counts from the moment at which the last good renewal was *asked for*, on this process' monotonic clock,
//! and ends a margin before the lease does: a leader has stopped before anybody may take over.

use super::lease::LeaseAnswer;
use crate::{election::CampaignOptions, limits::HEARTBEAT_EVERY};
use std::time::Duration;
use tokio::time::Instant;
use vbm_core::Epoch;

/// After Redis has forgotten everything, members are in presence again within this: two heartbeats, one of
/// which may be late.
pub(super) const WITNESSES_BACK: Duration = HEARTBEAT_EVERY.saturating_mul(2);

/// How often an epoch is raised before a candidate lets go and begins anew.
const RAISES_MAX: u32 = 5;

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing until then.
    Wait(Instant),
    /// Ask for the lease; with `blank`, also where nothing was ever kept.
    Take { floor: Epoch, blank: bool },
    /// Tell the members the epoch, and hear what they saw before it.
    Propose { epoch: Epoch, by: Instant },
    /// Keep the lease under an epoch above `floor`.
    Raise { floor: Epoch, by: Instant },
    /// Keep the lease.
    Renew { epoch: Epoch, by: Instant },
    /// Give the lease back.
    Release,
}

/// What was heard. `asked` is when the question was sent.
#[derive(Clone, Debug)]
pub(super) enum Heard {
    /// To Take or Raise or Renew; nothing when the server did not answer.
    Lease {
        asked: Instant,
        answer: Option<LeaseAnswer>,
    },
    /// The highest epoch that members saw before the proposed one; nothing when members could not be listed.
    Seen(Option<Epoch>),
    /// The lease was given back, or may have been.
    Released,
    /// The server may have forgotten its newest writes.
    MemoryLost,
    /// The leader wants to lead no more under this epoch.
    StandDown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hold {
    pub(super) epoch: Epoch,
    pub(super) valid_until: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Following { again_at: Instant },
    Proposing { hold: Hold, again_at: Instant },
    Raising { hold: Hold },
    Leading { hold: Hold, renew_at: Instant },
    Releasing,
}

#[derive(Clone, Debug)]
pub(super) struct Machine {
    options: CampaignOptions,
    phase: Phase,
    /// The highest epoch that this candidate knows of.
    highest: Epoch,
    raises: u32,
    /// Since when nothing is kept under the name.
    blank_since: Option<Instant>,
    /// Until then a former leader may believe in a lease that the server has forgotten.
    unsettled_until: Option<Instant>,
}

impl Machine {
    pub(super) fn new(options: CampaignOptions, highest: Epoch, now: Instant) -> Self {
        Self {
            options,
            phase: Phase::Following { again_at: now },
            highest,
            raises: 0,
            blank_since: None,
            unsettled_until: None,
        }
    }

    /// The leadership that holds at `now`.
    pub(super) fn leading(&self, now: Instant) -> Option<Hold> {
        match self.phase {
            Phase::Leading { hold, .. } if now < hold.valid_until => Some(hold),
            _ => None,
        }
    }

    pub(super) fn next(&mut self, now: Instant) -> Step {
        match self.phase {
            Phase::Following { again_at } => {
                let at = self.unsettled_until.map_or(again_at, |until| until.max(again_at));
                if now < at {
                    return Step::Wait(at);
                }
                // By then who led has noticed, and who bears witness of its epoch is in presence again.
                let settled = |since: Instant| now >= since + self.options.lease.max(WITNESSES_BACK);
                Step::Take {
                    floor: self.highest,
                    blank: self.blank_since.is_some_and(settled),
                }
            }
            Phase::Proposing { hold, .. } | Phase::Raising { hold } | Phase::Leading { hold, .. }
                if now >= hold.valid_until =>
            {
                self.phase = Phase::Releasing;
                Step::Release
            }
            Phase::Proposing { again_at, .. } if now < again_at => Step::Wait(again_at),
            Phase::Proposing { hold, .. } => Step::Propose {
                epoch: hold.epoch,
                by: hold.valid_until,
            },
            Phase::Raising { hold } => Step::Raise {
                floor: self.highest,
                by: hold.valid_until,
            },
            Phase::Leading { hold, renew_at } if now >= renew_at => Step::Renew {
                epoch: hold.epoch,
                by: hold.valid_until,
            },
            Phase::Leading { hold, renew_at } => Step::Wait(renew_at.min(hold.valid_until)),
            Phase::Releasing => Step::Release,
        }
    }

    pub(super) fn hear(&mut self, heard: Heard, now: Instant) {
        match (self.phase, heard) {
            (_, Heard::MemoryLost) => self.unsettled_until = Some(now + self.options.lease),
            (Phase::Following { .. }, Heard::Lease { asked, answer }) => self.took(asked, answer, now),
            (Phase::Raising { .. }, Heard::Lease { asked, answer }) => match answer {
                Some(LeaseAnswer::Mine(epoch)) => self.propose(epoch, asked, now),
                // The next turn asks again, or gives up at the end of the hold.
                None => {}
                Some(other) => self.follow(&other, now),
            },
            (Phase::Leading { hold, .. }, Heard::Lease { asked, answer }) => match answer {
                Some(LeaseAnswer::Mine(epoch)) if epoch == hold.epoch => self.lead(Hold {
                    epoch,
                    valid_until: self.valid_from(asked),
                }),
                None => {
                    self.phase = Phase::Leading {
                        hold,
                        renew_at: now + self.options.poll(),
                    }
                }
                Some(other) => self.follow(&other, now),
            },
            (Phase::Proposing { hold, .. }, Heard::Seen(seen)) => self.proposed(hold, seen, now),
            (Phase::Leading { .. } | Phase::Proposing { .. } | Phase::Raising { .. }, Heard::StandDown) => {
                self.phase = Phase::Releasing;
            }
            (Phase::Releasing, Heard::Released) => {
                // The others first: who let go is not the one to take it again at once.
                let again_at = now + self.options.poll() * 3;
                self.phase = Phase::Following { again_at };
            }
            (_, Heard::Lease { .. } | Heard::Seen(_) | Heard::Released | Heard::StandDown) => {}
        }
    }

    fn took(&mut self, asked: Instant, answer: Option<LeaseAnswer>, now: Instant) {
        match answer {
            Some(LeaseAnswer::Mine(epoch)) => {
                self.raises = 0;
                self.propose(epoch, asked, now);
            }
            Some(other) => self.follow(&other, now),
            None => {
                let again_at = now + self.options.poll();
                self.phase = Phase::Following { again_at };
            }
        }
    }

    fn follow(&mut self, answer: &LeaseAnswer, now: Instant) {
        let mut wait = self.options.poll();
        match answer {
            LeaseAnswer::Held { epoch, left, .. } => {
                self.highest = self.highest.max(*epoch);
                self.blank_since = None;
                wait = wait.min(*left);
            }
            LeaseAnswer::Blank => {
                self.blank_since.get_or_insert(now);
            }
            LeaseAnswer::Free(epoch) | LeaseAnswer::Mine(epoch) => {
                self.highest = self.highest.max(*epoch);
                self.blank_since = None;
            }
        }
        // Never a busy loop, whatever the server says.
        let again_at = now + wait.max(Duration::from_millis(1));
        self.phase = Phase::Following { again_at };
    }

    fn propose(&mut self, epoch: Epoch, asked: Instant, now: Instant) {
        self.highest = self.highest.max(epoch);
        self.blank_since = None;
        let hold = Hold {
            epoch,
            valid_until: self.valid_from(asked),
        };
        self.phase = Phase::Proposing { hold, again_at: now };
    }

    fn proposed(&mut self, hold: Hold, seen: Option<Epoch>, now: Instant) {
        match seen {
            None => {
                let again_at = now + self.options.poll();
                self.phase = Phase::Proposing { hold, again_at };
            }
            Some(seen) if seen < hold.epoch => self.lead(hold),
            Some(seen) => {
                self.highest = self.highest.max(seen);
                self.raises += 1;
                self.phase = match self.raises > RAISES_MAX {
                    true => Phase::Releasing,
                    false => Phase::Raising { hold },
                };
            }
        }
    }

    fn lead(&mut self, hold: Hold) {
        let renewed = hold.valid_until + self.options.margin() - self.options.lease;
        self.phase = Phase::Leading {
            hold,
            renew_at: renewed + self.options.lease / 3,
        };
    }

    fn valid_from(&self, asked: Instant) -> Instant {
        asked + self.options.lease - self.options.margin()
    }
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
