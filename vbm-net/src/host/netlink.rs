//! Questions to netfilter over netlink, without a program: one socket, one message, its attributes.
//!
//! Whoever closes such a socket waits until the kernel has forgotten what transactions of that namespace took away: some ten
//! milliseconds, a grace period of RCU (`nft_rcv_nl_event`, linux/net/netfilter/nf_tables_api.c). Programs wait so when they end. What only
//! adds leaves nothing to forget.

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket,
    sockopt,
};
use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

/// `NLM_F_REQUEST` (linux/netlink.h).
pub(super) const REQUEST: u16 = 1;
/// `NLM_F_REQUEST` with `NLM_F_DUMP`: all there are.
pub(super) const REQUEST_DUMP: u16 = REQUEST | 0x300;
/// `NLM_F_DUMP_INTR`: it changed while it was told.
const INTERRUPTED: u16 = 0x10;
/// `NLMSG_ERROR`, `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// The kernel fills parts of an answer up to this.
pub(super) const PART_MAX_BYTES: usize = 64 * 1024;
/// The most parts of an answer: the longest that is asked for names some thousands of things.
const PARTS_MAX: usize = 1_024;
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

/// Asks for all there are, and hands on the kind and the body of each message, behind nfnetlink's header.
pub(super) fn dump(
    kernel: &OwnedFd,
    kind: u16,
    body: &[u8],
    mut each: impl FnMut(u16, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    send(kernel, kind, REQUEST_DUMP, body)?;
    let mut part = vec![0; PART_MAX_BYTES];
    for _ in 0..PARTS_MAX {
        let length = recv(kernel.as_raw_fd(), &mut part, MsgFlags::empty())?;
        if read_part(part.get(..length).unwrap_or_default(), &mut each)? {
            return Ok(());
        }
    }
    Err(io::Error::other("an answer without an end"))
}

/// Hands on the messages in a part of an answer. Whether it is the last part.
pub(super) fn read_part(
    mut part: &[u8],
    each: &mut impl FnMut(u16, &[u8]) -> io::Result<()>,
) -> io::Result<bool> {
    let broken = || io::Error::other("an answer that cannot be read");
    while !part.is_empty() {
        let header = part.get(..HEADER_BYTES).ok_or_else(broken)?;
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]);
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let flags = u16::from_ne_bytes([header[6], header[7]]);
        let length = usize::try_from(length).map_err(|_| broken())?;
        let message = part.get(HEADER_BYTES..length).ok_or_else(broken)?;
        if flags & INTERRUPTED != 0 {
            return Err(io::Error::other("it changed while it was told"));
        }
        match kind {
            DONE => return Ok(true),
            ERROR => return Err(io::Error::other("the kernel refused it")),
            _ => each(kind, message.get(NF_HEADER_BYTES..).ok_or_else(broken)?)?,
        }
        part = part.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// Puts an attribute behind what is there.
pub(super) fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend(u16::try_from(4 + value.len()).unwrap_or(0).to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
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
