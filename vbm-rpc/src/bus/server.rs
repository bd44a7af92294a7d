//! The receiving side: from a delivery to an answer.
//!
//! Order for each request: recorded answer, deadline, method, epoch, cancel, run, record, reply, complete. A crash
//! between run and reply runs the request again in the next process: a handler whose effect must happen once writes
//! the request id together with its effect.

use super::{
    outlet::{Outlet, Served},
    pulse::{Signals, Stamp, Work},
    running::Running,
    signs,
};
use crate::{
    MemberInfo, Router,
    codec::Codec,
    dedupe::{Answer, Begun, Dedupe, Key},
    envelope::{EndCode, Envelope, Kind},
    limits,
    progress::ProgressOut,
    router::{Context, Entry, wrong_verb},
    transport::{Completion, Delivery, Destination, Link},
};
use bytes::Bytes;
use futures::FutureExt;
use std::{
    hash::{DefaultHasher, Hash, Hasher},
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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
    me: MemberInfo,
    router: Router,
    link: Arc<dyn Link>,
    running: Arc<Running>,
    signals: Arc<Signals>,
    stamp: Arc<Stamp>,
    dedupe: Mutex<Dedupe<Asker>>,
    permits: Arc<Semaphore>,
    closing: CancellationToken,
    ended: CancellationToken,
    tasks: TaskTracker,
}

/// Who gets an answer, and what is completed with it.
struct Asker {
    id: Uuid,
    inbox: Option<Destination>,
    deadline: Instant,
    done: Completion,
}

/// One request that is to run.
struct Job {
    request: Envelope,
    key: Key,
    since: Instant,
    deadline: Instant,
    inbox: Option<Destination>,
}

impl Server {
    pub(super) fn new(
        me: MemberInfo,
        router: Router,
        link: Arc<dyn Link>,
        signals: Arc<Signals>,
        closing: &CancellationToken,
        ended: &CancellationToken,
        tasks: &TaskTracker,
    ) -> Self {
        Self {
            stamp: Arc::new(Stamp::of(&me)),
            me,
            router,
            link,
            running: signals.running.clone(),
            signals,
            dedupe: Mutex::new(Dedupe::default()),
            permits: Arc::new(Semaphore::new(limits::HANDLERS_MAX)),
            closing: closing.clone(),
            ended: ended.clone(),
            tasks: tasks.clone(),
        }
    }

    fn dedupe(&self) -> MutexGuard<'_, Dedupe<Asker>> {
        self.dedupe.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes requests until the bus closes. What is left in the queue then was not begun and stays with the transport.
    pub(super) async fn dispatch(self: Arc<Self>, mut requests: mpsc::Receiver<Delivery>) {
        loop {
            let Ok(permit) = self.permits.clone().acquire_owned().await else {
                return;
            };
            let delivery = tokio::select! {
                biased;
                () = self.closing.cancelled() => return,
                // Cancel safe: nothing is taken when the other arm wins.
                delivery = requests.recv() => delivery,
            };
            let Some(delivery) = delivery else { return };
            self.accept(delivery, permit).await;
        }
    }

    async fn accept(self: &Arc<Self>, delivery: Delivery, permit: OwnedSemaphorePermit) {
        let request = match Envelope::decode(&delivery.frame) {
            Ok(request) if request.kind.is_request() => request,
            Ok(other) => {
                tracing::warn!(kind = ?other.kind, "a frame that is no request was skipped");
                return delivery.done.complete();
            }
            Err(error) => {
                tracing::warn!(%error, bytes = delivery.frame.len(), "an entry of the request queue was skipped");
                return delivery.done.complete();
            }
        };
        let deadline = delivery.since + Duration::from_millis(request.ttl_ms.into());
        let inbox = request.kind.is_answered().then(|| Destination::Inbox {
            path: request.caller.clone(),
            boot_id: request.boot_id.clone(),
        });
        let key = match &request.idempotency_key {
            // Nobody can be given the items of another's stream.
            Some(key) if request.kind != Kind::Open => Key::Chosen {
                method: request.method.clone(),
                key: key.clone(),
            },
            _ => Key::Id(request.id),
        };
        let mut asker = Some(Asker {
            id: request.id,
            inbox: inbox.clone(),
            deadline,
            done: delivery.done,
        });
        let mut digest = DefaultHasher::new();
        (&request.method, &request.body).hash(&mut digest);
        let begun = self
            .dedupe()
            .begin(&key, request.id, digest.finish(), &mut asker, Instant::now());
        match (begun, asker) {
            (Begun::New, _) => self.start(
                Job {
                    request,
                    key,
                    since: delivery.since,
                    deadline,
                    inbox,
                },
                permit,
            ),
            (Begun::Recorded(answer), Some(asker)) => self.answer(asker, &answer).await,
            (Begun::Conflict, Some(asker)) => {
                self.answer(asker, &refusal(request.codec, &key_conflict())).await
            }
            (Begun::Full, Some(asker)) => {
                let why = "too many duplicates of one request wait for its answer";
                self.answer(asker, &ended(EndCode::Overloaded, why)).await;
            }
            (Begun::Joined | Begun::Recorded(_) | Begun::Conflict | Begun::Full, _) => {}
        }
    }

    fn start(self: &Arc<Self>, job: Job, permit: OwnedSemaphorePermit) {
        let server = self.clone();
        self.tasks.spawn(async move {
            let until = server.ended.clone();
            let work = async {
                let (answer, kept) = server.execute(&job).await;
                drop(permit);
                let askers = match kept {
                    true => server.dedupe().finish(&job.key, answer.clone(), Instant::now()),
                    false => server.dedupe().abandon(&job.key),
                };
                for asker in askers {
                    server.answer(asker, &answer).await;
                }
            };
            // Dropped at a hard end: the delivery is then not completed, and somebody else gets it.
            until.run_until_cancelled(work).await;
        });
    }

    /// The answer, and whether it is kept: the handler ran, and its answers are for keeping.
    async fn execute(&self, job: &Job) -> (Answer, bool) {
        let request = &job.request;
        if job.deadline <= Instant::now() {
            return (ended(EndCode::Expired, ""), false);
        }
        let Some(entry) = self.router.find(&request.method) else {
            let why = format!("{} does not know the method '{}'", self.me.path, request.method);
            return (ended(EndCode::NoRoute, &why), false);
        };
        if let Err(error) = self.router.admit(entry.fenced, request.epoch).await {
            return (refusal(request.codec, &error), false);
        }
        if entry.streams != (request.kind == Kind::Open) {
            let refused = refusal(request.codec, &wrong_verb(&request.method, entry.streams));
            return (refused, false);
        }
        let token = self.closing.child_token();
        if !self.running.begin(request.id, token.clone()) {
            return (ended(EndCode::Cancelled, ""), false);
        }
        let _end = EndGuard {
            running: &self.running,
            id: request.id,
        };
        let served = match (&job.inbox, entry.streams) {
            (Some(inbox), true) => match self.open(job, inbox, &token) {
                Some(served) => Some(served),
                None => {
                    let why = format!("{} streams are served", limits::STREAMS_SERVED_MAX);
                    return (ended(EndCode::Overloaded, &why), false);
                }
            },
            _ => None,
        };
        let outlet = served.as_ref().map(|served| served.outlet.clone());
        let answer = match (self.run(entry, job, token, outlet.clone()).await, outlet) {
            (Ok(body), None) => Answer {
                kind: Kind::Reply,
                codec: request.codec,
                body,
                repeatable: false,
            },
            (Ok(body), Some(outlet)) => Answer {
                kind: Kind::Finish,
                codec: request.codec,
                body: signs::numbered(outlet.sent(), &body),
                repeatable: false,
            },
            (Err(error), _) => refusal(request.codec, &error),
        };
        (answer, entry.kept)
    }

    fn open(&self, job: &Job, inbox: &Destination, token: &CancellationToken) -> Option<Served> {
        self.signals.outlets.open(Outlet::new(
            job.request.id,
            inbox.clone(),
            self.link.clone(),
            self.stamp.clone(),
            token.clone(),
            job.deadline,
        ))
    }

    async fn run(
        &self,
        entry: &Entry,
        job: &Job,
        token: CancellationToken,
        outlet: Option<Arc<Outlet>>,
    ) -> Result<Bytes, Error> {
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
            outlet: outlet.clone(),
        };
        let handler = async { entry.handler.handle(context, request.codec, &request.body).await };
        let mut handler = std::pin::pin!(AssertUnwindSafe(handler).catch_unwind());
        let mut report = std::pin::pin!(self.report(job, newest));
        let mut accept = std::pin::pin!(sleep(limits::ACCEPT_AFTER));
        let mut expire = std::pin::pin!(sleep_until(job.deadline));
        let (mut begun, mut expired) = (None, false);
        loop {
            // No arm loses anything: the futures outlive the turn.
            tokio::select! {
                biased;
                result = &mut handler => return result.unwrap_or_else(|_| Err(panicked(&request.method))),
                () = &mut report, if listens => {}
                () = &mut accept, if begun.is_none() && job.inbox.is_some() => {
                    begun = self.begun(job, outlet.clone());
                }
                () = &mut expire, if !expired => {
                    expired = true;
                    tracing::debug!(method = request.method, id = %request.id, "a handler runs past its deadline");
                    token.cancel();
                }
            }
        }
    }

    /// Tells the caller that its request runs; from now on it is in every beat.
    fn begun(&self, job: &Job, outlet: Option<Arc<Outlet>>) -> Option<Work> {
        let (inbox, request) = (job.inbox.as_ref()?, &job.request);
        let every = super::millis(limits::BEAT_EVERY);
        let waited = job.since.elapsed().saturating_sub(limits::ACCEPT_AFTER);
        let body = signs::accepted(every, super::millis(waited));
        let frame = self.stamp.frame(Kind::Accepted, request.codec, request.id, body);
        if !self.link.try_post(inbox.clone(), frame, limits::DEFAULT_DEADLINE) {
            tracing::debug!(id = %request.id, "no room to say that a request was begun");
        }
        Some(self.signals.working.begin(inbox, request.id, outlet))
    }

    /// Sends the newest progress as it changes; never ends by itself.
    async fn report(&self, job: &Job, newest: Option<watch::Receiver<Bytes>>) {
        let (Some(mut newest), Some(inbox)) = (newest, &job.inbox) else {
            return std::future::pending().await;
        };
        let request = &job.request;
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
        let left = asker.deadline.saturating_duration_since(Instant::now());
        if let Some(inbox) = asker.inbox
            && !left.is_zero()
        {
            let frame = self
                .stamp
                .frame(answer.kind, answer.codec, asker.id, answer.body.clone());
            self.link.post(inbox, frame, left).await;
        }
        asker.done.complete();
    }
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
