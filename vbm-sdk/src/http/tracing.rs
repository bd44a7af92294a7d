//! The trace of a request: W3C Trace Context in, spans and commands of the bus in its name, its id out.
//!
//! ```text
//!   traceparent of the client, or a new trace
//!      `- span request { trace_id }       what is logged for it here
//!           `- Ambient                    bus.call -> bus.handle at the node, operations, keepers
//! ```

use axum::{
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue},
    middleware::Next,
    response::Response,
};
use tracing::Instrument as _;
use uuid::Uuid;
use vbm_rpc::layers::{Ambient, TraceContext};

/// The header that a client may send (W3C Trace Context, section 3.2).
const TRACEPARENT: &str = "traceparent";
/// The header that tells it the trace (W3C Trace Context Level 2, draft: `traceresponse`).
const TRACERESPONSE: HeaderName = HeaderName::from_static("traceresponse");

/// Runs a request in its trace.
pub(super) async fn layer(request: Request, next: Next) -> Response {
    let context = context_of(request.headers(), Uuid::now_v7());
    let span = span_of(&request, context);
    let mut ambient = Ambient::current();
    ambient.trace = Some(context);
    let answered = ambient.scope(next.run(request)).instrument(span);
    let mut response = answered.await;
    if let Ok(value) = HeaderValue::from_str(&context.to_string()) {
        response.headers_mut().insert(TRACERESPONSE, value);
    }
    response
}

fn span_of(request: &Request, context: TraceContext) -> tracing::Span {
    let trace_id = format_args!("{:032x}", context.trace_id);
    // Without the query: one-time tokens stand in it.
    let (method, path) = (request.method(), request.uri().path());
    tracing::info_span!("request", %method, path, trace_id)
}

/// Below the client's span when it names one; what is no `traceparent` begins a new trace, as the recommendation asks for.
fn context_of(headers: &HeaderMap, id: Uuid) -> TraceContext {
    let given = headers.get(TRACEPARENT).and_then(|value| value.to_str().ok());
    match given.and_then(|text| text.parse::<TraceContext>().ok()) {
        Some(parent) => parent.child(id, 0),
        None => TraceContext::root(id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIVEN: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_client_s_trace_goes_on_and_nonsense_begins_a_new_one() {
        let id = Uuid::from_u128(7);
        let of = |text: &'static str| {
            let headers =
                HeaderMap::from_iter([(TRACEPARENT.parse().unwrap(), HeaderValue::from_static(text))]);
            context_of(&headers, id)
        };
        let known = of(GIVEN);
        assert_eq!(known.trace_id, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c);
        assert_ne!(known.span_id, 0xb7ad_6b71_6920_3331, "a span of its own");
        for nonsense in ["", "x", "00-0-0-0"] {
            assert_eq!(of(nonsense), TraceContext::root(id));
        }
        assert_eq!(context_of(&HeaderMap::new(), id), TraceContext::root(id));
    }
}
