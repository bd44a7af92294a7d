//! The replies of a broadcast.

use super::{Answer, Flight, FlightState};
use crate::{Fate, Method};
use futures::Stream;
use std::{
    collections::BTreeSet,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::{
    sync::mpsc,
    time::{Sleep, sleep_until},
};
use vbm_core::NodePath;

/// The replies of a broadcast as they come: who, and what they said. Ends when all who were present have answered,
/// when the quorum of good replies is there, or at the deadline. Then [`Replies::silent`] names who did not answer.
#[must_use = "dropping the replies cancels the broadcast"]
pub struct Replies<M> {
    flight: Flight,
    answers: mpsc::Receiver<Answer>,
    deadline: Pin<Box<Sleep>>,
    waiting: BTreeSet<NodePath>,
    answered: BTreeSet<NodePath>,
    missing_for_quorum: Option<usize>,
    over: bool,
    /// Who said that they had begun, once it is over.
    begun: BTreeSet<NodePath>,
    method: PhantomData<fn() -> M>,
}

/// A member that was present and has not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unanswered {
    /// Who.
    pub path: NodePath,
    /// Whether it said that it had begun. Without such a sign it may still have.
    pub started: bool,
}

impl<M: Method> Replies<M> {
    pub(super) fn new(
        flight: Flight,
        answers: mpsc::Receiver<Answer>,
        members: Vec<NodePath>,
        quorum: Option<usize>,
    ) -> Self {
        Self {
            deadline: Box::pin(sleep_until(flight.deadline)),
            flight,
            answers,
            waiting: members.into_iter().collect(),
            answered: BTreeSet::new(),
            missing_for_quorum: quorum,
            over: false,
            begun: BTreeSet::new(),
            method: PhantomData,
        }
    }

    /// Who was present and has not answered so far, sorted.
    pub fn silent(&self) -> Vec<NodePath> {
        self.waiting.iter().cloned().collect()
    }

    /// The same, with what is known of each.
    pub fn unanswered(&self) -> Vec<Unanswered> {
        let begun = match self.over {
            true => self.begun.clone(),
            false => self.flight.pending().begun(self.flight.id),
        };
        let unanswered = |path: &NodePath| Unanswered {
            started: begun.contains(path),
            path: path.clone(),
        };
        self.waiting.iter().map(unanswered).collect()
    }

    /// The next reply; `None` at the end.
    ///
    /// # Cancel safety
    /// Safe: no reply is lost.
    pub async fn next(&mut self) -> Option<(NodePath, Result<M::Reply, Fate>)> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    fn end(&mut self) {
        self.over = true;
        self.begun = self.flight.pending().begun(self.flight.id);
        self.flight.over();
    }

    fn take(&mut self, answer: Answer) -> Option<(NodePath, Result<M::Reply, Fate>)> {
        if !self.answered.insert(answer.from.clone()) {
            return None;
        }
        self.waiting.remove(&answer.from);
        let from = answer.from.clone();
        let result = self.flight.read::<M>(answer);
        if let (Ok(_), Some(missing)) = (&result, &mut self.missing_for_quorum) {
            *missing = missing.saturating_sub(1);
        }
        Some((from, result))
    }
}

impl<M: Method> Stream for Replies<M> {
    type Item = (NodePath, Result<M::Reply, Fate>);

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if this.over {
                return Poll::Ready(None);
            }
            if this.waiting.is_empty() || this.missing_for_quorum == Some(0) {
                this.end();
                continue;
            }
            match this.answers.poll_recv(cx) {
                Poll::Ready(Some(answer)) => {
                    if let Some(item) = this.take(answer) {
                        return Poll::Ready(Some(item));
                    }
                }
                Poll::Ready(None) => this.end(),
                Poll::Pending => {
                    std::task::ready!(this.deadline.as_mut().poll(cx));
                    this.end();
                }
            }
        }
    }
}

impl<M> Unpin for Replies<M> {}

impl<M> std::fmt::Debug for Replies<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replies")
            .field("waiting", &self.waiting)
            .field("over", &(self.flight.state == FlightState::Over))
            .finish_non_exhaustive()
    }
}
