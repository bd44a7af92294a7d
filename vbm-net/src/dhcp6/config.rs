//! What the server of one network is told: parsed once, checked once.

use crate::{
    DesiredNetwork, Validated,
    dhcp::{PORT_QUARANTINE, Rate},
    model::GATEWAY_LINK_LOCAL,
    plan::routed,
    ra::{Advertisement, DNS_LIFETIME, PREFIX_LIFETIME, Prefix},
};
use ipnet::Ipv6Net;
use std::{collections::BTreeMap, net::Ipv6Addr, time::Duration};
use vbm_core::{Mac, PortId};

/// How long settings hold for who has no address from us (option 32): as RFC 8415 section 7.6 says (IRT_DEFAULT).
pub const REFRESH: Duration = Duration::from_secs(86_400);
/// How long the gateway is a default router without being heard again: three times the longest interval (RFC 4861 section 6.2.1).
const ROUTER_LIFETIME: Duration = Duration::from_secs(1_800);
/// The part of its lifetime for which an address is preferred, in hundredths. What is left is for connections to end in.
pub const PREFERRED_PERCENT: u32 = 75;

/// What the server of one network knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// Its own address on the link.
    pub address: Ipv6Addr,
    /// Its own MAC.
    pub mac: Mac,
    /// Under which identifier clients know it: [`duid_of`] its MAC, so the same on every host.
    pub duid: Vec<u8>,
    /// The network of the link.
    pub link: Ipv6Net,
    /// Who is served, and with which address.
    pub ports: BTreeMap<Mac, (PortId, Ipv6Addr)>,
    /// What clients are told besides their address.
    pub settings: Settings,
    /// Whether nobody else serves here, so that a client need not wait for others (option 7).
    pub authoritative: bool,
    /// Whether a client that asks for it gets its address with one question.
    pub rapid_commit: bool,
    /// How often a MAC may ask; `None`: as often as it likes.
    pub rate: Option<Rate>,
    /// How long a port is not answered after its guest found another user of its address.
    pub quarantine: Duration,
    /// What is said of the router; `None`: another one speaks on this link, or nobody.
    pub router: Option<Advertisement>,
}

/// What clients are told besides their address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// How long an address holds.
    pub valid: Duration,
    /// How long it is used for new connections; not longer than `valid`.
    pub preferred: Duration,
    /// DNS servers (23).
    pub dns: Vec<Ipv6Addr>,
    /// Domains to search names in (24).
    pub search: Vec<String>,
    /// Time servers (31, 56).
    pub ntp: Vec<Ipv6Addr>,
    /// How long settings hold (32).
    pub refresh: Duration,
    /// The MTU in bytes: the most that a reply may have; 0: 1280.
    pub mtu: u16,
}

/// The identifier that a MAC makes (RFC 8415 section 11.4): DUID-LL of Ethernet.
pub fn duid_of(mac: Mac) -> Vec<u8> {
    [&[0, 3, 0, 1][..], &mac.octets()].concat()
}

impl Settings {
    /// Addresses that hold for this long, and nothing else.
    pub fn lasting(valid: Duration) -> Self {
        Self {
            valid,
            preferred: valid * PREFERRED_PERCENT / 100,
            refresh: REFRESH,
            ..Self::default()
        }
    }
}

impl ServerConfig {
    /// A server that nobody is served by yet, and that is no router: for a network that is not one of VBM's.
    pub fn new(address: Ipv6Addr, mac: Mac, link: Ipv6Net, valid: Duration) -> Self {
        Self {
            address,
            mac,
            duid: duid_of(mac),
            link,
            ports: BTreeMap::new(),
            settings: Settings::lasting(valid),
            authoritative: false,
            rapid_commit: false,
            rate: Some(Rate::PORT),
            quarantine: PORT_QUARANTINE,
            router: None,
        }
    }

    /// That of a network; `None` where it has no IPv6.
    pub fn of(net: &Validated<DesiredNetwork>) -> Option<Self> {
        let (spec, six) = (&net.spec, net.spec.ipv6.as_ref()?);
        let mac = net.gateway_mac();
        let valid = Duration::from_secs(spec.lease_seconds.into());
        let domain = spec.domain();
        let others = spec.dhcp.search.iter().map(String::as_str);
        let search: Vec<String> = domain
            .into_iter()
            .chain(others.filter(|other| Some(*other) != domain))
            .map(str::to_owned)
            .collect();
        let router = Advertisement {
            mac,
            address: GATEWAY_LINK_LOCAL,
            // Without a way out, a default route to nowhere would be tried first by every guest.
            lifetime: if routed::carries_ipv6(net) {
                ROUTER_LIFETIME
            } else {
                Duration::ZERO
            },
            managed: !six.stateless,
            other: true,
            mtu: spec.mtu,
            prefixes: vec![Prefix {
                net: six.cidr,
                // Only where IPAM gives what guests make themselves: of any other address the guard lets nothing pass.
                autonomous: six.stateless,
                valid: PREFIX_LIFETIME,
                preferred: PREFIX_LIFETIME,
            }],
            dns: six.dns.clone(),
            search: search.clone(),
            dns_lifetime: DNS_LIFETIME,
        };
        let mut config = Self::new(GATEWAY_LINK_LOCAL, mac, six.cidr, valid);
        config.ports = net
            .ports
            .iter()
            .filter_map(|p| Some((p.mac, (p.id, p.address6?))))
            .collect();
        config.settings.dns.clone_from(&six.dns);
        config.settings.search = search;
        config.settings.mtu = spec.mtu;
        // The guard lets nobody else speak as a server.
        config.authoritative = true;
        config.rapid_commit = spec.dhcp.rapid_commit;
        config.router = Some(router);
        Some(config)
    }
}
