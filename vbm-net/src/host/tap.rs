//! Taps: made by opening `/dev/net/tun` inside a namespace. They live as long as somebody holds the descriptor.

use nix::libc;
use std::{
    fs::OpenOptions,
    io,
    os::fd::{AsRawFd, OwnedFd},
};

const DEVICE: &str = "/dev/net/tun";

mod ioctl {
    // TUNSETIFF (linux/if_tun.h): _IOW('T', 202, int), whose argument is a struct ifreq.
    nix::ioctl_write_ptr_bad!(tun_set_iff, 0x4004_54ca, nix::libc::ifreq);
}

/// Makes the tap in the namespace of the calling thread: no packet information, virtio headers on.
///
/// # Errors
/// `EBUSY` when somebody holds a tap of that name.
#[expect(unsafe_code, reason = "TUNSETIFF has no safe wrapper")]
pub(crate) fn open(name: &str) -> io::Result<OwnedFd> {
    let file = OpenOptions::new().read(true).write(true).open(DEVICE)?;
    // SAFETY: ifreq is plain integers and bytes, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte stays zero: the name ends there.
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::try_from(from).map_err(io::Error::other)?;
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open while `file` lives, and the pointer is to a live ifreq, which is what TUNSETIFF reads.
    unsafe { ioctl::tun_set_iff(file.as_raw_fd(), &raw const request) }?;
    Ok(file.into())
}
