//! Who gets which address: pools, exclusions, reservations, rest, IPv6, and what is refused.

use crate::house::{House, done, launch, name, request, through};
use std::collections::BTreeSet;
use vbm_core::{AddressPair, ErrorKind, Ipv4Range, Mac};
use vbm_sdk::{
    api::{
        CreateIpv6, CreateNetwork, LaunchRequest, NicRequest, SetGroups, UpdateIpv6, UpdateNetwork, VmView,
    },
    client::Client,
    store::{Store, Txn, Write},
};

fn ranges<T: std::str::FromStr<Err = vbm_core::Error>>(texts: &[&str]) -> Vec<T> {
    texts.iter().map(|t| t.parse().unwrap()).collect()
}

/// A network of two small pools and all that can be said of it.
fn planned() -> CreateNetwork {
    CreateNetwork {
        pools: ranges(&["10.5.0.10-10.5.0.12", "10.5.0.20"]),
        excluded: ranges(&["10.5.0.11"]),
        reservations: ranges(&["10.5.0.30=52:54:00:00:00:30", "10.5.0.31"]),
        quarantine_seconds: Some(3_600),
        ipv6: Some(CreateIpv6 {
            cidr: "fd00:5::/64".into(),
            gateway: None,
            stateless: false,
            dns: vec![],
            pools: ranges(&["fd00:5::100-fd00:5::1ff"]),
            excluded: ranges(&["fd00:5::100"]),
            reservations: ranges(&["fd00:5::30=52:54:00:00:00:30"]),
        }),
        ..CreateNetwork::new(name("plan"), "10.5.0.0/24")
    }
}

fn on_plan(vm: &str, nic: impl FnOnce(NicRequest) -> NicRequest) -> LaunchRequest {
    LaunchRequest::new("tiny")
        .name(name(vm))
        .nic(nic(NicRequest::on("plan")))
}

fn addresses(vm: &VmView) -> (String, String) {
    let spec = &vm.nics[0].port.spec;
    (
        spec.address.to_string(),
        spec.address6.map(|a| a.to_string()).unwrap_or_default(),
    )
}

async fn gone(client: &Client, vm: &str) {
    through(client, client.vms().delete(vm).force(true).await)
        .await
        .unwrap();
}

#[tokio::test]
async fn the_pools_are_given_in_order_without_what_is_excluded_and_rest_after_use() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    through(&client, client.networks().create(planned()).await)
        .await
        .unwrap();
    let mut given = Vec::new();
    for vm in ["a", "b", "c"] {
        given.push(addresses(
            &client.vms().launch(on_plan(vm, |n| n)).await.unwrap().item,
        ));
    }
    let expected = [
        ("10.5.0.10", "fd00:5::101"),
        ("10.5.0.12", "fd00:5::102"),
        ("10.5.0.20", "fd00:5::103"),
    ];
    assert_eq!(given, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
    gone(&client, "b").await;
    let usage = client.networks().get("plan").await.unwrap().usage.unwrap();
    assert_eq!(
        (
            usage.ipv4.pool,
            usage.ipv4.taken,
            usage.ipv4.resting,
            usage.ipv4.free
        ),
        (3, 2, 1, 0)
    );
    assert_eq!((usage.ipv6.unwrap().pool, usage.ipv6.unwrap().taken), (255, 2));
    let full = client.vms().launch(on_plan("d", |n| n)).await.unwrap_err();
    assert_eq!(full.kind(), ErrorKind::Exhausted);
    assert!(full.why().contains("1 of them rest"), "{full}");
    let again = on_plan("d", |n| n.address([10, 5, 0, 12].into()));
    let again = client.vms().launch(again).await.unwrap().item;
    assert!(
        again.nics[0].port.spec.pinned,
        "who asks for a resting address by name gets it"
    );
    server.shutdown().await;
}

#[tokio::test]
async fn a_reserved_address_and_its_mac_go_together() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    through(&client, client.networks().create(planned()).await)
        .await
        .unwrap();
    let mac: Mac = "52:54:00:00:00:30".parse().unwrap();
    for (what, nic, kind) in [
        (
            "another MAC",
            NicRequest::on("plan")
                .address([10, 5, 0, 30].into())
                .mac(Mac::local(9)),
            ErrorKind::Conflict,
        ),
        (
            "an excluded one",
            NicRequest::on("plan").address([10, 5, 0, 11].into()),
            ErrorKind::InvalidInput,
        ),
        (
            "an excluded one of IPv6",
            NicRequest::on("plan").address6("fd00:5::100".parse().unwrap()),
            ErrorKind::InvalidInput,
        ),
        (
            "the gateway's of IPv6",
            NicRequest::on("plan").address6("fd00:5::1".parse().unwrap()),
            ErrorKind::InvalidInput,
        ),
        (
            "IPv6 where there is none",
            NicRequest::on("lan").address6("fd00:5::9".parse().unwrap()),
            ErrorKind::InvalidInput,
        ),
        (
            "the gateway's MAC",
            NicRequest::on("plan").mac(gateway_mac(&client).await),
            ErrorKind::InvalidInput,
        ),
    ] {
        let error = client
            .vms()
            .launch(LaunchRequest::new("tiny").nic(nic))
            .await
            .expect_err(what);
        assert_eq!(error.kind(), kind, "{what}: {error}");
    }
    let by_mac = client
        .vms()
        .launch(on_plan("by-mac", |n| n.mac(mac)))
        .await
        .unwrap()
        .item;
    assert_eq!(addresses(&by_mac), ("10.5.0.30".into(), "fd00:5::30".into()));
    gone(&client, "by-mac").await;
    let by_address = client
        .vms()
        .launch(on_plan("by-address", |n| n.address([10, 5, 0, 30].into())))
        .await
        .unwrap()
        .item;
    assert_eq!(
        (by_address.nics[0].port.spec.mac, addresses(&by_address).1),
        (mac, "fd00:5::30".to_owned())
    );
    let free = client
        .vms()
        .launch(on_plan("free", |n| n.address([10, 5, 0, 31].into())))
        .await
        .unwrap()
        .item;
    assert_ne!(free.nics[0].port.spec.mac, mac);
    server.shutdown().await;
}

async fn gateway_mac(client: &Client) -> Mac {
    vbm_net::gateway_mac(client.networks().get("plan").await.unwrap().network.meta.id)
}

#[tokio::test]
async fn an_update_changes_what_is_given_next_and_nothing_that_was_given() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    let before = launch(&client, "web").await;
    assert_eq!(
        before.nics[0].port.spec.address,
        std::net::Ipv4Addr::new(10, 0, 0, 2)
    );
    let change = |pools: &[&str], excluded: &[&str]| UpdateNetwork {
        pools: Some(ranges(pools)),
        excluded: Some(ranges(excluded)),
        ..UpdateNetwork::default()
    };
    let accepted = client
        .networks()
        .update("lan", change(&["10.0.0.100-10.0.0.109"], &["10.0.0.100"]))
        .await;
    through(&client, accepted).await.unwrap();
    let told = client.networks().get("lan").await.unwrap().network;
    assert_eq!(
        (told.meta.generation.0, told.status.observed.0),
        (2, 2),
        "the node has it"
    );
    let after = client.vms().launch(request("next")).await.unwrap().item;
    assert_eq!(
        after.nics[0].port.spec.address,
        std::net::Ipv4Addr::new(10, 0, 0, 101)
    );
    assert_eq!(
        client.vms().get("web").await.unwrap().nics[0].port.spec,
        before.nics[0].port.spec
    );
    let usage = client.networks().get("lan").await.unwrap().usage.unwrap().ipv4;
    assert_eq!((usage.pool, usage.taken, usage.outside), (9, 1, 1));

    let spec = client.networks().get("lan").await.unwrap().network;
    for (what, request, kind, says) in [
        (
            "excludes a port",
            change(&["10.0.0.100-10.0.0.109"], &["10.0.0.2"]),
            ErrorKind::Conflict,
            "10.0.0.2",
        ),
        (
            "overlaps",
            change(&["10.0.0.5-10.0.0.9", "10.0.0.9-10.0.0.12"], &[]),
            ErrorKind::InvalidInput,
            "pools[1]",
        ),
        (
            "stands outside",
            change(&["10.0.1.5-10.0.1.9"], &[]),
            ErrorKind::InvalidInput,
            "pools[0]",
        ),
        (
            "leaves no pool",
            change(&[], &[]),
            ErrorKind::InvalidInput,
            "pools: none",
        ),
        (
            "leaves no address",
            change(&["10.0.0.50"], &["10.0.0.50"]),
            ErrorKind::InvalidInput,
            "no address is left",
        ),
        (
            "rests too long",
            UpdateNetwork {
                quarantine_seconds: Some(u32::MAX),
                ..UpdateNetwork::default()
            },
            ErrorKind::InvalidInput,
            "604800",
        ),
        (
            "speaks of IPv6",
            UpdateNetwork {
                ipv6: Some(UpdateIpv6::default()),
                ..UpdateNetwork::default()
            },
            ErrorKind::InvalidInput,
            "ipv6",
        ),
        (
            "is of an older generation",
            UpdateNetwork {
                generation: Some(vbm_core::Generation(1)),
                ..UpdateNetwork::default()
            },
            ErrorKind::Conflict,
            "generation",
        ),
    ] {
        let error = client.networks().update("lan", request).await.expect_err(what);
        assert_eq!(error.kind(), kind, "{what}: {error}");
        assert!(
            format!("{} {}", error.what(), error.why()).contains(says),
            "{what}: {error}"
        );
    }
    assert_eq!(
        client.networks().get("lan").await.unwrap().network.spec,
        spec.spec,
        "what is refused changes nothing"
    );
    server.shutdown().await;
}

#[tokio::test]
async fn a_network_that_contradicts_itself_is_refused_by_field_and_nothing_is_made() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    let base = || CreateNetwork::new(name("bad"), "10.9.0.0/24");
    let six = |cidr: &str| {
        Some(CreateIpv6 {
            cidr: cidr.into(),
            gateway: None,
            stateless: false,
            dns: vec![],
            pools: vec![],
            excluded: vec![],
            reservations: vec![],
        })
    };
    let many: Vec<Ipv4Range> = (0..65).map(|_| Ipv4Range::one([10, 9, 0, 9].into())).collect();
    for (says, request) in [
        (
            "mtu: 67",
            CreateNetwork {
                mtu: Some(67),
                ..base()
            },
        ),
        (
            "576 to 9000",
            CreateNetwork {
                mtu: Some(9_001),
                ..base()
            },
        ),
        (
            "gateway: 10.8.0.1",
            CreateNetwork {
                gateway: Some([10, 8, 0, 1].into()),
                ..base()
            },
        ),
        ("RFC 3021", CreateNetwork::new(name("bad"), "10.9.0.0/31")),
        ("8 to 30", CreateNetwork::new(name("bad"), "10.9.0.0/32")),
        (
            "pools[1]",
            CreateNetwork {
                pools: ranges(&["10.9.0.2-10.9.0.9", "10.9.0.9"]),
                ..base()
            },
        ),
        (
            "given twice",
            CreateNetwork {
                pools: ranges(&["10.9.0.9"]),
                pool_first: Some([10, 9, 0, 2].into()),
                ..base()
            },
        ),
        (
            "64 are allowed",
            CreateNetwork {
                excluded: many,
                ..base()
            },
        ),
        (
            "no address is left",
            CreateNetwork {
                pools: ranges(&["10.9.0.9"]),
                excluded: ranges(&["10.9.0.9"]),
                ..base()
            },
        ),
        (
            "reservations[0]",
            CreateNetwork {
                reservations: ranges(&["10.9.0.1"]),
                ..base()
            },
        ),
        (
            "quarantine_seconds",
            CreateNetwork {
                quarantine_seconds: Some(700_000),
                ..base()
            },
        ),
        (
            "lease_seconds",
            CreateNetwork {
                lease_seconds: Some(1),
                ..base()
            },
        ),
        (
            "domain",
            CreateNetwork {
                domain: Some("ü".repeat(300)),
                ..base()
            },
        ),
        (
            "ipv6.cidr",
            CreateNetwork {
                ipv6: six("10.9.0.0/24"),
                ..base()
            },
        ),
        (
            "RFC 6164",
            CreateNetwork {
                ipv6: six("fd00::/127"),
                ..base()
            },
        ),
        (
            "1280",
            CreateNetwork {
                ipv6: six("fd00::/64"),
                mtu: Some(1_000),
                ..base()
            },
        ),
    ] {
        let error = client.networks().create(request).await.expect_err(says);
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{says}: {error}");
        assert!(
            format!("{} {}", error.what(), error.why()).contains(says),
            "{says}: {error}"
        );
        assert!(!error.fix().is_empty() && error.what().chars().count() < 300);
    }
    assert!(client.networks().get_opt("bad").await.unwrap().is_none());
    let left = house.store.list("ipam/", None, 100).await.unwrap();
    assert_eq!(left.entries.len(), 1, "that of `lan`");
    server.shutdown().await;
}

#[tokio::test]
async fn a_state_that_is_lost_is_made_again_and_one_of_the_future_is_refused() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    for vm in ["a", "b"] {
        launch(&client, vm).await;
    }
    let key = house
        .store
        .list("ipam/", None, 10)
        .await
        .unwrap()
        .entries
        .remove(0);
    let store = &house.store;
    let write = |write: Write| async move {
        let txn = Txn {
            compare: vec![],
            write: vec![write],
        };
        drop(store.txn(txn).await.unwrap());
    };
    let newer = String::from_utf8(key.value.to_vec())
        .unwrap()
        .replace("\"version\":1", "\"version\":2");
    write(Write::Put(key.key.clone(), newer.into())).await;
    let error = client.vms().launch(request("c")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.why().contains("version 2"), "{error}");
    assert!(
        client.networks().get("lan").await.unwrap().usage.is_none(),
        "nobody can tell"
    );
    gone(&client, "a").await;
    write(Write::Delete(key.key.clone())).await;
    let third = client.vms().launch(request("c")).await.unwrap().item;
    assert_eq!(
        third.nics[0].port.spec.address,
        std::net::Ipv4Addr::new(10, 0, 0, 2),
        "b keeps what it has"
    );
    let fourth = client.vms().launch(request("d")).await.unwrap().item;
    assert_eq!(
        fourth.nics[0].port.spec.address,
        std::net::Ipv4Addr::new(10, 0, 0, 4)
    );
    server.shutdown().await;
}

#[tokio::test]
async fn a_state_that_is_older_than_its_ports_gives_nobody_the_address_of_another() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    let old = house
        .store
        .list("ipam/", None, 10)
        .await
        .unwrap()
        .entries
        .remove(0);
    for vm in ["a", "b"] {
        launch(&client, vm).await;
    }
    let txn = Txn {
        compare: vec![],
        write: vec![Write::Put(old.key, old.value)],
    };
    drop(house.store.txn(txn).await.unwrap());
    let nic = NicRequest::on("lan").address([10, 0, 0, 3].into());
    let pinned = LaunchRequest::new("tiny").name(name("c")).nic(nic);
    let taken = client.vms().launch(pinned).await.unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::AlreadyExists, "{taken}");
    let third = client.vms().launch(request("c")).await.unwrap().item;
    assert_eq!(
        third.nics[0].port.spec.address,
        std::net::Ipv4Addr::new(10, 0, 0, 4)
    );
    let usage = client.networks().get("lan").await.unwrap().usage.unwrap().ipv4;
    assert_eq!(usage.taken, 3, "and the state is mended");
    server.shutdown().await;
}

#[tokio::test]
async fn launches_and_deletions_at_the_same_time_never_share_an_address() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    for round in 0..3 {
        let launches = (0..12).map(|n| {
            let client = client.clone();
            async move {
                client
                    .vms()
                    .launch(request(&format!("vm{round}-{n}")))
                    .await
                    .unwrap()
            }
        });
        let made = futures::future::join_all(launches).await;
        for made in &made {
            done(&client, &made.operation).await.unwrap();
        }
        let half: Vec<_> = made
            .iter()
            .step_by(2)
            .map(|m| m.item.vm.meta.name.to_string())
            .collect();
        futures::future::join_all(half.iter().map(|vm| gone(&client, vm))).await;
        let ports = client.ports().list().all().await.unwrap();
        let distinct: BTreeSet<_> = ports.iter().map(|p| p.port.spec.address).collect();
        assert_eq!(distinct.len(), ports.len());
        let usage = client.networks().get("lan").await.unwrap().usage.unwrap().ipv4;
        assert_eq!(
            (usage.taken, usage.resting),
            (ports.len() as u64, 0),
            "the state says what the ports say"
        );
    }
    server.shutdown().await;
}

#[tokio::test]
async fn where_vms_make_their_addresses_themselves_each_has_the_one_that_its_mac_makes() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    let wanted = |cidr: &str| CreateNetwork {
        ipv6: Some(CreateIpv6 {
            cidr: cidr.into(),
            gateway: None,
            stateless: true,
            dns: vec!["fd00:6::53".parse().unwrap()],
            pools: vec![],
            excluded: vec![],
            reservations: vec![],
        }),
        ..CreateNetwork::new(name("plan"), "10.6.0.0/24")
    };
    let refused = client.networks().create(wanted("fd00:6::/80")).await;
    let error = refused.expect_err("no room for what a MAC makes");
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    through(&client, client.networks().create(wanted("fd00:6::/64")).await)
        .await
        .unwrap();
    let mac: Mac = "52:54:00:00:00:31".parse().unwrap();
    let other = on_plan("other", |n| n.mac(mac).address6("fd00:6::9".parse().unwrap()));
    let error = client.vms().launch(other).await.expect_err("another address");
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    let made = client
        .vms()
        .launch(on_plan("made", |n| n.mac(mac)))
        .await
        .unwrap()
        .item;
    assert_eq!(addresses(&made).1, "fd00:6::5054:ff:fe00:31");
    let unnamed = client.vms().launch(on_plan("unnamed", |n| n)).await.unwrap().item;
    assert!(addresses(&unnamed).1.contains("ff:fe"), "{unnamed:?}");
    server.shutdown().await;
}

#[tokio::test]
async fn addresses_that_a_node_would_refuse_are_refused_before_they_are_kept() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    through(&client, client.networks().create(planned()).await)
        .await
        .unwrap();
    let vm = client.vms().launch(on_plan("web", |n| n)).await.unwrap().item;
    let network = vm.nics[0].port.spec.network;
    let pair = |address: &str| AddressPair {
        address: address.parse().unwrap(),
        mac: None,
    };
    let allow = |pairs: Vec<AddressPair>| {
        let request = SetGroups {
            groups: vec![],
            network: Some("plan".into()),
            pairs: Some(pairs),
        };
        client.vms().set_groups("web", request)
    };
    let refused = [
        vec![pair("fd00:5::/64")],
        vec![pair("fd00:5::1/128")],
        vec![pair("10.5.0.0/24")],
        vec![pair("fd00:7::/64"), pair("10.5.0.1/32")],
        vec![AddressPair {
            mac: Some(vbm_net::gateway_mac(network)),
            ..pair("fd00:7::5/128")
        }],
        vec![pair("ff02::1/128")],
        vec![pair("10.5.0.200/32"); vbm_core::limits::PORT_MAX_PAIRS + 1],
    ];
    for pairs in refused {
        let error = allow(pairs.clone()).await.map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{pairs:?}: {error}");
    }
    let kept = through(
        &client,
        allow(vec![pair("fd00:7::5/128"), pair("10.5.0.200/32")]).await,
    )
    .await
    .unwrap();
    assert_eq!(kept.nics[0].port.spec.pairs.len(), 2);
    server.shutdown().await;
}
