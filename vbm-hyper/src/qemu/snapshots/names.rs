//! Which disks a snapshot is of, and what it is called in them: pure but for the reading of names.
//!
//! ```text
//!   <id>           clean         of a VM that was off
//!   <id>+crash     crash         of its disks while it ran
//!   <id>+frozen    frozen        the same, with the guest's file systems frozen
//!   <id>+memory    with memory   counts only once the memory is whole
//! ```

use crate::{Error, Result, VmDefinition, disk, qemu::slots};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use vbm_core::{Consistency, SnapshotId, VolumeId};

/// The node of the root disk, as the command line names it.
pub(super) const ROOT: &str = "root";
/// How many hex digits of a volume's id are in the name of its node: such a name has at most 31 bytes.
const NODE_DIGITS: usize = 30;

const KINDS: [(Consistency, &str); 3] = [
    (Consistency::Crash, "+crash"),
    (Consistency::Frozen, "+frozen"),
    (Consistency::WithMemory, "+memory"),
];

/// A disk that snapshots are taken of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Disk {
    /// `None`: the root disk.
    pub(super) volume: Option<VolumeId>,
    /// What QEMU calls it while the VM runs.
    pub(super) node: String,
    pub(super) path: PathBuf,
}

/// What the guest may write to. The root disk comes last: a snapshot counts once it is in there, and no more once it is not.
pub(super) fn disks_of(definition: &VmDefinition) -> Vec<Disk> {
    let data = definition.disks.iter().filter(|disk| !disk.read_only);
    let data = data.map(|disk| Disk {
        volume: Some(disk.volume),
        node: slots::disk_node(disk.volume),
        path: disk.path.clone(),
    });
    let root = Disk {
        volume: None,
        node: ROOT.into(),
        path: definition.root_disk.clone(),
    };
    data.chain([root]).collect()
}

/// Whether a node of QEMU is a disk that a definition can have.
pub(super) fn is_disk(node: &str) -> bool {
    let is_data = |digits: &str| {
        digits.len() == NODE_DIGITS
            && digits
                .bytes()
                .all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase())
    };
    node == ROOT || node.strip_prefix('d').is_some_and(is_data)
}

pub(super) fn name(snapshot: SnapshotId, consistency: Consistency) -> String {
    let suffix = KINDS.iter().find(|(kind, _)| *kind == consistency);
    format!("{snapshot}{}", suffix.map_or("", |(_, suffix)| suffix))
}

/// The snapshot that a name in a disk stands for; `None`: somebody else's.
pub(super) fn parse(name: &str) -> Option<(SnapshotId, Consistency)> {
    let found = KINDS
        .iter()
        .find_map(|(kind, suffix)| Some((name.strip_suffix(suffix)?, *kind)));
    let (id, kind) = found.unwrap_or((name, Consistency::Clean));
    Some((id.parse().ok()?, kind))
}

/// The snapshots of ours in a disk, whole or half.
pub(super) async fn all_in(disk: &Path) -> Result<Vec<(SnapshotId, Consistency)>> {
    let disk = disk.to_owned();
    let names = disk::blocking(move || disk::snapshots::names(&disk)).await?;
    Ok(names.iter().filter_map(|name| parse(name)).collect())
}

/// The names in a disk that stand for one snapshot.
pub(super) async fn of(disk: &Path, snapshot: SnapshotId) -> Result<Vec<String>> {
    let all = all_in(disk).await?;
    let ours = all.into_iter().filter(|(id, _)| *id == snapshot);
    Ok(ours.map(|(id, kind)| name(id, kind)).collect())
}

/// Why the disks of a VM are not those of a snapshot, if they are not. `had` is what it had beside the root disk.
pub(super) fn other_disks(vm: &VmDefinition, had: &[VolumeId]) -> Option<Error> {
    let has: Vec<VolumeId> = disks_of(vm).iter().filter_map(|disk| disk.volume).collect();
    let (why, fix) = if let Some(new) = has.iter().find(|volume| !had.contains(volume)) {
        (
            format!("volume {new} was attached after the snapshot was taken: nobody knows how it was then"),
            "detach that volume, then go back",
        )
    } else {
        let gone = had.iter().find(|volume| !has.contains(volume))?;
        (
            format!("volume {gone} belonged to it then, and is not attached now"),
            "attach that volume again, then go back",
        )
    };
    let what = format!("{} cannot go back to its snapshot", vm.name);
    Some(Error::Refused(vbm_core::Error::new(
        vbm_core::ErrorKind::Conflict,
        what,
        why,
        fix,
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BootSource, DiskDefinition, Hardware};
    use uuid::Uuid;
    use vbm_core::VmId;

    fn volume(number: u128) -> VolumeId {
        VolumeId::from_uuid(Uuid::from_u128(number << 100))
    }

    fn vm(disks: &[(u128, bool)]) -> VmDefinition {
        let disk = |(number, read_only): &(u128, bool)| DiskDefinition {
            volume: volume(*number),
            path: format!("/pool/{number}.qcow2").into(),
            read_only: *read_only,
        };
        VmDefinition {
            id: VmId::from_uuid(Uuid::from_u128(1)),
            name: "web-1".parse().unwrap(),
            vcpus: 1,
            memory_mib: 64,
            root_disk: "/pool/root.qcow2".into(),
            boot: BootSource::Disk,
            disks: disks.iter().map(disk).collect(),
            hardware: Hardware::default(),
            nics: vec![],
        }
    }

    #[test]
    fn names_in_a_disk_are_ours_or_left_alone() {
        let id = SnapshotId::from_uuid(Uuid::from_u128(7));
        for kind in [
            Consistency::Clean,
            Consistency::Crash,
            Consistency::Frozen,
            Consistency::WithMemory,
        ] {
            assert_eq!(parse(&name(id, kind)), Some((id, kind)));
        }
        for foreign in ["", "before-upgrade", "+memory", "1", "+crash+memory"] {
            assert_eq!(parse(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn the_root_disk_comes_last_and_what_is_read_only_not_at_all() {
        let disks = disks_of(&vm(&[(1, false), (2, true), (3, false)]));
        let nodes: Vec<_> = disks.iter().map(|disk| disk.node.as_str()).collect();
        assert_eq!(
            nodes,
            [
                "d000000100000000000000000000000",
                "d000000300000000000000000000000",
                "root"
            ]
        );
        assert!(nodes.iter().all(|node| node.len() <= 31 && is_disk(node)));
        assert!(!is_disk("data") && !is_disk("d12") && !is_disk("cd0"));
    }

    #[test]
    fn disks_that_came_or_went_since_are_told_with_what_to_do() {
        let vm = vm(&[(1, false), (2, true)]);
        assert!(other_disks(&vm, &[volume(1)]).is_none());
        let told = |had: &[VolumeId]| vbm_core::Error::from(other_disks(&vm, had).unwrap());
        assert!(told(&[]).why().contains("attached after") && told(&[]).fix().contains("detach"));
        let gone = told(&[volume(1), volume(9)]);
        assert!(gone.why().contains("not attached now") && gone.fix().contains("attach"));
    }
}
