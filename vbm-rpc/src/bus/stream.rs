//! The reading end of a stream.
//!
//! ```text
//!   inbox --> Pending::item --> Inlet (sequence, window, queue) --> ItemStream::next --> grant --> the handler
//!                                 ^ the end: value, refusal or fate, behind the last item
//! ```
//!
//! The queue is bounded by the window that this side granted. A stream belongs to the first run of a process that gives
//! an item: what another one sends (the request was taken over, or the process started again) is refused there, since nobody can
//! tell whether both runs give the same items.

mod inlet;
mod options;

pub(super) use inlet::{Inlet, Taken};
pub use options::StreamOptions;

use super::{
    Bus, Flight, FlightState,
    flow::Total,
    pending::{Answer, End},
    pulse::{self, Stamp},
    read_failure, refused,
    signs::{self, Sign},
};
use crate::{
    BadInput, Fate, Route, StreamMethod,
    codec::Codec,
    envelope::Kind,
    limits,
    transport::{Destination, Link, SendWatch},
};
use bytes::Bytes;
use futures::Stream;
use inlet::Next;
use std::{
    future::Future,
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, Sleep, sleep_until, timeout},
};
use uuid::Uuid;
use vbm_core::{Error, Outcome};

/// How long a grant is worth delivering; the next beat repeats it.
const GRANT_TTL: Duration = limits::BEAT_EVERY.saturating_mul(2);

/// The items of one stream, in order, none missing and none twice. Ends after the sender's end value
/// ([`ItemStream::end`]), or after exactly one `Err`.
#[must_use = "dropping the stream cancels it"]
pub struct ItemStream<M: StreamMethod> {
    flight: Flight,
    inlet: Arc<Inlet>,
    stamp: Stamp,
    deadline: Pin<Box<Sleep>>,
    idle: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
    end: Option<M::Reply>,
    over: bool,
    _place: OwnedSemaphorePermit,
    method: PhantomData<fn() -> M>,
}

impl Bus {
    /// Asks for a stream; returns when the bus keeps the request. Along [`Route::any`], one member gives all of it.
    ///
    /// The sender stops after [`STREAM_WINDOW_ITEMS`](limits::STREAM_WINDOW_ITEMS) or
    /// [`STREAM_WINDOW_BYTES`](limits::STREAM_WINDOW_BYTES) that were not read, so memory is bounded on both sides.
    /// An idempotency key has no meaning here.
    ///
    /// # Errors
    /// The [`Fate`] of the sending. What happens later is the last item of the stream.
    ///
    /// # Cancel safety
    /// Dropping the future or the stream tells the sender, as well as it can be told; should that be lost, the sender
    /// notices within some beats that nobody reads.
    pub fn stream<M: StreamMethod>(
        &self,
        route: &Route,
        request: &M::Request,
        options: StreamOptions,
    ) -> impl Future<Output = Result<ItemStream<M>, Fate>> + Send + use<M> {
        let place = self
            .shared
            .streams
            .clone()
            .try_acquire_owned()
            .map_err(|_full| Fate::Overloaded {
                at: "this process".into(),
                why: format!("{} streams are read", limits::STREAMS_READ_MAX),
            });
        let flight = match route {
            Route::All { .. } => Err(refused(
                "a stream comes from one member",
                "the route names all",
                "open a stream to each of them",
            )),
            _ => place.and_then(|place| {
                let flight = self.launch::<M>(Kind::Open, route, request, &options.call)?;
                Ok((flight, place))
            }),
        };
        let stamp = Stamp::of(self.member());
        async move {
            let (mut flight, place) = flight?;
            let (inlet, sending) = flight.pending().items(
                flight.id,
                flight.to.clone(),
                flight.frame.clone(),
                flight.deadline,
            );
            match timeout(options.idle, flight.send()).await {
                Ok(sent) => {
                    sent?;
                    sending.kept();
                }
                Err(_late) => {
                    let why = "the transport did not take it within its idle time";
                    return Err(flight.lost(None, why.into()));
                }
            }
            Ok(ItemStream {
                deadline: Box::pin(sleep_until(flight.deadline)),
                flight,
                inlet,
                stamp,
                idle: options.idle,
                waiting: None,
                end: None,
                over: false,
                _place: place,
                method: PhantomData,
            })
        }
    }
}

impl<M: StreamMethod> ItemStream<M> {
    /// The next item; `None` after the end. An `Err` is the last.
    ///
    /// # Errors
    /// The [`Fate`] of the stream.
    ///
    /// # Cancel safety
    /// Safe: no item is lost.
    pub async fn next(&mut self) -> Option<Result<M::Item, Fate>> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// What the sender gave at the end; `None` before the end, after a failure, and the second time.
    pub fn end(&mut self) -> Option<M::Reply> {
        self.end.take()
    }

    /// The request, as the handler knows it.
    pub const fn id(&self) -> Uuid {
        self.flight.id
    }

    fn grant(&self, until: Total) {
        let Some(sender) = self.inlet.sender() else { return };
        let sign = Sign::Reads {
            id: self.flight.id,
            until,
        };
        let frame = self.stamp.frame(
            Kind::Beat,
            Codec::MessagePack,
            Uuid::nil(),
            signs::encode(&[sign]),
        );
        if !self.flight.shared.link.try_post(sender, frame, GRANT_TTL) {
            tracing::debug!(id = %self.flight.id, "no room for a grant; the next beat repeats it");
        }
    }

    /// This side gives the stream up: the sender is told.
    fn give_up(&mut self) {
        if self.over {
            return;
        }
        self.over = true;
        match self.inlet.sender() {
            Some(sender) => {
                let link: &dyn Link = &*self.flight.shared.link;
                pulse::cancel(link, &self.stamp, self.flight.id, sender);
            }
            None => self.flight.cancel(),
        }
        self.flight.over();
    }

    fn fail(&mut self, why: String) -> Fate {
        let worker = self.flight.pending().worker(self.flight.id);
        self.give_up();
        self.flight.lost(worker, why)
    }

    fn item(&mut self, codec: Codec, body: &Bytes) -> Result<M::Item, Fate> {
        codec.decode(body).map_err(|why| {
            self.give_up();
            let what = format!("an item of {} cannot be read", M::NAME);
            self.unreadable(Error::internal(what, why).with_outcome(Outcome::Unknown))
        })
    }

    /// The fate of a stream of which something cannot be read.
    #[cold]
    fn unreadable(&self, error: Error) -> Fate {
        let place = match self.inlet.sender() {
            Some(Destination::Inbox { path, .. }) => path.to_string(),
            _ => self.flight.to.to_string(),
        };
        let bad = &self.flight.shared.counters.bad;
        bad.note(BadInput::Unreadable, &place, error.inline());
        Fate::Refused(error)
    }

    /// The last word: nothing more after a good end, its fate after any other.
    fn last(&mut self, answer: Answer) -> Option<Fate> {
        self.over = true;
        self.flight.over();
        let (codec, body) = match answer.end {
            End::Finished(codec, _, body) => (codec, body),
            End::Reply(..) => {
                return Some(refused(
                    &format!("{} gives no stream there", M::NAME),
                    &format!("{} answered it as a plain call", answer.from),
                    "run the same version of VBM on both sides, or versions next to each other",
                ));
            }
            _ => return Some(read_failure(answer)),
        };
        match codec.decode(&body) {
            Ok(end) => {
                self.end = Some(end);
                None
            }
            Err(why) => {
                let what = format!("the end of {} cannot be read", M::NAME);
                Some(self.unreadable(Error::internal(what, why).with_outcome(Outcome::Applied)))
            }
        }
    }
}

impl<M: StreamMethod> Stream for ItemStream<M> {
    type Item = Result<M::Item, Fate>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.over {
            return Poll::Ready(None);
        }
        this.inlet.waker.register(cx.waker());
        match this.inlet.next() {
            Next::Item(codec, body, grant) => {
                this.waiting = None;
                if let Some(until) = grant {
                    this.grant(until);
                }
                return Poll::Ready(Some(this.item(codec, &body)));
            }
            Next::End(answer) => return Poll::Ready(this.last(answer).map(Err)),
            Next::Nothing => {}
        }
        if this.deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err(
                this.fail("the stream was not over at its deadline".into())
            )));
        }
        let idle = this.idle;
        let waiting = this
            .waiting
            .get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + idle)));
        std::task::ready!(waiting.as_mut().poll(cx));
        let why = format!("no item came for {} ms", idle.as_millis());
        Poll::Ready(Some(Err(this.fail(why))))
    }
}

impl<M: StreamMethod> Drop for ItemStream<M> {
    fn drop(&mut self) {
        self.give_up();
    }
}

impl<M: StreamMethod> Unpin for ItemStream<M> {}

impl<M: StreamMethod> std::fmt::Debug for ItemStream<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ItemStream")
            .field("id", &self.flight.id)
            .field("over", &(self.flight.state == FlightState::Over))
            .finish_non_exhaustive()
    }
}
