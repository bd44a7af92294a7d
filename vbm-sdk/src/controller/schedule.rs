//! The scheduler: which node a VM goes to, and why not the others. Pure.
//!
//! ```text
//!   every node --filters--> each says why not --scores--> the most free memory wins
//! ```
//!
//! All filters are asked, not only the first, so that a person sees everything that stands in the way.

use super::plan::World;
use vbm_core::{Error, ErrorKind, NetworkId, NetworkMode, Node, NodePath, NodeState, Port, Vm};

/// What the scheduler thinks of one node for one VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) node: NodePath,
    /// What stands in the way; nothing: it fits.
    pub(crate) reasons: Vec<String>,
    /// Memory that would be left, in MiB: more is better.
    pub(crate) score: u64,
}

impl Candidate {
    pub(crate) fn fits(&self) -> bool {
        self.reasons.is_empty()
    }
}

impl World {
    /// What is thought of every node, the best first. The node that the VM is on counts like any other.
    pub(crate) fn candidates(&self, vm: &Vm) -> Vec<Candidate> {
        let mut all: Vec<Candidate> = self.nodes.values().map(|n| self.candidate(vm, n)).collect();
        all.sort_by(|a, b| {
            (b.fits(), b.score)
                .cmp(&(a.fits(), a.score))
                .then_with(|| a.node.cmp(&b.node))
        });
        all
    }

    /// A node for a VM.
    ///
    /// # Errors
    /// No node fits; says of each why.
    pub(crate) fn place(&self, vm: &Vm) -> Result<NodePath, Error> {
        let candidates = self.candidates(vm);
        match candidates.first() {
            Some(best) if best.fits() => Ok(best.node.clone()),
            _ => Err(self.no_node(vm, &candidates)),
        }
    }

    fn no_node(&self, vm: &Vm, candidates: &[Candidate]) -> Error {
        let headline = format!("no node can run {}", vm.meta.name);
        if let [only] = candidates
            && let Some(problem) = self.driver_problem(vm, &self.nodes[&only.node])
        {
            return problem.context(headline);
        }
        let why = match candidates {
            [] => "no node has reported itself yet".to_owned(),
            all => all
                .iter()
                .map(|c| format!("{}: {}", c.node, c.reasons.join(", ")))
                .collect::<Vec<_>>()
                .join("; "),
        };
        Error::new(
            ErrorKind::Unavailable,
            headline,
            why,
            "see `vbm node list`; it is placed as soon as one can",
        )
    }

    fn driver_problem(&self, vm: &Vm, node: &Node) -> Option<Error> {
        let mut drivers = node.status.capabilities.iter();
        drivers.find(|c| c.driver == vm.spec.driver)?.problem.clone()
    }

    /// What is thought of one node.
    pub(crate) fn candidate(&self, vm: &Vm, node: &Node) -> Candidate {
        let mut reasons = Vec::new();
        if node.status.state != NodeState::Ready {
            reasons.push(format!("it is {}", node.status.state));
        }
        if node.spec.cordoned {
            reasons.push("it takes no new VMs".into());
        }
        reasons.extend(self.driver_reason(vm, node));
        reasons.extend(self.network_reasons(vm, node));
        reasons.extend(self.uplink_reasons(vm, node));
        reasons.extend(self.room_reasons(vm, node));
        let (free, needed) = (self.free_memory_mib(vm, node), u64::from(vm.spec.memory_mib));
        if free < needed {
            reasons.push(format!(
                "it has {free} MiB of memory left, and {needed} are needed"
            ));
        }
        Candidate {
            node: node.path.clone(),
            reasons,
            score: free.saturating_sub(needed),
        }
    }

    fn driver_reason(&self, vm: &Vm, node: &Node) -> Option<String> {
        let wanted = vm.spec.driver;
        match node.status.capabilities.iter().find(|c| c.driver == wanted) {
            None => Some(format!("it has no driver {wanted}")),
            Some(capability) => capability.problem.as_ref().map(Error::inline),
        }
    }

    /// Memory that the node has not promised: VMs that are on their way to it are counted, as far as their memory
    /// does not show in what it reports.
    fn free_memory_mib(&self, vm: &Vm, node: &Node) -> u64 {
        let promised: u64 = self
            .vms
            .values()
            .filter(|v| v.meta.id != vm.meta.id)
            .filter(|v| {
                let comes = v.spec.moving.as_ref().is_some_and(|m| m.to == node.path);
                comes || (v.spec.node.as_ref() == Some(&node.path) && !v.status.power.is_live())
            })
            .map(|v| u64::from(v.spec.memory_mib))
            .sum();
        node.status.memory_free_mib.saturating_sub(promised)
    }

    /// A network reaches other nodes only between nodes that told an address for it.
    fn network_reasons(&self, vm: &Vm, node: &Node) -> Vec<String> {
        let mine = vm.spec.ports.iter().filter_map(|p| self.ports.get(p));
        mine.filter_map(|port| self.network_reason(vm, port.spec.network, node))
            .collect()
    }

    fn network_reason(&self, vm: &Vm, network: NetworkId, node: &Node) -> Option<String> {
        let record = self.networks.get(&network)?;
        if record.spec.mode == NetworkMode::Bridged {
            return None;
        }
        let elsewhere = |p: &&Port| {
            p.spec.network == network
                && p.spec.vm != vm.meta.id
                && self.home_of(p).is_some_and(|home| *home != node.path)
        };
        let other = self.home_of(self.ports.values().find(elsewhere)?)?;
        let name = &record.meta.name;
        if record.spec.vni.is_none() {
            return Some(format!(
                "network {name} is on {other}, and was made to stay on one node"
            ));
        }
        let without = [&node.path, other]
            .into_iter()
            .find(|path| self.nodes.get(*path).is_none_or(|n| n.status.underlay.is_none()))?;
        Some(format!(
            "network {name} is on {other}, and {without} has no address for networks between nodes (vbmd --underlay)"
        ))
    }

    /// The node of the VM that a port belongs to.
    fn home_of(&self, port: &Port) -> Option<&NodePath> {
        self.vms.get(&port.spec.vm)?.spec.node.as_ref()
    }
}
