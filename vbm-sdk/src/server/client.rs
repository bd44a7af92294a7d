//! Connections that never leave the process.

use crate::client::{BoxedIo, Connect};
use crate::http::unix::serve_stream;
use axum::Router;
use std::io;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How much may be on its way in one direction, in bytes.
const BUFFER_BYTES: usize = 64 * 1024;

/// Opens connections to a router.
pub(super) struct InProcess {
    router: Router,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl InProcess {
    pub(super) const fn new(router: Router, stop: CancellationToken, tasks: TaskTracker) -> Self {
        Self { router, stop, tasks }
    }
}

#[async_trait::async_trait]
impl Connect for InProcess {
    async fn connect(&self) -> io::Result<BoxedIo> {
        if self.stop.is_cancelled() {
            return Err(io::Error::new(io::ErrorKind::ConnectionRefused, "the server has shut down"));
        }
        let (here, there) = tokio::io::duplex(BUFFER_BYTES);
        self.tasks.spawn(serve_stream(there, self.router.clone(), self.stop.clone()));
        Ok(Box::new(here))
    }

    fn place(&self) -> String {
        "the server in this process".to_owned()
    }
}
