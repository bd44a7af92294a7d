//! What passes between hosts and what does not, frame by frame: sent by a port, and forged by a host.
//!
//! As in `ns_guard.rs`, each test sends what must not pass, then one honest frame, and looks at what arrives first.

#![allow(clippy::unwrap_used, reason = "a helper of a test that cannot go on panics")]
#![allow(clippy::cast_possible_truncation, reason = "test values are small")]

mod common;

use common::{
    OUTSIDE, eventually,
    packet::{BROADCAST, arp, dhcp, ethernet, mark, marked, to_server, udp},
    site::{Site, Span, VXLAN_PORT, at, wrap},
};
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use vbm_core::{Mac, NetworkMode};

const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const REQUEST: u16 = 1;
const REPLY: u16 = 2;
const DISCOVER: u8 = 1;
const NOBODY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const NO_MAC: Mac = Mac::new([0; 6]);
const ROUTER_ADVERTISEMENTS: Mac = Mac::new([0x33, 0x33, 0, 0, 0, 1]);

type End = (Mac, Ipv4Addr);

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_for_a_known_port_of_another_host_leaves() {
    needs_namespaces!();
    let site = Site::new(2).await;
    let span = Span::new(NetworkMode::Nat, &[0, 1]).open(1, &["any"]);
    site.ensure(&span).await;
    let tap = site.listen();
    let (a, b) = (site.raw(&span, 0).await, site.raw(&span, 1).await);
    let (me, far) = (span.end(0), span.end(1));
    let gateway = (span.base.gateway_mac(), span.base.spec.gateway);
    let known_mac = |ip| (far.0, ip);
    for (what, to) in [
        ("an unknown MAC", (Mac::local(0xfeed), far.1)),
        (
            "another address at a known MAC",
            known_mac(Ipv4Addr::new(10, 9, 0, 77)),
        ),
        ("the gateway's address at a known MAC", known_mac(gateway.1)),
        ("broadcast", (BROADCAST, Ipv4Addr::BROADCAST)),
        (
            "the subnet's broadcast",
            (BROADCAST, Ipv4Addr::new(10, 9, 0, 255)),
        ),
        ("a known address by broadcast", (BROADCAST, far.1)),
        (
            "multicast",
            (Mac::new([1, 0, 0x5e, 0, 0, 0xfb]), Ipv4Addr::new(224, 0, 0, 251)),
        ),
    ] {
        a.send(&marked(me, to, what));
    }
    for (op, to, target) in [
        (REQUEST, BROADCAST, (NO_MAC, Ipv4Addr::new(10, 9, 0, 77))),
        (REQUEST, BROADCAST, (NO_MAC, far.1)),
        (REQUEST, BROADCAST, (NO_MAC, me.1)),
        (REPLY, far.0, far),
        (REQUEST, far.0, (NO_MAC, far.1)),
    ] {
        a.send(&ethernet(me.0, to, ARP, &arp(op, me, target)));
    }
    a.send(&to_server(me.0, NOBODY, &dhcp(me.0, DISCOVER, NOBODY, &[])));
    for (from, to) in [(68, 67), (67, 68), (9, 67), (9, 68), (68, 9)] {
        a.send(&ethernet(
            me.0,
            far.0,
            IPV4,
            &udp((me.1, from), (far.1, to), b"mark:dhcp"),
        ));
    }
    for to in [far.0, ROUTER_ADVERTISEMENTS] {
        a.send(&ethernet(me.0, to, IPV6, b"mark:IPv6, padded to some length"));
    }
    a.send(&ethernet(me.0, far.0, 0x8100, &[0, 5, 8, 0]));
    a.send(&marked(me, far, "honest"));
    assert_eq!(b.next_mark(), "honest");
    site.settled(&tap).await;
    let marks: Vec<_> = tap.wrapped(span.vni).iter().map(|w| mark(&w.frame)).collect();
    let honest = |m: &Option<String>| m.as_deref() == Some("honest");
    assert!(!marks.is_empty() && marks.iter().all(honest), "{marks:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn arp_for_a_port_of_another_host_is_answered_here_although_that_host_is_gone() {
    needs_namespaces!();
    let site = Site::new(1).await;
    let span = Span::new(NetworkMode::Nat, &[0, 1]);
    site.ensure(&span).await;
    let a = site.raw(&span, 0).await;
    let (me, far) = (span.end(0), span.end(1));
    let gateway = (span.base.gateway_mac(), span.base.spec.gateway);
    for known in [far, gateway] {
        let ask = arp(REQUEST, me, (NO_MAC, known.1));
        a.send(&ethernet(me.0, BROADCAST, ARP, &ask));
        let is_reply = |f: &[u8]| f[12..14] == ARP.to_be_bytes() && f[21] == REPLY as u8;
        let heard = a.next(is_reply).expect("an answer");
        assert_eq!(heard[22..32], [&known.0.octets()[..], &known.1.octets()].concat());
    }
}

/// Sends wrapped frames to host 0 as host 1 does.
struct Forger {
    socket: UdpSocket,
    vni: u32,
}

impl Forger {
    fn new(site: &Site, vni: u32) -> Self {
        let socket = site.labs[1].host.run(|| UdpSocket::bind((at(1), 0)).unwrap());
        Self { socket, vni }
    }
    fn send(&self, frame: &[u8]) {
        let datagram = wrap(self.vni, frame);
        self.socket.send_to(&datagram, (at(0), VXLAN_PORT)).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_can_bring_in_no_frame_but_those_of_its_own_ports() {
    needs_namespaces!();
    let site = Site::new(2).await;
    let span = Span::new(NetworkMode::Nat, &[0, 1, 0, 1]).open(0, &["any"]);
    site.ensure(&span).await;
    let a = site.raw(&span, 0).await;
    let (me, far) = (span.end(0), span.end(1));
    let (near, second) = (span.end(2), span.end(3));
    let gateway = (span.base.gateway_mac(), span.base.spec.gateway);
    let forger = Forger::new(&site, span.vni);
    let forged: [(&str, End, End); 9] = [
        ("MAC of nobody", (Mac::local(0xbad), far.1), me),
        ("address of nobody", (far.0, Ipv4Addr::new(10, 9, 0, 99)), me),
        ("one port's MAC, another's address", (far.0, second.1), me),
        ("a port of this host", near, me),
        ("the port itself", me, me),
        ("the gateway", gateway, me),
        ("the gateway's address", (far.0, gateway.1), me),
        ("to everybody", far, (BROADCAST, me.1)),
        ("to another's address", far, (me.0, near.1)),
    ];
    for (what, from, to) in forged {
        forger.send(&marked(from, to, what));
    }
    forger.send(&ethernet(
        far.0,
        BROADCAST,
        ARP,
        &arp(REQUEST, far, (NO_MAC, me.1)),
    ));
    forger.send(&ethernet(far.0, me.0, ARP, &arp(REPLY, (far.0, gateway.1), me)));
    for (from, to, ip) in [(67, 68, me.1), (67, 68, Ipv4Addr::BROADCAST), (68, 67, me.1)] {
        let body = udp((far.1, from), (ip, to), b"mark:dhcp");
        forger.send(&ethernet(far.0, me.0, IPV4, &body));
    }
    for to in [me.0, ROUTER_ADVERTISEMENTS] {
        forger.send(&ethernet(far.0, to, IPV6, b"mark:IPv6, padded to some length"));
    }
    forger.send(&ethernet(far.0, me.0, 0x8100, &[0, 5, 8, 0]));
    Forger::new(&site, span.vni + 1).send(&marked(far, me, "of another network"));
    forger.send(&marked(far, me, "honest"));
    let first = a.next(|_| true).expect("a frame");
    assert_eq!(mark(&first).as_deref(), Some("honest"), "{first:02x?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_of_another_host_does_not_use_this_hosts_gateway() {
    needs_namespaces!();
    let site = Site::new(2).await;
    let span = Span::new(NetworkMode::Nat, &[0, 1]);
    site.ensure(&span).await;
    let a = site.raw(&span, 0).await;
    let (me, far) = (span.end(0), span.end(1));
    let gateway = span.base.gateway_mac();
    let world = site.labs[0]
        .outside
        .run(|| UdpSocket::bind((OUTSIDE, 7777)).unwrap());
    world.set_read_timeout(Some(common::DEADLINE)).unwrap();
    let forger = Forger::new(&site, span.vni);
    let out = |from: End, what: &str| marked(from, (gateway, OUTSIDE), what);
    forger.send(&out(far, "by another host"));
    forger.send(&out(me, "in the name of a port of this host"));
    a.send(&out(me, "honest"));
    let mut buffer = [0; 100];
    let n = world.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..n], b"mark:honest");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_cannot_speak_to_a_host_as_hosts_do() {
    needs_namespaces!();
    let site = Site::new(2).await;
    let victim = Span::new(NetworkMode::Nat, &[0, 1]).open(1, &["any"]);
    site.ensure(&victim).await;
    let b = site.raw(&victim, 1).await;
    // A VM of another network on host 0, which reaches host 1 by NAT, in the name of host 0.
    let own = Span::new(NetworkMode::Nat, &[0]);
    site.labs[0].ensure(&own.on(0)).await;
    let evil = site.raw(&own, 0).await;
    let (me, gateway) = (own.end(0), own.base.gateway_mac());
    let tap = site.listen();
    let frame = marked(victim.end(0), victim.end(1), "from another network");
    let send = |port: u16, body: &[u8]| {
        evil.send(&ethernet(
            me.0,
            gateway,
            IPV4,
            &udp((me.1, 4_000), (at(1), port), body),
        ));
    };
    send(VXLAN_PORT, &wrap(victim.vni, &frame));
    send(VXLAN_PORT + 1, b"mark:it does reach the host");
    eventually("the datagram that is allowed", || {
        tap.frames()
            .iter()
            .any(|f| mark(f).as_deref() == Some("it does reach the host"))
    })
    .await;
    assert!(tap.wrapped(victim.vni).is_empty());
    site.raw(&victim, 0)
        .await
        .send(&marked(victim.end(0), victim.end(1), "honest"));
    assert_eq!(b.next_mark(), "honest");
}

/// A datagram of IPv6 with its checksum, to port 7777.
fn udp6(from: Ipv6Addr, to: Ipv6Addr, mark: &str) -> Vec<u8> {
    let payload = format!("mark:{mark}");
    let length = (8 + payload.len()) as u16;
    let mut udp = [7777u16, 7777, length, 0].map(u16::to_be_bytes).concat();
    udp.extend(payload.as_bytes());
    let protocol = pnet_packet::ip::IpNextHeaderProtocols::Udp;
    let sum = pnet_packet::util::ipv6_checksum(&udp, 3, &[], &from, &to, protocol);
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    ip6(17, 64, (from, to), &udp)
}

fn ip6(next: u8, hops: u8, (from, to): (Ipv6Addr, Ipv6Addr), payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, hops]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(payload);
    packet
}

#[tokio::test(flavor = "multi_thread")]
async fn of_ipv6_a_host_can_bring_in_what_its_own_ports_say_and_nothing_of_neighbours_and_routers() {
    needs_namespaces!();
    let site = Site::new(2).await;
    let mut span = Span::new(NetworkMode::Nat, &[0, 1, 0, 1]).open(0, &["any"]);
    span.base.spec.ipv6 = Some(vbm_core::Ipv6Spec::new("fd00:9::/64".parse().unwrap()).unwrap());
    let six: Vec<Ipv6Addr> = ["a", "b", "c", "d"]
        .map(|last| format!("fd00:9::{last}").parse().unwrap())
        .into();
    for (port, address) in span.base.ports.iter_mut().zip(&six) {
        port.address6 = Some(*address);
    }
    site.ensure(&span).await;
    let a = site.raw(&span, 0).await;
    let mac = |port: usize| span.base.ports[port].mac;
    let gateway = span.base.gateway_mac();
    let forger = Forger::new(&site, span.vni);
    let link_local: Ipv6Addr = "fe80::1".parse().unwrap();
    for (what, from, to) in [
        ("MAC of nobody", (Mac::local(0xbad), six[1]), (mac(0), six[0])),
        (
            "address of nobody",
            (mac(1), "fd00:9::99".parse().unwrap()),
            (mac(0), six[0]),
        ),
        ("another's address", (mac(1), six[3]), (mac(0), six[0])),
        ("a port of this host", (mac(2), six[2]), (mac(0), six[0])),
        (
            "the gateway",
            (gateway, "fd00:9::1".parse().unwrap()),
            (mac(0), six[0]),
        ),
        ("the gateway of the link", (mac(1), link_local), (mac(0), six[0])),
        ("to another's address", (mac(1), six[1]), (mac(0), six[2])),
        ("to everybody", (mac(1), six[1]), (ROUTER_ADVERTISEMENTS, six[0])),
    ] {
        forger.send(&ethernet(from.0, to.0, IPV6, &udp6(from.1, to.1, what)));
    }
    for kind in [133, 134, 135, 136, 137] {
        let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
        message.extend(six[3].octets());
        message.extend(b"mark:neighbours");
        let protocol = pnet_packet::ip::IpNextHeaderProtocols::Icmpv6;
        let sum = pnet_packet::util::ipv6_checksum(&message, 1, &[], &six[1], &six[0], protocol);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        let packet = ip6(58, 255, (six[1], six[0]), &message);
        forger.send(&ethernet(mac(1), mac(0), IPV6, &packet));
    }
    forger.send(&ethernet(mac(1), mac(0), IPV6, &udp6(six[1], six[0], "honest")));
    // What its own kernel would say is not there: the guest is a bare wire.
    let first = a.next(|f| mark(f).is_some()).expect("a frame");
    assert_eq!(mark(&first).as_deref(), Some("honest"), "{first:02x?}");
}
