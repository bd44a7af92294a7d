//! Chance by a seed: the same seed gives the same story.

use std::time::Duration;

/// SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    /// Dice of a seed and of what they are for, so that two uses of one seed do not run alike.
    pub(crate) fn new(seed: u64, what_for: u64) -> Self {
        let mut dice = Self(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ what_for.wrapping_mul(0x9e37_79b9));
        dice.roll();
        dice
    }

    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.roll() % end.max(1)
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, among: &[T]) -> T {
        let at = usize::try_from(self.below(among.len() as u64)).unwrap_or(0);
        among[at]
    }

    pub(crate) fn span(&mut self, from: Duration, to: Duration) -> Duration {
        let range = u64::try_from(to.saturating_sub(from).as_micros()).unwrap_or(u64::MAX);
        from + Duration::from_micros(self.below(range + 1))
    }
}

/// The seeds of a run: `VBM_SEED` names one, `VBM_SEEDS` how many from 0 on, else `by_default`.
pub(crate) fn seeds(by_default: u64) -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>());
    match (number("VBM_SEED"), number("VBM_SEEDS")) {
        (Some(one), _) => vec![one.expect("VBM_SEED is a number")],
        (None, Some(count)) => (0..count.expect("VBM_SEEDS is a number")).collect(),
        (None, None) => (0..by_default).collect(),
    }
}
