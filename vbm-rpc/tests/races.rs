//! Races that reading showed, made to happen: what goes to Redis is held up at the place where the other one must come
//! between.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, which clippy does not see as tests"
)]

mod common;

use common::{
    RedisServer, left_out,
    proxy::Proxy,
    words::{PATIENCE, client, offer, path, until, within, worker},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::time::{sleep, timeout};
use vbm_core::NodePath;
use vbm_rpc::{
    Bus, Context, Fate, Method, Route, Router, limits,
    redis::{RedisConfig, RedisTransport},
};

/// Something that only the renewal of presence says.
const RENEWAL: &str = "member.token";

struct Same;
impl Method for Same {
    const NAME: &'static str = "race.same";
    type Request = usize;
    type Reply = usize;
}

async fn serve(transport: RedisTransport, ran: &Arc<AtomicUsize>) -> Bus {
    let ran = ran.clone();
    let router = Router::new().method::<Same, _, _>(move |_context: Context, n: usize| {
        ran.fetch_add(1, Ordering::SeqCst);
        async move { Ok(n) }
    });
    offer(&transport, ("eu/r1/n1", "boot-w"), router).await
}

/// Somebody whose words to Redis pass through the proxy.
async fn behind(proxy: &Proxy) -> RedisTransport {
    let config = RedisConfig::from_url(&proxy.url()).unwrap();
    RedisTransport::connect(config).await.unwrap()
}

/// A queue that a dead process left, as one for a node and as one for any.
async fn leave_queues(server: &RedisServer) {
    let mut redis = server.raw().await;
    for (key, group) in [("{eu/r1}:n:eu/r1/n1", "made"), ("{/}:g:/:worker", "workers")] {
        let key = format!("vbm:v1:{key}");
        let _: redis::Value = redis::cmd("XGROUP")
            .arg("CREATE")
            .arg(&key)
            .arg(group)
            .arg("0")
            .arg("MKSTREAM")
            .query_async(&mut redis)
            .await
            .unwrap();
    }
}

/// The writer has put a request into the queue of nobody and takes it back; just then a worker comes, finds it and
/// runs it.
async fn a_worker_comes_while_a_request_is_taken_back(route: Route) {
    if left_out() {
        return;
    }
    let server = RedisServer::start().await;
    leave_queues(&server).await;
    let proxy = Proxy::to(&server.socket()).await;
    let bus = client(&behind(&proxy).await, "eu/r1/c1").await;
    let ran = Arc::new(AtomicUsize::new(0));
    proxy.hold(Some("XDEL"));
    let call = tokio::spawn(bus.call::<Same>(&route, &7, within(PATIENCE)));
    until("the request is taken back", async || proxy.caught() > 0).await;
    let n1 = serve(server.transport().await, &ran).await;
    until("it runs", async || ran.load(Ordering::SeqCst) > 0).await;
    proxy.hold(None);
    let ended = timeout(PATIENCE, call).await.unwrap().unwrap();
    assert_eq!(ended, Ok(7), "what ran must not be told as no route");
    assert_eq!(ran.load(Ordering::SeqCst), 1);
    bus.shutdown().await;
    n1.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_for_a_node_that_comes_just_now_is_never_told_as_no_route_and_run() {
    a_worker_comes_while_a_request_is_taken_back(Route::node(path("eu/r1/n1"))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_for_any_of_those_who_come_just_now_is_never_told_as_no_route_and_run() {
    a_worker_comes_while_a_request_is_taken_back(Route::any(NodePath::root(), worker())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_without_a_reader_is_still_no_route_and_left_empty() {
    if left_out() {
        return;
    }
    let server = RedisServer::start().await;
    leave_queues(&server).await;
    let bus = client(&server.transport().await, "eu/r1/c1").await;
    for route in [
        Route::node(path("eu/r1/n1")),
        Route::any(NodePath::root(), worker()),
    ] {
        let ended = timeout(PATIENCE, bus.call::<Same>(&route, &7, within(PATIENCE)))
            .await
            .unwrap();
        assert!(matches!(ended, Err(Fate::NoRoute { .. })), "{route}: {ended:?}");
    }
    let mut redis = server.raw().await;
    for key in ["{eu/r1}:n:eu/r1/n1", "{/}:g:/:worker"] {
        let left: usize = redis::cmd("XLEN")
            .arg(format!("vbm:v1:{key}"))
            .query_async(&mut redis)
            .await
            .unwrap();
        assert_eq!(left, 0, "{key}");
    }
    bus.shutdown().await;
}

/// A worker that cannot say that it lives is taken for dead: what is told as no route must not be run by it.
async fn a_worker_whose_presence_ran_out(route: Route) {
    if left_out() {
        return;
    }
    let server = RedisServer::start().await;
    let proxy = Proxy::to(&server.socket()).await;
    let (bus, ran) = (
        client(&server.transport().await, "eu/r1/c1").await,
        Arc::new(AtomicUsize::new(0)),
    );
    let n1 = serve(behind(&proxy).await, &ran).await;
    assert_eq!(bus.call::<Same>(&route, &1, within(PATIENCE)).await, Ok(1));
    proxy.hold(Some(RENEWAL));
    let mut redis = server.raw().await;
    until("its presence runs out", async || {
        let there: usize = redis::cmd("EXISTS")
            .arg("vbm:v1:{eu/r1}:p:eu/r1/n1")
            .query_async(&mut redis)
            .await
            .unwrap();
        there == 0
    })
    .await;
    // Liveness for any runs out by the clock, a moment later at most.
    let mut told = 0;
    until("it is told as no route", async || {
        let before = ran.load(Ordering::SeqCst);
        let ended = bus.call::<Same>(&route, &2, within(limits::PRESENCE_TTL)).await;
        if matches!(ended, Err(Fate::NoRoute { .. })) {
            // Long enough for the worker's reader, which stands at the queue.
            sleep(Duration::from_millis(200)).await;
            assert_eq!(
                ran.load(Ordering::SeqCst),
                before,
                "what was told as no route was run"
            );
            told += 1;
        }
        told == 5
    })
    .await;
    proxy.hold(None);
    until("it is there again", async || {
        bus.call::<Same>(&route, &3, within(PATIENCE)).await == Ok(3)
    })
    .await;
    bus.shutdown().await;
    n1.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_taken_for_dead_does_not_run_what_was_told_as_no_route() {
    a_worker_whose_presence_ran_out(Route::node(path("eu/r1/n1"))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_taken_for_dead_does_not_run_what_was_told_as_no_route() {
    a_worker_whose_presence_ran_out(Route::any(NodePath::root(), worker())).await;
}
