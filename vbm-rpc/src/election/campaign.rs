//! A candidate: the task around the decisions of [`decide`](super::decide). It asks, waits and tells; it decides nothing.

use super::{
    CampaignOptions, Elections,
    decide::{Heard, Hold, Machine, Step},
    lease::{LeaseAnswer, LeaseOp},
    witness,
};
use crate::{Bus, BusError, CallOptions};
use std::time::Duration;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use vbm_core::{Epoch, Name};

/// The longest that giving a lease back may take.
const RELEASE_PATIENCE: Duration = Duration::from_secs(2);
/// The longest that asking for a lease may take; also the longest of one answer to a leader, if its term allows.
const ASK_PATIENCE: Duration = Duration::from_secs(2);

/// A candidacy. Dropping it ends it; the lease is then given back in the background. [`Campaign::stop`] waits for that.
#[must_use = "dropping the campaign ends it"]
#[derive(Debug)]
pub struct Campaign {
    view: watch::Receiver<View>,
    /// Terms above this one are new to whoever asks for them.
    last: Epoch,
    wish: watch::Sender<Epoch>,
    _stop: DropGuard,
}

/// What others may see of a candidacy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct View {
    leading: Option<Hold>,
}

/// One leadership, from an election to its loss. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Term {
    epoch: Epoch,
    view: watch::Receiver<View>,
}

struct Candidate {
    elections: Elections,
    bus: Bus,
    name: Name,
    options: CampaignOptions,
    /// A word for the present taking of the lease.
    holder: String,
    machine: Machine,
    view: watch::Sender<View>,
    wish: watch::Receiver<Epoch>,
    generations: watch::Receiver<u64>,
    stop: CancellationToken,
}

pub(super) fn start(
    elections: Elections,
    bus: &Bus,
    name: Name,
    options: CampaignOptions,
) -> Result<Campaign, BusError> {
    bus.health()?;
    let (view, seen) = watch::channel(View::default());
    let (wish, wished) = watch::channel(Epoch::default());
    let stop = bus.closing().child_token();
    let known = elections
        .memory(name.as_str())
        .map_or(Epoch::default(), |memory| memory.highest());
    let candidate = Candidate {
        machine: Machine::new(options.clone(), known, Instant::now()),
        elections,
        bus: bus.unguarded(),
        name,
        options,
        holder: String::new(),
        view,
        wish: wished,
        generations: bus.generations(),
        stop: stop.clone(),
    };
    bus.spawn_handler(candidate.run());
    Ok(Campaign {
        view: seen,
        last: Epoch::default(),
        wish,
        _stop: stop.drop_guard(),
    })
}

impl Candidate {
    async fn run(mut self) {
        self.new_holder();
        self.generations.mark_unchanged();
        loop {
            let now = Instant::now();
            if self.generations.has_changed().unwrap_or(false) {
                self.generations.mark_unchanged();
                self.machine.hear(Heard::MemoryLost, now);
            }
            let wished = *self.wish.borrow_and_update();
            let leading = self.machine.leading(now);
            if leading.is_some_and(|hold| hold.epoch <= wished) {
                self.machine.hear(Heard::StandDown, now);
            }
            let step = self.machine.next(now);
            self.show();
            let stop = self.stop.clone();
            // A dropped question is as one that was not answered; stopping gives back whatever it took.
            let Some(heard) = stop.run_until_cancelled(self.act(step)).await else {
                break;
            };
            if let Some(heard) = heard {
                self.machine.hear(heard, Instant::now());
            }
            self.show();
        }
        // Nobody may act in this name once the lease can be another's.
        self.view.send_replace(View::default());
        self.release().await;
    }

    /// Tells what is; only changes wake those who wait.
    fn show(&self) {
        let leading = self.machine.leading(Instant::now());
        self.view.send_if_modified(|view| {
            let changed = view.leading != leading;
            if view.leading.map(|hold| hold.epoch) != leading.map(|hold| hold.epoch) {
                match leading {
                    Some(hold) => tracing::info!(election = %self.name, epoch = %hold.epoch, "leads"),
                    None => tracing::info!(election = %self.name, "leads no more"),
                }
            }
            view.leading = leading;
            changed
        });
    }

    fn new_holder(&mut self) {
        let me = self.bus.member();
        self.holder = format!("{}|{}|{}", me.path, me.boot_id, self.bus.new_id());
    }

    async fn act(&mut self, step: Step) -> Option<Heard> {
        match step {
            Step::Wait(until) => {
                // Cancel safe: all three only wake.
                tokio::select! {
                    () = sleep_until(until) => {}
                    changed = self.wish.changed() => if changed.is_err() { sleep_until(until).await },
                    changed = self.generations.changed() => match changed {
                        Ok(()) => return Some(Heard::MemoryLost),
                        Err(_ended) => sleep_until(until).await,
                    },
                }
                None
            }
            Step::Take { floor, blank } => {
                let op = LeaseOp::Take {
                    holder: self.holder.clone(),
                    ttl: self.options.lease,
                    floor,
                    blank,
                };
                Some(self.ask(op, Instant::now() + ASK_PATIENCE).await)
            }
            Step::Raise { floor, by } => {
                let op = LeaseOp::Raise {
                    holder: self.holder.clone(),
                    ttl: self.options.lease,
                    floor,
                };
                Some(self.ask(op, by).await)
            }
            Step::Renew { epoch, by } => {
                let op = LeaseOp::Renew {
                    holder: self.holder.clone(),
                    epoch,
                    ttl: self.options.lease,
                };
                Some(self.ask(op, by).await)
            }
            Step::Propose { epoch, by } => {
                // Who is silent must not cost the term: half of it is left for leading.
                let span = by.saturating_duration_since(Instant::now()) / 2;
                let (elections, bus) = (&self.elections, &self.bus);
                let asking = witness::ask(elections, bus, &self.name, &self.options.scope, epoch, span);
                Some(Heard::Seen(timeout_at(by, asking).await.unwrap_or(None)))
            }
            Step::Release => {
                self.release().await;
                // What an unanswered release or taking may still do is another's.
                self.new_holder();
                Some(Heard::Released)
            }
        }
    }

    async fn ask(&self, op: LeaseOp, by: Instant) -> Heard {
        let asked = Instant::now();
        let by = by.min(asked + ASK_PATIENCE);
        let answer = match timeout_at(by, self.bus.lease(&self.name, &op)).await {
            Ok(Ok(answer)) => Some(answer),
            Ok(Err(error)) => {
                tracing::warn!(election = %self.name, %error, "the lease cannot be asked for");
                None
            }
            Err(_late) => {
                tracing::warn!(election = %self.name, "the lease's server did not answer in time");
                None
            }
        };
        if let Some(LeaseAnswer::Mine(Epoch(epoch))) = answer
            && epoch >= crate::limits::EPOCH_MAX
        {
            tracing::error!(election = %self.name, epoch, "all epochs are used up");
            return Heard::Lease { asked, answer: None };
        }
        Heard::Lease { asked, answer }
    }

    async fn release(&self) {
        let holder = self.holder.clone();
        let op = LeaseOp::Release { holder };
        let releasing = self.bus.link_lease(&self.name, &op);
        if !matches!(timeout(RELEASE_PATIENCE, releasing).await, Ok(Ok(_))) {
            tracing::debug!(election = %self.name, "the lease was not given back; it runs out");
        }
    }
}

impl Campaign {
    /// Waits until this candidate leads. After a loss it may be asked again: each term is given once.
    ///
    /// # Errors
    /// [`BusError::Closed`] when the bus has ended.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn elected(&mut self) -> Result<Term, BusError> {
        let last = self.last;
        let is_new = |view: &View| {
            let now = Instant::now();
            view.leading
                .is_some_and(|hold| hold.epoch > last && now < hold.valid_until)
        };
        let view = self.view.wait_for(is_new).await.map_err(|_| BusError::Closed)?;
        let Some(Hold { epoch, .. }) = view.leading else {
            return Err(BusError::Closed);
        };
        drop(view);
        self.last = epoch;
        Ok(Term {
            epoch,
            view: self.view.clone(),
        })
    }

    /// Ends the present term: a receiver refused its epoch as stale, so somebody has seen a higher one. The candidate
    /// stands again, and its next term is above what the members saw.
    pub fn stand_down(&self) {
        let leading = self.view.borrow().leading;
        if let Some(hold) = leading {
            self.wish.send_replace(hold.epoch);
        }
    }

    /// Ends the candidacy and, if it leads, hands over: when this returns, the lease is free, or runs out if its server
    /// did not answer.
    ///
    /// # Cancel safety
    /// Dropping the future ends the candidacy in the background.
    pub async fn stop(self) {
        let Self { mut view, _stop, .. } = self;
        drop(_stop);
        // The task drops its side when it has given the lease back.
        while view.changed().await.is_ok() {}
    }
}

impl Term {
    /// What commands bear: [`CallOptions::epoch`].
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Options for a call in this leader's name.
    pub fn options(&self) -> CallOptions {
        CallOptions::default().epoch(self.epoch)
    }

    /// Until when it certainly leads, if it does now. Looks at the clock: true also of a process that was just
    /// unfrozen. `None` once it is lost, for ever.
    pub fn valid_for(&self) -> Option<Duration> {
        let hold = self.view.borrow().leading?;
        let left = hold.valid_until.saturating_duration_since(Instant::now());
        (hold.epoch == self.epoch && !left.is_zero()).then_some(left)
    }

    /// Whether it leads now.
    pub fn is_valid(&self) -> bool {
        self.valid_for().is_some()
    }

    /// Waits until it leads no more: at the latest when its lease, less the margin, has run out.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn lost(&self) {
        let mut view = self.view.clone();
        loop {
            let hold = view.borrow_and_update().leading;
            let Some(hold) = hold.filter(|hold| hold.epoch == self.epoch) else {
                return;
            };
            if Instant::now() >= hold.valid_until {
                return;
            }
            // Cancel safe: both only wake.
            tokio::select! {
                () = sleep_until(hold.valid_until) => {}
                changed = view.changed() => if changed.is_err() { return },
            }
        }
    }
}
