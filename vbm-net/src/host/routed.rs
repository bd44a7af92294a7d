//! Routed networks on the host: whose addresses are whose, and the routes. [`crate::plan::routed`] says which.

use super::{
    HostShared,
    link::{Links, SeenRoute, failed},
    netns::NetNs,
    record::{self, Record, Routed},
    sysctl,
};
use crate::{
    DesiredNetwork, NetError, names,
    plan::{
        floating::PROTOCOL,
        routed::{self, Others, Step, Way},
    },
};
use ipnet::IpNet;
use rtnetlink::{
    Error as NlError, RouteMessageBuilder,
    packet_route::route::{RouteMessage, RouteProtocol, RouteType},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};
use vbm_core::NetworkMode;

/// Fails where a network cannot have its addresses on this host. The caller holds the machine-wide lock if it is to claim them.
pub(crate) async fn check(shared: &HostShared, net: &DesiredNetwork) -> Result<(), NetError> {
    if net.spec.mode != NetworkMode::Routed {
        return Ok(());
    }
    let ours = names::transit(net.id);
    let links = Links::open(&shared.host).await?;
    let name_of: BTreeMap<u32, String> = links
        .list()
        .await?
        .into_iter()
        .map(|l| (l.index, l.name))
        .collect();
    if let Some(uplink) = &net.spec.uplink
        && !name_of.values().any(|name| name == uplink.as_str())
    {
        return Err(crate::plan::leg::Refusal::Absent.told(uplink));
    }
    if routed::carries_ipv6(net) {
        may_forward6(&shared.host, &links, &name_of).await?;
    }
    let mut others = Others::default();
    let (records, _) = Record::all()?;
    for record in records {
        let same = record.network == net.id && record.owner == shared.owner;
        if let Some(routed) = record.routed.filter(|_| !same)
            && record.host_namespace == shared.host.path()
        {
            let name = format!(
                "network '{}' ({}) of instance '{}'",
                routed.name, record.network, record.owner
            );
            let all = routed.cidrs().map(|cidr| (cidr, name.clone()));
            others.networks.extend(all);
        }
    }
    let named = |index: u32| name_of.get(&index).filter(|name| **name != ours).cloned();
    let wanted = Routed::of(net);
    let cidrs: Vec<IpNet> = wanted.iter().flat_map(Routed::cidrs).collect();
    for (index, address) in links.all_addresses().await? {
        others
            .interfaces
            .extend(named(index).map(|name| (address.trunc(), name)));
    }
    let foreign = |route: &SeenRoute| {
        let local = matches!(
            route.kind,
            RouteType::Local | RouteType::Broadcast | RouteType::Multicast
        );
        !local && !is_ours(route, &cidrs, &name_of, &ours)
    };
    let mut routes = links.all_routes().await?;
    routes.extend(links.all_routes6().await?);
    for route in routes.into_iter().filter(foreign) {
        let name = match route.by {
            Some(index) => named(index),
            None => Some("nowhere".into()),
        };
        others.routes.extend(name.map(|name| (route.to, name)));
    }
    for cidr in cidrs {
        if let Some(clash) = routed::clash(cidr, &others) {
            return Err(clash.told(cidr));
        }
    }
    Ok(())
}

/// A host that begins to forward IPv6 forgets the routers that it heard of, unless told otherwise: its own connection would end.
async fn may_forward6(host: &NetNs, links: &Links, names: &BTreeMap<u32, String>) -> Result<(), NetError> {
    let from_routers = |r: &SeenRoute| r.protocol == u8::from(RouteProtocol::Ra);
    let told = links.all_routes6().await?.into_iter().filter(from_routers);
    let told: BTreeSet<String> = told.filter_map(|r| names.get(&r.by?).cloned()).collect();
    match sysctl::forgets_routers(host, told).await? {
        None => Ok(()),
        Some(name) => Err(NetError::Conflict {
            what: "IPv6 cannot be routed on this host".into(),
            why: format!(
                "it knows its own router by what it heard on {name}, and would forget it when it forwards IPv6 itself"
            ),
            fix: format!(
                "let it go on listening with `sysctl -w net.ipv6.conf.{name}.accept_ra=2`, or give it a fixed route"
            ),
        }),
    }
}

/// Checks, and writes into the record that these addresses are this network's from now on.
pub(crate) async fn claim(
    shared: &HostShared,
    net: &DesiredNetwork,
    record: &mut Record,
) -> Result<(), NetError> {
    let _lock = record::transit_lock().await?;
    check(shared, net).await?;
    record.routed = Routed::of(net);
    record.store()
}

/// One with our mark, within the addresses, to our own link or to no link of a network: to another host.
fn is_ours(route: &SeenRoute, cidrs: &[IpNet], names: &BTreeMap<u32, String>, link: &str) -> bool {
    let by = route.by.and_then(|index| names.get(&index));
    let elsewhere = by.is_some_and(|n| n != link && n.starts_with(names::TRANSIT_PREFIX));
    route.protocol == PROTOCOL && cidrs.iter().any(|c| c.contains(&route.to)) && !elsewhere
}

/// The network whose routes are made so, on its host.
pub(crate) struct Place<'a> {
    pub(crate) host: &'a NetNs,
    /// The name of its transit's host end.
    pub(crate) link: String,
    /// All routes within these addresses that bear our mark are its.
    pub(crate) cidrs: Vec<IpNet>,
}

impl Place<'_> {
    /// Makes these routes stand, and no others of the network's.
    pub(crate) async fn apply(&self, want: &BTreeSet<Way>) -> Result<Vec<String>, NetError> {
        let links = Links::open(self.host).await?;
        let steps = self.steps(&links, want).await?;
        for step in &steps {
            self.take(&links, *step).await?;
        }
        if !steps.is_empty()
            && let Some(left) = self.steps(&links, want).await?.first()
        {
            return Err(NetError::NotVerified {
                what: "a route of a network on the host".into(),
                detail: format!("missing: {left}"),
            });
        }
        Ok(steps.iter().map(ToString::to_string).collect())
    }

    /// What [`Self::apply`] would do.
    pub(crate) async fn foresee(&self, want: &BTreeSet<Way>) -> Result<Vec<String>, NetError> {
        let links = Links::open(self.host).await?;
        let steps = self.steps(&links, want).await?;
        Ok(steps.iter().map(ToString::to_string).collect())
    }

    async fn steps(&self, links: &Links, want: &BTreeSet<Way>) -> Result<Vec<Step>, NetError> {
        let names: BTreeMap<u32, String> = links
            .list()
            .await?
            .into_iter()
            .map(|l| (l.index, l.name))
            .collect();
        let mut all = links.all_routes().await?;
        if self.cidrs.iter().any(|c| matches!(c, IpNet::V6(_))) {
            all.extend(links.all_routes6().await?);
        }
        let ours = all
            .into_iter()
            .filter(|r| is_ours(r, &self.cidrs, &names, &self.link));
        let have = ours.map(|r| Way {
            to: r.to,
            // One that leads to a link and to nobody there is none of those wanted.
            via: r.via.unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
        });
        Ok(routed::plan(want, &have.collect()))
    }

    async fn take(&self, links: &Links, step: Step) -> Result<(), NetError> {
        let (Step::Lead(way) | Step::Unlead(way)) = step;
        let mut link = None;
        if self.cidrs.contains(&way.to) && matches!(step, Step::Lead(_)) {
            link = links.get(&self.link).await?.map(|l| l.index);
            if link.is_none() {
                return Err(NetError::NotVerified {
                    what: "the transit of a routed network".into(),
                    detail: "its link is gone".into(),
                });
            }
        }
        let route = message(way, link);
        match step {
            Step::Lead(_) => {
                let done = links.handle().route().add(route).replace().execute().await;
                done.map_err(|error| match errno(&error) {
                    Some(nix::libc::ENETUNREACH | nix::libc::EHOSTUNREACH) => NetError::NoUnderlay {
                        address: match way.via {
                            IpAddr::V4(host) => host,
                            IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
                        },
                        why: format!(
                            "{} is on the host {}, and no link of this host leads to it directly: hosts of a routed network pass on what is for each other",
                            way.to, way.via
                        ),
                    },
                    _ => failed(step.to_string())(error),
                })
            }
            Step::Unlead(_) => match links.handle().route().del(route).execute().await {
                Err(error) if errno(&error) != Some(nix::libc::ESRCH) => Err(failed(step.to_string())(error)),
                _ => Ok(()),
            },
        }
    }
}

fn message(way: Way, link: Option<u32>) -> RouteMessage {
    match (way.to, way.via) {
        (IpNet::V6(to), IpAddr::V6(via)) => {
            let mut route = RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(to.network(), to.prefix_len())
                .protocol(RouteProtocol::Other(PROTOCOL))
                .gateway(via);
            if let Some(index) = link {
                route = route.output_interface(index);
            }
            route.build()
        }
        // One of IPv6 that leads to nobody: only to be removed.
        (IpNet::V6(to), IpAddr::V4(_)) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(to.network(), to.prefix_len())
            .protocol(RouteProtocol::Other(PROTOCOL))
            .build(),
        (IpNet::V4(to), via) => {
            let mut route = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(to.network(), to.prefix_len())
                .protocol(RouteProtocol::Other(PROTOCOL));
            if let IpAddr::V4(via) = via
                && !via.is_unspecified()
            {
                route = route.gateway(via);
            }
            if let Some(index) = link {
                route = route.output_interface(index);
            }
            route.build()
        }
    }
}

fn errno(error: &NlError) -> Option<i32> {
    match error {
        NlError::NetlinkError(message) => message.to_io().raw_os_error(),
        _ => None,
    }
}

/// The routes that a record claims go; what it claims stays claimed until the record goes.
pub(crate) async fn remove(host: &NetNs, record: &Record) -> Result<Vec<String>, NetError> {
    let Some(routed) = &record.routed else {
        return Ok(Vec::new());
    };
    let place = Place {
        host,
        link: names::transit(record.network),
        cidrs: routed.cidrs().collect(),
    };
    place.apply(&BTreeSet::new()).await
}
