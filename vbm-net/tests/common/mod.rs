//! A laboratory of namespaces: a host, the world outside, guests whose NIC is a real tap fd.
//!
//! ```text
//!   outside 192.0.2.2 --veth-- 192.0.2.1 host --vbu/up0-- vbm-<net> --tap fd-- pump --tap eth0-- guest
//! ```
//!
//! All of it bears names of this process only and goes when the lab is dropped, also on a panic.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::cast_possible_truncation, reason = "test values are small")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on panics, and says what it leaves out"
)]

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};
use uuid::Uuid;
use vbm_core::{
    Clock, IdSource, Mac, NetworkId, NetworkMode, NetworkSpec, PortId, Protocol, Timestamp,
    network::parse_cidr,
};
use vbm_net::{
    DesiredForward, DesiredNetwork, DesiredPort, HostConfig, HostNetwork, NetworkBackend, Nic, NicKind,
    doctor,
};

pub(crate) mod packet;
pub(crate) mod site;

/// How long anything in these tests may take before it counts as never.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
/// Runs tests by another dispatch than the usual one: `nft`.
const DISPATCH: &str = "VBM_TEST_DISPATCH";
/// How often to look again.
const POLL: Duration = Duration::from_millis(20);
pub(crate) const HOST_OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// Panics with what is missing, unless the caller left it out by name; then says so and answers false.
pub(crate) fn can_run() -> bool {
    let left_out = std::env::var("VBM_LEAVE_OUT").unwrap_or_default();
    let left_out: BTreeSet<&str> = left_out.split(',').map(str::trim).collect();
    for (name, there) in [
        ("root", nix::unistd::geteuid().is_root()),
        ("namespaces", Path::new("/proc/self/ns/net").exists()),
    ] {
        if left_out.contains(name) {
            println!("LEFT OUT: this test needs {name}, and VBM_LEAVE_OUT names it");
            return false;
        }
        assert!(
            there,
            "this test needs {name}; run it as root, or set VBM_LEAVE_OUT={name}"
        );
    }
    for program in [
        "ip",
        "busybox",
        "iptables-save",
        "ip6tables-save",
        "ipset",
        "nft",
        "conntrack",
        "udhcpc",
    ] {
        let found = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"]
            .iter()
            .any(|d| Path::new(d).join(program).exists());
        assert!(
            found,
            "this test needs the program {program} (Debian: iproute2 busybox iptables nftables conntrack udhcpc), or VBM_LEAVE_OUT=namespaces"
        );
    }
    true
}

/// Returns from a test that was left out by name.
#[macro_export]
macro_rules! needs_namespaces {
    () => {
        if !common::can_run() {
            return;
        }
    };
}

/// The system's clock.
pub(crate) struct SystemClock;
impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        Timestamp::from_micros(since.as_micros() as i64)
    }
}

/// Ids that no other test on this machine has: process, time, count.
pub(crate) struct FreshIds;
static COUNT: AtomicU64 = AtomicU64::new(1);
impl IdSource for FreshIds {
    fn next(&self) -> Uuid {
        let nanos = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_nanos() as u64;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let mut x = nanos ^ (u64::from(std::process::id()) << 40) ^ count.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Uuid::from_u64_pair(nanos, x ^ (x >> 31))
    }
}

pub(crate) fn fresh(prefix: &str) -> String {
    let id = FreshIds.next().simple().to_string();
    format!("{prefix}{}", &id[24..])
}

/// Runs a program; panics unless it succeeds.
pub(crate) fn sh(program: &str, args: &[&str]) -> String {
    let out = try_sh(program, args);
    assert!(
        out.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8_lossy(&out.stdout).into_owned()
}
pub(crate) fn try_sh(program: &str, args: &[&str]) -> Output {
    Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}
pub(crate) fn ip(args: &str) -> String {
    sh("ip", &args.split_whitespace().collect::<Vec<_>>())
}

/// What `tc` says in a namespace.
pub(crate) fn ip_tc(ns: &str, args: &str) -> String {
    let mut all = vec!["-n", ns];
    all.extend(args.split_whitespace());
    sh("tc", &all)
}

/// How often somebody who is there is asked, on a machine that has other things to do.
pub(crate) const TRIES_MAX: usize = 20;

/// Whether somebody answers a ping, sooner or later.
pub(crate) fn reaches(ns: &Ns, to: Ipv4Addr) -> bool {
    (0..TRIES_MAX).any(|_| ns.pings(to))
}

/// A namespace that is deleted when dropped.
pub(crate) struct Ns(pub(crate) String);
impl Ns {
    pub(crate) fn new(prefix: &str) -> Self {
        let ns = Self(fresh(prefix));
        ip(&format!("netns add {}", ns.0));
        ns.ip("link set lo up");
        ns
    }
    pub(crate) fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }
    pub(crate) fn ip(&self, args: &str) -> String {
        ip(&format!("-n {} {args}", self.0))
    }
    pub(crate) fn sh(&self, command: &str) -> String {
        let out = self.try_sh(command);
        assert!(
            out.status.success(),
            "{command}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        String::from_utf8_lossy(&out.stdout).into_owned()
    }
    pub(crate) fn try_sh(&self, command: &str) -> Output {
        in_netns(&self.0, command)
    }
    pub(crate) fn spawn(&self, command: &str) -> Kid {
        let mut all = vec!["netns", "exec", &self.0];
        all.extend(command.split_whitespace());
        Kid(Command::new("ip")
            .args(all)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap())
    }
    /// Runs a closure on a thread inside: its sockets are of this namespace.
    pub(crate) fn run<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        run_in(&self.0, f)
    }
    pub(crate) fn pings(&self, to: Ipv4Addr) -> bool {
        self.try_sh(&format!("busybox ping -c 1 -W 1 {to}"))
            .status
            .success()
    }
    /// What a web server answers to `GET /`, if it answers.
    pub(crate) fn get(&self, server: (Ipv4Addr, u16)) -> Option<String> {
        self.run(move || get(server))
    }
}
impl Drop for Ns {
    fn drop(&mut self) {
        let _done = try_sh("ip", &["netns", "del", &self.0]);
    }
}

/// The body of a page. (busybox's wget crashes on Debian 12.)
pub(crate) fn get(server: (Ipv4Addr, u16)) -> Option<String> {
    use std::io::{Read, Write};
    const WAIT: Duration = Duration::from_secs(2);
    let mut stream = std::net::TcpStream::connect_timeout(&server.into(), WAIT).ok()?;
    stream.set_read_timeout(Some(WAIT)).ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text.split_once("\r\n\r\n")?.1.to_owned())
}

pub(crate) fn run_in<T: Send + 'static>(ns: &str, f: impl FnOnce() -> T + Send + 'static) -> T {
    let path = Path::new("/run/netns").join(ns);
    let inside = std::thread::spawn(move || {
        let file = std::fs::File::open(path).unwrap();
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        f()
    });
    inside.join().unwrap()
}

pub(crate) fn in_netns(ns: &str, command: &str) -> Output {
    let mut all = vec!["netns", "exec", ns];
    all.extend(command.split_whitespace());
    try_sh("ip", &all)
}

/// A child that is killed when dropped.
pub(crate) struct Kid(pub(crate) Child);
impl Kid {
    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.0.id() as i32), signal).unwrap();
    }
}
impl Drop for Kid {
    fn drop(&mut self) {
        let _killed = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// Waits until it is so; panics at the deadline.
pub(crate) async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = tokio::time::Instant::now() + DEADLINE;
    while !is_so() {
        assert!(
            tokio::time::Instant::now() < until,
            "not within {} s: {what}",
            DEADLINE.as_secs()
        );
        tokio::time::sleep(POLL).await;
    }
}

/// The dispatch that tests run by which choose none.
pub(crate) fn dispatch() -> vbm_net::Dispatch {
    std::env::var(DISPATCH).map_or_else(|_| vbm_net::Dispatch::default(), |d| d.parse().unwrap())
}

/// A host in a namespace of its own, with a world outside, and a backend on it.
pub(crate) struct Lab {
    pub(crate) owner: String,
    pub(crate) host: Ns,
    pub(crate) outside: Ns,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) net: HostNetwork,
    pub(crate) dispatch: vbm_net::Dispatch,
}

impl Lab {
    pub(crate) async fn new() -> Self {
        Self::dispatched(dispatch()).await
    }

    /// One whose packets find their port's policy so.
    pub(crate) async fn dispatched(dispatch: vbm_net::Dispatch) -> Self {
        let (host, outside) = (Ns::new("vbmt-h-"), Ns::new("vbmt-o-"));
        ip(&format!(
            "-n {} link add eth0 type veth peer name eth0 netns {}",
            host.0, outside.0
        ));
        for (ns, address) in [(&host, HOST_OUTSIDE), (&outside, OUTSIDE)] {
            ns.ip(&format!("addr add {address}/24 dev eth0"));
            ns.ip("link set eth0 up");
        }
        let dir = tempfile::tempdir().unwrap();
        let owner = fresh("test-");
        let net = HostNetwork::open(config(&owner, &host, dir.path()).with_dispatch(dispatch))
            .await
            .unwrap();
        Self {
            owner,
            host,
            outside,
            dir,
            net,
            dispatch,
        }
    }

    /// The name of a network's namespace on this host.
    pub(crate) fn inside(&self, network: NetworkId) -> String {
        vbm_net::names::namespace_beside(&self.owner, network)
    }

    pub(crate) fn config(&self) -> HostConfig {
        config(&self.owner, &self.host, self.dir.path()).with_dispatch(self.dispatch)
    }

    /// As if the daemon was started again.
    pub(crate) async fn reopen(&mut self) {
        self.reopen_dispatched(self.dispatch).await;
    }

    /// The same, by this dispatch from now on.
    pub(crate) async fn reopen_dispatched(&mut self, dispatch: vbm_net::Dispatch) {
        self.net.shutdown().await;
        self.dispatch = dispatch;
        self.net = HostNetwork::open(self.config()).await.unwrap();
    }

    pub(crate) async fn ensure(&self, wanted: &DesiredNetwork) -> vbm_net::NetworkSeen {
        self.net.ensure(wanted.clone()).await.unwrap()
    }

    pub(crate) async fn guest(&self, wanted: &DesiredNetwork, port: usize) -> Guest {
        let port = &wanted.ports[port];
        let nic = self.net.open_nic(wanted.id, port.id, NicKind::Tap).await.unwrap();
        Guest::new(nic, port.mac)
    }

    pub(crate) async fn raw(&self, wanted: &DesiredNetwork, port: usize) -> packet::Wire {
        let Nic::Tap { fd, vnet_hdr, .. } = self
            .net
            .open_nic(wanted.id, wanted.ports[port].id, NicKind::Tap)
            .await
            .unwrap()
        else {
            panic!("no tap")
        };
        assert!(vnet_hdr);
        packet::Wire::new(fd)
    }
}

pub(crate) fn config(owner: &str, host: &Ns, dir: &Path) -> HostConfig {
    HostConfig::new(owner, dir, Arc::new(SystemClock)).in_namespace(host.path())
}

impl Drop for Lab {
    fn drop(&mut self) {
        let (owner, net) = (self.owner.clone(), self.net.clone());
        // A runtime of its own: the test's may be unwinding.
        let cleaned = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let _stopped = tokio::time::timeout(DEADLINE, net.shutdown()).await;
                doctor::remove_owners(&BTreeSet::from([owner])).await
            })
        });
        if let Ok(Err(error)) = cleaned.join() {
            eprintln!("the lab was not cleaned up: {error}");
        }
    }
}

/// What stands on a host that a network could have left: links, rules, guard, namespaces, records.
pub(crate) fn footprint(host: &Ns, ids: &[NetworkId]) -> String {
    let links = host.ip("-o link show");
    let links: Vec<_> = links.lines().filter_map(|l| l.split(':').nth(1)).collect();
    let rules = host.sh("iptables-save");
    let rules: Vec<_> = rules
        .lines()
        .filter(|l| l.starts_with('-') || l.contains("VBM"))
        .collect();
    let namespaces: Vec<_> = std::fs::read_dir("/run/netns")
        .unwrap()
        .chain(std::fs::read_dir("/run/vbm/net").into_iter().flatten())
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| ids.iter().any(|id| n.contains(&id.short())))
        .collect();
    let answers = host.ip("neigh show proxy");
    let routes = host.ip("route show proto 86");
    format!("{links:?}\n{rules:#?}\n{namespaces:?}\n{answers}\n{routes}")
}

/// A network of mode NAT at `10.9.0.0/24` with so many ports, all shut.
pub(crate) fn network(mode: NetworkMode, ports: u8) -> DesiredNetwork {
    let ids = FreshIds;
    let mut spec = NetworkSpec::new(mode, parse_cidr("10.9.0.0/24").unwrap()).unwrap();
    spec.dns = vec![Ipv4Addr::new(192, 0, 2, 53)];
    spec.domain = Some("lab.example".into());
    spec.mtu = 1_400;
    let ports = (0..ports).map(|i| DesiredPort {
        id: PortId::from_uuid(ids.next()),
        mac: Mac::local(0x09_00_00 + u32::from(i)),
        address: Ipv4Addr::new(10, 9, 0, 10 + i),
        address6: None,
        hostname: format!("guest-{i}").parse().unwrap(),
        metadata_route: true,
        rules: Vec::new(),
        policy: Default::default(),
    });
    let ports = ports.collect();
    DesiredNetwork {
        id: NetworkId::from_uuid(ids.next()),
        name: "lab".parse().unwrap(),
        spec,
        ports,
        forwards: vec![],
        overlay: None,
        groups: vec![],
    }
}

pub(crate) fn open_port(wanted: &mut DesiredNetwork, port: usize, rules: &[&str]) {
    wanted.ports[port].rules = rules.iter().map(|r| r.parse().unwrap()).collect();
}

/// Puts ports into a group of its own; makes it where it is not there yet.
pub(crate) fn group_of(wanted: &mut DesiredNetwork, number: u128, rules: &[&str], ports: &[usize]) {
    let id = vbm_core::GroupId::from_uuid(Uuid::from_u128(number));
    wanted.groups.retain(|g| g.id != id);
    wanted.groups.push(vbm_net::DesiredGroup {
        id,
        name: format!("group-{number}").parse().unwrap(),
        spec: vbm_core::GroupSpec {
            rules: rules.iter().map(|r| r.parse().unwrap()).collect(),
            egress_closed: false,
        },
        members: vec![],
    });
    for (n, port) in wanted.ports.iter_mut().enumerate() {
        port.policy.groups.retain(|g| *g != id);
        if ports.contains(&n) {
            port.policy.groups.push(id);
        }
    }
}

pub(crate) fn forward(wanted: &mut DesiredNetwork, listen_port: u16, port: usize, target_port: u16) {
    let target = wanted.ports[port].id;
    wanted.forwards.push(DesiredForward {
        id: vbm_core::ForwardId::from_uuid(FreshIds.next()),
        protocol: Protocol::Tcp,
        listen_address: None,
        listen_port,
        target,
        target_port,
        count: 1,
    });
}

/// A guest: a namespace with a tap whose frames are copied to and from the NIC.
pub(crate) struct Guest {
    pub(crate) ns: Ns,
    stop: Arc<AtomicBool>,
    pump: Option<JoinHandle<()>>,
    /// Its own end of its link.
    tap: Option<Arc<OwnedFd>>,
    pub(crate) dir: tempfile::TempDir,
    kids: Vec<Kid>,
}

impl Guest {
    pub(crate) fn new(nic: Nic, mac: Mac) -> Self {
        let ns = Ns::new("vbmt-g-");
        let tap = ns.run(|| packet::open_tap("eth0"));
        ns.ip(&format!("link set eth0 address {mac}"));
        ns.ip("link set eth0 up");
        let mut guest = Self {
            ns,
            stop: Arc::default(),
            pump: None,
            tap: Some(Arc::new(tap)),
            dir: tempfile::tempdir().unwrap(),
            kids: Vec::new(),
        };
        guest.plug(nic);
        guest
    }

    /// The guest's link leads to this NIC from now on.
    pub(crate) fn plug(&mut self, nic: Nic) {
        let Nic::Tap { fd, .. } = nic else {
            panic!("no tap")
        };
        let tap = Arc::clone(self.tap.as_ref().unwrap());
        self.stop = Arc::default();
        let stopped = Arc::clone(&self.stop);
        self.pump = Some(std::thread::spawn(move || pump(&fd, &tap, &stopped)));
    }

    /// As a VM that is stopped to be moved: its NIC is gone, and all else is as it was.
    pub(crate) fn unplug(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(pump) = self.pump.take() {
            let _ended = pump.join();
        }
    }

    /// A guest that a macvlan binds to an interface of a host, as a hypervisor does by name.
    pub(crate) fn bound(host: &Ns, interface: &str, mac: Mac) -> Self {
        let ns = Ns::new("vbmt-g-");
        ip(&format!(
            "-n {} link add link {interface} name eth0 netns {} address {mac} type macvlan mode private",
            host.0, ns.0
        ));
        ns.ip("link set eth0 up");
        Self {
            ns,
            stop: Arc::default(),
            pump: None,
            tap: None,
            dir: tempfile::tempdir().unwrap(),
            kids: Vec::new(),
        }
    }

    /// Gives it its address by hand.
    pub(crate) fn address(&self, wanted: &DesiredNetwork, port: usize) {
        self.ns
            .ip(&format!("addr add {}/24 dev eth0", wanted.ports[port].address));
        self.ns
            .ip(&format!("route add default via {}", wanted.spec.gateway));
    }

    /// The command line of a DHCP client that does what it is told, and writes down what it was told.
    pub(crate) fn udhcpc(&self, more: &str) -> String {
        let script = self.dir.path().join("script");
        let text = format!(
            "#!/bin/sh\nset > {d}/$1.tmp && mv {d}/$1.tmp {d}/$1\ncase $1 in bound|renew) ip addr flush dev eth0; ip addr add $ip/$mask dev eth0; [ -n \"$router\" ] && ip route add default via $router; exit 0;; esac\n",
            d = self.dir.path().display()
        );
        std::fs::write(&script, text).unwrap();
        sh("chmod", &["+x", script.to_str().unwrap()]);
        format!(
            "busybox udhcpc -i eth0 -f -t 10 -T 1 -O mtu -O domain -s {} {more}",
            script.display()
        )
    }

    /// Takes a lease, as a guest does when it boots.
    pub(crate) fn dhcp(&self) {
        self.ns.sh(&self.udhcpc("-n -q"));
    }

    /// What the client's script was told at an occasion, once it was.
    pub(crate) fn told(&self, occasion: &str) -> Option<String> {
        std::fs::read_to_string(self.dir.path().join(occasion)).ok()
    }

    /// Serves a page with this text on port 80.
    pub(crate) async fn serve(&mut self, text: &str) {
        let www = self.dir.path().join("www");
        std::fs::create_dir_all(&www).unwrap();
        std::fs::write(www.join("index.html"), text).unwrap();
        self.kids.push(
            self.ns
                .spawn(&format!("busybox httpd -f -p 80 -h {}", www.display())),
        );
        eventually("the guest's web server", || {
            self.ns.get((Ipv4Addr::LOCALHOST, 80)).is_some()
        })
        .await;
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.kids.clear();
        self.unplug();
    }
}

fn pump(a: &OwnedFd, b: &OwnedFd, stop: &AtomicBool) {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let mut buffer = vec![0u8; 70_000];
    while !stop.load(Ordering::Relaxed) {
        let mut fds = [
            PollFd::new(a.as_fd(), PollFlags::POLLIN),
            PollFd::new(b.as_fd(), PollFlags::POLLIN),
        ];
        if poll(&mut fds, PollTimeout::from(50u8)).is_err() {
            continue;
        }
        let ready = fds.map(|f| f.revents().unwrap_or(PollFlags::empty()));
        for (ready, from, to) in [(ready[0], a, b), (ready[1], b, a)] {
            if ready.contains(PollFlags::POLLERR) {
                return; // The tap was removed under us.
            }
            if ready.contains(PollFlags::POLLIN)
                && let Ok(n) = nix::unistd::read(from.as_fd(), &mut buffer)
            {
                let _sent = nix::unistd::write(to, &buffer[..n]);
            }
        }
    }
    let _kept = (a.as_raw_fd(), b.as_raw_fd());
}

/// Bytes that no parser should like: seeded, so the same each time. For each size some are random, some begin well.
pub(crate) fn garbage(seed: u64) -> Vec<Vec<u8>> {
    let mut state = seed | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let heads: [&[u8]; 6] = [
        b"",
        &[0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0],
        &[0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0xc0, 0x0c],
        &[0, 1, 0x81, 0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        b"GET /latest/ HTTP/1.1\r\n",
        b"PUT /latest/api/token HTTP/1.1\r\nContent-Length: ",
    ];
    let mut all = Vec::new();
    for length in (0..600).step_by(7) {
        for head in heads {
            let mut bytes = head.to_vec();
            bytes.extend((0..length).map(|_| next() as u8));
            all.push(bytes);
        }
    }
    all
}
