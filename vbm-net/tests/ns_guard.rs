//! The guard with real frames: what a port may not pretend to be, and what it does not hear.
//!
//! Each test sends forbidden frames, then one honest frame, and looks at what arrives first: nothing has to be waited for
//! that does not come.

#![allow(clippy::unwrap_used, reason = "a helper of a test that cannot go on panics")]
#![allow(clippy::cast_possible_truncation, reason = "test values are small")]

mod common;

use common::{
    Lab, network, open_port,
    packet::{BROADCAST, Wire, arp, ethernet, mark, marked, udp},
};
use std::net::Ipv4Addr;
use vbm_core::{Mac, NetworkMode};
use vbm_net::DesiredNetwork;

const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const VLAN: u16 = 0x8100;
const REQUEST: u16 = 1;
const REPLY: u16 = 2;

struct Pair {
    _lab: Lab,
    wanted: DesiredNetwork,
    a: Wire,
    b: Wire,
}

type End = (Mac, Ipv4Addr);

impl Pair {
    /// Two wires on one network; B takes all that its rules can admit.
    async fn new() -> Self {
        let lab = Lab::new().await;
        let mut wanted = network(NetworkMode::Nat, 3);
        open_port(&mut wanted, 1, &["any"]);
        lab.ensure(&wanted).await;
        let (a, b) = (lab.raw(&wanted, 0).await, lab.raw(&wanted, 1).await);
        Self {
            _lab: lab,
            wanted,
            a,
            b,
        }
    }
    fn end(&self, port: usize) -> End {
        (self.wanted.ports[port].mac, self.wanted.ports[port].address)
    }
    /// The honest frame.
    fn honest(&self) {
        self.a.send(&marked(self.end(0), self.end(1), "honest"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_source_does_not_pass() {
    needs_namespaces!();
    let t = Pair::new().await;
    let (me, b, third) = (t.end(0), t.end(1), t.end(2));
    let foreign = Ipv4Addr::new(192, 0, 2, 77);
    for (what, from) in [
        ("MAC of a neighbour", (third.0, me.1)),
        ("MAC of nobody", (Mac::local(0xbad), me.1)),
        ("MAC of the gateway", (t.wanted.gateway_mac(), me.1)),
        ("address of a neighbour", (me.0, third.1)),
        ("address of the gateway", (me.0, t.wanted.spec.gateway)),
        ("address of another network", (me.0, foreign)),
        ("no address", (me.0, Ipv4Addr::UNSPECIFIED)),
        ("loopback", (me.0, Ipv4Addr::LOCALHOST)),
    ] {
        t.a.send(&marked(from, b, what));
    }
    t.honest();
    assert_eq!(t.b.next_mark(), "honest");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_arp_does_not_pass_but_a_probe_does() {
    needs_namespaces!();
    let t = Pair::new().await;
    let (me, b, third) = (t.end(0), t.end(1), t.end(2));
    let nobody = Ipv4Addr::UNSPECIFIED;
    for (op, sender) in [
        (REPLY, (me.0, third.1)),
        (REPLY, (me.0, t.wanted.spec.gateway)),
        (REPLY, (third.0, me.1)),
        (REPLY, (me.0, nobody)),
        (REQUEST, (me.0, t.wanted.spec.gateway)),
        (REQUEST, (t.wanted.gateway_mac(), me.1)),
    ] {
        t.a.send(&ethernet(me.0, BROADCAST, ARP, &arp(op, sender, b)));
    }
    let probe = ethernet(
        me.0,
        BROADCAST,
        ARP,
        &arp(REQUEST, (me.0, nobody), (Mac::new([0; 6]), me.1)),
    );
    let announce = ethernet(me.0, BROADCAST, ARP, &arp(REQUEST, me, (Mac::new([0; 6]), me.1)));
    let is_arp = |f: &[u8]| f[12..14] == ARP.to_be_bytes() && f[6..12] == me.0.octets();
    for honest in [probe, announce] {
        t.a.send(&honest);
        let heard = t.b.next(is_arp).expect("an ARP frame");
        assert_eq!(heard[..42], honest[..42]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_but_arp_and_ipv4_passes_wrapped_or_not() {
    needs_namespaces!();
    let t = Pair::new().await;
    let (me, b) = (t.end(0), t.end(1));
    let inner = |what: &str| udp((me.1, 7777), (b.1, 7777), format!("mark:{what}").as_bytes());
    let tagged = |what: &str, inner_type: u16| {
        let mut body = vec![0, 5];
        body.extend(inner_type.to_be_bytes());
        body.extend(inner(what));
        body
    };
    t.a.send(&ethernet(me.0, b.0, IPV6, &inner("IPv6")));
    t.a.send(&ethernet(me.0, b.0, VLAN, &tagged("IPv4 in a VLAN", IPV4)));
    t.a.send(&ethernet(
        me.0,
        b.0,
        0x88a8,
        &tagged("IPv4 in a provider's VLAN", IPV4),
    ));
    t.a.send(&ethernet(me.0, b.0, VLAN, &tagged("ARP in a VLAN", ARP)));
    t.a.send(&ethernet(
        me.0,
        b.0,
        0x8864,
        &[&[0x11, 0, 0, 1, 0, 60, 0, 0x21][..], &inner("PPPoE")].concat(),
    ));
    t.a.send(&ethernet(
        me.0,
        Mac::new([1, 0x80, 0xc2, 0, 0, 0]),
        38,
        &inner("a bridge's hello"),
    ));
    // 33:33:0:0:0:1 is where router advertisements go.
    t.a.send(&ethernet(
        me.0,
        Mac::new([0x33, 0x33, 0, 0, 0, 1]),
        IPV6,
        &inner("router advertisement"),
    ));
    t.honest();
    assert_eq!(t.b.next_mark(), "honest");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dhcp_server_on_a_port_is_not_heard() {
    needs_namespaces!();
    let t = Pair::new().await;
    let (me, b) = (t.end(0), t.end(1));
    for (mac, to) in [
        (b.0, b.1),
        (BROADCAST, Ipv4Addr::BROADCAST),
        (b.0, Ipv4Addr::BROADCAST),
    ] {
        t.a.send(&ethernet(
            me.0,
            mac,
            IPV4,
            &udp((me.1, 67), (to, 68), b"mark:rogue offer"),
        ));
    }
    t.honest();
    assert_eq!(t.b.next_mark(), "honest");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_hears_nothing_that_is_not_addressed_to_it() {
    needs_namespaces!();
    let t = Pair::new().await;
    let (me, b, third) = (t.end(0), t.end(1), t.end(2));
    // To B's MAC with another's address, to MACs that the bridge floods, to everybody.
    for (what, mac, ip) in [
        ("a neighbour's address at my MAC", b.0, third.1),
        (
            "a stranger's address at my MAC",
            b.0,
            Ipv4Addr::new(198, 51, 100, 1),
        ),
        ("an unknown MAC", Mac::local(0xfeed), third.1),
        ("broadcast", BROADCAST, Ipv4Addr::BROADCAST),
        ("subnet broadcast", BROADCAST, Ipv4Addr::new(10, 9, 0, 255)),
        (
            "multicast",
            Mac::new([1, 0, 0x5e, 0, 0, 0xfb]),
            Ipv4Addr::new(224, 0, 0, 251),
        ),
    ] {
        t.a.send(&marked(me, (mac, ip), what));
    }
    t.honest();
    assert_eq!(t.b.next_mark(), "honest");
    let _marks = mark(&[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fragmented_datagram_cannot_slip_past_the_rules() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let mut wanted = network(NetworkMode::Nat, 2);
    open_port(&mut wanted, 1, &["udp/7777"]);
    lab.ensure(&wanted).await;
    let (a, b) = (lab.raw(&wanted, 0).await, lab.raw(&wanted, 1).await);
    let end = |i: usize| (wanted.ports[i].mac, wanted.ports[i].address);
    let whole = udp(
        (end(0).1, 1),
        (end(1).1, 9999),
        b"mark:in two pieces, to a port that is shut",
    );
    for (first, last, more, at) in [(0usize, 16usize, 0x20u8, 0u8), (16, whole.len() - 20, 0, 2)] {
        let mut piece = whole[..20].to_vec();
        piece.extend(&whole[20 + first..20 + last]);
        let total = (piece.len() as u16).to_be_bytes();
        piece[2..4].copy_from_slice(&total);
        piece[6..8].copy_from_slice(&[more, at]);
        piece[10..12].copy_from_slice(&[0, 0]);
        let sum = pnet_packet::util::checksum(&piece[..20], 5);
        piece[10..12].copy_from_slice(&sum.to_be_bytes());
        a.send(&ethernet(end(0).0, end(1).0, IPV4, &piece));
    }
    a.send(&marked(end(0), end(1), "honest"));
    assert_eq!(b.next_mark(), "honest");
}
