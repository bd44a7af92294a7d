//! What other modules of this crate need of an attachment.

use super::{Bus, Shared};
use crate::{
    BusError,
    election::{LeaseAnswer, LeaseOp},
};
use std::{future::Future, sync::Arc};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use vbm_core::Name;

impl Bus {
    /// The same attachment, for its own tasks: does not keep it alive.
    pub(crate) fn unguarded(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            _alive: Arc::new(CancellationToken::new().drop_guard()),
        }
    }

    /// Fires when no new work is begun.
    pub(crate) fn closing(&self) -> &CancellationToken {
        &self.shared.closing
    }

    /// Runs a task that a shutdown waits for as for a handler, and that a hard end drops.
    pub(crate) fn spawn_handler(&self, task: impl Future<Output = ()> + Send + 'static) {
        let ended = self.shared.ended.clone();
        self.shared.handlers.spawn(async move {
            ended.run_until_cancelled(task).await;
        });
    }

    pub(crate) fn generations(&self) -> watch::Receiver<u64> {
        self.shared.link.generations()
    }

    pub(crate) fn new_id(&self) -> Uuid {
        self.shared.ids.next()
    }

    /// Asks the transport about a lease.
    pub(crate) async fn lease(&self, name: &Name, op: &LeaseOp) -> Result<LeaseAnswer, BusError> {
        self.health()?;
        self.link_lease(name, op).await
    }

    /// The same while the bus closes.
    pub(crate) async fn link_lease(&self, name: &Name, op: &LeaseOp) -> Result<LeaseAnswer, BusError> {
        let shared: &Shared = &self.shared;
        shared.link.lease(name, op).await
    }
}
