//! Whatever is asked of a VM, in any order and at any time: the job mask, the order of events and the journal hold. On the simulated
//! driver, on time that the tests move.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests panic and print as tests do"
)]

mod common;

use proptest::prelude::*;
use std::{sync::Arc, time::Duration};
use tokio::time::{sleep, timeout};
use vbm_core::{OperationId, PowerState, SnapshotId};
use vbm_hyper::{
    Change, Changes, Error, Fault, Job, JobEnd, Latency, Machines, MachinesConfig, OpCx, SimDriver, SimWorld,
    VmDefinition, VmHandle,
};

const LONG: Duration = Duration::from_secs(3600);

/// What is asked, in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ask {
    Start,
    Stop,
    ForceOff,
    Reset,
    Pause,
    Resume,
    Save,
    Restore,
    Take,
    Revert,
    Cancel,
    Look,
}

fn any_ask() -> impl Strategy<Value = Ask> {
    prop_oneof![
        3 => Just(Ask::Start), 1 => Just(Ask::Stop), 2 => Just(Ask::ForceOff), 1 => Just(Ask::Reset), 2 => Just(Ask::Pause),
        2 => Just(Ask::Resume), 1 => Just(Ask::Save), 1 => Just(Ask::Restore), 1 => Just(Ask::Take), 1 => Just(Ask::Revert),
        1 => Just(Ask::Cancel), 1 => Just(Ask::Look),
    ]
}

fn snapshot() -> SnapshotId {
    SnapshotId::from_uuid(uuid::Uuid::from_u128(1))
}

async fn carry_out(ask: Ask, vm: VmHandle, definition: VmDefinition) -> Result<(), Error> {
    match ask {
        Ask::Start => vm.start(definition, vec![]).await.map(drop),
        Ask::Stop => vm.stop(Duration::from_secs(1)).await.map(|_| ()),
        Ask::ForceOff => vm.force_off().await,
        Ask::Reset => vm.reset().await,
        Ask::Pause => vm.pause().await,
        Ask::Resume => vm.resume().await,
        Ask::Save => vm.save().await.map(drop),
        Ask::Restore => vm.restore(definition, vec![]).await.map(drop),
        Ask::Take => vm.take_snapshot(definition, snapshot()).await.map(drop),
        Ask::Revert => vm.revert_snapshot(definition, snapshot(), vec![]).await.map(drop),
        Ask::Cancel => vm.cancel(None).await.map(drop),
        Ask::Look => vm.inspect().await.map(drop),
    }
}

/// Replays what happened: numbers without holes, each event allowed by the power table.
fn replay(changes: &mut Changes, mut power: PowerState) -> PowerState {
    let mut number = 0;
    while let Some(change) = changes.try_next() {
        let Change::Event(event) = change else {
            panic!("so few are never lost")
        };
        number += 1;
        assert_eq!(event.number, number);
        power = power
            .after(event.what.event)
            .expect("the table allows each event");
        assert_eq!(power, event.what.seen.power);
    }
    power
}

async fn story(asks: Vec<(Ask, u8)>) {
    let world = SimWorld::default();
    let machines = Machines::open(Arc::new(SimDriver::open(world).unwrap()))
        .await
        .unwrap();
    let definition = common::definition("/nonexistent/disk.qcow2");
    let vm = machines.vm(definition.id);
    let mut changes = machines.changes();
    let mut asked = Vec::new();
    for (ask, pause) in asks {
        asked.push((ask, tokio::spawn(carry_out(ask, vm.clone(), definition.clone()))));
        // From nothing, over a part of a job, to all of it.
        sleep(Duration::from_millis(
            [0, 0, 1, 7, 60, 400][usize::from(pause % 6)],
        ))
        .await;
        let (seen, work) = (vm.watch().borrow().clone(), vm.work().borrow().clone());
        assert_eq!(seen.busy, work.map(|work| work.job), "what is shown is one story");
    }
    for (ask, answer) in asked {
        let answer = timeout(LONG, answer).await.expect("each is answered").unwrap();
        match (ask, answer) {
            (Ask::ForceOff | Ask::Cancel | Ask::Look, answer) => answer.unwrap(),
            (_, Ok(())) => {}
            (_, Err(error)) => {
                let kind = error.kind();
                let fits = matches!(
                    error,
                    Error::Busy { .. }
                        | Error::Refused(_)
                        | Error::Preempted { .. }
                        | Error::CalledOff { .. }
                );
                // A force-off ended it underneath, or there is no such snapshot.
                let ended = matches!(
                    error,
                    Error::StartFailed { .. } | Error::NoSuchVm(_) | Error::NoSuchSnapshot { .. }
                );
                assert!(fits || ended, "{ask:?}: {kind:?} {error}");
            }
        }
    }
    timeout(LONG, vm.force_off()).await.unwrap().unwrap();
    assert_eq!(vm.inspect().await.unwrap().power(), PowerState::Off);
    assert_eq!(
        (vm.watch().borrow().busy, vm.work().borrow().clone()),
        (None, None)
    );
    sleep(LONG).await;
    assert_eq!(replay(&mut changes, PowerState::Off), PowerState::Off);
    machines.shutdown().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_asked_is_answered_one_job_runs_and_events_replay(
        asks in proptest::collection::vec((any_ask(), any::<u8>()), 1..40)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(story(asks));
    }
}

async fn until_busy(vm: &VmHandle, job: Job) {
    let mut work = vm.work();
    let busy = work.wait_for(|work| work.as_ref().is_some_and(|work| work.job == job));
    drop(timeout(LONG, busy).await.expect("it comes to that").unwrap());
}

/// Machines with a journal on a world in which everything takes long.
async fn slow(world: &SimWorld, jobs: &std::path::Path) -> Machines {
    let driver = SimDriver::open(world.clone()).unwrap();
    let config = MachinesConfig::new().with_journal(jobs);
    Machines::open_with(Arc::new(driver), config).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_job_that_the_daemon_did_not_see_the_end_of_is_told_with_its_operation_until_it_was_heard() {
    let (world, dir) = (SimWorld::default(), tempfile::tempdir().unwrap());
    let definition = common::definition("/nonexistent/disk.qcow2");
    let operation = OperationId::from_uuid(uuid::Uuid::from_u128(9));
    let machines = slow(&world, dir.path()).await;
    let vm = machines.vm(definition.id);
    vm.start(definition.clone(), vec![]).await.unwrap();
    assert!(
        std::fs::read_dir(dir.path()).unwrap().next().is_none(),
        "what ended is not written down"
    );
    world.set_latency(Latency {
        transfer: LONG,
        ..Latency::default()
    });
    let save = {
        let vm = vm.under(OpCx::of(operation));
        tokio::spawn(async move { vm.save().await })
    };
    until_busy(&vm, Job::Save).await;
    let work = vm.work().borrow().clone().unwrap();
    assert_eq!((work.job, work.operation), (Job::Save, Some(operation)));
    machines.shutdown().await;
    save.await.unwrap().unwrap_err();
    // The driver of before let the save go on; it is undone or done by what is seen, and told until somebody heard it.
    for _ in 0..2 {
        let machines = slow(&world, dir.path()).await;
        let told = machines.ended_jobs();
        assert_eq!(told.len(), 1);
        assert_eq!(
            (told[0].vm, told[0].job, told[0].operation),
            (definition.id, Job::Save, Some(operation))
        );
        let power = told[0].seen.as_ref().unwrap().power;
        let expected = match power {
            PowerState::Running | PowerState::Paused(_) => JobEnd::Undone,
            PowerState::Saved => JobEnd::Done,
            _ => JobEnd::Unknown,
        };
        assert_eq!(told[0].end, expected, "{power}");
        machines.shutdown().await;
    }
    let machines = slow(&world, dir.path()).await;
    machines.heard_of(&machines.ended_jobs()[0]);
    machines.shutdown().await;
    let machines = slow(&world, dir.path()).await;
    assert_eq!(machines.ended_jobs(), []);
    machines.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_job_is_called_off_by_its_operation_and_by_no_other() {
    let world = SimWorld::default();
    let machines = Machines::open(Arc::new(SimDriver::open(world.clone()).unwrap()))
        .await
        .unwrap();
    let definition = common::definition("/nonexistent/disk.qcow2");
    let vm = machines.vm(definition.id);
    assert!(!vm.cancel(None).await.unwrap(), "there is nothing to call off");
    vm.start(definition.clone(), vec![]).await.unwrap();
    world.add_fault(definition.id, Fault::IgnoresButton);
    let id = |n| OperationId::from_uuid(uuid::Uuid::from_u128(n));
    let stop = {
        let vm = vm.under(OpCx::of(id(1)));
        tokio::spawn(async move { vm.stop(LONG).await })
    };
    until_busy(&vm, Job::Stop).await;
    assert!(!vm.cancel(Some(id(2))).await.unwrap());
    assert_eq!(vm.watch().borrow().busy, Some(Job::Stop));
    assert!(vm.cancel(Some(id(1))).await.unwrap());
    let ended = stop.await.unwrap().unwrap_err();
    assert!(matches!(ended, Error::CalledOff { .. }), "{ended}");
    vm.force_off().await.unwrap();
    // A start, too; it leaves nothing.
    world.set_latency(Latency {
        start: LONG,
        ..Latency::default()
    });
    let cx = OpCx::new();
    let start = {
        let (vm, definition) = (vm.under(cx.clone()), definition.clone());
        tokio::spawn(async move { vm.start(definition, vec![]).await })
    };
    until_busy(&vm, Job::Start).await;
    cx.cancel();
    let ended = start.await.unwrap().unwrap_err();
    assert!(matches!(ended, Error::CalledOff { .. }), "{ended}");
    assert_eq!(vm.inspect().await.unwrap().power(), PowerState::Off);
    machines.shutdown().await;
}
