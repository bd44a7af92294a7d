//! Security groups: which traffic may reach a port, and leave it. Stateful: answers to allowed traffic pass.
//!
//! A port may do what any of its groups allows: rules only allow, so their order does not matter. A group that has no egress rule
//! lets all out, as if it had the rule `egress:any`; [`GroupSpec::egress_closed`] takes that away.

mod rule;
pub use rule::{IcmpKind, Peer, Rule};

use crate::{Error, GroupId, Meta, error::invalid, limits};
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

/// What is wanted of a group: everything not allowed by a rule is dropped on its way in; the way out is open until a rule speaks of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct GroupSpec {
    /// The rules; their order does not matter.
    pub rules: Vec<Rule>,
    /// Whether nothing may leave but what egress rules allow, also when there is no such rule.
    #[serde(default, skip_serializing_if = "is_false")]
    #[cfg_attr(feature = "schema", schema(default = false))]
    pub egress_closed: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the form that serde asks for")]
const fn is_false(flag: &bool) -> bool {
    !*flag
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
    /// From the VM.
    Egress,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

impl FromStr for Direction {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "ingress" => Ok(Self::Ingress),
            "egress" => Ok(Self::Egress),
            _ => Err(invalid(
                format!("'{text}' is not a direction"),
                "traffic goes ingress, towards the VM, or egress, from it",
                "choose one of them",
            )),
        }
    }
}

/// What a rule speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "each is the name of a protocol")]
pub enum Protocol {
    Tcp,
    Udp,
    /// ICMP of IPv4.
    Icmp,
    /// ICMP of IPv6.
    Icmpv6,
    /// Every protocol.
    Any,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
            Self::Icmpv6 => "icmpv6",
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
            "icmpv6" => Ok(Self::Icmpv6),
            "any" => Ok(Self::Any),
            _ => Err(invalid(
                format!("'{text}' is not a protocol"),
                "a rule speaks of tcp, udp, icmp, icmpv6 or any",
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

impl GroupSpec {
    /// The group `default` as users of OpenStack know it: its members reach each other, and everything else.
    pub fn default_group() -> Self {
        let from_itself = Rule {
            peer: Some(Peer::Itself),
            ..Rule::all(Direction::Ingress)
        };
        Self {
            rules: vec![from_itself, Rule::all(Direction::Egress)],
            egress_closed: false,
        }
    }

    /// Whether all may leave: no rule speaks of egress, and it was not closed.
    pub fn egress_open(&self) -> bool {
        !self.egress_closed && !self.rules.iter().any(|r| r.direction == Direction::Egress)
    }

    /// Checks the group alone.
    ///
    /// # Errors
    /// Too many rules, or a rule that makes no sense.
    pub fn check(&self) -> Result<(), Error> {
        if self.rules.len() > limits::GROUP_MAX_RULES {
            return Err(invalid(
                "too many rules",
                format!(
                    "{} were given, {} are allowed",
                    self.rules.len(),
                    limits::GROUP_MAX_RULES
                ),
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
            "egress:any",
            "any@self",
            "egress:tcp/443@group:web",
            "udp/53@fd00::/8",
            "icmp/type=8",
            "icmpv6/type=1,code=4@2001:db8::1/128",
            "any@group:0190b6f2-4c1e-7cc3-a7a4-0d1f0000beef",
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
            "inwards:tcp",
            "tcp/type=8",
            "icmp/type=255",
            "icmp/type=256",
            "icmp/type=8,code=",
            "icmp/type=8,9",
            "icmp@fd00::/8",
            "icmpv6@10.0.0.0/8",
            "tcp@group:",
            "tcp@fd00::/129",
            "tcp@self/24",
        ] {
            assert!(bad.parse::<Rule>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_group_written_before_there_was_egress_is_read_and_lets_all_out() {
        let old = r#"{"rules":[{"direction":"ingress","protocol":"tcp","ports":"80","from":"10.0.0.0/8"}]}"#;
        let spec: GroupSpec = serde_json::from_str(old).unwrap();
        assert_eq!(spec.rules, ["tcp/80@10.0.0.0/8".parse().unwrap()]);
        assert!(spec.egress_open());
        assert_eq!(
            serde_json::to_string(&spec).unwrap(),
            old,
            "and written as it was"
        );
        let mut spoken = spec.clone();
        spoken.rules.push("egress:udp/53".parse().unwrap());
        assert!(!spoken.egress_open());
        assert!(
            !GroupSpec {
                egress_closed: true,
                ..spec
            }
            .egress_open()
        );
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
