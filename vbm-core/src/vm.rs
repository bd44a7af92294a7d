//! Virtual machines.

use crate::{
    Error, Generation, GuestData, ImageId, Meta, NodePath, OperationId, PortId, PowerState, SnapshotId,
    Timestamp, VmId, VolumeId, error::invalid, limits,
};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// A virtual machine: its record in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Vm {
    /// Id, name, generation.
    #[serde(flatten)]
    pub meta: Meta<VmId>,
    /// What is wanted.
    pub spec: VmSpec,
    /// What is seen.
    pub status: VmStatus,
}

/// What is wanted of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// Virtual CPUs, 1 to 512.
    pub vcpus: u16,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// The image that its disk is a linked clone of, and that says how it boots.
    pub image: ImageId,
    /// The disk it boots from.
    pub root_volume: VolumeId,
    /// One NIC per port, in this order.
    pub ports: Vec<PortId>,
    /// Which hypervisor runs it.
    pub driver: DriverKind,
    /// The power state wanted.
    pub power: WantedPower,
    /// The node that runs it; `None` until one was chosen.
    #[serde(default)]
    pub node: Option<NodePath>,
    /// The move to another node that is under way.
    #[serde(default)]
    pub moving: Option<VmMove>,
    /// The way back to a snapshot that is under way.
    #[serde(default)]
    pub reverting: Option<VmRevert>,
    /// What it is given to read, by the metadata service of its networks.
    #[serde(default)]
    pub guest: GuestData,
}

/// A way back to a snapshot. While it stands, nothing else happens to the VM but that somebody ends it; the power
/// state wanted is already that of the snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct VmRevert {
    /// Where it goes back to.
    pub snapshot: SnapshotId,
    /// The operation that tells of it. A node goes back once for each operation, however often it is told.
    pub operation: OperationId,
}

/// A move of a VM to another node. While it stands, the VM is the move's alone: the node it is on starts and stops
/// nothing of its own accord.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct VmMove {
    /// Where it comes from.
    pub from: NodePath,
    /// Where it goes. Once the VM's node is this one, only the leaving of the other is to be done.
    pub to: NodePath,
    /// Whether it runs on while it goes.
    pub live: bool,
    /// What else was asked for.
    #[serde(default, skip_serializing_if = "MoveHow::is_usual")]
    pub how: MoveHow,
    /// The operation that tells of it.
    pub operation: OperationId,
}

/// How a VM moves, where that was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct MoveHow {
    /// Its disk is copied, because the nodes do not share it.
    pub copy_disks: bool,
    /// How long it may be halted before one more round of its memory is sent, in milliseconds.
    pub max_downtime_ms: Option<u64>,
    /// The most that is sent in a second, in bytes.
    pub bandwidth_bytes: Option<u64>,
}

impl MoveHow {
    /// Whether nothing was asked for.
    pub fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

impl VmSpec {
    /// Checks the spec alone, without looking at other records.
    ///
    /// # Errors
    /// A number outside the limits of [`crate::limits`].
    pub fn check(&self) -> Result<(), Error> {
        if !(1..=limits::VM_MAX_VCPUS).contains(&self.vcpus) {
            return Err(invalid(
                format!("a VM cannot have {} CPUs", self.vcpus),
                "1 to 512 are allowed",
                "choose --cpus in that range",
            ));
        }
        if !(limits::VM_MIN_MEMORY_MIB..=limits::VM_MAX_MEMORY_MIB).contains(&self.memory_mib) {
            return Err(invalid(
                format!("a VM cannot have {} MiB of memory", self.memory_mib),
                format!("{} MiB to 8 TiB are allowed", limits::VM_MIN_MEMORY_MIB),
                "choose --memory in that range, in MiB",
            ));
        }
        if self.ports.len() > limits::VM_MAX_NICS {
            return Err(invalid(
                format!("a VM cannot have {} NICs", self.ports.len()),
                "at most 8 are allowed",
                "attach fewer networks",
            ));
        }
        self.guest.check()
    }
}

/// The power state that is wanted. What it takes to get there is the reconciler's business.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum WantedPower {
    /// It shall run. A guest that shuts itself down, or a crash, is not followed by a start of its own:
    /// somebody asks for it, or the node boots again.
    #[default]
    Running,
    /// It shall be off; asked politely first.
    Off,
    /// It shall be off, at once and without asking the guest.
    ForcedOff,
    /// It shall be halted in memory.
    Paused,
    /// It shall not run, with its memory on disk, to go on from there.
    Saved,
}

/// A hypervisor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum DriverKind {
    /// QEMU, with KVM where it works, else by emulation.
    #[default]
    Qemu,
    /// Oracle VirtualBox.
    VirtualBox,
    /// Simulated: keeps the promises of a driver without running anything.
    Sim,
}

impl fmt::Display for DriverKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Qemu => "qemu",
            Self::VirtualBox => "virtual-box",
            Self::Sim => "sim",
        })
    }
}

impl FromStr for DriverKind {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "qemu" => Ok(Self::Qemu),
            "virtual-box" | "virtualbox" => Ok(Self::VirtualBox),
            "sim" => Ok(Self::Sim),
            _ => Err(invalid(
                format!("'{text}' is not a driver"),
                "VBM has drivers for qemu, virtual-box and sim",
                "choose one of them",
            )),
        }
    }
}

/// How a guest's instructions are run, and why so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Accelerator {
    /// `kvm`, `tcg`, ...
    pub name: String,
    /// Why this one; says what to repair where a faster one would be expected.
    pub reason: String,
}

/// What is seen of a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct VmStatus {
    /// Its power state, as last seen.
    #[serde(default)]
    pub power: PowerState,
    /// The generation of the spec that the host has reached.
    #[serde(default)]
    pub observed: Generation,
    /// How its instructions are run.
    #[serde(default)]
    pub accelerator: Option<Accelerator>,
    /// The process that runs it, where there is one.
    #[serde(default)]
    pub pid: Option<u32>,
    /// Since when it is in this power state.
    #[serde(default)]
    pub since: Timestamp,
    /// Why the wanted state is not reached, if so.
    #[serde(default)]
    pub problem: Option<Error>,
}
