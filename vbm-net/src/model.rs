//! What is wanted of a network on this host, and what is seen of it.
//!
//! [`DesiredNetwork`] is the whole truth about one network: it is given complete each time, never as a change.
//! [`Validated`] wraps one that was checked; only that can be rendered into rules, so a bad rule can never
//! leave a VM open.

use crate::{NetError, names};
use ipnet::Ipv4Net;
use std::{collections::BTreeSet, net::Ipv4Addr, ops::Deref, os::fd::OwnedFd};
use vbm_core::{
    Error, ErrorKind, ForwardId, Mac, Name, NetworkId, NetworkMode, NetworkSpec, PortId, Protocol, Rule,
    Timestamp,
};

/// The most ports of a network on one host.
pub const NETWORK_MAX_PORTS: usize = 4_096;
/// The most forwards of a network.
pub const NETWORK_MAX_FORWARDS: usize = 1_024;
/// The most rules of a port, after joining its groups.
pub const PORT_MAX_RULES: usize = vbm_core::limits::PORT_MAX_GROUPS * vbm_core::limits::GROUP_MAX_RULES;

/// What is wanted of a network on this host, complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredNetwork {
    /// Its id.
    pub id: NetworkId,
    /// Its name, for logs.
    pub name: Name,
    /// Its spec.
    pub spec: NetworkSpec,
    /// Its ports on this host.
    pub ports: Vec<DesiredPort>,
    /// Its forwards on this host. Only with [`NetworkMode::Nat`].
    pub forwards: Vec<DesiredForward>,
}

/// What is wanted of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredPort {
    /// Its id.
    pub id: PortId,
    /// The one MAC it may use.
    pub mac: Mac,
    /// The one IPv4 address it may use, and gets by DHCP.
    pub address: Ipv4Addr,
    /// The host name it gets by DHCP.
    pub hostname: Name,
    /// What may reach it: the union of its groups' rules. Empty is: nothing.
    pub rules: Vec<Rule>,
}

/// What is wanted of a forward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredForward {
    /// Its id.
    pub id: ForwardId,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The host's address it listens on; `None` is each of them, loopback included.
    pub listen_address: Option<Ipv4Addr>,
    /// The host's port it listens on.
    pub listen_port: u16,
    /// The port (NIC) it goes to; must be one of the network's.
    pub target: PortId,
    /// The VM's TCP or UDP port.
    pub target_port: u16,
}

impl DesiredNetwork {
    /// The gateway's MAC: derived from the id, so it is the same on every host and after every restart.
    pub fn gateway_mac(&self) -> Mac {
        gateway_mac(self.id)
    }
}

/// The MAC of the gateway of a network, under the locally administered prefix `02:56:42` ("VB").
pub fn gateway_mac(network: NetworkId) -> Mac {
    let [.., a, b, c] = *network.uuid().as_bytes();
    Mac::new([0x02, 0x56, 0x42, a, b, c])
}

/// Something that was checked. Made only by [`Validated::new`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Validated<T>(T);

impl<T> Deref for Validated<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> Validated<T> {
    /// Gives the checked thing back, unwrapped.
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl Validated<DesiredNetwork> {
    /// Checks a network with all its ports, rules and forwards.
    ///
    /// # Errors
    /// [`NetError::Invalid`] names the first contradiction.
    pub fn new(desired: DesiredNetwork) -> Result<Self, NetError> {
        check(&desired).map_err(NetError::Invalid)?;
        Ok(Self(desired))
    }
}

fn bad(what: impl Into<String>, why: impl Into<String>, fix: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, what, why, fix)
}

fn check(desired: &DesiredNetwork) -> Result<(), Error> {
    desired.spec.check()?;
    check_limits(desired)?;
    let mut macs = BTreeSet::from([desired.gateway_mac()]);
    let mut addresses = BTreeSet::new();
    let mut taps = BTreeSet::new();
    for port in &desired.ports {
        check_port(port, &desired.spec)?;
        if !macs.insert(port.mac) {
            return Err(bad(
                format!("the MAC {} is used twice", port.mac),
                format!(
                    "another port of network '{}', or its gateway, has it",
                    desired.name
                ),
                "give each NIC its own MAC",
            ));
        }
        if !addresses.insert(port.address) {
            return Err(bad(
                format!("the address {} is used twice", port.address),
                format!("another port of network '{}' has it", desired.name),
                "give each port its own address",
            ));
        }
        if !taps.insert(names::tap(port.id)) {
            return Err(bad(
                format!("the id of port {} cannot be used", port.id),
                "its last eight digits are those of another port, and they name the tap",
                "make the port again, with a new id",
            ));
        }
    }
    check_forwards(desired)
}

fn check_limits(desired: &DesiredNetwork) -> Result<(), Error> {
    let limits = [
        ("ports", desired.ports.len(), NETWORK_MAX_PORTS),
        ("forwards", desired.forwards.len(), NETWORK_MAX_FORWARDS),
    ];
    match limits.iter().find(|(_, is, most)| is > most) {
        Some((noun, is, most)) => Err(bad(
            format!("network '{}' has too many {noun}", desired.name),
            format!("{is} were asked for on one host, {most} are allowed"),
            "spread them over several networks",
        )),
        None => Ok(()),
    }
}

fn check_port(port: &DesiredPort, spec: &NetworkSpec) -> Result<(), Error> {
    if !port.mac.is_unicast() {
        return Err(bad(
            format!("a NIC cannot have the MAC {}", port.mac),
            "it is multicast, broadcast or zero",
            "leave it out, or choose one such as 52:54:00:ab:cd:ef",
        ));
    }
    if !spec.is_port_address(port.address) {
        return Err(bad(
            format!("a port cannot have the address {}", port.address),
            format!(
                "it is outside {} or is the network's, the broadcast or the gateway's",
                spec.cidr
            ),
            "leave it out, or choose one inside",
        ));
    }
    if port.rules.len() > PORT_MAX_RULES {
        return Err(bad(
            format!("port {} has too many rules", port.id),
            format!("{} were given, {PORT_MAX_RULES} are allowed", port.rules.len()),
            "join port ranges, or use fewer groups",
        ));
    }
    port.rules.iter().try_for_each(Rule::check)
}

fn check_forwards(desired: &DesiredNetwork) -> Result<(), Error> {
    if desired.spec.mode != NetworkMode::Nat && !desired.forwards.is_empty() {
        return Err(bad(
            format!("network '{}' cannot have forwards", desired.name),
            format!("its mode is {}, which has no way in", desired.spec.mode),
            "use a network of mode nat",
        ));
    }
    let ports: BTreeSet<PortId> = desired.ports.iter().map(|p| p.id).collect();
    let mut ids = BTreeSet::new();
    for (i, forward) in desired.forwards.iter().enumerate() {
        let spec = forward.as_spec(desired.id);
        spec.check()?;
        if !ids.insert(forward.id) || !ports.contains(&forward.target) {
            return Err(bad(
                format!("forward {} cannot be made", forward.id),
                "it is given twice, or its target is no port of this network on this host",
                "point it at a port of the network",
            ));
        }
        if forward
            .listen_address
            .is_some_and(|a| a.is_unspecified() || a.is_multicast() || a.is_broadcast())
        {
            return Err(bad(
                format!("forward {} cannot listen there", forward.id),
                "its address is no address of a host",
                "leave the address out, or name one of the host's",
            ));
        }
        if let Some(other) = desired.forwards[..i]
            .iter()
            .find(|o| o.as_spec(desired.id).clashes_with(&spec))
        {
            return Err(bad(
                format!(
                    "forward {} cannot listen on {}/{}",
                    forward.id, forward.protocol, forward.listen_port
                ),
                format!("forward {} listens there", other.id),
                "choose another port of the host",
            ));
        }
    }
    Ok(())
}

impl DesiredForward {
    fn as_spec(&self, network: NetworkId) -> vbm_core::ForwardSpec {
        vbm_core::ForwardSpec {
            network,
            protocol: self.protocol,
            listen_address: self.listen_address,
            listen_port: self.listen_port,
            target: self.target,
            target_port: self.target_port,
        }
    }
}

/// What is seen of a network on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NetworkSeen {
    /// Its id.
    pub id: NetworkId,
    /// The name of its namespace; `ip netns exec` takes it.
    pub namespace: String,
    /// The gateway's MAC.
    pub gateway_mac: Mac,
    /// The two addresses between host and namespace, host first; `None` when isolated.
    pub transit: Option<Ipv4Net>,
    /// Whether all that was wanted is in the kernel and was read back, and DHCP is served.
    pub ready: bool,
    /// Its ports.
    pub ports: Vec<PortSeen>,
    /// What this call had to change, one line each; empty when all was as wanted. Empty from `inventory`.
    pub changed: Vec<String>,
}

/// What is seen of a port on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PortSeen {
    /// Its id.
    pub id: PortId,
    /// The name of its tap, whether or not it is open.
    pub tap: String,
    /// Whether guard and rules were read back from the kernel.
    pub guarded: bool,
    /// Whether the tap exists: a NIC was opened and not closed.
    pub open: bool,
    /// What the guest holds by DHCP, as far as this process has seen it.
    pub lease: Option<LeaseSeen>,
}

/// A lease that a guest took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaseSeen {
    /// The address.
    pub address: Ipv4Addr,
    /// When it was last taken or renewed.
    pub since: Timestamp,
    /// When it ends.
    pub until: Timestamp,
}

/// The host's end of a NIC.
#[derive(Debug)]
#[non_exhaustive]
pub enum Nic {
    /// An open tap. Closing the last copy of the descriptor removes the interface.
    Tap {
        /// The descriptor: one frame a read or write.
        fd: OwnedFd,
        /// Whether each frame is preceded by a `virtio_net_hdr` of ten bytes (`IFF_VNET_HDR`).
        vnet_hdr: bool,
    },
}

/// What happened on a network.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NetEvent {
    /// A guest took or renewed its address.
    PortLeased {
        /// The network.
        network: NetworkId,
        /// The port.
        port: PortId,
        /// The address.
        address: Ipv4Addr,
        /// When it was taken.
        since: Timestamp,
        /// When the lease ends.
        until: Timestamp,
    },
    /// A guest gave its address back. The address stays the port's.
    PortReleased {
        /// The network.
        network: NetworkId,
        /// The port.
        port: PortId,
        /// The address.
        address: Ipv4Addr,
    },
    /// A guest says that its address is in use by another: something answers for it that should not.
    PortDeclined {
        /// The network.
        network: NetworkId,
        /// The port.
        port: PortId,
        /// The address.
        address: Ipv4Addr,
    },
}
