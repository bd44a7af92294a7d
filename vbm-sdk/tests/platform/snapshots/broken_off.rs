//! Taking and going back, broken off in the middle, and what stands in their way.

use super::*;
use vbm_hyper::{Hardware, OpCx};

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
        .revert(&OpCx::new(), &definition, base.snapshot.meta.id, Vec::new())
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
        disks: vec![],
        hardware: Hardware::default(),
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
