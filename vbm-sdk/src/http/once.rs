//! What can be used once, and soon: login links, console tokens. Pure: time comes in as an argument.
//!
//! ```text
//!   put --secret--> open --take in time--> used --+
//!                    |                            +--REMEMBERED--> forgotten
//!                    +----time passes--> late ----+
//! ```

use super::secret::{Secret, SecretHash};
use std::{collections::HashMap, time::Duration};
use vbm_core::{Error, ErrorKind, Result, Timestamp};

/// How long it is known of a used or late one what became of it, so that who comes with it is told.
const REMEMBERED: Duration = Duration::from_secs(3600);
/// The most that are kept, used and late ones included.
const KEPT_MAX: usize = 1024;

/// Values behind secrets that work once.
#[derive(Debug)]
pub(super) struct Once<T> {
    kept: HashMap<SecretHash, Kept<T>>,
    lifetime: Duration,
}

#[derive(Debug)]
struct Kept<T> {
    /// `None` once it was used.
    value: Option<T>,
    expires_at: Timestamp,
}

/// Why a secret does not work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spent {
    /// It was never given, or long ago, or by a daemon before this one.
    Unknown,
    /// It was used before.
    Used,
    /// It comes too late.
    Late,
}

impl Spent {
    /// The reason, for people.
    pub(super) const fn why(self) -> &'static str {
        match self {
            Self::Unknown => "it was not given by this vbmd since it was started",
            Self::Used => "it was used before, and it works once",
            Self::Late => "it is too old",
        }
    }
}

impl<T> Once<T> {
    pub(super) fn new(lifetime: Duration) -> Self {
        Self {
            kept: HashMap::new(),
            lifetime,
        }
    }

    /// Keeps a value; gives its secret and by when it must be used.
    pub(super) fn put(&mut self, value: T, now: Timestamp) -> Result<(Secret, Timestamp)> {
        self.kept.retain(|_, k| k.expires_at.plus(REMEMBERED) > now);
        if self.kept.len() >= KEPT_MAX {
            self.kept.retain(|_, k| k.value.is_some() && k.expires_at > now);
        }
        if self.kept.len() >= KEPT_MAX {
            return Err(Error::new(
                ErrorKind::Exhausted,
                "no more one-time tokens can be given",
                format!("{KEPT_MAX} were given and not used yet"),
                "use them, or wait until they are too old",
            ));
        }
        let secret = Secret::new()?;
        let expires_at = now.plus(self.lifetime);
        let value = Some(value);
        self.kept.insert(secret.hash(), Kept { value, expires_at });
        Ok((secret, expires_at))
    }

    /// Gives the value, to the first who comes in time.
    pub(super) fn take(&mut self, secret: &str, now: Timestamp) -> Result<T, Spent> {
        let kept = self.kept.get_mut(&SecretHash::of(secret)).ok_or(Spent::Unknown)?;
        match kept.value.take() {
            None => Err(Spent::Used),
            Some(value) if kept.expires_at <= now => {
                kept.value = Some(value);
                Err(Spent::Late)
            }
            Some(value) => Ok(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFETIME: Duration = Duration::from_secs(30);

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn it_works_once_and_in_time_and_says_which_of_the_two_was_missed() {
        let mut once = Once::new(LIFETIME);
        let (first, until) = once.put("a", at(0)).unwrap();
        let (second, _) = once.put("b", at(0)).unwrap();
        assert_eq!(until, at(30));
        assert_eq!(once.take(first.text(), at(29)), Ok("a"));
        assert_eq!(once.take(first.text(), at(29)), Err(Spent::Used));
        assert_eq!(once.take(second.text(), at(30)), Err(Spent::Late));
        assert_eq!(once.take("anything", at(0)), Err(Spent::Unknown));
        once.put("c", at(10_000)).unwrap();
        assert_eq!(once.take(first.text(), at(10_000)), Err(Spent::Unknown));
    }

    #[test]
    fn there_is_an_end_to_how_many_are_kept_and_used_ones_make_room() {
        let mut once = Once::new(LIFETIME);
        let secrets: Vec<_> = (0..KEPT_MAX).map(|n| once.put(n, at(0)).unwrap().0).collect();
        assert_eq!(once.put(0, at(0)).unwrap_err().kind(), ErrorKind::Exhausted);
        once.take(secrets[7].text(), at(1)).unwrap();
        once.put(0, at(1)).unwrap();
        once.put(0, at(31)).unwrap();
    }
}
