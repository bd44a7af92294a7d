//! Moves of real QEMU processes in which something breaks: whatever dies, exactly one copy runs, and it is the right one.
//!
//! The guest is none: firmware that finds nothing to boot, in 32 MiB. What matters is which process runs, and what is on the disks. Bandwidth
//! is held down so that each phase lasts long enough to be hit. One test at the end has a guest that counts.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests panic and print as tests do"
)]

mod common;

use common::{PATIENCE, kill_9, left_out};
use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};
use vbm_core::{Digest, PowerState, VmId, VolumeId};
use vbm_hyper::{
    AcceleratorChoice, ContentKind, Driver, Error, ImageStore, Landing, Migrated, Migration, MoveCheck,
    MoveOptions, OpCx, Pool, QemuConfig, QemuDriver, VmDefinition,
};

const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;
const DISK_BYTES: u64 = 64 << 20;
/// What the VM has written of its own before it moves.
const WRITTEN: &str = "3M";
/// So that this takes a second or two.
const SLOW_BYTES_PER_SECOND: u64 = 2 << 20;

/// Two hosts, each with its own pool; the images are in a store that both can read, as after a fetch.
struct Hosts {
    dir: tempfile::TempDir,
    image: Digest,
    pools: [Pool; 2],
    definitions: [VmDefinition; 2],
}

fn run(program: &str, args: &[&str]) -> String {
    let done = Command::new(program).args(args).output().unwrap();
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(
        done.status.success(),
        "{program} {args:?}: {text}{}",
        String::from_utf8_lossy(&done.stderr)
    );
    text
}

impl Hosts {
    async fn make() -> Self {
        let dir = tempfile::Builder::new().prefix("vbm-moves-").tempdir().unwrap();
        let images = ImageStore::open(dir.path().join("images")).await.unwrap();
        let raw = dir.path().join("base.qcow2");
        let raw = raw.to_str().unwrap();
        run("qemu-img", &["create", "-q", "-f", "qcow2", raw, "64M"]);
        run("qemu-io", &["-f", "qcow2", "-c", "write -P 7 8M 1M", raw]);
        let file = tokio::fs::File::open(raw).await.unwrap();
        let kind = ContentKind::Disk(vbm_core::DiskFormat::Qcow2);
        let image = images.import(file, None, kind).await.unwrap().digest;
        let a = Pool::open(dir.path().join("pool-a"), images.clone())
            .await
            .unwrap();
        let b = Pool::open(dir.path().join("pool-b"), images.clone())
            .await
            .unwrap();
        let first = clone(&a, image).await;
        let written = format!("write -P 9 16M {WRITTEN}");
        run(
            "qemu-io",
            &["-f", "qcow2", "-c", &written, first.to_str().unwrap()],
        );
        let here = VmDefinition {
            memory_mib: 32,
            ..common::definition(first)
        };
        let there = VmDefinition {
            root_disk: clone(&b, image).await,
            ..here.clone()
        };
        Self {
            dir,
            image,
            pools: [a, b],
            definitions: [here, there],
        }
    }

    async fn open(&self, host: usize) -> QemuDriver {
        let root = self.dir.path().join(["run-a", "run-b"][host]);
        let config = QemuConfig::new(root).with_accelerator(AcceleratorChoice::Tcg);
        QemuDriver::open(config).await.unwrap()
    }

    /// The host has a new disk that nothing was written to.
    async fn fresh(&mut self, host: usize) {
        self.definitions[host].root_disk = clone(&self.pools[host], self.image).await;
    }

    fn id(&self) -> VmId {
        self.definitions[0].id
    }

    /// Whether both disks show the same to a guest. Nothing may run.
    fn disks_are_equal(&self) {
        let [a, b] = [0, 1].map(|host| self.definitions[host].root_disk.to_str().unwrap().to_owned());
        let said = run("qemu-img", &["compare", &a, &b]);
        assert!(said.contains("identical"), "{said}");
        run("qemu-img", &["check", "-q", &b]);
    }
}

async fn clone(pool: &Pool, image: Digest) -> PathBuf {
    let volume = VolumeId::from_uuid(uuid::Uuid::now_v7());
    pool.clone_image(image, volume, DISK_BYTES).await.unwrap()
}

impl Drop for Hosts {
    /// Ends what a failed test has left: only processes whose command line names its VM.
    fn drop(&mut self) {
        let id = self.id().to_string();
        for run in ["run-a", "run-b"] {
            let manifest = self.dir.path().join(run).join(&id).join("manifest");
            let text = std::fs::read_to_string(manifest).unwrap_or_default();
            let pid = text
                .lines()
                .find_map(|line| line.trim().strip_prefix("\"pid\": ")?.strip_suffix(','));
            if let Some(pid) = pid {
                let cmdline = std::fs::read_to_string(Path::new("/proc").join(pid).join("cmdline"));
                if cmdline.unwrap_or_default().contains(&id) {
                    kill_9(pid.parse().unwrap());
                }
            }
        }
    }
}

fn slow(copies: bool) -> MoveOptions {
    let options = MoveOptions {
        bandwidth_max_bytes: Some(SLOW_BYTES_PER_SECOND),
        ..MoveOptions::default()
    };
    if copies { options.copying_disks() } else { options }
}

async fn power(driver: &QemuDriver, id: VmId) -> PowerState {
    match driver.inspect(id).await {
        Err(Error::NoSuchVm(_)) => PowerState::Off,
        seen => seen.unwrap().power,
    }
}

async fn until(driver: &QemuDriver, id: VmId, wanted: impl Fn(PowerState) -> bool) -> PowerState {
    let mut last = PowerState::Unknown;
    let wait = async {
        loop {
            last = power(driver, id).await;
            if wanted(last) {
                return last;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    let come = timeout(PATIENCE, wait).await;
    come.unwrap_or_else(|_| panic!("it stays {last}"))
}

fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

fn send(
    driver: &Arc<QemuDriver>,
    cx: &OpCx,
    id: VmId,
    to: &Landing,
    options: &MoveOptions,
) -> JoinHandle<Result<Migrated, Error>> {
    let (driver, cx, to, options) = (Arc::clone(driver), cx.clone(), to.clone(), options.clone());
    tokio::spawn(async move { driver.send(&cx, id, &to, &options).await })
}

/// Waits until a phase of the sending is reached; `false`: it ended before.
async fn reached(cx: &OpCx, phase: &str, sending: &JoinHandle<Result<Migrated, Error>>) -> bool {
    let mut progress = cx.progress();
    let wait = async {
        while !sending.is_finished() {
            if progress.borrow_and_update().phase == phase {
                return true;
            }
            drop(timeout(Duration::from_millis(20), progress.changed()).await);
        }
        false
    };
    timeout(PATIENCE, wait).await.expect("it goes on or ends")
}

/// A way between two hosts that can be cut.
struct Relay {
    at: SocketAddr,
    cut: tokio_util::sync::CancellationToken,
}

impl Relay {
    async fn to(onward: SocketAddr) -> Self {
        let door = TcpListener::bind((HERE, 0)).await.unwrap();
        let at = door.local_addr().unwrap();
        let cut = tokio_util::sync::CancellationToken::new();
        let until = cut.clone();
        tokio::spawn(async move {
            let mut ways = JoinSet::new();
            let carry = async {
                while let Ok((mut from, _)) = door.accept().await {
                    let Ok(mut to) = TcpStream::connect(onward).await else {
                        continue;
                    };
                    ways.spawn(async move { drop(tokio::io::copy_bidirectional(&mut from, &mut to).await) });
                }
            };
            // What is cut is dropped: both ends see the connection end.
            tokio::select! { () = carry => {}, () = until.cancelled() => {} }
        });
        Self { at, cut }
    }
}

/// What breaks, and whose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Breaks {
    SourceDies,
    DestinationDies,
    SourceDaemonGoes,
    DestinationDaemonGoes,
    Way,
    SourceStops,
    CalledOff,
}

const ALL: &[Breaks] = &[
    Breaks::SourceDies,
    Breaks::DestinationDies,
    Breaks::SourceDaemonGoes,
    Breaks::DestinationDaemonGoes,
    Breaks::Way,
    Breaks::SourceStops,
    Breaks::CalledOff,
];

/// Moves a VM with copies of its disks; something breaks in a phase. Then does what who moves it would do, and looks.
async fn broken(breaks: Breaks, phase: &str) {
    let hosts = Hosts::make().await;
    let id = hosts.id();
    let (mut source, mut destination) = (Arc::new(hosts.open(0).await), hosts.open(1).await);
    source
        .start(&OpCx::new(), &hosts.definitions[0], vec![])
        .await
        .unwrap();
    let options = slow(true);
    let cx = OpCx::new();
    let mut landing = destination
        .receive(&cx, &hosts.definitions[1], vec![], HERE, &options)
        .await
        .unwrap();
    let memory = Relay::to(landing.memory).await;
    landing.memory = memory.at;
    let disks = landing.disks.as_mut().unwrap();
    let way = Relay::to(disks.at).await;
    disks.at = way.at;
    let pids = [
        source.inspect(id).await.unwrap().pid.unwrap(),
        destination.inspect(id).await.unwrap().pid.unwrap(),
    ];
    let sending = send(&source, &cx, id, &landing, &options);
    let in_time = match phase {
        "whole" => false,
        phase => reached(&cx, phase, &sending).await,
    };
    let mut sent = None;
    if phase == "whole" {
        sent = Some(timeout(PATIENCE, sending).await.unwrap().unwrap());
        assert!(sent.as_ref().unwrap().is_ok(), "{sent:?}");
        break_it(breaks, pids, &cx, [&memory, &way]).await;
    } else {
        break_it(breaks, pids, &cx, [&memory, &way]).await;
        if breaks == Breaks::SourceDaemonGoes {
            source.shutdown().await;
        }
        sent.replace(timeout(PATIENCE, sending).await.unwrap().unwrap());
    }
    // A daemon that went comes back and looks.
    if breaks == Breaks::SourceDaemonGoes {
        source.shutdown().await;
        drop(source);
        source = Arc::new(hosts.open(0).await);
        source.adopt().await.unwrap();
    }
    if breaks == Breaks::DestinationDaemonGoes {
        destination.shutdown().await;
        drop(destination);
        destination = hosts.open(1).await;
        destination.adopt().await.unwrap();
    }
    let here = until(&source, id, |power| {
        matches!(
            power,
            PowerState::Running | PowerState::Off | PowerState::Crashed(_)
        )
    })
    .await;
    assert_ne!(
        power(&destination, id).await,
        PowerState::Running,
        "it waits for a word"
    );
    let let_go = sent.as_ref().is_some_and(Result::is_ok) || !here.is_live();
    let finished = if let_go {
        destination.finish(&cx_new(), id).await
    } else {
        Err(Error::NoSuchVm(id))
    };
    if finished.is_err() && power(&destination, id).await.is_live() {
        destination.abandon(id).await.unwrap();
    }
    let there = power(&destination, id).await;
    println!("{breaks:?} in {phase} (in time: {in_time}): {here} here, {there} there, {sent:?}");
    let running = [here, there]
        .iter()
        .filter(|power| **power == PowerState::Running)
        .count();
    match breaks {
        // The one copy died, or had gone over in time; it is certain which.
        Breaks::SourceDies | Breaks::DestinationDies if phase == "whole" || breaks == Breaks::SourceDies => {
            assert!(running <= 1, "{here} {there}");
            if breaks == Breaks::SourceDies && phase == "whole" {
                assert_eq!(there, PowerState::Running, "the source had let go");
            }
        }
        _ => assert_eq!(running, 1, "{here} {there}"),
    }
    if there == PowerState::Running {
        destination.kill(id).await.unwrap();
        hosts.disks_are_equal();
    }
    if here == PowerState::Running {
        // Nothing of the move is left: it can be paused, and moved again.
        source.pause(id).await.unwrap();
        source.resume(id).await.unwrap();
        again(hosts, source, destination).await;
    }
}

fn cx_new() -> OpCx {
    OpCx::new()
}

async fn break_it(breaks: Breaks, pids: [u32; 2], cx: &OpCx, ways: [&Relay; 2]) {
    match breaks {
        // The one that has let go is gone already.
        Breaks::SourceDies => kill_9(pids[0]),
        Breaks::DestinationDies => kill_9(pids[1]),
        Breaks::Way => ways.iter().for_each(|way| way.cut.cancel()),
        Breaks::CalledOff => cx.cancel(),
        Breaks::SourceStops => {
            let pid = rustix::process::Pid::from_raw(pids[0].try_into().unwrap()).unwrap();
            // Gone already when it has let go.
            rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap_or_default();
            sleep(Duration::from_millis(700)).await;
            rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap_or_default();
        }
        // Done by who has the driver.
        Breaks::SourceDaemonGoes | Breaks::DestinationDaemonGoes => {}
    }
}

/// What stayed moves when nothing breaks.
async fn again(mut hosts: Hosts, source: Arc<QemuDriver>, destination: QemuDriver) {
    let (id, cx) = (hosts.id(), OpCx::new());
    if power(&destination, id).await.is_live() {
        destination.kill(id).await.unwrap();
    }
    destination.undefine(id).await.unwrap();
    hosts.fresh(1).await;
    let options = MoveOptions::default().copying_disks();
    let there = &hosts.definitions[1];
    let landing = destination
        .receive(&cx, there, vec![], HERE, &options)
        .await
        .unwrap();
    source.send(&cx, id, &landing, &options).await.unwrap();
    let seen = destination.finish(&cx, id).await.unwrap();
    assert_eq!(
        (seen.power, power(&source, id).await),
        (PowerState::Running, PowerState::Off)
    );
    destination.kill(id).await.unwrap();
    hosts.disks_are_equal();
}

/// One after another: each has two processes of its own, and the host has few processors.
async fn all_in(phase: &str) {
    if left_out("qemu") {
        return;
    }
    for breaks in ALL {
        broken(*breaks, phase).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_breaks_while_disks_are_copied_one_copy_runs_or_the_one_that_died_is_known() {
    all_in("disks").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_breaks_while_memory_is_sent_after_disks_one_copy_runs_or_the_one_that_died_is_known() {
    all_in("memory").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_breaks_before_the_last_word_the_copy_that_came_runs_or_is_known_to_have_died() {
    all_in("whole").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destination_that_stands_still_does_not_hold_up_a_move_that_is_called_off() {
    if left_out("qemu") {
        return;
    }
    let hosts = Hosts::make().await;
    let (id, cx) = (hosts.id(), OpCx::new());
    let (source, destination) = (Arc::new(hosts.open(0).await), hosts.open(1).await);
    source.start(&cx, &hosts.definitions[0], vec![]).await.unwrap();
    let there = &hosts.definitions[1];
    let landing = destination
        .receive(&cx, there, vec![], HERE, &slow(true))
        .await
        .unwrap();
    let pid = destination.inspect(id).await.unwrap().pid.unwrap();
    let sending = send(&source, &cx, id, &landing, &slow(true));
    assert!(reached(&cx, "disks", &sending).await);
    signal(pid, rustix::process::Signal::STOP);
    sleep(Duration::from_millis(300)).await;
    cx.cancel();
    let sent = timeout(PATIENCE, sending).await.unwrap().unwrap();
    println!("called off: {}", sent.unwrap_err());
    assert_eq!(power(&source, id).await, PowerState::Running);
    source.pause(id).await.unwrap();
    signal(pid, rustix::process::Signal::CONT);
    destination.abandon(id).await.unwrap();
    source.kill(id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_copy_would_lose_or_overwrite_is_refused_before_anything_is_changed() {
    if left_out("qemu") {
        return;
    }
    let mut hosts = Hosts::make().await;
    let (id, cx, options) = (hosts.id(), OpCx::new(), MoveOptions::default().copying_disks());
    let (source, destination) = (hosts.open(0).await, hosts.open(1).await);
    // A disk that holds something.
    let target = hosts.definitions[1].root_disk.to_str().unwrap().to_owned();
    run("qemu-io", &["-f", "qcow2", "-c", "write 0 2M", &target]);
    let there = hosts.definitions[1].clone();
    let refused = destination
        .receive(&cx, &there, vec![], HERE, &options)
        .await
        .unwrap_err();
    assert!(
        vbm_core::Error::from(refused)
            .why()
            .contains("something was written")
    );
    assert_eq!(power(&destination, id).await, PowerState::Off);
    // A disk with a snapshot within.
    let disk = hosts.definitions[0].root_disk.to_str().unwrap().to_owned();
    run("qemu-img", &["snapshot", "-c", "kept", &disk]);
    source.start(&cx, &hosts.definitions[0], vec![]).await.unwrap();
    let (machine, checks) = source.check_source(&cx, id, &options).await.unwrap();
    let why = vbm_core::Error::from(MoveCheck::verdict(&checks).unwrap_err());
    assert!(why.why().contains("snapshots"), "{why}");
    hosts.fresh(1).await;
    let there = hosts.definitions[1].clone();
    let landing = destination
        .receive(&cx, &there, vec![], HERE, &options)
        .await
        .unwrap();
    let refused = source.send(&cx, id, &landing, &options).await.unwrap_err();
    assert!(vbm_core::Error::from(refused).why().contains("snapshots"));
    assert_eq!(power(&source, id).await, PowerState::Running);
    destination.abandon(id).await.unwrap();
    // A machine and a CPU that are not here.
    let strange = vbm_hyper::MachineFacts {
        machine: "pc-q35-99.0".into(),
        cpu: "Moon-v1".into(),
        ..machine
    };
    let checks = destination
        .check_destination(&cx, &there, &strange, &options)
        .await
        .unwrap();
    let why = vbm_core::Error::from(MoveCheck::verdict(&checks).unwrap_err());
    assert!(
        why.why().contains("pc-q35-99.0") && why.why().contains("Moon-v1"),
        "{why}"
    );
    source.kill(id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_goes_over_several_connections_and_the_next_move_over_one() {
    if left_out("qemu") {
        return;
    }
    let hosts = Hosts::make().await;
    let (id, cx) = (hosts.id(), OpCx::new());
    let (source, destination) = (hosts.open(0).await, hosts.open(1).await);
    let definition = &hosts.definitions[0];
    source.start(&cx, definition, vec![]).await.unwrap();
    let several = MoveOptions {
        channels: 4,
        downtime_max_millis: 50,
        auto_converge: false,
        ..MoveOptions::default()
    };
    let landing = destination
        .receive(&cx, definition, vec![], HERE, &several)
        .await
        .unwrap();
    println!(
        "four: {:?}",
        source.send(&cx, id, &landing, &several).await.unwrap()
    );
    until(&destination, id, |power| power == PowerState::Running).await;
    let one = MoveOptions::default();
    let back = source.receive(&cx, definition, vec![], HERE, &one).await.unwrap();
    println!("one: {:?}", destination.send(&cx, id, &back, &one).await.unwrap());
    until(&source, id, |power| power == PowerState::Running).await;
    source.kill(id).await.unwrap();
}
