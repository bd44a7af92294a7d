//! The window of a stream: pure bookkeeping of both its ends.
//!
//! ```text
//!   sender: Credit                                  reader: Intake
//!     may_send? spend --------- item seq ----------> arrive: New | Repeat | Gap | Beyond
//!     grant <------- up to item n, byte b ---------- take: after half a window, a grant
//! ```
//!
//! Grants are totals since the beginning of the stream: a lost one is healed by the next, a repeated one changes nothing.

use crate::limits::{STREAM_WINDOW_BYTES, STREAM_WINDOW_ITEMS};

/// Totals since the beginning of a stream: what was sent, or up to where may be sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Total {
    pub(crate) items: u64,
    pub(crate) bytes: u64,
}

/// What a sender may send before it heard from its reader.
pub(crate) const FIRST_GRANT: Total = Total {
    items: STREAM_WINDOW_ITEMS,
    bytes: STREAM_WINDOW_BYTES,
};

/// The sender's side.
#[derive(Debug)]
pub(crate) struct Credit {
    sent: Total,
    until: Total,
}

impl Default for Credit {
    fn default() -> Self {
        Self {
            sent: Total::default(),
            until: FIRST_GRANT,
        }
    }
}

impl Credit {
    /// Whether one more item may go.
    pub(crate) const fn may_send(&self) -> bool {
        self.sent.items < self.until.items && self.sent.bytes < self.until.bytes
    }

    /// The number of the next item, which is how many were sent.
    pub(crate) const fn sent(&self) -> u64 {
        self.sent.items
    }

    /// An item was sent.
    pub(crate) const fn spend(&mut self, bytes: u64) {
        self.sent.items += 1;
        self.sent.bytes = self.sent.bytes.saturating_add(bytes);
    }

    /// The reader has room up to there. Older grants than the newest change nothing.
    pub(crate) fn grant(&mut self, until: Total) {
        self.until.items = self.until.items.max(until.items);
        self.until.bytes = self.until.bytes.max(until.bytes);
    }
}

/// What an arriving item is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// The next one.
    New,
    /// It was here before.
    Repeat,
    /// This many before it are missing.
    Gap(u64),
    /// The sender had no credit for it.
    Beyond,
}

/// The reader's side.
#[derive(Debug)]
pub(crate) struct Intake {
    arrived: Total,
    taken: Total,
    granted: Total,
}

impl Default for Intake {
    fn default() -> Self {
        Self {
            arrived: Total::default(),
            taken: Total::default(),
            granted: FIRST_GRANT,
        }
    }
}

impl Intake {
    /// An item has come. Only a new one counts.
    pub(crate) fn arrive(&mut self, seq: u64, bytes: u64) -> Arrival {
        if seq < self.arrived.items {
            return Arrival::Repeat;
        }
        if seq > self.arrived.items {
            return Arrival::Gap(seq - self.arrived.items);
        }
        if seq >= self.granted.items || self.arrived.bytes >= self.granted.bytes {
            return Arrival::Beyond;
        }
        self.arrived.items += 1;
        self.arrived.bytes = self.arrived.bytes.saturating_add(bytes);
        Arrival::New
    }

    /// How many of the `sent` items have not arrived.
    pub(crate) const fn missing(&self, sent: u64) -> u64 {
        sent.saturating_sub(self.arrived.items)
    }

    /// How many items have arrived.
    pub(crate) const fn arrived(&self) -> u64 {
        self.arrived.items
    }

    /// An item was consumed: what the sender is to be told, when it is worth a message.
    pub(crate) fn take(&mut self, bytes: u64) -> Option<Total> {
        self.taken.items += 1;
        self.taken.bytes = self.taken.bytes.saturating_add(bytes);
        let next = Total {
            items: self.taken.items + STREAM_WINDOW_ITEMS,
            bytes: self.taken.bytes.saturating_add(STREAM_WINDOW_BYTES),
        };
        let due = next.items - self.granted.items >= STREAM_WINDOW_ITEMS / 2
            || next.bytes - self.granted.bytes >= STREAM_WINDOW_BYTES / 2;
        if due {
            self.granted = next;
        }
        due.then_some(next)
    }

    /// What was granted last.
    pub(crate) const fn granted(&self) -> Total {
        self.granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_gap_is_told_and_a_repeat_is_dropped() {
        let mut intake = Intake::default();
        assert_eq!(intake.arrive(0, 10), Arrival::New);
        assert_eq!(intake.arrive(0, 10), Arrival::Repeat);
        assert_eq!(intake.arrive(3, 10), Arrival::Gap(2));
        assert_eq!(intake.arrive(1, 10), Arrival::New);
        assert_eq!(
            (intake.arrived(), intake.missing(2), intake.missing(5)),
            (2, 0, 3)
        );
    }

    #[test]
    fn what_was_sent_without_credit_is_told() {
        let mut intake = Intake::default();
        for seq in 0..STREAM_WINDOW_ITEMS {
            assert_eq!(intake.arrive(seq, 1), Arrival::New);
        }
        assert_eq!(intake.arrive(STREAM_WINDOW_ITEMS, 1), Arrival::Beyond);
    }

    #[test]
    fn credit_ends_by_items_or_by_bytes() {
        let mut credit = Credit::default();
        for _ in 0..STREAM_WINDOW_ITEMS {
            assert!(credit.may_send());
            credit.spend(1);
        }
        assert!(!credit.may_send());
        let mut credit = Credit::default();
        credit.spend(STREAM_WINDOW_BYTES);
        assert!(!credit.may_send(), "one large item takes the whole window");
        credit.grant(Total {
            items: 1,
            bytes: 2 * STREAM_WINDOW_BYTES,
        });
        assert!(credit.may_send(), "an old number of items takes nothing away");
    }

    proptest! {
        #[test]
        fn no_window_is_overrun_and_no_stream_stands_still(
            sizes in proptest::collection::vec(0u64..300_000, 1..400), eager in any::<u64>()) {
            let (mut credit, mut intake) = (Credit::default(), Intake::default());
            let (mut unread, mut next) = (std::collections::VecDeque::new(), 0);
            while next < sizes.len() || !unread.is_empty() {
                let send = next < sizes.len() && credit.may_send();
                // Either side may be faster; one of them can always go on.
                if send && (unread.is_empty() || eager.rotate_left(u32::try_from(next % 64).unwrap()) & 1 == 1) {
                    prop_assert_eq!(intake.arrive(credit.sent(), sizes[next]), Arrival::New);
                    credit.spend(sizes[next]);
                    unread.push_back(sizes[next]);
                    next += 1;
                } else {
                    let Some(size) = unread.pop_front() else {
                        prop_assert!(send, "nothing is unread and the sender has no credit");
                        continue;
                    };
                    if let Some(grant) = intake.take(size) { credit.grant(grant); }
                }
                prop_assert!(unread.len() as u64 <= STREAM_WINDOW_ITEMS);
                let bytes: u64 = unread.iter().sum();
                prop_assert!(bytes < STREAM_WINDOW_BYTES + 300_000);
            }
            prop_assert_eq!(intake.missing(credit.sent()), 0);
        }
    }
}
