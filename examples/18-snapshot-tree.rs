//! A tree of snapshots: two branches of one VM, each with what was written there; and a snapshot as files of its own.
//! `cargo run -p vbm-examples --bin 18-snapshot-tree`. The VM is simulated; with `QemuDriver` the calls are the same.
#![expect(clippy::print_stdout, reason = "an example speaks to people")]

use std::sync::Arc;
use vbm_core::{Freeze, SnapshotId, VmId};
use vbm_hyper::{
    BootSource, Hardware, Machines, OpCx, SimDriver, SimWorld, SnapshotInfo, SnapshotRequest, VmDefinition,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let world = SimWorld::default();
    let machines = Machines::open(Arc::new(SimDriver::open(world.clone())?)).await?;
    let definition = VmDefinition {
        id: VmId::from_uuid(uuid::Uuid::now_v7()),
        name: "web-1".parse()?,
        vcpus: 1,
        memory_mib: 64,
        root_disk: "/var/lib/vbm/pool/web-1.qcow2".into(),
        boot: BootSource::Disk,
        disks: vec![],
        hardware: Hardware::default(),
        nics: vec![],
    };
    let vm = machines.vm(definition.id);
    let names = ["base", "patched", "other"];
    let ids: Vec<SnapshotId> = names
        .iter()
        .map(|_| SnapshotId::from_uuid(uuid::Uuid::now_v7()))
        .collect();
    let write = |word: &str| world.write_disk(&definition.root_disk, word);

    // Off: the disks are clean. Running: with memory. Without memory, its file systems may be frozen for it.
    write("base");
    vm.take_snapshot(definition.clone(), ids[0]).await?;
    vm.start(definition.clone(), vec![]).await?;
    write("patched");
    let cx = OpCx::new().within(std::time::Duration::from_secs(60));
    let taken = vm.under(cx).take_snapshot(definition.clone(), ids[1]).await?;
    println!("patched: {}, halted for {:?}", taken.consistency, taken.paused);
    vm.force_off().await?;
    vm.revert_snapshot(definition.clone(), ids[0], vec![]).await?;
    vm.start(definition.clone(), vec![]).await?;
    write("other");
    let request = SnapshotRequest::new(ids[2]).without_memory(Freeze::IfPossible);
    let taken = vm.take_snapshot(definition.clone(), request).await?;
    println!("other: {} {}", taken.consistency, taken.note.unwrap_or_default());

    let tree = vm.snapshot_tree(&definition).await?;
    show(
        &tree,
        &|id| {
            ids.iter()
                .position(|known| *known == id)
                .map_or("?", |at| names[at])
        },
        None,
        0,
    );

    vm.force_off().await?;
    vm.revert_snapshot(definition.clone(), ids[1], vec![]).await?;
    println!(
        "back at patched: the disk says '{}'",
        world.disk_word(&definition.root_disk)
    );
    vm.delete_snapshot(definition.clone(), ids[0]).await?;
    println!(
        "base is gone, {} are left",
        vm.list_snapshots(&definition).await?.len()
    );

    let dir = tempfile::tempdir()?;
    let files = vm.export_snapshot(&definition, ids[2], dir.path()).await?;
    println!("other, as files: {}", files.len());
    machines.shutdown().await;
    Ok(())
}

/// Prints what came after `parent`, and what came after that.
fn show(
    tree: &[SnapshotInfo],
    name: &dyn Fn(SnapshotId) -> &'static str,
    parent: Option<SnapshotId>,
    depth: usize,
) {
    for info in tree.iter().filter(|info| info.parent == parent) {
        let here = if info.current { "  <- here" } else { "" };
        println!(
            "{}{} ({}){here}",
            "   ".repeat(depth),
            name(info.id),
            info.consistency
        );
        show(tree, name, Some(info.id), depth + 1);
    }
}
