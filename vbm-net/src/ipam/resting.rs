//! The addresses that rest after they were given back. In the set of taken ones they count as taken, so a pick passes them
//! without asking here.

use std::collections::{BTreeMap, BTreeSet};
use vbm_core::Timestamp;

/// The most addresses that rest at a time. When one more is given back, the one that has rested longest is free early.
pub const RESTING_MAX_ADDRESSES: usize = 16_384;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Resting {
    until: BTreeMap<u128, Timestamp>,
    order: BTreeSet<(Timestamp, u128)>,
}

impl Resting {
    pub(super) fn len(&self) -> usize {
        self.until.len()
    }

    pub(super) fn until(&self, offset: u128) -> Option<Timestamp> {
        self.until.get(&offset).copied()
    }

    /// When the next one is free.
    pub(super) fn next(&self) -> Option<Timestamp> {
        self.order.first().map(|(until, _)| *until)
    }

    /// An address begins to rest. Returns the one that has to make room for it.
    pub(super) fn begin(&mut self, offset: u128, until: Timestamp) -> Option<u128> {
        self.end(offset);
        let early = if self.until.len() >= RESTING_MAX_ADDRESSES {
            self.order.pop_first().map(|(_, early)| early)
        } else {
            None
        };
        if let Some(early) = early {
            self.until.remove(&early);
        }
        self.until.insert(offset, until);
        self.order.insert((until, offset));
        early
    }

    /// An address rests no more. Whether it did.
    pub(super) fn end(&mut self, offset: u128) -> bool {
        match self.until.remove(&offset) {
            Some(until) => self.order.remove(&(until, offset)),
            None => false,
        }
    }

    /// One that has rested enough.
    pub(super) fn pop_rested(&mut self, now: Timestamp) -> Option<u128> {
        let (until, offset) = *self.order.first()?;
        if until > now {
            return None;
        }
        self.end(offset);
        Some(offset)
    }

    /// In the order in which they become free.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Timestamp, u128)> + '_ {
        self.order.iter().copied()
    }

    /// What it takes on the heap, in bytes: nodes of both trees as half full, which is their least.
    pub(super) fn heap_bytes(&self) -> usize {
        let one = size_of::<(u128, Timestamp)>() + size_of::<(Timestamp, u128)>();
        self.until.len() * 2 * one
    }
}
