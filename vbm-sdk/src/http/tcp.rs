//! The TCP port that browsers are served on. Loopback only: there is no TLS yet.
//!
//! Everybody on this machine can connect, so all is bounded: how many connections there are, how long the head of
//! a request may take, and how long a browser may leave an answer unread before it is cut off.

use super::unix::{ACCEPT_RETRY, DRAIN, serve_stream};
use axum::Router;
use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpListener,
    sync::Semaphore,
    time::Sleep,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use vbm_core::{Error, ErrorKind, Result};

/// The most connections at once; further ones wait.
const CONNECTIONS_MAX: usize = 256;
/// A connection that takes nothing of an answer for so long is cut off.
const WRITE_STALL_MAX: Duration = Duration::from_secs(30);

/// A bound port.
#[derive(Debug)]
pub(crate) struct Port {
    listener: TcpListener,
    address: SocketAddr,
}

fn cannot_serve(address: SocketAddr, kind: ErrorKind, why: impl Into<String>, fix: &str) -> Error {
    Error::new(kind, format!("cannot serve the web page on {address}"), why, fix)
}

/// Refuses what is not the loopback interface.
pub(crate) fn must_be_loopback(address: SocketAddr) -> Result<()> {
    if address.ip().is_loopback() {
        return Ok(());
    }
    Err(cannot_serve(
        address,
        ErrorKind::InvalidInput,
        "it is not a loopback address, and without TLS everybody on the way could read along and take over sessions",
        "use 127.0.0.1; from another machine, reach it with `ssh -L 8480:127.0.0.1:8480 HOST`",
    ))
}

impl Port {
    pub(crate) async fn bind(address: SocketAddr) -> Result<Self> {
        must_be_loopback(address)?;
        let bind = async {
            let listener = TcpListener::bind(address).await?;
            let address = listener.local_addr()?;
            Ok::<_, io::Error>(Self { listener, address })
        };
        bind.await.map_err(|e| {
            let kind = match e.kind() {
                io::ErrorKind::AddrInUse => ErrorKind::Conflict,
                io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
                _ => ErrorKind::Unavailable,
            };
            let fix = "choose another port with --web, or 0 for one that is free";
            cannot_serve(address, kind, e.to_string(), fix)
        })
    }

    /// With the port that the kernel chose, where it was asked to.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop`, then lets requests under way end.
    pub(crate) async fn serve(self, router: Router, stop: CancellationToken) {
        let connections = TaskTracker::new();
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let next = async {
                let place = Arc::clone(&room).acquire_owned().await;
                (place, self.listener.accept().await)
            };
            let (place, accepted) = tokio::select! {
                next = next => next,
                () = stop.cancelled() => break,
            };
            let (Ok(place), Ok((stream, _))) = (place, accepted) else {
                tracing::warn!("a connection could not be accepted");
                tokio::select! {
                    () = tokio::time::sleep(ACCEPT_RETRY) => continue,
                    () = stop.cancelled() => break,
                }
            };
            if let Err(e) = stream.set_nodelay(true) {
                tracing::debug!(error = %e, "a connection will be slow");
            }
            // An upgraded connection outlives its request: the place goes with the stream.
            let stream = Guarded {
                stream,
                stalled: None,
                _place: place,
            };
            connections.spawn(serve_stream(stream, router.clone(), stop.clone()));
        }
        connections.close();
        if tokio::time::timeout(DRAIN, connections.wait()).await.is_err() {
            tracing::warn!(left = connections.len(), "requests under way were broken off");
        }
    }
}

/// A connection that ends when the other side takes nothing for too long.
struct Guarded<S, P> {
    stream: S,
    /// Runs out while a write waits.
    stalled: Option<Pin<Box<Sleep>>>,
    _place: P,
}

impl<S, P> Guarded<S, P> {
    fn look<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.stalled = None;
            return polled;
        }
        let stalled = self
            .stalled
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(WRITE_STALL_MAX)));
        match stalled.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "cut off: the client takes nothing of its answer",
            ))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin, P: Unpin> AsyncRead for Guarded<S, P> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin, P: Unpin> AsyncWrite for Guarded<S, P> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.look(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        self.look(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.look(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.look(cx, polled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn guarded(buffer: usize) -> (Guarded<tokio::io::DuplexStream, ()>, tokio::io::DuplexStream) {
        let (stream, other) = tokio::io::duplex(buffer);
        let guarded = Guarded {
            stream,
            stalled: None,
            _place: (),
        };
        (guarded, other)
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_cut_off_and_one_that_is_slow_is_not() {
        let (mut ours, mut theirs) = guarded(1);
        let slow = async {
            let mut byte = [0];
            for _ in 0..4 {
                tokio::time::sleep(WRITE_STALL_MAX / 2).await;
                theirs.read_exact(&mut byte).await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(ours.write_all(b"slow"), slow);
        written.unwrap();
        ours.write_all(b"f").await.unwrap();
        let error = ours.write_all(b"x").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn only_loopback_is_served() {
        for address in ["127.0.0.1:0", "127.9.9.9:80", "[::1]:80"] {
            must_be_loopback(address.parse().unwrap()).unwrap();
        }
        for address in ["0.0.0.0:80", "192.0.2.1:80", "[::]:80", "[2001:db8::1]:80"] {
            let error = must_be_loopback(address.parse().unwrap()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(
                error.why().contains("TLS") && error.fix().contains("ssh -L"),
                "{error}"
            );
        }
    }
}
