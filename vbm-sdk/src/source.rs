//! The real clock and the real ids: the only place of the platform that reads the system's.

use vbm_core::{Clock, IdSource, Timestamp};

/// The system's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(jiff::Timestamp::now().as_microsecond())
    }
}

/// UUIDs of version 7: ordered by the time they were made.
#[derive(Clone, Copy, Debug, Default)]
pub struct RandomIds;

impl IdSource for RandomIds {
    fn next(&self) -> uuid::Uuid {
        uuid::Uuid::now_v7()
    }
}
