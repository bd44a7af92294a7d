//! What the simulated host holds, and what it refuses.

use super::SimNetwork;
use crate::{
    DesiredNetwork, LeaseSeen, LeaseSeen6, NetError, NetworkSeen, PortFlow, PortSeen, Validated,
    check::Known,
    metadata::Instance,
    model::gateway_mac,
    names,
    plan::{
        Transit,
        leg::Refusal,
        routed::{self, Others},
    },
};
use ipnet::Ipv4Net;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    net::Ipv4Addr,
    os::unix::net::UnixDatagram,
};
use vbm_core::{NetworkId, NetworkMode, PortId};

#[derive(Default)]
pub(super) struct State {
    pub(super) networks: BTreeMap<NetworkId, SimOne>,
    pub(super) faults: VecDeque<NetError>,
    /// Interfaces beside the usual ones.
    pub(super) interfaces: BTreeSet<String>,
    /// How many further descriptions fail.
    pub(super) deaf: usize,
    pub(super) stopped: bool,
}

pub(super) struct SimOne {
    pub(super) wanted: Validated<DesiredNetwork>,
    pub(super) open: BTreeMap<PortId, SimNic>,
    pub(super) leases: BTreeMap<PortId, LeaseSeen>,
    pub(super) told: BTreeMap<PortId, Option<Instance>>,
    pub(super) flows: BTreeMap<PortId, Vec<PortFlow>>,
}

/// Our end of a NIC.
pub(super) enum SimNic {
    Tap(UnixDatagram),
    /// Stands until it is closed, whoever uses it.
    Interface,
}

impl State {
    /// A floating IP leads to one network of a host.
    pub(super) fn refuse_taken(&self, wanted: &DesiredNetwork) -> Result<(), NetError> {
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
    pub(super) fn refuse_place(&self, wanted: &DesiredNetwork) -> Result<(), NetError> {
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

    pub(super) fn network(&mut self, id: NetworkId) -> Result<&mut SimOne, NetError> {
        self.networks.get_mut(&id).ok_or_else(|| not_here("network", id))
    }
    pub(super) fn up(&self) -> Result<(), NetError> {
        if self.stopped {
            Err(NetError::Stopped)
        } else {
            Ok(())
        }
    }
    pub(super) fn fault(&mut self) -> Result<(), NetError> {
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
    pub(super) fn port(&self, id: PortId) -> Result<Ipv4Addr, NetError> {
        self.wanted
            .ports
            .iter()
            .find(|p| p.id == id)
            .map(|p| p.address)
            .ok_or_else(|| not_here("port", id))
    }

    /// Each with a transit of its own.
    pub(super) fn known((one, nth): (&Self, u32)) -> Known {
        let base = Ipv4Addr::from(u32::from(Ipv4Addr::new(169, 254, 0, 0)) + 2 * nth);
        let net = Ipv4Net::new_assert(base, 31);
        Known {
            net: one.wanted.clone(),
            transit: Transit::new(net).filter(|_| one.wanted.spec.mode.goes_by_host()),
        }
    }

    pub(super) fn seen(&self, changed: Vec<String>) -> NetworkSeen {
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

/// Whether somebody holds the guest's end: sending to a pair whose other end is closed is refused.
pub(super) fn is_held(nic: &SimNic) -> bool {
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
