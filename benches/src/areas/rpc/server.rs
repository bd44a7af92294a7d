//! A Redis of the bench's own: a child on a unix socket in a temporary folder, gone with its handle.

use crate::harness::{
    child::{Talker, command},
    fault::{During, Outcome},
};
use std::time::Duration;
use tempfile::TempDir;

const START_WITHIN: Duration = Duration::from_secs(30);
const SOCKET: &str = "redis.sock";

pub(super) struct RedisServer {
    // Ends before its folder goes.
    _process: Talker,
    dir: TempDir,
}

impl RedisServer {
    /// One that keeps nothing on disk.
    pub(super) async fn start() -> Outcome<Self> {
        Self::with(&[]).await
    }

    /// The same with further arguments.
    pub(super) async fn with(arguments: &[String]) -> Outcome<Self> {
        let dir = tempfile::Builder::new().prefix("vbm-bench-").tempdir()?;
        let mut redis = command("redis-server");
        redis
            .args([
                "--port",
                "0",
                "--unixsocket",
                SOCKET,
                "--save",
                "",
                "--appendonly",
                "no",
                "--loglevel",
                "notice",
            ])
            .arg("--dir")
            .arg(dir.path())
            .args(arguments)
            .current_dir(dir.path());
        let mut process = Talker::start(&mut redis)?;
        process
            .hear("eady to accept connections", START_WITHIN)
            .await
            .during("redis-server")?;
        Ok(Self {
            _process: process,
            dir,
        })
    }

    pub(super) fn socket(&self) -> String {
        self.dir.path().join(SOCKET).display().to_string()
    }

    pub(super) fn url(&self) -> String {
        format!("redis+unix://{}", self.socket())
    }

    /// A plain connection that waits for answers as long as it takes.
    pub(super) async fn connection(&self) -> Outcome<redis::aio::MultiplexedConnection> {
        let config = redis::AsyncConnectionConfig::new().set_response_timeout(None);
        let client = redis::Client::open(self.url())?;
        Ok(client
            .get_multiplexed_async_connection_with_config(&config)
            .await?)
    }
}
