//! A bus whose entries are sealed, on a master under Sentinel and on a Cluster: the sentences of the contract that write
//! to other keys than a plain call does (streams, tickets, recorded answers, dead letters, elections), and one of each
//! other sort. The whole contract without seals is in `sentinel.rs` and `cluster.rs`, with seals on one server in
//! `guarded_conformance.rs`.

mod common;
mod guarded;

use async_trait::async_trait;
use common::sets::namespace;
use guarded::Shared;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};
use vbm_core::NodePath;
use vbm_rpc::{
    BusError, MemberInfo, Transport,
    admin::Admin,
    auth::{Epochs, Keys, Security, Trust, Trusted},
    redis::{RedisConfig, RedisTransport},
    transport::{Attached, Inbound},
};

/// Each attachment seals with the keys of its path, which are made and trusted when they are first asked for.
struct Sealed {
    config: RedisConfig,
    ring: Shared,
    keys: Mutex<HashMap<NodePath, Keys>>,
    /// The operator's way in.
    operator: RedisTransport,
}

impl Sealed {
    async fn on(config: RedisConfig) -> Arc<dyn Transport> {
        let config = config.namespace(&namespace());
        let operator = RedisTransport::connect(config.clone()).await;
        Arc::new(Self {
            config,
            ring: Shared::default(),
            keys: Mutex::default(),
            operator: operator.expect("a fit set"),
        })
    }

    fn security(&self, at: &NodePath) -> Security {
        let mut keys = self.keys.lock().expect("no test panicked here");
        let made = || {
            let made = Keys::generate().expect("keys");
            let trusted = Trusted::new(*made.active().public()).commands(Epochs::ANY);
            self.ring.add(at, trusted);
            made
        };
        let keys = keys.entry(at.clone()).or_insert_with(made).clone();
        Security::On(keys, Trust::new(self.ring.clone()))
    }
}

#[async_trait]
impl Transport for Sealed {
    async fn attach(&self, member: MemberInfo, inbound: Inbound) -> Result<Attached, BusError> {
        let security = self.security(&member.path);
        let config = self.config.clone().security(security);
        RedisTransport::connect(config)
            .await?
            .attach(member, inbound)
            .await
    }

    fn admin(&self) -> Option<Arc<dyn Admin>> {
        self.operator.admin()
    }
}

/// The sentences of this file on one sort of set.
macro_rules! sealed {
    ($module:ident, $set:ident) => {
        mod $module {
            use super::{
                Sealed,
                common::{left_out, sets::$set},
            };

            vbm_rpc::transport_conformance! {
                @all [#[tokio::test(flavor = "multi_thread", worker_threads = 2)]]
                async {
                    if left_out() {
                        return None;
                    }
                    let set = $set::shared().await;
                    Some((Sealed::on(set.config()).await, set))
                };
                a_call_comes_back_with_its_reply
                any_picks_exactly_one_member
                a_broadcast_reaches_all_below_its_scope
                a_request_waits_for_a_killed_worker_to_return
                a_request_of_a_killed_worker_for_any_goes_to_another
                who_attaches_last_has_the_path
                a_recorded_answer_outlives_its_worker
                another_member_gives_the_recorded_answer
                a_key_recorded_elsewhere_for_another_request_is_a_conflict
                a_ticket_shows_who_is_at_it_and_then_its_reply
                a_ticket_outlives_its_submitter
                a_ticket_of_a_killed_worker_is_done_by_the_next
                submissions_with_one_key_have_one_effect
                a_callback_is_told_the_end
                a_stream_gives_its_items_in_order_and_then_its_end
                a_slow_reader_stops_the_sender
                a_stream_whose_sender_dies_ends_in_bounded_time
                a_sender_whose_reader_died_is_told
                progress_arrives_in_order_and_before_the_reply
                a_lease_has_one_holder_and_each_taking_a_higher_epoch
                a_killed_leader_has_a_successor_after_its_lease
                an_epoch_is_above_all_that_members_saw
                what_cannot_be_read_goes_to_the_dead_letters
                a_cast_whose_handler_panics_is_a_dead_letter_that_can_be_replayed
                a_request_for_any_that_kills_its_workers_again_and_again_is_a_dead_letter
                an_answer_of_somebody_who_was_not_asked_is_dropped
            }
        }
    };
}

sealed!(sentinel_with_seals, SentinelSet);
sealed!(cluster_with_seals, ClusterSet);
