//! Questions read, answers written: bytes on one side, values on the other; hickory does the format. Pure.

use super::{
    EDNS_MAX_BYTES, LOCAL_TTL_SECONDS, NEGATIVE_TTL_SECONDS, UDP_PLAIN_MAX_BYTES,
    zone::{Found, Verdict, Zone},
};
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, AAAA, NS, PTR, SOA},
    },
    serialize::binary::{BinEncodable, BinEncoder},
};
use std::net::IpAddr;

/// The header of a message.
const HEADER_BYTES: usize = 12;
/// Set in the third byte of what is an answer.
const IS_ANSWER: u8 = 0x80;

/// A question that makes sense.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) id: u16,
    pub(crate) query: Query,
    pub(crate) recursion: bool,
    pub(crate) checking_disabled: bool,
    pub(crate) wants_dnssec: bool,
    pub(crate) edns: bool,
    /// The most bytes of an answer by UDP.
    pub(crate) udp_max: u16,
}

/// What came of reading.
#[derive(Debug)]
pub(crate) enum Read {
    /// A question.
    Asked(Box<Asked>),
    /// What can only be answered so.
    Refused(Vec<u8>, &'static str),
    /// What deserves no answer.
    Dropped(&'static str),
}

/// Reads a question. Whatever the bytes are, nothing panics.
pub(crate) fn read(bytes: &[u8]) -> Read {
    let Some(header) = bytes.get(..HEADER_BYTES) else {
        return Read::Dropped("shorter than a header");
    };
    if header[2] & IS_ANSWER != 0 {
        return Read::Dropped("it is an answer");
    }
    let id = u16::from_be_bytes([header[0], header[1]]);
    let op_code = OpCode::from_u8((header[2] >> 3) & 0xf);
    let refused = |code, why| match write(&Message::error_msg(id, op_code, code), UDP_PLAIN_MAX_BYTES) {
        Some(bytes) => Read::Refused(bytes, why),
        None => Read::Dropped(why),
    };
    if op_code != OpCode::Query {
        return refused(ResponseCode::NotImp, "an operation other than a query");
    }
    // Counts are looked at before anything is decoded: one question, and at most an OPT beside it.
    let count = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    if count(4) != 1 || count(6) != 0 || count(8) != 0 || count(10) > 2 {
        return refused(ResponseCode::FormErr, "not one question");
    }
    let Ok(message) = Message::from_vec(bytes) else {
        return refused(ResponseCode::FormErr, "not a message");
    };
    let [query] = &message.queries[..] else {
        return refused(ResponseCode::FormErr, "not one question");
    };
    let edns = message.edns.as_ref();
    let asked = Asked {
        id,
        query: query.clone(),
        recursion: message.metadata.recursion_desired,
        checking_disabled: message.metadata.checking_disabled,
        wants_dnssec: edns.is_some_and(|e| e.flags().dnssec_ok),
        edns: edns.is_some(),
        udp_max: edns.map_or(UDP_PLAIN_MAX_BYTES, |e| {
            e.max_payload().clamp(UDP_PLAIN_MAX_BYTES, EDNS_MAX_BYTES)
        }),
    };
    if edns.is_some_and(|e| e.version() != 0) {
        let answer = answer(&asked, ResponseCode::BADVERS);
        return match write(&answer, UDP_PLAIN_MAX_BYTES) {
            Some(bytes) => Read::Refused(bytes, "an unknown version of EDNS"),
            None => Read::Dropped("an unknown version of EDNS"),
        };
    }
    let transfer = matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR);
    if query.query_class() != DNSClass::IN || transfer {
        return match write(&answer(&asked, ResponseCode::Refused), asked.udp_max) {
            Some(bytes) => Read::Refused(bytes, "another class, or a transfer"),
            None => Read::Dropped("another class, or a transfer"),
        };
    }
    Read::Asked(Box::new(asked))
}

/// The frame of an answer.
pub(crate) fn answer(asked: &Asked, code: ResponseCode) -> Message {
    let mut message = Message::new(asked.id, MessageType::Response, OpCode::Query);
    message.metadata.recursion_desired = asked.recursion;
    message.metadata.checking_disabled = asked.checking_disabled;
    message.metadata.response_code = code;
    message.add_query(asked.query.clone());
    if asked.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(EDNS_MAX_BYTES).set_version(0);
        edns.set_dnssec_ok(asked.wants_dnssec);
        edns.set_rcode_high(code.high());
        message.set_edns(edns);
    }
    message
}

/// The answer of the zone; `None` where it is not ours to give.
pub(crate) fn local(zone: &Zone, asked: &Asked) -> Option<Message> {
    let (name, kind) = (asked.query.name(), asked.query.query_type());
    let Verdict { found, apex } = zone.look(name, kind);
    let any = kind == RecordType::ANY;
    let mut out = answer(asked, ResponseCode::NoError);
    out.metadata.authoritative = true;
    out.metadata.recursion_available = zone.forwards;
    let record = |data| Record::from_rdata(name.clone(), LOCAL_TTL_SECONDS, data);
    match found {
        Found::Elsewhere => return None,
        Found::Addresses(addresses) => {
            let wanted = addresses.iter().filter_map(|address| match address {
                IpAddr::V4(a) if any || kind == RecordType::A => Some(RData::A(A(*a))),
                IpAddr::V6(a) if any || kind == RecordType::AAAA => Some(RData::AAAA(AAAA(*a))),
                _ => None,
            });
            out.answers.extend(wanted.map(record));
        }
        Found::Names(names) if any || kind == RecordType::PTR => {
            out.answers
                .extend(names.iter().map(|n| record(RData::PTR(PTR(zone.full(n))))));
        }
        Found::Apex => {
            if any || kind == RecordType::SOA {
                out.answers.push(record(RData::SOA(authority(zone))));
            }
            if any || kind == RecordType::NS {
                out.answers.push(record(RData::NS(NS(zone.server()))));
            }
        }
        Found::NxDomain => out.metadata.response_code = ResponseCode::NXDomain,
        Found::Names(_) | Found::NoData => {}
    }
    if out.answers.is_empty() {
        // RFC 2308: how long a denial holds is told by the SOA beside it.
        let soa = RData::SOA(authority(zone));
        out.authorities
            .push(Record::from_rdata(apex, NEGATIVE_TTL_SECONDS, soa));
    }
    Some(out)
}

fn authority(zone: &Zone) -> SOA {
    const DAY_SECONDS: i32 = 86_400;
    let (server, hour) = (zone.server(), DAY_SECONDS / 24);
    let mailbox = server
        .prepend_label("hostmaster")
        .unwrap_or_else(|_| Name::root());
    // Nobody copies the zone, so its serial number is never compared.
    SOA::new(server, mailbox, 1, hour, hour, DAY_SECONDS, NEGATIVE_TTL_SECONDS)
}

/// The bytes of a message; one too long for them is cut and says so. `None`: it cannot be written.
pub(crate) fn write(message: &Message, max_bytes: u16) -> Option<Vec<u8>> {
    let mut buffer = Vec::with_capacity(UDP_PLAIN_MAX_BYTES.into());
    let mut encoder = BinEncoder::new(&mut buffer);
    encoder.set_max_size(max_bytes);
    if message.emit(&mut encoder).is_ok() {
        return Some(buffer);
    }
    // Not even the question and the OPT fitted beside it.
    let mut short = message.truncate();
    short.edns = None;
    short
        .to_vec()
        .ok()
        .filter(|bytes| bytes.len() <= usize::from(max_bytes))
}

/// A question for another server, with an id of its own.
pub(crate) fn forwarded(asked: &Asked, id: u16) -> Option<Vec<u8>> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.metadata.checking_disabled = asked.checking_disabled;
    message.add_query(asked.query.clone());
    let mut edns = Edns::new();
    edns.set_max_payload(EDNS_MAX_BYTES).set_version(0);
    edns.set_dnssec_ok(asked.wants_dnssec);
    message.set_edns(edns);
    message.to_vec().ok()
}

/// Reads what another server sent; `None` unless it is the answer to just this question.
pub(crate) fn heard(bytes: &[u8], asked: &Asked, id: u16) -> Option<Message> {
    // The cheap part first: who guesses ids shall not make us decode.
    let head: [u8; 3] = bytes.get(..3)?.try_into().ok()?;
    if u16::from_be_bytes([head[0], head[1]]) != id || head[2] & IS_ANSWER == 0 {
        return None;
    }
    let message = Message::from_vec(bytes).ok()?;
    let [query] = &message.queries[..] else {
        return None;
    };
    let same = query.name() == asked.query.name()
        && query.query_type() == asked.query.query_type()
        && query.query_class() == asked.query.query_class();
    (same && message.metadata.op_code == OpCode::Query).then_some(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DesiredNetwork, Validated, plan::fixture::lab};
    use proptest::prelude::*;
    use vbm_core::NetworkMode;

    fn zone(mode: NetworkMode) -> Zone {
        let mut net = lab(mode).into_inner();
        net.spec.domain = Some("lab.example".into());
        net.ports[0].hostname = "web1".parse().unwrap();
        Zone::from(&Validated::<DesiredNetwork>::new(net).unwrap())
    }

    fn question(name: &str, kind: RecordType) -> Vec<u8> {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(name.parse().unwrap(), kind));
        message.to_vec().unwrap()
    }

    fn ask(zone: &Zone, name: &str, kind: RecordType) -> Option<Message> {
        let Read::Asked(asked) = read(&question(name, kind)) else {
            panic!("no question")
        };
        let bytes = write(&local(zone, &asked)?, 512).unwrap();
        Some(Message::from_vec(&bytes).unwrap())
    }

    #[test]
    fn a_name_that_is_there_without_that_type_and_one_that_is_not_both_bear_the_soa() {
        let zone = zone(NetworkMode::Nat);
        let there = ask(&zone, "web1.lab.example.", RecordType::AAAA).unwrap();
        let absent = ask(&zone, "web2.lab.example.", RecordType::A).unwrap();
        assert_eq!(there.metadata.response_code, ResponseCode::NoError);
        assert_eq!(absent.metadata.response_code, ResponseCode::NXDomain);
        for message in [there, absent] {
            assert!(message.answers.is_empty() && message.metadata.authoritative);
            assert_eq!(message.authorities[0].record_type(), RecordType::SOA);
            assert_eq!(message.authorities[0].name.to_string(), "lab.example.");
        }
    }

    #[test]
    fn the_names_server_leads_to_the_gateway() {
        let zone = zone(NetworkMode::Nat);
        let ns = ask(&zone, "lab.example.", RecordType::NS).unwrap();
        let RData::NS(NS(server)) = &ns.answers[0].data else {
            panic!("no NS")
        };
        let address = ask(&zone, &server.to_string(), RecordType::A).unwrap();
        assert_eq!(address.answers[0].data, RData::A(A([10, 77, 0, 1].into())));
    }

    #[test]
    fn only_a_network_with_a_way_out_says_that_it_asks_others() {
        for (mode, says) in [(NetworkMode::Nat, true), (NetworkMode::Isolated, false)] {
            let said = ask(&zone(mode), "web1.", RecordType::A).unwrap();
            assert_eq!(said.metadata.recursion_available, says);
        }
        assert!(ask(&zone(NetworkMode::Nat), "www.example.com.", RecordType::A).is_none());
    }

    #[test]
    fn what_is_no_question_is_refused_by_its_reason_or_passed_over() {
        let good = question("web1.", RecordType::A);
        assert!(matches!(read(&good), Read::Asked(_)));
        let with = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            match read(&bytes) {
                Read::Refused(said, _) => Message::from_vec(&said)
                    .unwrap()
                    .metadata
                    .response_code
                    .to_string(),
                Read::Dropped(why) => why.to_owned(),
                Read::Asked(_) => "asked".to_owned(),
            }
        };
        assert_eq!(with(2, 0x80), "it is an answer");
        assert_eq!(with(2, 0x28), ResponseCode::NotImp.to_string(), "an update");
        assert_eq!(with(5, 2), ResponseCode::FormErr.to_string(), "two questions");
        assert_eq!(with(7, 1), ResponseCode::FormErr.to_string(), "an answer within");
        assert_eq!(
            with(good.len() - 1, 3),
            ResponseCode::Refused.to_string(),
            "class CHAOS"
        );
        assert!(matches!(
            read(&question("lab.example.", RecordType::AXFR)),
            Read::Refused(..)
        ));
        assert!(matches!(read(&good[..11]), Read::Dropped(_)));
    }

    #[test]
    fn an_answer_that_does_not_fit_is_cut_and_says_so() {
        let mut net = lab(NetworkMode::Nat).into_inner();
        let mut template = net.ports[0].clone();
        template.hostname = "many".parse().unwrap();
        net.ports = (0..100u8)
            .map(|i| crate::DesiredPort {
                id: vbm_core::PortId::from_uuid(uuid::Uuid::from_u128(u128::from(i) + 1)),
                mac: vbm_core::Mac::local(u32::from(i)),
                address: [10, 77, 0, 100 + i].into(),
                ..template.clone()
            })
            .collect();
        net.forwards.clear();
        let zone = Zone::from(&Validated::<DesiredNetwork>::new(net).unwrap());
        let Read::Asked(asked) = read(&question("many.", RecordType::A)) else {
            panic!("no question")
        };
        let whole = local(&zone, &asked).unwrap();
        let short = write(&whole, 512).unwrap();
        assert!(short.len() <= 512);
        assert!(Message::from_vec(&short).unwrap().metadata.truncation);
        let long = Message::from_vec(&write(&whole, u16::MAX).unwrap()).unwrap();
        assert!(!long.metadata.truncation && long.answers.len() == 100);
    }

    #[test]
    fn an_answer_to_another_question_is_not_heard() {
        let Read::Asked(asked) = read(&question("www.example.com.", RecordType::A)) else {
            panic!("no question")
        };
        let said = |asked: &Asked| write(&answer(asked, ResponseCode::NoError), 512).unwrap();
        assert!(heard(&said(&asked), &asked, 7).is_some());
        assert!(heard(&said(&asked), &asked, 8).is_none(), "another id");
        let Read::Asked(other) = read(&question("www.example.org.", RecordType::A)) else {
            panic!("no question")
        };
        assert!(heard(&said(&other), &asked, 7).is_none(), "another name");
        assert!(
            heard(&forwarded(&asked, 7).unwrap(), &asked, 7).is_none(),
            "our own question"
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let zone = zone(NetworkMode::Nat);
            if let Read::Asked(asked) = read(&bytes) {
                local(&zone, &asked).map(|m| write(&m, asked.udp_max));
            }
        }

        #[test]
        fn no_bytes_behind_a_good_header_make_it_panic_and_no_answer_is_too_long(rest in prop::collection::vec(any::<u8>(), 0..300)) {
            let zone = zone(NetworkMode::Nat);
            let mut bytes = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
            bytes.extend(rest);
            match read(&bytes) {
                Read::Asked(asked) => if let Some(out) = local(&zone, &asked).and_then(|m| write(&m, asked.udp_max)) {
                    prop_assert!(out.len() <= usize::from(asked.udp_max));
                },
                Read::Refused(out, _) => prop_assert!(out.len() <= 512),
                Read::Dropped(_) => {}
            }
        }
    }
}
