//! A serial console: bytes both ways in the binary messages of a WebSocket (RFC 6455).

use super::{
    Client,
    call::{bad_request, too_late},
    path::ApiPath,
    transport::{self, Driver},
};
use base64::Engine as _;
use bytes::Bytes;
use futures::{Sink, Stream};
use hyper::{Method, Request, StatusCode, header, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use std::{
    fmt, io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self, Message,
        handshake::derive_accept_key,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};
use vbm_core::{Error, ErrorKind};

/// The largest message either way, in bytes.
const MESSAGE_MAX_BYTES: usize = 1 << 20;
/// The most that one write puts into a message, in bytes.
const WRITE_MAX_BYTES: usize = 16 << 10;

/// An open console. What the guest writes is read from it; what is written to it the guest reads.
///
/// The end of what is read means that the VM or the server has ended; a failed read, that the console broke off. [`shutdown`](tokio::io::AsyncWriteExt::shutdown)
/// closes it; dropping it closes it as well, without a word.
///
/// # Cancel safety
/// Reads are cancel safe: no byte is lost. A dropped write has written either all of its message or none.
pub struct Console {
    socket: WebSocketStream<TokioIo<Upgraded>>,
    unread: Bytes,
    ended: bool,
    _driver: Driver,
}

pub(super) async fn open(client: &Client, path: ApiPath) -> Result<Console, Error> {
    let key = base64::engine::general_purpose::STANDARD.encode(client.shared.ids.next().as_bytes());
    let request = Request::builder()
        .method(Method::GET)
        .uri(path.into_text())
        .header(header::HOST, "vbmd")
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, &key)
        .body(transport::empty())
        .map_err(|e| bad_request(&e))?;
    tokio::time::timeout(client.deadline(), upgrade(client, request, &key))
        .await
        .map_err(|_passed| too_late(true, client.deadline()))?
}

async fn upgrade(client: &Client, request: Request<transport::Body>, key: &str) -> Result<Console, Error> {
    let answer = transport::send(client.endpoint(), request).await?;
    let accepted = answer
        .response
        .headers()
        .get(header::SEC_WEBSOCKET_ACCEPT)
        .is_some_and(|accept| accept.as_bytes() == derive_accept_key(key.as_bytes()).as_bytes());
    if answer.response.status() != StatusCode::SWITCHING_PROTOCOLS || !accepted {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "the console cannot be opened",
            "the server does not answer as a WebSocket (RFC 6455) does",
            "use a `vbm` and a `vbmd` of the same version: compare with `vbm version`",
        ));
    }
    let place = client.endpoint().place();
    let io = hyper::upgrade::on(answer.response)
        .await
        .map_err(|e| transport::cut_off(&place, true, &e))?;
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_MAX_BYTES))
        .max_frame_size(Some(MESSAGE_MAX_BYTES));
    Ok(Console {
        socket: WebSocketStream::from_raw_socket(TokioIo::new(io), Role::Client, Some(config)).await,
        unread: Bytes::new(),
        ended: false,
        _driver: answer.driver,
    })
}

impl AsyncRead for Console {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.unread.is_empty() && !self.ended {
            match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => self.unread = bytes,
                Some(Ok(Message::Text(text))) => self.unread = text.into(),
                Some(Ok(Message::Close(frame))) => {
                    self.ended = true;
                    if let Some(reason) = frame.and_then(failure) {
                        return Poll::Ready(Err(io::Error::other(reason)));
                    }
                }
                Some(Err(tungstenite::Error::ConnectionClosed)) | None => self.ended = true,
                // A server that ends without a word of farewell: the guest's last bytes were read before.
                Some(Err(tungstenite::Error::Protocol(
                    tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
                ))) => self.ended = true,
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(as_io(error))),
            }
        }
        let count = self.unread.len().min(buf.remaining());
        buf.put_slice(&self.unread.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Console {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(Pin::new(&mut self.socket).poll_ready(cx)).map_err(as_io)?;
        let part = &bytes[..bytes.len().min(WRITE_MAX_BYTES)];
        let message = Message::Binary(Bytes::copy_from_slice(part));
        Pin::new(&mut self.socket).start_send(message).map_err(as_io)?;
        Poll::Ready(Ok(part.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx).map_err(as_io)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match ready!(Pin::new(&mut self.socket).poll_close(cx)) {
            Err(tungstenite::Error::ConnectionClosed) | Ok(()) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(as_io(error))),
        }
    }
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console")
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

/// Why the server closed it, unless that was the ordinary end (RFC 6455 section 7.4.1).
fn failure(frame: CloseFrame) -> Option<String> {
    let ordinary = matches!(
        frame.code,
        CloseCode::Normal | CloseCode::Away | CloseCode::Status
    );
    (!ordinary).then(|| frame.reason.to_string())
}

fn as_io(error: tungstenite::Error) -> io::Error {
    match error {
        tungstenite::Error::Io(error) => error,
        tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed => {
            io::ErrorKind::BrokenPipe.into()
        }
        other => io::Error::other(other.to_string()),
    }
}
