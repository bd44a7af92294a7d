//! Snapshots of simulated VMs: of all disks that the guest may write to, kept with the root disk.

use super::{
    Fault, SimDriver,
    facets::refused,
    guest::{Memory, SimSnapshot, Site},
};
use crate::{
    Error, ExportedDisk, NicBackend, OpCx, Result, Seen, SnapshotInfo, SnapshotRequest, SnapshotTaken,
    Snapshots, VmDefinition,
    driver::not_for,
    limits::{FREEZE_DEADLINE, THAW_DEADLINE},
};
use async_trait::async_trait;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::time::sleep;
use vbm_core::{
    Consistency, DriverKind, ErrorKind, Freeze, PauseReason, PowerEvent, PowerState, SnapshotContent,
    SnapshotId, VolumeId,
};

/// The disks that a guest may write to, the root disk first.
fn disks_of(definition: &VmDefinition) -> Vec<(Option<VolumeId>, PathBuf)> {
    let data = definition.disks.iter().filter(|disk| !disk.read_only);
    [(None, definition.root_disk.clone())]
        .into_iter()
        .chain(data.map(|disk| (Some(disk.volume), disk.path.clone())))
        .collect()
}

/// Whether the VM has a memory that can be kept, and whether it runs.
fn allowed(power: PowerState) -> Result<bool> {
    match power {
        PowerState::Off | PowerState::Crashed(_) => Ok(false),
        PowerState::Running | PowerState::Paused(_) => Ok(true),
        power => Err(not_for(
            "take a snapshot of",
            power,
            "off, crashed, running or paused",
        )),
    }
}

fn conflict(definition: &VmDefinition, why: String, fix: &str) -> Error {
    let what = format!("{} cannot go back to its snapshot", definition.name);
    Error::Refused(vbm_core::Error::new(ErrorKind::Conflict, what, why, fix))
}

impl SimSnapshot {
    /// Whether a VM has the disks that it was taken of.
    fn fits(&self, definition: &VmDefinition) -> Result<()> {
        let has: Vec<_> = disks_of(definition)
            .into_iter()
            .map(|(volume, _)| volume)
            .collect();
        let had: Vec<_> = self.disks.iter().map(|(volume, _, _)| *volume).collect();
        if let Some(volume) = has.iter().flatten().find(|v| !had.contains(&Some(**v))) {
            let why = format!("volume {volume} was attached after the snapshot was taken");
            return Err(conflict(definition, why, "detach that volume, then go back"));
        }
        match had.iter().flatten().find(|v| !has.contains(&Some(**v))) {
            None => Ok(()),
            Some(volume) => {
                let why = format!("volume {volume} belonged to it then, and is not attached now");
                Err(conflict(
                    definition,
                    why,
                    "attach that volume again, then go back",
                ))
            }
        }
    }

    fn write_back(&self, site: &Site, definition: &VmDefinition) {
        for (volume, path) in disks_of(definition) {
            let word = self.disks.iter().find(|(had, ..)| *had == volume);
            if let Some((_, _, word)) = word {
                site.disk(&path, |disk| disk.word.clone_from(word));
            }
        }
    }
}

impl SimDriver {
    fn find(&self, definition: &VmDefinition, snapshot: SnapshotId) -> Option<SimSnapshot> {
        self.world().site().disk(&definition.root_disk, |disk| {
            disk.snapshots.get(&snapshot).cloned()
        })
    }

    /// What freezing the guest comes to: the consistency, and why it is not more.
    async fn frozen(&self, definition: &VmDefinition, how: Freeze) -> Result<(Consistency, Option<String>)> {
        let id = definition.id;
        if how == Freeze::No {
            return Ok((Consistency::Crash, None));
        }
        let why = match self.power(id) {
            PowerState::Running => self.world().lasting(id, |fault| match fault {
                Fault::CannotFreeze(why) => Some(why.clone()),
                _ => None,
            }),
            power if how == Freeze::Required => {
                return Err(not_for("freeze the file systems of", power, "running"));
            }
            power => Some(format!("it is {power}")),
        };
        match why {
            None => {
                sleep(self.world().latency().command.min(FREEZE_DEADLINE)).await;
                sleep(self.world().latency().command.min(THAW_DEADLINE)).await;
                Ok((Consistency::Frozen, None))
            }
            Some(why) if how == Freeze::Required => Err(Error::Unsupported {
                driver: DriverKind::Sim,
                what: "freeze the file systems of this guest".into(),
                why,
            }),
            Some(why) => Ok((
                Consistency::Crash,
                Some(format!("its file systems were not frozen: {why}")),
            )),
        }
    }
}

#[async_trait]
impl Snapshots for SimDriver {
    async fn take(
        &self,
        cx: &OpCx,
        definition: &VmDefinition,
        request: SnapshotRequest,
    ) -> Result<SnapshotTaken> {
        cx.go_on("a snapshot")?;
        self.is_open()?;
        let (world, id, snapshot) = (self.world(), definition.id, request.id);
        if let Some(found) = self.find(definition, snapshot) {
            return Ok(SnapshotTaken::new(found.consistency, Duration::ZERO));
        }
        let live = allowed(self.power(id))?;
        let (kind, note) = match (live, request.memory) {
            (false, _) => (Consistency::Clean, None),
            (true, true) => (Consistency::WithMemory, None),
            (true, false) => {
                cx.run("a snapshot", self.frozen(definition, request.freeze))
                    .await?
            }
        };
        let latency = world.latency();
        let mib = u64::from(definition.memory_mib);
        cx.report("writing its memory", 0, mib);
        let written = async {
            sleep(latency.transfer).await;
            Ok(())
        };
        cx.run("a snapshot", written).await?;
        cx.report("writing its memory", mib, mib);
        let fails = world.fails_now(id, |fault| match fault {
            Fault::NextSnapshotFails(why) => Some(why),
            _ => None,
        });
        if let Some(why) = fails {
            return Err(refused("snapshot", why));
        }
        if allowed(self.power(id))? != live {
            return Err(refused("snapshot", "it ended or began meanwhile".into()));
        }
        let mut vms = world.vms();
        let vm = vms.get_mut(&id).filter(|_| live);
        let halts = vm.as_ref().is_some_and(|vm| vm.seen.power == PowerState::Running)
            && kind == Consistency::WithMemory;
        let memory = vm.map(|vm| {
            if halts {
                world.apply(id, vm, PowerEvent::Pause(PauseReason::Hypervisor));
                world.apply(id, vm, PowerEvent::Resume);
            }
            vm.memory.clone()
        });
        let word = |path: &Path| world.site().disk(path, |disk| disk.word.clone());
        let disks = disks_of(definition)
            .into_iter()
            .map(|(volume, path)| {
                let word = word(&path);
                (volume, path, word)
            })
            .collect();
        let memory = memory.filter(|_| kind == Consistency::WithMemory);
        world.site().disk(&definition.root_disk, |disk| {
            let taken = SimSnapshot {
                consistency: kind,
                disks,
                memory: memory.unwrap_or_default(),
                parent: disk.current,
            };
            disk.snapshots.insert(snapshot, taken);
            disk.current = Some(snapshot);
        });
        let paused = if halts { latency.command } else { Duration::ZERO };
        Ok(SnapshotTaken::new(kind, paused).but(note))
    }

    async fn revert(
        &self,
        cx: &OpCx,
        definition: &VmDefinition,
        snapshot: SnapshotId,
        nics: Vec<NicBackend>,
    ) -> Result<Seen> {
        cx.go_on("a revert")?;
        self.is_open()?;
        definition.check(nics.len())?;
        let (world, id) = (self.world(), definition.id);
        self.power(id).after(PowerEvent::Restore)?;
        let found = self
            .find(definition, snapshot)
            .ok_or(Error::NoSuchSnapshot { vm: id, snapshot })?;
        found.fits(definition)?;
        sleep(world.latency().command).await;
        self.power(id).after(PowerEvent::Restore)?;
        cx.go_on("a revert")?;
        world.end(id, PowerEvent::ForceOff);
        found.write_back(world.site(), definition);
        world.site().disk(&definition.root_disk, |disk| {
            disk.current = Some(snapshot);
        });
        if found.consistency.content() == SnapshotContent::Disk {
            return Ok(Seen::resting(PowerState::Off));
        }
        self.resume(definition, nics, found.memory, PowerEvent::StartFailed)
            .await
    }

    async fn delete(&self, cx: &OpCx, definition: &VmDefinition, snapshot: SnapshotId) -> Result<()> {
        cx.go_on("the deletion of a snapshot")?;
        self.is_open()?;
        sleep(self.world().latency().command).await;
        self.world().site().disk(&definition.root_disk, |disk| {
            let parent = disk.snapshots.remove(&snapshot).and_then(|gone| gone.parent);
            for other in disk.snapshots.values_mut() {
                if other.parent == Some(snapshot) {
                    other.parent = parent;
                }
            }
            if disk.current == Some(snapshot) {
                disk.current = parent;
            }
        });
        Ok(())
    }

    async fn list(&self, definition: &VmDefinition) -> Result<Vec<(SnapshotId, SnapshotContent)>> {
        let tree = self.tree(definition).await?;
        Ok(tree
            .into_iter()
            .map(|info| (info.id, info.consistency.content()))
            .collect())
    }

    async fn tree(&self, definition: &VmDefinition) -> Result<Vec<SnapshotInfo>> {
        self.is_open()?;
        Ok(self.world().site().disk(&definition.root_disk, |disk| {
            let info = |(id, snapshot): (&SnapshotId, &SimSnapshot)| SnapshotInfo {
                parent: snapshot.parent,
                current: disk.current == Some(*id),
                ..SnapshotInfo::new(*id, snapshot.consistency)
            };
            disk.snapshots.iter().map(info).collect()
        }))
    }

    async fn export(
        &self,
        cx: &OpCx,
        definition: &VmDefinition,
        snapshot: SnapshotId,
        dir: &Path,
    ) -> Result<Vec<ExportedDisk>> {
        self.is_open()?;
        let found = self.find(definition, snapshot).ok_or(Error::NoSuchSnapshot {
            vm: definition.id,
            snapshot,
        })?;
        let read = async {
            sleep(self.world().latency().transfer).await;
            Ok(())
        };
        cx.run("an export", read).await?;
        let mut made: BTreeMap<PathBuf, ExportedDisk> = BTreeMap::new();
        for (volume, _, word) in found.disks {
            let name = volume.map_or_else(|| "root".to_owned(), |volume| volume.to_string());
            let path = dir.join(format!("{name}.simulated"));
            std::fs::write(&path, &word).map_err(Error::io("write", &path))?;
            made.insert(path.clone(), ExportedDisk::new(volume, path, word.len() as u64));
        }
        Ok(made.into_values().collect())
    }
}

/// What a test sees and changes of a simulated VM past its guest.
impl super::SimWorld {
    /// The word on a disk.
    pub fn disk_word(&self, disk: &Path) -> String {
        self.site().disk(disk, |disk| disk.word.clone())
    }

    /// Writes a word to a disk.
    pub fn write_disk(&self, disk: &Path, word: &str) {
        self.site().disk(disk, |disk| word.clone_into(&mut disk.word));
    }

    /// The word that the guest of a VM remembers, if it has a memory.
    pub fn memory_word(&self, vm: vbm_core::VmId) -> Option<String> {
        let vms = self.vms();
        vms.get(&vm).map(|vm| vm.memory.word.clone())
    }

    /// Lets the guest of a VM remember a word.
    pub fn remember(&self, vm: vbm_core::VmId, word: &str) {
        if let Some(vm) = self.vms().get_mut(&vm) {
            vm.memory = Memory {
                word: word.to_owned(),
                ..vm.memory.clone()
            };
        }
    }
}
