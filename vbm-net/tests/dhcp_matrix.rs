//! Where replies go: giaddr x ciaddr x broadcast flag x message type, from frame to frame, each with its checksum. What is expected is
//! written down here again from RFC 2131 section 4.1, not taken from the server.

#![allow(clippy::unwrap_used, reason = "a helper of a test that cannot go on panics")]
#![allow(clippy::cast_possible_truncation, reason = "test values are small")]

mod dhcp_bytes;

use dhcp_bytes::{Ask, request_frame};
use std::{net::Ipv4Addr, time::Duration};
use vbm_core::{Mac, PortId, Timestamp};
use vbm_net::dhcp::{
    Relays, Reservation, ServerConfig, Subnet,
    frame::{build, checksum_is_full, parse as parse_frame},
    request::parse,
    respond::{Arrival, State, respond},
    wire,
};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
const SERVER_MAC: Mac = Mac::local(1);
const MINE: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 11);
const RELAY: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 200);
const NONE: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const MAC: Mac = Mac::local(0x77);
const RELAY_MAC: Mac = Mac::local(0xee);
const EVERYBODY: Mac = Mac::new([0xff; 6]);
const NOW: Timestamp = Timestamp::from_micros(1);

fn config() -> ServerConfig {
    let link = Subnet::new("10.1.0.0/24".parse().unwrap(), Duration::from_secs(3_600));
    let mut config = ServerConfig::new(SERVER, SERVER_MAC, link);
    config.relays = Relays::Only([RELAY].into());
    config.ports.insert(
        MAC,
        Reservation {
            port: PortId::from_uuid(uuid::Uuid::from_u128(1)),
            address: MINE,
            hostname: "vm".into(),
            metadata: false,
            boot: None,
        },
    );
    config
}

/// What goes out for what came in.
fn answer(frame: &[u8]) -> Option<Vec<u8>> {
    let config = config();
    let datagram = parse_frame(frame).unwrap();
    let request = parse(datagram.payload).unwrap();
    let arrival = Arrival {
        source: datagram.source,
        from: datagram.from,
        to: datagram.to,
    };
    let reply = respond(&config, &State::default(), &request, arrival, NOW).reply?;
    let payload = wire::encode(&config, config.ports.get(request.mac), &request, &reply).unwrap();
    build(
        (config.mac, config.address),
        (reply.to_mac, reply.to, reply.to_port),
        &payload,
    )
}

#[test]
fn each_reply_goes_where_the_rfc_sends_it_with_a_whole_checksum() {
    let mut rows = 0;
    let mut answered = 0;
    for giaddr in [NONE, RELAY] {
        for ciaddr in [NONE, MINE, OTHER] {
            for broadcast in [false, true] {
                for kind in [1u8, 3, 4, 7, 8] {
                    for requested in [None, Some(MINE), Some(OTHER)] {
                        for server_id in [None, Some(SERVER), Some(OTHER)] {
                            let ask = Ask {
                                kind,
                                mac: MAC,
                                giaddr,
                                ciaddr,
                                broadcast,
                                requested,
                                server_id,
                            };
                            let source = if giaddr == NONE { MAC } else { RELAY_MAC };
                            rows += 1;
                            answered += usize::from(check(&ask, source));
                        }
                    }
                }
            }
        }
    }
    assert_eq!(rows, 540);
    // Of the 12 ways to fill in the addresses: each of 9 DISCOVERs; of REQUESTs 8 renewing, 24 rebooting, 24 selecting;
    // each of 9 INFORMs on the 4 from the client's own address.
    assert_eq!(answered, 12 * 9 + 8 + 24 + 24 + 4 * 9);
}

/// What sort of reply the RFC wants: 2, 5, 6, or none.
fn expected_kind(ask: &Ask) -> Option<u8> {
    match ask.kind {
        1 => Some(2),
        3 => {
            let asked = match (ask.server_id, ask.requested) {
                (Some(id), _) if id != SERVER => return None,
                (Some(_), requested) => requested?,
                (None, Some(requested)) if ask.ciaddr == NONE => requested,
                (None, _) if ask.ciaddr != NONE => ask.ciaddr,
                _ => return None,
            };
            Some(if asked == MINE { 5 } else { 6 })
        }
        8 => (ask.ciaddr == MINE).then_some(5),
        _ => None,
    }
}

fn check(ask: &Ask, source: Mac) -> bool {
    let frame = request_frame(source, ask);
    let got = answer(&frame);
    let Some(kind) = expected_kind(ask) else {
        assert_eq!(got, None, "{ask:?}");
        return false;
    };
    let got = got.unwrap_or_else(|| panic!("no reply to {ask:?}"));
    let yiaddr = if kind == 6 || ask.kind == 8 { NONE } else { MINE };
    let (to_mac, to, port) = if ask.giaddr != NONE {
        (source, ask.giaddr, 67u16)
    } else if kind == 6 {
        (EVERYBODY, Ipv4Addr::BROADCAST, 68)
    } else if ask.ciaddr != NONE {
        (MAC, ask.ciaddr, 68)
    } else if ask.broadcast {
        (EVERYBODY, Ipv4Addr::BROADCAST, 68)
    } else {
        (MAC, yiaddr, 68)
    };
    assert!(checksum_is_full(&got), "{ask:?}");
    assert_eq!(got[0..6], to_mac.octets(), "{ask:?}");
    assert_eq!(got[6..12], SERVER_MAC.octets());
    assert_eq!(got[26..30], SERVER.octets());
    assert_eq!(got[30..34], to.octets(), "{ask:?}");
    assert_eq!(got[34..38], [0, 67, port.to_be_bytes()[0], port.to_be_bytes()[1]]);
    let message = &got[42..];
    assert!(message.len() >= 300);
    assert_eq!(message[0], 2);
    assert_eq!(message[16..20], yiaddr.octets(), "{ask:?}");
    assert_eq!(message[24..28], ask.giaddr.octets());
    assert_eq!(message[240..243], [53, 1, kind], "{ask:?}");
    let flag = ask.broadcast || (kind == 6 && ask.giaddr != NONE);
    assert_eq!(message[10] & 0x80 != 0, flag, "{ask:?}");
    let ciaddr = if kind == 5 { ask.ciaddr } else { NONE };
    assert_eq!(message[12..16], ciaddr.octets(), "{ask:?}");
    true
}
