//! Removes a network by its record, from any half-made state. Goes past failures and returns them all; the record goes
//! last, and only when nothing failed, so that what is left can be found again.

use super::{exec, floating, hooks, link::Links, netns::NetNs, present, record::Record, routed};
use crate::{
    NetError, names,
    plan::{filter::Family, host as host_plan},
};

/// What a teardown came to.
#[derive(Default)]
pub(crate) struct Torn {
    /// A line for each thing removed.
    pub(crate) removed: Vec<String>,
    pub(crate) errors: Vec<NetError>,
}

impl Torn {
    pub(crate) fn note<T>(&mut self, result: Result<T, NetError>) -> Option<T> {
        result.map_err(|e| self.errors.push(e)).ok()
    }
    pub(crate) fn absorb(&mut self, other: Self) {
        self.removed.extend(other.removed);
        self.errors.extend(other.errors);
    }
}

/// Removes all of one network. The caller serialises calls for one owner's host rules.
pub(crate) async fn network(record: &Record) -> Torn {
    let mut torn = Torn::default();
    let name = record.namespace();
    let ns = NetNs::named(&name);
    let host = NetNs::at(&record.host_namespace);
    // Before the namespace: a process that holds a tap keeps the namespace alive, unseen, with all its links.
    if ns.exists() {
        let links = links(&ns, &mut torn).await;
        torn.absorb(links);
    }
    if host.exists() {
        let on_host = on_host(record, &host).await;
        // Where the host's namespace went meanwhile, so did all that was in it.
        if host.exists() {
            torn.absorb(on_host);
        }
    }
    if torn.note(ns.delete()) == Some(true) {
        torn.removed.push(format!("namespace {name}"));
    }
    if torn.errors.is_empty() && torn.note(record.remove()).is_some() {
        torn.removed.push(format!("record {name}"));
    }
    torn
}

async fn links(ns: &NetNs, outer: &mut Torn) -> Torn {
    let mut torn = Torn::default();
    let Some(links) = outer.note(Links::open(ns).await) else {
        return torn;
    };
    let Some(all) = outer.note(links.list().await) else {
        return torn;
    };
    for link in all {
        let ours = link.name.starts_with(names::TAP_PREFIX)
            || link.name.starts_with(names::LIMIT_PREFIX)
            || [names::UPLINK, names::LEG, names::VXLAN, names::BRIDGE].contains(&&*link.name);
        if ours && torn.note(links.delete(&link.name).await) == Some(true) {
            torn.removed
                .push(format!("link {} in {}", link.name, ns.path().display()));
        }
    }
    torn
}

async fn on_host(record: &Record, host: &NetNs) -> Torn {
    let mut torn = Torn::default();
    let link = names::transit(record.network);
    // Before the link: the routes over it say which ARP entries are its.
    let floating = torn.note(floating::remove(host, record.network).await);
    torn.removed.extend(floating.into_iter().flatten());
    let routes = torn.note(routed::remove(host, record).await);
    torn.removed.extend(routes.into_iter().flatten());
    if let Some(links) = torn.note(Links::open(host).await) {
        for link in [link, names::leg(record.network)] {
            if let Some(Some(found)) = torn.note(links.get(&link).await)
                // Of that name, but another instance's.
                && found.alias.as_deref().and_then(names::parse_alias).is_none_or(|(owner, _)| owner == record.owner)
                && torn.note(links.delete(&link).await) == Some(true)
            {
                torn.removed.push(format!("link {link}"));
            }
        }
    }
    let six = record.routed.as_ref().is_some_and(|r| r.cidr6.is_some());
    for family in hooks::FAMILIES {
        if family == Family::V6 && !six {
            continue;
        }
        if let Some(observed) = torn.note(family.read(host).await) {
            let diff = host_plan::diff(&record.owner, record.network, None, &observed);
            if !diff.script.is_empty() && torn.note(family.write(host, &diff.script).await).is_some() {
                torn.removed.extend(diff.changes);
            }
        }
    }
    let flows = torn.note(present::has_flows(host).await);
    if let Some(transit) = record.transit().filter(|_| flows == Some(true)) {
        let inner = transit.inner().to_string();
        // Answers 1 when there is none, which is fine.
        torn.note(
            exec::run(
                host,
                exec::Program::Conntrack,
                &["-D", "-f", "ipv4", "--reply-src", &inner],
                "",
            )
            .await,
        );
    }
    torn
}
