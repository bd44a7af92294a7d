//! Every operation in every state; many clients at once; work that is broken off anywhere.

use super::*;
use crate::{Change, Job, Machines, MoveOptions, VmHandle, actor::PREEMPTED_BY_FORCE_OFF};
use std::{
    pin::{Pin, pin},
    task::Poll,
};

/// An operation of a driver that the power table speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Start,
    Stop,
    Reset,
    Pause,
    Resume,
    Save,
    Restore,
    Undefine,
}

const OPERATIONS: &[Operation] = &[
    Operation::Start,
    Operation::Stop,
    Operation::Reset,
    Operation::Pause,
    Operation::Resume,
    Operation::Save,
    Operation::Restore,
    Operation::Undefine,
];

impl Operation {
    /// Whether it is allowed, by the core's table where that has a word.
    fn is_allowed(self, power: PowerState) -> bool {
        let event = match self {
            Self::Start => PowerEvent::Start,
            Self::Stop => PowerEvent::Stop,
            Self::Reset => PowerEvent::Reset,
            Self::Pause => PowerEvent::Pause(PauseReason::Requested),
            Self::Resume => PowerEvent::Resume,
            Self::Save => PowerEvent::Save,
            // The table also goes back to a snapshot by it, from rest.
            Self::Restore => return power == PowerState::Saved,
            Self::Undefine => return matches!(power, PowerState::Off | PowerState::Crashed(_)),
        };
        power.after(event).is_ok()
    }

    async fn run(self, ground: &Ground<'_>, definition: &VmDefinition) -> crate::Result<()> {
        let (driver, cx, id) = (&ground.driver, &ground.cx, definition.id);
        let none = || {
            Err(Error::Unsupported {
                driver: driver.kind(),
                what: "keep memory".into(),
                why: String::new(),
            })
        };
        match self {
            Self::Start => driver.start(cx, definition, NO_NICS).await.map(drop),
            Self::Stop => driver.stop(id).await,
            Self::Reset => driver.reset(id).await,
            Self::Pause => driver.pause(id).await,
            Self::Resume => driver.resume(id).await,
            Self::Save => match driver.saved_state() {
                Some(facet) => facet.save(cx, id).await.map(drop),
                None => none(),
            },
            Self::Restore => match driver.saved_state() {
                Some(facet) => facet.restore(cx, definition, NO_NICS).await.map(drop),
                None => none(),
            },
            Self::Undefine => driver.undefine(id).await,
        }
    }
}

/// Brings a VM to a state, from any other; `false`: this driver cannot.
async fn bring(ground: &mut Ground<'_>, definition: &VmDefinition, power: PowerState) -> bool {
    let id = definition.id;
    if ground.driver.inspect(id).await.is_ok() {
        ground.kill(id).await;
    }
    ground.start(definition).await;
    match power {
        PowerState::Off => ground.kill(id).await,
        PowerState::Paused(_) => ground.driver.pause(id).await.expect("it runs"),
        PowerState::Crashed(_) => {
            ground.bench.accident(id, &ground.seen(id).await).await;
            ground
                .event(id, |event| matches!(event, PowerEvent::Crash(_)))
                .await;
        }
        PowerState::Saved => match Operation::Save.run(ground, definition).await {
            Err(Error::Unsupported { .. }) => return false,
            saved => saved.expect("a VM that runs can be saved"),
        },
        _ => {}
    }
    assert_eq!(ground.power(id).await, power);
    true
}

const STATES: &[PowerState] = &[
    PowerState::Off,
    PowerState::Running,
    PowerState::Paused(PauseReason::Requested),
    PowerState::Saved,
    PowerState::Crashed(CrashCause::Hypervisor),
];

/// Each operation in each state at which a VM stays by itself is allowed or refused as the power table says; what is refused is a
/// conflict and changes nothing.
pub async fn every_operation_in_every_state_is_as_the_table_says(bench: &dyn Bench) -> Verdict {
    let mut ground = Ground::open(bench).await;
    let definition = bench.definition();
    let id = definition.id;
    for power in STATES {
        if !bring(&mut ground, &definition, *power).await {
            continue;
        }
        for operation in OPERATIONS
            .iter()
            .filter(|operation| !operation.is_allowed(*power))
        {
            let before = ground.seen(id).await;
            match operation.run(&ground, &definition).await {
                Err(Error::Unsupported { .. }) => {}
                result => refused(result, &format!("{operation:?} of a VM that is {power}")),
            }
            assert_eq!(
                ground.seen(id).await,
                before,
                "a refused {operation:?} changes nothing"
            );
        }
        let mut fresh = true;
        for operation in OPERATIONS.iter().filter(|operation| operation.is_allowed(*power)) {
            if !fresh {
                bring(&mut ground, &definition, *power).await;
            }
            fresh = false;
            match operation.run(&ground, &definition).await {
                Ok(()) | Err(Error::Unsupported { .. }) => {}
                Err(error) => panic!("{operation:?} of a VM that is {power}: {error}"),
            }
        }
    }
    if ground.driver.inspect(id).await.is_err() {
        ground.start(&definition).await;
    }
    ground.done(&[id]).await
}

/// What may be asked for twice does no harm the second time: force-off, adoption, forgetting, the end of a saved memory.
pub async fn what_is_done_already_can_be_asked_for_again(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let id = ground.started().await;
    let before = ground.seen(id).await;
    for _ in 0..2 {
        ground.driver.adopt().await.expect("it can be adopted twice");
        if let Some(saved) = ground.driver.saved_state() {
            saved.discard(id).await.expect("there is nothing to throw away");
        }
    }
    assert_eq!(ground.seen(id).await, before, "it runs on");
    ground.kill(id).await;
    ground.kill(id).await;
    for _ in 0..2 {
        ground.driver.undefine(id).await.expect("it is off, or forgotten");
    }
    ground.driver.shutdown().await;
    ground.driver.shutdown().await;
    Verdict::Kept
}

/// 32 clients ask one VM for anything at once: each is answered, what happened replays through the power table, and the VM is
/// whole at the end.
pub async fn thirty_two_clients_leave_one_vm_whole(bench: &dyn Bench) -> Verdict {
    const CLIENTS: usize = 32;
    let driver = bench.open().await;
    let machines = Machines::open(driver).await.expect("it opens");
    let definition = bench.definition();
    let vm = machines.vm(definition.id);
    let mut changes = machines.changes();
    let clients = (0..CLIENTS).map(|n| {
        let (vm, definition) = (vm.clone(), definition.clone());
        tokio::spawn(async move { client(n, &vm, definition).await })
    });
    let clients: Vec<_> = clients.collect();
    for done in clients {
        let joined = timeout(bench.patience(), done).await;
        joined.expect("each is answered").expect("none panics");
    }
    vm.force_off().await.expect("it can always be ended");
    assert_eq!(vm.inspect().await.expect("it is known").power(), PowerState::Off);
    let (mut power, mut number) = (PowerState::Off, 0);
    while let Some(change) = changes.try_next() {
        let Change::Event(event) = change else {
            panic!("so few are never lost")
        };
        number += 1;
        assert_eq!(event.number, number, "numbers have no holes");
        power = power
            .after(event.what.event)
            .expect("the table allows each event");
        assert_eq!(power, event.what.seen.power);
    }
    vm.start(definition, NO_NICS).await.expect("it can be used again");
    vm.force_off().await.expect("it can always be ended");
    vm.remove().await.expect("it is off");
    machines.shutdown().await;
    Verdict::Kept
}

/// Asks for two things; what it is refused must be a refusal.
async fn client(n: usize, vm: &VmHandle, definition: VmDefinition) {
    for step in [n, n / 4] {
        let result = match step % 7 {
            0 | 1 => vm.start(definition.clone(), NO_NICS).await.map(drop),
            2 => vm.pause().await,
            3 => vm.resume().await,
            4 => vm.reset().await,
            5 => vm.inspect().await.map(drop),
            _ => vm.force_off().await,
        };
        if let Err(error) = result {
            let kind = error.kind();
            let refused = matches!(kind, ErrorKind::Conflict | ErrorKind::Cancelled);
            // A force-off came between two steps of it.
            let ended = matches!(
                error,
                Error::StartFailed { .. } | Error::Disconnected { .. } | Error::NoSuchVm(_)
            );
            assert!(refused || ended, "{error}");
        }
    }
}

type Begun = Pin<Box<dyn Future<Output = crate::Result<()>> + Send>>;

/// A job of a VM, from a state in which it can begin.
fn begin(job: Job, vm: &VmHandle, definition: &VmDefinition) -> Option<(PowerState, Begun)> {
    let (vm, definition) = (vm.clone(), definition.clone());
    let snapshot = vbm_core::SnapshotId::from_uuid(uuid::Uuid::from_u128(77));
    let (running, off) = (PowerState::Running, PowerState::Off);
    Some(match job {
        Job::Start => (
            off,
            Box::pin(async move { vm.start(definition, NO_NICS).await.map(drop) }),
        ),
        Job::Stop => (
            running,
            Box::pin(async move { vm.stop(Duration::from_secs(600)).await.map(|_| ()) }),
        ),
        Job::Reset => (running, Box::pin(async move { vm.reset().await })),
        Job::Pause => (running, Box::pin(async move { vm.pause().await })),
        Job::Save => (running, Box::pin(async move { vm.save().await.map(drop) })),
        Job::TakeSnapshot => (
            running,
            Box::pin(async move { vm.take_snapshot(definition, snapshot).await.map(drop) }),
        ),
        Job::MigrateIn => (
            off,
            Box::pin(async move {
                let here = std::net::Ipv4Addr::LOCALHOST;
                vm.migrate_in(definition, NO_NICS, here, MoveOptions::default())
                    .await
                    .map(drop)
            }),
        ),
        _ => return None,
    })
}

/// A force-off during any job ends the job and the VM, whose caller is told so; then the VM can be started.
pub async fn force_off_ends_every_job(bench: &dyn Bench) -> Verdict {
    let machines = Machines::open(bench.open().await).await.expect("it opens");
    let definition = bench.definition();
    let vm = machines.vm(definition.id);
    for job in PREEMPTED_BY_FORCE_OFF {
        let Some((from, work)) = begin(*job, &vm, &definition) else {
            continue;
        };
        if from == PowerState::Running {
            vm.start(definition.clone(), NO_NICS).await.expect("it starts");
        }
        let work = tokio::spawn(work);
        let mut watch = vm.watch();
        let begun = async {
            while !work.is_finished() && watch.borrow_and_update().busy != Some(*job) {
                // Nobody tells when the task is done; a look now and then does.
                drop(timeout(LOOK_AGAIN, watch.changed()).await);
            }
        };
        timeout(bench.patience(), begun).await.expect("the job begins");
        let forced = timeout(bench.patience(), vm.force_off()).await;
        forced.expect("a force-off waits for no job").expect("it works");
        let seen = vm.inspect().await.expect("it is known").seen;
        assert_eq!(
            seen,
            Seen::resting(PowerState::Off),
            "after a force-off during {job:?}"
        );
        match work.await.expect("it does not panic") {
            Ok(()) | Err(Error::Preempted { .. } | Error::Unsupported { .. }) => {}
            Err(error) => panic!("{job:?} ended by a force-off: {error}"),
        }
    }
    vm.start(definition, NO_NICS).await.expect("it can be used again");
    vm.force_off().await.expect("it works");
    vm.remove().await.expect("it is off");
    machines.shutdown().await;
    Verdict::Kept
}

/// After how many polls work is broken off: at its first awaits each, then ever later.
const POLLS: &[u32] = &[1, 2, 3, 5, 8, 13];

/// Polls work so many times; `true`: it was done by then.
async fn poll_some(polls: u32, work: impl Future) -> bool {
    let mut work = pin!(work);
    let mut left = polls;
    std::future::poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(false);
        }
        left -= 1;
        match work.as_mut().poll(cx) {
            Poll::Ready(_) => Poll::Ready(true),
            // Broken off where it waits, without being woken again.
            Poll::Pending if left == 0 => Poll::Ready(false),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// A start or a save whose future is dropped, or that is called off, wherever it waits: the VM comes to rest in a state of the table, runs or is
/// off, and can be used.
pub async fn work_that_is_dropped_or_called_off_at_any_await_leaves_a_usable_vm(
    bench: &dyn Bench,
) -> Verdict {
    let mut ground = Ground::open(bench).await;
    let definition = bench.definition();
    let id = definition.id;
    drop(ground.driver.probe().await);
    for polls in POLLS {
        for called_off in [false, true] {
            let cx = OpCx::new();
            let driver = Arc::clone(&ground.driver);
            let start = driver.start(&cx, &definition, NO_NICS);
            let done = match called_off {
                false => poll_some(*polls, start).await,
                true => {
                    let mut start = pin!(start);
                    let done = poll_some(*polls, start.as_mut()).await;
                    cx.cancel();
                    if !done {
                        // Told that it was called off, or that it had gone through before.
                        let ended = ground.patiently("a start that was called off", start).await;
                        drop(ended);
                    }
                    done
                }
            };
            let power = ground.settled(id).await;
            let sound = matches!(power, PowerState::Off | PowerState::Running);
            assert!(sound, "after {polls} polls of a start it is {power}");
            assert!(!done || power == PowerState::Running);
            if power == PowerState::Running {
                ground.kill(id).await;
            }
        }
    }
    if ground.driver.saved_state().is_some() {
        for polls in POLLS {
            if ground.settled(id).await != PowerState::Running {
                bring(&mut ground, &definition, PowerState::Running).await;
            }
            let driver = Arc::clone(&ground.driver);
            let saved = driver.saved_state().expect("it was there");
            poll_some(*polls, saved.save(&OpCx::new(), id)).await;
            let power = ground.settled(id).await;
            let sound = matches!(power, PowerState::Saved | PowerState::Running | PowerState::Off);
            assert!(sound, "after {polls} polls of a save it is {power}");
        }
    }
    if ground.driver.inspect(id).await.is_err() {
        ground.start(&definition).await;
    }
    ground.kill(id).await;
    ground.start(&definition).await;
    ground.done(&[id]).await
}
