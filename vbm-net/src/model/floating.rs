//! Which floating addresses make sense.

use super::{DesiredNetwork, bad};
use ipnet::Ipv4Net;
use std::{collections::BTreeMap, net::Ipv4Addr};
use vbm_core::{Error, NetworkSpec};

/// Above it are multicast (RFC 5771), what is kept for nothing, and broadcast.
const FIRST_MULTICAST: u8 = 224;
const OUTSIDE: &str = "choose an address of the world outside the host";
/// What is only known on one link (RFC 3927); transits are of it.
const LINK_LOCAL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16);

/// Checks one floating IP for a port of a network.
///
/// # Errors
/// A network without a way in; an address of the network's own, or one that is nobody's or everybody's.
pub fn check_floating_ip(spec: &NetworkSpec, address: Ipv4Addr) -> Result<(), Error> {
    let refuse = |why: String, fix: &str| {
        Err(bad(
            format!("no port of this network can have the floating IP {address}"),
            why,
            fix,
        ))
    };
    if let Some(reason) = spec.mode.without_nat() {
        return refuse(
            format!("its mode is {}, {reason}", spec.mode),
            "use a network of mode nat",
        );
    }
    if spec.cidr.contains(&address) {
        return refuse(format!("it is inside {}, the network's own", spec.cidr), OUTSIDE);
    }
    check_floating_address(address)
}

/// Checks that an address can be a floating IP of any network.
///
/// # Errors
/// It is nobody's or everybody's.
pub fn check_floating_address(address: Ipv4Addr) -> Result<(), Error> {
    let nobody = address.octets()[0] == 0 || address.is_loopback() || LINK_LOCAL.contains(&address);
    if nobody || address.octets()[0] >= FIRST_MULTICAST {
        return Err(bad(
            format!("{address} cannot be a floating IP"),
            "no packet can be sent to just one machine there",
            OUTSIDE,
        ));
    }
    Ok(())
}

/// Checks the floating IPs of all ports.
pub(super) fn check(desired: &DesiredNetwork) -> Result<(), Error> {
    let mut taken = BTreeMap::new();
    for port in &desired.ports {
        let Some(address) = port.policy.floating else {
            continue;
        };
        let cannot = || format!("port {} of '{}' cannot be made", port.id, desired.name);
        check_floating_ip(&desired.spec, address).map_err(|e| e.context(cannot()))?;
        if let Some(other) = taken.insert(address, port.id) {
            return Err(bad(
                cannot(),
                format!("port {other} has its floating IP {address}"),
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
            (NetworkMode::Isolated, "192.0.2.50", None, "mode is isolated"),
            (NetworkMode::Nat, "10.77.0.200", None, "inside 10.77.0.0/24"),
            (NetworkMode::Nat, "0.0.0.0", None, "just one machine"),
            (NetworkMode::Nat, "127.0.0.1", None, "just one machine"),
            (NetworkMode::Nat, "169.254.64.3", None, "just one machine"),
            (NetworkMode::Nat, "224.0.0.1", None, "just one machine"),
            (NetworkMode::Nat, "255.255.255.255", None, "just one machine"),
            (
                NetworkMode::Nat,
                "192.0.2.50",
                Some("192.0.2.50"),
                "has its floating IP",
            ),
        ] {
            let error = said(mode, first, second);
            assert!(error.contains(says), "{first}: {error}");
        }
    }
}
