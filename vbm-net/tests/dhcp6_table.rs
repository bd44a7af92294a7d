//! The decisions of the DHCPv6 server, one row a behaviour of RFC 8415, and the bytes they become, read by another decoder.

#![allow(clippy::unwrap_used, reason = "a helper of a test that cannot go on panics")]

mod dhcp6_port;

use dhcp6_port::{
    FOREIGN, MAC, MINE, NEIGHBOUR, NOW, THEIRS, arrival, ask, association, config, decide, network, port,
};
use dhcproto::{Decodable, Decoder, v6};
use std::{net::Ipv6Addr, time::Duration};
use vbm_core::Mac;
use vbm_net::{
    DesiredNetwork, Validated,
    dhcp6::{
        ALL_SERVERS, Reason, ServerConfig, duid_of,
        options::code,
        request::{Association, Kind, Request, Use},
        respond::{Arrival, Decision, Grant, Outcome, ReplyKind, State, Status, respond},
        wire,
    },
    model::{GATEWAY_LINK_LOCAL, link_local},
};

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
