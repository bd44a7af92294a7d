//! The HTTP API: thin. Each handler reads a request, asks the controller, and writes the answer.
//!
//! [`router`] gives an `axum::Router` that can be nested in another; [`document`] gives its OpenAPI
//! document, which is committed and tested for freshness.

mod access;
mod console;
mod doors;
mod floating_ips;
mod idempotency;
mod images;
mod looks;
mod once;
mod problem;
mod routes;
mod secret;
mod session;
mod snapshots;
pub(crate) mod tcp;
mod tracing;
pub(crate) mod unix;
mod watch;
pub(crate) mod web;

use crate::controller::Controller;
use axum::Router;
use doors::Doors;
use problem::Failed;
use std::sync::Arc;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use vbm_core::Result;
use vbm_rpc::layers::BusMetrics;

/// What handlers stand on.
#[derive(Clone, Debug)]
pub struct ApiState {
    /// Who decides.
    pub controller: Controller,
    /// The word for this daemon and its data.
    pub instance: String,
    /// Who is let in, and with what.
    doors: Arc<Doors>,
    /// What `/metrics` shows.
    metrics: BusMetrics,
}

impl ApiState {
    /// For handlers that nobody has come to yet: no session, no token.
    pub fn new(controller: Controller, instance: impl Into<String>) -> Self {
        Self {
            controller,
            instance: instance.into(),
            doors: Arc::default(),
            metrics: BusMetrics::new(),
        }
    }

    /// The same, showing these metrics at `/metrics`.
    #[must_use]
    pub fn with_metrics(mut self, metrics: BusMetrics) -> Self {
        self.metrics = metrics;
        self
    }

    /// Browsers are served at this address from now on.
    pub(crate) fn opened_at(&self, address: std::net::SocketAddr) -> Result<()> {
        self.doors.opened_at(address)
    }

    /// A link for one login.
    pub(crate) fn login_link(&self) -> Result<crate::api::LoginLink> {
        self.doors.login_link(self.controller.now())
    }
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
        .route("/metrics", axum::routing::get(metrics))
        .fallback(
            |uri: axum::http::Uri| async move { Failed(vbm_core::Error::not_found("path", uri.path())) },
        )
        .layer(axum::middleware::from_fn_with_state(
            (state.clone(), idempotency::UnderWay::default()),
            idempotency::layer,
        ))
        .layer(axum::middleware::from_fn(tracing::layer))
        .with_state(state)
}

/// The bus' metrics, for Prometheus. Not in the OpenAPI document: it is no part of what people program against.
async fn metrics(
    axum::extract::State(state): axum::extract::State<ApiState>,
) -> impl axum::response::IntoResponse {
    let kind = [(axum::http::header::CONTENT_TYPE, BusMetrics::CONTENT_TYPE)];
    (kind, state.metrics.text())
}

/// The OpenAPI document, as it is committed.
pub fn document() -> String {
    let mut text = api().to_openapi().to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}
