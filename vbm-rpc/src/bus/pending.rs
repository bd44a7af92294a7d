//! Calls that wait for an answer.
//!
//! One map behind one lock that is never held across an await: answers come from the reader task, calls from
//! anywhere, and a map operation is shorter than a message to an owning task would be.

use super::{life::Life, signs, stream::Inlet};
use crate::{
    Fate, Route,
    codec::Codec,
    envelope::{self, EndCode, Envelope, Kind},
    limits,
    transport::Destination,
};
use bytes::Bytes;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::{
    sync::{mpsc, oneshot},
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
    pub(crate) life: Life,
}

#[derive(Debug)]
pub(crate) enum End {
    Reply(Codec, Bytes),
    Refused(Error),
    Ended(EndCode, String),
    /// A stream is complete: how many items it had, and its end value.
    Finished(Codec, u64, Bytes),
    /// This side ended it.
    Fate(Fate),
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
    /// The transport said that it keeps the frame.
    pub(super) sent: bool,
    pub(super) worker: Option<NodePath>,
    pub(super) life: Life,
}

/// A call to be sent again.
pub(crate) struct Again {
    pub(crate) to: Destination,
    pub(crate) frame: Bytes,
    pub(crate) deadline: Instant,
}

#[derive(Default)]
pub(crate) struct Pending {
    calls: Mutex<HashMap<Uuid, Call>>,
}

impl Pending {
    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Call>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call that wants one answer.
    pub(crate) fn one(
        &self,
        id: Uuid,
        to: Destination,
        frame: Bytes,
        deadline: Instant,
    ) -> oneshot::Receiver<Answer> {
        let (sender, receiver) = oneshot::channel();
        self.add(id, Waiter::One(sender), to, frame, deadline);
        receiver
    }

    /// A broadcast.
    pub(crate) fn many(
        &self,
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
    pub(super) fn items(&self, id: Uuid, to: Destination, frame: Bytes, deadline: Instant) -> Arc<Inlet> {
        let inlet = Arc::new(Inlet::default());
        self.add(id, Waiter::Items(inlet.clone()), to, frame, deadline);
        inlet
    }

    fn add(&self, id: Uuid, waiter: Waiter, to: Destination, frame: Bytes, deadline: Instant) {
        let call = Call {
            waiter,
            to,
            frame,
            deadline,
            attempt: 1,
            sent: false,
            worker: None,
            life: Life::default(),
        };
        self.lock().insert(id, call);
    }

    /// The transport keeps the frame now.
    pub(crate) fn sent(&self, id: Uuid) {
        if let Some(call) = self.lock().get_mut(&id) {
            call.sent = true;
            call.life.queued = Some(Instant::now());
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
        match envelope.kind {
            Kind::Accepted => return self.accepted(&envelope, Instant::now()),
            Kind::Progress => return self.progressed(envelope),
            _ => {}
        }
        let boot_id = envelope.boot_id.clone();
        let Some(mut answer) = read_answer(envelope) else {
            return;
        };
        let mut calls = self.lock();
        let Some(call) = calls.get_mut(&id) else { return };
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

    /// What must be sent again because the transport may have forgotten it. Broadcasts are not repeated: who was
    /// there then may not be who is there now.
    pub(crate) fn again(&self, now: Instant) -> Vec<Again> {
        let mut again = Vec::new();
        for call in self.lock().values_mut() {
            if !call.sent || call.deadline <= now || matches!(call.waiter, Waiter::Many(_)) {
                continue;
            }
            call.attempt = call.attempt.saturating_add(1);
            call.life.attempts = call.attempt;
            call.life.silence.heard();
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
        for call in calls.into_values() {
            let lost = call.lost("this side's bus was shut down".into());
            if let Waiter::Items(inlet) = call.waiter {
                inlet.end(lost, &call.to);
            }
        }
    }
}

fn read_answer(envelope: Envelope) -> Option<Answer> {
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
        Kind::Finish => {
            let (count, body) = signs::split_number(envelope.body)?;
            End::Finished(envelope.codec, count, body)
        }
        _ => return None,
    };
    Some(Answer {
        from: envelope.caller,
        end,
        life: Life::default(),
    })
}
