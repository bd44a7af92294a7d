//! The simulated twin: a host's networks in memory, with the same checks and the same answers.
//!
//! The host has the interfaces that [`SimNetwork::INTERFACES`] names, all of them bridges. It keeps no packets. A NIC is one end of a socket pair whose other end the simulation holds. A guest's DHCP is
//! [`SimNetwork::lease`], called by itself when a NIC is opened, unless told otherwise. Faults are
//! given ahead: [`SimNetwork::fail_next`].

use crate::{
    DesiredNetwork, LeaseSeen, LeaseSeen6, NetError, NetEvent, NetworkBackend, NetworkCounters, NetworkSeen,
    Nic, NicKind, PathSeen, PortFlow, PortSeen, Validated,
    backend::EVENTS_MAX_PENDING,
    check::Known,
    metadata::Instance,
    model::gateway_mac,
    names,
    plan::{
        Transit,
        leg::{Refusal, Seen, offered},
        routed::{self, Others},
    },
};
use async_trait::async_trait;
use ipnet::Ipv4Net;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    net::{Ipv4Addr, Ipv6Addr},
    os::{fd::OwnedFd, unix::net::UnixDatagram},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::broadcast;
use vbm_core::{Clock, NetworkId, NetworkMode, PortId, Uplink};

/// How a change is reported.
const CHANGED: &str = "changed as wanted";
const MADE: &str = "made the network";

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

#[derive(Default)]
struct State {
    networks: BTreeMap<NetworkId, SimOne>,
    faults: VecDeque<NetError>,
    /// Interfaces beside the usual ones.
    interfaces: BTreeSet<String>,
    /// How many further descriptions fail.
    deaf: usize,
    stopped: bool,
}

struct SimOne {
    wanted: Validated<DesiredNetwork>,
    open: BTreeMap<PortId, SimNic>,
    leases: BTreeMap<PortId, LeaseSeen>,
    told: BTreeMap<PortId, Option<Instance>>,
    flows: BTreeMap<PortId, Vec<PortFlow>>,
}

/// Our end of a NIC.
enum SimNic {
    Tap(UnixDatagram),
    /// Stands until it is closed, whoever uses it.
    Interface,
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

    /// So many of the next calls of [`NetworkBackend::describe`] fail.
    pub fn fail_descriptions(&self, count: usize) {
        self.lock().deaf = count;
    }

    /// What the VM behind a port is told; `None` before [`NetworkBackend::describe`] said so.
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

impl State {
    /// A floating IP leads to one network of a host.
    fn refuse_taken(&self, wanted: &DesiredNetwork) -> Result<(), NetError> {
        let others = self.networks.values().filter(|one| one.wanted.id != wanted.id);
        let taken: BTreeSet<Ipv4Addr> = others
            .flat_map(|one| one.wanted.ports.iter().filter_map(|p| p.policy.floating))
            .collect();
        let mut asked = wanted.ports.iter().filter_map(|p| p.policy.floating);
        match asked.find(|a| taken.contains(a)) {
            Some(address) => Err(floating_taken(address)),
            None => Ok(()),
        }
    }

    /// What the host's interfaces and its other networks do not allow.
    fn refuse_place(&self, wanted: &DesiredNetwork) -> Result<(), NetError> {
        if let Some(uplink) = &wanted.spec.uplink {
            let name = uplink.as_str();
            if !SimNetwork::INTERFACES.contains(&name) && !self.interfaces.contains(name) {
                return Err(Refusal::Absent.told(uplink));
            }
        }
        if wanted.spec.mode != NetworkMode::Routed {
            return Ok(());
        }
        let others = self.networks.values().map(|one| &one.wanted);
        let others = others.filter(|o| o.id != wanted.id && o.spec.mode == NetworkMode::Routed);
        let named = |o: &DesiredNetwork| {
            let name = format!("network '{}' ({})", o.name, o.id);
            routed::cidrs(o).map(move |cidr| (cidr, name.clone()))
        };
        let others = Others {
            networks: others.flat_map(|o| named(o)).collect(),
            ..Others::default()
        };
        let clash = |cidr| routed::clash(cidr, &others).map(|clash| clash.told(cidr));
        routed::cidrs(wanted).find_map(clash).map_or(Ok(()), Err)
    }

    fn network(&mut self, id: NetworkId) -> Result<&mut SimOne, NetError> {
        self.networks.get_mut(&id).ok_or_else(|| not_here("network", id))
    }
    fn up(&self) -> Result<(), NetError> {
        if self.stopped {
            Err(NetError::Stopped)
        } else {
            Ok(())
        }
    }
    fn fault(&mut self) -> Result<(), NetError> {
        self.up()?;
        self.faults.pop_front().map_or(Ok(()), Err)
    }
}

pub(crate) fn not_here(noun: &'static str, id: impl std::fmt::Display) -> NetError {
    NetError::NotHere {
        noun,
        name: id.to_string(),
    }
}

impl SimOne {
    fn port(&self, id: PortId) -> Result<Ipv4Addr, NetError> {
        self.wanted
            .ports
            .iter()
            .find(|p| p.id == id)
            .map(|p| p.address)
            .ok_or_else(|| not_here("port", id))
    }

    /// Each with a transit of its own.
    fn known((one, nth): (&Self, u32)) -> Known {
        let base = Ipv4Addr::from(u32::from(Ipv4Addr::new(169, 254, 0, 0)) + 2 * nth);
        let net = Ipv4Net::new_assert(base, 31);
        Known {
            net: one.wanted.clone(),
            transit: Transit::new(net).filter(|_| one.wanted.spec.mode.goes_by_host()),
        }
    }

    fn seen(&self, changed: Vec<String>) -> NetworkSeen {
        let id = self.wanted.id;
        let ports = self.wanted.ports.iter().map(|p| PortSeen {
            id: p.id,
            tap: names::tap(p.id),
            guarded: true,
            open: self.open.contains_key(&p.id),
            described: self.told.contains_key(&p.id),
            lease: self.leases.get(&p.id).copied(),
            lease6: p
                .address6
                .zip(self.leases.get(&p.id))
                .map(|(address, lease)| LeaseSeen6 {
                    address,
                    since: lease.since,
                    until: lease.until,
                }),
        });
        let by_host = self.wanted.spec.mode.goes_by_host();
        let transit = by_host.then(|| Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 31));
        NetworkSeen {
            id,
            namespace: names::namespace(id),
            gateway_mac: gateway_mac(id),
            transit,
            ready: true,
            mtu: self.wanted.spec.mtu,
            ports: ports.collect(),
            services: crate::ServicesSeen::default(),
            changed,
        }
    }
}

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

/// Whether somebody holds the guest's end: sending to a pair whose other end is closed is refused.
fn is_held(nic: &SimNic) -> bool {
    let SimNic::Tap(ours) = nic else { return true };
    let probe = ours.set_nonblocking(true).and_then(|()| ours.send(&[]));
    !matches!(probe, Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected))
}

pub(crate) fn floating_taken(address: Ipv4Addr) -> NetError {
    NetError::Conflict {
        what: format!("the floating IP {address} cannot be attached here"),
        why: "it leads to another network of this host".into(),
        fix: "detach it there first".into(),
    }
}

pub(crate) fn nic_in_use(port: PortId) -> NetError {
    NetError::Conflict {
        what: format!("the NIC of port {port} is open already"),
        why: format!("{} exists, and a VM may hold it", names::tap(port)),
        fix: "stop the VM that uses it, or close the NIC first".into(),
    }
}
