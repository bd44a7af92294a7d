//! What each store must pass, the ones of this crate and those of others: one function a sentence.
//!
//! Each function takes a factory of empty stores and panics when the sentence does not hold. With
//! [`store_conformance!`](crate::store_conformance) each becomes a test of its own:
//!
//! ```
//! use std::sync::Arc;
//! use vbm_sdk::store::{MemoryStore, Store};
//!
//! vbm_sdk::store_conformance!(async || Arc::new(MemoryStore::new()) as Arc<dyn Store>);
//! ```
//!
//! Durability is not in here: it can only be tested by killing a process, and by means of the store in question.

mod concurrency;
mod lists;
mod watches;

pub use self::{concurrency::*, lists::*, watches::*};

use super::{
    Change, Compare, KEY_MAX_BYTES, LOG_MAX_BYTES, LOG_MAX_REVISIONS, PAGE_MAX_ENTRIES, Page, Revision,
    Store, StoreError, TXN_MAX_BYTES, TXN_MAX_ITEMS, Txn, TxnOutcome, VALUE_MAX_BYTES, Watch, Write,
};
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, stream};
use std::{sync::Arc, time::Duration};
use tokio::task::JoinSet;

/// How long anything that is waited for may take; only a broken store needs it.
const PATIENCE: Duration = Duration::from_secs(60);
/// The transactions that a test has under way at once where it makes many.
const PARALLEL_TXNS: usize = 512;

/// Declares a `#[tokio::test]` for each function of [`conformance`](crate::store::conformance). The argument is
/// an expression: an async closure that makes an empty store, as `Arc<dyn Store>`.
#[macro_export]
macro_rules! store_conformance {
    ($make:expr) => {
        $crate::store_conformance! { @tests $make;
            a_key_that_was_never_written_is_absent
            what_was_put_is_read_with_its_revision
            an_empty_value_is_a_value
            a_put_replaces_the_value_and_the_revision
            a_deleted_key_is_absent
            deleting_what_is_absent_changes_nothing
            a_transaction_without_writes_tells_the_revision
            all_writes_of_a_transaction_have_one_revision
            absent_holds_only_for_absent_keys
            at_holds_only_for_the_last_revision
            a_conflict_leaves_nothing
            the_first_comparison_that_fails_is_named
            a_key_written_twice_is_refused
            limits_are_kept_to_the_byte
            a_list_is_ordered_and_paged
            a_prefix_is_no_more_than_a_prefix
            a_list_can_begin_before_and_after_its_prefix
            a_page_has_a_largest_size
            a_watch_tells_the_past_then_the_present_without_gap
            a_watch_tells_only_its_prefix
            a_watch_tells_the_changes_of_a_transaction_in_its_order
            a_watch_from_the_future_is_refused
            a_watch_of_what_was_forgotten_is_refused
            a_watcher_that_is_too_slow_is_told_so
            the_log_forgets_by_size_too
            a_watch_tells_large_transactions_whole
            a_watch_passes_over_many_changes_of_other_keys
            many_watches_can_be_opened_and_dropped
            concurrent_increments_lose_nothing
            concurrent_transactions_have_revisions_of_their_own
            watchers_see_all_in_order_while_many_write
            list_then_watch_misses_nothing_while_many_write
            a_read_after_an_acknowledgement_sees_it
            a_dropped_transaction_is_done_or_not_done
            a_closed_store_refuses_and_ends_its_watches
            closing_answers_what_was_asked_before
        }
    };
    (@tests $make:expr; $($name:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                $crate::store::conformance::$name($make).await;
            }
        )*
    };
}

/// Makes an empty store.
pub trait Make: AsyncFn() -> Arc<dyn Store> {}
impl<F: AsyncFn() -> Arc<dyn Store>> Make for F {}

fn put(key: impl Into<String>, value: impl Into<Bytes>) -> Write {
    Write::Put(key.into(), value.into())
}

fn delete(key: &str) -> Write {
    Write::Delete(key.into())
}

fn writes(write: impl Into<Vec<Write>>) -> Txn {
    Txn {
        compare: Vec::new(),
        write: write.into(),
    }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("the store does not answer")
}

async fn outcome(store: &dyn Store, txn: Txn) -> TxnOutcome {
    soon(store.txn(txn)).await.expect("the transaction fails")
}

async fn done(store: &dyn Store, txn: Txn) -> Revision {
    match outcome(store, txn).await {
        TxnOutcome::Done(revision) => revision,
        TxnOutcome::Conflict(key) => panic!("a conflict about '{key}'"),
    }
}

async fn put_one(store: &dyn Store, key: &str, value: &str) -> Revision {
    done(store, writes([put(key, value.to_owned())])).await
}

async fn value(store: &dyn Store, key: &str) -> Option<String> {
    let entry = soon(store.get(key)).await.expect("get fails");
    entry.map(|entry| String::from_utf8(entry.value.to_vec()).expect("the value is text"))
}

async fn newest(store: &dyn Store) -> Revision {
    soon(store.revision()).await.expect("revision fails")
}

async fn page(store: &dyn Store, prefix: &str, after: Option<&str>, limit: usize) -> Page {
    soon(store.list(prefix, after, limit)).await.expect("list fails")
}

fn keys(page: &Page) -> Vec<&str> {
    page.entries.iter().map(|entry| entry.key.as_str()).collect()
}

async fn watch(store: &dyn Store, prefix: &str, from: u64) -> Watch {
    soon(store.watch(prefix, Revision(from)))
        .await
        .expect("watch fails")
}

async fn next(watch: &mut Watch) -> Change {
    soon(watch.next())
        .await
        .expect("the watch ended")
        .expect("the watch failed")
}

/// What the watch tells next is a change that is made only now.
async fn assert_nothing_more(store: &dyn Store, watch: &mut Watch) {
    assert!(watch.next().now_or_never().is_none(), "it has to wait");
    let revision = put_one(store, "only now", "").await;
    assert_eq!(next(watch).await, change(revision, "only now", Some("")));
}

fn change(revision: Revision, key: &str, value: Option<&str>) -> Change {
    Change {
        revision,
        key: key.into(),
        value: value.map(|value| Bytes::from(value.to_owned())),
    }
}

async fn assert_invalid(store: &dyn Store, txn: Txn) {
    let before = newest(store).await;
    let result = soon(store.txn(txn)).await;
    assert!(matches!(result, Err(StoreError::Invalid(_))), "{result:?}");
    assert_eq!(newest(store).await, before);
}

/// As many transactions, each one put, [`PARALLEL_TXNS`] at a time.
async fn put_many(store: &dyn Store, count: u64) {
    stream::iter(0..count)
        .for_each_concurrent(PARALLEL_TXNS, async |n| {
            done(store, writes([put(format!("many/{}", n % 7), n.to_string())])).await;
        })
        .await;
}

/// A key that was never written is absent.
pub async fn a_key_that_was_never_written_is_absent(make: impl Make) {
    let store = make().await;
    assert_eq!(value(&*store, "a").await, None);
    assert_eq!(newest(&*store).await, Revision(0));
    assert_eq!(
        page(&*store, "", None, 10).await,
        Page {
            entries: vec![],
            more: false,
            revision: Revision(0)
        }
    );
}

/// What was put is read with its revision.
pub async fn what_was_put_is_read_with_its_revision(make: impl Make) {
    let store = make().await;
    assert_eq!(put_one(&*store, "a", "1").await, Revision(1));
    let entry = soon(store.get("a"))
        .await
        .expect("get fails")
        .expect("it is there");
    assert_eq!(
        (entry.key.as_str(), &entry.value[..], entry.revision),
        ("a", &b"1"[..], Revision(1))
    );
    assert_eq!(page(&*store, "", None, 10).await.entries, [entry]);
    assert_eq!(newest(&*store).await, Revision(1));
}

/// An empty value is a value.
pub async fn an_empty_value_is_a_value(make: impl Make) {
    let store = make().await;
    let revision = put_one(&*store, "a", "").await;
    assert_eq!(value(&*store, "a").await.as_deref(), Some(""));
    assert_eq!(
        next(&mut watch(&*store, "", 0).await).await,
        change(revision, "a", Some(""))
    );
}

/// A put replaces the value and the revision, also when the value is the same.
pub async fn a_put_replaces_the_value_and_the_revision(make: impl Make) {
    let store = make().await;
    for (n, text) in [(1, "1"), (2, "2"), (3, "2")] {
        assert_eq!(put_one(&*store, "a", text).await, Revision(n));
        assert_eq!(value(&*store, "a").await.as_deref(), Some(text));
    }
    assert_eq!(page(&*store, "", None, 10).await.entries.len(), 1);
}

/// A deleted key is absent, and can be made again.
pub async fn a_deleted_key_is_absent(make: impl Make) {
    let store = make().await;
    put_one(&*store, "a", "1").await;
    assert_eq!(done(&*store, writes([delete("a")])).await, Revision(2));
    assert_eq!(value(&*store, "a").await, None);
    assert!(page(&*store, "", None, 10).await.entries.is_empty());
    let again = Txn {
        compare: vec![Compare::Absent("a".into())],
        write: vec![put("a", "2")],
    };
    assert_eq!(done(&*store, again).await, Revision(3));
}

/// Deleting what is absent changes nothing, not even the revision.
pub async fn deleting_what_is_absent_changes_nothing(make: impl Make) {
    let store = make().await;
    put_one(&*store, "a", "1").await;
    assert_eq!(done(&*store, writes([delete("b")])).await, Revision(1));
    assert_eq!(
        done(&*store, writes([delete("b"), put("c", "2")])).await,
        Revision(2)
    );
    let mut watch = watch(&*store, "", 1).await;
    assert_eq!(next(&mut watch).await, change(Revision(2), "c", Some("2")));
    assert_nothing_more(&*store, &mut watch).await;
}

/// A transaction without writes compares, and tells the revision.
pub async fn a_transaction_without_writes_tells_the_revision(make: impl Make) {
    let store = make().await;
    assert_eq!(done(&*store, Txn::default()).await, Revision(0));
    put_one(&*store, "a", "1").await;
    let question = Txn {
        compare: vec![Compare::At("a".into(), Revision(1))],
        write: vec![],
    };
    assert_eq!(done(&*store, question).await, Revision(1));
    let question = Txn {
        compare: vec![Compare::Absent("a".into())],
        write: vec![],
    };
    assert_eq!(outcome(&*store, question).await, TxnOutcome::Conflict("a".into()));
}

/// All writes of a transaction have one revision.
pub async fn all_writes_of_a_transaction_have_one_revision(make: impl Make) {
    let store = make().await;
    put_one(&*store, "old", "1").await;
    let revision = done(&*store, writes([put("b", "2"), delete("old"), put("a", "3")])).await;
    assert_eq!(revision, Revision(2));
    let page = page(&*store, "", None, 10).await;
    assert_eq!(keys(&page), ["a", "b"]);
    assert!(page.entries.iter().all(|entry| entry.revision == revision));
    assert_eq!(page.revision, revision);
}

/// `Absent` holds only for absent keys.
pub async fn absent_holds_only_for_absent_keys(make: impl Make) {
    let store = make().await;
    let create = Txn {
        compare: vec![Compare::Absent("a".into())],
        write: vec![put("a", "1")],
    };
    assert_eq!(
        outcome(&*store, create.clone()).await,
        TxnOutcome::Done(Revision(1))
    );
    assert_eq!(outcome(&*store, create).await, TxnOutcome::Conflict("a".into()));
}

/// `At` holds only for the revision that wrote the key last.
pub async fn at_holds_only_for_the_last_revision(make: impl Make) {
    let store = make().await;
    let update = |key: &str, at| Txn {
        compare: vec![Compare::At(key.into(), Revision(at))],
        write: vec![put(key, "new")],
    };
    assert_eq!(
        outcome(&*store, update("a", 0)).await,
        TxnOutcome::Conflict("a".into())
    );
    put_one(&*store, "a", "1").await;
    put_one(&*store, "b", "1").await;
    assert_eq!(
        outcome(&*store, update("a", 2)).await,
        TxnOutcome::Conflict("a".into())
    );
    assert_eq!(
        outcome(&*store, update("a", 1)).await,
        TxnOutcome::Done(Revision(3))
    );
    assert_eq!(
        outcome(&*store, update("a", 1)).await,
        TxnOutcome::Conflict("a".into())
    );
}

/// A conflict leaves nothing: no value, no revision, no change for a watch.
pub async fn a_conflict_leaves_nothing(make: impl Make) {
    let store = make().await;
    put_one(&*store, "a", "1").await;
    let txn = Txn {
        compare: vec![
            Compare::At("a".into(), Revision(1)),
            Compare::At("b".into(), Revision(1)),
        ],
        write: vec![put("a", "2"), put("c", "3"), delete("a2")],
    };
    assert_eq!(outcome(&*store, txn).await, TxnOutcome::Conflict("b".into()));
    assert_eq!(value(&*store, "a").await.as_deref(), Some("1"));
    assert_eq!(value(&*store, "c").await, None);
    assert_eq!(newest(&*store).await, Revision(1));
    assert_nothing_more(&*store, &mut watch(&*store, "", 1).await).await;
}

/// The first comparison that fails is named.
pub async fn the_first_comparison_that_fails_is_named(make: impl Make) {
    let store = make().await;
    put_one(&*store, "a", "1").await;
    let compare = ["x", "a", "y"]
        .map(|key| Compare::At(key.into(), Revision(1)))
        .to_vec();
    let txn = Txn {
        compare,
        write: vec![],
    };
    assert_eq!(outcome(&*store, txn).await, TxnOutcome::Conflict("x".into()));
}

/// A key that is written twice by one transaction is refused.
pub async fn a_key_written_twice_is_refused(make: impl Make) {
    let store = make().await;
    assert_invalid(&*store, writes([put("a", "1"), put("a", "1")])).await;
    assert_invalid(&*store, writes([put("a", "1"), put("b", "1"), delete("a")])).await;
    // Comparing a key twice, and comparing what is written, is fine.
    let compare = vec![Compare::Absent("a".into()), Compare::Absent("a".into())];
    assert_eq!(
        done(
            &*store,
            Txn {
                compare,
                write: vec![put("a", "1")]
            }
        )
        .await,
        Revision(1)
    );
}

/// Limits are kept to the byte: what just fits is accepted, one more is refused and changes nothing.
pub async fn limits_are_kept_to_the_byte(make: impl Make) {
    let store = make().await;
    let (key, long) = ("k".repeat(KEY_MAX_BYTES), "k".repeat(KEY_MAX_BYTES + 1));
    let largest = Bytes::from(vec![7; VALUE_MAX_BYTES]);
    done(&*store, writes([put(key.clone(), largest.clone())])).await;
    let read = soon(store.get(&key))
        .await
        .expect("get fails")
        .expect("it is there");
    assert_eq!(read.value, largest);
    assert_invalid(&*store, writes([put(long.clone(), "")])).await;
    assert_invalid(&*store, writes([delete("")])).await;
    assert_invalid(
        &*store,
        Txn {
            compare: vec![Compare::Absent(long.clone())],
            write: vec![],
        },
    )
    .await;
    assert_invalid(&*store, writes([put("a", vec![7; VALUE_MAX_BYTES + 1])])).await;
    assert_eq!(value(&*store, &long).await, None);

    let mut many: Vec<Write> = (0..TXN_MAX_ITEMS).map(|n| put(format!("many/{n}"), "")).collect();
    done(&*store, writes(many.clone())).await;
    many.push(put("one more", ""));
    assert_invalid(&*store, writes(many.clone())).await;
    many.truncate(TXN_MAX_ITEMS);
    assert_invalid(
        &*store,
        Txn {
            compare: vec![Compare::Absent("x".into())],
            write: many,
        },
    )
    .await;

    let fits = TXN_MAX_BYTES / VALUE_MAX_BYTES;
    let heavy = (0..fits)
        .map(|n| put(n.to_string(), largest.clone()))
        .collect::<Vec<_>>();
    assert_invalid(&*store, writes(heavy)).await;
}
