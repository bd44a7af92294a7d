//! The bus inside one process: for a platform on one machine, and the simulated twin of Redis.
//!
//! ```text
//!   hub: path -> queue of what is kept for it   (seq, frame, since, until, origin)
//!             -> who is present there           (info, inbound), until when
//!   each attachment runs two pumps: queue -> Inbound (bounded), delayed replies -> Inbound
//! ```
//!
//! It keeps the contract of the real one: a queue belongs to the path and outlives the process; a member that
//! crashes stays present until [`PRESENCE_TTL`](crate::limits::PRESENCE_TTL) has passed; what it had taken for a service then goes to another
//! member. All waiting is on tokio's clock, so a test may pause it. [`Faults`] make it lose, repeat, delay and reorder
//! messages by a seed; [`MemoryBus::partition`] and its like make trouble by order; [`MemoryBus::story`] tells it all.

mod control;
mod desk;
mod faults;
mod hub;
mod leases;
mod results;
mod trouble;

pub use faults::Faults;

use super::{Attached, Destination, Inbound, Link, ResultStore, SendError, Sent, Transport};
use crate::{
    BusError, MemberInfo,
    admin::{Admin, Stage},
    election::{LeaseAnswer, LeaseOp},
};
use async_trait::async_trait;
use bytes::Bytes;
use desk::MemoryAdmin;
use hub::{Hub, Pumped, Seat};
use leases::Leases;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use vbm_core::{Name, NodePath};

/// The most requests that wait for one node.
pub const QUEUE_MAX_PER_NODE: usize = 16_384;

/// A bus inside one process. Clones are the same bus.
///
/// ```
/// # use vbm_rpc::{Bus, Member, Router, memory::MemoryBus};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), vbm_rpc::BusError> {
/// let hub = MemoryBus::new();
/// let bus = Bus::attach(hub.clone(), Member::new("eu/n1".parse().unwrap(), "boot-1"), Router::new()).await?;
/// bus.shutdown().await;
/// # Ok(()) }
/// ```
#[derive(Clone, Default)]
pub struct MemoryBus {
    hub: Arc<Hub>,
    memory: Arc<results::Memory>,
    leases: Arc<Leases>,
}

impl MemoryBus {
    /// An empty bus that loses nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty bus that treats messages as `faults` says.
    pub fn with_faults(faults: Faults) -> Self {
        Self {
            hub: Arc::new(Hub::new(faults)),
            memory: Arc::default(),
            leases: Arc::default(),
        }
    }

    /// From now on messages are treated as `faults` says.
    pub fn set_faults(&self, faults: Faults) {
        self.hub.set_faults(faults);
    }

    /// Forgets all leases and epochs, as a Redis that was restarted empty. For tests of what comes after.
    pub fn forget_leases(&self) {
        self.leases.wipe();
    }

    /// How many requests are kept for `path`. For tests.
    pub fn queued(&self, path: &NodePath) -> usize {
        self.hub.queued(path)
    }
}

impl From<MemoryBus> for Arc<dyn Transport> {
    fn from(bus: MemoryBus) -> Self {
        Arc::new(bus)
    }
}

impl std::fmt::Debug for MemoryBus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryBus").finish_non_exhaustive()
    }
}

#[async_trait]
impl Transport for MemoryBus {
    async fn attach(&self, member: MemberInfo, inbound: Inbound) -> Result<Attached, BusError> {
        let (path, stop) = (member.path.clone(), CancellationToken::new());
        let seat = self.hub.attach(member, inbound.clone());
        let results = results::MemoryResults {
            memory: self.memory.clone(),
            path,
            stop: stop.clone(),
        };
        let link = MemoryLink {
            hub: self.hub.clone(),
            leases: self.leases.clone(),
            seat: seat.clone(),
            results: Arc::new(results),
            stop,
            tasks: TaskTracker::new(),
        };
        for lane in [Pumped::Requests, Pumped::Urgent, Pumped::Replies] {
            let pump = pump(self.hub.clone(), seat.clone(), inbound.clone(), lane);
            let stop = link.stop.clone();
            link.tasks.spawn(async move {
                stop.run_until_cancelled(pump).await;
            });
        }
        link.tasks.close();
        let nonce = seat.serial;
        Ok(Attached::new(Arc::new(link), nonce))
    }

    fn admin(&self) -> Option<Arc<dyn Admin>> {
        Some(Arc::new(MemoryAdmin(self.hub.clone())))
    }
}

struct MemoryLink {
    hub: Arc<Hub>,
    leases: Arc<Leases>,
    seat: Arc<Seat>,
    results: Arc<results::MemoryResults>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// Moves what is kept for a seat to its bus. Ends when the bus takes no more, or by its token.
async fn pump(hub: Arc<Hub>, seat: Arc<Seat>, inbound: Inbound, lane: Pumped) {
    loop {
        let woken = seat.wake(lane).notified();
        match hub.next(&seat, lane, Instant::now()) {
            hub::Next::Request(delivery) => {
                if !inbound.request(delivery).await {
                    return;
                }
            }
            hub::Next::Reply(frame) => inbound.control(frame),
            // Cancel safe: both only wake.
            hub::Next::Wait(Some(at)) => tokio::select! { () = woken => {} () = sleep_until(at) => {} },
            hub::Next::Wait(None) => woken.await,
            hub::Next::Ended => return,
        }
    }
}

#[async_trait]
impl Link for MemoryLink {
    async fn send(&self, to: &Destination, frame: Bytes, ttl: Duration) -> Result<Sent, SendError> {
        let until = Instant::now() + ttl;
        loop {
            if self.stop.is_cancelled() {
                return Err(SendError::Closed);
            }
            let mut heard = std::pin::pin!(self.seat.voice.notified());
            heard.as_mut().enable();
            if !self.hub.is_mute(&self.seat) {
                let now = Instant::now();
                let left = until.saturating_duration_since(now);
                return self.hub.send(&self.seat, to, frame, left, now);
            }
            // Cancel safe: both only wait.
            tokio::select! {
                () = heard => {}
                () = self.stop.cancelled() => {}
                () = sleep_until(until) => {
                    return Err(SendError::Expired("the queue of this process".into()));
                }
            }
        }
    }

    async fn post(&self, to: Destination, frame: Bytes, ttl: Duration) {
        if !self.try_post(to, frame, ttl) {
            tracing::debug!("a message that nobody waits for was not sent");
        }
    }

    fn try_post(&self, to: Destination, frame: Bytes, ttl: Duration) -> bool {
        !self.stop.is_cancelled() && self.hub.post(&self.seat, to, frame, ttl, Instant::now())
    }

    fn note(&self, call: uuid::Uuid, stage: Stage, detail: String) {
        self.hub.desk.note(call, stage, self.seat.name(), detail);
    }

    async fn members(&self, scope: &NodePath) -> Result<Vec<MemberInfo>, BusError> {
        Ok(self.hub.members(scope, Instant::now()))
    }

    async fn lease(&self, name: &Name, op: &LeaseOp) -> Result<LeaseAnswer, BusError> {
        if self.stop.is_cancelled() {
            return Err(BusError::Closed);
        }
        Ok(self.leases.apply(name, op, Instant::now()))
    }

    fn generations(&self) -> watch::Receiver<u64> {
        self.seat.generations.subscribe()
    }

    fn ended(&self) -> watch::Receiver<Option<BusError>> {
        self.seat.ended.subscribe()
    }

    async fn retire(&self) {
        self.hub.leave(&self.seat, Instant::now());
    }

    async fn close(&self) {
        self.hub.forget(&self.seat, Instant::now());
        self.stop.cancel();
        self.tasks.wait().await;
    }

    fn sever(&self) {
        if !self.stop.is_cancelled() {
            self.hub.sever(&self.seat, Instant::now());
            self.stop.cancel();
        }
    }

    fn results(&self) -> Option<Arc<dyn ResultStore>> {
        Some(self.results.clone())
    }
}
