//! A `vbmd` of simulated VMs and networks for each test, and the real `vbm` to talk to it. Needs neither root nor
//! QEMU; everything of it is in a temporary directory and ends with the test.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use nix::sys::signal::{Signal, kill};
use std::{
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    time::Duration,
};
use tempfile::TempDir;

/// How long a daemon may take to say that it is ready.
const READY_MAX: Duration = Duration::from_secs(30);

/// How long a daemon may take to end.
const END_MAX: Duration = Duration::from_secs(20);
/// Where daemons that run as root are listed; those of others are listed beside their data.
const ROOT_REGISTRY: &str = "/run/vbm/instances";

/// A daemon; it ends with this value.
pub(crate) struct Daemon {
    pub(crate) place: TempDir,
    child: Option<Child>,
}

impl Daemon {
    pub(crate) fn start() -> Self {
        let mut daemon = Self::without_start();
        daemon.go();
        daemon
    }

    /// A place for a daemon that is started later.
    pub(crate) fn without_start() -> Self {
        let place = tempfile::Builder::new().prefix("vbm-cli-").tempdir().unwrap();
        Self { place, child: None }
    }

    /// Starts it on the data that is there.
    pub(crate) fn go(&mut self) {
        self.go_with(&["--driver", "sim"], None);
    }

    /// The same with another driver, and with another search path for programs.
    pub(crate) fn go_with(&mut self, driver: &[&str], search_path: Option<&Path>) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vbmd"));
        if let Some(path) = search_path {
            command.env("PATH", path);
        }
        let mut child = command
            .args(driver)
            .args(["--network", "sim", "--ephemeral"])
            .arg("--data-dir")
            .arg(self.path("data"))
            .arg("--run-dir")
            .arg(self.path("run"))
            .arg("--socket")
            .arg(self.socket())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(self.path("log")).unwrap())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        self.child = Some(child);
        let (tell, told) = mpsc::channel();
        // Ends with the daemon, whose stdout it reads.
        std::thread::spawn(move || {
            stdout
                .lines()
                .map_while(Result::ok)
                .for_each(|line| drop(tell.send(line)))
        });
        let line = told.recv_timeout(READY_MAX);
        assert!(
            line.as_ref().is_ok_and(|l| l.starts_with("vbmd ready")),
            "{line:?}\n{}",
            self.log()
        );
    }

    /// Ends it at once, as a crash does.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("vbmd.sock")
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// `vbm` with these words.
    pub(crate) fn vbm(&self, words: &[&str]) -> Said {
        vbm_at(&self.socket(), words, "")
    }

    /// The same, with this typed in.
    pub(crate) fn vbm_typed(&self, words: &[&str], typed: &str) -> Said {
        vbm_at(&self.socket(), words, typed)
    }

    /// What a command that succeeds prints.
    pub(crate) fn ok(&self, words: &[&str]) -> String {
        let said = self.vbm(words);
        assert_eq!(
            said.code,
            0,
            "vbm {words:?}\n{}{}\n{}",
            said.out,
            said.err,
            self.log()
        );
        said.out
    }

    /// The same as JSON.
    pub(crate) fn json(&self, words: &[&str]) -> serde_json::Value {
        let text = self.ok(&[words, &["-o", "json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("vbm {words:?}: {e}\n{text}"))
    }

    /// An image `tiny`, a network `lan`, a group `web`.
    pub(crate) fn furnish(&self) {
        std::fs::write(self.path("disk.raw"), vec![0; 1 << 20]).unwrap();
        let disk = self.path("disk.raw");
        self.ok(&["image", "import", "tiny", "--disk", disk.to_str().unwrap()]);
        self.ok(&["network", "create", "lan", "10.0.0.0/24"]);
        self.ok(&["group", "create", "web", "tcp/80", "icmp"]);
    }

    /// Everything that there is: compared to see that a refused command left nothing half-made.
    pub(crate) fn inventory(&self) -> serde_json::Value {
        [
            "list",
            "network list",
            "port list",
            "group list",
            "forward list",
            "volume list",
            "image list",
        ]
        .map(|command| self.json(&command.split(' ').collect::<Vec<_>>()))
        .into()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
        // A daemon whose VMs are still there stays listed for `vbm doctor`; these VMs were simulated and are gone.
        let tag = std::fs::read_to_string(self.path("data/instance")).unwrap_or_default();
        if !tag.trim().is_empty() {
            drop(std::fs::remove_file(
                Path::new(ROOT_REGISTRY).join(format!("{}.json", tag.trim())),
            ));
        }
    }
}

impl Daemon {
    /// Ends it by the signal that it ends in order on; by force when it does not.
    fn end(&mut self) {
        if let Some(mut child) = self.child.take() {
            let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap_or_default());
            let _sent: nix::Result<()> = kill(pid, Signal::SIGTERM);
            let (tell, told) = mpsc::channel();
            let ended = std::thread::spawn(move || {
                let gone = told.recv_timeout(END_MAX).is_ok();
                if !gone {
                    let _sent: nix::Result<()> = kill(pid, Signal::SIGKILL);
                }
            });
            drop(child.wait());
            let _heard: Result<(), _> = tell.send(());
            drop(ended.join());
        }
    }
}

/// What a command said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    /// Three lines and this exit code; else what is there instead.
    pub(crate) fn refusal(&self, code: i32) -> Result<(), String> {
        let lines: Vec<&str> = self.err.lines().collect();
        let told = |(line, head): (&&str, &str)| {
            line.strip_prefix(head)
                .is_some_and(|text| !text.trim().is_empty())
        };
        let good = lines.len() == 3 && lines.iter().zip(["error: ", "  why: ", "  fix: "]).all(told);
        if self.code == code && good && self.out.is_empty() {
            return Ok(());
        }
        Err(format!(
            "exit code {} where {code} was expected\n{}{}",
            self.code, self.out, self.err
        ))
    }

    /// The same as an assertion; gives the headline.
    pub(crate) fn refused(&self, code: i32) -> &str {
        self.refusal(code).unwrap();
        self.err.lines().next().unwrap_or_default()
    }
}

pub(crate) fn vbm_at(socket: &Path, words: &[&str], typed: &str) -> Said {
    let mut child = Command::new(env!("CARGO_BIN_EXE_vbm"))
        .args(words)
        .env("VBM_SOCKET", socket)
        .env("XDG_CACHE_HOME", socket.with_file_name("cache"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that reads nothing may have ended before.
    drop(child.stdin.take().unwrap().write_all(typed.as_bytes()));
    let Output {
        status,
        stdout,
        stderr,
    } = child.wait_with_output().unwrap();
    Said {
        code: status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&stdout).into_owned(),
        err: String::from_utf8_lossy(&stderr).into_owned(),
    }
}

/// A `vbm` that runs beside the test; it ends with this value.
pub(crate) struct Beside(Child);

impl Beside {
    pub(crate) fn start(daemon: &Daemon, words: &[&str]) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_vbm"))
            .args(words)
            .env("VBM_SOCKET", daemon.socket())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }

    /// Its output, line by line.
    pub(crate) fn lines(&mut self) -> impl Iterator<Item = String> + use<> {
        BufReader::new(self.0.stdout.take().unwrap())
            .lines()
            .map_while(Result::ok)
    }

    /// Its output to its end.
    pub(crate) fn rest(&mut self) -> String {
        let mut text = String::new();
        self.0.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
