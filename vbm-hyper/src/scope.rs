//! The tasks of one driver, and their end.

use crate::{Error, Result};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Where a driver's tasks are tracked, and what ends them. Clones are the same scope.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scope {
    pub(crate) tasks: TaskTracker,
    pub(crate) end: CancellationToken,
}

impl Scope {
    pub(crate) fn is_over(&self) -> bool {
        self.end.is_cancelled()
    }

    /// Runs file work off the async threads. It goes to its end also when nobody waits for it any more, and the shutdown waits
    /// for it: what it writes is there before anybody else looks.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        match self.tasks.spawn_blocking(work).await {
            Ok(result) => result,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(Error::ShutDown("the runtime")),
        }
    }

    /// Ends all tasks; does not wait for them.
    pub(crate) fn finish(&self) {
        self.end.cancel();
        self.tasks.close();
    }
}
