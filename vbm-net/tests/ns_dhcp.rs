//! The DHCP server, against busybox's client and against frames by hand, in real namespaces.

#![allow(clippy::unwrap_used, reason = "a helper of a test that cannot go on panics")]
#![allow(clippy::cast_possible_truncation, reason = "test values are small")]

mod common;

use common::{
    Lab, eventually,
    packet::{self, dhcp, dhcp_reply, to_server},
};
use nix::sys::signal::Signal;
use std::{net::Ipv4Addr, time::Duration};
use vbm_core::{Mac, NetworkMode};
use vbm_net::{NetEvent, NetworkBackend, dhcp::frame::checksum_is_full};

const NOBODY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const DISCOVER: u8 = 1;
const REQUEST: u8 = 3;

async fn next(events: &mut tokio::sync::broadcast::Receiver<NetEvent>) -> NetEvent {
    tokio::time::timeout(common::DEADLINE, events.recv())
        .await
        .expect("an event in time")
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_gets_the_address_of_its_port_renews_it_and_gives_it_back() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let wanted = common::network(NetworkMode::Nat, 2);
    lab.ensure(&wanted).await;
    let mut events = lab.net.events();
    let guest = lab.guest(&wanted, 1).await;
    let client = guest.ns.spawn(&guest.udhcpc(""));
    let NetEvent::PortLeased {
        port,
        address,
        since,
        until,
        ..
    } = next(&mut events).await
    else {
        panic!("no lease")
    };
    assert_eq!((port, address), (wanted.ports[1].id, wanted.ports[1].address));
    assert_eq!(
        until.since(since),
        Duration::from_secs(wanted.spec.lease_seconds.into())
    );
    eventually("the guest to be bound", || guest.told("bound").is_some()).await;
    let told = guest.told("bound").unwrap();
    for line in [
        "ip='10.9.0.11'",
        "subnet='255.255.255.0'",
        "router='10.9.0.1'",
        "dns='192.0.2.53'",
        "domain='lab.example'",
        "hostname='guest-1'",
        "mtu='1400'",
        "broadcast='10.9.0.255'",
        "lease='3600'",
        "serverid='10.9.0.1'",
    ] {
        assert!(told.contains(line), "{line} is missing in:\n{told}");
    }
    eventually("the lease in the inventory", || {
        guest.ns.pings(wanted.spec.gateway)
    })
    .await;
    client.signal(Signal::SIGUSR1);
    let NetEvent::PortLeased { address, .. } = next(&mut events).await else {
        panic!("no renewal")
    };
    assert_eq!(address, wanted.ports[1].address);
    eventually("the guest to have renewed", || guest.told("renew").is_some()).await;
    let seen = lab.net.inventory().await.unwrap();
    assert!(seen[0].ports[1].lease.is_some() && seen[0].ports[0].lease.is_none());
    client.signal(Signal::SIGUSR2);
    // The client may have asked twice meanwhile, and was answered twice.
    let released = loop {
        match next(&mut events).await {
            NetEvent::PortLeased { .. } => {}
            other => break other,
        }
    };
    assert_eq!(
        released,
        NetEvent::PortReleased {
            network: wanted.id,
            port,
            address
        }
    );
    assert!(lab.net.inventory().await.unwrap()[0].ports[1].lease.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn replies_are_whole_on_the_wire_and_go_where_the_client_can_hear_them() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let wanted = common::network(NetworkMode::Nat, 2);
    lab.ensure(&wanted).await;
    let (wire, port) = (lab.raw(&wanted, 0).await, &wanted.ports[0]);
    let exchange = |message: &[u8]| {
        wire.send(&to_server(port.mac, NOBODY, message));
        let frame = wire.next(|f| dhcp_reply(f).is_some()).expect("a reply");
        assert!(checksum_is_full(&frame), "{frame:02x?}");
        let reply = dhcp_reply(&frame).unwrap();
        assert!(reply.len() >= 300);
        (frame, reply)
    };
    let mut discover = dhcp(port.mac, DISCOVER, NOBODY, &[]);
    let (frame, reply) = exchange(&discover);
    assert_eq!(frame[..6], port.mac.octets(), "to the client's MAC, without ARP");
    assert_eq!(frame[30..34], port.address.octets());
    assert_eq!(reply[16..20], port.address.octets());
    discover[10] = 0x80;
    let (frame, reply) = exchange(&discover);
    assert_eq!(
        frame[..6],
        packet::BROADCAST.octets(),
        "by broadcast, where the flag asks for it"
    );
    assert_eq!(reply[10], 0x80);
    let (frame, reply) = exchange(&dhcp(port.mac, REQUEST, NOBODY, &[50, 4, 192, 168, 1, 2]));
    assert_eq!(frame[..6], packet::BROADCAST.octets());
    assert_eq!(
        reply[240..243],
        [53, 1, 6],
        "an address of another network gets a NAK"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_hears_the_server_but_the_ports_of_this_host_each_for_itself() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let wanted = common::network(NetworkMode::Nat, 2);
    lab.ensure(&wanted).await;
    let mut events = lab.net.events();
    let (a, b) = (lab.raw(&wanted, 0).await, lab.raw(&wanted, 1).await);
    let (port, other) = (&wanted.ports[0], &wanted.ports[1]);
    // In another's name, from a strange MAC, garbage: all unanswered, so the first reply is to the honest request.
    a.send(&to_server(
        port.mac,
        NOBODY,
        &dhcp(other.mac, REQUEST, NOBODY, &[50, 4, 10, 9, 0, 11]),
    ));
    a.send(&to_server(
        Mac::local(0xbad),
        NOBODY,
        &dhcp(Mac::local(0xbad), DISCOVER, NOBODY, &[]),
    ));
    // Fewer than the socket holds: a flood may cost a client a retry.
    for length in (0..400).step_by(9) {
        a.send(&to_server(port.mac, NOBODY, &vec![0x63; length]));
    }
    let mut broadcast = dhcp(port.mac, REQUEST, NOBODY, &[50, 4, 10, 9, 0, 10]);
    broadcast[10] = 0x80;
    a.send(&to_server(port.mac, NOBODY, &broadcast));
    let reply = a.next(|f| dhcp_reply(f).is_some()).expect("a reply");
    assert_eq!(dhcp_reply(&reply).unwrap()[28..34], port.mac.octets());
    let NetEvent::PortLeased { port: leased, .. } = next(&mut events).await else {
        panic!("no lease")
    };
    assert_eq!(leased, port.id, "nobody leases in another's name");
    // The broadcast reply was not for B: the first reply that B hears is its own.
    b.send(&to_server(
        other.mac,
        NOBODY,
        &dhcp(other.mac, DISCOVER, NOBODY, &[]),
    ));
    let reply = b.next(|f| dhcp_reply(f).is_some()).expect("a reply");
    assert_eq!(dhcp_reply(&reply).unwrap()[28..34], other.mac.octets());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_daemon_forgets_no_address_and_disturbs_no_guest() {
    needs_namespaces!();
    let mut lab = Lab::new().await;
    let wanted = common::network(NetworkMode::Nat, 1);
    lab.ensure(&wanted).await;
    let guest = lab.guest(&wanted, 0).await;
    guest.dhcp();
    assert!(guest.ns.pings(wanted.spec.gateway));
    lab.reopen().await;
    assert!(
        guest.ns.pings(wanted.spec.gateway),
        "traffic goes on while nobody manages it"
    );
    let seen = lab.ensure(&wanted).await;
    assert!(seen.ports[0].open);
    assert_eq!(seen.changed, ["DHCP server", "DNS server", "metadata service"]);
    guest.dhcp();
    assert!(guest.ns.pings(wanted.spec.gateway));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_was_made_anew_is_served_anew() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let wanted = common::network(NetworkMode::Nat, 1);
    let bridge = |lab: &Lab| {
        let command = "cat /sys/class/net/br0/ifindex";
        common::in_netns(&lab.inside(wanted.id), command).stdout
    };
    lab.ensure(&wanted).await;
    let before = bridge(&lab);
    common::ip(&format!("netns del {}", lab.inside(wanted.id)));
    let seen = lab.ensure(&wanted).await;
    // Else another one would have been served for that.
    assert_eq!(bridge(&lab), before, "the new bridge has the old one's number");
    assert!(
        seen.changed.iter().any(|c| c == "DHCP server"),
        "{:?}",
        seen.changed
    );
    let guest = lab.guest(&wanted, 0).await;
    guest.dhcp();
    assert!(guest.ns.pings(wanted.spec.gateway));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_isolated_network_serves_dhcp_without_a_way_out() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let wanted = common::network(NetworkMode::Isolated, 1);
    let seen = lab.ensure(&wanted).await;
    assert_eq!(seen.transit, None);
    let guest = lab.guest(&wanted, 0).await;
    guest.dhcp();
    assert!(!guest.told("bound").unwrap().contains("router="));
    assert!(guest.ns.pings(wanted.spec.gateway));
    assert!(!lab.host.ip("-o link").contains("vbu"));
}
