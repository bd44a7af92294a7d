//! Floating IPs with real packets: in, out, hairpin, moved, taken away.

#![allow(clippy::unwrap_used, reason = "a helper of a test that cannot go on panics")]
#![allow(clippy::cast_possible_truncation, reason = "test values are small")]

mod common;

use common::{HOST_OUTSIDE, Lab, OUTSIDE, eventually, footprint, network, open_port};
use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, TcpListener, TcpStream},
    time::Duration,
};
use vbm_core::{ErrorKind, NetworkMode};
use vbm_net::{DesiredNetwork, NetworkBackend};

/// In the subnet of the host and the world outside.
const FLOATING: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 50);
/// In no subnet of the host: routed to it.
const ROUTED: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 50);

fn attach(wanted: &mut DesiredNetwork, port: usize, floating: Option<Ipv4Addr>) {
    wanted.ports[port].policy.floating = floating;
}

/// Whom a listener outside sees when a guest connects.
fn seen_from(lab: &Lab, guest: &common::Guest, port: u16) -> IpAddr {
    let listener = lab
        .outside
        .run(move || TcpListener::bind(("0.0.0.0", port)).unwrap());
    let heard = std::thread::spawn(move || listener.accept().unwrap().1.ip());
    let _stream = guest
        .ns
        .run(move || TcpStream::connect_timeout(&(OUTSIDE, port).into(), common::DEADLINE).unwrap());
    heard.join().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_world_reaches_a_vm_by_its_floating_ip_and_sees_it_by_it_and_no_service_of_the_host() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let mut wanted = network(NetworkMode::Nat, 2);
    open_port(&mut wanted, 0, &["tcp/80"]);
    attach(&mut wanted, 0, Some(FLOATING));
    lab.ensure(&wanted).await;
    let (mut server, other) = (lab.guest(&wanted, 0).await, lab.guest(&wanted, 1).await);
    server.dhcp();
    other.dhcp();
    server.serve("by its floating IP").await;
    let _service = lab.host.spawn("busybox httpd -f -p 81");
    eventually("the host's own service", || {
        lab.outside
            .try_sh("busybox nc -w 1 192.0.2.1 81")
            .status
            .success()
    })
    .await;
    let hello = Some("by its floating IP".to_owned());
    assert_eq!(lab.outside.get((FLOATING, 80)), hello, "from the world");
    assert_eq!(lab.host.get((FLOATING, 80)), hello, "from the host");
    assert_eq!(
        other.ns.get((FLOATING, 80)),
        hello,
        "from another VM of the network"
    );
    assert_eq!(server.ns.get((FLOATING, 80)), hello, "from itself");
    assert_eq!(
        lab.outside.get((FLOATING, 81)),
        None,
        "no service of the host, and no rule"
    );
    assert_eq!(
        lab.outside.get((HOST_OUTSIDE, 80)),
        None,
        "and the host's address is not the VM's"
    );
    assert_eq!(seen_from(&lab, &server, 9_001), FLOATING);
    assert_eq!(
        seen_from(&lab, &other, 9_002),
        HOST_OUTSIDE,
        "the others are seen as the host"
    );
    assert_eq!(lab.ensure(&wanted).await.changed, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_of_another_network_with_the_same_addresses_reaches_it_as_the_world_does() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let (mut one, mut two) = (network(NetworkMode::Nat, 1), network(NetworkMode::Nat, 1));
    let second = Ipv4Addr::new(192, 0, 2, 51);
    for (net, floating) in [(&mut one, FLOATING), (&mut two, second)] {
        open_port(net, 0, &["tcp/80"]);
        attach(net, 0, Some(floating));
        lab.ensure(net).await;
    }
    let (mut a, mut b) = (lab.guest(&one, 0).await, lab.guest(&two, 0).await);
    a.dhcp();
    b.dhcp();
    a.serve("one").await;
    b.serve("two").await;
    assert_eq!(b.ns.get((FLOATING, 80)).as_deref(), Some("one"));
    assert_eq!(a.ns.get((second, 80)).as_deref(), Some("two"));
    assert_eq!(lab.outside.get((second, 80)).as_deref(), Some("two"));
}

#[tokio::test(flavor = "multi_thread")]
async fn neighbours_that_knew_another_machine_by_it_learn_it_at_once() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let mut wanted = network(NetworkMode::Nat, 1);
    lab.ensure(&wanted).await;
    lab.outside
        .ip("neigh replace 192.0.2.50 lladdr 02:00:00:00:00:99 dev eth0 nud stale");
    attach(&mut wanted, 0, Some(FLOATING));
    lab.ensure(&wanted).await;
    let host = lab.host.ip("-o link show eth0");
    let mac = host.split("link/ether ").nth(1).unwrap()[..17].to_owned();
    eventually("the announcement is heard", || {
        lab.outside.ip("neigh show 192.0.2.50").contains(&mac)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_taken_away_cuts_its_flows_and_leads_elsewhere_when_it_is_given_to_another() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let mut wanted = network(NetworkMode::Nat, 2);
    let before = footprint(&lab.host, &[wanted.id]);
    for (port, floating) in [(0, Some(FLOATING)), (1, None)] {
        open_port(&mut wanted, port, &["tcp/80", "tcp/82"]);
        attach(&mut wanted, port, floating);
    }
    lab.ensure(&wanted).await;
    let (mut first, mut second) = (lab.guest(&wanted, 0).await, lab.guest(&wanted, 1).await);
    first.dhcp();
    second.dhcp();
    first.serve("first").await;
    second.serve("second").await;
    let listener = first.ns.run(|| TcpListener::bind("0.0.0.0:82").unwrap());
    std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let mut byte = [0];
        while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
    });
    let mut stream = lab.outside.run(|| TcpStream::connect((FLOATING, 82)).unwrap());
    stream
        .set_read_timeout(Some(Duration::from_millis(1_500)))
        .unwrap();
    let mut alive = || stream.write_all(b"x").is_ok() && stream.read_exact(&mut [0]).is_ok();
    assert!(alive());
    assert_eq!(lab.outside.get((FLOATING, 80)).as_deref(), Some("first"));
    attach(&mut wanted, 0, None);
    lab.ensure(&wanted).await;
    assert!(!alive(), "its flows are cut");
    assert_eq!(lab.outside.get((FLOATING, 80)), None, "nobody has it");
    attach(&mut wanted, 1, Some(FLOATING));
    lab.ensure(&wanted).await;
    assert_eq!(lab.outside.get((FLOATING, 80)).as_deref(), Some("second"));
    assert_eq!(lab.ensure(&wanted).await.changed, Vec::<String>::new());
    lab.net.remove(wanted.id).await.unwrap();
    assert_eq!(
        footprint(&lab.host, &[wanted.id]),
        before,
        "nothing is left on the host"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_took_from_it_stands_again_and_one_of_the_hosts_own_is_refused() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let mut wanted = network(NetworkMode::Nat, 1);
    attach(&mut wanted, 0, Some(FLOATING));
    lab.ensure(&wanted).await;
    for spoil in [
        "route del 192.0.2.50",
        "neigh del proxy 192.0.2.50 dev eth0",
        "neigh add proxy 192.0.2.77 dev eth0 protocol 86",
    ] {
        lab.host.ip(spoil);
        assert!(
            !lab.ensure(&wanted).await.changed.is_empty(),
            "nobody saw `{spoil}`"
        );
        assert_eq!(lab.ensure(&wanted).await.changed, Vec::<String>::new(), "{spoil}");
    }
    assert!(!lab.host.ip("neigh show proxy").contains("192.0.2.77"));
    lab.host.ip("neigh add proxy 192.0.2.78 dev eth0");
    lab.ensure(&wanted).await;
    assert!(
        lab.host.ip("neigh show proxy").contains("192.0.2.78"),
        "what bears no mark of ours is left alone"
    );
    attach(&mut wanted, 0, Some(HOST_OUTSIDE));
    let error = lab.net.ensure(wanted.clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error:?}");
    assert!(vbm_core::Error::from(error).why().contains("the host itself"));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_routed_to_the_host_needs_no_subnet_there() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let mut wanted = network(NetworkMode::Nat, 1);
    open_port(&mut wanted, 0, &["tcp/80"]);
    attach(&mut wanted, 0, Some(ROUTED));
    lab.ensure(&wanted).await;
    let mut server = lab.guest(&wanted, 0).await;
    server.dhcp();
    server.serve("routed").await;
    lab.outside.ip(&format!("route add {ROUTED} via {HOST_OUTSIDE}"));
    assert_eq!(lab.outside.get((ROUTED, 80)).as_deref(), Some("routed"));
    assert_eq!(lab.host.ip("neigh show proxy"), "", "nobody answers ARP for it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_finds_who_may_be_reached_and_the_holes_that_somebody_made() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let (mut one, two) = (network(NetworkMode::Nat, 1), network(NetworkMode::Nat, 1));
    open_port(&mut one, 0, &["icmp"]);
    attach(&mut one, 0, Some(FLOATING));
    lab.ensure(&one).await;
    lab.ensure(&two).await;
    let guest = lab.guest(&one, 0).await;
    guest.dhcp();
    let paths = lab.net.check().await.unwrap();
    assert!(!paths.iter().any(vbm_net::PathSeen::is_hole), "{paths:#?}");
    let reached: Vec<_> = paths
        .iter()
        .filter(|p| p.reached)
        .map(|p| (p.from, p.to, p.address, p.way))
        .collect();
    let floating = (two.id, Some(one.id), FLOATING, vbm_net::check::Way::Ping);
    assert_eq!(
        reached,
        [floating],
        "a ping, which its group lets in, and nothing else"
    );
    lab.host.sh("iptables -I INPUT -j ACCEPT");
    let paths = lab.net.check().await.unwrap();
    let holes: Vec<_> = paths.iter().filter(|p| p.is_hole()).collect();
    assert!(
        holes.iter().any(|p| p.to.is_none() && p.address == HOST_OUTSIDE),
        "{paths:#?}"
    );
    assert!(
        holes.iter().all(|p| p.to.is_none()),
        "only the host was opened: {holes:#?}"
    );
    lab.host.sh("iptables -I FORWARD -j ACCEPT");
    for net in [&one, &two] {
        let inside = lab.inside(net.id);
        assert!(
            common::in_netns(&inside, "iptables -I INPUT -j ACCEPT")
                .status
                .success()
        );
    }
    let paths = lab.net.check().await.unwrap();
    for (from, to) in [(one.id, two.id), (two.id, one.id)] {
        let hole = |p: &vbm_net::PathSeen| p.is_hole() && p.from == from && p.to == Some(to);
        assert!(paths.iter().any(hole), "{paths:#?}");
    }
}
