//! Which moves are possible, and why the others are not: pure.

use crate::api::MigrateRequest;
use crate::controller::{
    plan::World,
    schedule::Candidate,
    vms::{being_deleted, not_placed},
};
use vbm_core::{Error, ErrorKind, Node, NodePath, NodeState, PowerState, Result, Vm};

/// From where, to where, and whether it runs meanwhile; or why it cannot be.
pub(super) fn check(world: &World, vm: &Vm, request: &MigrateRequest) -> Result<(NodePath, NodePath, bool)> {
    let headline = || format!("cannot move {}", vm.meta.name);
    let conflict = |why: String, fix: &str| Err(Error::new(ErrorKind::Conflict, headline(), why, fix));
    if vm.meta.deleting {
        return Err(being_deleted(&vm.meta.name));
    }
    if let Some(moving) = &vm.spec.moving {
        return conflict(
            format!("it is on its way from {} to {}", moving.from, moving.to),
            "wait for that; `vbm operation list` shows it",
        );
    }
    if vm.spec.reverting.is_some() {
        return conflict(
            "it is going back to a snapshot".into(),
            "wait for that; `vbm operation list` shows it",
        );
    }
    if world.has_snapshot_under_way(vm.meta.id) {
        return conflict(
            "a snapshot of it is being taken or deleted".into(),
            "wait for that; `vbm operation list` shows it",
        );
    }
    let from = vm.spec.node.clone().ok_or_else(|| not_placed(&vm.meta.name))?;
    let source = world
        .nodes
        .get(&from)
        .ok_or_else(|| Error::not_found("node", &from))?;
    if source.status.state != NodeState::Ready {
        return conflict(
            format!(
                "its node {from} is {}: nobody can tell whether it still runs there, and started elsewhere it could run twice",
                source.status.state
            ),
            "bring the node back; recovery of VMs from a dead node needs fencing, which there is not yet",
        );
    }
    let live = match vm.status.power {
        PowerState::Running | PowerState::Paused(_) => true,
        PowerState::Off | PowerState::Crashed(_) => false,
        other => {
            return conflict(
                format!("it is {other}"),
                "wait until it runs or is off, and try again",
            );
        }
    };
    if request.live == Some(true) && !live {
        return conflict(format!("it is {}", vm.status.power), "leave --live out");
    }
    if request.live == Some(false) && live {
        return conflict(
            format!("it is {}", vm.status.power),
            "stop it first with `vbm stop`, or let it move while it runs",
        );
    }
    let to = match &request.to {
        Some(to) => to.clone(),
        None => best_other(world, vm, &from)?,
    };
    let destination = world
        .nodes
        .get(&to)
        .ok_or_else(|| Error::not_found("node", &to))?;
    if to == from {
        return conflict(format!("it is on {to} already"), "choose another node");
    }
    if request.copy_disks && !live {
        return conflict(
            format!(
                "it is {}, and its disk can only be copied while it runs",
                vm.status.power
            ),
            "start it first, or share the disks between the nodes (vbmd --shared-storage)",
        );
    }
    if request.copy_disks && matches!(vm.status.power, PowerState::Paused(_)) {
        return conflict(
            "it is paused, and its destination could not tell whether to let it go on".into(),
            "let it go on with `vbm resume` first",
        );
    }
    if request.copy_disks && world.has_snapshots(vm.meta.id) {
        return conflict(
            "it has snapshots, which a copy of its disk would leave behind".into(),
            "delete them first with `vbm snapshot delete`, or share the disks between the nodes",
        );
    }
    let reasons = reasons(world, vm, source, destination, (live, request.copy_disks));
    if !reasons.is_empty() {
        return conflict(
            format!("{to}: {}", reasons.join(", ")),
            "choose another node; `vbm placement` shows what each could do",
        );
    }
    Ok((from, to, live))
}

/// What stands in the way of a move to a node.
fn reasons(
    world: &World,
    vm: &Vm,
    source: &Node,
    destination: &Node,
    (live, copies): (bool, bool),
) -> Vec<String> {
    let Candidate { mut reasons, .. } = world.candidate(vm, destination);
    let (here, there) = (&source.status.shared_storage, &destination.status.shared_storage);
    let shared = here.is_some() && here == there;
    if !shared && !copies {
        reasons.push(format!(
            "it does not share its disks with {} (vbmd --shared-storage; or `vbm migrate --copy-disks` while the VM runs)",
            source.path
        ));
    }
    if shared && copies {
        reasons.push(format!(
            "it shares its disks with {}: there is nothing to copy",
            source.path
        ));
    }
    if live && destination.status.underlay.is_none() {
        reasons.push("it has no address to take in a running VM (vbmd --underlay)".into());
    }
    reasons
}

fn best_other(world: &World, vm: &Vm, from: &NodePath) -> Result<NodePath> {
    let mut others: Vec<Candidate> = world.candidates(vm);
    others.retain(|c| c.node != *from);
    match others.iter().find(|c| c.fits()) {
        Some(best) => Ok(best.node.clone()),
        None => Err(Error::new(
            ErrorKind::Unavailable,
            format!("cannot move {}: no other node can take it", vm.meta.name),
            others
                .iter()
                .map(|c| format!("{}: {}", c.node, c.reasons.join(", ")))
                .collect::<Vec<_>>()
                .join("; "),
            "see `vbm node list`",
        )),
    }
}
