//! A network whose first two ports have IPv6, and what is asked by the first.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a helper of a test that cannot go on panics")]

use std::net::Ipv6Addr;
use vbm_core::{Ipv6Spec, Mac, NetworkMode, PortId, SeededIds, Timestamp};
use vbm_net::{
    DesiredNetwork, Validated,
    conformance::Fixture,
    dhcp6::{
        ALL_SERVERS, ServerConfig,
        request::{Association, Kind, Request, Use},
        respond::{Arrival, Decision, State, respond},
    },
    model::link_local,
};

pub(crate) const MAC: Mac = Mac::local(0x77_00_00);
pub(crate) const NEIGHBOUR: Mac = Mac::local(0x77_00_01);
pub(crate) const MINE: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0xa);
pub(crate) const THEIRS: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0xb);
pub(crate) const FOREIGN: Ipv6Addr = Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 1);
pub(crate) const NOW: Timestamp = Timestamp::from_micros(1_000_000);

/// The first two ports have IPv6, the third has none.
pub(crate) fn network() -> DesiredNetwork {
    let mut net = Fixture::new(&SeededIds::new(3)).network(NetworkMode::Nat, 3);
    let mut six = Ipv6Spec::new("fd00::/64".parse().unwrap()).unwrap();
    six.dns = vec!["fd00::53".parse().unwrap()];
    net.spec.ipv6 = Some(six);
    net.spec.domain = Some("lab.example".into());
    net.spec.lease_seconds = 4_000;
    net.ports[0].address6 = Some(MINE);
    net.ports[1].address6 = Some(THEIRS);
    net
}

pub(crate) fn config() -> ServerConfig {
    ServerConfig::of(&Validated::<DesiredNetwork>::new(network()).unwrap()).unwrap()
}

pub(crate) fn port() -> PortId {
    network().ports[0].id
}

pub(crate) fn association(iaid: u32, addresses: &[Ipv6Addr]) -> Association {
    Association {
        use_for: Use::Addresses,
        iaid,
        addresses: addresses.to_vec(),
    }
}

/// A message of this kind as an honest client sends it, with one association that has these addresses.
pub(crate) fn ask(kind: Kind, addresses: &[Ipv6Addr]) -> Request {
    let mut request = Request::new(kind, 7);
    request.client_id = Some(b"\x00\x04who-it-is".to_vec());
    if matches!(kind, Kind::Request | Kind::Renew | Kind::Release | Kind::Decline) {
        request.server_id = Some(config().duid);
    }
    if kind != Kind::InformationRequest {
        request.associations = vec![association(1, addresses)];
    }
    request
}

pub(crate) fn arrival() -> Arrival {
    Arrival {
        source: MAC,
        from: link_local(MAC),
        to: ALL_SERVERS,
    }
}

pub(crate) fn decide(request: &Request) -> Decision {
    respond(&config(), &State::default(), request, arrival(), NOW)
}
