//! Errands: work on a running VM that takes a while and that a restart of the daemon may cut in two.
//!
//! ```text
//!   errand file --> work, in a task of the driver --> file gone
//!        |            (a caller that goes away does not end it)
//!        `-- found by the next daemon --> settle: call off what goes on, undo what is half, let the guest go on
//! ```
//!
//! A migration that was completed while nobody looked is not called off: the guest runs elsewhere, so it ends here.

use super::{
    Shared,
    keeper::Machine,
    memory::MemoryDir,
    mirror,
    qmp::Qmp,
    record::VmDir,
    snapshots,
    transfer::{self, Phase},
};
use crate::{Error, Result, limits::TRANSFER_POLL_MAX};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{path::Path, sync::Arc};
use tokio::time::{Instant, sleep};
use vbm_core::SnapshotId;

const FILE: &str = "errand";

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "errand")]
pub(super) enum Errand {
    /// A snapshot with memory is taken.
    Snapshot { snapshot: SnapshotId, was_running: bool },
    /// Its memory is written to be saved.
    Save { was_running: bool },
    /// Its memory is read back.
    Restore,
    /// It leaves; with copies of its disks, no lock tells whether it is there.
    Send {
        was_running: bool,
        #[serde(default)]
        copies: bool,
    },
    /// It arrives; when it waits for our word, it is halted until then.
    Receive {
        #[serde(default)]
        waits: bool,
    },
}

/// What came of an errand whose daemon is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settled {
    /// The VM is here as before.
    GoesOn,
    /// The VM runs elsewhere.
    Away,
    /// The VM is still expected, or is there and waits for our word.
    Arriving { waits: bool },
}

impl Errand {
    pub(super) fn note(self, dir: &VmDir) -> Result<()> {
        dir.write(FILE, &self)
    }

    pub(super) fn noted(dir: &VmDir) -> Option<Self> {
        match dir.read(FILE) {
            Ok(errand) => errand,
            Err(error) => {
                tracing::warn!(%error, "what was being done with a VM cannot be read");
                None
            }
        }
    }

    /// It is over, as far as this driver can tell. One that ends has lost its monitors: what looks like a failure then is
    /// none, and stays for the next one to settle.
    pub(super) fn over(shared: &Shared, dir: &VmDir) {
        if !shared.scope.end.is_cancelled() {
            Self::forget(dir);
        }
    }

    /// It is over.
    pub(super) fn forget(dir: &VmDir) {
        if let Err(error) = crate::files::remove_if_there(&dir.file(FILE)) {
            tracing::warn!(%error, "a note of what was done with a VM stays behind");
        }
    }
}

/// Runs work in a task of the driver, so that a caller who goes away leaves nothing half-done. It ends with the driver;
/// then the errand is the next one's to settle.
pub(super) async fn run<T: Send + 'static>(
    shared: &Arc<Shared>,
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    const GONE: Error = Error::ShutDown("the QEMU driver");
    shared.open()?;
    let end = shared.scope.end.clone();
    let task = shared.scope.tasks.spawn(async move {
        // Cancel safe: what is dropped here is settled by the next driver. The end comes first, so that work does not take
        // the loss of its monitor for a failure.
        tokio::select! {
            biased;
            () = end.cancelled() => Err(GONE),
            result = work => result,
        }
    });
    task.await.unwrap_or(Err(GONE))
}

/// Takes the one place for an errand of a VM.
pub(super) fn place(machine: &Machine) -> Result<tokio::sync::OwnedMutexGuard<()>> {
    let place = Arc::clone(&machine.errand).try_lock_owned();
    place.map_err(|_| Error::Busy {
        vm: machine.id,
        job: "transfer of its memory",
    })
}

/// Brings an errand of an earlier daemon to an end.
pub(super) async fn settle(qmp: &Qmp, dir: &VmDir, disk: &Path, errand: Errand) -> Result<Settled> {
    let settled = match errand {
        Errand::Receive { waits } => return Ok(Settled::Arriving { waits }),
        Errand::Restore => {
            loaded(qmp).await?;
            transfer::go_on(qmp).await?;
            MemoryDir::beside(disk).remove(None)?;
            Settled::GoesOn
        }
        Errand::Send { was_running, copies } => {
            if transfer::call_off(qmp).await?.phase == Phase::Completed {
                return Ok(Settled::Away);
            }
            if copies {
                mirror::undo(qmp).await?;
                go_on_if(qmp, was_running).await?;
            } else if was_running && !transfer::stays(qmp).await? {
                return Ok(Settled::Away);
            }
            Settled::GoesOn
        }
        Errand::Save { was_running } => {
            transfer::call_off(qmp).await?;
            let settled = go_on_if(qmp, was_running).await?;
            MemoryDir::beside(disk).remove(None)?;
            settled
        }
        Errand::Snapshot {
            snapshot,
            was_running,
        } => {
            transfer::call_off(qmp).await?;
            let settled = go_on_if(qmp, was_running).await?;
            snapshots::settle_live(qmp, disk, Some(snapshot)).await?;
            settled
        }
    };
    Errand::forget(dir);
    Ok(settled)
}

async fn go_on_if(qmp: &Qmp, was_running: bool) -> Result<Settled> {
    if was_running {
        transfer::go_on(qmp).await?;
    }
    Ok(Settled::GoesOn)
}

/// Waits until a memory that is being read is there.
async fn loaded(qmp: &Qmp) -> Result<()> {
    let until = Instant::now() + crate::limits::ADOPT_DEADLINE;
    while qmp.execute("query-status", Value::Null).await?["status"] == json!("inmigrate") {
        if Instant::now() >= until {
            return Err(Error::Timeout {
                command: "migrate-incoming".into(),
                after: crate::limits::ADOPT_DEADLINE,
            });
        }
        sleep(TRANSFER_POLL_MAX).await;
    }
    Ok(())
}
