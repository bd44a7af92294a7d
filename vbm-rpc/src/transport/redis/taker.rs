//! The taker: requests for any member of the services that this one offers, on a blocking connection of its own.
//!
//! It takes only while handlers are idle, and no more than these can run, so that a busy member leaves the work to idle ones. The control lanes of the same
//! queues have a taker of their own, which waits for the room of that lane alone. In a cluster there is one
//! for each slot of the queues: a blocking read names keys of one slot only.

use super::{
    Core,
    connect::{Blocking, Down},
    keys::GROUP,
    pack, presence, reader,
};
use crate::Service;
use redis::cmd;
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::time::Instant;
use vbm_core::NodePath;

/// How long the server holds a read when there is nothing.
const BLOCK: Duration = Duration::from_secs(2);
/// The most entries of one stream in one read.
const TAKE_MAX_ENTRIES: usize = 16;
/// How many entries to take for so much room: each may hold [`pack::PACK_MAX_SHARED`] requests.
fn entries_for(room: usize) -> usize {
    (room / pack::PACK_MAX_SHARED).clamp(1, TAKE_MAX_ENTRIES)
}

/// From the first request that this run of the process took and has not completed.
const MINE: &str = "0";
/// Requests that nobody has taken.
const NEW: &str = ">";

/// The queues of each lane: control, then all others.
pub(super) fn lanes(core: &Core) -> [Vec<Arc<str>>; 2] {
    let served = presence::served(&core.me);
    let control = served
        .iter()
        .map(|(scope, service)| core.keys.any_control(scope, service).into());
    let bulk = served
        .iter()
        .map(|(scope, service)| core.keys.any(scope, service).into());
    [control.collect(), bulk.collect()]
}

/// Takes from these queues, which one blocking read may name.
pub(super) async fn run(core: Arc<Core>, keys: Vec<Arc<str>>) {
    // Not cancel safe for single entries: those taken at this moment go to another member.
    core.retired.run_until_cancelled(take_all(&core, &keys)).await;
}

async fn take_all(core: &Arc<Core>, keys: &[Arc<str>]) {
    let Some(first) = keys.first() else { return };
    let all = presence::served(&core.me);
    let of = |key: &Arc<str>| {
        let mut all = all.iter();
        all.find(|(scope, service)| core.keys.lanes(scope, service).iter().any(|lane| **lane == **key))
            .cloned()
    };
    let served: Vec<(NodePath, Service)> = keys.iter().filter_map(of).collect();
    let control = served
        .iter()
        .any(|(scope, service)| core.keys.any_control(scope, service) == **first);
    let queues = Queues {
        served: &served,
        keys,
        control,
    };
    let mut attempt = 0;
    loop {
        match core.connector.blocking(first).await {
            Ok(mut connection) => match take_until_down(core, &mut connection, queues, &mut attempt).await {
                Ok(()) => return,
                Err(Down(why)) => tracing::debug!(why, "the taker's connection broke"),
            },
            Err(Down(why)) => tracing::debug!(attempt, why, "the taker cannot connect"),
        }
        core.probe();
        core.connector.pause(attempt, core.seed ^ 2).await;
        attempt += 1;
    }
}

/// What one taker takes from: queues of one lane, with the scope and service of each.
#[derive(Clone, Copy)]
struct Queues<'a> {
    served: &'a [(NodePath, Service)],
    keys: &'a [Arc<str>],
    control: bool,
}

/// `Ok` when the bus takes no more.
async fn take_until_down(
    core: &Arc<Core>,
    connection: &mut Blocking,
    Queues {
        served,
        keys,
        control,
    }: Queues<'_>,
    attempt: &mut u32,
) -> Result<(), Down> {
    // First what was taken and may have been lost with the last connection, page by page, then what is new.
    let mut cursors: Vec<String> = vec![MINE.into(); keys.len()];
    let mut withheld = false;
    let mut reread = core.reread.load(Ordering::SeqCst);
    loop {
        let room = match control {
            true => core.inbound.wait_for_urgent_room().await,
            false => core.inbound.wait_for_room().await,
        };
        if !room {
            return Ok(());
        }
        let wanted = core.reread.load(Ordering::SeqCst);
        if wanted != reread {
            reread = wanted;
            cursors.fill(MINE.into());
        }
        let mut read = cmd("XREADGROUP");
        read.arg("GROUP")
            .arg(GROUP)
            .arg(&core.consumer)
            .arg("COUNT")
            .arg(match control {
                true => TAKE_MAX_ENTRIES,
                false => entries_for(core.inbound.room()),
            });
        read.arg("BLOCK")
            .arg(u64::try_from(BLOCK.as_millis()).unwrap_or(0))
            .arg("STREAMS");
        for key in keys {
            read.arg(&**key);
        }
        read.arg(&cursors);
        let asked = Instant::now();
        let answer = match connection.read(&read, BLOCK).await? {
            Ok(answer) => answer,
            Err(why) if why.contains("NOGROUP") => {
                tracing::warn!("Redis has forgotten a group: it is made again");
                reader::register_again(core).await?;
                core.connector.pause(*attempt, core.seed ^ 3).await;
                *attempt += 1;
                continue;
            }
            Err(why) => return Err(Down(why)),
        };
        *attempt = 0;
        let mut any = false;
        for (key, mut entries) in pack::streams(answer) {
            let Some(at) = keys.iter().position(|known| **known == *key) else {
                continue;
            };
            let (Some(key), Some(cursor), Some((scope, service))) =
                (keys.get(at), cursors.get_mut(at), served.get(at))
            else {
                continue;
            };
            if core.withhold(&mut entries) {
                withheld = true;
            }
            let again = cursor != NEW;
            if let (Some(last), true) = (entries.last(), again) {
                cursor.clone_from(&last.id);
                any = true;
            }
            // Whoever wrote it took it back: nothing is left but its place in the list of this consumer.
            let (gone, entries): (Vec<_>, Vec<_>) = entries.into_iter().partition(|entry| entry.gone);
            for entry in gone {
                core.complete(key.clone(), entry.id, true);
            }
            for entry in core.admit_shared(key, (scope, service), entries).await? {
                for delivery in core.deliveries(key, entry, (asked, 1), true, again) {
                    if !core.inbound.request(delivery).await {
                        return Ok(());
                    }
                }
            }
        }
        if !any {
            cursors.fill(NEW.into());
        }
        if withheld && core.present().await {
            // What was withheld is this member's, unless somebody has taken it over or back.
            withheld = false;
            cursors.fill(MINE.into());
        }
    }
}
