//! Which addresses of a network are given to whom: pools, exclusions, reservations; IPv6 beside IPv4.
//!
//! ```text
//!   10.0.0.0/24   .0        .1       .2 ..... .9   .10 ... .50        .60            .61 .. .254   .255
//!                 network   gateway  excluded      pool, given to     reserved for   pinned only   broadcast
//!                 never     never    never         who asks for none  one MAC                      never
//! ```
//!
//! Each error begins with the field that it speaks of, as it stands in the API: `pools[1]`, `reservations[0].mac`,
//! `ipv6.gateway`.

use crate::{Error, Ipv4Range, Ipv6Range, Mac, NetworkSpec, error::invalid, limits};
use ipnet::Ipv6Net;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    fmt::Display,
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// An IPv4 address that the pool does not give. A NIC with its MAC gets it without asking; without a MAC it is for who
/// asks for just this address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Reservation {
    /// The address.
    #[cfg_attr(feature = "schema", schema(value_type = String, example = "10.0.0.60"))]
    pub address: Ipv4Addr,
    /// Whose it is; of any NIC that asks for it when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
}

/// The same for IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Reservation6 {
    /// The address.
    #[cfg_attr(feature = "schema", schema(value_type = String, example = "fd00::60"))]
    pub address: Ipv6Addr,
    /// Whose it is; of any NIC that asks for it when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
}

macro_rules! reservation_text {
    ($type:ident, $address:ty, $family:literal, $example:literal) => {
        impl Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match self.mac {
                    Some(mac) => write!(f, "{}={mac}", self.address),
                    None => Display::fmt(&self.address, f),
                }
            }
        }

        impl FromStr for $type {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self, Error> {
                let (address, mac) = match text.split_once('=') {
                    Some((address, mac)) => (address, Some(mac.parse()?)),
                    None => (text, None),
                };
                let address = address.parse::<$address>().map_err(|_| {
                    invalid(
                        format!("'{text:.100}' is not a reservation"),
                        format!("'{address:.50}' is not an {} address", $family),
                        format!("write ADDRESS or ADDRESS=MAC, for example {}", $example),
                    )
                })?;
                Ok(Self { address, mac })
            }
        }
    };
}
reservation_text!(Reservation, Ipv4Addr, "IPv4", "10.0.0.60=52:54:00:ab:cd:ef");
reservation_text!(Reservation6, Ipv6Addr, "IPv6", "fd00::60=52:54:00:ab:cd:ef");

/// The IPv6 addresses of a network, beside its IPv4 ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Ipv6Spec {
    /// Its addresses: 64 to 126 bits of prefix. May overlap with those of any other network.
    #[cfg_attr(feature = "schema", schema(value_type = String, example = "fd00:1::/64"))]
    pub cidr: Ipv6Net,
    /// The gateway's address: ours, the same on every host.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub gateway: Ipv6Addr,
    /// Whether VMs make their addresses themselves, of the prefix and their MAC (RFC 4862, RFC 4291 appendix A), instead of being told by
    /// DHCPv6. Each port then has just that address, and the prefix 64 bits.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stateless: bool,
    /// DNS servers that VMs are told of, by DHCPv6 and by router advertisements.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schema(value_type = Vec<String>))]
    pub dns: Vec<Ipv6Addr>,
    /// What is given to ports nobody pinned; all that is usable when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pools: Vec<Ipv6Range>,
    /// What is never given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub excluded: Vec<Ipv6Range>,
    /// What is kept for some.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reservations: Vec<Reservation6>,
}

impl Ipv6Spec {
    /// A subnet whose gateway is the first address behind the subnet's own (RFC 4291 section 2.6.1), and whose pool is all
    /// that is usable.
    ///
    /// # Errors
    /// A CIDR with host bits set, of a size or kind that cannot serve.
    pub fn new(cidr: Ipv6Net) -> Result<Self, Error> {
        check_cidr6(cidr)?;
        let spec = Self {
            cidr,
            gateway: (u128::from(cidr.network()) + 1).into(),
            stateless: false,
            dns: Vec::new(),
            pools: Vec::new(),
            excluded: Vec::new(),
            reservations: Vec::new(),
        };
        spec.check()?;
        Ok(spec)
    }

    /// The one address that a port with this MAC may have, where VMs make their addresses themselves.
    pub fn made_of(&self, mac: Mac) -> Option<Ipv6Addr> {
        let [a, b, c, d, e, f] = mac.octets();
        // The second bit of the first byte says "universal" there, and "local" here.
        let interface = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
        (self.stateless && self.cidr.prefix_len() == STATELESS_PREFIX_BITS)
            .then(|| (u128::from(self.cidr.network()) | u128::from(interface)).into())
    }

    /// Whether a port may have this address: inside, not excluded, and neither the gateway's nor one that IPv6 keeps for itself.
    pub fn is_port_address(&self, address: Ipv6Addr) -> bool {
        self.is_usable(address)
            && address != self.gateway
            && !self.excluded.iter().any(|r| r.contains(address))
    }

    fn is_usable(&self, address: Ipv6Addr) -> bool {
        self.cidr.contains(&address) && !own_addresses6(self.cidr).iter().any(|r| r.contains(address))
    }

    fn check_dns(&self) -> Result<(), Error> {
        let (is, most) = (self.dns.len(), limits::NETWORK_MAX_DNS_SERVERS);
        if is > most {
            return Err(invalid(
                "ipv6.dns: too many servers",
                format!("{is} were given, {most} are allowed"),
                "name fewer",
            ));
        }
        let nobody = |a: &&Ipv6Addr| a.is_unspecified() || a.is_multicast() || a.is_loopback();
        match self.dns.iter().find(nobody) {
            Some(server) => Err(invalid(
                format!("ipv6.dns: {server} is no server's address"),
                "it is unspecified, multicast or the VM's own",
                "name the address of a DNS server",
            )),
            None => Ok(()),
        }
    }

    /// Checks the subnet alone.
    ///
    /// # Errors
    /// What contradicts itself or a limit of [`crate::limits`].
    pub fn check(&self) -> Result<(), Error> {
        check_cidr6(self.cidr)?;
        if !self.is_usable(self.gateway) {
            return Err(invalid(
                format!("ipv6.gateway: {} does not fit", self.gateway),
                format!("it is not a usable address of {}", self.cidr),
                "leave it out, or choose one inside",
            ));
        }
        if self.stateless && self.cidr.prefix_len() != STATELESS_PREFIX_BITS {
            return Err(invalid(
                format!("ipv6.stateless: VMs cannot make addresses of {}", self.cidr),
                "what they add to the prefix has 64 bits, so the prefix has 64 too",
                "choose a /64, or leave `stateless` out",
            ));
        }
        self.check_dns()?;
        let fits = |r: &Ipv6Range| self.cidr.contains(&r.first()) && self.cidr.contains(&r.last());
        let pools: Vec<_> = self
            .pools
            .iter()
            .map(|r| (*r, fits(r), (r.first(), r.last())))
            .collect();
        check_pools("ipv6.pools", &pools, &self.cidr)?;
        let excluded: Vec<_> = self.excluded.iter().map(|r| (*r, fits(r))).collect();
        check_excluded("ipv6.excluded", &excluded, &self.cidr)?;
        let reservations: Vec<_> = self
            .reservations
            .iter()
            .map(|r| (r.address, r.mac, self.is_port_address(r.address)))
            .collect();
        check_reservations("ipv6.reservations", &reservations, &self.cidr)
    }
}

/// The bits of a prefix that hosts make addresses of (RFC 4291 section 2.5.1).
const STATELESS_PREFIX_BITS: u8 = 64;

/// The addresses of a subnet that IPv6 keeps for itself: the subnet's routers (RFC 4291 section 2.6.1) and, where there is room
/// for them, the subnet's anycast addresses (RFC 2526, RFC 5453).
pub fn own_addresses6(cidr: Ipv6Net) -> Vec<Ipv6Range> {
    let (first, last) = (u128::from(cidr.network()), u128::from(cidr.broadcast()));
    let anycast = match cidr.prefix_len() {
        64 => Some((first + 0xfdff_ffff_ffff_ff80, first + 0xfdff_ffff_ffff_ffff)),
        0..=120 => Some((last - 0x7f, last)),
        _ => None,
    };
    let mut own = vec![Ipv6Range::one(first.into())];
    own.extend(anycast.and_then(|(first, last)| Ipv6Range::new(first.into(), last.into()).ok()));
    own
}

fn check_cidr6(cidr: Ipv6Net) -> Result<(), Error> {
    let refuse = |why: String, fix: &str| {
        Err(invalid(
            format!("ipv6.cidr: '{cidr}' cannot be a network of VMs"),
            why,
            fix,
        ))
    };
    if cidr.addr() != cidr.network() {
        return refuse(
            "bits are set behind the prefix".into(),
            &format!("write {}/{}", cidr.network(), cidr.prefix_len()),
        );
    }
    let (least, most) = (limits::NETWORK6_MIN_PREFIX_BITS, limits::NETWORK6_MAX_PREFIX_BITS);
    if !(least..=most).contains(&cidr.prefix_len()) {
        let why = format!(
            "its prefix has {} bits, {least} to {most} are allowed: a /127 (RFC 6164) and a /128 have no room for gateway and VM",
            cidr.prefix_len()
        );
        return refuse(why, "choose one such as fd00:1::/64");
    }
    let net = cidr.network();
    let mapped = net.to_ipv4_mapped().is_some();
    if net.is_loopback()
        || net.is_unspecified()
        || net.is_multicast()
        || net.is_unicast_link_local()
        || mapped
    {
        return refuse(
            "it is unspecified, loopback, link-local, multicast or IPv4 in disguise".into(),
            "choose a local one such as fd00:1::/64 (RFC 4193), or one that was given to you",
        );
    }
    Ok(())
}

/// Checks what the IPv4 part of a spec says about who gets what. CIDR and gateway are checked before.
pub(crate) fn check_addressing(spec: &NetworkSpec) -> Result<(), Error> {
    let usable =
        |a: Ipv4Addr| spec.cidr.contains(&a) && a != spec.cidr.network() && a != spec.cidr.broadcast();
    let pools: Vec<_> = spec
        .pools()
        .map(|r| (r, usable(r.first()) && usable(r.last()), (r.first(), r.last())))
        .collect();
    check_pools("pools", &pools, &spec.cidr)?;
    let inside = |r: &Ipv4Range| spec.cidr.contains(&r.first()) && spec.cidr.contains(&r.last());
    let excluded: Vec<_> = spec.excluded.iter().map(|r| (*r, inside(r))).collect();
    check_excluded("excluded", &excluded, &spec.cidr)?;
    let reservations: Vec<_> = spec
        .reservations
        .iter()
        .map(|r| (r.address, r.mac, spec.is_port_address(r.address)))
        .collect();
    check_reservations("reservations", &reservations, &spec.cidr)?;
    if spec.quarantine_seconds > limits::QUARANTINE_MAX_SECONDS {
        return Err(invalid(
            format!("quarantine_seconds: {} is too long", spec.quarantine_seconds),
            format!("{} (7 days) is the most", limits::QUARANTINE_MAX_SECONDS),
            "choose less, or leave it out",
        ));
    }
    let Some(ipv6) = &spec.ipv6 else { return Ok(()) };
    if spec.mtu < limits::NETWORK6_MIN_MTU_BYTES {
        return Err(invalid(
            format!("mtu: {} bytes do not carry IPv6", spec.mtu),
            format!(
                "{} is the least that IPv6 needs (RFC 8200 section 5)",
                limits::NETWORK6_MIN_MTU_BYTES
            ),
            "leave it out for 1500, or leave IPv6 out",
        ));
    }
    ipv6.check()
}

/// A range, whether it fits, and its ends.
type Pool<R, A> = (R, bool, (A, A));

fn check_pools<R: Display, A: Ord + Copy>(
    field: &str,
    pools: &[Pool<R, A>],
    cidr: &impl Display,
) -> Result<(), Error> {
    at_most(field, pools.len(), limits::NETWORK_MAX_POOLS)?;
    for (i, (pool, fits, (first, last))) in pools.iter().enumerate() {
        if !fits || first > last {
            return Err(invalid(
                format!("{field}[{i}]: the pool {pool} does not fit"),
                format!("both ends must be usable addresses of {cidr}, the first not after the last"),
                "leave it out, or choose a range inside",
            ));
        }
        let overlapping = |(_, (_, _, (a, b))): &(usize, &Pool<R, A>)| first <= b && a <= last;
        if let Some((j, (other, _, _))) = pools[..i].iter().enumerate().find(overlapping) {
            return Err(invalid(
                format!("{field}[{i}]: the pool {pool} overlaps another"),
                format!("{field}[{j}] is {other}"),
                "join the two, or choose ranges that share no address",
            ));
        }
    }
    Ok(())
}

fn check_excluded<R: Display>(field: &str, ranges: &[(R, bool)], cidr: &impl Display) -> Result<(), Error> {
    at_most(field, ranges.len(), limits::NETWORK_MAX_EXCLUSIONS)?;
    match ranges.iter().position(|(_, fits)| !fits) {
        Some(i) => Err(invalid(
            format!("{field}[{i}]: {} cannot be excluded", ranges[i].0),
            format!("not all of it is in {cidr}"),
            "choose a range inside",
        )),
        None => Ok(()),
    }
}

fn check_reservations<A: Display + Ord + Copy>(
    field: &str,
    reservations: &[(A, Option<Mac>, bool)],
    cidr: &impl Display,
) -> Result<(), Error> {
    at_most(field, reservations.len(), limits::NETWORK_MAX_RESERVATIONS)?;
    let (mut addresses, mut macs) = (BTreeSet::new(), BTreeSet::new());
    for (i, (address, mac, fits)) in reservations.iter().enumerate() {
        if !fits {
            return Err(invalid(
                format!("{field}[{i}].address: {address} cannot be reserved"),
                format!("it is outside {cidr}, excluded, the gateway's, or one of the network's own"),
                "choose another",
            ));
        }
        if mac.is_some_and(|mac| !mac.is_unicast()) {
            return Err(invalid(
                format!("{field}[{i}].mac: no NIC can have it"),
                "it is a multicast, broadcast or empty address",
                "choose one whose first octet is even, such as 52:54:00:ab:cd:ef",
            ));
        }
        if !addresses.insert(*address) || mac.is_some_and(|mac| !macs.insert(mac)) {
            return Err(invalid(
                format!("{field}[{i}]: {address} or its MAC is reserved twice"),
                "an earlier reservation has one of them",
                "leave one of the two out",
            ));
        }
    }
    Ok(())
}

fn at_most(field: &str, is: usize, most: usize) -> Result<(), Error> {
    if is > most {
        return Err(invalid(
            format!("{field}: too many"),
            format!("{is} were given, {most} are allowed"),
            "name fewer, in larger ranges",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
