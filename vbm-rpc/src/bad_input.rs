//! Bad input: what came in and cannot be used as it was meant, and a server behind the transport that is not fit any more.
//!
//! ```text
//!   frame, entry, answer, word of the server
//!        | whoever meets it decides what it is: a BadInput, and answers its sender with a typed error where there is one
//!        v
//!   BadInputs::note(what, place) --+--> a count for each kind -----------> Bus::stats, vbm_bus_bad_input_total
//!                                  +--> the first of its kind from there --> one line in the log
//! ```
//!
//! One of these for each attachment, whatever its transport: transports reach it through
//! [`Inbound::bad_input`](crate::transport::Inbound::bad_input). Nothing here is on the way of a good call. What is remembered
//! is bounded by [`BAD_INPUT_PLACES_MAX`]: a stranger who invents places fills no memory and no log.

use crate::limits::BAD_INPUT_PLACES_MAX;
use std::{
    collections::HashMap,
    fmt::{self, Write as _},
    mem,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};
use vbm_core::NodePath;

/// The most of what is said about one bad input in the log, in characters.
const DETAIL_MAX_CHARS: usize = 400;

/// A kind of bad input. What becomes of each, and the test of each: `docs/rpc/bad-input.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum BadInput {
    /// Bytes that are no frame of the bus, or an entry without frames.
    NoFrame,
    /// A frame of a version that this process does not know.
    Version,
    /// A frame of a kind or a codec that this process does not know.
    UnknownKind,
    /// A frame that ends too early.
    CutOff,
    /// A frame that is larger than any may be.
    TooLarge,
    /// A frame whose parts do not fit together, or are not what they should be.
    Damaged,
    /// A frame that is whole but has no business there: an answer among requests, a request among answers.
    OutOfPlace,
    /// A request for a method that this member does not answer.
    UnknownMethod,
    /// A command in the name of an epoch that is over.
    StaleEpoch,
    /// A body that cannot be read: of a request here, of a reply or an item at its caller.
    Unreadable,
    /// A request whose deadline had passed when it came to its turn.
    Late,
    /// An answer to a call that nobody waits for, or no longer.
    NobodyWaits,
    /// An answer of somebody who was not asked.
    NotAsked,
    /// An entry, or something kept, whose seal is not in order; why is in
    /// [`Counts::refused`](crate::auth::Counts::refused).
    Seal,
    /// The server behind the transport cannot be written to: it is a replica now.
    ServerReplica,
    /// The server does not let this user in any more, or not do what the bus does.
    ServerPassword,
    /// The server throws queues away when its memory is full.
    ServerEvicts,
    /// The memory of the server is full, or its disk.
    ServerFull,
    /// Another program answers where the server was.
    ServerOther,
}

/// The kinds, and a word for each.
const KINDS: [(BadInput, &str); 19] = [
    (BadInput::NoFrame, "no-frame"),
    (BadInput::Version, "version"),
    (BadInput::UnknownKind, "unknown-kind"),
    (BadInput::CutOff, "cut-off"),
    (BadInput::TooLarge, "too-large"),
    (BadInput::Damaged, "damaged"),
    (BadInput::OutOfPlace, "out-of-place"),
    (BadInput::UnknownMethod, "unknown-method"),
    (BadInput::StaleEpoch, "stale-epoch"),
    (BadInput::Unreadable, "unreadable"),
    (BadInput::Late, "late"),
    (BadInput::NobodyWaits, "nobody-waits"),
    (BadInput::NotAsked, "not-asked"),
    (BadInput::Seal, "seal"),
    (BadInput::ServerReplica, "server-replica"),
    (BadInput::ServerPassword, "server-password"),
    (BadInput::ServerEvicts, "server-evicts"),
    (BadInput::ServerFull, "server-full"),
    (BadInput::ServerOther, "server-other"),
];

impl BadInput {
    /// All kinds.
    pub fn all() -> impl Iterator<Item = Self> {
        KINDS.into_iter().map(|(what, _name)| what)
    }

    /// A word for logs and metrics.
    pub const fn name(self) -> &'static str {
        KINDS[self as usize].1
    }

    /// Whether the bytes could not be taken for a message that fits there.
    const fn is_of_frames(self) -> bool {
        (self as u8) <= (Self::OutOfPlace as u8)
    }

    /// Whether it happens on a bus in good health too: after a caller gave up, or under load.
    const fn is_expected(self) -> bool {
        matches!(self, Self::Late | Self::NobodyWaits)
    }
}

/// How often each kind of bad input was met by one attachment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BadCounts([u64; KINDS.len()]);

impl BadCounts {
    /// Of one kind.
    pub const fn of(&self, what: BadInput) -> u64 {
        self.0[what as usize]
    }

    /// Of each kind, those that never came included.
    pub fn iter(&self) -> impl Iterator<Item = (BadInput, u64)> + '_ {
        BadInput::all().zip(self.0)
    }

    /// Of all kinds together.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Of the kinds that are no frames of the bus, or none that fit there.
    pub(crate) fn frames(&self) -> u64 {
        let frames = self.iter().filter(|(what, _)| what.is_of_frames());
        frames.map(|(_, count)| count).sum()
    }
}

/// Counts the bad input of one attachment, and says it once for each kind and place.
#[derive(Debug, Default)]
pub(crate) struct BadInputs {
    member: NodePath,
    counts: [AtomicU64; KINDS.len()],
    said: Said,
}

impl BadInputs {
    pub(crate) fn new(member: NodePath) -> Self {
        Self {
            member,
            ..Self::default()
        }
    }

    /// One more. `place` is where it comes from, as near as that is known: who sent it, or the queue it was in.
    #[cold]
    pub(crate) fn note(&self, what: BadInput, place: &str, detail: impl fmt::Display) {
        self.count(what);
        let (member, name, detail) = (&self.member, what.name(), OneLine(detail));
        match self.said.say(place, what as u32) {
            Say::First if what.is_expected() => {
                tracing::info!(%member, what = name, place, "{detail} (more of it from there is counted only)");
            }
            Say::First => {
                tracing::warn!(%member, what = name, place, "{detail} (more of it from there is counted only)");
            }
            Say::Full => tracing::warn!(
                %member,
                what = name,
                place,
                "{detail} (bad input has come from {BAD_INPUT_PLACES_MAX} places: that of further ones is counted only)"
            ),
            Say::Nothing => tracing::debug!(%member, what = name, place, "{detail}"),
        }
    }

    /// One more, which is logged elsewhere.
    pub(crate) fn count(&self, what: BadInput) {
        self.counts[what as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn counts(&self) -> BadCounts {
        BadCounts(std::array::from_fn(|at| self.counts[at].load(Ordering::Relaxed)))
    }
}

/// What a stranger wrote, in a log: one line, and not a long one.
struct OneLine<T>(T);

impl<T: fmt::Display> fmt::Display for OneLine<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = Line {
            out: f,
            left: DETAIL_MAX_CHARS,
        };
        write!(line, "{}", self.0)
    }
}

struct Line<'a, 'b> {
    out: &'a mut fmt::Formatter<'b>,
    left: usize,
}

impl fmt::Write for Line<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for letter in text.chars().take(self.left) {
            self.left -= 1;
            self.out
                .write_char(if letter.is_control() { ' ' } else { letter })?;
        }
        Ok(())
    }
}

/// Which kinds of things were said about which places.
#[derive(Debug, Default)]
pub(crate) struct Said(Mutex<Places>);

#[derive(Debug, Default)]
struct Places {
    /// The kinds of each, a bit each.
    known: HashMap<String, u32>,
    /// That there are too many was said.
    full: bool,
}

/// What is to be said now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Say {
    /// It: nobody has said it.
    First,
    /// It, and that others are not remembered any more.
    Full,
    Nothing,
}

impl Said {
    /// Decides about one thing of `kind`, a number below 32, at `place`.
    pub(crate) fn say(&self, place: &str, kind: u32) -> Say {
        let bit = 1u32.checked_shl(kind).unwrap_or_default();
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kinds) = places.known.get_mut(place) {
            let before = mem::replace(kinds, *kinds | bit);
            return if before & bit == 0 {
                Say::First
            } else {
                Say::Nothing
            };
        }
        if places.known.len() < BAD_INPUT_PLACES_MAX {
            places.known.insert(place.to_owned(), bit);
            return Say::First;
        }
        match mem::replace(&mut places.full, true) {
            false => Say::Full,
            true => Say::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tracing::{Event, Level, Metadata, Subscriber, span};

    /// Counts what is said louder than for debugging.
    #[derive(Clone, Default)]
    struct Ear(Arc<[AtomicU64; 2]>);

    impl Ear {
        fn heard(&self) -> [u64; 2] {
            [&self.0[0], &self.0[1]].map(|count| count.load(Ordering::Relaxed))
        }
    }

    impl Subscriber for Ear {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            *metadata.level() <= Level::INFO
        }
        fn event(&self, event: &Event<'_>) {
            let warned = *event.metadata().level() == Level::WARN;
            self.0[usize::from(warned)].fetch_add(1, Ordering::Relaxed);
        }
        fn new_span(&self, _span: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }
        fn record(&self, _span: &span::Id, _values: &span::Record<'_>) {}
        fn record_follows_from(&self, _span: &span::Id, _follows: &span::Id) {}
        fn enter(&self, _span: &span::Id) {}
        fn exit(&self, _span: &span::Id) {}
    }

    #[test]
    fn each_kind_has_its_place_and_a_word_of_its_own() {
        let names: std::collections::BTreeSet<_> = BadInput::all().map(BadInput::name).collect();
        assert_eq!(names.len(), KINDS.len());
        for (at, what) in BadInput::all().enumerate() {
            assert_eq!(what as usize, at, "{what:?}");
        }
        assert!(KINDS.len() <= 32, "a bit for each kind");
    }

    #[test]
    fn bad_input_is_counted_each_time_and_said_once_for_each_kind_and_place() {
        let (ear, bad) = (Ear::default(), BadInputs::new("eu/n1".parse().unwrap()));
        tracing::subscriber::with_default(ear.clone(), || {
            for _ in 0..1_000 {
                for place in ["eu/c1", "eu/c2"] {
                    bad.note(BadInput::UnknownMethod, place, "a.b");
                    bad.note(BadInput::Version, place, "9");
                    bad.note(BadInput::Late, place, "by 3 ms");
                }
            }
        });
        let counts = bad.counts();
        assert_eq!(
            [BadInput::UnknownMethod, BadInput::Version, BadInput::Late].map(|what| counts.of(what)),
            [2_000; 3]
        );
        assert_eq!((counts.total(), counts.frames()), (6_000, 2_000));
        assert_eq!(ear.heard(), [2, 4], "what is to be expected is no warning");
    }

    #[test]
    fn what_a_stranger_wrote_is_one_line_of_the_log() {
        let long = format!("a\nb\u{1b}[2J{}", "x".repeat(DETAIL_MAX_CHARS));
        let line = OneLine(format_args!("unknown: {long}")).to_string();
        assert!(line.starts_with("unknown: a b [2Jxx"), "{line}");
        assert_eq!(line.chars().count(), DETAIL_MAX_CHARS);
    }

    #[test]
    fn whoever_invents_places_fills_no_memory_and_no_log() {
        let (ear, bad) = (Ear::default(), BadInputs::default());
        tracing::subscriber::with_default(ear.clone(), || {
            for n in 0..3 * BAD_INPUT_PLACES_MAX {
                bad.note(BadInput::NoFrame, &format!("n{n}"), "garbage");
            }
            bad.note(
                BadInput::Version,
                "n1",
                "a place that is remembered still has its say",
            );
        });
        assert_eq!(bad.said.0.lock().unwrap().known.len(), BAD_INPUT_PLACES_MAX);
        let said = u64::try_from(BAD_INPUT_PLACES_MAX).unwrap() + 2;
        assert_eq!(
            ear.heard(),
            [0, said],
            "each place, once that there are too many, and the last"
        );
    }
}
