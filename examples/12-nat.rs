//! A network behind NAT, with a forward and a floating IP, on a host that is a namespace of its own. Needs root.
//!
//! ```text
//!   world 192.0.2.2 ==== 192.0.2.1 host -- NAT -- network 10.31.0.0/24 -- guest 10.31.0.2
//!          8080 of the host, and 192.0.2.50, lead to the guest
//! ```
#![expect(clippy::print_stdout, reason = "an example speaks to people")]

#[path = "support/guest.rs"]
mod guest;
#[path = "support/lab.rs"]
mod lab;

use guest::Guest;
use lab::{Done, Namespace};
use std::sync::Arc;
use vbm_core::{ForwardId, NetworkMode, Protocol};
use vbm_net::{DesiredForward, HostConfig, HostNetwork, NetworkBackend, Nic, NicKind};
use vbm_sdk::source::SystemClock;

#[tokio::main]
async fn main() -> Done {
    let (host, world) = (Namespace::new("host")?, Namespace::new("world")?);
    host.join("eth0", "192.0.2.1/24", &world, "192.0.2.2/24")?;
    let dir = tempfile::tempdir()?;
    let config = HostConfig::new(&host.0, dir.path(), Arc::new(SystemClock)).in_namespace(host.path());
    let net = HostNetwork::open(config).await?;
    let done = nat(&net, &world).await;
    // Whatever came of it: nothing stays.
    let swept = net.sweep(&Default::default()).await;
    net.shutdown().await;
    done.and(swept.map(drop).map_err(Into::into))
}

async fn nat(net: &HostNetwork, world: &Namespace) -> Done {
    let mut wanted = lab::network(NetworkMode::Nat, "10.31.0.0/24", 1)?;
    let (network, gateway) = (wanted.id, wanted.spec.gateway);
    let port = &mut wanted.ports[0];
    let (id, mac, address) = (port.id, port.mac, port.address);
    // Nothing comes in without a rule, whatever leads here.
    port.rules = vec!["tcp/80".parse()?, "icmp".parse()?];
    port.policy.floating = Some([192, 0, 2, 50].into());
    wanted.forwards.push(DesiredForward {
        id: ForwardId::from_uuid(uuid::Uuid::now_v7()),
        protocol: Protocol::Tcp,
        listen_address: None,
        listen_port: 8_080,
        count: 1,
        target: id,
        target_port: 80,
    });
    net.ensure(wanted.clone()).await?;
    let Nic::Tap { fd, vnet_hdr } = net.open_nic(network, id, NicKind::Tap).await? else {
        return Err("the NIC is not a tap".into());
    };
    let guest = Guest::new(&format!("vbmex-vm-{}", std::process::id()), mac, fd, vnet_hdr)?;
    guest.run(&["ip", "addr", "add", &format!("{address}/24"), "dev", "eth0"])?;
    guest.run(&["ip", "route", "add", "default", "via", &gateway.to_string()])?;
    guest.run(&["busybox", "ping", "-c", "1", "-W", "5", "192.0.2.2"])?;
    println!("the guest reaches the world");
    if world.reaches(&address.to_string()) {
        return Err("the world reaches the guest's own address".into());
    }
    println!("the world does not reach {address}");
    if !world.reaches("192.0.2.50") {
        return Err("the floating IP leads nowhere".into());
    }
    println!("192.0.2.50 leads to the guest");
    let serving = std::thread::spawn(move || {
        guest.run(&[
            "busybox",
            "nc",
            "-l",
            "-p",
            "80",
            "-w",
            "20",
            "-e",
            "/bin/echo",
            "hello",
        ])
    });
    let mut said = Err(std::io::Error::other("not asked yet"));
    for _ in 0..50 {
        said = world.run("busybox nc -w 5 192.0.2.1 8080");
        if matches!(&said, Ok(text) if text.contains("hello")) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    println!("port 8080 of the host says: {}", said?.trim());
    drop(serving.join());
    // Asked again, it has nothing to do.
    println!(
        "changes on a second look: {}",
        net.ensure(wanted).await?.changed.len()
    );
    Ok(())
}
