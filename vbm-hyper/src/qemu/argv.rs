//! The command line of QEMU: pure, so that it can be read and tested.

use super::{
    firmware::Uefi,
    record::VmDir,
    slots::{self, Layout, Slots},
};
use crate::{BootSource, DiskDefinition, NicDefinition, VmDefinition};
use serde_json::{Value, json};
use std::path::Path;

/// The descriptors that QEMU inherits, by number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Inherited {
    pub(super) monitor: i32,
    pub(super) spare_monitor: i32,
    pub(super) serial: i32,
    pub(super) agent: i32,
    pub(super) taps: Vec<i32>,
}

/// All that decides a command line.
#[derive(Clone, Debug)]
pub(super) struct Plan<'a> {
    pub(super) definition: &'a VmDefinition,
    pub(super) dir: &'a VmDir,
    pub(super) machine: &'a str,
    pub(super) cpu: &'a str,
    pub(super) accelerator: &'a str,
    /// Without one, neither screenshots nor VNC.
    pub(super) display: bool,
    pub(super) entry: Entry,
    pub(super) slots: &'a Slots,
    pub(super) firmware: Option<&'a Uefi>,
    pub(super) inherited: Inherited,
}

/// What the processors wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// To be let go.
    Halted,
    /// For a memory that we have it read, and then to be let go.
    Memory,
    /// For a memory that another host sends. They go on with its last byte: no daemon is needed for that.
    Arrival,
}

/// A path as a value of one of QEMU's comma-separated options.
fn value(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// The arguments of QEMU.
pub(super) fn argv(plan: &Plan<'_>) -> Vec<String> {
    let (vm, fds) = (plan.definition, &plan.inherited);
    let mut args: Vec<String> = Vec::with_capacity(80);
    let mut add = |option: &str, value: String| {
        args.push(option.to_owned());
        if !value.is_empty() {
            args.push(value);
        }
    };
    // Halted until the manifest is written; nothing but what stands here.
    if plan.entry != Entry::Arrival {
        add("-S", String::new());
    }
    if plan.entry != Entry::Halted {
        add("-incoming", "defer".into());
    }
    for option in ["-nodefaults", "-no-user-config"] {
        add(option, String::new());
    }
    add(
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".into(),
    );
    add("-uuid", vm.id.to_string());
    add("-name", format!("guest={},debug-threads=on", vm.name));
    add(
        "-machine",
        format!(
            "{},usb=off,vmport=off,dump-guest-core=off{}",
            plan.machine,
            plan.firmware.map_or("", |_| ",pflash0=fw-code,pflash1=fw-vars")
        ),
    );
    add("-accel", plan.accelerator.to_owned());
    add("-cpu", plan.cpu.to_owned());
    add("-smp", vm.vcpus.to_string());
    add("-m", format!("{}M", vm.memory_mib));
    add("-rtc", "base=utc".into());
    add("-action", "panic=shutdown,watchdog=reset".into());
    add("-msg", "timestamp=on".into());

    for (name, fd) in [("q0", fds.monitor), ("q1", fds.spare_monitor)] {
        add("-chardev", format!("socket,id={name},fd={fd},server=on,wait=off"));
        add("-mon", format!("chardev={name},mode=control"));
    }
    add(
        "-chardev",
        format!(
            "socket,id=tty,fd={},server=on,wait=off,logfile={},logappend=on",
            fds.serial,
            value(&plan.dir.serial_log())
        ),
    );
    add("-serial", "chardev:tty".into());

    if let BootSource::Kernel {
        kernel,
        initrd,
        cmdline,
    } = &vm.boot
    {
        add("-kernel", kernel.display().to_string());
        add("-initrd", initrd.display().to_string());
        add("-append", cmdline.clone());
    }
    if let Some(uefi) = plan.firmware {
        add("-blockdev", pflash("fw-code", &uefi.code, true).to_string());
        add("-blockdev", pflash("fw-vars", &uefi.variables, false).to_string());
    }
    add("-blockdev", qcow2("root", &vm.root_disk, false).to_string());
    match plan.slots.layout {
        Layout::Flat => flat(plan, &mut add),
        Layout::Ports => behind_ports(plan, &mut add),
    }
    if plan.display {
        // No port, no password: sessions come in by `add_client`.
        add("-vnc", "none".into());
    }
    add("-display", "none".into());
    args
}

/// A flash chip that the firmware is read from.
fn pflash(node: &str, file: &Path, read_only: bool) -> Value {
    json!({
        "driver": "raw", "node-name": node, "read-only": read_only,
        "file": { "driver": "file", "filename": file, "read-only": read_only },
    })
}

/// A disk's block node.
fn qcow2(node: &str, file: &Path, read_only: bool) -> Value {
    let mut disk = json!({
        "driver": "qcow2", "node-name": node, "discard": "unmap",
        "file": { "driver": "file", "filename": file, "discard": "unmap" },
    });
    if read_only {
        disk["read-only"] = json!(true);
        disk["file"]["read-only"] = json!(true);
    }
    disk
}

/// The block node of a disk.
pub(super) fn disk_node(disk: &DiskDefinition) -> Value {
    qcow2(&slots::disk_node(disk.volume), &disk.path, disk.read_only)
}

/// The device of a disk. A full or a broken disk halts the machine instead of telling the guest.
pub(super) fn disk_device(disk: &DiskDefinition, bus: &str) -> Value {
    json!({
        "driver": "virtio-blk-pci", "id": slots::disk_device(disk.volume), "drive": slots::disk_node(disk.volume),
        "serial": slots::disk_serial(disk.volume), "bus": bus, "werror": "stop", "rerror": "stop",
    })
}

/// The device of a NIC. No boot ROM: a VM never boots from the network, and the firmware saves its time.
pub(super) fn nic_device(nic: &NicDefinition, bus: &str) -> Value {
    let mut device = json!({
        "driver": "virtio-net-pci", "id": slots::nic_device(nic.port), "netdev": slots::nic_tap(nic.port),
        "mac": nic.mac, "romfile": "", "bus": bus,
    });
    if let Some(mtu) = nic.mtu {
        device["host_mtu"] = json!(mtu);
    }
    device
}

/// The devices of a machine with root ports: see `slots`.
fn behind_ports(plan: &Plan<'_>, add: &mut impl FnMut(&str, String)) {
    let (vm, fds, slots) = (plan.definition, &plan.inherited, plan.slots);
    for at in 0..slots::ROOT_PORTS {
        add("-device", format!("pcie-root-port,{}", slots::root_port(at)));
    }
    if plan.display {
        add("-device", "VGA,id=video0,addr=0x1".into());
    }
    add(
        "-device",
        "virtio-blk-pci,id=disk0,drive=root,addr=0x2,bootindex=1,werror=stop,rerror=stop".into(),
    );
    add("-object", "rng-random,id=rng0,filename=/dev/urandom".into());
    add("-device", "virtio-rng-pci,rng=rng0,addr=0x3".into());
    // Tells us when the guest's kernel gives up.
    add("-device", "pvpanic-pci,addr=0x4".into());
    add(
        "-device",
        "virtio-serial-pci,id=serial0,max_ports=2,addr=0x5".into(),
    );
    add(
        "-chardev",
        format!("socket,id=ga,fd={},server=on,wait=off", fds.agent),
    );
    add(
        "-device",
        "virtserialport,id=agent0,chardev=ga,name=org.qemu.guest_agent.0".into(),
    );
    // Sleeps until the guest arms it.
    add("-device", "i6300esb,id=watchdog0,addr=0x6".into());
    add("-device", "virtio-balloon-pci,id=balloon0,addr=0x7".into());
    for disk in &vm.disks {
        if let Some(bus) = slots.disk_bus(disk.volume) {
            add("-blockdev", disk_node(disk).to_string());
            add("-device", disk_device(disk, &bus).to_string());
        }
    }
    if slots.drive {
        let mut drive = "ide-cd,id=cd0,bus=ide.0,bootindex=2".to_owned();
        if let Some(medium) = &vm.hardware.cdrom {
            let node = json!({
                "driver": "raw", "node-name": "cd", "read-only": true,
                "file": { "driver": "file", "filename": medium, "read-only": true },
            });
            add("-blockdev", node.to_string());
            drive.push_str(",drive=cd");
        }
        add("-device", drive);
    }
    for (nic, fd) in vm.nics.iter().zip(&fds.taps) {
        if let Some(bus) = slots.nic_bus(nic.port) {
            add("-netdev", format!("tap,id={},fd={fd}", slots::nic_tap(nic.port)));
            add("-device", nic_device(nic, &bus).to_string());
        }
    }
}

/// The devices of a machine as it was before there were root ports.
fn flat(plan: &Plan<'_>, add: &mut impl FnMut(&str, String)) {
    add("-device", "virtio-blk-pci,id=disk0,drive=root,bootindex=1".into());
    for (at, (nic, fd)) in plan.definition.nics.iter().zip(&plan.inherited.taps).enumerate() {
        add("-netdev", format!("tap,id=tap{at},fd={fd}"));
        let mtu = nic.mtu.map(|mtu| format!(",host_mtu={mtu}")).unwrap_or_default();
        add(
            "-device",
            format!(
                "virtio-net-pci,id=nic{at},netdev=tap{at},mac={},romfile={mtu}",
                nic.mac
            ),
        );
    }
    add("-object", "rng-random,id=rng0,filename=/dev/urandom".into());
    add("-device", "virtio-rng-pci,rng=rng0".into());
    add("-device", "pvpanic-pci".into());
    if plan.display {
        add("-device", "VGA,id=video0".into());
    }
}

/// Whether what QEMU said when it failed to start is about the display, without which it can start.
pub(super) fn blames_display(log: &str) -> bool {
    ["vnc", "vga", "VGA", "VNC"].iter().any(|word| log.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Firmware, Hardware};
    use uuid::Uuid;
    use vbm_core::{Mac, PortId, VmId, VolumeId};

    fn definition() -> VmDefinition {
        VmDefinition {
            id: VmId::from_uuid(Uuid::from_u128(1)),
            name: "web-1".parse().unwrap(),
            vcpus: 2,
            memory_mib: 128,
            root_disk: "/pool/a,b.qcow2".into(),
            boot: BootSource::Kernel {
                kernel: "/k".into(),
                initrd: "/i".into(),
                cmdline: "quiet a=b,c".into(),
            },
            disks: vec![],
            hardware: Hardware::default(),
            nics: vec![nic(2, Some(1450))],
        }
    }

    fn nic(number: u128, mtu: Option<u16>) -> NicDefinition {
        NicDefinition {
            port: PortId::from_uuid(Uuid::from_u128(number << 64)),
            mac: Mac::local(u32::try_from(number).unwrap() + 5),
            mtu,
        }
    }

    fn disk(number: u128, read_only: bool) -> DiskDefinition {
        DiskDefinition {
            volume: VolumeId::from_uuid(Uuid::from_u128(number << 64)),
            path: format!("/pool/data,{number}.qcow2").into(),
            read_only,
        }
    }

    /// All that a definition can ask for.
    fn rich() -> VmDefinition {
        VmDefinition {
            boot: BootSource::Disk,
            disks: vec![disk(5, false), disk(4, true)],
            hardware: Hardware {
                firmware: Firmware::Uefi,
                cpu: Some("Haswell-v2".into()),
                cdrom: Some("/iso/in,stall.iso".into()),
            },
            nics: vec![nic(2, None), nic(3, Some(9000))],
            ..definition()
        }
    }

    fn dir() -> VmDir {
        VmDir::new(Path::new("/run/a,b"), VmId::from_uuid(Uuid::from_u128(1)))
    }

    fn line(definition: &VmDefinition, slots: &Slots, change: impl FnOnce(&mut Plan<'_>)) -> Vec<String> {
        let (dir, uefi) = (
            dir(),
            Uefi {
                code: "/fw/CODE.fd".into(),
                variables: "/state/uefi-vars.fd".into(),
            },
        );
        let mut plan = Plan {
            entry: Entry::Halted,
            definition,
            dir: &dir,
            machine: "pc-q35-10.0",
            cpu: "Westmere-v1",
            accelerator: "tcg",
            display: true,
            slots,
            firmware: (definition.hardware.firmware == Firmware::Uefi).then_some(&uefi),
            inherited: Inherited {
                monitor: 10,
                spare_monitor: 11,
                serial: 12,
                agent: 13,
                taps: vec![14, 15],
            },
        };
        change(&mut plan);
        argv(&plan)
    }

    #[test]
    fn the_command_line_is_the_golden_one() {
        let (plain, rich) = (definition(), rich());
        let places = |vm: &VmDefinition| Slots::default().settled(vm);
        let mut left = places(&VmDefinition {
            disks: vec![disk(6, false), disk(5, false), disk(4, false)],
            ..rich.clone()
        });
        left = left.settled(&rich);
        for (name, argv, golden) in [
            (
                "plain",
                line(&plain, &places(&plain), |_| ()),
                include_str!("golden/plain.txt"),
            ),
            (
                "rich",
                line(&rich, &places(&rich), |_| ()),
                include_str!("golden/rich.txt"),
            ),
            (
                "places",
                line(&rich, &left, |plan| plan.display = false),
                include_str!("golden/places.txt"),
            ),
            (
                "flat",
                line(&plain, &Slots::default(), |_| ()),
                include_str!("golden/flat.txt"),
            ),
        ] {
            let argv = argv.join("\n");
            assert_eq!(argv, golden.trim_end(), "golden/{name}.txt:\n{argv}\n");
        }
    }

    #[test]
    fn what_the_processors_wait_for_comes_first() {
        let plain = definition();
        let begins = |entry| line(&plain, &Slots::default(), |plan| plan.entry = entry)[..3].join(" ");
        assert_eq!(begins(Entry::Memory), "-S -incoming defer");
        assert_eq!(begins(Entry::Arrival), "-incoming defer -nodefaults");
    }

    #[test]
    fn a_failed_display_is_recognised() {
        assert!(blames_display("qemu: -vnc none: VNC support is disabled"));
        assert!(!blames_display("qemu: -blockdev: Could not open '/pool/x.qcow2'"));
    }
}
