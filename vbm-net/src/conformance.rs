//! What every [`NetworkBackend`] must do: run on the twin, on the real one, and on anybody's own.
//!
//! Each function is one sentence. [`all`] runs them, each with a fresh backend and fresh ids.

pub mod flows;
pub mod groups;
pub mod limits;
pub mod modes;
pub mod services;
pub mod six;

use crate::{
    DesiredForward, DesiredNetwork, DesiredOverlay, DesiredPort, NetError, NetworkBackend, Nic, NicKind,
    RemotePort,
};
use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr},
};
use vbm_core::{
    ErrorKind, ForwardId, IdSource, Ipv6Spec, Mac, NetworkId, NetworkMode, NetworkSpec, PortId, Protocol,
    network::{VNI_FIRST, VNI_LAST, parse_cidr},
};

/// The address of this host among the hosts, in tests. Of the range for benchmarks (RFC 2544), which nobody routes.
pub const UNDERLAY: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// The bridge of this host that bridged networks are on, in tests. A backend that is real must have one of that name.
pub const UPLINK: &str = "vbmtest-lan";

/// Makes networks for tests: valid, small, with ids from the caller's source.
pub struct Fixture<'a> {
    ids: &'a dyn IdSource,
}

impl<'a> Fixture<'a> {
    /// A fixture with the caller's ids. They must be new on the host: names of links come from them.
    pub fn new(ids: &'a dyn IdSource) -> Self {
        Self { ids }
    }

    /// A network `10.77.0.0/24` of a mode, with so many ports, none of which may be reached.
    ///
    /// # Panics
    /// With more than 250 ports.
    pub fn network(&self, mode: NetworkMode, ports: u8) -> DesiredNetwork {
        assert!(ports <= 250, "the fixture's network has no more addresses");
        let uplink = (mode == NetworkMode::Bridged).then(|| expect(UPLINK.parse(), "an uplink"));
        let spec = parse_cidr("10.77.0.0/24").and_then(|cidr| NetworkSpec::with_uplink(mode, cidr, uplink));
        let ports = (0..ports).map(|i| DesiredPort {
            id: PortId::from_uuid(self.ids.next()),
            mac: Mac::local(0x77_00_00 + u32::from(i)),
            address: Ipv4Addr::new(10, 77, 0, 10 + i.min(245)),
            address6: None,
            hostname: expect(format!("vm{i}").parse(), "a host name"),
            metadata_route: true,
            rules: Vec::new(),
            policy: Default::default(),
        });
        let ports = ports.collect();
        DesiredNetwork {
            id: NetworkId::from_uuid(self.ids.next()),
            name: expect("lab".parse(), "a name"),
            spec: expect(spec, "a spec"),
            ports,
            forwards: Vec::new(),
            overlay: None,
            groups: vec![],
        }
    }

    /// How [`Self::network`] reaches so many ports on other hosts. This host is [`UNDERLAY`]: a backend that is real must
    /// have that address.
    pub fn overlay(&self, remotes: u8) -> DesiredOverlay {
        let number = self.ids.next().as_u128() % u128::from(VNI_LAST - VNI_FIRST);
        let remotes = (0..remotes).map(|i| RemotePort {
            mac: Mac::local(0x78_00_00 + u32::from(i)),
            address: Ipv4Addr::new(10, 77, 0, 100 + i % 100),
            address6: None,
            host: Ipv4Addr::new(198, 18, 0, 2 + i % 2),
        });
        DesiredOverlay {
            vni: VNI_FIRST + expect(u32::try_from(number), "a number of 24 bits"),
            local: UNDERLAY,
            remotes: remotes.collect(),
            names: std::collections::BTreeMap::new(),
        }
    }

    /// A TCP forward to a port of a network.
    pub fn forward(&self, listen_port: u16, target: PortId, target_port: u16) -> DesiredForward {
        DesiredForward {
            id: ForwardId::from_uuid(self.ids.next()),
            protocol: Protocol::Tcp,
            listen_address: None,
            listen_port,
            target,
            target_port,
            count: 1,
        }
    }
}

fn expect<T, E: std::fmt::Debug>(result: Result<T, E>, what: &str) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{what}: {error:?}"),
    }
}

/// Runs all of it. Leaves nothing behind.
///
/// # Panics
/// When the backend breaks the contract; the message says how.
pub async fn all(backend: &dyn NetworkBackend, ids: &dyn IdSource) {
    let fixture = Fixture::new(ids);
    a_second_ensure_changes_nothing(backend, &fixture).await;
    what_makes_no_sense_is_refused_before_anything_is_made(backend, &fixture).await;
    a_nic_opens_once_and_again_after_it_was_closed(backend, &fixture).await;
    a_nic_that_its_holder_dropped_can_be_opened_again(backend, &fixture).await;
    a_nic_that_is_an_interface_stands_until_it_is_closed(backend, &fixture).await;
    a_port_that_is_not_wanted_cannot_be_opened(backend, &fixture).await;
    a_port_that_leaves_takes_its_nic_along(backend, &fixture).await;
    forwards_and_rules_change_live(backend, &fixture).await;
    removing_twice_is_fine_and_leaves_nothing(backend, &fixture).await;
    a_sweep_keeps_what_it_is_told_to(backend, &fixture).await;
    calls_for_one_network_may_overlap(backend, &fixture).await;
    a_network_may_span_hosts_and_its_remote_ports_come_and_go(backend, &fixture).await;
    a_remote_port_that_makes_no_sense_is_refused(backend, &fixture).await;
    groups::groups_change_live_and_a_second_ensure_changes_nothing(backend, &fixture).await;
    groups::a_group_that_makes_no_sense_is_refused_whole(backend, &fixture).await;
    services::what_a_vm_is_told_may_be_said_again_and_changes_nothing_else(backend, &fixture).await;
    services::a_network_that_is_made_again_asks_for_what_its_vms_are_told(backend, &fixture).await;
    services::what_is_too_large_or_of_no_port_is_not_told(backend, &fixture).await;
    services::services_are_switched_live_and_nonsense_is_refused(backend, &fixture).await;
    six::ipv6_comes_changes_and_goes_and_a_second_ensure_changes_nothing(backend, &fixture).await;
    six::ipv6_that_makes_no_sense_is_refused_before_anything_is_made(backend, &fixture).await;
    six::ports_of_other_hosts_have_ipv6_where_the_network_has_it(backend, &fixture).await;
    flows::flows_that_came_are_taken_in_once_and_only_those_that_could_begin(backend, &fixture).await;
    limits::limits_change_live_and_a_second_ensure_changes_nothing(backend, &fixture).await;
    limits::a_limit_that_makes_no_sense_is_refused(backend, &fixture).await;
    limits::a_floating_ip_leads_to_one_port_of_one_network(backend, &fixture).await;
    limits::counters_are_there_for_each_port_and_rule(backend, &fixture).await;
    limits::no_network_reaches_another_but_where_a_group_lets_it_in(backend, &fixture).await;
    limits::a_plan_says_what_would_be_done_and_does_nothing(backend, &fixture).await;
    modes::what_a_mode_does_not_go_with_is_refused_before_anything_is_made(backend, &fixture).await;
    modes::addresses_are_of_one_routed_network_of_a_host(backend, &fixture).await;
    modes::a_mode_changes_live_and_a_second_ensure_changes_nothing(backend, &fixture).await;
    modes::an_uplink_that_is_not_there_is_refused(backend, &fixture).await;
    modes::what_a_network_may_name_is_told_and_nothing_of_vbms_is(backend, &fixture).await;
}

/// See its name.
///
/// # Panics
/// When it is not so.
pub async fn a_second_ensure_changes_nothing(backend: &dyn NetworkBackend, fixture: &Fixture<'_>) {
    for mode in NetworkMode::ALL {
        let wanted = fixture.network(mode, 3);
        let first = expect(backend.ensure(wanted.clone()).await, "first ensure");
        assert!(first.ready && !first.changed.is_empty(), "{first:?}");
        assert_eq!(first.transit.is_some(), mode.goes_by_host());
        assert_eq!(first.gateway_mac, wanted.gateway_mac());
        let second = expect(backend.ensure(wanted.clone()).await, "second ensure");
        assert_eq!(
            second.changed,
            Vec::<String>::new(),
            "the second ensure of a {mode} network"
        );
        assert!(second.ready && second.ports.iter().all(|p| p.guarded && !p.open));
        assert_eq!(second.transit, first.transit);
        expect(backend.remove(wanted.id).await, "remove");
    }
}

/// IPv6, and an address of it for the first port.
fn six(net: &mut DesiredNetwork) {
    let cidr = expect("fd00:77::/64".parse(), "a network of IPv6");
    net.spec.ipv6 = Some(expect(Ipv6Spec::new(cidr), "a spec of IPv6"));
    net.ports[0].address6 = Some(Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 0xa));
}

/// See its name.
///
/// # Panics
/// When it is not so.
pub async fn what_makes_no_sense_is_refused_before_anything_is_made(
    backend: &dyn NetworkBackend,
    fixture: &Fixture<'_>,
) {
    type Spoil = fn(&mut DesiredNetwork);
    let spoils: [(&str, Spoil); 14] = [
        ("an address of IPv6 without a network of it", |n| {
            six(n);
            n.spec.ipv6 = None;
        }),
        ("an address of IPv6 outside", |n| {
            six(n);
            n.ports[0].address6 = Some(Ipv6Addr::new(0xfd00, 0x78, 0, 0, 0, 0, 0, 0xa));
        }),
        ("the gateway's address of IPv6", |n| {
            six(n);
            n.ports[0].address6 = n.spec.ipv6.as_ref().map(|s| s.gateway);
        }),
        ("an address of IPv6 twice", |n| {
            six(n);
            n.ports[1].address6 = n.ports[0].address6;
        }),
        ("an address outside", |n| {
            n.ports[0].address = Ipv4Addr::new(10, 78, 0, 1)
        }),
        ("the gateway's address", |n| n.ports[0].address = n.spec.gateway),
        ("an address that is excluded", |n| {
            n.spec.excluded = vec![vbm_core::Ipv4Range::one(n.ports[0].address)];
        }),
        ("an address twice", |n| n.ports[1].address = n.ports[0].address),
        ("a MAC twice", |n| n.ports[1].mac = n.ports[0].mac),
        ("the gateway's MAC", |n| n.ports[0].mac = n.gateway_mac()),
        ("a multicast MAC", |n| {
            n.ports[0].mac = Mac::new([1, 0, 0, 0, 0, 1])
        }),
        ("a rule with ports for icmp", |n| {
            let rule = "tcp/1".parse().map(|mut r: vbm_core::Rule| {
                r.protocol = Protocol::Icmp;
                r
            });
            n.ports[0].rules.extend(rule);
        }),
        ("a forward to port 0", |n| n.forwards[0].target_port = 0),
        ("a forward to nowhere", |n| {
            n.forwards[0].target = PortId::from_uuid(n.id.uuid())
        }),
    ];
    for (what, spoil) in spoils {
        let mut wanted = fixture.network(NetworkMode::Nat, 2);
        wanted
            .forwards
            .push(fixture.forward(40_000, wanted.ports[0].id, 80));
        spoil(&mut wanted);
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
pub async fn a_nic_opens_once_and_again_after_it_was_closed(
    backend: &dyn NetworkBackend,
    fixture: &Fixture<'_>,
) {
    let wanted = fixture.network(NetworkMode::Nat, 1);
    let port = wanted.ports[0].id;
    expect(backend.ensure(wanted.clone()).await, "ensure");
    let nic = expect(backend.open_nic(wanted.id, port, NicKind::Tap).await, "open");
    match backend.open_nic(wanted.id, port, NicKind::Tap).await {
        Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict, "{error:?}"),
        Ok(_) => panic!("a NIC was opened twice"),
    }
    let seen = expect(backend.ensure(wanted.clone()).await, "ensure");
    assert!(
        seen.ports[0].open && seen.changed.is_empty(),
        "an open NIC is not disturbed: {seen:?}"
    );
    expect(backend.close_nic(wanted.id, port).await, "close");
    expect(backend.close_nic(wanted.id, port).await, "close again");
    drop(nic);
    let again = backend.open_nic(wanted.id, port, NicKind::Tap).await;
    assert!(matches!(expect(again, "open again"), Nic::Tap { .. }));
    expect(backend.remove(wanted.id).await, "remove");
}

/// See its name.
///
/// # Panics
/// When it is not so.
pub async fn a_nic_that_its_holder_dropped_can_be_opened_again(
    backend: &dyn NetworkBackend,
    fixture: &Fixture<'_>,
) {
    let wanted = fixture.network(NetworkMode::Isolated, 1);
    let port = wanted.ports[0].id;
    expect(backend.ensure(wanted.clone()).await, "ensure");
    for _ in 0..3 {
        drop(expect(
            backend.open_nic(wanted.id, port, NicKind::Tap).await,
            "open",
        ));
    }
    expect(backend.remove(wanted.id).await, "remove");
}

/// See its name.
///
/// # Panics
/// When it is not so.
pub async fn a_nic_that_is_an_interface_stands_until_it_is_closed(
    backend: &dyn NetworkBackend,
    fixture: &Fixture<'_>,
) {
    let mut wanted = fixture.network(NetworkMode::Nat, 2);
    let port = wanted.ports[0].id;
    expect(backend.ensure(wanted.clone()).await, "ensure");
    for round in 0..2 {
        match expect(
            backend.open_nic(wanted.id, port, NicKind::Interface).await,
            "open",
        ) {
            Nic::Interface { name } => assert_eq!(name, crate::names::interface(port)),
            other => panic!("no interface: {other:?}"),
        }
        for kind in [NicKind::Interface, NicKind::Tap] {
            match backend.open_nic(wanted.id, port, kind).await {
                Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict, "{error:?}"),
                Ok(_) => panic!("a NIC was opened twice, round {round}"),
            }
        }
        let seen = expect(backend.ensure(wanted.clone()).await, "ensure");
        assert!(seen.ports[0].open && seen.changed.is_empty(), "{seen:?}");
        if round == 0 {
            expect(backend.close_nic(wanted.id, port).await, "close");
            let seen = expect(backend.ensure(wanted.clone()).await, "ensure");
            assert!(!seen.ports[0].open && seen.changed.is_empty(), "{seen:?}");
        }
    }
    wanted.ports.remove(0);
    let seen = expect(backend.ensure(wanted.clone()).await, "ensure without its port");
    assert_eq!(seen.ports.len(), 1);
    expect(backend.remove(wanted.id).await, "remove");
}

/// See its name.
///
/// # Panics
/// When it is not so.
pub async fn a_network_may_span_hosts_and_its_remote_ports_come_and_go(
    backend: &dyn NetworkBackend,
    fixture: &Fixture<'_>,
) {
    let mut wanted = fixture.network(NetworkMode::Nat, 2);
    wanted.overlay = Some(fixture.overlay(2));
    let first = expect(backend.ensure(wanted.clone()).await, "ensure");
    assert!(first.ready && !first.changed.is_empty(), "{first:?}");
    let remotes = wanted.overlay.as_ref().map(|o| o.remotes.clone());
    let remotes = expect(remotes.ok_or("none"), "remotes");
    for now in [&remotes[..], &remotes[..1], &[], &remotes[1..]] {
        wanted.overlay.iter_mut().for_each(|o| o.remotes = now.to_vec());
        expect(backend.ensure(wanted.clone()).await, "ensure");
        let again = expect(backend.ensure(wanted.clone()).await, "ensure again");
        assert!(again.changed.is_empty(), "{again:?}");
    }
    wanted.overlay = None;
    let alone = expect(backend.ensure(wanted.clone()).await, "ensure on one host");
    assert!(alone.ready && !alone.changed.is_empty());
    expect(backend.remove(wanted.id).await, "remove");
}

/// See its name.
///
/// # Panics
/// When it is not so.
pub async fn a_remote_port_that_makes_no_sense_is_refused(
    backend: &dyn NetworkBackend,
    fixture: &Fixture<'_>,
) {
    type Spoil = fn(&mut DesiredNetwork, &mut DesiredOverlay);
    let spoils: [(&str, Spoil); 11] = [
        ("the MAC of a local port", |n, o| {
            o.remotes[0].mac = n.ports[0].mac
        }),
        ("the address of a local port", |n, o| {
            o.remotes[0].address = n.ports[0].address;
        }),
        ("the gateway's MAC", |n, o| o.remotes[0].mac = n.gateway_mac()),
        ("the gateway's address", |n, o| {
            o.remotes[0].address = n.spec.gateway;
        }),
        ("one MAC twice", |_, o| o.remotes[0].mac = o.remotes[1].mac),
        ("one address twice", |_, o| {
            o.remotes[0].address = o.remotes[1].address;
        }),
        ("a host that is this one", |_, o| o.remotes[0].host = o.local),
        ("a host that nobody reaches", |_, o| {
            o.remotes[0].host = Ipv4Addr::LOCALHOST;
        }),
        ("no address of its own", |_, o| o.local = Ipv4Addr::UNSPECIFIED),
        ("an identifier of 25 bits", |_, o| o.vni = 1 << 24),
        ("another identifier than its spec's", |n, o| {
            n.spec.vni = Some(o.vni + 1);
        }),
    ];
    for (what, spoil) in spoils {
        let mut wanted = fixture.network(NetworkMode::Nat, 2);
        let mut overlay = fixture.overlay(2);
        spoil(&mut wanted, &mut overlay);
        wanted.overlay = Some(overlay);
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
pub async fn a_port_that_is_not_wanted_cannot_be_opened(backend: &dyn NetworkBackend, fixture: &Fixture<'_>) {
    let wanted = fixture.network(NetworkMode::Nat, 1);
    let port = wanted.ports[0].id;
    let refused = |result: Result<Nic, NetError>, what: &str| match result {
        Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "{what}: {error:?}"),
        Ok(_) => panic!("{what} was opened"),
    };
    refused(
        backend.open_nic(wanted.id, port, NicKind::Tap).await,
        "a port of a network that was never made",
    );
    expect(backend.ensure(wanted.clone()).await, "ensure");
    let other = PortId::from_uuid(wanted.id.uuid());
    refused(
        backend.open_nic(wanted.id, other, NicKind::Tap).await,
        "a port that nobody wants",
    );
    expect(backend.remove(wanted.id).await, "remove");
    refused(
        backend.open_nic(wanted.id, port, NicKind::Tap).await,
        "a port of a network that was removed",
    );
    expect(backend.close_nic(wanted.id, port).await, "closing it is fine");
}

/// See its name.
///
/// # Panics
/// When it is not so.
pub async fn a_port_that_leaves_takes_its_nic_along(backend: &dyn NetworkBackend, fixture: &Fixture<'_>) {
    let mut wanted = fixture.network(NetworkMode::Nat, 2);
    expect(backend.ensure(wanted.clone()).await, "ensure");
    let kept = expect(
        backend
            .open_nic(wanted.id, wanted.ports[0].id, NicKind::Tap)
            .await,
        "open",
    );
    let gone = expect(
        backend
            .open_nic(wanted.id, wanted.ports[1].id, NicKind::Tap)
            .await,
        "open",
    );
    let left = expect(wanted.ports.pop().ok_or("no port"), "two ports");
    let seen = expect(backend.ensure(wanted.clone()).await, "ensure with one port");
    assert_eq!(seen.ports.len(), 1);
    assert!(seen.ports[0].open, "the other port is not disturbed");
    assert!(backend.open_nic(wanted.id, left.id, NicKind::Tap).await.is_err());
    drop((kept, gone));
    expect(backend.remove(wanted.id).await, "remove");
}

/// See its name.
///
/// # Panics
/// When it is not so.
pub async fn forwards_and_rules_change_live(backend: &dyn NetworkBackend, fixture: &Fixture<'_>) {
    let mut wanted = fixture.network(NetworkMode::Nat, 2);
    let target = wanted.ports[1].id;
    expect(backend.ensure(wanted.clone()).await, "ensure");
    let nic = expect(backend.open_nic(wanted.id, target, NicKind::Tap).await, "open");
    for rules in [
        &["tcp/80"][..],
        &["tcp/80", "udp/53-60@10.0.0.0/8", "icmp", "any@192.168.0.0/16"],
        &[],
    ] {
        wanted.ports[1].rules = rules.iter().map(|r| expect(r.parse(), "a rule")).collect();
        wanted.forwards = vec![fixture.forward(40_001, target, 80)];
        wanted.forwards.truncate(rules.len());
        let seen = expect(backend.ensure(wanted.clone()).await, "ensure");
        assert!(!seen.changed.is_empty(), "{rules:?}");
        assert!(seen.ports[1].open && seen.ports[1].guarded);
        let again = expect(backend.ensure(wanted.clone()).await, "ensure");
        assert_eq!(again.changed, Vec::<String>::new(), "{rules:?} again");
    }
    drop(nic);
    expect(backend.remove(wanted.id).await, "remove");
}

/// See its name.
///
/// # Panics
/// When it is not so.
pub async fn removing_twice_is_fine_and_leaves_nothing(backend: &dyn NetworkBackend, fixture: &Fixture<'_>) {
    let wanted = fixture.network(NetworkMode::Nat, 1);
    expect(backend.remove(wanted.id).await, "removing what never was");
    expect(backend.ensure(wanted.clone()).await, "ensure");
    let nic = expect(
        backend
            .open_nic(wanted.id, wanted.ports[0].id, NicKind::Tap)
            .await,
        "open",
    );
    assert!(lists(backend, wanted.id).await);
    expect(backend.remove(wanted.id).await, "remove with a NIC held");
    expect(backend.remove(wanted.id).await, "remove again");
    assert!(!lists(backend, wanted.id).await);
    drop(nic);
    expect(backend.ensure(wanted.clone()).await, "the same id again");
    expect(backend.remove(wanted.id).await, "remove");
}

/// See its name.
///
/// # Panics
/// When it is not so.
pub async fn a_sweep_keeps_what_it_is_told_to(backend: &dyn NetworkBackend, fixture: &Fixture<'_>) {
    let (kept, gone) = (
        fixture.network(NetworkMode::Nat, 1),
        fixture.network(NetworkMode::Nat, 1),
    );
    expect(backend.ensure(kept.clone()).await, "ensure");
    expect(backend.ensure(gone.clone()).await, "ensure");
    let removed = expect(backend.sweep(&BTreeSet::from([kept.id])).await, "sweep");
    assert!(!removed.is_empty());
    assert!(lists(backend, kept.id).await && !lists(backend, gone.id).await);
    let seen = expect(backend.ensure(kept.clone()).await, "ensure");
    assert_eq!(seen.changed, Vec::<String>::new(), "what is kept is not touched");
    expect(backend.sweep(&BTreeSet::new()).await, "sweep all");
    assert!(!lists(backend, kept.id).await);
    let removed = expect(backend.sweep(&BTreeSet::new()).await, "sweep nothing");
    assert_eq!(removed, Vec::<String>::new());
}

/// See its name.
///
/// # Panics
/// When it is not so.
pub async fn calls_for_one_network_may_overlap(backend: &dyn NetworkBackend, fixture: &Fixture<'_>) {
    let wanted = fixture.network(NetworkMode::Nat, 2);
    let other = fixture.network(NetworkMode::Nat, 2);
    let (a, b, c) = futures::join!(
        backend.ensure(wanted.clone()),
        backend.ensure(wanted.clone()),
        backend.ensure(other.clone())
    );
    for result in [a, b, c] {
        assert!(expect(result, "overlapping ensure").ready);
    }
    let (a, b) = futures::join!(backend.remove(wanted.id), backend.remove(other.id));
    expect(a, "remove");
    expect(b, "remove");
}

/// After a shutdown nothing is done any more. Apart from [`all`], because it ends the backend.
///
/// # Panics
/// When it is not so.
pub async fn a_backend_that_was_shut_down_refuses(backend: &dyn NetworkBackend, fixture: &Fixture<'_>) {
    let wanted = fixture.network(NetworkMode::Nat, 1);
    backend.shutdown().await;
    backend.shutdown().await;
    let (network, port) = (wanted.id, wanted.ports[0].id);
    assert!(matches!(backend.ensure(wanted).await, Err(NetError::Stopped)));
    assert!(matches!(backend.remove(network).await, Err(NetError::Stopped)));
    assert!(matches!(
        backend.open_nic(network, port, NicKind::Tap).await,
        Err(NetError::Stopped)
    ));
    assert!(matches!(backend.counters(network).await, Err(NetError::Stopped)));
}

async fn lists(backend: &dyn NetworkBackend, id: NetworkId) -> bool {
    expect(backend.inventory().await, "inventory")
        .iter()
        .any(|n| n.id == id)
}
