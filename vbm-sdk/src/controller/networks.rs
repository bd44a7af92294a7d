//! Requests about networks.

use super::{Controller, views::Tables};
use crate::api::{Accepted, CreateNetwork, NetworkView};
use crate::records::{Edit, until_uncrossed};
use vbm_core::{
    Error, ErrorKind, EventKind, Kind, Meta, Network, NetworkId, NetworkSpec, NetworkStatus, ObjectRef, Port,
    Result,
    network::{VNI_FIRST, VNI_LAST, parse_cidr},
};

/// How many identifiers are tried before it is said that none is left.
const VNI_MAX_TRIES: usize = 64;

impl Controller {
    /// Makes a network, and an operation that sees it up.
    ///
    /// # Errors
    /// What is asked makes no sense, or the name is taken.
    pub async fn create_network(&self, request: &CreateNetwork) -> Result<Accepted<NetworkView>> {
        let mut spec =
            spec_of(request).map_err(|e| e.context(format!("cannot create network {}", request.name)))?;
        let id = NetworkId::from_uuid(self.inner.ids.next());
        let vni = self.pick_vni().await?;
        spec.vni = Some(vni);
        let network = Network {
            meta: Meta::new(id, request.name.clone(), self.inner.clock.now()),
            spec,
            status: NetworkStatus::default(),
        };
        let target = ObjectRef::new(Kind::Network, id, &request.name);
        let operation = self.operation("create", target.clone(), network.meta.generation);
        let message = format!("{} {}", network.spec.mode, network.spec.cidr);
        let edit = Edit::default()
            .create(&network)
            .create(&operation)
            .claim(vni_key(vni), id)
            .event(&self.event(EventKind::NetworkCreated, target, message));
        self.records().commit(edit).await?;
        Ok(Accepted {
            item: self.network_view(&id.to_string()).await?,
            operation,
        })
    }

    /// A VXLAN network identifier that no network has.
    async fn pick_vni(&self) -> Result<u32> {
        for _ in 0..VNI_MAX_TRIES {
            let [.., a, b, c, d] = *self.inner.ids.next().as_bytes();
            let vni = VNI_FIRST + u32::from_be_bytes([a, b, c, d]) % (VNI_LAST - VNI_FIRST + 1);
            if self.records().store().get(&vni_key(vni)).await?.is_none() {
                return Ok(vni);
            }
        }
        Err(Error::new(
            ErrorKind::Exhausted,
            "no identifier is left for the network",
            "nearly all of the 16 million VXLAN identifiers are taken",
            "delete networks that nobody needs",
        ))
    }

    /// Deletes a network that has no ports.
    ///
    /// # Errors
    /// It does not exist or is in use.
    pub async fn delete_network(&self, network: &str) -> Result<Accepted<NetworkView>> {
        let id = self.records().resolve::<Network>(network).await?.value.meta.id;
        let view = self.network_view(&id.to_string()).await?;
        let operation = until_uncrossed(|| async {
            let held = self.records().must::<Network>(id).await?;
            let users: Vec<_> = self
                .records()
                .all::<Port>()
                .await?
                .into_iter()
                .filter(|p| p.value.spec.network == id)
                .collect();
            if !users.is_empty() {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!("cannot delete network {}", held.value.meta.name),
                    format!("{} ports are on it", users.len()),
                    format!(
                        "delete their VMs first; `vbm port list --network {}` shows them",
                        held.value.meta.name
                    ),
                ));
            }
            let mut network = held.value.clone();
            network.meta.deleting = true;
            network.meta.generation = network.meta.generation.next();
            let operation = self.operation(
                "delete",
                ObjectRef::new(Kind::Network, id, &network.meta.name),
                network.meta.generation,
            );
            self.records()
                .commit(Edit::default().update(&held, &network).create(&operation))
                .await?;
            Ok(operation)
        })
        .await?;
        Ok(Accepted {
            item: view,
            operation,
        })
    }

    /// A network with the number of its ports.
    ///
    /// # Errors
    /// It does not exist.
    pub async fn network_view(&self, network: &str) -> Result<NetworkView> {
        let record = self.records().resolve::<Network>(network).await?.value;
        Ok(Tables::load(self.records()).await?.network(&record))
    }
}

/// The key that a VXLAN network identifier is claimed by.
pub(super) fn vni_key(vni: u32) -> String {
    format!("vni/{vni}")
}

/// The spec that a request means: what it leaves out is as usual.
fn spec_of(request: &CreateNetwork) -> Result<NetworkSpec> {
    let mut spec = NetworkSpec::new(request.mode, parse_cidr(&request.cidr)?)?;
    if let Some(gateway) = request.gateway {
        spec.gateway = gateway;
        // The usual pool begins behind the usual gateway; with another gateway it is all there is.
        spec.pool_first = (u32::from(spec.cidr.network()) + 1).into();
    }
    spec.pool_first = request.pool_first.unwrap_or(spec.pool_first);
    spec.pool_last = request.pool_last.unwrap_or(spec.pool_last);
    spec.dns.clone_from(&request.dns);
    spec.domain.clone_from(&request.domain);
    spec.mtu = request.mtu.unwrap_or(spec.mtu);
    spec.lease_seconds = request.lease_seconds.unwrap_or(spec.lease_seconds);
    spec.serve_dns = request.serve_dns.unwrap_or(spec.serve_dns);
    spec.dns_upstreams.clone_from(&request.dns_upstreams);
    spec.metadata = request.metadata;
    spec.check()?;
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(cidr: &str) -> CreateNetwork {
        serde_json::from_value(serde_json::json!({ "name": "lan", "cidr": cidr })).unwrap()
    }

    #[test]
    fn a_gateway_elsewhere_leaves_the_first_address_to_ports() {
        let spec = spec_of(&CreateNetwork {
            gateway: Some([10, 0, 0, 254].into()),
            ..request("10.0.0.0/24")
        })
        .unwrap();
        assert!(spec.is_port_address([10, 0, 0, 1].into()));
        assert_eq!(spec.pool_first, std::net::Ipv4Addr::new(10, 0, 0, 1));
    }

    #[test]
    fn a_pool_outside_is_refused() {
        assert!(
            spec_of(&CreateNetwork {
                pool_last: Some([10, 0, 1, 9].into()),
                ..request("10.0.0.0/24")
            })
            .is_err()
        );
    }
}
