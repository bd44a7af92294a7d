//! Looks at all VMs while any of them lives, and finds them again after a restart of the daemon.
//!
//! Once a second one list says which VMs run; those that surprise by it are asked. Now and then, and when a VM is unknown, one
//! list says the states of all: it finds what the shorter one cannot, and costs VirtualBox many times as much.

use super::{
    Shared, locked,
    machine::Machine,
    parse::{Listed, Told},
    record::Places,
};
use crate::{
    Adopted, Result,
    limits::{VBOX_WATCH_FAILURES_MAX, VBOX_WATCH_PERIOD, VBOX_WATCH_SOON, VBOX_WATCH_WHOLE_PERIOD},
    process,
};
use std::sync::{Arc, atomic::Ordering};
use tokio::time::{Instant, sleep_until};
use vbm_core::{CrashCause, PauseReason, PowerEvent, PowerState, VmId};

/// What is remembered of a VM before anything is adopted.
pub(super) fn remembered(places: &Places, id: VmId) -> Result<Machine> {
    let dir = places.vm(id);
    let unreadable =
        |error: &crate::Error| tracing::warn!(%id, %error, "what is written down of a VM cannot be read");
    let run = dir.run().inspect_err(unreadable);
    let ended = dir.ended().inspect_err(unreadable).ok().flatten();
    let applied = dir.applied().inspect_err(unreadable).unwrap_or_default();
    let (power, definition) = match run {
        Ok(None) => (
            ended.map_or(PowerState::Off, |ended| ended.power),
            applied.definition,
        ),
        Ok(Some(run)) => (PowerState::Unknown, Some(run.definition)),
        Err(_) => (PowerState::Unknown, applied.definition),
    };
    let rests = power != PowerState::Unknown;
    Ok(Machine::new(id, dir, power, rests, definition))
}

/// The power state that a word of VirtualBox stands for, for people.
pub(super) const fn power_of(told: Told) -> PowerState {
    match told {
        Told::Off => PowerState::Off,
        Told::Saved | Told::AbortedSaved => PowerState::Saved,
        Told::Aborted => PowerState::Crashed(CrashCause::Hypervisor),
        Told::Running => PowerState::Running,
        Told::Paused => PowerState::Paused(PauseReason::Requested),
        Told::Stuck => PowerState::Paused(PauseReason::Hypervisor),
        Told::Moving | Told::Strange => PowerState::Unknown,
    }
}

/// The watcher: one task for all VMs. Ends with the driver.
pub(super) async fn run(shared: Arc<Shared>) {
    let (mut next, mut whole, mut failures) = (Instant::now() + VBOX_WATCH_PERIOD, Instant::now(), 0);
    loop {
        let soon = (*locked(&shared.soon)).is_some_and(|until| Instant::now() < until);
        let due = if soon {
            next.min(Instant::now() + VBOX_WATCH_SOON)
        } else {
            next
        };
        let wait = async {
            if watched(&shared) {
                sleep_until(due).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        // Cancel safe: nothing is taken by either; a wake only means that `due` is found anew.
        tokio::select! {
            () = shared.scope.end.cancelled() => return,
            () = shared.wake.notified() => continue,
            () = wait => {}
        }
        let begun = Instant::now();
        let all = begun >= whole || has_unknown(&shared);
        // Cancel safe: what was found is thrown away.
        let looked = tokio::select! {
            () = shared.scope.end.cancelled() => return,
            looked = look(&shared, all, begun) => looked,
        };
        match looked {
            Ok(()) => failures = 0,
            Err(error) => {
                failures += 1;
                tracing::warn!(%error, failures, "the VMs of VirtualBox cannot be looked at");
                if failures == VBOX_WATCH_FAILURES_MAX {
                    silence(&shared, begun);
                }
            }
        }
        let now = Instant::now();
        next = now + VBOX_WATCH_PERIOD;
        if all {
            whole = now + VBOX_WATCH_WHOLE_PERIOD;
        }
    }
}

/// Looks at all VMs by one list; or which of them run, and at those that should not or should.
async fn look(shared: &Arc<Shared>, all: bool, begun: Instant) -> Result<()> {
    if all {
        apply(shared, &shared.list().await?, begun);
        return Ok(());
    }
    let running = shared.running().await?;
    let mut found = Vec::new();
    for machine in shared.machines() {
        if machine.believes(begun, false) && surprises(machine.power(), running.contains(&machine.id)) {
            let asked = Instant::now();
            found.push((Arc::clone(&machine), shared.ask(machine.id).await?, asked));
        }
    }
    let mut crashed = 0;
    for (machine, told, asked) in found {
        if machine.believes(asked, false) {
            crashed += usize::from(take(shared, &machine, told));
        }
    }
    tell_crashes(crashed);
    Ok(())
}

/// Whether a VM has to be asked, given what is shown of it and whether it runs: pure.
const fn surprises(shown: PowerState, runs: bool) -> bool {
    match shown {
        PowerState::Running | PowerState::Stopping | PowerState::Paused(_) => !runs,
        PowerState::Off | PowerState::Saved | PowerState::Crashed(_) => runs,
        // On its way, or not seen for a while.
        _ => true,
    }
}

/// Whether a VM waits to be adopted.
fn has_unknown(shared: &Shared) -> bool {
    shared.adopted.load(Ordering::Acquire)
        && shared
            .machines()
            .iter()
            .any(|vm| vm.power() == PowerState::Unknown)
}

/// Whether there is anything to look at.
fn watched(shared: &Shared) -> bool {
    let adopting = shared.adopted.load(Ordering::Acquire);
    let machines = shared.machines();
    machines.iter().any(|vm| match vm.power() {
        PowerState::Unknown => adopting,
        power => power.is_live(),
    })
}

fn silence(shared: &Shared, begun: Instant) {
    for machine in shared.machines() {
        if machine.believes(begun, false) && machine.power() != PowerState::Unresponsive {
            machine.happened(shared, PowerEvent::Silence);
        }
    }
}

/// Believes a list. It must have begun at `begun`.
fn apply(shared: &Arc<Shared>, list: &[Listed], begun: Instant) {
    let mut crashed = 0;
    let adopting = shared.adopted.load(Ordering::Acquire);
    for machine in shared.machines() {
        let Some(told) = told_of(shared, list, machine.id) else {
            continue;
        };
        if !machine.believes(begun, adopting) {
            continue;
        }
        if machine.power() == PowerState::Unknown {
            settle(shared, &machine, told);
        } else {
            crashed += usize::from(take(shared, &machine, told));
        }
    }
    tell_crashes(crashed);
}

/// Believes what is told of a VM; `true` when it has crashed.
fn take(shared: &Arc<Shared>, machine: &Arc<Machine>, told: Told) -> bool {
    let events = machine.told(shared, told);
    hold(shared, machine);
    events.iter().any(|event| matches!(event, PowerEvent::Crash(_)))
}

fn tell_crashes(crashed: usize) {
    if crashed > 1 {
        tracing::error!(
            crashed,
            "VMs ended at the same time: VBoxSVC, which all of them need, has probably crashed"
        );
    }
}

/// What a list tells of a VM of ours. `None`: nothing that can be believed.
fn told_of(shared: &Shared, list: &[Listed], id: VmId) -> Option<Told> {
    match list.iter().find(|listed| listed.id == id) {
        Some(listed) if shared.is_ours(listed) => listed.told,
        // Its settings are broken, or it is a stranger with our id.
        Some(_) => None,
        // Only what does not run can be taken out of the registry.
        None => process::find(id).is_none().then_some(Told::Off),
    }
}

/// A VM that somebody else has started has a process and a serial line too.
fn hold(shared: &Arc<Shared>, machine: &Arc<Machine>) {
    let power = machine.power();
    if !power.is_live() || machine.state().live.is_some() {
        return;
    }
    let Some(definition) = machine.state().definition.clone() else {
        return;
    };
    let now = shared.clock.now();
    if let Err(error) = machine.note(shared, &definition, Some(now)) {
        tracing::warn!(id = %machine.id, %error, "a run cannot be written down");
    }
    machine.enter(shared, definition);
    machine.hold_process(shared, now);
}

/// Finds out what became of the VMs that an earlier daemon left.
pub(super) async fn adopt(shared: &Arc<Shared>) -> Result<Vec<Adopted>> {
    let _one_at_a_time = shared.adopting.lock().await;
    // How they are run is part of what is seen of them.
    if let Err(error) = shared.found().await {
        tracing::debug!(%error, "VirtualBox cannot be probed");
    }
    let machines = shared.machines();
    let unknown: Vec<_> = machines
        .iter()
        .filter(|vm| vm.power() == PowerState::Unknown)
        .cloned()
        .collect();
    if !machines.is_empty() {
        let begun = Instant::now();
        match shared.list().await {
            Ok(list) => apply(shared, &list, begun),
            Err(error) => {
                tracing::error!(%error, "VirtualBox cannot be asked for its VMs; they stay unknown until it can")
            }
        }
    }
    shared.wake.notify_one();
    let found = |vm: &Arc<Machine>| {
        let seen = vm.seen(shared);
        let told = match seen.power {
            PowerState::Unknown => false,
            PowerState::Saved => true,
            power => power.is_live() || unknown.iter().any(|other| other.id == vm.id),
        };
        let definition = vm.state().definition.clone();
        definition
            .filter(|_| told)
            .map(|definition| Adopted::new(definition, seen))
    };
    Ok(machines.iter().filter_map(found).collect())
}

/// What became of a VM that was left running.
fn settle(shared: &Arc<Shared>, machine: &Arc<Machine>, told: Told) {
    let run = match machine.dir.run() {
        Ok(run) => run,
        Err(error) => {
            tracing::error!(id = %machine.id, %error, "a VM cannot be understood; it is left alone and stays unknown");
            return;
        }
    };
    let lives = matches!(told, Told::Running | Told::Paused | Told::Stuck);
    machine.state().adopted = true;
    match run {
        Some(run) if lives && run.started_at.is_some() => {
            machine.enter(shared, run.definition);
            machine.hold_process(shared, run.started_at.unwrap_or_default());
            machine.told(shared, told);
        }
        // A start was begun and not finished: nobody was told that it runs.
        Some(run) if run.started_at.is_none() => {
            tracing::warn!(id = %machine.id, "a half-started VM is ended");
            let (shared, machine) = (Arc::clone(shared), Arc::clone(machine));
            let tasks = shared.scope.tasks.clone();
            tasks.spawn(async move {
                if let Err(error) = super::start::kill(&shared, &machine).await {
                    tracing::error!(id = %machine.id, %error, "a half-started VM cannot be ended");
                }
            });
        }
        Some(run) if run.boot_id != shared.boot_id && matches!(told, Told::Off | Told::Aborted) => {
            machine.lost_with_host(shared);
        }
        Some(_) => drop(machine.told(shared, told)),
        None => {
            machine.told(shared, told);
            hold(shared, machine);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_vm_that_surprises_is_asked() {
        let paused = PowerState::Paused(PauseReason::Requested);
        for (shown, runs, asked) in [
            (PowerState::Running, true, false),
            (paused, true, false),
            (PowerState::Running, false, true),
            (PowerState::Stopping, false, true),
            (PowerState::Off, false, false),
            (PowerState::Saved, false, false),
            (PowerState::Off, true, true),
            (PowerState::Unresponsive, true, true),
            (PowerState::Starting, false, true),
        ] {
            assert_eq!(surprises(shown, runs), asked, "{shown} {runs}");
        }
    }
}
