//! The packet socket of a DHCP server: bound to one interface, with a filter that lets only requests through.

use nix::sys::socket::sockopt;
use socket2::{Domain, SockFilter, Socket, Type};
use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

/// The most bytes of a frame that are read: more than any DHCP message of an Ethernet VM.
pub(crate) const FRAME_MAX_BYTES: usize = FRAME_MAX as usize;
pub(crate) const FRAME_MAX: u32 = 4_096;
/// What waits for us while we do not run, such as when every VM of a host boots at once: some 4,000 frames.
const QUEUE_BYTES: usize = 4 << 20;
const ETH_P_IP: u16 = 0x0800;

/// Classic BPF: IPv4, UDP, first fragment, destination port 67. Without it every frame of the bridge would wake us.
const REQUESTS_ONLY: [SockFilter; 11] = [
    SockFilter::new(0x28, 0, 0, 12),                        // ldh [12]: type
    SockFilter::new(0x15, 0, 8, 0x0800),                    // jeq IPv4, else drop
    SockFilter::new(0x30, 0, 0, 23),                        // ldb [23]: protocol
    SockFilter::new(0x15, 0, 6, 17),                        // jeq UDP, else drop
    SockFilter::new(0x28, 0, 0, 20),                        // ldh [20]: fragment offset
    SockFilter::new(0x45, 4, 0, 0x1fff),                    // jset: a later fragment, drop
    SockFilter::new(0xb1, 0, 0, 14),                        // ldxb 4*([14]&0xf): header length
    SockFilter::new(0x48, 0, 0, 16),                        // ldh [x+16]: destination port
    SockFilter::new(0x15, 0, 1, super::SERVER_PORT as u32), // jeq 67, else drop
    SockFilter::new(0x06, 0, 0, FRAME_MAX),                 // accept
    SockFilter::new(0x06, 0, 0, 0),                         // drop
];

/// Opens the socket in the namespace of the calling thread. It hears nothing before it is bound, so nothing
/// unfiltered is ever queued.
pub(crate) fn open(interface: u32) -> io::Result<OwnedFd> {
    open_for(interface, ETH_P_IP, &REQUESTS_ONLY)
}

/// The same for frames of another type (`ETH_P_*`), with another filter.
pub(crate) fn open_for(interface: u32, ethertype: u16, filter: &[SockFilter]) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::PACKET, Type::RAW.nonblocking().cloexec(), None)?;
    socket.attach_filter(filter)?;
    // Past the host's own limit, which holds some 200 frames. Without the right to that, what there is has to do.
    let queue = sockopt::RcvBufForce;
    if let Err(error) = nix::sys::socket::setsockopt(&socket, queue, &QUEUE_BYTES) {
        tracing::debug!(%error, "the queue of the DHCP server is as small as the host's limit");
    }
    bind(&socket, interface, ethertype)?;
    Ok(socket.into())
}

#[expect(unsafe_code, reason = "no safe crate makes a sockaddr_ll")]
fn bind(socket: &Socket, interface: u32, ethertype: u16) -> io::Result<()> {
    use nix::libc;
    let size = std::mem::size_of::<libc::sockaddr_ll>();
    // SAFETY: sockaddr_ll is plain integers, for which all zeroes is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
    address.sll_protocol = ethertype.to_be();
    address.sll_ifindex = i32::try_from(interface).map_err(io::Error::other)?;
    let length = libc::socklen_t::try_from(size).map_err(io::Error::other)?;
    // SAFETY: the pointer is to a live sockaddr_ll of just this length; the descriptor is open while `socket` lives.
    let done = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
