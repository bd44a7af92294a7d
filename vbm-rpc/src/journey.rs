//! The way of one call: where it was and when, beside how it ended.

use crate::{Fate, bus::Life};
use std::{
    fmt,
    time::{Duration, SystemTime},
};
use tokio::time::Instant;
use uuid::Uuid;
use vbm_core::NodePath;

/// How a call ended, and its way.
#[derive(Debug)]
#[non_exhaustive]
pub struct Traced<T> {
    /// The reply or the fate.
    pub result: Result<T, Fate>,
    /// Where it was and when.
    pub journey: Journey,
}

/// The way of one call. Spans count from [`called_at`](Self::called_at) on the caller's steady clock; only
/// [`waited`](Self::waited) is measured elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Journey {
    /// The request, as its handler knows it; `None` when it was refused before it had an id.
    pub id: Option<Uuid>,
    /// Where it was to go.
    pub to: String,
    /// When it was called, by the caller's wall clock.
    pub called_at: SystemTime,
    /// When the transport kept it. `None`: never, or its answer came first.
    pub queued_after: Option<Duration>,
    /// When its worker was first heard of before an answer; `None` for what was answered within
    /// [`ACCEPT_AFTER`](crate::limits::ACCEPT_AFTER), and for what nobody has begun.
    pub begun_after: Option<Duration>,
    /// Who answered or, for a lost call, had begun.
    pub worker: Option<NodePath>,
    /// How long it lay in the queue until the worker began, by the clock of the transport's server.
    pub waited: Option<Duration>,
    /// When the worker was heard of last before the end.
    pub heard_after: Option<Duration>,
    /// When it ended.
    pub ended_after: Duration,
    /// How often it was sent.
    pub sendings: u16,
}

impl Journey {
    pub(crate) fn of(
        id: Option<Uuid>,
        to: String,
        called_at: SystemTime,
        begin: Instant,
        life: &Life,
        worker: Option<NodePath>,
    ) -> Self {
        let after = |at: Instant| at.saturating_duration_since(begin);
        Self {
            id,
            to,
            called_at,
            queued_after: life.queued.map(after),
            begun_after: life.accepted.map(after),
            worker,
            waited: life.waited,
            heard_after: life.heard.map(after),
            ended_after: after(Instant::now()),
            sendings: life.attempts.max(1),
        }
    }
}

impl fmt::Display for Journey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "to {}", self.to)?;
        let mut stop = |what: &str, after: Option<Duration>| match after {
            Some(after) => write!(f, ", {what} after {} ms", after.as_millis()),
            None => Ok(()),
        };
        stop("queued", self.queued_after)?;
        stop("begun", self.begun_after)?;
        stop("last heard of", self.heard_after)?;
        stop("ended", Some(self.ended_after))
    }
}

impl Life {
    /// What is known of a lost call, for its reader; empty when nothing is.
    pub(crate) fn tale(&self, begin: Instant, now: Instant) -> String {
        let ms = |at: Instant| at.saturating_duration_since(begin).as_millis();
        let mut tale = String::new();
        if let Some(queued) = self.queued {
            tale.push_str(&format!("; queued after {} ms", ms(queued)));
        }
        if let Some(accepted) = self.accepted {
            tale.push_str(&format!(", begun after {} ms", ms(accepted)));
        }
        if let Some(heard) = self.heard {
            let ago = now.saturating_duration_since(heard).as_millis();
            tale.push_str(&format!(", last heard of {ago} ms before"));
        }
        if self.attempts > 1 {
            tale.push_str(&format!(", sent {} times", self.attempts));
        }
        tale
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_way_of_a_lost_call_is_told_in_one_line() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let mut life = Life::default();
        (life.queued, life.accepted) = (Some(at(2)), Some(at(25)));
        (life.heard, life.attempts) = (Some(at(900)), 2);
        assert_eq!(
            life.tale(begin, at(1_000)),
            "; queued after 2 ms, begun after 25 ms, last heard of 100 ms before, sent 2 times"
        );
        assert_eq!(Life::default().tale(begin, at(5)), "");
        let journey = Journey::of(None, "node a".into(), SystemTime::UNIX_EPOCH, begin, &life, None);
        assert_eq!(
            journey.to_string(),
            "to node a, queued after 2 ms, begun after 25 ms, last heard of after 900 ms, ended after 0 ms"
        );
        assert_eq!(journey.sendings, 2);
    }
}
