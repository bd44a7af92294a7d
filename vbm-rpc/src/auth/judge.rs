//! Has an entry been opened before? Pure: no clock, no store; one judge a stream.
//!
//! ```text
//!   sender's session: seq   1 2 3 ... 40 | 41 42 44 45 47 | 48 ...
//!                           below floor  |  remembered    | new
//!                           refused      | same entry: read again; another entry: refused
//! ```
//!
//! The writer of a session numbers its entries in the order in which it writes them, so a stream with one reader shows
//! growing numbers. What comes late by less than [`REMEMBERED`] entries is still new.
//!
//! How that goes with at-least-once: a *resent call* is a new entry with a new number and the same call id: opened, and
//! absorbed by the record of the call. An *entry that is read again* (after a reconnect, after a failover that forgot
//! its removal) has the same place in the stream, its id, and is let through to that same record. Only an entry whose
//! number was seen at *another* place is a replay.

use super::{Refusal, seal::Speaker};
use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};
use vbm_core::NodePath;

/// How far the time in a seal and the time of the entry's id may be apart: a batch on its way, two clocks of Redis
/// servers around a failover. Also how long a stranger can use a copy with a fresh id.
pub const SKEW_MAX: Duration = Duration::from_secs(30);
/// The most numbers of one session that are remembered with their place.
const REMEMBERED: usize = 1_024;
/// The most sessions of one sender that are remembered: each restart of it is one.
const SESSIONS_MAX: usize = 64;

/// What an entry is that may be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It was not seen before.
    New,
    /// The very same entry was: it is read once more.
    Again,
}

/// Whether an entry was written when its seal says.
///
/// # Errors
/// [`Refusal::WrongTime`].
pub fn in_time(time_ms: u64, entry_ms: u64) -> Result<(), Refusal> {
    let off_ms = time_ms.abs_diff(entry_ms);
    match u128::from(off_ms) > SKEW_MAX.as_millis() {
        true => Err(Refusal::WrongTime { off_ms }),
        false => Ok(()),
    }
}

#[derive(Default)]
struct Session {
    number: u64,
    /// Everything up to here was seen, or will never be.
    floor: u64,
    seen: BTreeMap<u64, (u64, u64)>,
    used: u64,
}

/// What was opened from one stream.
#[derive(Default)]
pub struct Judge {
    senders: HashMap<NodePath, Vec<Session>>,
    turn: u64,
}

impl Judge {
    /// Notes an entry whose seal fits. `entry` is its id.
    ///
    /// # Errors
    /// [`Refusal::WrongTime`] and [`Refusal::Replayed`].
    pub fn judge(&mut self, speaker: &Speaker, entry: (u64, u64)) -> Result<Seen, Refusal> {
        in_time(speaker.time_ms, entry.0)?;
        self.turn += 1;
        let turn = self.turn;
        let sessions = self.senders.entry(speaker.path.clone()).or_default();
        let at = match sessions
            .iter()
            .position(|session| session.number == speaker.session)
        {
            Some(at) => at,
            None => {
                if sessions.len() >= SESSIONS_MAX
                    && let Some(oldest) = (0..sessions.len()).min_by_key(|&at| sessions[at].used)
                {
                    sessions.swap_remove(oldest);
                }
                sessions.push(Session {
                    number: speaker.session,
                    ..Session::default()
                });
                sessions.len() - 1
            }
        };
        let session = &mut sessions[at];
        session.used = turn;
        match session.seen.get(&speaker.seq) {
            Some(place) if *place == entry => return Ok(Seen::Again),
            Some(_other) => return Err(Refusal::Replayed),
            None if speaker.seq <= session.floor => return Err(Refusal::Replayed),
            None => {}
        }
        session.seen.insert(speaker.seq, entry);
        if session.seen.len() > REMEMBERED
            && let Some((lowest, _)) = session.seen.pop_first()
        {
            session.floor = lowest;
        }
        Ok(Seen::New)
    }
}

impl std::fmt::Debug for Judge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Judge({} senders)", self.senders.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn speaker(path: &str, session: u64, seq: u64) -> Speaker {
        Speaker {
            path: path.parse().unwrap(),
            boot_id: "b".into(),
            session,
            seq,
            time_ms: 1_000_000,
        }
    }
    const AT: u64 = 1_000_000;

    #[test]
    fn a_copy_at_another_place_is_a_replay_and_the_same_entry_is_not() {
        let mut judge = Judge::default();
        let one = speaker("a", 1, 1);
        assert_eq!(judge.judge(&one, (AT, 0)), Ok(Seen::New));
        assert_eq!(judge.judge(&one, (AT, 0)), Ok(Seen::Again));
        assert_eq!(judge.judge(&one, (AT, 1)), Err(Refusal::Replayed));
        assert_eq!(judge.judge(&one, (AT + 5, 0)), Err(Refusal::Replayed));
    }

    #[test]
    fn sessions_and_senders_count_for_themselves() {
        let mut judge = Judge::default();
        for one in [speaker("a", 1, 1), speaker("a", 2, 1), speaker("b", 1, 1)] {
            assert_eq!(judge.judge(&one, (AT, 0)), Ok(Seen::New));
        }
    }

    #[test]
    fn what_comes_a_little_late_is_new_and_what_comes_too_late_is_refused() {
        let mut judge = Judge::default();
        let many = u64::try_from(REMEMBERED).unwrap();
        for seq in 2..many + 2 {
            judge.judge(&speaker("a", 1, seq), (AT, seq)).unwrap();
        }
        assert_eq!(judge.judge(&speaker("a", 1, 1), (AT, 9_999)), Ok(Seen::New));
        judge.judge(&speaker("a", 1, many + 3), (AT, 10_000)).unwrap();
        assert_eq!(
            judge.judge(&speaker("a", 1, 1), (AT, 9_999)),
            Err(Refusal::Replayed)
        );
    }

    #[test]
    fn an_entry_far_from_the_time_in_its_seal_is_refused() {
        let skew = u64::try_from(SKEW_MAX.as_millis()).unwrap();
        assert!(in_time(AT, AT + skew).is_ok() && in_time(AT, AT - skew).is_ok());
        assert_eq!(
            in_time(AT, AT + skew + 1),
            Err(Refusal::WrongTime { off_ms: skew + 1 })
        );
        assert!(in_time(AT, AT - skew - 1).is_err());
    }

    #[test]
    fn a_sender_that_restarts_for_ever_takes_no_more_room() {
        let mut judge = Judge::default();
        for session in 0..1_000 {
            judge.judge(&speaker("a", session, 1), (AT, session)).unwrap();
        }
        assert_eq!(judge.senders.values().map(Vec::len).sum::<usize>(), SESSIONS_MAX);
    }

    proptest! {
        #[test]
        fn no_number_is_opened_at_two_places(steps in proptest::collection::vec((0u64..3_000, 0u64..3_000), 1..400)) {
            let mut judge = Judge::default();
            let mut opened: HashMap<u64, u64> = HashMap::new();
            for (seq, place) in steps {
                if judge.judge(&speaker("a", 1, seq + 1), (AT, place)).is_ok() {
                    prop_assert_eq!(*opened.entry(seq).or_insert(place), place);
                }
            }
        }
    }
}
