//! Taking back what was written for nobody.
//!
//! ```text
//!   batch 1   EXISTS presence: nobody    XADD NOMKSTREAM: written (a dead process left its queue)
//!                                            <---- somebody may come here, find it and run it
//!   batch 2   XDEL it                    EXISTS presence
//!             1 gone by us               nobody    --> no route: nobody can have read it
//!             1 gone by us               somebody  --> may have read it: sent again, with the same id
//!             0 gone before              -         --> somebody has done it
//! ```
//!
//! A member appears in presence before it reads its queue, and takes nothing that was written after its presence may
//! have run out (`present.rs`): who is not there *after* the entry is gone has not taken it. Only where the queue of a
//! dead process is left does "no route" cost this second round trip.

use super::{connect::Answer, pack};

/// What has become of an entry that was taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nobody has read it, and nobody will.
    Unread,
    /// Somebody has done it.
    Done,
    /// Somebody who is there may have read it.
    Somebody,
    /// It cannot be told.
    Unknown,
}

/// `gone` is the answer of XDEL, `there` that of who is there; `broke` when an attempt before this one broke off.
pub(super) fn judge(gone: Option<Answer>, there: Option<Answer>, broke: bool) -> Verdict {
    let number = |answer: Option<Answer>| answer?.ok().as_ref().and_then(pack::number);
    match (number(gone), number(there)) {
        (Some(_), Some(1..)) if broke => Verdict::Somebody,
        (Some(0), Some(_)) if !broke => Verdict::Done,
        (Some(1..), Some(1..)) => Verdict::Somebody,
        (Some(1..), Some(0)) if !broke => Verdict::Unread,
        _ => Verdict::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use redis::Value;

    fn said(number: i64) -> Option<Answer> {
        Some(Ok(Value::Int(number)))
    }

    #[test]
    fn only_what_we_took_back_from_nobody_is_unread() {
        assert_eq!(judge(said(1), said(0), false), Verdict::Unread);
        assert_eq!(judge(said(1), said(2), false), Verdict::Somebody);
        assert_eq!(judge(said(0), said(0), false), Verdict::Done);
        assert_eq!(judge(said(0), said(1), false), Verdict::Done);
    }

    #[test]
    fn what_broke_off_or_was_not_answered_is_never_certain() {
        for gone in [0, 1] {
            assert_eq!(judge(said(gone), said(0), true), Verdict::Unknown);
            assert_eq!(judge(said(gone), said(1), true), Verdict::Somebody);
        }
        assert_eq!(judge(None, said(0), false), Verdict::Unknown);
        assert_eq!(
            judge(said(1), Some(Err("NODEDOWN".into())), false),
            Verdict::Unknown
        );
    }
}
