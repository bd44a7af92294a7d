//! What a port is a member of, and who it may be.

use super::{DesiredNetwork, DesiredPort, bad, gateway_mac};
use ipnet::IpNet;
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};
use vbm_core::{AddressPair, Error, GroupId, GroupSpec, Mac, Name, NetworkId, NetworkSpec, PortLimits};

/// The most members of a group that are not ports of this host.
pub const GROUP_MAX_MEMBERS: usize = 65_536;
/// A security group, as far as a network on this host is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredGroup {
    /// Its id.
    pub id: GroupId,
    /// Its name, for [`crate::plan::trace`].
    pub name: Name,
    /// Its rules. A peer by name speaks of nobody.
    pub spec: GroupSpec,
    /// The addresses of its members on other hosts. Those of ports of this host need not be told.
    pub members: Vec<IpNet>,
}

/// What a port is a member of, may pretend to be, and may carry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortPolicy {
    /// Its groups.
    pub groups: Vec<GroupId>,
    /// Addresses beside its own that it may use, IPv4 or IPv6. With an address of IPv6, here or its own, it may also use the link-local
    /// one that is made of its MAC (RFC 4291, appendix A); without, nothing of IPv6 passes.
    pub pairs: Vec<AddressPair>,
    /// How much it may carry.
    pub limits: PortLimits,
    /// The address by which the world reaches it and sees it, one to one. Only with [`vbm_core::NetworkMode::Nat`].
    pub floating: Option<Ipv4Addr>,
}

impl DesiredPort {
    /// Each MAC with the addresses that it may use: its own of both families, the link-local one, the allowed pairs.
    pub fn identities(&self) -> Vec<(Mac, IpNet)> {
        let mut all = vec![(self.mac, IpNet::V4(self.address.into()))];
        if self.has_ipv6() {
            all.push((self.mac, IpNet::V6(link_local(self.mac).into())));
        }
        all.extend(self.address6.map(|a| (self.mac, IpNet::V6(a.into()))));
        for pair in &self.policy.pairs {
            let one = (pair.mac.unwrap_or(self.mac), pair.address.trunc());
            if !all.contains(&one) {
                all.push(one);
            }
        }
        all
    }

    /// Whether it may speak IPv6.
    pub fn has_ipv6(&self) -> bool {
        let mut pairs = self.policy.pairs.iter();
        self.address6.is_some() || pairs.any(|p| matches!(p.address, IpNet::V6(_)))
    }

    /// Whether it may use an address.
    pub fn may_be(&self, address: IpAddr) -> bool {
        self.identities().iter().any(|(_, net)| net.contains(&address))
    }
}

/// The link-local address that is made of a MAC (RFC 4291, appendix A).
pub fn link_local(mac: Mac) -> std::net::Ipv6Addr {
    let [a, b, c, d, e, f] = mac.octets();
    let word = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    // The second bit of the first byte says "universal" there, and "local" here.
    std::net::Ipv6Addr::new(
        0xfe80,
        0,
        0,
        0,
        word(a ^ 2, b),
        word(c, 0xff),
        word(0xfe, d),
        word(e, f),
    )
}

pub(super) fn check_groups(desired: &DesiredNetwork) -> Result<(), Error> {
    let mut chains = BTreeSet::new();
    for group in &desired.groups {
        group
            .spec
            .check()
            .map_err(|e| e.context(format!("group '{}' cannot be applied", group.name)))?;
        if let Some(all) = group.members.iter().find(|net| net.prefix_len() == 0) {
            return Err(bad(
                format!("group '{}' cannot have the member {all}", group.name),
                "it is every address, and a member is somebody",
                "write a rule for that CIDR instead",
            ));
        }
        if group.members.len() > GROUP_MAX_MEMBERS {
            return Err(bad(
                format!("group '{}' has too many members", group.name),
                format!(
                    "{} were given, {GROUP_MAX_MEMBERS} are allowed",
                    group.members.len()
                ),
                "name their addresses by a CIDR instead",
            ));
        }
        if !chains.insert(group.id.short()) {
            return Err(bad(
                format!("the id of group '{}' cannot be used", group.name),
                "its last eight digits are those of another group, and they name its set",
                "make the group again, with a new id",
            ));
        }
    }
    Ok(())
}

pub(super) fn check_policy(port: &DesiredPort, network: NetworkId, spec: &NetworkSpec) -> Result<(), Error> {
    use vbm_core::limits::PORT_MAX_GROUPS;
    let groups = port.policy.groups.len();
    if groups > PORT_MAX_GROUPS {
        return Err(bad(
            format!("port {} has too many groups", port.id),
            format!("{groups} were given, {PORT_MAX_GROUPS} are allowed"),
            "join them",
        ));
    }
    port.policy
        .limits
        .check()
        .map_err(|e| e.context(format!("port {} cannot be made", port.id)))?;
    check_pairs(network, spec, &port.policy.pairs)
        .map_err(|e| e.context(format!("the allowed addresses of port {} cannot be", port.id)))
}

/// Whether a port of a network may have these allowed addresses. Who keeps them asks this first: a network with one port that may not is
/// refused whole.
///
/// # Errors
/// There are too many, one makes no sense by itself, or a gateway of the network or its MAC is among them.
pub fn check_pairs(network: NetworkId, spec: &NetworkSpec, pairs: &[AddressPair]) -> Result<(), Error> {
    use vbm_core::limits::PORT_MAX_PAIRS;
    if pairs.len() > PORT_MAX_PAIRS {
        return Err(bad(
            "a port cannot be allowed so many addresses",
            format!("{} were given, {PORT_MAX_PAIRS} are allowed", pairs.len()),
            "join them",
        ));
    }
    let gateways = [
        Some(IpAddr::from(spec.gateway)),
        spec.ipv6.as_ref().map(|s| s.gateway.into()),
    ];
    let gateway_mac = gateway_mac(network);
    for pair in pairs {
        pair.check()?;
        let refused = |why: String| {
            let what = format!("a port cannot be allowed the addresses {}", pair.address);
            Err(bad(what, why, "name addresses and MACs beside the gateway's"))
        };
        if let Some(gateway) = gateways.iter().flatten().find(|a| pair.address.contains(*a)) {
            return refused(format!("the gateway's address {gateway} is among them"));
        }
        if pair.mac == Some(gateway_mac) {
            return refused(format!("their MAC {gateway_mac} is the gateway's"));
        }
    }
    Ok(())
}
