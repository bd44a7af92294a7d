//! Which moves are possible.

use super::*;
use crate::controller::plan::tests::{add_vm, path, spanning};
use vbm_core::{NodeState, PowerState, VmStatus};

fn moved(
    world: &World,
    vm: VmId,
    to: Option<&str>,
    live: Option<bool>,
) -> Result<(NodePath, NodePath, bool)> {
    let request = MigrateRequest {
        to: to.map(path),
        live,
        ..MigrateRequest::default()
    };
    check(world, &world.vms[&vm], &request)
}

/// A VM on `a` in this power state.
fn world(power: PowerState) -> (World, VmId) {
    let mut world = spanning();
    let vm = add_vm(&mut world, 5, Some("a"));
    world.vms.get_mut(&vm).unwrap().status = VmStatus {
        power,
        ..VmStatus::default()
    };
    (world, vm)
}

#[test]
fn a_vm_that_runs_moves_live_and_one_that_is_off_at_rest() {
    for (power, live) in [(PowerState::Running, true), (PowerState::Off, false)] {
        let (world, vm) = world(power);
        assert_eq!(
            moved(&world, vm, None, None).unwrap(),
            (path("a"), path("b"), live)
        );
        let error = moved(&world, vm, Some("b"), Some(!live)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
    }
}

#[test]
fn a_vm_whose_node_is_lost_stays_because_it_may_run_on() {
    let (mut world, vm) = world(PowerState::Unknown);
    world.nodes.get_mut(&path("a")).unwrap().status.state = NodeState::Lost;
    let error = moved(&world, vm, Some("b"), None).unwrap_err();
    assert!(error.why().contains("could run twice"), "{error}");
    assert!(error.fix().contains("fencing"), "{error}");
}

#[test]
fn nodes_that_do_not_share_disks_cannot_move_a_vm() {
    let (mut world, vm) = world(PowerState::Running);
    for storage in [None, Some("another".to_owned())] {
        world.nodes.get_mut(&path("b")).unwrap().status.shared_storage = storage;
        let error = moved(&world, vm, Some("b"), None).unwrap_err();
        assert!(error.why().contains("does not share its disks with a"), "{error}");
    }
}

#[test]
fn a_vm_moves_once_at_a_time_and_not_to_where_it_is() {
    let (mut world, vm) = world(PowerState::Running);
    assert!(
        moved(&world, vm, Some("a"), None)
            .unwrap_err()
            .why()
            .contains("already")
    );
    world.vms.get_mut(&vm).unwrap().spec.moving = Some(VmMove {
        from: path("a"),
        to: path("b"),
        live: true,
        how: vbm_core::MoveHow::default(),
        operation: vbm_core::OperationId::from_uuid(uuid::Uuid::nil()),
    });
    let error = moved(&world, vm, Some("b"), None).unwrap_err();
    assert!(error.why().contains("on its way from a to b"), "{error}");
}

#[test]
fn a_node_that_cannot_take_it_says_everything_that_stands_in_the_way() {
    let (mut world, vm) = world(PowerState::Running);
    let node = world.nodes.get_mut(&path("b")).unwrap();
    node.status.memory_free_mib = 1;
    node.status.underlay = None;
    let error = moved(&world, vm, Some("b"), None).unwrap_err();
    for part in ["MiB of memory", "no address to take in"] {
        assert!(error.why().contains(part), "{error}");
    }
    assert!(moved(&world, vm, None, None).is_err());
}
