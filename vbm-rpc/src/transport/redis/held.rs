//! Entries that were given to the bus and are not done with yet.

use super::{
    attachment::{Core, lock},
    countdown::Countdown,
    letters::{Letter, Proof},
    op::Op,
    pack::{self, Entry},
    quarantine::Suspect,
};
use crate::{
    BadInput, Route,
    transport::{Completion, Delivery, Keeper},
};
use bytes::Bytes;
use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::time::Instant;

/// An entry that was given to the bus and is not yet removed from Redis.
pub(super) struct HeldEntry {
    /// When the read was begun that brought it.
    pub(super) asked: Instant,
    pub(super) group: bool,
    /// It has been taken over by another: its completion is nobody's business any more.
    pub(super) lost: bool,
}

impl Core {
    /// Notes that this process has an entry; `false` when it had it already.
    pub(super) fn hold(&self, key: &Arc<str>, id: &str, asked: Instant, group: bool) -> bool {
        let mut held = lock(&self.held);
        let entry = HeldEntry {
            asked,
            group,
            lost: false,
        };
        match held.get_mut(key) {
            Some(ids) if ids.contains_key(id) => return false,
            Some(ids) => drop(ids.insert(id.to_owned(), entry)),
            None => drop(held.insert(key.clone(), HashMap::from([(id.to_owned(), entry)]))),
        }
        true
    }

    /// Of entries with a group that were read more than `age` ago and are still worked on: their keys and ids.
    pub(super) fn held_longer(&self, age: Duration) -> Vec<(Arc<str>, Vec<String>)> {
        let held = lock(&self.held);
        let old = |(id, entry): (&String, &HeldEntry)| {
            (entry.group && !entry.lost && entry.asked.elapsed() >= age).then(|| id.clone())
        };
        let by_key = held
            .iter()
            .map(|(key, ids)| (key.clone(), ids.iter().filter_map(old).collect::<Vec<_>>()));
        by_key.filter(|(_, ids)| !ids.is_empty()).collect()
    }

    /// These entries are another one's now.
    pub(super) fn lose(&self, key: &str, ids: &[&str]) {
        tracing::warn!(
            key,
            entries = ids.len(),
            "requests that this process works on were taken over by another"
        );
        let mut held = lock(&self.held);
        let Some(entries) = held.get_mut(key) else { return };
        for id in ids {
            if let Some(entry) = entries.get_mut(*id) {
                entry.lost = true;
            }
        }
    }

    /// Runs a held entry's requests alone, in its turn.
    pub(super) fn suspect(&self, suspect: Suspect) {
        if self.hold(&suspect.key, &suspect.entry.id, Instant::now(), suspect.group) {
            if !self.admits(&suspect.key, !suspect.group, &suspect.entry) {
                return self.complete(suspect.key, suspect.entry.id, suspect.group);
            }
            // Fails only when the process takes no more; the entry then stays.
            drop(self.queues.suspects.send(suspect));
        }
    }

    /// Gives an entry's requests for the bus; nothing when it has them already. Garbage goes to the dead letters.
    /// `asked` is when the read was begun that brought it, and the so-many-th delivery it is. `again`:
    /// somebody else may have had it before.
    pub(super) fn deliveries(
        self: &Arc<Self>,
        key: &Arc<str>,
        entry: Entry,
        (asked, deliveries): (Instant, u32),
        group: bool,
        again: bool,
    ) -> Vec<Delivery> {
        if !self.hold(key, &entry.id, asked, group) {
            return Vec::new();
        }
        // A group's entries were admitted as they were read; those that were not are judged here.
        if !self.admits(key, !group, &entry) {
            self.complete(key.clone(), entry.id, group);
            return Vec::new();
        }
        if entry.frames.is_empty() {
            self.no_frame(key, &entry.id);
            self.push(Op::Bury(Letter {
                queue: key.clone(),
                entry: entry.id.clone(),
                frame: Bytes::new(),
                reason: "not a frame of the bus: its entry cannot be read".into(),
                deliveries,
                worker: self.consumer.clone(),
                proof: None,
            }));
            self.complete(key.clone(), entry.id, group);
            return Vec::new();
        }
        let since = self.sent_at(&entry.id, entry.sent_ms);
        let held = Arc::new(Held {
            again: again || self.is_suspect(&entry.id),
            group,
            home: self.homes.get(&**key).cloned(),
            left: Countdown::new(entry.frames.len()),
            source: Source {
                proof: self.guard.as_ref().and_then(|_| Proof::of(&entry, group)),
                core: self.clone(),
                key: key.clone(),
                id: entry.id,
                deliveries,
            },
        });
        let delivery = |frame| Delivery {
            frame,
            since,
            done: Completion::new(held.clone()),
        };
        entry.frames.into_iter().map(delivery).collect()
    }

    /// An entry holds no frame of the bus: counts it.
    pub(super) fn no_frame(&self, key: &str, id: &str) {
        let detail = format_args!("the entry {id} cannot be read");
        self.inbound.bad_input(BadInput::NoFrame, key, detail);
    }

    /// Whether an entry is so old that another process may have had it.
    pub(super) fn is_suspect(&self, id: &str) -> bool {
        pack::parse_id(id).is_none_or(|(ms, _)| ms <= self.suspect_ms.load(Ordering::Relaxed))
    }

    pub(super) fn complete(&self, key: Arc<str>, id: String, group: bool) {
        // Fails only when the writer has ended; the entry then stays for the next process.
        self.push(Op::Complete { key, id, group });
    }
}

/// The entry that a delivery is part of.
pub(super) struct Source {
    pub(super) core: Arc<Core>,
    pub(super) key: Arc<str>,
    pub(super) id: String,
    /// The so-many-th delivery it is.
    pub(super) deliveries: u32,
    /// Of an entry for any, with security on.
    pub(super) proof: Option<Proof>,
}

impl Source {
    /// This process gives one of its requests up.
    pub(super) fn bury(&self, frame: Bytes, reason: &str) {
        self.core.push(Op::Bury(Letter {
            queue: self.key.clone(),
            entry: self.id.clone(),
            frame,
            reason: reason.to_owned(),
            deliveries: self.deliveries,
            worker: self.core.consumer.clone(),
            proof: self.proof.clone(),
        }));
    }
}

/// Completes an entry when all its requests are.
struct Held {
    source: Source,
    group: bool,
    home: Option<Arc<Route>>,
    again: bool,
    left: Countdown,
}

impl Keeper for Held {
    fn completed(&self) {
        if self.left.done() {
            let Source { core, key, id, .. } = &self.source;
            core.complete(key.clone(), id.clone(), self.group);
        }
    }

    fn home(&self) -> Option<Arc<Route>> {
        self.home.clone()
    }

    fn again(&self) -> bool {
        self.again
    }

    fn buried(&self, frame: Bytes, reason: &str) {
        self.source.bury(frame, reason);
        self.completed();
    }
}
