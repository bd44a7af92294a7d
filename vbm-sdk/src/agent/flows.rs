//! Flows of a NIC whose VM moves: told by the node that it leaves, taken in by the one where it goes on.

use super::Agent;
use crate::methods::{NicFlows, WantedNic};
use vbm_core::{Error, Result};

impl Agent {
    /// What a NIC has begun and answered with others of its network.
    pub(super) async fn nic_flows(&self, nic: WantedNic) -> Result<NicFlows> {
        let networks = &self.inner.networks;
        let flows = networks
            .flows_of(nic.network, nic.port)
            .await
            .map_err(Error::from)?;
        Ok(NicFlows { nic, flows })
    }

    /// Takes in what came with a NIC, as far as its groups let it.
    pub(super) async fn nic_take_flows(&self, came: NicFlows) -> Result<()> {
        let NicFlows { nic, flows } = came;
        let count = flows.len();
        let networks = &self.inner.networks;
        let taken = networks
            .take_flows(nic.network, nic.port, flows)
            .await
            .map_err(Error::from)?;
        tracing::info!(port = %nic.port, taken, count, "flows came with a NIC");
        Ok(())
    }
}
