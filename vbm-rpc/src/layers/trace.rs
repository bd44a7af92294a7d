//! Traces across the bus: W3C trace context in the envelope, spans of `tracing` on both sides.
//!
//! ```text
//!   caller's traceparent, or the handler's span it is called from, or a new trace
//!      `- span bus.call      (client) its id goes into the envelope
//!           `- span bus.handle  (server) what the handler calls in turn is below it
//! ```
//!
//! Ids are made from the id of the request, which no other request has. The library installs no subscriber: without
//! one, the spans cost next to nothing.

use super::{TraceContext, ambient::Ambient, word};
use crate::{
    Fate,
    service::{Message, Side},
};
use futures::future::BoxFuture;
use std::task::{Context, Poll};
use tower::{Layer, Service};
use tracing::{Instrument as _, Span, field::Empty};

/// Salt of the span ids of handlers, apart from those of attempts, which are numbered from 1.
const HANDLER_SALT: u64 = 1 << 32;

/// Traces calls (client side) or handlers (server side): spans `bus.call` and `bus.handle` with the fields `method`,
/// `peer` (route or caller), `id`, `attempt`, `trace_id`, `span_id` and `fate`.
#[derive(Clone, Copy, Debug, Default)]
pub struct TraceLayer {
    _later: (),
}

impl TraceLayer {
    /// Traces everything.
    pub const fn new() -> Self {
        Self { _later: () }
    }
}

impl<S> Layer<S> for TraceLayer {
    type Service = Trace<S>;
    fn layer(&self, inner: S) -> Trace<S> {
        Trace { inner }
    }
}

/// See [`TraceLayer`].
#[derive(Clone, Debug)]
pub struct Trace<S> {
    inner: S,
}

/// The span of a message below what it came with.
fn context_of<R: Message>(request: &R, ambient: Ambient) -> TraceContext {
    let given = request.traceparent().and_then(|text| text.parse().ok());
    let id = request.id();
    let parent = match R::SIDE {
        Side::Client => given.or(ambient.trace),
        Side::Server => given,
    };
    let salt = match R::SIDE {
        Side::Client => request.attempt().into(),
        Side::Server => HANDLER_SALT + u64::from(request.attempt()),
    };
    parent.unwrap_or_else(|| TraceContext::root(id)).child(id, salt)
}

fn span_of<R: Message>(request: &R, context: TraceContext) -> Span {
    let trace_id = format_args!("{:032x}", context.trace_id);
    let span_id = format_args!("{:016x}", context.span_id);
    let (method, peer) = (request.method(), request.peer());
    let (id, attempt) = (request.id(), request.attempt());
    match R::SIDE {
        Side::Client => {
            tracing::info_span!("bus.call", method, %peer, %id, attempt, trace_id, span_id, fate = Empty)
        }
        Side::Server => {
            tracing::info_span!("bus.handle", method, %peer, %id, attempt, trace_id, span_id, fate = Empty)
        }
    }
}

impl<S, R> Service<R> for Trace<S>
where
    R: Message,
    S: Service<R, Error = Fate>,
    S::Future: Send + 'static,
    S::Response: Send + 'static,
{
    type Response = S::Response;
    type Error = Fate;
    type Future = BoxFuture<'static, Result<S::Response, Fate>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fate>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: R) -> Self::Future {
        let ambient = Ambient::current();
        let context = context_of(&request, ambient);
        let span = span_of(&request, context);
        request.set_traceparent(context.to_string());
        let running = span.in_scope(|| self.inner.call(request));
        let note = span.clone();
        let traced = async move {
            let result = running.await;
            note.record("fate", word(&result));
            result
        };
        let traced = traced.instrument(span);
        match R::SIDE {
            Side::Client => Box::pin(traced),
            Side::Server => {
                let trace = Some(context);
                Box::pin(Ambient { trace, ..ambient }.scoped(traced))
            }
        }
    }
}
