//! All VMs of one driver: an actor for each, and one dispatcher of the driver's events.

use super::{
    Changes, EndedJob, VmHandle, VmSeen,
    changes::Teller,
    journal::{Journal, Note, end_of},
    task::{self, Actor, Command},
};
use crate::{Adopted, Driver, DriverEvent, Error, OpCx, Result, Seen, SystemClock, limits};
use async_trait::async_trait;
use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{
    sync::{broadcast, mpsc, watch},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use vbm_core::{Clock, DriverKind, PowerState, VmId};

/// What is held while a VM is being started; what it stands for ends with it.
pub type StartPass = Box<dyn Send>;

/// Whom the machines ask before a job that makes a VM run, and tell how it went. See [`crate::Registry`].
#[async_trait]
pub trait Gate: Send + Sync {
    /// Whether the VM may be made to run by this driver now. The pass is held until it runs or has failed to.
    ///
    /// # Errors
    /// Why not.
    async fn may_start(&self, driver: DriverKind, vm: VmId) -> Result<StartPass>;

    /// How that went.
    fn has_started(&self, driver: DriverKind, failed: Option<&Error>);
}

/// How machines are kept.
#[derive(Clone)]
pub struct MachinesConfig {
    journal: Option<PathBuf>,
    gate: Option<Arc<dyn Gate>>,
    clock: Arc<dyn Clock>,
}

impl Default for MachinesConfig {
    fn default() -> Self {
        Self {
            journal: None,
            gate: None,
            clock: Arc::new(SystemClock),
        }
    }
}

impl std::fmt::Debug for MachinesConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MachinesConfig")
            .field("journal", &self.journal)
            .finish_non_exhaustive()
    }
}

impl MachinesConfig {
    /// No journal, no gate.
    pub fn new() -> Self {
        Self::default()
    }

    /// Jobs that run are written down in this directory, which is these machines' alone.
    #[must_use]
    pub fn with_journal(mut self, dir: impl Into<PathBuf>) -> Self {
        self.journal = Some(dir.into());
        self
    }

    /// Starts are asked for there.
    #[must_use]
    pub fn with_gate(mut self, gate: Arc<dyn Gate>) -> Self {
        self.gate = Some(gate);
        self
    }

    /// Times are read from that clock.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
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
    changes: Arc<Teller>,
    adopted: Vec<Adopted>,
    ended: Vec<EndedJob>,
    journal: Journal,
    gate: Option<Arc<dyn Gate>>,
    clock: Arc<dyn Clock>,
    tasks: TaskTracker,
    end: CancellationToken,
}

impl Machines {
    /// Adopts what runs already and gives each VM its actor.
    ///
    /// # Errors
    /// Those of [`Driver::adopt`] and [`Driver::inventory`].
    pub async fn open(driver: Arc<dyn Driver>) -> Result<Self> {
        Self::open_with(driver, MachinesConfig::default()).await
    }

    /// The same, kept as `config` says.
    ///
    /// # Errors
    /// Those of [`Machines::open`]; [`Error::Io`] of the journal's directory.
    pub async fn open_with(driver: Arc<dyn Driver>, config: MachinesConfig) -> Result<Self> {
        let journal = Journal::open(config.journal)?;
        let left = journal.left()?;
        let events = driver.events();
        let adopted = driver.adopt().await?;
        let mut ended = Vec::with_capacity(left.len());
        for note in left {
            ended.push(told(&*driver, note).await);
        }
        let inner = Arc::new(Inner {
            actors: Mutex::default(),
            changes: Arc::new(Teller::new()),
            adopted,
            ended,
            journal,
            gate: config.gate,
            clock: config.clock,
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

    /// The jobs that an earlier daemon had begun and did not see the end of, and how they ended. They are told at each opening until
    /// [`Machines::heard_of`], or until the VM's next job.
    pub fn ended_jobs(&self) -> &[EndedJob] {
        &self.inner.ended
    }

    /// What came of the job of an earlier daemon needs not be told again.
    pub fn heard_of(&self, job: &EndedJob) {
        let busy = self
            .inner
            .lock()
            .get(&job.vm)
            .is_some_and(|vm| vm.work.borrow().is_some());
        // The note of a job that runs by now is another one.
        if !busy {
            self.inner.journal.forget(job.vm);
        }
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

    /// What happens to all VMs from now on, numbered. It comes after the change is visible in [`VmHandle::watch`].
    pub fn changes(&self) -> Changes {
        self.inner.changes.read()
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
        let (work, working) = watch::channel(None);
        let vm = VmHandle {
            id,
            commands,
            seen: watched,
            work: working,
            driver: Arc::clone(&self.driver),
            cx: OpCx::new(),
        };
        actors.insert(id, vm.clone());
        drop(actors);
        let actor = Actor::new(task::Begin {
            id,
            driver: Arc::clone(&self.driver),
            queue,
            seen: watch,
            changes: Arc::clone(&self.changes),
            end: self.end.clone(),
            desk: super::work::Desk::new(id, self.journal.clone(), work),
            gate: self.gate.clone(),
            clock: Arc::clone(&self.clock),
        });
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
                inner.changes.missed(missed);
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

/// What came of a job of an earlier daemon, as far as it can be seen.
async fn told(driver: &dyn Driver, note: Note) -> EndedJob {
    let seen = match timeout(limits::INSPECT_DEADLINE, driver.inspect(note.vm)).await {
        Ok(Ok(seen)) => Some(seen),
        Ok(Err(Error::NoSuchVm(_))) => None,
        Ok(Err(_)) | Err(_) => Some(Seen::resting(PowerState::Unknown)),
    };
    let there = match (&note.snapshot, driver.snapshots()) {
        (Some((snapshot, definition)), Some(snapshots)) => {
            let listed = timeout(limits::DISK_IMAGE_DEADLINE, snapshots.list(definition)).await;
            let listed = listed.ok().and_then(Result::ok);
            listed.map(|list| list.iter().any(|(id, _)| id == snapshot))
        }
        _ => None,
    };
    let end = end_of(note.job, seen.as_ref().map(|seen| seen.power), there);
    tracing::info!(vm = %note.vm, job = note.job.as_str(), ?end, "a job of an earlier daemon has ended");
    EndedJob {
        vm: note.vm,
        job: note.job,
        operation: note.operation,
        since: note.since,
        phase: note.phase,
        done: note.done,
        total: note.total,
        end,
        seen,
    }
}
