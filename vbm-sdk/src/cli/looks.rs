//! `vbm net plan` and `vbm net counters`: what the nodes say of a network.

use super::{args::OneNetwork, session::Session, table::Table};
use crate::api::{Counted, NetworkCounts, NodeChanges, NodePaths};
use std::collections::BTreeMap;
use vbm_core::{Error, ErrorKind, NetworkId};

pub(super) async fn plan(on: &Session<'_>, args: &OneNetwork) -> Result<(), Error> {
    let nodes = on.client.networks().plan(&args.network).await?.items;
    on.out.item(&nodes, &args.network, &plan_text(&nodes))?;
    match nodes.iter().find_map(|n| Some((&n.node, n.problem.as_ref()?))) {
        None => Ok(()),
        Some((node, problem)) => Err(Error::new(
            ErrorKind::Unavailable,
            format!("node {node} did not say what it would change"),
            problem.clone(),
            "see `vbm node list`, and try again",
        )),
    }
}

fn plan_text(nodes: &[NodeChanges]) -> String {
    let line = |node: &NodeChanges| match (&node.problem, node.changes.is_empty()) {
        (Some(problem), _) => format!("{}: not known: {problem}", node.node),
        (None, true) => format!("{}: all is as wanted", node.node),
        (None, false) => {
            let changes = node.changes.join("\n  ");
            format!("{}: would change\n  {changes}", node.node)
        }
    };
    if nodes.is_empty() {
        return "no node has reported itself yet".into();
    }
    nodes.iter().map(line).collect::<Vec<_>>().join("\n")
}

pub(super) async fn check(on: &Session<'_>) -> Result<(), Error> {
    let nodes = on.client.networks().check().await?.items;
    let networks = on.client.networks().list().all().await?;
    let names: BTreeMap<NetworkId, String> = networks
        .into_iter()
        .map(|n| (n.network.meta.id, n.network.meta.name.to_string()))
        .collect();
    on.out.item(&nodes, "paths", &check_text(&nodes, &names))?;
    let holes = nodes
        .iter()
        .flat_map(|n| &n.paths)
        .filter(|p| p.is_hole())
        .count();
    if holes > 0 {
        return Err(Error::new(
            ErrorKind::Conflict,
            format!("{holes} paths are there that may not be"),
            "somebody changed the rules of a host, or a rule is missing",
            "see them with `vbm net check`, what is missing with `vbm net plan NETWORK`, and who else writes rules on that host",
        ));
    }
    match nodes.iter().find_map(|n| Some((&n.node, n.problem.as_ref()?))) {
        None => Ok(()),
        Some((node, problem)) => Err(Error::new(
            ErrorKind::Unavailable,
            format!("node {node} did not try its paths"),
            problem.clone(),
            "see `vbm node list`, and try again",
        )),
    }
}

/// What was reached, line by line; what was not, in number.
fn check_text(nodes: &[NodePaths], names: &BTreeMap<NetworkId, String>) -> String {
    let name = |id: NetworkId| names.get(&id).cloned().unwrap_or_else(|| id.to_string());
    let mut lines = Vec::new();
    for node in nodes {
        if let Some(problem) = &node.problem {
            lines.push(format!("{}: not tried: {problem}", node.node));
            continue;
        }
        let reached: Vec<_> = node.paths.iter().filter(|p| p.reached).collect();
        let silent = node.paths.len() - reached.len();
        lines.push(format!(
            "{}: {} paths tried, {} reached, {silent} not",
            node.node,
            node.paths.len(),
            reached.len()
        ));
        lines.extend(reached.into_iter().map(|p| {
            let to = p.to.map_or_else(|| "the host".to_owned(), name);
            let verdict = if p.allowed {
                "as a rule allows"
            } else {
                "NOT ALLOWED"
            };
            format!("  {} -> {to} by {} {}: {verdict}", name(p.from), p.address, p.way)
        }));
    }
    if lines.is_empty() {
        return "no node has reported itself yet".into();
    }
    lines.join("\n")
}

pub(super) async fn counters(on: &Session<'_>, args: &OneNetwork) -> Result<(), Error> {
    let counts = on.client.networks().counters(&args.network).await?;
    on.out.item(&counts, &args.network, &counters_text(&counts))?;
    match counts.problems.first() {
        None => Ok(()),
        Some(problem) => Err(Error::new(
            ErrorKind::Unavailable,
            "some nodes did not say what passed",
            problem.clone(),
            "see `vbm node list`, and try again",
        )),
    }
}

fn counters_text(counts: &NetworkCounts) -> String {
    let mut ports = Table::new(
        &[
            "ADDRESS", "VM", "NODE", "RECEIVED", "BYTES", "SENT", "BYTES", "DROPPED", "REFUSED",
        ],
        &[],
    );
    for port in &counts.ports {
        let [received, sent] = [port.received, port.sent].map(|c: Counted| [c.packets, c.bytes]);
        let dropped = port.received_dropped + port.sent_dropped;
        let mut row = vec![
            port.address.to_string(),
            port.vm_name.clone(),
            port.node.to_string(),
        ];
        let numbers = [
            received[0],
            received[1],
            sent[0],
            sent[1],
            dropped,
            port.connections_refused,
        ];
        row.extend(numbers.map(|n| n.to_string()));
        ports.row(row);
    }
    let mut rules = Table::new(&["GROUP", "RULE", "LET BEGIN", "BYTES"], &[]);
    for rule in &counts.rules {
        rules.row([
            rule.group_name.clone().unwrap_or_default(),
            rule.rule.to_string(),
            rule.passed.packets.to_string(),
            rule.passed.bytes.to_string(),
        ]);
    }
    format!("{}\n\n{}", ports.render(false, None), rules.render(false, None))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(node: &str, changes: &[&str], problem: Option<&str>) -> NodeChanges {
        NodeChanges {
            node: node.parse().unwrap(),
            changes: changes.iter().map(ToString::to_string).collect(),
            problem: problem.map(str::to_owned),
        }
    }

    #[test]
    fn a_plan_says_of_each_node_what_it_would_change() {
        let nodes = [
            changes("a", &[], None),
            changes("b", &["bridge br0", "the guard"], None),
            changes("c", &[], Some("it is not there")),
        ];
        assert_eq!(
            plan_text(&nodes),
            "a: all is as wanted\nb: would change\n  bridge br0\n  the guard\nc: not known: it is not there"
        );
    }

    #[test]
    fn a_check_says_who_was_reached_and_names_holes() {
        use crate::api::TriedPath;
        let id = |n| NetworkId::from_uuid(uuid::Uuid::from_u128(n));
        let path = |to: Option<NetworkId>, allowed, reached| TriedPath {
            from: id(1),
            to,
            address: [192, 0, 2, 50].into(),
            way: "ping".into(),
            allowed,
            reached,
        };
        let nodes = [NodePaths {
            node: "a".parse().unwrap(),
            paths: vec![
                path(Some(id(2)), true, true),
                path(None, false, true),
                path(None, false, false),
            ],
            problem: None,
        }];
        let names = BTreeMap::from([(id(1), "lan".to_owned()), (id(2), "web".to_owned())]);
        assert_eq!(
            check_text(&nodes, &names),
            "a: 3 paths tried, 2 reached, 1 not\n  lan -> web by 192.0.2.50 ping: as a rule allows\n  lan -> the host by 192.0.2.50 ping: NOT ALLOWED"
        );
    }

    #[test]
    fn counters_of_nobody_are_two_empty_tables() {
        let text = counters_text(&NetworkCounts::default());
        assert!(text.contains("ADDRESS") && text.contains("LET BEGIN"), "{text}");
    }
}
