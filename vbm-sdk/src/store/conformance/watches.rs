//! Watches: the past, the present, and what is forgotten.

use super::*;

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
        assert!(
            matches!(refused, Some(StoreError::Compacted { asked, .. }) if asked.0 == from),
            "{refused:?}"
        );
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
    assert!(
        matches!(
            told,
            Some(Err(StoreError::Compacted {
                asked: Revision(0),
                ..
            }))
        ),
        "{told:?}"
    );
    assert!(soon(slow.next()).await.is_none());
}

/// The log forgets by size too, whole revisions only; the newest stays.
pub async fn the_log_forgets_by_size_too(make: impl Make) {
    let store = make().await;
    let half = Bytes::from(vec![7; VALUE_MAX_BYTES / 2]);
    let count = (LOG_MAX_BYTES / VALUE_MAX_BYTES) as u64 + 3;
    for _ in 0..count {
        done(&*store, writes([put("a", half.clone()), put("b", half.clone())])).await;
    }
    let refused = soon(store.watch("", Revision(0))).await.err();
    let Some(StoreError::Compacted { oldest, .. }) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(oldest, Revision(5), "63 times two values and their keys fit");
    let mut watch = watch(&*store, "", oldest.0 - 1).await;
    for revision in oldest.0..=count {
        for key in ["a", "b"] {
            let change = next(&mut watch).await;
            assert_eq!((change.revision, change.key.as_str()), (Revision(revision), key));
            assert_eq!(change.value.as_ref(), Some(&half));
        }
    }
}

/// A watch tells large transactions whole, although it reads the log in parts.
pub async fn a_watch_tells_large_transactions_whole(make: impl Make) {
    let store = make().await;
    let large = Bytes::from(vec![7; VALUE_MAX_BYTES * 2 / 3]);
    let keys = ["a", "b", "c", "d", "e"];
    for _ in 0..3 {
        done(&*store, writes(keys.map(|key| put(key, large.clone())).to_vec())).await;
    }
    let mut watch = watch(&*store, "", 0).await;
    for revision in 1..=3 {
        for key in keys {
            let change = next(&mut watch).await;
            assert_eq!((change.revision, change.key.as_str()), (Revision(revision), key));
        }
    }
    assert_nothing_more(&*store, &mut watch).await;
}

/// A watch passes over any number of changes of other keys.
pub async fn a_watch_passes_over_many_changes_of_other_keys(make: impl Make) {
    const OTHERS: u64 = 5_000;
    let store = make().await;
    let mut live = watch(&*store, "vm/", 0).await;
    put_many(&*store, OTHERS).await;
    let revision = put_one(&*store, "vm/1", "").await;
    let mut late = watch(&*store, "vm/", 0).await;
    for watch in [&mut live, &mut late] {
        assert_eq!(next(watch).await, change(revision, "vm/1", Some("")));
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
