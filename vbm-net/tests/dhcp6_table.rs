//! The decisions of the DHCPv6 server, one row a behaviour of RFC 8415, and the bytes they become, read by another decoder.

#![allow(clippy::unwrap_used, reason = "a helper of a test that cannot go on panics")]

use dhcproto::{Decodable, Decoder, v6};
use proptest::prelude::*;
use std::{net::Ipv6Addr, time::Duration};
use vbm_core::{Ipv6Spec, Mac, NetworkMode, PortId, SeededIds, Timestamp};
use vbm_net::{
    DesiredNetwork, Validated,
    conformance::Fixture,
    dhcp6::{
        ALL_SERVERS, Reason, ServerConfig, duid_of,
        options::{code, put},
        request::{Association, Kind, Request, Use, parse},
        respond::{Arrival, Decision, Grant, Outcome, ReplyKind, State, Status, respond},
        wire,
    },
    model::{GATEWAY_LINK_LOCAL, link_local},
};

const MAC: Mac = Mac::local(0x77_00_00);
const NEIGHBOUR: Mac = Mac::local(0x77_00_01);
const MINE: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0xa);
const THEIRS: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0xb);
const FOREIGN: Ipv6Addr = Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 1);
const NOW: Timestamp = Timestamp::from_micros(1_000_000);

/// The first two ports have IPv6, the third has none.
fn network() -> DesiredNetwork {
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

fn config() -> ServerConfig {
    ServerConfig::of(&Validated::<DesiredNetwork>::new(network()).unwrap()).unwrap()
}

fn port() -> PortId {
    network().ports[0].id
}

fn association(iaid: u32, addresses: &[Ipv6Addr]) -> Association {
    Association {
        use_for: Use::Addresses,
        iaid,
        addresses: addresses.to_vec(),
    }
}

/// A message of this kind as an honest client sends it, with one association that has these addresses.
fn ask(kind: Kind, addresses: &[Ipv6Addr]) -> Request {
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

fn arrival() -> Arrival {
    Arrival {
        source: MAC,
        from: link_local(MAC),
        to: ALL_SERVERS,
    }
}

fn decide(request: &Request) -> Decision {
    respond(&config(), &State::default(), request, arrival(), NOW)
}

fn grant(iaid: u32, given: Option<Ipv6Addr>, status: Option<Status>) -> Grant {
    Grant {
        use_for: Use::Addresses,
        iaid,
        given,
        ended: vec![],
        status,
    }
}

fn is_leased(decision: &Decision) -> bool {
    matches!(decision.outcome, Some(Outcome::Leased(who, lease)) if who == port() && lease.address == MINE && lease.until == NOW.plus(Duration::from_secs(4_000)))
}

/// What is asked with which addresses; why it is answered so, the status, whether a lease is told.
type Row<'a> = (Kind, &'a [Ipv6Addr], Reason, Option<Status>, bool);

#[test]
fn each_message_is_answered_as_the_table_says() {
    let none: &[Ipv6Addr] = &[];
    let mine: &[Ipv6Addr] = &[MINE];
    let rows: &[Row<'_>] = &[
        (Kind::Solicit, none, Reason::Advertised, None, false),
        (Kind::Solicit, &[FOREIGN], Reason::Advertised, None, false),
        (Kind::Solicit, &[THEIRS], Reason::Advertised, None, false),
        (Kind::Request, mine, Reason::Given, None, true),
        (Kind::Request, none, Reason::Given, None, true),
        (Kind::Request, &[THEIRS], Reason::Given, None, true),
        (Kind::Request, &[FOREIGN], Reason::NotOnLink, None, false),
        (
            Kind::Confirm,
            mine,
            Reason::Confirmed,
            Some(Status::Success),
            false,
        ),
        (
            Kind::Confirm,
            &[MINE, THEIRS],
            Reason::NotConfirmed,
            Some(Status::NotOnLink),
            false,
        ),
        (
            Kind::Confirm,
            &[FOREIGN],
            Reason::NotConfirmed,
            Some(Status::NotOnLink),
            false,
        ),
        (Kind::Renew, mine, Reason::Renewed, None, true),
        (Kind::Renew, &[FOREIGN], Reason::Renewed, None, true),
        (Kind::Rebind, mine, Reason::Rebound, None, true),
        (Kind::Rebind, &[THEIRS], Reason::Rebound, None, true),
        (
            Kind::Release,
            mine,
            Reason::Released,
            Some(Status::Success),
            false,
        ),
        (
            Kind::Release,
            &[THEIRS],
            Reason::NothingToGive,
            Some(Status::Success),
            false,
        ),
        (
            Kind::Decline,
            mine,
            Reason::Declined,
            Some(Status::Success),
            false,
        ),
        (Kind::InformationRequest, none, Reason::Informed, None, false),
    ];
    for (kind, addresses, why, status, leased) in rows {
        let decision = decide(&ask(*kind, addresses));
        assert_eq!(decision.why, *why, "{kind:?} {addresses:?}");
        let reply = decision.reply.as_ref().unwrap();
        assert_eq!(reply.status, *status, "{kind:?} {addresses:?}");
        assert_eq!(is_leased(&decision), *leased, "{kind:?} {addresses:?}");
        assert_eq!((reply.to_mac, reply.to), (MAC, link_local(MAC)));
        let expected = if *kind == Kind::Solicit {
            ReplyKind::Advertise
        } else {
            ReplyKind::Reply
        };
        assert_eq!(reply.kind, expected);
        let settings = !matches!(kind, Kind::Confirm | Kind::Release | Kind::Decline);
        assert_eq!(reply.settings, settings, "{kind:?}");
    }
    for kind in [Kind::Confirm, Kind::Release, Kind::Decline] {
        let decision = decide(&ask(kind, &[]));
        assert_eq!((decision.reply, decision.why), (None, Reason::NothingAsked));
    }
}

#[test]
fn what_a_client_has_beside_its_address_ends_when_it_renews() {
    for kind in [Kind::Renew, Kind::Rebind] {
        let reply = decide(&ask(kind, &[FOREIGN, MINE, THEIRS])).reply.unwrap();
        assert_eq!(reply.grants[0].given, Some(MINE));
        assert_eq!(reply.grants[0].ended, [FOREIGN, THEIRS]);
    }
}

#[test]
fn one_association_gets_the_address_and_others_are_told_that_there_is_none() {
    let mut request = ask(Kind::Request, &[]);
    request.associations = vec![
        association(1, &[]),
        association(2, &[MINE]),
        Association {
            use_for: Use::Temporary,
            ..association(3, &[])
        },
        Association {
            use_for: Use::Prefixes,
            ..association(4, &[])
        },
    ];
    let grants = decide(&request).reply.unwrap().grants;
    let said: Vec<_> = grants.iter().map(|g| (g.iaid, g.given, g.status)).collect();
    assert_eq!(
        said,
        [
            (1, None, Some(Status::NoAddresses)),
            (2, Some(MINE), None),
            (3, None, Some(Status::NoAddresses)),
            (4, None, Some(Status::NoPrefixes)),
        ]
    );
    request.kind = Kind::Renew;
    let grants = decide(&request).reply.unwrap().grants;
    assert_eq!(grants[0], grant(1, None, Some(Status::NoBinding)));
    request.kind = Kind::Solicit;
    request.server_id = None;
    request.associations.retain(|a| a.use_for != Use::Addresses);
    let decision = decide(&request);
    assert_eq!(decision.why, Reason::NothingToGive);
    assert_eq!(decision.reply.unwrap().kind, ReplyKind::Advertise);
}

/// Section 16, message by message.
#[test]
fn who_names_no_server_or_another_or_not_himself_where_he_must_is_not_heard() {
    for kind in Kind::ALL {
        let good = ask(kind, &[MINE]);
        let mut nobody = good.clone();
        nobody.client_id = None;
        let mut other = good.clone();
        other.server_id = Some(duid_of(Mac::local(9)));
        let mut ours = good.clone();
        ours.server_id = Some(config().duid);
        let mut none = good.clone();
        none.server_id = None;
        let silent = |request: &Request| {
            let decision = decide(request);
            assert!(decision.reply.is_some() || decision.outcome.is_none());
            decision.reply.is_none().then_some(decision.why)
        };
        let (must, may) = match kind {
            Kind::Request | Kind::Renew | Kind::Release | Kind::Decline => (true, true),
            Kind::InformationRequest => (false, true),
            Kind::Solicit | Kind::Confirm | Kind::Rebind => (false, false),
        };
        assert_eq!(silent(&good), None, "{kind:?}");
        assert_eq!(silent(&none), must.then_some(Reason::NoServerId), "{kind:?}");
        assert_eq!(silent(&ours), (!may).then_some(Reason::ServerIdGiven), "{kind:?}");
        let expected = if may {
            Reason::OtherServer
        } else {
            Reason::ServerIdGiven
        };
        assert_eq!(silent(&other), Some(expected), "{kind:?}");
        let anonymous = kind == Kind::InformationRequest;
        assert_eq!(
            silent(&nobody),
            (!anonymous).then_some(Reason::NoClientId),
            "{kind:?}"
        );
    }
    let mut inform = ask(Kind::InformationRequest, &[]);
    inform.associations = vec![association(1, &[])];
    assert_eq!(decide(&inform).why, Reason::AssociationGiven);
}

#[test]
fn what_is_sent_to_us_alone_is_told_to_ask_all_or_is_not_heard() {
    for kind in Kind::ALL {
        let at = Arrival {
            to: GATEWAY_LINK_LOCAL,
            ..arrival()
        };
        let decision = respond(&config(), &State::default(), &ask(kind, &[MINE]), at, NOW);
        assert_eq!(decision.outcome, None);
        match kind {
            Kind::Request | Kind::Renew | Kind::Release | Kind::Decline => {
                let reply = decision.reply.unwrap();
                assert_eq!(reply.status, Some(Status::UseMulticast));
                assert!(reply.grants.is_empty() && !reply.settings);
            }
            _ => assert_eq!((decision.reply, decision.why), (None, Reason::UnicastRefused)),
        }
    }
}

#[test]
fn who_asks_is_known_by_the_mac_of_the_frame_and_by_nothing_else() {
    let request = ask(Kind::Solicit, &[MINE]);
    let from = |source: Mac, from: Ipv6Addr| {
        let at = Arrival {
            source,
            from,
            to: ALL_SERVERS,
        };
        respond(&config(), &State::default(), &request, at, NOW)
    };
    let theirs = from(NEIGHBOUR, link_local(NEIGHBOUR)).reply.unwrap();
    assert_eq!(
        theirs.grants[0].given,
        Some(THEIRS),
        "the same client id, the same wish"
    );
    let without = network().ports[2].mac;
    for stranger in [without, Mac::local(0xbad), network().gateway_mac()] {
        assert_eq!(from(stranger, link_local(stranger)).why, Reason::UnknownMac);
    }
    assert!(from(MAC, MINE).reply.is_some(), "from its own address");
    for foreign in [THEIRS, FOREIGN, Ipv6Addr::UNSPECIFIED] {
        assert_eq!(from(MAC, foreign).why, Reason::ForeignSource);
    }
}

#[test]
fn a_port_that_found_its_address_taken_rests_and_is_still_told_the_settings() {
    let mut state = State::default();
    let declined = decide(&ask(Kind::Decline, &[MINE])).outcome.unwrap();
    let until = NOW.plus(Duration::from_secs(60));
    assert_eq!(declined, Outcome::Declined(port(), MINE, until));
    state.apply(&declined);
    let at = |kind, now| respond(&config(), &state, &ask(kind, &[MINE]), arrival(), now).why;
    for kind in [
        Kind::Solicit,
        Kind::Request,
        Kind::Renew,
        Kind::Rebind,
        Kind::Confirm,
    ] {
        assert_eq!(at(kind, NOW), Reason::Quarantined, "{kind:?}");
    }
    assert_eq!(at(Kind::InformationRequest, NOW), Reason::Informed);
    assert_eq!(at(Kind::Solicit, until), Reason::Advertised);
    let given = respond(&config(), &state, &ask(Kind::Request, &[]), arrival(), until);
    state.apply(&given.outcome.unwrap());
    assert!(state.resting.is_empty() && state.leases.contains_key(&port()));
    state.apply(&decide(&ask(Kind::Release, &[MINE])).outcome.unwrap());
    assert!(state.leases.is_empty());
}

#[test]
fn a_solicit_is_answered_at_once_only_where_both_want_it() {
    for (client, server) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut config = config();
        config.rapid_commit = server;
        let mut request = ask(Kind::Solicit, &[]);
        request.rapid_commit = client;
        let decision = respond(&config, &State::default(), &request, arrival(), NOW);
        assert_eq!(is_leased(&decision), client && server);
        assert_eq!(decision.reply.unwrap().rapid, client && server);
    }
}

fn encoded(request: &Request) -> v6::Message {
    encoded_by(&config(), request)
}

fn encoded_by(config: &ServerConfig, request: &Request) -> v6::Message {
    let reply = respond(config, &State::default(), request, arrival(), NOW)
        .reply
        .unwrap();
    let bytes = wire::encode(config, request, &reply);
    v6::Message::decode(&mut Decoder::new(&bytes)).unwrap()
}

fn codes(message: &v6::Message) -> Vec<u16> {
    let mut all: Vec<u16> = message
        .opts()
        .iter()
        .map(|o| u16::from(v6::OptionCode::from(o)))
        .collect();
    all.sort_unstable();
    all
}

#[test]
fn an_advertise_holds_what_a_client_needs() {
    let mut request = ask(Kind::Solicit, &[]);
    request.wants = Some(vec![code::DNS, code::SEARCH, code::SNTP, 99]);
    let message = encoded(&request);
    assert_eq!(message.msg_type(), v6::MessageType::Advertise);
    assert_eq!(message.xid_num(), 7);
    assert_eq!(codes(&message), [1, 2, 3, 7, 23, 24]);
    let opts = message.opts();
    assert!(
        matches!(opts.get(v6::OptionCode::ServerId), Some(v6::DhcpOption::ServerId(id)) if *id == config().duid)
    );
    assert!(
        matches!(opts.get(v6::OptionCode::ClientId), Some(v6::DhcpOption::ClientId(id)) if *id == b"\x00\x04who-it-is")
    );
    assert!(matches!(
        opts.get(v6::OptionCode::Preference),
        Some(v6::DhcpOption::Preference(255))
    ));
    let Some(v6::DhcpOption::IANA(ia)) = opts.get(v6::OptionCode::IANA) else {
        panic!("no IA_NA")
    };
    assert_eq!((ia.id, ia.t1, ia.t2), (1, 1_500, 2_400));
    let Some(v6::DhcpOption::IAAddr(address)) = ia.opts.get(v6::OptionCode::IAAddr) else {
        panic!("no address")
    };
    assert_eq!(
        (address.addr, address.preferred_life, address.valid_life),
        (MINE, 3_000, 4_000)
    );
    let Some(v6::DhcpOption::DomainNameServers(dns)) = opts.get(v6::OptionCode::DomainNameServers) else {
        panic!("no DNS")
    };
    assert_eq!(*dns, ["fd00::53".parse::<Ipv6Addr>().unwrap()]);
    let Some(v6::DhcpOption::DomainSearchList(names)) = opts.get(v6::OptionCode::DomainSearchList) else {
        panic!("no domain")
    };
    assert_eq!(names[0].to_string().trim_end_matches('.'), "lab.example");
}

#[test]
fn settings_are_told_to_who_wants_them_and_only_what_fits() {
    let mut request = ask(Kind::InformationRequest, &[]);
    request.wants = Some(vec![code::DNS, code::REFRESH, code::NTP, code::SNTP]);
    let mut config = config();
    config.settings.ntp = vec!["fd00::123".parse().unwrap()];
    assert_eq!(codes(&encoded_by(&config, &request)), [1, 2, 23, 31, 32, 56]);
    request.client_id = None;
    request.wants = Some(vec![]);
    assert_eq!(codes(&encoded_by(&config, &request)), [2]);
    request.wants = None;
    assert_eq!(codes(&encoded_by(&config, &request)), [2, 23, 24]);
    // Names that fill more than the least MTU of IPv6 are left out, the rest is told.
    let name = ["a".repeat(60), "b".repeat(60), "c".repeat(60)].join(".");
    config.settings.search = vec![name; 8];
    config.settings.mtu = 1_280;
    assert_eq!(codes(&encoded_by(&config, &request)), [2, 23]);
    config.settings.mtu = 1_800;
    assert_eq!(codes(&encoded_by(&config, &request)), [2, 23, 24]);
}

#[test]
fn what_ends_has_no_lifetime_and_what_is_refused_says_why() {
    let message = encoded(&ask(Kind::Renew, &[FOREIGN]));
    let Some(v6::DhcpOption::IANA(ia)) = message.opts().get(v6::OptionCode::IANA) else {
        panic!("no IA_NA")
    };
    let lives: Vec<_> = ia
        .opts
        .iter()
        .filter_map(|o| match o {
            v6::DhcpOption::IAAddr(a) => Some((a.addr, a.preferred_life, a.valid_life)),
            _ => None,
        })
        .collect();
    assert_eq!(lives, [(MINE, 3_000, 4_000), (FOREIGN, 0, 0)]);
    let message = encoded(&ask(Kind::Request, &[FOREIGN]));
    let Some(v6::DhcpOption::IANA(ia)) = message.opts().get(v6::OptionCode::IANA) else {
        panic!("no IA_NA")
    };
    assert_eq!((ia.t1, ia.t2), (0, 0));
    let Some(v6::DhcpOption::StatusCode(status)) = ia.opts.get(v6::OptionCode::StatusCode) else {
        panic!("no status")
    };
    assert_eq!(status.status, v6::Status::NotOnLink);
}

#[test]
fn a_network_says_what_its_mode_of_addresses_is() {
    let stateful = config().router.unwrap();
    assert!(stateful.managed && stateful.other && !stateful.prefixes[0].autonomous);
    assert_eq!(stateful.lifetime, Duration::ZERO, "there is no way out");
    assert_eq!(stateful.address, GATEWAY_LINK_LOCAL);
    let mut net = network();
    let six = net.spec.ipv6.as_mut().unwrap();
    six.stateless = true;
    let made: Vec<_> = net
        .ports
        .iter()
        .map(|p| net.spec.ipv6.as_ref().unwrap().made_of(p.mac))
        .collect();
    assert!(
        Validated::<DesiredNetwork>::new(net.clone()).is_err(),
        "another address than the one that is made"
    );
    for (port, made) in net.ports.iter_mut().zip(made) {
        port.address6 = made;
    }
    assert_eq!(
        net.ports[0].address6.unwrap().to_string(),
        link_local(MAC).to_string().replace("fe80::", "fd00::")
    );
    let config = ServerConfig::of(&Validated::<DesiredNetwork>::new(net).unwrap()).unwrap();
    let stateless = config.router.unwrap();
    assert!(!stateless.managed && stateless.other && stateless.prefixes[0].autonomous);
    let mut none = network();
    none.spec.ipv6 = None;
    none.ports.iter_mut().for_each(|p| p.address6 = None);
    assert_eq!(
        ServerConfig::of(&Validated::<DesiredNetwork>::new(none).unwrap()),
        None
    );
}

/// Any request as the server could read it.
fn any_request() -> impl Strategy<Value = Request> {
    let address = prop_oneof![
        Just(MINE),
        Just(THEIRS),
        Just(FOREIGN),
        any::<u128>().prop_map(Into::into)
    ];
    let use_for = prop_oneof![Just(Use::Addresses), Just(Use::Temporary), Just(Use::Prefixes)];
    let association = (use_for, any::<u32>(), prop::collection::vec(address, 0..3)).prop_map(
        |(use_for, iaid, addresses)| Association {
            use_for,
            iaid,
            addresses,
        },
    );
    let id = || {
        prop_oneof![
            Just(None),
            Just(Some(config().duid)),
            prop::collection::vec(any::<u8>(), 3..20).prop_map(Some)
        ]
    };
    let wants = prop::option::of(prop::collection::vec(0u16..60, 0..10));
    (
        prop::sample::select(Kind::ALL.to_vec()),
        0u32..0x0100_0000,
        id(),
        id(),
        prop::collection::vec(association, 0..4),
        wants,
        any::<bool>(),
    )
        .prop_map(
            |(kind, transaction, client_id, server_id, associations, wants, rapid_commit)| Request {
                kind,
                transaction,
                client_id,
                server_id,
                associations,
                wants,
                rapid_commit,
            },
        )
}

/// The bytes that a client would send.
fn written(request: &Request) -> Vec<u8> {
    let mut out = request.transaction.to_be_bytes().to_vec();
    out[0] = request.kind as u8;
    for (code, id) in [(1, &request.client_id), (2, &request.server_id)] {
        if let Some(id) = id {
            put(&mut out, code, |out| out.extend(id));
        }
    }
    if let Some(wants) = &request.wants {
        put(&mut out, code::OPTION_REQUEST, |out| {
            out.extend(wants.iter().flat_map(|w| w.to_be_bytes()));
        });
    }
    if request.rapid_commit {
        put(&mut out, code::RAPID_COMMIT, |_| {});
    }
    for association in &request.associations {
        let (code, times) = match association.use_for {
            Use::Addresses => (code::IA_NA, 8),
            Use::Temporary => (code::IA_TA, 0),
            Use::Prefixes => (code::IA_PD, 8),
        };
        put(&mut out, code, |out| {
            out.extend(association.iaid.to_be_bytes());
            out.extend(vec![0; times]);
            for address in &association.addresses {
                put(out, code::IA_ADDRESS, |out| {
                    out.extend(address.octets());
                    out.extend([0; 8]);
                });
            }
        });
    }
    out
}

proptest! {
    #[test]
    fn nobody_is_ever_given_what_is_not_his_and_every_reply_is_read_by_another(
        request in any_request(),
        source in prop::sample::select(vec![MAC, NEIGHBOUR, Mac::local(0xbad)]),
        to in prop::sample::select(vec![ALL_SERVERS, GATEWAY_LINK_LOCAL]),
        rapid: bool,
    ) {
        let mut config = config();
        config.rapid_commit = rapid;
        let at = Arrival { source, from: link_local(source), to };
        let decision = respond(&config, &State::default(), &request, at, NOW);
        let own = config.ports.get(&source).map(|(_, address)| *address);
        let Some(reply) = &decision.reply else {
            prop_assert_eq!(decision.outcome, None);
            return Ok(());
        };
        prop_assert_eq!((reply.to_mac, reply.to), (at.source, at.from));
        let given: Vec<_> = reply.grants.iter().filter_map(|g| g.given).collect();
        prop_assert!(given.len() <= 1 && given.iter().all(|g| Some(*g) == own), "{:?}", given);
        for grant in &reply.grants {
            prop_assert!(grant.given.is_some() != grant.status.is_some());
            prop_assert!(!grant.ended.contains(&own.unwrap()));
        }
        if let Some(Outcome::Leased(_, lease)) = decision.outcome {
            prop_assert_eq!(given, vec![lease.address]);
        }
        let bytes = wire::encode(&config, &request, reply);
        prop_assert!(bytes.len() <= 1_500 - 48, "{}", bytes.len());
        let message = v6::Message::decode(&mut Decoder::new(&bytes)).unwrap();
        prop_assert_eq!(message.xid_num(), request.transaction);
        prop_assert_eq!(message.opts().iter().filter(|o| matches!(o, v6::DhcpOption::ServerId(_))).count(), 1);
        let echoed = message.opts().iter().find_map(|o| match o { v6::DhcpOption::ClientId(id) => Some(id.clone()), _ => None });
        prop_assert_eq!(echoed, request.client_id.clone());
    }

    #[test]
    fn what_a_client_writes_is_read(request in any_request()) {
        prop_assert_eq!(parse(&written(&request)), Ok(request));
    }

    #[test]
    fn a_message_with_wrong_bytes_is_refused_or_decided_and_never_panics(
        request in any_request(),
        wrong in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = written(&request);
        for (at, byte) in wrong {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(1 + cut.index(bytes.len()));
        if let Ok(request) = parse(&bytes) {
            let decision = decide(&request);
            if let Some(reply) = &decision.reply {
                drop(wire::encode(&config(), &request, reply));
            }
        }
    }
}
