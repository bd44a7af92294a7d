//! The writer thread: the one owner of the file.
//!
//! ```text
//!   wait for a job -> take all that wait, BATCH_MAX_BYTES at most -> one redb transaction:
//!        each in turn: compare, then write under a revision of its own
//!   -> forget what the log has too much -> commit (fsync) -> publish the tip -> answer each
//! ```
//!
//! A later transaction of a batch sees the earlier ones, and is answered only after all are durable. A batch
//! in which nothing was written is not committed, so conflicts cost no fsync.

use super::{
    Shared, Slot,
    file::{self, Check, LOG, LogPlace, LogRow, META, RECORDS, REVISION},
    read::{self, FileState},
};
use crate::store::{Revision, StoreError, Txn, TxnOutcome, Write, rules};
use ::redb::{Database, Durability, ReadableTable as _, Table};
use std::sync::{Arc, PoisonError};
use tokio::sync::{mpsc, oneshot};

/// A batch that carries this many bytes takes no further transaction.
const BATCH_MAX_BYTES: usize = 16 << 20;
/// The most transactions of a batch.
const BATCH_MAX_TXNS: usize = super::QUEUE_MAX_TXNS;

type Reply = oneshot::Sender<Result<TxnOutcome, StoreError>>;

/// What the writer is asked for.
pub(super) enum Job {
    /// A transaction that was checked and has this many bytes.
    Txn { txn: Txn, bytes: usize, reply: Reply },
    /// To open the file again, should it be unusable.
    Heal,
    /// To end.
    Close,
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    jobs: mpsc::Receiver<Job>,
    log_bytes: usize,
}

/// What is taken from the queue at once.
#[derive(Default)]
struct Batch {
    txns: Vec<Txn>,
    replies: Vec<Reply>,
    bytes: usize,
    heal: bool,
    close: bool,
}

impl Batch {
    fn add(&mut self, job: Job) {
        match job {
            // Nobody waits for it any more, and it was not begun.
            Job::Txn { reply, .. } if reply.is_closed() => {}
            Job::Txn { txn, bytes, reply } => {
                self.txns.push(txn);
                self.replies.push(reply);
                self.bytes += bytes;
            }
            Job::Heal => self.heal = true,
            Job::Close => self.close = true,
        }
    }

    fn is_full(&self) -> bool {
        self.close || self.txns.len() >= BATCH_MAX_TXNS || self.bytes >= BATCH_MAX_BYTES
    }
}

/// What a batch did.
struct Done {
    outcomes: Vec<TxnOutcome>,
    newest: Revision,
    log_bytes: usize,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, jobs: mpsc::Receiver<Job>, state: FileState) -> Self {
        Self {
            shared,
            jobs,
            log_bytes: state.log_bytes,
        }
    }

    /// Works until it is told to close, or the store was dropped.
    pub(super) fn run(mut self) {
        while let Some(job) = self.jobs.blocking_recv() {
            let batch = self.gather(job);
            let close = batch.close;
            self.work(batch);
            if close {
                break;
            }
        }
    }

    fn gather(&mut self, first: Job) -> Batch {
        let mut batch = Batch::default();
        batch.add(first);
        while !batch.is_full() {
            match self.jobs.try_recv() {
                Ok(job) => batch.add(job),
                Err(_) => break,
            }
        }
        batch
    }

    fn work(&mut self, batch: Batch) {
        if batch.heal {
            self.probe();
        }
        self.reopen_if_full();
        if batch.txns.is_empty() {
            return;
        }
        match self.commit(&batch.txns) {
            Ok(outcomes) => {
                for (reply, outcome) in batch.replies.into_iter().zip(outcomes) {
                    answer(reply, Ok(outcome));
                }
            }
            Err(why) => {
                // First, so that who reads after the answer finds the file usable again.
                self.reopen_if_full();
                for reply in batch.replies {
                    answer(reply, Err(StoreError::Failed(why.clone())));
                }
            }
        }
    }

    /// Applies and commits; the reason when that failed.
    fn commit(&mut self, txns: &[Txn]) -> Result<Vec<TxnOutcome>, String> {
        let result = {
            let slot = self.shared.slot.read().unwrap_or_else(PoisonError::into_inner);
            let database = slot.get().map_err(|error| match error {
                StoreError::Failed(why) => why,
                other => other.to_string(),
            })?;
            apply(database, txns, self.log_bytes)
        };
        match result {
            Ok(done) => {
                self.log_bytes = done.log_bytes;
                self.publish(done.newest);
                Ok(done.outcomes)
            }
            Err(error) => Err(self.fail(&error)),
        }
    }

    fn publish(&self, newest: Revision) {
        self.shared.tip.send_if_modified(|tip| {
            let moved = tip.revision != newest;
            tip.revision = newest;
            moved
        });
    }

    /// Takes the file out of use after a failure: redb refuses further work with it anyway.
    fn fail(&self, error: &::redb::Error) -> String {
        let path = self.shared.path.display();
        let (why, slot) = if file::says_full(error) {
            let why = format!("writing {path}: {error}");
            (why.clone(), Slot::Full(why))
        } else {
            let why = format!("writing {path}: {error}; it is out of use until vbmd is started again");
            (why.clone(), Slot::Failed(why))
        };
        tracing::error!(why, "the store failed");
        self.put(slot);
        why
    }

    /// Puts something in the place of the file, waiting for its readers, and closes it.
    fn put(&self, new: Slot) {
        let mut slot = self.shared.slot.write().unwrap_or_else(PoisonError::into_inner);
        if let Slot::Open(database) = std::mem::replace(&mut *slot, new)
            && let Err(error) = database.close()
        {
            tracing::debug!(%error, "closing the store's file");
        }
    }

    /// A reader met a failure: finds out whether the file can still be used.
    fn probe(&self) {
        let found = self
            .shared
            .slot
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get()
            .map(usable);
        if let Ok(Err(error)) = found {
            self.fail(&error);
        }
    }

    /// Opens the file again after the disk was full, and goes on from what it holds.
    fn reopen_if_full(&mut self) {
        let is_full = matches!(
            *self.shared.slot.read().unwrap_or_else(PoisonError::into_inner),
            Slot::Full(_)
        );
        if !is_full {
            return;
        }
        match file::open(&self.shared.path, Check::Little) {
            Ok((database, state)) => {
                tracing::info!(revision = %state.revision, "the store is usable again");
                self.log_bytes = state.log_bytes;
                self.put(Slot::Open(database));
                self.publish(state.revision);
            }
            Err(error) => tracing::warn!(%error, "the store cannot be used yet"),
        }
    }
}

impl Drop for Writer {
    /// Refuses what still waits, closes the file, and ends the watches; also when the thread panicked.
    fn drop(&mut self) {
        self.jobs.close();
        while let Ok(job) = self.jobs.try_recv() {
            if let Job::Txn { reply, .. } = job {
                answer(reply, Err(StoreError::Closed));
            }
        }
        self.put(Slot::Closed);
        self.shared.tip.send_modify(|tip| tip.closed = true);
    }
}

/// The caller may have gone: then nobody wants to know.
fn answer(reply: Reply, result: Result<TxnOutcome, StoreError>) {
    drop(reply.send(result));
}

fn usable(database: &Database) -> Result<(), ::redb::Error> {
    let write = database.begin_write()?;
    Ok(write.abort()?)
}

fn apply(database: &Database, txns: &[Txn], log_bytes: usize) -> Result<Done, ::redb::Error> {
    let mut write = database.begin_write()?;
    write.set_durability(Durability::Immediate)?;
    let mut outcomes = Vec::with_capacity(txns.len());
    let (before, after, log_bytes) = {
        let mut meta = write.open_table(META)?;
        let before = meta.get(REVISION)?.map_or(0, |revision| revision.value());
        let mut tables = Tables {
            records: write.open_table(RECORDS)?,
            log: write.open_table(LOG)?,
            revision: Revision(before),
            log_bytes,
        };
        for txn in txns {
            outcomes.push(tables.apply(txn)?);
        }
        if tables.revision.0 != before {
            tables.forget()?;
            meta.insert(REVISION, tables.revision.0)?;
        }
        (before, tables.revision, tables.log_bytes)
    };
    if after.0 == before {
        write.abort()?;
    } else {
        write.commit()?;
    }
    Ok(Done {
        outcomes,
        newest: after,
        log_bytes,
    })
}

/// The tables during one commit.
struct Tables<'txn> {
    records: Table<'txn, &'static str, (u64, &'static [u8])>,
    log: Table<'txn, LogPlace, LogRow<'static>>,
    revision: Revision,
    log_bytes: usize,
}

impl Tables<'_> {
    fn apply(&mut self, txn: &Txn) -> Result<TxnOutcome, ::redb::StorageError> {
        let revision_of = |key: &str| {
            let found = self.records.get(key)?;
            Ok::<_, ::redb::StorageError>(found.map(|found| Revision(found.value().0)))
        };
        if let Some(key) = rules::first_conflict(txn, revision_of)? {
            return Ok(TxnOutcome::Conflict(key));
        }
        let revision = self.revision.0 + 1;
        let mut place = 0;
        for write in &txn.write {
            if self.write(revision, place, write)? {
                place += 1;
            }
        }
        if place > 0 {
            self.revision = Revision(revision);
        }
        Ok(TxnOutcome::Done(self.revision))
    }

    /// Does one write; whether it changed something.
    fn write(&mut self, revision: u64, place: u32, write: &Write) -> Result<bool, ::redb::StorageError> {
        let row = match write {
            Write::Put(key, value) => {
                self.records.insert(key.as_str(), (revision, value.as_ref()))?;
                (key.as_str(), Some(value.as_ref()))
            }
            Write::Delete(key) => {
                if self.records.remove(key.as_str())?.is_none() {
                    return Ok(false);
                }
                (key.as_str(), None)
            }
        };
        self.log.insert((revision, place), row)?;
        self.log_bytes += read::row_bytes(row);
        Ok(true)
    }

    fn forget(&mut self) -> Result<(), ::redb::StorageError> {
        loop {
            let oldest = read::oldest(&self.log, self.revision)?;
            if !rules::log_is_over(oldest, self.revision, self.log_bytes) {
                return Ok(());
            }
            while read::oldest(&self.log, self.revision)? == oldest {
                if let Some((_, row)) = self.log.pop_first()? {
                    self.log_bytes -= read::row_bytes(row.value());
                }
            }
        }
    }
}
