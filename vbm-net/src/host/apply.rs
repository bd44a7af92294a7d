//! Makes the kernel hold one network, step by step. Each step looks first and changes only what differs, so a run
//! over any half-made state ends in the same place.
//!
//! ```text
//!   record -> namespace -> bridge -> transit's choice -> guard -> sets -> rules -> settings -> transit -> floating IPs
//!                                                     \-> host rules ------/
//!          -> routes on the host -> leg to the LAN -> taps that must go -> limits -> vxlan -> entries for remote ports -> flows that must end -> read back
//!          -> DHCP, DNS, metadata
//! ```
//!
//! Guard and rules stand before the first link that could carry a packet is up: at every moment between two steps the
//! network is at most too closed. So do the host's rules before the transit that they speak of; where a network loses its way out, the
//! transit goes first. The steps that lead out of the namespace are in `outward.rs`.

mod outward;

use super::{
    HostShared, flows as standing,
    hooks::{self, AtHost},
    leg::Uplink,
    limits,
    link::{Link, Links},
    netns::NetNs,
    nic::Place,
    overlay::{Span, Underlay},
    record::{Record, Routed},
    routed,
    rules::{self, Standing},
    sysctl,
};
use crate::{
    DesiredNetwork, NetError, Validated,
    model::GATEWAY_LINK_LOCAL,
    names,
    plan::{Transit, filter::Family, flows, routed as routed_plan},
};
use ipnet::{Ipv4Net, Ipv6Net};
use std::{collections::BTreeMap, net::Ipv4Addr};
use vbm_core::{Ipv6Spec, NetworkMode, PortId, network::METADATA_ADDRESS};

/// How often flows are read, cut and read again before it counts as failed: one that ends by itself meanwhile is no failure.
const FLOWS_CUT_ROUNDS_MAX: usize = 3;

/// The bits of the prefix of link-local addresses (RFC 4291 section 2.5.6).
pub(super) const LINK_LOCAL_PREFIX_BITS: u8 = 64;

/// The gateway's own addresses of IPv6.
pub(super) fn addresses6(six: &Ipv6Spec) -> [Ipv6Net; 2] {
    [
        Ipv6Net::new_assert(six.gateway, six.cidr.prefix_len()),
        Ipv6Net::new_assert(GATEWAY_LINK_LOCAL, LINK_LOCAL_PREFIX_BITS),
    ]
}

/// The address by which the gateway is seen outside; `None` where its packets are translated. Its transit's leads nowhere there.
pub(super) fn source_outside(net: &DesiredNetwork) -> Option<Ipv4Addr> {
    (net.spec.mode != NetworkMode::Nat).then_some(net.spec.gateway)
}

/// What one run came to.
pub(crate) struct Applied {
    pub(crate) changed: Vec<String>,
    pub(crate) transit: Option<Transit>,
    /// The index of the bridge, where DHCP listens.
    pub(crate) bridge: u32,
    /// Names of taps that exist.
    pub(crate) taps: Vec<String>,
}

/// The links of the host that a network goes by.
#[derive(Clone, Debug, Default)]
pub(crate) struct Over {
    /// Where other hosts are, where the network has an overlay.
    pub(crate) underlay: Option<Underlay>,
    /// The LAN of a bridged network.
    pub(crate) uplink: Option<Uplink>,
}

impl Over {
    /// The host's own addresses on the LAN of a bridged network.
    pub(crate) fn host(&self) -> &[Ipv4Addr] {
        self.uplink.as_ref().map_or(&[], |uplink| &uplink.host)
    }
}

/// One run over one network.
pub(crate) struct Run<'a> {
    shared: &'a HostShared,
    net: &'a Validated<DesiredNetwork>,
    underlay: Option<&'a Underlay>,
    uplink: Option<&'a Uplink>,
    ns: NetNs,
    alias: String,
    changed: Vec<String>,
    /// Whether rules may differ from those under which flows began.
    rules_changed: bool,
    /// Whether rules stood otherwise than they were left.
    healed: bool,
    before: Option<&'a Validated<DesiredNetwork>>,
    /// Whether rules of IPv6 may stand on the host.
    had_ipv6: bool,
}

impl<'a> Run<'a> {
    /// `first`: this process has not looked at this network yet, so it cannot know which flows a crash left.
    /// `over`: what the network goes by on this host, found for it.
    pub(crate) fn new(
        shared: &'a HostShared,
        net: &'a Validated<DesiredNetwork>,
        over: &'a Over,
        first: bool,
    ) -> Self {
        Self {
            underlay: over.underlay.as_ref(),
            uplink: over.uplink.as_ref(),
            shared,
            net,
            ns: NetNs::named(&shared.namespace(net.id)),
            alias: names::alias(&shared.owner, net.id),
            changed: Vec::new(),
            rules_changed: first,
            healed: false,
            before: None,
            had_ipv6: false,
        }
    }

    /// What was wanted and held before. Where a change only adds to it, no flow can have lost its ground.
    pub(crate) fn after(mut self, before: Option<&'a Validated<DesiredNetwork>>) -> Self {
        self.before = before;
        self
    }

    /// `standing`: guard and rules as they were read back last; `at_host`: those outside of the namespace.
    pub(crate) async fn apply(
        mut self,
        standing: &mut Option<Standing>,
        at_host: &mut AtHost,
    ) -> Result<Applied, NetError> {
        let mut record = self.record(at_host).await?;
        self.had_ipv6 = record.routed.as_ref().is_some_and(|r| r.cidr6.is_some());
        self.shared.step("record");
        if self.ns.create().await? {
            // Generations begin anew there.
            *standing = Some(Standing::new());
            self.changed
                .push(format!("namespace {}", self.shared.namespace(self.net.id)));
        }
        self.shared.step("namespace");
        let changed = sysctl::apply(&self.ns, sysctl::inside()).await?;
        self.changed.extend(changed);
        let links = Links::open(&self.ns).await?;
        let bridge = self.bridge(&links).await?;
        self.shared.step("bridge");
        let transit = self.choose_transit(&mut record).await?;
        self.shared.step("choice");
        self.rules(transit, standing, at_host).await?;
        let mut settings = sysctl::groups();
        if self.net.spec.ipv6.is_none() {
            settings.extend(sysctl::bridge(names::BRIDGE, false));
        }
        let changed = sysctl::apply(&self.ns, settings).await?;
        self.changed.extend(changed);
        self.way_out(&links, transit, at_host).await?;
        self.floating(transit).await?;
        self.shared.step("floating");
        self.routes(&mut record, transit).await?;
        self.shared.step("routes");
        self.leg(&links, &bridge).await?;
        self.shared.step("leg");
        let taps = self.taps(&links, &bridge).await?;
        self.shared.step("limits");
        self.overlay(&links, &bridge).await?;
        let only_more = || {
            self.before
                .is_some_and(|before| flows::only_adds_ports(before, self.net))
        };
        if self.rules_changed && (self.healed || !only_more()) {
            self.cut_flows(transit).await?;
        }
        self.shared.step("flows");
        Ok(Applied {
            changed: self.changed,
            transit,
            bridge: bridge.index,
            taps,
        })
    }

    /// Claims the name for this network before anything bears it.
    async fn record(&mut self, at_host: &mut AtHost) -> Result<Record, NetError> {
        let id = self.net.id;
        let namespace = self.shared.namespace(id);
        let host_namespace = self.shared.host.path().to_owned();
        let mut found = Record::load(&namespace)?;
        if found.is_none() {
            // Names on the host hold no owner: there a network is one instance's.
            let same = |r: &Record| r.network == id && r.host_namespace == host_namespace;
            found = Record::all()?.0.into_iter().find(same);
        }
        match found {
            Some(mut found) if found.network == id && found.owner == self.shared.owner => {
                let wanted = Routed::of(self.net);
                if wanted.is_some() && found.routed != wanted {
                    // Rules of IPv6 are found by what the record says.
                    let had = found.routed.as_ref().is_some_and(|r| r.cidr6.is_some());
                    if had && !routed_plan::carries_ipv6(self.net) {
                        let gone = hooks::host_rules(Family::V6, self.shared, id, None, at_host).await?;
                        self.changed.extend(gone);
                    }
                    // What it had before is not led here by that claim any more.
                    let gone = routed::remove(&self.shared.host, &found).await?;
                    self.changed.extend(gone);
                    routed::claim(self.shared, self.net, &mut found).await?;
                }
                Ok(found)
            }
            Some(found) => Err(NetError::Conflict {
                what: format!("network {id} cannot be made on this host"),
                why: format!("its name is used by network {} of instance '{}'", found.network, found.owner),
                fix: "if that instance is gone, run `vbm doctor --fix`; else make the network again, with a new id".into(),
            }),
            None => {
                let owner = self.shared.owner.clone();
                let mut record = Record {
                    owner,
                    network: id,
                    host_namespace,
                    transit: None,
                    routed: None,
                    namespace: Some(namespace),
                };
                if self.net.spec.mode == NetworkMode::Routed {
                    routed::claim(self.shared, self.net, &mut record).await?;
                } else {
                    record.store()?;
                }
                self.changed.push("record".into());
                Ok(record)
            }
        }
    }

    async fn bridge(&mut self, links: &Links) -> Result<Link, NetError> {
        let mac = self.net.gateway_mac();
        if links.get(names::BRIDGE).await?.is_none() {
            links.add_bridge(names::BRIDGE, mac).await?;
            self.changed.push(format!("bridge {}", names::BRIDGE));
        }
        let bridge = self.expect(links, names::BRIDGE).await?;
        if bridge.mac != Some(mac) {
            links.set_mac(&bridge, mac).await?;
            self.changed.push(format!("MAC of {}", bridge.name));
        }
        self.tag(links, &bridge).await?;
        self.mtu(links, &bridge).await?;
        if self.net.spec.mode == NetworkMode::Bridged {
            // The gateway is the LAN's router.
            if links.only_addresses(&bridge, &[]).await? {
                self.changed.push(format!("address of {}", bridge.name));
            }
            if !bridge.up {
                links.set_up(&bridge).await?;
                self.changed.push(format!("{} up", bridge.name));
            }
            return Ok(bridge);
        }
        let address = Ipv4Net::new(self.net.spec.gateway, self.net.spec.cidr.prefix_len())
            .map_err(|e| NetError::kernel("the gateway's address", std::io::Error::other(e)))?;
        // Beside the gateway's, that of the metadata service: VMs find it by the way out, or on the link.
        let metadata = Ipv4Net::from(METADATA_ADDRESS);
        let also = self.net.spec.serves_metadata().then_some(metadata);
        self.address(links, &bridge, address, also).await?;
        self.bridge6(links, &bridge).await?;
        Ok(bridge)
    }

    /// The gateway's IPv6 addresses, where the network has IPv6.
    async fn bridge6(&mut self, links: &Links, bridge: &Link) -> Result<(), NetError> {
        let Some(six) = self.net.spec.ipv6.as_ref() else {
            return Ok(());
        };
        let changed = sysctl::apply(&self.ns, sysctl::bridge(&bridge.name, true)).await?;
        self.changed.extend(changed);
        self.shared.step("settings of IPv6");
        let wanted = addresses6(six);
        if links.only_addresses6(bridge, &wanted).await? {
            self.changed.push(format!("IPv6 addresses of {}", bridge.name));
        }
        for address in wanted {
            if links.connected_route6(bridge, address).await? {
                self.changed.push(format!("IPv6 route of {}", bridge.name));
            }
        }
        Ok(())
    }

    async fn expect(&self, links: &Links, name: &str) -> Result<Link, NetError> {
        links.get(name).await?.ok_or_else(|| NetError::NotVerified {
            what: format!("link {name}"),
            detail: "it vanished as soon as it was made".into(),
        })
    }

    async fn tag(&mut self, links: &Links, link: &Link) -> Result<(), NetError> {
        if link.alias.as_deref() != Some(&self.alias) {
            links.set_alias(link, &self.alias).await?;
            self.changed.push(format!("tag of {}", link.name));
        }
        Ok(())
    }

    async fn mtu(&mut self, links: &Links, link: &Link) -> Result<(), NetError> {
        let mtu = u32::from(self.net.spec.mtu);
        if link.mtu != mtu {
            links.set_mtu(link, mtu).await?;
            self.changed.push(format!("MTU of {}", link.name));
        }
        Ok(())
    }

    /// Addresses, up, and the route to the first one's subnet.
    async fn address(
        &mut self,
        links: &Links,
        link: &Link,
        address: Ipv4Net,
        also: Option<Ipv4Net>,
    ) -> Result<(), NetError> {
        let all: Vec<Ipv4Net> = std::iter::once(address).chain(also).collect();
        if links.only_addresses(link, &all).await? {
            self.changed.push(format!("address of {}", link.name));
        }
        if !link.up {
            links.set_up(link).await?;
            self.changed.push(format!("{} up", link.name));
        }
        if links.connected_route(link, address).await? {
            self.changed.push(format!("route of {}", link.name));
        }
        Ok(())
    }

    /// Guard, sets and rules. Beside them those on the host, where the network has a way out: neither needs the other, and what they let
    /// pass comes by links that are made behind both.
    async fn rules(
        &mut self,
        transit: Option<Transit>,
        standing: &mut Option<Standing>,
        at_host: &mut AtHost,
    ) -> Result<(), NetError> {
        let (inside, outside) = tokio::join!(self.rules_inside(transit, standing), async {
            match transit {
                Some(_) => self.rules_at_host(transit, at_host).await,
                None => Ok(Vec::new()),
            }
        });
        let (inside, outside) = (inside?, outside?);
        self.rules_changed |= !inside.changes.is_empty();
        self.healed |= inside.healed;
        self.changed.extend(inside.changes);
        self.note_at_host(outside);
        Ok(())
    }

    async fn rules_inside(
        &self,
        transit: Option<Transit>,
        standing: &mut Option<Standing>,
    ) -> Result<rules::Done, NetError> {
        let shared = self.shared;
        let host = self.uplink.map_or(&[][..], |uplink| &uplink.host);
        let want = rules::Wanted::new(self.net, transit, host, shared.dispatch);
        let done = rules::apply(&self.ns, want, standing, &shared.forms, &|step| shared.step(step)).await?;
        shared.step("rules");
        Ok(done)
    }

    /// NICs of ports that nobody wants any more go; those that stay get what changed, or what somebody took from them. Then their
    /// limits.
    async fn taps(&mut self, links: &Links, bridge: &Link) -> Result<Vec<String>, NetError> {
        let wanted: BTreeMap<String, PortId> =
            self.net.ports.iter().map(|p| (names::tap(p.id), p.id)).collect();
        let (mut standing, mut all) = (Vec::new(), links.list().await?);
        let before = self.changed.len();
        for link in all.iter().filter(|l| l.name.starts_with(names::TAP_PREFIX)) {
            match wanted.get(&link.name) {
                Some(port) if link.peer.is_some() => {
                    let place = self.place(links, bridge);
                    let changed = place.interface(*port).await?;
                    self.changed.extend(changed);
                    standing.push(link.name.clone());
                }
                Some(_) => {
                    let changed = self.place(links, bridge).tap_again(link).await?;
                    self.changed.extend(changed);
                    standing.push(link.name.clone());
                }
                None => {
                    if links.delete(&link.name).await? {
                        self.changed.push(format!("no more {}", link.name));
                    }
                }
            }
        }
        if self.changed.len() > before {
            // What was made anew has another index.
            all = links.list().await?;
        }
        self.shared.step("taps");
        let limited = limits::apply(links, &self.alias, &crate::limits::render(self.net), &all).await?;
        self.changed.extend(limited);
        Ok(standing)
    }

    /// After the taps: a port that went to another host must first be gone here.
    async fn overlay(&mut self, links: &Links, bridge: &Link) -> Result<(), NetError> {
        let span = Span {
            ns: &self.ns,
            links,
            host: &self.shared.host,
            alias: &self.alias,
            bridge: bridge.index,
            net: self.net,
        };
        let (mut changed, between) = span.link(self.net.overlay.as_ref().zip(self.underlay)).await?;
        self.shared.step("vxlan");
        changed.extend(span.entries(between).await?);
        self.shared.step("entries");
        self.changed.extend(changed);
        Ok(())
    }

    fn place<'p>(&'p self, links: &'p Links, bridge: &Link) -> Place<'p> {
        Place {
            ns: &self.ns,
            links,
            host: &self.shared.host,
            alias: &self.alias,
            bridge: bridge.index,
            mtu: self.net.spec.mtu.into(),
        }
    }

    /// Whether a flow may have come by a forward: one that was wanted before, or is now. What stood before this process looked is not known.
    fn may_forward(&self) -> bool {
        !self.net.forwards.is_empty() || self.before.is_none_or(|before| !before.forwards.is_empty())
    }

    /// Cuts what may not go on, and reads back that it is gone.
    async fn cut_flows(&mut self, transit: Option<Transit>) -> Result<(), NetError> {
        let mut cut = 0;
        for _ in 0..FLOWS_CUT_ROUNDS_MAX {
            let inside = flows::to_cut(self.net, transit, &standing::inside(&self.ns).await?);
            let mut outside = Vec::new();
            if let Some(transit) = transit.filter(|_| self.may_forward()) {
                let standing = standing::answered_by(&self.shared.host, transit).await?;
                outside = flows::stale_at_host(self.net, transit, &standing);
            }
            if inside.is_empty() && outside.is_empty() {
                self.changed.extend((cut > 0).then(|| format!("cut {cut} flows")));
                return Ok(());
            }
            standing::delete(&self.ns, &inside).await?;
            standing::delete(&self.shared.host, &outside).await?;
            cut += inside.len() + outside.len();
        }
        Err(NetError::NotVerified {
            what: "the end of flows that the rules no longer allow".into(),
            detail: "conntrack was told to delete them, and they stand".into(),
        })
    }
}
