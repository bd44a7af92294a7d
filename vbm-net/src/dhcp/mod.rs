//! The DHCPv4 server of a network (RFC 2131, 2132, and what is listed in `docs/net/dhcp.md`).
//!
//! ```text
//!   br0 --BPF: udp to 67--> socket --frame::parse--> request::parse --respond(config, state, request, now)--> Decision
//!                              ^                                                                                |
//!                              |                                   nothing to keep: at once                     v
//!                              +----- frame::build: full checksum <-------------------------- wire::encode <----+
//!                                                  ^                                                            |
//!                                                  +--- when the commit returns --- store: one sync for all <---+
//!                                                                                   that came while the last one ran
//! ```
//!
//! A port has its address from the moment it is made, so an answer to a guest needs no storage, any host can answer for its own
//! ports, and a restart forgets nothing that matters. What is remembered is only what a guest was last told, for people to see. A request is
//! heard only from the MAC of a port of this host, and only if the frame came from that MAC.
//!
//! Clients that are no port are served from a pool, where a network has one ([`Subnet::pool`]); their leases are kept in a
//! [`store::LeaseStore`] before they are acknowledged. Clients behind relays are served where relays are trusted ([`Relays`]).
//!
//! Replies leave as raw frames, because a reply written to a UDP socket crosses veth and bridge with a partial checksum, which
//! some clients drop, and because the namespace's own firewall need not be opened for them.
//!
//! | module | holds |
//! |---|---|
//! | [`config`](ServerConfig) | what the server is told |
//! | [`options`] | options on the wire: joined, split, written |
//! | [`request`] | what a client asks, read once |
//! | [`respond`] | what is answered, and why: pure |
//! | [`book`] | the pools: a value |
//! | [`store`] | where leases of pools are kept |
//! | [`rate`] | how often one may ask: pure |
//! | [`wire`], [`frame`] | a reply as bytes, as a frame |
//! | [`DhcpServer`] | the server alone, on an interface |

mod alone;
pub mod book;
mod config;
pub mod frame;
pub mod options;
mod parameters;
pub mod rate;
pub(crate) mod reason;
pub mod request;
mod reservations;
pub mod respond;
pub(crate) mod server;
pub(crate) mod socket;
pub mod store;
pub mod wire;

pub use alone::DhcpServer;
pub use config::{
    Boot, KeyBy, OFFER_HOLD, POOL_QUARANTINE, PORT_QUARANTINE, Rate, Relays, Reservation, Route,
    ServerConfig, Settings, Subnet,
};
pub use reason::{Counters, Reason};
pub use reservations::Reservations;
pub(crate) use socket::open as open_socket;

use crate::LeaseSeen;
use std::collections::BTreeMap;
use vbm_core::PortId;

/// The server's port (RFC 2131 section 4.1).
pub const SERVER_PORT: u16 = 67;
/// The client's port.
pub const CLIENT_PORT: u16 = 68;
/// The least size of a BOOTP message that old clients accept (RFC 951).
pub const MESSAGE_MIN_BYTES: usize = 300;
/// What every client must be able to receive, as an IP datagram (RFC 2131 section 2).
pub const DATAGRAM_MIN_MAX_BYTES: u16 = 576;
/// The header bytes of such a datagram that are not the message: IPv4 and UDP.
pub const DATAGRAM_HEADER_BYTES: u16 = 28;

/// What guests were last told, by port. Not needed to answer.
pub type Leases = BTreeMap<PortId, LeaseSeen>;
