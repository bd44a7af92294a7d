//! Requests that run here, so that a cancel finds them.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// The most cancels remembered for requests that have not begun.
const EARLY_CANCELS_MAX: usize = 1_024;

#[derive(Default)]
struct Table {
    tokens: HashMap<Uuid, CancellationToken>,
    early: VecDeque<Uuid>,
}

impl Table {
    fn was_cancelled(&mut self, id: Uuid) -> bool {
        let at = self.early.iter().position(|early| *early == id);
        at.and_then(|at| self.early.remove(at)).is_some()
    }
}

#[derive(Default)]
pub(crate) struct Running(Mutex<Table>);

impl Running {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a request was cancelled before it began; forgets that.
    pub(crate) fn was_cancelled(&self, id: Uuid) -> bool {
        self.lock().was_cancelled(id)
    }

    /// From now on a cancel finds the request; `false` when one came before.
    pub(crate) fn begin(&self, id: Uuid, token: CancellationToken) -> bool {
        let mut table = self.lock();
        let wanted = !table.was_cancelled(id);
        if wanted {
            table.tokens.insert(id, token);
        }
        wanted
    }

    /// A request has ended.
    pub(crate) fn end(&self, id: Uuid) {
        drop(self.lock().tokens.remove(&id));
    }

    /// A caller gave up.
    pub(crate) fn cancel(&self, id: Uuid) {
        let mut table = self.lock();
        if let Some(token) = table.tokens.get(&id).cloned() {
            drop(table);
            token.cancel();
            return;
        }
        if table.early.len() >= EARLY_CANCELS_MAX {
            table.early.pop_front();
        }
        table.early.push_back(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cancel_finds_what_runs_and_waits_for_what_has_not_begun() {
        let (running, token) = (Running::default(), CancellationToken::new());
        assert!(running.begin(Uuid::from_u128(1), token.clone()));
        running.cancel(Uuid::from_u128(1));
        assert!(token.is_cancelled());
        running.cancel(Uuid::from_u128(2));
        running.cancel(Uuid::from_u128(3));
        assert!(running.was_cancelled(Uuid::from_u128(3)) && !running.was_cancelled(Uuid::from_u128(3)));
        assert!(!running.begin(Uuid::from_u128(2), CancellationToken::new()));
        assert!(
            running.begin(Uuid::from_u128(2), CancellationToken::new()),
            "remembered once"
        );
    }
}
