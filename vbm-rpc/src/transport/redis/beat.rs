//! The heartbeat: renews what lives as long as this process, and looks after the groups it serves.

use super::{
    Core,
    connect::{Commands, Down},
    keys::{self, GROUP, INBOX_TTL, STREAM_TTL},
    lock, pack,
    presence::{self, Claim, Refusal},
};
use crate::{Service, limits::HEARTBEAT_EVERY};
use redis::{Pipeline, Value, cmd, pipe};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, MissedTickBehavior, interval};
use vbm_core::NodePath;

/// Broadcasts are kept this long for readers that lag.
const BROADCAST_KEEP: Duration = Duration::from_secs(600);
/// The most entries taken over from one dead member at one beat.
const TAKEOVER_MAX_ENTRIES: usize = 64;
/// An entry that somebody took within this time is not taken over: two do not take it one after the other.
const TAKEOVER_MIN_IDLE: Duration = Duration::from_secs(1);
/// A request that was delivered this often without being completed goes to the dead letters.
const DELIVERIES_MAX: i64 = 5;
/// The most dead letters of one queue.
const DEAD_LETTERS_MAX: usize = 1_000;

pub(super) async fn run(core: Arc<Core>) {
    let mut beats = interval(HEARTBEAT_EVERY);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    beats.tick().await;
    loop {
        tokio::select! {
            // Cancel safe: a tick missed here is not needed any more.
            _at = beats.tick() => {}
            () = core.retired.cancelled() => return,
        }
        let Some(mut commands) = core.conn.borrow().clone() else {
            continue;
        };
        match beat(&core, &mut commands).await {
            Ok(()) => {}
            Err(Down(why)) => {
                tracing::debug!(why, "a heartbeat was not answered");
                core.probe();
            }
        }
    }
}

async fn beat(core: &Arc<Core>, commands: &mut Commands) -> Result<(), Down> {
    let mut batch = pipe();
    batch.add_command(cmd("TIME"));
    presence::add_presence(core, &mut batch, Claim::Keep);
    add_renewals(core, &mut batch);
    let asked = Instant::now();
    let answers = commands.run(&mut batch).await?;
    presence::set_clock(core, asked, answers.first());
    match answers
        .get(1)
        .map(|answer| presence::read_presence(answer, Claim::Keep))
    {
        Some(Err(Refusal::Displaced(by))) => {
            core.displaced(&by);
            return Ok(());
        }
        Some(Err(Refusal::Redis(why))) => tracing::warn!(why, "presence was not renewed"),
        Some(Ok(())) | None => {}
    }
    let gone = answers
        .iter()
        .skip(2)
        .any(|answer| matches!(answer, Ok(Value::Int(0))));
    if gone {
        tracing::warn!("queues of this process are gone from Redis: made again");
        if let Err(Refusal::Displaced(by)) = presence::register(core, commands, Claim::Keep).await? {
            core.displaced(&by);
            return Ok(());
        }
        core.generations.send_modify(|generation| *generation += 1);
    }
    let mut batch = pipe();
    presence::add_liveness(core, &mut batch);
    add_trims(core, &mut batch);
    for why in commands
        .run(&mut batch)
        .await?
        .into_iter()
        .filter_map(Result::err)
    {
        tracing::warn!(why, "a heartbeat was answered with an error");
    }
    for (scope, service) in presence::served(&core.me) {
        look_after(core, commands, &scope, &service).await?;
    }
    Ok(())
}

/// Each is answered with 0 when the key is gone.
fn add_renewals(core: &Core, batch: &mut Pipeline) {
    let ms = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    let me = &core.me;
    let mut renew = |key: String, ttl| {
        batch.cmd("PEXPIRE").arg(key).arg(ms(ttl));
    };
    renew(core.keys.node(&me.path), STREAM_TTL);
    renew(core.keys.inbox(&me.path, &me.boot_id), INBOX_TTL);
    renew(core.keys.broadcast(&keys::shard(&me.path)), STREAM_TTL);
    for (scope, service) in presence::served(me) {
        renew(core.keys.any(&scope, &service), STREAM_TTL);
    }
}

fn add_trims(core: &Core, batch: &mut Pipeline) {
    let me = &core.me;
    let oldest = core
        .now_ms()
        .saturating_sub(u64::try_from(BROADCAST_KEEP.as_millis()).unwrap_or(u64::MAX));
    let broadcast = core.keys.broadcast(&keys::shard(&me.path));
    batch
        .cmd("XTRIM")
        .arg(broadcast)
        .arg("MINID")
        .arg(format!("{oldest}-0"));
    let read = lock(&core.inbox_cursor).clone();
    batch
        .cmd("XTRIM")
        .arg(core.keys.inbox(&me.path, &me.boot_id))
        .arg("MINID")
        .arg(read);
}

/// Takes over what dead consumers of a group had taken, and forgets those that have nothing.
async fn look_after(
    core: &Arc<Core>,
    commands: &mut Commands,
    scope: &NodePath,
    service: &Service,
) -> Result<(), Down> {
    let key: Arc<str> = core.keys.any(scope, service).into();
    let mut info = cmd("XINFO");
    info.arg("CONSUMERS").arg(&*key).arg(GROUP);
    let Ok(Value::Array(consumers)) = commands.one(info).await? else {
        return Ok(());
    };
    let others: Vec<(String, i64)> = consumers
        .iter()
        .filter_map(|consumer| {
            let name = pack::text(pack::field(consumer, "name")?)?;
            Some((name.to_owned(), pack::number(pack::field(consumer, "pending")?)?))
        })
        .filter(|(name, _)| *name != core.consumer)
        .collect();
    if others.is_empty() {
        return Ok(());
    }
    let runs: Vec<_> = others
        .iter()
        .map(|(name, _)| match keys::parse_consumer(name) {
            Some((path, boot_id)) => (path, boot_id.to_owned()),
            // No consumer of ours: counts as dead, since no member has the empty boot id.
            None => (NodePath::root(), String::new()),
        })
        .collect();
    let alive = presence::runs_alive(core, commands, &runs).await?;
    for ((name, pending), alive) in others.iter().zip(alive) {
        match (alive, *pending) {
            (true, _) => {}
            (false, 0) => {
                let mut forget = cmd("XGROUP");
                forget.arg("DELCONSUMER").arg(&*key).arg(GROUP).arg(name);
                // An error means that the group is gone too.
                drop(commands.one(forget).await?);
            }
            (false, _) => take_over(core, commands, (scope, service), &key, name).await?,
        }
    }
    Ok(())
}

async fn take_over(
    core: &Arc<Core>,
    commands: &mut Commands,
    (scope, service): (&NodePath, &Service),
    key: &Arc<str>,
    dead: &str,
) -> Result<(), Down> {
    let min_idle = u64::try_from(TAKEOVER_MIN_IDLE.as_millis()).unwrap_or(u64::MAX);
    let mut pending = cmd("XPENDING");
    pending
        .arg(&**key)
        .arg(GROUP)
        .arg("IDLE")
        .arg(min_idle)
        .arg("-")
        .arg("+")
        .arg(TAKEOVER_MAX_ENTRIES)
        .arg(dead);
    let Ok(Value::Array(pending)) = commands.one(pending).await? else {
        return Ok(());
    };
    let deliveries: Vec<(String, i64)> = pending
        .iter()
        .filter_map(|entry| match entry {
            Value::Array(parts) => Some((
                pack::text(parts.first()?)?.to_owned(),
                pack::number(parts.get(3)?)?,
            )),
            _ => None,
        })
        .collect();
    if deliveries.is_empty() {
        return Ok(());
    }
    let mut claim = cmd("XCLAIM");
    claim.arg(&**key).arg(GROUP).arg(&core.consumer).arg(min_idle);
    for (id, _) in &deliveries {
        claim.arg(id);
    }
    let Ok(claimed) = commands.one(claim).await? else {
        return Ok(());
    };
    let poison = |id: &str| {
        deliveries
            .iter()
            .any(|(known, times)| known == id && *times >= DELIVERIES_MAX)
    };
    let entries = pack::entries(claimed);
    tracing::info!(%key, dead, entries = entries.len(), "requests of a dead member were taken over");
    for entry in entries {
        if poison(&entry.id) {
            bury(core, commands, (scope, service), key, entry).await?;
            continue;
        }
        for delivery in core.deliveries(key, entry, true, true) {
            if !core.inbound.request(delivery).await {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Moves an entry that killed its workers to the dead letters.
async fn bury(
    core: &Arc<Core>,
    commands: &mut Commands,
    (scope, service): (&NodePath, &Service),
    key: &Arc<str>,
    entry: pack::Entry,
) -> Result<(), Down> {
    tracing::error!(%key, id = entry.id, "a request was delivered {DELIVERIES_MAX} times and never completed: given up");
    let letters = core.keys.dead_letters(scope, service);
    let mut batch = pipe();
    let add = batch
        .cmd("XADD")
        .arg(&letters)
        .arg("MAXLEN")
        .arg("~")
        .arg(DEAD_LETTERS_MAX)
        .arg("*");
    add.arg(keys::FIELD_FRAMES)
        .arg(&pack::pack(entry.frames.iter())[..]);
    batch
        .cmd("PEXPIRE")
        .arg(&letters)
        .arg(u64::try_from(STREAM_TTL.as_millis()).unwrap_or(u64::MAX));
    commands.run(&mut batch).await?;
    core.complete(key.clone(), entry.id, true);
    Ok(())
}
