//! What every node shall hold, as a pure function of the records.
//!
//! The plan is complete each time; it knows nothing of what was sent before. Whoever carries it out
//! compares it with what it told the node last and sends the difference.

use crate::methods::{
    GoneVm, WantedForward, WantedGroup, WantedNetwork, WantedNic, WantedOverlay, WantedPort, WantedRemote,
    WantedRoot, WantedVm,
};
use crate::store::Revision;
use std::collections::{BTreeMap, BTreeSet};
use vbm_core::{
    Forward, Group, GroupId, Image, ImageId, Network, NetworkId, Node, NodePath, Peer, Port, PortId,
    Snapshot, SnapshotId, SnapshotState, Vm, VmId, Volume, VolumeId,
};

/// All records that the plan looks at, as of one revision or a little later.
#[derive(Clone, Debug, Default)]
pub(crate) struct World {
    pub(crate) revision: Revision,
    pub(crate) vms: BTreeMap<VmId, Vm>,
    pub(crate) networks: BTreeMap<NetworkId, Network>,
    pub(crate) ports: BTreeMap<PortId, Port>,
    pub(crate) groups: BTreeMap<GroupId, Group>,
    pub(crate) forwards: Vec<Forward>,
    pub(crate) images: BTreeMap<ImageId, Image>,
    pub(crate) volumes: BTreeMap<VolumeId, Volume>,
    /// By id; in the order in which they were asked for, since ids begin with the time.
    pub(crate) snapshots: BTreeMap<SnapshotId, Snapshot>,
    pub(crate) nodes: BTreeMap<NodePath, Node>,
    /// Which request what goes on is for.
    pub(crate) traces: super::traces::Traces,
}

/// What one node shall hold, and what it shall give up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodePlan {
    pub(crate) networks: Vec<WantedNetwork>,
    pub(crate) vms: Vec<WantedVm>,
    pub(crate) remove_vms: Vec<GoneVm>,
    pub(crate) remove_networks: Vec<NetworkId>,
}

impl World {
    /// The plan of one node.
    pub(crate) fn node_plan(&self, node: &NodePath) -> NodePlan {
        let here = |vm: &&Vm| vm.spec.node.as_ref() == Some(node);
        let (leaving, staying): (Vec<&Vm>, Vec<&Vm>) =
            self.vms.values().filter(here).partition(|v| v.meta.deleting);
        let coming = self.vms.values().filter(|v| {
            let moving = v.spec.moving.as_ref();
            !v.meta.deleting && !here(v) && moving.is_some_and(|m| m.to == *node)
        });
        let plugged: BTreeSet<VmId> = staying.iter().copied().chain(coming).map(|v| v.meta.id).collect();
        let (dead, alive): (Vec<&Network>, Vec<&Network>) =
            self.networks.values().partition(|n| n.meta.deleting);
        NodePlan {
            networks: alive
                .into_iter()
                .map(|n| self.wanted_network(n, node, &plugged))
                .collect(),
            vms: staying.into_iter().filter_map(|v| self.wanted_vm(v)).collect(),
            remove_vms: leaving.into_iter().map(|v| self.gone_vm(v, false)).collect(),
            remove_networks: dead.into_iter().map(|n| n.meta.id).collect(),
        }
    }

    fn wanted_network(&self, network: &Network, node: &NodePath, vms: &BTreeSet<VmId>) -> WantedNetwork {
        let id = network.meta.id;
        let (ports, others): (Vec<&Port>, Vec<&Port>) = self
            .ports
            .values()
            .filter(|p| p.spec.network == id)
            .partition(|p| vms.contains(&p.spec.vm));
        // Those that are on their way here are both: ready here, and reached where they are.
        let coming = ports.iter().filter(|p| {
            let vm = self.vms.get(&p.spec.vm);
            vm.is_some_and(|vm| vm.spec.node.as_ref() != Some(node))
        });
        let others: Vec<&Port> = others.into_iter().chain(coming.copied()).collect();
        let forwards = self
            .forwards
            .iter()
            .filter(|f| f.spec.network == id && ports.iter().any(|p| p.meta.id == f.spec.target));
        WantedNetwork {
            id,
            name: network.meta.name.clone(),
            generation: network.meta.generation,
            spec: network.spec.clone(),
            forwards: forwards.map(wanted_forward).collect(),
            overlay: self.wanted_overlay(network, node, &others),
            groups: self.wanted_groups(&ports, &others),
            ports: ports.into_iter().map(|p| self.wanted_port(p)).collect(),
        }
    }

    /// How the network reaches the ports that are on other nodes; `None` where it stays on this one.
    fn wanted_overlay(&self, network: &Network, node: &NodePath, others: &[&Port]) -> Option<WantedOverlay> {
        let remote = |port: &&Port| {
            let vm = self.vms.get(&port.spec.vm).filter(|vm| !vm.meta.deleting)?;
            Some(WantedRemote {
                mac: port.spec.mac,
                address: port.spec.address,
                address6: port.spec.address6,
                host: self.nodes.get(vm.spec.node.as_ref()?)?.status.underlay?,
            })
        };
        Some(WantedOverlay {
            vni: network.spec.vni?,
            local: self.nodes.get(node)?.status.underlay?,
            names: others
                .iter()
                .filter(|&port| remote(port).is_some())
                .map(|port| (port.spec.address, self.hostname(port)))
                .collect(),
            remotes: others.iter().filter_map(remote).collect(),
        })
    }

    /// The groups of a node's ports, and those that their rules speak of, with the members among the others of the network.
    fn wanted_groups(&self, ports: &[&Port], others: &[&Port]) -> Vec<WantedGroup> {
        let of_ports: BTreeSet<GroupId> = ports.iter().flat_map(|p| &p.spec.groups).copied().collect();
        let mut spoken_of = BTreeSet::new();
        for group in of_ports.iter().filter_map(|id| self.groups.get(id)) {
            spoken_of.extend(group.spec.rules.iter().filter_map(|rule| match rule.peer {
                Some(Peer::Itself) => Some(group.meta.id),
                Some(Peer::Group(id)) => Some(id),
                _ => None,
            }));
        }
        let addresses = |port: &&&Port| -> Vec<ipnet::IpNet> {
            let own = ipnet::IpNet::V4(port.spec.address.into());
            let own6 = port.spec.address6.map(|a| ipnet::IpNet::V6(a.into()));
            std::iter::once(own)
                .chain(own6)
                .chain(port.spec.pairs.iter().map(|p| p.address))
                .collect()
        };
        let members = |id: GroupId| -> BTreeSet<ipnet::IpNet> {
            let of = others
                .iter()
                .filter(|p| spoken_of.contains(&id) && p.spec.groups.contains(&id));
            of.flat_map(|port| addresses(&port)).collect()
        };
        let all: BTreeSet<GroupId> = of_ports.union(&spoken_of).copied().collect();
        let known = all.into_iter().filter_map(|id| self.groups.get(&id));
        known
            .map(|group| WantedGroup {
                id: group.meta.id,
                name: group.meta.name.clone(),
                spec: group.spec.clone(),
                members: members(group.meta.id).into_iter().collect(),
            })
            .collect()
    }

    fn wanted_port(&self, port: &Port) -> WantedPort {
        WantedPort {
            id: port.meta.id,
            mac: port.spec.mac,
            address: port.spec.address,
            address6: port.spec.address6,
            hostname: self.hostname(port),
            metadata_route: self.tells_metadata(port),
            rules: Vec::new(),
            groups: port.spec.groups.clone(),
            pairs: port.spec.pairs.clone(),
            limits: port.spec.limits,
            floating_ip: port.spec.floating_ip,
        }
    }

    /// A VM's name is its ports' host name.
    fn hostname(&self, port: &Port) -> vbm_core::Name {
        let vm = self.vms.get(&port.spec.vm);
        vm.map_or_else(|| port.meta.name.clone(), |v| v.meta.name.clone())
    }

    /// Of a VM's NICs the first whose network has metadata tells the way there: two would take it from each other.
    fn tells_metadata(&self, port: &Port) -> bool {
        let serves = |id: &&PortId| {
            let network = self
                .ports
                .get(id)
                .and_then(|p| self.networks.get(&p.spec.network));
            network.is_some_and(|n| n.spec.serves_metadata())
        };
        let vm = self.vms.get(&port.spec.vm);
        vm.is_some_and(|vm| vm.spec.ports.iter().find(serves) == Some(&port.meta.id))
    }

    /// Whether a node shall take or delete a snapshot of a VM.
    pub(crate) fn has_snapshot_under_way(&self, vm: VmId) -> bool {
        let mut all = self.snapshots.values().filter(|s| s.spec.vm == vm);
        all.any(|s| s.meta.deleting || s.status.state == SnapshotState::Creating)
    }

    /// Whether a VM has snapshots.
    pub(crate) fn has_snapshots(&self, vm: VmId) -> bool {
        self.snapshots.values().any(|s| s.spec.vm == vm)
    }

    /// `None` while a record that it refers to is missing: it is better to wait than to start half of it.
    pub(crate) fn wanted_vm(&self, vm: &Vm) -> Option<WantedVm> {
        let image = self.images.get(&vm.spec.image)?;
        let volume = self.volumes.get(&vm.spec.root_volume)?;
        let nics = vm
            .spec
            .ports
            .iter()
            .map(|p| {
                self.ports.get(p).map(|p| WantedNic {
                    network: p.spec.network,
                    port: p.meta.id,
                    mac: p.spec.mac,
                })
            })
            .collect::<Option<Vec<_>>>()?;
        let snapshots = || self.snapshots.values().filter(|s| s.spec.vm == vm.meta.id);
        let coming = |s: &&Snapshot| s.status.state == SnapshotState::Creating && !s.meta.deleting;
        Some(WantedVm {
            id: vm.meta.id,
            name: vm.meta.name.clone(),
            generation: vm.meta.generation,
            driver: vm.spec.driver,
            vcpus: vm.spec.vcpus,
            memory_mib: vm.spec.memory_mib,
            root: WantedRoot {
                volume: volume.meta.id,
                image: image.spec.disk,
                format: image.spec.format,
                image_bytes: image.spec.file_bytes,
                virtual_bytes: volume.spec.virtual_bytes,
            },
            boot: image.spec.boot.clone(),
            nics,
            power: vm.spec.power,
            held: vm
                .spec
                .moving
                .as_ref()
                .is_some_and(|m| vm.spec.node.as_ref() != Some(&m.to)),
            take: snapshots().filter(coming).map(|s| s.meta.id).collect(),
            without_memory: snapshots()
                .filter(coming)
                .filter(|s| !s.spec.memory)
                .map(|s| (s.meta.id, s.spec.freeze))
                .collect(),
            drop: snapshots()
                .filter(|s| s.meta.deleting)
                .map(|s| (s.meta.id, s.meta.generation))
                .collect(),
            revert: vm.spec.reverting.clone(),
            guest: vm.spec.guest.clone(),
        })
    }

    pub(crate) fn gone_vm(&self, vm: &Vm, keep_volume: bool) -> GoneVm {
        let ports = vm.spec.ports.iter().filter_map(|p| self.ports.get(p));
        GoneVm {
            id: vm.meta.id,
            volume: vm.spec.root_volume,
            nics: ports.map(|p| (p.spec.network, p.meta.id)).collect(),
            keep_volume,
        }
    }
}

fn wanted_forward(forward: &Forward) -> WantedForward {
    WantedForward {
        id: forward.meta.id,
        protocol: forward.spec.protocol,
        listen_address: forward.spec.listen_address,
        listen_port: forward.spec.listen_port,
        count: forward.spec.count,
        target: forward.spec.target,
        target_port: forward.spec.target_port,
    }
}

#[cfg(test)]
pub(super) mod tests;
