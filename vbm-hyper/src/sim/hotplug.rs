//! Devices of simulated VMs that come and go. A guest may refuse to let go of one, or say nothing.

use super::{Fault, SimDriver, world::SimVm};
use crate::{
    DiskDefinition, Error, Hotplug, NicBackend, NicDefinition, OpCx, Result, VmDefinition, WhichDisk,
    devices, driver::not_for, limits::UNPLUG_DEADLINE,
};
use async_trait::async_trait;
use std::path::Path;
use tokio::time::sleep;
use vbm_core::{DriverKind, PortId, PowerState, VmId, VolumeId};

/// The size of a simulated disk that was never made larger: 1 GiB.
const SIM_DISK_BYTES: u64 = 1 << 30;

impl SimDriver {
    /// Changes a VM whose devices may be changed now.
    fn change<T>(&self, id: VmId, verb: &str, change: impl FnOnce(&mut SimVm) -> Result<T>) -> Result<T> {
        self.is_open()?;
        let mut vms = self.world().vms();
        let vm = vms.get_mut(&id).ok_or(Error::NoSuchVm(id))?;
        match self.sees(id, vm).power {
            PowerState::Running => change(vm),
            // A halted guest cannot let go of anything.
            power @ PowerState::Paused(_) if verb.starts_with("detach") => {
                Err(not_for(verb, power, "running"))
            }
            PowerState::Paused(_) => change(vm),
            power => Err(not_for(verb, power, "running or paused")),
        }
    }

    /// The guest is asked to let go of a device.
    async fn asked_to_let_go(&self, cx: &OpCx, id: VmId, what: String) -> Result<()> {
        self.wait_or_time_out(id, "device_del").await?;
        let world = self.world();
        let refuses = world.fails_now(id, |fault| match fault {
            Fault::NextUnplugRefused(why) => Some(why),
            _ => None,
        });
        if let Some(why) = refuses {
            return Err(Error::GuestRefused { what, why });
        }
        if world.has_fault(id, &Fault::KeepsDevices) {
            let waits = async {
                sleep(UNPLUG_DEADLINE).await;
                Ok(())
            };
            cx.run("a detachment", waits).await?;
            return Err(Error::GuestSilent {
                what,
                after: UNPLUG_DEADLINE,
            });
        }
        Ok(())
    }

    async fn begin(&self, cx: &OpCx, id: VmId, verb: &str) -> Result<()> {
        cx.go_on("a change of devices")?;
        self.change(id, verb, |_| Ok(()))?;
        self.wait_or_time_out(id, "device_add").await
    }
}

#[async_trait]
impl Hotplug for SimDriver {
    async fn devices(&self, id: VmId) -> Result<VmDefinition> {
        self.is_open()?;
        let vms = self.world().vms();
        let vm = vms.get(&id).ok_or(Error::NoSuchVm(id))?;
        match self.sees(id, vm) {
            seen if seen.pid.is_some() => Ok(vm.definition.clone()),
            seen => Err(not_for("tell the devices of", seen.power, "running or paused")),
        }
    }

    async fn attach_disk(&self, cx: &OpCx, id: VmId, disk: &DiskDefinition) -> Result<()> {
        let verb = "attach a disk to";
        self.begin(cx, id, verb).await?;
        self.change(id, verb, |vm| {
            if devices::attaches_disk(&vm.definition, disk)? {
                vm.definition.disks.push(disk.clone());
            }
            Ok(())
        })
    }

    async fn detach_disk(&self, cx: &OpCx, id: VmId, volume: VolumeId) -> Result<()> {
        let verb = "detach a disk from";
        self.begin(cx, id, verb).await?;
        let has = |vm: &mut SimVm| Ok(vm.definition.disks.iter().any(|disk| disk.volume == volume));
        if !self.change(id, verb, has)? {
            return Ok(());
        }
        self.asked_to_let_go(cx, id, format!("volume {volume}")).await?;
        self.change(id, verb, |vm| {
            vm.definition.disks.retain(|disk| disk.volume != volume);
            Ok(())
        })
    }

    async fn resize_disk(&self, cx: &OpCx, id: VmId, disk: WhichDisk, bytes: u64) -> Result<()> {
        let verb = "resize a disk of";
        self.begin(cx, id, verb).await?;
        self.change(id, verb, |vm| {
            let path = match devices::written(&vm.definition, disk)? {
                None => &vm.definition.root_disk,
                Some(disk) => &disk.path,
            };
            self.world().site().disk(path, |disk| {
                if devices::grows(disk.bytes.unwrap_or(SIM_DISK_BYTES), bytes)? {
                    disk.bytes = Some(bytes);
                }
                Ok(())
            })
        })
    }

    async fn attach_nic(&self, cx: &OpCx, id: VmId, nic: &NicDefinition, backend: NicBackend) -> Result<()> {
        let verb = "attach a NIC to";
        self.begin(cx, id, verb).await?;
        self.change(id, verb, |vm| {
            if devices::attaches_nic(&vm.definition, nic)? {
                vm.definition.nics.push(nic.clone());
                vm.nics.push(backend);
            }
            Ok(())
        })
    }

    async fn detach_nic(&self, cx: &OpCx, id: VmId, port: PortId) -> Result<()> {
        let verb = "detach a NIC from";
        self.begin(cx, id, verb).await?;
        let find = |vm: &mut SimVm| Ok(vm.definition.nics.iter().position(|nic| nic.port == port));
        if self.change(id, verb, find)?.is_none() {
            return Ok(());
        }
        self.asked_to_let_go(cx, id, format!("the NIC in port {port}"))
            .await?;
        self.change(id, verb, |vm| {
            if let Some(at) = find(vm)? {
                vm.definition.nics.remove(at);
                // Its backend is let go now, and not before.
                drop(vm.nics.remove(at));
            }
            Ok(())
        })
    }

    async fn change_medium(&self, cx: &OpCx, id: VmId, medium: Option<&Path>) -> Result<()> {
        let verb = "change the medium of";
        self.begin(cx, id, verb).await?;
        medium.map_or(Ok(()), devices::check_path)?;
        self.change(id, verb, |vm| {
            if !vm.drive {
                return Err(Error::Unsupported {
                    driver: DriverKind::Sim,
                    what: "change the medium of this run of the VM".into(),
                    why: "it was started without a CD drive".into(),
                });
            }
            vm.definition.hardware.cdrom = medium.map(Path::to_owned);
            Ok(())
        })
    }
}
