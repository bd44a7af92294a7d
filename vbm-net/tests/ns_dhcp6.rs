//! IPv6 of a network with real frames: DHCPv6 and the router's voice on the bridge, and who hears them.

#![allow(clippy::unwrap_used, reason = "a helper of a test that cannot go on panics")]
#![allow(clippy::cast_possible_truncation, reason = "test values are small")]

mod common;
mod dhcp6_lab;
mod dhcp_lab;

use common::{
    Guest, Lab, eventually, network, open_port,
    packet::Wire,
    site::{Site, Span},
};
use dhcp6_lab::{
    ALL_NODES, ALL_SERVERS, GATEWAY, dhcp6_reply, given, icmp, is_advertisement, message, multicast_mac,
    router_solicitation, to_servers, udp,
};
use std::{net::Ipv6Addr, time::Duration};
use vbm_core::{Ipv6Spec, Mac, NetworkMode};
use vbm_net::{DesiredNetwork, NetEvent, NetworkBackend, model::link_local};

const SOLICIT: u8 = 1;
const ADVERTISE: u8 = 2;
const REQUEST: u8 = 3;
const REPLY: u8 = 7;

/// A network with IPv4 and IPv6, so many ports of which have both.
fn dual(ports: u8) -> DesiredNetwork {
    let mut wanted = network(NetworkMode::Nat, ports);
    let mut six = Ipv6Spec::new("fd00::/64".parse().unwrap()).unwrap();
    six.dns = vec!["fd00::53".parse().unwrap()];
    wanted.spec.ipv6 = Some(six);
    for (n, port) in wanted.ports.iter_mut().enumerate() {
        port.address6 = Some(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0xa + n as u16));
    }
    wanted
}

/// The server's identifier, as an option.
fn server_id(wanted: &DesiredNetwork) -> Vec<u8> {
    [&[0, 2, 0, 10, 0, 3, 0, 1][..], &wanted.gateway_mac().octets()].concat()
}

fn pings(guest: &Guest, to: &str) -> bool {
    let out = guest.ns.try_sh(&format!("busybox ping -6 -c 1 -W 1 {to}"));
    out.status.success()
}

fn is_dhcp6(frame: &[u8], kind: u8) -> bool {
    dhcp6_reply(frame).is_some_and(|(k, _)| k == kind)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_is_given_its_own_address_by_its_own_mac_and_the_network_says_so() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let wanted = dual(2);
    let first = lab.ensure(&wanted).await;
    assert!(first.changed.contains(&"DHCPv6 server".to_owned()), "{first:?}");
    assert_eq!(lab.ensure(&wanted).await.changed, Vec::<String>::new());
    let mut events = lab.net.events();
    let (a, b) = (lab.raw(&wanted, 0).await, lab.raw(&wanted, 1).await);
    for (wire, port) in [(&a, &wanted.ports[0]), (&b, &wanted.ports[1])] {
        // Both say that they are the same client: what counts is the wire.
        let same = message(wanted.ports[0].mac, SOLICIT, &[]);
        wire.send(&to_servers(port.mac, &same));
        let frame = wire.next(|f| is_dhcp6(f, ADVERTISE)).expect("an ADVERTISE");
        assert_eq!(
            frame[..12],
            [port.mac.octets(), wanted.gateway_mac().octets()].concat()
        );
        assert_eq!(given(dhcp6_reply(&frame).unwrap().1), port.address6);
        let request = message(wanted.ports[0].mac, REQUEST, &server_id(&wanted));
        wire.send(&to_servers(port.mac, &request));
        let frame = wire.next(|f| is_dhcp6(f, REPLY)).expect("a REPLY");
        assert_eq!(given(dhcp6_reply(&frame).unwrap().1), port.address6);
        let told = loop {
            if let NetEvent::PortLeased6 { port, address, .. } = events.recv().await.unwrap() {
                break (port, Some(address));
            }
        };
        assert_eq!(told, (port.id, port.address6));
    }
    let seen = lab.net.inventory().await.unwrap();
    for (seen, port) in seen[0].ports.iter().zip(&wanted.ports) {
        assert_eq!(seen.lease6.map(|l| l.address), port.address6);
    }
    // Who is not the port is not heard, by his MAC or by his address.
    let (mac, other) = (wanted.ports[0].mac, wanted.ports[1].mac);
    a.send(&to_servers(other, &message(other, SOLICIT, &[])));
    a.send(&udp(
        (mac, link_local(other), 546),
        (multicast_mac(ALL_SERVERS), ALL_SERVERS, 547),
        &message(mac, SOLICIT, &[]),
    ));
    a.send(&to_servers(mac, &message(mac, 11, &[])));
    let frame = a.next(|f| dhcp6_reply(f).is_some()).expect("an answer");
    let (kind, answer) = dhcp6_reply(&frame).unwrap();
    assert_eq!((kind, given(answer)), (REPLY, None), "that of the honest one");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_a_router_is_told_alone_and_nobody_else_speaks_as_one() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let mut wanted = dual(2);
    open_port(&mut wanted, 1, &["any"]);
    lab.ensure(&wanted).await;
    let (a, b) = (lab.raw(&wanted, 0).await, lab.raw(&wanted, 1).await);
    let (mac, other) = (wanted.ports[0].mac, wanted.ports[1].mac);
    let to_me = |f: &[u8]| is_advertisement(f) && f[..6] == mac.octets();
    for from in [link_local(mac), Ipv6Addr::UNSPECIFIED] {
        a.send(&router_solicitation(mac, from));
        let frame = a.next(to_me).expect("an advertisement");
        assert_eq!(frame[6..12], wanted.gateway_mac().octets());
        assert_eq!(frame[22..38], GATEWAY.octets());
        let to = if from.is_unspecified() { ALL_NODES } else { from };
        assert_eq!(frame[38..54], to.octets());
        // Hop limit 255; M and O; no default router.
        assert_eq!(
            (frame[21], frame[59] & 0xc0, &frame[60..62]),
            (255, 0xc0, &[0, 0][..])
        );
    }
    // Forged: a router, a redirect, a DHCPv6 server, a relay, in his own name and in the gateway's.
    let everybody = (multicast_mac(ALL_NODES), ALL_NODES);
    for from in [
        (mac, link_local(mac)),
        (mac, GATEWAY),
        (wanted.gateway_mac(), GATEWAY),
    ] {
        for to in [
            everybody,
            (other, link_local(other)),
            (wanted.gateway_mac(), GATEWAY),
        ] {
            a.send(&icmp(from, to, 134, b"\0\0\0\0\0\0\0\0mark:a router"));
            a.send(&icmp(from, to, 137, b"mark:a redirect"));
            a.send(&icmp(
                from,
                to,
                136,
                &[&GATEWAY.octets()[..], b"mark:the gateway"].concat(),
            ));
            a.send(&udp(
                (from.0, from.1, 547),
                (to.0, to.1, 546),
                b"\x07mark:a server",
            ));
            a.send(&udp(
                (from.0, from.1, 547),
                (to.0, to.1, 547),
                b"\x0cmark:a relay",
            ));
        }
    }
    a.send(&common::packet::marked(
        (mac, wanted.ports[0].address),
        (other, wanted.ports[1].address),
        "honest",
    ));
    assert_eq!(b.next_mark(), "honest");
    // Nor did the gateway believe any of it.
    let inside = lab.inside(wanted.id);
    let routes = common::ip(&format!("-n {inside} -6 route show default"));
    assert_eq!(routes.trim(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_without_ipv6_hears_no_router_and_no_server() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let mut wanted = dual(2);
    wanted.ports[1].address6 = None;
    open_port(&mut wanted, 1, &["any"]);
    lab.ensure(&wanted).await;
    let (a, b) = (lab.raw(&wanted, 0).await, lab.raw(&wanted, 1).await);
    let (mac, without) = (wanted.ports[0].mac, wanted.ports[1].mac);
    b.send(&router_solicitation(without, link_local(without)));
    b.send(&to_servers(without, &message(without, SOLICIT, &[])));
    // Everybody is told, but for who has no IPv6.
    a.next(|f| is_advertisement(f) && f[..6] == multicast_mac(ALL_NODES).octets())
        .expect("an advertisement to all");
    let mark = |wire: &Wire| {
        wire.send(&common::packet::marked(
            (mac, wanted.ports[0].address),
            (without, wanted.ports[1].address),
            "honest",
        ));
    };
    mark(&a);
    let first = b
        .next(|f| f[12..14] == dhcp6_lab::IPV6.to_be_bytes() || common::packet::mark(f).is_some())
        .expect("a frame");
    assert_eq!(common::packet::mark(&first).as_deref(), Some("honest"));
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_passed_over_and_the_honest_are_answered_after_it() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let wanted = dual(1);
    lab.ensure(&wanted).await;
    let a = lab.raw(&wanted, 0).await;
    let mac = wanted.ports[0].mac;
    // A seed, so that it is the same garbage each time.
    let mut seed = 0x5eed_u64;
    let mut next = move || {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize
    };
    for n in 0..400 {
        let mut payload = match n % 4 {
            0 => message(mac, (next() % 16) as u8, &server_id(&wanted)),
            1 => (0..next() % 300).map(|_| next() as u8).collect(),
            2 => {
                // An option that holds itself as far as it goes.
                let mut nested = message(mac, SOLICIT, &[]);
                for _ in 0..next() % 40 {
                    nested.extend([0, 3, (next() % 4) as u8, next() as u8]);
                }
                nested
            }
            _ => message(mac, SOLICIT, &[0, 5, 0, 24, 1, 2, 3]),
        };
        if !payload.is_empty() {
            let at = next() % payload.len();
            payload[at] = next() as u8;
            payload.truncate(1 + next() % payload.len());
        }
        let mut frame = to_servers(mac, &payload);
        if n % 7 == 0 {
            let at = 14 + next() % (frame.len() - 14);
            frame[at] = next() as u8;
        }
        a.send(&frame);
        a.send(&router_solicitation(mac, link_local(mac))[..54 + next() % 9]);
    }
    // It has asked too often by now, and is heard again as often as anybody may ask.
    for _ in 0..20 {
        a.send(&to_servers(mac, &message(mac, 11, &[0, 6, 0, 2, 0, 23])));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let is_told = |f: &[u8]| dhcp6_reply(f).is_some_and(|(_, m)| m.windows(4).any(|w| w == [0, 23, 0, 16]));
    assert!(a.next(is_told).is_some(), "an honest question was not answered");
    assert!(lab.ensure(&wanted).await.ready);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_takes_what_the_router_says_and_reaches_the_gateway_and_its_neighbour() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let mut wanted = dual(2);
    open_port(&mut wanted, 1, &["any"]);
    lab.ensure(&wanted).await;
    let (a, b) = (lab.guest(&wanted, 0).await, lab.guest(&wanted, 1).await);
    for (guest, port) in [(&a, &wanted.ports[0]), (&b, &wanted.ports[1])] {
        eventually("the route to the link that the router told", || {
            guest.ns.ip("-6 route show dev eth0").contains("fd00::/64")
        })
        .await;
        let told = guest.ns.ip("-6 route show");
        assert!(!told.contains("default"), "{told}");
        let addresses = guest.ns.ip("-6 -o addr show dev eth0");
        assert!(!addresses.contains("fd00:"), "it makes none itself: {addresses}");
        guest
            .ns
            .ip(&format!("addr add {}/128 dev eth0", port.address6.unwrap()));
    }
    eventually("the gateway's answer", || pings(&a, "fd00::1")).await;
    eventually("the neighbour's answer", || pings(&a, "fd00::b")).await;
    assert!(pings(&a, "fe80::1%eth0"), "by its address of the link");
    assert!(!pings(&b, "fd00::a"), "its rules do not let it in");
    // The gateway is the same by any of its addresses.
    let neighbours = a.ns.ip("-6 neigh show");
    let mac = wanted.gateway_mac().to_string();
    for gateway in ["fd00::1", "fe80::1"] {
        let line = neighbours.lines().find(|l| l.starts_with(&format!("{gateway} ")));
        assert!(line.is_some_and(|l| l.contains(&mac)), "{neighbours}");
    }
    assert!(
        neighbours
            .lines()
            .any(|l| l.starts_with("fd00::1 ") && !l.contains("router")),
        "{neighbours}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_people_run_gets_its_address_through_the_guard() {
    if !common::can_run() || !dhcp_lab::has("dhclient", "isc-dhcp-client") {
        return;
    }
    let lab = Lab::new().await;
    let wanted = dual(2);
    lab.ensure(&wanted).await;
    let guest = lab.guest(&wanted, 0).await;
    let d = guest.dir.path().display();
    let script = guest.dir.path().join("six");
    let body = "#!/bin/sh
case $reason in
PREINIT6) for i in $(seq 100); do ip -6 -o addr show dev eth0 | grep -q ' tentative' || break; sleep 0.1; done;;
BOUND6) ip -6 addr add $new_ip6_address/128 dev eth0; echo \"$new_dhcp6_name_servers $new_dhcp6_domain_search\" > ${0%/*}/told;;
esac
exit 0
";
    std::fs::write(&script, body).unwrap();
    common::sh("chmod", &["+x", script.to_str().unwrap()]);
    let _client = guest.ns.spawn(&format!(
        "dhclient -6 -d -v -sf {} -cf /dev/null -lf {d}/leases6 -pf {d}/pid6 eth0",
        script.display()
    ));
    let told = || guest.told("told").filter(|t| t.ends_with('\n'));
    eventually("what the client was told", || told().is_some()).await;
    let told = told().unwrap();
    assert_eq!(told.trim(), "fd00::53 lab.example.");
    assert!(guest.ns.ip("-6 -o addr show dev eth0").contains("fd00::a/128"));
    eventually("the gateway's answer", || pings(&guest, "fd00::1")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_guests_make_their_addresses_themselves_they_make_those_of_their_ports() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let mut wanted = dual(2);
    let six = wanted.spec.ipv6.as_mut().unwrap();
    six.stateless = true;
    let six = six.clone();
    for port in &mut wanted.ports {
        port.address6 = six.made_of(port.mac);
    }
    open_port(&mut wanted, 1, &["icmpv6"]);
    lab.ensure(&wanted).await;
    let (a, b) = (lab.guest(&wanted, 0).await, lab.guest(&wanted, 1).await);
    for (guest, port) in [(&a, &wanted.ports[0]), (&b, &wanted.ports[1])] {
        let made = port.address6.unwrap().to_string();
        eventually("an address that it made itself", || {
            let all = guest.ns.ip("-6 -o addr show dev eth0 scope global");
            all.contains(&made) && !all.contains("tentative")
        })
        .await;
    }
    let other = wanted.ports[1].address6.unwrap().to_string();
    eventually("the neighbour's answer", || pings(&a, &other)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ipv6_comes_and_goes_with_the_network_and_is_healed_and_survives_a_restart() {
    needs_namespaces!();
    let mut lab = Lab::new().await;
    let wanted = dual(1);
    let inside = lab.inside(wanted.id);
    let addresses = || {
        let text = common::ip(&format!("-n {inside} -6 -o addr show dev br0"));
        let mut all: Vec<String> = text
            .lines()
            .filter_map(|l| Some(l.split_whitespace().nth(3)?.to_owned()))
            .collect();
        all.sort();
        all
    };
    let both = ["fd00::1/64", "fe80::1/64"];
    let mut plain = wanted.clone();
    plain.spec.ipv6 = None;
    plain.ports[0].address6 = None;
    lab.ensure(&plain).await;
    assert_eq!(addresses(), Vec::<String>::new());
    let changed = lab.ensure(&wanted).await.changed;
    assert!(changed.contains(&"DHCPv6 server".to_owned()), "{changed:?}");
    assert_eq!(addresses(), both);
    // Somebody takes an address and a route away, adds another, and lets the bridge believe routers.
    for damage in [
        "-6 addr del fd00::1/64 dev br0",
        "-6 addr add fd00::bad/64 dev br0",
        "-6 route flush dev br0",
    ] {
        common::ip(&format!("-n {inside} {damage}"));
    }
    common::run_in(&inside, || {
        std::fs::write("/proc/sys/net/ipv6/conf/br0/accept_ra", "2").unwrap()
    });
    let healed = lab.ensure(&wanted).await.changed;
    assert!(healed.iter().any(|c| c.contains("accept_ra")), "{healed:?}");
    assert_eq!(addresses(), both);
    let routes = common::ip(&format!("-n {inside} -6 route show dev br0"));
    assert!(
        routes.contains("fd00::/64") && routes.contains("fe80::/64"),
        "{routes}"
    );
    assert_eq!(lab.ensure(&wanted).await.changed, Vec::<String>::new());
    lab.reopen().await;
    let again = lab.ensure(&wanted).await.changed;
    assert!(
        again
            .iter()
            .all(|c| !c.contains("address") && !c.contains("route") && !c.contains("net/")),
        "the kernel held it: {again:?}"
    );
    let wire = lab.raw(&wanted, 0).await;
    let mac = wanted.ports[0].mac;
    wire.send(&to_servers(mac, &message(mac, SOLICIT, &[])));
    assert!(wire.next(|f| is_dhcp6(f, ADVERTISE)).is_some());
    let changed = lab.ensure(&plain).await.changed;
    assert!(
        changed.contains(&"no more DHCPv6 server".to_owned()),
        "{changed:?}"
    );
    assert_eq!(addresses(), Vec::<String>::new());
    lab.net.remove(wanted.id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_with_the_same_addresses_and_macs_are_answered_each_by_its_own() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let nets: Vec<DesiredNetwork> = (0..4u16)
        .map(|n| {
            let mut wanted = dual(1);
            wanted.ports[0].mac = Mac::local(0x66);
            wanted.ports[0].address6 = Some(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x100 + n));
            wanted
        })
        .collect();
    let mut wires = Vec::new();
    for wanted in &nets {
        lab.ensure(wanted).await;
        wires.push(lab.raw(wanted, 0).await);
    }
    let mac = Mac::local(0x66);
    for wire in &wires {
        wire.send(&to_servers(mac, &message(mac, SOLICIT, &[])));
        wire.send(&router_solicitation(mac, link_local(mac)));
    }
    for (wire, wanted) in wires.iter().zip(&nets) {
        let (mut answers, mut told) = (0, 0);
        while answers == 0 || told == 0 {
            let frame = wire
                .next(|f| dhcp6_reply(f).is_some() || is_advertisement(f))
                .expect("answers of its own");
            assert_eq!(frame[6..12], wanted.gateway_mac().octets(), "a foreign answer");
            match dhcp6_reply(&frame) {
                Some((_, message)) => {
                    assert_eq!(given(message), wanted.ports[0].address6);
                    answers += 1;
                }
                None => told += 1,
            }
        }
        assert_eq!(answers, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_host_answers_its_own_ports_under_one_name_and_nothing_of_it_crosses() {
    needs_namespaces!();
    let site = Site::new(2).await;
    let mut span = Span::new(NetworkMode::Nat, &[0, 1]);
    let six = dual(2);
    span.base.spec.ipv6 = six.spec.ipv6;
    for (port, like) in span.base.ports.iter_mut().zip(&six.ports) {
        port.address6 = like.address6;
    }
    site.ensure(&span).await;
    let tap = site.listen();
    let gateway = span.base.gateway_mac();
    for (n, port) in span.base.ports.iter().enumerate() {
        let wire = site.raw(&span, n).await;
        wire.send(&router_solicitation(port.mac, link_local(port.mac)));
        wire.send(&to_servers(port.mac, &message(port.mac, SOLICIT, &[])));
        let told = wire
            .next(|f| is_advertisement(f) && f[..6] == port.mac.octets())
            .expect("an advertisement");
        assert_eq!(told[6..12], gateway.octets());
        // The MTU is the one that fits between the hosts.
        assert!(
            told.windows(8).any(|w| w == [5, 1, 0, 0, 0, 0, 5, 0xaa]),
            "{told:?}"
        );
        wire.send(&to_servers(port.mac, &message(port.mac, SOLICIT, &[])));
        let frame = wire.next(|f| is_dhcp6(f, ADVERTISE)).expect("an ADVERTISE");
        let (_, answer) = dhcp6_reply(&frame).unwrap();
        assert_eq!(given(answer), port.address6);
        let id = server_id(&span.base);
        assert!(answer.windows(id.len()).any(|w| w == id));
    }
    site.settled(&tap).await;
    let crossed = tap.wrapped(span.vni);
    assert!(
        crossed.iter().all(|w| w.ethertype() != dhcp6_lab::IPV6),
        "{crossed:?}"
    );
}
