//! Ports: where a NIC meets a network.

use crate::{GroupId, Mac, Meta, NetworkId, PortId, Timestamp, VmId};
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
