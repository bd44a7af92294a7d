//! Which running flows a change must cut: those that the new rules and forwards would not let begin.
//!
//! Removing a rule does not end a flow: the kernel remembers it and lets its packets pass as `ESTABLISHED`. So after
//! each change the flows towards VMs are read, judged by the same rules, and those that fail are
//! deleted. `nf_conntrack_tcp_loose` is off in the namespace, so that a cut TCP flow cannot begin again in its middle.

use super::{
    Transit, inside,
    policy::{Owners, Packet, Policies},
};
use crate::{DesiredNetwork, Validated};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};
use vbm_core::{Direction, ForwardId, NetworkMode, Protocol};

/// One flow of the kernel's table, as `conntrack -L` prints it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// `tcp`, `udp`, `icmp`, `icmpv6`; others as their number's name.
    pub protocol: String,
    /// Who began it.
    pub from: IpAddr,
    /// Whom it was sent to, before any translation.
    pub to: IpAddr,
    /// The originator's port, where there are ports.
    pub from_port: Option<u16>,
    /// The destination port, before any translation.
    pub to_port: Option<u16>,
    /// Who answers: the VM itself, after translation.
    pub answerer: IpAddr,
    /// The port that answers.
    pub answerer_port: Option<u16>,
    /// Whom it answers: who began it, after translation.
    pub answered: IpAddr,
    /// Type, code and identifier, where it is of ICMP.
    pub icmp: Option<(u8, u8, u16)>,
}

/// Reads `conntrack -L`; lines that are no flow are passed over.
pub fn parse(text: &str) -> Vec<Flow> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Flow> {
    let protocol = line.split_whitespace().next()?.to_owned();
    let field = |key: &str, nth: usize| {
        line.split_whitespace()
            .filter_map(|word| word.strip_prefix(key)?.strip_prefix('='))
            .nth(nth)
    };
    let address = |key, nth| field(key, nth).and_then(|v| v.parse().ok());
    let port = |key, nth| field(key, nth).and_then(|v| v.parse().ok());
    let small = |key| field(key, 0).and_then(|v| v.parse::<u8>().ok());
    Some(Flow {
        icmp: small("type")
            .zip(small("code"))
            .zip(port("id", 0))
            .map(|((kind, code), id)| (kind, code, id)),
        protocol,
        from: address("src", 0)?,
        to: address("dst", 0)?,
        from_port: port("sport", 0),
        to_port: port("dport", 0),
        answerer: address("src", 1)?,
        answerer_port: port("sport", 1),
        answered: address("dst", 1)?,
    })
}

/// The flows that may not go on.
pub fn to_cut(net: &Validated<DesiredNetwork>, transit: Option<Transit>, flows: &[Flow]) -> Vec<Flow> {
    let who = Who {
        policies: Policies::new(net),
        doors: inside::doors(net),
        ports: Owners::new(net),
        remotes: net
            .overlay
            .iter()
            .flat_map(|o| &o.remotes)
            .flat_map(|r| std::iter::once(r.address.into()).chain(r.address6.map(IpAddr::V6)))
            .collect(),
    };
    flows
        .iter()
        .filter(|flow| !may_go_on(net, &who, transit, flow))
        .cloned()
        .collect()
}

/// Whether a network differs from what it was by further ports alone. Then every flow that could begin before, can now.
pub fn only_adds_ports(before: &DesiredNetwork, now: &DesiredNetwork) -> bool {
    let ports: BTreeMap<_, _> = now.ports.iter().map(|p| (p.id, p)).collect();
    let kept = before.ports.iter().all(|p| ports.get(&p.id) == Some(&p));
    let same = (&before.spec, &before.forwards, &before.overlay, &before.groups);
    kept && same == (&now.spec, &now.forwards, &now.overlay, &now.groups)
}

/// Whose an address of the network is.
struct Who<'a> {
    policies: Policies<'a>,
    ports: Owners<'a>,
    remotes: BTreeSet<IpAddr>,
    /// Where forwards pass the transit.
    doors: BTreeMap<ForwardId, u16>,
}

impl Who<'_> {
    /// Whether one of the ports that have an address lets a flow pass.
    fn allow(&self, address: IpAddr, way: Direction, flow: &Flow) -> bool {
        let packet = flow.packet();
        let mut ports = self.ports.of(address).into_iter();
        ports.any(|port| self.policies.allows(port, way, &packet))
    }
}

impl Flow {
    /// The packet that began it, as it arrived.
    fn packet(&self) -> Packet {
        Packet {
            from: self.from,
            to: self.answerer,
            protocol: self.known_protocol(),
            to_port: self.answerer_port,
            icmp: self.icmp.map(|(kind, code, _)| (kind, code)),
        }
    }

    fn known_protocol(&self) -> Protocol {
        match self.protocol.as_str() {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "icmp" => Protocol::Icmp,
            "icmpv6" => Protocol::Icmpv6,
            _ => Protocol::Any,
        }
    }
}

/// Of a bridged network: what is no port is the LAN or what lies behind it. Where addresses are not known, the end that is outside the LAN
/// tells which the port's is; between two ends on the LAN it is enough that some port may.
fn may_go_on_a_lan(net: &Validated<DesiredNetwork>, who: &Who<'_>, flow: &Flow) -> bool {
    let is_port = |a: IpAddr| !who.ports.of(a).is_empty();
    if net.spec.serve_dhcp {
        let leaves = !is_port(flow.from) || who.allow(flow.from, Direction::Egress, flow);
        return leaves && (!is_port(flow.answerer) || who.allow(flow.answerer, Direction::Ingress, flow));
    }
    let packet = flow.packet();
    let some = |way| net.ports.iter().any(|p| who.policies.allows(p, way, &packet));
    let on_lan = |a: IpAddr| matches!(a, IpAddr::V4(v4) if net.spec.cidr.contains(&v4)) || is_port(a);
    match (on_lan(flow.from), on_lan(flow.answerer)) {
        (true, false) => some(Direction::Egress),
        (false, _) => some(Direction::Ingress),
        (true, true) => some(Direction::Egress) || some(Direction::Ingress),
    }
}

fn may_go_on(net: &Validated<DesiredNetwork>, who: &Who<'_>, transit: Option<Transit>, flow: &Flow) -> bool {
    if net.spec.mode == NetworkMode::Bridged {
        return may_go_on_a_lan(net, who, flow);
    }
    let gateway = IpAddr::V4(net.spec.gateway);
    let is_port = |a: IpAddr| !who.ports.of(a).is_empty();
    let inside = |a: IpAddr| match a {
        IpAddr::V4(v4) => net.spec.cidr.contains(&v4) || is_port(a),
        IpAddr::V6(_) => is_port(a),
    };
    let arriving = who.remotes.contains(&flow.from);
    if is_port(flow.from) && !arriving && !who.allow(flow.from, Direction::Egress, flow) {
        return false;
    }
    let nat = net.spec.mode == NetworkMode::Nat;
    if !is_by_its_floating_ip(nat, who, transit, flow) {
        return false;
    }
    // Out of the network, or begun by what is no VM's address: groups do not speak of it.
    if !inside(flow.answerer) || flow.answerer == gateway {
        return !inside(flow.from) || flow.from == gateway || is_port(flow.from);
    }
    // To a VM of another host: its groups decide there. Nothing but this host's VMs goes that way.
    // One that is on its way here is both.
    if who.remotes.contains(&flow.answerer) && (is_port(flow.from) || !is_port(flow.answerer)) {
        return is_port(flow.from);
    }
    if !is_port(flow.answerer) {
        return false;
    }
    let known = is_port(flow.from) || arriving;
    if inside(flow.from) && flow.from != gateway && !known {
        return false;
    }
    let by_forward = transit.is_some_and(|t| IpAddr::V4(t.inner()) == flow.to);
    if by_forward {
        let doors = &who.doors;
        let stands = inside::forwards(net).into_iter().any(|(forward, target)| {
            forward.protocol == flow.known_protocol()
                && IpAddr::V4(target.address) == flow.answerer
                && flow.answerer_port.is_some()
                && flow
                    .to_port
                    .and_then(|at| forward.in_step(doors[&forward.id], at, forward.target_port))
                    == flow.answerer_port
        });
        if !stands {
            return false;
        }
    }
    who.allow(flow.answerer, Direction::Ingress, flow)
}

/// Whether a flow is translated as floating IPs are now: one that leaves is seen as its port's, one that came by one leads to its port.
fn is_by_its_floating_ip(nat: bool, who: &Who<'_>, transit: Option<Transit>, flow: &Flow) -> bool {
    let Some(transit) = transit.filter(|_| nat) else {
        return true;
    };
    let of = |a: IpAddr| who.ports.of(a).into_iter().find(|p| IpAddr::V4(p.address) == a);
    if flow.answered != flow.from
        && let Some(port) = of(flow.from)
    {
        let seen_as = port.policy.floating.unwrap_or_else(|| transit.inner());
        return flow.answered == IpAddr::V4(seen_as);
    }
    // Translated, and by no door of a forward.
    if flow.to != flow.answerer
        && flow.to != IpAddr::V4(transit.inner())
        && let Some(port) = of(flow.answerer)
    {
        return port.policy.floating.map(IpAddr::V4) == Some(flow.to);
    }
    true
}

/// Of the host's flows that a namespace answers, those whose forward is gone or leads elsewhere now.
pub fn stale_at_host(net: &Validated<DesiredNetwork>, transit: Transit, flows: &[Flow]) -> Vec<Flow> {
    let doors = inside::doors(net);
    let stands = |flow: &Flow| {
        inside::forwards(net).into_iter().any(|(forward, _)| {
            forward.protocol.to_string() == flow.protocol
                && flow.answerer_port.is_some()
                && flow
                    .to_port
                    .and_then(|at| forward.in_step(forward.listen_port, at, doors[&forward.id]))
                    == flow.answerer_port
                && forward.listen_address.is_none_or(|a| IpAddr::V4(a) == flow.to)
        })
    };
    let forwarded = |flow: &&Flow| {
        let inner = IpAddr::V4(transit.inner());
        flow.answerer == inner && flow.to != inner
    };
    flows
        .iter()
        .filter(forwarded)
        .filter(|flow| !stands(flow))
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixture::lab;
    use proptest::prelude::*;

    const TCP: &str = "tcp      6 431999 ESTABLISHED src=192.0.2.9 dst=169.254.64.3 sport=4000 dport=8080 src=10.77.0.10 dst=192.0.2.9 sport=80 dport=4000 [ASSURED] mark=0 use=1";

    fn transit() -> Option<Transit> {
        Transit::new("169.254.64.2/31".parse().unwrap())
    }

    #[test]
    fn a_flow_is_read_as_conntrack_prints_it() {
        let flow = &parse(TCP)[0];
        assert_eq!(
            (flow.protocol.as_str(), flow.to_port, flow.answerer_port),
            ("tcp", Some(8080), Some(80))
        );
        assert_eq!(flow.answerer, IpAddr::from([10, 77, 0, 10]));
        assert_eq!(
            parse("conntrack v1.4.7 (conntrack-tools): 0 flow entries have been shown."),
            []
        );
    }

    #[test]
    fn a_flow_goes_on_as_long_as_its_rule_and_its_forward_stand() {
        let net = lab(NetworkMode::Nat);
        let flows = parse(TCP);
        assert_eq!(to_cut(&net, transit(), &flows), []);
        let mut no_rule = net.clone().into_inner();
        no_rule.ports[0].rules.clear();
        let no_rule = Validated::<DesiredNetwork>::new(no_rule).unwrap();
        assert_eq!(to_cut(&no_rule, transit(), &flows), flows);
        let mut no_forward = net.into_inner();
        no_forward.forwards.clear();
        let no_forward = Validated::<DesiredNetwork>::new(no_forward).unwrap();
        assert_eq!(to_cut(&no_forward, transit(), &flows), flows);
    }

    #[test]
    fn flows_are_asked_for_unless_ports_came_and_nothing_else_changed() {
        let now = lab(NetworkMode::Nat).into_inner();
        let mut before = now.clone();
        before.ports.pop();
        assert!(only_adds_ports(&before, &now) && only_adds_ports(&now, &now));
        assert!(!only_adds_ports(&now, &before));
        before.ports[0].rules.push("tcp".parse().unwrap());
        assert!(!only_adds_ports(&before, &now));
        let mut other = now.clone();
        other.forwards.clear();
        assert!(!only_adds_ports(&now, &other));
    }

    #[test]
    fn a_flow_by_a_range_goes_on_where_it_is_in_step() {
        let mut net = lab(NetworkMode::Nat).into_inner();
        net.forwards.truncate(1);
        net.ports[0].rules = vec!["tcp".parse().unwrap()];
        net.forwards[0].count = 10;
        let net = Validated::<DesiredNetwork>::new(net).unwrap();
        let inside = |at: u16, to: u16| {
            let text = format!(
                "tcp 6 99 ESTABLISHED src=192.0.2.9 dst=169.254.64.3 sport=4000 dport={at} src=10.77.0.10 dst=192.0.2.9 sport={to} dport=4000"
            );
            to_cut(&net, transit(), &parse(&text)).is_empty()
        };
        assert!(inside(8080, 80) && inside(8084, 84) && inside(8089, 89));
        assert!(!inside(8084, 80) && !inside(8090, 90) && !inside(8079, 79));
        let at_host = |at: u16, to: u16| {
            let text = format!(
                "tcp 6 99 ESTABLISHED src=192.0.2.9 dst=192.0.2.1 sport=4000 dport={at} src=169.254.64.3 dst=192.0.2.9 sport={to} dport=4000"
            );
            stale_at_host(&net, transit().unwrap(), &parse(&text)).is_empty()
        };
        assert!(at_host(8085, 8085) && !at_host(8085, 8084) && !at_host(8090, 8090));
    }

    #[test]
    fn a_flow_goes_on_as_long_as_its_port_has_the_floating_ip_that_it_goes_by() {
        let mut net = lab(NetworkMode::Nat).into_inner();
        net.ports[0].policy.floating = Some([192, 0, 2, 50].into());
        let with = Validated::<DesiredNetwork>::new(net.clone()).unwrap();
        net.ports[0].policy.floating = None;
        let without = Validated::<DesiredNetwork>::new(net.clone()).unwrap();
        net.ports[1].policy.floating = Some([192, 0, 2, 50].into());
        let moved = Validated::<DesiredNetwork>::new(net).unwrap();
        let into = "tcp 6 99 ESTABLISHED src=192.0.2.9 dst=192.0.2.50 sport=4000 dport=80 src=10.77.0.10 dst=192.0.2.9 sport=80 dport=4000";
        let out = |seen_as: &str| {
            format!(
                "tcp 6 99 ESTABLISHED src=10.77.0.10 dst=192.0.2.9 sport=4000 dport=80 src=192.0.2.9 dst={seen_as} sport=80 dport=4000"
            )
        };
        let (as_itself, as_host) = (out("192.0.2.50"), out("169.254.64.3"));
        let cut = |net, text: &str| !to_cut(net, transit(), &parse(text)).is_empty();
        for (net, goes_on) in [
            (&with, [true, true, false]),
            (&without, [false, false, true]),
            (&moved, [false, false, true]),
        ] {
            assert_eq!([into, &as_itself, &as_host].map(|text| !cut(net, text)), goes_on);
        }
    }

    #[test]
    fn what_a_vm_began_goes_on_unless_the_vm_is_gone() {
        let net = lab(NetworkMode::Nat);
        let flow = |from: &str, answerer: &str| {
            parse(&format!(
                "udp 17 29 src={from} dst={answerer} sport=1 dport=53 src={answerer} dst={from} sport=53 dport=1"
            ))
        };
        assert_eq!(to_cut(&net, transit(), &flow("10.77.0.10", "192.0.2.9")), []);
        assert_eq!(to_cut(&net, transit(), &flow("10.77.0.99", "192.0.2.9")).len(), 1);
        assert_eq!(
            to_cut(&net, transit(), &flow("10.77.0.10", "10.77.0.11")).len(),
            1
        );
        assert_eq!(to_cut(&net, transit(), &flow("192.0.2.9", "10.77.0.99")).len(), 1);
    }

    #[test]
    fn a_flow_of_a_vm_ends_when_its_way_out_closes_and_messages_are_judged_by_their_type() {
        let mut net = lab(NetworkMode::Nat).into_inner();
        net.ports[1].rules = vec!["egress:udp/53".parse().unwrap(), "icmp/type=8".parse().unwrap()];
        let net = Validated::<DesiredNetwork>::new(net).unwrap();
        let udp = |port| {
            parse(&format!(
                "udp 17 29 src=10.77.0.11 dst=192.0.2.9 sport=1 dport={port} src=192.0.2.9 dst=169.254.64.3 sport={port} dport=1"
            ))
        };
        assert_eq!(to_cut(&net, transit(), &udp(53)), []);
        assert_eq!(to_cut(&net, transit(), &udp(54)).len(), 1);
        let ping = |kind| {
            parse(&format!(
                "icmp 1 29 src=10.77.0.10 dst=10.77.0.11 type={kind} code=0 id=7 src=10.77.0.11 dst=10.77.0.10 type=0 code=0 id=7"
            ))
        };
        assert_eq!(ping(8)[0].icmp, Some((8, 0, 7)));
        assert_eq!(to_cut(&net, transit(), &ping(8)), []);
        assert_eq!(to_cut(&net, transit(), &ping(13)).len(), 1);
    }

    #[test]
    fn flows_between_hosts_go_on_while_both_ends_are_known_and_the_rules_of_the_near_one_allow_it() {
        let net = crate::plan::fixture::spanning();
        let flow = |from: &str, answerer: &str, port: u16| {
            parse(&format!(
                "tcp 6 99 ESTABLISHED src={from} dst={answerer} sport=4000 dport={port} src={answerer} dst={from} sport={port} dport=4000"
            ))
        };
        let cut = |from, answerer, port| !to_cut(&net, transit(), &flow(from, answerer, port)).is_empty();
        assert!(!cut("10.77.0.100", "10.77.0.10", 80), "a rule lets it in");
        assert!(cut("10.77.0.100", "10.77.0.11", 80), "no rule lets it in");
        assert!(!cut("10.77.0.10", "10.77.0.100", 80), "the far host decides");
        assert!(cut("10.77.0.99", "10.77.0.10", 80), "from nobody");
        assert!(
            cut("192.0.2.9", "10.77.0.100", 80),
            "from the world to another host's VM"
        );
        assert!(
            cut("10.77.0.100", "192.0.2.9", 80),
            "from another host's VM to the world"
        );
    }

    #[test]
    fn the_host_forgets_flows_of_a_forward_that_is_gone() {
        let host = "tcp 6 99 ESTABLISHED src=192.0.2.9 dst=192.0.2.1 sport=4000 dport=8080 src=169.254.64.3 dst=192.0.2.9 sport=8080 dport=4000 [ASSURED]";
        let mut net = lab(NetworkMode::Nat).into_inner();
        let with = Validated::<DesiredNetwork>::new(net.clone()).unwrap();
        assert_eq!(stale_at_host(&with, transit().unwrap(), &parse(host)), []);
        net.forwards.clear();
        let without = Validated::<DesiredNetwork>::new(net).unwrap();
        assert_eq!(stale_at_host(&without, transit().unwrap(), &parse(host)).len(), 1);
    }

    proptest! {
        #[test]
        fn reading_garbage_never_panics(text in "(tcp|src=|dst=|[0-9. =]){0,40}") { parse(&text); }
    }
}
