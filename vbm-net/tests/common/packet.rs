//! Frames by hand: a wire that is a tap fd, with what one needs to lie on it.

use nix::{
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use pnet_packet::{Packet, ethernet::EthernetPacket, ipv4::Ipv4Packet, udp::UdpPacket, util::checksum};
use std::{
    fs::OpenOptions,
    net::Ipv4Addr,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};
use vbm_core::Mac;

/// The header before each frame, all zero: nothing left to offload.
const VNET_HDR: usize = 10;
pub(crate) const BROADCAST: Mac = Mac::new([0xff; 6]);

nix::ioctl_write_ptr_bad!(tun_set_iff, 0x4004_54ca, libc::ifreq);

/// A tap in the namespace of this thread.
#[allow(unsafe_code, reason = "TUNSETIFF has no safe wrapper")]
pub(crate) fn open_tap(name: &str) -> OwnedFd {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .unwrap();
    // SAFETY: ifreq is plain integers and bytes.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: the descriptor is open and the pointer is to a live ifreq.
    unsafe { tun_set_iff(file.as_raw_fd(), &raw const request) }.unwrap();
    file.into()
}

/// A socket in the namespace of this thread that hears and sends whole frames: on one link, or hears all.
#[allow(unsafe_code, reason = "no safe crate makes a sockaddr_ll")]
pub(crate) fn open_raw(link: Option<&str>) -> OwnedFd {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::PACKET, Type::RAW, None).unwrap();
    // SAFETY: sockaddr_ll is plain integers, for which all zeroes is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = link.map_or(0, |l| nix::net::if_::if_nametoindex(l).unwrap() as i32);
    let length = std::mem::size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the pointer is to a live sockaddr_ll of just this length, and the descriptor is open.
    let done = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    // Nothing is lost while the test's threads wait for a processor.
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &(64 << 20)).unwrap();
    socket.into()
}

/// A guest that is nothing but its wire.
pub(crate) struct Wire {
    fd: OwnedFd,
    /// The bytes before each frame.
    header: usize,
}

impl Wire {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self { fd, header: VNET_HDR }
    }
    /// On a link by its name, without anything before the frames.
    pub(crate) fn on(ns: &super::Ns, link: &str) -> Self {
        let link = link.to_owned();
        Self {
            fd: ns.run(move || open_raw(Some(&link))),
            header: 0,
        }
    }
    pub(crate) fn send(&self, frame: &[u8]) {
        let mut all = vec![0; self.header];
        all.extend(frame);
        nix::unistd::write(&self.fd, &all).unwrap();
    }
    /// The next frame that is wanted; others are passed over. None at the deadline.
    pub(crate) fn next(&self, mut wanted: impl FnMut(&[u8]) -> bool) -> Option<Vec<u8>> {
        let until = std::time::SystemTime::now() + super::DEADLINE;
        let mut buffer = vec![0; 70_000];
        while std::time::SystemTime::now() < until {
            let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
            if poll(&mut fds, PollTimeout::from(100u8)).unwrap() == 0 {
                continue;
            }
            let n = nix::unistd::read(&self.fd, &mut buffer).unwrap();
            if wanted(&buffer[self.header..n]) {
                return Some(buffer[self.header..n].to_vec());
            }
        }
        None
    }
    /// The mark (payload) of the next of our UDP datagrams.
    pub(crate) fn next_mark(&self) -> String {
        self.next(|f| mark(f).is_some())
            .and_then(|f| mark(&f))
            .unwrap_or_else(|| "nothing".into())
    }
}

pub(crate) fn ethernet(from: Mac, to: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [to.octets(), from.octets()].concat();
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A UDP datagram over IPv4, without a UDP checksum.
pub(crate) fn udp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), payload: &[u8]) -> Vec<u8> {
    let total = (28 + payload.len()) as u16;
    let mut ip = vec![0x45, 0];
    ip.extend(total.to_be_bytes());
    ip.extend([0, 1, 0x40, 0, 64, 17, 0, 0]);
    ip.extend(from.0.octets());
    ip.extend(to.0.octets());
    let sum = checksum(&ip, 5);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    ip.extend(from.1.to_be_bytes());
    ip.extend(to.1.to_be_bytes());
    ip.extend((8 + payload.len() as u16).to_be_bytes());
    ip.extend([0, 0]);
    ip.extend(payload);
    ip
}

/// A datagram to port 7777 whose payload is `mark`.
pub(crate) fn marked(from: (Mac, Ipv4Addr), to: (Mac, Ipv4Addr), mark: &str) -> Vec<u8> {
    ethernet(
        from.0,
        to.0,
        0x0800,
        &udp((from.1, 7777), (to.1, 7777), format!("mark:{mark}").as_bytes()),
    )
}

/// The mark of a frame, whatever it is wrapped in.
pub(crate) fn mark(frame: &[u8]) -> Option<String> {
    let at = frame.windows(5).position(|w| w == b"mark:")?;
    Some(
        String::from_utf8_lossy(&frame[at + 5..])
            .trim_end_matches('\0')
            .to_owned(),
    )
}

pub(crate) fn arp(op: u16, from: (Mac, Ipv4Addr), to: (Mac, Ipv4Addr)) -> Vec<u8> {
    let mut body = vec![0, 1, 8, 0, 6, 4];
    body.extend(op.to_be_bytes());
    body.extend(from.0.octets());
    body.extend(from.1.octets());
    body.extend(to.0.octets());
    body.extend(to.1.octets());
    body
}

/// A DHCP message of a client.
pub(crate) fn dhcp(mac: Mac, kind: u8, ciaddr: Ipv4Addr, options: &[u8]) -> Vec<u8> {
    let mut m = vec![0u8; 240];
    m[..4].copy_from_slice(&[1, 1, 6, 0]);
    m[4..8].copy_from_slice(&[9, 8, 7, 6]);
    m[12..16].copy_from_slice(&ciaddr.octets());
    m[28..34].copy_from_slice(&mac.octets());
    m[236..].copy_from_slice(&[99, 130, 83, 99]);
    m.extend([53, 1, kind]);
    m.extend(options);
    m.push(255);
    m
}

/// A frame from a client to the DHCP server, by broadcast.
pub(crate) fn to_server(source: Mac, from: Ipv4Addr, message: &[u8]) -> Vec<u8> {
    ethernet(
        source,
        BROADCAST,
        0x0800,
        &udp((from, 68), (Ipv4Addr::BROADCAST, 67), message),
    )
}

/// The DHCP message in a frame to a client's port.
pub(crate) fn dhcp_reply(frame: &[u8]) -> Option<Vec<u8>> {
    let ethernet = EthernetPacket::new(frame)?;
    let ip = Ipv4Packet::new(ethernet.payload())?;
    let udp = UdpPacket::new(ip.payload())?;
    (ethernet.get_ethertype().0 == 0x0800 && udp.get_destination() == 68).then(|| udp.payload().to_vec())
}
