//! Which floating addresses make sense.

use super::{DesiredNetwork, bad};
use ipnet::Ipv4Net;
use std::{collections::BTreeMap, net::Ipv4Addr};
use vbm_core::{Error, NetworkMode};

/// What is only known on one link (RFC 3927); transits are of it.
const LINK_LOCAL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16);

/// Checks the floating addresses of all ports.
pub(super) fn check(desired: &DesiredNetwork) -> Result<(), Error> {
    let mut taken = BTreeMap::new();
    for port in &desired.ports {
        let Some(address) = port.policy.floating else {
            continue;
        };
        let cannot = format!("port {} cannot have the floating IP {address}", port.id);
        if desired.spec.mode != NetworkMode::Nat {
            return Err(bad(
                cannot,
                format!(
                    "network '{}' is of mode {}, which has no way in",
                    desired.name, desired.spec.mode
                ),
                "use a network of mode nat",
            ));
        }
        if desired.spec.cidr.contains(&address) {
            return Err(bad(
                cannot,
                format!("it is inside {}, the network's own addresses", desired.spec.cidr),
                "choose an address of the world outside the host",
            ));
        }
        let nobody = address.octets()[0] == 0 || address.is_loopback() || LINK_LOCAL.contains(&address);
        if nobody || address.is_multicast() || address.octets()[0] >= 240 {
            return Err(bad(
                cannot,
                "no packet can be sent to just one machine there",
                "choose an address of the world outside the host",
            ));
        }
        if let Some(other) = taken.insert(address, port.id) {
            return Err(bad(
                cannot,
                format!("port {other} has it"),
                "detach it there first, or choose another",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::{DesiredNetwork, Validated, plan::fixture::lab};
    use vbm_core::NetworkMode;

    fn said(mode: NetworkMode, first: &str, second: Option<&str>) -> String {
        let mut net = lab(mode).into_inner();
        net.ports[0].policy.floating = Some(first.parse().unwrap());
        net.ports[1].policy.floating = second.map(|s| s.parse().unwrap());
        match Validated::<DesiredNetwork>::new(net) {
            Ok(_) => String::new(),
            Err(error) => vbm_core::Error::from(error).to_string(),
        }
    }

    #[test]
    fn a_floating_ip_is_an_address_of_the_world_and_of_one_port() {
        assert_eq!(said(NetworkMode::Nat, "192.0.2.50", Some("192.0.2.51")), "");
        for (mode, first, second, says) in [
            (NetworkMode::Isolated, "192.0.2.50", None, "mode isolated"),
            (NetworkMode::Nat, "10.77.0.200", None, "inside 10.77.0.0/24"),
            (NetworkMode::Nat, "0.0.0.0", None, "just one machine"),
            (NetworkMode::Nat, "127.0.0.1", None, "just one machine"),
            (NetworkMode::Nat, "169.254.64.3", None, "just one machine"),
            (NetworkMode::Nat, "224.0.0.1", None, "just one machine"),
            (NetworkMode::Nat, "255.255.255.255", None, "just one machine"),
            (NetworkMode::Nat, "192.0.2.50", Some("192.0.2.50"), "has it"),
        ] {
            let error = said(mode, first, second);
            assert!(error.contains(says), "{first}: {error}");
        }
    }
}
