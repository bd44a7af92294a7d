//! What is written down about a run while it goes on: its definition, and where its devices are, which hot-plug changes.
//!
//! ```text
//!   Machine --definition()--> Books --manifest--> run directory      until the run is over: then nothing is written any more
//!                               `-----machine.json--> state directory
//! ```

use super::{
    record::{MachineFacts, VmDir},
    slots::Slots,
};
use crate::{DiskDefinition, Error, NicDefinition, Result, VmDefinition};
use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use vbm_core::{PortId, VolumeId};

/// The books of one run.
#[derive(Debug)]
pub(super) struct Books {
    /// The run directory.
    dir: VmDir,
    /// The state directory.
    keep: VmDir,
    pages: Mutex<Pages>,
}

#[derive(Debug)]
struct Pages {
    definition: Arc<VmDefinition>,
    slots: Slots,
    closed: bool,
}

impl Books {
    pub(super) fn new(dir: VmDir, keep: VmDir, definition: VmDefinition, slots: Slots) -> Self {
        let pages = Pages {
            definition: Arc::new(definition),
            slots,
            closed: false,
        };
        Self {
            dir,
            keep,
            pages: Mutex::new(pages),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn definition(&self) -> Arc<VmDefinition> {
        Arc::clone(&self.lock().definition)
    }

    pub(super) fn slots(&self) -> Slots {
        self.lock().slots.clone()
    }

    /// Nothing is written from now on: the run is over, and what says that it goes on is cleared away.
    pub(super) fn close(&self) {
        self.lock().closed = true;
    }

    /// It has a disk more.
    pub(super) fn has_disk(&self, disk: &DiskDefinition, at: usize) -> Result<()> {
        self.change(|definition, slots| {
            slots.disks.insert(disk.volume, at);
            if !definition.disks.contains(disk) {
                definition.disks.push(disk.clone());
            }
        })
    }

    /// It has a disk less.
    pub(super) fn lost_disk(&self, volume: VolumeId) -> Result<()> {
        self.change(|definition, slots| {
            slots.disks.remove(&volume);
            definition.disks.retain(|disk| disk.volume != volume);
        })
    }

    /// It has a NIC more.
    pub(super) fn has_nic(&self, nic: &NicDefinition, at: usize) -> Result<()> {
        self.change(|definition, slots| {
            slots.nics.insert(nic.port, at);
            if !definition.nics.contains(nic) {
                definition.nics.push(nic.clone());
            }
        })
    }

    /// It has a NIC less.
    pub(super) fn lost_nic(&self, port: PortId) -> Result<()> {
        self.change(|definition, slots| {
            slots.nics.remove(&port);
            definition.nics.retain(|nic| nic.port != port);
        })
    }

    /// There is another medium in its drive, or none.
    pub(super) fn has_medium(&self, medium: Option<PathBuf>) -> Result<()> {
        self.change(|definition, _| definition.hardware.cdrom = medium)
    }

    /// Changes the books in memory, then on disk: first where devices are in all runs, then who runs.
    fn change(&self, change: impl FnOnce(&mut VmDefinition, &mut Slots)) -> Result<()> {
        let mut pages = self.lock();
        let (mut definition, mut slots) = ((*pages.definition).clone(), pages.slots.clone());
        change(&mut definition, &mut slots);
        pages.definition = Arc::new(definition);
        pages.slots = slots;
        if pages.closed {
            return Err(Error::Disconnected {
                command: "a change of devices".into(),
            });
        }
        let mut facts: MachineFacts = self.keep.read("machine.json")?.unwrap_or_default();
        facts.slots.clone_from(&pages.slots);
        self.keep.write("machine.json", &facts)?;
        if let Some(mut manifest) = self.dir.manifest()? {
            manifest.definition = (*pages.definition).clone();
            manifest.slots.clone_from(&pages.slots);
            self.dir.write("manifest", &manifest)?;
        }
        Ok(())
    }
}
