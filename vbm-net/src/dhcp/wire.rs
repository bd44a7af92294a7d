//! A reply as bytes. dhcproto encodes the head and each option; the order of options is ours, because it is the client's
//! (RFC 2132 section 9.8), and option 82 comes last (RFC 3046 section 2.2).

use super::{
    DATAGRAM_HEADER_BYTES, DATAGRAM_MIN_MAX_BYTES, MESSAGE_MIN_BYTES, Reservation, ServerConfig,
    request::Request,
    respond::{Reply, ReplyKind},
};
use dhcproto::{
    Encodable, Encoder,
    error::EncodeError,
    v4::{DhcpOption, HType, Message, MessageType, Opcode},
};
use std::net::Ipv4Addr;

const RELAY_AGENT: u8 = 82;
const CLIENT_ID: u8 = 61;
const END: u8 = 255;
/// The most data of one option (RFC 2132 section 2); more is split (RFC 3396).
const OPTION_MAX_BYTES: usize = 255;
/// RFC 2131 section 4.4.5: renew at a half of the lease, rebind at seven eighths.
const RENEW_AT_EIGHTHS: u32 = 4;
const REBIND_AT_EIGHTHS: u32 = 7;
/// What a client that asks for nothing in particular is told, after the mask.
const USUAL: [u8; 6] = [3, 6, 12, 15, 26, 28];
const SUBNET_MASK: u8 = 1;

/// The UDP payload of a reply.
///
/// # Errors
/// What dhcproto refuses to encode; nothing that a validated network can hold.
pub fn encode(
    config: &ServerConfig,
    port: &Reservation,
    request: &Request,
    reply: &Reply,
) -> Result<Vec<u8>, EncodeError> {
    let mut bytes = Vec::with_capacity(MESSAGE_MIN_BYTES);
    head(request, reply).encode(&mut Encoder::new(&mut bytes))?;
    for option in leading(config, reply) {
        put(&mut bytes, &option)?;
    }
    let mut tail = Vec::new();
    put_raw(&mut tail, CLIENT_ID, request.client_id.as_deref());
    put_raw(&mut tail, RELAY_AGENT, request.relay_agent.as_deref());
    tail.push(END);
    let limit =
        usize::from(request.max_size.unwrap_or(0).max(DATAGRAM_MIN_MAX_BYTES) - DATAGRAM_HEADER_BYTES);
    if reply.kind != ReplyKind::Nak {
        for code in order(request) {
            let mut one = Vec::new();
            if let Some(option) = parameter(config, port, code) {
                put(&mut one, &option)?;
            }
            // What the client cannot take is left out, from the least wanted on.
            if bytes.len() + one.len() + tail.len() > limit {
                break;
            }
            bytes.append(&mut one);
        }
    }
    bytes.append(&mut tail);
    if bytes.len() < MESSAGE_MIN_BYTES {
        bytes.resize(MESSAGE_MIN_BYTES, 0);
    }
    Ok(bytes)
}

fn head(request: &Request, reply: &Reply) -> Message {
    let none = Ipv4Addr::UNSPECIFIED;
    let ciaddr = if reply.kind == ReplyKind::Ack {
        request.ciaddr
    } else {
        none
    };
    let mut message = Message::new_with_id(
        request.xid,
        ciaddr,
        reply.yiaddr,
        none,
        request.giaddr,
        &request.mac.octets(),
    );
    message
        .set_opcode(Opcode::BootReply)
        .set_htype(HType::Eth)
        .set_flags(request.flags.into());
    message
}

/// What the protocol itself needs, first.
fn leading(config: &ServerConfig, reply: &Reply) -> Vec<DhcpOption> {
    let kind = match reply.kind {
        ReplyKind::Offer => MessageType::Offer,
        ReplyKind::Ack => MessageType::Ack,
        ReplyKind::Nak => MessageType::Nak,
    };
    let mut options = vec![
        DhcpOption::MessageType(kind),
        DhcpOption::ServerIdentifier(config.address),
    ];
    if reply.times {
        let lease = u32::try_from(config.lease.as_secs()).unwrap_or(u32::MAX);
        let eighths = |n: u32| lease / 8 * n + lease % 8 * n / 8;
        options.extend([
            DhcpOption::AddressLeaseTime(lease),
            DhcpOption::Renewal(eighths(RENEW_AT_EIGHTHS)),
            DhcpOption::Rebinding(eighths(REBIND_AT_EIGHTHS)),
        ]);
    }
    options
}

/// The client's order, each code once; the mask always, the usual ones where it asks for nothing.
fn order(request: &Request) -> Vec<u8> {
    let mut codes: Vec<u8> = Vec::new();
    let wish = request.parameters.as_deref().unwrap_or(&USUAL);
    let mask_first = [SUBNET_MASK];
    let (before, after): (&[u8], &[u8]) = if wish.contains(&SUBNET_MASK) {
        (&[], &[])
    } else {
        (&mask_first, &[])
    };
    for code in before.iter().chain(wish).chain(after) {
        if !codes.contains(code) {
            codes.push(*code);
        }
    }
    codes
}

fn parameter(config: &ServerConfig, port: &Reservation, code: u8) -> Option<DhcpOption> {
    match code {
        SUBNET_MASK => Some(DhcpOption::SubnetMask(config.netmask)),
        3 => config.router.map(|r| DhcpOption::Router(vec![r])),
        6 if !config.dns.is_empty() => Some(DhcpOption::DomainNameServer(config.dns.clone())),
        12 => Some(DhcpOption::Hostname(port.hostname.clone())),
        15 => config.domain.clone().map(DhcpOption::DomainName),
        26 => Some(DhcpOption::InterfaceMtu(config.mtu)),
        28 => Some(DhcpOption::BroadcastAddr(config.broadcast)),
        _ => None,
    }
}

fn put(bytes: &mut Vec<u8>, option: &DhcpOption) -> Result<(), EncodeError> {
    // dhcproto's encoder starts at the front of what it is given, so each option gets a buffer of its own.
    let mut one = Vec::new();
    option.encode(&mut Encoder::new(&mut one))?;
    bytes.append(&mut one);
    Ok(())
}

fn put_raw(bytes: &mut Vec<u8>, code: u8, data: Option<&[u8]>) {
    for part in data.unwrap_or_default().chunks(OPTION_MAX_BYTES) {
        bytes.push(code);
        bytes.push(u8::try_from(part.len()).unwrap_or(u8::MAX));
        bytes.extend(part);
    }
}
