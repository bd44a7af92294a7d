//! What every driver promises, as checks that run against any: the simulated one, QEMU, a third party's.
//!
//! A check takes a [`Bench`]: a ground on which the driver is opened, again and again, and which knows what its guests can do.
//! Checks panic with a sentence when a promise is broken. One that a bench cannot carry out is left out only with a
//! declared reason, which is returned and printed, never in silence.
//!
//! ```no_run
//! # struct MyBench; impl MyBench { async fn boxed() -> Result<Box<dyn vbm_hyper::conformance::Bench>, String> { unimplemented!() } }
//! mod my_driver {
//!     # use super::MyBench;
//!     vbm_hyper::conformance_suite!(MyBench::boxed());
//! }
//! # fn main() {}
//! ```

use crate::{Adopted, Consoles, Driver, DriverEvent, Error, Seen, VmDefinition, limits::BUTTON_RESEND_FIRST};
use async_trait::async_trait;
use std::{sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    sync::broadcast,
    time::{sleep, timeout},
};
use vbm_core::{CrashCause, ErrorKind, PauseReason, PowerEvent, PowerState, VmId};

/// A ground for checks: one host, as far as the driver is concerned.
#[async_trait]
pub trait Bench: Send + Sync {
    /// Opens the driver on the same ground each time. The one before has been shut down.
    async fn open(&self) -> Arc<dyn Driver>;

    /// A VM that was never defined before and can be started without NICs.
    fn definition(&self) -> VmDefinition;

    /// One whose guest obeys its power button, or why there is none.
    ///
    /// # Errors
    /// The reason, for people.
    fn obedient(&self) -> Result<VmDefinition, String> {
        Ok(self.definition())
    }

    /// Waits until the guest of an obedient VM would hear its power button.
    async fn booted(&self, driver: &dyn Driver, id: VmId);

    /// What can be typed into the serial line of an obedient VM once it has booted, and what must come back.
    fn dialogue(&self) -> (&'static str, &'static str);

    /// Ends the VM from outside, as an accident would, also while no driver is open. `seen` is what was last seen of it.
    async fn accident(&self, id: VmId, seen: &Seen);

    /// How long anything may take here before it counts as broken.
    fn patience(&self) -> Duration {
        Duration::from_secs(60)
    }
}

/// How a check went.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// The promise was kept.
    Kept,
    /// It could not be checked here, for this reason.
    LeftOut(String),
}

/// Writes one test for each check. The argument makes a boxed [`Bench`], each time a new one, or says why all of them are
/// left out: a `Result<Box<dyn Bench>, String>` to be awaited.
#[macro_export]
macro_rules! conformance_suite {
    ($bench:expr) => {
        $crate::conformance_suite! { @each $bench,
            a_started_vm_runs_and_is_seen
            a_vm_that_runs_cannot_be_started_again
            of_two_starts_at_the_same_time_one_wins
            a_start_that_nobody_waits_for_leaves_nothing
            a_definition_that_makes_no_sense_changes_nothing
            an_unknown_vm_is_not_found
            the_button_shuts_an_obedient_guest_down
            force_off_works_in_every_state_and_twice
            a_paused_vm_is_halted_and_goes_on
            a_reset_vm_runs_and_says_that_it_was_reset
            what_a_state_does_not_allow_is_refused
            the_events_replay_to_what_is_seen
            the_inventory_has_all
            vms_outlive_their_driver_and_are_adopted
            nothing_is_known_before_it_is_adopted
            an_accident_is_a_crash_and_not_a_shutdown
            an_accident_that_nobody_saw_is_a_crash_too
            only_what_is_off_is_forgotten
            a_driver_that_was_shut_down_refuses_work
            the_serial_line_answers_and_remembers
            the_serial_line_ends_with_the_run
            a_screenshot_is_a_png
            a_vnc_session_begins_with_its_version
            consoles_need_a_vm_that_runs
        }
    };
    (@each $bench:expr, $($check:ident)*) => { $(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $check() {
            let verdict = match $bench.await {
                Ok(bench) => $crate::conformance::$check(&*bench).await,
                Err(why) => $crate::conformance::Verdict::LeftOut(why),
            };
            if let $crate::conformance::Verdict::LeftOut(why) = verdict {
                println!("LEFT OUT: {}: {why}", stringify!($check));
            }
        }
    )* };
}

/// After how long a line is typed again.
const TYPE_AGAIN: Duration = Duration::from_secs(3);
const NO_NICS: Vec<crate::NicBackend> = Vec::new();

/// A driver on a bench, and its events.
struct Ground<'a> {
    bench: &'a dyn Bench,
    driver: Arc<dyn Driver>,
    events: broadcast::Receiver<DriverEvent>,
}

impl<'a> Ground<'a> {
    async fn open(bench: &'a dyn Bench) -> Self {
        let driver = bench.open().await;
        let events = driver.events();
        Self {
            bench,
            driver,
            events,
        }
    }

    async fn started(&self) -> VmId {
        self.start(&self.bench.definition()).await
    }

    async fn start(&self, definition: &VmDefinition) -> VmId {
        let started = self.patiently("start", self.driver.start(definition, NO_NICS));
        let seen = started.await.expect("a sound definition starts");
        assert_eq!(
            seen.power,
            PowerState::Running,
            "start returns when its processors run"
        );
        definition.id
    }

    async fn patiently<T>(&self, what: &str, work: impl Future<Output = T>) -> T {
        match timeout(self.bench.patience(), work).await {
            Ok(done) => done,
            Err(_) => panic!("{what} took longer than {:?}", self.bench.patience()),
        }
    }

    async fn seen(&self, id: VmId) -> Seen {
        self.driver.inspect(id).await.expect("the VM is known")
    }

    async fn power(&self, id: VmId) -> PowerState {
        self.seen(id).await.power
    }

    /// Waits for an event of one VM.
    async fn event(&mut self, id: VmId, wanted: impl Fn(PowerEvent) -> bool) -> DriverEvent {
        let patience = self.bench.patience();
        let found = async {
            loop {
                let event = self.events.recv().await.expect("the driver goes on telling");
                if event.id == id && wanted(event.event) {
                    return event;
                }
            }
        };
        match timeout(patience, found).await {
            Ok(event) => event,
            Err(_) => panic!("no such event came within {patience:?}"),
        }
    }

    async fn kill(&self, id: VmId) {
        self.patiently("kill", self.driver.kill(id))
            .await
            .expect("force-off works");
        assert_eq!(
            self.power(id).await,
            PowerState::Off,
            "kill returns when the VM is off"
        );
    }

    /// Ends and forgets what a check has made.
    async fn done(self, ids: &[VmId]) -> Verdict {
        for id in ids {
            self.kill(*id).await;
            self.driver.undefine(*id).await.expect("what is off is forgotten");
        }
        self.driver.shutdown().await;
        Verdict::Kept
    }

    fn consoles(&self) -> Result<&dyn Consoles, Verdict> {
        self.driver.consoles().ok_or_else(|| {
            let why = self.driver.missing(crate::Facet::Consoles);
            Verdict::LeftOut(why.expect("a missing facet says why"))
        })
    }
}

fn refused<T: std::fmt::Debug>(result: Result<T, Error>, what: &str) {
    let error = result.expect_err(what);
    assert_eq!(error.kind(), ErrorKind::Conflict, "{what}: {error}");
}

/// Reads until `wanted` has come.
async fn read_until(stream: &mut (impl AsyncRead + Unpin), wanted: &str, patience: Duration) -> String {
    let mut text = Vec::new();
    let reading = async {
        while !String::from_utf8_lossy(&text).contains(wanted) {
            if stream
                .read_buf(&mut text)
                .await
                .expect("the serial line can be read")
                == 0
            {
                break;
            }
        }
    };
    let in_time = timeout(patience, reading).await.is_ok();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(
        in_time && text.contains(wanted),
        "'{wanted}' did not come, but: {text}"
    );
    text
}

/// A started VM runs, has a process, says since when and how it is run.
pub async fn a_started_vm_runs_and_is_seen(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let id = ground.started().await;
    let seen = ground.seen(id).await;
    assert_eq!(seen.power, PowerState::Running);
    assert!(
        seen.pid.is_some() && seen.accelerator.is_some() && seen.started_at.is_some(),
        "{seen:?}"
    );
    let capability = ground.driver.probe().await;
    assert_eq!(
        capability.accelerator, seen.accelerator,
        "a VM is run as the probe promised"
    );
    assert_eq!(
        (capability.driver, capability.problem),
        (ground.driver.kind(), None)
    );
    ground.done(&[id]).await
}

/// A VM that runs cannot be started again.
pub async fn a_vm_that_runs_cannot_be_started_again(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let definition = bench.definition();
    let id = ground.start(&definition).await;
    let before = ground.seen(id).await;
    refused(
        ground.driver.start(&definition, NO_NICS).await,
        "a second start is refused",
    );
    assert_eq!(
        ground.seen(id).await,
        before,
        "a refused start leaves the VM alone"
    );
    ground.done(&[id]).await
}

/// Of two starts at the same time one wins and the other is refused.
pub async fn of_two_starts_at_the_same_time_one_wins(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let definition = bench.definition();
    // Whatever a first start prepares is ready, so that the two meet.
    drop(ground.driver.probe().await);
    let (a, b) = tokio::join!(
        ground.driver.start(&definition, NO_NICS),
        ground.driver.start(&definition, NO_NICS)
    );
    assert!(a.is_ok() != b.is_ok(), "one wins and one is refused: {a:?} {b:?}");
    refused(a.and(b), "the other is refused");
    assert_eq!(ground.power(definition.id).await, PowerState::Running);
    ground.done(&[definition.id]).await
}

/// A start whose future is dropped leaves the VM off, and it can be started after that.
pub async fn a_start_that_nobody_waits_for_leaves_nothing(bench: &dyn Bench) -> Verdict {
    let mut ground = Ground::open(bench).await;
    let definition = bench.definition();
    let id = definition.id;
    let begun = {
        let driver = Arc::clone(&ground.driver);
        let mut start = Box::pin(async move { driver.start(&definition, NO_NICS).await });
        let wait = ground.event(id, |event| event == PowerEvent::Start);
        tokio::select! {
            biased;
            _ = wait => true,
            result = &mut start => { result.expect("it starts"); false }
        }
    };
    if begun {
        ground
            .event(id, |event| {
                matches!(event, PowerEvent::StartFailed | PowerEvent::ForceOff)
            })
            .await;
        assert_eq!(ground.power(id).await, PowerState::Off);
        assert_eq!(ground.seen(id).await.pid, None, "no process is left");
    } else {
        ground.kill(id).await;
    }
    let again = VmDefinition {
        id,
        ..bench.definition()
    };
    ground.start(&again).await;
    ground.done(&[id]).await
}

/// A definition that makes no sense is refused as such, and the VM is not known afterwards.
pub async fn a_definition_that_makes_no_sense_changes_nothing(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    for spoil in [
        |d: &mut VmDefinition| d.vcpus = 0,
        |d: &mut VmDefinition| d.memory_mib = 1,
        |d: &mut VmDefinition| d.root_disk = "relative".into(),
    ] {
        let mut definition = bench.definition();
        spoil(&mut definition);
        let error = ground
            .driver
            .start(&definition, NO_NICS)
            .await
            .expect_err("it makes no sense");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        let unknown = ground
            .driver
            .inspect(definition.id)
            .await
            .expect_err("nothing was made");
        assert_eq!(unknown.kind(), ErrorKind::NotFound);
    }
    ground.done(&[]).await
}

/// All that is asked of an unknown VM is answered by "not found"; forgetting it is no error.
pub async fn an_unknown_vm_is_not_found(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let (driver, id) = (&ground.driver, bench.definition().id);
    for result in [
        driver.stop(id).await,
        driver.kill(id).await,
        driver.reset(id).await,
        driver.pause(id).await,
        driver.resume(id).await,
        driver.inspect(id).await.map(drop),
    ] {
        assert_eq!(result.expect_err("it is unknown").kind(), ErrorKind::NotFound);
    }
    driver.undefine(id).await.expect("there is nothing to forget");
    ground.done(&[]).await
}

/// The button is pressed, the guest shuts down, the VM is off: and not crashed.
pub async fn the_button_shuts_an_obedient_guest_down(bench: &dyn Bench) -> Verdict {
    let definition = match bench.obedient() {
        Ok(definition) => definition,
        Err(why) => return Verdict::LeftOut(why),
    };
    let mut ground = Ground::open(bench).await;
    let id = ground.start(&definition).await;
    bench.booted(&*ground.driver, id).await;
    let driver = Arc::clone(&ground.driver);
    driver.stop(id).await.expect("the button can be pressed");
    let press_again = async {
        // A guest that still boots loses a press; a VM that was off in between refuses one.
        loop {
            sleep(BUTTON_RESEND_FIRST).await;
            drop(driver.stop(id).await);
        }
    };
    ground.event(id, |event| event == PowerEvent::Stop).await;
    let ended = |event| matches!(event, PowerEvent::ShutDown | PowerEvent::Crash(_));
    let end = tokio::select! {
        end = ground.event(id, ended) => end,
        () = press_again => unreachable!("it presses for ever"),
    };
    assert_eq!(
        (end.event, end.seen.power),
        (PowerEvent::ShutDown, PowerState::Off)
    );
    assert_eq!(ground.seen(id).await, Seen::resting(PowerState::Off));
    ground.done(&[id]).await
}

/// Force-off ends a VM that runs, is paused, or was asked to stop; and one that is off already.
pub async fn force_off_works_in_every_state_and_twice(bench: &dyn Bench) -> Verdict {
    let mut ground = Ground::open(bench).await;
    let id = ground.started().await;
    ground.kill(id).await;
    let off = ground.event(id, |event| event == PowerEvent::ForceOff).await;
    assert_eq!(off.seen, Seen::resting(PowerState::Off));
    ground.kill(id).await;
    for step in ["paused", "stopping"] {
        let again = VmDefinition {
            id,
            ..bench.definition()
        };
        ground.start(&again).await;
        match step {
            "paused" => ground.driver.pause(id).await.expect("it runs"),
            _ => ground.driver.stop(id).await.expect("it runs"),
        }
        ground.kill(id).await;
    }
    ground.done(&[id]).await
}

/// A paused VM says so and why; it goes on when it is told to.
pub async fn a_paused_vm_is_halted_and_goes_on(bench: &dyn Bench) -> Verdict {
    let mut ground = Ground::open(bench).await;
    let id = ground.started().await;
    ground.driver.pause(id).await.expect("it runs");
    assert_eq!(ground.power(id).await, PowerState::Paused(PauseReason::Requested));
    ground.driver.resume(id).await.expect("it is paused");
    assert_eq!(ground.power(id).await, PowerState::Running);
    ground.event(id, |event| event == PowerEvent::Resume).await;
    ground.done(&[id]).await
}

/// A reset VM runs on in the same process, and an event says that it was reset.
pub async fn a_reset_vm_runs_and_says_that_it_was_reset(bench: &dyn Bench) -> Verdict {
    let mut ground = Ground::open(bench).await;
    let id = ground.started().await;
    let before = ground.seen(id).await;
    ground.driver.reset(id).await.expect("it runs");
    ground.event(id, |event| event == PowerEvent::Reset).await;
    assert_eq!(ground.seen(id).await, before);
    ground.done(&[id]).await
}

/// What the power table does not allow is refused as a conflict and changes nothing.
pub async fn what_a_state_does_not_allow_is_refused(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let driver = &ground.driver;
    let id = ground.started().await;
    refused(driver.resume(id).await, "resume of a VM that runs");
    driver.pause(id).await.expect("it runs");
    refused(driver.pause(id).await, "pause of a paused VM");
    refused(driver.reset(id).await, "reset of a paused VM");
    refused(driver.stop(id).await, "stop of a paused VM");
    ground.kill(id).await;
    refused(driver.stop(id).await, "stop of a VM that is off");
    refused(driver.pause(id).await, "pause of a VM that is off");
    refused(driver.resume(id).await, "resume of a VM that is off");
    refused(driver.reset(id).await, "reset of a VM that is off");
    assert_eq!(ground.power(id).await, PowerState::Off);
    ground.done(&[id]).await
}

/// Each event is allowed by the power table in the state that the events before led to, and carries the state after it.
pub async fn the_events_replay_to_what_is_seen(bench: &dyn Bench) -> Verdict {
    let mut ground = Ground::open(bench).await;
    let id = ground.started().await;
    ground.driver.pause(id).await.expect("it runs");
    ground.driver.resume(id).await.expect("it is paused");
    ground.driver.reset(id).await.expect("it runs");
    ground.kill(id).await;
    let mut power = PowerState::Off;
    let mut story = Vec::new();
    while let Ok(event) = ground.events.try_recv() {
        if event.id == id {
            power = power.after(event.event).expect("the table allows each event");
            assert_eq!(power, event.seen.power, "{:?}", event.event);
            story.push(event.event);
        }
    }
    let wanted = [
        PowerEvent::Start,
        PowerEvent::Started,
        PowerEvent::Pause(PauseReason::Requested),
        PowerEvent::Resume,
        PowerEvent::Reset,
        PowerEvent::ForceOff,
    ];
    assert_eq!(story, wanted);
    ground.done(&[id]).await
}

/// The inventory has every VM, with what inspection says of it.
pub async fn the_inventory_has_all(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let ids = [ground.started().await, ground.started().await];
    ground.kill(ids[1]).await;
    let inventory = ground.driver.inventory().await.expect("it can be taken");
    for id in ids {
        let seen = inventory.iter().find(|(found, _)| *found == id);
        assert_eq!(
            seen.map(|(_, seen)| seen.clone()),
            Some(ground.seen(id).await),
            "{id} is in it"
        );
    }
    ground.done(&ids).await
}

async fn reopen(ground: Ground<'_>) -> (Ground<'_>, Vec<Adopted>) {
    ground.driver.shutdown().await;
    let bench = ground.bench;
    drop(ground);
    let ground = Ground::open(bench).await;
    let adopted = ground
        .patiently("adopt", ground.driver.adopt())
        .await
        .expect("it can be adopted");
    (ground, adopted)
}

/// A VM outlives its driver; the next one adopts it as it is, and all works as before.
pub async fn vms_outlive_their_driver_and_are_adopted(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let definition = bench.definition();
    let id = ground.start(&definition).await;
    let paused = ground.started().await;
    ground.driver.pause(paused).await.expect("it runs");
    let before = [ground.seen(id).await, ground.seen(paused).await];

    let (mut ground, adopted) = reopen(ground).await;
    let mine = adopted
        .iter()
        .find(|vm| vm.id == id)
        .expect("the VM is among the adopted");
    assert_eq!((&mine.definition, &mine.seen), (&definition, &before[0]));
    assert_eq!(
        [ground.seen(id).await, ground.seen(paused).await],
        before,
        "same process, same state"
    );
    assert_eq!(
        ground.driver.adopt().await.expect("it can be asked twice").len(),
        adopted.len()
    );
    ground.driver.resume(paused).await.expect("it is paused");
    ground.driver.pause(id).await.expect("it runs");
    ground
        .event(id, |event| event == PowerEvent::Pause(PauseReason::Requested))
        .await;
    ground.driver.resume(id).await.expect("it is paused");
    bench.accident(id, &ground.seen(id).await).await;
    ground
        .event(id, |event| event == PowerEvent::Crash(CrashCause::Hypervisor))
        .await;
    ground.done(&[id, paused]).await
}

/// Before it is adopted a VM is `Unknown`: not started, not forgotten, but it can be ended.
pub async fn nothing_is_known_before_it_is_adopted(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let definition = bench.definition();
    let id = ground.start(&definition).await;
    ground.driver.shutdown().await;
    let ground = Ground::open(bench).await;
    assert_eq!(ground.power(id).await, PowerState::Unknown);
    refused(
        ground.driver.start(&definition, NO_NICS).await,
        "start of what may run",
    );
    refused(ground.driver.undefine(id).await, "forgetting what may run");
    ground.kill(id).await;
    ground.start(&definition).await;
    ground.done(&[id]).await
}

/// A VM that ends by an accident has crashed, and can be started again.
pub async fn an_accident_is_a_crash_and_not_a_shutdown(bench: &dyn Bench) -> Verdict {
    let mut ground = Ground::open(bench).await;
    let definition = bench.definition();
    let id = ground.start(&definition).await;
    bench.accident(id, &ground.seen(id).await).await;
    let crash = ground
        .event(id, |event| {
            matches!(event, PowerEvent::Crash(_) | PowerEvent::ShutDown)
        })
        .await;
    assert_eq!(crash.event, PowerEvent::Crash(CrashCause::Hypervisor));
    assert_eq!(
        ground.seen(id).await,
        Seen::resting(PowerState::Crashed(CrashCause::Hypervisor))
    );
    ground.start(&definition).await;
    ground.done(&[id]).await
}

/// An accident while no driver looked is found by adoption, and remembered by the driver after that.
pub async fn an_accident_that_nobody_saw_is_a_crash_too(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let id = ground.started().await;
    let crash = PowerState::Crashed(CrashCause::Hypervisor);
    let seen = ground.seen(id).await;
    ground.driver.shutdown().await;
    bench.accident(id, &seen).await;
    let (ground, adopted) = reopen(ground).await;
    let mine = adopted
        .iter()
        .find(|vm| vm.id == id)
        .expect("the VM is among the adopted");
    assert_eq!(mine.seen, Seen::resting(crash));
    assert_eq!(ground.power(id).await, crash);
    let (ground, _) = reopen(ground).await;
    assert_eq!(ground.power(id).await, crash, "it is remembered");
    ground.done(&[id]).await
}

/// Only what is off is forgotten; after that it is unknown, and forgetting it again is no error.
pub async fn only_what_is_off_is_forgotten(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let id = ground.started().await;
    refused(ground.driver.undefine(id).await, "forgetting a VM that runs");
    ground.kill(id).await;
    for _ in 0..2 {
        ground
            .driver
            .undefine(id)
            .await
            .expect("what is off is forgotten");
    }
    let error = ground.driver.inspect(id).await.expect_err("it is forgotten");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    ground.done(&[]).await
}

/// A driver that was shut down refuses work; the VM runs on.
pub async fn a_driver_that_was_shut_down_refuses_work(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let id = ground.started().await;
    let before = ground.seen(id).await;
    ground.driver.shutdown().await;
    for result in [
        ground.driver.start(&bench.definition(), NO_NICS).await.map(drop),
        ground.driver.kill(id).await,
        ground.driver.inspect(id).await.map(drop),
        ground.driver.inventory().await.map(drop),
    ] {
        assert_eq!(
            result.expect_err("it was shut down").kind(),
            ErrorKind::Unavailable
        );
    }
    let (ground, _) = reopen(ground).await;
    assert_eq!(ground.seen(id).await, before);
    ground.done(&[id]).await
}

/// What is typed into the serial line is answered; a later reader, and the scrollback, see what was said before.
pub async fn the_serial_line_answers_and_remembers(bench: &dyn Bench) -> Verdict {
    let definition = match bench.obedient() {
        Ok(definition) => definition,
        Err(why) => return Verdict::LeftOut(why),
    };
    let ground = Ground::open(bench).await;
    let consoles = match ground.consoles() {
        Ok(consoles) => consoles,
        Err(left_out) => return left_out,
    };
    let id = ground.start(&definition).await;
    bench.booted(&*ground.driver, id).await;
    let (typed, answer) = bench.dialogue();
    let first = consoles.serial(id).await.expect("it runs");
    let (mut reader, mut writer) = tokio::io::split(first);
    let type_again = async {
        // A shell that still starts throws away what was typed before.
        loop {
            writer.write_all(typed.as_bytes()).await.expect("it can be typed");
            sleep(TYPE_AGAIN).await;
        }
    };
    tokio::select! {
        _ = read_until(&mut reader, answer, bench.patience()) => {}
        () = type_again => unreachable!("it types for ever"),
    }
    let mut second = consoles.serial(id).await.expect("many may read");
    read_until(&mut second, answer, bench.patience()).await;
    let past = consoles.scrollback(id, 64 * 1024).await.expect("it runs");
    assert!(String::from_utf8_lossy(&past).contains(answer));
    assert_eq!(
        consoles.scrollback(id, 3).await.expect("it runs").len(),
        3,
        "no more than was asked for"
    );
    ground.kill(id).await;
    let past = consoles.scrollback(id, 64 * 1024).await.expect("it is known");
    assert!(
        String::from_utf8_lossy(&past).contains(answer),
        "the scrollback outlives the run"
    );
    ground.done(&[id]).await
}

/// The serial line ends when the VM does, and reading it ends without an error.
pub async fn the_serial_line_ends_with_the_run(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let consoles = match ground.consoles() {
        Ok(consoles) => consoles,
        Err(left_out) => return left_out,
    };
    let id = ground.started().await;
    let mut stream = consoles.serial(id).await.expect("it runs");
    ground.kill(id).await;
    let mut rest = Vec::new();
    let end = ground.patiently("the end of the serial line", stream.read_to_end(&mut rest));
    end.await.expect("it ends in peace");
    ground.done(&[id]).await
}

/// A screenshot is a PNG.
pub async fn a_screenshot_is_a_png(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let consoles = match ground.consoles() {
        Ok(consoles) => consoles,
        Err(left_out) => return left_out,
    };
    let id = ground.started().await;
    let (a, b) = tokio::join!(consoles.screenshot(id), consoles.screenshot(id));
    for png in [a, b] {
        let png = png.expect("it runs");
        assert!(
            png.starts_with(b"\x89PNG\r\n\x1a\n") && png.ends_with(b"IEND\xaeB`\x82"),
            "it is whole"
        );
    }
    ground.done(&[id]).await
}

/// A VNC session begins with the version of RFC 6143; there may be several.
pub async fn a_vnc_session_begins_with_its_version(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let consoles = match ground.consoles() {
        Ok(consoles) => consoles,
        Err(left_out) => return left_out,
    };
    let id = ground.started().await;
    for _ in 0..2 {
        let mut vnc = consoles.vnc(id).await.expect("it runs");
        let mut version = [0; 12];
        let read = ground.patiently("the version", vnc.read_exact(&mut version));
        read.await.expect("it speaks first");
        assert_eq!(&version, b"RFB 003.008\n");
    }
    ground.done(&[id]).await
}

/// Consoles of a VM that is off, or unknown, are refused.
pub async fn consoles_need_a_vm_that_runs(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let consoles = match ground.consoles() {
        Ok(consoles) => consoles,
        Err(left_out) => return left_out,
    };
    let unknown = bench.definition().id;
    for result in [
        consoles.serial(unknown).await.map(drop),
        consoles.screenshot(unknown).await.map(drop),
        consoles.scrollback(unknown, 1).await.map(drop),
        consoles.vnc(unknown).await.map(drop),
    ] {
        assert_eq!(result.expect_err("it is unknown").kind(), ErrorKind::NotFound);
    }
    let id = ground.started().await;
    ground.kill(id).await;
    refused(
        consoles.serial(id).await.map(drop),
        "serial line of a VM that is off",
    );
    refused(consoles.screenshot(id).await, "screenshot of a VM that is off");
    refused(consoles.vnc(id).await.map(drop), "screen of a VM that is off");
    ground.done(&[id]).await
}
