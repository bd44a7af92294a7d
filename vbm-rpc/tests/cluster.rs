//! The bus on a Redis Cluster of three masters: the conformance suite, and what only a cluster can do to it.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, which clippy does not see as tests"
)]
#![allow(clippy::print_stdout, reason = "shows the time of a failover")]

mod common;

use common::{
    left_out,
    sets::{ClusterSet, namespace},
    words::{PATIENCE, client, offer, path, until, within, worker},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout};
use vbm_core::NodePath;
use vbm_rpc::{Bus, CallOptions, Context, Durability, Fate, Method, Route, Router, redis::RedisTransport};

mod conformance {
    use super::common::{left_out, sets::ClusterSet};

    vbm_rpc::transport_conformance! {
        [#[tokio::test(flavor = "multi_thread", worker_threads = 2)]]
        async {
            if left_out() {
                return None;
            }
            let set = ClusterSet::shared().await;
            Some((set.transport().await.into(), set))
        }
    }
}

struct Same;
impl Method for Same {
    const NAME: &'static str = "test.same";
    type Request = usize;
    type Reply = usize;
}

async fn serve(transport: &RedisTransport, at: &str, ran: &Arc<AtomicUsize>) -> Bus {
    let ran = ran.clone();
    let router = Router::new().method::<Same, _, _>(move |_context: Context, n: usize| {
        ran.fetch_add(1, Ordering::SeqCst);
        async move {
            sleep(Duration::from_millis(5)).await;
            Ok(n)
        }
    });
    offer(transport, (at, "boot-1"), router).await
}

fn call(bus: &Bus, route: &Route, n: usize) -> impl Future<Output = Result<usize, Fate>> + Send + use<> {
    bus.call::<Same>(route, &n, within(PATIENCE))
}

async fn slot(set: &ClusterSet, tag: &str) -> usize {
    let text = set.servers[0]
        .text(&["CLUSTER", "KEYSLOT", &format!("{{{tag}}}")])
        .await;
    text.trim().parse().unwrap()
}

/// Which server had the slot of a tag at the beginning.
async fn owner(set: &ClusterSet, tag: &str) -> usize {
    slot(set, tag).await / 5_462
}

/// A shard whose slot that server has.
async fn shard_at(set: &ClusterSet, server: usize) -> String {
    for n in 0..100 {
        let shard = format!("zone/c{n}");
        if owner(set, &shard).await == server {
            return shard;
        }
    }
    panic!("no shard lies on server {server}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_of_all_shards_are_reached_and_their_queues_lie_on_all_servers() {
    if left_out() {
        return;
    }
    let set = ClusterSet::start("").await;
    let (transport, ran) = (set.transport().await, Arc::new(AtomicUsize::new(0)));
    let mut buses = Vec::new();
    let mut nodes = Vec::new();
    for server in 0..3 {
        let at = format!("{}/n1", shard_at(&set, server).await);
        buses.push(serve(&transport, &at, &ran).await);
        nodes.push(Route::node(path(&at)));
    }
    let bus = client(&transport, "far/away/c1").await;
    let calls: Vec<_> = (0..600)
        .map(|n| tokio::spawn(call(&bus, &nodes[n % 3], n)))
        .collect();
    for (n, call) in calls.into_iter().enumerate() {
        assert_eq!(timeout(PATIENCE, call).await.unwrap().unwrap(), Ok(n));
    }
    let any = Route::any(path("zone"), worker());
    for n in 0..50 {
        assert_eq!(call(&bus, &any, n).await, Ok(n));
    }
    let all = Route::all(NodePath::root(), worker());
    let mut replies = bus
        .broadcast::<Same>(&all, &7, CallOptions::default())
        .await
        .unwrap();
    for _ in 0..3 {
        assert!(matches!(replies.next().await, Some((_, Ok(7)))));
    }
    for server in &set.servers {
        assert_ne!(server.text(&["DBSIZE"]).await, "0\n", "{}", server.address());
    }
    drop(replies);
    bus.shutdown().await;
    for bus in buses {
        bus.shutdown().await;
    }
    for server in &set.servers {
        until("every key is gone", async || {
            server.text(&["DBSIZE"]).await == "0\n"
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_follow_a_slot_that_moves_to_another_server() {
    if left_out() {
        return;
    }
    let set = ClusterSet::start("").await;
    let (transport, ran) = (set.transport().await, Arc::new(AtomicUsize::new(0)));
    let shard = shard_at(&set, 0).await;
    let n1 = serve(&transport, &format!("{shard}/n1"), &ran).await;
    let bus = client(&transport, &format!("{}/c1", shard_at(&set, 2).await)).await;
    let node = Route::node(path(&format!("{shard}/n1")));
    assert_eq!(call(&bus, &node, 0).await, Ok(0));
    let slot = slot(&set, &shard).await.to_string();
    let (from, to) = (&set.servers[0], &set.servers[1]);
    let (from_id, to_id) = (
        from.text(&["CLUSTER", "MYID"]).await,
        to.text(&["CLUSTER", "MYID"]).await,
    );
    let (from_id, to_id) = (from_id.trim(), to_id.trim());
    let stream = tokio::spawn({
        let (bus, node) = (bus.clone(), node.clone());
        async move {
            for n in 1..=300 {
                assert_eq!(
                    timeout(PATIENCE, call(&bus, &node, n)).await.expect("it ends"),
                    Ok(n)
                );
            }
        }
    });
    to.ask(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", from_id]).await;
    from.ask(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", to_id]).await;
    let port = to.port.to_string();
    loop {
        let keys = from.text(&["CLUSTER", "GETKEYSINSLOT", &slot, "100"]).await;
        if keys.is_empty() {
            break;
        }
        for key in keys.lines() {
            from.ask(&["MIGRATE", "127.0.0.1", &port, key, "0", "5000"]).await;
        }
    }
    for server in [to, from, &set.servers[2]] {
        server.ask(&["CLUSTER", "SETSLOT", &slot, "NODE", to_id]).await;
    }
    timeout(PATIENCE, stream).await.unwrap().unwrap();
    assert_eq!(ran.load(Ordering::SeqCst), 301, "nothing ran twice");
    bus.shutdown().await;
    n1.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_server_stops_only_its_own_shards_and_their_calls_wait_for_it() {
    if left_out() {
        return;
    }
    let mut set =
        ClusterSet::start("cluster-require-full-coverage no\nappendonly yes\nappendfsync always").await;
    let (transport, ran) = (set.transport().await, Arc::new(AtomicUsize::new(0)));
    // The one that dies has neither the root's slot nor the zone's.
    let (root, zone) = (owner(&set, "/").await, owner(&set, "zone").await);
    let dies = (0..3).find(|&n| n != root && n != zone).unwrap();
    let lives = (0..3).find(|&n| n != dies).unwrap();
    let (dead, alive) = (shard_at(&set, dies).await, shard_at(&set, lives).await);
    let buses = [
        serve(&transport, &format!("{dead}/n1"), &ran).await,
        serve(&transport, &format!("{alive}/n1"), &ran).await,
    ];
    let bus = client(&transport, &format!("{alive}/c1")).await;
    let (dead, alive) = (
        Route::node(path(&format!("{dead}/n1"))),
        Route::node(path(&format!("{alive}/n1"))),
    );
    assert_eq!(call(&bus, &dead, 0).await, Ok(0));
    assert_eq!(call(&bus, &alive, 1).await, Ok(1));
    set.servers[dies].kill();
    let waiting: Vec<_> = (2..50).map(|n| tokio::spawn(call(&bus, &dead, n))).collect();
    let begin = Instant::now();
    for n in 50..100 {
        assert_eq!(call(&bus, &alive, n).await, Ok(n));
    }
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    let short = within(Duration::from_millis(500));
    let fate = bus.call::<Same>(&dead, &0, short).await;
    assert!(
        matches!(fate, Err(Fate::Lost { .. } | Fate::Expired { .. })),
        "{fate:?}"
    );
    set.servers[dies].restart().await;
    for (n, call) in (2..50).zip(waiting) {
        assert_eq!(timeout(PATIENCE, call).await.unwrap().unwrap(), Ok(n));
    }
    bus.shutdown().await;
    for bus in buses {
        bus.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_in_flight_survive_the_kill_of_a_master_whose_replica_takes_over() {
    if left_out() {
        return;
    }
    let mut set = ClusterSet::start("").await;
    let replica = set.add_replica(0).await;
    let (transport, ran) = (set.transport().await, Arc::new(AtomicUsize::new(0)));
    // Worker and one caller live where the master dies, another caller elsewhere.
    let shard = shard_at(&set, 0).await;
    let n1 = serve(&transport, &format!("{shard}/n1"), &ran).await;
    let near = client(&transport, &format!("{shard}/c1")).await;
    let far = client(&transport, &format!("{}/c1", shard_at(&set, 1).await)).await;
    let node = Route::node(path(&format!("{shard}/n1")));
    let safe = CallOptions::default().durability(Durability::Replicated);
    assert_eq!(
        near.cast::<Same>(&node, &0, safe).await,
        Ok(()),
        "its replica has it"
    );
    until("it is done", async || ran.load(Ordering::SeqCst) == 1).await;
    let mut flying: Vec<_> = (0..400)
        .map(|n| tokio::spawn(call(if n % 2 == 0 { &near } else { &far }, &node, n)))
        .collect();
    until("some are running", async || ran.load(Ordering::SeqCst) > 50).await;
    set.servers[0].kill();
    let begin = Instant::now();
    flying.extend((400..500).map(|n| tokio::spawn(call(if n % 2 == 0 { &near } else { &far }, &node, n))));
    for (n, call) in flying.into_iter().enumerate() {
        assert_eq!(timeout(PATIENCE, call).await.unwrap().unwrap(), Ok(n), "call {n}");
    }
    println!(
        "all calls were answered {} ms after the kill (node time-out 2000 ms)",
        begin.elapsed().as_millis()
    );
    assert_eq!(ran.load(Ordering::SeqCst), 501, "nothing ran twice");
    assert!(replica.text(&["ROLE"]).await.starts_with("master"));
    near.shutdown().await;
    far.shutdown().await;
    n1.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_without_replicas_loses_a_replicated_call_with_the_reason() {
    if left_out() {
        return;
    }
    let set = ClusterSet::shared().await;
    let (transport, ran) = (set.transport().await, Arc::new(AtomicUsize::new(0)));
    let (n1, bus) = (
        serve(&transport, "eu/r1/n1", &ran).await,
        client(&transport, "us/r1/c1").await,
    );
    let safe = CallOptions::default().durability(Durability::Replicated);
    let fate = bus.cast::<Same>(&Route::node(path("eu/r1/n1")), &1, safe).await;
    assert!(
        matches!(&fate, Err(Fate::Lost { started: false, why, .. }) if why.contains("replica")),
        "{fate:?}"
    );
    bus.shutdown().await;
    n1.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_a_cluster_alone_is_refused() {
    if left_out() {
        return;
    }
    let set = ClusterSet::shared().await;
    let config = set.servers[0].config().namespace(&namespace());
    let error = RedisTransport::connect(config).await.unwrap_err();
    assert!(error.to_string().contains("part of the keys"), "{error}");
}
