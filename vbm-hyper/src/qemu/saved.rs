//! Saved memory: written beside the disk, recorded in the state directory, so that it outlives daemons and boots.
//!
//! ```text
//!   save     stop -> migrate file: -> sync, rename -> record -> the process is ended     Saved as long as the record is there
//!   restore  new process -S -> load -> record gone -> cont -> memory gone
//! ```
//!
//! The record goes before the first instruction after the load: memory is never loaded again beside a disk that has
//! gone on. A restore that fails before has changed nothing. The guest's clock goes on from the moment of the save.

use super::{
    Entry, QemuDriver, Shared,
    errand::{self, Errand},
    keeper::Machine,
    lifecycle::Input,
    memory::{Kept, MemoryDir},
    record::VmDir,
    start,
    transfer::{self, Channel, Phase, Way},
};
use crate::{
    DriverEvent, Error, NicBackend, OpCx, Result, SavedState, Seen, VmDefinition, driver::not_for,
    limits::MEMORY_DEADLINE,
};
use async_trait::async_trait;
use serde_json::Value;
use std::{path::Path, sync::Arc};
use vbm_core::{PowerEvent, PowerState, VmId};

#[async_trait]
impl SavedState for QemuDriver {
    async fn save(&self, cx: &OpCx, id: VmId) -> Result<Seen> {
        cx.go_on("a save")?;
        let machine = self.shared.live(id, PowerEvent::Save)?;
        machine.keeps_memory()?;
        let place = errand::place(&machine)?;
        let (shared, cx) = (Arc::clone(&self.shared), cx.clone());
        errand::run(&self.shared, async move {
            let _place = place;
            save(&cx, &shared, &machine).await
        })
        .await
    }

    async fn restore(&self, cx: &OpCx, definition: &VmDefinition, nics: Vec<NicBackend>) -> Result<Seen> {
        cx.go_on("a restore")?;
        let shared = &self.shared;
        shared.open()?;
        super::snapshots::settle_at_rest(shared, definition).await?;
        let power = shared.known(definition.id).seen().power;
        if power != PowerState::Saved {
            return Err(not_for("restore", power, "saved"));
        }
        let record = shared.saved(definition.id);
        let kept = record.read()?.ok_or_else(|| Error::Corrupt {
            path: shared.keep(definition.id).file("saved"),
            why: "the record of the saved memory is gone".into(),
        })?;
        let prepared = start::Prepared::of(shared, definition, nics).await?;
        prepared.fits(Some(&kept))?;
        start::resume(shared, definition, &prepared, &kept, Some(&record)).await
    }

    async fn discard(&self, id: VmId) -> Result<()> {
        self.shared.open()?;
        discard(&self.shared, id)
    }
}

/// Throws the saved memory of a VM away, if it is saved.
pub(super) fn discard(shared: &Shared, id: VmId) -> Result<()> {
    let mut vms = shared.lock();
    if !matches!(vms.get(&id), Some(Entry::Resting(seen)) if seen.power == PowerState::Saved) {
        return Ok(());
    }
    shared.saved(id).discard()?;
    let seen = Seen::resting(PowerState::Off);
    vms.insert(id, Entry::Resting(seen.clone()));
    drop(vms);
    shared.tell(DriverEvent::new(id, PowerEvent::ForceOff, seen));
    Ok(())
}

async fn save(cx: &OpCx, shared: &Arc<Shared>, machine: &Arc<Machine>) -> Result<Seen> {
    let id = machine.id;
    let was_running = machine.seen().power == PowerState::Running;
    let dir = VmDir::new(&shared.root, id);
    let kept = Kept::of(machine, &shared.facts(id)?);
    let memory = MemoryDir::beside(&machine.definition().root_disk);
    let path = memory.begin(None)?;
    Errand::Save { was_running }.note(&dir)?;
    machine.tell(Input::SaveAsked).await;
    let written = match cx.run("a save", write(cx, machine, &path)).await {
        Ok(()) => {
            let (memory, record) = (memory.clone(), shared.saved(id));
            shared
                .scope
                .blocking(move || record.write(&memory.publish(None, kept)?))
                .await
        }
        Err(error) => Err(error),
    };
    match written {
        Ok(()) => {
            machine.tell(Input::SaveWritten).await;
            machine.process.kill();
            let seen = machine.wait_for(|_| false).await.seen;
            if seen.power == PowerState::Saved {
                Ok(seen)
            } else {
                Err(Error::Preempted { vm: id, job: "save" })
            }
        }
        Err(error) => {
            undo(shared, machine, &memory, was_running).await;
            Errand::over(shared, &dir);
            Err(error)
        }
    }
}

async fn write(cx: &OpCx, machine: &Machine, path: &Path) -> Result<()> {
    let qmp = machine.qmp("migrate")?;
    transfer::prepare(&qmp, Way::Halted).await?;
    machine.command("stop", Value::Null).await?;
    transfer::send(&qmp, &Channel::File(path.to_owned())).await?;
    let total = u64::from(machine.definition().memory_mib) * 1024 * 1024;
    let tell = |report: &transfer::Report| {
        cx.report("writing its memory", report.bytes, total);
        false
    };
    let report = transfer::wait(machine, MEMORY_DEADLINE, tell).await?;
    match report.phase {
        Phase::Completed => Ok(()),
        _ => Err(transfer::failure(&report, Some(path))),
    }
}

/// After a failure: nothing is left, and the guest goes on as it was.
async fn undo(shared: &Shared, machine: &Machine, memory: &MemoryDir, was_running: bool) {
    let undone = async {
        shared.saved(machine.id).use_up()?;
        let qmp = machine.qmp("migrate_cancel")?;
        transfer::call_off(&qmp).await?;
        if was_running {
            transfer::go_on(&qmp).await?;
        }
        Ok::<_, Error>(())
    };
    let went_on = undone.await;
    if let Err(error) = &went_on {
        tracing::warn!(id = %machine.id, %error, "a VM whose memory could not be saved does not go on");
    }
    machine
        .tell(Input::SaveFailed(!was_running || went_on.is_err()))
        .await;
    if let Err(error) = memory.remove(None) {
        tracing::warn!(id = %machine.id, %error, "a save that failed has left something");
    }
    memory.tidy();
}
