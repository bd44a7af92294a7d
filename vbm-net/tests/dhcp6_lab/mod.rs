//! What tests of DHCPv6 share: the server alone in the laboratory of DHCPv4, and frames by hand.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::cast_possible_truncation, reason = "test values are small")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use crate::common;
use std::{net::Ipv6Addr, time::Duration};
use vbm_core::Mac;
use vbm_net::model::link_local;

pub(crate) const IPV6: u16 = 0x86dd;
pub(crate) const ALL_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
pub(crate) const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
pub(crate) const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
pub(crate) const GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// The MAC that goes with a multicast address (RFC 2464 section 7).
pub(crate) fn multicast_mac(to: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = to.octets();
    Mac::new([0x33, 0x33, a, b, c, d])
}

/// A frame of IPv6; `next` is what it carries, and at `sum_at` of it stands its checksum.
pub(crate) fn frame(
    (mac, from): (Mac, Ipv6Addr),
    (to_mac, to): (Mac, Ipv6Addr),
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
    common::packet::ethernet(mac, to_mac, IPV6, &[ip, body].concat())
}

pub(crate) fn udp(from: (Mac, Ipv6Addr, u16), to: (Mac, Ipv6Addr, u16), payload: &[u8]) -> Vec<u8> {
    let mut body = [from.2.to_be_bytes(), to.2.to_be_bytes()].concat();
    body.extend((8 + payload.len() as u16).to_be_bytes());
    body.extend([0, 0]);
    body.extend(payload);
    frame((from.0, from.1), (to.0, to.1), 17, body, 6)
}

/// A message of ICMPv6: its type, four bytes of nothing, and what follows.
pub(crate) fn icmp(from: (Mac, Ipv6Addr), to: (Mac, Ipv6Addr), kind: u8, more: &[u8]) -> Vec<u8> {
    let mut body = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    body.extend(more);
    frame(from, to, 58, body, 2)
}

pub(crate) fn router_solicitation(mac: Mac, from: Ipv6Addr) -> Vec<u8> {
    let own = [&[1, 1][..], &mac.octets()].concat();
    let options: &[u8] = if from.is_unspecified() { &[] } else { &own };
    icmp(
        (mac, from),
        (multicast_mac(ALL_ROUTERS), ALL_ROUTERS),
        133,
        options,
    )
}

/// A message of a client, with its DUID and one association without addresses.
pub(crate) fn message(mac: Mac, kind: u8, more: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, 1, 2, 3, 0, 1, 0, 10, 0, 3, 0, 1];
    message.extend(mac.octets());
    if kind != 11 {
        message.extend([0, 3, 0, 12, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
    message.extend(more);
    message
}

/// The frame of a client to all servers.
pub(crate) fn to_servers(mac: Mac, payload: &[u8]) -> Vec<u8> {
    udp(
        (mac, link_local(mac), 546),
        (multicast_mac(ALL_SERVERS), ALL_SERVERS, 547),
        payload,
    )
}

/// The type of DHCPv6 message in a frame to a client, with the message.
pub(crate) fn dhcp6_reply(frame: &[u8]) -> Option<(u8, &[u8])> {
    let (head, payload) = frame.split_at_checked(62)?;
    let is_ours =
        head[12..14] == IPV6.to_be_bytes() && head[20] == 17 && head[56..58] == 546u16.to_be_bytes();
    is_ours.then(|| payload.first().map(|kind| (*kind, payload)))?
}

/// Whether a frame is a router's advertisement.
pub(crate) fn is_advertisement(frame: &[u8]) -> bool {
    frame.len() > 54 && frame[12..14] == IPV6.to_be_bytes() && frame[20] == 58 && frame[54] == 134
}

/// The address in the first association of a reply.
pub(crate) fn given(message: &[u8]) -> Option<Ipv6Addr> {
    let at = message.windows(4).position(|w| w == [0, 5, 0, 24])?;
    let octets: [u8; 16] = message.get(at + 4..at + 20)?.try_into().ok()?;
    Some(octets.into())
}

/// How long a client may take for a step: some wait up to 10 s before they begin, or begin again.
pub(crate) const CLIENT_WITHIN: Duration = Duration::from_secs(45);
