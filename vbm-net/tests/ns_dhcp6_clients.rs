//! The DHCPv6 clients that people run, and the kernel's own ear for routers, against the server alone: lease, renew, rebind, confirm,
//! release, decline. What went over the wire is read by tshark, not by our own code.

#![allow(clippy::unwrap_used, reason = "a helper of a test that cannot go on panics")]

mod common;
mod dhcp6_lab;
mod dhcp_lab;

use common::{Kid, eventually};
use dhcp_lab::{CLIENT_MAC, DhcpLab, SERVER_MAC, has};
use dhcp6_lab::{CLIENT_WITHIN, GATEWAY};
use nix::sys::signal::Signal;
use std::{net::Ipv6Addr, sync::Arc, time::Duration};
use vbm_core::{IdSource, Mac, NetworkId, PortId};
use vbm_net::{
    dhcp6::{Dhcp6Server, Reason, ServerConfig, duid_of},
    ra::{Advertisement, Prefix},
};

/// Renewed after 4 s, rebound after 7 s.
const SHORT: Duration = Duration::from_secs(12);
const LONG: Duration = Duration::from_secs(3_600);
const MINE: Ipv6Addr = Ipv6Addr::new(0xfd00, 5, 0, 0, 0, 0, 0, 0x100);
/// How often a client is told to give its address back, and how long each time it is waited for.
const SIGNALS_MAX: usize = 5;
const SIGNAL_AGAIN: Duration = Duration::from_secs(3);
/// How often a client is woken that sleeps too long. Shorter than from renewing to rebinding.
const NUDGE: Duration = Duration::from_millis(500);
/// As another server would be known.
const OTHER_SERVER: Mac = Mac::local(0x50_00_09);

/// A server of one port, and a router that says where to ask.
fn config(lasting: Duration) -> ServerConfig {
    let link = "fd00:5::/64".parse().unwrap();
    let mut config = ServerConfig::new(GATEWAY, SERVER_MAC, link, lasting);
    config
        .ports
        .insert(CLIENT_MAC, (PortId::from_uuid(uuid::Uuid::from_u128(7)), MINE));
    config.authoritative = true;
    config.settings.dns = vec!["fd00:5::53".parse().unwrap()];
    config.settings.search = vec!["lab.example".into()];
    config.router = Some(Advertisement {
        mac: SERVER_MAC,
        address: GATEWAY,
        lifetime: Duration::from_secs(1_800),
        managed: true,
        other: true,
        mtu: 1_400,
        prefixes: vec![Prefix {
            net: link,
            autonomous: false,
            valid: LONG,
            preferred: LONG,
        }],
        dns: config.settings.dns.clone(),
        search: config.settings.search.clone(),
        dns_lifetime: Duration::from_secs(1_800),
    });
    config
}

/// Serves in the server's namespace, where the gateway's address is.
fn serve(lab: &DhcpLab, config: ServerConfig) -> Dhcp6Server {
    lab.server.ip("addr add fe80::1/64 dev srv0 nodad");
    let runtime = tokio::runtime::Handle::current();
    let id = NetworkId::from_uuid(common::FreshIds.next());
    lab.server
        .run(move || {
            let _on_it = runtime.enter();
            Dhcp6Server::start("srv0", id, config, Arc::new(common::SystemClock))
        })
        .unwrap()
}

/// Waits until it happened so often.
async fn happened(server: &Dhcp6Server, reason: Reason, times: u64) {
    let until = tokio::time::Instant::now() + CLIENT_WITHIN;
    while server.counters().of(reason) < times {
        assert!(
            tokio::time::Instant::now() < until,
            "not {times} times {} within {} s; seen: {:?}",
            reason.word(),
            CLIENT_WITHIN.as_secs(),
            server.counters().seen()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What a client is, as far as these tests know it.
struct Client {
    program: &'static str,
    package: &'static str,
    /// Whether it keeps to its times by itself, so that it asks its own server before any.
    punctual: bool,
    /// Whether it asks if its old address is right after it was killed.
    confirms: bool,
    release: Release,
    start: fn(&DhcpLab) -> Kid,
    /// Whether it has written down, by what it said so far, that its lease is the long one.
    noted: fn(&DhcpLab) -> bool,
}

impl Client {
    /// Waits for something that the client does by the clock. One that is late is woken meanwhile: its timers go off when anything
    /// happens, such as that the kernel tells of an address.
    async fn awake(&self, lab: &DhcpLab, wait: impl Future<Output = ()>) {
        let nudges = async {
            loop {
                tokio::time::sleep(NUDGE).await;
                if !self.punctual {
                    lab.client.ip("address replace 192.0.2.1/32 dev lo");
                }
            }
        };
        tokio::select! {
            () = wait => {}
            () = nudges => {}
        }
    }
}

enum Release {
    Signal(Signal),
    Command(fn(&DhcpLab) -> Kid),
    /// It keeps it for the next time.
    Never,
}

const DHCLIENT: Client = Client {
    program: "dhclient",
    package: "isc-dhcp-client",
    punctual: true,
    confirms: true,
    release: Release::Command(|lab| dhclient(lab, "-r")),
    start: |lab| dhclient(lab, "-d"),
    noted: |lab| {
        let leases = std::fs::read_to_string(lab.path("leases")).unwrap_or_default();
        leases.contains("max-life 3600")
    },
};

fn dhclient(lab: &DhcpLab, what: &str) -> Kid {
    // Its script says by its exit code that the address is taken (dhclient-script(8)).
    let body = "settled() { for i in $(seq 100); do ip -6 -o addr show dev eth0 | grep -q ' tentative' || return 0; sleep 0.1; done; }
case $reason in
PREINIT6) settled;;
BOUND6|RENEW6|REBIND6) ip -6 addr replace $new_ip6_address/128 dev eth0; settled
  ip -6 -o addr show dev eth0 | grep -q dadfailed && { ip -6 addr del $new_ip6_address/128 dev eth0; exit 3; };;
esac";
    let script = lab.path("script");
    std::fs::write(&script, format!("#!/bin/sh\n{body}\nexit 0\n")).unwrap();
    common::sh("chmod", &["+x", script.to_str().unwrap()]);
    let d = lab.dir.path().display();
    lab.client(
        &format!("exec dhclient -6 {what} -v -sf {d}/script -cf /dev/null -lf {d}/leases -pf {d}/pid eth0"),
        &[],
    )
}

const DHCPCD: Client = Client {
    program: "dhcpcd",
    package: "dhcpcd-base",
    punctual: true,
    confirms: true,
    release: Release::Signal(Signal::SIGALRM),
    start: |lab| {
        std::fs::write(
            lab.path("dhcpcd.conf"),
            "duid\nnoipv4\nslaac hwaddr\noption dhcp6_name_servers, dhcp6_domain_search\nia_na 1\n",
        )
        .unwrap();
        let d = lab.dir.path().display();
        lab.client(
            &format!("exec dhcpcd -B -d -6 -f {d}/dhcpcd.conf -c /bin/true eth0"),
            &["/var/lib/dhcpcd", "/run"],
        )
    },
    noted: |lab| {
        let log = std::fs::read_to_string(lab.path("client.log")).unwrap_or_default();
        log.contains("vltime 3600") || log.contains("expire in 3600") || log.contains("rebind in 2160")
    },
};

const NETWORKD: Client = Client {
    program: "systemd-networkd",
    package: "systemd",
    // Its timers may be 10 s late, so that those near to each other go off together, and then it only rebinds.
    punctual: false,
    confirms: false,
    release: Release::Never,
    start: |lab| {
        // Without /sys to write to it does not wait for udev.
        let script = "mkdir -p /run/systemd/network /run/systemd/netif/links /run/systemd/netif/leases
chown -R systemd-network /run/systemd
printf '[Match]\\nName=eth0\\n[Network]\\nDHCP=ipv6\\nLinkLocalAddressing=ipv6\\nIPv6AcceptRA=yes\\n' > /run/systemd/network/10-eth0.network
mount -o remount,ro /sys
exec /lib/systemd/systemd-networkd";
        lab.client(script, &["/run"])
    },
    noted: |_| true,
};

fn can_run(client: &Client) -> bool {
    common::can_run() && has("tshark", "tshark") && has(client.program, client.package)
}

/// Lease, renew, rebind when its server answers no more, then back after a kill, then given back.
async fn lives(client: Client) {
    if !can_run(&client) {
        return;
    }
    let mut lab = DhcpLab::new();
    let server = serve(&lab, config(SHORT));
    let kid = (client.start)(&lab);
    happened(&server, Reason::Given, 1).await;
    client.awake(&lab, happened(&server, Reason::Renewed, 1)).await;
    // Another server is there now: it answers only what is asked of any.
    let mut other = config(SHORT);
    other.duid = duid_of(OTHER_SERVER);
    server.reconfigure(other.clone());
    client.awake(&lab, happened(&server, Reason::Rebound, 1)).await;
    assert!(
        server.counters().of(Reason::OtherServer) > 0 || !client.punctual,
        "it asked its own first"
    );
    other.settings.valid = LONG;
    other.settings.preferred = LONG;
    server.reconfigure(other);
    let told = || server.counters().of(Reason::Rebound) + server.counters().of(Reason::Renewed);
    let before = told();
    client
        .awake(&lab, eventually("a lease that lasts", || told() > before))
        .await;
    eventually("the client to write it down", || (client.noted)(&lab)).await;
    let kid = if client.confirms {
        kid.signal(Signal::SIGKILL);
        drop(kid);
        forget(&lab);
        let kid = (client.start)(&lab);
        happened(&server, Reason::Confirmed, 1).await;
        kid
    } else {
        kid
    };
    eventually("the address in use", || {
        let addresses = lab.client.ip("-6 -o addr show dev eth0");
        addresses
            .lines()
            .any(|l| l.contains("fd00:5::100/") && !l.contains("tentative"))
    })
    .await;
    let _other = match client.release {
        Release::Signal(signal) => {
            // dhcpcd 9.4 loses one that comes while it starts a helper for its new address.
            for _ in 0..SIGNALS_MAX {
                kid.signal(signal);
                let heard = happened(&server, Reason::Released, 1);
                if tokio::time::timeout(SIGNAL_AGAIN, heard).await.is_ok() {
                    break;
                }
            }
            None
        }
        Release::Command(command) => Some(command(&lab)),
        Release::Never => None,
    };
    if matches!(client.release, Release::Never) {
        assert!(server.leases().values().all(|l| l.address == MINE));
    } else {
        happened(&server, Reason::Released, 1).await;
        assert!(server.leases().is_empty());
    }
    assert_no_faults(&server);
    check_the_wire(&mut lab, &server);
    server.shutdown().await;
}

fn forget(lab: &DhcpLab) {
    lab.end_clients();
    lab.client.ip("-6 addr flush dev eth0 scope global");
    // Left by the one that was killed, if it writes one.
    drop(std::fs::remove_file(lab.path("pid")));
    drop(std::fs::remove_dir_all(lab.path("_run/dhcpcd")));
}

/// Nothing that an honest client sent was refused.
fn assert_no_faults(server: &Dhcp6Server) {
    let fine = [
        Reason::Advertised,
        Reason::Given,
        Reason::Renewed,
        Reason::Rebound,
        Reason::Confirmed,
        Reason::Informed,
        Reason::Released,
        Reason::Solicited,
        // Of the one that was its server before.
        Reason::OtherServer,
    ];
    for reason in Reason::ALL.iter().filter(|r| !fine.contains(r)) {
        assert_eq!(server.counters().of(*reason), 0, "{:?}", server.counters().seen());
    }
}

fn check_the_wire(lab: &mut DhcpLab, server: &Dhcp6Server) {
    let none = Vec::<Vec<String>>::new();
    let bad = lab.decoded(
        "_ws.malformed || (udp.srcport == 547 && udp.checksum.status != 1) || (icmpv6.type == 134 && icmpv6.checksum.status != 1)",
        &["frame.number", "frame.protocols"],
    );
    assert_eq!(bad, none, "malformed, or with a bad checksum");
    let counters = server.counters();
    let given = [Reason::Given, Reason::Renewed, Reason::Rebound]
        .map(|r| counters.of(r))
        .iter()
        .sum::<u64>();
    let replies = lab.decoded(
        "dhcpv6.msgtype == 7 && dhcpv6.iaaddr.ip",
        &["dhcpv6.iaaddr.ip", "eth.dst", "eth.src", "ipv6.src"],
    );
    assert_eq!(replies.len() as u64, given);
    let (mac, server_mac) = (CLIENT_MAC.to_string(), SERVER_MAC.to_string());
    for reply in &replies {
        assert_eq!(
            reply[..],
            ["fd00:5::100", mac.as_str(), server_mac.as_str(), "fe80::1"]
        );
    }
    let advertisements = lab.decoded(
        "icmpv6.type == 134",
        &[
            "ipv6.src",
            "ipv6.hlim",
            "icmpv6.nd.ra.flag.m",
            "icmpv6.nd.ra.flag.o",
            "icmpv6.nd.ra.router_lifetime",
            "icmpv6.opt.prefix",
            "icmpv6.opt.prefix.flag.l",
            "icmpv6.opt.prefix.flag.a",
            "icmpv6.opt.mtu",
            "icmpv6.opt.rdnss",
            "icmpv6.opt.dnssl",
        ],
    );
    assert!(!advertisements.is_empty());
    for ad in advertisements {
        let flags: Vec<bool> = [2, 3, 6, 7]
            .iter()
            .map(|at| matches!(ad[*at].as_str(), "1" | "True"))
            .collect();
        assert_eq!(flags, [true, true, true, false], "{ad:?}");
        let rest: Vec<&str> = [0, 1, 4, 5, 8, 9, 10].iter().map(|at| ad[*at].as_str()).collect();
        assert_eq!(
            rest,
            [
                "fe80::1",
                "255",
                "1800",
                "fd00:5::",
                "1400",
                "fd00:5::53",
                "lab.example"
            ]
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dhclient_leases_renews_rebinds_confirms_and_releases() {
    lives(DHCLIENT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dhcpcd_leases_renews_rebinds_confirms_and_releases() {
    lives(DHCPCD).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_networkd_leases_renews_and_rebinds() {
    lives(NETWORKD).await;
}

/// Somebody else has its address: the client says so, and is not answered while the address rests.
async fn declines(client: Client) {
    if !can_run(&client) {
        return;
    }
    let mut lab = DhcpLab::new();
    lab.server.ip(&format!("addr add {MINE}/64 dev srv0 nodad"));
    let server = serve(&lab, config(LONG));
    let _kid = (client.start)(&lab);
    happened(&server, Reason::Declined, 1).await;
    assert!(server.leases().is_empty());
    let told = lab.decoded("dhcpv6.msgtype == 9", &["dhcpv6.iaaddr.ip"]);
    assert_eq!(told.first().map(|t| t[0].as_str()), Some("fd00:5::100"));
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dhclient_declines_what_another_has() {
    declines(DHCLIENT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kernel_believes_the_router_and_forgets_what_it_no_longer_says() {
    if !common::can_run() {
        return;
    }
    let lab = DhcpLab::new();
    let mut config = config(LONG);
    let server = serve(&lab, config.clone());
    happened(&server, Reason::Solicited, 1).await;
    let routes = || lab.client.ip("-6 route show dev eth0");
    eventually("a default route and one to the link", || {
        let all = routes();
        all.contains("default via fe80::1") && all.contains("fd00:5::/64")
    })
    .await;
    let mtu = lab.client.sh("cat /proc/sys/net/ipv6/conf/eth0/mtu");
    assert_eq!(mtu.trim(), "1400");
    assert!(!lab.client.ip("-6 -o addr show dev eth0").contains("fd00:5:"));
    // It is no way out any more, and guests make addresses: everybody is told soon.
    let router = config.router.as_mut().unwrap();
    router.lifetime = Duration::ZERO;
    router.prefixes[0].autonomous = true;
    server.reconfigure(config);
    eventually("no default route, and an address that it made itself", || {
        let made = vbm_net::model::link_local(CLIENT_MAC)
            .to_string()
            .replace("fe80::", "fd00:5::");
        !routes().contains("default") && lab.client.ip("-6 -o addr show dev eth0").contains(&made)
    })
    .await;
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn perfdhcp_runs_clean() {
    if !common::can_run() || !has("perfdhcp", "kea-admin") {
        return;
    }
    let lab = DhcpLab::new();
    let mut config = config(LONG);
    // It is one MAC that asks for many, faster than any guest may.
    config.rate = None;
    let server = serve(&lab, config);
    eventually("an address of the link", || {
        let addresses = lab.client.ip("-6 -o addr show dev eth0 scope link");
        addresses.contains("fe80:") && !addresses.contains("tentative")
    })
    .await;
    let asked = lab
        .client
        .try_sh("perfdhcp -6 -l eth0 -r 500 -n 1000 -R 1000 -W 1000000");
    let said = String::from_utf8_lossy(&asked.stdout).into_owned();
    assert!(asked.status.success(), "{said}");
    assert_eq!(said.matches("drops: 0\n").count(), 2, "{said}");
    assert!(said.contains("Malformed packets: 0\n"), "{said}");
    // A few more than it was told to.
    for reason in [Reason::Advertised, Reason::Given] {
        assert!(server.counters().of(reason) >= 1_000, "{said}");
    }
    server.shutdown().await;
}
