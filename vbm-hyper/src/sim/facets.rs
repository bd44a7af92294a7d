//! Saved memory and migration of simulated VMs.

use super::{
    Fault, Guard, SimDriver,
    guest::{Door, Memory},
    world::SimWorld,
};
use crate::{
    Error, Migrated, Migration, NicBackend, OpCx, Result, SavedState, Seen, VmDefinition, driver::not_for,
    limits::ARRIVAL_DEADLINE,
};
use async_trait::async_trait;
use std::net::{Ipv4Addr, SocketAddr};
use tokio::time::{Instant, sleep};
use vbm_core::{PowerEvent, PowerState, VmId};

/// What a simulated memory weighs: a byte for each that the VM has.
const MIB_BYTES: u64 = 1024 * 1024;

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
struct GoesOn<'a> {
    world: &'a SimWorld,
    id: VmId,
    run: u64,
    was: PowerState,
    failed: PowerEvent,
    done: bool,
}

impl<'a> GoesOn<'a> {
    /// Begins something that may fail without harm.
    fn begin(driver: &'a SimDriver, id: VmId, event: PowerEvent, failed: PowerEvent) -> Result<Self> {
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
    fn leaves(mut self, event: PowerEvent) -> Result<Seen> {
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

#[async_trait]
impl Migration for SimDriver {
    async fn receive(
        &self,
        cx: &OpCx,
        definition: &VmDefinition,
        nics: Vec<NicBackend>,
        listen: Ipv4Addr,
    ) -> Result<SocketAddr> {
        cx.go_on("an arrival")?;
        self.is_open()?;
        definition.check(nics.len())?;
        let (world, id) = (self.world(), definition.id);
        self.power(id).after(PowerEvent::MigrateIn)?;
        let run = world.begin(definition, nics, PowerEvent::MigrateIn, Memory::default())?;
        self.known().insert(id);
        let address = SocketAddr::from((listen, world.site().next_port()));
        let door = Door {
            world: world.downgrade(),
            definition: definition.clone(),
            run,
        };
        world.site().doors().insert(address, door);
        let host = world.downgrade();
        // Ends by itself, and holds the world up for nobody.
        tokio::spawn(async move {
            sleep(ARRIVAL_DEADLINE).await;
            if let Some(world) = SimWorld::upgrade(&host) {
                world.site().doors().remove(&address);
                world.fail_start(id, run, PowerEvent::MigrateFailed);
            }
        });
        Ok(address)
    }

    async fn send(&self, cx: &OpCx, id: VmId, to: SocketAddr) -> Result<Migrated> {
        cx.go_on("a migration")?;
        let begun = Instant::now();
        let leaving = GoesOn::begin(self, id, PowerEvent::MigrateOut, PowerEvent::MigrateFailed)?;
        sleep(self.world().latency().transfer).await;
        let fails = self.world().fails_now(id, |fault| match fault {
            Fault::NextMigrationFails(why) => Some(why),
            _ => None,
        });
        if let Some(why) = fails {
            return Err(refused("migrate", why));
        }
        let memory = {
            let vms = self.world().vms();
            let vm = vms
                .get(&id)
                .filter(|vm| vm.run == leaving.run && vm.seen.power == PowerState::MigratingOut);
            vm.map(|vm| (vm.memory.clone(), u64::from(vm.definition.memory_mib)))
        };
        let (memory, mib) = memory.ok_or_else(|| refused("migrate", "it ended on its way".into()))?;
        let door = self.world().site().doors().remove(&to);
        arrive(door, id, memory, leaving.was)?;
        leaving.leaves(PowerEvent::MigratedAway)?;
        Ok(Migrated::new(
            begun.elapsed(),
            self.world().latency().command,
            mib * MIB_BYTES,
        ))
    }

    async fn abandon(&self, id: VmId) -> Result<()> {
        self.is_open()?;
        let power = self.power(id);
        if power != PowerState::MigratingIn {
            return Err(not_for("give up waiting for", power, "migrating in"));
        }
        self.world().end(id, PowerEvent::MigrateFailed);
        Ok(())
    }
}

/// Lets a VM in at the other side.
fn arrive(door: Option<Door>, id: VmId, memory: Memory, was: PowerState) -> Result<()> {
    let nobody = || refused("migrate", "nobody waits for it there".into());
    let door = door.filter(|door| door.definition.id == id).ok_or_else(nobody)?;
    let world = SimWorld::upgrade(&door.world).ok_or_else(nobody)?;
    {
        let mut vms = world.vms();
        let vm = vms.get_mut(&id).filter(|vm| vm.run == door.run);
        vm.ok_or_else(nobody)?.memory = memory;
    }
    world.finish_start(id, door.run).map_err(|_| nobody())?;
    if let PowerState::Paused(why) = was {
        world.happens(id, PowerEvent::Pause(why));
    }
    Ok(())
}
