//! The DHCPv4 server of a network (RFC 2131, 2132).
//!
//! ```text
//!   br0 --BPF: udp to 67--> socket --frame::parse--> request --respond(config, leases, request, now)--> Decision
//!                              ^                                                                          |
//!                              +----- frame::build: Ethernet, IPv4, UDP with full checksum <-- wire::encode
//! ```
//!
//! Addresses are not allocated here: a port has its address from the moment it is made, so an answer needs no
//! storage, any host can answer for its own ports, and a restart forgets nothing that matters. What is remembered is only what a
//! guest was last told, for people to see. A request is heard only from the MAC of a port of this host, and only if
//! the frame came from that MAC. Relays (`giaddr`) are not served: every VM is on the wire.
//!
//! Replies leave as raw frames, because a reply written to a UDP socket crosses veth and bridge with a partial checksum, which
//! some clients drop, and because the namespace's own firewall need not be opened for them.

pub mod frame;
pub mod request;
pub mod respond;
pub(crate) mod server;
mod socket;
pub(crate) use socket::open as open_socket;
pub mod wire;

use crate::{DesiredNetwork, LeaseSeen, Validated};
use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv4Addr,
    time::Duration,
};
use vbm_core::{Mac, NetworkMode, PortId};

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

/// What the server of one network knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// Its own address, the gateway's; also the server identifier.
    pub address: Ipv4Addr,
    /// Its own MAC.
    pub mac: Mac,
    /// The subnet mask it tells.
    pub netmask: Ipv4Addr,
    /// The broadcast address it tells.
    pub broadcast: Ipv4Addr,
    /// The default route it tells, if there is a way out.
    pub router: Option<Ipv4Addr>,
    /// DNS servers.
    pub dns: Vec<Ipv4Addr>,
    /// The domain.
    pub domain: Option<String>,
    /// The MTU in bytes.
    pub mtu: u16,
    /// How long a lease lasts.
    pub lease: Duration,
    /// Who is served.
    pub ports: HashMap<Mac, Reservation>,
}

/// A port as the server sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// The port.
    pub port: PortId,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its host name.
    pub hostname: String,
}

/// What guests were last told, by port. Not needed to answer.
pub type Leases = BTreeMap<PortId, LeaseSeen>;

impl From<&Validated<DesiredNetwork>> for ServerConfig {
    fn from(net: &Validated<DesiredNetwork>) -> Self {
        let spec = &net.spec;
        let ports = net.ports.iter().map(|p| {
            let hostname = p.hostname.to_string();
            (
                p.mac,
                Reservation {
                    port: p.id,
                    address: p.address,
                    hostname,
                },
            )
        });
        Self {
            address: spec.gateway,
            mac: net.gateway_mac(),
            netmask: spec.cidr.netmask(),
            broadcast: spec.cidr.broadcast(),
            router: (spec.mode == NetworkMode::Nat).then_some(spec.gateway),
            dns: net.dns_told(),
            domain: spec.domain().map(str::to_owned),
            mtu: spec.mtu,
            lease: Duration::from_secs(spec.lease_seconds.into()),
            ports: ports.collect(),
        }
    }
}
