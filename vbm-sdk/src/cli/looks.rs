//! `vbm net plan` and `vbm net counters`: what the nodes say of a network.

use super::{args::OneNetwork, session::Session, table::Table};
use crate::api::{Counted, NetworkCounts, NodeChanges};
use vbm_core::{Error, ErrorKind};

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
    fn counters_of_nobody_are_two_empty_tables() {
        let text = counters_text(&NetworkCounts::default());
        assert!(text.contains("ADDRESS") && text.contains("LET BEGIN"), "{text}");
    }
}
