//! Operations: when they are over, and how they are read.
//!
//! An operation ends on what was *seen*, never on what was sent.

use super::{
    Controller,
    keeper::{Keepers, Reached},
    moving::MIGRATE,
    plan::World,
    snapshots::{CREATE, REVERT},
};
use crate::api::WAIT_MAX_SECONDS;
use crate::records::{Held, Record};
use crate::store::{Revision, Txn, Write};
use futures::StreamExt;
use std::time::Duration;
use vbm_core::{
    Error, ErrorKind, Kind, Network, Node, NodeState, Operation, OperationId, OperationState, Outcome,
    PowerState, Result, SnapshotState, Step, StepState, Timestamp, Vm, VmId, WantedPower,
};

/// The verb of operations that end when every node has done what the records say.
pub(super) const APPLY: &str = "apply";
/// How long something may find no node before its operation fails. A daemon that just started has none yet.
const NO_NODE_PATIENCE: Duration = Duration::from_secs(10);
/// How long the answer to a request with an idempotency key is kept.
const ANSWER_KEPT: Duration = Duration::from_secs(24 * 3600);
/// Writes of one transaction when history is trimmed.
const TRIM_BATCH: usize = 256;

/// What is known of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    GoesOn,
    Done,
    Failed(Error),
}

/// Whether an operation is over.
fn judge(
    operation: &Operation,
    asked: Revision,
    world: &World,
    nodes: &[(&Node, Reached)],
    now: Timestamp,
) -> Verdict {
    if asked > world.revision {
        return Verdict::GoesOn;
    }
    let patient = now.since(operation.created_at) < NO_NODE_PATIENCE;
    if operation.verb == APPLY {
        return judge_apply(asked, nodes);
    }
    match operation.target.kind {
        Kind::Vm => match world
            .vms
            .values()
            .find(|v| v.meta.id.to_string() == operation.target.id)
        {
            // Its mover ends it.
            Some(_) if operation.verb == MIGRATE => Verdict::GoesOn,
            Some(vm) => judge_vm(operation, vm, patient),
            None => judge_absent(operation),
        },
        Kind::Snapshot => judge_snapshot(operation, world),
        Kind::Network => match world
            .networks
            .values()
            .find(|n| n.meta.id.to_string() == operation.target.id)
        {
            Some(network) => judge_network(operation, network, nodes, patient),
            None => judge_absent(operation),
        },
        _ => Verdict::Done,
    }
}

fn judge_absent(operation: &Operation) -> Verdict {
    if operation.verb == "delete" {
        return Verdict::Done;
    }
    Verdict::Failed(Error::new(
        ErrorKind::NotFound,
        format!("{} was not done", operation.verb),
        format!("{} was deleted in between", operation.target),
        "make it anew if it is still wanted",
    ))
}

fn judge_apply(asked: Revision, nodes: &[(&Node, Reached)]) -> Verdict {
    let mut ready = nodes.iter().filter(|(n, _)| n.status.state == NodeState::Ready);
    let problem = ready
        .clone()
        .find_map(|(_, r)| r.problem.as_ref().filter(|(at, _)| *at >= asked));
    match problem {
        Some((_, problem)) => Verdict::Failed(problem.clone()),
        None if ready.all(|(_, r)| r.revision >= asked) => Verdict::Done,
        None => Verdict::GoesOn,
    }
}

fn judge_vm(operation: &Operation, vm: &Vm, patient: bool) -> Verdict {
    if vm.meta.generation > operation.generation
        && operation.verb != "delete"
        && vm.status.observed != operation.generation
    {
        return Verdict::Failed(Error::new(
            ErrorKind::Cancelled,
            format!("{} of {} was given up", operation.verb, vm.meta.name),
            "something else was asked for in between",
            "see `vbm operation list` for what came after",
        ));
    }
    if let Some(problem) = &vm.status.problem {
        let tried = vm.status.observed >= operation.generation;
        let homeless = vm.spec.node.is_none() && !patient;
        if tried || homeless {
            return Verdict::Failed(problem.clone());
        }
    }
    if vm.status.observed < operation.generation {
        return Verdict::GoesOn;
    }
    if operation.verb == "save" && matches!(vm.status.power, PowerState::Off | PowerState::Crashed(_)) {
        return Verdict::Failed(Error::new(
            ErrorKind::Conflict,
            format!("{} was not saved", vm.meta.name),
            format!(
                "it ended before its memory was on disk: it is {}",
                vm.status.power
            ),
            "start it with `vbm start`",
        ));
    }
    let reached = match operation.verb.as_str() {
        "launch" if vm.spec.power == WantedPower::Off => vm.status.power == PowerState::Off,
        "launch" | "start" | "resume" => vm.status.power == PowerState::Running,
        "save" => vm.status.power == PowerState::Saved,
        "stop" | "force-off" | "discard" => {
            matches!(vm.status.power, PowerState::Off | PowerState::Crashed(_))
        }
        "pause" => matches!(vm.status.power, PowerState::Paused(_)),
        _ => false,
    };
    if reached { Verdict::Done } else { Verdict::GoesOn }
}

/// Taking and deleting are over when the record says so; the way back ends with the report of it.
fn judge_snapshot(operation: &Operation, world: &World) -> Verdict {
    let mut all = world.snapshots.values();
    let Some(snapshot) = all.find(|s| s.meta.id.to_string() == operation.target.id) else {
        return judge_absent(operation);
    };
    match (operation.verb.as_str(), snapshot.status.state) {
        (CREATE, SnapshotState::Ready) => Verdict::Done,
        (CREATE, SnapshotState::Failed) => failed_with(snapshot.status.problem.clone()),
        (CREATE, _) => Verdict::GoesOn,
        (REVERT, _) => {
            let vm = world.vms.get(&snapshot.spec.vm);
            let reverting = vm.and_then(|vm| vm.spec.reverting.as_ref());
            if reverting.is_some_and(|r| r.operation == operation.id) {
                return Verdict::GoesOn;
            }
            let given_up = Error::new(
                ErrorKind::Cancelled,
                format!("the way back to {} was given up", operation.target.name),
                "the VM was ended, or something else was asked for, in between",
                "look at the VM with `vbm info`; revert again if that is still wanted",
            );
            Verdict::Failed(given_up.with_outcome(Outcome::Unknown))
        }
        _ if !snapshot.meta.deleting => failed_with(snapshot.status.problem.clone()),
        _ => Verdict::GoesOn,
    }
}

fn failed_with(problem: Option<Error>) -> Verdict {
    let unknown = || Error::internal("a snapshot failed", "its record does not say why");
    Verdict::Failed(problem.unwrap_or_else(unknown))
}

fn judge_network(
    operation: &Operation,
    network: &Network,
    nodes: &[(&Node, Reached)],
    patient: bool,
) -> Verdict {
    if operation.verb == "delete" {
        let problem = nodes.iter().find_map(|(_, r)| r.problem.as_ref());
        return problem
            .filter(|_| !patient)
            .map_or(Verdict::GoesOn, |(_, p)| Verdict::Failed(p.clone()));
    }
    if network.status.observed < operation.generation {
        if !patient && !nodes.iter().any(|(n, _)| n.status.state == NodeState::Ready) {
            return Verdict::Failed(Error::new(
                ErrorKind::Unavailable,
                format!("network {} is on no node", network.meta.name),
                "no node answers",
                "see `vbm node list`; the network comes up as soon as a node answers",
            ));
        }
        return Verdict::GoesOn;
    }
    match &network.status.problem {
        Some(problem) => Verdict::Failed(problem.clone()),
        None if network.status.ready => Verdict::Done,
        None => Verdict::GoesOn,
    }
}

impl Controller {
    /// Ends those of these operations that are over.
    pub(super) async fn finish_operations(
        &self,
        open: Vec<Held<Operation>>,
        world: &World,
        keepers: &Keepers,
    ) -> Result<()> {
        let now = self.inner.clock.now();
        let nodes: Vec<(&Node, Reached)> = world
            .nodes
            .values()
            .map(|n| (n, keepers.reached(&n.path)))
            .collect();
        for held in open {
            match judge(&held.value, held.revision, world, &nodes, now) {
                Verdict::GoesOn => {}
                Verdict::Done => self.end_operation(held.value.id, None).await?,
                Verdict::Failed(error) => self.end_operation(held.value.id, Some(error)).await?,
            }
        }
        Ok(())
    }

    pub(super) async fn open_operations(&self) -> Result<Vec<Held<Operation>>> {
        Ok(self
            .records()
            .all::<Operation>()
            .await?
            .into_iter()
            .filter(|o| !o.value.state.is_final())
            .collect())
    }

    pub(super) async fn end_operation(&self, id: OperationId, error: Option<Error>) -> Result<()> {
        let now = self.inner.clock.now();
        self.records()
            .update::<Operation>(id, |o| {
                if o.state.is_final() {
                    return Ok(false);
                }
                o.state = if error.is_some() {
                    OperationState::Failed
                } else {
                    OperationState::Done
                };
                o.ended_at = Some(now);
                if let Some(step) = o.steps.last_mut() {
                    step.state = if error.is_some() {
                        StepState::Failed
                    } else {
                        StepState::Done
                    };
                }
                o.error.clone_from(&error);
                Ok(true)
            })
            .await?;
        Ok(())
    }

    /// Writes down what a node does with a VM, in the operations that are about it.
    pub(super) async fn note_step(&self, vm: VmId, doing: &str) -> Result<()> {
        let now = self.inner.clock.now();
        let mut targets = vec![vm.to_string()];
        for snapshot in self.records().snapshots(vm).await? {
            targets.push(snapshot.value.meta.id.to_string());
        }
        for held in self.open_operations().await? {
            if !targets.contains(&held.value.target.id) {
                continue;
            }
            self.records()
                .update::<Operation>(held.value.id, |o| {
                    if o.state.is_final() || o.steps.last().is_some_and(|s| s.name == doing) {
                        return Ok(false);
                    }
                    if let Some(last) = o.steps.last_mut() {
                        last.state = StepState::Done;
                    }
                    o.steps.push(Step {
                        name: doing.to_owned(),
                        state: StepState::Running,
                        at: now,
                    });
                    Ok(true)
                })
                .await?;
        }
        Ok(())
    }

    /// An operation; waits until it is over, has other steps than the caller knows, or the time is up.
    ///
    /// # Errors
    /// It does not exist.
    pub async fn operation_when(
        &self,
        id: &str,
        wait_seconds: Option<u64>,
        seen_steps: Option<usize>,
    ) -> Result<Operation> {
        let news = |o: &Operation| o.state.is_final() || seen_steps.is_some_and(|n| o.steps.len() != n);
        let held = self.find_operation(id).await?;
        let Some(seconds) = wait_seconds.filter(|_| !news(&held.value)) else {
            return Ok(held.value);
        };
        let key = held.value.key();
        let wait = async {
            let mut changes = self.records().store().watch(&key, held.revision).await?;
            while let Some(change) = changes.next().await {
                change?;
                let now = self.find_operation(id).await?.value;
                if news(&now) {
                    return Ok(now);
                }
            }
            self.find_operation(id).await.map(|h| h.value)
        };
        tokio::select! {
            done = wait => done,
            () = tokio::time::sleep(Duration::from_secs(seconds.min(WAIT_MAX_SECONDS))) => self.find_operation(id).await.map(|h| h.value),
            () = self.inner.closing.cancelled() => self.find_operation(id).await.map(|h| h.value),
        }
    }

    async fn find_operation(&self, id: &str) -> Result<Held<Operation>> {
        self.records().resolve::<Operation>(id).await
    }

    /// Forgets the oldest events and finished operations beyond `keep` of each.
    pub(super) async fn trim_history(&self, keep: usize) -> Result<()> {
        let mut events = self.records().keys_below(crate::records::EVENT_PREFIX).await?;
        events.truncate(events.len().saturating_sub(keep));
        let mut surplus: Vec<String> = events
            .into_iter()
            .map(|id| format!("{}{id}", crate::records::EVENT_PREFIX))
            .collect();
        let mut ended: Vec<_> = self
            .records()
            .all::<Operation>()
            .await?
            .into_iter()
            .filter(|o| o.value.state.is_final())
            .collect();
        ended.truncate(ended.len().saturating_sub(keep));
        surplus.extend(ended.into_iter().map(|o| o.value.key()));
        surplus.extend(
            self.records()
                .answers_before(self.inner.clock.now(), ANSWER_KEPT)
                .await?,
        );
        for batch in surplus.chunks(TRIM_BATCH) {
            let write = batch.iter().map(|key| Write::Delete(key.clone())).collect();
            self.records()
                .run(Txn {
                    compare: Vec::new(),
                    write,
                })
                .await?;
        }
        Ok(())
    }
}
