//! Transmit checksum offload of an interface, switched off: who reads a frame off a veth sees the checksum as the sender left it, and
//! the kernel leaves it half done while the interface claims to finish it.

use nix::{
    libc,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};
use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

/// `ETHTOOL_GTXCSUM` and `ETHTOOL_STXCSUM` (linux/ethtool.h).
const GET_TX_CHECKSUM: u32 = 0x16;
const SET_TX_CHECKSUM: u32 = 0x17;

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

mod ioctl {
    // SIOCETHTOOL (linux/sockios.h), whose argument is a struct ifreq that points to the command.
    nix::ioctl_readwrite_bad!(ethtool, 0x8946, nix::libc::ifreq);
}

/// Switches it off for an interface in the namespace of the calling thread. Returns whether it was on. Segmentation offload goes
/// with it: the kernel cannot have one without the other.
///
/// # Errors
/// `ENODEV` when there is no such interface; [`io::ErrorKind::Other`] when the kernel keeps it on.
pub(crate) fn tx_off(name: &str) -> io::Result<bool> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    if ask(&socket, name, GET_TX_CHECKSUM)? == 0 {
        return Ok(false);
    }
    ask(&socket, name, SET_TX_CHECKSUM)?;
    match ask(&socket, name, GET_TX_CHECKSUM)? {
        0 => Ok(true),
        _ => Err(io::Error::other("the kernel keeps transmit checksum offload on")),
    }
}

/// Sends a command whose value is 0; returns the value that the kernel left.
#[expect(unsafe_code, reason = "SIOCETHTOOL has no safe wrapper")]
fn ask(socket: &OwnedFd, name: &str, command: u32) -> io::Result<u32> {
    // SAFETY: ifreq is plain integers and bytes, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte stays zero: the name ends there.
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::try_from(from).map_err(io::Error::other)?;
    }
    let mut value = Value { command, data: 0 };
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the descriptor is open while `socket` lives, and both structs outlive the call; the two commands read and write one
    // `ethtool_value` and nothing behind it.
    unsafe { ioctl::ethtool(socket.as_raw_fd(), &raw mut request) }?;
    Ok(value.data)
}
