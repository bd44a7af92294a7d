//! The way of the bus to what is kept in Redis: each question and each word goes into the writer's queue (see
//! [`records`](super::records) for what becomes of it there).

use super::{
    attachment::{Core, QUESTION_TIMEOUT},
    keys::{self, home_shard},
    link::room_for,
    op::Op,
    records::{Asked, FIELD_BEGUN, FIELD_END, FIELD_OPENED, StoreOp, TicketOp},
};
use crate::{
    BusError, Route,
    auth::Place,
    transport::{ResultStore, TicketPlace, TicketRecord},
};
use async_trait::async_trait;
use bytes::Bytes;
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    time::timeout,
};

/// The store of one attachment.
pub(super) struct RedisResults {
    pub(super) core: Arc<Core>,
}

impl RedisResults {
    fn push(&self, op: StoreOp) {
        // Fails only when the writer has ended.
        self.core.push(Op::Store(op));
    }

    fn ticket(&self, ticket: &TicketPlace, what: TicketOp, room: Option<OwnedSemaphorePermit>) {
        let key = self.core.keys.ticket(&ticket.home, &ticket.id);
        self.push(StoreOp::Ticket {
            key,
            what,
            _room: room,
        });
    }

    /// Room for a value in the queue; `None` when the link is closed.
    async fn room(&self, value: &Bytes) -> Option<OwnedSemaphorePermit> {
        let room = self.core.room.clone();
        room.acquire_many_owned(room_for(value)).await.ok()
    }

    async fn ask<T>(&self, op: impl FnOnce(Asked<T>) -> StoreOp) -> Result<T, BusError> {
        let (done, answer) = oneshot::channel();
        self.push(op(done));
        let unreachable = |why: String| BusError::Unreachable {
            server: self.core.server.clone(),
            why,
        };
        match timeout(QUESTION_TIMEOUT, answer).await {
            Ok(Ok(answer)) => answer.map_err(unreachable),
            Ok(Err(_ended)) => Err(BusError::Closed),
            Err(_late) => Err(unreachable(format!(
                "no answer within {} s",
                QUESTION_TIMEOUT.as_secs()
            ))),
        }
    }

    async fn ask_ticket<T>(
        &self,
        ticket: &TicketPlace,
        what: impl FnOnce(Asked<T>) -> TicketOp,
    ) -> Result<T, BusError> {
        let key = self.core.keys.ticket(&ticket.home, &ticket.id);
        self.ask(|done| StoreOp::Ticket {
            key,
            what: what(done),
            _room: None,
        })
        .await
    }
}

impl RedisResults {
    /// The end that stands in a ticket; in place of a forged one mine.
    async fn true_end(
        &self,
        ticket: &TicketPlace,
        stands: Bytes,
        (mine, life): (Bytes, Duration),
    ) -> Result<Bytes, BusError> {
        let Some(guard) = &self.core.guard else {
            return Ok(stands);
        };
        let key = self.core.keys.ticket(&ticket.home, &ticket.id);
        let place = Place {
            key: &key,
            field: FIELD_END.as_bytes(),
        };
        if let Some(end) = guard.open_end(ticket, place, &stands) {
            return Ok(end);
        }
        let mended = self
            .ask_ticket(ticket, |done| TicketOp::Mend(stands, mine, life, done))
            .await?;
        guard
            .open_end(ticket, place, &mended)
            .ok_or_else(|| BusError::Unsuitable {
                server: self.core.server.clone(),
                why: format!(
                    "somebody forges the end of the ticket {} again and again",
                    ticket.id
                ),
                fix: "find out who may write to its keys (ACL LIST), and take that away".into(),
            })
    }
}

#[async_trait]
impl ResultStore for RedisResults {
    fn now_ms(&self) -> u64 {
        self.core.now_ms()
    }

    async fn find(&self, home: &Arc<Route>, key: Bytes) -> Result<Option<Bytes>, BusError> {
        let field = key.clone();
        let home = home.clone();
        let of = home.clone();
        let found = self.ask(|done| StoreOp::Find { home, key, done }).await?;
        let mut found = found.into_iter();
        let Some(guard) = &self.core.guard else {
            return Ok(found.next().map(|found| found.value));
        };
        Ok(found.find_map(|found| {
            let place = Place {
                key: &found.bucket,
                field: &field,
            };
            guard.open_answer(&of, place, &found.value)
        }))
    }

    async fn keep(&self, home: &Arc<Route>, key: Bytes, value: Bytes) {
        if let Some(room) = self.room(&value).await {
            self.push(StoreOp::Keep {
                home: home.clone(),
                key,
                value,
                _room: room,
            });
        }
    }

    async fn open(&self, ticket: &TicketPlace, opened: Bytes, life: Duration, due: Option<(String, u64)>) {
        if let Some(room) = self.room(&opened).await {
            self.ticket(ticket, TicketOp::Open(opened, life), Some(room));
            if let Some((name, at)) = due {
                self.due(&ticket.home, name, Some(at));
            }
        }
    }

    fn begun(&self, ticket: &TicketPlace, note: Bytes, life: Duration) {
        self.ticket(ticket, TicketOp::Begun(note, life), None);
    }

    async fn end(&self, ticket: &TicketPlace, end: Bytes, life: Duration) {
        let Some(room) = self.room(&end).await else { return };
        if self.core.guard.is_none() {
            return self.ticket(ticket, TicketOp::End(end, life), Some(room));
        }
        // Written in its turn; what stands there already may be a forgery, and must not win.
        let (done, answer) = oneshot::channel();
        self.ticket(ticket, TicketOp::Settle(end.clone(), life, done), Some(room));
        let store = Self {
            core: self.core.clone(),
        };
        let ticket = ticket.clone();
        self.core.spawn(async move {
            let Ok(Ok(stands)) = answer.await else { return };
            if let Err(error) = store.true_end(&ticket, stands, (end, life)).await {
                tracing::warn!(%error, id = %ticket.id, "the end of a ticket was forged, and is not mended");
            }
        });
    }

    async fn settle(&self, ticket: &TicketPlace, end: Bytes, life: Duration) -> Result<Bytes, BusError> {
        let mine = end.clone();
        let stands = self
            .ask_ticket(ticket, |done| TicketOp::Settle(end, life, done))
            .await?;
        self.true_end(ticket, stands, (mine, life)).await
    }

    async fn look(&self, ticket: &TicketPlace) -> Result<Option<TicketRecord>, BusError> {
        let found = self.ask_ticket(ticket, TicketOp::Look).await?;
        let (Some(guard), Some(found)) = (&self.core.guard, &found) else {
            return Ok(found);
        };
        let key = self.core.keys.ticket(&ticket.home, &ticket.id);
        let place = |field: &'static str| Place {
            key: &key,
            field: field.as_bytes(),
        };
        let opened = found.opened.as_ref();
        let begun = found.begun.as_ref();
        let end = found.end.as_ref();
        let record = TicketRecord {
            opened: opened.and_then(|raw| guard.open_opened(place(FIELD_OPENED), raw)),
            begun: begun.and_then(|raw| guard.open_begun(&ticket.home, place(FIELD_BEGUN), raw)),
            end: end.and_then(|raw| guard.open_end(ticket, place(FIELD_END), raw)),
        };
        Ok((record != TicketRecord::default()).then_some(record))
    }

    async fn forget(&self, ticket: &TicketPlace) -> Result<(), BusError> {
        self.ask_ticket(ticket, TicketOp::Forget).await
    }

    fn due(&self, home: &Route, name: String, at_ms: Option<u64>) {
        let key = self.core.keys.due(&home_shard(home));
        self.push(StoreOp::Due { key, name, at_ms });
    }

    async fn overdue(&self, homes: &[Route]) -> Result<Vec<String>, BusError> {
        let above = keys::shards_above(&self.core.me.path);
        let mut shards: BTreeSet<_> = above.into_iter().collect();
        shards.insert(keys::shard(&self.core.me.path));
        shards.extend(homes.iter().map(home_shard));
        let keys = shards.iter().map(|shard| self.core.keys.due(shard)).collect();
        self.ask(|done| StoreOp::Overdue { keys, done }).await
    }
}
