//! A pool of workers: each task goes to one of them, a worker that dies has its tasks taken over, and each effect
//! happens once.
//!
//! `cargo run --bin 07-rpc-worker-pool [-- --redis redis://HOST:PORT]`
#![expect(clippy::print_stdout, reason = "an example speaks to people")]

#[path = "support/bus.rs"]
mod bus;

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::task::JoinSet;
use vbm_core::NodePath;
use vbm_rpc::{
    Bus, CallOptions, Context, Member, Method, Route, Router, Service, layers::ConcurrencyLimitLayer,
};

/// Does a numbered task; says who did it.
struct Work;
impl Method for Work {
    const NAME: &'static str = "example.work";
    type Request = u32;
    type Reply = NodePath;
}

const TASKS: u32 = 60;

/// The outside world, where effects are seen. An effect is recorded with the key of its request: a task that is done a
/// second time, because its worker died before it could say so, changes nothing.
type Ledger = Arc<Mutex<HashSet<String>>>;

fn worker(path: &NodePath, ledger: &Ledger) -> Router {
    let (path, ledger) = (path.clone(), ledger.clone());
    Router::new()
        .method::<Work, _, _>(move |context: Context, _task: u32| {
            let (path, ledger) = (path.clone(), ledger.clone());
            async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                let key = context.idempotency_key.unwrap_or_default();
                ledger.lock().unwrap_or_else(PoisonError::into_inner).insert(key);
                Ok(path)
            }
        })
        .layer(ConcurrencyLimitLayer::new(4))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let transport = bus::transport().await?;
    let pool = Service::new("pool")?;
    let ledger = Ledger::default();
    let mut workers = Vec::new();
    for name in ["w1", "w2", "w3"] {
        let path: NodePath = format!("farm/{name}").parse()?;
        let member = Member::new(path.clone(), "boot-1").service(pool.clone());
        workers.push(Bus::attach(transport.clone(), member, worker(&path, &ledger)).await?);
    }
    let client = Bus::attach(
        transport,
        Member::new("farm/client".parse()?, "boot-1"),
        Router::new(),
    )
    .await?;

    let any = Route::any("farm".parse()?, pool);
    let mut calls = JoinSet::new();
    for task in 0..TASKS {
        let options = CallOptions::default()
            .deadline(Duration::from_secs(60))
            .idempotency_key(format!("task-{task}"));
        calls.spawn(client.call::<Work>(&any, &task, options));
    }
    let mut done = HashSet::new();
    while let Some(reply) = calls.join_next().await {
        done.insert(reply??);
        // One dies in the middle of it, without a word.
        if workers.len() == 3
            && let Some(dying) = workers.pop()
        {
            println!("{} dies", dying.member().path);
            dying.kill().await;
        }
    }
    let effects = ledger.lock().unwrap_or_else(PoisonError::into_inner).len();
    println!("{effects} of {TASKS} tasks are done, by {} workers", done.len());

    client.shutdown().await;
    for worker in workers {
        worker.shutdown().await;
    }
    Ok(())
}
