//! What each promise costs: calls a second with nothing but speed, with every answer recorded, with a key for each call, with a
//! ticket each, with a replica that must have it, with seals, over TLS; and how long it takes until calls end well
//! again. `cargo bench -p vbm-rpc --bench ways [-- NAME.. FLIGHTS..]`. Gates nothing.
#![allow(clippy::print_stdout, reason = "a program that prints a table")]
#![allow(unreachable_pub, reason = "shared with the tests")]

#[path = "../../tests/common/mod.rs"]
mod common;
#[path = "../load/mod.rs"]
mod load;
mod recovery;

use common::{
    papers::Papers,
    sets::{REDIS, Server, free_ports, retry},
};
use load::{Echo, PAYLOAD_BYTES, ROUND, ROUNDS, Row, chosen, measure, median};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use vbm_rpc::{
    Bus, CallOptions, Durability, Member, Route, Router, TicketState,
    auth::{Keys, Ring, Security, Trust, Trusted},
    redis::{RedisConfig, RedisTransport},
};

const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Plain,
    Recorded,
    Keyed,
    Submitted,
    Sealed,
    Replicated,
    Tls,
}

const WAYS: [(Way, &str); 7] = [
    (Way::Plain, "plain"),
    (Way::Recorded, "recorded"),
    (Way::Keyed, "keyed"),
    (Way::Submitted, "submitted"),
    (Way::Sealed, "sealed"),
    (Way::Replicated, "replicated"),
    (Way::Tls, "tls"),
];
const NAMES: [&str; 9] = [
    "plain",
    "recorded",
    "keyed",
    "submitted",
    "sealed",
    "replicated",
    "tls",
    "failover",
    "takeover",
];
const FLIGHTS: [&str; 3] = ["1", "64", "512"];

/// All ways go over TCP on loopback, so that they differ in nothing else.
struct Ground {
    server: Server,
    _replica: Option<Server>,
    config: RedisConfig,
    _papers: Option<Papers>,
}

impl Ground {
    async fn of(way: Way) -> Self {
        if way == Way::Tls {
            let (papers, [port]) = (Papers::make(), free_ports());
            let server = Server::start(REDIS, &papers.configuration(port, "no")).await;
            let config = RedisConfig::from_url(&format!("rediss://127.0.0.1:{port}")).expect("an address");
            return Self {
                config: config.ca_file(papers.path("ca.pem")),
                server,
                _replica: None,
                _papers: Some(papers),
            };
        }
        let server = Server::start(REDIS, "repl-diskless-sync-delay 0").await;
        let mut replica = None;
        if way == Way::Replicated {
            let of = format!("replicaof 127.0.0.1 {}", server.port);
            replica = Some(Server::start(REDIS, &of).await);
            retry(async || {
                let info = server.text(&["INFO", "replication"]).await;
                info.contains("state=online").then_some(())
            })
            .await;
        }
        let config = match way {
            Way::Sealed => server.config().security(security()),
            _ => server.config(),
        };
        Self {
            config,
            server,
            _replica: replica,
            _papers: None,
        }
    }
}

fn security() -> Security {
    let keys = Keys::generate().expect("random bytes");
    let mut ring = Ring::new();
    for path in ["n1", "c1"] {
        let path = path.parse().expect("a path");
        ring.add(path, Trusted::new(*keys.active().public()))
            .expect("a line");
    }
    Security::On(keys, Trust::fixed(ring))
}

async fn round(way: Way, flights: usize) -> Row {
    let ground = Ground::of(way).await;
    let transport = RedisTransport::connect(ground.config.clone())
        .await
        .expect("a fit server");
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
    let raw = redis::Client::open(format!("redis://{}", ground.server.address())).expect("an address");
    let raw = raw
        .get_multiplexed_async_connection()
        .await
        .expect("a connection");
    let (caller, count) = (bus.clone(), Arc::new(AtomicU64::new(0)));
    let row = measure(Some(raw), flights, move |_lane| {
        let (bus, n) = (caller.clone(), count.fetch_add(1, Ordering::Relaxed));
        async move { one(&bus, way, n).await }
    })
    .await;
    bus.shutdown().await;
    worker.shutdown().await;
    row
}

async fn one(bus: &Bus, way: Way, n: u64) {
    let (route, text) = (
        Route::node("n1".parse().expect("a path")),
        "x".repeat(PAYLOAD_BYTES),
    );
    let options = match way {
        Way::Keyed => CallOptions::default().idempotency_key(format!("key-{n}")),
        Way::Replicated => CallOptions::default().durability(Durability::Replicated),
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

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    println!("{ROUNDS} rounds of {ROUND:?} each, interleaved, medians; {PAYLOAD_BYTES}-byte payloads, TCP\n");
    println!(
        "{:<10} {:>9} {:>12} {:>10} {:>10} {:>12} {:>9} {:>9}",
        "what", "in flight", "calls/s", "p50 us", "cmds/call", "broker us", "own us", "of plain"
    );
    for flights in FLIGHTS.into_iter().filter(|flights| chosen(&FLIGHTS, flights)) {
        let ways: Vec<_> = WAYS
            .into_iter()
            .filter(|(_, name)| chosen(&NAMES, name))
            .collect();
        let mut rows: Vec<Vec<Row>> = ways.iter().map(|_| Vec::new()).collect();
        for _ in 0..ROUNDS {
            for ((way, _), rows) in ways.iter().zip(&mut rows) {
                rows.push(round(*way, flights.parse().expect("a number")).await);
            }
        }
        let rows: Vec<Row> = rows.into_iter().filter_map(median).collect();
        let plain = ways.iter().position(|(way, _)| *way == Way::Plain);
        let plain = plain.map_or(f64::NAN, |at| rows[at].calls_per_second);
        for ((_, name), row) in ways.iter().zip(&rows) {
            println!(
                "{name:<10} {flights:>9} {:>12.0} {:>10} {:>10.2} {:>12.2} {:>9.2} {:>9.2}",
                row.calls_per_second,
                row.p50.as_micros(),
                row.commands_per_call,
                row.broker_micros_per_call,
                row.own_micros_per_call,
                row.calls_per_second / plain,
            );
        }
    }
    if chosen(&NAMES, "failover") {
        recovery::failover().await;
    }
    if chosen(&NAMES, "takeover") {
        recovery::takeover().await;
    }
}
