//! Snapshots: a VM as it was at one moment, to go back to.

use crate::{Error, Meta, SnapshotId, Timestamp, VmId};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A snapshot: its record in the store. Its name is unique within its VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Snapshot {
    /// Id, name, generation.
    #[serde(flatten)]
    pub meta: Meta<SnapshotId>,
    /// What is wanted.
    pub spec: SnapshotSpec,
    /// What is seen.
    pub status: SnapshotStatus,
}

/// What is wanted of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct SnapshotSpec {
    /// The VM it is of; deleted with it.
    pub vm: VmId,
    /// The snapshot that the VM was at, or came from, when this one was taken.
    #[serde(default)]
    pub parent: Option<SnapshotId>,
    /// Whether the memory of a VM that runs is kept too.
    #[serde(default = "yes")]
    pub memory: bool,
    /// Whether the guest's file systems are frozen for it, when its memory is not kept.
    #[serde(default)]
    pub freeze: Freeze,
}

const fn yes() -> bool {
    true
}

/// Whether the file systems of a guest are frozen while its disks are snapshotted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Freeze {
    /// They are not.
    #[default]
    No,
    /// Where the guest can; else the disks are as after a power cut, and it is said why.
    IfPossible,
    /// Without it no snapshot is taken.
    Required,
}

/// What going back to a snapshot gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Consistency {
    /// The disks of a VM that was off.
    Clean,
    /// The disks as after a power cut: what the guest had not written yet is not there.
    Crash,
    /// The disks with their file systems frozen: all that the guest had is written.
    Frozen,
    /// Disks and memory of the same moment.
    WithMemory,
}

impl Consistency {
    /// What a snapshot holds that has this consistency.
    pub const fn content(self) -> SnapshotContent {
        match self {
            Self::WithMemory => SnapshotContent::DiskAndMemory,
            Self::Clean | Self::Crash | Self::Frozen => SnapshotContent::Disk,
        }
    }
}

impl fmt::Display for Consistency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Clean => "clean",
            Self::Crash => "crash",
            Self::Frozen => "frozen",
            Self::WithMemory => "with memory",
        })
    }
}

/// How far a snapshot is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum SnapshotState {
    /// Being taken.
    #[default]
    Creating,
    /// The VM can go back to it.
    Ready,
    /// It could not be taken; the problem says why. Nothing of it is kept.
    Failed,
}

impl fmt::Display for SnapshotState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Creating => "creating",
            Self::Ready => "ready",
            Self::Failed => "failed",
        })
    }
}

/// What a snapshot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum SnapshotContent {
    /// The disks: taken of a VM that was off, or without its memory. After a revert the VM is off.
    Disk,
    /// The disks and the memory, of the same moment: taken of a VM that ran. After a revert the VM runs.
    DiskAndMemory,
}

impl fmt::Display for SnapshotContent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Disk => "disk",
            Self::DiskAndMemory => "disk and memory",
        })
    }
}

/// What is seen of a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct SnapshotStatus {
    /// How far it is.
    #[serde(default)]
    pub state: SnapshotState,
    /// What it holds; known once it is taken.
    #[serde(default)]
    pub content: Option<SnapshotContent>,
    /// What going back to it gives; known once it is taken.
    #[serde(default)]
    pub consistency: Option<Consistency>,
    /// Why it is less than was asked for, if so.
    #[serde(default)]
    pub note: Option<String>,
    /// When it was taken.
    #[serde(default)]
    pub taken_at: Option<Timestamp>,
    /// How long the guest was halted for it, in microseconds; 0 when it was off.
    #[serde(default)]
    pub paused_micros: u64,
    /// Whether the VM's disk stands on this snapshot now: it was taken last, or the VM was reverted to it.
    #[serde(default)]
    pub current: bool,
    /// Why it could not be taken, if so.
    #[serde(default)]
    pub problem: Option<Error>,
}
