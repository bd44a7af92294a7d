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
//! - A job that begins is written down, with whose it is, and how far it gets; the next daemon is told how it ended: see `journal`.
//! - What happens has numbers, and who lags is told a gap: see [`Changes`].
//! - A job is called off by the context it is done under ([`VmHandle::under`]), or by [`VmHandle::cancel`].
//! - A job belongs to the actor: dropping the future of a handle's method does not end it.

mod changes;
mod facets;
mod hotplug;
mod job;
mod journal;
mod machines;
mod migration;
mod policy;
mod task;
mod work;

pub use changes::{Change, Changes, Gap, Seq};
pub use journal::{EndedJob, JobEnd};
pub(crate) use policy::PREEMPTED_BY_FORCE_OFF;

pub use machines::{Gate, Machines, MachinesConfig, StartPass};
pub use work::Work;

use crate::{Driver, Error, NicBackend, OpCx, Result, Seen, VmDefinition};
use serde::{Deserialize, Serialize};
use std::{sync::Arc, time::Duration};
use task::Command;
use tokio::sync::{mpsc, oneshot, watch};
use vbm_core::{OperationId, PowerState, VmId};

/// What a VM is busy with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
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
    /// The last step of its arrival.
    FinishArrival,
    /// It is not waited for any more.
    Abandon,
    /// A disk is being attached.
    AttachDisk,
    /// A disk is being detached.
    DetachDisk,
    /// A disk is being made larger.
    ResizeDisk,
    /// A NIC is being attached.
    AttachNic,
    /// A NIC is being detached.
    DetachNic,
    /// The medium in its CD drive is being changed.
    ChangeMedium,
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
            Self::FinishArrival => "last step of its arrival",
            Self::Abandon => "end of its arrival",
            Self::AttachDisk => "attachment of a disk",
            Self::DetachDisk => "detachment of a disk",
            Self::ResizeDisk => "growth of a disk",
            Self::AttachNic => "attachment of a NIC",
            Self::DetachNic => "detachment of a NIC",
            Self::ChangeMedium => "change of a medium",
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

/// The handle of one VM. Cheap to clone.
///
/// # Cancel safety
/// Dropping a future of a method does not end the job that it began; [`VmHandle::watch`] tells how it went on.
#[derive(Clone)]
pub struct VmHandle {
    id: VmId,
    commands: mpsc::Sender<Command>,
    seen: watch::Receiver<VmSeen>,
    work: watch::Receiver<Option<Work>>,
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
        let cx = self.cx.clone();
        self.ask(|reply| Command::Stop(cx, grace, reply)).await
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

    /// What it is busy with, as that goes on; `None` while it is busy with nothing.
    pub fn work(&self) -> watch::Receiver<Option<Work>> {
        self.work.clone()
    }

    /// Calls off the job that runs: that of `operation`, or whichever it is. Says whether there was one. It ends as its driver ends it
    /// ([`OpCx::cancel`]): what cannot be undone any more is brought to its end, and its caller is told which.
    ///
    /// # Errors
    /// [`Error::ShutDown`].
    pub async fn cancel(&self, operation: Option<OperationId>) -> Result<bool> {
        self.ask(|reply| Command::Cancel(operation, reply)).await
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<Result<T>>) -> Command) -> Result<T> {
        const GONE: Error = Error::ShutDown("the actor of this VM");
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| GONE)?;
        answer.await.map_err(|_| GONE)?
    }
}
