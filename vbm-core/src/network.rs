//! Networks.

use crate::{
    DhcpSpec, Error, Generation, InterfaceName, Ipv4Range, Ipv6Spec, Mac, Meta, MetadataMode, NetworkId,
    NetworkMode, Reservation, addressing, error::invalid, limits, mode,
};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr};

/// A network: its record in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Network {
    /// Id, name, generation.
    #[serde(flatten)]
    pub meta: Meta<NetworkId>,
    /// What is wanted.
    pub spec: NetworkSpec,
    /// What is seen.
    pub status: NetworkStatus,
}

/// What is wanted of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NetworkSpec {
    /// How it meets the world.
    pub mode: NetworkMode,
    /// Where it meets the world: of a bridged network the interface whose LAN its VMs are on; of a routed one the only interface that
    /// it is reached by, or `None` for any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplink: Option<InterfaceName>,
    /// Its addresses. May overlap with those of any other network, but of a routed one with no other routed one's. Of a bridged network
    /// those of its LAN.
    #[cfg_attr(feature = "schema", schema(value_type = String, example = "10.0.0.0/24"))]
    pub cidr: Ipv4Net,
    /// The gateway's address: ours, the same on every host. Of a bridged network the LAN's router.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub gateway: Ipv4Addr,
    /// First address that is given to ports nobody pinned.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub pool_first: Ipv4Addr,
    /// Last address that is given to ports nobody pinned.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub pool_last: Ipv4Addr,
    /// DNS servers that VMs are told of.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(value_type = Vec<String>))]
    pub dns: Vec<Ipv4Addr>,
    /// The domain that VMs are told of.
    #[serde(default)]
    pub domain: Option<String>,
    /// The MTU in bytes.
    pub mtu: u16,
    /// How long a DHCP lease lasts, in seconds.
    pub lease_seconds: u32,
    /// The VXLAN network identifier (RFC 7348) by which it spans nodes; `None`: it stays on one. Chosen by the
    /// controller, unique.
    #[serde(default)]
    pub vni: Option<u32>,
    /// Further ranges that are given to ports nobody pinned.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more_pools: Vec<Ipv4Range>,
    /// What is never given to a port: it belongs to something else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub excluded: Vec<Ipv4Range>,
    /// What is kept for some.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reservations: Vec<Reservation>,
    /// How long an address rests after it was given back, before the pool gives it again, in seconds. 0: not at all.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub quarantine_seconds: u32,
    /// Its IPv6 addresses; `None`: it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<Ipv6Spec>,
    /// What else VMs are told by DHCP.
    #[serde(default, skip_serializing_if = "DhcpSpec::is_usual")]
    pub dhcp: DhcpSpec,
    /// Whether the gateway answers DNS: the names of the network's VMs and, unless it is isolated, those of the world.
    #[serde(default = "yes")]
    pub serve_dns: bool,
    /// DNS servers that the gateway asks about the world's names; empty: those that the host uses.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(value_type = Vec<String>))]
    pub dns_upstreams: Vec<IpAddr>,
    /// The metadata service of its VMs, at 169.254.169.254.
    #[serde(default)]
    pub metadata: MetadataMode,
    /// Whether VMs are told their addresses by us; always, but on a bridged network, where else the LAN's own server does. Then what
    /// addresses they have is not known here.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub serve_dhcp: bool,
}

const fn yes() -> bool {
    true
}

/// Its form is the one that serde asks for.
const fn is_yes(it: &bool) -> bool {
    *it
}

/// Its form is the one that serde asks for.
const fn is_zero(seconds: &u32) -> bool {
    *seconds == 0
}

/// The least VXLAN network identifier that is given: what is below is left to people.
pub const VNI_FIRST: u32 = 4_096;
/// The most: 24 bits (RFC 7348 section 5).
pub const VNI_LAST: u32 = (1 << 24) - 1;

/// Where VXLAN is spoken among nodes: the port of UDP (RFC 7348 section 5).
pub const VXLAN_PORT: u16 = 4_789;

/// The domain of VMs whose network has none. The name `internal` is set aside for private use.
pub const DEFAULT_DOMAIN: &str = "vbm.internal";
/// Where VMs find their metadata.
pub const METADATA_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// The usual MTU of Ethernet, in bytes.
pub const DEFAULT_MTU_BYTES: u16 = 1_500;
/// The usual DHCP lease: an hour.
pub const DEFAULT_LEASE_SECONDS: u32 = 3_600;

impl NetworkSpec {
    /// A network with the usual settings: the gateway is the first usable address, all others are the pool.
    ///
    /// # Errors
    /// A CIDR with host bits set or of a size that cannot serve; a bridged network, which needs [`Self::with_uplink`].
    pub fn new(mode: NetworkMode, cidr: Ipv4Net) -> Result<Self, Error> {
        Self::with_uplink(mode, cidr, None)
    }

    /// The same by an interface of the host. A bridged network leaves DHCP, DNS and metadata to its LAN.
    ///
    /// # Errors
    /// As [`Self::new`]; an uplink for a mode that has none, or none for a bridged network.
    pub fn with_uplink(
        mode: NetworkMode,
        cidr: Ipv4Net,
        uplink: Option<InterfaceName>,
    ) -> Result<Self, Error> {
        check_cidr(cidr)?;
        let serves = mode != NetworkMode::Bridged;
        let first = u32::from(cidr.network()) + 1;
        let last = u32::from(cidr.broadcast()) - 1;
        let spec = Self {
            mode,
            uplink,
            cidr,
            gateway: first.into(),
            pool_first: (first + 1).into(),
            pool_last: last.into(),
            dns: Vec::new(),
            domain: None,
            mtu: DEFAULT_MTU_BYTES,
            lease_seconds: DEFAULT_LEASE_SECONDS,
            vni: None,
            more_pools: Vec::new(),
            excluded: Vec::new(),
            reservations: Vec::new(),
            quarantine_seconds: 0,
            ipv6: None,
            dhcp: DhcpSpec::default(),
            serve_dns: serves,
            dns_upstreams: Vec::new(),
            metadata: if serves {
                MetadataMode::default()
            } else {
                MetadataMode::Off
            },
            serve_dhcp: serves,
        };
        spec.check()?;
        Ok(spec)
    }

    /// Whether a port may have this address: inside, not excluded, and neither the network's, the broadcast nor the gateway's.
    pub fn is_port_address(&self, address: Ipv4Addr) -> bool {
        self.cidr.contains(&address)
            && address != self.cidr.network()
            && address != self.cidr.broadcast()
            && address != self.gateway
            && !self.excluded.iter().any(|range| range.contains(address))
    }

    /// All ranges that are given to ports nobody pinned, the first one first. One whose ends are the wrong way round is
    /// told as one address that is never given; [`Self::check`] refuses it.
    pub fn pools(&self) -> impl Iterator<Item = Ipv4Range> + '_ {
        let first = Ipv4Range::new(self.pool_first, self.pool_last);
        let first = first.unwrap_or_else(|_| Ipv4Range::one(self.cidr.network()));
        std::iter::once(first).chain(self.more_pools.iter().copied())
    }

    /// The domain of its VMs: its own, or the usual one where the gateway answers DNS.
    pub fn domain(&self) -> Option<&str> {
        let usual = self.serve_dns.then_some(DEFAULT_DOMAIN);
        self.domain.as_deref().or(usual)
    }

    /// Whether its VMs find their metadata.
    pub fn serves_metadata(&self) -> bool {
        self.metadata != MetadataMode::Off
    }

    /// Whether the gateway asks other DNS servers. An isolated network asks nobody.
    pub fn forwards_dns(&self) -> bool {
        self.serve_dns && self.mode != NetworkMode::Isolated
    }

    fn check_upstreams(&self) -> Result<(), Error> {
        let most = limits::NETWORK_MAX_DNS_UPSTREAMS;
        if self.dns_upstreams.len() > most {
            return Err(invalid(
                "too many DNS upstreams",
                format!("{} were given, {most} are allowed", self.dns_upstreams.len()),
                "name fewer",
            ));
        }
        if !self.dns_upstreams.is_empty() && !self.forwards_dns() {
            return Err(invalid(
                "DNS upstreams cannot be used",
                "the network is isolated or its DNS is off, so that nobody would be asked",
                "leave them out",
            ));
        }
        // They are asked from the host: what is near to it is not for the users of a network to reach.
        let near = |address: &&IpAddr| match address {
            IpAddr::V4(a) => a.is_link_local() || a.is_broadcast() || a.octets()[0] == 0,
            IpAddr::V6(a) => a.is_unicast_link_local() || a.to_ipv4_mapped().is_some(),
        };
        let bad = |a: &&IpAddr| a.is_loopback() || a.is_unspecified() || a.is_multicast() || near(a);
        match self.dns_upstreams.iter().find(bad) {
            Some(address) => Err(invalid(
                format!("{address} cannot be a DNS upstream"),
                "it is loopback, link-local, multicast or no address of a server",
                "name a server that the host reaches, or leave it out for the host's own",
            )),
            None => Ok(()),
        }
    }

    /// Checks the spec alone.
    ///
    /// # Errors
    /// What contradicts itself or a limit of [`crate::limits`].
    pub fn check(&self) -> Result<(), Error> {
        check_cidr(self.cidr)?;
        mode::check(self)?;
        self.check_upstreams()?;
        let usable =
            |a: Ipv4Addr| self.cidr.contains(&a) && a != self.cidr.network() && a != self.cidr.broadcast();
        if !usable(self.gateway) {
            return Err(invalid(
                format!("gateway: {} does not fit", self.gateway),
                format!("it is not a usable address of {}", self.cidr),
                "leave it out, or choose one inside",
            ));
        }
        if self.pool_first > self.pool_last {
            return Err(invalid(
                format!(
                    "pools[0]: the pool {}-{} does not fit",
                    self.pool_first, self.pool_last
                ),
                "its first address stands after its last",
                "turn the two round",
            ));
        }
        if !(limits::NETWORK_MIN_MTU_BYTES..=limits::NETWORK_MAX_MTU_BYTES).contains(&self.mtu) {
            return Err(invalid(
                format!("mtu: {} bytes do not work", self.mtu),
                format!(
                    "{} to {} bytes are allowed",
                    limits::NETWORK_MIN_MTU_BYTES,
                    limits::NETWORK_MAX_MTU_BYTES
                ),
                "leave it out for 1500",
            ));
        }
        if !(limits::LEASE_MIN_SECONDS..=limits::LEASE_MAX_SECONDS).contains(&self.lease_seconds) {
            return Err(invalid(
                format!("lease_seconds: {} does not work", self.lease_seconds),
                format!(
                    "{} s to {} s (30 days) are allowed",
                    limits::LEASE_MIN_SECONDS,
                    limits::LEASE_MAX_SECONDS
                ),
                "leave it out for one hour",
            ));
        }
        if self.dns.len() > limits::NETWORK_MAX_DNS_SERVERS {
            return Err(invalid(
                "dns: too many servers",
                format!(
                    "{} were given, {} are allowed",
                    self.dns.len(),
                    limits::NETWORK_MAX_DNS_SERVERS
                ),
                "name fewer",
            ));
        }
        if let Some(server) = self
            .dns
            .iter()
            .find(|a| a.is_unspecified() || a.is_multicast() || a.is_broadcast())
        {
            return Err(invalid(
                format!("dns: {server} is no server's address"),
                "it is unspecified, multicast or broadcast",
                "name the address of a DNS server",
            ));
        }
        addressing::check_addressing(self)?;
        self.domain.as_deref().map_or(Ok(()), check_domain)?;
        self.dhcp.check(self.cidr)
    }
}

/// Whether a text is a domain: DNS labels joined by dots.
pub(crate) fn check_domain(domain: &str) -> Result<(), Error> {
    let label = |label: &str| label.parse::<crate::Name>().is_ok();
    if domain.len() <= limits::DOMAIN_MAX_BYTES && domain.split('.').all(label) {
        return Ok(());
    }
    Err(invalid(
        format!("domain: '{domain:.80}' is not a domain"),
        format!(
            "it is not a list of DNS labels of {} characters joined by '.', {} bytes at most",
            limits::NAME_MAX_CHARS,
            limits::DOMAIN_MAX_BYTES
        ),
        "write it as lab.example",
    ))
}

fn check_cidr(cidr: Ipv4Net) -> Result<(), Error> {
    if cidr.addr() != cidr.network() {
        return Err(invalid(
            format!("cidr: '{cidr}' is not a network"),
            "bits are set behind the prefix",
            format!("write {}/{}", cidr.network(), cidr.prefix_len()),
        ));
    }
    if !(limits::NETWORK_MIN_PREFIX_BITS..=limits::NETWORK_MAX_PREFIX_BITS).contains(&cidr.prefix_len()) {
        return Err(invalid(
            format!("cidr: '{cidr}' has a size that cannot serve"),
            format!(
                "prefixes of {} to {} bits are allowed: a /31 (RFC 3021) and a /32 have no room for gateway, VM and broadcast",
                limits::NETWORK_MIN_PREFIX_BITS,
                limits::NETWORK_MAX_PREFIX_BITS
            ),
            "choose one such as 10.0.0.0/24",
        ));
    }
    let net = cidr.network();
    if net.is_loopback()
        || net.is_multicast()
        || net.is_link_local()
        || net.octets()[0] == 0
        || net.octets()[0] >= 240
    {
        return Err(invalid(
            format!("cidr: '{cidr}' cannot be a network of VMs"),
            "it is loopback, link-local, multicast or reserved",
            "choose a private one such as 10.0.0.0/24",
        ));
    }
    Ok(())
}

/// Reads a CIDR as people write it.
///
/// # Errors
/// Text that is none.
pub fn parse_cidr(text: &str) -> Result<Ipv4Net, Error> {
    text.parse().map_err(|_| {
        invalid(
            format!("cidr: '{text:.100}' is not an IPv4 network"),
            "it is not an address, '/' and a prefix length of 0 to 32",
            "write it as 10.0.0.0/24",
        )
    })
}

/// What is seen of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct NetworkStatus {
    /// The generation that the host has reached.
    #[serde(default)]
    pub observed: Generation,
    /// Whether it is up on its host.
    #[serde(default)]
    pub ready: bool,
    /// The gateway's MAC.
    #[serde(default)]
    pub gateway_mac: Option<Mac>,
    /// The name of its namespace on the host.
    #[serde(default)]
    pub namespace: Option<String>,
    /// Why the wanted state is not reached, if so.
    #[serde(default)]
    pub problem: Option<Error>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(cidr: &str) -> Result<NetworkSpec, Error> {
        NetworkSpec::new(NetworkMode::Nat, parse_cidr(cidr)?)
    }

    #[test]
    fn the_usual_network_has_its_gateway_first_and_the_rest_as_pool() {
        let spec = spec("10.1.0.0/24").unwrap();
        assert_eq!(spec.gateway, Ipv4Addr::new(10, 1, 0, 1));
        assert_eq!(
            (spec.pool_first, spec.pool_last),
            (Ipv4Addr::new(10, 1, 0, 2), Ipv4Addr::new(10, 1, 0, 254))
        );
    }

    #[test]
    fn the_smallest_network_has_room_for_one_vm() {
        let spec = spec("10.0.0.0/30").unwrap();
        assert_eq!(spec.pool_first, spec.pool_last);
    }

    #[test]
    fn networks_that_cannot_serve_are_refused() {
        for bad in [
            "10.0.0.0/31",
            "10.0.0.0/7",
            "10.0.0.1/24",
            "127.0.0.0/8",
            "224.0.0.0/8",
            "169.254.0.0/16",
            "0.0.0.0/8",
            "x",
            "10.0.0.0",
            "10.0.0.0/33",
        ] {
            assert!(spec(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn upstreams_that_nobody_asks_or_that_are_near_the_host_are_refused() {
        let good = spec("10.0.0.0/24").unwrap();
        let with = |addresses: &[&str]| NetworkSpec {
            dns_upstreams: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            ..good.clone()
        };
        assert!(with(&["192.0.2.53", "2001:db8::53"]).check().is_ok());
        for bad in [
            "127.0.0.53",
            "::1",
            "0.0.0.0",
            "169.254.1.1",
            "fe80::1",
            "224.0.0.251",
            "::ffff:127.0.0.1",
        ] {
            assert!(with(&[bad]).check().is_err(), "{bad}");
        }
        assert!(with(&["192.0.2.1"; 5]).check().is_err(), "too many");
        let off = NetworkSpec {
            serve_dns: false,
            ..with(&["192.0.2.53"])
        };
        assert!(off.check().is_err(), "nobody would ask them");
    }

    #[test]
    fn a_network_written_before_there_was_dns_has_it() {
        let mut old = serde_json::to_value(spec("10.0.0.0/24").unwrap()).unwrap();
        for new in ["serve_dns", "dns_upstreams", "metadata"] {
            assert!(old.as_object_mut().unwrap().remove(new).is_some());
        }
        let read: NetworkSpec = serde_json::from_value(old).unwrap();
        assert!(
            read.serve_dns && read.metadata == MetadataMode::Token && read.domain() == Some(DEFAULT_DOMAIN)
        );
    }

    #[test]
    fn service_addresses_are_not_for_ports() {
        let spec = spec("10.0.0.0/24").unwrap();
        for (last, ok) in [(0, false), (1, false), (2, true), (254, true), (255, false)] {
            assert_eq!(spec.is_port_address(Ipv4Addr::new(10, 0, 0, last)), ok, "{last}");
        }
        assert!(!spec.is_port_address(Ipv4Addr::new(10, 0, 1, 2)));
    }
}
