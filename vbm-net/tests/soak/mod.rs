//! A host's networks as they are wanted, changed at random by a seed: the same seed makes the same story, in any process.
//!
//! ```text
//!   dice --> World::step --> Op: what was changed, broken or killed    --> done to a backend
//!                       +--> World: what must stand now                --> compared with what is read
//! ```

#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
#![allow(clippy::cast_possible_truncation, reason = "test values are small")]

mod changes;
pub(crate) mod harm;
pub(crate) mod words;

use harm::Harm;
use std::{collections::BTreeMap, net::Ipv4Addr};
use uuid::Uuid;
use vbm_core::{InterfaceName, Ipv6Spec, NetworkId, NetworkMode, NetworkSpec, PortId, network::parse_cidr};
use vbm_net::{DesiredNetwork, NicKind};

/// The way of the host to a LAN that networks may share: a bridge, on which the host has an address.
pub(crate) const BRIDGE: &str = "br-lan";
/// The way that one network may have for itself: an interface without addresses.
pub(crate) const INTERFACE: &str = "eth2";

/// How many networks there are at most: enough to meet each other, few enough to be quick.
const NETWORKS_MAX: usize = 3;

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

impl One {
    /// Whether it is on the LAN of this interface.
    pub(crate) fn goes_by(&self, interface: &str) -> bool {
        let uplink = self.wanted.spec.uplink.as_ref();
        self.is_bridged() && uplink.is_some_and(|name| name.as_str() == interface)
    }
    pub(crate) fn is_bridged(&self) -> bool {
        self.wanted.spec.mode == NetworkMode::Bridged
    }
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
        let mode = match self.dice.below(5) {
            0 => NetworkMode::Isolated,
            // Nothing is translated: one of these alone may have them.
            1 if !self.networks.values().any(routed) => NetworkMode::Routed,
            2 => NetworkMode::Bridged,
            _ => NetworkMode::Nat,
        };
        let bridged = mode == NetworkMode::Bridged;
        let uplink = bridged.then(|| self.uplink());
        // All networks have the same addresses.
        let cidr = parse_cidr("10.9.0.0/24").unwrap();
        let mut spec = NetworkSpec::with_uplink(mode, cidr, uplink).unwrap();
        spec.dns = vec![Ipv4Addr::new(192, 0, 2, 53)];
        spec.mtu = 1_400;
        if bridged {
            spec.serve_dhcp = self.dice.one_in(2);
        } else if self.dice.one_in(2) {
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

    /// A way to a LAN that is free.
    fn uplink(&mut self) -> InterfaceName {
        let taken = self.networks.values().any(|one| one.goes_by(INTERFACE));
        let name = if !taken && self.dice.one_in(2) {
            INTERFACE
        } else {
            BRIDGE
        };
        name.parse().unwrap()
    }

    fn one(&mut self, id: NetworkId) -> &mut One {
        self.networks.get_mut(&id).unwrap()
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
