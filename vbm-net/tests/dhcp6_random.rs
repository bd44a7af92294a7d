//! Any message that a DHCPv6 client could send, and what is spoilt of it: nobody is ever given what is not his, nothing panics.

#![allow(clippy::unwrap_used, reason = "a helper of a test that cannot go on panics")]

mod dhcp6_port;

use dhcp6_port::{FOREIGN, MAC, MINE, NEIGHBOUR, NOW, THEIRS, config, decide};
use dhcproto::{Decodable, Decoder, v6};
use proptest::prelude::*;
use vbm_core::Mac;
use vbm_net::{
    dhcp6::{
        ALL_SERVERS,
        options::{code, put},
        request::{Association, Kind, Request, Use, parse},
        respond::{Arrival, Outcome, State, respond},
        wire,
    },
    model::{GATEWAY_LINK_LOCAL, link_local},
};

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
