//! A message on its way out: from its limits to what its sending came to.

use super::{
    Bus, Shared,
    fates::{self, refused},
    inflight::Slot,
    millis,
    pending::{Answer, Pending, Sending},
};
use crate::{
    BusError, CallOptions, Durability, Fate, Lane, Method, Route,
    admin::Stage,
    envelope::{self, Envelope, Kind, Parts},
    limits,
    router::too_large,
    transport::{Destination, SendError, SendWatch},
};
use bytes::Bytes;
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;
use vbm_core::{Error, NodePath};

/// A link ends a send at its deadline by itself and knows more then; this much later it is ended from outside.
const SEND_GRACE: Duration = Duration::from_millis(50);

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum FlightState {
    /// Not handed to the transport yet.
    Ready,
    /// With the transport or a worker.
    Away,
    /// Ended.
    Over,
}

/// A message on its way. Dropped before its end, it is forgotten here and cancelled there.
pub(super) struct Flight {
    pub(super) shared: Arc<Shared>,
    pub(super) _slot: Slot,
    pub(super) id: Uuid,
    pub(super) to: Destination,
    pub(super) frame: Bytes,
    pub(super) deadline: Instant,
    /// How long its caller waits from the call to the deadline.
    pub(super) patience: Duration,
    pub(super) durability: Durability,
    pub(super) state: FlightState,
}

impl Bus {
    /// Writes a request down and launches it.
    pub(super) fn launch<M: Method>(
        &self,
        kind: Kind,
        route: &Route,
        request: &M::Request,
        options: &CallOptions,
    ) -> Result<Flight, Fate> {
        let body = write::<M>(options.codec, request)?;
        self.launch_body(kind, route, M::NAME, body, options, None)
    }

    /// Checks a request and makes its frame; `again` is the id and the number of its sending when they are chosen.
    pub(super) fn launch_body(
        &self,
        kind: Kind,
        route: &Route,
        method: &'static str,
        body: Bytes,
        options: &CallOptions,
        again: Option<(Uuid, u16)>,
    ) -> Result<Flight, Fate> {
        // Whatever ends the bus fires that too.
        if self.shared.closing.is_cancelled() {
            self.health().map_err(|error| match error {
                BusError::Closed => Fate::Cancelled,
                error => Fate::Refused(error.into()),
            })?;
        }
        let text = |what: &str, length: usize, max: usize| {
            if length <= max {
                return Ok(());
            }
            Err(refused(
                &format!("{what} is too long"),
                &format!("it has {length} bytes; {max} are allowed"),
                "shorten it",
            ))
        };
        text("the method name", method.len(), limits::METHOD_MAX_BYTES)?;
        text(
            "the idempotency key",
            options.idempotency_key.as_ref().map_or(0, String::len),
            limits::IDEMPOTENCY_KEY_MAX_BYTES,
        )?;
        text(
            "the traceparent",
            options.traceparent.as_ref().map_or(0, String::len),
            limits::TRACEPARENT_MAX_BYTES,
        )?;
        if body.len() > limits::PAYLOAD_MAX_BYTES {
            return Err(Fate::Refused(too_large(
                &format!("the request of {method}"),
                body.len(),
            )));
        }
        let to = Destination::Route(route.clone());
        let slot = self.shared.inflight.enter(&to).ok_or_else(|| Fate::Overloaded {
            at: "this process".into(),
            why: format!(
                "{} messages to {to} are unanswered",
                limits::INFLIGHT_MAX_PER_DESTINATION
            ),
        })?;
        let (id, attempt) = again.unwrap_or_else(|| (self.shared.ids.next(), 1));
        let lane = match options.lane {
            Lane::Bulk => 0,
            Lane::Control => envelope::FLAG_CONTROL,
        };
        let traced = if options.traced { envelope::FLAG_TRACED } else { 0 };
        let frame = Parts {
            kind,
            flags: lane | traced,
            codec: options.codec,
            attempt,
            id,
            ttl_ms: millis(options.deadline),
            epoch: options.epoch,
            method,
            caller: &self.shared.me.path,
            boot_id: &self.shared.me.boot_id,
            traceparent: options.traceparent.as_deref(),
            idempotency_key: options.idempotency_key.as_deref(),
            body: &body,
        }
        .encode();
        if options.traced {
            tracing::info!(%id, method = method, %to, "this call is traced: see `vbm bus trace ID`");
        }
        Ok(Flight {
            shared: self.shared.clone(),
            _slot: slot,
            id,
            to,
            frame,
            deadline: Instant::now() + options.deadline,
            patience: options.deadline,
            durability: options.durability,
            state: FlightState::Ready,
        })
    }
}

impl Flight {
    pub(super) fn pending(&self) -> &Arc<Pending> {
        &self.shared.pending
    }

    /// The reply of this call, or its fate.
    pub(super) fn read<M: Method>(&self, answer: Answer) -> Result<M::Reply, Fate> {
        fates::read::<M>(&self.shared.counters.bad, answer)
    }

    /// Hands the frame to the transport; gives who should get a broadcast.
    pub(super) async fn send(&mut self) -> Result<Vec<NodePath>, Fate> {
        self.state = FlightState::Away;
        let ttl = self.deadline.saturating_duration_since(Instant::now());
        self.note(Stage::Queued, || format!("for {}", self.to));
        let link = &self.shared.link;
        let sending = link.send_durable(&self.to, self.frame.clone(), ttl, self.durability);
        let sent = timeout_at(self.deadline + SEND_GRACE, sending).await;
        let fate = match sent {
            Ok(Ok(sent)) => return Ok(sent.members),
            Ok(Err(error)) => self.unsent(error),
            Err(_late) => self.lost(None, "the transport did not take it in time".into()),
        };
        self.over();
        Err(fate)
    }

    /// The same without waiting, where the transport can do that and no replica is to be waited for.
    pub(super) fn try_send(&mut self, sending: &Arc<Sending>) -> bool {
        // A traced call waits its turn: its first hop is noted once, before it is sent.
        if self.durability != Durability::Fast || self.is_traced() {
            return false;
        }
        let watch: Arc<dyn SendWatch> = sending.clone();
        let sent = self
            .shared
            .link
            .try_send(&self.to, &self.frame, self.deadline, &watch);
        if sent {
            self.state = FlightState::Away;
        }
        sent
    }

    pub(super) fn unsent(&self, error: SendError) -> Fate {
        let to = self.to.to_string();
        match error {
            SendError::NoRoute(why) => Fate::NoRoute { to, why },
            SendError::Overloaded(why) => Fate::Overloaded { at: to, why },
            SendError::Expired(at) => Fate::Expired { at },
            SendError::Unsupported(why) => refused(
                "this call cannot be kept as safely as it asks",
                &why,
                "use Durability::Fast, or a Redis with replicas",
            ),
            SendError::Closed => Fate::Cancelled,
            SendError::Uncertain(why) => self.lost(None, why),
        }
    }

    /// The fate of a call whose bus was shut down.
    pub(super) fn closed(&mut self, sending: &Sending) -> Fate {
        let fate = match sending.give_up() {
            true => Fate::Cancelled,
            false => self.lost(None, "this side's bus was shut down".into()),
        };
        self.over();
        fate
    }

    /// When it was called.
    pub(super) fn called_at(&self) -> Instant {
        self.deadline - self.patience
    }

    /// The fate of a call that was not answered by its deadline; `tale` is what else is known of it.
    pub(super) fn late(&mut self, sending: &Sending, tale: &str) -> Fate {
        let worker = self.pending().worker(self.id);
        let fate = if worker.is_none() && sending.give_up() {
            Fate::Expired {
                at: "the queue of this process: its server does not answer".into(),
            }
        } else if worker.is_none() && !sending.is_kept() {
            self.lost(None, "the transport did not say that it has it".into())
        } else {
            let why = format!("no reply within {} ms{tale}", self.patience.as_millis());
            self.lost(worker, why)
        };
        self.over();
        fate
    }

    pub(super) fn is_traced(&self) -> bool {
        envelope::flags(&self.frame) & envelope::FLAG_TRACED != 0
    }

    /// Records a hop, if this call is traced.
    pub(super) fn note(&self, stage: Stage, detail: impl FnOnce() -> String) {
        if self.is_traced() {
            self.shared.link.note(self.id, stage, detail());
        }
    }

    pub(super) fn lost(&self, worker: Option<NodePath>, why: String) -> Fate {
        Fate::Lost {
            started: worker.is_some(),
            to: self.to.to_string(),
            worker,
            why,
        }
    }

    /// It is forgotten here.
    pub(super) fn over(&mut self) {
        self.pending().remove(self.id);
        self.state = FlightState::Over;
    }

    /// Where a cancel can be sent: to who has begun, or to where the request went if that is certain.
    pub(super) fn cancel_route(&self) -> Option<Destination> {
        let worker = self.pending().worker(self.id);
        match (&self.to, worker) {
            (Destination::Route(Route::Any { .. }), Some(worker)) => {
                Some(Destination::Route(Route::node(worker)))
            }
            (Destination::Route(Route::Any { .. }), None) => None,
            (to, _) => Some(to.clone()),
        }
    }

    pub(super) fn cancel(&self) {
        let Some(to) = self.cancel_route() else { return };
        let ttl = self.deadline.saturating_duration_since(Instant::now());
        let frame = Envelope {
            kind: Kind::Cancel,
            codec: crate::codec::Codec::MessagePack,
            attempt: 1,
            id: self.id,
            ttl_ms: millis(ttl),
            epoch: vbm_core::Epoch::default(),
            method: String::new(),
            caller: self.shared.me.path.clone(),
            boot_id: String::new(),
            traceparent: None,
            idempotency_key: None,
            body: Bytes::new(),
        }
        .encode();
        if !self.shared.link.try_post(to, frame, ttl) {
            tracing::debug!(id = %self.id, "no room to send a cancel");
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if self.state == FlightState::Over {
            return;
        }
        if self.state == FlightState::Away {
            self.cancel();
        }
        self.pending().remove(self.id);
    }
}

pub(super) fn write<M: Method>(codec: crate::Codec, request: &M::Request) -> Result<Bytes, Fate> {
    codec.encode(request).map_err(|why| {
        Fate::Refused(Error::internal(
            format!("the request of {} cannot be written", M::NAME),
            why,
        ))
    })
}
