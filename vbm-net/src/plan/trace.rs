//! Why a packet passes or does not: the same model that the rules are rendered from, asked for one packet, with its answer named.
//!
//! ```text
//!   guard of the sender -> egress of the sender -> way through the network -> ingress of the receiver -> receiver
//! ```
//!
//! It is of a packet that begins a flow: answers to one that passed, pass. It looks at no kernel; that the kernel does the same is
//! what the tests with random rules and packets show.

use super::policy::{Owners, Packet, Policies, Source};
use crate::{DesiredNetwork, DesiredPort, Validated, dns, metadata};
use std::{fmt, net::IpAddr};
use vbm_core::{
    Direction, GroupId, Name, NetworkMode, PortId, Protocol, Rule,
    network::{METADATA_ADDRESS, VXLAN_PORT},
};

/// ICMPv6 messages of neighbours, which the guard alone judges (RFC 4861).
const NEIGHBOURS: std::ops::RangeInclusive<u8> = 135..=136;
/// ICMPv6 messages that only a router says: advertisement and redirect (RFC 4861).
const ROUTERS: [u8; 2] = [134, 137];
/// Messages of ICMP and ICMPv6 that begin something, and are answered (linux/net/netfilter/nf_conntrack_proto_icmp.c, _icmpv6.c).
const BEGIN: [u8; 4] = [8, 13, 15, 17];
const BEGIN6: [u8; 2] = [128, 139];
/// Messages of ICMPv6 that are not tracked: rules alone decide.
const UNTRACKED6: [u8; 9] = [130, 131, 132, 133, 134, 135, 136, 137, 143];
/// ICMP echo request (RFC 792).
const ECHO_REQUEST: u8 = 8;
/// The same of ICMPv6 (RFC 4443).
const ECHO_REQUEST6: u8 = 128;

/// What decided.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Decider {
    /// A rule of a group, or of the port's own.
    Rule {
        /// Which way it was asked.
        way: Direction,
        /// Whose port was asked.
        port: PortId,
        /// The group it stands in; `None`: the port's own.
        group: Option<(GroupId, Name)>,
        /// The rule.
        rule: Rule,
    },
    /// No rule: what holds without one. Out: all, if no rule speaks of it; in: nothing.
    Default {
        /// Which way it was asked.
        way: Direction,
        /// Whose port was asked.
        port: PortId,
    },
    /// The guard: nobody may send this, or hear it.
    Guard,
    /// Connection tracking: a message that speaks of a flow which is not known.
    Tracking,
    /// The gateway: it answers pings, and serves.
    Gateway,
    /// The network's mode, its forwards, or that nobody has the address.
    Network,
    /// The groups of the far host.
    FarHost,
}

/// One step of a packet's path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Where it is.
    pub at: String,
    /// What is said of it there.
    pub says: String,
    /// Whether it goes on.
    pub passes: bool,
}

/// A packet's path, and what decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// Whether it arrives.
    pub allowed: bool,
    /// What decided: what stopped it, or the last that let it pass.
    pub by: Decider,
    /// Its path as far as it comes.
    pub path: Vec<Step>,
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.path {
            writeln!(
                f,
                "{} {}: {}",
                if step.passes { "->" } else { "X " },
                step.at,
                step.says
            )?;
        }
        f.write_str(if self.allowed {
            "it passes"
        } else {
            "it is dropped"
        })
    }
}

/// Traces a packet that begins a flow.
pub fn trace(net: &Validated<DesiredNetwork>, packet: &Packet) -> Trace {
    let mut walk = Walk {
        net,
        policies: Policies::new(net),
        owners: Owners::new(net),
        packet,
        path: Vec::new(),
        by: Decider::Network,
    };
    let allowed = walk.run().is_some();
    Trace {
        allowed,
        by: walk.by,
        path: walk.path,
    }
}

struct Walk<'a> {
    net: &'a Validated<DesiredNetwork>,
    policies: Policies<'a>,
    owners: Owners<'a>,
    packet: &'a Packet,
    path: Vec<Step>,
    by: Decider,
}

impl<'a> Walk<'a> {
    /// `None` where the packet ends.
    fn run(&mut self) -> Option<()> {
        let (from, to) = (self.packet.from, self.packet.to);
        if from.is_ipv4() != to.is_ipv4() {
            return self.stop(Decider::Guard, "the wire", "no packet is of both families".into());
        }
        let senders = self.owners.of(from);
        if senders.is_empty() {
            self.comes_from_elsewhere(from)?;
        } else {
            self.leaves(&senders)?;
        }
        self.begins()?;
        let receivers = self.owners.of(to);
        if receivers.is_empty() {
            return self.goes_elsewhere(to, &senders);
        }
        if self.is_neighbours() {
            return self.pass(Decider::Guard, "guard", "neighbours may ask and answer".into());
        }
        let translated = self.net.spec.mode == NetworkMode::Nat;
        if translated && senders.is_empty() && !self.is_inside(from) {
            self.by_forward(&receivers)?;
        }
        self.enters(&receivers)
    }

    fn step(&mut self, by: Decider, at: impl Into<String>, says: String, passes: bool) -> Option<()> {
        self.path.push(Step {
            at: at.into(),
            says,
            passes,
        });
        self.by = by;
        passes.then_some(())
    }
    fn pass(&mut self, by: Decider, at: impl Into<String>, says: String) -> Option<()> {
        self.step(by, at, says, true)
    }
    fn stop(&mut self, by: Decider, at: impl Into<String>, says: String) -> Option<()> {
        self.step(by, at, says, false)
    }

    fn is_inside(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(a) => self.net.spec.cidr.contains(&a),
            IpAddr::V6(a) if super::routed::carries_ipv6(self.net) => {
                let mut six = self.net.spec.ipv6.iter();
                a.is_unicast_link_local() || six.any(|six| six.cidr.contains(&a))
            }
            IpAddr::V6(_) => true,
        }
    }
    fn is_bridged(&self) -> bool {
        self.net.spec.mode == NetworkMode::Bridged
    }
    fn is_remote(&self, address: IpAddr) -> bool {
        let mut remotes = self.net.overlay.iter().flat_map(|o| &o.remotes);
        remotes.any(|r| address == r.address || r.address6.is_some_and(|a| address == a))
    }
    fn is_gateway(&self, address: IpAddr) -> bool {
        match address {
            // Of a bridged network it is a machine of the LAN.
            IpAddr::V4(a) => a == self.net.spec.gateway && !self.is_bridged(),
            IpAddr::V6(a) => {
                let six = self.net.spec.ipv6.as_ref();
                six.is_some_and(|six| a == six.gateway || a == crate::model::GATEWAY_LINK_LOCAL)
            }
        }
    }
    /// Whether it is the gateway's, or that of a service of it.
    fn is_gateways(&self, address: IpAddr) -> bool {
        let metadata = self.net.spec.serves_metadata() && address == IpAddr::V4(METADATA_ADDRESS);
        self.is_gateway(address) || metadata
    }
    /// What the gateway answers of this kind at this address.
    fn served(&self, to: IpAddr) -> Option<&'static str> {
        let packet = self.packet;
        let at_gateway = self.is_gateway(to);
        match (packet.protocol, packet.to_port) {
            (Protocol::Icmp, _) if at_gateway => {
                let ping = packet.icmp.is_none_or(|(kind, _)| kind == ECHO_REQUEST);
                ping.then_some("pings")
            }
            (Protocol::Icmpv6, _) if at_gateway => {
                let ping = packet.icmp.is_none_or(|(kind, _)| kind == ECHO_REQUEST6);
                ping.then_some("pings")
            }
            (Protocol::Tcp | Protocol::Udp, Some(dns::PORT)) if at_gateway && to.is_ipv4() => {
                self.net.spec.serve_dns.then_some("DNS")
            }
            (Protocol::Tcp, Some(metadata::PORT)) if !at_gateway => Some("for metadata"),
            _ => None,
        }
    }
    fn is_neighbours(&self) -> bool {
        self.packet.protocol == Protocol::Icmpv6
            && self
                .packet
                .icmp
                .is_some_and(|(kind, _)| NEIGHBOURS.contains(&kind))
    }

    fn comes_from_elsewhere(&mut self, from: IpAddr) -> Option<()> {
        if self.is_gateway(from) {
            return self.pass(
                Decider::Gateway,
                "gateway",
                format!("{from} is the network's own"),
            );
        }
        if self.is_remote(from) {
            return self.pass(
                Decider::FarHost,
                "another host",
                format!("{from} is a port there; what may leave it is judged there"),
            );
        }
        if self.is_bridged() {
            return self.pass(
                Decider::Network,
                "LAN",
                format!("{from} is no port's: it comes by the LAN"),
            );
        }
        if self.is_inside(from) {
            return self.stop(Decider::Guard, "guard", format!("no port may use {from}"));
        }
        if self.net.spec.mode == NetworkMode::Isolated {
            let says = format!("{from} is outside, and the network is isolated");
            return self.stop(Decider::Network, "network", says);
        }
        self.pass(
            Decider::Network,
            "world",
            format!("{from} is outside the network"),
        )
    }

    fn leaves(&mut self, senders: &[&'a DesiredPort]) -> Option<()> {
        let names: Vec<_> = senders.iter().map(|p| p.hostname.to_string()).collect();
        let at = format!("guard of {}", names.join(" or "));
        let from = self.packet.from;
        if from.is_ipv4() && self.is_gateways(self.packet.to) && !senders.iter().any(|p| from == p.address) {
            let says = format!("may use {from}, but speaks to the gateway by its own address alone");
            return self.stop(Decider::Guard, at, says);
        }
        self.pass(
            Decider::Guard,
            at.clone(),
            format!("may use {}", self.packet.from),
        )?;
        let routing = |(kind, _)| ROUTERS.contains(&kind);
        if self.packet.protocol == Protocol::Icmpv6 && self.packet.icmp.is_some_and(routing) {
            return self.stop(Decider::Guard, at, "only a router says this".into());
        }
        if self.is_neighbours() {
            return Some(());
        }
        self.begins()?;
        self.judge(senders, Direction::Egress)
    }

    /// An error or an answer passes with the flow that it speaks of, whatever rules say; alone it is nothing.
    fn begins(&mut self) -> Option<()> {
        let begins = match (self.packet.protocol, self.packet.icmp) {
            (Protocol::Icmp, Some((kind, _))) => BEGIN.contains(&kind),
            (Protocol::Icmpv6, Some((kind, _))) => BEGIN6.contains(&kind) || UNTRACKED6.contains(&kind),
            _ => true,
        };
        if begins {
            return Some(());
        }
        let says = "it begins nothing, and passes only with the flow that it speaks of".into();
        self.stop(Decider::Tracking, "connection tracking", says)
    }

    fn enters(&mut self, receivers: &[&'a DesiredPort]) -> Option<()> {
        self.judge(receivers, Direction::Ingress)
    }

    /// The first port that lets it pass decides; else the last that does not.
    fn judge(&mut self, ports: &[&'a DesiredPort], way: Direction) -> Option<()> {
        let mut last = None;
        for port in ports {
            last = self.judge_one(port, way);
            if last.is_some() {
                break;
            }
        }
        last
    }

    fn judge_one(&mut self, port: &'a DesiredPort, way: Direction) -> Option<()> {
        let at = format!("{way} of {}", port.hostname);
        if let Some((source, rule)) = self.policies.rule_for(port, way, self.packet) {
            let group = named(&source);
            let from = group.as_ref().map_or_else(
                || "a rule of its own".to_owned(),
                |(_, name)| format!("group {name}"),
            );
            let says = format!("{from} allows it: {rule}");
            return self.pass(
                Decider::Rule {
                    way,
                    port: port.id,
                    group,
                    rule: rule.clone(),
                },
                at,
                says,
            );
        }
        let by = Decider::Default { way, port: port.id };
        if way == Direction::Egress && self.policies.egress_open(port) {
            return self.pass(by, at, "no rule closes the way out".into());
        }
        let sources = self.policies.sources(port);
        let asked: Vec<String> = sources.iter().map(spelled).collect();
        let says = format!("nothing allows it: asked {}", asked.join(", "));
        self.stop(by, at, says)
    }

    fn goes_elsewhere(&mut self, to: IpAddr, senders: &[&'a DesiredPort]) -> Option<()> {
        if self.is_gateways(to) {
            // Those of the bridge alone are heard.
            let served = self.served(to).filter(|_| !senders.is_empty());
            return match served {
                Some(what) => self.pass(Decider::Gateway, "gateway", format!("it answers {what}")),
                None => self.stop(
                    Decider::Gateway,
                    "gateway",
                    "it answers pings and its own services, nothing else".into(),
                ),
            };
        }
        if self.is_remote(to) {
            return if senders.is_empty() {
                self.stop(
                    Decider::Network,
                    "network",
                    format!("{to} is on another host, and only VMs of this one go there"),
                )
            } else {
                self.pass(
                    Decider::FarHost,
                    "another host",
                    format!("{to} is a port there; what may enter it is judged there"),
                )
            };
        }
        if self.is_bridged() {
            return match senders.is_empty() {
                true => self.stop(
                    Decider::Network,
                    "LAN",
                    format!("{to} is no port's: it is not for this network"),
                ),
                false => self.pass(
                    Decider::Network,
                    "LAN",
                    format!("{to} is no port's: out by the LAN"),
                ),
            };
        }
        if self.is_inside(to) {
            return self.stop(Decider::Network, "network", format!("no port has {to}"));
        }
        if self.net.spec.mode == NetworkMode::Isolated || senders.is_empty() {
            return self.stop(Decider::Network, "network", format!("no way leads to {to}"));
        }
        if self.packet.protocol == Protocol::Udp && self.packet.to_port == Some(VXLAN_PORT) {
            return self.stop(Decider::Network, "network", "only hosts speak VXLAN".into());
        }
        let by = match senders.iter().find_map(|p| p.policy.floating) {
            Some(address) => format!("out by its floating IP {address}"),
            None if self.net.spec.mode == NetworkMode::Routed => format!("out as {}", self.packet.from),
            None => "out by the host's address".into(),
        };
        self.pass(Decider::Network, "world", by)
    }

    fn by_forward(&mut self, receivers: &[&'a DesiredPort]) -> Option<()> {
        let found = self.net.forwards.iter().find(|f| {
            receivers.iter().any(|p| p.id == f.target)
                && f.protocol == self.packet.protocol
                && self
                    .packet
                    .to_port
                    .is_some_and(|at| f.in_step(f.target_port, at, f.listen_port).is_some())
        });
        match found {
            Some(f) => self.pass(
                Decider::Network,
                "forward",
                format!(
                    "the host's {}/{} leads there",
                    f.protocol,
                    self.packet
                        .to_port
                        .and_then(|at| f.in_step(f.target_port, at, f.listen_port))
                        .unwrap_or(f.listen_port)
                ),
            ),
            None => match receivers.iter().find_map(|p| p.policy.floating) {
                Some(address) => self.pass(Decider::Network, "floating IP", format!("{address} leads there")),
                None => self.stop(
                    Decider::Network,
                    "network",
                    "no forward and no floating IP leads there from outside".into(),
                ),
            },
        }
    }
}

fn named(source: &Source<'_>) -> Option<(GroupId, Name)> {
    source
        .group
        .and_then(|(id, group)| group.map(|g| (id, g.name.clone())))
}

fn spelled(source: &Source<'_>) -> String {
    match source.group {
        None if source.rules.is_empty() => "no group".into(),
        None => "its own rules".into(),
        Some((id, None)) => format!("group {id}, which is gone"),
        Some((_, Some(group))) => format!("group {}", group.name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixture::{group, lab};

    fn packet(from: &str, to: &str, rule: &str) -> Packet {
        let rule: Rule = rule.parse().unwrap();
        Packet {
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            protocol: rule.protocol,
            to_port: rule.ports.map(vbm_core::PortRange::first),
            icmp: rule.icmp.map(|i| (i.kind(), i.code().unwrap_or(0))),
        }
    }

    #[test]
    fn the_group_and_the_rule_that_decide_are_named() {
        let mut net = lab(NetworkMode::Nat).into_inner();
        net.groups = vec![
            group(1, &["tcp/443@group:00000000-0000-0000-0000-000000000002"]),
            group(2, &["egress:tcp"]),
        ];
        net.ports[0].rules.clear();
        net.ports[0].policy.groups = vec![net.groups[0].id];
        net.ports[1].policy.groups = vec![net.groups[1].id];
        let net = Validated::<DesiredNetwork>::new(net).unwrap();
        let passed = trace(&net, &packet("10.77.0.11", "10.77.0.10", "tcp/443"));
        assert!(passed.allowed);
        assert!(
            matches!(&passed.by, Decider::Rule { way: Direction::Ingress, group: Some((_, name)), .. } if name.as_str() == "group-1")
        );
        assert_eq!(
            passed.to_string(),
            "-> guard of vm1: may use 10.77.0.11\n\
             -> egress of vm1: group group-2 allows it: egress:tcp\n\
             -> ingress of vm0: group group-1 allows it: tcp/443@group:00000000-0000-0000-0000-000000000002\n\
             it passes"
        );
        let shut = trace(&net, &packet("10.77.0.11", "10.77.0.10", "tcp/80"));
        assert_eq!(
            shut.by,
            Decider::Default {
                way: Direction::Ingress,
                port: net.ports[0].id
            }
        );
        let kept = trace(&net, &packet("10.77.0.11", "192.0.2.1", "udp/53"));
        assert_eq!(
            kept.by,
            Decider::Default {
                way: Direction::Egress,
                port: net.ports[1].id
            }
        );
    }

    #[test]
    fn an_allowed_address_does_not_lead_to_the_gateway() {
        let mut net = lab(NetworkMode::Nat).into_inner();
        net.ports[0].policy.pairs = vec![vbm_core::AddressPair::of("10.77.0.200".parse().unwrap())];
        let net = Validated::<DesiredNetwork>::new(net).unwrap();
        for (from, to, allowed) in [
            ("10.77.0.200", "169.254.169.254", false),
            ("10.77.0.10", "169.254.169.254", true),
            ("10.77.0.200", "192.0.2.1", true),
        ] {
            let found = trace(&net, &packet(from, to, "tcp/80"));
            assert_eq!(found.allowed, allowed, "{found}");
        }
    }

    #[test]
    fn what_no_group_decides_is_named_too() {
        let nat = lab(NetworkMode::Nat);
        for (from, to, rule, allowed, by) in [
            ("10.77.0.99", "10.77.0.10", "tcp/80", false, Decider::Guard),
            ("10.77.0.10", "10.77.0.99", "tcp/80", false, Decider::Network),
            ("10.77.0.10", "192.0.2.1", "tcp/80", true, Decider::Network),
            ("10.77.0.10", "192.0.2.1", "udp/4789", false, Decider::Network),
            ("10.77.0.10", "10.77.0.1", "icmp/type=8", true, Decider::Gateway),
            ("10.77.0.10", "10.77.0.1", "tcp/22", false, Decider::Gateway),
            ("10.77.0.10", "10.77.0.1", "udp/53", true, Decider::Gateway),
            ("10.77.0.10", "10.77.0.1", "tcp/80", false, Decider::Gateway),
            ("10.77.0.10", "169.254.169.254", "tcp/80", true, Decider::Gateway),
            ("10.77.0.10", "169.254.169.254", "tcp/81", false, Decider::Gateway),
            ("192.0.2.1", "10.77.0.1", "udp/53", false, Decider::Gateway),
            ("192.0.2.1", "10.77.0.10", "tcp/81", false, Decider::Network),
            ("10.77.0.10", "fd00::1", "tcp/80", false, Decider::Guard),
        ] {
            let found = trace(&nat, &packet(from, to, rule));
            assert_eq!(
                (found.allowed, &found.by),
                (allowed, &by),
                "{from} {to} {rule}: {found}"
            );
        }
        let forwarded = trace(&nat, &packet("192.0.2.1", "10.77.0.10", "tcp/80"));
        assert!(
            forwarded.allowed && forwarded.path.iter().any(|s| s.at == "forward"),
            "{forwarded}"
        );
        let ping = packet("192.0.2.9", "10.77.0.10", "icmp/type=8");
        assert!(!trace(&nat, &ping).allowed);
        let mut floats = nat.into_inner();
        floats.ports[0].policy.floating = Some([192, 0, 2, 50].into());
        let floats = Validated::<DesiredNetwork>::new(floats).unwrap();
        let floating = trace(&floats, &ping);
        assert!(
            floating.allowed && floating.path.iter().any(|s| s.at == "floating IP"),
            "{floating}"
        );
        let out = trace(&floats, &packet("10.77.0.10", "192.0.2.1", "tcp/443")).to_string();
        assert!(out.contains("out by its floating IP 192.0.2.50"), "{out}");
    }
}
