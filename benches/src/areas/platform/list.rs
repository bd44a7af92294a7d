//! `vbm list` of many.

use super::daemon::{COMMAND_WITHIN, Daemon, IMAGE, Kind};
use crate::harness::{
    child::run,
    duel::solo,
    fault::{Fault, Outcome},
    ground::Ground,
    row::Row,
};
use futures::{StreamExt, TryStreamExt, stream};
use tokio::time::Instant;
use vbm_sdk::{api::LaunchRequest, client::Client};

pub(super) const NAME: &str = "vbm list with 1,000 simulated VMs";
/// How many VMs.
const MANY: usize = 1_000;
/// How many launches are under way at once.
const LAUNCHES_AT_ONCE: usize = 16;

/// The whole process, from exec to its end, its output read.
pub(super) async fn thousand(ground: &Ground) -> Outcome<Row> {
    let daemon = Daemon::start(
        ground,
        Kind {
            driver: "sim",
            network: "sim",
        },
    )
    .await?;
    daemon.import(&ground.guest()?.dir).await?;
    let client = daemon.client();
    let begin = Instant::now();
    stream::iter(0..MANY)
        .map(|count| launch(&client, count))
        .buffer_unordered(LAUNCHES_AT_ONCE)
        .try_collect::<Vec<()>>()
        .await?;
    let made = begin.elapsed().as_secs_f64();
    let samples = solo(ground.rounds() * 4, async |_| {
        let mut list = daemon.vbm(&["list"]);
        let begin = Instant::now();
        let text = run(&mut list, COMMAND_WITHIN).await?;
        let took = begin.elapsed().as_secs_f64() * 1e3;
        let lines = text.lines().filter(|line| line.contains("many")).count();
        if lines == MANY {
            Ok(took)
        } else {
            Err(Fault::new(format!("it showed {lines} of {MANY}")))
        }
    })
    .await?;
    let note = format!(
        "they were launched, 16 at once, in {made:.1} s; vbmd was {:.0} MB then",
        daemon.resident_mb()?
    );
    Ok(Row::new(NAME, "ms", samples).goal("<= 50").noted(note))
}

async fn launch(client: &Client, count: usize) -> Outcome<()> {
    let mut request = LaunchRequest::new(IMAGE);
    request.name = Some(format!("many{count}").parse()?);
    let accepted = client.vms().launch(request).await?;
    client.operations().wait(accepted.operation.id).await?;
    Ok(())
}
