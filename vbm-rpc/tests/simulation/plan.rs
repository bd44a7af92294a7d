//! What goes wrong, and when: all of it decided by the seed before the first call.

use crate::common::dice::Dice;
use std::time::Duration;
use vbm_core::NodePath;
use vbm_rpc::memory::Faults;

/// How long the load and the troubles last.
pub(crate) const SPAN: Duration = Duration::from_secs(20);
/// The longest that one trouble lasts: longer than a presence.
const TROUBLE_MAX: Duration = Duration::from_secs(12);
const TROUBLES_MAX: u64 = 7;

#[derive(Clone, Debug)]
pub(crate) enum Trouble {
    Partition(NodePath, NodePath),
    Heal,
    Pause(NodePath),
    Resume(NodePath),
    Outage,
    Restore,
    LoseMemory,
    /// As SIGKILL of a worker.
    KillWorker(usize),
    /// As SIGTERM.
    StopWorker(usize),
    StartWorker(usize),
    /// As SIGKILL of a caller, which starts again at once.
    KillCaller(usize),
}

pub(crate) struct Plan {
    pub(crate) dice: Faults,
    /// In order of time.
    pub(crate) troubles: Vec<(Duration, Trouble)>,
    /// How many troubles there are, their ends not counted.
    pub(crate) count: usize,
    pub(crate) requests_are_lost: bool,
}

impl Plan {
    pub(crate) fn of(seed: u64, workers: &[&str], callers: &[&str]) -> Self {
        let mut dice = Dice::new(seed, 1);
        let mut some = |max: u64| match dice.one_in(2) {
            true => u16::try_from(dice.below(max)).unwrap_or(0),
            false => 0,
        };
        let faults = Faults {
            seed,
            drop_per_mille: some(100),
            duplicate_per_mille: some(250),
            reorder_per_mille: some(300),
            delay_max: Duration::from_millis(some(300).into()),
        };
        let count = dice.below(TROUBLES_MAX + 1);
        let mut troubles = Vec::new();
        for _ in 0..count {
            let begin = dice.span(Duration::ZERO, SPAN);
            // Most troubles are short.
            let longest = if dice.one_in(3) {
                TROUBLE_MAX
            } else {
                TROUBLE_MAX / 8
            };
            let end = begin + dice.span(Duration::from_millis(10), longest);
            troubles.extend(one(&mut dice, begin, end, workers, callers));
        }
        troubles.sort_by_key(|(at, _)| *at);
        let forgets = troubles
            .iter()
            .any(|(_, trouble)| matches!(trouble, Trouble::LoseMemory));
        Self {
            requests_are_lost: faults.drop_per_mille > 0 || forgets,
            dice: faults,
            troubles,
            count: usize::try_from(count).unwrap_or(0),
        }
    }
}

fn one(
    dice: &mut Dice,
    begin: Duration,
    end: Duration,
    workers: &[&str],
    callers: &[&str],
) -> Vec<(Duration, Trouble)> {
    let path = |text: &str| text.parse::<NodePath>().unwrap();
    let everybody: Vec<&str> = workers
        .iter()
        .chain(callers)
        .copied()
        .chain(["eu", "eu/r1", "c"])
        .collect();
    let index = |dice: &mut Dice, of: &[&str]| usize::try_from(dice.below(of.len() as u64)).unwrap_or(0);
    match dice.below(8) {
        0 | 1 => {
            let (a, b) = (path(dice.pick(&everybody)), path(dice.pick(&everybody)));
            let mut cuts = vec![(begin, Trouble::Partition(a.clone(), b.clone()))];
            if dice.one_in(2) {
                cuts.push((begin, Trouble::Partition(b, a)));
            }
            cuts.push((end, Trouble::Heal));
            cuts
        }
        2 => {
            let who = path(dice.pick(&everybody));
            vec![(begin, Trouble::Pause(who.clone())), (end, Trouble::Resume(who))]
        }
        3 => vec![
            (begin, Trouble::Outage),
            (end.min(begin + TROUBLE_MAX / 4), Trouble::Restore),
        ],
        4 => vec![(begin, Trouble::LoseMemory)],
        5 => {
            let who = index(dice, workers);
            vec![
                (begin, Trouble::KillWorker(who)),
                (end, Trouble::StartWorker(who)),
            ]
        }
        6 => {
            let who = index(dice, workers);
            vec![
                (begin, Trouble::StopWorker(who)),
                (end, Trouble::StartWorker(who)),
            ]
        }
        _ => vec![(begin, Trouble::KillCaller(index(dice, callers)))],
    }
}
