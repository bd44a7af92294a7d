//! Snapshots, saved memory and migration through the actor, on the simulated driver and on time that the tests move.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests panic and print as tests do"
)]

mod common;

use std::{future::Future, net::Ipv4Addr, pin::Pin, sync::Arc, time::Duration};
use tokio::time::{Instant, timeout};
use vbm_core::{ErrorKind, PauseReason, PowerEvent, PowerState, SnapshotContent, SnapshotId};
use vbm_hyper::{
    Change, Error, Fault, Job, Latency, Machines, MoveOptions, SimDriver, SimWorld, VmDefinition, VmHandle,
    limits::ARRIVAL_DEADLINE,
};

const LONG: Duration = Duration::from_secs(3600);
const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;

async fn host(world: &SimWorld) -> Machines {
    let driver = SimDriver::open(world.clone()).unwrap();
    Machines::open(Arc::new(driver)).await.unwrap()
}

/// A host with a VM that runs.
async fn running() -> (SimWorld, Machines, VmDefinition, VmHandle) {
    let world = SimWorld::default();
    let machines = host(&world).await;
    let definition = common::definition("/nonexistent/disk.qcow2");
    let vm = machines.vm(definition.id);
    vm.start(definition.clone(), vec![]).await.unwrap();
    (world, machines, definition, vm)
}

fn snapshot(number: u128) -> SnapshotId {
    SnapshotId::from_uuid(uuid::Uuid::from_u128(number))
}

async fn until(vm: &VmHandle, wanted: impl FnMut(&vbm_hyper::VmSeen) -> bool) {
    let mut watch = vm.watch();
    timeout(LONG, watch.wait_for(wanted))
        .await
        .expect("it comes to that")
        .unwrap();
}

fn power(vm: &VmHandle) -> PowerState {
    vm.watch().borrow().power()
}

fn slow() -> Latency {
    Latency {
        transfer: LONG,
        ..Latency::default()
    }
}

type Work = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

/// Each job that takes a while, on a VM that is where the job can begin.
fn long_jobs(vm: &VmHandle, definition: &VmDefinition) -> Vec<(Job, PowerState, Work)> {
    let (running, saved) = (PowerState::Running, PowerState::Saved);
    let mut jobs: Vec<(Job, PowerState, Work)> = Vec::new();
    let (a, d) = (vm.clone(), definition.clone());
    let take = async move { a.take_snapshot(d, snapshot(9)).await.map(drop) };
    jobs.push((Job::TakeSnapshot, running, Box::pin(take)));
    let a = vm.clone();
    jobs.push((
        Job::Save,
        running,
        Box::pin(async move { a.save().await.map(drop) }),
    ));
    let a = vm.clone();
    let to = std::net::SocketAddr::from((HERE, 1));
    let leave = async move { a.migrate_out(to, MoveOptions::default()).await.map(drop) };
    jobs.push((Job::MigrateOut, running, Box::pin(leave)));
    let (a, d) = (vm.clone(), definition.clone());
    let restore = async move { a.restore(d, vec![]).await.map(drop) };
    jobs.push((Job::Restore, saved, Box::pin(restore)));
    let (a, d) = (vm.clone(), definition.clone());
    let revert = async move { a.revert_snapshot(d, snapshot(1), vec![]).await.map(drop) };
    jobs.push((Job::RevertSnapshot, saved, Box::pin(revert)));
    jobs
}

#[tokio::test(start_paused = true)]
async fn during_each_long_job_others_are_refused_queries_answered_and_force_off_ends_it() {
    let (world, machines, definition, vm) = running().await;
    vm.take_snapshot(definition.clone(), snapshot(1)).await.unwrap();
    for (job, from, work) in long_jobs(&vm, &definition) {
        if power(&vm) == PowerState::Off {
            vm.start(definition.clone(), vec![]).await.unwrap();
        }
        if from == PowerState::Saved {
            vm.save().await.unwrap();
        }
        assert_eq!(power(&vm), from, "{job:?}");
        world.set_latency(slow());
        let work = tokio::spawn(work);
        until(&vm, |seen| seen.busy == Some(job)).await;
        for refused in [
            vm.pause().await,
            vm.save().await.map(drop),
            vm.delete_snapshot(definition.clone(), snapshot(1)).await,
            vm.start(definition.clone(), vec![]).await.map(drop),
            vm.abandon().await,
            vm.remove().await,
        ] {
            let error = refused.unwrap_err();
            assert!(
                matches!(error, Error::Busy { job: busy, .. } if busy == job.as_str()),
                "during {job:?}: {error}"
            );
        }
        assert_eq!(vm.inspect().await.unwrap().busy, Some(job));
        let listed = vm.list_snapshots(&definition).await.unwrap();
        assert_eq!(listed, [(snapshot(1), SnapshotContent::DiskAndMemory)]);
        let begun = Instant::now();
        vm.force_off().await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(1));
        let ended = work.await.unwrap().unwrap_err();
        assert!(matches!(ended, Error::Preempted { .. }), "{job:?}: {ended}");
        assert_eq!(power(&vm), PowerState::Off, "{job:?}");
        world.set_latency(Latency::default());
    }
    vm.remove().await.unwrap();
    machines.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn what_fails_changes_nothing_and_works_the_next_time() {
    let (world, machines, definition, vm) = running().await;
    let (id, words) = (definition.id, || "it is broken".to_owned());
    for paused in [false, true] {
        let was = if paused {
            vm.pause().await.unwrap();
            PowerState::Paused(PauseReason::Requested)
        } else {
            PowerState::Running
        };
        world.add_fault(id, Fault::NextSnapshotFails(words()));
        world.add_fault(id, Fault::NextSaveFails(words()));
        world.add_fault(id, Fault::NextMigrationFails(words()));
        for failed in [
            vm.take_snapshot(definition.clone(), snapshot(1)).await.map(drop),
            vm.save().await.map(drop),
            vm.migrate_out(std::net::SocketAddr::from((HERE, 1)), MoveOptions::default())
                .await
                .map(drop),
        ] {
            let error = failed.unwrap_err();
            assert!(error.to_string().contains("it is broken"), "{error}");
            assert_eq!(power(&vm), was);
        }
        assert_eq!(vm.list_snapshots(&definition).await.unwrap(), []);
    }
    vm.save().await.unwrap();
    world.add_fault(id, Fault::NextRestoreFails(words()));
    vm.restore(definition.clone(), vec![]).await.unwrap_err();
    assert_eq!(power(&vm), PowerState::Saved);
    vm.restore(definition.clone(), vec![]).await.unwrap();
    assert_eq!(power(&vm), PowerState::Running);
    machines.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_vm_moves_between_two_hosts_and_what_does_not_come_is_given_up() {
    let (world, machines, definition, vm) = running().await;
    let other = host(&world.beside()).await;
    let there = other.vm(definition.id);
    let to = there
        .migrate_in(definition.clone(), vec![], HERE, MoveOptions::default())
        .await
        .unwrap();
    assert_eq!(power(&there), PowerState::MigratingIn);
    assert_eq!(
        there.start(definition.clone(), vec![]).await.unwrap_err().kind(),
        ErrorKind::Conflict
    );
    vm.migrate_out(to, MoveOptions::default()).await.unwrap();
    until(&there, |seen| seen.power() == PowerState::Running).await;
    assert_eq!(power(&vm), PowerState::Off);

    // Nobody comes: given up by itself, and by hand.
    let mut changes = machines.changes();
    let begun = Instant::now();
    vm.migrate_in(definition.clone(), vec![], HERE, MoveOptions::default())
        .await
        .unwrap();
    until(&vm, |seen| seen.power() == PowerState::Off).await;
    assert_eq!(begun.elapsed().as_secs(), ARRIVAL_DEADLINE.as_secs());
    let mut story = Vec::new();
    while let Some(Change::Event(change)) = changes.try_next() {
        story.push(change.what.event);
    }
    assert!(
        story.ends_with(&[PowerEvent::MigrateIn, PowerEvent::MigrateFailed]),
        "{story:?}"
    );
    vm.migrate_in(definition.clone(), vec![], HERE, MoveOptions::default())
        .await
        .unwrap();
    vm.abandon().await.unwrap();
    assert_eq!(power(&vm), PowerState::Off);
    assert_eq!(vm.abandon().await.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(power(&there), PowerState::Running);
    other.shutdown().await;
    machines.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_definition_of_another_vm_is_refused() {
    let (_world, machines, _, vm) = running().await;
    let other = common::definition("/nonexistent/other.qcow2");
    for refused in [
        vm.take_snapshot(other.clone(), snapshot(1)).await.map(drop),
        vm.revert_snapshot(other.clone(), snapshot(1), vec![])
            .await
            .map(drop),
        vm.delete_snapshot(other.clone(), snapshot(1)).await,
        vm.list_snapshots(&other).await.map(drop),
        vm.restore(other.clone(), vec![]).await.map(drop),
        vm.migrate_in(other.clone(), vec![], HERE, MoveOptions::default())
            .await
            .map(drop),
    ] {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    machines.shutdown().await;
}
