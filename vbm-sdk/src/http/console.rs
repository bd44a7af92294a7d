//! The serial console as a WebSocket: binary messages both ways.
//!
//! ```text
//!   browser, CLI <--WebSocket--> here <--console.read (long poll), console.write--> agent
//! ```

use super::{ApiState, problem::Failed};
use crate::controller::ConsoleSession;
use axum::{
    extract::{
        Path, State, WebSocketUpgrade,
        ws::{CloseFrame, Message, WebSocket, close_code},
    },
    response::Response,
};
use futures::{SinkExt, StreamExt, stream::SplitStream};
use std::time::Duration;
use vbm_core::Error;

/// The longest message that a client may send: what somebody types or pastes.
const MESSAGE_MAX_BYTES: usize = 64 * 1024;
/// A sign of life, so that nothing on the way drops an idle console.
const PING_EVERY: Duration = Duration::from_secs(20);
/// The longest reason that a close frame carries (RFC 6455 section 5.5: 125 bytes with the code).
const REASON_MAX_BYTES: usize = 120;

/// Opens the serial console.
#[utoipa::path(get, path = "/vms/{vm}/console", tag = "vms",
    params(("vm" = String, Path, description = "A name, an id, or the beginning of an id")),
    responses((status = 101, description = "A WebSocket: binary messages both ways"), (status = "default", body = crate::api::Problem)))]
pub(super) async fn console(
    State(api): State<ApiState>,
    Path(vm): Path<String>,
    upgrade: WebSocketUpgrade,
) -> Result<Response, Failed> {
    let session = api.controller.open_console(&vm).await?;
    Ok(upgrade.max_message_size(MESSAGE_MAX_BYTES).on_upgrade(move |socket| async move {
        let closed = serve(socket, &session).await;
        if let Err(e) = session.close().await {
            tracing::debug!(error = %e.inline(), "a console was not closed; its node closes it by itself");
        }
        tracing::debug!(?closed, "a console ended");
    }))
}

/// Carries bytes both ways until one side ends; tells the client why.
async fn serve(socket: WebSocket, session: &ConsoleSession) -> Result<(), Error> {
    let (mut to_client, mut from_client) = socket.split();
    let typed = typing(&mut from_client, session);
    let shown = async {
        let mut ping = tokio::time::interval(PING_EVERY);
        loop {
            // A dropped read loses nothing that was not asked for: the next poll continues the session.
            let output = session.read().await?;
            if output.ended {
                return Ok::<&str, Error>("the VM is not running any more");
            }
            if !output.bytes.0.is_empty()
                && to_client
                    .send(Message::Binary(output.bytes.0.into()))
                    .await
                    .is_err()
            {
                return Ok("the client is gone");
            }
            if futures::FutureExt::now_or_never(ping.tick()).is_some()
                && to_client.send(Message::Ping(Default::default())).await.is_err()
            {
                return Ok("the client is gone");
            }
        }
    };
    let (code, reason, result) = tokio::select! {
        done = typed => match done {
            Ok(()) => return Ok(()),
            Err(e) => (close_code::ERROR, e.inline(), Err(e)),
        },
        done = shown => match done {
            Ok(reason) => (close_code::NORMAL, reason.to_owned(), Ok(())),
            Err(e) => (close_code::ERROR, e.inline(), Err(e)),
        },
    };
    let mut reason = reason;
    while reason.len() > REASON_MAX_BYTES {
        reason.pop();
    }
    // The client may be gone already; then nobody needs the reason.
    drop(
        to_client
            .send(Message::Close(Some(CloseFrame {
                code,
                reason: reason.into(),
            })))
            .await,
    );
    result
}

async fn typing(from_client: &mut SplitStream<WebSocket>, session: &ConsoleSession) -> Result<(), Error> {
    while let Some(Ok(message)) = from_client.next().await {
        match message {
            Message::Binary(bytes) => session.write(bytes.to_vec()).await?,
            Message::Text(text) => session.write(text.as_bytes().to_vec()).await?,
            Message::Close(_) => return Ok(()),
            Message::Ping(_) | Message::Pong(_) => {}
        }
    }
    Ok(())
}
