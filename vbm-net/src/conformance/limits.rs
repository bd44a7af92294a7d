//! What every backend must do about limits, floating IPs and counters.

use super::{Fixture, NetworkMode, expect, lists};
use crate::{NetworkBackend, NicKind};
use std::net::Ipv4Addr;
use vbm_core::{ErrorKind, NetworkId, PortLimits, limits::PORT_MAX_CONNECTIONS};

/// Floating IPs of these tests: of a range that is kept for documents (RFC 5737), which no host has.
const FLOATING: [Ipv4Addr; 2] = [Ipv4Addr::new(203, 0, 113, 70), Ipv4Addr::new(203, 0, 113, 71)];

const fn limits(into: Option<u32>, out: Option<u32>, connections: Option<u32>) -> PortLimits {
    PortLimits {
        in_kbit_per_second: into,
        out_kbit_per_second: out,
        connections,
    }
}

/// See its name.
///
/// # Panics
/// When it is not so.
pub async fn limits_change_live_and_a_second_ensure_changes_nothing(
    backend: &dyn NetworkBackend,
    fixture: &Fixture<'_>,
) {
    let mut wanted = fixture.network(NetworkMode::Isolated, 2);
    expect(backend.ensure(wanted.clone()).await, "ensure");
    let port = wanted.ports[0].id;
    let nic = expect(backend.open_nic(wanted.id, port, NicKind::Tap).await, "open");
    for now in [
        limits(Some(10_000), Some(1_000), Some(100)),
        limits(Some(20_000), Some(1_000), None),
        limits(None, Some(64), Some(1)),
        limits(Some(32_000_000), None, Some(PORT_MAX_CONNECTIONS)),
        PortLimits::default(),
    ] {
        for port in &mut wanted.ports {
            port.policy.limits = now;
        }
        let seen = expect(backend.ensure(wanted.clone()).await, "ensure");
        assert!(seen.ready && !seen.changed.is_empty(), "{now:?}");
        let again = expect(backend.ensure(wanted.clone()).await, "ensure");
        assert_eq!(again.changed, Vec::<String>::new(), "{now:?} again");
    }
    drop(nic);
    wanted.ports[1].policy.limits = limits(Some(10_000), Some(1_000), None);
    expect(backend.ensure(wanted.clone()).await, "ensure");
    let second = backend
        .open_nic(wanted.id, wanted.ports[1].id, NicKind::Interface)
        .await;
    expect(second, "open one that is limited");
    let seen = expect(backend.ensure(wanted.clone()).await, "ensure");
    assert_eq!(seen.changed, Vec::<String>::new(), "a NIC opens with its limits");
    expect(backend.remove(wanted.id).await, "remove");
}

/// See its name.
///
/// # Panics
/// When it is not so.
pub async fn a_limit_that_makes_no_sense_is_refused(backend: &dyn NetworkBackend, fixture: &Fixture<'_>) {
    for (what, now) in [
        ("a rate of nothing", limits(Some(0), None, None)),
        ("a rate that no frame gets through", limits(None, Some(63), None)),
        ("a rate beyond all", limits(Some(u32::MAX), None, None)),
        ("no connection at all", limits(None, None, Some(0))),
        (
            "more connections than can be counted",
            limits(None, None, Some(PORT_MAX_CONNECTIONS + 1)),
        ),
    ] {
        let mut wanted = fixture.network(NetworkMode::Nat, 1);
        wanted.ports[0].policy.limits = now;
        match backend.ensure(wanted.clone()).await {
            Err(error) => assert_eq!(error.kind(), ErrorKind::InvalidInput, "{what}: {error:?}"),
            Ok(seen) => panic!("{what} was accepted: {seen:?}"),
        }
        assert!(!lists(backend, wanted.id).await, "{what} left something behind");
    }
}

/// See its name.
///
/// # Panics
/// When it is not so.
pub async fn a_floating_ip_leads_to_one_port_of_one_network(
    backend: &dyn NetworkBackend,
    fixture: &Fixture<'_>,
) {
    let (mut one, mut other) = (
        fixture.network(NetworkMode::Nat, 2),
        fixture.network(NetworkMode::Nat, 1),
    );
    for on in [
        [Some(FLOATING[0]), None],
        [None, Some(FLOATING[0])],
        [Some(FLOATING[1]), Some(FLOATING[0])],
    ] {
        for (port, floating) in one.ports.iter_mut().zip(on) {
            port.policy.floating = floating;
        }
        let seen = expect(backend.ensure(one.clone()).await, "attach");
        assert!(seen.ready && !seen.changed.is_empty(), "{on:?}");
        let again = expect(backend.ensure(one.clone()).await, "attach again");
        assert_eq!(again.changed, Vec::<String>::new(), "{on:?} again");
    }
    other.ports[0].policy.floating = Some(FLOATING[0]);
    match backend.ensure(other.clone()).await {
        Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict, "{error:?}"),
        Ok(seen) => panic!("one floating IP leads to two networks: {seen:?}"),
    }
    one.ports[1].policy.floating = None;
    expect(backend.ensure(one.clone()).await, "detach");
    expect(backend.ensure(other.clone()).await, "attach to the other network");
    expect(backend.remove(other.id).await, "remove");
    one.ports[1].policy.floating = Some(FLOATING[0]);
    expect(backend.ensure(one.clone()).await, "attach where it was before");
    expect(backend.remove(one.id).await, "remove");
}

/// See its name.
///
/// # Panics
/// When it is not so.
pub async fn counters_are_there_for_each_port_and_rule(backend: &dyn NetworkBackend, fixture: &Fixture<'_>) {
    let mut wanted = fixture.network(NetworkMode::Isolated, 2);
    wanted.ports[0].rules = vec![
        expect("tcp/80".parse(), "a rule"),
        expect("egress:udp/53".parse(), "a rule"),
    ];
    let nobody = NetworkId::from_uuid(fixture.ids.next());
    match backend.counters(nobody).await {
        Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}"),
        Ok(counters) => panic!("nobody's counters: {counters:?}"),
    }
    expect(backend.ensure(wanted.clone()).await, "ensure");
    let counters = expect(backend.counters(wanted.id).await, "counters");
    let ports: Vec<_> = counters.ports.iter().map(|p| p.id).collect();
    assert_eq!(ports, wanted.ports.iter().map(|p| p.id).collect::<Vec<_>>());
    assert!(counters.ports.iter().all(|p| p.sent.packets == 0));
    let mut rules: Vec<_> = counters.rules.iter().map(|r| r.rule.clone()).collect();
    let mut expected = wanted.ports[0].rules.clone();
    rules.sort();
    expected.sort();
    assert_eq!(rules, expected);
    assert!(counters.rules.iter().all(|r| r.passed.packets == 0));
    expect(backend.remove(wanted.id).await, "remove");
}

/// See its name.
///
/// # Panics
/// When it is not so.
pub async fn a_plan_says_what_would_be_done_and_does_nothing(
    backend: &dyn NetworkBackend,
    fixture: &Fixture<'_>,
) {
    let mut wanted = fixture.network(NetworkMode::Nat, 2);
    let plan = async |wanted: &crate::DesiredNetwork| expect(backend.plan(wanted.clone()).await, "plan");
    assert!(!plan(&wanted).await.is_empty());
    assert!(!lists(backend, wanted.id).await, "a plan made something");
    let more: [fn(&mut crate::DesiredNetwork, &Fixture<'_>); 6] = [
        |_, _| {},
        |n, _| n.ports[0].rules = vec![expect("tcp/80".parse(), "a rule")],
        |n, f| n.forwards = vec![f.forward(40_001, n.ports[0].id, 80)],
        |n, _| n.ports[0].policy.limits = limits(Some(1_000), Some(1_000), Some(10)),
        |n, _| n.ports[1].policy.floating = Some(FLOATING[0]),
        |n, _| drop(n.ports.pop()),
    ];
    for (step, change) in more.iter().enumerate() {
        change(&mut wanted, fixture);
        let lines = plan(&wanted).await;
        assert!(!lines.is_empty(), "change {step} is not foreseen");
        assert_eq!(
            plan(&wanted).await,
            lines,
            "a plan of change {step} changed something"
        );
        let seen = expect(backend.ensure(wanted.clone()).await, "ensure");
        assert!(!seen.changed.is_empty(), "change {step}");
        assert_eq!(plan(&wanted).await, Vec::<String>::new(), "after change {step}");
    }
    wanted.ports[0].address = wanted.spec.gateway;
    match backend.plan(wanted.clone()).await {
        Err(error) => assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error:?}"),
        Ok(lines) => panic!("nonsense was planned: {lines:?}"),
    }
    expect(backend.remove(wanted.id).await, "remove");
}

/// See its name.
///
/// # Panics
/// When it is not so.
pub async fn no_network_reaches_another_but_where_a_group_lets_it_in(
    backend: &dyn NetworkBackend,
    fixture: &Fixture<'_>,
) {
    let mut open = fixture.network(NetworkMode::Nat, 1);
    open.ports[0].rules = vec![expect("icmp".parse(), "a rule")];
    open.ports[0].policy.floating = Some(FLOATING[0]);
    let others = [
        fixture.network(NetworkMode::Nat, 1),
        fixture.network(NetworkMode::Isolated, 1),
    ];
    for network in others.iter().chain([&open]) {
        expect(backend.ensure(network.clone()).await, "ensure");
    }
    let paths = expect(backend.check().await, "check");
    let holes: Vec<_> = paths.iter().filter(|p| p.is_hole()).collect();
    assert!(holes.is_empty(), "{holes:?}");
    for from in &others {
        let tried = |p: &&crate::PathSeen| p.from == from.id && p.to == Some(open.id);
        assert!(
            paths.iter().any(|p| tried(&p)),
            "no path from {} was tried",
            from.id
        );
        let to_floating = paths.iter().filter(tried).filter(|p| p.address == FLOATING[0]);
        let allowed = to_floating.filter(|p| p.allowed).count();
        let has_way_out = from.spec.mode == NetworkMode::Nat;
        assert_eq!(allowed, usize::from(has_way_out), "ping, and nothing else");
    }
    for network in others.iter().chain([&open]) {
        expect(backend.remove(network.id).await, "remove");
    }
}
