//! Requests about VMs.

use super::{Controller, operations, views};
use crate::api::{Accepted, LaunchRequest, NicRequest, PowerAction, SetGroups, VmView};
use crate::methods::VmReset;
use crate::records::{Edit, Held, until_uncrossed};
use std::net::Ipv4Addr;
use vbm_core::{
    DriverKind, Error, ErrorKind, EventKind, Generation, Group, GroupId, Image, Kind, Mac, Meta, Name,
    Network, Node, NodeState, ObjectRef, Operation, Port, PortId, PortSpec, PortStatus, PowerState, Result,
    Vm, VmId, VmSpec, VmStatus, Volume, VolumeId, VolumeSpec, WantedPower, limits, object,
};
use vbm_net::ipam::Ipam;

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
        let mut nics = Vec::new();
        for wanted in &request.nics {
            let nic = self.nic(id, wanted, &nics).await?;
            nics.push(nic);
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

    async fn nic(&self, vm: VmId, wanted: &NicRequest, earlier: &[Nic]) -> Result<Nic> {
        let network = self.records().resolve::<Network>(&wanted.network).await?;
        let record = &network.value;
        if record.meta.deleting {
            return Err(Error::not_found("network", &record.meta.name));
        }
        let groups = self.groups_of(&wanted.groups).await?;
        let address = match wanted.address {
            Some(address) => pinned(record, address)?,
            None => self.pick_address(record, earlier).await?,
        };
        if earlier
            .iter()
            .any(|n| n.network.value.meta.id == record.meta.id && n.port.spec.address == address)
        {
            return Err(twice(format!("the address {address}")));
        }
        let id = PortId::from_uuid(self.inner.ids.next());
        let mac = match wanted.mac {
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
            Some(mac) => mac,
            None => self.pick_mac(earlier).await?,
        };
        let spec = PortSpec {
            network: record.meta.id,
            vm,
            mac,
            address,
            pinned: wanted.address.is_some(),
            groups: groups.iter().map(|g| g.value.meta.id).collect(),
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

    async fn groups_of(&self, names: &[String]) -> Result<Vec<Held<Group>>> {
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
            let group = self.records().resolve::<Group>(name).await?;
            if !groups.iter().any(|g| g.value.meta.id == group.value.meta.id) {
                groups.push(group);
            }
        }
        Ok(groups)
    }

    /// The next free address of the pool; those of the same request count as taken.
    async fn pick_address(&self, network: &Network, earlier: &[Nic]) -> Result<Ipv4Addr> {
        let taken = self
            .records()
            .keys_below(&format!("address/{}/", network.meta.id))
            .await?;
        let mut ipam = Ipam::new(&network.spec)?;
        let earlier = earlier
            .iter()
            .filter(|n| n.network.value.meta.id == network.meta.id)
            .map(|n| n.port.spec.address);
        for address in taken.iter().filter_map(|t| t.parse().ok()).chain(earlier) {
            // Pinned addresses may stand outside the pool, where there is nothing to reserve.
            drop(ipam.reserve(address));
        }
        ipam.allocate(None)
            .map_err(|e| e.context(format!("network {} has no free address", network.meta.name)))
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

    /// Changes what power state is wanted, and gives an operation that sees it reached.
    ///
    /// # Errors
    /// The VM does not exist, or its state does not allow it.
    pub async fn power(&self, vm: &str, action: PowerAction) -> Result<Accepted<VmView>> {
        let id = self.records().resolve::<Vm>(vm).await?.value.meta.id;
        if action == PowerAction::Restart {
            return self.restart(id).await;
        }
        let operation = until_uncrossed(|| self.power_once(id, action)).await?;
        Ok(Accepted {
            item: self.vm_view(&id.to_string()).await?,
            operation,
        })
    }

    async fn power_once(&self, id: VmId, action: PowerAction) -> Result<Operation> {
        let held = self.records().must::<Vm>(id).await?;
        let mut vm = held.value.clone();
        let verb = verb(action);
        let target = ObjectRef::new(Kind::Vm, id, &vm.meta.name);
        if vm.meta.deleting {
            return Err(being_deleted(&vm.meta.name));
        }
        match plan_power(&vm, action)? {
            None => {
                self.done_at_once(self.operation(verb, target, vm.meta.generation))
                    .await
            }
            Some(wanted) => {
                vm.spec.power = wanted;
                vm.meta.generation = vm.meta.generation.next();
                vm.status.problem = None;
                let operation = self.operation(verb, target, vm.meta.generation);
                self.records()
                    .commit(Edit::default().update(&held, &vm).create(&operation))
                    .await?;
                Ok(operation)
            }
        }
    }

    async fn restart(&self, id: VmId) -> Result<Accepted<VmView>> {
        let vm = self.records().must::<Vm>(id).await?.value;
        vm.status.power.after(vbm_core::PowerEvent::Reset)?;
        let node = vm.spec.node.as_ref().ok_or_else(|| not_placed(&vm.meta.name))?;
        self.ask_node::<VmReset>(node, &id).await?;
        let target = ObjectRef::new(Kind::Vm, id, &vm.meta.name);
        let operation = self.operation("restart", target.clone(), Generation(0));
        let event = self.event(EventKind::VmRestarted, target, "reset");
        self.records().commit(Edit::default().event(&event)).await?;
        let operation = self.done_at_once(operation).await?;
        Ok(Accepted {
            item: self.vm_view(&id.to_string()).await?,
            operation,
        })
    }

    /// Deletes a VM with its disk, ports and forwards. A VM that may be running is refused unless `force`.
    ///
    /// # Errors
    /// The VM does not exist or may be running.
    pub async fn delete_vm(&self, vm: &str, force: bool) -> Result<Accepted<VmView>> {
        let id = self.records().resolve::<Vm>(vm).await?.value.meta.id;
        let view = self.vm_view(&id.to_string()).await?;
        let operation = until_uncrossed(|| async {
            let held = self.records().must::<Vm>(id).await?;
            let mut vm = held.value.clone();
            if !force && !is_at_rest(&vm) {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!("cannot delete {}", vm.meta.name),
                    format!("it is {}", vm.status.power),
                    format!(
                        "stop it with `vbm stop {0}`, or use `vbm delete --force {0}`",
                        vm.meta.name
                    ),
                ));
            }
            vm.meta.deleting = true;
            vm.meta.generation = vm.meta.generation.next();
            vm.spec.power = WantedPower::ForcedOff;
            let operation = self.operation(
                "delete",
                ObjectRef::new(Kind::Vm, id, &vm.meta.name),
                vm.meta.generation,
            );
            self.records()
                .commit(Edit::default().update(&held, &vm).create(&operation))
                .await?;
            Ok(operation)
        })
        .await?;
        Ok(Accepted {
            item: view,
            operation,
        })
    }

    /// Replaces the groups of a VM's ports, or of its port on one network.
    ///
    /// # Errors
    /// The VM, a group or the network does not exist, or the VM is not on that network.
    pub async fn set_groups(&self, vm: &str, request: &SetGroups) -> Result<Accepted<VmView>> {
        let id = self.records().resolve::<Vm>(vm).await?.value.meta.id;
        let operation = until_uncrossed(|| self.set_groups_once(id, request)).await?;
        Ok(Accepted {
            item: self.vm_view(&id.to_string()).await?,
            operation,
        })
    }

    async fn set_groups_once(&self, id: VmId, request: &SetGroups) -> Result<Operation> {
        let vm = self.records().must::<Vm>(id).await?;
        let only = match &request.network {
            Some(network) => Some(self.records().resolve::<Network>(network).await?.value.meta),
            None => None,
        };
        let groups = self.groups_of(&request.groups).await?;
        let ids: Vec<GroupId> = groups.iter().map(|g| g.value.meta.id).collect();
        let names: Vec<_> = groups.iter().map(|g| g.value.meta.name.to_string()).collect();
        let mut edit = groups.iter().fold(Edit::default(), Edit::rests_on);
        let mut matched = false;
        for port in &vm.value.spec.ports {
            let held = self.records().must::<Port>(port).await?;
            if only.as_ref().is_some_and(|n| n.id != held.value.spec.network) {
                continue;
            }
            matched = true;
            let mut port = held.value.clone();
            port.spec.groups.clone_from(&ids);
            port.meta.generation = port.meta.generation.next();
            let target = ObjectRef::new(Kind::Port, port.meta.id, &vm.value.meta.name);
            edit = edit.update(&held, &port).event(&self.event(
                EventKind::PortChanged,
                target,
                format!("groups: {}", names.join(", ")),
            ));
        }
        if !matched {
            let place = only.map_or_else(|| "any network".to_owned(), |n| format!("network {}", n.name));
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("cannot set the groups of {}", vm.value.meta.name),
                format!("it has no NIC on {place}"),
                "see its NICs with `vbm info`",
            ));
        }
        let operation = self.operation(
            operations::APPLY,
            ObjectRef::new(Kind::Vm, id, &vm.value.meta.name),
            vm.value.meta.generation,
        );
        self.records().commit(edit.create(&operation)).await?;
        Ok(operation)
    }

    /// A VM with what belongs to it.
    ///
    /// # Errors
    /// It does not exist.
    pub async fn vm_view(&self, vm: &str) -> Result<VmView> {
        let vm = self.records().resolve::<Vm>(vm).await?.value;
        let tables = views::Tables::load(self.records()).await?;
        Ok(tables.vm(&vm))
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

/// Whether a VM neither runs nor is about to.
fn is_at_rest(vm: &Vm) -> bool {
    match vm.status.power {
        PowerState::Crashed(_) => true,
        PowerState::Off => {
            vm.spec.node.is_none() || matches!(vm.spec.power, WantedPower::Off | WantedPower::ForcedOff)
        }
        _ => false,
    }
}

/// Claims the MAC and the address of a port.
fn claim_port(edit: Edit, port: &Port) -> Edit {
    edit.claim(mac_key(port.spec.mac), port.meta.id)
        .claim(address_key(port), port.meta.id)
}

/// Gives them back.
pub(super) fn release_port(edit: Edit, port: &Port) -> Edit {
    edit.release(mac_key(port.spec.mac)).release(address_key(port))
}

fn mac_key(mac: Mac) -> String {
    format!("mac/{mac}")
}

fn address_key(port: &Port) -> String {
    format!("address/{}/{}", port.spec.network, port.spec.address)
}

fn pinned(network: &Network, address: Ipv4Addr) -> Result<Ipv4Addr> {
    if network.spec.is_port_address(address) {
        return Ok(address);
    }
    let why = if !network.spec.cidr.contains(&address) {
        format!("it is outside {}", network.spec.cidr)
    } else if address == network.spec.gateway {
        "it is the gateway's".to_owned()
    } else {
        "it is the network's own or the broadcast address".to_owned()
    };
    Err(Error::new(
        ErrorKind::InvalidInput,
        format!(
            "the address {address} cannot be used on network {}",
            network.meta.name
        ),
        why,
        format!(
            "choose another of {}, or leave the address out",
            network.spec.cidr
        ),
    ))
}

const fn verb(action: PowerAction) -> &'static str {
    match action {
        PowerAction::Start => "start",
        PowerAction::Stop => "stop",
        PowerAction::ForceOff => "force-off",
        PowerAction::Restart => "restart",
        PowerAction::Pause => "pause",
        PowerAction::Resume => "resume",
    }
}

/// What to want after an action; `None` when it is so already.
fn plan_power(vm: &Vm, action: PowerAction) -> Result<Option<WantedPower>> {
    use PowerState as P;
    use WantedPower as W;
    let (state, wanted) = (vm.status.power, vm.spec.power);
    let refuse = |fix: &str| {
        Err(Error::new(
            ErrorKind::Conflict,
            format!("cannot {} {}", verb(action), vm.meta.name),
            format!("it is {state}"),
            fix,
        ))
    };
    match action {
        PowerAction::Start => match (state, wanted) {
            (P::Running | P::Starting, W::Running) => Ok(None),
            (P::Paused(_), _) => refuse("let it go on with `vbm resume`"),
            (P::Stopping, _) => refuse("wait until it is off, or end it with `vbm stop --force`"),
            _ => Ok(Some(W::Running)),
        },
        PowerAction::Stop => match (state, wanted) {
            (P::Off | P::Crashed(_), W::Off | W::ForcedOff) => Ok(None),
            (P::Paused(_), _) => refuse("let it go on with `vbm resume`, or end it with `vbm stop --force`"),
            _ => Ok(Some(W::Off)),
        },
        PowerAction::ForceOff => match (state, wanted) {
            (P::Off, W::Off | W::ForcedOff) => Ok(None),
            _ => Ok(Some(W::ForcedOff)),
        },
        PowerAction::Pause => match state {
            P::Paused(_) if wanted == W::Paused => Ok(None),
            P::Running => Ok(Some(W::Paused)),
            _ => refuse("only a running VM can be paused"),
        },
        PowerAction::Resume => match state {
            P::Running if wanted == W::Running => Ok(None),
            P::Paused(_) => Ok(Some(W::Running)),
            _ => refuse("only a paused VM can be resumed; start it with `vbm start`"),
        },
        PowerAction::Restart => Ok(Some(wanted)),
    }
}

fn being_deleted(name: &Name) -> Error {
    Error::new(
        ErrorKind::Conflict,
        format!("cannot change {name}"),
        "it is being deleted",
        "wait until it is gone",
    )
}

/// Nothing runs a VM that has no node yet.
pub(super) fn not_placed(name: &Name) -> Error {
    Error::new(
        ErrorKind::Conflict,
        format!("{name} is on no node yet"),
        "no node was found for it so far",
        "see the reason with `vbm info`, and the nodes with `vbm node list`",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use vbm_core::{ImageId, PauseReason, Timestamp};

    fn vm(state: PowerState, power: WantedPower) -> Vm {
        let id = |n| uuid::Uuid::from_u128(n);
        Vm {
            meta: Meta::new(
                VmId::from_uuid(id(1)),
                "web".parse().unwrap(),
                Timestamp::default(),
            ),
            spec: VmSpec {
                vcpus: 1,
                memory_mib: 128,
                image: ImageId::from_uuid(id(2)),
                root_volume: VolumeId::from_uuid(id(3)),
                ports: vec![],
                driver: DriverKind::Sim,
                power,
                node: None,
            },
            status: VmStatus {
                power: state,
                ..VmStatus::default()
            },
        }
    }

    #[test]
    fn asking_for_what_is_so_already_changes_nothing() {
        assert_eq!(
            plan_power(&vm(PowerState::Running, WantedPower::Running), PowerAction::Start).unwrap(),
            None
        );
        assert_eq!(
            plan_power(&vm(PowerState::Off, WantedPower::Off), PowerAction::Stop).unwrap(),
            None
        );
    }

    #[test]
    fn a_crashed_vm_is_started_again_only_when_asked() {
        let crashed = vm(
            PowerState::Crashed(vbm_core::CrashCause::Hypervisor),
            WantedPower::Running,
        );
        assert_eq!(
            plan_power(&crashed, PowerAction::Start).unwrap(),
            Some(WantedPower::Running)
        );
    }

    #[test]
    fn force_off_is_allowed_in_every_state() {
        for state in [
            PowerState::Running,
            PowerState::Stopping,
            PowerState::Unknown,
            PowerState::Paused(PauseReason::Requested),
        ] {
            assert_eq!(
                plan_power(&vm(state, WantedPower::Running), PowerAction::ForceOff).unwrap(),
                Some(WantedPower::ForcedOff)
            );
        }
    }

    #[test]
    fn a_paused_vm_is_not_started_but_resumed() {
        let paused = vm(PowerState::Paused(PauseReason::Requested), WantedPower::Paused);
        assert!(
            plan_power(&paused, PowerAction::Start)
                .unwrap_err()
                .fix()
                .contains("resume")
        );
        assert_eq!(
            plan_power(&paused, PowerAction::Resume).unwrap(),
            Some(WantedPower::Running)
        );
    }
}
