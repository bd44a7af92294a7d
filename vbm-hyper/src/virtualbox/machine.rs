//! One VM, as the driver holds it: its power state, and who may change it.
//!
//! The state changes in two ways: by a command of ours, which holds the VM's gate, and by a look at all VMs. A look that
//! began before the last command was over is older than what that command found out, and is not believed.

use super::{
    Shared,
    life::Life,
    parse::Told,
    record::{Run, VmDir},
};
use crate::{DriverEvent, Error, Result, Seen, VmDefinition, process, serial::Hub};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vbm_core::{CrashCause, PowerEvent, PowerState, Timestamp, VmId};

/// A VM of this driver.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) id: VmId,
    pub(super) dir: VmDir,
    /// Held by whoever runs a command on it: VirtualBox gives a VM to one at a time.
    pub(super) gate: Arc<tokio::sync::Mutex<()>>,
    state: Mutex<State>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) life: Life,
    pub(super) live: Option<Live>,
    pub(super) definition: Option<VmDefinition>,
    /// Until it was adopted nothing is believed of it but that it may be there.
    pub(super) adopted: bool,
    /// Commands of ours that are under way.
    commands: u32,
    /// Looks that began before this are too old.
    changed_at: Instant,
}

/// A run of it.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) started_at: Option<Timestamp>,
    pub(super) pid: Option<u32>,
    pub(super) hub: Hub,
    /// Ends what belongs to the run.
    pub(super) end: CancellationToken,
}

/// A command under way: looks at all VMs leave this one alone until it is over.
#[derive(Debug)]
pub(super) struct Turn {
    machine: Arc<Machine>,
    _gate: tokio::sync::OwnedMutexGuard<()>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.machine.state();
        state.commands -= 1;
        state.changed_at = Instant::now();
    }
}

impl Machine {
    pub(super) fn new(
        id: VmId,
        dir: VmDir,
        power: PowerState,
        adopted: bool,
        definition: Option<VmDefinition>,
    ) -> Self {
        Self {
            id,
            dir,
            gate: Arc::default(),
            state: Mutex::new(State {
                life: Life::new(power),
                live: None,
                definition,
                adopted,
                commands: 0,
                changed_at: Instant::now(),
            }),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the gate.
    pub(super) async fn turn(self: &Arc<Self>) -> Turn {
        let gate = Arc::clone(&self.gate).lock_owned().await;
        self.state().commands += 1;
        Turn {
            machine: Arc::clone(self),
            _gate: gate,
        }
    }

    pub(super) fn power(&self) -> PowerState {
        self.state().life.power
    }

    pub(super) fn seen(&self, shared: &Shared) -> Seen {
        self.state().seen(shared)
    }

    /// Whether a look that began then may be believed. `adopting`: also of what was not adopted yet.
    pub(super) fn believes(&self, begun: Instant, adopting: bool) -> bool {
        let state = self.state();
        (state.adopted || adopting) && state.commands == 0 && state.changed_at <= begun
    }

    /// Lets something happen: shown and told in one go, so that who hears of it sees it.
    pub(super) fn change(
        &self,
        shared: &Shared,
        happen: impl FnOnce(&mut Life) -> Vec<PowerEvent>,
    ) -> Vec<PowerEvent> {
        let mut state = self.state();
        let mut power = state.life.power;
        let events = happen(&mut state.life);
        if events.is_empty() {
            return events;
        }
        let end = state.life.power;
        let over = if end.is_live() || end == PowerState::Unknown {
            None
        } else {
            state.live.take()
        };
        if !end.is_live()
            && end != PowerState::Unknown
            && let Err(error) = self.dir.end_run(end, shared.clock.now())
        {
            tracing::warn!(id = %self.id, %error, "how a VM ended cannot be written down");
        }
        if let Some(live) = over {
            live.end.cancel();
        }
        for event in &events {
            let Ok(after) = power.after(*event) else { continue };
            power = after;
            let mut seen = state.seen(shared);
            seen.power = power;
            shared.tell(DriverEvent::new(self.id, *event, seen));
        }
        drop(state);
        shared.wake.notify_one();
        events
    }

    pub(super) fn told(&self, shared: &Shared, told: Told) -> Vec<PowerEvent> {
        self.change(shared, |life| life.told(told))
    }

    pub(super) fn happened(&self, shared: &Shared, event: PowerEvent) {
        self.change(shared, |life| life.happened(event));
    }

    /// Begins a run, before its process is there: the serial line is listened to from the first byte.
    pub(super) fn enter(&self, shared: &Shared, definition: VmDefinition) {
        let end = shared.scope.end.child_token();
        let hub = Hub::start(self.dir.line(), end.clone(), &shared.scope.tasks);
        let mut state = self.state();
        state.definition = Some(definition);
        state.live = Some(Live {
            started_at: None,
            pid: None,
            hub,
            end,
        });
    }

    /// Finds the process of a run and watches it; its end is looked at right away.
    pub(super) fn hold_process(&self, shared: &Arc<Shared>, started_at: Timestamp) {
        let found = process::find(self.id);
        let mut state = self.state();
        let Some(live) = &mut state.live else { return };
        live.started_at = Some(started_at);
        let Some(found) = found else {
            tracing::warn!(id = %self.id, "VirtualBox says that a VM runs, but its process is not found");
            return;
        };
        live.pid = Some(found.pid());
        let (end, shared) = (live.end.clone(), Arc::clone(shared));
        let tasks = shared.scope.tasks.clone();
        tasks.spawn(async move {
            // Cancel safe: nothing is taken.
            tokio::select! {
                () = end.cancelled() => {}
                _ = found.exited() => shared.look_soon(),
            }
        });
    }

    /// What is written down of a run that begins.
    pub(super) fn note(
        &self,
        shared: &Shared,
        definition: &VmDefinition,
        started_at: Option<Timestamp>,
    ) -> Result<()> {
        self.dir.set_run(&Run {
            definition: definition.clone(),
            boot_id: shared.boot_id.clone(),
            started_at,
        })
    }

    /// A VM that was running when the host went down.
    pub(super) fn lost_with_host(&self, shared: &Shared) {
        self.happened(shared, PowerEvent::Crash(CrashCause::Host));
    }

    pub(super) fn hub(&self, verb: &str) -> Result<Hub> {
        let state = self.state();
        match &state.live {
            Some(live) => Ok(live.hub.clone()),
            None => Err(at_rest(verb, state.life.power)),
        }
    }
}

impl State {
    fn seen(&self, shared: &Shared) -> Seen {
        let mut seen = Seen::resting(self.life.power);
        if let Some(live) = self.live.as_ref().filter(|_| self.life.power.is_live()) {
            seen.pid = live.pid;
            seen.started_at = live.started_at;
            seen.accelerator = shared.accelerator();
        }
        seen
    }
}

/// Why a console cannot be used.
pub(super) fn at_rest(verb: &str, power: PowerState) -> Error {
    Error::Refused(vbm_core::Error::new(
        vbm_core::ErrorKind::Conflict,
        format!("cannot {verb} a VM that is {power}"),
        "that is possible while it has a process",
        "start it with `vbm start`",
    ))
}
