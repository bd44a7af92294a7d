//! The receiving side: from a delivery to an answer.
//!
//! Order for each request: recorded answer, deadline, method, epoch, cancel, run, record, reply, complete. A crash
//! between run and reply runs the request again in the next process: a handler whose effect must happen once writes
//! the request id together with its effect.

use super::running::Running;
use crate::{
    MemberInfo, Router,
    admin::Stage,
    codec::Codec,
    dedupe::{Answer, Begun, Dedupe, Key},
    envelope::{self, EndCode, Envelope, Kind},
    limits,
    router::{Context, Entry},
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
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;
use vbm_core::{Error, ErrorKind, NodePath, Outcome};

pub(super) struct Server {
    me: MemberInfo,
    router: Router,
    link: Arc<dyn Link>,
    running: Arc<Running>,
    dedupe: Mutex<Dedupe<Asker>>,
    permits: Arc<Semaphore>,
    urgent_permits: Arc<Semaphore>,
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
    deadline: Instant,
    inbox: Option<Destination>,
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
        running: Arc<Running>,
        closing: &CancellationToken,
        ended: &CancellationToken,
        tasks: &TaskTracker,
    ) -> Self {
        Self {
            me,
            router,
            link,
            running,
            dedupe: Mutex::new(Dedupe::default()),
            permits: Arc::new(Semaphore::new(limits::HANDLERS_MAX)),
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
        loop {
            let Ok(permit) = permits.clone().acquire_owned().await else {
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
            Ok(request) if matches!(request.kind, Kind::Request | Kind::Cast) => request,
            Ok(other) => {
                tracing::warn!(kind = ?other.kind, "a frame that is no request was skipped");
                return delivery.done.bury(delivery.frame, "it is no request");
            }
            Err(error) => {
                tracing::warn!(%error, bytes = delivery.frame.len(), "an entry of the request queue was skipped");
                return delivery.done.bury(delivery.frame, &error.to_string());
            }
        };
        let traced = envelope::flags(&delivery.frame) & envelope::FLAG_TRACED != 0;
        if traced {
            self.link
                .note(request.id, Stage::Taken, format!("attempt {}", request.attempt));
        }
        // A cast that cannot be handled tells nobody: its frame is kept for the dead letters.
        let frame = (request.kind == Kind::Cast).then(|| delivery.frame.clone());
        let deadline = delivery.since + Duration::from_millis(request.ttl_ms.into());
        let inbox = (request.kind == Kind::Request).then(|| Destination::Inbox {
            path: request.caller.clone(),
            boot_id: request.boot_id.clone(),
        });
        let key = match &request.idempotency_key {
            Some(key) => Key::Chosen {
                method: request.method.clone(),
                key: key.clone(),
            },
            None => Key::Id(request.id),
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
                    deadline,
                    inbox,
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
                let (answer, after) = server.execute(&job).await;
                drop(permit);
                if job.traced {
                    server
                        .link
                        .note(job.request.id, Stage::Ended, format!("{:?}", answer.kind));
                }
                let askers = match after {
                    After::Keep => server.dedupe().finish(&job.key, answer.clone(), Instant::now()),
                    After::Forget | After::Bury => server.dedupe().abandon(&job.key),
                };
                for asker in askers {
                    match (&job.frame, after) {
                        // Of its duplicates one is enough.
                        (Some(frame), After::Bury) if asker.id == job.request.id => {
                            asker.done.bury(frame.clone(), "its handler panicked");
                        }
                        _ => server.answer(asker, &answer).await,
                    }
                }
            };
            // Dropped at a hard end: the delivery is then not completed, and somebody else gets it.
            until.run_until_cancelled(work).await;
        });
    }

    /// The answer, and what becomes of it: kept when the handler ran and its answers are for keeping.
    async fn execute(&self, job: &Job) -> (Answer, After) {
        let request = &job.request;
        if job.deadline <= Instant::now() {
            return (ended(EndCode::Expired, ""), After::Forget);
        }
        let Some(entry) = self.router.find(&request.method) else {
            let why = format!("{} does not know the method '{}'", self.me.path, request.method);
            return (ended(EndCode::NoRoute, &why), After::Forget);
        };
        if let Err(error) = self.router.admit(entry.fenced, request.epoch).await {
            return (refusal(request.codec, &error), After::Forget);
        }
        let token = self.closing.child_token();
        if !self.running.begin(request.id, token.clone()) {
            return (ended(EndCode::Cancelled, ""), After::Forget);
        }
        let _end = EndGuard {
            running: &self.running,
            id: request.id,
        };
        if job.traced {
            self.link.note(request.id, Stage::Begun, request.method.clone());
        }
        let kept = if entry.kept { After::Keep } else { After::Forget };
        match self.run(entry, job, token).await {
            None if job.frame.is_some() => (refusal(request.codec, &panicked(&request.method)), After::Bury),
            None => (refusal(request.codec, &panicked(&request.method)), kept),
            Some(Ok(body)) => (
                Answer {
                    kind: Kind::Reply,
                    codec: request.codec,
                    body,
                    repeatable: false,
                },
                kept,
            ),
            Some(Err(error)) => (refusal(request.codec, &error), kept),
        }
    }

    /// What the handler says; nothing when it panicked.
    async fn run(&self, entry: &Entry, job: &Job, token: CancellationToken) -> Option<Result<Bytes, Error>> {
        let request = &job.request;
        let context = Context {
            request_id: request.id,
            idempotency_key: request.idempotency_key.clone(),
            caller: request.caller.clone(),
            epoch: request.epoch,
            attempt: request.attempt,
            traceparent: request.traceparent.clone(),
            cancelled: token.clone(),
            deadline: job.deadline,
        };
        let handler = async { entry.handler.handle(context, request.codec, &request.body).await };
        let mut handler = std::pin::pin!(AssertUnwindSafe(handler).catch_unwind());
        let mut accept = std::pin::pin!(sleep(limits::ACCEPT_AFTER));
        let mut expire = std::pin::pin!(sleep_until(job.deadline));
        let (mut accepted, mut expired) = (job.inbox.is_none(), false);
        loop {
            // No arm loses anything: the futures outlive the turn.
            tokio::select! {
                biased;
                result = &mut handler => return result.ok(),
                () = &mut accept, if !accepted => {
                    accepted = true;
                    if let Some(inbox) = &job.inbox {
                        let frame = self.frame(Kind::Accepted, request.codec, request.id, Bytes::new());
                        if !self.link.try_post(inbox.clone(), frame, limits::DEFAULT_DEADLINE) {
                            tracing::debug!(id = %request.id, "no room to say that a request was begun");
                        }
                    }
                }
                () = &mut expire, if !expired => {
                    expired = true;
                    tracing::debug!(method = request.method, id = %request.id, "a handler runs past its deadline");
                    token.cancel();
                }
            }
        }
    }

    /// Sends the answer to one asker and completes its delivery.
    async fn answer(&self, asker: Asker, answer: &Answer) {
        let left = asker.deadline.saturating_duration_since(Instant::now());
        if let Some(inbox) = asker.inbox
            && !left.is_zero()
        {
            let frame = self.frame(answer.kind, answer.codec, asker.id, answer.body.clone());
            self.link.post(inbox, frame, left).await;
        }
        asker.done.complete();
    }

    fn frame(&self, kind: Kind, codec: Codec, id: Uuid, body: Bytes) -> Bytes {
        Envelope {
            kind,
            codec,
            attempt: 1,
            id,
            ttl_ms: 0,
            epoch: self.me.epoch,
            method: String::new(),
            caller: NodePath::clone(&self.me.path),
            boot_id: self.me.boot_id.clone(),
            traceparent: None,
            idempotency_key: None,
            body,
        }
        .encode()
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
