//! Calls a second over a Redis of its own, beside naive BLPOP in the same run. `cargo bench -p vbm-rpc`. Gates nothing.
#![allow(clippy::print_stdout, reason = "a program that prints a table")]
#![allow(unreachable_pub, reason = "shared with the tests")]

#[path = "../tests/common/mod.rs"]
mod common;
mod load;

use common::RedisServer;
use load::{Echo, PAYLOAD_BYTES, ROUND, ROUNDS, Row, chosen, measure, median};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;
use vbm_rpc::{
    Bus, CallOptions, Member, Route, Router, Service,
    auth::{Bound, Keys, Ring, Security, Speaker, Trust, Trusted, Way, open, seal_for_any, seal_for_one},
    memory::MemoryBus,
    redis::RedisTransport,
};

const KINDS: [&str; 6] = ["redis", "sealed", "any", "sealed any", "blpop", "memory"];
/// How many calls are in flight.
const FLIGHTS: [&str; 3] = ["1", "64", "512"];

async fn raw(server: Option<&RedisServer>) -> Option<redis::aio::MultiplexedConnection> {
    match server {
        Some(server) => Some(server.raw().await),
        None => None,
    }
}

/// To one node by its path: the entry has one reader.
fn to_node() -> Route {
    Route::node("n1".parse().expect("a path"))
}

/// To any member of a service: the entry has readers that nobody knows.
fn to_any() -> Route {
    let worker = Service::new("worker").expect("a name");
    Route::any("/".parse().expect("a path"), worker)
}

/// The bus with every entry sealed and opened.
async fn sealing(server: &RedisServer) -> RedisTransport {
    let keys = Keys::generate().expect("random bytes");
    let mut ring = Ring::new();
    for path in ["n1", "c1"] {
        let path = path.parse().expect("a path");
        ring.add(path, Trusted::new(*keys.active().public()))
            .expect("a line");
    }
    let config = server.config().security(Security::On(keys, Trust::fixed(ring)));
    RedisTransport::connect(config).await.expect("a fit server")
}

/// What sealing and opening one entry costs by itself.
fn seal_costs() {
    const TURNS: u32 = 2_000;
    let (mine, theirs) = (Keys::generate().expect("keys"), Keys::generate().expect("keys"));
    let (a, b) = ("c1".parse().expect("a path"), "n1".parse().expect("a path"));
    let way = Way::Sending { from: &a, to: &b };
    let public = *theirs.active().public();
    let pair = mine.active().pair(&public, "vbm", way).expect("a key");
    let mut ring = Ring::new();
    ring.add(a.clone(), Trusted::new(*mine.active().public()))
        .expect("a line");
    let speaker = || Speaker {
        path: a.clone(),
        boot_id: "boot".into(),
        session: 1,
        seq: 1,
        time_ms: 1,
    };
    println!(
        "{:<22} {:>9} {:>9} {:>9}",
        "one entry, us", "bytes", "seal", "open"
    );
    for bytes in [300, 16 * 1024, 256 * 1024] {
        let frames = vec![7; bytes];
        let bound = Bound {
            stream: "vbm:v1:{/}:n:n1",
            scope: "",
            service: "",
            frames: &frames,
        };
        for for_one in [true, false] {
            let seal = || match for_one {
                true => seal_for_one(mine.active().id(), theirs.active().id(), &pair, speaker(), &bound),
                false => seal_for_any(mine.active(), speaker(), &bound),
            };
            let begin = Instant::now();
            for _ in 0..TURNS {
                std::hint::black_box(seal());
            }
            let sealed = begin.elapsed() / TURNS;
            let made = seal();
            let begin = Instant::now();
            for _ in 0..TURNS {
                let opened = open(&made, &bound, for_one, &theirs, &ring, |_, _, _| {
                    Some(pair.clone())
                });
                std::hint::black_box(opened.expect("it fits"));
            }
            let opened = begin.elapsed() / TURNS;
            let name = if for_one {
                "tag (unicast, reply)"
            } else {
                "signature (any, all)"
            };
            let us = |span: Duration| span.as_secs_f64() * 1e6;
            println!("{name:<22} {bytes:>9} {:>9.2} {:>9.2}", us(sealed), us(opened));
        }
    }
    println!();
}

async fn bus_round(
    transport: Arc<dyn vbm_rpc::Transport>,
    server: Option<&RedisServer>,
    flights: usize,
    route: Route,
) -> Row {
    let router = Router::new().method::<Echo, _, _>(|_context, text: String| async move { Ok(text) });
    let path = |text: &str| text.parse().expect("a path");
    let member = Member::new(path("n1"), "w").service(Service::new("worker").expect("a name"));
    let worker = Bus::attach(transport.clone(), member, router)
        .await
        .expect("a worker");
    let bus = Bus::attach(transport, Member::new(path("c1"), "c"), Router::new())
        .await
        .expect("a client");
    let caller = bus.clone();
    let text = "x".repeat(PAYLOAD_BYTES);
    let row = measure(raw(server).await, flights, move |_lane| {
        let call = caller.call::<Echo>(&route, &text, CallOptions::default());
        async move { drop(call.await.expect("a reply")) }
    })
    .await;
    bus.shutdown().await;
    worker.shutdown().await;
    row
}

/// RPUSH a request, BLPOP it in one of as many workers, RPUSH the reply, BLPOP that: what one writes on a first day.
async fn naive_round(server: &RedisServer, flights: usize) -> Row {
    let mut workers = Vec::new();
    let mut clients = Vec::new();
    for _ in 0..flights {
        let mut connection = blocking(server).await;
        workers.push(tokio::spawn(async move {
            loop {
                let popped: redis::RedisResult<(String, Vec<u8>)> = redis::cmd("BLPOP")
                    .arg("requests")
                    .arg(0)
                    .query_async(&mut connection)
                    .await;
                let Ok((_, request)) = popped else { return };
                let lane = String::from_utf8_lossy(&request[PAYLOAD_BYTES..]).into_owned();
                let pushed: redis::RedisResult<i64> = redis::cmd("RPUSH")
                    .arg(format!("reply:{lane}"))
                    .arg(&request[..PAYLOAD_BYTES])
                    .query_async(&mut connection)
                    .await;
                if pushed.is_err() {
                    return;
                }
            }
        }));
        clients.push(blocking(server).await);
    }
    let clients = Arc::new(clients);
    let row = measure(Some(server.raw().await), flights, move |lane| {
        let mut connection = clients[lane].clone();
        async move {
            let request = format!("{}{lane}", "x".repeat(PAYLOAD_BYTES));
            let _: i64 = redis::cmd("RPUSH")
                .arg("requests")
                .arg(request)
                .query_async(&mut connection)
                .await
                .expect("RPUSH");
            let _: (String, Vec<u8>) = redis::cmd("BLPOP")
                .arg(format!("reply:{lane}"))
                .arg(0)
                .query_async(&mut connection)
                .await
                .expect("BLPOP");
        }
    })
    .await;
    for worker in workers {
        worker.abort();
    }
    row
}

async fn blocking(server: &RedisServer) -> redis::aio::MultiplexedConnection {
    let config = redis::AsyncConnectionConfig::new().set_response_timeout(None);
    let client = redis::Client::open(server.url()).expect("an address");
    client
        .get_multiplexed_async_connection_with_config(&config)
        .await
        .expect("a connection")
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    println!("{ROUNDS} rounds of {ROUND:?} each, interleaved, medians; {PAYLOAD_BYTES}-byte payloads\n");
    seal_costs();
    println!(
        "{:<10} {:>9} {:>12} {:>10} {:>10} {:>12} {:>9} {:>9}",
        "what", "in flight", "calls/s", "p50 us", "cmds/call", "broker us", "own us", "ratio"
    );
    // `cargo bench -p vbm-rpc --bench bus -- redis 512`: only these, for a look with a profiler.
    for flights in FLIGHTS {
        if !chosen(&FLIGHTS, flights) {
            continue;
        }
        let many: usize = flights.parse().expect("a number");
        let mut rows: Vec<Vec<Row>> = KINDS.map(|_| Vec::new()).into();
        for _ in 0..ROUNDS {
            for (kind, rows) in KINDS.into_iter().zip(&mut rows) {
                if !chosen(&KINDS, kind) {
                    continue;
                }
                let server = RedisServer::start().await;
                rows.push(match kind {
                    "redis" => {
                        bus_round(server.transport().await.into(), Some(&server), many, to_node()).await
                    }
                    "sealed" => {
                        bus_round(sealing(&server).await.into(), Some(&server), many, to_node()).await
                    }
                    "any" => bus_round(server.transport().await.into(), Some(&server), many, to_any()).await,
                    "sealed any" => {
                        bus_round(sealing(&server).await.into(), Some(&server), many, to_any()).await
                    }
                    "blpop" => naive_round(&server, many).await,
                    _ => bus_round(MemoryBus::new().into(), None, many, to_node()).await,
                });
            }
        }
        let rows: Vec<Option<Row>> = rows.into_iter().map(median).collect();
        let naive = KINDS.iter().position(|kind| *kind == "blpop");
        let naive = naive.and_then(|at| rows[at].as_ref());
        let naive = naive.map_or(f64::NAN, |row| row.calls_per_second);
        for (name, row) in KINDS.into_iter().zip(&rows) {
            let Some(row) = row else { continue };
            println!(
                "{name:<10} {flights:>9} {:>12.0} {:>10} {:>10.2} {:>12.2} {:>9.2} {:>9.2}",
                row.calls_per_second,
                row.p50.as_micros(),
                row.commands_per_call,
                row.broker_micros_per_call,
                row.own_micros_per_call,
                row.calls_per_second / naive,
            );
        }
    }
}
