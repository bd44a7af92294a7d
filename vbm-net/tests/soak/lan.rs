//! The LANs of a host, in a namespace that is not the host's: one by a bridge of the host, one by an interface of its own.
//!
//! ```text
//!   LAN namespace:  lan (a bridge) -- veth -- eth1 -- br-lan 198.51.100.1/24    the host
//!                                  -- veth -- eth2, without addresses
//! ```

use crate::{
    common::{self, Ns, ip},
    soak::{BRIDGE, INTERFACE},
};

/// What the host has for them.
pub(crate) const LINKS: [&str; 3] = [PART, BRIDGE, INTERFACE];
/// The part of the bridge that leads to the LAN.
pub(crate) const PART: &str = "eth1";
/// The host's own address on its bridge.
pub(crate) const ADDRESS: &str = "198.51.100.1/24";

/// Joins a host to them; they go with what is returned.
pub(crate) fn join(host: &Ns) -> Ns {
    let lan = Ns::new("vbmt-l-");
    lan.ip("link add lan type bridge forward_delay 0");
    lan.ip("link set lan up");
    for name in [PART, INTERFACE] {
        let other = common::fresh("p");
        ip(&format!(
            "-n {} link add {name} type veth peer name {other} netns {}",
            host.0, lan.0
        ));
        lan.ip(&format!("link set {other} master lan up"));
    }
    host.ip(&format!("link add {BRIDGE} type bridge forward_delay 0"));
    host.ip(&format!("link set {PART} master {BRIDGE} up"));
    host.ip(&format!("link set {BRIDGE} up"));
    host.ip(&format!("addr add {ADDRESS} dev {BRIDGE}"));
    lan
}
