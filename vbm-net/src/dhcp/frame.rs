//! Ethernet frames with UDP over IPv4: read what a guest sent, build what it is sent.

use super::SERVER_PORT;
use pnet_packet::{
    MutablePacket, Packet,
    ethernet::{EtherTypes, EthernetPacket, MutableEthernetPacket},
    ip::IpNextHeaderProtocols,
    ipv4::{self, Ipv4Packet, MutableIpv4Packet},
    udp::{self, MutableUdpPacket, UdpPacket},
};
use std::net::Ipv4Addr;
use vbm_core::Mac;

/// The size of each header in bytes: no VLAN, no IP options.
const ETHERNET_BYTES: usize = 14;
const IPV4_BYTES: usize = 20;
const UDP_BYTES: usize = 8;
/// In 32-bit words.
const IPV4_HEADER_WORDS: u8 = 5;
const TTL_HOPS: u8 = 64;

/// What is of interest in a frame to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// The MAC it came from.
    pub source: Mac,
    /// The IP address it came from.
    pub from: Ipv4Addr,
    /// The IP address it was sent to.
    pub to: Ipv4Addr,
    /// The UDP payload.
    pub payload: &'a [u8],
}

/// Reads a frame; `None` for anything but an unfragmented UDP datagram to the server's port. Checksums are not checked: a
/// guest's frame may come with its checksum left to hardware that is not there.
pub fn parse(frame: &[u8]) -> Option<Datagram<'_>> {
    let ethernet = EthernetPacket::new(frame)?;
    if ethernet.get_ethertype() != EtherTypes::Ipv4 {
        return None;
    }
    let source = Mac::new(ethernet.get_source().octets());
    let ip_bytes = frame.get(ETHERNET_BYTES..)?;
    let ip = Ipv4Packet::new(ip_bytes)?;
    let (header, total) = (
        usize::from(ip.get_header_length()) * 4,
        usize::from(ip.get_total_length()),
    );
    let more_fragments = ip.get_flags() & ipv4::Ipv4Flags::MoreFragments != 0;
    if ip.get_version() != 4
        || header < IPV4_BYTES
        || more_fragments
        || ip.get_fragment_offset() != 0
        || ip.get_next_level_protocol() != IpNextHeaderProtocols::Udp
    {
        return None;
    }
    let udp_bytes = ip_bytes.get(header..total)?;
    let udp = UdpPacket::new(udp_bytes)?;
    if udp.get_destination() != SERVER_PORT {
        return None;
    }
    let payload = udp_bytes.get(UDP_BYTES..usize::from(udp.get_length()))?;
    Some(Datagram {
        source,
        from: ip.get_source(),
        to: ip.get_destination(),
        payload,
    })
}

/// Builds the frame of a reply, from the server's port, with full checksums. `None` if the payload is too long for IPv4.
pub fn build(from: (Mac, Ipv4Addr), to: (Mac, Ipv4Addr, u16), payload: &[u8]) -> Option<Vec<u8>> {
    let ((from_mac, from), (to_mac, to, to_port)) = (from, to);
    let udp_length = u16::try_from(UDP_BYTES + payload.len()).ok()?;
    let ip_length = udp_length.checked_add(u16::try_from(IPV4_BYTES).ok()?)?;
    let mut bytes = vec![0; ETHERNET_BYTES + usize::from(ip_length)];
    let mut ethernet = MutableEthernetPacket::new(&mut bytes)?;
    ethernet.set_source(from_mac.octets().into());
    ethernet.set_destination(to_mac.octets().into());
    ethernet.set_ethertype(EtherTypes::Ipv4);
    let mut ip = MutableIpv4Packet::new(ethernet.payload_mut())?;
    ip.set_version(4);
    ip.set_header_length(IPV4_HEADER_WORDS);
    ip.set_total_length(ip_length);
    ip.set_flags(ipv4::Ipv4Flags::DontFragment);
    ip.set_ttl(TTL_HOPS);
    ip.set_next_level_protocol(IpNextHeaderProtocols::Udp);
    ip.set_source(from);
    ip.set_destination(to);
    let checksum = ipv4::checksum(&ip.to_immutable());
    ip.set_checksum(checksum);
    let mut udp = MutableUdpPacket::new(ip.payload_mut())?;
    udp.set_source(SERVER_PORT);
    udp.set_destination(to_port);
    udp.set_length(udp_length);
    udp.set_payload(payload);
    let checksum = match udp::ipv4_checksum(&udp.to_immutable(), &from, &to) {
        // Zero would say that there is none (RFC 768).
        0 => u16::MAX,
        sum => sum,
    };
    udp.set_checksum(checksum);
    Some(bytes)
}

/// Whether the UDP checksum of a frame is there and right: for tests, and for those who look at the wire.
pub fn checksum_is_full(frame: &[u8]) -> bool {
    let Some(ip) = frame.get(ETHERNET_BYTES..).and_then(Ipv4Packet::new) else {
        return false;
    };
    let end = usize::from(ip.get_total_length());
    let Some(udp) = ip.packet().get(IPV4_BYTES..end).and_then(UdpPacket::new) else {
        return false;
    };
    let right = udp::ipv4_checksum(&udp, &ip.get_source(), &ip.get_destination());
    udp.get_checksum() != 0 && (udp.get_checksum() == right || (right == 0 && udp.get_checksum() == u16::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: Mac = Mac::new([2, 0x56, 0x42, 0, 0, 1]);
    const B: Mac = Mac::local(7);

    proptest! {
        #[test]
        fn every_reply_has_a_full_checksum_and_headers_of_the_right_length(payload in prop::collection::vec(any::<u8>(), 0..1472), to: u32) {
            let frame = build((A, [10, 0, 0, 1].into()), (B, to.into(), 68), &payload).unwrap();
            prop_assert_eq!(frame.len(), 42 + payload.len());
            prop_assert!(checksum_is_full(&frame));
            prop_assert_eq!(pnet_packet::util::checksum(&frame[14..34], 5), u16::from_be_bytes([frame[24], frame[25]]));
            prop_assert_eq!(&frame[42..], &payload[..]);
        }

        #[test]
        fn a_frame_to_the_server_is_read(payload in prop::collection::vec(any::<u8>(), 0..600), padding in 0usize..60) {
            let mut frame = build((B, [0, 0, 0, 0].into()), (A, [255; 4].into(), 68), &payload).unwrap();
            frame[36..38].copy_from_slice(&SERVER_PORT.to_be_bytes());
            frame.resize(frame.len() + padding, 0xaa);
            let read = parse(&frame).unwrap();
            prop_assert_eq!((read.source, read.to), (B, [255; 4].into()));
            prop_assert_eq!(read.payload, &payload[..]);
        }

        #[test]
        fn garbage_never_panics(frame in prop::collection::vec(any::<u8>(), 0..120), at in 0usize..60, byte: u8) {
            parse(&frame);
            checksum_is_full(&frame);
            let mut good = build((B, [0, 0, 0, 0].into()), (A, [255; 4].into(), 68), &frame).unwrap();
            let at = at.min(good.len() - 1);
            good[at] = byte;
            good.truncate(good.len() - at.min(good.len()));
            parse(&good);
            checksum_is_full(&good);
        }
    }

    #[test]
    fn a_payload_that_no_datagram_holds_is_refused() {
        assert_eq!(
            build((A, [1; 4].into()), (B, [2; 4].into(), 68), &[0; 65_535]),
            None
        );
    }
}
