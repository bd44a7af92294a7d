//! The steps that lead out of a network's namespace: the transit and who may use it, floating IPs, routes on the host, the
//! leg to a LAN.

use super::{
    super::{
        floating,
        hooks::{self, AtHost},
        leg,
        link::{Link, Links},
        overlay::Underlay,
        record::{self, Record},
        routed, sysctl,
    },
    LINK_LOCAL_PREFIX_BITS, Run, source_outside,
};
use crate::{
    DesiredNetwork, NetError, names,
    plan::{
        Transit,
        filter::Family,
        floating as floating_plan, host as host_plan, inside,
        routed::{self as routed_plan, on_host6 as host_plan6},
        transit as transit_plan,
    },
};
use ipnet::{Ipv4Net, Ipv6Net};
use vbm_core::NetworkMode;

impl Run<'_> {
    /// The pair it has, had before, or a free one; recorded before it is used.
    pub(super) async fn choose_transit(&mut self, record: &mut Record) -> Result<Option<Transit>, NetError> {
        if !inside::has_uplink(self.net) {
            return Ok(None);
        }
        if let Some(transit) = record.transit() {
            return Ok(Some(transit));
        }
        let _lock = record::transit_lock().await?;
        let pool = self.shared.transit_pool;
        let mut taken = self.taken().await?;
        let (records, _) = Record::all()?;
        taken.extend(
            records
                .iter()
                .filter(|r| r.host_namespace == record.host_namespace)
                .filter_map(|r| r.transit),
        );
        let free = |t: &Transit| {
            pool.contains(&t.net()) && !taken.iter().any(|n| transit_plan::overlaps(*n, t.net()))
        };
        let transit = record::remembered(&self.shared.state_dir, self.net.id)?
            .filter(free)
            .or_else(|| transit_plan::choose(pool, self.net.id, &taken))
            .ok_or_else(|| NetError::TransitExhausted {
                pool: pool.to_string(),
            })?;
        record.transit = Some(transit.net());
        record.store()?;
        record::remember(&self.shared.state_dir, self.net.id, transit)?;
        Ok(Some(transit))
    }

    /// What the host uses of the pool already, but for wide routes that merely cover it; and the network's own addresses.
    async fn taken(&self) -> Result<Vec<Ipv4Net>, NetError> {
        let host = Links::open(&self.shared.host).await?;
        let mut taken: Vec<Ipv4Net> = host
            .addresses()
            .await?
            .into_iter()
            .map(|(_, net, _)| net.addr().into())
            .collect();
        let narrow = |net: &Ipv4Net| net.prefix_len() > self.shared.transit_pool.prefix_len();
        taken.extend(
            host.routes()
                .await?
                .into_iter()
                .map(|(net, _)| net)
                .filter(narrow),
        );
        taken.push(self.net.spec.cidr);
        Ok(taken)
    }

    /// The link never stands without the host's rules, which find it by its name: they came before it, and go after it.
    pub(super) async fn way_out(
        &mut self,
        links: &Links,
        transit: Option<Transit>,
        at_host: &mut AtHost,
    ) -> Result<(), NetError> {
        self.uplink(links, transit).await?;
        self.shared.step("uplink");
        if transit.is_none() {
            let changed = self.rules_at_host(None, at_host).await?;
            self.note_at_host(changed);
        }
        Ok(())
    }

    /// The pair of links between host and namespace, their addresses, the way out.
    async fn uplink(&mut self, links: &Links, transit: Option<Transit>) -> Result<(), NetError> {
        let (outer, inner) = (names::transit(self.net.id), names::UPLINK);
        let host = Links::open(&self.shared.host).await?;
        let Some(transit) = transit else {
            if host.get(&outer).await?.is_some() {
                let gone = floating::remove(&self.shared.host, self.net.id).await?;
                self.changed.extend(gone);
            }
            for gone in [host.delete(&outer).await?, links.delete(inner).await?] {
                self.changed.extend(gone.then(|| "no more transit".to_owned()));
            }
            return Ok(());
        };
        let paired = match (host.get(&outer).await?, links.get(inner).await?) {
            (Some(a), Some(b)) => a.peer == Some(b.index) && b.peer == Some(a.index),
            _ => false,
        };
        if !paired {
            host.refuse_foreign(&outer, &self.alias).await?;
            host.delete(&outer).await?;
            links.delete(inner).await?;
            host.add_veth(&outer, inner, &self.ns).await?;
            self.changed.push(format!("transit {outer}"));
        }
        let (outer, inner) = (
            self.expect(&host, &outer).await?,
            self.expect(links, inner).await?,
        );
        self.tag(&host, &outer).await?;
        self.tag(links, &inner).await?;
        let translates = self.net.spec.mode == NetworkMode::Nat;
        let six = routed_plan::carries_ipv6(self.net);
        let mut changed = sysctl::apply(&self.ns, sysctl::uplink(&inner.name, six)).await?;
        let settings = sysctl::host(&outer.name, translates, six);
        changed.extend(sysctl::apply(&self.shared.host, settings).await?);
        if changed.iter().any(|c| c.contains("ip_forward")) {
            tracing::info!(
                "IP forwarding was switched on in the host's namespace: networks with a way out need it"
            );
        }
        self.changed.extend(changed);
        for (links, link, address) in [(&host, &outer, transit.host()), (links, &inner, transit.inner())] {
            let address = Ipv4Net::new(address, transit.net().prefix_len())
                .map_err(|e| NetError::kernel("the transit's address", std::io::Error::other(e)))?;
            self.address(links, link, address, None).await?;
        }
        if links
            .default_route(transit.host(), source_outside(self.net))
            .await?
        {
            self.changed.push("default route".into());
        }
        if six {
            self.uplink6((&host, &outer), (links, &inner)).await?;
        }
        Ok(())
    }

    /// The same for IPv6: each end has one address, of its link.
    async fn uplink6(&mut self, outer: (&Links, &Link), inner: (&Links, &Link)) -> Result<(), NetError> {
        let ends = [
            (outer, routed_plan::HOST_LINK_LOCAL),
            (inner, routed_plan::INNER_LINK_LOCAL),
        ];
        for ((links, link), address) in ends {
            let address = Ipv6Net::new(address, LINK_LOCAL_PREFIX_BITS)
                .map_err(|e| NetError::kernel("the transit's IPv6 address", std::io::Error::other(e)))?;
            if links.only_addresses6(link, &[address]).await? {
                self.changed.push(format!("IPv6 address of {}", link.name));
            }
            if links.connected_route6(link, address).await? {
                self.changed.push(format!("IPv6 route of {}", link.name));
            }
        }
        let (links, link) = inner;
        if let Some(six) = &self.net.spec.ipv6
            && links
                .default_route6(link, routed_plan::HOST_LINK_LOCAL, six.gateway)
                .await?
        {
            self.changed.push("default route of IPv6".into());
        }
        Ok(())
    }

    /// The rules on the host; those without a way out have none.
    pub(super) async fn rules_at_host(
        &self,
        transit: Option<Transit>,
        at_host: &mut AtHost,
    ) -> Result<Vec<String>, NetError> {
        let (shared, id) = (self.shared, self.net.id);
        let underlay = self.underlay.map(Underlay::name);
        let want = transit.map(|t| host_plan::render(&shared.owner, self.net, t, underlay));
        let mut changed = hooks::host_rules(Family::V4, shared, id, want.as_ref(), at_host).await?;
        let want6 = host_plan6(&shared.owner, self.net).filter(|_| transit.is_some());
        if want6.is_some() || self.had_ipv6 {
            let more = hooks::host_rules(Family::V6, shared, id, want6.as_ref(), at_host).await?;
            changed.extend(more.into_iter().map(|c| format!("{c} (IPv6)")));
        }
        shared.step("host rules");
        Ok(changed)
    }

    pub(super) fn note_at_host(&mut self, changed: Vec<String>) {
        self.rules_changed |= !changed.is_empty();
        self.healed |= !changed.is_empty();
        self.changed.extend(changed);
    }

    /// Behind the rules that let their packets pass.
    pub(super) async fn floating(&mut self, transit: Option<Transit>) -> Result<(), NetError> {
        let Some(transit) = transit else { return Ok(()) };
        let none = |net: &DesiredNetwork| floating_plan::all(net).is_empty();
        // What a crash left was found when this process looked first.
        if none(self.net) && self.before.is_some_and(|before| none(before)) {
            return Ok(());
        }
        let place = floating::Place {
            host: &self.shared.host,
            network: self.net.id,
            transit,
        };
        let wanted = floating_plan::all(self.net).into_keys().collect();
        let changed = place.apply(&wanted).await?;
        self.changed.extend(changed);
        Ok(())
    }

    /// The routes on the host that lead to it, where its mode is routed; behind the rules that say who may come by them.
    pub(super) async fn routes(
        &mut self,
        record: &mut Record,
        transit: Option<Transit>,
    ) -> Result<(), NetError> {
        let Some(claimed) = &record.routed else {
            return Ok(());
        };
        let place = routed::Place {
            host: &self.shared.host,
            link: names::transit(self.net.id),
            cidrs: claimed.cidrs().collect(),
        };
        let want = routed_plan::ways(self.net, transit.map(Transit::inner));
        let changed = place.apply(&want).await?;
        self.changed.extend(changed);
        if self.net.spec.mode != NetworkMode::Routed {
            record.routed = None;
            record.store()?;
        }
        Ok(())
    }

    /// The leg to the LAN, behind guard and rules.
    pub(super) async fn leg(&mut self, links: &Links, bridge: &Link) -> Result<(), NetError> {
        // What a crash left was found when this process looked first.
        let none = |net: &DesiredNetwork| net.spec.mode != NetworkMode::Bridged;
        if none(self.net) && self.before.is_some_and(|before| none(before)) {
            return Ok(());
        }
        let place = leg::Place {
            ns: &self.ns,
            links,
            host: &self.shared.host,
            alias: &self.alias,
            bridge: bridge.index,
            outer: names::leg(self.net.id),
        };
        let changed = place.apply(self.uplink).await?;
        self.changed.extend(changed);
        Ok(())
    }
}
