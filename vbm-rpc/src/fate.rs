//! How a call ends when it does not end in a reply.

use std::fmt;
use vbm_core::{Error, ErrorKind, NodePath, Outcome, RetryAdvice};

/// A failed end of a call. Done is the `Ok` of the call; every other call ends in exactly one of these.
///
/// | fate | did it happen? | advice |
/// |---|---|---|
/// | `Refused` | as the error says | as the error says |
/// | `NoRoute`, `Overloaded`, `Expired` | no | retry later |
/// | `Lost { started: false }` | no sign of it | retry with the same idempotency key |
/// | `Lost { started: true }` | perhaps | look first |
/// | `Cancelled` | no, unless it had begun before | look first |
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fate {
    /// The receiver decided against it, or this side did before sending: a typed error of the application.
    #[error("refused: {}", .0.inline())]
    Refused(Error),
    /// Nobody is there to take it, or who is there does not know the method. Nothing was started.
    #[error("no route to {to}: {why}")]
    NoRoute {
        /// Where it was to go.
        to: String,
        /// What is missing.
        why: String,
    },
    /// A queue or an in-flight limit on the way is full. Nothing was started.
    #[error("overloaded at {at}: {why}")]
    Overloaded {
        /// Whose limit it is.
        at: String,
        /// Which limit.
        why: String,
    },
    /// The deadline passed before it was started; it never will be.
    #[error("expired at {at} before it was started")]
    Expired {
        /// Where it was when the deadline passed.
        at: String,
    },
    /// It was handed over and no answer came in time.
    #[error("lost on the way to {to}: {why}")]
    Lost {
        /// Whether somebody said that they had begun. Without such a sign it may still be running: repeat it
        /// with the same idempotency key, or look.
        started: bool,
        /// Where it was to go.
        to: String,
        /// Who had begun, when known.
        worker: Option<NodePath>,
        /// What was waited for.
        why: String,
    },
    /// It was cancelled: this side's bus shut down before it was sent, or the receiver gave it up on request.
    #[error("cancelled")]
    Cancelled,
}

impl Fate {
    /// What the caller may do now.
    pub fn retry_advice(&self) -> RetryAdvice {
        match self {
            Self::Refused(error) => error.retry_advice(),
            Self::NoRoute { .. } | Self::Overloaded { .. } | Self::Expired { .. } => RetryAdvice::Retry,
            Self::Lost { started: false, .. } => RetryAdvice::Retry,
            Self::Lost { started: true, .. } | Self::Cancelled => RetryAdvice::InspectFirst,
        }
    }

    /// Its name in one word, for metrics and logs.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Refused(_) => "refused",
            Self::NoRoute { .. } => "no_route",
            Self::Overloaded { .. } => "overloaded",
            Self::Expired { .. } => "expired",
            Self::Lost { started: true, .. } => "lost_started",
            Self::Lost { started: false, .. } => "lost",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether the same request may simply be sent again, with the same idempotency key.
    pub fn is_retryable(&self) -> bool {
        self.retry_advice() == RetryAdvice::Retry
    }

    /// Whether it is certain that nothing was started.
    pub fn is_certainly_not_started(&self) -> bool {
        matches!(
            self,
            Self::NoRoute { .. } | Self::Overloaded { .. } | Self::Expired { .. }
        )
    }
}

/// What, why and what to do. More careful than [`Fate::retry_advice`]: an error carries no idempotency key to
/// repeat, so every `Lost` has the outcome unknown.
impl From<Fate> for Error {
    fn from(fate: Fate) -> Self {
        let headline = |to: &dyn fmt::Display| format!("the call to {to} was not answered");
        match fate {
            Fate::Refused(error) => error,
            Fate::NoRoute { to, why } => Self::new(
                ErrorKind::Unavailable,
                format!("nobody took the call to {to}"),
                why,
                "see who is there with `vbm node list`; start the missing part, then repeat",
            ),
            Fate::Overloaded { at, why } => Self::new(
                ErrorKind::Unavailable,
                format!("{at} has too much to do"),
                why,
                "repeat a little later",
            ),
            Fate::Expired { at } => Self::new(
                ErrorKind::DeadlineExceeded,
                "the call was not started in time",
                format!("its deadline passed while it waited at {at}"),
                "repeat it, with a longer deadline if the system is busy",
            ),
            Fate::Lost {
                started,
                to,
                worker,
                why,
            } => {
                let sign = match (started, worker) {
                    (true, Some(worker)) => format!("{why}; {worker} had begun"),
                    (true, None) => format!("{why}; it had begun"),
                    (false, _) => format!("{why}; there is no sign that it was begun"),
                };
                Self::new(
                    ErrorKind::DeadlineExceeded,
                    headline(&to),
                    sign,
                    "look at the object first: the change may have been made",
                )
                .with_outcome(Outcome::Unknown)
            }
            Fate::Cancelled => Self::new(
                ErrorKind::Cancelled,
                "the call was cancelled",
                "one of the two sides gave it up",
                "look at the object, then repeat if it is still wanted",
            )
            .with_outcome(Outcome::Unknown),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(started: bool) -> Fate {
        Fate::Lost {
            started,
            to: "node a".into(),
            worker: None,
            why: "no reply within 1s".into(),
        }
    }

    #[test]
    fn started_decides_the_retry_advice() {
        assert_eq!(lost(false).retry_advice(), RetryAdvice::Retry);
        assert_eq!(lost(true).retry_advice(), RetryAdvice::InspectFirst);
    }

    #[test]
    fn an_error_made_of_a_lost_call_is_never_retried_blindly() {
        for started in [false, true] {
            assert_eq!(
                Error::from(lost(started)).retry_advice(),
                RetryAdvice::InspectFirst
            );
        }
    }

    #[test]
    fn what_certainly_did_not_start_may_be_repeated() {
        for fate in [
            Fate::NoRoute {
                to: "x".into(),
                why: "y".into(),
            },
            Fate::Overloaded {
                at: "x".into(),
                why: "y".into(),
            },
            Fate::Expired { at: "x".into() },
        ] {
            assert!(fate.is_certainly_not_started() && fate.is_retryable());
            assert!(Error::from(fate).is_retryable());
        }
    }
}
