//! What happens when the disk fails: a backend that fails when told to stands in for it.

use super::{RedbStore, Shared, file};
use crate::store::{Compare, Revision, Store as _, StoreError, Txn, TxnOutcome, Write};
use ::redb::{BackendError, Builder, Database, ReadableDatabase as _, StorageBackend, backends::FileBackend};
use std::{
    fs::OpenOptions,
    io,
    ops::Bound,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering},
    },
};

/// The `errno` that writing and syncing fail with; 0: they do not.
type Fault = Arc<AtomicI32>;
const EIO: i32 = 5;
const ENOSPC: i32 = 28;

#[derive(Debug)]
struct Flaky {
    file: FileBackend,
    writing: Fault,
    syncing: Fault,
}

fn check(fault: &Fault) -> io::Result<()> {
    match fault.load(Ordering::SeqCst) {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

impl StorageBackend for Flaky {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        check(&self.writing)?;
        self.file.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        check(&self.syncing)?;
        self.file.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        check(&self.writing)?;
        self.file.write(offset, data)
    }
    fn close(&self) -> io::Result<()> {
        self.file.close()
    }
    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }
    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }
}

/// A store with one key, and the faults of its disk. Once it opens its file anew, they are gone.
async fn flaky(path: &Path) -> (RedbStore, Fault, Fault) {
    let store = RedbStore::open(path).unwrap();
    assert_eq!(put(&store, "kept").await.unwrap(), TxnOutcome::Done(Revision(1)));
    store.close().await;
    let state = file::open(path, file::Check::All).unwrap().1;
    let (writing, syncing) = (Fault::default(), Fault::default());
    let file = FileBackend::new(OpenOptions::new().read(true).write(true).open(path).unwrap()).unwrap();
    let backend = Flaky {
        file,
        writing: Arc::clone(&writing),
        syncing: Arc::clone(&syncing),
    };
    let database = Builder::new().create_with_backend(backend).unwrap();
    (RedbStore::start(path, database, state).unwrap(), writing, syncing)
}

async fn put(store: &RedbStore, key: &str) -> Result<TxnOutcome, StoreError> {
    store
        .txn(Txn {
            compare: vec![],
            write: vec![Write::Put(key.into(), "1".into())],
        })
        .await
}

#[tokio::test]
async fn when_the_disk_was_full_the_file_is_opened_again_and_what_was_kept_is_known() {
    for syncing in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        let (store, writes, syncs) = flaky(&path).await;
        let fault = if syncing { syncs } else { writes };
        fault.store(ENOSPC, Ordering::SeqCst);
        let failed = put(&store, "unknown").await;
        assert!(
            matches!(&failed, Err(StoreError::Failed(why)) if why.contains("space")),
            "{failed:?}"
        );
        // At once, without another transaction in between.
        assert!(store.get("kept").await.unwrap().is_some());
        let unknown = store.get("unknown").await.unwrap();
        let revision = store.revision().await.unwrap();
        assert_eq!(revision, Revision(if unknown.is_some() { 2 } else { 1 }));
        let mut watch = store.watch("", Revision(1)).await.unwrap();
        assert_eq!(
            put(&store, "next").await.unwrap(),
            TxnOutcome::Done(Revision(revision.0 + 1))
        );
        let first = futures::StreamExt::next(&mut watch).await.unwrap().unwrap();
        assert_eq!(first.key, if unknown.is_some() { "unknown" } else { "next" });
        store.close().await;
    }
}

#[tokio::test]
async fn after_another_failure_of_the_disk_the_store_refuses_until_it_is_opened_anew() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let (store, _, syncing) = flaky(&path).await;
    syncing.store(EIO, Ordering::SeqCst);
    assert!(matches!(put(&store, "unknown").await, Err(StoreError::Failed(_))));
    syncing.store(0, Ordering::SeqCst);
    for _ in 0..3 {
        assert!(matches!(put(&store, "more").await, Err(StoreError::Failed(why)) if why.contains("again")));
        assert!(matches!(store.get("kept").await, Err(StoreError::Failed(_))));
    }
    store.close().await;
    assert!(matches!(store.get("kept").await, Err(StoreError::Closed)));
    let store = RedbStore::open(&path).unwrap();
    assert!(store.get("kept").await.unwrap().is_some() && store.get("more").await.unwrap().is_none());
    store.close().await;
}

#[tokio::test]
async fn a_failed_commit_fails_every_transaction_of_its_batch() {
    let directory = tempfile::tempdir().unwrap();
    let (store, writing, _) = flaky(&directory.path().join("store")).await;
    writing.store(EIO, Ordering::SeqCst);
    let keys: Vec<String> = (0..50).map(|n| n.to_string()).collect();
    let results = futures::future::join_all(keys.iter().map(|key| put(&store, key))).await;
    assert!(
        results
            .iter()
            .all(|result| matches!(result, Err(StoreError::Failed(_)))),
        "{results:?}"
    );
    store.close().await;
}

#[tokio::test]
async fn a_reader_that_panics_is_a_failure_and_the_store_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let store = RedbStore::open(directory.path().join("store")).unwrap();
    let shared: &Arc<Shared> = &store.shared;
    let failed = shared
        .read(|_| -> Result<(), _> { panic!("wanted by a test") })
        .await;
    assert!(matches!(failed, Err(StoreError::Failed(_))), "{failed:?}");
    assert_eq!(put(&store, "a").await.unwrap(), TxnOutcome::Done(Revision(1)));
    assert!(store.get("a").await.unwrap().is_some());
    store.close().await;
}

#[tokio::test]
async fn transactions_of_one_batch_see_each_other() {
    let directory = tempfile::tempdir().unwrap();
    let store = RedbStore::open(directory.path().join("store")).unwrap();
    let create = Txn {
        compare: vec![Compare::Absent("a".into())],
        write: vec![Write::Put("a".into(), "1".into())],
    };
    let results = futures::future::join_all((0..20).map(|_| store.txn(create.clone()))).await;
    let done = results
        .iter()
        .filter(|result| matches!(result, Ok(TxnOutcome::Done(_))))
        .count();
    let conflicts = results
        .iter()
        .filter(|result| matches!(result, Ok(TxnOutcome::Conflict(_))))
        .count();
    assert_eq!((done, conflicts), (1, 19));
    store.close().await;
}

#[tokio::test]
async fn who_makes_a_store_too_late_does_not_replace_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let first = RedbStore::open(&path).unwrap();
    assert_eq!(put(&first, "a").await.unwrap(), TxnOutcome::Done(Revision(1)));
    assert!(file::create(&path).unwrap().is_none());
    first.close().await;
    assert_eq!(
        RedbStore::open(&path).unwrap().revision().await.unwrap(),
        Revision(1)
    );
}

fn raw(path: &Path, change: impl FnOnce(&Database)) {
    let database = Database::create(path).unwrap();
    change(&database);
    database.close().unwrap();
}

#[test]
fn a_redb_file_of_another_program_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    raw(&path, |_| ());
    let refused = RedbStore::open(&path);
    assert!(
        matches!(&refused, Err(StoreError::Corrupt { detail, .. }) if detail.contains("not a store")),
        "{refused:?}"
    );
}

#[test]
fn a_store_of_a_newer_version_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    RedbStore::open(&path).unwrap().end();
    raw(&path, |database| {
        let write = database.begin_write().unwrap();
        write
            .open_table(file::META)
            .unwrap()
            .insert(file::SCHEMA, file::SCHEMA_VERSION + 1)
            .unwrap();
        write.commit().unwrap();
    });
    let refused = RedbStore::open(&path);
    assert!(
        matches!(&refused, Err(StoreError::Corrupt { detail, .. }) if detail.contains("another version")),
        "{refused:?}"
    );
    raw(&path, |database| {
        let meta = database.begin_read().unwrap().open_table(file::META).unwrap();
        assert_eq!(
            meta.get(file::SCHEMA).unwrap().unwrap().value(),
            file::SCHEMA_VERSION + 1
        );
    });
}

impl RedbStore {
    fn end(self) {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(self.close());
    }
}
