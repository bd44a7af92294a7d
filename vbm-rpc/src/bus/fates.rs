//! What the end of a call means to its caller.

use super::{
    pending::{Answer, End},
    submit,
};
use crate::{BadInput, Fate, Method, Replied, bad_input::BadInputs, envelope::EndCode};
use vbm_core::{Error, ErrorKind, NodePath, Outcome};

pub(super) fn refused(what: &str, why: &str, fix: &str) -> Fate {
    Fate::Refused(Error::new(ErrorKind::InvalidInput, what, why, fix))
}

/// The reply of a call, or its fate; a reply that cannot be read counts as bad input.
pub(super) fn read<M: Method>(bad: &BadInputs, answer: Answer) -> Result<M::Reply, Fate> {
    let replied = replied(answer)?;
    decode::<M>(&replied).inspect_err(|fate| note_unreadable(bad, &replied.from, fate))
}

/// What somebody sent and cannot be read is counted.
#[cold]
pub(super) fn note_unreadable(bad: &BadInputs, from: &NodePath, fate: &Fate) {
    bad.note(BadInput::Unreadable, from.as_str(), fate);
}

pub(super) fn decode<M: Method>(replied: &Replied) -> Result<M::Reply, Fate> {
    replied.codec.decode(&replied.body).map_err(|why| {
        Fate::Refused(
            Error::internal(format!("the reply of {} cannot be read", M::NAME), why)
                .with_outcome(Outcome::Applied),
        )
    })
}

/// The reply, or the fate that the answer is.
pub(super) fn replied(answer: Answer) -> Result<Replied, Fate> {
    match answer.end {
        End::Reply(codec, body) => Ok(Replied::new(answer.from, codec, body)),
        _ => Err(read_failure(answer)),
    }
}

/// What an answer that is no reply means.
pub(super) fn read_failure(answer: Answer) -> Fate {
    let node = |from: NodePath| format!("node {from}");
    match answer.end {
        End::Refused(error) => Fate::Refused(error),
        End::Unreadable(why) => Fate::Refused(
            Error::internal("the other side refused with an error that cannot be read", why)
                .with_outcome(Outcome::Unknown),
        ),
        End::Fate(fate) => fate,
        End::Ended(EndCode::NoRoute, why) => Fate::NoRoute {
            to: node(answer.from),
            why,
        },
        End::Ended(EndCode::Overloaded, why) => Fate::Overloaded {
            at: node(answer.from),
            why,
        },
        End::Ended(EndCode::Expired, _) => Fate::Expired {
            at: node(answer.from),
        },
        End::Ended(EndCode::Cancelled, _) => Fate::Cancelled,
        End::Ended(EndCode::Lost, text) => submit::lost(&text),
        End::Unsent(_) => Fate::Cancelled,
        End::Reply(..) | End::Finished(..) => Fate::Refused(
            Error::internal(
                format!("{} answered in another way than it was asked", answer.from),
                "a stream was answered as a call, or a call as a stream",
            )
            .with_outcome(Outcome::Unknown),
        ),
    }
}
