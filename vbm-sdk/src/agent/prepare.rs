//! What a VM needs before it can run here: its image, its disk, its NICs.
//!
//! Each part is idempotent: what is there is used, what a start that was broken off left is cleared away.

use super::Agent;
use crate::methods::WantedVm;
use vbm_core::{Boot, Error, ErrorKind, Result};
use vbm_hyper::{BootSource, ContentKind, Driver, Facet, Hardware, NicBackend, NicDefinition, VmDefinition};
use vbm_net::{Nic, NicKind};

/// In which form a driver takes its NICs.
fn nic_kind(driver: &dyn Driver) -> NicKind {
    match driver.missing(Facet::TapNics) {
        None => NicKind::Tap,
        Some(_) => NicKind::Interface,
    }
}

impl Agent {
    /// Brings what the VM boots from and makes its disk where there is none; `tell` hears what is being done.
    pub(super) async fn define(&self, want: &WantedVm, tell: &(dyn Fn(&str) + Sync)) -> Result<VmDefinition> {
        tell("bringing the image");
        self.bring(want.root.image, ContentKind::Disk(want.root.format))
            .await?;
        let boot = self.boot(&want.boot).await?;
        tell("making the disk");
        let volumes = &self.inner.volumes;
        let kind = self.machines(want.driver)?.driver().disk_kind();
        let root_disk = match volumes.path(want.root.volume) {
            Some(path) => path,
            None => volumes
                .clone_image_as(want.root.image, want.root.volume, want.root.virtual_bytes, kind)
                .await
                .map_err(Error::from)?,
        };
        let nics = want.nics.iter().map(|n| NicDefinition {
            port: n.port,
            mac: n.mac,
            mtu: None,
        });
        Ok(VmDefinition {
            id: want.id,
            name: want.name.clone(),
            vcpus: want.vcpus,
            memory_mib: want.memory_mib,
            root_disk,
            boot,
            disks: vec![],
            hardware: Hardware::default(),
            nics: nics.collect(),
        })
    }

    /// Opens the NICs of a VM that holds none.
    pub(super) async fn open_nics(
        &self,
        want: &WantedVm,
        tell: &(dyn Fn(&str) + Sync),
    ) -> Result<Vec<NicBackend>> {
        tell("opening its NICs");
        // Before it runs: what its first boot reads must be there.
        self.describe(want).await?;
        let networks = &self.inner.networks;
        let kind = nic_kind(self.machines(want.driver)?.driver().as_ref());
        let mut backends = Vec::with_capacity(want.nics.len());
        for nic in &want.nics {
            // A VM that is off holds no NIC; one that is left is of a start that was broken off.
            networks
                .close_nic(nic.network, nic.port)
                .await
                .map_err(Error::from)?;
            let open = networks.open_nic(nic.network, nic.port, kind).await;
            match open.map_err(Error::from)? {
                Nic::Tap { fd, .. } => backends.push(NicBackend::Tap(fd)),
                Nic::Interface { name } => backends.push(NicBackend::HostInterface(name)),
                _ => {
                    return Err(Error::internal(
                        "a NIC cannot be used",
                        "the network gave a kind that no driver takes",
                    ));
                }
            }
        }
        Ok(backends)
    }

    async fn boot(&self, boot: &Boot) -> Result<BootSource> {
        let images = &self.inner.images;
        match boot {
            Boot::Disk => Ok(BootSource::Disk),
            Boot::Kernel {
                kernel,
                initrd,
                cmdline,
            } => {
                for digest in [kernel, initrd] {
                    self.bring(*digest, ContentKind::Blob).await?;
                }
                Ok(BootSource::Kernel {
                    kernel: images.path(*kernel).map_err(Error::from)?,
                    initrd: images.path(*initrd).map_err(Error::from)?,
                    cmdline: cmdline.clone(),
                })
            }
            _ => Err(Error::new(
                ErrorKind::Unsupported,
                "the VM cannot be booted",
                "its image boots in a way that this agent does not know",
                "upgrade the agent",
            )),
        }
    }
}
