//! `vbm list`.

use super::{human, session::Session, table::Table};
use crate::api::VmView;
use vbm_core::{Error, Timestamp};

pub(super) async fn run(on: &Session<'_>) -> Result<(), Error> {
    let vms = on.client.vms().list().all().await?;
    on.out.list(
        &vms,
        |vm| vm.vm.meta.name.to_string(),
        &table(&vms, on.now()),
        "no VMs yet: make one with `vbm launch IMAGE NAME`; `vbm image list` shows the images",
    )?;
    if let Some(vm) = vms.iter().find(|vm| vm.vm.status.problem.is_some()) {
        on.out.hint(&format!(
            "(!) is not as it was asked for: see why with `vbm info {}`",
            vm.vm.meta.name
        ));
    }
    Ok(())
}

fn table(vms: &[VmView], now: Timestamp) -> Table {
    let mut table = Table::new(
        &[
            "NAME", "STATE", "ADDRESS", "CPUS", "MEMORY", "IMAGE", "NODE", "AGE",
        ],
        &["ID", "MAC", "PID", "ACCELERATOR"],
    );
    for view in vms {
        let (meta, spec, status) = (&view.vm.meta, &view.vm.spec, &view.vm.status);
        let of_nics = |show: fn(&crate::api::NicView) -> String| {
            view.nics.iter().map(show).collect::<Vec<_>>().join(",")
        };
        table.row([
            meta.name.to_string(),
            state(view),
            of_nics(|nic| nic.port.spec.address.to_string()),
            spec.vcpus.to_string(),
            human::mib(spec.memory_mib.into()),
            view.image_name.clone(),
            spec.node.as_ref().map(ToString::to_string).unwrap_or_default(),
            human::age(now, meta.created_at),
            meta.id.to_string(),
            of_nics(|nic| nic.port.spec.mac.to_string()),
            status.pid.map(|pid| pid.to_string()).unwrap_or_default(),
            status
                .accelerator
                .as_ref()
                .map(|a| a.name.clone())
                .unwrap_or_default(),
        ]);
    }
    table
}

/// The power state; with a mark when it is not as it was asked for.
pub(super) fn state(view: &VmView) -> String {
    let status = &view.vm.status;
    match (view.vm.meta.deleting, &status.problem) {
        (true, _) => "deleting".into(),
        (false, None) => status.power.to_string(),
        (false, Some(_)) => format!("{} (!)", status.power),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::api::NicView;
    use uuid::Uuid;
    use vbm_core::{
        DriverKind, ErrorKind, ImageId, Mac, Meta, NetworkId, Port, PortId, PortSpec, PortStatus, PowerState,
        Vm, VmId, VmSpec, VmStatus, VolumeId, WantedPower,
    };

    /// A VM that runs.
    pub(crate) fn sample() -> VmView {
        let id = Uuid::from_u128(7);
        let port = Port {
            meta: Meta::new(
                PortId::from_uuid(id),
                "web1-0".parse().unwrap(),
                Timestamp::from_micros(0),
            ),
            spec: PortSpec {
                network: NetworkId::from_uuid(id),
                vm: VmId::from_uuid(id),
                mac: Mac::local(7),
                address: "10.0.0.2".parse().unwrap(),
                pinned: false,
                address6: None,
                groups: Vec::new(),
                pairs: Vec::new(),
                limits: Default::default(),
                floating_ip: None,
            },
            status: PortStatus::default(),
        };
        let vm = Vm {
            meta: Meta::new(
                VmId::from_uuid(id),
                "web1".parse().unwrap(),
                Timestamp::from_micros(0),
            ),
            spec: VmSpec {
                vcpus: 1,
                memory_mib: 256,
                image: ImageId::from_uuid(id),
                root_volume: VolumeId::from_uuid(id),
                ports: vec![port.meta.id],
                driver: DriverKind::Sim,
                power: WantedPower::Running,
                node: Some("n1".parse().unwrap()),
                moving: None,
                reverting: None,
                guest: vbm_core::GuestData::default(),
            },
            status: VmStatus {
                power: PowerState::Running,
                pid: Some(4_711),
                ..VmStatus::default()
            },
        };
        VmView {
            vm,
            image_name: "tiny".into(),
            nics: vec![NicView {
                port,
                network_name: "lan".into(),
                group_names: vec!["web".parse().unwrap()],
            }],
        }
    }

    #[test]
    fn a_list_fits_a_terminal_of_eighty_columns() {
        let text = table(&[sample()], Timestamp::from_micros(180_000_000)).render(false, Some(80));
        assert_eq!(
            text,
            "NAME  STATE    ADDRESS   CPUS  MEMORY  IMAGE  NODE  AGE\n\
             web1  running  10.0.0.2  1     256M    tiny   n1    3m"
        );
    }

    #[test]
    fn wide_adds_what_is_needed_to_look_beneath() {
        let text = table(&[sample()], Timestamp::from_micros(0)).render(true, None);
        assert!(
            text.contains("ACCELERATOR") && text.contains("52:54:00:00:00:07") && text.contains("4711"),
            "{text}"
        );
    }

    #[test]
    fn a_vm_that_is_not_as_asked_for_is_marked() {
        let mut vm = sample();
        vm.vm.status.problem = Some(Error::new(ErrorKind::Exhausted, "a", "b", "c"));
        assert_eq!(state(&vm), "running (!)");
        vm.vm.meta.deleting = true;
        assert_eq!(state(&vm), "deleting");
    }
}
