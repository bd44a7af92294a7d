//! Connections. Two types, so that a blocking command can never stand in front of another one: [`Commands`] is shared
//! and answers at once, [`Blocking`] belongs to one reader.
//!
//! redis-rs' own response time-out is off for both: it forgets an answer that is on its way (redis-rs#1924). Each use
//! here has a hard time-out instead, after which the connection is thrown away.

use super::config::RedisConfig;
use redis::{
    AsyncConnectionConfig, Client, Cmd, Pipeline, RedisError, RedisResult, Value, aio::MultiplexedConnection,
};
use std::time::Duration;
use tokio::time::timeout;

/// The longest a connection may take to be made, hello included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The longest a batch of commands may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);
/// How much longer than its server-side block a read may take before the connection counts as dead.
const BLOCK_GRACE: Duration = Duration::from_secs(3);
/// The first wait before another try to connect.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// The longest wait before another try to connect.
pub(super) const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// The most commands queued inside redis-rs for one connection.
const PIPELINE_BUFFER_COMMANDS: usize = 64;

/// The server cannot be used over this connection now: make another one.
#[derive(Clone, Debug)]
pub(super) struct Down(pub(super) String);

/// Errors of single commands that mean: not this server, or not now.
const DOWN_CODES: [&str; 8] = [
    "LOADING",
    "READONLY",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "UNBLOCKED",
    "MISCONF",
    "NOAUTH",
    "TRYAGAIN",
];

/// Whether an error of one command makes the connection useless.
fn is_down(error: &RedisError) -> bool {
    error.is_unrecoverable_error()
        || error.is_io_error()
        || error.code().is_some_and(|code| DOWN_CODES.contains(&code))
}

#[derive(Clone, Debug)]
pub(super) struct Connector {
    client: Client,
}

impl Connector {
    pub(super) fn new(config: &RedisConfig) -> Result<Self, Down> {
        Client::open(config.info.clone())
            .map(|client| Self { client })
            .map_err(|e| Down(e.to_string()))
    }

    async fn open(&self) -> Result<MultiplexedConnection, Down> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(None)
            .set_pipeline_buffer_size(PIPELINE_BUFFER_COMMANDS);
        let opening = self.client.get_multiplexed_async_connection_with_config(&config);
        match timeout(CONNECT_TIMEOUT, opening).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(Down(error.to_string())),
            Err(_late) => Err(Down(format!(
                "no connection within {} s",
                CONNECT_TIMEOUT.as_secs()
            ))),
        }
    }

    pub(super) async fn commands(&self) -> Result<Commands, Down> {
        self.open().await.map(Commands)
    }

    pub(super) async fn blocking(&self) -> Result<Blocking, Down> {
        self.open().await.map(Blocking)
    }
}

/// How long to wait before try number `attempt` (from 0): doubling, with jitter from `seed`, so that a thousand nodes
/// do not come back at once.
pub(super) fn backoff(attempt: u32, seed: u64) -> Duration {
    let full = BACKOFF_MIN.saturating_mul(1 << attempt.min(10)).min(BACKOFF_MAX);
    let mix = seed
        .wrapping_add(u64::from(attempt))
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        >> 48;
    // Between a half and the whole.
    full.mul_f64(0.5 + f64::from(u32::try_from(mix).unwrap_or(0)) / 131_072.0)
}

/// A connection for commands that answer at once. Clones share it.
#[derive(Clone)]
pub(super) struct Commands(MultiplexedConnection);

/// The answer to one command of a batch; the text of its error.
pub(super) type Answer = Result<Value, String>;

impl Commands {
    /// Runs a batch; errors of single commands stand at their place.
    pub(super) async fn run(&mut self, batch: &mut Pipeline) -> Result<Vec<Answer>, Down> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        batch.ignore_errors();
        let running = batch.query_async::<Vec<RedisResult<Value>>>(&mut self.0);
        let answers = match timeout(COMMAND_TIMEOUT, running).await {
            Ok(answers) => answers.map_err(|e| Down(e.to_string()))?,
            Err(_late) => return Err(Down(format!("no answer within {} s", COMMAND_TIMEOUT.as_secs()))),
        };
        answers
            .into_iter()
            .map(|answer| match answer {
                Err(error) if is_down(&error) => Err(Down(error.to_string())),
                other => Ok(other.map_err(|error| error.to_string())),
            })
            .collect()
    }

    /// Runs one command.
    pub(super) async fn one(&mut self, command: Cmd) -> Result<Answer, Down> {
        let mut batch = redis::pipe();
        batch.add_command(command);
        self.run(&mut batch)
            .await?
            .pop()
            .ok_or_else(|| Down("no answer to a command".into()))
    }
}

/// A connection for one reader's blocking commands.
pub(super) struct Blocking(MultiplexedConnection);

impl Blocking {
    /// Runs a command that the server may hold for up to `block`.
    pub(super) async fn read(&mut self, command: &Cmd, block: Duration) -> Result<Answer, Down> {
        match timeout(block + BLOCK_GRACE, command.query_async::<Value>(&mut self.0)).await {
            Ok(Ok(value)) => Ok(Ok(value)),
            Ok(Err(error)) if is_down(&error) => Err(Down(error.to_string())),
            Ok(Err(error)) => Ok(Err(error.to_string())),
            Err(_late) => Err(Down("a blocking read was not answered in time".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_their_limit_and_differ_between_processes() {
        assert!(backoff(0, 1) <= BACKOFF_MIN && backoff(0, 1) >= BACKOFF_MIN / 2);
        for attempt in 0..100 {
            assert!(backoff(attempt, 7) <= BACKOFF_MAX);
        }
        assert_ne!(backoff(5, 1), backoff(5, 2));
    }
}
