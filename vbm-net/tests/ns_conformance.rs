//! The contract of [`vbm_net::NetworkBackend`], on a real kernel, in a host namespace of the test's own.

#![allow(clippy::unwrap_used, reason = "a helper of a test that cannot go on panics")]
#![allow(clippy::cast_possible_truncation, reason = "test values are small")]

mod common;

use common::{FreshIds, Lab};
use vbm_net::conformance;

#[tokio::test(flavor = "multi_thread")]
async fn the_real_backend_keeps_the_contract_and_leaves_nothing() {
    needs_namespaces!();
    let lab = Lab::new().await;
    lab.host
        .ip(&format!("addr add {}/24 dev eth0", conformance::UNDERLAY));
    lab.host
        .ip(&format!("link add {} type bridge", conformance::UPLINK));
    lab.host.ip(&format!("link set {} up", conformance::UPLINK));
    let before = common::footprint(&lab.host, &[]);
    conformance::all(&lab.net, &FreshIds).await;
    assert_eq!(before, common::footprint(&lab.host, &[]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_backend_refuses_after_shutdown() {
    needs_namespaces!();
    let lab = Lab::new().await;
    conformance::a_backend_that_was_shut_down_refuses(&lab.net, &conformance::Fixture::new(&FreshIds)).await;
}
