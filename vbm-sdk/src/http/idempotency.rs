//! Idempotency keys: a request that is sent again gives the recorded answer and does nothing.
//!
//! A client that never heard an answer sends the same request with the same `Idempotency-Key`. The answer is
//! recorded in the store after the request was done; two of the same key at the same time run one after the other. A
//! key that comes with another request is refused.
//!
//! Limit: a daemon that dies between doing and recording does the request again when it is repeated; names, addresses
//! and MACs are unique all the same, and what nodes are told to do once carries the key on.

use super::{ApiState, BODY_MAX_BYTES, problem::Failed};
use crate::records::{Answer, Records};
use axum::{
    body::{Body, Bytes, to_bytes},
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use sha2::{Digest as _, Sha256};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};
use vbm_core::{Error, ErrorKind};

/// The header (as in the IETF draft "The Idempotency-Key HTTP Header Field").
const HEADER: &str = "idempotency-key";
/// The longest key.
const KEY_MAX_BYTES: usize = 255;

/// Requests under way, by key.
#[derive(Clone, Debug, Default)]
pub(super) struct UnderWay {
    keys: Arc<Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>>,
}

impl UnderWay {
    fn of(&self, key: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        keys.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(keys.entry(key.to_owned()).or_default())
    }
}

/// Runs a request, or gives the answer that it got before.
pub(super) async fn layer(
    State((api, under_way)): State<(ApiState, UnderWay)>,
    request: Request,
    next: Next,
) -> Response {
    let changes = matches!(
        *request.method(),
        Method::POST | Method::PUT | Method::PATCH | Method::DELETE
    );
    // An upload is named by its content, and a secret must not be written down: both may be repeated as they are.
    let path = request.uri().path();
    let plain = ["/blobs", "/console-tokens", "/web/links"]
        .iter()
        .any(|end| path.ends_with(end));
    match key_of(request.headers()) {
        Err(e) => Failed(e).into_response(),
        Ok(Some(key)) if changes && !plain => once(&api, &under_way, key, request, next)
            .await
            .unwrap_or_else(IntoResponse::into_response),
        Ok(_) => next.run(request).await,
    }
}

fn key_of(headers: &HeaderMap) -> Result<Option<String>, Error> {
    let Some(value) = headers.get(HEADER) else {
        return Ok(None);
    };
    match value.to_str() {
        Ok(key) if !key.is_empty() && key.len() <= KEY_MAX_BYTES => Ok(Some(key.to_owned())),
        _ => Err(Error::new(
            ErrorKind::InvalidInput,
            "the Idempotency-Key cannot be used",
            "it is empty, longer than 255 bytes, or not plain ASCII",
            "send a UUID",
        )),
    }
}

async fn once(
    api: &ApiState,
    under_way: &UnderWay,
    key: String,
    request: Request,
    next: Next,
) -> Result<Response, Failed> {
    let lock = under_way.of(&key);
    let _alone = lock.lock().await;
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, BODY_MAX_BYTES).await.map_err(|e| {
        Failed(Error::new(
            ErrorKind::InvalidInput,
            "the request cannot be read",
            e.to_string(),
            "send at most 1 MiB",
        ))
    })?;
    let mut hash = Sha256::new();
    for part in [
        parts.method.as_str().as_bytes(),
        parts.uri.to_string().as_bytes(),
        &body,
    ] {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    let fingerprint = hex::encode(hash.finalize());
    let records: &Records = api.controller.records();
    if let Some(answer) = records.answer(&key).await? {
        if answer.fingerprint != fingerprint {
            return Err(Failed(Error::new(
                ErrorKind::Conflict,
                "the Idempotency-Key was used for another request",
                "the same key came with another method, path or body",
                "use a new key for a new request",
            )));
        }
        let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        return Ok((status, [(header::CONTENT_TYPE, answer.content_type)], answer.body).into_response());
    }
    let request = Request::from_parts(parts, Body::from(body));
    let response = crate::controller::keyed(key.clone(), next.run(request)).await;
    // What failed on our side may be tried again with the same key.
    if response.status().is_server_error() {
        return Ok(response);
    }
    let (parts, body) = response.into_parts();
    let body: Bytes = to_bytes(body, usize::MAX)
        .await
        .map_err(|e| Failed(Error::internal("an answer cannot be read", e.to_string())))?;
    let content_type = parts
        .headers
        .get(header::CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default()
        .to_owned();
    let answer = Answer {
        fingerprint,
        status: parts.status.as_u16(),
        content_type,
        body: String::from_utf8_lossy(&body).into_owned(),
        at: api.controller.now(),
    };
    if let Err(e) = records.record_answer(&key, &answer).await {
        tracing::warn!(error = %e.inline(), "an answer was not recorded; the same request would be done again");
    }
    Ok(Response::from_parts(parts, Body::from(body)))
}
