//! The client against a server that each test makes up: over a real unix socket, and in process.

mod calls;
mod console;
mod garbage;
mod streams;

use super::{BoxedIo, Client, Connect, Endpoint};
use crate::api::Problem;
use async_trait::async_trait;
use axum::{Json, Router, http::StatusCode, response::IntoResponse};
use std::{io, sync::Arc};
use tokio::{io::DuplexStream, sync::mpsc, task::JoinHandle};
use vbm_core::{Error, ErrorKind, Operation, OperationState, Step, StepState, Timestamp};

/// A server in this process; it ends with this value.
pub(super) struct Fake {
    pub(super) client: Client,
    task: JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How many bytes a connection in process holds.
const PIPE_BYTES: usize = 64 << 10;

struct Pipes(mpsc::Sender<DuplexStream>);

#[async_trait]
impl Connect for Pipes {
    async fn connect(&self) -> io::Result<BoxedIo> {
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        self.0
            .send(theirs)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
        Ok(Box::new(ours))
    }
    fn place(&self) -> String {
        "this process".into()
    }
}

struct PipeListener(mpsc::Receiver<DuplexStream>);

impl axum::serve::Listener for PipeListener {
    type Io = DuplexStream;
    type Addr = ();
    async fn accept(&mut self) -> (DuplexStream, ()) {
        match self.0.recv().await {
            Some(pipe) => (pipe, ()),
            None => std::future::pending().await,
        }
    }
    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

pub(super) fn serve(routes: Router) -> Fake {
    let (pipes, incoming) = mpsc::channel(8);
    let task = tokio::spawn(async move { axum::serve(PipeListener(incoming), routes).await.unwrap() });
    Fake {
        client: Client::new(Endpoint::in_process(Arc::new(Pipes(pipes)))),
        task,
    }
}

pub(super) fn refuse(status: u16, error: Error) -> axum::response::Response {
    let problem = Problem {
        type_: format!("urn:vbm:problem:{}", error.kind()),
        title: error.what().into(),
        status,
        detail: error.why().into(),
        error,
    };
    (StatusCode::from_u16(status).unwrap(), Json(problem)).into_response()
}

pub(super) fn no_vm() -> axum::response::Response {
    refuse(404, Error::not_found("vm", "web1"))
}

pub(super) fn busy() -> axum::response::Response {
    refuse(
        503,
        Error::new(ErrorKind::Unavailable, "busy", "it restarts", "wait"),
    )
}

/// An operation with so many steps.
pub(super) fn operation(steps: usize, state: OperationState) -> Operation {
    let mut operation = Operation {
        id: vbm_core::OperationId::from_uuid(uuid::Uuid::from_u128(7)),
        verb: "launch".into(),
        target: vbm_core::ObjectRef::new(vbm_core::Kind::Vm, 1, "web1"),
        state,
        steps: Vec::new(),
        generation: vbm_core::Generation(1),
        created_at: Timestamp::from_micros(0),
        ended_at: None,
        error: None,
        trace: None,
    };
    for n in 0..steps {
        operation.steps.push(Step {
            name: format!("step {n}"),
            state: StepState::Done,
            at: Timestamp::from_micros(0),
        });
    }
    operation
}
