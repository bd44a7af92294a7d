//! Reads what passed: links, buckets, rules. Changes nothing.

use super::{
    exec::{self, Program},
    limits::Dropped,
    link::{Link, Links},
    netns::NetNs,
};
use crate::{
    DesiredNetwork, DesiredPort, Dispatch, NetError, NetworkCounters, PortCounters, limits,
    limits::counters::{self, Counted},
    names,
    plan::{connections, verdict},
};
use std::collections::BTreeMap;

/// The counters of a network.
pub(super) async fn read(
    ns: &NetNs,
    net: &DesiredNetwork,
    dispatch: Dispatch,
) -> Result<NetworkCounters, NetError> {
    let links = Links::open(ns).await?;
    let all: BTreeMap<String, Link> = links
        .list()
        .await?
        .into_iter()
        .map(|l| (l.name.clone(), l))
        .collect();
    let named = all.values().map(|l| (l.name.as_str(), l.queue.as_deref()));
    let dropped = if limits::concerned(&limits::render(net), named) {
        links.dropped().await?
    } else {
        Dropped::new()
    };
    let v4 = counters::parse(&exec::counted(ns, Program::IptablesSave).await?);
    let v6 = if net.ports.iter().any(DesiredPort::has_ipv6) {
        counters::parse(&exec::counted(ns, Program::Ip6tablesSave).await?)
    } else {
        Counted::new()
    };
    let mut counters = NetworkCounters::none(net);
    for one in &mut counters.ports {
        by_links(one, &all, &dropped);
        one.connections_refused = connections::refused(&v4, one.id) + connections::refused(&v6, one.id);
    }
    counters.rules = match dispatch {
        Dispatch::Nft => {
            let counted = verdict::counted(&exec::nft_counted(ns).await?);
            counters::listed(verdict::by_rule(net, &counted))
        }
        Dispatch::Iptables => counters::by_rule(net, &v4, &v6),
    };
    Ok(counters)
}

/// What a tap sends, the VM receives.
fn by_links(one: &mut PortCounters, all: &BTreeMap<String, Link>, dropped: &Dropped) {
    let drops = |link: &Link| dropped.get(&link.index).copied().unwrap_or(0);
    if let Some(tap) = all.get(&names::tap(one.id)) {
        (one.received, one.sent) = (tap.passed.sent, tap.passed.received);
        one.received_dropped = drops(tap);
    }
    one.sent_dropped = all.get(&names::limit(one.id)).map_or(0, drops);
}
