//! Daemons come and go; VMs stay.

use crate::house::{House, PATIENCE, launch, through, until};
use vbm_core::{EventKind, PowerState};
use vbm_net::{NetworkBackend, SimNetwork};
use vbm_sdk::{api::PowerAction, source::SystemClock};

#[tokio::test]
async fn vms_run_on_while_their_daemon_is_away_and_are_adopted_when_it_returns() {
    let mut house = House::new();
    let (server, client) = house.furnished().await;
    let before = launch(&client, "web").await;
    server.shutdown().await;
    house.networks = SimNetwork::new(std::sync::Arc::new(SystemClock));

    let server = house.serve().await;
    let client = server.client().unwrap();
    let mut events = client.events().follow().open();
    let adopted = async { while events.next().await.unwrap().unwrap().event.kind != EventKind::VmAdopted {} };
    tokio::time::timeout(PATIENCE, adopted).await.unwrap();
    let after = client.vms().get("web").await.unwrap();
    assert_eq!(
        after.vm.status.pid, before.vm.status.pid,
        "the VM was started again"
    );
    assert_eq!(after.vm.status.power, PowerState::Running);
    through(&client, client.vms().power("web", PowerAction::Stop).await)
        .await
        .unwrap();
    server.shutdown().await;
}

#[tokio::test]
async fn an_adoption_is_told_also_when_the_vm_is_stopped_before_all_is_as_wanted() {
    let mut house = House::new();
    let (server, client) = house.furnished().await;
    launch(&client, "web").await;
    server.shutdown().await;
    house.networks = SimNetwork::new(std::sync::Arc::new(SystemClock));

    let server = house.serve().await;
    let client = server.client().unwrap();
    let mut events = client.events().follow().open();
    through(&client, client.vms().power("web", PowerAction::Stop).await)
        .await
        .unwrap();
    let mut told = Vec::new();
    let stopped = async {
        while told.last() != Some(&EventKind::VmStopped) {
            told.push(events.next().await.unwrap().unwrap().event.kind);
        }
    };
    tokio::time::timeout(PATIENCE, stopped).await.unwrap();
    let adoptions = told.iter().filter(|kind| **kind == EventKind::VmAdopted).count();
    assert_eq!(adoptions, 1, "told were {told:?}");
    server.shutdown().await;
}

#[tokio::test]
async fn a_vm_that_shall_run_is_started_again_after_its_host_was_off() {
    let mut house = House::new();
    let (server, client) = house.furnished().await;
    launch(&client, "web").await;
    server.shutdown().await;
    house.networks = SimNetwork::new(std::sync::Arc::new(SystemClock));
    house.world = vbm_hyper::SimWorld::instant();

    let server = house.serve().await;
    let client = server.client().unwrap();
    until(&client, "web", |v| {
        v.vm.status.power == PowerState::Running && v.vm.status.observed == v.vm.meta.generation
    })
    .await;
    server.shutdown().await;
}

#[tokio::test]
async fn each_start_of_a_controller_commands_in_a_higher_epoch() {
    let mut house = House::new();
    let mut epochs = Vec::new();
    for _ in 0..3 {
        let server = house.serve().await;
        let client = server.client().unwrap();
        crate::house::lan(&client, &format!("n{}", epochs.len()), "10.0.0.0/24").await;
        server.shutdown().await;
        epochs.push(
            std::fs::read_to_string(house.dir.path().join("data/epoch"))
                .unwrap()
                .trim()
                .parse::<u64>()
                .unwrap(),
        );
        house.networks = SimNetwork::new(std::sync::Arc::new(SystemClock));
    }
    assert_eq!(epochs, [1, 2, 3]);
}

#[tokio::test]
async fn after_a_restart_a_running_vm_is_told_who_it_is_until_its_networks_know() {
    let mut house = House::new();
    let (server, client) = house.furnished().await;
    let vm = launch(&client, "web").await;
    let port = &vm.nics[0].port;
    let id = format!("i-{}", vm.vm.meta.id.uuid().simple());
    let told = |networks: &SimNetwork| {
        networks
            .told(port.spec.network, port.meta.id)
            .flatten()
            .map(|i| i.id)
    };
    assert_eq!(told(&house.networks).as_ref(), Some(&id), "before it started");
    server.shutdown().await;
    house.networks = SimNetwork::new(std::sync::Arc::new(SystemClock));
    house.networks.fail_descriptions(3);

    let server = house.serve().await;
    let knows = async {
        while told(&house.networks).as_ref() != Some(&id) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, knows).await.unwrap();

    // Somebody removes the network behind the agent's back: it is made again, and its VM is told again, though nobody starts anything.
    house.networks.remove(port.spec.network).await.unwrap();
    assert_eq!(told(&house.networks), None);
    let request = vbm_sdk::api::SetGroups {
        groups: Vec::new(),
        network: None,
        pairs: None,
    };
    let client = server.client().unwrap();
    client.vms().set_groups("web", request).await.unwrap();
    let knows = async {
        while told(&house.networks).as_ref() != Some(&id) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, knows).await.unwrap();
    server.shutdown().await;
}
