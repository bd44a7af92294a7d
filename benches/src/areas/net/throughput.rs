//! How much passes between two VMs of a host, with guard and groups, beside a bridge that has nothing: iperf3, one flow of TCP.
//!
//! ```text
//!   ours   guest a == veth == tap... br0 (guard, iptables, conntrack) ...tap == veth == guest b
//!   peer   guest c == veth ======== br0 =========================================== veth == guest d
//! ```
//!
//! A NIC that is an interface has its transmit checksums in software, and with them no segmentation offload: who reads frames off it
//! needs that. The peer is measured with the same, by `ethtool`, and in a row of its own both with what veth can do.

use super::lab::{Lab, network};
use crate::harness::{
    child::Talker,
    fault::{During, Fault, Outcome},
    ground::{Ground, which},
    row::Row,
    rows::Rows,
    space::{Space, ip},
};
use std::time::Duration;
use tokio::process::Command;
use vbm_core::Mac;
use vbm_net::{NetworkBackend, Nic, NicKind};

const SERVER_WITHIN: Duration = Duration::from_secs(20);
/// How long one sample runs, in seconds.
const SECONDS: usize = 3;
const SECONDS_QUICK: usize = 1;
/// iperf3's own port, which the ports' rules open.
const PORT: &str = "5201";

pub(super) async fn run(ground: &Ground, rows: &mut Rows) {
    for offload in [false, true] {
        let name = name(offload);
        rows.measure(name, "Gbit/s", between(ground, offload)).await;
    }
}

const fn name(offload: bool) -> &'static str {
    if offload {
        "TCP between two VMs, groups on, links with offload"
    } else {
        "TCP between two VMs, groups on, as NICs are"
    }
}

async fn between(ground: &Ground, offload: bool) -> Outcome<Row> {
    for (program, package) in [("iperf3", "iperf3"), ("ethtool", "ethtool")] {
        if which(program).is_none() {
            return Err(Fault::new(format!("{program} is missing (Debian: {package})")));
        }
    }
    let lab = Lab::open(ground).await?;
    let ours = Ours::make(&lab, offload).await.during("ours")?;
    let bare = bare(offload).await.during("the bare bridge")?;
    let seconds = ground.size(SECONDS, SECONDS_QUICK);
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for _ in 0..ground.rounds() {
        a.push(rate(&ours.guests, "10.9.1.1", seconds).await.during("ours")?);
        b.push(
            rate(&bare.1, "10.9.1.1", seconds)
                .await
                .during("the bare bridge")?,
        );
    }
    Ok(Row::new(name(offload), "Gbit/s", a)
        .against("a bare bridge", b)
        .goal(">= 0.8x"))
}

struct Ours {
    guests: [Space; 2],
}

impl Ours {
    async fn make(lab: &Lab, offload: bool) -> Outcome<Self> {
        let wanted = network(2)?;
        lab.ensure(&wanted).await?;
        let guests = [Space::make("guest-a").await?, Space::make("guest-b").await?];
        for (port, guest) in wanted.ports.iter().zip(&guests) {
            let nic = lab.net.open_nic(wanted.id, port.id, NicKind::Interface).await?;
            let Nic::Interface { name } = nic else {
                return Err(Fault::new("it is no interface"));
            };
            ip(&format!("link set {name} netns {}", guest.0)).await?;
            address(guest, &name, port.mac, &port.address.to_string()).await?;
            if offload {
                guest.run(
                    "ethtool",
                    &["-K", &name, "tx", "on", "tso", "on", "gso", "on"],
                    "",
                )?;
                let inner = vbm_net::names::tap(port.id);
                crate::harness::space::inside(
                    &super::lab::space_of(&wanted),
                    "ethtool",
                    &["-K", &inner, "tx", "on", "tso", "on", "gso", "on"],
                    "",
                )?;
            }
        }
        Ok(Self { guests })
    }
}

async fn address(guest: &Space, link: &str, mac: Mac, address: &str) -> Outcome<()> {
    guest.ip(&format!("link set {link} address {mac}")).await?;
    guest.ip(&format!("address add {address}/16 dev {link}")).await?;
    guest.ip(&format!("link set {link} up")).await
}

/// A bridge in a namespace and two others on it.
async fn bare(offload: bool) -> Outcome<(Space, [Space; 2])> {
    let middle = Space::make("bridge").await?;
    middle.ip("link add br0 type bridge").await?;
    middle.ip("link set br0 up").await?;
    let guests = [Space::make("guest-c").await?, Space::make("guest-d").await?];
    for (n, guest) in guests.iter().enumerate() {
        let (inner, outer) = (format!("tap{n}"), "eth0");
        middle
            .ip(&format!(
                "link add {inner} type veth peer name {outer} netns {}",
                guest.0
            ))
            .await?;
        middle.ip(&format!("link set {inner} master br0 up")).await?;
        address(
            guest,
            outer,
            Mac::local(u32::try_from(n)? + 1),
            &format!("10.9.1.{n}"),
        )
        .await?;
        if !offload {
            guest.run("ethtool", &["-K", outer, "tx", "off"], "")?;
            middle.run("ethtool", &["-K", &inner, "tx", "off"], "")?;
        }
    }
    Ok((middle, guests))
}

/// One flow from the first guest to the second.
async fn rate(guests: &[Space; 2], to: &str, seconds: usize) -> Outcome<f64> {
    let mut server: Command = crate::harness::child::command("ip");
    server.args([
        "netns",
        "exec",
        &guests[1].0,
        "iperf3",
        "-s",
        "-1",
        "-p",
        PORT,
        "--forceflush",
    ]);
    let mut server = Talker::start(&mut server)?;
    server.hear("Server listening", SERVER_WITHIN).await?;
    let seconds = seconds.to_string();
    let args = ["-c", to, "-p", PORT, "-t", &seconds, "-J"];
    let said = guests[0].run("iperf3", &args, "")?;
    let said: serde_json::Value = serde_json::from_str(&said)?;
    let bits = said
        .pointer("/end/sum_received/bits_per_second")
        .and_then(serde_json::Value::as_f64);
    bits.map(|b| b / 1e9)
        .ok_or_else(|| Fault::new("iperf3 said nothing of a rate"))
}
