//! Snapshots and saved memory, as people see them: what the guest had is there again, whoever is restarted meanwhile.

use crate::house::{House, PATIENCE, done, launch, name, request, through, until};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use vbm_core::{
    Capability, DriverKind, ErrorKind, EventKind, OperationState, PowerState, SnapshotContent, SnapshotState,
    VmId, limits,
};
use vbm_hyper::{
    Adopted, Consoles, Driver, DriverEvent, Facet, Fault, Latency, NicBackend, Seen, SimDriver, VmDefinition,
};
use vbm_net::SimNetwork;
use vbm_sdk::{
    api::{CreateSnapshot, LaunchRequest, PowerAction, SnapshotView},
    client::Client,
    server::Server,
    source::SystemClock,
};

/// Longer than any test waits: what takes so long is broken off.
const NEVER: Duration = Duration::from_secs(600);

/// Types a line into the guest and gives the line that it answers, which begins with `head` and ends with `tail`.
async fn ask(client: &Client, vm: &str, line: &str, head: &str, tail: &str) -> String {
    let mut console = client.vms().console(vm).await.unwrap();
    console.write_all(format!("{line}\n").as_bytes()).await.unwrap();
    console.flush().await.unwrap();
    let mut said = String::new();
    let read = async {
        let mut buffer = [0; 4096];
        loop {
            let whole = said.rsplit_once('\n').map_or("", |(whole, _)| whole);
            let mut lines = whole.lines().map(str::trim);
            if let Some(found) = lines.find(|l| l.starts_with(head) && l.ends_with(tail)) {
                return found[head.len()..].to_owned();
            }
            let n = console.read(&mut buffer).await.unwrap();
            assert!(n > 0, "the console ended: {said}");
            said.push_str(&String::from_utf8_lossy(&buffer[..n]));
        }
    };
    let answer = tokio::time::timeout(PATIENCE, read).await.unwrap();
    console.shutdown().await.unwrap();
    answer
}

/// What is on its disk and in its memory, by the guest's own words.
async fn holds(client: &Client, vm: &str) -> (String, String) {
    static ASKED: AtomicU32 = AtomicU32::new(0);
    let tag = format!("#{}", ASKED.fetch_add(1, Ordering::Relaxed));
    let ask = |word: &'static str, head: &'static str| {
        let tag = tag.clone();
        async move {
            let answer = ask(client, vm, &format!("{word} {}", &tag[1..]), head, &tag).await;
            answer.trim_end_matches(&tag).to_owned()
        }
    };
    (ask("read", "disk=").await, ask("recall", "memory=").await)
}

/// Puts a word on its disk and one into its memory.
async fn keep(client: &Client, vm: &str, word: &str) {
    ask(client, vm, &format!("write {word}"), "written=", word).await;
    ask(client, vm, &format!("remember {word}"), "kept=", word).await;
}

fn both(word: &str) -> (String, String) {
    (word.to_owned(), word.to_owned())
}

async fn take(client: &Client, vm: &str, snapshot: &str) -> SnapshotView {
    let snapshots = client.vms().snapshots(vm);
    through(
        client,
        snapshots.create(CreateSnapshot::named(name(snapshot))).await,
    )
    .await
    .unwrap();
    snapshots.get(snapshot).await.unwrap()
}

async fn revert(client: &Client, vm: &str, snapshot: &str) {
    through(client, client.vms().snapshots(vm).revert(snapshot).await)
        .await
        .unwrap();
}

async fn power(client: &Client, vm: &str, action: PowerAction) {
    through(client, client.vms().power(vm, action).await)
        .await
        .unwrap();
}

async fn state(client: &Client, vm: &str) -> PowerState {
    client.vms().get(vm).await.unwrap().vm.status.power
}

/// `(name, parent, current)` of each, the oldest first.
async fn tree(client: &Client, vm: &str) -> Vec<(String, Option<String>, bool)> {
    let all = client.vms().snapshots(vm).list().all().await.unwrap();
    let row = |s: SnapshotView| {
        let parent = s.parent_name.map(|n| n.to_string());
        (
            s.snapshot.meta.name.to_string(),
            parent,
            s.snapshot.status.current,
        )
    };
    all.into_iter().map(row).collect()
}

fn row(name: &str, parent: Option<&str>, current: bool) -> (String, Option<String>, bool) {
    (name.to_owned(), parent.map(str::to_owned), current)
}

async fn kinds(client: &Client, of: &str) -> Vec<EventKind> {
    let mut events = client.events().open();
    let mut kinds = Vec::new();
    while let Some(event) = events.next().await {
        let event = event.unwrap().event;
        if event.object.name == of {
            kinds.push(event.kind);
        }
    }
    kinds
}

/// Memories take so long from now on.
fn transfers_take(house: &House, transfer: Duration) {
    house.world.set_latency(Latency {
        transfer,
        ..Latency::NONE
    });
}

/// The daemon of this host goes away in the middle of what it does, and comes back.
async fn restart(house: &mut House, server: Server) -> (Server, Client) {
    server.shutdown().await;
    transfers_take(house, Duration::ZERO);
    house.networks = SimNetwork::new(Arc::new(SystemClock));
    let server = house.serve().await;
    let client = server.client().unwrap();
    (server, client)
}

#[tokio::test]
async fn a_running_vm_goes_back_to_its_disk_and_its_memory_and_runs() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    launch(&client, "web").await;
    keep(&client, "web", "before").await;
    let taken = take(&client, "web", "base").await;
    assert_eq!(taken.snapshot.status.state, SnapshotState::Ready);
    assert_eq!(
        taken.snapshot.status.content,
        Some(SnapshotContent::DiskAndMemory)
    );
    assert!(taken.snapshot.status.taken_at.is_some() && taken.snapshot.status.current);
    assert_eq!(state(&client, "web").await, PowerState::Running);

    keep(&client, "web", "after").await;
    assert_eq!(holds(&client, "web").await, both("after"));
    revert(&client, "web", "base").await;
    assert_eq!(state(&client, "web").await, PowerState::Running);
    assert_eq!(holds(&client, "web").await, both("before"));
    let vm = client.vms().get("web").await.unwrap().vm;
    assert_eq!(
        (vm.spec.reverting, vm.status.observed),
        (None, vm.meta.generation)
    );
    assert_eq!(
        kinds(&client, "web/base").await,
        [EventKind::SnapshotTaken, EventKind::SnapshotReverted]
    );
    let paused = kinds(&client, "web").await;
    assert!(!paused.contains(&EventKind::VmPaused), "{paused:?}");
    server.shutdown().await;
}

#[tokio::test]
async fn a_vm_that_was_off_is_off_again_with_the_disk_it_had() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    let stopped = LaunchRequest {
        stopped: true,
        ..request("web")
    };
    through(&client, client.vms().launch(stopped).await)
        .await
        .unwrap();
    let taken = take(&client, "web", "empty").await;
    assert_eq!(taken.snapshot.status.content, Some(SnapshotContent::Disk));
    power(&client, "web", PowerAction::Start).await;
    keep(&client, "web", "after").await;
    revert(&client, "web", "empty").await;
    assert_eq!(state(&client, "web").await, PowerState::Off);
    power(&client, "web", PowerAction::Start).await;
    assert_eq!(holds(&client, "web").await.0, "");
    server.shutdown().await;
}

#[tokio::test]
async fn snapshots_form_a_tree_that_stays_whole_when_one_is_deleted() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    launch(&client, "web").await;
    take(&client, "web", "base").await;
    take(&client, "web", "patched").await;
    revert(&client, "web", "base").await;
    let made = through(
        &client,
        client
            .vms()
            .snapshots("web")
            .create(CreateSnapshot::default())
            .await,
    )
    .await
    .unwrap();
    assert_eq!(made.snapshot.meta.name.as_str(), "snap0");
    assert_eq!(
        tree(&client, "web").await,
        [
            row("base", None, false),
            row("patched", Some("base"), false),
            row("snap0", Some("base"), true),
        ]
    );
    through(&client, client.vms().snapshots("web").delete("base").await)
        .await
        .unwrap();
    through(&client, client.vms().snapshots("web").delete("snap0").await)
        .await
        .unwrap();
    assert_eq!(tree(&client, "web").await, [row("patched", None, false)]);
    assert_eq!(state(&client, "web").await, PowerState::Running);
    revert(&client, "web", "patched").await;
    assert_eq!(tree(&client, "web").await, [row("patched", None, true)]);
    server.shutdown().await;
}

#[tokio::test]
async fn a_name_is_given_once_within_a_vm_and_again_in_another() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    launch(&client, "web").await;
    launch(&client, "db").await;
    let base = take(&client, "web", "base").await;
    let (of_web, of_db) = (client.vms().snapshots("web"), client.vms().snapshots("db"));
    let twice = of_web
        .create(CreateSnapshot::named(name("base")))
        .await
        .unwrap_err();
    assert_eq!(twice.kind(), ErrorKind::AlreadyExists, "{twice}");
    assert!(twice.what().contains("'base'"), "{twice}");
    for error in [
        of_db.revert("base").await.unwrap_err(),
        of_db.revert(base.snapshot.meta.id.to_string()).await.unwrap_err(),
        of_db.delete("base").await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    }
    take(&client, "db", "base").await;
    let id = base.snapshot.meta.id.to_string();
    assert_eq!(of_web.get(&id).await.unwrap().vm_name, "web");
    server.shutdown().await;
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_taken_says_why_and_the_vm_runs_on() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    let vm = launch(&client, "web").await;
    take(&client, "web", "base").await;
    let fault = Fault::NextSnapshotFails("no space left on the disk".into());
    house.world.add_fault(vm.vm.meta.id, fault);
    let snapshots = client.vms().snapshots("web");
    let made = snapshots
        .create(CreateSnapshot::named(name("big")))
        .await
        .unwrap();
    let error = done(&client, &made.operation).await.unwrap_err();
    assert!(error.inline().contains("no space left"), "{error}");
    let failed = snapshots.get("big").await.unwrap().snapshot;
    assert_eq!(failed.status.state, SnapshotState::Failed);
    assert_eq!(failed.status.problem, Some(error));
    assert_eq!(state(&client, "web").await, PowerState::Running);
    assert_eq!(kinds(&client, "web/big").await, [EventKind::SnapshotFailed]);
    let refused = snapshots.revert("big").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict, "{refused}");
    take(&client, "web", "small").await;
    assert_eq!(tree(&client, "web").await[2], row("small", Some("base"), true));
    through(&client, snapshots.delete("big").await).await.unwrap();
    take(&client, "web", "big").await;
    server.shutdown().await;
}

#[tokio::test]
async fn a_vm_has_a_limited_number_of_snapshots_even_when_they_are_asked_for_together() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    launch(&client, "web").await;
    let asked = (0..limits::VM_MAX_SNAPSHOTS + 4).map(|_| {
        let snapshots = client.vms().snapshots("web");
        // Those that cross each other too often are told to try again.
        async move {
            loop {
                match snapshots.create(CreateSnapshot::default()).await {
                    Err(e) if e.is_retryable() => {}
                    other => return other,
                }
            }
        }
    });
    let made = futures::future::join_all(asked).await;
    let refused: Vec<_> = made.iter().filter_map(|m| m.as_ref().err()).collect();
    assert_eq!(refused.len(), 4, "{refused:?}");
    assert!(refused.iter().all(|e| e.kind() == ErrorKind::Exhausted));
    for made in made.iter().flatten() {
        done(&client, &made.operation).await.unwrap();
    }
    let rows = tree(&client, "web").await;
    assert_eq!(rows.len(), limits::VM_MAX_SNAPSHOTS);
    assert_eq!(rows.iter().filter(|r| r.2).count(), 1);
    let names: std::collections::BTreeSet<_> = rows.iter().map(|r| &r.0).collect();
    assert_eq!(names.len(), rows.len());
    server.shutdown().await;
}

#[tokio::test]
async fn a_snapshot_that_was_begun_is_taken_after_a_restart_of_the_daemon() {
    let mut house = House::new();
    let (server, client) = house.furnished().await;
    launch(&client, "web").await;
    keep(&client, "web", "kept").await;
    transfers_take(&house, NEVER);
    let snapshots = client.vms().snapshots("web");
    let made = snapshots
        .create(CreateSnapshot::named(name("base")))
        .await
        .unwrap();
    let told = |o: &vbm_core::Operation| o.steps.iter().any(|s| s.name.contains("taking"));
    step(&client, &made.operation, told).await;
    let (server, client) = restart(&mut house, server).await;
    done(&client, &made.operation).await.unwrap();
    keep(&client, "web", "later").await;
    revert(&client, "web", "base").await;
    assert_eq!(holds(&client, "web").await, both("kept"));
    server.shutdown().await;
}

/// Waits until an operation has come so far.
async fn step(client: &Client, operation: &vbm_core::Operation, far: impl Fn(&vbm_core::Operation) -> bool) {
    let look = async {
        let mut events = client.events().follow().open();
        loop {
            let now = client.operations().get(operation.id.to_string()).await.unwrap();
            if far(&now) {
                return;
            }
            // Steps are no events: this only paces the looks.
            drop(tokio::time::timeout(Duration::from_millis(20), events.next()).await);
        }
    };
    tokio::time::timeout(PATIENCE, look).await.unwrap();
}

#[tokio::test]
async fn a_way_back_that_was_broken_off_is_gone_after_a_restart_of_the_daemon() {
    let mut house = House::new();
    let (server, client) = house.furnished().await;
    launch(&client, "web").await;
    keep(&client, "web", "before").await;
    take(&client, "web", "base").await;
    keep(&client, "web", "after").await;
    transfers_take(&house, NEVER);
    let asked = client.vms().snapshots("web").revert("base").await.unwrap();
    until(&client, "web", |v| v.vm.status.power == PowerState::Restoring).await;
    let (server, client) = restart(&mut house, server).await;
    done(&client, &asked.operation).await.unwrap();
    assert_eq!(state(&client, "web").await, PowerState::Running);
    assert_eq!(holds(&client, "web").await, both("before"));
    server.shutdown().await;
}

#[tokio::test]
async fn a_way_back_that_was_gone_while_the_agent_died_is_not_gone_again() {
    let mut house = House::new();
    let (server, client) = house.furnished().await;
    let vm = launch(&client, "web").await;
    keep(&client, "web", "before").await;
    let base = take(&client, "web", "base").await;
    transfers_take(&house, NEVER);
    let asked = client.vms().snapshots("web").revert("base").await.unwrap();
    until(&client, "web", |v| v.vm.status.power == PowerState::Restoring).await;
    server.shutdown().await;

    // The hypervisor did it all the same, and nobody was there to write it down; the guest worked on.
    transfers_take(&house, Duration::ZERO);
    let driver = SimDriver::open(house.world.clone()).unwrap();
    driver.adopt().await.unwrap();
    let definition = definition_of(&house, vm.vm.meta.id);
    let there = driver
        .snapshots()
        .unwrap()
        .revert(&definition, base.snapshot.meta.id, Vec::new())
        .await
        .unwrap();
    driver.shutdown().await;

    house.networks = SimNetwork::new(Arc::new(SystemClock));
    let server = house.serve().await;
    let client = server.client().unwrap();
    done(&client, &asked.operation).await.unwrap();
    let now = client.vms().get("web").await.unwrap().vm;
    assert_eq!(
        now.status.pid, there.pid,
        "the VM that ran was ended to go back once more"
    );
    assert_eq!(now.status.power, PowerState::Running);
    server.shutdown().await;
}

/// The definition of a VM as its agent makes it, but without NICs.
fn definition_of(house: &House, vm: VmId) -> VmDefinition {
    let volumes = house.dir.path().join("data/volumes");
    let disk = std::fs::read_dir(volumes)
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.extension().is_some_and(|e| e == "qcow2"))
        .unwrap();
    VmDefinition {
        id: vm,
        name: name("web"),
        vcpus: 1,
        memory_mib: 256,
        root_disk: disk,
        boot: vbm_hyper::BootSource::Disk,
        nics: Vec::new(),
    }
}

#[tokio::test]
async fn only_ending_it_goes_past_a_vm_that_is_going_back() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    launch(&client, "web").await;
    take(&client, "web", "base").await;
    transfers_take(&house, NEVER);
    let snapshots = client.vms().snapshots("web");
    let asked = snapshots.revert("base").await.unwrap();
    until(&client, "web", |v| v.vm.status.power == PowerState::Restoring).await;
    for error in [
        client.vms().power("web", PowerAction::Pause).await.unwrap_err(),
        client.vms().power("web", PowerAction::Stop).await.unwrap_err(),
        snapshots.create(CreateSnapshot::default()).await.unwrap_err(),
        snapshots.delete("base").await.unwrap_err(),
        snapshots.revert("base").await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    }
    power(&client, "web", PowerAction::ForceOff).await;
    let given_up = done(&client, &asked.operation).await.unwrap_err();
    assert_eq!(given_up.kind(), ErrorKind::Cancelled, "{given_up}");
    assert_eq!(state(&client, "web").await, PowerState::Off);
    transfers_take(&house, Duration::ZERO);
    revert(&client, "web", "base").await;
    assert_eq!(state(&client, "web").await, PowerState::Running);
    server.shutdown().await;
}

#[tokio::test]
async fn a_way_back_that_fails_says_why_and_leaves_the_vm_off_and_not_wanted() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    let vm = launch(&client, "web").await;
    take(&client, "web", "base").await;
    let fault = Fault::NextRestoreFails("its memory cannot be read".into());
    house.world.add_fault(vm.vm.meta.id, fault);
    let asked = client.vms().snapshots("web").revert("base").await.unwrap();
    let error = done(&client, &asked.operation).await.unwrap_err();
    assert!(error.inline().contains("cannot be read"), "{error}");
    let vm = until(&client, "web", |v| v.vm.status.observed == v.vm.meta.generation).await;
    assert_eq!(
        (vm.vm.status.power, vm.vm.spec.reverting),
        (PowerState::Off, None)
    );
    revert(&client, "web", "base").await;
    assert_eq!(state(&client, "web").await, PowerState::Running);
    server.shutdown().await;
}

#[tokio::test]
async fn a_snapshot_is_deleted_while_it_is_being_taken() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    launch(&client, "web").await;
    transfers_take(&house, Duration::from_millis(200));
    let snapshots = client.vms().snapshots("web");
    let made = snapshots
        .create(CreateSnapshot::named(name("base")))
        .await
        .unwrap();
    through(&client, snapshots.delete("base").await).await.unwrap();
    assert!(snapshots.get_opt("base").await.unwrap().is_none());
    let told = done(&client, &made.operation).await;
    assert!(
        told.as_ref().is_ok_and(|o| o.state == OperationState::Done)
            || told.as_ref().is_err_and(|e| e.kind() == ErrorKind::NotFound),
        "{told:?}"
    );
    assert_eq!(state(&client, "web").await, PowerState::Running);
    server.shutdown().await;
}

#[tokio::test]
async fn snapshots_that_are_asked_for_together_are_taken_one_after_the_other() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    launch(&client, "web").await;
    transfers_take(&house, Duration::from_millis(50));
    let snapshots = client.vms().snapshots("web");
    let mut made = Vec::new();
    for n in ["a", "b", "c"] {
        made.push(snapshots.create(CreateSnapshot::named(name(n))).await.unwrap());
    }
    for made in &made {
        done(&client, &made.operation).await.unwrap();
    }
    assert_eq!(
        tree(&client, "web").await,
        [
            row("a", None, false),
            row("b", Some("a"), false),
            row("c", Some("b"), true)
        ]
    );
    server.shutdown().await;
}

#[tokio::test]
async fn a_deleted_vm_takes_its_snapshots_with_it() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    launch(&client, "web").await;
    take(&client, "web", "base").await;
    take(&client, "web", "more").await;
    through(&client, client.vms().delete("web").force(true).await)
        .await
        .unwrap();
    use vbm_sdk::store::Store;
    let page = house.store.list("", None, 10_000).await.unwrap();
    let left: Vec<_> = page
        .entries
        .iter()
        .map(|e| &e.key)
        .filter(|k| k.contains("snapshot"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    let reverts = house.dir.path().join("data/reverts");
    assert_eq!(std::fs::read_dir(reverts).unwrap().count(), 0);
    server.shutdown().await;
}

#[tokio::test]
async fn a_saved_vm_goes_on_where_it_was_also_after_a_restart_of_its_daemon() {
    let mut house = House::new();
    let (server, client) = house.furnished().await;
    launch(&client, "web").await;
    keep(&client, "web", "kept").await;
    power(&client, "web", PowerAction::Save).await;
    let saved = client.vms().get("web").await.unwrap().vm;
    assert_eq!((saved.status.power, saved.status.pid), (PowerState::Saved, None));
    let (server, client) = restart(&mut house, server).await;
    let settled = until(&client, "web", |v| v.vm.status.observed == v.vm.meta.generation).await;
    assert_eq!(settled.vm.status.power, PowerState::Saved);
    power(&client, "web", PowerAction::Start).await;
    assert_eq!(state(&client, "web").await, PowerState::Running);
    assert_eq!(holds(&client, "web").await, both("kept"));
    assert!(kinds(&client, "web").await.contains(&EventKind::VmSaved));
    server.shutdown().await;
}

#[tokio::test]
async fn saved_memory_is_thrown_away_by_its_own_word_only() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    launch(&client, "web").await;
    keep(&client, "web", "kept").await;
    power(&client, "web", PowerAction::Pause).await;
    power(&client, "web", PowerAction::Save).await;
    for action in [
        PowerAction::Stop,
        PowerAction::ForceOff,
        PowerAction::Pause,
        PowerAction::Resume,
        PowerAction::Restart,
    ] {
        let error = client.vms().power("web", action).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{action:?}: {error}");
    }
    for error in [
        client.vms().delete("web").await.map(drop).unwrap_err(),
        client
            .vms()
            .snapshots("web")
            .create(CreateSnapshot::default())
            .await
            .map(drop)
            .unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
        assert!(error.fix().contains("discard"), "{error}");
    }
    power(&client, "web", PowerAction::Discard).await;
    assert_eq!(state(&client, "web").await, PowerState::Off);
    let again = client.vms().power("web", PowerAction::Discard).await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Conflict, "{again}");
    power(&client, "web", PowerAction::Start).await;
    let (disk, memory) = holds(&client, "web").await;
    assert_eq!((disk.as_str(), memory.as_str()), ("kept", ""));
    server.shutdown().await;
}

#[tokio::test]
async fn a_saved_vm_is_deleted_with_its_memory_when_that_is_forced() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    launch(&client, "web").await;
    power(&client, "web", PowerAction::Save).await;
    through(&client, client.vms().delete("web").force(true).await)
        .await
        .unwrap();
    launch(&client, "web").await;
    server.shutdown().await;
}

#[tokio::test]
async fn a_saved_vm_goes_back_to_a_snapshot_and_its_saved_memory_is_gone() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    launch(&client, "web").await;
    keep(&client, "web", "before").await;
    take(&client, "web", "base").await;
    keep(&client, "web", "after").await;
    power(&client, "web", PowerAction::Save).await;
    revert(&client, "web", "base").await;
    assert_eq!(state(&client, "web").await, PowerState::Running);
    assert_eq!(holds(&client, "web").await, both("before"));
    server.shutdown().await;
}

#[tokio::test]
async fn a_vm_whose_memory_cannot_be_written_runs_on_and_says_why() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    let vm = launch(&client, "web").await;
    keep(&client, "web", "kept").await;
    let fault = Fault::NextSaveFails("no space left for its memory".into());
    house.world.add_fault(vm.vm.meta.id, fault);
    let save = client.vms().power("web", PowerAction::Save).await.unwrap();
    let error = done(&client, &save.operation).await.unwrap_err();
    assert!(error.inline().contains("no space left"), "{error}");
    assert_eq!(state(&client, "web").await, PowerState::Running);
    power(&client, "web", PowerAction::Start).await;
    assert_eq!(holds(&client, "web").await, both("kept"));
    server.shutdown().await;
}

#[tokio::test]
async fn the_same_request_with_the_same_key_takes_one_snapshot() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    launch(&client, "web").await;
    let snapshots = client.vms().snapshots("web");
    let first = snapshots
        .create(CreateSnapshot::default())
        .key("once")
        .await
        .unwrap();
    let again = snapshots
        .create(CreateSnapshot::default())
        .key("once")
        .await
        .unwrap();
    assert_eq!(first.operation.id, again.operation.id);
    done(&client, &first.operation).await.unwrap();
    assert_eq!(snapshots.list().all().await.unwrap().len(), 1);
    server.shutdown().await;
}

/// A driver that can do nothing but what each must.
struct Plain(SimDriver);

const WHY: &str = "its disks are on tape";

#[async_trait::async_trait]
impl Driver for Plain {
    fn kind(&self) -> DriverKind {
        self.0.kind()
    }
    async fn probe(&self) -> Capability {
        self.0.probe().await
    }
    async fn start(&self, definition: &VmDefinition, nics: Vec<NicBackend>) -> vbm_hyper::Result<Seen> {
        self.0.start(definition, nics).await
    }
    async fn stop(&self, id: VmId) -> vbm_hyper::Result<()> {
        self.0.stop(id).await
    }
    async fn kill(&self, id: VmId) -> vbm_hyper::Result<()> {
        self.0.kill(id).await
    }
    async fn reset(&self, id: VmId) -> vbm_hyper::Result<()> {
        self.0.reset(id).await
    }
    async fn pause(&self, id: VmId) -> vbm_hyper::Result<()> {
        self.0.pause(id).await
    }
    async fn resume(&self, id: VmId) -> vbm_hyper::Result<()> {
        self.0.resume(id).await
    }
    async fn inspect(&self, id: VmId) -> vbm_hyper::Result<Seen> {
        self.0.inspect(id).await
    }
    async fn inventory(&self) -> vbm_hyper::Result<Vec<(VmId, Seen)>> {
        self.0.inventory().await
    }
    async fn adopt(&self) -> vbm_hyper::Result<Vec<Adopted>> {
        self.0.adopt().await
    }
    fn events(&self) -> tokio::sync::broadcast::Receiver<DriverEvent> {
        self.0.events()
    }
    fn consoles(&self) -> Option<&dyn Consoles> {
        self.0.consoles()
    }
    fn missing(&self, facet: Facet) -> Option<String> {
        matches!(facet, Facet::Snapshots | Facet::SavedState).then(|| WHY.to_owned())
    }
    async fn undefine(&self, id: VmId) -> vbm_hyper::Result<()> {
        self.0.undefine(id).await
    }
    async fn shutdown(&self) {
        self.0.shutdown().await;
    }
}

#[tokio::test]
async fn what_a_driver_cannot_do_is_refused_with_its_reason_before_anything_is_made() {
    let house = House::new();
    let driver = SimDriver::open(house.world.clone()).unwrap();
    let server = house.serve_with(Arc::new(Plain(driver))).await;
    let client = server.client().unwrap();
    crate::house::import(&client, house.dir.path()).await;
    crate::house::lan(&client, "lan", "10.0.0.0/24").await;
    launch(&client, "web").await;
    let snapshots = client.vms().snapshots("web");
    for error in [
        snapshots
            .create(CreateSnapshot::default())
            .await
            .map(drop)
            .unwrap_err(),
        client
            .vms()
            .power("web", PowerAction::Save)
            .await
            .map(drop)
            .unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.why().contains(WHY), "{error}");
    }
    assert!(snapshots.list().all().await.unwrap().is_empty());
    let vm = client.vms().get("web").await.unwrap().vm;
    assert_eq!((vm.status.power, vm.status.problem), (PowerState::Running, None));
    server.shutdown().await;
}
