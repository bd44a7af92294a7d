//! What an operation is carried out under: whose it is, how long it may take, who may call it off, how far it is.
//!
//! ```text
//!   caller:  OpCx::of(id).within(30 s) ---clone---> driver: cx.run("a start", work).await
//!            cx.cancel(), cx.progress() <--------- cx.report(phase, done, total)
//! ```
//!
//! A context is cheap to clone; all clones are of one operation. What has no limit of its own is done under [`OpCx::new`].

use crate::{Error, Result};
use std::time::Duration;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use vbm_core::OperationId;

/// How far an operation is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// What is being done, in words.
    pub phase: &'static str,
    /// How much of it is done, in units of the phase: mostly bytes.
    pub done: u64,
    /// How much there is to do; 0 when that is not known.
    pub total: u64,
}

/// The context of an operation.
#[derive(Clone, Debug)]
pub struct OpCx {
    id: Option<OperationId>,
    deadline: Option<Instant>,
    cancel: CancellationToken,
    progress: watch::Sender<Progress>,
}

impl Default for OpCx {
    fn default() -> Self {
        Self::new()
    }
}

impl OpCx {
    /// An operation of nobody in particular, which takes as long as it takes.
    pub fn new() -> Self {
        Self {
            id: None,
            deadline: None,
            cancel: CancellationToken::new(),
            progress: watch::Sender::new(Progress::default()),
        }
    }

    /// The operation of that id.
    pub fn of(id: OperationId) -> Self {
        Self {
            id: Some(id),
            ..Self::new()
        }
    }

    /// The same, to be done within `limit` from now. The earlier of two limits counts.
    #[must_use]
    pub fn within(mut self, limit: Duration) -> Self {
        let limit = Instant::now() + limit;
        self.deadline = Some(self.deadline.map_or(limit, |before| before.min(limit)));
        self
    }

    /// Its id, if it has one.
    pub const fn id(&self) -> Option<OperationId> {
        self.id
    }

    /// Calls the operation off. What cannot be undone any more is brought to its end.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Returns once the operation was called off.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn cancelled(&self) {
        self.cancel.cancelled().await;
    }

    /// Whether it was called off.
    pub fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// Says how far it is.
    pub fn report(&self, phase: &'static str, done: u64, total: u64) {
        self.progress.send_replace(Progress { phase, done, total });
    }

    /// How far it is, as it goes on.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Asks whether to go on with `what`.
    ///
    /// # Errors
    /// [`Error::CalledOff`]; [`Error::OutOfTime`].
    pub fn go_on(&self, what: &'static str) -> Result<()> {
        if self.cancel.is_cancelled() {
            return Err(Error::CalledOff { what });
        }
        match self.deadline {
            Some(deadline) if Instant::now() >= deadline => Err(Error::OutOfTime { what }),
            _ => Ok(()),
        }
    }

    /// Does `what`, until it is done, called off or out of time. Work that is broken off is dropped.
    ///
    /// # Errors
    /// Those of the work; [`Error::CalledOff`]; [`Error::OutOfTime`].
    ///
    /// # Cancel safety
    /// As that of the work.
    pub async fn run<T>(
        &self,
        what: &'static str,
        work: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        self.go_on(what)?;
        let late = async {
            match self.deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        // Cancel safe: nothing but the work is lost, and that is meant.
        tokio::select! {
            done = work => done,
            () = self.cancel.cancelled() => Err(Error::CalledOff { what }),
            () = late => Err(Error::OutOfTime { what }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vbm_core::ErrorKind;

    async fn never() -> Result<()> {
        std::future::pending().await
    }

    #[tokio::test(start_paused = true)]
    async fn work_is_broken_off_when_it_is_called_off_or_late_and_says_which() {
        let cx = OpCx::new()
            .within(Duration::from_secs(3))
            .within(Duration::from_secs(9));
        let begun = Instant::now();
        let late = cx.run("a start", never()).await.unwrap_err();
        assert_eq!(late.kind(), ErrorKind::DeadlineExceeded);
        assert_eq!(begun.elapsed().as_secs(), 3, "the earlier limit counts");

        let cx = OpCx::new();
        let clone = cx.clone();
        let work = cx.run("a start", never());
        let (ended, ()) = tokio::join!(work, async { clone.cancel() });
        assert_eq!(ended.unwrap_err().kind(), ErrorKind::Cancelled);
        assert!(
            cx.run("a start", async { Ok(()) }).await.is_err(),
            "nothing begins any more"
        );
    }

    #[test]
    fn every_clone_hears_how_far_it_is() {
        let cx = OpCx::new();
        let progress = cx.progress();
        cx.clone().report("copying", 1, 2);
        let expected = Progress {
            phase: "copying",
            done: 1,
            total: 2,
        };
        assert_eq!(*progress.borrow(), expected);
    }
}
