//! The bus: one hot queue, beside what one would write with Redis on a first day, and beside NATS where it is installed.
//!
//! Caller and worker are two attachments in this process, for ours as for the peers; the broker is a child on a unix socket
//! (Redis) or on loopback inside our namespace (NATS), fresh for each sample.

mod load;
mod naive;
#[cfg(feature = "nats")]
mod nats;
mod ours;
mod server;

use crate::harness::{
    duel::solo,
    fault::Outcome,
    ground::{Ground, which},
    row::Row,
    rows::Rows,
};
use load::Measured;
use server::RedisServer;

/// The body of a request and of its reply.
const PAYLOAD_BYTES: usize = 128;
/// How many calls are in flight.
const FLIGHTS: [usize; 3] = [1, 64, 512];
const NAIVE: &str = "BLPOP request and reply";
const NATS: &str = "NATS request (at most once)";

pub(crate) async fn run(ground: &Ground, rows: &mut Rows) {
    let most = FLIGHTS[FLIGHTS.len() - 1];
    for flights in FLIGHTS {
        let name = format!("redis, {flights} in flight");
        let planned = [(name.as_str(), "calls/s")];
        rows.measure_all(&planned, redis(ground, flights, flights == most))
            .await;
    }
    for flights in FLIGHTS {
        let name = format!("memory, {flights} in flight");
        rows.measure(&name, "calls/s", memory(ground, flights)).await;
    }
    against_nats(ground, rows).await;
}

async fn ours_once(ground: &Ground, flights: usize) -> Outcome<Measured> {
    let server = RedisServer::start().await?;
    ours::over_redis(ground, &server, flights).await
}

/// Ours and BLPOP in turn; both sides of all rows come from the same samples.
async fn redis(ground: &Ground, flights: usize, hottest: bool) -> Outcome<Vec<Row>> {
    let (mut ours, mut naive) = (Vec::new(), Vec::new());
    for _ in 0..ground.rounds() {
        ours.push(ours_once(ground, flights).await?);
        let server = RedisServer::start().await?;
        naive.push(naive::round(ground, &server, flights).await?);
    }
    let column = |of: fn(&Measured) -> f64| {
        (
            ours.iter().map(of).collect::<Vec<_>>(),
            naive.iter().map(of).collect::<Vec<_>>(),
        )
    };
    let row = |name: &str, unit, of: fn(&Measured) -> f64| {
        let (ours, naive) = column(of);
        Row::new(format!("redis, {flights} in flight{name}"), unit, ours).against(NAIVE, naive)
    };
    let mut rows = vec![row("", "calls/s", |m| m.calls_per_second)];
    if hottest {
        rows[0] = rows[0].clone().goal(">= 12x");
    }
    if flights == 1 {
        rows.push(row(": p50", "us", |m| m.p50_micros));
        rows.push(row(": commands a call", "commands", |m| m.commands_per_call).goal("<= 5"));
    }
    if hottest {
        rows.push(row(": commands a call", "commands", |m| m.commands_per_call).goal("<= 0.1"));
        rows.push(row(": CPU of the broker a call", "us", |m| m.broker_micros_per_call).goal("<= 2.5"));
    }
    Ok(rows)
}

async fn memory(ground: &Ground, flights: usize) -> Outcome<Row> {
    let samples = solo(ground.rounds(), async |_| {
        Ok(ours::over_memory(ground, flights).await?.calls_per_second)
    });
    Ok(Row::new(
        format!("memory, {flights} in flight"),
        "calls/s",
        samples.await?,
    ))
}

/// What is wanted beside NATS; the numbers in flight and the goals are those of the reference.
const NATS_ROWS: [(usize, &str); 2] = [(64, ">= 1.4x"), (512, ">= 3x")];

async fn against_nats(ground: &Ground, rows: &mut Rows) {
    if let Some(why) = no_nats() {
        for (flights, goal) in NATS_ROWS {
            let name = format!("redis, {flights} in flight");
            let ours = rows
                .rows
                .iter()
                .find(|row| row.name == name)
                .map(|row| row.samples.ours.clone());
            let row = Row::new(
                format!("{name}, beside NATS"),
                "calls/s",
                ours.unwrap_or_default(),
            );
            rows.put(row.without(NATS, why).goal(goal));
        }
        return;
    }
    for flights in FLIGHTS {
        let name = format!("redis, {flights} in flight, beside NATS");
        rows.measure_all(&[(name.as_str(), "calls/s")], nats_duel(ground, flights, &name))
            .await;
    }
}

/// Why NATS cannot be measured against.
fn no_nats() -> Option<&'static str> {
    if which("nats-server").is_none() {
        return Some("nats-server is missing (Debian: nats-server)");
    }
    cfg!(not(feature = "nats")).then_some("built without the feature `nats`")
}

#[cfg(not(feature = "nats"))]
async fn nats_duel(_: &Ground, _: usize, _: &str) -> Outcome<Vec<Row>> {
    Err(crate::harness::fault::Fault::new(
        "built without the feature `nats`",
    ))
}

#[cfg(feature = "nats")]
async fn nats_duel(ground: &Ground, flights: usize, name: &str) -> Outcome<Vec<Row>> {
    let (mut ours, mut peer) = (Vec::new(), Vec::new());
    for _ in 0..ground.rounds() {
        ours.push(ours_once(ground, flights).await?);
        peer.push(nats::round(ground, flights).await?);
    }
    let take = |from: &[Measured], of: fn(&Measured) -> f64| from.iter().map(of).collect::<Vec<_>>();
    let mut row = Row::new(name, "calls/s", take(&ours, |m| m.calls_per_second))
        .against(NATS, take(&peer, |m| m.calls_per_second));
    if let Some((_, goal)) = NATS_ROWS.iter().find(|(at, _)| *at == flights) {
        row = row.goal(goal);
    }
    let mut rows = vec![row];
    if flights == 1 {
        rows.push(
            Row::new(format!("{name}: p50"), "us", take(&ours, |m| m.p50_micros))
                .against(NATS, take(&peer, |m| m.p50_micros))
                .goal("<= 1.25x"),
        );
    }
    Ok(rows)
}
