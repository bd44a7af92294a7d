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

mod admission;
mod consoles;
mod forwards;
mod groups;
mod images;
mod keeper;
mod launch;
mod moving;
mod networks;
mod operations;
mod overseer;
pub(crate) mod plan;
mod reads;
mod reports;
pub(crate) mod schedule;
mod snapshots;
mod views;
mod vms;

pub use consoles::CONSOLE_LOG_MAX_BYTES;
pub(crate) use consoles::ConsoleSession;
pub use reads::EventStream;

use crate::records::{Edit, Records};
use crate::store::{Compare, Store, Txn, TxnOutcome, Write};
use std::{
    fmt,
    sync::{Arc, OnceLock},
};
use tokio::sync::Mutex;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use vbm_core::{
    Clock, Epoch, Error, ErrorKind, Event, EventId, EventKind, Generation, IdSource, ObjectRef, Operation,
    OperationId, OperationState, Result,
};
use vbm_hyper::ImageStore;
use vbm_rpc::Bus;

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
}

/// A controller. Cheap to clone; all clones are the same one.
#[derive(Clone)]
pub struct Controller {
    inner: Arc<Inner>,
}

struct Inner {
    records: Records,
    images: ImageStore,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn IdSource>,
    epoch: Epoch,
    bus: OnceLock<Bus>,
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
            .field("epoch", &self.inner.epoch)
            .finish_non_exhaustive()
    }
}

/// Where the newest epoch stands.
const EPOCH_KEY: &str = "controller/epoch";

impl Controller {
    /// A controller on a store. It takes the next epoch, durably, before it returns.
    ///
    /// # Errors
    /// The store cannot be used.
    pub async fn open(config: ControllerConfig) -> Result<Self> {
        let epoch = next_epoch(config.store.as_ref()).await?;
        Ok(Self {
            inner: Arc::new(Inner {
                records: Records::new(config.store),
                images: config.images,
                clock: config.clock,
                ids: config.ids,
                epoch,
                bus: OnceLock::new(),
                picking: Mutex::new(()),
                closing: CancellationToken::new(),
                stop: CancellationToken::new(),
                tasks: TaskTracker::new(),
            }),
        })
    }

    /// The epoch of this controller's commands.
    pub fn epoch(&self) -> Epoch {
        self.inner.epoch
    }

    /// Begins to reconcile, over this bus. Call once.
    ///
    /// # Errors
    /// It was started before.
    pub fn start(&self, bus: Bus) -> Result<()> {
        self.inner
            .bus
            .set(bus)
            .map_err(|_| Error::internal("the controller was started twice", "start is for once"))?;
        let this = self.clone();
        self.inner.tasks.spawn(async move { this.oversee().await });
        Ok(())
    }

    /// Ends event streams and waits for operations, so that a server can let its requests end.
    pub fn end_streams(&self) {
        self.inner.closing.cancel();
    }

    /// Ends its tasks and waits for them. The store and the bus stay open.
    pub async fn shutdown(&self) {
        self.inner.closing.cancel();
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    pub(crate) fn records(&self) -> &Records {
        &self.inner.records
    }

    pub(crate) fn now(&self) -> vbm_core::Timestamp {
        self.inner.clock.now()
    }

    fn bus(&self) -> Result<&Bus> {
        self.inner.bus.get().ok_or_else(|| {
            Error::new(
                ErrorKind::Unavailable,
                "the controller has not started",
                "it has no bus yet",
                "try again in a moment",
            )
        })
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

async fn next_epoch(store: &dyn Store) -> Result<Epoch> {
    loop {
        let entry = store.get(EPOCH_KEY).await?;
        let newest = match &entry {
            None => Epoch(0),
            Some(e) => std::str::from_utf8(&e.value)
                .ok()
                .and_then(|t| t.parse().ok())
                .map(Epoch)
                .ok_or_else(|| {
                    Error::new(
                        ErrorKind::Corrupt,
                        "the controller's epoch cannot be read",
                        EPOCH_KEY,
                        "restore the store from a backup",
                    )
                })?,
        };
        let compare = match entry {
            None => Compare::Absent(EPOCH_KEY.into()),
            Some(e) => Compare::At(EPOCH_KEY.into(), e.revision),
        };
        let write = Write::Put(EPOCH_KEY.into(), newest.next().to_string().into());
        if let TxnOutcome::Done(_) = store
            .txn(Txn {
                compare: vec![compare],
                write: vec![write],
            })
            .await?
        {
            return Ok(newest.next());
        }
    }
}
