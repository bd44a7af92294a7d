//! What the server answers: a pure function, one table of RFC 2131.
//!
//! | the client sends | and | the server |
//! |---|---|---|
//! | DISCOVER | | OFFER |
//! | REQUEST with server id (SELECTING) | of another server | is silent: another was chosen |
//! | | ours, for the port's address | ACK |
//! | | ours, for another | NAK |
//! | REQUEST with requested address only (INIT-REBOOT) | the port's | ACK |
//! | | another, or of another network | NAK |
//! | REQUEST with `ciaddr` only (RENEW, REBIND) | the port's | ACK |
//! | | another | NAK |
//! | DECLINE, RELEASE | to us, of the port's address | remembers it; no reply |
//! | INFORM | from the port's address | ACK without address and times |
//! | anything | from a MAC that is no port's | is silent |
//!
//! Where the reply goes is section 4.1: NAK by broadcast; to `ciaddr` if there is one; by broadcast if the flag asks for it;
//! else to the new address at the client's MAC, without ARP.

use super::{
    Leases, Reservation, ServerConfig,
    request::{Kind, Request},
};
use crate::LeaseSeen;
use std::net::Ipv4Addr;
use vbm_core::{Mac, PortId, Timestamp};

/// The sort of reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the name of a DHCP message")]
pub enum ReplyKind {
    Offer,
    Ack,
    Nak,
}

/// A reply, before it is bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Which.
    pub kind: ReplyKind,
    /// The client's new address; 0.0.0.0 in NAK and in the answer to INFORM.
    pub yiaddr: Ipv4Addr,
    /// Whether lease times are told: not to INFORM, not in NAK.
    pub times: bool,
    /// The MAC it is sent to.
    pub to_mac: Mac,
    /// The IP address it is sent to.
    pub to: Ipv4Addr,
}

/// What became known of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It took or renewed its address.
    Leased(PortId, LeaseSeen),
    /// It gave it back.
    Released(PortId, Ipv4Addr),
    /// It found another user of it.
    Declined(PortId, Ipv4Addr),
}

/// What to do about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The reply, if any.
    pub reply: Option<Reply>,
    /// What became known, if anything.
    pub outcome: Option<Outcome>,
    /// Why, for the log.
    pub why: &'static str,
}

fn silent(why: &'static str) -> Decision {
    Decision {
        reply: None,
        outcome: None,
        why,
    }
}

/// Decides. `source` is the MAC that the frame came from.
pub fn respond(
    config: &ServerConfig,
    leases: &Leases,
    request: &Request,
    source: Mac,
    now: Timestamp,
) -> Decision {
    if !request.giaddr.is_unspecified() {
        return silent("it came by a relay, and there are none here");
    }
    if request.mac != source {
        return silent("it speaks for another MAC than its own");
    }
    let Some(port) = config.ports.get(&request.mac) else {
        return silent("its MAC is no port's of this host");
    };
    match request.kind {
        Kind::Discover => answer(config, port, request, ReplyKind::Offer, "it looks for a server"),
        Kind::Request => on_request(config, port, request, now),
        Kind::Decline => match (ours(config, request), request.requested) {
            (true, Some(address)) if address == port.address => Decision {
                reply: None,
                outcome: Some(Outcome::Declined(port.port, address)),
                why: "it found another user of its address",
            },
            _ => silent("it declines what we did not give"),
        },
        Kind::Release => {
            if ours(config, request) && request.ciaddr == port.address && leases.contains_key(&port.port) {
                Decision {
                    reply: None,
                    outcome: Some(Outcome::Released(port.port, port.address)),
                    why: "it gives its address back",
                }
            } else {
                silent("it releases what we did not give")
            }
        }
        Kind::Inform if request.ciaddr == port.address => {
            answer(config, port, request, ReplyKind::Ack, "it asks for settings")
        }
        Kind::Inform => silent("it asks for settings from a foreign address"),
    }
}

/// RFC 2131 section 4.3.2: which of the four states the client is in shows in what it fills in.
fn on_request(config: &ServerConfig, port: &Reservation, request: &Request, now: Timestamp) -> Decision {
    let has_ciaddr = !request.ciaddr.is_unspecified();
    let (asked, why) = match (request.server_id, request.requested) {
        (Some(id), _) if id != config.address => return silent("it chose another server"),
        (Some(_), Some(asked)) => (asked, "SELECTING"),
        (None, Some(asked)) if !has_ciaddr => (asked, "INIT-REBOOT"),
        (None, _) if has_ciaddr => (request.ciaddr, "RENEWING or REBINDING"),
        _ => return silent("it asks for no address"),
    };
    if asked != port.address {
        return answer(
            config,
            port,
            request,
            ReplyKind::Nak,
            "it asks for an address that is not its port's",
        );
    }
    let until = now.plus(config.lease);
    let lease = LeaseSeen {
        address: asked,
        since: now,
        until,
    };
    let outcome = Some(Outcome::Leased(port.port, lease));
    Decision {
        outcome,
        ..answer(config, port, request, ReplyKind::Ack, why)
    }
}

fn ours(config: &ServerConfig, request: &Request) -> bool {
    request.server_id.is_none_or(|id| id == config.address)
}

fn answer(
    _config: &ServerConfig,
    port: &Reservation,
    request: &Request,
    kind: ReplyKind,
    why: &'static str,
) -> Decision {
    const EVERYBODY: Mac = Mac::new([0xff; 6]);
    let inform = request.kind == Kind::Inform;
    let nothing = Ipv4Addr::UNSPECIFIED;
    let (to_mac, to) = if kind == ReplyKind::Nak {
        (EVERYBODY, Ipv4Addr::BROADCAST)
    } else if !request.ciaddr.is_unspecified() {
        (request.mac, request.ciaddr)
    } else if request.wants_broadcast() {
        (EVERYBODY, Ipv4Addr::BROADCAST)
    } else {
        (request.mac, port.address)
    };
    let reply = Reply {
        kind,
        yiaddr: if kind == ReplyKind::Nak || inform {
            nothing
        } else {
            port.address
        },
        times: kind != ReplyKind::Nak && !inform,
        to_mac,
        to,
    };
    Decision {
        reply: Some(reply),
        outcome: None,
        why,
    }
}
