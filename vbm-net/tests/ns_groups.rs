//! Security groups with real packets: shut by default, opened and closed live, flows cut.

#![allow(clippy::unwrap_used, reason = "a helper of a test that cannot go on panics")]
#![allow(clippy::cast_possible_truncation, reason = "test values are small")]

mod common;

use common::{DEADLINE, HOST_OUTSIDE, Lab, OUTSIDE, forward, network, open_port};
use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    time::Duration,
};
use vbm_core::NetworkMode;

/// The first guest.
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 10);

/// Echoes on a port, in a guest.
fn echo(guest: &common::Guest, port: u16) {
    let listener = guest
        .ns
        .run(move || TcpListener::bind(("0.0.0.0", port)).unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut byte = [0];
                while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
            });
        }
    });
}

/// Whether one byte makes the round trip within the time.
fn alive(stream: &mut TcpStream, wait: Duration) -> bool {
    stream.set_read_timeout(Some(wait)).unwrap();
    let mut byte = [0];
    stream.write_all(b"x").is_ok() && stream.read_exact(&mut byte).is_ok()
}

const SHORT: Duration = Duration::from_millis(1_500);

#[tokio::test(flavor = "multi_thread")]
async fn a_port_is_shut_to_everybody_until_a_rule_opens_it_and_shut_again_after() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let mut wanted = network(NetworkMode::Nat, 2);
    forward(&mut wanted, 8080, 0, 80);
    lab.ensure(&wanted).await;
    let (mut server, other) = (lab.guest(&wanted, 0).await, lab.guest(&wanted, 1).await);
    server.dhcp();
    other.dhcp();
    server.serve("open").await;
    let gateway = lab.inside(wanted.id);
    let reach = |label: &str| {
        let from_gateway = common::run_in(&gateway, || common::get((FIRST, 80))).is_some();
        let all = [
            lab.outside.get((HOST_OUTSIDE, 8080)).is_some(),
            lab.host.get((Ipv4Addr::LOCALHOST, 8080)).is_some(),
            other.ns.get((FIRST, 80)).is_some(),
            from_gateway,
        ];
        assert!(
            all.iter().all(|r| *r == all[0]),
            "{label}: {all:?} (world, loopback, neighbour, gateway)"
        );
        all[0]
    };
    assert!(!reach("by default"));
    assert!(!other.ns.pings(wanted.ports[0].address), "no ping either");
    assert!(server.ns.pings(OUTSIDE), "the way out is open");
    open_port(&mut wanted, 0, &["tcp/80"]);
    lab.ensure(&wanted).await;
    assert!(reach("opened"));
    assert!(
        !other.ns.pings(wanted.ports[0].address),
        "only what the rule says"
    );
    open_port(&mut wanted, 0, &["tcp/81", "icmp"]);
    lab.ensure(&wanted).await;
    assert!(!reach("closed"));
    assert!(other.ns.pings(wanted.ports[0].address));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_that_names_a_source_admits_just_that() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let mut wanted = network(NetworkMode::Nat, 3);
    open_port(&mut wanted, 0, &["tcp/80@10.9.0.11/32"]);
    lab.ensure(&wanted).await;
    let mut server = lab.guest(&wanted, 0).await;
    let (yes, no) = (lab.guest(&wanted, 1).await, lab.guest(&wanted, 2).await);
    for guest in [&server, &yes, &no] {
        guest.dhcp();
    }
    server.serve("for one").await;
    assert!(yes.ns.get((FIRST, 80)).is_some());
    assert!(no.ns.get((FIRST, 80)).is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_cuts_running_flows_from_the_world_and_from_a_neighbour_and_spares_others() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let mut wanted = network(NetworkMode::Nat, 2);
    forward(&mut wanted, 8080, 0, 5000);
    forward(&mut wanted, 8081, 0, 5001);
    open_port(&mut wanted, 0, &["tcp/5000", "tcp/5001"]);
    lab.ensure(&wanted).await;
    let (server, neighbour) = (lab.guest(&wanted, 0).await, lab.guest(&wanted, 1).await);
    server.dhcp();
    neighbour.dhcp();
    echo(&server, 5000);
    echo(&server, 5001);
    let connect = |ns: &common::Ns, to: &'static str| ns.run(move || TcpStream::connect(to).unwrap());
    let mut cut = [
        connect(&lab.outside, "192.0.2.1:8080"),
        connect(&neighbour.ns, "10.9.0.10:5000"),
    ];
    let mut kept = [
        connect(&lab.outside, "192.0.2.1:8081"),
        connect(&neighbour.ns, "10.9.0.10:5001"),
    ];
    for stream in cut.iter_mut().chain(&mut kept) {
        assert!(alive(stream, DEADLINE));
    }
    open_port(&mut wanted, 0, &["tcp/5001"]);
    let seen = lab.ensure(&wanted).await;
    assert!(
        seen.changed.iter().any(|c| c.contains("cut 2 flows")),
        "{:?}",
        seen.changed
    );
    for stream in &mut cut {
        assert!(!alive(stream, SHORT), "a flow outlived its rule");
    }
    for stream in &mut kept {
        assert!(alive(stream, DEADLINE), "a flow that is still allowed was cut");
    }
    wanted.forwards.pop();
    lab.ensure(&wanted).await;
    assert!(!alive(&mut kept[0], SHORT), "a flow outlived its forward");
    assert!(alive(&mut kept[1], DEADLINE));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_rule_that_can_be_written_is_read_back_as_it_was_written() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let mut wanted = network(NetworkMode::Nat, 1);
    let mut rules: Vec<String> = Vec::new();
    for protocol in ["tcp", "udp"] {
        for ports in ["", "/1", "/65535", "/1-65535", "/22-23", "/1-1", "/9-65535"] {
            for from in [
                "",
                "@0.0.0.0/0",
                "@10.1.2.3/32",
                "@10.1.2.3/8",
                "@0.0.0.0/1",
                "@255.255.255.255/32",
            ] {
                rules.push(format!("{protocol}{ports}{from}"));
            }
        }
    }
    rules.extend(["icmp", "any", "icmp@10.0.0.0/8", "any@10.0.0.0/31"].map(str::to_owned));
    open_port(
        &mut wanted,
        0,
        &rules.iter().map(String::as_str).collect::<Vec<_>>(),
    );
    assert!(lab.ensure(&wanted).await.ready);
    assert_eq!(lab.ensure(&wanted).await.changed, Vec::<String>::new());
    for mac in [
        "00:00:00:00:00:01",
        "02:00:00:00:00:00",
        "0a:00:00:ff:00:10",
        "fe:ff:ff:ff:ff:ff",
    ] {
        wanted.ports[0].mac = mac.parse().unwrap();
        assert!(lab.ensure(&wanted).await.ready, "{mac}");
        assert_eq!(lab.ensure(&wanted).await.changed, Vec::<String>::new(), "{mac}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn however_many_flows_there_are_none_outlives_its_rule() {
    needs_namespaces!();
    const FLOWS: u16 = 300;
    let lab = Lab::new().await;
    let mut wanted = network(NetworkMode::Nat, 2);
    open_port(&mut wanted, 0, &["udp/5000"]);
    lab.ensure(&wanted).await;
    let (server, client) = (lab.guest(&wanted, 0).await, lab.guest(&wanted, 1).await);
    server.dhcp();
    client.dhcp();
    let inside = lab.inside(wanted.id);
    let standing = || {
        let listed = common::in_netns(&inside, "conntrack -L -p udp --reply-src 10.9.0.10");
        String::from_utf8_lossy(&listed.stdout).lines().count()
    };
    let send = move || {
        for from in 20_000..20_000 + FLOWS {
            let socket = std::net::UdpSocket::bind(("10.9.0.11", from)).unwrap();
            socket.send_to(b"x", (FIRST, 5000)).unwrap();
        }
    };
    // Again and again: what is sent before ARP is answered may be lost.
    common::eventually("all flows to stand", || {
        client.ns.run(send);
        standing() == usize::from(FLOWS)
    })
    .await;
    open_port(&mut wanted, 0, &[]);
    lab.ensure(&wanted).await;
    assert_eq!(standing(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_spoke_with_thousands_leaves_no_flow_behind() {
    needs_namespaces!();
    const PEERS: u32 = 3_000;
    let lab = Lab::new().await;
    let mut wanted = network(NetworkMode::Nat, 2);
    lab.ensure(&wanted).await;
    let (speaker, other) = (lab.guest(&wanted, 0).await, lab.guest(&wanted, 1).await);
    speaker.dhcp();
    other.dhcp();
    let inside = lab.inside(wanted.id);
    let standing = |from: &str| {
        let listed = common::in_netns(
            &inside,
            &format!("conntrack -L -p udp --orig-src {from} --dport 5000"),
        );
        String::from_utf8_lossy(&listed.stdout).lines().count()
    };
    let speak = |peers: u32| {
        move || {
            let socket = std::net::UdpSocket::bind("0.0.0.0:5001").unwrap();
            for peer in 0..peers {
                let to = Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 0)) + peer);
                socket.send_to(b"x", (to, 5000)).unwrap();
            }
        }
    };
    common::eventually("all flows to stand", || {
        speaker.ns.run(speak(PEERS));
        other.ns.run(speak(1));
        standing("10.9.0.10") == PEERS as usize && standing("10.9.0.11") == 1
    })
    .await;
    drop(speaker);
    wanted.ports.remove(0);
    lab.ensure(&wanted).await;
    assert_eq!(standing("10.9.0.10"), 0);
    assert_eq!(standing("10.9.0.11"), 1, "nobody else pays for it");
}
