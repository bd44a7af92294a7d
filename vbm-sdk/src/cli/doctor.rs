//! `vbm doctor`.

use super::{args::Doctor, exit, session::Session, table::Table};
use crate::doctor::{Finding, State};
use std::process::ExitCode;
use vbm_core::Error;

pub(super) async fn run(on: &Session<'_>, args: &Doctor) -> Result<ExitCode, Error> {
    let findings = crate::doctor::examine(args.fix, args.end_vms).await;
    on.out.list(
        &findings,
        |f| f.check.clone(),
        &table(&findings),
        "nothing was examined",
    )?;
    let problems = findings.iter().filter(|f| f.state == State::Problem).count();
    on.out.hint(&verdict(problems));
    Ok(if problems == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(exit::PROBLEM_FOUND)
    })
}

fn verdict(problems: usize) -> String {
    match problems {
        0 => "all is well".into(),
        1 => "1 problem is left: do what stands in its line".into(),
        more => format!("{more} problems are left: do what stands in their lines"),
    }
}

fn table(findings: &[Finding]) -> Table {
    let mut table = Table::new(&["CHECK", "STATE", "DETAIL", "FIX"], &[]);
    for finding in findings {
        let state = match finding.state {
            State::Ok => "ok",
            State::Warning => "warning",
            State::Problem => "PROBLEM",
            State::Fixed => "fixed",
        };
        table.row([
            finding.check.clone(),
            state.to_owned(),
            finding.detail.clone(),
            finding.fix.clone().unwrap_or_default(),
        ]);
    }
    table
}
