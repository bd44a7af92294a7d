//! What is written down beside the root disk, and goes where it goes: which snapshot came after which, and what is half done.
//!
//! ```text
//!   <disk>.memory/tree.json   parents, the disks of each snapshot, where the disks stand
//!                 todo.json   work that was begun: undone or brought to its end by whoever comes next
//! ```
//!
//! That a snapshot is there is said by the root disk alone. What the tree tells of others is of no account.

use super::names::{Disk, disks_of};
use crate::{
    Error, Result, VmDefinition,
    files::{self, remove_if_there},
    qemu::memory::{MemoryDir, write_durably},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::Path};
use vbm_core::{SnapshotId, VolumeId};

/// The form of the tree; another one is not guessed at.
const FORMAT: u32 = 1;
const TREE: &str = "tree.json";
const TODO: &str = "todo.json";

/// What came after what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tree {
    format: u32,
    /// What the disks stand on.
    pub(super) current: Option<SnapshotId>,
    pub(super) snapshots: BTreeMap<SnapshotId, Node>,
}

/// A snapshot in the tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Node {
    pub(super) parent: Option<SnapshotId>,
    /// Its disks, the root disk too.
    pub(super) disks: Vec<Disk>,
}

impl Default for Tree {
    fn default() -> Self {
        Self {
            format: FORMAT,
            current: None,
            snapshots: BTreeMap::new(),
        }
    }
}

impl Tree {
    pub(super) fn take(&mut self, snapshot: SnapshotId, disks: Vec<Disk>) {
        let parent = self.current.filter(|current| *current != snapshot);
        self.snapshots.insert(snapshot, Node { parent, disks });
        self.current = Some(snapshot);
    }

    pub(super) fn go_back(&mut self, snapshot: SnapshotId) {
        self.current = Some(snapshot);
    }

    /// What came after it comes after its parent from now on.
    pub(super) fn delete(&mut self, snapshot: SnapshotId) {
        let parent = self.snapshots.remove(&snapshot).and_then(|node| node.parent);
        for node in self.snapshots.values_mut() {
            if node.parent == Some(snapshot) {
                node.parent = parent;
            }
        }
        if self.current == Some(snapshot) {
            self.current = parent;
        }
    }

    /// The volumes that a snapshot has beside the root disk; `None` when nobody wrote that down.
    pub(super) fn volumes(&self, snapshot: SnapshotId) -> Option<Vec<VolumeId>> {
        let node = self.snapshots.get(&snapshot)?;
        Some(node.disks.iter().filter_map(|disk| disk.volume).collect())
    }

    /// Where a snapshot that is to be deleted may be: the disks of the VM, and those that it had then.
    pub(super) fn disks(&self, vm: &VmDefinition, snapshot: SnapshotId) -> Vec<Disk> {
        let mut disks = disks_of(vm);
        let had = self.snapshots.get(&snapshot).map_or(&[][..], |node| &node.disks);
        for disk in had {
            if !disks.iter().any(|known| known.volume == disk.volume) {
                disks.insert(0, disk.clone());
            }
        }
        disks
    }
}

/// Work that was begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "todo")]
pub(super) enum Todo {
    /// Undone: nothing of it is left.
    Take {
        snapshot: SnapshotId,
        disks: Vec<Disk>,
        /// The guest may be frozen for it.
        freezing: bool,
        before: Tree,
    },
    /// Brought to its end: the disks stand on the snapshot, and the VM is off.
    Revert {
        snapshot: SnapshotId,
        name: String,
        disks: Vec<Disk>,
    },
    /// Brought to its end.
    Delete { snapshot: SnapshotId, disks: Vec<Disk> },
}

impl Todo {
    pub(super) const fn snapshot(&self) -> SnapshotId {
        match self {
            Self::Take { snapshot, .. } | Self::Delete { snapshot, .. } | Self::Revert { snapshot, .. } => {
                *snapshot
            }
        }
    }

    /// A snapshot that is not there yet, or not any more.
    pub(super) const fn hides(&self) -> Option<SnapshotId> {
        match self {
            Self::Take { snapshot, .. } | Self::Delete { snapshot, .. } => Some(*snapshot),
            Self::Revert { .. } => None,
        }
    }
}

/// The folder beside a root disk.
#[derive(Clone, Debug)]
pub(super) struct Beside {
    pub(super) memory: MemoryDir,
}

impl Beside {
    pub(super) fn of(root_disk: &Path) -> Self {
        Self {
            memory: MemoryDir::beside(root_disk),
        }
    }

    pub(super) fn tree(&self) -> Result<Tree> {
        let tree: Tree = files::read(self.memory.path(), TREE)?.unwrap_or_default();
        if tree.format == FORMAT {
            return Ok(tree);
        }
        Err(Error::Corrupt {
            path: self.memory.path().join(TREE),
            why: format!("its form is {}, known is {FORMAT}", tree.format),
        })
    }

    pub(super) fn set_tree(&self, tree: &Tree) -> Result<()> {
        let path = self.memory.path().join(TREE);
        if tree.snapshots.is_empty() {
            remove_if_there(&path)?;
            self.memory.tidy();
            return Ok(());
        }
        self.memory.create()?;
        write_durably(&path, tree)
    }

    pub(super) fn todo(&self) -> Result<Option<Todo>> {
        files::read(self.memory.path(), TODO)
    }

    pub(super) fn begin(&self, todo: &Todo) -> Result<()> {
        self.memory.create()?;
        write_durably(&self.memory.path().join(TODO), todo)
    }

    /// Nothing is half done any more.
    pub(super) fn done(&self) -> Result<()> {
        remove_if_there(&self.memory.path().join(TODO))?;
        self.memory.tidy();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn id(number: u128) -> SnapshotId {
        SnapshotId::from_uuid(Uuid::from_u128(number))
    }

    #[test]
    fn branches_come_after_where_the_disks_stood() {
        let mut tree = Tree::default();
        tree.take(id(1), vec![]);
        tree.take(id(2), vec![]);
        tree.go_back(id(1));
        tree.take(id(3), vec![]);
        let parent = |tree: &Tree, number| tree.snapshots[&id(number)].parent;
        assert_eq!(
            (parent(&tree, 1), parent(&tree, 2), parent(&tree, 3)),
            (None, Some(id(1)), Some(id(1)))
        );
        tree.delete(id(1));
        assert_eq!((parent(&tree, 2), parent(&tree, 3)), (None, None));
        assert_eq!(tree.current, Some(id(3)));
        tree.delete(id(3));
        assert_eq!(tree.current, None);
    }

    #[test]
    fn what_was_written_down_is_there_for_the_next_one_and_gone_with_the_last_snapshot() {
        let root = tempfile::tempdir().unwrap();
        let disk = root.path().join("v.qcow2");
        let beside = Beside::of(&disk);
        assert_eq!(
            (beside.tree().unwrap(), beside.todo().unwrap()),
            (Tree::default(), None)
        );
        let mut tree = Tree::default();
        let todo = Todo::Take {
            snapshot: id(1),
            disks: vec![],
            freezing: true,
            before: tree.clone(),
        };
        tree.take(id(1), vec![]);
        beside.begin(&todo).unwrap();
        beside.set_tree(&tree).unwrap();
        let next = Beside::of(&disk);
        assert_eq!(
            (next.tree().unwrap(), next.todo().unwrap()),
            (tree.clone(), Some(todo))
        );
        next.done().unwrap();
        tree.delete(id(1));
        next.set_tree(&tree).unwrap();
        assert!(!crate::disk::memory_dir(&disk).exists());
    }

    #[test]
    fn a_tree_of_another_form_is_not_guessed_at() {
        let root = tempfile::tempdir().unwrap();
        let disk = root.path().join("v.qcow2");
        let beside = Beside::of(&disk);
        beside.memory.create().unwrap();
        for text in ["{\"format\":9,\"current\":null,\"snapshots\":{}}", "{", "null"] {
            std::fs::write(beside.memory.path().join(TREE), text).unwrap();
            assert!(matches!(beside.tree(), Err(Error::Corrupt { .. })), "{text}");
        }
    }

    proptest! {
        #[test]
        fn whatever_happens_parents_are_there_and_nothing_goes_round(acts in proptest::collection::vec((0..3_u8, 0..6_u128), 0..60)) {
            let mut tree = Tree::default();
            for (at, (act, which)) in acts.into_iter().enumerate() {
                let chosen = tree.snapshots.keys().nth(usize::try_from(which).unwrap()).copied();
                match (act, chosen) {
                    (0, _) => tree.take(id(at as u128 + 1), vec![]),
                    (1, Some(chosen)) => tree.go_back(chosen),
                    (_, Some(chosen)) => tree.delete(chosen),
                    _ => {}
                }
                prop_assert!(tree.current.is_none_or(|current| tree.snapshots.contains_key(&current)));
                for start in tree.snapshots.keys() {
                    let (mut at, mut steps) = (Some(*start), 0);
                    while let Some(here) = at {
                        prop_assert!(tree.snapshots.contains_key(&here) && steps <= tree.snapshots.len());
                        at = tree.snapshots[&here].parent;
                        steps += 1;
                    }
                }
            }
        }
    }
}
