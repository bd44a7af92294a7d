//! Saved memory.

use super::*;

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
