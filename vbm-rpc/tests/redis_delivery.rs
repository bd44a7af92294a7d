//! Delivery on the real server: take-over in time, fencing, depth, the control lane of old members, what a beat costs.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, which clippy does not see as tests"
)]
#![allow(clippy::print_stdout, reason = "tells what was measured")]

mod common;

use common::{
    RedisServer, left_out,
    words::{PATIENCE, client, offer, path, until, within, worker},
};
use redis::{Value, aio::MultiplexedConnection, cmd};
use serde::{Deserialize, Serialize};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep};
use vbm_core::NodePath;
use vbm_rpc::{
    Bus, Context, Fate, Lane, Method, Route, Router, Transport,
    limits::{HEARTBEAT_EVERY, PRESENCE_TTL},
    redis::RedisTransport,
};

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

fn any() -> Route {
    Route::any(path("eu"), worker())
}

/// How many handlers began and ended.
#[derive(Clone, Default)]
struct Ran {
    begun: Arc<AtomicUsize>,
    ended: Arc<AtomicUsize>,
    /// No handler ever ends.
    hangs: bool,
}

impl Ran {
    fn begun(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }

    fn router(&self) -> Router {
        let ran = self.clone();
        Router::new().method::<Double, _, _>(move |_context: Context, work: Work| {
            let ran = ran.clone();
            async move {
                ran.begun.fetch_add(1, Ordering::SeqCst);
                if ran.hangs {
                    std::future::pending::<()>().await;
                }
                sleep(Duration::from_millis(work.wait_ms)).await;
                ran.ended.fetch_add(1, Ordering::SeqCst);
                Ok(work.n * 2)
            }
        })
    }

    async fn serve(&self, transport: &RedisTransport, at: &str, boot: &str) -> Bus {
        offer(transport, (at, boot), self.router()).await
    }
}

fn double(
    bus: &Bus,
    route: &Route,
    n: usize,
    wait_ms: u64,
) -> impl Future<Output = Result<usize, Fate>> + Send + use<> {
    bus.call::<Double>(route, &Work { n, wait_ms }, within(PATIENCE))
}

async fn ask<T: redis::FromRedisValue>(raw: &mut MultiplexedConnection, words: &[&str]) -> T {
    let mut command = cmd(words[0]);
    command.arg(&words[1..]);
    command.query_async(raw).await.unwrap()
}

/// The target of the bus: a worker dies while 10,000 calls are in flight; all are answered, the last one at the latest
/// a lease and a second after the death.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dead_worker_had_is_taken_over_within_the_lease_and_a_second() {
    const CLIENTS: usize = 2;
    const CALLS: usize = 5_000;
    if left_out() {
        return;
    }
    let server = RedisServer::start().await;
    let transport = server.transport().await;
    let (dying, living) = (
        Ran {
            hangs: true,
            ..Ran::default()
        },
        Ran::default(),
    );
    let n1 = dying.serve(&transport, "eu/n1", "boot-1").await;
    let mut clients = Vec::new();
    let mut calls = Vec::new();
    for c in 0..CLIENTS {
        let bus = client(&transport, &format!("c{c}")).await;
        calls.extend((0..CALLS).map(|n| tokio::spawn(double(&bus, &any(), n, 0))));
        clients.push(bus);
    }
    until("the worker is full", async || {
        dying.begun() == vbm_rpc::limits::HANDLERS_MAX
    })
    .await;
    let n2 = living.serve(&transport, "eu/n2", "boot-2").await;
    let death = Instant::now();
    n1.kill().await;
    for (at, call) in calls.into_iter().enumerate() {
        assert_eq!(call.await.unwrap(), Ok(at % CALLS * 2), "call {at}");
    }
    let took = death.elapsed();
    println!(
        "the last call was answered {} ms after the death",
        took.as_millis()
    );
    assert!(took <= PRESENCE_TTL + Duration::from_secs(1), "it took {took:?}");
    n2.shutdown().await;
    for bus in clients {
        bus.shutdown().await;
    }
}

/// A worker whose entry was taken over while it was busy does not complete it: it is the other one's to complete.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_does_not_complete_what_another_has_taken_over() {
    if left_out() {
        return;
    }
    let server = RedisServer::start().await;
    let (ran, transport) = (Ran::default(), server.transport().await);
    let n1 = ran.serve(&transport, "eu/n1", "boot-1").await;
    let bus = client(&transport, "c1").await;
    let call = tokio::spawn(double(&bus, &any(), 4, 1_500));
    until("it is begun", async || ran.begun() == 1).await;
    let mut raw = server.raw().await;
    let key = "vbm:v1:{eu}:g:eu:worker";
    let pending: Vec<(String, String, u64, u64)> =
        ask(&mut raw, &["XPENDING", key, "workers", "-", "+", "10"]).await;
    assert_eq!(pending.len(), 1);
    assert_eq!(pending[0].1, "eu/n1|boot-1");
    let id = &pending[0].0;
    let _: Value = ask(&mut raw, &["XCLAIM", key, "workers", "eu/n2|boot-x", "0", id]).await;
    // Its own answer still goes out: whoever asked gets one, and may get it twice.
    assert_eq!(call.await.unwrap(), Ok(8));
    // A call of its own that goes the plain way is completed, so the writer has been there.
    assert_eq!(double(&bus, &any(), 1, 0).await, Ok(2));
    n1.shutdown().await;
    let left: Vec<(String, String, u64, u64)> =
        ask(&mut raw, &["XPENDING", key, "workers", "-", "+", "10"]).await;
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!((&left[0].0, left[0].1.as_str()), (id, "eu/n2|boot-x"));
    bus.shutdown().await;
}

/// A handler that still runs while its process shuts down is not run by another as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_runs_during_a_shutdown_is_not_taken_over() {
    if left_out() {
        return;
    }
    let server = RedisServer::start().await;
    let (ran, transport) = (Ran::default(), server.transport().await);
    let n1 = ran.serve(&transport, "eu/n1", "boot-1").await;
    let bus = client(&transport, "c1").await;
    let call = tokio::spawn(double(&bus, &any(), 4, 4_000));
    until("it is begun", async || ran.begun() == 1).await;
    let n2 = ran.serve(&transport, "eu/n2", "boot-2").await;
    n1.shutdown().await;
    assert_eq!(call.await.unwrap(), Ok(8));
    assert_eq!((ran.begun(), ran.ended.load(Ordering::SeqCst)), (1, 1));
    n2.shutdown().await;
    bus.shutdown().await;
}

/// What a worker could not end before its shutdown is another one's soon, without waiting for the lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_shutdown_gave_up_is_taken_over_at_once() {
    if left_out() {
        return;
    }
    let server = RedisServer::start().await;
    let (first, second, transport) = (Ran::default(), Ran::default(), server.transport().await);
    let n1 = first.serve(&transport, "eu/n1", "boot-1").await;
    let bus = client(&transport, "c1").await;
    let call = tokio::spawn(double(&bus, &any(), 4, 7_000));
    until("it is begun", async || first.begun() == 1).await;
    let n2 = second.serve(&transport, "eu/n2", "boot-2").await;
    n1.shutdown().await;
    let gone = Instant::now();
    until("the other has it", async || second.begun() == 1).await;
    assert!(
        gone.elapsed() < HEARTBEAT_EVERY + Duration::from_secs(1),
        "{:?}",
        gone.elapsed()
    );
    assert_eq!(call.await.unwrap(), Ok(8));
    n2.shutdown().await;
    bus.shutdown().await;
}

/// Senders are told when a queue is deep, what was accepted is all there, and when it is empty again they go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deep_queue_overloads_its_senders_and_loses_nothing() {
    const LIMIT: usize = 50;
    if left_out() {
        return;
    }
    let server = RedisServer::start().await;
    let transport = RedisTransport::connect(server.config().depth_limit(LIMIT))
        .await
        .unwrap();
    for (at, route, key) in [
        ("eu/n1", Route::node(path("eu/n1")), "vbm:v1:{eu}:n:eu/n1"),
        ("eu/n2", any(), "vbm:v1:{eu}:g:eu:worker"),
    ] {
        let ran = Ran::default();
        let dying = ran.serve(&transport, at, "boot-1").await;
        let bus = client(&transport, "c1").await;
        dying.kill().await;
        let mut accepted = 0;
        let overloaded = loop {
            match bus
                .cast::<Double>(&route, &Work { n: 0, wait_ms: 0 }, within(PATIENCE))
                .await
            {
                Ok(()) => accepted += 1,
                Err(fate) => break fate,
            }
        };
        assert!(matches!(overloaded, Fate::Overloaded { .. }), "{overloaded:?}");
        assert!(overloaded.to_string().contains("depth limit"), "{overloaded}");
        // A sender that tries and tries gets a look in now and then, and no more.
        let again = Instant::now();
        while again.elapsed() < Duration::from_millis(300) {
            let cast = bus.cast::<Double>(&route, &Work { n: 0, wait_ms: 0 }, within(PATIENCE));
            accepted += usize::from(cast.await.is_ok());
        }
        assert!((LIMIT..=LIMIT + 10).contains(&accepted), "{accepted}");
        let depth: usize = ask(&mut server.raw().await, &["XLEN", key]).await;
        assert_eq!(depth, accepted, "nothing is trimmed");
        let living = ran.serve(&transport, at, "boot-2").await;
        until("all is done", async || ran.begun() == accepted).await;
        until("there is room again", async || {
            double(&bus, &route, 2, 0).await == Ok(4)
        })
        .await;
        living.shutdown().await;
        bus.shutdown().await;
    }
}

/// A member of an older version has no control lane: what steers it goes with the rest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_reaches_a_member_that_has_no_control_lane() {
    if left_out() {
        return;
    }
    let server = RedisServer::start().await;
    let (ran, transport) = (Ran::default(), server.transport().await);
    let n1 = ran.serve(&transport, "eu/n1", "boot-1").await;
    let bus = client(&transport, "c1").await;
    let gone: usize = ask(&mut server.raw().await, &["DEL", "vbm:v1:{eu}:n:eu/n1:ctl"]).await;
    assert_eq!(gone, 1);
    let options = within(PATIENCE).lane(Lane::Control);
    let reply = bus
        .call::<Double>(&Route::node(path("eu/n1")), &Work { n: 3, wait_ms: 0 }, options)
        .await;
    assert_eq!(reply, Ok(6));
    n1.shutdown().await;
    bus.shutdown().await;
}

/// Consumers that are gone are forgotten when they hold nothing; what one still holds is taken over first. An entry that
/// is no frame is a dead letter.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaked_consumers_are_forgotten_only_when_they_hold_nothing() {
    if left_out() {
        return;
    }
    let server = RedisServer::start().await;
    let (ran, transport, mut raw) = (Ran::default(), server.transport().await, server.raw().await);
    let key = "vbm:v1:{eu}:g:eu:worker";
    let _: Value = ask(&mut raw, &["XGROUP", "CREATE", key, "workers", "0", "MKSTREAM"]).await;
    let _: Value = ask(
        &mut raw,
        &["XGROUP", "CREATECONSUMER", key, "workers", "eu/empty|b"],
    )
    .await;
    let _: Value = ask(&mut raw, &["XADD", key, "*", "x", "y"]).await;
    let holder = [
        "XREADGROUP",
        "GROUP",
        "workers",
        "eu/holder|b",
        "STREAMS",
        key,
        ">",
    ];
    let _: Value = ask(&mut raw, &holder).await;
    let consumers = async |raw: &mut MultiplexedConnection| -> Vec<(String, i64, i64)> {
        let list: Vec<std::collections::HashMap<String, Value>> =
            ask(raw, &["XINFO", "CONSUMERS", key, "workers"]).await;
        let number = |value: &Value| redis::from_redis_value::<i64>(value.clone()).unwrap();
        list.iter()
            .map(|c| {
                let name = redis::from_redis_value::<String>(c["name"].clone()).unwrap();
                (name, number(&c["pending"]), number(&c["idle"]))
            })
            .collect()
    };
    until("both look dead", async || {
        consumers(&mut raw).await.iter().all(|(.., idle)| *idle > 4_100)
    })
    .await;
    let n1 = ran.serve(&transport, "eu/n1", "boot-1").await;
    until("the empty one is forgotten", async || {
        !consumers(&mut raw)
            .await
            .iter()
            .any(|(name, ..)| name == "eu/empty|b")
    })
    .await;
    let holder = consumers(&mut raw)
        .await
        .into_iter()
        .find(|(name, ..)| name == "eu/holder|b");
    assert_eq!(holder.map(|(_, pending, _)| pending), Some(1));
    let letters = n1.dead_letters(NodePath::root());
    until("its entry is a dead letter", async || {
        letters.list().await.unwrap().len() == 1
    })
    .await;
    let letter = letters.list().await.unwrap().remove(0);
    assert!(
        letter.reason.contains("not a frame") && letter.to == "any worker in eu",
        "{letter:?}"
    );
    let depth: usize = ask(&mut raw, &["XLEN", key]).await;
    assert_eq!(depth, 0);
    n1.shutdown().await;
}

/// What a beat of an idle member at depth 3 with one service costs Redis, in commands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_beat_costs_less_than_twenty_commands() {
    const BEATS: u32 = 4;
    if left_out() {
        return;
    }
    let server = RedisServer::start().await;
    let (ran, transport, mut raw) = (Ran::default(), server.transport().await, server.raw().await);
    let n1 = ran.serve(&transport, "eu/r1/n1", "boot-1").await;
    until("it is there", async || {
        n1.members(&NodePath::root()).await.unwrap().len() == 1
    })
    .await;
    let _: Value = ask(&mut raw, &["CONFIG", "RESETSTAT"]).await;
    sleep(HEARTBEAT_EVERY * BEATS).await;
    let stats: String = ask(&mut raw, &["INFO", "commandstats"]).await;
    let mut total = 0;
    for line in stats.lines() {
        let Some((name, calls)) = line
            .strip_prefix("cmdstat_")
            .and_then(|line| line.split_once(":calls="))
        else {
            continue;
        };
        let calls: u32 = calls.split(',').next().unwrap().parse().unwrap();
        println!("{name}: {:.1} a beat", f64::from(calls) / f64::from(BEATS));
        let reading = ["xread", "xreadgroup", "config|resetstat", "info"].contains(&name);
        total += if reading { 0 } else { calls };
    }
    println!("{:.1} commands a beat", f64::from(total) / f64::from(BEATS));
    assert!(total <= 20 * (BEATS + 1), "{total} commands in {BEATS} beats");
    n1.shutdown().await;
}

/// The operator's view needs no member: it sees queues, who takes from them, and who is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operator_sees_queues_and_who_takes_from_them() {
    if left_out() {
        return;
    }
    let server = RedisServer::start().await;
    let (ran, transport) = (Ran::default(), server.transport().await);
    let n1 = ran.serve(&transport, "eu/r1/n1", "boot-1").await;
    let bus = client(&transport, "c1").await;
    let call = tokio::spawn(double(&bus, &any(), 4, 1_000));
    until("it is begun", async || ran.begun() == 1).await;
    let admin = transport.admin().unwrap();
    let members = admin.members(&path("eu")).await.unwrap();
    assert_eq!(members.len(), 1);
    assert_eq!(members[0].versions.get(Double::NAME), Some(&1));
    let queues = admin.queues(&NodePath::root()).await.unwrap();
    let taken = queues.iter().find(|queue| queue.name == "worker in eu").unwrap();
    assert_eq!((taken.depth, taken.added), (1, 1));
    assert_eq!(
        (
            taken.takers.len(),
            taken.takers[0].name.as_str(),
            taken.takers[0].pending
        ),
        (1, "eu/r1/n1|boot-1", 1)
    );
    assert!(
        queues
            .iter()
            .any(|queue| queue.kind == vbm_rpc::admin::QueueKind::Control && queue.depth == 0)
    );
    assert_eq!(call.await.unwrap(), Ok(8));
    n1.shutdown().await;
    bus.shutdown().await;
}
