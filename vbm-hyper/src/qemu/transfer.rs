//! Transfers of memory: to a file, from a file, to another host, from another host. One mechanism of QEMU for all.
//!
//! ```text
//!   prepare(how) --> send(channel) --> wait: query-migrate again and again --> Completed
//!                                                    `--> Failed, Cancelled: with QEMU's words
//! ```
//!
//! `migrate` returns before anything is known, so each transfer is waited for to its conclusion.

use super::{keeper::Machine, qmp::Qmp};
use crate::{
    Error, Result,
    limits::{
        CANCEL_DEADLINE, COMMAND_DEADLINE, MIGRATION_DOWNTIME_MAX, TRANSFER_MAX_BYTES_PER_SECOND,
        TRANSFER_POLL_MAX, TRANSFER_POLL_MIN,
    },
};
use serde_json::{Value, json};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// What a transfer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// The guest is halted all the while.
    Halted,
    /// The guest goes on while its memory of one moment is written.
    Background,
    /// To another host, which confirms that it has everything before we let go.
    Live(Live),
}

/// What a transfer to another host is done with. Both sides set the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Live {
    downtime_millis: u64,
    bytes_per_second: u64,
    auto_converge: bool,
    channels: u8,
    /// Halted, it waits for our word before the last of it is sent: its disks are finished then.
    waits: bool,
}

impl Live {
    pub(super) fn of(options: &crate::MoveOptions) -> Self {
        Self {
            downtime_millis: options.downtime_max_millis,
            bytes_per_second: options
                .bandwidth_max_bytes
                .unwrap_or(TRANSFER_MAX_BYTES_PER_SECOND),
            auto_converge: options.auto_converge,
            channels: options.channels,
            waits: options.copies(),
        }
    }
}

/// Where memory goes to, or comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Channel {
    File(PathBuf),
    Tcp(SocketAddr),
}

impl Channel {
    fn arguments(&self) -> Value {
        match self {
            // Not as a URI, in which a comma would begin an option.
            Self::File(path) => {
                let address = json!({ "transport": "file", "filename": path, "offset": 0 });
                json!({ "channels": [{ "channel-type": "main", "addr": address }] })
            }
            Self::Tcp(address) => json!({ "uri": format!("tcp:{address}") }),
        }
    }
}

/// How far a transfer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// There was none.
    None,
    Going,
    Completed,
    Failed,
    Cancelled,
}

/// What `query-migrate` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) phase: Phase,
    /// Pages handled, empty ones included.
    pub(super) pages: u64,
    pub(super) bytes: u64,
    pub(super) took: Duration,
    pub(super) downtime: Duration,
    pub(super) why: String,
    /// The other side is there.
    pub(super) coming: bool,
    /// Where we listen.
    pub(super) port: Option<u16>,
    /// What is still to be sent, in bytes.
    pub(super) remaining: u64,
    /// How many times the memory was gone through.
    pub(super) rounds: u64,
    /// The guest is halted, and the last of it waits for our word.
    pub(super) waits: bool,
}

pub(super) fn report(reply: &Value) -> Report {
    let ram = &reply["ram"];
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    Report {
        phase: match reply["status"].as_str() {
            None | Some("none") => Phase::None,
            Some("completed") => Phase::Completed,
            Some("failed") => Phase::Failed,
            Some("cancelled") => Phase::Cancelled,
            Some(_) => Phase::Going,
        },
        pages: number(&ram["normal"]) + number(&ram["duplicate"]),
        bytes: number(&ram["transferred"]),
        took: Duration::from_millis(number(&reply["total-time"])),
        downtime: Duration::from_millis(number(&reply["downtime"])),
        why: reply["error-desc"].as_str().unwrap_or_default().to_owned(),
        coming: reply["status"] == "active",
        port: reply["socket-address"][0]["port"]
            .as_str()
            .and_then(|port| port.parse().ok()),
        remaining: number(&ram["remaining"]),
        rounds: number(&ram["dirty-sync-count"]),
        waits: reply["status"] == "pre-switchover",
    }
}

/// Sets what every transfer needs; what an earlier one had set is set back.
pub(super) async fn prepare(qmp: &Qmp, way: Way) -> Result<()> {
    let live = match way {
        Way::Live(live) => Some(live),
        Way::Halted | Way::Background => None,
    };
    let capabilities = [
        ("events", true),
        ("background-snapshot", way == Way::Background),
        ("return-path", live.is_some()),
        ("auto-converge", live.is_some_and(|live| live.auto_converge)),
        ("multifd", live.is_some_and(|live| live.channels > 1)),
        ("pause-before-switchover", live.is_some_and(|live| live.waits)),
    ];
    // What is off goes first: QEMU refuses some pairs.
    for wanted in [false, true] {
        let list: Vec<Value> = capabilities
            .iter()
            .filter(|(_, state)| *state == wanted)
            .map(|(name, state)| json!({ "capability": name, "state": state }))
            .collect();
        qmp.execute("migrate-set-capabilities", json!({ "capabilities": list }))
            .await?;
    }
    let downtime = u64::try_from(MIGRATION_DOWNTIME_MAX.as_millis()).unwrap_or(u64::MAX);
    let mut parameters = json!({
        "max-bandwidth": live.map_or(TRANSFER_MAX_BYTES_PER_SECOND, |live| live.bytes_per_second),
        "downtime-limit": live.map_or(downtime, |live| live.downtime_millis),
    });
    if let Some(Live { channels: 2.., .. }) = live {
        parameters["multifd-channels"] = json!(live.map(|live| live.channels));
    }
    qmp.execute("migrate-set-parameters", parameters).await.map(drop)
}

/// Begins to send.
pub(super) async fn send(qmp: &Qmp, channel: &Channel) -> Result<()> {
    qmp.execute("migrate", channel.arguments()).await.map(drop)
}

/// Begins to receive.
pub(super) async fn receive(qmp: &Qmp, channel: &Channel) -> Result<()> {
    qmp.execute("migrate-incoming", channel.arguments())
        .await
        .map(drop)
}

pub(super) async fn look(qmp: &Qmp) -> Result<Report> {
    Ok(report(&qmp.execute("query-migrate", Value::Null).await?))
}

/// Looks again and again until the report is as wanted or the transfer is over.
pub(super) async fn wait(
    machine: &Machine,
    deadline: Duration,
    mut wanted: impl FnMut(&Report) -> bool,
) -> Result<Report> {
    let until = Instant::now() + deadline;
    let mut pause = TRANSFER_POLL_MIN;
    loop {
        let looked = match machine.qmp("query-migrate") {
            Ok(qmp) => look(&qmp).await,
            Err(error) => Err(error),
        };
        match looked {
            Ok(report) if report.phase != Phase::Going || wanted(&report) => return Ok(report),
            Ok(_) => {}
            // A monitor may be lost and found; the process tells whether there is anything to wait for.
            Err(error) if machine.process.has_exited() => return Err(error),
            Err(error) => tracing::debug!(id = %machine.id, %error, "a transfer could not be looked at"),
        }
        if Instant::now() >= until {
            return Err(Error::Timeout {
                command: "migrate".into(),
                after: deadline,
            });
        }
        sleep(pause).await;
        pause = (pause * 2).min(TRANSFER_POLL_MAX);
    }
}

/// Waits until all of it is there.
pub(super) async fn complete(machine: &Machine, deadline: Duration, path: Option<&Path>) -> Result<Report> {
    let report = wait(machine, deadline, |_| false).await?;
    match report.phase {
        Phase::Completed => Ok(report),
        _ => Err(failure(&report, path)),
    }
}

/// Why a transfer did not complete.
pub(super) fn failure(report: &Report, path: Option<&Path>) -> Error {
    let why = match (report.why.as_str(), report.phase) {
        ("", Phase::Cancelled) => "it was called off",
        ("", _) => "it gave no reason",
        (why, _) => why,
    };
    full_or(
        path,
        Error::Hypervisor {
            command: "migrate".into(),
            why: why.to_owned(),
        },
    )
}

/// Tells a full disk from other failures, by the words of the C library.
pub(super) fn full_or(path: Option<&Path>, error: Error) -> Error {
    match (path, &error) {
        (Some(path), Error::Hypervisor { why, .. })
            if why.contains("No space left") || why.contains("Disk quota exceeded") =>
        {
            Error::DiskFull {
                what: "write",
                path: path.to_owned(),
            }
        }
        _ => error,
    }
}

/// Calls a transfer off, if one goes on, and says how it ended.
pub(super) async fn call_off(qmp: &Qmp) -> Result<Report> {
    let until = Instant::now() + CANCEL_DEADLINE;
    let mut asked = false;
    loop {
        let report = look(qmp).await?;
        if report.phase != Phase::Going {
            return Ok(report);
        }
        if !asked {
            qmp.execute("migrate_cancel", Value::Null).await?;
            asked = true;
        }
        if Instant::now() >= until {
            return Err(Error::Timeout {
                command: "migrate_cancel".into(),
                after: CANCEL_DEADLINE,
            });
        }
        sleep(TRANSFER_POLL_MAX).await;
    }
}

/// Lets a guest go on whose migration failed, unless it has arrived: then the destination holds the lock of its disk. So
/// it is halted, and goes on only with that lock; QEMU 10.0 lets it go on without.
pub(super) async fn stays(qmp: &Qmp) -> Result<bool> {
    qmp.execute("stop", Value::Null).await?;
    match go_on(qmp).await {
        Ok(()) => Ok(true),
        Err(Error::Hypervisor { why, .. }) if why.contains("lock") => Ok(false),
        Err(error) => Err(error),
    }
}

/// Lets the guest go on if it was halted for a transfer that failed or is done.
pub(super) async fn go_on(qmp: &Qmp) -> Result<()> {
    let until = Instant::now() + COMMAND_DEADLINE;
    loop {
        let status = qmp.execute("query-status", Value::Null).await?;
        if status["running"] == json!(true) {
            return Ok(());
        }
        match qmp.execute("cont", Value::Null).await {
            Ok(_) => return Ok(()),
            // "Migration is not finalized yet".
            Err(error @ Error::Hypervisor { .. }) if Instant::now() >= until => return Err(error),
            Err(Error::Hypervisor { .. }) => sleep(TRANSFER_POLL_MAX).await,
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_qemu_says_of_a_transfer_is_understood() {
        let done = report(&json!({
            "status": "completed", "downtime": 59, "total-time": 274, "ram": { "transferred": 80, "normal": 3, "duplicate": 4 }
        }));
        assert_eq!((done.phase, done.pages, done.bytes), (Phase::Completed, 7, 80));
        assert_eq!((done.took.as_millis(), done.downtime.as_millis()), (274, 59));
        let halted = report(&json!({
            "status": "pre-switchover", "ram": { "remaining": 9, "dirty-sync-count": 3 }
        }));
        assert_eq!((halted.phase, halted.waits), (Phase::Going, true));
        assert_eq!((halted.remaining, halted.rounds), (9, 3));
        for (status, phase) in [
            (json!({}), Phase::None),
            (json!({ "status": "setup" }), Phase::Going),
            (json!({ "status": "what-is-new" }), Phase::Going),
            (json!({ "status": "failed" }), Phase::Failed),
            (json!({ "status": "cancelled" }), Phase::Cancelled),
        ] {
            assert_eq!(report(&status).phase, phase, "{status}");
        }
        let waits =
            json!({ "status": "setup", "socket-address": [{ "host": "127.0.0.1", "port": "34747" }] });
        assert_eq!(report(&waits).port, Some(34747));
    }

    #[test]
    fn a_full_disk_is_told_from_other_failures() {
        let mut failed =
            report(&json!({ "status": "failed", "error-desc": "Unable to write: No space left on device" }));
        let path = Path::new("/pool/x.mem");
        assert!(matches!(failure(&failed, Some(path)), Error::DiskFull { .. }));
        failed.why = "Connection reset by peer".into();
        assert!(
            matches!(failure(&failed, Some(path)), Error::Hypervisor { why, .. } if why.contains("reset"))
        );
    }

    #[test]
    fn a_path_is_handed_over_as_it_is() {
        let arguments = Channel::File("/a,offset=1".into()).arguments();
        assert_eq!(arguments["channels"][0]["addr"]["filename"], "/a,offset=1");
        let arguments = Channel::Tcp("10.0.0.1:7".parse().unwrap()).arguments();
        assert_eq!(arguments["uri"], "tcp:10.0.0.1:7");
    }
}
