//! A request is not begun after its caller has stopped waiting, wherever it waited: in the queue of its sender's process,
//! which the receiver cannot see, or in the transport.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, which clippy does not see as tests"
)]

mod common;

use async_trait::async_trait;
use common::{
    RedisServer, left_out,
    proxy::Proxy,
    words::{client, offer, path, until, within},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep, sleep_until};
use vbm_core::{Epoch, Error};
use vbm_rpc::{
    Bus, Context, EpochGate, Method, Route, Router, Transport,
    memory::MemoryBus,
    redis::{RedisConfig, RedisTransport},
};

struct Put;
impl Method for Put {
    const NAME: &'static str = "test.put";
    type Request = u64;
    type Reply = u64;
}

struct Fenced;
impl Method for Fenced {
    const NAME: &'static str = "test.fenced";
    const FENCED: bool = true;
    type Request = u64;
    type Reply = u64;
}

async fn serve(transport: Arc<dyn Transport>, boot: &str, ran: &Arc<AtomicUsize>) -> Bus {
    let ran = ran.clone();
    let router = Router::new().method::<Put, _, _>(move |_context: Context, n: u64| {
        ran.fetch_add(1, Ordering::SeqCst);
        async move { Ok(n) }
    });
    offer(&transport, ("eu/n1", boot), router).await
}

fn call(bus: &Bus, deadline: Duration) -> tokio::task::JoinHandle<Result<u64, vbm_rpc::Fate>> {
    tokio::spawn(bus.call::<Put>(&Route::node(path("eu/n1")), &1, within(deadline)))
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waited_in_its_senders_process_is_not_begun_late() {
    let (hub, ran) = (MemoryBus::new(), Arc::default());
    let (n1, bus) = (
        serve(hub.clone().into(), "b", &ran).await,
        client(&hub, "c1").await,
    );
    hub.pause(&path("c1"));
    let (begin, flying) = (Instant::now(), call(&bus, Duration::from_secs(4)));
    sleep_until(begin + Duration::from_secs(2)).await;
    hub.pause(&path("eu/n1"));
    hub.resume(&path("c1"));
    sleep_until(begin + Duration::from_secs(5)).await;
    // Three of its four seconds have passed since the transport was given it, and five since it was made.
    hub.resume(&path("eu/n1"));
    assert!(flying.await.unwrap().is_err());
    sleep(Duration::from_secs(5)).await;
    assert_eq!(ran.load(Ordering::SeqCst), 0, "\n{}", hub.story().join("\n"));
    bus.shutdown().await;
    n1.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_future_was_polled_late_is_not_begun_late() {
    let (hub, ran) = (MemoryBus::new(), Arc::default());
    let (n1, bus) = (
        serve(hub.clone().into(), "b", &ran).await,
        client(&hub, "c1").await,
    );
    hub.pause(&path("eu/n1"));
    let late = bus.call::<Put>(&Route::node(path("eu/n1")), &1, within(Duration::from_secs(4)));
    sleep(Duration::from_secs(3)).await;
    assert!(late.await.is_err());
    hub.resume(&path("eu/n1"));
    sleep(Duration::from_secs(5)).await;
    assert_eq!(ran.load(Ordering::SeqCst), 0);
    bus.shutdown().await;
    n1.shutdown().await;
}

/// A gate that takes its time, as one that writes the epoch to a slow disk.
struct SlowGate;
#[async_trait]
impl EpochGate for SlowGate {
    async fn admit(&self, _epoch: Epoch) -> Result<(), Error> {
        sleep(Duration::from_secs(5)).await;
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waited_for_the_checks_of_its_receiver_is_not_begun_late() {
    let (hub, ran) = (MemoryBus::new(), Arc::<AtomicUsize>::default());
    let counter = ran.clone();
    let router = Router::new().method::<Fenced, _, _>(move |_context: Context, n: u64| {
        counter.fetch_add(1, Ordering::SeqCst);
        async move { Ok(n) }
    });
    let n1 = offer(&hub, ("eu/n1", "b"), router.with_epoch_gate(Arc::new(SlowGate))).await;
    let bus = client(&hub, "c1").await;
    let ask = |seconds| {
        bus.call::<Fenced>(
            &Route::node(path("eu/n1")),
            &1,
            within(Duration::from_secs(seconds)),
        )
    };
    assert!(ask(4).await.is_err());
    sleep(Duration::from_secs(5)).await;
    assert_eq!(ran.load(Ordering::SeqCst), 0);
    assert_eq!(ask(6).await, Ok(1));
    bus.shutdown().await;
    n1.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_was_on_its_way_to_redis_for_long_is_not_begun_late() {
    if left_out() {
        return;
    }
    let (server, ran) = (RedisServer::start().await, Arc::default());
    let proxy = Proxy::to(&server.socket()).await;
    let behind = RedisTransport::connect(RedisConfig::from_url(&proxy.url()).unwrap())
        .await
        .unwrap();
    let n1 = serve(server.transport().await.into(), "b", &ran).await;
    let bus = client(&behind, "c1").await;
    assert_eq!(call(&bus, Duration::from_secs(30)).await.unwrap(), Ok(1));
    proxy.hold(Some(Put::NAME));
    let begin = Instant::now();
    let late = call(&bus, Duration::from_secs(1));
    until("it is on its way", async || proxy.caught() > 0).await;
    sleep_until(begin + Duration::from_secs(2)).await;
    proxy.hold(None);
    let fate = late.await.unwrap();
    assert!(fate.is_err(), "{fate:?}");
    // In order: what comes later is done later.
    assert_eq!(call(&bus, Duration::from_secs(30)).await.unwrap(), Ok(1));
    assert_eq!(ran.load(Ordering::SeqCst), 2, "what was late was begun");
    bus.shutdown().await;
    n1.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_waited_for_redis_is_not_begun_late() {
    if left_out() {
        return;
    }
    let mut server = RedisServer::with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let (transport, ran) = (server.transport().await, Arc::default());
    let n1 = serve(transport.clone().into(), "b-1", &ran).await;
    let bus = client(&transport, "c1").await;
    // Present still, so that the request is kept for the next process.
    n1.kill().await;
    server.kill().await;
    let (begin, flying) = (Instant::now(), call(&bus, Duration::from_secs(4)));
    sleep_until(begin + Duration::from_secs(2)).await;
    server.restart().await;
    let fate = flying.await.unwrap();
    assert!(fate.is_err(), "{fate:?}");
    assert!(
        begin.elapsed() < Duration::from_millis(5_500),
        "{:?}",
        begin.elapsed()
    );
    let n1 = serve(transport.into(), "b-2", &ran).await;
    // What was kept comes before this one.
    assert_eq!(call(&bus, Duration::from_secs(30)).await.unwrap(), Ok(1));
    assert_eq!(ran.load(Ordering::SeqCst), 1, "what was late was begun");
    bus.shutdown().await;
    n1.shutdown().await;
}
