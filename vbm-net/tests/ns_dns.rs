//! DNS on the gateway, asked by bind's `dig` and busybox's `nslookup`, in real namespaces.

#![allow(clippy::unwrap_used, reason = "a helper of a test that cannot go on panics")]
#![allow(clippy::cast_possible_truncation, reason = "test values are small")]

mod common;

use common::{Guest, Lab, OUTSIDE, eventually, network, open_port};
use std::{
    net::{Ipv4Addr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use vbm_core::NetworkMode;
use vbm_net::{DesiredNetwork, NetworkBackend, dns::DnsSeen};

const GATEWAY: &str = "10.9.0.1";
/// What the server outside says the world is.
const WORLD: [u8; 4] = [198, 51, 100, 7];

fn needs_dig() {
    let found = ["/usr/bin/dig", "/bin/dig"]
        .iter()
        .any(|p| std::path::Path::new(p).exists());
    assert!(
        found,
        "this test needs the program dig (Debian: bind9-dnsutils), or VBM_LEAVE_OUT=namespaces"
    );
}

/// A network whose names are asked by guests, with nothing told of other servers.
fn named(mode: NetworkMode, ports: u8) -> DesiredNetwork {
    let mut wanted = network(mode, ports);
    wanted.spec.dns.clear();
    wanted
}

impl Asks for Guest {
    fn ns(&self) -> &common::Ns {
        &self.ns
    }
}

trait Asks {
    fn ns(&self) -> &common::Ns;
    /// What `dig` prints; also when it got no answer.
    fn dig(&self, words: &str) -> String {
        let out = self
            .ns()
            .try_sh(&format!("dig +time=2 +tries=1 @{GATEWAY} {words}"));
        String::from_utf8_lossy(&out.stdout).into_owned()
    }
    fn short(&self, words: &str) -> String {
        self.dig(&format!("+short {words}")).trim().to_owned()
    }
}

async fn seen(lab: &Lab) -> DnsSeen {
    lab.net.inventory().await.unwrap()[0].services.dns.unwrap()
}

/// Names that begin so are never answered.
const SILENT_ABOUT: &[u8] = b"hang";

/// A DNS server outside that answers each A question with [`WORLD`], and counts them. Ends when dropped.
struct Server {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    fn new(lab: &Lab) -> Self {
        let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&asked));
        let socket = lab.outside.run(|| UdpSocket::bind((OUTSIDE, 53)).unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 2_000];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else {
                    continue;
                };
                counted.fetch_add(1, Ordering::Relaxed);
                if buffer[13..].starts_with(SILENT_ABOUT) {
                    continue;
                }
                let answer = answer(&buffer[..length]);
                // A forged answer first: another id.
                let mut forged = answer.clone();
                forged[0] ^= 0xff;
                if let Some(last) = forged.last_mut() {
                    *last ^= 0xff;
                }
                let _sent = socket.send_to(&forged, from);
                let _sent = socket.send_to(&answer, from);
            }
        });
        Self {
            stop,
            asked,
            thread: Some(thread),
        }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

/// By hand: the question with one A record behind it, of 60 s.
fn answer(question: &[u8]) -> Vec<u8> {
    let mut end = 12;
    while question[end] != 0 {
        end += usize::from(question[end]) + 1;
    }
    let mut bytes = question[..end + 5].to_vec();
    bytes[2..4].copy_from_slice(&[0x81, 0x80]);
    bytes[6..12].copy_from_slice(&[0, 1, 0, 0, 0, 0]);
    bytes.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
    bytes.extend(WORLD);
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn guests_find_each_other_by_name_and_names_by_address() {
    needs_namespaces!();
    needs_dig();
    let lab = Lab::new().await;
    let wanted = named(NetworkMode::Isolated, 2);
    lab.ensure(&wanted).await;
    let guest = lab.guest(&wanted, 0).await;
    guest.dhcp();
    let told = guest.told("bound").unwrap();
    assert!(
        told.contains("dns='10.9.0.1'"),
        "the gateway is told as server: {told}"
    );
    assert_eq!(guest.short("guest-1.lab.example A"), "10.9.0.11");
    assert_eq!(guest.short("guest-1 A"), "10.9.0.11", "by its plain name");
    assert_eq!(
        guest.short("GUEST-1.Lab.Example A +tcp"),
        "10.9.0.11",
        "by TCP, in any case"
    );
    assert_eq!(guest.short("-x 10.9.0.11"), "guest-1.lab.example.");
    assert_eq!(guest.short("-x 10.9.0.1"), "gateway.lab.example.");
    for (words, status, soa) in [
        ("guest-1.lab.example AAAA", "NOERROR", "lab.example."),
        ("guest-9.lab.example A", "NXDOMAIN", "lab.example."),
        ("-x 10.9.0.99", "NXDOMAIN", "0.9.10.in-addr.arpa."),
    ] {
        let said = guest.dig(words);
        assert!(
            said.contains(&format!("status: {status}")) && said.contains("ANSWER: 0"),
            "{words}: {said}"
        );
        assert!(
            said.lines().any(|l| l.starts_with(soa) && l.contains("SOA")),
            "{words}: {said}"
        );
    }
    // A second reader.
    let out = guest.ns.try_sh("busybox nslookup guest-1.lab.example 10.9.0.1");
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(said.contains("10.9.0.11"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_leave_its_port_asks_nobody_and_who_may_learns_addresses_of_both_families() {
    needs_namespaces!();
    needs_dig();
    let lab = Lab::new().await;
    let mut wanted = named(NetworkMode::Isolated, 3);
    wanted.spec.ipv6 = Some(vbm_core::Ipv6Spec::new("fd00:9::/64".parse().unwrap()).unwrap());
    wanted.ports[1].address6 = Some("fd00:9::b".parse().unwrap());
    open_port(&mut wanted, 0, &["egress:udp/53@10.9.0.1/32"]);
    open_port(&mut wanted, 2, &["egress:tcp/80"]);
    lab.ensure(&wanted).await;
    let (asks, shut) = (lab.guest(&wanted, 0).await, lab.guest(&wanted, 2).await);
    asks.dhcp();
    shut.dhcp();
    assert_eq!(asks.short("guest-1 A"), "10.9.0.11");
    assert_eq!(asks.short("guest-1.lab.example AAAA"), "fd00:9::b");
    assert_eq!(asks.short("-x fd00:9::b"), "guest-1.lab.example.");
    for (guest, words) in [(&asks, "guest-1 A +tcp"), (&shut, "guest-1 A")] {
        let said = guest.dig(words);
        assert!(!said.contains("10.9.0.11"), "{words}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_world_is_asked_once_for_all_by_the_hosts_servers_or_the_networks() {
    needs_namespaces!();
    needs_dig();
    let mut lab = Lab::new().await;
    let server = Server::new(&lab);
    let list = lab.dir.path().join("resolv.conf");
    std::fs::write(&list, format!("nameserver {OUTSIDE}\n")).unwrap();
    lab.net.shutdown().await;
    lab.net = vbm_net::HostNetwork::open(lab.config().with_resolver_list(&list))
        .await
        .unwrap();
    let mut wanted = named(NetworkMode::Nat, 2);
    lab.ensure(&wanted).await;
    let (a, b) = (lab.guest(&wanted, 0).await, lab.guest(&wanted, 1).await);
    a.dhcp();
    b.dhcp();
    let world = Ipv4Addr::from(WORLD).to_string();
    assert_eq!(
        a.short("www.example.org A"),
        world,
        "though a forged answer came first"
    );
    assert_eq!(b.short("WWW.example.org A"), world);
    assert_eq!(server.asked(), 1, "the second comes from the cache");
    let said = b.dig("www.example.org A");
    assert!(said.contains(" ra") && !said.contains(" aa "), "{said}");
    let counts = seen(&lab).await;
    assert_eq!((counts.forwarded, counts.cached), (1, 2));
    // Servers of its own: those are asked, and nothing that the others said is kept.
    wanted.spec.dns_upstreams = vec![OUTSIDE.into()];
    std::fs::write(&list, "nameserver 203.0.113.1\n").unwrap();
    let seen = lab.ensure(&wanted).await;
    assert_eq!(seen.changed, ["DNS names"]);
    assert_eq!(a.short("www.example.org A"), world);
    assert_eq!(server.asked(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_isolated_network_asks_nobody() {
    needs_namespaces!();
    needs_dig();
    let mut lab = Lab::new().await;
    let server = Server::new(&lab);
    let list = lab.dir.path().join("resolv.conf");
    std::fs::write(&list, format!("nameserver {OUTSIDE}\n")).unwrap();
    lab.net.shutdown().await;
    lab.net = vbm_net::HostNetwork::open(lab.config().with_resolver_list(&list))
        .await
        .unwrap();
    let wanted = named(NetworkMode::Isolated, 1);
    lab.ensure(&wanted).await;
    let guest = lab.guest(&wanted, 0).await;
    guest.dhcp();
    let said = guest.dig("www.example.org A");
    assert!(
        said.contains("status: REFUSED") && !said.contains(" ra"),
        "{said}"
    );
    assert_eq!(server.asked(), 0);
    assert_eq!(seen(&lab).await.refused, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_silent_is_told_as_a_failure_and_another_is_asked() {
    needs_namespaces!();
    needs_dig();
    let lab = Lab::new().await;
    let mut wanted = named(NetworkMode::Nat, 1);
    // Nobody is there: what is sent is never answered.
    wanted.spec.dns_upstreams = vec!["203.0.113.1".parse().unwrap()];
    lab.ensure(&wanted).await;
    let guest = lab.guest(&wanted, 0).await;
    guest.dhcp();
    let said = String::from_utf8_lossy(
        &guest
            .ns
            .try_sh(&format!("dig +time=9 +tries=1 @{GATEWAY} www.example.org A"))
            .stdout,
    )
    .into_owned();
    assert!(said.contains("status: SERVFAIL"), "{said}");
    let server = Server::new(&lab);
    wanted.spec.dns_upstreams.push(OUTSIDE.into());
    lab.ensure(&wanted).await;
    let said = String::from_utf8_lossy(
        &guest
            .ns
            .try_sh(&format!(
                "dig +time=9 +tries=1 +short @{GATEWAY} www.example.org A"
            ))
            .stdout,
    )
    .into_owned();
    assert_eq!(said.trim(), Ipv4Addr::from(WORLD).to_string());
    assert_eq!(server.asked(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_networks_with_the_same_addresses_and_names_never_see_each_other() {
    needs_namespaces!();
    needs_dig();
    let lab = Lab::new().await;
    let (mut a, mut b) = (named(NetworkMode::Nat, 2), named(NetworkMode::Nat, 2));
    a.ports[1].hostname = "db".parse().unwrap();
    b.ports[1].hostname = "db".parse().unwrap();
    b.ports[1].address = [10, 9, 0, 77].into();
    a.ports[0].hostname = "only-a".parse().unwrap();
    b.ports[0].hostname = "only-b".parse().unwrap();
    lab.ensure(&a).await;
    lab.ensure(&b).await;
    for (net, other, db) in [(&a, "only-b", "10.9.0.11"), (&b, "only-a", "10.9.0.77")] {
        let guest = lab.guest(net, 0).await;
        guest.dhcp();
        assert_eq!(guest.short("db.lab.example A"), db);
        assert!(
            guest
                .dig(&format!("{other}.lab.example A"))
                .contains("status: NXDOMAIN")
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_outside_the_network_is_answered() {
    needs_namespaces!();
    needs_dig();
    let lab = Lab::new().await;
    let wanted = named(NetworkMode::Nat, 1);
    let seen = lab.ensure(&wanted).await;
    let inner = Ipv4Addr::from(u32::from(seen.transit.unwrap().network()) + 1);
    for (ns, server) in [
        (&lab.host, inner.to_string()),
        (&lab.outside, common::HOST_OUTSIDE.to_string()),
    ] {
        for way in ["", "+tcp"] {
            let out = ns.try_sh(&format!(
                "dig +time=1 +tries=1 {way} @{server} guest-0.lab.example"
            ));
            assert!(
                !out.status.success(),
                "{server} {way}: {}",
                String::from_utf8_lossy(&out.stdout)
            );
        }
    }
    // The gateway's address, by a route through the transit: not by that door either.
    lab.host.ip(&format!("route add 10.9.0.1/32 via {inner}"));
    let out = lab
        .host
        .try_sh(&format!("dig +time=1 +tries=1 @{GATEWAY} guest-0.lab.example"));
    assert!(!out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
    assert_eq!(
        self::seen(&lab).await,
        DnsSeen::default(),
        "nothing of it even arrived"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_daemon_answers_again_and_what_is_switched_off_is_gone() {
    needs_namespaces!();
    needs_dig();
    let mut lab = Lab::new().await;
    let mut wanted = named(NetworkMode::Nat, 1);
    lab.ensure(&wanted).await;
    let guest = lab.guest(&wanted, 0).await;
    guest.dhcp();
    assert_eq!(guest.short("guest-0 +tcp"), "10.9.0.10");
    lab.reopen().await;
    let seen = lab.ensure(&wanted).await;
    assert_eq!(seen.changed, ["DHCP server", "DNS server", "metadata service"]);
    assert_eq!(guest.short("guest-0 +tcp"), "10.9.0.10");
    assert!(lab.ensure(&wanted).await.changed.is_empty());
    // A new name is there at once.
    wanted.ports[0].hostname = "renamed".parse().unwrap();
    lab.ensure(&wanted).await;
    assert_eq!(guest.short("renamed"), "10.9.0.10");
    wanted.spec.serve_dns = false;
    lab.ensure(&wanted).await;
    assert!(guest.dig("renamed").contains("no servers could be reached"));
}

/// Waits until the server has counted so many datagrams of any kind.
async fn counted(lab: &Lab, total: u64) {
    for _ in 0..500 {
        let now = seen(lab).await;
        if now.malformed + now.questions + now.limited >= total {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{:?} of {total}", seen(lab).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_counted_and_a_port_that_floods_silences_only_itself() {
    needs_namespaces!();
    needs_dig();
    let lab = Lab::new().await;
    let wanted = named(NetworkMode::Nat, 2);
    lab.ensure(&wanted).await;
    let (a, b) = (lab.guest(&wanted, 0).await, lab.guest(&wanted, 1).await);
    a.dhcp();
    b.dhcp();
    let corpus = common::garbage(53);
    let sent = corpus.len() as u64;
    // A few at a time: what a socket has no room for is nobody's to count.
    for (at, few) in corpus.chunks(32).enumerate() {
        let (few, total) = (few.to_vec(), (at * 32 + few.len()) as u64);
        a.ns.run(move || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            for bytes in &few {
                socket.send_to(bytes, (GATEWAY, 53)).unwrap();
            }
        });
        counted(&lab, total).await;
    }
    assert!(
        seen(&lab).await.malformed > sent / 2,
        "{:?} of {sent}",
        seen(&lab).await
    );
    // By TCP too: lengths that lie, and streams that end early.
    a.ns.run(move || {
        use std::io::Write;
        for bytes in corpus.iter().take(40) {
            let mut stream = std::net::TcpStream::connect((GATEWAY, 53)).unwrap();
            let _sent = stream.write_all(bytes);
        }
    });
    // Until its limit is met: how many that takes depends on how busy the machine is.
    for _ in 0..200 {
        a.ns.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            for _ in 0..256 {
                socket.send_to(&[0; 12], (GATEWAY, 53)).unwrap();
            }
        });
        if seen(&lab).await.limited > 0 {
            break;
        }
    }
    eventually("the neighbour to be answered", || {
        b.short("guest-1") == "10.9.0.11"
    })
    .await;
    assert!(seen(&lab).await.limited > 0, "{:?}", seen(&lab).await);
}

/// A question about a name that nobody answers, another one each time.
fn hanging(n: u16) -> Vec<u8> {
    let mut bytes = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 9];
    bytes.extend(SILENT_ABOUT);
    bytes.extend(format!("{n:05}").bytes());
    bytes.extend(b"\x07example\x00\x00\x01\x00\x01");
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_few_guests_whose_questions_are_never_answered_leave_room_for_anothers() {
    needs_namespaces!();
    needs_dig();
    let lab = Lab::new().await;
    let mut wanted = named(NetworkMode::Nat, 5);
    wanted.spec.dns_upstreams = vec![OUTSIDE.into()];
    lab.ensure(&wanted).await;
    let _server = Server::new(&lab);
    let mut guests = Vec::new();
    for nth in 0..5 {
        let guest = lab.guest(&wanted, nth).await;
        guest.dhcp();
        guests.push(guest);
    }
    let stop = AtomicBool::new(false);
    let (modest, greedy) = guests.split_last().unwrap();
    let answers = std::thread::scope(|scope| {
        for (who, guest) in greedy.iter().enumerate() {
            let socket = guest.ns.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
            let stop = &stop;
            scope.spawn(move || {
                // Names of its own: whoever asks the same waits together.
                let first = u16::try_from(who).unwrap() * 10_000;
                for n in (first..first + 10_000).cycle() {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let _sent = socket.send_to(&hanging(n), (GATEWAY, 53));
                    // So fast that all places are always taken, and slower than a port may ask.
                    std::thread::park_timeout(Duration::from_millis(3));
                }
            });
        }
        let runtime = tokio::runtime::Handle::current();
        let full = || {
            let now = runtime.block_on(seen(&lab));
            now.forwarded >= 256 && now.limited > 0
        };
        tokio::task::block_in_place(|| {
            let until = std::time::SystemTime::now() + Duration::from_secs(60);
            while !full() && std::time::SystemTime::now() < until {
                std::thread::park_timeout(Duration::from_millis(50));
            }
            let answers = ["a", "b", "c", "d"]
                .map(|name| modest.dig(&format!("+time=5 +tries=1 +short {name}.example A")));
            stop.store(true, Ordering::Relaxed);
            answers
        })
    });
    let world = Ipv4Addr::from(WORLD).to_string();
    assert_eq!(
        answers.map(|a| a.trim().to_owned()),
        [(); 4].map(|()| world.clone())
    );
    let counts = seen(&lab).await;
    assert!(counts.forwarded >= 256 && counts.limited > 0, "{counts:?}");
}
