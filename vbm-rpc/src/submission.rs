//! What a submission says besides its request, and what a callback is told.

use crate::{
    CallOptions, Method, Route, Ticket, limits,
    ticket::{parse_route, route_text},
};
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{fmt, time::Duration};
use vbm_core::Error;

/// What goes before the body of a submitted request, and what the record of its ticket says from the beginning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Submission {
    pub(crate) ticket: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) callback: Option<Callback>,
}

/// Who is called with the end of a ticket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Callback {
    to: String,
    pub(crate) method: String,
}

impl Callback {
    pub(crate) fn route(&self) -> Result<Route, String> {
        let parts: Vec<&str> = self.to.split(';').collect();
        match parts[..] {
            [kind, path, service] => parse_route(kind, path, service),
            _ => Err(format!("'{}' is no destination", self.to)),
        }
    }
}

/// What a caller may say about one submission.
///
/// ```
/// # use std::time::Duration;
/// use vbm_rpc::{CallOptions, SubmitOptions};
/// let options = SubmitOptions::from(CallOptions::new().idempotency_key("backup-7")).keep(Duration::from_secs(600));
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct SubmitOptions {
    pub(crate) call: CallOptions,
    pub(crate) keep: Duration,
    pub(crate) callback: Option<Callback>,
}

impl Default for SubmitOptions {
    fn default() -> Self {
        CallOptions::default().into()
    }
}

impl From<CallOptions> for SubmitOptions {
    fn from(call: CallOptions) -> Self {
        Self {
            call,
            keep: limits::TICKET_KEEP,
            callback: None,
        }
    }
}

impl SubmitOptions {
    /// The ticket is kept until its deadline and this long have passed, and is [`TicketState::Expired`](crate::TicketState::Expired) then. At most
    /// [`TICKET_KEEP_MAX`](limits::TICKET_KEEP_MAX).
    pub fn keep(mut self, keep: Duration) -> Self {
        self.keep = keep.min(limits::TICKET_KEEP_MAX);
        self
    }

    /// When the ticket has its end, `C` is called along `route` with it. The bus takes that cast, a fast one, at least once while
    /// the ticket is kept: from the worker or, when that is gone, from other members of the destination. Nobody waits for its reply. It is not
    /// fenced, since a callback commands nothing.
    pub fn callback<C: Method<Request = TicketOutcome>>(mut self, route: &Route) -> Self {
        const { assert!(!C::FENCED, "a callback is not fenced: set FENCED to false") };
        self.callback = Some(Callback {
            to: route_text(route),
            method: C::NAME.to_owned(),
        });
        self
    }
}

/// What a callback is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TicketOutcome {
    /// The ticket, as text.
    pub ticket: String,
    /// Its end; left out when it is too large to be sent along.
    #[serde(default)]
    pub(crate) end: Option<Blob>,
}

impl TicketOutcome {
    pub(crate) fn new(ticket: String, end: &Bytes) -> Self {
        let small = end.len() <= limits::CALLBACK_END_MAX_BYTES;
        Self {
            ticket,
            end: small.then(|| Blob(end.clone())),
        }
    }

    /// The ticket with its type.
    ///
    /// # Errors
    /// Invalid input, when it is the ticket of another method.
    pub fn ticket<M: Method>(&self) -> Result<Ticket<M>, Error> {
        self.ticket.parse()
    }
}

/// Bytes that are written as bytes.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Blob(pub(crate) Bytes);

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Blob;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Blob, E> {
                Ok(Blob(Bytes::copy_from_slice(bytes)))
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Blob, A::Error> {
                let mut bytes = Vec::new();
                while let Some(byte) = list.next_element::<u8>()? {
                    bytes.push(byte);
                }
                Ok(Blob(bytes.into()))
            }
        }
        deserializer.deserialize_bytes(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Codec;

    struct Told;
    impl Method for Told {
        const NAME: &'static str = "test.told";
        const FENCED: bool = false;
        type Request = TicketOutcome;
        type Reply = ();
    }

    #[test]
    fn a_callback_may_go_along_any_route() {
        let service = crate::Service::new("ui").unwrap();
        let scope: vbm_core::NodePath = "eu".parse().unwrap();
        for route in [
            Route::node("eu/c1".parse().unwrap()),
            Route::any(scope.clone(), service.clone()),
            Route::all(scope, service),
        ] {
            let callback = SubmitOptions::default()
                .callback::<Told>(&route)
                .callback
                .unwrap();
            assert_eq!(callback.route(), Ok(route));
        }
    }

    #[test]
    fn an_outcome_survives_both_codecs_and_a_large_end_is_left_out() {
        let outcome = TicketOutcome::new("t".into(), &Bytes::from_static(&[0, 200, 255]));
        for codec in [Codec::MessagePack, Codec::Json] {
            let bytes = codec.encode(&outcome).unwrap();
            assert_eq!(codec.decode::<TicketOutcome>(&bytes).unwrap(), outcome);
        }
        let large = Bytes::from(vec![0; limits::CALLBACK_END_MAX_BYTES + 1]);
        assert_eq!(TicketOutcome::new("t".into(), &large).end, None);
    }
}
