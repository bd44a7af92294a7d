//! A DHCP server alone and its clients: two namespaces, a wire between, and all frames of it in a file for another decoder.
//!
//! ```text
//!   server's namespace: srv0 10.5.0.1 ==== veth ==== eth0 :client's namespace
//!                        |                            ^
//!                        +-- DhcpServer               every frame, as it arrives --> pcap --> tshark
//! ```

#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::cast_possible_truncation, reason = "test values are small")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on panics, and says what it leaves out"
)]

use crate::common::{self, Kid, Ns, packet};
use std::{
    io::Write as _,
    net::Ipv4Addr,
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};
use vbm_core::{IdSource, Mac, NetworkId};
use vbm_net::dhcp::{DhcpServer, Reason, ServerConfig, Subnet, store::LeaseStore};

/// How long the kernel may take until a link carries frames, and how often to look.
const LINK_READY_MAX: Duration = Duration::from_secs(60);
const LINK_READY_POLL: Duration = Duration::from_millis(10);
/// When nothing was captured for so many milliseconds after the end, all was: a busy kernel delivers late.
const CAPTURE_QUIET_MS: u8 = 200;
const CAPTURE_POLL_MS: u8 = 50;

pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(10, 5, 0, 1);
pub(crate) const SERVER_MAC: Mac = Mac::local(0x50_00_01);
pub(crate) const CLIENT_MAC: Mac = Mac::local(0x50_00_02);

/// A program that must be there, by its Debian package. Panics when it is not, unless it is left out by name; then says so.
pub(crate) fn has(program: &str, package: &str) -> bool {
    let left_out = std::env::var("VBM_LEAVE_OUT").unwrap_or_default();
    if left_out.split(',').any(|l| l.trim() == program) {
        println!("LEFT OUT: this test needs {program}, and VBM_LEAVE_OUT names it");
        return false;
    }
    let dirs = ["/usr/sbin", "/sbin", "/usr/bin", "/bin", "/lib/systemd"];
    assert!(
        dirs.iter().any(|d| Path::new(d).join(program).exists()),
        "this test needs {program} (Debian: {package}; `cargo xtask setup` installs it), or VBM_LEAVE_OUT={program}"
    );
    true
}

/// A network of which 100 to 199 are a pool, with leases that last this long.
pub(crate) fn config(lease: Duration) -> ServerConfig {
    let mut link = Subnet::new("10.5.0.0/24".parse().unwrap(), lease);
    link.settings.router = Some(SERVER);
    link.settings.dns = vec![Ipv4Addr::new(192, 0, 2, 53)];
    link.settings.domain = Some("lab.example".into());
    link.settings.mtu = 1_400;
    link.pool = Some(Ipv4Addr::new(10, 5, 0, 100)..=Ipv4Addr::new(10, 5, 0, 199));
    let mut config = ServerConfig::new(SERVER, SERVER_MAC, link);
    config.authoritative = true;
    config
}

pub(crate) struct DhcpLab {
    pub(crate) server: Ns,
    pub(crate) client: Ns,
    pub(crate) dir: tempfile::TempDir,
    capture: Option<Capture>,
}

struct Capture {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl DhcpLab {
    pub(crate) fn new() -> Self {
        let (server, client) = (Ns::new("vbmt-s-"), Ns::new("vbmt-c-"));
        server.ip(&format!(
            "link add srv0 address {SERVER_MAC} type veth peer name eth0 address {CLIENT_MAC} netns {}",
            client.0
        ));
        server.ip(&format!("addr add {SERVER}/24 dev srv0"));
        // The kernel says that nobody listens to what is sent to us alone.
        server.sh("iptables -A INPUT -p udp --dport 67 -j DROP");
        server.ip("link set srv0 up");
        client.ip("link set eth0 up");
        carries_frames(&server, "srv0");
        let dir = tempfile::tempdir().unwrap();
        let mut lab = Self {
            server,
            client,
            dir,
            capture: None,
        };
        lab.capture = Some(lab.capture());
        lab
    }

    /// Serves in the server's namespace.
    pub(crate) async fn serve(&self, config: ServerConfig, store: impl LeaseStore) -> DhcpServer {
        let runtime = tokio::runtime::Handle::current();
        let id = NetworkId::from_uuid(common::FreshIds.next());
        self.server
            .run(move || {
                runtime.block_on(DhcpServer::start(
                    "srv0",
                    id,
                    config,
                    store,
                    Arc::new(common::SystemClock),
                ))
            })
            .unwrap()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs a client in the client's namespace (`ip` gives it a mount namespace of its own), with folders of its own in place of the
    /// machine's.
    pub(crate) fn client(&self, script: &str, folders: &[&str]) -> Kid {
        let mut text = String::from("set -e\n");
        for folder in folders {
            let own = self.path(&folder.replace('/', "_"));
            std::fs::create_dir_all(&own).unwrap();
            text += &format!("mount --bind {} {folder}\n", own.display());
        }
        text += script;
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.path("client.log"))
            .unwrap();
        Kid(Command::new("ip")
            .args(["netns", "exec", &self.client.0, "sh", "-c", &text])
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap())
    }

    /// Kills what is left of clients: some have children of their own.
    pub(crate) fn end_clients(&self) {
        let pids = common::try_sh("ip", &["netns", "pids", &self.client.0]);
        for pid in String::from_utf8_lossy(&pids.stdout).split_whitespace() {
            if let Ok(pid) = pid.parse() {
                // It may have ended meanwhile.
                let _gone = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::SIGKILL,
                );
            }
        }
    }

    fn capture(&self) -> Capture {
        let socket = self.client.run(|| packet::open_raw(Some("eth0")));
        let mut file = std::fs::File::create(self.path("wire.pcap")).unwrap();
        // Of libpcap 2.4, microseconds, 64 KiB a frame, Ethernet.
        let head: [u32; 6] = [0xa1b2_c3d4, 0x0004_0002, 0, 0, 65_536, 1];
        for word in head {
            file.write_all(&word.to_le_bytes()).unwrap();
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
            let mut buffer = vec![0; 65_536];
            loop {
                let ends = stopped.load(Ordering::Relaxed);
                let wait = if ends { CAPTURE_QUIET_MS } else { CAPTURE_POLL_MS };
                let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
                match poll(&mut fds, PollTimeout::from(wait)) {
                    Ok(1) => {}
                    Ok(0) if ends => break,
                    _ => continue,
                }
                let Ok(n) = nix::unistd::read(&socket, &mut buffer) else {
                    continue;
                };
                let at = std::time::SystemTime::now()
                    .duration_since(std::time::UNIX_EPOCH)
                    .unwrap();
                for word in [at.as_secs() as u32, at.subsec_micros(), n as u32, n as u32] {
                    file.write_all(&word.to_le_bytes()).unwrap();
                }
                file.write_all(&buffer[..n]).unwrap();
            }
        });
        Capture { stop, thread }
    }

    /// What tshark makes of the frames that a filter lets through: a line each, the fields with tabs between.
    pub(crate) fn decoded(&mut self, filter: &str, fields: &[&str]) -> Vec<Vec<String>> {
        if let Some(capture) = self.capture.take() {
            capture.stop.store(true, Ordering::Relaxed);
            capture.thread.join().unwrap();
        }
        let file = self.path("wire.pcap");
        let mut args = vec!["-n", "-r", file.to_str().unwrap()];
        args.extend(["-o", "udp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE"]);
        // A host that has no socket for a datagram any more sends it back in ICMP.
        let filter = format!("!icmp && ({filter})");
        args.extend(["-Y", &filter, "-T", "fields", "-E", "occurrence=f"]);
        for field in fields {
            args.extend(["-e", field]);
        }
        common::sh("tshark", &args)
            .lines()
            .map(|l| l.split('\t').map(str::to_owned).collect())
            .collect()
    }
}

impl Drop for DhcpLab {
    fn drop(&mut self) {
        if let Some(capture) = self.capture.take() {
            capture.stop.store(true, Ordering::Relaxed);
            drop(capture.thread.join());
        }
        self.end_clients();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.path("client.log")).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            for line in tail.iter().rev() {
                eprintln!("client: {line}");
            }
        }
    }
}

/// Waits until a link of a pair carries frames. The end that was up first has no queue before the kernel's own worker comes to it, and
/// loses without an error what is sent before.
fn carries_frames(ns: &Ns, link: &str) {
    let until = std::time::SystemTime::now() + LINK_READY_MAX;
    while !ns
        .ip(&format!("-o link show {link}"))
        .contains("qdisc noqueue state UP")
    {
        assert!(std::time::SystemTime::now() < until, "{link} carries no frames");
        std::thread::park_timeout(LINK_READY_POLL);
    }
}

/// Waits until it happened so often.
pub(crate) async fn happened(server: &DhcpServer, reason: Reason, times: u64) {
    let until = tokio::time::Instant::now() + CLIENT_WITHIN;
    while server.counters().of(reason) < times {
        assert!(
            tokio::time::Instant::now() < until,
            "not {times} times {} within {} s; seen: {:?}",
            reason.word(),
            CLIENT_WITHIN.as_secs(),
            server.counters().seen()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The longest that a client may take for a step: dhclient and dhcpcd wait up to 10 s before they begin, or begin again.
const CLIENT_WITHIN: Duration = Duration::from_secs(45);
