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

/// IPv6 by hand.
mod six {
    use std::net::Ipv6Addr;

    pub(super) const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

    /// A packet of IPv6; `next` is what it carries, and at `sum_at` its checksum.
    pub(super) fn packet(
        from: Ipv6Addr,
        to: Ipv6Addr,
        next: u8,
        mut body: Vec<u8>,
        sum_at: usize,
    ) -> Vec<u8> {
        let mut pseudo = [from.octets(), to.octets()].concat();
        pseudo.extend((body.len() as u32).to_be_bytes());
        pseudo.extend([0, 0, 0, next]);
        pseudo.extend(&body);
        let sum = pnet_packet::util::checksum(&pseudo, usize::MAX);
        body[sum_at..sum_at + 2].copy_from_slice(&sum.to_be_bytes());
        let mut ip = vec![0x60, 0, 0, 0];
        ip.extend((body.len() as u16).to_be_bytes());
        ip.extend([next, 255]);
        ip.extend(from.octets());
        ip.extend(to.octets());
        [ip, body].concat()
    }

    pub(super) fn udp(from: (Ipv6Addr, u16), to: (Ipv6Addr, u16), text: &str) -> Vec<u8> {
        let mut body = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
        body.extend((8 + text.len() as u16).to_be_bytes());
        body.extend([0, 0]);
        body.extend(text.as_bytes());
        packet(from.0, to.0, 17, body, 6)
    }

    /// A message of ICMPv6: type, four bytes, and what follows; a neighbour's begins with its target.
    pub(super) fn icmp(from: Ipv6Addr, to: Ipv6Addr, kind: u8, more: &[u8]) -> Vec<u8> {
        let mut body = vec![kind, 0, 0, 0, 0, 0, 0, 0];
        body.extend(more);
        packet(from, to, 58, body, 2)
    }
}

/// Two wires whose ports have addresses of IPv6, and a third port that has none.
async fn dual() -> (Pair, [std::net::Ipv6Addr; 2]) {
    let lab = Lab::new().await;
    let mut wanted = network(NetworkMode::Nat, 3);
    open_port(&mut wanted, 1, &["any"]);
    let addresses: [std::net::Ipv6Addr; 2] = ["fd00::a".parse().unwrap(), "fd00::b".parse().unwrap()];
    // The one has it by a pair, the other as its own.
    wanted.spec.ipv6 = Some(vbm_core::Ipv6Spec::new("fd00::/64".parse().unwrap()).unwrap());
    wanted.ports[0].policy.pairs = vec![vbm_core::AddressPair::of(addresses[0].into())];
    wanted.ports[1].address6 = Some(addresses[1]);
    lab.ensure(&wanted).await;
    assert_eq!(lab.ensure(&wanted).await.changed, Vec::<String>::new());
    let (a, b) = (lab.raw(&wanted, 0).await, lab.raw(&wanted, 1).await);
    (
        Pair {
            _lab: lab,
            wanted,
            a,
            b,
        },
        addresses,
    )
}

const EVERYBODY6: Mac = Mac::new([0x33, 0x33, 0, 0, 0, 1]);

#[tokio::test(flavor = "multi_thread")]
async fn nobody_answers_for_a_neighbour_of_ipv6_but_that_neighbour() {
    needs_namespaces!();
    let (t, [mine, theirs]) = dual().await;
    let (me, b) = (t.end(0).0, t.end(1).0);
    let gateway: std::net::Ipv6Addr = "fd00::1".parse().unwrap();
    let link_local = |mac| vbm_net::model::link_local(mac);
    let target = |address: std::net::Ipv6Addr, mark: &str| {
        [&address.octets()[..], format!("mark:{mark}").as_bytes()].concat()
    };
    let nobody = std::net::Ipv6Addr::UNSPECIFIED;
    let solicited: std::net::Ipv6Addr = "ff02::1:ff00:b".parse().unwrap();
    let frames = [
        (
            me,
            six::icmp(mine, theirs, 136, &target(theirs, "an answer for a neighbour")),
        ),
        (
            me,
            six::icmp(
                mine,
                six::ALL_NODES,
                136,
                &target(gateway, "an answer for the gateway"),
            ),
        ),
        (
            me,
            six::icmp(
                theirs,
                six::ALL_NODES,
                136,
                &target(theirs, "an answer in a neighbour's name"),
            ),
        ),
        (
            me,
            six::icmp(
                theirs,
                solicited,
                135,
                &target(theirs, "a question in a neighbour's name"),
            ),
        ),
        (
            me,
            six::icmp(
                nobody,
                solicited,
                135,
                &target(theirs, "a claim of a neighbour's address"),
            ),
        ),
        (
            b,
            six::icmp(mine, theirs, 136, &target(mine, "an answer with a foreign MAC")),
        ),
        (
            me,
            six::icmp(link_local(me), six::ALL_NODES, 134, &target(mine, "a router")),
        ),
        (
            me,
            six::icmp(link_local(me), theirs, 134, &target(mine, "a router to one")),
        ),
        (
            me,
            six::icmp(link_local(me), theirs, 137, &target(mine, "a redirect")),
        ),
        (me, six::udp((mine, 547), (theirs, 546), "mark:a DHCPv6 server")),
        (
            me,
            six::udp((theirs, 7777), (theirs, 7777), "mark:a neighbour's address"),
        ),
        (
            me,
            six::udp((gateway, 7777), (theirs, 7777), "mark:an address of nobody"),
        ),
        (
            b,
            six::udp((mine, 7777), (theirs, 7777), "mark:a neighbour's MAC"),
        ),
        (
            me,
            six::udp(
                (mine, 7777),
                ("fd00::c".parse().unwrap(), 7777),
                "mark:to an address that B has not",
            ),
        ),
        (
            me,
            six::udp((mine, 7777), (six::ALL_NODES, 7777), "mark:to everybody"),
        ),
    ];
    for (mac, packet) in &frames {
        t.a.send(&ethernet(*mac, b, IPV6, packet));
        t.a.send(&ethernet(*mac, EVERYBODY6, IPV6, packet));
    }
    for (what, packet) in [
        (
            "a question",
            six::icmp(mine, solicited, 135, &target(theirs, "a question")),
        ),
        (
            "an answer",
            six::icmp(mine, theirs, 136, &target(mine, "an answer")),
        ),
        (
            "a claim",
            six::icmp(nobody, solicited, 135, &target(mine, "a claim")),
        ),
        (
            "a datagram",
            six::udp((mine, 7777), (theirs, 7777), "mark:a datagram"),
        ),
        (
            "from the link",
            six::udp((link_local(me), 7777), (theirs, 7777), "mark:from the link"),
        ),
    ] {
        t.a.send(&ethernet(me, b, IPV6, &packet));
        assert_eq!(t.b.next_mark(), what);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_in_pieces_is_no_router_either() {
    needs_namespaces!();
    let (t, [_, theirs]) = dual().await;
    let (me, b) = (t.end(0).0, t.end(1).0);
    let from = vbm_net::model::link_local(me);
    let whole = six::icmp(from, theirs, 134, b"0123456789012345mark:a router in two pieces");
    let body = &whole[40..];
    // The first piece holds an option alone, so that it does not tell what it is of (RFC 7113).
    let padding = [58, 0, 1, 4, 0, 0, 0, 0];
    for (at, more, piece) in [(0u16, 1u16, &padding[..]), (8, 0, body)] {
        let mut fragment = vec![60, 0];
        fragment.extend((at | more).to_be_bytes());
        fragment.extend([0, 0, 0, 9]);
        fragment.extend(piece);
        let mut ip = whole[..40].to_vec();
        ip[4..6].copy_from_slice(&(fragment.len() as u16).to_be_bytes());
        ip[6] = 44;
        t.a.send(&ethernet(me, b, IPV6, &[ip, fragment].concat()));
    }
    t.honest();
    assert_eq!(t.b.next_mark(), "honest");
}

/// One packet of IPv6 as two: what its body begins with, and the rest.
fn in_pieces(whole: &[u8], kind: u8, first: &[u8], rest: &[u8]) -> [Vec<u8>; 2] {
    let at = u16::try_from(first.len()).unwrap();
    [(1, first), (at, rest)].map(|(at_and_more, piece)| {
        let mut fragment = vec![kind, 0];
        fragment.extend(at_and_more.to_be_bytes());
        fragment.extend([0, 0, 0, kind]);
        fragment.extend(piece);
        let mut ip = whole[..40].to_vec();
        ip[4..6].copy_from_slice(&(fragment.len() as u16).to_be_bytes());
        ip[6] = 44;
        [ip, fragment].concat()
    })
}

/// RFC 6980: neighbours do not speak in pieces; the guard sees the first only, and rules behind it do not know whose the target is.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_in_pieces_for_a_neighbour_is_no_answer() {
    needs_namespaces!();
    let (t, [mine, theirs]) = dual().await;
    let (me, b) = (t.end(0).0, t.end(1).0);
    let padding = [58, 0, 1, 4, 0, 0, 0, 0];
    for (number, kind) in [(136, "answer"), (135, "question")] {
        let body = [
            &theirs.octets()[..],
            format!("mark:an {kind} in pieces").as_bytes(),
        ]
        .concat();
        let whole = six::icmp(mine, theirs, number, &body);
        let message = &whole[40..];
        // The target in the second piece; and the whole message there, behind options (RFC 7112).
        let told = in_pieces(&whole, 58, &message[..8], &message[8..]);
        let hidden = in_pieces(&whole, 60, &padding, message);
        for piece in told.iter().chain(&hidden) {
            t.a.send(&ethernet(me, b, IPV6, piece));
        }
        t.honest();
        assert_eq!(t.b.next_mark(), "honest");
    }
    // A datagram in pieces is heard.
    let whole = six::udp((mine, 7_777), (theirs, 7_777), "mark:a datagram in pieces");
    for piece in in_pieces(&whole, 17, &whole[40..48], &whole[48..]) {
        t.a.send(&ethernet(me, b, IPV6, &piece));
    }
    assert_eq!(t.b.next_mark(), "a datagram in pieces");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_may_use_the_addresses_that_it_was_allowed_and_hears_them() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let mut wanted = network(NetworkMode::Nat, 2);
    let virtual_mac = Mac::new([0, 0, 0x5e, 0, 1, 7]);
    for port in 0..2 {
        open_port(&mut wanted, port, &["any"]);
    }
    wanted.ports[0].policy.pairs = vec![
        vbm_core::AddressPair {
            address: "10.9.0.200/32".parse().unwrap(),
            mac: Some(virtual_mac),
        },
        vbm_core::AddressPair {
            address: "10.9.0.64/30".parse().unwrap(),
            mac: None,
        },
    ];
    lab.ensure(&wanted).await;
    assert_eq!(lab.ensure(&wanted).await.changed, Vec::<String>::new());
    let (a, b) = (lab.raw(&wanted, 0).await, lab.raw(&wanted, 1).await);
    let end = |i: usize| (wanted.ports[i].mac, wanted.ports[i].address);
    let (service, around) = (Ipv4Addr::new(10, 9, 0, 200), Ipv4Addr::new(10, 9, 0, 66));
    for (what, from) in [
        ("the service with the port's MAC", (end(0).0, service)),
        ("the port with the service's MAC", (virtual_mac, end(0).1)),
        ("an address beside", (end(0).0, Ipv4Addr::new(10, 9, 0, 68))),
    ] {
        a.send(&marked(from, end(1), what));
    }
    for (what, from) in [
        ("service", (virtual_mac, service)),
        ("around", (end(0).0, around)),
        ("own", end(0)),
    ] {
        a.send(&marked(from, end(1), what));
        assert_eq!(b.next_mark(), what);
        b.send(&marked(end(1), from, what));
        assert_eq!(a.next_mark(), what);
    }
    a.send(&ethernet(
        virtual_mac,
        BROADCAST,
        ARP,
        &arp(REPLY, (virtual_mac, service), end(1)),
    ));
    let announced = b
        .next(|f| f[12..14] == ARP.to_be_bytes())
        .expect("the service is announced");
    assert_eq!(announced[6..12], virtual_mac.octets());
}
