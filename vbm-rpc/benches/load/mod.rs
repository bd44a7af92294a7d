//! Load of the benches: so many loops that call for a round, and what that took.
#![allow(dead_code, reason = "each bench uses a part of it")]

use redis::aio::MultiplexedConnection;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep};
use vbm_rpc::Method;

pub(crate) const PAYLOAD_BYTES: usize = 128;
pub(crate) const ROUNDS: usize = 3;
pub(crate) const ROUND: Duration = Duration::from_secs(2);

pub(crate) struct Echo;
impl Method for Echo {
    const NAME: &'static str = "bench.echo";
    type Request = String;
    type Reply = String;
}

pub(crate) struct Row {
    pub(crate) calls_per_second: f64,
    pub(crate) p50: Duration,
    pub(crate) commands_per_call: f64,
    pub(crate) broker_micros_per_call: f64,
    /// CPU time of this process: callers, workers and load. It bears a busy machine better than calls a second.
    pub(crate) own_micros_per_call: f64,
}

/// CPU seconds of this process so far.
fn own_cpu() -> f64 {
    // Ticks are a hundredth of a second on every Linux (`getconf CLK_TCK`); user and system are fields 14 and 15.
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = fields.split_whitespace().skip(11).take(2);
    ticks.filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// Runs `one` in `flights` loops for a round; `server` is asked before and after what it has done.
pub(crate) async fn measure<F, Fut>(mut server: Option<MultiplexedConnection>, flights: usize, one: F) -> Row
where
    F: Fn(usize) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = ()> + Send,
{
    let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (before, own_before) = (info(server.as_mut()).await, own_cpu());
    let begin = Instant::now();
    let loops: Vec<_> = (0..flights)
        .map(|lane| {
            let (stop, count, one) = (stop.clone(), count.clone(), one.clone());
            tokio::spawn(async move {
                let mut times = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let at = Instant::now();
                    one(lane).await;
                    times.push(at.elapsed());
                    count.fetch_add(1, Ordering::Relaxed);
                }
                times
            })
        })
        .collect();
    sleep(ROUND).await;
    stop.store(true, Ordering::Relaxed);
    let mut times = Vec::new();
    for one in loops {
        times.extend(one.await.expect("no panic"));
    }
    let elapsed = begin.elapsed().as_secs_f64();
    let (after, own_after) = (info(server.as_mut()).await, own_cpu());
    times.sort_unstable();
    let calls = times.len().max(1) as f64;
    Row {
        calls_per_second: calls / elapsed,
        p50: times.get(times.len() / 2).copied().unwrap_or_default(),
        commands_per_call: (after.0 - before.0) / calls,
        broker_micros_per_call: (after.1 - before.1) * 1e6 / calls,
        own_micros_per_call: (own_after - own_before) * 1e6 / calls,
    }
}

/// Commands and CPU seconds of the server so far.
async fn info(server: Option<&mut MultiplexedConnection>) -> (f64, f64) {
    let Some(server) = server else { return (0.0, 0.0) };
    let text: String = redis::cmd("INFO").query_async(server).await.expect("INFO");
    let field = |name: &str| -> f64 {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|value| value.trim().parse().ok())
            .unwrap_or_default()
    };
    (
        field("total_commands_processed"),
        field("used_cpu_sys") + field("used_cpu_user"),
    )
}

/// Whether `word` is wanted: named on the command line, or none of `all` is. `cargo bench -p vbm-rpc --bench bus -- redis
/// 512`: only these, for a look with a profiler.
pub(crate) fn chosen(all: &[&str], word: &str) -> bool {
    let words: Vec<String> = std::env::args().skip(1).collect();
    words.iter().any(|given| given == word) || !words.iter().any(|given| all.contains(&given.as_str()))
}

pub(crate) fn median(mut rows: Vec<Row>) -> Option<Row> {
    rows.sort_by(|a, b| a.calls_per_second.total_cmp(&b.calls_per_second));
    (!rows.is_empty()).then(|| rows.swap_remove(rows.len() / 2))
}
