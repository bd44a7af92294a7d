//! The operator's view of a bus: dead letters, queues, the hops of one call.
//!
//! ```text
//!   a request that can never be handled --> dead letter --> list, show --> replay (back into its queue) | drop
//!     its process died with it DELIVERIES_MAX times; nobody can read it; the handler of a cast panicked
//! ```
//!
//! A transport that has this view gives it with [`Transport::admin`](crate::Transport::admin), without a member being
//! attached: it works while every other part of the system is down. [`Bus::admin`](crate::Bus::admin) and
//! [`Bus::dead_letters`](crate::Bus::dead_letters) give the same from a bus.

use crate::{Context, MemberInfo, Method, Router, envelope::Envelope};
use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::{fmt, sync::Arc, time::Duration};
use uuid::Uuid;
use vbm_core::{Error, ErrorKind, NodePath};

/// What an operator can see and do. All of it may be called at any time; nothing here disturbs calls in flight.
#[async_trait]
pub trait Admin: Send + Sync + 'static {
    /// Who is present below a scope, sorted by path.
    ///
    /// # Errors
    /// When the server behind it does not answer.
    async fn members(&self, scope: &NodePath) -> Result<Vec<MemberInfo>, Error>;

    /// The queues of those who are present below a scope, and of the services they offer.
    ///
    /// # Errors
    /// When the server behind it does not answer.
    async fn queues(&self, scope: &NodePath) -> Result<Vec<Queue>, Error>;

    /// The dead letters whose destination lies below a scope, oldest first.
    ///
    /// # Errors
    /// When the server behind it does not answer.
    async fn dead_letters(&self, scope: &NodePath) -> Result<Vec<DeadLetter>, Error>;

    /// One dead letter and its frame.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; when the server behind it does not answer.
    async fn dead_letter(&self, id: &str) -> Result<(DeadLetter, Bytes), Error>;

    /// Puts a dead letter back into its queue, with the same request id, as a further attempt, and takes it out of the
    /// dead letters in the same step. Its deadline is `ttl` from now; without one, as long as it had at first.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Unavailable`] when nobody serves the queue (the letter stays);
    /// [`ErrorKind::Unsupported`] when it is no request.
    async fn replay(&self, id: &str, ttl: Option<Duration>) -> Result<(), Error>;

    /// Forgets a dead letter.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; when the server behind it does not answer.
    async fn drop_letter(&self, id: &str) -> Result<(), Error>;

    /// The recorded hops of a [traced](crate::CallOptions::traced) call in the order in which they reached the server: those of one
    /// member in their order, those of two may pass each other. Empty when none are known.
    ///
    /// # Errors
    /// When the server behind it does not answer.
    async fn trace(&self, call: Uuid) -> Result<Vec<Hop>, Error>;

    /// How many commands the servers behind it have run since they were started, for whomever: two looks tell what a
    /// call costs. `None` when they do not tell.
    ///
    /// # Errors
    /// When the server behind it does not answer.
    async fn commands_processed(&self) -> Result<Option<u64>, Error> {
        Ok(None)
    }
}

/// A request that can never be handled, kept for people to look at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DeadLetter {
    /// Its name among the dead letters.
    pub id: String,
    /// Where it was to go, such as `node eu/n1` or `any worker in eu`.
    pub to: String,
    /// Why it is here.
    pub reason: String,
    /// How often it was delivered.
    pub deliveries: u32,
    /// Who had it last, when known.
    pub worker: Option<String>,
    /// When it came here, in milliseconds since 1970 by the server's clock.
    pub buried_at_ms: u64,
    /// When it was sent, by the same clock, when known.
    pub sent_at_ms: Option<u64>,
    /// The id of the request; none when it cannot be read.
    pub request_id: Option<Uuid>,
    /// Its method; empty when it cannot be read.
    pub method: String,
    /// Who sent it; empty when it cannot be read.
    pub caller: String,
    /// How long it had to be started, in milliseconds.
    pub ttl_ms: u32,
    /// The size of its frame.
    pub bytes: usize,
}

impl DeadLetter {
    /// What can be told by the frame alone; the rest is the transport's to fill in.
    pub(crate) fn of_frame(id: String, to: String, frame: &Bytes) -> Self {
        let request = Envelope::decode(frame).ok();
        let text = |get: fn(&Envelope) -> String| request.as_ref().map(get).unwrap_or_default();
        Self {
            id,
            to,
            reason: String::new(),
            deliveries: 0,
            worker: None,
            buried_at_ms: 0,
            sent_at_ms: None,
            request_id: request.as_ref().map(|request| request.id),
            method: text(|request| request.method.clone()),
            caller: text(|request| request.caller.to_string()),
            ttl_ms: request.as_ref().map_or(0, |request| request.ttl_ms),
            bytes: frame.len(),
        }
    }
}

/// What kind of queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum QueueKind {
    /// Requests for one node.
    Node,
    /// What steers one node.
    Control,
    /// Requests for any member of a service.
    Any,
    /// Replies for one process.
    Inbox,
    /// Broadcasts to a shard; kept for a while after they were read.
    Broadcast,
    /// Dead letters of a shard.
    DeadLetters,
}

/// One queue, as it stands now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Queue {
    /// What kind.
    pub kind: QueueKind,
    /// Whose, such as `eu/n1` or `worker in eu`.
    pub name: String,
    /// How many entries it holds, each of up to 256 requests: those that run included.
    pub depth: u64,
    /// How many entries were ever put into it: two looks give the rate.
    pub added: u64,
    /// Who takes from it and has not completed what: for [`QueueKind::Any`].
    pub takers: Vec<Taker>,
}

/// A consumer of a queue for any.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Taker {
    /// Its path and run.
    pub name: String,
    /// How many entries it has taken and not completed.
    pub pending: u64,
    /// For how long it has asked for nothing, in milliseconds.
    pub idle_ms: u64,
}

/// A station on the way of a traced call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Stage {
    /// Handed to the transport by the caller.
    Queued,
    /// In the process of a worker.
    Taken,
    /// Its handler runs.
    Begun,
    /// Its answer was made.
    Ended,
    /// The caller has its fate.
    Answered,
}

impl Stage {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Taken => "taken",
            Self::Begun => "begun",
            Self::Ended => "ended",
            Self::Answered => "answered",
        }
    }

    pub(crate) fn from_text(text: &str) -> Option<Self> {
        let all = [
            Self::Queued,
            Self::Taken,
            Self::Begun,
            Self::Ended,
            Self::Answered,
        ];
        all.into_iter().find(|stage| stage.as_str() == text)
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One recorded hop of a traced call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Hop {
    /// When, in milliseconds since 1970 by the server's clock.
    pub at_ms: u64,
    /// What happened.
    pub stage: Stage,
    /// To whom: a path and a run.
    pub by: String,
    /// More about it; may be empty.
    pub detail: String,
}

impl Hop {
    pub(crate) const fn new(at_ms: u64, stage: Stage, by: String, detail: String) -> Self {
        Self {
            at_ms,
            stage,
            by,
            detail,
        }
    }
}

/// Every member answers this, whatever its router: it is there, and its handlers run. Presence does not show it.
#[derive(Clone, Copy, Debug)]
pub struct Ping;

impl Method for Ping {
    const NAME: &'static str = "bus.ping";
    const FENCED: bool = false;
    const KEPT: bool = false;
    type Request = ();
    type Reply = Pong;
}

/// The answer to a [`Ping`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Pong {
    /// Who answered.
    pub path: NodePath,
    /// Which run of it.
    pub boot_id: String,
    /// The id of the call, for [`Admin::trace`].
    pub call: Uuid,
}

/// What every member answers besides its own methods.
pub(crate) fn router(me: &MemberInfo) -> Router {
    let (path, boot_id) = (me.path.clone(), me.boot_id.clone());
    Router::new().method::<Ping, _, _>(move |context: Context, ()| {
        let pong = Pong {
            path: path.clone(),
            boot_id: boot_id.clone(),
            call: context.request_id,
        };
        async move { Ok(pong) }
    })
}

/// The dead letters below a scope. See [`Bus::dead_letters`](crate::Bus::dead_letters).
#[derive(Clone)]
pub struct DeadLetters {
    admin: Option<Arc<dyn Admin>>,
    scope: NodePath,
}

impl DeadLetters {
    pub(crate) const fn new(admin: Option<Arc<dyn Admin>>, scope: NodePath) -> Self {
        Self { admin, scope }
    }

    fn admin(&self) -> Result<&Arc<dyn Admin>, Error> {
        self.admin.as_ref().ok_or_else(none)
    }

    /// All of them, oldest first.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] when the transport keeps none; as [`Admin::dead_letters`].
    pub async fn list(&self) -> Result<Vec<DeadLetter>, Error> {
        self.admin()?.dead_letters(&self.scope).await
    }

    /// One of them with its frame.
    ///
    /// # Errors
    /// As [`Admin::dead_letter`].
    pub async fn show(&self, id: &str) -> Result<(DeadLetter, Bytes), Error> {
        self.admin()?.dead_letter(id).await
    }

    /// Puts one back into its queue.
    ///
    /// # Errors
    /// As [`Admin::replay`].
    pub async fn replay(&self, id: &str, ttl: Option<Duration>) -> Result<(), Error> {
        self.admin()?.replay(id, ttl).await
    }

    /// Forgets one.
    ///
    /// # Errors
    /// As [`Admin::drop_letter`].
    pub async fn drop(&self, id: &str) -> Result<(), Error> {
        self.admin()?.drop_letter(id).await
    }
}

impl fmt::Debug for DeadLetters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadLetters")
            .field("scope", &self.scope)
            .finish_non_exhaustive()
    }
}

/// The transport has no operator's view.
pub(crate) fn none() -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "this bus has no operator's view",
        "its transport keeps no dead letters and shows no queues",
        "use a transport that does, such as Redis",
    )
}

pub(crate) fn no_letter(id: &str) -> Error {
    Error::new(
        ErrorKind::NotFound,
        format!("there is no dead letter '{id}'"),
        "it was replayed or dropped, or its time ran out",
        "see what there is with `vbm bus dlq list`",
    )
}

/// Nobody would take a replayed letter.
pub(crate) fn nobody_takes(to: &str) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!("nobody serves {to} now"),
        "the letter would wait where nobody looks, so it stays where it is",
        "start the missing part, then replay it",
    )
}

/// The frame for a replay: the same request, one attempt more, with a new time to live.
pub(crate) fn replayed(frame: &Bytes, ttl: Option<Duration>) -> Result<Bytes, Error> {
    let request = Envelope::decode(frame).map_err(|why| {
        Error::new(
            ErrorKind::Unsupported,
            "this letter cannot be replayed",
            why.to_string(),
            "drop it; who sent it speaks another version, or is no part of the bus",
        )
    })?;
    let ttl_ms = ttl.map_or(request.ttl_ms, crate::bus::millis);
    Ok(crate::envelope::next_attempt(
        frame,
        request.attempt.saturating_add(1),
        ttl_ms,
    ))
}
