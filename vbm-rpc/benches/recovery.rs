//! How long it takes until calls end well again: `cargo bench -p vbm-rpc --bench recovery [-- failover takeover]`. Gates nothing.
//! What each promise costs is measured by `cargo xtask bench rpc`.
#![allow(clippy::print_stdout, reason = "a program that prints figures")]
#![allow(unreachable_pub, reason = "shared with the tests")]

#[path = "../tests/common/mod.rs"]
mod common;
mod load;

use common::sets::{DOWN_AFTER, SentinelSet};
use load::{Echo, PAYLOAD_BYTES, ROUNDS, chosen};
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use vbm_rpc::{Bus, CallOptions, Member, Route, Router, Service};

const PATIENCE: Duration = Duration::from_secs(60);
const NAMES: [&str; 2] = ["failover", "takeover"];
const FLIGHTS: usize = 64;
const WARM: Duration = Duration::from_secs(1);
/// How long a handler works, so that each worker has some in hand when it dies.
const WORK: Duration = Duration::from_millis(20);

/// When calls ended, begun when, and how many did not end well.
#[derive(Default)]
struct Log {
    ends: Mutex<Vec<(Instant, Instant)>>,
    fates: AtomicUsize,
    over: AtomicBool,
}

impl Log {
    fn ends(&self) -> Vec<(Instant, Instant)> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Calls in `FLIGHTS` loops until the log is over.
fn load(bus: &Bus, route: &Route, log: &Arc<Log>) -> JoinSet<()> {
    let mut loops = JoinSet::new();
    for _ in 0..FLIGHTS {
        let (bus, route, log) = (bus.clone(), route.clone(), log.clone());
        loops.spawn(async move {
            let text = "x".repeat(PAYLOAD_BYTES);
            while !log.over.load(Ordering::Relaxed) {
                let begin = Instant::now();
                let options = CallOptions::default().deadline(PATIENCE);
                match bus.call::<Echo>(&route, &text, options).await {
                    Ok(_reply) => {
                        let mut ends = log.ends.lock().unwrap_or_else(PoisonError::into_inner);
                        ends.push((begin, Instant::now()));
                    }
                    Err(_fate) => {
                        log.fates.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
    }
    loops
}

fn router(work: Duration) -> Router {
    Router::new().method::<Echo, _, _>(move |_context, text: String| async move {
        if !work.is_zero() {
            sleep(work).await;
        }
        Ok(text)
    })
}

fn path(text: &str) -> vbm_core::NodePath {
    text.parse().expect("a path")
}

/// SIGKILL of the master until the first call that was begun after it ends well.
async fn failover() {
    println!(
        "\nSentinel, SIGKILL of the master, {FLIGHTS} in flight, down-after {DOWN_AFTER:?}: until a call ends well again"
    );
    for _ in 0..ROUNDS {
        let mut set = SentinelSet::start("").await;
        let transport = set.transport().await;
        let worker = Bus::attach(
            transport.clone(),
            Member::new(path("n1"), "w"),
            router(Duration::ZERO),
        );
        let worker = worker.await.expect("a worker");
        let bus = Bus::attach(transport, Member::new(path("c1"), "c"), Router::new());
        let bus = bus.await.expect("a client");
        let log = Arc::new(Log::default());
        let loops = load(&bus, &Route::node(path("n1")), &log);
        sleep(WARM).await;
        let master = set.master().await.expect("a master");
        set.servers[master].kill();
        let killed = Instant::now();
        // Frames of the dead master's last moment may still be read: what is asked is a call that began later.
        let again = timeout(PATIENCE, async {
            loop {
                if let Some((_, end)) = log
                    .ends()
                    .into_iter()
                    .find(|(_, end)| *end > killed + DOWN_AFTER / 2)
                {
                    return end - killed;
                }
                sleep(Duration::from_millis(10)).await;
            }
        });
        let again = again.await.expect("calls end well again");
        sleep(WARM).await;
        log.over.store(true, Ordering::Relaxed);
        loops.join_all().await;
        println!(
            "  {:>6.2} s; {} calls ended well, {} otherwise",
            again.as_secs_f64(),
            log.ends().len(),
            log.fates.load(Ordering::Relaxed)
        );
        bus.shutdown().await;
        worker.shutdown().await;
    }
}

/// The death of one of two workers until all calls have ended that were in flight then.
async fn takeover() {
    println!(
        "\nOne of two workers dies without a word, {FLIGHTS} in flight to any: until all that were in flight then have ended"
    );
    for _ in 0..ROUNDS {
        let server = common::RedisServer::start().await;
        let transport = server.transport().await;
        let service = Service::new("worker").expect("a name");
        let mut workers = Vec::new();
        for name in ["n1", "n2"] {
            let member = Member::new(path(name), "w").service(service.clone());
            let worker = Bus::attach(transport.clone(), member, router(WORK)).await;
            workers.push(worker.expect("a worker"));
        }
        let bus = Bus::attach(transport, Member::new(path("c1"), "c"), Router::new());
        let bus = bus.await.expect("a client");
        let log = Arc::new(Log::default());
        let loops = load(&bus, &Route::any(path("/"), service), &log);
        sleep(WARM).await;
        let killed = Instant::now();
        workers.remove(0).kill().await;
        log.over.store(true, Ordering::Relaxed);
        // Each loop ends with the call that it had in flight.
        timeout(PATIENCE, loops.join_all()).await.expect("all end");
        let last = log.ends().into_iter().map(|(_, end)| end).max();
        let late = log.ends().into_iter().filter(|(_, end)| *end > killed + 5 * WORK);
        println!(
            "  {:>6.2} s; {} of {FLIGHTS} had to be taken over, {} ended otherwise than well",
            last.map_or(0.0, |last| (last - killed).as_secs_f64()),
            late.count(),
            log.fates.load(Ordering::Relaxed)
        );
        bus.shutdown().await;
        for worker in workers {
            worker.shutdown().await;
        }
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    if chosen(&NAMES, "failover") {
        failover().await;
    }
    if chosen(&NAMES, "takeover") {
        takeover().await;
    }
}
