//! Eight networks with the same addresses and the same MACs, on one host and over two: nobody hears a frame of another, and nobody gets
//! an answer of another.
//!
//! Each port sends frames of all kinds, each with a mark that says of which network it is; all that is heard anywhere is captured, and no
//! mark may be where it does not belong. Then guests ask all that a network answers: each network answers otherwise.

#![allow(clippy::unwrap_used, reason = "a helper of a test that cannot go on panics")]
#![allow(clippy::cast_possible_truncation, reason = "test values are small")]

mod common;

use common::{
    Guest, Lab, Ns, network, open_port,
    packet::{BROADCAST, Wire, arp, dhcp, ethernet, mark, marked, to_server, udp},
    site::{Site, Span, Tap},
};
use std::{
    collections::BTreeSet,
    mem::ManuallyDrop,
    net::{Ipv4Addr, UdpSocket},
    time::Duration,
};
use vbm_core::{Mac, NetworkMode};
use vbm_net::{DesiredNetwork, NetworkBackend, NetworkSeen, metadata::Instance};

const NETWORKS: usize = 8;
const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const VLAN: u16 = 0x8100;
/// For experiments on one link (IEEE 802).
const EXPERIMENT: u16 = 0x88b5;
const REQUEST: u16 = 1;
const REPLY: u16 = 2;
const DISCOVER: u8 = 1;
/// The last mark that a port sends to its peer.
const END: &str = "end";

type End = (Mac, Ipv4Addr);

/// The mark of a frame of a network.
fn of(number: usize, what: &str) -> String {
    format!("<{number}>{what}")
}

/// Of which network a frame is, if it has a mark.
fn whose(frame: &[u8]) -> Option<usize> {
    let text = mark(frame)?;
    text.strip_prefix('<')?.split('>').next()?.parse().ok()
}

/// Frames of all kinds, of one port: what it may send, and what it may not.
fn all_kinds(number: usize, me: End, peer: End, gateway: End, others: &[Ipv4Addr]) -> Vec<Vec<u8>> {
    let note = |what: &str| of(number, what);
    let with = |mut body: Vec<u8>, what: &str| {
        body.extend(format!("mark:{}", note(what)).into_bytes());
        body
    };
    let subnet = Ipv4Addr::new(10, 9, 0, 255);
    let dns_group = (Mac::new([1, 0, 0x5e, 0, 0, 0xfb]), Ipv4Addr::new(224, 0, 0, 251));
    let mut frames = vec![
        marked(me, peer, &note("unicast")),
        marked(me, (BROADCAST, Ipv4Addr::BROADCAST), &note("broadcast")),
        marked(me, (BROADCAST, subnet), &note("the subnet's broadcast")),
        marked(me, (BROADCAST, peer.1), &note("the peer by broadcast")),
        marked(me, dns_group, &note("multicast")),
        marked(me, (gateway.0, peer.1), &note("the peer by the gateway")),
        marked(me, (gateway.0, subnet), &note("the broadcast by the gateway")),
        marked(me, gateway, &note("the gateway")),
        marked(me, (Mac::local(0xfeed), peer.1), &note("an unknown MAC")),
        marked(peer, me, &note("in the peer's name")),
    ];
    let nobody = Mac::new([0; 6]);
    for (op, to, target) in [
        (REQUEST, BROADCAST, (nobody, peer.1)),
        (REQUEST, BROADCAST, (nobody, gateway.1)),
        (REQUEST, BROADCAST, (nobody, me.1)),
        (REPLY, BROADCAST, me),
        (REPLY, peer.0, peer),
    ] {
        frames.push(ethernet(me.0, to, ARP, &with(arp(op, me, target), "ARP")));
    }
    let name = format!("mark:{}", note("DHCP"));
    let option = [&[12, name.len() as u8][..], name.as_bytes()].concat();
    frames.push(to_server(
        me.0,
        Ipv4Addr::UNSPECIFIED,
        &dhcp(me.0, DISCOVER, Ipv4Addr::UNSPECIFIED, &option),
    ));
    // As a server that answers everybody.
    for to in [(BROADCAST, Ipv4Addr::BROADCAST), peer] {
        let offer = udp(
            (me.1, 67),
            (to.1, 68),
            format!("mark:{}", note("a server")).as_bytes(),
        );
        frames.push(ethernet(me.0, to.0, IPV4, &offer));
    }
    for to in [BROADCAST, peer.0, gateway.0, Mac::new([0x33, 0x33, 0, 0, 0, 1])] {
        for kind in [IPV6, VLAN, EXPERIMENT] {
            frames.push(ethernet(
                me.0,
                to,
                kind,
                &with(vec![0, 5, 8, 0], "another protocol"),
            ));
        }
    }
    // The ends of the other networks' ways out, as their neighbour and as the world.
    for other in others {
        frames.push(marked(
            me,
            (gateway.0, *other),
            &note("another network's way out"),
        ));
    }
    frames
}

/// All that a wire hears up to the last mark of its peer.
fn heard(wire: &Wire, number: usize) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let last = of(number, END);
    let ended = wire.next(|frame| {
        all.push(frame.to_vec());
        mark(frame).as_deref() == Some(&last)
    });
    assert!(ended.is_some(), "network {number} does not hear its own port");
    all
}

/// What one network sent is nowhere else.
fn no_foreign(place: &str, number: usize, frames: &[Vec<u8>]) {
    for frame in frames {
        let from = whose(frame);
        assert!(
            from.is_none_or(|from| from == number),
            "{place} of network {number} has a frame of network {from:?}: {:?}, {frame:02x?}",
            mark(frame)
        );
    }
}

/// A namespace that is not the test's to delete.
fn borrowed(name: String) -> ManuallyDrop<Ns> {
    ManuallyDrop::new(Ns(name))
}

/// The same networks but for their ids and what they answer.
fn networks() -> Vec<DesiredNetwork> {
    let one = |number: usize| {
        let mut wanted = network(NetworkMode::Nat, 2);
        wanted.spec.dns = vec![];
        wanted.spec.serve_dns = true;
        wanted.spec.metadata = vbm_core::MetadataMode::Open;
        wanted.spec.domain = Some(format!("net{number}.example"));
        for port in 0..2 {
            wanted.ports[port].hostname = format!("host{port}-of-{number}").parse().unwrap();
            open_port(&mut wanted, port, &["any"]);
        }
        wanted
    };
    (0..NETWORKS).map(one).collect()
}

fn end(wanted: &DesiredNetwork, port: usize) -> End {
    (wanted.ports[port].mac, wanted.ports[port].address)
}

fn gateway(wanted: &DesiredNetwork) -> End {
    (wanted.gateway_mac(), wanted.spec.gateway)
}

#[tokio::test(flavor = "multi_thread")]
async fn on_one_host_no_frame_of_any_kind_is_heard_in_another_network() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let all = networks();
    let mut seen: Vec<NetworkSeen> = Vec::new();
    for wanted in &all {
        seen.push(lab.ensure(wanted).await);
    }
    let mut wires = Vec::new();
    for wanted in &all {
        wires.push([lab.raw(wanted, 0).await, lab.raw(wanted, 1).await]);
    }
    let inside: Vec<Tap> = all.iter().map(|w| Tap::on(&borrowed(lab.inside(w.id)))).collect();
    let ways_out: Vec<Tap> = all
        .iter()
        .map(|w| Tap::only(&lab.host, &vbm_net::names::transit(w.id)))
        .collect();
    let world = Tap::on(&lab.outside);
    let transits: Vec<Ipv4Addr> = seen.iter().flat_map(|s| s.transit.unwrap().hosts()).collect();
    for (number, (wanted, wires)) in all.iter().zip(&wires).enumerate() {
        let own = seen[number].transit.unwrap();
        let others: Vec<Ipv4Addr> = transits.iter().copied().filter(|t| !own.contains(t)).collect();
        for (port, wire) in wires.iter().enumerate() {
            for frame in all_kinds(
                number,
                end(wanted, port),
                end(wanted, 1 - port),
                gateway(wanted),
                &others,
            ) {
                wire.send(&frame);
            }
        }
    }
    for (number, (wanted, wires)) in all.iter().zip(&wires).enumerate() {
        for (port, wire) in wires.iter().enumerate() {
            wire.send(&marked(
                end(wanted, port),
                end(wanted, 1 - port),
                &of(number, END),
            ));
        }
    }
    for (number, wires) in wires.iter().enumerate() {
        for wire in wires {
            let frames = heard(wire, number);
            no_foreign("a port", number, &frames);
            let marks: BTreeSet<String> = frames.iter().filter_map(|f| mark(f)).collect();
            for own in [
                "unicast",
                "the peer by broadcast",
                "the peer by the gateway",
                "ARP",
            ] {
                assert!(
                    marks.contains(&of(number, own)),
                    "{own} is heard in its own network: {marks:?}"
                );
            }
            // The gateways have different MACs: an answer tells whose it is.
            let answers = frames.iter().filter(|f| {
                f[12..14] == ARP.to_be_bytes()
                    && f[21] == REPLY as u8
                    && f[28..32] == all[number].spec.gateway.octets()
            });
            for answer in answers {
                assert_eq!(
                    answer[22..28],
                    all[number].gateway_mac().octets(),
                    "ARP of network {number}"
                );
            }
        }
    }
    for (number, (inside, out)) in inside.iter().zip(&ways_out).enumerate() {
        let frames = inside.frames();
        assert!(
            frames.iter().any(|f| whose(f) == Some(number)),
            "the capture works"
        );
        no_foreign("the namespace", number, &frames);
        no_foreign("the way out", number, &out.frames());
    }
    let escaped: Vec<_> = world.frames().iter().filter_map(|f| mark(f)).collect();
    assert_eq!(escaped, Vec::<String>::new(), "nothing of it is of the world");
}

/// Asks the gateway for the address of a name; the code of the answer and the addresses.
fn resolve(guest: &Guest, server: Ipv4Addr, name: &str) -> (u8, Vec<Ipv4Addr>) {
    let mut question = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(label.len() as u8);
        question.extend(label.bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    let sent = question.clone();
    let answer = guest.ns.run(move || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let mut buffer = [0; 1_500];
        for _ in 0..15 {
            socket.send_to(&sent, (server, 53)).unwrap();
            if let Ok(n) = socket.recv(&mut buffer) {
                return buffer[..n].to_vec();
            }
        }
        panic!("no answer of the names server");
    });
    // An answer behind the question: a pointer, type, class, time, length, the address.
    let records = answer.get(question.len()..).unwrap_or_default().chunks_exact(16);
    let addresses = records
        .filter(|r| r[..4] == [0xc0, 12, 0, 1])
        .map(|r| Ipv4Addr::new(r[12], r[13], r[14], r[15]));
    (answer[3] & 0xf, addresses.collect())
}

fn metadata_id(guest: &Guest) -> String {
    use std::io::{Read, Write};
    guest.ns.run(|| {
        let mut stream = std::net::TcpStream::connect(("169.254.169.254", 80)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
            .write_all(b"GET /latest/meta-data/instance-id HTTP/1.0\r\n\r\n")
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text.rsplit("\r\n").next().unwrap().trim().to_owned()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn on_one_host_every_answer_is_of_the_network_that_was_asked() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let all = networks();
    let mut guests = Vec::new();
    for (number, wanted) in all.iter().enumerate() {
        lab.ensure(wanted).await;
        let instance = Instance {
            id: format!("i-of-{number}"),
            ..Instance::default()
        };
        lab.net
            .describe(wanted.id, wanted.ports[0].id, Some(instance))
            .await
            .unwrap();
        let client = lab.guest(wanted, 0).await;
        let mut server = lab.guest(wanted, 1).await;
        server.address(wanted, 1);
        server.serve(&format!("page of {number}")).await;
        guests.push((client, server));
    }
    // All clients begin at once: with one server for all, or one that hears the others, some would be told wrong.
    std::thread::scope(|scope| {
        for (client, _) in &guests {
            scope.spawn(|| client.dhcp());
        }
    });
    for (number, (client, _)) in guests.iter().enumerate() {
        let wanted = &all[number];
        let told = client.told("bound").unwrap();
        assert!(
            told.contains(&format!("domain='net{number}.example'")),
            "network {number}: {told}"
        );
        assert_eq!(
            client.ns.get((wanted.ports[1].address, 80)).as_deref(),
            Some(&*format!("page of {number}"))
        );

        assert!(client.ns.pings(wanted.spec.gateway));
        assert!(
            client
                .ns
                .ip(&format!("neigh show {}", wanted.spec.gateway))
                .contains(&wanted.gateway_mac().to_string()),
            "the gateway of network {number}"
        );
        assert_eq!(metadata_id(client), format!("i-of-{number}"));
        for other in 0..NETWORKS {
            let (code, addresses) = resolve(client, wanted.spec.gateway, &format!("host1-of-{other}"));
            let expected = if other == number {
                vec![wanted.ports[1].address]
            } else {
                vec![]
            };
            assert_eq!(
                addresses, expected,
                "network {number} asked for a name of {other}, code {code}"
            );
        }
    }
    // One network goes: what has its addresses elsewhere does not answer for it.
    lab.net.close_nic(all[0].id, all[0].ports[1].id).await.unwrap();
    let gone = guests.remove(0);
    assert!(!gone.0.ns.pings(all[0].ports[1].address));
    assert_eq!(gone.0.ns.get((all[0].ports[1].address, 80)), None);
    assert!(guests[0].0.ns.pings(all[1].ports[1].address));
}

#[tokio::test(flavor = "multi_thread")]
async fn over_two_hosts_no_frame_of_any_kind_is_heard_in_another_network() {
    needs_namespaces!();
    let site = Site::new(2).await;
    // Two ports on each host: 0 and 1 here, 2 and 3 there.
    let first = Span::new(NetworkMode::Nat, &[0, 0, 1, 1]);
    let first = (0..4).fold(first, |span, port| span.open(port, &["any"]));
    let mut spans = vec![first.clone()];
    spans.extend((1..NETWORKS).map(|_| first.twin()));
    let tap = site.listen();
    let mut wires = Vec::new();
    for span in &spans {
        site.ensure(span).await;
        let mut of_one = Vec::new();
        for port in 0..4 {
            of_one.push(site.raw(span, port).await);
        }
        wires.push(of_one);
    }
    for (number, (span, wires)) in spans.iter().zip(&wires).enumerate() {
        let gateway = (span.base.gateway_mac(), span.base.spec.gateway);
        for (port, wire) in wires.iter().enumerate() {
            // To its neighbour here, and to the one over there.
            for peer in [port ^ 1, port ^ 2] {
                for frame in all_kinds(number, span.end(port), span.end(peer), gateway, &[]) {
                    wire.send(&frame);
                }
            }
        }
    }
    for (number, (span, wires)) in spans.iter().zip(&wires).enumerate() {
        for (port, wire) in wires.iter().enumerate() {
            wire.send(&marked(span.end(port), span.end(port ^ 2), &of(number, END)));
        }
    }
    for (number, wires) in wires.iter().enumerate() {
        for wire in wires {
            let frames = heard(wire, number);
            no_foreign("a port", number, &frames);
            assert!(
                frames
                    .iter()
                    .any(|f| mark(f).as_deref() == Some(&*of(number, "unicast")))
            );
        }
    }
    site.settled(&tap).await;
    let numbers: BTreeSet<u32> = spans.iter().map(|s| s.vni).collect();
    assert_eq!(numbers.len(), NETWORKS, "each has an identifier of its own");
    for (number, span) in spans.iter().enumerate() {
        let frames: Vec<Vec<u8>> = tap.wrapped(span.vni).into_iter().map(|w| w.frame).collect();
        assert!(!frames.is_empty());
        no_foreign("the wire between the hosts", number, &frames);
        let known = [span.end(0).0, span.end(1).0, span.end(2).0, span.end(3).0];
        let stray = frames
            .iter()
            .find(|f| f[12..14] != IPV4.to_be_bytes() || !known.iter().any(|m| f[..6] == m.octets()));
        assert_eq!(stray, None, "only IPv4 to known ports leaves a host");
    }
}
