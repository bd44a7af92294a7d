//! A virtual machine in under 30 lines, by embedding the whole platform. Needs root and QEMU, and a disk to boot:
//! `cargo xtask guest`, then `cargo run -p vbm-examples --bin 01-launch-a-vm -- target/guest/guest.qcow2`.
#![expect(clippy::print_stdout, reason = "an example speaks to people")]

use vbm_core::{Boot, DiskFormat};
use vbm_sdk::api::{CreateImage, CreateNetwork, LaunchRequest, NicRequest};
use vbm_sdk::server::Server;

#[tokio::main]
async fn main() -> vbm_core::Result<()> {
    let disk = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "target/guest/guest.qcow2".into());
    let data = std::env::temp_dir().join(format!("vbm-example-{}", std::process::id()));
    let server = Server::builder(&data).ephemeral(true).start().await?;
    let vbm = server.client()?;

    let disk = vbm.images().upload(disk).await?.digest;
    vbm.images()
        .create(CreateImage {
            name: "tiny".parse()?,
            disk,
            format: DiskFormat::Qcow2,
            boot: Boot::Disk,
        })
        .await?;
    vbm.networks()
        .create(CreateNetwork::new("lan".parse()?, "10.0.0.0/24"))
        .await?;
    vbm.vms()
        .launch(
            LaunchRequest::new("tiny")
                .name("web".parse()?)
                .nic(NicRequest::on("lan")),
        )
        .await?;
    let vm = vbm
        .vms()
        .wait_for("web", |vm| vm.nics[0].port.status.leased_at.is_some())
        .await?;
    println!("web runs and took {} by DHCP", vm.nics[0].port.spec.address);

    let gone = vbm.vms().delete("web").force(true).await?;
    vbm.operations().wait(gone.operation.id).await?;
    let gone = vbm.networks().delete("lan").await?;
    vbm.operations().wait(gone.operation.id).await?;
    server.shutdown().await;
    drop(std::fs::remove_dir_all(data));
    Ok(())
}
