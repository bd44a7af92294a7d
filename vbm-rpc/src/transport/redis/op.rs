//! What is given to the writer.

use super::{last_word::LastWord, letters::Letter, records::StoreOp};
use crate::{
    Route, Service,
    admin::Stage,
    envelope,
    transport::{Destination, SendError, SendWatch},
};
use bytes::Bytes;
use std::sync::Arc;
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    time::Instant,
};
use uuid::Uuid;
use vbm_core::NodePath;

/// Where a frame is written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Target {
    /// The control lane of a node.
    Control(NodePath),
    Node(NodePath),
    Any {
        scope: NodePath,
        service: Service,
    },
    /// The control lane of those.
    AnyControl {
        scope: NodePath,
        service: Service,
    },
    Shard {
        shard: NodePath,
        scope: NodePath,
        service: Service,
    },
    Inbox {
        path: NodePath,
        boot_id: String,
    },
}

impl Target {
    /// Where a frame is written, or the scope and service of a broadcast, which needs presence first.
    pub(super) fn of(to: Destination, frame: &[u8]) -> Result<Self, (NodePath, crate::Service)> {
        Ok(match to {
            Destination::Route(Route::Node(path)) if envelope::is_control(frame) => Self::Control(path),
            Destination::Route(Route::Node(path)) => Self::Node(path),
            Destination::Route(Route::Any { scope, service }) if envelope::is_control(frame) => {
                Self::AnyControl { scope, service }
            }
            Destination::Route(Route::Any { scope, service }) => Self::Any { scope, service },
            Destination::Route(Route::All { scope, service }) => return Err((scope, service)),
            Destination::Inbox { path, boot_id } => Self::Inbox { path, boot_id },
        })
    }

    /// Whether it must not wait behind bulk.
    pub(super) const fn is_control(&self) -> bool {
        matches!(self, Self::Control(_) | Self::AnyControl { .. })
    }

    /// Whether what goes there has deadlines of its own.
    pub(super) const fn is_of_requests(&self) -> bool {
        !matches!(self, Self::Inbox { .. })
    }

    /// Where it goes when a member that is there has no such queue: those of an older version have no control lane.
    pub(super) fn of_older_version(&self) -> Option<Self> {
        match self {
            Self::Control(path) => Some(Self::Node(path.clone())),
            Self::AnyControl { scope, service } => Some(Self::Any {
                scope: scope.clone(),
                service: service.clone(),
            }),
            _ => None,
        }
    }
}

pub(super) enum Op {
    Send(SendOp),
    /// An entry is done with.
    Complete {
        key: Arc<str>,
        id: String,
        group: bool,
    },
    /// Something with recorded answers or tickets.
    Store(StoreOp),
    /// A request is given up.
    Bury(Letter),
    /// A hop of a traced call.
    Note(Note),
    /// Look whether the connection lives.
    Probe,
    /// Say when everything before this is written.
    Flushed(oneshot::Sender<()>),
}

/// Who is told what becomes of a frame.
enum Asker {
    Nobody,
    /// Waits for the end, or has given up: the word is taken before the first attempt.
    Waiting(oneshot::Sender<Result<(), SendError>>, Arc<LastWord>),
    /// Is not woken when all is well.
    Watching(Arc<dyn SendWatch>),
}

/// A hop of a traced call.
pub(super) struct Note {
    pub(super) call: Uuid,
    pub(super) stage: Stage,
    pub(super) by: String,
    pub(super) detail: String,
}

/// A frame to be written.
pub(super) struct SendOp {
    pub(super) target: Target,
    pub(super) frame: Bytes,
    pub(super) until: Instant,
    /// The destination may be absent for a while.
    pub(super) patient: bool,
    /// An attempt broke off: it may be in Redis, acknowledged or not.
    pub(super) uncertain: bool,
    asker: Asker,
    _room: OwnedSemaphorePermit,
}

impl SendOp {
    pub(super) fn new(target: Target, frame: Bytes, until: Instant, room: OwnedSemaphorePermit) -> Self {
        Self {
            target,
            frame,
            until,
            patient: false,
            uncertain: false,
            asker: Asker::Nobody,
            _room: room,
        }
    }

    pub(super) fn answering(
        mut self,
        done: oneshot::Sender<Result<(), SendError>>,
        claim: Arc<LastWord>,
    ) -> Self {
        self.asker = Asker::Waiting(done, claim);
        self
    }

    pub(super) fn watched(mut self, watch: Arc<dyn SendWatch>) -> Self {
        self.asker = Asker::Watching(watch);
        self
    }

    pub(super) fn patient(mut self, patient: bool) -> Self {
        self.patient = patient;
        self
    }

    /// From now on it may be in Redis; `false` when it is not wanted any more.
    pub(super) fn writing(&self) -> bool {
        match &self.asker {
            Asker::Nobody => true,
            Asker::Waiting(_, claim) => claim.take(),
            Asker::Watching(watch) => watch.writing(),
        }
    }

    /// The same frame for another target.
    pub(super) fn to(self, target: Target) -> Self {
        Self { target, ..self }
    }

    pub(super) const fn is_control(&self) -> bool {
        self.target.is_control()
    }

    /// Whether it may be refused because its queue is deep: not what may be in the queue already.
    pub(super) const fn can_be_refused(&self) -> bool {
        !self.uncertain && !self.patient
    }

    /// This attempt was refused. That says nothing about an earlier one that broke off.
    pub(super) fn not_kept(self, error: SendError) {
        let error = match (self.uncertain, error) {
            (true, SendError::NoRoute(why) | SendError::Overloaded(why)) => SendError::Uncertain(format!(
                "the connection to Redis broke while it was written, and now: {why}"
            )),
            (_, error) => error,
        };
        self.settle(Err(error));
    }

    pub(super) fn settle(self, result: Result<(), SendError>) {
        match (self.asker, result) {
            // An error means that the caller has given up.
            (Asker::Waiting(done, _), result) => drop(done.send(result)),
            (Asker::Watching(watch), Ok(())) => watch.kept(),
            (Asker::Watching(watch), Err(error)) => watch.failed(error),
            (Asker::Nobody, Ok(())) => {}
            (Asker::Nobody, Err(error)) => {
                tracing::debug!(?error, target = ?self.target, "a frame that nobody waits for was not written");
            }
        }
    }
}
