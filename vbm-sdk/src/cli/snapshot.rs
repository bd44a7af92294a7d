//! `vbm snapshot`.

use super::{
    args::{Snapshot, SnapshotCreate},
    forms, human,
    info::Lines,
    session::Session,
    table::Table,
};
use crate::api::{CreateSnapshot, SnapshotView};
use vbm_core::{Consistency, Error, Freeze, SnapshotId, SnapshotState, SnapshotStatus, Timestamp};

pub(super) async fn run(on: &Session<'_>, verb: Snapshot) -> Result<(), Error> {
    match verb {
        Snapshot::Create(args) => create(on, &args).await,
        Snapshot::List(args) => list(on, &args.vm).await,
        Snapshot::Info(args) => {
            let snapshot = on.client.vms().snapshots(&args.vm).get(&args.snapshot).await?;
            let name = snapshot.snapshot.meta.name.as_str();
            on.out.item(&snapshot, name, &detail(&snapshot, on.now()))
        }
        Snapshot::Revert(args) => revert(on, &args.vm, &args.snapshot).await,
        Snapshot::Delete(args) => {
            let snapshots = on.client.vms().snapshots(&args.vm);
            let begin = |name: String| {
                let call = snapshots.delete(name);
                async move { Ok(call.await?.operation) }
            };
            on.each(&args.snapshots, begin, |operation| {
                format!("{} is gone", operation.target.name)
            })
            .await
        }
    }
}

async fn create(on: &Session<'_>, args: &SnapshotCreate) -> Result<(), Error> {
    let request = CreateSnapshot {
        name: args.name.as_deref().map(str::parse).transpose()?,
        labels: forms::labels(&args.labels)?,
        memory: args.no_memory.then_some(false),
        freeze: match args.freeze.as_deref() {
            None => Freeze::No,
            Some("if-possible") => Freeze::IfPossible,
            Some(_) => Freeze::Required,
        },
    };
    let snapshots = on.client.vms().snapshots(&args.vm);
    let made = snapshots.create(request).await?;
    if !on.finish(&made.operation).await? {
        return Ok(());
    }
    let taken = snapshots.get(made.item.snapshot.meta.id.to_string()).await?;
    let name = taken.snapshot.meta.name.to_string();
    let text = format!("{}/{name} was taken: {}", taken.vm_name, holds(&taken));
    on.out.done(&taken, &name, &text)?;
    if let Some(note) = &taken.snapshot.status.note {
        on.out.hint(note);
    }
    on.out.hint(&format!(
        "go back to it with `vbm snapshot revert {} {name}`",
        taken.vm_name
    ));
    Ok(())
}

async fn revert(on: &Session<'_>, vm: &str, snapshot: &str) -> Result<(), Error> {
    let asked = on.client.vms().snapshots(vm).revert(snapshot).await?;
    if !on.finish(&asked.operation).await? {
        return Ok(());
    }
    let vm = on
        .client
        .vms()
        .get(asked.item.snapshot.spec.vm.to_string())
        .await?;
    let (name, power) = (&vm.vm.meta.name, vm.vm.status.power);
    let text = format!(
        "{name} is as it was at {}, and {power}",
        asked.item.snapshot.meta.name
    );
    on.out.done(&vm, name.as_str(), &text)
}

async fn list(on: &Session<'_>, vm: &str) -> Result<(), Error> {
    let all = on.client.vms().snapshots(vm).list().all().await?;
    let rows = as_tree(&all);
    on.out.list(
        &all,
        |s| s.snapshot.meta.name.to_string(),
        &table(&rows, on.now()),
        &format!("no snapshots of {vm}: take one with `vbm snapshot create {vm} NAME`"),
    )?;
    let failed = all.iter().find(|s| s.snapshot.status.problem.is_some());
    if let Some(failed) = failed {
        on.out.hint(&format!(
            "(!) is not as it was asked for: see why with `vbm snapshot info {vm} {}`",
            failed.snapshot.meta.name
        ));
    }
    Ok(())
}

/// What it holds, in the words of a list.
fn content(status: &SnapshotStatus) -> String {
    let Some(content) = status.content else {
        return String::new();
    };
    match status.consistency {
        Some(Consistency::Crash) => format!("{content}, as after a power cut"),
        Some(Consistency::Frozen) => format!("{content}, frozen"),
        _ => content.to_string(),
    }
}

/// What it holds, or how far it is.
fn holds(view: &SnapshotView) -> String {
    let status = &view.snapshot.status;
    match (status.content, status.paused_micros) {
        (None, _) => status.state.to_string(),
        (Some(_), 0) => content(status),
        (Some(_), micros) => format!(
            "{}, the guest was halted for {} ms",
            content(status),
            micros.div_ceil(1_000)
        ),
    }
}

fn state(view: &SnapshotView) -> String {
    let snapshot = &view.snapshot;
    match (snapshot.meta.deleting, &snapshot.status.problem) {
        (true, _) => "deleting".into(),
        (false, None) => snapshot.status.state.to_string(),
        (false, Some(_)) => format!("{} (!)", snapshot.status.state),
    }
}

/// The snapshots in the order of their tree, each with the branches that lead to it.
fn as_tree(all: &[SnapshotView]) -> Vec<(String, &SnapshotView)> {
    fn below<'a>(
        all: &'a [SnapshotView],
        parent: Option<SnapshotId>,
        stem: &str,
        rows: &mut Vec<(String, &'a SnapshotView)>,
    ) {
        let known = |id: SnapshotId| all.iter().any(|s| s.snapshot.meta.id == id);
        let is_child = |s: &&SnapshotView| s.snapshot.spec.parent.filter(|p| known(*p)) == parent;
        let children: Vec<_> = all.iter().filter(is_child).collect();
        let last = children.len().saturating_sub(1);
        for (at, child) in children.into_iter().enumerate() {
            let (branch, more) = match (parent, at == last) {
                (None, _) => ("", ""),
                (Some(_), true) => ("└─ ", "   "),
                (Some(_), false) => ("├─ ", "│  "),
            };
            rows.push((format!("{stem}{branch}"), child));
            below(all, Some(child.snapshot.meta.id), &format!("{stem}{more}"), rows);
        }
    }
    let mut rows = Vec::new();
    below(all, None, "", &mut rows);
    rows
}

fn table(rows: &[(String, &SnapshotView)], now: Timestamp) -> Table {
    let mut table = Table::new(&["NAME", "STATE", "HOLDS", "AGE", "CURRENT"], &["PAUSED", "ID"]);
    for (branches, view) in rows {
        let (meta, status) = (&view.snapshot.meta, &view.snapshot.status);
        let taken = status.taken_at.unwrap_or(meta.created_at);
        table.row([
            format!("{branches}{}", meta.name),
            state(view),
            content(status),
            human::age(now, taken),
            if status.current { "yes" } else { "" }.to_owned(),
            match status.state {
                SnapshotState::Ready => format!("{} ms", status.paused_micros.div_ceil(1_000)),
                _ => String::new(),
            },
            meta.id.to_string(),
        ]);
    }
    table
}

fn detail(view: &SnapshotView, now: Timestamp) -> String {
    let status = &view.snapshot.status;
    let mut lines = Lines::default();
    lines.meta(&view.snapshot.meta, now);
    lines.put("VM", &*view.vm_name);
    lines.put("State", state(view));
    lines.problem(status.problem.as_ref());
    if status.content.is_some() {
        lines.put("Holds", holds(view));
    }
    if let Some(note) = &status.note {
        lines.put("But", note.as_str());
    }
    lines.put(
        "After",
        view.parent_name
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
    );
    if let Some(at) = status.taken_at {
        lines.put("Taken", format!("{} ago ({at})", human::age(now, at)));
    }
    if status.current {
        lines.put("Current", "yes: the disk stands on it");
    }
    lines.text()
}

#[cfg(test)]
mod tests {
    use super::*;
    use vbm_core::{ErrorKind, Meta, SnapshotContent, SnapshotSpec, VmId};

    fn id(n: u128) -> SnapshotId {
        SnapshotId::from_uuid(uuid::Uuid::from_u128(n))
    }

    fn sample(n: u128, name: &str, parent: Option<u128>) -> SnapshotView {
        SnapshotView {
            snapshot: vbm_core::Snapshot {
                meta: Meta::new(id(n), name.parse().unwrap(), Timestamp::from_micros(0)),
                spec: SnapshotSpec {
                    vm: VmId::from_uuid(uuid::Uuid::from_u128(1)),
                    parent: parent.map(id),
                    memory: true,
                    freeze: Freeze::No,
                },
                status: SnapshotStatus {
                    state: SnapshotState::Ready,
                    content: Some(SnapshotContent::Disk),
                    taken_at: Some(Timestamp::from_micros(0)),
                    ..SnapshotStatus::default()
                },
            },
            vm_name: "web1".into(),
            parent_name: None,
        }
    }

    #[test]
    fn snapshots_are_listed_as_the_tree_that_they_are() {
        let mut all = vec![
            sample(1, "base", None),
            sample(2, "patched", Some(1)),
            sample(3, "other", Some(1)),
            sample(4, "tested", Some(2)),
        ];
        all[2].snapshot.status.consistency = Some(Consistency::Frozen);
        all[3].snapshot.status.content = Some(SnapshotContent::DiskAndMemory);
        all[3].snapshot.status.current = true;
        let text = table(&as_tree(&all), Timestamp::from_micros(180_000_000)).render(false, Some(80));
        assert_eq!(
            text,
            "NAME          STATE  HOLDS            AGE  CURRENT\n\
             base          ready  disk             3m   -\n\
             ├─ patched    ready  disk             3m   -\n\
             │  └─ tested  ready  disk and memory  3m   yes\n\
             └─ other      ready  disk, frozen     3m   -"
        );
    }

    #[test]
    fn one_whose_parent_is_not_in_the_list_stands_at_the_root() {
        let all = [sample(2, "lonely", Some(1))];
        assert_eq!(as_tree(&all)[0].0, "");
    }

    #[test]
    fn a_snapshot_that_failed_is_marked_and_says_why() {
        let mut view = sample(1, "base", None);
        view.snapshot.status.state = SnapshotState::Failed;
        view.snapshot.status.content = None;
        view.snapshot.status.problem =
            Some(Error::new(ErrorKind::Exhausted, "no room", "it is full", "clean"));
        assert_eq!(state(&view), "failed (!)");
        let text = detail(&view, Timestamp::from_micros(0));
        assert!(text.contains("no room") && text.contains("it is full"), "{text}");
    }
}
