//! What is wanted of a VM beside its power, and what came of it: pure.
//!
//! ```text
//!   WantedVm.take, .drop, .revert --next--> one errand at a time --> Ledger --> every report, until
//!                                                                     ^          nobody wants it any more
//!                                                    what was done -->'
//! ```

use crate::methods::{RevertSeen, SnapshotFate, SnapshotSeen, WantedVm};
use std::collections::{BTreeMap, BTreeSet};
use vbm_core::{Error, Generation, PowerState, SnapshotId, VmRevert, WantedPower};

/// How many deleted snapshots are remembered, so that a late word does not take one of them again.
const GONE_MAX: usize = 256;

/// One thing to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Errand {
    /// Take a snapshot.
    Take(SnapshotId),
    /// Delete one; asked for in this generation of it.
    Drop(SnapshotId, Generation),
    /// Go back to one.
    Revert(VmRevert),
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The power state.
    Power,
    /// This errand.
    Do(Errand),
    /// Nothing until something changes.
    Hold,
}

/// What came of errands that somebody still waits for.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    taken: BTreeMap<SnapshotId, SnapshotFate>,
    dropped: BTreeMap<(SnapshotId, Generation), SnapshotFate>,
    reverted: Option<RevertSeen>,
    gone: BTreeSet<SnapshotId>,
}

/// What to do next for a VM that is seen so. `busy` says that its hypervisor does something for it right now.
pub(super) fn next(want: &WantedVm, seen: PowerState, busy: bool, ledger: &Ledger) -> Next {
    use PowerState as P;
    if want.power == WantedPower::ForcedOff && !matches!(seen, P::Off | P::Crashed(_)) {
        return Next::Power;
    }
    if let Some(revert) = &want.revert {
        return match ledger
            .reverted
            .as_ref()
            .filter(|r| r.operation == revert.operation)
        {
            Some(RevertSeen { problem: None, .. }) => Next::Power,
            // Somebody has to say what shall become of the VM now.
            Some(_) => Next::Hold,
            None if matches!(seen, P::Unknown | P::MigratingIn | P::MigratingOut) => Next::Hold,
            None => Next::Do(Errand::Revert(revert.clone())),
        };
    }
    if matches!(
        seen,
        P::Off | P::Crashed(_) | P::Running | P::Paused(_) | P::Saved
    ) {
        let drop = want.drop.iter().find(|d| !ledger.dropped.contains_key(d));
        let take = want
            .take
            .iter()
            .find(|t| !ledger.taken.contains_key(t) && !ledger.gone.contains(t));
        let errand = drop
            .map(|(id, generation)| Errand::Drop(*id, *generation))
            .or_else(|| take.map(|id| Errand::Take(*id)));
        return match errand {
            Some(_) if busy => Next::Hold,
            Some(errand) => Next::Do(errand),
            None => Next::Power,
        };
    }
    Next::Power
}

/// Whether a newer wish ends an errand that is under way: only to end the VM, or to forget it.
pub(super) fn ends_errand(newer: &WantedVm, older: &WantedVm) -> bool {
    newer.power == WantedPower::ForcedOff && newer.generation != older.generation
}

/// Whether a newer wish ends a step of power that is under way. Snapshots wait until it is done.
pub(super) fn ends_step(newer: &WantedVm, older: &WantedVm) -> bool {
    let plain = |want: &WantedVm| WantedVm {
        take: Vec::new(),
        without_memory: BTreeMap::new(),
        drop: Vec::new(),
        ..want.clone()
    };
    plain(newer) != plain(older)
}

impl Ledger {
    /// Forgets what nobody waits for any more.
    pub(super) fn prune(&mut self, want: &WantedVm) {
        self.taken.retain(|id, _| want.take.contains(id));
        self.dropped.retain(|key, _| want.drop.contains(key));
        let waited = want.revert.as_ref().map(|r| r.operation);
        self.reverted.take_if(|r| Some(r.operation) != waited);
    }

    /// A snapshot was taken.
    pub(super) fn taken(&mut self, id: SnapshotId, fate: SnapshotFate) {
        self.taken.insert(id, fate);
    }

    /// An errand was done; one that takes a snapshot is told by [`Self::taken`].
    pub(super) fn done(&mut self, errand: &Errand) {
        match errand {
            Errand::Take(_) => {}
            Errand::Drop(id, generation) => {
                if self.gone.len() >= GONE_MAX {
                    self.gone.pop_first();
                }
                self.gone.insert(*id);
                self.dropped.insert((*id, *generation), SnapshotFate::Gone);
            }
            Errand::Revert(revert) => {
                self.reverted = Some(RevertSeen {
                    operation: revert.operation,
                    problem: None,
                });
            }
        }
    }

    /// An errand was given up.
    pub(super) fn failed(&mut self, errand: &Errand, problem: Error) {
        match errand {
            Errand::Take(id) => drop(self.taken.insert(*id, SnapshotFate::NotTaken(problem))),
            Errand::Drop(id, generation) => {
                self.dropped
                    .insert((*id, *generation), SnapshotFate::NotGone(problem));
            }
            Errand::Revert(revert) => {
                self.reverted = Some(RevertSeen {
                    operation: revert.operation,
                    problem: Some(problem),
                });
            }
        }
    }

    /// What the controller is told.
    pub(super) fn snapshots(&self) -> Vec<SnapshotSeen> {
        let taken = self.taken.iter().map(|(id, fate)| (*id, fate));
        let dropped = self.dropped.iter().map(|((id, _), fate)| (*id, fate));
        let seen = |(id, fate): (SnapshotId, &SnapshotFate)| SnapshotSeen {
            id,
            fate: fate.clone(),
        };
        taken.chain(dropped).map(seen).collect()
    }

    /// What the controller is told of the way back.
    pub(super) fn reverted(&self) -> Option<RevertSeen> {
        self.reverted.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::WantedRoot;
    use uuid::Uuid;
    use vbm_core::{
        Boot, CrashCause, Digest, DiskFormat, DriverKind, ErrorKind, OperationId, VmId, VolumeId,
    };

    fn id(n: u128) -> SnapshotId {
        SnapshotId::from_uuid(Uuid::from_u128(n))
    }

    fn revert(n: u128) -> VmRevert {
        VmRevert {
            snapshot: id(n),
            operation: OperationId::from_uuid(Uuid::from_u128(n)),
        }
    }

    fn want(take: &[u128], drop: &[u128], revert: Option<VmRevert>) -> WantedVm {
        WantedVm {
            id: VmId::from_uuid(Uuid::from_u128(1)),
            name: "web".parse().unwrap(),
            generation: Generation(3),
            driver: DriverKind::Sim,
            vcpus: 1,
            memory_mib: 64,
            root: WantedRoot {
                volume: VolumeId::from_uuid(Uuid::from_u128(1)),
                image: Digest::new([0; 32]),
                format: DiskFormat::Qcow2,
                image_bytes: 1,
                virtual_bytes: 1,
            },
            boot: Boot::Disk,
            nics: Vec::new(),
            power: WantedPower::Running,
            held: false,
            take: take.iter().map(|n| id(*n)).collect(),
            without_memory: BTreeMap::new(),
            drop: drop.iter().map(|n| (id(*n), Generation(2))).collect(),
            guest: vbm_core::GuestData::default(),
            revert,
        }
    }

    fn problem() -> Error {
        Error::new(ErrorKind::Exhausted, "a", "b", "c")
    }

    #[test]
    fn snapshots_are_taken_one_after_the_other_in_the_order_asked_for() {
        let (want, mut ledger) = (want(&[1, 2], &[], None), Ledger::default());
        assert_eq!(
            next(&want, PowerState::Running, false, &ledger),
            Next::Do(Errand::Take(id(1)))
        );
        ledger.failed(&Errand::Take(id(1)), problem());
        assert_eq!(
            next(&want, PowerState::Running, false, &ledger),
            Next::Do(Errand::Take(id(2)))
        );
        ledger.failed(&Errand::Take(id(2)), problem());
        assert_eq!(next(&want, PowerState::Running, false, &ledger), Next::Power);
    }

    #[test]
    fn a_vm_that_is_busy_or_between_two_states_is_let_be() {
        let (want, ledger) = (want(&[1], &[], None), Ledger::default());
        assert_eq!(next(&want, PowerState::Running, true, &ledger), Next::Hold);
        for seen in [
            PowerState::Starting,
            PowerState::Stopping,
            PowerState::Saving,
            PowerState::Unknown,
        ] {
            assert_eq!(next(&want, seen, false, &ledger), Next::Power, "{seen}");
        }
    }

    #[test]
    fn ending_a_vm_comes_before_all_errands() {
        let (mut want, ledger) = (want(&[1], &[2], None), Ledger::default());
        want.power = WantedPower::ForcedOff;
        assert_eq!(next(&want, PowerState::Running, false, &ledger), Next::Power);
        assert!(matches!(
            next(&want, PowerState::Off, false, &ledger),
            Next::Do(_)
        ));
    }

    #[test]
    fn nothing_but_the_way_back_happens_while_it_is_wanted() {
        let (want, mut ledger) = (want(&[1], &[], Some(revert(7))), Ledger::default());
        let errand = Errand::Revert(revert(7));
        for seen in [
            PowerState::Running,
            PowerState::Off,
            PowerState::Saved,
            PowerState::Crashed(CrashCause::Host),
        ] {
            assert_eq!(next(&want, seen, true, &ledger), Next::Do(errand.clone()));
        }
        assert_eq!(next(&want, PowerState::Unknown, false, &ledger), Next::Hold);
        ledger.failed(&errand, problem());
        assert_eq!(
            next(&want, PowerState::Off, false, &ledger),
            Next::Hold,
            "it is not started on a disk that somebody wanted to leave"
        );
        ledger.done(&errand);
        assert_eq!(next(&want, PowerState::Running, false, &ledger), Next::Power);
    }

    #[test]
    fn what_nobody_waits_for_is_forgotten_and_what_is_asked_again_is_done_again() {
        let mut ledger = Ledger::default();
        let first = want(&[], &[1], None);
        ledger.failed(&Errand::Drop(id(1), Generation(2)), problem());
        assert_eq!(ledger.snapshots().len(), 1);
        let mut again = first.clone();
        again.drop[0].1 = Generation(3);
        ledger.prune(&again);
        assert!(ledger.snapshots().is_empty());
        assert_eq!(
            next(&again, PowerState::Off, false, &ledger),
            Next::Do(Errand::Drop(id(1), Generation(3)))
        );
    }

    #[test]
    fn a_late_word_takes_no_snapshot_that_was_deleted() {
        let mut ledger = Ledger::default();
        ledger.done(&Errand::Drop(id(1), Generation(2)));
        ledger.prune(&want(&[], &[], None));
        assert_eq!(
            next(&want(&[1], &[], None), PowerState::Off, false, &ledger),
            Next::Power
        );
    }

    #[test]
    fn another_snapshot_ends_no_step_and_only_a_force_off_ends_an_errand() {
        let older = want(&[], &[], None);
        let more = want(&[1], &[2], None);
        assert!(!ends_step(&more, &older) && !ends_errand(&more, &older));
        let mut off = older.clone();
        off.power = WantedPower::Off;
        off.generation = Generation(4);
        assert!(ends_step(&off, &older) && !ends_errand(&off, &older));
        off.power = WantedPower::ForcedOff;
        assert!(ends_errand(&off, &older));
    }
}
