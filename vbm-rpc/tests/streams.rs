//! Streams and signs of life while the server itself stands still, and on a bus that loses, repeats and delays.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, which clippy does not see as tests"
)]

mod common;

use common::{RedisServer, left_out};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};
use vbm_rpc::{
    Bus, CallOptions, Context, Fate, ItemSink, Member, Method, Route, Router, StreamMethod, StreamOptions,
    limits,
    memory::{Faults, MemoryBus},
};

const PATIENCE: Duration = Duration::from_secs(60);
/// Longer than a silent worker is waited for.
const STANDSTILL: Duration = Duration::from_secs(7);

/// Waits so many ms.
struct Wait;
impl Method for Wait {
    const NAME: &'static str = "test.wait";
    type Request = u64;
    type Reply = u64;
}

/// Gives so many numbers, one every 2 ms.
struct Count;
impl Method for Count {
    const NAME: &'static str = "test.count";
    type Request = u64;
    type Reply = u64;
}
impl StreamMethod for Count {
    type Item = u64;
}

fn router() -> Router {
    Router::new()
        .method::<Wait, _, _>(|_context: Context, ms: u64| async move {
            sleep(Duration::from_millis(ms)).await;
            Ok(ms)
        })
        .stream::<Count, _, _>(
            |_context: Context, to: u64, mut items: ItemSink<Count>| async move {
                for n in 0..to {
                    items.send(&n).await?;
                    sleep(Duration::from_millis(2)).await;
                }
                Ok(to)
            },
        )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stands_still_makes_no_worker_silent_and_breaks_no_stream() {
    if left_out() {
        return;
    }
    assert!(STANDSTILL > limits::BEAT_EVERY * (limits::SILENT_BEATS + 2));
    let server = RedisServer::with(&["--enable-debug-command", "yes"]).await;
    let transport = server.transport().await;
    let member = |path: &str| Member::new(path.parse().unwrap(), format!("boot-{path}"));
    let worker = Bus::attach(transport.clone(), member("n1"), router())
        .await
        .unwrap();
    let bus = Bus::attach(transport, member("c1"), Router::new()).await.unwrap();
    let n1 = Route::node("n1".parse().unwrap());
    let long = u64::try_from((STANDSTILL + Duration::from_secs(3)).as_millis()).unwrap();
    let call = tokio::spawn(bus.call::<Wait>(&n1, &long, CallOptions::default().deadline(PATIENCE)));
    let mut stream = bus
        .stream::<Count>(&n1, &2_000, StreamOptions::new().idle(PATIENCE))
        .await
        .unwrap();
    for n in 0..50 {
        assert_eq!(stream.next().await, Some(Ok(n)));
    }
    let mut raw = server.raw().await;
    let begin = Instant::now();
    let pause = tokio::spawn(async move {
        // Its own answer may be too late for its connection.
        let _late = redis::cmd("DEBUG")
            .arg("SLEEP")
            .arg(STANDSTILL.as_secs())
            .query_async::<()>(&mut raw)
            .await;
    });
    let mut next = 50;
    while let Some(item) = timeout(PATIENCE, stream.next()).await.expect("it does not hang") {
        assert_eq!(item, Ok(next));
        next += 1;
    }
    assert_eq!((next, stream.end()), (2_000, Some(2_000)));
    assert!(begin.elapsed() >= STANDSTILL, "the server stood still meanwhile");
    let reply = timeout(PATIENCE, call).await.expect("it does not hang").unwrap();
    assert_eq!(reply, Ok(long));
    pause.await.unwrap();
    bus.shutdown().await;
    worker.shutdown().await;
}

/// Whatever is lost, repeated or delayed: items are read in order, none twice, and a stream that is not complete says so.
#[tokio::test(start_paused = true)]
async fn a_stream_is_complete_or_says_that_it_is_not() {
    const ITEMS: u64 = 300;
    let (mut complete, mut broken) = (0, 0);
    for seed in 0..40 {
        let hub = MemoryBus::with_faults(Faults {
            seed,
            // From nothing lost to one in a hundred.
            drop_per_mille: u16::try_from(seed / 4).unwrap(),
            duplicate_per_mille: 200,
            ..Faults::default()
        });
        let member = |path: &str| Member::new(path.parse().unwrap(), format!("boot-{path}"));
        let worker = Bus::attach(hub.clone(), member("n1"), router()).await.unwrap();
        let bus = Bus::attach(hub, member("c1"), Router::new()).await.unwrap();
        let n1 = Route::node("n1".parse().unwrap());
        let begin = Instant::now();
        let opened = bus.stream::<Count>(&n1, &ITEMS, StreamOptions::new().idle(PATIENCE));
        let mut stream = opened.await.unwrap();
        let mut next = 0;
        let mut fate = None;
        while let Some(item) = stream.next().await {
            match item {
                Ok(n) => assert_eq!(n, next, "seed {seed}"),
                Err(lost) => fate = Some(lost),
            }
            next += 1;
        }
        match fate {
            None => {
                assert_eq!((next, stream.end()), (ITEMS, Some(ITEMS)), "seed {seed}");
                complete += 1;
            }
            Some(Fate::Lost { .. }) => {
                assert_eq!(stream.end(), None, "seed {seed}");
                broken += 1;
            }
            Some(other) => panic!("seed {seed}: {other:?}"),
        }
        assert!(
            begin.elapsed() <= PATIENCE + limits::BEAT_EVERY * 10,
            "seed {seed}"
        );
        drop(stream);
        worker.shutdown().await;
        bus.shutdown().await;
    }
    assert!(complete >= 4, "without a loss all of it arrives ({complete})");
    assert!(broken >= 10, "losses are noticed ({broken})");
}
