//! The peer of a first day: RPUSH a request, BLPOP it in one of as many workers, RPUSH the reply, BLPOP that.

use super::{
    load::{Measured, Shape, measure},
    server::RedisServer,
};
use crate::harness::{fault::Outcome, ground::Ground};
use redis::aio::MultiplexedConnection;
use std::sync::Arc;
use tokio::task::JoinSet;

const REQUESTS: &str = "requests";

/// A connection each for all callers and all workers: BLPOP blocks the connection that it is on.
pub(super) async fn round(ground: &Ground, server: &RedisServer, shape: Shape) -> Outcome<Measured> {
    let Shape { flights, payload, .. } = shape;
    // Dropped at the end: then all workers end.
    let mut workers = JoinSet::new();
    let mut callers = Vec::with_capacity(flights);
    for _ in 0..flights {
        workers.spawn(work(server.connection().await?, payload));
        callers.push(server.connection().await?);
    }
    let callers = Arc::new(callers);
    measure(ground, Some(server), flights, move |lane| {
        let mut connection = callers[lane].clone();
        async move {
            let request = format!("{}{lane}", "x".repeat(payload));
            let _waiting: i64 = redis::cmd("RPUSH")
                .arg(REQUESTS)
                .arg(request)
                .query_async(&mut connection)
                .await?;
            let _reply: (String, Vec<u8>) = redis::cmd("BLPOP")
                .arg(replies(&lane.to_string()))
                .arg(0)
                .query_async(&mut connection)
                .await?;
            Ok(())
        }
    })
    .await
}

/// Answers until the server goes.
async fn work(mut connection: MultiplexedConnection, payload: usize) {
    loop {
        let popped: redis::RedisResult<(String, Vec<u8>)> = redis::cmd("BLPOP")
            .arg(REQUESTS)
            .arg(0)
            .query_async(&mut connection)
            .await;
        let Ok((_, request)) = popped else { return };
        let Some((body, lane)) = request.split_at_checked(payload) else {
            return;
        };
        let to = replies(&String::from_utf8_lossy(lane));
        let pushed: redis::RedisResult<i64> = redis::cmd("RPUSH")
            .arg(to)
            .arg(body)
            .query_async(&mut connection)
            .await;
        if pushed.is_err() {
            return;
        }
    }
}

fn replies(lane: &str) -> String {
    format!("reply:{lane}")
}
