//! Failures on the wire: problem JSON (RFC 9457).

use crate::api::Problem;
use axum::{
    extract::{FromRequest, FromRequestParts, Request, rejection::JsonRejection},
    http::{StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use serde::de::DeserializeOwned;
use vbm_core::{Error, ErrorKind};

/// A failure as an answer.
#[derive(Debug)]
pub(super) struct Failed(pub(super) Error);

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

/// The HTTP status of each kind (RFC 9110 section 15).
pub(super) const fn status(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::InvalidInput => StatusCode::BAD_REQUEST,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::AlreadyExists | ErrorKind::Conflict | ErrorKind::Cancelled => StatusCode::CONFLICT,
        ErrorKind::Stale => StatusCode::PRECONDITION_FAILED,
        ErrorKind::PermissionDenied => StatusCode::FORBIDDEN,
        ErrorKind::Exhausted => StatusCode::INSUFFICIENT_STORAGE,
        ErrorKind::Unsupported | ErrorKind::MissingDependency => StatusCode::NOT_IMPLEMENTED,
        ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        with_status(status(self.0.kind()), self.0)
    }
}

/// A failure under a status of its own.
pub(super) fn with_status(status: StatusCode, error: Error) -> Response {
    if status.is_server_error() {
        tracing::warn!(kind = %error.kind(), error = %error.inline(), "a request failed");
    }
    let problem = Problem {
        type_: format!("urn:vbm:problem:{}", error.kind()),
        title: error.what().to_owned(),
        status: status.as_u16(),
        detail: error.why().to_owned(),
        error,
    };
    let body = serde_json::to_vec(&problem).unwrap_or_default();
    (status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response()
}

/// A JSON body; what is wrong with it is told as a problem.
pub(super) struct Json<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Failed;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failed> {
        match axum::Json::<T>::from_request(request, state).await {
            Ok(axum::Json(value)) => Ok(Self(value)),
            Err(rejection) => Err(Failed(bad_body(&rejection))),
        }
    }
}

fn bad_body(rejection: &JsonRejection) -> Error {
    let text = rejection.body_text();
    let why = text
        .rsplit_once("target type: ")
        .map_or(text.as_str(), |(_, why)| why);
    Error::new(
        ErrorKind::InvalidInput,
        "the request cannot be read",
        why,
        "see /openapi.json for what the API takes",
    )
}

/// A query; what is wrong with it is told as a problem.
pub(super) struct Query<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Failed;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failed> {
        match axum::extract::Query::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(value)) => Ok(Self(value)),
            Err(rejection) => Err(Failed(Error::new(
                ErrorKind::InvalidInput,
                "the query cannot be read",
                rejection.body_text(),
                "see /openapi.json for what the API takes",
            ))),
        }
    }
}
