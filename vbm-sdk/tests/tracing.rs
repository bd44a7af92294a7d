//! One trace from a request to what nodes do for it, through real processes over a real Redis.
#![expect(clippy::unwrap_used, reason = "a test ends at its first surprise")]

#[path = "common/daemons.rs"]
mod daemons;
#[path = "common/redis.rs"]
mod redis_server;

use daemons::{Daemon, LOOK_EVERY, PATIENCE, ended, furnish, until_leader};
use redis_server::{DURABLE, Redis};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    time::{sleep, timeout},
};
use vbm_core::OperationState;
use vbm_sdk::api::{LaunchRequest, NicRequest};

/// A trace that a client has begun (the example of the recommendation).
const TRACE_ID: &str = "0af7651916cd43dd8448eb211c80319c";

/// Asks this daemon in that trace; the whole answer.
async fn ask(daemon: &Daemon, method: &str, path: &str, body: &str) -> String {
    let mut stream = UnixStream::connect(daemon.dir.join("s")).await.unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: vbm\r\nConnection: close\r\nContent-Type: application/json\r\n\
         traceparent: 00-{TRACE_ID}-b7ad6b7169203331-01\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    answer
}

/// Waits for a line of its log with all of these.
async fn line(daemon: &Daemon, words: &[&str]) {
    let there = async {
        while !daemon
            .log()
            .lines()
            .any(|line| words.iter().all(|word| line.contains(word)))
        {
            sleep(LOOK_EVERY).await;
        }
    };
    let found = timeout(PATIENCE, there).await;
    assert!(
        found.is_ok(),
        "no line with {words:?} in the log of {}",
        daemon.dir.display()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_trace_of_a_request_to_one_controller_is_in_the_log_of_the_node_that_another_one_commands() {
    let Some(redis) = Redis::with(DURABLE) else { return };
    let place = tempfile::Builder::new().prefix("vbm-t-").tempdir().unwrap();
    let leader = Daemon::start(&redis, place.path(), "controller", "first");
    until_leader(&leader.client(), "first").await;
    let asked = Daemon::start(&redis, place.path(), "controller", "second");
    let node = Daemon::start(&redis, place.path(), "agent", "n1");
    until_leader(&asked.client(), "first").await;
    furnish(&leader.client(), place.path()).await;
    assert!(!node.log().contains(TRACE_ID));

    // Written down by one, carried out by the other.
    let request = LaunchRequest::new("tiny")
        .name("web".parse().unwrap())
        .nic(NicRequest::on("lan"));
    let launched = ask(
        &asked,
        "POST",
        "/v1/vms",
        &serde_json::to_string(&request).unwrap(),
    )
    .await;
    assert!(launched.starts_with("HTTP/1.1 2"), "{launched}");
    let head = launched.to_lowercase();
    assert!(
        head.contains(&format!("traceresponse: 00-{TRACE_ID}-")),
        "{launched}"
    );
    let operations = asked.client().operations().list().all().await.unwrap();
    let operation = operations
        .iter()
        .find(|operation| operation.verb == "launch")
        .unwrap();
    assert!(
        operation.trace.as_ref().unwrap().contains(TRACE_ID),
        "{operation:?}"
    );
    assert_eq!(
        ended(&asked.client(), operation).await.state,
        OperationState::Done
    );
    line(&node, &["working on a VM", TRACE_ID]).await;

    // Commanded at once by whoever was asked; what the agent calls itself is counted nowhere else's.
    let restarted = ask(&asked, "POST", "/v1/vms/web/power", r#"{"action":"restart"}"#).await;
    assert!(restarted.starts_with("HTTP/1.1 2"), "{restarted}");
    line(&node, &["the reset button was pressed", TRACE_ID]).await;
    let metrics = ask(&asked, "GET", "/metrics", "").await;
    assert!(
        metrics.contains(r#"side="client",method="vm.reset",fate="done""#),
        "{metrics}"
    );
}
