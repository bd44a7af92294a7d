//! One error for all of xtask: three lines that a person can act on.
//!
//! A developer tool has one reader, so there is no error tree: what failed, why, and what to do.

use std::fmt;

/// What failed, why, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) what: String,
    pub(crate) why: String,
    pub(crate) fix: String,
}

/// The result of everything in xtask that can fail.
pub(crate) type Done<T = ()> = Result<T, Fault>;

impl Fault {
    pub(crate) fn new(what: impl Into<String>, why: impl fmt::Display, fix: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            why: why.to_string(),
            fix: fix.into(),
        }
    }

    /// A failed file operation: the path is the thing to look at.
    pub(crate) fn file(verb: &str, path: &std::path::Path, error: &std::io::Error) -> Self {
        Self::new(
            format!("cannot {verb} {}", path.display()),
            error,
            "check the path, its owner and the free space, then run the command again",
        )
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "error: {}\n  why: {}\n   do: {}",
            self.what,
            self.why.trim_end(),
            self.fix
        )
    }
}
