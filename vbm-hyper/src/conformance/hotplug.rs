//! Devices that come and go.
//!
//! Checks need no guest: what a guest must take part in (letting go) is checked where a bench has one that obeys.

use super::*;
use crate::{DiskDefinition, Hotplug, WhichDisk};

impl Ground<'_> {
    fn hotplug(&self) -> Result<&dyn Hotplug, Verdict> {
        let why = || self.left_out(Facet::Hotplug);
        self.driver.hotplug().ok_or_else(why)
    }

    async fn disks(&self, id: VmId) -> Vec<DiskDefinition> {
        let hotplug = self.driver.hotplug().expect("it was there before");
        hotplug.devices(id).await.expect("it lives").disks
    }
}

macro_rules! hotplug {
    ($ground:ident) => {
        match $ground.hotplug() {
            Ok(hotplug) => hotplug,
            Err(verdict) => return verdict,
        }
    };
}

/// Disks come in order; the same one twice is fine, another one with its volume or its file is a conflict.
pub async fn disks_are_attached_in_order_and_once(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let hotplug = hotplug!(ground);
    let id = ground.started().await;
    let (first, second) = match (bench.volume(), bench.volume()) {
        (Ok(first), Ok(second)) => (first, second),
        (Err(why), _) | (_, Err(why)) => return Verdict::LeftOut(why),
    };
    for disk in [&first, &second, &first] {
        let attached = hotplug.attach_disk(&ground.cx, id, disk);
        ground.patiently("attach", attached).await.expect("it runs");
    }
    assert_eq!(
        ground.disks(id).await,
        [first.clone(), second.clone()],
        "in the order they came"
    );
    let other_way = DiskDefinition {
        read_only: !first.read_only,
        ..first.clone()
    };
    refused(
        hotplug.attach_disk(&ground.cx, id, &other_way).await,
        "a volume that is attached in another way",
    );
    let same_file = DiskDefinition {
        path: first.path.clone(),
        ..bench.volume().expect("there were two")
    };
    refused(
        hotplug.attach_disk(&ground.cx, id, &same_file).await,
        "a file that is a disk already",
    );
    assert_eq!(ground.disks(id).await.len(), 2, "what is refused changes nothing");
    assert_eq!(ground.power(id).await, PowerState::Running);
    ground.done(&[id]).await
}

/// What is attached outlives the driver, and is part of what is adopted.
pub async fn an_adopted_vm_knows_what_was_attached(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let hotplug = hotplug!(ground);
    let definition = bench.definition();
    let id = ground.start(&definition).await;
    let disk = match bench.volume() {
        Ok(disk) => disk,
        Err(why) => return Verdict::LeftOut(why),
    };
    hotplug.attach_disk(&ground.cx, id, &disk).await.expect("it runs");
    let (ground, adopted) = reopen(ground).await;
    let mine = adopted
        .iter()
        .find(|vm| vm.id == id)
        .expect("the VM is among the adopted");
    let expected = VmDefinition {
        disks: vec![disk],
        ..definition
    };
    assert_eq!(mine.definition, expected);
    let hotplug = hotplug!(ground);
    assert_eq!(hotplug.devices(id).await.expect("it lives"), expected);
    ground.done(&[id]).await
}

/// A paused VM gets devices too, but cannot let go of any; one that is off has its definition for that.
pub async fn devices_are_changed_on_vms_that_live(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let hotplug = hotplug!(ground);
    let (cx, definition) = (&ground.cx, bench.definition());
    let id = ground.start(&definition).await;
    let disk = match bench.volume() {
        Ok(disk) => disk,
        Err(why) => return Verdict::LeftOut(why),
    };
    ground.driver.pause(id).await.expect("it runs");
    hotplug.attach_disk(cx, id, &disk).await.expect("it is paused");
    refused(
        hotplug.detach_disk(cx, id, disk.volume).await,
        "a halted guest lets go of nothing",
    );
    ground.driver.resume(id).await.expect("it is paused");
    ground.kill(id).await;
    refused(
        hotplug.attach_disk(cx, id, &disk).await,
        "attachment to a VM that is off",
    );
    refused(
        hotplug.detach_disk(cx, id, disk.volume).await,
        "detachment from a VM that is off",
    );
    refused(
        hotplug.resize_disk(cx, id, WhichDisk::Root, 1 << 31).await,
        "growth of a disk of a VM that is off",
    );
    refused(
        hotplug.change_medium(cx, id, None).await,
        "a medium for a VM that is off",
    );
    refused(hotplug.devices(id).await, "the devices of a VM that is off");
    let nobody = bench.definition().id;
    let error = hotplug
        .attach_disk(cx, nobody, &disk)
        .await
        .expect_err("it was never started");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    // What was attached to a run is not in the next one, unless its definition says so.
    ground.start(&definition).await;
    assert_eq!(ground.disks(id).await, []);
    ground.done(&[id]).await
}

/// A disk grows while the VM runs, never shrinks; the same size again is fine.
pub async fn a_disk_grows_and_never_shrinks(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let hotplug = hotplug!(ground);
    let id = ground.started().await;
    let disk = match bench.volume() {
        Ok(disk) => disk,
        Err(why) => return Verdict::LeftOut(why),
    };
    hotplug.attach_disk(&ground.cx, id, &disk).await.expect("it runs");
    let data = WhichDisk::Data(disk.volume);
    for bytes in [2 << 30, 2 << 30, 3 << 30] {
        for which in [WhichDisk::Root, data] {
            let grown = hotplug.resize_disk(&ground.cx, id, which, bytes).await;
            grown.expect("a disk grows");
        }
    }
    let stranger = WhichDisk::Data(bench.volume().expect("there was one").volume);
    for (which, bytes) in [
        (data, 2 << 30),
        (data, (4 << 30) + 1),
        (data, u64::MAX - 511),
        (stranger, 4 << 30),
    ] {
        let result = hotplug.resize_disk(&ground.cx, id, which, bytes).await;
        let error = result.expect_err("a size that cannot be");
        assert_eq!(
            error.kind(),
            ErrorKind::InvalidInput,
            "{which:?} {bytes}: {error}"
        );
    }
    ground.done(&[id]).await
}

/// What is not there is detached already; an attachment whose file is not there changes nothing.
pub async fn what_is_not_there_is_detached_already(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let hotplug = hotplug!(ground);
    let id = ground.started().await;
    let disk = match bench.volume() {
        Ok(disk) => disk,
        Err(why) => return Verdict::LeftOut(why),
    };
    let port = vbm_core::PortId::from_uuid(disk.volume.uuid());
    hotplug
        .detach_disk(&ground.cx, id, disk.volume)
        .await
        .expect("it is not there");
    hotplug
        .detach_nic(&ground.cx, id, port)
        .await
        .expect("it is not there");
    let relative = DiskDefinition {
        path: "disk.qcow2".into(),
        ..disk
    };
    let error = hotplug.attach_disk(&ground.cx, id, &relative).await;
    assert_eq!(
        error.expect_err("a path that is not absolute").kind(),
        ErrorKind::InvalidInput
    );
    assert_eq!(ground.disks(id).await, []);
    ground.done(&[id]).await
}

/// A guest lets go of a disk, which can come again; media come and go.
pub async fn a_guest_lets_go_of_a_disk(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let hotplug = hotplug!(ground);
    let (mut definition, disk, medium) = match (bench.obedient(), bench.volume(), bench.medium()) {
        (Ok(definition), Ok(disk), Ok(medium)) => (definition, disk, medium),
        (Err(why), ..) | (_, Err(why), _) | (.., Err(why)) => return Verdict::LeftOut(why),
    };
    definition.hardware.cdrom = Some(medium.clone());
    let id = ground.start(&definition).await;
    bench.booted(&*ground.driver, id).await;
    for medium in [None, None, Some(medium.as_path()), None] {
        let changed = hotplug.change_medium(&ground.cx, id, medium);
        ground
            .patiently("change of medium", changed)
            .await
            .expect("it has a drive");
        let devices = hotplug.devices(id).await.expect("it lives");
        assert_eq!(devices.hardware.cdrom.as_deref(), medium);
    }
    for _ in 0..2 {
        hotplug.attach_disk(&ground.cx, id, &disk).await.expect("it runs");
        for _ in 0..2 {
            let detached = hotplug.detach_disk(&ground.cx, id, disk.volume);
            ground
                .patiently("detach", detached)
                .await
                .expect("its guest lets go");
        }
        assert_eq!(ground.disks(id).await, []);
    }
    ground.done(&[id]).await
}
