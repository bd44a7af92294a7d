//! The actor's promises, on the simulated driver and on time that the tests move.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests panic and print as tests do"
)]

mod common;

use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, timeout};
use vbm_core::{CrashCause, ErrorKind, PowerEvent, PowerState};
use vbm_hyper::{
    Change, Error, Fault, Job, Latency, Machines, SimDriver, SimWorld, StopOutcome, VmDefinition, VmHandle,
};

const LONG: Duration = Duration::from_secs(3600);

async fn machines() -> (SimWorld, Machines) {
    let world = SimWorld::default();
    let machines = Machines::open(Arc::new(SimDriver::open(world.clone()).unwrap()))
        .await
        .unwrap();
    (world, machines)
}

fn vm(machines: &Machines) -> (VmDefinition, VmHandle) {
    let definition = common::definition("/nonexistent/disk.qcow2");
    let handle = machines.vm(definition.id);
    (definition, handle)
}

async fn running(machines: &Machines) -> (VmDefinition, VmHandle) {
    let (definition, vm) = vm(machines);
    vm.start(definition.clone(), vec![]).await.unwrap();
    (definition, vm)
}

async fn until(vm: &VmHandle, wanted: impl FnMut(&vbm_hyper::VmSeen) -> bool) {
    let mut watch = vm.watch();
    timeout(LONG, watch.wait_for(wanted))
        .await
        .expect("it comes to that")
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_vm_lives_from_start_to_removal() {
    let (_, machines) = machines().await;
    let mut changes = machines.changes();
    let (_, vm) = running(&machines).await;
    assert_eq!(
        vm.watch().borrow().power(),
        PowerState::Running,
        "the watch is not behind the answer"
    );
    vm.pause().await.unwrap();
    vm.resume().await.unwrap();
    vm.reset().await.unwrap();
    let outcome = vm.stop(LONG).await.unwrap();
    assert!(
        matches!(outcome, StopOutcome::Off { pressed: 1, .. }),
        "{outcome:?}"
    );
    assert!(
        vm.stop(LONG).await.unwrap().is_off(),
        "what is off may be stopped"
    );
    vm.remove().await.unwrap();
    let mut story = Vec::new();
    while let Some(Change::Event(change)) = changes.try_next() {
        story.push(change.what.event);
    }
    assert_eq!(story.first(), Some(&PowerEvent::Start));
    assert_eq!(story.last(), Some(&PowerEvent::ShutDown));
    machines.shutdown().await;
    assert_eq!(vm.pause().await.unwrap_err().kind(), ErrorKind::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn the_button_is_pressed_again_until_the_grace_is_over() {
    let (world, machines) = machines().await;
    let (definition, vm) = running(&machines).await;
    world.add_fault(definition.id, Fault::IgnoresButton);
    let begun = Instant::now();
    let outcome = vm.stop(Duration::from_secs(15)).await.unwrap();
    assert!(
        matches!(outcome, StopOutcome::StillRunning { pressed: 4, .. }),
        "at 0, 2, 6 and 14 seconds: {outcome:?}"
    );
    assert_eq!(begun.elapsed().as_secs(), 15);
    // A guest that boots loses the first press, and hears a later one.
    let stop = {
        let vm = vm.clone();
        tokio::spawn(async move { vm.stop(LONG).await })
    };
    until(&vm, |seen| seen.busy == Some(Job::Stop)).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    world.clear_faults(definition.id);
    assert!(matches!(
        stop.await.unwrap().unwrap(),
        StopOutcome::Off { pressed: 2.., .. }
    ));
    machines.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn force_off_ends_a_stop_that_hangs_and_queries_are_answered_all_the_while() {
    let (world, machines) = machines().await;
    let (definition, vm) = running(&machines).await;
    world.add_fault(definition.id, Fault::IgnoresButton);
    let stop = {
        let vm = vm.clone();
        tokio::spawn(async move { vm.stop(LONG).await })
    };
    until(&vm, |seen| seen.busy == Some(Job::Stop)).await;
    until(&vm, |seen| seen.power() == PowerState::Stopping).await;
    let seen = vm.inspect().await.unwrap();
    assert_eq!((seen.power(), seen.busy), (PowerState::Stopping, Some(Job::Stop)));
    assert!(matches!(
        vm.pause().await.unwrap_err(),
        Error::Busy { job: "stop", .. }
    ));
    assert!(matches!(vm.remove().await.unwrap_err(), Error::Busy { .. }));
    let begun = Instant::now();
    let (a, b) = tokio::join!(vm.force_off(), vm.force_off());
    a.unwrap();
    b.unwrap();
    assert!(
        begun.elapsed() < Duration::from_secs(1),
        "it does not wait for the stop"
    );
    assert!(matches!(
        stop.await.unwrap().unwrap_err(),
        Error::Preempted { job: "stop", .. }
    ));
    until(&vm, |seen| seen.power() == PowerState::Off && seen.busy.is_none()).await;
    vm.start(definition, vec![]).await.unwrap();
    machines.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn force_off_ends_a_start_and_the_vm_can_be_started_again() {
    let (world, machines) = machines().await;
    world.set_latency(Latency {
        start: LONG,
        ..Latency::default()
    });
    let (definition, vm) = vm(&machines);
    let start = {
        let (vm, definition) = (vm.clone(), definition.clone());
        tokio::spawn(async move { vm.start(definition, vec![]).await })
    };
    until(&vm, |seen| seen.power() == PowerState::Starting).await;
    vm.force_off().await.unwrap();
    assert!(matches!(
        start.await.unwrap().unwrap_err(),
        Error::Preempted { job: "start", .. }
    ));
    assert_eq!(vm.watch().borrow().power(), PowerState::Off);
    world.set_latency(Latency::NONE);
    vm.start(definition, vec![]).await.unwrap();
    machines.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_job_goes_on_when_nobody_waits_for_it() {
    let (_, machines) = machines().await;
    let (definition, vm) = vm(&machines);
    let impatient = timeout(Duration::from_millis(10), vm.start(definition, vec![])).await;
    assert!(impatient.is_err());
    until(&vm, |seen| seen.power() == PowerState::Running).await;
    machines.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn what_the_power_table_refuses_never_reaches_the_driver() {
    let (_, machines) = machines().await;
    let (definition, vm) = vm(&machines);
    assert_eq!(vm.resume().await.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(vm.reset().await.unwrap_err().kind(), ErrorKind::Conflict);
    vm.force_off().await.unwrap();
    vm.start(definition.clone(), vec![]).await.unwrap();
    assert_eq!(
        vm.start(definition, vec![]).await.unwrap_err().kind(),
        ErrorKind::Conflict
    );
    let (other, _) = self::vm(&machines);
    assert_eq!(
        vm.start(other, vec![]).await.unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
    machines.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_crash_is_seen_without_asking_and_a_failed_start_is_told() {
    let (world, machines) = machines().await;
    let (definition, vm) = running(&machines).await;
    world.crash(definition.id, CrashCause::Guest);
    until(&vm, |seen| seen.power() == PowerState::Crashed(CrashCause::Guest)).await;
    world.add_fault(definition.id, Fault::NextStartFails("no memory".into()));
    let error = vm.start(definition.clone(), vec![]).await.unwrap_err();
    assert!(matches!(error, Error::StartFailed { .. }), "{error}");
    assert_eq!(vm.watch().borrow().power(), PowerState::Off);
    vm.start(definition, vec![]).await.unwrap();
    machines.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_hypervisor_makes_a_vm_unresponsive_and_it_comes_back() {
    let (world, machines) = machines().await;
    let (definition, vm) = running(&machines).await;
    world.add_fault(definition.id, Fault::Silent);
    assert!(matches!(vm.pause().await.unwrap_err(), Error::Timeout { .. }));
    assert_eq!(vm.watch().borrow().power(), PowerState::Unresponsive);
    world.clear_faults(definition.id);
    until(&vm, |seen| seen.power() == PowerState::Running).await;
    machines.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn machines_are_found_again_by_the_next_ones() {
    let (world, machines) = machines().await;
    let (definition, _) = running(&machines).await;
    machines.shutdown().await;
    let machines = Machines::open(Arc::new(SimDriver::open(world).unwrap()))
        .await
        .unwrap();
    assert_eq!(machines.adopted().len(), 1);
    let vm = machines.vm(definition.id);
    assert_eq!(vm.watch().borrow().power(), PowerState::Running);
    assert_eq!(machines.list().len(), 1);
    vm.force_off().await.unwrap();
    vm.remove().await.unwrap();
    until_removed(&machines).await;
    machines.shutdown().await;
}

async fn until_removed(machines: &Machines) {
    let gone = async {
        while !machines.list().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(LONG, gone).await.expect("the actor of a removed VM ends");
}

#[tokio::test]
async fn a_thousand_machines_are_listed_at_once() {
    let world = SimWorld::instant();
    let machines = Machines::open(Arc::new(SimDriver::open(world).unwrap()))
        .await
        .unwrap();
    for _ in 0..1000 {
        running(&machines).await;
    }
    let begun = Instant::now();
    let (inventory, list) = (machines.driver().inventory().await.unwrap(), machines.list());
    println!("MEASURED inventory and list of 1000: {:?}", begun.elapsed());
    assert_eq!((inventory.len(), list.len()), (1000, 1000));
    assert!(list.iter().all(|(_, vm)| vm.power() == PowerState::Running));
    machines.shutdown().await;
}

fn is_send_sync_static<T: Send + Sync + 'static>() {}

#[test]
fn handles_go_everywhere() {
    is_send_sync_static::<Machines>();
    is_send_sync_static::<VmHandle>();
    is_send_sync_static::<vbm_hyper::QemuDriver>();
    is_send_sync_static::<vbm_hyper::ImageStore>();
    is_send_sync_static::<vbm_hyper::Pool>();
}
