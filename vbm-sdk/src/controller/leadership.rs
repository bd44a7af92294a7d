//! Who reconciles: of all controllers on a store, one at a time.
//!
//! ```text
//!   follower --- the lease is free, or has not changed for LEASE on my own clock ---> takes over: epoch + 1, one transaction
//!      ^                                                                                   |
//!      |                                                                                leader: keepers act, each write
//!      +--- asked to end | lease lost | not renewed for STOP_AFTER <--- renews the lease --+       compares the epoch's key
//! ```
//!
//! - `controller/epoch` is changed by a take-over only, and only grows. Every write of a leader compares its revision, so
//!   a leader that was paused and knows nothing of its successor writes nothing. Agents refuse its commands by the number.
//! - `controller/lease` is written again and again by the leader. Followers look whether its *revision* changes and count
//!   the time on their own monotonic clock; what any other clock says plays no part.
//! - A leader counts from the moment at which it *began* its last renewal, and has stopped [`STOP_AFTER`] later, before anybody
//!   may take over at [`LEASE`].
//! - A lease that bears my own id is of my own former life: its process held my data directory, which is locked now.
//!
//! A controller that is alone on its store (a file that only it can open) leads from the start and needs no lease.
//!
//! The decisions are functions ([`Patience::unchanged`], [`may_take_over`], [`judge_renewal`]); the task around them only reads,
//! writes and waits.

use super::{Controller, Mandate, plan::World};
use crate::records::EVENT_PREFIX;
use crate::store::{Compare, Entry, Revision, Store, StoreError, Txn, TxnOutcome, Write};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use vbm_core::{Epoch, Error, ErrorKind, EventKind, Kind, Node, ObjectRef, Result};

/// How long a lease holds after its last renewal was seen.
pub const LEASE: Duration = Duration::from_secs(3);
/// A leader that could not renew for so long stops. The rest of [`LEASE`] is for ending its keepers.
pub const STOP_AFTER: Duration = Duration::from_secs(2);
/// How often a leader renews.
const RENEW_EVERY: Duration = Duration::from_millis(700);
/// After a renewal that failed.
const RENEW_AGAIN: Duration = Duration::from_millis(100);
/// How often a follower looks.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// The longest that one look may take, a take-over included.
const LOOK_PATIENCE: Duration = Duration::from_secs(1);
/// The longest that giving the lease back may take.
const RELEASE_PATIENCE: Duration = Duration::from_secs(2);

/// The highest epoch that is believed.
const EPOCH_MAX: Epoch = Epoch(1 << 53);

/// Where the newest epoch stands.
pub(super) const EPOCH_KEY: &str = "controller/epoch";
/// Where the lease stands.
pub(super) const LEASE_KEY: &str = "controller/lease";
/// What both begin with.
const PREFIX: &str = "controller/";

/// Whether others may be on the same store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rivals {
    /// Nobody else can open the store: this controller leads as soon as it is open.
    #[default]
    None,
    /// Others may: whoever holds the lease leads.
    Possible,
}

/// The lease, as it stands in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lease {
    /// The leader's name, for people.
    name: String,
    /// The leader's instance.
    id: String,
    /// The run of its process.
    boot_id: String,
    epoch: Epoch,
    /// Given back: anybody may take over at once.
    released: bool,
}

/// Who leads, as this controller knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Presiding {
    pub(super) leader: Option<String>,
    pub(super) epoch: Epoch,
    /// Whether it is this controller.
    pub(super) mine: bool,
}

/// What the store says of the leadership, as one picture.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seat {
    lease: Option<(Revision, Lease)>,
    epoch: Option<(Revision, Epoch)>,
}

impl Seat {
    pub(super) async fn read(store: &dyn Store) -> Result<Self> {
        let mut seat = Self::default();
        for entry in store.list(PREFIX, None, 2).await?.entries {
            match entry.key.as_str() {
                EPOCH_KEY => seat.epoch = Some((entry.revision, epoch_of(&entry)?)),
                LEASE_KEY => seat.lease = Some((entry.revision, lease_of(&entry)?)),
                _ => {}
            }
        }
        Ok(seat)
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.epoch.map(|(_, epoch)| epoch).unwrap_or_default()
    }

    fn leader(&self) -> Option<&Lease> {
        self.lease
            .as_ref()
            .map(|(_, lease)| lease)
            .filter(|l| !l.released)
    }

    /// That both keys are as they were read.
    fn unchanged(&self) -> Vec<Compare> {
        let compare = |key: &str, revision: Option<Revision>| {
            revision.map_or_else(
                || Compare::Absent(key.to_owned()),
                |r| Compare::At(key.to_owned(), r),
            )
        };
        vec![
            compare(EPOCH_KEY, self.epoch.map(|(r, _)| r)),
            compare(LEASE_KEY, self.lease.as_ref().map(|(r, _)| *r)),
        ]
    }
}

fn epoch_of(entry: &Entry) -> Result<Epoch> {
    let number = std::str::from_utf8(&entry.value)
        .ok()
        .and_then(|t| t.parse().ok());
    number
        .map(Epoch)
        .ok_or_else(|| unreadable(entry, "it is no number"))
}

fn lease_of(entry: &Entry) -> Result<Lease> {
    serde_json::from_slice(&entry.value).map_err(|e| unreadable(entry, &e.to_string()))
}

fn unreadable(entry: &Entry, why: &str) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("the record {} cannot be read", entry.key),
        why,
        "it was written by a newer VBM, or the store was damaged: restore a backup",
    )
}

/// How long the lease has stood unchanged, on this process' clock.
#[derive(Debug, Default)]
struct Patience {
    seen: Option<(Revision, Instant)>,
}

impl Patience {
    /// The store was asked at `asked` and showed this revision at `told`. Both ends are taken so that the result is
    /// never longer than the truth.
    fn unchanged(&mut self, revision: Option<Revision>, asked: Instant, told: Instant) -> Duration {
        match (self.seen, revision) {
            (Some((seen, since)), Some(now)) if seen == now => asked.saturating_duration_since(since),
            (_, revision) => {
                self.seen = revision.map(|r| (r, told));
                Duration::ZERO
            }
        }
    }
}

/// Whether the controller with this id may take over.
fn may_take_over(id: &str, seat: &Seat, unchanged: Duration) -> bool {
    seat.leader()
        .is_none_or(|lease| lease.id == id || unchanged >= LEASE)
}

/// The highest epoch that anybody knows. One that no count of take-overs reaches is somebody's mistake and plays no part.
fn highest(own: Epoch, others: impl Iterator<Item = Epoch>) -> Epoch {
    others.filter(|e| *e <= EPOCH_MAX).fold(own, Epoch::max)
}

/// What a renewal came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Renewal {
    /// It holds, from the moment at which it was begun; the lease was written by this revision.
    Held(Revision),
    /// Somebody else leads.
    Lost,
    /// The lease is still mine, but not as I knew it: an earlier renewal was done and not heard of. Again.
    Again(Revision),
}

/// Whether a lease that could not be written is still that of this run.
fn judge_renewal(seat: &Seat, boot_id: &str, epoch: Epoch) -> Renewal {
    match &seat.lease {
        Some((revision, lease))
            if lease.boot_id == boot_id
                && lease.epoch == epoch
                && !lease.released
                && seat.epoch() == epoch =>
        {
            Renewal::Again(*revision)
        }
        _ => Renewal::Lost,
    }
}

/// Why a leader ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// It was asked to.
    Asked,
    /// Somebody else leads.
    Lost,
    /// It could not renew in time.
    Late,
    /// A node knows a higher epoch.
    Outrun,
}

/// A leadership, and where its lease stands.
struct Held {
    mandate: Mandate,
    lease: Revision,
    /// When the renewal that holds was begun.
    renewed: Instant,
}

impl Controller {
    /// Takes the next epoch, without a lease: nobody else is on the store.
    pub(super) async fn lead_alone(&self) -> Result<Mandate> {
        loop {
            let seat = Seat::read(self.store()).await?;
            let epoch = self.next_epoch(&seat).await?;
            let txn = Txn {
                compare: seat.unchanged(),
                write: vec![
                    Write::Put(EPOCH_KEY.into(), epoch.to_string().into()),
                    // A lease of former rivals would tell of somebody who leads no more.
                    Write::Delete(LEASE_KEY.into()),
                ],
            };
            if let TxnOutcome::Done(revision) = self.store().txn(txn).await? {
                self.preside(true, Some(self.inner.name.clone()), epoch);
                return Ok(Mandate::new(epoch, revision, &self.inner.stop));
            }
        }
    }

    /// Who leads now, so that this controller can speak in its name.
    pub(super) async fn look_who_leads(&self) -> Result<()> {
        if self.inner.rivals == Rivals::None {
            return Ok(());
        }
        let seat = Seat::read(self.store()).await?;
        let mine = self.leads() && seat.leader().is_some_and(|l| l.boot_id == self.inner.boot_id);
        self.preside(mine, seat.leader().map(|l| l.name.clone()), seat.epoch());
        Ok(())
    }

    fn preside(&self, mine: bool, leader: Option<String>, epoch: Epoch) {
        let new = Presiding { leader, epoch, mine };
        self.inner.presiding.send_if_modified(|now| {
            let changed = *now != new;
            *now = new;
            changed
        });
    }

    /// The epoch after every one that the store or a node knows. A node may know a higher one than the store: the
    /// store is an older copy then, or lost writes.
    async fn next_epoch(&self, seat: &Seat) -> Result<Epoch> {
        let nodes = self.records().all::<Node>().await?;
        let obeyed = nodes.iter().map(|n| n.value.status.epoch);
        Ok(highest(seat.epoch(), obeyed).next())
    }

    /// Ends this leadership when a node has obeyed a higher epoch and would refuse everything: the next one, of
    /// whoever is first, is higher still.
    pub(super) fn end_if_outrun(&self, world: &World) -> Result<()> {
        let Some(mandate) = &self.mandate else {
            return Ok(());
        };
        let known = highest(mandate.epoch, world.nodes.values().map(|n| n.status.epoch));
        if known == mandate.epoch {
            return Ok(());
        }
        mandate.stop.cancel();
        Err(Error::new(
            ErrorKind::Stale,
            format!(
                "a node has obeyed epoch {known}, and this is epoch {}",
                mandate.epoch
            ),
            "the store was replaced by an older copy, or lost writes",
            "nothing needs to be done: a higher epoch is taken",
        ))
    }

    /// Follows and leads by turns, until shutdown. `alone` is the first leadership of one without rivals.
    pub(super) async fn take_part(&self, alone: Option<Mandate>) {
        let mut alone = alone;
        while let Some(mandate) = alone {
            self.acting(&mandate).oversee().await;
            alone = self.inner.stop.run_until_cancelled(self.lead_alone_again()).await;
            if alone.is_none() {
                return;
            }
        }
        // Cancel safe: a take-over that was done and not heard of leaves a lease that bears this id.
        while let Some(held) = self.inner.stop.run_until_cancelled(self.follow()).await {
            self.lead(held).await;
        }
    }

    async fn lead_alone_again(&self) -> Mandate {
        loop {
            match self.lead_alone().await {
                Ok(mandate) => return mandate,
                Err(e) => tracing::warn!(error = %e.inline(), "the next epoch cannot be taken just now"),
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Waits until this controller leads.
    async fn follow(&self) -> Held {
        let mut patience = Patience::default();
        loop {
            match timeout(LOOK_PATIENCE, self.try_to_lead(&mut patience)).await {
                Ok(Ok(Some(held))) => return held,
                Ok(Ok(None)) => {}
                // A take-over that was done all the same left a lease with this id, which is taken again at once.
                Err(_late) => tracing::warn!("who leads cannot be seen: the store does not answer"),
                Ok(Err(e)) => tracing::warn!(error = %e.inline(), "who leads cannot be seen"),
            }
            sleep(LOOK_EVERY).await;
        }
    }

    async fn try_to_lead(&self, patience: &mut Patience) -> Result<Option<Held>> {
        let asked = Instant::now();
        let seat = Seat::read(self.store()).await?;
        let lease = seat.lease.as_ref().map(|(revision, _)| *revision);
        let unchanged = patience.unchanged(lease, asked, Instant::now());
        self.preside(false, seat.leader().map(|l| l.name.clone()), seat.epoch());
        if !may_take_over(&self.inner.id, &seat, unchanged) {
            return Ok(None);
        }
        self.take_over(&seat).await
    }

    /// Takes over from who is on the seat, unless somebody else is faster.
    async fn take_over(&self, seat: &Seat) -> Result<Option<Held>> {
        let (begun, epoch) = (Instant::now(), self.next_epoch(seat).await?);
        let before = seat
            .leader()
            .map_or_else(String::new, |l| format!(", after {}", l.name));
        let event = self.event(
            EventKind::ControllerElected,
            ObjectRef::new(Kind::Controller, &self.inner.id, &self.inner.name),
            format!("leads in epoch {epoch}{before}"),
        );
        let txn = Txn {
            compare: seat.unchanged(),
            write: vec![
                Write::Put(EPOCH_KEY.into(), epoch.to_string().into()),
                Write::Put(LEASE_KEY.into(), self.lease(epoch, false)?),
                Write::Put(
                    format!("{EVENT_PREFIX}{}", event.id),
                    serde_json::to_vec(&event)
                        .map(Bytes::from)
                        .map_err(|e| Error::internal("an event cannot be written", e.to_string()))?,
                ),
            ],
        };
        let TxnOutcome::Done(revision) = self.store().txn(txn).await? else {
            return Ok(None);
        };
        if begun.elapsed() >= STOP_AFTER {
            // Too slow to be sure; the lease bears this id, so that it is taken again at once.
            return Ok(None);
        }
        tracing::info!(controller = self.inner.name, %epoch, "this controller leads");
        self.preside(true, Some(self.inner.name.clone()), epoch);
        Ok(Some(Held {
            mandate: Mandate::new(epoch, revision, &self.inner.stop),
            lease: revision,
            renewed: begun,
        }))
    }

    fn lease(&self, epoch: Epoch, released: bool) -> Result<Bytes> {
        let lease = Lease {
            name: self.inner.name.clone(),
            id: self.inner.id.clone(),
            boot_id: self.inner.boot_id.clone(),
            epoch,
            released,
        };
        serde_json::to_vec(&lease)
            .map(Bytes::from)
            .map_err(|e| Error::internal("the lease cannot be written", e.to_string()))
    }

    /// Leads until it must not any more; returns when all that acted in its name has ended.
    async fn lead(&self, mut held: Held) {
        let acting = self.acting(&held.mandate);
        let overseeing = tokio::spawn(async move { acting.oversee().await });
        let ended = self.renew_until_ended(&mut held).await;
        held.mandate.stop.cancel();
        if let Err(e) = overseeing.await {
            tracing::error!(error = %e, "the overseer ended unexpectedly");
        }
        let epoch = held.mandate.epoch;
        tracing::info!(controller = self.inner.name, %epoch, why = ?ended, "this controller leads no more");
        self.preside(false, None, epoch);
        if ended == Ended::Asked
            && !matches!(timeout(RELEASE_PATIENCE, self.release(&held)).await, Ok(Ok(())))
        {
            tracing::warn!("the lease could not be given back; others wait for its end");
        }
    }

    async fn renew_until_ended(&self, held: &mut Held) -> Ended {
        let mut next = held.renewed + RENEW_EVERY;
        loop {
            let late = held.renewed + STOP_AFTER;
            let renewal = async {
                sleep_until(next).await;
                (Instant::now(), self.renew(held).await)
            };
            // Dropping a renewal leaves it done or not done; after either of these arms nothing more is done in its name.
            let (begun, renewal) = tokio::select! {
                biased;
                () = self.inner.stop.cancelled() => return Ended::Asked,
                () = sleep_until(late) => return Ended::Late,
                () = held.mandate.stop.cancelled() => return Ended::Outrun,
                renewal = renewal => renewal,
            };
            match renewal {
                Ok(Renewal::Held(revision)) => {
                    (held.lease, held.renewed, next) = (revision, begun, begun + RENEW_EVERY);
                }
                Ok(Renewal::Again(revision)) => (held.lease, next) = (revision, Instant::now()),
                Ok(Renewal::Lost) => return Ended::Lost,
                Err(e) => {
                    tracing::warn!(error = %e.inline(), "the lease could not be renewed just now");
                    next = Instant::now() + RENEW_AGAIN;
                }
            }
        }
    }

    async fn renew(&self, held: &Held) -> Result<Renewal> {
        let epoch = held.mandate.epoch;
        match self.write_lease(held, false).await? {
            TxnOutcome::Done(revision) => Ok(Renewal::Held(revision)),
            TxnOutcome::Conflict(_) => {
                let seat = Seat::read(self.store()).await?;
                Ok(judge_renewal(&seat, &self.inner.boot_id, epoch))
            }
        }
    }

    async fn release(&self, held: &Held) -> Result<()> {
        // A conflict means that there is nothing to give back.
        self.write_lease(held, true).await.map(drop)
    }

    async fn write_lease(&self, held: &Held, released: bool) -> Result<TxnOutcome> {
        let txn = Txn {
            compare: vec![
                Compare::At(EPOCH_KEY.into(), held.mandate.fence),
                Compare::At(LEASE_KEY.into(), held.lease),
            ],
            write: vec![Write::Put(
                LEASE_KEY.into(),
                self.lease(held.mandate.epoch, released)?,
            )],
        };
        self.store().txn(txn).await.map_err(|e: StoreError| e.into())
    }

    fn store(&self) -> &dyn Store {
        self.inner.store.as_ref()
    }
}

#[cfg(test)]
mod tests;
