//! Processes that outlive the command that starts them, known by pid and start time.

use super::plan::{Kind, Member};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};
use tokio::time::{Instant, sleep};
use vbm_core::{Error, ErrorKind, Result};

/// How often a process is looked at while it is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How much of the log of a member that failed is shown, in lines.
const LOG_SHOWN_LINES: usize = 5;

/// A process that was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Started {
    pid: i32,
    /// In clock ticks since the boot of the host (proc(5), stat, field 22): tells it from a later process of the same pid.
    start_time: u64,
}

impl Started {
    pub(super) fn pid(self) -> u32 {
        u32::try_from(self.pid).unwrap_or(0)
    }

    pub(super) fn is_alive(&self) -> bool {
        stat(self.pid).is_some_and(|(state, started)| started == self.start_time && state != 'Z')
    }
}

/// A process that this one has just started.
pub(super) struct Fresh {
    child: Child,
    record: Started,
}

impl Fresh {
    pub(super) const fn record(&self) -> Started {
        self.record
    }

    /// Waits until the member says that it is ready.
    pub(super) async fn ready(&mut self, member: &Member, log_from: u64, at_most: Duration) -> Result<()> {
        let word = match member.kind {
            Kind::Redis => "Ready to accept connections",
            Kind::Controller | Kind::Agent => "vbmd ready",
        };
        let deadline = Instant::now() + at_most;
        loop {
            let said = log_after(&member.log, log_from);
            if said.contains(word) {
                return Ok(());
            }
            let ended = self.child.try_wait().is_ok_and(|status| status.is_some());
            if ended || Instant::now() >= deadline {
                let lines: Vec<&str> = said.lines().collect();
                let tail = lines[lines.len().saturating_sub(LOG_SHOWN_LINES)..].join(" | ");
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    format!("{} did not come up", member.name),
                    if ended {
                        format!("it ended: {tail}")
                    } else {
                        format!("it was not ready within {} s: {tail}", at_most.as_secs())
                    },
                    format!("read {}", member.log.display()),
                ));
            }
            sleep(LOOK_EVERY).await;
        }
    }
}

/// Starts a member in its namespace, in a session of its own.
pub(super) fn start(member: &Member) -> Result<Fresh> {
    let failed = |what: &str, e: &io::Error| {
        Error::new(
            ErrorKind::Unavailable,
            format!("{} cannot be started", member.name),
            format!("{what}: {e}"),
            "install redis-server and util-linux, and run it as root",
        )
    };
    fs::create_dir_all(&member.data).map_err(|e| failed("its directory", &e))?;
    let log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&member.log)
        .map_err(|e| failed("its log", &e))?;
    let errors = log.try_clone().map_err(|e| failed("its log", &e))?;
    // `nsenter` changes only the network; `ip netns exec` would give it mounts of its own, in which the namespaces
    // that it makes could not be seen from outside. Both replace themselves by the program, so the pid is its own.
    let child = Command::new("setsid")
        .args(["nsenter", &format!("--net=/run/netns/{}", member.namespace)])
        .args(&member.command)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .env_remove("VBM_SOCKET")
        .current_dir("/")
        .spawn()
        .map_err(|e| failed("setsid", &e))?;
    let pid = i32::try_from(child.id()).unwrap_or(i32::MAX);
    let start_time = stat(pid).map_or(0, |(_, started)| started);
    Ok(Fresh {
        child,
        record: Started { pid, start_time },
    })
}

/// Ends a process and waits until it is gone.
pub(super) async fn end(started: &Started, at_once: bool, at_most: Duration) -> Result<()> {
    let pid = Pid::from_raw(started.pid);
    let first = if at_once { Signal::SIGKILL } else { Signal::SIGTERM };
    for signal in [first, Signal::SIGKILL] {
        if !started.is_alive() {
            return Ok(());
        }
        match kill(pid, signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(e) => {
                return Err(Error::new(
                    ErrorKind::PermissionDenied,
                    format!("process {pid} cannot be ended"),
                    e.to_string(),
                    "run it as root",
                ));
            }
        }
        let deadline = Instant::now() + at_most;
        while Instant::now() < deadline {
            if !started.is_alive() {
                return Ok(());
            }
            sleep(LOOK_EVERY).await;
        }
    }
    Err(Error::new(
        ErrorKind::DeadlineExceeded,
        format!("process {pid} does not end"),
        "the kernel has not let it go",
        "look at it with ps",
    ))
}

/// The state and the start time of a process.
fn stat(pid: i32) -> Option<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in brackets, which may hold anything.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

pub(super) fn log_length(log: &Path) -> u64 {
    fs::metadata(log).map_or(0, |m| m.len())
}

fn log_after(log: &Path, from: u64) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let from = usize::try_from(from).unwrap_or(usize::MAX).min(bytes.len());
    String::from_utf8_lossy(&bytes[from..]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_pid_and_start_time() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let (_, start_time) = stat(pid).unwrap();
        assert!(Started { pid, start_time }.is_alive());
        let another = Started {
            pid,
            start_time: start_time + 1,
        };
        assert!(!another.is_alive());
    }

    #[tokio::test]
    async fn one_that_ended_is_not_alive_though_nobody_waited_for_it() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let started = Started {
            pid,
            start_time: stat(pid).unwrap().1,
        };
        assert!(started.is_alive());
        end(&started, false, Duration::from_secs(5)).await.unwrap();
        assert!(!started.is_alive());
        child.wait().unwrap();
    }
}
