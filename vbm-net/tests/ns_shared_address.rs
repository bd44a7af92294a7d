//! A port that may use another's address is not that port to the gateway's services: it is told nothing of it, and hears nothing for it.

#![allow(clippy::unwrap_used, reason = "a helper of a test that cannot go on panics")]

mod common;

use common::{
    Guest, Lab, in_netns, network, open_port,
    packet::{ethernet, marked, udp},
};
use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};
use vbm_core::{AddressPair, Mac, MetadataMode, NetworkMode};
use vbm_net::{DesiredNetwork, NetworkBackend, metadata::Instance};

const SERVICE: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const WAIT: Duration = Duration::from_secs(2);

/// A, and B who may use A's address, alone and among others.
fn shared() -> [DesiredNetwork; 2] {
    ["10.9.0.10/32", "10.9.0.8/29"].map(|pair| {
        let mut wanted = network(NetworkMode::Nat, 2);
        wanted.spec.metadata = MetadataMode::Open;
        wanted.ports[1].policy.pairs = vec![AddressPair {
            address: pair.parse().unwrap(),
            mac: None,
        }];
        open_port(&mut wanted, 1, &["any"]);
        wanted
    })
}

/// What the service says to who speaks from an address.
fn asked_from(guest: &Guest, from: Ipv4Addr) -> Option<String> {
    guest.ns.run(move || {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddrV4::new(from, 0).into()).unwrap();
        socket
            .connect_timeout(&SocketAddrV4::new(SERVICE, 80).into(), WAIT)
            .ok()?;
        let mut stream = std::net::TcpStream::from(socket);
        stream.set_read_timeout(Some(WAIT)).unwrap();
        let request = "GET /latest/user-data HTTP/1.1\r\nHost: 169.254.169.254\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_use_a_neighbours_address_is_not_told_the_neighbours_data() {
    needs_namespaces!();
    let lab = Lab::new().await;
    for wanted in shared() {
        lab.ensure(&wanted).await;
        assert_eq!(lab.ensure(&wanted).await.changed, Vec::<String>::new());
        for (port, secret) in [(0, "secret of A"), (1, "secret of B")] {
            let instance = Instance {
                id: format!("i-{port}"),
                user_data: Some(secret.into()),
                ..Instance::default()
            };
            lab.net
                .describe(wanted.id, wanted.ports[port].id, Some(instance))
                .await
                .unwrap();
        }
        let b = lab.guest(&wanted, 1).await;
        b.ns.ip("addr add 10.9.0.11/24 dev eth0");
        b.ns.ip("addr add 10.9.0.10/24 dev eth0");
        b.ns.ip("route add default via 10.9.0.1");
        assert_eq!(asked_from(&b, Ipv4Addr::new(10, 9, 0, 10)), None, "as A");
        let own = asked_from(&b, Ipv4Addr::new(10, 9, 0, 11)).expect("as itself");
        assert!(own.ends_with("secret of B"), "{own}");
        drop(b);
        lab.net.remove(wanted.id).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_gateway_says_to_a_port_is_not_heard_by_who_may_use_its_address() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let [mut wanted, _] = shared();
    open_port(&mut wanted, 0, &["any"]);
    lab.ensure(&wanted).await;
    let (a, b) = (lab.raw(&wanted, 0).await, lab.raw(&wanted, 1).await);
    let inside = lab.inside(wanted.id);
    let (mine, theirs) = (wanted.ports[0].address, wanted.ports[1].mac);
    // As if B had claimed it.
    let claimed = format!("ip neigh replace {mine} lladdr {theirs} dev br0 nud permanent");
    assert!(in_netns(&inside, &claimed).status.success());
    for from in [SERVICE, wanted.spec.gateway] {
        common::run_in(&inside, move || {
            let socket = std::net::UdpSocket::bind((from, 0)).unwrap();
            socket.send_to(b"mark:for A alone", (mine, 7_777)).unwrap();
        });
    }
    a.send(&marked(
        (wanted.ports[0].mac, mine),
        (theirs, wanted.ports[1].address),
        "honest",
    ));
    assert_eq!(b.next_mark(), "honest");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pair_gives_nobody_the_mac_of_another_port() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let mut wanted = network(NetworkMode::Nat, 3);
    let (a, b) = (wanted.ports[0].mac, wanted.ports[1].mac);
    let virtual_mac = Mac::new([0, 0, 0x5e, 0, 1, 7]);
    wanted.ports[1].policy.pairs = [a, virtual_mac]
        .map(|mac| AddressPair {
            address: "10.9.0.200/32".parse().unwrap(),
            mac: Some(mac),
        })
        .into();
    open_port(&mut wanted, 2, &["any"]);
    lab.ensure(&wanted).await;
    assert_eq!(lab.ensure(&wanted).await.changed, Vec::<String>::new());
    let (wire, third) = (lab.raw(&wanted, 1).await, lab.raw(&wanted, 2).await);
    let (service, to) = (
        Ipv4Addr::new(10, 9, 0, 200),
        (wanted.ports[2].mac, wanted.ports[2].address),
    );
    let announced = |mac: Mac| {
        let mut packet = common::packet::arp(2, (mac, service), to);
        packet.extend(b"mark:an announcement with a neighbour's MAC");
        ethernet(mac, common::packet::BROADCAST, 0x0806, &packet)
    };
    wire.send(&announced(a));
    wire.send(&marked((a, service), to, "a neighbour's MAC"));
    wire.send(&ethernet(
        b,
        to.0,
        0x0800,
        &udp(
            (service, 7_777),
            (to.1, 7_777),
            b"mark:a virtual address with the port's MAC",
        ),
    ));
    wire.send(&marked((virtual_mac, service), to, "honest"));
    assert_eq!(third.next_mark(), "honest");
}
