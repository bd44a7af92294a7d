//! What a simulated guest can do, and what the hosts of one site share.

use super::world::{Inner, SimWorld};
use crate::{VmDefinition, conformance::GuestWords};
use bytes::Bytes;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};
use tokio::{sync::mpsc, time::sleep};
use vbm_core::{Consistency, PowerState, SnapshotId, VmId, VolumeId};

/// The pause between two numbers of a guest that counts.
const COUNT_EVERY: Duration = Duration::from_millis(200);
/// The first port that a host listens on for a VM. Nothing real listens there.
const FIRST_PORT: u16 = 40_000;

/// What a guest remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Memory {
    pub(super) word: String,
    /// How far it has counted, if it counts.
    pub(super) count: Option<u64>,
}

/// A disk, wherever it is seen from.
#[derive(Debug, Default)]
pub(super) struct SimDisk {
    pub(super) word: String,
    /// Its size, once it was changed.
    pub(super) bytes: Option<u64>,
    /// Of the VM whose root disk it is.
    pub(super) snapshots: BTreeMap<SnapshotId, SimSnapshot>,
    /// What the disks stand on.
    pub(super) current: Option<SnapshotId>,
}

#[derive(Clone, Debug)]
pub(super) struct SimSnapshot {
    pub(super) consistency: Consistency,
    /// Each with its word; the root disk is nobody's volume.
    pub(super) disks: Vec<(Option<VolumeId>, PathBuf, String)>,
    pub(super) memory: Memory,
    pub(super) parent: Option<SnapshotId>,
}

/// Somebody waits for a VM.
#[derive(Clone, Debug)]
pub(super) struct Door {
    pub(super) world: Weak<Inner>,
    pub(super) definition: VmDefinition,
    pub(super) run: u64,
    /// Disks are copied to it, and who comes waits to be let go.
    pub(super) copies: bool,
}

/// What hosts share: disks, and a way to each other.
#[derive(Debug)]
pub(super) struct Site {
    disks: Mutex<BTreeMap<PathBuf, SimDisk>>,
    doors: Mutex<BTreeMap<SocketAddr, Door>>,
    ports: AtomicU16,
}

impl Default for Site {
    fn default() -> Self {
        Self {
            disks: Mutex::default(),
            doors: Mutex::default(),
            ports: AtomicU16::new(FIRST_PORT),
        }
    }
}

impl Site {
    /// Works on a disk. Never while a door is held.
    pub(super) fn disk<T>(&self, path: &std::path::Path, work: impl FnOnce(&mut SimDisk) -> T) -> T {
        let mut disks = self.disks.lock().unwrap_or_else(PoisonError::into_inner);
        work(disks.entry(path.to_owned()).or_default())
    }

    pub(super) fn doors(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, Door>> {
        self.doors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn next_port(&self) -> u16 {
        self.ports.fetch_add(1, Ordering::Relaxed).max(FIRST_PORT)
    }
}

impl SimWorld {
    /// What a simulated guest can be told.
    pub fn words() -> GuestWords {
        GuestWords {
            remember: "remember {}".into(),
            recall: "recall {}".into(),
            write: "write {}".into(),
            read: "read {}".into(),
            count: "count".into(),
            write_data: "write-data {}".into(),
            read_data: "read-data {}".into(),
        }
    }
}

/// Lets a guest count, as long as this run of it lasts.
pub(super) fn counts(world: &SimWorld, id: VmId, run: u64) {
    let world = world.downgrade();
    // Ends with the run, and holds the world up for nobody.
    tokio::spawn(async move {
        loop {
            sleep(COUNT_EVERY).await;
            let Some(world) = SimWorld::upgrade(&world) else {
                return;
            };
            let mut vms = world.vms();
            let vm = vms
                .get_mut(&id)
                .filter(|vm| vm.run == run && vm.seen.pid.is_some());
            let Some(vm) = vm else { return };
            if vm.seen.power == PowerState::Running {
                let count = vm.memory.count.unwrap_or(0) + 1;
                vm.memory.count = Some(count);
                vm.say(&Bytes::from(format!("counted={count}\r\n")));
            }
        }
    });
}

/// Echoes what is typed, and answers each line.
pub(super) async fn shell(world: SimWorld, id: VmId, mut typed: mpsc::Receiver<Bytes>) {
    let mut line = Vec::new();
    while let Some(chunk) = typed.recv().await {
        let mut answer = Vec::new();
        for byte in chunk {
            if matches!(byte, b'\r' | b'\n') {
                let said = obey(&world, id, &String::from_utf8_lossy(&line));
                answer.extend(format!("\r\n{said}\r\n/ # ").bytes());
                line.clear();
            } else {
                answer.push(byte);
                line.push(byte);
            }
        }
        if let Some(vm) = world.vms().get_mut(&id) {
            vm.say(&Bytes::from(answer));
        }
    }
}

fn obey(world: &SimWorld, id: VmId, line: &str) -> String {
    let (command, word) = line.split_once(' ').unwrap_or((line, ""));
    let mut vms = world.vms();
    let Some(vm) = vms.get_mut(&id) else {
        return String::new();
    };
    let root = vm.definition.root_disk.clone();
    let data = vm.definition.disks.first().map(|disk| disk.path.clone());
    let disk = match command {
        "write-data" | "read-data" => data.unwrap_or_default(),
        _ => root,
    };
    match command {
        "echo" => word.to_owned(),
        "remember" => {
            word.clone_into(&mut vm.memory.word);
            format!("kept={word}")
        }
        "recall" => format!("memory={}#{word}", vm.memory.word),
        "write" | "write-data" => {
            world.site().disk(&disk, |disk| word.clone_into(&mut disk.word));
            format!("written={word}")
        }
        "read" | "read-data" => {
            let found = world.site().disk(&disk, |disk| disk.word.clone());
            format!("disk={found}#{word}")
        }
        "count" => {
            if vm.memory.count.is_none() {
                vm.memory.count = Some(0);
                counts(world, id, vm.run);
            }
            "it counts".into()
        }
        _ => "[sim] there is no shell here".into(),
    }
}
