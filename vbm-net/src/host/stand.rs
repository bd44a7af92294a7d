//! What stands in a namespace, asked without changing it.

use super::{
    link::{Link, Links, SeenRoute, failed},
    link6,
};
use crate::NetError;
use futures::TryStreamExt;
use ipnet::{Ipv4Net, Ipv6Net};
use rtnetlink::packet_route::address::AddressMessage;
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

impl Links {
    /// Whether a link has just these addresses.
    pub(super) async fn has_only(&self, link: &Link, wanted: &[Ipv4Net]) -> Result<bool, NetError> {
        let all = self.addresses().await?.into_iter();
        let has: BTreeSet<Ipv4Net> = all
            .filter(|(i, ..)| *i == link.index)
            .map(|(_, net, _)| net)
            .collect();
        Ok(has == wanted.iter().copied().collect())
    }

    /// Whether a subnet is reached on the link.
    pub(super) async fn has_route(&self, subnet: Ipv4Net) -> Result<bool, NetError> {
        let stands = |(net, via): &(Ipv4Net, Option<Ipv4Addr>)| *net == subnet.trunc() && via.is_none();
        Ok(self.routes().await?.iter().any(stands))
    }

    /// Whether the default route goes there, with this address in what the namespace itself says of it.
    pub(super) async fn has_way_out(
        &self,
        gateway: Ipv4Addr,
        source: Option<Ipv4Addr>,
    ) -> Result<bool, NetError> {
        let stands = |route: &SeenRoute| {
            let asked = (Some(IpAddr::V4(gateway)), source.map(IpAddr::V4));
            route.to.prefix_len() == 0 && (route.via, route.source) == asked
        };
        Ok(self.all_routes().await?.iter().any(stands))
    }

    /// The same of IPv6, by a link.
    pub(super) async fn has_way_out6(
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
        Ok(self.all_routes6().await?.iter().any(stands))
    }

    /// Whether a link has just these IPv6 addresses.
    pub(super) async fn has_only6(&self, link: &Link, wanted: &[Ipv6Net]) -> Result<bool, NetError> {
        let has: BTreeSet<Ipv6Net> = self
            .addresses6(link)
            .await?
            .iter()
            .filter_map(link6::address)
            .collect();
        Ok(has == wanted.iter().copied().collect())
    }

    /// Whether a subnet of IPv6 is reached on a link.
    pub(super) async fn has_route6(&self, link: &Link, subnet: Ipv6Net) -> Result<bool, NetError> {
        let stands = |route: &SeenRoute| {
            route.to == subnet.trunc().into() && route.by == Some(link.index) && route.via.is_none()
        };
        Ok(self.all_routes6().await?.iter().any(stands))
    }

    pub(super) async fn addresses6(&self, link: &Link) -> Result<Vec<AddressMessage>, NetError> {
        let asked = self.handle().address().get().set_link_index_filter(link.index);
        let all: Vec<AddressMessage> = asked
            .execute()
            .try_collect()
            .await
            .map_err(failed("listing addresses"))?;
        // A kernel that knows no filter answers with all.
        Ok(all.into_iter().filter(|m| m.header.index == link.index).collect())
    }
}
