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
