//! What is injected: time and new ids. Nothing in VBM reads a clock or rolls dice on its own.

use crate::Timestamp;
use std::sync::atomic::{AtomicU64, Ordering};
use uuid::Uuid;

/// Tells the time. The real one reads the system's clock; a simulation moves its own.
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> Timestamp;
}

/// Makes new ids.
pub trait IdSource: Send + Sync {
    /// A UUID never given before.
    fn next(&self) -> Uuid;
}

/// Ids that a seed decides: the same seed gives the same ids in the same order.
#[derive(Debug)]
pub struct SeededIds {
    seed: u64,
    next: AtomicU64,
}

impl SeededIds {
    /// A source for one seed.
    pub const fn new(seed: u64) -> Self {
        Self {
            seed,
            next: AtomicU64::new(1),
        }
    }
}

impl IdSource for SeededIds {
    fn next(&self) -> Uuid {
        let count = self.next.fetch_add(1, Ordering::Relaxed);
        Uuid::from_u64_pair(mix(self.seed), mix(self.seed ^ count))
    }
}

/// SplitMix64's finaliser (Steele, Lea, Flood 2014): a bijection, so distinct inputs stay distinct.
const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_ids_and_no_id_twice() {
        let (a, b) = (SeededIds::new(7), SeededIds::new(7));
        let first: Vec<_> = (0..10_000).map(|_| a.next()).collect();
        assert!(first.iter().all(|id| *id == b.next()));
        let unique: std::collections::HashSet<_> = first.iter().collect();
        assert_eq!(unique.len(), first.len());
    }
}
