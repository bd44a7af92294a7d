//! What every transport must do, as tests that anyone's transport can run.
//!
//! Each function is one sentence about the bus, takes a transport whose bus is empty, and panics when the sentence is not
//! true. [`transport_conformance!`](crate::transport_conformance) makes one test of each:
//!
//! ```
//! mod memory {
//!     vbm_rpc::transport_conformance! {
//!         [#[tokio::test(start_paused = true)]]
//!         async { Some((vbm_rpc::memory::MemoryBus::new().into(), ())) }
//!     }
//! }
//! # fn main() {}
//! ```
//!
//! The second part is a future of the transport and of whatever must live as long as the test; `None` leaves the test
//! out, and has said why.

mod bad_input;
mod calls;
mod delivery;
mod durability;
mod leases;
mod life;
mod progress;
mod results;
mod routes;
mod strangers;
mod streams;
mod tickets;

pub use bad_input::*;
pub use calls::*;
pub use delivery::*;
pub use durability::*;
pub use leases::*;
pub use life::*;
pub use progress::*;
pub use results::*;
pub use routes::*;
pub use strangers::*;
pub use streams::*;
pub use tickets::*;

use crate::{Bus, CallOptions, Context, Member, Method, Route, Router, Service, transport::Transport};
use serde::{Deserialize, Serialize};
use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::time::{sleep, timeout};
use vbm_core::{Error, ErrorKind, NodePath};

/// One test for each sentence: attributes of the tests in brackets, then a future of `Some((transport, guard))`.
#[macro_export]
macro_rules! transport_conformance {
    ([$($attribute:tt)*] $fixture:expr) => {
        $crate::transport_conformance! { @all [$($attribute)*] $fixture;
            a_call_comes_back_with_its_reply
            a_refusal_arrives_as_it_was_made
            an_unknown_method_is_no_route
            a_panic_of_a_handler_is_a_refusal_and_not_the_end
            a_call_with_no_time_left_is_not_started
            a_slow_handler_is_lost_and_known_to_have_started
            a_dropped_call_cancels_its_handler
            a_repeated_key_gets_the_recorded_answer
            a_key_used_for_another_request_is_a_conflict
            duplicates_of_a_running_request_share_its_answer
            a_refusal_that_changed_nothing_may_be_tried_again_with_its_key
            a_stale_epoch_is_refused
            a_payload_over_the_limit_is_refused_and_one_at_the_limit_passes
            both_codecs_carry_a_call
            a_thousand_calls_are_in_flight_at_once
            both_directions_work_at_once_on_one_attachment
            a_route_to_the_wrong_verb_is_refused
            nobody_there_is_no_route_at_once
            any_picks_exactly_one_member
            scopes_are_prefixes_of_paths_at_every_depth
            a_cast_runs_once
            a_broadcast_reaches_all_below_its_scope
            a_broadcast_names_the_silent
            a_broadcast_ends_at_its_quorum
            a_later_joiner_sees_no_old_broadcast
            presence_tells_who_is_there_and_what_they_can
            a_restarted_worker_serves_again
            a_request_waits_for_a_killed_worker_to_return
            a_request_whose_deadline_passed_in_the_queue_is_never_started
            a_request_of_a_killed_worker_for_any_goes_to_another
            who_attaches_last_has_the_path
            a_second_attachment_of_one_process_takes_the_path_too
            a_shutdown_ends_every_task_and_every_wait
            a_shutdown_lets_running_handlers_answer
            a_bad_member_is_refused
            a_recorded_answer_outlives_its_worker
            another_member_gives_the_recorded_answer
            a_key_recorded_elsewhere_for_another_request_is_a_conflict
            a_recorded_refusal_that_changed_nothing_may_be_tried_elsewhere
            an_answer_that_is_not_kept_is_not_recorded
            a_ticket_shows_who_is_at_it_and_then_its_reply
            a_ticket_ends_in_the_fate_of_its_call
            a_ticket_outlives_its_submitter
            waiting_for_a_ticket_has_a_limit_and_changes_nothing
            a_ticket_expires
            an_unknown_ticket_is_told_from_an_expired_one
            a_submission_that_cannot_be_sent_has_no_ticket
            a_ticket_of_a_killed_worker_is_done_by_the_next
            a_ticket_that_nobody_ended_is_lost_for_all_who_look
            submissions_with_one_key_have_one_effect
            a_ticket_cancelled_before_it_began_is_not_begun
            a_running_ticket_is_cancelled_by_telling_its_handler
            a_callback_is_told_the_end
            a_callback_is_told_at_least_once
            a_replicated_request_is_kept_twice_or_says_why_not
            a_stream_gives_its_items_in_order_and_then_its_end
            a_slow_reader_stops_the_sender
            large_items_stop_the_sender_by_their_bytes
            a_stream_that_fails_ends_in_its_refusal_behind_its_items
            a_stream_to_nobody_is_no_route_at_once
            a_stream_and_a_call_are_not_taken_for_each_other
            a_dropped_stream_stops_its_sender
            a_stream_whose_sender_dies_ends_in_bounded_time
            a_stream_whose_sender_shuts_down_ends_at_once
            a_sender_whose_reader_died_is_told
            a_stream_that_stands_still_ends_at_its_idle_time
            a_reader_that_rests_keeps_its_stream
            calls_pass_while_many_streams_stand_unread
            progress_arrives_in_order_and_before_the_reply
            a_caller_that_does_not_listen_gets_its_reply_all_the_same
            a_worker_that_falls_silent_is_noticed_long_before_the_deadline
            a_long_handler_is_not_taken_for_silent
            a_request_that_nobody_begins_ends_when_its_node_is_gone
            a_batch_has_an_end_for_each_of_its_calls_in_order
            a_traced_call_tells_where_it_was_and_when
            a_broadcast_tells_which_of_the_silent_had_begun
            a_lease_has_one_holder_and_each_taking_a_higher_epoch
            a_lease_runs_out
            a_leader_that_stops_hands_over_at_once
            a_shutdown_hands_over_too
            a_killed_leader_has_a_successor_after_its_lease
            a_stale_leader_is_refused_by_those_who_never_heard_a_command_of_its_successor
            an_epoch_is_above_all_that_members_saw
            who_stands_down_leads_again_above_what_was_seen
            what_cannot_be_read_goes_to_the_dead_letters
            a_cast_whose_handler_panics_is_a_dead_letter_that_can_be_replayed
            a_request_that_kills_its_node_again_and_again_is_a_dead_letter_and_its_neighbours_are_done
            a_request_for_any_that_kills_its_workers_again_and_again_is_a_dead_letter
            a_handler_that_outlives_the_lease_keeps_its_request
            a_cancel_and_control_pass_five_thousand_bulk_requests
            of_a_burst_for_any_a_busy_member_leaves_to_the_others_what_it_cannot_begin
            control_for_any_and_for_all_passes_five_thousand_bulk_requests
            the_hops_of_a_call_are_recorded_when_it_asks_for_it_and_only_then
            presence_tells_the_versions_of_methods
            every_member_answers_a_ping
            an_answer_of_somebody_who_was_not_asked_is_dropped
            frames_that_cannot_be_used_are_counted_by_their_kind
            requests_that_cannot_be_done_are_counted_by_their_kind
            answers_that_cannot_be_used_are_counted_by_who_gets_them
        }
    };
    (@all $attributes:tt $fixture:expr; $($name:ident)*) => {
        $($crate::transport_conformance! { @one $attributes $fixture; $name })*
    };
    (@one [$($attribute:tt)*] $fixture:expr; $name:ident) => {
        $($attribute)*
        async fn $name() {
            let fixture: Option<(std::sync::Arc<dyn $crate::Transport>, _)> = $fixture.await;
            let Some((transport, _guard)) = fixture else { return };
            $crate::conformance::$name(transport).await;
        }
    };
}

/// No sentence takes longer than this to be true or false.
const PATIENCE: Duration = Duration::from_secs(60);
/// A deadline that is not meant to be met.
const SHORT: Duration = Duration::from_millis(400);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Ask {
    text: String,
    wait_ms: u64,
}

/// Gives the text back with the path of who answered; waits first.
struct Echo;
impl Method for Echo {
    const NAME: &'static str = "conformance.echo";
    const FENCED: bool = false;
    type Request = Ask;
    type Reply = (NodePath, String);
}

/// Counts, behind the epoch gate.
struct Count;
impl Method for Count {
    const NAME: &'static str = "conformance.count";
    type Request = String;
    type Reply = u64;
}

/// Nobody answers it.
struct Unknown;
impl Method for Unknown {
    const NAME: &'static str = "conformance.unknown";
    type Request = ();
    type Reply = ();
}

/// What the workers of one test share.
#[derive(Clone, Default)]
struct Seen {
    started: Arc<AtomicUsize>,
    cancelled: Arc<AtomicUsize>,
    count: Arc<AtomicU64>,
}

impl Seen {
    fn started(&self) -> usize {
        self.started.load(Ordering::SeqCst)
    }
}

fn path(text: &str) -> NodePath {
    text.parse().expect("a path")
}
fn worker() -> Service {
    Service::new("worker").expect("a name")
}
fn ask(text: &str) -> Ask {
    Ask {
        text: text.into(),
        wait_ms: 0,
    }
}
fn slow(wait: Duration) -> Ask {
    Ask {
        text: "slow".into(),
        wait_ms: wait.as_millis().try_into().unwrap_or(u64::MAX),
    }
}
fn within(deadline: Duration) -> CallOptions {
    CallOptions::default().deadline(deadline)
}

/// A boot id never used before in this process.
fn boot() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("boot-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

fn router(at: &NodePath, seen: &Seen) -> Router {
    let (at, echo, count) = (at.clone(), seen.clone(), seen.clone());
    Router::new()
        .method::<Echo, _, _>(move |context: Context, ask: Ask| {
            let (at, seen) = (at.clone(), echo.clone());
            async move {
                seen.started.fetch_add(1, Ordering::SeqCst);
                tokio::select! {
                    () = sleep(Duration::from_millis(ask.wait_ms)) => {}
                    () = context.cancelled.cancelled() => { seen.cancelled.fetch_add(1, Ordering::SeqCst); }
                }
                match ask.text.as_str() {
                    "refuse" => Err(Error::new(ErrorKind::Conflict, "no", "because", "do this")),
                    "panic" => panic!("on request of a test"),
                    _ => Ok((at, ask.text)),
                }
            }
        })
        .method::<Count, _, _>(move |_context: Context, _name: String| {
            let seen = count.clone();
            async move { Ok(seen.count.fetch_add(1, Ordering::SeqCst) + 1) }
        })
}

async fn client(transport: &Arc<dyn Transport>, at: &str) -> Bus {
    let member = Member::new(path(at), boot());
    Bus::attach(transport.clone(), member, Router::new())
        .await
        .expect("a client attaches")
}

async fn serve(transport: &Arc<dyn Transport>, at: &str, seen: &Seen) -> Bus {
    let member = Member::new(path(at), boot()).service(worker());
    Bus::attach(transport.clone(), member, router(&path(at), seen))
        .await
        .expect("a worker attaches")
}

/// Waits until something is true; it is looked at again after a short pause, at most for [`PATIENCE`].
async fn until(what: &str, mut is_true: impl FnMut() -> bool) {
    let watch = async {
        while !is_true() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(timeout(PATIENCE, watch).await.is_ok(), "{what}");
}

/// Nothing on the bus may hang: the future ends within [`PATIENCE`].
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("this hangs: {what}"))
}

async fn echo(bus: &Bus, route: &Route, text: &str) -> (NodePath, String) {
    soon("a call", bus.call::<Echo>(route, &ask(text), within(PATIENCE)))
        .await
        .expect("a reply")
}

async fn end(buses: impl IntoIterator<Item = Bus>) {
    for bus in buses {
        soon("a shutdown", bus.shutdown()).await;
    }
}
