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

/// What a round of load gave.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measured {
    pub(super) calls_per_second: f64,
    pub(super) p50_micros: f64,
    /// Of Redis; zero where there is none.
    pub(super) commands_per_call: f64,
    /// CPU time of Redis; zero where there is none.
    pub(super) broker_micros_per_call: f64,
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
    let before = usage(server).await?;
    phase.store(COUNTING, Ordering::Relaxed);
    let begin = Instant::now();
    sleep(if ground.quick { QUICK_ROUND } else { ROUND }).await;
    phase.store(OVER, Ordering::Relaxed);
    let seconds = begin.elapsed().as_secs_f64();
    let after = usage(server).await?;
    let mut micros = Vec::new();
    while let Some(ended) = loops.join_next().await {
        micros.extend(ended??);
    }
    let calls = micros.len().max(1) as f64;
    Ok(Measured {
        calls_per_second: micros.len() as f64 / seconds,
        p50_micros: stats::median(&micros).ok_or_else(|| Fault::new("no call was answered"))?,
        commands_per_call: (after.commands - before.commands) / calls,
        broker_micros_per_call: (after.cpu_micros - before.cpu_micros) / calls,
    })
}

/// What Redis has done so far.
#[derive(Default)]
struct Usage {
    commands: f64,
    cpu_micros: f64,
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
    })
}
