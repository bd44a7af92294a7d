//! Floating IPs that are kept: they outlive attachments and VMs, and each leads to one place.

use crate::house::{House, launch, name, through};
use vbm_core::{ErrorKind, EventKind, FloatingPool};
use vbm_sdk::{
    api::{AttachFloatingIp, CreateFloatingIp, FloatingIpState, SetPort},
    client::Client,
};

fn asked(called: &str, address: Option<[u8; 4]>) -> CreateFloatingIp {
    CreateFloatingIp {
        name: Some(name(called)),
        address: address.map(Into::into),
    }
}

fn to(vm: &str) -> AttachFloatingIp {
    AttachFloatingIp {
        vm: vm.into(),
        network: None,
    }
}

async fn attached(client: &Client, floating: &str, vm: &str) {
    let view = client.floating_ips().attach(floating, to(vm)).await;
    let view = through(client, view).await.unwrap();
    assert_eq!(
        (view.state, view.vm_name.as_deref()),
        (FloatingIpState::Attached, Some(vm))
    );
}

#[tokio::test]
async fn what_is_kept_outlives_its_attachment_and_its_vm_and_is_deleted_only_when_it_is_free() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    launch(&client, "a").await;
    launch(&client, "b").await;
    let floating = client.floating_ips();
    let made = floating
        .create(asked("shop", Some([192, 0, 2, 50])))
        .await
        .unwrap();
    assert_eq!(made.state, FloatingIpState::Free);
    attached(&client, "shop", "a").await;
    // By its name, its id and its address.
    let id = made.floating_ip.meta.id.to_string();
    for known_as in ["shop", &id, "192.0.2.50"] {
        assert_eq!(
            floating.get(known_as).await.unwrap().vm_name.as_deref(),
            Some("a")
        );
    }
    let taken = floating.attach("shop", to("b")).await.unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::AlreadyExists, "{taken}");
    let held = floating.delete("shop").await.unwrap_err();
    assert_eq!(held.kind(), ErrorKind::Conflict);
    assert!(held.why().contains("leads to a"), "{held}");

    let free = through(&client, floating.detach("shop").await).await.unwrap();
    assert_eq!((free.state, free.vm_name), (FloatingIpState::Free, None));
    let again = floating.detach("shop").await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Conflict);
    attached(&client, "shop", "b").await;
    through(&client, client.vms().delete("b").force(true).await)
        .await
        .unwrap();
    let after = floating.get("shop").await.unwrap();
    assert_eq!((after.state, after.port), (FloatingIpState::Free, None));
    attached(&client, "shop", "a").await;
    through(&client, floating.detach("shop").await).await.unwrap();
    floating.delete("shop").await.unwrap();
    assert!(floating.get_opt("shop").await.unwrap().is_none());
    let mut events = client.events().open();
    let mut kinds = Vec::new();
    while let Some(event) = events.next().await {
        kinds.push(event.unwrap().event.kind);
    }
    for kind in [EventKind::FloatingIpCreated, EventKind::FloatingIpDeleted] {
        assert_eq!(kinds.iter().filter(|k| **k == kind).count(), 1, "{kind:?}");
    }
    server.shutdown().await;
}

#[tokio::test]
async fn an_address_that_a_port_has_already_is_kept_for_it_and_one_that_is_not_kept_goes_with_its_vm() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    launch(&client, "a").await;
    launch(&client, "b").await;
    let set = async |vm: &str, address: &str| {
        let request = SetPort {
            floating_ip: Some(address.into()),
            ..SetPort::default()
        };
        through(&client, client.vms().set_port(vm, &request).await)
            .await
            .unwrap();
    };
    // As it was before there was anything to keep.
    set("a", "192.0.2.50").await;
    set("b", "192.0.2.51").await;
    let floating = client.floating_ips();
    assert!(
        floating.list().all().await.unwrap().is_empty(),
        "nobody asked to keep it"
    );
    let kept = floating
        .create(asked("old", Some([192, 0, 2, 50])))
        .await
        .unwrap();
    assert_eq!(
        (kept.state, kept.vm_name.as_deref()),
        (FloatingIpState::Attached, Some("a"))
    );
    let port = client.ports().list().vm("a").all().await.unwrap().remove(0);
    assert_eq!(
        port.port.spec.floating_ip,
        Some([192, 0, 2, 50].into()),
        "the same record"
    );
    // The property goes on to work on one that is kept.
    set("a", "none").await;
    assert_eq!(floating.get("old").await.unwrap().state, FloatingIpState::Free);
    set("a", "192.0.2.50").await;
    let of_a = floating.list().vm("a").all().await.unwrap();
    assert_eq!(of_a.len(), 1);
    assert!(floating.list().vm("b").all().await.unwrap().is_empty());
    through(&client, client.vms().delete("b").force(true).await)
        .await
        .unwrap();
    floating
        .create(asked("fifty-one", Some([192, 0, 2, 51])))
        .await
        .unwrap();
    server.shutdown().await;
}

#[tokio::test]
async fn the_pool_gives_each_address_once_and_says_when_it_has_none() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    let floating = client.floating_ips();
    let none = floating.create(CreateFloatingIp::default()).await.unwrap_err();
    assert_eq!(none.kind(), ErrorKind::Exhausted);
    assert!(none.fix().contains("floating-ip pool"), "{none}");
    let pool = FloatingPool {
        ranges: vec!["192.0.2.32-192.0.2.35".parse().unwrap()],
    };
    floating.set_pool(pool.clone()).await.unwrap();
    assert_eq!(floating.pool().await.unwrap(), pool);
    // One is a port's that nobody kept, one is kept by name.
    launch(&client, "a").await;
    let request = SetPort {
        floating_ip: Some("192.0.2.33".into()),
        ..SetPort::default()
    };
    through(&client, client.vms().set_port("a", &request).await)
        .await
        .unwrap();
    floating
        .create(asked("named", Some([192, 0, 2, 32])))
        .await
        .unwrap();
    let mut tasks = Vec::new();
    for _ in 0..3 {
        let floating = floating.clone();
        tasks.push(tokio::spawn(async move {
            floating.create(CreateFloatingIp::default()).await
        }));
    }
    let (mut given, mut refused) = (Vec::new(), 0);
    for task in tasks {
        match task.await.unwrap() {
            Ok(view) => given.push(view.floating_ip.spec.address.to_string()),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
                refused += 1;
            }
        }
    }
    given.sort();
    assert_eq!(
        (given, refused),
        (vec!["192.0.2.34".into(), "192.0.2.35".into()], 1)
    );
    server.shutdown().await;
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_with_its_kind() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    let floating = client.floating_ips();
    floating
        .create(asked("one", Some([192, 0, 2, 50])))
        .await
        .unwrap();
    for (what, request, kind) in [
        (
            "an address twice",
            asked("two", Some([192, 0, 2, 50])),
            ErrorKind::AlreadyExists,
        ),
        (
            "a name twice",
            asked("one", Some([192, 0, 2, 51])),
            ErrorKind::AlreadyExists,
        ),
        (
            "loopback",
            asked("two", Some([127, 0, 0, 1])),
            ErrorKind::InvalidInput,
        ),
        (
            "multicast",
            asked("two", Some([224, 0, 0, 1])),
            ErrorKind::InvalidInput,
        ),
        (
            "nobody's",
            asked("two", Some([0, 0, 0, 0])),
            ErrorKind::InvalidInput,
        ),
    ] {
        let refused = floating.create(request).await.unwrap_err();
        assert_eq!(refused.kind(), kind, "{what}: {refused}");
    }
    for ranges in [&["224.0.0.1"][..], &["10.0.0.0-10.1.0.0"], &["192.0.2.1"; 17]] {
        let pool = FloatingPool {
            ranges: ranges.iter().map(|r| r.parse().unwrap()).collect(),
        };
        let refused = floating.set_pool(pool).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{ranges:?}: {refused}");
    }
    for gone in ["nope", "192.0.2.99"] {
        assert!(floating.attach(gone, to("a")).await.unwrap_err().is_not_found());
        assert!(floating.detach(gone).await.unwrap_err().is_not_found());
        assert!(floating.delete(gone).await.unwrap_err().is_not_found());
    }
    assert!(
        floating
            .attach("one", to("nobody"))
            .await
            .unwrap_err()
            .is_not_found()
    );
    server.shutdown().await;
}
