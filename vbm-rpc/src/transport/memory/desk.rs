//! The operator's desk of a memory bus: dead letters and the hops of traced calls.
//!
//! Times are milliseconds since the bus was first asked to keep something, on tokio's clock: a memory bus has no other.

use super::hub::Hub;
use crate::{
    MemberInfo, Route,
    admin::{Admin, DeadLetter, Hop, Queue, Stage, no_letter, nobody_takes, replayed},
    limits::{DEAD_LETTERS_MAX, HOPS_MAX},
    transport::Destination,
};
use async_trait::async_trait;
use bytes::Bytes;
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;
use uuid::Uuid;
use vbm_core::{Error, NodePath};

/// The most traced calls whose hops are kept; the oldest go first.
const TRACED_MAX: usize = 1_024;

/// How a request had been given before it was buried.
pub(super) struct Given {
    pub(super) deliveries: u32,
    pub(super) worker: String,
    pub(super) since: Instant,
}

struct Buried {
    letter: DeadLetter,
    route: Route,
    frame: Bytes,
}

#[derive(Default)]
struct State {
    begin: Option<Instant>,
    next: u64,
    letters: VecDeque<Buried>,
    hops: HashMap<Uuid, Vec<Hop>>,
    traced: VecDeque<Uuid>,
}

impl State {
    fn ms_at(&mut self, at: Instant) -> u64 {
        let begin = *self.begin.get_or_insert(at);
        u64::try_from(at.saturating_duration_since(begin).as_millis()).unwrap_or(u64::MAX)
    }
}

#[derive(Default)]
pub(super) struct Desk(Mutex<State>);

impl Desk {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn bury(&self, route: Route, frame: Bytes, reason: &str, given: &Given) {
        tracing::error!(to = %route, reason, "a request goes to the dead letters");
        let mut state = self.lock();
        state.next += 1;
        let sent_at = state.ms_at(given.since);
        let mut letter = DeadLetter::of_frame(state.next.to_string(), route.to_string(), &frame);
        letter.reason = reason.to_owned();
        letter.deliveries = given.deliveries;
        letter.worker = Some(given.worker.clone());
        letter.sent_at_ms = Some(sent_at);
        letter.buried_at_ms = state.ms_at(Instant::now());
        if state.letters.len() >= DEAD_LETTERS_MAX {
            state.letters.pop_front();
        }
        state.letters.push_back(Buried { letter, route, frame });
    }

    pub(super) fn note(&self, call: Uuid, stage: Stage, by: String, detail: String) {
        let mut state = self.lock();
        let at = state.ms_at(Instant::now());
        if !state.hops.contains_key(&call) {
            if state.traced.len() >= TRACED_MAX
                && let Some(oldest) = state.traced.pop_front()
            {
                state.hops.remove(&oldest);
            }
            state.traced.push_back(call);
        }
        let hops = state.hops.entry(call).or_default();
        if hops.len() < HOPS_MAX {
            hops.push(Hop::new(at, stage, by, detail));
        }
    }

    fn take(&self, id: &str) -> Option<Buried> {
        let mut state = self.lock();
        let at = state.letters.iter().position(|buried| buried.letter.id == id)?;
        state.letters.remove(at)
    }
}

fn scope_of(route: &Route) -> &NodePath {
    match route {
        Route::Node(path) => path,
        Route::Any { scope, .. } | Route::All { scope, .. } => scope,
    }
}

pub(super) struct MemoryAdmin(pub(super) Arc<Hub>);

#[async_trait]
impl Admin for MemoryAdmin {
    async fn members(&self, scope: &NodePath) -> Result<Vec<MemberInfo>, Error> {
        Ok(self.0.members(scope, Instant::now()))
    }

    async fn queues(&self, scope: &NodePath) -> Result<Vec<Queue>, Error> {
        Ok(self.0.queues(scope))
    }

    async fn dead_letters(&self, scope: &NodePath) -> Result<Vec<DeadLetter>, Error> {
        let state = self.0.desk.lock();
        let below = state
            .letters
            .iter()
            .filter(|buried| scope.contains(scope_of(&buried.route)));
        Ok(below.map(|buried| buried.letter.clone()).collect())
    }

    async fn dead_letter(&self, id: &str) -> Result<(DeadLetter, Bytes), Error> {
        let state = self.0.desk.lock();
        let found = state.letters.iter().find(|buried| buried.letter.id == id);
        found
            .map(|buried| (buried.letter.clone(), buried.frame.clone()))
            .ok_or_else(|| no_letter(id))
    }

    async fn replay(&self, id: &str, ttl: Option<Duration>) -> Result<(), Error> {
        let buried = self.0.desk.take(id).ok_or_else(|| no_letter(id))?;
        let again = replayed(&buried.frame, ttl).and_then(|frame| {
            let ttl = ttl.unwrap_or(Duration::from_millis(buried.letter.ttl_ms.into()));
            let to = Destination::Route(buried.route.clone());
            let sent = self.0.replay(&to, &frame, ttl, Instant::now());
            sent.map(drop).map_err(|_| nobody_takes(&buried.letter.to))
        });
        if again.is_err() {
            self.0.desk.lock().letters.push_front(buried);
        }
        again
    }

    async fn drop_letter(&self, id: &str) -> Result<(), Error> {
        self.0.desk.take(id).map(drop).ok_or_else(|| no_letter(id))
    }

    async fn trace(&self, call: Uuid) -> Result<Vec<Hop>, Error> {
        Ok(self.0.desk.lock().hops.get(&call).cloned().unwrap_or_default())
    }
}
