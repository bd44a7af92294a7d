//! What is asked of a snapshot, and what came of it.
//!
//! ```text
//!   request: id, memory?, freeze? --> taken: consistency, how long the guest was halted, why it is less than was asked for
//!
//!   the VM            memory wanted   frozen         consistency
//!   is off            -               -              Clean
//!   runs, is paused   yes             -              WithMemory
//!   runs              no              yes            Frozen
//!   runs, is paused   no              no, cannot     Crash
//! ```

use async_trait::async_trait;
use std::{fmt, path::PathBuf, time::Duration};
use vbm_core::{Consistency, Freeze, SnapshotContent, SnapshotId, VmId, VolumeId};

/// Which snapshot is wanted, and of what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotRequest {
    /// Its id, never used before.
    pub id: SnapshotId,
    /// Whether the memory of a VM that runs is kept too.
    pub memory: bool,
    /// Whether the guest's file systems are frozen for it. Has no say where the memory is kept, or the VM is off: that
    /// is more.
    pub freeze: Freeze,
}

impl SnapshotRequest {
    /// A snapshot of all that there is: the disks, and the memory of a VM that runs.
    pub const fn new(id: SnapshotId) -> Self {
        Self {
            id,
            memory: true,
            freeze: Freeze::No,
        }
    }

    /// The same without memory.
    #[must_use]
    pub const fn without_memory(mut self, freeze: Freeze) -> Self {
        self.memory = false;
        self.freeze = freeze;
        self
    }
}

impl From<SnapshotId> for SnapshotRequest {
    fn from(id: SnapshotId) -> Self {
        Self::new(id)
    }
}

/// How a snapshot was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotTaken {
    /// What it holds.
    pub content: SnapshotContent,
    /// What going back to it gives.
    pub consistency: Consistency,
    /// How long the guest was halted; zero when it was off.
    pub paused: Duration,
    /// Why it is less than was asked for, if so.
    pub note: Option<String>,
}

impl SnapshotTaken {
    /// A snapshot of that consistency for which the guest was halted so long.
    pub const fn new(consistency: Consistency, paused: Duration) -> Self {
        Self {
            content: consistency.content(),
            consistency,
            paused,
            note: None,
        }
    }

    /// The same, with why it is less than was asked for.
    #[must_use]
    pub fn but(mut self, note: Option<String>) -> Self {
        self.note = note;
        self
    }
}

/// A snapshot that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotInfo {
    /// Which.
    pub id: SnapshotId,
    /// What going back to it gives.
    pub consistency: Consistency,
    /// The snapshot that it came after, where the driver knows.
    pub parent: Option<SnapshotId>,
    /// Whether the disks stand on it now, where the driver knows.
    pub current: bool,
}

impl SnapshotInfo {
    /// One of which nothing but that is known.
    pub const fn new(id: SnapshotId, consistency: Consistency) -> Self {
        Self {
            id,
            consistency,
            parent: None,
            current: false,
        }
    }
}

/// A disk of a snapshot, as a file of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExportedDisk {
    /// The volume; `None`: the root disk.
    pub volume: Option<VolumeId>,
    /// The file.
    pub path: PathBuf,
    /// How large it is, in bytes.
    pub file_bytes: u64,
}

impl ExportedDisk {
    /// A disk in that file.
    pub const fn new(volume: Option<VolumeId>, path: PathBuf, file_bytes: u64) -> Self {
        Self {
            volume,
            path,
            file_bytes,
        }
    }
}

/// Holds the file systems of a guest still for a moment.
///
/// A driver thaws what it has tried to freeze, whatever came of it, and waits for neither longer than
/// [`crate::limits::FREEZE_DEADLINE`] and [`crate::limits::THAW_DEADLINE`].
#[async_trait]
pub trait Freezer: fmt::Debug + Send + Sync {
    /// Freezes the file systems of a guest. When this returns, all that it had is written, and it writes nothing more.
    ///
    /// # Errors
    /// Why it cannot be done, for people.
    async fn freeze(&self, vm: VmId) -> Result<(), String>;

    /// Lets them go on. One that is not frozen is no error.
    ///
    /// # Errors
    /// Why it cannot be done, for people.
    async fn thaw(&self, vm: VmId) -> Result<(), String>;
}

/// There is nobody in the guest who could be asked.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoAgent;

#[async_trait]
impl Freezer for NoAgent {
    async fn freeze(&self, _: VmId) -> Result<(), String> {
        Err("there is no guest agent to ask".into())
    }

    async fn thaw(&self, _: VmId) -> Result<(), String> {
        Ok(())
    }
}
