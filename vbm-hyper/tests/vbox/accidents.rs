//! What goes wrong with VirtualBox, and what becomes of it.

use crate::{common, vbox::FakeBench};
use std::time::Duration;
use tokio::{sync::broadcast, time::timeout};
use vbm_core::{CrashCause, ErrorKind, PowerEvent, PowerState, SnapshotContent, SnapshotId, VmId};
use vbm_hyper::{Consoles, Driver, DriverEvent, Error, OpCx, SavedState, Snapshots, VirtualBoxDriver};

/// Waits for an event of a VM.
async fn event(events: &mut broadcast::Receiver<DriverEvent>, id: VmId, wanted: PowerEvent) {
    let found = async {
        loop {
            let event = events.recv().await.unwrap();
            if event.id == id && event.event == wanted {
                return;
            }
        }
    };
    timeout(common::PATIENCE, found)
        .await
        .unwrap_or_else(|_| panic!("{wanted:?} did not come"));
}

async fn power(driver: &VirtualBoxDriver, id: VmId) -> PowerState {
    driver.inspect(id).await.unwrap().power
}

fn snapshot(number: u128) -> SnapshotId {
    SnapshotId::from_uuid(uuid::Uuid::from_u128(number))
}

#[tokio::test]
async fn a_display_that_fails_does_not_fail_the_start() {
    let bench = FakeBench::make().await;
    let (driver, vm) = (bench.driver().await, bench.vm().await);
    bench.knob("display-fails", "");
    driver.start(&OpCx::new(), &vm, vec![]).await.unwrap();
    assert_eq!(power(&driver, vm.id).await, PowerState::Running);
    driver.screenshot(vm.id).await.expect("pictures need no display");
    let Err(error) = driver.vnc(vm.id).await else {
        panic!("there is no display")
    };
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    driver.kill(vm.id).await.unwrap();
    bench.unknob("display-fails");
    driver.start(&OpCx::new(), &vm, vec![]).await.unwrap();
    driver.vnc(vm.id).await.expect("it has one again");
    driver.kill(vm.id).await.unwrap();
}

#[tokio::test]
async fn a_start_that_fails_tells_virtualboxs_words_and_leaves_the_vm_off() {
    let bench = FakeBench::make().await;
    let (driver, vm) = (bench.driver().await, bench.vm().await);
    bench.knob("start-fails", "");
    let error = driver.start(&OpCx::new(), &vm, vec![]).await.unwrap_err();
    assert!(
        matches!(&error, Error::StartFailed { why } if why.contains("terminated unexpectedly")),
        "{error}"
    );
    assert_eq!(power(&driver, vm.id).await, PowerState::Off);
    bench.unknob("start-fails");
    driver.start(&OpCx::new(), &vm, vec![]).await.unwrap();
    driver.kill(vm.id).await.unwrap();
    driver.undefine(vm.id).await.unwrap();
}

#[tokio::test]
async fn a_vm_that_virtualbox_does_not_end_is_ended_by_its_process() {
    let bench = FakeBench::make().await;
    let (driver, vm) = (bench.driver().await, bench.vm().await);
    driver.start(&OpCx::new(), &vm, vec![]).await.unwrap();
    bench.knob("poweroff-fails", "");
    driver.kill(vm.id).await.unwrap();
    assert_eq!(power(&driver, vm.id).await, PowerState::Off, "and not crashed");
}

#[tokio::test]
async fn a_snapshot_that_fails_leaves_nothing_and_the_vm_runs() {
    let bench = FakeBench::make().await;
    let (driver, vm) = (bench.driver().await, bench.vm().await);
    driver.start(&OpCx::new(), &vm, vec![]).await.unwrap();
    bench.knob("snapshot-fails", "");
    let error = driver
        .take(&OpCx::new(), &vm, snapshot(1).into())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("no room"), "{error}");
    assert_eq!(power(&driver, vm.id).await, PowerState::Running);
    assert_eq!(driver.list(&vm).await.unwrap(), []);
    driver.kill(vm.id).await.unwrap();
}

#[tokio::test]
async fn a_snapshot_that_two_stand_on_is_deleted_leaf_first() {
    let bench = FakeBench::make().await;
    let (driver, vm) = (bench.driver().await, bench.vm().await);
    for (number, back) in [(1, false), (2, true), (3, false)] {
        driver
            .take(&OpCx::new(), &vm, snapshot(number).into())
            .await
            .unwrap();
        if back {
            driver
                .revert(&OpCx::new(), &vm, snapshot(1), vec![])
                .await
                .unwrap();
        }
    }
    let error = vbm_core::Error::from(driver.delete(&OpCx::new(), &vm, snapshot(1)).await.unwrap_err());
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.why().starts_with("2 snapshots stand on it"), "{error}");
    driver.delete(&OpCx::new(), &vm, snapshot(2)).await.unwrap();
    driver.delete(&OpCx::new(), &vm, snapshot(1)).await.unwrap();
    assert_eq!(
        driver.list(&vm).await.unwrap(),
        [(snapshot(3), SnapshotContent::Disk)]
    );
}

#[tokio::test]
async fn vms_that_cannot_be_looked_at_are_unresponsive_and_not_off_and_come_back() {
    let bench = FakeBench::make().await;
    let (driver, vm) = (bench.driver().await, bench.vm().await);
    driver.start(&OpCx::new(), &vm, vec![]).await.unwrap();
    let mut events = driver.events();
    bench.knob("list-fails", "");
    event(&mut events, vm.id, PowerEvent::Silence).await;
    assert_eq!(power(&driver, vm.id).await, PowerState::Unresponsive);
    bench.unknob("list-fails");
    event(&mut events, vm.id, PowerEvent::Started).await;
    bench.knob("state-word", "meditating");
    event(&mut events, vm.id, PowerEvent::Silence).await;
    bench.unknob("state-word");
    event(&mut events, vm.id, PowerEvent::Started).await;
    driver.kill(vm.id).await.unwrap();
}

#[tokio::test]
async fn when_vboxsvc_crashes_all_vms_have_crashed_and_can_be_started_again() {
    let bench = FakeBench::make().await;
    let driver = bench.driver().await;
    let vms = [bench.vm().await, bench.vm().await];
    let mut events = driver.events();
    let mut pids = Vec::new();
    for vm in &vms {
        pids.push(driver.start(&OpCx::new(), vm, vec![]).await.unwrap().pid.unwrap());
    }
    pids.into_iter().for_each(common::kill_9);
    for vm in &vms {
        while power(&driver, vm.id).await == PowerState::Running {
            events.recv().await.unwrap();
        }
        assert_eq!(
            power(&driver, vm.id).await,
            PowerState::Crashed(CrashCause::Hypervisor)
        );
        driver.start(&OpCx::new(), vm, vec![]).await.unwrap();
        driver.kill(vm.id).await.unwrap();
    }
}

#[tokio::test]
async fn a_vm_that_ran_when_the_host_went_down_has_crashed_with_it() {
    let bench = FakeBench::make().await;
    let (driver, vm) = (bench.driver().await, bench.vm().await);
    let pid = driver
        .start(&OpCx::new(), &vm, vec![])
        .await
        .unwrap()
        .pid
        .unwrap();
    driver.shutdown().await;
    common::kill_9(pid);
    let path = bench.dir.path().join(format!("vbox/vms/{}/run", vm.id));
    let text = std::fs::read_to_string(&path).unwrap();
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    std::fs::write(&path, text.replace(boot.trim(), "another boot")).unwrap();
    let driver = bench.driver().await;
    let adopted = driver.adopt().await.unwrap();
    assert_eq!(adopted[0].seen.power, PowerState::Crashed(CrashCause::Host));
}

#[tokio::test]
async fn a_vm_whose_start_was_cut_in_two_is_ended_when_it_is_found() {
    let bench = FakeBench::make().await;
    let (driver, vm) = (bench.driver().await, bench.vm().await);
    driver.start(&OpCx::new(), &vm, vec![]).await.unwrap();
    driver.shutdown().await;
    // As a daemon leaves it that dies before it could say that the VM runs.
    let path = bench.dir.path().join(format!("vbox/vms/{}/run", vm.id));
    let mut run: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    run["started_at"] = serde_json::Value::Null;
    std::fs::write(&path, run.to_string()).unwrap();
    let driver = bench.driver().await;
    let mut events = driver.events();
    assert_eq!(driver.adopt().await.unwrap(), []);
    event(&mut events, vm.id, PowerEvent::ForceOff).await;
    assert_eq!(power(&driver, vm.id).await, PowerState::Off);
    driver.start(&OpCx::new(), &vm, vec![]).await.unwrap();
    driver.kill(vm.id).await.unwrap();
}

#[tokio::test]
async fn what_is_written_down_as_garbage_is_left_alone_and_unknown() {
    let bench = FakeBench::make().await;
    let (driver, vm) = (bench.driver().await, bench.vm().await);
    driver.start(&OpCx::new(), &vm, vec![]).await.unwrap();
    driver.shutdown().await;
    let path = bench.dir.path().join(format!("vbox/vms/{}/run", vm.id));
    std::fs::write(&path, b"{\"definition\":").unwrap();
    let driver = bench.driver().await;
    driver.adopt().await.unwrap();
    assert_eq!(power(&driver, vm.id).await, PowerState::Unknown);
    driver.kill(vm.id).await.expect("it can be ended all the same");
    assert_eq!(power(&driver, vm.id).await, PowerState::Off);
}

#[tokio::test]
async fn a_vboxmanage_that_hangs_does_not_hold_the_daemon_nor_the_inventory() {
    let bench = FakeBench::make().await;
    let (driver, vm) = (bench.driver().await, bench.vm().await);
    driver.start(&OpCx::new(), &vm, vec![]).await.unwrap();
    bench.knob("hang", "1000");
    let at_once = Duration::from_secs(2);
    let inventory = timeout(at_once, driver.inventory())
        .await
        .expect("it asks nobody");
    assert_eq!(inventory.unwrap()[0].1.power, PowerState::Running);
    let paused = timeout(at_once, driver.pause(vm.id)).await;
    assert!(paused.is_err(), "it waits for VBoxManage");
    timeout(at_once, driver.shutdown())
        .await
        .expect("it waits for nobody");
    bench.unknob("hang");
}

#[tokio::test]
async fn what_somebody_does_by_hand_to_a_vm_of_ours_is_seen() {
    let bench = FakeBench::make().await;
    let (driver, vm) = (bench.driver().await, bench.vm().await);
    let mut events = driver.events();
    driver.start(&OpCx::new(), &vm, vec![]).await.unwrap();
    let id = vm.id.to_string();
    bench.by_hand(&["controlvm", &id, "savestate"]);
    event(&mut events, vm.id, PowerEvent::SaveDone).await;
    assert_eq!(power(&driver, vm.id).await, PowerState::Saved);
    driver.restore(&OpCx::new(), &vm, vec![]).await.unwrap();
    bench.by_hand(&["controlvm", &id, "poweroff"]);
    event(&mut events, vm.id, PowerEvent::ShutDown).await;
    assert_eq!(power(&driver, vm.id).await, PowerState::Off);
}
