//! Long work on files, off the async threads, that ends soon after nobody wants it any more.

use super::blocking;
use crate::{Error, OpCx, Result};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// What long work asks between two pieces.
pub(crate) struct Work {
    cx: OpCx,
    what: &'static str,
    dropped: Arc<AtomicBool>,
}

impl Work {
    /// Whether to go on.
    pub(crate) fn go_on(&self) -> Result<()> {
        if self.dropped.load(Ordering::Relaxed) {
            return Err(Error::CalledOff { what: self.what });
        }
        self.cx.go_on(self.what)
    }

    pub(crate) fn report(&self, phase: &'static str, done: u64, total: u64) {
        self.cx.report(phase, done, total);
    }

    #[cfg(test)]
    pub(crate) fn of_a_test() -> Self {
        Self {
            cx: OpCx::new(),
            what: "a test",
            dropped: Arc::default(),
        }
    }
}

/// Says to the work that its future was dropped.
struct Dropped(Arc<AtomicBool>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Does `work` under a context. When it is called off, late or dropped, the work hears so at its next question and clears away
/// after itself.
///
/// # Errors
/// Those of the work; [`Error::CalledOff`]; [`Error::OutOfTime`].
pub(crate) async fn long<T: Send + 'static>(
    cx: &OpCx,
    what: &'static str,
    work: impl FnOnce(&Work) -> Result<T> + Send + 'static,
) -> Result<T> {
    cx.go_on(what)?;
    let dropped = Dropped(Arc::default());
    let asked = Work {
        cx: cx.clone(),
        what,
        dropped: Arc::clone(&dropped.0),
    };
    blocking(move || work(&asked)).await
}
