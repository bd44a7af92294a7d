//! Connections that never leave the process.
//!
//! A client holds only the door: the router, and with it the controller and its files, belongs to one task of the
//! server and is gone when the server is, however long clients live.

use crate::client::{BoxedIo, Connect};
use crate::http::unix::{DRAIN, serve_stream};
use axum::Router;
use std::io;
use tokio::{io::DuplexStream, sync::mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How much may be on its way in one direction, in bytes.
const BUFFER_BYTES: usize = 64 * 1024;
/// Connections that wait to be taken up.
const BACKLOG_MAX: usize = 64;

/// Opens connections to the server.
#[derive(Clone)]
pub(super) struct Door {
    knock: mpsc::Sender<DuplexStream>,
}

impl Door {
    /// A door, and the task that serves whoever comes through it until `stop`.
    pub(super) fn new(router: Router, stop: CancellationToken, tasks: &TaskTracker) -> Self {
        let (knock, mut knocks) = mpsc::channel(BACKLOG_MAX);
        tasks.spawn(async move {
            let connections = TaskTracker::new();
            loop {
                tokio::select! {
                    stream = knocks.recv() => match stream {
                        Some(stream) => drop(connections.spawn(serve_stream(stream, router.clone(), stop.clone()))),
                        None => break,
                    },
                    () = stop.cancelled() => break,
                }
            }
            connections.close();
            if tokio::time::timeout(DRAIN, connections.wait()).await.is_err() {
                tracing::warn!(left = connections.len(), "requests under way were broken off");
            }
        });
        Self { knock }
    }
}

#[async_trait::async_trait]
impl Connect for Door {
    async fn connect(&self) -> io::Result<BoxedIo> {
        let (here, there) = tokio::io::duplex(BUFFER_BYTES);
        let gone = |_| io::Error::new(io::ErrorKind::ConnectionRefused, "the server has shut down");
        self.knock.send(there).await.map_err(gone)?;
        Ok(Box::new(here))
    }

    fn place(&self) -> String {
        "the server in this process".to_owned()
    }
}
