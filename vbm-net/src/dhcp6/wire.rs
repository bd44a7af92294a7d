//! A reply as the bytes of a DHCPv6 message. Pure.

use super::{
    ServerConfig,
    options::{NTP_SERVER_ADDRESS, addresses, code, put},
    request::{Kind, Request, Use},
    respond::{Grant, Reply, ReplyKind, Status},
};
use crate::dhcp::options::wire_name;
use std::{net::Ipv6Addr, time::Duration};

/// The least MTU of IPv6 (RFC 8200 section 5), in bytes.
const MTU_MIN_BYTES: u16 = 1_280;
/// What of it is IPv6 and UDP.
const HEADER_BYTES: usize = 48;
/// The preference of a server beside which there is none: the client does not wait for others (RFC 8415 section 18.2.1).
const PREFERENCE_MAX: u8 = 255;
/// When a client asks its server to go on, and when any server, in parts of the preferred lifetime (RFC 8415 section 21.4).
const T1_PERCENT: u32 = 50;
const T2_PERCENT: u32 = 80;

/// The message. Settings that do not fit the link's MTU are left out, from the least wanted on.
pub fn encode(config: &ServerConfig, request: &Request, reply: &Reply) -> Vec<u8> {
    let mut out = request.transaction.to_be_bytes().to_vec();
    if let Some(kind) = out.first_mut() {
        *kind = reply.kind as u8;
    }
    put(&mut out, code::SERVER_ID, |out| out.extend(&config.duid));
    if let Some(id) = &request.client_id {
        put(&mut out, code::CLIENT_ID, |out| out.extend(id));
    }
    if let Some(code) = reply.status {
        status(&mut out, code);
    }
    if reply.rapid {
        put(&mut out, code::RAPID_COMMIT, |_| {});
    }
    let offers = reply.grants.is_empty() || reply.grants.iter().any(|g| g.given.is_some());
    if reply.kind == ReplyKind::Advertise && config.authoritative && offers {
        put(&mut out, code::PREFERENCE, |out| out.push(PREFERENCE_MAX));
    }
    for grant in &reply.grants {
        association(&mut out, config, grant);
    }
    if reply.settings {
        settings(&mut out, config, request);
    }
    out
}

fn status(out: &mut Vec<u8>, code: Status) {
    let text = match code {
        Status::Success => "",
        Status::NoAddresses => "there is one address for each port",
        Status::NoBinding => "it is not this port's",
        Status::NotOnLink => "it is of another network",
        Status::UseMulticast => "ask ff02::1:2",
        Status::NoPrefixes => "no prefix is delegated",
    };
    put(out, code::STATUS, |out| {
        out.extend((code as u16).to_be_bytes());
        out.extend(text.bytes());
    });
}

fn association(out: &mut Vec<u8>, config: &ServerConfig, grant: &Grant) {
    let option = match grant.use_for {
        Use::Addresses => code::IA_NA,
        Use::Temporary => code::IA_TA,
        Use::Prefixes => code::IA_PD,
    };
    let preferred = config.settings.preferred.min(config.settings.valid);
    put(out, option, |out| {
        out.extend(grant.iaid.to_be_bytes());
        if grant.use_for != Use::Temporary {
            let part = |percent: u32| match grant.given {
                Some(_) => seconds(preferred * percent / 100),
                None => 0,
            };
            out.extend(part(T1_PERCENT).to_be_bytes());
            out.extend(part(T2_PERCENT).to_be_bytes());
        }
        if let Some(given) = grant.given {
            address(out, given, preferred, config.settings.valid);
        }
        for ended in &grant.ended {
            address(out, *ended, Duration::ZERO, Duration::ZERO);
        }
        if let Some(code) = grant.status {
            status(out, code);
        }
    });
}

fn address(out: &mut Vec<u8>, address: Ipv6Addr, preferred: Duration, valid: Duration) {
    put(out, code::IA_ADDRESS, |out| {
        out.extend(address.octets());
        out.extend(seconds(preferred).to_be_bytes());
        out.extend(seconds(valid).to_be_bytes());
    });
}

fn seconds(span: Duration) -> u32 {
    u32::try_from(span.as_secs()).unwrap_or(u32::MAX)
}

/// What the client wants to be told, and there is.
fn settings(out: &mut Vec<u8>, config: &ServerConfig, request: &Request) {
    let told = &config.settings;
    let most = usize::from(told.mtu.max(MTU_MIN_BYTES)) - HEADER_BYTES;
    let fitting = |out: &mut Vec<u8>, code: u16, data: Vec<u8>| {
        if request.wants(code) && !data.is_empty() && out.len() + 4 + data.len() <= most {
            put(out, code, |out| out.extend(data));
        }
    };
    let list = |all: &[Ipv6Addr]| {
        let mut data = Vec::new();
        addresses(&mut data, all);
        data
    };
    fitting(out, code::DNS, list(&told.dns));
    if request.kind == Kind::InformationRequest {
        fitting(out, code::REFRESH, seconds(told.refresh).to_be_bytes().into());
    }
    let names = told.search.iter().filter_map(|n| wire_name(n)).flatten();
    fitting(out, code::SEARCH, names.collect());
    let mut servers = Vec::new();
    for server in &told.ntp {
        put(&mut servers, NTP_SERVER_ADDRESS, |out| {
            out.extend(server.octets())
        });
    }
    fitting(out, code::NTP, servers);
    fitting(out, code::SNTP, list(&told.ntp));
}
