//! The heartbeat: renews what lives as long as this process. One batch a beat:
//!
//! | commands | why |
//! |---|---|
//! | `TIME`, one script | presence, and Redis' clock |
//! | `EXISTS`, one a hash tag | did Redis forget a queue of ours? |
//! | `ZADD`, one a scope and service | found by calls for any, for all |
//! | `ZRANGEBYSCORE`, one a service | is somebody about to die? The rescuer looks at that very moment |
//! | `XTRIM`, when replies were read | the inbox |
//! | one script a queue, when handlers run longer than a beat | the lease of what they work on |
//!
//! What need not be so often (lives of keys, old broadcasts, forgetting the dead) is done every [`SLOW_BEATS`] beats.

use super::{
    Core,
    connect::{Answer, Commands, Down, NODE_DOWN},
    keys::{self, GROUP, INBOX_TTL, STREAM_TTL},
    lock, pack,
    presence::{self, Claim, Refusal},
    scripts,
};
use crate::limits::HEARTBEAT_EVERY;
use redis::{Pipeline, Value, cmd, pipe};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::{Instant, MissedTickBehavior, interval};

/// Broadcasts are kept this long for readers that lag.
const BROADCAST_KEEP: Duration = Duration::from_secs(600);
/// What need not be renewed at each beat is renewed once in so many: every 30 s.
const SLOW_BEATS: u64 = 15;
/// How much longer than to the next beat it is looked ahead for deaths.
const DEATHS_MARGIN: Duration = Duration::from_millis(500);
/// How long after a presence ran out the rescuer looks: clocks are reckoned to a few milliseconds.
const DEATHS_DELAY: Duration = Duration::from_millis(50);
/// The most entries that one script renews.
const RENEW_MAX_ENTRIES: usize = 512;

pub(super) async fn run(core: Arc<Core>) {
    let mut beats = interval(HEARTBEAT_EVERY);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    beats.tick().await;
    let mut beater = Beater {
        core: core.clone(),
        // Members do not do their slow work all at once.
        count: core.seed % SLOW_BEATS,
        trimmed: String::new(),
    };
    loop {
        tokio::select! {
            // Cancel safe: a tick missed here is not needed any more.
            _at = beats.tick() => {}
            () = core.retired.cancelled() => break,
        }
        core.refresh_trust().await;
        beater.try_beat().await;
    }
    // Handlers may still run: what they work on stays theirs until the process is closed.
    loop {
        beats.tick().await;
        let Some(mut commands) = core.conn.borrow().clone() else {
            continue;
        };
        if beater.renew_leases(&mut commands).await.is_err() {
            core.probe();
        }
    }
}

struct Beater {
    core: Arc<Core>,
    count: u64,
    /// Up to where the inbox was trimmed.
    trimmed: String,
}

fn ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

impl Beater {
    async fn try_beat(&mut self) {
        let Some(mut commands) = self.core.conn.borrow().clone() else {
            return;
        };
        match self.beat(&mut commands).await {
            Ok(()) => {}
            Err(Down(why)) => {
                self.core.server_failed(&why);
                tracing::debug!(why, "a heartbeat was not answered");
                self.core.probe();
            }
        }
    }

    async fn beat(&mut self, commands: &mut Commands) -> Result<(), Down> {
        let core = self.core.clone();
        let mut batch = pipe();
        batch.add_command(cmd("TIME"));
        presence::add_presence(&core, &mut batch, Claim::Keep);
        let expected = ask_for_keys(&core, &mut batch);
        let mut rest = presence::renew_liveness(&core, &mut batch);
        let inbox_cursor = self.trim_inbox(&mut batch);
        rest += usize::from(inbox_cursor.is_some());
        let ahead = core.now_ms() + ms(HEARTBEAT_EVERY + DEATHS_MARGIN);
        let deaths = presence::ask_for_deaths(&core, &mut batch, ahead);
        let asked = Instant::now();
        let answers = commands.run(&mut batch).await?;
        presence::set_clock(&core, asked, answers.first());
        let mut renewed = false;
        match answers
            .get(1)
            .map(|answer| presence::read_presence(&core, answer, Claim::Keep))
        {
            Some(Err(Refusal::Displaced(by))) => {
                core.displaced(&by);
                return Ok(());
            }
            Some(Err(Refusal::Redis(why))) => core.server_refused_to("to renew presence", &why),
            Some(Ok(())) => renewed = true,
            None => {}
        }
        let found = answers.get(2..2 + expected.len()).unwrap_or_default();
        if is_gone(&expected, found) {
            tracing::warn!("queues of this process are gone from Redis: made again");
            if let Err(Refusal::Displaced(by)) = presence::register(&core, commands, Claim::Keep).await? {
                core.displaced(&by);
                return Ok(());
            }
            core.generations.send_modify(|generation| *generation += 1);
        }
        let at = 2 + expected.len();
        for why in answers
            .iter()
            .skip(at)
            .take(rest)
            .filter_map(|answer| answer.as_ref().err())
        {
            core.server_refused_to("a part of a heartbeat", why);
        }
        // Where a server of the cluster is down nobody can ask for this member either.
        let missed = |answer: &Answer| answer.as_ref().is_err_and(|why| !why.starts_with(NODE_DOWN));
        if renewed && !answers.iter().skip(at).take(rest).any(missed) {
            core.renewed(asked);
        }
        if let Some(cursor) = inbox_cursor {
            self.trimmed = cursor;
        }
        note_deaths(&core, answers.iter().skip(at + rest).take(deaths));
        self.renew_leases(commands).await?;
        self.count += 1;
        if self.count.is_multiple_of(SLOW_BEATS) {
            slow_beat(&core, commands).await?;
        }
        Ok(())
    }

    /// Forgets replies that were read; gives up to where, when there are any.
    fn trim_inbox(&self, batch: &mut Pipeline) -> Option<String> {
        let me = &self.core.me;
        let read = lock(&self.core.inbox_cursor).clone();
        if read == self.trimmed {
            return None;
        }
        batch
            .cmd("XTRIM")
            .arg(self.core.keys.inbox(&me.path, &me.boot_id))
            .arg("MINID")
            .arg(&read);
        Some(read)
    }

    /// Says of what was taken before the last beat that it is still worked on; hears of what was taken over.
    async fn renew_leases(&self, commands: &mut Commands) -> Result<(), Down> {
        let core = &self.core;
        let held = core.held_longer(HEARTBEAT_EVERY / 2);
        let chunks: Vec<_> = held
            .iter()
            .flat_map(|(key, ids)| ids.chunks(RENEW_MAX_ENTRIES).map(move |ids| (key, ids)))
            .collect();
        let mut batch = pipe();
        for (key, ids) in &chunks {
            let eval = batch.cmd("EVAL").arg(scripts::RENEW_HELD).arg(1).arg(&***key);
            eval.arg(GROUP).arg(&core.consumer).arg(*ids);
        }
        let answers = commands.run(&mut batch).await?;
        for ((key, _), answer) in chunks.iter().zip(answers) {
            match answer {
                Ok(lost) => {
                    let lost = pack::texts(&lost);
                    if !lost.is_empty() {
                        core.lose(key, &lost);
                    }
                }
                Err(why) => tracing::debug!(why, "leases were not renewed"),
            }
        }
        Ok(())
    }
}

/// Asks whether the queues of this member are there, at once for those of one hash tag; gives how many each answer
/// must tell.
fn ask_for_keys(core: &Core, batch: &mut Pipeline) -> Vec<i64> {
    let me = &core.me;
    let shard = keys::shard(&me.path);
    let mut keys = vec![
        core.keys.node(&me.path),
        core.keys.control(&me.path),
        core.keys.inbox(&me.path, &me.boot_id),
        core.keys.broadcast(&shard),
    ];
    keys.extend(presence::queues(core));
    let mut by_tag: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for key in keys {
        let tag = key.split('}').next().unwrap_or_default().to_owned();
        by_tag.entry(tag).or_default().push(key);
    }
    for keys in by_tag.values() {
        batch.cmd("EXISTS").arg(keys);
    }
    by_tag
        .values()
        .map(|keys| i64::try_from(keys.len()).unwrap_or(i64::MAX))
        .collect()
}

/// Whether a queue is gone. An error tells nothing.
fn is_gone(expected: &[i64], found: &[Answer]) -> bool {
    let mut pairs = expected.iter().zip(found);
    pairs.any(|(expected, found)| {
        found
            .as_ref()
            .ok()
            .and_then(pack::number)
            .is_some_and(|found| found < *expected)
    })
}

/// Tells the rescuer when the next one is expected to be dead.
fn note_deaths<'a>(core: &Core, answers: impl Iterator<Item = &'a Answer>) {
    let first = answers
        .filter_map(|answer| {
            let texts = pack::texts(answer.as_ref().ok()?);
            texts.get(1)?.parse::<u64>().ok()
        })
        .min();
    let Some(at_ms) = first else { return };
    let at = Instant::now() + Duration::from_millis(at_ms.saturating_sub(core.now_ms())) + DEATHS_DELAY;
    core.deaths.send_replace(Some(at));
}

/// What need not be done at each beat.
async fn slow_beat(core: &Core, commands: &mut Commands) -> Result<(), Down> {
    let mut batch = pipe();
    let me = &core.me;
    let mut renew = |key: String, ttl| {
        batch.cmd("PEXPIRE").arg(key).arg(ms(ttl));
    };
    renew(core.keys.node(&me.path), STREAM_TTL);
    renew(core.keys.control(&me.path), STREAM_TTL);
    renew(core.keys.inbox(&me.path, &me.boot_id), INBOX_TTL);
    renew(core.keys.broadcast(&keys::shard(&me.path)), STREAM_TTL);
    for queue in presence::queues(core) {
        renew(queue, STREAM_TTL);
    }
    presence::add_liveness(core, &mut batch);
    let oldest = core.now_ms().saturating_sub(ms(BROADCAST_KEEP));
    batch
        .cmd("XTRIM")
        .arg(core.keys.broadcast(&keys::shard(&me.path)))
        .arg("MINID")
        .arg(format!("{oldest}-0"));
    let answers: Vec<Result<Value, String>> = commands.run(&mut batch).await?;
    for why in answers.into_iter().filter_map(Result::err) {
        tracing::warn!(why, "a slow heartbeat was answered with an error");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_gone_when_fewer_are_there_than_were_made() {
        let number = |n| Ok(Value::Int(n));
        assert!(!is_gone(&[4, 1], &[number(4), number(1)]));
        assert!(is_gone(&[4, 1], &[number(4), number(0)]));
        assert!(!is_gone(&[4], &[Err("no".into())]));
        assert!(!is_gone(&[4], &[]));
    }
}
