//! The leg of a bridged network, over netlink: [`crate::plan::leg`] says how an interface is joined.

use super::{
    HostShared,
    link::{Link, Links, SeenRoute, failed},
    netns::NetNs,
    sysctl,
};
use crate::{
    DesiredNetwork, NetError, names,
    plan::leg::{self, Join, Seen},
};
use futures::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::{
    address::{AddressAttribute, AddressMessage},
    route::RouteType,
};
use std::net::{IpAddr, Ipv4Addr};
use vbm_core::{InterfaceName, NetworkMode, NetworkSpec, limits::NETWORK_MIN_MTU_BYTES};

/// The interface that a bridged network is on, and how it is joined.
#[derive(Clone, Debug)]
pub(crate) struct Uplink {
    pub(crate) link: Link,
    pub(crate) join: Join,
    /// The host's own addresses there.
    pub(crate) host: Vec<Ipv4Addr>,
}

/// Finds it; `None` for a network of another mode.
pub(crate) async fn uplink(
    shared: &HostShared,
    ns: &NetNs,
    net: &DesiredNetwork,
) -> Result<Option<Uplink>, NetError> {
    let Some(name) = bridged(&net.spec) else {
        return Ok(None);
    };
    let host = Links::open(&shared.host).await?;
    let found = host.get(name.as_str()).await?;
    let (mut seen, mut stands) = (None, false);
    if let Some(link) = &found {
        seen = Some(host.seen_of(link).await?);
        stands = ns.exists() && {
            let inside = Links::open(ns).await?.get(names::LEG).await?;
            inside.is_some_and(|l| l.passthru && l.peer == Some(link.index))
        };
    }
    let join = leg::choose(seen.as_ref(), stands).map_err(|refusal| refusal.told(name))?;
    let own = |net: IpNet| match net.addr() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    };
    let host = seen
        .into_iter()
        .flat_map(|s| s.addresses)
        .filter_map(own)
        .collect();
    Ok(found.map(|link| Uplink { link, join, host }))
}

fn bridged(spec: &NetworkSpec) -> Option<&InterfaceName> {
    let uplink = spec.uplink.as_ref();
    uplink.filter(|_| spec.mode == NetworkMode::Bridged)
}

impl Uplink {
    /// What fits through: the MTU of the network, or that of the LAN.
    pub(crate) fn fits(&self, spec: &NetworkSpec) -> Result<u16, NetError> {
        let room = u16::try_from(self.link.mtu).unwrap_or(u16::MAX);
        if room < NETWORK_MIN_MTU_BYTES {
            return Err(NetError::Conflict {
                what: format!("no network can go by {} on this host", self.link.name),
                why: format!("its MTU is {room} bytes, and VMs need {NETWORK_MIN_MTU_BYTES}"),
                fix: "raise it, or name another interface".into(),
            });
        }
        Ok(spec.mtu.min(room))
    }
}

/// Where the leg of one network is made.
pub(crate) struct Place<'a> {
    pub(crate) ns: &'a NetNs,
    /// Into `ns`.
    pub(crate) links: &'a Links,
    pub(crate) host: &'a NetNs,
    pub(crate) alias: &'a str,
    pub(crate) bridge: u32,
    /// The name of its host end, where it is a pair.
    pub(crate) outer: String,
}

impl Place<'_> {
    /// Makes the leg as wanted, or absent. Returns a line for each change.
    pub(crate) async fn apply(&self, uplink: Option<&Uplink>) -> Result<Vec<String>, NetError> {
        let host = Links::open(self.host).await?;
        let mut changed = Vec::new();
        if self.wrong(&host, uplink).await? {
            // The far end goes first: nothing is heard any more before anything else changes.
            for gone in [
                host.delete_tagged(&self.outer, self.alias).await?,
                self.links.delete(names::LEG).await?,
            ] {
                changed.extend(gone.then(|| "no more leg to the LAN".to_owned()));
            }
            changed.dedup();
        }
        let Some(uplink) = uplink else { return Ok(changed) };
        if self.links.get(names::LEG).await?.is_none() {
            self.make(&host, uplink).await?;
            changed.push(format!("leg to {}, {}", uplink.link.name, uplink.join));
        }
        changed.extend(self.inner(uplink).await?);
        if uplink.join == Join::Pair {
            changed.extend(self.outer(&host, uplink).await?);
        }
        Ok(changed)
    }

    /// What [`Self::apply`] would do, in the large.
    pub(crate) async fn foresee(&self, uplink: Option<&Uplink>) -> Result<Vec<String>, NetError> {
        let host = Links::open(self.host).await?;
        let mut lines = Vec::new();
        let wrong = self.wrong(&host, uplink).await?;
        lines.extend(wrong.then(|| "no more leg to the LAN".to_owned()));
        let Some(uplink) = uplink else { return Ok(lines) };
        let inner = self.links.get(names::LEG).await?.filter(|_| !wrong);
        let Some(inner) = inner else {
            lines.push(format!("leg to {}, {}", uplink.link.name, uplink.join));
            return Ok(lines);
        };
        let mut ends = vec![(inner, self.bridge)];
        if uplink.join == Join::Pair {
            ends.extend(host.get(&self.outer).await?.map(|l| (l, uplink.link.index)));
            lines.extend(sysctl::check(self.host, sysctl::interface(&self.outer)).await?);
        }
        for (end, bridge) in ends {
            let untagged = end.alias.as_deref() != Some(self.alias);
            let off = [
                (untagged, format!("tag of {}", end.name)),
                (end.mtu != uplink.link.mtu, format!("MTU of {}", end.name)),
                (end.bridge != Some(bridge), format!("{} on its bridge", end.name)),
                (!end.up, format!("{} up", end.name)),
            ];
            lines.extend(off.into_iter().filter(|(is, _)| *is).map(|(_, line)| line));
        }
        Ok(lines)
    }

    /// Whether what stands leads elsewhere, or is half of what it was.
    async fn wrong(&self, host: &Links, uplink: Option<&Uplink>) -> Result<bool, NetError> {
        let inner = self.links.get(names::LEG).await?;
        let outer = host.get(&self.outer).await?;
        let Some(uplink) = uplink else {
            return Ok(inner.is_some() || outer.is_some());
        };
        Ok(match (uplink.join, inner, outer) {
            (_, None, None) => false,
            (Join::Passthru, Some(inner), None) => !(inner.passthru && inner.peer == Some(uplink.link.index)),
            (Join::Pair, Some(inner), Some(outer)) => {
                let paired = inner.peer == Some(outer.index) && outer.peer == Some(inner.index);
                !paired || inner.passthru || outer.bridge.is_some_and(|b| b != uplink.link.index)
            }
            _ => true,
        })
    }

    async fn make(&self, host: &Links, uplink: &Uplink) -> Result<(), NetError> {
        match uplink.join {
            Join::Pair => {
                host.refuse_foreign(&self.outer, self.alias).await?;
                host.add_veth(&self.outer, names::LEG, self.ns).await
            }
            Join::Passthru => {
                // It hears nothing while it is down.
                if !uplink.link.up {
                    host.set_up(&uplink.link).await?;
                }
                host.add_passthru(names::LEG, &uplink.link, self.ns).await
            }
        }
    }

    async fn inner(&self, uplink: &Uplink) -> Result<Vec<String>, NetError> {
        let Some(leg) = self.links.get(names::LEG).await? else {
            return Err(vanished(names::LEG));
        };
        self.end(self.links, &leg, uplink.link.mtu, self.bridge).await
    }

    /// The host neither speaks nor answers at this end: it is a port of the operator's bridge.
    async fn outer(&self, host: &Links, uplink: &Uplink) -> Result<Vec<String>, NetError> {
        let Some(outer) = host.get(&self.outer).await? else {
            return Err(vanished(&self.outer));
        };
        let mut changed = sysctl::apply(self.host, sysctl::interface(&outer.name)).await?;
        changed.extend(self.end(host, &outer, uplink.link.mtu, uplink.link.index).await?);
        Ok(changed)
    }

    /// The MTU comes before the bridge: a bridge shrinks to the least MTU of its ports.
    async fn end(&self, links: &Links, end: &Link, mtu: u32, bridge: u32) -> Result<Vec<String>, NetError> {
        let mut changed = Vec::new();
        if end.alias.as_deref() != Some(self.alias) {
            links.set_alias(end, self.alias).await?;
            changed.push(format!("tag of {}", end.name));
        }
        if end.mtu != mtu {
            links.set_mtu(end, mtu).await?;
            changed.push(format!("MTU of {}", end.name));
        }
        if end.bridge != Some(bridge) {
            links.set_bridge(end, bridge).await?;
            changed.push(format!("{} on its bridge", end.name));
        }
        if !end.up {
            links.set_up(end).await?;
            changed.push(format!("{} up", end.name));
        }
        Ok(changed)
    }
}

fn vanished(name: &str) -> NetError {
    NetError::NotVerified {
        what: format!("link {name}"),
        detail: "it vanished as soon as it was made".into(),
    }
}

/// What is seen of an interface among all.
pub(super) fn seen(link: &Link, all: &[Link], addresses: Vec<IpNet>, routes: Vec<IpNet>) -> Seen {
    let part_of = link.bridge.map(|index| {
        let name = all.iter().find(|l| l.index == index).map(|l| l.name.clone());
        name.unwrap_or_else(|| format!("link {index}"))
    });
    let ours = [names::TRANSIT_PREFIX, names::LEG_PREFIX, names::INTERFACE_PREFIX];
    let tagged = link.alias.as_deref().and_then(names::parse_alias).is_some();
    Seen {
        is_bridge: link.is_bridge,
        is_loopback: link.loopback,
        is_ours: tagged || ours.iter().any(|prefix| link.name.starts_with(prefix)),
        part_of,
        addresses,
        routes,
    }
}

impl Links {
    /// Removes a link of our name unless it bears another's tag.
    async fn delete_tagged(&self, name: &str, tag: &str) -> Result<bool, NetError> {
        self.refuse_foreign(name, tag).await?;
        self.delete(name).await
    }

    /// What [`leg::choose`] asks of an interface.
    async fn seen_of(&self, link: &Link) -> Result<Seen, NetError> {
        let all = self.list().await?;
        let addresses = self.addresses_of(link.index).await?;
        Ok(seen(link, &all, addresses, self.routes_by(link.index).await?))
    }

    async fn addresses_of(&self, index: u32) -> Result<Vec<IpNet>, NetError> {
        let all = self.all_addresses().await?;
        Ok(all
            .into_iter()
            .filter(|(i, _)| *i == index)
            .map(|(_, net)| net)
            .collect())
    }

    /// The addresses of this namespace with their links' indices, but for link-local ones of IPv6.
    pub(crate) async fn all_addresses(&self) -> Result<Vec<(u32, IpNet)>, NetError> {
        let all: Vec<AddressMessage> = self
            .handle()
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(failed("listing addresses"))?;
        let read = |m: &AddressMessage| {
            let own = m.attributes.iter().find_map(|a| match a {
                AddressAttribute::Local(a) => Some(*a),
                _ => None,
            });
            let plain = m.attributes.iter().find_map(|a| match a {
                AddressAttribute::Address(a) => Some(*a),
                _ => None,
            });
            let net = IpNet::new(own.or(plain)?, m.header.prefix_len).ok()?;
            (!is_link_local6(net.addr())).then_some((m.header.index, net))
        };
        Ok(all.iter().filter_map(read).collect())
    }

    async fn routes_by(&self, index: u32) -> Result<Vec<IpNet>, NetError> {
        let mut all = self.all_routes().await?;
        all.extend(self.all_routes6().await?);
        let own = |r: &SeenRoute| {
            r.by == Some(index) && r.kind == RouteType::Unicast && !is_link_local6(r.to.addr())
        };
        Ok(all.into_iter().filter(own).map(|r| r.to).collect())
    }
}

/// What every interface has that is up.
fn is_link_local6(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(a) if a.is_unicast_link_local() || a.is_multicast())
}
