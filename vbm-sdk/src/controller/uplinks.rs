//! Whether a node has the interfaces that a VM's networks name. Pure.
//!
//! A node that does not tell its interfaces (an older one, or one with very many) is not judged: it says so itself when it makes the network.

use super::plan::World;
use std::collections::BTreeSet;
use vbm_core::{Network, NetworkId, NetworkMode, Node, Uplink, Vm};

impl World {
    /// Why a node cannot carry networks of a VM: it has not the way out that they name.
    pub(super) fn uplink_reasons(&self, vm: &Vm, node: &Node) -> Vec<String> {
        let Some(there) = &node.status.uplinks else {
            return Vec::new();
        };
        let mine = vm.spec.ports.iter().filter_map(|p| self.ports.get(p));
        // Two NICs on one network are one reason.
        let networks: BTreeSet<NetworkId> = mine.map(|port| port.spec.network).collect();
        let networks = networks.iter().filter_map(|id| self.networks.get(id));
        networks.filter_map(|network| reason(network, there)).collect()
    }
}

fn reason(network: &Network, there: &[Uplink]) -> Option<String> {
    let wanted = network.spec.uplink.as_ref()?;
    let name = &network.meta.name;
    let Some(uplink) = there.iter().find(|uplink| uplink.name == *wanted) else {
        return Some(format!(
            "it has no interface {wanted}, by which network {name} goes"
        ));
    };
    let unfit = uplink.unfit.as_ref()?;
    (network.spec.mode == NetworkMode::Bridged)
        .then(|| format!("network {name} cannot be on the LAN of its {wanted}: {unfit}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::plan::tests::{add_vm, path, world};
    use vbm_core::{NetworkSpec, network::parse_cidr};

    fn uplink(name: &str, unfit: Option<&str>) -> Uplink {
        Uplink {
            name: name.parse().unwrap(),
            unfit: unfit.map(str::to_owned),
        }
    }

    /// Node `a` has a bridge and an interface that it uses itself, node `b` an interface of another name.
    fn world_with(mode: NetworkMode, named: Option<&str>) -> (World, Vm) {
        let mut world = world();
        let told = [
            (
                "a",
                vec![uplink("br-lan", None), uplink("eth0", Some("the host is there"))],
            ),
            ("b", vec![uplink("eth7", None)]),
        ];
        for (node, uplinks) in told {
            let node = world.nodes.get_mut(&path(node)).unwrap();
            node.status.uplinks = Some(uplinks);
        }
        let cidr = parse_cidr("10.0.0.0/24").unwrap();
        let named = named.map(|name| name.parse().unwrap());
        for network in world.networks.values_mut() {
            network.spec = NetworkSpec::with_uplink(mode, cidr, named.clone()).unwrap();
        }
        let vm = add_vm(&mut world, 5, None);
        let vm = world.vms[&vm].clone();
        (world, vm)
    }

    #[test]
    fn a_vm_goes_where_the_interface_is_that_its_network_names_and_is_told_who_has_it_not() {
        for mode in [NetworkMode::Bridged, NetworkMode::Routed] {
            for (named, on, not) in [("br-lan", "a", "b"), ("eth7", "b", "a")] {
                let (mut world, vm) = world_with(mode, Some(named));
                // The other has more room.
                world.nodes.get_mut(&path(not)).unwrap().status.memory_free_mib = 9_000;
                assert_eq!(world.place(&vm).unwrap(), path(on), "{mode} {named}");
                let refused = world.candidate(&vm, &world.nodes[&path(not)]);
                assert_eq!(
                    refused.reasons,
                    [format!("it has no interface {named}, by which network lan goes")]
                );
            }
            let (world, vm) = world_with(mode, Some("none7"));
            let error = world.place(&vm).unwrap_err();
            assert!(
                error.why().contains("a: it has no interface none7") && error.why().contains("b: it has no"),
                "{error}"
            );
        }
    }

    #[test]
    fn an_interface_that_the_host_uses_carries_a_routed_network_and_no_bridged_one() {
        let (world, vm) = world_with(NetworkMode::Routed, Some("eth0"));
        assert_eq!(world.place(&vm).unwrap(), path("a"));
        let (world, vm) = world_with(NetworkMode::Bridged, Some("eth0"));
        let why = world.place(&vm).unwrap_err().why().to_owned();
        assert!(
            why.contains("a: network lan cannot be on the LAN of its eth0: the host is there"),
            "{why}"
        );
    }

    #[test]
    fn networks_that_name_nothing_and_nodes_that_tell_nothing_are_not_judged() {
        for mode in [NetworkMode::Nat, NetworkMode::Isolated, NetworkMode::Routed] {
            let (world, vm) = world_with(mode, None);
            assert!(world.candidates(&vm).iter().all(|c| c.fits()), "{mode}");
        }
        let (mut world, vm) = world_with(NetworkMode::Bridged, Some("none7"));
        for node in world.nodes.values_mut() {
            node.status.uplinks = None;
        }
        assert!(world.candidates(&vm).iter().all(|c| c.fits()));
    }
}
