//! Ports: where a NIC meets a network.

use crate::{
    Error, GroupId, Mac, Meta, NetworkId, PortId, PortLimits, Timestamp, VmId, error::invalid,
    network::METADATA_ADDRESS,
};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, Ipv6Addr};

/// A port: its record in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Port {
    /// Id, name, generation.
    #[serde(flatten)]
    pub meta: Meta<PortId>,
    /// What is wanted.
    pub spec: PortSpec,
    /// What is seen.
    pub status: PortStatus,
}

/// What is wanted of a port. Its address is its own from the moment it is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PortSpec {
    /// The network it is on.
    pub network: NetworkId,
    /// The VM whose NIC it carries.
    pub vm: VmId,
    /// The NIC's address; no other may be used.
    pub mac: Mac,
    /// Its IPv4 address; no other may be used.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub address: Ipv4Addr,
    /// Whether somebody asked for just this address.
    #[serde(default)]
    pub pinned: bool,
    /// Its IPv6 address, on a network that has IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
    pub address6: Option<Ipv6Addr>,
    /// What may reach it: the union of these groups' rules; nothing, where none allows it.
    #[serde(default)]
    pub groups: Vec<GroupId>,
    /// Addresses beside its own that it may use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pairs: Vec<AddressPair>,
    /// How much it may carry.
    #[serde(default, skip_serializing_if = "PortLimits::is_none")]
    pub limits: PortLimits,
    /// The address by which the world reaches it and sees it, one to one; only on a network of mode nat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
    pub floating_ip: Option<Ipv4Addr>,
}

/// Addresses beside its own that a port may use: those of a virtual router, of a floating service, or of IPv6. Several ports may
/// share them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct AddressPair {
    /// The addresses.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub address: IpNet,
    /// The MAC they go with; `None` is the port's own.
    #[serde(default)]
    pub mac: Option<Mac>,
}

impl AddressPair {
    /// One address with the port's own MAC.
    pub fn of(address: std::net::IpAddr) -> Self {
        Self {
            address: address.into(),
            mac: None,
        }
    }

    /// Checks the pair alone.
    ///
    /// # Errors
    /// A MAC that no NIC can have; addresses that are nobody's, everybody's or the machine's own; the metadata service's; all addresses at
    /// once.
    pub fn check(&self) -> Result<(), Error> {
        let first = self.address.network();
        let nobody = first.is_unspecified() || first.is_loopback() || first.is_multicast();
        let everybody = self.address.broadcast() == std::net::IpAddr::V4(Ipv4Addr::BROADCAST);
        if nobody || everybody || self.mac.is_some_and(|m| !m.is_unicast()) {
            return Err(invalid(
                format!("a port cannot be allowed the addresses {}", self.address),
                "they are unspecified, loopback, multicast or broadcast, or their MAC is no NIC's",
                "name addresses that a NIC can have, for example 10.0.0.200 or fd00::5",
            ));
        }
        if self.address.contains(&std::net::IpAddr::V4(METADATA_ADDRESS)) {
            return Err(invalid(
                format!("a port cannot be allowed the addresses {}", self.address),
                format!(
                    "the metadata service's {METADATA_ADDRESS} is among them, and VMs trust what it says"
                ),
                "leave it out",
            ));
        }
        Ok(())
    }
}

/// What is seen of a port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct PortStatus {
    /// When the guest last took its address by DHCP.
    #[serde(default)]
    pub leased_at: Option<Timestamp>,
    /// When that lease ends.
    #[serde(default)]
    pub leased_until: Option<Timestamp>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_allowed_to_be_the_metadata_service() {
        for (text, good) in [
            ("169.254.169.254/32", false),
            ("169.254.0.0/16", false),
            ("128.0.0.0/1", false),
            ("169.254.169.253/32", true),
            ("10.0.0.200/32", true),
            ("fd00::5/128", true),
        ] {
            let pair = AddressPair {
                address: text.parse().unwrap(),
                mac: None,
            };
            assert_eq!(pair.check().is_ok(), good, "{text}");
        }
    }
}
