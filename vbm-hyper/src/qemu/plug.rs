//! The journal of hot-plug: what was begun with a device, so that the next daemon finishes or undoes it.
//!
//! ```text
//!   plug file --> commands to QEMU --> books (manifest, machine.json) --> plug file gone
//!        '-- found by the next daemon --> QEMU is asked what it has: that is written into the books, the rest is cleared away
//! ```
//!
//! QEMU is the truth: a device that it has is in the definition, one that it has not is not, at whatever step the daemon died.
//! So a detachment whose guest let go while nobody looked is finished too, with or without a journal.

use super::{
    books::Books,
    qmp::Qmp,
    record::VmDir,
    slots::{self, Layout},
};
use crate::{DiskDefinition, NicDefinition, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{collections::HashSet, path::PathBuf};
use vbm_core::{PortId, VolumeId};

const FILE: &str = "plug";
/// The device of the CD drive.
pub(super) const DRIVE: &str = "cd0";

/// What was begun. What is taken away needs no note: QEMU tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "plug")]
pub(super) enum Plug {
    /// A disk comes to a place.
    Disk { disk: DiskDefinition, at: usize },
    /// A NIC comes to a place.
    Nic { nic: NicDefinition, at: usize },
    /// Another medium comes into the drive, or none.
    Medium { medium: Option<PathBuf> },
}

impl Plug {
    pub(super) fn note(&self, dir: &VmDir) -> Result<()> {
        dir.write(FILE, self)
    }

    fn noted(dir: &VmDir) -> Option<Self> {
        dir.read(FILE).unwrap_or_else(|error| {
            tracing::warn!(%error, "what was being done with a device of a VM cannot be read");
            None
        })
    }

    pub(super) fn forget(dir: &VmDir) {
        if let Err(error) = crate::files::remove_if_there(&dir.file(FILE)) {
            tracing::warn!(%error, "a note of what was done with a device stays behind");
        }
    }
}

/// Brings definition and machine in line after a daemon is gone.
pub(super) async fn settle(qmp: &Qmp, dir: &VmDir, books: &Books) -> Result<()> {
    let (definition, slots) = (books.definition(), books.slots());
    if slots.layout == Layout::Flat {
        return Ok(());
    }
    let noted = Plug::noted(dir);
    if noted.is_none() && definition.disks.is_empty() && definition.nics.is_empty() {
        return Ok(());
    }
    let there = devices(qmp).await?;
    match noted {
        Some(Plug::Disk { disk, at }) if there.contains(&slots::disk_device(disk.volume)) => {
            books.has_disk(&disk, at)?;
        }
        Some(Plug::Disk { disk, .. }) => drop_disk(qmp, disk.volume).await,
        Some(Plug::Nic { nic, at }) if there.contains(&slots::nic_device(nic.port)) => {
            books.has_nic(&nic, at)?;
        }
        Some(Plug::Nic { nic, .. }) => drop_nic(qmp, nic.port).await,
        Some(Plug::Medium { medium }) => {
            let medium = medium.filter(|medium| definition.hardware.cdrom.as_ref() != Some(medium));
            let inside = inserted(qmp).await?;
            let known = [medium, definition.hardware.cdrom.clone()];
            let found = known
                .into_iter()
                .flatten()
                .find(|path| path.to_str() == inside.as_deref());
            books.has_medium(found)?;
        }
        None => {}
    }
    for disk in &definition.disks {
        if !there.contains(&slots::disk_device(disk.volume)) {
            drop_disk(qmp, disk.volume).await;
            books.lost_disk(disk.volume)?;
        }
    }
    for nic in &definition.nics {
        if !there.contains(&slots::nic_device(nic.port)) {
            drop_nic(qmp, nic.port).await;
            books.lost_nic(nic.port)?;
        }
    }
    Plug::forget(dir);
    Ok(())
}

/// The ids of all devices that have one.
pub(super) async fn devices(qmp: &Qmp) -> Result<HashSet<String>> {
    let listed = qmp
        .execute("qom-list", json!({ "path": "/machine/peripheral" }))
        .await?;
    let names = listed.as_array().into_iter().flatten();
    let names = names.filter_map(|entry| entry["name"].as_str());
    Ok(names.map(str::to_owned).collect())
}

/// The file in the drive.
async fn inserted(qmp: &Qmp) -> Result<Option<String>> {
    let blocks = qmp.execute("query-block", Value::Null).await?;
    let mut blocks = blocks.as_array().into_iter().flatten();
    let drive = blocks.find(|block| block["qdev"] == DRIVE);
    let file = drive.and_then(|drive| drive["inserted"]["image"]["filename"].as_str());
    Ok(file.map(str::to_owned))
}

/// Lets go of a disk's file. One that is not there is fine.
pub(super) async fn drop_disk(qmp: &Qmp, volume: VolumeId) {
    let node = slots::disk_node(volume);
    clear(qmp, "blockdev-del", json!({ "node-name": node })).await;
}

/// Lets go of a NIC's tap. One that is not there is fine.
pub(super) async fn drop_nic(qmp: &Qmp, port: PortId) {
    clear(qmp, "netdev_del", json!({ "id": slots::nic_tap(port) })).await;
}

async fn clear(qmp: &Qmp, command: &str, arguments: Value) {
    if let Err(error) = qmp.execute(command, arguments).await {
        tracing::debug!(command, %error, "there was nothing to let go of");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;
    use vbm_core::VmId;

    #[test]
    fn a_note_is_read_back_and_garbage_is_no_note() {
        let root = tempfile::tempdir().unwrap();
        let dir = VmDir::new(root.path(), VmId::from_uuid(Uuid::from_u128(1)));
        dir.create().unwrap();
        let plug = Plug::Disk {
            disk: DiskDefinition {
                volume: VolumeId::from_uuid(Uuid::from_u128(2)),
                path: "/d".into(),
                read_only: true,
            },
            at: 3,
        };
        assert_eq!(Plug::noted(&dir), None);
        plug.note(&dir).unwrap();
        assert_eq!(Plug::noted(&dir), Some(plug));
        std::fs::write(dir.file(FILE), b"{").unwrap();
        assert_eq!(Plug::noted(&dir), None);
        Plug::forget(&dir);
        Plug::forget(&dir);
        assert!(!dir.file(FILE).exists());
    }
}
