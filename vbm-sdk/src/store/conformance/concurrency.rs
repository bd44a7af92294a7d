//! Many at once, and the end.

use super::*;

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
    assert_eq!(
        newest(&*store).await,
        Revision(1 + TASKS * EACH),
        "conflicts made no revision"
    );
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
            let revision = done(
                &*store,
                writes([put(format!("k/{n}"), "1"), put(format!("l/{n}"), "1")]),
            )
            .await;
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
            while (seen.len() as u64) < KEYS {
                seen.push(next(&mut watch).await.key);
            }
            seen.sort_unstable();
            assert!(
                seen.iter()
                    .enumerate()
                    .all(|(n, key)| *key == format!("k/{n:04}")),
                "{seen:?}"
            );
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
        assert_eq!(
            next(&mut watch(&*store, "", revision.0 - 1).await).await.revision,
            revision
        );
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
    let (a, b) = (
        page(&*store, "a/", None, 99).await,
        page(&*store, "b/", None, 99).await,
    );
    let numbers = |page: &Page| {
        page.entries
            .iter()
            .map(|entry| entry.key[2..].to_owned())
            .collect::<Vec<_>>()
    };
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
    assert!(matches!(
        soon(store.list("", None, 1)).await,
        Err(StoreError::Closed)
    ));
    assert!(matches!(
        soon(store.txn(Txn::default())).await,
        Err(StoreError::Closed)
    ));
    assert!(matches!(
        soon(store.watch("", Revision(0))).await.err(),
        Some(StoreError::Closed)
    ));
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
        assert!(
            matches!(result, Ok(TxnOutcome::Done(_)) | Err(StoreError::Closed)),
            "{result:?}"
        );
    }
}
