//! The files of all processes, read when everything is over, and the sentences that must be true of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::Path,
    time::Duration,
};

/// How much later than its deadline a call may end, on a machine with other work.
const END_SLACK: Duration = Duration::from_secs(2);
/// How much later than its caller's deadline a handler may begin: two clocks and a heartbeat's estimate of a third.
const START_SLACK: Duration = Duration::from_millis(500);

/// What the test knows about its processes.
#[derive(Default)]
pub(crate) struct Known {
    /// By boot id: killed before they had ended.
    pub(crate) killed: BTreeSet<String>,
    /// By boot id: how long they were stopped in all.
    pub(crate) stopped: BTreeMap<String, Duration>,
    /// The most that a stall or a stop of Redis can have made clocks uncertain: Redis' time is known within half of a round trip
    /// on either side, and deadlines are counted by it.
    pub(crate) clocks_off: Duration,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) fates: BTreeMap<String, usize>,
    pub(crate) calls: usize,
    pub(crate) tries: usize,
    pub(crate) without_caller: usize,
    pub(crate) runs: usize,
    pub(crate) effects: usize,
    /// Keys that ran in more than one life: the window of at-least-once.
    pub(crate) window: usize,
}

impl Counts {
    pub(crate) fn add(&mut self, other: &Self) {
        for (fate, count) in &other.fates {
            *self.fates.entry(fate.clone()).or_default() += count;
        }
        self.calls += other.calls;
        self.tries += other.tries;
        self.without_caller += other.without_caller;
        self.runs += other.runs;
        self.effects += other.effects;
        self.window += other.window;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fates: Vec<_> = self.fates.iter().map(|(fate, n)| format!("{n} {fate}")).collect();
        write!(
            f,
            "{} calls in {} tries ({}; {} tries whose caller was killed); {} runs, {} effects, {} keys in the \
             at-least-once window",
            self.calls,
            self.tries,
            fates.join(", "),
            self.without_caller,
            self.runs,
            self.effects,
            self.window
        )
    }
}

struct Try {
    boot: String,
    key: String,
    deadline_ms: u64,
    at_ms: u64,
    ends: Vec<(String, u64)>,
}

#[derive(Default)]
pub(crate) struct Ledger {
    tries: BTreeMap<String, Try>,
    /// Tag, key, boot, when.
    runs: Vec<(String, String, String, u64)>,
    effects: BTreeSet<String>,
    ended: BTreeSet<String>,
}

impl Ledger {
    pub(crate) fn read(dir: &Path) -> Self {
        let mut ledger = Self::default();
        for file in std::fs::read_dir(dir).unwrap() {
            let file = file.unwrap();
            let name = file.file_name().into_string().unwrap();
            let text = |path: &Path| std::fs::read_to_string(path).unwrap();
            let boot = |prefix: &str| Some(name.strip_prefix(prefix)?.strip_suffix(".log")?.to_owned());
            if let Some(boot) = boot("caller-") {
                ledger.read_caller(&boot, &text(&file.path()));
            } else if let Some(boot) = boot("worker-") {
                ledger.read_worker(&boot, &text(&file.path()));
            }
        }
        let effects = std::fs::read_dir(dir.join("effects")).unwrap();
        ledger.effects = effects
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect();
        ledger
    }

    fn read_caller(&mut self, boot: &str, text: &str) {
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["B", tag, key, deadline, at] => {
                    let call = Try {
                        boot: boot.to_owned(),
                        key: key.to_owned(),
                        deadline_ms: deadline.parse().unwrap(),
                        at_ms: at.parse().unwrap(),
                        ends: Vec::new(),
                    };
                    assert!(self.tries.insert(tag.to_owned(), call).is_none(), "{tag} twice");
                }
                ["E", tag, fate, took] => {
                    let call = self.tries.get_mut(tag).expect("a begin before its end");
                    call.ends.push((fate.to_owned(), took.parse().unwrap()));
                }
                ["END"] => {
                    self.ended.insert(boot.to_owned());
                }
                _ => panic!("no line of a caller: {line}"),
            }
        }
    }

    fn read_worker(&mut self, boot: &str, text: &str) {
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let ["R", tag, key, at] = words[..] else {
                panic!("no line of a worker: {line}");
            };
            let run = (
                tag.to_owned(),
                key.to_owned(),
                boot.to_owned(),
                at.parse().unwrap(),
            );
            self.runs.push(run);
        }
    }

    /// Every sentence that is not true.
    pub(crate) fn judge(&self, known: &Known) -> Vec<String> {
        let ran: BTreeSet<&str> = self.runs.iter().map(|(tag, ..)| tag.as_str()).collect();
        let mut wrong = Vec::new();
        for (tag, call) in &self.tries {
            let killed = known.killed.contains(&call.boot);
            let [(fate, took)] = &call.ends[..] else {
                if call.ends.len() > 1 || !killed {
                    wrong.push(format!("{tag} has {} fates", call.ends.len()));
                }
                continue;
            };
            let stopped = known.stopped.get(&call.boot).copied().unwrap_or_default();
            let longest = Duration::from_millis(call.deadline_ms) + END_SLACK + stopped;
            if Duration::from_millis(*took) > longest {
                wrong.push(format!(
                    "{tag} ended ({fate}) after {took} ms; its deadline is {} ms",
                    call.deadline_ms
                ));
            }
            match fate.as_str() {
                "done" if !self.effects.contains(&call.key) => {
                    wrong.push(format!("{tag} is done and there is no effect"));
                }
                "taken" if !self.effects.contains(&call.key) => {
                    wrong.push(format!(
                        "{tag} is a cast that a replica had confirmed, and there is no effect"
                    ));
                }
                "no-route" | "overloaded" | "expired" if ran.contains(tag.as_str()) => {
                    wrong.push(format!("{tag} ended as {fate} after {took} ms and ran"));
                }
                "refused" | "wrong-reply" | "unknown" => wrong.push(format!("{tag} ended as {fate}")),
                _ => {}
            }
        }
        wrong.extend(self.judge_runs(known));
        wrong
    }

    fn judge_runs(&self, known: &Known) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut lives: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for (tag, key, boot, at) in &self.runs {
            *lives.entry((key, boot)).or_default() += 1;
            let Some(call) = self.tries.get(tag) else {
                wrong.push(format!("{tag} ran in {boot} and nobody made it"));
                continue;
            };
            let stopped = known.stopped.contains_key(boot) || known.stopped.contains_key(&call.boot);
            let latest = call.at_ms
                + call.deadline_ms
                + u64::try_from((START_SLACK + known.clocks_off).as_millis()).unwrap();
            if *at > latest && !stopped {
                wrong.push(format!(
                    "{tag} began in {boot} {} ms after its deadline",
                    at - latest
                ));
            }
        }
        for ((key, boot), count) in lives {
            if count > 1 {
                wrong.push(format!("{key} ran {count} times in one life, {boot}"));
            }
        }
        wrong
    }

    /// Casts that were taken and have had no effect yet.
    pub(crate) fn owed(&self) -> usize {
        let taken = |call: &&Try| matches!(call.ends.first(), Some((fate, _)) if fate == "taken");
        let calls = self.tries.values().filter(taken);
        calls.filter(|call| !self.effects.contains(&call.key)).count()
    }

    pub(crate) fn has_ended(&self, boot: &str) -> bool {
        self.ended.contains(boot)
    }

    pub(crate) fn counts(&self) -> Counts {
        let mut counts = Counts {
            tries: self.tries.len(),
            runs: self.runs.len(),
            effects: self.effects.len(),
            ..Counts::default()
        };
        let keys: BTreeSet<&str> = self.tries.values().map(|call| call.key.as_str()).collect();
        counts.calls = keys.len();
        for call in self.tries.values() {
            match call.ends.first() {
                Some((fate, _)) => *counts.fates.entry(fate.clone()).or_default() += 1,
                None => counts.without_caller += 1,
            }
        }
        let mut lives: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (_, key, boot, _) in &self.runs {
            lives.entry(key).or_default().insert(boot);
        }
        counts.window = lives.values().filter(|lives| lives.len() > 1).count();
        counts
    }
}
