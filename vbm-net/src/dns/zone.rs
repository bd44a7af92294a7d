//! The names of one network: a pure table, and what it says to a question.
//!
//! | asked for | answer |
//! |---|---|
//! | `web1.<domain>`, or plain `web1` | the port's address |
//! | `<domain>` | SOA and NS: the gateway |
//! | another name below the domain, a plain name that nobody has | NXDOMAIN |
//! | an address of the network, IPv4 or IPv6, backwards | the port's name, else NXDOMAIN |
//! | `localhost`, and names that must not leave a host (RFC 6761, 6762, 7686) | here, or NXDOMAIN |
//! | anything else | not of this network: the caller forwards it, or refuses |
//!
//! Only names of this very network are in the table, so no question can bring up another network's.

use crate::{DesiredNetwork, Validated};
use hickory_proto::rr::{Name, RecordType};
use ipnet::{Ipv4Net, Ipv6Net};
use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// The digits of an address of IPv6.
const DIGITS: usize = 32;
/// The name of the gateway, unless a VM bears it.
const GATEWAY: &str = "gateway";
/// Names at the top that are answered here and never asked upstream.
const NEVER_FORWARDED: [&str; 4] = ["localhost", "local", "invalid", "onion"];

/// The names of one network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    /// Labels of the domain, in lower case, the nearest to the host first.
    domain: Vec<Box<[u8]>>,
    domain_name: Name,
    cidr: Ipv4Net,
    cidr6: Option<Ipv6Net>,
    gateway: Ipv4Addr,
    hosts: HashMap<Box<[u8]>, Vec<IpAddr>>,
    names: HashMap<IpAddr, Vec<Box<[u8]>>>,
    askers: HashSet<Ipv4Addr>,
    /// Whether others may be asked.
    pub(crate) forwards: bool,
    /// Whom; empty: those that the host asks.
    pub(crate) upstreams: Vec<IpAddr>,
}

/// What a zone says to a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found<'a> {
    /// The name has these addresses; the caller picks those of the type asked for.
    Addresses(&'a [IpAddr]),
    /// The address has these names, as first labels below the domain.
    Names(&'a [Box<[u8]>]),
    /// The name is the zone's own.
    Apex,
    /// The name is there, but nothing of that type.
    NoData,
    /// There is no such name.
    NxDomain,
    /// It is not ours to answer.
    Elsewhere,
}

/// What is said, and below which zone a denial stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verdict<'a> {
    pub(crate) found: Found<'a>,
    pub(crate) apex: Name,
}

const LOOPBACK: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
];

impl From<&Validated<DesiredNetwork>> for Zone {
    fn from(net: &Validated<DesiredNetwork>) -> Self {
        let spec = &net.spec;
        let text = spec.domain().unwrap_or(vbm_core::network::DEFAULT_DOMAIN);
        let domain: Vec<Box<[u8]>> = text.split('.').map(|l| lower(l.as_bytes())).collect();
        let mut zone = Self {
            domain_name: name_of(&domain),
            domain,
            cidr: spec.cidr,
            cidr6: spec.ipv6.as_ref().map(|s| s.cidr),
            gateway: spec.gateway,
            hosts: HashMap::new(),
            names: HashMap::new(),
            askers: net.ports.iter().map(|p| p.address).collect(),
            forwards: spec.forwards_dns(),
            upstreams: spec.dns_upstreams.clone(),
        };
        for port in &net.ports {
            for address in std::iter::once(port.address.into()).chain(port.address6.map(IpAddr::V6)) {
                zone.add(port.hostname.as_str(), address);
            }
        }
        for (address, name) in net.overlay.iter().flat_map(|o| &o.names) {
            zone.add(name.as_str(), (*address).into());
        }
        if !zone.hosts.contains_key(GATEWAY.as_bytes()) {
            zone.add(GATEWAY, spec.gateway.into());
        }
        zone
    }
}

impl Zone {
    fn add(&mut self, name: &str, address: IpAddr) {
        let name = lower(name.as_bytes());
        let addresses = self.hosts.entry(name.clone()).or_default();
        if !addresses.contains(&address) {
            addresses.push(address);
            self.names.entry(address).or_default().push(name);
        }
    }

    /// Whether this address is a port's of this host, which alone are answered.
    pub fn is_asker(&self, address: Ipv4Addr) -> bool {
        self.askers.contains(&address)
    }

    /// The full name of a host.
    pub(crate) fn full(&self, host: &[u8]) -> Name {
        let labels = std::iter::once(host).chain(self.domain.iter().map(|l| &**l));
        Name::from_labels(labels).unwrap_or_else(|_| self.domain_name.clone())
    }

    /// The name server of the zone: the gateway, under a name that leads to it.
    pub(crate) fn server(&self) -> Name {
        let gateway = IpAddr::from(self.gateway);
        let own = self.names.get(&gateway).and_then(|names| names.first());
        own.map_or_else(|| self.domain_name.clone(), |label| self.full(label))
    }

    /// Looks a name up.
    pub(crate) fn look(&self, name: &Name, kind: RecordType) -> Verdict<'_> {
        let labels: Vec<Box<[u8]>> = name.iter().map(lower).collect();
        let verdict = |found, apex| Verdict { found, apex };
        if let Some(rest) = below(&labels, &self.domain) {
            return verdict(self.below_domain(rest), self.domain_name.clone());
        }
        if let Some(rest) = below(&labels, &[lower(b"in-addr"), lower(b"arpa")]) {
            let (found, apex) = self.reverse(rest);
            return verdict(found, apex);
        }
        if let Some(rest) = below(&labels, &[lower(b"ip6"), lower(b"arpa")]) {
            let (found, apex) = self.reverse6(rest);
            return verdict(found, apex);
        }
        let top = labels.last().map(|l| &**l).unwrap_or_default();
        if top == b"localhost" {
            return verdict(Found::Addresses(&LOOPBACK), name_of(&labels[labels.len() - 1..]));
        }
        if NEVER_FORWARDED.iter().any(|n| n.as_bytes() == top) {
            return verdict(Found::NxDomain, name_of(&labels[labels.len() - 1..]));
        }
        if let [host] = &labels[..] {
            if let Some(addresses) = self.hosts.get(host) {
                return verdict(Found::Addresses(addresses), name_of(&labels));
            }
            // Nobody but us could know a host by one label; other types are questions about the top of the tree.
            if matches!(kind, RecordType::A | RecordType::AAAA) {
                return verdict(Found::NxDomain, Name::root());
            }
        }
        verdict(Found::Elsewhere, Name::root())
    }

    fn below_domain(&self, rest: &[Box<[u8]>]) -> Found<'_> {
        match rest {
            [] => Found::Apex,
            [host] => self
                .hosts
                .get(host)
                .map_or(Found::NxDomain, |a| Found::Addresses(a)),
            _ => Found::NxDomain,
        }
    }

    /// `rest` is what stands before `in-addr.arpa`, the last octet first. The zone ends at an octet: that of the CIDR, or the
    /// nearest below where it lies between two.
    fn reverse(&self, rest: &[Box<[u8]>]) -> (Found<'_>, Name) {
        let octets: Option<Vec<u8>> = rest.iter().rev().map(|l| octet(l)).collect();
        let elsewhere = (Found::Elsewhere, Name::root());
        let Some(octets) = octets.filter(|o| o.len() <= 4) else {
            // Not an address; below our own zone there is nothing of that kind.
            let known: Vec<u8> = rest.iter().rev().map_while(|l| octet(l)).collect();
            return match self.reverse_apex(&known) {
                Some(apex) => (Found::NxDomain, apex),
                None => elsewhere,
            };
        };
        let Some(apex) = self.reverse_apex(&octets) else {
            return elsewhere;
        };
        let [a, b, c, d] = octets[..] else {
            return (Found::NoData, apex);
        };
        let address = IpAddr::from([a, b, c, d]);
        match self.names.get(&address) {
            Some(names) => (Found::Names(names), apex),
            None => (Found::NxDomain, apex),
        }
    }

    /// The same before `ip6.arpa`, digit by digit (RFC 3596 section 2.5); the zone ends at a digit.
    fn reverse6(&self, rest: &[Box<[u8]>]) -> (Found<'_>, Name) {
        let elsewhere = (Found::Elsewhere, Name::root());
        let Some(net) = self.cidr6 else { return elsewhere };
        let digits: Vec<u8> = rest.iter().rev().map_while(|l| digit(l)).collect();
        let whole = usize::from(net.prefix_len().div_ceil(4)).min(DIGITS - 1);
        let Some(leading) = digits.get(..whole) else {
            return elsewhere;
        };
        let of = |some: &[u8]| some.iter().fold(0u128, |all, d| all << 4 | u128::from(*d));
        let last = digits.get(..DIGITS).map(|all| Ipv6Addr::from(of(all)));
        let first = Ipv6Addr::from(of(leading) << (128 - 4 * whole));
        let around = |bits: usize| u8::try_from(bits).ok().and_then(|b| Ipv6Net::new(first, b).ok());
        let ours = match last {
            Some(address) => net.contains(&address),
            None => net.contains(&first) || around(4 * whole).is_some_and(|z| z.contains(&net.network())),
        };
        if !ours {
            return elsewhere;
        }
        let labels = leading.iter().rev().map(|d| format!("{d:x}."));
        let apex = labels.collect::<String>() + "ip6.arpa.";
        let apex = apex.parse().unwrap_or_else(|_| Name::root());
        let found = match last {
            Some(address) if rest.len() == DIGITS => match self.names.get(&address.into()) {
                Some(names) => Found::Names(names),
                None => Found::NxDomain,
            },
            None if digits.len() == rest.len() => Found::NoData,
            // Not an address; below our own zone there is nothing of that kind.
            _ => Found::NxDomain,
        };
        (found, apex)
    }

    /// The reverse zone that these leading octets are in, if it is ours.
    fn reverse_apex(&self, octets: &[u8]) -> Option<Name> {
        let whole = usize::from(self.cidr.prefix_len().div_ceil(8)).min(3);
        let leading = octets.get(..whole)?;
        let mut address = [0; 4];
        for (to, from) in address.iter_mut().zip(octets) {
            *to = *from;
        }
        let asked = Ipv4Addr::from(address);
        let exact = octets.len() == 4;
        let zone = Ipv4Net::new(asked, u8::try_from(whole * 8).ok()?).ok()?.trunc();
        let ours = if exact {
            self.cidr.contains(&asked)
        } else {
            self.cidr.contains(&zone.addr()) || zone.contains(&self.cidr.addr())
        };
        ours.then(|| {
            let labels = leading.iter().rev().map(|o| o.to_string());
            let text = labels.fold(String::new(), |all, label| all + &label + ".") + "in-addr.arpa.";
            text.parse().unwrap_or_else(|_| Name::root())
        })
    }
}

/// The labels before a suffix, if it is one.
fn below<'a>(labels: &'a [Box<[u8]>], suffix: &[Box<[u8]>]) -> Option<&'a [Box<[u8]>]> {
    labels.strip_suffix(suffix)
}

fn lower(label: &[u8]) -> Box<[u8]> {
    label.to_ascii_lowercase().into()
}

fn octet(label: &[u8]) -> Option<u8> {
    let text = std::str::from_utf8(label).ok()?;
    let plain = !text.starts_with('+') && (text == "0" || !text.starts_with('0'));
    plain.then(|| text.parse().ok()).flatten()
}

/// A hexadecimal digit, as a label in lower case.
fn digit(label: &[u8]) -> Option<u8> {
    match label {
        [d @ b'0'..=b'9'] => Some(d - b'0'),
        [d @ b'a'..=b'f'] => Some(d - b'a' + 10),
        _ => None,
    }
}

fn name_of(labels: &[Box<[u8]>]) -> Name {
    Name::from_labels(labels.iter().map(|l| &**l)).unwrap_or_else(|_| Name::root())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixture::{lab, spanning};
    use vbm_core::NetworkMode;

    fn zone() -> Zone {
        let mut net = lab(NetworkMode::Nat).into_inner();
        net.spec.domain = Some("lab.example".into());
        net.ports[0].hostname = "web1".parse().unwrap();
        net.ports[1].hostname = "db1".parse().unwrap();
        Zone::from(&Validated::<DesiredNetwork>::new(net).unwrap())
    }

    fn say(zone: &Zone, name: &str, kind: RecordType) -> String {
        let verdict = zone.look(&name.parse().unwrap(), kind);
        let found = match verdict.found {
            Found::Addresses(a) => format!("{a:?}"),
            Found::Names(n) => n.iter().map(|n| zone.full(n).to_string()).collect(),
            other => format!("{other:?}"),
        };
        format!("{found} {}", verdict.apex)
    }

    #[test]
    fn a_vm_is_found_by_its_full_and_its_plain_name_in_any_case() {
        let zone = zone();
        for name in ["web1.lab.example.", "WEB1.Lab.Example.", "web1."] {
            assert!(
                say(&zone, name, RecordType::A).starts_with("[10.77.0.10]"),
                "{name}"
            );
        }
        assert_eq!(
            say(&zone, "10.0.77.10.in-addr.arpa.", RecordType::PTR),
            "web1.lab.example. 0.77.10.in-addr.arpa."
        );
    }

    #[test]
    fn a_port_with_an_address_of_ipv6_has_it_under_its_name_and_backwards() {
        let mut net = lab(NetworkMode::Nat).into_inner();
        net.spec.ipv6 = Some(vbm_core::Ipv6Spec::new("fd00:7::/66".parse().unwrap()).unwrap());
        net.ports[0].hostname = "web1".parse().unwrap();
        net.ports[0].address6 = Some("fd00:7::1a".parse().unwrap());
        let zone = Zone::from(&Validated::<DesiredNetwork>::new(net).unwrap());
        assert!(
            say(&zone, "web1.", RecordType::AAAA).starts_with("[10.77.0.10, fd00:7::1a]"),
            "the type is picked later"
        );
        let backwards = |text: &str| -> String {
            let digits = format!("{:032x}", u128::from(text.parse::<Ipv6Addr>().unwrap()));
            digits.chars().rev().map(|d| format!("{d}.")).collect::<String>() + "ip6.arpa."
        };
        let apex = "0.0.0.0.0.0.0.0.0.7.0.0.0.0.0.d.f.ip6.arpa.";
        let own = backwards("fd00:7::1a");
        for (name, said) in [
            (own.clone(), format!("web1.vbm.internal. {apex}")),
            (own.to_uppercase(), format!("web1.vbm.internal. {apex}")),
            (backwards("fd00:7::1b"), format!("NxDomain {apex}")),
            // In the network, and behind another digit than its first address.
            (
                backwards("fd00:7::3000:0:0:1"),
                format!("NxDomain 3.{}", &apex[2..]),
            ),
            (backwards("fd00:7::4000:0:0:1"), "Elsewhere .".into()),
            (backwards("fd00:8::1a"), "Elsewhere .".into()),
            (format!("0.{own}"), format!("NxDomain {apex}")),
            (format!("x.0.{apex}"), format!("NxDomain {apex}")),
            (format!("0.{apex}"), format!("NoData {apex}")),
            (apex.to_owned(), format!("NoData {apex}")),
            ("7.0.0.0.0.0.d.f.ip6.arpa.".into(), "Elsewhere .".into()),
        ] {
            assert_eq!(say(&zone, &name, RecordType::PTR), said, "{name}");
        }
        assert_eq!(
            say(&self::zone(), &own, RecordType::PTR),
            "Elsewhere .",
            "without IPv6"
        );
    }

    #[test]
    fn what_nobody_bears_is_denied_here_and_the_world_is_elsewhere() {
        let zone = zone();
        for (name, said) in [
            ("web2.lab.example.", "NxDomain lab.example."),
            ("a.web1.lab.example.", "NxDomain lab.example."),
            ("lab.example.", "Apex lab.example."),
            ("web2.", "NxDomain ."),
            (
                "11.0.77.10.in-addr.arpa.",
                "db1.lab.example. 0.77.10.in-addr.arpa.",
            ),
            ("12.0.77.10.in-addr.arpa.", "NxDomain 0.77.10.in-addr.arpa."),
            ("0.77.10.in-addr.arpa.", "NoData 0.77.10.in-addr.arpa."),
            ("x.0.77.10.in-addr.arpa.", "NxDomain 0.77.10.in-addr.arpa."),
            ("10.in-addr.arpa.", "Elsewhere ."),
            ("10.1.77.10.in-addr.arpa.", "Elsewhere ."),
            ("example.", "NxDomain ."),
            ("www.example.", "Elsewhere ."),
            ("xlab.example.", "Elsewhere ."),
            ("printer.local.", "NxDomain local."),
            (".", "Elsewhere ."),
        ] {
            assert_eq!(say(&zone, name, RecordType::A), said, "{name}");
        }
        assert_eq!(say(&zone, "com.", RecordType::NS), "Elsewhere .");
        assert!(say(&zone, "a.localhost.", RecordType::A).starts_with("[127.0.0.1, ::1]"));
    }

    #[test]
    fn ports_on_other_hosts_have_names_but_may_not_ask_here() {
        let mut net = spanning().into_inner();
        let overlay = net.overlay.as_mut().unwrap();
        let far = overlay.remotes[0].address;
        overlay.names.insert(far, "far1".parse().unwrap());
        let zone = Zone::from(&Validated::<DesiredNetwork>::new(net.clone()).unwrap());
        assert!(say(&zone, "far1.", RecordType::A).starts_with(&format!("[{far}]")));
        assert!(!zone.is_asker(far) && zone.is_asker(net.ports[0].address));
    }

    #[test]
    fn reverse_zones_end_at_an_octet() {
        for (cidr, apex) in [
            ("10.0.0.0/8", "10.in-addr.arpa."),
            ("10.16.0.0/12", "20.10.in-addr.arpa."),
            ("10.77.0.0/30", "0.77.10.in-addr.arpa."),
        ] {
            let mut net = lab(NetworkMode::Nat).into_inner();
            net.spec = vbm_core::NetworkSpec::new(NetworkMode::Nat, cidr.parse().unwrap()).unwrap();
            net.ports.clear();
            net.forwards.clear();
            let zone = Zone::from(&Validated::<DesiredNetwork>::new(net).unwrap());
            let asked = if cidr.starts_with("10.77") {
                "2.0.77.10.in-addr.arpa."
            } else {
                "9.9.20.10.in-addr.arpa."
            };
            assert_eq!(
                say(&zone, asked, RecordType::PTR),
                format!("NxDomain {apex}"),
                "{cidr}"
            );
        }
    }
}
