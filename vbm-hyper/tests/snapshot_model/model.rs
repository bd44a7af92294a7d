//! What a VM and its snapshots are, without anything that makes them so.

use vbm_core::{Consistency, SnapshotId};

/// Something that is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    Start,
    Kill,
    Pause,
    Resume,
    /// To a disk, by number.
    Write(usize, u8),
    /// To the memory of the guest.
    Remember(u8),
    /// With memory, if it has one.
    Take(bool),
    /// To the snapshot that was taken as the n-th, of those that are there.
    Revert(usize),
    Delete(usize),
    Save,
    Restore,
    Discard,
    /// The daemon goes, and another one comes.
    NewDriver,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Power {
    Off,
    Running,
    Paused,
    Saved,
}

/// What is seen of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    pub(crate) power: Power,
    pub(crate) disks: Vec<u8>,
    /// `None` where nobody can look.
    pub(crate) memory: Option<u8>,
    /// Each with its parent; by id.
    pub(crate) tree: Vec<(SnapshotId, Consistency, Option<SnapshotId>)>,
}

#[derive(Clone, Debug)]
struct Snap {
    id: SnapshotId,
    kind: Consistency,
    parent: Option<SnapshotId>,
    disks: Vec<u8>,
    memory: u8,
}

#[derive(Debug)]
pub(crate) struct Model {
    power: Power,
    disks: Vec<u8>,
    memory: u8,
    snaps: Vec<Snap>,
    current: Option<SnapshotId>,
    taken: u128,
    /// What the acts of this moment are about: the snapshots that were there before it, and the next one.
    pub(crate) ids: Vec<SnapshotId>,
}

impl Model {
    pub(crate) fn new(disks: usize) -> Self {
        Self {
            power: Power::Off,
            disks: vec![0; disks],
            memory: 0,
            snaps: Vec::new(),
            current: None,
            taken: 0,
            ids: Vec::new(),
        }
    }

    fn next(&self) -> SnapshotId {
        SnapshotId::from_uuid(uuid::Uuid::from_u128(self.taken + 1))
    }

    fn chosen(&self, which: usize) -> Option<usize> {
        (which < self.snaps.len()).then_some(which)
    }

    /// Does it; says whether it was possible.
    pub(crate) fn act(&mut self, act: &Act) -> bool {
        use Power::{Off, Paused, Running, Saved};
        self.ids = self
            .snaps
            .iter()
            .map(|snap| snap.id)
            .chain([self.next()])
            .collect();
        let moves = |model: &mut Self, from: &[Power], to| {
            let can = from.contains(&model.power);
            if can {
                model.power = to;
            }
            can
        };
        match act {
            Act::Start => {
                let fresh = moves(self, &[Off], Running);
                if fresh {
                    self.memory = 0;
                }
                fresh
            }
            Act::Kill => moves(self, &[Off, Running, Paused, Saved], Off),
            Act::Pause => moves(self, &[Running], Paused),
            Act::Resume => moves(self, &[Paused], Running),
            Act::Write(disk, word) => {
                if let Some(at) = self.disks.get_mut(*disk) {
                    *at = *word;
                }
                true
            }
            Act::Remember(word) => {
                if matches!(self.power, Running | Paused) {
                    self.memory = *word;
                }
                true
            }
            Act::Take(memory) => self.take(*memory),
            Act::Revert(which) => self.revert(*which),
            Act::Delete(which) => {
                if let Some(at) = self.chosen(*which) {
                    let gone = self.snaps.remove(at);
                    for snap in &mut self.snaps {
                        if snap.parent == Some(gone.id) {
                            snap.parent = gone.parent;
                        }
                    }
                    if self.current == Some(gone.id) {
                        self.current = gone.parent;
                    }
                }
                true
            }
            Act::Save => moves(self, &[Running, Paused], Saved),
            Act::Restore => moves(self, &[Saved], Running),
            Act::Discard => {
                moves(self, &[Saved], Off);
                true
            }
            Act::NewDriver => true,
        }
    }

    fn take(&mut self, memory: bool) -> bool {
        let kind = match (self.power, memory) {
            (Power::Saved, _) => return false,
            (Power::Off, _) => Consistency::Clean,
            (_, true) => Consistency::WithMemory,
            (_, false) => Consistency::Crash,
        };
        let id = self.next();
        self.taken += 1;
        self.snaps.push(Snap {
            id,
            kind,
            parent: self.current,
            disks: self.disks.clone(),
            memory: self.memory,
        });
        self.current = Some(id);
        true
    }

    fn revert(&mut self, which: usize) -> bool {
        let Some(at) = self.chosen(which) else {
            return false;
        };
        if !matches!(self.power, Power::Off | Power::Saved) {
            return false;
        }
        let snap = self.snaps[at].clone();
        self.disks = snap.disks;
        self.current = Some(snap.id);
        self.power = Power::Off;
        if snap.kind == Consistency::WithMemory {
            self.power = Power::Running;
            self.memory = snap.memory;
        }
        true
    }

    /// Whether what is seen is what should be.
    pub(crate) fn matches(&self, seen: &Look, when: &str) {
        let mut tree: Vec<_> = self.snaps.iter().map(|s| (s.id, s.kind, s.parent)).collect();
        tree.sort_by_key(|(id, ..)| *id);
        let live = matches!(self.power, Power::Running | Power::Paused);
        let expected = Look {
            power: self.power,
            disks: self.disks.clone(),
            memory: seen.memory.map(|seen| if live { self.memory } else { seen }),
            tree,
        };
        assert_eq!(*seen, expected, "{when}");
    }
}
