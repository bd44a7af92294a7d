//! What a network's mode does not go with.

use super::{DesiredNetwork, bad};
use vbm_core::{Error, NetworkMode};

/// A LAN is on all its hosts by itself: a tunnel beside it would be a loop.
pub(super) fn check(desired: &DesiredNetwork) -> Result<(), Error> {
    if desired.spec.mode == NetworkMode::Bridged && desired.overlay.is_some() {
        return Err(bad(
            format!("network '{}' cannot span hosts by VXLAN", desired.name),
            "its mode is bridged: its hosts are on one LAN already, and a tunnel between them would be a loop",
            "leave the overlay out",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::{
        DesiredNetwork, Validated,
        plan::fixture::{lab, spanning},
    };
    use vbm_core::{Error, NetworkMode};

    fn refused(net: DesiredNetwork) -> String {
        Error::from(Validated::<DesiredNetwork>::new(net).unwrap_err()).to_string()
    }

    #[test]
    fn a_bridged_network_has_no_tunnel() {
        let mut net = lab(NetworkMode::Bridged).into_inner();
        net.overlay = spanning().into_inner().overlay;
        assert!(refused(net).contains("would be a loop"));
    }

    #[test]
    fn forwards_and_floating_ips_are_refused_with_the_modes_own_reason() {
        for (mode, reason) in [
            (NetworkMode::Isolated, "no way in"),
            (NetworkMode::Routed, "reached by their own addresses"),
            (NetworkMode::Bridged, "on the LAN"),
        ] {
            let mut forwarded = lab(mode).into_inner();
            let other = lab(NetworkMode::Nat).into_inner();
            forwarded.forwards = other.forwards;
            assert!(refused(forwarded).contains(reason), "{mode}");
            let mut floating = lab(mode).into_inner();
            floating.ports[0].policy.floating = Some([192, 0, 2, 50].into());
            assert!(refused(floating).contains(reason), "{mode}");
        }
    }
}
