//! The model and the kernel agree, whichever way packets are dispatched there: random rules, random packets, each judged by
//! [`vbm_net::plan::trace`] and sent for real.
//!
//! Each batch sends its packets and then an honest one to each receiver; what came before that is what the kernel let pass: nothing
//! has to be waited for that does not come. The seed is printed; `VBM_SEED` repeats it.

#![allow(clippy::unwrap_used, reason = "a helper of a test that cannot go on panics")]
#![allow(clippy::cast_possible_truncation, reason = "test values are small")]
#![allow(
    clippy::print_stdout,
    reason = "the seed of a test that fails is needed to repeat it"
)]

mod common;

use common::{Lab, network, packet::Wire};
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};
use vbm_core::{AddressPair, GroupId, GroupSpec, NetworkMode, Protocol, Rule};
use vbm_net::{
    DesiredGroup, DesiredNetwork, Dispatch, Validated,
    plan::{policy::Packet, trace::trace},
};

const PORTS: usize = 4;
const GROUPS: u128 = 4;
/// By each dispatch.
const ROUNDS: usize = 25;
const PACKETS_PER_ROUND: usize = 120;
/// Where honest packets go: a port of UDP that no random rule or packet uses.
const HONEST: u16 = 7_777;

/// A small generator: the same seed, the same story.
struct Dice(u64);
impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

fn v6(port: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 10 + port as u16)
}
fn v4(port: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 9, 0, 10 + port as u8)
}
fn group_id(n: u128) -> GroupId {
    GroupId::from_uuid(uuid::Uuid::from_u128(n + 1))
}

fn random_rule(dice: &mut Dice) -> Rule {
    let way = *dice.of(&["", "", "egress:"]);
    let (what, v) = match dice.below(6) {
        0 => ("any".to_owned(), 0),
        1 => (
            format!(
                "icmp{}",
                dice.of(&["", "/type=8", "/type=13,code=0", "/type=3,code=4"])
            ),
            4,
        ),
        2 => (
            format!("icmpv6{}", dice.of(&["", "/type=128", "/type=1,code=4"])),
            6,
        ),
        n => {
            let ports = dice.of(&["", "/20", "/20-22", "/22-30", "/65535"]);
            (format!("{}{ports}", if n % 2 == 0 { "tcp" } else { "udp" }), 0)
        }
    };
    let four = [
        "",
        "@10.9.0.11/32",
        "@10.9.0.12/31",
        "@10.9.0.0/24",
        "@10.9.0.200/32",
        "@0.0.0.0/0",
    ];
    let six = [
        "",
        "@fd00::b/128",
        "@fd00::c/127",
        "@fd00::/64",
        "@fe80::/10",
        "@::/0",
    ];
    let peer = match (dice.below(4), v) {
        (0, _) => "@self".to_owned(),
        (1, _) => format!("@group:{}", group_id(dice.below(GROUPS as usize + 1) as u128)),
        (_, 4) => (*dice.of(&four)).to_owned(),
        (_, 6) => (*dice.of(&six)).to_owned(),
        (2, _) => (*dice.of(&four)).to_owned(),
        _ => (*dice.of(&six)).to_owned(),
    };
    format!("{way}{what}{peer}").parse().unwrap()
}

fn random_network(dice: &mut Dice, wanted: &mut DesiredNetwork) {
    wanted.groups = (0..GROUPS)
        .map(|n| DesiredGroup {
            id: group_id(n),
            name: format!("group-{n}").parse().unwrap(),
            spec: GroupSpec {
                rules: (0..1 + dice.below(6)).map(|_| random_rule(dice)).collect(),
                egress_closed: dice.below(8) == 0,
            },
            members: if dice.below(3) == 0 {
                vec!["10.9.0.200/32".parse().unwrap()]
            } else {
                vec![]
            },
        })
        .collect();
    for (n, port) in wanted.ports.iter_mut().enumerate() {
        // One group that is gone is among those that may be named.
        port.policy.groups = (0..dice.below(4))
            .map(|_| group_id(dice.below(GROUPS as usize + 1) as u128))
            .collect();
        port.rules = (0..dice.below(3)).map(|_| random_rule(dice)).collect();
        port.policy.pairs = vec![AddressPair::of(v6(n).into())];
        if n == 0 {
            port.policy.pairs.push(AddressPair {
                address: "10.9.0.64/30".parse().unwrap(),
                mac: None,
            });
        }
    }
    // So that the honest packet always passes.
    for port in &mut wanted.ports {
        port.rules.extend([
            format!("udp/{HONEST}").parse().unwrap(),
            format!("egress:udp/{HONEST}").parse().unwrap(),
        ]);
    }
}

fn random_packet(dice: &mut Dice) -> (usize, usize, Packet) {
    let from = dice.below(PORTS);
    let to = (from + 1 + dice.below(PORTS - 1)) % PORTS;
    let six = dice.below(3) == 0;
    let (source, target): (IpAddr, IpAddr) = match (six, dice.below(8)) {
        (true, _) => (v6(from).into(), v6(to).into()),
        (false, 0) if from == 0 => (Ipv4Addr::new(10, 9, 0, 65).into(), v4(to).into()),
        (false, 0) if to == 0 => (v4(from).into(), Ipv4Addr::new(10, 9, 0, 66).into()),
        (false, 1) => (v4((from + 1) % PORTS).into(), v4(to).into()),
        (false, _) => (v4(from).into(), v4(to).into()),
    };
    let kinds: &[(u8, u8)] = if six {
        &[(128, 0), (1, 4)]
    } else {
        &[(8, 0), (13, 0)]
    };
    let (protocol, to_port, icmp) = match dice.below(4) {
        0 => (
            if six { Protocol::Icmpv6 } else { Protocol::Icmp },
            None,
            Some(*dice.of(kinds)),
        ),
        1 => (
            Protocol::Tcp,
            Some(*dice.of(&[20, 21, 22, 23, 30, 31, 65_535])),
            None,
        ),
        _ => (
            Protocol::Udp,
            Some(*dice.of(&[19, 20, 22, 23, 30, 31, 65_535])),
            None,
        ),
    };
    (
        from,
        to,
        Packet {
            from: source,
            to: target,
            protocol,
            to_port,
            icmp,
        },
    )
}

/// The packet as bytes of IP, with a mark. Each has a source port or identifier of its own, so that each begins a flow.
fn bytes(packet: &Packet, n: u16, mark: &str) -> Vec<u8> {
    let text = format!("mark:{mark}");
    let own = 10_000 + n;
    let (number, mut body) = match packet.protocol {
        Protocol::Udp => {
            let mut b = [own.to_be_bytes(), packet.to_port.unwrap().to_be_bytes()].concat();
            b.extend((8 + text.len() as u16).to_be_bytes());
            b.extend([0, 0]);
            (17, b)
        }
        Protocol::Tcp => {
            let mut b = [own.to_be_bytes(), packet.to_port.unwrap().to_be_bytes()].concat();
            // A SYN that carries something, as TCP fast open does.
            b.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
            (6, b)
        }
        _ => {
            let (kind, code) = packet.icmp.unwrap();
            let mut b = vec![kind, code, 0, 0];
            b.extend(own.to_be_bytes());
            b.extend([0, 1]);
            (if packet.from.is_ipv4() { 1 } else { 58 }, b)
        }
    };
    body.extend(text.as_bytes());
    let sum_at = match number {
        17 => 6,
        6 => 16,
        _ => 2,
    };
    let pseudo = match (packet.from, packet.to) {
        (IpAddr::V4(a), IpAddr::V4(b)) => [
            &a.octets()[..],
            &b.octets(),
            &[0, number],
            &(body.len() as u16).to_be_bytes(),
        ]
        .concat(),
        (IpAddr::V6(a), IpAddr::V6(b)) => [
            &a.octets()[..],
            &b.octets(),
            &(body.len() as u32).to_be_bytes(),
            &[0, 0, 0, number],
        ]
        .concat(),
        _ => panic!("two families"),
    };
    let mut summed = if number == 1 { Vec::new() } else { pseudo };
    summed.extend(&body);
    let sum = pnet_packet::util::checksum(&summed, usize::MAX);
    body[sum_at..sum_at + 2].copy_from_slice(&sum.to_be_bytes());
    match (packet.from, packet.to) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            let mut ip = vec![0x45, 0];
            ip.extend((20 + body.len() as u16).to_be_bytes());
            ip.extend([0, 1, 0x40, 0, 64, number, 0, 0]);
            ip.extend(a.octets());
            ip.extend(b.octets());
            let sum = pnet_packet::util::checksum(&ip, 5);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            [ip, body].concat()
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            let mut ip = vec![0x60, 0, 0, 0];
            ip.extend((body.len() as u16).to_be_bytes());
            ip.extend([number, 64]);
            ip.extend(a.octets());
            ip.extend(b.octets());
            [ip, body].concat()
        }
        _ => panic!("two families"),
    }
}

fn send(
    wires: &[Wire],
    wanted: &DesiredNetwork,
    from: usize,
    to: usize,
    packet: &Packet,
    n: u16,
    mark: &str,
) {
    let kind = if packet.from.is_ipv4() { 0x0800 } else { 0x86dd };
    let (source, target) = (wanted.ports[from].mac, wanted.ports[to].mac);
    wires[from].send(&common::packet::ethernet(
        source,
        target,
        kind,
        &bytes(packet, n, mark),
    ));
}

/// The same rules and packets by each dispatch: who agrees with the model agrees with the other.
#[tokio::test(flavor = "multi_thread")]
async fn the_model_iptables_and_nft_agree_on_random_packets_under_random_rules() {
    needs_namespaces!();
    let seed = std::env::var("VBM_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or_else(|| {
            u64::from(std::process::id()) << 32
                | u64::from(
                    std::time::SystemTime::UNIX_EPOCH
                        .elapsed()
                        .unwrap()
                        .subsec_nanos(),
                )
        });
    println!("VBM_SEED={seed}");
    for dispatch in Dispatch::ALL {
        let (passed, dropped) = agree(dispatch, seed).await;
        println!("{dispatch}: {passed} packets passed and {dropped} were dropped, as the model says");
        assert!(
            passed > 100 && dropped > 1_000,
            "{passed} and {dropped}: one of them proves nothing"
        );
        assert_eq!(passed + dropped, ROUNDS * PACKETS_PER_ROUND);
    }
}

/// How many passed and were dropped, each as the model says.
async fn agree(dispatch: Dispatch, seed: u64) -> (usize, usize) {
    let mut dice = Dice(seed);
    let lab = Lab::dispatched(dispatch).await;
    let mut wanted = network(NetworkMode::Nat, PORTS as u8);
    random_network(&mut dice, &mut wanted);
    lab.ensure(&wanted).await;
    let mut wires = Vec::new();
    for port in 0..PORTS {
        wires.push(lab.raw(&wanted, port).await);
    }
    let inside = lab.inside(wanted.id);
    let (mut passed, mut dropped) = (0, 0);
    for round in 0..ROUNDS {
        let seen = lab.ensure(&wanted).await;
        assert!(seen.ready, "round {round}");
        assert_eq!(
            lab.ensure(&wanted).await.changed,
            Vec::<String>::new(),
            "{dispatch}, seed {seed}, round {round}: it converges"
        );
        // Flows of the round before would pass as answers.
        common::in_netns(&inside, "conntrack -F");
        let checked = Validated::<DesiredNetwork>::new(wanted.clone()).unwrap();
        let mut expected: Vec<BTreeSet<String>> = vec![BTreeSet::new(); PORTS];
        for n in 0..PACKETS_PER_ROUND {
            let (from, to, packet) = random_packet(&mut dice);
            // What is sent in another's name is the guard's to drop; the model does not know the tap.
            let forged = !wanted.ports[from].may_be(packet.from);
            let found = trace(&checked, &packet);
            let name = format!("{round}-{n}");
            if found.allowed && !forged {
                expected[to].insert(name.clone());
                passed += 1;
            } else {
                dropped += 1;
            }
            send(&wires, &wanted, from, to, &packet, n as u16, &name);
        }
        for (to, expected) in expected.iter().enumerate() {
            let mut arrived = BTreeSet::new();
            // From each other port, since each has a queue of its own on the way.
            let senders: Vec<usize> = (0..PORTS).filter(|p| *p != to).collect();
            for from in &senders {
                let packet = Packet {
                    from: v4(*from).into(),
                    to: v4(to).into(),
                    protocol: Protocol::Udp,
                    to_port: Some(HONEST),
                    icmp: None,
                };
                send(&wires, &wanted, *from, to, &packet, 9_999, "honest");
            }
            for _ in &senders {
                loop {
                    match wires[to].next_mark().as_str() {
                        "honest" => break,
                        "nothing" => {
                            panic!("{dispatch}, seed {seed}, round {round}: an honest packet was lost")
                        }
                        name => drop(arrived.insert(name.to_owned())),
                    }
                }
            }
            assert_eq!(
                &arrived, expected,
                "{dispatch}, seed {seed}, round {round}, port {to}: {:#?}",
                wanted.groups
            );
        }
        random_network(&mut dice, &mut wanted);
    }
    (passed, dropped)
}
