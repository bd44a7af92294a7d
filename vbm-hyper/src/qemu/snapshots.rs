//! Snapshots: the disk's inside its qcow2 file, the memory's beside it.
//!
//! ```text
//!   take, at rest   qemu-img snapshot -c
//!   take, running   stop -> blockdev-snapshot-internal-sync -> migrate file: in the background -> cont
//!                   '------------ the guest is halted: milliseconds ------------------------------'   -> complete
//!   revert          qemu-img snapshot -a, and with memory: a new process that loads it
//! ```
//!
//! - A snapshot's name in the disk is its id; with memory, `<id>+memory`, and it counts only once the memory is whole.
//! - Where the kernel cannot follow writes to the guest's memory (userfaultfd), the guest is halted until all of it is written.
//! - After a revert the guest's clock goes on from the moment of the snapshot: nothing in the guest is told.
//! - Data that is written after a snapshot is copied first, as ever in a qcow2 file; the snapshot's clusters stay in the file
//!   until it is deleted.

use super::{
    Entry, QemuDriver, Shared,
    errand::{self, Errand},
    img::{self, Verb},
    keeper::Machine,
    memory::{Kept, MemoryDir},
    qmp::Qmp,
    record::{MachineFacts, VmDir},
    start::{self, Reservation},
    transfer::{self, Channel, Phase, Way},
};
use crate::{
    Error, NicBackend, OpCx, Result, Seen, SnapshotTaken, Snapshots, VmDefinition, disk, driver::not_for,
    limits::MEMORY_DEADLINE,
};
use async_trait::async_trait;
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;
use vbm_core::{PowerEvent, PowerState, SnapshotContent, SnapshotId};

const WITH_MEMORY: &str = "+memory";
/// The disk, as the command line names it.
const NODE: &str = "root";

fn name(snapshot: SnapshotId, content: SnapshotContent) -> String {
    match content {
        SnapshotContent::DiskAndMemory => format!("{snapshot}{WITH_MEMORY}"),
        _ => snapshot.to_string(),
    }
}

/// The snapshot that a name in a disk stands for; `None`: somebody else's.
fn parse(name: &str) -> Option<(SnapshotId, SnapshotContent)> {
    match name.strip_suffix(WITH_MEMORY) {
        Some(id) => Some((id.parse().ok()?, SnapshotContent::DiskAndMemory)),
        None => Some((name.parse().ok()?, SnapshotContent::Disk)),
    }
}

/// The names in a disk that stand for one snapshot, whole or half.
async fn names_of(disk: &Path, snapshot: SnapshotId) -> Result<Vec<String>> {
    let disk = disk.to_owned();
    let names = disk::blocking(move || disk::snapshots::names(&disk)).await?;
    let ours = |name: &String| parse(name).is_some_and(|(id, _)| id == snapshot);
    Ok(names.into_iter().filter(ours).collect())
}

async fn list(disk: PathBuf) -> Result<Vec<(SnapshotId, SnapshotContent)>> {
    disk::blocking(move || {
        let memory = MemoryDir::beside(&disk);
        let names = disk::snapshots::names(&disk)?;
        let whole = |(id, content): &(SnapshotId, SnapshotContent)| {
            *content == SnapshotContent::Disk || memory.has(*id)
        };
        Ok(names
            .iter()
            .filter_map(|name| parse(name))
            .filter(whole)
            .collect())
    })
    .await
}

#[async_trait]
impl Snapshots for QemuDriver {
    async fn take(
        &self,
        cx: &OpCx,
        definition: &VmDefinition,
        snapshot: SnapshotId,
    ) -> Result<SnapshotTaken> {
        cx.go_on("a snapshot")?;
        let shared = &self.shared;
        shared.open()?;
        let there = list(definition.root_disk.clone()).await?;
        if let Some((_, content)) = there.into_iter().find(|(id, _)| *id == snapshot) {
            return Ok(SnapshotTaken::new(content, Duration::ZERO));
        }
        match shared.known(definition.id) {
            Entry::Live(machine) => {
                let place = errand::place(&machine)?;
                let shared = Arc::clone(shared);
                let run = Arc::clone(&shared);
                errand::run(&run, async move {
                    let _place = place;
                    take_live(&shared, &machine, snapshot).await
                })
                .await
            }
            entry => {
                at_rest(entry.seen().power, "take a snapshot of")?;
                let reserved = Reservation::hold(shared, definition.id, |power| {
                    at_rest(power, "take a snapshot of")
                })?;
                let disk = definition.root_disk.clone();
                errand::run(shared, async move {
                    let _reserved = reserved;
                    forget_at_rest(&disk, snapshot).await?;
                    let name = name(snapshot, SnapshotContent::Disk);
                    img::snapshot(Verb::Create, &name, &disk).await?;
                    Ok(SnapshotTaken::new(SnapshotContent::Disk, Duration::ZERO))
                })
                .await
            }
        }
    }

    async fn revert(
        &self,
        cx: &OpCx,
        definition: &VmDefinition,
        snapshot: SnapshotId,
        nics: Vec<NicBackend>,
    ) -> Result<Seen> {
        cx.go_on("a revert")?;
        let shared = &self.shared;
        shared.open()?;
        let prepared = start::Prepared::of(shared, definition, nics).await?;
        let there = list(definition.root_disk.clone()).await?;
        let found = there.into_iter().find(|(id, _)| *id == snapshot);
        let (_, content) = found.ok_or(Error::NoSuchSnapshot {
            vm: definition.id,
            snapshot,
        })?;
        let kept = match content {
            SnapshotContent::DiskAndMemory => {
                let kept = MemoryDir::beside(&definition.root_disk).kept(snapshot)?;
                prepared.fits(kept.as_ref())?;
                kept
            }
            _ => None,
        };
        let reserved = Reservation::hold(shared, definition.id, |power| {
            power.after(PowerEvent::Restore).map(drop).map_err(Error::Refused)
        })?;
        let (name, disk) = (name(snapshot, content), definition.root_disk.clone());
        let run = Arc::clone(shared);
        errand::run(shared, async move {
            img::snapshot(Verb::Apply, &name, &disk).await?;
            // Memory that was saved belongs to a disk that is no more.
            run.saved(reserved.id()).discard()?;
            reserved.settle_off()
        })
        .await?;
        match kept {
            None => Ok(Seen::resting(PowerState::Off)),
            Some(kept) => start::resume(shared, definition, &prepared, &kept, None).await,
        }
    }

    async fn delete(&self, cx: &OpCx, definition: &VmDefinition, snapshot: SnapshotId) -> Result<()> {
        cx.go_on("the deletion of a snapshot")?;
        let shared = &self.shared;
        shared.open()?;
        let disk = definition.root_disk.clone();
        match shared.known(definition.id) {
            Entry::Live(machine) => {
                let place = errand::place(&machine)?;
                errand::run(shared, async move {
                    let _place = place;
                    let qmp = machine.qmp("blockdev-snapshot-delete-internal-sync")?;
                    forget_live(&qmp, &disk, snapshot).await?;
                    forget_memory(disk, snapshot).await
                })
                .await
            }
            _ => {
                let reserved = Reservation::hold(shared, definition.id, |power| match power {
                    PowerState::Saved => Ok(()),
                    power => at_rest(power, "delete a snapshot of"),
                })?;
                errand::run(shared, async move {
                    let _reserved = reserved;
                    forget_at_rest(&disk, snapshot).await?;
                    forget_memory(disk, snapshot).await
                })
                .await
            }
        }
    }

    async fn list(&self, definition: &VmDefinition) -> Result<Vec<(SnapshotId, SnapshotContent)>> {
        self.shared.open()?;
        list(definition.root_disk.clone()).await
    }
}

fn at_rest(power: PowerState, verb: &str) -> Result<()> {
    match power {
        PowerState::Off | PowerState::Crashed(_) => Ok(()),
        power => Err(wrong_state(power, verb)),
    }
}

fn wrong_state(power: PowerState, verb: &str) -> Error {
    not_for(verb, power, "off, crashed, running or paused")
}

/// Removes a snapshot from the disk of a VM that runs.
pub(super) async fn forget_live(qmp: &Qmp, disk: &Path, snapshot: SnapshotId) -> Result<()> {
    for name in names_of(disk, snapshot).await? {
        let arguments = json!({ "device": NODE, "name": name });
        qmp.execute("blockdev-snapshot-delete-internal-sync", arguments)
            .await?;
    }
    Ok(())
}

async fn forget_at_rest(disk: &Path, snapshot: SnapshotId) -> Result<()> {
    for name in names_of(disk, snapshot).await? {
        img::snapshot(Verb::Delete, &name, disk).await?;
    }
    Ok(())
}

async fn forget_memory(disk: PathBuf, snapshot: SnapshotId) -> Result<()> {
    disk::blocking(move || {
        let memory = MemoryDir::beside(&disk);
        memory.remove(Some(snapshot))?;
        memory.tidy();
        Ok(())
    })
    .await
}

async fn take_live(
    shared: &Arc<Shared>,
    machine: &Arc<Machine>,
    snapshot: SnapshotId,
) -> Result<SnapshotTaken> {
    let was_running = match machine.seen().power {
        PowerState::Running => true,
        PowerState::Paused(_) => false,
        power => return Err(wrong_state(power, "take a snapshot of")),
    };
    machine.keeps_memory()?;
    let (dir, disk) = (
        VmDir::new(&shared.root, machine.id),
        &machine.definition.root_disk,
    );
    let kept = Kept::of(machine, &shared.facts(machine.id)?);
    let qmp = machine.qmp("migrate")?;
    // What an earlier attempt has left.
    forget_live(&qmp, disk, snapshot).await?;
    let memory = MemoryDir::beside(disk);
    let path = memory.begin(Some(snapshot))?;
    Errand::Snapshot {
        snapshot,
        was_running,
    }
    .note(&dir)?;
    let captured = capture(machine, snapshot, &path, was_running).await;
    let published = match captured {
        Ok(paused) => {
            let memory = memory.clone();
            shared
                .scope
                .blocking(move || memory.publish(Some(snapshot), kept))
                .await
                .map(|_| paused)
        }
        Err(error) => Err(error),
    };
    if published.is_err() {
        undo(machine, disk, &memory, snapshot, was_running).await;
    }
    Errand::over(shared, &dir);
    published.map(|paused| SnapshotTaken::new(SnapshotContent::DiskAndMemory, paused))
}

/// Halts the guest, fixes the disk and the memory, lets it go on, and waits for the memory to be written. Returns how
/// long the guest was halted.
async fn capture(
    machine: &Machine,
    snapshot: SnapshotId,
    path: &Path,
    was_running: bool,
) -> Result<Duration> {
    let qmp = machine.qmp("migrate")?;
    let way = match transfer::prepare(&qmp, Way::Background).await {
        Ok(()) => Way::Background,
        Err(Error::Hypervisor { why, .. }) => {
            tracing::info!(id = %machine.id, why, "the guest is halted until its memory is written");
            transfer::prepare(&qmp, Way::Halted).await?;
            Way::Halted
        }
        Err(error) => return Err(error),
    };
    let begun = Instant::now();
    if was_running {
        machine.command("stop", Value::Null).await?;
    }
    let name = name(snapshot, SnapshotContent::DiskAndMemory);
    machine
        .command(
            "blockdev-snapshot-internal-sync",
            json!({ "device": NODE, "name": name }),
        )
        .await
        .map_err(|error| transfer::full_or(Some(&machine.definition.root_disk), error))?;
    transfer::send(&qmp, &Channel::File(path.to_owned())).await?;
    // The first page is written once all of them are watched: from then on the guest may change them.
    let fixed = |report: &transfer::Report| way == Way::Background && report.pages > 0;
    let report = transfer::wait(machine, MEMORY_DEADLINE, fixed).await?;
    if matches!(report.phase, Phase::Failed | Phase::Cancelled | Phase::None) {
        return Err(transfer::failure(&report, Some(path)));
    }
    let mut paused = Duration::ZERO;
    if was_running {
        machine.command("cont", Value::Null).await?;
        super::reached(machine, "cont", |view| view.seen.power == PowerState::Running).await?;
        paused = begun.elapsed();
    }
    transfer::complete(machine, MEMORY_DEADLINE, Some(path)).await?;
    Ok(paused)
}

/// After a failure: nothing of the snapshot is left, and the guest goes on as it was.
async fn undo(machine: &Machine, disk: &Path, memory: &MemoryDir, snapshot: SnapshotId, was_running: bool) {
    let undone = async {
        let qmp = machine.qmp("migrate_cancel")?;
        transfer::call_off(&qmp).await?;
        if was_running {
            transfer::go_on(&qmp).await?;
        }
        forget_live(&qmp, disk, snapshot).await
    };
    if let Err(error) = undone.await {
        tracing::warn!(id = %machine.id, %error, "a snapshot that failed may have left something in the disk");
    }
    if let Err(error) = memory.remove(Some(snapshot)) {
        tracing::warn!(id = %machine.id, %error, "a snapshot that failed has left something");
    }
    memory.tidy();
}

impl Shared {
    /// The hardware of a VM.
    pub(super) fn facts(&self, id: vbm_core::VmId) -> Result<MachineFacts> {
        Ok(self.keep(id).read("machine.json")?.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_a_disk_are_ours_or_left_alone() {
        let id = SnapshotId::from_uuid(uuid::Uuid::from_u128(7));
        for content in [SnapshotContent::Disk, SnapshotContent::DiskAndMemory] {
            assert_eq!(parse(&name(id, content)), Some((id, content)));
        }
        for foreign in ["", "before-upgrade", "+memory", "1"] {
            assert_eq!(parse(foreign), None, "{foreign}");
        }
    }
}
