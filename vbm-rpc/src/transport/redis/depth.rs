//! Admission by depth: how many frames may still be written to a queue that others must empty. Pure.
//!
//! The writer asks for the depth of a queue in the batch that writes to it, at most once in [`DEPTH_EVERY`] for each
//! destination: a call pays nothing. Between two answers what was written since is added. At the limit senders are
//! told at once, without a round trip; one frame in [`DEPTH_EVERY`] still goes, to see whether there is room again.
//! Nothing that was accepted is ever trimmed.

use std::time::Duration;
use tokio::time::Instant;

/// How old an answer may grow before the depth is asked for again.
pub(super) const DEPTH_EVERY: Duration = Duration::from_millis(50);

/// What is known of one queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Depth {
    entries: usize,
    asked: Instant,
}

/// What a batch may do with one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Admission {
    /// How many frames may be written.
    pub(super) frames: usize,
    /// Whether the batch asks for the depth.
    pub(super) ask: bool,
}

/// Decides for one batch.
pub(super) fn admit(known: Option<&Depth>, limit: usize, now: Instant) -> Admission {
    let Some(depth) = known else {
        return Admission {
            frames: usize::MAX,
            ask: true,
        };
    };
    let ask = now.duration_since(depth.asked) >= DEPTH_EVERY;
    let frames = match (depth.entries < limit, ask) {
        (true, _) => usize::MAX,
        (false, true) => 1,
        (false, false) => 0,
    };
    Admission { frames, ask }
}

impl Depth {
    pub(super) const fn answered(entries: usize, now: Instant) -> Self {
        Self { entries, asked: now }
    }

    /// So many entries were written since.
    pub(super) const fn wrote(&mut self, entries: usize) {
        self.entries = self.entries.saturating_add(entries);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_queue_is_written_to_and_asked_about() {
        let now = Instant::now();
        assert_eq!(
            admit(None, 1, now),
            Admission {
                frames: usize::MAX,
                ask: true
            }
        );
    }

    #[test]
    fn at_the_limit_only_one_frame_goes_to_look_and_that_not_too_often() {
        let now = Instant::now();
        let mut depth = Depth::answered(9, now);
        assert_eq!(admit(Some(&depth), 10, now).frames, usize::MAX);
        depth.wrote(1);
        assert_eq!(
            admit(Some(&depth), 10, now),
            Admission {
                frames: 0,
                ask: false
            }
        );
        assert_eq!(
            admit(Some(&depth), 10, now + DEPTH_EVERY),
            Admission { frames: 1, ask: true }
        );
        let emptied = Depth::answered(0, now + DEPTH_EVERY);
        assert!(!admit(Some(&emptied), 10, now + DEPTH_EVERY).ask);
    }
}
