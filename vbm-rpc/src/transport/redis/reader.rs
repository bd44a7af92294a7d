//! The reader: what steers this node, requests for it, broadcasts to its shard, replies for its process, on one blocking connection.

use super::{
    Core,
    connect::{Blocking, Down, backoff},
    keys,
    leftovers::Leftovers,
    lock,
    pack::{self, Entry, parse_id},
    presence::{self, Claim},
    quarantine::Suspect,
};
use crate::{
    limits::SUSPECT_AFTER,
    transport::{Completion, Delivery},
};
use redis::cmd;
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use vbm_core::NodePath;

/// How long the server holds a read when there is nothing.
const BLOCK: Duration = Duration::from_secs(2);
/// How often replies alone are asked for, without a block, while requests wait in this process. (A block of a few
/// milliseconds would last up to 100: Redis looks for blocks that ran out ten times a second.)
const POLL_BUSY: Duration = Duration::from_millis(2);
/// The most entries of one stream in one read.
const READ_MAX_ENTRIES: usize = 64;
/// The beginning of a stream.
const START: &str = "0-0";

/// Hands requests that the bus had no room for to it as soon as it has, so that the reader need not wait.
pub(super) async fn feed(core: Arc<Core>, mut fed: mpsc::UnboundedReceiver<Delivery>) {
    while let Some(delivery) = fed.recv().await {
        let taken = core.inbound.request(delivery).await;
        core.backlog.fetch_sub(1, Ordering::AcqRel);
        if !taken {
            return;
        }
    }
}

struct Reader {
    core: Arc<Core>,
    /// Unbounded in itself: requests are read only while it is empty.
    feed: mpsc::UnboundedSender<Delivery>,
    control: Arc<str>,
    control_cursor: String,
    /// While there may be some.
    leftovers: Option<Leftovers>,
    node: Arc<str>,
    node_cursor: String,
    broadcast: Arc<str>,
    broadcast_cursor: String,
    inbox: Arc<str>,
    inbox_cursor: String,
}

pub(super) async fn run(
    core: Arc<Core>,
    feed: mpsc::UnboundedSender<Delivery>,
    presence::Begin {
        broadcast_cursor,
        node_last,
    }: presence::Begin,
) {
    let me = &core.me;
    let mut reader = Reader {
        control: core.keys.control(&me.path).into(),
        control_cursor: START.into(),
        leftovers: None,
        node: core.keys.node(&me.path).into(),
        node_cursor: START.into(),
        broadcast: core.keys.broadcast(&keys::shard(&me.path)).into(),
        broadcast_cursor,
        inbox: core.keys.inbox(&me.path, &me.boot_id).into(),
        inbox_cursor: START.into(),
        core: core.clone(),
        feed,
    };
    let (mut attempt, mut first) = (0, true);
    loop {
        match core.connector.blocking().await {
            Ok(mut connection) => {
                if first {
                    match Leftovers::find(&mut connection, &reader.node, node_last).await {
                        Ok(leftovers) => reader.leftovers = leftovers,
                        Err(Down(why)) => {
                            tracing::debug!(why, "the reader's connection broke at once");
                            sleep(backoff(attempt, core.seed ^ 1)).await;
                            attempt += 1;
                            continue;
                        }
                    }
                    first = false;
                }
                let Err(Down(why)) = reader.read_all(&mut connection, &mut attempt).await;
                tracing::debug!(why, "the reader's connection broke");
            }
            Err(Down(why)) => tracing::debug!(attempt, why, "the reader cannot connect"),
        }
        core.probe();
        sleep(backoff(attempt, core.seed ^ 1)).await;
        attempt += 1;
    }
}

impl Reader {
    /// Reads until the connection breaks.
    async fn read_all(
        &mut self,
        connection: &mut Blocking,
        attempt: &mut u32,
    ) -> Result<std::convert::Infallible, Down> {
        self.rewind(connection).await?;
        loop {
            let busy = self.core.backlog.load(Ordering::Acquire) > 0;
            let mut read = cmd("XREAD");
            read.arg("COUNT").arg(READ_MAX_ENTRIES);
            if !busy {
                read.arg("BLOCK")
                    .arg(u64::try_from(BLOCK.as_millis()).unwrap_or(0));
            }
            // What steers comes first, and is read also while requests wait here.
            read.arg("STREAMS").arg(&*self.control).arg(&*self.inbox);
            if busy || self.core.retired.is_cancelled() {
                read.arg(&self.control_cursor).arg(&self.inbox_cursor);
            } else {
                read.arg(&*self.node).arg(&*self.broadcast);
                read.arg(&self.control_cursor)
                    .arg(&self.inbox_cursor)
                    .arg(&self.node_cursor)
                    .arg(&self.broadcast_cursor);
            }
            let answer = connection.read(&read, BLOCK).await?.map_err(Down)?;
            *attempt = 0;
            for (key, entries) in pack::streams(answer) {
                self.take(connection, &key, entries).await?;
            }
            if busy {
                sleep(POLL_BUSY).await;
            }
        }
    }

    async fn take(&mut self, connection: &mut Blocking, key: &str, entries: Vec<Entry>) -> Result<(), Down> {
        let Some(last) = entries.last().map(|entry| entry.id.clone()) else {
            return Ok(());
        };
        if key == &*self.control {
            for entry in entries {
                let deliveries = self
                    .core
                    .deliveries(&self.control, entry, (Instant::now(), 1), false);
                // Past all that waits for the bus; behind it only when the bus has no room for control either.
                let full = deliveries
                    .into_iter()
                    .filter_map(|delivery| self.core.inbound.try_request(delivery).err());
                self.give(full.collect());
            }
            self.control_cursor = last;
        } else if key == &*self.inbox {
            for entry in entries {
                if !self.core.admits(&self.inbox, true, &entry) {
                    self.core.complete(self.inbox.clone(), entry.id, false);
                    continue;
                }
                for frame in entry.frames {
                    self.core.inbound.control(frame);
                }
            }
            lock(&self.core.inbox_cursor).clone_from(&last);
            self.inbox_cursor = last;
        } else if key == &*self.node {
            let counts = self.count_leftovers(connection, &entries).await?;
            for (at, entry) in entries.into_iter().enumerate() {
                let before = counts.get(at).copied().unwrap_or(0);
                if before >= SUSPECT_AFTER && !entry.frames.is_empty() {
                    self.core.suspect(Suspect {
                        key: self.node.clone(),
                        entry,
                        group: false,
                        worker: self.core.me.path.to_string(),
                    });
                    continue;
                }
                let deliveries = self
                    .core
                    .deliveries(&self.node, entry, (Instant::now(), before + 1), false);
                self.give(deliveries);
            }
            self.node_cursor = last;
        } else if key == &*self.broadcast {
            for entry in entries {
                let deliveries = self.broadcast_deliveries(entry);
                self.give(deliveries);
            }
            self.broadcast_cursor = last;
        }
        Ok(())
    }

    /// How many processes died with each of these entries of the node's queue.
    async fn count_leftovers(
        &mut self,
        connection: &mut Blocking,
        entries: &[Entry],
    ) -> Result<Vec<u32>, Down> {
        let Some(leftovers) = &mut self.leftovers else {
            return Ok(Vec::new());
        };
        let ids: Vec<&str> = entries.iter().map(|entry| entry.id.as_str()).collect();
        let counts = leftovers.count(connection, &ids).await?;
        if leftovers.are_behind(&ids) {
            leftovers.forget_the_done(connection).await?;
            self.leftovers = None;
        }
        Ok(counts)
    }

    /// Nobody keeps a broadcast for a member: there is nothing to complete.
    fn broadcast_deliveries(&self, entry: Entry) -> Vec<Delivery> {
        let me = &self.core.me;
        let scope = entry
            .scope
            .as_deref()
            .and_then(|text| text.parse::<NodePath>().ok());
        let offered = me
            .services
            .iter()
            .any(|service| Some(service.as_str()) == entry.service.as_deref());
        if !offered || !scope.is_some_and(|scope| scope.contains(&me.path)) {
            return Vec::new();
        }
        // Not removed when refused: it belongs to all members of the shard, and goes with its age.
        if !self.core.admits(&self.broadcast, false, &entry) {
            return Vec::new();
        }
        let since = self.core.written_at(&entry.id);
        let delivery = |frame| Delivery {
            frame,
            since,
            done: Completion::nothing(),
        };
        entry.frames.into_iter().map(delivery).collect()
    }

    fn give(&self, deliveries: Vec<Delivery>) {
        for delivery in deliveries {
            let behind = self.core.backlog.load(Ordering::Acquire) > 0;
            let delivery = match behind {
                true => delivery,
                false => match self.core.inbound.try_request(delivery) {
                    Ok(()) => continue,
                    Err(delivery) => delivery,
                },
            };
            self.core.backlog.fetch_add(1, Ordering::AcqRel);
            // Fails only when the feeder has ended: the bus takes nothing any more.
            drop(self.feed.send(delivery));
        }
    }

    /// After a reconnect: what is left in the node's queue is not done, so it is read from the beginning (what the
    /// bus has already is known by id). The other cursors are set back if the server knows less than was read: a
    /// server that lost its memory would give entries below the cursor, and they would never be seen.
    async fn rewind(&mut self, connection: &mut Blocking) -> Result<(), Down> {
        self.node_cursor = START.into();
        self.control_cursor = START.into();
        for (key, cursor) in [
            (&self.broadcast, &mut self.broadcast_cursor),
            (&self.inbox, &mut self.inbox_cursor),
        ] {
            let mut info = cmd("XINFO");
            info.arg("STREAM").arg(&**key);
            let answer = connection.read(&info, Duration::ZERO).await?;
            let last = answer
                .ok()
                .and_then(|info| parse_id(pack::text(pack::field(&info, "last-generated-id")?)?));
            if last < parse_id(cursor) {
                tracing::warn!(%key, cursor, "Redis has forgotten entries: reading from the beginning");
                *cursor = START.into();
            }
        }
        lock(&self.core.inbox_cursor).clone_from(&self.inbox_cursor);
        Ok(())
    }
}

/// Makes the queues again when Redis has forgotten them. For readers that meet a missing group.
pub(super) async fn register_again(core: &Arc<Core>) -> Result<(), Down> {
    let mut commands = core.connector.commands().await?;
    if let Err(presence::Refusal::Displaced(by)) =
        presence::register(core, &mut commands, Claim::Keep).await?
    {
        core.displaced(&by);
    }
    Ok(())
}
