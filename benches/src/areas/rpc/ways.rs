//! What each promise costs: the result store, seals, a replica that must have it, TLS. Each is measured in turn with plain calls,
//! over TCP on loopback like them, so that it differs in nothing else: a ratio below 1 is its price.

// One place makes the papers of a test and of a bench.
#[path = "../../../../vbm-rpc/tests/common/papers.rs"]
mod papers;

use super::{
    PAYLOAD_BYTES,
    load::{Measured, measure},
    ours::{Echo, echo},
    server::RedisServer,
};
use crate::harness::{
    fault::{Fault, Outcome},
    ground::Ground,
    row::Row,
    rows::Rows,
};
use papers::Papers;
use std::{
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep};
use vbm_core::NodePath;
use vbm_rpc::{
    Bus, CallOptions, Durability, Member, Route, Router, TicketState,
    auth::{Keys, Ring, Security, Trust, Trusted},
    redis::{RedisConfig, RedisTransport},
};

/// Calls in flight.
const FLIGHTS: [usize; 3] = [1, 64, 512];
/// How long a replica may take to follow its master, and a ticket to end.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a replica is looked at meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Plain,
    Recorded,
    Keyed,
    Submitted,
    Sealed,
    Replicated,
    Tls,
}

/// All of them, and what a row calls them.
const WAYS: [(Way, &str); 7] = [
    (Way::Plain, "plain"),
    (Way::Recorded, "result store"),
    (Way::Keyed, "a key each"),
    (Way::Submitted, "a ticket each"),
    (Way::Sealed, "seals"),
    (Way::Replicated, "WAIT for a replica"),
    (Way::Tls, "TLS"),
];

/// The goals of the reference: calls a second beside plain ones.
fn goal(way: Way) -> Option<&'static str> {
    (way == Way::Recorded).then_some(">= 0.6x")
}

fn name_of(way: &str, flights: usize) -> String {
    format!("redis over TCP, {way}, {flights} in flight")
}

pub(super) async fn run(ground: &Ground, rows: &mut Rows) {
    for flights in FLIGHTS {
        let wanted = |(_, name): &&(Way, &str)| ground.wants(&name_of(name, flights));
        let ways: Vec<_> = WAYS.iter().filter(wanted).copied().collect();
        if ways.is_empty() {
            continue;
        }
        let names: Vec<String> = ways.iter().map(|(_, name)| name_of(name, flights)).collect();
        let planned: Vec<_> = names.iter().map(|name| (name.as_str(), "calls/s")).collect();
        rows.measure_all(&planned, samples(ground, flights, &ways)).await;
    }
}

async fn samples(ground: &Ground, flights: usize, ways: &[(Way, &'static str)]) -> Outcome<Vec<Row>> {
    let mut plain = Vec::new();
    let mut others: Vec<Vec<Measured>> = ways.iter().map(|_| Vec::new()).collect();
    for _ in 0..ground.rounds() {
        plain.push(round(ground, Way::Plain, flights).await?);
        for ((way, _), taken) in ways.iter().zip(&mut others) {
            if *way != Way::Plain {
                taken.push(round(ground, *way, flights).await?);
            }
        }
    }
    let mut rows = Vec::new();
    for ((way, name), taken) in ways.iter().zip(&others) {
        rows.extend(match way {
            Way::Plain => rows_of(&name_of(name, flights), &plain, None, None),
            _ => rows_of(&name_of(name, flights), taken, Some(&plain), goal(*way)),
        });
    }
    Ok(rows)
}

/// What a row adds to its name, its unit, and the figure.
type Figure = (&'static str, &'static str, fn(&Measured) -> f64);

fn rows_of(name: &str, ours: &[Measured], plain: Option<&[Measured]>, goal: Option<&str>) -> Vec<Row> {
    let figures: [Figure; 5] = [
        ("", "calls/s", |m| m.calls_per_second),
        (": p50", "us", |m| m.p50_micros),
        (": commands a call", "commands", |m| m.commands_per_call),
        (": CPU of Redis a call", "us", |m| m.broker_micros_per_call),
        (": CPU of our process a call", "us", |m| m.own_micros_per_call),
    ];
    let row = |(what, unit, of): Figure| {
        let row = Row::new(format!("{name}{what}"), unit, ours.iter().map(of).collect());
        let row = match plain {
            Some(plain) => row.against("a plain call", plain.iter().map(of).collect()),
            None => row,
        };
        goal.filter(|_| what.is_empty()).into_iter().fold(row, Row::goal)
    };
    figures.into_iter().map(row).collect()
}

/// The server of one round, and how it is reached.
struct Footing {
    server: RedisServer,
    _replica: Option<RedisServer>,
    config: RedisConfig,
    _papers: Option<Papers>,
}

/// A port that was free a moment ago.
fn free_port() -> Outcome<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Footing {
    async fn of(way: Way) -> Outcome<Self> {
        let port = free_port()?;
        if way == Way::Tls {
            let papers = Papers::make();
            // As a configuration file has it: a name and a value a line.
            let lines = papers.configuration(port, "no");
            let server = RedisServer::with(&arguments(&lines)).await?;
            let config = RedisConfig::from_url(&format!("rediss://127.0.0.1:{port}"))?;
            return Ok(Self {
                server,
                _replica: None,
                config: config.ca_file(papers.path("ca.pem")),
                _papers: Some(papers),
            });
        }
        let server = RedisServer::with(&arguments(&format!(
            "port {port}\nbind 127.0.0.1\nrepl-diskless-sync-delay 0"
        )))
        .await?;
        let replica = match way {
            Way::Replicated => Some(follower(&server, port).await?),
            _ => None,
        };
        let config = RedisConfig::from_url(&format!("redis://127.0.0.1:{port}"))?;
        Ok(Self {
            server,
            _replica: replica,
            config: match way {
                Way::Sealed => config.security(security()?),
                _ => config,
            },
            _papers: None,
        })
    }
}

/// Lines of a configuration as arguments.
fn arguments(lines: &str) -> Vec<String> {
    let of = |line: &str| -> Vec<String> {
        let (name, value) = line.split_once(' ').unwrap_or((line, ""));
        vec![format!("--{name}"), value.to_owned()]
    };
    lines.lines().flat_map(of).collect()
}

/// A replica that has all that its master has.
async fn follower(master: &RedisServer, port: u16) -> Outcome<RedisServer> {
    let own = free_port()?;
    let lines = format!("port {own}\nbind 127.0.0.1\nreplicaof 127.0.0.1 {port}");
    let mut arguments = arguments(&lines);
    // The address and the port of the master are two words.
    if let Some(master) = arguments.pop() {
        arguments.extend(master.split(' ').map(str::to_owned));
    }
    let replica = RedisServer::with(&arguments).await?;
    let (mut raw, until) = (master.connection().await?, Instant::now() + PATIENCE);
    loop {
        let told: String = redis::cmd("INFO")
            .arg("replication")
            .query_async(&mut raw)
            .await?;
        if told.contains("state=online") {
            return Ok(replica);
        }
        if Instant::now() >= until {
            return Err(Fault::new("the replica does not follow its master"));
        }
        sleep(LOOK_EVERY).await;
    }
}

fn security() -> Outcome<Security> {
    let keys = Keys::generate()?;
    let mut ring = Ring::new();
    for path in ["n1", "c1"] {
        ring.add(path.parse()?, Trusted::new(*keys.active().public()))?;
    }
    Ok(Security::On(keys, Trust::fixed(ring)))
}

async fn round(ground: &Ground, way: Way, flights: usize) -> Outcome<Measured> {
    let footing = Footing::of(way).await?;
    let transport = RedisTransport::connect(footing.config.clone()).await?;
    let router = match way {
        Way::Recorded => echo().record_all(),
        _ => echo(),
    };
    let node: NodePath = "n1".parse()?;
    let worker = Bus::attach(transport.clone(), Member::new(node.clone(), "worker"), router).await?;
    let bus = Bus::attach(transport, Member::new("c1".parse()?, "caller"), Router::new()).await?;
    let (calling, route, count) = (bus.clone(), Route::node(node), Arc::new(AtomicU64::new(0)));
    let measured = measure(ground, Some(&footing.server), flights, move |_lane| {
        let (bus, route) = (calling.clone(), route.clone());
        let n = count.fetch_add(1, Ordering::Relaxed);
        async move { one(&bus, &route, way, n).await }
    })
    .await;
    bus.shutdown().await;
    worker.shutdown().await;
    measured
}

async fn one(bus: &Bus, route: &Route, way: Way, n: u64) -> Outcome<()> {
    let text = "x".repeat(PAYLOAD_BYTES);
    let options = match way {
        Way::Keyed => CallOptions::default().idempotency_key(format!("key-{n}")),
        Way::Replicated => CallOptions::default().durability(Durability::Replicated),
        _ => CallOptions::default(),
    };
    let failed = |what: String| Fault::new(format!("a call: {what}"));
    if way != Way::Submitted {
        let called = bus.call::<Echo>(route, &text, options).await;
        return called.map(drop).map_err(|fate| failed(format!("{fate:?}")));
    }
    let ticket = bus.submit::<Echo>(route, &text, options.into()).await;
    let ticket = ticket.map_err(|fate| failed(format!("{fate:?}")))?;
    match bus.ticket(&ticket)?.wait(PATIENCE).await? {
        TicketState::Ended(Ok(_reply)) => Ok(()),
        other => Err(failed(format!("{other:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_stands_beside_plain_calls_and_has_its_goal() {
        let taken = [Measured::of(&[1.0, 2.0, 3.0], 1.0).unwrap()];
        let plain = [Measured::of(&[1.0; 4], 1.0).unwrap()];
        let name = name_of("result store", 512);
        let rows = rows_of(&name, &taken, Some(&plain), goal(Way::Recorded));
        assert_eq!(rows[0].name, "redis over TCP, result store, 512 in flight");
        assert_eq!((rows[0].ratio, rows[0].met), (Some(0.75), Some(true)));
        assert!(
            rows[1..]
                .iter()
                .all(|row| row.goal.is_none() && row.peer.is_some())
        );
        let alone = rows_of(&name_of("plain", 1), &plain, None, goal(Way::Plain));
        assert!(alone.iter().all(|row| row.peer.is_none() && !row.failed));
    }

    #[test]
    fn lines_of_a_configuration_become_arguments() {
        assert_eq!(
            arguments("tls-port 7\nbind 127.0.0.1"),
            ["--tls-port", "7", "--bind", "127.0.0.1"]
        );
    }
}
