//! What every driver promises, as checks that run against any: the simulated one, QEMU, a third party's.
//!
//! A check takes a [`Bench`]: a ground on which the driver is opened, again and again, and which knows what its guests can do.
//! Checks panic with a sentence when a promise is broken. One that a bench cannot carry out is left out only with a
//! declared reason, which is returned and printed, never in silence.
//!
//! | promises about | are in |
//! |---|---|
//! | power, definitions, the inventory | `power` |
//! | every operation in every state, many clients, work that is broken off | `table` |
//! | restarts of the driver, accidents | `adoption` |
//! | serial line, screen | `consoles` |
//! | devices that come and go | `hotplug` |
//! | snapshots, saved memory, migration | `snapshots`, `trees`, `saved`, `migration`: with a guest that is told what to remember |
//!
//! ```no_run
//! # struct MyBench; impl MyBench { async fn boxed() -> Result<Box<dyn vbm_hyper::conformance::Bench>, String> { unimplemented!() } }
//! mod my_driver {
//!     # use super::MyBench;
//!     vbm_hyper::conformance_suite!(MyBench::boxed());
//! }
//! # fn main() {}
//! ```

mod adoption;
mod consoles;
mod guest;
mod hotplug;
mod migration;
mod power;
mod saved;
mod snapshots;
mod table;
mod trees;

pub use adoption::*;
pub use consoles::*;
pub use guest::GuestWords;
pub use hotplug::*;
pub use migration::*;
pub use power::*;
pub use saved::*;
pub use snapshots::*;
pub use table::*;
pub use trees::*;

use crate::{
    Adopted, Consoles, Driver, DriverEvent, Error, Facet, Migration, OpCx, SavedState, Seen, Snapshots,
    VmDefinition, limits::BUTTON_RESEND_FIRST,
};
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

    /// How the guest of an obedient VM is told, on its serial line, to remember things; or why it cannot be.
    ///
    /// # Errors
    /// The reason, for people.
    fn words(&self) -> Result<GuestWords, String> {
        Err("its guest cannot be told to remember anything".into())
    }

    /// A disk of data that no VM has had, each time another one; or why there is none. The guest of an obedient VM that has
    /// it first sees it as [`GuestWords`] says.
    ///
    /// # Errors
    /// The reason, for people.
    fn data_disk(&self) -> Result<crate::DiskDefinition, String> {
        Err("its VMs have one disk".into())
    }

    /// Opens the driver of a second host that sees the same disks, or says why there is none.
    ///
    /// # Errors
    /// The reason, for people.
    async fn open_beside(&self) -> Result<Arc<dyn Driver>, String> {
        Err("there is one host only".into())
    }

    /// The same VM as the second host is to have it when its disk is copied there: with a disk of its own, of the same size,
    /// that nothing was written to; or why there is none.
    ///
    /// # Errors
    /// The reason, for people.
    async fn elsewhere(&self, _definition: &VmDefinition) -> Result<VmDefinition, String> {
        Err("there is one host only".into())
    }

    /// A volume that no VM has, smaller than 2 GiB, to be attached; or why there is none.
    ///
    /// # Errors
    /// The reason, for people.
    fn volume(&self) -> Result<crate::DiskDefinition, String> {
        Err("it has no volumes".into())
    }

    /// A medium for a CD drive, or why there is none.
    ///
    /// # Errors
    /// The reason, for people.
    fn medium(&self) -> Result<std::path::PathBuf, String> {
        Err("it has no media".into())
    }

    /// Ends the VM from outside, as an accident would, also while no driver is open. `seen` is what was last seen of it.
    async fn accident(&self, id: VmId, seen: &Seen);

    /// What is left on the host of VMs that were ended and forgotten: processes, sockets, files; a line each. Asked once the driver was
    /// shut down, and again for a while if there is something.
    fn leftovers(&self, ids: &[VmId]) -> Vec<String> {
        let _ = ids;
        Vec::new()
    }

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
            every_operation_in_every_state_is_as_the_table_says
            what_is_done_already_can_be_asked_for_again
            thirty_two_clients_leave_one_vm_whole
            force_off_ends_every_job
            work_that_is_dropped_or_called_off_at_any_await_leaves_a_usable_vm
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
            a_missing_facet_says_why_and_one_that_is_there_does_not
            a_vm_goes_back_to_a_snapshot_of_its_disk
            a_vm_goes_back_to_a_snapshot_of_disk_and_memory
            a_paused_vm_is_snapshotted_and_stays_paused
            snapshots_are_deleted_whatever_stands_before_and_after
            a_snapshot_outlives_the_driver
            a_crashed_vm_goes_back_to_a_snapshot
            a_saved_vm_goes_back_to_a_snapshot_and_its_saved_memory_is_gone
            what_no_snapshot_can_be_taken_of_is_refused
            a_snapshot_without_memory_is_told_and_reverts_to_off
            a_guest_is_frozen_or_it_is_said_why_not
            a_snapshot_that_is_called_off_leaves_nothing
            a_tree_tells_what_came_after_what
            each_branch_holds_what_was_written_there
            a_snapshot_of_another_vm_is_not_found
            disks_that_came_or_went_since_are_told
            a_saved_vm_goes_on_where_it_was
            a_saved_vm_outlives_its_driver
            saved_memory_can_be_thrown_away
            what_cannot_be_saved_or_restored_is_refused
            a_save_that_is_called_off_lets_the_vm_run_on
            a_running_vm_moves_to_another_host_and_goes_on
            a_vm_moves_with_its_snapshots
            a_vm_that_nobody_waits_for_stays_and_goes_on
            an_arrival_that_is_given_up_leaves_nothing
            a_running_vm_moves_with_a_copy_of_its_disk
            a_migration_outside_its_limits_changes_nothing
            disks_are_attached_in_order_and_once
            an_adopted_vm_knows_what_was_attached
            devices_are_changed_on_vms_that_live
            a_disk_grows_and_never_shrinks
            what_is_not_there_is_detached_already
            a_guest_lets_go_of_a_disk
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

/// The pause between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// After how long a line is typed again.
const TYPE_AGAIN: Duration = Duration::from_secs(3);
const NO_NICS: Vec<crate::NicBackend> = Vec::new();

/// A driver on a bench, and its events.
struct Ground<'a> {
    bench: &'a dyn Bench,
    driver: Arc<dyn Driver>,
    events: broadcast::Receiver<DriverEvent>,
    /// What its work is done under.
    cx: OpCx,
}

impl<'a> Ground<'a> {
    async fn open(bench: &'a dyn Bench) -> Self {
        let driver = bench.open().await;
        let events = driver.events();
        Self {
            bench,
            driver,
            events,
            cx: OpCx::new(),
        }
    }

    async fn started(&self) -> VmId {
        self.start(&self.bench.definition()).await
    }

    async fn start(&self, definition: &VmDefinition) -> VmId {
        let started = self.patiently("start", self.driver.start(&self.cx, definition, NO_NICS));
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
        let until = tokio::time::Instant::now() + self.bench.patience();
        loop {
            let left = self.bench.leftovers(ids);
            if left.is_empty() {
                return Verdict::Kept;
            }
            assert!(tokio::time::Instant::now() < until, "something is left: {left:?}");
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Waits until a VM is neither on its way up nor down.
    async fn settled(&self, id: VmId) -> PowerState {
        let settled = async {
            loop {
                let power = match self.driver.inspect(id).await {
                    Ok(seen) => seen.power,
                    Err(_) => PowerState::Off,
                };
                let moves = matches!(
                    power,
                    PowerState::Starting | PowerState::Saving | PowerState::Restoring | PowerState::Unknown
                );
                if !moves {
                    return power;
                }
                sleep(LOOK_AGAIN).await;
            }
        };
        self.patiently("coming to rest", settled).await
    }

    fn consoles(&self) -> Result<&dyn Consoles, Verdict> {
        let why = || self.left_out(Facet::Consoles);
        self.driver.consoles().ok_or_else(why)
    }

    fn snapshots(&self) -> Result<&dyn Snapshots, Verdict> {
        let why = || self.left_out(Facet::Snapshots);
        self.driver.snapshots().ok_or_else(why)
    }

    fn saved_state(&self) -> Result<&dyn SavedState, Verdict> {
        let why = || self.left_out(Facet::SavedState);
        self.driver.saved_state().ok_or_else(why)
    }

    fn migration(&self) -> Result<&dyn Migration, Verdict> {
        let why = || self.left_out(Facet::Migration);
        self.driver.migration().ok_or_else(why)
    }

    fn left_out(&self, facet: Facet) -> Verdict {
        let why = self.driver.missing(facet);
        Verdict::LeftOut(why.expect("a missing facet says why"))
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
