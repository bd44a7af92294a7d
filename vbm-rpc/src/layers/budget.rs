//! How many retries a process allows itself: a part of its calls, so that retries never multiply an overload.

use std::sync::{Arc, Mutex, PoisonError};
use tokio::time::Instant;

/// What one retry costs.
const TOKEN: u64 = 1_000;

/// A bucket of retries. Every call puts a part of a retry in, a little comes with time, every retry takes one out.
/// Clones are the same bucket: share one among all callers of a destination or of a process.
#[derive(Clone, Debug)]
pub struct RetryBudget(Arc<Mutex<Bucket>>);

impl Default for RetryBudget {
    /// One retry for ten calls, one a second besides, at most 100 saved; 10 to begin with.
    fn default() -> Self {
        Self::new(100, 1_000, 100)
    }
}

impl RetryBudget {
    /// `per_call` and `per_second` are thousandths of a retry, `saved_max` is whole retries. It begins with a tenth of
    /// those.
    pub fn new(per_call: u32, per_second: u32, saved_max: u32) -> Self {
        let full = u64::from(saved_max) * TOKEN;
        Self(Arc::new(Mutex::new(Bucket {
            tokens: full / 10,
            full,
            per_call: per_call.into(),
            per_second: per_second.into(),
            refilled: None,
        })))
    }

    pub(super) fn deposit(&self) {
        self.with(Bucket::deposit);
    }

    pub(super) fn withdraw(&self, now: Instant) -> bool {
        self.with(|bucket| bucket.withdraw(now))
    }

    fn with<T>(&self, act: impl FnOnce(&mut Bucket) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[derive(Debug)]
struct Bucket {
    tokens: u64,
    full: u64,
    per_call: u64,
    per_second: u64,
    refilled: Option<Instant>,
}

impl Bucket {
    fn deposit(&mut self) {
        self.tokens = (self.tokens + self.per_call).min(self.full);
    }

    fn withdraw(&mut self, now: Instant) -> bool {
        let since = *self.refilled.get_or_insert(now);
        let ms = u64::try_from(now.saturating_duration_since(since).as_millis()).unwrap_or(u64::MAX);
        let earned = self.per_second.saturating_mul(ms) / 1_000;
        if earned > 0 {
            // Only now: spans too short to earn anything add up.
            self.refilled = Some(now);
            self.tokens = self.tokens.saturating_add(earned).min(self.full);
        }
        let enough = self.tokens >= TOKEN;
        if enough {
            self.tokens -= TOKEN;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    #[tokio::test]
    async fn ten_calls_pay_for_one_retry_and_time_pays_too() {
        let (budget, now) = (RetryBudget::new(100, 1_000, 10), Instant::now());
        assert!(budget.withdraw(now), "it begins with a tenth");
        assert!(!budget.withdraw(now));
        for _ in 0..9 {
            budget.deposit();
        }
        assert!(!budget.withdraw(now));
        budget.deposit();
        assert!(budget.withdraw(now) && !budget.withdraw(now));
        assert!(budget.withdraw(now + Duration::from_secs(1)));
        let later = now + Duration::from_secs(3_600);
        assert_eq!(
            (0..100).filter(|_| budget.withdraw(later)).count(),
            10,
            "no more are saved"
        );
    }

    proptest! {
        #[test]
        fn retries_are_never_more_than_was_paid_for(steps in proptest::collection::vec(any::<bool>(), 1..400)) {
            let mut bucket = Bucket { tokens: 0, full: 50 * TOKEN, per_call: 100, per_second: 0, refilled: None };
            let (now, mut calls, mut retries) = (Instant::now(), 0, 0);
            for call in steps {
                if call { bucket.deposit(); calls += 1; } else if bucket.withdraw(now) { retries += 1; }
                prop_assert!(retries * 10 <= calls);
            }
        }
    }
}
