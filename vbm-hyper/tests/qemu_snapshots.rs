//! Snapshots in QEMU's disks: several disks, freezing, export, and what can go wrong. No guest is needed for any of it.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests panic and print as tests do"
)]

mod common;

use async_trait::async_trait;
use common::{PATIENCE, QemuBench, kill_9, left_out};
use std::{
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout};
use vbm_core::{Consistency, ErrorKind, Freeze, PowerState, SnapshotContent, SnapshotId, VolumeId};
use vbm_hyper::{
    DiskDefinition, Driver, Error, Freezer, OpCx, QemuDriver, SnapshotRequest, Snapshots, VmDefinition,
};

/// Moments at which something breaks. Whatever happens first, the outcome must be one of the sound ones.
const MOMENTS_MILLIS: &[u64] = &[0, 15, 40, 80, 160];
/// Where a word is written on a disk.
const PLACE: &str = "1M 64k";

fn snapshot() -> SnapshotId {
    SnapshotId::from_uuid(uuid::Uuid::now_v7())
}

async fn open(bench: &QemuBench) -> QemuDriver {
    let driver = QemuDriver::open(bench.config()).await.unwrap();
    driver.adopt().await.unwrap();
    driver
}

fn run(program: &str, args: &[&str]) -> (bool, String) {
    let said = Command::new(program).args(args).output().unwrap();
    let text = String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr);
    (said.status.success(), text)
}

fn blank(path: &Path) {
    let (made, said) = run(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", path.to_str().unwrap(), "16M"],
    );
    assert!(made, "{said}");
}

fn write(path: &Path, word: u8) {
    let command = format!("write -P {word} {PLACE}");
    let (done, said) = run(
        "qemu-io",
        &["-f", "qcow2", "-c", &command, path.to_str().unwrap()],
    );
    assert!(done && said.contains("wrote"), "{said}");
}

fn holds(path: &Path, word: u8) -> bool {
    let command = format!("read -P {word} {PLACE}");
    let (done, said) = run(
        "qemu-io",
        &["-U", "-r", "-f", "qcow2", "-c", &command, path.to_str().unwrap()],
    );
    done && !said.contains("failed")
}

/// What `qemu-img` lists, line by line.
fn inside(path: &Path) -> Vec<String> {
    let (done, said) = run("qemu-img", &["snapshot", "-U", "-l", path.to_str().unwrap()]);
    assert!(done, "{said}");
    said.lines().skip(2).map(str::to_owned).collect()
}

fn beside(vm: &VmDefinition) -> Vec<String> {
    let mut dir = vm.root_disk.clone().into_os_string();
    dir.push(".memory");
    let Ok(entries) = std::fs::read_dir(PathBuf::from(dir)) else {
        return Vec::new();
    };
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// A VM with small empty disks: nothing boots.
fn vm(bench: &QemuBench, data: usize) -> VmDefinition {
    let mut vm = bench.on_disk();
    vm.memory_mib = 32;
    std::fs::remove_file(&vm.root_disk).unwrap();
    blank(&vm.root_disk);
    for _ in 0..data {
        let volume = VolumeId::from_uuid(uuid::Uuid::now_v7());
        let path = bench.dir.path().join(format!("{volume}.qcow2"));
        blank(&path);
        vm.disks.push(DiskDefinition {
            volume,
            path,
            read_only: false,
        });
    }
    vm
}

fn paths(vm: &VmDefinition) -> Vec<PathBuf> {
    let data = vm.disks.iter().map(|disk| disk.path.clone());
    data.chain([vm.root_disk.clone()]).collect()
}

async fn until_running(driver: &QemuDriver, vm: &VmDefinition) {
    let running = async {
        while driver.inspect(vm.id).await.unwrap().power != PowerState::Running {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, running).await.expect("it runs on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_rest_all_disks_are_snapshotted_or_none() {
    if left_out("qemu") {
        return;
    }
    let bench = QemuBench::make().await;
    let driver = open(&bench).await;
    let vm = vm(&bench, 2);
    let cx = OpCx::new();
    paths(&vm).iter().for_each(|path| write(path, 1));
    let taken = driver.take(&cx, &vm, snapshot().into()).await.unwrap();
    assert_eq!(taken.consistency, Consistency::Clean);
    assert!(paths(&vm).iter().all(|path| inside(path).len() == 1));
    // One that can be read, and not worked on: what stands below it is gone.
    let broken = &vm.disks[1].path;
    std::fs::remove_file(broken).unwrap();
    let base = bench.dir.path().join("base.qcow2");
    blank(&base);
    let (made, said) = run(
        "qemu-img",
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-F",
            "qcow2",
            "-b",
            base.to_str().unwrap(),
            broken.to_str().unwrap(),
        ],
    );
    assert!(made, "{said}");
    std::fs::remove_file(&base).unwrap();
    let error = driver.take(&cx, &vm, snapshot().into()).await.unwrap_err();
    println!("its base is gone: {error}");
    assert!(matches!(error, Error::Hypervisor { .. }), "{error}");
    assert_eq!(inside(&vm.disks[0].path).len(), 1, "the first disk is as it was");
    assert_eq!(inside(&vm.root_disk).len(), 1);
    assert_eq!(driver.list(&vm).await.unwrap().len(), 1);
    assert_eq!(beside(&vm), ["tree.json"], "nothing is half done");
    blank(broken);
    // One that somebody else has.
    let mut holder = Command::new("qemu-io")
        .args(["-f", "qcow2"])
        .arg(&vm.disks[0].path)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let told = async {
        loop {
            let id = snapshot();
            match driver.take(&cx, &vm, id.into()).await {
                Err(error) => return error,
                // It has not opened it yet.
                Ok(_) => driver.delete(&cx, &vm, id).await.unwrap_or_default(),
            }
        }
    };
    let error = timeout(PATIENCE, told).await.unwrap();
    println!("{error}");
    assert!(matches!(error, Error::DiskInUse { .. }), "{error}");
    drop(holder.stdin.take());
    holder.wait().unwrap();
    driver.take(&cx, &vm, snapshot().into()).await.unwrap();
    assert_eq!(driver.list(&vm).await.unwrap().len(), 2);
    assert!(
        !beside(&vm).contains(&"todo.json".to_owned()),
        "nothing is half done"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_goes_in_the_middle_of_work_at_rest_leaves_it_whole_or_to_the_next_one() {
    if left_out("qemu") {
        return;
    }
    let bench = QemuBench::make().await;
    let vm = vm(&bench, 2);
    let base = snapshot();
    let driver = open(&bench).await;
    paths(&vm).iter().for_each(|path| write(path, 1));
    driver.take(&OpCx::new(), &vm, base.into()).await.unwrap();
    driver.shutdown().await;
    drop(driver);
    for millis in MOMENTS_MILLIS {
        // Taking one.
        let (driver, taken) = (Arc::new(open(&bench).await), snapshot());
        let work = {
            let (driver, vm) = (Arc::clone(&driver), vm.clone());
            tokio::spawn(async move { driver.take(&OpCx::new(), &vm, taken.into()).await })
        };
        sleep(Duration::from_millis(*millis)).await;
        driver.shutdown().await;
        let whole = work.await.unwrap().is_ok();
        drop(driver);
        let driver = open(&bench).await;
        let listed = driver.list(&vm).await.unwrap().iter().any(|(id, _)| *id == taken);
        assert!(!whole || listed, "what was told is there");
        driver.delete(&OpCx::new(), &vm, taken).await.unwrap();
        for path in paths(&vm) {
            assert_eq!(inside(&path).len(), 1, "after {millis} ms, {}", path.display());
        }
        driver.shutdown().await;
        drop(driver);
        // Going back: begun, it is brought to its end before anything else is done.
        paths(&vm).iter().for_each(|path| write(path, 2));
        let driver = Arc::new(open(&bench).await);
        let work = {
            let (driver, vm) = (Arc::clone(&driver), vm.clone());
            tokio::spawn(async move { driver.revert(&OpCx::new(), &vm, base, vec![]).await })
        };
        sleep(Duration::from_millis(*millis)).await;
        driver.shutdown().await;
        let whole = work.await.unwrap().is_ok();
        drop(driver);
        let driver = open(&bench).await;
        driver.delete(&OpCx::new(), &vm, snapshot()).await.unwrap();
        let words: Vec<bool> = paths(&vm).iter().map(|path| holds(path, 1)).collect();
        println!("gone after {millis} ms: told {whole}, back {words:?}");
        assert!(words.iter().all(|word| *word == words[0]), "all disks, or none");
        assert!(!whole || words[0]);
        assert_eq!(beside(&vm), ["tree.json"]);
        driver.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hypervisor_that_is_killed_at_any_moment_leaves_a_whole_snapshot_or_none() {
    if left_out("qemu") {
        return;
    }
    let bench = QemuBench::make().await;
    let vm = vm(&bench, 0);
    let driver = Arc::new(open(&bench).await);
    write(&vm.root_disk, 1);
    for (at, millis) in MOMENTS_MILLIS.iter().enumerate() {
        driver.start(&OpCx::new(), &vm, vec![]).await.unwrap();
        let pid = driver.inspect(vm.id).await.unwrap().pid.unwrap();
        let mut request = SnapshotRequest::new(snapshot());
        if at % 2 == 1 {
            request = request.without_memory(Freeze::No);
        }
        let work = {
            let (driver, vm) = (Arc::clone(&driver), vm.clone());
            tokio::spawn(async move { driver.take(&OpCx::new(), &vm, request).await })
        };
        sleep(Duration::from_millis(*millis)).await;
        kill_9(pid);
        let taken = work.await.unwrap();
        let rests = async {
            while driver.inspect(vm.id).await.unwrap().power.is_live() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, rests).await.unwrap();
        let listed = driver.list(&vm).await.unwrap();
        println!("killed after {millis} ms: {:?}, {listed:?}", taken.is_ok());
        assert_eq!(listed.len(), usize::from(taken.is_ok()));
        if taken.is_ok() {
            let seen = driver
                .revert(&OpCx::new(), &vm, request.id, vec![])
                .await
                .unwrap();
            assert_eq!(seen.power == PowerState::Running, request.memory);
            driver.kill(vm.id).await.unwrap();
            driver.delete(&OpCx::new(), &vm, request.id).await.unwrap();
        }
        // It starts, and what is left of it goes before that.
        driver.start(&OpCx::new(), &vm, vec![]).await.unwrap();
        assert_eq!(inside(&vm.root_disk), Vec::<String>::new());
        assert!(beside(&vm).is_empty(), "{:?}", beside(&vm));
        driver.kill(vm.id).await.unwrap();
        assert!(holds(&vm.root_disk, 1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hypervisor_that_does_not_answer_takes_no_half_snapshot() {
    if left_out("qemu") {
        return;
    }
    let bench = QemuBench::make().await;
    let vm = vm(&bench, 0);
    let driver = open(&bench).await;
    driver.start(&OpCx::new(), &vm, vec![]).await.unwrap();
    let pid = driver.inspect(vm.id).await.unwrap().pid.unwrap();
    let signal = |signal| {
        let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    };
    let driver = Arc::new(driver);
    for millis in [0, 25] {
        let (begun, taken) = (Instant::now(), snapshot());
        let work = {
            let (driver, vm) = (Arc::clone(&driver), vm.clone());
            tokio::spawn(async move {
                let cx = OpCx::new().within(Duration::from_millis(500));
                driver.take(&cx, &vm, taken.into()).await
            })
        };
        sleep(Duration::from_millis(millis)).await;
        signal(rustix::process::Signal::STOP);
        let ended = work.await.unwrap();
        signal(rustix::process::Signal::CONT);
        println!(
            "halted after {millis} ms, told after {:?}: {ended:?}",
            begun.elapsed()
        );
        until_running(&driver, &vm).await;
        let whole = async {
            // What it was told takes effect, or is undone, once it answers.
            while inside(&vm.root_disk).len() != usize::from(ended.is_ok()) {
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(PATIENCE, whole).await.expect("nothing half is left");
        assert_eq!(driver.list(&vm).await.unwrap().len(), usize::from(ended.is_ok()));
        driver.delete(&OpCx::new(), &vm, taken).await.unwrap();
    }
    let again = async {
        // The place may still be held by who undoes.
        while driver.take(&OpCx::new(), &vm, snapshot().into()).await.is_err() {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(PATIENCE, again)
        .await
        .expect("it can be snapshotted after that");
    assert_eq!(inside(&vm.root_disk).len(), 1);
    driver.kill(vm.id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_that_is_lost_or_cut_short_is_found_out_before_the_disk_is_touched() {
    if left_out("qemu") {
        return;
    }
    let bench = QemuBench::make().await;
    let vm = vm(&bench, 0);
    let driver = open(&bench).await;
    let (cx, taken) = (OpCx::new(), snapshot());
    write(&vm.root_disk, 1);
    driver.start(&cx, &vm, vec![]).await.unwrap();
    driver.take(&cx, &vm, taken.into()).await.unwrap();
    driver.kill(vm.id).await.unwrap();
    write(&vm.root_disk, 2);
    let mut memory = vm.root_disk.clone().into_os_string();
    memory.push(format!(".memory/{taken}.mem"));
    let memory = PathBuf::from(memory);
    let whole = std::fs::read(&memory).unwrap();
    std::fs::write(&memory, &whole[..whole.len() / 2]).unwrap();
    let error = driver.revert(&cx, &vm, taken, vec![]).await.unwrap_err();
    println!("cut short: {error}");
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    std::fs::remove_file(&memory).unwrap();
    let error = driver.revert(&cx, &vm, taken, vec![]).await.unwrap_err();
    println!("gone: {error}");
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    let mut larger = vm.clone();
    larger.memory_mib += 32;
    std::fs::write(&memory, &whole).unwrap();
    let error = driver.revert(&cx, &larger, taken, vec![]).await.unwrap_err();
    println!("other hardware: {error}");
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(holds(&vm.root_disk, 2), "the disk is as it was");
    assert_eq!(driver.inspect(vm.id).await.unwrap().power, PowerState::Off);
    let seen = driver.revert(&cx, &vm, taken, vec![]).await.unwrap();
    assert_eq!(seen.power, PowerState::Running);
    driver.kill(vm.id).await.unwrap();
    assert!(holds(&vm.root_disk, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disks_that_hold_no_snapshots_are_told_before_anything_is_changed() {
    if left_out("qemu") {
        return;
    }
    let bench = QemuBench::make().await;
    let driver = open(&bench).await;
    let cx = OpCx::new();
    let mut vm = vm(&bench, 1);
    let sound = vm.disks[0].path.clone();
    for format in ["raw", "vdi"] {
        let path = bench.dir.path().join(format!("disk.{format}"));
        let (made, said) = run(
            "qemu-img",
            &["create", "-q", "-f", format, path.to_str().unwrap(), "16M"],
        );
        assert!(made, "{said}");
        vm.disks[0].path.clone_from(&path);
        let error = driver.take(&cx, &vm, snapshot().into()).await.unwrap_err();
        println!("{format}: {error}");
        assert!(matches!(error, Error::BadDisk { .. }), "{error}");
        assert_eq!(inside(&vm.root_disk), Vec::<String>::new());
    }
    // A table of snapshots that says nonsense.
    vm.disks[0].path = sound.clone();
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&sound)
        .unwrap();
    let mut head = [0; 16];
    file.read_exact_at(&mut head, 60).unwrap();
    file.write_all_at(&[0, 0, 1, 0, 0xff, 0xff, 0xff, 0xff], 60)
        .unwrap();
    let error = driver.take(&cx, &vm, snapshot().into()).await.unwrap_err();
    println!("a damaged table: {error}");
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert_eq!(inside(&vm.root_disk), Vec::<String>::new());
    file.write_all_at(&head, 60).unwrap();
    driver.take(&cx, &vm, snapshot().into()).await.unwrap();
    assert_eq!(driver.list(&vm).await.unwrap().len(), 1);
}

/// Counts what it is asked, and does as it is told.
#[derive(Debug, Default)]
struct Fake {
    freezes: AtomicU32,
    thaws: AtomicU32,
    hangs: std::sync::atomic::AtomicBool,
}

#[async_trait]
impl Freezer for Fake {
    async fn freeze(&self, _: vbm_core::VmId) -> Result<(), String> {
        self.freezes.fetch_add(1, Ordering::SeqCst);
        if self.hangs.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        Ok(())
    }
    async fn thaw(&self, _: vbm_core::VmId) -> Result<(), String> {
        self.thaws.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_was_asked_to_freeze_is_thawed_whatever_came_of_it() {
    if left_out("qemu") {
        return;
    }
    let bench = QemuBench::make().await;
    let fake = Arc::new(Fake::default());
    let driver = QemuDriver::open(bench.config().with_freezer(Arc::clone(&fake) as Arc<dyn Freezer>))
        .await
        .unwrap();
    let vm = vm(&bench, 0);
    driver.start(&OpCx::new(), &vm, vec![]).await.unwrap();
    let request = |freeze| SnapshotRequest::new(snapshot()).without_memory(freeze);
    let taken = driver
        .take(&OpCx::new(), &vm, request(Freeze::Required))
        .await
        .unwrap();
    assert_eq!(
        (taken.consistency, taken.content),
        (Consistency::Frozen, SnapshotContent::Disk)
    );
    let counts = || {
        (
            fake.freezes.load(Ordering::SeqCst),
            fake.thaws.load(Ordering::SeqCst),
        )
    };
    assert_eq!(counts(), (1, 1));
    driver.take(&OpCx::new(), &vm, snapshot().into()).await.unwrap();
    driver.take(&OpCx::new(), &vm, request(Freeze::No)).await.unwrap();
    assert_eq!(counts(), (1, 1), "nobody asked");
    fake.hangs.store(true, Ordering::SeqCst);
    let cx = OpCx::new().within(Duration::from_millis(300));
    let error = driver
        .take(&cx, &vm, request(Freeze::IfPossible))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
    assert_eq!(counts(), (2, 2));
    assert_eq!(driver.list(&vm).await.unwrap().len(), 3);
    assert_eq!(inside(&vm.root_disk).len(), 3);
    // A daemon that goes while the guest is frozen: the next one thaws it.
    let driver = Arc::new(driver);
    let work = {
        let (driver, vm, request) = (Arc::clone(&driver), vm.clone(), request(Freeze::Required));
        tokio::spawn(async move { driver.take(&OpCx::new(), &vm, request).await })
    };
    let asked = async {
        while counts().0 < 3 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, asked).await.unwrap();
    driver.shutdown().await;
    work.await.unwrap().unwrap_err();
    drop(driver);
    let driver = QemuDriver::open(bench.config().with_freezer(Arc::clone(&fake) as Arc<dyn Freezer>))
        .await
        .unwrap();
    driver.adopt().await.unwrap();
    until_running(&driver, &vm).await;
    let thawed = async {
        while counts().1 < 3 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, thawed).await.expect("the next one thaws it");
    assert_eq!(inside(&vm.root_disk).len(), 3);
    driver.kill(vm.id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exported_snapshot_is_a_disk_of_its_own_and_as_it_was_then() {
    if left_out("qemu") {
        return;
    }
    let bench = QemuBench::make().await;
    let driver = open(&bench).await;
    let vm = vm(&bench, 1);
    let (cx, taken) = (OpCx::new(), snapshot());
    let then = bench.dir.path().join("then");
    std::fs::create_dir(&then).unwrap();
    for (at, path) in paths(&vm).iter().enumerate() {
        write(path, 1);
        std::fs::copy(path, then.join(at.to_string())).unwrap();
    }
    driver.take(&cx, &vm, taken.into()).await.unwrap();
    paths(&vm).iter().for_each(|path| write(path, 2));
    let to = bench.dir.path().join("at-rest");
    std::fs::create_dir(&to).unwrap();
    let progress = cx.progress();
    let exported = driver.export(&cx, &vm, taken, &to).await.unwrap();
    let names: Vec<_> = exported.iter().map(|disk| disk.volume).collect();
    assert_eq!(names, [None, Some(vm.disks[0].volume)], "the root disk first");
    assert_eq!(progress.borrow().done, progress.borrow().total);
    for (disk, then) in exported.iter().zip([then.join("1"), then.join("0")]) {
        let (same, said) = run(
            "qemu-img",
            &["compare", disk.path.to_str().unwrap(), then.to_str().unwrap()],
        );
        assert!(same, "{said}");
        let (sound, said) = run("qemu-img", &["check", disk.path.to_str().unwrap()]);
        assert!(sound, "{said}");
    }
    let again = driver.export(&cx, &vm, taken, &to).await.unwrap_err();
    assert_eq!(
        again.kind(),
        ErrorKind::InvalidInput,
        "what is there is not written over"
    );
    let nobody = driver.export(&cx, &vm, snapshot(), &to).await.unwrap_err();
    assert_eq!(nobody.kind(), ErrorKind::NotFound);
    // Called off, nothing is left.
    let called_off = bench.dir.path().join("called-off");
    std::fs::create_dir(&called_off).unwrap();
    let late = OpCx::new().within(Duration::from_millis(1));
    drop(driver.export(&late, &vm, taken, &called_off).await.unwrap_err());
    assert_eq!(std::fs::read_dir(&called_off).unwrap().count(), 0);
    driver.delete(&cx, &vm, taken).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_exported_while_its_vm_runs() {
    if left_out("qemu") {
        return;
    }
    let bench = QemuBench::make().await;
    let driver = open(&bench).await;
    let vm = vm(&bench, 0);
    let (cx, taken) = (OpCx::new(), snapshot());
    write(&vm.root_disk, 1);
    driver.start(&cx, &vm, vec![]).await.unwrap();
    let request = SnapshotRequest::new(taken).without_memory(Freeze::No);
    let told = driver.take(&cx, &vm, request).await.unwrap();
    println!("the disks alone: {:?}", told.paused);
    let to = bench.dir.path().join("running");
    std::fs::create_dir(&to).unwrap();
    let exported = driver.export(&cx, &vm, taken, &to).await.unwrap();
    assert!(holds(&exported[0].path, 1));
    driver.delete(&cx, &vm, taken).await.unwrap();
    assert_eq!(inside(&vm.root_disk), Vec::<String>::new());
    assert!(beside(&vm).is_empty());
    driver.kill(vm.id).await.unwrap();
}
