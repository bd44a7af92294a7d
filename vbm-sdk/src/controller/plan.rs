//! What every node shall hold, as a pure function of the records.
//!
//! The plan is complete each time; it knows nothing of what was sent before. Whoever carries it out
//! compares it with what it told the node last and sends the difference.

use crate::methods::{GoneVm, WantedForward, WantedNetwork, WantedNic, WantedPort, WantedRoot, WantedVm};
use crate::store::Revision;
use std::collections::{BTreeMap, BTreeSet};
use vbm_core::{
    Error, ErrorKind, Forward, Group, GroupId, Image, ImageId, Name, Network, NetworkId, Node, NodePath,
    NodeState, Port, PortId, Rule, Vm, VmId, Volume, VolumeId,
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
    pub(crate) nodes: BTreeMap<NodePath, Node>,
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
        let staying_ids: BTreeSet<VmId> = staying.iter().map(|v| v.meta.id).collect();
        let (dead, alive): (Vec<&Network>, Vec<&Network>) =
            self.networks.values().partition(|n| n.meta.deleting);
        NodePlan {
            networks: alive
                .into_iter()
                .map(|n| self.wanted_network(n, &staying_ids))
                .collect(),
            vms: staying.into_iter().filter_map(|v| self.wanted_vm(v)).collect(),
            remove_vms: leaving.into_iter().map(|v| self.gone_vm(v)).collect(),
            remove_networks: dead.into_iter().map(|n| n.meta.id).collect(),
        }
    }

    fn wanted_network(&self, network: &Network, vms: &BTreeSet<VmId>) -> WantedNetwork {
        let id = network.meta.id;
        let ports: Vec<&Port> = self
            .ports
            .values()
            .filter(|p| p.spec.network == id && vms.contains(&p.spec.vm))
            .collect();
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
            overlay: None,
            ports: ports.into_iter().map(|p| self.wanted_port(p)).collect(),
        }
    }

    fn wanted_port(&self, port: &Port) -> WantedPort {
        let rules: BTreeSet<Rule> = port
            .spec
            .groups
            .iter()
            .filter_map(|g| self.groups.get(g))
            .flat_map(|g| g.spec.rules.iter().cloned())
            .collect();
        WantedPort {
            id: port.meta.id,
            mac: port.spec.mac,
            address: port.spec.address,
            hostname: self
                .vms
                .get(&port.spec.vm)
                .map_or_else(|| port.meta.name.clone(), |v| v.meta.name.clone()),
            rules: rules.into_iter().collect(),
        }
    }

    /// `None` while a record that it refers to is missing: it is better to wait than to start half of it.
    fn wanted_vm(&self, vm: &Vm) -> Option<WantedVm> {
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
        })
    }

    fn gone_vm(&self, vm: &Vm) -> GoneVm {
        let ports = vm.spec.ports.iter().filter_map(|p| self.ports.get(p));
        GoneVm {
            id: vm.meta.id,
            volume: vm.spec.root_volume,
            nics: ports.map(|p| (p.spec.network, p.meta.id)).collect(),
        }
    }

    /// A node for a VM.
    ///
    /// # Errors
    /// No node fits; says of each why.
    pub(crate) fn place(&self, vm: &Vm) -> Result<NodePath, Error> {
        let mut reasons = Vec::new();
        let mut best: Option<(u64, &Node)> = None;
        for node in self.nodes.values() {
            match self.fits(vm, node) {
                Ok(score) if best.is_none_or(|(b, _)| score > b) => best = Some((score, node)),
                Ok(_) => {}
                Err(why) => reasons.push(format!("{}: {why}", node.path)),
            }
        }
        if let [one] = &self.nodes.values().collect::<Vec<_>>()[..]
            && let Some(problem) = one
                .status
                .capabilities
                .iter()
                .find(|c| c.driver == vm.spec.driver)
                .and_then(|c| c.problem.clone())
        {
            return Err(problem.context(format!("no node can run {}", vm.meta.name)));
        }
        let why = if self.nodes.is_empty() {
            "no node has reported itself yet".to_owned()
        } else {
            reasons.join("; ")
        };
        best.map(|(_, node)| node.path.clone()).ok_or_else(|| {
            Error::new(
                ErrorKind::Unavailable,
                format!("no node can run {}", vm.meta.name),
                why,
                "see `vbm node list`; it is placed as soon as one can",
            )
        })
    }

    /// How well a VM fits a node, or why it does not. More free memory is better.
    fn fits(&self, vm: &Vm, node: &Node) -> Result<u64, String> {
        if node.status.state != NodeState::Ready {
            return Err(format!("it is {}", node.status.state));
        }
        if node.spec.cordoned {
            return Err("it takes no new VMs".into());
        }
        let Some(capability) = node
            .status
            .capabilities
            .iter()
            .find(|c| c.driver == vm.spec.driver)
        else {
            return Err(format!("it has no driver {}", vm.spec.driver));
        };
        if let Some(problem) = &capability.problem {
            return Err(problem.inline());
        }
        if let Some((network, other)) = self.network_elsewhere(vm, &node.path) {
            return Err(format!(
                "network {network} is on {other}, and networks do not span nodes yet"
            ));
        }
        let planned: u64 = self
            .vms
            .values()
            .filter(|v| v.spec.node.as_ref() == Some(&node.path) && !v.status.power.is_live())
            .map(|v| u64::from(v.spec.memory_mib))
            .sum();
        let free = node.status.memory_free_mib.saturating_sub(planned);
        let needed = u64::from(vm.spec.memory_mib);
        free.checked_sub(needed)
            .ok_or_else(|| format!("it has {free} MiB of memory left, and {needed} are needed"))
    }

    fn network_elsewhere(&self, vm: &Vm, node: &NodePath) -> Option<(Name, NodePath)> {
        let mine: Vec<NetworkId> = vm
            .spec
            .ports
            .iter()
            .filter_map(|p| self.ports.get(p))
            .map(|p| p.spec.network)
            .collect();
        self.ports
            .values()
            .filter(|p| mine.contains(&p.spec.network))
            .find_map(|p| {
                let other = self.vms.get(&p.spec.vm)?.spec.node.as_ref()?;
                let network = self.networks.get(&p.spec.network)?;
                (other != node).then(|| (network.meta.name.clone(), other.clone()))
            })
    }
}

fn wanted_forward(forward: &Forward) -> WantedForward {
    WantedForward {
        id: forward.meta.id,
        protocol: forward.spec.protocol,
        listen_address: forward.spec.listen_address,
        listen_port: forward.spec.listen_port,
        target: forward.spec.target,
        target_port: forward.spec.target_port,
    }
}

#[cfg(test)]
mod tests;
