//! Daemons that are killed at any step, and processes that stop, end or stay behind: the next daemon finds a VM that runs or is off, and
//! nothing half.
//!
//! `VBM_CRASH_ALL=1` kills at every step instead of at some.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests panic and print as tests do"
)]

mod common;

use common::{QemuBench, kill_9, left_out, processes_of};
use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep};
use vbm_core::{PowerState, SnapshotId};
use vbm_hyper::{
    AcceleratorChoice, Driver, Error, Job, JobEnd, Machines, MachinesConfig, OpCx, OrphanKind, QemuConfig,
    QemuDriver, VmDefinition, conformance::Bench as _, qemu::orphans,
};

const RUN: &str = "VBM_CRASH_RUN";
const DEFINITION: &str = "VBM_CRASH_DEFINITION";
const OPERATION: &str = "VBM_CRASH_OPERATION";
const STEP: &str = "VBM_CRASH_STEP";
/// The steps at which it is killed in CI: each of the first ones, then fewer.
const SOME: &[usize] = &[0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 27];
/// More than any operation has.
const STEPS_MAX: usize = 200;
/// How long anything may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn snapshot() -> SnapshotId {
    SnapshotId::from_uuid(uuid::Uuid::from_u128(1))
}

fn config(run: &Path) -> QemuConfig {
    QemuConfig::new(run).with_accelerator(AcceleratorChoice::Tcg)
}

async fn open(run: &Path) -> QemuDriver {
    let driver = QemuDriver::open(config(run)).await.unwrap();
    driver.adopt().await.unwrap();
    driver
}

fn journal(run: &Path) -> PathBuf {
    run.with_file_name("jobs")
}

/// Not a test of its own: the daemon that dies. It is this program, run with an environment that says where.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_that_is_killed_at_a_step() {
    let Ok(run) = std::env::var(RUN) else { return };
    let env = |key: &str| std::env::var(key).unwrap();
    let text = std::fs::read(env(DEFINITION)).unwrap();
    let definition: VmDefinition = serde_json::from_slice(&text).unwrap();
    let (at, operation): (usize, String) = (env(STEP).parse().unwrap(), env(OPERATION));
    let driver = Arc::new(QemuDriver::open(config(Path::new(&run))).await.unwrap());
    let config = MachinesConfig::new().with_journal(journal(Path::new(&run)));
    let machines = Machines::open_with(driver.clone(), config).await.unwrap();
    drop(driver.probe().await);
    let count = AtomicUsize::new(0);
    vbm_hyper::steps::listen(move |_| {
        if count.fetch_add(1, Ordering::SeqCst) == at {
            kill_9(std::process::id());
            std::thread::park();
        }
    });
    let vm = machines.vm(definition.id);
    match operation.as_str() {
        "start" => drop(vm.start(definition, vec![]).await.unwrap()),
        "stop" => drop(driver.stop(definition.id).await),
        "force-off" => vm.force_off().await.unwrap(),
        "pause" => vm.pause().await.unwrap(),
        "snapshot" => drop(vm.take_snapshot(definition, snapshot()).await.unwrap()),
        "delete-snapshot" => vm.delete_snapshot(definition, snapshot()).await.unwrap(),
        "save" => drop(vm.save().await.unwrap()),
        "restore" => drop(vm.restore(definition, vec![]).await.unwrap()),
        "undefine" => vm.remove().await.unwrap(),
        other => panic!("{other}"),
    }
}

/// Runs the child; answers whether it was killed (and did not come to its end).
fn dies(run: &Path, definition: &Path, operation: &str, step: usize) -> bool {
    use std::os::unix::process::ExitStatusExt;
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "child_that_is_killed_at_a_step",
            "--test-threads=1",
            "--nocapture",
        ])
        .env(RUN, run)
        .env(DEFINITION, definition)
        .env(OPERATION, operation)
        .env(STEP, step.to_string())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let died = output.status.signal() == Some(9);
    assert!(
        died || output.status.success(),
        "{operation} at step {step}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    died
}

/// Waits until something is so; panics with `what` if it never is.
async fn until(what: &str, mut wanted: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !wanted() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Where the operation begins.
#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    Off,
    Running,
    Saved,
    WithSnapshot,
}

async fn bring(driver: &QemuDriver, definition: &VmDefinition, from: From) {
    let (cx, id) = (OpCx::new(), definition.id);
    let power = driver
        .inspect(id)
        .await
        .map_or(PowerState::Off, |seen| seen.power);
    if power == PowerState::Running && from == From::Running {
        return;
    }
    if driver.inspect(id).await.is_ok() {
        driver.kill(id).await.unwrap();
    }
    if from == From::Off {
        return;
    }
    driver.start(&cx, definition, vec![]).await.unwrap();
    match from {
        From::Saved => drop(driver.saved_state().unwrap().save(&cx, id).await.unwrap()),
        From::WithSnapshot => drop(
            driver
                .snapshots()
                .unwrap()
                .take(&cx, definition, snapshot().into())
                .await
                .unwrap(),
        ),
        _ => {}
    }
}

/// What holds of a VM that a new daemon has adopted, whatever the one before did last.
async fn is_whole(driver: &QemuDriver, run: &Path, definition: &VmDefinition, context: &str) -> PowerState {
    let id = definition.id;
    let power = driver
        .inspect(id)
        .await
        .map_or(PowerState::Off, |seen| seen.power);
    let stays = matches!(
        power,
        PowerState::Off | PowerState::Running | PowerState::Paused(_) | PowerState::Saved
    );
    assert!(stays, "{context}: it is {power}");
    let lives = usize::from(power.is_live());
    until(
        &format!("{context}: {lives} processes of a VM that is {power}"),
        || processes_of(id).len() == lives,
    )
    .await;
    let has = |name: &str| run.join(id.to_string()).join(name).exists();
    assert_eq!(
        has("manifest"),
        lives == 1,
        "{context}: manifest of a VM that is {power}"
    );
    let left = ["q0", "q1", "tty", "starting", "errand"]
        .into_iter()
        .filter(|name| has(name));
    let left: Vec<_> = left.filter(|name| lives == 0 || *name == "errand").collect();
    assert!(left.is_empty(), "{context}: {left:?} of a VM that is {power}");
    let found = orphans::find(&[run.to_owned()]).unwrap();
    let mine: Vec<_> = found.iter().filter(|orphan| orphan.vm == id).collect();
    assert!(mine.is_empty(), "{context}: {mine:?}");
    power
}

/// Kills a daemon at steps of an operation, each time from the same state, and looks what the next one finds.
async fn killed_at_each_step(operation: &str, from: From, allowed: &[PowerState], job: Option<Job>) {
    if left_out("qemu") {
        return;
    }
    let bench = QemuBench::make().await;
    let definition = bench.on_disk();
    let run = bench.dir.path().join("run");
    let file = bench.dir.path().join("definition.json");
    std::fs::write(&file, serde_json::to_vec(&definition).unwrap()).unwrap();
    let all = std::env::var_os("VBM_CRASH_ALL").is_some();
    let steps: Vec<usize> = match all {
        true => (0..STEPS_MAX).collect(),
        false => SOME.to_vec(),
    };
    let mut deaths = 0;
    for step in steps {
        let driver = open(&run).await;
        bring(&driver, &definition, from).await;
        driver.shutdown().await;
        let died = dies(&run, &file, operation, step);
        let context = format!("{operation} killed at step {step}");
        let driver = Arc::new(QemuDriver::open(config(&run)).await.unwrap());
        let config = MachinesConfig::new().with_journal(journal(&run));
        let machines = Machines::open_with(driver.clone(), config).await.unwrap();
        let power = is_whole(&driver, &run, &definition, &context).await;
        let plain = |power: &PowerState| power.plain();
        assert!(
            allowed.iter().map(plain).any(|state| state == power.plain()),
            "{context}: it is {power}"
        );
        told_so(&machines, job, died, power, &context);
        if driver.inspect(definition.id).await.is_ok() {
            // Whatever a snapshot left is gone with it.
            driver
                .snapshots()
                .unwrap()
                .delete(&OpCx::new(), &definition, snapshot())
                .await
                .unwrap();
        }
        machines.shutdown().await;
        if !died {
            break;
        }
        deaths += 1;
    }
    assert!(deaths > 0, "{operation} has steps");
    println!("{operation}: killed {deaths} times");
    let driver = open(&run).await;
    if driver.inspect(definition.id).await.is_ok() {
        driver.kill(definition.id).await.unwrap();
        driver.undefine(definition.id).await.unwrap();
    }
    driver.shutdown().await;
    until("nothing is left", || bench.leftovers(&[definition.id]).is_empty()).await;
}

/// The journal tells at most of this job, and what it tells is what is seen.
fn told_so(machines: &Machines, job: Option<Job>, died: bool, power: PowerState, context: &str) {
    let told = machines.ended_jobs();
    assert!(
        died || told.is_empty(),
        "{context}: a job that ended is not told: {told:?}"
    );
    for ended in told {
        assert_eq!(Some(ended.job), job, "{context}");
        let expected = match (ended.job, power) {
            (Job::Start | Job::Restore, PowerState::Running) => Some(JobEnd::Done),
            (Job::Start, PowerState::Off) | (Job::Restore, PowerState::Saved) => Some(JobEnd::Undone),
            (Job::Save, PowerState::Saved) | (Job::ForceOff, PowerState::Off) => Some(JobEnd::Done),
            (Job::Save | Job::ForceOff, PowerState::Running) => Some(JobEnd::Undone),
            _ => None,
        };
        if let Some(expected) = expected {
            assert_eq!(ended.end, expected, "{context}: {ended:?}");
        }
        machines.heard_of(ended);
    }
}

const PAUSED: PowerState = PowerState::Paused(vbm_core::PauseReason::Requested);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_killed_at_any_step_is_a_vm_that_runs_or_is_off() {
    let allowed = [PowerState::Off, PowerState::Running];
    killed_at_each_step("start", From::Off, &allowed, Some(Job::Start)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_a_pause_or_a_force_off_killed_at_any_step_leaves_a_whole_vm() {
    killed_at_each_step("stop", From::Running, &[PowerState::Running], None).await;
    let allowed = [PowerState::Running, PAUSED];
    killed_at_each_step("pause", From::Running, &allowed, Some(Job::Pause)).await;
    // What was to be ended was not, or is off: its end was asked for, though nobody saw it.
    let allowed = [PowerState::Running, PowerState::Off];
    killed_at_each_step("force-off", From::Running, &allowed, Some(Job::ForceOff)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_killed_at_any_step_is_there_or_not_and_the_vm_goes_on() {
    let running = [PowerState::Running];
    killed_at_each_step("snapshot", From::Running, &running, Some(Job::TakeSnapshot)).await;
    killed_at_each_step(
        "delete-snapshot",
        From::WithSnapshot,
        &running,
        Some(Job::DeleteSnapshot),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_save_or_a_restore_killed_at_any_step_is_a_vm_that_is_saved_or_runs() {
    let allowed = [PowerState::Running, PowerState::Saved];
    killed_at_each_step("save", From::Running, &allowed, Some(Job::Save)).await;
    killed_at_each_step("restore", From::Saved, &allowed, Some(Job::Restore)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_killed_at_any_step_can_be_done_again() {
    killed_at_each_step("undefine", From::Off, &[PowerState::Off], Some(Job::Remove)).await;
}

/// Halts or lets go a process that the test has started, as another user of the host might.
fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_that_hangs_holds_up_no_list_is_unresponsive_when_it_is_adopted_and_comes_back_unharmed() {
    if left_out("qemu") {
        return;
    }
    let bench = QemuBench::make().await;
    let (hung, other) = (bench.on_disk(), bench.on_disk());
    let run = bench.dir.path().join("run");
    let machines = Machines::open(Arc::new(QemuDriver::open(bench.config()).await.unwrap()))
        .await
        .unwrap();
    for definition in [&hung, &other] {
        machines
            .vm(definition.id)
            .start(definition.clone(), vec![])
            .await
            .unwrap();
    }
    let pid = machines.vm(hung.id).inspect().await.unwrap().seen.pid.unwrap();
    signal(pid, rustix::process::Signal::STOP);
    // The fastest of some: a loaded machine may be slow once, a list that asks the hung one never is fast.
    let mut fastest = Duration::MAX;
    for _ in 0..5 {
        let begun = Instant::now();
        let (list, inventory) = (machines.list(), machines.driver().inventory().await.unwrap());
        machines.vm(hung.id).inspect().await.unwrap();
        assert_eq!((list.len(), inventory.len()), (2, 2));
        fastest = fastest.min(begun.elapsed());
    }
    println!("MEASURED list with one hung VM: {fastest:?}");
    assert!(fastest < Duration::from_millis(50), "{fastest:?}");
    machines.shutdown().await;

    let driver = open(&run).await;
    let power = driver.inspect(other.id).await.unwrap().power;
    assert_eq!(power, PowerState::Running, "one that hangs holds up no other");
    let silent = async {
        loop {
            let seen = driver.inspect(hung.id).await.unwrap();
            assert!(
                matches!(seen.power, PowerState::Unknown | PowerState::Unresponsive),
                "{seen:?}"
            );
            if seen.pid == Some(pid) {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, silent).await.unwrap();
    assert_eq!(processes_of(hung.id), [pid], "it is never killed by guess");
    signal(pid, rustix::process::Signal::CONT);
    let back = async {
        while driver.inspect(hung.id).await.unwrap().power != PowerState::Running {
            sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, back).await.unwrap();
    // One that hangs can be ended all the same.
    signal(pid, rustix::process::Signal::STOP);
    for definition in [&hung, &other] {
        driver.kill(definition.id).await.unwrap();
        driver.undefine(definition.id).await.unwrap();
    }
    driver.shutdown().await;
    assert_eq!(bench.leftovers(&[hung.id, other.id]), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_daemon_looks_after_is_listed_and_only_ended_by_name_or_adopted_elsewhere() {
    if left_out("qemu") {
        return;
    }
    let bench = QemuBench::make().await;
    let definition = bench.on_disk();
    let (run, id) = (bench.dir.path().join("run"), definition.id);
    let mine = || -> Vec<_> {
        let found = orphans::find(std::slice::from_ref(&run)).unwrap();
        found.into_iter().filter(|orphan| orphan.vm == id).collect()
    };
    let driver = QemuDriver::open(bench.config()).await.unwrap();
    driver.start(&OpCx::new(), &definition, vec![]).await.unwrap();
    let pid = driver.inspect(id).await.unwrap().pid.unwrap();
    assert_eq!(mine(), [], "a daemon has it");
    driver.shutdown().await;
    let found = mine();
    assert_eq!(
        (found.len(), found[0].kind, found[0].pid),
        (1, OrphanKind::Unwatched, Some(pid))
    );
    // Found by its process alone, too: nobody has to know its run directory.
    let known = orphans::find(&[]).unwrap();
    assert!(known.contains(&found[0]), "{known:?}");
    orphans::clear(&found[0], false).await.unwrap_err();
    assert_eq!(processes_of(id), [pid], "nobody asked for its end");

    // Its daemon never comes back: another one takes it over, and it goes on.
    let beside = QemuDriver::open(bench.config_beside()).await.unwrap();
    let adopted = beside.adopt_from(&run, None, id).await.unwrap();
    assert_eq!(
        (adopted.seen.power, adopted.seen.pid),
        (PowerState::Running, Some(pid))
    );
    beside.pause(id).await.unwrap();
    beside.resume(id).await.unwrap();
    assert_eq!(mine(), [], "it has a daemon again");
    let twice = beside.adopt_from(&run, None, id).await.unwrap_err();
    assert_eq!(twice.kind(), vbm_core::ErrorKind::AlreadyExists);
    beside.shutdown().await;

    let root = bench.dir.path().join("run-beside");
    let found = orphans::find(std::slice::from_ref(&root)).unwrap();
    let orphan = found.into_iter().find(|orphan| orphan.vm == id).unwrap();
    assert_eq!(orphan.kind, OrphanKind::Unwatched);
    // A daemon that came back is asked, not passed over.
    let back = open(&root).await;
    assert!(matches!(
        orphans::clear(&orphan, true).await.unwrap_err(),
        Error::InUse { .. }
    ));
    back.shutdown().await;
    orphans::clear(&orphan, true).await.unwrap();
    until("it was named, and is ended", || processes_of(id).is_empty()).await;

    // A start that was never finished, by a daemon that is gone.
    let back = open(&root).await;
    back.start(&OpCx::new(), &definition, vec![]).await.unwrap();
    back.shutdown().await;
    std::fs::remove_file(root.join(id.to_string()).join("manifest")).unwrap();
    let found = orphans::find(std::slice::from_ref(&root)).unwrap();
    let stray = found.into_iter().find(|orphan| orphan.vm == id).unwrap();
    assert_eq!(stray.kind, OrphanKind::Stray);
    orphans::clear(&stray, false).await.unwrap_err();
    let back = open(&root).await;
    assert_eq!(
        back.inspect(id).await.unwrap().power,
        PowerState::Off,
        "nobody was told that it runs"
    );
    until("its next daemon ends it", || processes_of(id).is_empty()).await;
    back.undefine(id).await.unwrap();
    back.shutdown().await;
    // Nobody waited for the stray to the end: it had no name any more, and its sockets were still there.
    until("nothing is left of it", || bench.leftovers(&[id]).is_empty()).await;
}

/// A QEMU that aborts as soon as it is to use KVM, and is itself otherwise. Written by another process, so that no fork of this one
/// holds it open while it is run.
fn qemu_that_aborts(dir: &Path) -> PathBuf {
    let program = dir.join("qemu");
    let script = r#"cat > "$0" <<'END'
#!/bin/sh
case " $* " in *" kvm "*)
    echo "qemu-system-x86_64: error: failed to set MSR 0x10a to 0xc000069" >&2
    kill -ABRT $$
    ;;
esac
exec qemu-system-x86_64 "$@"
END
chmod 755 "$0""#;
    let written = Command::new("sh")
        .arg("-c")
        .arg(script)
        .arg(&program)
        .status()
        .unwrap();
    assert!(written.success());
    program
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kvm_device_on_which_qemu_aborts_is_told_and_guests_are_emulated() {
    if left_out("qemu") {
        return;
    }
    let bench = QemuBench::make().await;
    let mut config =
        QemuConfig::new(bench.dir.path().join("run")).with_program(qemu_that_aborts(bench.dir.path()));
    // It opens, as the real one does on such a host.
    config.kvm_device = "/dev/null".into();
    let driver = QemuDriver::open(config.clone()).await.unwrap();
    let accelerator = driver.probe().await.accelerator.unwrap();
    assert_eq!(accelerator.name, "tcg");
    assert!(
        accelerator.reason.contains("failed to set MSR"),
        "{}",
        accelerator.reason
    );
    let definition = bench.on_disk();
    let seen = driver.start(&OpCx::new(), &definition, vec![]).await.unwrap();
    assert_eq!(seen.accelerator, Some(accelerator.clone()));
    assert_eq!(driver.probe_again().await.accelerator, Some(accelerator));
    driver.kill(definition.id).await.unwrap();
    driver.shutdown().await;
    // Who insists on KVM is told why not.
    let driver = QemuDriver::open(config.with_accelerator(AcceleratorChoice::Kvm))
        .await
        .unwrap();
    let problem = driver.probe().await.problem.unwrap();
    assert!(problem.why().contains("failed to set MSR"), "{problem}");
    driver.shutdown().await;
}

const LEAKS: &str = "VBM_LEAKS_CHILD";

/// Not a test of its own: counts its own descriptors, and so needs a process to itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_that_counts_its_descriptors() {
    if std::env::var_os(LEAKS).is_none() {
        return;
    }
    let bench = QemuBench::make().await;
    let definition = bench.on_disk();
    let id = definition.id;
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let (mut before, cx) = (usize::MAX, OpCx::new());
    // The first round opens what stays open: the runtime's own.
    for round in 0..4 {
        let driver = QemuDriver::open(bench.config()).await.unwrap();
        driver.adopt().await.unwrap();
        driver.start(&cx, &definition, vec![]).await.unwrap();
        driver.pause(id).await.unwrap();
        driver.resume(id).await.unwrap();
        driver.reset(id).await.unwrap();
        driver
            .snapshots()
            .unwrap()
            .take(&cx, &definition, snapshot().into())
            .await
            .unwrap();
        driver
            .snapshots()
            .unwrap()
            .delete(&cx, &definition, snapshot())
            .await
            .unwrap();
        driver.saved_state().unwrap().save(&cx, id).await.unwrap();
        driver
            .saved_state()
            .unwrap()
            .restore(&cx, &definition, vec![])
            .await
            .unwrap();
        drop(tokio::time::timeout(Duration::from_millis(1), driver.reset(id)).await);
        driver.shutdown().await;
        drop(driver);
        let driver = self::open(&bench.dir.path().join("run")).await;
        driver.kill(id).await.unwrap();
        driver.undefine(id).await.unwrap();
        driver.shutdown().await;
        drop(driver);
        assert_eq!(bench.leftovers(&[id]), Vec::<String>::new());
        if round == 0 {
            before = open();
        } else {
            until("all descriptors are closed again", || open() <= before).await;
        }
    }
}

#[test]
fn rounds_of_all_operations_leave_no_descriptor_process_or_file() {
    if left_out("qemu") {
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "child_that_counts_its_descriptors",
            "--test-threads=1",
            "--nocapture",
        ])
        .env(LEAKS, "1")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
