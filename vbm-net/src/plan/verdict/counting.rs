//! What each rule let begin: the counters that nft prints beside its rules.

use super::rule::labelled;
use crate::{
    DesiredNetwork,
    limits::counters::{Counted, Traffic},
    plan::{filter, nft_table, policy::Policies},
};
use std::collections::{BTreeMap, BTreeSet};
use vbm_core::{Direction, GroupId, Rule};

/// What each rule let begin, from `nft -nn list table` of the rules.
pub(crate) fn by_rule(net: &DesiredNetwork, counted: &Counted) -> BTreeMap<(Option<GroupId>, Rule), Traffic> {
    let policies = Policies::new(net);
    let none = BTreeMap::new();
    let mut sums: BTreeMap<(Option<GroupId>, Rule), Traffic> = BTreeMap::new();
    let mut read = BTreeSet::new();
    for port in &net.ports {
        for way in [Direction::Ingress, Direction::Egress] {
            let chain = filter::policy_chain(&policies, port, way);
            // Ports of the same groups have one chain.
            if !read.insert(chain.clone()) {
                continue;
            }
            let rules = counted.get(&chain).unwrap_or(&none);
            for (line, group, rule) in labelled(&policies, port, way) {
                *sums.entry((group, rule.clone())).or_default() +=
                    rules.get(&line).copied().unwrap_or_default();
            }
        }
    }
    sums
}

/// Reads the counters of a table as nft prints it with its state: `... counter packets 12 bytes 720 accept`.
pub(crate) fn counted(text: &str) -> Counted {
    let mut all = Counted::new();
    for (name, lines) in nft_table::parse(text).chains {
        for line in lines {
            if let Some((rule, traffic)) = one_counted(&line) {
                *all.entry(name.clone()).or_default().entry(rule).or_default() += traffic;
            }
        }
    }
    all
}

fn one_counted(line: &str) -> Option<(String, Traffic)> {
    let (before, rest) = line.split_once("counter packets ")?;
    let (packets, rest) = rest.split_once(" bytes ")?;
    let (bytes, verdict) = rest.split_once(' ')?;
    let traffic = Traffic {
        packets: packets.parse().ok()?,
        bytes: bytes.parse().ok()?,
    };
    Some((format!("{before}counter {verdict}"), traffic))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn counters_are_read_beside_their_rule() {
        let text = "table inet vbm-filter {\n\tchain VBM-P-1 {\n\t\ttcp dport 80 counter packets 3 bytes 180 accept\n\t\tdrop\n\t}\n}\n";
        let counted = counted(text);
        let traffic = counted["VBM-P-1"]["tcp dport 80 counter accept"];
        assert_eq!((traffic.packets, traffic.bytes), (3, 180));
    }

    proptest! {
        #[test]
        fn reading_garbage_never_panics(text in "(chain|counter packets |[0-9a-z {}\",:\\n\\t])*") { counted(&text); }
    }
}
