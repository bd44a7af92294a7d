//! Operations: what takes time.

use super::{
    Client,
    call::{Call, Listing, json, spoken},
    nouns::readable,
    path::ApiPath,
};
use crate::api::WAIT_MAX_SECONDS;
use futures::{FutureExt, future::BoxFuture};
use hyper::Method;
use std::{fmt, future::IntoFuture, time::Duration};
use tokio::time::Instant;
use vbm_core::{Error, ErrorKind, Operation, OperationId, Outcome};

/// How long an operation is waited for when nobody says otherwise.
pub const OPERATION_DEADLINE: Duration = Duration::from_secs(300);
/// How long one question may wait at the server, at most.
const POLL: Duration = Duration::from_secs(if WAIT_MAX_SECONDS < 20 {
    WAIT_MAX_SECONDS
} else {
    20
});
/// What an answer may take longer than it was asked to wait.
const POLL_SLACK: Duration = Duration::from_secs(10);
/// How long a server that cannot be reached is asked again: long enough for its restart.
const UNREACHABLE_MAX: Duration = Duration::from_secs(15);
/// The pause before it is asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// Operations.
#[derive(Clone, Debug)]
pub struct Operations(pub(super) Client);

readable!(Operations, "operations", "operation", Operation);

impl Operations {
    /// Waits until it is over. The wait goes on across a restart of the server.
    pub fn wait<'a>(&self, operation: OperationId) -> Wait<'a> {
        Wait {
            client: self.0.clone(),
            operation,
            deadline: OPERATION_DEADLINE,
            progress: Box::new(|_| {}),
        }
    }

    fn poll(&self, id: OperationId, wait: Duration, seen_steps: Option<usize>) -> Call<Operation> {
        let path = ApiPath::one("operations", "operation", &id.to_string()).map(|p| {
            p.query("wait_seconds", Some(wait.as_secs()))
                .query("seen_steps", seen_steps)
        });
        Call::new(&self.0, Method::GET, path, json).deadline(wait + POLL_SLACK)
    }
}

/// A wait for an operation: `.await` begins it and gives the operation once it is done.
///
/// # Errors
/// The error of the operation, when it failed; [`ErrorKind::DeadlineExceeded`] with [`Outcome::Unknown`] when it
/// was not over in time: it goes on; those of [`Call`].
///
/// # Cancel safety
/// Only reads: the operation goes on, and can be waited for again.
#[must_use = "a wait begins when it is awaited"]
pub struct Wait<'a> {
    client: Client,
    operation: OperationId,
    deadline: Duration,
    progress: Box<dyn FnMut(&Operation) + Send + 'a>,
}

impl<'a> Wait<'a> {
    /// How long to wait in all. [`OPERATION_DEADLINE`] when not said.
    pub const fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Calls `progress` with each state of the operation that is seen: at once, and when steps are added.
    pub fn on_progress(mut self, progress: impl FnMut(&Operation) + Send + 'a) -> Self {
        self.progress = Box::new(progress);
        self
    }

    async fn follow(mut self) -> Result<Operation, Error> {
        let end = Instant::now() + self.deadline;
        let operations = self.client.operations();
        let mut seen = None;
        let mut silent_since: Option<Instant> = None;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            // The first question does not wait: what is known is shown at once.
            let wait = if seen.is_none() {
                Duration::ZERO
            } else {
                left.min(POLL)
            };
            match operations.poll(self.operation, wait, seen).await {
                Ok(operation) => {
                    silent_since = None;
                    seen = Some(operation.steps.len());
                    (self.progress)(&operation);
                    if operation.state.is_final() {
                        return verdict(operation);
                    }
                }
                Err(error) if error.is_retryable() => {
                    let since = *silent_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= UNREACHABLE_MAX {
                        return Err(error);
                    }
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl<'a> IntoFuture for Wait<'a> {
    type Output = Result<Operation, Error>;
    type IntoFuture = BoxFuture<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        let (id, deadline) = (self.operation, self.deadline);
        async move {
            tokio::time::timeout(deadline, self.follow())
                .await
                .unwrap_or_else(|_passed| Err(not_over(id, deadline)))
        }
        .boxed()
    }
}

impl fmt::Debug for Wait<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wait")
            .field("operation", &self.operation)
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

/// An operation that is over: itself when it is done, its error when it failed.
fn verdict(operation: Operation) -> Result<Operation, Error> {
    match (operation.state.is_final(), operation.error.clone()) {
        (true, Some(error)) => Err(error),
        (true, None) if operation.state == vbm_core::OperationState::Failed => Err(Error::internal(
            format!("{} of {} failed", operation.verb, operation.target),
            "the operation does not say why",
        )),
        _ => Ok(operation),
    }
}

fn not_over(id: OperationId, deadline: Duration) -> Error {
    Error::new(
        ErrorKind::DeadlineExceeded,
        format!("operation {id} is not over yet"),
        format!("it takes longer than {}; it goes on", spoken(deadline)),
        format!("wait on with `vbm operation wait {id}`, longer with --timeout"),
    )
    .with_outcome(Outcome::Unknown)
}
