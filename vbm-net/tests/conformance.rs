//! The contract of [`vbm_net::NetworkBackend`], on the simulated twin. The real one: `ns_conformance.rs`.

#![allow(clippy::unwrap_used, reason = "a helper of a test that cannot go on panics")]
#![allow(clippy::cast_possible_truncation, reason = "test values are small")]

use std::sync::Arc;
use vbm_core::{Clock, SeededIds, Timestamp};
use vbm_net::{NetEvent, NetworkBackend, NicKind, SimNetwork, conformance};

struct Still;
impl Clock for Still {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(1_700_000_000_000_000)
    }
}

#[tokio::test]
async fn the_simulated_twin_keeps_the_contract() {
    let ids = SeededIds::new(11);
    conformance::all(&SimNetwork::new(Arc::new(Still)), &ids).await;
    conformance::all(&SimNetwork::without_leases(Arc::new(Still)), &ids).await;
}

#[tokio::test]
async fn the_simulated_twin_refuses_after_shutdown() {
    let ids = SeededIds::new(12);
    let fixture = conformance::Fixture::new(&ids);
    conformance::a_backend_that_was_shut_down_refuses(&SimNetwork::new(Arc::new(Still)), &fixture).await;
}

#[tokio::test]
async fn a_simulated_guest_takes_its_lease_when_its_nic_opens() {
    let ids = SeededIds::new(13);
    let fixture = conformance::Fixture::new(&ids);
    let sim = SimNetwork::new(Arc::new(Still));
    let mut events = sim.events();
    let net = fixture.network(vbm_core::NetworkMode::Nat, 1);
    sim.ensure(net.clone()).await.unwrap();
    let _nic = sim.open_nic(net.id, net.ports[0].id, NicKind::Tap).await.unwrap();
    match events.recv().await.unwrap() {
        NetEvent::PortLeased { address, .. } => assert_eq!(address, net.ports[0].address),
        other => panic!("{other:?}"),
    }
    assert!(sim.inventory().await.unwrap()[0].ports[0].lease.is_some());
}
