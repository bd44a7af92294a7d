//! One error form for people and programs: what failed, why, what to do next.
//!
//! Crates have error enums of their own; at a border (the bus, the API, the CLI) they become this one. It
//! is serialisable, carries no foreign type, and answers the two questions a caller has after a failure:
//! *did it happen?* ([`Outcome`]) and *may I try again?* ([`RetryAdvice`]).

use serde::{Deserialize, Serialize};
use std::fmt;

/// The result of everything that can fail at a border.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What sort of failure it is. The same words in the API (`kind` of the problem JSON) and behind the CLI's exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// What was asked makes no sense, whatever the state of the system.
    InvalidInput,
    /// The thing named does not exist.
    NotFound,
    /// A thing of that name, address or MAC exists already.
    AlreadyExists,
    /// The state does not allow it now: a VM that must be off is running, a network still has ports.
    Conflict,
    /// Somebody else changed it in between; read again and repeat.
    Stale,
    /// Who asks may not do this.
    PermissionDenied,
    /// A limit or a pool is used up.
    Exhausted,
    /// This driver, host or version cannot do that.
    Unsupported,
    /// A program or facility of the host is missing.
    MissingDependency,
    /// A part needed for it does not answer now.
    Unavailable,
    /// It was not done in time.
    DeadlineExceeded,
    /// Stored data cannot be read.
    Corrupt,
    /// It was cancelled.
    Cancelled,
    /// Anything that should not happen: a defect of VBM.
    Internal,
}

impl ErrorKind {
    /// The word used on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidInput => "invalid-input",
            Self::NotFound => "not-found",
            Self::AlreadyExists => "already-exists",
            Self::Conflict => "conflict",
            Self::Stale => "stale",
            Self::PermissionDenied => "permission-denied",
            Self::Exhausted => "exhausted",
            Self::Unsupported => "unsupported",
            Self::MissingDependency => "missing-dependency",
            Self::Unavailable => "unavailable",
            Self::DeadlineExceeded => "deadline-exceeded",
            Self::Corrupt => "corrupt",
            Self::Cancelled => "cancelled",
            Self::Internal => "internal",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Whether the effect took place. After [`Outcome::Unknown`] comes inspection, never a blind retry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Nothing was changed.
    #[default]
    NotApplied,
    /// The change was made in full, although something after it failed.
    Applied,
    /// The change was begun and undone again.
    RolledBack,
    /// Nobody can tell from here.
    Unknown,
}

/// What a caller may do after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RetryAdvice {
    /// The same request fails again: change it or the state first.
    Never,
    /// The same request may succeed, soon.
    Retry,
    /// Look at the object first: the effect may have taken place.
    InspectFirst,
}

/// A failure: what, why, what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Error {
    kind: ErrorKind,
    what: String,
    why: String,
    fix: String,
    #[serde(default)]
    outcome: Outcome,
}

impl Error {
    /// A failure that changed nothing: *what* failed, *why*, and what to do next (`fix`).
    pub fn new(
        kind: ErrorKind,
        what: impl Into<String>,
        why: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            what: what.into(),
            why: why.into(),
            fix: fix.into(),
            outcome: Outcome::NotApplied,
        }
    }

    /// The thing named does not exist.
    pub fn not_found(noun: &str, name: impl fmt::Display) -> Self {
        // `vbm list` is about VMs; every other noun has a word of its own.
        let list = if noun == "vm" {
            "vbm list".to_owned()
        } else {
            format!("vbm {noun} list")
        };
        Self::new(
            ErrorKind::NotFound,
            format!("there is no {noun} '{name}'"),
            "nothing with that name or id exists",
            format!("list what exists with `{list}`"),
        )
    }

    /// A defect of VBM.
    pub fn internal(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(
            ErrorKind::Internal,
            what,
            why,
            "this is a defect of VBM: please report it with the log of vbmd",
        )
    }

    /// The same failure with another outcome.
    #[must_use]
    pub const fn with_outcome(mut self, outcome: Outcome) -> Self {
        self.outcome = outcome;
        self
    }

    /// The same failure, told from further out: `what` replaces the headline, the old headline joins the reason.
    #[must_use]
    pub fn context(mut self, what: impl Into<String>) -> Self {
        self.why = if self.why.is_empty() {
            self.what.clone()
        } else {
            format!("{}: {}", self.what, self.why)
        };
        self.what = what.into();
        self
    }

    /// The sort of failure.
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }
    /// What failed.
    pub fn what(&self) -> &str {
        &self.what
    }
    /// Why it failed.
    pub fn why(&self) -> &str {
        &self.why
    }
    /// What to do next.
    pub fn fix(&self) -> &str {
        &self.fix
    }
    /// Whether the effect took place.
    pub const fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// Whether the thing named does not exist.
    pub const fn is_not_found(&self) -> bool {
        matches!(self.kind, ErrorKind::NotFound)
    }

    /// Whether the same request may simply be sent again.
    pub fn is_retryable(&self) -> bool {
        self.retry_advice() == RetryAdvice::Retry
    }

    /// What a caller may do now. Derived from kind and outcome, so that the two cannot disagree with it.
    pub const fn retry_advice(&self) -> RetryAdvice {
        match (self.outcome, self.kind) {
            (Outcome::Unknown, _) => RetryAdvice::InspectFirst,
            (Outcome::Applied, _) => RetryAdvice::Never,
            (_, ErrorKind::Unavailable | ErrorKind::DeadlineExceeded | ErrorKind::Stale) => {
                RetryAdvice::Retry
            }
            _ => RetryAdvice::Never,
        }
    }

    /// The failure in one line, for logs and for the reason of another failure.
    pub fn inline(&self) -> String {
        if self.why.is_empty() {
            self.what.clone()
        } else {
            format!("{}: {}", self.what, self.why)
        }
    }
}

impl fmt::Display for Error {
    /// Three lines: what, why, what to do.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n  why: {}\n  fix: {}", self.what, self.why, self.fix)
    }
}

impl std::error::Error for Error {}

/// Bad input, for the parsers of this crate.
pub(crate) fn invalid(what: impl Into<String>, why: impl Into<String>, fix: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidInput, what, why, fix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_outcome_is_never_retried_blindly() {
        let error = Error::new(ErrorKind::Unavailable, "a", "b", "c");
        assert_eq!(error.retry_advice(), RetryAdvice::Retry);
        assert_eq!(
            error.with_outcome(Outcome::Unknown).retry_advice(),
            RetryAdvice::InspectFirst
        );
    }

    #[test]
    fn an_error_reads_as_three_lines() {
        assert_eq!(Error::not_found("vm", "web1").to_string().lines().count(), 3);
    }

    #[test]
    fn context_keeps_the_cause() {
        let error = Error::new(ErrorKind::Conflict, "port is taken", "by web1", "choose another")
            .context("cannot launch web2");
        assert_eq!(error.what(), "cannot launch web2");
        assert_eq!(error.why(), "port is taken: by web1");
    }

    #[test]
    fn the_word_on_the_wire_is_the_word_of_the_kind() {
        for kind in [
            ErrorKind::InvalidInput,
            ErrorKind::DeadlineExceeded,
            ErrorKind::MissingDependency,
            ErrorKind::Internal,
        ] {
            assert_eq!(serde_json::to_string(&kind).unwrap(), format!("\"{kind}\""));
        }
    }
}
