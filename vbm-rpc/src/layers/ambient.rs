//! What a handler's task knows about the request that it serves.

use super::TraceContext;
use std::future::Future;
use tokio::{task::futures::TaskLocalFuture, time::Instant};

tokio::task_local! {
    static AMBIENT: Ambient;
}

/// What the task of a handler knows about the request that it serves; empty outside of one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ambient {
    /// When the handler's caller stops waiting, where a [`DeadlineLayer`](super::DeadlineLayer) stands before the handler.
    pub deadline: Option<Instant>,
    /// The handler's span, where a [`TraceLayer`](super::TraceLayer) stands before the handler.
    pub trace: Option<TraceContext>,
}

impl Ambient {
    /// Of the task that asks.
    pub fn current() -> Self {
        AMBIENT.try_with(|ambient| *ambient).unwrap_or_default()
    }

    /// Runs `future` with this, for a task that works for a handler.
    pub fn scope<F: Future>(self, future: F) -> impl Future<Output = F::Output> {
        self.scoped(future)
    }

    pub(super) fn scoped<F: Future>(self, future: F) -> TaskLocalFuture<Self, F> {
        AMBIENT.scope(self, future)
    }
}
