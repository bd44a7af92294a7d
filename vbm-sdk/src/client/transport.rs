//! One request on one connection.
//!
//! Each call opens a connection of its own: on a unix socket and in process that costs microseconds, and no
//! call can ever find a connection that the server closed in the meantime. The task that drives a connection
//! is owned by its [`Driver`] and ends with it.

use super::endpoint::Endpoint;
use crate::api::Problem;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response, StatusCode,
    body::{Frame, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use std::io;
use tokio::task::JoinHandle;
use vbm_core::{Error, ErrorKind, Outcome};

/// The largest answer that is read into memory, in bytes.
pub const ANSWER_MAX_BYTES: usize = 64 << 20;
/// The largest problem JSON that is read, in bytes.
const PROBLEM_MAX_BYTES: usize = 1 << 20;

/// What a request carries.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

pub(super) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

pub(super) fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

pub(super) fn streamed(chunks: impl futures::Stream<Item = io::Result<Bytes>> + Send + 'static) -> Body {
    use futures::TryStreamExt;
    BodyExt::boxed_unsync(StreamBody::new(chunks.map_ok(Frame::data)))
}

/// Owns the task that moves a connection's bytes; the task ends when this is dropped.
#[derive(Debug)]
pub(super) struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A good answer (2xx, or 101) whose body is still to be read.
pub(super) struct Answer {
    pub(super) response: Response<Incoming>,
    pub(super) driver: Driver,
}

/// Sends a request and reads the head of its answer. An answer that is a failure comes back as the error it carries.
pub(super) async fn send(endpoint: &Endpoint, request: Request<Body>) -> Result<Answer, Error> {
    let reads_only = request.method().is_safe();
    let io = TokioIo::new(endpoint.open().await?);
    let lost = |error: &hyper::Error| cut_off(&endpoint.place(), reads_only, error);
    let (mut sender, connection) = http1::handshake(io).await.map_err(|e| lost(&e))?;
    let driver = Driver(tokio::spawn(async move {
        // Whoever waits for the answer gets the same failure; nobody else could use it.
        let _ended: Result<(), hyper::Error> = connection.with_upgrades().await;
    }));
    let response = sender.send_request(request).await.map_err(|e| lost(&e))?;
    let status = response.status();
    if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(Answer { response, driver });
    }
    let body = Limited::new(response.into_body(), PROBLEM_MAX_BYTES)
        .collect()
        .await;
    Err(refusal(
        status,
        body.map(|b| b.to_bytes()).unwrap_or_default().as_ref(),
    ))
}

impl Answer {
    /// Reads the whole body.
    pub(super) async fn bytes(self, place: &str, reads_only: bool) -> Result<Bytes, Error> {
        let Self { response, driver } = self;
        let body = Limited::new(response.into_body(), ANSWER_MAX_BYTES)
            .collect()
            .await;
        drop(driver);
        match body {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) => Err(cut_off(place, reads_only, error.as_ref())),
        }
    }
}

/// A connection that broke after the request may have been sent: what was asked may have been done.
pub(super) fn cut_off(place: &str, reads_only: bool, error: &(dyn std::error::Error + 'static)) -> Error {
    let (fix, outcome) = if reads_only {
        ("look whether vbmd runs, then try again", Outcome::NotApplied)
    } else {
        ("look whether it was done before you repeat it", Outcome::Unknown)
    };
    let why = root_cause(error);
    Error::new(
        ErrorKind::Unavailable,
        format!("the connection to vbmd at {place} was lost"),
        why,
        fix,
    )
    .with_outcome(outcome)
}

/// The innermost reason: the outer ones say `error` in other words.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// What an answer with a bad status means.
fn refusal(status: StatusCode, body: &[u8]) -> Error {
    if let Ok(problem) = serde_json::from_slice::<Problem>(body) {
        return problem.error;
    }
    let kind = match status.as_u16() {
        400 | 411 | 415 | 422 => ErrorKind::InvalidInput,
        401 | 403 => ErrorKind::PermissionDenied,
        // A missing thing is told by problem JSON: without it, the path itself is unknown to this server.
        404 | 405 | 501 => ErrorKind::Unsupported,
        408 | 504 => ErrorKind::DeadlineExceeded,
        409 => ErrorKind::Conflict,
        413 | 429 | 507 => ErrorKind::Exhausted,
        502 | 503 => ErrorKind::Unavailable,
        _ => ErrorKind::Internal,
    };
    let said = String::from_utf8_lossy(body);
    let said = said.lines().next().unwrap_or_default().trim();
    let why = if said.is_empty() {
        format!("it answered with HTTP status {status}")
    } else {
        format!("it answered with HTTP status {status}: {said:.200}")
    };
    Error::new(
        kind,
        "vbmd refused the request",
        why,
        "compare the versions with `vbm version`, and look into the log of vbmd",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_becomes_the_error_it_carries() {
        let error = Error::not_found("vm", "web1");
        let problem = Problem {
            type_: "urn:vbm:problem:not-found".into(),
            title: error.what().into(),
            status: 404,
            detail: error.why().into(),
            error: error.clone(),
        };
        let body = serde_json::to_vec(&problem).unwrap();
        assert_eq!(refusal(StatusCode::NOT_FOUND, &body), error);
    }

    #[test]
    fn an_answer_that_is_no_problem_json_still_has_a_kind_and_its_text() {
        let error = refusal(StatusCode::NOT_FOUND, b"nothing here\nsecond line");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.why().ends_with("nothing here"), "{}", error.why());
        assert_eq!(
            refusal(StatusCode::BAD_GATEWAY, b"").kind(),
            ErrorKind::Unavailable
        );
        assert_eq!(
            refusal(StatusCode::IM_A_TEAPOT, b"\xff").kind(),
            ErrorKind::Internal
        );
    }

    #[test]
    fn a_cut_leaves_the_outcome_open_only_where_something_could_have_changed() {
        let error = io::Error::from(io::ErrorKind::ConnectionReset);
        assert_eq!(cut_off("x", true, &error).outcome(), Outcome::NotApplied);
        assert_eq!(cut_off("x", false, &error).outcome(), Outcome::Unknown);
    }
}
