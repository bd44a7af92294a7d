//! What VirtualBox's reports mean for the power state: pure.
//!
//! VirtualBox tells states, not events. What happened is what leads from the state that was shown to the one that is told;
//! everything goes through the core's table, so the events replay.

use super::parse::Told;
use vbm_core::{CrashCause, PauseReason, PowerEvent as E, PowerState as P};

/// The power state of a VM, and what we are doing to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Life {
    pub(super) power: P,
    /// A force-off was asked for.
    killed: bool,
    pause_asked: bool,
}

impl Life {
    pub(super) const fn new(power: P) -> Self {
        Self {
            power,
            killed: false,
            pause_asked: false,
        }
    }

    /// We are going to end it.
    pub(super) const fn will_kill(&mut self) {
        self.killed = true;
    }

    /// We are going to halt it.
    pub(super) const fn will_pause(&mut self) {
        self.pause_asked = true;
    }

    /// Something that we did has happened.
    pub(super) fn happened(&mut self, event: E) -> Vec<E> {
        self.apply(event)
    }

    /// What VirtualBox tells now; returns what happened by it, in order.
    pub(super) fn told(&mut self, told: Told) -> Vec<E> {
        match told {
            Told::Running => self.runs(),
            Told::Paused => self.halted(if self.pause_asked || self.power == P::Unknown {
                PauseReason::Requested
            } else {
                PauseReason::Hypervisor
            }),
            Told::Stuck => self.halted(PauseReason::Hypervisor),
            Told::Off => self.ended(E::ShutDown),
            Told::Aborted => self.ended(E::Crash(CrashCause::Hypervisor)),
            Told::Saved | Told::AbortedSaved => self.saved(),
            // On its way somewhere; that is told when it has arrived.
            Told::Moving => Vec::new(),
            Told::Strange if self.power.is_live() => self.apply(E::Silence),
            Told::Strange => Vec::new(),
        }
    }

    fn runs(&mut self) -> Vec<E> {
        match self.power {
            P::Running | P::Stopping => Vec::new(),
            P::Paused(_) => self.apply(E::Resume),
            // Somebody else let it go on.
            P::Saved => self.all(&[E::Restore, E::Started]),
            P::Off | P::Crashed(_) => self.all(&[E::Start, E::Started]),
            P::Saving => self.all(&[E::Silence, E::Started]),
            _ => self.apply(E::Started),
        }
    }

    fn halted(&mut self, reason: PauseReason) -> Vec<E> {
        let pause = E::Pause(reason);
        match self.power {
            P::Paused(_) => Vec::new(),
            P::Running | P::Stopping | P::Unknown => self.apply(pause),
            P::Off | P::Crashed(_) => self.all(&[E::Start, E::Started, pause]),
            P::Saved => self.all(&[E::Restore, E::Started, pause]),
            P::Saving => self.all(&[E::Silence, E::Started, pause]),
            _ => self.all(&[E::Started, pause]),
        }
    }

    fn ended(&mut self, how: E) -> Vec<E> {
        match self.power {
            P::Off | P::Crashed(_) => Vec::new(),
            _ if self.killed => self.apply(E::ForceOff),
            P::Starting | P::Restoring => self.apply(E::StartFailed),
            // The saved memory was thrown away.
            P::Saved => self.apply(E::ForceOff),
            _ => {
                let events = self.apply(how);
                if events.is_empty() {
                    self.apply(E::ForceOff)
                } else {
                    events
                }
            }
        }
    }

    fn saved(&mut self) -> Vec<E> {
        match self.power {
            P::Saved => Vec::new(),
            P::Saving => self.apply(E::SaveDone),
            P::Running | P::Paused(_) => self.all(&[E::Save, E::SaveDone]),
            P::Stopping
            | P::Starting
            | P::Restoring
            | P::Unresponsive
            | P::Unknown
            | P::Off
            | P::Crashed(_) => self.unseen_save(),
            _ => Vec::new(),
        }
    }

    /// There is no row from here to `Saved` but through a run that nobody saw.
    fn unseen_save(&mut self) -> Vec<E> {
        let way: &[E] = match self.power {
            P::Off | P::Crashed(_) => &[E::Start, E::Started, E::Save, E::SaveDone],
            P::Stopping => &[E::Silence, E::Started, E::Save, E::SaveDone],
            _ => &[E::Started, E::Save, E::SaveDone],
        };
        self.all(way)
    }

    fn all(&mut self, events: &[E]) -> Vec<E> {
        events.iter().flat_map(|event| self.apply(*event)).collect()
    }

    fn apply(&mut self, event: E) -> Vec<E> {
        let Ok(power) = self.power.after(event) else {
            return Vec::new();
        };
        self.power = power;
        if !power.is_live() {
            self.killed = false;
        }
        if matches!(power, P::Paused(_)) || !power.is_live() {
            self.pause_asked = false;
        }
        vec![event]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_told() -> impl Strategy<Value = Told> {
        prop::sample::select(vec![
            Told::Off,
            Told::Saved,
            Told::Aborted,
            Told::AbortedSaved,
            Told::Running,
            Told::Paused,
            Told::Stuck,
            Told::Moving,
            Told::Strange,
        ])
    }

    fn live(told: &[Told]) -> Life {
        let mut life = Life::new(P::Starting);
        for told in told {
            life.told(*told);
        }
        life
    }

    #[test]
    fn how_it_ended_is_told_apart() {
        for (told, killed, end) in [
            (Told::Off, false, P::Off),
            (Told::Aborted, false, P::Crashed(CrashCause::Hypervisor)),
            (Told::Aborted, true, P::Off),
            (Told::Off, true, P::Off),
            (Told::Saved, false, P::Saved),
        ] {
            let mut life = live(&[Told::Moving, Told::Running]);
            if killed {
                life.will_kill();
            }
            life.told(told);
            assert_eq!(life.power, end, "{told:?} {killed}");
        }
    }

    #[test]
    fn a_start_that_ends_early_has_failed_whatever_it_says() {
        for told in [Told::Off, Told::Aborted] {
            let mut life = Life::new(P::Starting);
            assert_eq!(life.told(told), [E::StartFailed]);
        }
    }

    #[test]
    fn a_pause_that_nobody_asked_for_is_the_hypervisors() {
        let mut life = live(&[Told::Running]);
        assert_eq!(life.told(Told::Paused), [E::Pause(PauseReason::Hypervisor)]);
        assert_eq!(life.told(Told::Running), [E::Resume]);
        life.will_pause();
        assert_eq!(life.told(Told::Paused), [E::Pause(PauseReason::Requested)]);
        assert_eq!(life.told(Told::Paused), []);
    }

    #[test]
    fn a_guest_that_was_asked_to_stop_is_still_stopping_while_it_runs() {
        let mut life = live(&[Told::Running]);
        life.happened(E::Stop);
        assert_eq!(life.told(Told::Running), []);
        assert_eq!(life.power, P::Stopping);
        assert_eq!(life.told(Told::Off), [E::ShutDown]);
    }

    #[test]
    fn a_strange_word_is_never_off() {
        let mut life = live(&[Told::Running]);
        assert_eq!(life.told(Told::Strange), [E::Silence]);
        assert_eq!(life.power, P::Unresponsive);
        assert_eq!(life.told(Told::Running), [E::Started]);
    }

    #[test]
    fn what_others_did_to_a_vm_is_seen() {
        let mut life = Life::new(P::Off);
        assert_eq!(life.told(Told::Running), [E::Start, E::Started]);
        assert_eq!(life.told(Told::Saved), [E::Save, E::SaveDone]);
        assert_eq!(life.told(Told::Off), [E::ForceOff]);
    }

    proptest! {
        #[test]
        fn whatever_is_told_the_events_replay_and_lead_to_what_was_told(
            begin in prop::sample::select(vec![P::Off, P::Starting, P::Unknown, P::Saved, P::Running, P::Saving, P::Restoring]),
            story in proptest::collection::vec((any_told(), any::<bool>(), any::<bool>()), 1..30)
        ) {
            let (mut life, mut replay) = (Life::new(begin), begin);
            for (told, kill, pause) in story {
                if kill { life.will_kill(); }
                if pause { life.will_pause(); }
                for event in life.told(told) { replay = replay.after(event).unwrap(); }
                prop_assert_eq!(replay, life.power);
                let fits = match told {
                    Told::Off | Told::Aborted => matches!(life.power, P::Off | P::Crashed(_)),
                    Told::Saved | Told::AbortedSaved => life.power == P::Saved,
                    Told::Running => matches!(life.power, P::Running | P::Stopping),
                    Told::Paused | Told::Stuck => matches!(life.power, P::Paused(_)),
                    Told::Moving | Told::Strange => true,
                };
                prop_assert!(fits, "{:?} was told, {:?} is shown", told, life.power);
            }
        }
    }
}
