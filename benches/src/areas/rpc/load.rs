//! Load: so many loops that call, for so long, after a time to warm up.

use super::server::RedisServer;
use crate::harness::{
    fault::{Fault, Outcome},
    ground::Ground,
    stats,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

const WARM_UP: Duration = Duration::from_millis(500);
const ROUND: Duration = Duration::from_secs(3);
const QUICK_ROUND: Duration = Duration::from_secs(1);

const WARMING: u8 = 0;
const COUNTING: u8 = 1;
const OVER: u8 = 2;

/// What is asked of ours and of the peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Calls in flight.
    pub(super) flights: usize,
    /// The body of a request and of its reply, bytes.
    pub(super) payload: usize,
    /// How many nodes answer; calls go to them in turn.
    pub(super) nodes: usize,
}

/// What a round of load gave.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measured {
    pub(super) calls_per_second: f64,
    pub(super) p50_micros: f64,
    pub(super) p99_micros: f64,
    pub(super) p999_micros: f64,
    /// CPU time of this process: caller, worker and load. Zero where the peer is another process.
    pub(super) own_micros_per_call: f64,
    /// What Redis holds at the end, MB; zero where there is none.
    pub(super) broker_memory_mb: f64,
    /// Of Redis; zero where there is none.
    pub(super) commands_per_call: f64,
    /// CPU time of Redis; zero where there is none.
    pub(super) broker_micros_per_call: f64,
}

impl Measured {
    /// From the times of all calls of a round.
    pub(super) fn of(micros: &[f64], seconds: f64) -> Outcome<Self> {
        let at = |part| stats::quantile(micros, part).ok_or_else(|| Fault::new("no call was answered"));
        Ok(Self {
            calls_per_second: micros.len() as f64 / seconds,
            p50_micros: at(0.5)?,
            p99_micros: at(0.99)?,
            p999_micros: at(0.999)?,
            own_micros_per_call: 0.0,
            broker_memory_mb: 0.0,
            commands_per_call: 0.0,
            broker_micros_per_call: 0.0,
        })
    }
}

/// How long a round counts.
pub(super) const fn round(ground: &Ground) -> Duration {
    if ground.quick { QUICK_ROUND } else { ROUND }
}

/// Runs `call(lane)` in `flights` loops. A call that fails ends the round.
pub(super) async fn measure<F, Fut>(
    ground: &Ground,
    server: Option<&RedisServer>,
    flights: usize,
    call: F,
) -> Outcome<Measured>
where
    F: Fn(usize) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Outcome<()>> + Send,
{
    let phase = Arc::new(AtomicU8::new(WARMING));
    // Dropped with this future: then all loops end.
    let mut loops = JoinSet::new();
    for lane in 0..flights {
        let (phase, call) = (Arc::clone(&phase), call.clone());
        loops.spawn(async move {
            let mut micros = Vec::new();
            loop {
                let begin = Instant::now();
                call(lane).await?;
                match phase.load(Ordering::Relaxed) {
                    WARMING => {}
                    COUNTING => micros.push(begin.elapsed().as_secs_f64() * 1e6),
                    _ => return Ok::<_, Fault>(micros),
                }
            }
        });
    }
    sleep(WARM_UP).await;
    let (before, own_before) = (usage(server).await?, own_cpu_micros());
    phase.store(COUNTING, Ordering::Relaxed);
    let begin = Instant::now();
    sleep(round(ground)).await;
    phase.store(OVER, Ordering::Relaxed);
    let seconds = begin.elapsed().as_secs_f64();
    let (after, own_after) = (usage(server).await?, own_cpu_micros());
    let mut micros = Vec::new();
    while let Some(ended) = loops.join_next().await {
        micros.extend(ended??);
    }
    let calls = micros.len().max(1) as f64;
    Ok(Measured {
        own_micros_per_call: (own_after - own_before) / calls,
        broker_memory_mb: after.memory_mb,
        commands_per_call: (after.commands - before.commands) / calls,
        broker_micros_per_call: (after.cpu_micros - before.cpu_micros) / calls,
        ..Measured::of(&micros, seconds)?
    })
}

/// CPU time of this process so far.
fn own_cpu_micros() -> f64 {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF);
    usage.map_or(0.0, |usage| {
        [usage.user_time(), usage.system_time()]
            .iter()
            .map(|time| time.tv_sec() as f64 * 1e6 + time.tv_usec() as f64)
            .sum()
    })
}

/// What Redis has done so far.
#[derive(Default)]
struct Usage {
    commands: f64,
    cpu_micros: f64,
    memory_mb: f64,
}

async fn usage(server: Option<&RedisServer>) -> Outcome<Usage> {
    let Some(server) = server else {
        return Ok(Usage::default());
    };
    let text: String = redis::cmd("INFO")
        .query_async(&mut server.connection().await?)
        .await?;
    let field = |name: &str| -> Outcome<f64> {
        let value = crate::harness::machine::value_of(&text, name);
        value
            .and_then(|value| value.parse().ok())
            .ok_or_else(|| Fault::new(format!("INFO of Redis tells no {name}")))
    };
    Ok(Usage {
        commands: field("total_commands_processed")?,
        cpu_micros: (field("used_cpu_sys")? + field("used_cpu_user")?) * 1e6,
        memory_mb: field("used_memory")? / 1e6,
    })
}
