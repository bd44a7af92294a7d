//! Port forwards: how the world reaches a VM behind NAT.

use crate::{
    Error, ForwardId, Meta, NetworkId, PortId, Protocol, error::invalid, limits::FORWARD_MAX_PORTS,
    network::VXLAN_PORT,
};
use serde::{Deserialize, Serialize};
use std::{net::Ipv4Addr, ops::RangeInclusive};

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
    /// How many ports, one beside the other: the first of the host's goes to the first of the VM's, and so on.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub count: u16,
}

const fn one() -> u16 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
const fn is_one(count: &u16) -> bool {
    *count == 1
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
        if !(1..=FORWARD_MAX_PORTS).contains(&self.count) {
            return Err(invalid(
                format!("a forward cannot be of {} ports", self.count),
                format!("1 to {FORWARD_MAX_PORTS} are allowed"),
                "make several forwards",
            ));
        }
        for first in [self.listen_port, self.target_port] {
            if first.checked_add(self.count - 1).is_none() {
                return Err(invalid(
                    format!("a forward of {} ports cannot begin at {first}", self.count),
                    "ports end at 65535",
                    "begin lower, or forward fewer",
                ));
            }
        }
        if self.protocol == Protocol::Udp && self.listens().contains(&VXLAN_PORT) {
            return Err(invalid(
                format!("udp/{VXLAN_PORT} cannot be forwarded"),
                "nodes speak VXLAN there, which carries the networks between them",
                "choose another port of the host",
            ));
        }
        Ok(())
    }

    /// The host's ports it listens on.
    pub const fn listens(&self) -> RangeInclusive<u16> {
        self.listen_port..=self.listen_port.saturating_add(self.count.saturating_sub(1))
    }

    /// Whether two forwards listen at the same place.
    pub fn clashes_with(&self, other: &Self) -> bool {
        let (a, b) = (self.listens(), other.listens());
        self.protocol == other.protocol
            && a.start() <= b.end()
            && b.start() <= a.end()
            && (self.listen_address.is_none()
                || other.listen_address.is_none()
                || self.listen_address == other.listen_address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn forward(listen: u16, target: u16, count: u16) -> ForwardSpec {
        ForwardSpec {
            network: NetworkId::from_uuid(Uuid::from_u128(1)),
            protocol: Protocol::Tcp,
            listen_address: None,
            listen_port: listen,
            target: PortId::from_uuid(Uuid::from_u128(2)),
            target_port: target,
            count,
        }
    }

    #[test]
    fn a_range_is_of_ports_that_there_are() {
        for (listen, target, count) in [
            (8_000, 80, 1),
            (8_000, 80, 512),
            (65_535, 65_535, 1),
            (65_024, 1, 512),
        ] {
            forward(listen, target, count).check().unwrap();
        }
        for (listen, target, count, says) in [
            (8_000, 80, 0, "of 0 ports"),
            (8_000, 80, 513, "1 to 512"),
            (65_535, 80, 2, "cannot begin at 65535"),
            (80, 65_530, 10, "cannot begin at 65530"),
            (80, 0, 10, "port 0"),
        ] {
            let error = forward(listen, target, count).check().unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        let mut vxlan = forward(VXLAN_PORT - 5, 80, 10);
        vxlan.protocol = Protocol::Udp;
        assert!(vxlan.check().unwrap_err().to_string().contains("VXLAN"));
    }

    #[test]
    fn ranges_clash_where_they_share_a_port() {
        let range = forward(8_000, 80, 10);
        for (listen, count, clashes) in [
            (7_999, 1, false),
            (7_999, 2, true),
            (8_009, 1, true),
            (8_010, 9, false),
        ] {
            assert_eq!(
                forward(listen, 1, count).clashes_with(&range),
                clashes,
                "{listen} {count}"
            );
            assert_eq!(
                range.clashes_with(&forward(listen, 1, count)),
                clashes,
                "{listen} {count}"
            );
        }
    }

    #[test]
    fn a_forward_of_one_port_is_written_as_it_always_was() {
        let text = serde_json::to_string(&forward(8_000, 80, 1)).unwrap();
        assert!(!text.contains("count"), "{text}");
        assert_eq!(
            serde_json::from_str::<ForwardSpec>(&text).unwrap(),
            forward(8_000, 80, 1)
        );
    }
}
