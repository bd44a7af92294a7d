//! The usual life of VMs, networks, groups and forwards.

use crate::house::{House, done, group, lan, launch, name, request, through, until};
use std::collections::BTreeSet;
use vbm_core::{ErrorKind, EventKind, PowerState, Protocol, WantedPower};
use vbm_sdk::{
    api::{CreateForward, PowerAction, SetGroups, SetRules},
    store::Store,
};

#[tokio::test]
async fn a_vm_lives_from_launch_to_delete_and_leaves_no_record() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    let before = keys(&house).await;
    let vm = launch(&client, "web").await;
    assert_eq!(vm.vm.status.power, PowerState::Running);
    assert_eq!(vm.nics[0].port.spec.address, std::net::Ipv4Addr::new(10, 0, 0, 2));
    for (action, power) in [
        (PowerAction::Pause, "paused"),
        (PowerAction::Resume, "running"),
        (PowerAction::Stop, "off"),
        (PowerAction::Start, "running"),
        (PowerAction::Restart, "running"),
        (PowerAction::ForceOff, "off"),
    ] {
        through(&client, client.vms().power("web", action).await)
            .await
            .unwrap();
        assert_eq!(
            client.vms().get("web").await.unwrap().vm.status.power.to_string(),
            power,
            "after {action:?}"
        );
    }
    client
        .forwards()
        .create(CreateForward::new("web", 8080, 80))
        .await
        .unwrap();
    through(&client, client.vms().delete("web").await).await.unwrap();
    assert!(client.vms().get_opt("web").await.unwrap().is_none());
    assert_eq!(keys(&house).await, before, "something of the VM is left");
    server.shutdown().await;
}

/// The keys of the store, but for history.
async fn keys(house: &House) -> BTreeSet<String> {
    let page = house.store.list("", None, 10_000).await.unwrap();
    assert!(!page.more);
    let history = ["event/", "op/", "answer/", "listen/"];
    page.entries
        .into_iter()
        .map(|e| e.key)
        .filter(|k| !history.iter().any(|h| k.starts_with(h)))
        .collect()
}

#[tokio::test]
async fn launches_at_the_same_time_get_different_addresses_and_macs() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    let launches = (0..32).map(|n| {
        let client = client.clone();
        async move { client.vms().launch(request(&format!("vm{n}"))).await.unwrap() }
    });
    let made = futures::future::join_all(launches).await;
    let addresses: BTreeSet<_> = made.iter().map(|m| m.item.nics[0].port.spec.address).collect();
    let macs: BTreeSet<_> = made.iter().map(|m| m.item.nics[0].port.spec.mac).collect();
    assert_eq!((addresses.len(), macs.len()), (32, 32));
    for made in &made {
        done(&client, &made.operation).await.unwrap();
    }
    server.shutdown().await;
}

#[tokio::test]
async fn a_guest_that_shuts_itself_down_stays_off() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    let vm = launch(&client, "web").await;
    house.world.guest_shuts_down(vm.vm.meta.id);
    let off = until(&client, "web", |v| {
        v.vm.status.power == PowerState::Off && v.vm.spec.power == WantedPower::Off
    })
    .await;
    assert!(off.vm.meta.generation > vm.vm.meta.generation);
    through(&client, client.vms().power("web", PowerAction::Start).await)
        .await
        .unwrap();
    server.shutdown().await;
}

#[tokio::test]
async fn a_rule_is_in_force_when_its_operation_is_done() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    group(&client, "web", &[]).await;
    let vm = launch(&client, "web").await;
    let (network, port) = (vm.nics[0].port.spec.network, vm.nics[0].port.meta.id);
    let passes = || {
        house
            .networks
            .would_pass(network, port, Protocol::Tcp, [198, 51, 100, 2].into(), Some(80))
    };
    let groups = SetGroups {
        groups: vec!["web".into()],
        network: None,
        pairs: None,
    };
    through(&client, client.vms().set_groups("web", groups).await)
        .await
        .unwrap();
    assert!(!passes(), "a group without rules lets nothing pass");
    for (rules, open) in [
        (vec!["tcp/80"], true),
        (vec!["tcp/81"], false),
        (vec!["tcp/70-90@198.51.100.0/24"], true),
        (vec![], false),
    ] {
        let rules = SetRules {
            rules: rules.iter().map(|r| r.parse().unwrap()).collect(),
            egress_closed: None,
            generation: None,
        };
        through(&client, client.groups().set_rules("web", rules.clone()).await)
            .await
            .unwrap();
        assert_eq!(passes(), open, "{rules:?}");
    }
    server.shutdown().await;
}

#[tokio::test]
async fn a_forward_takes_its_place_and_gives_it_back() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    launch(&client, "web").await;
    let forward = through(
        &client,
        client
            .forwards()
            .create(CreateForward::new("web", 8080, 80))
            .await,
    )
    .await
    .unwrap();
    let taken = client
        .forwards()
        .create(CreateForward::new("web", 8080, 81))
        .await
        .unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::AlreadyExists);
    through(
        &client,
        client.forwards().delete(forward.forward.meta.name.as_str()).await,
    )
    .await
    .unwrap();
    through(
        &client,
        client
            .forwards()
            .create(CreateForward::new("web", 8080, 81))
            .await,
    )
    .await
    .unwrap();
    server.shutdown().await;
}

#[tokio::test]
async fn networks_with_the_same_addresses_live_beside_each_other() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    lan(&client, "other", "10.0.0.0/24").await;
    let first = launch(&client, "a").await;
    let request = vbm_sdk::api::LaunchRequest::new("tiny")
        .name(name("b"))
        .nic(vbm_sdk::api::NicRequest::on("other"));
    let second = through(&client, client.vms().launch(request).await)
        .await
        .unwrap();
    assert_eq!(first.nics[0].port.spec.address, second.nics[0].port.spec.address);
    server.shutdown().await;
}

#[tokio::test]
async fn events_tell_the_story_in_order_and_resume_without_a_gap() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    launch(&client, "web").await;
    through(&client, client.vms().delete("web").force(true).await)
        .await
        .unwrap();
    let story: Vec<_> = read(client.events().open()).await;
    let of_vm: Vec<EventKind> = story
        .iter()
        .filter(|e| e.event.object.name == "web")
        .map(|e| e.event.kind)
        .collect();
    let expected = [EventKind::VmCreated, EventKind::VmStarted, EventKind::VmDeleted];
    assert_eq!(
        of_vm
            .iter()
            .filter(|k| expected.contains(k))
            .copied()
            .collect::<Vec<_>>(),
        expected
    );
    let middle = story.len() / 2;
    let rest = read(client.events().from(story[middle].revision).open()).await;
    assert_eq!(rest, story.into_iter().skip(middle + 1).collect::<Vec<_>>());
    server.shutdown().await;
}

async fn read(mut events: vbm_sdk::client::EventStream) -> Vec<vbm_sdk::api::EventView> {
    let mut read = Vec::new();
    while let Some(event) = events.next().await {
        read.push(event.unwrap());
    }
    read
}

#[tokio::test]
async fn a_follower_hears_what_happens_after_it_began() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    let mut events = client.events().follow().open();
    while events.next().await.unwrap().unwrap().event.kind != EventKind::NetworkReady {}
    launch(&client, "web").await;
    let heard = async { while events.next().await.unwrap().unwrap().event.kind != EventKind::VmStarted {} };
    tokio::time::timeout(crate::house::PATIENCE, heard).await.unwrap();
    server.shutdown().await;
}
