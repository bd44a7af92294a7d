//! What reads the inputs. Each answers whether it made sense of one: whether there was an answer, or what was said was taken.

use super::Target;
use crate::{
    DesiredNetwork, Validated, dhcp, dhcp6, dns, metadata,
    model::link_local,
    plan::{fixture::lab, flows},
    ra,
};
use dhcproto::{Decodable, Decoder};
use hickory_proto::op::Message as DnsMessage;
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
    sync::{Arc, LazyLock},
};
use vbm_core::{Ipv6Spec, Mac, MetadataMode, NetworkMode, NetworkSpec, Timestamp};

pub(super) const TARGETS: [Target; 10] = [
    ("dhcp-frame", dhcp_frame),
    ("dhcp-message", dhcp_message),
    ("dhcp-options", dhcp_options),
    ("dhcp6-frame", dhcp6_frame),
    ("dhcp6-message", dhcp6_message),
    ("solicitation", solicitation),
    ("dns-question", dns_question),
    ("dns-answer", dns_answer),
    ("metadata", metadata_request),
    ("flows", flow_table),
];

const NOW: Timestamp = Timestamp::from_micros(1_700_000_000_000_000);
/// The MACs of client and server in the frames of the corpus, which real clients sent in the tests.
const CLIENT: Mac = Mac::local(0x50_00_02);
const SERVER: Mac = Mac::local(0x50_00_01);

/// A network with all that is served, whose first port is the client of the corpus.
static NET: LazyLock<Validated<DesiredNetwork>> = LazyLock::new(|| {
    let mut net = lab(NetworkMode::Nat).into_inner();
    net.spec = NetworkSpec::new(NetworkMode::Nat, "10.5.0.0/24".parse().unwrap()).unwrap();
    net.spec.ipv6 = Some(Ipv6Spec::new("fd00:5::/64".parse().unwrap()).unwrap());
    net.spec.domain = Some("lab.example".into());
    net.spec.metadata = MetadataMode::Open;
    net.ports[0].mac = CLIENT;
    net.ports[0].address = Ipv4Addr::new(10, 5, 0, 100);
    net.ports[1].address = Ipv4Addr::new(10, 5, 0, 101);
    net.ports[0].address6 = Some("fd00:5::100".parse().unwrap());
    Validated::<DesiredNetwork>::new(net).unwrap()
});

/// Its DHCP, which also serves a pool and a relay.
static DHCP: LazyLock<dhcp::ServerConfig> = LazyLock::new(|| {
    let mut config = dhcp::ServerConfig::from(&*NET);
    config.mac = SERVER;
    config.link.pool = Some(Ipv4Addr::new(10, 5, 0, 200)..=Ipv4Addr::new(10, 5, 0, 220));
    config.relays = dhcp::Relays::Anybody;
    config.rapid_commit = true;
    config
});

fn dhcp_answer(source: Mac, from: Ipv4Addr, to: Ipv4Addr, payload: &[u8]) -> bool {
    let Ok(request) = dhcp::request::parse(payload) else {
        return false;
    };
    let (config, mut state) = (&*DHCP, dhcp::respond::State::default());
    let arrival = dhcp::respond::Arrival { source, from, to };
    let decision = dhcp::respond::respond(config, &state, &request, arrival, NOW);
    if let Some(outcome) = &decision.outcome {
        state.apply(config, outcome);
        // Once more, now that it is known.
        let again = dhcp::respond::respond(config, &state, &request, arrival, NOW);
        if let Some(outcome) = &again.outcome {
            state.apply(config, outcome);
        }
    }
    let Some(reply) = decision.reply else {
        return decision.outcome.is_some();
    };
    let given = reply.yiaddr;
    let own = config.ports.get(request.mac).map(|p| p.address);
    let may_have = given.is_unspecified()
        || own.map_or_else(
            || config.is_free_for_clients(&config.link, given),
            |own| own == given,
        );
    assert!(may_have, "{given} was given away");
    let payload = dhcp::wire::encode(config, config.ports.get(request.mac), &request, &reply)
        .expect("what was decided can be said");
    let read = dhcproto::v4::Message::decode(&mut Decoder::new(&payload));
    assert!(read.is_ok(), "another decoder reads the reply: {read:?}");
    assert!(payload.len() <= 65_507, "it fits a datagram");
    let frame = dhcp::frame::build(
        (config.mac, config.address),
        (reply.to_mac, reply.to, reply.to_port),
        &payload,
    )
    .expect("and a frame");
    assert!(dhcp::frame::checksum_is_full(&frame));
    true
}

fn dhcp_frame(input: &[u8]) -> bool {
    dhcp::frame::parse(input).is_some_and(|datagram| {
        assert!(datagram.payload.len() <= input.len());
        dhcp_answer(datagram.source, datagram.from, datagram.to, datagram.payload)
    })
}

fn dhcp_message(input: &[u8]) -> bool {
    dhcp_answer(CLIENT, Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, input)
}

/// Only what stands behind a good fixed part, so that no mutation is lost on that.
fn dhcp_options(input: &[u8]) -> bool {
    let mut message = vec![0u8; 240];
    message[..4].copy_from_slice(&[1, 1, 6, 0]);
    message[28..34].copy_from_slice(&CLIENT.octets());
    message[236..].copy_from_slice(&[99, 130, 83, 99]);
    message.extend(input);
    let held: usize = dhcp::options::Options::read(&message).map_or(0, |all| {
        all.codes().filter_map(|c| all.get(c)).map(<[u8]>::len).sum()
    });
    assert!(held <= message.len());
    dhcp_message(&message)
}

fn dhcp6_answer(source: Mac, from: Ipv6Addr, to: Ipv6Addr, payload: &[u8]) -> bool {
    let Ok(request) = dhcp6::request::parse(payload) else {
        return false;
    };
    let mut config = dhcp6::ServerConfig::of(&NET).expect("it has IPv6");
    (config.mac, config.duid) = (SERVER, dhcp6::duid_of(SERVER));
    let mut state = dhcp6::respond::State::default();
    let arrival = dhcp6::respond::Arrival { source, from, to };
    let decision = dhcp6::respond::respond(&config, &state, &request, arrival, NOW);
    if let Some(outcome) = &decision.outcome {
        state.apply(outcome);
    }
    let Some(reply) = decision.reply else {
        return decision.outcome.is_some();
    };
    let bytes = dhcp6::wire::encode(&config, &request, &reply);
    let read = dhcproto::v6::Message::decode(&mut Decoder::new(&bytes));
    assert!(read.is_ok(), "another decoder reads the reply: {read:?}");
    assert!(dhcp6::frame::build((config.mac, link_local(config.mac)), (source, from), &bytes).is_some());
    true
}

fn dhcp6_frame(input: &[u8]) -> bool {
    dhcp6::frame::parse(input).is_some_and(|datagram| {
        assert!(datagram.payload.len() <= input.len());
        dhcp6_answer(datagram.source, datagram.from, datagram.to, datagram.payload)
    })
}

fn dhcp6_message(input: &[u8]) -> bool {
    let everybody = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
    dhcp6_answer(CLIENT, link_local(CLIENT), everybody, input)
}

fn solicitation(input: &[u8]) -> bool {
    // As it came, and with a checksum that is right: else no mutation is looked at behind it.
    let mut mended = input.to_vec();
    ra::mend(&mut mended);
    let seen = [input, &mended].map(ra::solicitor);
    if let Some((mac, from)) = seen[1] {
        assert_eq!(&mended[6..12], &mac.octets());
        assert!(from.is_unspecified() || !from.is_multicast());
    }
    seen.iter().any(Option::is_some)
}

fn dns_question(input: &[u8]) -> bool {
    static ZONE: LazyLock<dns::Zone> = LazyLock::new(|| dns::Zone::from(&*NET));
    let well_formed = |bytes: &[u8], most: u16| {
        assert!(bytes.len() <= usize::from(most), "{} bytes", bytes.len());
        let read = DnsMessage::from_vec(bytes);
        assert!(read.is_ok(), "the answer can be read: {read:?}");
    };
    match dns::message::read(input) {
        dns::message::Read::Asked(asked) => {
            if let Some(answer) = dns::message::local(&ZONE, &asked)
                && let Some(bytes) = dns::message::write(&answer, asked.udp_max)
            {
                well_formed(&bytes, asked.udp_max);
            }
            if let Some(bytes) = dns::message::forwarded(&asked, 7) {
                well_formed(&bytes, u16::MAX);
            }
            true
        }
        dns::message::Read::Refused(bytes, _) => {
            well_formed(&bytes, u16::MAX);
            false
        }
        dns::message::Read::Dropped(_) => false,
    }
}

/// What another server says to a question that was asked.
fn dns_answer(input: &[u8]) -> bool {
    static ASKED: LazyLock<Box<dns::message::Asked>> = LazyLock::new(|| {
        // www.example.org, A.
        let question = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\x03www\x07example\x03org\0\0\x01\0\x01";
        match dns::message::read(question) {
            dns::message::Read::Asked(asked) => asked,
            other => panic!("{other:?}"),
        }
    });
    let Some(heard) = dns::message::heard(input, &ASKED, 7) else {
        return false;
    };
    let said = dns::message::write(&heard, dns::EDNS_MAX_BYTES);
    assert!(said.is_none_or(|bytes| bytes.len() <= usize::from(dns::EDNS_MAX_BYTES)));
    true
}

fn metadata_request(input: &[u8]) -> bool {
    static KEY: LazyLock<metadata::TokenKey> = LazyLock::new(|| metadata::TokenKey::random().unwrap());
    static CONFIG: LazyLock<metadata::Config> = LazyLock::new(|| {
        let instance = metadata::Instance {
            id: "i-fuzz".into(),
            user_data: Some(b"#cloud-config\n".to_vec()),
            ssh_keys: vec!["ssh-ed25519 AAAA a@b".into()],
            macs: vec![CLIENT],
            ..metadata::Instance::default()
        };
        metadata::Config::new(
            &NET,
            &BTreeMap::from([(NET.ports[0].id, Some(Arc::new(instance)))]),
        )
    });
    let metadata::http::Read::Asked(asked, head) = metadata::http::read(input) else {
        return false;
    };
    assert!(head <= input.len());
    let answer =
        metadata::respond(&CONFIG, &KEY, NET.ports[0].address, &asked, 1_000_000).expect("it is a port's");
    let fields: Vec<(&str, String)> = answer.fields.clone();
    let bytes = metadata::http::write(answer.status, answer.kind, &fields, &answer.body, false, true);
    let mut room = [httparse::EMPTY_HEADER; 16];
    let mut read = httparse::Response::new(&mut room);
    let length = read.parse(&bytes).expect("the answer can be read").unwrap();
    assert_eq!(
        bytes.len(),
        length + answer.body.len(),
        "nothing of the request became a line of the answer's head"
    );
    answer.status == 200
}

/// Of `conntrack`: its words come from the kernel, numbers in them from whoever sends packets.
fn flow_table(input: &[u8]) -> bool {
    let text = String::from_utf8_lossy(input);
    let read = flows::parse(&text);
    assert!(read.len() <= text.lines().count());
    let cut = flows::to_cut(&NET, None, &read);
    assert!(cut.iter().all(|flow| read.contains(flow)));
    !read.is_empty()
}
