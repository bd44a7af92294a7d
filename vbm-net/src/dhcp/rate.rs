//! How often a MAC may ask: a token bucket each, and a bound on how many are remembered. Pure.
//!
//! A bucket that is full again says nothing that a new one would not, so it may be forgotten.

use super::Rate;
use std::collections::HashMap;
use vbm_core::{Mac, Timestamp};

/// The most MACs that are remembered. When they are all in use, a further one is refused.
pub const BUCKETS_MAX: usize = 65_536;

const MILLION: u64 = 1_000_000;

/// Tokens in millionths, as of a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    millionths: u64,
    at: Timestamp,
}

impl Bucket {
    /// A full one.
    pub const fn full(rate: Rate, now: Timestamp) -> Self {
        Self {
            millionths: rate.burst as u64 * MILLION,
            at: now,
        }
    }

    /// The same at a later time. A clock that went back adds nothing.
    fn at(self, rate: Rate, now: Timestamp) -> Self {
        let micros = u64::try_from(now.since(self.at).as_micros()).unwrap_or(u64::MAX);
        let full = Self::full(rate, now).millionths;
        Self {
            millionths: self
                .millionths
                .saturating_add(micros.saturating_mul(rate.per_second.into()))
                .min(full),
            at: now,
        }
    }

    /// Takes a token, if there is one.
    pub fn take(&mut self, rate: Rate, now: Timestamp) -> bool {
        *self = self.at(rate, now);
        let left = self.millionths.checked_sub(MILLION);
        self.millionths = left.unwrap_or(self.millionths);
        left.is_some()
    }

    fn is_full(self, rate: Rate, now: Timestamp) -> bool {
        self.at(rate, now).millionths >= Self::full(rate, now).millionths
    }
}

/// The buckets of a link.
#[derive(Clone, Debug, Default)]
pub struct Limiter {
    buckets: HashMap<Mac, Bucket>,
}

impl Limiter {
    /// Whether this MAC may ask now; counts it if so.
    pub fn allows(&mut self, mac: Mac, rate: Rate, now: Timestamp) -> bool {
        if !self.buckets.contains_key(&mac) && self.buckets.len() >= BUCKETS_MAX {
            self.buckets.retain(|_, b| !b.is_full(rate, now));
            if self.buckets.len() >= BUCKETS_MAX {
                return false;
            }
        }
        self.buckets
            .entry(mac)
            .or_insert_with(|| Bucket::full(rate, now))
            .take(rate, now)
    }

    /// How many MACs are remembered.
    pub fn len(&self) -> usize {
        self.buckets.len()
    }

    /// Whether none is remembered.
    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const RATE: Rate = Rate {
        burst: 3,
        per_second: 2,
    };
    const START: Timestamp = Timestamp::from_micros(1_000_000);

    fn after(millis: u64) -> Timestamp {
        START.plus(Duration::from_millis(millis))
    }

    #[test]
    fn a_burst_passes_and_then_only_the_rate() {
        let mut bucket = Bucket::full(RATE, START);
        let taken: Vec<bool> = [0, 0, 0, 0, 499, 500, 501, 999, 1_000]
            .map(|ms| bucket.take(RATE, after(ms)))
            .into();
        assert_eq!(taken, [true, true, true, false, false, true, false, false, true]);
    }

    #[test]
    fn a_clock_that_goes_back_gives_nothing_and_takes_nothing() {
        let mut bucket = Bucket::full(RATE, after(1_000));
        for _ in 0..3 {
            assert!(bucket.take(RATE, after(1_000)));
        }
        assert!(!bucket.take(RATE, START));
        assert!(bucket.take(RATE, after(60_000)));
    }

    #[test]
    fn one_that_floods_costs_no_other_its_turn() {
        let mut limiter = Limiter::default();
        let (loud, quiet) = (Mac::local(1), Mac::local(2));
        let passed = (0..100).filter(|_| limiter.allows(loud, RATE, START)).count();
        assert_eq!(passed, 3);
        assert!(limiter.allows(quiet, RATE, START));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_comes_free_again() {
        let mut limiter = Limiter::default();
        for n in 0..BUCKETS_MAX {
            assert!(limiter.allows(Mac::local(u32::try_from(n).unwrap()), RATE, START));
        }
        let late = Mac::local(0xff_ffff);
        assert!(!limiter.allows(late, RATE, START), "all are in use");
        assert_eq!(limiter.len(), BUCKETS_MAX);
        assert!(limiter.allows(late, RATE, after(500)), "all are full again");
        assert_eq!(limiter.len(), 1);
    }
}
