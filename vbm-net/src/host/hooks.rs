//! The rules of one network on the host itself, and the jumps that lead to them.

use super::{HostShared, exec, generation, netns::NetNs};
use crate::{
    NetError,
    names::HostChain,
    plan::{
        filter::Family,
        host as host_plan,
        tables::{self, Tables},
    },
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

    const fn restore(self) -> exec::Program {
        match self {
            Self::V4 => exec::Program::IptablesRestore,
            Self::V6 => exec::Program::Ip6tablesRestore,
        }
    }

    /// Applies a script as one transaction a table.
    pub(crate) async fn write(self, ns: &NetNs, script: &str) -> Result<(), NetError> {
        exec::rules_write(ns, self.restore(), script).await
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
    let observed = seen(family, shared, before).await?;
    let (changed, written) = change(family, shared, network, want, &observed).await?;
    let now = if changed.is_empty() {
        before
    } else {
        read_back(family, shared, network, want, (before, &observed), written).await?
    };
    // Only what nobody wrote while it was read.
    let now = generation::of(host).await?.filter(|at| Some(*at) == now);
    *standing = now.map(|generation| HostStanding {
        generation,
        held: want.cloned(),
    });
    Ok(changed)
}

/// What a change wrote, and is known of it.
struct Written {
    /// How many transactions it was, where they are known.
    transactions: Option<u32>,
    /// The owner's chains, as they were told by who wrote them.
    told: Tables,
}

/// Writes what differs from what was read.
async fn change(
    family: Family,
    shared: &HostShared,
    network: NetworkId,
    want: Option<&host_plan::HostRules>,
    observed: &Tables,
) -> Result<(Vec<String>, Written), NetError> {
    let (host, owner) = (&shared.host, &shared.owner);
    let diff = host_plan::diff(owner, network, want, observed);
    let mut changed = diff.changes;
    let mut written = Written {
        transactions: Some(0),
        told: Tables::new(),
    };
    if !diff.script.is_empty() {
        let commits = diff.script.lines().filter(|line| *line == "COMMIT").count();
        written.transactions = u32::try_from(commits).ok();
        // Where the last network goes, so do the chains: there is nothing to ask for.
        let asked = if want.is_some() {
            chains_of(owner, &diff.script)
        } else {
            Tables::new()
        };
        written.told = exec::tables_write(host, family.restore(), &diff.script, &asked).await?;
    }
    if want.is_some() {
        shared.step("host chains");
        let missing = host_plan::missing_hooks(owner, observed);
        if !missing.is_empty() {
            changed.extend(missing.iter().map(|c| format!("host hook in {}", c.hook())));
            written.transactions = None;
            insert_hooks(family, host, owner, missing).await?;
        }
    }
    Ok((changed, written))
}

/// The owner's chains in the tables that a script writes.
fn chains_of(owner: &str, script: &str) -> Tables {
    let mut tables = Tables::new();
    for chain in HostChain::ALL {
        if script
            .lines()
            .any(|line| line.strip_prefix('*') == Some(chain.table()))
        {
            let table = tables.entry(chain.table().to_owned()).or_default();
            tables::chain(table, chain.name(owner), None, Vec::new());
        }
    }
    tables
}

/// Fails unless what was written stands. Where nobody else wrote, all but the chains that were written is as it was read before; else
/// all is read. Answers the generation of what was read.
async fn read_back(
    family: Family,
    shared: &HostShared,
    network: NetworkId,
    want: Option<&host_plan::HostRules>,
    (before, observed): (Option<u32>, &Tables),
    written: Written,
) -> Result<Option<u32>, NetError> {
    let since = generation::of(&shared.host).await?;
    let expected = before
        .zip(written.transactions)
        .map(|(at, more)| at.wrapping_add(more));
    let now = match since.filter(|since| want.is_some() && expected == Some(*since)) {
        Some(at) => {
            let mut now = observed.clone();
            for (table, chains) in written.told {
                now.entry(table).or_default().extend(chains);
            }
            let now = Arc::new(now);
            keep(family, shared, Some((at, Arc::clone(&now))));
            now
        }
        None => seen(family, shared, since).await?,
    };
    holds(&shared.owner, network, want, &now)?;
    Ok(since)
}

/// The host's rules of IPv4 and of IPv6, as they were read at a generation of its namespace.
pub(crate) type HostSeen = [Option<(u32, Arc<Tables>)>; FAMILIES.len()];

fn keep(family: Family, shared: &HostShared, what: Option<(u32, Arc<Tables>)>) {
    let mut held = shared.host_seen.lock().unwrap_or_else(PoisonError::into_inner);
    held[family as usize] = what;
}

/// All tables of the host. What was read since they changed last is not read again, whichever network asks.
async fn seen(family: Family, shared: &HostShared, now: Option<u32>) -> Result<Arc<Tables>, NetError> {
    let known = {
        let held = shared.host_seen.lock().unwrap_or_else(PoisonError::into_inner);
        held[family as usize].clone().filter(|(at, _)| Some(*at) == now)
    };
    if let Some((_, tables)) = known {
        return Ok(tables);
    }
    let tables = Arc::new(family.read(&shared.host).await?);
    let after = generation::of(&shared.host).await?;
    let read = after.filter(|_| after == now);
    keep(family, shared, read.map(|at| (at, Arc::clone(&tables))));
    Ok(tables)
}

/// Fails unless the host holds these rules of a network, and the jumps to them, now.
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
    let tables = seen(family, shared, now).await?;
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
