//! Grounds for the VirtualBox driver: one with the fake VBoxManage.
#![allow(dead_code, reason = "each test file uses a part of it")]

use crate::common;
use async_trait::async_trait;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use vbm_core::{DiskFormat, VmId, VolumeId};
use vbm_hyper::{
    ContentKind, DiskKind, Driver, ImageStore, Pool, Seen, VirtualBoxConfig, VirtualBoxDriver, VmDefinition,
    conformance::Bench,
};

/// The size of the disks of the fake's guests.
const DISK_BYTES: u64 = 2 << 20;

/// A host with a fake VirtualBox; what runs on it ends with it.
pub(crate) struct FakeBench {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) pool: Pool,
    image: vbm_core::Digest,
}

impl FakeBench {
    pub(crate) async fn boxed() -> Result<Box<dyn Bench>, String> {
        Ok(Box::new(Self::make().await))
    }

    pub(crate) async fn make() -> Self {
        let dir = tempfile::Builder::new().prefix("vbm-vbox-").tempdir().unwrap();
        for (path, text) in [("dev/vboxdrv", ""), ("proc/cpuinfo", "flags\t\t: fpu svm npt\n")] {
            let path = dir.path().join("host").join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let images = ImageStore::open(dir.path().join("images")).await.unwrap();
        let disk = vec![0x55; usize::try_from(DISK_BYTES / 2).unwrap()];
        let kind = ContentKind::Disk(DiskFormat::Raw);
        let image = images.import(&disk[..], None, kind).await.unwrap().digest;
        let pool = Pool::open(dir.path().join("pool"), images).await.unwrap();
        Self { dir, pool, image }
    }

    pub(crate) fn config(&self) -> VirtualBoxConfig {
        VirtualBoxConfig::new(self.dir.path().join("vbox"), self.dir.path().join("run"))
            .with_program(env!("CARGO_BIN_EXE_fake-vboxmanage"))
            .with_host_root(self.dir.path().join("host"))
    }

    pub(crate) async fn driver(&self) -> VirtualBoxDriver {
        VirtualBoxDriver::open(self.config()).await.unwrap()
    }

    pub(crate) fn fake(&self) -> PathBuf {
        self.dir.path().join("vbox/home/fake")
    }

    /// Lets something go wrong; see the fake.
    pub(crate) fn knob(&self, name: &str, value: &str) {
        let dir = self.fake().join("knobs");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(name), value).unwrap();
    }

    pub(crate) fn unknob(&self, name: &str) {
        std::fs::remove_file(self.fake().join("knobs").join(name)).unwrap();
    }

    /// Runs the fake as somebody would by hand.
    pub(crate) fn by_hand(&self, args: &[&str]) -> String {
        let out = std::process::Command::new(env!("CARGO_BIN_EXE_fake-vboxmanage"))
            .args(args)
            .env("VBOX_USER_HOME", self.dir.path().join("vbox/home"))
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    pub(crate) async fn disk(&self) -> PathBuf {
        let volume = VolumeId::from_uuid(uuid::Uuid::now_v7());
        let made = self
            .pool
            .clone_image_as(self.image, volume, DISK_BYTES, DiskKind::Vdi);
        made.await.unwrap()
    }

    pub(crate) async fn vm(&self) -> VmDefinition {
        common::definition(self.disk().await)
    }
}

impl Drop for FakeBench {
    fn drop(&mut self) {
        end_all(&self.fake());
    }
}

/// Ends the fake's processes that a test has left: only those whose command line names a VM of its registry.
fn end_all(fake: &Path) {
    for entry in std::fs::read_dir(fake).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(uuid) = name.strip_suffix(".json") else {
            continue;
        };
        let vm: serde_json::Value = serde_json::from_slice(&std::fs::read(entry.path()).unwrap()).unwrap();
        let pid = u32::try_from(vm["pid"].as_u64().unwrap()).unwrap();
        let cmdline = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if pid > 0 && cmdline.contains("--startvm") && cmdline.contains(uuid) {
            common::kill_9(pid);
        }
    }
}

#[async_trait]
impl Bench for FakeBench {
    async fn open(&self) -> Arc<dyn Driver> {
        Arc::new(self.driver().await)
    }
    fn definition(&self) -> VmDefinition {
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(self.vm()))
    }
    async fn booted(&self, driver: &dyn Driver, id: VmId) {
        let mut serial = driver.consoles().unwrap().serial(id).await.unwrap();
        common::read_until(&mut serial, common::READY).await;
    }
    fn dialogue(&self) -> (&'static str, &'static str) {
        ("\necho twice-$((40+2))\n", "twice-42")
    }
    async fn accident(&self, _: VmId, seen: &Seen) {
        common::kill_9(seen.pid.unwrap());
    }
    fn patience(&self) -> Duration {
        common::PATIENCE
    }
}
