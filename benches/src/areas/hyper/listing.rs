//! What is seen: of all VMs at once, and of one.

use super::{lab::Lab, libvirt::Libvirt};
use crate::harness::{
    duel::duel,
    fault::{Fault, Outcome},
    ground::Ground,
    row::Row,
};
use tokio::time::Instant;
use uuid::Uuid;
use vbm_core::VmId;
use vbm_hyper::{Driver, OpCx};

/// How many VMs are listed.
pub(super) const COUNTS: [usize; 3] = [10, 100, 1_000];
/// The name of the row of one VM.
pub(super) const STATE: &str = "state of a VM that runs";
/// How often a thing that takes microseconds is done for one sample.
const REPEAT: u32 = 100;

/// The name of a row of a list.
pub(super) fn list_name(count: usize) -> String {
    format!("list of {count} VMs")
}

/// The inventory of VMs that are off, beside `virsh list --all` of as many domains.
pub(super) async fn list(ground: &Ground, count: usize) -> Outcome<Row> {
    let lab = Lab::make(ground).await?;
    for _ in 0..count {
        // What is left of a VM that ran and is off.
        let id = VmId::from_uuid(Uuid::now_v7());
        std::fs::create_dir_all(lab.run_dir().join(id.to_string()))?;
    }
    let driver = lab.driver().await?;
    let libvirt = Libvirt::start().await?;
    libvirt.define_many(&lab, count).await?;
    let samples = duel(
        ground.rounds(),
        async |_| {
            let begin = Instant::now();
            for _ in 0..REPEAT {
                if driver.inventory().await?.len() != count {
                    return Err(Fault::new("the inventory is not whole"));
                }
            }
            Ok(each(begin))
        },
        async |_| {
            let begin = Instant::now();
            let all = libvirt.virsh(&["list", "--all", "--name"]).await?;
            let took = begin.elapsed().as_secs_f64() * 1e3;
            match all.split_whitespace().count() {
                there if there == count => Ok(took),
                there => Err(Fault::new(format!("virsh lists {there} of {count}"))),
            }
        },
    )
    .await?;
    driver.shutdown().await;
    let row = Row::new(list_name(count), "ms", samples.ours)
        .against("virsh list --all --name", samples.peer)
        .noted("ours is a call within the process, and neither asks a QEMU");
    Ok(if count == 1_000 { row.goal("<= 0.02x") } else { row })
}

/// What is seen of a VM that runs, beside `virsh dominfo`.
pub(super) async fn state(ground: &Ground) -> Outcome<Row> {
    let lab = Lab::make(ground).await?;
    let driver = lab.driver().await?;
    let vm = lab.vm().await?;
    driver.start(&OpCx::new(), &vm, Vec::new()).await?;
    driver.pause(vm.id).await?;
    let libvirt = Libvirt::start().await?;
    let domain = libvirt.define(&lab).await?;
    libvirt.virsh(&["start", "--paused", &domain]).await?;
    let samples = duel(
        ground.rounds(),
        async |_| {
            let begin = Instant::now();
            for _ in 0..REPEAT {
                driver.inspect(vm.id).await?;
            }
            Ok(each(begin))
        },
        async |_| libvirt.timed(&["dominfo", &domain]).await,
    )
    .await?;
    driver.kill(vm.id).await?;
    driver.undefine(vm.id).await?;
    driver.shutdown().await;
    Ok(Row::new(STATE, "ms", samples.ours)
        .against("virsh dominfo", samples.peer)
        .noted("ours is a call within the process"))
}

fn each(begin: Instant) -> f64 {
    begin.elapsed().as_secs_f64() * 1e3 / f64::from(REPEAT)
}
