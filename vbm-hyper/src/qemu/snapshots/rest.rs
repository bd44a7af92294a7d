//! Snapshots of disks that nobody runs: `qemu-img` on one after the other, and a note of what was begun.
//!
//! ```text
//!   take     note -> data disks -> root disk -> note gone      killed: what is there is removed again
//!   delete   note -> root disk -> data disks -> note gone      killed: gone on with
//!   revert   note -> each disk -> saved memory gone -> note gone      killed: gone on with
//! ```
//!
//! Each step can be done twice. Whoever next wants to do something with the VM brings the note to its end first.

use super::{
    super::{Shared, img, img::Verb, start::Reservation},
    beside::{Beside, Todo},
    names::{self, Disk},
};
use crate::{
    Error, OpCx, Result, VmDefinition,
    limits::{DISK_LOCK_DEADLINE, DISK_LOCK_RETRY},
};
use std::{path::Path, sync::Arc};
use tokio::time::{Instant, sleep};
use vbm_core::{PowerState, SnapshotId};

const PROGRAM: &str = "qemu-img";

/// Takes a snapshot of each disk. What was done before an error stays.
pub(super) async fn create(cx: &OpCx, disks: &[Disk], name: &str) -> Result<()> {
    let total = disks.len() as u64;
    for (done, disk) in disks.iter().enumerate() {
        cx.go_on("a snapshot")?;
        cx.report("taking a snapshot of the disks", done as u64, total);
        img::snapshot(Verb::Create, name, &disk.path)
            .await
            .map_err(|error| in_use(&disk.path, error))?;
    }
    Ok(())
}

/// Puts each disk back. Nothing ends this but an error.
pub(super) async fn apply(cx: &OpCx, disks: &[Disk], name: &str) -> Result<()> {
    let total = disks.len() as u64;
    for (done, disk) in disks.iter().enumerate() {
        cx.report("putting the disks back", done as u64, total);
        patiently(Verb::Apply, name, &disk.path).await?;
    }
    Ok(())
}

/// Removes a snapshot from each disk, whole or half, from the root disk first. A disk that is not the VM's any more may be
/// gone, or somebody else's by now: it is left alone then.
pub(super) async fn forget(disks: &[Disk], has: &[Disk], snapshot: SnapshotId) -> Result<()> {
    for disk in disks.iter().rev() {
        let forgotten = async {
            for name in names::of(&disk.path, snapshot).await? {
                patiently(Verb::Delete, &name, &disk.path).await?;
            }
            Ok(())
        };
        match forgotten.await {
            Err(error) if has.contains(disk) => return Err(error),
            Err(error) => {
                tracing::info!(disk = %disk.path.display(), %error, "a snapshot stays in a disk that was detached");
            }
            Ok(()) => {}
        }
    }
    Ok(())
}

/// Brings what was begun with the disks of a VM to its end, or undoes it, if there is anything. The VM must be at rest then.
pub(in crate::qemu) async fn settle(shared: &Arc<Shared>, definition: &VmDefinition) -> Result<()> {
    let beside = Beside::of(&definition.root_disk);
    if beside.todo()?.is_none() {
        return Ok(());
    }
    let reserved = Reservation::hold(shared, definition.id, rests)?;
    let (run, definition) = (Arc::clone(shared), definition.clone());
    super::super::errand::run(shared, async move {
        let went_back = finish(&run, &definition).await?;
        if went_back {
            return reserved.settle_off();
        }
        drop(reserved);
        Ok(())
    })
    .await
}

/// The same, for who holds the place of the VM. Says whether the disks went back: then the VM is off.
pub(super) async fn finish(shared: &Shared, definition: &VmDefinition) -> Result<bool> {
    let beside = Beside::of(&definition.root_disk);
    let Some(todo) = beside.todo()? else {
        return Ok(false);
    };
    tracing::info!(id = %definition.id, ?todo, "what was begun with its snapshots is brought to its end");
    nobody_works(todo.snapshot()).await?;
    let went_back = match todo {
        Todo::Take {
            snapshot,
            disks,
            before,
            ..
        } => {
            undo_take(&beside, &disks, snapshot, &before).await?;
            false
        }
        Todo::Delete { snapshot, disks } => {
            delete(&beside, definition, &disks, snapshot).await?;
            false
        }
        Todo::Revert {
            snapshot,
            name,
            disks,
        } => {
            apply(&OpCx::new(), &disks, &name).await?;
            went_back_to(shared, &beside, definition, snapshot)?;
            true
        }
    };
    beside.done()?;
    Ok(went_back)
}

/// Nothing of a snapshot that was begun is left.
pub(super) async fn undo_take(
    beside: &Beside,
    disks: &[Disk],
    snapshot: SnapshotId,
    before: &super::beside::Tree,
) -> Result<()> {
    forget(disks, disks, snapshot).await?;
    beside.memory.remove(Some(snapshot))?;
    beside.set_tree(before)
}

/// The disks have gone back: the memory that was saved belongs to disks that are no more.
pub(super) fn went_back_to(
    shared: &Shared,
    beside: &Beside,
    definition: &VmDefinition,
    snapshot: SnapshotId,
) -> Result<()> {
    shared.saved(definition.id).discard()?;
    let mut tree = beside.tree()?;
    tree.go_back(snapshot);
    beside.set_tree(&tree)
}

pub(super) async fn delete(
    beside: &Beside,
    definition: &VmDefinition,
    disks: &[Disk],
    snapshot: SnapshotId,
) -> Result<()> {
    forget(disks, &names::disks_of(definition), snapshot).await?;
    deleted(beside, snapshot)
}

/// The disks hold it no more: nor does anything else.
pub(super) fn deleted(beside: &Beside, snapshot: SnapshotId) -> Result<()> {
    beside.memory.remove(Some(snapshot))?;
    let mut tree = beside.tree()?;
    tree.delete(snapshot);
    beside.set_tree(&tree)
}

/// Where work on disks may go on that was begun.
fn rests(power: PowerState) -> Result<()> {
    match power {
        PowerState::Saved => Ok(()),
        power => super::at_rest(power, "work on the disks of"),
    }
}

/// Waits for a `qemu-img` of a daemon before, which goes on to its end: what it does is not to come after ours.
async fn nobody_works(snapshot: SnapshotId) -> Result<()> {
    let until = Instant::now() + DISK_LOCK_DEADLINE;
    let named = snapshot.to_string();
    loop {
        let word = named.clone();
        let found = crate::disk::blocking(move || Ok(is_worked_on(&word))).await?;
        if !found {
            return Ok(());
        }
        if Instant::now() >= until {
            return Err(Error::Timeout {
                command: format!("{PROGRAM} snapshot"),
                after: DISK_LOCK_DEADLINE,
            });
        }
        sleep(DISK_LOCK_RETRY).await;
    }
}

/// Whether a `qemu-img` of this host has a word on its command line.
fn is_worked_on(word: &str) -> bool {
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return false;
    };
    let cmdlines = processes.filter_map(|entry| std::fs::read(entry.ok()?.path().join("cmdline")).ok());
    cmdlines
        .map(|cmdline| String::from_utf8_lossy(&cmdline).into_owned())
        .any(|cmdline| {
            let mut args = cmdline.split('\0');
            args.next().is_some_and(|program| program.ends_with(PROGRAM))
                && args.any(|arg| arg.starts_with(word))
        })
}

/// A `qemu-img` of a daemon before, or a process that is just ending, may still hold the disk.
async fn patiently(verb: Verb, name: &str, disk: &Path) -> Result<()> {
    let until = Instant::now() + DISK_LOCK_DEADLINE;
    loop {
        match img::snapshot(verb, name, disk).await {
            Err(error) if is_lock(&error) && Instant::now() < until => sleep(DISK_LOCK_RETRY).await,
            Err(error) => return Err(in_use(disk, error)),
            Ok(()) => return Ok(()),
        }
    }
}

fn is_lock(error: &Error) -> bool {
    matches!(error, Error::Hypervisor { why, .. } if why.contains("lock"))
}

/// Says who uses a disk, where that is why it could not be worked on.
fn in_use(disk: &Path, error: Error) -> Error {
    if !is_lock(&error) {
        return error;
    }
    match crate::disk::lock::take(disk, crate::disk::lock::Hold::Alone) {
        Err(told @ Error::DiskInUse { .. }) => told,
        _ => Error::DiskInUse {
            path: disk.to_owned(),
            holder: "a process that has let go of it by now".into(),
        },
    }
}
