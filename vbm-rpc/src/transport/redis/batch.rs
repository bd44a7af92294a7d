//! A plan as commands of Redis. [`settle`](super::writer) reads the answers in the same order.

use super::{
    admin::HOP_FIELDS,
    attachment::{Core, lock},
    keys::{FIELD_FRAMES, FIELD_SCOPE, FIELD_SEAL, FIELD_SENT, FIELD_SERVICE, GROUP},
    op::{Note, Target},
    pack,
    plan::Group,
    scripts,
};
use crate::limits::{HOPS_MAX, HOPS_TTL};
use redis::Pipeline;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// The most entries of a reply inbox; its reader trims it at each heartbeat.
const INBOX_MAX_ENTRIES: usize = 16_384;
/// What was held longer than this is completed only if it was not taken over meanwhile: half of the shortest time after
/// which an entry is.
const FENCE_AFTER: Duration = Duration::from_millis(500);

pub(super) fn stream_key(core: &Core, target: &Target) -> String {
    match target {
        Target::Control(path) => core.keys.control(path),
        Target::Node(path) => core.keys.node(path),
        Target::Any { scope, service } => core.keys.any(scope, service),
        Target::AnyControl { scope, service } => core.keys.any_control(scope, service),
        Target::Shard { shard, .. } => core.keys.broadcast(shard),
        Target::Inbox { path, boot_id } => core.keys.inbox(path, boot_id),
    }
}

/// The commands that record a hop; gives how many.
pub(super) fn add_note(core: &Core, batch: &mut Pipeline, note: &Note) -> usize {
    let key = core.keys.hops(note.call);
    let [stage, by, detail] = HOP_FIELDS;
    let add = batch
        .cmd("XADD")
        .arg(&key)
        .arg("MAXLEN")
        .arg("~")
        .arg(HOPS_MAX)
        .arg("*");
    add.arg(stage)
        .arg(note.stage.as_str())
        .arg(by)
        .arg(&note.by)
        .arg(detail)
        .arg(&note.detail);
    batch
        .cmd("PEXPIRE")
        .arg(&key)
        .arg(u64::try_from(HOPS_TTL.as_millis()).unwrap_or(u64::MAX));
    2
}

/// Completes entries of a group: at once what was held for a short time; if it is still ours what was held longer; not
/// at all what is known to be another one's.
pub(super) fn add_completions(core: &Core, batch: &mut Pipeline, key: &Arc<str>, ids: &[String]) {
    let (mut fresh, mut old) = (Vec::new(), Vec::new());
    let held = lock(&core.held);
    let entries = held.get(key);
    for id in ids {
        match entries.and_then(|entries| entries.get(id)) {
            Some(entry) if entry.lost => {}
            Some(entry) if entry.asked.elapsed() > FENCE_AFTER => old.push(id),
            _ => fresh.push(id),
        }
    }
    drop(held);
    if !fresh.is_empty() {
        batch.cmd("XACK").arg(&**key).arg(GROUP).arg(&fresh);
        batch.cmd("XDEL").arg(&**key).arg(&fresh);
    }
    if !old.is_empty() {
        let eval = batch.cmd("EVAL").arg(scripts::COMPLETE_HELD).arg(1).arg(&**key);
        eval.arg(GROUP).arg(&core.consumer).arg(&old);
    }
}

/// The command that asks how many are there, where that is asked with each batch.
pub(super) fn ask_who_is_there(core: &Core, batch: &mut Pipeline, target: &Target) {
    match target {
        Target::Control(path) | Target::Node(path) => {
            batch.cmd("EXISTS").arg(core.keys.presence(path));
        }
        Target::Any { scope, service } | Target::AnyControl { scope, service } => {
            batch
                .cmd("ZCOUNT")
                .arg(core.keys.alive(scope, Some(service)))
                .arg(core.now_ms())
                .arg("+inf");
        }
        Target::Shard { .. } | Target::Inbox { .. } => {}
    }
}

/// The commands of one group: is somebody there (unless that is believed), then its entries. `settle` reads the answers in the same order.
pub(super) fn add_group(core: &Core, batch: &mut Pipeline, group: &Group) {
    if group.looks {
        ask_who_is_there(core, batch, &group.target);
    }
    let key = stream_key(core, &group.target);
    if group.asks {
        batch.cmd("XLEN").arg(&key);
    }
    let now = Instant::now();
    for chunk in &group.chunks {
        let ops = group.ops[chunk.clone()].iter();
        let frames = pack::pack_within(ops.map(|op| (&op.frame, op.until.saturating_duration_since(now))));
        let add = batch.cmd("XADD").arg(&key).arg("NOMKSTREAM");
        if let Target::Inbox { .. } = &group.target {
            add.arg("MAXLEN").arg("~").arg(INBOX_MAX_ENTRIES);
        }
        add.arg("*").arg(FIELD_FRAMES).arg(&frames[..]);
        if let Some(sent) = core.sent_now().filter(|_| group.target.is_of_requests()) {
            add.arg(FIELD_SENT).arg(sent);
        }
        if let Some(guard) = &core.guard {
            let seal = guard.seal(&group.target, &key, &frames, core.now_ms());
            add.arg(FIELD_SEAL).arg(seal);
        }
        if let Target::Shard { scope, service, .. } = &group.target {
            add.arg(FIELD_SCOPE)
                .arg(scope.to_string())
                .arg(FIELD_SERVICE)
                .arg(service.as_str());
        }
    }
}
