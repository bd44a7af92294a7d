//! Guard, sets and rules of one namespace: brought from what stands to what is wanted, and read back.
//!
//! ```text
//!   nobody else wrote since (same generation):  diff against what was read back last -> write -> read back what changed
//!   else, or at first:                          read all -> diff -> write -> read all back
//! ```
//!
//! What was read back last is kept with the kernel's generation (see [`super::generation`]), so that a change costs as much as it
//! changes, not as much as there is; and a look that finds the generation unchanged has nothing to read. Any
//! transaction of another makes it differ, and all is read again. Sets are not under that number: they are read
//! whenever nothing else is to be done.
//!
//! Order: guard, sets that come, rules, sets that go. A failure leaves the old rules or the new ones, and forgets what was known.

use super::{exec, generation, netns::NetNs};
use crate::{
    DesiredNetwork, NetError, Validated,
    plan::{
        Transit, connections,
        guard::{self, Guard},
        guard_back, inside,
        policy::Policies,
        sets::{self, Sets},
        tables::{self, Tables},
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

/// Elements by the name of their map or set.
type Elements = BTreeMap<String, BTreeSet<String>>;

/// The most chains of the rules that are read back by name; beyond it one reading of all is faster.
const READ_SINGLY_MAX: usize = 64;
/// The same of the guard, where each is a program.
const GUARD_READ_SINGLY_MAX: usize = 8;
/// How often it is begun anew because another wrote at the same time.
const ROUNDS_MAX: usize = 3;

/// Guard, sets and rules of both families.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    guard: Guard,
    sets: Sets,
    v4: Tables,
    v6: Tables,
}

impl Wanted {
    /// `host`: its own addresses on the LAN of a bridged network.
    pub(crate) fn new(net: &Validated<DesiredNetwork>, transit: Option<Transit>, host: &[Ipv4Addr]) -> Self {
        Self {
            guard: guard::render_beside(net, host),
            sets: sets::render(&Policies::new(net)),
            v4: inside::render(net, transit),
            v6: inside::render6(net),
        }
    }

    /// Where nobody speaks IPv6 any more, the rules that stood for it go: they would hold on to sets. So do those that counted
    /// connections.
    fn settle(&mut self, have: &Self) {
        if self.v6.is_empty() && !have.v6.is_empty() {
            self.v6 = inside::nothing6();
        }
        connections::settle(&mut self.v4, &have.v4);
        connections::settle(&mut self.v6, &have.v6);
    }
}

/// What was read back, and the generation it had.
#[derive(Debug)]
pub(crate) struct Standing {
    generation: u32,
    held: Wanted,
}

/// What is done, each a program.
#[derive(Debug, Default)]
struct Steps {
    guard: String,
    sets: sets::SetDiff,
    v4: String,
    v6: String,
    changes: Vec<String>,
}

impl Steps {
    fn between(want: &Wanted, have: &Wanted) -> Self {
        let (guard, mut changes) = guard::diff(&want.guard, &have.guard);
        let sets = sets::diff(&want.sets, &have.sets);
        let (v4, v6) = (tables::diff(&want.v4, &have.v4), tables::diff(&want.v6, &have.v6));
        changes.extend(sets.changes.clone());
        changes.extend(v4.changes);
        changes.extend(v6.changes.into_iter().map(|c| format!("{c} (IPv6)")));
        Self {
            guard,
            sets,
            v4: v4.script,
            v6: v6.script,
            changes,
        }
    }
    fn is_empty(&self) -> bool {
        self.guard.is_empty()
            && self.sets.before.is_empty()
            && self.sets.after.is_empty()
            && self.v4.is_empty()
            && self.v6.is_empty()
    }
    /// How many transactions of nf_tables it is.
    fn transactions(&self) -> u32 {
        let tables = [&self.v4, &self.v6].into_iter().flat_map(|s| s.lines());
        let commits = tables.filter(|line| *line == "COMMIT").count();
        u32::from(!self.guard.is_empty()) + u32::try_from(commits).unwrap_or(u32::MAX)
    }

    async fn write(&self, ns: &NetNs, step: &(dyn Fn(&'static str) + Sync)) -> Result<(), NetError> {
        if !self.guard.is_empty() {
            exec::guard_write(ns, &self.guard).await?;
        }
        step("guard");
        if !self.sets.before.is_empty() {
            exec::ipset_write(ns, &self.sets.before).await?;
        }
        step("sets");
        if !self.v4.is_empty() {
            exec::iptables_write(ns, &self.v4).await?;
        }
        if !self.v6.is_empty() {
            exec::ip6tables_write(ns, &self.v6).await?;
        }
        if !self.sets.after.is_empty() {
            exec::ipset_write(ns, &self.sets.after).await?;
        }
        Ok(())
    }
}

/// What was done.
#[derive(Debug, Default)]
pub(crate) struct Done {
    /// A line a change.
    pub(crate) changes: Vec<String>,
    /// Whether some of it was not known to have been different: what stood meanwhile, and let begin, nobody knows.
    pub(crate) healed: bool,
}

/// Makes the kernel hold what is wanted. `step` is told where it is, for tests that end it there.
pub(crate) async fn apply(
    ns: &NetNs,
    mut want: Wanted,
    standing: &mut Option<Standing>,
    step: &(dyn Fn(&'static str) + Sync),
) -> Result<Done, NetError> {
    let mut done = Done::default();
    for _ in 0..ROUNDS_MAX {
        // Taken: a failure on the way leaves nothing that is believed.
        let known = match (standing.take(), generation::of(ns).await?) {
            (Some(known), Some(now)) if known.generation == now => Some(known),
            _ => None,
        };
        let sure = known.as_ref().is_some_and(|known| known.held != want);
        let found = match known {
            Some(known) => quick(ns, &mut want, known, step).await?,
            None => thorough(ns, &mut want, step).await?,
        };
        done.healed |= !sure && !found.0.is_empty();
        done.changes.extend(found.0);
        if let Some(generation) = found.1 {
            *standing = Some(Standing {
                generation,
                held: want,
            });
            return Ok(done);
        }
    }
    // Another writes all the time, or the kernel does not tell generations: what stands was read back all the same.
    verify(ns, &want).await?;
    Ok(done)
}

/// From what is known. The generation afterwards, if nobody else wrote meanwhile.
async fn quick(
    ns: &NetNs,
    want: &mut Wanted,
    mut known: Standing,
    step: &(dyn Fn(&'static str) + Sync),
) -> Result<(Vec<String>, Option<u32>), NetError> {
    want.settle(&known.held);
    if known.held == *want {
        known.held.sets = exec::ipset_read(ns).await?;
    }
    let steps = Steps::between(want, &known.held);
    steps.write(ns, step).await?;
    if !steps.is_empty() {
        read_back(ns, want, &known.held, &steps).await?;
    }
    let expected = known.generation.wrapping_add(steps.transactions());
    let now = generation::of(ns).await?.filter(|now| *now == expected);
    Ok((steps.changes, now))
}

/// From what is read. The generation of what was read back last, if it did not move while it was read.
async fn thorough(
    ns: &NetNs,
    want: &mut Wanted,
    step: &(dyn Fn(&'static str) + Sync),
) -> Result<(Vec<String>, Option<u32>), NetError> {
    let before = generation::of(ns).await?;
    let have = read(ns).await?;
    want.settle(&have);
    let steps = Steps::between(want, &have);
    steps.write(ns, step).await?;
    let since = if steps.is_empty() {
        before
    } else {
        let since = generation::of(ns).await?;
        verify(ns, want).await?;
        since
    };
    let now = generation::of(ns).await?;
    Ok((steps.changes, now.filter(|_| now == since)))
}

async fn read(ns: &NetNs) -> Result<Wanted, NetError> {
    Ok(Wanted {
        guard: exec::guard_read(ns).await?,
        sets: exec::ipset_read(ns).await?,
        v4: exec::iptables_read(ns).await?,
        v6: exec::ip6tables_read(ns).await?,
    })
}

/// What would be done; `None` where there is no namespace yet.
pub(crate) async fn foresee(ns: Option<&NetNs>, mut want: Wanted) -> Result<Vec<String>, NetError> {
    let have = match ns {
        Some(ns) => read(ns).await?,
        None => Wanted::default(),
    };
    want.settle(&have);
    Ok(Steps::between(&want, &have).changes)
}

/// Fails unless the kernel holds just this. Reads all of it.
async fn verify(ns: &NetNs, want: &Wanted) -> Result<(), NetError> {
    let steps = Steps::between(want, &read(ns).await?);
    steps.missing()
}

impl Steps {
    fn missing(&self) -> Result<(), NetError> {
        let nothing = |l: &&str| !l.starts_with('*') && !l.starts_with("table");
        let parts = [
            ("the guard", &self.guard),
            ("the members of a group", &self.sets.before),
            ("a security rule", &self.v4),
            ("a security rule of IPv6", &self.v6),
        ];
        match parts
            .iter()
            .find_map(|(what, script)| script.lines().find(nothing).map(|line| (what, line)))
        {
            None => Ok(()),
            Some((what, line)) => Err(NetError::NotVerified {
                what: (*what).to_owned(),
                detail: format!("missing: {line}"),
            }),
        }
    }
}

/// Whether the kernel holds just this: by the generation, where that tells it.
pub(crate) async fn check(ns: &NetNs, mut want: Wanted, standing: Option<&Standing>) -> Result<(), NetError> {
    let now = generation::of(ns).await?;
    if let Some(standing) = standing {
        want.settle(&standing.held);
    }
    let want = &want;
    let known = standing.filter(|s| Some(s.generation) == now && s.held == *want);
    if known.is_none() {
        return verify(ns, want).await;
    }
    let have = Wanted {
        sets: exec::ipset_read(ns).await?,
        ..want.clone()
    };
    Steps::between(want, &have).missing()
}

/// Reads back what was changed, or all if that is much.
async fn read_back(ns: &NetNs, want: &Wanted, before: &Wanted, steps: &Steps) -> Result<(), NetError> {
    let guard = guard_back::changed(&want.guard, &before.guard);
    let (v4, v6) = (
        tables::changed(&want.v4, &before.v4),
        tables::changed(&want.v6, &before.v6),
    );
    let count = |of: &Tables| of.values().map(tables::Table::len).sum::<usize>();
    let elements: usize = guard
        .maps
        .values()
        .chain(guard.sets.values())
        .map(BTreeSet::len)
        .sum();
    if guard.chains.len() > GUARD_READ_SINGLY_MAX || count(&v4) + count(&v6) > READ_SINGLY_MAX {
        return verify(ns, want).await;
    }
    if !guard.chains.is_empty() || elements > 0 {
        let have = exec::guard_read_some(ns, &guard).await?;
        let chains = guard
            .chains
            .iter()
            .all(|(name, lines)| have.chains.get(name) == Some(lines));
        let all = |want: &Elements, have: &Elements| {
            let there =
                |name: &String, e: &BTreeSet<String>| have.get(name).is_some_and(|h| h.is_superset(e));
            want.iter().all(|(name, e)| e.is_empty() || there(name, e))
        };
        let same = chains && all(&guard.maps, &have.maps) && all(&guard.sets, &have.sets);
        differs("the guard", same)?;
    }
    if !v4.is_empty() {
        let have = exec::iptables_read_some(ns, exec::Program::IptablesRestore, &v4).await?;
        differs("a security rule", tables::holds(&have, &v4))?;
    }
    if !v6.is_empty() {
        let have = exec::iptables_read_some(ns, exec::Program::Ip6tablesRestore, &v6).await?;
        differs("a security rule of IPv6", tables::holds(&have, &v6))?;
    }
    if !steps.sets.filled.is_empty() || !steps.sets.after.is_empty() {
        differs("the members of a group", exec::ipset_read(ns).await? == want.sets)?;
    }
    Ok(())
}

fn differs(what: &str, same: bool) -> Result<(), NetError> {
    if same {
        return Ok(());
    }
    Err(NetError::NotVerified {
        what: what.to_owned(),
        detail: "it was written, and is not there as it was written".into(),
    })
}
