//! Where the stories happen: the simulated driver, and QEMU without a guest.

use super::{
    common::{self, QemuBench},
    model::{Act, Look, Power},
};
use async_trait::async_trait;
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};
use vbm_core::{Freeze, PowerState, SnapshotId, VolumeId};
use vbm_hyper::{
    DiskDefinition, Driver, Error, OpCx, QemuDriver, SavedState, SimDriver, SimWorld, SnapshotRequest,
    Snapshots, VmDefinition,
};

#[async_trait]
pub(crate) trait World {
    /// How many disks a VM has here.
    fn disks(&self) -> usize;
    /// Does it, with the ids of the snapshots that are there and of the next one.
    async fn act(&mut self, act: &Act, ids: &[SnapshotId]) -> Result<(), Error>;
    async fn look(&mut self) -> Look;
    async fn end(&mut self);
}

async fn on_driver<D: Driver + Snapshots + SavedState>(
    driver: &D,
    vm: &VmDefinition,
    act: &Act,
    ids: &[SnapshotId],
) -> Result<(), Error> {
    let cx = OpCx::new();
    let (next, there) = ids.split_last().unwrap();
    let nobody = SnapshotId::from_uuid(uuid::Uuid::from_u128(u128::MAX));
    let chosen = |which: &usize| there.get(*which).copied().unwrap_or(nobody);
    match act {
        Act::Start => driver.start(&cx, vm, vec![]).await.map(drop),
        Act::Kill => match driver.kill(vm.id).await {
            Err(Error::NoSuchVm(_)) => Ok(()),
            killed => killed,
        },
        Act::Pause => driver.pause(vm.id).await,
        Act::Resume => driver.resume(vm.id).await,
        Act::Take(memory) => {
            let mut request = SnapshotRequest::new(*next);
            if !memory {
                request = request.without_memory(Freeze::No);
            }
            driver.take(&cx, vm, request).await.map(drop)
        }
        Act::Revert(which) => driver.revert(&cx, vm, chosen(which), vec![]).await.map(drop),
        Act::Delete(which) => driver.delete(&cx, vm, chosen(which)).await,
        Act::Save => driver.save(&cx, vm.id).await.map(drop),
        Act::Restore => driver.restore(&cx, vm, vec![]).await.map(drop),
        Act::Discard => driver.discard(vm.id).await,
        Act::Write(..) | Act::Remember(_) | Act::NewDriver => Ok(()),
    }
}

async fn power<D: Driver>(driver: &D, vm: &VmDefinition) -> Power {
    match driver.inspect(vm.id).await {
        Err(Error::NoSuchVm(_)) => Power::Off,
        seen => match seen.unwrap().power {
            PowerState::Off => Power::Off,
            PowerState::Running => Power::Running,
            PowerState::Paused(_) => Power::Paused,
            PowerState::Saved => Power::Saved,
            other => panic!("no story comes to {other}"),
        },
    }
}

async fn tree<D: Snapshots>(
    driver: &D,
    vm: &VmDefinition,
) -> Vec<(SnapshotId, vbm_core::Consistency, Option<SnapshotId>)> {
    let tree = driver.tree(vm).await.unwrap();
    let mut tree: Vec<_> = tree
        .iter()
        .map(|info| (info.id, info.consistency, info.parent))
        .collect();
    tree.sort_by_key(|(id, ..)| *id);
    tree
}

/// The simulated driver. Words are single letters.
pub(crate) struct SimGround {
    world: SimWorld,
    driver: Option<SimDriver>,
    vm: VmDefinition,
}

impl SimGround {
    pub(crate) fn new() -> Self {
        let world = SimWorld::default();
        let mut vm = common::definition("/nonexistent/root.qcow2");
        vm.disks.push(DiskDefinition {
            volume: VolumeId::from_uuid(uuid::Uuid::from_u128(1)),
            path: "/nonexistent/data.qcow2".into(),
            read_only: false,
        });
        let driver = Some(SimDriver::open(world.clone()).unwrap());
        Self { world, driver, vm }
    }

    fn driver(&self) -> &SimDriver {
        self.driver.as_ref().unwrap()
    }

    fn paths(&self) -> [PathBuf; 2] {
        [self.vm.root_disk.clone(), self.vm.disks[0].path.clone()]
    }
}

fn letter(word: &str) -> u8 {
    word.bytes().next().unwrap_or(0)
}

#[async_trait]
impl World for SimGround {
    fn disks(&self) -> usize {
        2
    }

    async fn act(&mut self, act: &Act, ids: &[SnapshotId]) -> Result<(), Error> {
        match act {
            Act::Write(disk, word) => {
                let word = char::from(*word).to_string();
                self.world.write_disk(&self.paths()[*disk], &word);
            }
            Act::Remember(word) => {
                if matches!(
                    power(self.driver(), &self.vm).await,
                    Power::Running | Power::Paused
                ) {
                    self.world.remember(self.vm.id, &char::from(*word).to_string());
                }
            }
            Act::NewDriver => {
                self.driver().shutdown().await;
                self.driver = None;
                let driver = SimDriver::open(self.world.clone())?;
                driver.adopt().await?;
                self.driver = Some(driver);
            }
            act => return on_driver(self.driver(), &self.vm, act, ids).await,
        }
        Ok(())
    }

    async fn look(&mut self) -> Look {
        let disks = self.paths().map(|path| letter(&self.world.disk_word(&path)));
        let memory = self.world.memory_word(self.vm.id).unwrap_or_default();
        Look {
            power: power(self.driver(), &self.vm).await,
            disks: disks.to_vec(),
            memory: Some(letter(&memory)),
            tree: tree(self.driver(), &self.vm).await,
        }
    }

    async fn end(&mut self) {}
}

/// Where a word is written on a disk, and how much of it: `qemu-io`'s words.
const PLACE: &str = "1M 64k";
const PATIENCE: Duration = Duration::from_secs(60);

/// QEMU without a guest: its firmware finds nothing to boot. Words are patterns on the disks; the memory is nobody's to see.
pub(crate) struct QemuGround {
    bench: QemuBench,
    driver: Option<QemuDriver>,
    vm: VmDefinition,
}

impl QemuGround {
    pub(crate) async fn new() -> Self {
        let bench = QemuBench::make().await;
        let mut vm = bench.on_disk();
        vm.memory_mib = 32;
        // Nothing of an image below it, so that nothing is booted.
        std::fs::remove_file(&vm.root_disk).unwrap();
        blank(&vm.root_disk);
        let driver = Some(QemuDriver::open(bench.config()).await.unwrap());
        Self { bench, driver, vm }
    }

    fn driver(&self) -> &QemuDriver {
        self.driver.as_ref().unwrap()
    }

    async fn is_live(&self) -> bool {
        matches!(
            power(self.driver(), &self.vm).await,
            Power::Running | Power::Paused
        )
    }
}

fn blank(path: &Path) {
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(path)
        .arg("16M")
        .status()
        .unwrap();
    assert!(made.success());
}

/// Runs `qemu-io` on a disk; says whether it was content.
fn qemu_io(path: &Path, flags: &[&str], command: &str) -> bool {
    let said = Command::new("qemu-io")
        .args(["-f", "qcow2"])
        .args(flags)
        .args(["-c", command])
        .arg(path)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr);
    said.status.success() && !text.contains("failed") && !text.contains("error")
}

/// Writes to a disk past the guest, by the spare monitor.
fn write_live(run: &Path, word: u8) {
    let stream = UnixStream::connect(run.join("q1")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut reader, mut writer) = (BufReader::new(stream.try_clone().unwrap()), stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let mut execute = |command: &str, arguments: Value| -> Value {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(writer, "{request}").unwrap();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            let reply: Value = serde_json::from_str(&line).unwrap();
            if reply.get("event").is_none() {
                assert!(reply.get("error").is_none(), "{command}: {reply}");
                return reply;
            }
        }
    };
    execute("qmp_capabilities", json!({}));
    for command in [format!("write -P {word} {PLACE}"), "flush".into()] {
        let line = format!("qemu-io -d /machine/peripheral/disk0/virtio-backend \"{command}\"");
        let reply = execute("human-monitor-command", json!({ "command-line": line }));
        let said = reply["return"].as_str().unwrap_or_default();
        assert!(!said.contains("rror"), "{said}");
    }
}

#[async_trait]
impl World for QemuGround {
    fn disks(&self) -> usize {
        1
    }

    async fn act(&mut self, act: &Act, ids: &[SnapshotId]) -> Result<(), Error> {
        match act {
            Act::Write(0, word) => {
                if self.is_live().await {
                    write_live(&self.bench.config().root.join(self.vm.id.to_string()), *word);
                } else {
                    assert!(qemu_io(
                        &self.vm.root_disk,
                        &[],
                        &format!("write -P {word} {PLACE}")
                    ));
                }
            }
            Act::NewDriver => {
                self.driver().shutdown().await;
                self.driver = None;
                let driver = QemuDriver::open(self.bench.config()).await?;
                driver.adopt().await?;
                self.driver = Some(driver);
            }
            act => return on_driver(self.driver(), &self.vm, act, ids).await,
        }
        Ok(())
    }

    async fn look(&mut self) -> Look {
        let is = |word: &u8| {
            qemu_io(
                &self.vm.root_disk,
                &["-U", "-r"],
                &format!("read -P {word} {PLACE}"),
            )
        };
        let words = [0].into_iter().chain(b'a'..=b'f').collect::<Vec<u8>>();
        let word = words.iter().find(|word| is(word));
        Look {
            power: power(self.driver(), &self.vm).await,
            disks: vec![*word.expect("one of the words is on the disk")],
            memory: None,
            tree: tree(self.driver(), &self.vm).await,
        }
    }

    async fn end(&mut self) {
        self.driver().kill(self.vm.id).await.unwrap_or_default();
        let checked = Command::new("qemu-img")
            .args(["check", "-q"])
            .arg(&self.vm.root_disk)
            .status()
            .unwrap();
        assert!(checked.success(), "the disk is sound at the end");
    }
}
