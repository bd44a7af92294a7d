//! Addresses: what a pick costs in a network that fills, beside the way of Neutron; what ten million of them weigh.

use crate::harness::{
    duel::duel,
    fault::{Fault, Outcome},
    ground::Ground,
    row::Row,
    rows::Rows,
};
use std::{
    collections::{BTreeSet, HashSet},
    hint::black_box,
    net::Ipv4Addr,
};
use tokio::time::Instant;
use vbm_core::{NetworkMode, NetworkSpec, Timestamp, network::parse_cidr};
use vbm_net::ipam::{Ipam, State};

/// How many addresses of a /16 are taken.
const TAKEN: [usize; 4] = [100, 1_000, 10_000, 60_000];
/// The picks behind one sample of ours, and of the peer.
const PICKS: usize = 1_000;
const PEER_PICKS: usize = 3;
/// From how many free addresses the peer chooses one, as Neutron does.
const PEER_WINDOW: usize = 10;
const MANY: usize = 10_000_000;
const QUICK_MANY: usize = 1_000_000;
/// Coprime to each power of two: visits all of a subnet, all over the place.
const STEP: u32 = 7_368_787;
const NOW: Timestamp = Timestamp::from_micros(1);

pub(super) async fn run(ground: &Ground, rows: &mut Rows) {
    for taken in TAKEN {
        let name = name_of(taken);
        rows.measure(&name, "ns", pick(ground, taken)).await;
    }
    let many = ground.size(MANY, QUICK_MANY);
    let (weight, record) = (
        format!("memory of {many} addresses, any order"),
        format!("read the record of {many} addresses"),
    );
    rows.measure_all(
        &[(&weight, "MB"), (&record, "ms")],
        heavy(ground, many, &weight, &record),
    )
    .await;
}

fn name_of(taken: usize) -> String {
    format!("pick an address in a /16, {taken} taken")
}

fn lan(cidr: &str) -> Outcome<NetworkSpec> {
    Ok(NetworkSpec::new(NetworkMode::Nat, parse_cidr(cidr)?)?)
}

/// A network with so many addresses taken, all over the place.
fn filled(spec: &NetworkSpec, taken: usize) -> Outcome<Ipam<Ipv4Addr>> {
    let mut ipam = Ipam::v4(spec)?;
    let base = u32::from(spec.cidr.network());
    let size = u32::from(spec.cidr.broadcast()) - base + 1;
    let (mut at, mut done) = (0_u32, 0);
    while done < taken {
        at = at.wrapping_add(STEP) % size;
        done += usize::from(ipam.pin((base + at).into(), None, NOW).is_ok());
    }
    Ok(ipam)
}

async fn pick(ground: &Ground, taken: usize) -> Outcome<Row> {
    let spec = lan("10.9.0.0/16")?;
    let full = filled(&spec, taken)?;
    // What a database gives: a row, as text, of each address that is taken.
    let table: Vec<String> = full.taken().map(|a| a.to_string()).collect();
    let samples = duel(
        ground.rounds(),
        async |_| {
            let mut ipam = full.clone();
            let begin = Instant::now();
            for _ in 0..PICKS {
                black_box(ipam.allocate(None, NOW)?);
            }
            Ok(begin.elapsed().as_secs_f64() * 1e9 / PICKS as f64)
        },
        async |round| {
            let begin = Instant::now();
            for pick in 0..PEER_PICKS {
                black_box(naive_pick(&spec, &table, round + pick)?);
            }
            Ok(begin.elapsed().as_secs_f64() * 1e9 / PEER_PICKS as f64)
        },
    )
    .await?;
    Ok(Row::new(name_of(taken), "ns", samples.ours)
        .against("Neutron's way, in Rust and without its database: all rows into a set, the pool without it, one of the first ten", samples.peer)
        .noted("the program itself, in Python and with its database, was seen to take 10, 80 and 713 ms at 100, 1k and 10k"))
}

fn naive_pick(spec: &NetworkSpec, table: &[String], dice: usize) -> Outcome<Ipv4Addr> {
    let taken = table
        .iter()
        .map(|row| row.parse())
        .collect::<Result<BTreeSet<Ipv4Addr>, _>>();
    let taken = taken.map_err(|_| Fault::new("a row is no address"))?;
    let pool: BTreeSet<Ipv4Addr> = (u32::from(spec.pool_first)..=u32::from(spec.pool_last))
        .map(Ipv4Addr::from)
        .collect();
    let window: Vec<_> = pool.difference(&taken).take(PEER_WINDOW).copied().collect();
    let chosen = window.get(dice % window.len().max(1));
    chosen.copied().ok_or_else(|| Fault::new("none is free"))
}

async fn heavy(ground: &Ground, many: usize, weight: &str, record: &str) -> Outcome<Vec<Row>> {
    let spec = lan("10.0.0.0/8")?;
    let ipam = filled(&spec, many)?;
    let set: HashSet<u32> = ipam.taken().map(u32::from).collect();
    // Four bytes an entry and one of control.
    let naive = set.capacity() as f64 * 5.0 / 1e6;
    drop(set);
    let text = serde_json::to_vec(&ipam.state()).map_err(|e| Fault::new(e.to_string()))?;
    let mut read = Vec::new();
    for _ in 0..ground.rounds() {
        let begin = Instant::now();
        let state: State = serde_json::from_slice(&text).map_err(|e| Fault::new(e.to_string()))?;
        black_box(Ipam::restore(ipam.plan().clone(), &state)?);
        read.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    Ok(vec![
        Row::new(weight, "MB", vec![ipam.heap_bytes() as f64 / 1e6])
            .against("a HashSet of their numbers", vec![naive])
            .goal("<= 4")
            .noted("as the IPAM adds it up; a test counts it at the allocator"),
        Row::new(record, "ms", read).noted(format!("{} kB of JSON", text.len() / 1_000)),
    ])
}
