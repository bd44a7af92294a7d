//! What is refused of a network's addresses: each error names its field and its limit.

use super::*;
use crate::{ErrorKind, NetworkMode, network::parse_cidr};
use proptest::prelude::*;

fn lan() -> NetworkSpec {
    NetworkSpec::new(NetworkMode::Nat, parse_cidr("10.0.0.0/24").unwrap()).unwrap()
}

fn dual() -> NetworkSpec {
    NetworkSpec {
        ipv6: Some(Ipv6Spec::new("fd00::/64".parse().unwrap()).unwrap()),
        ..lan()
    }
}

fn ranges<T: FromStr<Err = Error>>(texts: &[&str]) -> Vec<T> {
    texts.iter().map(|t| t.parse().unwrap()).collect()
}

/// A spec is refused, with these words in its headline and its reason.
fn refused(change: impl FnOnce(&mut NetworkSpec), what: &str, why: &str) {
    let mut spec = dual();
    change(&mut spec);
    let error = spec.check().expect_err(what);
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.what().contains(what), "{what}: {error}");
    assert!(error.why().contains(why), "{why}: {error}");
    assert!(!error.fix().is_empty());
}

#[test]
fn pools_that_overlap_stand_outside_or_are_too_many_are_refused_by_name() {
    refused(
        |s| s.more_pools = ranges(&["10.0.0.254-10.0.0.254"]),
        "pools[1]",
        "pools[0] is 10.0.0.2-10.0.0.254",
    );
    refused(
        |s| {
            s.pool_last = [10, 0, 0, 9].into();
            s.more_pools = ranges(&["10.0.0.20-10.0.0.30", "10.0.0.30-10.0.0.40"]);
        },
        "pools[2]",
        "pools[1] is",
    );
    refused(
        |s| s.pool_last = [10, 0, 0, 255].into(),
        "pools[0]",
        "usable addresses of 10.0.0.0/24",
    );
    refused(|s| s.pool_first = [10, 0, 0, 0].into(), "pools[0]", "usable");
    refused(
        |s| s.pool_last = [10, 0, 0, 1].into(),
        "pools[0]",
        "after its last",
    );
    refused(
        |s| {
            s.pool_last = [10, 0, 0, 2].into();
            s.more_pools = (3..=18).map(|n| Ipv4Range::one([10, 0, 0, n].into())).collect();
        },
        "pools: too many",
        "17 were given, 16 are allowed",
    );
    refused(
        |s| s.ipv6.as_mut().unwrap().pools = ranges(&["fd01::1-fd01::2"]),
        "ipv6.pools[0]",
        "fd00::/64",
    );
    refused(
        |s| s.ipv6.as_mut().unwrap().pools = ranges(&["fd00::1-fd00::9", "fd00::9-fd00::a"]),
        "ipv6.pools[1]",
        "ipv6.pools[0] is",
    );
}

#[test]
fn gateways_outside_or_at_the_ends_are_refused() {
    for bad in [[10, 0, 1, 1], [10, 0, 0, 0], [10, 0, 0, 255], [0, 0, 0, 0]] {
        refused(
            |s| s.gateway = bad.into(),
            "gateway",
            "usable address of 10.0.0.0/24",
        );
    }
    for bad in ["fd00::", "fd01::1", "::1", "fd00::fdff:ffff:ffff:ff80"] {
        refused(
            |s| s.ipv6.as_mut().unwrap().gateway = bad.parse().unwrap(),
            "ipv6.gateway",
            "usable address",
        );
    }
}

#[test]
fn exclusions_and_reservations_that_make_no_sense_are_refused() {
    refused(
        |s| s.excluded = ranges(&["10.0.0.9-10.0.1.9"]),
        "excluded[0]",
        "not all of it is in 10.0.0.0/24",
    );
    refused(
        |s| s.excluded = (0..65).map(|_| Ipv4Range::one([10, 0, 0, 9].into())).collect(),
        "excluded: too many",
        "65 were given, 64 are allowed",
    );
    for bad in ["10.0.0.0", "10.0.0.1", "10.0.0.255", "10.0.1.7"] {
        refused(
            |s| s.reservations = ranges(&[bad]),
            "reservations[0].address",
            "outside 10.0.0.0/24",
        );
    }
    refused(
        |s| {
            s.excluded = ranges(&["10.0.0.7"]);
            s.reservations = ranges(&["10.0.0.7"]);
        },
        "reservations[0].address",
        "excluded",
    );
    refused(
        |s| s.reservations = ranges(&["10.0.0.7=ff:ff:ff:ff:ff:ff"]),
        "reservations[0].mac",
        "multicast",
    );
    refused(
        |s| s.reservations = ranges(&["10.0.0.7", "10.0.0.7"]),
        "reservations[1]",
        "earlier",
    );
    refused(
        |s| s.reservations = ranges(&["10.0.0.7=52:54:00:00:00:01", "10.0.0.8=52:54:00:00:00:01"]),
        "reservations[1]",
        "earlier",
    );
    refused(
        |s| s.ipv6.as_mut().unwrap().reservations = ranges(&["fd00::1"]),
        "ipv6.reservations[0]",
        "gateway",
    );
}

#[test]
fn numbers_beyond_their_limits_are_refused_with_the_limit() {
    for bad in [0, 67, 575, 9_001, u16::MAX] {
        refused(|s| s.mtu = bad, "mtu", "576 to 9000");
    }
    refused(|s| s.mtu = 1_279, "mtu", "1280 is the least that IPv6 needs");
    refused(|s| s.lease_seconds = 59, "lease_seconds", "60 s to 2592000 s");
    refused(
        |s| s.quarantine_seconds = u32::MAX,
        "quarantine_seconds",
        "604800",
    );
    refused(
        |s| s.dns = vec![[9, 9, 9, 9].into(); 5],
        "dns",
        "5 were given, 4 are allowed",
    );
    refused(|s| s.dns = vec![[0, 0, 0, 0].into()], "dns", "unspecified");
}

#[test]
fn domains_of_300_characters_or_of_other_letters_are_refused_and_cut_in_the_answer() {
    let long = "a".repeat(300);
    let deep = ["ab"; 100].join(".");
    for bad in [
        &*long,
        &*deep,
        "lab.exämple",
        "лаб",
        "a..b",
        "",
        "-a.b",
        "a b",
        "\u{202e}lab",
    ] {
        refused(|s| s.domain = Some(bad.to_owned()), "domain", "253 bytes");
        let mut spec = lan();
        spec.domain = Some(bad.to_owned());
        assert!(spec.check().unwrap_err().what().chars().count() < 120);
    }
}

#[test]
fn subnets_that_cannot_serve_are_refused() {
    for (bad, why) in [
        ("fd00::/63", "64 to 126"),
        ("fd00::/127", "RFC 6164"),
        ("fd00::/128", "64 to 126"),
        ("::/64", "unspecified"),
        ("fe80::/64", "link-local"),
        ("ff02::/64", "multicast"),
        ("::ffff:0:0/96", "IPv4 in disguise"),
    ] {
        let error = Ipv6Spec::new(bad.parse().unwrap()).expect_err(bad);
        assert!(
            error.what().contains("ipv6.cidr") && error.why().contains(why),
            "{bad}: {error}"
        );
    }
    let error = Ipv6Spec::new("fd00::1/64".parse().unwrap()).unwrap_err();
    assert!(error.fix().contains("fd00::/64"), "{error}");
    for (bad, why) in [("10.0.0.0/31", "RFC 3021"), ("10.0.0.0/32", "8 to 30")] {
        let error = NetworkSpec::new(NetworkMode::Nat, parse_cidr(bad).unwrap()).expect_err(bad);
        assert!(
            error.what().contains("cidr") && error.why().contains(why),
            "{bad}: {error}"
        );
    }
}

#[test]
fn what_ipv6_keeps_for_itself_is_no_ports_address() {
    let ends = |cidr: &str| {
        let spec = Ipv6Spec::new(cidr.parse().unwrap()).unwrap();
        let is = |n: u128| spec.is_port_address((u128::from(spec.cidr.network()) + n).into());
        let last = u128::from(spec.cidr.broadcast()) - u128::from(spec.cidr.network());
        (is(0), is(1), is(2), is(last))
    };
    assert_eq!(
        ends("fd00::/64"),
        (false, false, true, true),
        "the anycast range of a /64 lies inside (RFC 5453)"
    );
    assert_eq!(ends("fd00::/112"), (false, false, true, false));
    assert_eq!(ends("fd00::/126"), (false, false, true, true));
}

#[test]
fn a_spec_of_before_is_read_and_one_without_new_things_is_written_as_before() {
    let text = serde_json::to_string(&lan()).unwrap();
    for new in ["more_pools", "excluded", "reservations", "quarantine", "ipv6"] {
        assert!(!text.contains(new), "{text}");
    }
    assert_eq!(serde_json::from_str::<NetworkSpec>(&text).unwrap(), lan());
    let dual = dual();
    let text = serde_json::to_string(&dual).unwrap();
    assert_eq!(serde_json::from_str::<NetworkSpec>(&text).unwrap(), dual);
}

proptest! {
    #[test]
    fn reading_a_reservation_never_panics(text in ".{0,60}") {
        drop((text.parse::<Reservation>(), text.parse::<Reservation6>()));
    }
    #[test]
    fn every_reservation_survives_its_text(address: u32, mac: Option<[u8; 6]>) {
        let reservation = Reservation { address: address.into(), mac: mac.map(Mac::new) };
        prop_assert_eq!(reservation.to_string().parse::<Reservation>().unwrap(), reservation);
    }
    #[test]
    fn checking_never_panics(gateway: u32, first: u32, last: u32, mtu: u16, excluded: Vec<(u32, u32)>, six: u128) {
        let mut spec = dual();
        (spec.gateway, spec.pool_first, spec.pool_last, spec.mtu) = (gateway.into(), first.into(), last.into(), mtu);
        spec.excluded = excluded.iter().map(|(a, b)| Ipv4Range::new((*a.min(b)).into(), (*a.max(b)).into()).unwrap()).collect();
        spec.ipv6.as_mut().unwrap().gateway = six.into();
        drop(spec.check());
    }
}
