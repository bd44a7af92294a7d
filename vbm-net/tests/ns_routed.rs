//! Networks of mode routed, with packets: seen as they are, reached by a route as groups allow, and by no other network.

#![allow(clippy::unwrap_used, reason = "a helper of a test that cannot go on panics")]
#![allow(clippy::cast_possible_truncation, reason = "test values are small")]

mod common;

use common::{
    HOST_OUTSIDE, Lab, OUTSIDE, TRIES_MAX, footprint, ip, network, open_port, reaches,
    site::{Site, Span, at},
};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use vbm_core::{Error, ErrorKind, Ipv6Spec, NetworkMode, network::parse_cidr};
use vbm_net::{DesiredNetwork, NetworkBackend, doctor};

const FIRST: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 10);

/// The world knows the way: what an operator says on the router before the host.
fn world_routes(lab: &Lab, cidr: &str) {
    lab.outside
        .ip(&format!("route replace {cidr} via {HOST_OUTSIDE}"));
}

/// Another routed network, with addresses of its own.
fn second() -> DesiredNetwork {
    let mut other = network(NetworkMode::Routed, 2);
    other.spec.cidr = parse_cidr("10.19.0.0/24").unwrap();
    other.spec.gateway = [10, 19, 0, 1].into();
    other.spec.pool_first = [10, 19, 0, 2].into();
    other.spec.pool_last = [10, 19, 0, 254].into();
    for (port, last) in other.ports.iter_mut().zip(10..) {
        port.address = [10, 19, 0, last].into();
    }
    other
}

fn refused(error: vbm_net::NetError) -> Error {
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error:?}");
    error.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_world_sees_a_vm_as_it_is_and_reaches_it_where_its_groups_allow() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let mut wanted = network(NetworkMode::Routed, 2);
    let before = footprint(&lab.host, &[wanted.id]);
    open_port(&mut wanted, 0, &["tcp/80"]);
    lab.ensure(&wanted).await;
    assert_eq!(lab.ensure(&wanted).await.changed, Vec::<String>::new());
    world_routes(&lab, "10.9.0.0/24");
    let (mut guest, shut) = (lab.guest(&wanted, 0).await, lab.guest(&wanted, 1).await);
    guest.dhcp();
    shut.dhcp();
    let told = guest.told("bound").unwrap();
    assert!(told.contains("router='10.9.0.1'"), "{told}");
    guest.serve("routed").await;

    let listener = lab.outside.run(|| TcpListener::bind("0.0.0.0:9000").unwrap());
    let heard = std::thread::spawn(move || listener.accept().unwrap().1.ip());
    let _stream = guest
        .ns
        .run(|| TcpStream::connect_timeout(&(OUTSIDE, 9000).into(), common::DEADLINE).unwrap());
    assert_eq!(heard.join().unwrap(), IpAddr::V4(FIRST), "seen as it is");

    assert_eq!(
        lab.outside.get((FIRST, 80)).as_deref(),
        Some("routed"),
        "by its route"
    );
    assert_eq!(
        lab.host.get((FIRST, 80)).as_deref(),
        Some("routed"),
        "from the host"
    );
    assert!(!lab.outside.pings(FIRST), "no group allows it");
    assert!(!lab.outside.pings(wanted.ports[1].address));
    assert!(reaches(&shut.ns, OUTSIDE), "the way out is open");
    assert!(!guest.ns.pings(HOST_OUTSIDE), "the host itself answers nobody");

    lab.net.remove(wanted.id).await.unwrap();
    assert_eq!(footprint(&lab.host, &[wanted.id]), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_do_not_reach_each_other_whatever_they_are() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let (mut one, mut two) = (network(NetworkMode::Routed, 2), second());
    let mut nat = network(NetworkMode::Nat, 2);
    nat.spec.cidr = parse_cidr("10.29.0.0/24").unwrap();
    nat.spec.gateway = [10, 29, 0, 1].into();
    nat.spec.pool_first = [10, 29, 0, 2].into();
    nat.spec.pool_last = [10, 29, 0, 254].into();
    for (port, last) in nat.ports.iter_mut().zip(10..) {
        port.address = [10, 29, 0, last].into();
    }
    for net in [&mut one, &mut two, &mut nat] {
        open_port(net, 0, &["any"]);
    }
    // In either order of their rules.
    for net in [&one, &two, &nat, &one] {
        lab.ensure(net).await;
    }
    world_routes(&lab, "10.9.0.0/24");
    world_routes(&lab, "10.19.0.0/24");
    let mut guests = Vec::new();
    for net in [&one, &two, &nat] {
        let guest = lab.guest(net, 0).await;
        guest.dhcp();
        assert!(reaches(&guest.ns, OUTSIDE), "the world");
        guests.push(guest);
    }
    let addresses = [one.ports[0].address, two.ports[0].address];
    for address in addresses {
        assert!(reaches(&lab.outside, address), "from the world: {address}");
    }
    for (n, guest) in guests.iter().enumerate() {
        for (m, address) in addresses.iter().enumerate().filter(|(m, _)| *m != n) {
            assert!(!guest.ns.pings(*address), "{n} reaches {m}");
        }
    }
    let holes: Vec<_> = lab.net.check().await.unwrap();
    assert!(
        holes.iter().any(|p| addresses.contains(&p.address)),
        "they were tried"
    );
    assert!(!holes.iter().any(vbm_net::PathSeen::is_hole), "{holes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_uplink_is_the_only_way_in_and_out() {
    needs_namespaces!();
    let lab = Lab::new().await;
    ip(&format!(
        "-n {} link add eth1 type veth peer name eth1 netns {}",
        lab.host.0, lab.outside.0
    ));
    for (ns, last) in [(&lab.host, 1), (&lab.outside, 2)] {
        ns.ip(&format!("addr add 198.51.100.{last}/24 dev eth1"));
        ns.ip("link set eth1 up");
    }
    let mut wanted = network(NetworkMode::Routed, 1);
    open_port(&mut wanted, 0, &["icmp"]);
    wanted.spec.uplink = Some("eth1".parse().unwrap());
    lab.ensure(&wanted).await;
    let guest = lab.guest(&wanted, 0).await;
    guest.dhcp();
    let second = Ipv4Addr::new(198, 51, 100, 2);
    lab.outside.ip("route replace 10.9.0.0/24 via 198.51.100.1");
    assert!(reaches(&guest.ns, second) && reaches(&lab.outside, FIRST));
    assert!(!guest.ns.pings(OUTSIDE), "out by eth0");
    lab.outside.ip("route replace 10.9.0.0/24 via 192.0.2.1");
    assert!(!lab.outside.pings(FIRST), "in by eth0");
    wanted.spec.uplink = None;
    lab.ensure(&wanted).await;
    assert!(reaches(&guest.ns, OUTSIDE), "by any, when none is named");
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_that_somebody_has_are_refused_and_told_who() {
    needs_namespaces!();
    let mut lab = Lab::new().await;
    let wanted = network(NetworkMode::Routed, 1);
    lab.host.ip("addr add 10.9.0.99/25 dev eth0");
    let told = refused(lab.net.ensure(wanted.clone()).await.unwrap_err());
    assert!(told.why().contains("eth0"), "{told}");
    lab.host.ip("addr del 10.9.0.99/25 dev eth0");
    lab.host.ip("route add 10.9.0.128/25 via 192.0.2.2");
    let told = refused(lab.net.plan(wanted.clone()).await.unwrap_err());
    assert!(told.why().contains("10.9.0.128/25"), "{told}");
    lab.host.ip("route del 10.9.0.128/25");
    assert!(lab.net.inventory().await.unwrap().is_empty(), "nothing was made");
    lab.host.ip("route add 10.0.0.0/8 via 192.0.2.2");
    lab.ensure(&wanted).await;
    // After a restart it is still this network's, and nobody else's.
    lab.reopen().await;
    lab.ensure(&wanted).await;
    let mut other = network(NetworkMode::Routed, 1);
    other.name = "other".parse().unwrap();
    let told = refused(lab.net.ensure(other.clone()).await.unwrap_err());
    assert!(
        told.why().contains("'lab'") && told.why().contains(&lab.owner),
        "{told}"
    );
    lab.net.remove(wanted.id).await.unwrap();
    lab.ensure(&other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_do_to_its_routes_is_healed_and_what_is_not_its_own_is_left() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let wanted = network(NetworkMode::Routed, 1);
    let before = footprint(&lab.host, &[wanted.id]);
    lab.ensure(&wanted).await;
    for spoil in [
        "route del 10.9.0.0/24",
        "route add 10.9.0.77/32 via 192.0.2.2 proto 86",
        "route replace 10.9.0.0/24 via 192.0.2.2 proto 86",
    ] {
        lab.host.ip(spoil);
        let plan = lab.net.plan(wanted.clone()).await.unwrap();
        assert!(plan.iter().any(|l| l.contains("route to")), "{spoil}: {plan:?}");
        let healed = lab.ensure(&wanted).await.changed;
        assert_eq!(healed, plan, "{spoil}");
        assert_eq!(lab.ensure(&wanted).await.changed, Vec::<String>::new(), "{spoil}");
    }
    lab.host.ip("route add 203.0.113.0/24 via 192.0.2.2 proto 86");
    // A daemon that died and does not come back.
    lab.net.shutdown().await;
    doctor::remove_owners(&[lab.owner.clone()].into()).await.unwrap();
    lab.host.ip("route del 203.0.113.0/24 via 192.0.2.2 proto 86");
    assert_eq!(footprint(&lab.host, &[wanted.id]), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_to_any_of_its_hosts_leads_to_each_vm_and_follows_one_that_moves() {
    needs_namespaces!();
    let site = Site::new(2).await;
    let mut span = Span::new(NetworkMode::Routed, &[0, 1])
        .open(0, &["icmp"])
        .open(1, &["icmp"]);
    site.ensure(&span).await;
    for seen in site.ensure(&span).await {
        assert_eq!(seen.changed, Vec::<String>::new());
    }
    // The world: on the LAN of the hosts, with a route to the first of them.
    let world = common::Ns::new("vbmt-w-");
    ip(&format!(
        "-n {} link add eth0 type veth peer name world netns {}",
        world.0, site.underlay.0
    ));
    site.underlay.ip("link set world master lan up");
    world.ip("addr add 198.18.0.200/24 dev eth0");
    world.ip("link set eth0 up");
    world.ip(&format!("route add 10.9.0.0/24 via {}", at(0)));
    let guests = [site.up(&span, 0).await, site.up(&span, 1).await];
    let out = Ipv4Addr::new(198, 18, 0, 200);
    for (n, guest) in guests.iter().enumerate() {
        assert!(reaches(&guest.ns, out), "{n} out");
        assert!(reaches(&world, span.address(n)), "{n} in");
        assert!(
            reaches(&guest.ns, span.address(1 - n)),
            "{n} to the other, by VXLAN"
        );
    }
    // Another network with a VM on the first host only: no way to it, on neither host.
    let mut other = Span::new(NetworkMode::Routed, &[0, 1]);
    let spec = second();
    other.base.spec = spec.spec.clone();
    for (port, like) in other.base.ports.iter_mut().zip(&spec.ports) {
        port.address = like.address;
    }
    site.ensure(&other).await;
    site.ensure(&span).await;
    world.ip(&format!("route add 10.19.0.0/24 via {}", at(1)));
    let stranger = site.up(&other, 0).await;
    assert!(reaches(&stranger.ns, out), "the world");
    for n in [0, 1] {
        assert!(!stranger.ns.pings(span.address(n)), "another network reaches {n}");
    }
    drop(guests);
    // The second moves to the first host, and the first to the second.
    for n in [0, 1] {
        let host = span.place[n];
        let net = &site.labs[host].net;
        net.close_nic(span.base.id, span.base.ports[n].id).await.unwrap();
    }
    span.place.swap(0, 1);
    site.ensure(&span).await;
    let guests = [site.up(&span, 0).await, site.up(&span, 1).await];
    for n in 0..guests.len() {
        common::eventually("a VM is reached where it went", || world.pings(span.address(n))).await;
    }
    for lab in &site.labs {
        lab.net.remove(span.base.id).await.unwrap();
        let left = lab.host.ip("route show proto 86");
        assert!(!left.contains("10.9.0."), "{left}");
    }
}

/// IPv6 between host and world, and a world that knows the way.
fn world6(lab: &Lab, cidr: &str) {
    for (ns, last) in [(&lab.host, 1), (&lab.outside, 2)] {
        ns.ip(&format!("addr add 2001:db8:1::{last}/64 dev eth0 nodad"));
    }
    lab.outside.ip(&format!("-6 route add {cidr} via 2001:db8:1::1"));
}

fn six(wanted: &mut DesiredNetwork, cidr: &str, addresses: &[&str]) {
    wanted.spec.ipv6 = Some(Ipv6Spec::new(cidr.parse().unwrap()).unwrap());
    for (port, address) in wanted.ports.iter_mut().zip(addresses) {
        port.address6 = Some(address.parse().unwrap());
    }
}

fn reaches6(ns: &common::Ns, to: &str) -> bool {
    (0..TRIES_MAX).any(|_| pings6(ns, to))
}

fn pings6(ns: &common::Ns, to: &str) -> bool {
    let ping = format!("busybox ping -6 -c 1 -W 1 {to}");
    ns.try_sh(&ping).status.success()
}

/// A guest with its IPv6 address, whose kernel heard who the router is.
async fn guest6(lab: &Lab, wanted: &DesiredNetwork, port: usize) -> common::Guest {
    let guest = lab.guest(wanted, port).await;
    let address = wanted.ports[port].address6.unwrap();
    guest.ns.ip(&format!("addr add {address}/64 dev eth0 nodad"));
    common::eventually("a router is heard", || {
        let route = guest.ns.ip("-6 route show default");
        route.contains("via fe80::1") && route.contains("proto ra")
    })
    .await;
    guest
}

#[tokio::test(flavor = "multi_thread")]
async fn ipv6_is_routed_beside_ipv4_under_the_same_rules() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let (mut wanted, mut other) = (network(NetworkMode::Routed, 2), second());
    let six_at_first = lab.host.sh("ip6tables-save");
    let six_at_first = six_at_first.contains("VBM");
    six(
        &mut wanted,
        "2001:db8:9::/64",
        &["2001:db8:9::a", "2001:db8:9::b"],
    );
    six(&mut other, "2001:db8:9::/64", &[]);
    open_port(&mut wanted, 0, &["icmpv6/type=128", "tcp/80"]);
    lab.ensure(&wanted).await;
    assert_eq!(lab.net.plan(wanted.clone()).await.unwrap(), Vec::<String>::new());
    assert_eq!(lab.ensure(&wanted).await.changed, Vec::<String>::new());
    world6(&lab, "2001:db8:9::/64");
    let told = refused(lab.net.ensure(other.clone()).await.unwrap_err());
    assert!(told.why().contains("2001:db8:9::/64"), "{told}");
    six(&mut other, "2001:db8:19::/64", &["2001:db8:19::a"]);
    open_port(&mut other, 0, &["any"]);
    lab.ensure(&other).await;
    lab.outside.ip("-6 route add 2001:db8:19::/64 via 2001:db8:1::1");
    let guest = guest6(&lab, &wanted, 0).await;
    let shut = guest6(&lab, &wanted, 1).await;
    let stranger = guest6(&lab, &other, 0).await;
    for ns in [&guest.ns, &shut.ns, &stranger.ns] {
        assert!(reaches6(ns, "2001:db8:1::2"), "out");
    }
    assert!(reaches6(&lab.outside, "2001:db8:9::a"), "in, as its group allows");
    assert!(!pings6(&lab.outside, "2001:db8:9::b"), "in, where none does");
    assert!(
        !pings6(&guest.ns, "2001:db8:1::1"),
        "the host itself answers nobody"
    );
    assert!(reaches6(&lab.outside, "2001:db8:19::a"));
    assert!(!pings6(&guest.ns, "2001:db8:19::a"), "another network");
    assert!(!pings6(&stranger.ns, "2001:db8:9::a"), "and back");
    // Somebody flushes what there is of it.
    lab.host.sh("ip6tables -F");
    lab.host.ip("-6 route del 2001:db8:9::/64");
    ip(&format!("-n {} -6 route flush default", lab.inside(wanted.id)));
    assert!(!lab.net.plan(wanted.clone()).await.unwrap().is_empty());
    lab.ensure(&wanted).await;
    assert_eq!(lab.ensure(&wanted).await.changed, Vec::<String>::new());
    assert!(reaches6(&lab.outside, "2001:db8:9::a") && reaches6(&guest.ns, "2001:db8:1::2"));
    // Without IPv6 it goes, and nothing is left of it on the host.
    wanted.spec.ipv6 = None;
    wanted.ports.iter_mut().for_each(|p| p.address6 = None);
    open_port(&mut wanted, 0, &[]);
    lab.ensure(&wanted).await;
    assert!(!pings6(&lab.outside, "2001:db8:9::a"));
    assert!(reaches6(&lab.outside, "2001:db8:19::a"), "the other is as it was");
    for id in [wanted.id, other.id] {
        lab.net.remove(id).await.unwrap();
    }
    assert!(!six_at_first && !lab.host.sh("ip6tables-save").contains("VBM"));
    assert_eq!(lab.host.ip("-6 route show proto 86"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_would_forget_its_own_router_is_left_as_it_is() {
    needs_namespaces!();
    let lab = Lab::new().await;
    lab.host.ip("-6 route add default via fe80::99 dev eth0 proto ra");
    let mut wanted = network(NetworkMode::Routed, 1);
    six(&mut wanted, "2001:db8:9::/64", &["2001:db8:9::a"]);
    let told = refused(lab.net.ensure(wanted.clone()).await.unwrap_err());
    assert!(told.fix().contains("net.ipv6.conf.eth0.accept_ra=2"), "{told}");
    assert!(lab.net.inventory().await.unwrap().is_empty());
    let forwards = || lab.host.sh("busybox cat /proc/sys/net/ipv6/conf/all/forwarding");
    assert_eq!(forwards().trim(), "0");
    let accept = lab
        .host
        .run(|| std::fs::write("/proc/sys/net/ipv6/conf/eth0/accept_ra", "2"));
    accept.unwrap();
    lab.ensure(&wanted).await;
    assert_eq!(forwards().trim(), "1");
}
