//! Durable transactions a second: the store, beside the same file format with one commit a transaction.

use crate::harness::{
    duel::duel,
    fault::{Fault, Outcome},
    ground::Ground,
    row::Row,
};
use bytes::Bytes;
use redb::{Database, TableDefinition};
use std::{path::Path, sync::Arc, time::Duration};
use tokio::{task::JoinSet, time::Instant};
use vbm_sdk::store::{RedbStore, Store, Txn, TxnOutcome, Write};

/// How many write at once.
pub(super) const WRITERS: [usize; 2] = [1, 64];
const VALUE_BYTES: usize = 512;
/// Each writer writes its keys in turn.
const KEYS_PER_WRITER: u64 = 100;
const ROUND: Duration = Duration::from_secs(3);
const QUICK_ROUND: Duration = Duration::from_secs(1);
const TABLE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("peer");

pub(super) fn name(writers: usize) -> String {
    match writers {
        1 => "store, 1 writer".into(),
        many => format!("store, {many} writers"),
    }
}

pub(super) async fn transactions(ground: &Ground, writers: usize) -> Outcome<Row> {
    let dir = tempfile::Builder::new().prefix("vbm-bench-").tempdir()?;
    let round = if ground.quick { QUICK_ROUND } else { ROUND };
    let samples = duel(
        ground.rounds(),
        async |count| ours(&dir.path().join(format!("ours-{count}")), writers, round).await,
        async |count| peer(&dir.path().join(format!("peer-{count}")), writers, round).await,
    )
    .await?;
    Ok(Row::new(name(writers), "txn/s", samples.ours)
        .against("redb, a commit each", samples.peer)
        .noted("512-byte values, synced before the answer; ours also writes the log of changes"))
}

async fn ours(path: &Path, writers: usize, round: Duration) -> Outcome<f64> {
    let path = path.to_owned();
    let store = Arc::new(tokio::task::spawn_blocking(move || RedbStore::open(path)).await??);
    let begin = Instant::now();
    let mut tasks = JoinSet::new();
    for writer in 0..writers {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            let mut done = 0_u64;
            while begin.elapsed() < round {
                let txn = Txn {
                    compare: Vec::new(),
                    write: vec![Write::Put(key(writer, done), value(done))],
                };
                match store.txn(txn).await? {
                    TxnOutcome::Done(_) => done += 1,
                    TxnOutcome::Conflict(key) => return Err(Fault::new(format!("a conflict at {key}"))),
                }
            }
            Ok::<_, Fault>(done)
        });
    }
    let rate = rate(tasks, begin).await;
    store.close().await;
    rate
}

async fn peer(path: &Path, writers: usize, round: Duration) -> Outcome<f64> {
    let path = path.to_owned();
    let database = Arc::new(tokio::task::spawn_blocking(move || Database::create(path)).await??);
    let begin = Instant::now();
    let mut tasks = JoinSet::new();
    for writer in 0..writers {
        let database = Arc::clone(&database);
        // A commit blocks, and the next one waits for it.
        tasks.spawn_blocking(move || {
            let mut done = 0_u64;
            while begin.elapsed() < round {
                let txn = database.begin_write()?;
                txn.open_table(TABLE)?
                    .insert(key(writer, done).as_str(), &*value(done))?;
                txn.commit()?;
                done += 1;
            }
            Ok::<_, Fault>(done)
        });
    }
    rate(tasks, begin).await
}

async fn rate(mut tasks: JoinSet<Outcome<u64>>, begin: Instant) -> Outcome<f64> {
    let mut done = 0;
    while let Some(ended) = tasks.join_next().await {
        done += ended??;
    }
    Ok(done as f64 / begin.elapsed().as_secs_f64())
}

fn key(writer: usize, count: u64) -> String {
    format!("/bench/{writer}/{}", count % KEYS_PER_WRITER)
}

/// New content each time.
fn value(count: u64) -> Bytes {
    let mut value = vec![b'v'; VALUE_BYTES];
    value[..8].copy_from_slice(&count.to_le_bytes());
    value.into()
}
