//! NICs: the port's end on the bridge, and the end that a hypervisor takes.
//!
//! ```text
//!   tap         br0 -- tap<port> -- descriptor                     goes with its last holder, or when closed
//!   interface   br0 -- tap<port> ==veth== vbp<port> on the host    stays until closed; a hypervisor binds to the name
//! ```
//!
//! The end on the bridge bears one name in both kinds, so guard and rules do not know which it is.

use super::{
    link::{Link, Links, PortFlags},
    netns::NetNs,
    offload, sysctl, tap,
};
use crate::{NetError, names, sim::nic_in_use, sim::not_here};
use std::os::fd::OwnedFd;
use vbm_core::PortId;

/// What the bridge does for a NIC: that of a port that was just made.
pub(super) const PORT: PortFlags = PortFlags {
    learning: true,
    floods_unicast: true,
    floods_multicast: true,
    floods_broadcast: true,
    suppresses_neighbours: false,
    isolated: false,
    hairpin: false,
};

/// Where NICs of one network are made.
pub(crate) struct Place<'a> {
    pub(crate) ns: &'a NetNs,
    /// Into `ns`.
    pub(crate) links: &'a Links,
    /// The host's own.
    pub(crate) host: &'a NetNs,
    /// The tag of the network.
    pub(crate) alias: &'a str,
    pub(crate) bridge: u32,
    /// In bytes.
    pub(crate) mtu: u32,
}

impl Place<'_> {
    /// Makes the tap of a port. On an error the descriptor is dropped, and with it the tap.
    pub(crate) async fn tap(&self, port: PortId) -> Result<OwnedFd, NetError> {
        let name = names::tap(port);
        let made = name.clone();
        let fd = self
            .ns
            .run(move || tap::open(&made))
            .await?
            .map_err(|e| match e.raw_os_error() {
                Some(nix::libc::EBUSY) => nic_in_use(port),
                _ => NetError::kernel(format!("making {name}"), e),
            })?;
        let link = self
            .links
            .get(&name)
            .await?
            .ok_or_else(|| not_here("port", port))?;
        self.whole(self.links, &link).await?;
        self.join(&link).await?;
        self.up(self.links, &link).await?;
        Ok(fd)
    }

    /// Gives a tap that a VM holds what somebody took from it. Returns a line for each thing.
    pub(crate) async fn tap_again(&self, link: &Link) -> Result<Vec<String>, NetError> {
        let mut changed = self.whole(self.links, link).await?;
        changed.extend(self.join(link).await?);
        changed.extend(self.port(link).await?);
        changed.extend(self.up(self.links, link).await?);
        Ok(changed)
    }

    /// Makes the pair of a port whole, from any half-made state. Returns a line for each thing that was not as it must be.
    pub(crate) async fn interface(&self, port: PortId) -> Result<Vec<String>, NetError> {
        let (outer, inner) = (names::interface(port), names::tap(port));
        let host = Links::open(self.host).await?;
        let mut changed = Vec::new();
        let paired = match (host.get(&outer).await?, self.links.get(&inner).await?) {
            (Some(a), Some(b)) => a.peer == Some(b.index) && b.peer == Some(a.index),
            _ => false,
        };
        if !paired {
            host.refuse_foreign(&outer, self.alias).await?;
            host.delete(&outer).await?;
            self.links.delete(&inner).await?;
            host.add_veth(&outer, &inner, self.ns).await?;
            changed.push(format!("interface {outer}"));
        }
        let vanished = || not_here("port", port);
        let (outer, inner) = (
            host.get(&outer).await?.ok_or_else(vanished)?,
            self.links.get(&inner).await?.ok_or_else(vanished)?,
        );
        for (ns, links, link) in [(self.host, &host, &outer), (self.ns, self.links, &inner)] {
            changed.extend(self.whole(links, link).await?);
            let name = link.name.clone();
            let was_on = ns.run(move || offload::tx_off(&name)).await?;
            let was_on =
                was_on.map_err(|e| NetError::kernel(format!("checksum offload of {}", link.name), e))?;
            changed.extend(was_on.then(|| format!("checksum offload of {}", link.name)));
        }
        // The host's own stack must stay silent on it: what arrives there is the VM's.
        changed.extend(sysctl::apply(self.host, sysctl::interface(&outer.name)).await?);
        changed.extend(self.join(&inner).await?);
        changed.extend(self.port(&inner).await?);
        changed.extend(self.up(self.links, &inner).await?);
        changed.extend(self.up(&host, &outer).await?);
        Ok(changed)
    }

    /// Tag and MTU.
    async fn whole(&self, links: &Links, link: &Link) -> Result<Vec<String>, NetError> {
        let mut changed = Vec::new();
        if link.alias.as_deref() != Some(self.alias) {
            links.set_alias(link, self.alias).await?;
            changed.push(format!("tag of {}", link.name));
        }
        if link.mtu != self.mtu {
            links.set_mtu(link, self.mtu).await?;
            changed.push(format!("MTU of {}", link.name));
        }
        Ok(changed)
    }

    async fn join(&self, link: &Link) -> Result<Option<String>, NetError> {
        if link.bridge == Some(self.bridge) {
            return Ok(None);
        }
        self.links.set_bridge(link, self.bridge).await?;
        Ok(Some(format!("{} on the bridge", link.name)))
    }

    /// One that joined the bridge just now is as it should be.
    async fn port(&self, link: &Link) -> Result<Option<String>, NetError> {
        if link.bridge != Some(self.bridge) || link.port == Some(PORT) {
            return Ok(None);
        }
        self.links.set_port(link, PORT).await?;
        Ok(Some(format!("port of {}", link.name)))
    }

    async fn up(&self, links: &Links, link: &Link) -> Result<Option<String>, NetError> {
        if link.up {
            return Ok(None);
        }
        links.set_up(link).await?;
        Ok(Some(format!("{} up", link.name)))
    }
}
