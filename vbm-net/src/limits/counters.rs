//! What passed: by port, from its link and its buckets; by rule, from the counters of the chains. Pure.
//!
//! Rules see only packets that begin something: what they let in passes by itself afterwards. So a rule's counter says how often it
//! was the one that let something begin. Chains are shared by the ports of the same groups, and so are their counters; they begin anew when
//! the rules of their chain change, and when the host starts.

use crate::{
    DesiredNetwork,
    plan::{
        filter::{self, Family},
        policy::Policies,
    },
};
use std::{collections::BTreeMap, ops::AddAssign};
use vbm_core::{Direction, GroupId, PortId, Rule};

/// Packets and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// How many packets.
    pub packets: u64,
    /// Their bytes: of a port with the Ethernet header, of a rule without.
    pub bytes: u64,
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

/// What passed a port since its NIC was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PortCounters {
    /// The port.
    pub id: PortId,
    /// What reached the VM.
    pub received: Traffic,
    /// What the VM sent, whether or not the guard and the groups let it pass.
    pub sent: Traffic,
    /// Packets to the VM that its bandwidth limit dropped.
    pub received_dropped: u64,
    /// Packets of the VM that its bandwidth limit dropped.
    pub sent_dropped: u64,
    /// Packets that would have begun a connection beyond its limit.
    pub connections_refused: u64,
}

impl PortCounters {
    /// Nothing yet.
    pub(crate) fn none(id: PortId) -> Self {
        Self {
            id,
            received: Traffic::default(),
            sent: Traffic::default(),
            received_dropped: 0,
            sent_dropped: 0,
            connections_refused: 0,
        }
    }
}

/// What a rule let begin.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RuleCounters {
    /// Its group; `None`: a rule of ports' own.
    pub group: Option<GroupId>,
    /// The rule.
    pub rule: Rule,
    /// The packets that it let begin something.
    pub passed: Traffic,
}

/// What passed on a network of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct NetworkCounters {
    /// By port, in the order in which they are wanted.
    pub ports: Vec<PortCounters>,
    /// By rule, of the groups that the ports are in.
    pub rules: Vec<RuleCounters>,
}

impl NetworkCounters {
    /// Of a network where nothing has passed.
    pub fn none(net: &DesiredNetwork) -> Self {
        Self {
            ports: net.ports.iter().map(|p| PortCounters::none(p.id)).collect(),
            rules: by_rule(net, &Counted::new(), &Counted::new()),
        }
    }
}

/// Counters of the rules of each chain, by the text of the rule.
pub(crate) type Counted = BTreeMap<String, BTreeMap<String, Traffic>>;

/// Reads `iptables-save -c`.
pub(crate) fn parse(text: &str) -> Counted {
    let mut all = Counted::new();
    for line in text.lines() {
        if let Some((chain, rule, traffic)) = parse_line(line) {
            let rules = all.entry(chain.to_owned()).or_default();
            *rules.entry(rule.replace('"', "")).or_default() += traffic;
        }
    }
    all
}

/// `[12:720] -A CHAIN rule`.
fn parse_line(line: &str) -> Option<(&str, &str, Traffic)> {
    let (counts, rest) = line.strip_prefix('[')?.split_once("] -A ")?;
    let (packets, bytes) = counts.split_once(':')?;
    let traffic = Traffic {
        packets: packets.parse().ok()?,
        bytes: bytes.parse().ok()?,
    };
    let (chain, rule) = rest.split_once(' ')?;
    Some((chain, rule, traffic))
}

/// What each rule let begin, from the counters of both families.
pub(crate) fn by_rule(net: &DesiredNetwork, v4: &Counted, v6: &Counted) -> Vec<RuleCounters> {
    let policies = Policies::new(net);
    let mut sums: BTreeMap<(Option<GroupId>, Rule), Traffic> = BTreeMap::new();
    let mut read = std::collections::BTreeSet::new();
    for port in &net.ports {
        for (family, counted) in [(Family::V4, v4), (Family::V6, v6)] {
            for way in [Direction::Ingress, Direction::Egress] {
                let chain = filter::policy_chain(&policies, port, way);
                // Ports of the same groups have one chain.
                if !read.insert((family, chain.clone())) {
                    continue;
                }
                let none = BTreeMap::new();
                let rules = counted.get(&chain).unwrap_or(&none);
                for (line, group, rule) in filter::labelled(&policies, port, way, family) {
                    *sums.entry((group, rule.clone())).or_default() +=
                        rules.get(&line).copied().unwrap_or_default();
                }
            }
        }
    }
    listed(sums)
}

/// As a list.
pub(crate) fn listed(sums: BTreeMap<(Option<GroupId>, Rule), Traffic>) -> Vec<RuleCounters> {
    let count = |((group, rule), passed)| RuleCounters { group, rule, passed };
    sums.into_iter().map(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixture::{group, lab};
    use proptest::prelude::*;
    use vbm_core::NetworkMode;

    const SAVED: &str = "*filter\n:INPUT DROP [7:700]\n[3:180] -A VBM-P-1 -p tcp -m tcp --dport 80 -j ACCEPT\n[x:1] -A VBM-P-1 -j DROP\nCOMMIT\n";

    #[test]
    fn counters_are_read_as_they_are_saved() {
        let counted = parse(SAVED);
        let traffic = counted["VBM-P-1"]["-p tcp -m tcp --dport 80 -j ACCEPT"];
        assert_eq!((traffic.packets, traffic.bytes), (3, 180));
        assert_eq!(counted["VBM-P-1"].len(), 1);
    }

    #[test]
    fn what_a_shared_chain_counted_is_counted_once_and_by_the_group_that_lets_it_pass() {
        let mut net = lab(NetworkMode::Isolated).into_inner();
        net.groups = vec![group(0xa, &["tcp/80", "egress:udp/53"]), group(0xb, &["tcp/80"])];
        for port in &mut net.ports {
            port.rules.clear();
            port.policy.groups = net.groups.iter().map(|g| g.id).collect();
        }
        let policies = Policies::new(&net);
        let chain = filter::policy_chain(&policies, &net.ports[0], Direction::Ingress);
        let saved = format!("[3:180] -A {chain} -p tcp -m tcp --dport 80 -j ACCEPT\n");
        let rules = by_rule(&net, &parse(&saved), &Counted::new());
        let passed: Vec<_> = rules
            .iter()
            .map(|r| (r.group, r.rule.to_string(), r.passed.packets))
            .collect();
        assert!(
            passed.contains(&(Some(net.groups[0].id), "tcp/80".into(), 3)),
            "{passed:?}"
        );
        assert_eq!(passed.iter().map(|(_, _, n)| n).sum::<u64>(), 3, "{passed:?}");
    }

    proptest! {
        #[test]
        fn reading_garbage_never_panics(text in "(\\[|\\]| -A |[0-9:A-Z \\n])*{0,20}") { parse(&text); }
    }
}
