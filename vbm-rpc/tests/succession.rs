//! Who serves a path when the server behind the bus does not know the newest any more, as after a failover.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, which clippy does not see as tests"
)]

mod common;

use common::{
    left_out,
    sets::{REDIS, Server},
    words::{client, offer, path, until, within},
};
use std::time::Duration;
use vbm_rpc::{Bus, BusError, Context, Method, Route, Router, redis::RedisTransport};

struct Who;
impl Method for Who {
    const NAME: &'static str = "test.who";
    type Request = ();
    type Reply = String;
}

const PRESENCE: &str = "vbm:v1:{eu}:p:eu/n1";

async fn serve(transport: &RedisTransport, boot: &'static str) -> Bus {
    let router = Router::new().method::<Who, _, _>(async move |_context: Context, ()| Ok(boot.to_owned()));
    offer(transport, ("eu/n1", boot), router).await
}

async fn ask(bus: &Bus) -> Option<String> {
    let options = within(Duration::from_secs(2));
    bus.call::<Who>(&Route::node(path("eu/n1")), &(), options)
        .await
        .ok()
}

/// The first run of a path dies and the second takes its place; then the server knows again only what it knew before.
/// Gives the second run, and the first one's presence.
async fn succeeded(server: &Server, transport: &RedisTransport) -> (Bus, String) {
    let first = serve(transport, "boot-1").await;
    let before = server.text(&["GET", PRESENCE]).await;
    first.kill().await;
    (serve(transport, "boot-2").await, before.trim_end().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_forgot_who_came_last_does_not_bring_back_who_is_dead() {
    if left_out() {
        return;
    }
    let server = Server::start(REDIS, "").await;
    let transport = RedisTransport::connect(server.config()).await.unwrap();
    let bus = client(&transport, "c1").await;
    let (second, before) = succeeded(&server, &transport).await;
    assert!(before.contains("boot-1"), "{before}");
    server.ask(&["SET", PRESENCE, &before, "PX", "8000"]).await;
    server
        .ask(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"])
        .await;
    until("the second is there again", async || {
        server.text(&["GET", PRESENCE]).await.contains("boot-2")
    })
    .await;
    assert_eq!(second.health(), Ok(()));
    assert_eq!(ask(&bus).await.as_deref(), Some("boot-2"));
    bus.shutdown().await;
    second.shutdown().await;
}

/// The clock of the other server may be behind: who comes last has won all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_last_wins_whatever_the_clock_of_the_server_says() {
    if left_out() {
        return;
    }
    let server = Server::start(REDIS, "").await;
    let transport = RedisTransport::connect(server.config()).await.unwrap();
    let bus = client(&transport, "c1").await;
    let (second, before) = succeeded(&server, &transport).await;
    let told: serde_json::Value = serde_json::from_str(&server.text(&["GET", PRESENCE]).await).unwrap();
    let token = told["token"].as_str().unwrap();
    let (seconds, rest) = token.split_once('.').unwrap();
    // An hour ahead of what the third is told.
    let ahead = format!("{}.{rest}", seconds.parse::<u64>().unwrap() + 3_600);
    let second_there = before.replace("boot-1", "boot-2");
    let old: serde_json::Value = serde_json::from_str(&before).unwrap();
    let ahead = second_there.replace(old["token"].as_str().unwrap(), &ahead);
    server.ask(&["SET", PRESENCE, &ahead, "PX", "8000"]).await;
    let third = serve(&transport, "boot-3").await;
    until("the second is told", async || {
        matches!(second.health(), Err(BusError::Displaced { .. }))
    })
    .await;
    assert_eq!(third.health(), Ok(()));
    assert_eq!(ask(&bus).await.as_deref(), Some("boot-3"));
    let now = server.text(&["GET", PRESENCE]).await;
    let now: serde_json::Value = serde_json::from_str(&now).unwrap();
    let seconds = now["token"].as_str().unwrap().split_once('.').unwrap().0;
    assert!(ahead.contains(seconds), "{now} is not after {ahead}");
    bus.shutdown().await;
    third.shutdown().await;
    second.kill().await;
}
