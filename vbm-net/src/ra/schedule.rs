//! When a router speaks (RFC 4861 section 6.2): to everybody from time to time, and to who asked, soon. Pure.
//!
//! ```text
//!   begin, changed --> soon --16 s--> again --16 s--> again --200..600 s--> again ...       to ff02::1 by multicast
//!   solicited      --> within 0.5 s, once however often it asks meanwhile                   to the MAC that asked
//! ```
//!
//! Who asks is answered alone, at its MAC, so a guest that asks all the time wakes no other. One without an address yet is answered at
//! `ff02::1`, which RFC 6085 allows in a frame to one. Times are counted from the start of the one who asks.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv6Addr,
    time::Duration,
};
use vbm_core::Mac;

/// The longest between two advertisements to everybody (`MaxRtrAdvInterval`).
pub const INTERVAL_MAX: Duration = Duration::from_secs(600);
/// The shortest (`MinRtrAdvInterval`): a third of it.
pub const INTERVAL_MIN: Duration = Duration::from_secs(200);
/// How many are sent in quick succession at first (`MAX_INITIAL_RTR_ADVERTISEMENTS`).
pub const INITIAL_COUNT: u8 = 3;
/// The longest between those (`MAX_INITIAL_RTR_ADVERT_INTERVAL`).
pub const INITIAL_INTERVAL_MAX: Duration = Duration::from_secs(16);
/// The least between two to everybody (`MIN_DELAY_BETWEEN_RAS`).
pub const BETWEEN_MIN: Duration = Duration::from_secs(3);
/// The longest that an answer waits (`MAX_RA_DELAY_TIME`).
pub const ANSWER_DELAY_MAX: Duration = Duration::from_millis(500);
/// The most that wait for an answer. Who comes later asks again in four seconds.
pub const WAITING_MAX: usize = 4_096;

/// An advertisement that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// To all hosts of the link.
    Everybody,
    /// To who asked.
    One {
        /// Its MAC.
        mac: Mac,
        /// Its address, or that of all hosts if it has none.
        to: Ipv6Addr,
    },
}

/// When what is due.
#[derive(Clone, Debug)]
pub struct Schedule {
    dice: Dice,
    next: Duration,
    last: Option<Duration>,
    /// How many follow in quick succession.
    initial: u8,
    answers: BTreeMap<(Duration, Mac), Ipv6Addr>,
    waiting: BTreeSet<Mac>,
}

impl Schedule {
    /// Of a router that begins to speak now. The seed decides what is left to chance.
    pub fn new(seed: u64, now: Duration) -> Self {
        let mut schedule = Self {
            dice: Dice(seed),
            next: now,
            last: None,
            initial: 0,
            answers: BTreeMap::new(),
            waiting: BTreeSet::new(),
        };
        schedule.changed(now);
        schedule
    }

    /// What it says has changed: everybody is told soon, and again.
    pub fn changed(&mut self, now: Duration) {
        self.initial = INITIAL_COUNT;
        let soon = now + self.dice.below(ANSWER_DELAY_MAX);
        let earliest = self.last.map_or(now, |last| last + BETWEEN_MIN);
        self.next = soon.max(earliest);
    }

    /// Somebody asked. Returns whether it will be answered: the answer may be due already, or too many wait.
    pub fn solicited(&mut self, mac: Mac, from: Ipv6Addr, now: Duration) -> bool {
        if self.waiting.contains(&mac) {
            return true;
        }
        if self.waiting.len() >= WAITING_MAX {
            return false;
        }
        let to = if from.is_unspecified() {
            super::ALL_NODES
        } else {
            from
        };
        self.waiting.insert(mac);
        self.answers
            .insert((now + self.dice.below(ANSWER_DELAY_MAX), mac), to);
        true
    }

    /// When something is due next.
    pub fn next(&self) -> Duration {
        let answer = self.answers.first_key_value().map(|((at, _), _)| *at);
        answer.map_or(self.next, |at| at.min(self.next))
    }

    /// What is due by now. Each is told once.
    pub fn due(&mut self, now: Duration) -> Vec<Due> {
        let mut due = Vec::new();
        while let Some(first) = self.answers.first_entry() {
            if first.key().0 > now {
                break;
            }
            let ((_, mac), to) = first.remove_entry();
            self.waiting.remove(&mac);
            due.push(Due::One { mac, to });
        }
        if self.next <= now {
            self.initial = self.initial.saturating_sub(1);
            let interval = INTERVAL_MIN + self.dice.below(INTERVAL_MAX - INTERVAL_MIN);
            let interval = if self.initial > 0 {
                interval.min(INITIAL_INTERVAL_MAX)
            } else {
                interval
            };
            self.last = Some(now);
            self.next = now + interval;
            due.push(Due::Everybody);
        }
        due
    }
}

/// A small source of chance (SplitMix64): for jitter, not for secrets.
#[derive(Clone, Debug)]
struct Dice(u64);

impl Dice {
    /// A span from nothing to this, both among them.
    fn below(&mut self, most: Duration) -> Duration {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
        let millis = u64::try_from(most.as_millis()).unwrap_or(u64::MAX - 1);
        Duration::from_millis(x % (millis + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: Mac = Mac::local(1);
    const START: Duration = Duration::from_secs(7);

    /// When everybody is told, until then.
    fn told(schedule: &mut Schedule, until: Duration) -> Vec<Duration> {
        let mut times = Vec::new();
        while schedule.next() <= until {
            let now = schedule.next();
            times.extend(schedule.due(now).contains(&Due::Everybody).then_some(now));
        }
        times
    }

    proptest! {
        #[test]
        fn three_come_soon_and_then_one_in_a_while(seed: u64) {
            let mut schedule = Schedule::new(seed, START);
            let times = told(&mut schedule, START + Duration::from_secs(10_000));
            prop_assert!(times[0] <= START + ANSWER_DELAY_MAX);
            for (n, pair) in times.windows(2).enumerate() {
                let gap = pair[1] - pair[0];
                if n < 2 {
                    prop_assert_eq!(gap, INITIAL_INTERVAL_MAX);
                } else {
                    prop_assert!((INTERVAL_MIN..=INTERVAL_MAX).contains(&gap), "{:?}", gap);
                }
            }
            prop_assert!(times.len() > 15);
        }

        #[test]
        fn who_asks_is_answered_soon_alone_and_once(seed: u64, again in 0u64..400) {
            let mut schedule = Schedule::new(seed, START);
            told(&mut schedule, START + Duration::from_secs(100));
            let now = START + Duration::from_secs(150);
            let from: Ipv6Addr = "fe80::7".parse().unwrap();
            prop_assert!(schedule.solicited(A, from, now));
            prop_assert!(schedule.solicited(A, from, now + Duration::from_millis(again)));
            let at = schedule.next();
            prop_assert!(at <= now + ANSWER_DELAY_MAX);
            prop_assert_eq!(schedule.due(at), vec![Due::One { mac: A, to: from }]);
            prop_assert!(schedule.next() > now + ANSWER_DELAY_MAX);
        }

        #[test]
        fn changes_however_many_never_tell_everybody_twice_in_three_seconds(seed: u64, steps in prop::collection::vec(0u64..5_000, 1..200)) {
            let mut schedule = Schedule::new(seed, START);
            let (mut now, mut times) = (START, Vec::new());
            for step in steps {
                now += Duration::from_millis(step);
                times.extend(told(&mut schedule, now));
                schedule.changed(now);
            }
            for pair in times.windows(2) {
                prop_assert!(pair[1] - pair[0] >= BETWEEN_MIN, "{:?}", pair);
            }
        }
    }

    #[test]
    fn one_without_an_address_is_answered_at_that_of_all() {
        let mut schedule = Schedule::new(1, START);
        assert!(schedule.solicited(A, Ipv6Addr::UNSPECIFIED, START));
        let due = schedule.due(START + ANSWER_DELAY_MAX);
        assert!(
            due.contains(&Due::One {
                mac: A,
                to: super::super::ALL_NODES
            }),
            "{due:?}"
        );
        assert!(
            schedule.solicited(A, Ipv6Addr::UNSPECIFIED, START),
            "it may ask again"
        );
    }

    #[test]
    fn who_waits_is_bounded() {
        let mut schedule = Schedule::new(1, START);
        let from: Ipv6Addr = "fe80::7".parse().unwrap();
        for n in 0..WAITING_MAX {
            assert!(schedule.solicited(Mac::local(u32::try_from(n).unwrap()), from, START));
        }
        assert!(!schedule.solicited(Mac::local(0xff_ffff), from, START));
        let answered = schedule.due(START + ANSWER_DELAY_MAX);
        assert_eq!(answered.len(), WAITING_MAX + 1, "all of them, and everybody");
        assert!(schedule.solicited(Mac::local(0xff_ffff), from, START));
    }
}
