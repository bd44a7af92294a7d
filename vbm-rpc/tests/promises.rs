//! What the table of fates in `docs/rpc.md` promises and no other test shows; and that the table names no test that is not
//! there.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, which clippy does not see as tests"
)]

mod common;

use common::{
    RedisServer, left_out,
    proofs::{Proofs, document},
    sets::SentinelSet,
    words::{PATIENCE, client, offer, path, within},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::{sleep, timeout};
use vbm_rpc::{
    Bus, Context, Durability, Fate, ItemSink, Method, Route, Router, StreamMethod, StreamOptions,
    TicketState, redis::RedisTransport,
};

struct Put;
impl Method for Put {
    const NAME: &'static str = "promise.put";
    type Request = usize;
    type Reply = usize;
}

/// Counts on until its reader has had enough.
struct Counting;
impl Method for Counting {
    const NAME: &'static str = "promise.counting";
    const FENCED: bool = false;
    type Request = ();
    type Reply = u64;
}
impl StreamMethod for Counting {
    type Item = u64;
}

/// How often each number was put, outside the bus.
#[derive(Clone, Default)]
struct Ledger(Arc<Mutex<BTreeMap<usize, usize>>>);

impl Ledger {
    fn all(&self) -> BTreeMap<usize, usize> {
        self.0.lock().unwrap().clone()
    }
}

fn node() -> Route {
    Route::node(path("n1"))
}

async fn serve(transport: &RedisTransport, boot: &str, ledger: &Ledger) -> Bus {
    let ledger = ledger.clone();
    let router = Router::new()
        .method::<Put, _, _>(move |_context: Context, n: usize| {
            *ledger.0.lock().unwrap().entry(n).or_default() += 1;
            async move { Ok(n) }
        })
        .stream::<Counting, _, _>(
            |_context: Context, (): (), mut items: ItemSink<Counting>| async move {
                for n in 0.. {
                    items.send(&n).await?;
                    sleep(Duration::from_millis(5)).await;
                }
                Ok(0)
            },
        );
    offer(transport, ("n1", boot), router).await
}

/// Casts to a worker that has just died, then the server dies; gives what the worker's next life did.
async fn casts_over_a_death_of_the_server(server: &mut RedisServer) -> BTreeMap<usize, usize> {
    let (transport, ledger) = (server.transport().await, Ledger::default());
    let (n1, bus) = (
        serve(&transport, "boot-1", &ledger).await,
        client(&transport, "c1").await,
    );
    n1.kill().await;
    for n in 1..=20 {
        assert_eq!(bus.cast::<Put>(&node(), &n, within(PATIENCE)).await, Ok(()));
    }
    server.kill().await;
    server.restart().await;
    let n1 = serve(&transport, "boot-2", &ledger).await;
    // What was left in the queue comes before it.
    assert_eq!(bus.call::<Put>(&node(), &0, within(PATIENCE)).await, Ok(0));
    bus.shutdown().await;
    n1.shutdown().await;
    let mut done = ledger.all();
    done.remove(&0);
    done
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn casts_that_were_taken_outlive_a_server_that_keeps_its_data() {
    if left_out() {
        return;
    }
    let mut server = RedisServer::with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let done = casts_over_a_death_of_the_server(&mut server).await;
    assert_eq!(done, (1..=20).map(|n| (n, 1)).collect());
}

/// The honest side of the table.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn casts_that_were_taken_are_lost_with_a_server_that_forgets_everything() {
    if left_out() {
        return;
    }
    let mut server = RedisServer::start().await;
    let done = casts_over_a_death_of_the_server(&mut server).await;
    assert_eq!(done, BTreeMap::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replicated_ticket_outlives_the_master_its_submitter_and_its_worker() {
    if left_out() {
        return;
    }
    let mut set = SentinelSet::start("").await;
    let (transport, ledger) = (set.transport().await, Ledger::default());
    let (n1, bus) = (
        serve(&transport, "boot-1", &ledger).await,
        client(&transport, "c1").await,
    );
    n1.kill().await;
    let safe = within(PATIENCE).durability(Durability::Replicated);
    let ticket = bus.submit::<Put>(&node(), &7, safe.into()).await.unwrap();
    let before = set.master().await.unwrap();
    set.servers[before].kill();
    bus.kill().await;
    set.moved_from(before).await;
    let (n1, bus) = (
        serve(&transport, "boot-2", &ledger).await,
        client(&transport, "c2").await,
    );
    let state = bus.ticket(&ticket).unwrap().wait(PATIENCE).await.unwrap();
    assert_eq!(state, TicketState::Ended(Ok(7)));
    assert_eq!(ledger.all(), BTreeMap::from([(7, 1)]));
    bus.shutdown().await;
    n1.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_over_a_failover_goes_on_without_a_gap_or_ends_in_a_fate() {
    if left_out() {
        return;
    }
    let mut set = SentinelSet::start("").await;
    let transport = set.transport().await;
    let (n1, bus) = (
        serve(&transport, "boot-1", &Ledger::default()).await,
        client(&transport, "c1").await,
    );
    let idle = StreamOptions::new().idle(Duration::from_secs(15));
    let mut items = bus.stream::<Counting>(&node(), &(), idle).await.unwrap();
    let (before, mut after) = (set.master().await.unwrap(), 0);
    for next in 0.. {
        match timeout(PATIENCE, items.next()).await.expect("no item hangs") {
            Some(Ok(n)) => assert_eq!(n, next, "no gap and no repeat"),
            Some(Err(Fate::Lost { .. } | Fate::Expired { .. })) => break,
            other => panic!("{other:?}"),
        }
        if next == 100 {
            set.servers[before].kill();
        }
        after += u64::from(next > 100);
        if after > 1_000 {
            break;
        }
    }
    drop(items);
    assert_ne!(set.moved_from(before).await, before);
    assert_eq!(
        timeout(PATIENCE, bus.call::<Put>(&node(), &1, within(PATIENCE)))
            .await
            .unwrap(),
        Ok(1)
    );
    bus.shutdown().await;
    n1.shutdown().await;
}

#[test]
fn every_cell_of_the_table_of_fates_names_a_test_that_is_there() {
    let (proofs, text) = (Proofs::find(), document("rpc.md"));
    let (_, table) = text.split_once("## Fates").expect("the section of fates");
    let table = table.split("\n## ").next().unwrap();
    let mut cells = 0;
    for row in table.lines().filter(|line| line.starts_with("| *")) {
        for cell in row.trim_matches('|').split(" | ").skip(1) {
            proofs.check(cell, row);
            cells += 1;
        }
    }
    assert!(cells >= 30, "the table has {cells} cells");
}
