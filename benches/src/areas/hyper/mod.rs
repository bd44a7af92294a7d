//! Virtual machines on one host: the driver beside the same QEMU by hand, clones beside `qemu-img`.

mod clone;
mod lab;
mod power;

use crate::harness::{duel::solo, fault::Outcome, ground::Ground, row::Row, rows::Rows};
use std::sync::Arc;
use tokio::time::Instant;
use vbm_hyper::{Driver, OpCx, SimDriver, SimWorld};

/// The VMs of a large inventory.
const MANY: usize = 1_000;
/// How often a thing that takes microseconds is done for one sample.
const REPEAT: u32 = 20;

pub(crate) async fn run(ground: &Ground, rows: &mut Rows) {
    rows.measure("start() to Running", "ms", power::start(ground))
        .await;
    rows.measure("linked clone", "ms", clone::linked(ground)).await;
    rows.measure("inventory of 1,000 simulated VMs", "ms", inventory(ground))
        .await;
    rows.measure("force-off to Off", "ms", power::kill(ground)).await;
    rows.measure("re-adopt, per VM", "ms", power::adopt(ground)).await;
}

async fn inventory(ground: &Ground) -> Outcome<Row> {
    let driver: Arc<dyn Driver> = Arc::new(SimDriver::open(SimWorld::instant())?);
    for _ in 0..MANY {
        driver
            .start(
                &OpCx::new(),
                &lab::definition("/nonexistent/disk.qcow2".into()),
                Vec::new(),
            )
            .await?;
    }
    let samples = solo(ground.rounds(), async |_| {
        let begin = Instant::now();
        for _ in 0..REPEAT {
            if driver.inventory().await?.len() != MANY {
                return Err(crate::harness::fault::Fault::new("the inventory is not whole"));
            }
        }
        Ok(begin.elapsed().as_secs_f64() * 1e3 / f64::from(REPEAT))
    })
    .await?;
    driver.shutdown().await;
    Ok(Row::new("inventory of 1,000 simulated VMs", "ms", samples)
        .without("virsh list --all", "libvirt is not measured yet"))
}
