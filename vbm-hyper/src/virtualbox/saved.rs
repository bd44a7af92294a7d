//! Saved memory.

use super::{
    Shared, VirtualBoxDriver, argv,
    machine::Machine,
    parse::Told,
    runner::Call,
    start::{self, after_fault, begin, check, guarded, ready},
};
use crate::{
    Error, NicBackend, OpCx, Result, SavedState, Seen, VmDefinition,
    limits::{KILL_DEADLINE, VBOX_BULK_DEADLINE},
    process,
};
use async_trait::async_trait;
use std::sync::Arc;
use tokio::time::timeout;
use vbm_core::{PowerEvent, PowerState, VmId};

#[async_trait]
impl SavedState for VirtualBoxDriver {
    async fn save(&self, cx: &OpCx, id: VmId) -> Result<Seen> {
        cx.go_on("a save")?;
        let shared = &self.shared;
        let machine = shared.machine(id)?;
        machine.power().after(PowerEvent::Save)?;
        let _turn = machine.turn().await;
        begin(shared, &machine, PowerEvent::Save)?;
        let call = Call::new(["controlvm".to_owned(), id.to_string(), "savestate".to_owned()]);
        match shared.runner.run(&call.within(VBOX_BULK_DEADLINE)).await {
            Ok(_) => {
                // The command returns a moment before the process has ended; to kill it then could spoil what it saved.
                if let Some(process) = process::find(id) {
                    drop(timeout(KILL_DEADLINE, process.exited()).await);
                }
                machine.happened(shared, PowerEvent::SaveDone);
                Ok(machine.seen(shared))
            }
            Err(fault) => Err(after_fault(shared, &machine, fault, PowerEvent::SaveDone).await),
        }
    }

    async fn restore(&self, cx: &OpCx, definition: &VmDefinition, nics: Vec<NicBackend>) -> Result<Seen> {
        cx.go_on("a restore")?;
        self.shared.open()?;
        let interfaces = check(definition, nics)?;
        let machine = self.shared.machine(definition.id)?;
        if machine.power() != PowerState::Saved {
            // The table also allows it from rest, for snapshots with memory.
            return Err(not_saved(machine.power()));
        }
        ready(&self.shared).await?;
        begin(&self.shared, &machine, PowerEvent::Restore)?;
        wake(&self.shared, machine, definition, interfaces).await
    }

    async fn discard(&self, id: VmId) -> Result<()> {
        let shared = &self.shared;
        let machine = shared.machine(id)?;
        let _turn = machine.turn().await;
        if machine.power() != PowerState::Saved {
            return Ok(());
        }
        throw_away(shared, id).await?;
        machine.happened(shared, PowerEvent::ForceOff);
        Ok(())
    }
}

fn not_saved(power: PowerState) -> Error {
    Error::Refused(vbm_core::Error::new(
        vbm_core::ErrorKind::Conflict,
        format!("cannot restore a VM that is {power}"),
        "only saved memory can be gone on from",
        "start it with `vbm start`",
    ))
}

/// Throws the saved memory of a VM away.
pub(super) async fn throw_away(shared: &Shared, id: VmId) -> Result<()> {
    match shared.ask(id).await? {
        Told::Saved | Told::AbortedSaved => {}
        // Somebody else was faster.
        _ => return Ok(()),
    }
    let call = Call::new(["discardstate".to_owned(), id.to_string()]);
    shared.runner.run(&call).await?;
    Ok(())
}

/// Lets a VM whose memory is on disk go on. Its settings are those of the memory, but for what its NICs are plugged into.
pub(super) async fn wake(
    shared: &Arc<Shared>,
    machine: Arc<Machine>,
    definition: &VmDefinition,
    interfaces: Vec<String>,
) -> Result<Seen> {
    let job = {
        let (shared, machine, definition) = (Arc::clone(shared), Arc::clone(&machine), definition.clone());
        async move {
            replug(&shared, machine.id, &interfaces).await?;
            machine.dir.clear_tty()?;
            start::launch(&shared, &machine, &definition).await
        }
    };
    guarded(shared, machine, job).await
}

/// Plugs NICs into other interfaces where they stand in the wrong ones: VirtualBox allows that also beside saved memory.
async fn replug(shared: &Shared, id: VmId, interfaces: &[String]) -> Result<()> {
    let info = shared.info(id).await?.ok_or(Error::NoSuchVm(id))?;
    let wrong: Vec<_> = interfaces
        .iter()
        .enumerate()
        .map(|(at, interface)| (at + 1, interface))
        .filter(|(slot, interface)| info.get(&format!("bridgeadapter{slot}")) != Some(interface))
        .collect();
    if wrong.is_empty() {
        return Ok(());
    }
    shared.runner.run(&Call::new(argv::replug(id, &wrong))).await?;
    // The settings that were noted are those of another wiring.
    Ok(())
}
