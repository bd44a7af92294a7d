//! What of VBM is on this host, of any instance, also when no daemon runs: for `vbm doctor` and `vbm doctor --fix`.
//!
//! Everything that a [`crate::HostNetwork`] makes on a host bears its owner tag: the record beside each namespace is written
//! first and removed last, links carry the tag as their alias, rules as their comment. Here all three are read; what bears
//! no tag is never touched.

use crate::{
    NetError,
    host::{
        hooks,
        link::Links,
        netns::{self, NetNs},
        record::{OwnerLock, Record},
        teardown::{self, Torn},
    },
    names,
    plan::{filter::Family, host as host_plan},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};
use vbm_core::NetworkId;

const CURRENT: &str = "/proc/self/ns/net";

/// One thing on the host that bears an owner tag of ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct Found {
    /// The instance that made it.
    pub owner: String,
    /// Whether that instance's backend runs now.
    pub alive: bool,
    /// The network it belongs to, where that is known.
    pub network: Option<NetworkId>,
    /// What it is and its name, for example `namespace vbm-0d1fbeef`.
    pub what: String,
}

/// Everything on this host that bears an owner tag of ours, whoever made it.
///
/// # Errors
/// What could not be read.
pub async fn find_all() -> Result<Vec<Found>, NetError> {
    let (records, errors) = Record::all()?;
    NetError::join(errors)?;
    let mut alive = BTreeMap::new();
    let mut found = BTreeSet::new();
    let mut note = |owner: &str, network, what: String| {
        let alive = *alive
            .entry(owner.to_owned())
            .or_insert_with(|| OwnerLock::is_held(owner));
        found.insert(Found {
            owner: owner.to_owned(),
            alive,
            network,
            what,
        });
    };
    for record in &records {
        let name = record.namespace();
        note(&record.owner, Some(record.network), format!("record {name}"));
        if NetNs::named(&name).exists() {
            note(&record.owner, Some(record.network), format!("namespace {name}"));
        }
    }
    for path in hosts(&records) {
        for (owner, tail, what) in tagged_on(&NetNs::at(&path)).await? {
            let id = records
                .iter()
                .map(|r| r.network)
                .find(|id| tail == Some(id.short()));
            note(&owner, id, what);
        }
    }
    for name in netns::list(names::NAMESPACE_PREFIX)? {
        // A namespace whose record is gone still says in its bridge's alias whose it is.
        if records.iter().any(|r| r.namespace() == name) {
            continue;
        }
        if let Some((owner, network)) = tag_inside(&name).await {
            note(&owner, Some(network), format!("namespace {name}"));
        }
    }
    Ok(found.into_iter().collect())
}

/// Owner, tail of the network's id, and name of each tagged link and rule of a host.
async fn tagged_on(host: &NetNs) -> Result<Vec<(String, Option<String>, String)>, NetError> {
    let mut found = Vec::new();
    let look = async {
        let links = Links::open(host).await?.list().await?;
        let mut rules = host_plan::tagged(&Family::V4.read(host).await?);
        for tag in host_plan::tagged(&Family::V6.read(host).await?) {
            if !rules.contains(&tag) {
                rules.push(tag);
            }
        }
        Ok((links, rules))
    };
    let Some((links, rules)) = unless_gone(host, look.await)? else {
        return Ok(found);
    };
    for link in links {
        if let Some((owner, network)) = link.alias.as_deref().and_then(names::parse_alias) {
            found.push((owner, Some(network.short()), format!("link {}", link.name)));
        }
    }
    for (owner, network) in rules {
        let what = match &network {
            Some(tail) => format!("host rules of {tail}"),
            None => format!("host chains of {owner}"),
        };
        found.push((owner, network, what));
    }
    Ok(found)
}

/// A host's namespace may go while it is looked at, with all that was in it: that is no failure.
fn unless_gone<T>(host: &NetNs, result: Result<T, NetError>) -> Result<Option<T>, NetError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(_) if !host.exists() => Ok(None),
        Err(error) => Err(error),
    }
}

/// What belongs to instances that do not run.
///
/// # Errors
/// What could not be read.
pub async fn find_orphans() -> Result<Vec<Found>, NetError> {
    Ok(find_all().await?.into_iter().filter(|f| !f.alive).collect())
}

/// Removes everything of these owners, but for those whose backend runs now; returns a line for each thing removed.
///
/// # Errors
/// Goes past failures and returns them all. [`NetError::Conflict`] for an owner that runs.
pub async fn remove_owners(owners: &BTreeSet<String>) -> Result<Vec<String>, NetError> {
    let mut torn = Torn::default();
    for owner in owners {
        // Held while it is removed, so that no daemon starts in the middle.
        match OwnerLock::take(owner) {
            Ok(_lock) => torn.absorb(remove_owner(owner).await),
            Err(error) => torn.errors.push(error),
        }
    }
    NetError::join(torn.errors).map(|()| torn.removed)
}

async fn remove_owner(owner: &str) -> Torn {
    let mut torn = Torn::default();
    let Some((all, unreadable)) = torn.note(Record::all()) else {
        return torn;
    };
    torn.errors.extend(unreadable);
    for name in torn
        .note(netns::list(names::NAMESPACE_PREFIX))
        .unwrap_or_default()
    {
        if all.iter().any(|r| r.namespace() == name) {
            continue;
        }
        if let Some((tagged, network)) = tag_inside(&name).await
            && tagged == owner
        {
            let host_namespace = PathBuf::from(CURRENT);
            let record = Record {
                owner: tagged,
                network,
                host_namespace,
                transit: None,
                routed: None,
                namespace: Some(name),
            };
            torn.absorb(teardown::network(&record).await);
        }
    }
    let mine: Vec<&Record> = all.iter().filter(|r| r.owner == owner).collect();
    for record in &mine {
        torn.absorb(teardown::network(record).await);
    }
    for path in hosts(&all) {
        let host = NetNs::at(path);
        let on_host = remove_from_host(owner, &host).await;
        if host.exists() {
            torn.absorb(on_host);
        }
    }
    torn
}

/// Links and rules of an owner that no record speaks of.
async fn remove_from_host(owner: &str, host: &NetNs) -> Torn {
    let mut torn = Torn::default();
    if let Some(links) = torn.note(Links::open(host).await) {
        for link in torn.note(links.list().await).unwrap_or_default() {
            let tagged = link.alias.as_deref().and_then(names::parse_alias);
            if tagged.is_some_and(|(o, _)| o == owner)
                && torn.note(links.delete(&link.name).await) == Some(true)
            {
                torn.removed.push(format!("link {}", link.name));
            }
        }
    }
    for family in hooks::FAMILIES {
        let Some(observed) = torn.note(family.read(host).await) else {
            continue;
        };
        let diff = host_plan::remove_all(owner, &observed);
        if !diff.script.is_empty() && torn.note(family.write(host, &diff.script).await).is_some() {
            torn.removed.extend(diff.changes);
        }
    }
    torn
}

/// The namespaces that serve as hosts: this process's, and those that records name and that still exist.
fn hosts(records: &[Record]) -> BTreeSet<PathBuf> {
    let named = records
        .iter()
        .map(|r| r.host_namespace.clone())
        .filter(|p| NetNs::at(p).exists());
    named.chain([PathBuf::from(CURRENT)]).collect()
}

async fn tag_inside(name: &str) -> Option<(String, NetworkId)> {
    let links = Links::open(&NetNs::named(name)).await.ok()?;
    let bridge = links.get(names::BRIDGE).await.ok()??;
    names::parse_alias(bridge.alias.as_deref()?)
}
