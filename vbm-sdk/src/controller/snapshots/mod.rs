//! Snapshots: what people ask for, and what agents tell of it.
//!
//! ```text
//!   create:  record `Creating` --plan: take--> agent --taken--> `Ready`, current
//!                                                   `--not taken--> `Failed`, says why
//!   delete:  record `deleting` --plan: drop--> agent --gone--> no record; its children go to its parent
//!   revert:  VM `reverting`    --plan: revert--> agent --reverted--> current; operation ended in the same transaction
//! ```
//!
//! Each of them is a wish in the records, told again until the agent says what came of it: a restart of either side
//! changes nothing. Taking and deleting are idempotent by the snapshot's id, going back by the operation's.
//!
//! All changes of a VM's snapshots cross at the VM's record, so that two of them never judge by the same picture.

mod seen;
mod tree;

use super::{Controller, reads::part, vms::not_placed};
use crate::api::{Accepted, CreateSnapshot, List, ListQuery, SnapshotView};
use crate::records::{Edit, Held, until_uncrossed};
use vbm_core::{
    Error, ErrorKind, FacetKind, Freeze, Kind, Meta, Name, Node, ObjectRef, PowerState, Result, Snapshot,
    SnapshotContent, SnapshotId, SnapshotSpec, SnapshotState, SnapshotStatus, Vm, VmId, VmRevert,
    WantedPower, limits, object,
};

/// The verb of the operation that takes one.
pub(super) const CREATE: &str = "create";
/// The verb of the operation that goes back to one.
pub(super) const REVERT: &str = "revert";

impl Controller {
    /// The snapshots of a VM, in the order in which they were asked for.
    ///
    /// # Errors
    /// The VM does not exist.
    pub async fn list_snapshots(&self, vm: &str, query: &ListQuery) -> Result<List<SnapshotView>> {
        let vm = self.records().resolve::<Vm>(vm).await?.value;
        let revision = self.records().store().revision().await?;
        let all = values(self.records().snapshots(vm.meta.id).await?);
        let views = all.iter().map(|s| view(s, &vm.meta.name, &all)).collect();
        // Ids are in the order of time.
        Ok(part(views, query, |v| v.snapshot.meta.id.to_string(), revision))
    }

    /// One snapshot.
    ///
    /// # Errors
    /// The VM or the snapshot does not exist.
    pub async fn snapshot_view(&self, vm: &str, snapshot: &str) -> Result<SnapshotView> {
        let vm = self.records().resolve::<Vm>(vm).await?.value;
        let all = values(self.records().snapshots(vm.meta.id).await?);
        let found = pick(&all, snapshot, &vm.meta.name)?;
        Ok(view(&all[found], &vm.meta.name, &all))
    }

    /// Takes a snapshot: of the disk when the VM is off, of disk and memory when it runs or is paused.
    ///
    /// # Errors
    /// The VM does not exist, is in a state of which none can be taken, or its driver cannot take one; the name is taken; there
    /// are [`limits::VM_MAX_SNAPSHOTS`].
    pub async fn create_snapshot(
        &self,
        vm: &str,
        request: &CreateSnapshot,
    ) -> Result<Accepted<SnapshotView>> {
        object::check_labels(&request.labels)?;
        if request.freeze != Freeze::No && request.memory != Some(false) {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("cannot take a snapshot of {vm}"),
                "freeze: the file systems are frozen only for a snapshot without memory, which holds all that they lack",
                "leave freeze out, or set memory to false (`vbm snapshot create --no-memory --freeze`)",
            ));
        }
        let vm = self.records().resolve::<Vm>(vm).await?.value.meta.id;
        until_uncrossed(|| self.create_snapshot_once(vm, request)).await
    }

    async fn create_snapshot_once(
        &self,
        vm: VmId,
        request: &CreateSnapshot,
    ) -> Result<Accepted<SnapshotView>> {
        let held = self.records().must::<Vm>(vm).await?;
        let vm = &held.value;
        let headline = format!("cannot take a snapshot of {}", vm.meta.name);
        self.may_touch(vm, &headline).await?;
        may_take(vm, &headline)?;
        let all = values(self.records().snapshots(vm.meta.id).await?);
        if all.len() >= limits::VM_MAX_SNAPSHOTS {
            return Err(Error::new(
                ErrorKind::Exhausted,
                headline,
                format!(
                    "it has {} snapshots, and that is the limit",
                    limits::VM_MAX_SNAPSHOTS
                ),
                "delete one that nobody needs with `vbm snapshot delete`",
            ));
        }
        let name = match &request.name {
            Some(name) => name.clone(),
            None => tree::next_name(&all).parse()?,
        };
        let id = SnapshotId::from_uuid(self.inner.ids.next());
        let mut meta = Meta::new(id, name, self.inner.clock.now());
        meta.labels.clone_from(&request.labels);
        let snapshot = Snapshot {
            meta,
            spec: SnapshotSpec {
                vm: vm.meta.id,
                parent: tree::parent_of_next(&all),
                memory: request.memory.unwrap_or(true),
                freeze: request.freeze,
            },
            status: SnapshotStatus::default(),
        };
        let operation = self.operation(CREATE, target(vm, &snapshot), snapshot.meta.generation);
        let edit = Edit::default()
            .update(&held, vm)
            .create(&snapshot)
            .create(&operation);
        self.records().commit(edit).await?;
        Ok(Accepted {
            item: view(&snapshot, &vm.meta.name, &all),
            operation,
        })
    }

    /// Deletes a snapshot. The VM stays as it is and may run.
    ///
    /// # Errors
    /// The VM or the snapshot does not exist, or the VM is on its way somewhere.
    pub async fn delete_snapshot(&self, vm: &str, snapshot: &str) -> Result<Accepted<SnapshotView>> {
        let (vm, id) = self.named(vm, snapshot).await?;
        until_uncrossed(|| self.delete_snapshot_once(vm, id)).await
    }

    async fn delete_snapshot_once(&self, vm: VmId, id: SnapshotId) -> Result<Accepted<SnapshotView>> {
        let (held_vm, all, at) = self.family(vm, id).await?;
        let (vm, mut snapshot) = (&held_vm.value, all[at].value.clone());
        let headline = format!(
            "cannot delete the snapshot {} of {}",
            snapshot.meta.name, vm.meta.name
        );
        self.may_touch(vm, &headline).await?;
        snapshot.meta.deleting = true;
        snapshot.meta.generation = snapshot.meta.generation.next();
        let operation = self.operation("delete", target(vm, &snapshot), snapshot.meta.generation);
        let edit = Edit::default()
            .update(&held_vm, vm)
            .update(&all[at], &snapshot)
            .create(&operation);
        self.records().commit(edit).await?;
        Ok(Accepted {
            item: view(&snapshot, &vm.meta.name, &values(all)),
            operation,
        })
    }

    /// Goes back to a snapshot: what the VM had since then is lost, its saved memory too. It runs afterwards when the
    /// snapshot holds its memory, else it is off.
    ///
    /// # Errors
    /// The VM or the snapshot does not exist, the snapshot was not taken, or nobody can tell what the VM does.
    pub async fn revert_snapshot(&self, vm: &str, snapshot: &str) -> Result<Accepted<SnapshotView>> {
        let (vm, id) = self.named(vm, snapshot).await?;
        until_uncrossed(|| self.revert_once(vm, id)).await
    }

    async fn revert_once(&self, vm: VmId, id: SnapshotId) -> Result<Accepted<SnapshotView>> {
        let (held_vm, all, at) = self.family(vm, id).await?;
        let (mut vm, snapshot) = (held_vm.value.clone(), &all[at].value);
        let headline = format!("cannot revert {} to {}", vm.meta.name, snapshot.meta.name);
        self.may_touch(&vm, &headline).await?;
        may_revert(&vm, snapshot, &headline)?;
        vm.meta.generation = vm.meta.generation.next();
        vm.status.problem = None;
        vm.spec.power = match snapshot.status.content {
            Some(SnapshotContent::DiskAndMemory) => WantedPower::Running,
            _ => WantedPower::Off,
        };
        let operation = self.operation(REVERT, target(&vm, snapshot), vm.meta.generation);
        vm.spec.reverting = Some(VmRevert {
            snapshot: id,
            operation: operation.id,
        });
        let edit = Edit::default()
            .update(&held_vm, &vm)
            .rests_on(&all[at])
            .create(&operation);
        self.records().commit(edit).await?;
        let item = view(snapshot, &vm.meta.name, &values(all.clone()));
        Ok(Accepted { item, operation })
    }

    /// The ids of what people named.
    async fn named(&self, vm: &str, snapshot: &str) -> Result<(VmId, SnapshotId)> {
        let vm = self.records().resolve::<Vm>(vm).await?.value.meta;
        let all = values(self.records().snapshots(vm.id).await?);
        let at = pick(&all, snapshot, &vm.name)?;
        Ok((vm.id, all[at].meta.id))
    }

    /// A VM, its snapshots, and which of them is meant.
    async fn family(&self, vm: VmId, id: SnapshotId) -> Result<(Held<Vm>, Vec<Held<Snapshot>>, usize)> {
        let held = self.records().must::<Vm>(vm).await?;
        let all = self.records().snapshots(vm).await?;
        let at = all.iter().position(|s| s.value.meta.id == id);
        let at = at.ok_or_else(|| no_such(&id.to_string(), &held.value.meta.name))?;
        Ok((held, all, at))
    }

    /// Whether snapshots of this VM can be asked for at all.
    async fn may_touch(&self, vm: &Vm, headline: &str) -> Result<()> {
        let refuse = |why: &str, fix: &str| Err(Error::new(ErrorKind::Conflict, headline, why, fix));
        if vm.meta.deleting {
            return refuse("it is being deleted", "wait until it is gone");
        }
        if vm.spec.moving.is_some() {
            return refuse(
                "it is moving to another node",
                "try again when it is there; see `vbm operation list`",
            );
        }
        if vm.spec.reverting.is_some() {
            return refuse(
                "it is going back to a snapshot",
                "try again when it is there; see `vbm operation list`",
            );
        }
        let node = vm.spec.node.as_ref().ok_or_else(|| not_placed(&vm.meta.name))?;
        self.needs_facet(vm, node, FacetKind::Snapshots, headline).await
    }

    /// Refused when the driver of this VM, on its node, cannot do it.
    pub(super) async fn needs_facet(
        &self,
        vm: &Vm,
        node: &vbm_core::NodePath,
        facet: FacetKind,
        headline: &str,
    ) -> Result<()> {
        let Some(node) = self.records().get::<Node>(node).await? else {
            return Ok(());
        };
        let mut missing = node.value.status.missing.into_iter();
        match missing.find(|m| m.driver == vm.spec.driver && m.facet == facet) {
            None => Ok(()),
            Some(missing) => Err(Error::new(
                ErrorKind::Unsupported,
                headline,
                format!(
                    "driver {} on {} has no {facet}: {}",
                    missing.driver, node.value.path, missing.why
                ),
                "see what the drivers of a node can do with `vbm node info`",
            )),
        }
    }
}

/// Whether one can be taken now. What is allowed here, going back can do.
fn may_take(vm: &Vm, headline: &str) -> Result<()> {
    let refuse = |why: String, fix: &str| Err(Error::new(ErrorKind::Conflict, headline, why, fix));
    match vm.status.power {
        PowerState::Saved => refuse(
            "its memory is saved on disk, and a snapshot is of a VM that runs or is off".into(),
            "start it with `vbm start`, or throw its memory away with `vbm discard`",
        ),
        PowerState::Off | PowerState::Crashed(_) | PowerState::Running | PowerState::Paused(_)
            if vm.status.observed < vm.meta.generation =>
        {
            refuse(
                "something else that was asked of it is not done yet".into(),
                "wait for it with `vbm operation list` and `vbm operation wait`",
            )
        }
        PowerState::Off | PowerState::Crashed(_) | PowerState::Running | PowerState::Paused(_) => Ok(()),
        other => refuse(
            format!("it is {other}"),
            "try again when it is running, paused or off",
        ),
    }
}

/// Whether the VM can go back to this snapshot now.
fn may_revert(vm: &Vm, snapshot: &Snapshot, headline: &str) -> Result<()> {
    let refuse = |why: String, fix: &str| Err(Error::new(ErrorKind::Conflict, headline, why, fix));
    if snapshot.meta.deleting {
        return refuse("the snapshot is being deleted".into(), "choose another one");
    }
    match snapshot.status.state {
        SnapshotState::Ready => {}
        SnapshotState::Creating => {
            return refuse("it is being taken".into(), "try again when it is ready");
        }
        _ => {
            return refuse(
                "the snapshot could not be taken, and nothing of it is kept".into(),
                "choose another one; see `vbm snapshot list`",
            );
        }
    }
    match vm.status.power {
        PowerState::Unknown | PowerState::Unresponsive => refuse(
            format!("the VM is {}", vm.status.power),
            "see why with `vbm info`, and try again when its node answers",
        ),
        PowerState::MigratingIn | PowerState::MigratingOut => refuse(
            format!("the VM is {}", vm.status.power),
            "try again when it has arrived",
        ),
        _ => Ok(()),
    }
}

/// Which of a VM's snapshots people call `text`: by name, by id, or by the beginning of an id that fits only one.
fn pick(all: &[Snapshot], text: &str, vm: &Name) -> Result<usize> {
    const ID_PREFIX_MIN_CHARS: usize = 4;
    if let Some(at) = all.iter().position(|s| s.meta.name.as_str() == text) {
        return Ok(at);
    }
    let lower = text.to_ascii_lowercase();
    let fits = |s: &Snapshot| lower.len() >= ID_PREFIX_MIN_CHARS && s.meta.id.to_string().starts_with(&lower);
    let mut found = all.iter().enumerate().filter(|(_, s)| fits(s));
    match (found.next(), found.next()) {
        (Some((at, _)), None) => Ok(at),
        (None, _) => Err(no_such(text, vm)),
        (Some(_), Some(_)) => Err(Error::new(
            ErrorKind::InvalidInput,
            format!("'{text}' fits more than one snapshot of {vm}"),
            "it is the beginning of several ids",
            "write more of the id, or use the name",
        )),
    }
}

fn no_such(text: &str, vm: &Name) -> Error {
    Error::new(
        ErrorKind::NotFound,
        format!("{vm} has no snapshot '{text}'"),
        "none of its snapshots has that name or id",
        format!("list them with `vbm snapshot list {vm}`"),
    )
}

/// How operations and events name a snapshot: with its VM, so that people know which.
fn target(vm: &Vm, snapshot: &Snapshot) -> ObjectRef {
    let name = format!("{}/{}", vm.meta.name, snapshot.meta.name);
    ObjectRef::new(Kind::Snapshot, snapshot.meta.id, name)
}

fn view(snapshot: &Snapshot, vm: &Name, all: &[Snapshot]) -> SnapshotView {
    let parent = snapshot.spec.parent;
    let parent = all.iter().find(|s| Some(s.meta.id) == parent);
    SnapshotView {
        snapshot: snapshot.clone(),
        vm_name: vm.to_string(),
        parent_name: parent.map(|s| s.meta.name.clone()),
    }
}

fn values(held: Vec<Held<Snapshot>>) -> Vec<Snapshot> {
    held.into_iter().map(|h| h.value).collect()
}
