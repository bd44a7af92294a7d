//! What the server answers: a pure function, one table of RFC 8415 sections 16 and 18.3.
//!
//! | the client sends | and | the server |
//! |---|---|---|
//! | SOLICIT | | ADVERTISE; REPLY where both sides want it rapid |
//! | REQUEST | for its address, or for none | REPLY with it |
//! | | for one of another network | REPLY: not on link |
//! | CONFIRM | with its address alone | REPLY: right |
//! | | with any other | REPLY: not on link, so that it asks anew |
//! | | without an address | is silent |
//! | RENEW, REBIND | | REPLY with its address; any other it has ends now |
//! | RELEASE, DECLINE | of its address | REPLY, and remembers it |
//! | | of another | REPLY: no such binding |
//! | INFORMATION-REQUEST | | REPLY with the settings |
//! | REQUEST, RENEW, RELEASE, DECLINE | to us alone | REPLY: use multicast |
//! | anything | from a MAC that is no port's with IPv6, or by a relay | is silent |
//!
//! "Its address" is that of the port with this MAC. One association gets it: the first that names it, else the first. What has to name a
//! server and names another, what must not and does, what has no client id: silence (section 16).
//!
//! CONFIRM asks only whether an address is right for the link. The link of a port carries one address, so another of its network
//! is not right either: its guest could not use it.

use super::{
    Leases, Reason, ServerConfig,
    request::{Association, Kind, Request, Use},
};
use crate::LeaseSeen6;
use std::{collections::HashMap, net::Ipv6Addr};
use vbm_core::{Mac, PortId, Timestamp};

/// The sort of reply, with its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ReplyKind {
    /// What there would be.
    Advertise = 2,
    /// What there is.
    Reply = 7,
}

/// How it went (RFC 8415 section 21.13), with its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
#[expect(missing_docs, reason = "each is the name of a status in the RFC")]
pub enum Status {
    Success = 0,
    NoAddresses = 2,
    NoBinding = 3,
    NotOnLink = 4,
    UseMulticast = 5,
    NoPrefixes = 6,
}

/// What is said of one association.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// What the association is for.
    pub use_for: Use,
    /// The client's number for it.
    pub iaid: u32,
    /// The address that it has from now on.
    pub given: Option<Ipv6Addr>,
    /// Addresses that end now.
    pub ended: Vec<Ipv6Addr>,
    /// How it went, if not well.
    pub status: Option<Status>,
}

/// A reply, before it is bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Which.
    pub kind: ReplyKind,
    /// How it went, where that is said.
    pub status: Option<Status>,
    /// What is said of each association.
    pub grants: Vec<Grant>,
    /// Whether settings are told.
    pub settings: bool,
    /// Whether it is the one that ends a SOLICIT.
    pub rapid: bool,
    /// The MAC it is sent to.
    pub to_mac: Mac,
    /// The address it is sent to.
    pub to: Ipv6Addr,
}

/// What became known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A port took or renewed its address.
    Leased(PortId, LeaseSeen6),
    /// A port gave it back.
    Released(PortId, Ipv6Addr),
    /// A port found another user of it. It is not answered until then.
    Declined(PortId, Ipv6Addr, Timestamp),
}

/// What to do about a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The reply, if any.
    pub reply: Option<Reply>,
    /// What became known, if anything.
    pub outcome: Option<Outcome>,
    /// Why.
    pub why: Reason,
}

/// How a message came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The MAC that the frame came from.
    pub source: Mac,
    /// The address that it came from.
    pub from: Ipv6Addr,
    /// The address that it was sent to.
    pub to: Ipv6Addr,
}

/// What the server remembers. Deciding reads it, [`State::apply`] alone changes it.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// What guests were last told.
    pub leases: Leases,
    /// Ports that are not answered before this time: somebody else uses their address.
    pub resting: HashMap<PortId, Timestamp>,
}

impl State {
    /// Makes it so.
    pub fn apply(&mut self, outcome: &Outcome) {
        match *outcome {
            Outcome::Leased(port, lease) => {
                self.resting.remove(&port);
                self.leases.insert(port, lease);
            }
            Outcome::Released(port, _) => {
                self.leases.remove(&port);
            }
            Outcome::Declined(port, _, until) => {
                self.leases.remove(&port);
                self.resting.insert(port, until);
            }
        }
    }
}

const fn silent(why: Reason) -> Decision {
    Decision {
        reply: None,
        outcome: None,
        why,
    }
}

struct Case<'a> {
    config: &'a ServerConfig,
    request: &'a Request,
    arrival: Arrival,
    port: PortId,
    address: Ipv6Addr,
    now: Timestamp,
}

/// Decides. Reads no clock and no network: the same arguments give the same answer.
pub fn respond(
    config: &ServerConfig,
    state: &State,
    request: &Request,
    arrival: Arrival,
    now: Timestamp,
) -> Decision {
    if let Err(why) = is_formed(config, request) {
        return silent(why);
    }
    let Some(&(port, address)) = config.ports.get(&arrival.source) else {
        return silent(Reason::UnknownMac);
    };
    if !arrival.from.is_unicast_link_local() && arrival.from != address {
        return silent(Reason::ForeignSource);
    }
    let case = Case {
        config,
        request,
        arrival,
        port,
        address,
        now,
    };
    if !arrival.to.is_multicast() {
        return case.to_us_alone();
    }
    let rests = state.resting.get(&port).is_some_and(|until| *until > now);
    match request.kind {
        Kind::InformationRequest => case.reply(
            Reason::Informed,
            Said {
                settings: true,
                ..Said::default()
            },
        ),
        Kind::Release => case.gives_up(Reason::Released),
        Kind::Decline => case.gives_up(Reason::Declined),
        _ if rests => silent(Reason::Quarantined),
        Kind::Confirm => case.confirm(),
        Kind::Solicit => case.solicit(),
        Kind::Request => case.give(Reason::Given),
        Kind::Renew => case.give(Reason::Renewed),
        Kind::Rebind => case.give(Reason::Rebound),
    }
}

/// Section 16: who must be named, and who must not.
fn is_formed(config: &ServerConfig, request: &Request) -> Result<(), Reason> {
    let ours = request.server_id.as_ref().map(|id| *id == config.duid);
    match request.kind {
        Kind::InformationRequest => {
            if !request.associations.is_empty() {
                return Err(Reason::AssociationGiven);
            }
            return match ours {
                Some(false) => Err(Reason::OtherServer),
                _ => Ok(()),
            };
        }
        Kind::Solicit | Kind::Confirm | Kind::Rebind if ours.is_some() => {
            return Err(Reason::ServerIdGiven);
        }
        Kind::Request | Kind::Renew | Kind::Release | Kind::Decline => match ours {
            Some(true) => {}
            Some(false) => return Err(Reason::OtherServer),
            None => return Err(Reason::NoServerId),
        },
        Kind::Solicit | Kind::Confirm | Kind::Rebind => {}
    }
    if request.client_id.is_none() {
        return Err(Reason::NoClientId);
    }
    Ok(())
}

/// What a reply says.
#[derive(Default)]
struct Said {
    status: Option<Status>,
    grants: Vec<Grant>,
    settings: bool,
}

impl Case<'_> {
    fn reply(&self, why: Reason, said: Said) -> Decision {
        Decision {
            reply: Some(Reply {
                kind: ReplyKind::Reply,
                status: said.status,
                grants: said.grants,
                settings: said.settings,
                rapid: false,
                to_mac: self.arrival.source,
                to: self.arrival.from,
            }),
            outcome: None,
            why,
        }
    }

    /// Sections 16 and 18.4: nobody was told that he may.
    fn to_us_alone(&self) -> Decision {
        match self.request.kind {
            Kind::Request | Kind::Renew | Kind::Release | Kind::Decline => self.reply(
                Reason::UseMulticast,
                Said {
                    status: Some(Status::UseMulticast),
                    ..Said::default()
                },
            ),
            _ => silent(Reason::UnicastRefused),
        }
    }

    /// The association that gets the address, by its place.
    fn chosen(&self) -> Option<usize> {
        let all = &self.request.associations;
        let named = |a: &Association| a.use_for == Use::Addresses && a.addresses.contains(&self.address);
        all.iter()
            .position(named)
            .or_else(|| all.iter().position(|a| a.use_for == Use::Addresses))
    }

    fn grants(&self) -> Vec<Grant> {
        let chosen = self.chosen();
        let all = self.request.associations.iter().enumerate();
        all.map(|(at, a)| self.grant(a, Some(at) == chosen)).collect()
    }

    fn grant(&self, association: &Association, chosen: bool) -> Grant {
        let mut grant = Grant {
            use_for: association.use_for,
            iaid: association.iaid,
            given: None,
            ended: Vec::new(),
            status: None,
        };
        let goes_on = matches!(self.request.kind, Kind::Renew | Kind::Rebind);
        let elsewhere = |a: &Ipv6Addr| !self.config.link.contains(a);
        grant.status = match association.use_for {
            Use::Temporary => Some(Status::NoAddresses),
            Use::Prefixes => Some(Status::NoPrefixes),
            Use::Addresses if !chosen && goes_on => Some(Status::NoBinding),
            Use::Addresses if !chosen => Some(Status::NoAddresses),
            Use::Addresses
                if self.request.kind == Kind::Request && association.addresses.iter().any(elsewhere) =>
            {
                Some(Status::NotOnLink)
            }
            Use::Addresses => {
                grant.given = Some(self.address);
                if goes_on {
                    let others = association.addresses.iter().filter(|a| **a != self.address);
                    grant.ended = others.copied().collect();
                }
                None
            }
        };
        grant
    }

    fn solicit(&self) -> Decision {
        if self.config.rapid_commit && self.request.rapid_commit {
            let mut decision = self.give(Reason::RapidlyCommitted);
            if let Some(reply) = &mut decision.reply {
                reply.rapid = true;
            }
            return decision;
        }
        let grants = self.grants();
        let why = if grants.is_empty() || grants.iter().any(|g| g.given.is_some()) {
            Reason::Advertised
        } else {
            Reason::NothingToGive
        };
        let mut decision = self.reply(
            why,
            Said {
                grants,
                settings: true,
                ..Said::default()
            },
        );
        if let Some(reply) = &mut decision.reply {
            reply.kind = ReplyKind::Advertise;
        }
        decision
    }

    fn give(&self, why: Reason) -> Decision {
        let grants = self.grants();
        let given = grants.iter().any(|g| g.given.is_some());
        let off_link = grants.iter().any(|g| g.status == Some(Status::NotOnLink));
        let why = match (given, off_link) {
            (true, _) => why,
            (false, true) => Reason::NotOnLink,
            (false, false) => Reason::NothingToGive,
        };
        let mut decision = self.reply(
            why,
            Said {
                grants,
                settings: true,
                ..Said::default()
            },
        );
        decision.outcome = given.then(|| {
            Outcome::Leased(
                self.port,
                LeaseSeen6 {
                    address: self.address,
                    since: self.now,
                    until: self.now.plus(self.config.settings.valid),
                },
            )
        });
        decision
    }

    fn confirm(&self) -> Decision {
        let mut addresses = self.request.addresses().peekable();
        if addresses.peek().is_none() {
            return silent(Reason::NothingAsked);
        }
        let (why, status) = if addresses.all(|a| a == self.address) {
            (Reason::Confirmed, Status::Success)
        } else {
            (Reason::NotConfirmed, Status::NotOnLink)
        };
        self.reply(
            why,
            Said {
                status: Some(status),
                ..Said::default()
            },
        )
    }

    /// RELEASE and DECLINE (sections 18.3.7, 18.3.8).
    fn gives_up(&self, why: Reason) -> Decision {
        if self.request.addresses().next().is_none() {
            return silent(Reason::NothingAsked);
        }
        let foreign = |a: &&Association| a.use_for != Use::Addresses || !a.addresses.contains(&self.address);
        let unbound = self.request.associations.iter().filter(foreign);
        let grants: Vec<Grant> = unbound
            .map(|a| Grant {
                use_for: a.use_for,
                iaid: a.iaid,
                given: None,
                ended: Vec::new(),
                status: Some(Status::NoBinding),
            })
            .collect();
        let held = grants.len() < self.request.associations.len();
        let mut decision = self.reply(
            if held { why } else { Reason::NothingToGive },
            Said {
                status: Some(Status::Success),
                grants,
                ..Said::default()
            },
        );
        decision.outcome = held.then(|| match why {
            Reason::Declined => {
                Outcome::Declined(self.port, self.address, self.now.plus(self.config.quarantine))
            }
            _ => Outcome::Released(self.port, self.address),
        });
        decision
    }
}
