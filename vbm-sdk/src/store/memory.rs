//! The store in memory: the twin for tests and simulations. Nothing survives it.

use super::{
    Change, Entry, PAGE_MAX_ENTRIES, Page, Revision, Store, StoreError, Txn, TxnOutcome, Watch, Write, rules,
    watch::{self, LOG_READ_MAX_BYTES, LOG_READ_MAX_REVISIONS, Log, LogPart, Tip},
};
use bytes::Bytes;
use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::watch as channel;

/// A store in memory. Clones are handles to the same store.
#[derive(Clone, Default)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    tip: channel::Sender<Tip>,
}

#[derive(Default)]
struct State {
    closed: bool,
    revision: Revision,
    records: BTreeMap<String, (Revision, Bytes)>,
    /// Each revision with all its changes; the front is the oldest.
    log: VecDeque<Vec<Change>>,
    log_bytes: usize,
}

impl MemoryStore {
    /// An empty store at revision 0.
    pub fn new() -> Self {
        Self::default()
    }

    /// The state, unless closed. The lock is held for computations only, never across an await.
    fn state(&self) -> Result<MutexGuard<'_, State>, StoreError> {
        self.shared.state()
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore")
            .field("tip", &*self.shared.tip.borrow())
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn state(&self) -> Result<MutexGuard<'_, State>, StoreError> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.closed {
            Err(StoreError::Closed)
        } else {
            Ok(state)
        }
    }
}

impl State {
    fn oldest(&self) -> Revision {
        Revision(self.revision.0 + 1 - self.log.len() as u64)
    }

    fn apply(&mut self, txn: Txn) -> TxnOutcome {
        let revision_of =
            |key: &str| Ok::<_, std::convert::Infallible>(self.records.get(key).map(|found| found.0));
        let Ok(conflict) = rules::first_conflict(&txn, revision_of);
        if let Some(key) = conflict {
            return TxnOutcome::Conflict(key);
        }
        let revision = Revision(self.revision.0 + 1);
        let changes: Vec<Change> = txn
            .write
            .into_iter()
            .filter_map(|write| self.write(revision, write))
            .collect();
        if !changes.is_empty() {
            self.revision = revision;
            self.log_bytes += changes.iter().map(Change::bytes).sum::<usize>();
            self.log.push_back(changes);
            self.forget();
        }
        TxnOutcome::Done(self.revision)
    }

    /// Does one write; `None` when it changes nothing.
    fn write(&mut self, revision: Revision, write: Write) -> Option<Change> {
        match write {
            Write::Put(key, value) => {
                self.records.insert(key.clone(), (revision, value.clone()));
                Some(Change {
                    revision,
                    key,
                    value: Some(value),
                })
            }
            Write::Delete(key) => self.records.remove(&key).map(|_| Change {
                revision,
                key,
                value: None,
            }),
        }
    }

    fn forget(&mut self) {
        while rules::log_is_over(self.oldest(), self.revision, self.log_bytes) {
            let forgotten = self.log.pop_front().unwrap_or_default();
            self.log_bytes -= forgotten.iter().map(Change::bytes).sum::<usize>();
        }
    }

    fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Page {
        let limit = limit.min(PAGE_MAX_ENTRIES);
        let mut matching = self
            .records
            .range::<str, _>((rules::list_start(prefix, after), Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix));
        let entries = matching
            .by_ref()
            .take(limit)
            .map(|(key, (revision, value))| Entry {
                key: key.clone(),
                value: value.clone(),
                revision: *revision,
            })
            .collect();
        Page {
            entries,
            more: matching.next().is_some(),
            revision: self.revision,
        }
    }

    fn read_after(&self, prefix: &str, after: Revision) -> Result<LogPart, StoreError> {
        let oldest = self.oldest();
        rules::check_cursor(after, oldest, self.revision)?;
        let skip = usize::try_from(after.0 + 1 - oldest.0).unwrap_or(usize::MAX);
        let (mut changes, mut bytes, mut upto) = (Vec::new(), 0, after);
        for revision in self.log.iter().skip(skip) {
            if upto.0 - after.0 >= LOG_READ_MAX_REVISIONS || bytes >= LOG_READ_MAX_BYTES {
                break;
            }
            upto = Revision(upto.0 + 1);
            for change in revision.iter().filter(|change| change.key.starts_with(prefix)) {
                bytes += change.bytes();
                changes.push(change.clone());
            }
        }
        Ok(LogPart { changes, upto })
    }
}

impl Log for Shared {
    fn tip(&self) -> channel::Receiver<Tip> {
        self.tip.subscribe()
    }

    async fn read_after(self: &Arc<Self>, prefix: &str, after: Revision) -> Result<LogPart, StoreError> {
        self.state()?.read_after(prefix, after)
    }
}

#[async_trait::async_trait]
impl Store for MemoryStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let state = self.state()?;
        let entry = state.records.get(key);
        Ok(entry.map(|(revision, value)| Entry {
            key: key.to_owned(),
            value: value.clone(),
            revision: *revision,
        }))
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Page, StoreError> {
        Ok(self.state()?.list(prefix, after, limit))
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        txn.check()?;
        let mut state = self.state()?;
        let before = state.revision;
        let outcome = state.apply(txn);
        if state.revision != before {
            // Under the lock, so that tips come in order.
            self.shared.tip.send_replace(Tip {
                revision: state.revision,
                closed: false,
            });
        }
        Ok(outcome)
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        watch::open(Arc::clone(&self.shared), prefix, from).await
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        Ok(self.state()?.revision)
    }

    async fn close(&self) {
        if let Ok(mut state) = self.state() {
            state.closed = true;
            self.shared.tip.send_replace(Tip {
                revision: state.revision,
                closed: true,
            });
        }
    }
}
