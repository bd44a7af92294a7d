//! The packet socket of the server: bound to one interface, with a filter that lets only clients' messages and questions for routers
//! through.

use crate::dhcp::socket::{FRAME_MAX, open_for};
use socket2::SockFilter;
use std::{io, os::fd::OwnedFd};

const ETH_P_IPV6: u16 = 0x86dd;

/// Classic BPF: IPv6; UDP to port 547, or a router solicitation. Both stand right behind the fixed header.
const OURS_ONLY: [SockFilter; 11] = [
    SockFilter::new(0x28, 0, 0, 12),                        // ldh [12]: type
    SockFilter::new(0x15, 0, 8, ETH_P_IPV6 as u32),         // jeq IPv6, else drop
    SockFilter::new(0x30, 0, 0, 20),                        // ldb [20]: next header
    SockFilter::new(0x15, 0, 2, 17),                        // jeq UDP, else is it ICMPv6?
    SockFilter::new(0x28, 0, 0, 56),                        // ldh [56]: destination port
    SockFilter::new(0x15, 3, 4, super::SERVER_PORT as u32), // jeq 547: accept, else drop
    SockFilter::new(0x15, 0, 3, 58),                        // jeq ICMPv6, else drop
    SockFilter::new(0x30, 0, 0, 54),                        // ldb [54]: its type
    SockFilter::new(0x15, 0, 1, 133),                       // jeq router solicitation, else drop
    SockFilter::new(0x06, 0, 0, FRAME_MAX),                 // accept
    SockFilter::new(0x06, 0, 0, 0),                         // drop
];

/// Opens the socket in the namespace of the calling thread.
pub(crate) fn open(interface: u32) -> io::Result<OwnedFd> {
    open_for(interface, ETH_P_IPV6, &OURS_ONLY)
}
