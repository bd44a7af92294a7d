//! Every example is run, and says what it should.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test says what is left out, and panics when it cannot go on"
)]

use std::{path::Path, process::Command};

fn left_out(what: &[&str]) -> bool {
    let named = std::env::var("VBM_LEAVE_OUT").unwrap_or_default();
    let hit = what.iter().find(|w| named.split(',').any(|n| n.trim() == **w));
    if let Some(hit) = hit {
        println!("LEFT OUT: this example needs {hit}, and VBM_LEAVE_OUT names it");
    }
    hit.is_some()
}

/// The tiny guest; `cargo xtask test` makes it and says where it is.
fn guest() -> std::path::PathBuf {
    let dir = std::env::var("VBM_GUEST_DIR").expect("VBM_GUEST_DIR names no tiny guest: run `cargo xtask guest` and name its directory, or set VBM_LEAVE_OUT=qemu");
    Path::new(&dir).to_owned()
}

fn run(program: &str, args: &[&Path], expected: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{program} failed:\n{said}");
    for text in expected {
        assert!(said.contains(text), "{program} did not say '{text}':\n{said}");
    }
}

#[test]
fn launch_a_vm() {
    if !left_out(&["root", "namespaces", "qemu"]) {
        run(
            env!("CARGO_BIN_EXE_01-launch-a-vm"),
            &[&guest().join("guest.qcow2")],
            &["web runs and took 10.0.0.2 by DHCP"],
        );
    }
}

#[test]
fn rpc_alone() {
    let expected = [
        "one node answers: 10",
        "any below a scope: 20",
        "eu/rack2/b says 20",
        "nobody there, known at once",
    ];
    run(env!("CARGO_BIN_EXE_02-rpc-alone"), &[], &expected);
}

#[test]
fn network_with_dhcp() {
    if !left_out(&["root", "namespaces"]) {
        run(
            env!("CARGO_BIN_EXE_03-network-with-dhcp"),
            &[],
            &["leased: 10.20.0.2"],
        );
    }
}

#[test]
fn driver_alone() {
    if !left_out(&["qemu"]) {
        run(
            env!("CARGO_BIN_EXE_04-driver-alone"),
            &[&guest()],
            &["the guest says: vbm-guest ready", "asked to shut down: Off"],
        );
    }
}

#[test]
fn own_driver() {
    run(
        env!("CARGO_BIN_EXE_17-own-driver"),
        &[],
        &["a machine of its own kind: running", "asked to shut down: true"],
    );
}

#[test]
fn snapshot_tree() {
    run(
        env!("CARGO_BIN_EXE_18-snapshot-tree"),
        &[],
        &[
            "patched: with memory",
            "   other (frozen)  <- here",
            "back at patched: the disk says 'patched'",
            "base is gone, 2 are left",
            "other, as files: 1",
        ],
    );
}

/// A Redis of a test's own on a socket in a temporary folder; gone with its handle.
struct Redis {
    child: std::process::Child,
    dir: tempfile::TempDir,
}

impl Redis {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("redis-server");
        command
            .args(["--port", "0", "--unixsocket", "redis.sock", "--save", "", "--dir"])
            .arg(dir.path());
        command
            .current_dir(dir.path())
            .stdout(std::process::Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| {
            panic!("this test needs redis-server ({error}): install it, or set VBM_LEAVE_OUT=redis")
        });
        let output = std::io::BufReader::new(child.stdout.take().unwrap());
        let mut lines = std::io::BufRead::lines(output).map_while(Result::ok);
        let ready = lines.any(|line| line.to_lowercase().contains("ready to accept connections"));
        // Reads on, so that the server never writes into a closed pipe; ends with it.
        std::thread::spawn(move || lines.for_each(drop));
        assert!(ready, "redis-server did not start");
        Self { child, dir }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Runs an example of the bus in memory, and on Redis.
fn run_on_both(program: &str, expected: &[&str]) {
    run(program, &[], expected);
    if !left_out(&["redis"]) {
        let redis = Redis::start();
        let url = format!("redis+unix://{}", redis.dir.path().join("redis.sock").display());
        run(program, &[Path::new("--redis"), Path::new(&url)], expected);
    }
}

#[test]
fn rpc_call() {
    let expected = [
        "84 / 2 = 42",
        "refused, and not repeated: the divisor is 0",
        "after some tries: no route to node lab/nobody",
        r#"{side="server",method="example.divide",fate="done"} 1"#,
    ];
    run_on_both(env!("CARGO_BIN_EXE_05-rpc-call"), &expected);
}

#[test]
fn rpc_broadcast() {
    let expected = [
        "below eu: 60, silent: []",
        "below eu/rack1: 30, silent: []",
        "below /: 100, silent: [",
        "us/rack1/e",
        "a quorum of 2 is enough",
    ];
    run_on_both(env!("CARGO_BIN_EXE_06-rpc-broadcast"), &expected);
}

#[test]
fn rpc_worker_pool() {
    let expected = ["dies", "60 of 60 tasks are done"];
    run_on_both(env!("CARGO_BIN_EXE_07-rpc-worker-pool"), &expected);
}

#[test]
fn rpc_leader_election() {
    let expected = [
        "on by order of house/one under epoch 1",
        "the leader is gone",
        "off by order of house/two under epoch 2",
        "the old leader is refused",
    ];
    run_on_both(env!("CARGO_BIN_EXE_08-rpc-leader-election"), &expected);
}

#[test]
fn rpc_submit() {
    let expected = [
        "the submitter is gone, its ticket is a line of",
        "polled: lab/worker is at it",
        "awaited by another process: 4096 bytes",
        "called back: 4096 bytes",
        "no ticket without a receiver: no route to node lab/nobody",
        "cancelled by whoever holds the ticket",
    ];
    run_on_both(env!("CARGO_BIN_EXE_09-rpc-submit"), &expected);
}

#[test]
fn rpc_streaming() {
    let expected = [
        "1000 lines in order, the end says Some(1000)",
        "unread, the sender stops after 64 lines",
        "the reader left, and so does the sender",
        "no route to node lab/nobody",
    ];
    run_on_both(env!("CARGO_BIN_EXE_10-rpc-streaming"), &expected);
}

/// Runs an example that makes namespaces, and sees to it that none of its own is left.
fn run_in_namespaces(program: &str, expected: &[&str]) {
    if left_out(&["root", "namespaces"]) {
        return;
    }
    let child = Command::new(program).stdout(std::process::Stdio::piped()).spawn();
    let child = child.unwrap();
    let pid = child.id();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{program} failed: {said}");
    for text in expected {
        assert!(said.contains(text), "{program} did not say '{text}':\n{said}");
    }
    let listed = Command::new("ip").args(["netns", "list"]).output().unwrap();
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let its = |line: &&str| {
        line.starts_with("vbmex-")
            && line
                .split(' ')
                .next()
                .is_some_and(|n| n.ends_with(&format!("-{pid}")))
    };
    assert_eq!(listed.lines().filter(its).collect::<Vec<_>>(), Vec::<&str>::new());
}

#[test]
fn dhcp_server_alone() {
    let expected = [
        "leases that were kept: 0",
        "leased a first time: 10.30.0.1",
        "leases that were kept: 1",
        "leased by a server that was started anew: 10.30.0.1",
    ];
    run_in_namespaces(env!("CARGO_BIN_EXE_11-dhcp-server-alone"), &expected);
}

#[test]
fn nat() {
    let expected = [
        "the guest reaches the world",
        "the world does not reach 10.31.0.2",
        "192.0.2.50 leads to the guest",
        "port 8080 of the host says: hello",
        "changes on a second look: 0",
    ];
    run_in_namespaces(env!("CARGO_BIN_EXE_12-nat"), &expected);
}

#[test]
fn security_groups() {
    let expected = [
        "no group: the web server does not, the other does not",
        "ping from web: the web server reaches it, the other does not",
        "both are web: the web server reaches it, the other reaches it",
        "taken away: the web server does not, the other does not",
    ];
    run_in_namespaces(env!("CARGO_BIN_EXE_13-security-groups"), &expected);
}

#[test]
fn overlay() {
    let expected = [
        "198.18.0.1: MTU 1450",
        "198.18.0.2: MTU 1450",
        "a guest of one host reaches 10.33.0.3 on the other",
    ];
    run_in_namespaces(env!("CARGO_BIN_EXE_14-overlay"), &expected);
}
