//! A start, from the definition to the first instruction of the guest.
//!
//! ```text
//!   check -> probe -> reserve -> bind sockets -> exec -S -> monitor, uuid -> manifest -> cont -> Running
//!                     |<------------- the guard undoes all of it, unless it is disarmed ----------->|
//! ```
//!
//! We bind the sockets and QEMU inherits them, so we are connected before QEMU runs and never poll for it.

use super::{
    Entry, Shared,
    argv::{self, Inherited, Plan},
    keeper::{self, Begin, Machine},
    lifecycle::RunState,
    probe::Found,
    process,
    qmp::Qmp,
    record::{MachineFacts, Manifest, VmDir},
};
use crate::{Error, NicBackend, Result, Seen, VmDefinition, limits::START_DEADLINE};
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

/// Starts a VM and waits until its processors run.
pub(super) async fn start(
    shared: &Arc<Shared>,
    definition: &VmDefinition,
    nics: Vec<NicBackend>,
) -> Result<Seen> {
    definition.check(nics.len())?;
    check_files(definition)?;
    let taps = taps(nics)?;
    let found = shared.found().await?;
    match attempt(shared, definition, &taps, &found, true).await {
        Err(Error::StartFailed { why }) if argv::blames_display(&why) => {
            tracing::warn!(id = %definition.id, why, "the VM is started without a display");
            attempt(shared, definition, &taps, &found, false).await
        }
        result => result,
    }
}

fn check_files(definition: &VmDefinition) -> Result<()> {
    let mut files: Vec<&Path> = vec![&definition.root_disk];
    if let crate::BootSource::Kernel { kernel, initrd, .. } = &definition.boot {
        files.extend([kernel.as_path(), initrd]);
    }
    match files.iter().find(|file| !file.is_file()) {
        Some(file) => Err(Error::invalid(
            format!("the VM cannot use {}", file.display()),
            "there is no such file",
            "give the path of a file that is there",
        )),
        None => Ok(()),
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

/// Holds the place of a VM that has no process yet.
struct Reservation<'a> {
    shared: &'a Shared,
    id: VmId,
    before: Option<Entry>,
}

impl<'a> Reservation<'a> {
    /// Refuses what the power table does not allow.
    fn take(shared: &'a Shared, id: VmId) -> Result<Self> {
        let mut vms = shared.lock();
        let power = vms.get(&id).map_or(PowerState::Off, |entry| entry.seen().power);
        power.after(PowerEvent::Start)?;
        let before = vms.insert(id, Entry::Reserved);
        drop(vms);
        Ok(Self { shared, id, before })
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut vms = self.shared.lock();
        // Still reserved: no process came of it.
        if matches!(vms.get(&self.id), Some(Entry::Reserved)) {
            match self.before.take() {
                Some(before) => vms.insert(self.id, before),
                None => vms.remove(&self.id),
            };
        }
    }
}

/// Ends the process unless the start went through.
struct Guard {
    machine: Arc<Machine>,
    armed: bool,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.armed {
            self.machine.give_up();
        }
    }
}

async fn attempt(
    shared: &Arc<Shared>,
    definition: &VmDefinition,
    taps: &[OwnedFd],
    found: &Found,
    display: bool,
) -> Result<Seen> {
    // From here to the guard nothing waits, so nothing can be cancelled in between.
    let (machine, manifest) = launch(shared, definition, taps, found, display)?;
    let mut guard = Guard {
        machine: Arc::clone(&machine),
        armed: true,
    };
    let ready = timeout(START_DEADLINE, ready(shared, &machine, manifest)).await;
    let failed = match ready {
        Ok(Ok(())) => {
            let view = machine
                .wait_for(|view| view.seen.power != PowerState::Starting)
                .await;
            if !view.over {
                guard.armed = false;
                return Ok(view.seen);
            }
            Error::StartFailed {
                why: "it ended at once".into(),
            }
        }
        Ok(Err(error)) => error,
        Err(_) => Error::Timeout {
            command: "the start".into(),
            after: START_DEADLINE,
        },
    };
    drop(guard);
    machine.wait_for(|_| false).await;
    let said = VmDir::new(&shared.root, definition.id).log_tail();
    Err(match failed {
        error @ (Error::Io { .. } | Error::DiskFull { .. } | Error::Timeout { .. }) => error,
        error if said.is_empty() => Error::StartFailed {
            why: vbm_core::Error::from(error).inline(),
        },
        _ => Error::StartFailed { why: said },
    })
}

/// From nothing to a halted process with a keeper.
fn launch(
    shared: &Arc<Shared>,
    definition: &VmDefinition,
    taps: &[OwnedFd],
    found: &Found,
    display: bool,
) -> Result<(Arc<Machine>, Manifest)> {
    let id = definition.id;
    let reservation = Reservation::take(shared, id)?;
    let dir = VmDir::new(&shared.root, id);
    dir.create()?;
    dir.clear_run()?;
    let facts = machine_facts(&dir, found)?;
    let sockets = Sockets::bind(&dir)?;
    let log_path = dir.qemu_log();
    let log = File::options()
        .create(true)
        .append(true)
        .open(&log_path)
        .map_err(Error::io("open", &log_path))?;
    dir.write("starting", &id)?;
    let mut inherit: Vec<OwnedFd> = Vec::with_capacity(3 + taps.len());
    let Sockets {
        monitor,
        spare_monitor,
        serial,
    } = sockets;
    inherit.extend([monitor, spare_monitor, serial].map(OwnedFd::from));
    for tap in taps {
        inherit.push(tap.try_clone().map_err(Error::io("copy", "the tap"))?);
    }
    let numbers: Vec<i32> = inherit.iter().map(AsRawFd::as_raw_fd).collect();
    let args = argv::argv(&Plan {
        definition,
        dir: &dir,
        machine: &facts.machine,
        cpu: facts
            .cpus
            .get(&found.accelerator.name)
            .map_or(&found.cpu, |cpu| cpu),
        accelerator: &found.accelerator.name,
        display,
        inherited: Inherited {
            monitor: numbers[0],
            spare_monitor: numbers[1],
            serial: numbers[2],
            taps: numbers[3..].to_vec(),
        },
    });
    let process = process::spawn(&found.program, &args, &inherit, log, process::Bond::Outlives)
        .inspect_err(|_| clean(&dir))?;
    // Our copies: with them the sockets would stay open after QEMU, and the taps too.
    drop(inherit);
    let started_at = shared.clock.now();
    let manifest = Manifest {
        started_at,
        accelerator: found.accelerator.clone(),
        qemu_version: found.version.clone(),
        argv: args,
        ..Manifest::new(definition.clone(), &process, shared.boot_id.clone())
    };
    let machine = keeper::enter(
        shared,
        Begin {
            definition: definition.clone(),
            process,
            accelerator: found.accelerator.clone(),
            started_at,
            has_display: display,
            power: PowerState::Starting,
        },
    );
    drop(reservation);
    shared.tell(crate::DriverEvent::new(id, PowerEvent::Start, machine.seen()));
    Ok((machine, manifest))
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
        })
    }
}

/// The hardware that the guest had before, or that of today for a new one.
fn machine_facts(dir: &VmDir, found: &Found) -> Result<MachineFacts> {
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
    if !found.cpus.contains(cpu) {
        cpu.clone_from(&found.cpu);
    }
    if before.as_ref() != Some(&facts) {
        dir.write("machine.json", &facts)?;
    }
    Ok(facts)
}

/// From a halted process to running processors.
async fn ready(shared: &Arc<Shared>, machine: &Machine, manifest: Manifest) -> Result<()> {
    let dir = VmDir::new(&shared.root, machine.id);
    let socket = dir.monitor();
    // Cancel safe: what is dropped here is given up by the guard.
    let connected = tokio::select! {
        connected = Qmp::connect(&socket, START_DEADLINE, &shared.scope) => connected?,
        _ = machine.wait_for(|_| false) => return Err(Error::StartFailed { why: "it ended before it answered".into() }),
    };
    let qmp = connected.qmp.clone();
    if keeper::verify(&qmp, machine.id).await? != RunState::Prelaunch {
        return Err(Error::StartFailed {
            why: "it runs although it was told to wait".into(),
        });
    }
    dir.write("manifest", &manifest)?;
    machine.hand_monitor(connected).await?;
    qmp.execute("cont", Value::Null).await?;
    Ok(())
}
