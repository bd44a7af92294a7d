//! The way out and the way in: NAT and forwards, with real packets.

#![allow(clippy::unwrap_used, reason = "a helper of a test that cannot go on panics")]
#![allow(clippy::cast_possible_truncation, reason = "test values are small")]

mod common;

use common::{HOST_OUTSIDE, Lab, OUTSIDE, forward, network, open_port};
use std::net::Ipv4Addr;
use vbm_core::NetworkMode;

/// The first guest.
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 10);

use vbm_net::NetworkBackend;

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_reaches_the_gateway_and_the_world_and_the_world_sees_the_host() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let wanted = network(NetworkMode::Nat, 1);
    lab.ensure(&wanted).await;
    let guest = lab.guest(&wanted, 0).await;
    guest.dhcp();
    assert!(guest.ns.pings(wanted.spec.gateway), "the gateway");
    assert!(guest.ns.pings(OUTSIDE), "the world");
    let (to_guest, from) = std::sync::mpsc::channel();
    let listener = lab
        .outside
        .run(|| std::net::TcpListener::bind("0.0.0.0:9000").unwrap());
    std::thread::spawn(move || to_guest.send(listener.accept().unwrap().1.ip()).unwrap());
    guest
        .ns
        .run(|| std::net::TcpStream::connect((OUTSIDE, 9000)).unwrap());
    assert_eq!(from.recv_timeout(common::DEADLINE).unwrap(), HOST_OUTSIDE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forward_is_reached_from_the_world_the_host_its_loopback_and_the_guest_itself() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let mut wanted = network(NetworkMode::Nat, 2);
    open_port(&mut wanted, 0, &["tcp/80"]);
    forward(&mut wanted, 8080, 0, 80);
    lab.ensure(&wanted).await;
    let (mut server, client) = (lab.guest(&wanted, 0).await, lab.guest(&wanted, 1).await);
    server.dhcp();
    client.dhcp();
    server.serve("hello from the guest").await;
    let hello = Some("hello from the guest".to_owned());
    assert_eq!(lab.outside.get((HOST_OUTSIDE, 8080)), hello, "from the world");
    assert_eq!(
        lab.host.get((Ipv4Addr::LOCALHOST, 8080)),
        hello,
        "from the host's loopback"
    );
    assert_eq!(
        lab.host.get((HOST_OUTSIDE, 8080)),
        hello,
        "from the host by its own address"
    );
    assert_eq!(
        client.ns.get((HOST_OUTSIDE, 8080)),
        hello,
        "hairpin: from another guest of the network"
    );
    assert_eq!(client.ns.get((FIRST, 80)), hello, "directly, from another guest");
    assert_eq!(lab.outside.get((HOST_OUTSIDE, 8081)), None, "no other port");
    wanted.forwards.clear();
    lab.ensure(&wanted).await;
    assert_eq!(lab.outside.get((HOST_OUTSIDE, 8080)), None, "the forward is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_of_ports_leads_to_the_vms_in_step_from_the_world_and_from_inside() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let mut wanted = network(NetworkMode::Nat, 2);
    open_port(&mut wanted, 0, &["tcp/70-90"]);
    forward(&mut wanted, 8_000, 0, 76);
    wanted.forwards[0].count = 5;
    lab.ensure(&wanted).await;
    assert_eq!(lab.ensure(&wanted).await.changed, Vec::<String>::new());
    let (mut server, client) = (lab.guest(&wanted, 0).await, lab.guest(&wanted, 1).await);
    server.dhcp();
    client.dhcp();
    server.serve("the last of five").await;
    let page = Some("the last of five".to_owned());
    assert_eq!(lab.outside.get((HOST_OUTSIDE, 8_004)), page, "from the world");
    assert_eq!(client.ns.get((HOST_OUTSIDE, 8_004)), page, "hairpin");
    for port in [8_000, 8_003, 8_005] {
        assert_eq!(lab.outside.get((HOST_OUTSIDE, port)), None, "{port}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_networks_with_the_same_addresses_work_at_once_and_cannot_meet() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let (mut a, mut b) = (network(NetworkMode::Nat, 2), network(NetworkMode::Nat, 2));
    for (net, port) in [(&mut a, 8001), (&mut b, 8002)] {
        open_port(net, 0, &["any"]);
        forward(net, port, 0, 80);
    }
    let (seen_a, seen_b) = (lab.ensure(&a).await, lab.ensure(&b).await);
    assert_ne!(seen_a.transit, seen_b.transit);
    let (mut guest_a, mut guest_b) = (lab.guest(&a, 0).await, lab.guest(&b, 0).await);
    let second_a = lab.guest(&a, 1).await;
    for guest in [&guest_a, &guest_b, &second_a] {
        guest.dhcp();
    }
    guest_a.serve("network a").await;
    guest_b.serve("network b").await;
    assert_eq!(
        lab.outside.get((HOST_OUTSIDE, 8001)).as_deref(),
        Some("network a")
    );
    assert_eq!(
        lab.outside.get((HOST_OUTSIDE, 8002)).as_deref(),
        Some("network b")
    );
    assert_eq!(
        second_a.ns.get((FIRST, 80)).as_deref(),
        Some("network a"),
        "its own network's"
    );
    for address in [
        seen_b.transit.unwrap().network(),
        seen_b.transit.unwrap().broadcast(),
    ] {
        assert!(
            !guest_a.ns.pings(address),
            "the other network's transit {address}"
        );
    }
    assert_eq!(
        second_a.ns.get((HOST_OUTSIDE, 8002)).as_deref(),
        Some("network b"),
        "through a forward, as the world does"
    );
    lab.net.remove(b.id).await.unwrap();
    assert_eq!(
        lab.outside.get((HOST_OUTSIDE, 8001)).as_deref(),
        Some("network a"),
        "the other is untouched"
    );
    assert!(guest_a.ns.pings(OUTSIDE));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_reaches_no_service_of_the_host() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let wanted = network(NetworkMode::Nat, 1);
    let transit = lab.ensure(&wanted).await.transit.unwrap();
    let guest = lab.guest(&wanted, 0).await;
    guest.dhcp();
    let _service = lab.host.spawn("busybox httpd -f -p 80");
    common::eventually("the host's service", || {
        lab.outside
            .try_sh("busybox nc -w 1 192.0.2.1 80")
            .status
            .success()
    })
    .await;
    for address in [
        HOST_OUTSIDE,
        transit.network(),
        transit.broadcast(),
        wanted.spec.gateway,
    ] {
        let reached = guest.ns.run(move || {
            std::net::TcpStream::connect_timeout(&(address, 80).into(), std::time::Duration::from_millis(500))
                .is_ok()
        });
        assert!(!reached, "{address}");
    }
}
