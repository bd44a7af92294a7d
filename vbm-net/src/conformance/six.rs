//! What every backend must do about IPv6.

use super::{Fixture, expect, lists};
use crate::{DesiredNetwork, NetworkBackend};
use std::net::Ipv6Addr;
use vbm_core::{AddressPair, ErrorKind, Ipv6Spec, NetworkMode};

/// IPv6, and an address of it for each port: the one that its guest makes, where guests do.
fn six(net: &mut DesiredNetwork, stateless: bool) {
    let cidr = expect("fd00:77::/64".parse(), "a network of IPv6");
    let mut spec = expect(Ipv6Spec::new(cidr), "a spec of IPv6");
    spec.stateless = stateless;
    for (port, n) in net.ports.iter_mut().zip(0xa..) {
        let told = Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, n);
        port.address6 = Some(spec.made_of(port.mac).unwrap_or(told));
    }
    net.spec.ipv6 = Some(spec);
}

/// See its name.
///
/// # Panics
/// When it is not so.
pub async fn ipv6_comes_changes_and_goes_and_a_second_ensure_changes_nothing(
    backend: &dyn NetworkBackend,
    fixture: &Fixture<'_>,
) {
    for mode in [NetworkMode::Nat, NetworkMode::Isolated, NetworkMode::Routed] {
        let plain = fixture.network(mode, 2);
        let id = plain.id;
        let [mut told, mut made, mut mixed] = [(); 3].map(|()| plain.clone());
        six(&mut told, false);
        six(&mut made, true);
        six(&mut mixed, false);
        mixed.ports[1].address6 = None;
        expect(backend.ensure(plain.clone()).await, "without IPv6");
        for wanted in [told, mixed, made, plain] {
            let first = expect(backend.ensure(wanted.clone()).await, "ensure");
            assert!(first.ready && !first.changed.is_empty(), "{first:?}");
            assert!(first.ports.iter().all(|p| p.guarded && p.lease6.is_none()));
            let second = expect(backend.ensure(wanted.clone()).await, "second ensure");
            assert_eq!(
                second.changed,
                Vec::<String>::new(),
                "the second ensure of a {mode} network"
            );
        }
        expect(backend.remove(id).await, "remove");
    }
}

/// See its name.
///
/// # Panics
/// When it is not so.
pub async fn ipv6_that_makes_no_sense_is_refused_before_anything_is_made(
    backend: &dyn NetworkBackend,
    fixture: &Fixture<'_>,
) {
    type Spoil = fn(&mut DesiredNetwork);
    let spoils: [(&str, Spoil); 5] = [
        ("another address than the one that its guest makes", |n| {
            six(n, true);
            n.ports[0].address6 = Some(Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 0xa));
        }),
        ("addresses that nobody can make", |n| {
            six(n, true);
            n.ports.iter_mut().for_each(|p| p.address6 = None);
            if let Some(six) = &mut n.spec.ipv6 {
                six.cidr = expect("fd00:77::/80".parse(), "a network of IPv6");
            }
        }),
        ("a DNS server that is the VM itself", |n| {
            six(n, false);
            if let Some(six) = &mut n.spec.ipv6 {
                six.dns = vec![Ipv6Addr::LOCALHOST];
            }
        }),
        ("more DNS servers than a VM asks", |n| {
            six(n, false);
            if let Some(six) = &mut n.spec.ipv6 {
                six.dns = vec![six.gateway; 5];
            }
        }),
        ("the gateway's address of the link", |n| {
            six(n, false);
            let gateway = crate::model::GATEWAY_LINK_LOCAL;
            n.ports[0].policy.pairs = vec![AddressPair::of(gateway.into())];
        }),
    ];
    for (what, spoil) in spoils {
        let mut wanted = fixture.network(NetworkMode::Nat, 2);
        spoil(&mut wanted);
        let id = wanted.id;
        match backend.ensure(wanted).await {
            Err(error) => assert_eq!(error.kind(), ErrorKind::InvalidInput, "{what}: {error}"),
            Ok(seen) => panic!("{what} was accepted: {seen:?}"),
        }
        assert!(!lists(backend, id).await, "{what} left something");
    }
}

/// See its name.
///
/// # Panics
/// When it is not so.
pub async fn ports_of_other_hosts_have_ipv6_where_the_network_has_it(
    backend: &dyn NetworkBackend,
    fixture: &Fixture<'_>,
) {
    let far = Some(Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 0x100));
    let mut wanted = fixture.network(NetworkMode::Nat, 2);
    let mut overlay = fixture.overlay(2);
    overlay.remotes[0].address6 = far;
    wanted.overlay = Some(overlay);
    type Spoil = fn(&mut DesiredNetwork);
    let spoils: [(&str, Spoil); 4] = [
        ("without IPv6", |n| n.spec.ipv6 = None),
        ("outside of it", |n| {
            remote(n).address6 = Some(Ipv6Addr::new(0xfd00, 0x78, 0, 0, 0, 0, 0, 1));
        }),
        ("the gateway's", |n| {
            let gateway = n.spec.ipv6.as_ref().map(|six| six.gateway);
            remote(n).address6 = gateway;
        }),
        ("that of a port here", |n| {
            let taken = n.ports[0].address6;
            remote(n).address6 = taken;
        }),
    ];
    for (what, spoil) in spoils {
        let mut bad = wanted.clone();
        six(&mut bad, false);
        spoil(&mut bad);
        if bad.spec.ipv6.is_none() {
            bad.ports.iter_mut().for_each(|p| p.address6 = None);
        }
        match backend.ensure(bad).await {
            Err(error) => assert_eq!(error.kind(), ErrorKind::InvalidInput, "{what}: {error}"),
            Ok(seen) => panic!("a remote address {what} was accepted: {seen:?}"),
        }
        assert!(!lists(backend, wanted.id).await, "{what} left something");
    }
    six(&mut wanted, false);
    for now in [far, None, far] {
        remote(&mut wanted).address6 = now;
        expect(backend.ensure(wanted.clone()).await, "ensure");
        let again = expect(backend.ensure(wanted.clone()).await, "ensure again");
        assert_eq!(again.changed, Vec::<String>::new(), "{now:?}");
    }
    expect(backend.remove(wanted.id).await, "remove");
}

fn remote(net: &mut DesiredNetwork) -> &mut crate::RemotePort {
    let overlay = expect(net.overlay.as_mut().ok_or("none"), "an overlay");
    &mut overlay.remotes[0]
}
