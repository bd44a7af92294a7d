//! Snapshots and saved memory of a real guest, typed at the real `vbm` against a real `vbmd` that is killed meanwhile.
//! Needs QEMU and the tiny guest (`cargo xtask guest`).
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test says what is left out, and panics when it cannot go on"
)]

mod cli;
#[path = "common/guest.rs"]
mod guest;

use cli::Daemon;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::time::Duration;

/// What the guest says once it hears.
const READY: &str = "vbm-guest ready";
/// Moments of a way back at which the daemon is killed. Whatever was done by then, the end is the same.
const MOMENTS_MILLIS: &[u64] = &[0, 30, 80, 150, 300, 600];
/// How long a guest may take on a loaded host without KVM, in seconds.
const PATIENCE: &str = "150";

/// A host with a guest that has booted. Its processes end with it.
struct Host {
    daemon: Daemon,
}

impl Host {
    fn with_guest() -> Self {
        let mut host = Self {
            daemon: Daemon::without_start(),
        };
        host.go();
        let guest = guest::guest_dir();
        host.daemon
            .ok(&["image", "import", "tiny", "--guest", guest.to_str().unwrap()]);
        host.daemon
            .ok(&["launch", "tiny", "web1", "--memory", "96M", "--timeout", PATIENCE]);
        host.daemon
            .ok(&["console", "web1", "--until", READY, "--timeout", PATIENCE]);
        host
    }

    fn go(&mut self) {
        self.daemon.go_with(&["--driver", "qemu"], None);
    }

    /// As a crash of the daemon does: its VMs run on.
    fn crash(&mut self) {
        self.daemon.kill();
        self.go();
    }

    /// Types a line and gives what comes after `head` in its answer.
    fn ask(&self, line: &str, head: &str, tail: &str) -> String {
        let typed = format!("{line}\n");
        let words = ["console", "web1", "--until", tail, "--timeout", PATIENCE];
        let said = self.daemon.vbm_typed(&words, &typed);
        let found = said.out.lines().map(str::trim).rfind(|l| l.starts_with(head));
        let found = found.unwrap_or_else(|| panic!("{line}: {said:?}"));
        found[head.len()..].trim_end_matches(tail).to_owned()
    }

    /// Puts a word on its disk and one into its memory.
    fn keep(&self, word: &str) {
        let line = format!(
            "M={word}; echo {word} | dd of=/dev/vda seek=100 bs=512 count=1 conv=notrunc,sync,fsync 2>/dev/null; echo \"kept\"={word}\"#\"{word}"
        );
        self.ask(&line, "kept=", &format!("#{word}"));
    }

    /// What is on its disk and in its memory.
    fn holds(&self) -> String {
        let tag = uuid::Uuid::now_v7().simple().to_string();
        let (a, b) = tag.split_at(16);
        let line = format!(
            "echo \"held\"=$(dd if=/dev/vda skip=100 bs=512 count=1 2>/dev/null | head -n1)/$M\"#\"{a}\"\"{b}"
        );
        self.ask(&line, "held=", &format!("#{tag}"))
    }

    fn pid(&self) -> i64 {
        self.daemon.json(&["info", "web1"])["status"]["pid"]
            .as_i64()
            .unwrap()
    }

    fn state(&self) -> String {
        self.daemon.json(&["info", "web1"])["status"]["power"]["state"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// The processes of its VMs, by its own directory in their command line.
    fn processes(&self) -> Vec<i32> {
        let place = self.daemon.place.path().to_str().unwrap().as_bytes().to_owned();
        let of = |entry: std::fs::DirEntry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let line = std::fs::read(entry.path().join("cmdline")).ok()?;
            let program = line.split(|b| *b == 0).next()?;
            let qemu = program.windows(4).any(|w| w == b"qemu");
            let ours = line.windows(place.len()).any(|w| w == place);
            (qemu && ours).then_some(pid)
        };
        let all = std::fs::read_dir("/proc").unwrap();
        all.filter_map(|entry| of(entry.ok()?)).collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for pid in self.processes() {
            let _ended: nix::Result<()> = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

#[test]
fn a_guest_goes_back_to_its_disk_and_its_memory_however_often_its_daemon_is_killed() {
    if guest::left_out(&["qemu"]) {
        return;
    }
    let mut host = Host::with_guest();
    host.keep("before");
    let asked = host
        .daemon
        .json(&["snapshot", "create", "web1", "base", "--async"]);
    host.crash();
    let id = asked["id"].as_str().unwrap();
    host.daemon.ok(&["operation", "wait", id, "--timeout", PATIENCE]);
    let taken = host.daemon.json(&["snapshot", "info", "web1", "base"]);
    assert_eq!(taken["status"]["content"], "disk-and-memory");
    println!(
        "halted for {} ms",
        taken["status"]["paused_micros"].as_u64().unwrap() / 1_000
    );
    host.keep("after");
    assert_eq!(host.holds(), "after/after");

    for moment in MOMENTS_MILLIS {
        let asked = host
            .daemon
            .json(&["snapshot", "revert", "web1", "base", "--async"]);
        std::thread::park_timeout(Duration::from_millis(*moment));
        host.crash();
        let id = asked["id"].as_str().unwrap();
        host.daemon.ok(&["operation", "wait", id, "--timeout", PATIENCE]);
        assert_eq!(host.state(), "running", "killed after {moment} ms");
        assert_eq!(host.holds(), "before/before", "killed after {moment} ms");
        host.keep("after");
    }

    // It is there: another crash does not take it back once more.
    host.keep("later");
    let pid = host.pid();
    host.crash();
    host.daemon.ok(&["wait", "web1", "--for", "running"]);
    assert_eq!((host.pid(), host.holds()), (pid, "later/later".into()));
    host.daemon.ok(&["snapshot", "delete", "web1", "base"]);
    assert_eq!(host.holds(), "later/later");
    host.daemon.ok(&["delete", "web1", "--force"]);
    assert!(host.processes().is_empty());
}

#[test]
fn a_guest_is_saved_and_goes_on_under_another_daemon() {
    if guest::left_out(&["qemu"]) {
        return;
    }
    let mut host = Host::with_guest();
    host.keep("kept");
    assert_eq!(host.daemon.ok(&["save", "web1"]), "web1 is saved\n");
    assert!(host.processes().is_empty(), "a saved VM holds no process");
    host.crash();
    assert_eq!(host.state(), "saved");
    assert_eq!(host.daemon.ok(&["start", "web1"]), "web1 is running\n");
    assert_eq!(host.holds(), "kept/kept");
    host.daemon.ok(&["save", "web1"]);
    host.daemon.ok(&["discard", "web1"]);
    assert_eq!(host.state(), "off");
    host.daemon.ok(&["delete", "web1"]);
}
