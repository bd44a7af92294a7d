//! The platform as people use it: `vbmd` and `vbm` as processes, and the store below them.

mod daemon;
mod idle;
mod launch;
mod list;
mod peer;
mod store;

use crate::harness::{ground::Ground, rows::Rows};

pub(crate) async fn run(ground: &Ground, rows: &mut Rows) {
    rows.measure(launch::NAME, "s", launch::to_lease(ground)).await;
    rows.measure(idle::QEMU, "MB", idle::with_qemu(ground)).await;
    rows.measure(idle::SIM, "MB", idle::with_sim(ground)).await;
    rows.measure(list::NAME, "ms", list::thousand(ground)).await;
    for writers in store::WRITERS {
        rows.measure(
            &store::name(writers),
            "txn/s",
            store::transactions(ground, writers),
        )
        .await;
    }
}
