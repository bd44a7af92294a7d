//! What the end of a call means to its caller.

use super::{
    pending::{Answer, End},
    submit,
};
use crate::{Fate, Method, Replied, envelope::EndCode};
use vbm_core::{Error, ErrorKind, NodePath, Outcome};

pub(super) fn refused(what: &str, why: &str, fix: &str) -> Fate {
    Fate::Refused(Error::new(ErrorKind::InvalidInput, what, why, fix))
}

pub(super) fn read<M: Method>(answer: Answer) -> Result<M::Reply, Fate> {
    decode::<M>(&replied(answer)?)
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
