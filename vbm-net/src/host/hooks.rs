//! The rules of one network on the host itself, and the jumps that lead to them.

use super::{HostShared, exec, generation, netns::NetNs};
use crate::{
    NetError,
    names::HostChain,
    plan::{filter::Family, host as host_plan, tables::Tables},
};
use std::sync::{Arc, PoisonError};
use vbm_core::NetworkId;

/// Both.
pub(crate) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

impl Family {
    /// All tables of a namespace, as they stand.
    pub(crate) async fn read(self, ns: &NetNs) -> Result<Tables, NetError> {
        match self {
            Self::V4 => exec::iptables_read(ns).await,
            Self::V6 => exec::ip6tables_read(ns).await,
        }
    }

    /// Applies a script as one transaction a table.
    pub(crate) async fn write(self, ns: &NetNs, script: &str) -> Result<(), NetError> {
        let restore = match self {
            Self::V4 => exec::Program::IptablesRestore,
            Self::V6 => exec::Program::Ip6tablesRestore,
        };
        exec::rules_write(ns, restore, script).await
    }
}

/// The rules of one network as they were read back last, and the generation that the host's rules had then. Whoever writes any of them,
/// another network of ours too, moves it.
#[derive(Debug)]
pub(crate) struct HostStanding {
    generation: u32,
    held: Option<host_plan::HostRules>,
}

/// Those of both families.
pub(crate) type AtHost = [Option<HostStanding>; FAMILIES.len()];

/// Makes the host's rules of one network those wanted, and the hooks stand. One at a time for an owner: its chains are shared by its
/// networks. Where nobody wrote since they were read back last, and the same are wanted, there is nothing to read.
pub(crate) async fn host_rules(
    family: Family,
    shared: &HostShared,
    network: NetworkId,
    want: Option<&host_plan::HostRules>,
    at_host: &mut AtHost,
) -> Result<Vec<String>, NetError> {
    let _one_at_a_time = shared.host_rules.lock().await;
    let host = &shared.host;
    let standing = &mut at_host[family as usize];
    let before = generation::of(host).await?;
    let same = |known: &HostStanding| Some(known.generation) == before && known.held.as_ref() == want;
    // Taken: a failure on the way leaves nothing that is believed.
    if let Some(known) = standing.take().filter(same) {
        *standing = Some(known);
        return Ok(Vec::new());
    }
    let observed = family.read(host).await?;
    let changed = change(family, shared, network, want, &observed).await?;
    let mut since = before;
    if !changed.is_empty() {
        since = generation::of(host).await?;
        holds(&shared.owner, network, want, &family.read(host).await?)?;
    }
    // Only what nobody wrote while it was read.
    let now = generation::of(host).await?.filter(|now| Some(*now) == since);
    *standing = now.map(|generation| HostStanding {
        generation,
        held: want.cloned(),
    });
    Ok(changed)
}

/// Writes what differs from what was read.
async fn change(
    family: Family,
    shared: &HostShared,
    network: NetworkId,
    want: Option<&host_plan::HostRules>,
    observed: &Tables,
) -> Result<Vec<String>, NetError> {
    let (host, owner) = (&shared.host, &shared.owner);
    let diff = host_plan::diff(owner, network, want, observed);
    let mut changed = diff.changes;
    if !diff.script.is_empty() {
        family.write(host, &diff.script).await?;
    }
    if want.is_some() {
        shared.step("host chains");
        let missing = host_plan::missing_hooks(owner, observed);
        if !missing.is_empty() {
            changed.extend(missing.iter().map(|c| format!("host hook in {}", c.hook())));
            insert_hooks(family, host, owner, missing).await?;
        }
    }
    Ok(changed)
}

/// The host's rules of IPv4 and of IPv6, as they were read at a generation of its namespace.
pub(crate) type HostSeen = [Option<(u32, Arc<Tables>)>; FAMILIES.len()];

/// Fails unless the host holds these rules of a network, and the jumps to them, now. What was read since the kernel's rules
/// changed last is not read again, whichever network asks.
pub(crate) async fn verify(
    family: Family,
    shared: &HostShared,
    network: NetworkId,
    want: &host_plan::HostRules,
    at_host: &AtHost,
) -> Result<(), NetError> {
    let _not_in_the_middle_of_a_change = shared.host_rules.lock().await;
    let now = generation::of(&shared.host).await?;
    let same = |known: &HostStanding| Some(known.generation) == now && known.held.as_ref() == Some(want);
    if at_host[family as usize].as_ref().is_some_and(same) {
        return Ok(());
    }
    let held = || shared.host_seen.lock().unwrap_or_else(PoisonError::into_inner);
    let known = held()[family as usize].clone().filter(|(at, _)| Some(*at) == now);
    let tables = match known {
        Some((_, tables)) => tables,
        None => {
            let tables = Arc::new(family.read(&shared.host).await?);
            let after = generation::of(&shared.host).await?;
            held()[family as usize] = after.filter(|_| after == now).map(|at| (at, Arc::clone(&tables)));
            tables
        }
    };
    holds(&shared.owner, network, Some(want), &tables)
}

fn holds(
    owner: &str,
    network: NetworkId,
    want: Option<&host_plan::HostRules>,
    observed: &Tables,
) -> Result<(), NetError> {
    let left = host_plan::diff(owner, network, want, observed);
    let hooks = want.is_some() && !host_plan::missing_hooks(owner, observed).is_empty();
    if left.script.is_empty() && !hooks {
        return Ok(());
    }
    let detail = left.script.lines().nth(1);
    Err(NetError::NotVerified {
        what: "a rule on the host".into(),
        detail: detail.unwrap_or("a hook is missing or stands twice").to_owned(),
    })
}

/// The jumps from built-in chains, each first in its chain: another's final DROP must not come before them. The `iptables` crate
/// runs one program a call; this is at most ten, once for a host.
async fn insert_hooks(
    family: Family,
    host: &NetNs,
    owner: &str,
    chains: Vec<HostChain>,
) -> Result<(), NetError> {
    let rules: Vec<_> = chains
        .into_iter()
        .map(|c| (c, host_plan::hook_rule(owner, c)))
        .collect();
    let failed = |said: String| NetError::Command {
        program: "iptables",
        doing: "hooking our chains in".into(),
        said,
    };
    let work = move || -> Result<(), String> {
        let iptables = iptables::new(family == Family::V6).map_err(|e| e.to_string())?;
        for (chain, rule) in rules {
            // One that stands twice, or lower down, goes first.
            while iptables
                .exists(chain.table(), chain.hook(), &rule)
                .map_err(|e| e.to_string())?
            {
                iptables
                    .delete(chain.table(), chain.hook(), &rule)
                    .map_err(|e| e.to_string())?;
            }
            iptables
                .insert(chain.table(), chain.hook(), &rule, 1)
                .map_err(|e| e.to_string())?;
        }
        Ok(())
    };
    host.run(work).await?.map_err(failed)
}
