//! Seeded misfortune.

use std::time::Duration;

/// What happens to messages on a [`MemoryBus`](super::MemoryBus), decided by a seed. The default is: nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// The same seed and the same order of messages give the same misfortunes.
    pub seed: u64,
    /// Of a thousand messages, how many are lost.
    pub drop_per_mille: u16,
    /// Of a thousand messages, how many are delivered twice.
    pub duplicate_per_mille: u16,
    /// Each message is delayed by up to this long; messages overtake each other.
    pub delay_max: Duration,
    /// Of a thousand messages, how many are held back until others have overtaken them, by up to 50 ms more.
    pub reorder_per_mille: u16,
}

/// The most that a message is held back so that others overtake it.
const REORDER_MAX: Duration = Duration::from_millis(50);

/// What happens to one message: one delay for each copy delivered.
pub(super) struct Dice {
    pub(super) faults: Faults,
    state: u64,
}

impl Dice {
    pub(super) const fn new(faults: Faults) -> Self {
        Self {
            faults,
            state: faults.seed,
        }
    }

    /// SplitMix64 (Steele, Lea, Flood 2014).
    const fn roll(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn up_to(&mut self, max: Duration) -> Duration {
        match u64::try_from(max.as_micros()) {
            Ok(max) if max > 0 => Duration::from_micros(self.roll() % (max + 1)),
            _ => Duration::ZERO,
        }
    }

    fn delay(&mut self) -> Duration {
        let delay = self.up_to(self.faults.delay_max);
        let late = self.faults.reorder_per_mille;
        if late > 0 && self.roll() % 1_000 < u64::from(late) {
            return delay + self.up_to(REORDER_MAX);
        }
        delay
    }

    pub(super) fn copies(&mut self) -> Vec<Duration> {
        if self.faults == Faults::default() {
            return vec![Duration::ZERO];
        }
        let dice = self.roll() % 1_000;
        let (lost, twice) = (
            u64::from(self.faults.drop_per_mille),
            u64::from(self.faults.duplicate_per_mille),
        );
        match dice {
            _ if dice < lost => vec![],
            _ if dice < lost + twice => vec![self.delay(), self.delay()],
            _ => vec![self.delay()],
        }
    }
}

impl Default for Dice {
    fn default() -> Self {
        Self::new(Faults::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_replays_its_misfortunes() {
        let faults = Faults {
            seed: 7,
            drop_per_mille: 100,
            duplicate_per_mille: 100,
            delay_max: Duration::from_secs(1),
            reorder_per_mille: 10,
        };
        let story = |faults| {
            let mut dice = Dice::new(faults);
            (0..1_000).map(|_| dice.copies()).collect::<Vec<_>>()
        };
        assert_eq!(story(faults), story(faults));
        assert_ne!(story(faults), story(Faults { seed: 8, ..faults }));
        let counts = story(faults).iter().fold([0; 3], |mut counts, copies| {
            counts[copies.len()] += 1;
            counts
        });
        assert!(counts.iter().all(|count| *count > 50), "{counts:?}");
    }
}
