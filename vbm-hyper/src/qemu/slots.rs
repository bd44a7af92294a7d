//! Where the devices of a VM are: pure.
//!
//! ```text
//!   pcie.0   01 VGA  02 disk0  03 rng  04 pvpanic  05 virtio-serial  06 watchdog  07 balloon
//!            10.0 .. 12.7  root ports p0 .. p23:  8 for NICs, 16 for disks; one device behind each, which may come and go
//! ```
//!
//! A device keeps its port as long as it is in the definition, through detached neighbours, restarts and saved memory: the guest
//! finds its NIC under the name that it had. A port that became free is used again, the lowest first.

use crate::{DiskDefinition, Error, NicDefinition, Result, VmDefinition};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use vbm_core::{PortId, VolumeId, limits};

/// The root ports of a machine.
pub(super) const ROOT_PORTS: usize = limits::VM_MAX_NICS + limits::VM_MAX_DISKS;
/// The first slot of `pcie.0` with root ports, eight in each.
const FIRST_SLOT: usize = 0x10;
const PORTS_PER_SLOT: usize = 8;

/// What a disk is called: names of block nodes have at most 31 bytes.
pub(super) fn disk_node(volume: VolumeId) -> String {
    format!("d{}", &volume.uuid().simple().to_string()[..30])
}

pub(super) fn disk_device(volume: VolumeId) -> String {
    format!("v{}", &volume.uuid().simple().to_string()[..30])
}

/// The serial number that the guest sees: virtio has room for 20 bytes.
pub(super) fn disk_serial(volume: VolumeId) -> String {
    volume.uuid().simple().to_string()[..20].to_owned()
}

pub(super) fn nic_device(port: PortId) -> String {
    format!("n{}", &port.uuid().simple().to_string()[..30])
}

pub(super) fn nic_tap(port: PortId) -> String {
    format!("t{}", &port.uuid().simple().to_string()[..30])
}

/// The options of root port number `at`, beside its kind.
pub(super) fn root_port(at: usize) -> String {
    let (slot, function) = (FIRST_SLOT + at / PORTS_PER_SLOT, at % PORTS_PER_SLOT);
    let first = if function == 0 { ",multifunction=on" } else { "" };
    format!(
        "id=p{at},bus=pcie.0,addr={slot:#x}.{function:#x}{first},chassis={},slot={at}",
        at + 1
    )
}

/// How the machine is laid out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Layout {
    /// All on `pcie.0`, one after the other; nothing comes or goes. So were machines before there was hot-plug; what of them is in
    /// memory, or kept on disk, stays so.
    #[default]
    Flat,
    /// As the module says.
    Ports,
}

/// Which device is where.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Slots {
    pub(super) layout: Layout,
    /// The port of each disk: 0 to 15, behind those for NICs.
    pub(super) disks: BTreeMap<VolumeId, usize>,
    /// The port of each NIC: 0 to 7.
    pub(super) nics: BTreeMap<PortId, usize>,
    /// Whether there is a CD drive. Once it had one, a VM keeps it.
    pub(super) drive: bool,
}

impl Slots {
    /// The same for a new run of `definition`: what it has no more loses its place, what is new gets one.
    pub(super) fn settled(mut self, definition: &VmDefinition) -> Self {
        self.layout = Layout::Ports;
        self.drive |= definition.hardware.cdrom.is_some();
        self.disks
            .retain(|volume, _| definition.disks.iter().any(|disk| disk.volume == *volume));
        self.nics
            .retain(|port, _| definition.nics.iter().any(|nic| nic.port == *port));
        for disk in &definition.disks {
            self.add_disk(disk);
        }
        for nic in &definition.nics {
            self.add_nic(nic);
        }
        self
    }

    /// Gives a disk a place, if it has none and there is one.
    pub(super) fn add_disk(&mut self, disk: &DiskDefinition) -> Option<usize> {
        add(&mut self.disks, disk.volume, limits::VM_MAX_DISKS)
    }

    /// Gives a NIC a place, if it has none and there is one.
    pub(super) fn add_nic(&mut self, nic: &NicDefinition) -> Option<usize> {
        add(&mut self.nics, nic.port, limits::VM_MAX_NICS)
    }

    /// The same for a memory that `before` was written with: its devices must be where they were, whatever their ids are by now.
    ///
    /// # Errors
    /// [`Error::StartFailed`] when it had other devices.
    pub(super) fn carried_over(&self, before: &VmDefinition, now: &VmDefinition) -> Result<Self> {
        if before.nics.len() != now.nics.len() || before.disks.len() != now.disks.len() {
            return Err(Error::StartFailed {
                why: format!(
                    "its memory was written with {} NICs and {} more disks, and it has {} and {} now",
                    before.nics.len(),
                    before.disks.len(),
                    now.nics.len(),
                    now.disks.len()
                ),
            });
        }
        let disks = before.disks.iter().zip(&now.disks);
        let nics = before.nics.iter().zip(&now.nics);
        Ok(Self {
            disks: disks
                .filter_map(|(was, is)| Some((is.volume, *self.disks.get(&was.volume)?)))
                .collect(),
            nics: nics
                .filter_map(|(was, is)| Some((is.port, *self.nics.get(&was.port)?)))
                .collect(),
            ..self.clone()
        })
    }

    /// The bus of a disk.
    pub(super) fn disk_bus(&self, volume: VolumeId) -> Option<String> {
        self.disks
            .get(&volume)
            .map(|at| format!("p{}", limits::VM_MAX_NICS + at))
    }

    /// The bus of a NIC.
    pub(super) fn nic_bus(&self, port: PortId) -> Option<String> {
        self.nics.get(&port).map(|at| format!("p{at}"))
    }
}

fn add<K: Ord>(places: &mut BTreeMap<K, usize>, key: K, count: usize) -> Option<usize> {
    if let Some(at) = places.get(&key) {
        return Some(*at);
    }
    let free = (0..count).find(|at| !places.values().any(|taken| taken == at))?;
    places.insert(key, free);
    Some(free)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BootSource, Hardware};
    use proptest::prelude::*;
    use uuid::Uuid;
    use vbm_core::{Mac, VmId};

    fn nic(number: u128) -> NicDefinition {
        NicDefinition {
            port: PortId::from_uuid(Uuid::from_u128(number)),
            mac: Mac::local(u32::try_from(number).unwrap()),
            mtu: None,
        }
    }

    fn disk(number: u128) -> DiskDefinition {
        DiskDefinition {
            volume: VolumeId::from_uuid(Uuid::from_u128(number)),
            path: format!("/{number}").into(),
            read_only: false,
        }
    }

    fn with(nics: &[u128], disks: &[u128]) -> VmDefinition {
        VmDefinition {
            id: VmId::from_uuid(Uuid::from_u128(1)),
            name: "web-1".parse().unwrap(),
            vcpus: 1,
            memory_mib: 64,
            root_disk: "/root".into(),
            boot: BootSource::Disk,
            disks: disks.iter().map(|n| disk(*n)).collect(),
            hardware: Hardware::default(),
            nics: nics.iter().map(|n| nic(*n)).collect(),
        }
    }

    #[test]
    fn a_device_stays_where_it_was_and_a_free_place_is_used_again() {
        let slots = Slots::default().settled(&with(&[1, 2, 3], &[1]));
        let slots = slots.settled(&with(&[2, 3], &[]));
        assert_eq!(slots.nic_bus(nic(2).port).as_deref(), Some("p1"));
        assert_eq!(slots.disk_bus(disk(1).volume), None);
        let slots = slots.settled(&with(&[2, 3, 4], &[7]));
        assert_eq!(slots.nic_bus(nic(4).port).as_deref(), Some("p0"));
        assert_eq!(slots.disk_bus(disk(7).volume).as_deref(), Some("p8"));
    }

    #[test]
    fn a_memory_finds_its_devices_where_they_were_under_other_ids_too() {
        let before = with(&[2, 3], &[5]);
        let slots = Slots::default()
            .settled(&with(&[1, 2, 3], &[4, 5]))
            .settled(&before);
        let now = with(&[8, 9], &[7]);
        let carried = slots.carried_over(&before, &now).unwrap();
        assert_eq!(carried.nic_bus(nic(8).port).as_deref(), Some("p1"));
        assert_eq!(carried.disk_bus(disk(7).volume).as_deref(), Some("p9"));
        let error = slots.carried_over(&before, &with(&[2], &[5])).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("2 NICs and 1 more disks, and it has 1 and 1"),
            "{error}"
        );
    }

    #[test]
    fn root_ports_fill_their_slots() {
        assert_eq!(
            root_port(0),
            "id=p0,bus=pcie.0,addr=0x10.0x0,multifunction=on,chassis=1,slot=0"
        );
        assert_eq!(
            root_port(23),
            "id=p23,bus=pcie.0,addr=0x12.0x7,chassis=24,slot=23"
        );
    }

    #[test]
    fn records_of_an_older_form_are_of_a_flat_machine() {
        assert_eq!(serde_json::from_str::<Slots>("{}").unwrap().layout, Layout::Flat);
    }

    proptest! {
        #[test]
        fn whatever_comes_and_goes_no_two_devices_share_a_place(story in proptest::collection::vec(proptest::collection::btree_set(0..20_u128, 0..8), 1..20)) {
            let mut slots = Slots::default();
            for step in story {
                let step: Vec<_> = step.into_iter().collect();
                slots = slots.settled(&with(&step, &step));
                let mut taken: Vec<_> = slots.nics.values().collect();
                taken.sort_unstable();
                taken.dedup();
                prop_assert_eq!(taken.len(), step.len());
                prop_assert!(slots.nics.values().all(|at| *at < limits::VM_MAX_NICS));
                prop_assert_eq!(slots.disks.len(), step.len());
            }
        }
    }
}
