//! Floating IPs: addresses of the world that are kept for VMs.

use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;
use utoipa::ToSchema;
use vbm_core::{FloatingIp, Name, PortId};

/// Keeps an address of the world.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateFloatingIp {
    /// Its name; made up when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// The address; the first of the pool that is free when absent. One that a port has already is kept for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address: Option<Ipv4Addr>,
}

/// Says to which VM a floating IP shall lead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AttachFloatingIp {
    /// The VM: a name or an id.
    pub vm: String,
    /// The network of its NIC, a name or an id; may be left out where the VM has one NIC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
}

/// Whether a floating IP leads somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum FloatingIpState {
    /// It is kept, and no port has it.
    Free,
    /// A port has it.
    Attached,
}

/// A floating IP as lists show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FloatingIpView {
    /// The record.
    #[serde(flatten)]
    pub floating_ip: FloatingIp,
    /// Whether it leads somewhere.
    pub state: FloatingIpState,
    /// The port that has it, if one has.
    #[serde(default)]
    pub port: Option<PortId>,
    /// The name of its VM.
    #[serde(default)]
    pub vm_name: Option<String>,
    /// The name of its network.
    #[serde(default)]
    pub network_name: Option<String>,
    /// The address that it leads to.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub target_address: Option<Ipv4Addr>,
}
