//! Snapshots, by VirtualBox's own: a tree of differencing disks in the folder of the VM.
//!
//! VirtualBox merges a snapshot away only while at most one other stands on it. That is told before it is tried.

use super::{
    Shared, VirtualBoxDriver, argv,
    machine::Machine,
    make,
    parse::{self, SnapshotNode},
    runner::Call,
    saved,
    start::{begin, check, entry, ready},
};
use crate::{
    Error, NicBackend, OpCx, Result, Seen, SnapshotInfo, SnapshotRequest, SnapshotTaken, Snapshots,
    VmDefinition,
    disk::vdi,
    limits::{LOG_TAIL_BYTES, VBOX_BULK_DEADLINE},
    serial::tail,
};
use async_trait::async_trait;
use std::{path::Path, sync::Arc, time::Duration};
use tokio::time::Instant;
use vbm_core::{
    Consistency, DriverKind, ErrorKind, PowerEvent, PowerState, SnapshotContent, SnapshotId, VmId,
};

/// How much of VirtualBox's log is read for how long a guest was halted.
const LOG_BYTES: u64 = 32 * LOG_TAIL_BYTES;

#[async_trait]
impl Snapshots for VirtualBoxDriver {
    async fn take(
        &self,
        cx: &OpCx,
        definition: &VmDefinition,
        request: SnapshotRequest,
    ) -> Result<SnapshotTaken> {
        cx.go_on("a snapshot")?;
        let snapshot = request.id;
        let (shared, id) = (&self.shared, definition.id);
        shared.open()?;
        let machine = match shared.machine(id) {
            Ok(machine) => machine,
            Err(_) => first(shared, definition).await?,
        };
        let _turn = machine.turn().await;
        let content = match machine.power() {
            PowerState::Running | PowerState::Paused(_) => SnapshotContent::DiskAndMemory,
            PowerState::Off | PowerState::Crashed(_) => SnapshotContent::Disk,
            other => return Err(not_now("take a snapshot of", other, "running, paused or off")),
        };
        if let Some(there) = find(&nodes(shared, id).await?, snapshot) {
            return Ok(SnapshotTaken::new(
                consistency(argv::content(&there.description)),
                Duration::ZERO,
            ));
        }
        if content == SnapshotContent::DiskAndMemory && !request.memory {
            return Err(Error::Unsupported {
                driver: DriverKind::VirtualBox,
                what: "take a snapshot of a VM that runs without its memory".into(),
                why: "VirtualBox keeps the memory of each VM that runs".into(),
            });
        }
        let live = machine.power() == PowerState::Running;
        let begun = Instant::now();
        let call = Call::new(argv::take(id, snapshot, content, live))
            .within(VBOX_BULK_DEADLINE)
            .on_registry();
        if let Err(fault) = shared.runner.run(&call).await {
            // Nothing of it may be left; what was taken in spite of the fault is deleted.
            if let Ok(nodes) = nodes(shared, id).await
                && let Some(left) = find(&nodes, snapshot)
            {
                drop(
                    shared
                        .runner
                        .run(&Call::new(argv::delete(id, &left.uuid)).within(VBOX_BULK_DEADLINE))
                        .await,
                );
            }
            if let Ok(told) = shared.ask(id).await {
                machine.told(shared, told);
            }
            return Err(fault.into());
        }
        let halted = match content {
            SnapshotContent::DiskAndMemory if live => {
                halted(shared, id).await.unwrap_or_else(|| begun.elapsed())
            }
            _ => Duration::ZERO,
        };
        Ok(SnapshotTaken::new(consistency(content), halted))
    }

    async fn revert(
        &self,
        cx: &OpCx,
        definition: &VmDefinition,
        snapshot: SnapshotId,
        nics: Vec<NicBackend>,
    ) -> Result<Seen> {
        cx.go_on("a revert")?;
        let (shared, id) = (&self.shared, definition.id);
        shared.open()?;
        let interfaces = check(definition, nics)?;
        let machine = shared.machine(id)?;
        let content = {
            let _turn = machine.turn().await;
            let power = machine.power();
            if !matches!(
                power,
                PowerState::Off | PowerState::Saved | PowerState::Crashed(_)
            ) {
                return Err(not_now(
                    "go back to a snapshot of",
                    power,
                    "off, saved or crashed",
                ));
            }
            let missing = Error::NoSuchSnapshot { vm: id, snapshot };
            let node = find(&nodes(shared, id).await?, snapshot).ok_or(missing)?;
            let content = argv::content(&node.description);
            if content == SnapshotContent::DiskAndMemory {
                ready(shared).await?;
            }
            let call = Call::new(argv::restore(id, &node.uuid))
                .within(VBOX_BULK_DEADLINE)
                .on_registry();
            shared.runner.run(&call).await?;
            // The settings went back too: the next start makes them again.
            let mut applied = machine.dir.applied()?;
            applied.settings.clear();
            machine.dir.set_applied(&applied)?;
            if content == SnapshotContent::DiskAndMemory {
                begin(shared, &machine, PowerEvent::Restore)?;
            } else {
                machine.happened(shared, PowerEvent::ForceOff);
            }
            content
        };
        if content == SnapshotContent::Disk {
            return Ok(machine.seen(shared));
        }
        saved::wake(shared, machine, definition, interfaces).await
    }

    async fn delete(&self, cx: &OpCx, definition: &VmDefinition, snapshot: SnapshotId) -> Result<()> {
        cx.go_on("the deletion of a snapshot")?;
        let (shared, id) = (&self.shared, definition.id);
        let machine = match shared.machine(id) {
            Err(Error::NoSuchVm(_)) => return Ok(()),
            other => other?,
        };
        let _turn = machine.turn().await;
        let Some(node) = find(&nodes(shared, id).await?, snapshot) else {
            return Ok(());
        };
        if node.children > 1 {
            return Err(Error::Refused(vbm_core::Error::new(
                ErrorKind::Conflict,
                format!("cannot delete snapshot {snapshot}"),
                format!(
                    "{} snapshots stand on it, and VirtualBox merges one into at most one other",
                    node.children
                ),
                "delete those that stand on it first, until one is left",
            )));
        }
        let call = Call::new(argv::delete(id, &node.uuid))
            .within(VBOX_BULK_DEADLINE)
            .on_registry();
        shared.runner.run(&call).await?;
        Ok(())
    }

    async fn list(&self, definition: &VmDefinition) -> Result<Vec<(SnapshotId, SnapshotContent)>> {
        self.shared.open()?;
        let nodes = nodes(&self.shared, definition.id).await?;
        Ok(nodes
            .iter()
            .filter_map(|node| Some((argv::snapshot_id(&node.name)?, argv::content(&node.description))))
            .collect())
    }

    async fn tree(&self, definition: &VmDefinition) -> Result<Vec<SnapshotInfo>> {
        self.shared.open()?;
        let nodes = nodes(&self.shared, definition.id).await?;
        let info = |node: &SnapshotNode| {
            let kind = consistency(argv::content(&node.description));
            Some(SnapshotInfo {
                parent: node.parent.as_deref().and_then(argv::snapshot_id),
                ..SnapshotInfo::new(argv::snapshot_id(&node.name)?, kind)
            })
        };
        Ok(nodes.iter().filter_map(info).collect())
    }
}

const fn consistency(content: SnapshotContent) -> Consistency {
    match content {
        SnapshotContent::DiskAndMemory => Consistency::WithMemory,
        _ => Consistency::Clean,
    }
}

/// A VM that never ran has to be made before it can be snapshotted. What its NICs are plugged into is said when it starts.
async fn first(shared: &Shared, definition: &VmDefinition) -> Result<Arc<Machine>> {
    definition.check(definition.nics.len())?;
    vdi::check(&definition.root_disk)?;
    let machine = entry(shared, definition.id);
    let turn = machine.turn().await;
    make::make(shared, &machine, definition, &[], true).await?;
    drop(turn);
    Ok(machine)
}

fn not_now(what: &str, power: PowerState, when: &str) -> Error {
    Error::Refused(vbm_core::Error::new(
        ErrorKind::Conflict,
        format!("cannot {what} a VM that is {power}"),
        format!("that is possible when it is {when}"),
        "wait for the state, or end the VM with `vbm stop --force`",
    ))
}

fn find(nodes: &[SnapshotNode], snapshot: SnapshotId) -> Option<SnapshotNode> {
    nodes
        .iter()
        .find(|node| argv::snapshot_id(&node.name) == Some(snapshot))
        .cloned()
}

/// All snapshots of a VM; none of one that is not registered yet.
async fn nodes(shared: &Shared, id: VmId) -> Result<Vec<SnapshotNode>> {
    if shared.info(id).await?.is_none() {
        return Ok(Vec::new());
    }
    let call = Call::new([
        "snapshot".to_owned(),
        id.to_string(),
        "list".to_owned(),
        "--machinereadable".to_owned(),
    ]);
    let answer = shared.runner.ask(&call).await?;
    match answer.complaint {
        // It says on standard output that there are none, and ends with 1.
        Some(_) if answer.said.contains("does not have any snapshots") => Ok(Vec::new()),
        Some(complaint) => Err(Error::Hypervisor {
            command: "VBoxManage snapshot list".into(),
            why: complaint.why,
        }),
        None => Ok(parse::snapshots(&answer.said)),
    }
}

/// How long the guest was halted for the last snapshot, as VirtualBox logged it.
async fn halted(shared: &Shared, id: VmId) -> Option<Duration> {
    let info = shared.info(id).await.ok()??;
    let log = Path::new(info.get("LogFldr")?).join("VBox.log");
    let text = tokio::task::spawn_blocking(move || tail(&log, LOG_BYTES))
        .await
        .ok()?
        .ok()?;
    last_halt(&String::from_utf8_lossy(&text))
}

/// The time between the last two lines of a log that say that the guest was halted and that it runs again: pure.
///
/// `00:00:31.123456 Changing the VM state from 'RUNNING_LS' to 'SUSPENDING_LS'`
fn last_halt(log: &str) -> Option<Duration> {
    let (mut halted_at, mut last) = (None, None);
    for line in log.lines() {
        let Some((before, change)) = line.split_once("Changing the VM state from '") else {
            continue;
        };
        let Some((_, to)) = change.split_once("' to '") else {
            continue;
        };
        let at = before.split_ascii_whitespace().next().and_then(stamp);
        if to.starts_with("SUSPEND") {
            halted_at = halted_at.or(at);
        } else if to.starts_with("RUNNING")
            && let (Some(from), Some(until)) = (halted_at.take(), at)
        {
            last = until.checked_sub(from);
        }
    }
    last
}

/// `HH:MM:SS.ffffff` since the VM was started.
fn stamp(text: &str) -> Option<Duration> {
    let mut parts = text.split(':');
    let mut number = || parts.next()?.parse::<u64>().ok();
    let (hours, minutes) = (number()?, number()?);
    let seconds: f64 = text.rsplit(':').next()?.parse().ok()?;
    let seconds = Duration::try_from_secs_f64(seconds).ok()?;
    seconds.checked_add(Duration::from_secs(
        hours.checked_mul(3600)?.checked_add(minutes.checked_mul(60)?)?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn how_long_a_guest_was_halted_stands_in_the_log() {
        let log = "00:00:05.000000 Changing the VM state from 'POWERING_ON' to 'RUNNING'\n\
            00:00:31.000000 Changing the VM state from 'RUNNING' to 'RUNNING_LS'\n\
            00:00:31.250000 Changing the VM state from 'RUNNING_LS' to 'SUSPENDING_LS'\n\
            00:00:31.300000 Changing the VM state from 'SUSPENDING_LS' to 'SUSPENDED_LS'\n\
            00:00:31.400000 Other words\n\
            00:00:31.750000 Changing the VM state from 'RESUMING' to 'RUNNING'\n";
        assert_eq!(last_halt(log), Some(Duration::from_millis(500)));
        assert_eq!(
            last_halt("00:00:05.000000 Changing the VM state from 'POWERING_ON' to 'RUNNING'\n"),
            None
        );
    }

    proptest! {
        #[test]
        fn a_log_of_garbage_is_read_without_a_panic(text in any::<String>(), stamp in "[0-9:.]{0,30}") {
            last_halt(&text);
            last_halt(&format!("{stamp} Changing the VM state from 'A' to 'SUSPENDED'\n{stamp} Changing the VM state from 'B' to 'RUNNING'\n"));
        }
    }
}
