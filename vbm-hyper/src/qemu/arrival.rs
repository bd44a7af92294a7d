//! A VM that is to arrive: how long it is waited for, and its last step.
//!
//! ```text
//!   receive --> waits --memory--> whole --disks shared----------------> runs
//!                 |                 `-----disks copied--> halted --finish--> runs
//!                 `--> given up: nothing came, nobody renewed, abandon
//! ```
//!
//! The lease is renewed by who wants the VM ([`Migration::renew`](crate::Migration::renew)), by memory that comes and by copies of disks
//! that grow. What is whole is not given up by itself: it may be the only copy.

use super::{
    Entry, Shared,
    errand::Errand,
    keeper::Machine,
    mirror,
    record::VmDir,
    transfer::{self, Phase},
};
use crate::{
    Error, Result, Seen,
    driver::not_for,
    limits::{ARRIVAL_DEADLINE, COMMAND_DEADLINE, KILL_DEADLINE, MIGRATION_DEADLINE},
};
use serde_json::Value;
use std::{
    os::unix::fs::MetadataExt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, timeout};
use vbm_core::{PowerState, VmId};

/// The pause between two looks at a VM that is to arrive.
const ARRIVAL_POLL: Duration = Duration::from_millis(500);

/// When somebody or something last said that the VM still comes.
#[derive(Debug)]
pub(super) struct Lease(Mutex<Instant>);

impl Lease {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Instant::now()))
    }

    pub(super) fn renew(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn age(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}

/// What is seen of an arrival.
#[derive(Clone, Copy, Debug)]
struct Look {
    /// All of its memory is here: it runs, or is halted until it is let go.
    whole: bool,
    coming: bool,
    /// Since its memory began to come.
    coming_for: Duration,
    unrenewed: Duration,
}

/// Whether it is given up: pure.
const fn is_given_up(look: Look) -> bool {
    if look.whole {
        return false;
    }
    if look.coming {
        return look.coming_for.as_millis() >= MIGRATION_DEADLINE.as_millis();
    }
    look.unrenewed.as_millis() >= ARRIVAL_DEADLINE.as_millis()
}

/// Waits until a VM has arrived, or gives it up.
pub(super) async fn watch(shared: Arc<Shared>, id: VmId) {
    let Ok(Entry::Live(machine)) = shared.entry(id) else {
        return;
    };
    let dir = VmDir::new(&shared.root, id);
    // Cancel safe: the next daemon finds the errand and watches again.
    tokio::select! {
        () = shared.scope.end.cancelled() => return,
        () = arrival(&machine) => {}
    }
    // What has arrived may be on its next errand already.
    if matches!(Errand::noted(&dir), Some(Errand::Receive { .. })) {
        Errand::over(&shared, &dir);
    }
}

async fn arrival(machine: &Machine) {
    let (mut began_to_come, mut grown) = (None, grown(machine));
    loop {
        let arrived = machine.wait_for(|view| !is_expected(view.seen.power));
        if timeout(ARRIVAL_POLL, arrived).await.is_ok() {
            return;
        }
        // One that does not answer is not given up by guess.
        let Ok(qmp) = machine.qmp("query-migrate") else {
            continue;
        };
        let Ok(report) = transfer::look(&qmp).await else {
            continue;
        };
        let coming = report.coming;
        let now = self::grown(machine);
        if now != grown {
            machine.lease.renew();
            grown = now;
        }
        if coming {
            machine.lease.renew();
        }
        let look = Look {
            whole: report.phase == Phase::Completed,
            coming,
            coming_for: if coming {
                began_to_come.get_or_insert_with(Instant::now).elapsed()
            } else {
                Duration::ZERO
            },
            unrenewed: machine.lease.age(),
        };
        if is_given_up(look) {
            tracing::warn!(id = %machine.id, ?look, "a VM that was to arrive is given up");
            machine.process.kill();
            machine.wait_for(|_| false).await;
            return;
        }
    }
}

/// Not arrived yet, as far as the power tells; one that was found again is `Unknown` until then.
const fn is_expected(power: PowerState) -> bool {
    matches!(
        power,
        PowerState::MigratingIn | PowerState::Unknown | PowerState::Unresponsive
    )
}

/// How large the files of its disks are on the host.
fn grown(machine: &Machine) -> Vec<u64> {
    let definition = machine.definition();
    let nodes = mirror::nodes(&definition);
    let files = nodes.iter().map(|(_, path)| std::fs::metadata(path));
    files
        .map(|found| found.map_or(0, |found| found.blocks()))
        .collect()
}

/// Whether a process was made to take a VM in, and has not let it run yet.
fn is_arriving(shared: &Shared, machine: &Machine) -> bool {
    let noted = Errand::noted(&VmDir::new(&shared.root, machine.id));
    is_expected(machine.seen().power) && matches!(noted, Some(Errand::Receive { .. }))
}

/// Lets a VM go on that is whole and was told to wait.
pub(super) async fn finish(shared: &Arc<Shared>, id: VmId) -> Result<Seen> {
    let entry = shared.entry(id)?;
    let power = entry.seen().power;
    let machine = match entry {
        Entry::Live(machine) if is_arriving(shared, &machine) => machine,
        Entry::Live(machine) if power == PowerState::Running => return Ok(machine.seen()),
        _ => return Err(not_for("let go on here", power, "migrating in")),
    };
    let qmp = machine.qmp("cont")?;
    if transfer::look(&qmp).await?.phase != Phase::Completed {
        return Err(Error::Refused(vbm_core::Error::new(
            vbm_core::ErrorKind::Conflict,
            "cannot let the VM go on here",
            "its memory has not come whole",
            "wait until the source has sent it, or give it up",
        )));
    }
    mirror::close(&qmp).await?;
    qmp.execute("cont", Value::Null).await?;
    let runs = machine.wait_for(|view| !is_expected(view.seen.power));
    let view = timeout(COMMAND_DEADLINE, runs)
        .await
        .map_err(|_| Error::Timeout {
            command: "cont".into(),
            after: COMMAND_DEADLINE,
        })?;
    if view.over {
        return Err(Error::Disconnected {
            command: "cont".into(),
        });
    }
    Ok(view.seen)
}

/// Says that it is still wanted.
pub(super) fn renew(shared: &Shared, id: VmId) -> Result<()> {
    if let Entry::Live(machine) = shared.entry(id)? {
        machine.lease.renew();
    }
    Ok(())
}

/// Gives it up.
pub(super) async fn abandon(shared: &Shared, id: VmId) -> Result<()> {
    let entry = shared.entry(id)?;
    let power = entry.seen().power;
    match entry {
        Entry::Live(machine) if power == PowerState::MigratingIn || is_arriving(shared, &machine) => {
            machine.process.kill();
            let over = timeout(KILL_DEADLINE, machine.wait_for(|_| false)).await;
            over.map(drop).map_err(|_| Error::Timeout {
                command: "the end of the process".into(),
                after: KILL_DEADLINE,
            })
        }
        _ => Err(not_for("give up waiting for", power, "migrating in")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK: Look = Look {
        whole: false,
        coming: false,
        coming_for: Duration::ZERO,
        unrenewed: Duration::ZERO,
    };

    #[test]
    fn what_nobody_renews_is_given_up_and_what_is_whole_never() {
        let late = Look {
            unrenewed: ARRIVAL_DEADLINE,
            ..LOOK
        };
        assert!(!is_given_up(LOOK));
        assert!(is_given_up(late));
        assert!(
            !is_given_up(Look { coming: true, ..late }),
            "memory that comes renews it"
        );
        let endless = Look {
            coming: true,
            coming_for: MIGRATION_DEADLINE,
            ..LOOK
        };
        assert!(is_given_up(endless), "memory that never ends is given up");
        let whole = Look { whole: true, ..late };
        assert!(!is_given_up(whole), "it may be the only copy");
    }
}
