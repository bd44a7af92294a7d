//! After a restart of the daemon: find again what runs.
//!
//! A process is ours if the manifest's boot is this boot, the pid's start time is the manifest's, and its command line names the
//! VM; the pidfd is taken before these are read, so that nobody can slip in between. The monitor must name the VM's uuid.

use super::{
    Entry, Shared,
    keeper::{self, Begin},
    memory::SavedRecord,
    process::{self, Proc},
    record::{Ended, Manifest, VmDir},
};
use crate::{
    Adopted, DriverEvent, Error, Result, Seen, files,
    limits::{ADOPT_DEADLINE, ADOPT_MAX_PARALLEL, KILL_DEADLINE},
};
use std::{collections::HashMap, path::Path, sync::Arc};
use tokio::{sync::Semaphore, task::JoinSet, time::timeout};
use vbm_core::{CrashCause, PowerEvent, PowerState, VmId};

/// What run directory and state directory know, before anything is adopted.
pub(super) fn known(root: &Path, state: &Path) -> Result<HashMap<VmId, Entry>> {
    let mut vms = ran(root)?;
    for id in ids(state)? {
        let saved = SavedRecord::of(VmDir::new(state, id)).exists();
        let entry = vms
            .entry(id)
            .or_insert(Entry::Resting(Seen::resting(PowerState::Off)));
        // Something may still run; the record tells what it is afterwards.
        if saved && entry.seen().power != PowerState::Unknown {
            *entry = Entry::Resting(Seen::resting(PowerState::Saved));
        }
    }
    Ok(vms)
}

fn ids(dir: &Path) -> Result<Vec<VmId>> {
    let mut ids = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let name = entry.map_err(Error::io("list", dir))?.file_name();
        ids.extend(name.to_str().and_then(|name| name.parse::<VmId>().ok()));
    }
    Ok(ids)
}

fn ran(root: &Path) -> Result<HashMap<VmId, Entry>> {
    let mut vms = HashMap::new();
    for id in ids(root)? {
        let dir = VmDir::new(root, id);
        let power = if dir.file("manifest").exists() || dir.file("starting").exists() {
            PowerState::Unknown
        } else {
            match dir.read::<Ended>("ended") {
                Ok(ended) => ended.map_or(PowerState::Off, |ended| ended.power),
                Err(error) => {
                    tracing::warn!(%id, %error, "how a VM ended cannot be read");
                    PowerState::Off
                }
            }
        };
        vms.insert(id, Entry::Resting(Seen::resting(power)));
    }
    Ok(vms)
}

/// Takes in what has just come into the directories; it is to be adopted.
pub(super) fn meet_new(shared: &Shared, id: VmId) -> Result<()> {
    let mut found = known(&shared.root, &shared.state)?;
    let entry = found.remove(&id).ok_or(Error::NoSuchVm(id))?;
    shared.lock().insert(id, entry);
    Ok(())
}

/// What became of a VM that a manifest, or its absence, leaves open.
enum Fate {
    /// It runs.
    Lives(Manifest, Proc),
    /// Its memory is on disk, and nothing of it runs.
    Saved,
    /// It ended while nobody looked.
    Ended(Option<Manifest>, PowerState),
}

pub(super) async fn adopt(shared: &Arc<Shared>) -> Result<Vec<Adopted>> {
    let _one_at_a_time = shared.adopting.lock().await;
    let unknown: Vec<VmId> = shared
        .lock()
        .iter()
        .filter(|(_, e)| matches!(e, Entry::Resting(s) if s.power == PowerState::Unknown))
        .map(|(id, _)| *id)
        .collect();
    let mut adopted = live(shared);
    let permits = Arc::new(Semaphore::new(ADOPT_MAX_PARALLEL));
    let mut joins = JoinSet::new();
    for id in unknown {
        let (shared, permits) = (Arc::clone(shared), Arc::clone(&permits));
        joins.spawn(async move {
            let _permit = permits.acquire_owned().await;
            adopt_one(&shared, id).await
        });
    }
    while let Some(joined) = joins.join_next().await {
        if let Ok(Some(found)) = joined {
            adopted.push(found);
        }
    }
    adopted.extend(saved(shared));
    Ok(adopted)
}

/// What is saved, with what it was saved with.
fn saved(shared: &Shared) -> Vec<Adopted> {
    let saved: Vec<VmId> = shared
        .lock()
        .iter()
        .filter(|(_, entry)| matches!(entry, Entry::Resting(seen) if seen.power == PowerState::Saved))
        .map(|(id, _)| *id)
        .collect();
    let read = |id: VmId| match shared.saved(id).read() {
        Ok(kept) => Some(Adopted::new(kept?.definition, Seen::resting(PowerState::Saved))),
        Err(error) => {
            tracing::error!(%id, %error, "a saved VM cannot be understood; it is left alone");
            None
        }
    };
    saved.into_iter().filter_map(read).collect()
}

/// What was adopted or started before.
fn live(shared: &Shared) -> Vec<Adopted> {
    let vms = shared.lock();
    vms.values()
        .filter_map(|entry| match entry {
            Entry::Live(machine) => Some(Adopted::new((*machine.definition()).clone(), machine.seen())),
            Entry::Resting(_) | Entry::Reserved => None,
        })
        .collect()
}

/// Adopts one. Nothing to tell of what was never told to run.
async fn adopt_one(shared: &Arc<Shared>, id: VmId) -> Option<Adopted> {
    match fate(shared, id) {
        Ok(Fate::Lives(manifest, process)) => Some(watch(shared, manifest, process).await),
        Ok(Fate::Saved) => {
            settle(shared, id, PowerState::Saved);
            None
        }
        Ok(Fate::Ended(manifest, power)) => {
            let seen = settle(shared, id, power);
            manifest.map(|manifest| Adopted::new(manifest.definition, seen))
        }
        Err(error) => {
            tracing::error!(%id, %error, "a VM cannot be understood; it is left alone and stays unknown");
            None
        }
    }
}

fn fate(shared: &Shared, id: VmId) -> Result<Fate> {
    let dir = VmDir::new(&shared.root, id);
    let strays = || {
        for stray in process::find_strays(id, dir.path()) {
            tracing::warn!(%id, pid = stray.pid(), "a half-started QEMU is ended");
            stray.kill();
        }
    };
    if shared.saved(id).exists() {
        // Its memory is whole on disk, and has not been used up: what runs of it is on its way out or in, and halted.
        strays();
        return Ok(Fate::Saved);
    }
    let Some(manifest) = dir.manifest()? else {
        // A start was begun and not finished: nobody was told that it runs.
        strays();
        return Ok(Fate::Ended(None, PowerState::Off));
    };
    if manifest.boot_id != shared.boot_id {
        return Ok(Fate::Ended(Some(manifest), PowerState::Crashed(CrashCause::Host)));
    }
    match Proc::open(manifest.pid) {
        Ok(process) if process.start_ticks() == manifest.start_ticks && process.runs(id) => {
            // It was to be ended, and was not.
            files::remove_if_there(&dir.file("ended"))?;
            Ok(Fate::Lives(manifest, process))
        }
        _ if was_killed(&dir) => Ok(Fate::Ended(Some(manifest), PowerState::Off)),
        // Gone, or a stranger with its pid.
        _ => Ok(Fate::Ended(
            Some(manifest),
            PowerState::Crashed(CrashCause::Hypervisor),
        )),
    }
}

async fn watch(shared: &Arc<Shared>, manifest: Manifest, process: Proc) -> Adopted {
    let id = manifest.definition.id;
    let begin = Begin {
        has_display: manifest.argv.iter().any(|arg| arg == "-vnc"),
        qemu_version: manifest.qemu_version,
        keeps_memory: false,
        definition: manifest.definition,
        slots: manifest.slots,
        process,
        accelerator: manifest.accelerator,
        started_at: manifest.started_at,
        power: PowerState::Unknown,
    };
    let thaw = super::snapshots::thaw_left(Arc::clone(shared), id, &begin.definition.root_disk);
    let machine = keeper::enter(shared, begin);
    shared.scope.tasks.spawn(thaw);
    let known = machine.wait_for(|view| view.seen.power != PowerState::Unknown);
    if timeout(ADOPT_DEADLINE, known).await.is_err() {
        tracing::warn!(%id, "a VM runs, but its monitor does not answer; it goes on being tried");
    }
    Adopted::new((*machine.definition()).clone(), machine.seen())
}

/// Writes down how it ended and clears away what it left.
fn settle(shared: &Shared, id: VmId, power: PowerState) -> Seen {
    let ended = matches!(power, PowerState::Crashed(_)).then(|| Ended {
        power,
        at: shared.clock.now(),
    });
    if let Err(error) = VmDir::new(&shared.root, id).end_run(ended.as_ref()) {
        tracing::warn!(%id, %error, "what a VM left cannot be cleared away");
    }
    let seen = Seen::resting(power);
    shared.lock().insert(id, Entry::Resting(seen.clone()));
    let event = match power {
        PowerState::Crashed(cause) => PowerEvent::Crash(cause),
        // That it was saved was told when it was.
        PowerState::Saved => return seen,
        _ => PowerEvent::ShutDown,
    };
    shared.tell(DriverEvent::new(id, event, seen.clone()));
    seen
}

/// Writes down that the end that comes now was asked for.
pub(super) fn note_kill(shared: &Shared, id: VmId) -> Result<()> {
    let ended = Ended {
        power: PowerState::Off,
        at: shared.clock.now(),
    };
    VmDir::new(&shared.root, id).write("ended", &ended)
}

fn was_killed(dir: &VmDir) -> bool {
    matches!(dir.read::<Ended>("ended"), Ok(Some(ended)) if ended.power == PowerState::Off)
}

/// Ends a VM that was not adopted yet.
pub(super) async fn kill_unknown(shared: &Arc<Shared>, id: VmId) -> Result<()> {
    if let Fate::Lives(_, process) = fate(shared, id)? {
        process.kill();
        timeout(KILL_DEADLINE, process.exited())
            .await
            .map_err(|_| Error::Timeout {
                command: "the end of the process".into(),
                after: KILL_DEADLINE,
            })?;
    }
    shared.saved(id).discard()?;
    settle(shared, id, PowerState::Off);
    Ok(())
}
