//! Servers on ports of the loopback: one, a set watched by sentinels, a cluster. Child processes in folders of their
//! own, ended by their id with their handle.
//!
//! A set takes seconds to come up, so the tests of one file share it while any of them runs, each in a namespace of its
//! own ([`namespace`]). Tests that break a set have their own.

use std::{
    fs::File,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    sync::Mutex,
    time::{Instant, sleep},
};
use vbm_core::Name;
use vbm_rpc::redis::{RedisConfig, RedisTransport};

const PATIENCE: Duration = Duration::from_secs(60);
/// The name of the master.
pub(crate) const MASTER: &str = "mymaster";
/// A master that is silent for so long is taken for dead by its sentinels.
pub(crate) const DOWN_AFTER: Duration = Duration::from_secs(1);
pub(crate) const REDIS: &str = "redis-server";
pub(crate) const VALKEY: &str = "valkey-server";

/// A namespace that no other test of this process has.
pub(crate) fn namespace() -> Name {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed))
        .parse()
        .expect("a name")
}

/// Whether a program can be started; with `false`, a test of it says loudly that it was left out.
pub(crate) fn installed(program: &str) -> bool {
    let found = Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !found {
        println!("LEFT OUT: {program} is not installed");
    }
    found
}

/// Ports that were free a moment ago, all different.
pub(crate) fn free_ports<const N: usize>() -> [u16; N] {
    /// Below those that Linux gives to outgoing connections: one of them took a port that was free a moment ago.
    const QUIET: std::ops::Range<u16> = 12_000..32_000;
    let free = || {
        let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0);
        let port = QUIET.start + u16::try_from(random % u64::from(QUIET.end - QUIET.start)).expect("a port");
        std::net::TcpListener::bind(("127.0.0.1", port)).ok()
    };
    let held: [_; N] = std::array::from_fn(|_| {
        std::iter::repeat_with(free)
            .take(1_000)
            .flatten()
            .next()
            .expect("a free port")
    });
    held.map(|listener| listener.local_addr().expect("its address").port())
}

/// One server.
pub(crate) struct Server {
    dir: TempDir,
    child: Child,
    program: String,
    sentinel: bool,
    pub(crate) port: u16,
    /// Of its `default` user.
    password: Option<String>,
}

impl Server {
    /// With this configuration besides port, folder and log. Not ready yet.
    pub(crate) fn launch(program: &str, port: u16, sentinel: bool, configuration: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let text = format!(
            "port {port}\nbind 127.0.0.1\ndir {}\n{configuration}\n",
            dir.path().display()
        );
        std::fs::write(dir.path().join("server.conf"), text).expect("its configuration");
        let child = spawn(program, &dir, sentinel);
        Self {
            dir,
            child,
            program: program.to_owned(),
            sentinel,
            port,
            password: None,
        }
    }

    /// A server that answers; it keeps nothing on disk unless the configuration says so.
    pub(crate) async fn start(program: &str, configuration: &str) -> Self {
        let [port] = free_ports();
        let mut server = Self::launch(program, port, false, &format!("save \"\"\n{configuration}"));
        server.ready().await;
        server
    }

    pub(crate) async fn ready(&mut self) {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(Ok(_answered)) = self.try_ask(&["PING"]).await {
                return;
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
                panic!("{} ended ({status}):\n{log}", self.program);
            }
            assert!(Instant::now() < until, "{} does not answer", self.program);
            sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn folder(&self) -> &std::path::Path {
        self.dir.path()
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn config(&self) -> RedisConfig {
        RedisConfig::from_url(&format!("redis://{}", self.address())).expect("an address")
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it ends");
    }

    /// Starts it again with what is on its disk.
    pub(crate) async fn restart(&mut self) {
        self.child = spawn(&self.program, &self.dir, self.sentinel);
        self.ready().await;
    }

    /// SIGSTOP or SIGCONT.
    pub(crate) fn signal(&self, name: &str) {
        // `kill` of the shell: the program of that name is not everywhere.
        let line = format!("kill -{name} {}", self.child.id());
        let sent = Command::new("sh").args(["-c", &line]).status();
        assert!(
            sent.is_ok_and(|status| status.success()),
            "SIG{name} could not be sent"
        );
    }

    /// From now on it wants a password; connections that are there keep theirs.
    pub(crate) async fn want_password(&mut self, password: &str) {
        self.ask(&["CONFIG", "SET", "requirepass", password]).await;
        self.password = Some(password.to_owned());
    }

    async fn try_ask(&self, words: &[&str]) -> Option<redis::RedisResult<redis::Value>> {
        let login = self
            .password
            .as_ref()
            .map_or(String::new(), |password| format!(":{password}@"));
        let client = redis::Client::open(format!("redis://{login}{}", self.address())).ok()?;
        let asking = async {
            let mut connection = client.get_multiplexed_async_connection().await.ok()?;
            let mut command = redis::cmd(words[0]);
            for word in &words[1..] {
                command.arg(*word);
            }
            Some(command.query_async(&mut connection).await)
        };
        tokio::time::timeout(Duration::from_secs(2), asking).await.ok()?
    }

    /// One command on a connection of its own.
    pub(crate) async fn ask(&self, words: &[&str]) -> redis::Value {
        self.try_ask(words)
            .await
            .unwrap_or_else(|| panic!("{} at {} does not answer", self.program, self.address()))
            .unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    /// The answer as text, all words in lines; empty when there is none.
    pub(crate) async fn text(&self, words: &[&str]) -> String {
        fn words_of(value: &redis::Value, out: &mut String) {
            match value {
                redis::Value::Array(list) => list.iter().for_each(|value| words_of(value, out)),
                redis::Value::BulkString(bytes) => {
                    out.push_str(&String::from_utf8_lossy(bytes));
                    out.push('\n');
                }
                redis::Value::SimpleString(text) => {
                    out.push_str(text);
                    out.push('\n');
                }
                redis::Value::Okay => out.push_str("OK\n"),
                redis::Value::Int(number) => {
                    out.push_str(&number.to_string());
                    out.push('\n');
                }
                _ => {}
            }
        }
        let mut out = String::new();
        if let Some(Ok(value)) = self.try_ask(words).await {
            words_of(&value, &mut out);
        }
        out
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Also ends one that was stopped.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn spawn(program: &str, dir: &TempDir, sentinel: bool) -> Child {
    let log = File::options()
        .create(true)
        .append(true)
        .open(dir.path().join("log"))
        .expect("a log");
    let mut command = Command::new(program);
    command.arg("server.conf");
    if sentinel {
        command.arg("--sentinel");
    }
    command
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| {
            panic!(
                "this test needs {program} ({error}): install it, or set VBM_LEAVE_OUT=redis to leave it out"
            )
        })
}

async fn wait_until(what: &str, mut is_true: impl AsyncFnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is_true().await {
        assert!(Instant::now() < until, "{what}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// A master, two replicas, three sentinels.
pub(crate) struct SentinelSet {
    pub(crate) servers: Vec<Server>,
    pub(crate) sentinels: Vec<Server>,
}

impl SentinelSet {
    pub(crate) async fn start(configuration: &str) -> Self {
        let ports: [u16; 6] = free_ports();
        let [master, ..] = ports;
        let common = format!("save \"\"\nrepl-diskless-sync-delay 0\n{configuration}");
        let mut servers = vec![Server::launch(REDIS, master, false, &common)];
        for &port in &ports[1..3] {
            let replica = format!("{common}\nreplicaof 127.0.0.1 {master}");
            servers.push(Server::launch(REDIS, port, false, &replica));
        }
        for server in &mut servers {
            server.ready().await;
        }
        wait_until("both replicas are there", async || {
            let info = servers[0].text(&["INFO", "replication"]).await;
            info.matches("state=online").count() == 2
        })
        .await;
        let watch = format!(
            "sentinel monitor {MASTER} 127.0.0.1 {master} 2\n\
             sentinel down-after-milliseconds {MASTER} {}\n\
             sentinel failover-timeout {MASTER} 6000\n\
             sentinel parallel-syncs {MASTER} 2\n",
            DOWN_AFTER.as_millis()
        );
        let mut sentinels: Vec<Server> = ports[3..]
            .iter()
            .map(|&port| Server::launch(REDIS, port, true, &watch))
            .collect();
        for sentinel in &mut sentinels {
            sentinel.ready().await;
        }
        let set = Self { servers, sentinels };
        for sentinel in &set.sentinels {
            wait_until("a sentinel knows the others", async || {
                let text = sentinel.text(&["SENTINEL", "MASTER", MASTER]).await;
                text.contains("num-slaves\n2\n") && text.contains("num-other-sentinels\n2\n")
            })
            .await;
        }
        set
    }

    /// The set that the tests of this process share.
    pub(crate) async fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<SentinelSet>> = Mutex::const_new(Weak::new());
        let mut shared = SHARED.lock().await;
        if let Some(set) = shared.upgrade() {
            return set;
        }
        let set = Arc::new(Self::start("").await);
        *shared = Arc::downgrade(&set);
        set
    }

    pub(crate) fn url(&self) -> String {
        let hosts: Vec<String> = self.sentinels.iter().map(Server::address).collect();
        format!("redis+sentinel://{}/{MASTER}", hosts.join(","))
    }

    pub(crate) fn config(&self) -> RedisConfig {
        RedisConfig::from_url(&self.url()).expect("an address")
    }

    pub(crate) async fn transport(&self) -> RedisTransport {
        RedisTransport::connect(self.config().namespace(&namespace()))
            .await
            .expect("a fit set")
    }

    /// Which server the sentinels name.
    pub(crate) async fn master(&self) -> Option<usize> {
        self.named_by(0).await
    }

    /// The master that one of the sentinels names; none when that one does not run.
    async fn named_by(&self, sentinel: usize) -> Option<usize> {
        let text = self.sentinels[sentinel]
            .text(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER])
            .await;
        let port: u16 = text.lines().nth(1)?.parse().ok()?;
        self.servers.iter().position(|server| server.port == port)
    }

    /// Waits until each sentinel names another server than this one, which says itself that it is the master: a bus may ask any.
    pub(crate) async fn moved_from(&self, before: usize) -> usize {
        let mut now = before;
        wait_until("there is another master", async || {
            for sentinel in 0..self.sentinels.len() {
                match self.named_by(sentinel).await {
                    Some(master) if master != before => now = master,
                    Some(_) => return false,
                    None => {}
                }
            }
            now != before && self.servers[now].text(&["ROLE"]).await.starts_with("master")
        })
        .await;
        now
    }
}

/// Three masters, each with a third of the slots.
pub(crate) struct ClusterSet {
    pub(crate) servers: Vec<Server>,
}

impl ClusterSet {
    pub(crate) async fn start(configuration: &str) -> Self {
        let ports: [u16; 6] = free_ports();
        let mut servers: Vec<Server> = (0..3)
            .map(|n| {
                let bus = ports[n + 3];
                let text = format!(
                    "save \"\"\ncluster-enabled yes\ncluster-port {bus}\ncluster-node-timeout 2000\n{configuration}"
                );
                Server::launch(REDIS, ports[n], false, &text)
            })
            .collect();
        for server in &mut servers {
            server.ready().await;
        }
        for (n, (first, last)) in [("0", "5461"), ("5462", "10922"), ("10923", "16383")]
            .into_iter()
            .enumerate()
        {
            servers[n].ask(&["CLUSTER", "ADDSLOTSRANGE", first, last]).await;
            // Without it two could claim the same epoch and settle it only later.
            servers[n]
                .ask(&["CLUSTER", "SET-CONFIG-EPOCH", &(n + 1).to_string()])
                .await;
        }
        for n in 1..3 {
            let (port, bus) = (ports[n].to_string(), ports[n + 3].to_string());
            servers[0]
                .ask(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus])
                .await;
        }
        let set = Self { servers };
        set.whole().await;
        set
    }

    /// Gives one of the masters a replica, which takes its place when it dies; gives the replica.
    pub(crate) async fn add_replica(&self, of: usize) -> Server {
        let [port, bus] = free_ports();
        let text = format!(
            "save \"\"\ncluster-enabled yes\ncluster-port {bus}\ncluster-node-timeout 2000\nrepl-diskless-sync-delay 0"
        );
        let mut replica = Server::launch(REDIS, port, false, &text);
        replica.ready().await;
        let (port, bus) = (port.to_string(), bus.to_string());
        self.servers[of]
            .ask(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus])
            .await;
        let id = self.servers[of].text(&["CLUSTER", "MYID"]).await;
        wait_until("the replica knows its master", async || {
            replica.text(&["CLUSTER", "NODES"]).await.contains(id.trim())
                && replica
                    .text(&["CLUSTER", "REPLICATE", id.trim()])
                    .await
                    .starts_with("OK")
        })
        .await;
        wait_until("the replica is in step", async || {
            self.servers[of]
                .text(&["INFO", "replication"])
                .await
                .contains("state=online")
        })
        .await;
        for server in &self.servers {
            wait_until("every master knows the replica", async || {
                server.text(&["CLUSTER", "NODES"]).await.matches("slave").count() == 1
            })
            .await;
        }
        replica
    }

    /// Waits until every node says that the cluster works.
    pub(crate) async fn whole(&self) {
        for server in &self.servers {
            wait_until("the cluster is whole", async || {
                let text = server.text(&["CLUSTER", "INFO"]).await;
                text.contains("cluster_state:ok") && text.contains("cluster_size:3")
            })
            .await;
        }
    }

    /// The cluster that the tests of this process share.
    pub(crate) async fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<ClusterSet>> = Mutex::const_new(Weak::new());
        let mut shared = SHARED.lock().await;
        if let Some(set) = shared.upgrade() {
            return set;
        }
        let set = Arc::new(Self::start("").await);
        *shared = Arc::downgrade(&set);
        set
    }

    pub(crate) fn config(&self) -> RedisConfig {
        let hosts: Vec<String> = self.servers.iter().map(Server::address).collect();
        RedisConfig::from_url(&format!("redis+cluster://{}", hosts.join(","))).expect("an address")
    }

    pub(crate) async fn transport(&self) -> RedisTransport {
        RedisTransport::connect(self.config().namespace(&namespace()))
            .await
            .expect("a fit cluster")
    }
}

/// Tries until there is something.
pub(crate) async fn retry<T>(mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    let mut found = None;
    wait_until("it works in the end", async || {
        found = attempt().await;
        found.is_some()
    })
    .await;
    found.expect("it was waited for")
}
