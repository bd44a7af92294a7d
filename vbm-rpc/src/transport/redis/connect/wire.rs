//! Connections in use: commands that answer at once, and one reader's blocking reads.

use super::{BLOCK_GRACE, COMMAND_TIMEOUT, Down, Shared, is_down};
use crate::transport::redis::{
    cluster::{self, Many},
    lock, pack,
};
use redis::{Cmd, Pipeline, RedisResult, Value, aio::MultiplexedConnection};
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// One connection.
#[derive(Clone)]
pub(in super::super) struct Wire {
    pub(super) connection: MultiplexedConnection,
    /// Which server.
    pub(super) origin: Arc<str>,
    /// The master has moved.
    pub(super) moved: Option<CancellationToken>,
}

impl Wire {
    /// Runs a batch; `limit` is how long the server may take.
    pub(in super::super) async fn batch(
        &mut self,
        batch: &mut Pipeline,
        limit: Duration,
    ) -> Result<Vec<RedisResult<Value>>, Down> {
        batch.ignore_errors();
        let running = batch.query_async::<Vec<RedisResult<Value>>>(&mut self.connection);
        match unless_moved(&self.moved, timeout(limit, running)).await? {
            Ok(answers) => answers.map_err(|e| Down(e.to_string())),
            Err(_late) => Err(Down(format!("no answer within {} s", limit.as_secs()))),
        }
    }

    /// Runs one command.
    pub(in super::super) async fn one(&mut self, command: &Cmd) -> Result<Answer, Down> {
        let running = command.query_async::<Value>(&mut self.connection);
        match timeout(COMMAND_TIMEOUT, running).await {
            Ok(Err(error)) if is_down(&error) => Err(Down(error.to_string())),
            Ok(answer) => Ok(answer.map_err(|error| error.to_string())),
            Err(_late) => Err(Down(format!("no answer within {} s", COMMAND_TIMEOUT.as_secs()))),
        }
    }
}

async fn unless_moved<T>(
    moved: &Option<CancellationToken>,
    work: impl Future<Output = T>,
) -> Result<T, Down> {
    match moved {
        Some(moved) => moved
            .run_until_cancelled(work)
            .await
            .ok_or_else(|| Down("the master has moved".into())),
        None => Ok(work.await),
    }
}

/// A way for commands that answer at once. Clones share it.
#[derive(Clone)]
pub(in super::super) struct Commands(pub(super) Way);

#[derive(Clone)]
pub(super) enum Way {
    One(Wire),
    Many(Many),
}

/// The answer to one command of a batch; the text of its error.
pub(in super::super) type Answer = Result<Value, String>;

/// An error of a command whose server cannot be reached, while others of its cluster can.
pub(in super::super) const NODE_DOWN: &str = "NODEDOWN";

impl Commands {
    /// Runs a batch; errors of single commands stand at their place.
    pub(in super::super) async fn run(&mut self, batch: &mut Pipeline) -> Result<Vec<Answer>, Down> {
        self.run_for(batch, COMMAND_TIMEOUT).await
    }

    /// Runs a batch and waits until `replicas` replicas have it, at most for `wait`. Gives besides the answers how many
    /// have; in a cluster, of the master that has fewest.
    pub(in super::super) async fn run_replicated(
        &mut self,
        batch: &mut Pipeline,
        replicas: u64,
        wait: Duration,
    ) -> Result<(Vec<Answer>, i64), Down> {
        if batch.is_empty() {
            return Ok((Vec::new(), 0));
        }
        let mut last = redis::cmd("WAIT");
        last.arg(replicas)
            .arg(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1));
        match &mut self.0 {
            Way::One(_) => {
                batch.add_command(last);
                let mut answers = self.run_for(batch, COMMAND_TIMEOUT + wait).await?;
                let have = answers.pop().and_then(Result::ok).as_ref().and_then(pack::number);
                Ok((answers, have.unwrap_or(0)))
            }
            Way::Many(many) => many.run(batch, COMMAND_TIMEOUT + wait, Some(&last)).await,
        }
    }

    async fn run_for(&mut self, batch: &mut Pipeline, limit: Duration) -> Result<Vec<Answer>, Down> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        match &mut self.0 {
            Way::One(wire) => {
                let answers = wire.batch(batch, limit).await?;
                answers
                    .into_iter()
                    .map(|answer| match answer {
                        Err(error) if is_down(&error) => Err(Down(error.to_string())),
                        other => Ok(other.map_err(|error| error.to_string())),
                    })
                    .collect()
            }
            Way::Many(many) => Ok(many.run(batch, limit, None).await?.0),
        }
    }

    /// Runs one command.
    pub(in super::super) async fn one(&mut self, command: Cmd) -> Result<Answer, Down> {
        let mut batch = redis::pipe();
        batch.add_command(command);
        self.run(&mut batch)
            .await?
            .pop()
            .ok_or_else(|| Down("no answer to a command".into()))
    }

    /// Whether a server of the cluster came back since this was asked last: what it had may be forgotten.
    pub(in super::super) fn recovered(&self) -> bool {
        match &self.0 {
            Way::One(_) => false,
            Way::Many(many) => many.recovered(),
        }
    }
}

/// A connection for one reader's blocking commands.
pub(in super::super) struct Blocking {
    pub(super) wire: Wire,
    pub(super) shared: Arc<Shared>,
}

impl Blocking {
    /// Runs a command that the server may hold for up to `block`.
    pub(in super::super) async fn read(&mut self, command: &Cmd, block: Duration) -> Result<Answer, Down> {
        let running = command.query_async::<Value>(&mut self.wire.connection);
        let answer = unless_moved(&self.wire.moved, timeout(block + BLOCK_GRACE, running)).await?;
        match answer {
            Ok(Ok(value)) => Ok(Ok(value)),
            Ok(Err(error)) if is_down(&error) => Err(Down(error.to_string())),
            Ok(Err(error)) => {
                if let Some(redirect) = cluster::Redirect::of(&error) {
                    lock(&self.shared.slots).learn(&redirect);
                    return Err(Down(error.to_string()));
                }
                Ok(Err(error.to_string()))
            }
            Err(_late) => Err(Down("a blocking read was not answered in time".into())),
        }
    }

    /// Which server it reads from.
    pub(in super::super) fn origin(&self) -> Arc<str> {
        self.wire.origin.clone()
    }
}
