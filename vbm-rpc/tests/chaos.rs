//! Chaos by a seed on real processes and a real Redis: SIGKILL, SIGSTOP and restart of workers, callers and Redis, and
//! connections cut and stalled, while calls are in flight. Judged from the files that the processes wrote. Every fifth
//! seed has a master under Sentinel, which is killed or stopped, instead of the one Redis; there one in four is a
//! replicated cast, and none that was taken may be lost.
//!
//! ```text
//!   caller, caller --TCP--> proxy --+                      every process: its own append-only file
//!                                   +--unix--> redis-server        effects: one file a key
//!   worker x 3 ----TCP--> proxy ----+
//!   this test: kills, stops, cuts, stalls, heals; probes until all works; judges
//! ```
//!
//! By hand: `VBM_SEEDS=100` runs more seeds, `VBM_SEED=7` one, `VBM_CHAOS_CALLS=500` that many calls a seed,
//! `VBM_CHAOS_LANES=1` one seed at a time, `VBM_CHAOS_SENTINEL=1` every seed under Sentinel (`0`: none). The timing of
//! processes is not in the hands of a seed: it repeats the plan, not the interleaving.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, which clippy does not see as tests"
)]
#![allow(clippy::print_stdout, reason = "prints what was counted")]

#[path = "chaos/cell.rs"]
mod cell;
mod common;
#[path = "chaos/ledger.rs"]
mod ledger;
#[path = "chaos/servers.rs"]
mod servers;

use common::{dice::seeds, left_out};
use ledger::Counts;
use std::{sync::Arc, time::Duration};
use tokio::{sync::Semaphore, task::JoinSet, time::Instant};

/// How many seeds run when nobody says otherwise.
const SEEDS: u64 = 20;
const CALLS: u64 = 10_000;
/// Of so many seeds one is under Sentinel.
const SENTINEL_ONE_IN: u64 = 5;
/// Seeds that run at once: each waits most of its time.
const LANES: usize = 2;
/// No further seed is begun after this long, on a slow machine.
const SEEDS_TIME_MAX: Duration = Duration::from_secs(300);
/// After the last trouble everything works again within this: presence runs out (8 s), a beat (2 s), and slack.
const RECOVERY_MAX: Duration = Duration::from_secs(20);

fn knob(name: &str, by_default: u64) -> u64 {
    std::env::var(name).map_or(by_default, |text| text.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_die_stand_still_and_lose_their_server_and_every_call_has_its_fate() {
    if left_out() {
        return;
    }
    let (begin, seeds, calls) = (Instant::now(), seeds(SEEDS), knob("VBM_CHAOS_CALLS", CALLS));
    let by_hand = ["VBM_SEED", "VBM_SEEDS"]
        .iter()
        .any(|name| std::env::var(name).is_ok());
    let lanes = usize::try_from(knob("VBM_CHAOS_LANES", LANES as u64)).unwrap();
    let lanes = Arc::new(Semaphore::new(lanes));
    let (mut running, mut not_begun) = (JoinSet::new(), 0);
    for seed in seeds {
        let lane = lanes.clone().acquire_owned().await.unwrap();
        if !by_hand && begin.elapsed() > SEEDS_TIME_MAX {
            not_begun += 1;
            continue;
        }
        let every = knob("VBM_CHAOS_SENTINEL", SENTINEL_ONE_IN);
        let watched = every != 0 && seed % every == every - 1;
        running.spawn(async move {
            let outcome = cell::run(seed, calls, watched).await;
            drop(lane);
            outcome
        });
    }
    let (mut counts, mut recovery, mut ran, mut wrong) = (Counts::default(), Duration::ZERO, 0, Vec::new());
    while let Some(outcome) = running.join_next().await {
        let outcome = outcome.unwrap();
        println!(
            "seed {}{}: recovered in {:.1} s; {}",
            outcome.seed,
            if outcome.watched { " (Sentinel)" } else { "" },
            outcome.recovery.as_secs_f64(),
            outcome.counts
        );
        if outcome.recovery > RECOVERY_MAX {
            wrong.push(format!(
                "seed {}: it took {:?} until all worked",
                outcome.seed, outcome.recovery
            ));
        }
        if !outcome.wrong.is_empty() {
            let (wrongs, story) = (outcome.wrong.join("\n  "), outcome.story.join("\n  "));
            wrong.push(format!(
                "seed {} (repeat: VBM_SEED={0})\n  {wrongs}\nits story:\n  {story}",
                outcome.seed
            ));
        }
        recovery = recovery.max(outcome.recovery);
        counts.add(&outcome.counts);
        ran += 1;
    }
    println!(
        "{ran} seeds in {:.0} s ({not_begun} not begun: the time was up); slowest recovery {:.1} s; {counts}",
        begin.elapsed().as_secs_f64(),
        recovery.as_secs_f64()
    );
    assert!(
        wrong.is_empty(),
        "{} seeds show what must not be:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    let done = counts.fates.get("done").copied().unwrap_or(0);
    assert!(
        ran > 0 && done * 2 > counts.calls,
        "most calls are done: {counts}"
    );
}
