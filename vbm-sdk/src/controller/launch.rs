//! The launch of a VM: everything that it needs is made in one transaction, or nothing is.

use super::{Controller, addresses::Addresses, room};
use crate::api::{Accepted, LaunchRequest, NicRequest, VmView};
use crate::records::{Edit, Held, until_uncrossed};
use std::collections::{BTreeMap, btree_map::Entry};
use vbm_core::{
    DriverKind, Error, ErrorKind, EventKind, Group, Image, Kind, Mac, Meta, Network, NetworkId, Node,
    NodeState, ObjectRef, Operation, Port, PortId, PortSpec, PortStatus, PowerState, Result, Vm, VmId,
    VmSpec, VmStatus, Volume, VolumeId, VolumeSpec, WantedPower, limits, object,
};
use vbm_net::gateway_mac;

const MIB_BYTES: u64 = 1024 * 1024;

/// A NIC whose references were looked up.
struct Nic {
    port: Port,
    network: Held<Network>,
    groups: Vec<Held<Group>>,
}

impl Controller {
    /// Makes a VM with its disk and ports, and an operation that sees it run. All or nothing.
    ///
    /// # Errors
    /// What is asked makes no sense, refers to what does not exist, or is taken.
    pub async fn launch(&self, request: &LaunchRequest) -> Result<Accepted<VmView>> {
        let _picking = self.inner.picking.lock().await;
        let headline = request
            .name
            .as_ref()
            .map_or_else(|| "cannot launch the VM".into(), |n| format!("cannot launch {n}"));
        let (id, operation) = until_uncrossed(|| self.launch_once(request))
            .await
            .map_err(|e| if e.is_not_found() { e } else { e.context(headline) })?;
        Ok(Accepted {
            item: self.vm_view(&id.to_string()).await?,
            operation,
        })
    }

    async fn launch_once(&self, request: &LaunchRequest) -> Result<(VmId, Operation)> {
        object::check_labels(&request.labels)?;
        let image = self.records().resolve::<Image>(&request.image).await?;
        let id = VmId::from_uuid(self.inner.ids.next());
        let name = match &request.name {
            Some(name) => name.clone(),
            None => format!("vm-{}", id.short()).parse()?,
        };
        let (mut nics, mut addresses) = (Vec::new(), BTreeMap::new());
        for wanted in &request.nics {
            let nic = self.nic(id, wanted, &nics, &mut addresses).await?;
            nics.push(nic);
        }
        for nic in &nics {
            if let Some(taken) = addresses.get(&nic.port.spec.network) {
                room::ports(&nic.network.value.meta.name, taken.ports(self.now()))?;
            }
        }
        if nics.iter().any(|n| !n.groups.is_empty()) {
            let new: Vec<&Port> = nics.iter().map(|n| &n.port).collect();
            self.room_for_groups(&new, None).await?;
        }
        let volume = self.root_volume(id, &image.value, request.disk_mib)?;
        let spec = VmSpec {
            vcpus: request.vcpus,
            memory_mib: request.memory_mib,
            image: image.value.meta.id,
            root_volume: volume.meta.id,
            ports: nics.iter().map(|n| n.port.meta.id).collect(),
            driver: self.driver_for(request.driver).await?,
            power: if request.stopped {
                WantedPower::Off
            } else {
                WantedPower::Running
            },
            node: request.node.clone(),
            moving: None,
            reverting: None,
            guest: request.guest.clone(),
        };
        spec.check()?;
        if let Some(node) = &request.node {
            self.records().must::<Node>(node).await?;
        }
        let now = self.inner.clock.now();
        let mut meta = Meta::new(id, name, now);
        meta.labels.clone_from(&request.labels);
        let vm = Vm {
            meta,
            spec,
            status: VmStatus {
                power: PowerState::Off,
                since: now,
                ..VmStatus::default()
            },
        };
        let target = ObjectRef::new(Kind::Vm, id, &vm.meta.name);
        let operation = self.operation("launch", target.clone(), vm.meta.generation);
        let mut edit = Edit::default()
            .create(&vm)
            .create(&volume)
            .create(&operation)
            .rests_on(&image)
            .event(&self.event(
                EventKind::VmCreated,
                target,
                format!("from image {}", image.value.meta.name),
            ));
        for nic in &nics {
            edit = edit.create(&nic.port).rests_on(&nic.network);
            edit = claim_port(edit, &nic.port);
            for group in &nic.groups {
                edit = edit.rests_on(group);
            }
        }
        for addresses in addresses.values() {
            edit = addresses.keep(edit)?;
        }
        self.records().commit(edit).await?;
        Ok((id, operation))
    }

    /// The driver asked for, or the one that the nodes have: QEMU before others. Refused when nodes answer and none of
    /// them can use it, so that nothing is made that cannot run.
    async fn driver_for(&self, wanted: Option<DriverKind>) -> Result<DriverKind> {
        let nodes: Vec<Node> = self
            .records()
            .all::<Node>()
            .await?
            .into_iter()
            .map(|n| n.value)
            .collect();
        let ready: Vec<&Node> = nodes
            .iter()
            .filter(|n| n.status.state == NodeState::Ready)
            .collect();
        let capabilities: Vec<_> = ready.iter().flat_map(|n| &n.status.capabilities).collect();
        let usable = capabilities
            .iter()
            .filter(|c| c.problem.is_none())
            .map(|c| c.driver);
        let driver = wanted.or_else(|| usable.clone().min()).unwrap_or_default();
        if ready.is_empty() || usable.clone().any(|d| d == driver) {
            return Ok(driver);
        }
        let problem = capabilities
            .iter()
            .filter(|c| c.driver == driver)
            .find_map(|c| c.problem.clone());
        Err(problem.unwrap_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                format!("no node has the driver {driver}"),
                "the nodes that answer were started without it",
                "choose another --driver; `vbm node list` shows what the nodes have",
            )
        }))
    }

    fn root_volume(&self, vm: VmId, image: &Image, disk_mib: Option<u64>) -> Result<Volume> {
        let virtual_bytes = disk_mib.map_or(image.spec.virtual_bytes, |mib| mib.saturating_mul(MIB_BYTES));
        if virtual_bytes < image.spec.virtual_bytes || virtual_bytes > limits::DISK_MAX_MIB * MIB_BYTES {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("a disk of {} MiB does not fit", virtual_bytes / MIB_BYTES),
                format!(
                    "image {} needs {} MiB, and 64 TiB is the limit",
                    image.meta.name,
                    image.spec.virtual_bytes.div_ceil(MIB_BYTES)
                ),
                "leave --disk out, or choose a larger one",
            ));
        }
        let id = VolumeId::from_uuid(self.inner.ids.next());
        let name = format!("root-{}", vm.short()).parse()?;
        Ok(Volume {
            meta: Meta::new(id, name, self.inner.clock.now()),
            spec: VolumeSpec {
                image: image.meta.id,
                virtual_bytes,
                vm,
            },
        })
    }

    async fn nic(
        &self,
        vm: VmId,
        wanted: &NicRequest,
        earlier: &[Nic],
        addresses: &mut BTreeMap<NetworkId, Addresses>,
    ) -> Result<Nic> {
        let network = self.records().resolve::<Network>(&wanted.network).await?;
        let record = &network.value;
        if record.meta.deleting {
            return Err(Error::not_found("network", &record.meta.name));
        }
        let groups = self.groups_of(&wanted.groups).await?;
        let addresses = match addresses.entry(record.meta.id) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(self.addresses(record).await?),
        };
        let id = PortId::from_uuid(self.inner.ids.next());
        let mac = match wanted.mac.or_else(|| addresses.mac_of(wanted)) {
            Some(mac) if earlier.iter().any(|n| n.port.spec.mac == mac) => {
                return Err(twice(format!("the MAC {mac}")));
            }
            Some(mac) if !mac.is_unicast() => {
                return Err(Error::new(
                    ErrorKind::InvalidInput,
                    format!("a NIC cannot have the MAC {mac}"),
                    "it is a multicast, broadcast or empty address",
                    "choose one whose first octet is even, such as 52:54:00:ab:cd:ef",
                ));
            }
            Some(mac) if mac == gateway_mac(record.meta.id) => {
                return Err(Error::new(
                    ErrorKind::InvalidInput,
                    format!("a NIC cannot have the MAC {mac}"),
                    format!("it is that of the gateway of network {}", record.meta.name),
                    "choose another, or leave the MAC out",
                ));
            }
            Some(mac) => mac,
            None => self.pick_mac(earlier).await?,
        };
        let given = self
            .take_addresses(record.meta.id, addresses, wanted, mac)
            .await
            .map_err(|e| e.context(format!("no address on network {} for it", record.meta.name)))?;
        let spec = PortSpec {
            network: record.meta.id,
            vm,
            mac,
            address: given.address,
            pinned: given.pinned,
            address6: given.address6,
            groups: groups.iter().map(|g| g.value.meta.id).collect(),
            pairs: Vec::new(),
            limits: Default::default(),
            floating_ip: None,
        };
        let name = format!("port-{}", id.short()).parse()?;
        let port = Port {
            meta: Meta::new(id, name, self.inner.clock.now()),
            spec,
            status: PortStatus::default(),
        };
        Ok(Nic {
            port,
            network,
            groups,
        })
    }

    pub(super) async fn groups_of(&self, names: &[String]) -> Result<Vec<Held<Group>>> {
        if names.len() > limits::PORT_MAX_GROUPS {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("a port cannot have {} groups", names.len()),
                "16 are allowed",
                "join their rules in fewer groups",
            ));
        }
        let mut groups: Vec<Held<Group>> = Vec::with_capacity(names.len());
        for name in names {
            let group = self.group_of(name).await?;
            if !groups.iter().any(|g| g.value.meta.id == group.value.meta.id) {
                groups.push(group);
            }
        }
        Ok(groups)
    }

    async fn pick_mac(&self, earlier: &[Nic]) -> Result<Mac> {
        loop {
            let [.., a, b, c] = *self.inner.ids.next().as_bytes();
            let mac = Mac::local(u32::from_be_bytes([0, a, b, c]));
            let taken = self.records().store().get(&mac_key(mac)).await?.is_some();
            if !taken && earlier.iter().all(|n| n.port.spec.mac != mac) {
                return Ok(mac);
            }
        }
    }
}

fn twice(what: String) -> Error {
    Error::new(
        ErrorKind::AlreadyExists,
        format!("{what} is taken"),
        "another NIC of the same VM has it",
        "choose another, or leave it out",
    )
}

/// Claims the MAC and the addresses of a port. Another controller may pick the same at the same time.
fn claim_port(edit: Edit, port: &Port) -> Edit {
    let (id, spec) = (port.meta.id, &port.spec);
    let edit = edit.claim(mac_key(spec.mac), id);
    let key = address_key(spec.network, spec.address);
    let edit = match spec.pinned {
        true => edit.claim(key, id),
        false => edit.pick(key, id),
    };
    match spec.address6 {
        Some(address) => edit.pick(address_key(spec.network, address), id),
        None => edit,
    }
}

pub(super) fn mac_key(mac: Mac) -> String {
    format!("mac/{mac}")
}

pub(super) fn address_key(network: NetworkId, address: impl std::fmt::Display) -> String {
    format!("address/{network}/{address}")
}
