//! What each store must pass, the ones of this crate and those of others: one function a sentence.
//!
//! Each function takes a factory of empty stores and panics when the sentence does not hold. With
//! [`store_conformance!`](crate::store_conformance) each becomes a test of its own:
//!
//! ```ignore
//! mod memory {
//!     vbm_sdk::store_conformance!(async || Arc::new(MemoryStore::new()) as Arc<dyn Store>);
//! }
//! ```
//!
//! Durability is not in here: it can only be tested by killing a process, and by means of the store in question.

use super::{
    Change, Compare, KEY_MAX_BYTES, LOG_MAX_BYTES, LOG_MAX_REVISIONS, PAGE_MAX_ENTRIES, Page, Revision, Store,
    StoreError, TXN_MAX_BYTES, TXN_MAX_ITEMS, Txn, TxnOutcome, VALUE_MAX_BYTES, Watch, Write,
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
    Txn { compare: Vec::new(), write: write.into() }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("the store does not answer")
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
    soon(store.watch(prefix, Revision(from))).await.expect("watch fails")
}

async fn next(watch: &mut Watch) -> Change {
    soon(watch.next()).await.expect("the watch ended").expect("the watch failed")
}

/// What the watch tells next is a change that is made only now.
async fn assert_nothing_more(store: &dyn Store, watch: &mut Watch) {
    assert!(watch.next().now_or_never().is_none(), "it has to wait");
    let revision = put_one(store, "only now", "").await;
    assert_eq!(next(watch).await, change(revision, "only now", Some("")));
}

fn change(revision: Revision, key: &str, value: Option<&str>) -> Change {
    Change { revision, key: key.into(), value: value.map(|value| Bytes::from(value.to_owned())) }
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
    assert_eq!(page(&*store, "", None, 10).await, Page { entries: vec![], more: false, revision: Revision(0) });
}

/// What was put is read with its revision.
pub async fn what_was_put_is_read_with_its_revision(make: impl Make) {
    let store = make().await;
    assert_eq!(put_one(&*store, "a", "1").await, Revision(1));
    let entry = soon(store.get("a")).await.expect("get fails").expect("it is there");
    assert_eq!((entry.key.as_str(), &entry.value[..], entry.revision), ("a", &b"1"[..], Revision(1)));
    assert_eq!(page(&*store, "", None, 10).await.entries, [entry]);
    assert_eq!(newest(&*store).await, Revision(1));
}

/// An empty value is a value.
pub async fn an_empty_value_is_a_value(make: impl Make) {
    let store = make().await;
    let revision = put_one(&*store, "a", "").await;
    assert_eq!(value(&*store, "a").await.as_deref(), Some(""));
    assert_eq!(next(&mut watch(&*store, "", 0).await).await, change(revision, "a", Some("")));
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
    let again = Txn { compare: vec![Compare::Absent("a".into())], write: vec![put("a", "2")] };
    assert_eq!(done(&*store, again).await, Revision(3));
}

/// Deleting what is absent changes nothing, not even the revision.
pub async fn deleting_what_is_absent_changes_nothing(make: impl Make) {
    let store = make().await;
    put_one(&*store, "a", "1").await;
    assert_eq!(done(&*store, writes([delete("b")])).await, Revision(1));
    assert_eq!(done(&*store, writes([delete("b"), put("c", "2")])).await, Revision(2));
    let mut watch = watch(&*store, "", 1).await;
    assert_eq!(next(&mut watch).await, change(Revision(2), "c", Some("2")));
    assert_nothing_more(&*store, &mut watch).await;
}

/// A transaction without writes compares, and tells the revision.
pub async fn a_transaction_without_writes_tells_the_revision(make: impl Make) {
    let store = make().await;
    assert_eq!(done(&*store, Txn::default()).await, Revision(0));
    put_one(&*store, "a", "1").await;
    let question = Txn { compare: vec![Compare::At("a".into(), Revision(1))], write: vec![] };
    assert_eq!(done(&*store, question).await, Revision(1));
    let question = Txn { compare: vec![Compare::Absent("a".into())], write: vec![] };
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
    let create = Txn { compare: vec![Compare::Absent("a".into())], write: vec![put("a", "1")] };
    assert_eq!(outcome(&*store, create.clone()).await, TxnOutcome::Done(Revision(1)));
    assert_eq!(outcome(&*store, create).await, TxnOutcome::Conflict("a".into()));
}

/// `At` holds only for the revision that wrote the key last.
pub async fn at_holds_only_for_the_last_revision(make: impl Make) {
    let store = make().await;
    let update = |key: &str, at| Txn {
        compare: vec![Compare::At(key.into(), Revision(at))],
        write: vec![put(key, "new")],
    };
    assert_eq!(outcome(&*store, update("a", 0)).await, TxnOutcome::Conflict("a".into()));
    put_one(&*store, "a", "1").await;
    put_one(&*store, "b", "1").await;
    assert_eq!(outcome(&*store, update("a", 2)).await, TxnOutcome::Conflict("a".into()));
    assert_eq!(outcome(&*store, update("a", 1)).await, TxnOutcome::Done(Revision(3)));
    assert_eq!(outcome(&*store, update("a", 1)).await, TxnOutcome::Conflict("a".into()));
}

/// A conflict leaves nothing: no value, no revision, no change for a watch.
pub async fn a_conflict_leaves_nothing(make: impl Make) {
    let store = make().await;
    put_one(&*store, "a", "1").await;
    let txn = Txn {
        compare: vec![Compare::At("a".into(), Revision(1)), Compare::At("b".into(), Revision(1))],
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
    let compare = ["x", "a", "y"].map(|key| Compare::At(key.into(), Revision(1))).to_vec();
    let txn = Txn { compare, write: vec![] };
    assert_eq!(outcome(&*store, txn).await, TxnOutcome::Conflict("x".into()));
}

/// A key that is written twice by one transaction is refused.
pub async fn a_key_written_twice_is_refused(make: impl Make) {
    let store = make().await;
    assert_invalid(&*store, writes([put("a", "1"), put("a", "1")])).await;
    assert_invalid(&*store, writes([put("a", "1"), put("b", "1"), delete("a")])).await;
    // Comparing a key twice, and comparing what is written, is fine.
    let compare = vec![Compare::Absent("a".into()), Compare::Absent("a".into())];
    assert_eq!(done(&*store, Txn { compare, write: vec![put("a", "1")] }).await, Revision(1));
}

/// Limits are kept to the byte: what just fits is accepted, one more is refused and changes nothing.
pub async fn limits_are_kept_to_the_byte(make: impl Make) {
    let store = make().await;
    let (key, long) = ("k".repeat(KEY_MAX_BYTES), "k".repeat(KEY_MAX_BYTES + 1));
    let largest = Bytes::from(vec![7; VALUE_MAX_BYTES]);
    done(&*store, writes([put(key.clone(), largest.clone())])).await;
    let read = soon(store.get(&key)).await.expect("get fails").expect("it is there");
    assert_eq!(read.value, largest);
    assert_invalid(&*store, writes([put(long.clone(), "")])).await;
    assert_invalid(&*store, writes([delete("")])).await;
    assert_invalid(&*store, Txn { compare: vec![Compare::Absent(long.clone())], write: vec![] }).await;
    assert_invalid(&*store, writes([put("a", vec![7; VALUE_MAX_BYTES + 1])])).await;
    assert_eq!(value(&*store, &long).await, None);

    let mut many: Vec<Write> = (0..TXN_MAX_ITEMS).map(|n| put(format!("many/{n}"), "")).collect();
    done(&*store, writes(many.clone())).await;
    many.push(put("one more", ""));
    assert_invalid(&*store, writes(many.clone())).await;
    many.truncate(TXN_MAX_ITEMS);
    assert_invalid(&*store, Txn { compare: vec![Compare::Absent("x".into())], write: many }).await;

    let fits = TXN_MAX_BYTES / VALUE_MAX_BYTES;
    let heavy = (0..fits).map(|n| put(n.to_string(), largest.clone())).collect::<Vec<_>>();
    assert_invalid(&*store, writes(heavy)).await;
}

/// A list is ordered by the bytes of the keys, and its pages join without gap or double.
pub async fn a_list_is_ordered_and_paged(make: impl Make) {
    let store = make().await;
    let mut names = ["b", "a", "ä", "Z", "a\0", "aa", "a/b", "z\u{10ffff}", "0"].to_vec();
    done(&*store, writes(names.iter().map(|name| put(format!("p/{name}"), *name)).collect::<Vec<_>>())).await;
    names.sort_unstable();
    let wanted: Vec<String> = names.iter().map(|name| format!("p/{name}")).collect();
    for limit in 1..=names.len() + 1 {
        let (mut found, mut after) = (Vec::<String>::new(), None);
        loop {
            let page = page(&*store, "p/", after.as_deref(), limit).await;
            assert!(page.entries.len() <= limit);
            found.extend(page.entries.iter().map(|entry| entry.key.clone()));
            assert_eq!(page.more, found.len() < wanted.len(), "limit {limit} after {after:?}");
            after = found.last().cloned();
            if !page.more {
                break;
            }
        }
        assert_eq!(found, wanted, "limit {limit}");
    }
    let none = page(&*store, "p/", None, 0).await;
    assert!(none.entries.is_empty() && none.more);
}

/// A prefix is no more than a prefix: neighbours that do not begin with it are not listed.
pub async fn a_prefix_is_no_more_than_a_prefix(make: impl Make) {
    let store = make().await;
    let all = ["vm", "vm.", "vm/", "vm/1", "vm/\u{10ffff}", "vm0", "vn", "vl", "v\u{10ffff}"];
    done(&*store, writes(all.map(|key| put(key, "")).to_vec())).await;
    assert_eq!(keys(&page(&*store, "vm/", None, 99).await), ["vm/", "vm/1", "vm/\u{10ffff}"]);
    assert_eq!(keys(&page(&*store, "vm/1", None, 99).await), ["vm/1"]);
    assert_eq!(keys(&page(&*store, "vm/2", None, 99).await), [""; 0]);
    assert_eq!(keys(&page(&*store, "v\u{10ffff}", None, 99).await), ["v\u{10ffff}"]);
    assert_eq!(page(&*store, "", None, 99).await.entries.len(), all.len());
    assert_eq!(keys(&page(&*store, "w", None, 99).await), [""; 0]);
    let exact = page(&*store, "vm/", None, 3).await;
    assert!(!exact.more, "what follows has another prefix");
}

/// A list can begin before and after its prefix, and at keys that do not exist.
pub async fn a_list_can_begin_before_and_after_its_prefix(make: impl Make) {
    let store = make().await;
    done(&*store, writes(["a", "p/1", "p/2", "p/3", "q"].map(|key| put(key, "")).to_vec())).await;
    for (after, found) in [
        ("", &["p/1", "p/2", "p/3"][..]),
        ("a", &["p/1", "p/2", "p/3"]),
        ("p/", &["p/1", "p/2", "p/3"]),
        ("p/1", &["p/2", "p/3"]),
        ("p/15", &["p/2", "p/3"]),
        ("p/3", &[]),
        ("p0", &[]),
        ("z", &[]),
    ] {
        let page = page(&*store, "p/", Some(after), 99).await;
        assert_eq!(keys(&page), found, "after '{after}'");
        assert!(!page.more);
    }
}

/// A page has a largest size, whatever limit is asked for.
pub async fn a_page_has_a_largest_size(make: impl Make) {
    let store = make().await;
    let total = PAGE_MAX_ENTRIES + 1;
    for first in (0..total).step_by(TXN_MAX_ITEMS) {
        let some = first..total.min(first + TXN_MAX_ITEMS);
        done(&*store, writes(some.map(|n| put(format!("{n:06}"), "")).collect::<Vec<_>>())).await;
    }
    let first = page(&*store, "", None, usize::MAX).await;
    assert_eq!((first.entries.len(), first.more), (PAGE_MAX_ENTRIES, true));
    let after = first.entries.last().map(|entry| entry.key.as_str());
    let last = page(&*store, "", after, usize::MAX).await;
    assert_eq!((last.entries.len(), last.more), (1, false));
}

/// A watch tells the past, then the present, without gap; from any revision.
pub async fn a_watch_tells_the_past_then_the_present_without_gap(make: impl Make) {
    let store = make().await;
    for n in 1..=5 {
        put_one(&*store, "a", &n.to_string()).await;
    }
    let mut watches = Vec::new();
    for from in 0..=5 {
        watches.push((from, watch(&*store, "", from).await));
    }
    done(&*store, writes([delete("a")])).await;
    put_one(&*store, "a", "7").await;
    for (from, watch) in &mut watches {
        for n in *from + 1..=7 {
            let text = (n != 6).then(|| n.to_string());
            assert_eq!(next(watch).await, change(Revision(n), "a", text.as_deref()));
        }
        assert!(watch.next().now_or_never().is_none(), "it has to wait");
    }
    let (_, waiting) = watches.swap_remove(0);
    let waiting = tokio::spawn(async move { next(&mut { waiting }).await });
    put_one(&*store, "a", "8").await;
    assert_eq!(soon(waiting).await.expect("no panic").revision, Revision(8));
}

/// A watch tells only keys with its prefix.
pub async fn a_watch_tells_only_its_prefix(make: impl Make) {
    let store = make().await;
    let mut live = watch(&*store, "vm/", 0).await;
    for key in ["vm", "vm/1", "vn", "vm0", "vm/2"] {
        put_one(&*store, key, "").await;
    }
    done(&*store, writes([put("vn", ""), delete("vm/1"), delete("vm")])).await;
    let wanted = [
        change(Revision(2), "vm/1", Some("")),
        change(Revision(5), "vm/2", Some("")),
        change(Revision(6), "vm/1", None),
    ];
    let mut late = watch(&*store, "vm/", 0).await;
    for change in wanted {
        assert_eq!(next(&mut live).await, change);
        assert_eq!(next(&mut late).await, change);
    }
}

/// A watch tells the changes of a transaction in the order in which it wrote them.
pub async fn a_watch_tells_the_changes_of_a_transaction_in_its_order(make: impl Make) {
    let store = make().await;
    put_one(&*store, "b", "1").await;
    let revision = done(&*store, writes([put("c", "1"), delete("b"), put("a", "1")])).await;
    let mut watch = watch(&*store, "", 1).await;
    for (key, value) in [("c", Some("1")), ("b", None), ("a", Some("1"))] {
        assert_eq!(next(&mut watch).await, change(revision, key, value));
    }
}

/// A watch from a revision that is yet to come is refused: who asks knew another store, and must list again.
pub async fn a_watch_from_the_future_is_refused(make: impl Make) {
    let store = make().await;
    put_one(&*store, "a", "1").await;
    for from in [2, u64::MAX] {
        let refused = soon(store.watch("", Revision(from))).await.err();
        assert!(matches!(refused, Some(StoreError::Compacted { asked, .. }) if asked.0 == from), "{refused:?}");
    }
}

/// A watch of what the log has forgotten is refused, and told where the log begins.
pub async fn a_watch_of_what_was_forgotten_is_refused(make: impl Make) {
    let store = make().await;
    const MORE: u64 = 5;
    put_many(&*store, LOG_MAX_REVISIONS + MORE).await;
    let begins = Revision(MORE + 1);
    for from in 0..MORE {
        let refused = soon(store.watch("", Revision(from))).await.err();
        assert!(
            matches!(refused, Some(StoreError::Compacted { asked, oldest }) if asked.0 == from && oldest == begins),
            "{refused:?}"
        );
    }
    let mut whole = watch(&*store, "", MORE).await;
    for revision in begins.0..=LOG_MAX_REVISIONS + MORE {
        assert_eq!(next(&mut whole).await.revision, Revision(revision));
    }
}

/// A watcher that is too slow is told so, and the watch ends.
pub async fn a_watcher_that_is_too_slow_is_told_so(make: impl Make) {
    let store = make().await;
    let mut slow = watch(&*store, "", 0).await;
    put_many(&*store, LOG_MAX_REVISIONS + 1).await;
    let told = soon(slow.next()).await;
    assert!(matches!(told, Some(Err(StoreError::Compacted { asked: Revision(0), .. }))), "{told:?}");
    assert!(soon(slow.next()).await.is_none());
}

/// The log forgets by size, too; the newest revision stays.
pub async fn the_log_forgets_by_size_too(make: impl Make) {
    let store = make().await;
    let large = Bytes::from(vec![7; VALUE_MAX_BYTES]);
    let count = (LOG_MAX_BYTES / VALUE_MAX_BYTES) as u64 + 3;
    for _ in 0..count {
        done(&*store, writes([put("a", large.clone())])).await;
    }
    let refused = soon(store.watch("", Revision(0))).await.err();
    let Some(StoreError::Compacted { oldest, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!(oldest, Revision(5), "63 values and their keys fit");
    let mut watch = watch(&*store, "", oldest.0 - 1).await;
    for revision in oldest.0..=count {
        let change = next(&mut watch).await;
        assert_eq!((change.revision, change.value.as_ref()), (Revision(revision), Some(&large)));
    }
}

/// Many watches can be opened and dropped; the others go on.
pub async fn many_watches_can_be_opened_and_dropped(make: impl Make) {
    let store = make().await;
    let mut kept = watch(&*store, "", 0).await;
    for n in 0..200 {
        let mut dropped = watch(&*store, "", n).await;
        assert!(dropped.next().now_or_never().is_none());
        let revision = put_one(&*store, "a", "").await;
        assert_eq!(next(&mut kept).await.revision, revision);
    }
}

/// Concurrent increments by compare and set lose nothing.
pub async fn concurrent_increments_lose_nothing(make: impl Make) {
    const TASKS: u64 = 8;
    const EACH: u64 = 25;
    let store = make().await;
    put_one(&*store, "n", "0").await;
    let mut tasks = JoinSet::new();
    for _ in 0..TASKS {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            for _ in 0..EACH {
                while !increment(&*store).await {}
            }
        });
    }
    soon(tasks.join_all()).await;
    assert_eq!(value(&*store, "n").await, Some((TASKS * EACH).to_string()));
    assert_eq!(newest(&*store).await, Revision(1 + TASKS * EACH), "conflicts made no revision");
}

async fn increment(store: &dyn Store) -> bool {
    let entry = store.get("n").await.expect("get fails").expect("it is there");
    let text = std::str::from_utf8(&entry.value).expect("the value is text");
    let more = text.parse::<u64>().expect("the value is a number") + 1;
    let txn = Txn {
        compare: vec![Compare::At("n".into(), entry.revision)],
        write: vec![put("n", more.to_string())],
    };
    matches!(outcome(store, txn).await, TxnOutcome::Done(_))
}

/// Concurrent transactions have revisions of their own, without holes.
pub async fn concurrent_transactions_have_revisions_of_their_own(make: impl Make) {
    const COUNT: u64 = 500;
    let store = make().await;
    let mut tasks = JoinSet::new();
    for n in 0..COUNT {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            let revision = done(&*store, writes([put(format!("k/{n}"), "1"), put(format!("l/{n}"), "1")])).await;
            for key in [format!("k/{n}"), format!("l/{n}")] {
                let entry = store.get(&key).await.expect("get fails").expect("it is there");
                assert_eq!(entry.revision, revision);
            }
            revision.0
        });
    }
    let mut revisions = soon(tasks.join_all()).await;
    revisions.sort_unstable();
    assert_eq!(revisions, (1..=COUNT).collect::<Vec<_>>());
}

/// Watchers see all changes in order while many write.
pub async fn watchers_see_all_in_order_while_many_write(make: impl Make) {
    const WATCHERS: usize = 4;
    const COUNT: u64 = 1_000;
    let store = make().await;
    let mut watchers = JoinSet::new();
    for _ in 0..WATCHERS {
        let mut watch = watch(&*store, "", 0).await;
        watchers.spawn(async move {
            for revision in 1..=COUNT {
                assert_eq!(next(&mut watch).await.revision, Revision(revision));
            }
        });
    }
    put_many(&*store, COUNT).await;
    soon(watchers.join_all()).await;
}

/// Who lists, then watches from the revision of the list, misses nothing while many write.
pub async fn list_then_watch_misses_nothing_while_many_write(make: impl Make) {
    const KEYS: u64 = 300;
    let store = make().await;
    let writer = {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            stream::iter(0..KEYS)
                .for_each_concurrent(16, async |n| {
                    put_one(&*store, &format!("k/{n:04}"), "").await;
                })
                .await;
        })
    };
    let mut readers = JoinSet::new();
    for _ in 0..8 {
        let store = Arc::clone(&store);
        readers.spawn(async move {
            let page = page(&*store, "k/", None, usize::MAX).await;
            let mut seen: Vec<String> = page.entries.into_iter().map(|entry| entry.key).collect();
            let mut watch = watch(&*store, "k/", page.revision.0).await;
            while seen.len() < KEYS as usize {
                seen.push(next(&mut watch).await.key);
            }
            seen.sort_unstable();
            assert!(seen.iter().enumerate().all(|(n, key)| *key == format!("k/{n:04}")), "{seen:?}");
        });
    }
    soon(readers.join_all()).await;
    soon(writer).await.expect("the writer did not panic");
}

/// A read that begins after an acknowledgement sees what was acknowledged.
pub async fn a_read_after_an_acknowledgement_sees_it(make: impl Make) {
    let store = make().await;
    for n in 0..50 {
        let text = n.to_string();
        let revision = put_one(&*store, "a", &text).await;
        assert_eq!(value(&*store, "a").await, Some(text));
        assert_eq!(newest(&*store).await, revision);
        assert_eq!(page(&*store, "", None, 1).await.revision, revision);
        assert_eq!(next(&mut watch(&*store, "", revision.0 - 1).await).await.revision, revision);
    }
}

/// A transaction whose future is dropped is done or not done, never half done, and the store goes on.
pub async fn a_dropped_transaction_is_done_or_not_done(make: impl Make) {
    let store = make().await;
    for n in 0..50 {
        let txn = writes([put(format!("a/{n}"), ""), put(format!("b/{n}"), "")]);
        drop(store.txn(txn).now_or_never());
    }
    let last = put_one(&*store, "last", "").await;
    let (a, b) = (page(&*store, "a/", None, 99).await, page(&*store, "b/", None, 99).await);
    let numbers = |page: &Page| page.entries.iter().map(|entry| entry.key[2..].to_owned()).collect::<Vec<_>>();
    assert_eq!(numbers(&a), numbers(&b));
    assert_eq!(last.0, a.entries.len() as u64 + 1);
}

/// A closed store refuses further use and ends its watches; closing again does no harm.
pub async fn a_closed_store_refuses_and_ends_its_watches(make: impl Make) {
    let store = make().await;
    put_one(&*store, "a", "1").await;
    let mut waiting = watch(&*store, "", 1).await;
    let waiting = tokio::spawn(async move { (waiting.next().await, waiting.next().await.is_none()) });
    soon(async { tokio::join!(store.close(), store.close()) }).await;
    soon(store.close()).await;
    let (told, ended) = soon(waiting).await.expect("the watcher did not panic");
    assert!(matches!(told, Some(Err(StoreError::Closed))) && ended, "{told:?}");
    assert!(matches!(soon(store.get("a")).await, Err(StoreError::Closed)));
    assert!(matches!(soon(store.list("", None, 1)).await, Err(StoreError::Closed)));
    assert!(matches!(soon(store.txn(Txn::default())).await, Err(StoreError::Closed)));
    assert!(matches!(soon(store.watch("", Revision(0))).await.err(), Some(StoreError::Closed)));
    assert!(matches!(soon(store.revision()).await, Err(StoreError::Closed)));
}

/// Closing answers what was asked before: with its outcome, or that the store is closed.
pub async fn closing_answers_what_was_asked_before(make: impl Make) {
    let store = make().await;
    let mut tasks = JoinSet::new();
    for n in 0..200 {
        let store = Arc::clone(&store);
        tasks.spawn(async move { store.txn(writes([put(n.to_string(), "")])).await });
    }
    let first = soon(tasks.join_next()).await;
    assert!(matches!(first, Some(Ok(Ok(TxnOutcome::Done(_))))), "{first:?}");
    soon(store.close()).await;
    for result in soon(tasks.join_all()).await {
        assert!(matches!(result, Ok(TxnOutcome::Done(_)) | Err(StoreError::Closed)), "{result:?}");
    }
}
