//! Devices that come and go while a VM runs.
//!
//! ```text
//!   attach   noted -> plugged in -> in the definition -> Ok
//!   detach   noted -> guest asked -> guest lets go -> unplugged -> out of the definition -> Ok
//!                          '-- refuses, or is silent: nothing is lost; one that lets go late is believed then
//! ```
//!
//! The facet is for VMs that live: one at rest gets its devices by the definition of its next start, and its disks are
//! resized through their pool. What was changed is part of what [`Driver::adopt`](crate::Driver::adopt) tells.

use crate::{DiskDefinition, NicBackend, NicDefinition, OpCx, Result, VmDefinition};
use async_trait::async_trait;
use std::path::Path;
use vbm_core::{PortId, VmId, VolumeId};

/// One of the disks of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WhichDisk {
    /// The one it boots from.
    Root,
    /// One beside that.
    Data(VolumeId),
}

/// Changing the devices of a VM that lives. All of it is idempotent: what is there already, or is gone already, is fine.
///
/// # Cancel safety
/// Dropping a future leaves the work going on; [`Hotplug::devices`] tells what came of it.
#[async_trait]
pub trait Hotplug: Send + Sync {
    /// The definition as it is now: what it was started with, and what came and went since.
    ///
    /// # Errors
    /// [`crate::Error::NoSuchVm`]; [`crate::Error::Refused`] when it does not live.
    async fn devices(&self, id: VmId) -> Result<VmDefinition>;

    /// Attaches a disk, as the last one. The VM must run or be paused.
    ///
    /// # Errors
    /// [`crate::Error::Refused`] (`Conflict`) in another state, or when it has that volume or that file in another way;
    /// [`crate::Error::Invalid`]; [`crate::Error::Unsupported`]; what the hypervisor refused. After an error it is not there.
    async fn attach_disk(&self, cx: &OpCx, id: VmId, disk: &DiskDefinition) -> Result<()>;

    /// Detaches a disk; its file is free when this returns. The VM must run: its guest has to let go of the disk.
    ///
    /// # Errors
    /// [`crate::Error::Refused`] in another state; [`crate::Error::GuestRefused`]; [`crate::Error::GuestSilent`]: it may still let go.
    async fn detach_disk(&self, cx: &OpCx, id: VmId, volume: VolumeId) -> Result<()>;

    /// Makes a disk larger: `bytes` as the guest sees it, a multiple of 512. The VM must run or be paused.
    ///
    /// # Errors
    /// [`crate::Error::Refused`] in another state; [`crate::Error::Invalid`] for a disk that it has not, that is read-only, or that
    /// is larger already.
    async fn resize_disk(&self, cx: &OpCx, id: VmId, disk: WhichDisk, bytes: u64) -> Result<()>;

    /// Attaches a NIC, as the last one. The VM must run or be paused.
    ///
    /// # Errors
    /// As those of [`Hotplug::attach_disk`], of port and MAC.
    async fn attach_nic(&self, cx: &OpCx, id: VmId, nic: &NicDefinition, backend: NicBackend) -> Result<()>;

    /// Detaches the NIC of a port; what it was plugged into is let go when this returns, and not before. The VM must run.
    ///
    /// # Errors
    /// As those of [`Hotplug::detach_disk`].
    async fn detach_nic(&self, cx: &OpCx, id: VmId, port: PortId) -> Result<()>;

    /// Puts another medium into the CD drive, or takes out what is there, also when the guest has locked it. The VM must run or
    /// be paused.
    ///
    /// # Errors
    /// [`crate::Error::Refused`] in another state; [`crate::Error::Unsupported`] when it was started without a drive;
    /// [`crate::Error::Invalid`] for a file that is not there.
    async fn change_medium(&self, cx: &OpCx, id: VmId, medium: Option<&Path>) -> Result<()>;
}
