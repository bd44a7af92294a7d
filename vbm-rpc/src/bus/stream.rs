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

use super::{
    Bus, Flight, FlightState,
    flow::{Arrival, Intake, Total},
    pending::{Answer, End},
    pulse::{self, Stamp},
    read_failure, refused,
    signs::{self, Sign},
};
use crate::{
    BadInput, CallOptions, Fate, Route, StreamMethod,
    codec::Codec,
    envelope::{Envelope, Kind},
    limits,
    transport::{Destination, Link, SendWatch},
};
use bytes::Bytes;
use futures::{Stream, task::AtomicWaker};
use std::{
    collections::VecDeque,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, Sleep, sleep_until, timeout},
};
use uuid::Uuid;
use vbm_core::{Epoch, Error, NodePath, Outcome};

/// How long a grant is worth delivering; the next beat repeats it.
const GRANT_TTL: Duration = limits::BEAT_EVERY.saturating_mul(2);

/// What a reader may say about one stream. All of it has defaults.
///
/// ```
/// # use std::time::Duration;
/// use vbm_rpc::StreamOptions;
/// let follow_a_log = StreamOptions::new().idle(Duration::from_secs(600));
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct StreamOptions {
    call: CallOptions,
    idle: Duration,
}

impl Default for StreamOptions {
    fn default() -> Self {
        let call = CallOptions {
            deadline: limits::STREAM_DEADLINE_MAX,
            ..CallOptions::default()
        };
        Self {
            call,
            idle: limits::STREAM_IDLE,
        }
    }
}

impl StreamOptions {
    /// The defaults: an item at least every [`STREAM_IDLE`](limits::STREAM_IDLE), for at most
    /// [`STREAM_DEADLINE_MAX`](limits::STREAM_DEADLINE_MAX); epoch 0.
    pub fn new() -> Self {
        Self::default()
    }

    /// The longest wait for one item, and for the end after the last. Counted while somebody waits for it.
    pub const fn idle(mut self, idle: Duration) -> Self {
        self.idle = idle;
        self
    }

    /// The stream ends at the latest this long from its beginning, however many items come. At most
    /// [`STREAM_DEADLINE_MAX`](limits::STREAM_DEADLINE_MAX).
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.call.deadline = deadline.min(limits::STREAM_DEADLINE_MAX);
        self
    }

    /// The epoch in whose name the reader commands.
    pub fn epoch(mut self, epoch: Epoch) -> Self {
        self.call = self.call.epoch(epoch);
        self
    }

    /// The trace that this stream belongs to.
    pub fn traceparent(mut self, traceparent: impl Into<String>) -> Self {
        self.call = self.call.traceparent(traceparent);
        self
    }

    /// How the request and the items are written.
    pub fn codec(mut self, codec: Codec) -> Self {
        self.call = self.call.codec(codec);
        self
    }
}

/// What became of an arriving item.
pub(super) enum Taken {
    Fine,
    Unreadable,
    Broken(Arrival),
}

/// Where the items of one stream arrive.
#[derive(Default)]
pub(crate) struct Inlet {
    state: Mutex<State>,
    waker: AtomicWaker,
}

#[derive(Default)]
struct State {
    intake: Intake,
    queue: VecDeque<(Codec, Bytes)>,
    /// The run of a process that the stream comes from.
    sender: Option<(NodePath, String)>,
    end: Option<Answer>,
}

impl Inlet {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody says that they give the stream: whether they do, as far as is known here.
    pub(super) fn bind(&self, path: &NodePath, boot_id: &str) -> bool {
        let mut state = self.lock();
        match &state.sender {
            Some((known, run)) if known == path && run == boot_id => true,
            Some(_) if state.intake.arrived() > 0 => false,
            _ => {
                state.sender = Some((path.clone(), boot_id.to_owned()));
                true
            }
        }
    }

    /// Whether an end from there is the end of this stream.
    pub(super) fn is_from(&self, path: &NodePath, boot_id: &str) -> bool {
        let state = self.lock();
        state.intake.arrived() == 0
            || matches!(&state.sender, Some((known, run)) if known == path && run == boot_id)
    }

    pub(super) fn has_begun(&self) -> bool {
        self.lock().intake.arrived() > 0
    }

    pub(super) fn missing(&self, sent: u64) -> u64 {
        self.lock().intake.missing(sent)
    }

    pub(super) fn granted(&self) -> Total {
        self.lock().intake.granted()
    }

    pub(super) fn arrive(&self, envelope: Envelope) -> Taken {
        let codec = envelope.codec;
        let Some((seq, body)) = signs::split_number(envelope.body) else {
            return Taken::Unreadable;
        };
        let mut state = self.lock();
        let bytes = u64::try_from(body.len()).unwrap_or(u64::MAX);
        match state.intake.arrive(seq, bytes) {
            Arrival::New => state.queue.push_back((codec, body)),
            Arrival::Repeat => return Taken::Fine,
            broken => return Taken::Broken(broken),
        }
        drop(state);
        self.waker.wake();
        Taken::Fine
    }

    /// The stream ends, behind what has arrived. The first end counts.
    pub(super) fn end(&self, mut answer: Answer, to: &Destination) {
        let mut state = self.lock();
        if let End::Finished(_, count, _) = &answer.end {
            let missing = state.intake.missing(*count);
            if missing > 0 {
                answer.end = End::Fate(Fate::Lost {
                    started: true,
                    to: to.to_string(),
                    worker: Some(answer.from.clone()),
                    why: format!("the last {missing} items of the stream were lost on the way"),
                });
            }
        }
        state.end.get_or_insert(answer);
        drop(state);
        self.waker.wake();
    }

    fn next(&self) -> Next {
        let mut state = self.lock();
        if let Some((codec, body)) = state.queue.pop_front() {
            let grant = state.intake.take(u64::try_from(body.len()).unwrap_or(u64::MAX));
            return Next::Item(codec, body, grant);
        }
        match state.end.take() {
            Some(answer) => Next::End(answer),
            None => Next::Nothing,
        }
    }

    fn sender(&self) -> Option<Destination> {
        let (path, boot_id) = self.lock().sender.clone()?;
        Some(Destination::Inbox { path, boot_id })
    }
}

enum Next {
    Item(Codec, Bytes, Option<Total>),
    End(Answer),
    Nothing,
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::pending::Pending;

    const ID: Uuid = Uuid::from_u128(7);

    fn frame(kind: Kind, from: &str, boot_id: &str, number: u64) -> Envelope {
        Envelope {
            kind,
            codec: Codec::Json,
            attempt: 1,
            id: ID,
            ttl_ms: 0,
            epoch: Epoch::default(),
            method: String::new(),
            caller: from.parse().unwrap(),
            boot_id: boot_id.into(),
            traceparent: None,
            idempotency_key: None,
            body: signs::numbered(number, b"null"),
        }
    }
    fn item(from: &str, boot_id: &str, seq: u64) -> Envelope {
        frame(Kind::Item, from, boot_id, seq)
    }
    fn opened() -> (Arc<Pending>, Arc<Inlet>) {
        let pending = Arc::new(Pending::default());
        let to = Destination::Route(Route::node("n1".parse().unwrap()));
        let (inlet, _sending) = pending.items(ID, to, Bytes::new(), Instant::now());
        (pending, inlet)
    }
    /// How many items are read, and how it ends then.
    fn read(inlet: &Inlet) -> (usize, Option<End>) {
        let mut items = 0;
        loop {
            match inlet.next() {
                Next::Item(..) => items += 1,
                Next::End(answer) => return (items, Some(answer.end)),
                Next::Nothing => return (items, None),
            }
        }
    }
    fn lost(end: Option<&End>, why: &str) -> bool {
        matches!(end, Some(End::Fate(Fate::Lost { started: true, why: told, .. })) if told.contains(why))
    }

    #[test]
    fn a_gap_ends_the_stream_and_tells_its_sender() {
        let (pending, inlet) = opened();
        assert!(pending.item(item("n1", "b", 0)));
        assert!(!pending.item(item("n1", "b", 3)), "its sender is told");
        let (items, end) = read(&inlet);
        assert!(
            items == 1 && lost(end.as_ref(), "2 items of the stream were lost"),
            "{end:?}"
        );
        assert!(!pending.item(item("n1", "b", 1)), "nobody reads it any more");
    }

    #[test]
    fn a_repeat_is_dropped_and_a_lost_tail_is_noticed_at_the_end_and_at_a_beat() {
        let (pending, inlet) = opened();
        for seq in [0, 1, 0, 1, 1] {
            assert!(pending.item(item("n1", "b", seq)));
        }
        pending.incoming(frame(Kind::Finish, "n1", "b", 3));
        let (items, end) = read(&inlet);
        assert!(items == 2 && lost(end.as_ref(), "the last 1 items"), "{end:?}");
        let (pending, inlet) = opened();
        assert!(pending.item(item("n1", "b", 0)));
        let beat = frame(Kind::Beat, "n1", "b", 0);
        assert!(pending.works(ID, &beat, 1));
        assert!(!pending.works(ID, &beat, 2));
        let (items, end) = read(&inlet);
        assert!(items == 1 && lost(end.as_ref(), "1 items"), "{end:?}");
    }

    #[test]
    fn a_good_end_stands_behind_the_last_item() {
        let (pending, inlet) = opened();
        assert!(pending.item(item("n1", "b", 0)));
        pending.incoming(frame(Kind::Finish, "n1", "b", 1));
        let (items, end) = read(&inlet);
        assert!(
            items == 1 && matches!(end, Some(End::Finished(_, 1, _))),
            "{end:?}"
        );
    }

    #[test]
    fn another_run_may_begin_the_stream_but_not_go_on_with_it() {
        let (pending, inlet) = opened();
        pending.incoming(frame(Kind::Accepted, "n1", "b", 0));
        assert!(
            pending.item(item("n2", "c", 0)),
            "n1 had given nothing: it was taken over"
        );
        assert!(!pending.item(item("n1", "b", 0)), "n1 is told to stop");
        assert!(!pending.works(ID, &frame(Kind::Beat, "n1", "b", 0), 1));
        pending.incoming(frame(Kind::Finish, "n2", "other-boot", 1));
        assert!(
            matches!(read(&inlet), (1, None)),
            "the end of another run is not its end"
        );
        assert!(pending.item(item("n2", "c", 1)));
    }

    #[test]
    fn what_was_never_asked_for_ends_the_stream() {
        let (pending, inlet) = opened();
        for seq in 0..limits::STREAM_WINDOW_ITEMS {
            assert!(pending.item(item("n1", "b", seq)));
        }
        assert!(!pending.item(item("n1", "b", limits::STREAM_WINDOW_ITEMS)));
        assert!(lost(read(&inlet).1.as_ref(), "more items"));
        let (pending, inlet) = opened();
        let short = Envelope {
            body: Bytes::from_static(b"abc"),
            ..item("n1", "b", 0)
        };
        assert!(!pending.item(short));
        assert!(lost(read(&inlet).1.as_ref(), "cannot be read"));
    }

    #[test]
    fn a_shutdown_of_this_side_ends_the_stream() {
        let (pending, inlet) = opened();
        pending.clear();
        let end = read(&inlet).1;
        assert!(
            matches!(&end, Some(End::Fate(Fate::Lost { started: false, .. }))),
            "{end:?}"
        );
    }
}
