//! The table of moves against every course that two hosts and their daemons can take: all states, by exhaustion.
//!
//! A mover looks, and acts on what it saw; between the two anything may happen: a process dies, a daemon is silent, a word is lost, a lease
//! ends, another mover takes over. In no state do two copies run; a move that is over has left one, unless one died.

use super::decide::{MOVE_COPY_MAX, Next, SILENCE_MAX, Sides, next};
use crate::methods::{LookedAt, Sent};
use std::{collections::HashSet, time::Duration};
use vbm_core::{CrashCause, Error, PowerState};
use vbm_hyper::Landing;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Source {
    Runs,
    Sends,
    Failed,
    /// It has let go.
    Left,
    Dead,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Destination {
    Nothing,
    Waits,
    /// All of it is here, halted.
    Whole,
    Runs,
    Dead,
}

/// What a mover is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Act {
    Receive,
    Send,
    Finish,
    Switch,
    Leave,
    GiveUp { stays: bool },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct World {
    copies: bool,
    source: Source,
    /// The daemon of the source was started anew: it does not know what it sent.
    forgot: bool,
    destination: Destination,
    switched: bool,
    over: bool,
    /// Something of the VM died by accident.
    died: bool,
    act: Option<Act>,
}

impl World {
    const fn new(copies: bool) -> Self {
        Self {
            copies,
            source: Source::Runs,
            forgot: false,
            destination: Destination::Nothing,
            switched: false,
            over: false,
            died: false,
            act: None,
        }
    }

    /// What happens by itself.
    fn happens(self) -> Vec<Self> {
        use {Destination as D, Source as S};
        let mut all = Vec::new();
        let mut add = |to: Self| all.push(to);
        let lives = matches!(self.source, S::Runs | S::Sends | S::Failed);
        if lives {
            // With shared disks, what the source holds once all has gone is not the VM any more.
            let gone = !self.copies && self.destination == D::Runs;
            add(Self {
                source: S::Dead,
                died: self.died || !gone,
                ..self
            });
        }
        if !self.forgot && matches!(self.source, S::Left | S::Failed) {
            let source = if self.source == S::Failed {
                S::Runs
            } else {
                S::Left
            };
            add(Self {
                source,
                forgot: true,
                ..self
            });
        }
        match (self.source, self.destination) {
            (S::Sends, D::Waits) if self.copies => add(Self {
                destination: D::Whole,
                ..self
            }),
            (S::Sends, D::Waits) => add(Self {
                destination: D::Runs,
                ..self
            }),
            // The word that it has come, heard; with shared disks the lock says it too.
            (S::Sends, D::Whole | D::Runs) => add(Self {
                source: S::Left,
                ..self
            }),
            _ => {}
        }
        // It fails, or the word is lost. With shared disks the lock keeps a source from going on that was left.
        if self.source == S::Sends && (self.copies || self.destination != D::Runs) {
            add(Self {
                source: S::Failed,
                ..self
            });
        }
        match self.destination {
            // A lease ends.
            D::Waits => add(Self {
                destination: D::Nothing,
                ..self
            }),
            D::Whole => add(Self {
                destination: D::Dead,
                died: true,
                ..self
            }),
            D::Runs => add(Self {
                destination: D::Dead,
                died: true,
                ..self
            }),
            D::Nothing | D::Dead => {}
        }
        all
    }

    fn sides(self, hears: (bool, bool), late: bool) -> Sides {
        use {Destination as D, Source as S};
        let crashed = PowerState::Crashed(CrashCause::Hypervisor);
        let silent = || Error::internal("no answer", "x");
        let source = LookedAt {
            power: match self.source {
                S::Runs | S::Failed => PowerState::Running,
                S::Sends => PowerState::MigratingOut,
                S::Left => PowerState::Off,
                S::Dead => crashed,
            },
            sent: match self.source {
                _ if self.forgot => None,
                S::Sends => Some(Sent::UnderWay),
                S::Failed => Some(Sent::Failed(silent())),
                S::Left => Some(Sent::Done {
                    took_ms: 1,
                    downtime_ms: 1,
                    bytes: 1,
                }),
                S::Runs | S::Dead => None,
            },
            ..LookedAt::default()
        };
        let waits = matches!(self.destination, D::Waits | D::Whole);
        let destination = LookedAt {
            power: match self.destination {
                D::Nothing => PowerState::Off,
                D::Waits | D::Whole => PowerState::MigratingIn,
                D::Runs => PowerState::Running,
                D::Dead => crashed,
            },
            landing: waits.then(|| Landing::shared(([10, 0, 0, 2], 1).into())),
            ..LookedAt::default()
        };
        Sides {
            live: true,
            copies: self.copies,
            switched: self.switched,
            source: if hears.0 { Ok(source) } else { Err(silent()) },
            destination: if hears.1 { Ok(destination) } else { Err(silent()) },
            prepared: true,
            waited: if late { MOVE_COPY_MAX } else { Duration::ZERO },
            silent: if late { SILENCE_MAX } else { Duration::ZERO },
        }
    }

    /// A mover looks and decides; or one dies before it acts, and another begins anew.
    fn looks(self) -> Vec<Self> {
        if self.over {
            return Vec::new();
        }
        let mut all = vec![Self { act: None, ..self }];
        for (a, b, late) in [false, true].into_iter().flat_map(|a| {
            [false, true]
                .into_iter()
                .flat_map(move |b| [false, true].map(move |late| (a, b, late)))
        }) {
            let sides = self.sides((a, b), late);
            let act = match next(&sides) {
                Next::Wait => None,
                Next::Receive => Some(Act::Receive),
                Next::Send(_) => Some(Act::Send),
                Next::Finish => Some(Act::Finish),
                Next::Switch => Some(Act::Switch),
                Next::Leave => Some(Act::Leave),
                Next::GiveUp(_) => Some(Act::GiveUp { stays: sides.stays() }),
            };
            all.push(Self { act, ..self });
        }
        all
    }

    /// It acts on what it saw, on what is so now.
    fn acts(self) -> Vec<Self> {
        use {Destination as D, Source as S};
        let Some(act) = self.act else { return Vec::new() };
        let done = Self { act: None, ..self };
        let given_up = |stays: bool| match self.destination {
            // Refused: it has arrived.
            D::Runs => vec![done],
            D::Waits | D::Whole => vec![
                Self {
                    destination: D::Nothing,
                    over: true,
                    ..done
                },
                // The destination did not answer: it is left alone only where the source has it for certain.
                Self { over: stays, ..done },
            ],
            D::Nothing | D::Dead => vec![Self { over: true, ..done }],
        };
        match (act, self.source, self.destination) {
            (Act::Receive, _, D::Nothing) => vec![Self {
                destination: D::Waits,
                ..done
            }],
            // Once for each generation.
            (Act::Send, S::Runs, _) if !self.forgot => vec![Self {
                source: S::Sends,
                ..done
            }],
            (Act::Finish, _, D::Whole) => vec![Self {
                destination: D::Runs,
                ..done
            }],
            // It has not come whole.
            (Act::Finish, _, D::Waits) => given_up(false),
            (Act::Switch, ..) => vec![Self {
                switched: true,
                ..done
            }],
            (Act::Leave, ..) => vec![Self { over: true, ..done }],
            (Act::GiveUp { stays }, ..) => given_up(stays),
            (Act::Receive | Act::Send | Act::Finish, ..) => vec![done],
        }
    }

    fn is_sound(self) -> bool {
        use {Destination as D, Source as S};
        let here = match self.source {
            S::Runs | S::Failed => true,
            // Halted once all of it has gone.
            S::Sends => !matches!(self.destination, D::Whole | D::Runs),
            S::Left | S::Dead => false,
        };
        let there = self.destination == D::Runs;
        let exactly_one = !self.over || self.died || here != there;
        !(here && there) && exactly_one
    }
}

#[test]
fn in_no_course_do_two_copies_run_and_a_move_that_is_over_has_left_one() {
    for copies in [false, true] {
        let mut seen = HashSet::from([World::new(copies)]);
        let mut open: Vec<World> = seen.iter().copied().collect();
        while let Some(world) = open.pop() {
            assert!(world.is_sound(), "{world:?}");
            let followers = [world.happens(), world.looks(), world.acts()].concat();
            open.extend(followers.into_iter().filter(|follower| seen.insert(*follower)));
        }
        let ended = |there| seen.iter().any(|w| w.over && w.switched == there && !w.died);
        assert!(ended(true) && ended(false), "moves are made, and are given up");
        assert!(seen.len() > 100, "{}", seen.len());
    }
}
