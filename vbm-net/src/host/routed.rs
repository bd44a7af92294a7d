//! Routed networks on the host: whose addresses are whose, and the routes. [`crate::plan::routed`] says which.

use super::{
    HostShared,
    link::{Links, SeenRoute, failed},
    netns::NetNs,
    record::{self, Record, Routed},
};
use crate::{
    DesiredNetwork, NetError, names,
    plan::{
        floating::PROTOCOL,
        routed::{self, Others, Step, Way},
    },
};
use ipnet::Ipv4Net;
use rtnetlink::{
    Error as NlError, RouteMessageBuilder,
    packet_route::route::{RouteMessage, RouteProtocol, RouteType},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
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
            others.networks.push((routed.cidr, name));
        }
    }
    let named = |index: u32| name_of.get(&index).filter(|name| **name != ours).cloned();
    for (index, address, _) in links.addresses().await? {
        others
            .interfaces
            .extend(named(index).map(|name| (address.trunc(), name)));
    }
    let foreign = |route: &SeenRoute| {
        let local = matches!(
            route.kind,
            RouteType::Local | RouteType::Broadcast | RouteType::Multicast
        );
        !local && !is_ours(route, net.spec.cidr, &name_of, &ours)
    };
    for route in links.all_routes().await?.into_iter().filter(foreign) {
        let name = match route.by {
            Some(index) => named(index),
            None => Some("nowhere".into()),
        };
        others.routes.extend(name.map(|name| (route.to, name)));
    }
    match routed::clash(net.spec.cidr, &others) {
        Some(clash) => Err(clash.told(net.spec.cidr)),
        None => Ok(()),
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
    record.routed = Some(Routed {
        cidr: net.spec.cidr,
        name: net.name.to_string(),
    });
    record.store()
}

/// One with our mark, within the addresses, to our own link or to no link of a network: to another host.
fn is_ours(route: &SeenRoute, cidr: Ipv4Net, names: &BTreeMap<u32, String>, link: &str) -> bool {
    let by = route.by.and_then(|index| names.get(&index));
    let elsewhere = by.is_some_and(|n| n != link && n.starts_with(names::TRANSIT_PREFIX));
    route.protocol == PROTOCOL && cidr.contains(&route.to) && !elsewhere
}

/// The network whose routes are made so, on its host.
pub(crate) struct Place<'a> {
    pub(crate) host: &'a NetNs,
    /// The name of its transit's host end.
    pub(crate) link: String,
    /// All routes within these addresses that bear our mark are its.
    pub(crate) cidr: Ipv4Net,
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
        let all = links.all_routes().await?.into_iter();
        let ours = all.filter(|r| is_ours(r, self.cidr, &names, &self.link));
        let have = ours.map(|r| Way {
            to: r.to,
            via: r.via.unwrap_or(Ipv4Addr::UNSPECIFIED),
        });
        Ok(routed::plan(want, &have.collect()))
    }

    async fn take(&self, links: &Links, step: Step) -> Result<(), NetError> {
        let (Step::Lead(way) | Step::Unlead(way)) = step;
        let mut route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(way.to.network(), way.to.prefix_len())
            .protocol(RouteProtocol::Other(PROTOCOL));
        if !way.via.is_unspecified() {
            route = route.gateway(way.via);
        }
        if way.to == self.cidr && matches!(step, Step::Lead(_)) {
            let Some(link) = links.get(&self.link).await? else {
                return Err(NetError::NotVerified {
                    what: "the transit of a routed network".into(),
                    detail: "its link is gone".into(),
                });
            };
            route = route.output_interface(link.index);
        }
        let route: RouteMessage = route.build();
        match step {
            Step::Lead(_) => {
                let done = links.handle().route().add(route).replace().execute().await;
                done.map_err(|error| match errno(&error) {
                    Some(nix::libc::ENETUNREACH | nix::libc::EHOSTUNREACH) => NetError::NoUnderlay {
                        address: way.via,
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
        cidr: routed.cidr,
    };
    place.apply(&BTreeSet::new()).await
}
