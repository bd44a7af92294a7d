//! The interfaces of the host that a network may name.

use super::{leg, link::Links, netns::NetNs};
use crate::{NetError, plan};
use ipnet::IpNet;
use std::collections::BTreeMap;
use vbm_core::Uplink;

/// As they are now: two questions to the kernel, however many there are. Routes are not read, of which a host may have a million; an interface
/// that has some and no address is rare, and `ensure` refuses it.
pub(super) async fn list(host: &NetNs) -> Result<Vec<Uplink>, NetError> {
    let links = Links::open(host).await?;
    let all = links.list().await?;
    let mut addresses = BTreeMap::<u32, Vec<IpNet>>::new();
    for (index, net) in links.all_addresses().await? {
        addresses.entry(index).or_default().push(net);
    }
    let seen = all.iter().map(|link| {
        let addresses = addresses.remove(&link.index).unwrap_or_default();
        (link.name.clone(), leg::seen(link, &all, addresses, Vec::new()))
    });
    Ok(plan::leg::offered(seen))
}
