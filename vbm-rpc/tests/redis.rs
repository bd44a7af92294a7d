//! What only the real server can show: its death, its memory loss, garbage in it, what is left in it.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, which clippy does not see as tests"
)]

mod common;

use common::{
    RedisServer, left_out,
    words::{PATIENCE, client, offer, path, until, within, worker},
};
use serde::{Deserialize, Serialize};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout};
use vbm_core::NodePath;
use vbm_rpc::{BadInput, Bus, BusError, Context, Fate, Method, Route, Router, redis::RedisTransport};

#[derive(Serialize, Deserialize)]
struct Work {
    n: usize,
    wait_ms: u64,
}

struct Double;
impl Method for Double {
    const NAME: &'static str = "test.double";
    type Request = Work;
    type Reply = usize;
}

fn router(ran: &Arc<AtomicUsize>) -> Router {
    let ran = ran.clone();
    Router::new().method::<Double, _, _>(move |_context: Context, work: Work| {
        let ran = ran.clone();
        async move {
            ran.fetch_add(1, Ordering::SeqCst);
            sleep(Duration::from_millis(work.wait_ms)).await;
            Ok(work.n * 2)
        }
    })
}

async fn serve(transport: &RedisTransport, at: &str, boot: &str, ran: &Arc<AtomicUsize>) -> Bus {
    offer(transport, (at, boot), router(ran)).await
}

fn double(
    bus: &Bus,
    route: &Route,
    n: usize,
    wait_ms: u64,
) -> impl Future<Output = Result<usize, Fate>> + Send + use<> {
    bus.call::<Double>(route, &Work { n, wait_ms }, within(PATIENCE))
}

/// Calls that were in flight when the server died, and calls made while it was dead, are all answered.
async fn calls_survive_a_death(server: &mut RedisServer) {
    let (ran, transport) = (Arc::new(AtomicUsize::new(0)), server.transport().await);
    let (n1, bus) = (
        serve(&transport, "eu/n1", "boot-1", &ran).await,
        client(&transport, "c1").await,
    );
    let (node, any) = (Route::node(path("eu/n1")), Route::any(path("eu"), worker()));
    let flying: Vec<_> = (0..200)
        .map(|n| tokio::spawn(double(&bus, if n % 2 == 0 { &node } else { &any }, n, 300)))
        .collect();
    until("some are running", async || ran.load(Ordering::SeqCst) > 10).await;
    server.kill().await;
    let during: Vec<_> = (200..300)
        .map(|n| tokio::spawn(double(&bus, &node, n, 0)))
        .collect();
    sleep(Duration::from_millis(300)).await;
    server.restart().await;
    for (n, call) in flying.into_iter().chain(during).enumerate() {
        let reply = timeout(PATIENCE, call).await.expect("it ends").expect("no panic");
        assert_eq!(reply, Ok(n * 2), "call {n}");
    }
    // One process served, and its records outlived the server: nothing ran twice.
    assert_eq!(ran.load(Ordering::SeqCst), 300);
    bus.shutdown().await;
    n1.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_in_flight_survive_a_kill_of_a_server_that_keeps_its_data() {
    if left_out() {
        return;
    }
    let mut server = RedisServer::with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    calls_survive_a_death(&mut server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_in_flight_survive_a_kill_of_a_server_that_forgets_everything() {
    if left_out() {
        return;
    }
    let mut server = RedisServer::start().await;
    calls_survive_a_death(&mut server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_come_back_after_everything_was_flushed() {
    if left_out() {
        return;
    }
    let server = RedisServer::start().await;
    let (ran, transport) = (Arc::new(AtomicUsize::new(0)), server.transport().await);
    let (n1, bus) = (
        serve(&transport, "eu/n1", "boot-1", &ran).await,
        client(&transport, "c1").await,
    );
    let flying = tokio::spawn(double(&bus, &Route::node(path("eu/n1")), 4, 3_000));
    until("it is running", async || ran.load(Ordering::SeqCst) == 1).await;
    let _: () = redis::cmd("FLUSHALL")
        .query_async(&mut server.raw().await)
        .await
        .unwrap();
    for route in [Route::node(path("eu/n1")), Route::any(NodePath::root(), worker())] {
        until("it is served again", async || {
            double(&bus, &route, 1, 0).await == Ok(2)
        })
        .await;
    }
    assert_eq!(timeout(PATIENCE, flying).await.unwrap().unwrap(), Ok(8));
    let replies = bus.broadcast::<Double>(
        &Route::all(NodePath::root(), worker()),
        &Work { n: 3, wait_ms: 0 },
        within(PATIENCE),
    );
    assert_eq!(replies.await.unwrap().next().await, Some((path("eu/n1"), Ok(6))));
    bus.shutdown().await;
    n1.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_hangs_while_the_server_is_dead() {
    if left_out() {
        return;
    }
    let mut server = RedisServer::start().await;
    let (ran, transport) = (Arc::new(AtomicUsize::new(0)), server.transport().await);
    let (n1, bus) = (
        serve(&transport, "n1", "boot-1", &ran).await,
        client(&transport, "c1").await,
    );
    server.kill().await;
    let (deadline, begin) = (Duration::from_millis(500), Instant::now());
    for route in [Route::node(path("n1")), Route::any(NodePath::root(), worker())] {
        let fate = bus
            .call::<Double>(&route, &Work { n: 1, wait_ms: 0 }, within(deadline))
            .await;
        assert!(
            matches!(
                fate,
                Err(Fate::Expired { .. } | Fate::Lost { started: false, .. })
            ),
            "{fate:?}"
        );
    }
    let all = Route::all(NodePath::root(), worker());
    let fate = bus
        .broadcast::<Double>(&all, &Work { n: 1, wait_ms: 0 }, within(deadline))
        .await;
    assert!(fate.is_err());
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert!(matches!(
        bus.members(&NodePath::root()).await,
        Err(BusError::Unreachable { .. })
    ));
    timeout(PATIENCE, bus.shutdown())
        .await
        .expect("a shutdown without a server ends");
    timeout(PATIENCE, n1.shutdown())
        .await
        .expect("a shutdown without a server ends");
    assert_eq!(ran.load(Ordering::SeqCst), 0);
}

async fn add(raw: &mut redis::aio::MultiplexedConnection, key: &str, field: &str, value: &[u8]) {
    let _: redis::Value = redis::cmd("XADD")
        .arg(key)
        .arg("*")
        .arg(field)
        .arg(value)
        .query_async(raw)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_in_every_stream_is_skipped_and_removed() {
    if left_out() {
        return;
    }
    let server = RedisServer::start().await;
    let (ran, transport) = (Arc::new(AtomicUsize::new(0)), server.transport().await);
    let (n1, bus) = (
        serve(&transport, "eu/r1/n1", "boot-1", &ran).await,
        client(&transport, "eu/r1/c1").await,
    );
    let mut raw = server.raw().await;
    let keys = [
        "vbm:v1:{eu/r1}:n:eu/r1/n1",
        "vbm:v1:{eu/r1}:g:eu/r1:worker",
        "vbm:v1:{eu/r1}:b",
        "vbm:v1:{eu/r1}:r:eu/r1/c1:boot-c",
    ];
    for key in keys {
        add(&mut raw, key, "x", b"no frame").await;
        add(&mut raw, key, "f", b"").await;
        add(&mut raw, key, "f", &[0xff; 40]).await;
        // Well packed, but no frame inside.
        add(&mut raw, key, "f", b"\0\0\0\x03abc").await;
        add(&mut raw, key, "f", b"\0\0\0\x05VB\x01\x07\0").await;
    }
    for route in [
        Route::node(path("eu/r1/n1")),
        Route::any(path("eu"), worker()),
        Route::any(path("eu/r1"), worker()),
    ] {
        assert_eq!(double(&bus, &route, 5, 0).await, Ok(10));
    }
    let all = Route::all(path("eu"), worker());
    let mut replies = bus
        .broadcast::<Double>(&all, &Work { n: 5, wait_ms: 0 }, within(PATIENCE))
        .await
        .unwrap();
    assert_eq!(replies.next().await, Some((path("eu/r1/n1"), Ok(10))));
    for key in &keys[..2] {
        until("the queue is empty", async || {
            let left: usize = redis::cmd("XLEN")
                .arg(key)
                .query_async(&mut server.raw().await)
                .await
                .unwrap();
            left == 0
        })
        .await;
    }
    // Of each five, four are no frames and one is cut off; a broadcast without a scope is each member's to count.
    for (bus, no_frame, cut_off) in [(&n1, 4 + 4 + 5, 2), (&bus, 4 + 5, 1)] {
        until("all of it is counted", async || {
            let counts = bus.stats().bad_input;
            (counts.of(BadInput::NoFrame), counts.of(BadInput::CutOff)) == (no_frame, cut_off)
        })
        .await;
    }
    bus.shutdown().await;
    n1.shutdown().await;
}

async fn keys(server: &RedisServer) -> Vec<String> {
    redis::cmd("KEYS")
        .arg("*")
        .query_async(&mut server.raw().await)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_return_to_the_baseline_after_all_have_left() {
    if left_out() {
        return;
    }
    let server = RedisServer::start().await;
    let (ran, transport) = (Arc::new(AtomicUsize::new(0)), server.transport().await);
    for round in 0..3 {
        let mut buses = Vec::new();
        for at in ["eu/r1/n1", "eu/r1/n2", "us/n1", "deep/a/b/c/d/e/f/g"] {
            buses.push(serve(&transport, at, &format!("boot-{round}"), &ran).await);
        }
        let bus = client(&transport, "c1").await;
        let calls = (0..200).map(|n| double(&bus, &Route::any(NodePath::root(), worker()), n, 0));
        assert!(futures::future::join_all(calls).await.iter().all(Result::is_ok));
        assert_eq!(double(&bus, &Route::node(path("eu/r1/n1")), 1, 0).await, Ok(2));
        assert!(
            double(&bus, &Route::node(path("nowhere/n1")), 1, 0)
                .await
                .is_err()
        );
        let all = Route::all(NodePath::root(), worker());
        bus.cast::<Double>(&all, &Work { n: 1, wait_ms: 0 }, within(PATIENCE))
            .await
            .unwrap();
        buses.push(bus);
        for bus in buses {
            bus.shutdown().await;
        }
        assert_eq!(keys(&server).await, Vec::<String>::new(), "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_key_runs_out_by_itself() {
    if left_out() {
        return;
    }
    let server = RedisServer::start().await;
    let (ran, transport) = (Arc::new(AtomicUsize::new(0)), server.transport().await);
    let (n1, bus) = (
        serve(&transport, "eu/r1/n1", "boot-1", &ran).await,
        client(&transport, "c1").await,
    );
    assert_eq!(
        double(&bus, &Route::any(NodePath::root(), worker()), 1, 0).await,
        Ok(2)
    );
    let mut raw = server.raw().await;
    for key in keys(&server).await {
        let ttl: i64 = redis::cmd("PTTL").arg(&key).query_async(&mut raw).await.unwrap();
        assert!(ttl > 0, "{key} lives for ever");
    }
    bus.kill().await;
    n1.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_systems_share_a_server_by_namespace() {
    if left_out() {
        return;
    }
    let server = RedisServer::start().await;
    let mut buses = Vec::new();
    for namespace in ["blue", "green"] {
        let config = server.config().namespace(&namespace.parse().unwrap());
        let transport = RedisTransport::connect(config).await.unwrap();
        buses.push(client(&transport, "n1").await);
    }
    for bus in &buses {
        assert_eq!(bus.members(&NodePath::root()).await.unwrap().len(), 1);
    }
    for bus in buses {
        bus.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_cut_by_the_server_is_made_again_and_calls_go_on() {
    if left_out() {
        return;
    }
    let server = RedisServer::start().await;
    let (ran, transport) = (Arc::new(AtomicUsize::new(0)), server.transport().await);
    let (n1, bus) = (
        serve(&transport, "n1", "boot-1", &ran).await,
        client(&transport, "c1").await,
    );
    let mut raw = server.raw().await;
    let node = Route::node(path("n1"));
    for round in 0..10 {
        let calls: Vec<_> = (0..20)
            .map(|n| tokio::spawn(double(&bus, &node, n, 20)))
            .collect();
        let _: redis::Value = redis::cmd("CLIENT")
            .arg("KILL")
            .arg("TYPE")
            .arg("normal")
            .query_async(&mut raw)
            .await
            .unwrap();
        for (n, call) in calls.into_iter().enumerate() {
            assert_eq!(
                timeout(PATIENCE, call).await.unwrap().unwrap(),
                Ok(n * 2),
                "round {round}"
            );
        }
    }
    assert_eq!(ran.load(Ordering::SeqCst), 200, "nothing ran twice");
    bus.shutdown().await;
    n1.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_call_does_not_wait_for_a_timer_of_the_server() {
    if left_out() {
        return;
    }
    let server = RedisServer::start().await;
    let (ran, transport) = (Arc::new(AtomicUsize::new(0)), server.transport().await);
    let (n1, bus) = (
        serve(&transport, "n1", "boot-1", &ran).await,
        client(&transport, "c1").await,
    );
    for route in [Route::node(path("n1")), Route::any(NodePath::root(), worker())] {
        let mut times = Vec::new();
        for n in 0..51 {
            let begin = Instant::now();
            assert_eq!(double(&bus, &route, n, 0).await, Ok(n * 2));
            times.push(begin.elapsed());
        }
        times.sort_unstable();
        // A wake-up takes less than a millisecond; Redis' own timer ticks every 100 ms.
        assert!(times[25] < Duration::from_millis(50), "{route}: {:?}", times[25]);
    }
    bus.shutdown().await;
    n1.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_the_server_forgot_before_anyone_took_them_are_sent_again() {
    if left_out() {
        return;
    }
    let mut server = RedisServer::start().await;
    let (ran, transport) = (Arc::new(AtomicUsize::new(0)), server.transport().await);
    let n1 = serve(&transport, "eu/n1", "boot-1", &ran).await;
    let bus = client(&transport, "c1").await;
    // Presence still shows it, so the calls are queued.
    n1.kill().await;
    let (node, any) = (Route::node(path("eu/n1")), Route::any(path("eu"), worker()));
    let calls: Vec<_> = (0..20)
        .map(|n| tokio::spawn(double(&bus, if n % 2 == 0 { &node } else { &any }, n, 0)))
        .collect();
    until("they are queued", async || {
        let mut raw = server.raw().await;
        let length = async |raw: &mut _, key: &str| -> usize {
            redis::cmd("XLEN").arg(key).query_async(raw).await.unwrap()
        };
        length(&mut raw, "vbm:v1:{eu}:n:eu/n1").await > 0
            && length(&mut raw, "vbm:v1:{eu}:g:eu:worker").await > 0
    })
    .await;
    server.kill().await;
    server.restart().await;
    let n1 = serve(&transport, "eu/n1", "boot-2", &ran).await;
    for (n, call) in calls.into_iter().enumerate() {
        assert_eq!(
            timeout(PATIENCE, call).await.unwrap().unwrap(),
            Ok(n * 2),
            "call {n}"
        );
    }
    assert_eq!(ran.load(Ordering::SeqCst), 20);
    bus.shutdown().await;
    n1.shutdown().await;
}
