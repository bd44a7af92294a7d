//! Reads chains of nf_tables as the kernel holds them, over netlink: in a thousandth of the time that `nft` takes to print them.
//!
//! What nft prints is what tells whether rules stand as they were meant. For chains that differ in nothing but addresses it need be asked
//! once: [`Forms`] keeps, of a chain that nft printed just so, its bytes with the addresses taken out, under its text with the addresses
//! taken out. Another chain of that text, whose bytes are the same then, stands just as well. Where they differ, for whatever reason, nft
//! is asked.

use super::{
    netlink::{
        HEADER_BYTES, NF_HEADER_BYTES, PART_MAX_BYTES, REQUEST, attribute, attributes_of, dump, open,
        read_part, send,
    },
    netns::NetNs,
};
use crate::NetError;
use nix::sys::socket::{MsgFlags, recv};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    os::fd::{AsRawFd, OwnedFd},
};

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETRULE` and its answer (linux/netfilter/nf_tables.h).
const GET_RULE: u16 = 10 << 8 | 7;
const RULE: u16 = 10 << 8 | 6;
/// The same of a chain, with `NFTA_CHAIN_NAME`, and what tells where it is hooked in: `NFTA_CHAIN_HOOK`, `_POLICY`, `_TYPE`, `_FLAGS`.
const GET_CHAIN: u16 = 10 << 8 | 4;
const CHAIN_TOLD: u16 = 10 << 8 | 3;
const CHAIN_NAME: u16 = 3;
const HOOKED: [u16; 4] = [4, 5, 7, 10];
/// `NFTA_EXPR_NAME`, `NFTA_EXPR_DATA`, `NFTA_LOOKUP_SET`, and how the kernel writes such a name.
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const LOOKUP_SET: u16 = 1;
const LOOKUP: &[u8] = b"lookup\0";
const NAMELESS: &[u8] = b"__set";
/// The same of an element of a set or map.
const GET_ELEMENT: u16 = 10 << 8 | 13;
const ELEMENT: u16 = 10 << 8 | 12;
/// `NFPROTO_BRIDGE`.
const BRIDGE: u8 = 7;
/// `NFTA_RULE_TABLE`, `NFTA_RULE_CHAIN`, `NFTA_RULE_EXPRESSIONS`.
const TABLE: u16 = 1;
const CHAIN: u16 = 2;
const EXPRESSIONS: u16 = 4;
/// The same of a set or map itself; its name is at `NFTA_SET_NAME`.
const GET_SET: u16 = 10 << 8 | 10;
const SET_TOLD: u16 = 10 << 8 | 9;
/// `NFTA_SET_ELEM_LIST_SET`, `NFTA_SET_ELEM_LIST_ELEMENTS`, `NFTA_LIST_ELEM`, `NFTA_SET_ELEM_KEY`, `NFTA_DATA_VALUE`.
const SET: u16 = 2;
const ELEMENTS: u16 = 3;
const LIST_ELEMENT: u16 = 1;
const KEY: u16 = 1;
const VALUE: u16 = 1;
/// `NFTA_SET_ELEM_DATA`, `NFTA_DATA_VERDICT`, `NFTA_VERDICT_CODE`, `NFTA_VERDICT_CHAIN`.
const DATA: u16 = 2;
const VERDICT: u16 = 2;
const CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
/// `NFT_JUMP`.
const JUMP: i32 = -3;
/// The bytes of a name of a link, as a key (`IFNAMSIZ`).
const LINK_NAME_BYTES: usize = 16;
/// The flag of an attribute that holds others (`NLA_F_NESTED`).
const NESTED: u16 = 0x8000;
/// The most forms that are kept; beyond it all are forgotten.
const FORMS_MAX: usize = 256;

/// The rules of chains of a bridge table, as bytes. `None` where the kernel does not tell.
pub(super) async fn chains(
    ns: &NetNs,
    table: &'static str,
    names: Vec<String>,
) -> Result<Option<BTreeMap<String, Vec<u8>>>, NetError> {
    ns.run(move || {
        let kernel = open().ok()?;
        let each = names.into_iter().map(|name| {
            let bytes = ask(&kernel, table, &name)?;
            Ok((name, bytes))
        });
        each.collect::<io::Result<BTreeMap<_, _>>>().ok()
    })
    .await
}

/// Whether a map from links to chains of a bridge table leads each of these links to its chain.
pub(super) async fn lead(
    ns: &NetNs,
    table: &'static str,
    wanted: Vec<(String, String, String)>,
) -> Result<bool, NetError> {
    ns.run(move || {
        let Ok(kernel) = open() else { return false };
        let leads = |(map, link, chain): &(String, String, String)| matches!(target(&kernel, table, map, link), Ok(Some(to)) if to == *chain);
        wanted.iter().all(leads)
    })
    .await
}

/// The chain that a link is led to.
fn target(kernel: &OwnedFd, table: &str, map: &str, link: &str) -> io::Result<Option<String>> {
    let mut name = link.as_bytes().to_vec();
    name.resize(LINK_NAME_BYTES, 0);
    let mut body = vec![BRIDGE, 0, 0, 0];
    attribute(&mut body, TABLE, &text(table));
    attribute(&mut body, SET, &text(map));
    let mut nested = name;
    for kind in [VALUE, KEY | NESTED, LIST_ELEMENT | NESTED, ELEMENTS | NESTED] {
        let mut outer = Vec::new();
        attribute(&mut outer, kind, &nested);
        nested = outer;
    }
    body.extend(nested);
    send(kernel, GET_ELEMENT, REQUEST, &body)?;
    let mut part = vec![0; PART_MAX_BYTES];
    let length = recv(kernel.as_raw_fd(), &mut part, MsgFlags::empty())?;
    Ok(read_target(part.get(..length).unwrap_or_default()))
}

/// The chain in an answer, if it is one and the verdict is a jump.
fn read_target(answer: &[u8]) -> Option<String> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    if kind != ELEMENT {
        return None;
    }
    let mut at = answer.get(HEADER_BYTES + NF_HEADER_BYTES..)?;
    for kind in [ELEMENTS, LIST_ELEMENT, DATA, VERDICT] {
        at = attributes_of(at).find(|(k, _)| *k == kind)?.1;
    }
    let find = |kind| attributes_of(at).find(|(k, _)| *k == kind).map(|(_, v)| v);
    let code = i32::from_be_bytes(find(CODE)?.try_into().ok()?);
    let chain = find(VERDICT_CHAIN)?;
    let chain = chain.strip_suffix(&[0]).unwrap_or(chain);
    (code == JUMP).then(|| String::from_utf8_lossy(chain).into_owned())
}

/// As the kernel wants it: with a zero behind it.
fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

/// A table: its chains as bytes, and where its maps lead which link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Whole {
    pub(super) chains: BTreeMap<String, Vec<u8>>,
    pub(super) maps: BTreeMap<String, BTreeSet<(String, String)>>,
}

/// All of a bridge table. `None` where the kernel does not tell, or tells something else.
pub(super) async fn whole(ns: &NetNs, table: &'static str) -> Result<Option<Whole>, NetError> {
    ns.run(move || ask_whole(table).ok()).await
}

fn ask_whole(table: &str) -> io::Result<Whole> {
    let kernel = open()?;
    let named = |message: &[u8], kind| {
        let name = attributes_of(message).find(|(k, _)| *k == kind).map(|(_, v)| v)?;
        String::from_utf8(name.strip_suffix(&[0]).unwrap_or(name).to_vec()).ok()
    };
    let mut body = vec![BRIDGE, 0, 0, 0];
    attribute(&mut body, TABLE, &text(table));
    let mut whole = Whole::default();
    dump(&kernel, GET_CHAIN, &body, |kind, message| {
        if kind == CHAIN_TOLD && named(message, TABLE).as_deref() == Some(table) {
            let name = named(message, CHAIN_NAME).ok_or_else(broken)?;
            whole.chains.insert(name, hook_of(message));
        }
        Ok(())
    })?;
    let mut found: BTreeMap<String, (Vec<u8>, Vec<Vec<u8>>)> = BTreeMap::new();
    dump(&kernel, GET_RULE, &body, |kind, message| {
        if kind == RULE && named(message, TABLE).as_deref() == Some(table) {
            let chain = named(message, CHAIN).ok_or_else(broken)?;
            let (rules, sets) = found.entry(chain.clone()).or_default();
            read_rule(message, &chain, rules, sets)?;
        }
        Ok(())
    })?;
    for (name, bytes) in &mut whole.chains {
        let (rules, sets) = found.remove(name).unwrap_or_default();
        put(bytes, &rules);
        for set in sets {
            put(bytes, &ask_set(&kernel, table, &set)?);
        }
    }
    let mut maps = Vec::new();
    dump(&kernel, GET_SET, &body, |kind, message| {
        if kind == SET_TOLD && named(message, TABLE).as_deref() == Some(table) {
            maps.push(named(message, SET).ok_or_else(broken)?);
        }
        Ok(())
    })?;
    for map in maps
        .into_iter()
        .filter(|map| !map.as_bytes().starts_with(NAMELESS))
    {
        let jumps = ask_jumps(&kernel, table, &map)?;
        whole.maps.insert(map, jumps);
    }
    if found.is_empty() {
        Ok(whole)
    } else {
        Err(broken())
    }
}

/// The elements of a map from links to chains.
fn ask_jumps(kernel: &OwnedFd, table: &str, map: &str) -> io::Result<BTreeSet<(String, String)>> {
    let mut body = vec![BRIDGE, 0, 0, 0];
    attribute(&mut body, TABLE, &text(table));
    attribute(&mut body, SET, &text(map));
    let mut jumps = BTreeSet::new();
    dump(kernel, GET_ELEMENT, &body, |kind, message| {
        if kind == ELEMENT {
            let lists = attributes_of(message).filter(|(kind, _)| *kind == ELEMENTS);
            for (_, element) in lists.flat_map(|(_, list)| attributes_of(list)) {
                jumps.insert(read_jump(element).ok_or_else(broken)?);
            }
        }
        Ok(())
    })?;
    Ok(jumps)
}

/// The link and the chain of an element whose verdict is a jump.
fn read_jump(element: &[u8]) -> Option<(String, String)> {
    let find = |at, kind| attributes_of(at).find(|(k, _)| *k == kind).map(|(_, v)| v);
    let link: &[u8] = find(find(element, KEY)?, VALUE)?;
    let link = link.split(|byte| *byte == 0).next()?;
    let verdict: &[u8] = find(find(element, DATA)?, VERDICT)?;
    let code = i32::from_be_bytes(find(verdict, CODE)?.try_into().ok()?);
    let chain: &[u8] = find(verdict, VERDICT_CHAIN)?;
    let chain = chain.strip_suffix(&[0]).unwrap_or(chain);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
    (code == JUMP).then_some((text(link)?, text(chain)?))
}

/// A chain: where it is hooked in, its rules, and what is in the sets that have no name of their own.
fn ask(kernel: &OwnedFd, table: &str, chain: &str) -> io::Result<Vec<u8>> {
    let mut bytes = ask_hook(kernel, table, chain)?;
    let mut body = vec![BRIDGE, 0, 0, 0];
    attribute(&mut body, TABLE, &text(table));
    attribute(&mut body, CHAIN, &text(chain));
    let (mut rules, mut sets) = (Vec::new(), Vec::new());
    dump(kernel, GET_RULE, &body, |kind, message| {
        if kind == RULE {
            read_rule(message, chain, &mut rules, &mut sets)?;
        }
        Ok(())
    })?;
    put(&mut bytes, &rules);
    for set in sets {
        put(&mut bytes, &ask_set(kernel, table, &set)?);
    }
    Ok(bytes)
}

/// So that one long thing is not two short ones.
fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend(u32::try_from(bytes.len()).unwrap_or(0).to_ne_bytes());
    out.extend(bytes);
}

fn broken() -> io::Error {
    io::Error::other("an answer that cannot be read")
}

fn ask_hook(kernel: &OwnedFd, table: &str, chain: &str) -> io::Result<Vec<u8>> {
    let mut body = vec![BRIDGE, 0, 0, 0];
    attribute(&mut body, TABLE, &text(table));
    attribute(&mut body, CHAIN_NAME, &text(chain));
    send(kernel, GET_CHAIN, REQUEST, &body)?;
    let mut part = vec![0; PART_MAX_BYTES];
    let length = recv(kernel.as_raw_fd(), &mut part, MsgFlags::empty())?;
    let mut found = None;
    read_part(part.get(..length).unwrap_or_default(), &mut |kind, message| {
        if kind == CHAIN_TOLD {
            found = Some(hook_of(message));
        }
        Ok(())
    })?;
    found.ok_or_else(broken)
}

/// What an answer says of where a chain is hooked in.
fn hook_of(message: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (_, value) in attributes_of(message).filter(|(kind, _)| HOOKED.contains(kind)) {
        put(&mut bytes, value);
    }
    bytes
}

/// The elements of a set, in an order of their own: the kernel's is another each time.
fn ask_set(kernel: &OwnedFd, table: &str, set: &[u8]) -> io::Result<Vec<u8>> {
    let mut body = vec![BRIDGE, 0, 0, 0];
    attribute(&mut body, TABLE, &text(table));
    attribute(&mut body, SET, set);
    let mut elements = Vec::new();
    dump(kernel, GET_ELEMENT, &body, |kind, message| {
        if kind == ELEMENT {
            let lists = attributes_of(message).filter(|(kind, _)| *kind == ELEMENTS);
            elements.extend(
                lists
                    .flat_map(|(_, list)| attributes_of(list))
                    .map(|(_, e)| e.to_vec()),
            );
        }
        Ok(())
    })?;
    elements.sort();
    let mut bytes = Vec::new();
    elements.iter().for_each(|element| put(&mut bytes, element));
    Ok(bytes)
}

/// Takes a rule out of an answer, and which sets it looks into that have no name of their own.
fn read_rule(message: &[u8], chain: &str, rules: &mut Vec<u8>, sets: &mut Vec<Vec<u8>>) -> io::Result<()> {
    let find = |kind| attributes_of(message).find(|(k, _)| *k == kind).map(|(_, v)| v);
    let of = find(CHAIN).ok_or_else(broken)?;
    if of.strip_suffix(&[0]).unwrap_or(of) != chain.as_bytes() {
        return Ok(());
    }
    let body = find(EXPRESSIONS).ok_or_else(broken)?;
    put(rules, body);
    for (_, expression) in attributes_of(body) {
        let part = |kind| {
            attributes_of(expression)
                .find(|(k, _)| *k == kind)
                .map(|(_, v)| v)
        };
        if part(EXPRESSION_NAME) == Some(LOOKUP)
            && let Some(data) = part(EXPRESSION_DATA)
            && let Some((_, set)) = attributes_of(data).find(|(k, _)| *k == LOOKUP_SET)
            && set.starts_with(NAMELESS)
        {
            sets.push(set.to_vec());
        }
    }
    Ok(())
}

/// Bytes of chains by their text, both without addresses.
#[derive(Debug, Default)]
pub(crate) struct Forms(HashMap<Vec<String>, Vec<u8>>);

impl Forms {
    /// Keeps what nft printed as these lines.
    pub(super) fn learn(&mut self, lines: &[String], bytes: &[u8]) {
        let addresses = Addresses::of(lines);
        if self.0.len() >= FORMS_MAX {
            self.0.clear();
        }
        self.0
            .insert(addresses.out_of(lines), addresses.out_of_bytes(bytes));
    }

    /// Whether these are the bytes of these lines, as far as is known.
    pub(super) fn know(&self, lines: &[String], bytes: &[u8]) -> bool {
        let addresses = Addresses::of(lines);
        let known = self.0.get(&addresses.out_of(lines));
        known.is_some_and(|known| *known == addresses.out_of_bytes(bytes))
    }
}

/// The addresses of Ethernet and IPv4 in lines, each once, as text and as bytes.
struct Addresses(Vec<(String, Vec<u8>)>);

impl Addresses {
    fn of(lines: &[String]) -> Self {
        let mut all: Vec<(String, Vec<u8>)> = Vec::new();
        for word in lines.iter().flat_map(|line| line.split(' ')) {
            if let Some(bytes) = address(word)
                && !all.iter().any(|(text, _)| text == word)
            {
                all.push((word.to_owned(), bytes));
            }
        }
        Self(all)
    }

    /// By the order in which they come, so that two that are the same are told from two that differ.
    fn out_of(&self, lines: &[String]) -> Vec<String> {
        let word = |word: &str| match self.0.iter().position(|(text, _)| text == word) {
            // With its kind: the bytes of one may be those of several.
            Some(n) => format!("#{n}.{}", self.0[n].1.len()),
            None => word.to_owned(),
        };
        let line = |line: &String| line.split(' ').map(word).collect::<Vec<_>>().join(" ");
        lines.iter().map(line).collect()
    }

    fn out_of_bytes(&self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len());
        let mut rest = bytes;
        while let Some(first) = rest.first() {
            let found = self.0.iter().position(|(_, own)| rest.starts_with(own));
            match found {
                Some(n) => {
                    out.extend([0xff, b'#', u8::try_from(n).unwrap_or(u8::MAX)]);
                    rest = &rest[self.0[n].1.len()..];
                }
                None => {
                    out.push(*first);
                    rest = &rest[1..];
                }
            }
        }
        out
    }
}

/// The bytes of an address that may differ from port to port.
fn address(word: &str) -> Option<Vec<u8>> {
    if let Ok(ip) = word.parse::<std::net::Ipv4Addr>() {
        return (!ip.is_unspecified() && !ip.is_broadcast()).then(|| ip.octets().to_vec());
    }
    if let Some(number) = word.strip_prefix("0x") {
        // A MAC as the number of a raw match; types and marks are shorter.
        let number = u64::from_str_radix(number, 16).ok()?;
        let bytes = number.to_be_bytes();
        return (number > u64::from(u32::MAX))
            .then(|| bytes.strip_prefix(&[0, 0]).map(<[u8]>::to_vec))
            .flatten();
    }
    word.parse::<vbm_core::Mac>()
        .ok()
        .map(|mac| mac.octets().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines(mac: &str, ip: &str) -> Vec<String> {
        let number = mac.replace(':', "");
        vec![
            format!("ether saddr != {mac} drop"),
            format!("ip saddr 0.0.0.0 ip daddr 255.255.255.255 @th,288,48 0x{number} accept"),
            format!("ip saddr {ip} accept"),
        ]
    }

    fn bytes(mac: [u8; 6], ip: [u8; 4], verdict: u8) -> Vec<u8> {
        [&[1, 2][..], &mac, &[0, 0, 0, 0], &mac, &ip, &[verdict]].concat()
    }

    const A: ([u8; 6], [u8; 4]) = ([2, 3, 4, 5, 6, 7], [10, 0, 0, 1]);
    const B: ([u8; 6], [u8; 4]) = ([2, 9, 9, 9, 9, 9], [10, 0, 0, 2]);

    #[test]
    fn a_chain_that_differs_in_addresses_alone_is_known_and_no_other() {
        let mut forms = Forms::default();
        let (first, second) = (
            lines("02:03:04:05:06:07", "10.0.0.1"),
            lines("02:09:09:09:09:09", "10.0.0.2"),
        );
        assert!(!forms.know(&second, &bytes(B.0, B.1, 1)));
        forms.learn(&first, &bytes(A.0, A.1, 1));
        assert!(forms.know(&second, &bytes(B.0, B.1, 1)));
        assert!(!forms.know(&second, &bytes(B.0, B.1, 0)), "another verdict");
        assert!(!forms.know(&second, &bytes(A.0, B.1, 1)), "another's MAC");
        assert!(!forms.know(&second, &bytes(B.0, A.1, 1)), "another's address");
        assert!(!forms.know(&second, &bytes(B.0, B.1, 1)[1..]), "a rule less");
        let mut other = second.clone();
        other[2] = "ip saddr 10.0.0.2 drop".into();
        assert!(!forms.know(&other, &bytes(B.0, B.1, 1)), "another text");
    }

    #[test]
    fn two_addresses_that_are_the_same_are_not_two_that_differ() {
        let mut forms = Forms::default();
        let text = |a: &str, b: &str| vec![format!("ip saddr {a} accept"), format!("ip daddr {b} accept")];
        forms.learn(&text("10.0.0.1", "10.0.0.1"), &[A.1, A.1].concat());
        assert!(forms.know(&text("10.0.0.2", "10.0.0.2"), &[B.1, B.1].concat()));
        assert!(!forms.know(&text("10.0.0.2", "10.0.0.1"), &[B.1, A.1].concat()));
        assert!(!forms.know(&text("10.0.0.2", "10.0.0.2"), &[B.1, A.1].concat()));
    }

    proptest! {
        #[test]
        fn reading_garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut read = |_: u16, message: &[u8]| read_rule(message, "c", &mut Vec::new(), &mut Vec::new());
            let _read = (read_part(&bytes, &mut read), read_rule(&bytes, "c", &mut Vec::new(), &mut Vec::new()), read_target(&bytes), read_jump(&bytes));
        }
    }
}
