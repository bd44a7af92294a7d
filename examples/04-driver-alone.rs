//! A driver alone: boot the tiny guest under QEMU, read its serial line, shut it down. No network, no daemon.
//! Needs QEMU and the tiny guest: `cargo xtask guest`, then `cargo run -p vbm-examples --bin 04-driver-alone -- target/guest`.
#![expect(clippy::print_stdout, reason = "an example speaks to people")]

use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::io::AsyncReadExt;
use vbm_core::{DiskFormat, VmId, VolumeId};
use vbm_hyper::{
    BootSource, ContentKind, Driver, Hardware, ImageStore, Machines, Pool, QemuConfig, QemuDriver,
    VmDefinition,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let guest =
        PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| "target/guest".into())).canonicalize()?;
    let manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(guest.join("guest.json"))?)?;
    let text = |key: &str| manifest[key].as_str().unwrap_or_default().to_owned();
    let dir = tempfile::tempdir()?;

    let images = ImageStore::open(dir.path().join("images")).await?;
    let disk = tokio::fs::File::open(guest.join(text("disk"))).await?;
    let image = images
        .import(disk, None, ContentKind::Disk(DiskFormat::Qcow2))
        .await?;
    let pool = Pool::open(dir.path().join("disks"), images).await?;
    let root_disk = pool
        .clone_image(
            image.digest,
            VolumeId::from_uuid(uuid::Uuid::now_v7()),
            image.virtual_bytes,
        )
        .await?;

    let driver = Arc::new(QemuDriver::open(QemuConfig::new(dir.path().join("run"))).await?);
    let machines = Machines::open(driver.clone()).await?;
    let definition = VmDefinition {
        id: VmId::from_uuid(uuid::Uuid::now_v7()),
        name: "alone".parse()?,
        vcpus: 1,
        memory_mib: 128,
        root_disk,
        boot: BootSource::Kernel {
            kernel: guest.join(text("kernel")),
            initrd: guest.join(text("initrd")),
            cmdline: text("cmdline"),
        },
        disks: vec![],
        hardware: Hardware::default(),
        nics: vec![],
    };
    let vm = machines.vm(definition.id);
    let seen = vm.start(definition, vec![]).await?;
    println!(
        "runs as process {:?}, by {:?}",
        seen.pid,
        seen.accelerator.map(|a| a.name)
    );

    let consoles = driver.consoles().ok_or("the driver has no consoles")?;
    let mut serial = consoles.serial(vm.id()).await?;
    let mut said = String::new();
    let read = async {
        let mut bytes = [0; 4096];
        while !said.contains("vbm-guest ready") {
            let count = serial.read(&mut bytes).await?;
            said.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
        Ok::<_, std::io::Error>(())
    };
    tokio::time::timeout(Duration::from_secs(120), read).await??;
    println!(
        "the guest says: {}",
        said.lines()
            .find(|l| l.contains("vbm-guest ready"))
            .unwrap_or_default()
    );

    println!(
        "asked to shut down: {:?}",
        vm.stop(Duration::from_secs(30)).await?
    );
    vm.remove().await?;
    machines.shutdown().await;
    Ok(())
}
