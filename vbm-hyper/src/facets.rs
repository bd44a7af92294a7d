//! What only some drivers can do with a VM's memory, disks and devices: snapshots, saved memory, migration, hot-plug.
//!
//! ```text
//!   Snapshots    take --> [id] --> revert           the disk alone, or disk and memory of one moment
//!   SavedState   save --> Saved --> restore         memory on disk, nothing runs
//!   Migration    source: send ----stream----> destination: receive --> Running
//! ```
//!
//! As in [`Driver`](crate::Driver), ordering per VM is the business of its actor.

mod hotplug;

pub use hotplug::{Hotplug, WhichDisk};

use crate::{
    Error, ExportedDisk, Landing, MachineFacts, MoveCheck, MoveOptions, NicBackend, OpCx, Result, Seen,
    SnapshotInfo, SnapshotRequest, SnapshotTaken, VmDefinition,
};
use async_trait::async_trait;
use std::{net::Ipv4Addr, path::Path, time::Duration};
use vbm_core::{SnapshotContent, SnapshotId, VmId};

/// Going back to how a VM was.
#[async_trait]
pub trait Snapshots: Send + Sync {
    /// Takes a snapshot of all disks that the VM may write to, of one moment: of the disks alone when it is off, of disks and
    /// memory when it runs or is paused and that is wanted (it goes on as it was). Taking one that exists is no error and
    /// changes nothing. Called off or out of time, it is undone; once all of it is there, that comes too late.
    ///
    /// # Errors
    /// [`crate::Error::Refused`] in any other state, and where freezing is required and the VM is paused;
    /// [`crate::Error::Unsupported`] where it cannot be frozen and that is required; [`crate::Error::BadDisk`] for a disk that
    /// can hold none; [`crate::Error::DiskFull`]; what the hypervisor refused. After an error nothing of it is left.
    async fn take(
        &self,
        cx: &OpCx,
        definition: &VmDefinition,
        request: SnapshotRequest,
    ) -> Result<SnapshotTaken>;

    /// Goes back to a snapshot, with one backend per NIC. The VM must be at rest (off, saved or crashed); what it
    /// had since then is lost. With memory it runs afterwards, else it is off. It must have the disks that it had then. From the
    /// first disk on it cannot be called off any more.
    ///
    /// # Errors
    /// [`crate::Error::Refused`] when it is not at rest, or has other disks or other hardware than the snapshot needs;
    /// [`crate::Error::NoSuchSnapshot`]; [`crate::Error::Corrupt`] when a part of it is lost; those of
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
    /// What the hypervisor refused; [`crate::Error::Busy`] while it is exported.
    async fn delete(&self, cx: &OpCx, definition: &VmDefinition, snapshot: SnapshotId) -> Result<()>;

    /// The snapshots that are there, with what they hold.
    ///
    /// # Errors
    /// What could not be read.
    async fn list(&self, definition: &VmDefinition) -> Result<Vec<(SnapshotId, SnapshotContent)>>;

    /// The snapshots that are there, with what came after what.
    ///
    /// # Errors
    /// What could not be read.
    async fn tree(&self, definition: &VmDefinition) -> Result<Vec<SnapshotInfo>>;

    /// Writes the disks of a snapshot into files of their own below `dir`, which need no other file; the VM may run, and its
    /// memory is not among them. Called off, it leaves nothing.
    ///
    /// # Errors
    /// [`crate::Error::NoSuchSnapshot`]; [`crate::Error::Unsupported`]; [`crate::Error::DiskFull`]; what could not be read.
    async fn export(
        &self,
        cx: &OpCx,
        definition: &VmDefinition,
        snapshot: SnapshotId,
        dir: &Path,
    ) -> Result<Vec<ExportedDisk>> {
        let _ = (cx, snapshot, dir);
        Err(Error::Refused(vbm_core::Error::new(
            vbm_core::ErrorKind::Unsupported,
            format!("cannot export a snapshot of {}", definition.name),
            "its driver cannot",
            "make a full copy of the disk of a VM that is off instead",
        )))
    }
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
    /// How long the guest ran on neither side, as the hypervisor tells it. Where disks were copied, the time until
    /// [`Migration::finish`] comes on top.
    pub downtime: Duration,
    /// How much memory was sent, in bytes.
    pub bytes: u64,
    /// How much of its disks was copied, in bytes.
    pub disk_bytes: u64,
    /// How many times its memory was gone through.
    pub rounds: u64,
}

impl Migrated {
    /// A migration that went so.
    pub const fn new(took: Duration, downtime: Duration, bytes: u64) -> Self {
        Self {
            took,
            downtime,
            bytes,
            disk_bytes: 0,
            rounds: 1,
        }
    }

    /// The same with so much of disks copied.
    #[must_use]
    pub const fn with_disks(mut self, bytes: u64) -> Self {
        self.disk_bytes = bytes;
        self
    }

    /// The same in so many rounds.
    #[must_use]
    pub const fn in_rounds(mut self, rounds: u64) -> Self {
        self.rounds = rounds;
        self
    }

    /// What was sent in a second, disks and memory, in bytes.
    pub fn bytes_per_second(&self) -> u64 {
        let millis = u64::try_from(self.took.as_millis()).unwrap_or(u64::MAX).max(1);
        (self.bytes.saturating_add(self.disk_bytes)).saturating_mul(1_000) / millis
    }

    /// How far the guest's clock is behind now, if nothing in the guest sets it: a halted guest does not count the time. An
    /// agent within the guest is told to set it.
    pub const fn clock_skew(&self) -> Duration {
        self.downtime
    }
}

/// Moving a running VM to another host, with shared disks or with copies of them.
///
/// Where disks are shared, the VM goes on at the destination with the last byte of its memory. Where they are copied, it
/// is halted there until [`Migration::finish`]: no lock on a common file tells two copies apart, so the source says whether it let go.
#[async_trait]
pub trait Migration: Send + Sync {
    /// Looks at a VM that is to leave, and changes nothing: what it is, and what stands in the way.
    ///
    /// # Errors
    /// [`crate::Error::NoSuchVm`]; [`crate::Error::Invalid`] for options outside their limits; what the hypervisor does not answer.
    async fn check_source(
        &self,
        cx: &OpCx,
        id: VmId,
        options: &MoveOptions,
    ) -> Result<(MachineFacts, Vec<MoveCheck>)>;

    /// Looks whether a VM could be taken in, and changes nothing.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] for options outside their limits; a probe that failed.
    async fn check_destination(
        &self,
        cx: &OpCx,
        definition: &VmDefinition,
        machine: &MachineFacts,
        options: &MoveOptions,
    ) -> Result<Vec<MoveCheck>>;

    /// Prepares to take in a VM (`MigratingIn`): a process that waits for its memory, with one backend per NIC.
    /// Returns where the source must send to. When nothing comes for [`crate::limits::ARRIVAL_DEADLINE`] and nobody
    /// [renews](Self::renew) it, it is given up.
    ///
    /// # Errors
    /// Those of [`Driver::start`](crate::Driver::start); [`crate::Error::Invalid`]: a disk to copy to that was written to.
    /// Nothing is left then.
    async fn receive(
        &self,
        cx: &OpCx,
        definition: &VmDefinition,
        nics: Vec<NicBackend>,
        listen: Ipv4Addr,
        options: &MoveOptions,
    ) -> Result<Landing>;

    /// Sends a running VM away and ends it here. When it fails, the VM goes on here. `cx` is told how far it is.
    ///
    /// # Errors
    /// [`crate::Error::NoSuchVm`], [`crate::Error::Refused`] by the power table, [`crate::Error::Hypervisor`].
    ///
    /// # Cancel safety
    /// Dropping the future, or calling the operation off, ends the migration when that is still possible: look where the VM runs.
    async fn send(&self, cx: &OpCx, id: VmId, to: &Landing, options: &MoveOptions) -> Result<Migrated>;

    /// Lets a VM go on here that has come whole and was told to wait, because its disks were copied. To be said only
    /// when the source has let go of it, or is known to run it no more. Does nothing when it runs already.
    ///
    /// # Errors
    /// [`crate::Error::Refused`] when it has not come; [`crate::Error::NoSuchVm`].
    async fn finish(&self, cx: &OpCx, id: VmId) -> Result<Seen>;

    /// Says that a VM is still to be waited for. Does nothing when it is not.
    ///
    /// # Errors
    /// [`crate::Error::NoSuchVm`].
    async fn renew(&self, id: VmId) -> Result<()>;

    /// Gives up waiting for a VM: `Off` here. Refused once it runs here.
    ///
    /// # Errors
    /// [`crate::Error::Refused`] when it is not `MigratingIn`.
    async fn abandon(&self, id: VmId) -> Result<()>;
}
