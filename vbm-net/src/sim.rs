//! The simulated twin: a host's networks in memory, with the same checks and the same answers.
//!
//! The host has the interfaces that [`SimNetwork::INTERFACES`] names, all of them bridges. It keeps no packets. A NIC is one end of a socket pair whose other end the simulation holds. A guest's DHCP is
//! [`SimNetwork::lease`], called by itself when a NIC is opened, unless told otherwise. Faults are
//! given ahead: [`SimNetwork::fail_next`].

mod backend;
mod state;

pub(crate) use state::{floating_taken, nic_in_use, not_here};

use crate::{LeaseSeen, NetError, NetEvent, backend::EVENTS_MAX_PENDING, metadata::Instance};
use state::State;
use std::{
    net::{Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::broadcast;
use vbm_core::{Clock, NetworkId, PortId};

/// A simulated host's networks. Cheap to clone; clones are the same host.
#[derive(Clone)]
pub struct SimNetwork {
    inner: Arc<Inner>,
}

struct Inner {
    clock: Arc<dyn Clock>,
    auto_lease: bool,
    state: Mutex<State>,
    events: broadcast::Sender<NetEvent>,
}

impl std::fmt::Debug for SimNetwork {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimNetwork")
            .field("networks", &self.lock().networks.len())
            .finish_non_exhaustive()
    }
}

impl SimNetwork {
    /// A host without networks, whose guests take their lease as soon as their NIC is opened.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self::build(clock, true)
    }

    /// A host whose guests take a lease only by [`Self::lease`].
    pub fn without_leases(clock: Arc<dyn Clock>) -> Self {
        Self::build(clock, false)
    }

    /// The interfaces that each simulated host has.
    pub const INTERFACES: [&str; 3] = ["eth0", "br-lan", crate::conformance::UPLINK];

    /// The host has one more interface.
    pub fn add_interface(&self, name: impl Into<String>) {
        self.lock().interfaces.insert(name.into());
    }

    fn build(clock: Arc<dyn Clock>, auto_lease: bool) -> Self {
        let (events, _) = broadcast::channel(EVENTS_MAX_PENDING);
        Self {
            inner: Arc::new(Inner {
                clock,
                auto_lease,
                state: Mutex::default(),
                events,
            }),
        }
    }

    /// The next call that changes something fails with this, and changes nothing. Faults queue up.
    pub fn fail_next(&self, error: NetError) {
        self.lock().faults.push_back(error);
    }

    /// So many of the next calls of [`crate::NetworkBackend::describe`] fail.
    pub fn fail_descriptions(&self, count: usize) {
        self.lock().deaf = count;
    }

    /// What the VM behind a port is told; `None` before [`crate::NetworkBackend::describe`] said so.
    pub fn told(&self, network: NetworkId, port: PortId) -> Option<Option<Instance>> {
        self.lock().networks.get(&network)?.told.get(&port).cloned()
    }

    /// A host that was restarted: taps and leases are gone, as are networks.
    pub fn power_cycle(&self) {
        let mut state = self.lock();
        let interfaces = std::mem::take(&mut state.interfaces);
        *state = State {
            interfaces,
            ..State::default()
        };
    }

    /// The guest behind a port takes or renews its address, and the IPv6 one if it has one.
    ///
    /// # Errors
    /// [`NetError::NotHere`].
    pub fn lease(&self, network: NetworkId, port: PortId) -> Result<LeaseSeen, NetError> {
        let since = self.inner.clock.now();
        let lease = {
            let mut state = self.lock();
            let one = state.network(network)?;
            let wanted = one.port(port)?;
            let until = since.plus(Duration::from_secs(one.wanted.spec.lease_seconds.into()));
            let lease = LeaseSeen {
                address: wanted,
                since,
                until,
            };
            one.leases.insert(port, lease);
            lease
        };
        let LeaseSeen { address, until, .. } = lease;
        if let Some(address) = self.address6(network, port) {
            self.tell(NetEvent::PortLeased6 {
                network,
                port,
                address,
                since,
                until,
            });
        }
        self.tell(NetEvent::PortLeased {
            network,
            port,
            address,
            since,
            until,
        });
        Ok(lease)
    }

    fn address6(&self, network: NetworkId, port: PortId) -> Option<Ipv6Addr> {
        let state = self.lock();
        let one = state.networks.get(&network)?;
        one.wanted.ports.iter().find(|p| p.id == port)?.address6
    }

    /// The guest behind a port gives its address back, and the IPv6 one if it has one.
    ///
    /// # Errors
    /// [`NetError::NotHere`].
    pub fn release(&self, network: NetworkId, port: PortId) -> Result<(), NetError> {
        let address = {
            let mut state = self.lock();
            let one = state.network(network)?;
            one.leases.remove(&port);
            one.port(port)?
        };
        if let Some(address) = self.address6(network, port) {
            self.tell(NetEvent::PortReleased6 {
                network,
                port,
                address,
            });
        }
        self.tell(NetEvent::PortReleased {
            network,
            port,
            address,
        });
        Ok(())
    }

    /// Whether a packet to a port would pass the rules that stand now: the oracle for tests of groups.
    pub fn would_pass(
        &self,
        network: NetworkId,
        port: PortId,
        protocol: vbm_core::Protocol,
        from: Ipv4Addr,
        to_port: Option<u16>,
    ) -> bool {
        self.lock().networks.get(&network).is_some_and(|one| {
            let policies = crate::plan::policy::Policies::new(&one.wanted);
            let packet = |to| crate::plan::policy::Packet {
                from: from.into(),
                to,
                protocol,
                to_port,
                icmp: None,
            };
            let mut ports = one.wanted.ports.iter().filter(|p| p.id == port);
            ports.any(|p| policies.allows(p, vbm_core::Direction::Ingress, &packet(p.address.into())))
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, event: NetEvent) {
        // No listener is fine: events are news, not state.
        drop(self.inner.events.send(event));
    }
}
