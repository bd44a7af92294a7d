//! What to do next with a VM that moves: pure.
//!
//! ```text
//!                 source            destination        next
//!   live    1     Running           Off                Receive
//!           2     Running           waits at ADDR      Send(ADDR)
//!           3     MigratingOut      waits              Wait
//!           4     Off               Running            Switch
//!   cold    1     Off               Off                Switch
//!   copied  1..3  as live; what has come is halted there
//!           4     Off                 waits            Finish, then Switch
//!           4a    says nothing        waits            Wait: it may run on, or may have left
//!   both    5     (the record says: destination)       Leave
//! ```
//!
//! Whatever died in between, the next look finds the row. What runs decides, not what was sent: a destination runs a VM
//! only after the last of its memory came, and from then on it is the right copy. While nobody knows whether it came, the
//! move is not given up, however long that takes: a source that got the VM back would start it a second time.

use crate::methods::{LookedAt, Sent};
use std::time::Duration;
use vbm_core::{Error, ErrorKind, PowerState};
use vbm_hyper::Landing;

/// A move that has not ended by then is given up, unless the VM is at its destination.
pub(super) const MOVE_MAX: Duration = Duration::from_secs(600);
/// The same for one whose disk is copied.
pub(super) const MOVE_COPY_MAX: Duration = Duration::from_secs(6 * 3600);
/// A node that must act and says nothing for so long is not waited for any longer.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(45);

/// What is known of a move.
#[derive(Clone, Debug)]
pub(super) struct Sides {
    pub(super) live: bool,
    /// Whether its disk is copied: then what has come waits until it is let go.
    pub(super) copies: bool,
    /// Whether the record names the destination as the VM's node.
    pub(super) switched: bool,
    /// What each side says; an error when it says nothing.
    pub(super) source: Result<LookedAt, Error>,
    pub(super) destination: Result<LookedAt, Error>,
    /// Whether the destination holds the VM's networks with its ports.
    pub(super) prepared: bool,
    /// Since somebody began to look at it.
    pub(super) waited: Duration,
    /// How long one of the sides has said nothing.
    pub(super) silent: Duration,
}

impl Sides {
    /// Whether it is certain that the source has it, and is not just sending it away.
    pub(super) fn stays(&self) -> bool {
        let has = |source: &LookedAt| {
            matches!(source.power, PowerState::Running | PowerState::Paused(_))
                && source.sent != Some(Sent::UnderWay)
        };
        !self.live || self.source.as_ref().is_ok_and(has)
    }

    const fn longest(&self) -> Duration {
        if self.copies { MOVE_COPY_MAX } else { MOVE_MAX }
    }

    /// Whether all of it may be at the destination, halted.
    fn may_be_whole(&self) -> bool {
        let waits = |destination: &LookedAt| {
            matches!(
                destination.power,
                PowerState::MigratingIn | PowerState::Unknown | PowerState::Unresponsive
            )
        };
        self.destination.as_ref().map_or(true, waits)
    }

    /// Whether the source has seen it end.
    pub(super) fn ended(&self) -> bool {
        self.source.as_ref().is_ok_and(|source| is_over(source.power))
    }
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Wait,
    /// Ask the destination to wait for the VM.
    Receive,
    /// Tell the source to send it.
    Send(Landing),
    /// Let it go on at the destination: its source has let go of it, or runs it no more.
    Finish,
    /// Write down that it is on the destination.
    Switch,
    /// Take what is left off the source; then the move is over.
    Leave,
    /// Take what is left off the destination; the VM stays where it was.
    GiveUp(Error),
}

pub(super) fn next(sides: &Sides) -> Next {
    if sides.switched {
        return Next::Leave;
    }
    let next = if sides.live {
        next_live(sides)
    } else {
        next_cold(sides)
    };
    // What waits at the destination may be all that is left of it: its source may have let go, or may run on. One that
    // still sends has limits of its own.
    if sides.copies && !sides.stays() && sides.may_be_whole() {
        return next;
    }
    // Whether it runs at a destination that says nothing, nobody knows: it is not left to its source to start it again.
    if sides.destination.is_err() && !sides.stays() {
        return next;
    }
    match next {
        // Also what is asked again and again, and never done.
        Next::Wait | Next::Receive | Next::Send(_) if sides.waited >= sides.longest() => {
            let minutes = sides.longest().as_secs() / 60;
            Next::GiveUp(given_up(&format!("it took longer than {minutes} minutes")))
        }
        Next::Wait if sides.silent >= SILENCE_MAX => {
            let why = sides.source.as_ref().err().or(sides.destination.as_ref().err());
            Next::GiveUp(given_up(
                &why.map_or_else(|| "a node does not answer".into(), Error::inline),
            ))
        }
        next => next,
    }
}

fn next_cold(sides: &Sides) -> Next {
    match &sides.source {
        Err(_) => Next::Wait,
        Ok(source) if is_over(source.power) || source.power == PowerState::Saved => {
            if sides.destination.is_ok() {
                Next::Switch
            } else {
                Next::Wait
            }
        }
        Ok(source) => Next::GiveUp(given_up(&format!("it is {} on its node", source.power))),
    }
}

fn next_live(sides: &Sides) -> Next {
    let Ok(destination) = &sides.destination else {
        return match &sides.source {
            Ok(source) => failed(source).unwrap_or(Next::Wait),
            Err(_) => Next::Wait,
        };
    };
    let arrived = matches!(destination.power, PowerState::Running | PowerState::Paused(_));
    let Ok(source) = &sides.source else {
        // The source cannot go on by itself once all of the memory has left it.
        return if arrived { Next::Switch } else { Next::Wait };
    };
    if arrived {
        return if source.power.is_live() {
            Next::Wait
        } else {
            Next::Switch
        };
    }
    if let Some(failed) = failed(source) {
        return failed;
    }
    if sides.copies && is_over(source.power) && sides.may_be_whole() {
        return Next::Finish;
    }
    let waits_at = destination.landing.clone().or_else(|| {
        let at = destination.receiving.filter(|_| !sides.copies);
        at.map(Landing::shared)
    });
    match (source.power, waits_at, &source.sent) {
        // An agent that was restarted meanwhile does not know where it waits; its hypervisor waits on.
        (_, _, Some(Sent::UnderWay | Sent::Done { .. })) if destination.power == PowerState::MigratingIn => {
            Next::Wait
        }
        (PowerState::Running | PowerState::Paused(_), Some(at), None) => Next::Send(at),
        (PowerState::Running | PowerState::Paused(_), None, None) if sides.prepared => Next::Receive,
        (power, ..) if is_over(power) => Next::GiveUp(given_up("it ended while it moved")),
        (_, None, Some(_)) => Next::GiveUp(given_up("the destination does not wait for it any more")),
        _ => Next::Wait,
    }
}

fn failed(source: &LookedAt) -> Option<Next> {
    match &source.sent {
        Some(Sent::Failed(error)) if !is_over(source.power) => Some(Next::GiveUp(error.clone())),
        _ => None,
    }
}

const fn is_over(power: PowerState) -> bool {
    matches!(power, PowerState::Off | PowerState::Crashed(_))
}

fn given_up(why: &str) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "the VM could not be moved",
        why,
        "look at it with `vbm info`; it is where it was, and the move can be tried again",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;
    use vbm_core::CrashCause;

    fn at(port: u16) -> SocketAddr {
        ([10, 0, 0, 2], port).into()
    }

    fn look(power: PowerState) -> LookedAt {
        LookedAt {
            power,
            ..LookedAt::default()
        }
    }

    fn waits() -> LookedAt {
        LookedAt {
            receiving: Some(at(1)),
            ..look(PowerState::MigratingIn)
        }
    }

    fn silent() -> Result<LookedAt, Error> {
        Err(Error::internal("no answer", "x"))
    }

    fn sides(source: LookedAt, destination: LookedAt) -> Sides {
        Sides {
            live: true,
            copies: false,
            switched: false,
            source: Ok(source),
            destination: Ok(destination),
            prepared: true,
            waited: Duration::ZERO,
            silent: Duration::ZERO,
        }
    }

    const DONE: Sent = Sent::Done {
        took_ms: 1,
        downtime_ms: 1,
        bytes: 1,
    };

    #[test]
    fn a_live_move_goes_through_its_rows() {
        let (off, running) = (look(PowerState::Off), look(PowerState::Running));
        assert_eq!(next(&sides(running.clone(), off.clone())), Next::Receive);
        assert_eq!(next(&sides(running.clone(), waits())), Next::Send(at(1).into()));
        let sending = LookedAt {
            sent: Some(Sent::UnderWay),
            ..look(PowerState::MigratingOut)
        };
        assert_eq!(next(&sides(sending, waits())), Next::Wait);
        let sent = LookedAt {
            sent: Some(DONE),
            ..off.clone()
        };
        assert_eq!(next(&sides(sent.clone(), waits())), Next::Wait);
        assert_eq!(next(&sides(sent, running.clone())), Next::Switch);
        let switched = Sides {
            switched: true,
            ..sides(off, running)
        };
        assert_eq!(next(&switched), Next::Leave);
    }

    #[test]
    fn a_move_with_a_copy_is_finished_once_its_source_has_let_go_and_not_before() {
        let landed = LookedAt {
            landing: Some(at(1).into()),
            ..waits()
        };
        let of = |source: LookedAt| Sides {
            copies: true,
            ..sides(source, landed.clone())
        };
        let sent = |power, sent| LookedAt {
            sent: Some(sent),
            ..look(power)
        };
        assert_eq!(next(&of(look(PowerState::Running))), Next::Send(at(1).into()));
        assert_eq!(
            next(&of(sent(PowerState::MigratingOut, Sent::UnderWay))),
            Next::Wait
        );
        assert_eq!(next(&of(sent(PowerState::Off, DONE))), Next::Finish);
        // Dead, it runs no more; whether all of it came, the destination knows.
        let dead = PowerState::Crashed(CrashCause::Hypervisor);
        assert_eq!(next(&of(look(dead))), Next::Finish);
        let failed = sent(PowerState::Running, Sent::Failed(Error::internal("x", "y")));
        assert!(matches!(next(&of(failed)), Next::GiveUp(_)));
        // One that says nothing may run on, or may have let go: neither is guessed, however long it takes.
        let unheard = Sides {
            source: silent(),
            waited: MOVE_COPY_MAX,
            silent: MOVE_COPY_MAX,
            ..of(look(PowerState::Off))
        };
        assert_eq!(next(&unheard), Next::Wait);
        // An address alone is no place for copies.
        let old = Sides {
            copies: true,
            ..sides(look(PowerState::Running), waits())
        };
        assert_ne!(next(&old), Next::Send(at(1).into()));
    }

    #[test]
    fn the_destination_is_not_asked_before_it_holds_the_networks() {
        let unprepared = Sides {
            prepared: false,
            ..sides(look(PowerState::Running), look(PowerState::Off))
        };
        assert_eq!(next(&unprepared), Next::Wait);
    }

    #[test]
    fn a_sending_that_failed_leaves_the_vm_where_it_was() {
        let failed = LookedAt {
            sent: Some(Sent::Failed(Error::internal("broken", "pipe"))),
            ..look(PowerState::Running)
        };
        for destination in [waits(), look(PowerState::Off)] {
            assert!(matches!(
                next(&sides(failed.clone(), destination)),
                Next::GiveUp(_)
            ));
        }
    }

    #[test]
    fn a_destination_whose_agent_was_restarted_is_waited_for_while_its_hypervisor_waits() {
        let sending = LookedAt {
            sent: Some(Sent::UnderWay),
            ..look(PowerState::MigratingOut)
        };
        let (forgot, gone) = (look(PowerState::MigratingIn), look(PowerState::Off));
        assert_eq!(next(&sides(sending.clone(), forgot.clone())), Next::Wait);
        assert!(matches!(next(&sides(sending, gone)), Next::GiveUp(_)));
        assert_eq!(next(&sides(look(PowerState::Running), forgot)), Next::Receive);
    }

    #[test]
    fn what_runs_at_the_destination_has_arrived_even_when_the_source_is_silent() {
        let cut = Sides {
            source: silent(),
            ..sides(look(PowerState::Off), look(PowerState::Running))
        };
        assert_eq!(next(&cut), Next::Switch);
    }

    #[test]
    fn nothing_is_switched_while_nobody_knows_where_it_runs() {
        for (source, destination) in [
            (silent(), Ok(waits())),
            (silent(), silent()),
            (Ok(look(PowerState::Running)), silent()),
            (Ok(look(PowerState::Unknown)), Ok(look(PowerState::Off))),
        ] {
            let sides = Sides {
                source,
                destination,
                ..sides(look(PowerState::Off), look(PowerState::Off))
            };
            assert_eq!(next(&sides), Next::Wait);
        }
    }

    #[test]
    fn a_vm_that_may_have_arrived_is_not_given_back_to_its_source() {
        let (off, running) = (look(PowerState::Off), look(PowerState::Running));
        let cut = |source| Sides {
            source,
            destination: silent(),
            waited: MOVE_MAX,
            silent: MOVE_MAX,
            ..sides(off.clone(), off.clone())
        };
        let under_way = |power| LookedAt {
            sent: Some(Sent::UnderWay),
            ..look(power)
        };
        for source in [
            Ok(off.clone()),
            silent(),
            Ok(look(PowerState::MigratingOut)),
            Ok(under_way(PowerState::Running)),
        ] {
            assert_eq!(next(&cut(source)), Next::Wait);
        }
        assert!(matches!(next(&cut(Ok(running))), Next::GiveUp(_)));
    }

    #[test]
    fn a_guest_that_ends_on_the_way_stays_where_it_was() {
        for power in [PowerState::Off, PowerState::Crashed(CrashCause::Guest)] {
            assert!(matches!(next(&sides(look(power), waits())), Next::GiveUp(_)));
        }
    }

    #[test]
    fn a_vm_that_is_off_goes_without_memory_and_one_that_was_started_stays() {
        let cold = |source| Sides {
            live: false,
            ..sides(look(source), look(PowerState::Off))
        };
        assert_eq!(next(&cold(PowerState::Off)), Next::Switch);
        assert!(matches!(next(&cold(PowerState::Running)), Next::GiveUp(_)));
    }

    #[test]
    fn no_move_goes_on_for_ever() {
        let slow = Sides {
            waited: MOVE_MAX,
            ..sides(look(PowerState::MigratingOut), waits())
        };
        assert!(matches!(next(&slow), Next::GiveUp(_)));
        let never_ready = Sides {
            waited: MOVE_MAX,
            ..sides(look(PowerState::Running), look(PowerState::Off))
        };
        assert!(matches!(next(&never_ready), Next::GiveUp(_)));
        let cut = Sides {
            source: silent(),
            silent: SILENCE_MAX,
            ..sides(look(PowerState::Off), look(PowerState::Off))
        };
        assert!(matches!(next(&cut), Next::GiveUp(_)));
    }
}
