//! A host of the bench's own: run directory, images, pool; what runs there ends with it.

use crate::{
    areas::by_hand::{ByHand, by_hand, command_line},
    harness::{
        child::{command, signal},
        fault::{During, Fault, Outcome},
        ground::Ground,
    },
};
use nix::sys::signal::Signal;
use std::{
    cell::RefCell,
    path::{Path, PathBuf},
};
use tempfile::TempDir;
use tokio::process::Command;
use uuid::Uuid;
use vbm_core::{Digest, DiskFormat, VmId, VolumeId};
use vbm_hyper::{
    BootSource, ContentKind, Driver, Hardware, ImageStore, Pool, QemuConfig, QemuDriver, VmDefinition,
};

/// Enough for the tiny guest.
pub(super) const MEMORY_MIB: u32 = 96;
/// The size of a clone's disk.
pub(super) const DISK_BYTES: u64 = 64 << 20;

/// The parts. VMs that were started here are killed when it is dropped, by their pid, if it is still theirs.
pub(super) struct Lab {
    pub(super) pool: Pool,
    pub(super) image: Digest,
    base: PathBuf,
    pub(super) boot: BootSource,
    started: RefCell<Vec<VmId>>,
    pub(super) dir: TempDir,
}

impl Lab {
    pub(super) async fn make(ground: &Ground) -> Outcome<Self> {
        let guest = ground.guest()?;
        let dir = tempfile::Builder::new().prefix("vbm-bench-").tempdir()?;
        let images = ImageStore::open(dir.path().join("images")).await?;
        let disk = tokio::fs::File::open(&guest.disk).await?;
        let image = images
            .import(disk, None, ContentKind::Disk(DiskFormat::Qcow2))
            .await?
            .digest;
        let base = images.path(image)?;
        let pool = Pool::open(dir.path().join("pool"), images).await?;
        let boot = BootSource::Kernel {
            kernel: guest.kernel.clone(),
            initrd: guest.initrd.clone(),
            cmdline: guest.cmdline.clone(),
        };
        Ok(Self {
            pool,
            image,
            base,
            boot,
            started: RefCell::default(),
            dir,
        })
    }

    pub(super) fn base(&self) -> &Path {
        &self.base
    }

    /// Where the driver keeps what runs.
    pub(super) fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// A driver on the run directory; it has looked what this host can do.
    pub(super) async fn driver(&self) -> Outcome<QemuDriver> {
        let driver = QemuDriver::open(QemuConfig::new(self.run_dir())).await?;
        let capability = driver.probe().await;
        match capability.problem {
            None => Ok(driver),
            Some(problem) => Err(Fault::from(problem).during("QEMU does not work here")),
        }
    }

    /// A VM with a fresh clone, booted directly.
    pub(super) async fn vm(&self) -> Outcome<VmDefinition> {
        let disk = self
            .pool
            .clone_image(self.image, VolumeId::from_uuid(Uuid::now_v7()), DISK_BYTES)
            .await?;
        let definition = VmDefinition {
            boot: self.boot.clone(),
            ..definition(disk)
        };
        self.started.borrow_mut().push(definition.id);
        Ok(definition)
    }

    /// The same QEMU as that of a VM of ours, as one would type it; halted as ours is when it is started.
    pub(super) async fn typed(&self, like: VmId) -> Outcome<Command> {
        let (_pid, ours) = command_line(&like.to_string())?;
        let uuid = Uuid::now_v7();
        let dir = self.dir.path().join(uuid.simple().to_string());
        std::fs::create_dir(&dir).during(dir.display())?;
        let disk = self
            .pool
            .clone_image(self.image, VolumeId::from_uuid(uuid), DISK_BYTES)
            .await?;
        let words = by_hand(
            &ours,
            &ByHand {
                dir,
                disk,
                uuid,
                tap: None,
                halted: true,
            },
        )?;
        let (program, args) = words
            .split_first()
            .ok_or_else(|| Fault::new("an empty command line"))?;
        let mut typed = command(program);
        typed.args(args);
        Ok(typed)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for id in self.started.borrow().iter() {
            // Most have ended in order: then there is no such process.
            if let Ok((pid, _)) = command_line(&id.to_string()) {
                signal(pid, Signal::SIGKILL);
            }
        }
    }
}

/// A small VM without NICs.
fn definition(disk: PathBuf) -> VmDefinition {
    let id = VmId::from_uuid(Uuid::now_v7());
    let tail = id.to_string().chars().rev().take(8).collect::<String>();
    VmDefinition {
        id,
        name: format!("bench-{tail}")
            .parse()
            .unwrap_or_else(|_| unreachable!("hex digits make a name")),
        vcpus: 1,
        memory_mib: MEMORY_MIB,
        root_disk: disk,
        boot: BootSource::Disk,
        disks: vec![],
        hardware: Hardware::default(),
        nics: Vec::new(),
    }
}
