//! The tree of a VM's snapshots: pure.
//!
//! ```text
//!   base (off) ---- patched ---- tested          parent: what the VM was at, or came from
//!        \
//!         `-------- other  <- current            the one that the disk stands on now: at most one
//! ```

use vbm_core::{Snapshot, SnapshotId, SnapshotState};

/// What a snapshot that is asked for now comes after: the last that is still to be taken, else the current one.
pub(super) fn parent_of_next(all: &[Snapshot]) -> Option<SnapshotId> {
    let coming = |s: &&Snapshot| s.status.state == SnapshotState::Creating && !s.meta.deleting;
    let last = all.iter().filter(coming).max_by_key(|s| s.meta.id);
    last.or_else(|| all.iter().find(|s| s.status.current))
        .map(|s| s.meta.id)
}

/// The first of `snap0`, `snap1` and so on that is not taken.
pub(super) fn next_name(all: &[Snapshot]) -> String {
    let taken = |name: &String| all.iter().any(|s| s.meta.name.as_str() == name);
    let mut names = (0..=all.len()).map(|n| format!("snap{n}"));
    names.find(|name| !taken(name)).unwrap_or_default()
}

/// The VM's disk stands on this one now, and on no other.
pub(super) fn make_current(all: &mut [Snapshot], id: SnapshotId) {
    for snapshot in all {
        snapshot.status.current = snapshot.meta.id == id;
    }
}

/// Takes one out: what came after it comes after its parent from now on, and so does the disk.
pub(super) fn take_out(all: &mut [Snapshot], id: SnapshotId) {
    let Some(gone) = all.iter().find(|s| s.meta.id == id).cloned() else {
        return;
    };
    for snapshot in all {
        if snapshot.spec.parent == Some(id) {
            snapshot.spec.parent = gone.spec.parent;
        }
        if gone.status.current {
            snapshot.status.current = Some(snapshot.meta.id) == gone.spec.parent;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;
    use vbm_core::{Meta, SnapshotSpec, SnapshotStatus, Timestamp, VmId};

    fn id(n: u128) -> SnapshotId {
        SnapshotId::from_uuid(Uuid::from_u128(n))
    }

    fn snapshot(n: u128, parent: Option<u128>, state: SnapshotState, current: bool) -> Snapshot {
        Snapshot {
            meta: Meta::new(id(n), format!("snap{n}").parse().unwrap(), Timestamp::default()),
            spec: SnapshotSpec {
                vm: VmId::from_uuid(Uuid::from_u128(1)),
                parent: parent.map(id),
                memory: true,
                freeze: vbm_core::Freeze::No,
            },
            status: SnapshotStatus {
                state,
                current,
                ..SnapshotStatus::default()
            },
        }
    }

    #[test]
    fn a_new_snapshot_comes_after_the_current_one_or_after_one_that_is_being_taken() {
        assert_eq!(parent_of_next(&[]), None);
        let mut all = vec![
            snapshot(0, None, SnapshotState::Ready, true),
            snapshot(1, Some(0), SnapshotState::Ready, false),
        ];
        assert_eq!(parent_of_next(&all), Some(id(0)));
        all.push(snapshot(2, Some(0), SnapshotState::Creating, false));
        all.push(snapshot(3, Some(2), SnapshotState::Creating, false));
        assert_eq!(parent_of_next(&all), Some(id(3)));
        all[3].meta.deleting = true;
        assert_eq!(parent_of_next(&all), Some(id(2)));
    }

    #[test]
    fn a_deleted_snapshot_leaves_its_place_to_its_parent() {
        let mut all = vec![
            snapshot(0, None, SnapshotState::Ready, false),
            snapshot(1, Some(0), SnapshotState::Ready, true),
            snapshot(2, Some(1), SnapshotState::Ready, false),
        ];
        take_out(&mut all, id(1));
        assert_eq!(all[2].spec.parent, Some(id(0)));
        assert!(all[0].status.current, "the disk stands on what is left below it");
    }

    #[test]
    fn names_that_nobody_gave_count_up_and_fill_gaps() {
        let mut all = vec![
            snapshot(0, None, SnapshotState::Ready, false),
            snapshot(2, None, SnapshotState::Ready, false),
        ];
        assert_eq!(next_name(&all), "snap1");
        all.push(snapshot(1, None, SnapshotState::Ready, false));
        assert_eq!(next_name(&all), "snap3");
    }

    proptest! {
        #[test]
        fn whatever_happens_at_most_one_is_current_and_parents_exist(acts in proptest::collection::vec((0..3_u8, 0..8_u128), 0..40)) {
            let mut all: Vec<Snapshot> = Vec::new();
            for (n, (act, which)) in acts.into_iter().enumerate() {
                match act {
                    0 => {
                        let parent = parent_of_next(&all).map(|p| p.uuid().as_u128());
                        let n = n as u128 + 100;
                        all.push(snapshot(n, parent, SnapshotState::Ready, false));
                        make_current(&mut all, id(n));
                    }
                    _ if all.is_empty() => {}
                    act => {
                        let at = usize::try_from(which).unwrap() % all.len();
                        let chosen = all[at].meta.id;
                        if act == 1 {
                            make_current(&mut all, chosen);
                        } else {
                            take_out(&mut all, chosen);
                            all.remove(at);
                        }
                    }
                }
                prop_assert!(all.iter().filter(|s| s.status.current).count() <= 1);
                for s in &all {
                    prop_assert!(s.spec.parent.is_none_or(|p| all.iter().any(|o| o.meta.id == p)));
                }
            }
        }
    }
}
