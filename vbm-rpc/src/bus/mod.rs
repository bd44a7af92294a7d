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
mod fates;
mod flight;
mod flow;
mod follow;
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
    BusError, CallOptions, Fate, Member, MemberInfo, Method, Route, Router,
    admin::{self, Admin, DeadLetters},
    bad_input::BadInputs,
    envelope::Kind,
    limits,
    transport::{Inbound, Link, Transport},
};
use fates::{decode, read_failure, refused, replied};
use flight::{Flight, FlightState, write};
use follow::{control, resend, watch_end};
use inflight::InFlight;
use pending::{Answer, Pending};
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
    time::timeout,
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use vbm_core::{Error, IdSource, NodePath, SeededIds};

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
        let bad = Arc::new(BadInputs::new(me.path.clone()));
        let pending = Arc::new(Pending::new(bad.clone()));
        let (sender, requests) = mpsc::channel(limits::REQUEST_QUEUE_MAX);
        let counters = Arc::new(Counters::new(bad.clone(), sender.downgrade()));
        let signals = Arc::new(Signals::new(pending.clone(), counters.clone()));
        let (urgent_sender, urgent) = mpsc::channel(limits::CONTROL_QUEUE_MAX);
        let inbound = Inbound::new(sender, control(signals.clone()))
            .with_urgent(urgent_sender)
            .with_handlers(counters.permits())
            .with_bad_inputs(bad);
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
            let mut flight = flight?;
            let (ended, _way) = call::exchange(&mut flight, None).await;
            flight.read::<M>(ended?)
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
    /// [`ErrorKind::Unsupported`](vbm_core::ErrorKind::Unsupported) when the transport has none.
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

/// A span in whole milliseconds as the wire has it, at least 1 when there is anything left.
pub(crate) fn millis(span: Duration) -> u32 {
    let whole = u32::try_from(span.as_millis()).unwrap_or(u32::MAX);
    if whole == 0 && !span.is_zero() { 1 } else { whole }
}
