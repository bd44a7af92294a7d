//! The handle's methods for devices that come and go.

use super::{Job, VmHandle, facets::missing};
use crate::{
    DiskDefinition, Driver, Facet, Hotplug, NicBackend, NicDefinition, Result, VmDefinition, WhichDisk,
};
use std::path::PathBuf;
use vbm_core::{PortId, VolumeId};

fn hotplug(driver: &dyn Driver) -> Result<&dyn Hotplug> {
    driver
        .hotplug()
        .ok_or_else(|| missing(driver, Facet::Hotplug, "change the devices of a VM that runs"))
}

impl VmHandle {
    /// Its definition as it is now, past any job. See [`Hotplug::devices`].
    ///
    /// # Errors
    /// Those of [`Hotplug::devices`]; [`crate::Error::Unsupported`].
    pub async fn devices(&self) -> Result<VmDefinition> {
        hotplug(&*self.driver)?.devices(self.id).await
    }

    /// Attaches a disk. See [`Hotplug::attach_disk`].
    ///
    /// # Errors
    /// Those of [`Hotplug::attach_disk`]; [`crate::Error::Unsupported`]; [`crate::Error::Busy`]; [`crate::Error::Preempted`].
    pub async fn attach_disk(&self, disk: DiskDefinition) -> Result<()> {
        let id = self.id;
        self.job(Job::AttachDisk, move |driver, cx| {
            Box::pin(async move { hotplug(driver)?.attach_disk(cx, id, &disk).await })
        })
        .await
    }

    /// Detaches a disk. See [`Hotplug::detach_disk`].
    ///
    /// # Errors
    /// Those of [`Hotplug::detach_disk`]; [`crate::Error::Unsupported`]; [`crate::Error::Busy`]; [`crate::Error::Preempted`].
    pub async fn detach_disk(&self, volume: VolumeId) -> Result<()> {
        let id = self.id;
        self.job(Job::DetachDisk, move |driver, cx| {
            Box::pin(async move { hotplug(driver)?.detach_disk(cx, id, volume).await })
        })
        .await
    }

    /// Makes a disk larger. See [`Hotplug::resize_disk`].
    ///
    /// # Errors
    /// Those of [`Hotplug::resize_disk`]; [`crate::Error::Unsupported`]; [`crate::Error::Busy`]; [`crate::Error::Preempted`].
    pub async fn resize_disk(&self, disk: WhichDisk, bytes: u64) -> Result<()> {
        let id = self.id;
        self.job(Job::ResizeDisk, move |driver, cx| {
            Box::pin(async move { hotplug(driver)?.resize_disk(cx, id, disk, bytes).await })
        })
        .await
    }

    /// Attaches a NIC. See [`Hotplug::attach_nic`].
    ///
    /// # Errors
    /// Those of [`Hotplug::attach_nic`]; [`crate::Error::Unsupported`]; [`crate::Error::Busy`]; [`crate::Error::Preempted`].
    pub async fn attach_nic(&self, nic: NicDefinition, backend: NicBackend) -> Result<()> {
        let id = self.id;
        self.job(Job::AttachNic, move |driver, cx| {
            Box::pin(async move { hotplug(driver)?.attach_nic(cx, id, &nic, backend).await })
        })
        .await
    }

    /// Detaches the NIC of a port. See [`Hotplug::detach_nic`].
    ///
    /// # Errors
    /// Those of [`Hotplug::detach_nic`]; [`crate::Error::Unsupported`]; [`crate::Error::Busy`]; [`crate::Error::Preempted`].
    pub async fn detach_nic(&self, port: PortId) -> Result<()> {
        let id = self.id;
        self.job(Job::DetachNic, move |driver, cx| {
            Box::pin(async move { hotplug(driver)?.detach_nic(cx, id, port).await })
        })
        .await
    }

    /// Changes or takes out the medium in its CD drive. See [`Hotplug::change_medium`].
    ///
    /// # Errors
    /// Those of [`Hotplug::change_medium`]; [`crate::Error::Unsupported`]; [`crate::Error::Busy`]; [`crate::Error::Preempted`].
    pub async fn change_medium(&self, medium: Option<PathBuf>) -> Result<()> {
        let id = self.id;
        self.job(Job::ChangeMedium, move |driver, cx| {
            Box::pin(async move { hotplug(driver)?.change_medium(cx, id, medium.as_deref()).await })
        })
        .await
    }
}
