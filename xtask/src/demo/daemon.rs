//! `vbmd` as a child of the demo.
//!
//! It runs in a process group of its own, so that ^C does not reach it before the demo has cleared up, and the kernel
//! kills it when the demo is killed (`setpriv --pdeathsig`): as it is ephemeral, `vbm doctor --fix` then clears up.
//! Its log goes to a file.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use super::typed::{self, Output};
use crate::fault::{Done, Fault};
use crate::run;

/// From start to `vbmd ready`: it probes the accelerator, opens its store, sweeps what is left of a former life.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// From SIGTERM to the end, with a VM to shut down.
pub(super) const STOP_WITHIN: Duration = Duration::from_secs(40);
const KILL_WITHIN: Duration = Duration::from_secs(5);
const READY: &str = "vbmd ready";
/// In the line that says so: what everything is tagged with that it makes on the host.
const INSTANCE: &str = "instance=";

/// How it is started, each time in the same way.
#[derive(Debug, Clone)]
pub(super) struct Recipe {
    pub(super) program: PathBuf,
    pub(super) data_dir: PathBuf,
    pub(super) socket: PathBuf,
    pub(super) log: PathBuf,
}

impl Recipe {
    fn args(&self) -> Vec<String> {
        vec![
            "--data-dir".to_owned(),
            self.data_dir.display().to_string(),
            "--socket".to_owned(),
            self.socket.display().to_string(),
            "--ephemeral".to_owned(),
            "--web".to_owned(),
            "127.0.0.1:0".to_owned(),
        ]
    }

    /// As one would type it.
    pub(super) fn line(&self) -> String {
        format!("vbmd {} &", self.args().join(" "))
    }

    fn command(&self) -> Done<Command> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .map_err(|error| Fault::file("open", &self.log, &error))?;
        let mut command = typed::bound(Command::new(&self.program));
        command
            .args(self.args())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .process_group(0);
        Ok(command)
    }
}

enum News {
    Line(String),
    Ended(ExitStatus),
}

/// A running `vbmd`.
pub(super) struct Daemon {
    pub(super) pid: u32,
    pub(super) instance: String,
    news: Receiver<News>,
    ended: Option<ExitStatus>,
}

impl Daemon {
    /// Starts it and waits until it serves.
    pub(super) fn start(recipe: &Recipe) -> Done<Self> {
        let mut command = recipe.command()?;
        // From the main thread: the kernel's word about our death is bound to the thread that starts it.
        let mut child = command
            .spawn()
            .map_err(|error| run::not_started(&command, &error))?;
        let (tell, news) = channel();
        if let Some(pipe) = child.stdout.take() {
            let tell = tell.clone();
            // Both threads end with the daemon.
            std::thread::spawn(move || tell_lines(BufReader::new(pipe), &tell));
        }
        let mut daemon = Self {
            pid: child.id(),
            instance: String::new(),
            news,
            ended: None,
        };
        std::thread::spawn(move || {
            if let Ok(status) = child.wait() {
                // Nobody may listen any more.
                drop(tell.send(News::Ended(status)));
            }
        });
        match daemon.wait_ready() {
            Ok(()) => Ok(daemon),
            Err(why) => {
                drop(daemon.kill());
                Err(Fault::new(
                    "vbmd did not come up",
                    why,
                    format!("see the end of its log: {}", recipe.log.display()),
                ))
            }
        }
    }

    fn wait_ready(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            match self
                .news
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(News::Line(line)) if line.starts_with(READY) => {
                    let mut words = line.split_whitespace();
                    self.instance = words
                        .find_map(|word| word.strip_prefix(INSTANCE))
                        .unwrap_or_default()
                        .to_owned();
                    return Ok(());
                }
                Ok(News::Line(_)) => {}
                Ok(News::Ended(status)) => {
                    self.ended = Some(status);
                    return Err(format!("it ended: {status}"));
                }
                Err(_) => {
                    return Err(format!(
                        "it did not say `{READY}` within {} s",
                        READY_WITHIN.as_secs()
                    ));
                }
            }
        }
    }

    /// SIGTERM; gives how it ended.
    pub(super) fn stop(&mut self) -> Done<ExitStatus> {
        self.signal("TERM");
        self.wait_end(STOP_WITHIN)
    }

    /// SIGKILL, as a crash would be.
    pub(super) fn kill(&mut self) -> Done<ExitStatus> {
        self.signal("KILL");
        self.wait_end(KILL_WITHIN)
    }

    pub(super) fn is_running(&mut self) -> bool {
        while let Ok(news) = self.news.try_recv() {
            if let News::Ended(status) = news {
                self.ended = Some(status);
            }
        }
        self.ended.is_none()
    }

    fn signal(&mut self, name: &str) {
        if self.is_running() {
            let line = format!("kill -{name} {}", self.pid);
            // It may have ended by itself in between; waiting tells.
            drop(typed::run(
                Command::new("sh").args(["-c", &line]),
                &line,
                Output::Both,
                KILL_WITHIN,
                None,
            ));
        }
    }

    fn wait_end(&mut self, limit: Duration) -> Done<ExitStatus> {
        let deadline = Instant::now() + limit;
        while self.ended.is_none() {
            match self
                .news
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(News::Ended(status)) => self.ended = Some(status),
                Ok(News::Line(_)) => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
        self.ended.ok_or_else(|| {
            Fault::new(
                format!("vbmd (pid {}) did not end within {} s", self.pid, limit.as_secs()),
                "it was asked to by a signal",
                "see its log for what it waits for",
            )
        })
    }
}

fn tell_lines(reader: impl std::io::Read, tell: &Sender<News>) {
    for line in BufReader::new(reader).lines().map_while(Result::ok) {
        if tell.send(News::Line(line)).is_err() {
            return;
        }
    }
}

/// The last lines of a log, for somebody who looks for a cause.
pub(super) fn log_tail(log: &Path, lines: usize) -> Vec<String> {
    let bytes = std::fs::read(log).unwrap_or_default();
    super::facts::trimmed(&String::from_utf8_lossy(&bytes), lines, super::facts::Keep::Last)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    struct Fake(PathBuf);

    impl Fake {
        fn new(name: &str, script: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("vbm-xtask-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&dir).unwrap();
            let program = dir.join("vbmd");
            std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
            Self(dir)
        }

        fn recipe(&self) -> Recipe {
            Recipe {
                program: self.0.join("vbmd"),
                data_dir: self.0.join("data"),
                socket: self.0.join("sock"),
                log: self.0.join("log"),
            }
        }
    }

    impl Drop for Fake {
        fn drop(&mut self) {
            drop(std::fs::remove_dir_all(&self.0));
        }
    }

    #[test]
    fn a_daemon_is_ready_when_it_says_so_and_stops_when_asked() {
        let fake = Fake::new(
            "ready",
            "trap 'exit 0' TERM; echo booting; echo \"vbmd ready socket=$4 instance=0123abcd\"; while :; do read x <&- ; sleep 0.1; done",
        );
        let mut daemon = Daemon::start(&fake.recipe()).unwrap();
        assert!(daemon.is_running());
        assert_eq!(daemon.instance, "0123abcd");
        assert_eq!(daemon.stop().unwrap().code(), Some(0));
        assert!(!daemon.is_running());
        assert_eq!(daemon.stop().unwrap().code(), Some(0));
    }

    #[test]
    fn a_daemon_that_ends_early_is_a_fault_and_its_log_is_kept() {
        let fake = Fake::new("early", "echo 'error: the socket is taken' >&2; exit 4");
        let fault = Daemon::start(&fake.recipe()).err().unwrap();
        assert!(fault.why.contains("exit status: 4"), "{fault}");
        assert_eq!(log_tail(&fake.recipe().log, 5), ["error: the socket is taken"]);
    }

    #[test]
    fn a_killed_daemon_is_seen_to_be_gone() {
        let fake = Fake::new("killed", "echo vbmd ready; exec sleep 60");
        let mut daemon = Daemon::start(&fake.recipe()).unwrap();
        assert_eq!(daemon.kill().unwrap().code(), None);
        assert!(!daemon.is_running());
    }

    #[test]
    fn the_line_to_type_names_what_is_special_about_it() {
        let fake = Fake::new("line", "");
        assert!(
            fake.recipe()
                .line()
                .ends_with("/sock --ephemeral --web 127.0.0.1:0 &")
        );
    }
}
