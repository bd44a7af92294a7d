//! A policy's rules and the members of its groups, as nft prints them: what is compared with what stands is text.

use crate::{
    DesiredPort, names,
    plan::{
        filter::Family,
        guard,
        policy::{Policies, Source, whose},
    },
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::collections::BTreeSet;
use vbm_core::{Direction, GroupId, Protocol, Rule};

/// The rules of a policy's chain, each once, in a fixed order; with whose they are.
pub(super) fn labelled<'p>(
    policies: &Policies<'p>,
    port: &'p DesiredPort,
    way: Direction,
) -> Vec<(String, Option<GroupId>, &'p Rule)> {
    let mut seen = BTreeSet::new();
    let mut lines = Vec::new();
    for source in policies.sources(port) {
        let rules: BTreeSet<&Rule> = source.rules.iter().filter(|r| r.direction == way).collect();
        for one in rules {
            for line in rule(policies, &source, one) {
                if seen.insert(line.clone()) {
                    lines.push((line, source.group.map(|(id, _)| id), one));
                }
            }
        }
    }
    lines
}

pub(super) fn policy(policies: &Policies<'_>, port: &DesiredPort, way: Direction) -> Vec<String> {
    let rules = labelled(policies, port, way);
    rules.into_iter().map(|(line, _, _)| line).collect()
}

/// One rule, as nft prints it: none where it speaks of nobody, two where members are of both families.
fn rule(policies: &Policies<'_>, source: &Source<'_>, rule: &Rule) -> Vec<String> {
    let egress = rule.direction == Direction::Egress;
    let end = if egress { "daddr" } else { "saddr" };
    let mut group = None;
    if rule.peer.is_some() {
        // One that is gone has no members, and no set.
        let id = whose(rule, source.group.map(|(id, _)| id));
        group = id.filter(|id| policies.members().contains_key(id));
        if group.is_none() {
            return Vec::new();
        }
    }
    let family = |v4: bool| if v4 { Family::V4 } else { Family::V6 };
    let by_protocol = match rule.protocol {
        Protocol::Icmp => Some(Family::V4),
        Protocol::Icmpv6 => Some(Family::V6),
        _ => None,
    };
    let by_net = rule.from.map(|net| family(matches!(net, IpNet::V4(_))));
    let families: Vec<Option<Family>> = match (by_net, by_protocol) {
        (Some(a), Some(b)) if a != b => return Vec::new(),
        (Some(one), _) | (None, Some(one)) => vec![Some(one)],
        (None, None) if group.is_some() => vec![Some(Family::V4), Some(Family::V6)],
        (None, None) => vec![None],
    };
    let line = |family: Option<Family>| {
        let ip = if family == Some(Family::V6) { "ip6" } else { "ip" };
        let mut words = Vec::new();
        if let Some(net) = rule.from.filter(|net| net.prefix_len() > 0) {
            words.push(format!("{ip} {end} {}", guard::spelled(&net.trunc())));
        }
        if let Some(id) = group {
            let set = names::group_set(id, family == Some(Family::V6));
            words.push(format!("{ip} {end} @{set}"));
        }
        // All of a family, which nothing else says: messages do.
        if words.is_empty() && by_protocol.is_none() {
            words.extend(family.map(|f| format!("meta nfproto {}", if f == Family::V4 { 2 } else { 10 })));
        }
        words.extend(protocol(rule));
        words.push(
            if egress {
                "counter return"
            } else {
                "counter accept"
            }
            .to_owned(),
        );
        words.join(" ")
    };
    families.into_iter().map(line).collect()
}

/// What a rule says of protocol, ports and messages.
fn protocol(rule: &Rule) -> Option<String> {
    let (name, number) = match rule.protocol {
        Protocol::Any => return None,
        Protocol::Tcp => ("tcp", 6),
        Protocol::Udp => ("udp", 17),
        Protocol::Icmp | Protocol::Icmpv6 => return Some(messages(rule)),
    };
    Some(match rule.ports {
        None => format!("meta l4proto {number}"),
        Some(ports) if ports.first() == ports.last() => format!("{name} dport {}", ports.first()),
        Some(ports) => format!("{name} dport {}-{}", ports.first(), ports.last()),
    })
}

fn messages(rule: &Rule) -> String {
    let name = if rule.protocol == Protocol::Icmp {
        "icmp"
    } else {
        "icmpv6"
    };
    match rule.icmp {
        // Any of them: said so that the family is part of it.
        None if name == "icmp" => "ip protocol 1".into(),
        None => "icmpv6 type 0-255".into(),
        Some(kind) => match kind.code() {
            None => format!("{name} type {}", kind.kind()),
            Some(code) => format!("{name} type {} {name} code {code}", kind.kind()),
        },
    }
}

/// Members as intervals that do not overlap, as nft prints them.
pub(super) fn aggregated4(members: &BTreeSet<IpNet>) -> BTreeSet<String> {
    let of_family = members.iter().filter_map(|net| match net {
        IpNet::V4(net) => Some(*net),
        IpNet::V6(_) => None,
    });
    let all = Ipv4Net::aggregate(&of_family.collect());
    all.into_iter().map(|net| guard::spelled(&net.into())).collect()
}

pub(super) fn aggregated6(members: &BTreeSet<IpNet>) -> BTreeSet<String> {
    let of_family = members.iter().filter_map(|net| match net {
        IpNet::V6(net) => Some(*net),
        IpNet::V4(_) => None,
    });
    let all = Ipv6Net::aggregate(&of_family.collect());
    all.into_iter().map(|net| guard::spelled(&net.into())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixture::{group, lab};
    use vbm_core::NetworkMode;

    fn rendered(text: &str) -> Vec<String> {
        let mut net = lab(NetworkMode::Isolated).into_inner();
        net.groups = vec![group(0xa, &[text])];
        let policies = Policies::new(&net);
        let one: Rule = text.parse().unwrap();
        let group = &net.groups[0];
        let source = Source {
            group: Some((group.id, Some(group))),
            rules: &group.spec.rules,
            egress_open: true,
        };
        rule(&policies, &source, &one)
    }

    #[test]
    fn each_rule_is_written_as_nft_prints_it() {
        for (text, lines) in [
            ("any", &["counter accept"][..]),
            ("tcp", &["meta l4proto 6 counter accept"]),
            ("tcp/1@0.0.0.0/0", &["meta nfproto 2 tcp dport 1 counter accept"]),
            ("udp/1-9@::/0", &["meta nfproto 10 udp dport 1-9 counter accept"]),
            ("any@10.1.2.3/8", &["ip saddr 10.0.0.0/8 counter accept"]),
            (
                "egress:udp/53@10.1.2.3/32",
                &["ip daddr 10.1.2.3 udp dport 53 counter return"],
            ),
            ("icmp", &["ip protocol 1 counter accept"]),
            ("icmp/type=3,code=4", &["icmp type 3 icmp code 4 counter accept"]),
            ("icmpv6", &["icmpv6 type 0-255 counter accept"]),
            (
                "icmpv6/type=128@fd00::/64",
                &["ip6 saddr fd00::/64 icmpv6 type 128 counter accept"],
            ),
            (
                "tcp/22@self",
                &[
                    "ip saddr @vbm4-0000000a tcp dport 22 counter accept",
                    "ip6 saddr @vbm6-0000000a tcp dport 22 counter accept",
                ],
            ),
            ("any@group:0190b6f2-4c1e-7cc3-a7a4-0d1f000000ff", &[]),
        ] {
            assert_eq!(rendered(text), lines, "{text}");
        }
    }

    #[test]
    fn members_that_lie_in_others_are_not_told_twice() {
        let members = [
            "10.0.0.0/8",
            "10.9.0.1/32",
            "192.0.2.2/31",
            "192.0.2.4/32",
            "fd00::/64",
            "fd00::1/128",
        ]
        .map(|n| n.parse::<IpNet>().unwrap());
        let members = BTreeSet::from(members);
        let four = aggregated4(&members);
        assert_eq!(
            four.iter().map(String::as_str).collect::<Vec<_>>(),
            ["10.0.0.0/8", "192.0.2.2/31", "192.0.2.4"]
        );
        assert_eq!(aggregated6(&members).len(), 1);
    }
}
