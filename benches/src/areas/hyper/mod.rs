//! Virtual machines on one host: the driver beside the same QEMU by hand and beside libvirt, clones beside `qemu-img`.

mod clone;
mod lab;
mod libvirt;
mod listing;
mod power;

use crate::harness::{ground::Ground, rows::Rows};

pub(crate) async fn run(ground: &Ground, rows: &mut Rows) {
    macro_rules! row {
        ($name:expr, $bench:expr) => {
            if ground.wants($name) {
                rows.measure($name, "ms", $bench).await;
            }
        };
    }
    row!("start() to Running", power::start(ground));
    row!(power::BESIDE_LIBVIRT, power::start_beside_libvirt(ground));
    row!("linked clone", clone::linked(ground));
    for count in listing::COUNTS {
        row!(&listing::list_name(count), listing::list(ground, count));
    }
    row!(listing::STATE, listing::state(ground));
    row!("force-off to Off", power::kill(ground));
    if ground.wants(power::ADOPT) {
        let planned = [(power::ADOPT, "ms"), (power::MEMORY, "KiB")];
        rows.measure_all(&planned, power::adopt(ground)).await;
    }
}
