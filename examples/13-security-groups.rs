//! Security groups of ports, changed while their guests run; what passes is asked of the rules, and tried with packets. Needs root.
#![expect(clippy::print_stdout, reason = "an example speaks to people")]

#[path = "support/guest.rs"]
mod guest;
#[path = "support/lab.rs"]
mod lab;

use guest::Guest;
use lab::{Done, Namespace};
use std::sync::Arc;
use vbm_core::{GroupId, GroupSpec, NetworkMode, Rule, group::Peer};
use vbm_net::{DesiredGroup, DesiredNetwork, HostConfig, HostNetwork, NetworkBackend, Nic, NicKind};
use vbm_sdk::source::SystemClock;

#[tokio::main]
async fn main() -> Done {
    let host = Namespace::new("host")?;
    let dir = tempfile::tempdir()?;
    let config = HostConfig::new(&host.0, dir.path(), Arc::new(SystemClock)).in_namespace(host.path());
    let net = HostNetwork::open(config).await?;
    let done = groups(&net).await;
    let swept = net.sweep(&Default::default()).await;
    net.shutdown().await;
    done.and(swept.map(drop).map_err(Into::into))
}

async fn groups(net: &HostNetwork) -> Done {
    let mut wanted = lab::network(NetworkMode::Isolated, "10.32.0.0/24", 3)?;
    let web_group = group("web", Vec::new())?;
    // Only members of the other group may ping.
    let mut from_web: Rule = "icmp".parse()?;
    from_web.peer = Some(Peer::Group(web_group.id));
    let ping_group = group("ping", vec![from_web])?;
    let (web, ping) = (web_group.id, ping_group.id);
    wanted.groups = vec![web_group, ping_group];
    wanted.ports[0].policy.groups = vec![web];
    net.ensure(wanted.clone()).await?;
    let mut guests = Vec::new();
    for nth in 0..3 {
        guests.push(guest(net, &wanted, nth).await?);
    }
    let target = wanted.ports[2].address.to_string();
    let tell = |what: &str, guests: &[Guest]| {
        let reaches = |g: &Guest| {
            let tried = g.run(&["busybox", "ping", "-c", "1", "-W", "2", &target]);
            if tried.is_ok() { "reaches it" } else { "does not" }
        };
        println!(
            "{what}: the web server {}, the other {}",
            reaches(&guests[0]),
            reaches(&guests[1])
        );
    };
    tell("no group", &guests);
    wanted.ports[2].policy.groups = vec![ping];
    net.ensure(wanted.clone()).await?;
    tell("ping from web", &guests);
    wanted.ports[1].policy.groups = vec![web];
    net.ensure(wanted.clone()).await?;
    tell("both are web", &guests);
    wanted.ports[2].policy.groups.clear();
    net.ensure(wanted.clone()).await?;
    tell("taken away", &guests);
    Ok(())
}

fn group(name: &str, rules: Vec<Rule>) -> Done<DesiredGroup> {
    Ok(DesiredGroup {
        id: GroupId::from_uuid(uuid::Uuid::now_v7()),
        name: name.parse()?,
        spec: GroupSpec {
            rules,
            egress_closed: false,
        },
        members: Vec::new(),
    })
}

async fn guest(net: &HostNetwork, wanted: &DesiredNetwork, nth: usize) -> Done<Guest> {
    let port = &wanted.ports[nth];
    let Nic::Tap { fd, vnet_hdr } = net.open_nic(wanted.id, port.id, NicKind::Tap).await? else {
        return Err("the NIC is not a tap".into());
    };
    let name = format!("vbmex-vm{nth}-{}", std::process::id());
    let guest = Guest::new(&name, port.mac, fd, vnet_hdr)?;
    guest.run(&[
        "ip",
        "addr",
        "add",
        &format!("{}/24", port.address),
        "dev",
        "eth0",
    ])?;
    Ok(guest)
}
