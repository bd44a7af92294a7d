//! IPv6 addresses and routes of one link, over netlink.

use super::link::{Link, Links, SeenRoute, failed, read_route};
use crate::NetError;
use futures::TryStreamExt;
use ipnet::Ipv6Net;
use rtnetlink::{
    RouteMessageBuilder,
    packet_route::{
        address::{AddressAttribute, AddressMessage},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope},
    },
};
use std::net::{IpAddr, Ipv6Addr};

impl Links {
    /// IPv6 routes of all tables.
    pub(crate) async fn all_routes6(&self) -> Result<Vec<SeenRoute>, NetError> {
        let ask = RouteMessageBuilder::<Ipv6Addr>::new().build();
        let all: Vec<RouteMessage> = self
            .handle()
            .route()
            .get(ask)
            .execute()
            .try_collect()
            .await
            .map_err(failed("listing IPv6 routes"))?;
        let read = |m: &RouteMessage| read_route(m, Ipv6Addr::UNSPECIFIED.into());
        Ok(all.iter().filter_map(read).collect())
    }

    /// Makes the default route of IPv6 go by a link, with this address in what the namespace itself says. Returns whether it did not.
    pub(crate) async fn default_route6(
        &self,
        link: &Link,
        gateway: Ipv6Addr,
        source: Ipv6Addr,
    ) -> Result<bool, NetError> {
        let stands = |route: &SeenRoute| {
            route.to.prefix_len() == 0
                && (route.via, route.by, route.source)
                    == (Some(gateway.into()), Some(link.index), Some(source.into()))
        };
        if self.all_routes6().await?.iter().any(stands) {
            return Ok(false);
        }
        let route = RouteMessageBuilder::<Ipv6Addr>::new()
            .gateway(gateway)
            .output_interface(link.index)
            .pref_source(source)
            .build();
        let add = self.handle().route().add(route).replace().execute().await;
        add.map_err(failed("setting the default route of IPv6"))?;
        Ok(true)
    }

    /// Makes the link have just these IPv6 addresses. Returns whether anything had to change.
    pub(crate) async fn only_addresses6(&self, link: &Link, wanted: &[Ipv6Net]) -> Result<bool, NetError> {
        let asked = self.handle().address().get();
        let all: Vec<AddressMessage> = asked
            .set_link_index_filter(link.index)
            .execute()
            .try_collect()
            .await
            .map_err(failed("listing addresses"))?;
        let mut changed = false;
        let mut there = Vec::new();
        for message in all {
            let Some(net) = address(&message).filter(|_| message.header.index == link.index) else {
                continue;
            };
            if wanted.contains(&net) {
                there.push(net);
                continue;
            }
            changed = true;
            let gone = self.handle().address().del(message).execute().await;
            gone.map_err(failed(format!("removing {net} from {}", link.name)))?;
        }
        for net in wanted.iter().filter(|net| !there.contains(net)) {
            changed = true;
            let address = self.handle().address();
            let add = address.add(link.index, IpAddr::V6(net.addr()), net.prefix_len());
            add.execute()
                .await
                .map_err(failed(format!("giving {net} to {}", link.name)))?;
        }
        Ok(changed)
    }

    /// Makes the route to the subnet of one of its addresses stand, which a flush of routes removes while the address stays. The link must be
    /// up. Returns whether it was missing.
    pub(crate) async fn connected_route6(&self, link: &Link, address: Ipv6Net) -> Result<bool, NetError> {
        let ask = RouteMessageBuilder::<Ipv6Addr>::new().build();
        let all: Vec<RouteMessage> = self
            .handle()
            .route()
            .get(ask)
            .execute()
            .try_collect()
            .await
            .map_err(failed("listing IPv6 routes"))?;
        if all.iter().any(|route| leads(route, link.index, address)) {
            return Ok(false);
        }
        let route = RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(address.network(), address.prefix_len())
            .output_interface(link.index)
            .protocol(RouteProtocol::Kernel)
            .scope(RouteScope::Universe)
            .build();
        let add = self.handle().route().add(route).replace().execute().await;
        add.map_err(failed(format!("setting the route to {}", address.trunc())))?;
        Ok(true)
    }
}

fn address(message: &AddressMessage) -> Option<Ipv6Net> {
    let six = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Address(IpAddr::V6(a)) => Some(*a),
        _ => None,
    })?;
    Ipv6Net::new(six, message.header.prefix_len).ok()
}

/// Whether a route leads to a subnet by this link alone.
fn leads(route: &RouteMessage, link: u32, subnet: Ipv6Net) -> bool {
    let to = RouteAttribute::Destination(RouteAddress::Inet6(subnet.network()));
    route.header.destination_prefix_length == subnet.prefix_len()
        && route.attributes.contains(&to)
        && route.attributes.contains(&RouteAttribute::Oif(link))
        && !route
            .attributes
            .iter()
            .any(|a| matches!(a, RouteAttribute::Gateway(_)))
}
