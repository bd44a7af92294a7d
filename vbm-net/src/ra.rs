//! Router advertisements (RFC 4861 section 4.2, RFC 8106): rendered, and questions for them checked. Pure.
//!
//! ```text
//!   Ethernet 33:33:00:00:00:01 | IPv6 fe80::1 -> ff02::1, hop limit 255 | ICMPv6 134 | head
//!                                             | our MAC | MTU | prefix ... | RDNSS | DNSSL
//! ```
//!
//! When they are sent is decided in [`schedule`]; [`crate::dhcp6`] sends them.

pub mod schedule;

use crate::dhcp::options::wire_name;
use ipnet::Ipv6Net;
use std::{net::Ipv6Addr, time::Duration};
use vbm_core::Mac;

/// How long a prefix is told to hold: as long as RFC 4861 section 6.2.1 has it. What guests know of the link outlives an agent that is
/// away.
pub const PREFIX_LIFETIME: Duration = Duration::from_secs(2_592_000);
/// How long DNS servers and domains are told to hold: three of the longest intervals (RFC 8106 section 5.1).
pub const DNS_LIFETIME: Duration = Duration::from_secs(1_800);

/// ICMPv6 types (RFC 4861 sections 4.1, 4.2).
const SOLICITATION: u8 = 133;
const ADVERTISEMENT: u8 = 134;
/// The option that holds the sender's MAC (RFC 4861 section 4.6.1).
const SOURCE_MAC: u8 = 1;
/// What a message about neighbours must arrive with: no router forwarded it.
const HOP_LIMIT: u8 = 255;
const ICMPV6: u8 = 58;
/// All hosts of a link (RFC 4291 section 2.7.1).
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: Mac = Mac::new([0x33, 0x33, 0, 0, 0, 1]);
/// Where a frame's IPv6 payload begins.
const IPV6_AT: usize = 14;
const ICMP_AT: usize = IPV6_AT + 40;
/// Options count in these.
const OPTION_UNIT_BYTES: usize = 8;

/// What a router says of itself and its link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advertisement {
    /// Its MAC.
    pub mac: Mac,
    /// Its link-local address.
    pub address: Ipv6Addr,
    /// For how long it is a default router; zero: it is none.
    pub lifetime: Duration,
    /// Whether addresses are given by DHCPv6 (M).
    pub managed: bool,
    /// Whether other settings are (O).
    pub other: bool,
    /// The MTU in bytes; 0: not told.
    pub mtu: u16,
    /// The prefixes of the link.
    pub prefixes: Vec<Prefix>,
    /// DNS servers, and for how long.
    pub dns: Vec<Ipv6Addr>,
    /// Domains to search names in, for as long.
    pub search: Vec<String>,
    /// How long DNS servers and domains hold.
    pub dns_lifetime: Duration,
}

/// A prefix of the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// Its addresses.
    pub net: Ipv6Net,
    /// Whether hosts make addresses of it themselves (A). Only of a /64.
    pub autonomous: bool,
    /// How long its addresses hold.
    pub valid: Duration,
    /// How long they are used for new connections; not longer than `valid`.
    pub preferred: Duration,
}

/// The frame that says it to all hosts of the link.
pub fn render(ad: &Advertisement) -> Vec<u8> {
    render_to(ad, ALL_NODES_MAC, ALL_NODES)
}

/// The frame that says it to one host, at its address or at [`ALL_NODES`].
pub fn render_to(ad: &Advertisement, mac: Mac, to: Ipv6Addr) -> Vec<u8> {
    let mut message = vec![ADVERTISEMENT, 0, 0, 0, 64];
    message.push((u8::from(ad.managed) << 7) | (u8::from(ad.other) << 6));
    let lifetime = u16::try_from(ad.lifetime.as_secs()).unwrap_or(u16::MAX);
    message.extend(lifetime.to_be_bytes());
    // Reachable and retransmission time: not said by this router.
    message.extend([0; 8]);
    message.extend([1, 1]);
    message.extend(ad.mac.octets());
    if ad.mtu != 0 {
        message.extend([5, 1, 0, 0]);
        message.extend(u32::from(ad.mtu).to_be_bytes());
    }
    ad.prefixes.iter().for_each(|p| prefix(&mut message, p));
    let hold = seconds(ad.dns_lifetime);
    if !ad.dns.is_empty() {
        let servers = ad.dns.iter().flat_map(Ipv6Addr::octets).collect();
        option(&mut message, 25, hold, servers);
    }
    let names: Vec<u8> = ad.search.iter().filter_map(|n| wire_name(n)).flatten().collect();
    if !names.is_empty() {
        option(&mut message, 31, hold, names);
    }
    frame((ad.mac, ad.address), (mac, to), &message)
}

fn prefix(message: &mut Vec<u8>, prefix: &Prefix) {
    let autonomous = prefix.autonomous && prefix.net.prefix_len() == 64;
    // L: the prefix is on the link.
    message.extend([3, 4, prefix.net.prefix_len(), 0x80 | (u8::from(autonomous) << 6)]);
    message.extend(seconds(prefix.valid).to_be_bytes());
    message.extend(seconds(prefix.preferred.min(prefix.valid)).to_be_bytes());
    message.extend([0; 4]);
    message.extend(prefix.net.network().octets());
}

/// RDNSS and DNSSL: a lifetime, then data up to a whole unit. What does not fit the length is left out.
fn option(message: &mut Vec<u8>, kind: u8, lifetime: u32, mut data: Vec<u8>) {
    data.resize(data.len().next_multiple_of(OPTION_UNIT_BYTES), 0);
    let Ok(units) = u8::try_from(1 + data.len() / OPTION_UNIT_BYTES) else {
        return;
    };
    message.extend([kind, units, 0, 0]);
    message.extend(lifetime.to_be_bytes());
    message.append(&mut data);
}

fn seconds(span: Duration) -> u32 {
    u32::try_from(span.as_secs()).unwrap_or(u32::MAX)
}

fn frame((mac, from): (Mac, Ipv6Addr), (to_mac, to): (Mac, Ipv6Addr), message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
    let mut frame = Vec::with_capacity(ICMP_AT + message.len());
    frame.extend(to_mac.octets());
    frame.extend(mac.octets());
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    frame.extend(length.to_be_bytes());
    frame.extend([ICMPV6, HOP_LIMIT]);
    frame.extend(from.octets());
    frame.extend(to.octets());
    let sum = checksum(from, to, message);
    for (at, byte) in message.iter().enumerate() {
        frame.push(match at {
            2 => sum.to_be_bytes()[0],
            3 => sum.to_be_bytes()[1],
            _ => *byte,
        });
    }
    frame
}

/// Of ICMPv6, with its pseudo-header (RFC 8200 section 8.1). The message's own field is zero.
fn checksum(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> u16 {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    let head = [
        &from.octets()[..],
        &to.octets(),
        &length.to_be_bytes(),
        &[0, 0, 0, ICMPV6],
    ]
    .concat();
    let words = head.chunks(2).chain(message.chunks(2));
    let mut sum: u64 = words
        .map(|w| {
            (u64::from(w.first().copied().unwrap_or(0)) << 8) | u64::from(w.get(1).copied().unwrap_or(0))
        })
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

/// Who asks for an advertisement by this frame, by MAC and address; the address may be `::`. `None` for any other frame, and one that is
/// not whole, not from the link, or whose checksum is wrong (RFC 4861 section 6.1.1).
pub fn solicitor(frame: &[u8]) -> Option<(Mac, Ipv6Addr)> {
    if !solicits(frame)? {
        return None;
    }
    let mac = <[u8; 6]>::try_from(frame.get(6..12)?).ok()?;
    let from = <[u8; 16]>::try_from(frame.get(IPV6_AT + 8..IPV6_AT + 24)?).ok()?;
    Some((Mac::new(mac), from.into()))
}

fn solicits(frame: &[u8]) -> Option<bool> {
    let head = frame.get(..ICMP_AT)?;
    let address =
        |at: usize| -> Option<Ipv6Addr> { Some(<[u8; 16]>::try_from(head.get(at..at + 16)?).ok()?.into()) };
    let length = usize::from(u16::from_be_bytes(
        head.get(IPV6_AT + 4..IPV6_AT + 6)?.try_into().ok()?,
    ));
    let mut message = frame.get(ICMP_AT..ICMP_AT + length)?.to_vec();
    let (from, to) = (address(IPV6_AT + 8)?, address(IPV6_AT + 24)?);
    let is_ipv6 = head.get(12..14)? == [0x86, 0xdd] && head.get(IPV6_AT)? >> 4 == 6;
    let told = u16::from_be_bytes([*message.get(2)?, *message.get(3)?]);
    message.get_mut(2..4)?.fill(0);
    let right = checksum(from, to, &message) == told;
    let plain = message.len() >= 8 && message.first()? == &SOLICITATION && message.get(1)? == &0;
    Some(
        is_ipv6
            && head.get(IPV6_AT + 6..IPV6_AT + 8)? == [ICMPV6, HOP_LIMIT]
            && plain
            && right
            && !from.is_multicast()
            && options_are_whole(message.get(8..)?, !from.is_unspecified()),
    )
}

/// No option of length zero, none that runs past the end, and no MAC of one who has no address: such a message is dropped.
fn options_are_whole(mut options: &[u8], has_address: bool) -> bool {
    while let [kind, units, ..] = options {
        let length = usize::from(*units) * OPTION_UNIT_BYTES;
        match options.get(length..) {
            Some(rest) if length > 0 && (has_address || *kind != SOURCE_MAC) => options = rest,
            _ => return false,
        }
    }
    options.is_empty()
}

/// Gives a frame the checksum that it should have.
#[cfg(test)]
pub(crate) fn mend(frame: &mut [u8]) {
    let address = |at: usize| {
        let bytes = frame.get(at..at + 16).and_then(|b| <[u8; 16]>::try_from(b).ok());
        bytes.map(Ipv6Addr::from)
    };
    if let (Some(from), Some(to)) = (address(IPV6_AT + 8), address(IPV6_AT + 24))
        && frame.len() >= ICMP_AT + 4
    {
        let length = usize::from(u16::from_be_bytes([frame[IPV6_AT + 4], frame[IPV6_AT + 5]]));
        let end = frame.len().min(ICMP_AT + length);
        let Some(message) = frame.get_mut(ICMP_AT..end).filter(|m| m.len() >= 4) else {
            return;
        };
        message[2..4].fill(0);
        let sum = checksum(from, to, message).to_be_bytes();
        message[2..4].copy_from_slice(&sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::link_local;
    use proptest::prelude::*;

    const MAC: Mac = Mac::new([0x02, 0x56, 0x42, 1, 2, 3]);

    fn ad() -> Advertisement {
        Advertisement {
            mac: MAC,
            address: link_local(MAC),
            lifetime: Duration::from_secs(1_800),
            managed: true,
            other: false,
            mtu: 1_450,
            prefixes: vec![Prefix {
                net: "2001:db8:1::/64".parse().unwrap(),
                autonomous: true,
                valid: Duration::from_secs(3_600),
                preferred: Duration::from_secs(7_200),
            }],
            dns: vec!["2001:db8:1::1".parse().unwrap()],
            search: vec!["lab.example".into(), "..".into()],
            dns_lifetime: Duration::from_secs(600),
        }
    }

    /// Another way to the same sum: over the whole, with the field in place, it is zero.
    fn sum_is_right(frame: &[u8]) -> bool {
        let length = frame.len() - ICMP_AT;
        let mut all = frame[IPV6_AT + 8..ICMP_AT].to_vec();
        all.extend((length as u64).to_be_bytes()[4..].to_vec());
        all.extend([0, 0, 0, 58]);
        all.extend(&frame[ICMP_AT..]);
        pnet_packet::util::checksum(&all, usize::MAX) == 0
    }

    #[test]
    fn an_advertisement_is_as_the_rfcs_write_it() {
        let frame = render(&ad());
        assert_eq!(frame[..6], [0x33, 0x33, 0, 0, 0, 1]);
        assert_eq!(frame[20..22], [58, 255]);
        let mut expected = vec![
            134, 0, frame[56], frame[57], 64, 0x80, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0,
        ];
        expected.extend([1, 1, 2, 0x56, 0x42, 1, 2, 3, 5, 1, 0, 0, 0, 0, 5, 0xaa]);
        expected.extend([3, 4, 64, 0xc0, 0, 0, 14, 16, 0, 0, 14, 16, 0, 0, 0, 0]);
        expected.extend([0x20, 1, 13, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend([25, 3, 0, 0, 0, 0, 2, 88]);
        expected.extend([0x20, 1, 13, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        expected.extend([31, 3, 0, 0, 0, 0, 2, 88]);
        expected.extend(b"\x03lab\x07example\x00\0\0\0");
        assert_eq!(frame[ICMP_AT..], expected);
        assert!(sum_is_right(&frame));
        assert_eq!(
            usize::from(u16::from_be_bytes([frame[18], frame[19]])),
            expected.len()
        );
    }

    #[test]
    fn one_host_is_told_the_same_at_its_own_address() {
        let (all, one) = (
            render(&ad()),
            render_to(&ad(), Mac::local(7), link_local(Mac::local(7))),
        );
        assert_eq!(one[..6], Mac::local(7).octets());
        assert_eq!(one[38..54], link_local(Mac::local(7)).octets());
        assert_eq!(one[58..], all[58..]);
        assert!(sum_is_right(&one));
    }

    /// A solicitation made from an advertisement's frame.
    fn solicitation(options: &[u8]) -> Vec<u8> {
        let mut message = vec![SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
        message.extend(options);
        let mac = Mac::local(7);
        frame((mac, link_local(mac)), (ALL_NODES_MAC, ALL_NODES), &message)
    }

    fn is_solicitation(frame: &[u8]) -> bool {
        solicitor(frame).is_some()
    }

    #[test]
    fn who_asks_is_known_by_mac_and_address() {
        let mac = Mac::local(7);
        assert_eq!(solicitor(&solicitation(&[])), Some((mac, link_local(mac))));
        let from = |options: &[u8]| {
            let message = [&[SOLICITATION, 0, 0, 0, 0, 0, 0, 0], options].concat();
            frame((mac, Ipv6Addr::UNSPECIFIED), (ALL_NODES_MAC, ALL_NODES), &message)
        };
        assert_eq!(solicitor(&from(&[])), Some((mac, Ipv6Addr::UNSPECIFIED)));
        assert_eq!(
            solicitor(&from(&[1, 1, 2, 0, 0, 0, 0, 7])),
            None,
            "a MAC without an address"
        );
    }

    #[test]
    fn a_solicitation_is_heard_only_whole_and_from_the_link() {
        assert!(is_solicitation(&solicitation(&[])));
        assert!(is_solicitation(&solicitation(&[1, 1, 2, 0, 0, 0, 0, 7])));
        assert!(
            !is_solicitation(&solicitation(&[1, 0, 2, 0, 0, 0, 0, 7])),
            "an option of no length"
        );
        assert!(
            !is_solicitation(&solicitation(&[1, 2, 2, 0, 0, 0, 0, 7])),
            "one that runs over"
        );
        assert!(!is_solicitation(&render(&ad())));
        let good = solicitation(&[]);
        for at in [12, 14, 20, 21, 25, 54, 55, 56, 58] {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert!(!is_solicitation(&bad), "byte {at}");
        }
        for length in 0..good.len() {
            assert!(!is_solicitation(&good[..length]));
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), options in prop::collection::vec(any::<u8>(), 0..40)) {
            is_solicitation(&bytes);
            is_solicitation(&solicitation(&options));
        }
    }
}
