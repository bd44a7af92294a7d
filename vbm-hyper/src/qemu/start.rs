//! A start, from the definition to the first instruction of the guest: of a VM that boots, of one whose memory is loaded,
//! and, up to the manifest, of one that arrives.
//!
//! ```text
//!   check -> probe -> reserve -> bind sockets -> exec -S -> monitor, uuid -> manifest -> cont -> Running
//!                     |<------------- the guard undoes all of it, unless it is disarmed ----------->|
//! ```
//!
//! With memory, `cont` comes after it was loaded.
//!
//! We bind the sockets and QEMU inherits them, so we are connected before QEMU runs and never poll for it.

use super::{
    Entry, Shared,
    argv::{self, Inherited, Plan},
    errand::Errand,
    keeper::{self, Begin, Machine},
    lifecycle::RunState,
    memory::{Kept, MemoryDir, SavedRecord},
    probe::Found,
    process,
    qmp::Qmp,
    record::{MachineFacts, Manifest, VmDir},
    slots::Slots,
    transfer::{self, Channel, Way},
};
use crate::{
    Error, NicBackend, Result, Seen, VmDefinition,
    limits::{MEMORY_DEADLINE, START_DEADLINE},
};
use serde_json::Value;
use std::{
    fs::{self, File},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixListener,
    },
    path::Path,
    sync::Arc,
};
use tokio::time::timeout;
use vbm_core::{DriverKind, PowerEvent, PowerState, VmId};

/// What every start needs, whatever the guest begins with.
pub(super) struct Prepared {
    taps: Vec<OwnedFd>,
    found: Arc<Found>,
}

impl Prepared {
    /// Checks the definition and its files, and finds out what this host can do.
    pub(super) async fn of(
        shared: &Shared,
        definition: &VmDefinition,
        nics: Vec<NicBackend>,
    ) -> Result<Self> {
        definition.check(nics.len())?;
        check_files(definition)?;
        shared.firmware.check(definition.hardware.firmware)?;
        let taps = taps(nics)?;
        let found = shared.found().await?;
        check_cpu(definition, &found)?;
        Ok(Self { taps, found })
    }

    /// Whether a memory can be loaded here.
    pub(super) fn fits(&self, kept: Option<&Kept>) -> Result<()> {
        let why = match kept {
            None => "its memory is gone".to_owned(),
            Some(kept) if kept.accelerator != self.found.accelerator.name => format!(
                "its memory was written by a guest under {}, and this host runs guests by {}",
                kept.accelerator, self.found.accelerator.name
            ),
            Some(kept) if !kept.memory.is_file() => format!("{} is gone", kept.memory.display()),
            Some(_) => return Ok(()),
        };
        Err(Error::StartFailed { why })
    }
}

/// Starts a VM and waits until its processors run.
pub(super) async fn start(
    shared: &Arc<Shared>,
    definition: &VmDefinition,
    nics: Vec<NicBackend>,
) -> Result<Seen> {
    let prepared = Prepared::of(shared, definition, nics).await?;
    let mut order = Order {
        definition,
        prepared: &prepared,
        display: true,
        entry: argv::Entry::Halted,
        kept: None,
        keeps_memory: false,
        slots: None,
    };
    match attempt(shared, &order, None).await {
        Err(Error::StartFailed { why }) if argv::blames_display(&why) => {
            tracing::warn!(id = %definition.id, why, "the VM is started without a display");
            order.display = false;
            attempt(shared, &order, None).await
        }
        result => result,
    }
}

/// Starts a VM with a memory that was kept. With a record, the memory is that of a saved VM, and is used up.
pub(super) async fn resume(
    shared: &Arc<Shared>,
    definition: &VmDefinition,
    prepared: &Prepared,
    kept: &Kept,
    record: Option<&SavedRecord>,
) -> Result<Seen> {
    let order = Order {
        definition,
        prepared,
        display: kept.display,
        entry: argv::Entry::Memory,
        kept: Some(kept),
        keeps_memory: record.is_some(),
        slots: None,
    };
    attempt(shared, &order, record).await
}

/// All that decides a new process.
pub(super) struct Order<'a> {
    pub(super) definition: &'a VmDefinition,
    pub(super) prepared: &'a Prepared,
    pub(super) display: bool,
    pub(super) entry: argv::Entry,
    /// The memory that is loaded, with its hardware.
    pub(super) kept: Option<&'a Kept>,
    /// The memory is that of a saved VM, and stays when it cannot be loaded.
    pub(super) keeps_memory: bool,
    /// Where its devices are at the host that it comes from.
    pub(super) slots: Option<Slots>,
}

impl argv::Entry {
    const fn event(self) -> PowerEvent {
        match self {
            Self::Halted => PowerEvent::Start,
            Self::Memory => PowerEvent::Restore,
            Self::Arrival => PowerEvent::MigrateIn,
        }
    }

    const fn power(self) -> PowerState {
        match self {
            Self::Halted => PowerState::Starting,
            Self::Memory => PowerState::Restoring,
            Self::Arrival => PowerState::MigratingIn,
        }
    }

    /// What the monitor says before anything is done.
    fn run_state(self) -> RunState {
        match self {
            Self::Halted => RunState::Prelaunch,
            Self::Memory | Self::Arrival => RunState::InMigrate,
        }
    }
}

pub(super) fn check_files(definition: &VmDefinition) -> Result<()> {
    let mut files: Vec<&Path> = vec![&definition.root_disk];
    if let crate::BootSource::Kernel { kernel, initrd, .. } = &definition.boot {
        files.extend([kernel.as_path(), initrd]);
    }
    files.extend(definition.disks.iter().map(|disk| disk.path.as_path()));
    files.extend(definition.hardware.cdrom.as_deref());
    match files.iter().find(|file| !file.is_file()) {
        Some(file) => Err(Error::invalid(
            format!("the VM cannot use {}", file.display()),
            "there is no such file",
            "give the path of a file that is there",
        )),
        None => Ok(()),
    }
}

/// Whether this host has the CPU model that is asked for, and has it whole.
fn check_cpu(definition: &VmDefinition, found: &Found) -> Result<()> {
    match &definition.hardware.cpu {
        Some(model) if !found.cpus.contains(model) => Err(Error::invalid(
            format!("the VM cannot have the CPU model {model}"),
            format!(
                "{} under {} on this host does not know it, or lacks a part of it",
                found.version, found.accelerator.name
            ),
            format!("choose another one, for example {}, or none", found.cpu),
        )),
        _ => Ok(()),
    }
}

fn taps(nics: Vec<NicBackend>) -> Result<Vec<OwnedFd>> {
    nics.into_iter()
        .map(|nic| match nic {
            NicBackend::Tap(fd) => Ok(fd),
            NicBackend::HostInterface(name) => Err(Error::Unsupported {
                driver: DriverKind::Qemu,
                what: format!("plug a NIC into the interface {name}"),
                why: "QEMU takes open tap devices only".into(),
            }),
        })
        .collect()
}

/// Holds the place of a VM that has no process yet, or whose disk is worked on.
pub(super) struct Reservation {
    shared: Arc<Shared>,
    id: VmId,
    before: Option<Entry>,
}

impl Reservation {
    /// Refuses what the power table does not allow.
    fn take(shared: &Arc<Shared>, id: VmId, event: PowerEvent) -> Result<Self> {
        Self::hold(shared, id, |power| {
            power.after(event).map(drop).map_err(Error::Refused)
        })
    }

    /// Refuses what `allowed` does not allow.
    pub(super) fn hold(
        shared: &Arc<Shared>,
        id: VmId,
        allowed: impl FnOnce(PowerState) -> Result<()>,
    ) -> Result<Self> {
        let mut vms = shared.lock();
        let power = match vms.get(&id) {
            Some(Entry::Reserved) => return Err(Error::Busy { vm: id, job: "start" }),
            entry => entry.map_or(PowerState::Off, |entry| entry.seen().power),
        };
        allowed(power)?;
        let before = vms.insert(id, Entry::Reserved);
        drop(vms);
        Ok(Self {
            shared: Arc::clone(shared),
            id,
            before,
        })
    }

    /// The VM is off from now on, whatever it was before.
    pub(super) fn settle_off(mut self) -> Result<()> {
        let off = Seen::resting(PowerState::Off);
        VmDir::new(&self.shared.root, self.id).clear_run()?;
        let before = self.before.replace(Entry::Resting(off.clone()));
        if before.is_some_and(|before| before.seen().power != PowerState::Off) {
            let event = crate::DriverEvent::new(self.id, PowerEvent::ForceOff, off);
            self.shared.tell(event);
        }
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut vms = self.shared.lock();
        // Still reserved: no process came of it.
        if matches!(vms.get(&self.id), Some(Entry::Reserved)) {
            match self.before.take() {
                Some(before) => vms.insert(self.id, before),
                None => vms.remove(&self.id),
            };
        }
        drop(vms);
        self.shared.settled.notify_waiters();
    }
}

/// Ends the process unless the start went through.
pub(super) struct Guard {
    machine: Arc<Machine>,
    armed: bool,
}

impl Guard {
    pub(super) fn of(machine: &Arc<Machine>) -> Self {
        Self {
            machine: Arc::clone(machine),
            armed: true,
        }
    }

    pub(super) fn disarm(mut self) {
        self.armed = false;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.armed {
            self.machine.give_up();
        }
    }
}

async fn attempt(shared: &Arc<Shared>, order: &Order<'_>, record: Option<&SavedRecord>) -> Result<Seen> {
    // From here to the guard nothing waits, so nothing can be cancelled in between.
    let (machine, manifest) = launch(shared, order)?;
    let guard = Guard::of(&machine);
    let begin = async {
        let qmp = connect(shared, &machine, manifest, order.entry).await?;
        if let Some(kept) = order.kept {
            load(shared, &machine, &qmp, kept, record).await?;
        }
        let let_go = qmp.execute("cont", Value::Null).await.map(drop);
        match (let_go, record, order.kept) {
            // Nothing of it has run: the memory still belongs to the disk.
            (Err(error), Some(record), Some(kept)) => record.write(kept).and(Err(error)),
            (let_go, ..) => let_go,
        }
    };
    let deadline = match order.kept {
        Some(_) => START_DEADLINE + MEMORY_DEADLINE,
        None => START_DEADLINE,
    };
    let failed = match in_time(timeout(deadline, begin).await) {
        Ok(()) => {
            let begun = order.entry.power();
            let view = machine.wait_for(|view| view.seen.power != begun).await;
            if !view.over {
                guard.disarm();
                went_through(shared, order, record);
                return Ok(view.seen);
            }
            Error::StartFailed {
                why: "it ended at once".into(),
            }
        }
        Err(error) => error,
    };
    drop(guard);
    Err(explain(shared, &machine, failed).await)
}

/// Loads a memory, and sees to it that it is never loaded again.
async fn load(
    shared: &Shared,
    machine: &Machine,
    qmp: &Qmp,
    kept: &Kept,
    record: Option<&SavedRecord>,
) -> Result<()> {
    Errand::Restore.note(&VmDir::new(&shared.root, machine.id))?;
    transfer::prepare(qmp, Way::Halted).await?;
    transfer::receive(qmp, &Channel::File(kept.memory.clone())).await?;
    transfer::complete(machine, MEMORY_DEADLINE, None).await?;
    record.map_or(Ok(()), SavedRecord::use_up)
}

fn went_through(shared: &Shared, order: &Order<'_>, record: Option<&SavedRecord>) {
    if order.kept.is_some() {
        Errand::forget(&VmDir::new(&shared.root, order.definition.id));
    }
    if record.is_some() {
        let memory = MemoryDir::beside(&order.definition.root_disk);
        if let Err(error) = memory.remove(None) {
            tracing::warn!(id = %order.definition.id, %error, "a memory that was used up stays behind");
        }
        memory.tidy();
    }
}

pub(super) fn in_time<T>(result: Result<Result<T>, tokio::time::error::Elapsed>) -> Result<T> {
    result.unwrap_or_else(|_| {
        Err(Error::Timeout {
            command: "the start".into(),
            after: START_DEADLINE,
        })
    })
}

/// Waits until a process whose start failed has ended, and gives its own words for it.
pub(super) async fn explain(shared: &Shared, machine: &Machine, failed: Error) -> Error {
    machine.wait_for(|_| false).await;
    let said = VmDir::new(&shared.root, machine.id).log_tail();
    match failed {
        error @ (Error::Io { .. } | Error::DiskFull { .. } | Error::Timeout { .. }) => error,
        error if said.is_empty() => Error::StartFailed {
            why: vbm_core::Error::from(error).inline(),
        },
        _ => Error::StartFailed { why: said },
    }
}

/// From nothing to a halted process with a keeper.
pub(super) fn launch(shared: &Arc<Shared>, order: &Order<'_>) -> Result<(Arc<Machine>, Manifest)> {
    let (definition, found) = (order.definition, &order.prepared.found);
    let id = definition.id;
    let reservation = Reservation::take(shared, id, order.entry.event())?;
    let dir = VmDir::new(&shared.root, id);
    dir.create()?;
    dir.clear_run()?;
    // Before anything else is there: who finds it sweeps the rest.
    dir.write("starting", &id)?;
    let swept = Sweep(Some(&dir));
    let keep = shared.keep(id);
    let slots = match order.kept {
        Some(kept) => Some(kept.slots.carried_over(&kept.definition, definition)?),
        None => order.slots.clone(),
    };
    let facts = machine_facts(&keep, definition, found, slots)?;
    let firmware = shared.firmware.of(definition.hardware.firmware, &keep)?;
    let sockets = Sockets::bind(&dir)?;
    let log_path = dir.qemu_log();
    let log = File::options()
        .create(true)
        .append(true)
        .open(&log_path)
        .map_err(Error::io("open", &log_path))?;
    let taps = &order.prepared.taps;
    let mut inherit: Vec<OwnedFd> = Vec::with_capacity(4 + taps.len());
    let Sockets {
        monitor,
        spare_monitor,
        serial,
        agent,
    } = sockets;
    inherit.extend([monitor, spare_monitor, serial, agent].map(OwnedFd::from));
    for tap in taps {
        inherit.push(tap.try_clone().map_err(Error::io("copy", "the tap"))?);
    }
    let numbers: Vec<i32> = inherit.iter().map(AsRawFd::as_raw_fd).collect();
    let (machine, cpu) = match order.kept {
        Some(kept) => (&kept.machine, &kept.cpu),
        None => {
            let cpu = facts.cpus.get(&found.accelerator.name);
            (&facts.machine, cpu.unwrap_or(&found.cpu))
        }
    };
    let args = argv::argv(&Plan {
        definition,
        dir: &dir,
        machine,
        cpu,
        accelerator: &found.accelerator.name,
        display: order.display,
        entry: order.entry,
        slots: &facts.slots,
        firmware: firmware.as_ref(),
        inherited: Inherited {
            monitor: numbers[0],
            spare_monitor: numbers[1],
            serial: numbers[2],
            agent: numbers[3],
            taps: numbers[4..].to_vec(),
        },
    });
    let process = process::spawn(&found.program, &args, &inherit, log, process::Bond::Outlives)?;
    swept.keep();
    // Our copies: with them the sockets would stay open after QEMU, and the taps too.
    drop(inherit);
    let started_at = shared.clock.now();
    let manifest = Manifest {
        started_at,
        accelerator: found.accelerator.clone(),
        qemu_version: found.version.clone(),
        slots: facts.slots.clone(),
        argv: args,
        ..Manifest::new(definition.clone(), &process, shared.boot_id.clone())
    };
    let machine = keeper::enter(
        shared,
        Begin {
            definition: definition.clone(),
            slots: facts.slots,
            process,
            accelerator: found.accelerator.clone(),
            qemu_version: found.version.clone(),
            started_at,
            has_display: order.display,
            power: order.entry.power(),
            keeps_memory: order.keeps_memory,
        },
    );
    drop(reservation);
    let event = crate::DriverEvent::new(id, order.entry.event(), machine.seen());
    shared.tell(event);
    Ok((machine, manifest))
}

/// Sweeps a run directory unless a process came of it.
struct Sweep<'a>(Option<&'a VmDir>);

impl Sweep<'_> {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Sweep<'_> {
    fn drop(&mut self) {
        if let Some(dir) = self.0 {
            clean(dir);
        }
    }
}

fn clean(dir: &VmDir) {
    if let Err(error) = dir.end_run(None) {
        tracing::warn!(%error, "a failed start left something behind");
    }
}

struct Sockets {
    monitor: UnixListener,
    spare_monitor: UnixListener,
    serial: UnixListener,
    agent: UnixListener,
}

impl Sockets {
    fn bind(dir: &VmDir) -> Result<Self> {
        let bind = |path: std::path::PathBuf| {
            drop(fs::remove_file(&path));
            UnixListener::bind(&path).map_err(Error::io("bind", path))
        };
        Ok(Self {
            monitor: bind(dir.monitor())?,
            spare_monitor: bind(dir.spare_monitor())?,
            serial: bind(dir.serial())?,
            agent: bind(dir.agent())?,
        })
    }
}

/// The hardware that the guest had before, or that of today for a new one.
/// With a memory, devices are where it has them.
fn machine_facts(
    dir: &VmDir,
    definition: &VmDefinition,
    found: &Found,
    slots: Option<Slots>,
) -> Result<MachineFacts> {
    let before: Option<MachineFacts> = dir.read("machine.json")?;
    let mut facts = before.clone().unwrap_or_default();
    if !found.machines.contains(&facts.machine) {
        if !facts.machine.is_empty() {
            tracing::warn!(
                machine = facts.machine,
                "this QEMU has that machine type no more; the newest is used"
            );
        }
        facts.machine = found.machines.first().map_or("q35", |newest| newest).to_owned();
    }
    let cpu = facts.cpus.entry(found.accelerator.name.clone()).or_default();
    if let Some(chosen) = &definition.hardware.cpu {
        cpu.clone_from(chosen);
    } else if !found.cpus.contains(cpu) {
        cpu.clone_from(&found.cpu);
    }
    facts.slots = slots.unwrap_or_else(|| std::mem::take(&mut facts.slots).settled(definition));
    if before.as_ref() != Some(&facts) {
        dir.create()?;
        dir.write("machine.json", &facts)?;
    }
    Ok(facts)
}

/// From a new process to one that answers, is the right one, and is written down.
pub(super) async fn connect(
    shared: &Arc<Shared>,
    machine: &Machine,
    manifest: Manifest,
    entry: argv::Entry,
) -> Result<Qmp> {
    let dir = VmDir::new(&shared.root, machine.id);
    let socket = dir.monitor();
    // Cancel safe: what is dropped here is given up by the guard.
    let connected = tokio::select! {
        connected = Qmp::connect(&socket, START_DEADLINE, &shared.scope) => connected?,
        _ = machine.wait_for(|_| false) => return Err(Error::StartFailed { why: "it ended before it answered".into() }),
    };
    let qmp = connected.qmp.clone();
    if keeper::verify(&qmp, machine.id).await? != entry.run_state() {
        return Err(Error::StartFailed {
            why: "it runs although it was told to wait".into(),
        });
    }
    dir.write("manifest", &manifest)?;
    machine.hand_monitor(connected).await?;
    Ok(qmp)
}
