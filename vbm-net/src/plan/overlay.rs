//! Where frames for ports on other hosts go: three tables of the kernel, all of them written, none learned.
//!
//! ```text
//!   a VM asks by ARP or ND  br0's neighbours: address -> MAC       the bridge answers by itself (neigh_suppress)
//!   a VM sends to that MAC  br0's forwarding: MAC -> vx0           nothing unknown is flooded there
//!   vx0 wraps the frame     vx0's forwarding: MAC -> host          a MAC without a host goes nowhere
//! ```
//!
//! Entries that somebody else put there go too: one that leads all unknown MACs to a host, for example.

use crate::{DesiredNetwork, Validated};
use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr},
};
use vbm_core::Mac;

/// The entries of one network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    /// Which host a MAC is on.
    pub tunnel: BTreeSet<(Mac, Ipv4Addr)>,
    /// MACs that the bridge sends to the tunnel.
    pub bridge: BTreeSet<Mac>,
    /// Which MAC an address has.
    pub neighbours: BTreeSet<(IpAddr, Mac)>,
}

/// One change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each adds or removes an entry of the table it names")]
pub enum Step {
    RemoveNeighbour(IpAddr, Mac),
    RemoveBridge(Mac),
    RemoveTunnel(Mac, Ipv4Addr),
    AddTunnel(Mac, Ipv4Addr),
    AddBridge(Mac),
    AddNeighbour(IpAddr, Mac),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RemoveNeighbour(address, _) => write!(f, "no more neighbour {address}"),
            Self::RemoveBridge(mac) => write!(f, "no more way to {mac}"),
            Self::RemoveTunnel(mac, host) => write!(f, "{mac} is no more on {host}"),
            Self::AddTunnel(mac, host) => write!(f, "{mac} is on {host}"),
            Self::AddBridge(mac) => write!(f, "way to {mac}"),
            Self::AddNeighbour(address, mac) => write!(f, "neighbour {address} is {mac}"),
        }
    }
}

/// The entries that are wanted; none without an overlay.
pub fn render(net: &Validated<DesiredNetwork>) -> Entries {
    let mut entries = Entries::default();
    for remote in net.overlay.iter().flat_map(|o| &o.remotes) {
        entries.tunnel.insert((remote.mac, remote.host));
        entries.bridge.insert(remote.mac);
        entries.neighbours.insert((remote.address.into(), remote.mac));
        entries
            .neighbours
            .extend(remote.address6.map(|a| (a.into(), remote.mac)));
    }
    entries
}

/// What turns one into the other. A way is made from its far end on and removed from its near end on, so that nothing is sent
/// where it cannot go on; what is replaced is removed first.
pub fn diff(want: &Entries, have: &Entries) -> Vec<Step> {
    let mut steps = Vec::new();
    steps.extend(
        have.neighbours
            .difference(&want.neighbours)
            .map(|(address, mac)| Step::RemoveNeighbour(*address, *mac)),
    );
    steps.extend(
        have.bridge
            .difference(&want.bridge)
            .map(|mac| Step::RemoveBridge(*mac)),
    );
    steps.extend(
        have.tunnel
            .difference(&want.tunnel)
            .map(|(mac, host)| Step::RemoveTunnel(*mac, *host)),
    );
    steps.extend(
        want.tunnel
            .difference(&have.tunnel)
            .map(|(mac, host)| Step::AddTunnel(*mac, *host)),
    );
    steps.extend(
        want.bridge
            .difference(&have.bridge)
            .map(|mac| Step::AddBridge(*mac)),
    );
    steps.extend(
        want.neighbours
            .difference(&have.neighbours)
            .map(|(address, mac)| Step::AddNeighbour(*address, *mac)),
    );
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixture::spanning;
    use proptest::prelude::*;

    /// What the kernel would hold after a step.
    fn apply(entries: &mut Entries, step: Step) {
        match step {
            Step::RemoveNeighbour(a, m) => assert!(entries.neighbours.remove(&(a, m))),
            Step::RemoveBridge(m) => assert!(entries.bridge.remove(&m)),
            Step::RemoveTunnel(m, h) => assert!(entries.tunnel.remove(&(m, h))),
            Step::AddTunnel(m, h) => assert!(entries.tunnel.insert((m, h))),
            Step::AddBridge(m) => assert!(entries.bridge.insert(m)),
            Step::AddNeighbour(a, m) => assert!(entries.neighbours.insert((a, m))),
        }
    }

    fn entries() -> impl Strategy<Value = Entries> {
        let mac = (0u32..4).prop_map(Mac::local);
        let host = (0u8..3).prop_map(|n| Ipv4Addr::new(198, 18, 0, n));
        let address = (0u8..4).prop_map(|n| match n % 2 {
            0 => IpAddr::from([10, 9, 0, n]),
            _ => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, n.into()]),
        });
        (
            prop::collection::btree_set((mac.clone(), host), 0..4),
            prop::collection::btree_set(mac.clone(), 0..4),
            prop::collection::btree_set((address, mac), 0..4),
        )
            .prop_map(|(tunnel, bridge, neighbours)| Entries {
                tunnel,
                bridge,
                neighbours,
            })
    }

    proptest! {
        #[test]
        fn the_steps_lead_from_anywhere_to_what_is_wanted(want in entries(), have in entries()) {
            let mut now = have.clone();
            for step in diff(&want, &have) { apply(&mut now, step); }
            prop_assert_eq!(&now, &want);
            prop_assert_eq!(diff(&want, &now), vec![]);
        }
    }

    #[test]
    fn a_port_that_changes_its_host_changes_one_entry() {
        let net = spanning();
        let mut moved = net.clone().into_inner();
        let remotes = &mut moved.overlay.as_mut().unwrap().remotes;
        let (mac, from, to) = (remotes[0].mac, remotes[0].host, Ipv4Addr::new(198, 18, 0, 9));
        remotes[0].host = to;
        let moved = Validated::<DesiredNetwork>::new(moved).unwrap();
        assert_eq!(
            diff(&render(&moved), &render(&net)),
            [Step::RemoveTunnel(mac, from), Step::AddTunnel(mac, to)]
        );
    }

    #[test]
    fn a_network_on_one_host_has_no_entry() {
        let net = crate::plan::fixture::lab(vbm_core::NetworkMode::Nat);
        assert_eq!(render(&net), Entries::default());
    }
}
