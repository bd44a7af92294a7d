//! The receiving side: from a delivery to an answer.
//!
//! Order for each request: recorded answer (of this process), deadline, method, recorded answer (of the destination,
//! where it may have run), epoch, cancel, run, record, reply, complete. A crash between run and record runs the request
//! again in the next process: a handler whose effect must happen once writes the request id together with its effect.

use super::{
    outlet::{Outlet, Served},
    pulse::{Signals, Stamp, Work, inbox_of},
    recorded::Looked,
    running::Running,
    signs,
    stats::Counters,
    tickets::TicketJob,
};
use crate::{
    BadInput, Fate, MemberInfo, Route, Router,
    admin::Stage,
    codec::Codec,
    dedupe::{Answer, Begun, Dedupe, Key},
    envelope::{self, EndCode, Envelope, Kind},
    limits,
    progress::ProgressOut,
    router::{Context, Entry, Pace, wrong_verb},
    transport::{Completion, Delivery, Destination, Link, ResultStore},
};
use bytes::Bytes;
use futures::{FutureExt, poll};
use std::{
    collections::HashSet,
    future::poll_fn,
    hash::{DefaultHasher, Hash, Hasher},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Poll, Waker},
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;
use vbm_core::{Error, ErrorKind, Outcome};

pub(super) struct Server {
    pub(super) me: MemberInfo,
    pub(super) router: Router,
    pub(super) link: Arc<dyn Link>,
    /// The shared memory of recorded answers and tickets, where the transport has one.
    pub(super) results: Option<Arc<dyn ResultStore>>,
    running: Arc<Running>,
    signals: Arc<Signals>,
    stamp: Arc<Stamp>,
    dedupe: Mutex<Dedupe<Asker>>,
    permits: Arc<Semaphore>,
    counters: Arc<Counters>,
    urgent_permits: Arc<Semaphore>,
    closing: CancellationToken,
    pub(super) ended: CancellationToken,
    pub(super) tasks: TaskTracker,
}

/// Who gets an answer, and what is completed with it.
pub(super) struct Asker {
    pub(super) id: Uuid,
    inbox: Option<Destination>,
    ticket: Option<Arc<TicketJob>>,
    deadline: Instant,
    pub(super) done: Completion,
}

/// One request that is to run.
pub(super) struct Job {
    pub(super) request: Envelope,
    pub(super) key: Key,
    since: Instant,
    pub(super) deadline: Instant,
    ticket: Option<Arc<TicketJob>>,
    /// The destination whose members share the answer.
    pub(super) home: Option<Arc<Route>>,
    /// It may have been delivered before.
    pub(super) again: bool,
    traced: bool,
    /// Of a cast.
    frame: Option<Bytes>,
}

/// What is done with an answer besides sending it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum After {
    /// Duplicates get it too.
    Keep,
    Forget,
    /// The handler panicked and nobody waits for an answer: the request goes to the dead letters.
    Bury,
}

impl Server {
    pub(super) fn new(
        me: MemberInfo,
        router: Router,
        link: Arc<dyn Link>,
        (signals, counters): (Arc<Signals>, Arc<Counters>),
        closing: &CancellationToken,
        ended: &CancellationToken,
        tasks: &TaskTracker,
    ) -> Self {
        Self {
            stamp: Arc::new(Stamp::of(&me)),
            me,
            router,
            results: link.results(),
            link,
            running: signals.running.clone(),
            signals,
            dedupe: Mutex::new(Dedupe::default()),
            permits: counters.permits(),
            counters,
            urgent_permits: Arc::new(Semaphore::new(limits::CONTROL_HANDLERS_MAX)),
            closing: closing.clone(),
            ended: ended.clone(),
            tasks: tasks.clone(),
        }
    }

    fn dedupe(&self) -> MutexGuard<'_, Dedupe<Asker>> {
        self.dedupe.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes requests until the bus closes. What is left in the queue then was not begun and stays with the transport.
    pub(super) async fn dispatch(self: Arc<Self>, requests: mpsc::Receiver<Delivery>) {
        let permits = self.permits.clone();
        self.dispatch_from(requests, permits).await;
    }

    /// The same for the control lane, which has handlers of its own.
    pub(super) async fn dispatch_urgent(self: Arc<Self>, requests: mpsc::Receiver<Delivery>) {
        let permits = self.urgent_permits.clone();
        self.dispatch_from(requests, permits).await;
    }

    async fn dispatch_from(self: Arc<Self>, mut requests: mpsc::Receiver<Delivery>, permits: Arc<Semaphore>) {
        let mut closing = std::pin::pin!(self.closing.cancelled());
        let mut taken = Vec::with_capacity(limits::DISPATCH_MAX);
        loop {
            tokio::select! {
                biased;
                () = &mut closing => return,
                // Cancel safe: nothing is taken when the other arm wins.
                count = requests.recv_many(&mut taken, limits::DISPATCH_MAX) => if count == 0 { return },
            }
            for delivery in taken.drain(..) {
                let Ok(permit) = permits.clone().acquire_owned().await else {
                    return;
                };
                if self.closing.is_cancelled() {
                    return;
                }
                self.accept(delivery, permit).await;
            }
        }
    }

    async fn accept(self: &Arc<Self>, delivery: Delivery, permit: OwnedSemaphorePermit) {
        let request = match Envelope::decode(&delivery.frame) {
            Ok(request) if request.kind.is_request() => request,
            Ok(request) if request.kind == Kind::Submit => {
                return self.accept_submitted(request, delivery, permit);
            }
            Ok(other) => {
                let why = format!("it is no request: {:?}", other.kind);
                self.odd(BadInput::OutOfPlace, &other, &why);
                return delivery.done.bury(delivery.frame, &why);
            }
            Err(error) => {
                let home = delivery.done.home();
                let place = home.map_or_else(|| "a broadcast".to_owned(), |home| home.to_string());
                let detail = format_args!("{} bytes were skipped: {error}", delivery.frame.len());
                self.counters.bad.note(error.kind(), &place, detail);
                return delivery.done.bury(delivery.frame, &error.to_string());
            }
        };
        self.take(request, None, delivery, permit).await;
    }

    /// Runs a request, or answers it with what is known of it.
    pub(super) async fn take(
        self: &Arc<Self>,
        request: Envelope,
        ticket: Option<Arc<TicketJob>>,
        delivery: Delivery,
        permit: OwnedSemaphorePermit,
    ) {
        let traced = envelope::flags(&delivery.frame) & envelope::FLAG_TRACED != 0;
        if traced {
            self.link
                .note(request.id, Stage::Taken, format!("attempt {}", request.attempt));
        }
        // A cast that cannot be handled tells nobody: its frame is kept for the dead letters.
        let frame = (request.kind == Kind::Cast).then(|| delivery.frame.clone());
        let deadline = delivery.since + Duration::from_millis(request.ttl_ms.into());
        let key = match &request.idempotency_key {
            // Nobody can be given the items of another's stream.
            Some(key) if request.kind != Kind::Open => Key::Chosen {
                method: request.method.clone(),
                key: key.clone(),
            },
            _ => Key::Id(request.id),
        };
        let recordable = request.idempotency_key.is_some() || self.router.records_any();
        let home = recordable.then(|| delivery.done.home()).flatten();
        let again = delivery.done.again();
        let mut asker = Some(Asker {
            id: request.id,
            inbox: inbox(&request),
            ticket: ticket.clone(),
            deadline,
            done: delivery.done,
        });
        let digest = digest(&key, &request);
        let begun = self
            .dedupe()
            .begin(&key, request.id, digest, &mut asker, Instant::now());
        match (begun, asker) {
            (Begun::New, _) => self.start(
                Job {
                    request,
                    key,
                    since: delivery.since,
                    deadline,
                    ticket,
                    home,
                    again,
                    traced,
                    frame,
                },
                permit,
            ),
            (Begun::Recorded(answer), Some(asker)) => self.answer(asker, &answer).await,
            (Begun::Conflict, Some(asker)) => {
                self.answer(asker, &refusal(request.codec, &key_conflict())).await
            }
            (Begun::Full, Some(asker)) => {
                let why = "too many calls with one key wait for its answer (DEDUPE_MAX_WAITERS)";
                self.answer(asker, &ended(EndCode::Overloaded, why)).await;
            }
            (Begun::Joined | Begun::Recorded(_) | Begun::Conflict | Begun::Full, _) => {}
        }
    }

    /// Begins a request: a quick handler here, and a task takes over when it waits; others in a task.
    fn start(self: &Arc<Self>, job: Job, permit: OwnedSemaphorePermit) {
        let pace = self
            .router
            .find(&job.request.method)
            .map(|entry| entry.pace.clone());
        let quick = pace.as_ref().is_none_or(|pace| pace.is_quick());
        let mut work = Box::pin(self.clone().work(job, permit));
        if quick && timed(pace.as_deref(), || begin(work.as_mut())).is_ready() {
            return;
        }
        let until = self.ended.clone();
        self.tasks.spawn(async move {
            let work = async {
                if !quick
                    && poll_fn(|cx| Poll::Ready(timed(pace.as_deref(), || work.as_mut().poll(cx))))
                        .await
                        .is_ready()
                {
                    return;
                }
                work.await;
            };
            // Dropped at a hard end: the delivery is then not completed, and somebody else gets it.
            until.run_until_cancelled(work).await;
        });
    }

    async fn work(self: Arc<Self>, job: Job, permit: OwnedSemaphorePermit) {
        let (answer, after) = self.execute(&job).await;
        drop(permit);
        if job.traced {
            self.link
                .note(job.request.id, Stage::Ended, format!("{:?}", answer.kind));
        }
        let askers = match after {
            After::Keep => self.dedupe().finish(&job.key, answer.clone(), Instant::now()),
            After::Forget | After::Bury => self.dedupe().abandon(&job.key),
        };
        let (several, mut told) = (askers.len() > 1, HashSet::new());
        for asker in askers {
            if several && !told.insert(asker.id) {
                // The same request sent again: one answer is enough.
                asker.done.complete();
                continue;
            }
            match (&job.frame, after) {
                // Of its duplicates one is enough.
                (Some(frame), After::Bury) if asker.id == job.request.id => {
                    asker.done.bury(frame.clone(), "its handler panicked");
                }
                _ => self.answer(asker, &answer).await,
            }
        }
    }

    /// The answer, and what becomes of it: kept when the handler ran and its answers are for keeping.
    async fn execute(&self, job: &Job) -> (Answer, After) {
        let request = &job.request;
        if job.deadline <= Instant::now() {
            return (self.late(job), After::Forget);
        }
        let Some(entry) = self.router.find(&request.method) else {
            let why = format!("{} does not know the method '{}'", self.me.path, request.method);
            self.odd(
                BadInput::UnknownMethod,
                request,
                "this member does not know the method",
            );
            return (ended(EndCode::NoRoute, &why), After::Forget);
        };
        match self.look_for(entry, job).await {
            Looked::Fresh => {}
            Looked::Recorded(answer) => return (answer, After::Keep),
            Looked::Conflict => return (refusal(request.codec, &key_conflict()), After::Forget),
            Looked::Late => return (self.late(job), After::Forget),
        }
        if let Err(error) = self.router.admit(entry.fenced, request.epoch).await {
            if error.kind() == ErrorKind::Stale {
                self.odd(BadInput::StaleEpoch, request, error.inline());
            }
            return (refusal(request.codec, &error), After::Forget);
        }
        if entry.streams != (request.kind == Kind::Open) {
            let refused = refusal(request.codec, &wrong_verb(&request.method, entry.streams));
            return (refused, After::Forget);
        }
        if self.running.was_cancelled(request.id) {
            return (ended(EndCode::Cancelled, ""), After::Forget);
        }
        if job.traced {
            self.link.note(request.id, Stage::Begun, request.method.clone());
        }
        let token = CancellationToken::new();
        let served = match entry.streams {
            true => match self.open(job, &token) {
                Some(served) => Some(served),
                None => {
                    let why = format!("{} streams are served", limits::STREAMS_SERVED_MAX);
                    return (ended(EndCode::Overloaded, &why), After::Forget);
                }
            },
            false => None,
        };
        let outlet = served.as_ref().map(|served| &served.outlet);
        let answer = match (self.run(entry, job, token, outlet).await, outlet) {
            // Not recorded either: it may be replayed.
            (None, _) if job.frame.is_some() => {
                return (refusal(request.codec, &panicked(&request.method)), After::Bury);
            }
            (None, _) => refusal(request.codec, &panicked(&request.method)),
            (Some(Ok(body)), None) => Answer {
                kind: Kind::Reply,
                codec: request.codec,
                body,
                repeatable: false,
            },
            (Some(Ok(body)), Some(outlet)) => Answer {
                kind: Kind::Finish,
                codec: request.codec,
                body: signs::numbered(outlet.sent(), &body),
                repeatable: false,
            },
            (Some(Err(fate)), _) => match ended_by(&fate) {
                Some(ended) => return (ended, After::Forget),
                None => {
                    let error = Error::from(fate);
                    // Only who refused its input is asked whether it could read it.
                    if error.kind() == ErrorKind::InvalidInput && !(entry.reads)(request.codec, &request.body)
                    {
                        self.odd(BadInput::Unreadable, request, error.inline());
                    }
                    refusal(request.codec, &error)
                }
            },
        };
        self.record(entry, job, &answer).await;
        (answer, if entry.kept { After::Keep } else { After::Forget })
    }

    /// The end of a request whose deadline passed before it was begun.
    #[cold]
    fn late(&self, job: &Job) -> Answer {
        let by = Instant::now().saturating_duration_since(job.deadline);
        let why = format_args!(
            "its deadline had passed {} ms ago: it is not begun",
            by.as_millis()
        );
        self.odd(BadInput::Late, &job.request, why);
        ended(EndCode::Expired, "")
    }

    /// Something is wrong with a frame that can be read: counts it, with who sent it.
    #[cold]
    pub(super) fn odd(&self, what: BadInput, frame: &Envelope, why: impl std::fmt::Display) {
        let detail = format_args!("{} ({}): {why}", frame.method, frame.id);
        self.counters.bad.note(what, frame.caller.as_str(), detail);
    }

    fn open(&self, job: &Job, token: &CancellationToken) -> Option<Served> {
        self.signals.outlets.open(Outlet::new(
            job.request.id,
            inbox_of(&job.request),
            self.link.clone(),
            self.stamp.clone(),
            token.clone(),
            job.deadline,
        ))
    }

    /// What the handler says; nothing when it panicked.
    async fn run(
        &self,
        entry: &Entry,
        job: &Job,
        token: CancellationToken,
        outlet: Option<&Arc<Outlet>>,
    ) -> Option<Result<Bytes, Fate>> {
        let request = &job.request;
        let listens = request.kind == Kind::Watched;
        let (progress, newest) = listens.then(|| ProgressOut::new(request.codec)).unzip();
        let context = Context {
            request_id: request.id,
            idempotency_key: request.idempotency_key.clone(),
            caller: request.caller.clone(),
            epoch: request.epoch,
            attempt: request.attempt,
            traceparent: request.traceparent.clone(),
            cancelled: token.clone(),
            deadline: job.deadline,
            progress,
            outlet: outlet.cloned(),
        };
        let begin = || entry.handler.handle(context, request.codec, &request.body);
        let Ok(handler) = catch_unwind(AssertUnwindSafe(begin)) else {
            return None;
        };
        let mut handler = AssertUnwindSafe(handler).catch_unwind();
        // Most end at once: for them there are no timers, and no cancel could find them.
        let ended = match poll!(&mut handler) {
            Poll::Ready(ended) => ended,
            // In a box of its own: the many that end at once need not have room for it.
            Poll::Pending => Box::pin(self.attend(handler, job, token, outlet, newest)).await,
        };
        ended.ok()
    }

    /// Waits for a handler; says that it has begun, and tells it when nobody waits any more.
    async fn attend<T>(
        &self,
        mut handler: impl Future<Output = T> + Unpin,
        job: &Job,
        token: CancellationToken,
        outlet: Option<&Arc<Outlet>>,
        newest: Option<watch::Receiver<Bytes>>,
    ) -> T {
        let request = &job.request;
        if !self.running.begin(request.id, token.clone()) {
            token.cancel();
        }
        let _end = EndGuard {
            running: &self.running,
            id: request.id,
        };
        let listens = newest.is_some();
        let mut report = std::pin::pin!(self.report(job, newest));
        let mut accept = std::pin::pin!(sleep(limits::ACCEPT_AFTER));
        let mut expire = std::pin::pin!(sleep_until(job.deadline));
        let mut closing = std::pin::pin!(self.closing.cancelled());
        let silent = !request.kind.is_answered() && job.ticket.is_none();
        // While it lives, the request is in every beat.
        let mut _work = None;
        let (mut accepted, mut expired, mut closed) = (silent, false, false);
        loop {
            // No arm loses anything: the futures outlive the turn.
            tokio::select! {
                biased;
                ended = &mut handler => return ended,
                () = &mut report, if listens => {}
                () = &mut accept, if !accepted => {
                    accepted = true;
                    if let Some(ticket) = &job.ticket {
                        self.note_begun(ticket);
                    }
                    if request.kind.is_answered() {
                        _work = Some(self.begun(job, outlet.cloned()));
                    }
                }
                () = &mut expire, if !expired => {
                    expired = true;
                    tracing::debug!(method = request.method, id = %request.id, "a handler runs past its deadline");
                    token.cancel();
                }
                () = &mut closing, if !closed => {
                    closed = true;
                    token.cancel();
                }
            }
        }
    }

    /// Tells the caller that its request runs; from now on it is in every beat.
    fn begun(&self, job: &Job, outlet: Option<Arc<Outlet>>) -> Work {
        let request = &job.request;
        let inbox = inbox_of(request);
        let every = super::millis(limits::BEAT_EVERY);
        let waited = job.since.elapsed().saturating_sub(limits::ACCEPT_AFTER);
        let body = signs::accepted(every, super::millis(waited));
        let frame = self.stamp.frame(Kind::Accepted, request.codec, request.id, body);
        if !self.link.try_post(inbox.clone(), frame, limits::DEFAULT_DEADLINE) {
            tracing::debug!(id = %request.id, "no room to say that a request was begun");
        }
        self.signals.working.begin(&inbox, request.id, outlet)
    }

    /// Sends the newest progress as it changes; never ends by itself.
    async fn report(&self, job: &Job, newest: Option<watch::Receiver<Bytes>>) {
        let Some(mut newest) = newest else {
            return std::future::pending().await;
        };
        let request = &job.request;
        let inbox = inbox_of(request);
        for number in 0u64.. {
            if newest.changed().await.is_err() {
                // The handler has let its context go: there will be no more.
                return std::future::pending().await;
            }
            let body = signs::numbered(number, &newest.borrow_and_update());
            let frame = self.stamp.frame(Kind::Progress, request.codec, request.id, body);
            if !self.link.try_post(inbox.clone(), frame, limits::DEFAULT_DEADLINE) {
                tracing::debug!(id = %request.id, "no room for progress");
            }
            sleep(limits::PROGRESS_EVERY).await;
        }
    }

    /// Sends the answer to one asker and completes its delivery.
    async fn answer(&self, asker: Asker, answer: &Answer) {
        if let Some(ticket) = asker.ticket.clone() {
            return self.end_ticket(&ticket, asker, answer).await;
        }
        let left = asker.deadline.saturating_duration_since(Instant::now());
        if let Some(inbox) = asker.inbox
            && !left.is_zero()
        {
            let frame = self.frame(answer.kind, answer.codec, asker.id, &answer.body);
            // There is room, but for a server that stands still.
            if !self.link.try_post(inbox.clone(), frame.clone(), left) {
                self.link.post(inbox, frame, left).await;
            }
        }
        asker.done.complete();
    }

    pub(super) fn frame(&self, kind: Kind, codec: Codec, id: Uuid, body: impl AsRef<[u8]>) -> Bytes {
        self.stamp.frame(kind, codec, id, body)
    }
}

/// Where the answer goes, if one is wanted.
fn inbox(request: &Envelope) -> Option<Destination> {
    request.kind.is_answered().then(|| inbox_of(request))
}

/// Tells requests of one chosen key apart. An id stands for one request: its content need not be looked at.
fn digest(key: &Key, request: &Envelope) -> u64 {
    match key {
        Key::Id(_) => 0,
        Key::Chosen { .. } => {
            let mut digest = DefaultHasher::new();
            (&request.method, &request.body).hash(&mut digest);
            digest.finish()
        }
    }
}

/// Takes the time of a handler's first step.
fn timed<T>(pace: Option<&Pace>, step: impl FnOnce() -> T) -> T {
    let begin = Instant::now();
    let result = step();
    if let Some(pace) = pace {
        pace.saw(begin.elapsed());
    }
    result
}

/// The first step of a future whose task takes over from there: that polls it again, so nobody need be woken.
fn begin(work: Pin<&mut impl Future<Output = ()>>) -> Poll<()> {
    // What the dispatcher did before must not count for the handler: it would seem to wait.
    let mut work = tokio::task::unconstrained(work);
    Pin::new(&mut work).poll(&mut std::task::Context::from_waker(Waker::noop()))
}

struct EndGuard<'a> {
    running: &'a Running,
    id: Uuid,
}

impl Drop for EndGuard<'_> {
    fn drop(&mut self) {
        self.running.end(self.id);
    }
}

fn ended(code: EndCode, why: &str) -> Answer {
    let mut body = Vec::with_capacity(1 + why.len());
    body.push(code as u8);
    body.extend_from_slice(why.as_bytes());
    Answer {
        kind: Kind::End,
        codec: Codec::MessagePack,
        body: body.into(),
        repeatable: true,
    }
}

/// What a layer decided before the handler was begun, as the end of the call.
fn ended_by(fate: &Fate) -> Option<Answer> {
    Some(match fate {
        Fate::NoRoute { why, .. } => ended(EndCode::NoRoute, why),
        Fate::Overloaded { at, why } => ended(EndCode::Overloaded, &format!("{at}: {why}")),
        Fate::Expired { .. } => ended(EndCode::Expired, ""),
        _ => return None,
    })
}

fn refusal(codec: Codec, error: &Error) -> Answer {
    let repeatable = matches!(error.outcome(), Outcome::NotApplied | Outcome::RolledBack);
    // An error of four strings can always be written.
    let body = codec.encode(error).unwrap_or_default();
    Answer {
        kind: Kind::Refusal,
        codec,
        body,
        repeatable,
    }
}

fn key_conflict() -> Error {
    Error::new(
        ErrorKind::Conflict,
        "the idempotency key was used for another request",
        "a key stands for one request with one content",
        "use a new key for a new request",
    )
}

fn panicked(method: &str) -> Error {
    Error::internal(
        format!("the handler of {method} panicked"),
        "see the log of the node that ran it",
    )
    .with_outcome(Outcome::Unknown)
}
