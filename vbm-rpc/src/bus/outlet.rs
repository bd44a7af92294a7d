//! The sending end of a stream, on the side of its handler.
//!
//! ```text
//!   handler --> ItemSink::send --- credit? --- post ---> the reader's inbox
//!                                    ^
//!   grants from the reader ----------+---- none for some beats: the reader is gone, the handler is told
//! ```

use super::{
    flow::{Credit, Total},
    pulse::Stamp,
    signs,
    silence::Silence,
};
use crate::{
    StreamMethod,
    codec::Codec,
    envelope::Kind,
    limits,
    router::too_large,
    transport::{Destination, Link},
};
use std::{
    collections::BTreeMap,
    marker::PhantomData,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use vbm_core::{Error, ErrorKind, Outcome};

/// One stream that is served here.
pub(crate) struct Outlet {
    pub(super) id: Uuid,
    pub(super) inbox: Destination,
    pub(super) link: Arc<dyn Link>,
    pub(super) stamp: Arc<Stamp>,
    pub(super) token: CancellationToken,
    pub(super) deadline: Instant,
    state: Mutex<State>,
    granted: Notify,
}

struct State {
    credit: Credit,
    silence: Silence,
}

impl Outlet {
    pub(super) fn new(
        id: Uuid,
        inbox: Destination,
        link: Arc<dyn Link>,
        stamp: Arc<Stamp>,
        token: CancellationToken,
        deadline: Instant,
    ) -> Self {
        let mut silence = Silence::default();
        silence.promised(limits::BEAT_EVERY);
        Self {
            id,
            inbox,
            link,
            stamp,
            token,
            deadline,
            state: Mutex::new(State {
                credit: Credit::default(),
                silence,
            }),
            granted: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many items were sent.
    pub(super) fn sent(&self) -> u64 {
        self.lock().credit.sent()
    }

    fn grant(&self, until: Total) {
        let mut state = self.lock();
        state.silence.heard();
        state.credit.grant(until);
        drop(state);
        self.granted.notify_one();
    }

    /// Waits for credit; gives the number of the next item.
    ///
    /// # Cancel safety
    /// Safe: nothing is spent.
    async fn credit(&self) -> Result<u64, Error> {
        loop {
            if self.token.is_cancelled() {
                return Err(given_up());
            }
            let granted = self.granted.notified();
            {
                let state = self.lock();
                if state.credit.may_send() {
                    return Ok(state.credit.sent());
                }
            }
            tokio::select! {
                () = granted => {}
                () = self.token.cancelled() => {}
                () = sleep_until(self.deadline) => return Err(given_up()),
            }
        }
    }
}

impl std::fmt::Debug for Outlet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outlet")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

fn given_up() -> Error {
    Error::new(
        ErrorKind::Cancelled,
        "the stream was given up",
        "its reader left it or is gone, its time ran out, or this process shuts down",
        "end the handler; a reader that still wants the items opens the stream again",
    )
    .with_outcome(Outcome::Unknown)
}

/// The streams that are served here, so that grants find them.
#[derive(Default)]
pub(crate) struct Outlets(Mutex<BTreeMap<Uuid, Arc<Outlet>>>);

/// One served stream; dropping it takes it off the table.
pub(super) struct Served {
    outlets: Arc<Outlets>,
    pub(super) outlet: Arc<Outlet>,
}

impl Outlets {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Uuid, Arc<Outlet>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stream begins; `None` when too many do.
    pub(super) fn open(self: &Arc<Self>, outlet: Outlet) -> Option<Served> {
        let outlet = Arc::new(outlet);
        let mut streams = self.lock();
        if streams.len() >= limits::STREAMS_SERVED_MAX {
            return None;
        }
        streams.insert(outlet.id, outlet.clone());
        drop(streams);
        Some(Served {
            outlets: self.clone(),
            outlet,
        })
    }

    /// A reader reads, and has room up to there.
    pub(super) fn reads(&self, id: Uuid, until: Total) {
        let outlet = self.lock().get(&id).cloned();
        if let Some(outlet) = outlet {
            outlet.grant(until);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// A beat passed: handlers whose reader is silent are told.
    pub(super) fn missed(&self) {
        for outlet in self.lock().values() {
            if outlet.lock().silence.missed(false) && !outlet.token.is_cancelled() {
                tracing::info!(id = %outlet.id, to = %outlet.inbox, "the reader of a stream is silent: it is given up");
                outlet.token.cancel();
            }
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.outlets.lock().remove(&self.outlet.id));
    }
}

/// Where the handler of a [`StreamMethod`] puts its items.
pub struct ItemSink<M> {
    outlet: Arc<Outlet>,
    codec: Codec,
    method: PhantomData<fn(M)>,
}

impl<M: StreamMethod> ItemSink<M> {
    pub(crate) fn new(outlet: Arc<Outlet>, codec: Codec) -> Self {
        Self {
            outlet,
            codec,
            method: PhantomData,
        }
    }

    /// Sends one item, in order. Waits while [`STREAM_WINDOW_ITEMS`](limits::STREAM_WINDOW_ITEMS) or
    /// [`STREAM_WINDOW_BYTES`](limits::STREAM_WINDOW_BYTES) are unread, so a slow reader stops the handler.
    ///
    /// # Errors
    /// [`ErrorKind::Cancelled`] when nobody reads any more, the stream's time is over or this process shuts down: end
    /// the handler then. [`ErrorKind::InvalidInput`] for an item over
    /// [`PAYLOAD_MAX_BYTES`](limits::PAYLOAD_MAX_BYTES); it was not sent and the stream goes on.
    ///
    /// # Cancel safety
    /// Dropping the future sends the item or not, and never breaks the order.
    pub async fn send(&mut self, item: &M::Item) -> Result<(), Error> {
        let body = self
            .codec
            .encode(item)
            .map_err(|why| Error::internal(format!("an item of {} cannot be written", M::NAME), why))?;
        if body.len() > limits::PAYLOAD_MAX_BYTES {
            return Err(too_large(&format!("an item of {}", M::NAME), body.len()));
        }
        let outlet = &self.outlet;
        let seq = outlet.credit().await?;
        let left = outlet.deadline.saturating_duration_since(Instant::now());
        let item = signs::numbered(seq, &body);
        let frame = outlet.stamp.frame(Kind::Item, self.codec, outlet.id, item);
        outlet.link.post(outlet.inbox.clone(), frame, left).await;
        // No await between the end of the post and this: what was handed over is counted.
        let bytes = u64::try_from(body.len()).unwrap_or(u64::MAX);
        outlet.lock().credit.spend(bytes);
        Ok(())
    }

    /// Fires when nobody reads any more; the same as [`Context::cancelled`](crate::Context::cancelled).
    pub fn cancelled(&self) -> &CancellationToken {
        &self.outlet.token
    }
}

impl<M> std::fmt::Debug for ItemSink<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ItemSink")
            .field("outlet", &self.outlet)
            .finish_non_exhaustive()
    }
}
