//! Saved memory of simulated VMs, and what the other facets share.

use super::{Fault, Guard, SimDriver, guest::Memory, world::SimWorld};
use crate::{Error, NicBackend, OpCx, Result, SavedState, Seen, VmDefinition, driver::not_for};
use async_trait::async_trait;
use tokio::time::sleep;
use vbm_core::{PowerEvent, PowerState, VmId};

impl SimDriver {
    pub(super) fn power(&self, id: VmId) -> PowerState {
        let vms = self.world().vms();
        vms.get(&id).map_or(PowerState::Off, |vm| self.sees(id, vm).power)
    }

    /// Runs a VM from a memory, once it was read.
    pub(super) async fn resume(
        &self,
        definition: &VmDefinition,
        nics: Vec<NicBackend>,
        memory: Memory,
        failed: PowerEvent,
    ) -> Result<Seen> {
        let (world, id) = (self.world(), definition.id);
        let run = world.begin(definition, nics, PowerEvent::Restore, memory)?;
        self.known().insert(id);
        let _guard = Guard {
            world,
            id,
            run,
            event: failed,
        };
        sleep(world.latency().transfer).await;
        let fails = world.fails_now(id, |fault| match fault {
            Fault::NextRestoreFails(why) | Fault::NextStartFails(why) => Some(why),
            _ => None,
        });
        match fails {
            Some(why) => Err(Error::StartFailed { why }),
            None => world.finish_start(id, run),
        }
    }
}

pub(super) fn refused(command: &str, why: String) -> Error {
    Error::Hypervisor {
        command: command.into(),
        why,
    }
}

/// Lets a VM go on unless what was begun with it was done.
pub(super) struct GoesOn<'a> {
    world: &'a SimWorld,
    id: VmId,
    pub(super) run: u64,
    pub(super) was: PowerState,
    failed: PowerEvent,
    done: bool,
}

impl<'a> GoesOn<'a> {
    /// Begins something that may fail without harm.
    pub(super) fn begin(
        driver: &'a SimDriver,
        id: VmId,
        event: PowerEvent,
        failed: PowerEvent,
    ) -> Result<Self> {
        let (was, run) = driver.act(id, event, |world, vm| {
            let was = vm.seen.power;
            world.apply(id, vm, event);
            (was, vm.run)
        })?;
        Ok(Self {
            world: driver.world(),
            id,
            run,
            was,
            failed,
            done: false,
        })
    }

    /// It leaves this host by `event`; what its guest remembers stays with it.
    pub(super) fn leaves(mut self, event: PowerEvent) -> Result<Seen> {
        let mut vms = self.world.vms();
        let vm = vms.get_mut(&self.id).filter(|vm| vm.run == self.run);
        let Some(vm) = vm.filter(|vm| vm.seen.power.after(event).is_ok()) else {
            return Err(Error::Disconnected {
                command: "transfer".into(),
            });
        };
        self.done = true;
        vm.rest();
        self.world.apply(self.id, vm, event);
        Ok(vm.seen.clone())
    }
}

impl Drop for GoesOn<'_> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let mut vms = self.world.vms();
        if let Some(vm) = vms.get_mut(&self.id).filter(|vm| vm.run == self.run) {
            self.world.apply(self.id, vm, self.failed);
            if let PowerState::Paused(why) = self.was {
                self.world.apply(self.id, vm, PowerEvent::Pause(why));
            }
        }
    }
}

#[async_trait]
impl SavedState for SimDriver {
    async fn save(&self, cx: &OpCx, id: VmId) -> Result<Seen> {
        cx.go_on("a save")?;
        let saving = GoesOn::begin(self, id, PowerEvent::Save, PowerEvent::SaveFailed)?;
        let written = async {
            sleep(self.world().latency().transfer).await;
            Ok(())
        };
        cx.report("writing its memory", 0, 0);
        cx.run("a save", written).await?;
        let fails = self.world().fails_now(id, |fault| match fault {
            Fault::NextSaveFails(why) => Some(why),
            _ => None,
        });
        match fails {
            Some(why) => Err(refused("save", why)),
            None => saving.leaves(PowerEvent::SaveDone),
        }
    }

    async fn restore(&self, cx: &OpCx, definition: &VmDefinition, nics: Vec<NicBackend>) -> Result<Seen> {
        cx.go_on("a restore")?;
        self.is_open()?;
        definition.check(nics.len())?;
        let id = definition.id;
        let power = self.power(id);
        let memory = {
            let vms = self.world().vms();
            let saved = vms.get(&id).filter(|_| power == PowerState::Saved);
            saved.map(|vm| vm.memory.clone())
        };
        let memory = memory.ok_or_else(|| not_for("restore", power, "saved"))?;
        self.resume(definition, nics, memory, PowerEvent::RestoreFailed)
            .await
    }

    async fn discard(&self, id: VmId) -> Result<()> {
        self.is_open()?;
        if self.power(id) == PowerState::Saved {
            self.world().end(id, PowerEvent::ForceOff);
        }
        Ok(())
    }
}
