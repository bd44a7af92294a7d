//! Calls and handlers as tower services: what stands between a caller and the bus, and between the bus and a handler.
//!
//! ```text
//!   caller.call::<M>(..)                                      handler(context, M::Request)
//!        | Outgoing                                                 ^ bytes
//!        v                                                          | Incoming
//!   layers of yours: trace, metrics, retry, limit, deadline   layers of yours, by Router::layer
//!        |                                                          ^
//!        v                                                          |
//!   BusService --- envelope ---> transport ~~~~~~~> transport ---> Server (dedupe, deadline, method, epoch)
//! ```
//!
//! Both sides fail with a [`Fate`]. [`Bus::call`](crate::Bus::call) and a router without layers go past all this: who
//! adds no layer pays for none. Broadcasts go past it too: their end is a stream of fates, not one.

use crate::{CallOptions, Codec, Context, Fate, Route, router::Handler};
use bytes::Bytes;
use futures::future::BoxFuture;
use std::{
    fmt,
    sync::Arc,
    task::{self, Poll},
};
use tokio::time::Instant;
use tower::{Service, ServiceExt as _};
use uuid::Uuid;
use vbm_core::NodePath;

/// Whether an answer is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verb {
    /// Do this and answer.
    Call,
    /// Do this. Its reply is empty and comes when the bus keeps the request.
    Cast,
}

/// A request on its way out, its body written. Made by [`Caller`](crate::Caller) and
/// [`Bus::outgoing`](crate::Bus::outgoing).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Outgoing {
    /// Whether an answer is wanted.
    pub verb: Verb,
    /// Where it goes.
    pub route: Route,
    /// Which method.
    pub method: &'static str,
    /// Its content, in the codec of the options.
    pub body: Bytes,
    /// What the caller said. The deadline that counts is [`Outgoing::deadline`].
    pub options: CallOptions,
    /// Names this sending on the bus: the id of the request.
    pub id: Uuid,
    /// Which sending of the same request this is, from 1.
    pub attempt: u16,
    /// When it ends at the latest. Time spent in layers counts.
    pub deadline: Instant,
}

impl Outgoing {
    /// The same request, sent once more: with an id of its own, which is made from this one, so that the same first
    /// id gives the same ids again.
    #[must_use]
    pub fn again(&self) -> Self {
        let attempt = self.attempt.saturating_add(1);
        Self {
            id: again_id(self.id, attempt),
            attempt,
            ..self.clone()
        }
    }
}

/// Changes the random part of an id; its time and its version stay.
fn again_id(id: Uuid, attempt: u16) -> Uuid {
    const RANDOM_BITS: u64 = (1 << 62) - 1;
    let (high, low) = id.as_u64_pair();
    let mixed = mix(low, u64::from(attempt));
    Uuid::from_u64_pair(high, (low & !RANDOM_BITS) | (mixed & RANDOM_BITS))
}

/// A number that looks like chance and is a function of its inputs (the finaliser of SplitMix64, as published by
/// Steele, Lea and Flood, 2014).
pub(crate) const fn mix(seed: u64, step: u64) -> u64 {
    let mut z = seed.wrapping_add(step.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The answer to an [`Outgoing`], its body not read yet.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Replied {
    /// Who answered; the sender itself for a cast, which nobody answers.
    pub from: NodePath,
    /// How the body is written.
    pub codec: Codec,
    /// The content.
    pub body: Bytes,
}

impl Replied {
    /// For a layer that answers by itself.
    pub const fn new(from: NodePath, codec: Codec, body: Bytes) -> Self {
        Self { from, codec, body }
    }
}

/// A request on its way to its handler, its body not read yet.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Incoming {
    /// What the handler will know.
    pub context: Context,
    /// Which method.
    pub method: &'static str,
    /// How the body is written, and how the answer must be.
    pub codec: Codec,
    /// The content.
    pub body: Bytes,
}

/// On which side of the bus a layer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Of who asks.
    Client,
    /// Of who answers.
    Server,
}

impl Side {
    /// For metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// What [`Outgoing`] and [`Incoming`] have in common, for layers that stand on both sides.
pub trait Message: Send + 'static {
    /// Where it is met.
    const SIDE: Side;
    /// Which method.
    fn method(&self) -> &'static str;
    /// The id of the request.
    fn id(&self) -> Uuid;
    /// Which sending of it.
    fn attempt(&self) -> u16;
    /// When it ends at the latest.
    fn deadline(&self) -> Instant;
    /// The trace it belongs to, as it stands in the envelope.
    fn traceparent(&self) -> Option<&str>;
    /// From now on it belongs to that trace.
    fn set_traceparent(&mut self, traceparent: String);
    /// The other end: where it goes, or who sent it.
    fn peer(&self) -> &dyn fmt::Display;
}

impl Message for Outgoing {
    const SIDE: Side = Side::Client;
    fn method(&self) -> &'static str {
        self.method
    }
    fn id(&self) -> Uuid {
        self.id
    }
    fn attempt(&self) -> u16 {
        self.attempt
    }
    fn deadline(&self) -> Instant {
        self.deadline
    }
    fn traceparent(&self) -> Option<&str> {
        self.options.traceparent.as_deref()
    }
    fn set_traceparent(&mut self, traceparent: String) {
        self.options.traceparent = Some(traceparent);
    }
    fn peer(&self) -> &dyn fmt::Display {
        &self.route
    }
}

impl Message for Incoming {
    const SIDE: Side = Side::Server;
    fn method(&self) -> &'static str {
        self.method
    }
    fn id(&self) -> Uuid {
        self.context.request_id
    }
    fn attempt(&self) -> u16 {
        self.context.attempt
    }
    fn deadline(&self) -> Instant {
        self.context.deadline
    }
    fn traceparent(&self) -> Option<&str> {
        self.context.traceparent.as_deref()
    }
    fn set_traceparent(&mut self, traceparent: String) {
        self.context.traceparent = Some(traceparent);
    }
    fn peer(&self) -> &dyn fmt::Display {
        &self.context.caller
    }
}

/// The innermost service of a router: one handler. Always ready.
#[derive(Clone)]
pub struct HandlerService(Arc<dyn Handler>);

impl HandlerService {
    pub(crate) fn new(handler: Arc<dyn Handler>) -> Self {
        Self(handler)
    }
}

impl fmt::Debug for HandlerService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HandlerService")
    }
}

impl Service<Incoming> for HandlerService {
    type Response = Bytes;
    type Error = Fate;
    type Future = BoxFuture<'static, Result<Bytes, Fate>>;

    fn poll_ready(&mut self, _cx: &mut task::Context<'_>) -> Poll<Result<(), Fate>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Incoming) -> Self::Future {
        self.0.handle(request.context, request.codec, &request.body)
    }
}

/// A handler with layers around it.
pub(crate) struct Layered<S> {
    method: &'static str,
    service: S,
}

impl<S> Layered<S> {
    pub(crate) const fn new(method: &'static str, service: S) -> Self {
        Self { method, service }
    }
}

impl<S> Handler for Layered<S>
where
    S: Service<Incoming, Response = Bytes, Error = Fate> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    fn handle(
        &self,
        context: Context,
        codec: Codec,
        body: &Bytes,
    ) -> BoxFuture<'static, Result<Bytes, Fate>> {
        let request = Incoming {
            context,
            method: self.method,
            codec,
            body: body.clone(),
        };
        Box::pin(self.service.clone().oneshot(request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_sending_has_another_id_of_the_same_time_and_version() {
        let first = Uuid::parse_str("01890a5d-ac96-774b-bcce-b302099a8057").unwrap();
        let second = again_id(first, 2);
        assert_ne!(first, second);
        assert_ne!(second, again_id(first, 3));
        assert_eq!(second, again_id(first, 2), "a function of its inputs");
        assert_eq!(second.get_version_num(), 7);
        assert_eq!(second.get_variant(), uuid::Variant::RFC4122);
        assert_eq!(first.as_u64_pair().0, second.as_u64_pair().0);
    }
}
