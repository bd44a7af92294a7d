//! The driver's promises, kept by the simulated driver and by QEMU.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests panic and print as tests do"
)]

mod common;

use async_trait::async_trait;
use std::sync::Arc;
use vbm_core::{CrashCause, VmId, VolumeId};
use vbm_hyper::{
    DiskDefinition, Driver, Seen, SimDriver, SimWorld, VmDefinition,
    conformance::{Bench, GuestWords},
};

struct SimBench(SimWorld);

impl SimBench {
    async fn boxed() -> Result<Box<dyn Bench>, String> {
        Ok(Box::new(Self(SimWorld::default())))
    }
}

#[async_trait]
impl Bench for SimBench {
    async fn open(&self) -> Arc<dyn Driver> {
        Arc::new(SimDriver::open(self.0.clone()).unwrap())
    }
    fn definition(&self) -> VmDefinition {
        common::definition(format!("/nonexistent/{}.qcow2", uuid::Uuid::now_v7()))
    }
    async fn booted(&self, _: &dyn Driver, _: VmId) {}
    fn dialogue(&self) -> (&'static str, &'static str) {
        ("echo twice-$((40+2))\n", "\ntwice-$((40+2))\r")
    }
    fn words(&self) -> Result<GuestWords, String> {
        Ok(SimWorld::words())
    }
    fn data_disk(&self) -> Result<DiskDefinition, String> {
        let volume = VolumeId::from_uuid(uuid::Uuid::now_v7());
        Ok(DiskDefinition {
            volume,
            path: format!("/nonexistent/{volume}.qcow2").into(),
            read_only: false,
        })
    }
    async fn open_beside(&self) -> Result<Arc<dyn Driver>, String> {
        Ok(Arc::new(SimDriver::open(self.0.beside()).unwrap()))
    }
    async fn elsewhere(&self, definition: &VmDefinition) -> Result<VmDefinition, String> {
        Ok(VmDefinition {
            root_disk: definition.root_disk.with_extension("elsewhere"),
            ..definition.clone()
        })
    }
    fn volume(&self) -> Result<DiskDefinition, String> {
        let volume = vbm_core::VolumeId::from_uuid(uuid::Uuid::now_v7());
        Ok(DiskDefinition {
            volume,
            path: format!("/nonexistent/{volume}.qcow2").into(),
            read_only: false,
        })
    }
    fn medium(&self) -> Result<std::path::PathBuf, String> {
        Ok("/nonexistent/install.iso".into())
    }
    async fn accident(&self, id: VmId, _: &Seen) {
        self.0.crash(id, CrashCause::Hypervisor);
    }
}

mod sim {
    use super::SimBench;
    vbm_hyper::conformance_suite!(SimBench::boxed());
}

mod qemu {
    use super::common::QemuBench;
    vbm_hyper::conformance_suite!(QemuBench::boxed());
}
