//! The stores: the conformance suite, a model, and what only a file can show: it outlives its process, damage is
//! found, a full disk is survived.

#![expect(clippy::unwrap_used, reason = "a test ends at its first surprise")]
#![expect(clippy::print_stdout, reason = "a test that is left out says so")]

#[path = "common/redis.rs"]
mod redis_server;

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

mod model {
    //! Random transactions, against a map that does the same.
    use super::*;
    use crate::redis_server::Redis;
    use futures::StreamExt as _;

    /// One step; keys are numbers of a small set, so that they meet.
    #[derive(Clone, Debug)]
    enum Step {
        Txn {
            compare: Vec<(u8, Expect)>,
            write: Vec<(u8, Option<Vec<u8>>)>,
        },
        List {
            prefix: usize,
            after: Option<u8>,
            limit: usize,
        },
        Reopen,
    }

    #[derive(Clone, Debug)]
    enum Expect {
        Absent,
        Right,
        Revision(u64),
    }

    const PREFIXES: [&str; 4] = ["", "k", "k/1", "x"];

    fn key(n: u8) -> String {
        format!("k/{n}")
    }

    fn step() -> impl Strategy<Value = Step> {
        let expect = prop_oneof![
            1 => Just(Expect::Absent),
            4 => Just(Expect::Right),
            1 => (0..40u64).prop_map(Expect::Revision)
        ];
        let compare = prop::collection::vec((0..16u8, expect), 0..3);
        let value = prop::option::weighted(0.7, prop::collection::vec(any::<u8>(), 0..40));
        let write = prop::collection::vec((0..16u8, value), 0..5);
        prop_oneof![
            8 => (compare, write).prop_map(|(compare, write)| Step::Txn { compare, write }),
            2 => (0..PREFIXES.len(), prop::option::of(0..16u8), 0..20usize)
                .prop_map(|(prefix, after, limit)| Step::List { prefix, after, limit }),
            1 => Just(Step::Reopen),
        ]
    }

    #[derive(Default)]
    struct Model {
        revision: u64,
        records: BTreeMap<String, (u64, Bytes)>,
        log: Vec<(u64, String, Option<Bytes>)>,
    }

    impl Model {
        fn txn(&self, compare: &[(u8, Expect)], write: &[(u8, Option<Vec<u8>>)]) -> Txn {
            let compare = compare
                .iter()
                .map(|(n, expect)| match (expect, self.records.get(&key(*n))) {
                    (Expect::Right, Some((revision, _))) => Compare::At(key(*n), Revision(*revision)),
                    (Expect::Revision(revision), _) => Compare::At(key(*n), Revision(*revision)),
                    (Expect::Absent | Expect::Right, _) => Compare::Absent(key(*n)),
                });
            let write = write.iter().map(|(n, value)| match value {
                Some(value) => Write::Put(key(*n), value.clone().into()),
                None => Write::Delete(key(*n)),
            });
            Txn {
                compare: compare.collect(),
                write: write.collect(),
            }
        }

        fn apply(&mut self, txn: &Txn) -> Option<TxnOutcome> {
            for (n, write) in txn.write.iter().enumerate() {
                if txn.write[..n].iter().any(|other| other.key() == write.key()) {
                    return None;
                }
            }
            for compare in &txn.compare {
                let found = self.records.get(compare.key()).map(|(revision, _)| *revision);
                let wanted = match compare {
                    Compare::Absent(_) => None,
                    Compare::At(_, revision) => Some(revision.0),
                };
                if found != wanted {
                    return Some(TxnOutcome::Conflict(compare.key().to_owned()));
                }
            }
            let (next, before) = (self.revision + 1, self.log.len());
            for write in &txn.write {
                match write {
                    Write::Put(key, value) => {
                        self.records.insert(key.clone(), (next, value.clone()));
                        self.log.push((next, key.clone(), Some(value.clone())));
                    }
                    Write::Delete(key) => {
                        if self.records.remove(key).is_some() {
                            self.log.push((next, key.clone(), None));
                        }
                    }
                }
            }
            if self.log.len() > before {
                self.revision = next;
            }
            Some(TxnOutcome::Done(Revision(self.revision)))
        }
    }

    /// Where a store is.
    enum Place<'a> {
        Memory,
        File(&'a Path),
        Redis(&'a str, vbm_core::Name),
    }

    impl Place<'_> {
        async fn open(&self) -> Arc<dyn Store> {
            match self {
                Self::Memory => Arc::new(MemoryStore::new()),
                Self::File(path) => Arc::new(RedbStore::open(path).unwrap()),
                Self::Redis(url, namespace) => Arc::new(RedisStore::open_in(url, namespace).await.unwrap()),
            }
        }
    }

    async fn run(place: Place<'_>, steps: &[Step]) {
        let (mut store, mut model) = (place.open().await, Model::default());
        for step in steps {
            match step {
                Step::Txn { compare, write } => {
                    let txn = model.txn(compare, write);
                    let wanted = model.apply(&txn);
                    match (store.txn(txn).await, wanted) {
                        (Ok(outcome), Some(wanted)) => assert_eq!(outcome, wanted),
                        (Err(StoreError::Invalid(_)), None) => {}
                        other => panic!("{other:?}"),
                    }
                }
                Step::List { prefix, after, limit } => {
                    let (prefix, after) = (PREFIXES[*prefix], after.map(key));
                    let page = store.list(prefix, after.as_deref(), *limit).await.unwrap();
                    let beyond = |key: &str| after.as_deref().is_none_or(|after| key > after);
                    let matching = model
                        .records
                        .iter()
                        .filter(|(key, _)| key.starts_with(prefix) && beyond(key));
                    let wanted: Vec<_> = matching
                        .map(|(key, found)| (key.clone(), found.clone()))
                        .collect();
                    let found = page
                        .entries
                        .into_iter()
                        .map(|entry| (entry.key, (entry.revision.0, entry.value)));
                    assert!(found.eq(wanted.iter().take(*limit).cloned()));
                    assert_eq!(
                        (page.more, page.revision.0),
                        (wanted.len() > *limit, model.revision)
                    );
                }
                Step::Reopen if !matches!(place, Place::Memory) => {
                    store.close().await;
                    store = place.open().await;
                }
                Step::Reopen => {}
            }
            assert_eq!(store.revision().await.unwrap().0, model.revision);
        }
        assert_eq!(content(&*store).await, model.records);
        let watch = store.watch("", Revision(0)).await.unwrap().take(model.log.len());
        let told = watch.map(|change| {
            change
                .map(|change| (change.revision.0, change.key, change.value))
                .unwrap()
        });
        assert_eq!(told.collect::<Vec<_>>().await, model.log);
        store.close().await;
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]
        #[test]
        fn memory_does_what_the_model_does(steps in prop::collection::vec(step(), 1..60)) {
            runtime().block_on(run(Place::Memory, &steps));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
        #[test]
        fn redb_does_what_the_model_does(steps in prop::collection::vec(step(), 1..60)) {
            let (_directory, path) = super::place();
            runtime().block_on(run(Place::File(&path), &steps));
        }
    }

    /// Cases of the model on Redis; each has a namespace of its own.
    const REDIS_CASES: u32 = 32;

    #[test]
    fn redis_does_what_the_model_does() {
        let Some(redis) = Redis::start() else { return };
        let (url, case) = (redis.url(), std::cell::Cell::new(0));
        let config = ProptestConfig {
            cases: REDIS_CASES,
            failure_persistence: None,
            ..ProptestConfig::default()
        };
        let mut runner = proptest::test_runner::TestRunner::new(config);
        let steps = prop::collection::vec(step(), 1..60);
        let outcome = runner.run(&steps, |steps| {
            case.set(case.get() + 1);
            let namespace = format!("case-{}", case.get()).parse().unwrap();
            runtime().block_on(run(Place::Redis(&url, namespace), &steps));
            Ok(())
        });
        outcome.unwrap();
    }
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

mod killed {
    //! A child writes and tells what was acknowledged, until it is killed.
    use super::*;

    const PATH_OF_CHILD: &str = "VBM_TEST_STORE_CHILD";
    const WRITERS: u64 = 16;

    /// Killed and waited for, also when the test fails.
    struct Killed(Child);
    impl Drop for Killed {
        fn drop(&mut self) {
            drop(self.0.kill());
            drop(self.0.wait());
        }
    }

    fn spawn(path: &Path) -> Killed {
        let child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "killed::the_child_writes_until_it_is_killed",
                "--nocapture",
            ])
            .env(PATH_OF_CHILD, path)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        Killed(child)
    }

    /// Only the tests below give it something to do.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_child_writes_until_it_is_killed() {
        let Some(path) = std::env::var_os(PATH_OF_CHILD) else {
            return;
        };
        let store = Arc::new(RedbStore::open(path).unwrap());
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..WRITERS {
            let store = Arc::clone(&store);
            writers.spawn(async move {
                for n in 0.. {
                    // Two keys, so that a transaction that was kept by half would show.
                    let write = ["a", "b"].map(|twin| {
                        Write::Put(
                            format!("{twin}/{}/{writer}/{n}", std::process::id()),
                            vec![7; 300].into(),
                        )
                    });
                    let revision = done(
                        &*store,
                        Txn {
                            compare: vec![],
                            write: write.to_vec(),
                        },
                    )
                    .await;
                    let line = format!("acknowledged {} {writer}/{n} {revision}\n", std::process::id());
                    std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
                }
            });
        }
        writers.join_all().await;
    }

    /// What complete lines of the child acknowledge: name and revision.
    fn acknowledged(line: &str) -> Option<(String, u64)> {
        let mut words = line.split_once("acknowledged ")?.1.split(' ');
        let name = format!("{}/{}", words.next()?, words.next()?);
        Some((name, words.next()?.parse().unwrap()))
    }

    async fn assert_kept(path: &Path, acknowledged: &BTreeMap<String, u64>) {
        let store = RedbStore::open(path).unwrap();
        let newest = store.revision().await.unwrap();
        let mut found = BTreeMap::<String, Vec<u64>>::new();
        let mut after = None;
        loop {
            let page = store.list("", after.as_deref(), usize::MAX).await.unwrap();
            for entry in &page.entries {
                assert_eq!(&entry.value[..], [7; 300]);
                found
                    .entry(entry.key[2..].to_owned())
                    .or_default()
                    .push(entry.revision.0);
            }
            after = page.entries.last().map(|entry| entry.key.clone());
            if !page.more {
                break;
            }
        }
        for (name, revisions) in &found {
            assert!(
                revisions.len() == 2 && revisions[0] == revisions[1],
                "{name} is half there: {revisions:?}"
            );
            assert!(revisions[0] <= newest.0);
        }
        for (name, revision) in acknowledged {
            assert_eq!(
                found.get(name).map(|revisions| revisions[0]),
                Some(*revision),
                "{name} was lost"
            );
        }
        assert_eq!(found.len() as u64, newest.0, "each revision is one transaction");
        store.close().await;
    }

    #[tokio::test]
    async fn a_killed_writer_loses_nothing_that_it_acknowledged() {
        let (directory, path) = place();
        let mut all = BTreeMap::new();
        for kill_after in [1, 10, 57, 200, 3, 1_000] {
            let mut child = spawn(&path);
            let (mut told, mut kill_after) = (BufReader::new(child.0.stdout.take().unwrap()), kill_after);
            let mut line = String::new();
            // To the end: what was in the pipe when it was killed was acknowledged, too.
            while told.read_line(&mut line).unwrap() > 0 {
                if line.ends_with('\n')
                    && let Some((name, revision)) = acknowledged(line.trim_end())
                {
                    all.insert(name, revision);
                    kill_after -= 1;
                    if kill_after == 0 {
                        child.0.kill().unwrap();
                    }
                }
                line.clear();
            }
            assert!(kill_after <= 0, "the child ended by itself");
            drop(child);
            assert_kept(&path, &all).await;
        }
        assert!(all.len() > 1_200);
        assert_eq!(names(directory.path()), ["store"]);
    }

    #[tokio::test]
    async fn a_process_killed_while_it_makes_a_store_leaves_nothing_in_the_way() {
        for spins in [0, 1, 2, 4, 8, 16, 32, 64, 128, 256] {
            let (directory, path) = place();
            let mut child = spawn(&path);
            while names(directory.path()).is_empty() {
                assert!(child.0.try_wait().unwrap().is_none(), "the child ended by itself");
            }
            for _ in 0..spins {
                std::thread::yield_now();
            }
            drop(child);
            let store = RedbStore::open(&path).unwrap();
            done(&store, put("a", "1")).await;
            store.close().await;
            assert_eq!(names(directory.path()), ["store"], "after {spins} spins");
        }
    }
}

mod damaged {
    //! A damaged file is refused, or is read right; nothing panics.
    use super::*;

    async fn make(path: &Path) -> BTreeMap<String, (u64, Bytes)> {
        let store = RedbStore::open(path).unwrap();
        for n in 0..40u8 {
            done(&store, put(format!("k/{n}"), vec![n; 3_000])).await;
        }
        let content = content(&store).await;
        store.close().await;
        content
    }

    fn is_corrupt(path: &Path) -> bool {
        matches!(RedbStore::open(path), Err(StoreError::Corrupt { path: told, .. }) if told == *path)
    }

    #[tokio::test]
    async fn a_truncated_file_is_refused_or_read_right() {
        let (directory, path) = place();
        let content = make(&path).await;
        let whole = fs::read(&path).unwrap();
        let cut = directory.path().join("cut");
        let sizes = [0, 1, 63, 64, 100, 319, 320, 511, 512, 4_095, 4_096, 4_097].into_iter();
        let mut refused = 0;
        for size in sizes
            .chain((1..whole.len()).step_by(whole.len() / 60))
            .chain([whole.len() - 1])
        {
            fs::write(&cut, &whole[..size]).unwrap();
            match RedbStore::open(&cut) {
                Ok(store) => {
                    assert_eq!(super::content(&store).await, content, "cut to {size} bytes");
                    store.close().await;
                }
                Err(StoreError::Corrupt { path, .. }) if path == cut => refused += 1,
                Err(other) => panic!("cut to {size} bytes: {other:?}"),
            }
        }
        assert!(refused > 60, "only {refused} refused");
    }

    #[tokio::test]
    async fn a_file_with_foreign_bytes_is_refused_or_read_right() {
        let (directory, path) = place();
        let content = make(&path).await;
        let whole = fs::read(&path).unwrap();
        let hurt = directory.path().join("hurt");
        let (mut refused, mut right) = (0, 0);
        for place in (0..400).chain((0..whole.len()).step_by(whole.len() / 200)) {
            let mut bytes = whole.clone();
            bytes[place] ^= 0x55;
            fs::write(&hurt, &bytes).unwrap();
            match RedbStore::open(&hurt) {
                Ok(store) => {
                    assert_eq!(super::content(&store).await, content, "byte {place}");
                    store.close().await;
                    right += 1;
                }
                Err(StoreError::Corrupt { path, .. }) if path == hurt => refused += 1,
                Err(other) => panic!("byte {place}: {other:?}"),
            }
        }
        assert!(refused > 100 && right > 100, "refused {refused}, right {right}");
    }

    #[test]
    fn what_is_no_store_is_refused_and_left_alone() {
        let (_directory, path) = place();
        let noise: Vec<u8> = (0..100_000u32)
            .map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[2])
            .collect();
        for bytes in [
            &b""[..],
            b"x",
            b"hello, I am a text\n",
            &[0; 4_096],
            &noise,
            b"redb\x1a\x0a\xa9\x0d\x0a",
        ] {
            fs::write(&path, bytes).unwrap();
            assert!(is_corrupt(&path), "{} bytes", bytes.len());
            assert_eq!(fs::read(&path).unwrap(), bytes, "it was changed");
        }
    }

    #[tokio::test]
    async fn a_failure_to_open_tells_what_why_and_what_to_do() {
        let (_directory, path) = place();
        fs::write(&path, "no store").unwrap();
        let error = vbm_core::Error::from(RedbStore::open(&path).unwrap_err());
        assert_eq!(error.kind(), vbm_core::ErrorKind::Corrupt);
        assert_eq!(error.to_string().lines().count(), 3);
        assert!(error.what().contains(path.to_str().unwrap()));
    }
}

mod full {
    //! A small disk of its own, which needs root.
    use super::*;
    use nix::mount::{MntFlags, MsFlags, mount, umount2};

    /// Unmounted also when the test fails.
    struct Disk(tempfile::TempDir);
    impl Disk {
        fn new(size: &str) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let options = format!("size={size}");
            mount(
                Some("vbm-test"),
                directory.path(),
                Some("tmpfs"),
                MsFlags::empty(),
                Some(options.as_str()),
            )
            .unwrap();
            Self(directory)
        }
        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }
        /// Takes all the space that is left.
        fn fill(&self) {
            let mut file = fs::File::create(self.path("filler")).unwrap();
            for size in [1 << 16, 1 << 12, 1] {
                while file.write_all(&vec![1; size]).is_ok() {}
            }
        }
        fn empty(&self) {
            fs::remove_file(self.path("filler")).unwrap();
        }
    }
    impl Drop for Disk {
        fn drop(&mut self) {
            if let Err(error) = umount2(self.0.path(), MntFlags::MNT_DETACH) {
                eprintln!("{} stays mounted: {error}", self.0.path().display());
            }
        }
    }

    /// Whether the test has to be left out; panics when it could not run and nobody said so.
    fn left_out() -> bool {
        if nix::unistd::geteuid().is_root() {
            return false;
        }
        let names = std::env::var("VBM_LEAVE_OUT").unwrap_or_default();
        assert!(
            names.split(',').any(|name| name == "root"),
            "needs root to mount a small tmpfs"
        );
        println!("LEFT OUT: mounting a small tmpfs needs root");
        true
    }

    #[tokio::test]
    async fn a_full_disk_fails_and_the_store_goes_on_when_there_is_space() {
        if left_out() {
            return;
        }
        let disk = Disk::new("6M");
        let store = RedbStore::open(disk.path("store")).unwrap();
        let mut kept = BTreeMap::new();
        for round in 0..3 {
            let revision = done(&store, put(format!("before/{round}"), "1")).await;
            kept.insert(format!("before/{round}"), revision.0);
            disk.fill();
            let mut failure = None;
            for n in 0..2_000 {
                let key = format!("during/{round}/{n}");
                match store.txn(put(key.clone(), vec![7; 20_000])).await {
                    Ok(TxnOutcome::Done(revision)) => drop(kept.insert(key, revision.0)),
                    other => {
                        failure = Some(other);
                        break;
                    }
                }
            }
            assert!(matches!(failure, Some(Err(StoreError::Failed(_)))), "{failure:?}");
            // The disk is still full: reading works, and all that was acknowledged is there.
            let found = content(&store).await;
            for (key, revision) in &kept {
                assert_eq!(found.get(key).map(|found| found.0), Some(*revision), "{key}");
            }
            disk.empty();
            let revision = done(&store, put(format!("after/{round}"), "1")).await;
            kept.insert(format!("after/{round}"), revision.0);
            for key in kept
                .keys()
                .filter(|key| key.starts_with("during"))
                .cloned()
                .collect::<Vec<_>>()
            {
                done(
                    &store,
                    Txn {
                        compare: vec![],
                        write: vec![Write::Delete(key.clone())],
                    },
                )
                .await;
                kept.remove(&key);
            }
        }
        store.close().await;
        let store = RedbStore::open(disk.path("store")).unwrap();
        for (key, revision) in &kept {
            assert_eq!(store.get(key).await.unwrap().unwrap().revision.0, *revision);
        }
        store.close().await;
    }

    #[tokio::test]
    async fn a_store_on_a_full_disk_can_be_opened_and_read() {
        if left_out() {
            return;
        }
        let disk = Disk::new("6M");
        let path = disk.path("store");
        let store = RedbStore::open(&path).unwrap();
        done(&store, put("a", "1")).await;
        store.close().await;
        disk.fill();
        let store = RedbStore::open(&path).unwrap();
        assert_eq!(content(&store).await.len(), 1);
        store.close().await;
        let other = RedbStore::open(disk.path("another"));
        assert!(matches!(other, Err(StoreError::Failed(_))), "{other:?}");
        assert!(!disk.path("another").exists());
    }
}
