//! The decisions alone, on a clock made of numbers, and many candidates at once on a lease made of numbers.

use super::*;
use proptest::prelude::*;

const LEASE: Duration = Duration::from_secs(5);
/// What a leader has of its lease: the margin is a fifth.
const TERM: Duration = Duration::from_secs(4);

fn machine(now: Instant) -> Machine {
    Machine::new(CampaignOptions::default().lease(LEASE), Epoch(0), now)
}

fn mine(epoch: u64, asked: Instant) -> Heard {
    Heard::Lease {
        asked,
        answer: Some(LeaseAnswer::Mine(Epoch(epoch))),
    }
}

fn held(epoch: u64, left: Duration, asked: Instant) -> Heard {
    let answer = LeaseAnswer::Held {
        holder: "other".into(),
        epoch: Epoch(epoch),
        left,
    };
    Heard::Lease {
        asked,
        answer: Some(answer),
    }
}

/// One that leads under epoch 3 since `now`.
fn leader(now: Instant) -> Machine {
    let mut machine = machine(now);
    machine.hear(mine(3, now), now);
    machine.hear(Heard::Seen(Some(Epoch(2))), now);
    assert_eq!(machine.leading(now).map(|hold| hold.epoch), Some(Epoch(3)));
    machine
}

#[tokio::test]
async fn a_taken_lease_is_no_leadership_until_the_members_were_asked() {
    let now = Instant::now();
    let mut machine = machine(now);
    assert_eq!(
        machine.next(now),
        Step::Take {
            floor: Epoch(0),
            blank: false
        }
    );
    machine.hear(mine(3, now), now);
    assert_eq!(machine.leading(now), None);
    let by = now + TERM;
    assert_eq!(machine.next(now), Step::Propose { epoch: Epoch(3), by });
    machine.hear(Heard::Seen(Some(Epoch(2))), now);
    let hold = machine.leading(now).unwrap();
    assert_eq!((hold.epoch, hold.valid_until), (Epoch(3), by));
}

#[tokio::test]
async fn an_epoch_that_a_member_saw_is_raised_above_it() {
    let now = Instant::now();
    // Equal is not enough: somebody else may have led under it.
    for seen in [3, 9] {
        let mut machine = machine(now);
        machine.hear(mine(3, now), now);
        machine.hear(Heard::Seen(Some(Epoch(seen))), now);
        assert_eq!(machine.leading(now), None);
        let Step::Raise { floor, .. } = machine.next(now) else {
            panic!("it is raised");
        };
        assert_eq!(floor, Epoch(seen));
        machine.hear(mine(seen + 1, now), now);
        machine.hear(Heard::Seen(Some(Epoch(seen))), now);
        assert_eq!(machine.leading(now).unwrap().epoch, Epoch(seen + 1));
    }
}

#[tokio::test]
async fn a_leader_renews_at_a_third_and_counts_from_when_it_asked() {
    let now = Instant::now();
    let mut machine = leader(now);
    let third = now + LEASE / 3;
    assert_eq!(machine.next(now), Step::Wait(third));
    assert!(matches!(machine.next(third), Step::Renew { epoch: Epoch(3), .. }));
    // The answer took a second; that second is not led for.
    let heard = third + Duration::from_secs(1);
    machine.hear(mine(3, third), heard);
    assert_eq!(machine.leading(heard).unwrap().valid_until, third + TERM);
}

#[tokio::test]
async fn a_leader_that_is_not_answered_tries_on_and_ends_before_its_lease() {
    let now = Instant::now();
    let mut machine = leader(now);
    let mut at = now;
    let mut tries = 0;
    while let Some(hold) = machine.leading(at) {
        match machine.next(at) {
            Step::Wait(until) => at = until,
            Step::Renew { by, .. } => {
                assert!(by <= hold.valid_until);
                tries += 1;
                machine.hear(
                    Heard::Lease {
                        asked: at,
                        answer: None,
                    },
                    at,
                );
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(tries > 3, "{tries} tries");
    assert_eq!(at, now + TERM, "a margin before the lease ends at {LEASE:?}");
    assert_eq!(machine.next(at), Step::Release);
}

#[tokio::test]
async fn a_leader_whose_lease_is_gone_leads_no_more_at_once() {
    let now = Instant::now();
    for answer in [
        LeaseAnswer::Blank,
        LeaseAnswer::Free(Epoch(3)),
        LeaseAnswer::Mine(Epoch(4)),
    ] {
        let mut machine = leader(now);
        let answer = Some(answer);
        machine.hear(Heard::Lease { asked: now, answer }, now);
        assert_eq!(machine.leading(now), None);
    }
    let mut machine = leader(now);
    machine.hear(held(8, LEASE, now), now);
    assert_eq!(machine.leading(now), None);
    assert_eq!(machine.highest, Epoch(8), "what it hears of, it goes above");
}

#[tokio::test]
async fn after_a_loss_of_memory_nobody_takes_over_for_one_lease() {
    let now = Instant::now();
    let mut machine = machine(now);
    machine.hear(Heard::MemoryLost, now);
    assert_eq!(machine.next(now), Step::Wait(now + LEASE));
    assert!(matches!(machine.next(now + LEASE), Step::Take { .. }));
}

#[tokio::test]
async fn where_nothing_was_ever_kept_it_waits_for_one_lease_too() {
    let now = Instant::now();
    let mut machine = machine(now);
    let blank = |asked| Heard::Lease {
        asked,
        answer: Some(LeaseAnswer::Blank),
    };
    machine.hear(blank(now), now);
    let almost = now + LEASE - Duration::from_millis(1);
    assert!(matches!(machine.next(almost), Step::Take { blank: false, .. }));
    machine.hear(blank(almost), almost);
    assert!(matches!(
        machine.next(now + LEASE + LEASE / 10),
        Step::Take { blank: true, .. }
    ));
}

#[tokio::test]
async fn where_nothing_was_ever_kept_a_short_lease_waits_for_who_remembers() {
    let now = Instant::now();
    let options = CampaignOptions::default().lease(Duration::from_secs(1));
    let mut machine = Machine::new(options, Epoch(0), now);
    machine.hear(
        Heard::Lease {
            asked: now,
            answer: Some(LeaseAnswer::Blank),
        },
        now,
    );
    let almost = now + WITNESSES_BACK - Duration::from_millis(1);
    assert!(matches!(machine.next(almost), Step::Take { blank: false, .. }));
    assert!(matches!(
        machine.next(now + WITNESSES_BACK),
        Step::Take { blank: true, .. }
    ));
}

#[tokio::test]
async fn who_stands_down_lets_the_others_first_and_goes_above() {
    let now = Instant::now();
    let mut machine = leader(now);
    machine.hear(Heard::StandDown, now);
    assert_eq!(machine.leading(now), None);
    assert_eq!(machine.next(now), Step::Release);
    machine.hear(Heard::Released, now);
    assert!(matches!(machine.next(now), Step::Wait(_)));
    let later = now + Duration::from_secs(2);
    assert_eq!(
        machine.next(later),
        Step::Take {
            floor: Epoch(3),
            blank: false
        }
    );
}

/// One Redis, one member who remembers, and some candidates, of whom each does one step when its turn comes.
struct World {
    now: Instant,
    held: Option<(usize, u64, Instant)>,
    kept: Option<u64>,
    seen: u64,
    candidates: Vec<Machine>,
}

impl World {
    fn lease_free(&mut self) -> bool {
        self.held = self.held.filter(|(_, _, until)| self.now < *until);
        self.held.is_none()
    }

    fn hold(&mut self, who: usize, floor: Epoch) -> LeaseAnswer {
        let epoch = self.kept.unwrap_or(0).max(floor.0) + 1;
        self.kept = Some(epoch);
        self.held = Some((who, epoch, self.now + LEASE));
        LeaseAnswer::Mine(Epoch(epoch))
    }

    fn answer(&mut self, who: usize, step: &Step) -> LeaseAnswer {
        let free = self.lease_free();
        match (step, self.held) {
            (Step::Take { floor, blank }, _) if free && (self.kept.is_some() || *blank) => {
                self.hold(who, *floor)
            }
            (Step::Take { .. }, Some((holder, epoch, _))) if holder == who => {
                self.held = Some((who, epoch, self.now + LEASE));
                LeaseAnswer::Mine(Epoch(epoch))
            }
            (Step::Raise { floor, .. }, Some((holder, ..))) if holder == who => self.hold(who, *floor),
            (Step::Renew { epoch, .. }, Some((holder, held, _))) if holder == who && held == epoch.0 => {
                self.held = Some((who, held, self.now + LEASE));
                LeaseAnswer::Mine(*epoch)
            }
            (_, Some((_, epoch, until))) => LeaseAnswer::Held {
                holder: String::new(),
                epoch: Epoch(epoch),
                left: until - self.now,
            },
            (_, None) => self
                .kept
                .map_or(LeaseAnswer::Blank, |epoch| LeaseAnswer::Free(Epoch(epoch))),
        }
    }

    /// One step of one candidate. `deaf`: the question is answered, but the answer is lost.
    fn step(&mut self, who: usize, deaf: bool) {
        let now = self.now;
        let step = self.candidates[who].next(now);
        let heard = match step {
            Step::Wait(_) => return,
            Step::Propose { epoch, .. } => {
                let before = self.seen;
                self.seen = before.max(epoch.0);
                Heard::Seen((!deaf).then_some(Epoch(before)))
            }
            Step::Release => {
                self.held = self.held.filter(|(holder, ..)| *holder != who);
                Heard::Released
            }
            ref asked => {
                let answer = self.answer(who, asked);
                Heard::Lease {
                    asked: now,
                    answer: (!deaf).then_some(answer),
                }
            }
        };
        self.candidates[who].hear(heard, now);
    }

    fn leaders(&self) -> Vec<Epoch> {
        let leading = |machine: &Machine| machine.leading(self.now).map(|hold| hold.epoch);
        self.candidates.iter().filter_map(leading).collect()
    }
}

#[derive(Clone, Debug)]
enum Turn {
    Step {
        who: usize,
        deaf: bool,
    },
    Pass {
        ms: u64,
    },
    /// Redis forgets everything, or its newest epochs.
    Forget {
        all: bool,
    },
    StandDown {
        who: usize,
    },
}

fn turns(forgets: bool) -> impl Strategy<Value = Vec<Turn>> {
    let forget_weight = u32::from(forgets);
    let turn = prop_oneof![
        20 => (0usize..3, proptest::bool::weighted(0.2)).prop_map(|(who, deaf)| Turn::Step { who, deaf }),
        10 => (1u64..1_500).prop_map(|ms| Turn::Pass { ms }),
        1 => (0usize..3).prop_map(|who| Turn::StandDown { who }),
        forget_weight => any::<bool>().prop_map(|all| Turn::Forget { all }),
    ];
    proptest::collection::vec(turn, 1..400)
}

/// Plays a story; gives how often somebody began to lead, having checked that epochs only grew.
fn play(turns: Vec<Turn>, one_at_a_time: bool) -> Result<usize, TestCaseError> {
    let now = Instant::now();
    let mut world = World {
        now,
        held: None,
        kept: Some(0),
        seen: 0,
        candidates: (0..3).map(|_| machine(now)).collect(),
    };
    let (mut last, mut terms) = (Epoch(0), 0);
    for turn in turns {
        match turn {
            Turn::Step { who, deaf } => world.step(who, deaf),
            Turn::Pass { ms } => world.now += Duration::from_millis(ms),
            Turn::StandDown { who } => world.candidates[who].hear(Heard::StandDown, world.now),
            Turn::Forget { all } => {
                world.held = None;
                world.kept = if all {
                    None
                } else {
                    world.kept.map(|epoch| epoch.saturating_sub(2))
                };
                let now = world.now;
                for candidate in &mut world.candidates {
                    candidate.hear(Heard::MemoryLost, now);
                }
            }
        }
        let leaders = world.leaders();
        if one_at_a_time {
            prop_assert!(leaders.len() <= 1, "{leaders:?}");
        }
        for epoch in leaders {
            if epoch > last {
                terms += 1;
                last = epoch;
            }
            prop_assert!(
                epoch.0 <= world.seen,
                "nobody leads under an epoch that no member heard of"
            );
        }
        let mut epochs: Vec<_> = world.leaders();
        epochs.sort();
        epochs.dedup();
        prop_assert_eq!(epochs.len(), world.leaders().len(), "no epoch is led under twice");
    }
    Ok(terms)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn one_leads_at_a_time_and_epochs_grow(turns in turns(false)) {
        play(turns, true)?;
    }

    #[test]
    fn epochs_grow_and_one_leads_also_when_redis_forgets(turns in turns(true)) {
        play(turns, true)?;
    }
}

#[tokio::test]
async fn the_story_elects_somebody() {
    let mut turns = Vec::new();
    for round in 0..600 {
        turns.push(Turn::Step {
            who: round % 3,
            deaf: false,
        });
        turns.push(Turn::Pass { ms: 50 });
        if round == 100 {
            turns.push(Turn::Forget { all: true });
        }
    }
    let terms = play(turns, true).unwrap();
    assert!(terms >= 2, "{terms} terms");
}
