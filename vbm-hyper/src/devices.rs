//! What a definition may say of disks and hardware: pure.

use crate::{
    DiskDefinition, Error, NicDefinition, Result, VmDefinition, WhichDisk,
    limits::{CPU_MODEL_MAX_BYTES, IMAGE_MAX_BYTES},
};
use std::path::Path;
use vbm_core::{ErrorKind, limits};

/// What sizes of disks are counted in.
const SECTOR_BYTES: u64 = 512;

/// Checks disks, ports and hardware of a definition, alone and against each other.
pub(crate) fn check(definition: &VmDefinition) -> Result<()> {
    if definition.disks.len() > limits::VM_MAX_DISKS {
        return Err(Error::invalid(
            format!(
                "a VM cannot have {} disks beside its first",
                definition.disks.len()
            ),
            format!("at most {} are allowed", limits::VM_MAX_DISKS),
            "use fewer and larger ones",
        ));
    }
    for (at, disk) in definition.disks.iter().enumerate() {
        check_disk(definition, &definition.disks[..at], disk)?;
    }
    for (at, nic) in definition.nics.iter().enumerate() {
        if definition.nics[..at].iter().any(|other| other.port == nic.port) {
            return Err(Error::invalid(
                format!("NIC {at} cannot be plugged into port {}", nic.port),
                "another NIC of the VM is plugged into it",
                "give each NIC a port of its own",
            ));
        }
    }
    let hardware = &definition.hardware;
    if let Some(medium) = &hardware.cdrom {
        check_path(medium)?;
    }
    hardware.cpu.as_deref().map_or(Ok(()), check_cpu)
}

/// Checks a disk that stands, or is to stand, behind `before`.
pub(crate) fn check_disk(
    definition: &VmDefinition,
    before: &[DiskDefinition],
    disk: &DiskDefinition,
) -> Result<()> {
    check_path(&disk.path)?;
    let refuse = |why: String, fix: &str| {
        let what = format!("the VM cannot have volume {} as a disk", disk.volume);
        Err(Error::invalid(what, why, fix))
    };
    if before.iter().any(|other| other.volume == disk.volume) {
        return refuse("it has it already".into(), "name each volume once");
    }
    if disk.path == definition.root_disk || before.iter().any(|other| other.path == disk.path) {
        return refuse(
            format!("another disk of it is {} already", disk.path.display()),
            "give each disk a file of its own",
        );
    }
    Ok(())
}

/// Whether a disk is to be attached; `false`: it is there as it should be.
///
/// # Errors
/// [`Error::Invalid`]; `Conflict` when the volume or the file is there in another way.
pub(crate) fn attaches_disk(definition: &VmDefinition, disk: &DiskDefinition) -> Result<bool> {
    if definition.disks.contains(disk) {
        return Ok(false);
    }
    check_path(&disk.path)?;
    if let Some(there) = definition.disks.iter().find(|other| other.volume == disk.volume) {
        return Err(conflict(
            format!("volume {} cannot be attached", disk.volume),
            format!(
                "it is attached already, as {}{}",
                there.path.display(),
                if there.read_only { ", read-only" } else { "" }
            ),
            "detach it first",
        ));
    }
    let mut files = definition.disks.iter().map(|other| &other.path);
    if disk.path == definition.root_disk || files.any(|path| *path == disk.path) {
        return Err(conflict(
            format!("volume {} cannot be attached", disk.volume),
            format!("another disk of the VM is {} already", disk.path.display()),
            "give each disk a file of its own",
        ));
    }
    room(
        definition.disks.len(),
        limits::VM_MAX_DISKS,
        "disks beside its first",
    )?;
    Ok(true)
}

/// Whether a NIC is to be attached; `false`: it is there as it should be.
///
/// # Errors
/// [`Error::Invalid`]; `Conflict` when the port or the address is there in another way.
pub(crate) fn attaches_nic(definition: &VmDefinition, nic: &NicDefinition) -> Result<bool> {
    if definition.nics.contains(nic) {
        return Ok(false);
    }
    if !nic.mac.is_unicast() {
        return Err(Error::invalid(
            format!("a NIC cannot have the address {}", nic.mac),
            "it is a group address",
            "use `Mac::local` with fresh bits",
        ));
    }
    let clash = |other: &&NicDefinition| other.port == nic.port || other.mac == nic.mac;
    if let Some(there) = definition.nics.iter().find(clash) {
        return Err(conflict(
            format!(
                "a NIC with the address {} cannot be plugged into port {}",
                nic.mac, nic.port
            ),
            format!("the VM has {} in port {}", there.mac, there.port),
            "detach that one first, or use another port and another address",
        ));
    }
    room(definition.nics.len(), limits::VM_MAX_NICS, "NICs")?;
    Ok(true)
}

fn room(has: usize, most: usize, of: &str) -> Result<()> {
    if has < most {
        return Ok(());
    }
    Err(Error::invalid(
        format!("the VM cannot have more {of}"),
        format!("it has {has}, and that is the most"),
        "detach one that nobody needs",
    ))
}

fn conflict(what: String, why: String, fix: &str) -> Error {
    Error::Refused(vbm_core::Error::new(ErrorKind::Conflict, what, why, fix))
}

/// Whether a disk of `now` bytes is to grow to `wanted`; `false`: it is as large as that.
///
/// # Errors
/// [`Error::Invalid`]: a size that no disk has, or a smaller one.
pub(crate) fn grows(now: u64, wanted: u64) -> Result<bool> {
    let refuse = |why: String, fix: &str| {
        Err(Error::invalid(
            format!("a disk cannot be made {wanted} bytes large"),
            why,
            fix,
        ))
    };
    if !wanted.is_multiple_of(SECTOR_BYTES) || wanted == 0 {
        return refuse(format!("sizes are multiples of {SECTOR_BYTES}"), "round it up");
    }
    if wanted > IMAGE_MAX_BYTES {
        return refuse(format!("the most is {IMAGE_MAX_BYTES}"), "use several disks");
    }
    if wanted < now {
        return refuse(
            format!("it has {now} bytes, and what lies behind the new end would be lost"),
            "copy what is needed to a smaller disk",
        );
    }
    Ok(wanted > now)
}

/// Which disk is meant, if it may be written to.
///
/// # Errors
/// [`Error::Invalid`].
pub(crate) fn written(definition: &VmDefinition, disk: WhichDisk) -> Result<Option<&DiskDefinition>> {
    let WhichDisk::Data(volume) = disk else {
        return Ok(None);
    };
    let refuse = |why: &str| {
        let what = format!("volume {volume} cannot be made larger");
        Err(Error::invalid(
            what,
            why,
            "look at the VM's disks with `vbm info`",
        ))
    };
    match definition.disks.iter().find(|disk| disk.volume == volume) {
        Some(disk) if disk.read_only => refuse("it is attached read-only"),
        Some(disk) => Ok(Some(disk)),
        None => refuse("it is no disk of this VM"),
    }
}

/// Checks a file of a VM.
pub(crate) fn check_path(path: &Path) -> Result<()> {
    if path.is_absolute() && path.to_str().is_some() {
        return Ok(());
    }
    Err(Error::invalid(
        format!("'{}' cannot be used as a file of a VM", path.display()),
        "it is not an absolute path in UTF-8",
        "give an absolute path in UTF-8",
    ))
}

/// A model's name, and nothing that the hypervisor would take for an option.
fn check_cpu(model: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if (1..=CPU_MODEL_MAX_BYTES).contains(&model.len()) && model.chars().all(plain) {
        return Ok(());
    }
    Err(Error::invalid(
        "the name of the CPU model is not valid",
        format!("it has 1 to {CPU_MODEL_MAX_BYTES} characters out of a-z, A-Z, 0-9, '-', '_', '.'"),
        "name a model that the hypervisor lists, or none for its baseline",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BootSource, Hardware, NicDefinition};
    use uuid::Uuid;
    use vbm_core::{Mac, PortId, VmId, VolumeId};

    fn disk(number: u128) -> DiskDefinition {
        DiskDefinition {
            volume: VolumeId::from_uuid(Uuid::from_u128(number)),
            path: format!("/pool/{number}.qcow2").into(),
            read_only: false,
        }
    }

    fn definition(disks: Vec<DiskDefinition>) -> VmDefinition {
        VmDefinition {
            id: VmId::from_uuid(Uuid::from_u128(1)),
            name: "web-1".parse().unwrap(),
            vcpus: 1,
            memory_mib: 64,
            root_disk: "/pool/root.qcow2".into(),
            boot: BootSource::Disk,
            disks,
            hardware: Hardware::default(),
            nics: vec![],
        }
    }

    #[test]
    fn sound_disks_are_fine_and_each_fault_is_named() {
        let sound: Vec<_> = (0..limits::VM_MAX_DISKS).map(|n| disk(n as u128)).collect();
        definition(sound).check(0).unwrap();
        let too_many: Vec<_> = (0..=limits::VM_MAX_DISKS).map(|n| disk(n as u128)).collect();
        let (mut same_file, mut root, mut relative) = (disk(2), disk(2), disk(2));
        same_file.path = disk(1).path;
        root.path = "/pool/root.qcow2".into();
        relative.path = "pool/2.qcow2".into();
        for (disks, named) in [
            (too_many, "at most 16"),
            (vec![disk(1), disk(1)], "it has it already"),
            (vec![disk(1), same_file], "/pool/1.qcow2 already"),
            (vec![root], "/pool/root.qcow2 already"),
            (vec![relative], "absolute path"),
        ] {
            let error = definition(disks).check(0).unwrap_err();
            assert_eq!(error.kind(), vbm_core::ErrorKind::InvalidInput);
            assert!(error.to_string().contains(named), "{error}");
        }
    }

    #[test]
    fn hardware_that_makes_no_sense_is_named() {
        let mut cases = Vec::new();
        for cpu in ["", "host,+vmx", "a b"] {
            let mut bad = definition(vec![]);
            bad.hardware.cpu = Some(cpu.into());
            cases.push((bad, 0, "CPU model"));
        }
        let mut medium = definition(vec![]);
        medium.hardware.cdrom = Some("install.iso".into());
        cases.push((medium, 0, "absolute path"));
        let mut nics = definition(vec![]);
        nics.nics = [1, 2]
            .map(|n| NicDefinition {
                port: PortId::from_uuid(Uuid::from_u128(9)),
                mac: Mac::local(n),
                mtu: None,
            })
            .into();
        cases.push((nics, 2, "another NIC"));
        for (bad, backends, named) in cases {
            let error = bad.check(backends).unwrap_err();
            assert!(error.to_string().contains(named), "{error}");
        }
    }

    #[test]
    fn a_definition_of_an_older_form_is_read() {
        let mut text = serde_json::to_value(definition(vec![disk(1)])).unwrap();
        let fields = text.as_object_mut().unwrap();
        fields.remove("disks");
        fields.remove("hardware");
        let read: VmDefinition = serde_json::from_value(text).unwrap();
        assert_eq!(read, definition(vec![]));
    }
}
