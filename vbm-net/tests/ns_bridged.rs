//! Networks of mode bridged, with packets: on the LAN of a bridge of the host or of an interface, guarded all the same.
//!
//! ```text
//!   lan: a bridge in a namespace, with a router 10.9.0.1 that serves DHCP        (somebody else's)
//!     host 0: eth1 -- br-lan, with the host's own address        VMs by a pair of links
//!     host 1: eth1, without addresses                            VMs by a macvlan
//! ```

#![allow(clippy::unwrap_used, reason = "a helper of a test that cannot go on panics")]
#![allow(clippy::cast_possible_truncation, reason = "test values are small")]

mod common;

use common::{
    Guest, Kid, Lab, Ns, footprint, ip, network, open_port,
    packet::{BROADCAST, arp, dhcp, ethernet, marked, to_server, udp},
    reaches,
};
use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    time::Duration,
};
use vbm_core::{Error, ErrorKind, Mac, NetworkMode};
use vbm_net::{DesiredNetwork, NetworkBackend, doctor};

const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const HOST: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 200);
/// What the LAN's own server gives.
const LEASED: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 150);

/// A LAN with a router.
struct Lan {
    ns: Ns,
    router: Ns,
    dir: tempfile::TempDir,
}

impl Lan {
    fn new() -> Self {
        let (ns, router) = (Ns::new("vbmt-l-"), Ns::new("vbmt-r-"));
        ns.ip("link add lan type bridge forward_delay 0");
        ns.ip("link set lan up");
        let lan = Self {
            ns,
            router,
            dir: tempfile::tempdir().unwrap(),
        };
        lan.plug(&lan.router, "eth0");
        lan.router.ip(&format!("addr add {ROUTER}/24 dev eth0"));
        lan
    }

    fn plug(&self, ns: &Ns, name: &str) {
        let other = common::fresh("p");
        ip(&format!(
            "-n {} link add {name} type veth peer name {other} netns {}",
            ns.0, self.ns.0
        ));
        self.ns.ip(&format!("link set {other} master lan up"));
        ns.ip(&format!("link set {name} up"));
    }

    /// Its own DHCP server, which gives one address.
    fn serve(&self) -> Kid {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        std::fs::write(path("leases"), "").unwrap();
        let text = format!(
            "start {LEASED}\nend {LEASED}\ninterface eth0\nlease_file {}\npidfile {}\nopt router {ROUTER}\nopt subnet 255.255.255.0\n",
            path("leases"),
            path("pid"),
        );
        std::fs::write(path("conf"), text).unwrap();
        self.router.spawn(&format!("busybox udhcpd -f {}", path("conf")))
    }
}

/// A host with a bridge on the LAN, where it has an address of its own.
async fn with_bridge(lan: &Lan) -> Lab {
    let lab = Lab::new().await;
    lan.plug(&lab.host, "eth1");
    lab.host.ip("link add br-lan type bridge forward_delay 0");
    lab.host.ip("link set eth1 master br-lan");
    lab.host.ip("link set br-lan up");
    lab.host.ip(&format!("addr add {HOST}/24 dev br-lan"));
    lab
}

/// A host with an interface on the LAN that it does not use itself.
async fn with_interface(lan: &Lan) -> Lab {
    let lab = Lab::new().await;
    lan.plug(&lab.host, "eth1");
    lab
}

fn bridged(uplink: &str, ports: u8) -> DesiredNetwork {
    let mut wanted = network(NetworkMode::Nat, ports);
    let spec = vbm_core::NetworkSpec::with_uplink(
        NetworkMode::Bridged,
        wanted.spec.cidr,
        Some(uplink.parse().unwrap()),
    );
    wanted.spec = spec.unwrap();
    wanted
}

/// By hand, as a machine of the LAN: the gateway is the LAN's router.
fn at(guest: &Guest, wanted: &DesiredNetwork, port: usize) -> Ipv4Addr {
    guest.address(wanted, port);
    wanted.ports[port].address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_is_on_the_lan_of_a_bridge_and_the_host_keeps_its_address_there() {
    needs_namespaces!();
    let lan = Lan::new();
    let lab = with_bridge(&lan).await;
    let mut wanted = bridged("br-lan", 2);
    let before = footprint(&lab.host, &[wanted.id]);
    open_port(&mut wanted, 0, &["tcp/80"]);
    lab.ensure(&wanted).await;
    assert_eq!(lab.ensure(&wanted).await.changed, Vec::<String>::new());
    assert_eq!(lab.net.plan(wanted.clone()).await.unwrap(), Vec::<String>::new());
    let (mut server, other) = (lab.guest(&wanted, 0).await, lab.guest(&wanted, 1).await);
    let first = at(&server, &wanted, 0);
    at(&other, &wanted, 1);
    server.serve("on the LAN").await;
    common::eventually("the bridges forward", || other.ns.pings(ROUTER)).await;
    assert_eq!(
        lan.router.get((first, 80)).as_deref(),
        Some("on the LAN"),
        "a machine of the LAN"
    );
    assert!(!lan.router.pings(first), "no group allows it");
    assert_eq!(
        other.ns.get((first, 80)).as_deref(),
        Some("on the LAN"),
        "another VM of it"
    );
    assert_eq!(
        lab.host.get((first, 80)).as_deref(),
        Some("on the LAN"),
        "the host, by its own address there"
    );
    assert!(reaches(&other.ns, HOST), "the host is a machine of the LAN");
    assert!(reaches(&lab.host, ROUTER), "the host's own connection");
    drop((server, other));
    lab.net.remove(wanted.id).await.unwrap();
    assert_eq!(footprint(&lab.host, &[wanted.id]), before);
    assert!(reaches(&lab.host, ROUTER));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_is_on_the_lan_of_an_interface_and_two_hosts_are_on_one_lan_without_a_tunnel() {
    needs_namespaces!();
    let lan = Lan::new();
    let labs = [with_bridge(&lan).await, with_interface(&lan).await];
    // The same network, with a VM on each: told to each host with its own interface.
    let base = bridged("br-lan", 2);
    let mut on = [base.clone(), base.clone()];
    on[1].spec.uplink = Some("eth1".parse().unwrap());
    let mut guests = Vec::new();
    for (n, (lab, wanted)) in labs.iter().zip(&mut on).enumerate() {
        wanted.ports = vec![base.ports[n].clone()];
        open_port(wanted, 0, &["icmp"]);
        lab.ensure(wanted).await;
        assert_eq!(lab.ensure(wanted).await.changed, Vec::<String>::new());
        let guest = lab.guest(wanted, 0).await;
        guest.address(wanted, 0);
        guests.push(guest);
    }
    for guest in &guests {
        common::eventually("the LAN's router", || guest.ns.pings(ROUTER)).await;
    }
    assert!(reaches(&guests[0].ns, base.ports[1].address), "from host to host");
    assert!(reaches(&guests[1].ns, base.ports[0].address), "and back");
    // A second network cannot take the same interface, but the same bridge.
    for (lab, uplink, ok) in [(&labs[1], "eth1", false), (&labs[0], "br-lan", true)] {
        let more = bridged(uplink, 1);
        let result = lab.net.ensure(more.clone()).await;
        assert_eq!(result.is_ok(), ok, "{uplink}: {result:?}");
        if let Err(error) = result {
            assert_eq!(error.kind(), ErrorKind::Conflict);
        }
        lab.net.remove(more.id).await.unwrap();
    }
    assert!(reaches(&guests[1].ns, ROUTER), "the first is as it was");
    drop(guests);
    labs[1].net.remove(on[1].id).await.unwrap();
    let link = labs[1].host.ip("-d link show eth1");
    assert!(link.contains("promiscuity 0"), "it is as it was: {link}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lans_own_server_gives_addresses_and_no_vm_can_be_one_or_be_the_router() {
    needs_namespaces!();
    let lan = Lan::new();
    let lab = with_bridge(&lan).await;
    let mut wanted = bridged("br-lan", 3);
    open_port(&mut wanted, 0, &["icmp"]);
    open_port(&mut wanted, 2, &["any"]);
    lab.ensure(&wanted).await;
    let _server = lan.serve();
    let guest = lab.guest(&wanted, 0).await;
    guest.dhcp();
    let told = guest.told("bound").unwrap();
    assert!(
        told.contains(&format!("ip='{LEASED}'")) && told.contains(&format!("router='{ROUTER}'")),
        "{told}"
    );
    assert!(
        reaches(&lan.router, LEASED),
        "with an address that VBM does not know, groups hold"
    );
    // Renewed, too: asked of one server and answered by it.
    let _client = guest.ns.spawn(&guest.udhcpc(""));
    common::eventually("a lease of one that stays", || {
        guest.told("renew").is_some() || guest.told("bound").is_some()
    })
    .await;

    let (evil, victim) = (lab.raw(&wanted, 1).await, lab.raw(&wanted, 2).await);
    let me = wanted.ports[1].mac;
    let mac = wanted.ports[2].mac;
    let address = wanted.ports[2].address;
    let stranger = Mac::local(0x66_66_66);
    let mine = wanted.ports[1].address;
    let offer = dhcp(mac, 2, Ipv4Addr::UNSPECIFIED, &[]);
    for (what, frame) in [
        ("a foreign MAC", marked((stranger, mine), (mac, address), "mac")),
        (
            "the router's address",
            marked((me, ROUTER), (mac, address), "router"),
        ),
        (
            "an address outside the LAN",
            marked((me, [192, 0, 2, 9].into()), (mac, address), "far"),
        ),
        (
            "the host's ARP",
            ethernet(me, BROADCAST, 0x0806, &arp(2, (me, HOST), (mac, address))),
        ),
        ("the host's address", marked((me, HOST), (mac, address), "host")),
        (
            "the router's ARP",
            ethernet(me, BROADCAST, 0x0806, &arp(2, (me, ROUTER), (mac, address))),
        ),
        (
            "ARP of a foreign MAC",
            ethernet(me, BROADCAST, 0x0806, &arp(2, (stranger, mine), (mac, address))),
        ),
        (
            "a DHCP server",
            ethernet(
                me,
                BROADCAST,
                0x0800,
                &udp((mine, 67), (Ipv4Addr::BROADCAST, 68), &offer),
            ),
        ),
        ("something tagged", ethernet(me, BROADCAST, 0x8100, &[0; 46])),
    ] {
        evil.send(&frame);
        // Frames stay in their order: what was let through comes before the mark.
        evil.send(&marked((me, mine), (mac, address), "end"));
        let next = victim.next(|f| f[6..12] == me.octets() || f[6..12] == stranger.octets());
        let next = next.unwrap_or_default();
        assert_eq!(
            common::packet::mark(&next).as_deref(),
            Some("end"),
            "{what} passed"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dhcp_of_ours_is_for_its_vms_alone_and_the_lans_is_not_heard() {
    needs_namespaces!();
    let lan = Lan::new();
    let lab = with_bridge(&lan).await;
    let mut wanted = bridged("br-lan", 2);
    wanted.spec.serve_dhcp = true;
    open_port(&mut wanted, 0, &["icmp"]);
    lab.ensure(&wanted).await;
    assert_eq!(lab.ensure(&wanted).await.changed, Vec::<String>::new());
    let _theirs = lan.serve();
    let tap = common::site::Tap::on(&lan.ns);
    let guest = lab.guest(&wanted, 0).await;
    guest.dhcp();
    let told = guest.told("bound").unwrap();
    let address = wanted.ports[0].address;
    assert!(
        told.contains(&format!("ip='{address}'")) && told.contains(&format!("router='{ROUTER}'")),
        "ours answers, with the LAN's router: {told}"
    );
    common::eventually("the LAN", || guest.ns.pings(ROUTER)).await;
    assert!(reaches(&lan.router, address));
    // A renewal goes to the server by its address, which is the router's: it is answered here all the same.
    let raw = lab.raw(&wanted, 1).await;
    let (mac, ip4) = (wanted.ports[1].mac, wanted.ports[1].address);
    let router: Mac = {
        let text = lan.router.ip("-o link show eth0");
        text.split("link/ether ").nth(1).unwrap()[..17].parse().unwrap()
    };
    let ask = dhcp(mac, 3, ip4, &[]);
    raw.send(&ethernet(
        mac,
        router,
        0x0800,
        &udp((ip4, 68), (ROUTER, 67), &ask),
    ));
    let reply = raw.next(|f| common::packet::dhcp_reply(f).is_some()).unwrap();
    assert_eq!(reply[6..12], wanted.gateway_mac().octets(), "by our server");
    // A machine of the LAN is not served by us.
    let before = lab.ensure(&wanted).await;
    assert_eq!(before.changed, Vec::<String>::new());
    let stray = common::packet::Wire::on(&lan.router, "eth0");
    let somebody = Mac::local(0x55_55_55);
    stray.send(&to_server(
        somebody,
        Ipv4Addr::UNSPECIFIED,
        &dhcp(somebody, 1, Ipv4Addr::UNSPECIFIED, &[]),
    ));
    assert!(reaches(&lan.router, address), "all that was sent has passed");
    let gateway = wanted.gateway_mac().octets();
    let heard = tap.frames();
    assert!(!heard.is_empty());
    assert!(
        !heard.iter().any(|f| f.get(6..12) == Some(&gateway[..])),
        "the bridge's own MAC was on the LAN"
    );
    let asked = |f: &Vec<u8>| {
        f.get(6..12) == Some(&wanted.ports[0].mac.octets()[..]) && f.get(36..38) == Some(&[0, 67])
    };
    assert!(!heard.iter().any(asked), "what a VM asked was heard on the LAN");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interface_that_the_host_uses_is_refused_and_stays_as_it_is() {
    needs_namespaces!();
    let lan = Lan::new();
    let lab = with_bridge(&lan).await;
    lab.host.ip("route add default via 192.0.2.2");
    let before = footprint(&lab.host, &[]);
    let links = lab.host.ip("-o link show");
    lab.host.ip("link add bond7 type veth peer name bond8");
    lab.host.ip("link set bond7 up");
    lab.host.ip("route add 203.0.113.0/24 dev bond7");
    for (uplink, word) in [
        ("eth0", "192.0.2.1/24"),
        ("eth1", "br-lan"),
        ("lo", "loopback"),
        ("none7", "no such interface"),
        ("bond7", "203.0.113.0/24"),
    ] {
        let wanted = bridged(uplink, 1);
        let error = lab.net.ensure(wanted.clone()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{uplink}");
        let told = Error::from(error);
        assert!(told.to_string().contains(word), "{uplink}: {told}");
        assert!(lab.net.inventory().await.unwrap().is_empty(), "{uplink}");
    }
    lab.host.ip("link del bond7");
    assert_eq!(lab.host.ip("-o link show"), links);
    assert_eq!(footprint(&lab.host, &[]), before);
    assert!(
        reaches(&lab.host, common::OUTSIDE) && reaches(&lab.host, ROUTER),
        "nothing was cut"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leg_that_somebody_takes_away_is_made_again_and_a_dead_daemons_is_removed() {
    needs_namespaces!();
    let lan = Lan::new();
    for uplink in ["br-lan", "eth1"] {
        let mut lab = if uplink == "eth1" {
            with_interface(&lan).await
        } else {
            with_bridge(&lan).await
        };
        let mut wanted = bridged(uplink, 1);
        let before = footprint(&lab.host, &[wanted.id]);
        open_port(&mut wanted, 0, &["icmp"]);
        lab.ensure(&wanted).await;
        let guest = lab.guest(&wanted, 0).await;
        let address = at(&guest, &wanted, 0);
        common::eventually("the LAN", || guest.ns.pings(ROUTER)).await;
        let inside = lab.inside(wanted.id);
        for spoil in ["link set lan0 nomaster", "link set lan0 down", "link del lan0"] {
            ip(&format!("-n {inside} {spoil}"));
            let plan = lab.net.plan(wanted.clone()).await.unwrap();
            assert!(!plan.is_empty(), "{uplink}, {spoil}");
            lab.ensure(&wanted).await;
            assert_eq!(lab.ensure(&wanted).await.changed, Vec::<String>::new(), "{spoil}");
            common::eventually("the LAN again", || lan.router.pings(address)).await;
        }
        // A restart of the daemon disturbs nothing.
        lab.reopen().await;
        assert!(reaches(&guest.ns, ROUTER), "while nobody looks");
        lab.ensure(&wanted).await;
        assert!(reaches(&guest.ns, ROUTER));
        lab.net.shutdown().await;
        doctor::remove_owners(&[lab.owner.clone()].into()).await.unwrap();
        assert_eq!(footprint(&lab.host, &[wanted.id]), before, "{uplink}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_that_goes_cuts_flows_of_the_lan_and_those_that_may_stay_go_on() {
    needs_namespaces!();
    let lan = Lan::new();
    let lab = with_bridge(&lan).await;
    let mut wanted = bridged("br-lan", 1);
    wanted.spec.serve_dhcp = true;
    open_port(&mut wanted, 0, &["tcp/81", "tcp/82"]);
    lab.ensure(&wanted).await;
    let guest = lab.guest(&wanted, 0).await;
    let address = at(&guest, &wanted, 0);
    common::eventually("the LAN", || guest.ns.pings(ROUTER)).await;
    let mut streams = Vec::new();
    for port in [81u16, 82] {
        let listener = guest
            .ns
            .run(move || TcpListener::bind(("0.0.0.0", port)).unwrap());
        std::thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            let mut byte = [0];
            while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
        });
        let stream = lan
            .router
            .run(move || TcpStream::connect((address, port)).unwrap());
        stream
            .set_read_timeout(Some(Duration::from_millis(1_500)))
            .unwrap();
        streams.push(stream);
    }
    let mut echoes = |n: usize| {
        let stream = &mut streams[n];
        stream.write_all(b"x").is_ok() && stream.read_exact(&mut [0]).is_ok()
    };
    assert!(echoes(0) && echoes(1));
    open_port(&mut wanted, 0, &["tcp/82"]);
    lab.ensure(&wanted).await;
    assert!(!echoes(0), "its rule is gone");
    assert!(echoes(1), "its rule stands");
}
