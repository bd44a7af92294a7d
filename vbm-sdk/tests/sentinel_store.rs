//! The store on a master that sentinels watch: real servers on the loopback.
#![allow(clippy::print_stdout, reason = "says what is left out")]

#[path = "common/redis.rs"]
mod redis_server;
#[allow(dead_code, reason = "the tests of the bus use the rest of it")]
#[path = "../../vbm-rpc/tests/common/sets.rs"]
mod sets;

use futures::StreamExt as _;
use redis_server::left_out;
use sets::{MASTER, SentinelSet};
use std::time::Duration;
use tokio::time::{sleep, timeout};
use vbm_core::ErrorKind;
use vbm_sdk::store::{RedisStore, Store, Txn, TxnOutcome, Write};

const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(50);

fn address(set: &SentinelSet) -> String {
    let hosts: Vec<String> = set.sentinels.iter().map(|sentinel| sentinel.address()).collect();
    format!("redis+sentinel://{}/{MASTER}", hosts.join(","))
}

fn put(key: &str, value: &str) -> Txn {
    Txn {
        compare: vec![],
        write: vec![Write::Put(key.to_owned(), value.to_owned().into())],
    }
}

/// Puts it until it is acknowledged: a put may be repeated.
async fn put_at_last(store: &RedisStore, key: &str, value: &str) {
    let acknowledged = async {
        while !matches!(store.txn(put(key, value)).await, Ok(TxnOutcome::Done(_))) {
            sleep(LOOK_EVERY).await;
        }
    };
    timeout(PATIENCE, acknowledged).await.expect("it is acknowledged");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_master_dies_the_store_goes_on_with_the_next_one_and_watches_go_on() {
    if left_out("redis") {
        println!("LEFT OUT: VBM_LEAVE_OUT names redis");
        return;
    }
    let mut set = SentinelSet::start("").await;
    let store = RedisStore::open(&address(&set)).await.unwrap();
    put_at_last(&store, "vm/a", "1").await;
    let revision = store.revision().await.unwrap();
    let mut watch = store.watch("vm/", revision).await.unwrap();
    // On a replica, so it outlives the master.
    let first = set.master().await.unwrap();
    let waiting = async { while set.servers[first].text(&["WAIT", "2", "100"]).await.trim() != "2" {} };
    timeout(PATIENCE, waiting).await.unwrap();
    set.servers[first].kill();
    put_at_last(&store, "vm/b", "2").await;
    assert_ne!(set.master().await, Some(first));
    for (key, value) in [("vm/a", "1"), ("vm/b", "2")] {
        let entry = store.get(key).await.unwrap().unwrap();
        assert_eq!(entry.value, value.as_bytes(), "{key}");
    }
    let told = timeout(PATIENCE, watch.next())
        .await
        .expect("it is told")
        .unwrap()
        .unwrap();
    assert_eq!(told.key, "vm/b");
    // Who comes now finds the new master, and the same store.
    let other = RedisStore::open(&address(&set)).await.unwrap();
    assert_eq!(other.get("vm/a").await.unwrap().unwrap().value, "1".as_bytes());
    other.close().await;
    store.close().await;
}

#[tokio::test]
async fn what_cannot_hold_a_store_is_named_with_what_to_do() {
    let refused = async |url: &str| vbm_core::Error::from(RedisStore::open(url).await.unwrap_err());
    let cluster = refused("redis+cluster://127.0.0.1:1,127.0.0.1:2").await;
    assert!(
        cluster.why().contains("cluster") && cluster.fix().contains("--store redb"),
        "{cluster}"
    );
    let nameless = refused("redis+sentinel://127.0.0.1:1").await;
    assert!(
        nameless.why().contains("name of the master") && nameless.fix().contains("/mymaster"),
        "{nameless}"
    );
    // Port 1 (tcpmux) is nobody's: the word of each sentinel is told.
    let alone = refused("redis+sentinel://127.0.0.1:1/m").await;
    assert_eq!(alone.kind(), ErrorKind::Unavailable, "{alone}");
    assert!(
        alone.why().contains("no sentinel names the master 'm'"),
        "{alone}"
    );
}
