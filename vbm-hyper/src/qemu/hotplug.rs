//! Hot-plug: devices behind root ports, the medium in the drive, the size of a disk.
//!
//! ```text
//!   disk   blockdev-add -> device_add                     device_del -> DEVICE_DELETED -> blockdev-del
//!   NIC    getfd (tap) -> netdev_add -> device_add        device_del -> DEVICE_DELETED -> netdev_del: the tap is let go
//! ```
//!
//! - What is begun is noted first and in the books last: see `plug`.
//! - The guest takes part in a removal: it is asked by its ACPI. One whose firmware runs, or that is halted, never answers; then
//!   nothing is lost. Should it let go later, the keeper hears of it, and the removal is finished then ([`let_go`]).
//! - While its memory is written or sent, the machine must stay as it is: hot-plug has the place of an errand.

use super::{
    Entry, QemuDriver, Shared, argv, errand,
    keeper::{Machine, Unplug},
    plug::{self, DRIVE, Plug},
    qmp::Qmp,
    record::VmDir,
    slots::{self, Layout},
};
use crate::{
    DiskDefinition, Error, Hotplug, NicBackend, NicDefinition, OpCx, Result, VmDefinition, WhichDisk,
    devices,
    driver::not_for,
    limits::{COMMAND_DEADLINE, UNPLUG_DEADLINE},
};
use async_trait::async_trait;
use serde_json::{Value, json};
use std::{os::fd::OwnedFd, path::Path, sync::Arc};
use tokio::{sync::broadcast, time::timeout};
use vbm_core::{DriverKind, PortId, PowerState, VmId, VolumeId};

#[async_trait]
impl Hotplug for QemuDriver {
    async fn devices(&self, id: VmId) -> Result<VmDefinition> {
        let entry = self.shared.entry(id)?;
        match entry {
            Entry::Live(machine) => Ok((*machine.definition()).clone()),
            entry => Err(not_for(
                "tell the devices of",
                entry.seen().power,
                "running or paused",
            )),
        }
    }

    async fn attach_disk(&self, cx: &OpCx, id: VmId, disk: &DiskDefinition) -> Result<()> {
        let (machine, disk) = (self.machine(cx, id, "attach a disk to")?, disk.clone());
        self.work(machine, move |shared, machine| async move {
            attach_disk(&shared, &machine, &disk).await
        })
        .await
    }

    async fn detach_disk(&self, cx: &OpCx, id: VmId, volume: VolumeId) -> Result<()> {
        let machine = self.machine(cx, id, "detach a disk from")?;
        if !machine
            .definition()
            .disks
            .iter()
            .any(|disk| disk.volume == volume)
        {
            return Ok(());
        }
        let cx = cx.clone();
        self.work(machine, move |_, machine| async move {
            let what = format!("volume {volume}");
            unplug(&cx, &machine, &slots::disk_device(volume), what).await?;
            lose_disk(&machine, volume).await
        })
        .await
    }

    async fn resize_disk(&self, cx: &OpCx, id: VmId, disk: WhichDisk, bytes: u64) -> Result<()> {
        let machine = self.machine(cx, id, "resize a disk of")?;
        self.work(machine, move |_, machine| async move {
            let definition = machine.definition();
            let node = match devices::written(&definition, disk)? {
                None => ROOT.to_owned(),
                Some(disk) => slots::disk_node(disk.volume),
            };
            if devices::grows(size_of(&machine, &node).await?, bytes)? {
                let arguments = json!({ "node-name": node, "size": bytes });
                machine.command("block_resize", arguments).await?;
            }
            Ok(())
        })
        .await
    }

    async fn attach_nic(&self, cx: &OpCx, id: VmId, nic: &NicDefinition, backend: NicBackend) -> Result<()> {
        let tap = match backend {
            NicBackend::Tap(fd) => fd,
            NicBackend::HostInterface(name) => {
                return Err(unsupported(
                    format!("plug a NIC into the interface {name}"),
                    "QEMU takes open tap devices only",
                ));
            }
        };
        let (machine, nic) = (self.machine(cx, id, "attach a NIC to")?, nic.clone());
        self.work(machine, move |shared, machine| async move {
            attach_nic(&shared, &machine, &nic, tap).await
        })
        .await
    }

    async fn detach_nic(&self, cx: &OpCx, id: VmId, port: PortId) -> Result<()> {
        let machine = self.machine(cx, id, "detach a NIC from")?;
        if !machine.definition().nics.iter().any(|nic| nic.port == port) {
            return Ok(());
        }
        let cx = cx.clone();
        self.work(machine, move |_, machine| async move {
            unplug(
                &cx,
                &machine,
                &slots::nic_device(port),
                format!("the NIC in port {port}"),
            )
            .await?;
            lose_nic(&machine, port).await
        })
        .await
    }

    async fn change_medium(&self, cx: &OpCx, id: VmId, medium: Option<&Path>) -> Result<()> {
        let machine = self.machine(cx, id, "change the medium of")?;
        if let Some(medium) = medium {
            devices::check_path(medium)?;
        }
        let medium = medium.map(Path::to_owned);
        self.work(machine, move |shared, machine| async move {
            change_medium(&shared, &machine, medium.as_deref()).await
        })
        .await
    }
}

/// The block node of the disk that a VM boots from.
const ROOT: &str = "root";

fn unsupported(what: String, why: &str) -> Error {
    Error::Unsupported {
        driver: DriverKind::Qemu,
        what,
        why: why.to_owned(),
    }
}

impl QemuDriver {
    /// The process of a VM whose devices may be changed now.
    fn machine(&self, cx: &OpCx, id: VmId, verb: &str) -> Result<Arc<Machine>> {
        cx.go_on("a change of devices")?;
        match self.shared.entry(id)? {
            Entry::Live(machine) => {
                let power = machine.seen().power;
                // A halted guest cannot let go of anything.
                let (fits, possible) = match power {
                    PowerState::Running => (true, ""),
                    PowerState::Paused(_) => (!verb.starts_with("detach"), "running"),
                    _ => (false, "running or paused"),
                };
                if fits {
                    Ok(machine)
                } else {
                    Err(not_for(verb, power, possible))
                }
            }
            entry => Err(not_for(verb, entry.seen().power, "running or paused")),
        }
    }

    /// Works on the devices of a VM in a task of the driver, alone.
    async fn work<F: Future<Output = Result<()>> + Send + 'static>(
        &self,
        machine: Arc<Machine>,
        work: impl FnOnce(Arc<Shared>, Arc<Machine>) -> F + Send + 'static,
    ) -> Result<()> {
        if machine.books.slots().layout == Layout::Flat {
            return Err(unsupported(
                "change the devices of this run of the VM".into(),
                "it was started by an older VBM, without places for them; the next start brings them",
            ));
        }
        let place = errand::place(&machine)?;
        let shared = Arc::clone(&self.shared);
        errand::run(&self.shared, async move {
            let _place = place;
            let _alone = machine.plugging.lock().await;
            work(shared, Arc::clone(&machine)).await
        })
        .await
    }
}

async fn attach_disk(shared: &Shared, machine: &Machine, disk: &DiskDefinition) -> Result<()> {
    if !devices::attaches_disk(&machine.definition(), disk)? {
        return Ok(());
    }
    is_file(&disk.path)?;
    let mut slots = machine.books.slots();
    let (Some(at), Some(bus)) = (slots.add_disk(disk), slots.disk_bus(disk.volume)) else {
        return Err(no_place("disk"));
    };
    let dir = VmDir::new(&shared.root, machine.id);
    let qmp = machine.qmp("device_add")?;
    let plug = Plug::Disk {
        disk: disk.clone(),
        at,
    };
    plug.note(&dir)?;
    let plugged = async {
        qmp.execute("blockdev-add", argv::disk_node(disk)).await?;
        qmp.execute("device_add", argv::disk_device(disk, &bus)).await?;
        machine.books.has_disk(disk, at)
    };
    let done = plugged.await;
    if done.is_err() {
        undo(&qmp, &slots::disk_device(disk.volume)).await?;
        plug::drop_disk(&qmp, disk.volume).await;
    }
    Plug::forget(&dir);
    done
}

async fn attach_nic(shared: &Shared, machine: &Machine, nic: &NicDefinition, tap: OwnedFd) -> Result<()> {
    if !devices::attaches_nic(&machine.definition(), nic)? {
        return Ok(());
    }
    let mut slots = machine.books.slots();
    let (Some(at), Some(bus)) = (slots.add_nic(nic), slots.nic_bus(nic.port)) else {
        return Err(no_place("NIC"));
    };
    let dir = VmDir::new(&shared.root, machine.id);
    let qmp = machine.qmp("device_add")?;
    let plug = Plug::Nic { nic: nic.clone(), at };
    plug.note(&dir)?;
    let name = slots::nic_tap(nic.port);
    let plugged = async {
        qmp.execute_within(COMMAND_DEADLINE, "getfd", json!({ "fdname": name }), Some(tap))
            .await?;
        let netdev = json!({ "type": "tap", "id": name, "fd": name });
        if let Err(error) = qmp.execute("netdev_add", netdev).await {
            // It would hold the tap until the monitor's end.
            drop(qmp.execute("closefd", json!({ "fdname": name })).await);
            return Err(error);
        }
        qmp.execute("device_add", argv::nic_device(nic, &bus)).await?;
        machine.books.has_nic(nic, at)
    };
    let done = plugged.await;
    if done.is_err() {
        undo(&qmp, &slots::nic_device(nic.port)).await?;
        plug::drop_nic(&qmp, nic.port).await;
    }
    Plug::forget(&dir);
    done
}

/// After an attachment that failed: a device that came all the same stays, for the next daemon to find in the journal.
async fn undo(qmp: &Qmp, device: &str) -> Result<()> {
    if plug::devices(qmp).await?.contains(device) {
        return Err(Error::Hypervisor {
            command: "device_add".into(),
            why: format!(
                "{device} is there although its attachment failed; it is looked at when VBM starts again"
            ),
        });
    }
    Ok(())
}

fn no_place(what: &str) -> Error {
    Error::Hypervisor {
        command: "device_add".into(),
        why: format!("there is no free root port for the {what}"),
    }
}

fn is_file(path: &Path) -> Result<()> {
    if path.is_file() {
        return Ok(());
    }
    Err(Error::invalid(
        format!("the VM cannot use {}", path.display()),
        "there is no such file",
        "give the path of a file that is there",
    ))
}

/// Asks the guest to let go of a device, and waits until it has.
async fn unplug(cx: &OpCx, machine: &Machine, device: &str, what: String) -> Result<()> {
    let mut told = machine.unplugs.subscribe();
    let qmp = machine.qmp("device_del")?;
    if let Err(error) = qmp.execute("device_del", json!({ "id": device })).await {
        if !plug::devices(&qmp).await?.contains(device) {
            return Ok(());
        }
        // Asked before, and the guest has not answered yet.
        let asked =
            matches!(&error, Error::Hypervisor { why, .. } if why.contains("in the process of unplug"));
        if !asked {
            return Err(error);
        }
    }
    let answer = timeout(UNPLUG_DEADLINE, answer(&mut told, device));
    match cx.run("a detachment", async { Ok(answer.await) }).await? {
        Ok(Some(Unplug::Gone(_))) => Ok(()),
        Ok(Some(Unplug::Refused(_))) => Err(Error::GuestRefused {
            what,
            why: "its system says that the device cannot be removed now".into(),
        }),
        Ok(None) => Err(Error::Disconnected {
            command: "device_del".into(),
        }),
        Err(_) if !plug::devices(&qmp).await?.contains(device) => Ok(()),
        Err(_) => Err(Error::GuestSilent {
            what,
            after: UNPLUG_DEADLINE,
        }),
    }
}

/// What becomes of a device; `None`: nobody tells any more.
async fn answer(told: &mut broadcast::Receiver<Unplug>, device: &str) -> Option<Unplug> {
    loop {
        match told.recv().await {
            Ok(Unplug::Gone(id) | Unplug::Refused(id)) if id != device => {}
            Ok(answer) => return Some(answer),
            // Then the deadline decides: QEMU is asked.
            Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return None,
        }
    }
}

async fn lose_disk(machine: &Machine, volume: VolumeId) -> Result<()> {
    plug::drop_disk(&machine.qmp("blockdev-del")?, volume).await;
    machine.books.lost_disk(volume)
}

async fn lose_nic(machine: &Machine, port: PortId) -> Result<()> {
    plug::drop_nic(&machine.qmp("netdev_del")?, port).await;
    machine.books.lost_nic(port)
}

/// The guest has let go of a device: what is behind it goes too, if nobody waited for that.
pub(super) async fn let_go(shared: Arc<Shared>, id: VmId, device: String) {
    let Ok(Entry::Live(machine)) = shared.entry(id) else {
        return;
    };
    // Cancel safe: the next daemon sees that the device is gone.
    let _alone = tokio::select! {
        () = shared.scope.end.cancelled() => return,
        alone = machine.plugging.lock() => alone,
    };
    let definition = machine.definition();
    for disk in &definition.disks {
        if slots::disk_device(disk.volume) == device {
            tell_late(id, &device, lose_disk(&machine, disk.volume).await);
        }
    }
    for nic in &definition.nics {
        if slots::nic_device(nic.port) == device {
            tell_late(id, &device, lose_nic(&machine, nic.port).await);
        }
    }
}

fn tell_late(id: VmId, device: &str, done: Result<()>) {
    match done {
        Ok(()) => tracing::info!(%id, device, "the guest has let go of a device after all"),
        Err(error) => {
            tracing::warn!(%id, device, %error, "a device that the guest let go of is not cleared away")
        }
    }
}

/// The size of a disk as the guest sees it.
async fn size_of(machine: &Machine, node: &str) -> Result<u64> {
    let nodes = machine
        .command("query-named-block-nodes", json!({ "flat": true }))
        .await?;
    let mut nodes = nodes.as_array().into_iter().flatten();
    let found = nodes.find(|found| found["node-name"] == node);
    found
        .and_then(|found| found["image"]["virtual-size"].as_u64())
        .ok_or_else(|| Error::Hypervisor {
            command: "query-named-block-nodes".into(),
            why: format!("it tells no size of {node}"),
        })
}

async fn change_medium(shared: &Shared, machine: &Machine, medium: Option<&Path>) -> Result<()> {
    if !machine.books.slots().drive {
        return Err(unsupported(
            "change the medium of this run of the VM".into(),
            "it was started without a CD drive; start it once with a medium, and it keeps the drive",
        ));
    }
    if machine.definition().hardware.cdrom.as_deref() == medium {
        return Ok(());
    }
    medium.map_or(Ok(()), is_file)?;
    let dir = VmDir::new(&shared.root, machine.id);
    let plug = Plug::Medium {
        medium: medium.map(Path::to_owned),
    };
    plug.note(&dir)?;
    let changed = match medium {
        Some(medium) => insert(machine, medium).await,
        None => eject(machine).await,
    };
    if changed.is_ok() {
        machine.books.has_medium(medium.map(Path::to_owned))?;
    }
    Plug::forget(&dir);
    changed.map(drop)
}

async fn insert(machine: &Machine, medium: &Path) -> Result<Value> {
    let arguments = json!({
        "id": DRIVE, "filename": medium, "format": "raw", "read-only-mode": "read-only", "force": true,
    });
    machine.command("blockdev-change-medium", arguments).await
}

async fn eject(machine: &Machine) -> Result<Value> {
    machine
        .command("eject", json!({ "id": DRIVE, "force": true }))
        .await?;
    machine
        .command("blockdev-close-tray", json!({ "id": DRIVE }))
        .await
}
