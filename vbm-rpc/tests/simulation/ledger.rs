//! What really happened, written down outside the bus, and the sentences that must be true of it.

use crate::flows::FlowCounts;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};
use tokio::time::Instant;
use vbm_rpc::Fate;

/// How much later than its deadline a call may end: the bus gives its transport 50 ms to say more.
pub(crate) const END_SLACK: Duration = Duration::from_millis(60);
/// How much later than its deadline a handler may begin: the clock of the wire ticks in milliseconds.
const START_SLACK: Duration = Duration::from_millis(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Call,
    Cast,
    Broadcast,
    /// A call whose caller drops it before its end.
    Dropped,
    /// Its end is that of its ticket.
    Submit,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Done(u64),
    Refused,
    NoRoute,
    Overloaded,
    Expired,
    Lost,
    Cancelled,
    /// The caller did not want to know.
    Dropped,
}

impl From<Fate> for End {
    fn from(fate: Fate) -> Self {
        match fate {
            // A caller that was killed, and whose next life has its path already.
            Fate::Refused(error) if error.what().contains("served by another process") => Self::Cancelled,
            Fate::Refused(_) => Self::Refused,
            Fate::NoRoute { .. } => Self::NoRoute,
            Fate::Overloaded { .. } => Self::Overloaded,
            Fate::Expired { .. } => Self::Expired,
            Fate::Lost { .. } => Self::Lost,
            Fate::Cancelled => Self::Cancelled,
            other => panic!("a fate that this ledger does not know: {other:?}"),
        }
    }
}

pub(crate) struct Call {
    pub(crate) verb: Verb,
    /// The one node it goes to; nothing for any and all.
    pub(crate) node: Option<&'static str>,
    pub(crate) key: u64,
    pub(crate) issued: Instant,
    pub(crate) deadline: Duration,
    pub(crate) ends: Vec<(Instant, End)>,
}

pub(crate) struct Run {
    pub(crate) call: usize,
    pub(crate) key: u64,
    pub(crate) at: &'static str,
    pub(crate) boot: String,
    pub(crate) when: Instant,
}

/// Append-only but for the ends of calls.
#[derive(Default)]
pub(crate) struct Ledger {
    pub(crate) calls: Vec<Call>,
    pub(crate) runs: Vec<Run>,
    /// The effects, by key: a worker looks here before it acts, as the documentation asks of handlers.
    pub(crate) effects: BTreeSet<u64>,
    pub(crate) wrong: Vec<String>,
}

/// A key whose request is refused, and has no effect.
pub(crate) const fn is_refused(key: u64) -> bool {
    key % 19 == 7
}

/// What the plan of a seed may break by itself.
#[derive(Clone, Copy)]
pub(crate) struct Excuses {
    /// The transport loses requests that it has taken.
    pub(crate) requests_are_lost: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) calls: usize,
    pub(crate) done: usize,
    pub(crate) refused: usize,
    pub(crate) no_route: usize,
    pub(crate) overloaded: usize,
    pub(crate) expired: usize,
    pub(crate) lost: usize,
    pub(crate) cancelled: usize,
    pub(crate) dropped: usize,
    pub(crate) runs: usize,
    pub(crate) effects: usize,
    /// Keys that ran in more than one life: the window of at-least-once.
    pub(crate) ran_again_in_another_life: usize,
    pub(crate) troubles: usize,
    pub(crate) flows: FlowCounts,
}

impl Counts {
    pub(crate) fn add(&mut self, other: &Self) {
        self.calls += other.calls;
        self.done += other.done;
        self.refused += other.refused;
        self.no_route += other.no_route;
        self.overloaded += other.overloaded;
        self.expired += other.expired;
        self.lost += other.lost;
        self.cancelled += other.cancelled;
        self.dropped += other.dropped;
        self.runs += other.runs;
        self.effects += other.effects;
        self.ran_again_in_another_life += other.ran_again_in_another_life;
        self.troubles += other.troubles;
        self.flows.streams += other.flows.streams;
        self.flows.items += other.flows.items;
        self.flows.ended_well += other.flows.ended_well;
        self.flows.tickets += other.flows.tickets;
        self.flows.callbacks += other.flows.callbacks;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} calls under {} troubles: {} done, {} refused, {} no route, {} overloaded, {} expired, {} lost, \
             {} cancelled, {} dropped by their callers; {} runs, {} effects, {} keys ran again in another life",
            self.calls,
            self.troubles,
            self.done,
            self.refused,
            self.no_route,
            self.overloaded,
            self.expired,
            self.lost,
            self.cancelled,
            self.dropped,
            self.runs,
            self.effects,
            self.ran_again_in_another_life,
        )?;
        let flows = &self.flows;
        match flows.streams + flows.tickets {
            0 => Ok(()),
            _ => write!(
                f,
                "; {} streams of {} items, {} to their end; {} tickets, {} callbacks",
                flows.streams, flows.items, flows.ended_well, flows.tickets, flows.callbacks
            ),
        }
    }
}

impl Ledger {
    pub(crate) fn issue(&mut self, call: Call) -> usize {
        self.calls.push(call);
        self.calls.len() - 1
    }

    pub(crate) fn end(&mut self, call: usize, end: End) {
        self.calls[call].ends.push((Instant::now(), end));
    }

    pub(crate) fn run(&mut self, run: Run) {
        if !is_refused(run.key) {
            self.effects.insert(run.key);
        }
        self.runs.push(run);
    }

    /// Every sentence about the bus that is not true of this ledger.
    pub(crate) fn judge(&self, excuses: Excuses) -> Vec<String> {
        let mut wrong = self.wrong.clone();
        let mut runs_of: BTreeMap<usize, usize> = BTreeMap::new();
        for run in &self.runs {
            *runs_of.entry(run.call).or_default() += 1;
        }
        for (n, call) in self.calls.iter().enumerate() {
            let runs = runs_of.get(&n).copied().unwrap_or(0);
            wrong.extend(self.judge_call(n, call, runs, excuses));
        }
        wrong.extend(self.judge_runs());
        wrong
    }

    fn judge_call(&self, n: usize, call: &Call, runs: usize, excuses: Excuses) -> Vec<String> {
        let mut wrong = Vec::new();
        let what = format!(
            "call {n} ({:?} of key {} to {:?})",
            call.verb, call.key, call.node
        );
        let [(at, end)] = &call.ends[..] else {
            return vec![format!("{what} has {} fates", call.ends.len())];
        };
        let took = at.duration_since(call.issued);
        if took > call.deadline + END_SLACK && call.verb != Verb::Submit {
            wrong.push(format!(
                "{what} ended after {took:?}; its deadline is {:?}",
                call.deadline
            ));
        }
        match end {
            End::Done(key) if *key != call.key => wrong.push(format!("{what} got the reply of key {key}")),
            End::Done(_) if call.verb != Verb::Cast && !self.effects.contains(&call.key) => {
                wrong.push(format!("{what} is done and there is no effect"));
            }
            End::Done(_) if call.verb == Verb::Cast && runs == 0 && !excuses.requests_are_lost => {
                wrong.push(format!("{what} was taken by the bus and never ran"));
            }
            End::Refused if !is_refused(call.key) => wrong.push(format!("{what} was refused by nobody")),
            End::NoRoute | End::Overloaded | End::Expired if runs > 0 && call.verb != Verb::Broadcast => {
                wrong.push(format!("{what} ended as {end:?} and ran {runs} times"));
            }
            _ => {}
        }
        wrong
    }

    fn judge_runs(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut lives: BTreeMap<(u64, &str, &str), usize> = BTreeMap::new();
        for run in &self.runs {
            let call = &self.calls[run.call];
            if call.node.is_some_and(|node| node != run.at) {
                wrong.push(format!("call {} to {:?} ran at {}", run.call, call.node, run.at));
            }
            let waited = run.when.duration_since(call.issued);
            if waited > call.deadline + START_SLACK {
                wrong.push(format!(
                    "call {} began at {} after {waited:?}, when its deadline of {:?} had passed",
                    run.call, run.at, call.deadline
                ));
            }
            if !is_refused(run.key) {
                *lives.entry((run.key, run.at, &run.boot)).or_default() += 1;
            }
        }
        for ((key, at, boot), count) in lives {
            if count > 1 {
                wrong.push(format!(
                    "key {key} ran {count} times in one life of {at} ({boot})"
                ));
            }
        }
        wrong
    }

    pub(crate) fn counts(&self) -> Counts {
        let mut counts = Counts {
            calls: self.calls.len(),
            runs: self.runs.len(),
            effects: self.effects.len(),
            ..Counts::default()
        };
        for (_, end) in self.calls.iter().flat_map(|call| &call.ends) {
            *match end {
                End::Done(_) => &mut counts.done,
                End::Refused => &mut counts.refused,
                End::NoRoute => &mut counts.no_route,
                End::Overloaded => &mut counts.overloaded,
                End::Expired => &mut counts.expired,
                End::Lost => &mut counts.lost,
                End::Cancelled => &mut counts.cancelled,
                End::Dropped => &mut counts.dropped,
            } += 1;
        }
        let mut lives: BTreeMap<u64, BTreeSet<(&str, &str)>> = BTreeMap::new();
        for run in &self.runs {
            if self.calls[run.call].verb != Verb::Broadcast && !is_refused(run.key) {
                lives.entry(run.key).or_default().insert((run.at, &run.boot));
            }
        }
        counts.ran_again_in_another_life = lives.values().filter(|lives| lives.len() > 1).count();
        counts
    }
}
