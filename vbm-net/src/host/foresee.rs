//! What an `ensure` would do now: read from the kernel, compared by the same plans, and nothing done.
//!
//! Where a network is not here yet, its transit is not chosen: the pool's first stands in for it, since no line tells it.

use super::{
    HostShared, exec,
    fdb::Between,
    floating,
    link::{Link, Links},
    netns::NetNs,
    overlay::Underlay,
    record::Record,
    rules::{self, Wanted},
    sysctl,
};
use crate::{
    DesiredNetwork, NetError, Validated, limits, names,
    plan::{Transit, floating as floating_plan, host as host_plan, inside, overlay, transit as transit_plan},
};
use std::collections::{BTreeMap, BTreeSet};
use vbm_core::network::VXLAN_PORT;

/// A look at one network.
pub(super) struct Look<'a> {
    pub(super) shared: &'a HostShared,
    pub(super) net: &'a Validated<DesiredNetwork>,
    pub(super) underlay: Option<&'a Underlay>,
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
        let want = Wanted::new(self.net, transit, self.shared.dispatch);
        lines.extend(rules::foresee(links.as_ref().map(|_| &ns), want).await?);
        self.uplink(&all, transit, &mut lines).await?;
        self.taps(&all, &mut lines);
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
        let wrong = [
            ("MAC", bridge.mac != Some(self.net.gateway_mac())),
            ("MTU", bridge.mtu != u32::from(self.net.spec.mtu)),
        ];
        lines.extend(
            wrong
                .iter()
                .filter(|(_, is)| *is)
                .map(|(what, _)| format!("{what} of {}", bridge.name)),
        );
        lines.extend((!bridge.up).then(|| format!("{} up", bridge.name)));
        let has = links.addresses().await?;
        let gateway = |(index, net, _): &(u32, ipnet::Ipv4Net, _)| {
            *index == bridge.index
                && net.addr() == self.net.spec.gateway
                && net.prefix_len() == self.net.spec.cidr.prefix_len()
        };
        lines.extend((!has.iter().any(gateway)).then(|| format!("address of {}", bridge.name)));
        Ok(())
    }

    /// The transit, the rules on the host, and what floats.
    async fn uplink(
        &self,
        all: &BTreeMap<String, Link>,
        transit: Option<Transit>,
        lines: &mut Vec<String>,
    ) -> Result<(), NetError> {
        let (host, owner) = (&self.shared.host, &self.shared.owner);
        let outer = names::transit(self.net.id);
        let standing = Links::open(host).await?.get(&outer).await?;
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
        let observed = exec::iptables_read(host).await?;
        let want = transit.map(|t| host_plan::render(owner, self.net, t));
        lines.extend(host_plan::diff(owner, self.net.id, want.as_ref(), &observed).changes);
        if want.is_some() {
            let missing = host_plan::missing_hooks(owner, &observed);
            lines.extend(missing.iter().map(|c| format!("host hook in {}", c.hook())));
        }
        if let Some(transit) = transit {
            let place = floating::Place {
                host,
                network: self.net.id,
                transit,
            };
            let wanted: BTreeSet<_> = floating_plan::all(self.net).into_keys().collect();
            lines.extend(place.foresee(&wanted).await?);
        }
        Ok(())
    }

    fn taps(&self, all: &BTreeMap<String, Link>, lines: &mut Vec<String>) {
        let wanted: BTreeSet<String> = self.net.ports.iter().map(|p| names::tap(p.id)).collect();
        for link in all.values().filter(|l| l.name.starts_with(names::TAP_PREFIX)) {
            if !wanted.contains(&link.name) {
                lines.push(format!("no more {}", link.name));
            } else if link.mtu != u32::from(self.net.spec.mtu) {
                lines.push(format!("MTU of {}", link.name));
            }
        }
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
        let wanted = self.net.overlay.as_ref().zip(self.underlay);
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
                if !standing.is_some_and(same) {
                    lines.push(format!("vxlan {} at {}", overlay.vni, overlay.local));
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
