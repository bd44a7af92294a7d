//! A reply as bytes. The order of options is ours, because it is the client's (RFC 2132 section 9.8), and option 82 comes last
//! (RFC 3046 section 2.2).
//!
//! ```text
//!   head | 53 54 [51 58 59] [80] [52] | what the client asked for, in its order | 81 97 60 61 82 | end
//!                                          what does not fit goes on in `file`, then in `sname` (RFC 2132 section 9.3);
//!                                          what does not fit there either is left out
//! ```

use super::{
    DATAGRAM_HEADER_BYTES, DATAGRAM_MIN_MAX_BYTES, MESSAGE_MIN_BYTES, Reservation, ServerConfig,
    options::{FILE, FIXED_BYTES, SNAME, code, put, put_bytes},
    parameters::{Told, order, parameter, unasked},
    request::{FLAG_BROADCAST, Request},
    respond::{Reply, ReplyKind},
};
use dhcproto::{
    Encodable, Encoder,
    error::EncodeError,
    v4::{HType, Message, MessageType, Opcode},
};
use std::{net::Ipv4Addr, ops::Range, time::Duration};

/// RFC 2131 section 4.4.5: renew at a half of the lease, rebind at seven eighths.
const RENEW_AT_EIGHTHS: u32 = 4;
const REBIND_AT_EIGHTHS: u32 = 7;
/// What option 52 takes.
const OVERLOAD_BYTES: usize = 3;

/// The UDP payload of a reply.
///
/// # Errors
/// What dhcproto refuses to encode; nothing that a validated network can hold.
pub fn encode(
    config: &ServerConfig,
    port: Option<&Reservation>,
    request: &Request,
    reply: &Reply,
) -> Result<Vec<u8>, EncodeError> {
    let subnet = config.subnet_of(reply.subnet).unwrap_or(&config.link);
    let told = Told::new(config.address, subnet, port, request);
    let mut bytes = Vec::with_capacity(MESSAGE_MIN_BYTES);
    head(request, reply, &told).encode(&mut Encoder::new(&mut bytes))?;
    bytes.truncate(FIXED_BYTES);
    leading(&mut bytes, reply);
    let nak = reply.kind == ReplyKind::Nak;
    let mut tail = Vec::new();
    for (code, data) in unasked(&told, nak) {
        put(&mut tail, code, &data);
    }
    for (code, data) in [
        (code::CLIENT_ID, &request.client_id),
        (code::RELAY_AGENT, &request.relay_agent),
    ] {
        if let Some(data) = data {
            put(&mut tail, code, data);
        }
    }
    tail.push(code::END);
    if !nak {
        let most = limit(request, subnet.settings.mtu).saturating_sub(tail.len());
        middle(&mut bytes, &told, most);
    }
    bytes.append(&mut tail);
    if bytes.len() < MESSAGE_MIN_BYTES {
        bytes.resize(MESSAGE_MIN_BYTES, 0);
    }
    Ok(bytes)
}

/// The most bytes of a message: what the client takes, and what the link carries in one piece.
fn limit(request: &Request, mtu: u16) -> usize {
    let link = if mtu == 0 { DATAGRAM_MIN_MAX_BYTES } else { mtu };
    let datagram = request
        .max_size
        .unwrap_or(0)
        .min(link)
        .max(DATAGRAM_MIN_MAX_BYTES);
    usize::from(datagram - DATAGRAM_HEADER_BYTES)
}

fn head(request: &Request, reply: &Reply, told: &Told<'_>) -> Message {
    let none = Ipv4Addr::UNSPECIFIED;
    let ciaddr = if reply.kind == ReplyKind::Ack {
        request.ciaddr
    } else {
        none
    };
    let server = if reply.kind == ReplyKind::Nak {
        none
    } else {
        told.boot.and_then(|b| b.server).unwrap_or(none)
    };
    let mut flags = request.flags;
    if reply.kind == ReplyKind::Nak && request.relayed() {
        // So that the relay does not send it to an address that the client must not have (RFC 2131 section 4.3.2).
        flags |= FLAG_BROADCAST;
    }
    let mut message = Message::new_with_id(
        request.xid,
        ciaddr,
        reply.yiaddr,
        server,
        request.giaddr,
        &request.mac.octets(),
    );
    message
        .set_opcode(Opcode::BootReply)
        .set_htype(HType::Eth)
        .set_flags(flags.into());
    if let Some(name) = told.boot_file.filter(|f| f.len() < FILE.len()) {
        message.set_fname(name.as_bytes());
    }
    message
}

/// What the protocol itself needs, first.
fn leading(bytes: &mut Vec<u8>, reply: &Reply) {
    let kind = match reply.kind {
        ReplyKind::Offer => MessageType::Offer,
        ReplyKind::Ack => MessageType::Ack,
        ReplyKind::Nak => MessageType::Nak,
    };
    put(bytes, code::MESSAGE_TYPE, &[kind.into()]);
    put(bytes, code::SERVER_ID, &reply.server_id.octets());
    if let Some(lease) = reply.lease {
        for (code, seconds) in times(lease) {
            put(bytes, code, &seconds.to_be_bytes());
        }
    }
    if reply.rapid {
        put(bytes, code::RAPID_COMMIT, &[]);
    }
}

/// The lease, and when to renew and to rebind it.
fn times(lease: Duration) -> [(u8, u32); 3] {
    let lease = u32::try_from(lease.as_secs()).unwrap_or(u32::MAX);
    let eighths = |n: u32| lease / 8 * n + lease % 8 * n / 8;
    [
        (code::LEASE_TIME, lease),
        (code::RENEWAL, eighths(RENEW_AT_EIGHTHS)),
        (code::REBINDING, eighths(REBIND_AT_EIGHTHS)),
    ]
}

/// What the client asked for, up to `most` bytes in all; what is over goes into the two fields of the head that nobody needs.
fn middle(bytes: &mut Vec<u8>, told: &Told<'_>, most: usize) {
    let wanted: Vec<(u8, Vec<u8>)> = order(told)
        .into_iter()
        .filter_map(|code| parameter(told, code).map(|data| (code, data)))
        .collect();
    let all: usize = wanted.iter().map(|(_, data)| put_bytes(data)).sum();
    if bytes.len() + all <= most {
        for (code, data) in &wanted {
            put(bytes, *code, data);
        }
        return;
    }
    let Some(room) = most.checked_sub(bytes.len() + OVERLOAD_BYTES) else {
        // The client's own id and its relay's words fill the message.
        return;
    };
    let mut fields = Vec::new();
    if told.boot_file.is_none() {
        fields.push((1, FILE, Vec::new()));
    }
    fields.push((2, SNAME, Vec::new()));
    let mut main = Vec::new();
    for (code, data) in &wanted {
        let length = put_bytes(data);
        if main.len() + length <= room {
            put(&mut main, *code, data);
        } else if let Some((_, _, field)) = fields
            .iter_mut()
            // One byte for its end.
            .find(|(_, place, field)| field.len() + length < place.len())
        {
            put(field, *code, data);
        }
    }
    let used = fields.iter().filter(|(_, _, f)| !f.is_empty());
    let overload: u8 = used.clone().map(|(bit, _, _)| bit).sum();
    if overload != 0 {
        put(bytes, code::OVERLOAD, &[overload]);
    }
    bytes.append(&mut main);
    for (_, place, field) in used {
        fill(bytes, place.clone(), field);
    }
}

fn fill(bytes: &mut [u8], place: Range<usize>, field: &[u8]) {
    let ended = field.iter().copied().chain([code::END]);
    for (to, from) in bytes.iter_mut().skip(place.start).zip(ended) {
        *to = from;
    }
}
