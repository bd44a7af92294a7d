//! Hot-plug of QEMU where the conformance suite cannot look: daemons that die at any step, taps, disks that are full.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests panic and print as tests do"
)]

mod common;

use common::{PATIENCE, QemuBench, QmpClient, READY, converse, definition, kill_9, left_out, read_until};
use serde_json::json;
use std::{path::PathBuf, process::Command, time::Duration};
use tokio::{io::AsyncWriteExt, time::timeout};
use vbm_core::{CrashCause, ErrorKind, PauseReason, PowerState, VmId};
use vbm_hyper::{Consoles, DiskDefinition, Driver, Hotplug, OpCx, QemuDriver, VmDefinition};

async fn open(bench: &QemuBench) -> QemuDriver {
    QemuDriver::open(bench.config()).await.unwrap()
}

/// A VM whose firmware finds nothing to boot.
fn empty(bench: &QemuBench) -> VmDefinition {
    bench.known(definition(bench.data_disk(8 << 20, false).path))
}

async fn until(driver: &QemuDriver, id: VmId, wanted: PowerState) {
    let mut events = driver.events();
    let wait = async {
        while driver.inspect(id).await.unwrap().power != wanted {
            drop(timeout(Duration::from_millis(200), events.recv()).await);
        }
    };
    assert!(
        timeout(PATIENCE, wait).await.is_ok(),
        "it does not become {wanted}"
    );
}

fn run_dir(bench: &QemuBench, id: VmId) -> PathBuf {
    bench.dir.path().join("run").join(id.to_string())
}

fn hex(disk: &DiskDefinition) -> String {
    disk.volume.uuid().simple().to_string()[..30].to_owned()
}

fn nodes(qmp: &mut QmpClient) -> String {
    qmp.run("query-named-block-nodes", json!({ "flat": true }))
        .to_string()
}

/// The daemon dies after each step of an attachment: the next one finishes what is plugged in, and undoes the rest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attachment_that_was_cut_in_two_is_finished_or_undone() {
    if left_out("qemu") {
        return;
    }
    let bench = QemuBench::make().await;
    let vm = empty(&bench);
    let driver = open(&bench).await;
    driver.start(&OpCx::new(), &vm, vec![]).await.unwrap();
    driver.shutdown().await;
    let mut expected = vm.clone();
    for steps in 0..=2 {
        let disk = bench.data_disk(8 << 20, false);
        let plug = json!({ "plug": "disk", "disk": disk, "at": 5 });
        std::fs::write(run_dir(&bench, vm.id).join("plug"), plug.to_string()).unwrap();
        let mut qmp = QmpClient::connect(&bench, vm.id);
        if steps > 0 {
            let file = json!({ "driver": "file", "filename": disk.path });
            let node = json!({ "driver": "qcow2", "node-name": format!("d{}", hex(&disk)), "file": file });
            qmp.run("blockdev-add", node);
        }
        if steps > 1 {
            let device = json!({
                "driver": "virtio-blk-pci", "id": format!("v{}", hex(&disk)), "drive": format!("d{}", hex(&disk)), "bus": "p13",
            });
            qmp.run("device_add", device);
            expected.disks.push(disk.clone());
        }
        drop(qmp);
        let driver = open(&bench).await;
        let adopted = driver.adopt().await.unwrap();
        assert_eq!(adopted[0].definition, expected, "after {steps} steps");
        assert!(!run_dir(&bench, vm.id).join("plug").exists());
        let mut qmp = QmpClient::connect(&bench, vm.id);
        assert_eq!(
            nodes(&mut qmp).contains(&hex(&disk)),
            steps > 1,
            "after {steps} steps"
        );
        driver.shutdown().await;
    }
    // What was finished stays known, and its place is taken.
    let driver = open(&bench).await;
    assert_eq!(driver.adopt().await.unwrap()[0].definition, expected);
    let another = bench.data_disk(8 << 20, false);
    driver.attach_disk(&OpCx::new(), vm.id, &another).await.unwrap();
    driver.kill(vm.id).await.unwrap();
    driver.shutdown().await;
}

/// A guest that hears nothing keeps its disk; nothing is lost, and what is asked again is asked again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_guest_keeps_its_disk() {
    if left_out("qemu") {
        return;
    }
    let bench = QemuBench::make().await;
    let (vm, disk) = (empty(&bench), bench.data_disk(8 << 20, false));
    let driver = open(&bench).await;
    driver.start(&OpCx::new(), &vm, vec![]).await.unwrap();
    driver.attach_disk(&OpCx::new(), vm.id, &disk).await.unwrap();
    for _ in 0..2 {
        let cx = OpCx::new().within(Duration::from_secs(1));
        let error = driver.detach_disk(&cx, vm.id, disk.volume).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
        let devices = driver.devices(vm.id).await.unwrap();
        assert_eq!(devices.disks, std::slice::from_ref(&disk));
    }
    assert_eq!(driver.inspect(vm.id).await.unwrap().power, PowerState::Running);
    driver.kill(vm.id).await.unwrap();
    driver.shutdown().await;
}

/// Ends that nobody asked for are told in words, also by the next daemon.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_a_process_ended_is_told() {
    if left_out("qemu") {
        return;
    }
    let bench = QemuBench::make().await;
    let driver = open(&bench).await;
    let crashed = PowerState::Crashed(CrashCause::Hypervisor);
    let vm = empty(&bench);
    let pid = driver
        .start(&OpCx::new(), &vm, vec![])
        .await
        .unwrap()
        .pid
        .unwrap();
    assert_eq!(driver.cause(vm.id).await, None, "it runs");
    kill_9(pid);
    until(&driver, vm.id, crashed).await;
    let told = driver.cause(vm.id).await.unwrap();
    assert!(told.contains("signal 9"), "{told}");

    let pid = driver
        .start(&OpCx::new(), &vm, vec![])
        .await
        .unwrap()
        .pid
        .unwrap();
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    until(&driver, vm.id, crashed).await;
    let told = driver.cause(vm.id).await.unwrap();
    assert!(told.contains("sent QEMU a signal"), "{told}");
    driver.shutdown().await;
    let driver = open(&bench).await;
    driver.adopt().await.unwrap();
    assert_eq!(driver.cause(vm.id).await, Some(told), "it is remembered");
    driver.shutdown().await;
}

/// Runs one helper of this file in a network and a mount namespace of its own, with a small disk.
fn in_namespaces(helper: &str, sentence: &str) {
    let small = tempfile::tempdir().unwrap();
    let out = Command::new("unshare")
        .args(["--mount", "--net", "--propagation", "private", "sh", "-ec"])
        .arg("mount -t tmpfs -o size=16m small \"$VBM_TEST_SMALL_DISK\"; exec \"$0\" --exact \"$1\" --nocapture")
        .arg(std::env::current_exe().unwrap())
        .arg(helper)
        .env("VBM_TEST_SMALL_DISK", small.path())
        .output()
        .expect("unshare of util-linux is there");
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(
        text.contains(sentence),
        "namespaces need root; leave this out with VBM_LEAVE_OUT=root. {text}"
    );
}

#[test]
fn a_full_disk_halts_its_vm_and_is_named() {
    if left_out("qemu") || left_out("root") {
        return;
    }
    in_namespaces("helper_in_namespaces", "FULL DISK SURVIVED");
}

/// Not a test of its own: one guest for all that needs namespaces.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn helper_in_namespaces() {
    let Some(small) = std::env::var_os("VBM_TEST_SMALL_DISK").map(PathBuf::from) else {
        return;
    };
    let bench = QemuBench::make().await;
    let (driver, vm) = (open(&bench).await, bench.direct());
    driver.start(&OpCx::new(), &vm, vec![]).await.unwrap();
    let mut serial = driver.serial(vm.id).await.unwrap();
    read_until(&mut serial, READY).await;
    a_full_disk(&bench, &driver, vm.id, small).await;
    driver.kill(vm.id).await.unwrap();
    driver.shutdown().await;
    println!("\nFULL DISK SURVIVED");
}

async fn a_full_disk(bench: &QemuBench, driver: &QemuDriver, id: VmId, small: PathBuf) {
    let mut disk = bench.data_disk(32 << 20, false);
    let path = small.join("data.qcow2");
    std::fs::copy(&disk.path, &path).unwrap();
    disk.path = path;
    let filler = small.join("filler");
    std::fs::write(&filler, vec![1; 9 << 20]).unwrap();
    driver.attach_disk(&OpCx::new(), id, &disk).await.unwrap();
    let mut serial = driver.serial(id).await.unwrap();
    converse(
        &mut serial,
        "ls /sys/block | grep -c vdb | sed s/^/disks=/",
        "disks=1",
    )
    .await;
    let line = "dd if=/dev/zero of=/dev/vdb bs=64k count=160 conv=fsync; echo written=$?\n";
    serial.write_all(line.as_bytes()).await.unwrap();
    until(driver, id, PowerState::Paused(PauseReason::DiskError)).await;
    let told = driver.cause(id).await.unwrap();
    let named = told.contains(&disk.volume.to_string()) && told.contains("no room left");
    assert!(named, "{told}");
    // Still full: it goes on, and is halted again.
    driver.resume(id).await.unwrap();
    until(driver, id, PowerState::Paused(PauseReason::DiskError)).await;
    // Once there is room, nothing was lost.
    std::fs::remove_file(&filler).unwrap();
    driver.resume(id).await.unwrap();
    read_until(&mut serial, "written=0").await;
    assert_eq!(driver.inspect(id).await.unwrap().power, PowerState::Running);
}
