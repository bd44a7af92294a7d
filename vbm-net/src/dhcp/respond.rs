//! What the server answers: a pure function, one table of RFC 2131.
//!
//! | the client sends | and | the server |
//! |---|---|---|
//! | DISCOVER | | OFFER; ACK where both sides want it rapid |
//! | REQUEST with server id (SELECTING) | of another server | is silent: another was chosen |
//! | | ours, for its address | ACK |
//! | | ours, for another | NAK |
//! | REQUEST with requested address only (INIT-REBOOT) | its address | ACK |
//! | | another, or of another network | NAK |
//! | | no lease of it is known | is silent; NAK if nobody else serves here |
//! | REQUEST with `ciaddr` only (RENEW, REBIND) | its address | ACK |
//! | | another | NAK |
//! | DECLINE, RELEASE | to us, of its address | remembers it; no reply |
//! | INFORM | from its address | ACK without address and times |
//! | anything | from a MAC that is no port's, without a pool | is silent |
//!
//! "Its address" is that of the port with this MAC; of a client that is no port, what the pool of its network has for it.
//!
//! Where the reply goes is section 4.1: to the relay, if it came by one; NAK by broadcast; to `ciaddr` if there is one; by broadcast
//! if the flag asks for it; else to the new address at the client's MAC, without ARP.

use super::{
    Leases, Reason, Reservation, ServerConfig, Subnet,
    book::{Book, Change, ClientKey, LeaseRecord},
    request::{Kind, Request},
};
use crate::LeaseSeen;
use std::{collections::HashMap, net::Ipv4Addr, time::Duration};
use vbm_core::{Mac, PortId, Timestamp};

/// The most relays that a message may pass (RFC 1542 section 4.1.1).
pub const HOPS_MAX: u8 = 16;
/// The shortest lease that a client can ask for.
pub const LEASE_MIN: Duration = Duration::from_secs(60);
/// The MAC of everybody.
pub const EVERYBODY: Mac = Mac::new([0xff; 6]);

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
    /// For how long; `None`: not told, to INFORM and in NAK.
    pub lease: Option<Duration>,
    /// The server identifier (54).
    pub server_id: Ipv4Addr,
    /// The network whose settings are told, by an address of it.
    pub subnet: Ipv4Addr,
    /// Whether it is the ACK of RFC 4039.
    pub rapid: bool,
    /// The MAC it is sent to.
    pub to_mac: Mac,
    /// The IP address it is sent to.
    pub to: Ipv4Addr,
    /// The UDP port it is sent to.
    pub to_port: u16,
}

/// What became known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A port took or renewed its address.
    Leased(PortId, LeaseSeen),
    /// A port gave it back.
    Released(PortId, Ipv4Addr),
    /// A port found another user of it. It is not answered until then.
    Declined(PortId, Ipv4Addr, Timestamp),
    /// Of a client of a pool.
    Client(Change),
}

/// What to do about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The reply, if any.
    pub reply: Option<Reply>,
    /// What became known, if anything.
    pub outcome: Option<Outcome>,
    /// Why.
    pub why: Reason,
}

/// How a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The MAC that the frame came from.
    pub source: Mac,
    /// The IP address that it came from; 0.0.0.0 of who has none yet.
    pub from: Ipv4Addr,
    /// The IP address that it was sent to.
    pub to: Ipv4Addr,
}

/// What the server remembers. Deciding reads it, [`State::apply`] alone changes it.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// What guests were last told.
    pub leases: Leases,
    /// Ports that are not answered before this time: somebody else uses their address.
    pub resting: HashMap<PortId, Timestamp>,
    /// The pools.
    pub book: Book,
}

impl State {
    /// Makes it so.
    pub fn apply(&mut self, config: &ServerConfig, outcome: &Outcome) {
        match outcome {
            Outcome::Leased(port, lease) => {
                self.resting.remove(port);
                self.leases.insert(*port, *lease);
            }
            Outcome::Released(port, _) => {
                self.leases.remove(port);
            }
            Outcome::Declined(port, _, until) => {
                self.leases.remove(port);
                self.resting.insert(*port, *until);
            }
            Outcome::Client(change) => self.book.apply(config, change),
        }
    }
}

/// Who asks: the binding that a decision rests on.
enum Client<'a> {
    Port(&'a Reservation),
    Pool(ClientKey),
}

struct Case<'a> {
    config: &'a ServerConfig,
    state: &'a State,
    subnet: &'a Subnet,
    client: Client<'a>,
    request: &'a Request,
    arrival: Arrival,
    now: Timestamp,
}

const fn silent(why: Reason) -> Decision {
    Decision {
        reply: None,
        outcome: None,
        why,
    }
}

/// Decides. Reads no clock and no network: the same arguments give the same answer.
pub fn respond(
    config: &ServerConfig,
    state: &State,
    request: &Request,
    arrival: Arrival,
    now: Timestamp,
) -> Decision {
    let subnet = match subnet(config, request, arrival) {
        Ok(subnet) => subnet,
        Err(why) => return silent(why),
    };
    let port = config
        .ports
        .get(request.mac)
        .filter(|p| subnet.net.contains(&p.address));
    let client = match port {
        Some(port) => Client::Port(port),
        None if subnet.pool.is_some() => Client::Pool(ClientKey::of(request, config.key)),
        None => return silent(Reason::UnknownMac),
    };
    let case = Case {
        config,
        state,
        subnet,
        client,
        request,
        arrival,
        now,
    };
    if case.rests() {
        return silent(Reason::Quarantined);
    }
    match request.kind {
        Kind::Discover => case.discover(),
        Kind::Request => case.request(),
        Kind::Decline => case.decline(),
        Kind::Release => case.release(),
        Kind::Inform => case.inform(),
    }
}

/// The network that the client is on: link selection (RFC 3527) beats subnet selection (RFC 3011) beats the relay's own address.
/// Who is on the wire is of the link's network, whatever else it says.
fn subnet<'a>(config: &'a ServerConfig, request: &Request, arrival: Arrival) -> Result<&'a Subnet, Reason> {
    if request.relayed() {
        if !config.relays.trusts(request.giaddr) {
            return Err(Reason::RelayNotTrusted);
        }
        if request.hops > HOPS_MAX {
            return Err(Reason::TooManyHops);
        }
        let link = request
            .link_selection()
            .or(request.subnet)
            .unwrap_or(request.giaddr);
        return config.subnet_of(link).ok_or(Reason::NoSubnet);
    }
    if request.mac == arrival.source {
        return Ok(&config.link);
    }
    let behind = config
        .behind
        .iter()
        .find(|s| config.relays.any() && s.net.contains(&request.ciaddr));
    behind
        .filter(|_| came_by_router(config, request, arrival))
        .ok_or(Reason::ForeignMac)
}

/// Whether a frame is a router's, which brought what a client behind it sent with its own address (section 4.3.2, RENEWING; 4.4.6). What
/// is broadcast no router brings: that comes by a relay. A frame of a port of ours is that port's, whatever it says.
fn came_by_router(config: &ServerConfig, request: &Request, arrival: Arrival) -> bool {
    let by_unicast = matches!(request.kind, Kind::Request | Kind::Release | Kind::Inform);
    by_unicast
        && arrival.to == config.address
        && arrival.from == request.ciaddr
        && config.ports.get(arrival.source).is_none()
}

impl Case<'_> {
    fn rests(&self) -> bool {
        match &self.client {
            Client::Port(port) => self
                .state
                .resting
                .get(&port.port)
                .is_some_and(|until| *until > self.now),
            Client::Pool(_) => false,
        }
    }

    /// Under which identifier this client knows us.
    fn server_id(&self) -> Ipv4Addr {
        let trusted = self.request.relayed();
        let other = self.request.server_id_override().filter(|_| trusted);
        other.unwrap_or(self.config.address)
    }

    fn is_for_us(&self) -> bool {
        self.request
            .server_id
            .is_none_or(|id| id == self.server_id() || id == self.config.address)
    }

    /// As long as the client wishes, but not longer than the network allows.
    fn lease(&self) -> Duration {
        let most = self.subnet.settings.lease;
        let wish = self.request.lease.map(|s| Duration::from_secs(s.into()));
        wish.map_or(most, |wish| wish.clamp(LEASE_MIN.min(most), most))
    }

    fn discover(&self) -> Decision {
        let address = match &self.client {
            Client::Port(port) => Some(port.address),
            Client::Pool(key) => {
                self.state
                    .book
                    .pick(self.config, self.subnet, key, self.request.requested, self.now)
            }
        };
        let Some(address) = address else {
            return silent(Reason::PoolExhausted);
        };
        if self.config.rapid_commit && self.request.rapid_commit {
            let mut decision = self.lease_to(address, Reason::RapidlyCommitted);
            if let Some(reply) = &mut decision.reply {
                reply.rapid = true;
            }
            return decision;
        }
        let outcome = match &self.client {
            Client::Port(_) => None,
            // An offer to who holds it already must not shorten what it holds.
            Client::Pool(key) if self.state.book.is_bound(key, address, self.now) => None,
            Client::Pool(key) => Some(Outcome::Client(Change::Offer(LeaseRecord {
                address,
                client: Some(key.clone()),
                until: self.now.plus(self.config.offer_hold),
            }))),
        };
        Decision {
            reply: Some(self.reply(ReplyKind::Offer, address, Some(self.lease()))),
            outcome,
            why: Reason::Offered,
        }
    }

    /// RFC 2131 section 4.3.2: which of the four states the client is in shows in what it fills in.
    fn request(&self) -> Decision {
        let has_ciaddr = !self.request.ciaddr.is_unspecified();
        let (asked, why) = match (self.request.server_id, self.request.requested) {
            (Some(_), _) if !self.is_for_us() => return silent(Reason::OtherServer),
            (Some(_), Some(asked)) => (asked, Reason::Selected),
            (None, Some(asked)) if !has_ciaddr => (asked, Reason::Rebooted),
            (None, _) if has_ciaddr && self.arrival.to == Ipv4Addr::BROADCAST => {
                (self.request.ciaddr, Reason::Rebound)
            }
            (None, _) if has_ciaddr => (self.request.ciaddr, Reason::Renewed),
            _ => return silent(Reason::NothingAsked),
        };
        let selected = why == Reason::Selected;
        match &self.client {
            Client::Port(port) if port.address == asked => self.lease_to(asked, why),
            _ if !self.subnet.net.contains(&asked) => self.nak(Reason::NakNetwork),
            Client::Port(_) => self.nak(Reason::NakAddress),
            Client::Pool(key) => {
                let held = self.state.book.held(self.subnet, key);
                let may = self
                    .state
                    .book
                    .may_have(self.config, self.subnet, key, asked, self.now);
                match held {
                    Some(held) if held == asked && may => self.lease_to(asked, why),
                    // An offer is forgotten by a restart, and the client took it from us: it is free, let it have it.
                    None if selected && may => self.lease_to(asked, why),
                    Some(_) => self.nak(Reason::NakAddress),
                    None if selected => self.nak(Reason::NakAddress),
                    None if self.config.authoritative => self.nak(Reason::NakUnknown),
                    None => silent(Reason::UnknownLease),
                }
            }
        }
    }

    /// Whether a client has an address of the network that it is on.
    fn is_bound(&self, key: &ClientKey, address: Ipv4Addr) -> bool {
        self.subnet.net.contains(&address) && self.state.book.is_bound(key, address, self.now)
    }

    fn decline(&self) -> Decision {
        let Some(address) = self.request.requested.filter(|_| self.is_for_us()) else {
            return silent(Reason::NotHeld);
        };
        let outcome = match &self.client {
            Client::Port(port) if port.address == address => {
                Outcome::Declined(port.port, address, self.now.plus(self.config.port_quarantine))
            }
            Client::Pool(key) if self.is_bound(key, address) => {
                Outcome::Client(Change::Decline(LeaseRecord {
                    address,
                    client: None,
                    until: self.now.plus(self.config.pool_quarantine),
                }))
            }
            _ => return silent(Reason::NotHeld),
        };
        Decision {
            reply: None,
            outcome: Some(outcome),
            why: Reason::Declined,
        }
    }

    fn release(&self) -> Decision {
        let address = self.request.ciaddr;
        let outcome = match &self.client {
            _ if !self.is_for_us() => return silent(Reason::NotHeld),
            Client::Port(port) if port.address == address && self.state.leases.contains_key(&port.port) => {
                Outcome::Released(port.port, address)
            }
            Client::Pool(key) if self.is_bound(key, address) => {
                Outcome::Client(Change::Release(LeaseRecord {
                    address,
                    client: Some(key.clone()),
                    until: self.now,
                }))
            }
            _ => return silent(Reason::NotHeld),
        };
        Decision {
            reply: None,
            outcome: Some(outcome),
            why: Reason::Released,
        }
    }

    fn inform(&self) -> Decision {
        let from = self.request.ciaddr;
        let its_own = match &self.client {
            Client::Port(port) => port.address == from,
            // It may have its address by hand, as long as it is no port's.
            Client::Pool(_) => self.subnet.net.contains(&from) && !self.config.ports.has_address(from),
        };
        if !its_own {
            return silent(Reason::InformForeign);
        }
        Decision {
            reply: Some(self.reply(ReplyKind::Ack, Ipv4Addr::UNSPECIFIED, None)),
            outcome: None,
            why: Reason::Informed,
        }
    }

    fn lease_to(&self, address: Ipv4Addr, why: Reason) -> Decision {
        let lease = self.lease();
        let until = self.now.plus(lease);
        let outcome = match &self.client {
            Client::Port(port) => Outcome::Leased(
                port.port,
                LeaseSeen {
                    address,
                    since: self.now,
                    until,
                },
            ),
            Client::Pool(key) => Outcome::Client(Change::Bind(LeaseRecord {
                address,
                client: Some(key.clone()),
                until,
            })),
        };
        Decision {
            reply: Some(self.reply(ReplyKind::Ack, address, Some(lease))),
            outcome: Some(outcome),
            why,
        }
    }

    fn nak(&self, why: Reason) -> Decision {
        Decision {
            reply: Some(self.reply(ReplyKind::Nak, Ipv4Addr::UNSPECIFIED, None)),
            outcome: None,
            why,
        }
    }

    fn reply(&self, kind: ReplyKind, yiaddr: Ipv4Addr, lease: Option<Duration>) -> Reply {
        let (request, source) = (self.request, self.arrival.source);
        let (to_mac, to, to_port) = if request.relayed() {
            // Back to who brought the frame, which is the relay or the way to it.
            (source, request.giaddr, super::SERVER_PORT)
        } else if kind == ReplyKind::Nak {
            (EVERYBODY, Ipv4Addr::BROADCAST, super::CLIENT_PORT)
        } else if !request.ciaddr.is_unspecified() {
            (source, request.ciaddr, super::CLIENT_PORT)
        } else if request.wants_broadcast() || yiaddr.is_unspecified() {
            (EVERYBODY, Ipv4Addr::BROADCAST, super::CLIENT_PORT)
        } else {
            (request.mac, yiaddr, super::CLIENT_PORT)
        };
        Reply {
            kind,
            yiaddr,
            lease,
            server_id: self.server_id(),
            subnet: self.subnet.net.network(),
            rapid: false,
            to_mac,
            to,
            to_port,
        }
    }
}
