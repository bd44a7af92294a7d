//! Whether a migration would go well: looked at on both sides, and nothing is changed.

use super::{
    Entry, Shared, keeper::Machine, mirror, record::MachineFacts as Hardware, slots::Slots,
    start::check_files,
};
use crate::{DiskFacts, Error, MachineFacts, MoveCheck, MoveOptions, Result, VmDefinition, driver::not_for};
use std::path::Path;
use vbm_core::{DriverKind, PowerState, VmId};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// What a VM here is, and what stands in the way of sending it.
pub(super) async fn source(
    shared: &Shared,
    id: VmId,
    options: &MoveOptions,
) -> Result<(MachineFacts, Vec<MoveCheck>)> {
    let power = shared.entry(id)?.seen().power;
    let Entry::Live(machine) = shared.entry(id)? else {
        return Err(not_for("move", power, "running or paused"));
    };
    let facts = facts(shared, &machine).await?;
    let mut checks = vec![MoveCheck::of("state", state(power, options.copies()))];
    let errand = machine.errand.try_lock().is_ok();
    checks.push(MoveCheck::of(
        "work under way",
        if errand {
            Ok("none".into())
        } else {
            Err("its memory is being read, written or sent".into())
        },
    ));
    if options.copies() {
        checks.extend(facts.disks.iter().map(travels));
    }
    Ok((facts, checks))
}

fn state(power: PowerState, copies: bool) -> Result<String, String> {
    match power {
        PowerState::Running => Ok("it runs".into()),
        PowerState::Paused(_) if !copies => Ok("it is paused, and will be".into()),
        PowerState::Paused(_) => {
            Err("it is paused: its destination could not tell whether to let it go on".into())
        }
        other => Err(format!("it is {other}")),
    }
}

fn travels(disk: &DiskFacts) -> MoveCheck {
    let what = format!("disk {}", disk.name);
    let found = if disk.snapshots > 0 {
        Err(format!(
            "it has {} snapshots, which a copy would leave behind",
            disk.snapshots
        ))
    } else {
        Ok(format!("{} MiB of it are its own", disk.used_bytes / MIB))
    };
    MoveCheck::of(&what, found)
}

/// What a VM that runs here is made of.
async fn facts(shared: &Shared, machine: &Machine) -> Result<MachineFacts> {
    let command = "query-named-block-nodes";
    let disks = mirror::facts(&machine.qmp(command)?, &machine.definition()).await?;
    let seen = machine.seen();
    let accelerator = seen.accelerator.map_or_else(String::new, |found| found.name);
    let hardware: Option<Hardware> = shared.keep(machine.id).read("machine.json")?;
    let hardware = hardware.ok_or_else(|| Error::Hypervisor {
        command: command.into(),
        why: "what it was made of is not written down".into(),
    })?;
    Ok(MachineFacts {
        driver: DriverKind::Qemu,
        version: machine.qemu_version.clone(),
        cpu: hardware.cpus.get(&accelerator).cloned().unwrap_or_default(),
        machine: hardware.machine,
        accelerator,
        disks,
        places: serde_json::to_string(&machine.books.slots()).ok(),
    })
}

/// What stands in the way of taking a VM in.
pub(super) async fn destination(
    shared: &Shared,
    definition: &VmDefinition,
    machine: &MachineFacts,
    options: &MoveOptions,
) -> Result<Vec<MoveCheck>> {
    let found = shared.found().await?;
    let mut checks = vec![
        MoveCheck::of("place", place(shared.known(definition.id).seen().power)),
        MoveCheck::of("machine type", one_of(&machine.machine, &found.machines)),
        MoveCheck::of("CPU model", one_of(&machine.cpu, &found.cpus)),
        MoveCheck::of("accelerator", same(&machine.accelerator, &found.accelerator.name)),
        MoveCheck::of(
            "memory",
            memory(u64::from(definition.memory_mib), available_mib()),
        ),
    ];
    if machine.driver != DriverKind::Qemu {
        let found = format!("the VM is run by {}, and this is QEMU", machine.driver);
        checks.push(MoveCheck::failed("driver", found));
    }
    // Disks that are to be copied are made with the arrival.
    if options.copies() {
        let room = definition.root_disk.parent().map_or(0, free_bytes);
        checks.push(MoveCheck::of("room for its disks", enough(&machine.disks, room)));
    } else {
        let files = check_files(definition).map_err(|error| vbm_core::Error::from(error).inline());
        checks.push(MoveCheck::of("files", files.map(|()| "all are here".into())));
    }
    Ok(checks)
}

fn place(power: PowerState) -> Result<String, String> {
    match power {
        PowerState::Off => Ok("it is not here yet".into()),
        other => Err(format!("it is {other} here: a VM is not moved to where it is")),
    }
}

fn one_of(wanted: &str, all: &[String]) -> Result<String, String> {
    if all.iter().any(|one| one == wanted) {
        Ok(format!("{wanted} runs here"))
    } else {
        Err(format!("{wanted} does not run here"))
    }
}

fn same(there: &str, here: &str) -> Result<String, String> {
    if there == here {
        Ok(format!("{here} on both"))
    } else {
        Err(format!("its instructions are run by {there}, and here by {here}"))
    }
}

fn memory(wanted_mib: u64, free_mib: Option<u64>) -> Result<String, String> {
    match free_mib {
        Some(free) if free < wanted_mib => Err(format!("{free} MiB are free, {wanted_mib} are needed")),
        Some(free) => Ok(format!("{free} MiB are free")),
        None => Ok("what is free cannot be told".into()),
    }
}

/// Room for copies: what they hold of their own, or all of them where their base may not be here.
fn enough(disks: &[DiskFacts], room: u64) -> Result<String, String> {
    let needed: u64 = disks.iter().map(|disk| disk.used_bytes).sum();
    if needed > room {
        Err(format!(
            "{} MiB are free, {} are needed",
            room / MIB,
            needed / MIB
        ))
    } else {
        Ok(format!(
            "{} MiB are free, {} are needed",
            room / MIB,
            needed / MIB
        ))
    }
}

/// What programs may still take, as Linux estimates it (proc_meminfo(5): `MemAvailable`), in MiB.
fn available_mib() -> Option<u64> {
    available_in(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

fn available_in(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * KIB / MIB)
}

fn free_bytes(dir: &Path) -> u64 {
    rustix::fs::statvfs(dir).map_or(0, |found| found.f_bavail.saturating_mul(found.f_frsize))
}

/// Where its devices are at its source, if that was told.
pub(super) fn places(machine: &MachineFacts, definition: &VmDefinition) -> Result<Option<Slots>> {
    let Some(told) = &machine.places else {
        return Ok(None);
    };
    let refuse = |why: String| {
        let what = "the VM cannot be taken in";
        Err(Error::invalid(what, why, "give both sides the same definition"))
    };
    let slots: Slots = match serde_json::from_str(told) {
        Ok(slots) => slots,
        Err(error) => return refuse(format!("where its devices are cannot be understood: {error}")),
    };
    let disks = definition
        .disks
        .iter()
        .all(|disk| slots.disk_bus(disk.volume).is_some());
    let nics = definition
        .nics
        .iter()
        .all(|nic| slots.nic_bus(nic.port).is_some());
    if disks && nics {
        Ok(Some(slots))
    } else {
        refuse("it has a disk or a NIC that it has not where it runs".into())
    }
}

/// From now on the VM's hardware here is what it is at its source.
pub(super) fn take_over(shared: &Shared, id: VmId, machine: &MachineFacts) -> Result<()> {
    let dir = shared.keep(id);
    let before: Option<Hardware> = dir.read("machine.json")?;
    let mut hardware = before.clone().unwrap_or_default();
    hardware.machine.clone_from(&machine.machine);
    hardware
        .cpus
        .insert(machine.accelerator.clone(), machine.cpu.clone());
    if before.as_ref() != Some(&hardware) {
        dir.create()?;
        dir.write("machine.json", &hardware)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_free_is_read_from_the_kernel_s_estimate() {
        assert_eq!(
            available_in("MemTotal: 9 kB\nMemAvailable:    2048 kB\n"),
            Some(2)
        );
        assert_eq!(available_in("MemFree: 9 kB\n"), None);
        memory(3, Some(2)).unwrap_err();
        memory(3, None).unwrap();
    }

    #[test]
    fn a_machine_type_that_is_not_here_and_another_accelerator_stand_in_the_way() {
        let here = ["pc-q35-10.0".to_owned(), "pc-q35-9.2".to_owned()];
        one_of("pc-q35-9.2", &here).unwrap();
        assert!(one_of("pc-q35-11.0", &here).unwrap_err().contains("pc-q35-11.0"));
        same("kvm", "tcg").unwrap_err();
    }

    #[test]
    fn a_vm_is_not_moved_to_where_it_is_and_a_paused_one_only_with_shared_disks() {
        place(PowerState::Running).unwrap_err();
        place(PowerState::Off).unwrap();
        let paused = PowerState::Paused(vbm_core::PauseReason::Requested);
        state(paused, false).unwrap();
        state(paused, true).unwrap_err();
        state(PowerState::Saving, false).unwrap_err();
    }

    #[test]
    fn copies_that_have_no_room_are_refused() {
        let disk = |used_bytes| DiskFacts {
            name: "root".into(),
            virtual_bytes: 9 * MIB,
            used_bytes,
            base: None,
            snapshots: 0,
        };
        enough(&[disk(MIB), disk(MIB)], 2 * MIB).unwrap();
        enough(&[disk(MIB), disk(2 * MIB)], 2 * MIB).unwrap_err();
    }
}
