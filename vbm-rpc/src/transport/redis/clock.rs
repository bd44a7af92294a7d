//! Redis' time, as this process reckons it. Pure.
//!
//! ```text
//!   asked |------------- the answer was told somewhere here -------------| answered
//!                                  middle, give or take a half
//! ```
//!
//! A sample is worth what its round trip was short: one of 2 ms is right within 1 ms, one behind a stalled connection may
//! be seconds off. So a slow sample does not displace a better one that it does not contradict. One that it does
//! contradict is wrong for good: there is another server, or its clock was set.

use std::time::Duration;
use tokio::time::Instant;

/// Two clocks drift apart by at most a millisecond in this many: twice what a clock under correction may run off.
const DRIFT_PARTS: u32 = 1_000;

/// What Redis said once.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Instant,
    micros: u64,
    /// The most that it may be off, both ways, at that time.
    within: Duration,
}

impl Sample {
    fn read(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.at);
        self.micros.saturating_add(micros(since))
    }

    fn within(&self, now: Instant) -> Duration {
        self.within + now.saturating_duration_since(self.at) / DRIFT_PARTS
    }

    /// Whether both can be true.
    fn agrees(&self, other: &Self) -> bool {
        let apart = Duration::from_micros(self.read(other.at).abs_diff(other.micros));
        apart <= self.within(other.at) + other.within
    }
}

/// The best that is known.
#[derive(Debug, Default)]
pub(super) struct Clock(Option<Sample>);

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

impl Clock {
    /// Redis' time in microseconds; 0 before the first sample.
    pub(super) fn read(&self, now: Instant) -> u64 {
        self.0.map_or(0, |sample| sample.read(now))
    }

    /// The most that it can be; 0 before the first sample.
    pub(super) fn read_at_most(&self, now: Instant) -> u64 {
        let at_most = |sample: Sample| sample.read(now).saturating_add(micros(sample.within(now)));
        self.0.map_or(0, at_most)
    }

    /// Redis said `micros` to a question of this time.
    pub(super) fn note(&mut self, asked: Instant, answered: Instant, micros: u64) {
        let half = answered.saturating_duration_since(asked) / 2;
        let new = Sample {
            at: asked + half,
            micros,
            within: half,
        };
        let keeps = self
            .0
            .is_some_and(|known| known.agrees(&new) && known.within(new.at) < new.within);
        if !keeps {
            self.0 = Some(new);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);
    const REDIS: u64 = 1_800_000_000_000_000;

    /// A clock that asked once, and when.
    fn asked(round_trip: Duration) -> (Clock, Instant) {
        let (mut clock, begin) = (Clock::default(), Instant::now());
        clock.note(begin, begin + round_trip, REDIS + micros(round_trip / 2));
        (clock, begin)
    }

    #[test]
    fn a_slow_sample_does_not_displace_a_good_one() {
        let (mut clock, begin) = asked(2 * MS);
        // Told at its very beginning, and four seconds on its way back.
        let at = begin + 2_000 * MS;
        clock.note(at, at + 4_000 * MS, REDIS + 2_000_000);
        assert_eq!(clock.read(at + 4_000 * MS), REDIS + 6_000_000);
    }

    #[test]
    fn a_good_sample_displaces_a_slow_one() {
        let (mut clock, begin) = (Clock::default(), Instant::now());
        clock.note(begin, begin + 4_000 * MS, REDIS);
        assert_eq!(clock.read(begin + 4_000 * MS), REDIS + 2_000_000, "the middle");
        let at = begin + 5_000 * MS;
        clock.note(at, at + 2 * MS, REDIS + 5_001_000);
        assert_eq!(clock.read(at + MS), REDIS + 5_001_000);
    }

    #[test]
    fn another_server_with_another_clock_is_believed() {
        let (mut clock, begin) = asked(2 * MS);
        let at = begin + 2_000 * MS;
        clock.note(at, at + 100 * MS, REDIS + 9_000_000);
        assert_eq!(clock.read(at + 50 * MS), REDIS + 9_000_000);
    }

    #[test]
    fn a_good_sample_does_not_stay_for_ever() {
        let (mut clock, begin) = asked(2 * MS);
        // After a minute 60 ms of drift are possible, so that a sample of 40 ms knows more.
        let at = begin + 60_000 * MS;
        clock.note(at, at + 40 * MS, REDIS + 60_030_000);
        assert_eq!(clock.read(at + 20 * MS), REDIS + 60_030_000);
    }

    proptest! {
        /// Whatever the ways there and back take: it is never further off than half of the shortest round trip, and the
        /// drift since.
        #[test]
        fn it_is_as_good_as_its_best_sample(
            trips in proptest::collection::vec((0u64..3_000, 0u64..3_000, 0u64..4_000), 1..50)) {
            let (mut clock, begin) = (Clock::default(), Instant::now());
            let (mut now, mut off) = (begin, Duration::MAX);
            for (there, back, pause) in trips {
                let (there, back) = (MS * u32::try_from(there).unwrap(), MS * u32::try_from(back).unwrap());
                let told = now + there;
                clock.note(now, told + back, REDIS + micros(told - begin));
                let half = (there + back) / 2;
                off = off.min(half).saturating_add((there + back) / DRIFT_PARTS);
                now = told + back;
                let apart = Duration::from_micros(clock.read(now).abs_diff(REDIS + micros(now - begin)));
                prop_assert!(apart <= off + MS, "{apart:?} off, {off:?} are allowed");
                prop_assert!(clock.read_at_most(now) + micros(MS) >= REDIS + micros(now - begin));
                now += Duration::from_millis(pause);
                off += Duration::from_millis(pause) / DRIFT_PARTS;
            }
        }
    }
}
