//! A host's networks as they are wanted, changed at random by a seed: the same seed makes the same story, in any process.
//!
//! ```text
//!   dice --> World::step --> Op: what was changed, broken or killed    --> done to a backend
//!                       +--> World: what must stand now                --> compared with what is read
//! ```

#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
#![allow(clippy::cast_possible_truncation, reason = "test values are small")]

pub(crate) mod harm;
pub(crate) mod words;

use harm::Harm;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};
use uuid::Uuid;
use vbm_core::{
    AddressPair, ForwardId, GroupId, GroupSpec, Ipv6Spec, Mac, MetadataMode, NetworkId, NetworkMode,
    NetworkSpec, PortId, PortLimits, Protocol, network::VNI_FIRST, network::parse_cidr,
};
use vbm_net::{
    DesiredForward, DesiredGroup, DesiredNetwork, DesiredOverlay, DesiredPort, NicKind, RemotePort,
};
use words::RULES;

/// How many of each there are at most: enough to meet each other, few enough to be quick.
const NETWORKS_MAX: usize = 3;
const PORTS_MAX: usize = 6;
const GROUPS_MAX: usize = 3;
const FORWARDS_MAX: usize = 4;
const REMOTES_MAX: usize = 4;
/// The first of the floating IPs.
const FLOATING_FIRST: u8 = 50;
const FLOATING_COUNT: u64 = 8;
/// The first port of the host that is forwarded.
const LISTEN_FIRST: u16 = 8_000;

/// SplitMix64 (Steele, Lea, Flood 2014).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 1) % end.max(1)
    }
    pub(crate) fn index(&mut self, length: usize) -> usize {
        self.below(length as u64) as usize
    }
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
    pub(crate) fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.index(of.len())]
    }
}

/// How the process that does it is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kill {
    /// When so many steps of `ensure` are done.
    AtStep(usize),
    /// After so many milliseconds, whatever it does then.
    AfterMs(u64),
}

/// What is done to the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// The network shall be as it is wanted now; what changed of it.
    Ensure(NetworkId, String, Option<Kill>),
    Remove(NetworkId, Option<Kill>),
    Open(NetworkId, PortId, NicKind),
    Close(NetworkId, PortId),
    /// Somebody breaks something; then an `ensure`.
    Harm(NetworkId, Harm),
    /// The process ends in order and begins again.
    Restart,
}

/// A network that is wanted, and which of its NICs are open.
#[derive(Clone, Debug)]
pub(crate) struct One {
    pub(crate) wanted: DesiredNetwork,
    pub(crate) open: BTreeMap<PortId, NicKind>,
}

pub(crate) struct World {
    nonce: u64,
    dice: Dice,
    made: u64,
    pub(crate) networks: BTreeMap<NetworkId, One>,
    /// All that ever were.
    pub(crate) ids: Vec<NetworkId>,
    /// Whether things are broken.
    pub(crate) breaks: bool,
    /// Of hosts among themselves.
    pub(crate) local: Ipv4Addr,
    pub(crate) far: Ipv4Addr,
}

impl World {
    /// `nonce` is in all ids, so that two worlds of one seed stand on one machine.
    pub(crate) fn new(seed: u64, nonce: u64) -> Self {
        Self {
            nonce,
            dice: Dice(seed),
            made: 0,
            networks: BTreeMap::new(),
            ids: Vec::new(),
            breaks: true,
            local: Ipv4Addr::new(192, 0, 2, 1),
            far: Ipv4Addr::new(192, 0, 2, 2),
        }
    }

    fn id(&mut self) -> Uuid {
        self.made += 1;
        let spread = Dice(self.nonce ^ (self.made << 32)).next();
        Uuid::from_u64_pair(self.made, spread)
    }

    /// Changes what is wanted, and tells what is to be done.
    pub(crate) fn step(&mut self) -> Op {
        loop {
            if let Some(op) = self.try_step() {
                return op;
            }
        }
    }

    fn try_step(&mut self) -> Option<Op> {
        let dice = self.dice.below(100);
        if self.networks.is_empty() || (dice < 6 && self.networks.len() < NETWORKS_MAX) {
            return Some(self.add_network());
        }
        let ids: Vec<NetworkId> = self.networks.keys().copied().collect();
        let id = *self.dice.pick(&ids);
        match dice {
            0..10 if self.networks.len() > 1 => {
                self.networks.remove(&id);
                let kill = self.kill();
                Some(Op::Remove(id, kill))
            }
            10..24 if self.breaks => self.harm(id),
            24..26 => Some(Op::Restart),
            26..36 => self.open(id),
            36..40 => self.close(id),
            _ => {
                let what = self.change(id)?;
                let kill = self.kill();
                Some(Op::Ensure(id, what, kill))
            }
        }
    }

    fn kill(&mut self) -> Option<Kill> {
        if !self.dice.one_in(10) {
            return None;
        }
        Some(if self.dice.one_in(2) {
            Kill::AtStep(self.dice.index(24))
        } else {
            Kill::AfterMs(self.dice.below(150))
        })
    }

    fn add_network(&mut self) -> Op {
        let id = NetworkId::from_uuid(self.id());
        let routed = |one: &One| one.wanted.spec.mode == NetworkMode::Routed;
        let mode = match self.dice.below(4) {
            0 => NetworkMode::Isolated,
            // Nothing is translated: one of these alone may have them.
            1 if !self.networks.values().any(routed) => NetworkMode::Routed,
            _ => NetworkMode::Nat,
        };
        // All networks have the same addresses.
        let mut spec = NetworkSpec::new(mode, parse_cidr("10.9.0.0/24").unwrap()).unwrap();
        spec.dns = vec![Ipv4Addr::new(192, 0, 2, 53)];
        spec.mtu = 1_400;
        if self.dice.one_in(2) {
            spec.ipv6 = Some(Ipv6Spec::new("fd00::/64".parse().unwrap()).unwrap());
        }
        let wanted = DesiredNetwork {
            id,
            name: format!("net-{}", self.made).parse().unwrap(),
            spec,
            ports: vec![],
            forwards: vec![],
            overlay: None,
            groups: vec![],
        };
        self.ids.push(id);
        self.networks.insert(
            id,
            One {
                wanted,
                open: BTreeMap::new(),
            },
        );
        for _ in 0..=self.dice.below(3) {
            self.add_port(id);
        }
        let kill = self.kill();
        Op::Ensure(id, "a new network".into(), kill)
    }

    fn one(&mut self, id: NetworkId) -> &mut One {
        self.networks.get_mut(&id).unwrap()
    }

    fn add_port(&mut self, network: NetworkId) -> Option<String> {
        let uuid = self.id();
        let taken: BTreeSet<u8> = {
            let one = self.one(network);
            one.wanted.ports.iter().map(|p| p.address.octets()[3]).collect()
        };
        if taken.len() >= PORTS_MAX {
            return None;
        }
        let place = (10..30).find(|n| !taken.contains(n))?;
        let nat6 = self.one(network).wanted.spec.ipv6.is_some() && self.dice.one_in(2);
        let rules = self.rules(2);
        let port = DesiredPort {
            id: PortId::from_uuid(uuid),
            // The same in all networks.
            mac: Mac::local(0x09_00_00 + u32::from(place)),
            address: Ipv4Addr::new(10, 9, 0, place),
            address6: nat6.then(|| format!("fd00::{place:x}").parse().unwrap()),
            hostname: format!("guest-{place}").parse().unwrap(),
            metadata_route: true,
            rules,
            policy: Default::default(),
        };
        let told = format!("port {} comes", port.address);
        self.one(network).wanted.ports.push(port);
        Some(told)
    }

    fn rules(&mut self, most: u64) -> Vec<vbm_core::Rule> {
        let mut rules: Vec<vbm_core::Rule> = Vec::new();
        for _ in 0..self.dice.below(most + 1) {
            let rule = self.dice.pick(&RULES).text.parse().unwrap();
            if !rules.contains(&rule) {
                rules.push(rule);
            }
        }
        rules
    }

    /// Changes one thing of a network; `None`: there is nothing of that sort.
    fn change(&mut self, id: NetworkId) -> Option<String> {
        match self.dice.below(15) {
            0..3 => self.add_port(id),
            3 => self.remove_port(id),
            4 => {
                let rules = self.rules(3);
                let port = self.port(id)?;
                let told = format!("rules of {}", port.address);
                port.rules = rules;
                Some(told)
            }
            5 => self.group(id),
            6 => self.membership(id),
            7 => self.limits(id),
            8 => self.floating(id),
            9 => self.add_forward(id),
            10 => {
                let n = self.networks[&id].wanted.forwards.len();
                let at = if n == 0 { return None } else { self.dice.index(n) };
                let gone = self.one(id).wanted.forwards.remove(at);
                Some(format!("no more forward of {}", gone.listen_port))
            }
            11 => self.pairs(id),
            12 | 13 => self.overlay(id),
            _ => Some(self.spec(id)),
        }
    }

    fn port(&mut self, id: NetworkId) -> Option<&mut DesiredPort> {
        let n = self.networks[&id].wanted.ports.len();
        let at = self.dice.index(n);
        self.one(id).wanted.ports.get_mut(at)
    }

    fn remove_port(&mut self, id: NetworkId) -> Option<String> {
        let gone = self.port(id)?.id;
        let one = self.one(id);
        one.wanted.ports.retain(|p| p.id != gone);
        one.wanted.forwards.retain(|f| f.target != gone);
        one.open.remove(&gone);
        Some(format!("no more port {}", gone.short()))
    }

    fn group(&mut self, id: NetworkId) -> Option<String> {
        let there = self.networks[&id].wanted.groups.len();
        let rules = self.rules(3);
        if there < GROUPS_MAX && self.dice.one_in(2) {
            let group = GroupId::from_uuid(self.id());
            let name = format!("group-{}", self.made).parse().unwrap();
            let egress_closed = self.dice.one_in(3);
            let spec = GroupSpec { rules, egress_closed };
            self.one(id).wanted.groups.push(DesiredGroup {
                id: group,
                name,
                spec,
                members: vec![],
            });
            return Some(format!("group {} comes", group.short()));
        }
        if there == 0 {
            return None;
        }
        let at = self.dice.index(there);
        if self.dice.one_in(3) {
            // Who is in it stays in it: a group that is gone lets nothing pass.
            let gone = self.one(id).wanted.groups.remove(at);
            return Some(format!("no more group {}", gone.id.short()));
        }
        let far = self.dice.below(3);
        let group = &mut self.one(id).wanted.groups[at];
        group.spec.rules = rules;
        group.members = (0..far)
            .map(|n| format!("10.9.0.{}/32", 200 + n).parse().unwrap())
            .collect();
        Some(format!("rules and members of group {}", group.id.short()))
    }

    fn membership(&mut self, id: NetworkId) -> Option<String> {
        let groups: Vec<GroupId> = self.networks[&id].wanted.groups.iter().map(|g| g.id).collect();
        if groups.is_empty() {
            return None;
        }
        let group = *self.dice.pick(&groups);
        let port = self.port(id)?;
        let of = &mut port.policy.groups;
        if of.contains(&group) {
            of.retain(|g| *g != group);
        } else {
            of.push(group);
        }
        Some(format!("{} and group {}", port.address, group.short()))
    }

    fn limits(&mut self, id: NetworkId) -> Option<String> {
        let mut some = || self.dice.one_in(2).then(|| 1_000 + self.dice.below(9) * 1_000);
        let limits = PortLimits {
            in_kbit_per_second: some().map(|n| n as _),
            out_kbit_per_second: some().map(|n| n as _),
            connections: some().map(|n| n as _),
        };
        let port = self.port(id)?;
        port.policy.limits = limits;
        Some(format!("limits of {}", port.address))
    }

    fn floating(&mut self, id: NetworkId) -> Option<String> {
        if self.networks[&id].wanted.spec.mode != NetworkMode::Nat {
            return None;
        }
        let taken: BTreeSet<Ipv4Addr> = self
            .networks
            .values()
            .flat_map(|one| &one.wanted.ports)
            .filter_map(|p| p.policy.floating)
            .collect();
        let address = Ipv4Addr::new(192, 0, 2, FLOATING_FIRST + self.dice.below(FLOATING_COUNT) as u8);
        let port = self.port(id)?;
        let told = format!("floating IP of {}", port.address);
        match port.policy.floating.take() {
            Some(_) => {}
            None if taken.contains(&address) => return None,
            None => port.policy.floating = Some(address),
        }
        Some(told)
    }

    fn add_forward(&mut self, id: NetworkId) -> Option<String> {
        let net = &self.networks[&id].wanted;
        if net.spec.mode != NetworkMode::Nat || net.forwards.len() >= FORWARDS_MAX || net.ports.is_empty() {
            return None;
        }
        let taken: BTreeSet<u16> = self
            .networks
            .values()
            .flat_map(|one| &one.wanted.forwards)
            .map(|f| f.listen_port)
            .collect();
        let listen_port = LISTEN_FIRST + 10 * self.dice.below(40) as u16;
        if taken.contains(&listen_port) {
            return None;
        }
        let forward = DesiredForward {
            id: ForwardId::from_uuid(self.id()),
            protocol: if self.dice.one_in(2) {
                Protocol::Tcp
            } else {
                Protocol::Udp
            },
            listen_address: None,
            listen_port,
            target: self.port(id)?.id,
            target_port: 80,
            count: 1 + self.dice.below(4) as u16,
        };
        self.one(id).wanted.forwards.push(forward);
        Some(format!("forward of {listen_port}"))
    }

    fn pairs(&mut self, id: NetworkId) -> Option<String> {
        let number = self.dice.below(4);
        let port = self.port(id)?;
        port.policy.pairs = match number {
            0 => vec![],
            n => vec![AddressPair::of(format!("10.9.0.{}", 220 + n).parse().unwrap())],
        };
        Some(format!("pairs of {}", port.address))
    }

    fn overlay(&mut self, id: NetworkId) -> Option<String> {
        let (local, host) = (self.local, self.far);
        let place = self.ids.iter().position(|i| *i == id).unwrap() as u32;
        let nonce = (self.nonce % 0x00ff) as u32 * 0x100;
        let count = self.dice.below(REMOTES_MAX as u64 + 1) as u8;
        let gone = self.dice.one_in(5);
        let wanted = &mut self.one(id).wanted;
        if gone {
            return wanted.overlay.take().map(|_| "no more overlay".to_owned());
        }
        let six = wanted.spec.ipv6.is_some();
        let remotes = (0..count).map(|n| RemotePort {
            mac: Mac::local(0x0a_00_00 + u32::from(n)),
            address: Ipv4Addr::new(10, 9, 0, 100 + n),
            address6: six.then(|| format!("fd00::{:x}", 0x100 + u16::from(n)).parse().unwrap()),
            host,
        });
        wanted.overlay = Some(DesiredOverlay {
            vni: VNI_FIRST + nonce + place % 0x100,
            local,
            names: Default::default(),
            remotes: remotes.collect(),
        });
        Some(format!("{count} remote ports"))
    }

    fn spec(&mut self, id: NetworkId) -> String {
        let which = self.dice.below(4);
        let spec = &mut self.one(id).wanted.spec;
        match which {
            0 => spec.mtu = if spec.mtu == 1_400 { 1_300 } else { 1_400 },
            1 => spec.serve_dns = !spec.serve_dns,
            2 => {
                spec.metadata = if spec.metadata == MetadataMode::Off {
                    MetadataMode::default()
                } else {
                    MetadataMode::Off
                }
            }
            _ => spec.dns = vec![],
        }
        ["MTU", "DNS", "metadata", "DNS servers"][which as usize].into()
    }

    fn open(&mut self, id: NetworkId) -> Option<Op> {
        let kind = if self.dice.one_in(4) {
            NicKind::Interface
        } else {
            NicKind::Tap
        };
        let port = self.port(id)?.id;
        if self.networks[&id].open.contains_key(&port) {
            return None;
        }
        self.one(id).open.insert(port, kind);
        Some(Op::Open(id, port, kind))
    }

    fn close(&mut self, id: NetworkId) -> Option<Op> {
        let open: Vec<PortId> = self.networks[&id].open.keys().copied().collect();
        if open.is_empty() {
            return None;
        }
        let port = *self.dice.pick(&open);
        self.one(id).open.remove(&port);
        Some(Op::Close(id, port))
    }

    fn harm(&mut self, id: NetworkId) -> Option<Op> {
        let harm = Harm::random(&mut self.dice, &self.networks[&id])?;
        if let Some(port) = harm.kills {
            self.one(id).open.remove(&port);
        }
        Some(Op::Harm(id, harm))
    }
}
