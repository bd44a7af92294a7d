//! What changes of a network that is wanted: one thing at a time.

use super::{BRIDGE, INTERFACE, World, words::RULES};
use std::{collections::BTreeSet, net::Ipv4Addr};
use vbm_core::{
    AddressPair, ForwardId, GroupId, GroupSpec, Mac, MetadataMode, NetworkId, NetworkMode, PortId,
    PortLimits, Protocol, network::VNI_FIRST,
};
use vbm_net::{DesiredForward, DesiredGroup, DesiredOverlay, DesiredPort, RemotePort};

/// How many of each there are at most in a network: enough to meet each other, few enough to be quick.
const PORTS_MAX: usize = 6;
const GROUPS_MAX: usize = 3;
const FORWARDS_MAX: usize = 4;
const REMOTES_MAX: usize = 4;
/// The first of the floating IPs.
const FLOATING_FIRST: u8 = 50;
const FLOATING_COUNT: u64 = 8;
/// The first port of the host that is forwarded.
const LISTEN_FIRST: u16 = 8_000;

impl World {
    pub(super) fn add_port(&mut self, network: NetworkId) -> Option<String> {
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
    pub(super) fn change(&mut self, id: NetworkId) -> Option<String> {
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

    pub(super) fn port(&mut self, id: NetworkId) -> Option<&mut DesiredPort> {
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
        if self.networks[&id].is_bridged() {
            let dhcp = self.dice.one_in(2);
            return Some(self.lan(id, dhcp));
        }
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
        if self.networks[&id].is_bridged() && (1..3).contains(&which) {
            return self.lan(id, which == 1);
        }
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

    /// DNS and metadata are the LAN's: who serves DHCP changes instead, or which LAN it is.
    fn lan(&mut self, id: NetworkId, dhcp: bool) -> String {
        if dhcp {
            let spec = &mut self.one(id).wanted.spec;
            spec.serve_dhcp = !spec.serve_dhcp;
            return format!("our own DHCP: {}", spec.serve_dhcp);
        }
        let uplink = if self.networks[&id].goes_by(INTERFACE) {
            BRIDGE.parse().unwrap()
        } else {
            self.uplink()
        };
        let told = format!("on the LAN of {uplink}");
        self.one(id).wanted.spec.uplink = Some(uplink);
        told
    }
}
