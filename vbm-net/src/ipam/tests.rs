//! The IPAM against models simple enough to be right by looking at them.

use super::*;
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use vbm_core::{NetworkMode, network::parse_cidr};

mod damaged;

const START: Timestamp = Timestamp::from_micros(1_700_000_000_000_000);
const QUARANTINE: Duration = Duration::from_secs(60);

fn spec(cidr: &str) -> NetworkSpec {
    NetworkSpec::new(NetworkMode::Nat, parse_cidr(cidr).unwrap()).unwrap()
}

fn at(seconds: u64) -> Timestamp {
    START.plus(Duration::from_secs(seconds))
}

fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn with(change: impl FnOnce(&mut NetworkSpec)) -> Ipam<Ipv4Addr> {
    let mut spec = spec("10.0.0.0/24");
    change(&mut spec);
    Ipam::v4(&spec).unwrap()
}

#[test]
fn what_other_ports_may_use_beside_their_own_is_given_to_nobody_and_what_a_port_has_already_stays_its() {
    let plan = || Plan::v4(&spec("10.0.0.0/29")).unwrap();
    let own = Ipv4Addr::new(10, 0, 0, 3);
    let shared = |last: u8| (own, Ipv4Addr::new(10, 0, 0, last));
    let mut ipam = Ipam::new(plan().withholding(&[shared(5)]));
    assert!(ipam.adopt(own, START), "a port has it");
    assert!(!ipam.adopt(own, START), "as is known");
    let refused = ipam.pin(Ipv4Addr::new(10, 0, 0, 4), None, START).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict, "{refused}");
    let given: Vec<Ipv4Addr> = std::iter::from_fn(|| ipam.allocate(None, START).ok()).collect();
    assert_eq!(given, [[10, 0, 0, 2], [10, 0, 0, 6]].map(Ipv4Addr::from));
    // Later nobody shares them.
    let mut ipam = Ipam::restore(plan(), &ipam.state()).unwrap();
    assert_eq!(
        ipam.pin(own, None, START).unwrap_err().kind(),
        ErrorKind::AlreadyExists
    );
    let given: Vec<Ipv4Addr> = std::iter::from_fn(|| ipam.allocate(None, START).ok()).collect();
    assert_eq!(given, [[10, 0, 0, 4], [10, 0, 0, 5]].map(Ipv4Addr::from));
    let full = Ipam::new(plan().withholding(&[(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST)]));
    assert_eq!(full.utilisation(START).free, 0);
    assert_eq!(
        full.clone().allocate(None, START).unwrap_err().kind(),
        ErrorKind::Exhausted
    );
}

#[test]
fn every_address_of_the_pool_is_given_once_the_first_and_the_last_among_them() {
    for cidr in [
        "10.0.0.0/30",
        "10.0.0.0/29",
        "10.0.0.0/26",
        "10.0.0.0/24",
        "10.0.0.0/20",
        "172.16.0.0/16",
    ] {
        let spec = spec(cidr);
        let mut ipam = Ipam::v4(&spec).unwrap();
        let room = ipam.utilisation(START).free;
        let all: BTreeSet<_> = (0..room).map(|_| ipam.allocate(None, START).unwrap()).collect();
        let pool = u32::from(spec.pool_last) - u32::from(spec.pool_first) + 1;
        assert_eq!((all.len(), room), (pool as usize, u128::from(pool)), "{cidr}");
        assert!(
            all.contains(&spec.pool_first) && all.contains(&spec.pool_last),
            "{cidr}"
        );
        assert!(!all.contains(&spec.gateway), "{cidr}");
        assert_eq!(
            ipam.allocate(None, START).unwrap_err().kind(),
            ErrorKind::Exhausted
        );
    }
}

#[test]
fn an_address_given_back_is_used_again_as_late_as_possible() {
    let mut ipam = Ipam::v4(&spec("10.0.0.0/29")).unwrap();
    let first = ipam.allocate(None, START).unwrap();
    assert!(ipam.release(first, START));
    let rest: Vec<_> = (0..5).map(|_| ipam.allocate(None, START).unwrap()).collect();
    assert_eq!(rest.last(), Some(&first));
}

#[test]
fn an_address_rests_to_the_end_of_its_quarantine_and_not_longer() {
    let mut ipam = with(|s| {
        (s.pool_first, s.pool_last) = (ip("10.0.0.7"), ip("10.0.0.7"));
        s.quarantine_seconds = 60;
    });
    let only = ipam.allocate(None, at(0)).unwrap();
    assert!(ipam.release(only, at(10)));
    assert!(!ipam.release(only, at(11)), "it is given back once");
    assert_eq!(ipam.standing(only, at(69)), Standing::Resting { until: at(70) });
    let refused = ipam.allocate(None, at(69)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Exhausted);
    assert!(
        refused.why().contains("1 of them rest") && refused.why().contains("free in 2 s"),
        "{refused}"
    );
    let used = ipam.utilisation(at(69));
    assert_eq!((used.taken, used.resting, used.free), (0, 1, 0));
    assert_eq!(ipam.utilisation(at(70)).free, 1);
    assert_eq!(ipam.standing(only, at(70)), Standing::Free);
    assert_eq!(ipam.allocate(None, at(70)).unwrap(), only);
}

#[test]
fn who_asks_for_a_resting_address_by_name_gets_it() {
    let mut ipam = with(|s| s.quarantine_seconds = 60);
    let one = ipam.allocate(None, at(0)).unwrap();
    ipam.release(one, at(1));
    ipam.pin(one, None, at(2)).unwrap();
    assert_eq!(ipam.standing(one, at(2)), Standing::Taken);
    assert_eq!(
        ipam.standing(one, at(100)),
        Standing::Taken,
        "the end of its rest does not free it"
    );
    assert_eq!(
        ipam.pin(one, None, at(100)).unwrap_err().kind(),
        ErrorKind::AlreadyExists
    );
}

#[test]
fn more_can_be_given_back_than_can_rest() {
    let mut ipam = {
        let mut spec = spec("10.0.0.0/16");
        spec.quarantine_seconds = 60;
        Ipam::v4(&spec).unwrap()
    };
    let all: Vec<_> = (0..=RESTING_MAX_ADDRESSES)
        .map(|_| ipam.allocate(None, at(0)).unwrap())
        .collect();
    for (n, address) in all.iter().enumerate() {
        assert!(ipam.release(*address, at(0).plus(Duration::from_micros(n as u64))));
    }
    assert_eq!(ipam.utilisation(at(1)).resting, RESTING_MAX_ADDRESSES as u128);
    assert_eq!(
        ipam.standing(all[0], at(1)),
        Standing::Free,
        "the one that rested longest made room"
    );
}

#[test]
fn service_addresses_excluded_ones_and_those_outside_are_refused() {
    let mut ipam = with(|s| s.excluded = vec!["10.0.0.40-10.0.0.49".parse().unwrap()]);
    for (bad, why) in [
        ("10.0.0.0", "network's own"),
        ("10.0.0.1", "gateway"),
        ("10.0.0.255", "broadcast"),
        ("10.0.0.40", "excludes"),
        ("10.0.0.49", "excludes"),
        ("10.0.1.0", "outside"),
        ("9.255.255.255", "outside"),
    ] {
        let error = ipam.pin(ip(bad), None, START).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.why().contains(why), "{bad}: {error}");
        assert!(!ipam.release(ip(bad), START));
    }
    let all: BTreeSet<_> = std::iter::from_fn(|| ipam.allocate(None, START).ok()).collect();
    assert_eq!(all.len(), 253 - 10);
    assert!(!all.iter().any(|a| (40..50).contains(&a.octets()[3])));
}

#[test]
fn a_reserved_address_is_for_its_mac_alone() {
    let mac: Mac = "52:54:00:00:00:01".parse().unwrap();
    let mut ipam = with(|s| {
        s.reservations = vec![
            "10.0.0.2=52:54:00:00:00:01".parse().unwrap(),
            "10.0.0.3".parse().unwrap(),
        ];
        s.dns = vec![ip("10.0.0.4"), ip("9.9.9.9")];
    });
    assert_eq!(
        ipam.allocate(None, START).unwrap(),
        ip("10.0.0.5"),
        "nor a DNS server inside"
    );
    assert_eq!(ipam.plan().reserved_for(mac), Some(ip("10.0.0.2")));
    assert_eq!(
        ipam.standing(ip("10.0.0.2"), START),
        Standing::Reserved(Some(mac))
    );
    for other in [None, Some(Mac::local(7))] {
        let error = ipam.pin(ip("10.0.0.2"), other, START).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    }
    ipam.pin(ip("10.0.0.2"), Some(mac), START).unwrap();
    ipam.pin(ip("10.0.0.3"), None, START).unwrap();
    ipam.pin(ip("10.0.0.4"), None, START).unwrap();
    assert_eq!(ipam.utilisation(START).outside, 3);
    assert_eq!(
        ipam.allocate(Some(ip("10.0.0.3")), START).unwrap(),
        ip("10.0.0.6")
    );
}

#[test]
fn a_hint_is_taken_when_it_is_free_and_in_the_pool() {
    let mut ipam = with(|_| {});
    let hint = ip("10.0.0.77");
    assert_eq!(ipam.allocate(Some(hint), START).unwrap(), hint);
    assert_ne!(ipam.allocate(Some(hint), START).unwrap(), hint);
    assert_eq!(
        ipam.allocate(Some(ip("10.0.0.1")), START).unwrap(),
        ip("10.0.0.3")
    );
}

#[test]
fn another_plan_keeps_what_is_taken_and_refuses_to_exclude_it() {
    let mut ipam = with(|s| s.quarantine_seconds = 60);
    let (one, two) = (
        ipam.allocate(None, START).unwrap(),
        ipam.allocate(None, START).unwrap(),
    );
    let plan = |change: &dyn Fn(&mut NetworkSpec)| {
        let mut spec = spec("10.0.0.0/24");
        change(&mut spec);
        Plan::v4(&spec).unwrap()
    };
    let before = ipam.state();
    let error = ipam
        .follow(plan(&|s| s.excluded = vec!["10.0.0.2-10.0.0.9".parse().unwrap()]))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.what().contains("10.0.0.2"), "{error}");
    assert!(ipam.follow(Plan::v4(&spec("10.0.1.0/24")).unwrap()).is_err());
    assert_eq!(ipam.state(), before, "nothing was changed");
    ipam.release(one, START);
    ipam.release(two, START);
    ipam.follow(plan(&|s| s.excluded = vec!["10.0.0.2-10.0.0.9".parse().unwrap()]))
        .unwrap();
    let three = ip("10.0.0.10");
    assert_eq!(ipam.allocate(None, START).unwrap(), three);
    ipam.follow(plan(&|s| s.pool_first = ip("10.0.0.200"))).unwrap();
    let used = ipam.utilisation(START);
    assert_eq!((used.pool, used.taken, used.outside), (55, 0, 1));
    assert_eq!(ipam.allocate(None, START).unwrap(), ip("10.0.0.200"));
    assert!(ipam.release(three, START));
}

#[test]
fn ipv6_is_given_from_the_beginning_and_pinned_anywhere_for_little() {
    let mut spec = spec("10.0.0.0/24");
    assert!(Ipam::v6(&spec).unwrap().is_none());
    spec.ipv6 = Some(vbm_core::Ipv6Spec::new("fd00:1::/64".parse().unwrap()).unwrap());
    let mut ipam = Ipam::v6(&spec).unwrap().unwrap();
    assert_eq!(ipam.allocate(None, START).unwrap().to_string(), "fd00:1::2");
    for n in 0..1_000_u128 {
        let far = (u128::from("fd00:1::".parse::<Ipv6Addr>().unwrap()) + (n + 1) * (1 << 50)).into();
        ipam.pin(far, None, START).unwrap();
        assert_eq!(ipam.standing(far, START), Standing::Taken);
    }
    assert!(ipam.heap_bytes() < 150_000, "{}", ipam.heap_bytes());
    assert!(
        ipam.pin("fd00:1::".parse().unwrap(), None, START).is_err(),
        "the subnet's routers"
    );
    assert!(
        ipam.pin("fd00:1::fdff:ffff:ffff:ffff".parse().unwrap(), None, START)
            .is_err(),
        "anycast"
    );
    let last = "fd00:1::ffff:ffff:ffff:ffff".parse().unwrap();
    ipam.pin(last, None, START).unwrap();
    let again = Ipam::restore(ipam.plan().clone(), &ipam.state()).unwrap();
    assert_eq!(again.state(), ipam.state());
    assert!(again.taken().eq(ipam.taken()));
    assert!(ipam.state().bytes() < 20_000, "{}", ipam.state().bytes());
}

#[test]
fn the_last_address_of_ipv6_does_not_overflow() {
    let plan = Plan::new(PlanSpec {
        network: "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe"
            .parse::<Ipv6Addr>()
            .unwrap(),
        prefix: 127,
        services: Vec::new(),
        pools: Vec::new(),
        excluded: Vec::new(),
        reserved: Vec::new(),
        quarantine: Duration::ZERO,
    })
    .unwrap();
    let mut ipam = Ipam::new(plan);
    let (a, b) = (
        ipam.allocate(None, START).unwrap(),
        ipam.allocate(None, START).unwrap(),
    );
    assert_eq!((u128::from(b), a < b), (u128::MAX, true));
    assert!(ipam.allocate(None, START).is_err());
    assert!(ipam.release(b, START));
    assert_eq!(ipam.allocate(None, START).unwrap(), b);
}

/// What a port does.
#[derive(Clone, Debug)]
enum Op {
    Allocate(u8, Option<u8>),
    Pin(u8, u8),
    Release(u8),
    Wait(u16),
    Reload,
}

fn op() -> impl Strategy<Value = Op> {
    let port = 0u8..24;
    prop_oneof![
        4 => (port.clone(), proptest::option::of(any::<u8>())).prop_map(|(p, h)| Op::Allocate(p, h)),
        2 => (port.clone(), any::<u8>()).prop_map(|(p, a)| Op::Pin(p, a)),
        3 => port.prop_map(Op::Release),
        2 => (0u16..90).prop_map(Op::Wait),
        1 => Just(Op::Reload),
    ]
}

proptest! {
    /// The model: who has what, and until when an address rests. After each operation the IPAM must agree with it about
    /// every address there is, so an operation on one port changes nothing of another's.
    #[test]
    fn ports_keep_their_addresses_and_nobody_gets_one_twice(
        prefix in 26u8..=30, lo in 1u32..62, hi in 1u32..62, excluded in 0u32..64, reserved in 0u32..64,
        ops in prop::collection::vec(op(), 0..200)
    ) {
        let mut spec = spec(&format!("192.168.7.0/{prefix}"));
        let base = u32::from(spec.cidr.network());
        let last = (1u32 << (32 - prefix)) - 2;
        let (lo, hi) = ((lo - 1) % last + 1, (hi - 1) % last + 1);
        (spec.pool_first, spec.pool_last) = ((base + lo.min(hi)).into(), (base + lo.max(hi)).into());
        spec.quarantine_seconds = 60;
        spec.excluded = vec![vbm_core::Ipv4Range::one((base + excluded % (last + 2)).into())];
        if let Some(address) = Some(Ipv4Addr::from(base + reserved % (last + 2))).filter(|a| spec.is_port_address(*a)) {
            spec.reservations = vec![vbm_core::Reservation { address, mac: None }];
        }
        let Ok(mut ipam) = Ipam::v4(&spec) else { return Ok(()) };
        let all: Vec<Ipv4Addr> = (0..last + 2).map(|o| (base + o).into()).collect();
        let reserved = |a: Ipv4Addr| spec.reservations.iter().any(|r| r.address == a);
        let in_pool = |a: Ipv4Addr| spec.pool_first <= a && a <= spec.pool_last && spec.is_port_address(a) && !reserved(a);
        let (mut ports, mut resting): (BTreeMap<u8, Ipv4Addr>, BTreeMap<Ipv4Addr, Timestamp>) = Default::default();
        let mut now = START;
        for op in ops {
            let free = |a: Ipv4Addr, ports: &BTreeMap<u8, Ipv4Addr>, resting: &BTreeMap<Ipv4Addr, Timestamp>| {
                !ports.values().any(|p| *p == a) && resting.get(&a).is_none_or(|until| *until <= now)
            };
            match op {
                Op::Allocate(port, hint) if !ports.contains_key(&port) => {
                    let hint = hint.map(|n| all[usize::from(n) % all.len()]);
                    match ipam.allocate(hint, now) {
                        Ok(got) => {
                            prop_assert!(in_pool(got) && free(got, &ports, &resting), "{got} was not free");
                            if let Some(hint) = hint.filter(|h| in_pool(*h) && free(*h, &ports, &resting)) {
                                prop_assert_eq!(got, hint);
                            }
                            ports.insert(port, got);
                        }
                        Err(_) => prop_assert!(!all.iter().any(|a| in_pool(*a) && free(*a, &ports, &resting))),
                    }
                }
                Op::Pin(port, n) if !ports.contains_key(&port) => {
                    let address = all[usize::from(n) % all.len()];
                    let may = spec.is_port_address(address) && !ports.values().any(|p| *p == address);
                    prop_assert_eq!(ipam.pin(address, None, now).is_ok(), may);
                    if may {
                        resting.remove(&address);
                        ports.insert(port, address);
                    }
                }
                Op::Release(port) => if let Some(address) = ports.remove(&port) {
                    prop_assert!(ipam.release(address, now));
                    prop_assert!(!ipam.release(address, now), "given back twice");
                    resting.insert(address, now.plus(QUARANTINE));
                },
                Op::Wait(seconds) => now = now.plus(Duration::from_secs(seconds.into())),
                Op::Reload => {
                    let text = serde_json::to_string(&ipam.state()).unwrap();
                    let state: State = serde_json::from_str(&text).unwrap();
                    ipam = Ipam::restore(ipam.plan().clone(), &state).unwrap();
                    prop_assert_eq!(ipam.state(), state);
                }
                Op::Allocate(..) | Op::Pin(..) => {}
            }
            for address in &all {
                let expected = if ports.values().any(|p| p == address) {
                    Standing::Taken
                } else if !spec.is_port_address(*address) {
                    prop_assert!(matches!(ipam.standing(*address, now), Standing::Never(_)));
                    continue;
                } else if let Some(until) = resting.get(address).filter(|until| **until > now) {
                    Standing::Resting { until: *until }
                } else if reserved(*address) {
                    Standing::Reserved(None)
                } else if in_pool(*address) {
                    Standing::Free
                } else {
                    Standing::OutsidePool
                };
                prop_assert_eq!(ipam.standing(*address, now), expected, "{}", address);
            }
            let used = ipam.utilisation(now);
            let count = |taken: bool| ports.values().filter(|a| in_pool(**a) == taken).count() as u128;
            prop_assert_eq!((used.taken, used.outside), (count(true), count(false)));
            prop_assert_eq!(used.pool, used.taken + used.resting + used.free);
        }
    }
}
