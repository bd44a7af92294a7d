//! What there is in a namespace, asked of the kernel before a program is run to print it: of most things there is nothing.

use super::{
    netlink::{attribute, attributes_of, dump, open},
    netns::NetNs,
};
use crate::{NetError, names};
use std::{collections::BTreeSet, fs, io};

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETTABLE` and its answer, `NFTA_TABLE_NAME` (linux/netfilter/nf_tables.h).
const GET_TABLE: u16 = 10 << 8 | 1;
const TABLE: u16 = 10 << 8;
const TABLE_NAME: u16 = 1;
/// `NFNL_SUBSYS_IPSET << 8 | IPSET_CMD_SAVE`, `IPSET_ATTR_PROTOCOL` and the protocol (linux/netfilter/ipset/ip_set.h).
const SAVE_SETS: u16 = 6 << 8 | 8;
const PROTOCOL: u16 = 1;
const PROTOCOL_VERSION: u8 = 7;
/// `NFPROTO_INET`, `NFPROTO_IPV4`, `NFPROTO_BRIDGE`, `NFPROTO_IPV6`.
const INET: u8 = 1;
const IPV4: u8 = 2;
const BRIDGE: u8 = 7;
const IPV6: u8 = 10;
/// How many flows a namespace has.
const FLOWS: &str = "/proc/sys/net/netfilter/nf_conntrack_count";

/// What has to be read. All of it, where the kernel does not tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Present {
    pub(super) guard: bool,
    pub(super) v4: bool,
    pub(super) v6: bool,
    pub(super) nft: bool,
    pub(super) sets: bool,
}

impl Present {
    fn of(tables: &BTreeSet<(u8, Vec<u8>)>, sets: bool) -> Self {
        let has = |family: u8, name: &str| tables.contains(&(family, name.as_bytes().to_vec()));
        let any = |family: u8| tables.iter().any(|(f, _)| *f == family);
        Self {
            guard: has(BRIDGE, names::GUARD_TABLE),
            v4: any(IPV4),
            v6: any(IPV6),
            nft: has(INET, names::FILTER_TABLE),
            sets,
        }
    }
}

/// What there is now.
pub(super) async fn of(ns: &NetNs) -> Result<Present, NetError> {
    let told = ns
        .run(|| Some(Present::of(&tables().ok()?, sets().unwrap_or(true))))
        .await?;
    Ok(told.unwrap_or(Present {
        guard: true,
        v4: true,
        v6: true,
        nft: true,
        sets: true,
    }))
}

/// Whether there may be sets of members.
pub(super) async fn has_sets(ns: &NetNs) -> Result<bool, NetError> {
    ns.run(|| sets().unwrap_or(true)).await
}

/// Whether there may be flows. To list them the kernel looks through the table of all namespaces, however few there are.
pub(super) async fn has_flows(ns: &NetNs) -> Result<bool, NetError> {
    ns.run(|| fs::read_to_string(FLOWS).map_or(true, |count| count.trim() != "0"))
        .await
}

/// Names of tables with their families. The answer's header begins with the family, which is before what is handed on here; so each
/// is asked for alone.
fn tables() -> io::Result<BTreeSet<(u8, Vec<u8>)>> {
    let kernel = open()?;
    let mut all = BTreeSet::new();
    for family in [INET, IPV4, BRIDGE, IPV6] {
        dump(&kernel, GET_TABLE, &[family, 0, 0, 0], |kind, message| {
            if kind == TABLE {
                let name = attributes_of(message).find(|(kind, _)| *kind == TABLE_NAME);
                let name = name.ok_or_else(|| io::Error::other("a table without a name"))?.1;
                all.insert((family, name.strip_suffix(&[0]).unwrap_or(name).to_vec()));
            }
            Ok(())
        })?;
    }
    Ok(all)
}

fn sets() -> io::Result<bool> {
    let mut body = vec![IPV4, 0, 0, 0];
    attribute(&mut body, PROTOCOL, &[PROTOCOL_VERSION]);
    let mut any = false;
    dump(&open()?, SAVE_SETS, &body, |_, _| {
        any = true;
        Ok(())
    })?;
    Ok(any)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_there_is_read() {
        let tables = BTreeSet::from([(BRIDGE, b"vbm".to_vec()), (IPV4, b"nat".to_vec())]);
        let there = Present::of(&tables, false);
        assert!(there.guard && there.v4 && !there.v6 && !there.nft && !there.sets);
        let others = BTreeSet::from([(INET, b"vbm".to_vec()), (BRIDGE, b"vbm-filter".to_vec())]);
        let there = Present::of(&others, true);
        assert!(!there.guard && !there.v4 && !there.nft && there.sets);
    }
}
