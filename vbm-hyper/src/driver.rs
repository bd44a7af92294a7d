//! The driver: what every hypervisor must be able to do, and the words it is done with.
//!
//! The trait is small on purpose. What only some can do stands behind `Option` in facets ([`Consoles`], [`Snapshots`],
//! [`SavedState`], [`Migration`]); a missing facet says why ([`Driver::missing`]). Power states and what may follow what are
//! [`vbm_core::power`]'s.

use crate::{Consoles, DiskKind, Error, Hotplug, Migration, OpCx, Result, SavedState, Snapshots, devices};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::{os::fd::OwnedFd, path::PathBuf};
use tokio::sync::broadcast;
use vbm_core::{
    Accelerator, Capability, DriverKind, Mac, Name, PortId, PowerEvent, PowerState, Timestamp, VmId,
    VolumeId, limits,
};

/// All that a driver needs to know to run a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmDefinition {
    /// Its id; also the UUID that the guest's firmware shows.
    pub id: VmId,
    /// Its name, for people who look at the host's processes.
    pub name: Name,
    /// Virtual CPUs, 1 to 512.
    pub vcpus: u16,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// The disk it owns and writes to, of the kind that its driver takes ([`Driver::disk_kind`]).
    pub root_disk: PathBuf,
    /// How it boots.
    pub boot: BootSource,
    /// Its disks beside that, in the order in which the guest sees them.
    #[serde(default)]
    pub disks: Vec<DiskDefinition>,
    /// What else its machine has.
    #[serde(default)]
    pub hardware: Hardware,
    /// Its NICs, in the order in which the guest sees them.
    pub nics: Vec<NicDefinition>,
}

/// A disk of a VM beside the one it boots from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskDefinition {
    /// The volume; the guest sees its id as the disk's serial number.
    pub volume: VolumeId,
    /// Its file, of the kind that the driver takes.
    pub path: PathBuf,
    /// Whether the guest may not write to it.
    #[serde(default)]
    pub read_only: bool,
}

/// What the machine of a VM has beside processors, memory, disks and NICs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hardware {
    /// What its firmware is.
    pub firmware: Firmware,
    /// The CPU model, in the hypervisor's words; the driver's baseline, if none.
    pub cpu: Option<String>,
    /// What lies in its CD drive, if it has one: an ISO image.
    pub cdrom: Option<PathBuf>,
}

/// The firmware of a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Firmware {
    /// A PC BIOS.
    #[default]
    Bios,
    /// UEFI.
    Uefi,
}

/// How a VM boots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "from")]
pub enum BootSource {
    /// From its disk, by the firmware.
    Disk,
    /// From a kernel that the hypervisor loads.
    Kernel {
        /// The kernel.
        kernel: PathBuf,
        /// The initial RAM disk.
        initrd: PathBuf,
        /// The kernel's command line.
        cmdline: String,
    },
}

/// One NIC of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicDefinition {
    /// The port it is plugged into.
    pub port: PortId,
    /// Its address.
    pub mac: Mac,
    /// The MTU that the guest is told by the device, in bytes.
    #[serde(default)]
    pub mtu: Option<u16>,
}

/// What a NIC is connected to on the host.
#[derive(Debug)]
#[non_exhaustive]
pub enum NicBackend {
    /// An open tap device. It disappears with its last holder: the hypervisor's process.
    Tap(OwnedFd),
    /// An interface of the host, by name.
    HostInterface(String),
}

impl VmDefinition {
    /// Checks the definition alone, and that there is one backend for each NIC.
    ///
    /// # Errors
    /// [`Error::Invalid`]: a number outside the limits, a path that is not UTF-8 or not absolute, a MAC that is multicast; a MAC,
    /// a port, a volume or a disk's file that is used twice; a CPU model that is none.
    pub fn check(&self, backends: usize) -> Result<()> {
        let refuse = |what: String, why: &str, fix: &str| Err(Error::invalid(what, why, fix));
        if !(1..=limits::VM_MAX_VCPUS).contains(&self.vcpus) {
            return refuse(
                format!("a VM cannot have {} CPUs", self.vcpus),
                "1 to 512 are allowed",
                "choose a number in that range",
            );
        }
        if !(limits::VM_MIN_MEMORY_MIB..=limits::VM_MAX_MEMORY_MIB).contains(&self.memory_mib) {
            return refuse(
                format!("a VM cannot have {} MiB of memory", self.memory_mib),
                "32 MiB to 8 TiB are allowed",
                "choose an amount in that range",
            );
        }
        if self.nics.len() > limits::VM_MAX_NICS || self.nics.len() != backends {
            return refuse(
                format!("{} NICs with {backends} backends", self.nics.len()),
                "at most 8 NICs are allowed, each with one backend",
                "give one backend per NIC",
            );
        }
        for (at, nic) in self.nics.iter().enumerate() {
            if !nic.mac.is_unicast() || self.nics[..at].iter().any(|other| other.mac == nic.mac) {
                return refuse(
                    format!("NIC {at} cannot have the address {}", nic.mac),
                    "it is a group address, or another NIC of the VM has it",
                    "use `Mac::local` with fresh bits",
                );
            }
        }
        let mut paths = vec![&self.root_disk];
        if let BootSource::Kernel {
            kernel,
            initrd,
            cmdline,
        } = &self.boot
        {
            paths.extend([kernel, initrd]);
            if cmdline.len() > limits::CMDLINE_MAX_BYTES || cmdline.chars().any(char::is_control) {
                return refuse(
                    "the kernel command line is not valid".into(),
                    "it is longer than 2,048 bytes or holds a control character",
                    "shorten it to one plain line",
                );
            }
        }
        paths.into_iter().try_for_each(|path| devices::check_path(path))?;
        devices::check(self)
    }
}

/// What is seen of a VM on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Seen {
    /// Its power state.
    pub power: PowerState,
    /// The process that runs it.
    pub pid: Option<u32>,
    /// How its instructions are run, and why so.
    pub accelerator: Option<Accelerator>,
    /// When this run of it began.
    pub started_at: Option<Timestamp>,
}

impl Seen {
    /// A VM without a process.
    pub const fn resting(power: PowerState) -> Self {
        Self {
            power,
            pid: None,
            accelerator: None,
            started_at: None,
        }
    }

    /// A VM with a process.
    pub const fn live(
        power: PowerState,
        pid: u32,
        accelerator: Option<Accelerator>,
        started_at: Timestamp,
    ) -> Self {
        Self {
            power,
            pid: Some(pid),
            accelerator,
            started_at: Some(started_at),
        }
    }
}

/// A VM that was found again after a restart of the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Adopted {
    /// The VM.
    pub id: VmId,
    /// What it was started with.
    pub definition: VmDefinition,
    /// What is seen of it now. `Crashed` when it ended while nobody looked.
    pub seen: Seen,
}

impl Adopted {
    /// A VM found again.
    pub const fn new(definition: VmDefinition, seen: Seen) -> Self {
        Self {
            id: definition.id,
            definition,
            seen,
        }
    }
}

/// A change of power that took place.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DriverEvent {
    /// The VM.
    pub id: VmId,
    /// What happened.
    pub event: PowerEvent,
    /// What is seen of it after that.
    pub seen: Seen,
}

impl DriverEvent {
    /// An event.
    pub const fn new(id: VmId, event: PowerEvent, seen: Seen) -> Self {
        Self { id, event, seen }
    }
}

/// Why something cannot be done with a VM in this state, where the power table has no say.
pub(crate) fn not_for(verb: &str, power: PowerState, possible: &str) -> Error {
    Error::Refused(vbm_core::Error::new(
        vbm_core::ErrorKind::Conflict,
        format!("cannot {verb} a VM that is {power}"),
        format!("that is possible when it is {possible}"),
        "wait for the state, or end the VM with `vbm stop --force`",
    ))
}

/// Why a VM in this state cannot be forgotten.
pub(crate) fn not_off(power: PowerState) -> Error {
    Error::Refused(vbm_core::Error::new(
        vbm_core::ErrorKind::Conflict,
        format!("cannot forget a VM that is {power}"),
        "that is possible when it is off",
        "stop it first with `vbm stop`",
    ))
}

/// What only some drivers, versions or hosts can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Facet {
    /// Serial line, screenshot, VNC.
    Consoles,
    /// NICs backed by taps.
    TapNics,
    /// NICs backed by an interface of the host.
    HostInterfaceNics,
    /// Going back to how a VM was.
    Snapshots,
    /// Memory kept on disk while the VM does not run.
    SavedState,
    /// Moving a running VM to another host.
    Migration,
    /// Disks, NICs and media that come and go while the VM runs.
    Hotplug,
}

/// A hypervisor on this host.
///
/// All methods may be called from many tasks. Ordering per VM is its actor's business ([`crate::Machines`]); a driver
/// only refuses what its own view of the power state does not allow.
///
/// # Cancel safety
/// Dropping a future of `start` before it is done ends the half-started VM. Dropping any other leaves the
/// command sent: inspect before acting again.
#[async_trait]
pub trait Driver: Send + Sync {
    /// Which hypervisor it drives.
    fn kind(&self) -> DriverKind;

    /// Which kind of disk its VMs write to: [`VmDefinition::root_disk`] is one.
    fn disk_kind(&self) -> DiskKind {
        DiskKind::Qcow2
    }

    /// Whether the hypervisor works here: its version, how it runs guests and why so, or what is missing.
    async fn probe(&self) -> Capability;

    /// The same, looked at anew: what an earlier probe found is not believed.
    async fn probe_again(&self) -> Capability {
        self.probe().await
    }

    /// Starts a VM with one backend per NIC. Returns when its processors run.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::Refused`] by the power table, [`Error::MissingProgram`], [`Error::StartFailed`]. After each of
    /// them no process and no socket is left.
    async fn start(&self, cx: &OpCx, definition: &VmDefinition, nics: Vec<NicBackend>) -> Result<Seen>;

    /// Asks the guest to shut down: presses its power button once. Returns when it was pressed, not when the VM is off.
    ///
    /// # Errors
    /// [`Error::NoSuchVm`], [`Error::Refused`] by the power table, [`Error::Timeout`].
    async fn stop(&self, id: VmId) -> Result<()>;

    /// Ends the VM now, whatever it does. Returns when nothing of it runs any more. Allowed in every state; on a VM
    /// that is off it does nothing.
    ///
    /// # Errors
    /// [`Error::NoSuchVm`]; [`Error::Timeout`] when the kernel cannot end the process.
    async fn kill(&self, id: VmId) -> Result<()>;

    /// Presses the reset button.
    ///
    /// # Errors
    /// [`Error::NoSuchVm`], [`Error::Refused`] by the power table, [`Error::Timeout`].
    async fn reset(&self, id: VmId) -> Result<()>;

    /// Halts the VM in memory. Returns when it is halted.
    ///
    /// # Errors
    /// [`Error::NoSuchVm`], [`Error::Refused`] by the power table, [`Error::Timeout`].
    async fn pause(&self, id: VmId) -> Result<()>;

    /// Lets a halted VM go on. Returns when it runs.
    ///
    /// # Errors
    /// [`Error::NoSuchVm`], [`Error::Refused`] by the power table, [`Error::Timeout`].
    async fn resume(&self, id: VmId) -> Result<()>;

    /// What is seen of one VM.
    ///
    /// # Errors
    /// [`Error::NoSuchVm`].
    async fn inspect(&self, id: VmId) -> Result<Seen>;

    /// Why the power of a VM is what it is, in words, where there is more to say than the state: which disk is full, how the
    /// hypervisor's process ended.
    async fn cause(&self, _: VmId) -> Option<String> {
        None
    }

    /// What is seen of all VMs, in one call that asks no hypervisor and so cannot hang with one.
    ///
    /// # Errors
    /// None for the drivers of this crate.
    async fn inventory(&self) -> Result<Vec<(VmId, Seen)>>;

    /// Finds again what an earlier daemon started, and watches it from now on. Until then such a VM is `Unknown`.
    /// A second call tells the same again.
    ///
    /// # Errors
    /// When the place where runs are recorded cannot be read. A single VM that cannot be understood is not an error
    /// of the call: it stays `Unknown`.
    async fn adopt(&self) -> Result<Vec<Adopted>>;

    /// What happens from now on. A subscriber that lags too far behind is told so and should take the inventory.
    fn events(&self) -> broadcast::Receiver<DriverEvent>;

    /// The consoles, where there are any.
    fn consoles(&self) -> Option<&dyn Consoles>;

    /// Snapshots, where there are any.
    fn snapshots(&self) -> Option<&dyn Snapshots> {
        None
    }

    /// Saved memory, where it can be kept.
    fn saved_state(&self) -> Option<&dyn SavedState> {
        None
    }

    /// Migration of running VMs, where they can be moved.
    fn migration(&self) -> Option<&dyn Migration> {
        None
    }

    /// Devices that come and go, where they can.
    fn hotplug(&self) -> Option<&dyn Hotplug> {
        None
    }

    /// Why a facet is missing; `None` when it is there.
    fn missing(&self, facet: Facet) -> Option<String>;

    /// Why one VM, so defined, lacks a facet that its driver may have; `None` when it has it. What no driver could do with it is told
    /// before anything is tried.
    fn missing_for(&self, definition: &VmDefinition, facet: Facet) -> Option<String> {
        let _ = definition;
        self.missing(facet)
    }

    /// Forgets a VM that is off and removes what the driver kept of it (not its disks). Forgetting what is not known is no error.
    ///
    /// # Errors
    /// [`Error::Refused`] when it is not off.
    async fn undefine(&self, id: VmId) -> Result<()>;

    /// Lets go of everything. VMs run on; the driver refuses all work after it.
    async fn shutdown(&self);
}
