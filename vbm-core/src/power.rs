//! The power state machine, as a table.
//!
//! ```text
//!            start            started                stop
//!   Off  ----------> Starting -------> Running <-----------> Stopping --> Off
//!    ^                                 |  ^  |
//!    |   force-off, exit: from each    |  |  +-- save --> Saving --> Saved --restore--> Restoring --> Running
//!    +---------------------------------+  |
//!                               pause, resume: Paused
//! ```
//!
//! Force-off and inspection are allowed in every state: whatever a VM does, it can be ended, and what was
//! seen of it is always believed. Everything else is allowed only where [`TABLE`] says so.

use crate::{Error, ErrorKind};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The power state of a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case", tag = "state", content = "why")]
#[non_exhaustive]
pub enum PowerState {
    /// Not running; its memory is gone.
    Off,
    /// Between off and running.
    Starting,
    /// Its processors run.
    Running,
    /// Halted in memory.
    Paused(PauseReason),
    /// Asked to shut down; the guest decides.
    Stopping,
    /// Its memory is being written to disk.
    Saving,
    /// Not running; its memory is on disk.
    Saved,
    /// Its memory is being read back.
    Restoring,
    /// Leaving for another node.
    MigratingOut,
    /// Arriving from another node.
    MigratingIn,
    /// Ended without being asked to.
    Crashed(CrashCause),
    /// It exists, but the hypervisor does not answer for it.
    Unresponsive,
    /// Nobody can tell: its node does not answer, or nobody looked yet.
    #[default]
    Unknown,
}

/// Why a VM is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum PauseReason {
    /// Somebody asked for it.
    Requested,
    /// Its disk failed or is full; it waits instead of losing data.
    DiskError,
    /// The hypervisor halted it for a cause of its own.
    Hypervisor,
}

/// Why a VM ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum CrashCause {
    /// The hypervisor's process was killed by a signal or failed.
    Hypervisor,
    /// The guest's kernel gave up.
    Guest,
    /// The machine went down beneath it.
    Host,
}

/// What moves a VM from one power state to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PowerEvent {
    /// Somebody asks for a start.
    Start,
    /// The processors run: after a start, a restore or an arrival.
    Started,
    /// The start failed.
    StartFailed,
    /// Somebody asks the guest to shut down.
    Stop,
    /// The guest shut down by itself or as asked.
    ShutDown,
    /// Somebody ends it now.
    ForceOff,
    /// Somebody presses the reset button.
    Reset,
    /// It is halted.
    Pause(PauseReason),
    /// It goes on.
    Resume,
    /// Somebody asks for its memory to be written to disk.
    Save,
    /// Its memory is on disk.
    SaveDone,
    /// Writing its memory failed; it goes on.
    SaveFailed,
    /// Somebody asks for it to go on from there.
    Restore,
    /// Its memory could not be read back; it stays on disk.
    RestoreFailed,
    /// It leaves for another node.
    MigrateOut,
    /// It arrives from another node.
    MigrateIn,
    /// It has left.
    MigratedAway,
    /// Leaving or arriving failed; it runs where it was, or is gone from here.
    MigrateFailed,
    /// It ended without being asked to.
    Crash(CrashCause),
    /// The hypervisor stopped answering for it.
    Silence,
}

/// A state without its reason: a column of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the states of PowerState")]
pub enum S {
    Off,
    Starting,
    Running,
    Paused,
    Stopping,
    Saving,
    Saved,
    Restoring,
    MigratingOut,
    MigratingIn,
    Crashed,
    Unresponsive,
    Unknown,
}

/// An event without its reason: a row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the events of PowerEvent")]
pub enum E {
    Start,
    Started,
    StartFailed,
    Stop,
    ShutDown,
    ForceOff,
    Reset,
    Pause,
    Resume,
    Save,
    SaveDone,
    SaveFailed,
    Restore,
    RestoreFailed,
    MigrateOut,
    MigrateIn,
    MigratedAway,
    MigrateFailed,
    Crash,
    Silence,
}

/// Every state, for those who walk the table.
pub const STATES: &[S] = &[
    S::Off,
    S::Starting,
    S::Running,
    S::Paused,
    S::Stopping,
    S::Saving,
    S::Saved,
    S::Restoring,
    S::MigratingOut,
    S::MigratingIn,
    S::Crashed,
    S::Unresponsive,
    S::Unknown,
];

/// `(event, states it is allowed in, state after it)`. What stands nowhere is refused.
pub const TABLE: &[(E, &[S], S)] = &[
    (E::Start, &[S::Off, S::Crashed], S::Starting),
    (
        E::Started,
        &[
            S::Starting,
            S::Restoring,
            S::MigratingIn,
            S::Unresponsive,
            S::Unknown,
        ],
        S::Running,
    ),
    (E::StartFailed, &[S::Starting, S::Restoring], S::Off),
    (E::Stop, &[S::Running, S::Stopping, S::Unresponsive], S::Stopping),
    (
        E::ShutDown,
        &[
            S::Starting,
            S::Running,
            S::Paused,
            S::Stopping,
            S::Unresponsive,
            S::Unknown,
        ],
        S::Off,
    ),
    (E::ForceOff, STATES, S::Off),
    (E::Reset, &[S::Running, S::Stopping], S::Running),
    (E::Pause, &[S::Running, S::Stopping, S::Unknown], S::Paused),
    (E::Resume, &[S::Paused], S::Running),
    (E::Save, &[S::Running, S::Paused], S::Saving),
    (E::SaveDone, &[S::Saving], S::Saved),
    (E::SaveFailed, &[S::Saving], S::Running),
    // A snapshot with memory is gone back to from rest.
    (E::Restore, &[S::Saved, S::Off, S::Crashed], S::Restoring),
    (E::RestoreFailed, &[S::Restoring], S::Saved),
    (E::MigrateOut, &[S::Running, S::Paused], S::MigratingOut),
    (E::MigrateIn, &[S::Off], S::MigratingIn),
    (E::MigratedAway, &[S::MigratingOut], S::Off),
    (E::MigrateFailed, &[S::MigratingOut], S::Running),
    (E::MigrateFailed, &[S::MigratingIn], S::Off),
    (
        E::Crash,
        &[
            S::Starting,
            S::Running,
            S::Paused,
            S::Stopping,
            S::Saving,
            S::Restoring,
            S::MigratingOut,
            S::MigratingIn,
            S::Unresponsive,
            S::Unknown,
        ],
        S::Crashed,
    ),
    (
        E::Silence,
        &[
            S::Starting,
            S::Running,
            S::Paused,
            S::Stopping,
            S::Saving,
            S::Restoring,
            S::MigratingOut,
            S::MigratingIn,
        ],
        S::Unresponsive,
    ),
];

impl PowerState {
    /// The state without its reason.
    pub const fn plain(self) -> S {
        match self {
            Self::Off => S::Off,
            Self::Starting => S::Starting,
            Self::Running => S::Running,
            Self::Paused(_) => S::Paused,
            Self::Stopping => S::Stopping,
            Self::Saving => S::Saving,
            Self::Saved => S::Saved,
            Self::Restoring => S::Restoring,
            Self::MigratingOut => S::MigratingOut,
            Self::MigratingIn => S::MigratingIn,
            Self::Crashed(_) => S::Crashed,
            Self::Unresponsive => S::Unresponsive,
            Self::Unknown => S::Unknown,
        }
    }

    /// The state after an event.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] where the table does not allow it.
    pub fn after(self, event: PowerEvent) -> Result<Self, Error> {
        let plain = event.plain();
        let row = TABLE
            .iter()
            .find(|(e, from, _)| *e == plain && from.contains(&self.plain()));
        let Some((_, _, to)) = row else {
            return Err(self.refuse(event));
        };
        Ok(match (to, event) {
            (S::Paused, PowerEvent::Pause(reason)) => Self::Paused(reason),
            (S::Crashed, PowerEvent::Crash(cause)) => Self::Crashed(cause),
            (S::Starting, _) => Self::Starting,
            (S::Running, _) => Self::Running,
            (S::Stopping, _) => Self::Stopping,
            (S::Saving, _) => Self::Saving,
            (S::Saved, _) => Self::Saved,
            (S::Restoring, _) => Self::Restoring,
            (S::MigratingOut, _) => Self::MigratingOut,
            (S::MigratingIn, _) => Self::MigratingIn,
            (S::Unresponsive, _) => Self::Unresponsive,
            (S::Off, _) => Self::Off,
            (S::Paused | S::Crashed | S::Unknown, _) => Self::Unknown,
        })
    }

    /// Whether the hypervisor holds memory for it: stopping the host would lose something.
    pub const fn is_live(self) -> bool {
        !matches!(self, Self::Off | Self::Saved | Self::Crashed(_) | Self::Unknown)
    }

    fn refuse(self, event: PowerEvent) -> Error {
        let plain = event.plain();
        let allowed: Vec<_> = TABLE
            .iter()
            .filter(|(e, ..)| *e == plain)
            .flat_map(|(_, from, _)| from.iter())
            .map(|s| format!("{s:?}").to_lowercase())
            .collect();
        Error::new(
            ErrorKind::Conflict,
            format!("cannot {} a VM that is {self}", event.verb()),
            format!("that is possible when it is {}", allowed.join(", ")),
            "wait for the state, or end the VM with `vbm stop --force`",
        )
    }
}

impl fmt::Display for PowerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Off => "off",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused(PauseReason::Requested) => "paused",
            Self::Paused(PauseReason::DiskError) => "paused (disk error)",
            Self::Paused(PauseReason::Hypervisor) => "paused (by hypervisor)",
            Self::Stopping => "stopping",
            Self::Saving => "saving",
            Self::Saved => "saved",
            Self::Restoring => "restoring",
            Self::MigratingOut => "migrating out",
            Self::MigratingIn => "migrating in",
            Self::Crashed(CrashCause::Guest) => "crashed (guest)",
            Self::Crashed(CrashCause::Hypervisor) => "crashed (hypervisor)",
            Self::Crashed(CrashCause::Host) => "crashed (host)",
            Self::Unresponsive => "unresponsive",
            Self::Unknown => "unknown",
        })
    }
}

impl PowerEvent {
    /// The event without its reason.
    pub const fn plain(self) -> E {
        match self {
            Self::Start => E::Start,
            Self::Started => E::Started,
            Self::StartFailed => E::StartFailed,
            Self::Stop => E::Stop,
            Self::ShutDown => E::ShutDown,
            Self::ForceOff => E::ForceOff,
            Self::Reset => E::Reset,
            Self::Pause(_) => E::Pause,
            Self::Resume => E::Resume,
            Self::Save => E::Save,
            Self::SaveDone => E::SaveDone,
            Self::SaveFailed => E::SaveFailed,
            Self::Restore => E::Restore,
            Self::RestoreFailed => E::RestoreFailed,
            Self::MigrateOut => E::MigrateOut,
            Self::MigrateIn => E::MigrateIn,
            Self::MigratedAway => E::MigratedAway,
            Self::MigrateFailed => E::MigrateFailed,
            Self::Crash(_) => E::Crash,
            Self::Silence => E::Silence,
        }
    }

    const fn verb(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::ForceOff => "force off",
            Self::Reset => "restart",
            Self::Pause(_) => "pause",
            Self::Resume => "resume",
            Self::Save => "save",
            Self::Restore => "restore",
            Self::MigrateOut | Self::MigrateIn => "migrate",
            _ => "believe a change of",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EVENTS: &[PowerEvent] = &[
        PowerEvent::Start,
        PowerEvent::Started,
        PowerEvent::StartFailed,
        PowerEvent::Stop,
        PowerEvent::ShutDown,
        PowerEvent::ForceOff,
        PowerEvent::Reset,
        PowerEvent::Pause(PauseReason::Requested),
        PowerEvent::Resume,
        PowerEvent::Save,
        PowerEvent::SaveDone,
        PowerEvent::SaveFailed,
        PowerEvent::Restore,
        PowerEvent::RestoreFailed,
        PowerEvent::MigrateOut,
        PowerEvent::MigrateIn,
        PowerEvent::MigratedAway,
        PowerEvent::MigrateFailed,
        PowerEvent::Crash(CrashCause::Guest),
        PowerEvent::Silence,
    ];

    #[test]
    fn the_usual_life_of_a_vm_is_allowed() {
        let mut state = PowerState::Off;
        for (event, expected) in [
            (PowerEvent::Start, PowerState::Starting),
            (PowerEvent::Started, PowerState::Running),
            (
                PowerEvent::Pause(PauseReason::Requested),
                PowerState::Paused(PauseReason::Requested),
            ),
            (PowerEvent::Resume, PowerState::Running),
            (PowerEvent::Stop, PowerState::Stopping),
            (PowerEvent::ShutDown, PowerState::Off),
        ] {
            state = state.after(event).unwrap();
            assert_eq!(state, expected);
        }
    }

    #[test]
    fn a_vm_that_runs_or_whose_state_nobody_knows_is_never_started_again() {
        for state in [
            PowerState::Running,
            PowerState::Unknown,
            PowerState::Unresponsive,
            PowerState::MigratingOut,
            PowerState::Stopping,
        ] {
            assert_eq!(
                state.after(PowerEvent::Start).unwrap_err().kind(),
                ErrorKind::Conflict,
                "{state}"
            );
        }
    }

    #[test]
    fn every_pair_of_event_and_state_stands_in_the_table_at_most_once() {
        for state in STATES {
            for event in EVENTS {
                let rows = TABLE
                    .iter()
                    .filter(|(e, from, _)| *e == event.plain() && from.contains(state))
                    .count();
                assert!(rows <= 1, "{event:?} in {state:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn whatever_happened_a_vm_can_be_ended_and_started_again(story in proptest::collection::vec(0..EVENTS.len(), 0..50)) {
            let mut state = PowerState::Off;
            for step in story { state = state.after(EVENTS[step]).unwrap_or(state); }
            let off = state.after(PowerEvent::ForceOff).unwrap();
            prop_assert_eq!(off, PowerState::Off);
            prop_assert_eq!(off.after(PowerEvent::Start).unwrap(), PowerState::Starting);
        }
    }
}
