//! After 100,000 calls and 1,000 short-lived clients everything is as it was before: keys, consumers, connections and
//! memory of Redis, and tasks, files and memory of this process.
//!
//! `VBM_LEAK_SCALE_PERCENT` makes it smaller or larger (100 by default). It measures against the state after a first
//! tenth, when allocators and caches have taken what they keep.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, which clippy does not see as tests"
)]
#![allow(clippy::print_stdout, reason = "prints what was counted")]

mod common;

use common::{RedisServer, left_out};
use std::time::Duration;
use tokio::time::{Instant, sleep};
use vbm_core::NodePath;
use vbm_rpc::{Bus, CallOptions, Context, Member, Method, Route, Router, Service, redis::RedisTransport};

const CALLS: usize = 100_000;
const CLIENTS: usize = 1_000;
/// Clients that live at once.
const CLIENTS_AT_ONCE: usize = 8;
/// No further client is begun after this long, on a slow machine; the counts are printed.
const TIME_MAX: Duration = Duration::from_secs(120);
/// So many must have come and gone in that time for the test to mean anything.
const CLIENTS_MIN: usize = 100;
/// What Redis may hold more than before: fragments, and tables that it shrinks later.
const REDIS_MORE_MAX_BYTES: i64 = 1024 * 1024;
/// What this process may hold more than after its first tenth: allocators keep pages.
const RSS_MORE_MAX_BYTES: i64 = 24 * 1024 * 1024;
const PATIENCE: Duration = Duration::from_secs(30);

struct Echo;
impl Method for Echo {
    const NAME: &'static str = "leak.echo";
    // A worker keeps 65,536 answers by design; here they would look like a leak until the table is full.
    const KEPT: bool = false;
    type Request = String;
    type Reply = String;
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Held {
    keys: Vec<String>,
    consumers: usize,
    connections: usize,
    tasks: usize,
    files: usize,
}

async fn held(server: &RedisServer, workers: &[Bus]) -> Held {
    let mut raw = server.raw().await;
    let mut keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut raw).await.unwrap();
    keys.sort();
    let mut consumers = 0;
    for key in keys.iter().filter(|key| key.contains(":g:")) {
        let found: redis::Value = redis::cmd("XINFO")
            .arg("CONSUMERS")
            .arg(key)
            .arg("workers")
            .query_async(&mut raw)
            .await
            .unwrap();
        if let redis::Value::Array(list) = found {
            consumers += list.len();
        }
    }
    let clients: String = redis::cmd("CLIENT")
        .arg("LIST")
        .query_async(&mut raw)
        .await
        .unwrap();
    Held {
        keys,
        consumers,
        connections: clients.lines().count(),
        tasks: workers.iter().map(Bus::task_count).sum::<usize>()
            + tokio::runtime::Handle::current().metrics().num_alive_tasks(),
        files: std::fs::read_dir("/proc/self/fd").unwrap().count(),
    }
}

async fn redis_bytes(server: &RedisServer) -> i64 {
    let mut raw = server.raw().await;
    let _: redis::Value = redis::cmd("MEMORY")
        .arg("PURGE")
        .query_async(&mut raw)
        .await
        .unwrap();
    let info: String = redis::cmd("INFO")
        .arg("memory")
        .query_async(&mut raw)
        .await
        .unwrap();
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix("used_memory:"))
        .unwrap();
    line.trim().parse().unwrap()
}

/// Resident memory of this process.
fn rss_bytes() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<i64>().unwrap() * 1024
}

/// One short life: attaches, calls, and leaves.
async fn live(transport: RedisTransport, which: usize, calls: usize) {
    let member = Member::new(format!("c/c{which}").parse().unwrap(), format!("b{which}"));
    let bus = Bus::attach(transport, member, Router::new()).await.unwrap();
    let any = Route::any(NodePath::root(), Service::new("worker").unwrap());
    let node = Route::node("eu/n1".parse().unwrap());
    let options = || CallOptions::default().deadline(Duration::from_secs(60));
    let text = "x".repeat(128);
    let flying =
        (0..calls).map(|n| bus.call::<Echo>(if n % 2 == 0 { &any } else { &node }, &text, options()));
    for reply in futures::future::join_all(flying).await {
        assert_eq!(reply.unwrap(), text);
    }
    // Things that end otherwise than in a reply leave nothing behind either.
    drop(bus.call::<Echo>(&node, &text, options()));
    let nobody = Route::node("no/body".parse().unwrap());
    assert!(bus.call::<Echo>(&nobody, &text, options()).await.is_err());
    bus.shutdown().await;
}

async fn churn(
    transport: &RedisTransport,
    from: usize,
    clients: usize,
    calls: usize,
    begin: Instant,
) -> usize {
    let (mut lives, mut begun) = (tokio::task::JoinSet::new(), 0);
    for which in from..from + clients {
        if lives.len() >= CLIENTS_AT_ONCE {
            lives.join_next().await.unwrap().unwrap();
        }
        if begin.elapsed() > TIME_MAX {
            break;
        }
        lives.spawn(live(transport.clone(), which, calls));
        begun += 1;
    }
    while let Some(ended) = lives.join_next().await {
        ended.unwrap();
    }
    begun
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_and_clients_that_have_gone_leave_nothing_behind() {
    if left_out() {
        return;
    }
    let percent: usize =
        std::env::var("VBM_LEAK_SCALE_PERCENT").map_or(100, |text| text.parse().expect("a number"));
    let (clients, calls) = (CLIENTS * percent / 100, CALLS / CLIENTS);
    let server = RedisServer::start().await;
    let transport = server.transport().await;
    let mut workers = Vec::new();
    for at in ["eu/n1", "eu/n2"] {
        let router =
            Router::new().method::<Echo, _, _>(|_context: Context, text: String| async move { Ok(text) });
        let member = Member::new(at.parse().unwrap(), "boot-w").service(Service::new("worker").unwrap());
        workers.push(Bus::attach(transport.clone(), member, router).await.unwrap());
    }
    let begin = Instant::now();
    let warm = churn(&transport, 0, clients / 10, calls, begin).await;
    // Workers' heartbeats have trimmed what was read.
    let before = settled(&server, &workers, None).await;
    let (redis_before, rss_before) = (redis_bytes(&server).await, rss_bytes());
    let begun = warm + churn(&transport, warm, clients - clients / 10, calls, begin).await;
    let took = begin.elapsed();
    let after = settled(&server, &workers, Some(&before)).await;
    let (redis_more, rss_more) = (
        redis_bytes(&server).await - redis_before,
        rss_bytes() - rss_before,
    );
    println!(
        "{} calls by {begun} of {clients} clients in {:.1} s; {} keys, {} consumers, {} connections, {} tasks, {} files \
         before and after; Redis holds {redis_more} bytes more ({REDIS_MORE_MAX_BYTES} allowed), this process \
         {rss_more} ({RSS_MORE_MAX_BYTES} allowed)",
        begun * calls,
        took.as_secs_f64(),
        before.keys.len(),
        before.consumers,
        before.connections,
        before.tasks,
        before.files,
    );
    assert_eq!(after, before);
    assert!(
        redis_more <= REDIS_MORE_MAX_BYTES,
        "Redis holds {redis_more} bytes more"
    );
    assert!(
        rss_more <= RSS_MORE_MAX_BYTES,
        "this process holds {rss_more} bytes more"
    );
    assert!(begun >= CLIENTS_MIN.min(clients), "only {begun} clients lived");
    for worker in workers {
        worker.shutdown().await;
    }
    let left: Vec<String> = redis::cmd("KEYS")
        .arg("*")
        .query_async(&mut server.raw().await)
        .await
        .unwrap();
    assert_eq!(left, Vec::<String>::new(), "nobody is there any more");
}

/// What is held once it does not change any more, or is as it is to be. Closed connections take a moment to be seen.
async fn settled(server: &RedisServer, workers: &[Bus], to_be: Option<&Held>) -> Held {
    let (begin, mut last) = (Instant::now(), held(server, workers).await);
    loop {
        sleep(Duration::from_millis(500)).await;
        let now = held(server, workers).await;
        let good = to_be.map_or(now == last, |to_be| now == *to_be);
        if good || begin.elapsed() > PATIENCE {
            return now;
        }
        last = now;
    }
}
