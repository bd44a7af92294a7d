//! The command line of QEMU: pure, so that it can be read and tested.

use super::record::VmDir;
use crate::{BootSource, VmDefinition};
use serde_json::json;
use std::path::Path;

/// The descriptors that QEMU inherits, by number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Inherited {
    pub(super) monitor: i32,
    pub(super) spare_monitor: i32,
    pub(super) serial: i32,
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
        format!("{},usb=off,vmport=off,dump-guest-core=off", plan.machine),
    );
    add("-accel", plan.accelerator.to_owned());
    add("-cpu", plan.cpu.to_owned());
    add("-smp", vm.vcpus.to_string());
    add("-m", format!("{}M", vm.memory_mib));
    add("-rtc", "base=utc".into());
    add("-action", "panic=shutdown".into());
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
    let disk = json!({
        "driver": "qcow2", "node-name": "root", "discard": "unmap",
        "file": { "driver": "file", "filename": vm.root_disk, "discard": "unmap" },
    });
    add("-blockdev", disk.to_string());
    add("-device", "virtio-blk-pci,id=disk0,drive=root,bootindex=1".into());
    for (at, (nic, fd)) in vm.nics.iter().zip(&fds.taps).enumerate() {
        add("-netdev", format!("tap,id=tap{at},fd={fd}"));
        // No boot ROM: a VM never boots from the network, and the firmware saves its time.
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
    // Tells us when the guest's kernel gives up.
    add("-device", "pvpanic-pci".into());
    if plan.display {
        add("-device", "VGA,id=video0".into());
        // No port, no password: sessions come in by `add_client`.
        add("-vnc", "none".into());
    }
    add("-display", "none".into());
    args
}

/// Whether what QEMU said when it failed to start is about the display, without which it can start.
pub(super) fn blames_display(log: &str) -> bool {
    ["vnc", "vga", "VGA", "VNC"].iter().any(|word| log.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Hardware;
    use crate::NicDefinition;
    use uuid::Uuid;
    use vbm_core::{Mac, PortId, VmId};

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
            nics: vec![NicDefinition {
                port: PortId::from_uuid(Uuid::from_u128(2)),
                mac: Mac::local(7),
                mtu: Some(1450),
            }],
        }
    }

    #[test]
    fn the_command_line_is_the_golden_one() {
        let (definition, dir) = (
            definition(),
            VmDir::new(Path::new("/run/a,b"), VmId::from_uuid(Uuid::from_u128(1))),
        );
        let plan = Plan {
            entry: Entry::Halted,
            definition: &definition,
            dir: &dir,
            machine: "pc-q35-10.0",
            cpu: "Westmere-v1",
            accelerator: "tcg",
            display: true,
            inherited: Inherited {
                monitor: 10,
                spare_monitor: 11,
                serial: 12,
                taps: vec![13],
            },
        };
        let golden = include_str!("golden-argv.txt");
        assert_eq!(argv(&plan).join("\n"), golden.trim_end());
        let begins = |entry| {
            argv(&Plan {
                entry,
                ..plan.clone()
            })[..3]
                .join(" ")
        };
        assert_eq!(begins(Entry::Memory), "-S -incoming defer");
        assert_eq!(begins(Entry::Arrival), "-incoming defer -nodefaults");
    }

    #[test]
    fn a_failed_display_is_recognised() {
        assert!(blames_display("qemu: -vnc none: VNC support is disabled"));
        assert!(!blames_display("qemu: -blockdev: Could not open '/pool/x.qcow2'"));
    }
}
