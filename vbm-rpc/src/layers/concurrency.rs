//! At most so many at once.

use super::{expired, overloaded};
use crate::{Fate, limits, service::Message};
use futures::future::BoxFuture;
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout_at,
};
use tower::{Layer, Service, ServiceExt as _};

/// Lets so many calls (or handlers) run at once; further ones wait, at most to their deadline
/// ([`Fate::Expired`]), and are refused when too many wait ([`Fate::Overloaded`]).
///
/// One layer is one limit: all services it is put around share it, so on a router it limits all methods together.
#[derive(Clone, Debug)]
pub struct ConcurrencyLimitLayer(Arc<Gate>);

#[derive(Debug)]
struct Gate {
    permits: Arc<Semaphore>,
    running_max: usize,
    waiting: AtomicUsize,
    waiting_max: usize,
}

impl ConcurrencyLimitLayer {
    /// At most `running_max` at once, at most [`CONCURRENCY_WAITING_MAX`](limits::CONCURRENCY_WAITING_MAX) waiting.
    pub fn new(running_max: usize) -> Self {
        Self::with_waiting(running_max, limits::CONCURRENCY_WAITING_MAX)
    }

    /// At most `running_max` at once, at most `waiting_max` waiting; 0 of those refuses at once.
    pub fn with_waiting(running_max: usize, waiting_max: usize) -> Self {
        Self(Arc::new(Gate {
            permits: Arc::new(Semaphore::new(running_max.min(Semaphore::MAX_PERMITS))),
            running_max,
            waiting: AtomicUsize::new(0),
            waiting_max,
        }))
    }
}

impl Gate {
    /// A place now, or one to wait for, or none.
    async fn enter(self: Arc<Self>, deadline: tokio::time::Instant) -> Result<OwnedSemaphorePermit, Fate> {
        if let Ok(permit) = self.permits.clone().try_acquire_owned() {
            return Ok(permit);
        }
        let _waiting = Waiting::enter(&self)?;
        match timeout_at(deadline, self.permits.clone().acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_closed)) => Err(Fate::Cancelled),
            Err(_late) => Err(expired(&format!(
                "a concurrency limit of {} at once",
                self.running_max
            ))),
        }
    }
}

/// One that waits; gone also when its future is dropped.
struct Waiting<'a>(&'a Gate);

impl<'a> Waiting<'a> {
    fn enter(gate: &'a Gate) -> Result<Self, Fate> {
        if gate.waiting.fetch_add(1, Ordering::SeqCst) >= gate.waiting_max {
            gate.waiting.fetch_sub(1, Ordering::SeqCst);
            return Err(overloaded(format!(
                "{} run and {} wait at a concurrency limit",
                gate.running_max, gate.waiting_max
            )));
        }
        Ok(Self(gate))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

impl<S> Layer<S> for ConcurrencyLimitLayer {
    type Service = ConcurrencyLimit<S>;
    fn layer(&self, inner: S) -> ConcurrencyLimit<S> {
        ConcurrencyLimit {
            inner,
            gate: self.0.clone(),
        }
    }
}

/// See [`ConcurrencyLimitLayer`].
#[derive(Clone, Debug)]
pub struct ConcurrencyLimit<S> {
    inner: S,
    gate: Arc<Gate>,
}

impl<S, R> Service<R> for ConcurrencyLimit<S>
where
    R: Message,
    S: Service<R, Error = Fate> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Response: Send + 'static,
{
    type Response = S::Response;
    type Error = Fate;
    type Future = BoxFuture<'static, Result<S::Response, Fate>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Fate>> {
        // The wait belongs to one request and its deadline: it is in `call`.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: R) -> Self::Future {
        let (inner, gate) = (self.inner.clone(), self.gate.clone());
        Box::pin(async move {
            let _place = gate.enter(request.deadline()).await?;
            inner.oneshot(request).await
        })
    }
}
