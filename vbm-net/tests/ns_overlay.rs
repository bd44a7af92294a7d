//! Networks that span hosts, with real guests on hosts that are namespaces, joined by a bridge on which one can listen.

#![allow(clippy::unwrap_used, reason = "a helper of a test that cannot go on panics")]
#![allow(clippy::cast_possible_truncation, reason = "test values are small")]

mod common;

use common::{
    Guest, HOST_OUTSIDE, OUTSIDE, forward,
    packet::marked,
    site::{Site, Span, at},
};
use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
};
use vbm_core::{ErrorKind, NetworkMode};
use vbm_net::{Dispatch, NetworkBackend, NicKind};

const WEB: u16 = 80;

#[tokio::test(flavor = "multi_thread")]
async fn vms_on_two_hosts_reach_each_other_by_what_their_groups_allow() {
    needs_namespaces!();
    let site = Site::new(3).await;
    let span = Span::new(NetworkMode::Nat, &[0, 1, 2, 1]).open(1, &["icmp", "tcp/80@10.9.0.10/32"]);
    site.ensure(&span).await;
    let tap = site.listen();
    let (a, mut b, c) = (
        site.up(&span, 0).await,
        site.up(&span, 1).await,
        site.up(&span, 2).await,
    );
    let near = site.up(&span, 3).await;
    b.serve("hello from afar").await;
    let to_b = (span.address(1), WEB);
    assert!(a.ns.pings(to_b.0) && c.ns.pings(to_b.0), "icmp is open to all");
    assert_eq!(a.ns.get(to_b).as_deref(), Some("hello from afar"));
    assert_eq!(c.ns.get(to_b), None, "the rule names another source");
    assert_eq!(near.ns.get(to_b), None, "and so it is on the same host");
    assert!(!b.ns.pings(span.address(0)), "nothing is open there");
    assert!(
        b.ns.pings(OUTSIDE) && a.ns.pings(OUTSIDE),
        "each leaves through its own host"
    );
    site.settled(&tap).await;
    let wire = tap.wrapped(span.vni);
    assert!(wire.iter().any(|w| w.frame[6..12] == span.end(0).0.octets()));
    assert!(
        wire.iter().all(|w| w.ethertype() == 0x0800),
        "ARP is answered where it is asked"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn two_networks_with_the_same_addresses_and_macs_do_not_meet() {
    needs_namespaces!();
    let site = Site::new(2).await;
    let red = Span::new(NetworkMode::Nat, &[0, 1]).open(1, &["any"]);
    let blue = red.twin();
    site.ensure(&red).await;
    site.ensure(&blue).await;
    let (ra, mut rb) = (site.up(&red, 0).await, site.up(&red, 1).await);
    let (ba, mut bb) = (site.up(&blue, 0).await, site.up(&blue, 1).await);
    rb.serve("red").await;
    bb.serve("blue").await;
    let web = (red.address(1), WEB);
    assert_eq!(ra.ns.get(web).as_deref(), Some("red"));
    assert_eq!(ba.ns.get(web).as_deref(), Some("blue"));
    // Blue's far end goes: red's, which has the same address and MAC, does not answer for it.
    site.labs[1].net.remove(blue.base.id).await.unwrap();
    assert_eq!(ba.ns.get(web), None);
    assert_eq!(ra.ns.get(web).as_deref(), Some("red"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mtu_is_what_fits_between_the_hosts_and_guests_are_told() {
    needs_namespaces!();
    let site = Site::new(2).await;
    let span = Span::new(NetworkMode::Nat, &[0, 1]).open(1, &["any"]);
    let seen = site.ensure(&span).await;
    assert!(seen.iter().all(|s| s.mtu == 1_450), "{seen:?}");
    let tap = site.listen();
    let (a, mut b) = (site.guest(&span, 0).await, site.guest(&span, 1).await);
    for guest in [&a, &b] {
        guest.dhcp();
        assert!(guest.told("bound").unwrap().contains("mtu='1450'"));
        guest.ns.ip("link set eth0 mtu 1450");
    }
    let page = "0123456789abcdef".repeat(40_000);
    b.serve(&page).await;
    assert_eq!(a.ns.get((span.address(1), WEB)), Some(page));
    site.settled(&tap).await;
    assert!(!tap.heard_a_fragment());
    // The underlay shrinks: the next ensure follows it.
    site.labs[0].host.ip("link set und0 mtu 1300");
    assert_eq!(site.labs[0].ensure(&span.on(0)).await.mtu, 1_250);
    assert_eq!(
        site.labs[0].ensure(&span.on(0)).await.changed,
        Vec::<String>::new()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_packet_passes_whole_and_one_byte_more_does_not() {
    needs_namespaces!();
    let site = Site::new(2).await;
    let span = Span::new(NetworkMode::Isolated, &[0, 1]).open(1, &["udp"]);
    site.ensure(&span).await;
    let tap = site.listen();
    let (a, b) = (site.raw(&span, 0).await, site.raw(&span, 1).await);
    // IPv4 20, UDP 8, "mark:" 5.
    let filler = |packet_bytes: usize| "x".repeat(packet_bytes - 33);
    for packet_bytes in [1_451, 1_450] {
        a.send(&marked(span.end(0), span.end(1), &filler(packet_bytes)));
    }
    assert_eq!(b.next_mark().len(), filler(1_450).len());
    site.settled(&tap).await;
    let wire = tap.wrapped(span.vni);
    assert!(wire.iter().all(|w| w.outer_bytes == 1_500) && !wire.is_empty());
    assert!(!tap.heard_a_fragment());
}

#[tokio::test(flavor = "multi_thread")]
async fn dhcp_is_answered_by_the_guests_own_host_and_by_no_other() {
    needs_namespaces!();
    let site = Site::new(2).await;
    let span = Span::new(NetworkMode::Nat, &[0, 1]);
    site.ensure(&span).await;
    let tap = site.listen();
    let (a, b) = (site.guest(&span, 0).await, site.guest(&span, 1).await);
    site.labs[1].net.shutdown().await;
    a.dhcp();
    assert!(a.told("bound").unwrap().contains("ip='10.9.0.10'"));
    let alone = b.udhcpc("-n -q").replace("-t 10", "-t 2");
    assert!(!b.ns.try_sh(&alone).status.success(), "its own host is silent");
    assert!(a.ns.pings(span.base.spec.gateway), "the gateway is on each host");
    site.settled(&tap).await;
    let crossed: Vec<_> = tap.wrapped(span.vni);
    assert!(crossed.iter().all(|w| !w.is_dhcp()), "{crossed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_moves_is_reached_again_after_one_ensure_on_each_host() {
    needs_namespaces!();
    let site = Site::new(2).await;
    let all = &["icmp"];
    let mut span = Span::new(NetworkMode::Nat, &[0, 1, 0]).open(0, all).open(1, all);
    site.ensure(&span).await;
    let (a, b) = (site.up(&span, 0).await, site.up(&span, 1).await);
    let mover = site.up(&span, 2).await;
    assert!(mover.ns.pings(span.address(0)) && mover.ns.pings(span.address(1)));
    for to in [1, 0] {
        let from = span.place[2];
        span.place[2] = to;
        site.labs[from].ensure(&span.on(from)).await;
        let seen = site.labs[to].ensure(&span.on(to)).await;
        assert!(seen.ready);
        let moved = site.up(&span, 2).await;
        // As a guest does that was told it is somewhere else.
        moved
            .ns
            .sh(&format!("busybox arping -U -c 1 -I eth0 {}", span.address(2)));
        assert!(moved.ns.pings(span.address(0)), "host {to}");
        assert!(moved.ns.pings(span.address(1)), "host {to}");
        assert!(a.ns.pings(span.address(1)) && b.ns.pings(span.address(0)));
        for host in 0..2 {
            let again = site.labs[host].ensure(&span.on(host)).await;
            assert_eq!(again.changed, Vec::<String>::new());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_on_its_way_is_reached_where_it_was_until_it_speaks_where_it_goes() {
    needs_namespaces!();
    let site = Site::new(2).await;
    let mut span = Span::new(NetworkMode::Nat, &[0, 1, 0]).open(2, &["icmp"]);
    site.ensure(&span).await;
    let b = site.up(&span, 1).await;
    let leaving = site.up(&span, 2).await;
    let before = span.on(1);
    span.place[2] = 1;
    let mut arriving = span.on(1);
    arriving.overlay = before.overlay;
    let seen = site.labs[1].ensure(&arriving).await;
    assert!(seen.ready && seen.ports.len() == 2);
    // Its NIC stands here, as a hypervisor that waits for the VM's memory has it; it is silent.
    let nic = site.labs[1]
        .net
        .open_nic(span.base.id, span.base.ports[2].id, NicKind::Tap)
        .await
        .unwrap();
    assert!(b.ns.pings(span.address(2)), "it is where it was");
    assert_eq!(site.labs[1].ensure(&arriving).await.changed, Vec::<String>::new());
    drop(leaving);
    let arrived = Guest::new(nic, span.base.ports[2].mac);
    arrived.address(&span.base, 2);
    assert!(arrived.ns.pings(span.base.spec.gateway), "it speaks");
    assert!(b.ns.pings(span.address(2)), "it is here now");
    site.ensure(&span).await;
    assert!(b.ns.pings(span.address(2)));
    for host in 0..2 {
        let again = site.labs[host].ensure(&span.on(host)).await;
        assert_eq!(again.changed, Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn flows_go_on_while_ports_come_and_go_on_other_hosts_and_end_with_their_own() {
    needs_namespaces!();
    let site = Site::new(2).await;
    let mut span = Span::new(NetworkMode::Isolated, &[0, 0, 1, 1])
        .open(1, &["tcp/80"])
        .open(2, &["tcp/80"]);
    site.ensure(&span).await;
    let a = site.up(&span, 0).await;
    let (near, far) = (site.up(&span, 1).await, site.up(&span, 2).await);
    let mut flows = Vec::new();
    for (server, port) in [(&near, 1), (&far, 2)] {
        let address = (span.address(port), WEB);
        let listener = server.ns.run(move || TcpListener::bind(address).unwrap());
        let client = a.ns.run(move || TcpStream::connect(address).unwrap());
        flows.push((client, listener.accept().unwrap().0));
    }
    let mut speak = |flow: usize| {
        let (client, server) = &mut flows[flow];
        let wait = Some(std::time::Duration::from_secs(2));
        server.set_read_timeout(wait).unwrap();
        client.write_all(b"x").unwrap();
        server.read_exact(&mut [0]).is_ok()
    };
    let gone = span.base.ports.pop().unwrap();
    span.place.pop();
    let seen = site.ensure(&span).await;
    let told = seen[0].changed.join("\n");
    assert!(told.contains(&gone.mac.to_string()), "{told}");
    assert!(!told.contains("cut") && !told.contains("rules of"), "{told}");
    assert!(speak(0) && speak(1), "both go on");
    span.base.ports.pop();
    span.place.pop();
    site.labs[0].ensure(&span.on(0)).await;
    assert!(speak(0), "the near one goes on");
    assert!(!speak(1), "nobody is there any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forward_leads_to_the_vm_of_its_own_host() {
    needs_namespaces!();
    let site = Site::new(2).await;
    let mut span = Span::new(NetworkMode::Nat, &[0, 1]).open(1, &["tcp/80"]);
    forward(&mut span.base, 8080, 1, WEB);
    site.ensure(&span).await;
    let mut b = site.up(&span, 1).await;
    b.serve("over here").await;
    let door = (HOST_OUTSIDE, 8080);
    assert_eq!(site.labs[1].outside.get(door).as_deref(), Some("over here"));
    assert_eq!(site.labs[0].outside.get(door), None);
}

/// A VM of another host is reached, somebody breaks one thing after the other, and it is reached again: each is seen, and put right by one `ensure`.
async fn broken_and_whole(dispatch: Dispatch, harms: impl Fn(&Span) -> Vec<String>) {
    let site = Site::dispatched(2, dispatch).await;
    let span = Span::new(NetworkMode::Nat, &[0, 1]).open(1, &["icmp"]);
    site.ensure(&span).await;
    let (a, _b) = (site.up(&span, 0).await, site.up(&span, 1).await);
    let inside = site.labs[0].inside(span.base.id);
    for harm in harms(&span) {
        let done = common::in_netns(&inside, &harm);
        assert!(
            done.status.success(),
            "{harm}: {}",
            String::from_utf8_lossy(&done.stderr)
        );
        let plan = site.labs[0].net.plan(span.on(0)).await.unwrap();
        assert!(!plan.is_empty(), "{harm} was not foreseen");
        let seen = site.labs[0].ensure(&span.on(0)).await;
        assert!(!seen.changed.is_empty(), "{harm} was not seen");
        let again = site.labs[0].ensure(&span.on(0)).await;
        assert_eq!(again.changed, Vec::<String>::new(), "{harm}");
        assert!(a.ns.pings(span.address(1)), "{harm}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_broke_is_whole_after_the_next_ensure() {
    needs_namespaces!();
    broken_and_whole(Dispatch::Iptables, |span| {
        let far = span.end(1).0;
        vec![
            format!("bridge fdb del {far} dev vx0 self"),
            format!("bridge fdb del {far} dev vx0 master"),
            format!("bridge fdb replace {far} dev vx0 dst 198.18.0.99 self"),
            "bridge fdb append 00:00:00:00:00:00 dev vx0 dst 198.18.0.2 self".into(),
            format!("ip neigh del {} dev br0", span.address(1)),
            "ip neigh add 10.9.0.99 lladdr 52:54:00:00:00:99 dev br0 nud permanent".into(),
            "bridge link set dev vx0 flood on learning on neigh_suppress off".into(),
            "ip link set vx0 down".into(),
            "ip link set vx0 mtu 1300".into(),
            "ip link set vx0 nomaster".into(),
            "ip link del vx0".into(),
            format!(
                "nft delete element bridge vbm remotes {{ {far} . {} }}",
                span.address(1)
            ),
            "nft flush chain bridge vbm in-vx0".into(),
            "iptables -F FORWARD".into(),
            "ip link set br0 down".into(),
        ]
    })
    .await;
}

/// What else there is to break where nft dispatches: the way to other hosts has a slot of its own.
#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_broke_of_the_rules_of_nft_is_whole_after_the_next_ensure() {
    needs_namespaces!();
    broken_and_whole(Dispatch::Nft, |_| {
        [
            "nft flush chain inet vbm-filter forward",
            "nft delete element inet vbm-filter to { 0xffff0000 }",
            "nft flush map inet vbm-filter to",
            "nft flush map bridge vbm-slots out",
            "nft delete element bridge vbm-slots in { vx0 }",
            "nft flush chain bridge vbm-slots out-vx0",
            "nft delete table bridge vbm-slots",
            "nft delete table inet vbm-filter",
            "nft add rule inet vbm-filter forward accept",
        ]
        .map(str::to_owned)
        .into()
    })
    .await;
}

/// With `--nocapture` it tells how long that takes.
#[tokio::test(flavor = "multi_thread")]
async fn one_more_remote_port_changes_three_entries_and_the_guard_however_many_ports_there_are() {
    needs_namespaces!();
    let site = Site::new(1).await;
    for ports in [100u32, 1_000] {
        let mut span = Span::new(NetworkMode::Nat, &[0, 1, 1]);
        span.base.spec = vbm_core::NetworkSpec::new(
            NetworkMode::Nat,
            vbm_core::network::parse_cidr("10.9.0.0/16").unwrap(),
        )
        .unwrap();
        for number in 3..ports {
            let mut port = common::network(NetworkMode::Nat, 1).ports.remove(0);
            port.mac = vbm_core::Mac::local(0x0a_00_00 + number);
            port.address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 9, 1, 0)) + number);
            span.base.ports.push(port);
            span.place.push(0);
        }
        let two = span.on(0);
        let mut one = two.clone();
        one.overlay.iter_mut().for_each(|o| o.remotes.truncate(1));
        site.labs[0].ensure(&one).await;
        let began = tokio::time::Instant::now();
        let seen = site.labs[0].ensure(&two).await;
        let with = began.elapsed();
        assert_eq!(seen.changed.len(), 4, "{:?}", seen.changed);
        let began = tokio::time::Instant::now();
        site.labs[0].ensure(&two).await;
        println!(
            "{ports} ports: from 1 to 2 remote ports {} ms; nothing to do {} ms",
            with.as_millis(),
            began.elapsed().as_millis()
        );
        site.labs[0].net.remove(two.id).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_the_host_does_not_have_is_told_before_anything_is_made() {
    needs_namespaces!();
    let site = Site::new(1).await;
    let clean = |span: &Span| common::footprint(&site.labs[0].host, &[span.base.id]);
    let span = Span::new(NetworkMode::Nat, &[0, 1]);
    let before = clean(&span);
    for (local, word) in [
        (at(7), "no interface of this host has that address"),
        (Ipv4Addr::new(198, 18, 9, 9), "which leaves 450 for VMs"),
        (Ipv4Addr::new(198, 18, 8, 8), "by which no other host is reached"),
    ] {
        if word.contains("450") {
            site.labs[0].host.ip("link add thin0 type veth peer name thin1");
            site.labs[0].host.ip("link set thin0 mtu 500");
            site.labs[0].host.ip(&format!("addr add {local}/32 dev thin0"));
        }
        if word.contains("reached") {
            site.labs[0].host.ip(&format!("addr add {local}/32 dev lo"));
        }
        let mut wanted = span.on(0);
        wanted.overlay.iter_mut().for_each(|o| o.local = local);
        let error = site.labs[0].net.ensure(wanted).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        let text = vbm_core::Error::from(error).to_string();
        assert!(text.contains(word) && text.contains(&local.to_string()), "{text}");
        if word.contains("450") {
            site.labs[0].host.ip("link del thin0");
        }
    }
    assert_eq!(clean(&span), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_spanned_hosts_leaves_nothing_and_its_identifier_is_free_again() {
    needs_namespaces!();
    let site = Site::new(2).await;
    let span = Span::new(NetworkMode::Nat, &[0, 1]);
    let clean = common::footprint(&site.labs[0].host, &[span.base.id]);
    site.ensure(&span).await;
    let mut other = span.twin();
    other.vni = span.vni;
    let taken = site.labs[0].net.ensure(other.on(0)).await.unwrap_err();
    assert!(taken.to_string().contains("is in use on this host"), "{taken}");
    site.labs[0].net.remove(other.base.id).await.unwrap();
    // It shrinks to one host, and spans again.
    let mut alone = span.on(0);
    alone.overlay = None;
    let seen = site.labs[0].ensure(&alone).await;
    assert_eq!(seen.mtu, 1_500);
    let inside = site.labs[0].inside(span.base.id);
    let said =
        |command: &str| String::from_utf8_lossy(&common::in_netns(&inside, command).stdout).into_owned();
    for (command, word) in [
        ("ip -o link", "vx0"),
        ("ip neigh", "PERMANENT"),
        ("nft list table bridge vbm", "vx0"),
        ("iptables-save", "vx0"),
    ] {
        assert!(!said(command).contains(word), "{command}: {}", said(command));
    }
    site.labs[0].ensure(&span.on(0)).await;
    for lab in &site.labs {
        lab.net.remove(span.base.id).await.unwrap();
    }
    assert_eq!(common::footprint(&site.labs[0].host, &[span.base.id]), clean);
    let mut reused = span.twin();
    reused.vni = span.vni;
    site.labs[0].ensure(&reused.on(0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ipv6_reaches_the_other_host_and_what_neighbours_and_routers_say_does_not() {
    needs_namespaces!();
    let site = Site::new(2).await;
    let mut span = Span::new(NetworkMode::Nat, &[0, 1, 1])
        .open(0, &["icmpv6/type=128"])
        .open(1, &["icmpv6/type=128"]);
    span.base.spec.ipv6 = Some(vbm_core::Ipv6Spec::new("fd00:9::/64".parse().unwrap()).unwrap());
    for (port, last) in span.base.ports.iter_mut().zip(["a", "b", "c"]) {
        port.address6 = Some(format!("fd00:9::{last}").parse().unwrap());
    }
    site.ensure(&span).await;
    for seen in site.ensure(&span).await {
        assert_eq!(seen.changed, Vec::<String>::new());
    }
    let tap = site.listen();
    let mut guests = Vec::new();
    for port in 0..3 {
        let guest = site.guest(&span, port).await;
        let address = span.base.ports[port].address6.unwrap();
        guest.ns.ip(&format!("addr add {address}/64 dev eth0 nodad"));
        guests.push(guest);
    }
    let pings = |from: usize, to: &str| {
        let ping = format!("busybox ping -6 -c 1 -W 2 fd00:9::{to}");
        guests[from].ns.try_sh(&ping).status.success()
    };
    assert!(pings(0, "b"), "from host to host");
    assert!(pings(1, "a"), "and back");
    assert!(!pings(0, "c"), "no group allows it there");
    assert!(pings(0, "1") && pings(1, "1"), "each host's own gateway");
    // The kernel asks again whether the other is there; nobody but the bridge hears it.
    guests[0].ns.ip("-6 neigh flush dev eth0");
    assert!(pings(0, "b"));
    site.settled(&tap).await;
    let wire = tap.wrapped(span.vni);
    let six: Vec<_> = wire.iter().filter(|w| w.ethertype() == 0x86dd).collect();
    assert!(!six.is_empty(), "it went by the tunnel");
    let said = |w: &&&common::site::Wrapped| w.frame[20] == 58 && (133..=137).contains(&w.frame[54]);
    assert_eq!(six.iter().filter(said).count(), 0, "neighbours stay at home");
    // It goes when the port goes.
    span.base.ports[1].address6 = None;
    common::open_port(&mut span.base, 1, &[]);
    site.ensure(&span).await;
    guests[0].ns.ip("-6 neigh flush dev eth0");
    let ping = "busybox ping -6 -c 1 -W 2 fd00:9::b";
    assert!(!guests[0].ns.try_sh(ping).status.success());
}
