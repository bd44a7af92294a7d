//! What the nodes say of a network: what they would change now, what passed.

use super::{Controller, plan::World};
use crate::api::{Counted, List, NetworkCounts, NodeChanges, NodePaths, PortCounts, RuleCounts};
use crate::methods::{CountedNetwork, NetworkCheck, NetworkCount, NetworkForesee};
use futures::future::join_all;
use std::collections::BTreeMap;
use vbm_core::{Error, GroupId, Network, NetworkId, NodePath, Result, Rule};

impl Controller {
    /// What each node would change of a network now. Nothing is changed.
    ///
    /// # Errors
    /// The network does not exist. What a node answers is told beside the others.
    pub async fn network_plan(&self, network: &str) -> Result<List<NodeChanges>> {
        let id = self.records().resolve::<Network>(network).await?.value.meta.id;
        let world = World::load(self.records()).await?;
        let ask = |node: NodePath| {
            let plan = world.node_plan(&node);
            let wanted = plan.networks.into_iter().find(|n| n.id == id);
            async move {
                let said = match &wanted {
                    Some(wanted) => self.ask_node::<NetworkForesee>(&node, wanted).await,
                    None => Ok(vec!["the network is to be removed".to_owned()]),
                };
                node_changes(node, said)
            }
        };
        Ok(List {
            items: join_all(world.nodes.keys().cloned().map(ask)).await,
            next: None,
            revision: world.revision,
        })
    }

    /// Lets each node try every path between its networks.
    ///
    /// # Errors
    /// The store does not answer. What a node answers is told beside the others.
    pub async fn network_paths(&self) -> Result<List<NodePaths>> {
        let world = World::load(self.records()).await?;
        let ask = |node: NodePath| async move {
            let (paths, problem) = match self.ask_node::<NetworkCheck>(&node, &()).await {
                Ok(paths) => (paths, None),
                Err(error) => (Vec::new(), Some(error.inline())),
            };
            NodePaths { node, paths, problem }
        };
        Ok(List {
            items: join_all(world.nodes.keys().cloned().map(ask)).await,
            next: None,
            revision: world.revision,
        })
    }

    /// What passed on a network, on all nodes.
    ///
    /// # Errors
    /// The network does not exist. Nodes that do not answer are told as problems.
    pub async fn network_counters(&self, network: &str) -> Result<NetworkCounts> {
        let id: NetworkId = self.records().resolve::<Network>(network).await?.value.meta.id;
        let world = World::load(self.records()).await?;
        let ask = |node: NodePath| async move {
            let said = self.ask_node::<NetworkCount>(&node, &id).await;
            (node, said)
        };
        let said = join_all(world.nodes.keys().cloned().map(ask)).await;
        Ok(sum(&world, said))
    }
}

fn node_changes(node: NodePath, said: Result<Vec<String>>) -> NodeChanges {
    match said {
        Ok(changes) => NodeChanges {
            node,
            changes,
            problem: None,
        },
        Err(error) => NodeChanges {
            node,
            changes: Vec::new(),
            problem: Some(error.inline()),
        },
    }
}

/// Ports stand each for itself, rules are summed over the nodes.
fn sum(world: &World, said: Vec<(NodePath, Result<CountedNetwork, Error>)>) -> NetworkCounts {
    let mut counts = NetworkCounts::default();
    let mut rules: BTreeMap<(Option<GroupId>, Rule), Counted> = BTreeMap::new();
    for (node, said) in said {
        let counted = match said {
            Ok(counted) => counted,
            Err(error) => {
                counts.problems.push(format!("{node}: {}", error.inline()));
                continue;
            }
        };
        for one in counted.ports {
            let Some(port) = world.ports.get(&one.port) else {
                continue;
            };
            let vm = world.vms.get(&port.spec.vm);
            counts.ports.push(PortCounts {
                port: one.port,
                node: node.clone(),
                vm_name: vm.map(|vm| vm.meta.name.to_string()).unwrap_or_default(),
                address: port.spec.address,
                received: one.received,
                sent: one.sent,
                received_dropped: one.received_dropped,
                sent_dropped: one.sent_dropped,
                connections_refused: one.connections_refused,
            });
        }
        for one in counted.rules {
            let sum = rules.entry((one.group, one.rule)).or_default();
            sum.packets += one.passed.packets;
            sum.bytes += one.passed.bytes;
        }
    }
    counts.ports.sort_by_key(|p| p.address);
    let name = |id: GroupId| world.groups.get(&id).map(|g| g.meta.name.to_string());
    let rule = |((group, rule), passed): ((Option<GroupId>, Rule), Counted)| RuleCounts {
        group,
        group_name: group.and_then(name),
        rule,
        passed,
    };
    counts.rules = rules.into_iter().map(rule).collect();
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::CountedRule;

    #[test]
    fn rules_are_summed_over_nodes_and_a_node_that_does_not_answer_is_told() {
        let rule: Rule = "tcp/80".parse().unwrap();
        let counted = |packets| CountedNetwork {
            ports: Vec::new(),
            rules: vec![CountedRule {
                group: None,
                rule: rule.clone(),
                passed: Counted {
                    packets,
                    bytes: 60 * packets,
                },
            }],
        };
        let node = |n: &str| n.parse::<NodePath>().unwrap();
        let silent = Error::not_found("node", "c");
        let counts = sum(
            &World::default(),
            vec![
                (node("a"), Ok(counted(2))),
                (node("b"), Ok(counted(3))),
                (node("c"), Err(silent)),
            ],
        );
        assert_eq!(
            counts.rules[0].passed,
            Counted {
                packets: 5,
                bytes: 300
            }
        );
        assert_eq!((counts.rules.len(), counts.problems.len()), (1, 1));
        assert!(counts.problems[0].starts_with("c: "));
    }
}
