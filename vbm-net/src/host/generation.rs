//! Asks the kernel for the generation of a namespace's nf_tables: a number that grows by one with each transaction, whoever makes it.
//!
//! If it is what it was when the rules were read back, they stand as they were read: nothing needs to be read again. Both
//! `iptables` (nft) and `nft` act through such transactions.

use super::{
    netlink::{HEADER_BYTES, NF_HEADER_BYTES, REQUEST, attributes_of, open, send},
    netns::NetNs,
};
use crate::NetError;
use nix::sys::socket::{MsgFlags, recv};
use std::{io, os::fd::AsRawFd};

/// That of a namespace in which nobody has written yet (`nf_tables_init_net`, linux/net/netfilter/nf_tables_api.c).
pub(super) const NEW: u32 = 1;
/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN` (linux/netfilter/nfnetlink.h, nf_tables.h).
const GET_GENERATION: u16 = 10 << 8 | 16;
/// `NFT_MSG_NEWGEN`: the answer.
const GENERATION: u16 = 10 << 8 | 15;
/// `NFTA_GEN_ID`.
const GENERATION_ID: u16 = 1;

/// The generation now. `None` where the kernel does not tell: then rules are read each time.
pub(super) async fn of(ns: &NetNs) -> Result<Option<u32>, NetError> {
    ns.run(|| ask().ok().flatten()).await
}

fn ask() -> io::Result<Option<u32>> {
    let kernel = open()?;
    send(&kernel, GET_GENERATION, REQUEST, &[0; NF_HEADER_BYTES])?;
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
    let (_, id) = attributes_of(answer.get(HEADER_BYTES + NF_HEADER_BYTES..)?)
        .find(|(kind, _)| *kind == GENERATION_ID)?;
    Some(u32::from_be_bytes(id.try_into().ok()?))
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
