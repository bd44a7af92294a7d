//! Clients that are no port: pools, relays, and what the settings of a network become on the wire. Decisions and bytes, no sockets.

#![allow(clippy::unwrap_used, reason = "a helper of a test that cannot go on panics")]
#![allow(clippy::cast_possible_truncation, reason = "test values are small")]

use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};
use vbm_core::{Mac, PortId, Timestamp};
use vbm_net::dhcp::{
    Boot, KeyBy, Reason, Relays, Reservation, Route, ServerConfig, Subnet,
    book::{Book, Change},
    options::{Options, code},
    request::{FLAG_BROADCAST, Kind, Request},
    respond::{Arrival, Decision, Outcome, ReplyKind, State, respond},
    wire,
};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
const RELAY: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 254);
const RELAY_MAC: Mac = Mac::local(0xee);
const T0: Timestamp = Timestamp::from_micros(1_000_000_000);
const PORT_MAC: Mac = Mac::local(0x700);
const PORT: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 12);
const HOUR: Duration = Duration::from_secs(3_600);

fn subnet(net: u8, pool: (u8, u8)) -> Subnet {
    let mut subnet = Subnet::new(format!("10.{net}.0.0/24").parse().unwrap(), HOUR);
    subnet.settings.router = Some(Ipv4Addr::new(10, net, 0, 254));
    subnet.pool = Some(Ipv4Addr::new(10, net, 0, pool.0)..=Ipv4Addr::new(10, net, 0, pool.1));
    subnet
}

/// A link 10.1.0.0/24, and 10.2.0.0/24 and 10.3.0.0/24 behind the relay 10.2.0.254; a port on the link.
fn config() -> ServerConfig {
    let mut config = ServerConfig::new(SERVER, Mac::local(1), subnet(1, (10, 19)));
    config.behind = vec![subnet(2, (10, 19)), subnet(3, (10, 19))];
    config.relays = Relays::Only([RELAY].into());
    config.ports.insert(
        PORT_MAC,
        Reservation {
            port: PortId::from_uuid(uuid::Uuid::from_u128(1)),
            address: PORT,
            hostname: "web1".into(),
            metadata: false,
            boot: None,
        },
    );
    config
}

struct Server {
    config: ServerConfig,
    state: State,
    now: Timestamp,
}

impl Server {
    fn new(config: ServerConfig) -> Self {
        Self {
            config,
            state: State::default(),
            now: T0,
        }
    }
    fn hear(&mut self, request: &Request) -> Decision {
        let source = if request.relayed() { RELAY_MAC } else { request.mac };
        let to = if request.ciaddr.is_unspecified() {
            Ipv4Addr::BROADCAST
        } else {
            self.config.address
        };
        let decision = respond(
            &self.config,
            &self.state,
            request,
            Arrival {
                source,
                from: request.ciaddr,
                to,
            },
            self.now,
        );
        if let Some(outcome) = &decision.outcome {
            self.state.apply(&self.config, outcome);
        }
        decision
    }
    /// DISCOVER to ACK; the address.
    fn lease(&mut self, request: Request) -> Option<Ipv4Addr> {
        let offer = self.hear(&request).reply?;
        let mut take = request;
        (take.kind, take.requested, take.server_id) =
            (Kind::Request, Some(offer.yiaddr), Some(offer.server_id));
        let ack = self.hear(&take).reply?;
        assert_eq!((ack.kind, ack.yiaddr), (ReplyKind::Ack, offer.yiaddr));
        Some(ack.yiaddr)
    }
    fn later(&mut self, seconds: u64) {
        self.now = self.now.plus(Duration::from_secs(seconds));
    }
    fn told(&mut self, request: &Request) -> BTreeMap<u8, Vec<u8>> {
        let bytes = self.bytes(request);
        let options = Options::read(&bytes).unwrap();
        options
            .codes()
            .map(|c| (c, options.get(c).unwrap().to_vec()))
            .collect()
    }
    fn bytes(&mut self, request: &Request) -> Vec<u8> {
        let reply = self.hear(request).reply.expect("a reply");
        let port = self.config.ports.get(request.mac);
        wire::encode(&self.config, port, request, &reply).unwrap()
    }
}

fn ask(kind: Kind, n: u32) -> Request {
    Request::new(kind, Mac::local(n), n)
}

fn relayed(kind: Kind, n: u32, parts: &[u8]) -> Request {
    let mut request = ask(kind, n);
    request.giaddr = RELAY;
    request.hops = 1;
    request.relay_agent = (!parts.is_empty()).then(|| parts.to_vec());
    request
}

#[test]
fn an_offer_is_reserved_and_repeated_and_comes_free_when_nobody_takes_it() {
    let mut server = Server::new(config());
    let first = server.hear(&ask(Kind::Discover, 1)).reply.unwrap().yiaddr;
    assert_eq!(server.hear(&ask(Kind::Discover, 1)).reply.unwrap().yiaddr, first);
    let mut greedy = ask(Kind::Discover, 2);
    greedy.requested = Some(first);
    assert_ne!(server.hear(&greedy).reply.unwrap().yiaddr, first, "it is kept");
    server.later(61);
    greedy.mac = Mac::local(3);
    assert_eq!(server.hear(&greedy).reply.unwrap().yiaddr, first, "it came free");
}

#[test]
fn every_address_of_a_pool_is_given_once_and_then_there_is_none() {
    let mut server = Server::new(config());
    let given: Vec<u8> = (0..9)
        .map(|n| server.lease(ask(Kind::Discover, n)).unwrap().octets()[3])
        .collect();
    assert_eq!(given, [10, 11, 13, 14, 15, 16, 17, 18, 19], "12 is a port's");
    let none = server.hear(&ask(Kind::Discover, 99));
    assert_eq!((none.reply, none.why), (None, Reason::PoolExhausted));
    assert_eq!(
        server.lease(Request::new(Kind::Discover, PORT_MAC, 5)),
        Some(PORT),
        "a port has its address whatever the pool has"
    );
}

#[test]
fn renew_reboot_release_and_decline_of_a_client() {
    let mut server = Server::new(config());
    let mine = server.lease(ask(Kind::Discover, 1)).unwrap();
    let mut renew = ask(Kind::Request, 1);
    renew.ciaddr = mine;
    assert_eq!(server.hear(&renew).why, Reason::Renewed);
    let mut reboot = ask(Kind::Request, 1);
    reboot.requested = Some(mine);
    assert_eq!(server.hear(&reboot).why, Reason::Rebooted);
    server.later(7_200);
    assert_eq!(
        server.hear(&reboot).why,
        Reason::Rebooted,
        "ended, but nobody else's"
    );
    let mut foreign = ask(Kind::Request, 2);
    foreign.ciaddr = mine;
    assert_eq!(
        server.hear(&foreign).why,
        Reason::UnknownLease,
        "others may serve here: silent"
    );
    server.config.authoritative = true;
    assert_eq!(server.hear(&foreign).why, Reason::NakUnknown);
    server.config.authoritative = false;
    let mut elsewhere = ask(Kind::Request, 1);
    elsewhere.requested = Some([192, 168, 0, 3].into());
    assert_eq!(server.hear(&elsewhere).why, Reason::NakNetwork);
    let mut release = ask(Kind::Release, 1);
    (release.ciaddr, release.server_id) = (mine, Some(SERVER));
    assert_eq!(server.hear(&release).why, Reason::Released);
    assert_eq!(server.hear(&release).why, Reason::NotHeld, "only once");
    assert_eq!(
        server.lease(ask(Kind::Discover, 1)),
        Some(mine),
        "who comes back gets its own"
    );
    let mut decline = ask(Kind::Decline, 2);
    (decline.requested, decline.server_id) = (Some(mine), Some(SERVER));
    assert_eq!(server.hear(&decline).why, Reason::NotHeld, "another's");
    decline.mac = Mac::local(1);
    let declined = server.hear(&decline);
    assert!(matches!(
        declined.outcome,
        Some(Outcome::Client(Change::Decline(_)))
    ));
    assert_ne!(server.lease(ask(Kind::Discover, 1)).unwrap(), mine, "it rests");
}

#[test]
fn an_offer_that_a_restart_forgot_can_be_taken_and_a_lease_outlives_it() {
    let mut server = Server::new(config());
    let offer = server.hear(&ask(Kind::Discover, 1)).reply.unwrap();
    let held = server.lease(ask(Kind::Discover, 2)).unwrap();
    let kept: Vec<_> = server.state.book.leased(T0).collect();
    server.state.book = Book::load(&server.config, kept);
    let mut take = ask(Kind::Request, 1);
    (take.requested, take.server_id) = (Some(offer.yiaddr), Some(SERVER));
    assert_eq!(server.hear(&take).why, Reason::Selected);
    (take.mac, take.requested) = (Mac::local(3), Some(held));
    assert_eq!(
        server.hear(&take).why,
        Reason::NakAddress,
        "that one is another's"
    );
}

#[test]
fn clients_are_known_by_mac_and_by_their_id_where_that_is_wanted() {
    let cloned = |n| {
        let mut request = ask(Kind::Discover, n);
        request.client_id = Some(vec![255, 0, 0, 0, 1]);
        request
    };
    let mut server = Server::new(config());
    assert_ne!(server.lease(cloned(1)), server.lease(cloned(2)));
    let mut server = Server::new(ServerConfig {
        key: KeyBy::ClientId,
        ..config()
    });
    assert_eq!(server.lease(cloned(1)), server.lease(cloned(2)));
}

#[test]
fn a_relay_is_answered_at_its_port_and_only_if_it_is_trusted() {
    let mut server = Server::new(config());
    let mut request = relayed(Kind::Discover, 1, &[]);
    request.flags = FLAG_BROADCAST;
    let reply = server.hear(&request).reply.unwrap();
    assert_eq!((reply.to, reply.to_port, reply.to_mac), (RELAY, 67, RELAY_MAC));
    assert_eq!(reply.yiaddr, Ipv4Addr::new(10, 2, 0, 10));
    let mut nak = relayed(Kind::Request, 1, &[]);
    nak.requested = Some([10, 1, 0, 10].into());
    let bytes = server.bytes(&nak);
    assert_eq!(bytes[10] & 0x80, 0x80, "the relay shall broadcast a NAK");
    request.hops = 17;
    assert_eq!(server.hear(&request).why, Reason::TooManyHops);
    request.giaddr = [10, 2, 0, 253].into();
    assert_eq!(server.hear(&request).why, Reason::RelayNotTrusted);
    server.config.relays = Relays::Nobody;
    request.giaddr = RELAY;
    assert_eq!(server.hear(&request).why, Reason::RelayNotTrusted);
}

#[test]
fn link_selection_beats_subnet_selection_beats_the_relay() {
    let mut server = Server::new(config());
    let link = [5, 4, 10, 1, 0, 0];
    let mut request = relayed(Kind::Discover, 1, &link);
    request.subnet = Some([10, 3, 0, 0].into());
    let net = |server: &mut Server, r: &Request| server.hear(r).reply.map(|r| r.yiaddr.octets()[1]);
    assert_eq!(net(&mut server, &request), Some(1));
    request.relay_agent = None;
    assert_eq!(net(&mut server, &request), Some(3));
    request.subnet = None;
    assert_eq!(net(&mut server, &request), Some(2));
    request.subnet = Some([172, 16, 0, 0].into());
    assert_eq!(server.hear(&request).why, Reason::NoSubnet);
    let mut on_wire = ask(Kind::Discover, 2);
    (on_wire.subnet, on_wire.relay_agent) = (Some([10, 3, 0, 0].into()), Some(link.to_vec()));
    assert_eq!(
        net(&mut server, &on_wire),
        Some(1),
        "who is on the wire cannot choose another network"
    );
}

#[test]
fn a_relay_may_stand_in_for_the_server_and_82_is_echoed_last() {
    let mut server = Server::new(config());
    let parts = [1, 2, 7, 7, 11, 4, 10, 2, 0, 254];
    let mut request = relayed(Kind::Discover, 1, &parts);
    request.client_id = Some(vec![1, 2, 3]);
    let bytes = server.bytes(&request);
    let end = bytes.iter().rposition(|b| *b == 255).unwrap();
    assert_eq!(bytes[end - parts.len() - 2..end - parts.len()], [82, 10]);
    assert_eq!(bytes[end - parts.len()..end], parts);
    let options = Options::read(&bytes).unwrap();
    assert_eq!(options.get(code::SERVER_ID), Some(&[10, 2, 0, 254][..]));
    (request.kind, request.server_id) = (Kind::Request, Some(RELAY));
    request.requested = Some(Ipv4Addr::from(<[u8; 4]>::try_from(&bytes[16..20]).unwrap()));
    assert_eq!(server.hear(&request).why, Reason::Selected);
    request.server_id = Some([9, 9, 9, 9].into());
    assert_eq!(server.hear(&request).why, Reason::OtherServer);
    let mut on_wire = ask(Kind::Discover, 2);
    on_wire.relay_agent = Some(parts.to_vec());
    assert_eq!(server.hear(&on_wire).reply.unwrap().server_id, SERVER);
}

#[test]
fn a_client_behind_a_router_renews_by_it() {
    let mut server = Server::new(config());
    let mine = server.lease(relayed(Kind::Discover, 1, &[])).unwrap();
    let mut renew = ask(Kind::Request, 1);
    renew.ciaddr = mine;
    let arrival = Arrival {
        source: RELAY_MAC,
        from: mine,
        to: SERVER,
    };
    let got = respond(&server.config, &server.state, &renew, arrival, T0);
    assert_eq!(got.why, Reason::Renewed);
    let reply = got.reply.unwrap();
    assert_eq!((reply.to, reply.to_mac, reply.to_port), (mine, RELAY_MAC, 68));
    server.config.relays = Relays::Nobody;
    let got = respond(&server.config, &server.state, &renew, arrival, T0);
    assert_eq!(got.why, Reason::ForeignMac);
}

#[test]
fn nobody_on_the_wire_speaks_for_a_client_behind_a_router() {
    let mut server = Server::new(config());
    let mine = server.lease(relayed(Kind::Discover, 1, &[])).unwrap();
    let router = Arrival {
        source: RELAY_MAC,
        from: mine,
        to: SERVER,
    };
    let port = server.config.ports.iter().next().map(|(mac, _)| *mac).unwrap();
    for kind in [
        Kind::Discover,
        Kind::Request,
        Kind::Decline,
        Kind::Release,
        Kind::Inform,
    ] {
        let mut request = ask(kind, 1);
        (request.ciaddr, request.requested) = (mine, None);
        let said =
            |request: &Request, arrival| respond(&server.config, &server.state, request, arrival, T0).why;
        let forged = [
            (
                "from another address",
                Arrival {
                    from: [10, 1, 0, 9].into(),
                    ..router
                },
            ),
            (
                "to all",
                Arrival {
                    to: Ipv4Addr::BROADCAST,
                    ..router
                },
            ),
            (
                "from a port of ours",
                Arrival {
                    source: port,
                    ..router
                },
            ),
        ];
        for (how, arrival) in forged {
            assert_eq!(said(&request, arrival), Reason::ForeignMac, "{kind:?} {how}");
        }
        let unicast = matches!(kind, Kind::Request | Kind::Release | Kind::Inform);
        assert_eq!(said(&request, router) != Reason::ForeignMac, unicast, "{kind:?}");
        // One on the wire who says that it lives behind the router is of the link: there it has nothing.
        let on_wire = said(
            &request,
            Arrival {
                source: request.mac,
                ..router
            },
        );
        assert!(
            ![Reason::Renewed, Reason::Rebound, Reason::Released].contains(&on_wire),
            "{on_wire:?}"
        );
    }
}

#[test]
fn a_rapid_commit_takes_two_to_want_it() {
    let mut server = Server::new(config());
    let mut request = ask(Kind::Discover, 1);
    request.rapid_commit = true;
    assert_eq!(server.hear(&request).why, Reason::Offered, "off by default");
    server.config.rapid_commit = true;
    let told = server.told(&request);
    assert_eq!((told[&53].as_slice(), told[&80].len()), (&[5][..], 0));
    assert_eq!(server.state.book.leased(T0).count(), 1);
    request = ask(Kind::Discover, 2);
    assert_eq!(server.told(&request)[&53], [2]);
}

#[test]
fn a_shorter_lease_may_be_asked_for_and_a_longer_one_not_had() {
    let mut server = Server::new(config());
    for (wish, got) in [
        (None, 3_600),
        (Some(600), 600),
        (Some(0), 60),
        (Some(u32::MAX), 3_600),
    ] {
        let mut request = ask(Kind::Discover, 1);
        request.lease = wish;
        let told = server.told(&request);
        let seconds = |code: u8| u32::from_be_bytes(told[&code].as_slice().try_into().unwrap());
        assert_eq!(
            [seconds(51), seconds(58), seconds(59)],
            [got, got / 2, got / 8 * 7 + got % 8 * 7 / 8]
        );
    }
}

#[test]
fn routes_are_told_in_place_of_the_default_route_to_those_who_ask() {
    let mut config = config();
    config.link.settings.routes = vec![Route {
        to: "10.9.0.0/16".parse().unwrap(),
        via: [10, 1, 0, 7].into(),
    }];
    let mut port = config.ports.get(PORT_MAC).unwrap().clone();
    port.metadata = true;
    config.ports.insert(PORT_MAC, port);
    let mut server = Server::new(config);
    let mut request = Request::new(Kind::Discover, PORT_MAC, 1);
    request.parameters = Some(vec![3, 121]);
    let told = server.told(&request);
    assert!(!told.contains_key(&3));
    let expected = [
        &[16, 10, 9, 10, 1, 0, 7][..],
        &[32, 169, 254, 169, 254, 10, 1, 0, 254],
        &[0, 10, 1, 0, 254],
    ];
    assert_eq!(told[&121], expected.concat());
    request.parameters = Some(vec![3]);
    let told = server.told(&request);
    assert!(told.contains_key(&3) && !told.contains_key(&121));
    let mut other = ask(Kind::Discover, 1);
    other.parameters = Some(vec![121, 3]);
    let told = server.told(&other);
    assert!(
        !told[&121].windows(4).any(|w| w == [169, 254, 169, 254]),
        "only a port that shall be told of it"
    );
    server.config.link.settings.routes.clear();
    let told = server.told(&other);
    assert!(
        told.contains_key(&3) && !told.contains_key(&121),
        "nothing to tell"
    );
}

#[test]
fn what_a_network_knows_is_told_to_those_who_ask() {
    let mut config = config();
    let settings = &mut config.link.settings;
    settings.ntp = vec![[10, 1, 0, 3].into(), [10, 1, 0, 4].into()];
    settings.search = vec!["a.example".into(), "example".into()];
    settings.v6_only_wait_seconds = Some(300);
    settings.mtu = 1_450;
    let mut server = Server::new(config);
    let mut request = ask(Kind::Discover, 1);
    assert!(!server.told(&request).contains_key(&108));
    request.parameters = Some(vec![42, 119, 108, 26]);
    let told = server.told(&request);
    assert_eq!(told[&42], [10, 1, 0, 3, 10, 1, 0, 4]);
    assert_eq!(told[&119], b"\x01a\x07example\x00\xc0\x02");
    assert_eq!(told[&108], [0, 0, 1, 44]);
    assert_eq!(told[&26], [5, 170]);
}

#[test]
fn a_name_is_ours_to_give_and_the_flags_say_who_serves_it() {
    let mut config = config();
    config.link.settings.domain = Some("lab.example".into());
    let mut server = Server::new(config);
    let mut request = Request::new(Kind::Discover, PORT_MAC, 1);
    request.fqdn = Some(b"\x05\x00\x00\x04mine".to_vec());
    assert_eq!(
        server.told(&request)[&81],
        b"\x0e\xff\xff\x04web1\x03lab\x07example\x00",
        "E as asked, O: not as asked, N: nobody serves it"
    );
    server.config.link.settings.names_are_served = true;
    assert_eq!(
        server.told(&request)[&81],
        b"\x05\xff\xff\x04web1\x03lab\x07example\x00"
    );
    request.fqdn = Some(b"\x00\x00\x00mine".to_vec());
    assert_eq!(server.told(&request)[&81], b"\x03\xff\xffweb1.lab.example");
    for garbage in [&b""[..], b"\x01", b"\x01\x00"] {
        request.fqdn = Some(garbage.to_vec());
        assert!(!server.told(&request).contains_key(&81));
    }
}

#[test]
fn machines_without_a_disk_are_told_the_file_of_their_architecture() {
    let mut config = config();
    config.link.settings.boot = Some(Boot {
        server: Some([10, 1, 0, 5].into()),
        server_name: None,
        file: Some("bios.0".into()),
        by_arch: vec![(7, "x64.efi".into()), (16, "http://10.1.0.5/x64.efi".into())],
        ipxe: Some("http://10.1.0.5/script".into()),
    });
    let mut server = Server::new(config);
    let mut request = ask(Kind::Discover, 1);
    assert!(
        !server.told(&request).contains_key(&67),
        "who has a disk is told nothing"
    );
    request.vendor_class = Some(b"PXEClient:Arch:00007".to_vec());
    request.machine_id = Some(vec![0; 17]);
    for (arch, user, vendor, file) in [
        (0, "", "PXEClient:Arch:00000", "bios.0"),
        (7, "", "PXEClient:Arch:00007", "x64.efi"),
        (16, "", "HTTPClient:Arch:00016", "http://10.1.0.5/x64.efi"),
        (7, "iPXE", "PXEClient:Arch:00007", "http://10.1.0.5/script"),
    ] {
        request.architecture = Some(arch);
        request.user_class = Some(user.into());
        request.vendor_class = Some(vendor.into());
        let bytes = server.bytes(&request);
        let told = server.told(&request);
        assert_eq!(told[&67], file.as_bytes());
        assert_eq!(told[&66], b"10.1.0.5");
        assert_eq!(told[&60], vendor.split(':').next().unwrap().as_bytes());
        assert_eq!(told[&97], [0; 17]);
        assert_eq!(told.contains_key(&43), vendor.starts_with("PXE"));
        assert_eq!(bytes[20..24], [10, 1, 0, 5]);
        assert_eq!(&bytes[108..108 + file.len()], file.as_bytes());
    }
}

#[test]
fn what_does_not_fit_goes_on_in_file_and_sname() {
    let mut config = config();
    let settings = &mut config.link.settings;
    settings.domain = Some("d".repeat(60));
    settings.search = (0..8).map(|n| format!("{n}{}.example", "s".repeat(50))).collect();
    settings.ntp = vec![SERVER; 4];
    settings.dns = vec![SERVER; 4];
    settings.mtu = 1_500;
    let mut server = Server::new(config);
    let mut request = ask(Kind::Discover, 1);
    request.parameters = Some(vec![1, 3, 6, 119, 15, 42, 26, 28]);
    request.client_id = Some(vec![9; 100]);
    request.relay_agent = Some(vec![1, 100].into_iter().chain([8; 100]).collect());
    let bytes = server.bytes(&request);
    assert!(bytes.len() <= 548, "{}", bytes.len());
    let told = server.told(&request);
    assert!(
        !told.contains_key(&119),
        "there is no room anywhere for the longest"
    );
    for code in [1, 3, 6, 15, 42, 26, 28] {
        assert!(told.contains_key(&code), "{code}");
    }
    assert!(told.contains_key(&52));
    request.max_size = Some(1_500);
    let told = server.told(&request);
    assert!(told[&119].len() > 255, "a long option is split, and joined again");
    assert!(!told.contains_key(&52));
}

#[test]
fn no_two_servers_of_one_pool_state_differ() {
    // The same requests give the same state: nothing but the arguments decides.
    let run = || {
        let mut server = Server::new(config());
        let all: Vec<_> = (0..30)
            .map(|n| {
                server.later(u64::from(n) * 7);
                server.lease(ask(Kind::Discover, n * 7 % 11))
            })
            .collect();
        (all, server.state.book.len())
    };
    assert_eq!(run(), run());
}
