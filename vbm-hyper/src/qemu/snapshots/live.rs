//! Snapshots of a VM that has a process.
//!
//! ```text
//!   with memory    stop -> all disks, in one transaction -> migrate file: in the background -> cont
//!                  '---------------- the guest is halted ---------------------------------------'   -> memory whole
//!   disks alone    freeze? -> all disks, in one transaction -> thaw
//! ```
//!
//! Where the kernel cannot follow writes to the guest's memory (userfaultfd), the guest is halted until all of it is written.

use super::{
    super::{
        Shared,
        errand::Errand,
        keeper::Machine,
        memory::Kept,
        qmp::Qmp,
        reached,
        record::VmDir,
        transfer::{self, Channel, Phase, Report, Way},
    },
    beside::{Beside, Todo, Tree},
    names::{self, Disk},
    rest, wrong_state,
};
use crate::{
    Error, OpCx, Result, SnapshotRequest, SnapshotTaken, VmDefinition,
    limits::{FREEZE_DEADLINE, MEMORY_DEADLINE, MONITOR_RETRY, THAW_DEADLINE},
};
use serde_json::{Value, json};
use std::{path::Path, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep, timeout};
use vbm_core::{Consistency, DriverKind, ErrorKind, Freeze, PowerState, SnapshotId, VmId};

const MIB_BYTES: u64 = 1024 * 1024;

/// What is about to be captured.
struct Shot<'a> {
    shared: &'a Arc<Shared>,
    machine: &'a Arc<Machine>,
    definition: &'a VmDefinition,
    disks: &'a [Disk],
    request: SnapshotRequest,
    was_running: bool,
}

pub(super) async fn take(
    cx: &OpCx,
    shared: &Arc<Shared>,
    machine: &Arc<Machine>,
    definition: &VmDefinition,
    request: SnapshotRequest,
) -> Result<SnapshotTaken> {
    let snapshot = request.id;
    let was_running = match machine.seen().power {
        PowerState::Running => true,
        PowerState::Paused(_) => false,
        power => return Err(wrong_state(power, "take a snapshot of")),
    };
    if request.memory {
        machine.keeps_memory()?;
    }
    may_freeze(request, was_running, definition)?;
    let disks = names::disks_of(definition);
    let qmp = machine.qmp("transaction")?;
    cx.run("a snapshot", attached(&qmp, definition, &disks)).await?;
    let beside = Beside::of(&definition.root_disk);
    // What an earlier attempt has left.
    settle(&qmp, &definition.root_disk, None).await?;
    forget(&qmp, &disks, snapshot).await?;
    let before = beside.tree()?;
    let dir = VmDir::new(&shared.root, machine.id);
    let freezes = was_running && !request.memory && request.freeze != Freeze::No;
    beside.begin(&Todo::Take {
        snapshot,
        disks: disks.clone(),
        freezing: freezes,
        before: before.clone(),
    })?;
    Errand::Snapshot {
        snapshot,
        was_running,
    }
    .note(&dir)?;
    let shot = Shot {
        shared,
        machine,
        definition,
        disks: &disks,
        request,
        was_running,
    };
    let taken = match shot.capture(cx, &beside, freezes).await {
        Ok(taken) => {
            let mut tree = before.clone();
            tree.take(snapshot, disks.clone());
            // Once the note is gone it counts.
            beside
                .set_tree(&tree)
                .and_then(|()| beside.done())
                .map(|()| taken)
        }
        Err(error) => Err(error),
    };
    match taken {
        Ok(taken) => {
            Errand::over(shared, &dir);
            Ok(taken)
        }
        Err(error) => {
            let left = Left {
                machine: Arc::clone(machine),
                beside,
                disks: disks.clone(),
                request,
                was_running,
                before,
            };
            match left.undo().await {
                Ok(()) => Errand::over(shared, &dir),
                Err(failed) => {
                    tracing::warn!(id = %machine.id, error = %failed, "a snapshot that failed is undone later");
                    shared.scope.tasks.spawn(left.undo_later(Arc::clone(shared)));
                }
            }
            Err(error)
        }
    }
}

/// Whether what is asked of the guest can be asked.
fn may_freeze(request: SnapshotRequest, was_running: bool, definition: &VmDefinition) -> Result<()> {
    if request.memory || was_running || request.freeze != Freeze::Required {
        return Ok(());
    }
    Err(Error::Refused(vbm_core::Error::new(
        ErrorKind::Conflict,
        format!("the file systems of {} cannot be frozen", definition.name),
        "it is paused, and a guest that does not run freezes nothing",
        "let it go on with `vbm resume`, or keep its memory too",
    )))
}

impl Shot<'_> {
    async fn capture(&self, cx: &OpCx, beside: &Beside, freezes: bool) -> Result<SnapshotTaken> {
        if self.request.memory {
            return self.with_memory(cx, beside).await;
        }
        if !freezes {
            let note = (self.request.freeze == Freeze::IfPossible)
                .then(|| "its file systems were not frozen: it is paused".to_owned());
            let paused = cx.run("a snapshot", self.disks(Consistency::Crash)).await?;
            return Ok(SnapshotTaken::new(Consistency::Crash, paused).but(note));
        }
        let captured = cx.run("a snapshot", self.frozen()).await;
        // Whatever came of it: also of a freeze that was not waited for.
        let thawed = thaw(self.shared, self.machine.id).await;
        let taken = captured?;
        Ok(match thawed {
            Ok(()) => taken,
            Err(why) => {
                tracing::error!(id = %self.machine.id, why, "the file systems of a guest may still be frozen");
                taken.but(Some(format!("its file systems may still be frozen: {why}")))
            }
        })
    }

    /// Freezes, if that can be done, and captures the disks.
    async fn frozen(&self) -> Result<SnapshotTaken> {
        let freezer = &self.shared.config.freezer;
        let why = match timeout(FREEZE_DEADLINE, freezer.freeze(self.machine.id)).await {
            Ok(Ok(())) => None,
            Ok(Err(why)) => Some(why),
            Err(_) => Some(format!(
                "the guest did not freeze within {} s",
                FREEZE_DEADLINE.as_secs()
            )),
        };
        match why {
            None => {
                let paused = self.disks(Consistency::Frozen).await?;
                Ok(SnapshotTaken::new(Consistency::Frozen, paused))
            }
            Some(why) if self.request.freeze == Freeze::Required => Err(Error::Unsupported {
                driver: DriverKind::Qemu,
                what: "freeze the file systems of this guest".into(),
                why,
            }),
            Some(why) => {
                // What has been frozen by halves would halt the guest for longer than it must.
                drop(thaw(self.shared, self.machine.id).await);
                let paused = self.disks(Consistency::Crash).await?;
                let note = format!("its file systems were not frozen: {why}");
                Ok(SnapshotTaken::new(Consistency::Crash, paused).but(Some(note)))
            }
        }
    }

    /// All disks, of one moment. Returns how long no request of the guest was served.
    async fn disks(&self, consistency: Consistency) -> Result<Duration> {
        let name = names::name(self.request.id, consistency);
        let actions: Vec<Value> = self
            .disks
            .iter()
            .map(|disk| {
                let data = json!({ "device": disk.node, "name": name });
                json!({ "type": "blockdev-snapshot-internal-sync", "data": data })
            })
            .collect();
        let begun = Instant::now();
        self.machine
            .command("transaction", json!({ "actions": actions }))
            .await
            .map_err(|error| transfer::full_or(Some(&self.definition.root_disk), error))?;
        Ok(begun.elapsed())
    }

    async fn with_memory(&self, cx: &OpCx, beside: &Beside) -> Result<SnapshotTaken> {
        let (shared, snapshot) = (self.shared, self.request.id);
        let kept = Kept::of(self.machine, &shared.facts(self.machine.id)?);
        let path = beside.memory.begin(Some(snapshot))?;
        let paused = cx.run("a snapshot", self.memory(cx, &path)).await?;
        let memory = beside.memory.clone();
        let publish = move || memory.publish(Some(snapshot), kept);
        shared.scope.blocking(publish).await?;
        Ok(SnapshotTaken::new(Consistency::WithMemory, paused))
    }

    /// Halts the guest, fixes the disks and the memory, lets it go on, and waits for the memory to be written. Returns how
    /// long the guest was halted.
    async fn memory(&self, cx: &OpCx, path: &Path) -> Result<Duration> {
        let machine = self.machine;
        let qmp = machine.qmp("migrate")?;
        let way = match transfer::prepare(&qmp, Way::Background).await {
            Ok(()) => Way::Background,
            Err(Error::Hypervisor { why, .. }) => {
                tracing::info!(id = %machine.id, why, "the guest is halted until its memory is written");
                transfer::prepare(&qmp, Way::Halted).await?;
                Way::Halted
            }
            Err(error) => return Err(error),
        };
        let begun = Instant::now();
        if self.was_running {
            machine.command("stop", Value::Null).await?;
        }
        self.disks(Consistency::WithMemory).await?;
        transfer::send(&qmp, &Channel::File(path.to_owned())).await?;
        let total = u64::from(self.definition.memory_mib) * MIB_BYTES;
        let tell = |report: &Report| cx.report("writing its memory", report.bytes, total);
        // The first page is written once all of them are watched: from then on the guest may change them.
        let fixed = |report: &Report| {
            tell(report);
            way == Way::Background && report.pages > 0
        };
        let report = transfer::wait(machine, MEMORY_DEADLINE, fixed).await?;
        if matches!(report.phase, Phase::Failed | Phase::Cancelled | Phase::None) {
            return Err(transfer::failure(&report, Some(path)));
        }
        let mut paused = Duration::ZERO;
        if self.was_running {
            machine.command("cont", Value::Null).await?;
            reached(machine, "cont", |view| view.seen.power == PowerState::Running).await?;
            paused = begun.elapsed();
        }
        let all = |report: &Report| {
            tell(report);
            false
        };
        let report = transfer::wait(machine, MEMORY_DEADLINE, all).await?;
        match report.phase {
            Phase::Completed => Ok(paused),
            _ => Err(transfer::failure(&report, Some(path))),
        }
    }
}

/// What a snapshot that failed has left.
struct Left {
    machine: Arc<Machine>,
    beside: Beside,
    disks: Vec<Disk>,
    request: SnapshotRequest,
    was_running: bool,
    before: Tree,
}

impl Left {
    /// Nothing of the snapshot is left, and the guest goes on as it was.
    async fn undo(&self) -> Result<()> {
        let qmp = self.go_on().await?;
        forget(&qmp, &self.disks, self.request.id).await?;
        self.beside.memory.remove(Some(self.request.id))?;
        self.beside.set_tree(&self.before)?;
        self.beside.done()
    }

    async fn go_on(&self) -> Result<Qmp> {
        let qmp = self.machine.qmp("migrate_cancel")?;
        if self.request.memory {
            transfer::call_off(&qmp).await?;
            if self.was_running {
                transfer::go_on(&qmp).await?;
            }
        }
        Ok(qmp)
    }

    /// Tries again until its process answers or ends. What it was told may take effect late.
    async fn undo_later(self, shared: Arc<Shared>) {
        loop {
            // Cancel safe: the next daemon finds the note.
            tokio::select! {
                () = shared.scope.end.cancelled() => return,
                () = sleep(MONITOR_RETRY) => {}
            }
            if self.machine.process.has_exited() {
                return;
            }
            let _place = self.machine.errand.lock().await;
            let mine = |todo: &Todo| todo.hides() == Some(self.request.id);
            let undone = match self.beside.todo() {
                Ok(todo) if todo.as_ref().is_some_and(mine) => self.undo().await,
                // Somebody else has undone it.
                _ => self.go_on().await.map(drop),
            };
            match undone {
                Ok(()) => return Errand::over(&shared, &VmDir::new(&shared.root, self.machine.id)),
                Err(error) => tracing::debug!(id = %self.machine.id, %error, "a snapshot is undone later"),
            }
        }
    }
}

async fn thaw(shared: &Shared, id: VmId) -> Result<(), String> {
    match timeout(THAW_DEADLINE, shared.config.freezer.thaw(id)).await {
        Ok(thawed) => thawed,
        Err(_) => Err(format!(
            "the guest did not answer within {} s",
            THAW_DEADLINE.as_secs()
        )),
    }
}

/// Thaws a guest that a daemon before may have left frozen. What was noted is read at once, before it is settled.
pub(in crate::qemu) fn thaw_left(
    shared: Arc<Shared>,
    id: VmId,
    root_disk: &Path,
) -> impl Future<Output = ()> + Send + use<> {
    let todo = Beside::of(root_disk).todo();
    let freezing = matches!(todo, Ok(Some(Todo::Take { freezing: true, .. })));
    async move {
        if freezing && let Err(why) = thaw(&shared, id).await {
            tracing::error!(%id, why, "the file systems of a guest may still be frozen");
        }
    }
}

/// Whether the process has the disks that the definition says, all of them such as can hold snapshots.
async fn attached(qmp: &Qmp, definition: &VmDefinition, disks: &[Disk]) -> Result<()> {
    let found = qmp.execute("query-block", Value::Null).await?;
    let inserted = found
        .as_array()
        .into_iter()
        .flatten()
        .map(|device| &device["inserted"]);
    let writable: Vec<(&str, &str)> = inserted
        .filter(|medium| medium["ro"] == json!(false))
        .filter_map(|medium| Some((medium["node-name"].as_str()?, medium["drv"].as_str()?)))
        .filter(|(node, _)| names::is_disk(node))
        .collect();
    if let Some((node, format)) = writable.iter().find(|(_, format)| *format != "qcow2") {
        return Err(Error::BadDisk {
            format: "qcow2",
            why: format!(
                "disk {node} of {} is {format}, and only qcow2 holds snapshots",
                definition.name
            ),
        });
    }
    let missing = disks
        .iter()
        .find(|disk| !writable.iter().any(|(node, _)| *node == disk.node));
    let more = writable
        .iter()
        .find(|(node, _)| !disks.iter().any(|disk| disk.node == *node));
    let why = match (missing, more) {
        (Some(disk), _) => format!("{} is not attached to its process", disk.path.display()),
        (None, Some((node, _))) => format!("its process has a disk {node} that its definition lacks"),
        (None, None) => return Ok(()),
    };
    Err(Error::Refused(vbm_core::Error::new(
        ErrorKind::Conflict,
        format!("cannot take a snapshot of {}", definition.name),
        why,
        "attach or detach the disk, then try again",
    )))
}

/// Removes a snapshot from the disks of a VM that runs, from the root disk first.
pub(super) async fn forget(qmp: &Qmp, disks: &[Disk], snapshot: SnapshotId) -> Result<()> {
    for disk in disks.iter().rev() {
        for name in names::of(&disk.path, snapshot).await? {
            let arguments = json!({ "device": disk.node, "name": name });
            qmp.execute("blockdev-snapshot-delete-internal-sync", arguments)
                .await?;
        }
    }
    Ok(())
}

/// Undoes a snapshot, or ends a deletion, that was begun by who is gone. `memory` tells whether it is that snapshot, and its
/// memory may be whole.
pub(in crate::qemu) async fn settle(qmp: &Qmp, root_disk: &Path, whole: Option<SnapshotId>) -> Result<()> {
    let beside = Beside::of(root_disk);
    match beside.todo()? {
        Some(Todo::Take {
            snapshot,
            disks,
            before,
            ..
        }) => {
            let mine = with_nodes(qmp, disks).await?;
            forget(qmp, &mine, snapshot).await?;
            beside.memory.remove(Some(snapshot))?;
            beside.set_tree(&before)?;
            beside.done()
        }
        Some(Todo::Delete { snapshot, disks }) => {
            let mine = with_nodes(qmp, disks).await?;
            forget(qmp, &mine, snapshot).await?;
            rest::deleted(&beside, snapshot)?;
            beside.done()
        }
        // The disks of a VM that runs went back before it ran.
        Some(Todo::Revert { .. }) => beside.done(),
        // An older daemon noted nothing.
        None => match whole {
            Some(snapshot) if !beside.memory.has(snapshot) => {
                let root = Disk {
                    volume: None,
                    node: names::ROOT.into(),
                    path: root_disk.to_owned(),
                };
                let kinds = names::all_in(root_disk).await?;
                let half = |(id, kind): &(SnapshotId, Consistency)| {
                    *id == snapshot && *kind == Consistency::WithMemory
                };
                if kinds.iter().any(half) {
                    forget(qmp, &[root], snapshot).await?;
                }
                beside.memory.remove(Some(snapshot))
            }
            _ => Ok(()),
        },
    }
}

/// Those disks that the process has.
pub(super) async fn with_nodes(qmp: &Qmp, disks: Vec<Disk>) -> Result<Vec<Disk>> {
    let nodes = qmp
        .execute("query-named-block-nodes", json!({ "flat": true }))
        .await?;
    let has = |disk: &Disk| {
        let mut nodes = nodes.as_array().into_iter().flatten();
        nodes.any(|node| node["node-name"].as_str() == Some(&disk.node))
    };
    Ok(disks.into_iter().filter(has).collect())
}
