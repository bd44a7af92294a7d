//! What agents tell of snapshots, and what is made of it.
//!
//! A report that comes twice, or of what nobody waits for any more, changes nothing.

use super::{target, tree};
use crate::controller::Controller;
use crate::methods::{RevertSeen, SnapshotFate, SnapshotSeen, VmSeen};
use crate::records::{Edit, Held, until_uncrossed};
use vbm_core::{
    Error, Event, EventKind, NodePath, Operation, OperationState, PowerState, Result, Snapshot,
    SnapshotState, StepState, Vm, VmId, WantedPower,
};

impl Controller {
    /// Writes down what came of the snapshots of a VM, and tells what happened.
    pub(in crate::controller) async fn saw_snapshots(&self, node: &NodePath, seen: &VmSeen) -> Result<()> {
        for one in &seen.snapshots {
            until_uncrossed(|| self.saw_snapshot(node, seen.id, one)).await?;
        }
        match &seen.reverted {
            Some(reverted) => until_uncrossed(|| self.saw_revert(node, seen.id, reverted)).await,
            None => Ok(()),
        }
    }

    async fn saw_snapshot(&self, node: &NodePath, vm: VmId, seen: &SnapshotSeen) -> Result<()> {
        let Some(held_vm) = self.records().get::<Vm>(vm).await? else {
            return Ok(());
        };
        let held = self.records().snapshots(vm).await?;
        let Some(at) = held.iter().position(|s| s.value.meta.id == seen.id) else {
            return Ok(());
        };
        if held_vm.value.spec.node.as_ref() != Some(node) {
            return Ok(());
        }
        let mut all: Vec<Snapshot> = held.iter().map(|h| h.value.clone()).collect();
        let Some((kind, message)) = settle(&mut all, at, &seen.fate) else {
            return Ok(());
        };
        let event = self.event(kind, target(&held_vm.value, &all[at]), message);
        let gone = seen.fate == SnapshotFate::Gone;
        if gone {
            all[at].clone_from(&held[at].value);
        }
        let edit = Edit::default().update(&held_vm, &held_vm.value);
        let mut edit = changed(edit, &held, &all, &event);
        if gone {
            edit = edit.delete(&held[at]);
        }
        self.records().commit(edit).await.map(drop)
    }

    async fn saw_revert(&self, node: &NodePath, vm: VmId, seen: &RevertSeen) -> Result<()> {
        let Some(held_vm) = self.records().get::<Vm>(vm).await? else {
            return Ok(());
        };
        let mut vm = held_vm.value.clone();
        let waits = vm.spec.reverting.take_if(|r| r.operation == seen.operation);
        let Some(revert) = waits.filter(|_| vm.spec.node.as_ref() == Some(node)) else {
            return Ok(());
        };
        let held = self.records().snapshots(vm.meta.id).await?;
        let mut all: Vec<Snapshot> = held.iter().map(|h| h.value.clone()).collect();
        let Some(at) = all.iter().position(|s| s.meta.id == revert.snapshot) else {
            return Ok(());
        };
        let (kind, message) = match &seen.problem {
            None => {
                tree::make_current(&mut all, revert.snapshot);
                (EventKind::SnapshotReverted, format!("it is {}", vm.status.power))
            }
            Some(problem) => {
                // It is left as it is: nobody asked for anything but the way back.
                vm.spec.power = as_it_is(vm.status.power);
                vm.meta.generation = vm.meta.generation.next();
                (EventKind::SnapshotFailed, problem.inline())
            }
        };
        let event = self.event(kind, target(&vm, &all[at]), message);
        let mut edit = changed(Edit::default().update(&held_vm, &vm), &held, &all, &event);
        if let Some(held) = self.records().get::<Operation>(seen.operation).await?
            && !held.value.state.is_final()
        {
            let mut operation = held.value.clone();
            end(&mut operation, seen.problem.clone(), self.inner.clock.now());
            edit = edit.update(&held, &operation);
        }
        self.records().commit(edit).await.map(drop)
    }
}

/// What an agent's word changes in the snapshots of a VM, and what happened by it; `None` when it is known already.
fn settle(all: &mut [Snapshot], at: usize, fate: &SnapshotFate) -> Option<(EventKind, String)> {
    let id = all[at].meta.id;
    let waits = all[at].status.state == SnapshotState::Creating;
    match fate {
        SnapshotFate::Taken {
            content,
            paused_micros,
            at: when,
            consistency,
            note,
        } if waits => {
            let status = &mut all[at].status;
            status.state = SnapshotState::Ready;
            status.content = Some(*content);
            status.paused_micros = *paused_micros;
            status.consistency = *consistency;
            status.note.clone_from(note);
            status.taken_at = Some(*when);
            tree::make_current(all, id);
            let halted = match paused_micros {
                0 => String::new(),
                micros => format!(", the guest was halted for {} ms", micros.div_ceil(1_000)),
            };
            let note = note.as_ref().map_or_else(String::new, |note| format!("; {note}"));
            Some((EventKind::SnapshotTaken, format!("{content}{halted}{note}")))
        }
        SnapshotFate::NotTaken(problem) if waits => {
            tree::take_out(all, id);
            let status = &mut all[at].status;
            status.state = SnapshotState::Failed;
            status.problem = Some(problem.clone());
            Some((EventKind::SnapshotFailed, problem.inline()))
        }
        SnapshotFate::Gone if all[at].meta.deleting => {
            tree::take_out(all, id);
            Some((EventKind::SnapshotDeleted, String::new()))
        }
        SnapshotFate::NotGone(problem) if all[at].meta.deleting => {
            all[at].meta.deleting = false;
            all[at].status.problem = Some(problem.clone());
            Some((EventKind::SnapshotFailed, problem.inline()))
        }
        _ => None,
    }
}

/// Writes those that changed.
fn changed(edit: Edit, held: &[Held<Snapshot>], all: &[Snapshot], event: &Event) -> Edit {
    let pairs = held.iter().zip(all).filter(|(held, now)| held.value != **now);
    pairs.fold(edit.event(event), |edit, (held, now)| edit.update(held, now))
}

fn end(operation: &mut Operation, problem: Option<Error>, now: vbm_core::Timestamp) {
    let (state, step) = match problem {
        None => (OperationState::Done, StepState::Done),
        Some(_) => (OperationState::Failed, StepState::Failed),
    };
    operation.state = state;
    operation.error = problem;
    operation.ended_at = Some(now);
    if let Some(last) = operation.steps.last_mut() {
        last.state = step;
    }
}

const fn as_it_is(power: PowerState) -> WantedPower {
    match power {
        PowerState::Running => WantedPower::Running,
        PowerState::Paused(_) => WantedPower::Paused,
        PowerState::Saved => WantedPower::Saved,
        _ => WantedPower::Off,
    }
}
