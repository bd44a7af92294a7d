//! Records joined for people: names beside ids.

use crate::api::{FloatingIpState, FloatingIpView, ForwardView, NetworkView, NicView, PortView, VmView};
use crate::records::{Held, Record, Records};
use std::collections::HashMap;
use vbm_core::{
    FloatingIp, Forward, Group, GroupId, Image, ImageId, Name, Network, NetworkId, Port, PortId, Result, Vm,
    VmId,
};

/// The records that views join.
pub(super) struct Tables {
    images: HashMap<ImageId, Name>,
    networks: HashMap<NetworkId, Name>,
    groups: HashMap<GroupId, Name>,
    vms: HashMap<VmId, Name>,
    ports: HashMap<PortId, Port>,
}

fn values<T: Record>(held: Vec<Held<T>>) -> impl Iterator<Item = T> {
    held.into_iter().map(|h| h.value)
}

impl Tables {
    pub(super) async fn load(records: &Records) -> Result<Self> {
        Ok(Self {
            images: values(records.all::<Image>().await?)
                .map(|r| (r.meta.id, r.meta.name))
                .collect(),
            networks: values(records.all::<Network>().await?)
                .map(|r| (r.meta.id, r.meta.name))
                .collect(),
            groups: values(records.all::<Group>().await?)
                .map(|r| (r.meta.id, r.meta.name))
                .collect(),
            vms: values(records.all::<Vm>().await?)
                .map(|r| (r.meta.id, r.meta.name))
                .collect(),
            ports: values(records.all::<Port>().await?)
                .map(|r| (r.meta.id, r))
                .collect(),
        })
    }

    pub(super) fn vm(&self, vm: &Vm) -> VmView {
        let mut shown = vm.clone();
        // It may hold secrets, and nobody but the guest needs it again.
        shown.spec.guest.user_data = None;
        VmView {
            vm: shown,
            image_name: name(&self.images, &vm.spec.image),
            nics: vm
                .spec
                .ports
                .iter()
                .filter_map(|p| self.ports.get(p))
                .map(|p| self.nic(p))
                .collect(),
        }
    }

    fn nic(&self, port: &Port) -> NicView {
        NicView {
            port: port.clone(),
            network_name: name(&self.networks, &port.spec.network),
            group_names: self.group_names(port),
        }
    }

    fn group_names(&self, port: &Port) -> Vec<Name> {
        port.spec
            .groups
            .iter()
            .filter_map(|g| self.groups.get(g).cloned())
            .collect()
    }

    pub(super) fn port(&self, port: &Port) -> PortView {
        PortView {
            port: port.clone(),
            network_name: name(&self.networks, &port.spec.network),
            vm_name: name(&self.vms, &port.spec.vm),
            group_names: self.group_names(port),
        }
    }

    pub(super) fn network(&self, network: &Network) -> NetworkView {
        let ports = self
            .ports
            .values()
            .filter(|p| p.spec.network == network.meta.id)
            .count();
        NetworkView {
            network: network.clone(),
            ports: ports as u64,
            usage: None,
        }
    }

    pub(super) fn port_of(&self, id: PortId) -> Option<&Port> {
        self.ports.get(&id)
    }

    pub(super) fn floating_ip(&self, floating: &FloatingIp) -> FloatingIpView {
        let has = |p: &&Port| p.spec.floating_ip == Some(floating.spec.address);
        let port = self.ports.values().find(has);
        FloatingIpView {
            floating_ip: floating.clone(),
            state: match port {
                Some(_) => FloatingIpState::Attached,
                None => FloatingIpState::Free,
            },
            port: port.map(|p| p.meta.id),
            vm_name: port.map(|p| name(&self.vms, &p.spec.vm)),
            network_name: port.map(|p| name(&self.networks, &p.spec.network)),
            target_address: port.map(|p| p.spec.address),
        }
    }

    /// `None` while the port it goes to is being deleted.
    pub(super) fn forward(&self, forward: &Forward) -> Option<ForwardView> {
        let port = self.ports.get(&forward.spec.target)?;
        Some(ForwardView {
            forward: forward.clone(),
            network_name: name(&self.networks, &forward.spec.network),
            vm_name: name(&self.vms, &port.spec.vm),
            target_address: port.spec.address,
        })
    }
}

/// The name of a record, or its id while it has none.
fn name<Id: std::hash::Hash + Eq + ToString>(names: &HashMap<Id, Name>, id: &Id) -> String {
    names.get(id).map_or_else(|| id.to_string(), ToString::to_string)
}
