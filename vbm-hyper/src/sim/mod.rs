//! The simulated twin: keeps the promises of a driver without running anything.
//!
//! ```text
//!   SimDriver --owns for its time--> SimWorld (outlives drivers, as processes outlive the daemon)
//!                                      VMs, their power, their serial text --.
//!   a test --- crash, silence, guest shuts down, next start fails, ... ---^    +-- site: disks, what listens for a VM
//!                                    SimWorld beside it: another host --------'
//! ```
//!
//! A guest remembers a word, keeps a word on its disk, and counts: enough to see whether a snapshot, a save or a migration
//! keeps what it must. Its words are those of [`SimWorld::words`].
//!
//! Time is tokio's, so a test that pauses it decides how long everything takes. What the guest shows says that it is simulated.

mod consoles;
mod facets;
mod guest;
mod hotplug;
mod migration;
mod picture;
mod snapshots;
mod world;

pub use world::{Fault, Latency, SimWorld};

use crate::{
    Adopted, Consoles, Driver, DriverEvent, Error, Facet, Hotplug, Migration, NicBackend, OpCx, Result,
    SavedState, Seen, Snapshots, VmDefinition,
};
use async_trait::async_trait;
use std::{
    collections::HashSet,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::{sync::broadcast, time::sleep};
use vbm_core::{Capability, DriverKind, PauseReason, PowerEvent, PowerState, VmId};
use world::SimVm;

/// Runs simulated VMs.
#[derive(Debug)]
pub struct SimDriver {
    world: SimWorld,
    /// What this driver started or adopted; of others it knows only that they may be there.
    known: Mutex<HashSet<VmId>>,
    closed: AtomicBool,
}

impl SimDriver {
    /// A driver with a world of its own.
    ///
    /// # Panics
    /// Never: a new world has no owner.
    pub fn new() -> Self {
        Self::take(SimWorld::default())
    }

    /// A driver for a world that another one may have left. VMs of it are `Unknown` until they are adopted.
    ///
    /// # Errors
    /// [`Error::InUse`] while another driver has it.
    pub fn open(world: SimWorld) -> Result<Self> {
        if world.own() {
            Ok(Self::take_owned(world))
        } else {
            Err(Error::InUse {
                dir: "the simulated world".into(),
            })
        }
    }

    fn take(world: SimWorld) -> Self {
        world.own();
        Self::take_owned(world)
    }

    fn take_owned(world: SimWorld) -> Self {
        Self {
            world,
            known: Mutex::default(),
            closed: AtomicBool::new(false),
        }
    }

    /// The world it runs VMs in, to make things happen there.
    pub const fn world(&self) -> &SimWorld {
        &self.world
    }

    fn known(&self) -> MutexGuard<'_, HashSet<VmId>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            Err(Error::ShutDown("the simulated driver"))
        } else {
            Ok(())
        }
    }

    /// What this driver may know of a VM.
    fn sees(&self, id: VmId, vm: &SimVm) -> Seen {
        let hidden = vm.seen.pid.is_some() && !self.known().contains(&id);
        if hidden {
            Seen::resting(PowerState::Unknown)
        } else {
            vm.seen.clone()
        }
    }

    /// Lets the world do something to a VM if the power table allows it.
    fn act<T>(&self, id: VmId, event: PowerEvent, act: impl FnOnce(&SimWorld, &mut SimVm) -> T) -> Result<T> {
        self.is_open()?;
        let mut vms = self.world.vms();
        let vm = vms.get_mut(&id).ok_or(Error::NoSuchVm(id))?;
        self.sees(id, vm).power.after(event)?;
        Ok(act(&self.world, vm))
    }

    /// As a hypervisor that does not answer: the caller waits for nothing.
    async fn wait_or_time_out(&self, id: VmId, command: &str) -> Result<()> {
        let silent = self.world.vms().get(&id).is_some_and(|vm| vm.silent);
        let latency = self.world.latency();
        if silent {
            sleep(latency.silence).await;
            self.world.happens(id, PowerEvent::Silence);
            return Err(Error::Timeout {
                command: command.to_owned(),
                after: latency.silence,
            });
        }
        sleep(latency.command).await;
        Ok(())
    }
}

impl Default for SimDriver {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for SimDriver {
    fn drop(&mut self) {
        self.let_go();
    }
}

impl SimDriver {
    fn let_go(&self) {
        if !self.closed.swap(true, Ordering::AcqRel) {
            self.world.disown();
        }
    }
}

/// Ends a start that is not waited for any more.
struct Guard<'a> {
    world: &'a SimWorld,
    id: VmId,
    run: u64,
    /// What that is called.
    event: PowerEvent,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.world.fail_start(self.id, self.run, self.event);
    }
}

#[async_trait]
impl Driver for SimDriver {
    fn kind(&self) -> DriverKind {
        DriverKind::Sim
    }

    async fn probe(&self) -> Capability {
        Capability {
            driver: DriverKind::Sim,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            accelerator: Some(world::accelerator()),
            problem: None,
        }
    }

    async fn start(&self, cx: &OpCx, definition: &VmDefinition, nics: Vec<NicBackend>) -> Result<Seen> {
        cx.go_on("a start")?;
        self.is_open()?;
        definition.check(nics.len())?;
        let id = definition.id;
        // A VM that another driver left is not ours to judge before it is adopted.
        if let Some(vm) = self.world.vms().get(&id) {
            self.sees(id, vm).power.after(PowerEvent::Start)?;
        }
        let memory = guest::Memory::default();
        let run = self.world.begin(definition, nics, PowerEvent::Start, memory)?;
        self.known().insert(id);
        let _guard = Guard {
            world: &self.world,
            id,
            run,
            event: PowerEvent::StartFailed,
        };
        let starts = async {
            sleep(self.world.latency().start).await;
            Ok(())
        };
        cx.run("a start", starts).await?;
        let fails = self.world.fails_now(id, |fault| match fault {
            Fault::NextStartFails(why) => Some(why),
            _ => None,
        });
        match fails {
            Some(why) => Err(Error::StartFailed { why }),
            None => self.world.finish_start(id, run),
        }
    }

    async fn stop(&self, id: VmId) -> Result<()> {
        self.act(id, PowerEvent::Stop, |world, vm| {
            world.apply(id, vm, PowerEvent::Stop)
        })?;
        self.wait_or_time_out(id, "stop").await?;
        self.world.press_button(id);
        Ok(())
    }

    async fn kill(&self, id: VmId) -> Result<()> {
        self.is_open()?;
        if !self.world.vms().contains_key(&id) {
            return Err(Error::NoSuchVm(id));
        }
        sleep(self.world.latency().kill).await;
        self.world.end(id, PowerEvent::ForceOff);
        Ok(())
    }

    async fn reset(&self, id: VmId) -> Result<()> {
        self.act(id, PowerEvent::Reset, |_, _| ())?;
        self.wait_or_time_out(id, "reset").await?;
        self.act(id, PowerEvent::Reset, |world, vm| {
            world.apply(id, vm, PowerEvent::Reset)
        })
    }

    async fn pause(&self, id: VmId) -> Result<()> {
        let event = PowerEvent::Pause(PauseReason::Requested);
        self.act(id, event, |_, _| ())?;
        self.wait_or_time_out(id, "pause").await?;
        self.act(id, event, |world, vm| world.apply(id, vm, event))
    }

    async fn resume(&self, id: VmId) -> Result<()> {
        self.act(id, PowerEvent::Resume, |_, _| ())?;
        self.wait_or_time_out(id, "resume").await?;
        self.act(id, PowerEvent::Resume, |world, vm| {
            world.apply(id, vm, PowerEvent::Resume)
        })
    }

    async fn inspect(&self, id: VmId) -> Result<Seen> {
        self.is_open()?;
        let vms = self.world.vms();
        Ok(self.sees(id, vms.get(&id).ok_or(Error::NoSuchVm(id))?))
    }

    async fn inventory(&self) -> Result<Vec<(VmId, Seen)>> {
        self.is_open()?;
        let vms = self.world.vms();
        Ok(vms.iter().map(|(id, vm)| (*id, self.sees(*id, vm))).collect())
    }

    async fn adopt(&self) -> Result<Vec<Adopted>> {
        self.is_open()?;
        sleep(self.world.latency().command).await;
        let mut events = Vec::new();
        let mut adopted = Vec::new();
        {
            let mut vms = self.world.vms();
            for (id, vm) in vms.iter_mut() {
                let new = self.known().insert(*id);
                let saved = vm.seen.power == PowerState::Saved;
                if vm.seen.pid.is_some() || saved || (new && vm.unseen_end) {
                    vm.unseen_end = false;
                    adopted.push(Adopted::new(vm.definition.clone(), vm.seen.clone()));
                }
                if new && vm.seen.power == PowerState::Running {
                    events.push(DriverEvent::new(*id, PowerEvent::Started, vm.seen.clone()));
                }
            }
        }
        for event in events {
            self.world.tell(event);
        }
        Ok(adopted)
    }

    fn events(&self) -> broadcast::Receiver<DriverEvent> {
        self.world.subscribe()
    }

    fn consoles(&self) -> Option<&dyn Consoles> {
        Some(self)
    }

    fn snapshots(&self) -> Option<&dyn Snapshots> {
        Some(self)
    }

    fn saved_state(&self) -> Option<&dyn SavedState> {
        Some(self)
    }

    fn migration(&self) -> Option<&dyn Migration> {
        Some(self)
    }

    fn hotplug(&self) -> Option<&dyn Hotplug> {
        Some(self)
    }

    fn missing(&self, _: Facet) -> Option<String> {
        None
    }

    async fn undefine(&self, id: VmId) -> Result<()> {
        self.is_open()?;
        let mut vms = self.world.vms();
        let Some(vm) = vms.get(&id) else {
            return Ok(());
        };
        let power = self.sees(id, vm).power;
        if !matches!(power, PowerState::Off | PowerState::Crashed(_)) {
            return Err(crate::driver::not_off(power));
        }
        vms.remove(&id);
        self.known().remove(&id);
        Ok(())
    }

    async fn shutdown(&self) {
        self.let_go();
    }
}
