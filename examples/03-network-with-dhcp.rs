//! A network with DHCP alone, serving `udhcpc` in a namespace: no hypervisor, no daemon. Needs root.
#![expect(clippy::print_stdout, reason = "an example speaks to people")]

#[path = "support/guest.rs"]
mod guest;

use guest::Guest;
use std::sync::Arc;
use vbm_core::{Mac, NetworkId, NetworkMode, NetworkSpec, PortId, Timestamp, network::parse_cidr};
use vbm_net::{
    DesiredNetwork, DesiredPort, HostConfig, HostNetwork, NetEvent, NetworkBackend, Nic, NicKind, ipam::Ipam,
};
use vbm_sdk::source::SystemClock;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let name = format!("vbmex{}", std::process::id());
    let net = HostNetwork::open(HostConfig::new(&name, dir.path(), Arc::new(SystemClock))).await?;

    let spec = NetworkSpec::new(NetworkMode::Isolated, parse_cidr("10.20.0.0/24")?)?;
    let port = DesiredPort {
        id: PortId::from_uuid(uuid::Uuid::now_v7()),
        mac: Mac::local(7),
        address: Ipam::v4(&spec)?.allocate(None, Timestamp::default())?,
        address6: None,
        hostname: "example".parse()?,
        metadata_route: true,
        rules: vec!["icmp".parse()?],
        policy: Default::default(),
    };
    let id = NetworkId::from_uuid(uuid::Uuid::now_v7());
    let wanted = DesiredNetwork {
        id,
        name: "example".parse()?,
        spec,
        ports: vec![port.clone()],
        forwards: vec![],
        overlay: None,
        groups: vec![],
    };

    let mut events = net.events();
    let seen = net.ensure(wanted).await?;
    println!("the network is namespace {}", seen.namespace);
    let done = serve(&net, id, &port, &name, &mut events).await;
    net.remove(id).await?;
    net.shutdown().await;
    done
}

async fn serve(
    net: &HostNetwork,
    network: NetworkId,
    port: &DesiredPort,
    name: &str,
    events: &mut tokio::sync::broadcast::Receiver<NetEvent>,
) -> Result<(), Box<dyn std::error::Error>> {
    let Nic::Tap { fd, vnet_hdr } = net.open_nic(network, port.id, NicKind::Tap).await? else {
        return Err("the NIC is not a tap".into());
    };
    let guest = Guest::new(name, port.mac, fd, vnet_hdr)?;
    let said = tokio::task::spawn_blocking(move || {
        let said = guest.run(&[
            "udhcpc",
            "-i",
            "eth0",
            "-n",
            "-q",
            "-f",
            "-t",
            "5",
            "-T",
            "1",
            "-s",
            "/bin/true",
        ]);
        drop(guest);
        said
    });
    println!("{}", said.await??.trim());
    match tokio::time::timeout(std::time::Duration::from_secs(10), events.recv()).await?? {
        NetEvent::PortLeased { address, .. } if address == port.address => println!("leased: {address}"),
        other => return Err(format!("expected a lease of {}, got {other:?}", port.address).into()),
    }
    Ok(())
}
