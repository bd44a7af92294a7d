//! A cluster of real processes on one machine: Redis, two controllers, two nodes that are namespaces, real guests, and the
//! real `vbm` that a person types. Needs root, Redis, QEMU and the tiny guest (`cargo xtask guest`).
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test says what it saw and what is left out, and panics when it cannot go on"
)]

#[path = "common/guest.rs"]
mod guest;

use serde_json::Value;
use std::{
    io::{Read, Write},
    process::{Child, Command, Stdio},
    time::Duration,
};
use tokio::time::Instant;
use wait_timeout::ChildExt;

/// How long a guest may take on a loaded host without KVM, in seconds.
const PATIENCE: &str = "150";
/// The longest that one command may take.
const COMMAND_MAX: Duration = Duration::from_secs(200);
/// How long a state that must come may take.
const COMES_MAX: Duration = Duration::from_secs(60);
/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// What a live migration may cost a guest that is asked all the time.
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// How soon another controller leads.
const TAKEOVER_MAX: Duration = Duration::from_secs(5);

/// A cluster; it ends with this value, and everything in it.
struct Cluster {
    place: tempfile::TempDir,
}

/// What a command said.
#[derive(Debug)]
struct Said {
    ok: bool,
    out: String,
    err: String,
}

impl Cluster {
    /// `None` when it is left out.
    fn up() -> Option<Self> {
        if guest::left_out(&["root", "redis", "qemu", "namespaces"]) {
            return None;
        }
        let cluster = Self {
            place: tempfile::Builder::new().prefix("vbm-dev-").tempdir().unwrap(),
        };
        cluster.ok(&[
            "dev",
            "up",
            "--nodes",
            "2",
            "--controllers",
            "2",
            "--driver",
            "qemu",
        ]);
        let guest = guest::guest_dir();
        cluster.ok(&["image", "import", "tiny", "--guest", guest.to_str().unwrap()]);
        cluster.ok(&["network", "create", "lan", "10.5.0.0/24"]);
        cluster.ok(&["group", "create", "ping", "icmp"]);
        Some(cluster)
    }

    fn vbm(&self, words: &[&str]) -> Said {
        finish(self.spawn(words, ""))
    }

    fn spawn(&self, words: &[&str], typed: &str) -> Child {
        let dir = self.place.path();
        let sockets = ["c1", "c2"].map(|c| dir.join(format!("{c}.sock")).display().to_string());
        let mut child = Command::new(env!("CARGO_BIN_EXE_vbm"))
            .args(words)
            .env("VBM_SOCKET", sockets.join(","))
            .env("VBM_DEV_DIR", dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A command that reads nothing has closed its end.
        drop(child.stdin.take().unwrap().write_all(typed.as_bytes()));
        child
    }

    fn ok(&self, words: &[&str]) -> String {
        let said = self.vbm(words);
        assert!(said.ok, "vbm {}: {said:?}\n{}", words.join(" "), self.logs());
        said.out
    }

    fn json(&self, words: &[&str]) -> Value {
        let words: Vec<&str> = words.iter().copied().chain(["-o", "json"]).collect();
        serde_json::from_str(&self.ok(&words)).unwrap()
    }

    /// A VM with its address on a node.
    fn launch(&self, name: &str, node: &str) -> String {
        let words = [
            "launch",
            "tiny",
            name,
            "--network",
            "lan",
            "--group",
            "ping",
            "--memory",
            "96M",
            "--node",
            node,
        ];
        self.ok(&words);
        self.ok(&["wait", name, "--for", "lease", "--timeout", PATIENCE]);
        self.address(name)
    }

    fn address(&self, name: &str) -> String {
        let vm = self.json(&["info", name]);
        vm["nics"][0]["spec"]["address"].as_str().unwrap().to_owned()
    }

    fn node_of(&self, name: &str) -> String {
        self.json(&["info", name])["spec"]["node"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    fn power(&self, name: &str) -> String {
        self.json(&["info", name])["status"]["power"]["state"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// The hypervisor's processes of a VM, on all nodes.
    fn processes(&self, name: &str) -> usize {
        let id = self.json(&["info", name])["id"].as_str().unwrap().to_owned();
        let of = |pid: std::fs::DirEntry| {
            let line = std::fs::read(pid.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            line.contains("qemu-system") && line.contains(&id)
        };
        std::fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter(|p| p.path().join("cmdline").exists())
            .filter_map(|p| of(p).then_some(()))
            .count()
    }

    /// Waits until this is so; gives how long that took.
    fn until(&self, what: &str, so: impl Fn(&Self) -> bool) -> Duration {
        let since = Instant::now();
        while !so(self) {
            assert!(
                since.elapsed() < COMES_MAX,
                "{what} did not come\n{}",
                self.logs()
            );
            std::thread::park_timeout(LOOK_EVERY);
        }
        since.elapsed()
    }

    fn node_state(&self, node: &str) -> String {
        let info = self.json(&["node", "info", node]);
        info["status"]["state"].as_str().unwrap().to_owned()
    }

    /// The controller that leads, as the first that answers tells it.
    fn leader(&self) -> Option<String> {
        let said = self.vbm(&["version", "-o", "json"]);
        let version: Value = serde_json::from_str(&said.out).ok()?;
        Some(version["vbmd"]["leader"]["name"].as_str()?.to_owned())
    }

    fn logs(&self) -> String {
        let mut all = String::new();
        for member in ["c1", "c2", "n1", "n2"] {
            let log = std::fs::read_to_string(self.place.path().join(format!("{member}.log")));
            let log = log.unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(15).collect();
            all += &format!("--- {member}\n");
            for line in tail.iter().rev() {
                all += &format!("{line}\n");
            }
        }
        all
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let said = self.vbm(&["dev", "down"]);
        assert!(said.ok || std::thread::panicking(), "{said:?}");
    }
}

fn finish(mut child: Child) -> Said {
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let read = |pipe: &mut dyn Read| {
        let mut text = Vec::new();
        drop(pipe.read_to_end(&mut text));
        String::from_utf8_lossy(&text).into_owned()
    };
    let errors = std::thread::spawn(move || {
        let mut text = Vec::new();
        drop(err.read_to_end(&mut text));
        String::from_utf8_lossy(&text).into_owned()
    });
    let watch = std::thread::spawn(move || {
        let status = child.wait_timeout(COMMAND_MAX).unwrap();
        if status.is_none() {
            drop(child.kill());
            drop(child.wait());
        }
        status.is_some_and(|s| s.success())
    });
    let out = read(&mut out);
    Said {
        ok: watch.join().unwrap(),
        out,
        err: errors.join().unwrap(),
    }
}

/// How many of the pings came back, of how many.
fn pings(said: &Said) -> (u32, u32) {
    let line = said.out.lines().find(|l| l.contains("packets transmitted"));
    let line = line.unwrap_or_else(|| panic!("no word of the pings: {said:?}"));
    let number = |before: &str| -> u32 {
        let at = line.find(before).unwrap();
        line[..at]
            .split_whitespace()
            .next_back()
            .unwrap()
            .parse()
            .unwrap()
    };
    (number("packets received"), number("packets transmitted"))
}

#[test]
fn vms_on_two_nodes_reach_each_other_and_keep_their_address_as_they_move() {
    let Some(cluster) = Cluster::up() else { return };
    let (a, _b) = (cluster.launch("a", "dev/n1"), cluster.launch("b", "dev/n2"));
    let ask = |count: u32, pause: &str| {
        let line = format!("ping -c {count} -i {pause} -W 1 {a}\n");
        cluster.spawn(
            &[
                "console",
                "b",
                "--until",
                "packets received",
                "--timeout",
                PATIENCE,
            ],
            &line,
        )
    };
    let (back, sent) = pings(&finish(ask(3, "1")));
    assert!(back >= 2, "{back} of {sent} pings came from the other node");

    // Live: a ping each 200 ms goes on across the move.
    let asking = ask(75, "0.2");
    let since = Instant::now();
    let moved = cluster.ok(&["migrate", "a", "--live", "--to", "dev/n2"]);
    let took = since.elapsed();
    let (back, sent) = pings(&finish(asking));
    let silence = Duration::from_millis(200) * (sent - back);
    println!(
        "live migration took {took:?}; {} of {sent} pings were lost: {silence:?}",
        sent - back
    );
    assert!(moved.contains("a has moved"), "{moved}");
    assert!(silence <= SILENCE_MAX, "{back} of {sent} pings came back");
    assert_eq!(
        (cluster.node_of("a"), cluster.power("a")),
        ("dev/n2".into(), "running".into())
    );
    assert_eq!(cluster.processes("a"), 1);
    assert_eq!(cluster.address("a"), a);

    // And back while it is off.
    cluster.ok(&["stop", "a", "--force"]);
    cluster.ok(&["migrate", "a"]);
    assert_eq!(cluster.node_of("a"), "dev/n1");
    cluster.ok(&["start", "a"]);
    cluster.ok(&["wait", "a", "--for", "lease", "--timeout", PATIENCE]);
    assert_eq!(cluster.address("a"), a);
    let (back, sent) = pings(&finish(ask(3, "1")));
    assert!(back >= 2, "{back} of {sent} pings came after the move at rest");
}

#[test]
fn a_cluster_outlives_its_leader_its_agents_its_cables_and_its_redis() {
    let Some(cluster) = Cluster::up() else { return };
    cluster.launch("a", "dev/n1");

    // The leader is killed while a launch is under way.
    let leader = cluster.leader().unwrap();
    let (dies, lives) = if cluster.vbm(&["dev", "status", "-o", "json"]).ok && leads(&cluster, "c1") {
        ("c1", "c2")
    } else {
        ("c2", "c1")
    };
    cluster.ok(&[
        "launch", "tiny", "b", "--node", "dev/n2", "--memory", "96M", "--async",
    ]);
    cluster.ok(&["dev", "kill", dies]);
    let took = cluster.until("another leader", |c| c.leader().is_some_and(|l| l != leader));
    println!("{lives} leads {took:?} after {dies} was killed");
    assert!(took <= TAKEOVER_MAX, "{took:?}");
    cluster.ok(&["wait", "b", "--for", "running", "--timeout", PATIENCE]);
    cluster.ok(&["dev", "start", dies]);

    // An agent is killed: its VMs run on, are shown as such, and are adopted.
    cluster.ok(&["dev", "kill", "n1"]);
    cluster.until("a lost node", |c| c.node_state("dev/n1") == "lost");
    assert_eq!(
        (cluster.power("a").as_str(), cluster.processes("a")),
        ("unknown", 1)
    );
    let refused = cluster.vbm(&["migrate", "a", "--to", "dev/n2"]);
    assert!(
        !refused.ok && refused.err.contains("could run twice"),
        "{refused:?}"
    );
    cluster.ok(&["dev", "start", "n1"]);
    cluster.until("the adopted VM", |c| c.power("a") == "running");
    assert_eq!(cluster.processes("a"), 1);

    // A node is cut off: it is lost, with the reason; nothing is started twice.
    cluster.ok(&["dev", "cut", "n2"]);
    cluster.until("a lost node", |c| c.node_state("dev/n2") == "lost");
    let info = cluster.ok(&["node", "info", "dev/n2"]);
    assert!(info.contains("has not reported itself"), "{info}");
    assert_eq!(
        (cluster.power("b").as_str(), cluster.processes("b")),
        ("unknown", 1)
    );
    cluster.ok(&["dev", "mend", "n2"]);
    let took = cluster.until("the node again", |c| c.power("b") == "running");
    println!("a node that was cut off is known again after {took:?}");
    assert_eq!(cluster.processes("b"), 1);

    // Redis is killed: what was acknowledged is there, and everything goes on.
    cluster.ok(&["group", "create", "kept", "tcp/80"]);
    cluster.ok(&["dev", "kill", "redis"]);
    cluster.ok(&["dev", "start", "redis"]);
    cluster.until("the cluster's answer", |c| c.vbm(&["list"]).ok);
    assert!(cluster.ok(&["group", "list"]).contains("kept"));
    cluster.until("nodes that are ready", |c| {
        ["dev/n1", "dev/n2"].iter().all(|n| c.node_state(n) == "ready")
    });
    cluster.ok(&["launch", "tiny", "c", "--memory", "96M"]);
    assert_eq!((cluster.processes("a"), cluster.processes("b")), (1, 1));
}

/// Whether this member leads.
fn leads(cluster: &Cluster, member: &str) -> bool {
    let socket = cluster.place.path().join(format!("{member}.sock"));
    let words = ["version", "--socket", socket.to_str().unwrap(), "-o", "json"];
    let version: Value = serde_json::from_str(&cluster.vbm(&words).out).unwrap();
    let vbmd = &version["vbmd"];
    vbmd["leader"]["name"] == vbmd["controller"] && vbmd["controller"].is_string()
}
