//! Snapshots, saved memory and migration of real guests: what the conformance suite cannot show. Figures are printed.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests panic and print as tests do"
)]

mod common;

use common::{PATIENCE, QemuBench, READY, converse, kill_9, left_out, read_until};
use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout};
use vbm_core::{CrashCause, PowerState, SnapshotContent, SnapshotId, VmId};
use vbm_hyper::{
    Consoles, Driver, Error, Job, Machines, Migrated, Migration, MoveOptions, OpCx, QemuDriver, SavedState,
    Snapshots, VmDefinition,
};

const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// Moments of a transfer at which something breaks. Whatever happens first, the outcome must be one of the sound ones.
const MOMENTS_MILLIS: &[u64] = &[0, 20, 60, 120, 250];

async fn here(bench: &QemuBench) -> QemuDriver {
    QemuDriver::open(bench.config()).await.unwrap()
}

async fn beside(bench: &QemuBench) -> QemuDriver {
    QemuDriver::open(bench.config_beside()).await.unwrap()
}

async fn booted(driver: &QemuDriver, definition: &VmDefinition) {
    driver.start(&OpCx::new(), definition, vec![]).await.unwrap();
    let mut serial = driver.serial(definition.id).await.unwrap();
    read_until(&mut serial, READY).await;
}

/// Lets the guest remember a word.
async fn remember(driver: &QemuDriver, id: VmId, word: &str) {
    let mut serial = driver.serial(id).await.unwrap();
    converse(
        &mut serial,
        &format!("M={word}; echo \"kept\"=$M"),
        &format!("kept={word}"),
    )
    .await;
}

/// Whether the guest remembers the word; it answers, so it runs.
async fn remembers(driver: &QemuDriver, id: VmId, word: &str) {
    let mut serial = driver.serial(id).await.unwrap();
    let nonce = uuid::Uuid::now_v7().simple().to_string();
    let line = format!("echo \"{}\"{}=$M", &nonce[..16], &nonce[16..]);
    converse(&mut serial, &line, &format!("{nonce}={word}")).await;
}

async fn power(driver: &QemuDriver, id: VmId) -> PowerState {
    match driver.inspect(id).await {
        Err(Error::NoSuchVm(_)) => PowerState::Off,
        seen => seen.unwrap().power,
    }
}

/// Waits until the power is as wanted.
async fn until(driver: &QemuDriver, id: VmId, wanted: impl Fn(PowerState) -> bool) -> PowerState {
    let mut events = driver.events();
    let mut last = PowerState::Unknown;
    let wait = async {
        loop {
            last = power(driver, id).await;
            if wanted(last) {
                return last;
            }
            drop(timeout(Duration::from_millis(200), events.recv()).await);
        }
    };
    let come = timeout(PATIENCE, wait).await;
    come.unwrap_or_else(|_| panic!("it stays {last}"))
}

async fn receive(driver: &QemuDriver, definition: &VmDefinition) -> SocketAddr {
    driver
        .receive(&OpCx::new(), definition, vec![], HERE, &MoveOptions::default())
        .await
        .unwrap()
        .memory
}

fn memory_dir(definition: &VmDefinition) -> PathBuf {
    let mut name = definition.root_disk.clone().into_os_string();
    name.push(".memory");
    name.into()
}

/// What lies beside the disk: nothing, when there is no such folder.
fn beside_disk(definition: &VmDefinition) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(memory_dir(definition)) else {
        return Vec::new();
    };
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

fn snapshot() -> SnapshotId {
    SnapshotId::from_uuid(uuid::Uuid::now_v7())
}

/// Sends in a task, so that something can happen meanwhile.
fn send(
    driver: &Arc<QemuDriver>,
    id: VmId,
    to: SocketAddr,
) -> tokio::task::JoinHandle<Result<Migrated, Error>> {
    let driver = Arc::clone(driver);
    tokio::spawn(async move {
        driver
            .send(&OpCx::new(), id, &to.into(), &MoveOptions::default())
            .await
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_times_of_each_facet_are_seen() {
    if left_out("qemu") {
        return;
    }
    let bench = QemuBench::make().await;
    let (driver, other) = (here(&bench).await, beside(&bench).await);
    let definition = bench.direct();
    let id = definition.id;
    booted(&driver, &definition).await;
    remember(&driver, id, "alpha").await;
    let mut pauses = Vec::new();
    let snapshots: Vec<_> = (0..3).map(|_| snapshot()).collect();
    for snapshot in &snapshots {
        let begun = Instant::now();
        let taken = driver
            .take(&OpCx::new(), &definition, (*snapshot).into())
            .await
            .unwrap();
        pauses.push((taken.paused, begun.elapsed()));
    }
    println!("live snapshot, (guest halted, all of it): {pauses:?}");
    let begun = Instant::now();
    driver.save(&OpCx::new(), id).await.unwrap();
    let saved = begun.elapsed();
    driver.restore(&OpCx::new(), &definition, vec![]).await.unwrap();
    println!("save: {saved:?}, restore: {:?}", begun.elapsed() - saved);
    let to = receive(&other, &definition).await;
    let moved = driver
        .send(&OpCx::new(), id, &to.into(), &MoveOptions::default())
        .await
        .unwrap();
    println!("migration: {moved:?}");
    until(&other, id, |power| power == PowerState::Running).await;
    remembers(&other, id, "alpha").await;
    other.kill(id).await.unwrap();
    let begun = Instant::now();
    other
        .revert(&OpCx::new(), &definition, snapshots[1], vec![])
        .await
        .unwrap();
    println!("revert with memory: {:?}", begun.elapsed());
    remembers(&other, id, "alpha").await;
    for snapshot in &snapshots {
        other.delete(&OpCx::new(), &definition, *snapshot).await.unwrap();
    }
    assert!(beside_disk(&definition).is_empty());
    other.kill(id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_destination_dies_at_any_moment_the_vm_goes_on_at_the_source_or_had_left() {
    if left_out("qemu") {
        return;
    }
    let bench = QemuBench::make().await;
    let (driver, other) = (Arc::new(here(&bench).await), beside(&bench).await);
    let definition = bench.direct();
    let id = definition.id;
    booted(&driver, &definition).await;
    remember(&driver, id, "alpha").await;
    for millis in MOMENTS_MILLIS {
        let to = receive(&other, &definition).await;
        let pid = other.inspect(id).await.unwrap().pid.unwrap();
        let sending = send(&driver, id, to);
        sleep(Duration::from_millis(*millis)).await;
        kill_9(pid);
        let gone = until(&other, id, |power| !power.is_live()).await;
        match sending.await.unwrap() {
            Err(error) => {
                println!("killed after {millis} ms: {error}");
                assert_eq!(power(&driver, id).await, PowerState::Running);
                assert_eq!(gone, PowerState::Off, "what never arrived did not crash");
                remembers(&driver, id, "alpha").await;
            }
            Ok(moved) => {
                println!("killed after {millis} ms: it had left, {moved:?}");
                assert_eq!(power(&driver, id).await, PowerState::Off);
                assert_eq!(gone, PowerState::Crashed(CrashCause::Hypervisor));
                booted(&driver, &definition).await;
                remember(&driver, id, "alpha").await;
                other.kill(id).await.unwrap();
            }
        }
    }
    driver.kill(id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_source_dies_at_any_moment_the_destination_has_all_of_it_or_nothing() {
    if left_out("qemu") {
        return;
    }
    let bench = QemuBench::make().await;
    let (driver, other) = (Arc::new(here(&bench).await), beside(&bench).await);
    let definition = bench.direct();
    let id = definition.id;
    for millis in MOMENTS_MILLIS {
        booted(&driver, &definition).await;
        remember(&driver, id, "alpha").await;
        let pid = driver.inspect(id).await.unwrap().pid.unwrap();
        let to = receive(&other, &definition).await;
        let sending = send(&driver, id, to);
        sleep(Duration::from_millis(*millis)).await;
        kill_9(pid);
        let sent = sending.await.unwrap();
        let here = until(&driver, id, |power| !power.is_live()).await;
        // Where the source died before it sent anything, nobody would come: that is given up.
        let there = until(&other, id, |power| power != PowerState::MigratingIn);
        let there = match timeout(Duration::from_secs(5), there).await {
            Ok(there) => there,
            Err(_) => {
                other.abandon(id).await.unwrap();
                power(&other, id).await
            }
        };
        println!(
            "killed after {millis} ms: {here} here, {there} there, {:?}",
            sent.is_ok()
        );
        match there {
            PowerState::Running => remembers(&other, id, "alpha").await,
            there => assert_eq!((there, sent.is_ok()), (PowerState::Off, false)),
        }
        driver.kill(id).await.unwrap();
        other.kill(id).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_daemon_of_the_source_goes_at_any_moment_exactly_one_copy_runs() {
    if left_out("qemu") {
        return;
    }
    let bench = QemuBench::make().await;
    let other = beside(&bench).await;
    let definition = bench.direct();
    let id = definition.id;
    let mut driver = Arc::new(here(&bench).await);
    for millis in MOMENTS_MILLIS {
        if power(&driver, id).await != PowerState::Running {
            booted(&driver, &definition).await;
        }
        remember(&driver, id, "alpha").await;
        let to = receive(&other, &definition).await;
        let sending = send(&driver, id, to);
        sleep(Duration::from_millis(*millis)).await;
        driver.shutdown().await;
        drop(sending.await.unwrap());
        driver = Arc::new(here(&bench).await);
        driver.adopt().await.unwrap();
        let here = until(&driver, id, |power| {
            matches!(power, PowerState::Running | PowerState::Off)
        })
        .await;
        let there = until(&other, id, |power| {
            here == PowerState::Running || power == PowerState::Running
        })
        .await;
        println!("gone after {millis} ms: {here} here, {there} there");
        if here == PowerState::Running {
            remembers(&driver, id, "alpha").await;
            if there == PowerState::MigratingIn {
                other.abandon(id).await.unwrap_or_default();
            }
            assert_eq!(until(&other, id, |power| !power.is_live()).await, PowerState::Off);
        } else {
            remembers(&other, id, "alpha").await;
        }
        other.kill(id).await.unwrap();
    }
    driver.kill(id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_that_left_while_its_daemon_was_gone_is_ended_here_and_not_let_go_on() {
    if left_out("qemu") {
        return;
    }
    let bench = QemuBench::make().await;
    let (driver, other) = (Arc::new(here(&bench).await), beside(&bench).await);
    let definition = bench.direct();
    let id = definition.id;
    booted(&driver, &definition).await;
    remember(&driver, id, "alpha").await;
    let to = receive(&other, &definition).await;
    let pid = driver.inspect(id).await.unwrap().pid.unwrap();
    // Nothing is read at first, so that the daemon goes in the middle of it.
    let door = tokio::net::TcpListener::bind((HERE, 0)).await.unwrap();
    let sending = send(&driver, id, door.local_addr().unwrap());
    let (mut came, _) = door.accept().await.unwrap();
    driver.shutdown().await;
    drop(driver);
    sending.await.unwrap().unwrap_err();
    let mut onward = tokio::net::TcpStream::connect(to).await.unwrap();
    let forwarding = tokio::spawn(async move { tokio::io::copy_bidirectional(&mut came, &mut onward).await });
    until(&other, id, |power| power == PowerState::Running).await;
    let driver = here(&bench).await;
    assert_eq!(power(&driver, id).await, PowerState::Unknown);
    driver.adopt().await.unwrap();
    assert_eq!(
        until(&driver, id, |power| power != PowerState::Unknown).await,
        PowerState::Off
    );
    assert!(
        !Path::new(&format!("/proc/{pid}/exe")).exists(),
        "its process here is ended"
    );
    remembers(&other, id, "alpha").await;
    assert_eq!(power(&other, id).await, PowerState::Running);
    forwarding.abort();
    other.kill(id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_never_hears_that_the_vm_has_arrived_does_not_let_a_second_copy_run() {
    if left_out("qemu") {
        return;
    }
    let bench = QemuBench::make().await;
    let (driver, other) = (Arc::new(here(&bench).await), beside(&bench).await);
    let definition = bench.direct();
    let id = definition.id;
    booted(&driver, &definition).await;
    remember(&driver, id, "alpha").await;
    let to = receive(&other, &definition).await;
    let door = tokio::net::TcpListener::bind((HERE, 0)).await.unwrap();
    let sending = send(&driver, id, door.local_addr().unwrap());
    let (came, _) = door.accept().await.unwrap();
    let onward = tokio::net::TcpStream::connect(to).await.unwrap();
    let ((mut from_source, back), (answers, mut to_destination)) = (came.into_split(), onward.into_split());
    let forwarding =
        tokio::spawn(async move { tokio::io::copy(&mut from_source, &mut to_destination).await });
    until(&other, id, |power| power == PowerState::Running).await;
    assert_eq!(power(&driver, id).await, PowerState::MigratingOut);
    // The way back ends, with the word on it never said.
    drop((back, answers));
    forwarding.abort();
    drop(forwarding.await);
    println!("{:?}", sending.await.unwrap());
    assert_eq!(power(&driver, id).await, PowerState::Off);
    remembers(&other, id, "alpha").await;
    other.kill(id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_arrives_although_the_daemon_of_the_destination_is_gone() {
    if left_out("qemu") {
        return;
    }
    let bench = QemuBench::make().await;
    let driver = here(&bench).await;
    let definition = bench.direct();
    let id = definition.id;
    booted(&driver, &definition).await;
    remember(&driver, id, "alpha").await;
    // Gone before it comes, and back before it comes; gone all the while.
    let other = beside(&bench).await;
    let to = receive(&other, &definition).await;
    other.shutdown().await;
    drop(other);
    let other = beside(&bench).await;
    other.adopt().await.unwrap();
    assert_eq!(
        power(&other, id).await,
        PowerState::Unknown,
        "nobody can tell yet"
    );
    driver
        .send(&OpCx::new(), id, &to.into(), &MoveOptions::default())
        .await
        .unwrap();
    until(&other, id, |power| power == PowerState::Running).await;
    remembers(&other, id, "alpha").await;

    let back = receive(&driver, &definition).await;
    driver.shutdown().await;
    drop(driver);
    other
        .send(&OpCx::new(), id, &back.into(), &MoveOptions::default())
        .await
        .unwrap();
    assert_eq!(power(&other, id).await, PowerState::Off);
    let driver = here(&bench).await;
    let adopted = driver.adopt().await.unwrap();
    assert!(adopted.iter().any(|vm| vm.id == id));
    until(&driver, id, |power| power == PowerState::Running).await;
    remembers(&driver, id, "alpha").await;
    driver.kill(id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_that_nobody_waits_for_any_more_is_called_off() {
    if left_out("qemu") {
        return;
    }
    let bench = QemuBench::make().await;
    let driver = here(&bench).await;
    let definition = bench.direct();
    let id = definition.id;
    booted(&driver, &definition).await;
    remember(&driver, id, "alpha").await;
    // It is let in, and nothing is read: so it goes on until it is called off.
    let door = tokio::net::TcpListener::bind((HERE, 0)).await.unwrap();
    let to = door.local_addr().unwrap();
    let sending = async {
        let (landing, options) = (to.into(), MoveOptions::default());
        let cx = OpCx::new();
        tokio::select! {
            sent = driver.send(&cx, id, &landing, &options) => panic!("it cannot end: {sent:?}"),
            came = door.accept() => came.unwrap(),
        }
    };
    let _came = sending.await;
    assert_eq!(power(&driver, id).await, PowerState::MigratingOut);
    until(&driver, id, |power| power == PowerState::Running).await;
    remembers(&driver, id, "alpha").await;
    driver.kill(id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn force_off_ends_a_migration_and_a_save_at_once() {
    if left_out("qemu") {
        return;
    }
    let bench = QemuBench::make().await;
    let machines = Machines::open(Arc::new(here(&bench).await)).await.unwrap();
    let definition = bench.direct();
    let vm = machines.vm(definition.id);
    let door = tokio::net::TcpListener::bind((HERE, 0)).await.unwrap();
    let to = door.local_addr().unwrap();
    vm.start(definition.clone(), vec![]).await.unwrap();
    let leaving = {
        let vm = vm.clone();
        tokio::spawn(async move { vm.migrate_out(to, MoveOptions::default()).await })
    };
    let _came = door.accept().await.unwrap();
    assert_eq!(vm.watch().borrow().busy, Some(Job::MigrateOut));
    assert!(matches!(vm.save().await.unwrap_err(), Error::Busy { .. }));
    let begun = Instant::now();
    vm.force_off().await.unwrap();
    println!("off after {:?}", begun.elapsed());
    assert!(matches!(
        leaving.await.unwrap().unwrap_err(),
        Error::Preempted { .. }
    ));
    assert_eq!(vm.inspect().await.unwrap().power(), PowerState::Off);

    for millis in MOMENTS_MILLIS {
        vm.start(definition.clone(), vec![]).await.unwrap();
        let saving = {
            let vm = vm.clone();
            tokio::spawn(async move { vm.save().await })
        };
        sleep(Duration::from_millis(*millis)).await;
        vm.force_off().await.unwrap();
        println!(
            "forced off after {millis} ms: saved before: {}",
            saving.await.unwrap().is_ok()
        );
        assert_eq!(vm.inspect().await.unwrap().power(), PowerState::Off);
        // The work itself may need a moment more than its caller.
        let cleared = async {
            while !beside_disk(&definition).is_empty() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, cleared).await.expect("nothing is left of it");
    }
    vm.start(definition.clone(), vec![]).await.unwrap();
    vm.force_off().await.unwrap();
    vm.remove().await.unwrap();
    machines.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_goes_during_a_save_or_a_snapshot_leaves_it_whole_or_undone() {
    if left_out("qemu") {
        return;
    }
    let bench = QemuBench::make().await;
    let definition = bench.direct();
    let id = definition.id;
    let mut driver = Arc::new(here(&bench).await);
    booted(&driver, &definition).await;
    remember(&driver, id, "alpha").await;
    for millis in MOMENTS_MILLIS {
        let taken = snapshot();
        let taking = {
            let (driver, definition) = (Arc::clone(&driver), definition.clone());
            tokio::spawn(async move { driver.take(&OpCx::new(), &definition, taken.into()).await })
        };
        sleep(Duration::from_millis(*millis)).await;
        driver.shutdown().await;
        let whole = taking.await.unwrap().is_ok();
        driver = Arc::new(here(&bench).await);
        driver.adopt().await.unwrap();
        until(&driver, id, |power| power == PowerState::Running).await;
        remembers(&driver, id, "alpha").await;
        let listed = driver.list(&definition).await.unwrap();
        println!("snapshot, gone after {millis} ms: {listed:?}");
        assert!(!whole || listed == [(taken, SnapshotContent::DiskAndMemory)]);
        driver.delete(&OpCx::new(), &definition, taken).await.unwrap();
        assert!(
            beside_disk(&definition).is_empty(),
            "{:?}",
            beside_disk(&definition)
        );

        let saving = {
            let driver = Arc::clone(&driver);
            tokio::spawn(async move { driver.save(&OpCx::new(), id).await })
        };
        sleep(Duration::from_millis(*millis)).await;
        driver.shutdown().await;
        drop(saving.await.unwrap());
        driver = Arc::new(here(&bench).await);
        driver.adopt().await.unwrap();
        let found = until(&driver, id, |power| {
            matches!(power, PowerState::Running | PowerState::Saved)
        })
        .await;
        println!("save, gone after {millis} ms: {found}");
        if found == PowerState::Saved {
            restore_when_free(&driver, &definition).await;
        }
        remembers(&driver, id, "alpha").await;
    }
    driver.kill(id).await.unwrap();
}

/// The process of the run before may hold the disk for a moment.
async fn restore_when_free(driver: &QemuDriver, definition: &VmDefinition) {
    let restored = driver.restore(&OpCx::new(), definition, vec![]).await;
    assert_eq!(restored.unwrap().power, PowerState::Running);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_saved_vm_survives_a_boot_of_the_host() {
    if left_out("qemu") {
        return;
    }
    let bench = QemuBench::make().await;
    let state = bench.dir.path().join("state");
    let driver = QemuDriver::open(bench.config().with_state(&state)).await.unwrap();
    let definition = bench.direct();
    let id = definition.id;
    booted(&driver, &definition).await;
    remember(&driver, id, "alpha").await;
    driver.save(&OpCx::new(), id).await.unwrap();
    driver.shutdown().await;
    drop(driver);
    // A run directory does not survive a boot.
    std::fs::remove_dir_all(bench.config().root).unwrap();
    let driver = QemuDriver::open(bench.config().with_state(&state)).await.unwrap();
    assert_eq!(power(&driver, id).await, PowerState::Saved);
    let adopted = driver.adopt().await.unwrap();
    assert_eq!(adopted[0].definition, definition);
    driver.restore(&OpCx::new(), &definition, vec![]).await.unwrap();
    remembers(&driver, id, "alpha").await;
    driver.kill(id).await.unwrap();
    driver.undefine(id).await.unwrap();
    assert_eq!(
        std::fs::read_dir(&state).unwrap().count(),
        0,
        "nothing of it is kept"
    );
    assert!(beside_disk(&definition).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_that_cannot_be_read_back_stays_saved_and_says_why() {
    if left_out("qemu") {
        return;
    }
    let bench = QemuBench::make().await;
    let driver = here(&bench).await;
    let definition = bench.direct();
    let id = definition.id;
    booted(&driver, &definition).await;
    remember(&driver, id, "alpha").await;
    driver.save(&OpCx::new(), id).await.unwrap();
    let memory = memory_dir(&definition).join("saved.mem");
    let whole = std::fs::read(&memory).unwrap();
    for spoilt in [&whole[..whole.len() / 2], &b"garbage"[..], &[]] {
        std::fs::write(&memory, spoilt).unwrap();
        let error = driver
            .restore(&OpCx::new(), &definition, vec![])
            .await
            .unwrap_err();
        println!("{} bytes: {error}", spoilt.len());
        assert!(matches!(error, Error::StartFailed { .. }), "{error}");
        assert_eq!(power(&driver, id).await, PowerState::Saved);
    }
    std::fs::remove_file(&memory).unwrap();
    let error = driver
        .restore(&OpCx::new(), &definition, vec![])
        .await
        .unwrap_err();
    assert!(error.to_string().contains("gone"), "{error}");
    let mut larger = definition.clone();
    larger.memory_mib += 32;
    std::fs::write(&memory, &whole).unwrap();
    let error = driver.restore(&OpCx::new(), &larger, vec![]).await.unwrap_err();
    println!("more memory: {error}");
    assert_eq!(power(&driver, id).await, PowerState::Saved);
    driver.restore(&OpCx::new(), &definition, vec![]).await.unwrap();
    remembers(&driver, id, "alpha").await;
    driver.kill(id).await.unwrap();
}

/// A small file system in memory, taken off when it is dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path, size_mib: u32) -> Self {
        std::fs::create_dir_all(at).unwrap();
        let options = format!("size={size_mib}m");
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "vbm-test"])
            .arg(at)
            .status();
        assert!(
            mounted.is_ok_and(|status| status.success()),
            "a small file system cannot be mounted: run the tests as root, or leave these out with VBM_LEAVE_OUT=mount"
        );
        Self(at.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let taken_off = std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.0)
            .status();
        if !taken_off.is_ok_and(|status| status.success()) {
            println!("{} stays mounted", self.0.display());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_told_nothing_is_left_and_the_guest_goes_on() {
    if left_out("qemu") || left_out("mount") {
        return;
    }
    let bench = QemuBench::make().await;
    let small = SmallDisk::mount(&bench.dir.path().join("small"), 24);
    let driver = here(&bench).await;
    let mut definition = bench.direct();
    let disk = small.0.join("v.qcow2");
    std::fs::copy(&definition.root_disk, &disk).unwrap();
    definition.root_disk = disk;
    let id = definition.id;
    booted(&driver, &definition).await;
    remember(&driver, id, "alpha").await;
    for _ in 0..2 {
        let error = driver
            .take(&OpCx::new(), &definition, snapshot().into())
            .await
            .unwrap_err();
        assert!(matches!(error, Error::DiskFull { .. }), "{error}");
        assert_eq!(power(&driver, id).await, PowerState::Running);
        remembers(&driver, id, "alpha").await;
        let error = driver.save(&OpCx::new(), id).await.unwrap_err();
        assert!(matches!(error, Error::DiskFull { .. }), "{error}");
        assert_eq!(power(&driver, id).await, PowerState::Running);
        remembers(&driver, id, "alpha").await;
        assert_eq!(driver.list(&definition).await.unwrap(), []);
        assert!(
            beside_disk(&definition).is_empty(),
            "{:?}",
            beside_disk(&definition)
        );
    }
    driver.kill(id).await.unwrap();
    let listed = std::process::Command::new("qemu-img")
        .args(["snapshot", "-l"])
        .arg(&definition.root_disk)
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8(listed.stdout).unwrap(),
        "",
        "not in the disk either"
    );
    driver.undefine(id).await.unwrap();
    drop(driver);
}
