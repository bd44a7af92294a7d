//! One network over three hosts: who reaches whom, how large a packet may be, and a VM that moves with its address and its flows.

#![allow(clippy::unwrap_used, reason = "a helper of a test that cannot go on panics")]
#![allow(clippy::cast_possible_truncation, reason = "test values are small")]

mod common;

use common::{
    DEADLINE, Guest,
    site::{Site, Span},
};
use nix::libc;
use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Duration,
};
use vbm_core::NetworkMode;
use vbm_net::{FlowProtocol, NetworkBackend, NicKind};

/// What fits between the hosts, whose links carry 1,500 bytes, in bytes.
const FITS: usize = 1_450;
/// The header of a packet of IPv4 without options.
const IPV4_BYTES: usize = 20;
const PORT: u16 = 7_000;

#[tokio::test(flavor = "multi_thread")]
async fn each_of_six_vms_on_three_hosts_reaches_each_other_and_packets_are_as_large_as_told() {
    needs_namespaces!();
    let site = Site::new(3).await;
    let place = [0, 0, 1, 1, 2, 2];
    let span = Span::new(NetworkMode::Nat, &place);
    let span = (0..place.len()).fold(span, |span, port| span.open(port, &["icmp"]));
    let seen = site.ensure(&span).await;
    assert!(seen.iter().all(|s| usize::from(s.mtu) == FITS));
    let mut guests = Vec::new();
    for port in 0..place.len() {
        guests.push(up(&site, &span, port).await);
    }
    let silent: Vec<(usize, usize)> = (0..place.len())
        .flat_map(|from| (0..place.len()).map(move |to| (from, to)))
        .filter(|(from, to)| from != to && !(0..3).any(|_| guests[*from].ns.pings(span.address(*to))))
        .collect();
    assert_eq!(silent, [], "all pairs");
    let ping = |bytes: usize, to: usize| whole_ping(&guests[0], span.address(to), bytes);
    for to in [1, 2, 4] {
        ping(FITS, to).unwrap_or_else(|e| panic!("the largest packet, whole, to {to}: {e}"));
        let error = ping(FITS + 1, to).unwrap_err();
        assert_eq!(
            error.raw_os_error(),
            Some(libc::EMSGSIZE),
            "one byte more to {to} is refused, and it is said"
        );
    }
}

/// A guest with its address and the MTU that it is told.
async fn up(site: &Site, span: &Span, port: usize) -> Guest {
    let guest = site.up(span, port).await;
    guest.ns.ip(&format!("link set eth0 mtu {FITS}"));
    guest
}

/// A ping of just so many bytes that may not be cut; answered with as many.
#[allow(unsafe_code, reason = "IP_MTU_DISCOVER has no safe wrapper")]
fn whole_ping(guest: &Guest, to: Ipv4Addr, bytes: usize) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    guest.ns.run(move || {
        let socket = socket2::Socket::new(
            socket2::Domain::IPV4,
            socket2::Type::RAW,
            Some(socket2::Protocol::ICMPV4),
        )?;
        socket.set_read_timeout(Some(DEADLINE))?;
        let never = libc::IP_PMTUDISC_DO;
        // SAFETY: the descriptor is open, and the pointer is to a live integer of just this length.
        let done = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_IP,
                libc::IP_MTU_DISCOVER,
                (&raw const never).cast(),
                std::mem::size_of_val(&never) as libc::socklen_t,
            )
        };
        assert_eq!(done, 0);
        let mut echo = vec![0u8; bytes - IPV4_BYTES];
        echo[..8].copy_from_slice(&[8, 0, 0, 0, 0x56, 0x42, 0, 1]);
        let sum = pnet_packet::util::checksum(&echo, 1);
        echo[2..4].copy_from_slice(&sum.to_be_bytes());
        let target = std::net::SocketAddr::from((to, 0));
        socket.send_to(&echo, &target.into())?;
        let mut heard = vec![0u8; 2_000];
        loop {
            let n = (&socket).read(&mut heard)?;
            if n > IPV4_BYTES
                && heard[IPV4_BYTES] == 0
                && heard[IPV4_BYTES + 4..IPV4_BYTES + 6] == [0x56, 0x42]
            {
                assert_eq!(n, bytes, "the answer is as large");
                return Ok(());
            }
        }
    })
}

/// A VM that moves: a namespace whose one link is pumped to whichever NIC it has now. Its sockets live on.
struct Mover {
    guest: Guest,
}

impl Mover {
    async fn new(site: &Site, span: &Span, port: usize) -> Self {
        let guest = up(site, span, port).await;
        Self { guest }
    }

    /// To another host, in the order in which controllers do it: ready there, the VM stops, its flows go, it runs there, all are told.
    async fn to(&mut self, site: &Site, span: &mut Span, port: usize, host: usize, with_flows: bool) {
        let from = span.place[port];
        let (network, id) = (span.base.id, span.base.ports[port].id);
        let before = span.on(host);
        span.place[port] = host;
        let mut arriving = span.on(host);
        arriving.overlay = before.overlay;
        assert!(site.labs[host].ensure(&arriving).await.ready);
        let nic = site.labs[host]
            .net
            .open_nic(network, id, NicKind::Tap)
            .await
            .unwrap();
        self.guest.unplug();
        let flows = site.labs[from].net.flows_of(network, id).await.unwrap();
        if with_flows {
            let there = &site.labs[host].net;
            // Those with VMs of that host are there already: it saw them pass.
            let known = there.flows_of(network, id).await.unwrap().len();
            let taken = there.take_flows(network, id, flows.clone()).await.unwrap();
            assert_eq!(known + taken, flows.len(), "{flows:?}");
            assert_eq!(
                there.take_flows(network, id, flows).await.unwrap(),
                0,
                "they are there"
            );
        }
        self.guest.plug(nic);
        let announce = format!("busybox arping -U -c 1 -I eth0 {}", span.address(port));
        self.guest.ns.sh(&announce);
        site.ensure(span).await;
    }
}

/// A server that sends back what it hears, until its peer ends.
fn echo(guest: &Guest, at: Ipv4Addr) -> mpsc::Receiver<()> {
    let (began, begun) = mpsc::channel();
    let listener = guest.ns.run(move || TcpListener::bind((at, PORT)).unwrap());
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        // The next may listen there.
        drop(listener);
        began.send(()).unwrap();
        let mut buffer = [0; 65_536];
        while let Ok(n) = stream.read(&mut buffer) {
            if n == 0 || stream.write_all(&buffer[..n]).is_err() {
                return;
            }
        }
    });
    begun
}

fn connect(guest: &Guest, to: Ipv4Addr) -> TcpStream {
    guest.ns.run(move || {
        let stream = TcpStream::connect_timeout(&(to, PORT).into(), DEADLINE).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(40))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(40))).unwrap();
        stream
    })
}

/// Sends much and hears it again: windows open wide, and close.
fn speak(stream: &mut TcpStream, bytes: usize) -> std::io::Result<()> {
    let said: Vec<u8> = (0..bytes).map(|n| (n % 251) as u8).collect();
    let mut writer = stream.try_clone()?;
    let expected = said.clone();
    let writing = std::thread::spawn(move || writer.write_all(&said));
    let mut heard = vec![0; bytes];
    stream.read_exact(&mut heard)?;
    writing.join().unwrap()?;
    assert_eq!(heard, expected);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_moves_from_host_to_host_with_the_connections_that_it_began_and_those_that_it_answers() {
    needs_namespaces!();
    let site = Site::new(3).await;
    // The mover, which one server on each host speaks to; of what it began nothing may enter it by a rule.
    let mut span = Span::new(NetworkMode::Nat, &[0, 1, 2, 0])
        .open(0, &["tcp/7000@10.9.0.13/32"])
        .open(1, &["tcp/7000"])
        .open(2, &["tcp/7000", "udp/7002"]);
    site.ensure(&span).await;
    let mut mover = Mover::new(&site, &span, 0).await;
    let (b, c, d) = (
        site.up(&span, 1).await,
        site.up(&span, 2).await,
        site.up(&span, 3).await,
    );
    let mut streams = Vec::new();
    for (client, server, to) in [
        (&mover.guest, &b, 1),
        (&mover.guest, &c, 2),
        (&d, &mover.guest, 0),
    ] {
        let begun = echo(server, span.address(to));
        streams.push(connect(client, span.address(to)));
        begun.recv_timeout(DEADLINE).unwrap();
    }
    for stream in &mut streams {
        speak(stream, 300_000).unwrap();
    }
    // One that never rests.
    let begun = echo(&mover.guest, span.address(0));
    let mut restless = connect(&d, span.address(0));
    begun.recv_timeout(DEADLINE).unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&over);
    let talk = std::thread::spawn(move || {
        let mut rounds = 0;
        while !stop.load(Ordering::Relaxed) {
            speak(&mut restless, 20_000).unwrap();
            rounds += 1;
        }
        rounds
    });
    // Answers that no rule lets in: they come because they were asked for.
    let (own, there) = (span.address(0), span.address(2));
    let asks = mover.guest.ns.run(move || UdpSocket::bind((own, 7_001)).unwrap());
    let answers = c.ns.run(move || UdpSocket::bind((there, 7_002)).unwrap());
    for socket in [&asks, &answers] {
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
    }
    asks.send_to(b"question", (there, 7_002)).unwrap();
    answers.recv(&mut [0; 100]).unwrap();
    for host in [1, 2, 0] {
        mover.to(&site, &mut span, 0, host, true).await;
        for (n, stream) in streams.iter_mut().enumerate() {
            speak(stream, 300_000).unwrap_or_else(|e| panic!("stream {n} on host {host}: {e}"));
        }
        // The other side speaks first: who does not know of the question lets no answer in.
        answers.send_to(b"answer", (own, 7_001)).unwrap();
        asks.recv(&mut [0; 100])
            .unwrap_or_else(|e| panic!("the answer on host {host}: {e}"));
        let listing = site.labs[host]
            .net
            .flows_of(span.base.id, span.base.ports[0].id)
            .await
            .unwrap();
        let tcp = listing.iter().filter(|f| f.protocol == FlowProtocol::Tcp).count();
        assert_eq!(tcp, 4, "{listing:?}");
        for at in 0..3 {
            let again = site.labs[at].ensure(&span.on(at)).await;
            assert_eq!(again.changed, Vec::<String>::new(), "host {at}");
        }
    }
    over.store(true, Ordering::Relaxed);
    assert!(
        talk.join().unwrap() > 9,
        "it spoke before, during and after each move"
    );
    // Groups are asked on the new host as ever: who loses its rule loses its flow there.
    span.base.ports[0].rules.clear();
    site.ensure(&span).await;
    streams[2].set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    assert!(speak(&mut streams[2], 10).is_err(), "the rule is gone");
    assert!(speak(&mut streams[0], 10).is_ok(), "what the VM began goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_flows_a_vm_that_moved_must_connect_anew_and_nobody_can_bring_in_others() {
    needs_namespaces!();
    let site = Site::new(3).await;
    let mut span = Span::new(NetworkMode::Isolated, &[0, 1]).open(1, &["tcp/7000"]);
    site.ensure(&span).await;
    let mut mover = Mover::new(&site, &span, 0).await;
    let b = up(&site, &span, 1).await;
    let begun = echo(&b, span.address(1));
    let mut stream = connect(&mover.guest, span.address(1));
    begun.recv_timeout(DEADLINE).unwrap();
    let (network, id) = (span.base.id, span.base.ports[0].id);
    let flows = site.labs[0].net.flows_of(network, id).await.unwrap();
    assert_eq!(flows.len(), 1);
    // Forged on their way: as if B had begun it, at a port that nothing opens.
    let mut forged = flows.clone();
    (forged[0].from, forged[0].to) = (flows[0].to, flows[0].from);
    (forged[0].from_port, forged[0].to_port) = (22, 22);
    assert_eq!(site.labs[0].net.take_flows(network, id, forged).await.unwrap(), 0);
    mover.to(&site, &mut span, 0, 2, false).await;
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    assert!(
        speak(&mut stream, 10).is_err(),
        "its new host did not see it begin"
    );
    let begun = echo(&b, span.address(1));
    let mut anew = connect(&mover.guest, span.address(1));
    begun.recv_timeout(DEADLINE).unwrap();
    speak(&mut anew, 10).unwrap();
    let nobody = vbm_core::PortId::from_uuid(uuid::Uuid::from_u128(1));
    assert!(site.labs[1].net.take_flows(network, nobody, flows).await.is_err());
}
