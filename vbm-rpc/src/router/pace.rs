//! Which handlers begin in the dispatcher.

use crate::limits;
use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

/// Whether the handler of a method is quick up to where it first waits. Such a one begins in the dispatcher: most end
/// there, and a task of their own would cost more than they do. One that was slow gets tasks for a while.
///
/// A call that is still at work counts for nothing: only one that was seen to be quick opens the dispatcher.
#[derive(Debug)]
pub(crate) struct Pace {
    /// [`QUICK`], [`ON_TRIAL`], or how many calls get tasks before the next trial.
    tasks_left: AtomicU32,
}

/// The next call may begin in the dispatcher.
const QUICK: u32 = 0;
/// Calls get tasks until one was quick.
const ON_TRIAL: u32 = 1;

impl Default for Pace {
    fn default() -> Self {
        Self {
            tasks_left: AtomicU32::new(ON_TRIAL),
        }
    }
}

impl Pace {
    /// Whether the next call may begin in the dispatcher.
    pub(crate) fn is_quick(&self) -> bool {
        let left = self.tasks_left.load(Ordering::Relaxed);
        if left > ON_TRIAL {
            // A lost update does no harm, and it never falls below a trial.
            self.tasks_left.store(left - 1, Ordering::Relaxed);
        }
        left == QUICK
    }

    /// A call was at work for `time` until it first waited or ended.
    pub(crate) fn saw(&self, time: Duration) {
        if time > limits::INLINE_MAX {
            self.tasks_left
                .store(limits::INLINE_AGAIN_CALLS, Ordering::Relaxed);
        } else if self.tasks_left.load(Ordering::Relaxed) == ON_TRIAL {
            // Not when another one was slow meanwhile: that counts.
            let seen =
                self.tasks_left
                    .compare_exchange(ON_TRIAL, QUICK, Ordering::Relaxed, Ordering::Relaxed);
            tracing::trace!(quick = seen.is_ok(), "a method was timed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_is_timed_in_a_task_first_and_a_slow_one_gets_tasks_for_a_while() {
        let pace = Pace::default();
        assert!(!pace.is_quick() && !pace.is_quick(), "nothing was seen yet");
        pace.saw(limits::INLINE_MAX);
        assert!(pace.is_quick() && pace.is_quick());
        pace.saw(limits::INLINE_MAX * 2);
        pace.saw(limits::INLINE_MAX);
        for _ in 0..2 * limits::INLINE_AGAIN_CALLS {
            assert!(!pace.is_quick());
        }
        pace.saw(limits::INLINE_MAX);
        assert!(pace.is_quick(), "seen to be quick again");
    }
}
