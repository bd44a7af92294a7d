//! The stores: the conformance suite, a model, and what only a file can show: it outlives its process, damage is
//! found, a full disk is survived.

#![expect(clippy::unwrap_used, reason = "a test ends at its first surprise")]
#![expect(clippy::print_stdout, reason = "a test that is left out says so")]

#[path = "../common/redis.rs"]
mod redis_server;

mod damaged;
mod full;
mod killed;
mod model;

use bytes::Bytes;
use proptest::prelude::*;
use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
};
use vbm_sdk::store::{
    Compare, LOG_MAX_BYTES, MemoryStore, RedbStore, RedisStore, Revision, Store, StoreError, Txn, TxnOutcome,
    VALUE_MAX_BYTES, Write,
};

mod memory {
    use super::*;
    vbm_sdk::store_conformance!(async || Arc::new(MemoryStore::new()) as Arc<dyn Store>);
}

mod redb {
    use super::*;
    vbm_sdk::store_conformance!({
        let directory = tempfile::tempdir().unwrap();
        async move || Arc::new(RedbStore::open(directory.path().join("store")).unwrap()) as Arc<dyn Store>
    });
}

fn put(key: impl Into<String>, value: impl Into<Bytes>) -> Txn {
    Txn {
        compare: vec![],
        write: vec![Write::Put(key.into(), value.into())],
    }
}

async fn done(store: &dyn Store, txn: Txn) -> Revision {
    match store.txn(txn).await.unwrap() {
        TxnOutcome::Done(revision) => revision,
        TxnOutcome::Conflict(key) => panic!("a conflict about '{key}'"),
    }
}

async fn content(store: &dyn Store) -> BTreeMap<String, (u64, Bytes)> {
    let page = store.list("", None, usize::MAX).await.unwrap();
    assert!(!page.more);
    page.entries
        .into_iter()
        .map(|entry| (entry.key, (entry.revision.0, entry.value)))
        .collect()
}

/// A directory of its own and the path of a store in it.
fn place() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    (directory, path)
}

fn names(directory: &Path) -> Vec<String> {
    fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[tokio::test]
async fn a_store_opened_again_has_all_and_goes_on_counting() {
    let (directory, path) = place();
    let store = RedbStore::open(&path).unwrap();
    for n in 0..20 {
        done(&store, put(format!("k/{n}"), n.to_string())).await;
    }
    done(
        &store,
        Txn {
            compare: vec![],
            write: vec![Write::Delete("k/7".into())],
        },
    )
    .await;
    let before = content(&store).await;
    store.close().await;
    let store = RedbStore::open(&path).unwrap();
    assert_eq!(content(&store).await, before);
    assert_eq!(done(&store, put("k/7", "again")).await, Revision(22));
    let mut watch = store.watch("k/7", Revision(0)).await.unwrap();
    for revision in [8, 21, 22] {
        assert_eq!(
            futures::StreamExt::next(&mut watch)
                .await
                .unwrap()
                .unwrap()
                .revision,
            Revision(revision)
        );
    }
    store.close().await;
    assert_eq!(names(directory.path()), ["store"]);
}

#[tokio::test]
async fn a_store_opened_again_forgets_by_size_as_before() {
    let (_directory, path) = place();
    let large = Bytes::from(vec![7; VALUE_MAX_BYTES]);
    let (fits, more) = ((LOG_MAX_BYTES / VALUE_MAX_BYTES) as u64 - 1, 10);
    let store = RedbStore::open(&path).unwrap();
    for _ in 0..fits {
        done(&store, put("a", large.clone())).await;
    }
    drop(store.watch("", Revision(0)).await.unwrap());
    store.close().await;
    let store = RedbStore::open(&path).unwrap();
    for _ in 0..more {
        done(&store, put("a", large.clone())).await;
    }
    let refused = store.watch("", Revision(0)).await.err();
    let begins = Revision(more + 1);
    assert!(
        matches!(refused, Some(StoreError::Compacted { oldest, .. }) if oldest == begins),
        "{refused:?}"
    );
    store.close().await;
}

#[tokio::test]
async fn a_store_that_is_open_is_in_use() {
    let (_directory, path) = place();
    let first = RedbStore::open(&path).unwrap();
    assert!(matches!(RedbStore::open(&path), Err(StoreError::InUse { path: told }) if told == path));
    done(&first, put("a", "1")).await;
    first.close().await;
    RedbStore::open(&path).unwrap().close().await;
}

#[tokio::test]
async fn a_watch_does_not_keep_a_dropped_store_open() {
    let (_directory, path) = place();
    let store = RedbStore::open(&path).unwrap();
    let mut watch = store.watch("", Revision(0)).await.unwrap();
    drop(store);
    let told = futures::StreamExt::next(&mut watch).await;
    assert!(matches!(told, Some(Err(StoreError::Closed))), "{told:?}");
    RedbStore::open(&path).unwrap().close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_who_make_a_store_at_once_one_gets_it() {
    for _ in 0..20 {
        let (directory, path) = place();
        let threads = [(); 4].map(|()| {
            let path = path.clone();
            tokio::task::spawn_blocking(move || RedbStore::open(path))
        });
        let mut opened = Vec::new();
        for thread in threads {
            match thread.await.unwrap() {
                Ok(store) => opened.push(store),
                Err(StoreError::InUse { .. }) => {}
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!(opened.len(), 1);
        done(&opened[0], put("a", "1")).await;
        opened[0].close().await;
        assert_eq!(names(directory.path()), ["store"]);
        assert_eq!(content(&RedbStore::open(&path).unwrap()).await.len(), 1);
    }
}

#[tokio::test]
async fn what_a_killed_maker_left_is_cleared_away() {
    for made in [false, true] {
        for left in [&b""[..], b"half a store"] {
            let (directory, path) = place();
            if made {
                RedbStore::open(&path).unwrap().close().await;
            }
            fs::write(directory.path().join("store.new"), left).unwrap();
            RedbStore::open(&path).unwrap().close().await;
            assert_eq!(names(directory.path()), ["store"], "made: {made}");
        }
    }
}

#[test]
fn only_the_owner_may_read_the_file() {
    use std::os::unix::fs::PermissionsExt as _;
    let (_directory, path) = place();
    drop(RedbStore::open(&path).unwrap());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_directory_that_does_not_exist_is_a_failure_that_names_it() {
    let (_directory, path) = place();
    let path = path.join("deeper").join("store");
    let Err(StoreError::Failed(why)) = RedbStore::open(&path) else {
        panic!("it opened")
    };
    assert!(why.contains("deeper"), "{why}");
}
