//! What may be changed of a port while its VM runs.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use vbm_core::{AddressPair, PortLimits};

/// What [`SetPort::floating_ip`] says to take it away.
pub const FLOATING_IP_NONE: &str = "none";

/// Changes a port of a VM, running or not. What is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetPort {
    /// The network of the port, a name or an id; may be left out where the VM has one NIC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// How much it may carry: all of it is replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<PortLimits>,
    /// The address by which the world reaches it and sees it, one to one; `none` takes it away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floating_ip: Option<String>,
    /// Addresses beside its own that it may use: all of them are replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pairs: Option<Vec<AddressPair>>,
}
