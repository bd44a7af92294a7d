//! What time it is, for those parts that are measured without the SDK, which has a clock of its own.

use std::time::{SystemTime, UNIX_EPOCH};
use vbm_core::{Clock, Timestamp};

/// The clock of the system.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }
}
