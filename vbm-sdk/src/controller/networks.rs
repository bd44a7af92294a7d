//! Requests about networks.

use super::{Controller, addresses::Addresses, views::Tables};
use crate::api::{Accepted, CreateIpv6, CreateNetwork, NetworkView, UpdateNetwork};
use crate::records::{Edit, until_uncrossed};
use vbm_core::{
    Error, ErrorKind, EventKind, Ipv4Range, Ipv6Spec, Kind, Meta, Network, NetworkId, NetworkMode,
    NetworkSpec, NetworkStatus, ObjectRef, Operation, Port, Result,
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
        let (id, operation) = until_uncrossed(|| self.create_network_once(request)).await?;
        Ok(Accepted {
            item: self.network_view(&id.to_string()).await?,
            operation,
        })
    }

    async fn create_network_once(&self, request: &CreateNetwork) -> Result<(NetworkId, Operation)> {
        let mut spec =
            spec_of(request).map_err(|e| e.context(format!("cannot create network {}", request.name)))?;
        let id = NetworkId::from_uuid(self.inner.ids.next());
        check_reserved(id, &spec)?;
        let addresses = Addresses::new(id, &spec, Default::default())
            .map_err(|e| e.context(format!("cannot create network {}", request.name)))?;
        // A bridged network is on its LAN wherever it is.
        if spec.mode != NetworkMode::Bridged {
            spec.vni = Some(self.pick_vni().await?);
        }
        let network = Network {
            meta: Meta::new(id, request.name.clone(), self.inner.clock.now()),
            spec,
            status: NetworkStatus::default(),
        };
        let target = ObjectRef::new(Kind::Network, id, &request.name);
        let operation = self.operation("create", target.clone(), network.meta.generation);
        let message = format!("{} {}", network.spec.mode, network.spec.cidr);
        let mut edit = Edit::default()
            .create(&network)
            .create(&operation)
            .event(&self.event(EventKind::NetworkCreated, target, message));
        if let Some(vni) = network.spec.vni {
            edit = edit.claim(vni_key(vni), id);
        }
        let edit = self.own_addresses(edit, id, &network.spec).await;
        let edit = edit.map_err(|e| e.context(format!("cannot create network {}", request.name)))?;
        self.records().commit(addresses.keep(edit)?).await?;
        Ok((id, operation))
    }

    /// Changes who gets which address of a network from now on. Ports keep theirs.
    ///
    /// # Errors
    /// What is asked makes no sense, or a port has an address that shall never be given.
    pub async fn update_network(
        &self,
        network: &str,
        request: &UpdateNetwork,
    ) -> Result<Accepted<NetworkView>> {
        let id = self.records().resolve::<Network>(network).await?.value.meta.id;
        let operation = until_uncrossed(|| self.update_network_once(id, request)).await?;
        Ok(Accepted {
            item: self.network_view(&id.to_string()).await?,
            operation,
        })
    }

    async fn update_network_once(&self, id: NetworkId, request: &UpdateNetwork) -> Result<Operation> {
        let held = self.records().must::<Network>(id).await?;
        let name = held.value.meta.name.clone();
        let refused = |e: Error| e.context(format!("cannot update network {name}"));
        if held.value.meta.deleting {
            return Err(Error::not_found("network", &name));
        }
        if request
            .generation
            .is_some_and(|g| g != held.value.meta.generation)
        {
            // Not `Stale`: reading again and trying again is for who asks, not for us.
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("network {name} has changed"),
                format!("it is at generation {} now", held.value.meta.generation),
                "read it again and repeat",
            ));
        }
        let mut network = held.value.clone();
        network.spec = updated(&network.spec, request).map_err(refused)?;
        check_reserved(id, &network.spec).map_err(refused)?;
        // Read under the spec that it was written under.
        let mut addresses = self.addresses(&held.value).await?;
        addresses.follow(&network.spec).map_err(refused)?;
        network.meta.generation = network.meta.generation.next();
        let target = ObjectRef::new(Kind::Network, id, &name);
        let operation = self.operation("update", target, network.meta.generation);
        let edit = Edit::default().update(&held, &network).create(&operation);
        self.records().commit(addresses.keep(edit)?).await?;
        Ok(operation)
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

    /// A network with the number of its ports and how much of its addresses is used.
    ///
    /// # Errors
    /// It does not exist.
    pub async fn network_view(&self, network: &str) -> Result<NetworkView> {
        let record = self.records().resolve::<Network>(network).await?.value;
        let mut view = Tables::load(self.records()).await?.network(&record);
        view.usage = self.network_usage(&record).await?;
        Ok(view)
    }
}

/// The key that a VXLAN network identifier is claimed by.
pub(super) fn vni_key(vni: u32) -> String {
    format!("vni/{vni}")
}

/// The spec that a request means: what it leaves out is as usual.
fn spec_of(request: &CreateNetwork) -> Result<NetworkSpec> {
    let cidr = parse_cidr(&request.cidr)?;
    let mut spec = NetworkSpec::with_uplink(request.mode, cidr, request.uplink.clone())?;
    if let Some(gateway) = request.gateway {
        spec.gateway = gateway;
        // The usual pool begins behind the usual gateway; with another gateway it is all there is.
        spec.pool_first = (u32::from(spec.cidr.network()) + 1).into();
    }
    if !request.pools.is_empty() && (request.pool_first.is_some() || request.pool_last.is_some()) {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            "pools: given twice",
            "`pools` and `pool_first` or `pool_last` speak of the same",
            "write all of them in `pools`",
        ));
    }
    spec.pool_first = request.pool_first.unwrap_or(spec.pool_first);
    spec.pool_last = request.pool_last.unwrap_or(spec.pool_last);
    set_pools(&mut spec, &request.pools);
    spec.excluded.clone_from(&request.excluded);
    spec.reservations.clone_from(&request.reservations);
    spec.quarantine_seconds = request.quarantine_seconds.unwrap_or(0);
    spec.ipv6 = request.ipv6.as_ref().map(ipv6_of).transpose()?;
    spec.dns.clone_from(&request.dns);
    spec.domain.clone_from(&request.domain);
    spec.mtu = request.mtu.unwrap_or(spec.mtu);
    spec.lease_seconds = request.lease_seconds.unwrap_or(spec.lease_seconds);
    spec.dhcp.clone_from(&request.dhcp);
    spec.serve_dns = request.serve_dns.unwrap_or(spec.serve_dns);
    spec.dns_upstreams.clone_from(&request.dns_upstreams);
    spec.metadata = request.metadata.unwrap_or(spec.metadata);
    spec.serve_dhcp = request.serve_dhcp.unwrap_or(spec.serve_dhcp);
    spec.check()?;
    Ok(spec)
}

/// The first pool stands in fields of its own. Without any, what was stays.
fn set_pools(spec: &mut NetworkSpec, pools: &[Ipv4Range]) {
    if let Some((first, more)) = pools.split_first() {
        (spec.pool_first, spec.pool_last) = (first.first(), first.last());
        spec.more_pools = more.to_vec();
    }
}

fn ipv6_of(request: &CreateIpv6) -> Result<Ipv6Spec> {
    let cidr = request.cidr.parse().map_err(|_| {
        Error::new(
            ErrorKind::InvalidInput,
            format!("ipv6.cidr: '{:.100}' is not an IPv6 network", request.cidr),
            "it is not an address, '/' and a prefix length of 0 to 128",
            "write it as fd00:1::/64",
        )
    })?;
    let mut spec = Ipv6Spec::new(cidr)?;
    spec.gateway = request.gateway.unwrap_or(spec.gateway);
    spec.stateless = request.stateless;
    spec.dns.clone_from(&request.dns);
    spec.pools.clone_from(&request.pools);
    spec.excluded.clone_from(&request.excluded);
    spec.reservations.clone_from(&request.reservations);
    Ok(spec)
}

/// The spec after an update.
fn updated(spec: &NetworkSpec, request: &UpdateNetwork) -> Result<NetworkSpec> {
    let mut spec = spec.clone();
    if let Some(pools) = &request.pools {
        if pools.is_empty() {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "pools: none is left",
                "a network has one pool at least",
                "name one range, or leave `pools` out",
            ));
        }
        set_pools(&mut spec, pools);
    }
    if let Some(excluded) = &request.excluded {
        spec.excluded.clone_from(excluded);
    }
    if let Some(reservations) = &request.reservations {
        spec.reservations.clone_from(reservations);
    }
    spec.quarantine_seconds = request.quarantine_seconds.unwrap_or(spec.quarantine_seconds);
    match (&mut spec.ipv6, &request.ipv6) {
        (_, None) => {}
        (Some(ipv6), Some(wanted)) => {
            if let Some(pools) = &wanted.pools {
                ipv6.pools.clone_from(pools);
            }
            if let Some(excluded) = &wanted.excluded {
                ipv6.excluded.clone_from(excluded);
            }
            if let Some(reservations) = &wanted.reservations {
                ipv6.reservations.clone_from(reservations);
            }
        }
        (None, Some(_)) => {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "ipv6: the network has none",
                "IPv6 is given to a network when it is made: its ports would have none",
                "make another network with --ipv6 CIDR",
            ));
        }
    }
    spec.check()?;
    Ok(spec)
}

/// The gateway's MAC follows from the id of the network: it is nobody else's.
fn check_reserved(id: NetworkId, spec: &NetworkSpec) -> Result<()> {
    let gateway = vbm_net::gateway_mac(id);
    let six = spec
        .ipv6
        .iter()
        .flat_map(|s| s.reservations.iter().map(|r| r.mac));
    let mut macs = spec.reservations.iter().map(|r| r.mac).chain(six);
    if macs.any(|mac| mac == Some(gateway)) {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!("reservations: the MAC {gateway} cannot be reserved"),
            "it is the gateway's",
            "choose another",
        ));
    }
    Ok(())
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
    fn a_bridged_network_leaves_to_its_lan_what_nobody_asked_for() {
        let bridged = CreateNetwork {
            mode: NetworkMode::Bridged,
            uplink: Some("br-lan".parse().unwrap()),
            ..request("10.0.0.0/24")
        };
        let spec = spec_of(&bridged).unwrap();
        assert!(!spec.serve_dhcp && !spec.serve_dns && !spec.serves_metadata());
        let served = CreateNetwork {
            serve_dhcp: Some(true),
            ..bridged.clone()
        };
        assert!(spec_of(&served).unwrap().serve_dhcp);
        for bad in [
            CreateNetwork {
                metadata: Some(vbm_core::MetadataMode::Token),
                ..bridged.clone()
            },
            CreateNetwork {
                uplink: None,
                ..bridged
            },
            CreateNetwork {
                uplink: Some("eth0".parse().unwrap()),
                ..request("10.0.0.0/24")
            },
        ] {
            assert_eq!(
                spec_of(&bad).unwrap_err().kind(),
                ErrorKind::InvalidInput,
                "{bad:?}"
            );
        }
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
