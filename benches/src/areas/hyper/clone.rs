//! Linked clones.

use super::lab::{DISK_BYTES, Lab};
use crate::harness::{
    child::{command, run},
    duel::duel,
    fault::Outcome,
    ground::Ground,
    row::Row,
};
use std::time::Duration;
use tokio::time::Instant;
use uuid::Uuid;
use vbm_core::VolumeId;

/// Clones for one sample.
const CLONES: u32 = 20;
/// The longest that one `qemu-img` may take.
const CLONE_WITHIN: Duration = Duration::from_secs(30);

/// A clone in the pool, beside `qemu-img create -b` of the same base.
pub(super) async fn linked(ground: &Ground) -> Outcome<Row> {
    let lab = Lab::make(ground).await?;
    let samples = duel(
        ground.rounds(),
        async |_| {
            let begin = Instant::now();
            for _ in 0..CLONES {
                lab.pool
                    .clone_image(lab.image, VolumeId::from_uuid(Uuid::now_v7()), DISK_BYTES)
                    .await?;
            }
            Ok(each(begin))
        },
        async |round| {
            let begin = Instant::now();
            for count in 0..CLONES {
                let path = lab.dir.path().join(format!("peer-{round}-{count}.qcow2"));
                let mut create = command("qemu-img");
                create
                    .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
                    .arg(lab.base())
                    .arg(path);
                run(create.arg(DISK_BYTES.to_string()), CLONE_WITHIN).await?;
            }
            Ok(each(begin))
        },
    )
    .await?;
    Ok(Row::new("linked clone", "ms", samples.ours)
        .against("qemu-img create -b", samples.peer)
        .goal("<= 0.6x")
        .noted("ours holds a reference to the base and syncs file and folder; qemu-img syncs nothing"))
}

fn each(begin: Instant) -> f64 {
    begin.elapsed().as_secs_f64() * 1e3 / f64::from(CLONES)
}
