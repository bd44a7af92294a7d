//! Points in time, as data. The crate reads no clock; see [`crate::Clock`].

use crate::{Error, error::invalid};
use std::{fmt, str::FromStr, time::Duration};

/// A point in time: microseconds since 1970-01-01 UTC. Written as RFC 3339 text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(i64);

impl Timestamp {
    /// From microseconds since the Unix epoch.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Microseconds since the Unix epoch.
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// How long after `earlier` this is; zero when it is not after.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// This point and then `span`; stops at the end of representable time.
    #[must_use]
    pub fn plus(self, span: Duration) -> Self {
        Self(
            self.0
                .saturating_add(i64::try_from(span.as_micros()).unwrap_or(i64::MAX)),
        )
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_microsecond(self.0) {
            Ok(at) => write!(f, "{at:.6}"),
            Err(_) => write!(f, "{}us", self.0),
        }
    }
}
impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
impl FromStr for Timestamp {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        text.parse::<jiff::Timestamp>()
            .map(|at| Self(at.as_microsecond()))
            .map_err(|_| {
                invalid(
                    format!("'{text}' is not a time"),
                    "it is not in the form of RFC 3339",
                    "write it as 2026-01-31T12:00:00Z",
                )
            })
    }
}
crate::text::string_serde!(Timestamp, "a time in the form of RFC 3339");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_survives_its_text_to_the_microsecond() {
        let at = Timestamp::from_micros(1_700_000_000_123_456);
        assert_eq!(at.to_string().parse::<Timestamp>().unwrap(), at);
        assert_eq!(at.plus(Duration::from_secs(2)).since(at), Duration::from_secs(2));
        assert_eq!(at.since(at.plus(Duration::from_secs(2))), Duration::ZERO);
    }
}
