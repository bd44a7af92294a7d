//! Jobs of QEMU: commands such as `blockdev-create`, `block-stream` or `blockdev-mirror` return before anything is known. What came
//! of them stands in `query-jobs` only, until they are dismissed.
//!
//! ```text
//!   command {job-id, auto-dismiss: false} --> running --> ready? --> concluded: error? --> job-dismiss
//!                                               `-- called off, late: job-cancel -----^
//! ```
//!
//! (QEMU `qapi/job.json`.)

#![cfg_attr(
    not(test),
    allow(dead_code, reason = "work on disks that run as a job of QEMU ends here")
)]

use super::Qmp;
use crate::{
    Error, OpCx, Result,
    limits::{JOB_CANCEL_DEADLINE, JOB_POLL_MAX, JOB_POLL_MIN},
};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How far a job is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It goes on: done and total, in its own unit.
    Going(u64, u64),
    /// Its target is as its source from now on; it waits to be completed or cancelled.
    Ready,
    /// It is over, with QEMU's words if it failed.
    Concluded(Option<String>),
}

/// What `query-jobs` says of a job; `None`: it is not there.
pub(crate) fn stage(jobs: &Value, id: &str) -> Option<Stage> {
    let job = jobs.as_array()?.iter().find(|job| job["id"] == id)?;
    let number = |key: &str| job[key].as_u64().unwrap_or(0);
    Some(match job["status"].as_str() {
        Some("concluded") => Stage::Concluded(job["error"].as_str().map(str::to_owned)),
        Some("ready") => Stage::Ready,
        _ => Stage::Going(number("current-progress"), number("total-progress")),
    })
}

/// Waits until a job is over, and dismisses it. A job that was called off or is late is cancelled, and waited for.
///
/// # Errors
/// [`Error::Hypervisor`] with QEMU's words when it failed, or is not there; [`Error::CalledOff`]; [`Error::Timeout`] after `within`.
///
/// # Cancel safety
/// Dropping the future leaves the job going.
pub(crate) async fn conclude(
    qmp: &Qmp,
    cx: &OpCx,
    id: &str,
    phase: &'static str,
    within: Duration,
) -> Result<()> {
    match until(qmp, cx, id, phase, within, false).await {
        Err(error @ (Error::CalledOff { .. } | Error::OutOfTime { .. } | Error::Timeout { .. })) => {
            cancel(qmp, id).await?;
            Err(error)
        }
        other => other.map(drop),
    }
}

/// The same for a job that becomes ready and waits there. It is left there, and cancelled when it was called off or is late.
///
/// # Errors
/// As [`conclude`].
pub(crate) async fn ready(
    qmp: &Qmp,
    cx: &OpCx,
    id: &str,
    phase: &'static str,
    within: Duration,
) -> Result<()> {
    match until(qmp, cx, id, phase, within, true).await {
        Err(error @ (Error::CalledOff { .. } | Error::OutOfTime { .. } | Error::Timeout { .. })) => {
            cancel(qmp, id).await?;
            Err(error)
        }
        other => other.map(drop),
    }
}

/// Ends a job at once and dismisses it. One that is not there is fine.
///
/// # Errors
/// [`Error::Timeout`] when it does not end.
pub(crate) async fn cancel(qmp: &Qmp, id: &str) -> Result<()> {
    if let Err(error) = qmp.execute("job-cancel", json!({ "id": id })).await {
        // It may have concluded in the meantime.
        tracing::debug!(id, %error, "a job is not cancelled");
    }
    let begun = Instant::now();
    loop {
        match stage(&qmp.execute("query-jobs", Value::Null).await?, id) {
            None => return Ok(()),
            Some(Stage::Concluded(_)) => return dismiss(qmp, id).await,
            Some(_) if begun.elapsed() >= JOB_CANCEL_DEADLINE => {
                return Err(Error::Timeout {
                    command: "job-cancel".into(),
                    after: JOB_CANCEL_DEADLINE,
                });
            }
            Some(_) => sleep(JOB_POLL_MAX).await,
        }
    }
}

async fn dismiss(qmp: &Qmp, id: &str) -> Result<()> {
    match qmp.execute("job-dismiss", json!({ "id": id })).await {
        // Dismissed by itself: `auto-dismiss` was not switched off.
        Err(Error::Hypervisor { .. }) => Ok(()),
        other => other.map(drop),
    }
}

async fn until(
    qmp: &Qmp,
    cx: &OpCx,
    id: &str,
    phase: &'static str,
    within: Duration,
    stop_when_ready: bool,
) -> Result<()> {
    let (begun, mut pause) = (Instant::now(), JOB_POLL_MIN);
    loop {
        cx.go_on(phase)?;
        let failed = |why: String| Error::Hypervisor {
            command: phase.into(),
            why,
        };
        match stage(&qmp.execute("query-jobs", Value::Null).await?, id) {
            None => {
                return Err(failed(format!(
                    "its job {id} is gone, and with it what came of it"
                )));
            }
            Some(Stage::Concluded(error)) => {
                dismiss(qmp, id).await?;
                return error.map_or(Ok(()), |why| Err(failed(why)));
            }
            Some(Stage::Ready) if stop_when_ready => return Ok(()),
            Some(Stage::Ready) => {}
            Some(Stage::Going(done, total)) => cx.report(phase, done, total),
        }
        if begun.elapsed() >= within {
            return Err(Error::Timeout {
                command: phase.into(),
                after: within,
            });
        }
        // Cancel safe: a sleep; what was called off is seen at the top.
        tokio::select! {
            () = sleep(pause) => {}
            () = cx.cancelled() => {}
        }
        pause = (pause * 2).min(JOB_POLL_MAX);
    }
}
