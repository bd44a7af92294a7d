//! When somebody counts as silent: pure.
//!
//! Time is counted in beats of this process that came back to it through its own inbox ([`pulse`](super::pulse)). While the
//! server behind the transport is away, or this process is stopped, none comes back and nobody is accused.

use crate::limits::{BEAT_EVERY, SILENT_BEATS, TAKEOVER_BEATS};
use std::time::Duration;

/// How long somebody who promised to beat has not been heard.
#[derive(Clone, Debug, Default)]
pub(crate) struct Silence {
    missed: u32,
    /// In beats of this process, how often the other one beats; `None` when it never promised to.
    pace: Option<u32>,
}

impl Silence {
    /// Somebody promises to beat that often. (Who beats not at all says zero.)
    pub(crate) fn promised(&mut self, every: Duration) {
        self.missed = 0;
        let beats = every.as_millis().div_ceil(BEAT_EVERY.as_millis());
        self.pace = u32::try_from(beats).ok().filter(|&beats| beats > 0);
    }

    /// A sign of life.
    pub(crate) const fn heard(&mut self) {
        self.missed = 0;
    }

    /// Whether anything was promised.
    pub(crate) const fn is_watched(&self) -> bool {
        self.pace.is_some()
    }

    /// A beat of this process passed: whether the other one is silent now. Where another member may take the work
    /// over, there is time for that.
    pub(crate) const fn missed(&mut self, takeover: bool) -> bool {
        let Some(pace) = self.pace else { return false };
        self.missed = self.missed.saturating_add(1);
        let patience = SILENT_BEATS.saturating_mul(pace);
        let patience = match takeover {
            true if TAKEOVER_BEATS > patience => TAKEOVER_BEATS,
            _ => patience,
        };
        // The first beat after a sign of life may follow it at once.
        self.missed > patience
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beats_until_silent(silence: &mut Silence, takeover: bool) -> Option<u32> {
        (1..100).find(|_| silence.missed(takeover))
    }

    #[test]
    fn who_promised_nothing_is_never_silent() {
        assert_eq!(beats_until_silent(&mut Silence::default(), false), None);
        let mut old = Silence::default();
        old.promised(Duration::ZERO);
        assert!(!old.is_watched() && beats_until_silent(&mut old, false).is_none());
    }

    #[test]
    fn silence_is_noticed_after_some_beats_and_a_sign_of_life_begins_anew() {
        let mut silence = Silence::default();
        silence.promised(BEAT_EVERY);
        for _ in 0..10 {
            for _ in 0..SILENT_BEATS {
                assert!(!silence.missed(false));
            }
            silence.heard();
        }
        assert_eq!(beats_until_silent(&mut silence, false), Some(SILENT_BEATS + 1));
    }

    #[test]
    fn a_take_over_has_its_time_and_a_slow_beat_is_waited_for() {
        let mut silence = Silence::default();
        silence.promised(BEAT_EVERY);
        assert_eq!(beats_until_silent(&mut silence, true), Some(TAKEOVER_BEATS + 1));
        silence.promised(BEAT_EVERY * 3);
        assert_eq!(
            beats_until_silent(&mut silence, false),
            Some(3 * SILENT_BEATS + 1)
        );
    }

    #[test]
    fn a_take_over_fits_into_its_beats() {
        let longest = crate::limits::PRESENCE_TTL + 2 * crate::limits::HEARTBEAT_EVERY;
        assert!(longest < BEAT_EVERY * TAKEOVER_BEATS);
    }
}
