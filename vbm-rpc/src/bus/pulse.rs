//! Signs of life, on both sides.
//!
//! ```text
//!   every BEAT_EVERY, one frame to each process concerned:
//!     worker --- "I work on r1, r2, .." ------> caller     silent for some beats: its calls end as Lost
//!     reader --- "I read s1 up to item n, .." -> worker    silent for some beats: its handlers are told
//!     myself --- echo --------------------------> my inbox  a beat counts only when this came back
//! ```
//!
//! The echo proves that the transport and the inbox work before anybody else is accused: an outage of the server, a failover
//! or a pause of this process counts for nobody. Requests shorter than [`ACCEPT_AFTER`](limits::ACCEPT_AFTER) are never in
//! a beat. The second task asks presence about requests for one node that nobody has begun.

use super::{
    outlet::{Outlet, Outlets},
    pending::Pending,
    running::Running,
    signs::{self, Sign},
    stats::Counters,
};
use crate::{
    MemberInfo,
    codec::Codec,
    envelope::{Envelope, Kind, Parts},
    limits,
    transport::{Destination, Link},
};
use bytes::Bytes;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use vbm_core::{Epoch, NodePath};

/// The most strays that are remembered between two beats.
const STRAYS_MAX: usize = 256;
/// A beat that could not be written in this time is not worth writing.
const BEAT_TTL: Duration = limits::BEAT_EVERY.saturating_mul(2);
/// How long a cancel is worth delivering.
const CANCEL_TTL: Duration = Duration::from_secs(60);

/// Who sends a frame that is no request.
pub(crate) struct Stamp {
    path: NodePath,
    boot_id: String,
    epoch: Epoch,
}

impl Stamp {
    pub(super) fn of(me: &MemberInfo) -> Self {
        Self {
            path: me.path.clone(),
            boot_id: me.boot_id.clone(),
            epoch: me.epoch,
        }
    }

    pub(super) fn frame(&self, kind: Kind, codec: Codec, id: Uuid, body: impl AsRef<[u8]>) -> Bytes {
        Parts {
            kind,
            flags: 0,
            codec,
            attempt: 1,
            id,
            ttl_ms: 0,
            epoch: self.epoch,
            method: "",
            caller: &self.path,
            boot_id: &self.boot_id,
            traceparent: None,
            idempotency_key: None,
            body: body.as_ref(),
        }
        .encode()
    }

    fn inbox(&self) -> Destination {
        Destination::Inbox {
            path: self.path.clone(),
            boot_id: self.boot_id.clone(),
        }
    }
}

/// The inbox of who sent a frame.
pub(super) fn inbox_of(envelope: &Envelope) -> Destination {
    Destination::Inbox {
        path: envelope.caller.clone(),
        boot_id: envelope.boot_id.clone(),
    }
}

/// Running requests of one caller; those that stream, with their outlet.
type Works = BTreeMap<Uuid, Option<Arc<Outlet>>>;

/// Requests that run here for longer than a moment, by whom they are for.
#[derive(Default)]
pub(crate) struct Working(Mutex<BTreeMap<Destination, Works>>);

/// One of them; dropping it takes it off the table.
pub(super) struct Work {
    working: Arc<Working>,
    inbox: Destination,
    id: Uuid,
}

impl Working {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Destination, Works>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin(
        self: &Arc<Self>,
        inbox: &Destination,
        id: Uuid,
        outlet: Option<Arc<Outlet>>,
    ) -> Work {
        self.lock().entry(inbox.clone()).or_default().insert(id, outlet);
        Work {
            working: self.clone(),
            inbox: inbox.clone(),
            id,
        }
    }

    fn signs(&self, mail: &mut Mail) {
        for (inbox, works) in self.lock().iter() {
            let signs = works.iter().map(|(&id, outlet)| Sign::Works {
                id,
                sent: outlet.as_ref().map_or(0, |outlet| outlet.sent()),
            });
            mail.entry(inbox.clone()).or_default().extend(signs);
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let mut working = self.working.lock();
        if let Some(works) = working.get_mut(&self.inbox) {
            works.remove(&self.id);
            if works.is_empty() {
                working.remove(&self.inbox);
            }
        }
    }
}

/// What goes to whom at one beat, in an order that is the same each time: a simulation is repeated by its seed.
pub(super) type Mail = BTreeMap<Destination, Vec<Sign>>;

/// What comes in besides requests, and who is to know.
pub(crate) struct Signals {
    pub(super) pending: Arc<Pending>,
    pub(super) running: Arc<Running>,
    counters: Arc<Counters>,
    pub(super) outlets: Arc<Outlets>,
    pub(super) working: Arc<Working>,
    /// Our own beat came back.
    echoed: AtomicBool,
    /// Items of streams that nobody reads here: who sends them, and which.
    strays: Mutex<BTreeMap<Uuid, Destination>>,
}

impl Signals {
    pub(super) fn new(pending: Arc<Pending>, counters: Arc<Counters>) -> Self {
        Self {
            pending,
            running: Arc::default(),
            counters,
            outlets: Arc::default(),
            working: Arc::default(),
            echoed: AtomicBool::new(false),
            strays: Mutex::default(),
        }
    }

    /// A frame of the inbox, or a cancel. Never waits.
    pub(super) fn incoming(&self, frame: &Bytes) {
        match Envelope::decode(frame) {
            Ok(envelope) => match envelope.kind {
                Kind::Cancel => self.running.cancel(envelope.id),
                Kind::Beat => self.beat(&envelope),
                Kind::Item => {
                    let (id, from) = (envelope.id, inbox_of(&envelope));
                    if !self.pending.item(envelope) {
                        self.stray(id, from);
                    }
                }
                _ => self.pending.incoming(envelope),
            },
            Err(error) => {
                let detail = format_args!("{} bytes were skipped: {error}", frame.len());
                self.counters
                    .bad
                    .note(error.kind(), "answers and cancels", detail);
            }
        }
    }

    fn beat(&self, envelope: &Envelope) {
        for sign in signs::decode(&envelope.body) {
            match sign {
                Sign::Works { id, sent } => {
                    if !self.pending.works(id, envelope, sent) {
                        self.stray(id, inbox_of(envelope));
                    }
                }
                Sign::Reads { id, until } => self.outlets.reads(id, until),
                Sign::Echo => self.echoed.store(true, Ordering::Release),
            }
        }
    }

    /// Its sender is told at the next beat that nobody reads it.
    fn stray(&self, id: Uuid, from: Destination) {
        let mut strays = self.strays.lock().unwrap_or_else(PoisonError::into_inner);
        if strays.len() < STRAYS_MAX {
            strays.insert(id, from);
        }
    }

    fn take_strays(&self) -> BTreeMap<Uuid, Destination> {
        std::mem::take(&mut *self.strays.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Beats until the bus has ended.
pub(super) async fn run(
    signals: Arc<Signals>,
    link: Arc<dyn Link>,
    stamp: Arc<Stamp>,
    ended: CancellationToken,
) {
    let mut beats = interval(limits::BEAT_EVERY);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = ended.cancelled() => return,
            // Cancel safe: a tick missed here is not needed any more.
            _at = beats.tick() => {}
        }
        if signals.echoed.swap(false, Ordering::AcqRel) {
            signals.outlets.missed();
            for (id, worker) in signals.pending.missed(Instant::now()) {
                cancel(&*link, &stamp, id, worker);
            }
        }
        for (id, sender) in signals.take_strays() {
            cancel(&*link, &stamp, id, sender);
        }
        let mut mail = Mail::new();
        signals.working.signs(&mut mail);
        let watching = signals.pending.signs(&mut mail);
        if watching || !signals.outlets.is_empty() {
            mail.entry(stamp.inbox()).or_default().push(Sign::Echo);
        }
        for (inbox, signs) in mail {
            for part in signs.chunks(limits::BEAT_MAX_SIGNS) {
                let frame = stamp.frame(Kind::Beat, Codec::MessagePack, Uuid::nil(), signs::encode(part));
                if !link.try_post(inbox.clone(), frame, BEAT_TTL) {
                    tracing::debug!(%inbox, "no room for a beat");
                }
            }
        }
    }
}

/// Tells who works on a request, through its inbox, that nobody waits for it.
pub(super) fn cancel(link: &dyn Link, stamp: &Stamp, id: Uuid, inbox: Destination) {
    let frame = stamp.frame(Kind::Cancel, Codec::MessagePack, id, Bytes::new());
    if !link.try_post(inbox, frame, CANCEL_TTL) {
        tracing::debug!(%id, "no room to send a cancel");
    }
}

/// Looks for the nodes whose requests nobody has begun, and ends the requests of those that are gone.
pub(super) async fn look(pending: Arc<Pending>, link: Arc<dyn Link>, ended: CancellationToken) {
    let mut turns = interval(limits::HEARTBEAT_EVERY);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut absent: BTreeMap<NodePath, u32> = BTreeMap::new();
    for turn in 0usize.. {
        tokio::select! {
            () = ended.cancelled() => return,
            // Cancel safe: a turn missed here is not needed any more.
            _at = turns.tick() => {}
        }
        let Some(before) = Instant::now().checked_sub(limits::PRESENCE_LOOK_AFTER) else {
            continue;
        };
        let waited_for = pending.unbegun(before);
        absent.retain(|path, _| waited_for.contains(path));
        for path in choose(&waited_for, &absent, turn) {
            // Cancel safe: a question is only asked.
            let Some(answer) = ended.run_until_cancelled(link.members(&path)).await else {
                return;
            };
            match answer {
                Ok(members) if members.iter().any(|member| member.path == path) => {
                    absent.remove(&path);
                }
                Ok(_) => {
                    let looks = absent.entry(path.clone()).or_default();
                    *looks += 1;
                    if *looks >= limits::ABSENT_LOOKS {
                        absent.remove(&path);
                        pending.gone(&path, before);
                    }
                }
                Err(error) => tracing::debug!(%error, %path, "nobody can say whether a node is there"),
            }
        }
    }
}

/// Those that were absent before come first, so that each is looked at in a row; the others have their turns.
fn choose(waited_for: &BTreeSet<NodePath>, absent: &BTreeMap<NodePath, u32>, turn: usize) -> Vec<NodePath> {
    let (missing, mut others): (Vec<_>, Vec<_>) = waited_for
        .iter()
        .cloned()
        .partition(|path| absent.contains_key(path));
    if !others.is_empty() {
        let places = limits::PRESENCE_LOOKS_MAX.saturating_sub(missing.len());
        let from = turn.wrapping_mul(places) % others.len();
        others.rotate_left(from);
    }
    missing
        .into_iter()
        .chain(others)
        .take(limits::PRESENCE_LOOKS_MAX)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_was_absent_is_looked_at_again_and_everybody_has_a_turn() {
        let all: BTreeSet<NodePath> = (0..40).map(|n| format!("n{n}").parse().unwrap()).collect();
        let absent = BTreeMap::from([("n39".parse().unwrap(), 1)]);
        let mut seen = BTreeSet::new();
        for turn in 0..3 {
            let chosen = choose(&all, &absent, turn);
            assert_eq!(chosen.len(), limits::PRESENCE_LOOKS_MAX);
            assert_eq!(chosen[0].to_string(), "n39");
            seen.extend(chosen);
        }
        assert_eq!(seen, all);
        assert!(choose(&BTreeSet::new(), &BTreeMap::new(), 7).is_empty());
    }
}
