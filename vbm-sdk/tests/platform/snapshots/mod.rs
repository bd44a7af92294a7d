//! Snapshots and saved memory, as people see them: what the guest had is there again, whoever is restarted meanwhile.

mod broken_off;
mod consistency;
mod plain;
mod saved;

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
