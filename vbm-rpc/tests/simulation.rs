//! A whole bus of workers and callers on simulated time, under misfortune by a seed, judged from a ledger outside it.
//!
//! ```text
//!   seed --> plan: dice for every message, and a list of (when, trouble)
//!        --> callers: calls, casts, broadcasts, cancels, retries with the same key ---+
//!        --> workers: write each run and each effect --------------------------------+--> ledger --> judge
//! ```
//!
//! By hand: `VBM_SEEDS=5000 cargo test -p vbm-rpc --test simulation` runs seeds 0 to 4999, `VBM_SEED=17` that one and
//! prints its story. A seed that fails prints its story by itself.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, which clippy does not see as tests"
)]
#![allow(clippy::print_stdout, reason = "prints what was counted")]

mod common;
#[path = "simulation/flows.rs"]
mod flows;
#[path = "simulation/ledger.rs"]
mod ledger;
#[path = "simulation/plan.rs"]
mod plan;
#[path = "simulation/world.rs"]
mod world;

use common::dice::seeds;
use ledger::Counts;
use std::time::Duration;
use tokio::time::Instant;

/// Seeds that once showed what must not be; they always run.
const REMEMBERED: [u64; 2] = [198, 1264];
/// How many seeds run when nobody says otherwise.
const SEEDS: u64 = 200;
/// The same where streams and tickets join the calls.
const FLOW_SEEDS: u64 = 100;
const FLOWS_REMEMBERED: [u64; 0] = [];
/// No further seed is begun after this long, on a slow machine.
const SEEDS_TIME_MAX: Duration = Duration::from_secs(90);
/// So many must have run in that time for the test to mean anything.
const SEEDS_MIN: usize = 20;

struct Outcome {
    counts: Counts,
    wrong: Vec<String>,
    story: Vec<String>,
}

fn simulate(seed: u64, with_flows: bool) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(world::run(seed, with_flows))
}

/// Runs the seeds, `by_default` many of them if nobody says otherwise, and those that are remembered.
fn simulate_all(by_default: u64, remembered: &[u64], with_flows: bool) {
    let (begin, mut seeds) = (Instant::now(), seeds(by_default));
    let one = seeds.len() == 1;
    if !one {
        seeds.splice(0..0, remembered.iter().copied());
    }
    let by_hand = one || std::env::var("VBM_SEEDS").is_ok();
    let (mut counts, mut ran) = (Counts::default(), 0);
    for seed in &seeds {
        if !by_hand && begin.elapsed() > SEEDS_TIME_MAX {
            println!("the time is up after {ran} of {} seeds", seeds.len());
            break;
        }
        let outcome = simulate(*seed, with_flows);
        if one {
            println!("{}", outcome.story.join("\n"));
        }
        assert!(
            outcome.wrong.is_empty(),
            "seed {seed}: {} sentences are not true; repeat it with VBM_SEED={seed}\n{}\nthe story:\n{}",
            outcome.wrong.len(),
            outcome.wrong.join("\n"),
            outcome.story.join("\n"),
        );
        counts.add(&outcome.counts);
        ran += 1;
    }
    println!("{ran} seeds in {:.1} s: {counts}", begin.elapsed().as_secs_f64());
    assert!(ran >= SEEDS_MIN.min(seeds.len()), "only {ran} seeds ran");
    if !one {
        assert!(
            counts.done > 0 && counts.lost > 0 && counts.effects > 0,
            "nothing was simulated: {counts}"
        );
        let flows = &counts.flows;
        assert!(
            !with_flows || flows.ended_well > 0 && flows.tickets > 0 && flows.callbacks > 0,
            "no streams and tickets were simulated: {counts}"
        );
    }
}

#[test]
fn whatever_happens_every_call_has_one_fate_in_time_and_no_key_two_effects() {
    simulate_all(SEEDS, &REMEMBERED, false);
}

#[test]
fn whatever_happens_streams_end_once_in_order_and_tickets_have_one_end_for_all() {
    simulate_all(FLOW_SEEDS, &FLOWS_REMEMBERED, true);
}

#[test]
fn a_seed_tells_the_same_story_twice() {
    for seed in 0..6 {
        let with_flows = seed % 2 == 1;
        let (first, second) = (simulate(seed, with_flows), simulate(seed, with_flows));
        for (at, (a, b)) in first.story.iter().zip(&second.story).enumerate() {
            assert_eq!(a, b, "seed {seed}, line {at}");
        }
        assert_eq!(first.story.len(), second.story.len(), "seed {seed}");
        assert_eq!(first.counts, second.counts, "seed {seed}");
    }
}
