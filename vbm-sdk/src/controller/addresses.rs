//! The addresses of networks, kept in the store.
//!
//! ```text
//!   ipam/<network>                 the state of its IPAM: written only at the revision that it was read at
//!   address/<network>/<address>    whose it is: written only while absent
//!
//!   launch    read ipam -> pick, pin -> [ compare ipam at its revision, claim each address ] -> else again from the start
//! ```
//!
//! Two controllers that pick at the same time read the same state; one of them writes it, the other is told that it
//! was crossed and begins anew. Who allows a port addresses beside its own writes the state too, so that it crosses whoever picks
//! just now: such an address is given to nobody. The claims say the same once more, address by address: should the state ever be
//! lost, it is made again of them.

use super::{Controller, launch::address_key, launch::mac_key};
use crate::api::{NetworkUsage, NicRequest};
use crate::records::{Edit, Held};
use crate::store::Revision;
use bytes::Bytes;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};
use vbm_core::{
    Error, ErrorKind, Ipv6Spec, Mac, Network, NetworkId, NetworkSpec, Port, Result, Timestamp, Vm, VmId,
};
use vbm_net::ipam::{Address, Ipam, Plan, State};

/// What the store keeps of a network's addresses.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    v4: State,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    v6: Option<State>,
}

/// The addresses of a network, as they were at a revision.
pub(super) struct Addresses {
    key: String,
    seen: Option<Revision>,
    v4: Ipam<Ipv4Addr>,
    v6: Option<Ipam<Ipv6Addr>>,
    /// Where VMs make their IPv6 addresses themselves.
    stateless: Option<Ipv6Spec>,
    allowed: Allowed,
}

/// What VMs of a network may use beside their own addresses.
#[derive(Clone, Debug, Default)]
pub(super) struct Allowed(Vec<(IpNet, VmId)>);

impl Allowed {
    fn v4(&self) -> Vec<(Ipv4Addr, Ipv4Addr)> {
        let ends = |net: IpNet| match net {
            IpNet::V4(net) => Some((net.network(), net.broadcast())),
            IpNet::V6(_) => None,
        };
        self.0.iter().filter_map(|(net, _)| ends(*net)).collect()
    }

    fn v6(&self) -> Vec<(Ipv6Addr, Ipv6Addr)> {
        let ends = |net: IpNet| match net {
            IpNet::V6(net) => Some((net.network(), net.broadcast())),
            IpNet::V4(_) => None,
        };
        self.0.iter().filter_map(|(net, _)| ends(*net)).collect()
    }

    /// Whose it is to use.
    fn whose(&self, address: IpAddr) -> Option<VmId> {
        let found = self.0.iter().find(|(net, _)| net.contains(&address));
        found.map(|(_, vm)| *vm)
    }
}

/// The subnet, where VMs make their addresses themselves.
fn stateless(spec: &NetworkSpec) -> Option<Ipv6Spec> {
    spec.ipv6.clone().filter(|six| six.stateless)
}

/// What a NIC gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) address: Ipv4Addr,
    /// Whether somebody asked for just this one.
    pub(super) pinned: bool,
    pub(super) address6: Option<Ipv6Addr>,
}

impl Addresses {
    /// Those of a new network.
    pub(super) fn new(id: NetworkId, spec: &NetworkSpec, allowed: Allowed) -> Result<Self> {
        let v6 = Plan::v6(spec)?.map(|plan| plan.withholding(&allowed.v6()));
        Ok(Self {
            key: key(id),
            seen: None,
            v4: Ipam::new(Plan::v4(spec)?.withholding(&allowed.v4())),
            v6: v6.map(Ipam::new),
            stateless: stateless(spec),
            allowed,
        })
    }

    fn read(network: &Network, allowed: Allowed, value: &[u8], revision: Revision) -> Result<Self> {
        let (id, spec) = (network.meta.id, &network.spec);
        let kept: Kept = serde_json::from_slice(value).map_err(|e| {
            Error::new(
                ErrorKind::Corrupt,
                format!("the record {} cannot be read", key(id)),
                e.to_string(),
                "it was written by a newer VBM, or the store was damaged: restore a backup",
            )
        })?;
        let v6 = Plan::v6(spec)?.map(|plan| plan.withholding(&allowed.v6()));
        let v6 = match (v6, &kept.v6) {
            (Some(plan), Some(state)) => Some(Ipam::restore(plan, state)?),
            (plan, _) => plan.map(Ipam::new),
        };
        Ok(Self {
            key: key(id),
            seen: Some(revision),
            v4: Ipam::restore(Plan::v4(spec)?.withholding(&allowed.v4()), &kept.v4)?,
            v6,
            stateless: stateless(spec),
            allowed,
        })
    }

    /// The MAC that the address asked for is reserved for: a NIC that asks for the one gets the other.
    pub(super) fn mac_of(&self, wanted: &NicRequest) -> Option<Mac> {
        let of_v4 = wanted
            .address
            .and_then(|a| self.v4.plan().reservation(a).flatten());
        let of_v6 = || {
            let ipam = self.v6.as_ref()?;
            ipam.plan().reservation(wanted.address6?).flatten()
        };
        of_v4.or_else(of_v6)
    }

    /// The IPv6 address that a NIC asks for; the one that its VM makes, where VMs do.
    fn wanted6(&self, wanted: &NicRequest, mac: Mac) -> Result<Option<Ipv6Addr>> {
        let made = self.stateless.as_ref().and_then(|six| six.made_of(mac));
        match (made, wanted.address6) {
            (Some(made), Some(other)) if made != other => Err(Error::new(
                ErrorKind::InvalidInput,
                format!("address6: {other} cannot be used"),
                format!("VMs of the network make their addresses themselves, and {mac} makes {made}"),
                "leave it out",
            )),
            (made, wanted) => Ok(made.or(wanted)),
        }
    }

    fn release(&mut self, address: IpAddr, now: Timestamp) {
        match (address, &mut self.v6) {
            (IpAddr::V4(address), _) => drop(self.v4.release(address, now)),
            (IpAddr::V6(address), Some(ipam)) => drop(ipam.release(address, now)),
            (IpAddr::V6(_), None) => {}
        }
    }

    /// Takes what is known to be given already.
    fn adopt(&mut self, address: IpAddr, now: Timestamp) {
        // What cannot be taken is outside of the subnet or was taken a line before: there is nothing to remember.
        match (address, &mut self.v6) {
            (IpAddr::V4(address), _) => drop(self.v4.adopt(address, now)),
            (IpAddr::V6(address), Some(ipam)) => drop(ipam.adopt(address, now)),
            (IpAddr::V6(_), None) => {}
        }
    }

    /// Follows another spec from now on.
    pub(super) fn follow(&mut self, spec: &NetworkSpec) -> Result<()> {
        self.v4.follow(Plan::v4(spec)?)?;
        match (&mut self.v6, Plan::v6(spec)?) {
            (Some(ipam), Some(plan)) => ipam.follow(plan),
            _ => Ok(()),
        }
    }

    /// How many ports have an address. Each has one of IPv4.
    pub(super) fn ports(&self, now: Timestamp) -> usize {
        let of = self.v4.utilisation(now);
        usize::try_from(of.taken + of.outside).unwrap_or(usize::MAX)
    }

    fn usage(&self, now: Timestamp) -> NetworkUsage {
        NetworkUsage {
            ipv4: self.v4.utilisation(now).into(),
            ipv6: self.v6.as_ref().map(|ipam| ipam.utilisation(now).into()),
        }
    }

    /// Writes them with an edit, which is crossed when somebody else wrote them in between.
    pub(super) fn keep(&self, edit: Edit) -> Result<Edit> {
        let kept = Kept {
            v4: self.v4.state(),
            v6: self.v6.as_ref().map(Ipam::state),
        };
        let value = serde_json::to_vec(&kept)
            .map_err(|e| Error::internal("the addresses of a network cannot be written", e.to_string()))?;
        Ok(edit.swap(self.key.clone(), self.seen, Bytes::from(value)))
    }
}

/// An address of one family; whether it was asked for.
fn give<A: Address>(ipam: &mut Ipam<A>, wanted: Option<A>, mac: Mac, now: Timestamp) -> Result<(A, bool)> {
    match wanted.or_else(|| ipam.plan().reserved_for(mac)) {
        Some(address) => ipam.pin(address, Some(mac), now).map(|()| (address, true)),
        None => ipam.allocate(None, now).map(|address| (address, false)),
    }
}

pub(super) fn key(network: NetworkId) -> String {
    format!("ipam/{network}")
}

impl Controller {
    /// The addresses of a network as the store has them; made of the claims where it has none.
    pub(super) async fn addresses(&self, network: &Network) -> Result<Addresses> {
        let id = network.meta.id;
        // Before what they are withheld from: who allows one writes both.
        let entry = self.records().store().get(&key(id)).await?;
        let allowed = self.allowed(id).await?;
        if let Some(entry) = entry {
            return Addresses::read(network, allowed, &entry.value, entry.revision);
        }
        let mut addresses = Addresses::new(id, &network.spec, allowed)?;
        self.adopt_claims(id, &mut addresses).await?;
        Ok(addresses)
    }

    /// What ports of a network may use beside their own addresses.
    async fn allowed(&self, network: NetworkId) -> Result<Allowed> {
        let ports = self.records().all::<Port>().await?;
        let here = ports
            .iter()
            .map(|p| &p.value.spec)
            .filter(|s| s.network == network);
        let pairs = here.flat_map(|spec| spec.pairs.iter().map(|pair| (pair.address, spec.vm)));
        Ok(Allowed(pairs.collect()))
    }

    /// Refuses an address that another VM may use beside its own, and says which.
    async fn refuse_allowed(&self, allowed: &Allowed, wanted: Option<IpAddr>) -> Result<()> {
        let Some((address, vm)) = wanted.and_then(|a| Some((a, allowed.whose(a)?))) else {
            return Ok(());
        };
        let vm = self.records().get::<Vm>(vm).await?;
        let whose = vm.map_or_else(|| "another VM".to_owned(), |vm| vm.value.meta.name.to_string());
        Err(Error::new(
            ErrorKind::Conflict,
            format!("the address {address} is not free"),
            format!("{whose} may use it beside its own: it is among the allowed addresses of its port"),
            "choose another, leave the address out, or allow that VM others",
        ))
    }

    async fn adopt_claims(&self, network: NetworkId, addresses: &mut Addresses) -> Result<()> {
        for claim in self.records().keys_below(&format!("address/{network}/")).await? {
            if let Ok(address) = claim.parse() {
                addresses.adopt(address, self.now());
            }
        }
        Ok(())
    }

    async fn is_claimed(&self, network: NetworkId, address: IpAddr) -> Result<bool> {
        let claim = self.records().store().get(&address_key(network, address)).await?;
        Ok(claim.is_some())
    }

    /// Takes what a NIC asks for, what is reserved for its MAC, or what the pools give.
    pub(super) async fn take_addresses(
        &self,
        network: NetworkId,
        addresses: &mut Addresses,
        wanted: &NicRequest,
        mac: Mac,
    ) -> Result<Given> {
        if let (None, Some(address)) = (&addresses.v6, wanted.address6) {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("address6: {address} cannot be used"),
                "the network has no IPv6",
                "leave it out, or make a network with --ipv6 CIDR",
            ));
        }
        let now = self.now();
        let wanted6 = addresses.wanted6(wanted, mac)?;
        let reserved = addresses.v4.plan().reserved_for(mac);
        let reserved6 = || {
            addresses
                .v6
                .as_ref()
                .and_then(|ipam| ipam.plan().reserved_for(mac))
        };
        for asked in [
            wanted.address.or(reserved).map(IpAddr::V4),
            wanted6.or_else(reserved6).map(IpAddr::V6),
        ] {
            self.refuse_allowed(&addresses.allowed, asked).await?;
        }
        let (mut address, mut pinned) = give(&mut addresses.v4, wanted.address, mac, now)?;
        if self.is_stray(network, address.into(), pinned).await? {
            self.adopt_claims(network, addresses).await?;
            (address, pinned) = give(&mut addresses.v4, wanted.address, mac, now)?;
        }
        let mut address6 = None;
        if let Some(ipam) = &mut addresses.v6 {
            let (mut address, pinned) = give(ipam, wanted6, mac, now)?;
            if self.is_stray(network, address.into(), pinned).await? {
                self.adopt_claims(network, addresses).await?;
                if let Some(ipam) = &mut addresses.v6 {
                    (address, _) = give(ipam, wanted6, mac, now)?;
                }
            }
            address6 = Some(address);
        }
        Ok(Given {
            address,
            pinned,
            address6,
        })
    }

    /// Whether an address that was free by the state is claimed all the same: a controller of before, which knows no state,
    /// gave it, or the state is older than the claims. Then the claims are right.
    async fn is_stray(&self, network: NetworkId, address: IpAddr, pinned: bool) -> Result<bool> {
        let claimed = self.is_claimed(network, address).await?;
        if claimed && pinned {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                format!("the address {address} is taken"),
                "another port of the network has it",
                "leave the address out, or choose another",
            ));
        }
        Ok(claimed)
    }

    /// The same; `None` when what the store has cannot be read. That stops launches on the network, and nothing else.
    pub(super) async fn readable_addresses(&self, network: &Network) -> Result<Option<Addresses>> {
        match self.addresses(network).await {
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                tracing::error!(network = %network.meta.name, error = %error.inline(), "its addresses cannot be read");
                Ok(None)
            }
            addresses => addresses.map(Some),
        }
    }

    /// How much of a network's addresses is used, as far as anybody can tell.
    pub(super) async fn network_usage(&self, network: &Network) -> Result<Option<NetworkUsage>> {
        let addresses = self.readable_addresses(network).await?;
        Ok(addresses.map(|a| a.usage(self.now())))
    }

    /// Deletes ports with an edit: their MACs are free again, their addresses begin to rest.
    pub(super) async fn release_ports(&self, mut edit: Edit, ports: &[Held<Port>]) -> Result<Edit> {
        let mut networks: BTreeMap<NetworkId, Option<Addresses>> = BTreeMap::new();
        for held in ports {
            let (port, spec) = (&held.value, &held.value.spec);
            edit = edit.delete(held).release(mac_key(spec.mac));
            let both = [Some(IpAddr::V4(spec.address)), spec.address6.map(IpAddr::V6)];
            for address in both.into_iter().flatten() {
                let claim = address_key(spec.network, address);
                let owner = self.records().store().get(&claim).await?;
                if owner.is_some_and(|entry| entry.value != port.meta.id.to_string().as_bytes()) {
                    tracing::error!(port = %port.meta.id, %address, "the address is another port's: it stays taken");
                    continue;
                }
                edit = edit.release(claim);
                if !networks.contains_key(&spec.network)
                    && let Some(network) = self.records().get::<Network>(spec.network).await?
                {
                    // A later spec would read them otherwise.
                    edit = edit.rests_on(&network);
                    networks.insert(spec.network, self.readable_addresses(&network.value).await?);
                }
                if let Some(Some(addresses)) = networks.get_mut(&spec.network) {
                    addresses.release(address, self.now());
                }
            }
        }
        networks
            .values()
            .flatten()
            .try_fold(edit, |edit, addresses| addresses.keep(edit))
    }
}
