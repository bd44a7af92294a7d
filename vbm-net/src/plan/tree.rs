//! Dispatch that does not grow with the ports: a tree of chains by the digits of a name or an address.
//!
//! ```text
//!   VBM-TO      --physdev-out tap0+  -g VBM-TO-0       VBM-TO-0   --physdev-out tap0000000a -g VBM-P-...
//!               --physdev-out tap1+  -g VBM-TO-1                  --physdev-out tap0000000b -g VBM-P-...
//! ```
//!
//! A chain with more than [`CHAIN_MAX_LEAVES`] leaves is split by the next hexadecimal digit that tells them apart, so a packet passes at
//! most some tens of rules whether there are ten ports or thousands, and a new port changes one small chain. All steps are gotos: when
//! a port's own chain says nothing, the packet is back where the root was called.

use super::tables::{Table, chain};
use crate::names;
use std::collections::BTreeMap;

/// The most leaves that stand side by side in one chain.
pub(super) const CHAIN_MAX_LEAVES: usize = 16;
/// The longest name of a chain that iptables takes, in bytes.
const CHAIN_MAX_BYTES: usize = 28;

/// What is told apart: the digits of a leaf's key, and its rules.
pub(super) type Leaves = BTreeMap<Vec<u8>, Vec<String>>;

/// Puts the tree into a table. `root` begins the name of each of its chains, `matching` is the condition of all keys that begin with some
/// digits, `last` are rules behind the tree, in the root.
pub(super) fn grow(
    table: &mut Table,
    root: &str,
    matching: &dyn Fn(&[u8]) -> String,
    leaves: &Leaves,
    last: Vec<String>,
) {
    let all: Vec<(&[u8], &Vec<String>)> = leaves.iter().map(|(k, r)| (k.as_slice(), r)).collect();
    let mut rules = branch(table, root, matching, &all, 0);
    rules.extend(last);
    chain(table, root, None, rules);
}

/// The rules for these leaves, which share their first `depth` digits; makes the chains below.
fn branch(
    table: &mut Table,
    root: &str,
    matching: &dyn Fn(&[u8]) -> String,
    leaves: &[(&[u8], &Vec<String>)],
    depth: usize,
) -> Vec<String> {
    if leaves.len() <= CHAIN_MAX_LEAVES {
        return leaves
            .iter()
            .flat_map(|(_, rules)| rules.iter().cloned())
            .collect();
    }
    let mut rules = Vec::new();
    // They are in order, so those of one digit stand together; keys are of one length, and all differ.
    for side in leaves.chunk_by(|a, b| a.0.get(depth) == b.0.get(depth)) {
        let shared = common(side[0].0, side[side.len() - 1].0);
        if side.len() == 1 || shared <= depth {
            rules.extend(side.iter().flat_map(|(_, rules)| rules.iter().cloned()));
            continue;
        }
        let prefix = &side[0].0[..shared];
        let name = name(root, prefix);
        let below = branch(table, root, matching, side, shared);
        chain(table, name.clone(), None, below);
        rules.push(format!("{} -g {name}", matching(prefix)));
    }
    rules
}

fn common(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The chain of all keys that begin with these digits.
fn name(root: &str, prefix: &[u8]) -> String {
    let digits: String = prefix.iter().map(|d| format!("{d:x}")).collect();
    let name = format!("{root}-{digits}");
    if name.len() <= CHAIN_MAX_BYTES {
        name
    } else {
        format!("{root}-{:016x}", names::fnv1a64(&digits))
    }
}

/// The hexadecimal digits of bytes.
pub(super) fn digits(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().flat_map(|b| [b >> 4, b & 15]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn tree(keys: &BTreeSet<u32>) -> Table {
        let leaf = |k: &u32| (digits(&k.to_be_bytes()), vec![format!("{k:08x}$ -g P-{k:08x}")]);
        let matching = |p: &[u8]| p.iter().map(|d| format!("{d:x}")).collect::<String>();
        let mut table = Table::new();
        grow(
            &mut table,
            "T",
            &matching,
            &keys.iter().map(leaf).collect(),
            vec!["-j DROP".into()],
        );
        table
    }

    /// Where a key ends, and how many rules it passed.
    fn walk(table: &Table, key: u32) -> (String, usize) {
        let text = format!("{key:08x}$");
        let (mut at, mut passed) = ("T".to_owned(), 0);
        while let Some(chain) = table.get(&at) {
            let hit = chain
                .rules
                .iter()
                .position(|r| r.split_once(" -g ").is_some_and(|(m, _)| text.starts_with(m)));
            passed += hit.unwrap_or(chain.rules.len()) + 1;
            match hit {
                Some(n) => at = chain.rules[n].split_once(" -g ").unwrap().1.to_owned(),
                None => return ("nobody".into(), passed),
            }
        }
        (at, passed)
    }

    proptest! {
        #[test]
        fn every_key_is_found_and_no_other(keys in proptest::collection::btree_set(0u32..5_000, 0..200), other: u32) {
            let table = tree(&keys);
            for key in &keys {
                prop_assert_eq!(walk(&table, *key).0, format!("P-{key:08x}"));
            }
            if !keys.contains(&other) {
                prop_assert_eq!(walk(&table, other).0, "nobody");
            }
        }

        #[test]
        fn one_more_key_changes_few_chains(keys in proptest::collection::btree_set(any::<u32>(), 300), more: u32) {
            let before = tree(&keys);
            let mut keys = keys;
            keys.insert(more);
            let after = tree(&keys);
            let changed = after.iter().filter(|(name, chain)| before.get(*name) != Some(chain)).count();
            // A chain that splits makes one for each digit.
            prop_assert!(changed <= 1 + 16, "{changed}");
        }
    }

    #[test]
    fn a_packet_passes_as_many_rules_among_four_thousand_ports_as_among_some_hundred() {
        let spread = |n: u32| {
            (0..n)
                .map(|i| i.wrapping_mul(0x9e37_79b9))
                .collect::<BTreeSet<u32>>()
        };
        let worst = |n: u32| {
            let keys = spread(n);
            let table = tree(&keys);
            keys.iter().map(|k| walk(&table, *k).1).max().unwrap()
        };
        let (few, many) = (worst(300), worst(4_096));
        // Two digits, and what is left.
        assert!(
            few <= 3 * CHAIN_MAX_LEAVES && many <= 3 * CHAIN_MAX_LEAVES,
            "{few} and {many}"
        );
    }
}
