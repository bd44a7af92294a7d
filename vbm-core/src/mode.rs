//! How networks meet the world, and what each mode asks of its network.
//!
//! | | out | in | addresses |
//! |---|---|---|---|
//! | `nat` | as the host | forwards, floating IPs | ours, any |
//! | `isolated` | | | ours, any |
//! | `routed` | by the host, as they are | by a route to the host, as groups allow | ours, once on a host |
//! | `bridged` | on the LAN of an interface | the same LAN, as groups allow | the LAN's |

use crate::{DhcpSpec, Error, MetadataMode, NetworkSpec, error::invalid};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// How a network meets the world.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum NetworkMode {
    /// Out through the host's address; in by forwards.
    #[default]
    Nat,
    /// Not at all: its VMs reach each other and the gateway's services.
    Isolated,
    /// By the host's routes, with the addresses of its VMs as they are. What is outside needs a route to the host.
    Routed,
    /// On the LAN of an interface of the host, whose router is the gateway.
    Bridged,
}

impl NetworkMode {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Nat, Self::Isolated, Self::Routed, Self::Bridged];

    /// Whether its packets go by the host's routes: in a pair of links of their own.
    pub const fn goes_by_host(self) -> bool {
        matches!(self, Self::Nat | Self::Routed)
    }

    /// Why it can have neither forwards nor floating IPs; `None`: it can.
    pub const fn without_nat(self) -> Option<&'static str> {
        match self {
            Self::Nat => None,
            Self::Isolated => Some("which has no way in"),
            Self::Routed => Some("where VMs are reached by their own addresses"),
            Self::Bridged => Some("where VMs are on the LAN with addresses of their own"),
        }
    }
}

impl fmt::Display for NetworkMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Nat => "nat",
            Self::Isolated => "isolated",
            Self::Routed => "routed",
            Self::Bridged => "bridged",
        })
    }
}

impl FromStr for NetworkMode {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let found = Self::ALL.into_iter().find(|mode| mode.to_string() == text);
        found.ok_or_else(|| {
            invalid(
                format!("mode: '{text:.100}' is not a network mode"),
                "VBM has nat, isolated, routed and bridged",
                "choose one of them",
            )
        })
    }
}

/// The longest name of an interface, in bytes: `IFNAMSIZ` of Linux without its NUL.
pub const INTERFACE_MAX_BYTES: usize = 15;

/// The name of an interface of a host, such as `eth0`, `br-lan` or `bond0.100`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", schema(value_type = String, example = "br-lan"))]
#[serde(try_from = "String", into = "String")]
pub struct InterfaceName(String);

impl InterfaceName {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for InterfaceName {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let known = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let begins_well = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        if begins_well && text.len() <= INTERFACE_MAX_BYTES && text.bytes().all(known) {
            return Ok(Self(text.to_owned()));
        }
        Err(invalid(
            format!("uplink: '{text:.100}' is not the name of an interface"),
            format!(
                "it is not 1 to {INTERFACE_MAX_BYTES} of letters, digits, '.', '_' and '-', beginning with a letter or digit"
            ),
            "write it as `ip link` shows it, such as eth0",
        ))
    }
}

impl TryFrom<String> for InterfaceName {
    type Error = Error;
    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<InterfaceName> for String {
    fn from(name: InterfaceName) -> Self {
        name.0
    }
}

/// Whether a spec asks what its mode can do.
pub(crate) fn check(spec: &NetworkSpec) -> Result<(), Error> {
    let mode = spec.mode;
    let refuse = |what: &str, why: String, fix: &str| Err(invalid(what, why, fix));
    match (mode, &spec.uplink) {
        (NetworkMode::Bridged, None) => {
            return refuse(
                "uplink: none is given",
                "a bridged network is on the LAN of an interface of the host, and only you know which".into(),
                "name a bridge of the host, or an interface without addresses",
            );
        }
        (NetworkMode::Nat | NetworkMode::Isolated, Some(uplink)) => {
            return refuse(
                "uplink: it cannot be used",
                format!(
                    "a network of mode {mode} does not go by {uplink}: only routed and bridged ones are told where"
                ),
                "leave it out",
            );
        }
        _ => {}
    }
    if mode != NetworkMode::Bridged {
        if !spec.serve_dhcp {
            return refuse(
                "serve_dhcp: DHCP cannot be switched off",
                format!("nobody else can tell the VMs of a network of mode {mode} their addresses"),
                "leave it on; it is bound to the network's own ports",
            );
        }
        return Ok(());
    }
    let lans = "of a bridged network the LAN has its own, and VBM has no address there";
    if spec.serve_dns || spec.metadata != MetadataMode::Off {
        return refuse(
            "serve_dns, metadata: they cannot be served",
            lans.into(),
            "leave them out; name the LAN's DNS servers with `dns`",
        );
    }
    if spec.ipv6.is_some() {
        return refuse(
            "ipv6: it cannot be given",
            "of a bridged network VBM gives IPv4 addresses alone".into(),
            "leave it out",
        );
    }
    if spec.vni.is_some() {
        return refuse(
            "vni: it cannot be given",
            "a bridged network reaches other hosts by its LAN, not by VXLAN".into(),
            "leave it out",
        );
    }
    if !spec.serve_dhcp && spec.dhcp != DhcpSpec::default() {
        return refuse(
            "dhcp: nobody would tell it",
            "the LAN's own DHCP server answers the VMs".into(),
            "leave it out, or let VBM serve DHCP to its VMs there (`serve_dhcp`)",
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ErrorKind, Ipv6Spec, network::parse_cidr};

    fn spec(mode: NetworkMode, uplink: Option<&str>) -> Result<NetworkSpec, Error> {
        let uplink = uplink.map(str::parse).transpose()?;
        NetworkSpec::with_uplink(mode, parse_cidr("10.0.0.0/24")?, uplink)
    }

    #[test]
    fn a_mode_is_read_as_it_is_written() {
        for mode in NetworkMode::ALL {
            assert_eq!(mode.to_string().parse::<NetworkMode>().unwrap(), mode);
            let json = serde_json::to_string(&mode).unwrap();
            assert_eq!(json, format!("\"{mode}\""));
        }
        let error = "Bridge".parse::<NetworkMode>().unwrap_err();
        assert!(error.why().contains("routed and bridged"), "{error}");
    }

    #[test]
    fn names_of_interfaces_are_those_that_a_rule_may_hold() {
        for good in [
            "eth0",
            "br-lan",
            "bond0.100",
            "enp3s0f0np0",
            "a",
            "123456789012345",
        ] {
            assert_eq!(good.parse::<InterfaceName>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            "1234567890123456",
            "eth+",
            "-i",
            "!eth0",
            "eth 0",
            "eth0\n",
            "a/b",
            "..",
            "eth:1",
            "län",
        ] {
            assert!(bad.parse::<InterfaceName>().is_err(), "{bad:?}");
            assert!(
                serde_json::from_value::<InterfaceName>(bad.into()).is_err(),
                "{bad:?}"
            );
        }
        assert!("x".repeat(300).parse::<InterfaceName>().is_err());
    }

    #[test]
    fn only_routed_and_bridged_networks_are_told_an_uplink_and_a_bridged_one_must_be() {
        use NetworkMode as M;
        for (mode, uplink, ok) in [
            (M::Nat, None, true),
            (M::Nat, Some("eth0"), false),
            (M::Isolated, Some("eth0"), false),
            (M::Routed, None, true),
            (M::Routed, Some("eth0"), true),
            (M::Bridged, None, false),
            (M::Bridged, Some("br-lan"), true),
        ] {
            let made = spec(mode, uplink);
            assert_eq!(made.is_ok(), ok, "{mode} {uplink:?}: {made:?}");
        }
    }

    #[test]
    fn a_bridged_network_leaves_to_the_lan_what_is_the_lans() {
        let usual = spec(NetworkMode::Bridged, Some("br-lan")).unwrap();
        assert!(!usual.serve_dhcp && !usual.serve_dns && !usual.serves_metadata());
        type Spoil = fn(&mut NetworkSpec);
        let spoils: [(&str, Spoil); 5] = [
            ("serve_dns", |s| s.serve_dns = true),
            ("metadata", |s| s.metadata = MetadataMode::Token),
            ("ipv6", |s| {
                s.ipv6 = Some(Ipv6Spec::new("fd00::/64".parse().unwrap()).unwrap());
            }),
            ("vni", |s| s.vni = Some(5_000)),
            ("dhcp", |s| s.dhcp.ntp = vec![[10, 0, 0, 9].into()]),
        ];
        for (field, spoil) in spoils {
            let mut spec = usual.clone();
            spoil(&mut spec);
            let error = spec.check().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.what().contains(field), "{field}: {error}");
        }
        let served = NetworkSpec {
            serve_dhcp: true,
            dhcp: DhcpSpec {
                ntp: vec![[10, 0, 0, 9].into()],
                ..DhcpSpec::default()
            },
            ..usual
        };
        served.check().unwrap();
    }

    #[test]
    fn no_other_network_is_without_dhcp() {
        for mode in [NetworkMode::Nat, NetworkMode::Isolated, NetworkMode::Routed] {
            let mut spec = spec(mode, None).unwrap();
            assert!(spec.serve_dhcp && spec.serve_dns);
            spec.serve_dhcp = false;
            assert!(
                spec.check().unwrap_err().what().starts_with("serve_dhcp"),
                "{mode}"
            );
        }
    }

    #[test]
    fn a_network_written_before_there_were_uplinks_is_read_and_one_without_is_written_as_before() {
        let old = serde_json::to_value(spec(NetworkMode::Nat, None).unwrap()).unwrap();
        for new in ["uplink", "serve_dhcp"] {
            assert!(old.get(new).is_none(), "{new}");
        }
        assert_eq!(
            serde_json::from_value::<NetworkSpec>(old).unwrap(),
            spec(NetworkMode::Nat, None).unwrap()
        );
    }
}
