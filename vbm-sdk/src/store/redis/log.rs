//! The newest part of the log, held here: one task reads it for all watches of this process.
//!
//! A watch that is up to date never asks Redis; one that is behind does, until it has caught up.

use super::{connect::Down, connect::Way, wire};
use crate::store::{
    Change, Revision, StoreError,
    watch::{LOG_READ_MAX_BYTES, LOG_READ_MAX_REVISIONS, LogPart, Tip},
};
use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::watch as channel, time::sleep};
use tokio_util::sync::CancellationToken;

/// The most revisions held.
const RECENT_MAX_REVISIONS: usize = 4_096;
/// The most bytes of keys and values held; the newest revision is held in any case.
const RECENT_MAX_BYTES: usize = 16 << 20;
/// How long the server holds a read that has nothing to tell.
const BLOCK: Duration = Duration::from_secs(2);
/// The most revisions of one read.
const READ_MAX_REVISIONS: usize = 64;

/// The newest revisions, without a hole, up to `at`.
#[derive(Debug, Default)]
struct Recent {
    at: Revision,
    lineage: String,
    revisions: VecDeque<Vec<Change>>,
    bytes: usize,
}

impl Recent {
    fn begin(&mut self, at: Revision, lineage: String) {
        *self = Self {
            at,
            lineage,
            ..Self::default()
        };
    }

    /// Adds the next revision; `false`, and everything is forgotten, when it is another one: revisions were
    /// trimmed before they were read, or another process found that the store lost writes.
    #[must_use]
    fn push(&mut self, revision: Revision, changes: Vec<Change>) -> bool {
        if revision.0 != self.at.0 + 1 {
            *self = Self::default();
            return false;
        }
        self.at = revision;
        self.bytes += size(&changes);
        self.revisions.push_back(changes);
        while self.revisions.len() > 1
            && (self.revisions.len() > RECENT_MAX_REVISIONS || self.bytes > RECENT_MAX_BYTES)
        {
            let forgotten = self.revisions.pop_front().unwrap_or_default();
            self.bytes -= size(&forgotten);
        }
        true
    }

    /// The part after a cursor, when all of it is held.
    fn read_after(&self, prefix: &str, after: Revision) -> Option<LogPart> {
        let held = self.revisions.len() as u64;
        if after > self.at || self.at.0 - after.0 > held {
            return None;
        }
        let skip = usize::try_from(held - (self.at.0 - after.0)).unwrap_or(usize::MAX);
        let (mut part, mut bytes) = (
            LogPart {
                changes: Vec::new(),
                upto: after,
            },
            0,
        );
        for changes in self.revisions.iter().skip(skip) {
            if part.upto.0 - after.0 >= LOG_READ_MAX_REVISIONS || bytes >= LOG_READ_MAX_BYTES {
                break;
            }
            for change in changes.iter().filter(|change| change.key.starts_with(prefix)) {
                bytes += change.bytes();
                part.changes.push(change.clone());
            }
            part.upto.0 += 1;
        }
        Some(part)
    }
}

fn size(changes: &[Change]) -> usize {
    changes.iter().map(Change::bytes).sum()
}

/// The tail of the log.
#[derive(Debug, Default)]
pub(super) struct Tail {
    recent: Mutex<Recent>,
    pub(super) tip: channel::Sender<Tip>,
}

impl Tail {
    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is held after a cursor, if all of it is.
    pub(super) fn read_after(&self, prefix: &str, after: Revision) -> Option<LogPart> {
        self.recent().read_after(prefix, after)
    }

    fn publish(&self, revision: Revision) {
        self.tip
            .send_modify(|tip| tip.revision = tip.revision.max(revision));
    }

    /// Follows the log until the store has ended, then ends all watches.
    pub(super) async fn follow(&self, way: &Way, ended: &CancellationToken) {
        let mut attempt = 0;
        let following = async {
            loop {
                let Down(why) = self.follow_once(way, &mut attempt).await;
                tracing::debug!(server = way.server, why, "the log cannot be followed just now");
                sleep(way.backoff(attempt)).await;
                attempt += 1;
            }
        };
        // Cancel safe: it only reads.
        ended.run_until_cancelled(following).await;
        self.tip.send_modify(|tip| tip.closed = true);
    }

    /// Follows it over one connection, which ends at some time.
    async fn follow_once(&self, way: &Way, attempt: &mut u32) -> Down {
        let mut resumed = match way.resume().await {
            Ok(resumed) => resumed,
            Err(down) => return down,
        };
        *attempt = 0;
        let mut at = {
            let mut recent = self.recent();
            if recent.lineage != resumed.lineage {
                recent.begin(resumed.revision, resumed.lineage.clone());
            }
            recent.at
        };
        self.publish(at);
        loop {
            let mut read = redis::cmd("XREAD");
            read.arg("COUNT")
                .arg(READ_MAX_REVISIONS)
                .arg("BLOCK")
                .arg(u64::try_from(BLOCK.as_millis()).unwrap_or(u64::MAX))
                .arg("STREAMS")
                .arg(way.keys.log())
                .arg(format!("{at}-1"));
            let logged = match resumed.read(&read, BLOCK).await.map(wire::read) {
                Ok(Ok(logged)) => logged,
                Ok(Err(StoreError::Failed(why))) => return Down(why),
                Ok(Err(other)) => return Down(other.to_string()),
                Err(down) => return down,
            };
            for entry in logged {
                if !self.recent().push(entry.revision, entry.changes) {
                    return Down(format!("what follows revision {at} is not in the log"));
                }
                at = entry.revision;
                way.saw(&resumed.lineage, at, &entry.txn);
            }
            self.publish(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(revision: u64, key: &str) -> Change {
        Change {
            revision: Revision(revision),
            key: key.into(),
            value: Some(bytes::Bytes::new()),
        }
    }

    fn recent(from: u64, to: u64) -> Recent {
        let mut recent = Recent::default();
        recent.begin(Revision(from - 1), "l".into());
        for n in from..=to {
            assert!(recent.push(Revision(n), vec![change(n, &format!("k{}", n % 2))]));
        }
        recent
    }

    #[test]
    fn what_is_held_is_told_and_nothing_else() {
        let recent = recent(5, 9);
        let told = |after| {
            recent
                .read_after("", Revision(after))
                .map(|p| (p.changes.len(), p.upto.0))
        };
        assert_eq!(told(3), None);
        assert_eq!(told(4), Some((5, 9)));
        assert_eq!(told(8), Some((1, 9)));
        assert_eq!(told(9), Some((0, 9)));
        assert_eq!(told(10), None);
        assert_eq!(
            recent.read_after("k1", Revision(4)).map(|p| p.changes.len()),
            Some(3)
        );
    }

    #[test]
    fn a_hole_forgets_what_was_before_it() {
        let mut recent = recent(5, 9);
        assert!(!recent.push(Revision(20), vec![change(20, "k")]));
        for after in [4, 9, 19, 20] {
            assert!(recent.read_after("", Revision(after)).is_none());
        }
    }

    #[test]
    fn no_more_is_held_than_fits() {
        let recent = recent(1, RECENT_MAX_REVISIONS as u64 + 10);
        assert_eq!(recent.revisions.len(), RECENT_MAX_REVISIONS);
        assert!(recent.read_after("", Revision(9)).is_none());
        assert!(recent.read_after("", Revision(10)).is_some());
    }
}
