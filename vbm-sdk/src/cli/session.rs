//! What every command has at hand: the client, the output, how long to wait.

use super::{args::Globals, human, output::Output, progress::Progress};
use crate::{
    client::{Client, Endpoint, OPERATION_DEADLINE},
    source::SystemClock,
};
use std::time::Duration;
use tokio::time::Instant;
use vbm_core::{Clock, Error, Operation, Timestamp};

#[derive(Debug)]
pub(super) struct Session<'a> {
    pub(super) client: Client,
    pub(super) out: &'a Output,
    /// Whether to wait for operations.
    waits: bool,
    /// How long was asked for, if it was.
    pub(super) timeout: Option<Duration>,
    until: Instant,
}

impl<'a> Session<'a> {
    pub(super) fn new(globals: &Globals, out: &'a Output) -> Result<Self, Error> {
        let timeout = globals.timeout.as_deref().map(human::parse_span).transpose()?;
        Ok(Self {
            client: Client::new(Endpoint::unix_any(&globals.socket)),
            out,
            waits: !globals.no_wait,
            timeout,
            until: Instant::now() + timeout.unwrap_or(OPERATION_DEADLINE),
        })
    }

    pub(super) fn now(&self) -> Timestamp {
        SystemClock.now()
    }

    /// How long this command may still take.
    pub(super) fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// Sees an operation through; `true` when it is done. With `--async` prints it instead and gives `false`.
    pub(super) async fn finish(&self, operation: &Operation) -> Result<bool, Error> {
        if !self.waits {
            return self.goes_on(operation).map(|()| false);
        }
        self.follow(operation).await.map(|_| true)
    }

    /// Prints an operation that is not waited for.
    fn goes_on(&self, operation: &Operation) -> Result<(), Error> {
        let id = operation.id.to_string();
        let text = format!(
            "{} {} goes on: operation {id}",
            operation.verb, operation.target.name
        );
        self.out.item(operation, &id, &text)?;
        self.out
            .hint(&format!("wait for it with `vbm operation wait {id}`"));
        Ok(())
    }

    /// Waits for an operation, showing its steps.
    pub(super) async fn follow(&self, operation: &Operation) -> Result<Operation, Error> {
        let mut progress = Progress::new(self.out);
        progress.operation(operation);
        let wait = self.client.operations().wait(operation.id).deadline(self.left());
        wait.on_progress(|operation| progress.operation(operation)).await
    }

    /// Does the same to each of several things: asks for all of it first, then sees all of it through. One failure
    /// keeps none of the others from being done; all failures are printed but the last, which is returned.
    pub(super) async fn each<F>(
        &self,
        names: &[String],
        begin: impl Fn(String) -> F,
        told: impl Fn(&Operation) -> String,
    ) -> Result<(), Error>
    where
        F: Future<Output = Result<Operation, Error>>,
    {
        let mut failures = Failures::new(self.out);
        let mut begun = Vec::new();
        for name in names {
            begun.extend(failures.sift(begin(name.clone()).await));
        }
        if !self.waits {
            self.begun(&begun)?;
            return failures.verdict();
        }
        let mut done = Vec::new();
        for operation in &begun {
            if let Some(operation) = failures.sift(self.follow(operation).await) {
                if !self.out.is_for_programs() {
                    self.out
                        .done(&operation, &operation.target.name, &told(&operation))?;
                }
                done.push(operation);
            }
        }
        if self.out.is_for_programs() {
            self.out.item(&done, "", "")?;
        }
        failures.verdict()
    }

    fn begun(&self, begun: &[Operation]) -> Result<(), Error> {
        if self.out.is_for_programs() {
            return self.out.item(&begun, "", "");
        }
        begun.iter().try_for_each(|operation| self.goes_on(operation))
    }

    /// The same for what is done at once. Programs get the names.
    pub(super) async fn each_at_once<F>(
        &self,
        names: &[String],
        act: impl Fn(String) -> F,
        told: impl Fn(&str) -> String,
    ) -> Result<(), Error>
    where
        F: Future<Output = Result<(), Error>>,
    {
        let mut failures = Failures::new(self.out);
        let mut done = Vec::new();
        for name in names {
            if failures.sift(act(name.clone()).await).is_some() {
                if !self.out.is_for_programs() {
                    self.out.done(name, name, &told(name))?;
                }
                done.push(name);
            }
        }
        if self.out.is_for_programs() {
            self.out.item(&done, "", "")?;
        }
        failures.verdict()
    }
}

/// The failures of several things done: each is printed when the next one comes, the last is returned.
struct Failures<'a> {
    out: &'a Output,
    last: Option<Error>,
}

impl<'a> Failures<'a> {
    const fn new(out: &'a Output) -> Self {
        Self { out, last: None }
    }

    fn sift<T>(&mut self, result: Result<T, Error>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                if let Some(before) = self.last.replace(error) {
                    self.out.error(&before);
                }
                None
            }
        }
    }

    fn verdict(self) -> Result<(), Error> {
        self.last.map_or(Ok(()), Err)
    }
}
