//! `vbm migrate` and `vbm placement`.

use super::{
    args::{Migrate, OneVm},
    human,
    session::Session,
    table::Table,
};
use crate::api::{MigrateRequest, Placement};
use vbm_core::Error;

pub(super) async fn migrate(on: &Session<'_>, args: &Migrate) -> Result<(), Error> {
    let request = MigrateRequest {
        to: args.to.as_deref().map(str::parse).transpose()?,
        live: args.live.then_some(true),
    };
    let begin = |vm: String| {
        let request = &request;
        async move { Ok(on.client.vms().migrate(vm, request).await?.operation) }
    };
    on.each(std::slice::from_ref(&args.vm), begin, |operation| {
        format!("{} has moved", operation.target.name)
    })
    .await
}

pub(super) async fn placement(on: &Session<'_>, args: &OneVm) -> Result<(), Error> {
    let nodes = on.client.vms().placement(&args.vm).await?.items;
    on.out.list(
        &nodes,
        |n| n.node.to_string(),
        &table(&nodes),
        "no node has reported itself yet",
    )
}

fn table(nodes: &[Placement]) -> Table {
    let mut table = Table::new(&["NODE", "FITS", "MEMORY LEFT", "WHY NOT"], &[]);
    for node in nodes {
        let name = if node.current {
            format!("{} (here)", node.node)
        } else {
            node.node.to_string()
        };
        table.row([
            name,
            if node.fits { "yes" } else { "no" }.to_owned(),
            human::mib(node.score),
            node.reasons.join(", "),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placement_says_of_each_node_whether_and_why_not() {
        let of = |node: &str, current, reasons: &[&str]| Placement {
            node: node.parse().unwrap(),
            current,
            fits: reasons.is_empty(),
            score: 2_048,
            reasons: reasons.iter().map(|r| (*r).to_owned()).collect(),
        };
        let nodes = [
            of("a", true, &[]),
            of("b", false, &["it is lost", "it has no driver qemu"]),
        ];
        assert_eq!(
            table(&nodes).render(false, Some(80)),
            "NODE      FITS  MEMORY LEFT  WHY NOT\n\
             a (here)  yes   2G           -\n\
             b         no    2G           it is lost, it has no driver qemu"
        );
    }
}
