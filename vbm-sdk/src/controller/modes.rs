//! What the mode of a new network asks of the whole cluster.

use super::Controller;
use crate::records::Edit;
use bytes::Bytes;
use std::net::Ipv4Addr;
use vbm_core::{Error, ErrorKind, Network, NetworkId, NetworkMode, NetworkSpec, Result};

/// Where requests for routed networks cross: one of two that are made at once looks again, and sees the other.
const ROUTED_KEY: &str = "routed";

impl Controller {
    /// An address that is routed to a network leads to its VM there, and to nobody else.
    pub(super) async fn refuse_routed(&self, address: Ipv4Addr) -> Result<()> {
        let all = self.records().all::<Network>().await?;
        let routed = |n: &Network| n.spec.mode == NetworkMode::Routed && n.spec.cidr.contains(&address);
        match all.into_iter().map(|held| held.value).find(routed) {
            Some(network) => Err(Error::new(
                ErrorKind::Conflict,
                format!("the floating IP {address} cannot be attached"),
                format!(
                    "it is inside {}, which is routed to network {}",
                    network.spec.cidr, network.meta.name
                ),
                "choose one that is no network's",
            )),
            None => Ok(()),
        }
    }

    /// Each node has each network, so the addresses of a routed one are its alone in the cluster: also while the network that had them is
    /// deleted. Adds to an edit what lets two requests cross each other.
    pub(super) async fn own_addresses(&self, edit: Edit, id: NetworkId, spec: &NetworkSpec) -> Result<Edit> {
        if spec.mode != NetworkMode::Routed {
            return Ok(edit);
        }
        let seen = self.records().store().get(ROUTED_KEY).await?;
        for other in self.records().all::<Network>().await? {
            let other = other.value;
            let shares = other.spec.cidr.contains(&spec.cidr.network())
                || spec.cidr.contains(&other.spec.cidr.network());
            if other.spec.mode == NetworkMode::Routed && shares {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!("the addresses {} cannot be routed", spec.cidr),
                    format!(
                        "{} is routed to network {}, and nothing tells the two apart",
                        other.spec.cidr, other.meta.name
                    ),
                    "choose other addresses, or mode nat, where networks may share them",
                ));
            }
        }
        Ok(edit.swap(
            ROUTED_KEY.to_owned(),
            seen.map(|entry| entry.revision),
            Bytes::from(id.to_string()),
        ))
    }
}
