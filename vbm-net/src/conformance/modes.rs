//! The modes of networks: what every backend does and refuses.

use super::{Fixture, NetworkMode, expect, lists};
use crate::{DesiredNetwork, NetworkBackend};
use vbm_core::ErrorKind;

/// An interface that no host has.
const NOWHERE: &str = "vbmtest-none";

/// See its name.
///
/// # Panics
/// When it is not so.
pub async fn what_a_mode_does_not_go_with_is_refused_before_anything_is_made(
    backend: &dyn NetworkBackend,
    fixture: &Fixture<'_>,
) {
    type Spoil = fn(&mut DesiredNetwork, &Fixture<'_>);
    let spoils: [(&str, NetworkMode, Spoil); 8] = [
        ("a tunnel beside a LAN", NetworkMode::Bridged, |n, f| {
            n.overlay = Some(f.overlay(1));
        }),
        ("a bridged network of no LAN", NetworkMode::Bridged, |n, _| {
            n.spec.uplink = None;
        }),
        ("DNS on somebody else's LAN", NetworkMode::Bridged, |n, _| {
            n.spec.serve_dns = true;
        }),
        ("an uplink of NAT", NetworkMode::Nat, |n, _| {
            n.spec.uplink = NOWHERE.parse().ok();
        }),
        ("a network without DHCP", NetworkMode::Routed, |n, _| {
            n.spec.serve_dhcp = false;
        }),
        ("a forward without NAT", NetworkMode::Routed, |n, f| {
            n.forwards.push(f.forward(40_001, n.ports[0].id, 80));
        }),
        ("a floating IP without NAT", NetworkMode::Routed, |n, _| {
            n.ports[0].policy.floating = Some([192, 0, 2, 77].into());
        }),
        ("a floating IP on a LAN", NetworkMode::Bridged, |n, _| {
            n.ports[0].policy.floating = Some([192, 0, 2, 77].into());
        }),
    ];
    for (what, mode, spoil) in spoils {
        let mut wanted = fixture.network(mode, 1);
        spoil(&mut wanted, fixture);
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
pub async fn addresses_are_of_one_routed_network_of_a_host(
    backend: &dyn NetworkBackend,
    fixture: &Fixture<'_>,
) {
    let (first, second) = (
        fixture.network(NetworkMode::Routed, 1),
        fixture.network(NetworkMode::Routed, 1),
    );
    let nat = fixture.network(NetworkMode::Nat, 1);
    expect(backend.ensure(first.clone()).await, "the first");
    match backend.ensure(second.clone()).await {
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Conflict, "{error:?}");
            let told = vbm_core::Error::from(error).to_string();
            assert!(
                told.contains(&first.id.to_string()),
                "it says which has them: {told}"
            );
        }
        Ok(seen) => panic!("two routed networks have the same addresses: {seen:?}"),
    }
    assert!(!lists(backend, second.id).await, "the second left something");
    expect(
        backend.ensure(nat.clone()).await,
        "a network with NAT may have them too",
    );
    let again = expect(backend.ensure(first.clone()).await, "the first again");
    assert_eq!(again.changed, Vec::<String>::new(), "the first is as it was");
    expect(backend.remove(first.id).await, "remove");
    expect(
        backend.ensure(second.clone()).await,
        "the second, when they are free",
    );
    for id in [second.id, nat.id] {
        expect(backend.remove(id).await, "remove");
    }
}

/// See its name.
///
/// # Panics
/// When it is not so.
pub async fn a_mode_changes_live_and_a_second_ensure_changes_nothing(
    backend: &dyn NetworkBackend,
    fixture: &Fixture<'_>,
) {
    use NetworkMode as M;
    let mut wanted = fixture.network(M::Nat, 1);
    for mode in [M::Routed, M::Bridged, M::Isolated, M::Routed, M::Nat] {
        wanted.spec = fixture.network(mode, 0).spec;
        let first = expect(backend.ensure(wanted.clone()).await, "ensure");
        assert!(first.ready && !first.changed.is_empty(), "{mode}: {first:?}");
        assert_eq!(first.transit.is_some(), mode.goes_by_host(), "{mode}");
        let plan = expect(backend.plan(wanted.clone()).await, "plan");
        assert_eq!(plan, Vec::<String>::new(), "a plan of what stands, {mode}");
        let again = expect(backend.ensure(wanted.clone()).await, "ensure again");
        assert_eq!(again.changed, Vec::<String>::new(), "{mode}");
    }
    expect(backend.remove(wanted.id).await, "remove");
}

/// See its name.
///
/// # Panics
/// When it is not so.
pub async fn what_a_network_may_name_is_told_and_nothing_of_vbms_is(
    backend: &dyn NetworkBackend,
    fixture: &Fixture<'_>,
) {
    let wanted = fixture.network(NetworkMode::Bridged, 1);
    let named = |uplinks: &[vbm_core::Uplink]| {
        let mut names: Vec<String> = uplinks.iter().map(|u| u.name.to_string()).collect();
        names.sort();
        names
    };
    let before = expect(backend.uplinks().await, "uplinks");
    let mine = before
        .iter()
        .find(|u| Some(&u.name) == wanted.spec.uplink.as_ref());
    assert_eq!(mine.map(|u| u.unfit.is_none()), Some(true), "{before:?}");
    assert!(
        !named(&before).iter().any(|name| name == NOWHERE || name == "lo"),
        "{before:?}"
    );
    // Its leg and its NIC are no way of the host's.
    expect(backend.ensure(wanted.clone()).await, "ensure");
    let nic = backend.open_nic(wanted.id, wanted.ports[0].id, crate::NicKind::Interface);
    expect(nic.await, "a NIC of the host");
    let with = expect(backend.uplinks().await, "uplinks");
    assert_eq!(named(&with), named(&before));
    expect(backend.remove(wanted.id).await, "remove");
}

/// See its name.
///
/// # Panics
/// When it is not so.
pub async fn an_uplink_that_is_not_there_is_refused(backend: &dyn NetworkBackend, fixture: &Fixture<'_>) {
    for mode in [NetworkMode::Routed, NetworkMode::Bridged] {
        let mut wanted = fixture.network(mode, 1);
        wanted.spec.uplink = NOWHERE.parse().ok();
        match backend.ensure(wanted.clone()).await {
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Conflict, "{mode}: {error:?}");
                let told = vbm_core::Error::from(error).to_string();
                assert!(told.contains(NOWHERE), "it says which: {told}");
            }
            Ok(seen) => panic!("a {mode} network is on an interface that is not there: {seen:?}"),
        }
        assert!(!lists(backend, wanted.id).await, "{mode} left something behind");
    }
}
