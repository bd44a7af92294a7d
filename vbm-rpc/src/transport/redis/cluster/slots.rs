//! Slots: of a key, of a command, and who owns them.

use crate::transport::redis::{config::Host, pack};
use redis::{Arg, Cmd, RedisError, Value};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

/// Slots of a cluster.
const SLOTS: u16 = 16_384;

/// The slot of a key: that of its hash tag if it has one (CRC16, XMODEM).
pub(in super::super) fn slot(key: &[u8]) -> u16 {
    let tag = key.iter().position(|&byte| byte == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        let close = rest.iter().position(|&byte| byte == b'}')?;
        (close > 0).then(|| &rest[..close])
    });
    let mut crc: u16 = 0;
    for &byte in tag.unwrap_or(key) {
        crc ^= u16::from(byte) << 8;
        for _ in 0..8 {
            crc = if crc & 0x8000 == 0 {
                crc << 1
            } else {
                (crc << 1) ^ 0x1021
            };
        }
    }
    crc % SLOTS
}

/// Keys that lie in one slot together.
pub(in super::super) fn by_slot(keys: Vec<Arc<str>>) -> Vec<Vec<Arc<str>>> {
    let mut slots: BTreeMap<u16, Vec<Arc<str>>> = BTreeMap::new();
    for key in keys {
        slots.entry(slot(key.as_bytes())).or_default().push(key);
    }
    slots.into_values().collect()
}

/// The first key of a command; nothing when it has none.
pub(super) fn key(command: &Cmd) -> Option<&[u8]> {
    let mut args = command.args_iter().filter_map(|arg| match arg {
        Arg::Simple(arg) => Some(arg),
        _ => None,
    });
    let name = args.next()?.to_ascii_uppercase();
    match &name[..] {
        b"TIME" | b"PING" | b"CLIENT" | b"INFO" | b"ROLE" | b"CONFIG" | b"SCRIPT" | b"WAIT" | b"ACL"
        | b"CLUSTER" | b"COMMAND" | b"SCAN" | b"KEYS" | b"DBSIZE" => None,
        b"XGROUP" | b"XINFO" | b"OBJECT" | b"MEMORY" => args.nth(1),
        b"EVAL" | b"EVALSHA" | b"EVAL_RO" | b"FCALL" => args.nth(2),
        b"XREAD" | b"XREADGROUP" => args
            .find(|arg| arg.eq_ignore_ascii_case(b"STREAMS"))
            .and_then(|_| args.next()),
        _ => args.next(),
    }
}

/// Who owns which slots.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct Slots {
    /// By last slot: first slot and owner.
    ranges: BTreeMap<u16, (u16, Host)>,
    /// What was learnt since.
    moved: HashMap<u16, Host>,
}

/// `MOVED` or `ASK`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Redirect {
    slot: u16,
    pub(super) to: Host,
    pub(super) for_good: bool,
}

impl Redirect {
    pub(in super::super) fn of(error: &RedisError) -> Option<Self> {
        let (address, slot) = error.redirect_node()?;
        Some(Self {
            slot,
            to: Host::parse(address, 0)?,
            for_good: error.code() == Some("MOVED"),
        })
    }
}

impl Slots {
    pub(in super::super) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    pub(in super::super) fn owner(&self, slot: u16) -> Option<Host> {
        if let Some(host) = self.moved.get(&slot) {
            return Some(host.clone());
        }
        let (first, host) = self.ranges.range(slot..).next()?.1;
        (*first <= slot).then(|| host.clone())
    }

    pub(in super::super) fn learn(&mut self, redirect: &Redirect) {
        if redirect.for_good {
            self.moved.insert(redirect.slot, redirect.to.clone());
        }
    }

    pub(in super::super) fn masters(&self) -> Vec<Host> {
        let mut all: Vec<Host> = self.ranges.values().map(|(_, host)| host.clone()).collect();
        all.extend(self.moved.values().cloned());
        all.sort();
        all.dedup();
        all
    }

    /// From the answer to `CLUSTER SLOTS` that `told` gave; who has no address is `told` itself.
    pub(super) fn read(answer: &Value, told: &Host) -> Self {
        let mut slots = Self::default();
        let Value::Array(ranges) = answer else {
            return slots;
        };
        for range in ranges {
            let Value::Array(parts) = range else { continue };
            let [first, last, Value::Array(owner), ..] = &parts[..] else {
                continue;
            };
            let bound = |value| pack::number(value).and_then(|number| u16::try_from(number).ok());
            let (Some(first), Some(last), Some(port)) =
                (bound(first), bound(last), owner.get(1).and_then(bound))
            else {
                continue;
            };
            let name = owner
                .first()
                .and_then(pack::text)
                .filter(|name| !name.is_empty() && *name != "?");
            let name = name.unwrap_or(&told.name).to_owned();
            slots.ranges.insert(last, (first, Host { name, port }));
        }
        slots
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use redis::cmd;

    fn host(name: &str) -> Host {
        Host {
            name: name.into(),
            port: 7,
        }
    }

    #[test]
    fn slots_are_those_of_the_specification() {
        // "123456789" has the CRC 0x31C3 (Redis Cluster specification, appendix A).
        assert_eq!(slot(b"123456789"), 0x31c3 % SLOTS);
        assert_eq!(slot(b"foo"), 12_182);
        assert_eq!(slot(b"vbm:v1:{foo}:x"), slot(b"foo"));
        assert_eq!(slot(b"{}x"), slot(b"{}x"));
        assert_ne!(slot(b"{}a"), slot(b"{}b"));
        assert_eq!(slot(b"a{foo}{bar}"), 12_182);
    }

    #[test]
    fn every_command_of_the_bus_is_sent_where_its_key_is() {
        let built = |words: &[&str]| {
            let mut command = cmd(words[0]);
            for word in &words[1..] {
                command.arg(*word);
            }
            command
        };
        for (words, expected) in [
            (&["XADD", "K", "NOMKSTREAM", "*", "f", "x"][..], Some("K")),
            (&["XGROUP", "CREATE", "K", "g", "$"], Some("K")),
            (&["XINFO", "STREAM", "K"], Some("K")),
            (&["EVAL", "return 1", "2", "K", "L"], Some("K")),
            (
                &["XREAD", "COUNT", "1", "BLOCK", "2", "STREAMS", "K", "0"],
                Some("K"),
            ),
            (&["XREADGROUP", "GROUP", "g", "c", "STREAMS", "K", ">"], Some("K")),
            (&["PEXPIRE", "K", "1"], Some("K")),
            (&["TIME"], None),
            (&["CLIENT", "ID"], None),
            (&["PING"], None),
        ] {
            let command = built(words);
            assert_eq!(key(&command), expected.map(str::as_bytes), "{words:?}");
        }
    }

    #[test]
    fn the_map_is_read_and_corrected() {
        let bulk = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let range = |first, last, name: &str, port| {
            Value::Array(vec![
                Value::Int(first),
                Value::Int(last),
                Value::Array(vec![bulk(name), Value::Int(port), bulk("id")]),
            ])
        };
        let answer = Value::Array(vec![range(0, 99, "a", 7), range(200, 16_383, "", 7)]);
        let mut slots = Slots::read(&answer, &host("told"));
        assert_eq!(slots.owner(0), Some(host("a")));
        assert_eq!(slots.owner(99), Some(host("a")));
        assert_eq!(slots.owner(100), None);
        assert_eq!(slots.owner(16_383), Some(host("told")));
        let moved = |for_good| Redirect {
            slot: 5,
            to: host("b"),
            for_good,
        };
        slots.learn(&moved(false));
        assert_eq!(slots.owner(5), Some(host("a")), "an ASK is for once");
        slots.learn(&moved(true));
        assert_eq!(slots.owner(5), Some(host("b")));
        assert_eq!(slots.owner(6), Some(host("a")));
        assert_eq!(slots.masters(), [host("a"), host("b"), host("told")]);
        assert!(Slots::read(&Value::Nil, &host("x")).is_empty());
    }

    #[test]
    fn keys_of_one_tag_stay_together() {
        let keys = ["{a}1", "{b}1", "{a}2"].map(Arc::from).to_vec();
        let mut apart = by_slot(keys);
        apart.sort_by_key(Vec::len);
        assert_eq!(
            apart,
            [vec![Arc::from("{b}1")], vec!["{a}1".into(), "{a}2".into()]]
        );
    }
}
