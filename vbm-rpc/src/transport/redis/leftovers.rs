//! What earlier processes of this node left in its queue, and how many of them died with it.
//!
//! A queue that is read by cursor counts no deliveries. So a process counts when it starts: every entry that is there
//! already was with the process before, which is dead now, unless that one ended in peace. Nothing is counted for what
//! comes later: a call pays nothing.

use super::{
    connect::{Blocking, Down},
    keys::{Keys, STREAM_TTL},
    pack::{self, parse_id},
};
use redis::{Value, cmd};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

/// The most entries that a process can have had: more were not with it when it died.
const LEFTOVERS_MAX: usize = 4_096;
/// The field that a process leaves which ended in peace.
const PEACE: &str = "peace";

pub(super) struct Leftovers {
    counts_key: String,
    /// The last entry that was there at the start.
    until: (u64, u64),
    /// How many processes had died with an entry when the last one started.
    known: HashMap<String, u32>,
    /// The last process ended in peace.
    peace: bool,
    /// Those counted by this process.
    seen: HashSet<String>,
}

impl Leftovers {
    /// Looks at the start; nothing when the queue was empty. `until` is the last entry that was there before this process
    /// could be sent anything.
    pub(super) async fn find(
        connection: &mut Blocking,
        node: &Arc<str>,
        until: Option<(u64, u64)>,
    ) -> Result<Option<Self>, Down> {
        let Some(until) = until else { return Ok(None) };
        let counts_key = Keys::counts(node);
        let mut all = cmd("HGETALL");
        all.arg(&counts_key);
        let known = connection.read(&all, Duration::ZERO).await?;
        let mut known = known.as_ref().map(read_counts).unwrap_or_default();
        let peace = known.remove(PEACE).is_some();
        if peace {
            let mut over = cmd("HDEL");
            over.arg(&counts_key).arg(PEACE);
            drop(connection.read(&over, Duration::ZERO).await?);
        }
        Ok(Some(Self {
            counts_key,
            until,
            known,
            peace,
            seen: HashSet::new(),
        }))
    }

    /// How many processes died with each; those that come from before the start are counted and written down.
    pub(super) async fn count(&mut self, connection: &mut Blocking, ids: &[&str]) -> Result<Vec<u32>, Down> {
        let mut write = cmd("HSET");
        write.arg(&self.counts_key);
        let (mut counts, mut changed) = (Vec::with_capacity(ids.len()), Vec::new());
        for id in ids {
            let before = self.known.get(*id).copied().unwrap_or(0);
            let is_old = parse_id(id).is_some_and(|id| id <= self.until);
            let is_new_death = is_old && !self.peace && self.seen.len() < LEFTOVERS_MAX;
            if !is_new_death || self.seen.contains(*id) {
                counts.push(before);
                continue;
            }
            counts.push(before + 1);
            write.arg(id).arg(before + 1);
            changed.push((*id).to_owned());
        }
        if !changed.is_empty() {
            // An error means that it is counted at the next death.
            drop(connection.read(&write, Duration::ZERO).await?);
            let mut renew = cmd("PEXPIRE");
            renew
                .arg(&self.counts_key)
                .arg(u64::try_from(STREAM_TTL.as_millis()).unwrap_or(u64::MAX));
            drop(connection.read(&renew, Duration::ZERO).await?);
        }
        for id in changed {
            *self.known.entry(id.clone()).or_default() += 1;
            self.seen.insert(id);
        }
        Ok(counts)
    }

    /// Whether these entries go past the last one from before the start.
    pub(super) fn are_behind(&self, ids: &[&str]) -> bool {
        ids.last()
            .and_then(|id| parse_id(id))
            .is_some_and(|id| id >= self.until)
    }

    /// Forgets the counts of what is in the queue no more.
    pub(super) async fn forget_the_done(&self, connection: &mut Blocking) -> Result<(), Down> {
        let done: Vec<&String> = self
            .known
            .keys()
            .filter(|field| {
                let entry = field.split('/').next().unwrap_or(field);
                !self.seen.contains(entry) && !self.peace
            })
            .collect();
        if done.is_empty() {
            return Ok(());
        }
        let mut forget = cmd("HDEL");
        forget.arg(&self.counts_key).arg(&done);
        drop(connection.read(&forget, Duration::ZERO).await?);
        Ok(())
    }
}

fn read_counts(answer: &Value) -> HashMap<String, u32> {
    let Value::Array(list) = answer else {
        return HashMap::new();
    };
    list.chunks_exact(2)
        .filter_map(|pair| {
            let count = pack::number(&pair[1])?;
            // A request that is done with has a count below zero.
            Some((
                pack::text(&pair[0])?.to_owned(),
                u32::try_from(count).unwrap_or(0),
            ))
        })
        .collect()
}
