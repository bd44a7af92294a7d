//! Questions to nf_tables over netlink, without a program: one socket, one message, its attributes.

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, sendto, setsockopt, socket,
    sockopt,
};
use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

/// `NLM_F_REQUEST` (linux/netlink.h).
pub(super) const REQUEST: u16 = 1;
/// Of a netlink message's header, and of nfnetlink's behind it, in bytes.
pub(super) const HEADER_BYTES: usize = 16;
pub(super) const NF_HEADER_BYTES: usize = 4;
/// Of the type of an attribute, without its flags.
const TYPE_MASK: u16 = 0x3fff;
/// The kernel answers at once; this is for the case that it does not.
const ANSWER_MAX_SECONDS: i64 = 2;

pub(super) fn open() -> io::Result<OwnedFd> {
    let kernel = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    let within = nix::sys::time::TimeVal::new(ANSWER_MAX_SECONDS, 0);
    setsockopt(&kernel, sockopt::ReceiveTimeout, &within)?;
    Ok(kernel)
}

/// Sends one message, with nfnetlink's header at the head of its body.
pub(super) fn send(kernel: &OwnedFd, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    let length = u32::try_from(HEADER_BYTES + body.len()).unwrap_or(0);
    let mut request = Vec::with_capacity(HEADER_BYTES + body.len());
    request.extend(length.to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend(flags.to_ne_bytes());
    request.extend([0; 8]);
    request.extend(body);
    let to_kernel = NetlinkAddr::new(0, 0);
    sendto(kernel.as_raw_fd(), &request, &to_kernel, MsgFlags::empty())?;
    Ok(())
}

/// The attributes in a message, up to one that is none.
pub(super) fn attributes_of(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?) & TYPE_MASK;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}
