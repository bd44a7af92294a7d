//! Calls that wait for an answer.
//!
//! One map behind one lock that is never held across an await: answers come from the reader task, calls from
//! anywhere, and a map operation is shorter than a message to an owning task would be.

use crate::{
    Route,
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
        Arc, Mutex, MutexGuard, PoisonError,
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
}

#[derive(Debug)]
pub(crate) enum End {
    Reply(Codec, Bytes),
    Refused(Error),
    Ended(EndCode, String),
    /// It never left.
    Unsent(SendError),
}

/// How far a request has come on its way out: its caller, the table and the transport look at the same.
pub(crate) struct Sending {
    pending: Arc<Pending>,
    id: Uuid,
    stage: AtomicU8,
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
}

impl SendWatch for Sending {
    fn writing(&self) -> bool {
        self.stage.fetch_max(WRITING, Ordering::SeqCst) != GIVEN_UP
    }
    fn kept(&self) {
        self.stage.fetch_max(KEPT, Ordering::SeqCst);
    }
    fn failed(&self, error: SendError) {
        self.pending.unsent(self.id, error);
    }
}

enum Waiter {
    One(oneshot::Sender<Answer>),
    Many(mpsc::Sender<Answer>),
}

struct Call {
    waiter: Waiter,
    to: Destination,
    frame: Bytes,
    deadline: Instant,
    attempt: u16,
    sending: Arc<Sending>,
    worker: Option<NodePath>,
}

/// A call to be sent again.
pub(crate) struct Again {
    pub(crate) to: Destination,
    pub(crate) frame: Bytes,
    pub(crate) deadline: Instant,
}

/// The ids are this side's own and mixed already ([`SeededIds`](vbm_core::SeededIds)).
#[derive(Default)]
struct IdHasher(u64);

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

type Calls = HashMap<Uuid, Call, BuildHasherDefault<IdHasher>>;

#[derive(Default)]
pub(crate) struct Pending {
    calls: Mutex<Calls>,
    /// Tickets that are waited for in this process.
    waits: Mutex<HashMap<Uuid, Wait>>,
}

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
    fn lock(&self) -> MutexGuard<'_, Calls> {
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
        });
        let call = Call {
            waiter,
            to,
            frame,
            deadline,
            attempt: 1,
            sending: sending.clone(),
            worker: None,
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

    /// Something came back for a call. An answer nobody waits for is dropped.
    pub(crate) fn incoming(&self, envelope: Envelope) {
        let id = envelope.id;
        let stranger = |call: &Call| !call.to.may_answer(&envelope.caller);
        if self.lock().get(&id).is_some_and(stranger) {
            tracing::warn!(%id, from = %envelope.caller, "an answer of somebody who was not asked was dropped");
            return;
        }
        if envelope.kind == Kind::Settled {
            if let Some(wait) = self.waits().get(&id) {
                wait.settled.notify_waiters();
            }
            return;
        }
        if envelope.kind == Kind::Accepted {
            if let Some(call) = self.lock().get_mut(&id) {
                call.worker = Some(envelope.caller);
            }
            return;
        }
        let Some(answer) = read_answer(envelope) else {
            return;
        };
        let mut calls = self.lock();
        match calls.get(&id).map(|call| &call.waiter) {
            Some(Waiter::Many(sender)) => {
                let full = sender.try_send(answer).is_err();
                drop(calls);
                if full {
                    tracing::warn!(%id, "a reply of a broadcast was dropped: too many wait unread");
                }
            }
            Some(Waiter::One(_)) => {
                if let Some(Call {
                    waiter: Waiter::One(sender),
                    ..
                }) = calls.remove(&id)
                {
                    drop(calls);
                    // An error means that the caller has just given up.
                    drop(sender.send(answer));
                }
            }
            None => {}
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

    /// Ends every wait: the bus is closed.
    pub(crate) fn clear(&self) {
        let calls = std::mem::take(&mut *self.lock());
        drop(calls);
    }
}

pub(crate) fn read_answer(envelope: Envelope) -> Option<Answer> {
    let end = match envelope.kind {
        Kind::Reply => End::Reply(envelope.codec, envelope.body),
        Kind::Refusal => End::Refused(envelope.codec.decode(&envelope.body).unwrap_or_else(|why| {
            Error::internal("the other side refused with an error that cannot be read", why)
                .with_outcome(vbm_core::Outcome::Unknown)
        })),
        Kind::End => {
            let (&code, text) = envelope.body.split_first()?;
            End::Ended(
                EndCode::from_byte(code)?,
                String::from_utf8_lossy(text).into_owned(),
            )
        }
        Kind::Request
        | Kind::Cast
        | Kind::Accepted
        | Kind::Progress
        | Kind::Cancel
        | Kind::Submit
        | Kind::Settled => return None,
    };
    Some(Answer {
        from: envelope.caller,
        end,
    })
}
