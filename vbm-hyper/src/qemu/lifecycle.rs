//! What the reports about a QEMU process mean for the power state: pure.
//!
//! Everything goes through the core's table ([`PowerState::after`]); what it does not allow did not happen.

use super::qmp::QmpEvent;
use vbm_core::{CrashCause, PauseReason, PowerEvent, PowerState};

/// A report about the VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// We are going to press its power button.
    StopAsked,
    /// We are going to halt it.
    PauseAsked,
    /// We are going to kill it.
    KillAsked,
    /// Its start is given up; it is killed.
    StartGivenUp,
    /// Its monitor reported something.
    Said(QmpEvent),
    /// Its monitor does not answer.
    Silent,
    /// Its monitor told its run state (QMP `query-status`).
    Answered(RunState),
    /// We are going to write its memory to disk.
    SaveAsked,
    /// That failed, and it goes on; `true`: as a paused one.
    SaveFailed(bool),
    /// Its memory is on disk; its process is ended for it.
    SaveWritten,
    /// We are going to send it away.
    SendAsked,
    /// That failed, and it goes on; `true`: as a paused one.
    SendFailed(bool),
    /// It runs elsewhere; its process is ended for it.
    SentAway,
    /// It was found waiting for its memory from another host.
    FoundArriving,
    /// What arrives stays halted until it is let go: halted, it has not arrived.
    WaitsForWord,
    /// Its process has ended.
    Exited(Exit),
}

/// QEMU's `RunState`, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RunState {
    Running,
    Paused,
    DiskError,
    Halted,
    /// Started with `-S` and never let go.
    Prelaunch,
    /// Waits for its memory.
    InMigrate,
    GuestPanicked,
}

impl RunState {
    pub(super) fn parse(word: &str) -> Self {
        match word {
            "running" => Self::Running,
            "paused" => Self::Paused,
            "io-error" => Self::DiskError,
            "prelaunch" => Self::Prelaunch,
            "inmigrate" => Self::InMigrate,
            "guest-panicked" => Self::GuestPanicked,
            _ => Self::Halted,
        }
    }
}

pub(super) use crate::process::Exit;

/// One run of a VM.
#[derive(Debug)]
pub(super) struct Lifecycle {
    pub(super) power: PowerState,
    pause_asked: bool,
    disk_error: bool,
    panicked: bool,
    killed: bool,
    given_up: bool,
    shutdown: Option<String>,
    /// Why its process is going to be ended, if it is.
    leaves: Option<PowerEvent>,
    /// It waits for its memory from another host, and was found like that.
    arriving: bool,
    /// It stays halted when it has come, until it is let go.
    waits: bool,
    /// What a failed restore is called: the memory is kept, or was that of a snapshot.
    restore_failed: PowerEvent,
}

impl Lifecycle {
    /// `Starting` for a new process, `Unknown` for a found one.
    pub(super) const fn new(power: PowerState) -> Self {
        Self {
            power,
            pause_asked: false,
            disk_error: false,
            panicked: false,
            killed: false,
            given_up: false,
            shutdown: None,
            leaves: None,
            arriving: false,
            waits: false,
            restore_failed: PowerEvent::StartFailed,
        }
    }

    /// The same for one whose memory stays on disk when it cannot be read back.
    pub(super) const fn keeping_memory(mut self) -> Self {
        self.restore_failed = PowerEvent::RestoreFailed;
        self
    }

    /// Why QEMU says that it ends, if it does.
    pub(super) fn shutdown_reason(&self) -> Option<&str> {
        self.shutdown.as_deref()
    }

    /// Takes a report; returns what happened by it, in order.
    pub(super) fn take(&mut self, input: Input) -> Vec<PowerEvent> {
        match input {
            Input::StopAsked => self.apply(PowerEvent::Stop),
            Input::PauseAsked => {
                self.pause_asked = true;
                Vec::new()
            }
            Input::KillAsked => {
                self.killed = true;
                Vec::new()
            }
            Input::StartGivenUp => {
                self.given_up = true;
                Vec::new()
            }
            Input::Silent => self.apply(PowerEvent::Silence),
            Input::SaveAsked => self.apply(PowerEvent::Save),
            Input::SendAsked => self.apply(PowerEvent::MigrateOut),
            Input::SaveFailed(paused) => self.goes_on(PowerEvent::SaveFailed, paused),
            Input::SendFailed(paused) => self.goes_on(PowerEvent::MigrateFailed, paused),
            Input::SaveWritten => {
                self.leaves = Some(PowerEvent::SaveDone);
                Vec::new()
            }
            Input::SentAway => {
                self.leaves = Some(PowerEvent::MigratedAway);
                Vec::new()
            }
            Input::FoundArriving => {
                self.arriving = true;
                Vec::new()
            }
            Input::WaitsForWord => {
                self.waits = true;
                Vec::new()
            }
            Input::Said(event) => self.said(event),
            Input::Answered(state) => self.answered(state),
            Input::Exited(exit) => self.exited(exit),
        }
    }

    /// After something that failed and changed nothing.
    fn goes_on(&mut self, event: PowerEvent, paused: bool) -> Vec<PowerEvent> {
        let mut events = self.apply(event);
        if paused && !events.is_empty() {
            events.extend(self.apply(PowerEvent::Pause(PauseReason::Requested)));
        }
        events
    }

    fn said(&mut self, event: QmpEvent) -> Vec<PowerEvent> {
        match event {
            QmpEvent::Shutdown { reason, .. } => {
                self.shutdown = Some(reason);
                Vec::new()
            }
            QmpEvent::GuestPanicked => {
                self.panicked = true;
                Vec::new()
            }
            // QEMU tells it once a second at most, so it may come after the halt that it is the reason of.
            QmpEvent::DiskErrorStops => match self.power {
                PowerState::Paused(PauseReason::DiskError) => Vec::new(),
                PowerState::Paused(PauseReason::Hypervisor) => {
                    let mut events = self.apply(PowerEvent::Resume);
                    events.extend(self.apply(PowerEvent::Pause(PauseReason::DiskError)));
                    events
                }
                _ => {
                    self.disk_error = true;
                    Vec::new()
                }
            },
            // QEMU resets once while it starts; that is no event of the guest.
            QmpEvent::Reset => self.apply(PowerEvent::Reset),
            // QEMU also halts the machine on its way out.
            QmpEvent::Stop if self.shutdown.is_some() => Vec::new(),
            QmpEvent::Stop => {
                let reason = match (self.disk_error, self.pause_asked) {
                    (true, _) => PauseReason::DiskError,
                    (_, true) => PauseReason::Requested,
                    _ => PauseReason::Hypervisor,
                };
                (self.pause_asked, self.disk_error) = (false, false);
                self.apply(PowerEvent::Pause(reason))
            }
            QmpEvent::Resume if self.power.plain() == vbm_core::power::S::Paused => {
                self.apply(PowerEvent::Resume)
            }
            QmpEvent::Resume => {
                self.waits = false;
                self.apply(PowerEvent::Started)
            }
            // The keeper asks what came of it.
            QmpEvent::MigrationCompleted
            | QmpEvent::DeviceDeleted { .. }
            | QmpEvent::UnplugRefused { .. } => Vec::new(),
            QmpEvent::Looked(word) => self.looked(RunState::parse(&word)),
        }
    }

    /// A look in the place of events that were lost.
    fn looked(&mut self, state: RunState) -> Vec<PowerEvent> {
        let reason = match (self.power, state) {
            (PowerState::Paused(_), RunState::Running) => return self.apply(PowerEvent::Resume),
            (PowerState::Running | PowerState::Stopping, RunState::Paused) if self.pause_asked => {
                PauseReason::Requested
            }
            (PowerState::Running | PowerState::Stopping, RunState::DiskError) => PauseReason::DiskError,
            (PowerState::Running | PowerState::Stopping, RunState::Paused | RunState::GuestPanicked) => {
                PauseReason::Hypervisor
            }
            (PowerState::Starting | PowerState::Restoring, RunState::Running) => {
                return self.apply(PowerEvent::Started);
            }
            _ => return self.answered(state),
        };
        (self.pause_asked, self.disk_error) = (false, false);
        self.panicked |= state == RunState::GuestPanicked;
        self.apply(PowerEvent::Pause(reason))
    }

    /// A direct look after a silence or an adoption.
    fn answered(&mut self, state: RunState) -> Vec<PowerEvent> {
        if !matches!(
            self.power,
            PowerState::Unresponsive | PowerState::Unknown | PowerState::MigratingIn
        ) {
            return Vec::new();
        }
        let reason = match state {
            RunState::Running => return self.apply(PowerEvent::Started),
            _ if self.waits => return Vec::new(),
            RunState::Prelaunch | RunState::InMigrate => return Vec::new(),
            RunState::GuestPanicked => {
                self.panicked = true;
                PauseReason::Hypervisor
            }
            RunState::Paused => PauseReason::Requested,
            RunState::DiskError => PauseReason::DiskError,
            RunState::Halted => PauseReason::Hypervisor,
        };
        let mut events = Vec::new();
        if self.power != PowerState::Unknown {
            events = self.apply(PowerEvent::Started);
        }
        events.extend(self.apply(PowerEvent::Pause(reason)));
        events
    }

    fn exited(&mut self, exit: Exit) -> Vec<PowerEvent> {
        let event = match (self.power, self.shutdown.as_deref()) {
            _ if self.killed => PowerEvent::ForceOff,
            (PowerState::Starting, _) => PowerEvent::StartFailed,
            (PowerState::Restoring, _) => self.restore_failed,
            (PowerState::MigratingIn, _) => PowerEvent::MigrateFailed,
            // What never arrived did not crash.
            (PowerState::Unknown, _) if self.arriving => PowerEvent::ForceOff,
            (power, _) if self.leaves.is_some_and(|event| power.after(event).is_ok()) => {
                self.leaves.unwrap_or(PowerEvent::ForceOff)
            }
            _ if self.given_up => PowerEvent::ForceOff,
            _ if self.panicked => PowerEvent::Crash(CrashCause::Guest),
            (_, Some("guest-panic")) => PowerEvent::Crash(CrashCause::Guest),
            // Somebody on the host sent it SIGTERM.
            (_, Some("host-signal" | "host-error")) => PowerEvent::Crash(CrashCause::Hypervisor),
            (_, Some(_)) => PowerEvent::ShutDown,
            (_, None) if exit.code == Some(0) => PowerEvent::ShutDown,
            (_, None) => PowerEvent::Crash(CrashCause::Hypervisor),
        };
        let events = self.apply(event);
        if events.is_empty() {
            // No row of the table: a state that a driver of ours does not enter. It is over all the same.
            return self.apply(PowerEvent::ForceOff);
        }
        events
    }

    fn apply(&mut self, event: PowerEvent) -> Vec<PowerEvent> {
        match self.power.after(event) {
            Ok(power) => {
                self.power = power;
                vec![event]
            }
            Err(_) => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shutdown(reason: &str) -> Input {
        Input::Said(QmpEvent::Shutdown {
            guest: true,
            reason: reason.into(),
        })
    }

    fn running() -> Lifecycle {
        let mut life = Lifecycle::new(PowerState::Starting);
        assert_eq!(life.take(Input::Said(QmpEvent::Resume)), [PowerEvent::Started]);
        life
    }

    fn end_of(inputs: Vec<Input>, exit: Exit) -> PowerState {
        let mut life = running();
        for input in inputs {
            life.take(input);
        }
        life.take(Input::Exited(exit));
        life.power
    }

    const CLEAN: Exit = Exit {
        code: Some(0),
        signal: None,
    };
    const KILLED: Exit = Exit {
        code: None,
        signal: Some(9),
    };

    #[test]
    fn how_it_ended_is_told_apart() {
        use CrashCause::{Guest, Hypervisor};
        use PowerState::{Crashed, Off};
        for (inputs, exit, end) in [
            (vec![shutdown("guest-shutdown")], CLEAN, Off),
            (vec![Input::StopAsked, shutdown("guest-shutdown")], CLEAN, Off),
            (
                vec![shutdown("guest-shutdown"), Input::Said(QmpEvent::Stop)],
                CLEAN,
                Off,
            ),
            (vec![shutdown("host-qmp-quit")], CLEAN, Off),
            (vec![shutdown("host-signal")], CLEAN, Crashed(Hypervisor)),
            (vec![Input::KillAsked], KILLED, Off),
            (vec![], KILLED, Crashed(Hypervisor)),
            (vec![], Exit::default(), Crashed(Hypervisor)),
            (
                vec![],
                Exit {
                    code: Some(1),
                    signal: None,
                },
                Crashed(Hypervisor),
            ),
            (vec![], CLEAN, Off),
            (
                vec![Input::Said(QmpEvent::GuestPanicked), shutdown("guest-panic")],
                CLEAN,
                Crashed(Guest),
            ),
            (vec![Input::Silent, Input::KillAsked], KILLED, Off),
        ] {
            assert_eq!(end_of(inputs.clone(), exit), end, "{inputs:?} {exit:?}");
        }
    }

    #[test]
    fn why_it_is_paused_is_told_apart() {
        for (before, reason) in [
            (vec![Input::PauseAsked], PauseReason::Requested),
            (vec![], PauseReason::Hypervisor),
            (
                vec![Input::Said(QmpEvent::DiskErrorStops)],
                PauseReason::DiskError,
            ),
        ] {
            let mut life = running();
            for input in before {
                life.take(input);
            }
            assert_eq!(
                life.take(Input::Said(QmpEvent::Stop)),
                [PowerEvent::Pause(reason)]
            );
            assert_eq!(life.take(Input::Said(QmpEvent::Resume)), [PowerEvent::Resume]);
        }
    }

    #[test]
    fn the_reason_of_a_halt_may_come_after_it_and_is_not_that_of_the_next_one() {
        let mut life = running();
        life.take(Input::Said(QmpEvent::Stop));
        life.take(Input::Said(QmpEvent::DiskErrorStops));
        assert_eq!(life.power, PowerState::Paused(PauseReason::DiskError));
        life.take(Input::Said(QmpEvent::DiskErrorStops));
        life.take(Input::Said(QmpEvent::Resume));
        life.take(Input::PauseAsked);
        life.take(Input::Said(QmpEvent::Stop));
        assert_eq!(life.power, PowerState::Paused(PauseReason::Requested));
    }

    #[test]
    fn a_look_stands_for_the_events_that_were_lost() {
        let looked = |word: &str| Input::Said(QmpEvent::Looked(word.into()));
        let mut life = running();
        assert!(
            life.take(looked("running")).is_empty(),
            "nothing was lost that matters"
        );
        life.take(Input::PauseAsked);
        life.take(looked("paused"));
        assert_eq!(life.power, PowerState::Paused(PauseReason::Requested));
        assert!(life.take(looked("paused")).is_empty());
        assert_eq!(life.take(looked("running")), [PowerEvent::Resume]);
        life.take(looked("io-error"));
        assert_eq!(life.power, PowerState::Paused(PauseReason::DiskError));
        let mut starts = Lifecycle::new(PowerState::Starting);
        assert_eq!(starts.take(looked("running")), [PowerEvent::Started]);
    }

    #[test]
    fn a_silent_vm_is_unresponsive_and_not_failed_and_comes_back() {
        let mut life = running();
        life.take(Input::Silent);
        assert_eq!(life.power, PowerState::Unresponsive);
        life.take(Input::Answered(RunState::Paused));
        assert_eq!(life.power, PowerState::Paused(PauseReason::Requested));
    }

    #[test]
    fn a_found_vm_is_what_its_monitor_says() {
        let mut life = Lifecycle::new(PowerState::Unknown);
        assert_eq!(
            life.take(Input::Answered(RunState::Running)),
            [PowerEvent::Started]
        );
        assert_eq!(life.power, PowerState::Running);
    }

    #[test]
    fn a_start_that_ends_early_has_failed() {
        let mut life = Lifecycle::new(PowerState::Starting);
        assert_eq!(life.take(Input::Said(QmpEvent::Reset)), []);
        assert_eq!(life.take(Input::Exited(KILLED)), [PowerEvent::StartFailed]);
        assert_eq!(life.power, PowerState::Off);
    }

    #[test]
    fn how_it_left_is_told_apart() {
        use PowerState::{Off, Running, Saved};
        for (story, exit, end) in [
            (
                vec![Input::SaveAsked, Input::Said(QmpEvent::Stop), Input::SaveWritten],
                KILLED,
                Saved,
            ),
            (
                vec![Input::SaveAsked, Input::SaveWritten, Input::KillAsked],
                KILLED,
                Off,
            ),
            (
                vec![Input::SaveAsked],
                KILLED,
                PowerState::Crashed(CrashCause::Hypervisor),
            ),
            (
                vec![Input::SendAsked, Input::Said(QmpEvent::Stop), Input::SentAway],
                KILLED,
                Off,
            ),
        ] {
            assert_eq!(end_of(story.clone(), exit), end, "{story:?}");
        }
        for (asked, failed) in [
            (Input::SaveAsked, Input::SaveFailed(false)),
            (Input::SendAsked, Input::SendFailed(false)),
        ] {
            let mut life = running();
            for input in [
                asked,
                Input::Said(QmpEvent::Stop),
                Input::Said(QmpEvent::Resume),
                failed,
            ] {
                life.take(input);
            }
            assert_eq!(life.power, Running);
        }
    }

    #[test]
    fn a_memory_that_cannot_be_read_back_is_kept_or_was_that_of_a_snapshot() {
        let life = Lifecycle::new(PowerState::Restoring);
        for (mut life, end) in [
            (life, PowerState::Off),
            (
                Lifecycle::new(PowerState::Restoring).keeping_memory(),
                PowerState::Saved,
            ),
        ] {
            life.take(Input::Exited(KILLED));
            assert_eq!(life.power, end);
        }
    }

    #[test]
    fn what_arrives_runs_or_is_paused_and_what_does_not_is_off() {
        for (input, end) in [
            (Input::Said(QmpEvent::Resume), PowerState::Running),
            (Input::Answered(RunState::InMigrate), PowerState::MigratingIn),
            (Input::Answered(RunState::Running), PowerState::Running),
            (
                Input::Answered(RunState::Paused),
                PowerState::Paused(PauseReason::Requested),
            ),
            (Input::Exited(KILLED), PowerState::Off),
        ] {
            let mut life = Lifecycle::new(PowerState::MigratingIn);
            life.take(input.clone());
            assert_eq!(life.power, end, "{input:?}");
        }
        let mut found = Lifecycle::new(PowerState::Unknown);
        found.take(Input::FoundArriving);
        found.take(Input::Exited(KILLED));
        assert_eq!(found.power, PowerState::Off);
    }

    fn any_input() -> impl Strategy<Value = Input> {
        prop_oneof![
            Just(Input::SaveAsked),
            any::<bool>().prop_map(Input::SaveFailed),
            Just(Input::SaveWritten),
            Just(Input::SendAsked),
            any::<bool>().prop_map(Input::SendFailed),
            Just(Input::SentAway),
            Just(Input::FoundArriving),
            Just(Input::StopAsked),
            Just(Input::PauseAsked),
            Just(Input::KillAsked),
            Just(Input::StartGivenUp),
            Just(Input::Silent),
            Just(Input::Said(QmpEvent::Reset)),
            Just(Input::Said(QmpEvent::Stop)),
            Just(Input::Said(QmpEvent::Resume)),
            Just(Input::Said(QmpEvent::GuestPanicked)),
            Just(Input::Said(QmpEvent::DiskErrorStops)),
            Just(shutdown("guest-shutdown")),
            Just(shutdown("what-is-new")),
            Just(Input::Said(QmpEvent::Looked("running".into()))),
            Just(Input::Said(QmpEvent::Looked("paused".into()))),
            Just(Input::Said(QmpEvent::Looked("io-error".into()))),
            Just(Input::Answered(RunState::Running)),
            Just(Input::Answered(RunState::Prelaunch)),
            Just(Input::Answered(RunState::Halted)),
        ]
    }

    proptest! {
        #[test]
        fn whatever_was_said_an_ended_process_is_no_live_vm_and_the_story_replays(
            found: bool, story in proptest::collection::vec(any_input(), 0..30)
        ) {
            let begin = if found { PowerState::Unknown } else { PowerState::Starting };
            let (mut life, mut replay) = (Lifecycle::new(begin), begin);
            for input in story.into_iter().chain([Input::Exited(KILLED)]) {
                for event in life.take(input) { replay = replay.after(event).unwrap(); }
                prop_assert_eq!(replay, life.power);
            }
            prop_assert!(matches!(life.power, PowerState::Off | PowerState::Crashed(_) | PowerState::Saved));
        }
    }
}
