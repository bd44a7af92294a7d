//! The reader: what steers this node, requests for it, broadcasts to its shard, replies for its process, on one blocking connection.

use super::{
    Core,
    connect::{Blocking, Down},
    guard::JOIN_SLACK,
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
    task::yield_now,
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
/// On another server, broadcasts are read again from this long before the last one that was read: the clocks of two
/// servers may differ by less. Repeats are known by their ids.
const STEP_BACK: Duration = Duration::from_secs(10);
/// After so many bytes of replies the reader takes what it has read out of its inbox, without waiting for the heartbeat:
/// what is read is of no use, and Redis works best in memory that it touched just now.
const INBOX_TRIM_BYTES: usize = 1024 * 1024;
/// The most broadcasts from just before this member came whose seals it notes.
const EARLIER_MAX: usize = 1_024;
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
    /// The place in the broadcast stream from which on this member is addressed.
    joined: String,
    inbox: Arc<str>,
    inbox_cursor: String,
    /// The server that the cursors belong to.
    origin: Option<Arc<str>>,
    /// Read and still there.
    inbox_bytes: usize,
}

pub(super) async fn run(
    core: Arc<Core>,
    feed: mpsc::UnboundedSender<Delivery>,
    presence::Begin {
        broadcast_cursor,
        node_last,
        joined_ms,
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
        joined: broadcast_cursor.clone(),
        broadcast_cursor,
        inbox: core.keys.inbox(&me.path, &me.boot_id).into(),
        inbox_cursor: START.into(),
        origin: None,
        inbox_bytes: 0,
        core: core.clone(),
        feed,
    };
    let (mut attempt, mut first) = (0, true);
    loop {
        match core.connector.blocking(&reader.node).await {
            Ok(mut connection) => {
                if first {
                    match Leftovers::find(&mut connection, &reader.node, node_last).await {
                        Ok(leftovers) => reader.leftovers = leftovers,
                        Err(Down(why)) => {
                            tracing::debug!(why, "the reader's connection broke at once");
                            core.connector.pause(attempt, core.seed ^ 1).await;
                            attempt += 1;
                            continue;
                        }
                    }
                    if let Err(Down(why)) = reader.note_earlier_broadcasts(&mut connection, joined_ms).await {
                        tracing::debug!(why, "the reader's connection broke at once");
                        core.connector.pause(attempt, core.seed ^ 1).await;
                        attempt += 1;
                        continue;
                    }
                    first = false;
                }
                let Err(Down(why)) = reader.read_all(&mut connection, &mut attempt).await;
                tracing::debug!(why, "the reader's connection broke");
            }
            Err(Down(why)) => tracing::debug!(attempt, why, "the reader cannot connect"),
        }
        core.probe();
        core.connector.pause(attempt, core.seed ^ 1).await;
        attempt += 1;
    }
}

impl Reader {
    /// With security on: learns which broadcasts were there just before this member, so that it does not open a copy of
    /// one. Those from longer ago are refused by the time in their seal.
    async fn note_earlier_broadcasts(&self, connection: &mut Blocking, joined_ms: u64) -> Result<(), Down> {
        let Some(guard) = &self.core.guard else {
            return Ok(());
        };
        guard.joined(joined_ms);
        let slack = u64::try_from(JOIN_SLACK.as_millis()).unwrap_or(u64::MAX);
        let mut range = cmd("XREVRANGE");
        range
            .arg(&*self.broadcast)
            .arg(&self.joined)
            .arg(joined_ms.saturating_sub(slack * 2))
            .arg("COUNT")
            .arg(EARLIER_MAX);
        if let Ok(earlier) = connection.read(&range, Duration::ZERO).await? {
            guard.note_earlier(&self.broadcast, &pack::entries(earlier));
        }
        Ok(())
    }

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
            let mut withheld = false;
            for (key, mut entries) in pack::streams(answer) {
                if key == *self.node || key == *self.control {
                    withheld |= self.core.withhold(&mut entries);
                }
                self.take(connection, &key, entries).await?;
            }
            if withheld {
                self.core.present().await;
            }
            if self.inbox_bytes >= INBOX_TRIM_BYTES {
                self.trim_inbox(connection).await?;
            }
            if busy {
                sleep(POLL_BUSY).await;
            } else {
                // Whom these entries woke go first: their answers and next calls need not wait for our next question.
                yield_now().await;
            }
        }
    }

    async fn take(&mut self, connection: &mut Blocking, key: &str, entries: Vec<Entry>) -> Result<(), Down> {
        let Some(last) = entries.last().map(|entry| entry.id.clone()) else {
            return Ok(());
        };
        if key == &*self.control {
            for entry in entries {
                let deliveries =
                    self.core
                        .deliveries(&self.control, entry, (Instant::now(), 1), false, false);
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
                if entry.frames.is_empty() {
                    self.core.no_frame(&self.inbox, &entry.id);
                }
                for frame in entry.frames {
                    self.inbox_bytes += frame.len();
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
                let deliveries =
                    self.core
                        .deliveries(&self.node, entry, (Instant::now(), before + 1), false, before > 0);
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

    async fn trim_inbox(&mut self, connection: &mut Blocking) -> Result<(), Down> {
        let mut trim = cmd("XTRIM");
        trim.arg(&*self.inbox).arg("MINID").arg(&self.inbox_cursor);
        if let Err(why) = connection.read(&trim, Duration::ZERO).await? {
            tracing::debug!(why, "the inbox was not trimmed; the heartbeat tries again");
        }
        self.inbox_bytes = 0;
        Ok(())
    }

    /// Nobody keeps a broadcast for a member: there is nothing to complete.
    fn broadcast_deliveries(&self, entry: Entry) -> Vec<Delivery> {
        let me = &self.core.me;
        let scope = entry
            .scope
            .as_deref()
            .and_then(|text| text.parse::<NodePath>().ok());
        if scope.is_none() || entry.frames.is_empty() {
            // For whom it was meant nobody can tell: it is each member's to count.
            self.core.no_frame(&self.broadcast, &entry.id);
            return Vec::new();
        }
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
        let since = self.core.sent_at(&entry.id, entry.sent_ms);
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
    /// bus has already is known by id). The other cursors are set back where the server may give entries below them,
    /// which would never be seen: after a failover the new master lacks the newest entries of the old one, and gives
    /// the next ones by its own clock; a server that lost its memory begins anew.
    async fn rewind(&mut self, connection: &mut Blocking) -> Result<(), Down> {
        self.node_cursor = START.into();
        self.control_cursor = START.into();
        let origin = connection.origin();
        let moved = self.origin.as_ref().is_some_and(|before| *before != origin);
        self.origin = Some(origin);
        let last = last_id(connection, &self.inbox).await?;
        if moved || last < parse_id(&self.inbox_cursor) {
            // Replies that were read before find nobody who waits for them.
            self.inbox_cursor = START.into();
        }
        let last = last_id(connection, &self.broadcast).await?;
        let cursor = place_again(&self.broadcast_cursor, &self.joined, last, moved);
        if cursor != self.broadcast_cursor {
            tracing::warn!(key = %self.broadcast, from = self.broadcast_cursor, to = cursor, "broadcasts are read again");
            self.broadcast_cursor = cursor;
        }
        lock(&self.core.inbox_cursor).clone_from(&self.inbox_cursor);
        Ok(())
    }
}

/// The last id that a stream gave; nothing when there is no stream.
async fn last_id(connection: &mut Blocking, key: &str) -> Result<Option<(u64, u64)>, Down> {
    let mut info = cmd("XINFO");
    info.arg("STREAM").arg(key);
    let answer = connection.read(&info, Duration::ZERO).await?;
    Ok(answer
        .ok()
        .and_then(|info| parse_id(pack::text(pack::field(&info, "last-generated-id")?)?)))
}

/// From where broadcasts are read on a new connection: `cursor` is up to where they were read, `joined` from where
/// they are for this member, `last` what the server gave last, `moved` whether it is another server.
fn place_again(cursor: &str, joined: &str, last: Option<(u64, u64)>, moved: bool) -> String {
    let (read, first) = (
        parse_id(cursor).unwrap_or_default(),
        parse_id(joined).unwrap_or_default(),
    );
    let last = last.unwrap_or_default();
    let back = match (last < read, moved) {
        (false, false) => return cursor.to_owned(),
        // Never before the member joined: those were for others.
        (false, true) => read
            .0
            .saturating_sub(u64::try_from(STEP_BACK.as_millis()).unwrap_or(u64::MAX)),
        (true, _) if last >= first => first.0,
        // It knows less than it did when this member joined: all it will have is new.
        (true, _) => return START.to_owned(),
    };
    match back <= first.0 {
        true => joined.to_owned(),
        false => format!("{back}-0"),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_stays_on_the_same_server_that_knows_as_much() {
        assert_eq!(place_again("50-1", "10-0", Some((50, 1)), false), "50-1");
        assert_eq!(place_again("50-1", "10-0", Some((99, 0)), false), "50-1");
    }

    #[test]
    fn a_cursor_above_all_that_the_server_knows_goes_back() {
        let joined = "1000000-5";
        let cursor = "9000000-0";
        assert_eq!(place_again(cursor, joined, Some((2_000_000, 0)), true), joined);
        assert_eq!(place_again(cursor, joined, Some((1_000_000, 5)), false), joined);
        assert_eq!(
            place_again(cursor, joined, Some((999_999, 0)), true),
            START,
            "older than the member"
        );
        assert_eq!(
            place_again(cursor, joined, None, false),
            START,
            "a server without memory"
        );
    }

    #[test]
    fn another_server_is_read_again_for_as_long_as_clocks_may_differ_but_not_before_joining() {
        assert_eq!(
            place_again("9000000-7", "1000000-5", Some((9_000_000, 8)), true),
            "8990000-0"
        );
        assert_eq!(
            place_again("1005000-7", "1000000-5", Some((9_000_000, 8)), true),
            "1000000-5"
        );
    }
}
