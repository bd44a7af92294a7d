//! The flows of a VM go with it: asked of its node of before when it runs there no more, told to the one where it goes on.
//!
//! What cannot be asked or told does not hold up the move: its connections end then, and are made anew.

use super::{Mover, Seen};
use crate::methods::{NicFlows, NicTakeFlows, WantedNic};
use vbm_core::{Result, VmMove};

impl Mover {
    pub(super) async fn carry_flows(&self, moving: &VmMove, seen: &Seen) {
        let Ok(wanted) = self.wanted(seen) else { return };
        for nic in wanted.nics {
            if let Err(error) = self.carry(moving, &nic).await {
                tracing::warn!(vm = %self.id, port = %nic.port, error = %error.inline(), "the flows of a NIC stay behind");
            }
        }
    }

    async fn carry(&self, moving: &VmMove, nic: &WantedNic) -> Result<()> {
        let told: NicFlows = self
            .controller
            .ask_node::<crate::methods::NicFlowsOf>(&moving.from, nic)
            .await?;
        if told.flows.is_empty() {
            return Ok(());
        }
        self.controller.ask_node::<NicTakeFlows>(&moving.to, &told).await
    }
}
