//! Elections where Redis forgets and where a leader stands still; the rest is in the conformance suite.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

mod common;

use common::{RedisServer, left_out};
use std::{
    future::Future,
    sync::{Arc, mpsc},
    time::Duration,
};
use tokio::time::timeout;
use vbm_core::{Epoch, ErrorKind, Name};
use vbm_rpc::{
    Bus, CallOptions, Context, Fate, Member, MemoryEpochGate, Method, Route, Router, Transport,
    election::{Campaign, CampaignOptions, Elections, FileEpochGate, Term},
    memory::MemoryBus,
};

const LEASE: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(30);

struct Command;
impl Method for Command {
    const NAME: &'static str = "test.command";
    type Request = ();
    type Reply = u64;
}

fn name() -> Name {
    "control".parse().unwrap()
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("this hangs: {what}"))
}

fn router() -> Router {
    Router::new().method::<Command, _, _>(|context: Context, ()| async move { Ok(context.epoch.0) })
}

async fn attach(transport: &Arc<dyn Transport>, path: &str, router: Router) -> Bus {
    let boot = format!("boot-{path}");
    let member = Member::new(path.parse().unwrap(), boot.replace('/', "-"));
    Bus::attach(transport.clone(), member, router).await.unwrap()
}

fn stand(bus: &Bus, elections: &Elections) -> Campaign {
    let options = CampaignOptions::default().lease(LEASE);
    elections.campaign(bus, name(), options).unwrap()
}

async fn candidate(transport: &Arc<dyn Transport>, path: &str) -> (Bus, Campaign) {
    let bus = attach(transport, path, Router::new()).await;
    let campaign = stand(&bus, &Elections::new());
    (bus, campaign)
}

async fn elected(campaign: &mut Campaign) -> Term {
    soon("an election", campaign.elected()).await.unwrap()
}

async fn command(bus: &Bus, options: CallOptions) -> Result<u64, Fate> {
    let route = Route::node("w".parse().unwrap());
    soon(
        "a command",
        bus.call::<Command>(&route, &(), options.deadline(PATIENCE)),
    )
    .await
}

fn is_stale(result: &Result<u64, Fate>) -> bool {
    matches!(result, Err(Fate::Refused(error)) if error.kind() == ErrorKind::Stale)
}

/// A worker that remembers in a file led by one; Redis forgets everything; a candidate that has seen nothing is elected
/// above what the worker saw.
async fn grows(transport: Arc<dyn Transport>, forget: impl AsyncFnOnce()) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("epoch");
    let gate = Arc::new(FileEpochGate::open(&file).unwrap());
    let elections = Elections::new().remember(name(), gate.clone());
    let worker = attach(&transport, "w", elections.serve(router().with_epoch_gate(gate))).await;
    let (first, mut one) = candidate(&transport, "a").await;
    let mut old = elected(&mut one).await;
    for _ in 0..3 {
        one.stand_down();
        soon("the end of a term", old.lost()).await;
        old = elected(&mut one).await;
    }
    assert!(old.epoch() >= Epoch(4));
    assert_eq!(command(&first, old.options()).await, Ok(old.epoch().0));
    // Its process ends, its candidacy with it: nobody who stands for election has seen any epoch.
    soon("a crash", first.kill()).await;
    forget().await;
    let (second, mut two) = candidate(&transport, "b").await;
    let new = elected(&mut two).await;
    assert!(new.epoch() > old.epoch(), "{} after {}", new.epoch(), old.epoch());
    assert_eq!(command(&second, new.options()).await, Ok(new.epoch().0));
    let stale = command(&second, old.options()).await;
    assert!(is_stale(&stale), "{stale:?}");
    // And after a restart of the worker.
    soon("a shutdown", worker.shutdown()).await;
    let gate = Arc::new(FileEpochGate::open(&file).unwrap());
    let worker = attach(&transport, "w", router().with_epoch_gate(gate)).await;
    assert!(is_stale(&command(&second, old.options()).await));
    soon("a hand-over", two.stop()).await;
    for bus in [second, worker] {
        soon("a shutdown", bus.shutdown()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_epoch_grows_also_when_the_memory_bus_forgets_its_leases() {
    let memory = MemoryBus::new();
    let transport: Arc<dyn Transport> = memory.clone().into();
    grows(transport, async || memory.forget_leases()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_epoch_grows_also_when_redis_is_flushed() {
    if left_out() {
        return;
    }
    let server = RedisServer::start().await;
    let transport: Arc<dyn Transport> = server.transport().await.into();
    let mut redis = server.raw().await;
    grows(transport, async || {
        redis::cmd("FLUSHALL")
            .query_async::<()>(&mut redis)
            .await
            .unwrap();
    })
    .await;
}

/// Killed and started again with an empty memory: who lives registers again, and the leader too gets a new epoch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_epoch_grows_also_when_redis_is_restarted_empty() {
    if left_out() {
        return;
    }
    let mut server = RedisServer::start().await;
    let transport: Arc<dyn Transport> = server.transport().await.into();
    let gate = Arc::new(MemoryEpochGate::new(Epoch(11)));
    let elections = Elections::new().remember(name(), gate.clone());
    let worker = attach(&transport, "w", elections.serve(router().with_epoch_gate(gate))).await;
    let (bus, mut campaign) = candidate(&transport, "a").await;
    let old = elected(&mut campaign).await;
    assert_eq!(old.epoch(), Epoch(12));
    server.kill().await;
    soon("a leader notices", old.lost()).await;
    server.restart().await;
    let new = elected(&mut campaign).await;
    assert!(new.epoch() > old.epoch());
    assert_eq!(command(&bus, new.options()).await, Ok(new.epoch().0));
    assert!(is_stale(&command(&bus, old.options()).await));
    drop(campaign);
    for bus in [bus, worker] {
        soon("a shutdown", bus.shutdown()).await;
    }
}

/// A leader whose whole process stands still (here: its only thread) until another leads, and then goes on as if
/// nothing had been.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_stood_still_is_fenced_and_knows_it_at_once() {
    if left_out() {
        return;
    }
    let server = RedisServer::start().await;
    let transport: Arc<dyn Transport> = server.transport().await.into();
    let gate = Arc::new(MemoryEpochGate::default());
    let elections = Elections::new().remember(name(), gate.clone());
    let worker = attach(&transport, "w", elections.serve(router().with_epoch_gate(gate))).await;
    let (leads, led) = tokio::sync::oneshot::channel();
    let (go_on, stalled) = mpsc::channel::<()>();
    let own = transport.clone();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let (bus, mut campaign) = candidate(&own, "a").await;
            let term = elected(&mut campaign).await;
            assert_eq!(command(&bus, term.options()).await, Ok(term.epoch().0));
            leads.send(term.epoch()).unwrap();
            // Nothing runs on this thread: no renewal, no timer.
            stalled.recv().unwrap();
            let still_valid = term.is_valid();
            let answer = command(&bus, term.options()).await;
            drop(campaign);
            bus.shutdown().await;
            (still_valid, answer)
        })
    });
    let old = soon("an election", led).await.unwrap();
    let (second, mut two) = candidate(&transport, "b").await;
    let new = elected(&mut two).await;
    assert!(new.epoch() > old);
    go_on.send(()).unwrap();
    let (still_valid, answer) = tokio::task::spawn_blocking(|| thread.join().unwrap())
        .await
        .unwrap();
    assert!(!still_valid, "its clock went on");
    assert!(is_stale(&answer), "{answer:?}");
    assert!(new.is_valid());
    drop(two);
    for bus in [second, worker] {
        soon("a shutdown", bus.shutdown()).await;
    }
}
