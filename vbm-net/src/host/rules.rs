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

use super::{
    blob::Forms,
    exec, generation,
    netns::NetNs,
    present,
    steps::{Back, Steps},
    whole,
};
use crate::{
    DesiredNetwork, NetError, Validated,
    plan::{
        Transit, connections,
        dispatch::{Dispatch, Nft, Rules},
        guard::{self, Guard},
        inside,
        sets::Sets,
        tables::Tables,
    },
};
use std::{net::Ipv4Addr, sync::Mutex};

/// How often it is begun anew because another wrote at the same time.
const ROUNDS_MAX: usize = 3;

/// Guard, sets and rules of both families.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(super) guard: Guard,
    pub(super) sets: Sets,
    pub(super) v4: Tables,
    pub(super) v6: Tables,
    pub(super) nft: Nft,
}

impl Wanted {
    /// `host`: its own addresses on the LAN of a bridged network.
    pub(crate) fn new(
        net: &Validated<DesiredNetwork>,
        transit: Option<Transit>,
        host: &[Ipv4Addr],
        dispatch: Dispatch,
    ) -> Self {
        let Rules { sets, v4, v6, nft } = dispatch.backend().render(net, transit);
        Self {
            guard: guard::render_beside(net, host),
            sets,
            v4,
            v6,
            nft,
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

impl Standing {
    /// Of a namespace that was just made: nothing stands there, and nobody has written yet.
    pub(crate) fn new() -> Self {
        Self {
            generation: generation::NEW,
            held: Wanted::default(),
        }
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
    forms: &Mutex<Forms>,
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
            Some(known) => quick(ns, &mut want, known, forms, step).await?,
            None => thorough(ns, &mut want, forms, step).await?,
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
    verify(ns, &want, forms).await?;
    Ok(done)
}

/// From what is known. The generation afterwards, if nobody else wrote meanwhile.
async fn quick(
    ns: &NetNs,
    want: &mut Wanted,
    mut known: Standing,
    forms: &Mutex<Forms>,
    step: &(dyn Fn(&'static str) + Sync),
) -> Result<(Vec<String>, Option<u32>), NetError> {
    want.settle(&known.held);
    if known.held == *want {
        known.held.sets = sets_now(ns).await?;
    }
    let steps = Steps::between(want, &known.held);
    let back = Back::of(want, &known.held, &steps);
    if back.is_little() {
        let told = steps.write(ns, Some(&back), step).await?;
        back.compare(ns, &told, want, forms).await?;
    } else {
        steps.write(ns, None, step).await?;
        verify(ns, want, forms).await?;
    }
    let expected = known.generation.wrapping_add(steps.transactions());
    let now = generation::of(ns).await?.filter(|now| *now == expected);
    Ok((steps.changes, now))
}

/// From what is read. The generation of what was read back last, if it did not move while it was read.
async fn thorough(
    ns: &NetNs,
    want: &mut Wanted,
    forms: &Mutex<Forms>,
    step: &(dyn Fn(&'static str) + Sync),
) -> Result<(Vec<String>, Option<u32>), NetError> {
    let before = generation::of(ns).await?;
    let have = read(ns, want, forms).await?;
    want.settle(&have);
    let steps = Steps::between(want, &have);
    steps.write(ns, None, step).await?;
    let since = if steps.is_empty() {
        before
    } else {
        let since = generation::of(ns).await?;
        verify(ns, want, forms).await?;
        since
    };
    let now = generation::of(ns).await?;
    Ok((steps.changes, now.filter(|_| now == since)))
}

/// All that there is, at the same time. Of the guard only what is otherwise than wanted is printed.
async fn read(ns: &NetNs, want: &Wanted, forms: &Mutex<Forms>) -> Result<Wanted, NetError> {
    let there = present::of(ns).await?;
    let (guard, sets, v4, v6, nft) = tokio::try_join!(
        where_there(there.guard, whole::read(ns, &want.guard, forms)),
        where_there(there.sets, exec::ipset_read(ns)),
        where_there(there.v4, exec::iptables_read(ns)),
        where_there(there.v6, exec::ip6tables_read(ns)),
        where_there(there.nft, exec::nft_read(ns)),
    )?;
    Ok(Wanted {
        guard,
        sets,
        v4,
        v6,
        nft,
    })
}

async fn where_there<T: Default>(
    there: bool,
    read: impl Future<Output = Result<T, NetError>>,
) -> Result<T, NetError> {
    if there { read.await } else { Ok(T::default()) }
}

async fn sets_now(ns: &NetNs) -> Result<Sets, NetError> {
    where_there(present::has_sets(ns).await?, exec::ipset_read(ns)).await
}

/// What would be done; `None` where there is no namespace yet.
pub(crate) async fn foresee(
    ns: Option<&NetNs>,
    mut want: Wanted,
    forms: &Mutex<Forms>,
) -> Result<Vec<String>, NetError> {
    let have = match ns {
        Some(ns) => read(ns, &want, forms).await?,
        None => Wanted::default(),
    };
    want.settle(&have);
    Ok(Steps::between(&want, &have).changes)
}

/// Fails unless the kernel holds just this. Reads all of it.
async fn verify(ns: &NetNs, want: &Wanted, forms: &Mutex<Forms>) -> Result<(), NetError> {
    let steps = Steps::between(want, &read(ns, want, forms).await?);
    steps.missing()
}

/// Whether the kernel holds just this: by the generation, where that tells it.
pub(crate) async fn check(
    ns: &NetNs,
    mut want: Wanted,
    standing: Option<&Standing>,
    forms: &Mutex<Forms>,
) -> Result<(), NetError> {
    let now = generation::of(ns).await?;
    if let Some(standing) = standing {
        want.settle(&standing.held);
    }
    let want = &want;
    let known = standing.filter(|s| Some(s.generation) == now && s.held == *want);
    if known.is_none() {
        return verify(ns, want, forms).await;
    }
    let have = Wanted {
        sets: sets_now(ns).await?,
        ..want.clone()
    };
    Steps::between(want, &have).missing()
}
