//! From `vbm launch` to the guest's lease.

use super::{
    daemon::{COMMAND_WITHIN, Daemon, IMAGE, Kind, NETWORK},
    peer::Peer,
};
use crate::{
    areas::by_hand::command_line,
    harness::{
        child::run,
        duel::duel,
        fault::{During, Outcome},
        ground::Ground,
        row::Row,
    },
};
use tokio::time::Instant;

pub(super) const NAME: &str = "launch to lease";
pub(super) const MEMORY: &str = "128";

/// Both programs of ours, `vbm launch` and `vbm wait --for lease`, beside the same QEMU by hand.
pub(super) async fn to_lease(ground: &Ground) -> Outcome<Row> {
    let guest = ground.guest()?;
    let daemon = Daemon::start(
        ground,
        Kind {
            driver: "qemu",
            network: "host",
        },
    )
    .await?;
    daemon.import(&guest.dir).await?;
    daemon.network("10.77.0.0/24").await?;
    let mut peer = Peer::make().await.during("the peer")?;
    // The model warms the caches of the host, and tells the command line.
    launch(&daemon, "model").await?;
    let id = daemon.client().vms().get("model").await?.vm.meta.id;
    let (_pid, words) = command_line(&id.to_string())?;
    daemon.run(&["delete", "--force", "model"]).await?;
    let samples = duel(
        ground.rounds(),
        async |round| {
            let name = format!("web{round}");
            let took = launch(&daemon, &name).await?;
            daemon.run(&["delete", "--force", &name]).await?;
            Ok(took)
        },
        async |_| peer.launch(&words, &guest.disk).await,
    )
    .await?;
    Ok(Row::new(NAME, "s", samples.ours)
        .against("the same QEMU by hand, udhcpd, exec to DHCPACK", samples.peer)
        .goal("<= peer + 1.5")
        .noted("ours: vbm launch and vbm wait --for lease, both processes included, disk, port and rules made; by hand these stand ready before"))
}

async fn launch(daemon: &Daemon, name: &str) -> Outcome<f64> {
    let (mut launch, mut wait) = (
        daemon.vbm(&["launch", IMAGE, name, "--memory", MEMORY, "--network", NETWORK]),
        daemon.vbm(&["wait", name, "--for", "lease"]),
    );
    let begin = Instant::now();
    run(&mut launch, COMMAND_WITHIN).await?;
    run(&mut wait, COMMAND_WITHIN).await?;
    Ok(begin.elapsed().as_secs_f64())
}
