//! Misfortune by seed on the memory transport: whatever is lost, repeated or delayed, every call ends by its deadline and
//! no key has its effect twice.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::Instant;
use vbm_rpc::{
    Bus, CallOptions, Context, Fate, Member, Method, Route, Router, Service,
    memory::{Faults, MemoryBus},
};

const SEEDS: u64 = 40;
const CALLS: u64 = 100;
const DEADLINE: Duration = Duration::from_secs(2);

struct Put;
impl Method for Put {
    const NAME: &'static str = "test.put";
    type Request = u64;
    type Reply = u64;
}

#[tokio::test(start_paused = true)]
async fn every_call_ends_by_its_deadline_and_no_key_has_two_effects() {
    for seed in 0..SEEDS {
        let effects: Arc<Mutex<HashMap<u64, u32>>> = Arc::default();
        let hub = MemoryBus::with_faults(Faults {
            seed,
            drop_per_mille: 100,
            duplicate_per_mille: 200,
            delay_max: Duration::from_millis(300),
            ..Faults::default()
        });
        let seen = effects.clone();
        let router = Router::new().method::<Put, _, _>(move |_context: Context, n: u64| {
            *seen.lock().unwrap().entry(n).or_default() += 1;
            async move { Ok(n) }
        });
        let member =
            Member::new("n1".parse().unwrap(), format!("w-{seed}")).service(Service::new("worker").unwrap());
        let worker = Bus::attach(hub.clone(), member, router).await.unwrap();
        let bus = Bus::attach(hub, Member::new("c1".parse().unwrap(), "c"), Router::new())
            .await
            .unwrap();
        let route = Route::node("n1".parse().unwrap());
        let begin = Instant::now();
        let calls = (0..CALLS).map(|n| {
            let options = CallOptions::default()
                .deadline(DEADLINE)
                .idempotency_key(format!("k{n}"));
            let (bus, route) = (&bus, &route);
            async move {
                match bus.call::<Put>(route, &n, options.clone()).await {
                    Err(fate) if fate.is_retryable() => bus.call::<Put>(route, &n, options).await,
                    end => end,
                }
            }
        });
        for (n, end) in (0..).zip(futures::future::join_all(calls).await) {
            match end {
                Ok(reply) => assert_eq!(reply, n, "seed {seed}"),
                Err(Fate::Lost { .. } | Fate::Expired { .. }) => {}
                Err(other) => panic!("seed {seed}, call {n}: {other:?}"),
            }
        }
        assert!(begin.elapsed() < DEADLINE * 3, "seed {seed}");
        bus.shutdown().await;
        worker.shutdown().await;
        for (n, count) in effects.lock().unwrap().iter() {
            assert_eq!(*count, 1, "seed {seed}: key {n} had its effect {count} times");
        }
    }
}

struct Flood;
impl Method for Flood {
    const NAME: &'static str = "test.flood";
    const KEPT: bool = false;
    type Request = u64;
    type Reply = String;
}

#[tokio::test]
async fn answers_that_are_not_kept_displace_none_that_are() {
    const BYTES: usize = 500_000;
    let puts = Arc::new(Mutex::new(0));
    let seen = puts.clone();
    let router = Router::new()
        .method::<Put, _, _>(move |_context: Context, n: u64| {
            *seen.lock().unwrap() += 1;
            async move { Ok(n) }
        })
        .method::<Flood, _, _>(|_context: Context, _n: u64| async move { Ok("x".repeat(BYTES)) });
    let hub = MemoryBus::new();
    let worker = Member::new("n1".parse().unwrap(), "b").service(Service::new("w").unwrap());
    let worker = Bus::attach(hub.clone(), worker, router).await.unwrap();
    let member = Member::new("c1".parse().unwrap(), "b");
    let bus = Bus::attach(hub, member, Router::new()).await.unwrap();
    let n1 = Route::node("n1".parse().unwrap());
    let keyed = || CallOptions::default().idempotency_key("k");
    bus.call::<Put>(&n1, &1, keyed()).await.unwrap();
    for n in 0..=(vbm_rpc::limits::DEDUPE_MAX_BYTES / BYTES) as u64 {
        bus.call::<Flood>(&n1, &n, CallOptions::default()).await.unwrap();
    }
    bus.call::<Put>(&n1, &1, keyed()).await.unwrap();
    assert_eq!(*puts.lock().unwrap(), 1, "the key had its effect again");
    bus.shutdown().await;
    worker.shutdown().await;
}

/// The caller sends its unanswered request again at each generation. That it runs is no reason to end it as overloaded.
#[tokio::test(start_paused = true)]
async fn a_request_that_is_sent_again_a_hundred_times_while_it_runs_is_answered() {
    const TIMES: usize = 100;
    const { assert!(TIMES > vbm_rpc::limits::DEDUPE_MAX_WAITERS) };
    let (ran, hub) = (Arc::new(Mutex::new(0)), MemoryBus::new());
    let seen = ran.clone();
    let router = Router::new().method::<Put, _, _>(move |_context: Context, n: u64| {
        *seen.lock().unwrap() += 1;
        async move {
            tokio::time::sleep(Duration::from_secs(200)).await;
            Ok(n)
        }
    });
    let worker = Bus::attach(hub.clone(), Member::new("n1".parse().unwrap(), "w"), router)
        .await
        .unwrap();
    let bus = Bus::attach(
        hub.clone(),
        Member::new("c1".parse().unwrap(), "c"),
        Router::new(),
    )
    .await
    .unwrap();
    let options = CallOptions::default().deadline(Duration::from_secs(600));
    let call = tokio::spawn(bus.call::<Put>(&Route::node("n1".parse().unwrap()), &7, options));
    for _ in 0..TIMES {
        tokio::time::sleep(Duration::from_secs(1)).await;
        hub.outage();
        hub.restore();
    }
    assert_eq!(call.await.unwrap(), Ok(7));
    assert_eq!(*ran.lock().unwrap(), 1);
    bus.shutdown().await;
    worker.shutdown().await;
}
