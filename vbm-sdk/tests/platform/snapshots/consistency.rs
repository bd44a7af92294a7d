//! What going back gives: said when it is taken, and kept.

use super::*;
use vbm_core::{Consistency, Freeze, SnapshotStatus};

async fn taken(client: &Client, request: CreateSnapshot) -> SnapshotStatus {
    let snapshots = client.vms().snapshots("web");
    let name = request.name.clone().unwrap();
    through(client, snapshots.create(request).await).await.unwrap();
    snapshots.get(name.as_str()).await.unwrap().snapshot.status
}

fn without_memory(called: &str, freeze: Freeze) -> CreateSnapshot {
    CreateSnapshot {
        memory: Some(false),
        freeze,
        ..CreateSnapshot::named(name(called))
    }
}

#[tokio::test]
async fn what_going_back_gives_is_told_and_why_it_is_less_than_was_asked_for() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    let vm = launch(&client, "web").await.vm.meta.id;
    keep(&client, "web", "before").await;
    let whole = taken(&client, CreateSnapshot::named(name("whole"))).await;
    assert_eq!(whole.consistency, Some(Consistency::WithMemory));
    let crash = taken(&client, without_memory("crash", Freeze::No)).await;
    assert_eq!(
        (crash.consistency, crash.content),
        (Some(Consistency::Crash), Some(SnapshotContent::Disk))
    );
    let frozen = taken(&client, without_memory("frozen", Freeze::Required)).await;
    assert_eq!(
        (frozen.consistency, frozen.note),
        (Some(Consistency::Frozen), None)
    );

    house
        .world
        .add_fault(vm, Fault::CannotFreeze("nobody listens".into()));
    let tried = taken(&client, without_memory("tried", Freeze::IfPossible)).await;
    assert_eq!(tried.consistency, Some(Consistency::Crash));
    assert!(tried.note.unwrap().contains("nobody listens"));
    let snapshots = client.vms().snapshots("web");
    let refused = snapshots.create(without_memory("must", Freeze::Required)).await;
    let error = through(&client, refused).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let failed = snapshots.get("must").await.unwrap().snapshot.status;
    assert_eq!((failed.state, failed.consistency), (SnapshotState::Failed, None));

    let nonsense = CreateSnapshot {
        freeze: Freeze::Required,
        ..CreateSnapshot::named(name("both"))
    };
    let error = snapshots.create(nonsense).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.why().starts_with("freeze:"), "{error}");

    keep(&client, "web", "after").await;
    revert(&client, "web", "crash").await;
    assert_eq!(state(&client, "web").await, PowerState::Off);
    power(&client, "web", PowerAction::Start).await;
    assert_eq!(holds(&client, "web").await.0, "before");
    server.shutdown().await;
}
