//! What an `ensure` would do now: read from the kernel, compared by the same plans, and nothing done.
//!
//! Where a network is not here yet, its transit is not chosen: the pool's first stands in for it, since no line tells it.

use super::{
    HostShared,
    apply::{self, Over},
    exec,
    fdb::Between,
    floating, leg,
    link::{Link, Links},
    netns::NetNs,
    nic,
    overlay::{PORT, Underlay},
    record::{Record, Routed},
    routed,
    rules::{self, Wanted},
    sysctl,
};
use crate::{
    DesiredNetwork, NetError, Validated, limits, names,
    plan::{
        Transit, floating as floating_plan, host as host_plan, inside, overlay, routed as routed_plan,
        transit as transit_plan,
    },
};
use ipnet::{Ipv4Net, Ipv6Net};
use std::collections::{BTreeMap, BTreeSet};
use vbm_core::{
    NetworkMode, PortId,
    network::{METADATA_ADDRESS, VXLAN_PORT},
};

/// A look at one network.
pub(super) struct Look<'a> {
    pub(super) shared: &'a HostShared,
    pub(super) net: &'a Validated<DesiredNetwork>,
    pub(super) over: &'a Over,
    /// What was wanted and held before, where this process has looked at the network already.
    pub(super) before: Option<&'a Validated<DesiredNetwork>>,
}

impl Look<'_> {
    /// A line for each thing that would change in the kernel, in about the order in which it would.
    pub(super) async fn lines(&self) -> Result<Vec<String>, NetError> {
        let name = self.shared.namespace(self.net.id);
        let ns = NetNs::named(&name);
        let ours = |r: &Record| r.network == self.net.id && r.owner == self.shared.owner;
        let record = Record::load(&name)?.filter(ours);
        let mut lines = Vec::new();
        lines.extend(record.is_none().then(|| "record".to_owned()));
        lines.extend((!ns.exists()).then(|| format!("namespace {name}")));
        let links = if ns.exists() {
            Some(Links::open(&ns).await?)
        } else {
            None
        };
        let mut all = BTreeMap::new();
        if let Some(links) = &links {
            let named = |l: Link| (l.name.clone(), l);
            all.extend(links.list().await?.into_iter().map(named));
            for settings in [sysctl::inside(), sysctl::groups()] {
                lines.extend(sysctl::check(&ns, settings).await?);
            }
        }
        self.bridge(links.as_ref(), &all, &mut lines).await?;
        let transit = self.transit(record.as_ref());
        let want = Wanted::new(self.net, transit, self.over.host(), self.shared.dispatch);
        lines.extend(rules::foresee(links.as_ref().map(|_| &ns), want, &self.shared.forms).await?);
        self.uplink(record.as_ref(), &all, transit, &mut lines).await?;
        self.routes(record.as_ref(), transit, &mut lines).await?;
        self.leg(&ns, links.as_ref(), &all, &mut lines).await?;
        self.taps(&all, &mut lines).await?;
        if let Some(links) = &links {
            self.limits(links, &all, &mut lines).await?;
        } else {
            lines.extend(limits_of_nothing(self.net));
        }
        self.overlay(links.as_ref(), &all, &mut lines).await?;
        Ok(lines)
    }

    fn transit(&self, record: Option<&Record>) -> Option<Transit> {
        if !inside::has_uplink(self.net) {
            return None;
        }
        let known = record.and_then(Record::transit);
        known.or_else(|| transit_plan::choose(self.shared.transit_pool, self.net.id, &[]))
    }

    async fn bridge(
        &self,
        links: Option<&Links>,
        all: &BTreeMap<String, Link>,
        lines: &mut Vec<String>,
    ) -> Result<(), NetError> {
        let (Some(links), Some(bridge)) = (links, all.get(names::BRIDGE)) else {
            lines.push(format!("bridge {}", names::BRIDGE));
            return Ok(());
        };
        let mac = bridge.mac != Some(self.net.gateway_mac());
        lines.extend(mac.then(|| format!("MAC of {}", bridge.name)));
        lines.extend(self.whole(bridge, true));
        let ns = NetNs::named(&self.shared.namespace(self.net.id));
        let settings = sysctl::bridge(names::BRIDGE, self.net.spec.ipv6.is_some());
        lines.extend(sysctl::check(&ns, settings).await?);
        if self.net.spec.mode == NetworkMode::Bridged {
            // The gateway is the LAN's router.
            let same = links.has_only(bridge, &[]).await?;
            lines.extend((!same).then(|| format!("address of {}", bridge.name)));
            return Ok(());
        }
        let (gateway, cidr) = (self.net.spec.gateway, self.net.spec.cidr);
        let own = Ipv4Net::new_assert(gateway, cidr.prefix_len());
        let metadata = self.net.spec.serves_metadata();
        let mut wanted = vec![own];
        wanted.extend(metadata.then(|| Ipv4Net::from(METADATA_ADDRESS)));
        lines.extend(self.addressed(links, bridge, &wanted).await?);
        if let Some(six) = &self.net.spec.ipv6 {
            lines.extend(self.addressed6(links, bridge, &apply::addresses6(six)).await?);
        }
        Ok(())
    }

    /// Tag, whether it is up, and for those that VMs send by the MTU.
    fn whole(&self, link: &Link, mtu: bool) -> Vec<String> {
        let tag = names::alias(&self.shared.owner, self.net.id);
        let wrong = [
            ("tag of ", "", link.alias.as_deref() != Some(&tag)),
            ("MTU of ", "", mtu && link.mtu != u32::from(self.net.spec.mtu)),
            ("", " up", !link.up),
        ];
        let wrong = wrong.iter().filter(|(.., is)| *is);
        wrong
            .map(|(before, after, _)| format!("{before}{}{after}", link.name))
            .collect()
    }

    /// Addresses, and the route to the subnet of the first.
    async fn addressed(
        &self,
        links: &Links,
        link: &Link,
        wanted: &[Ipv4Net],
    ) -> Result<Vec<String>, NetError> {
        let mut lines = Vec::new();
        let same = links.has_only(link, wanted).await?;
        lines.extend((!same).then(|| format!("address of {}", link.name)));
        if let Some(first) = wanted.first()
            && !links.has_route(*first).await?
        {
            lines.push(format!("route of {}", link.name));
        }
        Ok(lines)
    }

    /// The same of IPv6, and the routes to the subnets of all.
    async fn addressed6(
        &self,
        links: &Links,
        link: &Link,
        wanted: &[Ipv6Net],
    ) -> Result<Vec<String>, NetError> {
        let mut lines = Vec::new();
        let same = links.has_only6(link, wanted).await?;
        lines.extend((!same).then(|| format!("IPv6 address of {}", link.name)));
        for net in wanted {
            let leads = links.has_route6(link, *net).await?;
            lines.extend((!leads).then(|| format!("IPv6 route of {}", link.name)));
        }
        Ok(lines)
    }

    /// The transit, the rules on the host, and what floats.
    async fn uplink(
        &self,
        record: Option<&Record>,
        all: &BTreeMap<String, Link>,
        transit: Option<Transit>,
        lines: &mut Vec<String>,
    ) -> Result<(), NetError> {
        let (host, owner) = (&self.shared.host, &self.shared.owner);
        let outer = names::transit(self.net.id);
        let links = Links::open(host).await?;
        let standing = links.get(&outer).await?;
        let paired = match (&standing, all.get(names::UPLINK)) {
            (Some(a), Some(b)) => a.peer == Some(b.index) && b.peer == Some(a.index),
            _ => false,
        };
        match transit {
            Some(_) if !paired => lines.push(format!("transit {outer}")),
            None if standing.is_some() || all.contains_key(names::UPLINK) => {
                lines.push("no more transit".into());
            }
            _ => {}
        }
        if let (Some(transit), true, Some(a), Some(b)) = (transit, paired, &standing, all.get(names::UPLINK))
        {
            lines.extend(self.way_out(transit, (&links, a), b).await?);
        }
        let observed = exec::iptables_read(host).await?;
        let underlay = self.over.underlay.as_ref().map(Underlay::name);
        let want = transit.map(|t| host_plan::render(owner, self.net, t, underlay));
        lines.extend(host_plan::diff(owner, self.net.id, want.as_ref(), &observed).changes);
        if want.is_some() {
            let missing = host_plan::missing_hooks(owner, &observed);
            lines.extend(missing.iter().map(|c| format!("host hook in {}", c.hook())));
        }
        let want6 = routed_plan::on_host6(owner, self.net).filter(|_| transit.is_some());
        let had6 = record
            .and_then(|r| r.routed.as_ref())
            .is_some_and(|r| r.cidr6.is_some());
        if want6.is_some() || had6 {
            let observed = exec::ip6tables_read(host).await?;
            let diff = host_plan::diff(owner, self.net.id, want6.as_ref(), &observed);
            lines.extend(diff.changes.into_iter().map(|c| format!("{c} (IPv6)")));
            let missing = host_plan::missing_hooks(owner, &observed);
            let missing = missing.iter().filter(|_| want6.is_some());
            lines.extend(missing.map(|c| format!("host hook in {} (IPv6)", c.hook())));
        }
        if let Some(transit) = transit {
            let place = floating::Place {
                host,
                network: self.net.id,
                transit,
            };
            let wanted: BTreeSet<_> = floating_plan::all(self.net).into_keys().collect();
            let never = self
                .before
                .is_some_and(|before| floating_plan::all(before).is_empty());
            if !(wanted.is_empty() && never) {
                lines.extend(place.foresee(&wanted).await?);
            }
        }
        Ok(())
    }

    /// Both ends of a transit that stands, their settings, and the ways that lead by it.
    async fn way_out(
        &self,
        transit: Transit,
        outer: (&Links, &Link),
        inner: &Link,
    ) -> Result<Vec<String>, NetError> {
        let mut lines = Vec::new();
        let ns = NetNs::named(&self.shared.namespace(self.net.id));
        let inside = Links::open(&ns).await?;
        let six = routed_plan::carries_ipv6(self.net);
        let translates = self.net.spec.mode == NetworkMode::Nat;
        let settings = sysctl::uplink(&inner.name, six);
        lines.extend(sysctl::check(&ns, settings).await?);
        let settings = sysctl::host(&outer.1.name, translates, six);
        lines.extend(sysctl::check(&self.shared.host, settings).await?);
        let ends = [
            (outer.0, outer.1, transit.host(), routed_plan::HOST_LINK_LOCAL),
            (&inside, inner, transit.inner(), routed_plan::INNER_LINK_LOCAL),
        ];
        for (links, link, four, local) in ends {
            lines.extend(self.whole(link, false));
            let four = Ipv4Net::new_assert(four, transit.net().prefix_len());
            lines.extend(self.addressed(links, link, &[four]).await?);
            if six {
                let local = Ipv6Net::new_assert(local, apply::LINK_LOCAL_PREFIX_BITS);
                lines.extend(self.addressed6(links, link, &[local]).await?);
            }
        }
        let source = apply::source_outside(self.net);
        let leads = inside.has_way_out(transit.host(), source).await?;
        lines.extend((!leads).then(|| "default route".to_owned()));
        if let Some(spec) = self.net.spec.ipv6.as_ref().filter(|_| six) {
            let host = routed_plan::HOST_LINK_LOCAL;
            let leads = inside.has_way_out6(inner, host, spec.gateway).await?;
            lines.extend((!leads).then(|| "default route of IPv6".to_owned()));
        }
        Ok(lines)
    }

    /// The routes on the host.
    async fn routes(
        &self,
        record: Option<&Record>,
        transit: Option<Transit>,
        lines: &mut Vec<String>,
    ) -> Result<(), NetError> {
        let claimed = record.and_then(|r| r.routed.clone());
        let claimed = claimed.or_else(|| Routed::of(self.net));
        let want = routed_plan::ways(self.net, transit.map(Transit::inner));
        let Some(claimed) = claimed else { return Ok(()) };
        let place = routed::Place {
            host: &self.shared.host,
            link: names::transit(self.net.id),
            cidrs: claimed.cidrs().collect(),
        };
        lines.extend(place.foresee(&want).await?);
        Ok(())
    }

    /// The leg to the LAN.
    async fn leg(
        &self,
        ns: &NetNs,
        links: Option<&Links>,
        all: &BTreeMap<String, Link>,
        lines: &mut Vec<String>,
    ) -> Result<(), NetError> {
        let uplink = self.over.uplink.as_ref();
        let Some(links) = links else {
            lines.extend(uplink.map(|u| format!("leg to {}, {}", u.link.name, u.join)));
            return Ok(());
        };
        let none = |net: &DesiredNetwork| net.spec.mode != NetworkMode::Bridged;
        if none(self.net) && self.before.is_some_and(|before| none(before)) {
            return Ok(());
        }
        let place = leg::Place {
            ns,
            links,
            host: &self.shared.host,
            alias: &names::alias(&self.shared.owner, self.net.id),
            bridge: all.get(names::BRIDGE).map_or(0, |l| l.index),
            outer: names::leg(self.net.id),
        };
        lines.extend(place.foresee(uplink).await?);
        Ok(())
    }

    async fn taps(&self, all: &BTreeMap<String, Link>, lines: &mut Vec<String>) -> Result<(), NetError> {
        let wanted: BTreeMap<String, PortId> =
            self.net.ports.iter().map(|p| (names::tap(p.id), p.id)).collect();
        for link in all.values().filter(|l| l.name.starts_with(names::TAP_PREFIX)) {
            let Some(port) = wanted.get(&link.name) else {
                lines.push(format!("no more {}", link.name));
                continue;
            };
            lines.extend(self.whole(link, true));
            let bridge = all.get(names::BRIDGE).map(|l| l.index);
            if link.bridge.is_none() || link.bridge != bridge {
                lines.push(format!("{} on the bridge", link.name));
            } else if link.port != Some(nic::PORT) {
                lines.push(format!("port of {}", link.name));
            }
            if link.peer.is_some() {
                self.interface(link, *port, lines).await?;
            }
        }
        Ok(())
    }

    /// The host's end of a NIC that is an interface.
    async fn interface(&self, inner: &Link, port: PortId, lines: &mut Vec<String>) -> Result<(), NetError> {
        let name = names::interface(port);
        match Links::open(&self.shared.host).await?.get(&name).await? {
            Some(outer) if outer.peer == Some(inner.index) && inner.peer == Some(outer.index) => {
                lines.extend(self.whole(&outer, true));
                lines.extend(sysctl::check(&self.shared.host, sysctl::interface(&name)).await?);
            }
            _ => lines.push(format!("interface {name}")),
        }
        Ok(())
    }

    async fn limits(
        &self,
        links: &Links,
        all: &BTreeMap<String, Link>,
        lines: &mut Vec<String>,
    ) -> Result<(), NetError> {
        let all: Vec<Link> = all.values().cloned().collect();
        let steps = super::limits::foresee(links, &limits::render(self.net), &all).await?;
        lines.extend(steps.iter().map(ToString::to_string));
        Ok(())
    }

    async fn overlay(
        &self,
        links: Option<&Links>,
        all: &BTreeMap<String, Link>,
        lines: &mut Vec<String>,
    ) -> Result<(), NetError> {
        let standing = all.get(names::VXLAN);
        let wanted = self.net.overlay.as_ref().zip(self.over.underlay.as_ref());
        match (wanted, standing) {
            (None, Some(_)) => lines.push("no more vxlan".into()),
            (Some((overlay, underlay)), standing) => {
                let same = |l: &Link| {
                    let vxlan = l.vxlan.as_ref();
                    vxlan.is_some_and(|v| {
                        (v.vni, v.local, v.device, v.port, v.learning)
                            == (
                                overlay.vni,
                                Some(overlay.local),
                                underlay.index(),
                                VXLAN_PORT,
                                false,
                            )
                    })
                };
                match standing.filter(|l| same(l)) {
                    None => lines.push(format!("vxlan {} at {}", overlay.vni, overlay.local)),
                    Some(link) => {
                        lines.extend(self.whole(link, true));
                        let joined =
                            link.bridge.is_some() && link.bridge == all.get(names::BRIDGE).map(|l| l.index);
                        lines.extend((!joined).then(|| format!("{} on the bridge", link.name)));
                        lines.extend(
                            (joined && link.port != Some(PORT)).then(|| format!("port of {}", link.name)),
                        );
                    }
                }
            }
            (None, None) => {}
        }
        let want = overlay::render(self.net);
        let between = Between {
            bridge: all.get(names::BRIDGE).map_or(0, |l| l.index),
            vxlan: standing.map_or(0, |l| l.index),
        };
        let have = match links {
            Some(links) => links.entries(between).await?,
            None => overlay::Entries::default(),
        };
        lines.extend(overlay::diff(&want, &have).iter().map(ToString::to_string));
        Ok(())
    }
}

/// In a namespace that is not there.
fn limits_of_nothing(net: &DesiredNetwork) -> Vec<String> {
    let steps = limits::plan(&limits::render(net), &limits::AllSeen::new());
    steps.iter().map(ToString::to_string).collect()
}
