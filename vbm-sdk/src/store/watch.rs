//! The watch that both stores share: read the log after the cursor, then wait for the tip to move.
//!
//! ```text
//!        +--> something read before? --yes--> hand it out
//!        |          | no
//!        |    tip beyond the cursor? --yes--> read a part of the log, move the cursor --+
//!        |          | no                                                                |
//!        |    wait for the tip                                                          |
//!        +----------+-------------------------------------------------------------------+
//! ```
//!
//! No gap: the tip is marked as seen *before* it is compared, and stores publish it *after* a revision can
//! be read. No queue: a slow watcher holds one part of the log, and is told `Compacted` when it falls behind.

use super::{Change, Revision, StoreError, Watch};
use futures::{StreamExt as _, stream};
use std::sync::Arc;
use tokio::sync::watch;

/// The most revisions that one read of the log looks at.
pub(super) const LOG_READ_MAX_REVISIONS: u64 = 1_024;
/// When a read of the log has collected this many bytes, it stops at the end of the revision.
pub(super) const LOG_READ_MAX_BYTES: usize = 1 << 20;

/// How far a store is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tip {
    /// The newest revision that can be read.
    pub(super) revision: Revision,
    /// Whether the store was closed.
    pub(super) closed: bool,
}

/// A part of the log, beginning just after a cursor.
#[derive(Debug)]
pub(super) struct LogPart {
    /// The changes of keys with the prefix, in order; of each revision all.
    pub(super) changes: Vec<Change>,
    /// The last revision looked at: the next cursor.
    pub(super) upto: Revision,
}

/// What a watch needs of a store.
pub(super) trait Log: Send + Sync + 'static {
    /// Follows the tip.
    fn tip(&self) -> watch::Receiver<Tip>;

    /// Reads the log after the cursor; [`StoreError::Compacted`] when it cannot be complete.
    fn read_after(
        self: &Arc<Self>,
        prefix: &str,
        after: Revision,
    ) -> impl Future<Output = Result<LogPart, StoreError>> + Send;
}

/// Opens a watch. What cannot be told is refused here already.
pub(super) async fn open<L: Log>(log: Arc<L>, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
    let tip = log.tip();
    let first = log.read_after(prefix, from).await?;
    let cursor = Cursor {
        log,
        tip,
        prefix: prefix.to_owned(),
        at: first.upto,
        read: first.changes.into_iter(),
    };
    Ok(stream::unfold(Some(cursor), step).boxed())
}

struct Cursor<L> {
    log: Arc<L>,
    tip: watch::Receiver<Tip>,
    prefix: String,
    at: Revision,
    read: std::vec::IntoIter<Change>,
}

/// One item; after a failure, none.
async fn step<L: Log>(cursor: Option<Cursor<L>>) -> Option<(Result<Change, StoreError>, Option<Cursor<L>>)> {
    let mut cursor = cursor?;
    match cursor.next().await {
        Ok(change) => Some((Ok(change), Some(cursor))),
        Err(error) => Some((Err(error), None)),
    }
}

impl<L: Log> Cursor<L> {
    async fn next(&mut self) -> Result<Change, StoreError> {
        loop {
            if let Some(change) = self.read.next() {
                return Ok(change);
            }
            let tip = *self.tip.borrow_and_update();
            if tip.closed {
                return Err(StoreError::Closed);
            }
            if tip.revision > self.at {
                let part = self.log.read_after(&self.prefix, self.at).await?;
                self.at = part.upto;
                self.read = part.changes.into_iter();
            } else if self.tip.changed().await.is_err() {
                return Err(StoreError::Closed);
            }
        }
    }
}
