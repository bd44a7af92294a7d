//! Asks the kernel for the generation of a namespace's nf_tables: a number that grows by one with each transaction, whoever makes it.
//!
//! If it is what it was when the rules were read back, they stand as they were read: nothing needs to be read again. Both
//! `iptables` (nft) and `nft` act through such transactions.

use super::netns::NetNs;
use crate::NetError;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket,
    sockopt,
};
use std::{io, os::fd::AsRawFd};

/// That of a namespace in which nobody has written yet (`nf_tables_init_net`, linux/net/netfilter/nf_tables_api.c).
pub(super) const NEW: u32 = 1;
/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN` (linux/netfilter/nfnetlink.h, nf_tables.h).
const GET_GENERATION: u16 = 10 << 8 | 16;
/// `NFT_MSG_NEWGEN`: the answer.
const GENERATION: u16 = 10 << 8 | 15;
/// `NFTA_GEN_ID`.
const GENERATION_ID: u16 = 1;
/// `NLM_F_REQUEST` (linux/netlink.h).
const REQUEST: u16 = 1;
/// Of a netlink message's header, and of nfnetlink's behind it, in bytes.
const HEADER_BYTES: usize = 16;
const NF_HEADER_BYTES: usize = 4;
/// The kernel answers at once; this is for the case that it does not.
const ANSWER_MAX_SECONDS: i64 = 2;

/// The generation now. `None` where the kernel does not tell: then rules are read each time.
pub(super) async fn of(ns: &NetNs) -> Result<Option<u32>, NetError> {
    ns.run(|| ask().ok().flatten()).await
}

fn ask() -> io::Result<Option<u32>> {
    let kernel = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    let within = nix::sys::time::TimeVal::new(ANSWER_MAX_SECONDS, 0);
    setsockopt(&kernel, sockopt::ReceiveTimeout, &within)?;
    let mut request = Vec::with_capacity(HEADER_BYTES + NF_HEADER_BYTES);
    request.extend(
        u32::try_from(HEADER_BYTES + NF_HEADER_BYTES)
            .unwrap_or(0)
            .to_ne_bytes(),
    );
    request.extend(GET_GENERATION.to_ne_bytes());
    request.extend(REQUEST.to_ne_bytes());
    request.extend([0; 8 + NF_HEADER_BYTES]);
    sendto(
        kernel.as_raw_fd(),
        &request,
        &NetlinkAddr::new(0, 0),
        MsgFlags::empty(),
    )?;
    let mut answer = [0; 256];
    let length = recv(kernel.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    Ok(answer.get(..length).and_then(read))
}

/// The generation in an answer.
fn read(answer: &[u8]) -> Option<u32> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    if kind != GENERATION {
        return None;
    }
    let mut rest = answer.get(HEADER_BYTES + NF_HEADER_BYTES..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?);
        if kind == GENERATION_ID {
            return Some(u32::from_be_bytes(rest.get(4..8)?.try_into().ok()?));
        }
        rest = rest.get(length.max(4).next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_answer_is_read_and_an_error_is_not_taken_for_one() {
        let mut answer = vec![0; 20];
        answer[4..6].copy_from_slice(&GENERATION.to_ne_bytes());
        for (length, kind, value) in [(8u16, 2u16, 77u32), (8, GENERATION_ID, 5)] {
            answer.extend(length.to_ne_bytes());
            answer.extend(kind.to_ne_bytes());
            answer.extend(value.to_be_bytes());
        }
        assert_eq!(read(&answer), Some(5));
        answer[4] = 2;
        assert_eq!(read(&answer), None);
    }

    proptest! {
        #[test]
        fn reading_garbage_never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if bytes.len() > 6 {
                bytes[4..6].copy_from_slice(&GENERATION.to_ne_bytes());
            }
            let _read = read(&bytes);
        }
    }
}
