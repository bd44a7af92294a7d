//! Why something could not be measured.

use std::fmt;

/// A line for the row: what failed, and the chain of causes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault(pub(crate) String);

/// What a measurement gives.
pub(crate) type Outcome<T> = Result<T, Fault>;

impl Fault {
    pub(crate) fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }

    /// The same, with what was being done.
    pub(crate) fn during(self, what: impl fmt::Display) -> Self {
        Self(format!("{what}: {}", self.0))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `Fault` itself is no `Error`, so that every error becomes one with `?`.
impl<E: std::error::Error> From<E> for Fault {
    fn from(error: E) -> Self {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            text.push_str(": ");
            text.push_str(&inner.to_string());
            cause = inner.source();
        }
        // The errors of VBM have three lines; a row has one.
        Self(text.split_whitespace().collect::<Vec<_>>().join(" "))
    }
}

/// Adds what was being done to whatever failed.
pub(crate) trait During<T> {
    fn during(self, what: impl fmt::Display) -> Outcome<T>;
}

impl<T, E: Into<Fault>> During<T> for Result<T, E> {
    fn during(self, what: impl fmt::Display) -> Outcome<T> {
        self.map_err(|error| error.into().during(what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_becomes_one_line_that_says_what_was_being_done() {
        let error = std::io::Error::other("first\nsecond");
        let fault = Err::<(), _>(error).during("reading x").unwrap_err();
        assert_eq!(fault.to_string(), "reading x: first second");
    }
}
