//! NICs that are interfaces: the host's end of a veth, to which a hypervisor binds by name, as VirtualBox does. A macvlan upon it
//! stands for the hypervisor here: it takes and sends the guest's frames and leaves the host's end where it is.

#![allow(clippy::unwrap_used, reason = "a helper of a test that cannot go on panics")]
#![allow(clippy::cast_possible_truncation, reason = "test values are small")]

mod common;

use common::{
    Guest, HOST_OUTSIDE, Lab, forward, ip, network, open_port,
    packet::{Wire, marked},
    site::Tap,
};
use pnet_packet::{
    Packet,
    ipv4::{self, Ipv4Packet},
    tcp, udp,
};
use std::{collections::BTreeSet, net::Ipv4Addr};
use vbm_core::{Mac, NetworkMode};
use vbm_net::{DesiredNetwork, NetError, NetworkBackend, Nic, NicKind, doctor, names};

const WEB: u16 = 80;
const ETHERNET: usize = 14;

/// Opens a port's NIC as an interface.
async fn interface(lab: &Lab, wanted: &DesiredNetwork, port: usize) -> String {
    let nic = lab
        .net
        .open_nic(wanted.id, wanted.ports[port].id, NicKind::Interface);
    match nic.await.unwrap() {
        Nic::Interface { name } => name,
        other => panic!("no interface: {other:?}"),
    }
}

async fn bound(lab: &Lab, wanted: &DesiredNetwork, port: usize) -> Guest {
    let name = interface(lab, wanted, port).await;
    Guest::bound(&lab.host, &name, wanted.ports[port].mac)
}

/// Whether a frame's checksums are whole; frames without any are.
fn is_whole(frame: &[u8]) -> bool {
    let Some(packet) = Ipv4Packet::new(&frame[ETHERNET..]).filter(|_| frame[12..14] == [8, 0]) else {
        return true;
    };
    let (from, to) = (packet.get_source(), packet.get_destination());
    let length = usize::from(packet.get_total_length()) - usize::from(packet.get_header_length()) * 4;
    let body = &packet.payload()[..length];
    let inner = match packet.get_next_level_protocol().0 {
        6 => {
            let segment = tcp::TcpPacket::new(body).unwrap();
            segment.get_checksum() == tcp::ipv4_checksum(&segment, &from, &to)
        }
        17 => {
            let datagram = udp::UdpPacket::new(body).unwrap();
            datagram.get_checksum() == 0
                || datagram.get_checksum() == udp::ipv4_checksum(&datagram, &from, &to)
        }
        _ => true,
    };
    inner && packet.get_checksum() == ipv4::checksum(&packet)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_on_an_interface_gets_its_address_serves_and_is_served() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let mut wanted = network(NetworkMode::Nat, 2);
    open_port(&mut wanted, 0, &["tcp/80"]);
    forward(&mut wanted, 8080, 0, WEB);
    lab.ensure(&wanted).await;
    let mut guest = bound(&lab, &wanted, 0).await;
    guest.dhcp();
    let told = guest.told("bound").unwrap();
    assert!(
        told.contains("ip='10.9.0.10'") && told.contains("mtu='1400'"),
        "{told}"
    );
    assert!(guest.ns.pings(wanted.spec.gateway) && guest.ns.pings(common::OUTSIDE));
    guest.serve("from an interface").await;
    let near = lab.guest(&wanted, 1).await;
    near.dhcp();
    let page = Some("from an interface");
    assert_eq!(near.ns.get((wanted.ports[0].address, WEB)).as_deref(), page);
    assert_eq!(lab.outside.get((HOST_OUTSIDE, 8080)).as_deref(), page);
    assert!(!guest.ns.pings(wanted.ports[1].address), "nothing is open there");
    let seen = lab.ensure(&wanted).await;
    assert_eq!(seen.changed, Vec::<String>::new());
    assert!(seen.ports[0].open);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_frame_towards_the_hypervisor_bears_whole_checksums_and_fits_the_mtu() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let wanted = network(NetworkMode::Nat, 1);
    lab.ensure(&wanted).await;
    let name = interface(&lab, &wanted, 0).await;
    let tap = Tap::only(&lab.host, &name);
    let guest = Guest::bound(&lab.host, &name, wanted.ports[0].mac);
    guest.dhcp();
    // The world's link leaves checksums and segmentation to whoever comes last, as a good network card lets it.
    let page = "0123456789abcdef".repeat(20_000);
    let www = tempfile::tempdir().unwrap();
    std::fs::write(www.path().join("index.html"), &page).unwrap();
    let _server = lab
        .outside
        .spawn(&format!("busybox httpd -f -p 80 -h {}", www.path().display()));
    let up = || lab.outside.get((common::OUTSIDE, WEB)).is_some();
    common::eventually("the world's web server", up).await;
    assert_eq!(guest.ns.get((common::OUTSIDE, WEB)), Some(page));
    let mine = |f: &Vec<u8>| f[..6] == wanted.ports[0].mac.octets();
    let towards = || tap.frames().into_iter().filter(mine).collect::<Vec<_>>();
    let bytes = || towards().iter().map(Vec::len).sum::<usize>();
    common::eventually("all of the page to be heard", || bytes() > 320_000).await;
    let towards = towards();
    for frame in towards {
        assert!(is_whole(&frame), "{frame:02x?}");
        assert!(frame.len() <= ETHERNET + 1_400, "{} bytes", frame.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guard_stands_behind_an_interface_as_behind_a_tap() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let mut wanted = network(NetworkMode::Isolated, 3);
    open_port(&mut wanted, 1, &["any"]);
    lab.ensure(&wanted).await;
    let name = interface(&lab, &wanted, 0).await;
    let (a, b) = (Wire::on(&lab.host, &name), lab.raw(&wanted, 1).await);
    let end = |i: usize| (wanted.ports[i].mac, wanted.ports[i].address);
    a.send(&marked((end(2).0, end(0).1), end(1), "a neighbour's MAC"));
    a.send(&marked((end(0).0, end(2).1), end(1), "a neighbour's address"));
    a.send(&marked((Mac::local(0xbad), end(0).1), end(1), "nobody's MAC"));
    a.send(&marked(end(0), end(1), "honest"));
    assert_eq!(b.next_mark(), "honest");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_itself_is_silent_on_the_interface() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let wanted = network(NetworkMode::Isolated, 2);
    lab.ensure(&wanted).await;
    let name = interface(&lab, &wanted, 0).await;
    let tap = Tap::only(&lab.host, &name);
    let near = lab.guest(&wanted, 1).await;
    near.address(&wanted, 1);
    let ask = |address: Ipv4Addr| {
        near.ns
            .try_sh(&format!("busybox arping -c 1 -w 1 -I eth0 {address}"))
    };
    assert!(ask(wanted.spec.gateway).status.success());
    assert!(!ask(HOST_OUTSIDE).status.success());
    let own = lab.host.sh(&format!("cat /sys/class/net/{name}/address"));
    let spoke = |f: &Vec<u8>| f[6..12] == own.trim().parse::<Mac>().unwrap().octets();
    let frames = tap.frames();
    assert!(!frames.is_empty(), "the question was heard");
    assert!(!frames.iter().any(spoke), "{frames:02x?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interface_that_somebody_took_apart_is_whole_after_the_next_ensure() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let wanted = network(NetworkMode::Nat, 1);
    lab.ensure(&wanted).await;
    let guest = bound(&lab, &wanted, 0).await;
    guest.dhcp();
    let (outer, inner) = (
        names::interface(wanted.ports[0].id),
        names::tap(wanted.ports[0].id),
    );
    let inside = lab.inside(wanted.id);
    for (ns, harm) in [
        (&lab.host.0, format!("link set {outer} down")),
        (&lab.host.0, format!("link set {outer} mtu 1500")),
        (&lab.host.0, format!("link set {outer} alias nobody")),
        (&inside, format!("link set {inner} nomaster")),
        (&inside, format!("link set {inner} down")),
        (&inside, format!("link set {inner} mtu 1300")),
    ] {
        ip(&format!("-n {ns} {harm}"));
        let seen = lab.ensure(&wanted).await;
        assert!(
            !seen.changed.is_empty() && seen.ports[0].open,
            "{harm} was not seen"
        );
        assert_eq!(lab.ensure(&wanted).await.changed, Vec::<String>::new(), "{harm}");
        common::eventually(&harm, || guest.ns.pings(wanted.spec.gateway)).await;
    }
    // Its end on the host is gone, and with it the other: the VM has to open it again.
    ip(&format!("-n {} link del {outer}", lab.host.0));
    assert!(!lab.ensure(&wanted).await.ports[0].open);
    interface(&lab, &wanted, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_of_another_under_our_name_is_told_and_left_alone() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let wanted = network(NetworkMode::Isolated, 1);
    lab.ensure(&wanted).await;
    let (id, port) = (wanted.id, wanted.ports[0].id);
    let name = names::interface(port);
    lab.host
        .ip(&format!("link add {name} type veth peer name other0"));
    lab.host.ip(&format!("link set {name} alias vbm-somebody-else"));
    let refused = lab.net.open_nic(id, port, NicKind::Interface).await;
    assert!(matches!(refused, Err(NetError::Conflict { .. })), "{refused:?}");
    assert!(lab.host.ip("-o link").contains("other0"));
    assert!(!lab.ensure(&wanted).await.ports[0].open);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interface_goes_with_its_close_its_port_its_network_and_its_owner() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let wanted = network(NetworkMode::Nat, 1);
    let clean = common::footprint(&lab.host, &[wanted.id]);
    let name = names::interface(wanted.ports[0].id);
    let stands = || lab.host.ip("-o link").contains(&name);
    lab.ensure(&wanted).await;
    interface(&lab, &wanted, 0).await;
    lab.net.close_nic(wanted.id, wanted.ports[0].id).await.unwrap();
    assert!(!stands(), "closed");
    interface(&lab, &wanted, 0).await;
    let mut without = wanted.clone();
    without.ports.clear();
    lab.ensure(&without).await;
    assert!(!stands(), "its port left");
    lab.ensure(&wanted).await;
    interface(&lab, &wanted, 0).await;
    let found = doctor::find_all().await.unwrap();
    assert!(
        found.iter().any(|f| f.what == format!("link {name}")),
        "{found:?}"
    );
    lab.net.remove(wanted.id).await.unwrap();
    assert_eq!(common::footprint(&lab.host, &[wanted.id]), clean);
    lab.ensure(&wanted).await;
    interface(&lab, &wanted, 0).await;
    lab.net.shutdown().await;
    doctor::remove_owners(&BTreeSet::from([lab.owner.clone()]))
        .await
        .unwrap();
    assert_eq!(common::footprint(&lab.host, &[wanted.id]), clean);
}
