//! Sends a call again when its fate says that this is safe, and not more often than a budget allows.
//!
//! ```text
//!   fate --- advice is Retry? --- attempts left? --- time left for the wait? --- budget? ---> wait, send again
//!              | no                 | no               | no                        | no
//!              v                    v                  v                           v
//!            the fate, made no more certain than the least certain fate of all attempts
//! ```
//!
//! All attempts bear one idempotency key (the caller's, or the first id), so a receiver that had done it gives its
//! recorded answer. The layer decides by [`Fate::retry_advice`] alone: a call that had begun is never repeated.

use super::{BusMetrics, budget::RetryBudget};
use crate::{Fate, Outgoing, Replied, limits, service::mix};
use futures::future::BoxFuture;
use std::{
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Instant, sleep};
use tower::{Layer, Service, ServiceExt as _};
use vbm_core::{Outcome, RetryAdvice};

/// Repeats calls as described in this module's header. Stands on the client side.
#[derive(Clone, Debug)]
pub struct RetryLayer {
    attempts_max: u16,
    wait_min: Duration,
    wait_max: Duration,
    attempt_deadline: Option<Duration>,
    budget: RetryBudget,
    metrics: Option<BusMetrics>,
}

impl Default for RetryLayer {
    fn default() -> Self {
        Self::new(RetryBudget::default())
    }
}

impl RetryLayer {
    /// Up to [`RETRY_ATTEMPTS_MAX`](limits::RETRY_ATTEMPTS_MAX) attempts within the deadline of the call, out of that
    /// budget.
    pub const fn new(budget: RetryBudget) -> Self {
        Self {
            attempts_max: limits::RETRY_ATTEMPTS_MAX,
            wait_min: limits::RETRY_WAIT_MIN,
            wait_max: limits::RETRY_WAIT_MAX,
            attempt_deadline: None,
            budget,
            metrics: None,
        }
    }

    /// How often a call is sent at most, the first time included.
    #[must_use]
    pub const fn attempts_max(mut self, attempts: u16) -> Self {
        self.attempts_max = attempts;
        self
    }

    /// The shortest and the longest wait between two attempts.
    #[must_use]
    pub const fn waits(mut self, min: Duration, max: Duration) -> Self {
        self.wait_min = min;
        self.wait_max = max;
        self
    }

    /// One attempt takes no longer than this: a call whose worker never began is sent again while there is time.
    #[must_use]
    pub const fn attempt_deadline(mut self, span: Duration) -> Self {
        self.attempt_deadline = Some(span);
        self
    }

    /// Counts what is repeated, and what is not for want of budget.
    #[must_use]
    pub fn metrics(mut self, metrics: BusMetrics) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// Half of the doubling wait for certain, the other half by `dice`.
    fn wait(&self, attempt: u16, dice: u64) -> Duration {
        let doublings = u32::from(attempt.saturating_sub(1)).min(20);
        let full = self.wait_min.saturating_mul(1 << doublings).min(self.wait_max);
        let thousandths = u32::try_from(dice % 1_000).unwrap_or(0);
        full / 2 + (full / 2) * thousandths / 1_000
    }

    /// Whether and when to send again.
    fn decide(
        &self,
        fate: &Fate,
        attempt: u16,
        left: Duration,
        dice: u64,
        pay: impl FnOnce() -> bool,
    ) -> Verdict {
        if fate.retry_advice() != RetryAdvice::Retry || attempt >= self.attempts_max {
            return Verdict::End;
        }
        let wait = self.wait(attempt, dice);
        if wait >= left {
            return Verdict::End;
        }
        if pay() {
            Verdict::Again(wait)
        } else {
            Verdict::NoBudget
        }
    }

    async fn run<S>(self, mut service: S, mut request: Outgoing) -> Result<Replied, Fate>
    where
        S: Service<Outgoing, Response = Replied, Error = Fate> + Clone,
    {
        self.budget.deposit();
        if request.options.idempotency_key.is_none() {
            request.options.idempotency_key = Some(request.id.to_string());
        }
        let (first, deadline) = (request.id, request.deadline);
        let mut uncertain = None;
        loop {
            if let Some(span) = self.attempt_deadline {
                request.deadline = deadline.min(Instant::now() + span);
            }
            let fate = match service.ready().await?.call(request.clone()).await {
                Ok(reply) => return Ok(reply),
                Err(fate) => fate,
            };
            let now = Instant::now();
            let left = deadline.saturating_duration_since(now);
            let dice = mix(first.as_u64_pair().1, request.attempt.into());
            let pay = || self.budget.withdraw(now);
            let verdict = self.decide(&fate, request.attempt, left, dice, pay);
            if let Some(metrics) = &self.metrics {
                metrics.retry(request.method, &verdict);
            }
            let Verdict::Again(wait) = verdict else {
                return Err(honest(fate, uncertain));
            };
            tracing::debug!(method = request.method, id = %first, attempt = request.attempt, %fate, "sent again");
            if matches!(fate, Fate::Lost { .. }) {
                uncertain.get_or_insert(fate);
            }
            sleep(wait).await;
            request = request.again();
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Again(Duration),
    NoBudget,
    End,
}

/// The last fate, unless an earlier attempt may have had an effect that the last fate denies.
fn honest(last: Fate, uncertain: Option<Fate>) -> Fate {
    match (last, uncertain) {
        (last, Some(lost)) if last.is_certainly_not_started() => lost,
        (Fate::Refused(error), Some(_)) if error.outcome() == Outcome::NotApplied => {
            Fate::Refused(error.with_outcome(Outcome::Unknown))
        }
        (last, _) => last,
    }
}

impl<S> Layer<S> for RetryLayer {
    type Service = Retry<S>;
    fn layer(&self, inner: S) -> Retry<S> {
        Retry {
            inner,
            layer: self.clone(),
        }
    }
}

/// See [`RetryLayer`].
#[derive(Clone, Debug)]
pub struct Retry<S> {
    inner: S,
    layer: RetryLayer,
}

impl<S> Service<Outgoing> for Retry<S>
where
    S: Service<Outgoing, Response = Replied, Error = Fate> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Replied;
    type Error = Fate;
    type Future = BoxFuture<'static, Result<Replied, Fate>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fate>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Outgoing) -> Self::Future {
        // The one that was made ready is taken; a clone of it need not be.
        let clone = self.inner.clone();
        let service = std::mem::replace(&mut self.inner, clone);
        Box::pin(self.layer.clone().run(service, request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vbm_core::{Error, ErrorKind};

    fn lost(started: bool) -> Fate {
        Fate::Lost {
            started,
            to: "a".into(),
            worker: None,
            why: "b".into(),
        }
    }
    fn no_route() -> Fate {
        Fate::NoRoute {
            to: "a".into(),
            why: "b".into(),
        }
    }
    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn only_what_the_fate_allows_is_sent_again() {
        let layer = RetryLayer::default();
        let decide = |fate: &Fate| layer.decide(fate, 1, MINUTE, 0, || true);
        assert!(matches!(decide(&no_route()), Verdict::Again(_)));
        assert!(matches!(decide(&lost(false)), Verdict::Again(_)));
        assert_eq!(decide(&lost(true)), Verdict::End);
        assert_eq!(decide(&Fate::Cancelled), Verdict::End);
        let refused = Fate::Refused(Error::new(ErrorKind::Conflict, "a", "b", "c"));
        assert_eq!(decide(&refused), Verdict::End);
    }

    #[test]
    fn attempts_time_and_budget_are_limits() {
        let layer = RetryLayer::default().attempts_max(3);
        let ask = |attempt, left, pay| layer.decide(&no_route(), attempt, left, 0, || pay);
        assert!(matches!(ask(2, MINUTE, true), Verdict::Again(_)));
        assert_eq!(ask(3, MINUTE, true), Verdict::End);
        assert_eq!(ask(1, Duration::from_millis(5), true), Verdict::End);
        assert_eq!(ask(1, MINUTE, false), Verdict::NoBudget);
    }

    #[test]
    fn waits_double_to_their_limit_and_half_of_each_is_chance() {
        let layer = RetryLayer::default().waits(Duration::from_millis(100), Duration::from_secs(1));
        assert_eq!(layer.wait(1, 0), Duration::from_millis(50));
        assert_eq!(layer.wait(2, 0), Duration::from_millis(100));
        assert_eq!(layer.wait(2, 500), Duration::from_millis(150));
        for attempt in 1..u16::MAX {
            assert!(layer.wait(attempt, u64::from(attempt)) <= Duration::from_secs(1));
        }
    }

    #[test]
    fn a_later_certainty_does_not_hide_an_earlier_doubt() {
        assert_eq!(honest(no_route(), Some(lost(false))), lost(false));
        assert_eq!(honest(no_route(), None), no_route());
        let refused = Fate::Refused(Error::new(ErrorKind::Conflict, "a", "b", "c"));
        let Fate::Refused(error) = honest(refused, Some(lost(false))) else {
            panic!("it is still refused");
        };
        assert_eq!(error.outcome(), Outcome::Unknown);
    }
}
