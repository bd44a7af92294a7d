//! The chains of ports: how a packet finds its port's policy, and what that says. Of both families.
//!
//! ```text
//!   VBM-FROM  by the tap it came in by  -> VBM-E-<policy>   RETURN for what may leave, else DROP; only ports whose way out is not open
//!   VBM-TO    by the tap it goes out by -> VBM-P-<policy>   ACCEPT for what may enter; bridged packets
//!   VBM-AT    by its destination        -> VBM-P-<policy>   the same; packets that are routed, or the gateway's own
//! ```
//!
//! A routed packet has no tap yet when it is judged, so its address must do. The guard lets a frame leave for a tap only if its
//! destination is one that this port may have, so the two agree; where several ports share an address, a routed packet may enter if one of
//! them lets it in. What no chain accepts comes back, and the caller drops it.
//!
//! A policy is that of all ports with the same groups: one chain however many they are, and a port that comes changes only the
//! tree (see [`super::tree`]).

use super::{
    policy::{Policies, Source, whose},
    spelling,
    tables::{Table, chain},
    tree::{self, Leaves},
};
use crate::{DesiredNetwork, DesiredPort, names};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use vbm_core::{Direction, GroupId, Protocol, Rule};

/// IPv4 or IPv6: the same rules in another dialect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) fn has(self, net: &IpNet) -> bool {
        matches!((self, net), (Self::V4, IpNet::V4(_)) | (Self::V6, IpNet::V6(_)))
    }
}

/// Puts the chains of all ports into the filter table of a family.
pub(crate) fn ports(filter: &mut Table, net: &DesiredNetwork, policies: &Policies<'_>, family: Family) {
    let mut taps = Leaves::new();
    let mut leaving = Leaves::new();
    let mut at: BTreeMap<IpNet, BTreeSet<String>> = BTreeMap::new();
    for port in &net.ports {
        let key = policies.key(port);
        let (into, out) = (names::ingress_chain(key), names::egress_chain(key));
        let tap = names::tap(port.id);
        let digits = tap_digits(port);
        if !policies.egress_open(port) {
            if !filter.contains_key(&out) {
                chain(
                    filter,
                    out.clone(),
                    None,
                    policy(policies, port, Direction::Egress, family),
                );
            }
            leaving.insert(
                digits.clone(),
                vec![format!("-m physdev --physdev-in {tap} -g {out}")],
            );
        }
        if !filter.contains_key(&into) {
            chain(
                filter,
                into.clone(),
                None,
                policy(policies, port, Direction::Ingress, family),
            );
        }
        taps.insert(digits, vec![format!("-m physdev --physdev-out {tap} -g {into}")]);
        for (_, net) in port.identities().into_iter().filter(|(_, net)| family.has(net)) {
            at.entry(net).or_default().insert(into.clone());
        }
    }
    let by_tap = |way: &'static str| {
        move |prefix: &[u8]| {
            let digits: String = prefix.iter().map(|d| format!("{d:x}")).collect();
            format!("-m physdev --physdev-{way} {}{digits}+", names::TAP_PREFIX)
        }
    };
    tree::grow(filter, names::FROM_CHAIN, &by_tap("in"), &leaving, Vec::new());
    tree::grow(filter, names::DISPATCH_CHAIN, &by_tap("out"), &taps, Vec::new());
    by_address(filter, names::AT_CHAIN, "-d", at, family);
}

fn tap_digits(port: &DesiredPort) -> Vec<u8> {
    let [.., a, b, c, d] = *port.id.uuid().as_bytes();
    tree::digits(&[a, b, c, d])
}

/// Single addresses in a tree; wider ones, which are few, behind it. `end` is the option that names the address: `-s` or `-d`.
pub(super) fn by_address(
    table: &mut Table,
    root: &str,
    end: &'static str,
    at: BTreeMap<IpNet, BTreeSet<String>>,
    family: Family,
) {
    let mut leaves = Leaves::new();
    let mut wide = Vec::new();
    for (net, chains) in at {
        if net.prefix_len() < net.max_prefix_len() {
            let net = spelling::net(net);
            wide.extend(chains.iter().map(|c| format!("{end} {net} -j {c}")));
            continue;
        }
        let key = match net {
            IpNet::V4(net) => tree::digits(&net.addr().octets()),
            IpNet::V6(net) => tree::digits(&net.addr().octets()),
        };
        let net = spelling::net(net);
        // One that is alone is final; of several each is asked.
        let jump = if chains.len() == 1 { "-g" } else { "-j" };
        leaves.insert(
            key,
            chains.iter().map(|c| format!("{end} {net} {jump} {c}")).collect(),
        );
    }
    let matching = move |prefix: &[u8]| format!("{end} {}", covering(prefix, family));
    tree::grow(table, root, &matching, &leaves, wide);
}

/// All addresses that begin with some digits.
fn covering(prefix: &[u8], family: Family) -> String {
    let bits = prefix.len() * 4;
    let value = prefix.iter().fold(0u128, |all, d| all << 4 | u128::from(*d));
    match family {
        Family::V4 => {
            let address = value
                .checked_shl(32 - u32::try_from(bits).unwrap_or(32))
                .unwrap_or(0);
            format!(
                "{}/{bits}",
                std::net::Ipv4Addr::from(u32::try_from(address).unwrap_or(0))
            )
        }
        Family::V6 => {
            let address = value
                .checked_shl(128 - u32::try_from(bits).unwrap_or(128))
                .unwrap_or(0);
            let address = std::net::Ipv6Addr::from(address);
            format!("{}/{bits}", spelling::address(address.into()))
        }
    }
}

/// The name of the chain of a port's policy.
pub(crate) fn policy_chain(policies: &Policies<'_>, port: &DesiredPort, way: Direction) -> String {
    let key = policies.key(port);
    match way {
        Direction::Egress => names::egress_chain(key),
        _ => names::ingress_chain(key),
    }
}

/// The rules of a policy's chain, each once, in a fixed order; with whose they are.
pub(crate) fn labelled<'p>(
    policies: &Policies<'p>,
    port: &'p DesiredPort,
    way: Direction,
    family: Family,
) -> Vec<(String, Option<GroupId>, &'p Rule)> {
    let mut seen = BTreeSet::new();
    let mut lines = Vec::new();
    for source in policies.sources(port) {
        let rules: BTreeSet<&Rule> = source.rules.iter().filter(|r| r.direction == way).collect();
        for one in rules {
            let Some(line) = rule(policies, &source, one, family) else {
                continue;
            };
            if seen.insert(line.clone()) {
                lines.push((line, source.group.map(|(id, _)| id), one));
            }
        }
    }
    lines
}

/// A policy's chain.
fn policy(policies: &Policies<'_>, port: &DesiredPort, way: Direction, family: Family) -> Vec<String> {
    let rules = labelled(policies, port, way, family);
    let mut lines: Vec<String> = rules.into_iter().map(|(line, _, _)| line).collect();
    if way == Direction::Egress {
        lines.push("-j DROP".into());
    }
    lines
}

/// One rule, as `iptables-save` prints it; `None` where it speaks of nobody in this family.
fn rule(policies: &Policies<'_>, source: &Source<'_>, rule: &Rule, family: Family) -> Option<String> {
    let egress = rule.direction == Direction::Egress;
    let mut words = Vec::new();
    if let Some(net) = rule.from {
        if !family.has(&net) {
            return None;
        }
        if net.prefix_len() > 0 {
            words.push(format!(
                "-{} {}",
                if egress { 'd' } else { 's' },
                spelling::net(net)
            ));
        }
    }
    let (protocol, module) = match (rule.protocol, family) {
        (Protocol::Any, _) => (None, ""),
        (Protocol::Tcp, _) => (Some("tcp"), "tcp"),
        (Protocol::Udp, _) => (Some("udp"), "udp"),
        (Protocol::Icmp, Family::V4) => (Some("icmp"), "icmp"),
        (Protocol::Icmpv6, Family::V6) => (Some("ipv6-icmp"), "icmp6"),
        (Protocol::Icmp | Protocol::Icmpv6, _) => return None,
    };
    words.extend(protocol.map(|p| format!("-p {p}")));
    if rule.peer.is_some() {
        let id = whose(rule, source.group.map(|(id, _)| id))?;
        // One that is gone has no members, and no set.
        policies.members().get(&id)?;
        let set = names::group_set(id, family == Family::V6);
        words.push(format!(
            "-m set --match-set {set} {}",
            if egress { "dst" } else { "src" }
        ));
    }
    if let Some(ports) = rule.ports {
        let range = if ports.first() == ports.last() {
            ports.first().to_string()
        } else {
            format!("{}:{}", ports.first(), ports.last())
        };
        words.push(format!("-m {module} --dport {range}"));
    }
    if let Some(kind) = rule.icmp {
        let option = if family == Family::V4 {
            "icmp-type"
        } else {
            "icmpv6-type"
        };
        let code = kind.code().map(|c| format!("/{c}")).unwrap_or_default();
        words.push(format!("-m {module} --{option} {}{code}", kind.kind()));
    }
    words.push(if egress {
        "-j RETURN".into()
    } else {
        "-j ACCEPT".into()
    });
    Some(words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixture::{group, lab};
    use vbm_core::{NetworkMode, Rule};

    fn rendered(rule_text: &str, family: Family) -> Option<String> {
        let mut net = lab(NetworkMode::Isolated).into_inner();
        net.groups = vec![group(0xa, &[rule_text])];
        let policies = Policies::new(&net);
        let one: Rule = rule_text.parse().unwrap();
        let group = &net.groups[0];
        let source = Source {
            group: Some((group.id, Some(group))),
            rules: &group.spec.rules,
            egress_open: true,
        };
        rule(&policies, &source, &one, family)
    }

    #[test]
    fn each_rule_is_written_as_it_will_be_read_in_the_families_that_it_speaks_of() {
        for (text, v4, v6) in [
            ("tcp/1@0.0.0.0/0", Some("-p tcp -m tcp --dport 1 -j ACCEPT"), None),
            ("tcp/1-9@::/0", None, Some("-p tcp -m tcp --dport 1:9 -j ACCEPT")),
            ("any@10.1.2.3/8", Some("-s 10.0.0.0/8 -j ACCEPT"), None),
            (
                "egress:udp/53@10.1.2.3/32",
                Some("-d 10.1.2.3/32 -p udp -m udp --dport 53 -j RETURN"),
                None,
            ),
            (
                "icmp/type=3,code=4",
                Some("-p icmp -m icmp --icmp-type 3/4 -j ACCEPT"),
                None,
            ),
            (
                "icmpv6/type=128",
                None,
                Some("-p ipv6-icmp -m icmp6 --icmpv6-type 128 -j ACCEPT"),
            ),
            (
                "tcp/22@self",
                Some("-p tcp -m set --match-set vbm4-0000000a src -m tcp --dport 22 -j ACCEPT"),
                Some("-p tcp -m set --match-set vbm6-0000000a src -m tcp --dport 22 -j ACCEPT"),
            ),
            ("any@group:0190b6f2-4c1e-7cc3-a7a4-0d1f000000ff", None, None),
            ("any@group:nobody", None, None),
            ("any@::102:304/120", None, Some("-s ::1.2.3.0/120 -j ACCEPT")),
        ] {
            assert_eq!(rendered(text, Family::V4).as_deref(), v4, "{text}");
            assert_eq!(rendered(text, Family::V6).as_deref(), v6, "{text}");
        }
    }

    #[test]
    fn digits_of_an_address_cover_what_begins_with_them() {
        assert_eq!(covering(&[0, 10, 0, 9], Family::V4), "10.9.0.0/16");
        assert_eq!(covering(&[15, 13], Family::V6), "fd00::/8");
        let long = [vec![0; 24], vec![0, 1, 0, 2]].concat();
        assert_eq!(covering(&long, Family::V6), "::1.2.0.0/112");
    }
}
