//! Things that go wrong on the host, and what people see of it.

use crate::house::{House, done, launch, name, request, through, until};
use vbm_core::{CrashCause, EventKind, PowerState};
use vbm_hyper::{Fault, Latency};
use vbm_net::NetError;
use vbm_sdk::api::{CreateNetwork, PowerAction};

#[tokio::test]
async fn a_crashed_vm_is_shown_as_crashed_and_runs_again_only_when_asked() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    let vm = launch(&client, "web").await;
    house.world.crash(vm.vm.meta.id, CrashCause::Hypervisor);
    let crashed = until(&client, "web", |v| {
        matches!(v.vm.status.power, PowerState::Crashed(_))
    })
    .await;
    assert_eq!(crashed.vm.meta.generation, vm.vm.meta.generation);
    through(&client, client.vms().power("web", PowerAction::Start).await)
        .await
        .unwrap();
    assert_eq!(
        client.vms().get("web").await.unwrap().vm.status.power,
        PowerState::Running
    );
    let mut events = client.events().open();
    let mut kinds = Vec::new();
    while let Some(event) = events.next().await {
        kinds.push(event.unwrap().event.kind);
    }
    assert_eq!(kinds.iter().filter(|k| **k == EventKind::VmCrashed).count(), 1);
    server.shutdown().await;
}

#[tokio::test]
async fn a_guest_that_ignores_its_button_can_be_ended_while_it_is_waited_for() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    let vm = launch(&client, "web").await;
    house.world.add_fault(vm.vm.meta.id, Fault::IgnoresButton);
    let stop = client.vms().power("web", PowerAction::Stop).await.unwrap();
    until(&client, "web", |v| v.vm.status.power == PowerState::Stopping).await;
    through(&client, client.vms().power("web", PowerAction::ForceOff).await)
        .await
        .unwrap();
    assert_eq!(
        client.vms().get("web").await.unwrap().vm.status.power,
        PowerState::Off
    );
    // The stop ends too: with what it wanted, or overtaken.
    drop(done(&client, &stop.operation).await);
    assert!(
        client
            .operations()
            .get(stop.operation.id.to_string())
            .await
            .unwrap()
            .state
            .is_final()
    );
    server.shutdown().await;
}

#[tokio::test]
async fn a_start_that_fails_tells_why_and_succeeds_once_the_cause_is_gone() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    let made = client
        .vms()
        .launch(vbm_sdk::api::LaunchRequest {
            stopped: true,
            ..request("web")
        })
        .await
        .unwrap();
    done(&client, &made.operation).await.unwrap();
    house.world.add_fault(
        made.item.vm.meta.id,
        Fault::NextStartFails("no space for its memory".into()),
    );
    let start = client.vms().power("web", PowerAction::Start).await.unwrap();
    let error = done(&client, &start.operation).await.unwrap_err();
    assert!(error.inline().contains("no space for its memory"), "{error}");
    assert!(client.vms().get("web").await.unwrap().vm.status.problem.is_some());
    house.world.clear_faults(made.item.vm.meta.id);
    through(&client, client.vms().power("web", PowerAction::Start).await)
        .await
        .unwrap();
    let vm = client.vms().get("web").await.unwrap().vm;
    assert_eq!((vm.status.power, vm.status.problem), (PowerState::Running, None));
    server.shutdown().await;
}

#[tokio::test]
async fn a_network_that_cannot_be_made_tells_why_and_comes_up_by_itself_later() {
    let house = House::new();
    // No other network: the next call that changes something is about this one.
    let server = house.serve().await;
    let client = server.client().unwrap();
    for _ in 0..3 {
        house.networks.fail_next(NetError::Stopped);
    }
    let made = client
        .networks()
        .create(CreateNetwork::new(name("late"), "10.5.0.0/24"))
        .await
        .unwrap();
    done(&client, &made.operation).await.unwrap_err();
    let mut events = client.events().follow().open();
    let ready = async {
        loop {
            let event = events.next().await.unwrap().unwrap().event;
            if event.kind == EventKind::NetworkReady && event.object.name == "late" {
                return;
            }
        }
    };
    tokio::time::timeout(crate::house::PATIENCE, ready).await.unwrap();
    assert!(client.networks().get("late").await.unwrap().network.status.ready);
    server.shutdown().await;
}

#[tokio::test]
async fn a_vm_is_deleted_while_it_starts_and_nothing_of_it_is_left_running() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    house.world.set_latency(Latency {
        start: std::time::Duration::from_secs(5),
        ..Latency::NONE
    });
    client.vms().launch(request("web")).await.unwrap();
    until(&client, "web", |v| v.vm.status.power == PowerState::Starting).await;
    through(&client, client.vms().delete("web").force(true).await)
        .await
        .unwrap();
    house.world.set_latency(Latency::NONE);
    launch(&client, "web").await;
    server.shutdown().await;
}
