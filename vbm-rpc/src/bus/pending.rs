//! Calls that wait for an answer.
//!
//! One map behind one lock that is never held across an await: answers come from the reader task, calls from
//! anywhere, and a map operation is shorter than a message to an owning task would be.

use crate::{
    Route,
    codec::Codec,
    envelope::{self, EndCode, Envelope, Kind},
    limits,
    transport::Destination,
};
use bytes::Bytes;
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
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
}

#[derive(Debug)]
pub(crate) enum End {
    Reply(Codec, Bytes),
    Refused(Error),
    Ended(EndCode, String),
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
    /// The transport said that it keeps the frame.
    sent: bool,
    worker: Option<NodePath>,
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
    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Call>> {
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

    fn add(&self, id: Uuid, waiter: Waiter, to: Destination, frame: Bytes, deadline: Instant) {
        let call = Call {
            waiter,
            to,
            frame,
            deadline,
            attempt: 1,
            sent: false,
            worker: None,
        };
        self.lock().insert(id, call);
    }

    /// The transport keeps the frame now.
    pub(crate) fn sent(&self, id: Uuid) {
        if let Some(call) = self.lock().get_mut(&id) {
            call.sent = true;
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
        for call in self.lock().values_mut() {
            if !call.sent || call.deadline <= now || matches!(call.waiter, Waiter::Many(_)) {
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
        Kind::Request | Kind::Cast | Kind::Accepted | Kind::Progress | Kind::Cancel => return None,
    };
    Some(Answer {
        from: envelope.caller,
        end,
    })
}
