//! The HTTP API: thin. Each handler reads a request, asks the controller, and writes the answer.
//!
//! [`router`] gives an `axum::Router` that can be nested in another; [`document`] gives its OpenAPI
//! document, which is committed and tested for freshness.

mod console;
mod idempotency;
mod problem;
mod routes;
mod snapshots;
pub(crate) mod unix;

use crate::controller::Controller;
use axum::Router;
use problem::Failed;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;

/// What handlers stand on.
#[derive(Clone, Debug)]
pub struct ApiState {
    /// Who decides.
    pub controller: Controller,
    /// The word for this daemon and its data.
    pub instance: String,
}

/// The largest request body but for uploads, in bytes.
const BODY_MAX_BYTES: usize = 1 << 20;

#[derive(OpenApi)]
#[openapi(info(
    title = "VBM",
    description = "Virtual machines, networks and what belongs to them. Failures are problem JSON (RFC 9457).",
    license(name = "MIT OR Apache-2.0")
))]
struct Document;

fn api() -> OpenApiRouter<ApiState> {
    OpenApiRouter::with_openapi(Document::openapi()).nest("/v1", routes::all())
}

/// The API as a router.
pub fn router(state: ApiState) -> Router {
    let (router, document) = api().split_for_parts();
    let text = document.to_pretty_json().unwrap_or_default();
    router
        .route(
            "/openapi.json",
            axum::routing::get(move || async move {
                ([(axum::http::header::CONTENT_TYPE, "application/json")], text)
            }),
        )
        .fallback(
            |uri: axum::http::Uri| async move { Failed(vbm_core::Error::not_found("path", uri.path())) },
        )
        .layer(axum::middleware::from_fn_with_state(
            (state.clone(), idempotency::UnderWay::default()),
            idempotency::layer,
        ))
        .layer(tower_http::trace::TraceLayer::new_for_http())
        .with_state(state)
}

/// The OpenAPI document, as it is committed.
pub fn document() -> String {
    let mut text = api().to_openapi().to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}
