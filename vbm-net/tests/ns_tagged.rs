//! Frames with a VLAN tag: no port may send one and none hears one, whichever form its guard has.
//!
//! A guest takes a tag with the number 0 as none at all, and what filters bridged packets does not look behind a tag: were one let
//! through, it would pass every security group. As in `ns_guard`: forbidden frames, then an honest one, and a look at what comes first.

#![allow(clippy::unwrap_used, reason = "a helper of a test that cannot go on panics")]

mod common;

use common::{
    Lab, group_of, network, open_port,
    packet::{BROADCAST, Wire, arp, ethernet, marked, udp},
};
use std::net::{Ipv4Addr, Ipv6Addr};
use vbm_core::{AddressPair, Ipv6Spec, Mac, NetworkMode};
use vbm_net::DesiredNetwork;

const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
/// Behind each of these a packet stands: type and number of each tag, the outer first.
const TAGS: [&[(u16, u16)]; 7] = [
    &[(0x8100, 0)],
    &[(0x8100, 5)],
    &[(0x8100, 0xe000)],
    &[(0x88a8, 0)],
    &[(0x88a8, 5)],
    &[(0x88a8, 0), (0x8100, 0)],
    &[(0x8100, 0), (0x8100, 0)],
];
/// Open at the receiver; marks go there.
const OPEN: u16 = 7_777;
const SHUT: u16 = 9_999;

fn tagged(from: Mac, to: Mac, tags: &[(u16, u16)], kind: u16, packet: &[u8]) -> Vec<u8> {
    let mut types = tags.iter().map(|(kind, _)| *kind).chain([kind]);
    let mut body = Vec::new();
    let first = types.next().unwrap();
    for ((_, number), next) in tags.iter().zip(types) {
        body.extend(number.to_be_bytes());
        body.extend(next.to_be_bytes());
    }
    body.extend(packet);
    ethernet(from, to, first, &body)
}

fn udp6(from: Ipv6Addr, to: Ipv6Addr, port: u16, mark: &str) -> Vec<u8> {
    let text = format!("mark:{mark}");
    let length = u16::try_from(8 + text.len()).unwrap().to_be_bytes();
    let mut body = [OPEN.to_be_bytes(), port.to_be_bytes(), length, [0, 0]].concat();
    body.extend(text.as_bytes());
    let pseudo = [
        &from.octets()[..],
        &to.octets(),
        &[0, 0],
        &length,
        &[0, 0, 0, 17],
        &body,
    ]
    .concat();
    let sum = pnet_packet::util::checksum(&pseudo, usize::MAX);
    body[6..8].copy_from_slice(&sum.to_be_bytes());
    let head = [&[0x60, 0, 0, 0][..], &length, &[17, 64]].concat();
    [&head[..], &from.octets(), &to.octets(), &body].concat()
}

/// A network with a port that has a pair, one with an address of IPv6, a plain one; and one of both families that hears `OPEN` alone.
fn dual() -> DesiredNetwork {
    let mut wanted = network(NetworkMode::Nat, 4);
    wanted.spec.ipv6 = Some(Ipv6Spec::new("fd00::/64".parse().unwrap()).unwrap());
    wanted.ports[0].policy.pairs = vec![AddressPair::of("10.9.0.200".parse().unwrap())];
    for (port, address) in [(1, "fd00::b"), (3, "fd00::d")] {
        wanted.ports[port].address6 = Some(address.parse().unwrap());
    }
    open_port(&mut wanted, 3, &[&format!("udp/{OPEN}")]);
    wanted
}

fn end(wanted: &DesiredNetwork, port: usize) -> (Mac, Ipv4Addr) {
    (wanted.ports[port].mac, wanted.ports[port].address)
}

/// All that one could hide behind a tag, from one end to another.
fn hidden(wanted: &DesiredNetwork, from: usize, tags: &[(u16, u16)]) -> Vec<Vec<u8>> {
    let ((mac, me), (their_mac, they)) = (end(wanted, from), end(wanted, 3));
    let mut frames = Vec::new();
    for port in [OPEN, SHUT] {
        let mark = format!("port {from} by {tags:x?} to {port}");
        let packet = udp((me, OPEN), (they, port), format!("mark:{mark}").as_bytes());
        for to in [their_mac, BROADCAST] {
            frames.push(tagged(mac, to, tags, IPV4, &packet));
        }
        if let Some((from, to)) = wanted.ports[from].address6.zip(wanted.ports[3].address6) {
            let packet = udp6(from, to, port, &format!("{mark} of IPv6"));
            frames.push(tagged(mac, their_mac, tags, IPV6, &packet));
        }
    }
    let mut question = arp(1, (mac, me), (Mac::new([0; 6]), they));
    question.extend(format!("mark:ARP of port {from} by {tags:x?}").as_bytes());
    frames.push(tagged(mac, BROADCAST, tags, ARP, &question));
    frames
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_passes_behind_a_tag_from_one_port_to_another() {
    needs_namespaces!();
    let (lab, wanted) = (Lab::new().await, dual());
    lab.ensure(&wanted).await;
    assert_eq!(lab.ensure(&wanted).await.changed, Vec::<String>::new());
    let receiver = lab.raw(&wanted, 3).await;
    for from in 0..3 {
        let wire = lab.raw(&wanted, from).await;
        for tags in TAGS {
            for frame in hidden(&wanted, from, tags) {
                wire.send(&frame);
            }
            wire.send(&marked(end(&wanted, from), end(&wanted, 3), "honest"));
            assert_eq!(receiver.next_mark(), "honest");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_leaves_behind_a_tag_where_the_way_out_is_shut() {
    needs_namespaces!();
    let (lab, mut wanted) = (Lab::new().await, dual());
    group_of(&mut wanted, 1, &[&format!("egress:udp/{OPEN}")], &[0, 1, 2]);
    wanted.groups[0].spec.egress_closed = true;
    lab.ensure(&wanted).await;
    let world = Wire::on(&lab.outside, "eth0");
    let gateway = wanted.gateway_mac();
    for from in 0..3 {
        let (wire, (mac, me)) = (lab.raw(&wanted, from).await, end(&wanted, from));
        for tags in TAGS {
            for port in [OPEN, SHUT] {
                let mark = format!("mark:port {from} by {tags:x?} to {port}");
                let packet = udp((me, OPEN), (common::OUTSIDE, port), mark.as_bytes());
                wire.send(&tagged(mac, gateway, tags, IPV4, &packet));
            }
            wire.send(&marked((mac, me), (gateway, common::OUTSIDE), "honest"));
            assert_eq!(world.next_mark(), "honest");
        }
    }
}

/// The guard of what comes to a port, alone: a link is let in whose frames nobody else judges.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_with_a_tag_is_brought_to_a_port_whoever_sent_it() {
    needs_namespaces!();
    let (lab, wanted) = (Lab::new().await, dual());
    lab.ensure(&wanted).await;
    let receiver = lab.raw(&wanted, 3).await;
    let inside = lab.inside(wanted.id);
    let far = common::Ns::new("vbmt-v-");
    common::ip(&format!(
        "-n {inside} link add stray type veth peer name eth0 netns {}",
        far.0
    ));
    common::ip(&format!("-n {inside} link set stray master br0 up"));
    far.ip("link set eth0 up");
    common::sh(
        "ip",
        &[
            "netns",
            "exec",
            &inside,
            "nft",
            "add element bridge vbm in { \"stray\" : accept }",
        ],
    );
    let wire = Wire::on(&far, "eth0");
    let honest = || marked(end(&wanted, 0), end(&wanted, 3), "honest");
    common::eventually("the bridge forwards for the new link", || {
        common::ip(&format!("-n {inside} -d link show stray")).contains("state forwarding")
    })
    .await;
    for tags in TAGS {
        for frame in hidden(&wanted, 1, tags) {
            wire.send(&frame);
        }
        wire.send(&honest());
        assert_eq!(receiver.next_mark(), "honest");
    }
}
