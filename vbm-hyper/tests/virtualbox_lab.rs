//! The driver's promises on real VirtualBox VMs that run: in the machine of `cargo xtask lab virtualbox`.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests panic and print as tests do"
)]

mod common;

use async_trait::async_trait;
use std::{sync::Arc, time::Duration};
use vbm_core::{DiskFormat, VmId, VolumeId};
use vbm_hyper::{
    ContentKind, DiskKind, Driver, ImageStore, Pool, Seen, VirtualBoxConfig, VirtualBoxDriver, VmDefinition,
    conformance::{Bench, GuestWords},
};

/// How large the guests' disks are.
const DISK_BYTES: u64 = 64 << 20;
/// How long anything may take in a machine that is emulated itself.
const PATIENCE: Duration = Duration::from_secs(180);

/// The lab's machine, with a registry of the test's own.
struct LabBench {
    dir: tempfile::TempDir,
    pool: Pool,
    image: vbm_core::Digest,
}

impl LabBench {
    async fn boxed() -> Result<Box<dyn Bench>, String> {
        if common::left_out("virtualbox-lab") {
            return Err("VBM_LEAVE_OUT names virtualbox-lab".into());
        }
        assert!(
            std::env::var("VBM_VBOX_LAB").is_ok_and(|lab| lab == "1"),
            "this is not the VirtualBox lab: run `cargo xtask lab virtualbox`, or leave these tests out with VBM_LEAVE_OUT=virtualbox-lab"
        );
        let dir = tempfile::Builder::new().prefix("vbm-lab-").tempdir().unwrap();
        let images = ImageStore::open(dir.path().join("images")).await.unwrap();
        let disk = tokio::fs::File::open(common::guest_dir().join("guest.qcow2"))
            .await
            .unwrap();
        let kind = ContentKind::Disk(DiskFormat::Qcow2);
        let image = images.import(disk, None, kind).await.unwrap().digest;
        let pool = Pool::open(dir.path().join("pool"), images).await.unwrap();
        Ok(Box::new(Self { dir, pool, image }))
    }

    fn config(&self) -> VirtualBoxConfig {
        VirtualBoxConfig::new(self.dir.path().join("vbox"), self.dir.path().join("run"))
    }
}

impl Drop for LabBench {
    /// Ends what a failed test has left: only processes whose command line names a VM of this bench.
    fn drop(&mut self) {
        let vms = std::fs::read_dir(self.dir.path().join("vbox/vms"));
        for entry in vms.into_iter().flatten().flatten() {
            let id = entry.file_name().to_string_lossy().into_owned();
            for process in std::fs::read_dir("/proc").unwrap().flatten() {
                let Ok(pid) = process.file_name().to_string_lossy().parse() else {
                    continue;
                };
                let cmdline = std::fs::read_to_string(process.path().join("cmdline")).unwrap_or_default();
                if cmdline.contains(&format!("--startvm\0{id}")) {
                    common::kill_9(pid);
                }
            }
        }
    }
}

#[async_trait]
impl Bench for LabBench {
    async fn open(&self) -> Arc<dyn Driver> {
        Arc::new(VirtualBoxDriver::open(self.config()).await.unwrap())
    }
    fn definition(&self) -> VmDefinition {
        let volume = VolumeId::from_uuid(uuid::Uuid::now_v7());
        let made = self
            .pool
            .clone_image_as(self.image, volume, DISK_BYTES, DiskKind::Vdi);
        let disk = tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(made));
        common::definition(disk.unwrap())
    }
    async fn booted(&self, driver: &dyn Driver, id: VmId) {
        let mut serial = driver.consoles().unwrap().serial(id).await.unwrap();
        common::read_until(&mut serial, common::READY).await;
    }
    fn dialogue(&self) -> (&'static str, &'static str) {
        ("\necho twice-$((40+2))\n", "twice-42")
    }
    fn words(&self) -> Result<GuestWords, String> {
        Ok(GuestWords::of_shell("/dev/sda"))
    }
    async fn accident(&self, _: VmId, seen: &Seen) {
        common::kill_9(seen.pid.unwrap());
    }
    fn patience(&self) -> Duration {
        PATIENCE
    }
}

vbm_hyper::conformance_suite!(LabBench::boxed());
