//! What the result store costs: calls a second with nothing recorded, with every answer recorded, with a key for each
//! call, and submitted with a ticket each; over a Redis of its own. `cargo bench -p vbm-rpc --bench results`. Gates nothing.
#![allow(clippy::print_stdout, reason = "a program that prints a table")]
#![allow(unreachable_pub, reason = "shared with the tests")]

#[path = "../tests/common/mod.rs"]
mod common;

use common::RedisServer;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep};
use vbm_rpc::{Bus, CallOptions, Member, Method, Route, Router, TicketState};

const PAYLOAD_BYTES: usize = 128;
const ROUNDS: usize = 3;
const ROUND: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(60);

struct Echo;
impl Method for Echo {
    const NAME: &'static str = "bench.echo";
    type Request = String;
    type Reply = String;
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Plain,
    Recorded,
    Keyed,
    Submitted,
}

const WAYS: [(Way, &str); 4] = [
    (Way::Plain, "plain"),
    (Way::Recorded, "recorded"),
    (Way::Keyed, "keyed"),
    (Way::Submitted, "submitted"),
];

struct Row {
    calls_per_second: f64,
    commands_per_call: f64,
    broker_micros_per_call: f64,
}

async fn round(way: Way, flights: usize) -> Row {
    let server = RedisServer::start().await;
    let transport = server.transport().await;
    let mut router = Router::new().method::<Echo, _, _>(|_context, text: String| async move { Ok(text) });
    if way == Way::Recorded {
        router = router.record_all();
    }
    let path = |text: &str| text.parse().expect("a path");
    let worker = Bus::attach(transport.clone(), Member::new(path("n1"), "w"), router)
        .await
        .expect("a worker");
    let bus = Bus::attach(transport, Member::new(path("c1"), "c"), Router::new())
        .await
        .expect("a client");
    let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let before = info(&server).await;
    let begin = Instant::now();
    let lanes: Vec<_> = (0..flights)
        .map(|_| {
            let (stop, count, bus) = (stop.clone(), count.clone(), bus.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let n = count.fetch_add(1, Ordering::Relaxed);
                    one(&bus, way, n).await;
                }
            })
        })
        .collect();
    sleep(ROUND).await;
    stop.store(true, Ordering::Relaxed);
    for lane in lanes {
        lane.await.expect("no panic");
    }
    let elapsed = begin.elapsed().as_secs_f64();
    let after = info(&server).await;
    bus.shutdown().await;
    worker.shutdown().await;
    let calls = count.load(Ordering::Relaxed).max(1) as f64;
    Row {
        calls_per_second: calls / elapsed,
        commands_per_call: (after.0 - before.0) / calls,
        broker_micros_per_call: (after.1 - before.1) * 1e6 / calls,
    }
}

async fn one(bus: &Bus, way: Way, n: u64) {
    let (route, text) = (
        Route::node("n1".parse().expect("a path")),
        "x".repeat(PAYLOAD_BYTES),
    );
    let options = match way {
        Way::Keyed => CallOptions::default().idempotency_key(format!("key-{n}")),
        _ => CallOptions::default(),
    };
    if way == Way::Submitted {
        let ticket = bus
            .submit::<Echo>(&route, &text, options.into())
            .await
            .expect("a ticket");
        let handle = bus.ticket(&ticket).expect("a store");
        let state = handle.wait(PATIENCE).await.expect("an answer");
        assert!(matches!(state, TicketState::Ended(Ok(_))), "it is done");
        return;
    }
    drop(bus.call::<Echo>(&route, &text, options).await.expect("a reply"));
}

/// Commands and CPU seconds of the server so far.
async fn info(server: &RedisServer) -> (f64, f64) {
    let text: String = redis::cmd("INFO")
        .query_async(&mut server.raw().await)
        .await
        .expect("INFO");
    let field = |name: &str| -> f64 {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|value| value.trim().parse().ok())
            .unwrap_or_default()
    };
    (
        field("total_commands_processed"),
        field("used_cpu_sys") + field("used_cpu_user"),
    )
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    println!("{ROUNDS} rounds of {ROUND:?} each, interleaved, medians; {PAYLOAD_BYTES}-byte payloads\n");
    println!(
        "{:<10} {:>9} {:>12} {:>10} {:>12} {:>9}",
        "what", "in flight", "calls/s", "cmds/call", "broker us", "of plain"
    );
    for flights in [1, 64, 512] {
        let mut rows: Vec<Vec<Row>> = WAYS.iter().map(|_| Vec::new()).collect();
        for _ in 0..ROUNDS {
            for ((way, _), rows) in WAYS.iter().zip(&mut rows) {
                rows.push(round(*way, flights).await);
            }
        }
        let rows: Vec<Row> = rows.into_iter().map(median).collect();
        for ((_, name), row) in WAYS.iter().zip(&rows) {
            println!(
                "{name:<10} {flights:>9} {:>12.0} {:>10.2} {:>12.2} {:>9.2}",
                row.calls_per_second,
                row.commands_per_call,
                row.broker_micros_per_call,
                row.calls_per_second / rows[0].calls_per_second,
            );
        }
    }
}

fn median(mut rows: Vec<Row>) -> Row {
    rows.sort_by(|a, b| a.calls_per_second.total_cmp(&b.calls_per_second));
    rows.swap_remove(rows.len() / 2)
}
