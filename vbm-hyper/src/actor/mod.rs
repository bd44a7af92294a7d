//! One task owns one VM.
//!
//! ```text
//!   VmHandle --command--> queue --> actor of the VM --job--> Driver
//!      |                              |   ^                    |
//!      |<------------ reply ----------'   `---- DriverEvent ---'  (one dispatcher for all)
//!      `-- watch: VmSeen{ power, busy }
//! ```
//!
//! - The actor runs one job at a time. While it runs, other jobs are refused with `Conflict`, queries are answered, and a
//!   force-off *ends the job*: its future is dropped, its caller told [`Error::Preempted`].
//! - Which work waits for nothing, ends what runs, or is refused is a table: see `policy`.
//! - What the driver reports is always believed; it is what the next command is judged by ([`vbm_core::power`]).
//! - A job belongs to the actor: dropping the future of a handle's method does not end it.

mod facets;
mod job;
mod policy;
mod task;

use crate::{Adopted, Driver, DriverEvent, Error, NicBackend, OpCx, Result, Seen, VmDefinition, limits};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use task::{Actor, Command};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use vbm_core::{PowerState, VmId};

/// What a VM is busy with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Job {
    /// It is being started.
    Start,
    /// It was asked to shut down and is waited for.
    Stop,
    /// It is being ended.
    ForceOff,
    /// Its reset button is being pressed.
    Reset,
    /// It is being halted.
    Pause,
    /// It is being let go on.
    Resume,
    /// It is being forgotten.
    Remove,
    /// A snapshot of it is being taken.
    TakeSnapshot,
    /// It is going back to a snapshot.
    RevertSnapshot,
    /// A snapshot of it is being deleted.
    DeleteSnapshot,
    /// Its memory is being written to disk.
    Save,
    /// Its memory is being read back.
    Restore,
    /// Its saved memory is being thrown away.
    DiscardSaved,
    /// It is being sent to another host.
    MigrateOut,
    /// A place is being made for it to arrive.
    MigrateIn,
    /// It is not waited for any more.
    Abandon,
}

impl Job {
    /// The job for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::ForceOff => "force-off",
            Self::Reset => "reset",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Remove => "removal",
            Self::TakeSnapshot => "snapshot",
            Self::RevertSnapshot => "revert",
            Self::DeleteSnapshot => "deletion of a snapshot",
            Self::Save => "save",
            Self::Restore => "restore",
            Self::DiscardSaved => "deletion of its saved memory",
            Self::MigrateOut => "migration to another node",
            Self::MigrateIn => "preparation of its arrival",
            Self::Abandon => "end of its arrival",
        }
    }
}

/// What is seen of a VM, and what it is busy with.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct VmSeen {
    /// What the driver sees.
    pub seen: Seen,
    /// The job that runs.
    pub busy: Option<Job>,
}

impl VmSeen {
    /// Its power state.
    pub const fn power(&self) -> PowerState {
        self.seen.power
    }
}

/// How a stop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
#[non_exhaustive]
pub enum StopOutcome {
    /// The VM is off.
    Off {
        /// How often the button was pressed; 0 when it was off before.
        pressed: u32,
        /// How long it took.
        took: Duration,
    },
    /// The guest did not obey within the grace. It may still.
    StillRunning {
        /// How often the button was pressed.
        pressed: u32,
        /// How long it was waited for.
        waited: Duration,
    },
}

impl StopOutcome {
    /// Whether the VM is off.
    pub const fn is_off(self) -> bool {
        matches!(self, Self::Off { .. })
    }
}

/// All VMs of one driver: an actor for each.
#[derive(Clone)]
pub struct Machines {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Machines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machines")
            .field("driver", &self.inner.driver.kind())
            .finish_non_exhaustive()
    }
}

struct Inner {
    driver: Arc<dyn Driver>,
    actors: Mutex<HashMap<VmId, VmHandle>>,
    changes: broadcast::Sender<DriverEvent>,
    adopted: Vec<Adopted>,
    tasks: TaskTracker,
    end: CancellationToken,
}

impl Machines {
    /// Adopts what runs already and gives each VM its actor.
    ///
    /// # Errors
    /// Those of [`Driver::adopt`] and [`Driver::inventory`].
    pub async fn open(driver: Arc<dyn Driver>) -> Result<Self> {
        let events = driver.events();
        let adopted = driver.adopt().await?;
        let inner = Arc::new(Inner {
            actors: Mutex::default(),
            changes: broadcast::channel(limits::EVENTS_MAX).0,
            adopted,
            tasks: TaskTracker::new(),
            end: CancellationToken::new(),
            driver,
        });
        for (id, seen) in inner.driver.inventory().await? {
            inner.actor(id, seen);
        }
        let dispatch = dispatch(Arc::clone(&inner), events);
        inner.tasks.spawn(dispatch);
        Ok(Self { inner })
    }

    /// The driver beneath.
    pub fn driver(&self) -> &Arc<dyn Driver> {
        &self.inner.driver
    }

    /// What was found running when this was opened.
    pub fn adopted(&self) -> &[Adopted] {
        &self.inner.adopted
    }

    /// The handle of one VM. One that was never started is off.
    pub fn vm(&self, id: VmId) -> VmHandle {
        self.inner.actor(id, Seen::resting(PowerState::Off))
    }

    /// What is seen of all VMs.
    pub fn list(&self) -> Vec<(VmId, VmSeen)> {
        let actors = self.inner.lock();
        actors
            .iter()
            .map(|(id, vm)| (*id, vm.seen.borrow().clone()))
            .collect()
    }

    /// What happens to all VMs from now on. It comes after the change is visible in [`VmHandle::watch`].
    pub fn changes(&self) -> broadcast::Receiver<DriverEvent> {
        self.inner.changes.subscribe()
    }

    /// Ends all actors and lets go of the driver. VMs run on.
    pub async fn shutdown(&self) {
        self.inner.end.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
        self.inner.lock().clear();
        self.inner.driver.shutdown().await;
    }
}

impl Inner {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<VmId, VmHandle>> {
        self.actors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn actor(self: &Arc<Self>, id: VmId, seen: Seen) -> VmHandle {
        let mut actors = self.lock();
        if let Some(vm) = actors.get(&id).filter(|vm| !vm.commands.is_closed()) {
            return vm.clone();
        }
        let (commands, queue) = mpsc::channel(limits::ACTOR_QUEUE_MAX);
        let (watch, watched) = watch::channel(VmSeen { seen, busy: None });
        let vm = VmHandle {
            id,
            commands,
            seen: watched,
            driver: Arc::clone(&self.driver),
            cx: OpCx::new(),
        };
        actors.insert(id, vm.clone());
        drop(actors);
        let actor = Actor::new(
            id,
            Arc::clone(&self.driver),
            queue,
            watch,
            self.changes.clone(),
            self.end.clone(),
        );
        let inner = Arc::clone(self);
        self.tasks.spawn(async move {
            if actor.run().await == task::Ended::Removed {
                inner
                    .lock()
                    .extract_if(|key, vm| *key == id && vm.commands.is_closed())
                    .for_each(drop);
            }
        });
        vm
    }
}

/// Hands each event of the driver to the actor of its VM.
async fn dispatch(inner: Arc<Inner>, mut events: broadcast::Receiver<DriverEvent>) {
    loop {
        // Cancel safe: `recv` of a broadcast loses nothing when dropped.
        let event = tokio::select! {
            () = inner.end.cancelled() => return,
            event = events.recv() => event,
        };
        match event {
            Ok(event) => {
                let known = inner.lock().get(&event.id).cloned();
                let vm = match known {
                    Some(vm) => vm,
                    None if event.seen.power.is_live() => inner.actor(event.id, event.seen.clone()),
                    // The last words of one that was removed.
                    None => continue,
                };
                inner.hand(&vm, Command::Saw(Some(event))).await;
            }
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                tracing::warn!(missed, "events of the driver were missed; the inventory is taken");
                let Ok(inventory) = inner.driver.inventory().await else {
                    continue;
                };
                for (id, _) in inventory {
                    let vm = inner.actor(id, Seen::resting(PowerState::Off));
                    inner.hand(&vm, Command::Saw(None)).await;
                }
            }
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

impl Inner {
    async fn hand(&self, vm: &VmHandle, command: Command) {
        // Cancel safe: on shutdown the command is not needed any more.
        tokio::select! {
            () = self.end.cancelled() => {}
            sent = vm.commands.send(command) => {
                if sent.is_err() {
                    tracing::debug!(vm = %vm.id, "the actor has ended");
                }
            }
        }
    }
}

/// The handle of one VM. Cheap to clone.
///
/// # Cancel safety
/// Dropping a future of a method does not end the job that it began; [`VmHandle::watch`] tells how it went on.
#[derive(Clone)]
pub struct VmHandle {
    id: VmId,
    commands: mpsc::Sender<Command>,
    seen: watch::Receiver<VmSeen>,
    driver: Arc<dyn Driver>,
    cx: OpCx,
}

impl std::fmt::Debug for VmHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VmHandle")
            .field("id", &self.id)
            .field("seen", &*self.seen.borrow())
            .finish_non_exhaustive()
    }
}

impl VmHandle {
    /// The VM's id.
    pub const fn id(&self) -> VmId {
        self.id
    }

    /// The same handle, for one operation: what it is asked to do is done under that context.
    #[must_use]
    pub fn under(&self, cx: OpCx) -> Self {
        Self { cx, ..self.clone() }
    }

    /// Starts it. Returns when its processors run.
    ///
    /// # Errors
    /// Those of [`Driver::start`]; [`Error::Busy`]; [`Error::Preempted`].
    pub async fn start(&self, definition: VmDefinition, nics: Vec<NicBackend>) -> Result<Seen> {
        self.is_mine(&definition)?;
        let cx = self.cx.clone();
        self.ask(|reply| Command::Start(cx, Box::new(definition), nics, reply))
            .await
    }

    /// Asks the guest to shut down, again and again, until it is off or `grace` has passed.
    ///
    /// # Errors
    /// [`Error::Refused`] by the power table; [`Error::Busy`]; [`Error::Preempted`].
    pub async fn stop(&self, grace: Duration) -> Result<StopOutcome> {
        self.ask(|reply| Command::Stop(grace, reply)).await
    }

    /// Ends it now, and with it any job that runs. On a VM that is off it does nothing.
    ///
    /// # Errors
    /// Those of [`Driver::kill`], but for [`Error::NoSuchVm`].
    pub async fn force_off(&self) -> Result<()> {
        self.ask(Command::ForceOff).await
    }

    /// Presses the reset button.
    ///
    /// # Errors
    /// Those of [`Driver::reset`]; [`Error::Busy`]; [`Error::Preempted`].
    pub async fn reset(&self) -> Result<()> {
        self.ask(|reply| Command::Simple(Job::Reset, reply)).await
    }

    /// Halts it in memory.
    ///
    /// # Errors
    /// Those of [`Driver::pause`]; [`Error::Busy`]; [`Error::Preempted`].
    pub async fn pause(&self) -> Result<()> {
        self.ask(|reply| Command::Simple(Job::Pause, reply)).await
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// Those of [`Driver::resume`]; [`Error::Busy`]; [`Error::Preempted`].
    pub async fn resume(&self) -> Result<()> {
        self.ask(|reply| Command::Simple(Job::Resume, reply)).await
    }

    /// Forgets it and removes what the driver kept of it. It must be off.
    ///
    /// # Errors
    /// Those of [`Driver::undefine`]; [`Error::Busy`].
    pub async fn remove(&self) -> Result<()> {
        self.ask(|reply| Command::Simple(Job::Remove, reply)).await
    }

    /// Looks at it now, past any job.
    ///
    /// # Errors
    /// Those of [`Driver::inspect`]; a VM that the driver does not know is off.
    pub async fn inspect(&self) -> Result<VmSeen> {
        let seen = match self.driver.inspect(self.id).await {
            Err(Error::NoSuchVm(_)) => Seen::resting(PowerState::Off),
            other => other?,
        };
        let busy = self.seen.borrow().busy;
        Ok(VmSeen { seen, busy })
    }

    /// What is seen of it, as it changes.
    pub fn watch(&self) -> watch::Receiver<VmSeen> {
        self.seen.clone()
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<Result<T>>) -> Command) -> Result<T> {
        const GONE: Error = Error::ShutDown("the actor of this VM");
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| GONE)?;
        answer.await.map_err(|_| GONE)?
    }
}
