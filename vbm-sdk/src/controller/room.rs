//! Whether what is asked for of a network fits a node. A node refuses a network whole that is beyond its limits, so nobody is let beyond
//! them: one launch too many would hold up all the others.
//!
//! | limit | of | asked |
//! |---|---|---|
//! | [`NETWORK_MAX_REMOTES`] | the ports of a network, on all nodes: from each the others are remote | at each launch |
//! | [`NETWORK_MAX_PORTS`] | its ports on one node | by the scheduler, which takes another node |
//! | [`NETWORK_MAX_FORWARDS`] | its forwards | at each forward |
//! | [`NETWORK_MAX_GROUPS`] | the groups of its ports, and those that their rules speak of | where groups, members or rules change |
//! | [`GROUP_MAX_MEMBERS`] | the addresses of a group's ports on it | the same |
//!
//! Ports are counted exactly: launches on one network cross each other. Requests side by side about groups are not, and may pass their
//! limits by a few; then the node says so, and keeps what it held.

use super::{Controller, plan::World};
use crate::records::Record;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use vbm_core::{Error, ErrorKind, Group, GroupId, Name, Network, NetworkId, Node, Peer, Port, Result, Vm};
use vbm_net::model::{
    GROUP_MAX_MEMBERS, NETWORK_MAX_FORWARDS, NETWORK_MAX_GROUPS, NETWORK_MAX_PORTS, NETWORK_MAX_REMOTES,
};

fn full(network: &Name, noun: &str, asked: usize, most: usize, fix: &str) -> Error {
    Error::new(
        ErrorKind::Exhausted,
        format!("network {network} cannot have so many {noun}"),
        format!("it would have {asked}, and {most} are allowed"),
        fix,
    )
}

/// Whether a network may have so many ports.
pub(super) fn ports(network: &Name, count: usize) -> Result<()> {
    if count <= NETWORK_MAX_REMOTES {
        return Ok(());
    }
    let fix = "make another network, or delete VMs";
    Err(full(network, "ports", count, NETWORK_MAX_REMOTES, fix))
}

/// Whether a network may have so many forwards.
pub(super) fn forwards(network: &Name, count: usize) -> Result<()> {
    if count <= NETWORK_MAX_FORWARDS {
        return Ok(());
    }
    let fix = "forward a range of ports at once, or give the VM a floating IP";
    Err(full(network, "forwards", count, NETWORK_MAX_FORWARDS, fix))
}

/// Whether the ports of a network may be in their groups: the groups are not too many, nor the members of one.
fn groups<'a>(
    network: &Name,
    ports: impl Iterator<Item = &'a Port> + Clone,
    all: &BTreeMap<GroupId, &Group>,
) -> Result<()> {
    let mut known: BTreeSet<GroupId> = ports
        .clone()
        .flat_map(|p| p.spec.groups.iter().copied())
        .collect();
    let rules = known
        .iter()
        .filter_map(|id| all.get(id))
        .flat_map(|g| &g.spec.rules);
    let spoken_of: Vec<GroupId> = rules
        .filter_map(|rule| match rule.peer {
            Some(Peer::Group(id)) => Some(id),
            _ => None,
        })
        .collect();
    known.extend(spoken_of);
    if known.len() > NETWORK_MAX_GROUPS {
        let fix = "join groups, or spread the VMs over several networks";
        return Err(full(network, "groups", known.len(), NETWORK_MAX_GROUPS, fix));
    }
    let mut members: BTreeMap<GroupId, usize> = BTreeMap::new();
    for port in ports {
        let one: BTreeSet<IpNet> = std::iter::once(IpNet::from(std::net::IpAddr::V4(port.spec.address)))
            .chain(port.spec.address6.map(|a| IpNet::from(std::net::IpAddr::V6(a))))
            .chain(port.spec.pairs.iter().map(|p| p.address))
            .collect();
        for id in port.spec.groups.iter().collect::<BTreeSet<_>>() {
            *members.entry(*id).or_default() += one.len();
        }
    }
    match members.into_iter().find(|(_, count)| *count > GROUP_MAX_MEMBERS) {
        None => Ok(()),
        Some((id, count)) => {
            let name = all
                .get(&id)
                .map_or_else(|| id.to_string(), |g| g.meta.name.to_string());
            let noun = format!("members of group {name}");
            let fix = "write a rule for a CIDR instead of the group";
            Err(full(network, &noun, count, GROUP_MAX_MEMBERS, fix))
        }
    }
}

impl Controller {
    /// Whether ports may have the groups and addresses that they have here, and groups these rules, beside all others. `changed` and
    /// `rules` are as they shall be; what is not among them is as it is kept.
    pub(super) async fn room_for_groups(&self, changed: &[&Port], rules: Option<&Group>) -> Result<()> {
        let kept = self.records().all::<Group>().await?;
        let mut all: BTreeMap<GroupId, &Group> = kept.iter().map(|g| (g.value.meta.id, &g.value)).collect();
        all.extend(rules.map(|g| (g.meta.id, g)));
        // The cheap question first: where there are no more groups than a network may have, only members can be too many, and then
        // only where ports have many addresses, or are many.
        let count = |keys: Vec<String>| keys.len() * (2 + vbm_core::limits::PORT_MAX_PAIRS);
        if all.len() <= NETWORK_MAX_GROUPS
            && count(self.records().keys_below(Port::PREFIX).await?) <= GROUP_MAX_MEMBERS
        {
            return Ok(());
        }
        let ports = self.records().all::<Port>().await?;
        let known: BTreeSet<_> = changed.iter().map(|p| p.meta.id).collect();
        let others = ports
            .iter()
            .map(|p| &p.value)
            .filter(|p| !known.contains(&p.meta.id));
        let mut by_network: BTreeMap<NetworkId, Vec<&Port>> = BTreeMap::new();
        for port in others.chain(changed.iter().copied()) {
            by_network.entry(port.spec.network).or_default().push(port);
        }
        let concerned = |network: &NetworkId, of: &[&Port]| {
            changed.iter().any(|p| p.spec.network == *network)
                || rules.is_some_and(|g| of.iter().any(|p| p.spec.groups.contains(&g.meta.id)))
        };
        for (id, of) in by_network.iter().filter(|(id, of)| concerned(id, of)) {
            let network = self.records().must::<Network>(*id).await?.value.meta.name;
            groups(&network, of.iter().copied(), &all)?;
        }
        Ok(())
    }
}

impl World {
    /// Why a node has no room for the ports of a VM.
    pub(super) fn room_reasons(&self, vm: &Vm, node: &Node) -> Vec<String> {
        let mine: Vec<NetworkId> = vm
            .spec
            .ports
            .iter()
            .filter_map(|p| Some(self.ports.get(p)?.spec.network))
            .collect();
        let networks: BTreeSet<NetworkId> = mine.iter().copied().collect();
        let here = |port: &&Port| {
            let other = self.vms.get(&port.spec.vm).filter(|v| v.meta.id != vm.meta.id);
            other.is_some_and(|v| {
                let comes = v.spec.moving.as_ref().is_some_and(|m| m.to == node.path);
                comes || v.spec.node.as_ref() == Some(&node.path)
            })
        };
        let full = |id: &NetworkId| {
            let new = mine.iter().filter(|n| *n == id).count();
            let there = self
                .ports
                .values()
                .filter(|p| p.spec.network == *id)
                .filter(here)
                .count();
            let name = &self.networks.get(id)?.meta.name;
            (there + new > NETWORK_MAX_PORTS).then(|| {
                format!("it has {there} ports of network {name}, and {NETWORK_MAX_PORTS} are allowed")
            })
        };
        networks.iter().filter_map(full).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::plan::tests::{add_vm, world};
    use vbm_core::{AddressPair, Meta, PortId};

    fn lan() -> Name {
        "lan".parse().unwrap()
    }

    #[test]
    fn a_network_is_full_of_ports_and_of_forwards_at_its_limit_and_not_before() {
        assert!(ports(&lan(), NETWORK_MAX_REMOTES).is_ok());
        assert!(forwards(&lan(), NETWORK_MAX_FORWARDS).is_ok());
        for error in [
            ports(&lan(), NETWORK_MAX_REMOTES + 1).unwrap_err(),
            forwards(&lan(), NETWORK_MAX_FORWARDS + 1).unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Exhausted);
            assert!(error.why().contains("are allowed"), "{error}");
        }
    }

    fn group(n: u128, rules: &[&str]) -> Group {
        let id = GroupId::from_uuid(uuid::Uuid::from_u128(n));
        Group {
            meta: Meta::new(
                id,
                format!("g{n}").parse().unwrap(),
                vbm_core::Timestamp::default(),
            ),
            spec: vbm_core::GroupSpec {
                rules: rules.iter().map(|r| r.parse().unwrap()).collect(),
                egress_closed: false,
            },
        }
    }

    /// Ports that have `each` groups, all different.
    fn ports_of(count: usize, each: usize) -> Vec<Port> {
        let mut world = world();
        add_vm(&mut world, 1, None);
        let like = world.ports.into_values().next().unwrap();
        let port = |n: usize| {
            let mut port = like.clone();
            port.meta.id = PortId::from_uuid(uuid::Uuid::from_u128(n as u128));
            port.spec.groups = (n * each..(n + 1) * each)
                .map(|g| group(g as u128, &[]).meta.id)
                .collect();
            port
        };
        (0..count).map(port).collect()
    }

    #[test]
    fn the_groups_of_ports_and_those_that_rules_speak_of_are_counted_once_each() {
        let none = BTreeMap::new();
        let all = ports_of(NETWORK_MAX_GROUPS / 16, 16);
        assert!(groups(&lan(), all.iter().chain(&all), &none).is_ok());
        let one_more = ports_of(NETWORK_MAX_GROUPS / 16 + 1, 16);
        let error = groups(&lan(), one_more.iter(), &none).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Exhausted);
        let own = group(0, &["tcp/22@group:0190b6f2-4c1e-7cc3-a7a4-0d1f000000ff"]);
        let known = BTreeMap::from([(own.meta.id, &own)]);
        assert!(
            groups(&lan(), all.iter(), &known).is_err(),
            "a rule speaks of one more"
        );
    }

    #[test]
    fn the_members_of_a_group_are_all_addresses_of_its_ports() {
        let mut all = ports_of(GROUP_MAX_MEMBERS / 16, 0);
        let of = group(5, &[]).meta.id;
        for port in &mut all {
            port.spec.groups = vec![of, of];
            port.spec.pairs = (0..15u8).map(|n| AddressPair::of([10, 0, 1, n].into())).collect();
        }
        let none = BTreeMap::new();
        assert!(groups(&lan(), all.iter(), &none).is_ok());
        all[0].spec.pairs.push(AddressPair::of([10, 0, 2, 1].into()));
        let error = groups(&lan(), all.iter(), &none).unwrap_err();
        assert!(error.what().contains("members of group"), "{error}");
    }

    #[test]
    fn a_node_that_has_as_many_ports_of_a_network_as_it_may_takes_no_vm_on_it() {
        let mut world = world();
        let other = add_vm(&mut world, 1, Some("a"));
        let vm = add_vm(&mut world, 2, None);
        let like = world.ports.values().find(|p| p.spec.vm == other).unwrap().clone();
        for n in 0..NETWORK_MAX_PORTS {
            let mut port = like.clone();
            port.meta.id = PortId::from_uuid(uuid::Uuid::from_u128(10_000 + n as u128));
            world.ports.insert(port.meta.id, port);
        }
        let vm = world.vms[&vm].clone();
        let (a, b) = (
            world.nodes[&"a".parse().unwrap()].clone(),
            world.nodes[&"b".parse().unwrap()].clone(),
        );
        let reasons = world.room_reasons(&vm, &a);
        assert!(
            reasons.len() == 1 && reasons[0].contains("ports of network lan"),
            "{reasons:?}"
        );
        assert_eq!(world.room_reasons(&vm, &b), Vec::<String>::new());
        assert!(!world.candidate(&vm, &a).fits());
    }
}
