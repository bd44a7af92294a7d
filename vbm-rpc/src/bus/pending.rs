//! Calls that wait for an answer.
//!
//! One map behind one lock that is never held across an await: answers come from the reader task, calls from
//! anywhere, and a map operation is shorter than a message to an owning task would be.

use super::{life::Life, signs, stream::Inlet};
use crate::{
    BadInput, Fate, Route,
    bad_input::BadInputs,
    codec::Codec,
    envelope::{self, EndCode, Envelope, Kind},
    limits,
    transport::{Destination, SendError, SendWatch},
};
use bytes::Bytes;
use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::Instant,
};
use uuid::Uuid;
use vbm_core::{Error, NodePath};

/// The final word about a call, from the other side.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) from: NodePath,
    pub(crate) end: End,
    /// What was known of the call when it came.
    pub(crate) life: Option<Box<Life>>,
}

#[derive(Debug)]
pub(crate) enum End {
    Reply(Codec, Bytes),
    Refused(Error),
    /// A refusal whose error cannot be read, and why not.
    Unreadable(String),
    Ended(EndCode, String),
    /// It never left.
    Unsent(SendError),
    /// A stream is complete: how many items it had, and its end value.
    Finished(Codec, u64, Bytes),
    /// This side ended it.
    Fate(Fate),
}

/// How far a request has come on its way out: its caller, the table and the transport look at the same.
pub(crate) struct Sending {
    pending: Arc<Pending>,
    id: Uuid,
    stage: AtomicU8,
    kept_at: OnceLock<Instant>,
}

/// In the queue of this process.
const QUEUED: u8 = 0;
/// Perhaps with the transport.
const WRITING: u8 = 1;
/// The transport keeps it.
const KEPT: u8 = 2;
/// Its caller gave it up in the queue: it never leaves.
const GIVEN_UP: u8 = 3;

impl Sending {
    /// Takes it out of the queue of this process; `false` when it may have left it.
    pub(crate) fn give_up(&self) -> bool {
        let change = self
            .stage
            .compare_exchange(QUEUED, GIVEN_UP, Ordering::SeqCst, Ordering::SeqCst);
        matches!(change, Ok(_) | Err(GIVEN_UP))
    }

    /// The transport said that it keeps it.
    pub(crate) fn is_kept(&self) -> bool {
        self.stage.load(Ordering::SeqCst) == KEPT
    }

    /// When it said so.
    pub(crate) fn kept_at(&self) -> Option<Instant> {
        self.kept_at.get().copied()
    }
}

impl SendWatch for Sending {
    fn writing(&self) -> bool {
        self.stage.fetch_max(WRITING, Ordering::SeqCst) != GIVEN_UP
    }
    fn kept(&self) {
        if self.stage.fetch_max(KEPT, Ordering::SeqCst) < KEPT {
            self.kept_at.get_or_init(Instant::now);
        }
    }
    fn failed(&self, error: SendError) {
        self.pending.unsent(self.id, error);
    }
}

pub(super) enum Waiter {
    One(oneshot::Sender<Answer>),
    Many(mpsc::Sender<Answer>),
    Items(Arc<Inlet>),
}

pub(super) struct Call {
    pub(super) waiter: Waiter,
    pub(super) to: Destination,
    frame: Bytes,
    deadline: Instant,
    attempt: u16,
    sending: Arc<Sending>,
    pub(super) worker: Option<NodePath>,
    /// What else is known of it. Most calls end before anything is.
    pub(super) life: Option<Box<Life>>,
}

impl Call {
    /// When the transport said that it keeps it.
    pub(super) fn kept_at(&self) -> Option<Instant> {
        self.sending.kept_at()
    }
}

/// A call to be sent again.
pub(crate) struct Again {
    pub(crate) to: Destination,
    pub(crate) frame: Bytes,
    pub(crate) deadline: Instant,
}

/// The ids are this side's own and mixed already ([`SeededIds`](vbm_core::SeededIds)).
#[derive(Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(last) = bytes.last_chunk() {
            self.0 ^= u64::from_ne_bytes(*last);
        }
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

pub(super) type Calls = HashMap<Uuid, Call, BuildHasherDefault<IdHasher>>;

#[derive(Default)]
pub(crate) struct Pending {
    calls: Mutex<Calls>,
    /// Tickets that are waited for in this process.
    waits: Mutex<HashMap<Uuid, Wait>>,
    bad: Arc<BadInputs>,
}

const NOT_ASKED: &str = "who sent it was not asked";

/// How many wait for a ticket, and what wakes them.
#[derive(Default)]
struct Wait {
    waiters: usize,
    settled: Arc<Notify>,
}

/// Waits for a ticket that was submitted here; a word from its worker wakes it.
pub(crate) struct Waiting<'a> {
    pending: &'a Pending,
    id: Uuid,
    pub(crate) settled: Arc<Notify>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut waits = self.pending.waits();
        if let Some(wait) = waits.get_mut(&self.id) {
            wait.waiters -= 1;
            if wait.waiters == 0 {
                waits.remove(&self.id);
            }
        }
    }
}

impl Pending {
    pub(super) fn new(bad: Arc<BadInputs>) -> Self {
        Self {
            bad,
            ..Self::default()
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waits(&self) -> MutexGuard<'_, HashMap<Uuid, Wait>> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on a word about this ticket is heard.
    pub(crate) fn wait_for(&self, id: Uuid) -> Waiting<'_> {
        let mut waits = self.waits();
        let wait = waits.entry(id).or_default();
        wait.waiters += 1;
        let settled = wait.settled.clone();
        drop(waits);
        Waiting {
            pending: self,
            id,
            settled,
        }
    }

    /// A call that wants one answer.
    pub(crate) fn one(
        self: &Arc<Self>,
        id: Uuid,
        to: Destination,
        frame: Bytes,
        deadline: Instant,
    ) -> (oneshot::Receiver<Answer>, Arc<Sending>) {
        let (sender, receiver) = oneshot::channel();
        (receiver, self.add(id, Waiter::One(sender), to, frame, deadline))
    }

    /// A broadcast.
    pub(crate) fn many(
        self: &Arc<Self>,
        id: Uuid,
        to: Destination,
        frame: Bytes,
        deadline: Instant,
    ) -> mpsc::Receiver<Answer> {
        let (sender, receiver) = mpsc::channel(limits::BROADCAST_QUEUE_MAX);
        self.add(id, Waiter::Many(sender), to, frame, deadline);
        receiver
    }

    /// A stream.
    pub(super) fn items(
        self: &Arc<Self>,
        id: Uuid,
        to: Destination,
        frame: Bytes,
        deadline: Instant,
    ) -> (Arc<Inlet>, Arc<Sending>) {
        let inlet = Arc::new(Inlet::default());
        let sending = self.add(id, Waiter::Items(inlet.clone()), to, frame, deadline);
        (inlet, sending)
    }

    fn add(
        self: &Arc<Self>,
        id: Uuid,
        waiter: Waiter,
        to: Destination,
        frame: Bytes,
        deadline: Instant,
    ) -> Arc<Sending> {
        let sending = Arc::new(Sending {
            pending: self.clone(),
            id,
            stage: AtomicU8::new(QUEUED),
            kept_at: OnceLock::new(),
        });
        let call = Call {
            waiter,
            to,
            frame,
            deadline,
            attempt: 1,
            sending: sending.clone(),
            worker: None,
            life: None,
        };
        self.lock().insert(id, call);
        sending
    }

    /// The transport did not take it over.
    fn unsent(&self, id: Uuid, error: SendError) {
        let call = self.lock().remove(&id);
        if let Some(Call {
            waiter: Waiter::One(sender),
            to,
            ..
        }) = call
        {
            tracing::trace!(%id, %to, ?error, "not sent");
            let answer = Answer {
                from: NodePath::root(),
                end: End::Unsent(error),
                life: None,
            };
            // An error means that the caller has just given up.
            drop(sender.send(answer));
        }
    }

    /// Nobody waits any more.
    pub(crate) fn remove(&self, id: Uuid) {
        drop(self.lock().remove(&id));
    }

    /// Who said that they had begun.
    pub(crate) fn worker(&self, id: Uuid) -> Option<NodePath> {
        self.lock().get(&id)?.worker.clone()
    }

    /// Something came back for a call. An answer that nobody waits for, or of somebody who was not asked, is dropped and
    /// counted.
    pub(crate) fn incoming(&self, mut envelope: Envelope) {
        let id = envelope.id;
        match envelope.kind {
            Kind::Accepted | Kind::Progress | Kind::Settled => return self.told(envelope),
            _ => {}
        }
        let boot_id = std::mem::take(&mut envelope.boot_id);
        let mut answer = match read_answer(envelope) {
            Ok(answer) => answer,
            Err((what, from)) => return self.odd(what, &from, id, "it ends no call"),
        };
        if let End::Unreadable(why) = &answer.end {
            self.odd(BadInput::Unreadable, &answer.from, id, why);
        }
        let mut calls = self.lock();
        let Some(call) = calls.get_mut(&id) else {
            drop(calls);
            return self.odd(BadInput::NobodyWaits, &answer.from, id, "nobody waits for it");
        };
        if !call.to.may_answer(&answer.from) {
            drop(calls);
            return self.odd(BadInput::NotAsked, &answer.from, id, NOT_ASKED);
        }
        match &call.waiter {
            Waiter::Many(sender) => {
                let full = sender.try_send(answer).is_err();
                drop(calls);
                if full {
                    tracing::warn!(%id, "a reply of a broadcast was dropped: too many wait unread");
                }
            }
            Waiter::One(_) => {
                if let Some(Call {
                    waiter: Waiter::One(sender),
                    life,
                    ..
                }) = calls.remove(&id)
                {
                    drop(calls);
                    answer.life = life;
                    // An error means that the caller has just given up.
                    drop(sender.send(answer));
                }
            }
            // What a second run of a request says does not end the stream of the first.
            Waiter::Items(inlet) if !inlet.is_from(&answer.from, &boot_id) => {}
            Waiter::Items(_) => {
                if let Some(Call {
                    waiter: Waiter::Items(inlet),
                    to,
                    ..
                }) = calls.remove(&id)
                {
                    drop(calls);
                    inlet.end(answer, &to);
                }
            }
        }
    }

    /// A word about a call that does not end it.
    fn told(&self, envelope: Envelope) {
        let id = envelope.id;
        let strange = |call: &Call| !call.to.may_answer(&envelope.caller);
        if self.lock().get(&id).is_some_and(strange) {
            return self.odd(BadInput::NotAsked, &envelope.caller, id, NOT_ASKED);
        }
        match envelope.kind {
            Kind::Accepted => self.accepted(envelope, Instant::now()),
            Kind::Progress => self.progressed(envelope),
            _ => {
                if let Some(wait) = self.waits().get(&id) {
                    wait.settled.notify_waiters();
                }
            }
        }
    }

    /// What must be sent again because the transport may have forgotten it. Broadcasts are not repeated: who was
    /// there then may not be who is there now.
    pub(crate) fn again(&self, now: Instant) -> Vec<Again> {
        let mut again = Vec::new();
        let mut calls = self.lock();
        // In an order that does not depend on the map's: a simulation is repeated by its seed.
        let mut calls: Vec<_> = calls.iter_mut().collect();
        calls.sort_unstable_by_key(|(id, call)| (call.deadline, **id));
        for (_id, call) in calls {
            if !call.sending.is_kept() || call.deadline <= now || matches!(call.waiter, Waiter::Many(_)) {
                continue;
            }
            call.attempt = call.attempt.saturating_add(1);
            let attempt = call.attempt;
            let life = call.life_mut();
            life.attempts = attempt;
            life.silence.heard();
            let ttl = super::millis(call.deadline.saturating_duration_since(now));
            let frame = envelope::next_attempt(&call.frame, call.attempt, ttl);
            // Who has begun knows the request; another one of its service would run it a second time.
            let to = match &call.worker {
                Some(worker) => Destination::Route(Route::node(worker.clone())),
                None => call.to.clone(),
            };
            again.push(Again {
                to,
                frame,
                deadline: call.deadline,
            });
        }
        again
    }

    #[cold]
    fn odd(&self, what: BadInput, from: &NodePath, id: Uuid, why: &str) {
        self.bad.note(
            what,
            from.as_str(),
            format_args!("an answer to {id} is not used: {why}"),
        );
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    /// Ends every wait: the bus is closed.
    pub(crate) fn clear(&self) {
        let calls = std::mem::take(&mut *self.lock());
        for call in calls.into_values() {
            if let Waiter::Items(inlet) = &call.waiter {
                inlet.end(call.lost("this side's bus was shut down".into()), &call.to);
            }
        }
    }
}

/// What a frame says that ends a call; otherwise what is wrong with it, and whose it is.
pub(crate) fn read_answer(envelope: Envelope) -> Result<Answer, (BadInput, NodePath)> {
    let end = match envelope.kind {
        Kind::Reply => Some(End::Reply(envelope.codec, envelope.body)),
        Kind::Refusal => Some(match envelope.codec.decode(&envelope.body) {
            Ok(error) => End::Refused(error),
            Err(why) => End::Unreadable(why),
        }),
        Kind::End => ended(&envelope.body),
        Kind::Finish => {
            signs::split_number(envelope.body).map(|(count, body)| End::Finished(envelope.codec, count, body))
        }
        _ => return Err((BadInput::OutOfPlace, envelope.caller)),
    };
    match end {
        Some(end) => Ok(Answer {
            from: envelope.caller,
            end,
            life: None,
        }),
        None => Err((BadInput::Unreadable, envelope.caller)),
    }
}

/// The body of a frame that ends a call without an answer.
fn ended(body: &[u8]) -> Option<End> {
    let (&code, text) = body.split_first()?;
    let text = String::from_utf8_lossy(text).into_owned();
    Some(End::Ended(EndCode::from_byte(code)?, text))
}
