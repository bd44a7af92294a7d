//! What is wanted of a network on this host, and what is seen of it.
//!
//! [`DesiredNetwork`] is the whole truth about one network: it is given complete each time, never as a change.
//! [`Validated`] wraps one that was checked; only that can be rendered into rules, so a bad rule can never
//! leave a VM open.

mod floating;
mod modes;
mod security;
mod seen;
mod six;
pub use floating::{check_floating_address, check_floating_ip};
pub use security::{DesiredGroup, GROUP_MAX_MEMBERS, PortPolicy, check_pairs, link_local};
pub use seen::{LeaseSeen, LeaseSeen6, NetEvent, NetworkSeen, Nic, NicKind, PortSeen, ServicesSeen};
pub use six::GATEWAY_LINK_LOCAL;

use crate::{NetError, names};
use security::{check_groups, check_policy};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::Deref,
};
use vbm_core::{
    Error, ErrorKind, ForwardId, Mac, Name, NetworkId, NetworkSpec, PortId, Protocol, Rule,
    network::{VNI_FIRST, VNI_LAST},
};

/// The most ports of a network on one host.
pub const NETWORK_MAX_PORTS: usize = 4_096;
/// The most forwards of a network.
pub const NETWORK_MAX_FORWARDS: usize = 1_024;
/// The most ports of a network on other hosts.
pub const NETWORK_MAX_REMOTES: usize = 16_384;
/// The most groups that the ports of a network may be in, or that their rules speak of.
pub const NETWORK_MAX_GROUPS: usize = 1_024;
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
    /// Its forwards on this host. Only with [`vbm_core::NetworkMode::Nat`].
    pub forwards: Vec<DesiredForward>,
    /// How it reaches its ports on other hosts; `None`: it is on this host alone.
    pub overlay: Option<DesiredOverlay>,
    /// The groups that its ports are in, and those that their rules speak of. One that is not here has neither rules nor members.
    pub groups: Vec<DesiredGroup>,
}

/// How a network reaches other hosts: by VXLAN, with nothing learned from the wire. Who is where is told here, so frames go
/// to the right host or nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredOverlay {
    /// The VXLAN network identifier: the same on all hosts, of this network alone.
    pub vni: u32,
    /// This host's address among the hosts: the source of what it sends to them.
    pub local: Ipv4Addr,
    /// All ports of the network that are on other hosts. One that is a port of this host too, with MAC and address, is on
    /// its way here: it is ready here, and reached where it was until it sends its first frame here.
    pub remotes: Vec<RemotePort>,
    /// The host names of ports on other hosts, by address: DNS answers them. Those of addresses that no remote port has are refused.
    pub names: BTreeMap<Ipv4Addr, Name>,
}

/// A port on another host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RemotePort {
    /// The one MAC it may use.
    pub mac: Mac,
    /// The one IPv4 address it may use.
    pub address: Ipv4Addr,
    /// Its address of the network's IPv6, if it has one.
    pub address6: Option<Ipv6Addr>,
    /// The address of its host among the hosts.
    pub host: Ipv4Addr,
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
    /// Its address of the network's IPv6, if it has one; it may use it beside the link-local one that is made of its MAC. It gets it by
    /// DHCPv6, or makes it itself where the network is stateless.
    pub address6: Option<Ipv6Addr>,
    /// The host name it gets by DHCP.
    pub hostname: Name,
    /// Whether it is told the way to the metadata service, where the network serves it. Of the NICs of one VM at most one should be: the
    /// others would take the way away from it.
    pub metadata_route: bool,
    /// What may reach it, and leave it, beside what its groups allow: rules that are in no group. With no egress rule among them, all
    /// may leave. Empty: nothing may reach it that no group allows, and they decide what may leave; without any, all may.
    pub rules: Vec<Rule>,
    /// Its groups, and the addresses it may use beside its own.
    pub policy: PortPolicy,
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
    /// How many ports, one beside the other, from both on; 1: just these.
    pub count: u16,
}

impl DesiredNetwork {
    /// The gateway's MAC: derived from the id, so it is the same on every host and after every restart.
    pub fn gateway_mac(&self) -> Mac {
        gateway_mac(self.id)
    }

    /// The DNS servers that VMs are told of: those of the network, else the gateway where it answers DNS.
    pub fn dns_told(&self) -> Vec<Ipv4Addr> {
        if self.spec.dns.is_empty() && self.spec.serve_dns {
            return vec![self.spec.gateway];
        }
        self.spec.dns.clone()
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
    /// The same with another MTU, which must be one that the spec could have.
    pub(crate) fn with_mtu(mut self, mtu: u16) -> Self {
        self.0.spec.mtu = mtu;
        self
    }

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
    modes::check(desired)?;
    check_limits(desired)?;
    let mut macs = BTreeSet::from([desired.gateway_mac()]);
    let mut addresses = BTreeSet::new();
    let mut addresses6 = BTreeSet::new();
    let mut taps = BTreeSet::new();
    for port in &desired.ports {
        check_port(port, &desired.spec)?;
        check_policy(port, desired.id, &desired.spec)?;
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
        let twice = (!addresses.insert(port.address)).then_some(IpAddr::V4(port.address));
        let twice6 = port.address6.filter(|a| !addresses6.insert(*a)).map(IpAddr::V6);
        if let Some(address) = twice.or(twice6) {
            return Err(bad(
                format!("the address {address} is used twice"),
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
    if let Some(overlay) = &desired.overlay {
        check_overlay(desired, overlay, macs, addresses)?;
        six::check_remotes(desired, overlay)?;
    }
    check_groups(desired)?;
    floating::check(desired)?;
    check_forwards(desired)
}

/// `macs` and `addresses` are those of this host's ports, and the gateway's MAC.
fn check_overlay(
    desired: &DesiredNetwork,
    overlay: &DesiredOverlay,
    macs: BTreeSet<Mac>,
    addresses: BTreeSet<Ipv4Addr>,
) -> Result<(), Error> {
    let known = desired.spec.vni.is_none_or(|vni| vni == overlay.vni);
    if !(VNI_FIRST..=VNI_LAST).contains(&overlay.vni) || !known {
        return Err(bad(
            format!("network '{}' cannot span hosts as {}", desired.name, overlay.vni),
            format!("its VXLAN identifier must lie in {VNI_FIRST} to {VNI_LAST}, and be that of its spec"),
            "let the controller choose it",
        ));
    }
    check_host(overlay.local)?;
    let here: BTreeSet<_> = desired.ports.iter().map(|p| (p.mac, p.address)).collect();
    let (mut their_macs, mut their_addresses) = (BTreeSet::new(), BTreeSet::new());
    for remote in &overlay.remotes {
        check_host(remote.host)?;
        if remote.host == overlay.local {
            return Err(bad(
                format!("the port {} is no remote one", remote.address),
                format!("its host {} is this one", remote.host),
                "give two hosts two addresses among them",
            ));
        }
        if !remote.mac.is_unicast() || !desired.spec.is_port_address(remote.address) {
            return Err(bad(
                format!(
                    "no port on {} can be {} with {}",
                    remote.host, remote.address, remote.mac
                ),
                format!(
                    "the MAC is not unicast, or the address is no port's of {}",
                    desired.spec.cidr
                ),
                "make the port again",
            ));
        }
        let foreign = macs.contains(&remote.mac) || addresses.contains(&remote.address);
        let arriving = here.contains(&(remote.mac, remote.address));
        let twice = !their_macs.insert(remote.mac) || !their_addresses.insert(remote.address);
        if twice || (foreign && !arriving) {
            return Err(bad(
                format!("{} or {} is used twice", remote.mac, remote.address),
                format!(
                    "the port on {} has them, and another port or the gateway has one of them too",
                    remote.host
                ),
                "give each NIC its own MAC and address, and each port one host",
            ));
        }
    }
    if let Some((address, name)) = overlay.names.iter().find(|(a, _)| !their_addresses.contains(a)) {
        return Err(bad(
            format!("the name {name} leads nowhere"),
            format!("no port on another host has its address {address}"),
            "name only remote ports",
        ));
    }
    Ok(())
}

fn check_host(address: Ipv4Addr) -> Result<(), Error> {
    if address.is_unspecified() || address.is_multicast() || address.is_broadcast() || address.is_loopback() {
        return Err(bad(
            format!("{address} cannot be the address of a host among the hosts"),
            "no other host reaches it",
            "name an address that the other hosts reach",
        ));
    }
    Ok(())
}

fn check_limits(desired: &DesiredNetwork) -> Result<(), Error> {
    let remotes = desired.overlay.as_ref().map_or(0, |o| o.remotes.len());
    let limits = [
        ("ports", desired.ports.len(), NETWORK_MAX_PORTS),
        ("ports on other hosts", remotes, NETWORK_MAX_REMOTES),
        ("forwards", desired.forwards.len(), NETWORK_MAX_FORWARDS),
        ("groups", desired.groups.len(), NETWORK_MAX_GROUPS),
    ];
    match limits.iter().find(|(_, is, most)| is > most) {
        Some((noun, is, most)) => Err(bad(
            format!("network '{}' has too many {noun}", desired.name),
            format!("{is} were asked for, {most} are allowed"),
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
    if let Some(address) = port.address6
        && !spec.ipv6.as_ref().is_some_and(|s| s.is_port_address(address))
    {
        return Err(bad(
            format!("a port cannot have the address {address}"),
            match &spec.ipv6 {
                Some(s) => format!(
                    "it is outside {}, excluded, the gateway's, or IPv6 keeps it for itself",
                    s.cidr
                ),
                None => "the network has no IPv6".to_owned(),
            },
            "leave it out, or choose one inside",
        ));
    }
    six::check(port, spec)?;
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
    let without = desired.spec.mode.without_nat();
    if let Some(reason) = without.filter(|_| !desired.forwards.is_empty()) {
        return Err(bad(
            format!("network '{}' cannot have forwards", desired.name),
            format!("its mode is {}, {reason}", desired.spec.mode),
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
    let doors = crate::plan::inside::doors(desired);
    match desired.forwards.iter().find(|f| !doors.contains_key(&f.id)) {
        None => Ok(()),
        Some(left) => Err(bad(
            format!("forward {} cannot be made", left.id),
            "there are so many ranges at several addresses that none of their ports is free between host and network",
            "forward fewer ports",
        )),
    }
}

impl DesiredForward {
    /// Of two ports that count in step, the second where the first is `at`; `None` where this is not one of the forward's.
    pub(crate) const fn in_step(&self, first: u16, at: u16, second: u16) -> Option<u16> {
        match at.checked_sub(first) {
            Some(step) if step < self.count => second.checked_add(step),
            _ => None,
        }
    }

    /// The last of the ports that begin at one.
    pub(crate) const fn last(&self, first: u16) -> u16 {
        first.saturating_add(self.count.saturating_sub(1))
    }

    fn as_spec(&self, network: NetworkId) -> vbm_core::ForwardSpec {
        vbm_core::ForwardSpec {
            network,
            protocol: self.protocol,
            listen_address: self.listen_address,
            listen_port: self.listen_port,
            target: self.target,
            target_port: self.target_port,
            count: self.count,
        }
    }
}
