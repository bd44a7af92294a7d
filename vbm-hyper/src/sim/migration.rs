//! Migration of simulated VMs, with shared disks or with copies of them.

use super::{
    Fault, SimDriver,
    facets::{GoesOn, refused},
    guest::{Door, Memory},
    world::{SimWorld, accelerator},
};
use crate::{
    DiskFacts, Error, Landing, LandingDisks, MachineFacts, Migrated, Migration, MoveCheck, MoveOptions,
    NicBackend, OpCx, Result, Seen, VmDefinition, driver::not_for, limits::ARRIVAL_DEADLINE,
};
use async_trait::async_trait;
use std::net::{Ipv4Addr, SocketAddr};
use tokio::time::{Instant, sleep, sleep_until};
use vbm_core::{DriverKind, ErrorKind, PowerEvent, PowerState, VmId};

/// What a simulated memory weighs: a byte for each that the VM has.
const MIB_BYTES: u64 = 1024 * 1024;
/// What a simulated disk weighs, in bytes.
const DISK_BYTES: u64 = 64 * MIB_BYTES;
/// The machine type and the CPU of every simulated VM.
const MACHINE: &str = "sim-1";

/// What is known of a VM that is to arrive.
#[derive(Debug)]
pub(super) struct Arrival {
    /// When somebody said last that it still comes.
    renewed: Instant,
    /// All of it is here, and it waits to be let go.
    whole: bool,
}

impl Arrival {
    pub(super) fn new() -> Self {
        Self {
            renewed: Instant::now(),
            whole: false,
        }
    }
}

impl SimDriver {
    fn disks_of(&self, definition: &VmDefinition) -> Vec<DiskFacts> {
        let snapshots = self
            .world()
            .site()
            .disk(&definition.root_disk, |disk| disk.snapshots.len());
        vec![DiskFacts {
            name: "root".into(),
            virtual_bytes: DISK_BYTES,
            used_bytes: 0,
            base: None,
            snapshots,
        }]
    }

    /// What the disk of a VM that leaves holds, and the size of its memory in MiB.
    fn leaving(&self, id: VmId, run: u64) -> Result<(Memory, VmDefinition)> {
        let vms = self.world().vms();
        let vm = vms
            .get(&id)
            .filter(|vm| vm.run == run && vm.seen.power == PowerState::MigratingOut);
        vm.map(|vm| (vm.memory.clone(), vm.definition.clone()))
            .ok_or_else(|| refused("migrate", "it ended on its way".into()))
    }
}

#[async_trait]
impl Migration for SimDriver {
    async fn check_source(
        &self,
        cx: &OpCx,
        id: VmId,
        options: &MoveOptions,
    ) -> Result<(MachineFacts, Vec<MoveCheck>)> {
        options.check()?;
        cx.go_on("the check of a migration")?;
        self.is_open()?;
        let power = self.power(id);
        let definition = {
            let vms = self.world().vms();
            vms.get(&id).map(|vm| vm.definition.clone())
        };
        let definition = definition.ok_or(Error::NoSuchVm(id))?;
        let state = match power {
            PowerState::Running => Ok("it runs".to_owned()),
            PowerState::Paused(_) if !options.copies() => Ok("it is paused, and will be".to_owned()),
            other => Err(format!("it is {other}")),
        };
        let facts = MachineFacts {
            driver: DriverKind::Sim,
            version: env!("CARGO_PKG_VERSION").into(),
            machine: MACHINE.into(),
            cpu: MACHINE.into(),
            accelerator: accelerator().name,
            disks: self.disks_of(&definition),
            places: None,
        };
        let mut checks = vec![MoveCheck::of("state", state)];
        if options.copies() && facts.disks.iter().any(|disk| disk.snapshots > 0) {
            let found = "it has snapshots, which a copy would leave behind";
            checks.push(MoveCheck::failed("disk root", found));
        }
        Ok((facts, checks))
    }

    async fn check_destination(
        &self,
        cx: &OpCx,
        definition: &VmDefinition,
        machine: &MachineFacts,
        options: &MoveOptions,
    ) -> Result<Vec<MoveCheck>> {
        options.check()?;
        cx.go_on("the check of a migration")?;
        self.is_open()?;
        let place = match self.power(definition.id) {
            PowerState::Off => Ok("it is not here yet".to_owned()),
            other => Err(format!("it is {other} here: a VM is not moved to where it is")),
        };
        let kind = if machine.machine == MACHINE {
            Ok(format!("{MACHINE} runs here"))
        } else {
            Err(format!("{} does not run here", machine.machine))
        };
        Ok(vec![
            MoveCheck::of("place", place),
            MoveCheck::of("machine type", kind),
        ])
    }

    async fn receive(
        &self,
        cx: &OpCx,
        definition: &VmDefinition,
        nics: Vec<NicBackend>,
        listen: Ipv4Addr,
        options: &MoveOptions,
    ) -> Result<Landing> {
        cx.go_on("an arrival")?;
        options.check()?;
        self.is_open()?;
        definition.check(nics.len())?;
        let (world, id) = (self.world(), definition.id);
        self.power(id).after(PowerEvent::MigrateIn)?;
        let written = world
            .site()
            .disk(&definition.root_disk, |disk| !disk.word.is_empty());
        if options.copies() && written {
            return Err(Error::invalid(
                format!("a disk cannot be copied to {}", definition.root_disk.display()),
                "something was written to it",
                "give a new disk: a thin clone, or an empty one",
            ));
        }
        let run = world.begin(definition, nics, PowerEvent::MigrateIn, Memory::default())?;
        self.known().insert(id);
        let memory = SocketAddr::from((listen, world.site().next_port()));
        let door = Door {
            world: world.downgrade(),
            definition: definition.clone(),
            run,
            copies: options.copies(),
        };
        world.site().doors().insert(memory, door);
        let host = world.downgrade();
        // Ends by itself, and holds the world up for nobody.
        tokio::spawn(async move {
            loop {
                let Some(world) = SimWorld::upgrade(&host) else {
                    return;
                };
                let Some(until) = world.waited_for(id, run) else {
                    return;
                };
                if Instant::now() >= until {
                    world.site().doors().remove(&memory);
                    return world.fail_start(id, run, PowerEvent::MigrateFailed);
                }
                drop(world);
                sleep_until(until).await;
            }
        });
        Ok(Landing {
            memory,
            disks: options.copies().then(|| LandingDisks {
                at: memory,
                disks: self.disks_of(definition),
            }),
        })
    }

    async fn send(&self, cx: &OpCx, id: VmId, to: &Landing, options: &MoveOptions) -> Result<Migrated> {
        cx.go_on("a migration")?;
        options.check()?;
        if options.copies() != to.disks.is_some() {
            return Err(Error::invalid(
                "the VM cannot be sent like that",
                "source and destination do not agree whether its disks are copied",
                "give both sides the same options",
            ));
        }
        let power = self.power(id);
        if options.copies() && matches!(power, PowerState::Paused(_)) {
            return Err(not_for("copy the disks of", power, "running"));
        }
        let begun = Instant::now();
        let leaving = GoesOn::begin(self, id, PowerEvent::MigrateOut, PowerEvent::MigrateFailed)?;
        let transfer = self.world().latency().transfer;
        let phases = if options.copies() {
            ["disks", "memory"].as_slice()
        } else {
            &["memory"]
        };
        for phase in phases {
            cx.report(phase, 0, 1);
            cx.run("a migration", async {
                sleep(transfer).await;
                Ok(())
            })
            .await?;
            cx.report(phase, 1, 1);
            // It may have ended in between.
            self.leaving(id, leaving.run)?;
        }
        let fails = self.world().fails_now(id, |fault| match fault {
            Fault::NextMigrationFails(why) => Some(why),
            _ => None,
        });
        if let Some(why) = fails {
            return Err(refused("migrate", why));
        }
        let (memory, definition) = self.leaving(id, leaving.run)?;
        if options.copies() && self.disks_of(&definition)[0].snapshots > 0 {
            return Err(refused(
                "migrate",
                "its disk has snapshots, which a copy would leave behind".into(),
            ));
        }
        let door = self.world().site().doors().remove(&to.memory);
        arrive(self.world(), door, &definition, memory, leaving.was)?;
        let lost = self.world().fails_now(id, |fault| {
            (fault == Fault::NextConfirmationIsLost).then(|| "nobody said that it has come".to_owned())
        });
        if let Some(why) = lost.filter(|_| options.copies()) {
            // It goes on here: who came waits, and may not go on without our word. With shared disks their lock tells.
            return Err(refused("migrate", why));
        }
        leaving.leaves(PowerEvent::MigratedAway)?;
        let mib = u64::from(definition.memory_mib);
        let migrated = Migrated::new(begun.elapsed(), self.world().latency().command, mib * MIB_BYTES);
        Ok(if options.copies() {
            migrated.with_disks(DISK_BYTES)
        } else {
            migrated
        })
    }

    async fn finish(&self, cx: &OpCx, id: VmId) -> Result<Seen> {
        cx.go_on("the end of an arrival")?;
        self.is_open()?;
        sleep(self.world().latency().command).await;
        let power = self.power(id);
        if power == PowerState::Running {
            return self
                .world()
                .vms()
                .get(&id)
                .map(|vm| vm.seen.clone())
                .ok_or(Error::NoSuchVm(id));
        }
        let whole = {
            let vms = self.world().vms();
            let vm = vms.get(&id).filter(|vm| vm.seen.power == PowerState::MigratingIn);
            vm.map(|vm| (vm.run, vm.arrival.whole))
        };
        match whole {
            Some((run, true)) => self.world().finish_start(id, run),
            Some((_, false)) => Err(Error::Refused(vbm_core::Error::new(
                ErrorKind::Conflict,
                "cannot let the VM go on here",
                "its memory has not come whole",
                "wait until the source has sent it, or give it up",
            ))),
            None => Err(not_for("let go on here", power, "migrating in")),
        }
    }

    async fn renew(&self, id: VmId) -> Result<()> {
        self.is_open()?;
        let mut vms = self.world().vms();
        vms.get_mut(&id).ok_or(Error::NoSuchVm(id))?.arrival.renewed = Instant::now();
        Ok(())
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

impl SimWorld {
    /// Until when a VM is waited for that has not come; nobody waits for one that is whole or gone.
    fn waited_for(&self, id: VmId, run: u64) -> Option<Instant> {
        let vms = self.vms();
        let vm = vms
            .get(&id)
            .filter(|vm| vm.run == run && vm.seen.power == PowerState::MigratingIn)?;
        (!vm.arrival.whole).then(|| vm.arrival.renewed + ARRIVAL_DEADLINE)
    }
}

/// Lets a VM in at the other side.
fn arrive(
    from: &SimWorld,
    door: Option<Door>,
    definition: &VmDefinition,
    memory: Memory,
    was: PowerState,
) -> Result<()> {
    let id = definition.id;
    let nobody = || refused("migrate", "nobody waits for it there".into());
    let door = door.filter(|door| door.definition.id == id).ok_or_else(nobody)?;
    let world = SimWorld::upgrade(&door.world).ok_or_else(nobody)?;
    {
        let mut vms = world.vms();
        let vm = vms
            .get_mut(&id)
            .filter(|vm| vm.run == door.run && vm.seen.power == PowerState::MigratingIn);
        let vm = vm.ok_or_else(nobody)?;
        vm.memory = memory;
        vm.arrival.whole = door.copies;
    }
    if door.copies {
        let word = from.site().disk(&definition.root_disk, |disk| disk.word.clone());
        world
            .site()
            .disk(&door.definition.root_disk, |disk| disk.word = word);
        return Ok(());
    }
    world.finish_start(id, door.run).map_err(|_| nobody())?;
    if let PowerState::Paused(why) = was {
        world.happens(id, PowerEvent::Pause(why));
    }
    Ok(())
}
