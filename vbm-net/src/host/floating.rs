//! Floating IPs on the host: routes, ARP entries, announcements. [`crate::plan::floating`] says which.

use super::{
    exec,
    link::{Links, failed, is_absent},
    netns::NetNs,
};
use crate::{
    NetError, names,
    plan::{
        Transit,
        floating::{self, Clash, PROTOCOL, Seen, Step},
    },
    sim::floating_taken,
};
use futures::TryStreamExt;
use rtnetlink::{
    Error as NlError, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol},
    },
};
use socket2::{Domain, Socket, Type};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::AsRawFd,
};
use vbm_core::{Mac, NetworkId};

/// The network whose floating IPs are made so, on its host.
pub(crate) struct Place<'a> {
    pub(crate) host: &'a NetNs,
    pub(crate) network: NetworkId,
    pub(crate) transit: Transit,
}

impl Place<'_> {
    /// Makes these, and no others, lead to the network.
    pub(crate) async fn apply(&self, wanted: &BTreeSet<Ipv4Addr>) -> Result<Vec<String>, NetError> {
        let links = Links::open(self.host).await?;
        let steps = self.steps(&links, wanted).await?;
        for step in &steps {
            self.take(&links, *step).await?;
        }
        if !steps.is_empty()
            && let Some(left) = self.steps(&links, wanted).await?.first()
        {
            return Err(NetError::NotVerified {
                what: "a floating IP".into(),
                detail: format!("missing: {left}"),
            });
        }
        Ok(steps.iter().map(ToString::to_string).collect())
    }

    /// What [`Self::apply`] would do.
    pub(crate) async fn foresee(&self, wanted: &BTreeSet<Ipv4Addr>) -> Result<Vec<String>, NetError> {
        let links = Links::open(self.host).await?;
        let steps = self.steps(&links, wanted).await?;
        Ok(steps.iter().map(ToString::to_string).collect())
    }

    async fn steps(&self, links: &Links, wanted: &BTreeSet<Ipv4Addr>) -> Result<Vec<Step>, NetError> {
        let routes = links.marked_routes().await?;
        // Nothing of ours stands on this host, and nothing shall: nobody needs to look further.
        if wanted.is_empty() && routes.is_empty() && links.marked_answers().await?.is_empty() {
            return Ok(Vec::new());
        }
        let seen = self.seen(links, routes).await?;
        floating::plan(wanted, &seen).map_err(refused)
    }

    async fn seen(&self, links: &Links, routes: Vec<(u32, Ipv4Addr)>) -> Result<Seen, NetError> {
        let all = links.list().await?;
        let ours = names::transit(self.network);
        let name = |index: u32| all.iter().find(|l| l.index == index);
        let mut seen = Seen {
            answers: links.marked_answers().await?,
            ..Seen::default()
        };
        for (index, address) in routes {
            match name(index) {
                Some(link) if link.name == ours => drop(seen.routes.insert(address)),
                Some(link) if link.name.starts_with(names::TRANSIT_PREFIX) => {
                    seen.elsewhere.insert(address);
                }
                _ => {}
            }
        }
        for route in links.all_routes().await? {
            let by = route.by.and_then(name);
            if let ipnet::IpNet::V4(to) = route.to
                && route.protocol == PROTOCOL
                && to.prefix_len() < 32
                && by.is_some_and(|link| link.name.starts_with(names::TRANSIT_PREFIX))
            {
                seen.routed.push(to);
            }
        }
        for (index, net, _) in links.addresses().await? {
            let outward = |l: &super::link::Link| !l.loopback && !l.name.starts_with(names::TRANSIT_PREFIX);
            if name(index).is_some_and(outward) {
                seen.links.push((index, net));
            }
        }
        Ok(seen)
    }

    async fn take(&self, links: &Links, step: Step) -> Result<(), NetError> {
        let neighbours = || links.handle().neighbours();
        let done = match step {
            Step::Route(address) => {
                let Some(link) = links.get(&names::transit(self.network)).await? else {
                    return Err(NetError::NotVerified {
                        what: "the transit of a network with floating IPs".into(),
                        detail: "its link is gone".into(),
                    });
                };
                let route = self.route(address, link.index);
                links.handle().route().add(route).execute().await
            }
            Step::Answer(link, address) => {
                let mut add = neighbours().add(link, IpAddr::V4(address));
                add.message_mut().header.flags = NeighbourFlags::Proxy;
                add.message_mut()
                    .attributes
                    .push(NeighbourAttribute::Protocol(RouteProtocol::Other(PROTOCOL)));
                let done = add.replace().execute().await;
                if done.is_ok() {
                    self.announce(links, link, address).await;
                }
                done
            }
            Step::Silence(link, address) => {
                let gone = proxy_entry(link, address);
                absent_is_fine(neighbours().del(gone).execute().await)
            }
            Step::Forget(address) => {
                forget(self.host, address).await?;
                Ok(())
            }
            Step::Unroute(address) => {
                let Some(link) = links.get(&names::transit(self.network)).await? else {
                    return Ok(());
                };
                let route = self.route(address, link.index);
                absent_is_fine(links.handle().route().del(route).execute().await)
            }
        };
        done.map_err(failed(format!("{step}")))
    }

    fn route(&self, address: Ipv4Addr, link: u32) -> RouteMessage {
        RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(address, 32)
            .gateway(self.transit.inner())
            .output_interface(link)
            .protocol(RouteProtocol::Other(PROTOCOL))
            .build()
    }

    /// Neighbours that knew another machine by this address learn the new one now. It helps, and nothing rests on it.
    async fn announce(&self, links: &Links, index: u32, address: Ipv4Addr) {
        let mac = match links.list().await {
            Ok(all) => all.into_iter().find(|l| l.index == index).and_then(|l| l.mac),
            Err(_) => None,
        };
        let Some(mac) = mac else { return };
        let sent = self.host.run(move || announce(index, mac, address)).await;
        if !matches!(sent, Ok(Ok(()))) {
            tracing::warn!(%address, ?sent, "a floating IP could not be announced");
        }
    }
}

fn refused(clash: Clash) -> NetError {
    match clash {
        Clash::Network(address) => floating_taken(address),
        Clash::Host(address) => NetError::Conflict {
            what: format!("the floating IP {address} cannot be attached here"),
            why: "it is an address of the host itself".into(),
            fix: "choose another, or make a forward".into(),
        },
    }
}

/// What a teardown removes before the transit, with which the routes go.
pub(crate) async fn remove(host: &NetNs, network: NetworkId) -> Result<Vec<String>, NetError> {
    let links = Links::open(host).await?;
    let answers = links.marked_answers().await?;
    let routes = links.marked_routes().await?;
    if answers.is_empty() && routes.is_empty() {
        return Ok(Vec::new());
    }
    let by_index: BTreeMap<u32, String> = links
        .list()
        .await?
        .into_iter()
        .map(|l| (l.index, l.name))
        .collect();
    let ours = names::transit(network);
    let is = |index: &u32, f: fn(&str, &str) -> bool| by_index.get(index).is_some_and(|n| f(n, &ours));
    let of_others = |index: &u32| is(index, |n, ours| n != ours && n.starts_with(names::TRANSIT_PREFIX));
    let others: BTreeSet<Ipv4Addr> = routes
        .iter()
        .filter(|(index, _)| of_others(index))
        .map(|(_, a)| *a)
        .collect();
    let mut removed = Vec::new();
    // Those of nobody go too: they are what is left of a network whose link was taken away.
    for (link, address) in answers.into_iter().filter(|(_, a)| !others.contains(a)) {
        let gone = links.handle().neighbours().del(proxy_entry(link, address));
        absent_is_fine(gone.execute().await).map_err(failed(format!("ARP for {address}")))?;
        removed.push(Step::Silence(link, address).to_string());
    }
    for (_, address) in routes.iter().filter(|(index, _)| is(index, |n, ours| n == ours)) {
        forget(host, *address).await?;
    }
    Ok(removed)
}

/// Answers 1 when there is none, which is fine.
async fn forget(host: &NetNs, address: Ipv4Addr) -> Result<(), NetError> {
    let address = address.to_string();
    for end in ["--orig-dst", "--orig-src"] {
        let args = ["-D", "-f", "ipv4", end, &address];
        exec::run(host, exec::Program::Conntrack, &args, "").await?;
    }
    Ok(())
}

fn proxy_entry(link: u32, address: Ipv4Addr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = link;
    message.header.flags = NeighbourFlags::Proxy;
    message
        .attributes
        .push(NeighbourAttribute::Destination(NeighbourAddress::Inet(address)));
    message
}

fn absent_is_fine(result: Result<(), NlError>) -> Result<(), NlError> {
    let absent = |error: &NlError| match error {
        NlError::NetlinkError(message) => message.to_io().raw_os_error() == Some(nix::libc::ESRCH),
        _ => false,
    };
    match result {
        Err(error) if is_absent(&error) || absent(&error) => Ok(()),
        other => other,
    }
}

impl Links {
    /// Routes of single addresses that bear our mark, with the index of their link.
    async fn marked_routes(&self) -> Result<Vec<(u32, Ipv4Addr)>, NetError> {
        let ask = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let all: Vec<RouteMessage> = self
            .handle()
            .route()
            .get(ask)
            .execute()
            .try_collect()
            .await
            .map_err(failed("listing routes"))?;
        let ours = |m: &&RouteMessage| {
            m.header.protocol == RouteProtocol::Other(PROTOCOL) && m.header.destination_prefix_length == 32
        };
        let read = |m: &RouteMessage| {
            let (mut to, mut by) = (None, None);
            for attribute in &m.attributes {
                match attribute {
                    RouteAttribute::Destination(RouteAddress::Inet(a)) => to = Some(*a),
                    RouteAttribute::Oif(index) => by = Some(*index),
                    _ => {}
                }
            }
            by.zip(to)
        };
        Ok(all.iter().filter(ours).filter_map(read).collect())
    }

    /// ARP entries that bear our mark.
    async fn marked_answers(&self) -> Result<BTreeSet<(u32, Ipv4Addr)>, NetError> {
        let all: Vec<NeighbourMessage> = self
            .handle()
            .neighbours()
            .get()
            .set_address_family(AddressFamily::Inet)
            .proxies()
            .execute()
            .try_collect()
            .await
            .map_err(failed("listing ARP entries"))?;
        let read = |m: &NeighbourMessage| {
            let ours = m
                .attributes
                .contains(&NeighbourAttribute::Protocol(RouteProtocol::Other(PROTOCOL)));
            let address = m.attributes.iter().find_map(|a| match a {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => Some(*a),
                _ => None,
            })?;
            ours.then_some((m.header.ifindex, address))
        };
        Ok(all.iter().filter_map(read).collect())
    }
}

/// In the namespace of the calling thread.
#[expect(unsafe_code, reason = "no safe crate makes a sockaddr_ll")]
fn announce(interface: u32, mac: Mac, address: Ipv4Addr) -> io::Result<()> {
    use nix::libc;
    let socket = Socket::new(Domain::PACKET, Type::RAW.cloexec(), None)?;
    let frame = floating::announcement(mac, address);
    let size = std::mem::size_of::<libc::sockaddr_ll>();
    // SAFETY: sockaddr_ll is plain integers, for which all zeroes is a value.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
    to.sll_ifindex = i32::try_from(interface).map_err(io::Error::other)?;
    let length = libc::socklen_t::try_from(size).map_err(io::Error::other)?;
    // SAFETY: both pointers are to live memory of just these lengths; the descriptor is open while `socket` lives.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const to).cast(),
            length,
        )
    };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
