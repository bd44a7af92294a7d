//! The bus beside its peers, each as its users run it.
//!
//! ```text
//!   for each shape (calls in flight, payload, nodes):
//!     ours, peer, peer, ..., ours, peer, peer, ...      in turn, each on a broker of its own, fresh for each sample
//!       `--> a row beside each peer: calls/s, and p50 at one call; our tail, broker and process alone
//! ```
//!
//! Caller and workers are attachments in this process, for ours as for the peers (but oslo.messaging, which is Python); the
//! broker is a child on a unix socket (Redis) or on loopback inside our namespace (NATS, RabbitMQ). A peer that is not
//! there is named with how to get it, and is no failure.

#[cfg(feature = "tonic")]
mod grpc;
mod load;
mod naive;
#[cfg(feature = "nats")]
mod nats;
mod oslo;
mod ours;
mod peer;
mod rabbit;
mod raw;
mod server;
mod ways;

use crate::harness::{
    duel::solo,
    fault::{Fault, Outcome},
    ground::Ground,
    row::Row,
    rows::Rows,
};
use load::{Measured, Shape};
use peer::Peer;
use server::RedisServer;

/// The body of a request and of its reply, where nothing else is said.
const PAYLOAD_BYTES: usize = 128;

const fn shape(flights: usize) -> Shape {
    Shape {
        flights,
        payload: PAYLOAD_BYTES,
        nodes: 1,
    }
}

/// One node, small bodies.
const FLIGHTS: [usize; 4] = [1, 64, 512, 4_096];
/// Larger bodies, bytes; 64 in flight.
const PAYLOADS: [usize; 2] = [4_096, 65_536];
/// Calls in flight to 64 nodes.
const MANY_NODES: usize = 64;
const MANY_NODES_FLIGHTS: [usize; 2] = [64, 512];

/// The goals of the reference: calls a second, by peer and shape.
fn goal(peer: Peer, shape: Shape) -> Option<&'static str> {
    match (peer, shape.payload, shape.nodes, shape.flights) {
        (Peer::Blpop, PAYLOAD_BYTES, 1, 512) => Some(">= 12x"),
        (Peer::Nats, PAYLOAD_BYTES, 1, 512) => Some(">= 3x"),
        (Peer::Nats, PAYLOAD_BYTES, 1, 64) => Some(">= 1.4x"),
        (Peer::Rabbit, PAYLOAD_BYTES, 1, 512) => Some(">= 8x"),
        (Peer::Nats, PAYLOAD_BYTES, MANY_NODES, 64) => Some(">= 0.75x"),
        (Peer::Nats, PAYLOAD_BYTES, MANY_NODES, 512) => Some(">= 0.85x"),
        _ => None,
    }
}

/// The goals of the reference: p50 at one call in flight.
const fn p50_goal(peer: Peer) -> Option<&'static str> {
    match peer {
        Peer::Nats => Some("<= 1.25x"),
        Peer::Rabbit => Some("<= 0.6x"),
        _ => None,
    }
}

fn name_of(shape: Shape) -> String {
    let mut name = format!("redis, {} in flight", shape.flights);
    if shape.payload != PAYLOAD_BYTES {
        name.push_str(&format!(", {} KiB", shape.payload / 1_024));
    }
    if shape.nodes > 1 {
        name.push_str(&format!(", {} nodes", shape.nodes));
    }
    name
}

pub(crate) async fn run(ground: &Ground, rows: &mut Rows) {
    for flights in FLIGHTS {
        contest(ground, rows, shape(flights), &Peer::ALL).await;
    }
    for flights in MANY_NODES_FLIGHTS {
        let shape = Shape {
            nodes: MANY_NODES,
            ..shape(flights)
        };
        contest(ground, rows, shape, &[Peer::Nats]).await;
    }
    for payload in PAYLOADS {
        let shape = Shape { payload, ..shape(64) };
        contest(ground, rows, shape, &[Peer::Nats, Peer::Rabbit]).await;
    }
    for flights in [1, 64, 512] {
        let name = format!("memory, {flights} in flight");
        if !ground.wants(&name) {
            continue;
        }
        rows.measure(&name, "calls/s", memory(ground, flights)).await;
    }
    ways::run(ground, rows).await;
    raw::run(ground, rows).await;
}

/// Ours and the peers that are there, in turn; all rows come from the same samples.
async fn contest(ground: &Ground, rows: &mut Rows, shape: Shape, peers: &[Peer]) {
    let name = name_of(shape);
    if !ground.wants(&name) {
        return;
    }
    let peers: Vec<Peer> = peers.iter().copied().filter(|peer| peer.fits(shape)).collect();
    rows.measure_all(&[(&name, "calls/s")], samples(ground, shape, &peers))
        .await;
}

async fn samples(ground: &Ground, shape: Shape, peers: &[Peer]) -> Outcome<Vec<Row>> {
    let mut ours = Vec::new();
    let mut theirs: Vec<(Peer, Result<Vec<Measured>, String>)> = peers
        .iter()
        .map(|&peer| (peer, peer.missing().map_or_else(|| Ok(Vec::new()), Err)))
        .collect();
    for _ in 0..ground.rounds() {
        let server = RedisServer::start().await?;
        ours.push(ours::over_redis(ground, &server, shape).await?);
        drop(server);
        for (peer, samples) in &mut theirs {
            let Ok(taken) = samples else { continue };
            match peer.round(ground, shape).await {
                Ok(one) => taken.push(one),
                // Another's failure must not hide ours.
                Err(Fault(why)) => *samples = Err(why),
            }
        }
    }
    Ok(rows_of(shape, &ours, &theirs))
}

fn rows_of(shape: Shape, ours: &[Measured], theirs: &[(Peer, Result<Vec<Measured>, String>)]) -> Vec<Row> {
    let name = name_of(shape);
    let take = |from: &[Measured], of: fn(&Measured) -> f64| from.iter().map(of).collect::<Vec<_>>();
    let mut rows = Vec::new();
    for (peer, samples) in theirs {
        let beside = |row: Row, of: fn(&Measured) -> f64, goal: Option<&str>| {
            let row = match samples {
                Ok(samples) => row.against(peer.name(), take(samples, of)),
                Err(why) => row.without(peer.name(), why),
            };
            goal.into_iter().fold(row, Row::goal)
        };
        let row = Row::new(&name, "calls/s", take(ours, |m| m.calls_per_second));
        rows.push(beside(row, |m| m.calls_per_second, goal(*peer, shape)));
        let row = Row::new(format!("{name}: p50"), "us", take(ours, |m| m.p50_micros));
        let p50_goal = p50_goal(*peer).filter(|_| shape.flights == 1);
        rows.push(beside(row, |m| m.p50_micros, p50_goal));
        let row = Row::new(format!("{name}: p99"), "us", take(ours, |m| m.p99_micros));
        rows.push(beside(row, |m| m.p99_micros, None));
        let row = Row::new(format!("{name}: p99.9"), "us", take(ours, |m| m.p999_micros));
        rows.push(beside(row, |m| m.p999_micros, None));
    }
    let mut alone = |what: &str, unit, of: fn(&Measured) -> f64, goal: Option<&str>| {
        let row = Row::new(format!("{name}: {what}"), unit, take(ours, of));
        rows.push(goal.into_iter().fold(row, Row::goal));
    };
    let (few, hot) = (shape.flights == 1, shape.flights == 512 && shape.nodes == 1);
    let commands = match (few, hot) {
        (true, _) => Some("<= 5"),
        (_, true) => Some("<= 0.1"),
        _ => None,
    };
    alone("commands a call", "commands", |m| m.commands_per_call, commands);
    let cpu = hot.then_some("<= 2.5");
    alone("CPU of Redis a call", "us", |m| m.broker_micros_per_call, cpu);
    alone("CPU of our process a call", "us", |m| m.own_micros_per_call, None);
    alone("memory of Redis", "MB", |m| m.broker_memory_mb, None);
    rows
}

async fn memory(ground: &Ground, flights: usize) -> Outcome<Row> {
    let samples = solo(ground.rounds(), async |_| {
        Ok(ours::over_memory(ground, shape(flights)).await?.calls_per_second)
    });
    Ok(Row::new(
        format!("memory, {flights} in flight"),
        "calls/s",
        samples.await?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_named_by_what_is_not_usual_and_have_their_goals() {
        let many = Shape {
            nodes: 64,
            ..shape(64)
        };
        assert_eq!(name_of(shape(1)), "redis, 1 in flight");
        assert_eq!(name_of(many), "redis, 64 in flight, 64 nodes");
        let large = Shape {
            payload: 4_096,
            ..shape(64)
        };
        assert_eq!(name_of(large), "redis, 64 in flight, 4 KiB");
        assert_eq!(goal(Peer::Nats, many), Some(">= 0.75x"));
        assert_eq!(goal(Peer::Nats, large), None);
    }

    #[test]
    fn a_peer_that_failed_is_said_beside_our_figures() {
        let ours = [Measured::of(&[1.0, 2.0, 3.0], 1.0).unwrap()];
        let theirs = [(Peer::Nats, Err("nats-server is missing".to_owned()))];
        let rows = rows_of(shape(512), &ours, &theirs);
        assert_eq!(rows[0].ours, Some(3.0));
        assert!(!rows[0].failed && rows[0].note.as_deref().unwrap().contains("missing"));
        assert_eq!(rows[0].goal.as_deref(), Some(">= 3x"));
    }
}
