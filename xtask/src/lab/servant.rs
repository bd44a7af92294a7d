//! A program that runs beside the story: Redis, the controller. It ends with us, and before us when it is dropped.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::machine::{lines_of, pause};
use crate::demo::{Interrupts, typed};
use crate::fault::{Done, Fault};
use crate::run;

const LOOK_EVERY: Duration = Duration::from_millis(50);
/// From SIGTERM to the end; then it is killed.
const END_WITHIN: Duration = Duration::from_secs(15);
const QUOTED_LINES: usize = 12;

/// A running program, and the file with all it says.
pub(super) struct Servant {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Servant {
    /// Starts it, and waits until its words contain `ready`.
    pub(super) fn start(
        command: Command,
        log: &Path,
        ready: &str,
        limit: Duration,
        interrupts: &Interrupts,
    ) -> Done<Self> {
        let name = run::shown(&command);
        let file = File::create(log).map_err(|error| Fault::file("create", log, &error))?;
        let both = file
            .try_clone()
            .map_err(|error| Fault::file("open", log, &error))?;
        let mut command = typed::bound(command);
        command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(both)
            .process_group(0);
        let child = command
            .spawn()
            .map_err(|error| run::not_started(&command, &error))?;
        let mut servant = Self {
            name,
            child,
            log: log.to_owned(),
        };
        let deadline = Instant::now() + limit;
        while !servant.said(ready) {
            if !matches!(servant.child.try_wait(), Ok(None)) {
                return Err(servant.fault("has ended instead of being ready"));
            }
            if Instant::now() > deadline {
                return Err(servant.fault("is not ready in time"));
            }
            pause(interrupts, LOOK_EVERY)?;
        }
        Ok(servant)
    }

    /// Whether its words contain this.
    pub(super) fn said(&self, text: &str) -> bool {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).contains(text)
    }

    /// The last of what it said.
    pub(super) fn last_words(&self) -> Vec<String> {
        let lines = lines_of(&self.log);
        let from = lines.len().saturating_sub(QUOTED_LINES);
        lines.get(from..).unwrap_or_default().to_vec()
    }

    fn fault(&self, what: &str) -> Fault {
        Fault::new(
            format!("`{}` {what}", self.name),
            self.last_words().join("\n       | "),
            format!("all it said is in {}", self.log.display()),
        )
    }

    /// Asks it to end and waits; one that does not is killed, which is a fault.
    pub(super) fn end(&mut self) -> Done {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return Ok(());
        }
        // It may have ended in between; waiting tells.
        drop(run::capture(
            Command::new("kill").args(["-TERM", &self.child.id().to_string()]),
        ));
        let deadline = Instant::now() + END_WITHIN;
        let deaf = Interrupts::default();
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                drop(self.child.kill());
                drop(self.child.wait());
                return Err(self.fault("did not end when asked to"));
            }
            pause(&deaf, LOOK_EVERY)?;
        }
        Ok(())
    }
}

impl Drop for Servant {
    fn drop(&mut self) {
        if let Err(fault) = self.end() {
            crate::say::fault(&fault);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, log: &Path) -> Done<Servant> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Servant::start(
            command,
            log,
            "ready",
            Duration::from_secs(10),
            &Interrupts::default(),
        )
    }

    #[test]
    fn a_servant_is_waited_for_and_ends_when_asked() {
        let log = std::env::temp_dir().join(format!("vbm-xtask-servant-{}", std::process::id()));
        let mut servant = sh("echo hello; echo ready; exec sleep 60", &log).unwrap();
        assert!(servant.said("hello"));
        servant.end().unwrap();
        servant.end().unwrap();
        let fault = sh("echo no way; exit 3", &log).err().unwrap();
        assert!(
            fault.what.contains("has ended") && fault.why.contains("no way"),
            "{fault}"
        );
        std::fs::remove_file(&log).unwrap();
    }
}
