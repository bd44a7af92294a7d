//! What the server of one network is told: parsed once, checked once.

use super::reservations::Reservations;
use crate::{DesiredNetwork, Validated};
use ipnet::Ipv4Net;
use std::{collections::BTreeSet, net::Ipv4Addr, ops::RangeInclusive, time::Duration};
use vbm_core::{DhcpSpec, Mac, NetworkMode, PortId};

/// How long an offered address is kept for the client that it was offered to.
pub const OFFER_HOLD: Duration = Duration::from_secs(60);
/// How long an address of a pool rests after a client found another user of it.
pub const POOL_QUARANTINE: Duration = Duration::from_secs(3_600);
/// How long a port is not answered after its guest found another user of its address: it has no other, and a guest that asks
/// again at once would find the same.
pub const PORT_QUARANTINE: Duration = Duration::from_secs(60);

/// What the server of one network knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// Its own address, the gateway's; also the server identifier.
    pub address: Ipv4Addr,
    /// Its own MAC.
    pub mac: Mac,
    /// The network of the link that it is on.
    pub link: Subnet,
    /// Networks behind relays. Served only if [`Self::relays`] trusts somebody.
    pub behind: Vec<Subnet>,
    /// Who is served, and with which address.
    pub ports: Reservations,
    /// Whether nobody else serves here, so that a client with an unknown lease is told so instead of being left to time out.
    pub authoritative: bool,
    /// Whether a client that asks for it gets its ACK at once (RFC 4039).
    pub rapid_commit: bool,
    /// Which relays are believed.
    pub relays: Relays,
    /// How often a MAC may ask; `None`: as often as it likes.
    pub rate: Option<Rate>,
    /// By what a client of a pool is known.
    pub key: KeyBy,
    /// See [`OFFER_HOLD`].
    pub offer_hold: Duration,
    /// See [`POOL_QUARANTINE`].
    pub pool_quarantine: Duration,
    /// See [`PORT_QUARANTINE`].
    pub port_quarantine: Duration,
}

/// One IP network, and what its clients are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subnet {
    /// Its addresses.
    pub net: Ipv4Net,
    /// What its clients are told.
    pub settings: Settings,
    /// Addresses for clients that are no port; `None`: they are not served.
    pub pool: Option<RangeInclusive<Ipv4Addr>>,
}

/// What clients are told besides their address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The default route (3), if there is a way out.
    pub router: Option<Ipv4Addr>,
    /// DNS servers (6).
    pub dns: Vec<Ipv4Addr>,
    /// The domain (15).
    pub domain: Option<String>,
    /// Domains to search names in (119).
    pub search: Vec<String>,
    /// Time servers (42).
    pub ntp: Vec<Ipv4Addr>,
    /// The MTU in bytes (26); also the most that a reply may have. 0: not told.
    pub mtu: u16,
    /// The longest lease (51). A client may ask for a shorter one.
    pub lease: Duration,
    /// Routes besides the default one (121).
    pub routes: Vec<Route>,
    /// For how many seconds a client that can do without IPv4 shall not ask again (108).
    pub v6_only_wait_seconds: Option<u32>,
    /// What a machine without a disk starts.
    pub boot: Option<Boot>,
    /// Whether the names of clients are in a DNS that we serve (81).
    pub names_are_served: bool,
}

/// A route that clients are told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// Where to.
    pub to: Ipv4Net,
    /// By whom; 0.0.0.0: on the link itself (RFC 3442).
    pub via: Ipv4Addr,
}

/// What a machine without a disk starts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Boot {
    /// The server's address (`siaddr`, and 66 where it has no name).
    pub server: Option<Ipv4Addr>,
    /// The server's name (66).
    pub server_name: Option<String>,
    /// The file (67) where no other fits.
    pub file: Option<String>,
    /// Files by architecture (93, RFC 4578): 0 is BIOS, 7 and 9 are x64 UEFI, 11 is 64-bit ARM UEFI, 16 is x64 UEFI by HTTP.
    pub by_arch: Vec<(u16, String)>,
    /// The file for one that is iPXE already (77).
    pub ipxe: Option<String>,
}

/// Which relays are believed: what they say of the client's link, and that the frame is not from the client itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Relays {
    /// None: every client is on the wire.
    #[default]
    Nobody,
    /// Those with these addresses (`giaddr`).
    Only(BTreeSet<Ipv4Addr>),
    /// Whoever says so: for a link on which there are only relays.
    Anybody,
}

impl Relays {
    /// Whether one with this address is believed.
    pub fn trusts(&self, relay: Ipv4Addr) -> bool {
        match self {
            Self::Nobody => false,
            Self::Only(some) => some.contains(&relay),
            Self::Anybody => true,
        }
    }

    /// Whether there are any.
    pub const fn any(&self) -> bool {
        !matches!(self, Self::Nobody)
    }
}

/// How often one may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How many at once.
    pub burst: u32,
    /// How many a second, over time.
    pub per_second: u32,
}

impl Rate {
    /// A guest that boots asks twice; one that cannot hear us asks once every few seconds.
    pub const PORT: Self = Self {
        burst: 100,
        per_second: 20,
    };
}

/// By what a client of a pool is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyBy {
    /// By its MAC: images that were cloned bear the same client id.
    #[default]
    Mac,
    /// By its client id (61) where it sends one, as RFC 2131 section 4.2 has it.
    ClientId,
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
    /// Whether it is told the way to the metadata service: of the NICs of one VM only one should be.
    pub metadata: bool,
    /// What it starts; `None`: as its network says.
    pub boot: Option<Boot>,
}

impl ServerConfig {
    /// A server that nobody is served by yet: for a network that is not one of VBM's.
    pub fn new(address: Ipv4Addr, mac: Mac, link: Subnet) -> Self {
        Self {
            address,
            mac,
            link,
            behind: Vec::new(),
            ports: Reservations::default(),
            authoritative: false,
            rapid_commit: false,
            relays: Relays::Nobody,
            rate: Some(Rate::PORT),
            key: KeyBy::Mac,
            offer_hold: OFFER_HOLD,
            pool_quarantine: POOL_QUARANTINE,
            port_quarantine: PORT_QUARANTINE,
        }
    }

    /// All networks, that of the link first.
    pub fn subnets(&self) -> impl Iterator<Item = &Subnet> {
        std::iter::once(&self.link).chain(&self.behind)
    }

    /// The network that an address is of.
    pub fn subnet_of(&self, address: Ipv4Addr) -> Option<&Subnet> {
        self.subnets().find(|s| s.net.contains(&address))
    }

    /// Whether an address may be given to a client that is no port.
    pub fn is_free_for_clients(&self, subnet: &Subnet, address: Ipv4Addr) -> bool {
        subnet.pool.as_ref().is_some_and(|p| p.contains(&address))
            && address != self.address
            && Some(address) != subnet.settings.router
            && address != subnet.net.network()
            && address != subnet.net.broadcast()
            && !self.ports.has_address(address)
    }
}

impl Subnet {
    /// A network whose clients are told nothing but their address, for `lease`.
    pub fn new(net: Ipv4Net, lease: Duration) -> Self {
        Self {
            net,
            settings: Settings {
                lease,
                ..Settings::default()
            },
            pool: None,
        }
    }
}

impl From<&Validated<DesiredNetwork>> for ServerConfig {
    fn from(net: &Validated<DesiredNetwork>) -> Self {
        let spec = &net.spec;
        let ports = net.ports.iter().map(|p| {
            let reservation = Reservation {
                port: p.id,
                address: p.address,
                hostname: p.hostname.to_string(),
                metadata: p.metadata_route && spec.serves_metadata(),
                boot: None,
            };
            (p.mac, reservation)
        });
        let mut link = Subnet::new(spec.cidr, Duration::from_secs(spec.lease_seconds.into()));
        link.settings.router = (spec.mode != NetworkMode::Isolated).then_some(spec.gateway);
        link.settings.dns = net.dns_told();
        link.settings.domain = spec.domain().map(str::to_owned);
        link.settings.names_are_served = spec.serve_dns;
        link.settings.mtu = spec.mtu;
        tell(&mut link.settings, &spec.dhcp);
        Self {
            ports: ports.collect(),
            // Nobody else is heard on the wire of such a network: the guard sees to it.
            rapid_commit: spec.dhcp.rapid_commit,
            // The guard lets nobody else speak as a server.
            authoritative: true,
            ..Self::new(spec.gateway, net.gateway_mac(), link)
        }
    }
}

/// What the network tells besides what every one does.
fn tell(settings: &mut Settings, spec: &DhcpSpec) {
    settings.ntp.clone_from(&spec.ntp);
    settings.search.clone_from(&spec.search);
    settings.routes = spec
        .routes
        .iter()
        .map(|r| Route { to: r.to, via: r.via })
        .collect();
    settings.v6_only_wait_seconds = spec.v6_only_wait_seconds;
    settings.boot = spec.boot.as_ref().map(|b| Boot {
        server: b.server,
        server_name: b.server_name.clone(),
        file: b.file.clone(),
        by_arch: b.files.iter().map(|f| (f.architecture, f.file.clone())).collect(),
        ipxe: b.ipxe.clone(),
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixture::lab;
    use vbm_core::MetadataMode;

    #[test]
    fn a_port_is_told_the_way_to_metadata_where_it_is_served_and_this_port_is_to_tell() {
        let told = |mode, route| {
            let mut net = lab(NetworkMode::Nat).into_inner();
            net.spec.metadata = mode;
            net.ports[0].metadata_route = route;
            let config = ServerConfig::from(&Validated::<DesiredNetwork>::new(net.clone()).unwrap());
            config.ports.get(net.ports[0].mac).unwrap().metadata
        };
        assert!(told(MetadataMode::Token, true) && told(MetadataMode::Open, true));
        assert!(!told(MetadataMode::Token, false) && !told(MetadataMode::Off, true));
    }

    #[test]
    fn vms_ask_the_gateway_for_names_unless_the_network_names_another_or_it_serves_none() {
        let told = |dns: &[Ipv4Addr], serve| {
            let mut net = lab(NetworkMode::Nat).into_inner();
            net.spec.dns = dns.to_vec();
            net.spec.serve_dns = serve;
            let config = ServerConfig::from(&Validated::<DesiredNetwork>::new(net).unwrap());
            let settings = config.link.settings;
            (settings.dns, settings.domain, settings.names_are_served)
        };
        let (gateway, other) = (Ipv4Addr::new(10, 77, 0, 1), Ipv4Addr::new(192, 0, 2, 53));
        let usual = Some("vbm.internal".to_owned());
        assert_eq!(told(&[], true), (vec![gateway], usual.clone(), true));
        assert_eq!(told(&[other], true), (vec![other], usual, true));
        assert_eq!(told(&[], false), (vec![], None, false));
    }
}
