//! What a port's groups say: whose rules count, who is a member, and whether a packet may pass. Pure; the kernel's rules are rendered
//! from it, and [`super::trace`] and the cutting of flows ask it.
//!
//! ```text
//!   port --> its own rules, if it has any  --+
//!        --> each of its groups            --+--> sources --> ingress: what any rule allows, else nothing
//!                                                         --> egress: all, if a source leaves it open; else what any rule allows
//! ```
//!
//! A port with neither rules nor groups lets nothing in and all out. A group that is gone allows nothing, either way, and has no
//! members: what refers to it is more closed, never more open.

use crate::{DesiredGroup, DesiredNetwork, DesiredPort, names};
use ipnet::IpNet;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};
use vbm_core::{Direction, GroupId, Peer, Protocol, Rule};

/// A packet that begins a flow, as rules see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Its source.
    pub from: IpAddr,
    /// Its destination, after translation.
    pub to: IpAddr,
    /// Its protocol; `Any` is one of the others.
    pub protocol: Protocol,
    /// Its destination port, with tcp and udp.
    pub to_port: Option<u16>,
    /// Its type and code, with icmp and icmpv6.
    pub icmp: Option<(u8, u8)>,
}

impl Packet {
    /// The end that rules of a direction speak of.
    pub const fn far_end(&self, way: Direction) -> IpAddr {
        match way {
            Direction::Egress => self.to,
            _ => self.from,
        }
    }
}

/// Where rules of a port come from.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The group, and itself unless it is gone; `None`: rules of the port's own.
    pub group: Option<(GroupId, Option<&'a DesiredGroup>)>,
    /// Its rules.
    pub rules: &'a [Rule],
    /// Whether it lets all out.
    pub egress_open: bool,
}

/// The groups of a network with their members.
#[derive(Debug)]
pub struct Policies<'a> {
    groups: BTreeMap<GroupId, &'a DesiredGroup>,
    members: BTreeMap<GroupId, BTreeSet<IpNet>>,
}

impl<'a> Policies<'a> {
    /// Those of a network.
    pub fn new(net: &'a DesiredNetwork) -> Self {
        let groups: BTreeMap<_, _> = net.groups.iter().map(|g| (g.id, g)).collect();
        // Only groups that a rule speaks of need their members.
        let mut members: BTreeMap<GroupId, BTreeSet<IpNet>> = BTreeMap::new();
        let own = net
            .ports
            .iter()
            .flat_map(|p| &p.rules)
            .filter_map(|r| whose(r, None));
        let theirs = net
            .groups
            .iter()
            .flat_map(|g| g.spec.rules.iter().filter_map(|r| whose(r, Some(g.id))));
        for id in own.chain(theirs) {
            if let Some(group) = groups.get(&id) {
                members
                    .entry(id)
                    .or_insert_with(|| group.members.iter().map(IpNet::trunc).collect());
            }
        }
        for port in &net.ports {
            for id in &port.policy.groups {
                if let Some(members) = members.get_mut(id) {
                    members.extend(port.identities().into_iter().map(|(_, net)| net));
                }
            }
        }
        // What addresses they have only the LAN's server knows: better nobody than somebody else.
        if !net.spec.serve_dhcp {
            members.values_mut().for_each(BTreeSet::clear);
        }
        Self { groups, members }
    }

    /// The members of each group that a rule speaks of.
    pub const fn members(&self) -> &BTreeMap<GroupId, BTreeSet<IpNet>> {
        &self.members
    }

    /// Where the rules of a port come from.
    pub fn sources<'p>(&self, port: &'p DesiredPort) -> Vec<Source<'p>>
    where
        'a: 'p,
    {
        let own = Source {
            group: None,
            rules: &port.rules,
            egress_open: !port.rules.iter().any(|r| r.direction == Direction::Egress),
        };
        let counts = !port.rules.is_empty() || port.policy.groups.is_empty();
        let groups: BTreeSet<GroupId> = port.policy.groups.iter().copied().collect();
        let of = |id: GroupId| match self.groups.get(&id) {
            Some(group) => Source {
                group: Some((id, Some(*group))),
                rules: &group.spec.rules,
                egress_open: group.spec.egress_open(),
            },
            None => Source {
                group: Some((id, None)),
                rules: &[],
                egress_open: false,
            },
        };
        counts
            .then_some(own)
            .into_iter()
            .chain(groups.into_iter().map(of))
            .collect()
    }

    /// Whether all may leave a port.
    pub fn egress_open(&self, port: &DesiredPort) -> bool {
        let all = |r: &Rule| *r == Rule::all(Direction::Egress);
        self.sources(port)
            .iter()
            .any(|s| s.egress_open || s.rules.iter().any(all))
    }

    /// The first rule of a port that lets a packet pass in a direction, and where it comes from. `None` and open egress: see
    /// [`Policies::egress_open`].
    pub fn rule_for<'p>(
        &self,
        port: &'p DesiredPort,
        way: Direction,
        packet: &Packet,
    ) -> Option<(Source<'p>, &'p Rule)>
    where
        'a: 'p,
    {
        self.sources(port).into_iter().find_map(|source| {
            let rules = source.rules.iter().filter(|r| r.direction == way);
            let mut passing = rules.filter(|r| self.covers(r, source.group.map(|(id, _)| id), packet));
            passing.next().map(|rule| (source, rule))
        })
    }

    /// Whether a packet may pass a port in a direction.
    pub fn allows(&self, port: &DesiredPort, way: Direction, packet: &Packet) -> bool {
        (way == Direction::Egress && self.egress_open(port)) || self.rule_for(port, way, packet).is_some()
    }

    fn covers(&self, rule: &Rule, stands_in: Option<GroupId>, packet: &Packet) -> bool {
        let end = packet.far_end(rule.direction);
        let protocol = rule.protocol == Protocol::Any || rule.protocol == packet.protocol;
        let ports = rule
            .ports
            .is_none_or(|ports| packet.to_port.is_some_and(|port| ports.contains(port)));
        let icmp = rule
            .icmp
            .is_none_or(|kind| packet.icmp.is_some_and(|(t, c)| kind.covers(t, c)));
        let from = rule.from.is_none_or(|net| net.contains(&end));
        let member = rule.peer.is_none()
            || whose(rule, stands_in)
                .and_then(|id| self.members.get(&id))
                .is_some_and(|members| members.iter().any(|net| net.contains(&end)));
        protocol && ports && icmp && from && member
    }

    /// What tells the policy of a port from others: ports of the same groups, without rules of their own, share it, and with it their
    /// chains. It does not change with the rules of the groups.
    pub fn key(&self, port: &DesiredPort) -> u64 {
        use std::fmt::Write as _;
        let mut text = String::new();
        for source in self.sources(port) {
            // A String never refuses to be written to.
            let _infallible = match source.group {
                Some((id, _)) => write!(text, "{id};"),
                None => source.rules.iter().try_for_each(|rule| write!(text, "{rule},")),
            };
        }
        names::fnv1a64(&text)
    }
}

/// The group that a rule speaks of. `stands_in`: the group that it stands in; a rule of a port's own has no "itself".
pub(crate) fn whose(rule: &Rule, stands_in: Option<GroupId>) -> Option<GroupId> {
    match rule.peer.as_ref()? {
        Peer::Itself => stands_in,
        Peer::Group(id) => Some(*id),
        Peer::Named(_) => None,
    }
}

/// Whose an address is.
#[derive(Debug)]
pub struct Owners<'a> {
    single: BTreeMap<IpAddr, Vec<&'a DesiredPort>>,
    wide: Vec<(IpNet, &'a DesiredPort)>,
}

impl<'a> Owners<'a> {
    /// Of the ports of a network on this host.
    pub fn new(net: &'a DesiredNetwork) -> Self {
        let mut all = Self {
            single: BTreeMap::new(),
            wide: Vec::new(),
        };
        for port in &net.ports {
            for (_, net) in port.identities() {
                if net.prefix_len() == net.max_prefix_len() {
                    let ports = all.single.entry(net.addr()).or_default();
                    if !ports.iter().any(|p| p.id == port.id) {
                        ports.push(port);
                    }
                } else {
                    all.wide.push((net, port));
                }
            }
        }
        all
    }

    /// The ports that are meant by an address: those that have it for their own or among single pairs; else those that were allowed
    /// addresses around it.
    pub fn of(&self, address: IpAddr) -> Vec<&'a DesiredPort> {
        match self.single.get(&address) {
            Some(ports) => ports.clone(),
            None => {
                let around = self.wide.iter().filter(|(net, _)| net.contains(&address));
                around.map(|(_, port)| *port).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixture::{group, lab};
    use vbm_core::NetworkMode;

    fn udp(from: &str, to: &str, port: u16) -> Packet {
        Packet {
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            protocol: Protocol::Udp,
            to_port: Some(port),
            icmp: None,
        }
    }

    #[test]
    fn a_port_may_do_what_any_of_its_groups_allows_and_nothing_for_one_that_is_gone() {
        let mut net = lab(NetworkMode::Isolated).into_inner();
        net.groups = vec![
            group(1, &["udp/53"]),
            group(2, &["egress:udp/123"]),
            group(3, &["any@self"]),
        ];
        net.ports[0].rules.clear();
        let ids: Vec<_> = net.groups.iter().map(|g| g.id).collect();
        let ask = |groups: &[GroupId], way, packet: &Packet| {
            let mut net = net.clone();
            net.ports[0].policy.groups = groups.to_vec();
            Policies::new(&net).allows(&net.ports[0], way, packet)
        };
        let (dns, ntp) = (
            udp("192.0.2.1", "10.77.0.10", 53),
            udp("10.77.0.10", "192.0.2.1", 123),
        );
        let away = udp("10.77.0.10", "192.0.2.1", 53);
        let (ingress, egress) = (Direction::Ingress, Direction::Egress);
        assert!(!ask(&[], ingress, &dns) && ask(&[], egress, &away));
        assert!(ask(&[ids[0]], ingress, &dns) && ask(&[ids[0]], egress, &away));
        assert!(ask(&[ids[1]], egress, &ntp) && !ask(&[ids[1]], egress, &away));
        assert!(ask(&[ids[1], ids[0]], egress, &away), "the first leaves it open");
        let gone = group(9, &[]).id;
        assert!(!ask(&[gone], ingress, &dns) && !ask(&[gone], egress, &away));
        assert!(ask(&[gone, ids[0]], ingress, &dns));
    }

    #[test]
    fn the_members_of_a_group_are_its_ports_with_their_pairs_and_who_was_told() {
        let mut net = lab(NetworkMode::Isolated).into_inner();
        net.groups = vec![group(1, &["udp/53@self"])];
        let id = net.groups[0].id;
        net.groups[0].members = vec!["10.77.0.200/32".parse().unwrap()];
        net.ports[0].rules.clear();
        net.ports[0].policy.groups = vec![id];
        net.ports[1].policy.groups = vec![id];
        net.ports[1].policy.pairs = vec![vbm_core::AddressPair {
            address: "10.77.0.64/30".parse().unwrap(),
            mac: None,
        }];
        let policies = Policies::new(&net);
        let mut from =
            |a: &str| policies.allows(&net.ports[0], Direction::Ingress, &udp(a, "10.77.0.10", 53));
        assert!(
            ["10.77.0.11", "10.77.0.66", "10.77.0.200", "10.77.0.10"]
                .into_iter()
                .all(&mut from)
        );
        assert!(!from("10.77.0.68") && !from("10.77.0.201"));
    }

    #[test]
    fn ports_of_the_same_groups_share_a_key_and_rules_of_the_groups_do_not_change_it() {
        let mut net = lab(NetworkMode::Isolated).into_inner();
        net.groups = vec![group(1, &["udp/53"]), group(2, &[])];
        for port in &mut net.ports {
            port.rules.clear();
        }
        net.ports[0].policy.groups = vec![net.groups[0].id, net.groups[1].id];
        net.ports[1].policy.groups = vec![net.groups[1].id, net.groups[0].id, net.groups[0].id];
        let keys = |net: &DesiredNetwork| {
            let p = Policies::new(net);
            (p.key(&net.ports[0]), p.key(&net.ports[1]))
        };
        let (a, b) = keys(&net);
        assert_eq!(a, b);
        net.groups[0].spec.rules.clear();
        assert_eq!(keys(&net), (a, b));
        net.ports[1].policy.groups.pop();
        net.ports[1].policy.groups.pop();
        assert_ne!(keys(&net).1, b);
    }
}
