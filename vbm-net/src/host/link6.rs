//! IPv6 addresses and routes of one link, over netlink.

use super::link::{Link, Links, SeenRoute, failed, read_route};
use crate::NetError;
use futures::TryStreamExt;
use ipnet::Ipv6Net;
use rtnetlink::{
    RouteMessageBuilder,
    packet_route::{
        address::{AddressAttribute, AddressMessage},
        route::{RouteMessage, RouteProtocol, RouteScope},
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
        if self.has_way_out6(link, gateway, source).await? {
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
        let all = self.addresses6(link).await?;
        let mut changed = false;
        let mut there = Vec::new();
        for message in all {
            let Some(net) = address(&message) else {
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
        if self.has_route6(link, address).await? {
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

pub(super) fn address(message: &AddressMessage) -> Option<Ipv6Net> {
    let six = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Address(IpAddr::V6(a)) => Some(*a),
        _ => None,
    })?;
    Ipv6Net::new(six, message.header.prefix_len).ok()
}
