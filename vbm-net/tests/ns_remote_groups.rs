//! Groups that speak of groups, of the way out and of themselves, with real flows: live in both directions, cut when they end, and
//! a change of members that touches no rule.

#![allow(clippy::unwrap_used, reason = "a helper of a test that cannot go on panics")]
#![allow(clippy::cast_possible_truncation, reason = "test values are small")]

mod common;

use common::{DEADLINE, Lab, OUTSIDE, group_of, network};
use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};
use vbm_core::NetworkMode;
use vbm_net::{DesiredNetwork, NetworkBackend};

const SHORT: Duration = Duration::from_millis(1_000);

/// Sends back what it hears on TCP and UDP, on a port of a namespace.
fn echo(ns: &common::Ns, port: u16) {
    let (tcp, udp) = ns.run(move || {
        let any = (Ipv4Addr::UNSPECIFIED, port);
        (TcpListener::bind(any).unwrap(), UdpSocket::bind(any).unwrap())
    });
    std::thread::spawn(move || {
        for mut stream in tcp.incoming().flatten() {
            std::thread::spawn(move || {
                let mut byte = [0];
                while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
            });
        }
    });
    std::thread::spawn(move || {
        let mut byte = [0; 9];
        while let Ok((n, from)) = udp.recv_from(&mut byte) {
            drop(udp.send_to(&byte[..n], from));
        }
    });
}

struct Flows {
    tcp: TcpStream,
    udp: UdpSocket,
}

impl Flows {
    /// `None` where TCP does not connect in time.
    fn begin(ns: &common::Ns, to: Ipv4Addr, port: u16) -> Option<Self> {
        ns.run(move || {
            let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            udp.connect((to, port)).unwrap();
            let tcp = TcpStream::connect_timeout(&(to, port).into(), Duration::from_secs(2)).ok()?;
            Some(Self { tcp, udp })
        })
    }
    /// Whether TCP and UDP make the round trip within the time.
    fn alive(&mut self, wait: Duration) -> (bool, bool) {
        self.tcp.set_read_timeout(Some(wait)).unwrap();
        self.udp.set_read_timeout(Some(wait)).unwrap();
        let mut byte = [0];
        let tcp = self.tcp.write_all(b"x").is_ok() && self.tcp.read_exact(&mut byte).is_ok();
        let udp = self.udp.send(b"y").is_ok() && self.udp.recv(&mut byte).is_ok();
        (tcp, udp)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_a_group_is_cut_off_from_it_and_who_stays_is_not() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let mut wanted = network(NetworkMode::Nat, 3);
    group_of(&mut wanted, 1, &["any@self", "egress:any"], &[0, 1, 2]);
    lab.ensure(&wanted).await;
    let guests = [
        lab.guest(&wanted, 0).await,
        lab.guest(&wanted, 1).await,
        lab.guest(&wanted, 2).await,
    ];
    for guest in &guests {
        guest.dhcp();
    }
    echo(&guests[0].ns, 5000);
    let to = wanted.ports[0].address;
    let mut leaver = Flows::begin(&guests[1].ns, to, 5000).expect("members reach each other");
    let mut stayer = Flows::begin(&guests[2].ns, to, 5000).expect("members reach each other");
    assert_eq!(
        (leaver.alive(DEADLINE), stayer.alive(DEADLINE)),
        ((true, true), (true, true))
    );
    group_of(&mut wanted, 1, &["any@self", "egress:any"], &[0, 2]);
    let seen = lab.ensure(&wanted).await;
    assert!(
        seen.changed.iter().any(|c| c == "cut 2 flows"),
        "{:?}",
        seen.changed
    );
    assert_eq!(
        leaver.alive(SHORT),
        (false, false),
        "a flow outlived its membership"
    );
    assert_eq!(stayer.alive(DEADLINE), (true, true));
    assert!(Flows::begin(&guests[1].ns, to, 5000).is_none());
    group_of(&mut wanted, 1, &["any@self", "egress:any"], &[0, 1, 2]);
    lab.ensure(&wanted).await;
    assert!(Flows::begin(&guests[1].ns, to, 5000).is_some(), "back again");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_way_out_closes_and_opens_live_towards_the_world_and_neighbours() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let mut wanted = network(NetworkMode::Nat, 2);
    group_of(&mut wanted, 1, &["any"], &[1]);
    group_of(&mut wanted, 2, &["egress:any"], &[0]);
    lab.ensure(&wanted).await;
    let (me, neighbour) = (lab.guest(&wanted, 0).await, lab.guest(&wanted, 1).await);
    me.dhcp();
    neighbour.dhcp();
    echo(&lab.outside, 5000);
    echo(&neighbour.ns, 5000);
    let peer = wanted.ports[1].address;
    let mut flows = [
        Flows::begin(&me.ns, OUTSIDE, 5000).unwrap(),
        Flows::begin(&me.ns, peer, 5000).unwrap(),
    ];
    for flow in &mut flows {
        assert_eq!(flow.alive(DEADLINE), (true, true));
    }
    group_of(&mut wanted, 2, &["egress:tcp/5000"], &[0]);
    lab.ensure(&wanted).await;
    for flow in &mut flows {
        assert_eq!(
            flow.alive(SHORT),
            (true, false),
            "of UDP nothing is said any more"
        );
    }
    group_of(&mut wanted, 2, &["egress:icmp"], &[0]);
    lab.ensure(&wanted).await;
    for flow in &mut flows {
        assert_eq!(flow.alive(SHORT), (false, false));
    }
    assert!(me.ns.pings(OUTSIDE) && me.ns.pings(peer) && me.ns.pings(wanted.spec.gateway));
    me.dhcp();
    group_of(&mut wanted, 2, &[], &[0]);
    lab.ensure(&wanted).await;
    assert!(
        Flows::begin(&me.ns, OUTSIDE, 5000).is_some(),
        "a group that says nothing of it leaves it open"
    );
}

/// How often each rule program ran is not seen from outside; the generation of the kernel's rules is.
fn rules_of(lab: &Lab, wanted: &DesiredNetwork) -> String {
    let inside = lab.inside(wanted.id);
    let saved = common::in_netns(&inside, "iptables-save -c");
    String::from_utf8_lossy(&saved.stdout)
        .lines()
        .filter(|l| l.starts_with('-'))
        .map(|l| format!("{l}\n"))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_members_change_without_a_word_about_rules() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let mut wanted = network(NetworkMode::Nat, 2);
    group_of(&mut wanted, 1, &["any@self"], &[0]);
    let members = |from: u32| {
        (0..1_000)
            .map(move |n| Ipv4Addr::from(0x0a10_0000 + from + n))
            .map(|address| ipnet::IpNet::from(std::net::IpAddr::V4(address)))
            .collect()
    };
    wanted.groups[0].members = members(0);
    lab.ensure(&wanted).await;
    let before = rules_of(&lab, &wanted);
    wanted.groups[0].members = members(500);
    let seen = lab.ensure(&wanted).await;
    assert!(
        seen.changed.iter().all(|c| c.contains("members of")),
        "{:?}",
        seen.changed
    );
    assert_eq!(rules_of(&lab, &wanted), before);
    let inside = lab.inside(wanted.id);
    let held = String::from_utf8(common::in_netns(&inside, "ipset save").stdout).unwrap();
    assert_eq!(
        held.lines().filter(|l| l.starts_with("add")).count(),
        1_001,
        "and the port of this host"
    );
    assert!(
        !held.contains(" 10.16.0.1\n") && held.contains(" 10.16.5.219\n"),
        "the old ones are gone, the new ones there"
    );
    common::in_netns(&inside, "ipset flush");
    let healed = lab.ensure(&wanted).await;
    assert_eq!(
        healed.changed.len(),
        1,
        "what somebody emptied is filled: {:?}",
        healed.changed
    );
    assert_eq!(lab.ensure(&wanted).await.changed, Vec::<String>::new());
    wanted.groups.clear();
    wanted.ports[0].policy.groups.clear();
    lab.ensure(&wanted).await;
    let held = common::in_netns(&inside, "ipset save").stdout;
    assert!(held.is_empty(), "{}", String::from_utf8_lossy(&held));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_leaves_the_rules_that_stand() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let mut wanted = network(NetworkMode::Nat, 1);
    group_of(&mut wanted, 1, &["tcp/80"], &[0]);
    lab.ensure(&wanted).await;
    let before = rules_of(&lab, &wanted);
    let many: Vec<String> = (1..=10_000).map(|p| format!("tcp/{p}")).collect();
    let mut too_many = wanted.clone();
    group_of(
        &mut too_many,
        1,
        &many.iter().map(String::as_str).collect::<Vec<_>>(),
        &[0],
    );
    let mut everybody = wanted.clone();
    everybody.groups[0].members = vec!["0.0.0.0/0".parse().unwrap()];
    let mut twice = wanted.clone();
    let mut other = twice.groups[0].clone();
    other.id = vbm_core::GroupId::from_uuid(uuid::Uuid::from_u128(1 << 64 | 1));
    twice.groups.push(other);
    let mut gateway = wanted.clone();
    gateway.ports[0].policy.pairs = vec![vbm_core::AddressPair::of(gateway.spec.gateway.into())];
    for bad in [too_many, everybody, twice, gateway] {
        let error = lab.net.ensure(bad).await.unwrap_err();
        assert_eq!(error.kind(), vbm_core::ErrorKind::InvalidInput, "{error:?}");
        assert_eq!(rules_of(&lab, &wanted), before);
    }
    assert_eq!(lab.ensure(&wanted).await.changed, Vec::<String>::new());
}
