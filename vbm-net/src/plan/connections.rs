//! How many connections a port may have: counted where what the rules let pass is about to leave.
//!
//! ```text
//!   mangle POSTROUTING  new -> VBM-CF  by source       -> VBM-C-<port>   above its number: drop
//!                       new -> VBM-CT  by destination  -> VBM-C-<port>
//! ```
//!
//! Behind the rules of groups, so that what they refuse takes no place; before source NAT, so that addresses are the ports' own. One rule
//! counts both ways, which makes it one number. A flow that stands already is not asked again: a smaller number
//! lets it end by itself. There is no such table where no port has a number.

use super::{
    filter::{self, Family},
    tables::{Table, Tables, chain},
};
use crate::{DesiredNetwork, names};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};

const TABLE: &str = "mangle";
const HOOKS: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];

/// Puts the table into those of a family, where a port has a number.
pub(super) fn add(tables: &mut Tables, net: &DesiredNetwork, family: Family) {
    let mut table = Table::new();
    let mut at: BTreeMap<IpNet, BTreeSet<String>> = BTreeMap::new();
    for port in &net.ports {
        let Some(most) = port.policy.limits.connections else {
            continue;
        };
        let name = names::count_chain(port.id);
        // All that comes by has the same key: nothing of an address is left behind a mask of 0.
        let count =
            format!("-m connlimit --connlimit-above {most} --connlimit-mask 0 --connlimit-saddr -j DROP");
        chain(&mut table, name.clone(), None, vec![count]);
        for (_, net) in port.identities().into_iter().filter(|(_, net)| family.has(net)) {
            at.entry(net).or_default().insert(name.clone());
        }
    }
    if at.is_empty() {
        return;
    }
    let ways = [(names::COUNT_FROM_CHAIN, "-s"), (names::COUNT_TO_CHAIN, "-d")];
    for (root, end) in ways {
        filter::by_address(&mut table, root, end, at.clone(), family);
    }
    hooks(&mut table);
    let new = |(root, _)| format!("-m conntrack --ctstate NEW -j {root}");
    chain(&mut table, "POSTROUTING", Some("ACCEPT"), ways.map(new).into());
    tables.insert(TABLE.into(), table);
}

fn hooks(table: &mut Table) {
    for hook in HOOKS {
        chain(table, hook, Some("ACCEPT"), Vec::new());
    }
}

/// Where the table stands and nobody wants it any more, it is wanted empty.
pub(crate) fn settle(want: &mut Tables, have: &Tables) {
    let stale = |table: &Table| table.contains_key(names::COUNT_FROM_CHAIN);
    if !want.contains_key(TABLE) && have.get(TABLE).is_some_and(stale) {
        let mut table = Table::new();
        hooks(&mut table);
        want.insert(TABLE.into(), table);
    }
}

/// Of the chain of a port, what it dropped.
pub(crate) fn refused(counted: &crate::limits::counters::Counted, port: vbm_core::PortId) -> u64 {
    let rules = counted.get(&names::count_chain(port));
    rules
        .into_iter()
        .flat_map(|r| r.values())
        .map(|t| t.packets)
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Validated,
        plan::{fixture::lab, inside, tables},
    };
    use vbm_core::NetworkMode;

    fn limited() -> Validated<DesiredNetwork> {
        let mut net = lab(NetworkMode::Isolated).into_inner();
        net.ports[0].policy.limits.connections = Some(50);
        Validated::<DesiredNetwork>::new(net).unwrap()
    }

    #[test]
    fn a_port_with_a_number_is_counted_both_ways_by_one_rule_and_the_others_are_not() {
        let tables = inside::render(&limited(), None);
        let lines = |chain: &str| tables[TABLE][chain].rules.join("\n");
        assert_eq!(
            lines("POSTROUTING"),
            "-m conntrack --ctstate NEW -j VBM-CF\n-m conntrack --ctstate NEW -j VBM-CT"
        );
        assert_eq!(lines("VBM-CF"), "-s 10.77.0.10/32 -g VBM-C-0000000a");
        assert_eq!(lines("VBM-CT"), "-d 10.77.0.10/32 -g VBM-C-0000000a");
        assert_eq!(
            lines("VBM-C-0000000a"),
            "-m connlimit --connlimit-above 50 --connlimit-mask 0 --connlimit-saddr -j DROP"
        );
        assert!(!inside::render(&lab(NetworkMode::Isolated), None).contains_key(TABLE));
    }

    #[test]
    fn the_last_number_takes_its_chains_along() {
        let have = inside::render(&limited(), None);
        let mut want = inside::render(&lab(NetworkMode::Isolated), None);
        settle(&mut want, &have);
        let script = tables::diff(&want, &have).script;
        for chain in ["VBM-CF", "VBM-CT", "VBM-C-0000000a"] {
            assert!(script.contains(&format!("-X {chain}\n")), "{script}");
        }
        let settled = want.clone();
        settle(&mut want, &settled);
        assert_eq!(tables::diff(&want, &want.clone()).script, "");
    }
}
