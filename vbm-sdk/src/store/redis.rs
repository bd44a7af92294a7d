//! The store on one Redis, shared by several controllers.
//!
//! ```text
//!   txn, get, list ---> one pipelined connection ---> one script each
//!                                                       |
//!                             [ index | values | revisions | meta | log ]     one hash tag
//!                                                                    |
//!   watches <--- newest part of the log, held here <--- XREAD -------+        one connection
//! ```
//!
//! Each transaction is one script: compare, write, count, log. It carries an id under which its outcome is remembered for
//! [`TXN_KEPT`], so that asking again after a lost reply gives that outcome and does nothing twice. While Redis is
//! away, requests wait and are asked again; after a time they fail with an unknown outcome. Watches wait as long as it takes.
//!
//! **Durability is Redis'**: with `appendonly yes` and `appendfsync always` a transaction is on the disk before it is
//! acknowledged; with `everysec` a failing host may lose the last second. **Behind sentinels** a failover may lose what was
//! acknowledged in its last moments (replication does not wait); `min-replicas-to-write 1` bounds that to them, and a failover must
//! be over within the patience of a request (15 s: `down-after-milliseconds 5000` or less). When a server comes back with less
//! than it acknowledged, the next connection finds out (the log names the transaction of each revision), the count of
//! revisions jumps so that none is given twice, and all watches end with `Compacted`.
//!
//! | file | holds |
//! |---|---|
//! | [`keys`] | every key |
//! | [`scripts`] | every script |
//! | [`start`] | whether a server is fit |
//! | [`connect`] | connections and patience |
//! | [`log`] | what watches read |
//! | [`wire`] | answers, as values |

mod connect;
mod keys;
mod log;
mod scripts;
mod start;
mod wire;

use self::{
    connect::{Call, Way},
    log::Tail,
};
use super::{
    Compare, Entry, LOG_MAX_BYTES, LOG_MAX_REVISIONS, PAGE_MAX_ENTRIES, Page, Revision, Store, StoreError,
    Txn, TxnOutcome, Watch, Write, rules,
    watch::{self, LOG_READ_MAX_BYTES, LOG_READ_MAX_REVISIONS, Log, LogPart, Tip},
};
use std::{fmt, ops::Bound, sync::Arc, time::Duration};
use tokio::sync::watch as channel;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use uuid::Uuid;
use vbm_core::Name;

/// How long the outcome of a transaction is remembered: much longer than it is asked for again.
const TXN_KEPT: Duration = Duration::from_secs(120);
/// The default beginning of every key.
const DEFAULT_NAMESPACE: &str = "vbm";

/// A store on one Redis. Several processes may have it open.
pub struct RedisStore {
    shared: Arc<Shared>,
    /// Ends the task when the store is dropped without [`Store::close`].
    _ended: DropGuard,
}

struct Shared {
    way: Way,
    tail: Tail,
    /// What is under way.
    asked: TaskTracker,
    /// The one task.
    tasks: TaskTracker,
    ended: CancellationToken,
}

impl RedisStore {
    /// Opens the store on a Redis such as `redis://user:password@host:6379/0` or `redis+unix:///run/redis.sock`, or on the
    /// master that sentinels name: `redis+sentinel://s1,s2,s3/mymaster`.
    ///
    /// # Errors
    /// [`StoreError::Unreachable`]; [`StoreError::Unsuitable`] when it is too old, evicts, or is a replica or a
    /// cluster. A server that may lose what it acknowledged is taken, with a warning in the log.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        Self::open_at(url, DEFAULT_NAMESPACE).await
    }

    /// Opens a store whose keys begin with `namespace`, so that several systems can share one Redis.
    ///
    /// # Errors
    /// As [`RedisStore::open`].
    pub async fn open_in(url: &str, namespace: &Name) -> Result<Self, StoreError> {
        Self::open_at(url, namespace.as_str()).await
    }

    async fn open_at(url: &str, namespace: &str) -> Result<Self, StoreError> {
        let shared = Arc::new(Shared {
            way: Way::open(url, namespace).await?,
            tail: Tail::default(),
            asked: TaskTracker::new(),
            tasks: TaskTracker::new(),
            ended: CancellationToken::new(),
        });
        let following = Arc::clone(&shared);
        shared.tasks.spawn(async move {
            following.tail.follow(&following.way, &following.ended).await;
        });
        shared.tasks.close();
        let ended = shared.ended.clone().drop_guard();
        Ok(Self {
            shared,
            _ended: ended,
        })
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("server", &self.shared.way.server)
            .field("tip", &*self.shared.tail.tip.borrow())
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// Asks, unless closed; [`Store::close`] waits for it.
    async fn ask(&self, call: &Call) -> Result<redis::Value, StoreError> {
        let _under_way = self.asked.token();
        if self.way.closing.is_cancelled() {
            return Err(StoreError::Closed);
        }
        self.way.ask(call).await
    }
}

impl Log for Shared {
    fn tip(&self) -> channel::Receiver<Tip> {
        self.tail.tip.subscribe()
    }

    async fn read_after(self: &Arc<Self>, prefix: &str, after: Revision) -> Result<LogPart, StoreError> {
        if self.way.closing.is_cancelled() {
            return Err(StoreError::Closed);
        }
        if let Some(part) = self.tail.read_after(prefix, after) {
            return Ok(part);
        }
        let keys = &self.way.keys;
        let mut call = Call::new(scripts::LOG);
        call.key(keys.meta()).key(keys.log());
        call.arg(after.0)
            .arg(prefix)
            .arg(LOG_READ_MAX_REVISIONS)
            .arg(LOG_READ_MAX_BYTES);
        wire::log_part(after, self.ask(&call).await?)
    }
}

/// A transaction as its script takes it.
fn txn_call(keys: &keys::Keys, id: &str, txn: &Txn) -> Call {
    let mut call = Call::new(scripts::TXN);
    call.key(keys.meta())
        .key(keys.index())
        .key(keys.values())
        .key(keys.revisions())
        .key(keys.log())
        .key(keys.done(id));
    call.arg(id)
        .arg(u64::try_from(TXN_KEPT.as_millis()).unwrap_or(u64::MAX))
        .arg(LOG_MAX_REVISIONS)
        .arg(LOG_MAX_BYTES)
        .arg(txn.compare.len());
    for compare in &txn.compare {
        match compare {
            Compare::Absent(key) => call.arg(key).arg(""),
            Compare::At(key, revision) => call.arg(key).arg(revision.0),
        };
    }
    for write in &txn.write {
        match write {
            Write::Put(key, value) => call.arg("P").arg(key).arg(&value[..]),
            Write::Delete(key) => call.arg("D").arg(key),
        };
    }
    call
}

/// Where a list begins and ends, as ZRANGE has it. 0xff is in no UTF-8 text, so it ends what begins with the prefix.
fn lex_range(prefix: &str, after: Option<&str>) -> (String, Vec<u8>) {
    let begin = match rules::list_start(prefix, after) {
        Bound::Excluded(after) => format!("({after}"),
        Bound::Included(prefix) => format!("[{prefix}"),
        Bound::Unbounded => "-".to_owned(),
    };
    let mut end = format!("({prefix}").into_bytes();
    end.push(0xff);
    (begin, end)
}

#[async_trait::async_trait]
impl Store for RedisStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let keys = &self.shared.way.keys;
        let mut call = Call::new(scripts::GET);
        call.key(keys.values()).key(keys.revisions()).arg(key);
        wire::entry(key, self.shared.ask(&call).await?)
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Page, StoreError> {
        let (keys, (begin, end)) = (&self.shared.way.keys, lex_range(prefix, after));
        let mut call = Call::new(scripts::LIST);
        call.key(keys.meta())
            .key(keys.index())
            .key(keys.values())
            .key(keys.revisions());
        call.arg(begin)
            .arg(end.as_slice())
            .arg(limit.min(PAGE_MAX_ENTRIES));
        wire::page(self.shared.ask(&call).await?)
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        txn.check()?;
        let id = Uuid::now_v7().simple().to_string();
        let call = txn_call(&self.shared.way.keys, &id, &txn);
        let (outcome, lineage) = wire::outcome(self.shared.ask(&call).await?)?;
        if let (TxnOutcome::Done(revision), Some(lineage)) = (&outcome, lineage) {
            self.shared.way.saw(&lineage, *revision, &id);
        }
        Ok(outcome)
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        watch::open(Arc::clone(&self.shared), prefix, from).await
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        // The smallest list tells it.
        self.list("", None, 0).await.map(|page| page.revision)
    }

    async fn close(&self) {
        let shared = &self.shared;
        shared.way.closing.cancel();
        shared.asked.close();
        shared.asked.wait().await;
        shared.ended.cancel();
        shared.tasks.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_ends_where_the_prefix_ends() {
        assert_eq!(lex_range("vm/", None), ("[vm/".to_owned(), b"(vm/\xff".to_vec()));
        assert_eq!(lex_range("vm/", Some("vm/7")).0, "(vm/7");
        assert_eq!(lex_range("", None), ("[".to_owned(), b"(\xff".to_vec()));
    }

    #[test]
    fn a_store_can_be_shared() {
        fn shared<T: Send + Sync + 'static>() {}
        shared::<RedisStore>();
    }
}
