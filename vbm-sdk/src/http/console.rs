//! Consoles as WebSockets: binary messages both ways.
//!
//! ```text
//!   browser  --GET /v1/console?token=..-------+
//!   CLI      --GET /v1/vms/{vm}/console-------+--> here <--console.open (stream), console.write (calls)--> agent
//! ```
//!
//! A browser cannot read why a WebSocket was refused, so it is let in and told by the close frame: its code is 4000
//! and the HTTP status of the failure, its reason is what and why. The CLI is told by problem JSON.

use super::{
    ApiState,
    doors::Visitor,
    problem::{self, Failed, Query},
};
use crate::{
    api::{ConsoleKind, ConsoleQuery},
    controller::ConsoleSession,
};
use axum::{
    Extension,
    body::Bytes,
    extract::{
        Path, State, WebSocketUpgrade,
        ws::{CloseFrame, Message, WebSocket, close_code, rejection::WebSocketUpgradeRejection},
    },
    response::Response,
};
use futures::{
    FutureExt, SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use std::time::Duration;
use tokio::time::Instant;
use vbm_core::{Error, ErrorKind};

/// The longest message that a client may send: what somebody types or pastes.
const MESSAGE_MAX_BYTES: usize = 64 * 1024;
/// A sign of life, so that nothing on the way drops an idle console.
const PING_EVERY: Duration = Duration::from_secs(20);
/// A client that gave no sign of life for so long is gone.
const SILENT_MAX: Duration = Duration::from_secs(65);
/// The longest reason that a close frame carries (RFC 6455 section 5.5: 125 bytes with the code).
const REASON_MAX_BYTES: usize = 120;
/// How long a client is waited for that shall hear why it is over.
const FAREWELL_MAX: Duration = Duration::from_secs(2);
/// Codes from here on are for applications (RFC 6455 section 7.4.2); the HTTP status is added.
const CODE_BASE: u16 = 4000;
/// What noVNC may ask for.
const SUBPROTOCOL: &str = "binary";

/// Opens the serial console.
#[utoipa::path(get, path = "/vms/{vm}/console", tag = "vms",
    params(("vm" = String, Path, description = "A name, an id, or the beginning of an id")),
    responses((status = 101, description = "A WebSocket: binary messages both ways"), (status = "default", body = crate::api::Problem)))]
pub(super) async fn console(
    State(api): State<ApiState>,
    Path(vm): Path<String>,
    visitor: Option<Extension<Visitor>>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Failed> {
    let upgrade = upgrade.map_err(no_socket)?;
    let session = api.controller.open_console(&vm, ConsoleKind::Serial).await?;
    let line = Line { api, visitor };
    Ok(upgrade
        .max_message_size(MESSAGE_MAX_BYTES)
        .on_upgrade(move |socket| line.carry(socket, session)))
}

/// Opens the console that a one-time token was given for. Failures come as close frames: their code is 4000 and the
/// HTTP status, their reason says why.
#[utoipa::path(get, path = "/console", tag = "vms", params(ConsoleQuery),
    responses((status = 101, description = "A WebSocket: binary messages both ways; subprotocol `binary` or none"),
        (status = "default", body = crate::api::Problem)))]
pub(super) async fn console_by_token(
    State(api): State<ApiState>,
    visitor: Option<Extension<Visitor>>,
    Query(query): Query<ConsoleQuery>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Failed> {
    let upgrade = upgrade.map_err(no_socket)?;
    let grant = api.doors.use_console_token(&query.token, api.controller.now());
    let line = Line { api, visitor };
    Ok(upgrade
        .protocols([SUBPROTOCOL])
        .max_message_size(MESSAGE_MAX_BYTES)
        .on_upgrade(move |socket| async move {
            let opened = match grant {
                Ok(grant) => {
                    line.api
                        .controller
                        .open_console(&grant.vm.to_string(), grant.kind)
                        .await
                }
                Err(e) => Err(e),
            };
            match opened {
                Ok(session) => line.carry(socket, session).await,
                Err(e) => farewell(&mut socket.split().0, &Over::Failed(e)).await,
            }
        }))
}

fn no_socket(rejection: WebSocketUpgradeRejection) -> Failed {
    Failed(Error::new(
        ErrorKind::InvalidInput,
        "the console cannot be opened",
        rejection.body_text(),
        "connect with a WebSocket (RFC 6455)",
    ))
}

/// Why a console is over.
#[derive(Debug)]
enum Over {
    /// The client closed it, or is gone: nobody is left to be told.
    Left,
    /// An end as it should be, in words.
    Ended(&'static str),
    /// The daemon ends.
    Away,
    Failed(Error),
}

/// What a connection stands on.
struct Line {
    api: ApiState,
    visitor: Option<Extension<Visitor>>,
}

impl Line {
    /// Carries bytes both ways until one side ends, tells the client why, and closes the session on its node.
    async fn carry(self, socket: WebSocket, session: ConsoleSession) {
        let (mut to_client, mut from_client) = socket.split();
        // Dropping what reads and writes loses nothing that was not asked for: nothing follows.
        let over = tokio::select! {
            over = self.typing(&mut from_client, &session) => over,
            over = showing(&mut to_client, &session) => over,
            () = self.api.controller.ends_streams() => Over::Away,
            () = self.session_over() => Over::Failed(Error::new(
                ErrorKind::PermissionDenied,
                "the console was closed",
                "your session is over",
                "log in again",
            )),
        };
        // First the node, so that the hypervisor's side is gone whether or not the client still listens.
        if let Err(e) = session.close().await {
            tracing::debug!(error = %e.inline(), "a console was not closed; its node closes it by itself");
        }
        farewell(&mut to_client, &over).await;
        tracing::debug!(?over, "a console ended");
    }

    async fn session_over(&self) {
        match &self.visitor {
            Some(Extension(visitor)) => visitor.leaves().await,
            None => std::future::pending().await,
        }
    }

    /// What the client sends goes to the VM, several messages at once when they wait.
    async fn typing(&self, from_client: &mut SplitStream<WebSocket>, session: &ConsoleSession) -> Over {
        let mut heard_at = Instant::now();
        loop {
            let Ok(first) = tokio::time::timeout_at(heard_at + SILENT_MAX, from_client.next()).await else {
                return Over::Left;
            };
            heard_at = Instant::now();
            let (mut typed, mut next) = (Vec::new(), Some(first));
            let mut left = false;
            while let Some(message) = next.take() {
                match message {
                    Some(Ok(Message::Binary(bytes))) => typed.extend_from_slice(&bytes),
                    Some(Ok(Message::Text(text))) => typed.extend_from_slice(text.as_bytes()),
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    Some(Ok(Message::Close(_)) | Err(_)) | None => left = true,
                }
                if !left && typed.len() < MESSAGE_MAX_BYTES {
                    next = from_client.next().now_or_never();
                }
            }
            if !typed.is_empty() {
                if let Some(Extension(visitor)) = &self.visitor {
                    visitor.is_here();
                }
                if let Err(e) = session.write(typed).await {
                    return Over::Failed(e);
                }
            }
            if left {
                return Over::Left;
            }
        }
    }
}

/// What the VM says goes to the client. One that takes it slowly stops the stream, and so the VM's side.
async fn showing(to_client: &mut SplitSink<WebSocket, Message>, session: &ConsoleSession) -> Over {
    let mut ping = tokio::time::interval(PING_EVERY);
    loop {
        // Cancel safe, both: a tick stays due, and what was not read is read next.
        let message = tokio::select! {
            output = session.read() => match output {
                Ok(Some(bytes)) => Message::Binary(bytes.into()),
                Ok(None) => return Over::Ended(match session.kind() {
                    ConsoleKind::Serial => "the VM is not running any more",
                    ConsoleKind::Vnc => "the VM closed its screen",
                }),
                Err(e) => return Over::Failed(e),
            },
            _ = ping.tick() => Message::Ping(Bytes::new()),
        };
        if to_client.send(message).await.is_err() {
            return Over::Left;
        }
    }
}

/// Tells the client why it is over. It may be gone already; then nobody needs the reason.
async fn farewell(to_client: &mut SplitSink<WebSocket, Message>, over: &Over) {
    let (code, reason) = match over {
        Over::Left => (close_code::NORMAL, String::new()),
        Over::Ended(why) => (close_code::NORMAL, (*why).to_owned()),
        Over::Away => (close_code::AWAY, "vbmd is ending".to_owned()),
        Over::Failed(e) => (CODE_BASE + problem::status(e.kind()).as_u16(), e.inline()),
    };
    let frame = CloseFrame {
        code,
        reason: short(reason).into(),
    };
    drop(tokio::time::timeout(FAREWELL_MAX, to_client.send(Message::Close(Some(frame)))).await);
}

/// As much of it as a close frame carries.
fn short(mut reason: String) -> String {
    while reason.len() > REASON_MAX_BYTES {
        reason.pop();
    }
    reason
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_cut_between_letters_whatever_they_are() {
        let reason = short("网络".repeat(50));
        assert!(reason.len() <= REASON_MAX_BYTES && reason.len() > REASON_MAX_BYTES - 3);
        assert_eq!(short("the VM is off".into()), "the VM is off");
    }
}
