//! Port forwards: how the world reaches a VM behind NAT.

use crate::{Error, ForwardId, Meta, NetworkId, PortId, Protocol, error::invalid, network::VXLAN_PORT};
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// A forward: its record in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Forward {
    /// Id, name, generation.
    #[serde(flatten)]
    pub meta: Meta<ForwardId>,
    /// What is wanted.
    pub spec: ForwardSpec,
}

/// What is wanted of a forward: what arrives at the host's port goes to the VM's. The VM's groups still decide.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ForwardSpec {
    /// The network it belongs to; must be NAT.
    pub network: NetworkId,
    /// tcp or udp.
    pub protocol: Protocol,
    /// The host's address it listens on; `None` is each of them.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
    pub listen_address: Option<Ipv4Addr>,
    /// The host's port it listens on.
    pub listen_port: u16,
    /// The port (NIC) it goes to.
    pub target: PortId,
    /// The VM's TCP or UDP port it goes to.
    pub target_port: u16,
}

impl ForwardSpec {
    /// Checks the forward alone.
    ///
    /// # Errors
    /// Port 0, or a protocol without ports.
    pub fn check(&self) -> Result<(), Error> {
        if self.listen_port == 0 || self.target_port == 0 {
            return Err(invalid(
                "a forward cannot use port 0",
                "port 0 does not exist",
                "choose ports between 1 and 65535",
            ));
        }
        if !matches!(self.protocol, Protocol::Tcp | Protocol::Udp) {
            return Err(invalid(
                format!("{} cannot be forwarded", self.protocol),
                "only tcp and udp have ports",
                "choose tcp or udp",
            ));
        }
        if self.protocol == Protocol::Udp && self.listen_port == VXLAN_PORT {
            return Err(invalid(
                format!("udp/{VXLAN_PORT} cannot be forwarded"),
                "nodes speak VXLAN there, which carries the networks between them",
                "choose another port of the host",
            ));
        }
        Ok(())
    }

    /// Whether two forwards listen at the same place.
    pub fn clashes_with(&self, other: &Self) -> bool {
        self.protocol == other.protocol
            && self.listen_port == other.listen_port
            && (self.listen_address.is_none()
                || other.listen_address.is_none()
                || self.listen_address == other.listen_address)
    }
}
