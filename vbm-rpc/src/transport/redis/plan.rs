//! What one batch does: what was queued, in order and by destination, without what is too late or too much. Pure.

use super::{
    attachment::Core,
    belief::Beliefs,
    depth::{Depth, admit},
    letters::Letter,
    op::{Note, Op, SendOp, Target},
    pack::{PACK_MAX_BYTES, PACK_MAX_FRAMES, PACK_MAX_SHARED},
    records::StorePlan,
};
use crate::transport::SendError;
use std::{
    collections::{BTreeMap, HashMap},
    mem,
    ops::Range,
    sync::Arc,
};
use tokio::{sync::oneshot, time::Instant};

/// The most destinations whose number of workers and whose depth are remembered.
pub(super) const TARGETS_MAX_REMEMBERED: usize = 1_024;

/// All frames for one target, in order.
pub(super) struct Group {
    pub(super) target: Target,
    pub(super) ops: Vec<SendOp>,
    pub(super) chunks: Vec<Range<usize>>,
    /// The batch asks whether somebody is there.
    pub(super) looks: bool,
    /// The batch asks how deep the queue is.
    pub(super) asks: bool,
}

/// An entry that was written for nobody, to be taken back.
pub(super) struct Retraction {
    pub(super) target: Target,
    pub(super) id: String,
    pub(super) ops: Vec<SendOp>,
    /// An attempt to take it back broke off.
    pub(super) broke: bool,
}

/// What one batch does.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) groups: Vec<Group>,
    pub(super) retractions: Vec<Retraction>,
    /// Entries done with: by key and whether it has a group.
    pub(super) completed: BTreeMap<(Arc<str>, bool), Vec<String>>,
    pub(super) stores: StorePlan,
    pub(super) letters: Vec<Letter>,
    pub(super) notes: Vec<Note>,
    pub(super) flushed: Vec<oneshot::Sender<()>>,
    pub(super) probe: bool,
}

impl Plan {
    pub(super) fn add(&mut self, index: &mut HashMap<Target, usize>, op: Op) {
        match op {
            Op::Send(op) => {
                // Mostly the same target as before.
                if let Some(last) = self.groups.last_mut().filter(|group| group.target == op.target) {
                    return last.ops.push(op);
                }
                let at = index.get(&op.target).copied().unwrap_or_else(|| {
                    index.insert(op.target.clone(), self.groups.len());
                    self.groups.push(Group {
                        target: op.target.clone(),
                        ops: Vec::new(),
                        chunks: Vec::new(),
                        looks: true,
                        asks: false,
                    });
                    self.groups.len() - 1
                });
                self.groups[at].ops.push(op);
            }
            Op::Complete { key, id, group } => self.completed.entry((key, group)).or_default().push(id),
            Op::Store(op) => self.stores.add(op),
            Op::Bury(letter) => self.letters.push(letter),
            Op::Note(note) => self.notes.push(note),
            Op::Probe => self.probe = true,
            Op::Flushed(done) => self.flushed.push(done),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.groups.is_empty()
            && self.retractions.is_empty()
            && self.completed.is_empty()
            && self.stores.is_empty()
            && self.letters.is_empty()
            && self.notes.is_empty()
            && self.flushed.is_empty()
            && !self.probe
    }

    /// Ends what cannot be sealed: with security on, what is for somebody without a trusted key.
    pub(super) fn refuse_strangers(&mut self, core: &Core) {
        let Some(guard) = &core.guard else { return };
        for group in &mut self.groups {
            if let Err(error) = guard.can_seal(&group.target) {
                for op in group.ops.drain(..) {
                    op.settle(Err(error.clone()));
                }
            }
        }
    }

    /// Ends what is too late or too much, and cuts the rest into entries; the control lane comes first. `workers` is the
    /// number of consumers last seen alive, `beliefs` whom need not be asked about.
    pub(super) fn cut(
        &mut self,
        now: Instant,
        workers: &HashMap<Target, usize>,
        depths: &Depths,
        beliefs: &Beliefs,
    ) {
        self.groups.sort_by_key(|group| !group.target.is_control());
        for group in &mut self.groups {
            // Who has given up was told that it expired: it must not be written any more.
            for op in group.ops.extract_if(.., |op| op.until <= now || !op.writing()) {
                let error = match op.uncertain {
                    true => SendError::Uncertain("the connection to Redis broke while it was written".into()),
                    false => SendError::Expired("the queue of this process".into()),
                };
                op.settle(Err(error));
            }
            let ready = mem::take(&mut group.ops);
            group.looks = beliefs.asks(&group.target, ready.len(), now);
            let ready = depths.refuse(group, ready, now);
            let share = match (&group.target, workers.get(&group.target)) {
                (Target::Any { .. }, Some(&workers)) => {
                    ready.len().div_ceil(workers.max(1)).min(PACK_MAX_SHARED)
                }
                // One by one, so that it spreads.
                (Target::Any { .. }, None) | (Target::AnyControl { .. }, _) => 1,
                _ => PACK_MAX_FRAMES,
            };
            let sizes: Vec<usize> = ready.iter().map(|op| op.frame.len()).collect();
            group.chunks = chunks(&sizes, share.clamp(1, PACK_MAX_FRAMES), PACK_MAX_BYTES);
            group.ops = ready;
        }
        self.groups.retain(|group| !group.ops.is_empty());
    }
}

/// How deep queues are, as far as it is known.
pub(super) struct Depths {
    pub(super) limit: usize,
    pub(super) known: HashMap<Target, Depth>,
}

impl Depths {
    /// Refuses what a deep queue has no room for; gives the rest, and notes whether to ask for the depth.
    pub(super) fn refuse(&self, group: &mut Group, ready: Vec<SendOp>, now: Instant) -> Vec<SendOp> {
        group.asks = false;
        if !matches!(group.target, Target::Node(_) | Target::Any { .. }) || ready.is_empty() {
            return ready;
        }
        let admission = admit(self.known.get(&group.target), self.limit, now);
        group.asks = admission.ask;
        if admission.frames == usize::MAX {
            return ready;
        }
        let mut room = admission.frames;
        let mut kept = Vec::new();
        for op in ready {
            if !op.can_be_refused() {
                kept.push(op);
            } else if room > 0 {
                room -= 1;
                kept.push(op);
            } else {
                let why = format!("its queue holds {} entries or more (the depth limit)", self.limit);
                op.settle(Err(SendError::Overloaded(why)));
            }
        }
        kept
    }

    pub(super) fn answered(&mut self, target: &Target, entries: usize) {
        if self.known.len() >= TARGETS_MAX_REMEMBERED {
            self.known.clear();
        }
        self.known
            .insert(target.clone(), Depth::answered(entries, Instant::now()));
    }

    pub(super) fn wrote(&mut self, target: &Target, entries: usize) {
        if let Some(depth) = self.known.get_mut(target) {
            depth.wrote(entries);
        }
    }
}

/// Cuts frames of these sizes into runs of at most `max_frames` and, but for single ones, `max_bytes`.
pub(super) fn chunks(sizes: &[usize], max_frames: usize, max_bytes: usize) -> Vec<Range<usize>> {
    let (mut cut, mut from, mut bytes) = (Vec::new(), 0, 0);
    for (at, size) in sizes.iter().enumerate() {
        if at > from && (at - from >= max_frames || bytes + size > max_bytes) {
            cut.push(from..at);
            (from, bytes) = (at, 0);
        }
        bytes += size;
    }
    if from < sizes.len() {
        cut.push(from..sizes.len());
    }
    cut
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn chunks_cover_every_frame_once_within_the_limits(
            sizes in proptest::collection::vec(0usize..100, 0..200), max_frames in 1usize..50, max_bytes in 1usize..300) {
            let cut = chunks(&sizes, max_frames, max_bytes);
            let covered: Vec<usize> = cut.iter().cloned().flatten().collect();
            prop_assert_eq!(covered, (0..sizes.len()).collect::<Vec<_>>());
            for chunk in cut {
                prop_assert!(chunk.len() <= max_frames);
                prop_assert!(chunk.len() == 1 || sizes[chunk].iter().sum::<usize>() <= max_bytes);
            }
        }
    }
}
