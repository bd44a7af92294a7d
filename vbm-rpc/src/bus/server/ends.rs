//! What a receiver answers in place of a reply.

use crate::{
    Fate,
    codec::Codec,
    dedupe::Answer,
    envelope::{EndCode, Kind},
};
use vbm_core::{Error, ErrorKind, Outcome};

/// The bus of the receiver ends it.
pub(super) fn ended(code: EndCode, why: &str) -> Answer {
    let mut body = Vec::with_capacity(1 + why.len());
    body.push(code as u8);
    body.extend_from_slice(why.as_bytes());
    Answer {
        kind: Kind::End,
        codec: Codec::MessagePack,
        body: body.into(),
        repeatable: true,
    }
}

/// What a layer decided before the handler was begun, as the end of the call.
pub(super) fn ended_by(fate: &Fate) -> Option<Answer> {
    Some(match fate {
        Fate::NoRoute { why, .. } => ended(EndCode::NoRoute, why),
        Fate::Overloaded { at, why } => ended(EndCode::Overloaded, &format!("{at}: {why}")),
        Fate::Expired { .. } => ended(EndCode::Expired, ""),
        _ => return None,
    })
}

/// The application refuses it.
pub(super) fn refusal(codec: Codec, error: &Error) -> Answer {
    let repeatable = matches!(error.outcome(), Outcome::NotApplied | Outcome::RolledBack);
    // An error of four strings can always be written.
    let body = codec.encode(error).unwrap_or_default();
    Answer {
        kind: Kind::Refusal,
        codec,
        body,
        repeatable,
    }
}

pub(super) fn key_conflict() -> Error {
    Error::new(
        ErrorKind::Conflict,
        "the idempotency key was used for another request",
        "a key stands for one request with one content",
        "use a new key for a new request",
    )
}

pub(super) fn panicked(method: &str) -> Error {
    Error::internal(
        format!("the handler of {method} panicked"),
        "see the log of the node that ran it",
    )
    .with_outcome(Outcome::Unknown)
}
