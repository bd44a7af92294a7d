//! The server alone, with frames by hand and with perfdhcp: leases that outlive it, bad packets, floods, relays.

#![allow(clippy::unwrap_used, reason = "a helper of a test that cannot go on panics")]

mod common;
mod dhcp_bytes;
mod dhcp_lab;

use common::packet::{Wire, dhcp_reply};
use dhcp_bytes::{Ask, corpus, discover, frame, request_frame};
use dhcp_lab::{CLIENT_MAC, DhcpLab, SERVER, config, happened, has};
use std::{collections::BTreeMap, io, net::Ipv4Addr, time::Duration};
use vbm_core::Mac;
use vbm_net::dhcp::{
    Rate, Reason, Relays,
    book::LeaseRecord,
    frame::checksum_is_full,
    store::{AppendLog, Forgetful, LeaseStore},
};

const HOUR: Duration = Duration::from_secs(3_600);
const NOBODY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

/// DISCOVER to ACK by hand; the address.
fn lease(wire: &Wire, mac: Mac) -> Ipv4Addr {
    let offer = exchange(wire, &discover(mac)).expect("an offer");
    let mut ask = discover(mac);
    ask.kind = 3;
    ask.requested = Some(offer);
    ask.server_id = Some(SERVER);
    let taken = exchange(wire, &ask).expect("an ACK");
    assert_eq!(taken, offer);
    taken
}

/// The address in the reply to this.
fn exchange(wire: &Wire, ask: &Ask) -> Option<Ipv4Addr> {
    wire.send(&request_frame(ask.mac, ask));
    let frame = wire.next(|f| dhcp_reply(f).is_some_and(|r| r[28..34] == ask.mac.octets()))?;
    assert!(checksum_is_full(&frame));
    let reply = dhcp_reply(&frame)?;
    let address: [u8; 4] = reply[16..20].try_into().unwrap();
    (reply[242] != 6).then(|| address.into())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_outlives_the_server_that_gave_it() {
    needs_namespaces!();
    let lab = DhcpLab::new();
    let wire = Wire::on(&lab.client, "eth0");
    let log = lab.path("leases");
    let mut given = BTreeMap::new();
    for round in 0..3u32 {
        let server = lab.serve(config(HOUR), AppendLog::open(&log).unwrap()).await;
        for n in round * 10..round * 10 + 10 {
            given.insert(n, lease(&wire, Mac::local(n)));
        }
        let held: Vec<_> = server.clients().await;
        assert_eq!(held.len(), given.len(), "none was forgotten");
        server.shutdown().await;
    }
    let server = lab.serve(config(HOUR), AppendLog::open(&log).unwrap()).await;
    for (n, address) in &given {
        let mut renew = discover(Mac::local(*n));
        (renew.kind, renew.requested) = (3, Some(*address));
        assert_eq!(
            exchange(&wire, &renew),
            Some(*address),
            "INIT-REBOOT after the restart"
        );
    }
    assert_eq!(server.counters().of(Reason::Rebooted), 30);
    server.shutdown().await;
}

/// Fails every commit.
struct Broken;
impl LeaseStore for Broken {
    fn load(&mut self) -> io::Result<Vec<LeaseRecord>> {
        Ok(Vec::new())
    }
    fn commit(&mut self, _: &[LeaseRecord]) -> io::Result<()> {
        Err(io::Error::other("the disk is gone"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_cannot_be_kept_is_not_acknowledged() {
    needs_namespaces!();
    let mut lab = DhcpLab::new();
    let wire = Wire::on(&lab.client, "eth0");
    let server = lab.serve(config(HOUR), Broken).await;
    let mac = Mac::local(1);
    let offer = exchange(&wire, &discover(mac)).expect("an offer is kept nowhere");
    let mut ask = discover(mac);
    (ask.kind, ask.requested, ask.server_id) = (3, Some(offer), Some(SERVER));
    wire.send(&request_frame(mac, &ask));
    happened(&server, Reason::StoreFailed, 1).await;
    // The server still answers what rests on nothing.
    assert_eq!(
        exchange(&wire, &discover(Mac::local(2))),
        Some(Ipv4Addr::new(10, 5, 0, 101))
    );
    server.shutdown().await;
    if has("tshark", "tshark") {
        assert!(lab.decoded("dhcp.option.dhcp == 5", &["frame.number"]).is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_packets_are_counted_by_reason_and_cost_nobody_anything() {
    needs_namespaces!();
    let lab = DhcpLab::new();
    let wire = Wire::on(&lab.client, "eth0");
    let mut config = config(HOUR);
    config.rate = None;
    let server = lab.serve(config, Forgetful).await;
    let mut expected = BTreeMap::<&str, u64>::new();
    for (_, payload, why) in corpus(CLIENT_MAC) {
        wire.send(&frame(CLIENT_MAC, NOBODY, &payload));
        *expected.entry(why).or_default() += 1;
    }
    // Headers that lie.
    let whole = frame(CLIENT_MAC, NOBODY, &[0; 300]);
    for (at, byte) in [(16, 0xff), (17, 19), (38, 0xff)] {
        let mut lie = whole.clone();
        lie[at] = byte;
        wire.send(&lie);
        *expected.entry("not-datagram").or_default() += 1;
    }
    // A good one, cut at each byte behind its UDP header with the lengths put right: it is short, cut in an option, or whole.
    let ask = discover(CLIENT_MAC);
    let message = dhcp_bytes::message(&ask, &dhcp_bytes::options(&ask));
    let mut total = expected.values().sum::<u64>();
    for length in 0..message.len() {
        wire.send(&frame(CLIENT_MAC, NOBODY, &message[..length]));
        total += 1;
        if total.is_multiple_of(50) {
            // No faster than they are read: what the socket cannot hold is counted by nobody.
            common::eventually("those so far", || {
                server.counters().seen().values().sum::<u64>() >= total
            })
            .await;
        }
    }
    common::eventually("all of them", || {
        server.counters().seen().values().sum::<u64>() >= total
    })
    .await;
    let seen = server.counters().seen();
    for (why, times) in &expected {
        assert!(
            seen.get(why).is_some_and(|n| n >= times),
            "{why}: {times} of {seen:?}"
        );
    }
    let known: u64 = seen
        .iter()
        .filter(|(word, _)| !expected.contains_key(*word) && **word != "offered")
        .map(|(_, n)| n)
        .sum();
    assert_eq!(known, 0, "{seen:?}");
    assert_eq!(lease(&wire, CLIENT_MAC), Ipv4Addr::new(10, 5, 0, 100));
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_floods_is_not_answered_and_another_is() {
    needs_namespaces!();
    let lab = DhcpLab::new();
    let wire = Wire::on(&lab.client, "eth0");
    let mut config = config(HOUR);
    config.rate = Some(Rate {
        burst: 5,
        per_second: 1,
    });
    let server = lab.serve(config, Forgetful).await;
    for _ in 0..100 {
        wire.send(&request_frame(CLIENT_MAC, &discover(CLIENT_MAC)));
    }
    happened(&server, Reason::RateLimited, 90).await;
    assert!(server.counters().of(Reason::Offered) <= 10);
    assert_eq!(lease(&wire, Mac::local(9)), Ipv4Addr::new(10, 5, 0, 101));
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn perfdhcp_runs_clean_by_a_relay_and_every_ack_is_kept() {
    needs_namespaces!();
    if !has("perfdhcp", "kea-admin") || !has("tshark", "tshark") {
        return;
    }
    let mut lab = DhcpLab::new();
    // perfdhcp speaks as a relay: its own address is `giaddr`, and its kernel checks the checksum.
    let relay = Ipv4Addr::new(10, 5, 0, 2);
    lab.client.ip(&format!("addr add {relay}/24 dev eth0"));
    let mut config = config(HOUR);
    config.relays = Relays::Only([relay].into());
    let log = lab.path("leases");
    let server = lab.serve(config, AppendLog::open(&log).unwrap()).await;
    let out = lab
        .client
        .sh("perfdhcp -4 -l eth0 -r 100 -R 80 -n 80 -u -W 500000 10.5.0.1");
    let numbers = |name: &str| -> Vec<String> {
        out.lines()
            .filter_map(|l| l.strip_prefix(name))
            .map(|v| v.trim().to_owned())
            .collect()
    };
    assert_eq!(numbers("drops:"), ["0", "0"], "{out}");
    assert_eq!(numbers("rejected leases:"), ["0", "0"], "{out}");
    assert_eq!(numbers("non unique addresses:"), ["0", "0"], "{out}");
    assert_eq!(numbers("received packets:"), ["80", "80"], "{out}");
    assert_eq!(server.counters().of(Reason::Selected), 80);
    server.shutdown().await;
    assert_eq!(AppendLog::open(&log).unwrap().load().unwrap().len(), 80);
    let bad = lab.decoded(
        "dhcp && (_ws.malformed || (udp.srcport == 67 && ip.src == 10.5.0.1 && udp.checksum.status != 1))",
        &["frame.number"],
    );
    assert!(bad.is_empty(), "{bad:?}");
    let to = lab.decoded(
        "dhcp.option.dhcp == 5",
        &["ip.dst", "udp.dstport", "dhcp.ip.relay"],
    );
    assert!(to.iter().all(|r| r == &["10.5.0.2", "67", "10.5.0.2"]), "{to:?}");
}
