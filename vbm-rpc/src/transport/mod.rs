//! What moves frames. A transport knows nodes, services, inboxes and deadlines; it does not look into frames.
//!
//! ```text
//!          Bus                                    Link (one per attachment)
//!   +---------------+   send(to, frame, ttl)    +---------------------------+
//!   | calls, fates  | ------------------------> | unicast | any | all       |
//!   | dedupe, epoch |                           |                           |
//!   | handlers      | <------------------------ | requests: bounded, pulled |
//!   |               |        Inbound            | replies: never wait       |
//!   +---------------+                           +---------------------------+
//! ```
//!
//! The contract, checked by [`conformance`](crate::conformance) for every transport:
//! - A request for a node that is present is delivered at least once, while its time to live lasts, also when
//!   the process of the node is replaced by another in between.
//! - A request for a service is delivered to one live member at a time; when that one dies, to another.
//! - A broadcast is delivered to those who are present when it is sent, and never to later ones.
//! - A destination without a live member fails in one round trip.
//! - A delivery is kept until [`Completion::complete`]; dropping it means that somebody else must do it.

pub mod memory;
pub mod redis;
mod results;

pub use results::{ResultStore, TicketPlace, TicketRecord};

use crate::{
    BadInput, BusError, Durability, MemberInfo, Route,
    admin::{Admin, Stage},
    bad_input::BadInputs,
    election::{LeaseAnswer, LeaseOp},
    envelope,
};
use async_trait::async_trait;
use bytes::Bytes;
use std::{fmt, sync::Arc, time::Duration};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    time::Instant,
};
use uuid::Uuid;
use vbm_core::{IdSource, Name, NodePath};

/// Where a frame goes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Destination {
    /// Along a route, as a request.
    Route(Route),
    /// To the inbox of one run of one process, as a reply.
    Inbox {
        /// Its path.
        path: NodePath,
        /// Its run.
        boot_id: String,
    },
}

impl Destination {
    /// Whether `from` may answer what was sent here.
    pub(crate) fn may_answer(&self, from: &NodePath) -> bool {
        match self {
            Self::Route(Route::Node(path)) | Self::Inbox { path, .. } => path == from,
            Self::Route(Route::Any { scope, .. } | Route::All { scope, .. }) => scope.contains(from),
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Route(route) => route.fmt(f),
            Self::Inbox { path, boot_id } => write!(f, "inbox of {path} ({boot_id})"),
        }
    }
}

/// A frame was taken over by the transport.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sent {
    /// For a broadcast: who was present and should get it. Empty otherwise.
    pub members: Vec<NodePath>,
}

/// A frame was not taken over by the transport.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SendError {
    /// Nobody is there.
    NoRoute(String),
    /// A queue is full.
    Overloaded(String),
    /// The deadline passed before it was sent.
    Expired(String),
    /// It may have been sent; nobody can tell.
    Uncertain(String),
    /// The transport cannot keep what was asked for; it was not sent.
    Unsupported(String),
    /// The link is closed; it was not sent.
    Closed,
}

/// Hears how far a frame has come that was handed over by [`Link::try_send`]. Called from the transport's tasks: must
/// not block.
pub trait SendWatch: Send + Sync + 'static {
    /// From now on it may be with the transport; `false` when it is not wanted any more and must not be.
    fn writing(&self) -> bool;
    /// The transport keeps it.
    fn kept(&self);
    /// It was not taken over; nothing more will be heard.
    fn failed(&self, error: SendError);
}

/// A way to attach to the bus.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// Joins: from now on `member` is present and what is for it goes to `inbound`.
    ///
    /// # Errors
    /// When the server behind it cannot be used.
    ///
    /// # Cancel safety
    /// Dropping the future may leave the member present until its presence runs out.
    async fn attach(&self, member: MemberInfo, inbound: Inbound) -> Result<Attached, BusError>;

    /// The operator's view of this transport, if it has one.
    fn admin(&self) -> Option<Arc<dyn Admin>> {
        None
    }
}

/// What joining gives.
#[non_exhaustive]
pub struct Attached {
    /// The way out.
    pub link: Arc<dyn Link>,
    /// A number that no other attachment of the same member to this transport was given.
    pub nonce: u64,
    /// Where the ids of messages come from, if the transport says.
    pub ids: Option<Arc<dyn IdSource>>,
}

impl Attached {
    /// For those who write a transport.
    pub fn new(link: Arc<dyn Link>, nonce: u64) -> Self {
        Self {
            link,
            nonce,
            ids: None,
        }
    }

    /// Messages get their ids from `ids`: for a transport on which ids must not be guessed.
    #[must_use]
    pub fn with_ids(mut self, ids: Arc<dyn IdSource>) -> Self {
        self.ids = Some(ids);
        self
    }
}

/// One attachment's way out.
#[async_trait]
pub trait Link: Send + Sync + 'static {
    /// Hands a frame over; returns when the transport keeps it. Not started after `ttl`.
    ///
    /// # Errors
    /// Nothing was sent, but for [`SendError::Uncertain`].
    ///
    /// # Cancel safety
    /// A dropped future may or may not have sent the frame.
    async fn send(&self, to: &Destination, frame: Bytes, ttl: Duration) -> Result<Sent, SendError>;

    /// The same for one member without waiting: `watch` hears the rest, and nothing when the link ends first. Not
    /// started after `until`. `false` when there was no room or this transport has no such way: nothing was done, and
    /// [`Link::send`] waits.
    ///
    /// The way of a call: its caller is woken by the answer alone.
    fn try_send(
        &self,
        _to: &Destination,
        _frame: &Bytes,
        _until: Instant,
        _watch: &Arc<dyn SendWatch>,
    ) -> bool {
        false
    }

    /// As [`Link::send`]; returns when the frame is kept as safely as `durability` says. Without a second copy behind the
    /// transport, [`Durability::Replicated`] is refused.
    ///
    /// # Errors
    /// As those of [`send`](Self::send); [`SendError::Uncertain`] when it is kept, but not as safely as asked.
    ///
    /// # Cancel safety
    /// A dropped future may or may not have sent the frame.
    async fn send_durable(
        &self,
        to: &Destination,
        frame: Bytes,
        ttl: Duration,
        durability: Durability,
    ) -> Result<Sent, SendError> {
        match durability {
            Durability::Fast => self.send(to, frame, ttl).await,
            Durability::Replicated => Err(SendError::Unsupported(
                "this transport has no replicas that could keep a second copy".into(),
            )),
        }
    }

    /// Hands a frame over without waiting for the transport to keep it; waits for room in the queue only. In order
    /// with [`Completion::complete`]: a reply posted first is kept before its request is forgotten.
    async fn post(&self, to: Destination, frame: Bytes, ttl: Duration);

    /// The same without waiting at all: `false` when there was no room.
    fn try_post(&self, to: Destination, frame: Bytes, ttl: Duration) -> bool;

    /// Sends a frame once more after the transport lost its memory ([`Link::generations`]): does not fail while the
    /// destination comes back too. Without waiting: `false` when there was no room.
    fn try_resend(&self, to: Destination, frame: Bytes, ttl: Duration) -> bool {
        self.try_post(to, frame, ttl)
    }

    /// Records a hop of a traced call, as well as it can. Does not wait.
    fn note(&self, _call: Uuid, _stage: Stage, _detail: String) {}

    /// Who is present below a scope, sorted by path.
    ///
    /// # Errors
    /// When the server behind it does not answer.
    async fn members(&self, scope: &NodePath) -> Result<Vec<MemberInfo>, BusError>;

    /// Grows whenever what was handed over before may be forgotten: unanswered requests are then sent again.
    fn generations(&self) -> watch::Receiver<u64>;

    /// Why the link ended on its own, when it did.
    fn ended(&self) -> watch::Receiver<Option<BusError>>;

    /// Asks the server behind it about a lease ([`election`](crate::election)). A transport without leases keeps
    /// this: elections then fail, and say so.
    ///
    /// # Errors
    /// When the server does not answer, or there are no leases.
    ///
    /// # Cancel safety
    /// A dropped question may have been answered.
    async fn lease(&self, name: &Name, op: &LeaseOp) -> Result<LeaseAnswer, BusError> {
        let _ = op;
        Err(BusError::Unsuitable {
            server: "this transport".into(),
            why: format!("it keeps no leases, so {name} can be nobody's"),
            fix: "use a transport that implements Link::lease, as the memory bus and Redis do".into(),
        })
    }

    /// Takes the member off presence and takes no further requests; replies still go and come.
    async fn retire(&self);

    /// Writes what was posted, then ends everything the link runs. Nothing of an empty queue stays behind.
    async fn close(&self);

    /// Ends everything the link runs at once without telling anyone, as a crash would.
    fn sever(&self);

    /// The shared memory of recorded answers and tickets, where the transport has one. Without it the answers of
    /// repeated keys are those of one process, and nothing can be submitted.
    fn results(&self) -> Option<Arc<dyn ResultStore>> {
        None
    }
}

/// What the bus gives to a transport: where incoming frames go.
#[derive(Clone)]
pub struct Inbound {
    requests: mpsc::Sender<Delivery>,
    /// For requests of the control lane.
    urgent: Option<mpsc::Sender<Delivery>>,
    /// One for each handler of the other lane that may run.
    handlers: Option<Arc<Semaphore>>,
    control: Arc<dyn Fn(Bytes) + Send + Sync>,
    bad: Arc<BadInputs>,
}

impl Inbound {
    /// Requests go through a bounded queue; replies and cancels go to a function that does not block.
    pub fn new(requests: mpsc::Sender<Delivery>, control: Arc<dyn Fn(Bytes) + Send + Sync>) -> Self {
        Self {
            requests,
            urgent: None,
            handlers: None,
            control,
            bad: Arc::default(),
        }
    }

    /// Requests are run by so many handlers at once: what is shared with other members is left to them while all are busy.
    #[must_use]
    pub fn with_handlers(mut self, handlers: Arc<Semaphore>) -> Self {
        self.handlers = Some(handlers);
        self
    }

    /// What the transport meets counts with what its bus meets.
    #[must_use]
    pub(crate) fn with_bad_inputs(mut self, bad: Arc<BadInputs>) -> Self {
        self.bad = bad;
        self
    }

    pub(crate) fn bad_inputs(&self) -> &Arc<BadInputs> {
        &self.bad
    }

    /// Requests of the control lane go through this bounded queue; when it is full, with all others.
    #[must_use]
    pub fn with_urgent(mut self, urgent: mpsc::Sender<Delivery>) -> Self {
        self.urgent = Some(urgent);
        self
    }

    /// Gives a frame of the control lane to the bus without waiting.
    ///
    /// # Errors
    /// Gives the delivery back when it is none, or there is no room.
    fn try_urgent(&self, delivery: Delivery) -> Result<(), Delivery> {
        if envelope::is_cancel(&delivery.frame) {
            self.control(delivery.frame);
            delivery.done.complete();
            return Ok(());
        }
        match &self.urgent {
            Some(urgent) if envelope::is_control(&delivery.frame) => urgent.try_send(delivery).map_err(back),
            _ => Err(delivery),
        }
    }

    /// How many requests can be taken now: there is a place in the queue, and a handler that is idle, for each.
    pub fn room(&self) -> usize {
        let room = self.requests.capacity();
        let waiting = self.requests.max_capacity() - room;
        let idle = |handlers: &Arc<Semaphore>| handlers.available_permits().saturating_sub(waiting);
        self.handlers
            .as_ref()
            .map_or(room, |handlers| room.min(idle(handlers)))
    }

    /// Waits until a request can be taken and a handler is idle; `false` when none ever will.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn wait_for_room(&self) -> bool {
        let queue = self.requests.reserve().await.is_ok();
        let handler = match &self.handlers {
            Some(handlers) => handlers.acquire().await.is_ok(),
            None => true,
        };
        queue && handler
    }

    /// The same for a request of the control lane.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn wait_for_urgent_room(&self) -> bool {
        match &self.urgent {
            Some(urgent) => urgent.reserve().await.is_ok(),
            None => self.wait_for_room().await,
        }
    }

    /// Gives a request to the bus, waiting for room. `false` when the bus takes none any more; the delivery is then
    /// not completed.
    ///
    /// # Cancel safety
    /// Dropping the future drops the delivery uncompleted.
    pub async fn request(&self, delivery: Delivery) -> bool {
        match self.try_urgent(delivery) {
            Ok(()) => true,
            Err(delivery) => self.requests.send(delivery).await.is_ok(),
        }
    }

    /// Gives a request to the bus if there is room.
    ///
    /// # Errors
    /// Gives the delivery back when there is none, or never will be.
    pub fn try_request(&self, delivery: Delivery) -> Result<(), Delivery> {
        match self.try_urgent(delivery) {
            Ok(()) => Ok(()),
            Err(delivery) => self.requests.try_send(delivery).map_err(back),
        }
    }

    /// Gives a reply to the bus. Does not wait.
    pub fn control(&self, frame: Bytes) {
        (self.control)(frame);
    }

    /// The transport met something that it cannot give to the bus: it is counted, and logged once for its kind and
    /// `place`, the queue or the server that it comes from. Does not wait.
    pub fn bad_input(&self, what: BadInput, place: &str, detail: impl fmt::Display) {
        self.bad.note(what, place, detail);
    }
}

fn back(error: mpsc::error::TrySendError<Delivery>) -> Delivery {
    match error {
        mpsc::error::TrySendError::Full(delivery) | mpsc::error::TrySendError::Closed(delivery) => delivery,
    }
}

/// One request on its way from the transport to a handler.
pub struct Delivery {
    /// The frame.
    pub frame: Bytes,
    /// When the transport was given it, as this process' clock sees it.
    pub since: Instant,
    /// Tells the transport that it need not be kept.
    pub done: Completion,
}

/// Tells the transport that a delivery need not be kept any more. Dropped instead, the delivery stays.
#[must_use = "a delivery that is not completed is delivered again"]
pub struct Completion(Option<Arc<dyn Keeper>>);

/// Who keeps deliveries until they are completed.
pub trait Keeper: Send + Sync + 'static {
    /// One delivery of this keeper was completed. Must not block.
    fn completed(&self);

    /// The destination whose members share the results of its deliveries. `None` for a broadcast, which every member
    /// answers for itself.
    fn home(&self) -> Option<Arc<Route>> {
        None
    }

    /// Whether its deliveries may have been delivered before, to another process or to this one's earlier life.
    fn again(&self) -> bool {
        false
    }

    /// One delivery of this keeper can never be handled: it goes to the dead letters where there are any, and is
    /// done with. Must not block.
    fn buried(&self, frame: Bytes, reason: &str) {
        tracing::warn!(
            reason,
            bytes = frame.len(),
            "a request that cannot be handled was dropped"
        );
        self.completed();
    }
}

impl Completion {
    /// For those who write a transport.
    pub fn new(keeper: Arc<dyn Keeper>) -> Self {
        Self(Some(keeper))
    }

    /// For what nobody keeps.
    pub const fn nothing() -> Self {
        Self(None)
    }

    /// The destination whose members share the result, if any.
    pub fn home(&self) -> Option<Arc<Route>> {
        self.0.as_ref()?.home()
    }

    /// Whether it may have been delivered before.
    pub fn again(&self) -> bool {
        self.0.as_ref().is_some_and(|keeper| keeper.again())
    }

    /// The delivery can never be handled: keeps its frame as a dead letter, where the transport has those.
    pub fn bury(self, frame: Bytes, reason: &str) {
        if let Some(keeper) = self.0 {
            keeper.buried(frame, reason);
        }
    }

    /// The delivery is done with.
    pub fn complete(self) {
        if let Some(keeper) = self.0 {
            keeper.completed();
        }
    }
}
