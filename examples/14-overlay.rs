//! One network over two hosts, each a namespace: guests with addresses of one subnet, VXLAN between. Needs root.
//!
//! ```text
//!   guest 10.33.0.2 -- host 198.18.0.1 ====VXLAN==== 198.18.0.2 host -- 10.33.0.3 guest
//! ```
//!
//! Nothing is learned from the wire: each host is told which port is where.
#![expect(clippy::print_stdout, reason = "an example speaks to people")]

#[path = "support/guest.rs"]
mod guest;
#[path = "support/lab.rs"]
mod lab;

use guest::Guest;
use lab::{Done, Namespace};
use std::{net::Ipv4Addr, sync::Arc};
use vbm_core::NetworkMode;
use vbm_net::{
    DesiredNetwork, DesiredOverlay, HostConfig, HostNetwork, NetworkBackend, Nic, NicKind, RemotePort,
};
use vbm_sdk::source::SystemClock;

const HOSTS: [Ipv4Addr; 2] = [Ipv4Addr::new(198, 18, 0, 1), Ipv4Addr::new(198, 18, 0, 2)];
const VNI: u32 = 4_242;

#[tokio::main]
async fn main() -> Done {
    let hosts = [Namespace::new("one")?, Namespace::new("two")?];
    hosts[0].join("eth0", "198.18.0.1/24", &hosts[1], "198.18.0.2/24")?;
    let dir = tempfile::tempdir()?;
    let mut nets = Vec::new();
    for host in &hosts {
        let state = dir.path().join(&host.0);
        let config = HostConfig::new(&host.0, &state, Arc::new(SystemClock)).in_namespace(host.path());
        nets.push(HostNetwork::open(config).await?);
    }
    let done = span(&nets).await;
    let mut swept = Ok(());
    for net in &nets {
        swept = swept.and(net.sweep(&Default::default()).await.map(drop));
        net.shutdown().await;
    }
    done.and(swept.map_err(Into::into))
}

async fn span(nets: &[HostNetwork]) -> Done {
    let mut whole = lab::network(NetworkMode::Isolated, "10.33.0.0/24", 2)?;
    for port in &mut whole.ports {
        port.rules = vec!["icmp".parse()?];
    }
    let mut guests = Vec::new();
    for (host, net) in nets.iter().enumerate() {
        let wanted = on(&whole, host);
        let seen = net.ensure(wanted.clone()).await?;
        println!("{}: MTU {}", HOSTS[host], seen.mtu);
        let port = &wanted.ports[0];
        let Nic::Tap { fd, vnet_hdr } = net.open_nic(wanted.id, port.id, NicKind::Tap).await? else {
            return Err("the NIC is not a tap".into());
        };
        let name = format!("vbmex-vm{host}-{}", std::process::id());
        let guest = Guest::new(&name, port.mac, fd, vnet_hdr)?;
        guest.run(&[
            "ip",
            "addr",
            "add",
            &format!("{}/24", port.address),
            "dev",
            "eth0",
        ])?;
        guests.push(guest);
    }
    let far = whole.ports[1].address.to_string();
    guests[0].run(&["busybox", "ping", "-c", "1", "-W", "5", &far])?;
    println!("a guest of one host reaches {far} on the other");
    Ok(())
}

/// The network as one host has it: its own port, and where the other one is.
fn on(whole: &DesiredNetwork, host: usize) -> DesiredNetwork {
    let there = &whole.ports[1 - host];
    DesiredNetwork {
        ports: vec![whole.ports[host].clone()],
        overlay: Some(DesiredOverlay {
            vni: VNI,
            local: HOSTS[host],
            names: vec![(there.address, there.hostname.clone())]
                .into_iter()
                .collect(),
            remotes: vec![RemotePort {
                mac: there.mac,
                address: there.address,
                address6: None,
                host: HOSTS[1 - host],
            }],
        }),
        ..whole.clone()
    }
}
