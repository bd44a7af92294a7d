//! Moves of VMs between nodes.
//!
//! ```text
//!   request --txn--> vm.spec.moving, operation        nothing has happened yet
//!   mover (one task a moving VM): look at both sides -> decide -> one command -> look again
//!       ... Switch: one transaction makes the destination the VM's node; from then on there is no way back
//!       ... Leave:  the source lets go; vm.spec.moving is cleared
//! ```
//!
//! The record and what runs on the two nodes are all that a mover knows: one that dies is replaced by one that looks. While
//! a VM moves, its nodes hold it as it is: nothing is started or stopped but by its mover.

mod decide;
mod flows;
mod possible;

use super::{Controller, keeper::Reached, plan::World};
use crate::api::{Accepted, List, MigrateRequest, MoveCheckView, Placement, VmView};
use crate::methods::{
    CheckArrive, CheckLeave, LookAt, LookedAt, MoveProgress, ReceiveVm, SendVm, VmAbandon, VmCheckArrive,
    VmCheckLeave, VmFinish, VmLook, VmReceive, VmRemove, VmSend,
};
use crate::records::{Edit, until_uncrossed};
use decide::{Next, Sides, next};
use possible::check;
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::watch, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use vbm_core::{
    Error, ErrorKind, EventKind, Kind, MoveHow, NodePath, ObjectRef, Operation, Result, Vm, VmId, VmMove,
    WantedPower,
};
use vbm_hyper::{MoveCheck, MoveOptions, MovedDisks};

/// How often both sides are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// After a command that failed.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// The verb of the operation.
pub(super) const MIGRATE: &str = "migrate";

impl Controller {
    /// Begins to move a VM to another node, and gives an operation that sees it there.
    ///
    /// # Errors
    /// The VM or the node does not exist, or the move is not possible; says why.
    pub async fn migrate(&self, vm: &str, request: &MigrateRequest) -> Result<Accepted<VmView>> {
        let id = self.records().resolve::<Vm>(vm).await?.value.meta.id;
        let operation = until_uncrossed(|| self.migrate_once(id, request)).await?;
        Ok(Accepted {
            item: self.vm_view(&id.to_string()).await?,
            operation,
        })
    }

    /// What the scheduler thinks of each node for a VM, the best first.
    ///
    /// # Errors
    /// The VM does not exist.
    pub async fn placement(&self, vm: &str) -> Result<List<Placement>> {
        let vm = self.records().resolve::<Vm>(vm).await?.value;
        let world = World::load(self.records()).await?;
        let items = world.candidates(&vm).into_iter().map(|c| Placement {
            current: vm.spec.node.as_ref() == Some(&c.node),
            fits: c.fits(),
            node: c.node,
            score: c.score,
            reasons: c.reasons,
        });
        Ok(List {
            items: items.collect(),
            next: None,
            revision: world.revision,
        })
    }

    /// Looks at everything that a move would need, and changes nothing.
    ///
    /// # Errors
    /// The VM does not exist, or a number is outside its limits.
    pub async fn check_migrate(&self, vm: &str, request: &MigrateRequest) -> Result<List<MoveCheckView>> {
        let vm = self.records().resolve::<Vm>(vm).await?.value;
        let options = options_of(&how_of(request));
        options.check().map_err(Error::from)?;
        let world = World::load(self.records()).await?;
        let mut items = Vec::new();
        match check(&world, &vm, request) {
            Err(error) => items.push(shown(
                "the records",
                &MoveCheck::failed("records", error.inline()),
            )),
            Ok((from, to, live)) => {
                let found = format!("from {from} to {to}, {}", if live { "live" } else { "at rest" });
                items.push(shown("the records", &MoveCheck::passed("records", found)));
                if live {
                    self.check_live(&world, &vm, (&from, &to), options, &mut items)
                        .await;
                }
            }
        }
        Ok(List {
            items,
            next: None,
            revision: world.revision,
        })
    }

    /// Asks both nodes. One that does not answer is a check that did not pass.
    async fn check_live(
        &self,
        world: &World,
        vm: &Vm,
        (from, to): (&NodePath, &NodePath),
        options: MoveOptions,
        items: &mut Vec<MoveCheckView>,
    ) {
        let silent = |error: Error| MoveCheck::failed("answer", error.inline());
        let leave = CheckLeave {
            vm: vm.meta.id,
            options: options.clone(),
        };
        let leaving = match self.ask_node::<VmCheckLeave>(from, &leave).await {
            Ok(leaving) => leaving,
            Err(error) => return items.push(shown(&from.to_string(), &silent(error))),
        };
        items.extend(leaving.checks.iter().map(|check| shown(&from.to_string(), check)));
        let Some(wanted) = world.wanted_vm(vm) else { return };
        let arrive = CheckArrive {
            vm: wanted,
            machine: leaving.machine,
            options,
        };
        match self.ask_node::<VmCheckArrive>(to, &arrive).await {
            Ok(checks) => items.extend(checks.iter().map(|check| shown(&to.to_string(), check))),
            Err(error) => items.push(shown(&to.to_string(), &silent(error))),
        }
    }

    async fn migrate_once(&self, id: VmId, request: &MigrateRequest) -> Result<Operation> {
        let world = World::load(self.records()).await?;
        let held = self.records().must::<Vm>(id).await?;
        let mut vm = held.value.clone();
        options_of(&how_of(request)).check().map_err(Error::from)?;
        let (from, to, live) = check(&world, &vm, request)?;
        let target = ObjectRef::new(Kind::Vm, id, &vm.meta.name);
        vm.meta.generation = vm.meta.generation.next();
        vm.status.problem = None;
        let operation = self.operation(MIGRATE, target.clone(), vm.meta.generation);
        let how = match (live, request.copy_disks) {
            (true, true) => "live, with a copy of its disk",
            (true, false) => "live",
            (false, _) => "at rest",
        };
        let message = format!("from {from} to {to}, {how}");
        vm.spec.moving = Some(VmMove {
            from,
            to,
            live,
            how: how_of(request),
            operation: operation.id,
        });
        let event = self.event(EventKind::VmMoving, target, message);
        self.records()
            .commit(
                Edit::default()
                    .update(&held, &vm)
                    .create(&operation)
                    .event(&event),
            )
            .await?;
        Ok(operation)
    }
}

fn how_of(request: &MigrateRequest) -> MoveHow {
    MoveHow {
        copy_disks: request.copy_disks,
        max_downtime_ms: request.max_downtime_ms,
        bandwidth_bytes: request.bandwidth_bytes,
    }
}

fn options_of(how: &MoveHow) -> MoveOptions {
    let usual = MoveOptions::default();
    MoveOptions {
        disks: if how.copy_disks {
            MovedDisks::Copied
        } else {
            MovedDisks::Shared
        },
        downtime_max_millis: how.max_downtime_ms.unwrap_or(usual.downtime_max_millis),
        bandwidth_max_bytes: how.bandwidth_bytes,
        ..usual
    }
}

fn shown(at: &str, check: &MoveCheck) -> MoveCheckView {
    MoveCheckView {
        at: at.to_owned(),
        what: check.what.clone(),
        passed: check.passed,
        found: check.found.clone(),
    }
}

/// What is being done, in words: in tenths, so that not every byte is a record.
fn in_words(progress: &MoveProgress) -> String {
    const MIB: u64 = 1024 * 1024;
    let what = match progress.phase.as_str() {
        "disks" => "copying its disk",
        _ => "sending its memory",
    };
    if progress.total == 0 {
        return what.to_owned();
    }
    let tenths = progress.done.saturating_mul(10) / progress.total;
    format!("{what}: {tenths}0 % of {} MiB", progress.total.div_ceil(MIB))
}

/// All movers of a leading controller.
pub(super) struct Movers {
    controller: Controller,
    movers: BTreeMap<VmId, watch::Sender<Seen>>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// What a mover is shown.
#[derive(Clone, Default)]
struct Seen {
    world: Arc<World>,
    reached: HashMap<NodePath, Reached>,
}

impl Movers {
    pub(super) fn new(controller: Controller, stop: CancellationToken) -> Self {
        Self {
            controller,
            movers: BTreeMap::new(),
            stop,
            tasks: TaskTracker::new(),
        }
    }

    /// Shows the world to the movers; a VM that moves and has none gets one.
    pub(super) fn show(&mut self, world: &Arc<World>, reached: impl Fn(&NodePath) -> Reached) {
        self.movers.retain(|_, mover| !mover.is_closed());
        for vm in world.vms.values() {
            let Some(moving) = &vm.spec.moving else { continue };
            let seen = Seen {
                world: Arc::clone(world),
                reached: [&moving.from, &moving.to]
                    .into_iter()
                    .map(|n| (n.clone(), reached(n)))
                    .collect(),
            };
            match self.movers.get(&vm.meta.id) {
                Some(mover) => drop(mover.send_replace(seen)),
                None => {
                    let (show, shown) = watch::channel(seen);
                    let mover = Mover {
                        controller: self.controller.clone(),
                        id: vm.meta.id,
                        begun: Instant::now(),
                        heard: Instant::now(),
                    };
                    self.tasks.spawn(mover.run(shown, self.stop.clone()));
                    self.movers.insert(vm.meta.id, show);
                }
            }
        }
    }

    pub(super) async fn shutdown(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Moves one VM.
struct Mover {
    controller: Controller,
    id: VmId,
    begun: Instant,
    /// When both sides answered last.
    heard: Instant,
}

impl Mover {
    async fn run(mut self, mut seen: watch::Receiver<Seen>, stop: CancellationToken) {
        loop {
            let now = seen.borrow_and_update().clone();
            // Dropping a step leaves a command that may have been done; the next look sees it.
            let on_behalf = now.world.on_behalf(self.id);
            let step = tokio::select! {
                step = on_behalf.scope(self.step(&now)) => step,
                () = stop.cancelled() => return,
            };
            let wait = match step {
                Ok(true) => return,
                Ok(false) => LOOK_EVERY,
                Err(e) => {
                    tracing::warn!(vm = %self.id, error = %e.inline(), "a step of a move failed; it is looked at again");
                    RETRY_AFTER
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Looks, decides, acts. `true` when the move is over.
    async fn step(&mut self, seen: &Seen) -> Result<bool> {
        let Some(held) = self.controller.records().get::<Vm>(self.id).await? else {
            return Ok(true);
        };
        let vm = held.value;
        let Some(moving) = vm.spec.moving.clone() else {
            return Ok(true);
        };
        let sides = self.sides(&vm, &moving, seen).await;
        let mut options = options_of(&moving.how);
        match next(&sides) {
            Next::Wait => {
                let progress = sides
                    .source
                    .as_ref()
                    .ok()
                    .and_then(|source| source.progress.as_ref());
                if let Some(progress) = progress {
                    self.tell(&in_words(progress)).await?;
                }
            }
            Next::Receive => {
                self.tell("preparing the destination").await?;
                let leave = CheckLeave {
                    vm: self.id,
                    options: options.clone(),
                };
                // An agent that is older does not know the question; the destination makes what it thinks right then.
                match self
                    .controller
                    .ask_node::<VmCheckLeave>(&moving.from, &leave)
                    .await
                {
                    Ok(leaving) => options.machine = Some(leaving.machine),
                    Err(e) if e.is_retryable() => return Err(e),
                    Err(e) => {
                        tracing::debug!(vm = %self.id, error = %e.inline(), "what it is cannot be told")
                    }
                }
                let request = ReceiveVm {
                    vm: self.wanted(seen)?,
                    options,
                };
                let received = self.controller.ask_node::<VmReceive>(&moving.to, &request).await;
                if let Err(e) = received
                    && !e.is_retryable()
                {
                    return self.give_up(&moving, e, &sides, seen).await;
                }
            }
            Next::Send(landing) => {
                self.tell("sending its memory").await?;
                let request = SendVm {
                    vm: self.wanted(seen)?,
                    to: landing.memory,
                    landing: Some(landing),
                    options,
                };
                self.controller.ask_node::<VmSend>(&moving.from, &request).await?;
            }
            Next::Finish => {
                self.tell("letting it go on").await?;
                match self.controller.ask_node::<VmFinish>(&moving.to, &self.id).await {
                    // It has not come whole, and nothing more comes.
                    Err(e) if e.kind() == ErrorKind::Conflict => {
                        return self.give_up(&moving, e, &sides, seen).await;
                    }
                    finished => finished?,
                }
            }
            Next::Switch => {
                if moving.live {
                    self.carry_flows(&moving, seen).await;
                }
                self.switch(&moving, &sides).await?;
            }
            Next::Leave => {
                self.tell("leaving the source").await?;
                return self.leave(&moving, seen).await;
            }
            Next::GiveUp(why) => return self.give_up(&moving, why, &sides, seen).await,
        }
        Ok(false)
    }

    async fn tell(&self, doing: &str) -> Result<()> {
        self.controller.note_step(self.id, doing).await
    }

    async fn sides(&mut self, vm: &Vm, moving: &VmMove, seen: &Seen) -> Sides {
        let switched = vm.spec.node.as_ref() == Some(&moving.to);
        let request = LookAt {
            vm: self.id,
            generation: vm.meta.generation,
        };
        let unasked = || Ok(LookedAt::default());
        let (source, destination) = if switched {
            (unasked(), unasked())
        } else {
            tokio::join!(
                self.controller.ask_node::<VmLook>(&moving.from, &request),
                self.controller.ask_node::<VmLook>(&moving.to, &request)
            )
        };
        let now = Instant::now();
        if source.is_ok() && destination.is_ok() {
            self.heard = now;
        }
        let knows = |node: &NodePath| {
            let shown = seen.world.vms.get(&self.id);
            shown.is_some_and(|v| v.meta.generation >= vm.meta.generation)
                && seen
                    .reached
                    .get(node)
                    .is_some_and(|r| r.revision >= seen.world.revision)
        };
        Sides {
            live: moving.live,
            copies: moving.how.copy_disks,
            switched,
            source,
            destination,
            prepared: knows(&moving.to),
            waited: now.duration_since(self.begun),
            silent: now.duration_since(self.heard),
        }
    }

    fn wanted(&self, seen: &Seen) -> Result<crate::methods::WantedVm> {
        let vm = seen.world.vms.get(&self.id);
        vm.and_then(|vm| seen.world.wanted_vm(vm)).ok_or_else(|| {
            Error::new(
                ErrorKind::Unavailable,
                "the VM cannot be moved yet",
                "a record that it needs was not read",
                "it is tried again",
            )
        })
    }

    async fn switch(&self, moving: &VmMove, sides: &Sides) -> Result<()> {
        self.tell("switching to the destination").await?;
        self.controller
            .records()
            .update::<Vm>(self.id, |vm| {
                let due =
                    vm.spec.moving.as_ref() == Some(moving) && vm.spec.node.as_ref() == Some(&moving.from);
                if due {
                    vm.spec.node = Some(moving.to.clone());
                    if !moving.live {
                        vm.spec.power = WantedPower::Off;
                    }
                    vm.meta.generation = vm.meta.generation.next();
                }
                Ok(due)
            })
            .await?;
        if let Ok(LookedAt {
            sent: Some(crate::methods::Sent::Done { downtime_ms, .. }),
            ..
        }) = &sides.source
        {
            self.tell(&format!("it ran nowhere for {downtime_ms} ms")).await?;
        }
        Ok(())
    }

    /// The source lets go, if it can be reached; one that is lost is told when it comes back.
    async fn leave(&self, moving: &VmMove, seen: &Seen) -> Result<bool> {
        let gone = seen
            .world
            .vms
            .get(&self.id)
            .map(|vm| seen.world.gone_vm(vm, !moving.how.copy_disks));
        if let Some(gone) = gone {
            let left = self.controller.ask_node::<VmRemove>(&moving.from, &gone).await;
            if let Err(e) = left
                && self.heard.elapsed() < decide::SILENCE_MAX
            {
                return Err(e);
            }
        }
        let message = format!("from {} to {}", moving.from, moving.to);
        self.end(moving, EventKind::VmMigrated, message, None).await?;
        Ok(true)
    }

    async fn give_up(&self, moving: &VmMove, why: Error, sides: &Sides, seen: &Seen) -> Result<bool> {
        if let Some(vm) = seen.world.vms.get(&self.id) {
            let gone = seen.world.gone_vm(vm, !moving.how.copy_disks);
            match self.controller.ask_node::<VmAbandon>(&moving.to, &gone).await {
                // It has arrived after all: the next look sees it.
                Err(e) if e.kind() == ErrorKind::Conflict => return Ok(false),
                // What it is sent may still arrive.
                Err(e) if !sides.stays() => return Err(e),
                Err(e) => {
                    tracing::warn!(vm = %self.id, error = %e.inline(), "the destination was not told; it gives up by itself");
                }
                Ok(()) => {}
            }
        }
        if sides.ended() {
            self.stays_off(moving).await?;
        }
        let message = why.inline();
        self.end(moving, EventKind::VmMigrationFailed, message, Some(why))
            .await?;
        Ok(true)
    }

    /// What ended on its way is not started again without being asked for: what is wanted would be a new request else.
    async fn stays_off(&self, moving: &VmMove) -> Result<()> {
        let off = |vm: &mut Vm| {
            let due = vm.spec.moving.as_ref() == Some(moving);
            if due {
                vm.spec.power = WantedPower::Off;
            }
            Ok(due)
        };
        self.controller.records().update::<Vm>(self.id, off).await?;
        Ok(())
    }

    async fn end(
        &self,
        moving: &VmMove,
        kind: EventKind,
        message: String,
        error: Option<Error>,
    ) -> Result<()> {
        let vm = self
            .controller
            .records()
            .update::<Vm>(self.id, |vm| {
                let due = vm.spec.moving.as_ref() == Some(moving);
                if due {
                    vm.spec.moving = None;
                    // The node that has it now is told that it is held no longer.
                    vm.meta.generation = vm.meta.generation.next();
                }
                Ok(due)
            })
            .await?;
        let target = ObjectRef::new(Kind::Vm, self.id, &vm.meta.name);
        let event = self.controller.event(kind, target, message);
        self.controller
            .records()
            .commit(Edit::default().event(&event))
            .await?;
        self.controller.end_operation(moving.operation, error).await
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
