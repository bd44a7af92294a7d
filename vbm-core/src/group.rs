//! Security groups: which traffic may reach a port. Stateful: answers to allowed traffic pass.

use crate::{Error, GroupId, Meta, error::invalid, limits};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// A security group: its record in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Group {
    /// Id, name, generation.
    #[serde(flatten)]
    pub meta: Meta<GroupId>,
    /// What is wanted.
    pub spec: GroupSpec,
}

/// What is wanted of a group: everything not allowed by a rule is dropped on its way in; the way out is open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct GroupSpec {
    /// The rules; their order does not matter.
    pub rules: Vec<Rule>,
}

/// The direction of traffic, seen from the VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Direction {
    /// Towards the VM.
    #[default]
    Ingress,
}

/// What a rule speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "each is the name of a protocol")]
pub enum Protocol {
    Tcp,
    Udp,
    Icmp,
    /// Every protocol.
    Any,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
            Self::Any => "any",
        })
    }
}

impl FromStr for Protocol {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            "icmp" => Ok(Self::Icmp),
            "any" => Ok(Self::Any),
            _ => Err(invalid(
                format!("'{text}' is not a protocol"),
                "a rule speaks of tcp, udp, icmp or any",
                "choose one of them",
            )),
        }
    }
}

/// A range of TCP or UDP ports, both ends included. Never empty, never port 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// A range.
    ///
    /// # Errors
    /// Port 0, or a first port after the last.
    pub fn new(first: u16, last: u16) -> Result<Self, Error> {
        if first == 0 {
            return Err(bad_ports(&format!("{first}-{last}"), "port 0 does not exist"));
        }
        if first > last {
            return Err(bad_ports(
                &format!("{first}-{last}"),
                "the first port comes after the last",
            ));
        }
        Ok(Self { first, last })
    }

    /// The first port.
    pub const fn first(self) -> u16 {
        self.first
    }
    /// The last port.
    pub const fn last(self) -> u16 {
        self.last
    }
    /// Whether a port is in it.
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

/// Reads one port as people write it.
///
/// # Errors
/// Anything but 1 to 65535.
pub fn parse_port(text: &str) -> Result<u16, Error> {
    match text.parse::<u32>() {
        Ok(0) => Err(bad_ports(text, "port 0 does not exist")),
        Ok(port) => u16::try_from(port).map_err(|_| bad_ports(text, "ports end at 65535")),
        Err(_) => Err(bad_ports(text, "it is not a number")),
    }
}

fn bad_ports(text: &str, why: &str) -> Error {
    invalid(
        format!("'{text}' is not a port or a range of ports"),
        why,
        "write a port such as 443 or a range such as 8000-8080, between 1 and 65535",
    )
}

impl FromStr for PortRange {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        if text.contains(':') {
            return Err(bad_ports(text, "':' does not separate the ends of a range"));
        }
        match text.split_once('-') {
            None => parse_port(text).map(|p| Self { first: p, last: p }),
            Some((first, last)) => Self::new(parse_port(first)?, parse_port(last)?),
        }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}
impl fmt::Debug for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
crate::text::string_serde!(PortRange, "a port such as 443 or a range such as 8000-8080");

/// One rule: traffic that it describes may pass.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Which way.
    #[serde(default)]
    pub direction: Direction,
    /// Which protocol.
    pub protocol: Protocol,
    /// Which destination ports; `None` is all. Only with tcp and udp.
    #[serde(default)]
    pub ports: Option<PortRange>,
    /// From where; `None` is anywhere.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
    pub from: Option<Ipv4Net>,
}

impl Rule {
    /// Checks the rule alone.
    ///
    /// # Errors
    /// Ports with a protocol that has none.
    pub fn check(&self) -> Result<(), Error> {
        match (self.protocol, self.ports) {
            (Protocol::Icmp | Protocol::Any, Some(ports)) => Err(invalid(
                format!("a rule for {} cannot name ports {ports}", self.protocol),
                "only tcp and udp have ports",
                "leave the ports out, or choose tcp or udp",
            )),
            _ => Ok(()),
        }
    }
}

/// `tcp/80`, `udp/5000-5010@10.0.0.0/8`, `icmp`, `any@10.0.0.0/8`: the form of the CLI.
impl FromStr for Rule {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let (head, from) = match text.split_once('@') {
            Some((head, from)) => (head, Some(crate::network::parse_cidr(from)?)),
            None => (text, None),
        };
        if head.contains(':') {
            return Err(invalid(
                format!("'{text}' is not a rule"),
                "':' separates nothing in a rule",
                "write PROTOCOL[/PORTS][@CIDR], for example tcp/443 or udp/5000-5010@10.0.0.0/8",
            ));
        }
        let (protocol, ports) = match head.split_once('/') {
            Some((protocol, ports)) => (protocol.parse()?, Some(ports.parse()?)),
            None => (head.parse()?, None),
        };
        let rule = Self {
            direction: Direction::Ingress,
            protocol,
            ports,
            from,
        };
        rule.check()?;
        Ok(rule)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.protocol)?;
        if let Some(ports) = self.ports {
            write!(f, "/{ports}")?;
        }
        if let Some(from) = self.from {
            write!(f, "@{from}")?;
        }
        Ok(())
    }
}

impl GroupSpec {
    /// Checks the group alone.
    ///
    /// # Errors
    /// Too many rules, or a rule that makes no sense.
    pub fn check(&self) -> Result<(), Error> {
        if self.rules.len() > limits::GROUP_MAX_RULES {
            return Err(invalid(
                "too many rules",
                format!("{} were given, 256 are allowed", self.rules.len()),
                "join port ranges, or use several groups",
            ));
        }
        self.rules.iter().try_for_each(Rule::check)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rules_are_read_as_they_are_written() {
        for text in [
            "tcp/80",
            "udp/5000-5010@10.0.0.0/8",
            "icmp",
            "any@192.168.0.0/16",
            "tcp",
        ] {
            assert_eq!(text.parse::<Rule>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn rules_that_opened_more_than_was_meant_elsewhere_are_refused() {
        for bad in [
            "443:80",
            "tcp/443:80",
            "tcp/0",
            "tcp/70000",
            "tcp/9-8",
            "icmp/80",
            "any/1",
            "sctp",
            "",
            "tcp/",
            "tcp/80@x",
            "tcp/-1",
        ] {
            assert!(bad.parse::<Rule>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn every_range_survives_its_text(a in 1u16.., b in 1u16..) {
            let range = PortRange::new(a.min(b), a.max(b)).unwrap();
            prop_assert_eq!(range.to_string().parse::<PortRange>().unwrap(), range);
        }
        #[test]
        fn reading_a_rule_never_panics(text in ".{0,40}") { drop(text.parse::<Rule>()); }
    }
}
