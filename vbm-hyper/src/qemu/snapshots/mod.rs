//! Snapshots: the disks' inside their qcow2 files, the memory beside the root disk.
//!
//! ```text
//!   take, at rest   qemu-img snapshot -c, disk after disk                                 rest
//!   take, running   all disks in one transaction; with memory, the guest is halted        live
//!   revert          qemu-img snapshot -a, and with memory: a new process that loads it
//!   export          qemu-img convert -l                                                   export
//! ```
//!
//! - What it is called in a disk says what it is: see `names`. It counts once the root disk has it, and its memory is whole.
//! - Work that a kill cuts in two is undone or brought to its end by whoever comes next: see `beside`.
//! - After a revert the guest's clock goes on from the moment of the snapshot: nothing in the guest is told.
//! - Data that is written after a snapshot is copied first, as ever in a qcow2 file; the snapshot's clusters stay in the file
//!   until it is deleted. Why not overlays: `docs/adr/0011-snapshots-inside-the-disk.md`.

mod beside;
mod export;
mod live;
mod names;
mod rest;

pub(super) use export::Readers;
pub(super) use live::{settle as settle_live, thaw_left};
pub(super) use rest::settle as settle_at_rest;

use super::{
    Entry, QemuDriver, Shared, errand,
    keeper::Machine,
    memory::{Kept, MemoryDir},
    record::MachineFacts,
    start::{self, Reservation},
};
use crate::{
    Error, ExportedDisk, NicBackend, OpCx, Result, Seen, SnapshotInfo, SnapshotRequest, SnapshotTaken,
    Snapshots, VmDefinition, driver::not_for,
};
use async_trait::async_trait;
use beside::{Beside, Todo};
use std::{path::Path, sync::Arc, time::Duration};
use vbm_core::{Consistency, ErrorKind, PowerEvent, PowerState, SnapshotContent, SnapshotId};

/// The snapshots of a VM that can be gone back to.
async fn all(root_disk: &Path) -> Result<Vec<(SnapshotId, Consistency)>> {
    let memory = MemoryDir::beside(root_disk);
    let hidden = Beside::of(root_disk).todo()?.and_then(|todo| todo.hides());
    let mut all = names::all_in(root_disk).await?;
    all.retain(|(id, kind)| Some(*id) != hidden && (*kind != Consistency::WithMemory || memory.has(*id)));
    Ok(all)
}

#[async_trait]
impl Snapshots for QemuDriver {
    async fn take(
        &self,
        cx: &OpCx,
        definition: &VmDefinition,
        request: SnapshotRequest,
    ) -> Result<SnapshotTaken> {
        cx.go_on("a snapshot")?;
        let shared = &self.shared;
        shared.open()?;
        let there = all(&definition.root_disk).await?;
        if let Some((_, kind)) = there.into_iter().find(|(id, _)| *id == request.id) {
            return Ok(SnapshotTaken::new(kind, Duration::ZERO));
        }
        let (cx, run, vm) = (cx.clone(), Arc::clone(shared), definition.clone());
        match shared.known(definition.id) {
            Entry::Live(machine) => {
                let place = errand::place(&machine)?;
                errand::run(shared, async move {
                    let _place = place;
                    live::take(&cx, &run, &machine, &vm, request).await
                })
                .await
            }
            entry => {
                at_rest(entry.seen().power, "take a snapshot of")?;
                let reserved = Reservation::hold(shared, definition.id, |power| {
                    at_rest(power, "take a snapshot of")
                })?;
                errand::run(shared, async move {
                    let _reserved = reserved;
                    take_at_rest(&cx, &run, &vm, request.id).await
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
        let there = all(&definition.root_disk).await?;
        let found = there.into_iter().find(|(id, _)| *id == snapshot);
        let (_, kind) = found.ok_or(Error::NoSuchSnapshot {
            vm: definition.id,
            snapshot,
        })?;
        let name = names::name(snapshot, kind);
        whole(definition, snapshot, &name).await?;
        let kept = match kind {
            Consistency::WithMemory => {
                let kept = MemoryDir::beside(&definition.root_disk).kept(snapshot)?;
                let kept = kept.map(|kept| loadable(kept, definition)).transpose()?;
                prepared.fits(kept.as_ref())?;
                kept
            }
            _ => None,
        };
        let reserved = Reservation::hold(shared, definition.id, |power| {
            power.after(PowerEvent::Restore).map(drop).map_err(Error::Refused)
        })?;
        cx.go_on("a revert")?;
        let (run, vm, work) = (Arc::clone(shared), definition.clone(), cx.clone());
        errand::run(shared, async move {
            revert_disks(&work, &run, &vm, snapshot, &name).await?;
            reserved.settle_off()
        })
        .await?;
        match kept {
            None => Ok(Seen::resting(PowerState::Off)),
            Some(kept) => {
                cx.report("reading its memory", 0, kept.memory_bytes);
                start::resume(shared, definition, &prepared, &kept, None).await
            }
        }
    }

    async fn delete(&self, cx: &OpCx, definition: &VmDefinition, snapshot: SnapshotId) -> Result<()> {
        cx.go_on("the deletion of a snapshot")?;
        let shared = &self.shared;
        shared.open()?;
        if shared.readers.has(snapshot) {
            return Err(Error::Busy {
                vm: definition.id,
                job: "export of the snapshot",
            });
        }
        let (run, vm) = (Arc::clone(shared), definition.clone());
        match shared.known(definition.id) {
            Entry::Live(machine) => {
                let place = errand::place(&machine)?;
                errand::run(shared, async move {
                    let _place = place;
                    delete_live(&machine, &vm, snapshot).await
                })
                .await
            }
            _ => {
                let reserved = Reservation::hold(shared, definition.id, |power| match power {
                    PowerState::Saved => Ok(()),
                    power => at_rest(power, "delete a snapshot of"),
                })?;
                errand::run(shared, async move {
                    let went_back = rest::finish(&run, &vm).await?;
                    let deleted = delete_at_rest(&vm, snapshot).await;
                    if went_back {
                        reserved.settle_off()?;
                    }
                    deleted
                })
                .await
            }
        }
    }

    async fn list(&self, definition: &VmDefinition) -> Result<Vec<(SnapshotId, SnapshotContent)>> {
        self.shared.open()?;
        let all = all(&definition.root_disk).await?;
        Ok(all.into_iter().map(|(id, kind)| (id, kind.content())).collect())
    }

    async fn tree(&self, definition: &VmDefinition) -> Result<Vec<SnapshotInfo>> {
        self.shared.open()?;
        let all = all(&definition.root_disk).await?;
        let tree = Beside::of(&definition.root_disk).tree()?;
        let there = |id: &SnapshotId| all.iter().any(|(known, _)| known == id);
        let info = |(id, kind): &(SnapshotId, Consistency)| SnapshotInfo {
            parent: tree.snapshots.get(id).and_then(|node| node.parent).filter(&there),
            current: tree.current == Some(*id),
            ..SnapshotInfo::new(*id, *kind)
        };
        Ok(all.iter().map(info).collect())
    }

    async fn export(
        &self,
        cx: &OpCx,
        definition: &VmDefinition,
        snapshot: SnapshotId,
        dir: &Path,
    ) -> Result<Vec<ExportedDisk>> {
        self.shared.open()?;
        export::export(cx, &self.shared, definition, snapshot, dir).await
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

async fn take_at_rest(
    cx: &OpCx,
    shared: &Shared,
    definition: &VmDefinition,
    snapshot: SnapshotId,
) -> Result<SnapshotTaken> {
    rest::finish(shared, definition).await?;
    let disks = names::disks_of(definition);
    let beside = Beside::of(&definition.root_disk);
    let before = beside.tree()?;
    // Before anything is changed: all of them can hold snapshots. And what somebody has left is removed.
    rest::forget(&disks, &disks, snapshot).await?;
    beside.begin(&Todo::Take {
        snapshot,
        disks: disks.clone(),
        freezing: false,
        before: before.clone(),
    })?;
    let take = async {
        let name = names::name(snapshot, Consistency::Clean);
        rest::create(cx, &disks, &name).await?;
        let mut tree = before.clone();
        tree.take(snapshot, disks.clone());
        beside.set_tree(&tree)?;
        beside.done()
    };
    let Err(error) = take.await else {
        return Ok(SnapshotTaken::new(Consistency::Clean, Duration::ZERO));
    };
    // What cannot be undone now stays noted, and is undone by whoever comes next.
    let undone = async {
        rest::undo_take(&beside, &disks, snapshot, &before).await?;
        beside.done()
    };
    if let Err(failed) = undone.await {
        tracing::warn!(id = %definition.id, error = %failed, "a snapshot that failed is undone later");
    }
    Err(error)
}

/// Whether a VM has the disks of a snapshot, each with it inside.
async fn whole(definition: &VmDefinition, snapshot: SnapshotId, name: &str) -> Result<()> {
    let had = Beside::of(&definition.root_disk).tree()?.volumes(snapshot);
    // An older daemon knew of no disk but the root disk.
    if let Some(error) = names::other_disks(definition, &had.unwrap_or_default()) {
        return Err(error);
    }
    for disk in names::disks_of(definition) {
        if !names::of(&disk.path, snapshot)
            .await?
            .iter()
            .any(|found| found == name)
        {
            return Err(Error::Corrupt {
                path: disk.path,
                why: format!("its part of the snapshot {snapshot} is lost"),
            });
        }
    }
    Ok(())
}

/// A memory that can be loaded into a VM: all of it is there, and the VM has the hardware for it.
fn loadable(kept: Kept, definition: &VmDefinition) -> Result<Kept> {
    kept.whole()?;
    match kept.differs(definition) {
        None => Ok(kept),
        Some(why) => Err(Error::Refused(vbm_core::Error::new(
            ErrorKind::Conflict,
            format!("{} cannot go back to a snapshot with memory", definition.name),
            why,
            "give it back the hardware that it had, then go back",
        ))),
    }
}

async fn revert_disks(
    cx: &OpCx,
    shared: &Shared,
    definition: &VmDefinition,
    snapshot: SnapshotId,
    name: &str,
) -> Result<()> {
    let beside = Beside::of(&definition.root_disk);
    rest::finish(shared, definition).await?;
    let disks = names::disks_of(definition);
    beside.begin(&Todo::Revert {
        snapshot,
        name: name.to_owned(),
        disks: disks.clone(),
    })?;
    rest::apply(cx, &disks, name).await?;
    rest::went_back_to(shared, &beside, definition, snapshot)?;
    beside.done()
}

async fn delete_live(machine: &Machine, definition: &VmDefinition, snapshot: SnapshotId) -> Result<()> {
    let qmp = machine.qmp("blockdev-snapshot-delete-internal-sync")?;
    live::settle(&qmp, &definition.root_disk, None).await?;
    let beside = Beside::of(&definition.root_disk);
    let disks = beside.tree()?.disks(definition, snapshot);
    beside.begin(&Todo::Delete {
        snapshot,
        disks: disks.clone(),
    })?;
    let attached = live::with_nodes(&qmp, disks.clone()).await?;
    live::forget(&qmp, &attached, snapshot).await?;
    let away: Vec<_> = disks
        .into_iter()
        .filter(|disk| !attached.contains(disk))
        .collect();
    rest::forget(&away, &[], snapshot).await?;
    rest::deleted(&beside, snapshot)?;
    beside.done()
}

async fn delete_at_rest(definition: &VmDefinition, snapshot: SnapshotId) -> Result<()> {
    let beside = Beside::of(&definition.root_disk);
    let disks = beside.tree()?.disks(definition, snapshot);
    beside.begin(&Todo::Delete {
        snapshot,
        disks: disks.clone(),
    })?;
    rest::delete(&beside, definition, &disks, snapshot).await?;
    beside.done()
}

impl Shared {
    /// The hardware of a VM.
    pub(super) fn facts(&self, id: vbm_core::VmId) -> Result<MachineFacts> {
        Ok(self.keep(id).read("machine.json")?.unwrap_or_default())
    }
}
