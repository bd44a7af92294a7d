//! The bus: one attachment of a process.
//!
//! ```text
//!   call ----> encode, limit, pending ----> Link.send ~~~~> other member's Link
//!                        ^                                        |
//!                        | control: never waits                   v bounded queue
//!   reply <--------- Pending <~~~~ Link <~~~~ post <--- answer <- Server (dedupe, deadline, epoch, handler)
//! ```
//!
//! Tasks of an attachment, all ended by [`Bus::shutdown`]: the *dispatcher* takes requests off the queue; one task a
//! running handler; the *sweep* looks after tickets (see `tickets.rs`); the *resender* sends unanswered requests again
//! when the transport lost its memory; the *watcher* ends the bus when its link ends; the *pulse* gives and misses signs
//! of life; the *look-out* asks presence about what nobody begins. The transport has tasks of its own.

mod call;
mod caller;
mod flow;
mod inflight;
mod inside;
mod life;
mod outlet;
mod pending;
mod pulse;
mod recorded;
mod replies;
mod running;
mod server;
mod signs;
mod silence;
mod stats;
mod stream;
mod submit;
mod tickets;

pub use call::Batch;
pub use caller::{BoxedCaller, BusService, Caller};
pub(crate) use life::Life;
pub use outlet::ItemSink;
pub(crate) use outlet::Outlet;
pub use replies::{Replies, Unanswered};
pub use stats::BusStats;
pub(crate) use stats::Probe;
pub use stream::{ItemStream, StreamOptions};
pub use submit::TicketHandle;

use crate::{
    BusError, CallOptions, Durability, Fate, Lane, Member, MemberInfo, Method, Replied, Route, Router,
    admin::{self, Admin, DeadLetters, Stage},
    envelope::{self, EndCode, Envelope, Kind},
    limits,
    router::too_large,
    transport::{Destination, Inbound, Link, SendError, SendWatch, Transport},
};
use bytes::Bytes;
use inflight::{InFlight, Slot};
use pending::{Answer, End, Pending, Sending};
use pulse::{Signals, Stamp};
use server::Server;
use stats::Counters;
use std::{
    future::Future,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{Semaphore, mpsc},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use uuid::Uuid;
use vbm_core::{Error, ErrorKind, IdSource, NodePath, Outcome, SeededIds};

/// One attachment of a process to the bus. Cheap to clone. End it with [`Bus::shutdown`]; when the last clone is
/// dropped without it, the member is gone as after a crash: at once here, for others when its presence runs out.
#[derive(Clone)]
pub struct Bus {
    shared: Arc<Shared>,
    _alive: Arc<DropGuard>,
}

struct Shared {
    me: MemberInfo,
    link: Arc<dyn Link>,
    admin: Option<Arc<dyn Admin>>,
    pending: Arc<Pending>,
    inflight: InFlight,
    counters: Arc<Counters>,
    ids: Arc<dyn IdSource>,
    /// Where calls with a callback were submitted to.
    homes: Arc<tickets::Homes>,
    /// A place for each stream that is read.
    streams: Arc<Semaphore>,
    /// No new work.
    closing: CancellationToken,
    /// No work at all.
    ended: CancellationToken,
    /// The dispatcher and the handlers.
    handlers: TaskTracker,
    /// The resender, the watcher, the sweep, the pulse and the look-out.
    tasks: TaskTracker,
}

impl Bus {
    /// Attaches to the bus: from now on `member` is present and `router` answers. A pure client has an empty router.
    ///
    /// # Errors
    /// When the member breaks a limit, or the transport's server cannot be reached or used.
    ///
    /// # Cancel safety
    /// Dropping the future attaches nothing, or leaves a member that vanishes when its presence runs out.
    pub async fn attach(
        transport: impl Into<Arc<dyn Transport>>,
        member: Member,
        router: Router,
    ) -> Result<Self, BusError> {
        let transport = transport.into();
        let mut me = member.into_info(router.methods())?;
        me.versions = router.versions();
        let router = admin::router(&me).merge(router);
        let pending = Arc::new(Pending::default());
        let (sender, requests) = mpsc::channel(limits::REQUEST_QUEUE_MAX);
        let counters = Arc::new(Counters::new(sender.downgrade()));
        let signals = Arc::new(Signals::new(pending.clone(), counters.clone()));
        let (urgent_sender, urgent) = mpsc::channel(limits::CONTROL_QUEUE_MAX);
        let inbound = Inbound::new(sender, control(signals.clone())).with_urgent(urgent_sender);
        let admin = transport.admin();
        let attached = transport.attach(me.clone(), inbound).await?;
        let mut seed = DefaultHasher::new();
        (me.path.to_string(), &me.boot_id, attached.nonce).hash(&mut seed);
        let (closing, ended) = (CancellationToken::new(), CancellationToken::new());
        let handlers = TaskTracker::new();
        let server = Server::new(
            me.clone(),
            router,
            attached.link.clone(),
            (signals.clone(), counters.clone()),
            &closing,
            &ended,
            &handlers,
        );
        let shared = Arc::new(Shared {
            me,
            link: attached.link,
            admin,
            pending,
            inflight: InFlight::default(),
            counters,
            ids: attached
                .ids
                .unwrap_or_else(|| Arc::new(SeededIds::new(seed.finish()))),
            homes: Arc::default(),
            streams: Arc::new(Semaphore::new(limits::STREAMS_READ_MAX)),
            closing,
            ended,
            handlers,
            tasks: TaskTracker::new(),
        });
        let until = shared.ended.clone();
        let server = Arc::new(server);
        let serve = server.clone().dispatch(requests);
        shared.handlers.spawn(async move {
            until.run_until_cancelled(serve).await;
        });
        let until = shared.ended.clone();
        shared.handlers.spawn(async move {
            until.run_until_cancelled(server.dispatch_urgent(urgent)).await;
        });
        shared.tasks.spawn(resend(
            shared.link.clone(),
            shared.pending.clone(),
            shared.ended.clone(),
        ));
        shared.tasks.spawn(watch_end(
            shared.link.clone(),
            shared.pending.clone(),
            shared.closing.clone(),
            shared.ended.clone(),
        ));
        shared.tasks.spawn(tickets::sweep(
            shared.link.clone(),
            shared.me.clone(),
            shared.homes.clone(),
            shared.closing.clone(),
        ));
        shared.tasks.spawn(pulse::run(
            signals,
            shared.link.clone(),
            Arc::new(Stamp::of(&shared.me)),
            shared.ended.clone(),
        ));
        shared.tasks.spawn(pulse::look(
            shared.pending.clone(),
            shared.link.clone(),
            shared.ended.clone(),
        ));
        shared.handlers.close();
        shared.tasks.close();
        let alive = Arc::new(shared.ended.clone().drop_guard());
        Ok(Self {
            shared,
            _alive: alive,
        })
    }

    /// Who I am on the bus.
    pub fn member(&self) -> &MemberInfo {
        &self.shared.me
    }

    /// Calls a method and waits for its reply, at most until the deadline. The request is written and the deadline
    /// begins now; it is sent when the future is first polled.
    ///
    /// # Errors
    /// The [`Fate`] of the call.
    ///
    /// # Cancel safety
    /// Dropping the future tells the receiver, as well as it can be told; the work may have been done all the same.
    pub fn call<M: Method>(
        &self,
        route: &Route,
        request: &M::Request,
        options: CallOptions,
    ) -> impl Future<Output = Result<M::Reply, Fate>> + Send + use<M> {
        let flight = self.launch_one::<M>(Kind::Request, route, request, &options);
        async move {
            let (ended, _way) = call::exchange(flight?, None).await;
            ended.and_then(read::<M>)
        }
    }

    /// Sends a request that is not answered. `Ok` means that the bus keeps it and delivers it at least once before
    /// its deadline; along [`Route::All`], that it was sent to all who are present.
    ///
    /// # Errors
    /// The [`Fate`] of the sending.
    ///
    /// # Cancel safety
    /// Dropping the future may or may not send the request.
    pub fn cast<M: Method>(
        &self,
        route: &Route,
        request: &M::Request,
        options: CallOptions,
    ) -> impl Future<Output = Result<(), Fate>> + Send + use<M> {
        let flight = self.launch::<M>(Kind::Cast, route, request, &options);
        async move {
            let mut flight = flight?;
            flight.send().await?;
            flight.over();
            Ok(())
        }
    }

    /// Sends a request to every live member along a route and gives their replies as they come.
    ///
    /// # Errors
    /// The [`Fate`] of the sending; `NoRoute` when nobody is present. The fate of each member is in the stream.
    ///
    /// # Cancel safety
    /// Dropping the future or the stream tells the receivers, as well as they can be told.
    pub fn broadcast<M: Method>(
        &self,
        route: &Route,
        request: &M::Request,
        options: CallOptions,
    ) -> impl Future<Output = Result<Replies<M>, Fate>> + Send + use<M> {
        let flight = match route {
            Route::All { .. } => self.launch::<M>(Kind::Request, route, request, &options),
            _ => Err(refused(
                "a broadcast goes to all",
                "the route names one member",
                "use call",
            )),
        };
        async move {
            let mut flight = flight?;
            let answers = flight.pending().many(
                flight.id,
                flight.to.clone(),
                flight.frame.clone(),
                flight.deadline,
            );
            let members = flight.send().await?;
            Ok(Replies::new(flight, answers, members, options.quorum))
        }
    }

    /// Who is present below a scope, sorted by path.
    ///
    /// # Errors
    /// When the transport's server does not answer, or the bus is shut down.
    pub async fn members(&self, scope: &NodePath) -> Result<Vec<MemberInfo>, BusError> {
        self.health()?;
        self.shared.link.members(scope).await
    }

    /// The dead letters below a scope: list, show, replay, drop. A transport that keeps none says so.
    pub fn dead_letters(&self, scope: NodePath) -> DeadLetters {
        DeadLetters::new(self.shared.admin.clone(), scope)
    }

    /// The operator's view.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] when the transport has none.
    pub fn admin(&self) -> Result<Arc<dyn Admin>, Error> {
        self.shared.admin.clone().ok_or_else(admin::none)
    }

    /// Why the bus works no more, if it does not.
    ///
    /// # Errors
    /// [`BusError::Closed`] after a shutdown, [`BusError::Displaced`] when another process took the path.
    pub fn health(&self) -> Result<(), BusError> {
        if let Some(error) = self.shared.link.ended().borrow().clone() {
            return Err(error);
        }
        if self.shared.closing.is_cancelled() {
            return Err(BusError::Closed);
        }
        Ok(())
    }

    /// Resolves when the bus works no more, whoever ended it.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn closed(&self) {
        self.shared.closing.cancelled().await;
    }

    /// Leaves the bus: takes no more requests, waits up to [`SHUTDOWN_GRACE`](limits::SHUTDOWN_GRACE) for running
    /// handlers, sends their replies, ends all tasks. Waiting calls of this side end. Ends all clones.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the bus closed, with tasks that end when the last clone is dropped.
    pub async fn shutdown(self) {
        let shared = &self.shared;
        shared.closing.cancel();
        shared.link.retire().await;
        if timeout(limits::SHUTDOWN_GRACE, shared.handlers.wait())
            .await
            .is_err()
        {
            tracing::warn!(member = %shared.me.path, "handlers were still running at shutdown and were dropped");
        }
        shared.pending.clear();
        shared.link.close().await;
        shared.ended.cancel();
        shared.join().await;
    }

    /// Ends at once without telling anyone, as a crash would. For tests of what comes after a crash.
    pub async fn kill(self) {
        self.shared.link.sever();
        self.shared.ended.cancel();
        self.shared.closing.cancel();
        self.shared.pending.clear();
        self.shared.join().await;
    }

    /// How many tasks the attachment runs, the transport's not counted. For tests.
    pub fn task_count(&self) -> usize {
        self.shared.tasks.len() + self.shared.handlers.len()
    }

    /// Writes a request down and launches it.
    fn launch<M: Method>(
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
    fn launch_body(
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
        let key = options.idempotency_key.clone();
        text(
            "the idempotency key",
            key.as_ref().map_or(0, String::len),
            limits::IDEMPOTENCY_KEY_MAX_BYTES,
        )?;
        let trace = options.traceparent.clone();
        text(
            "the traceparent",
            trace.as_ref().map_or(0, String::len),
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
        let frame = Envelope {
            kind,
            codec: options.codec,
            attempt,
            id,
            ttl_ms: millis(options.deadline),
            epoch: options.epoch,
            method: method.to_owned(),
            caller: self.shared.me.path.clone(),
            boot_id: self.shared.me.boot_id.clone(),
            traceparent: trace,
            idempotency_key: key,
            body,
        }
        .encode();
        let lane = match options.lane {
            Lane::Bulk => 0,
            Lane::Control => envelope::FLAG_CONTROL,
        };
        let traced = if options.traced { envelope::FLAG_TRACED } else { 0 };
        let frame = envelope::flagged(frame, lane | traced);
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

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bus")
            .field("path", &self.shared.me.path)
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// Waits for all tasks. A bus that is shut down by one of its own handlers would wait for itself; the hard end
    /// has dropped that handler before.
    async fn join(&self) {
        self.handlers.wait().await;
        self.tasks.wait().await;
    }
}

/// A link ends a send at its deadline by itself and knows more then; this much later it is ended from outside.
const SEND_GRACE: Duration = Duration::from_millis(50);

#[derive(Clone, Copy, PartialEq, Eq)]
enum FlightState {
    /// Not handed to the transport yet.
    Ready,
    /// With the transport or a worker.
    Away,
    /// Ended.
    Over,
}

/// A message on its way. Dropped before its end, it is forgotten here and cancelled there.
struct Flight {
    shared: Arc<Shared>,
    _slot: Slot,
    id: Uuid,
    to: Destination,
    frame: Bytes,
    deadline: Instant,
    /// How long its caller waits from the call to the deadline.
    patience: Duration,
    durability: Durability,
    state: FlightState,
}

impl Flight {
    fn pending(&self) -> &Arc<Pending> {
        &self.shared.pending
    }

    /// Hands the frame to the transport; gives who should get a broadcast.
    async fn send(&mut self) -> Result<Vec<NodePath>, Fate> {
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
    fn try_send(&mut self, sending: &Arc<Sending>) -> bool {
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

    fn unsent(&self, error: SendError) -> Fate {
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
    fn closed(&mut self, sending: &Sending) -> Fate {
        let fate = match sending.give_up() {
            true => Fate::Cancelled,
            false => self.lost(None, "this side's bus was shut down".into()),
        };
        self.over();
        fate
    }

    /// When it was called.
    fn called_at(&self) -> Instant {
        self.deadline - self.patience
    }

    /// The fate of a call that was not answered by its deadline; `tale` is what else is known of it.
    fn late(&mut self, sending: &Sending, tale: &str) -> Fate {
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

    fn is_traced(&self) -> bool {
        envelope::flags(&self.frame) & envelope::FLAG_TRACED != 0
    }

    /// Records a hop, if this call is traced.
    fn note(&self, stage: Stage, detail: impl FnOnce() -> String) {
        if self.is_traced() {
            self.shared.link.note(self.id, stage, detail());
        }
    }

    fn lost(&self, worker: Option<NodePath>, why: String) -> Fate {
        Fate::Lost {
            started: worker.is_some(),
            to: self.to.to_string(),
            worker,
            why,
        }
    }

    /// It is forgotten here.
    fn over(&mut self) {
        self.pending().remove(self.id);
        self.state = FlightState::Over;
    }

    /// Where a cancel can be sent: to who has begun, or to where the request went if that is certain.
    fn cancel_route(&self) -> Option<Destination> {
        let worker = self.pending().worker(self.id);
        match (&self.to, worker) {
            (Destination::Route(Route::Any { .. }), Some(worker)) => {
                Some(Destination::Route(Route::node(worker)))
            }
            (Destination::Route(Route::Any { .. }), None) => None,
            (to, _) => Some(to.clone()),
        }
    }

    fn cancel(&self) {
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

fn refused(what: &str, why: &str, fix: &str) -> Fate {
    Fate::Refused(Error::new(ErrorKind::InvalidInput, what, why, fix))
}

fn write<M: Method>(codec: crate::Codec, request: &M::Request) -> Result<Bytes, Fate> {
    codec.encode(request).map_err(|why| {
        Fate::Refused(Error::internal(
            format!("the request of {} cannot be written", M::NAME),
            why,
        ))
    })
}

fn read<M: Method>(answer: Answer) -> Result<M::Reply, Fate> {
    decode::<M>(&replied(answer)?)
}

fn decode<M: Method>(replied: &Replied) -> Result<M::Reply, Fate> {
    replied.codec.decode(&replied.body).map_err(|why| {
        Fate::Refused(
            Error::internal(format!("the reply of {} cannot be read", M::NAME), why)
                .with_outcome(Outcome::Applied),
        )
    })
}

/// The reply, or the fate that the answer is.
fn replied(answer: Answer) -> Result<Replied, Fate> {
    match answer.end {
        End::Reply(codec, body) => Ok(Replied::new(answer.from, codec, body)),
        _ => Err(read_failure(answer)),
    }
}

/// What an answer that is no reply means.
fn read_failure(answer: Answer) -> Fate {
    let node = |from: NodePath| format!("node {from}");
    match answer.end {
        End::Refused(error) => Fate::Refused(error),
        End::Fate(fate) => fate,
        End::Ended(EndCode::NoRoute, why) => Fate::NoRoute {
            to: node(answer.from),
            why,
        },
        End::Ended(EndCode::Overloaded, why) => Fate::Overloaded {
            at: node(answer.from),
            why,
        },
        End::Ended(EndCode::Expired, _) => Fate::Expired {
            at: node(answer.from),
        },
        End::Ended(EndCode::Cancelled, _) => Fate::Cancelled,
        End::Ended(EndCode::Lost, text) => submit::lost(&text),
        End::Unsent(_) => Fate::Cancelled,
        End::Reply(..) | End::Finished(..) => Fate::Refused(
            Error::internal(
                format!("{} answered in another way than it was asked", answer.from),
                "a stream was answered as a call, or a call as a stream",
            )
            .with_outcome(Outcome::Unknown),
        ),
    }
}

/// Replies go to who waits; cancels to what runs.
fn control(signals: Arc<Signals>) -> Arc<dyn Fn(Bytes) + Send + Sync> {
    Arc::new(move |frame: Bytes| signals.incoming(&frame))
}

/// Sends unanswered requests again whenever the transport may have forgotten them.
async fn resend(link: Arc<dyn Link>, pending: Arc<Pending>, ended: CancellationToken) {
    let mut generations = link.generations();
    generations.mark_unchanged();
    loop {
        tokio::select! {
            () = ended.cancelled() => return,
            // Cancel safe: a change is seen by the next turn.
            changed = generations.changed() => if changed.is_err() { return },
        }
        let now = Instant::now();
        let again = pending.again(now);
        if !again.is_empty() {
            tracing::info!(
                calls = again.len(),
                "the transport came back: unanswered calls are sent again"
            );
        }
        for call in again {
            let ttl = call.deadline.saturating_duration_since(now);
            if !link.try_resend(call.to, call.frame, ttl) {
                tracing::warn!("no room to send a call again; it ends at its deadline");
            }
        }
    }
}

/// Ends the bus when its link has ended, and the link when the bus has.
async fn watch_end(
    link: Arc<dyn Link>,
    pending: Arc<Pending>,
    closing: CancellationToken,
    ended: CancellationToken,
) {
    let mut failure = link.ended();
    let failed = async { failure.wait_for(Option::is_some).await.is_ok() };
    // Cancel safe: only looks.
    if ended.run_until_cancelled(failed).await.is_some() {
        closing.cancel();
        pending.clear();
        ended.cancelled().await;
    }
    closing.cancel();
    link.sever();
    pending.clear();
}

/// A span in whole milliseconds as the wire has it, at least 1 when there is anything left.
pub(crate) fn millis(span: Duration) -> u32 {
    let whole = u32::try_from(span.as_millis()).unwrap_or(u32::MAX);
    if whole == 0 && !span.is_zero() { 1 } else { whole }
}
