//! The store: the only truth about what is wanted.
//!
//! The model is etcd's. Keys are text in one ordered space; each write of a transaction gets the same new
//! *revision*; a transaction compares before it writes, all or nothing; a watch resumes from any revision
//! that is still in the log.
//!
//! ```text
//!   get, list ----> [ key -> (value, revision) ]
//!   txn  -------->  compare ... write            one writer, group commit
//!                         |
//!                         v
//!   watch <-------  [ revision -> changes ]      the last LOG_MAX_REVISIONS of them
//! ```
//!
//! List, then watch from the page's revision: that is the one way to hold a picture and keep it true.
//!
//! | store | for |
//! |---|---|
//! | [`MemoryStore`] | tests and simulations: the twin |
//! | [`RedbStore`] | one machine: one file, durable before a transaction is acknowledged |
//! | [`RedisStore`] | several controllers: one Redis, one script per transaction |

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod memory;
mod redb;
mod redis;
mod rules;
mod watch;

pub use self::{memory::MemoryStore, redb::RedbStore, redis::RedisStore};

use bytes::Bytes;
use std::fmt;
use vbm_core::{Error, ErrorKind};

/// The number of a write. Grows by one with each transaction that wrote something.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
    utoipa::ToSchema,
)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The longest key, in bytes.
pub const KEY_MAX_BYTES: usize = 512;
/// The largest value, in bytes.
pub const VALUE_MAX_BYTES: usize = 1 << 20;
/// The most comparisons and writes of one transaction, together.
pub const TXN_MAX_ITEMS: usize = 512;
/// The most bytes of all keys and values of one transaction.
pub const TXN_MAX_BYTES: usize = 8 << 20;
/// The most entries of one page, whatever limit a list asks for.
pub const PAGE_MAX_ENTRIES: usize = 10_000;
/// The most revisions that the log keeps for watchers.
pub const LOG_MAX_REVISIONS: u64 = 16_384;
/// The most bytes of keys and values that the log keeps; the newest revision is kept in any case.
pub const LOG_MAX_BYTES: usize = 64 << 20;

/// A key, its value, and the revision that wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Bytes,
    /// The revision that wrote it.
    pub revision: Revision,
}

/// A part of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The entries, ordered by key.
    pub entries: Vec<Entry>,
    /// Whether more follow: list again after the last key.
    pub more: bool,
    /// The store's revision when the list was read: a watch from here misses nothing. After several pages,
    /// watch from the revision of the *first* one: pages are read one by one, not as one picture.
    pub revision: Revision,
}

/// What a transaction expects of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    /// The key does not exist.
    Absent(String),
    /// The key exists and was last written by this revision.
    At(String, Revision),
}

/// What a transaction does to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Sets it.
    Put(String, Bytes),
    /// Removes it. When it does not exist, that is no failure and no change: nothing is told to watchers.
    Delete(String),
}

/// A transaction: all writes happen if all comparisons hold, else none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Txn {
    /// What must hold.
    pub compare: Vec<Compare>,
    /// What is done then. A key is written at most once.
    pub write: Vec<Write>,
}

/// What became of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum TxnOutcome {
    /// It was done, durably, as this revision. When nothing was changed: the revision of the store.
    Done(Revision),
    /// This key was not as expected; nothing was done.
    Conflict(String),
}

/// One change, as a watch tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The revision that made it.
    pub revision: Revision,
    /// The key.
    pub key: String,
    /// The new value; `None` when it was removed.
    pub value: Option<Bytes>,
}

impl Change {
    /// The bytes of key and value.
    fn bytes(&self) -> usize {
        self.key.len() + self.value.as_ref().map_or(0, Bytes::len)
    }
}

/// A failure of a store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A key, value or transaction is larger than allowed, or writes a key twice.
    #[error("the request does not fit the store: {0}")]
    Invalid(String),
    /// The watch asks for revisions that the log does not hold: they were forgotten, or the store was replaced
    /// by an older copy and has yet to reach them. List again, then watch from there.
    #[error("revision {asked} is no longer in the log, which begins at {oldest}")]
    Compacted {
        /// The revision asked for.
        asked: Revision,
        /// The oldest one kept.
        oldest: Revision,
    },
    /// The file cannot be read as a store.
    #[error("the store's file cannot be read")]
    Corrupt {
        /// Which file.
        path: std::path::PathBuf,
        /// What the reader said.
        detail: String,
    },
    /// The server cannot hold a store.
    #[error("{server} cannot hold the store: {why}")]
    Unsuitable {
        /// Which server, without its password.
        server: String,
        /// What it lacks.
        why: String,
        /// What to do.
        fix: String,
    },
    /// The server does not answer; nothing was asked of it so far.
    #[error("cannot reach {server}: {why}")]
    Unreachable {
        /// Which server, without its password.
        server: String,
        /// How it failed.
        why: String,
    },
    /// The file is in use by another process.
    #[error("the store's file is in use")]
    InUse {
        /// Which file.
        path: std::path::PathBuf,
    },
    /// Reading or writing failed; for a write, whether it was kept is unknown.
    #[error("the store failed: {0}")]
    Failed(String),
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Invalid(why) => Self::new(
                ErrorKind::InvalidInput,
                "the request does not fit the store",
                why,
                "ask for less at once",
            ),
            StoreError::Compacted { asked, oldest } => Self::new(
                ErrorKind::Stale,
                format!("revision {asked} is no longer kept"),
                format!("the log begins at revision {oldest}"),
                "list again, and watch from the revision of that list",
            ),
            StoreError::Corrupt { path, detail } => Self::new(
                ErrorKind::Corrupt,
                format!("the store {} cannot be read", path.display()),
                detail,
                "restore the file from a backup, or move it away to begin with an empty store",
            ),
            StoreError::InUse { path } => Self::new(
                ErrorKind::Conflict,
                format!("the store {} is in use", path.display()),
                "another vbmd has it open",
                "stop that vbmd, or give this one another --data-dir",
            ),
            StoreError::Unsuitable { server, why, fix } => Self::new(
                ErrorKind::Unsupported,
                format!("{server} cannot hold the store"),
                why,
                fix,
            ),
            StoreError::Unreachable { server, why } => Self::new(
                ErrorKind::Unavailable,
                format!("cannot reach {server}"),
                why,
                "start Redis, or give the right address with --redis",
            ),
            StoreError::Failed(why) => Self::new(
                ErrorKind::Unavailable,
                "the store cannot be used",
                why,
                "look at the disk (is it full, is it failing?) or at Redis (does it answer?), then try again",
            )
            .with_outcome(vbm_core::Outcome::Unknown),
            StoreError::Closed => Self::new(
                ErrorKind::Unavailable,
                "the store is closed",
                "the daemon is shutting down",
                "try again when it runs",
            ),
        }
    }
}

/// A stream of changes, in the order of their revisions; those of one revision in the order in which its
/// transaction wrote them. It waits for more at the end of the log, and ends after the first error:
/// [`StoreError::Compacted`] when the watcher was so slow that the log no longer holds what comes next,
/// [`StoreError::Closed`] when the store was closed.
///
/// To resume, watch from the revision *before* that of the last change seen: a transaction writes several
/// keys, and the others of that revision may not have been seen yet.
pub type Watch = futures::stream::BoxStream<'static, Result<Change, StoreError>>;

/// Where records live. See the module's text for the model; `conformance` (feature `conformance`) is what each store must pass.
#[async_trait::async_trait]
pub trait Store: Send + Sync + fmt::Debug {
    /// The entry of a key.
    ///
    /// # Errors
    /// [`StoreError::Failed`], [`StoreError::Closed`].
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;

    /// Entries whose keys begin with `prefix` and come after `after`, at most `limit` (and at most
    /// [`PAGE_MAX_ENTRIES`]), ordered by the bytes of the key. One page is one picture of the store.
    ///
    /// # Errors
    /// [`StoreError::Failed`], [`StoreError::Closed`].
    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Page, StoreError>;

    /// Runs a transaction. A conflict is an outcome, not an error.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] and [`StoreError::Closed`]: nothing was done. [`StoreError::Failed`]: whether it
    /// was done is unknown; read before you try again.
    ///
    /// # Cancel safety
    /// A dropped future may leave the transaction done or not done, never half done.
    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError>;

    /// All changes after `from` of keys that begin with `prefix`, in order, those that are yet to come included.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] when the log cannot tell all of them; [`StoreError::Failed`],
    /// [`StoreError::Closed`].
    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError>;

    /// The newest revision.
    ///
    /// # Errors
    /// [`StoreError::Failed`], [`StoreError::Closed`].
    async fn revision(&self) -> Result<Revision, StoreError>;

    /// Waits until what was asked before is answered and safe, then refuses further use and ends the store's
    /// tasks; watches end with [`StoreError::Closed`]. Closing twice does no harm.
    async fn close(&self);
}
