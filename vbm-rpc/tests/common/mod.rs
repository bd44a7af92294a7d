//! A Redis server of a test's own: a child process in a temporary folder, on a unix socket there, gone with its handle.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::print_stdout, reason = "says what was left out")]

pub(crate) mod dice;
pub(crate) mod papers;
pub(crate) mod proofs;
pub(crate) mod proxy;
pub(crate) mod sets;
pub(crate) mod words;

use std::{path::Path, process::Stdio, time::Duration};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};
use vbm_rpc::redis::{RedisConfig, RedisTransport};

const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Whether the caller has asked to leave Redis out. Without `redis-server` and without that, the test fails.
pub(crate) fn left_out() -> bool {
    let named = std::env::var("VBM_LEAVE_OUT").unwrap_or_default();
    let left_out = named.split(',').any(|name| name.trim() == "redis");
    if left_out {
        println!("LEFT OUT: VBM_LEAVE_OUT names redis");
    }
    left_out
}

pub(crate) struct RedisServer {
    dir: TempDir,
    child: Child,
    arguments: Vec<String>,
}

impl RedisServer {
    /// A server that keeps nothing on disk.
    pub(crate) async fn start() -> Self {
        Self::with(&[]).await
    }

    /// A server with further arguments.
    pub(crate) async fn with(arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let child = spawn(dir.path(), &arguments).await;
        Self {
            dir,
            child,
            arguments,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis+unix://{}", self.dir.path().join("redis.sock").display())
    }

    pub(crate) fn config(&self) -> RedisConfig {
        RedisConfig::from_url(&self.url()).expect("an address")
    }

    pub(crate) async fn transport(&self) -> RedisTransport {
        RedisTransport::connect(self.config())
            .await
            .expect("a fit server")
    }

    /// SIGKILL.
    pub(crate) async fn kill(&mut self) {
        self.child.kill().await.expect("it can be killed");
    }

    /// The unix socket that it listens on.
    pub(crate) fn socket(&self) -> std::path::PathBuf {
        self.dir.path().join("redis.sock")
    }

    /// Sends it a signal, if it lives.
    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        if let Some(pid) = self.child.id() {
            let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).expect("a pid"));
            nix::sys::signal::kill(pid, signal).expect("it can be signalled");
        }
    }

    /// Removes what is on its disk; to be called while it is dead.
    pub(crate) fn forget(&self) {
        let files = self.dir.path().join("appendonlydir");
        if files.exists() {
            std::fs::remove_dir_all(files).expect("its files");
        }
    }

    /// Starts it again with what is on its disk.
    pub(crate) async fn restart(&mut self) {
        self.child = spawn(self.dir.path(), &self.arguments).await;
    }

    /// A plain connection, to look at the keys.
    pub(crate) async fn raw(&self) -> redis::aio::MultiplexedConnection {
        let client = redis::Client::open(self.url()).expect("an address");
        client
            .get_multiplexed_async_connection()
            .await
            .expect("a connection")
    }
}

async fn spawn(dir: &Path, arguments: &[String]) -> Child {
    let mut child = Command::new("redis-server")
        .args(["--port", "0", "--unixsocket", "redis.sock", "--save", "", "--loglevel", "notice"])
        .arg("--dir")
        .arg(dir)
        .args(arguments)
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|error| {
            panic!("this test needs redis-server ({error}): install it, or set VBM_LEAVE_OUT=redis to leave it out")
        });
    let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    let ready = async {
        while let Some(line) = lines.next_line().await.expect("its output") {
            if line.contains("ready to accept connections") || line.contains("Ready to accept connections") {
                return true;
            }
        }
        false
    };
    assert!(
        timeout(START_TIMEOUT, ready).await.unwrap_or(false),
        "redis-server did not start"
    );
    // Keeps reading, so that the server never writes into a closed pipe; ends with the server.
    tokio::spawn(async move { while let Ok(Some(_line)) = lines.next_line().await {} });
    child
}
