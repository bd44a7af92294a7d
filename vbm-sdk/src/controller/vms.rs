//! Requests about VMs that exist.

use super::{Controller, once::once, operations, views};
use crate::api::{Accepted, PowerAction, SetGroups, VmView};
use crate::methods::VmReset;
use crate::records::{Edit, until_uncrossed};
use vbm_core::{
    Error, ErrorKind, EventKind, FacetKind, Generation, GroupId, Kind, Name, Network, ObjectRef, Operation,
    Port, PowerState, Result, Vm, VmId, WantedPower,
};

impl Controller {
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
        refuse_moving(&vm)?;
        if vm.spec.reverting.is_some() && action != PowerAction::ForceOff {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("cannot {verb} {}", vm.meta.name),
                "it is going back to a snapshot",
                "wait until it is there, or end it with `vbm stop --force`",
            ));
        }
        match plan_power(&vm, action)? {
            None => {
                self.done_at_once(self.operation(verb, target, vm.meta.generation))
                    .await
            }
            Some(wanted) => {
                if action == PowerAction::Save {
                    self.can_save(&vm).await?;
                }
                vm.spec.reverting = None;
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

    /// Refused when the driver of a VM cannot keep its memory on disk.
    async fn can_save(&self, vm: &Vm) -> Result<()> {
        let node = vm.spec.node.as_ref().ok_or_else(|| not_placed(&vm.meta.name))?;
        let headline = format!("cannot save {}", vm.meta.name);
        self.needs_facet(vm, node, FacetKind::SavedState, &headline).await
    }

    async fn restart(&self, id: VmId) -> Result<Accepted<VmView>> {
        let vm = self.records().must::<Vm>(id).await?.value;
        if vm.meta.deleting {
            return Err(being_deleted(&vm.meta.name));
        }
        refuse_moving(&vm)?;
        vm.status.power.after(vbm_core::PowerEvent::Reset)?;
        let node = vm.spec.node.as_ref().ok_or_else(|| not_placed(&vm.meta.name))?;
        let target = ObjectRef::new(Kind::Vm, id, &vm.meta.name);
        let operation = self.operation("restart", target.clone(), Generation(0));
        let pressed =
            self.ask_node_with::<VmReset>(node, &id, |options| once(options, &operation, id, "reset"));
        pressed.await?;
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
            refuse_moving(&vm)?;
            if !force && !is_at_rest(&vm) {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!("cannot delete {}", vm.meta.name),
                    format!("it is {}", vm.status.power),
                    match vm.status.power {
                        PowerState::Saved => format!(
                            "throw its memory away with `vbm discard {0}`, or use `vbm delete --force {0}`",
                            vm.meta.name
                        ),
                        _ => format!(
                            "stop it with `vbm stop {0}`, or use `vbm delete --force {0}`",
                            vm.meta.name
                        ),
                    },
                ));
            }
            vm.meta.deleting = true;
            vm.meta.generation = vm.meta.generation.next();
            vm.spec.power = WantedPower::ForcedOff;
            vm.spec.reverting = None;
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
        let mut changed = Vec::new();
        for port in &vm.value.spec.ports {
            let held = self.records().must::<Port>(port).await?;
            if only.as_ref().is_some_and(|n| n.id != held.value.spec.network) {
                continue;
            }
            let mut port = held.value.clone();
            port.spec.groups.clone_from(&ids);
            if let Some(pairs) = &request.pairs {
                self.check_pairs(&held.value, pairs, request).await?;
                port.spec.pairs.clone_from(pairs);
            }
            port.meta.generation = port.meta.generation.next();
            let target = ObjectRef::new(Kind::Port, port.meta.id, &vm.value.meta.name);
            edit = edit.update(&held, &port).event(&self.event(
                EventKind::PortChanged,
                target,
                format!("groups: {}", names.join(", ")),
            ));
            changed.push(port);
        }
        if changed.is_empty() {
            let place = only.map_or_else(|| "any network".to_owned(), |n| format!("network {}", n.name));
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("cannot set the groups of {}", vm.value.meta.name),
                format!("it has no NIC on {place}"),
                "see its NICs with `vbm info`",
            ));
        }
        if let (Some(_), Some(network)) = (&request.pairs, &only)
            && let Some(network) = self.records().get::<Network>(network.id).await?
            && let Some(addresses) = self.readable_addresses(&network.value).await?
        {
            // Whoever picks an address of theirs just now is crossed, and picks another.
            edit = addresses.keep(edit)?;
        }
        self.room_for_groups(&changed.iter().collect::<Vec<_>>(), None)
            .await?;
        let operation = self.operation(
            operations::APPLY,
            ObjectRef::new(Kind::Vm, id, &vm.value.meta.name),
            vm.value.meta.generation,
        );
        self.records().commit(edit.create(&operation)).await?;
        Ok(operation)
    }

    /// Before they are kept: a node would refuse the whole network for one port that makes no sense.
    async fn check_pairs(
        &self,
        port: &Port,
        pairs: &[vbm_core::AddressPair],
        request: &SetGroups,
    ) -> Result<()> {
        if request.network.is_none() {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "the port cannot be allowed these addresses",
                "they are those of one network, and none is named",
                "name the network",
            ));
        }
        let network = self.records().must::<Network>(port.spec.network).await?.value;
        vbm_net::check_pairs(network.meta.id, &network.spec, pairs)
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

const fn verb(action: PowerAction) -> &'static str {
    match action {
        PowerAction::Start => "start",
        PowerAction::Stop => "stop",
        PowerAction::ForceOff => "force-off",
        PowerAction::Restart => "restart",
        PowerAction::Pause => "pause",
        PowerAction::Resume => "resume",
        PowerAction::Save => "save",
        PowerAction::Discard => "discard",
    }
}

/// What to do with a VM whose memory is on disk.
const SAVED_MEMORY: &str =
    "it does not run: let it go on with `vbm start`, or throw its memory away with `vbm discard`";

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
            (P::Saved, _) => refuse(SAVED_MEMORY),
            (P::Paused(_), _) => refuse("let it go on with `vbm resume`, or end it with `vbm stop --force`"),
            _ => Ok(Some(W::Off)),
        },
        PowerAction::ForceOff => match (state, wanted) {
            (P::Off, W::Off | W::ForcedOff) => Ok(None),
            // What is kept on disk is not thrown away by a word that means something else.
            (P::Saved, _) => refuse(SAVED_MEMORY),
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
        PowerAction::Save => match state {
            P::Saved | P::Saving if wanted == W::Saved => Ok(None),
            P::Running | P::Paused(_) => Ok(Some(W::Saved)),
            _ => refuse("only a VM that runs or is paused has memory to be saved"),
        },
        PowerAction::Discard => match state {
            P::Saved => Ok(Some(W::ForcedOff)),
            _ => refuse("only a saved VM has memory on disk to be thrown away"),
        },
        PowerAction::Restart => Ok(Some(wanted)),
    }
}

/// A VM that moves is its mover's alone.
pub(super) fn refuse_moving(vm: &Vm) -> Result<()> {
    match &vm.spec.moving {
        None => Ok(()),
        Some(moving) => Err(Error::new(
            ErrorKind::Conflict,
            format!("cannot change {}", vm.meta.name),
            format!("it is on its way from {} to {}", moving.from, moving.to),
            "wait until it is there; `vbm operation list` shows how far it is",
        )),
    }
}

pub(super) fn being_deleted(name: &Name) -> Error {
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
    use vbm_core::{DriverKind, ImageId, Meta, PauseReason, Timestamp, VmSpec, VmStatus, VolumeId};

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
                moving: None,
                reverting: None,
                guest: vbm_core::GuestData::default(),
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
