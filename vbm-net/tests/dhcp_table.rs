//! The server's decisions, one row a behaviour of RFC 2131, and the bytes they become.

#![allow(clippy::unwrap_used, reason = "a helper of a test that cannot go on panics")]
#![allow(clippy::cast_possible_truncation, reason = "test values are small")]

use dhcproto::{
    Decodable, Decoder,
    v4::{DhcpOption, Message, OptionCode},
};
use proptest::prelude::*;
use std::{net::Ipv4Addr, time::Duration};
use vbm_core::{Mac, NetworkMode, PortId, SeededIds, Timestamp};
use vbm_net::{
    DesiredNetwork, LeaseSeen, Validated,
    conformance::Fixture,
    dhcp::{
        Leases, Reason, ServerConfig,
        request::{FLAG_BROADCAST, Kind, Request, parse},
        respond::{Arrival, Decision, Outcome, Reply, ReplyKind, State, respond},
        wire,
    },
};

const NONE: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const MINE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 10);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const FOREIGN: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 5);
const EVERYBODY: Mac = Mac::new([0xff; 6]);
const MAC: Mac = Mac::local(0x77_00_00);
const NOW: Timestamp = Timestamp::from_micros(1_000_000);

fn network() -> Validated<DesiredNetwork> {
    let mut net = Fixture::new(&SeededIds::new(3)).network(NetworkMode::Nat, 2);
    net.spec.dns = vec![Ipv4Addr::new(9, 9, 9, 9)];
    net.spec.domain = Some("lab.example".into());
    Validated::<DesiredNetwork>::new(net).unwrap()
}

fn port() -> PortId {
    network().ports[0].id
}

fn ask(kind: Kind) -> Request {
    Request::new(kind, MAC, 7)
}

fn decide_with(request: &Request, source: Mac, leases: &Leases) -> Decision {
    let state = State {
        leases: leases.clone(),
        ..State::default()
    };
    let arrival = Arrival {
        source,
        from: request.ciaddr,
        to: Ipv4Addr::BROADCAST,
    };
    respond(&ServerConfig::from(&network()), &state, request, arrival, NOW)
}
fn decide(request: &Request) -> Decision {
    decide_with(request, MAC, &Leases::new())
}
fn lease() -> LeaseSeen {
    let mut request = ask(Kind::Request);
    request.requested = Some(MINE);
    match decide(&request).outcome {
        Some(Outcome::Leased(_, lease)) => lease,
        other => panic!("{other:?}"),
    }
}

/// What is expected of a row: the reply's kind, its MAC, its IP, its yiaddr; and whether a lease was taken.
type Expected = (Option<(ReplyKind, Mac, Ipv4Addr, Ipv4Addr)>, bool);

#[test]
fn each_request_is_answered_as_the_rfc_says() {
    type Change = fn(&mut Request);
    let offer = |mac, ip| (Some((ReplyKind::Offer, mac, ip, MINE)), false);
    let ack = |mac, ip| (Some((ReplyKind::Ack, mac, ip, MINE)), true);
    let nak: Expected = (
        Some((ReplyKind::Nak, EVERYBODY, Ipv4Addr::BROADCAST, NONE)),
        false,
    );
    let silent: Expected = (None, false);
    let table: [(&str, Kind, Change, Expected); 25] = [
        ("DISCOVER", Kind::Discover, |_| {}, offer(MAC, MINE)),
        (
            "DISCOVER wants broadcast",
            Kind::Discover,
            |r| r.flags = FLAG_BROADCAST,
            offer(EVERYBODY, Ipv4Addr::BROADCAST),
        ),
        (
            "DISCOVER asks for another",
            Kind::Discover,
            |r| r.requested = Some(FOREIGN),
            offer(MAC, MINE),
        ),
        (
            "SELECTING",
            Kind::Request,
            |r| (r.server_id, r.requested) = (Some(SERVER), Some(MINE)),
            ack(MAC, MINE),
        ),
        (
            "SELECTING, broadcast",
            Kind::Request,
            |r| (r.server_id, r.requested, r.flags) = (Some(SERVER), Some(MINE), FLAG_BROADCAST),
            ack(EVERYBODY, Ipv4Addr::BROADCAST),
        ),
        (
            "SELECTING another server",
            Kind::Request,
            |r| (r.server_id, r.requested) = (Some(FOREIGN), Some(MINE)),
            silent,
        ),
        (
            "SELECTING another address",
            Kind::Request,
            |r| (r.server_id, r.requested) = (Some(SERVER), Some([10, 77, 0, 11].into())),
            nak,
        ),
        (
            "SELECTING no address",
            Kind::Request,
            |r| r.server_id = Some(SERVER),
            silent,
        ),
        (
            "INIT-REBOOT",
            Kind::Request,
            |r| r.requested = Some(MINE),
            ack(MAC, MINE),
        ),
        (
            "INIT-REBOOT, another address",
            Kind::Request,
            |r| r.requested = Some([10, 77, 0, 99].into()),
            nak,
        ),
        (
            "INIT-REBOOT, another network",
            Kind::Request,
            |r| r.requested = Some(FOREIGN),
            nak,
        ),
        (
            "INIT-REBOOT, NAK by broadcast even so",
            Kind::Request,
            |r| (r.requested, r.flags) = (Some(FOREIGN), 0),
            nak,
        ),
        (
            "RENEW or REBIND",
            Kind::Request,
            |r| r.ciaddr = MINE,
            ack(MAC, MINE),
        ),
        (
            "RENEW with the broadcast flag goes to ciaddr",
            Kind::Request,
            |r| (r.ciaddr, r.flags) = (MINE, FLAG_BROADCAST),
            ack(MAC, MINE),
        ),
        (
            "RENEW of another address",
            Kind::Request,
            |r| r.ciaddr = FOREIGN,
            nak,
        ),
        ("REQUEST of nothing", Kind::Request, |_| {}, silent),
        (
            "REQUEST of two things at once",
            Kind::Request,
            |r| (r.ciaddr, r.requested) = (MINE, Some(MINE)),
            ack(MAC, MINE),
        ),
        (
            "INFORM",
            Kind::Inform,
            |r| r.ciaddr = MINE,
            (Some((ReplyKind::Ack, MAC, MINE, NONE)), false),
        ),
        (
            "INFORM from elsewhere",
            Kind::Inform,
            |r| r.ciaddr = FOREIGN,
            silent,
        ),
        ("INFORM from nowhere", Kind::Inform, |_| {}, silent),
        (
            "RELEASE of what was never taken",
            Kind::Release,
            |r| (r.ciaddr, r.server_id) = (MINE, Some(SERVER)),
            silent,
        ),
        (
            "DECLINE of another's",
            Kind::Decline,
            |r| (r.requested, r.server_id) = (Some(FOREIGN), Some(SERVER)),
            silent,
        ),
        ("by a relay", Kind::Discover, |r| r.giaddr = FOREIGN, silent),
        ("unknown MAC", Kind::Discover, |r| r.mac = Mac::local(1), silent),
        (
            "another port's MAC",
            Kind::Discover,
            |r| r.mac = Mac::local(0x77_00_01),
            silent,
        ),
    ];
    for (what, kind, change, (reply, leased)) in table {
        let mut request = ask(kind);
        change(&mut request);
        let source = if what == "unknown MAC" { request.mac } else { MAC };
        let got = decide_with(&request, source, &Leases::new());
        let got_reply = got.reply.as_ref().map(|r| (r.kind, r.to_mac, r.to, r.yiaddr));
        assert_eq!(got_reply, reply, "{what}: {}", got.why.word());
        assert_eq!(matches!(got.outcome, Some(Outcome::Leased(..))), leased, "{what}");
    }
}

#[test]
fn a_lease_begins_now_and_lasts_as_the_network_says() {
    assert_eq!(lease().since, NOW);
    assert_eq!(lease().until.since(NOW), Duration::from_secs(3_600));
}

#[test]
fn a_release_and_a_decline_are_remembered_and_not_answered() {
    let held = Leases::from([(port(), lease())]);
    let mut release = ask(Kind::Release);
    (release.ciaddr, release.server_id) = (MINE, Some(SERVER));
    let got = decide_with(&release, MAC, &held);
    assert_eq!(
        (got.reply, got.outcome),
        (None, Some(Outcome::Released(port(), MINE)))
    );
    release.server_id = Some(FOREIGN);
    assert_eq!(
        decide_with(&release, MAC, &held).outcome,
        None,
        "released to another server"
    );
    let mut decline = ask(Kind::Decline);
    (decline.requested, decline.server_id) = (Some(MINE), Some(SERVER));
    let got = decide_with(&decline, MAC, &held);
    let until = NOW.plus(vbm_net::dhcp::PORT_QUARANTINE);
    assert_eq!(
        (got.reply, got.outcome.clone()),
        (None, Some(Outcome::Declined(port(), MINE, until)))
    );
    let (config, mut state) = (ServerConfig::from(&network()), State::default());
    state.apply(&config, &got.outcome.unwrap());
    let arrival = Arrival {
        source: MAC,
        from: Ipv4Addr::UNSPECIFIED,
        to: Ipv4Addr::BROADCAST,
    };
    let at = |now| respond(&config, &state, &ask(Kind::Discover), arrival, now).why;
    assert_eq!(at(NOW), Reason::Quarantined, "the address rests");
    assert_eq!(at(until), Reason::Offered, "and is the port's again");
}

fn bytes(request: &Request, reply: &Reply) -> Vec<u8> {
    let config = ServerConfig::from(&network());
    wire::encode(&config, config.ports.get(MAC), request, reply).unwrap()
}
fn answer(request: &Request) -> Vec<u8> {
    bytes(request, &decide(request).reply.expect("a reply"))
}

/// The option codes of a message, in the order of the wire.
fn codes(message: &[u8]) -> Vec<u8> {
    let (mut at, mut codes) = (240, Vec::new());
    while message[at] != 255 {
        codes.push(message[at]);
        at += 2 + usize::from(message[at + 1]);
    }
    codes
}

fn read(message: &[u8]) -> Message {
    Message::decode(&mut Decoder::new(message)).unwrap()
}

#[test]
fn an_ack_holds_all_that_a_guest_needs() {
    let mut request = ask(Kind::Request);
    request.requested = Some(MINE);
    let message = read(&answer(&request));
    let expected = [
        DhcpOption::SubnetMask([255, 255, 255, 0].into()),
        DhcpOption::Router(vec![SERVER]),
        DhcpOption::DomainNameServer(vec![[9, 9, 9, 9].into()]),
        DhcpOption::Hostname("vm0".into()),
        DhcpOption::DomainName("lab.example".into()),
        DhcpOption::InterfaceMtu(1_500),
        DhcpOption::BroadcastAddr([10, 77, 0, 255].into()),
        DhcpOption::AddressLeaseTime(3_600),
        DhcpOption::ServerIdentifier(SERVER),
        DhcpOption::Renewal(1_800),
        DhcpOption::Rebinding(3_150),
    ];
    for option in expected {
        assert_eq!(message.opts().get(OptionCode::from(&option)), Some(&option));
    }
    assert_eq!((message.xid(), message.chaddr()), (7, &MAC.octets()[..]));
}

#[test]
fn options_come_in_the_clients_order_each_once_and_option_82_last() {
    let mut request = ask(Kind::Discover);
    request.parameters = Some(vec![28, 6, 200, 3, 6, 1, 53, 51]);
    request.client_id = Some(vec![1, 2, 3]);
    request.relay_agent = Some(vec![1, 4, 0xca, 0xfe, 0, 1]);
    let message = answer(&request);
    assert_eq!(codes(&message), [53, 54, 51, 58, 59, 28, 6, 3, 1, 61, 82]);
    assert!(
        message.windows(8).any(|w| w == [82, 6, 1, 4, 0xca, 0xfe, 0, 1]),
        "82 as it came"
    );
    assert!(
        message.windows(5).any(|w| w == [61, 3, 1, 2, 3]),
        "61 as it came (RFC 6842)"
    );
}

#[test]
fn inform_tells_neither_address_nor_times_and_nak_tells_nothing_but_itself() {
    let mut inform = ask(Kind::Inform);
    inform.ciaddr = MINE;
    let message = answer(&inform);
    assert_eq!(codes(&message), [53, 54, 1, 3, 6, 12, 15, 26, 28]);
    assert_eq!((read(&message).yiaddr(), read(&message).ciaddr()), (NONE, MINE));
    let mut request = ask(Kind::Request);
    request.requested = Some(FOREIGN);
    request.client_id = Some(vec![9]);
    assert_eq!(codes(&answer(&request)), [53, 54, 61]);
}

#[test]
fn the_flags_are_echoed_and_no_message_is_shorter_than_bootp_allows() {
    let mut request = ask(Kind::Discover);
    request.flags = FLAG_BROADCAST;
    let message = answer(&request);
    assert!(message.len() >= 300);
    assert!(read(&message).flags().broadcast());
}

#[test]
fn a_client_that_takes_little_is_sent_little() {
    let mut request = ask(Kind::Discover);
    request.client_id = Some(vec![7; 255]);
    request.relay_agent = Some(vec![8; 20]);
    assert!(answer(&request).len() <= 548, "576 with its headers");
    assert_eq!(codes(&answer(&request)).last(), Some(&82));
    request.max_size = Some(1_500);
    assert!(
        codes(&answer(&request)).contains(&28),
        "and one that takes more, more"
    );
    assert!(!codes(&answer(&request)).contains(&52));
}

proptest! {
    /// What nobody asked for is never told: whatever a client sends, it is only ever its own address.
    #[test]
    fn no_request_makes_the_server_give_anything_but_the_ports_own_address(
        kind in prop::sample::select(vec![Kind::Discover, Kind::Request, Kind::Decline, Kind::Release, Kind::Inform]),
        flags: u16, ciaddr: u32, requested: Option<u32>, server: Option<u32>, id in prop::option::of(prop::collection::vec(any::<u8>(), 0..600)),
        relay in prop::option::of(prop::collection::vec(any::<u8>(), 0..600)),
        parameters in prop::option::of(prop::collection::vec(any::<u8>(), 0..255)), max_size: Option<u16>,
    ) {
        let mut request = ask(kind);
        request.flags = flags;
        request.ciaddr = ciaddr.into();
        request.requested = requested.map(Into::into);
        request.server_id = server.map(Into::into);
        (request.client_id, request.relay_agent, request.parameters, request.max_size) = (id, relay, parameters, max_size);
        let decision = decide(&request);
        if let Some(reply) = decision.reply {
            prop_assert!(reply.yiaddr == MINE || reply.yiaddr == NONE);
            let message = bytes(&request, &reply);
            prop_assert!(message.len() >= 300);
            prop_assert!(parse(&message).is_err(), "a reply is no request");
        }
    }
}
