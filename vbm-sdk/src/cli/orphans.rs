//! `vbm orphans`: works on the host itself, as `vbm doctor` does; it needs no daemon, and takes nothing from one that lives.

use super::{
    args::{OrphanAdopt, OrphanPlaces, Orphans, OrphansGc},
    session::Session,
    table::Table,
};
use crate::doctor::run_dirs_of_vms;
use serde::Serialize;
use std::path::PathBuf;
use vbm_core::{Error, VmId};
use vbm_hyper::{Orphan, OrphanKind, qemu::orphans};

/// An orphan, and what became of it.
#[derive(Serialize)]
struct Line {
    vm: VmId,
    name: Option<String>,
    kind: &'static str,
    pid: Option<u32>,
    run_dir: PathBuf,
    why: String,
    /// `left alone`, `would be ended`, `ended`, `cleared away`, or what went wrong.
    done: String,
}

pub(super) async fn run(on: &Session<'_>, verb: Orphans) -> Result<(), Error> {
    match verb {
        Orphans::List(places) => {
            let lines: Vec<_> = find(&places)?
                .into_iter()
                .map(|orphan| line(orphan, String::new()))
                .collect();
            on.out
                .list(&lines, |line| line.vm.to_string(), &table(&lines), NONE)
        }
        Orphans::Gc(args) => gc(on, &args).await,
        Orphans::Adopt(args) => adopt(on, &args),
    }
}

const NONE: &str = "no orphans: every VM of this host has its daemon";

fn find(places: &OrphanPlaces) -> Result<Vec<Orphan>, Error> {
    let mut roots = run_dirs_of_vms();
    for dir in &places.run_dirs {
        let absolute = std::path::absolute(dir);
        roots.push(absolute.map_err(|e| Error::internal("a directory cannot be found", e.to_string()))?);
    }
    orphans::find(&roots).map_err(Error::from)
}

async fn gc(on: &Session<'_>, args: &OrphansGc) -> Result<(), Error> {
    let found = find(&args.places)?;
    if let Some(stranger) = args
        .vms
        .iter()
        .find(|vm| !found.iter().any(|orphan| orphan.vm == **vm))
    {
        return Err(Error::new(
            vbm_core::ErrorKind::NotFound,
            format!("VM {stranger} is no orphan of this host"),
            "it has its daemon, or nothing of it is here",
            "see `vbm orphans list`; a VM that has its daemon is ended with `vbm stop --force`",
        ));
    }
    let mut failed = None;
    let mut lines = Vec::new();
    for orphan in found {
        let asked = args.vms.contains(&orphan.vm);
        let dead = orphan.kind == OrphanKind::Dead;
        let done = match (dead || asked, args.dry_run) {
            (false, _) => "left alone".to_owned(),
            (true, true) if orphan.pid.is_some() => "would be ended".into(),
            (true, true) => "would be cleared away".into(),
            (true, false) => match orphans::clear(&orphan, asked).await {
                Ok(()) if orphan.pid.is_some() => "ended".into(),
                Ok(()) => "cleared away".into(),
                Err(error) => {
                    let error = Error::from(error);
                    let words = error.inline();
                    failed = failed.or(Some(error));
                    words
                }
            },
        };
        lines.push(line(orphan, done));
    }
    on.out
        .list(&lines, |line| line.vm.to_string(), &table(&lines), NONE)?;
    failed.map_or(Ok(()), Err)
}

fn adopt(on: &Session<'_>, args: &OrphanAdopt) -> Result<(), Error> {
    let absolute = |dir: &PathBuf| {
        std::path::absolute(dir).map_err(|e| Error::internal("a directory cannot be found", e.to_string()))
    };
    let (from, into) = (absolute(&args.from)?, absolute(&args.into)?);
    let from_state = args.from_state.as_ref().map_or(Ok(from.clone()), absolute)?;
    let into_state = args.into_state.as_ref().map_or(Ok(into.clone()), absolute)?;
    orphans::move_run((&from, &from_state), (&into, &into_state), args.vm).map_err(Error::from)?;
    on.out
        .hint("it runs on; the daemon of that directory finds it when it starts");
    Ok(())
}

fn line(orphan: Orphan, done: String) -> Line {
    Line {
        vm: orphan.vm,
        name: orphan.name,
        kind: orphan.kind.as_str(),
        pid: orphan.pid,
        run_dir: orphan.root,
        why: orphan.why,
        done,
    }
}

fn table(lines: &[Line]) -> Table {
    let mut table = Table::new(&["VM", "NAME", "KIND", "PID", "DONE", "WHY"], &["RUN DIRECTORY"]);
    for line in lines {
        table.row([
            line.vm.to_string(),
            line.name.clone().unwrap_or_default(),
            line.kind.to_owned(),
            line.pid.map(|pid| pid.to_string()).unwrap_or_default(),
            line.done.clone(),
            line.why.clone(),
            line.run_dir.display().to_string(),
        ]);
    }
    table
}
