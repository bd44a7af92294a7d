//! The rules of one network on the host itself, and the jumps that lead to them.

use super::{HostShared, exec, generation, netns::NetNs};
use crate::{
    NetError,
    names::HostChain,
    plan::{host as host_plan, tables::Tables},
};
use vbm_core::NetworkId;

/// The rules of one network as they were read back last, and the generation that the host's rules had then. Whoever writes any of them,
/// another network of ours too, moves it.
#[derive(Debug)]
pub(crate) struct HostStanding {
    generation: u32,
    held: Option<host_plan::HostRules>,
}

/// Makes the host's rules of one network those wanted, and the hooks stand. One at a time for an owner: its chains are shared by its
/// networks. Where nobody wrote since they were read back last, and the same are wanted, there is nothing to read.
pub(crate) async fn host_rules(
    shared: &HostShared,
    network: NetworkId,
    want: Option<&host_plan::HostRules>,
    standing: &mut Option<HostStanding>,
) -> Result<Vec<String>, NetError> {
    let _one_at_a_time = shared.host_rules.lock().await;
    let host = &shared.host;
    let before = generation::of(host).await?;
    let same = |known: &HostStanding| Some(known.generation) == before && known.held.as_ref() == want;
    // Taken: a failure on the way leaves nothing that is believed.
    if let Some(known) = standing.take().filter(same) {
        *standing = Some(known);
        return Ok(Vec::new());
    }
    let observed = exec::iptables_read(host).await?;
    let changed = change(shared, network, want, &observed).await?;
    let mut since = before;
    if !changed.is_empty() {
        since = generation::of(host).await?;
        verify(shared, network, want).await?;
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
    shared: &HostShared,
    network: NetworkId,
    want: Option<&host_plan::HostRules>,
    observed: &Tables,
) -> Result<Vec<String>, NetError> {
    let (host, owner) = (&shared.host, &shared.owner);
    let diff = host_plan::diff(owner, network, want, observed);
    let mut changed = diff.changes;
    if !diff.script.is_empty() {
        exec::iptables_write(host, &diff.script).await?;
    }
    if want.is_some() {
        shared.step("host chains");
        let missing = host_plan::missing_hooks(owner, observed);
        if !missing.is_empty() {
            changed.extend(missing.iter().map(|c| format!("host hook in {}", c.hook())));
            insert_hooks(host, owner, missing).await?;
        }
    }
    Ok(changed)
}

/// Fails unless they stand.
async fn verify(
    shared: &HostShared,
    network: NetworkId,
    want: Option<&host_plan::HostRules>,
) -> Result<(), NetError> {
    let owner = &shared.owner;
    let now = exec::iptables_read(&shared.host).await?;
    let left = host_plan::diff(owner, network, want, &now);
    let hooks = want.is_some() && !host_plan::missing_hooks(owner, &now).is_empty();
    if left.script.is_empty() && !hooks {
        return Ok(());
    }
    let line = left.script.lines().nth(1);
    Err(NetError::NotVerified {
        what: "a rule on the host".into(),
        detail: line.unwrap_or("a hook is missing or stands twice").to_owned(),
    })
}

/// The jumps from built-in chains, each first in its chain: another's final DROP must not come before them. The `iptables` crate
/// runs one program a call; this is at most ten, once for a host.
async fn insert_hooks(host: &NetNs, owner: &str, chains: Vec<HostChain>) -> Result<(), NetError> {
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
        let iptables = iptables::new(false).map_err(|e| e.to_string())?;
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
