//! From a request that is to run to its answer: the checks, the handler, what its caller is told meanwhile, the record.

use super::{
    After, Job, Server,
    ends::{ended, ended_by, key_conflict, panicked, refusal},
};
use crate::{
    BadInput, Fate,
    admin::Stage,
    bus::{
        millis,
        outlet::{Outlet, Served},
        pulse::{Work, inbox_of},
        recorded::Looked,
        running::Running,
        signs,
    },
    dedupe::Answer,
    envelope::{EndCode, Kind},
    limits,
    progress::ProgressOut,
    router::{Context, Entry, wrong_verb},
};
use bytes::Bytes;
use futures::{FutureExt, poll};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    task::Poll,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use vbm_core::{Error, ErrorKind};

impl Server {
    /// The answer, and what becomes of it: kept when the handler ran and its answers are for keeping.
    pub(super) async fn execute(&self, job: &Job) -> (Answer, After) {
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
        // The store and the gate may have taken their time.
        if job.deadline <= Instant::now() {
            return (self.late(job), After::Forget);
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
        let every = millis(limits::BEAT_EVERY);
        let waited = job.since.elapsed().saturating_sub(limits::ACCEPT_AFTER);
        let body = signs::accepted(every, millis(waited));
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
