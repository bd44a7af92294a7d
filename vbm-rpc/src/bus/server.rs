//! The receiving side: from a delivery to an answer.
//!
//! Order for each request: recorded answer (of this process), deadline, method, recorded answer (of the destination,
//! where it may have run), epoch, cancel, run, record, reply, complete. A crash between run and record runs the request
//! again in the next process: a handler whose effect must happen once writes the request id together with its effect.

mod ends;
mod run;

use super::{
    pulse::{Signals, Stamp, inbox_of},
    running::Running,
    stats::Counters,
    tickets::TicketJob,
};
use crate::{
    BadInput, MemberInfo, Route, Router,
    admin::Stage,
    codec::Codec,
    dedupe::{Answer, Begun, Dedupe, Key},
    envelope::{self, EndCode, Envelope, Kind},
    limits,
    router::Pace,
    transport::{Completion, Delivery, Destination, Link, ResultStore},
};
use bytes::Bytes;
use ends::{ended, key_conflict, refusal};
use std::{
    collections::HashSet,
    future::poll_fn,
    hash::{DefaultHasher, Hash, Hasher},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Poll, Waker},
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

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

    /// Something is wrong with a frame that can be read: counts it, with who sent it.
    #[cold]
    pub(super) fn odd(&self, what: BadInput, frame: &Envelope, why: impl std::fmt::Display) {
        let detail = format_args!("{} ({}): {why}", frame.method, frame.id);
        self.counters.bad.note(what, frame.caller.as_str(), detail);
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
