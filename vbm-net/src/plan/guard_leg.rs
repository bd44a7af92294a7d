//! The guard of a bridged network's leg: what passes between its VMs and the LAN.
//!
//! ```text
//!   lan0 --> in-lan0   never from the bridge's own MAC, which is the same on every host; no DHCP where ours is served
//!   lan0 <-- to-lan0   never from the bridge itself; no DHCP where ours is served; all else was judged at its tap
//! ```
//!
//! Where VBM serves DHCP, what a VM says to any server is turned to the bridge: the LAN's servers never hear it, and it never hears them. Where
//! the LAN serves, a VM may have any address of the LAN but its router's and the host's: which, only the LAN's server knows. Its MAC is its
//! own in any case.

use super::guard::{Guard, IN_MAP, TO_MAP, no_dhcp, spelled};
use crate::{DesiredNetwork, DesiredPort, names};
use ipnet::IpNet;
use std::{collections::BTreeSet, net::Ipv4Addr};
use vbm_core::{Mac, NetworkMode};

/// Adds the leg's chains.
pub(super) fn add(guard: &mut Guard, net: &DesiredNetwork) {
    if net.spec.mode != NetworkMode::Bridged {
        return;
    }
    let own = net.gateway_mac();
    let mut lines = vec![format!("ether saddr {own} drop")];
    if net.spec.serve_dhcp {
        lines.extend(no_dhcp());
    }
    lines.push("accept".into());
    let leg = names::LEG;
    for (map, way) in [(IN_MAP, "in"), (TO_MAP, "to")] {
        let chain = format!("{way}-{leg}");
        let element = format!("\"{leg}\" : jump {chain}");
        guard.maps.entry(map.into()).or_default().insert(element);
        guard.chains.insert(chain, lines.clone());
    }
}

/// What turns a VM's DHCP to our server; it goes on.
pub(super) fn turned_to_us(net: &DesiredNetwork) -> Option<String> {
    let turned = net.spec.mode == NetworkMode::Bridged && net.spec.serve_dhcp;
    turned.then(|| format!("udp sport 68 udp dport 67 ether daddr set {}", net.gateway_mac()))
}

/// Nobody is the LAN's router or the host but they.
pub(super) fn not_another(net: &DesiredNetwork, host: &[Ipv4Addr]) -> Vec<String> {
    if net.spec.serve_dhcp {
        return Vec::new();
    }
    let kept: BTreeSet<Ipv4Addr> = host.iter().copied().chain([net.spec.gateway]).collect();
    let drop = |a: &Ipv4Addr| [format!("arp saddr ip {a} drop"), format!("ip saddr {a} drop")];
    kept.iter().flat_map(drop).collect()
}

/// What a port may pretend to be: itself; where its address is not known, any of its LAN.
pub(super) fn identities(net: &DesiredNetwork, port: &DesiredPort) -> Vec<(Mac, IpNet)> {
    let mut all = port.identities();
    if !net.spec.serve_dhcp {
        let own = (port.mac, IpNet::from(std::net::IpAddr::V4(port.address)));
        for one in all.iter_mut().filter(|one| **one == own) {
            one.1 = net.spec.cidr.into();
        }
    }
    all
}

/// How what a port may hear is told from what is flooded: by its MAC, where its address is not known.
pub(super) fn heard(net: &DesiredNetwork, port: &DesiredPort, to: &IpNet) -> String {
    let by_mac = !net.spec.serve_dhcp && *to == IpNet::from(net.spec.cidr);
    let mac = if by_mac {
        format!("ether daddr {} ", port.mac)
    } else {
        String::new()
    };
    format!("{mac}ip daddr {} accept", spelled(to))
}

#[cfg(test)]
mod tests {
    use crate::{
        DesiredNetwork, Validated,
        plan::{
            fixture::lab,
            guard::{Guard, render},
        },
    };
    use vbm_core::NetworkMode;

    fn guard(serve_dhcp: bool) -> Guard {
        let mut net = lab(NetworkMode::Bridged).into_inner();
        net.spec.serve_dhcp = serve_dhcp;
        render(&Validated::<DesiredNetwork>::new(net).unwrap())
    }

    #[test]
    fn where_the_lan_tells_addresses_a_port_may_have_any_but_the_routers() {
        let guard = guard(false);
        let from = guard.chains["in-0000000a"].join("\n");
        assert_eq!(
            from,
            "arp saddr ip 10.77.0.1 drop\n\
             ip saddr 10.77.0.1 drop\n\
             ether saddr 52:54:00:77:00:00 arp operation 1 arp saddr ether 52:54:00:77:00:00 arp saddr ip 0.0.0.0 accept\n\
             ether saddr 52:54:00:77:00:00 arp saddr ether 52:54:00:77:00:00 arp saddr ip 10.77.0.0/24 accept\n\
             ether type 0x0806 drop\n\
             ether saddr 52:54:00:77:00:00 ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept\n\
             udp sport 67 drop\n\
             ether saddr 52:54:00:77:00:00 ip saddr 10.77.0.0/24 accept\n\
             drop"
        );
        let to = guard.chains["to-0000000a"].join("\n");
        assert!(
            to.contains("ether daddr 52:54:00:77:00:00 ip daddr 10.77.0.0/24 accept"),
            "{to}"
        );
        assert_eq!(
            guard.chains["in-lan0"],
            ["ether saddr 02:56:42:00:be:ef drop", "accept"]
        );
    }

    #[test]
    fn where_we_tell_them_no_dhcp_passes_the_leg_and_a_port_has_its_own_address_alone() {
        let guard = guard(true);
        let from = &guard.chains["in-0000000a"];
        let turned = "udp sport 68 udp dport 67 ether daddr set 02:56:42:00:be:ef";
        assert!(from.iter().any(|l| l == turned), "{from:#?}");
        assert!(from.iter().any(|l| l == "ip saddr != 10.77.0.10 drop"));
        for chain in ["in-lan0", "to-lan0"] {
            let leg = guard.chains[chain].join("\n");
            assert!(
                leg.contains("udp sport 67-68 drop\nudp dport 67-68 drop"),
                "{leg}"
            );
        }
    }

    #[test]
    fn no_other_mode_has_a_leg() {
        for mode in [NetworkMode::Nat, NetworkMode::Isolated, NetworkMode::Routed] {
            let guard = render(&lab(mode));
            assert!(!format!("{guard:?}").contains("lan0"), "{mode}");
        }
    }
}
