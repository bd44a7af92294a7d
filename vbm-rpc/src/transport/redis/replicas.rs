//! What a frame must outlive, and whether it does by now.

use crate::transport::SendError;
use std::time::Duration;

/// How long a replica may take to have what it must have.
pub(super) const REPLICA_TIMEOUT: Duration = Duration::from_secs(1);

/// How many replicas have what a batch of the replicated lane wrote, and how many must.
#[derive(Clone, Copy)]
pub(super) struct Replicas {
    pub(super) have: u64,
    pub(super) needed: u64,
}

/// A frame is in the master's stream: whether that is enough.
pub(super) fn kept(replicas: Option<Replicas>) -> Result<(), SendError> {
    match replicas {
        Some(Replicas { have, needed }) if have < needed => Err(SendError::Uncertain(format!(
            "{have} of {needed} replicas had it within {} ms; the master has it, and might forget it with a failover",
            REPLICA_TIMEOUT.as_millis()
        ))),
        _ => Ok(()),
    }
}
