//! The clients that people run, against the server alone: lease, renew, rebind, INIT-REBOOT, release, decline. What went over the wire
//! is read by tshark, not by our own code.

#![allow(clippy::unwrap_used, reason = "a helper of a test that cannot go on panics")]

mod common;
mod dhcp_lab;

use common::{Kid, eventually};
use dhcp_lab::{CLIENT_MAC, DhcpLab, SERVER, config, happened, has};
use nix::sys::signal::Signal;
use std::{net::Ipv4Addr, time::Duration};
use vbm_net::dhcp::{DhcpServer, Reason, store::Forgetful};

/// Renewed after 6 s, rebound after 10.5 s.
const SHORT: Duration = Duration::from_secs(12);
const LONG: Duration = Duration::from_secs(3_600);

/// What a client is, as far as these tests know it.
struct Client {
    program: &'static str,
    package: &'static str,
    /// Whether it asks for its old address after it was killed, without a DISCOVER.
    reboots: bool,
    /// What makes it look whether somebody else has the address.
    declines: bool,
    release: Release,
    start: fn(&DhcpLab) -> Kid,
    /// Whether it has written down, by what it said so far, that its lease is the long one.
    noted: fn(&str) -> bool,
}

enum Release {
    Signal(Signal),
    Command(fn(&DhcpLab) -> Kid),
}

const UDHCPC: Client = Client {
    program: "udhcpc",
    package: "udhcpc",
    reboots: false,
    declines: true,
    release: Release::Signal(Signal::SIGUSR2),
    start: |lab| {
        let script = script(
            lab,
            "case $1 in bound|renew) ip addr flush dev eth0; ip addr add $ip/$mask dev eth0;; esac",
        );
        lab.client(
            &format!("exec busybox udhcpc -a500 -i eth0 -f -t 10 -T 1 -s {script}"),
            &[],
        )
    },
    noted: |_| true,
};

const DHCLIENT: Client = Client {
    program: "dhclient",
    package: "isc-dhcp-client",
    reboots: true,
    declines: true,
    release: Release::Command(|lab| dhclient(lab, "-r")),
    start: |lab| dhclient(lab, "-d"),
    noted: |log| {
        let seconds = |line: &str| line.split("renewal in ").nth(1)?.split(' ').next()?.parse().ok();
        log.lines().filter_map(seconds).any(|s: u32| s > 60)
    },
};

fn dhclient(lab: &DhcpLab, what: &str) -> Kid {
    // Its script says by its exit code that the address is taken (dhclient-script(8)).
    let script = script(
        lab,
        "case $reason in BOUND|RENEW|REBIND|REBOOT) ip addr flush dev eth0; busybox arping -D -q -c 2 -I eth0 $new_ip_address || exit 1; ip addr add $new_ip_address/24 dev eth0;; esac",
    );
    // By itself it waits 10 s before it asks again: then the lease would have ended, and nothing be rebound.
    std::fs::write(
        lab.path("dhclient.conf"),
        "initial-interval 1;\nbackoff-cutoff 2;\n",
    )
    .unwrap();
    let d = lab.dir.path().display();
    lab.client(
        &format!(
            "exec dhclient -4 {what} -v -sf {script} -cf {d}/dhclient.conf -lf {d}/leases -pf {d}/pid eth0"
        ),
        &[],
    )
}

const DHCPCD: Client = Client {
    program: "dhcpcd",
    package: "dhcpcd-base",
    reboots: true,
    declines: true,
    release: Release::Signal(Signal::SIGALRM),
    start: |lab| {
        std::fs::write(
            lab.path("dhcpcd.conf"),
            "clientid\noption domain_name_servers, domain_name, interface_mtu, classless_static_routes\nnoipv6\nreboot 5\n",
        )
        .unwrap();
        let d = lab.dir.path().display();
        lab.client(
            &format!("exec dhcpcd -B -d -4 -f {d}/dhcpcd.conf -c /bin/true eth0"),
            &["/var/lib/dhcpcd", "/run"],
        )
    },
    noted: |log| {
        let behind = log.split("for 3600 seconds").nth(1).unwrap_or_default();
        behind.contains("adding IP address")
    },
};

const NETWORKD: Client = Client {
    program: "systemd-networkd",
    package: "systemd",
    reboots: false,
    declines: false,
    release: Release::Signal(Signal::SIGTERM),
    start: |lab| {
        // Without /sys to write to it does not wait for udev.
        let script = "mkdir -p /run/systemd/network /run/systemd/netif/links /run/systemd/netif/leases
chown -R systemd-network /run/systemd
printf '[Match]\\nName=eth0\\n[Network]\\nDHCP=ipv4\\nLinkLocalAddressing=no\\nIPv6AcceptRA=no\\n[DHCPv4]\\nClientIdentifier=mac\\n' > /run/systemd/network/10-eth0.network
mount -o remount,ro /sys
exec /lib/systemd/systemd-networkd";
        lab.client(script, &["/run"])
    },
    noted: |_| true,
};

/// An executable script with this body.
fn script(lab: &DhcpLab, body: &str) -> String {
    let path = lab.path("script");
    std::fs::write(&path, format!("#!/bin/sh\n{body}\nexit 0\n")).unwrap();
    common::sh("chmod", &["+x", path.to_str().unwrap()]);
    path.to_str().unwrap().to_owned()
}

fn can_run(client: &Client) -> bool {
    common::can_run() && has("tshark", "tshark") && has(client.program, client.package)
}

/// Lease, renew to us alone, rebind to everybody, then back after a kill, then given back.
async fn lives(client: Client) {
    if !can_run(&client) {
        return;
    }
    let mut lab = DhcpLab::new();
    let server = lab.serve(config(SHORT), Forgetful).await;
    let kid = (client.start)(&lab);
    happened(&server, Reason::Selected, 1).await;
    happened(&server, Reason::Renewed, 1).await;
    // Nobody answers for the server's address any more: only by broadcast is it heard.
    lab.server.ip(&format!("addr del {SERVER}/24 dev srv0"));
    lab.client.ip("neigh flush dev eth0");
    happened(&server, Reason::Rebound, 1).await;
    lab.server.ip(&format!("addr add {SERVER}/24 dev srv0"));
    server.reconfigure(config(LONG));
    // With a lease that lasts it can be killed and begun again.
    let renewed = server.counters().of(Reason::Rebound) + server.counters().of(Reason::Renewed);
    eventually("a lease that lasts", || {
        server.counters().of(Reason::Rebound) + server.counters().of(Reason::Renewed) > renewed
    })
    .await;
    eventually("the client to write it down", || {
        (client.noted)(&std::fs::read_to_string(lab.path("client.log")).unwrap_or_default())
    })
    .await;
    let kid = if client.reboots {
        kid.signal(Signal::SIGKILL);
        drop(kid);
        forget(&lab);
        let kid = (client.start)(&lab);
        happened(&server, Reason::Rebooted, 1).await;
        kid
    } else {
        kid
    };
    give_back(&lab, &client, kid, &server).await;
    assert_no_faults(&server);
    check_the_wire(&mut lab, &server);
    server.shutdown().await;
}

fn forget(lab: &DhcpLab) {
    lab.end_clients();
    lab.client.ip("addr flush dev eth0");
    // Left by the one that was killed, if it writes one.
    drop(std::fs::remove_file(lab.path("pid")));
    drop(std::fs::remove_dir_all(lab.path("_run/dhcpcd")));
}

async fn give_back(lab: &DhcpLab, client: &Client, kid: Kid, server: &DhcpServer) {
    // Some look first whether somebody else has it.
    eventually("the address in use", || {
        lab.client.ip("-o addr show dev eth0").contains("10.5.0.100")
    })
    .await;
    let _other = match client.release {
        Release::Signal(signal) => {
            kid.signal(signal);
            None
        }
        Release::Command(command) => Some(command(lab)),
    };
    happened(server, Reason::Released, 1).await;
    assert_eq!(server.clients().await, []);
}

/// Nothing that an honest client sent was refused.
fn assert_no_faults(server: &DhcpServer) {
    let fine = [
        Reason::Offered,
        Reason::Selected,
        Reason::Renewed,
        Reason::Rebound,
        Reason::Rebooted,
        Reason::Released,
        // A client that was just killed asks again in the middle.
        Reason::NotHeld,
    ];
    for reason in Reason::ALL.iter().filter(|r| !fine.contains(r)) {
        assert_eq!(server.counters().of(*reason), 0, "{:?}", server.counters().seen());
    }
}

fn check_the_wire(lab: &mut DhcpLab, server: &DhcpServer) {
    let bad = lab.decoded(
        "dhcp && udp.srcport == 67 && (_ws.malformed || udp.checksum.status != 1 || ip.checksum.status != 1)",
        &["frame.number", "udp.checksum.status"],
    );
    assert_eq!(
        bad,
        Vec::<Vec<String>>::new(),
        "malformed, or with a bad checksum"
    );
    let acks = lab.decoded(
        "dhcp.option.dhcp == 5",
        &[
            "dhcp.ip.your",
            "dhcp.option.dhcp_server_id",
            "dhcp.option.subnet_mask",
            "dhcp.option.router",
            "dhcp.hw.mac_addr",
        ],
    );
    let counters = server.counters();
    let answered = [
        Reason::Selected,
        Reason::Renewed,
        Reason::Rebound,
        Reason::Rebooted,
    ]
    .map(|r| counters.of(r))
    .iter()
    .sum::<u64>();
    assert_eq!(acks.len() as u64, answered);
    let mac = CLIENT_MAC.to_string();
    for ack in acks {
        assert_eq!(
            ack,
            [
                "10.5.0.100",
                "10.5.0.1",
                "255.255.255.0",
                "10.5.0.1",
                mac.as_str()
            ]
        );
    }
    let to = |filter: &str| lab_addresses(lab.decoded(filter, &["ip.dst"]));
    let server = vec![SERVER];
    let everybody = vec![Ipv4Addr::BROADCAST];
    let mut to = to;
    assert_eq!(
        to("dhcp.option.dhcp == 3 && ip.dst == 10.5.0.1 && dhcp.ip.client == 10.5.0.100"),
        server,
        "renewed"
    );
    assert_eq!(
        to("dhcp.option.dhcp == 3 && ip.dst == 255.255.255.255 && dhcp.ip.client == 10.5.0.100"),
        everybody,
        "rebound"
    );
    assert_eq!(to("dhcp.option.dhcp == 7"), server, "released");
}

/// Each once.
fn lab_addresses(rows: Vec<Vec<String>>) -> Vec<Ipv4Addr> {
    let mut all: Vec<Ipv4Addr> = rows.iter().map(|r| r[0].parse().unwrap()).collect();
    all.dedup();
    all
}

/// Somebody else has the first address: the client says so, and gets another.
async fn declines(client: Client) {
    if !can_run(&client) {
        return;
    }
    assert!(client.declines);
    let mut lab = DhcpLab::new();
    lab.server.ip("addr add 10.5.0.100/24 dev srv0");
    let server = lab.serve(config(LONG), Forgetful).await;
    let _kid = (client.start)(&lab);
    happened(&server, Reason::Declined, 1).await;
    happened(&server, Reason::Selected, 2).await;
    let held = server.clients().await;
    assert_eq!(held.len(), 2, "{held:?}");
    for lease in &held {
        let expected = lease.client.is_none();
        assert_eq!(
            lease.address == Ipv4Addr::new(10, 5, 0, 100),
            expected,
            "{held:?}"
        );
    }
    let told = lab.decoded("dhcp.option.dhcp == 4", &["dhcp.option.requested_ip_address"]);
    assert_eq!(told, [["10.5.0.100"]]);
    let acks = lab.decoded("dhcp.option.dhcp == 5", &["dhcp.ip.your"]);
    assert_eq!(acks, [["10.5.0.100"], ["10.5.0.101"]]);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn udhcpc_leases_renews_rebinds_and_releases() {
    lives(UDHCPC).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dhclient_leases_renews_rebinds_reboots_and_releases() {
    lives(DHCLIENT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dhcpcd_leases_renews_rebinds_reboots_and_releases() {
    lives(DHCPCD).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_networkd_leases_renews_rebinds_and_releases() {
    lives(NETWORKD).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn udhcpc_declines_what_another_has() {
    declines(UDHCPC).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dhclient_declines_what_another_has() {
    declines(DHCLIENT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dhcpcd_declines_what_another_has() {
    declines(DHCPCD).await;
}
