//! The link to other hosts: a vxlan whose socket is on the host and whose frames are in the network's namespace.
//!
//! ```text
//!   host: underlay address -- UDP 4789 -- socket .... vx0 -- br0 :namespace
//! ```
//!
//! It is made from the host's namespace directly into the network's, so that there is no moment at which it stands on the
//! host, and none at which its socket is elsewhere.

use super::{
    fdb::Between,
    link::{Link, Links, PortFlags, Vxlan},
    netns::NetNs,
};
use crate::{DesiredNetwork, DesiredOverlay, NetError, Validated, names, plan::overlay as plan};
use std::net::Ipv4Addr;
use vbm_core::{
    NetworkSpec,
    limits::{NETWORK_MIN_MTU_BYTES, NETWORK6_MIN_MTU_BYTES},
    network::VXLAN_PORT,
};

/// What VXLAN over IPv4 adds to a packet, in bytes: IPv4 20, UDP 8, VXLAN 8, the inner Ethernet header 14.
pub(crate) const OVERHEAD_BYTES: u32 = 50;
/// Nothing is learned and nothing unknown sent; the bridge answers ARP for those behind it.
pub(super) const PORT: PortFlags = PortFlags {
    learning: false,
    floods_unicast: false,
    floods_multicast: false,
    floods_broadcast: false,
    suppresses_neighbours: true,
    isolated: false,
    hairpin: false,
};

/// The host's link that bears its address among the hosts.
#[derive(Clone, Debug)]
pub(crate) struct Underlay {
    index: u32,
    name: String,
    mtu: u32,
}

/// Finds it.
pub(crate) async fn underlay(host: &NetNs, local: Ipv4Addr) -> Result<Underlay, NetError> {
    let none = |why: String| NetError::NoUnderlay { address: local, why };
    let links = Links::open(host).await?;
    let addresses = links.addresses().await?;
    let Some((index, ..)) = addresses.iter().find(|(_, net, _)| net.addr() == local) else {
        return Err(none("no interface of this host has that address".into()));
    };
    let link = links.list().await?.into_iter().find(|l| l.index == *index);
    match link {
        Some(link) if link.loopback => Err(none(format!(
            "it is an address of {}, by which no other host is reached",
            link.name
        ))),
        Some(link) => Ok(Underlay {
            index: link.index,
            name: link.name,
            mtu: link.mtu,
        }),
        None => Err(none("its interface vanished".into())),
    }
}

impl Underlay {
    /// Its link.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The index of its link.
    pub(crate) const fn index(&self) -> u32 {
        self.index
    }

    /// What fits through: the MTU of the network, or what the underlay leaves of its own.
    pub(crate) fn fits(&self, spec: &NetworkSpec, local: Ipv4Addr) -> Result<u16, NetError> {
        let least = match spec.ipv6 {
            Some(_) => NETWORK6_MIN_MTU_BYTES,
            None => NETWORK_MIN_MTU_BYTES,
        };
        let room = u16::try_from(self.mtu.saturating_sub(OVERHEAD_BYTES)).unwrap_or(u16::MAX);
        if room < least {
            return Err(NetError::NoUnderlay {
                address: local,
                why: format!(
                    "its interface has an MTU of {} bytes, which leaves {room} for VMs; they need {least}",
                    self.mtu
                ),
            });
        }
        Ok(spec.mtu.min(room))
    }
}

/// Where the overlay of one network is made.
pub(crate) struct Span<'a> {
    pub(crate) ns: &'a NetNs,
    /// Into `ns`.
    pub(crate) links: &'a Links,
    pub(crate) host: &'a NetNs,
    pub(crate) alias: &'a str,
    pub(crate) bridge: u32,
    pub(crate) net: &'a Validated<DesiredNetwork>,
}

impl Span<'_> {
    /// Makes the link as wanted, or absent. Returns a line for each change.
    pub(crate) async fn link(
        &self,
        overlay: Option<(&DesiredOverlay, &Underlay)>,
    ) -> Result<(Vec<String>, Option<Between>), NetError> {
        let Some((overlay, underlay)) = overlay else {
            let gone = self.links.delete(names::VXLAN).await?;
            return Ok((gone.then(|| "no more vxlan".into()).into_iter().collect(), None));
        };
        let wanted = Vxlan {
            vni: overlay.vni,
            local: Some(overlay.local),
            device: underlay.index,
            port: VXLAN_PORT,
            learning: false,
        };
        let mut changed = Vec::new();
        let standing = self.links.get(names::VXLAN).await?;
        if standing.as_ref().and_then(|l| l.vxlan.as_ref()) != Some(&wanted) {
            self.links.delete(names::VXLAN).await?;
            let host = Links::open(self.host).await?;
            host.add_vxlan(names::VXLAN, &wanted, self.ns).await?;
            changed.push(format!("vxlan {} at {}", wanted.vni, overlay.local));
        }
        let link = self.get().await?;
        if link.alias.as_deref() != Some(self.alias) {
            self.links.set_alias(&link, self.alias).await?;
            changed.push(format!("tag of {}", link.name));
        }
        let mtu = u32::from(self.net.spec.mtu);
        if link.mtu != mtu {
            self.links.set_mtu(&link, mtu).await?;
            changed.push(format!("MTU of {}", link.name));
        }
        if link.bridge != Some(self.bridge) {
            self.links.set_bridge(&link, self.bridge).await?;
            changed.push(format!("{} on the bridge", link.name));
        }
        if self.get().await?.port != Some(PORT) {
            self.links.set_port(&link, PORT).await?;
            changed.push(format!("port of {}", link.name));
        }
        if !link.up {
            self.links.set_up(&link).await?;
            changed.push(format!("{} up", link.name));
        }
        if self.get().await?.port != Some(PORT) {
            return Err(NetError::NotVerified {
                what: "what the bridge does towards other hosts".into(),
                detail: "its port floods, learns, or does not answer ARP".into(),
            });
        }
        let between = Between {
            bridge: self.bridge,
            vxlan: link.index,
        };
        Ok((changed, Some(between)))
    }

    async fn get(&self) -> Result<Link, NetError> {
        let link = self.links.get(names::VXLAN).await?;
        link.ok_or_else(|| NetError::NotVerified {
            what: format!("link {}", names::VXLAN),
            detail: "it vanished as soon as it was made".into(),
        })
    }

    /// Makes the entries as wanted, and reads them back. Without a link only neighbours may be left.
    pub(crate) async fn entries(&self, between: Option<Between>) -> Result<Vec<String>, NetError> {
        let want = plan::render(self.net);
        let between = between.unwrap_or(Between {
            bridge: self.bridge,
            vxlan: 0,
        });
        let steps = plan::diff(&want, &self.links.entries(between).await?);
        if steps.is_empty() {
            return Ok(Vec::new());
        }
        for step in &steps {
            self.links.step(between, *step).await?;
        }
        match plan::diff(&want, &self.links.entries(between).await?).first() {
            None => Ok(steps.iter().map(ToString::to_string).collect()),
            Some(step) => Err(NetError::NotVerified {
                what: "an entry for a port on another host".into(),
                detail: format!("missing: {step}"),
            }),
        }
    }
}
