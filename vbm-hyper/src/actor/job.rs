//! A job that an actor runs: work with somebody who waits for its result.

use crate::{Error, Result};
use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::sync::oneshot;

/// Where the result of a command goes.
pub(super) type Reply<T> = oneshot::Sender<Result<T>>;

/// Answers; nobody may be listening any more, and that is their business.
pub(super) fn answer<T>(reply: Reply<T>, result: Result<T>) {
    if reply.send(result).is_err() {
        tracing::trace!("nobody waited for the answer");
    }
}

/// A job of any result.
pub(super) trait AnyJob: Send {
    /// Goes on with the work; when it is done, answers and says whether it succeeded.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<bool>;
    /// Ends the work, or never begins it, and tells who waits why.
    fn refuse(self: Box<Self>, why: Error);
}

/// Work whose result is a `T`.
pub(super) struct Typed<T> {
    work: Pin<Box<dyn Future<Output = Result<T>> + Send>>,
    reply: Option<Reply<T>>,
}

impl<T> Typed<T> {
    pub(super) fn new(work: impl Future<Output = Result<T>> + Send + 'static, reply: Reply<T>) -> Self {
        Self {
            work: Box::pin(work),
            reply: Some(reply),
        }
    }
}

impl<T: Send> AnyJob for Typed<T> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let result = ready!(self.work.as_mut().poll(cx));
        let success = result.is_ok();
        if let Some(reply) = self.reply.take() {
            answer(reply, result);
        }
        Poll::Ready(success)
    }

    fn refuse(self: Box<Self>, why: Error) {
        let Self { work, reply } = *self;
        drop(work);
        if let Some(reply) = reply {
            answer(reply, Err(why));
        }
    }
}
