//! The DHCPv6 server of a network, and its voice as a router (RFC 8415, 3646, 4075, 5908; RFC 4861, 8106 by [`crate::ra`]).
//!
//! ```text
//!   br0 --BPF: udp to 547, ICMPv6 133--> socket --frame::parse-+-> request::parse --respond(config, state, request, now)--> Decision
//!                                          ^                   |                                                              |
//!                                          |                   +-> ra::schedule: who asked for a router, and when it is told  |
//!                                          |                                      |                                           v
//!                                          +--- frame::build, ra::render <--------+--------------------------- wire::encode --+
//! ```
//!
//! A port has its address from the moment it is made. It is known by the MAC that its frame came from, which the guard has seen to be
//! its own, never by its DUID: cloned images bear one DUID, and a guest may say any. So nothing is stored, every host answers for
//! its own ports, under the same identifier, and a restart forgets nothing that matters. A port has one address: one association
//! (IA_NA) of its guest gets it, others are told that there is none. There are neither temporary addresses nor prefixes to delegate.
//!
//! Relays are not served: a message from one is counted and dropped. Reconfigure is not sent, so clients need no key.
//!
//! | module | holds |
//! |---|---|
//! | [`config`](ServerConfig) | what the server is told |
//! | [`options`] | options on the wire: walked, written |
//! | [`request`] | what a client asks, read once |
//! | [`respond`] | what is answered, and why: pure |
//! | [`wire`], [`frame`] | a reply as bytes, as a frame |
//! | [`Dhcp6Server`] | the server alone, on an interface |

mod alone;
mod config;
pub mod frame;
pub mod options;
mod reason;
pub mod request;
pub mod respond;
pub(crate) mod server;
mod socket;
pub mod wire;

pub use alone::Dhcp6Server;
pub use config::{PREFERRED_PERCENT, REFRESH, ServerConfig, Settings, duid_of};
pub use reason::{Counters, Reason};
pub(crate) use socket::open as open_socket;

use crate::LeaseSeen6;
use std::{collections::BTreeMap, net::Ipv6Addr};
use vbm_core::PortId;

/// The server's port of UDP (RFC 8415 section 7.2).
pub const SERVER_PORT: u16 = 547;
/// The client's port.
pub const CLIENT_PORT: u16 = 546;
/// Where clients send what is for servers (RFC 8415 section 7.1).
pub const ALL_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

/// What guests were last told, by port. Not needed to answer.
pub type Leases = BTreeMap<PortId, LeaseSeen6>;
