//! The calls of every backend, on what the simulated host holds.

use super::{
    SimNetwork,
    state::{SimNic, SimOne, is_held, nic_in_use, not_here},
};
use crate::{
    DesiredNetwork, NetError, NetEvent, NetworkBackend, NetworkCounters, NetworkSeen, Nic, NicKind, PathSeen,
    PortFlow, Validated,
    check::Known,
    metadata::Instance,
    names,
    plan::leg::{Seen, offered},
};
use async_trait::async_trait;
use std::{
    collections::{BTreeMap, BTreeSet},
    os::{fd::OwnedFd, unix::net::UnixDatagram},
    time::Duration,
};
use tokio::sync::broadcast;
use vbm_core::{NetworkId, PortId, Uplink};

/// How a change is reported.
const CHANGED: &str = "changed as wanted";
const MADE: &str = "made the network";

#[async_trait]
impl NetworkBackend for SimNetwork {
    async fn ensure(&self, desired: DesiredNetwork) -> Result<NetworkSeen, NetError> {
        self.lock().up()?;
        let wanted = Validated::<DesiredNetwork>::new(desired)?;
        let mut state = self.lock();
        state.fault()?;
        let id = wanted.id;
        let ports: BTreeSet<PortId> = wanted.ports.iter().map(|p| p.id).collect();
        state.refuse_taken(&wanted)?;
        state.refuse_place(&wanted)?;
        let changed = match state.networks.get_mut(&id) {
            Some(one) if one.wanted == wanted => Vec::new(),
            Some(one) => {
                one.wanted = wanted;
                one.open.retain(|port, _| ports.contains(port));
                one.leases.retain(|port, _| ports.contains(port));
                one.told.retain(|port, _| ports.contains(port));
                one.flows.retain(|port, _| ports.contains(port));
                vec![CHANGED.to_owned()]
            }
            None => {
                let one = SimOne {
                    wanted,
                    open: BTreeMap::new(),
                    leases: BTreeMap::new(),
                    told: BTreeMap::new(),
                    flows: BTreeMap::new(),
                };
                state.networks.insert(id, one);
                vec![MADE.to_owned()]
            }
        };
        Ok(state.network(id)?.seen(changed))
    }

    async fn remove(&self, id: NetworkId) -> Result<(), NetError> {
        let mut state = self.lock();
        state.fault()?;
        state.networks.remove(&id);
        Ok(())
    }

    async fn open_nic(&self, network: NetworkId, port: PortId, kind: NicKind) -> Result<Nic, NetError> {
        let nic = {
            let mut state = self.lock();
            state.fault()?;
            let one = state.network(network)?;
            one.port(port)?;
            if one.open.get(&port).is_some_and(is_held) {
                return Err(nic_in_use(port));
            }
            match kind {
                NicKind::Tap => {
                    let (ours, theirs) =
                        UnixDatagram::pair().map_err(|e| NetError::kernel("making a socket pair", e))?;
                    one.open.insert(port, SimNic::Tap(ours));
                    Nic::Tap {
                        fd: OwnedFd::from(theirs),
                        vnet_hdr: false,
                    }
                }
                NicKind::Interface => {
                    one.open.insert(port, SimNic::Interface);
                    Nic::Interface {
                        name: names::interface(port),
                    }
                }
            }
        };
        if self.inner.auto_lease {
            self.lease(network, port)?;
        }
        Ok(nic)
    }

    async fn close_nic(&self, network: NetworkId, port: PortId) -> Result<(), NetError> {
        let mut state = self.lock();
        state.fault()?;
        if let Some(one) = state.networks.get_mut(&network) {
            one.open.remove(&port);
        }
        Ok(())
    }

    async fn describe(
        &self,
        network: NetworkId,
        port: PortId,
        instance: Option<Instance>,
    ) -> Result<(), NetError> {
        if let Some(instance) = &instance {
            instance.check().map_err(NetError::Invalid)?;
        }
        let mut state = self.lock();
        state.up()?;
        if let Some(left) = state.deaf.checked_sub(1) {
            state.deaf = left;
            return Err(NetError::TimedOut {
                doing: "telling what a VM is told".into(),
                limit: Duration::ZERO,
            });
        }
        let one = state.network(network)?;
        one.port(port)?;
        one.told.insert(port, instance);
        Ok(())
    }

    async fn flows_of(&self, network: NetworkId, port: PortId) -> Result<Vec<PortFlow>, NetError> {
        let mut state = self.lock();
        state.up()?;
        let one = state.network(network)?;
        one.port(port)?;
        Ok(one.flows.get(&port).cloned().unwrap_or_default())
    }

    async fn take_flows(
        &self,
        network: NetworkId,
        port: PortId,
        flows: Vec<PortFlow>,
    ) -> Result<usize, NetError> {
        let mut state = self.lock();
        state.up()?;
        let one = state.network(network)?;
        one.port(port)?;
        let before = one.flows.get(&port).cloned().unwrap_or_default();
        let Some(wanted) = one.wanted.ports.iter().find(|p| p.id == port) else {
            return Err(not_here("port", port));
        };
        let new = crate::plan::carry::to_take(&one.wanted, None, wanted, &flows, &before);
        let count = new.len();
        one.flows.entry(port).or_default().extend(new);
        Ok(count)
    }

    async fn plan(&self, desired: DesiredNetwork) -> Result<Vec<String>, NetError> {
        self.lock().up()?;
        let wanted = Validated::<DesiredNetwork>::new(desired)?;
        let state = self.lock();
        state.refuse_taken(&wanted)?;
        state.refuse_place(&wanted)?;
        Ok(match state.networks.get(&wanted.id) {
            Some(one) if one.wanted == wanted => Vec::new(),
            Some(_) => vec![CHANGED.to_owned()],
            None => vec![MADE.to_owned()],
        })
    }

    async fn check(&self) -> Result<Vec<PathSeen>, NetError> {
        let state = self.lock();
        state.up()?;
        let known: Vec<Known> = state.networks.values().zip(0u32..).map(SimOne::known).collect();
        let mut paths = crate::check::paths(&known, &[])?;
        for path in &mut paths {
            path.reached = path.allowed;
        }
        Ok(paths)
    }

    async fn counters(&self, network: NetworkId) -> Result<NetworkCounters, NetError> {
        let mut state = self.lock();
        state.fault()?;
        Ok(NetworkCounters::none(&state.network(network)?.wanted))
    }

    async fn inventory(&self) -> Result<Vec<NetworkSeen>, NetError> {
        let state = self.lock();
        state.up()?;
        Ok(state.networks.values().map(|one| one.seen(Vec::new())).collect())
    }

    async fn sweep(&self, keep: &BTreeSet<NetworkId>) -> Result<Vec<String>, NetError> {
        let mut state = self.lock();
        state.fault()?;
        let gone: Vec<_> = state
            .networks
            .keys()
            .filter(|id| !keep.contains(id))
            .copied()
            .collect();
        for id in &gone {
            state.networks.remove(id);
        }
        Ok(gone
            .into_iter()
            .map(|id| format!("namespace {}", names::namespace(id)))
            .collect())
    }

    async fn uplinks(&self) -> Result<Vec<Uplink>, NetError> {
        let state = self.lock();
        state.up()?;
        let names = Self::INTERFACES.into_iter().map(str::to_owned);
        let names = names.chain(state.interfaces.iter().cloned());
        let bridge = Seen {
            is_bridge: true,
            ..Seen::default()
        };
        Ok(offered(names.map(|name| (name, bridge.clone()))))
    }

    fn events(&self) -> broadcast::Receiver<NetEvent> {
        self.inner.events.subscribe()
    }

    async fn shutdown(&self) {
        self.lock().stopped = true;
    }
}
