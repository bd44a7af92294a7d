//! What is served over TCP: the API and the page of the web console.
//!
//! ```text
//!   TCP, loopback only
//!     |  guard      Host is a name of this machine; Origin is the page's own
//!     |  headers    CSP, nosniff, no framing; no-store for the API
//!     +-- /login?token=   a one-time link becomes a session cookie, once
//!     +-- /logout         ends the session and what it has open
//!     +-- /v1/..., /openapi.json, /metrics --session or 401--> the same router as on the unix socket
//!     +-- everything else                            the page: files, else its index.html
//! ```
//!
//! What these are against: *a web site in the same browser*, which can make requests but not read answers: it has the
//! wrong Origin, and the cookie is SameSite=Strict. *A name that is made to point here* (DNS rebinding): it is the wrong
//! Host. *Another user of this machine*, who can connect: has no session, and a link that was used is worth nothing.
//! Cookies know no ports, so that of each daemon has a name of its own.

mod guard;
mod html;
mod login;
mod page;

use super::{
    ApiState,
    doors::Visitor,
    problem::{self, Failed},
};
use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing,
};
use futures::StreamExt;
use hyper::body::Body as _;
use tower::ServiceExt;
use vbm_core::{Error, ErrorKind};

/// Where a page may load things from: only from here. Styles may stand in the page: terminals and desktops set
/// them as they go (xterm.js, noVNC).
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
    img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; \
    manifest-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// The API and the page, for browsers that log in.
pub(crate) fn router(state: ApiState) -> Router {
    let api = super::router(state.clone()).layer(middleware::from_fn_with_state(state.clone(), authenticate));
    Router::new()
        .route("/login", routing::get(login::login))
        .route("/logout", routing::post(login::logout))
        .with_state(state)
        .fallback(move |request: Request| async move {
            match is_api(request.uri().path()) {
                true => api.oneshot(request).await.unwrap_or_else(|never| match never {}),
                false => page::serve(&request),
            }
        })
        .layer(middleware::from_fn(protect))
}

/// Whether a path belongs to the API. Only such a path ever reaches it.
fn is_api(path: &str) -> bool {
    path == "/v1" || path.starts_with("/v1/") || matches!(path, "/openapi.json" | "/metrics")
}

/// The outermost layer: who must not ask gets no further; all answers carry the headers that protect a browser.
async fn protect(request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let secret = is_api(&path) || path == "/login" || path == "/logout";
    let mut response = match guard::admit(&request, is_api(&path)) {
        Ok(()) => next.run(request).await,
        Err(e) => refuse(&path, StatusCode::FORBIDDEN, e),
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    for name in ["cross-origin-opener-policy", "cross-origin-resource-policy"] {
        headers.insert(name, HeaderValue::from_static("same-origin"));
    }
    if secret || !headers.contains_key(header::CACHE_CONTROL) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    response
}

/// A refusal, for whoever asked: a program, or somebody who looks at a page.
fn refuse(path: &str, status: StatusCode, error: Error) -> Response {
    if is_api(path) {
        return problem::with_status(status, error);
    }
    html::message(status, error.what(), &[error.why(), error.fix()])
}

/// Lets in who has a session, and ends long answers with it.
async fn authenticate(State(api): State<ApiState>, mut request: Request, next: Next) -> Response {
    let Some(visitor) = visitor(&api, request.headers()) else {
        let mut response = problem::with_status(StatusCode::UNAUTHORIZED, no_session());
        // A 401 names how to log in (RFC 9110 section 15.5.2); browsers ask nobody for a scheme they do not know.
        let scheme = HeaderValue::from_static("VbmSession");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        return response;
    };
    request.extensions_mut().insert(visitor.clone());
    let response = next.run(request).await;
    let (parts, body) = response.into_parts();
    if body.size_hint().exact().is_some() {
        return Response::from_parts(parts, body);
    }
    let open = body.into_data_stream();
    let body = open.take_until(Box::pin(async move { visitor.leaves().await }));
    Response::from_parts(parts, Body::from_stream(body))
}

fn no_session() -> Error {
    Error::new(
        ErrorKind::PermissionDenied,
        "you are not logged in",
        "the request carries no session, or one that is over",
        "run `vbm web login` on the machine of vbmd, and open the link that it prints",
    )
}

/// Who comes, by the cookie.
fn visitor(api: &ApiState, headers: &HeaderMap) -> Option<Visitor> {
    let cookie = guard::cookie(headers, &cookie_name(api))?;
    let session = api.doors.sessions.find(cookie, api.controller.now())?;
    Some(Visitor {
        session,
        doors: api.doors.clone(),
        controller: api.controller.clone(),
    })
}

fn cookie_name(api: &ApiState) -> String {
    format!("vbm-session-{}", api.instance)
}

/// What is asked for is not served here in this way.
fn wrong_method() -> Response {
    Failed(Error::new(
        ErrorKind::InvalidInput,
        "this cannot be asked of a page",
        "pages are read with GET",
        "see /openapi.json for what the API takes",
    ))
    .into_response()
}
