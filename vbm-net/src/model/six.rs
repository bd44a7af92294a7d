//! The IPv6 side of a network: what is checked of its ports beside their addresses.

use super::{DesiredNetwork, DesiredOverlay, DesiredPort, bad};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
};
use vbm_core::{Error, NetworkSpec};

/// The gateway's address on its link: the same in every network on every host, as its MAC is the same on every host of one network.
pub const GATEWAY_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Where VMs make their addresses themselves, each has the one that it makes; and nobody may be the gateway.
pub(super) fn check(port: &DesiredPort, spec: &NetworkSpec) -> Result<(), Error> {
    let made = spec.ipv6.as_ref().and_then(|six| six.made_of(port.mac));
    if let (Some(made), Some(address)) = (made, port.address6)
        && made != address
    {
        return Err(bad(
            format!("port {} cannot have the address {address}", port.id),
            format!(
                "VMs of the network make their addresses themselves, and {} makes {made}",
                port.mac
            ),
            "leave the address out, or make the network without `stateless`",
        ));
    }
    let gateway = IpAddr::V6(GATEWAY_LINK_LOCAL);
    if let Some(pair) = port.policy.pairs.iter().find(|p| p.address.contains(&gateway)) {
        return Err(bad(
            format!(
                "port {} cannot be allowed the addresses {}",
                port.id, pair.address
            ),
            format!("the gateway's address {gateway} is among them"),
            "leave the gateway out",
        ));
    }
    Ok(())
}

/// Ports of other hosts have addresses of the network's IPv6, each its own; one that is on its way here has it here too.
pub(super) fn check_remotes(desired: &DesiredNetwork, overlay: &DesiredOverlay) -> Result<(), Error> {
    let here = desired.ports.iter().filter_map(|p| Some((p.address6?, p.mac)));
    let here: BTreeMap<_, _> = here.collect();
    let mut there = BTreeMap::new();
    for remote in &overlay.remotes {
        let Some(address) = remote.address6 else { continue };
        let six = desired.spec.ipv6.as_ref();
        if !six.is_some_and(|six| six.is_port_address(address)) {
            return Err(bad(
                format!("no port on {} can be {address}", remote.host),
                "it is no port's address of the network's IPv6, or the network has none",
                "make the port again",
            ));
        }
        let foreign = here.get(&address).is_some_and(|mac| *mac != remote.mac);
        if there.insert(address, remote.mac).is_some() || foreign {
            return Err(bad(
                format!("{address} is used twice"),
                format!("the port on {} has it, and another port too", remote.host),
                "give each port its own address",
            ));
        }
    }
    Ok(())
}
