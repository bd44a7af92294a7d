//! The controller: the brain. It turns what people ask for into records, and records into what nodes do.
//!
//! ```text
//!   HTTP --> requests (vms, networks, groups, forwards, images)
//!               |  one transaction each: all or nothing, events included
//!               v
//!             store --watch--> overseer --World--> one keeper per node --bus--> agents
//!               ^               (places, finishes,       (sends what changed)        |
//!               |                forgets)                                            |
//!               +------------------- reports <---------------------------------------+
//! ```
//!
//! Requests decide nothing about hosts; the plan is a pure function of the records, and keepers send
//! only what differs from what the node was last told. Everything can be dropped and begun anew: the
//! records are the only memory.
//!
//! Any number of controllers may be on one store: all answer requests and take reports, one of them oversees (see
//! `leadership`).

mod addresses;
mod admission;
mod consoles;
mod copies;
mod floating_ips;
mod forwards;
mod groups;
mod images;
mod keeper;
mod launch;
mod leadership;
mod looks;
mod modes;
mod moving;
mod networks;
mod once;
mod operations;
mod overseer;
pub(crate) mod plan;
mod ports;
mod reads;
mod reports;
mod room;
pub(crate) mod schedule;
mod snapshots;
mod traces;
mod uplinks;
mod views;
mod vms;
mod watching;

pub use consoles::CONSOLE_LOG_MAX_BYTES;
pub(crate) use consoles::ConsoleSession;
pub use leadership::{LEASE, Rivals, STOP_AFTER};
pub(crate) use once::keyed;
pub use reads::EventStream;
pub(crate) use watching::Watched;

use crate::api::Leader;
use crate::fetch::Fetching;
use crate::records::{Edit, Records};
use crate::store::{Revision, Store};
use leadership::Presiding;
use std::{
    fmt,
    sync::{Arc, OnceLock, PoisonError},
};
use tokio::sync::{Mutex, watch::Sender};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use vbm_core::{
    Clock, Epoch, Error, ErrorKind, Event, EventId, EventKind, Generation, IdSource, ObjectRef, Operation,
    OperationId, OperationState, Result,
};
use vbm_hyper::ImageStore;
use vbm_rpc::{
    Bus,
    bus::BoxedCaller,
    layers::{Ambient, BusMetrics, TraceLayer},
};

/// What a controller stands on.
#[derive(Clone)]
pub struct ControllerConfig {
    /// Where the records are.
    pub store: Arc<dyn Store>,
    /// Where the files of images are.
    pub images: ImageStore,
    /// Tells the time.
    pub clock: Arc<dyn Clock>,
    /// Makes ids.
    pub ids: Arc<dyn IdSource>,
    /// What people call this controller.
    pub name: String,
    /// Names the instance: the same at each start on the same data, and no other controller's. Two processes with the
    /// same id never run at once.
    pub id: String,
    /// Whether others may be on the same store.
    pub rivals: Rivals,
}

/// A controller. Cheap to clone; all clones are the same one.
#[derive(Clone)]
pub struct Controller {
    inner: Arc<Inner>,
    /// Fenced while it acts as the leader.
    records: Records,
    /// In whose name this clone acts: the overseer's and its keepers' do in that of a leadership.
    mandate: Option<Mandate>,
}

/// A leadership of this controller.
#[derive(Clone)]
struct Mandate {
    epoch: Epoch,
    /// The revision that wrote the epoch: what every write compares.
    fence: Revision,
    /// Ends whatever acts in its name.
    stop: CancellationToken,
}

impl Mandate {
    fn new(epoch: Epoch, fence: Revision, stop: &CancellationToken) -> Self {
        Self {
            epoch,
            fence,
            stop: stop.child_token(),
        }
    }
}

struct Inner {
    store: Arc<dyn Store>,
    images: ImageStore,
    fetching: Fetching,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn IdSource>,
    name: String,
    id: String,
    /// Names this run.
    boot_id: String,
    rivals: Rivals,
    /// The first leadership of one without rivals, until it is started.
    alone: std::sync::Mutex<Option<Mandate>>,
    presiding: Sender<Presiding>,
    bus: OnceLock<Bus>,
    /// Where commands to nodes are counted, when they are.
    metrics: OnceLock<BusMetrics>,
    /// The same bus, for commands to nodes.
    commands: OnceLock<BoxedCaller>,
    /// Launches pick addresses one after the other; the store's uniqueness stands behind it.
    picking: Mutex<()>,
    /// No more long answers: event streams and waits end.
    closing: CancellationToken,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl fmt::Debug for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Controller")
            .field("name", &self.inner.name)
            .field("epoch", &self.epoch())
            .finish_non_exhaustive()
    }
}

impl Controller {
    /// A controller on a store. One without rivals takes the next epoch, durably, before it returns; others learn
    /// who leads.
    ///
    /// # Errors
    /// The store cannot be used.
    pub async fn open(config: ControllerConfig) -> Result<Self> {
        let this = Self {
            records: Records::new(Arc::clone(&config.store)),
            mandate: None,
            inner: Arc::new(Inner {
                store: config.store,
                images: config.images,
                fetching: Fetching::default(),
                clock: config.clock,
                name: config.name,
                id: config.id,
                boot_id: config.ids.next().to_string(),
                ids: config.ids,
                rivals: config.rivals,
                alone: std::sync::Mutex::default(),
                presiding: Sender::default(),
                bus: OnceLock::new(),
                metrics: OnceLock::new(),
                commands: OnceLock::new(),
                picking: Mutex::new(()),
                closing: CancellationToken::new(),
                stop: CancellationToken::new(),
                tasks: TaskTracker::new(),
            }),
        };
        match config.rivals {
            Rivals::None => {
                let mandate = this.lead_alone().await?;
                *this.alone() = Some(mandate);
            }
            Rivals::Possible => this.look_who_leads().await?,
        }
        Ok(this)
    }

    /// This controller, acting in the name of a leadership.
    fn acting(&self, mandate: &Mandate) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            records: self.records.fenced(leadership::EPOCH_KEY, mandate.fence),
            mandate: Some(mandate.clone()),
        }
    }

    /// The epoch in which it speaks: that of its leadership, or of the present one as it knows it.
    pub fn epoch(&self) -> Epoch {
        self.mandate
            .as_ref()
            .map_or_else(|| self.inner.presiding.borrow().epoch, |m| m.epoch)
    }

    /// What people call it.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Who leads, as far as it knows; nobody between two leaderships.
    pub fn leader(&self) -> Option<Leader> {
        let presiding = self.inner.presiding.borrow();
        let name = presiding.leader.clone()?;
        Some(Leader {
            name,
            epoch: presiding.epoch,
        })
    }

    /// Whether it leads.
    pub fn leads(&self) -> bool {
        self.inner.presiding.borrow().mine
    }

    fn alone(&self) -> std::sync::MutexGuard<'_, Option<Mandate>> {
        self.inner.alone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What ends what acts here.
    fn stop(&self) -> &CancellationToken {
        self.mandate.as_ref().map_or(&self.inner.stop, |m| &m.stop)
    }

    /// Counts the commands that it gives to nodes. Call before [`Self::start`]; later it is too late.
    pub fn count_commands(&self, metrics: BusMetrics) {
        self.inner.metrics.get_or_init(|| metrics);
    }

    /// Begins to take part, over this bus: to reconcile whenever it leads. Call once.
    ///
    /// # Errors
    /// It was started before.
    pub fn start(&self, bus: Bus) -> Result<()> {
        let traced = bus.layered(TraceLayer::new());
        let commands = match self.inner.metrics.get() {
            Some(metrics) => traced.layered(metrics.layer()).boxed(),
            None => traced.boxed(),
        };
        self.inner.commands.get_or_init(|| commands);
        self.inner
            .bus
            .set(bus)
            .map_err(|_| Error::internal("the controller was started twice", "start is for once"))?;
        let (this, alone) = (self.clone(), self.alone().take());
        self.inner.tasks.spawn(async move { this.take_part(alone).await });
        if self.inner.rivals == Rivals::Possible {
            let this = self.clone();
            self.inner.tasks.spawn(async move { this.keep_copies().await });
        }
        Ok(())
    }

    /// Ends event streams and waits for operations, so that a server can let its requests end.
    pub fn end_streams(&self) {
        self.inner.closing.cancel();
    }

    /// Waits until long answers have to end.
    pub(crate) async fn ends_streams(&self) {
        self.inner.closing.cancelled().await;
    }

    /// Ends its tasks without waiting for them; a lease is given back, as far as the process lives on.
    pub fn end(&self) {
        self.inner.closing.cancel();
        self.inner.stop.cancel();
    }

    /// Ends its tasks and waits for them; a leader hands over. The store and the bus stay open.
    pub async fn shutdown(&self) {
        self.end();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    pub(crate) fn records(&self) -> &Records {
        &self.records
    }

    pub(crate) fn now(&self) -> vbm_core::Timestamp {
        self.inner.clock.now()
    }

    fn bus(&self) -> Result<&Bus> {
        self.inner.bus.get().ok_or_else(not_started)
    }

    /// The bus, for commands to nodes.
    fn commands(&self) -> Result<&BoxedCaller> {
        self.inner.commands.get().ok_or_else(not_started)
    }

    /// An event that happens now.
    fn event(&self, kind: EventKind, object: ObjectRef, message: impl Into<String>) -> Event {
        Event {
            id: EventId::from_uuid(self.inner.ids.next()),
            at: self.inner.clock.now(),
            kind,
            object,
            message: message.into(),
        }
    }

    /// An operation that begins now.
    fn operation(&self, verb: &str, target: ObjectRef, generation: Generation) -> Operation {
        Operation {
            id: OperationId::from_uuid(self.inner.ids.next()),
            verb: verb.to_owned(),
            target,
            state: OperationState::Running,
            steps: Vec::new(),
            generation,
            created_at: self.inner.clock.now(),
            ended_at: None,
            error: None,
            trace: Ambient::current().trace.map(|trace| trace.to_string()),
        }
    }

    /// An operation that was over as soon as it was asked for; written, so that it can be looked up.
    async fn done_at_once(&self, mut operation: Operation) -> Result<Operation> {
        operation.state = OperationState::Done;
        operation.ended_at = Some(self.inner.clock.now());
        self.records().commit(Edit::default().create(&operation)).await?;
        Ok(operation)
    }
}

fn not_started() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "the controller has not started",
        "it has no bus yet",
        "try again in a moment",
    )
}
