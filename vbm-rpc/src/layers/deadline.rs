//! A call made by a handler ends no later than the handler's own caller stops waiting.

use super::{HERE, ambient::Ambient, expired};
use crate::{Fate, Incoming, Outgoing, limits};
use futures::future::{Either, Ready, ready};
use std::{
    task::{Context, Poll},
    time::Duration,
};
use tokio::{task::futures::TaskLocalFuture, time::Instant};
use tower::{Layer, Service};

/// On the client side: shortens a call to what the handler that makes it has left, and to the longest span that this
/// layer allows. On the server side: tells the calls of the handler what is left.
///
/// With nothing left a call is not sent: [`Fate::Expired`].
#[derive(Clone, Copy, Debug)]
pub struct DeadlineLayer {
    at_most: Duration,
    reserve: Duration,
}

impl Default for DeadlineLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl DeadlineLayer {
    /// Takes all that is left, and at most [`DEADLINE_MAX`](limits::DEADLINE_MAX).
    pub const fn new() -> Self {
        Self {
            at_most: limits::DEADLINE_MAX,
            reserve: Duration::ZERO,
        }
    }

    /// No call is longer than this.
    #[must_use]
    pub const fn at_most(mut self, span: Duration) -> Self {
        self.at_most = span;
        self
    }

    /// What a handler keeps for itself, to answer when a call that it made has not come back.
    #[must_use]
    pub const fn reserve(mut self, span: Duration) -> Self {
        self.reserve = span;
        self
    }

    /// When a call ends that was to end at `wanted`; `None` when there is nothing left.
    fn shrink(&self, wanted: Instant, inherited: Option<Instant>, now: Instant) -> Option<Instant> {
        let mut until = wanted.min(now + self.at_most);
        if let Some(inherited) = inherited {
            until = until.min(inherited.checked_sub(self.reserve)?);
        }
        (until > now).then_some(until)
    }
}

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadline<S>;
    fn layer(&self, inner: S) -> Deadline<S> {
        Deadline { inner, layer: *self }
    }
}

/// See [`DeadlineLayer`].
#[derive(Clone, Debug)]
pub struct Deadline<S> {
    inner: S,
    layer: DeadlineLayer,
}

impl<S: Service<Outgoing, Error = Fate>> Service<Outgoing> for Deadline<S> {
    type Response = S::Response;
    type Error = Fate;
    type Future = Either<S::Future, Ready<Result<S::Response, Fate>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fate>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Outgoing) -> Self::Future {
        let inherited = Ambient::current().deadline;
        match self.layer.shrink(request.deadline, inherited, Instant::now()) {
            Some(until) => {
                request.deadline = until;
                Either::Left(self.inner.call(request))
            }
            None => Either::Right(ready(Err(expired(HERE)))),
        }
    }
}

impl<S: Service<Incoming, Error = Fate>> Service<Incoming> for Deadline<S> {
    type Response = S::Response;
    type Error = Fate;
    type Future = TaskLocalFuture<Ambient, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fate>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Incoming) -> Self::Future {
        let ambient = Ambient {
            deadline: Some(request.context.deadline()),
            ..Ambient::current()
        };
        ambient.scoped(self.inner.call(request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    #[tokio::test]
    async fn the_shortest_of_all_spans_counts() {
        let now = Instant::now();
        let layer = DeadlineLayer::new().at_most(S(20)).reserve(S(1));
        assert_eq!(layer.shrink(now + S(30), None, now), Some(now + S(20)));
        assert_eq!(layer.shrink(now + S(10), None, now), Some(now + S(10)));
        assert_eq!(layer.shrink(now + S(10), Some(now + S(5)), now), Some(now + S(4)));
        assert_eq!(layer.shrink(now + S(2), Some(now + S(5)), now), Some(now + S(2)));
        assert_eq!(
            layer.shrink(now + S(2), Some(now + S(1)), now),
            None,
            "only the reserve is left"
        );
    }
}
