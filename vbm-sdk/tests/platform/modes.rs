//! Routed and bridged networks through the API.

use crate::{
    house::{House, PATIENCE, name, through, until},
    site::{Site, until_node},
};
use std::time::Duration;
use vbm_core::{ErrorKind, NetworkMode, NodeState, PowerState};
use vbm_sdk::api::{CreateForward, CreateNetwork, LaunchRequest, MigrateRequest, NicRequest, SetPort};

fn routed(called: &str, cidr: &str) -> CreateNetwork {
    CreateNetwork {
        mode: NetworkMode::Routed,
        ..CreateNetwork::new(name(called), cidr)
    }
}

#[tokio::test]
async fn addresses_are_of_one_routed_network_of_a_cluster_and_free_when_it_is_gone() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    through(
        &client,
        client.networks().create(routed("red", "10.7.0.0/24")).await,
    )
    .await
    .unwrap();
    for cidr in ["10.7.0.0/24", "10.7.0.128/25", "10.6.0.0/15"] {
        let error = client.networks().create(routed("blue", cidr)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{cidr}: {error}");
        assert!(error.why().contains("network red"), "{error}");
    }
    // Of two that are made at once one has them.
    let (a, b) = tokio::join!(
        client.networks().create(routed("one", "10.8.0.0/24")),
        client.networks().create(routed("two", "10.8.0.0/25")),
    );
    assert_eq!([&a, &b].iter().filter(|r| r.is_ok()).count(), 1, "{a:?} {b:?}");
    // Where nothing is routed, they are anybody's.
    let nat = CreateNetwork::new(name("green"), "10.7.0.0/24");
    through(&client, client.networks().create(nat).await)
        .await
        .unwrap();
    // Nor do they float elsewhere.
    let vm = LaunchRequest::new("tiny")
        .name(name("web"))
        .nic(NicRequest::on("lan"));
    through(&client, client.vms().launch(vm).await).await.unwrap();
    let floating = SetPort {
        network: None,
        limits: None,
        floating_ip: Some("10.7.0.9".into()),
        pairs: None,
    };
    let error = client.vms().set_port("web", &floating).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    assert!(error.to_string().contains("network red"), "{error}");
    through(&client, client.networks().delete("red").await)
        .await
        .unwrap();
    through(
        &client,
        client.networks().create(routed("blue", "10.7.0.0/24")).await,
    )
    .await
    .unwrap();
    server.shutdown().await;
}

#[tokio::test]
async fn a_bridged_network_is_on_its_lan_and_has_no_tunnel_forward_or_floating_ip() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    let wanted = |uplink: &str| CreateNetwork {
        mode: NetworkMode::Bridged,
        uplink: Some(uplink.parse().unwrap()),
        ..CreateNetwork::new(name("office"), "10.7.0.0/24")
    };
    let none = CreateNetwork {
        uplink: None,
        ..wanted("br-lan")
    };
    let error = client.networks().create(none).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    through(&client, client.networks().create(wanted("br-lan")).await)
        .await
        .unwrap();
    let office = client.networks().get("office").await.unwrap();
    let spec = &office.network.spec;
    assert!(spec.vni.is_none() && !spec.serve_dhcp && !spec.serves_metadata());
    assert!(office.network.status.ready);
    let vm = LaunchRequest::new("tiny")
        .name(name("desk"))
        .nic(NicRequest::on("office"));
    through(&client, client.vms().launch(vm).await).await.unwrap();
    let error = client
        .forwards()
        .create(CreateForward::new("desk", 8080, 80))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    // One of an interface that no node has is made, and says what is wrong with it.
    let away = CreateNetwork {
        name: name("away"),
        ..wanted("none7")
    };
    client.networks().create(away).await.unwrap();
    let until = tokio::time::Instant::now() + PATIENCE;
    let problem = loop {
        if let Some(problem) = client
            .networks()
            .get("away")
            .await
            .unwrap()
            .network
            .status
            .problem
        {
            break problem;
        }
        assert!(tokio::time::Instant::now() < until, "its problem is not told");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(problem.to_string().contains("no such interface"), "{problem}");
    server.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_vm_goes_to_the_node_that_has_the_interface_of_its_network_and_waits_while_none_has() {
    let site = Site::new();
    let (brain, client) = site.controller().await;
    let (a, b) = (site.agent("a").await, site.agent("b").await);
    b.networks().add_interface("eth7");
    for node in ["lab/a", "lab/b"] {
        until_node(&client, node, NodeState::Ready).await;
    }
    site.furnish(&client).await;
    let bridged = |called: &str, uplink: &str| CreateNetwork {
        mode: NetworkMode::Bridged,
        uplink: Some(uplink.parse().unwrap()),
        ..CreateNetwork::new(name(called), "10.7.0.0/24")
    };
    let vm = |called: &str, network: &str| {
        let request = LaunchRequest::new("tiny").name(name(called));
        request.nic(NicRequest::on(network))
    };
    client.networks().create(bridged("office", "eth7")).await.unwrap();
    // Several, which else would be spread over both.
    for called in ["one", "two", "three"] {
        client.vms().launch(vm(called, "office")).await.unwrap();
        let placed = until(&client, called, |v| v.vm.status.power == PowerState::Running).await;
        assert_eq!(placed.vm.spec.node, Some("lab/b".parse().unwrap()), "{called}");
    }
    let placement = client.vms().placement("one").await.unwrap().items;
    let of_a = placement
        .iter()
        .find(|c| c.node == "lab/a".parse().unwrap())
        .unwrap();
    assert_eq!(
        of_a.reasons,
        ["it has no interface eth7, by which network office goes"]
    );
    let request = MigrateRequest {
        to: Some("lab/a".parse().unwrap()),
        ..MigrateRequest::default()
    };
    let error = client.vms().migrate("one", &request).await.unwrap_err();
    assert!(error.why().contains("it has no interface eth7"), "{error}");

    // None has this one, until somebody makes it.
    client.networks().create(bridged("annex", "eth8")).await.unwrap();
    client.vms().launch(vm("late", "annex")).await.unwrap();
    let waits = until(&client, "late", |v| v.vm.status.problem.is_some()).await;
    let why = waits.vm.status.problem.unwrap().why().to_owned();
    for node in ["lab/a", "lab/b"] {
        assert!(
            why.contains(&format!("{node}: it has no interface eth8")),
            "{why}"
        );
    }
    assert_eq!(waits.vm.spec.node, None);
    a.networks().add_interface("eth8");
    let placed = until(&client, "late", |v| v.vm.status.power == PowerState::Running).await;
    assert_eq!(placed.vm.spec.node, Some("lab/a".parse().unwrap()));
    for machine in [a, b] {
        machine.shutdown().await;
    }
    brain.shutdown().await;
}
