//! `vbm migrate` and `vbm placement`.

use super::{
    args::{Migrate, OneVm},
    human,
    session::Session,
    table::Table,
};
use crate::api::{MigrateRequest, MoveCheckView, Placement};
use vbm_core::Error;

pub(super) async fn migrate(on: &Session<'_>, args: &Migrate) -> Result<(), Error> {
    const MIB: u64 = 1024 * 1024;
    let request = MigrateRequest {
        to: args.to.as_deref().map(str::parse).transpose()?,
        live: args.live.then_some(true).or_else(|| args.cold.then_some(false)),
        copy_disks: args.copy_disks,
        max_downtime_ms: args.max_downtime,
        bandwidth_bytes: args.bandwidth.map(|mib| mib * MIB),
    };
    if args.dry_run {
        let checks = on.client.vms().check_migrate(&args.vm, &request).await?.items;
        return on.out.list(
            &checks,
            |c| c.what.clone(),
            &checked(&checks),
            "nothing was looked at",
        );
    }
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

fn checked(checks: &[MoveCheckView]) -> Table {
    let mut table = Table::new(&["WHERE", "WHAT", "OK", "FOUND"], &[]);
    for check in checks {
        table.row([
            check.at.clone(),
            check.what.clone(),
            if check.passed { "yes" } else { "no" }.to_owned(),
            check.found.clone(),
        ]);
    }
    table
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
