//! The rescuer: takes over what dead members had taken for a service, and forgets consumers that are gone.
//!
//! ```text
//!   beat: somebody's liveness runs out at T --> look at T (and again while anything is left)
//!   start, and every SLOW_EVERY ------------/      |
//!                                                  v  one member at a time looks at a group
//!   consumers --> alive? leave | displaced, absent: XPENDING IDLE lease --> XCLAIM --> bus, quarantine
//! ```
//!
//! An entry is taken over when its holder is not in presence *and* the entry is idle for a lease: holders renew what
//! they work on at each beat, also while they shut down. A run whose path another run has taken is dead at once, so its
//! entries wait only for [`DISPLACED_MIN_IDLE`]. After an outage of Redis everybody's presence may have run out
//! together: nobody takes over before all had a lease's time to come back.

use super::{
    Core,
    connect::{Commands, Down},
    keys::{self, GROUP},
    pack, presence,
    quarantine::Suspect,
    scripts,
};
use crate::{
    Service,
    limits::{PRESENCE_TTL, SUSPECT_AFTER},
};
use redis::{Value, cmd};
use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::time::{Instant, sleep_until};
use vbm_core::NodePath;

/// The most entries claimed at a time.
const CLAIM_MAX_ENTRIES: usize = 64;
/// Entries of a run whose path another run has taken are taken over when they are idle this long.
const DISPLACED_MIN_IDLE: Duration = Duration::from_secs(1);
/// How often a group is looked at although nobody was seen to die.
const SLOW_EVERY: Duration = Duration::from_secs(30);
/// Only one member looks at a group within this time.
const LOCK_TTL: Duration = Duration::from_millis(400);
/// A consumer that holds nothing and asked for something this short a time ago is alive.
const BUSY: Duration = Duration::from_secs(4);
/// After what another look needs to see a change for certain.
const MARGIN: Duration = Duration::from_millis(30);
/// How soon a look that failed is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// What has become of the run behind a consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Run {
    Alive,
    /// Another run has its path.
    Displaced,
    /// Nobody has its path.
    Absent,
}

/// How long an entry must be idle before it is taken from such a run; never from a living one.
fn min_idle(run: Run) -> Option<Duration> {
    match run {
        Run::Alive => None,
        Run::Displaced => Some(DISPLACED_MIN_IDLE),
        Run::Absent => Some(PRESENCE_TTL),
    }
}

fn ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// The sooner of two times to look again.
fn sooner(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

pub(super) async fn run(core: Arc<Core>) {
    let mut deaths = core.deaths.subscribe();
    let mut next = Instant::now();
    // What an earlier run of this path had is this run's business: at the start it looks in any case.
    let mut unsettled: BTreeSet<usize> = (0..presence::served(&core.me).len()).collect();
    loop {
        let death = *deaths.borrow_and_update();
        let at = death.map_or(next, |death| death.min(next));
        tokio::select! {
            // Cancel safe: all only wait.
            () = sleep_until(at) => {}
            changed = deaths.changed() => match changed {
                Ok(()) => continue,
                Err(_closed) => return,
            },
            () = core.retired.cancelled() => return,
        }
        core.deaths
            .send_if_modified(|death| death.take_if(|at| *at <= Instant::now()).is_some());
        deaths.mark_unchanged();
        let again = match look_at_all(&core, &mut unsettled).await {
            Ok(again) => again.unwrap_or(SLOW_EVERY),
            Err(Down(why)) => {
                tracing::debug!(why, "the dead could not be looked for");
                core.probe();
                RETRY
            }
        };
        next = Instant::now() + again;
    }
}

/// Looks at each group that nobody else looks at just now. `unsettled` are those where this member knows of something
/// left: to these it comes back. Gives how soon.
async fn look_at_all(core: &Arc<Core>, unsettled: &mut BTreeSet<usize>) -> Result<Option<Duration>, Down> {
    let Some(mut commands) = core.conn.borrow().clone() else {
        return Ok(Some(RETRY));
    };
    let mut again = None;
    for (at, (scope, service)) in presence::served(&core.me).into_iter().enumerate() {
        let mut lock = cmd("SET");
        lock.arg(core.keys.rescuer(&scope, &service))
            .arg(&core.consumer)
            .arg("NX")
            .arg("PX")
            .arg(ms(LOCK_TTL));
        let left = match commands.one(lock).await? {
            Ok(Value::Okay) => look_at_lanes(core, &mut commands, &scope, &service).await?,
            _ => unsettled.contains(&at).then_some(LOCK_TTL),
        };
        match left {
            Some(_) => unsettled.insert(at),
            None => unsettled.remove(&at),
        };
        again = sooner(again, left);
    }
    Ok(again)
}

struct Consumer {
    name: String,
    pending: i64,
    idle: Duration,
}

fn consumers(answer: &Value) -> Vec<Consumer> {
    let Value::Array(list) = answer else {
        return Vec::new();
    };
    list.iter()
        .filter_map(|consumer| {
            let idle = pack::number(pack::field(consumer, "idle")?)?;
            Some(Consumer {
                name: pack::text(pack::field(consumer, "name")?)?.to_owned(),
                pending: pack::number(pack::field(consumer, "pending")?)?,
                idle: Duration::from_millis(u64::try_from(idle).unwrap_or(0)),
            })
        })
        .collect()
}

/// Looks at both lanes of a group.
async fn look_at_lanes(
    core: &Arc<Core>,
    commands: &mut Commands,
    scope: &NodePath,
    service: &Service,
) -> Result<Option<Duration>, Down> {
    let mut again = None;
    for key in core.keys.lanes(scope, service) {
        let left = look(core, commands, (scope, service), key.into()).await?;
        again = sooner(again, left);
    }
    if again.is_none() {
        // Nothing is left of the dead: from now on nobody need look for them here.
        let mut sweep = cmd("ZREMRANGEBYSCORE");
        sweep
            .arg(core.keys.alive(scope, Some(service)))
            .arg("-inf")
            .arg(core.now_ms());
        drop(commands.one(sweep).await?);
    }
    Ok(again)
}

/// Looks at one group.
async fn look(
    core: &Arc<Core>,
    commands: &mut Commands,
    (scope, service): (&NodePath, &Service),
    key: Arc<str>,
) -> Result<Option<Duration>, Down> {
    let mut info = cmd("XINFO");
    info.arg("CONSUMERS").arg(&*key).arg(GROUP);
    let Ok(answer) = commands.one(info).await? else {
        return Ok(None);
    };
    let doubtful = |consumer: &Consumer| {
        let same_path = keys::parse_consumer(&consumer.name).is_some_and(|(path, _)| path == core.me.path);
        consumer.name != core.consumer && (same_path || consumer.pending > 0 || consumer.idle >= BUSY)
    };
    let doubtful: Vec<Consumer> = consumers(&answer).into_iter().filter(doubtful).collect();
    let runs: Vec<_> = doubtful
        .iter()
        .map(|consumer| match keys::parse_consumer(&consumer.name) {
            Some((path, boot_id)) => (path, boot_id.to_owned()),
            // No consumer of ours: nobody has the empty boot id.
            None => (NodePath::root(), String::new()),
        })
        .collect();
    let runs = presence::runs(core, commands, &runs).await?;
    let settling = core.settled_at().saturating_duration_since(Instant::now());
    let mut again = None;
    for (consumer, run) in doubtful.iter().zip(runs) {
        let Some(min_idle) = min_idle(run) else { continue };
        let left = match (consumer.pending, run) {
            (0, _) => {
                forget_consumer(core, commands, &key, &consumer.name).await?;
                None
            }
            (_, Run::Absent) if !settling.is_zero() => Some(settling + MARGIN),
            _ => take_over(core, commands, (scope, service), (&key, &consumer.name), min_idle).await?,
        };
        again = sooner(again, left);
    }
    Ok(again)
}

/// Forgets a consumer if it still holds nothing: deleting one that does would lose what it holds (redis#9745).
async fn forget_consumer(core: &Core, commands: &mut Commands, key: &str, name: &str) -> Result<(), Down> {
    let mut forget = cmd("EVAL");
    forget
        .arg(scripts::FORGET_CONSUMER)
        .arg(1)
        .arg(key)
        .arg(GROUP)
        .arg(name);
    match commands.one(forget).await? {
        Ok(_) => tracing::debug!(
            key,
            name,
            by = core.consumer,
            "a consumer that is gone was forgotten"
        ),
        Err(why) => tracing::debug!(key, name, why, "a consumer could not be forgotten"),
    }
    Ok(())
}

/// One line of XPENDING: the entry, how long it is idle, how often it was delivered.
fn pending(answer: &Value) -> Vec<(String, Duration, i64)> {
    let Value::Array(list) = answer else {
        return Vec::new();
    };
    list.iter()
        .filter_map(|entry| match entry {
            Value::Array(parts) => Some((
                pack::text(parts.first()?)?.to_owned(),
                Duration::from_millis(u64::try_from(pack::number(parts.get(2)?)?).ok()?),
                pack::number(parts.get(3)?)?,
            )),
            _ => None,
        })
        .collect()
}

/// Takes over all that is idle for long enough, as far as the bus has room; gives when the rest will be.
async fn take_over(
    core: &Arc<Core>,
    commands: &mut Commands,
    (scope, service): (&NodePath, &Service),
    (key, dead): (&Arc<str>, &str),
    min_idle: Duration,
) -> Result<Option<Duration>, Down> {
    loop {
        if core.retired.is_cancelled() {
            return Ok(None);
        }
        let count = core.inbound.room().clamp(1, CLAIM_MAX_ENTRIES);
        let mut idle = cmd("XPENDING");
        idle.arg(&**key)
            .arg(GROUP)
            .arg("IDLE")
            .arg(ms(min_idle))
            .arg("-")
            .arg("+")
            .arg(count)
            .arg(dead);
        let Ok(answer) = commands.one(idle).await? else {
            return Ok(None);
        };
        let ripe = pending(&answer);
        if ripe.is_empty() {
            return until_ripe(commands, key, dead, min_idle).await;
        }
        let asked = Instant::now();
        let mut claim = cmd("XCLAIM");
        claim.arg(&**key).arg(GROUP).arg(&core.consumer).arg(ms(min_idle));
        for (id, ..) in &ripe {
            claim.arg(id);
        }
        let Ok(claimed) = commands.one(claim).await? else {
            return Ok(None);
        };
        let entries = pack::entries(claimed);
        tracing::info!(%key, dead, entries = entries.len(), "requests of a dead member were taken over");
        let admitted = core.admit_shared(key, (scope, service), entries).await;
        if admitted.is_err() {
            core.reread.fetch_add(1, Ordering::SeqCst);
        }
        for entry in admitted? {
            let before = ripe.iter().find(|(id, ..)| *id == entry.id);
            let before = before.map_or(1, |(.., times)| u32::try_from(*times).unwrap_or(1));
            if before >= SUSPECT_AFTER && !entry.frames.is_empty() {
                core.suspect(Suspect {
                    key: key.clone(),
                    entry,
                    group: true,
                    worker: dead.to_owned(),
                });
                continue;
            }
            for delivery in core.deliveries(key, entry, (asked, before + 1), true, true) {
                if !core.inbound.request(delivery).await {
                    return Ok(None);
                }
            }
        }
    }
}

/// When the next entry of a dead consumer can be taken over, if it has any.
async fn until_ripe(
    commands: &mut Commands,
    key: &str,
    dead: &str,
    min_idle: Duration,
) -> Result<Option<Duration>, Down> {
    let mut left = cmd("XPENDING");
    left.arg(key)
        .arg(GROUP)
        .arg("-")
        .arg("+")
        .arg(CLAIM_MAX_ENTRIES)
        .arg(dead);
    let Ok(answer) = commands.one(left).await? else {
        return Ok(None);
    };
    let soonest = pending(&answer).into_iter().map(|(_, idle, _)| idle).max();
    Ok(soonest.map(|idle| min_idle.saturating_sub(idle) + MARGIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_taken_from_the_living_and_a_displaced_run_is_waited_for_least() {
        assert_eq!(min_idle(Run::Alive), None);
        assert!(min_idle(Run::Displaced) < min_idle(Run::Absent));
        assert_eq!(min_idle(Run::Absent), Some(PRESENCE_TTL));
    }

    #[test]
    fn the_next_look_is_the_soonest_one_wanted() {
        let (a, b) = (Duration::from_secs(1), Duration::from_secs(2));
        assert_eq!(sooner(Some(a), Some(b)), Some(a));
        assert_eq!(sooner(None, Some(b)), Some(b));
        assert_eq!(sooner(None, None), None);
    }
}
