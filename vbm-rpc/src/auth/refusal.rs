//! Why an entry, or something kept, was refused, and how often.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};
use vbm_core::NodePath;

/// Why an entry, or something that was kept in Redis, was not opened. Nobody's call was begun or ended by it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// It has no seal.
    #[error("it has no seal")]
    Missing,
    /// Its seal is cut off or too long.
    #[error("its seal cannot be read")]
    Malformed,
    /// Its seal is of another version.
    #[error("its seal has version {0}, which this process does not know")]
    Version(u8),
    /// It is larger than any entry of the bus.
    #[error("it has {bytes} bytes; {max} are allowed")]
    Oversized {
        /// What it has.
        bytes: usize,
        /// What is allowed.
        max: usize,
    },
    /// A signature where one reader is meant, or a tag where many are.
    #[error("its seal is of the wrong sort for this queue")]
    WrongSort,
    /// The key is not trusted, or not for that path.
    #[error("the key {key} is not trusted to speak for {path}")]
    UnknownKey {
        /// The key.
        key: String,
        /// Whom it claims to speak for.
        path: NodePath,
    },
    /// It was sealed for a key that this process does not have.
    #[error("it was sealed for the key {key}, which this process does not have")]
    NotForMe {
        /// The key.
        key: String,
    },
    /// The seal does not fit: made by another, for another queue, or changed since.
    #[error(
        "its seal does not fit: it was made by somebody else, for another queue, or the entry was changed"
    )]
    WrongSeal,
    /// It holds a frame in somebody else's name.
    #[error("{sender} speaks in it in the name of {caller}")]
    WrongCaller {
        /// Who sealed it.
        sender: NodePath,
        /// Whom a frame in it names.
        caller: String,
    },
    /// It holds a command of an epoch that its key may not command in.
    #[error("{sender} commands in it in epoch {epoch}, which its key may not")]
    WrongEpoch {
        /// Who sealed it.
        sender: NodePath,
        /// The epoch.
        epoch: u64,
    },
    /// It was written to Redis at another time than its seal says.
    #[error("it was written {off_ms} ms away from the time in its seal")]
    WrongTime {
        /// The distance, in milliseconds.
        off_ms: u64,
    },
    /// An entry with this seal was opened before.
    #[error("an entry with this seal was opened before")]
    Replayed,
    /// It is a broadcast that was sealed before this member was there.
    #[error("it was sealed {early_ms} ms before this member was there")]
    BeforeJoined {
        /// How long before, in milliseconds.
        early_ms: u64,
    },
    /// Who sealed it has no say about what it is.
    #[error("{sender} has no say about it")]
    NoSay {
        /// Who sealed it.
        sender: NodePath,
    },
}

impl Refusal {
    /// A word for metrics.
    pub const fn name(&self) -> &'static str {
        NAMES[self.index() as usize]
    }

    /// Its place among the reasons.
    pub(crate) const fn index(&self) -> u32 {
        match self {
            Self::Missing => 0,
            Self::Malformed => 1,
            Self::Version(_) => 2,
            Self::Oversized { .. } => 3,
            Self::WrongSort => 4,
            Self::UnknownKey { .. } => 5,
            Self::NotForMe { .. } => 6,
            Self::WrongSeal => 7,
            Self::WrongCaller { .. } => 8,
            Self::WrongEpoch { .. } => 9,
            Self::WrongTime { .. } => 10,
            Self::Replayed => 11,
            Self::BeforeJoined { .. } => 12,
            Self::NoSay { .. } => 13,
        }
    }
}

const NAMES: [&str; 14] = [
    "missing",
    "malformed",
    "version",
    "oversized",
    "wrong-sort",
    "unknown-key",
    "not-for-me",
    "wrong-seal",
    "wrong-caller",
    "wrong-epoch",
    "wrong-time",
    "replayed",
    "before-joined",
    "no-say",
];

/// How many entries were opened, and how many were refused for which reason.
#[derive(Debug, Default)]
pub struct Counts {
    opened: AtomicU64,
    sealed: AtomicU64,
    refused: [AtomicU64; NAMES.len()],
}

impl Counts {
    pub(crate) fn opened_one(&self) {
        self.opened.fetch_add(1, Ordering::Relaxed);
    }
    pub(crate) fn sealed_one(&self) {
        self.sealed.fetch_add(1, Ordering::Relaxed);
    }
    pub(crate) fn refused_one(&self, refusal: &Refusal) {
        self.refused[refusal.index() as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Entries that were opened.
    pub fn opened(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }
    /// Entries that were sealed.
    pub fn sealed(&self) -> u64 {
        self.sealed.load(Ordering::Relaxed)
    }
    /// Entries that were refused, by [`Refusal::name`]; those that never happened are left out.
    pub fn refused(&self) -> BTreeMap<&'static str, u64> {
        let counts = self.refused.iter().map(|count| count.load(Ordering::Relaxed));
        NAMES
            .into_iter()
            .zip(counts)
            .filter(|(_, count)| *count > 0)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_counted_under_their_names() {
        let counts = Counts::default();
        for refusal in [Refusal::Replayed, Refusal::Missing, Refusal::Replayed] {
            counts.refused_one(&refusal);
        }
        let expected = BTreeMap::from([("missing", 1), ("replayed", 2)]);
        assert_eq!(counts.refused(), expected);
    }
}
