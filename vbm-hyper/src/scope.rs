//! The tasks of one driver, and their end.

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

    /// Ends all tasks; does not wait for them.
    pub(crate) fn finish(&self) {
        self.end.cancel();
        self.tasks.close();
    }
}
