//! Networks on a host: inside the namespace that the harness has made for itself, which is "the host" here.

mod agent;
mod grow;
mod lab;
mod packets;
mod throughput;

use crate::harness::{
    child::{command, run as run_program},
    duel::duel,
    fault::Outcome,
    ground::Ground,
    row::Row,
    rows::{Rows, say},
};
use lab::{Lab, network};
use std::time::Duration;
use tokio::time::Instant;
use vbm_net::NetworkBackend;

/// The longest that one `ip` call may take.
const IP_WITHIN: Duration = Duration::from_secs(10);

pub(crate) async fn run(ground: &Ground, rows: &mut Rows) {
    if ground.wants("create a network") {
        rows.measure("create a network", "ms", create(ground)).await;
    }
    if ground.wants("port") {
        grow::run(ground, rows).await;
    }
    if ground.wants("packet") {
        packets::run(ground, rows).await;
    }
    if ground.wants("TCP") {
        throughput::run(ground, rows).await;
    }
    if ground.wants("agent") {
        agent::run(ground, rows).await;
    }
    if ground.wants("address") {
        super::ipam::run(ground, rows).await;
    }
    if ground.wants("DHCP") {
        super::dhcp::run(ground, rows).await;
    }
}

/// A network of mode NAT without ports, beside the least that one types for less.
async fn create(ground: &Ground) -> Outcome<Row> {
    let lab = Lab::open(ground).await?;
    // The first one also makes what all networks share: measured apart from the others.
    let first = network(0)?;
    lab.net.ensure(first.clone()).await?;
    let samples = duel(
        ground.rounds() * 2,
        async |_| {
            let wanted = network(0)?;
            let begin = Instant::now();
            lab.ensure(&wanted).await?;
            let took = begin.elapsed().as_secs_f64() * 1e3;
            lab.net.remove(wanted.id).await?;
            Ok(took)
        },
        async |round| six_ip_calls(round).await,
    )
    .await?;
    lab.net.remove(first.id).await?;
    Ok(Row::new("create a network", "ms", samples.ours)
        .against("six calls of `ip`: namespace, bridge, its address, up, veth, its address", samples.peer)
        .goal("<= 0.4x")
        .noted("ours also makes guard, NAT, filter rules and the DHCP server, and reads them back; the six calls do not"))
}

async fn six_ip_calls(round: usize) -> Outcome<f64> {
    let space = Typed(format!("bench-vbm-{}-{round}", std::process::id()));
    let (ns, link) = (&space.0, format!("vbmb{round}"));
    let ip = async |line: &str| -> Outcome<()> {
        let mut call = command("ip");
        run_program(call.args(line.split(' ')), IP_WITHIN).await.map(drop)
    };
    let begin = Instant::now();
    ip(&format!("netns add {ns}")).await?;
    ip(&format!("-n {ns} link add br0 type bridge")).await?;
    ip(&format!("-n {ns} address add 10.8.0.1/24 dev br0")).await?;
    ip(&format!("-n {ns} link set br0 up")).await?;
    ip(&format!("link add {link} type veth peer name up0 netns {ns}")).await?;
    ip(&format!("address add 100.127.255.0/31 dev {link}")).await?;
    Ok(begin.elapsed().as_secs_f64() * 1e3)
}

/// A namespace made by `ip`; deleted when dropped. Its link goes with it, a moment later; so each round has its own name.
struct Typed(String);

impl Drop for Typed {
    fn drop(&mut self) {
        let done = std::process::Command::new("ip")
            .args(["netns", "delete", &self.0])
            .output();
        if !done.is_ok_and(|output| output.status.success()) {
            say(&format!("warning: the namespace {} was not deleted", self.0));
        }
    }
}
