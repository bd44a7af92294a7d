//! What only some drivers can do with a VM's memory and disks: snapshots, saved memory, migration.
//!
//! ```text
//!   Snapshots    take --> [id] --> revert           the disk alone, or disk and memory of one moment
//!   SavedState   save --> Saved --> restore         memory on disk, nothing runs
//!   Migration    source: send ----stream----> destination: receive --> Running
//! ```
//!
//! As in [`Driver`](crate::Driver), ordering per VM is the business of its actor.

use crate::{NicBackend, OpCx, Result, Seen, VmDefinition};
use async_trait::async_trait;
use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};
use vbm_core::{SnapshotContent, SnapshotId, VmId};

/// How a snapshot was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotTaken {
    /// What it holds.
    pub content: SnapshotContent,
    /// How long the guest was halted; zero when it was off.
    pub paused: Duration,
}

impl SnapshotTaken {
    /// A snapshot of `content` for which the guest was halted so long.
    pub const fn new(content: SnapshotContent, paused: Duration) -> Self {
        Self { content, paused }
    }
}

/// Going back to how a VM was.
#[async_trait]
pub trait Snapshots: Send + Sync {
    /// Takes a snapshot: of the disk when the VM is off, of disk and memory when it runs or is paused (it goes on as
    /// it was). Taking one that exists is no error and changes nothing.
    ///
    /// # Errors
    /// [`crate::Error::Refused`] in any other state; [`crate::Error::DiskFull`]; what the hypervisor refused. After an
    /// error nothing of the snapshot is left.
    async fn take(&self, cx: &OpCx, definition: &VmDefinition, snapshot: SnapshotId)
    -> Result<SnapshotTaken>;

    /// Goes back to a snapshot, with one backend per NIC. The VM must be at rest (off, saved or crashed); what it
    /// had since then is lost. With memory it runs afterwards, else it is off.
    ///
    /// # Errors
    /// [`crate::Error::Refused`] when it is not at rest; [`crate::Error::NoSuchSnapshot`]; those of
    /// [`Driver::start`](crate::Driver::start).
    async fn revert(
        &self,
        cx: &OpCx,
        definition: &VmDefinition,
        snapshot: SnapshotId,
        nics: Vec<NicBackend>,
    ) -> Result<Seen>;

    /// Deletes a snapshot, whatever stands before and after it; the VM may run. One that does not exist is fine.
    ///
    /// # Errors
    /// What the hypervisor refused.
    async fn delete(&self, cx: &OpCx, definition: &VmDefinition, snapshot: SnapshotId) -> Result<()>;

    /// The snapshots that are there, with what they hold.
    ///
    /// # Errors
    /// What could not be read.
    async fn list(&self, definition: &VmDefinition) -> Result<Vec<(SnapshotId, SnapshotContent)>>;
}

/// Memory kept on disk while the VM does not run.
#[async_trait]
pub trait SavedState: Send + Sync {
    /// Writes the memory of a running or paused VM to disk and ends it. It is `Saved` then. When writing fails, the VM goes on.
    ///
    /// # Errors
    /// [`crate::Error::NoSuchVm`], [`crate::Error::Refused`] by the power table, [`crate::Error::DiskFull`].
    async fn save(&self, cx: &OpCx, id: VmId) -> Result<Seen>;

    /// Lets a saved VM go on, with one backend per NIC. The saved memory is used up. When it cannot be restored, it stays saved.
    ///
    /// # Errors
    /// [`crate::Error::Refused`] when it is not saved; those of [`Driver::start`](crate::Driver::start).
    async fn restore(&self, cx: &OpCx, definition: &VmDefinition, nics: Vec<NicBackend>) -> Result<Seen>;

    /// Throws the saved memory away: the VM is off, as after a power cut. Does nothing when it is not saved.
    ///
    /// # Errors
    /// What could not be removed.
    async fn discard(&self, id: VmId) -> Result<()>;
}

/// How a migration went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Migrated {
    /// How long all of it took.
    pub took: Duration,
    /// How long the guest ran on neither side, as the hypervisor tells it.
    pub downtime: Duration,
    /// How much was sent, in bytes.
    pub bytes: u64,
}

impl Migrated {
    /// A migration that went so.
    pub const fn new(took: Duration, downtime: Duration, bytes: u64) -> Self {
        Self {
            took,
            downtime,
            bytes,
        }
    }
}

/// Moving a running VM to another host, whose disks are the same files.
#[async_trait]
pub trait Migration: Send + Sync {
    /// Prepares to take in a VM (`MigratingIn`): a process that waits for its memory, with one backend per NIC.
    /// Returns where the source must send to. When the memory has come whole, the VM runs here and an event says so.
    ///
    /// # Errors
    /// Those of [`Driver::start`](crate::Driver::start); nothing is left then.
    async fn receive(
        &self,
        cx: &OpCx,
        definition: &VmDefinition,
        nics: Vec<NicBackend>,
        listen: Ipv4Addr,
    ) -> Result<SocketAddr>;

    /// Sends a running VM away and ends it here. When it fails, the VM goes on here.
    ///
    /// # Errors
    /// [`crate::Error::NoSuchVm`], [`crate::Error::Refused`] by the power table, [`crate::Error::Hypervisor`].
    ///
    /// # Cancel safety
    /// Dropping the future calls the migration off when that is still possible: look where the VM runs.
    async fn send(&self, cx: &OpCx, id: VmId, to: SocketAddr) -> Result<Migrated>;

    /// Gives up waiting for a VM: `Off` here. Refused once it has arrived.
    ///
    /// # Errors
    /// [`crate::Error::Refused`] when it is not `MigratingIn`.
    async fn abandon(&self, id: VmId) -> Result<()>;
}
