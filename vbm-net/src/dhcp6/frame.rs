//! Ethernet frames with UDP over IPv6: read what a guest sent, build what it is sent.

use super::{CLIENT_PORT, SERVER_PORT};
use pnet_packet::{
    MutablePacket,
    ethernet::{EtherTypes, EthernetPacket, MutableEthernetPacket},
    ip::IpNextHeaderProtocols,
    ipv6::{Ipv6Packet, MutableIpv6Packet},
    udp::{self, MutableUdpPacket, UdpPacket},
};
use std::net::Ipv6Addr;
use vbm_core::Mac;

/// The size of each header in bytes: no VLAN, no extension headers.
const ETHERNET_BYTES: usize = 14;
const IPV6_BYTES: usize = 40;
const UDP_BYTES: usize = 8;
const HOP_LIMIT: u8 = 64;

/// What is of interest in a frame to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// The MAC it came from.
    pub source: Mac,
    /// The address it came from.
    pub from: Ipv6Addr,
    /// The address it was sent to.
    pub to: Ipv6Addr,
    /// The UDP payload.
    pub payload: &'a [u8],
}

/// Reads a frame; `None` for anything but a UDP datagram to the server's port that is whole and has no extension headers. Checksums
/// are not checked: a guest's frame may come with its checksum left to hardware that is not there.
pub fn parse(frame: &[u8]) -> Option<Datagram<'_>> {
    let ethernet = EthernetPacket::new(frame)?;
    if ethernet.get_ethertype() != EtherTypes::Ipv6 {
        return None;
    }
    let ip_bytes = frame.get(ETHERNET_BYTES..)?;
    let ip = Ipv6Packet::new(ip_bytes)?;
    if ip.get_version() != 6 || ip.get_next_header() != IpNextHeaderProtocols::Udp {
        return None;
    }
    let udp_bytes = ip_bytes.get(IPV6_BYTES..IPV6_BYTES + usize::from(ip.get_payload_length()))?;
    let udp = UdpPacket::new(udp_bytes)?;
    if udp.get_destination() != SERVER_PORT {
        return None;
    }
    Some(Datagram {
        source: Mac::new(ethernet.get_source().octets()),
        from: ip.get_source(),
        to: ip.get_destination(),
        payload: udp_bytes.get(UDP_BYTES..usize::from(udp.get_length()))?,
    })
}

/// Builds the frame of a reply, from the server's port to the client's, with a full checksum. `None` if the payload is too long for UDP.
pub fn build(from: (Mac, Ipv6Addr), to: (Mac, Ipv6Addr), payload: &[u8]) -> Option<Vec<u8>> {
    whole((from.0, from.1, SERVER_PORT), (to.0, to.1, CLIENT_PORT), payload)
}

/// The same between any two ports.
pub(super) fn whole(from: (Mac, Ipv6Addr, u16), to: (Mac, Ipv6Addr, u16), payload: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(UDP_BYTES + payload.len()).ok()?;
    let mut bytes = vec![0; ETHERNET_BYTES + IPV6_BYTES + usize::from(length)];
    let mut ethernet = MutableEthernetPacket::new(&mut bytes)?;
    ethernet.set_source(from.0.octets().into());
    ethernet.set_destination(to.0.octets().into());
    ethernet.set_ethertype(EtherTypes::Ipv6);
    let mut ip = MutableIpv6Packet::new(ethernet.payload_mut())?;
    ip.set_version(6);
    ip.set_payload_length(length);
    ip.set_next_header(IpNextHeaderProtocols::Udp);
    ip.set_hop_limit(HOP_LIMIT);
    ip.set_source(from.1);
    ip.set_destination(to.1);
    let mut udp = MutableUdpPacket::new(ip.payload_mut())?;
    udp.set_source(from.2);
    udp.set_destination(to.2);
    udp.set_length(length);
    udp.set_payload(payload);
    let checksum = match udp::ipv6_checksum(&udp.to_immutable(), &from.1, &to.1) {
        // Zero would say that there is none, and IPv6 wants one (RFC 8200 section 8.1).
        0 => u16::MAX,
        sum => sum,
    };
    udp.set_checksum(checksum);
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::link_local;
    use proptest::prelude::*;

    const A: Mac = Mac::new([2, 0x56, 0x42, 0, 0, 1]);
    const B: Mac = Mac::local(7);

    /// By another way than the one it was made: over the pseudo-header and all of it the sum is zero.
    fn sum_is_right(frame: &[u8]) -> bool {
        let mut all = frame[22..54].to_vec();
        all.extend(((frame.len() - 54) as u64).to_be_bytes());
        all.extend([0, 0, 0, 17]);
        all.extend(&frame[54..]);
        pnet_packet::util::checksum(&all, usize::MAX) == 0
    }

    proptest! {
        #[test]
        fn every_reply_has_a_full_checksum_and_headers_of_the_right_length(payload in prop::collection::vec(any::<u8>(), 0..1400), to: u128) {
            let frame = build((A, link_local(A)), (B, to.into()), &payload).unwrap();
            prop_assert_eq!(frame.len(), 62 + payload.len());
            prop_assert!(sum_is_right(&frame));
            prop_assert_eq!(&frame[54..58], &[2, 35, 2, 34]);
            prop_assert!(frame[60..62] != [0, 0]);
            prop_assert_eq!(&frame[62..], &payload[..]);
        }

        #[test]
        fn a_frame_to_the_server_is_read(payload in prop::collection::vec(any::<u8>(), 0..600), padding in 0usize..60) {
            let to = super::super::ALL_SERVERS;
            let mut frame = whole((B, link_local(B), CLIENT_PORT), (A, to, SERVER_PORT), &payload).unwrap();
            frame.resize(frame.len() + padding, 0xaa);
            let read = parse(&frame).unwrap();
            prop_assert_eq!((read.source, read.from, read.to), (B, link_local(B), to));
            prop_assert_eq!(read.payload, &payload[..]);
        }

        #[test]
        fn garbage_never_panics(frame in prop::collection::vec(any::<u8>(), 0..120), at in 0usize..70, byte: u8) {
            parse(&frame);
            let mut good = whole((B, link_local(B), CLIENT_PORT), (A, link_local(A), SERVER_PORT), &frame).unwrap();
            let at = at.min(good.len() - 1);
            good[at] = byte;
            parse(&good);
            good.truncate(good.len() - at);
            parse(&good);
        }
    }

    #[test]
    fn a_payload_that_no_datagram_holds_is_refused() {
        assert_eq!(build((A, link_local(A)), (B, link_local(B)), &[0; 65_535]), None);
    }
}
