//! What is refused, and that a refusal leaves nothing half-made.

use crate::house::{House, group, launch, name, request, through};
use vbm_core::{ErrorKind, Mac};
use vbm_sdk::{
    api::{CreateForward, CreateNetwork, LaunchRequest, NicRequest, SetGroups},
    store::{Revision, Store},
};

/// Whether anything was written since.
async fn written_since(house: &House, revision: Revision) -> bool {
    house.store.revision().await.unwrap() != revision
}

#[tokio::test]
async fn a_launch_that_is_refused_writes_nothing() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    let first = launch(&client, "first").await;
    let taken_mac = first.nics[0].port.spec.mac;
    let nic = || NicRequest::on("lan");
    let with = |nic: NicRequest| LaunchRequest::new("tiny").name(name("second")).nic(nic);
    let refused: Vec<(&str, LaunchRequest, ErrorKind)> = vec![
        (
            "an unknown image",
            LaunchRequest::new("nope").name(name("second")),
            ErrorKind::NotFound,
        ),
        ("a taken name", request("first"), ErrorKind::AlreadyExists),
        (
            "an unknown network",
            with(NicRequest::on("nope")),
            ErrorKind::NotFound,
        ),
        ("an unknown group", with(nic().group("nope")), ErrorKind::NotFound),
        (
            "an address outside",
            with(nic().address([10, 0, 1, 5].into())),
            ErrorKind::InvalidInput,
        ),
        (
            "the gateway's address",
            with(nic().address([10, 0, 0, 1].into())),
            ErrorKind::InvalidInput,
        ),
        (
            "the broadcast address",
            with(nic().address([10, 0, 0, 255].into())),
            ErrorKind::InvalidInput,
        ),
        (
            "a taken address",
            with(nic().address([10, 0, 0, 2].into())),
            ErrorKind::AlreadyExists,
        ),
        (
            "a taken MAC",
            with(nic().mac(taken_mac)),
            ErrorKind::AlreadyExists,
        ),
        (
            "a multicast MAC",
            with(nic().mac(Mac::new([1, 0, 0, 0, 0, 1]))),
            ErrorKind::InvalidInput,
        ),
        ("no CPU", request("second").vcpus(0), ErrorKind::InvalidInput),
        (
            "too little memory",
            request("second").memory_mib(1),
            ErrorKind::InvalidInput,
        ),
        (
            "one address twice",
            with(nic().address([10, 0, 0, 9].into())).nic(nic().address([10, 0, 0, 9].into())),
            ErrorKind::AlreadyExists,
        ),
    ];
    // Reports of the agent write too; they are over once the first VM is told and leased.
    quiet(&house).await;
    for (what, request, kind) in refused {
        let before = records(&house).await;
        let error = client.vms().launch(request).await.expect_err(what);
        assert_eq!(error.kind(), kind, "{what}: {error}");
        assert!(
            !error.what().is_empty() && !error.why().is_empty() && !error.fix().is_empty(),
            "{what}"
        );
        assert_eq!(records(&house).await, before, "{what} left something");
    }
    server.shutdown().await;
}

/// All keys but those of history and of nodes, which report themselves.
async fn records(house: &House) -> Vec<String> {
    let page = house.store.list("", None, 10_000).await.unwrap();
    page.entries
        .into_iter()
        .map(|e| e.key)
        .filter(|k| !k.starts_with("answer/") && !k.starts_with("event/"))
        .collect()
}

async fn quiet(house: &House) {
    loop {
        let revision = house.store.revision().await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        if !written_since(house, revision).await {
            return;
        }
    }
}

#[tokio::test]
async fn the_smallest_network_has_room_for_one_vm_and_says_so_to_the_second() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    crate::house::lan(&client, "small", "10.9.0.0/30").await;
    let on = |vm: &str| {
        LaunchRequest::new("tiny")
            .name(name(vm))
            .nic(NicRequest::on("small"))
    };
    through(&client, client.vms().launch(on("one")).await)
        .await
        .unwrap();
    let full = client.vms().launch(on("two")).await.unwrap_err();
    assert_eq!(full.kind(), ErrorKind::Exhausted, "{full}");
    through(&client, client.vms().delete("one").force(true).await)
        .await
        .unwrap();
    through(&client, client.vms().launch(on("two")).await)
        .await
        .unwrap();
    server.shutdown().await;
}

#[tokio::test]
async fn what_is_in_use_is_not_deleted() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    group(&client, "g", &["icmp"]).await;
    launch(&client, "web").await;
    through(
        &client,
        client
            .vms()
            .set_groups(
                "web",
                SetGroups {
                    groups: vec!["g".into()],
                    network: None,
                    pairs: None,
                },
            )
            .await,
    )
    .await
    .unwrap();
    for (what, error) in [
        (
            "network",
            client.networks().delete("lan").await.map(drop).unwrap_err(),
        ),
        ("group", client.groups().delete("g").await.map(drop).unwrap_err()),
        ("image", client.images().delete("tiny").await.unwrap_err()),
        (
            "running VM",
            client.vms().delete("web").await.map(drop).unwrap_err(),
        ),
    ] {
        assert_eq!(error.kind(), ErrorKind::Conflict, "{what}: {error}");
    }
    through(&client, client.vms().delete("web").force(true).await)
        .await
        .unwrap();
    through(&client, client.networks().delete("lan").await)
        .await
        .unwrap();
    client.groups().delete("g").await.unwrap();
    client.images().delete("tiny").await.unwrap();
    server.shutdown().await;
}

#[tokio::test]
async fn a_network_that_cannot_serve_is_refused() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    for cidr in ["x", "10.0.0.1/24", "10.0.0.0/31", "127.0.0.0/8", "10.0.0.0/33"] {
        let error = client
            .networks()
            .create(CreateNetwork::new(name("bad"), cidr))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{cidr}: {error}");
    }
    let isolated = CreateNetwork {
        mode: vbm_core::NetworkMode::Isolated,
        ..CreateNetwork::new(name("inner"), "10.2.0.0/24")
    };
    through(&client, client.networks().create(isolated).await)
        .await
        .unwrap();
    let vm = LaunchRequest::new("tiny")
        .name(name("inside"))
        .nic(NicRequest::on("inner"));
    through(&client, client.vms().launch(vm).await).await.unwrap();
    let error = client
        .forwards()
        .create(CreateForward::new("inside", 8080, 80))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    server.shutdown().await;
}

#[tokio::test]
async fn the_same_key_makes_one_vm_and_another_request_with_it_is_refused() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    let nameless = LaunchRequest::new("tiny");
    let first = client.vms().launch(nameless.clone()).key("k1").await.unwrap();
    let again = client.vms().launch(nameless).key("k1").await.unwrap();
    assert_eq!(first.item.vm.meta.id, again.item.vm.meta.id);
    assert_eq!(client.vms().list().all().await.unwrap().len(), 1);
    let other = client.vms().launch(request("web")).key("k1").await.unwrap_err();
    assert_eq!(other.kind(), ErrorKind::Conflict, "{other}");
    server.shutdown().await;
}

#[tokio::test]
async fn lists_come_in_parts_that_miss_nothing() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    for n in 0..7 {
        group(&client, &format!("g{n}"), &[]).await;
    }
    let mut names = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let mut listing = client.groups().list().limit(3);
        if let Some(place) = &after {
            listing = listing.after(place.clone());
        }
        let page = listing.page().await.unwrap();
        names.extend(page.items.iter().map(|g| g.meta.name.to_string()));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(names, ["g0", "g1", "g2", "g3", "g4", "g5", "g6"]);
    server.shutdown().await;
}

#[test]
fn the_committed_api_document_is_what_the_server_serves() {
    let committed = include_str!("../../openapi.json");
    assert!(
        committed == vbm_sdk::http::document(),
        "run `cargo run -p vbm-sdk --bin vbmd -- openapi > vbm-sdk/openapi.json`"
    );
}
