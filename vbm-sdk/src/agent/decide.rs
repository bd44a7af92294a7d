//! What to do with a VM next: pure.

use vbm_core::{Generation, PauseReason, PowerState, WantedPower};

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It is as wanted.
    Settled,
    /// Something is under way; look again when the state changes.
    Wait,
    /// Bring image, disk and NICs, and start it.
    Start,
    /// Ask the guest to shut down.
    Stop,
    /// End it.
    ForceOff,
    /// Halt it.
    Pause,
    /// Let it go on.
    Resume,
    /// Write its memory to disk and end it.
    Save,
    /// Let it go on from the memory on disk.
    Restore,
    /// Throw the memory on disk away.
    Discard,
}

/// What is remembered between two looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Memory {
    /// The generation that was reached: what the VM does by itself after that is not undone.
    pub(super) reached: Option<Generation>,
}

/// The next step from what is seen towards what is wanted.
pub(super) fn decide(wanted: WantedPower, generation: Generation, seen: PowerState, memory: Memory) -> Step {
    use PowerState as P;
    let reached = memory.reached == Some(generation);
    match (wanted, seen) {
        (_, P::Starting | P::Saving | P::Restoring | P::MigratingOut | P::MigratingIn)
            if wanted != WantedPower::ForcedOff =>
        {
            Step::Wait
        }
        (WantedPower::Running, P::Running) => Step::Settled,
        (WantedPower::Paused, P::Paused(_)) => Step::Settled,
        (WantedPower::Saved, P::Saved) => Step::Settled,
        (WantedPower::Off, P::Off | P::Crashed(_) | P::Saved) => Step::Settled,
        (WantedPower::ForcedOff, P::Off | P::Crashed(_)) => Step::Settled,

        // It ended by itself after it had been as wanted: that is the guest's or the operator's doing.
        (WantedPower::Running | WantedPower::Paused, P::Off | P::Crashed(_)) if reached => Step::Settled,
        (WantedPower::Running | WantedPower::Paused, P::Off | P::Crashed(_)) => Step::Start,
        (WantedPower::Running, P::Paused(PauseReason::Requested)) => Step::Resume,
        (WantedPower::Paused, P::Running) => Step::Pause,
        // A pause of the hypervisor's own (a full disk) ends when its cause does; resuming would only repeat it.
        (WantedPower::Running, P::Paused(_)) => Step::Settled,

        (WantedPower::Running | WantedPower::Paused, P::Saved) if reached => Step::Settled,
        (WantedPower::Running | WantedPower::Paused, P::Saved) => Step::Restore,
        (WantedPower::Saved, P::Running | P::Paused(_)) => Step::Save,
        // There is no memory to save any more.
        (WantedPower::Saved, P::Off | P::Crashed(_)) => Step::Settled,
        // A force-off is not asked for while memory is on disk; throwing it away is.
        (WantedPower::ForcedOff, P::Saved) => Step::Discard,

        // A halted guest hears no button.
        (WantedPower::Off, P::Paused(_)) => Step::Resume,
        (WantedPower::Off, P::Running | P::Stopping) => Step::Stop,
        (WantedPower::ForcedOff, _) => Step::ForceOff,
        (WantedPower::Running | WantedPower::Paused | WantedPower::Saved, P::Stopping) => Step::Wait,
        // Nothing is begun on a state that nobody knows.
        _ => Step::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vbm_core::CrashCause;

    const FRESH: Memory = Memory { reached: None };
    const REACHED: Memory = Memory {
        reached: Some(Generation(3)),
    };

    fn step(wanted: WantedPower, seen: PowerState, memory: Memory) -> Step {
        decide(wanted, Generation(3), seen, memory)
    }

    #[test]
    fn a_vm_that_is_off_is_started_once_per_request() {
        assert_eq!(step(WantedPower::Running, PowerState::Off, FRESH), Step::Start);
        assert_eq!(
            step(WantedPower::Running, PowerState::Off, REACHED),
            Step::Settled
        );
        assert_eq!(
            step(
                WantedPower::Running,
                PowerState::Crashed(CrashCause::Hypervisor),
                REACHED
            ),
            Step::Settled
        );
        assert_eq!(
            step(
                WantedPower::Running,
                PowerState::Off,
                Memory {
                    reached: Some(Generation(2))
                }
            ),
            Step::Start
        );
    }

    #[test]
    fn nothing_is_started_while_nobody_knows_what_it_does() {
        for seen in [
            PowerState::Unknown,
            PowerState::Unresponsive,
            PowerState::Stopping,
            PowerState::Starting,
        ] {
            assert_eq!(step(WantedPower::Running, seen, FRESH), Step::Wait, "{seen}");
        }
    }

    #[test]
    fn force_off_is_the_answer_to_every_live_state() {
        for seen in [
            PowerState::Running,
            PowerState::Starting,
            PowerState::Stopping,
            PowerState::Unresponsive,
            PowerState::Unknown,
        ] {
            assert_eq!(
                step(WantedPower::ForcedOff, seen, FRESH),
                Step::ForceOff,
                "{seen}"
            );
        }
    }

    #[test]
    fn a_halted_guest_goes_on_before_it_is_asked_to_stop() {
        assert_eq!(
            step(
                WantedPower::Off,
                PowerState::Paused(PauseReason::Requested),
                FRESH
            ),
            Step::Resume
        );
    }

    #[test]
    fn memory_is_saved_restored_and_thrown_away_as_asked() {
        use PowerState as P;
        for seen in [P::Running, P::Paused(PauseReason::Requested)] {
            assert_eq!(step(WantedPower::Saved, seen, FRESH), Step::Save, "{seen}");
        }
        assert_eq!(step(WantedPower::Saved, P::Saved, FRESH), Step::Settled);
        assert_eq!(step(WantedPower::Saved, P::Saving, FRESH), Step::Wait);
        assert_eq!(step(WantedPower::Running, P::Saved, FRESH), Step::Restore);
        assert_eq!(step(WantedPower::ForcedOff, P::Saved, FRESH), Step::Discard);
    }

    #[test]
    fn a_polite_stop_throws_no_saved_memory_away() {
        assert_eq!(step(WantedPower::Off, PowerState::Saved, FRESH), Step::Settled);
    }

    #[test]
    fn a_vm_that_ended_before_it_was_saved_is_not_started_for_it() {
        assert_eq!(step(WantedPower::Saved, PowerState::Off, FRESH), Step::Settled);
    }

    #[test]
    fn a_vm_that_somebody_else_saved_stays_so_until_it_is_asked_for() {
        assert_eq!(
            step(WantedPower::Running, PowerState::Saved, REACHED),
            Step::Settled
        );
    }

    #[test]
    fn a_guest_halted_by_a_full_disk_is_left_alone() {
        assert_eq!(
            step(
                WantedPower::Running,
                PowerState::Paused(PauseReason::DiskError),
                FRESH
            ),
            Step::Settled
        );
    }
}
