//! The bus on a master that sentinels watch: the conformance suite, and what a failover must not break.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, which clippy does not see as tests"
)]
#![allow(clippy::print_stdout, reason = "shows the time of a failover")]

mod common;

use common::{
    left_out,
    sets::{DOWN_AFTER, MASTER, SentinelSet},
    words::{PATIENCE, client, offer, path, until, within, worker},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout};
use vbm_core::NodePath;
use vbm_rpc::{Bus, Context, Durability, Fate, Method, Route, Router, redis::RedisTransport};

mod conformance {
    use super::common::{left_out, sets::SentinelSet};

    vbm_rpc::transport_conformance! {
        [#[tokio::test(flavor = "multi_thread", worker_threads = 2)]]
        async {
            if left_out() {
                return None;
            }
            let set = SentinelSet::shared().await;
            Some((set.transport().await.into(), set))
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Work {
    n: usize,
    wait_ms: u64,
}

struct Do;
impl Method for Do {
    const NAME: &'static str = "test.do";
    type Request = Work;
    type Reply = usize;
}

/// How often each piece of work was done, outside the bus.
#[derive(Clone, Default)]
struct Ledger(Arc<Mutex<HashMap<usize, usize>>>);

impl Ledger {
    fn begun(&self) -> usize {
        self.0.lock().unwrap().len()
    }
    fn times(&self, n: usize) -> usize {
        self.0.lock().unwrap().get(&n).copied().unwrap_or(0)
    }
    fn twice(&self) -> Vec<usize> {
        let ledger = self.0.lock().unwrap();
        ledger
            .iter()
            .filter(|(_, times)| **times > 1)
            .map(|(n, _)| *n)
            .collect()
    }
}

fn any() -> Route {
    Route::any(NodePath::root(), worker())
}
async fn serve(transport: &RedisTransport, at: &str, boot: &str, ledger: &Ledger) -> Bus {
    let ledger = ledger.clone();
    let router = Router::new().method::<Do, _, _>(move |_context: Context, work: Work| {
        let ledger = ledger.clone();
        async move {
            *ledger.0.lock().unwrap().entry(work.n).or_default() += 1;
            sleep(Duration::from_millis(work.wait_ms)).await;
            Ok(work.n)
        }
    });
    offer(transport, (at, boot), router).await
}

fn call(
    bus: &Bus,
    route: &Route,
    n: usize,
    wait_ms: u64,
) -> impl Future<Output = Result<usize, Fate>> + Send + use<> {
    bus.call::<Do>(route, &Work { n, wait_ms }, within(PATIENCE))
}

/// Calls in flight while `break_it` takes the master away: each is answered, nothing is done twice. Prints when a call
/// that was begun afterwards came through.
async fn calls_survive(
    calls: usize,
    what: &str,
    set: &mut SentinelSet,
    break_it: impl FnOnce(&mut SentinelSet, usize),
) {
    let (transport, ledger) = (set.transport().await, Ledger::default());
    let n1 = serve(&transport, "eu/r1/n1", "boot-1", &ledger).await;
    let bus = client(&transport, "eu/r1/c1").await;
    let (node, any) = (Route::node(path("eu/r1/n1")), any());
    let flying: Vec<_> = (0..calls)
        .map(|n| tokio::spawn(call(&bus, if n % 2 == 0 { &node } else { &any }, n, 700)))
        .collect();
    until("many are running", async || ledger.begun() > calls / 5).await;
    let before = set.master().await.unwrap();
    let ended = flying.iter().filter(|call| call.is_finished()).count();
    break_it(set, before);
    let begin = Instant::now();
    assert_eq!(
        timeout(PATIENCE, call(&bus, &node, calls, 0)).await.unwrap(),
        Ok(calls)
    );
    println!(
        "{what}: {} of {calls} calls were in flight; resumed after {} ms (down-after {} ms, the aim is 2500 ms more)",
        calls - ended,
        begin.elapsed().as_millis(),
        DOWN_AFTER.as_millis()
    );
    for (n, call) in flying.into_iter().enumerate() {
        assert_eq!(timeout(PATIENCE, call).await.unwrap().unwrap(), Ok(n), "call {n}");
    }
    println!(
        "{what}: the last of them was answered after {} ms",
        begin.elapsed().as_millis()
    );
    assert_eq!(ledger.twice(), Vec::<usize>::new());
    assert_eq!(ledger.begun(), calls + 1);
    assert_ne!(set.master().await.unwrap(), before);
    bus.shutdown().await;
    n1.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_calls_in_flight_survive_the_kill_of_the_master() {
    if left_out() {
        return;
    }
    let mut set = SentinelSet::start("").await;
    calls_survive(2_000, "killed master", &mut set, |set, master| {
        set.servers[master].kill()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_survive_a_master_that_hangs_and_comes_back_as_a_replica() {
    if left_out() {
        return;
    }
    let mut set = SentinelSet::start("").await;
    let before = set.master().await.unwrap();
    calls_survive(200, "hung master", &mut set, |set, master| {
        set.servers[master].signal("STOP")
    })
    .await;
    let (transport, ledger) = (set.transport().await, Ledger::default());
    let (n1, bus) = (
        serve(&transport, "n1", "boot-1", &ledger).await,
        client(&transport, "eu/r1/c1").await,
    );
    set.servers[before].signal("CONT");
    until("the old master is a replica", async || {
        set.servers[before].text(&["ROLE"]).await.starts_with("slave")
    })
    .await;
    for n in 0..20 {
        assert_eq!(call(&bus, &Route::node(path("n1")), n, 0).await, Ok(n));
    }
    assert_eq!(ledger.twice(), Vec::<usize>::new());
    bus.shutdown().await;
    n1.shutdown().await;
}

/// The newest entries of the old master are not on the new one, whose ids then lie below what was read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_and_broadcasts_are_seen_when_the_new_master_knows_less_than_was_read() {
    if left_out() {
        return;
    }
    let mut set = SentinelSet::start("").await;
    let config = set.config();
    let (transport, ledger) = (RedisTransport::connect(config).await.unwrap(), Ledger::default());
    let (n1, bus) = (
        serve(&transport, "eu/r1/n1", "boot-1", &ledger).await,
        client(&transport, "eu/r1/c1").await,
    );
    let node = Route::node(path("eu/r1/n1"));
    // Answered, it proves that both read: a member that is about to connect would be cut off with the replicas.
    assert_eq!(call(&bus, &node, 0, 0).await, Ok(0));
    let before = set.master().await.unwrap();
    // The replicas are cut off: they cannot log in again.
    set.servers[before].want_password("cut").await;
    set.servers[before]
        .ask(&["CLIENT", "KILL", "TYPE", "replica"])
        .await;
    // From now on the old master's streams run an hour ahead of the clock.
    let now = set.servers[before].text(&["TIME"]).await;
    let ahead = format!(
        "{}000-0",
        now.lines().next().unwrap().parse::<u64>().unwrap() + 3_600
    );
    for key in ["r:eu/r1/c1:boot-c", "n:eu/r1/n1", "b"] {
        let key = format!("vbm:v1:{{eu/r1}}:{key}");
        set.servers[before]
            .ask(&["XADD", &key, &ahead, "x", "no frame"])
            .await;
    }
    let all = Route::all(NodePath::root(), worker());
    assert_eq!(call(&bus, &node, 1, 0).await, Ok(1));
    let mut replies = bus
        .broadcast::<Do>(&all, &Work { n: 2, wait_ms: 0 }, within(PATIENCE))
        .await
        .unwrap();
    assert_eq!(replies.next().await, Some((path("eu/r1/n1"), Ok(2))));
    set.servers[before].kill();
    let after = set.moved_from(before).await;
    until("calls come through again", async || {
        let short = within(Duration::from_secs(2));
        bus.call::<Do>(&node, &Work { n: 3, wait_ms: 0 }, short)
            .await
            .is_ok()
    })
    .await;
    let text = set.servers[after]
        .text(&["XINFO", "STREAM", "vbm:v1:{eu/r1}:b"])
        .await;
    assert!(
        !text.contains(&ahead),
        "the new master must not know what was read: {text}"
    );
    let mut replies = bus
        .broadcast::<Do>(&all, &Work { n: 4, wait_ms: 0 }, within(PATIENCE))
        .await
        .unwrap();
    assert_eq!(
        timeout(PATIENCE, replies.next()).await.unwrap(),
        Some((path("eu/r1/n1"), Ok(4)))
    );
    assert_eq!((ledger.times(1), ledger.times(2), ledger.times(4)), (1, 1, 1));
    bus.shutdown().await;
    n1.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_without_its_replicas_takes_nothing_and_the_calls_wait_for_them() {
    if left_out() {
        return;
    }
    let set = SentinelSet::start("min-replicas-to-write 1\nmin-replicas-max-lag 2").await;
    let (transport, ledger) = (set.transport().await, Ledger::default());
    let (n1, bus) = (
        serve(&transport, "n1", "boot-1", &ledger).await,
        client(&transport, "eu/r1/c1").await,
    );
    let (node, master) = (Route::node(path("n1")), set.master().await.unwrap());
    let replicas: Vec<_> = (0..3).filter(|&n| n != master).collect();
    for &replica in &replicas {
        set.servers[replica].signal("STOP");
    }
    until("the master takes no writes", async || {
        let short = within(Duration::from_millis(500));
        bus.call::<Do>(&node, &Work { n: 0, wait_ms: 0 }, short)
            .await
            .is_err()
    })
    .await;
    let waiting: Vec<_> = (1..50).map(|n| tokio::spawn(call(&bus, &node, n, 0))).collect();
    sleep(Duration::from_millis(500)).await;
    for &replica in &replicas {
        set.servers[replica].signal("CONT");
    }
    for (n, call) in (1..50).zip(waiting) {
        assert_eq!(timeout(PATIENCE, call).await.unwrap().unwrap(), Ok(n));
    }
    assert_eq!(ledger.twice().iter().filter(|n| **n > 0).count(), 0);
    bus.shutdown().await;
    n1.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replicated_cast_that_was_taken_outlives_the_master_and_its_caller() {
    if left_out() {
        return;
    }
    let mut set = SentinelSet::start("").await;
    let (transport, ledger) = (set.transport().await, Ledger::default());
    let (n1, bus) = (
        serve(&transport, "n1", "boot-1", &ledger).await,
        client(&transport, "eu/r1/c1").await,
    );
    let node = Route::node(path("n1"));
    assert_eq!(call(&bus, &node, 0, 0).await, Ok(0));
    // Presence still shows the worker, so the casts are queued.
    n1.kill().await;
    let casts = (1..100).map(|n| {
        bus.cast::<Do>(
            &node,
            &Work { n, wait_ms: 0 },
            within(PATIENCE).durability(Durability::Replicated),
        )
    });
    for cast in futures::future::join_all(casts).await {
        assert_eq!(cast, Ok(()));
    }
    let before = set.master().await.unwrap();
    set.servers[before].kill();
    bus.kill().await;
    set.moved_from(before).await;
    let n1 = serve(&transport, "n1", "boot-2", &ledger).await;
    until("all are done", async || ledger.begun() == 100).await;
    assert_eq!(ledger.twice(), Vec::<usize>::new());
    n1.shutdown().await;
}

/// One replica may confirm what another, which is promoted, never saw: all that could be promoted must have it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replicated_cast_is_not_kept_while_a_replica_that_could_be_promoted_lacks_it() {
    if left_out() {
        return;
    }
    let set = SentinelSet::start("").await;
    let down_after = async |ms: &str| {
        for sentinel in &set.sentinels {
            let words = ["SENTINEL", "SET", MASTER, "down-after-milliseconds", ms];
            sentinel.ask(&words).await;
        }
    };
    // Nobody is taken for dead for now.
    down_after("60000").await;
    let (transport, ledger) = (set.transport().await, Ledger::default());
    let (n1, bus) = (
        serve(&transport, "n1", "boot-1", &ledger).await,
        client(&transport, "eu/r1/c1").await,
    );
    let (node, work) = (Route::node(path("n1")), Work { n: 1, wait_ms: 0 });
    let cast = || bus.cast::<Do>(&node, &work, within(PATIENCE).durability(Durability::Replicated));
    assert_eq!(cast().await, Ok(()));
    let master = set.master().await.unwrap();
    let silent = (master + 1) % set.servers.len();
    set.servers[silent].signal("STOP");
    let ended = cast().await;
    set.servers[silent].signal("CONT");
    assert!(
        matches!(&ended, Err(Fate::Lost { started: false, why, .. }) if why.contains("1 of 2 replicas")),
        "{ended:?}"
    );
    until("both have it again", async || cast().await == Ok(())).await;
    // Who is dead for the sentinels cannot be promoted, and is not waited for.
    set.servers[silent].signal("STOP");
    down_after("1000").await;
    until("the other alone is enough", async || cast().await == Ok(())).await;
    set.servers[silent].signal("CONT");
    bus.shutdown().await;
    n1.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_taken_outlives_its_caller_and_its_worker() {
    if left_out() {
        return;
    }
    let set = SentinelSet::shared().await;
    for durability in [Durability::Fast, Durability::Replicated] {
        let (transport, ledger) = (set.transport().await, Ledger::default());
        let (n1, bus) = (
            serve(&transport, "n1", "boot-1", &ledger).await,
            client(&transport, "eu/r1/c1").await,
        );
        n1.kill().await;
        let node = Route::node(path("n1"));
        let options = || within(PATIENCE).durability(durability);
        assert_eq!(
            bus.cast::<Do>(&node, &Work { n: 1, wait_ms: 0 }, options()).await,
            Ok(())
        );
        let call = tokio::spawn(bus.call::<Do>(&node, &Work { n: 2, wait_ms: 0 }, options()));
        let marker = bus.cast::<Do>(&node, &Work { n: 3, wait_ms: 0 }, options());
        assert_eq!(marker.await, Ok(()));
        bus.kill().await;
        assert!(call.await.unwrap().is_err(), "a dead caller gets no answer");
        let n1 = serve(&transport, "n1", "boot-2", &ledger).await;
        until("all are done", async || {
            ledger.times(1) == 1 && ledger.times(3) == 1
        })
        .await;
        assert_eq!(ledger.twice(), Vec::<usize>::new());
        n1.shutdown().await;
    }
}

/// The honest side of the table: what `Fast` does not promise, and that `Replicated` says so beforehand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fast_cast_is_lost_with_a_master_that_had_no_replicas_and_a_replicated_one_says_so() {
    if left_out() {
        return;
    }
    let mut set = SentinelSet::start("").await;
    let (transport, ledger) = (set.transport().await, Ledger::default());
    let (n1, bus) = (
        serve(&transport, "n1", "boot-1", &ledger).await,
        client(&transport, "eu/r1/c1").await,
    );
    let (node, before) = (Route::node(path("n1")), set.master().await.unwrap());
    let safe = || within(PATIENCE).durability(Durability::Replicated);
    assert_eq!(
        bus.cast::<Do>(&node, &Work { n: 0, wait_ms: 0 }, safe()).await,
        Ok(())
    );
    until("it is done", async || ledger.times(0) == 1).await;
    n1.kill().await;
    set.servers[before].want_password("cut").await;
    set.servers[before]
        .ask(&["CLIENT", "KILL", "TYPE", "replica"])
        .await;
    assert_eq!(
        bus.cast::<Do>(&node, &Work { n: 1, wait_ms: 0 }, within(PATIENCE))
            .await,
        Ok(())
    );
    let fate = bus.cast::<Do>(&node, &Work { n: 2, wait_ms: 0 }, safe()).await;
    assert!(
        matches!(&fate, Err(Fate::Lost { why, .. }) if why.contains("replica")),
        "{fate:?}"
    );
    // A call is sent again by its caller, whatever its durability.
    let waiting = tokio::spawn(call(&bus, &node, 3, 0));
    set.servers[before].kill();
    set.moved_from(before).await;
    let n1 = serve(&transport, "n1", "boot-2", &ledger).await;
    assert_eq!(timeout(PATIENCE, waiting).await.unwrap().unwrap(), Ok(3));
    assert_eq!((ledger.times(1), ledger.times(2), ledger.times(3)), (0, 0, 1));
    bus.shutdown().await;
    n1.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replicated_call_without_replicas_is_lost_with_the_reason_and_fast_ones_go_on() {
    if left_out() {
        return;
    }
    let set = SentinelSet::start("").await;
    let (transport, ledger) = (set.transport().await, Ledger::default());
    let (n1, bus) = (
        serve(&transport, "n1", "boot-1", &ledger).await,
        client(&transport, "eu/r1/c1").await,
    );
    let (node, master) = (Route::node(path("n1")), set.master().await.unwrap());
    let safe = || within(PATIENCE).durability(Durability::Replicated);
    assert_eq!(
        bus.call::<Do>(&node, &Work { n: 1, wait_ms: 200 }, safe()).await,
        Ok(1)
    );
    for replica in (0..3).filter(|&n| n != master) {
        set.servers[replica].signal("STOP");
    }
    let slow = bus.call::<Do>(&node, &Work { n: 2, wait_ms: 5_000 }, safe());
    let slow = tokio::spawn(slow);
    let cast = bus.cast::<Do>(&node, &Work { n: 3, wait_ms: 0 }, safe());
    let cast = tokio::spawn(cast);
    let begin = Instant::now();
    for n in 10..20 {
        assert_eq!(
            call(&bus, &node, n, 0).await,
            Ok(n),
            "fast calls do not wait for replicas"
        );
    }
    let fast = begin.elapsed();
    for fate in [slow.await.unwrap().map(drop), cast.await.unwrap()] {
        assert!(
            matches!(&fate, Err(Fate::Lost { started: false, why, .. }) if why.contains("replica")),
            "{fate:?}"
        );
    }
    assert!(fast < begin.elapsed(), "{fast:?}");
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    for replica in (0..3).filter(|&n| n != master) {
        set.servers[replica].signal("CONT");
    }
    bus.shutdown().await;
    n1.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_that_do_not_fit_are_told_apart() {
    if left_out() {
        return;
    }
    let set = SentinelSet::shared().await;
    let sentinel = set.sentinels[0].address();
    let master = &set.servers[set.master().await.unwrap()];
    let replica = set
        .servers
        .iter()
        .find(|server| server.port != master.port)
        .unwrap();
    for (url, word) in [
        (
            format!("redis+sentinel://{sentinel}/other"),
            "no master of that name",
        ),
        (
            format!("redis+sentinel://{}/mymaster", master.address()),
            "no sentinel",
        ),
        (format!("redis://{sentinel}"), "it is a sentinel"),
        (format!("redis://{}", replica.address()), "replica"),
        (format!("redis+cluster://{}", master.address()), "no cluster"),
    ] {
        let config = vbm_rpc::redis::RedisConfig::from_url(&url).unwrap();
        let error = RedisTransport::connect(config).await.unwrap_err();
        assert!(error.to_string().contains(word), "{url}: {error}");
    }
    // One sentinel that answers is enough.
    let config = format!("redis+sentinel://127.0.0.1:1,{sentinel}/mymaster");
    RedisTransport::connect(vbm_rpc::redis::RedisConfig::from_url(&config).unwrap())
        .await
        .unwrap();
}
