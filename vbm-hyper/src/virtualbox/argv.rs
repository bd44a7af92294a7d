//! The command lines that make a VM what its definition says: pure.
//!
//! A VM of ours has the id of VBM as its UUID and stands in the group [`GROUP`]. What has not both is not ours.

use crate::{Error, Result, VmDefinition};
use serde::{Deserialize, Serialize};
use std::path::Path;
use vbm_core::{SnapshotContent, SnapshotId, VmId};

/// The tag of the VMs that are ours.
pub(super) const GROUP: &str = "/vbm";
/// The one disk controller.
const CONTROLLER: &str = "disk";
/// The slots that VirtualBox has for NICs.
const NIC_SLOTS: usize = 8;
/// How the names of our snapshots begin: VirtualBox takes a bare UUID for one of its own.
const SNAPSHOT_PREFIX: &str = "vbm-";

/// How the screen of a VM is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Display {
    pub(super) port: u16,
    pub(super) password: String,
}

fn words(text: &str) -> Vec<String> {
    text.split_ascii_whitespace().map(str::to_owned).collect()
}

/// The name that people see in a list of VirtualBox. Unique, as VirtualBox wants it.
pub(super) fn machine_name(definition: &VmDefinition) -> String {
    format!("{}-{}", definition.name, definition.id)
}

pub(super) fn create(definition: &VmDefinition, machines: &Path) -> Vec<String> {
    let mut args = words("createvm --name");
    args.push(machine_name(definition));
    args.extend(words(&format!(
        "--groups {GROUP} --uuid {} --ostype Linux_64 --register --basefolder",
        definition.id
    )));
    args.push(machines.display().to_string());
    args
}

/// All settings but the disk. `nics` are interfaces of the host, one for each NIC.
pub(super) fn settings(
    definition: &VmDefinition,
    nics: &[String],
    serial: &Path,
    display: Option<&Display>,
) -> Vec<String> {
    let mut args = words(&format!(
        "modifyvm {} --cpus {} --memory {} --vram 16 --graphicscontroller vboxvga --firmware bios --ioapic on --rtc-use-utc on \
         --boot1 disk --boot2 none --boot3 none --boot4 none --audio-enabled off --mouse ps2 --usb-ohci off \
         --bios-boot-menu disabled --bios-logo-fade-in off --bios-logo-fade-out off --bios-logo-display-time 0",
        definition.id, definition.vcpus, definition.memory_mib
    ));
    args.push("--description".into());
    args.push(format!("{}: run by VBM; change it there", definition.name));
    for slot in 1..=NIC_SLOTS {
        match (definition.nics.get(slot - 1), nics.get(slot - 1)) {
            (Some(nic), Some(interface)) => {
                let mac: String = nic.mac.to_string().to_uppercase().replace(':', "");
                args.extend(words(&format!(
                    "--nic{slot} bridged --nic-type{slot} virtio --cable-connected{slot} on --mac-address{slot} {mac} --bridge-adapter{slot}"
                )));
                args.push(interface.clone());
            }
            _ => args.extend(words(&format!("--nic{slot} none"))),
        }
    }
    args.extend(words("--uart1 0x3F8 4 --uart-mode1 server"));
    args.push(serial.display().to_string());
    match display {
        Some(display) => args.extend(words(&format!(
            "--vrde on --vrde-extpack VNC --vrde-address 127.0.0.1 --vrde-port {} --vrde-multi-con on --vrde-property VNCPassword={}",
            display.port, display.password
        ))),
        None => args.extend(words("--vrde off")),
    }
    args
}

/// Virtio SCSI: VirtualBox's BIOS boots from it, and the kernels of cloud images have a driver for it, but none for SATA.
pub(super) fn add_controller(id: VmId) -> Vec<String> {
    words(&format!(
        "storagectl {id} --name {CONTROLLER} --add virtio --controller VirtIO --portcount 1 --bootable on"
    ))
}

/// Puts a disk into the one slot, or takes out what is there.
pub(super) fn attach(id: VmId, disk: Option<&Path>) -> Vec<String> {
    let mut args = words(&format!(
        "storageattach {id} --storagectl {CONTROLLER} --port 0 --device 0 --type hdd --medium"
    ));
    args.push(disk.map_or_else(|| "none".to_owned(), |disk| disk.display().to_string()));
    args
}

/// Plugs NICs into other interfaces, by their slots.
pub(super) fn replug(id: VmId, nics: &[(usize, &String)]) -> Vec<String> {
    let mut args = words(&format!("modifyvm {id}"));
    for (slot, interface) in nics {
        args.push(format!("--bridge-adapter{slot}"));
        args.push((*interface).clone());
    }
    args
}

/// A VM that runs goes on while its memory is written (`live`); VirtualBox does not have that of a paused one.
pub(super) fn take(id: VmId, snapshot: SnapshotId, content: SnapshotContent, live: bool) -> Vec<String> {
    let mut args = words(&format!(
        "snapshot {id} take {} --description",
        snapshot_name(snapshot)
    ));
    args.push(description(content));
    if live {
        args.push("--live".into());
    }
    args
}

/// `uuid` is VirtualBox's.
pub(super) fn restore(id: VmId, uuid: &str) -> Vec<String> {
    words(&format!("snapshot {id} restore {uuid}"))
}

/// `uuid` is VirtualBox's.
pub(super) fn delete(id: VmId, uuid: &str) -> Vec<String> {
    words(&format!("snapshot {id} delete {uuid}"))
}

/// The key under which `showvminfo --machinereadable` tells the disk in the slot.
pub(super) fn disk_key() -> String {
    format!("{CONTROLLER}-0-0")
}

pub(super) fn snapshot_name(id: SnapshotId) -> String {
    format!("{SNAPSHOT_PREFIX}{id}")
}

/// Which snapshot of ours a name is of; `None` for those that somebody took by hand.
pub(super) fn snapshot_id(name: &str) -> Option<SnapshotId> {
    name.strip_prefix(SNAPSHOT_PREFIX)?.parse().ok()
}

/// What a snapshot holds is written down in its description.
pub(super) fn description(content: SnapshotContent) -> String {
    content.to_string()
}

pub(super) fn content(description: &str) -> SnapshotContent {
    if description == SnapshotContent::DiskAndMemory.to_string() {
        SnapshotContent::DiskAndMemory
    } else {
        SnapshotContent::Disk
    }
}

/// Refuses what would be read as an option, or cannot be a name of an interface (`IFNAMSIZ` has 16 bytes with the final zero).
pub(super) fn check_interface(name: &str) -> Result<()> {
    let fine = (1..=15).contains(&name.len())
        && !name.starts_with('-')
        && name.chars().all(|c| c.is_ascii_graphic() && c != '/');
    if fine {
        Ok(())
    } else {
        Err(Error::invalid(
            format!("a NIC cannot be plugged into '{name}'"),
            "it is no name of a network interface",
            "give the name of an interface of this host",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Hardware;
    use crate::{BootSource, NicDefinition};
    use vbm_core::PortId;

    fn definition() -> VmDefinition {
        let uuid = uuid::Uuid::from_u128(0x0198_f000_0000_7000_8000_0000_0000_0001);
        VmDefinition {
            id: VmId::from_uuid(uuid),
            name: "web-1".parse().unwrap(),
            vcpus: 2,
            memory_mib: 256,
            root_disk: "/var/lib/vbm/volumes/a.vdi".into(),
            boot: BootSource::Disk,
            disks: vec![],
            hardware: Hardware::default(),
            nics: vec![NicDefinition {
                port: PortId::from_uuid(uuid),
                mac: "52:54:00:ab:cd:ef".parse().unwrap(),
                mtu: None,
            }],
        }
    }

    #[test]
    fn the_command_lines_are_as_they_were() {
        let (def, display) = (
            definition(),
            Display {
                port: 45_001,
                password: "secret12".into(),
            },
        );
        let lines = [
            create(&def, Path::new("/var/lib/vbm/vbox/machines")),
            settings(
                &def,
                &["vbp1".into()],
                Path::new("/run/vbm/a b/tty"),
                Some(&display),
            ),
            settings(&def, &["vbp1".into()], Path::new("/run/vbm/tty"), None),
            add_controller(def.id),
            attach(def.id, Some(&def.root_disk)),
            attach(def.id, None),
        ];
        let text: String = lines
            .iter()
            .map(|line| format!("{}\n\n", line.join("\n")))
            .collect();
        assert_eq!(text, include_str!("golden/argv.txt"));
    }

    #[test]
    fn a_name_of_a_snapshot_is_no_uuid_and_comes_back() {
        let id = SnapshotId::from_uuid(uuid::Uuid::from_u128(7));
        let name = snapshot_name(id);
        assert!(name.parse::<uuid::Uuid>().is_err());
        assert_eq!(snapshot_id(&name), Some(id));
        assert_eq!(snapshot_id("before the upgrade"), None);
        for kind in [SnapshotContent::Disk, SnapshotContent::DiskAndMemory] {
            assert_eq!(content(&description(kind)), kind);
        }
    }

    #[test]
    fn an_interface_is_no_option() {
        assert!(check_interface("vbp-1a2b").is_ok());
        for bad in ["", "--nic2", "a b", "a/b", "sixteen-letters-"] {
            assert!(check_interface(bad).is_err(), "{bad}");
        }
    }
}
