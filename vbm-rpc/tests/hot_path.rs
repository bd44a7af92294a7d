//! What the short cuts of the hot path must not cost.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, which clippy does not see as tests"
)]

mod common;

use common::{
    RedisServer, left_out,
    words::{PATIENCE, client, within},
};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};
use tokio::time::{sleep, timeout};
use vbm_rpc::{Bus, Context, Fate, Member, Method, Route, Router, memory::MemoryBus};

struct Echo;
impl Method for Echo {
    const NAME: &'static str = "test.echo";
    type Request = String;
    type Reply = String;
}

/// Holds its thread until the test lets it go.
struct Hold;
impl Method for Hold {
    const NAME: &'static str = "test.hold";
    type Request = ();
    type Reply = ();
}

/// A handler that holds its thread is not run in the dispatcher again: others are served meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_handler_that_was_slow_does_not_stand_in_the_way_of_others() {
    let (begun, (go, wait)) = (Arc::new(AtomicUsize::new(0)), mpsc::channel::<()>());
    let (count, wait) = (begun.clone(), Arc::new(Mutex::new(wait)));
    let router = Router::new()
        .method::<Echo, _, _>(|_context: Context, text: String| async move { Ok(text) })
        .method::<Hold, _, _>(move |_context: Context, (): ()| {
            let (count, wait) = (count.clone(), wait.clone());
            async move {
                count.fetch_add(1, Ordering::SeqCst);
                // Long enough for its caller to be seen as slow, and ended by the test.
                tokio::task::block_in_place(|| wait.lock().unwrap().recv_timeout(PATIENCE).unwrap());
                Ok(())
            }
        });
    let (transport, n1) = (MemoryBus::new(), "n1".parse().unwrap());
    let worker = Bus::attach(transport.clone(), Member::new(n1, "w"), router)
        .await
        .unwrap();
    let bus = client(&transport, "c1").await;
    let route = Route::node("n1".parse().unwrap());
    for held in 1..=3 {
        let hold = tokio::spawn(bus.call::<Hold>(&route, &(), within(PATIENCE)));
        timeout(PATIENCE, async {
            while begun.load(Ordering::SeqCst) < held {
                sleep(Duration::from_millis(1)).await;
            }
        })
        .await
        .expect("it begins");
        let echo = bus.call::<Echo>(&route, &"meanwhile".to_owned(), within(PATIENCE));
        assert_eq!(
            timeout(PATIENCE / 2, echo)
                .await
                .expect("others are served")
                .unwrap(),
            "meanwhile"
        );
        assert!(!hold.is_finished());
        go.send(()).unwrap();
        hold.await.unwrap().unwrap();
    }
    bus.shutdown().await;
    worker.shutdown().await;
}

/// Replies that were read do not stay in Redis until the next heartbeat: at 64 KiB each that were gigabytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_that_were_read_do_not_fill_redis() {
    if left_out() {
        return;
    }
    const LARGE: usize = 64 * 1024;
    const AT_ONCE: usize = 16;
    let server = RedisServer::start().await;
    let router =
        Router::new().method::<Echo, _, _>(|_context: Context, text: String| async move { Ok(text) });
    let worker = Bus::attach(
        server.transport().await,
        Member::new("n1".parse().unwrap(), "w"),
        router,
    )
    .await
    .unwrap();
    let bus = client(&server.transport().await, "c1").await;
    let (route, text, mut most) = (Route::node("n1".parse().unwrap()), "x".repeat(LARGE), 0);
    let mut redis = server.raw().await;
    for _ in 0..20 {
        let calls = (0..AT_ONCE).map(|_| bus.call::<Echo>(&route, &text, within(PATIENCE)));
        for reply in futures::future::join_all(calls).await {
            assert_eq!(reply.unwrap().len(), LARGE);
        }
        let inboxes: Vec<String> = redis::cmd("KEYS")
            .arg("*:r:c1:*")
            .query_async(&mut redis)
            .await
            .unwrap();
        assert_eq!(inboxes.len(), 1, "{inboxes:?}");
        let bytes: usize = redis::cmd("MEMORY")
            .arg("USAGE")
            .arg(&inboxes)
            .query_async(&mut redis)
            .await
            .unwrap();
        most = most.max(bytes);
    }
    // 20 MiB went through; what one round leaves and what is trimmed at, with room to spare.
    assert!(most < 6 * 1024 * 1024, "{most} bytes in the inbox");
    bus.shutdown().await;
    worker.shutdown().await;
}

/// That a node is there is believed for some milliseconds, but not of one that has said that it leaves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_left_a_moment_ago_is_known_to_be_gone() {
    if left_out() {
        return;
    }
    let server = RedisServer::start().await;
    let bus = client(&server.transport().await, "c1").await;
    let route = Route::node("n1".parse().unwrap());
    for turn in 0..5 {
        let router =
            Router::new().method::<Echo, _, _>(|_context: Context, text: String| async move { Ok(text) });
        let member = Member::new("n1".parse().unwrap(), format!("w{turn}"));
        let worker = Bus::attach(server.transport().await, member, router)
            .await
            .unwrap();
        // Believed from here on.
        let reply = bus.call::<Echo>(&route, &"x".to_owned(), within(PATIENCE)).await;
        assert_eq!(reply.unwrap(), "x");
        worker.shutdown().await;
        let fate = bus.call::<Echo>(&route, &"x".to_owned(), within(PATIENCE));
        let fate = timeout(PATIENCE / 3, fate).await.expect("it is known at once");
        assert!(matches!(fate, Err(Fate::NoRoute { .. })), "{fate:?}");
    }
    bus.shutdown().await;
}

/// One that vanished without a word, with its queue still there, is believed in for longer: the call ends typed all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_to_a_node_that_vanished_while_it_was_believed_in_ends_before_its_deadline() {
    if left_out() {
        return;
    }
    let server = RedisServer::start().await;
    let router =
        Router::new().method::<Echo, _, _>(|_context: Context, text: String| async move { Ok(text) });
    let member = Member::new("n1".parse().unwrap(), "w");
    let worker = Bus::attach(server.transport().await, member, router)
        .await
        .unwrap();
    let bus = client(&server.transport().await, "c1").await;
    let route = Route::node("n1".parse().unwrap());
    let reply = bus.call::<Echo>(&route, &"x".to_owned(), within(PATIENCE)).await;
    assert_eq!(reply.unwrap(), "x");
    worker.kill().await;
    let call = tokio::spawn(bus.call::<Echo>(&route, &"x".to_owned(), within(PATIENCE)));
    // Its presence runs out now rather than in some seconds.
    let mut redis = server.raw().await;
    let keys: Vec<String> = redis::cmd("KEYS")
        .arg("*:p:n1")
        .query_async(&mut redis)
        .await
        .unwrap();
    assert_eq!(keys.len(), 1, "{keys:?}");
    let _gone: i64 = redis::cmd("DEL")
        .arg(&keys)
        .query_async(&mut redis)
        .await
        .unwrap();
    let fate = timeout(PATIENCE / 2, call)
        .await
        .expect("long before its deadline")
        .unwrap();
    assert!(
        matches!(
            fate,
            Err(Fate::NoRoute { .. } | Fate::Lost { started: false, .. })
        ),
        "{fate:?}"
    );
    bus.shutdown().await;
}
