//! The store on Redis: the conformance suite, and what only a server can show: it is killed under load, comes back,
//! comes back older, is slow, or is not fit. Each test has a Redis of its own.

#![expect(clippy::unwrap_used, reason = "a test ends at its first surprise")]

#[path = "common/redis.rs"]
mod redis_server;

use bytes::Bytes;
use futures::StreamExt as _;
use redis_server::{DURABLE, Redis};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{task::JoinSet, time::timeout};
use vbm_sdk::store::{
    Change, Compare, LOG_MAX_REVISIONS, RedisStore, Revision, Store, StoreError, Txn, TxnOutcome, Watch,
    Write,
};

/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

mod conformance {
    use super::*;

    /// Each test has a Redis of its own, which lives as long as its factory.
    struct Place(Option<Redis>);

    fn place() -> Place {
        Place(Redis::start())
    }

    async fn empty(place: &Place) -> Arc<dyn Store> {
        match &place.0 {
            Some(redis) => Arc::new(RedisStore::open(&redis.url()).await.unwrap()),
            // Left out, and said so.
            None => Arc::new(vbm_sdk::store::MemoryStore::new()),
        }
    }

    vbm_sdk::store_conformance!({
        let place = place();
        async move || empty(&place).await
    });
}

fn put(key: impl Into<String>, value: impl Into<Bytes>) -> Txn {
    Txn {
        compare: vec![],
        write: vec![Write::Put(key.into(), value.into())],
    }
}

async fn done(store: &dyn Store, txn: Txn) -> Revision {
    match timeout(PATIENCE, store.txn(txn)).await.unwrap().unwrap() {
        TxnOutcome::Done(revision) => revision,
        TxnOutcome::Conflict(key) => panic!("a conflict about '{key}'"),
    }
}

async fn next(watch: &mut Watch) -> Result<Change, StoreError> {
    timeout(PATIENCE, watch.next())
        .await
        .expect("nothing was told")
        .expect("the watch ended")
}

async fn open(redis: &Redis) -> Arc<RedisStore> {
    Arc::new(RedisStore::open(&redis.url()).await.unwrap())
}

/// Writers that put numbers and count them when acknowledged, until told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    writers: JoinSet<BTreeMap<String, u64>>,
}

impl Load {
    fn start(store: &Arc<RedisStore>, writers: u64) -> Self {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut set = JoinSet::new();
        for writer in 0..writers {
            let (store, stop, acknowledged) =
                (Arc::clone(store), Arc::clone(&stop), Arc::clone(&acknowledged));
            set.spawn(async move {
                let (mut mine, mut n) = (BTreeMap::new(), 0_u64);
                while !stop.load(Ordering::Relaxed) {
                    n += 1;
                    let key = format!("load/{writer}/{n}");
                    if let Ok(TxnOutcome::Done(revision)) = store.txn(put(&*key, n.to_string())).await {
                        mine.insert(key, revision.0);
                        acknowledged.fetch_add(1, Ordering::Relaxed);
                    }
                }
                mine
            });
        }
        Self {
            stop,
            acknowledged,
            writers: set,
        }
    }

    async fn until_acknowledged(&self, more: u64) {
        let wanted = self.acknowledged.load(Ordering::Relaxed) + more;
        let reached = async {
            while self.acknowledged.load(Ordering::Relaxed) < wanted {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(PATIENCE, reached).await.expect("transactions go on");
    }

    async fn end(mut self) -> BTreeMap<String, u64> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = BTreeMap::new();
        while let Some(mine) = timeout(PATIENCE, self.writers.join_next()).await.unwrap() {
            all.extend(mine.unwrap());
        }
        all
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_is_there_after_redis_was_killed_under_load() {
    let Some(mut redis) = Redis::with(DURABLE) else {
        return;
    };
    let store = open(&redis).await;
    let mut watch = store.watch("load/", Revision(0)).await.unwrap();
    let load = Load::start(&store, 16);
    for _ in 0..3 {
        load.until_acknowledged(200).await;
        redis.kill();
        redis.restart();
    }
    load.until_acknowledged(200).await;
    let acknowledged = load.end().await;
    assert!(acknowledged.len() >= 800);
    let page = store.list("load/", None, usize::MAX).await.unwrap();
    assert!(!page.more);
    let kept: BTreeMap<String, u64> = page
        .entries
        .into_iter()
        .map(|entry| (entry.key, entry.revision.0))
        .collect();
    for (key, revision) in &acknowledged {
        assert_eq!(kept.get(key), Some(revision), "{key} was acknowledged");
    }
    // The watch told each of them once, in order, across all restarts; and nothing was done twice.
    for wanted in 1..=page.revision.0 {
        assert_eq!(next(&mut watch).await.unwrap().revision.0, wanted);
    }
    assert_eq!(kept.len() as u64, page.revision.0, "each key was written once");
    store.close().await;
}

#[tokio::test]
async fn requests_wait_while_redis_is_away_and_watches_resume() {
    let Some(mut redis) = Redis::with(DURABLE) else {
        return;
    };
    let store = open(&redis).await;
    done(&*store, put("a", "1")).await;
    let mut watch = store.watch("", Revision(1)).await.unwrap();
    redis.kill();
    let write = tokio::spawn({
        let store = Arc::clone(&store);
        async move { done(&*store, put("a", "2")).await }
    });
    let read = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.get("a").await.unwrap().unwrap() }
    });
    tokio::task::yield_now().await;
    redis.restart();
    assert_eq!(timeout(PATIENCE, write).await.unwrap().unwrap(), Revision(2));
    assert!(timeout(PATIENCE, read).await.unwrap().unwrap().revision >= Revision(1));
    assert_eq!(next(&mut watch).await.unwrap().revision, Revision(2));
    store.close().await;
}

#[tokio::test]
async fn a_redis_that_stays_away_is_an_unknown_outcome_after_a_time() {
    let Some(mut redis) = Redis::start() else { return };
    let store = open(&redis).await;
    redis.kill();
    tokio::time::pause();
    let begun = tokio::time::Instant::now();
    let failed = store.txn(put("a", "1")).await.unwrap_err();
    assert!(matches!(failed, StoreError::Failed(_)), "{failed:?}");
    let error = vbm_core::Error::from(failed);
    assert_eq!(error.outcome(), vbm_core::Outcome::Unknown);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    store.close().await;
}

/// A Redis that forgot: watchers must list again, and no number is given twice.
async fn comes_back_older(kept: u64) {
    let Some(mut redis) = Redis::start() else { return };
    let store = open(&redis).await;
    let other = open(&redis).await;
    for n in 0..10_u64 {
        done(&*store, put("a", n.to_string())).await;
    }
    let mut watch = store.watch("", Revision(10)).await.unwrap();
    let mut others = other.watch("", Revision(0)).await.unwrap();
    for n in 1..=10 {
        assert_eq!(next(&mut others).await.unwrap().revision, Revision(n));
    }
    redis.kill();
    redis.restart();
    // Somebody who knows nothing of the past writes first, fewer, as many or more than were lost.
    let newcomer = open(&redis).await;
    for n in 0..kept {
        done(&*newcomer, put("b", n.to_string())).await;
    }
    for watch in [&mut watch, &mut others] {
        let told = next(watch).await;
        assert!(matches!(told, Err(StoreError::Compacted { .. })), "{told:?}");
    }
    let new = done(&*store, put("a", "new")).await;
    assert!(new > Revision(10), "{new}");
    assert_eq!(other.get("a").await.unwrap().unwrap().revision, new);
    let page = store.list("", None, 10).await.unwrap();
    let mut again = store.watch("", page.revision).await.unwrap();
    let after = done(&*newcomer, put("c", "")).await;
    assert_eq!(next(&mut again).await.unwrap().revision, after);
    for store in [store, other, newcomer] {
        store.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_lost_everything_is_found_out() {
    comes_back_older(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_lost_writes_and_counted_on_is_found_out() {
    for counted in [3, 10, 25] {
        comes_back_older(counted).await;
    }
}

#[tokio::test]
async fn a_transaction_asked_again_after_a_lost_reply_is_not_done_twice() {
    let Some(redis) = Redis::start() else { return };
    let store = open(&redis).await;
    done(&*store, put("n", "0")).await;
    // A proxy that takes the answer away: the server does the work, the client never hears of it.
    let (url, swallow) = proxy(&redis).await;
    let far = RedisStore::open(&url).await.unwrap();
    assert_eq!(far.revision().await.unwrap(), Revision(1));
    swallow.store(true, Ordering::SeqCst);
    let txn = Txn {
        compare: vec![Compare::At("n".into(), Revision(1))],
        write: vec![Write::Put("n".into(), "1".into())],
    };
    let asked = tokio::spawn(async move { (far.txn(txn).await, far) });
    let mut watch = store.watch("n", Revision(1)).await.unwrap();
    assert_eq!(next(&mut watch).await.unwrap().revision, Revision(2));
    swallow.store(false, Ordering::SeqCst);
    let (outcome, far) = timeout(PATIENCE, asked).await.unwrap().unwrap();
    assert_eq!(
        outcome.unwrap(),
        TxnOutcome::Done(Revision(2)),
        "without its record it would be a conflict"
    );
    assert_eq!(store.revision().await.unwrap(), Revision(2));
    far.close().await;
    store.close().await;
}

/// A way to Redis that breaks off, instead of handing over an answer, while told to.
async fn proxy(redis: &Redis) -> (String, Arc<AtomicBool>) {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{UnixListener, UnixStream},
    };
    let (path, target) = (redis.dir().join("proxy"), redis.dir().join("s"));
    let listener = UnixListener::bind(&path).unwrap();
    let swallow = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&swallow);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = UnixStream::connect(&target).await.unwrap();
            let told = Arc::clone(&told);
            tokio::spawn(async move {
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = server.into_split();
                let up = tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
                let mut buffer = vec![0; 64 * 1024];
                while let Ok(length @ 1..) = from_server.read(&mut buffer).await {
                    if told.load(Ordering::SeqCst) || to_client.write_all(&buffer[..length]).await.is_err() {
                        break;
                    }
                }
                up.abort();
            });
        }
    });
    (format!("redis+unix://{}", path.display()), swallow)
}

#[tokio::test]
async fn two_systems_on_one_redis_do_not_see_each_other() {
    let Some(redis) = Redis::start() else { return };
    let (one, other) = ("one".parse().unwrap(), "other".parse().unwrap());
    let one = RedisStore::open_in(&redis.url(), &one).await.unwrap();
    let other = RedisStore::open_in(&redis.url(), &other).await.unwrap();
    done(&one, put("a", "1")).await;
    assert_eq!(other.get("a").await.unwrap(), None);
    assert_eq!(other.revision().await.unwrap(), Revision(0));
    one.close().await;
    other.close().await;
}

#[tokio::test]
async fn what_the_store_leaves_in_redis_is_bounded_and_bears_its_name() {
    let Some(redis) = Redis::start() else { return };
    let store = open(&redis).await;
    for n in 0..50_u64 {
        done(&*store, put("a", n.to_string())).await;
    }
    let mut raw = redis.raw();
    let keys: Vec<String> = ::redis::cmd("KEYS").arg("*").query(&mut raw).unwrap();
    assert!(
        keys.iter().all(|key| key.starts_with("{vbm:store:v1}:")),
        "{keys:?}"
    );
    for key in keys.iter().filter(|key| key.contains(":done:")) {
        let left: i64 = ::redis::cmd("PTTL").arg(key).query(&mut raw).unwrap();
        assert!((1..=120_000).contains(&left), "{key} lives {left} ms");
    }
    let log: u64 = ::redis::cmd("XLEN")
        .arg("{vbm:store:v1}:log")
        .query(&mut raw)
        .unwrap();
    assert_eq!(log, 50);
    assert!(log <= LOG_MAX_REVISIONS);
    store.close().await;
}

#[tokio::test]
async fn a_redis_that_is_full_refuses_a_transaction_as_a_whole() {
    let Some(redis) = Redis::start() else { return };
    let store = open(&redis).await;
    done(&*store, put("old", "1")).await;
    let mut raw = redis.raw();
    let limit = |raw: &mut ::redis::Connection, bytes: &str| {
        ::redis::cmd("CONFIG")
            .arg("SET")
            .arg("maxmemory")
            .arg(bytes)
            .query::<()>(raw)
            .unwrap();
    };
    limit(&mut raw, "1");
    let txn = Txn {
        compare: vec![],
        write: vec![
            Write::Delete("old".into()),
            Write::Put("new".into(), vec![7; 100_000].into()),
        ],
    };
    let full = timeout(PATIENCE, store.txn(txn.clone()))
        .await
        .unwrap()
        .unwrap_err();
    assert!(
        matches!(&full, StoreError::Failed(why) if why.contains("OOM")),
        "{full:?}"
    );
    assert!(
        store.get("old").await.unwrap().is_some(),
        "a deletion was done by itself"
    );
    limit(&mut raw, "0");
    assert_eq!(done(&*store, txn).await, Revision(2));
    store.close().await;
}

#[tokio::test]
async fn scripts_that_the_server_forgot_are_told_again() {
    let Some(redis) = Redis::start() else { return };
    let store = open(&redis).await;
    done(&*store, put("a", "1")).await;
    ::redis::cmd("SCRIPT")
        .arg("FLUSH")
        .query::<()>(&mut redis.raw())
        .unwrap();
    assert_eq!(done(&*store, put("a", "2")).await, Revision(2));
    store.close().await;
}

#[tokio::test]
async fn a_server_that_is_not_there_or_evicts_is_refused_in_three_lines() {
    let Some(redis) = Redis::with(&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]) else {
        return;
    };
    let evicts = vbm_core::Error::from(RedisStore::open(&redis.url()).await.unwrap_err());
    assert_eq!(evicts.kind(), vbm_core::ErrorKind::Unsupported, "{evicts}");
    assert!(evicts.why().contains("allkeys-lru"), "{evicts}");
    let nowhere = format!("redis+unix://{}", redis.dir().join("none").display());
    let away = vbm_core::Error::from(RedisStore::open(&nowhere).await.unwrap_err());
    assert_eq!(away.kind(), vbm_core::ErrorKind::Unavailable, "{away}");
    let garbage = vbm_core::Error::from(RedisStore::open("redis://u:secret@h:99999").await.unwrap_err());
    assert!(!garbage.to_string().contains("secret"), "{garbage}");
    for error in [evicts, away, garbage] {
        assert_eq!(error.to_string().lines().count(), 3, "{error}");
    }
}

#[tokio::test]
async fn a_dropped_store_ends_its_watches() {
    let Some(redis) = Redis::start() else { return };
    let store = RedisStore::open(&redis.url()).await.unwrap();
    let mut watch = store.watch("", Revision(0)).await.unwrap();
    drop(store);
    assert!(matches!(next(&mut watch).await, Err(StoreError::Closed)));
}
