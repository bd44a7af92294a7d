//! The store in one file: durable before a transaction is acknowledged.
//!
//! ```text
//!   txn ----> queue, QUEUE_MAX_TXNS ----> one writer thread: takes all that wait,
//!                                         compares and writes each, one commit, one fsync
//!                                                  |                        |
//!                                                  v                        v
//!   get, list, log <---- snapshot ------ [ meta | records | log ]      tip ----> watches
//! ```
//!
//! The writer is the one owner of the file. Reads take a snapshot of the last commit and never wait for it.
//! When the disk is full, what was in the commit fails with an unknown outcome and the writer opens the file
//! again, which tells what was kept; the store goes on as soon as there is space. After any other failure of
//! the disk it stays failed until it is opened anew: what the kernel's cache then shows may not be on the disk.
//!
//! | file | holds |
//! |---|---|
//! | [`file`] | opening and making the file, its tables and schema, what its failures mean |
//! | [`writer`] | the writer thread |
//! | [`read`](mod@read) | what is read from a snapshot |
//!
//! Under tokio's paused clock use [`MemoryStore`](super::MemoryStore): the writer is a thread of its own, which
//! the clock does not wait for.

mod file;
mod read;
#[cfg(test)]
mod tests;
mod writer;

use self::writer::{Job, Writer};
use super::{
    Entry, Page, Revision, Store, StoreError, Txn, TxnOutcome, Watch,
    watch::{self, Log, LogPart, Tip},
};
use ::redb::{Database, ReadTransaction, ReadableDatabase as _};
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    thread::JoinHandle,
};
use tokio::sync::{mpsc, oneshot, watch as channel};

/// The most transactions that wait for the writer; more wait in their callers.
const QUEUE_MAX_TXNS: usize = 1_024;

/// A store in one file.
///
/// Dropping it without [`Store::close`] ends it too, but in the background: the file may be in use for a
/// moment longer.
pub struct RedbStore {
    shared: Arc<Shared>,
    jobs: mpsc::Sender<Job>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

/// What the writer, the readers and the watches share.
struct Shared {
    path: PathBuf,
    /// Held for reading during reads and commits, for writing only to open or close the file.
    slot: RwLock<Slot>,
    tip: channel::Sender<Tip>,
    /// Wakes the writer when a reader found the file unusable. Weak, so that watches do not keep it alive.
    heal: mpsc::WeakSender<Job>,
}

/// The file, if it can be used.
enum Slot {
    Open(Database),
    /// Why not; the writer opens it again when asked for something.
    Full(String),
    /// Why not, for good.
    Failed(String),
    Closed,
}

impl Slot {
    fn get(&self) -> Result<&Database, StoreError> {
        match self {
            Self::Open(database) => Ok(database),
            Self::Full(why) | Self::Failed(why) => Err(StoreError::Failed(why.clone())),
            Self::Closed => Err(StoreError::Closed),
        }
    }
}

impl RedbStore {
    /// Opens the store in this file, or makes it when there is no such file. Blocks: the whole file is read and
    /// its checksums are verified.
    ///
    /// A new file is made beside its place, under the same name with `.new` added, and linked there when
    /// complete; so a file in its place that is empty or incomplete was damaged, and is refused.
    ///
    /// # Errors
    /// [`StoreError::InUse`] when any process has it open, this one included; [`StoreError::Corrupt`] when it is
    /// damaged, not a store, or made by a newer version; [`StoreError::Failed`] when it cannot be reached.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let path = path.as_ref();
        let (database, state) = file::open_or_create(path)?;
        Self::start(path, database, state)
    }

    fn start(path: &Path, database: Database, state: read::FileState) -> Result<Self, StoreError> {
        let (jobs, queue) = mpsc::channel(QUEUE_MAX_TXNS);
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            slot: RwLock::new(Slot::Open(database)),
            tip: channel::Sender::new(Tip {
                revision: state.revision,
                closed: false,
            }),
            heal: jobs.downgrade(),
        });
        let writer = Writer::new(Arc::clone(&shared), queue, state);
        let thread = std::thread::Builder::new()
            .name("vbm-store".into())
            .spawn(move || writer.run())
            .map_err(|error| StoreError::Failed(format!("no thread for the writer: {error}")))?;
        Ok(Self {
            shared,
            jobs,
            writer: Mutex::new(Some(thread)),
        })
    }

    /// Which file it is.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }
}

impl fmt::Debug for RedbStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedbStore")
            .field("path", &self.shared.path)
            .field("tip", &*self.shared.tip.borrow())
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// Reads from a snapshot, on a thread for blocking work.
    async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&ReadTransaction) -> Result<T, read::ReadError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let shared = Arc::clone(self);
        match tokio::task::spawn_blocking(move || shared.read_now(read)).await {
            Ok(result) => result,
            Err(error) if error.is_cancelled() => Err(StoreError::Closed),
            Err(error) => Err(StoreError::Failed(format!(
                "reading {} panicked: {error}",
                self.path.display()
            ))),
        }
    }

    fn read_now<T>(
        &self,
        read: impl FnOnce(&ReadTransaction) -> Result<T, read::ReadError>,
    ) -> Result<T, StoreError> {
        let slot = self.slot.read().unwrap_or_else(PoisonError::into_inner);
        let result = slot.get().map_err(read::ReadError::Store).and_then(|database| {
            let snapshot = database.begin_read()?;
            read(&snapshot)
        });
        result.map_err(|error| match error {
            read::ReadError::Store(error) => {
                if matches!(*slot, Slot::Full(_)) {
                    self.ask_to_heal();
                }
                error
            }
            read::ReadError::File(error) => {
                self.ask_to_heal();
                StoreError::Failed(format!("reading {}: {error}", self.path.display()))
            }
        })
    }

    /// Best effort: when the queue is full, the writer is awake anyway.
    fn ask_to_heal(&self) {
        if let Some(jobs) = self.heal.upgrade() {
            drop(jobs.try_send(Job::Heal));
        }
    }
}

impl Log for Shared {
    fn tip(&self) -> channel::Receiver<Tip> {
        self.tip.subscribe()
    }

    fn read_after(
        self: &Arc<Self>,
        prefix: &str,
        after: Revision,
    ) -> impl Future<Output = Result<LogPart, StoreError>> + Send {
        let prefix = prefix.to_owned();
        self.read(move |snapshot| read::log_after(snapshot, &prefix, after))
    }
}

#[async_trait::async_trait]
impl Store for RedbStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let key = key.to_owned();
        self.shared.read(move |snapshot| read::get(snapshot, key)).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Page, StoreError> {
        let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
        self.shared
            .read(move |snapshot| read::list(snapshot, &prefix, after.as_deref(), limit))
            .await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        txn.check()?;
        let (reply, answer) = oneshot::channel();
        let job = Job::Txn {
            bytes: txn.bytes(),
            txn,
            reply,
        };
        self.jobs.send(job).await.map_err(|_closed| StoreError::Closed)?;
        match answer.await {
            Ok(result) => result,
            // The writer answers each job, so it must have panicked.
            Err(_) => Err(StoreError::Failed("the writer ended before it answered".into())),
        }
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        watch::open(Arc::clone(&self.shared), prefix, from).await
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        self.shared.read(read::revision).await
    }

    async fn close(&self) {
        let mut tip = self.shared.tip.subscribe();
        // Fails only when the writer has ended, or is about to.
        drop(self.jobs.send(Job::Close).await);
        drop(tip.wait_for(|tip| tip.closed).await);
        let thread = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // It has nothing left to do but return.
            drop(thread.join());
        }
    }
}
