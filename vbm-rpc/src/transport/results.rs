//! What a transport keeps besides messages: recorded answers and tickets, for any process that asks.
//!
//! ```text
//!   worker A: run --> keep(home, key, answer) --> post(reply) --> complete      one queue, in this order
//!                            |
//!   worker B, or the next life of A: a request that may have run before --> find(home, key) --> the same answer
//!
//!   submit: open(ticket) --> send       worker: begun(ticket) ... end(ticket)      anybody: look, settle, forget
//! ```
//!
//! A *home* is the destination whose members share a record: one node, or the members for any. What is kept is bytes
//! to the transport. Whoever ends a ticket first has ended it: every reader sees that one end.

use crate::{BusError, Route};
use async_trait::async_trait;
use bytes::Bytes;
use std::{sync::Arc, time::Duration};
use uuid::Uuid;

/// Where a ticket is kept: beside the queue that its request went to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TicketPlace {
    /// The destination: one node, or any of a scope and service.
    pub home: Route,
    /// The id of the request.
    pub id: Uuid,
}

/// What is kept about a ticket. All of it is written by the bus and opaque to the transport.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TicketRecord {
    /// What the submitter wrote.
    pub opened: Option<Bytes>,
    /// What the worker wrote that has begun last.
    pub begun: Option<Bytes>,
    /// How it ended.
    pub end: Option<Bytes>,
}

/// The shared memory of a destination's members. In order with [`Link::post`](super::Link::post) and
/// [`Completion::complete`](super::Completion::complete): what is kept first is there before the reply is.
#[async_trait]
pub trait ResultStore: Send + Sync + 'static {
    /// The transport's time in milliseconds. No clock of a process is trusted with the life of a ticket.
    fn now_ms(&self) -> u64;

    /// The value kept last for `key` within [`DEDUPE_TTL`](crate::limits::DEDUPE_TTL), if it was not displaced.
    ///
    /// # Errors
    /// When the server behind it does not answer.
    ///
    /// # Cancel safety
    /// Safe.
    async fn find(&self, home: &Arc<Route>, key: Bytes) -> Result<Option<Bytes>, BusError>;

    /// Keeps a value for [`DEDUPE_TTL`](crate::limits::DEDUPE_TTL). Waits for room in the queue only. Of one process
    /// at most [`DEDUPE_MAX_RECORDS`](crate::limits::DEDUPE_MAX_RECORDS) and
    /// [`DEDUPE_MAX_BYTES`](crate::limits::DEDUPE_MAX_BYTES) are kept; the oldest go first.
    ///
    /// # Cancel safety
    /// A dropped future keeps nothing.
    async fn keep(&self, home: &Arc<Route>, key: Bytes, value: Bytes);

    /// Opens a ticket that lives for `life` unless something more is written to it. `due`: its name and when it is to
    /// be listed by [`overdue`](Self::overdue). Waits for room in the queue only.
    ///
    /// # Cancel safety
    /// A dropped future opens nothing.
    async fn open(&self, ticket: &TicketPlace, opened: Bytes, life: Duration, due: Option<(String, u64)>);

    /// Notes that somebody has begun. Does not wait.
    fn begun(&self, ticket: &TicketPlace, note: Bytes, life: Duration);

    /// Ends a ticket unless it has ended. Waits for room in the queue only.
    ///
    /// # Cancel safety
    /// A dropped future ends nothing.
    async fn end(&self, ticket: &TicketPlace, end: Bytes, life: Duration);

    /// Ends a ticket unless it has ended, and gives the end that it has now.
    ///
    /// # Errors
    /// When the server behind it does not answer; the ticket may be ended all the same.
    ///
    /// # Cancel safety
    /// A dropped future may or may not end it.
    async fn settle(&self, ticket: &TicketPlace, end: Bytes, life: Duration) -> Result<Bytes, BusError>;

    /// What is kept about a ticket; nothing when it is unknown or its life is over.
    ///
    /// # Errors
    /// When the server behind it does not answer.
    ///
    /// # Cancel safety
    /// Safe.
    async fn look(&self, ticket: &TicketPlace) -> Result<Option<TicketRecord>, BusError>;

    /// Forgets a ticket.
    ///
    /// # Errors
    /// When the server behind it does not answer.
    ///
    /// # Cancel safety
    /// A dropped future may or may not forget it.
    async fn forget(&self, ticket: &TicketPlace) -> Result<(), BusError>;

    /// Lists a ticket as due at another time, or no more. Does not wait.
    fn due(&self, home: &Route, name: String, at_ms: Option<u64>);

    /// The names of tickets that are due: of the scopes above this member, and of the homes given.
    ///
    /// # Errors
    /// When the server behind it does not answer.
    ///
    /// # Cancel safety
    /// Safe.
    async fn overdue(&self, homes: &[Route]) -> Result<Vec<String>, BusError>;
}
