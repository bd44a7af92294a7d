//! One rule of a security group, and how it is written.

use super::{Direction, PortRange, Protocol};
use crate::{Error, GroupId, Name, error::invalid};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Which ICMP messages: a type, or one code of it. Written `type=8` or `type=3,code=4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IcmpKind {
    kind: u8,
    code: Option<u8>,
}

impl IcmpKind {
    /// A type, with all its codes or one.
    ///
    /// # Errors
    /// Type 255, which is reserved (RFC 4443 section 2.1), and which packet filters take for every type.
    pub fn new(kind: u8, code: Option<u8>) -> Result<Self, Error> {
        if kind == u8::MAX {
            return Err(bad_icmp(
                "type=255",
                "type 255 is reserved, and filters take it for every type",
            ));
        }
        Ok(Self { kind, code })
    }
    /// The type.
    pub const fn kind(self) -> u8 {
        self.kind
    }
    /// The code; `None` is each of them.
    pub const fn code(self) -> Option<u8> {
        self.code
    }
    /// Whether a message is of it.
    pub fn covers(self, kind: u8, code: u8) -> bool {
        self.kind == kind && self.code.is_none_or(|c| c == code)
    }
}

fn bad_icmp(text: &str, why: &str) -> Error {
    invalid(
        format!("'{text}' does not name ICMP messages"),
        why,
        "write a type such as type=8, or a type and a code such as type=3,code=4, each from 0 to 255",
    )
}

impl FromStr for IcmpKind {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let number = |part: &str, key: &str| -> Result<u8, Error> {
            let value = part
                .strip_prefix(key)
                .ok_or_else(|| bad_icmp(text, "it must begin with type= and may go on with ,code="))?;
            value
                .parse()
                .map_err(|_| bad_icmp(text, "types and codes are numbers from 0 to 255"))
        };
        match text.split_once(',') {
            None => Self::new(number(text, "type=")?, None),
            Some((kind, code)) => Self::new(number(kind, "type=")?, Some(number(code, "code=")?)),
        }
    }
}

impl fmt::Display for IcmpKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "type={}", self.kind)?;
        self.code.map_or(Ok(()), |code| write!(f, ",code={code}"))
    }
}
crate::text::string_serde!(IcmpKind, "ICMP messages such as type=8 or type=3,code=4");

/// Whose ports are the other end: the members of a group.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// The group that the rule stands in.
    Itself,
    /// A group by its id: the form in which records hold it.
    Group(GroupId),
    /// A group by its name: a request's form; the controller turns it into an id.
    Named(Name),
}

impl FromStr for Peer {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        if text == ITSELF {
            return Ok(Self::Itself);
        }
        match text.parse() {
            Ok(id) => Ok(Self::Group(id)),
            Err(_) => text.parse().map(Self::Named),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Itself => f.write_str(ITSELF),
            Self::Group(id) => fmt::Display::fmt(id, f),
            Self::Named(name) => fmt::Display::fmt(name, f),
        }
    }
}
crate::text::string_serde!(Peer, "a group by id or name, or 'self'");

/// How a rule names the group that it stands in.
const ITSELF: &str = "self";
/// What a group is written behind in a rule.
const GROUP_PREFIX: &str = "group:";

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
    /// The addresses of the other end: whence, or with egress whither; `None` is anywhere.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
    pub from: Option<IpNet>,
    /// Which messages; `None` is all. Only with icmp and icmpv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
    pub icmp: Option<IcmpKind>,
    /// The group whose members are the other end: instead of `from`. A group that is gone has no members.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
    pub peer: Option<Peer>,
}

impl Rule {
    /// A rule for all traffic of a direction.
    pub const fn all(direction: Direction) -> Self {
        Self {
            direction,
            protocol: Protocol::Any,
            ports: None,
            from: None,
            icmp: None,
            peer: None,
        }
    }

    /// Checks the rule alone.
    ///
    /// # Errors
    /// Ports with a protocol that has none, messages with one that is not ICMP, two other ends, or one of the other family.
    pub fn check(&self) -> Result<(), Error> {
        let icmp = matches!(self.protocol, Protocol::Icmp | Protocol::Icmpv6);
        if let Some(ports) = self.ports.filter(|_| icmp || self.protocol == Protocol::Any) {
            return Err(invalid(
                format!("a rule for {} cannot name ports {ports}", self.protocol),
                "only tcp and udp have ports",
                "leave the ports out, or choose tcp or udp; messages of ICMP are written type=8",
            ));
        }
        if let Some(kind) = self.icmp.filter(|_| !icmp) {
            return Err(invalid(
                format!("a rule for {} cannot name {kind}", self.protocol),
                "only icmp and icmpv6 have types and codes",
                "leave them out, or choose icmp or icmpv6",
            ));
        }
        if let (Some(from), Some(peer)) = (self.from, &self.peer) {
            return Err(invalid(
                format!("a rule cannot speak of {from} and of group {peer}"),
                "the other end is given by addresses or by a group, not by both",
                "write two rules",
            ));
        }
        let foreign = |net: &IpNet| match self.protocol {
            Protocol::Icmp => matches!(net, IpNet::V6(_)),
            Protocol::Icmpv6 => matches!(net, IpNet::V4(_)),
            _ => false,
        };
        if let Some(net) = self.from.filter(foreign) {
            return Err(invalid(
                format!("a rule for {} cannot speak of {net}", self.protocol),
                "icmp is of IPv4 and icmpv6 of IPv6",
                "choose the other of the two",
            ));
        }
        Ok(())
    }
}

fn parse_peer_net(text: &str) -> Result<IpNet, Error> {
    if text.contains(':') {
        return text.parse().map_err(|_| {
            invalid(
                format!("'{text}' is neither addresses nor a group"),
                "after '@' comes a CIDR, self, or group: and a name",
                "write for example @10.0.0.0/8, @fd00::/8, @self or @group:web",
            )
        });
    }
    crate::network::parse_cidr(text).map(IpNet::V4)
}

/// `tcp/80`, `udp/5000-5010@10.0.0.0/8`, `icmp/type=8@fd00::/8`, `any@self`, `egress:tcp/443@group:web`: the form of the CLI.
impl FromStr for Rule {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let (head, end) = match text.split_once('@') {
            Some((head, end)) => (head, Some(end)),
            None => (text, None),
        };
        let (direction, head) = match head.split_once(':') {
            Some((way @ ("ingress" | "egress"), head)) => (way.parse()?, head),
            _ => (Direction::Ingress, head),
        };
        if head.contains(':') {
            return Err(invalid(
                format!("'{text}' is not a rule"),
                "':' comes only behind ingress or egress",
                "write [egress:]PROTOCOL[/PORTS][@CIDR], for example tcp/443 or udp/5000-5010@10.0.0.0/8",
            ));
        }
        let (protocol, what) = match head.split_once('/') {
            Some((protocol, what)) => (protocol.parse()?, Some(what)),
            None => (head.parse()?, None),
        };
        let mut rule = Self {
            protocol,
            ..Self::all(direction)
        };
        match what {
            Some(kind) if kind.starts_with("type") => rule.icmp = Some(kind.parse()?),
            Some(ports) => rule.ports = Some(ports.parse()?),
            None => {}
        }
        match end {
            Some(ITSELF) => rule.peer = Some(Peer::Itself),
            Some(end) => match end.strip_prefix(GROUP_PREFIX) {
                Some(group) => rule.peer = Some(group.parse()?),
                None => rule.from = Some(parse_peer_net(end)?),
            },
            None => {}
        }
        rule.check()?;
        Ok(rule)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.direction == Direction::Egress {
            write!(f, "{}:", self.direction)?;
        }
        write!(f, "{}", self.protocol)?;
        if let Some(ports) = self.ports {
            write!(f, "/{ports}")?;
        }
        if let Some(icmp) = self.icmp {
            write!(f, "/{icmp}")?;
        }
        match (&self.from, &self.peer) {
            (Some(from), _) => write!(f, "@{from}"),
            (None, Some(Peer::Itself)) => write!(f, "@{ITSELF}"),
            (None, Some(peer)) => write!(f, "@{GROUP_PREFIX}{peer}"),
            (None, None) => Ok(()),
        }
    }
}
