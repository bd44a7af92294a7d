//! How often a port may ask: a token bucket for each, by its address. Pure: the caller says what time it is.

use std::{collections::HashMap, net::Ipv4Addr};

/// What one question costs, in the unit of the buckets: at one thousand a second, one unit comes back each microsecond.
const COST: u64 = 1_000;

/// The buckets of the ports of one network. There are never more than ports that asked.
#[derive(Debug)]
pub(crate) struct Buckets {
    per_second: u64,
    burst: u64,
    buckets: HashMap<Ipv4Addr, Bucket>,
}

#[derive(Debug)]
struct Bucket {
    left: u64,
    at_ms: u64,
}

impl Buckets {
    pub(crate) fn new(per_second: u32, burst: u32) -> Self {
        Self {
            per_second: per_second.into(),
            burst: u64::from(burst) * COST,
            buckets: HashMap::new(),
        }
    }

    /// Whether this one may ask now. A clock that goes back gives nothing.
    pub(crate) fn take(&mut self, who: Ipv4Addr, now_ms: u64) -> bool {
        let bucket = self.buckets.entry(who).or_insert(Bucket {
            left: self.burst,
            at_ms: now_ms,
        });
        // A thousandth of a question for each millisecond and question a second.
        let earned = now_ms
            .saturating_sub(bucket.at_ms)
            .saturating_mul(self.per_second);
        bucket.left = bucket.left.saturating_add(earned).min(self.burst);
        bucket.at_ms = bucket.at_ms.max(now_ms);
        let may = bucket.left >= COST;
        if may {
            bucket.left -= COST;
        }
        may
    }

    /// Forgets those that are ports no more.
    pub(crate) fn retain(&mut self, is_port: impl Fn(&Ipv4Addr) -> bool) {
        self.buckets.retain(|who, _| is_port(who));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
    const B: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

    fn taken(buckets: &mut Buckets, who: Ipv4Addr, now_ms: u64) -> usize {
        (0..1_000).filter(|_| buckets.take(who, now_ms)).count()
    }

    #[test]
    fn a_burst_passes_then_the_rate_and_a_neighbour_is_not_touched() {
        let mut buckets = Buckets::new(100, 20);
        assert_eq!(taken(&mut buckets, A, 0), 20);
        assert_eq!(taken(&mut buckets, A, 50), 5);
        assert_eq!(taken(&mut buckets, B, 50), 20);
        assert_eq!(
            taken(&mut buckets, A, 1_000_000),
            20,
            "no more than a burst is saved up"
        );
        assert_eq!(
            taken(&mut buckets, A, 5),
            0,
            "a clock that goes back gives nothing"
        );
    }

    #[test]
    fn who_is_gone_is_forgotten() {
        let mut buckets = Buckets::new(1, 1);
        assert!(buckets.take(A, 0) && buckets.take(B, 0));
        buckets.retain(|who| *who == A);
        assert_eq!(buckets.buckets.len(), 1);
    }
}
