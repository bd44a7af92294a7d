//! Recorded answers and tickets in memory: one lock, held for map operations.

use crate::{
    BusError, Route, limits,
    transport::{ResultStore, TicketPlace, TicketRecord},
};
use async_trait::async_trait;
use bytes::Bytes;
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vbm_core::NodePath;

/// From how many tickets on those whose life is over are looked for.
const SWEEP_FROM_TICKETS: usize = 1_024;
/// The time at which a memory bus begins.
const BEGIN_MS: u64 = 1_000_000;

/// What the attachments of one memory bus share.
#[derive(Default)]
pub(super) struct Memory(Mutex<State>);

#[derive(Default)]
struct State {
    begin: Option<Instant>,
    answers: HashMap<(Arc<Route>, Bytes), Kept>,
    /// The oldest first. One whose serial is not that of its record is stale.
    order: VecDeque<((Arc<Route>, Bytes), u64)>,
    bytes: usize,
    serial: u64,
    tickets: HashMap<TicketPlace, (TicketRecord, Instant)>,
    sweep_at: usize,
    due: BTreeMap<String, (Route, u64)>,
}

struct Kept {
    value: Bytes,
    at: Instant,
    serial: u64,
}

impl State {
    fn now_ms(&mut self, now: Instant) -> u64 {
        let begin = *self.begin.get_or_insert(now);
        let since = now.saturating_duration_since(begin).as_millis();
        BEGIN_MS.saturating_add(u64::try_from(since).unwrap_or(u64::MAX))
    }

    fn keep(&mut self, home: &Arc<Route>, key: Bytes, value: Bytes, now: Instant) {
        self.serial += 1;
        let name = (home.clone(), key);
        self.bytes += value.len();
        self.order.push_back((name.clone(), self.serial));
        let kept = Kept {
            value,
            at: now,
            serial: self.serial,
        };
        if let Some(old) = self.answers.insert(name, kept) {
            self.bytes = self.bytes.saturating_sub(old.value.len());
        }
        while let Some((name, serial)) = self.order.front() {
            let current = self.answers.get(name).filter(|kept| kept.serial == *serial);
            let full = self.order.len() > limits::DEDUPE_MAX_RECORDS || self.bytes > limits::DEDUPE_MAX_BYTES;
            let old = |kept: &Kept| now.saturating_duration_since(kept.at) >= limits::DEDUPE_TTL;
            if current.is_some_and(|kept| !full && !old(kept)) {
                return;
            }
            let stale = current.is_none();
            let Some((name, _)) = self.order.pop_front() else {
                return;
            };
            if let (false, Some(kept)) = (stale, self.answers.remove(&name)) {
                self.bytes = self.bytes.saturating_sub(kept.value.len());
            }
        }
    }

    /// A ticket that lives, made when there is none, with its life set.
    fn ticket(&mut self, place: &TicketPlace, life: Duration, now: Instant) -> &mut TicketRecord {
        if self.tickets.len() >= self.sweep_at.max(SWEEP_FROM_TICKETS) {
            self.tickets.retain(|_, (_, until)| *until > now);
            self.sweep_at = self.tickets.len() * 2;
        }
        let entry = self.tickets.entry(place.clone());
        let (record, until) = entry.or_insert_with(|| (TicketRecord::default(), now));
        if *until <= now {
            *record = TicketRecord::default();
        }
        *until = now + life;
        record
    }
}

/// The store of one attachment.
pub(super) struct MemoryResults {
    pub(super) memory: Arc<Memory>,
    pub(super) path: NodePath,
    /// The link has ended: what it still says is not heard.
    pub(super) stop: CancellationToken,
}

impl MemoryResults {
    fn state(&self) -> MutexGuard<'_, State> {
        self.memory.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn heard(&self) -> Result<MutexGuard<'_, State>, BusError> {
        match self.stop.is_cancelled() {
            true => Err(BusError::Closed),
            false => Ok(self.state()),
        }
    }

    fn end_now(&self, ticket: &TicketPlace, end: Bytes, life: Duration) -> Result<Bytes, BusError> {
        let mut state = self.heard()?;
        let record = state.ticket(ticket, life, Instant::now());
        Ok(record.end.get_or_insert(end).clone())
    }
}

#[async_trait]
impl ResultStore for MemoryResults {
    fn now_ms(&self) -> u64 {
        self.state().now_ms(Instant::now())
    }

    async fn find(&self, home: &Arc<Route>, key: Bytes) -> Result<Option<Bytes>, BusError> {
        let state = self.heard()?;
        let found = state.answers.get(&(home.clone(), key));
        let young = |kept: &&Kept| kept.at.elapsed() < limits::DEDUPE_TTL;
        Ok(found.filter(young).map(|kept| kept.value.clone()))
    }

    async fn keep(&self, home: &Arc<Route>, key: Bytes, value: Bytes) {
        if let Ok(mut state) = self.heard() {
            state.keep(home, key, value, Instant::now());
        }
    }

    async fn open(&self, ticket: &TicketPlace, opened: Bytes, life: Duration, due: Option<(String, u64)>) {
        let Ok(mut state) = self.heard() else { return };
        state.ticket(ticket, life, Instant::now()).opened = Some(opened);
        if let Some((name, at)) = due {
            state.due.insert(name, (ticket.home.clone(), at));
        }
    }

    fn begun(&self, ticket: &TicketPlace, note: Bytes, life: Duration) {
        if let Ok(mut state) = self.heard() {
            state.ticket(ticket, life, Instant::now()).begun = Some(note);
        }
    }

    async fn end(&self, ticket: &TicketPlace, end: Bytes, life: Duration) {
        if let Err(error) = self.end_now(ticket, end, life) {
            tracing::debug!(%error, "a ticket was not ended by a link that has ended");
        }
    }

    async fn settle(&self, ticket: &TicketPlace, end: Bytes, life: Duration) -> Result<Bytes, BusError> {
        self.end_now(ticket, end, life)
    }

    async fn look(&self, ticket: &TicketPlace) -> Result<Option<TicketRecord>, BusError> {
        let (state, now) = (self.heard()?, Instant::now());
        let found = state.tickets.get(ticket);
        Ok(found
            .filter(|(_, until)| *until > now)
            .map(|(record, _)| record.clone()))
    }

    async fn forget(&self, ticket: &TicketPlace) -> Result<(), BusError> {
        self.heard()?.tickets.remove(ticket);
        Ok(())
    }

    fn due(&self, home: &Route, name: String, at_ms: Option<u64>) {
        let Ok(mut state) = self.heard() else { return };
        match at_ms {
            Some(at) => state.due.insert(name, (home.clone(), at)),
            None => state.due.remove(&name),
        };
    }

    async fn overdue(&self, homes: &[Route]) -> Result<Vec<String>, BusError> {
        let mut state = self.heard()?;
        let now = state.now_ms(Instant::now());
        let mine = |home: &Route| match home {
            Route::Node(path) => path
                .parent()
                .is_some_and(|above| above.contains(&self.path) || *path == self.path),
            Route::Any { scope, .. } | Route::All { scope, .. } => scope.contains(&self.path),
        };
        let due = state.due.iter();
        let due = due.filter(|(_, (home, at))| *at <= now && (mine(home) || homes.contains(home)));
        Ok(due
            .map(|(name, _)| name.clone())
            .take(limits::TICKET_SWEEP_MAX)
            .collect())
    }
}
