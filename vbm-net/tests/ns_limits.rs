//! Limits of ports, with real packets: judged by what passed, never by how long it took.

#![allow(clippy::unwrap_used, reason = "a helper of a test that cannot go on panics")]
#![allow(clippy::cast_possible_truncation, reason = "test values are small")]

mod common;

use common::{Guest, Lab, eventually, network, open_port};
use std::{
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};
use tokio::time::Instant;
use vbm_core::{NetworkMode, PortLimits};
use vbm_net::{DesiredNetwork, NetworkBackend, NetworkCounters};

/// The second guest, whose port is limited.
const SECOND: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 11);
/// Of each datagram.
const PAYLOAD_BYTES: usize = 1_000;
/// With the headers of UDP, IPv4 and Ethernet.
const FRAME_BYTES: u64 = 1_000 + 8 + 20 + 14;
/// Datagrams of one burst: far more than a bucket and a queue of 1 Mbit/s hold.
const DATAGRAMS: u64 = 400;
/// 1 Mbit/s.
const SLOW_KBIT: u32 = 1_000;
/// The bucket and the queue of that rate: what passes, or waits, whatever the time.
const AT_ONCE_BYTES: u64 = 2 * 32 * 1024 + 6_250;
/// How long a connection that is refused is tried for.
const REFUSED: Duration = Duration::from_millis(600);

fn limit(
    wanted: &mut DesiredNetwork,
    port: usize,
    into: Option<u32>,
    out: Option<u32>,
    connections: Option<u32>,
) {
    wanted.ports[port].policy.limits = PortLimits {
        in_kbit_per_second: into,
        out_kbit_per_second: out,
        connections,
    };
}

/// Two guests whose neighbours are known, so that the first datagrams need not wait for ARP.
async fn guests(lab: &Lab, wanted: &DesiredNetwork) -> (Guest, Guest) {
    let (first, second) = (lab.guest(wanted, 0).await, lab.guest(wanted, 1).await);
    first.address(wanted, 0);
    second.address(wanted, 1);
    eventually("the guests see each other", || first.ns.pings(SECOND)).await;
    (first, second)
}

/// Sends the burst.
fn burst(from: &Guest, to: Ipv4Addr) {
    from.ns.run(move || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        for _ in 0..DATAGRAMS {
            // A full queue on the way is what is tested.
            let _sent = socket.send_to(&[7; PAYLOAD_BYTES], (to, 9));
        }
    });
}

async fn counters(lab: &Lab, wanted: &DesiredNetwork) -> NetworkCounters {
    lab.net.counters(wanted.id).await.unwrap()
}

/// What a rate lets pass at most within a time, in bytes.
fn most(kbit: u32, took: Duration) -> u64 {
    AT_ONCE_BYTES + u64::from(kbit) * 125 * (took.as_millis() as u64 + 1) / 1_000
}

#[tokio::test(flavor = "multi_thread")]
async fn what_reaches_a_limited_vm_is_no_more_than_its_rate_and_the_rest_is_counted_as_dropped() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let mut wanted = network(NetworkMode::Isolated, 2);
    open_port(&mut wanted, 1, &["udp", "icmp"]);
    limit(&mut wanted, 1, Some(SLOW_KBIT), None, None);
    lab.ensure(&wanted).await;
    let (first, second) = guests(&lab, &wanted).await;
    let before = counters(&lab, &wanted).await.ports[1].clone();
    let began = Instant::now();
    burst(&first, SECOND);
    eventually("all of the burst arrived or was dropped", || {
        let now = futures_now(&lab, &wanted);
        let one = &now.ports[1];
        let passed = one.received.packets - before.received.packets;
        passed + one.received_dropped >= DATAGRAMS
    })
    .await;
    let after = counters(&lab, &wanted).await.ports[1].clone();
    let passed = after.received.bytes - before.received.bytes;
    assert!(after.received_dropped > 0, "{after:?}");
    assert!(
        passed <= most(SLOW_KBIT, began.elapsed()),
        "{passed} bytes: {after:?}"
    );
    assert!(passed > FRAME_BYTES, "something passes: {after:?}");
    assert_eq!(after.sent_dropped, 0);
    let tap = vbm_net::names::tap(wanted.ports[1].id);
    let said = common::ip_tc(&lab.inside(wanted.id), &format!("qdisc show dev {tap}"));
    assert!(
        said.contains("tbf") && said.contains("rate 1Mbit burst 32Kb"),
        "{said}"
    );
    drop(second);
}

/// The counters, from a place that is not async.
fn futures_now(lab: &Lab, wanted: &DesiredNetwork) -> NetworkCounters {
    tokio::task::block_in_place(|| {
        tokio::runtime::Handle::current().block_on(async { lab.net.counters(wanted.id).await.unwrap() })
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_limited_vm_sends_is_no_more_than_its_rate_and_the_guard_still_sees_all_of_it() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let mut wanted = network(NetworkMode::Isolated, 2);
    open_port(&mut wanted, 0, &["udp", "icmp"]);
    open_port(&mut wanted, 1, &["udp", "icmp"]);
    limit(&mut wanted, 1, None, Some(SLOW_KBIT), None);
    lab.ensure(&wanted).await;
    let (first, second) = guests(&lab, &wanted).await;
    let before = counters(&lab, &wanted).await.ports[0].clone();
    let began = Instant::now();
    burst(&second, wanted.ports[0].address);
    eventually("all of the burst was sent or dropped", || {
        let now = futures_now(&lab, &wanted);
        let passed = now.ports[0].received.packets - before.received.packets;
        passed + now.ports[1].sent_dropped >= DATAGRAMS
    })
    .await;
    let after = counters(&lab, &wanted).await;
    let passed = after.ports[0].received.bytes - before.received.bytes;
    assert!(after.ports[1].sent_dropped > 0, "{after:?}");
    assert!(
        passed <= most(SLOW_KBIT, began.elapsed()),
        "{passed} bytes: {after:?}"
    );
    assert!(passed > FRAME_BYTES, "something passes: {after:?}");
    let from = |source: &str| {
        let command = format!("busybox ping -c 1 -W 1 -I {source} {}", wanted.ports[0].address);
        second.ns.try_sh(&command).status.success()
    };
    eventually("a limited VM is still answered", || from("10.9.0.11")).await;
    second.ns.ip("addr add 10.9.0.99/24 dev eth0");
    assert!(
        !from("10.9.0.99"),
        "an address that is not its own passes by the limit"
    );
    drop(first);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_limit_all_of_a_burst_passes_and_one_that_is_taken_away_leaves_nothing() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let mut wanted = network(NetworkMode::Isolated, 2);
    open_port(&mut wanted, 1, &["udp", "icmp"]);
    limit(&mut wanted, 1, Some(SLOW_KBIT), Some(SLOW_KBIT), Some(5));
    lab.ensure(&wanted).await;
    let (first, _second) = guests(&lab, &wanted).await;
    limit(&mut wanted, 1, None, None, None);
    let seen = lab.ensure(&wanted).await;
    assert!(!seen.changed.is_empty());
    let before = counters(&lab, &wanted).await.ports[1].clone();
    burst(&first, SECOND);
    eventually("all of the burst arrives", || {
        let now = futures_now(&lab, &wanted);
        now.ports[1].received.packets - before.received.packets >= DATAGRAMS
    })
    .await;
    let inside = lab.inside(wanted.id);
    let queues = common::ip_tc(&inside, "qdisc show");
    assert!(!queues.contains("tbf") && !queues.contains("ingress"), "{queues}");
    assert!(!common::ip(&format!("-n {inside} link show")).contains("lim"));
    let rules = common::in_netns(&inside, "iptables-save -t mangle").stdout;
    let rules = String::from_utf8_lossy(&rules).into_owned();
    assert!(!rules.contains("connlimit"), "{rules}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_somebody_removed_stands_again_after_the_next_ensure() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let mut wanted = network(NetworkMode::Isolated, 2);
    limit(&mut wanted, 0, Some(10_000), Some(10_000), Some(50));
    lab.ensure(&wanted).await;
    let _nic = lab.raw(&wanted, 0).await;
    assert_eq!(lab.ensure(&wanted).await.changed, Vec::<String>::new());
    let inside = lab.inside(wanted.id);
    let (tap, gate) = (
        vbm_net::names::tap(wanted.ports[0].id),
        vbm_net::names::limit(wanted.ports[0].id),
    );
    for (program, spoil) in [
        ("tc", format!("qdisc del dev {tap} root")),
        ("tc", format!("qdisc del dev {tap} ingress")),
        (
            "tc",
            format!("qdisc replace dev {tap} root tbf rate 1gbit burst 1mbit limit 1mbit"),
        ),
        ("tc", format!("filter del dev {tap} ingress")),
        ("ip", format!("link del {gate}")),
        ("ip", format!("link set {gate} down")),
        ("iptables", "-t mangle -F".to_owned()),
    ] {
        let out = common::in_netns(&inside, &format!("{program} {spoil}"));
        assert!(
            out.status.success(),
            "{spoil}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        let healed = lab.ensure(&wanted).await;
        assert!(!healed.changed.is_empty(), "nobody saw `{program} {spoil}`");
        assert_eq!(lab.ensure(&wanted).await.changed, Vec::<String>::new(), "{spoil}");
    }
}

/// Opens a connection; `None` when nobody answers in time.
fn connect(from: &Guest, to: (Ipv4Addr, u16)) -> Option<TcpStream> {
    from.ns
        .run(move || TcpStream::connect_timeout(&to.into(), REFUSED).ok())
}

/// Takes connections and holds them until the other side leaves.
fn hold(guest: &Guest, port: u16) {
    use std::io::Read;
    let listener = guest
        .ns
        .run(move || TcpListener::bind(("0.0.0.0", port)).unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || stream.read(&mut [0]));
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_has_no_more_connections_than_it_may_both_ways_together_and_refused_packets_take_no_place() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let mut wanted = network(NetworkMode::Isolated, 2);
    open_port(&mut wanted, 0, &["tcp/80"]);
    open_port(&mut wanted, 1, &["tcp/80"]);
    limit(&mut wanted, 1, None, None, Some(3));
    lab.ensure(&wanted).await;
    let (first, second) = (lab.guest(&wanted, 0).await, lab.guest(&wanted, 1).await);
    first.address(&wanted, 0);
    second.address(&wanted, 1);
    hold(&first, 80);
    hold(&second, 80);
    for _ in 0..4 {
        assert!(connect(&first, (SECOND, 81)).is_none(), "no rule lets it in");
    }
    let two: Vec<_> = (0..2).map(|_| connect(&first, (SECOND, 80))).collect();
    assert!(two.iter().all(Option::is_some), "what was refused took a place");
    let third = connect(&second, (wanted.ports[0].address, 80));
    assert!(third.is_some(), "the third, which the VM itself begins");
    assert!(connect(&first, (SECOND, 80)).is_none(), "a fourth, from outside");
    assert!(
        connect(&second, (wanted.ports[0].address, 80)).is_none(),
        "a fourth, from the VM"
    );
    assert!(counters(&lab, &wanted).await.ports[1].connections_refused > 0);
    drop(two);
    eventually("a place is free again", || {
        connect(&first, (SECOND, 80)).is_some()
    })
    .await;
    limit(&mut wanted, 1, None, None, None);
    lab.ensure(&wanted).await;
    let many: Vec<_> = (0..8).map(|_| connect(&first, (SECOND, 80))).collect();
    assert!(many.iter().all(Option::is_some), "without a limit");
    drop(third);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_counts_what_it_let_begin_and_a_port_what_passed() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let mut wanted = network(NetworkMode::Isolated, 2);
    common::group_of(&mut wanted, 0x5eed, &["tcp/80", "icmp"], &[1]);
    lab.ensure(&wanted).await;
    let (first, second) = (lab.guest(&wanted, 0).await, lab.guest(&wanted, 1).await);
    first.address(&wanted, 0);
    second.address(&wanted, 1);
    hold(&second, 80);
    let three: Vec<_> = (0..3).map(|_| connect(&first, (SECOND, 80))).collect();
    assert!(three.iter().all(Option::is_some));
    assert!(connect(&first, (SECOND, 81)).is_none());
    let all = counters(&lab, &wanted).await;
    let of = |text: &str| {
        let rule = all.rules.iter().find(|r| r.rule.to_string() == text).unwrap();
        assert_eq!(rule.group, Some(wanted.groups[0].id));
        rule.passed.packets
    };
    assert_eq!((of("tcp/80"), of("icmp")), (3, 0), "{all:?}");
    assert!(
        all.ports[1].received.packets >= 3 && all.ports[1].sent.packets >= 3,
        "{all:?}"
    );
    assert!(
        all.ports[0].sent.bytes > 0 && all.ports[0].received.bytes > 0,
        "{all:?}"
    );
}
