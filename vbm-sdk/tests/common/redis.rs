//! A Redis of a test's own: a child process in a temporary folder, on a unix socket there, gone with its handle.
#![allow(dead_code, reason = "each test program uses a part of it")]
#![allow(clippy::print_stdout, reason = "says what was left out")]

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, SystemTime},
};

/// How long a start may take.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked whether it has started.
const START_POLL: Duration = Duration::from_millis(5);
/// Keeps nothing on disk.
pub(crate) const FORGETFUL: &[&str] = &["--appendonly", "no"];
/// On disk before it is acknowledged.
pub(crate) const DURABLE: &[&str] = &["--appendonly", "yes", "--appendfsync", "always"];

/// Whether the caller has asked to leave this out.
pub(crate) fn left_out(what: &str) -> bool {
    std::env::var("VBM_LEAVE_OUT").is_ok_and(|named| named.split(',').any(|name| name.trim() == what))
}

pub(crate) struct Redis {
    process: Child,
    dir: tempfile::TempDir,
    arguments: Vec<String>,
}

impl Redis {
    /// A server that keeps nothing; `None` when it cannot be started and the caller asked to leave it out.
    pub(crate) fn start() -> Option<Self> {
        Self::with(FORGETFUL)
    }

    pub(crate) fn with(arguments: &[&str]) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        match spawn(dir.path(), &arguments) {
            Ok(process) => {
                let redis = Self {
                    process,
                    dir,
                    arguments,
                };
                redis.until_ready();
                Some(redis)
            }
            Err(error) if left_out("redis") => {
                println!("LEFT OUT: redis-server cannot be started: {error}");
                None
            }
            Err(error) => panic!(
                "redis-server cannot be started ({error}): install redis-server, or set VBM_LEAVE_OUT=redis"
            ),
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis+unix://{}", self.dir.path().join("s").display())
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The id of the process.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.process.kill().expect("it can be killed");
        self.process.wait().expect("it ends");
    }

    /// Starts it again with what is on its disk.
    pub(crate) fn restart(&mut self) {
        drop(std::fs::remove_file(self.dir.path().join("s")));
        self.process = spawn(self.dir.path(), &self.arguments).expect("it started before");
        self.until_ready();
    }

    /// Ready: it answers PING, so it has loaded its data.
    fn until_ready(&self) {
        let client = redis::Client::open(self.url()).expect("an address");
        let begun = SystemTime::now();
        loop {
            let answered = client
                .get_connection()
                .and_then(|mut connection| redis::cmd("PING").query::<String>(&mut connection));
            match answered {
                Ok(_) => return,
                Err(error) => assert!(
                    begun.elapsed().unwrap_or_default() < START_PATIENCE,
                    "redis-server did not start: {error}"
                ),
            }
            #[expect(clippy::disallowed_methods, reason = "a bounded wait for another process")]
            std::thread::sleep(START_POLL);
        }
    }

    /// A plain connection, to look at the keys.
    pub(crate) fn raw(&self) -> redis::Connection {
        let client = redis::Client::open(self.url()).expect("an address");
        client.get_connection().expect("a connection")
    }
}

fn spawn(dir: &Path, arguments: &[String]) -> std::io::Result<Child> {
    Command::new("redis-server")
        .args(["--port", "0", "--save", "", "--maxmemory-policy", "noeviction"])
        .arg("--unixsocket")
        .arg(dir.join("s"))
        .arg("--dir")
        .arg(dir)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}

impl Drop for Redis {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}
