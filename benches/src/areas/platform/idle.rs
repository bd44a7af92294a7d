//! What `vbmd` holds in memory while its VMs idle. Only the daemon: QEMU's processes are the guests'.

use super::{
    daemon::{Daemon, IMAGE, Kind, NETWORK},
    launch::MEMORY,
};
use crate::harness::{
    duel::solo,
    fault::{Fault, Outcome},
    ground::Ground,
    row::Row,
};
use std::time::Duration;
use tokio::time::sleep;

pub(super) const QEMU: &str = "vbmd idle with ten QEMU VMs, resident";
pub(super) const SIM: &str = "vbmd idle with ten simulated VMs, resident";
const VMS: usize = 10;
/// Between two looks, the first included.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// With real networks where they work, else without NICs.
pub(super) async fn with_qemu(ground: &Ground) -> Outcome<Row> {
    match measured(
        ground,
        Kind {
            driver: "qemu",
            network: "host",
        },
        true,
    )
    .await
    {
        Ok(samples) => Ok(Row::new(QEMU, "MB", samples)
            .goal("<= 60")
            .noted("each with a NIC and a lease on one real network")),
        Err(fault) => {
            let samples = measured(
                ground,
                Kind {
                    driver: "qemu",
                    network: "sim",
                },
                false,
            )
            .await?;
            Ok(Row::new(QEMU, "MB", samples)
                .goal("<= 60")
                .noted(format!("without NICs; with a network: {fault}")))
        }
    }
}

pub(super) async fn with_sim(ground: &Ground) -> Outcome<Row> {
    let samples = measured(
        ground,
        Kind {
            driver: "sim",
            network: "sim",
        },
        false,
    )
    .await?;
    Ok(Row::new(SIM, "MB", samples).goal("<= 60"))
}

async fn measured(ground: &Ground, kind: Kind, nic: bool) -> Outcome<Vec<f64>> {
    let daemon = Daemon::start(ground, kind).await?;
    daemon.import(&ground.guest()?.dir).await?;
    if nic {
        daemon.network("10.77.0.0/24").await?;
    }
    let names: Vec<String> = (0..VMS).map(|count| format!("vm{count}")).collect();
    for name in &names {
        let mut words = vec!["launch", IMAGE, name, "--memory", MEMORY];
        if nic {
            words.extend(["--network", NETWORK]);
        }
        daemon.run(&words).await?;
    }
    for name in &names {
        daemon
            .run(&["wait", name, "--for", if nic { "lease" } else { "running" }])
            .await?;
    }
    solo(ground.rounds(), async |_| {
        sleep(LOOK_EVERY).await;
        let running = daemon
            .run(&["list", "-o", "json"])
            .await?
            .matches("\"running\"")
            .count();
        if running < VMS {
            return Err(Fault::new(format!("only {running} of {VMS} run")));
        }
        daemon.resident_mb()
    })
    .await
}
