//! Sessions of browsers. Kept in memory, by the hash of the cookie: a daemon that is started anew knows none.

use super::secret::{Secret, SecretHash};
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio_util::sync::CancellationToken;
use vbm_core::{Result, Timestamp};

/// A session that was not used for so long is over.
pub(super) const SESSION_IDLE_MAX: Duration = Duration::from_secs(8 * 3600);
/// A session is over after so long, however much it is used.
pub(super) const SESSION_MAX: Duration = Duration::from_secs(24 * 3600);
/// The most sessions at once; one more ends the one that was not used for longest.
const SESSIONS_MAX: usize = 64;

/// The sessions of a daemon.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    live: Mutex<HashMap<SecretHash, Live>>,
}

#[derive(Debug)]
struct Live {
    made_at: Timestamp,
    used_at: Timestamp,
    ended: CancellationToken,
}

impl Live {
    fn is_over(&self, now: Timestamp) -> bool {
        now.since(self.made_at) >= SESSION_MAX || now.since(self.used_at) >= SESSION_IDLE_MAX
    }
}

/// A session that somebody was let in with.
#[derive(Clone, Debug)]
pub(super) struct Session {
    hash: SecretHash,
    /// When it ends, however much it is used.
    pub(super) expires_at: Timestamp,
    /// Cancelled when it is over and that was noticed.
    pub(super) ended: CancellationToken,
}

impl Sessions {
    fn live(&self, now: Timestamp) -> MutexGuard<'_, HashMap<SecretHash, Live>> {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.retain(|_, session| {
            let over = session.is_over(now);
            if over {
                session.ended.cancel();
            }
            !over
        });
        live
    }

    /// Begins a session; the secret is its cookie.
    pub(super) fn open(&self, now: Timestamp) -> Result<Secret> {
        let secret = Secret::new()?;
        let mut live = self.live(now);
        if live.len() >= SESSIONS_MAX {
            let oldest = live.iter().min_by_key(|(_, s)| s.used_at).map(|(hash, _)| *hash);
            if let Some(gone) = oldest.and_then(|hash| live.remove(&hash)) {
                gone.ended.cancel();
            }
        }
        let session = Live {
            made_at: now,
            used_at: now,
            ended: CancellationToken::new(),
        };
        live.insert(secret.hash(), session);
        Ok(secret)
    }

    /// The session of a cookie, which counts as used now.
    pub(super) fn find(&self, cookie: &str, now: Timestamp) -> Option<Session> {
        let hash = SecretHash::of(cookie);
        let mut live = self.live(now);
        let session = live.get_mut(&hash)?;
        session.used_at = now;
        Some(Session {
            hash,
            expires_at: session.made_at.plus(SESSION_MAX),
            ended: session.ended.clone(),
        })
    }

    /// It is used now.
    pub(super) fn touch(&self, session: &Session, now: Timestamp) {
        if let Some(live) = self.live(now).get_mut(&session.hash) {
            live.used_at = now;
        }
    }

    /// Notices what is over.
    pub(super) fn sweep(&self, now: Timestamp) {
        drop(self.live(now));
    }

    /// Ends a session, and what it has open.
    pub(super) fn end(&self, session: &Session, now: Timestamp) {
        if let Some(gone) = self.live(now).remove(&session.hash) {
            gone.ended.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(hours: i64) -> Timestamp {
        Timestamp::from_micros(hours * 3_600_000_000)
    }

    #[test]
    fn a_session_ends_when_it_is_not_used_and_after_a_day_however_much_it_is() {
        let sessions = Sessions::default();
        let (idle, busy) = (sessions.open(at(0)).unwrap(), sessions.open(at(0)).unwrap());
        let held = sessions.find(idle.text(), at(0)).unwrap();
        for hour in 1..24 {
            assert!(sessions.find(busy.text(), at(hour)).is_some(), "after {hour} h");
        }
        assert!(held.ended.is_cancelled());
        assert!(sessions.find(idle.text(), at(8)).is_none());
        assert!(sessions.find(busy.text(), at(24)).is_none());
    }

    #[test]
    fn ending_a_session_ends_what_it_has_open_and_no_other_session() {
        let sessions = Sessions::default();
        let (one, other) = (sessions.open(at(0)).unwrap(), sessions.open(at(0)).unwrap());
        let held = sessions.find(one.text(), at(0)).unwrap();
        sessions.end(&held, at(0));
        assert!(held.ended.is_cancelled());
        assert!(sessions.find(one.text(), at(0)).is_none() && sessions.find(other.text(), at(0)).is_some());
    }

    #[test]
    fn one_session_too_many_ends_the_one_that_was_not_used_for_longest() {
        let sessions = Sessions::default();
        let first = sessions.open(at(0)).unwrap();
        let second = sessions.open(at(1)).unwrap();
        for _ in 2..SESSIONS_MAX {
            sessions.open(at(2)).unwrap();
        }
        sessions.find(first.text(), at(3)).unwrap();
        sessions.open(at(3)).unwrap();
        assert!(sessions.find(second.text(), at(3)).is_none());
        assert!(sessions.find(first.text(), at(3)).is_some());
    }
}
