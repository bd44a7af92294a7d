//! The rules inside a network's namespace: security groups, NAT, forwards.
//!
//! ```text
//!   FORWARD (drop)  invalid -> drop; answers -> accept
//!                   br0 -> up0                       accept: the way out is open
//!                   br0 -> up0, to VXLAN's port       drop: only the host itself speaks with hosts
//!                   br0 -> vx0, bridged               accept: the groups of the far host decide
//!                   anything -> br0   (bridged between VMs, routed, forwarded)  -> VBM-TO
//!   OUTPUT          anything -> br0   (the gateway itself)                      -> VBM-TO
//!   INPUT (drop)    answers; from br0: ping to the gateway, DNS at its address, metadata at 169.254.169.254
//!   VBM-TO          by destination address -> VBM-P-<port> -> its rules, else drop
//! ```
//!
//! One chain a port serves bridged and routed traffic alike: `bridge-nf-call-iptables` brings bridged packets
//! here, and the guard lets a frame leave for a tap only if its IP destination is that port's address, so the address
//! names the port. Broadcast and multicast between VMs are dropped, but for ARP.

use super::{
    Transit,
    tables::{Tables, chain},
};
use crate::{DesiredForward, DesiredNetwork, DesiredPort, Validated, dns, metadata, names};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};
use vbm_core::{
    ForwardId, NetworkMode, Protocol, Rule,
    network::{METADATA_ADDRESS, VXLAN_PORT},
};

/// ICMP echo request (RFC 792).
const ICMP_ECHO_REQUEST: u8 = 8;
const ANSWERS: &str = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT";

/// The tables of a namespace. `transit` is `None` for an isolated network.
pub fn render(net: &Validated<DesiredNetwork>, transit: Option<Transit>) -> Tables {
    let (br, up) = (names::BRIDGE, names::UPLINK);
    let mut filter = BTreeMap::new();
    let to = names::DISPATCH_CHAIN;
    let ping = format!(
        "-d {}/32 -i {br} -p icmp -m icmp --icmp-type {ICMP_ECHO_REQUEST} -j ACCEPT",
        net.spec.gateway
    );
    let mut input = vec![ANSWERS.into(), ping];
    input.extend(services(net));
    chain(&mut filter, "INPUT", Some("DROP"), input);
    let mut forward = vec!["-m conntrack --ctstate INVALID -j DROP".into(), ANSWERS.into()];
    if transit.is_some() {
        // Else a VM could speak VXLAN to another host in this one's name, and so be in any network there.
        forward.push(format!(
            "-i {br} -o {up} -p udp -m udp --dport {VXLAN_PORT} -j DROP"
        ));
        forward.push(format!("-i {br} -o {up} -j ACCEPT"));
    }
    if net.overlay.is_some() {
        forward.push(format!(
            "-m physdev --physdev-out {} --physdev-is-bridged -j ACCEPT",
            names::VXLAN
        ));
    }
    forward.push(format!("-o {br} -j {to}"));
    chain(&mut filter, "FORWARD", Some("DROP"), forward);
    chain(
        &mut filter,
        "OUTPUT",
        Some("ACCEPT"),
        vec![format!("-o {br} {ANSWERS}"), format!("-o {br} -j {to}")],
    );
    let mut ports: Vec<&DesiredPort> = net.ports.iter().collect();
    ports.sort_by_key(|p| p.address);
    let mut dispatch: Vec<String> = ports
        .iter()
        .map(|p| format!("-d {}/32 -j {}", p.address, names::port_chain(p.id)))
        .collect();
    dispatch.push("-j DROP".into());
    chain(&mut filter, to, None, dispatch);
    for port in ports {
        chain(&mut filter, names::port_chain(port.id), None, port_rules(port));
    }
    Tables::from([("filter".into(), filter), ("nat".into(), nat(net, transit))])
}

/// What VMs may reach of the gateway's services, from the bridge and nowhere else.
fn services(net: &DesiredNetwork) -> Vec<String> {
    let br = names::BRIDGE;
    let open = |to: Ipv4Addr, protocol: &str, port: u16| {
        format!("-d {to}/32 -i {br} -p {protocol} -m {protocol} --dport {port} -j ACCEPT")
    };
    let mut rules = Vec::new();
    if net.spec.serve_dns {
        let gateway = net.spec.gateway;
        rules.extend(["udp", "tcp"].map(|protocol| open(gateway, protocol, dns::PORT)));
    }
    if net.spec.serves_metadata() {
        rules.push(open(METADATA_ADDRESS, "tcp", metadata::PORT));
    }
    rules
}

fn nat(net: &Validated<DesiredNetwork>, transit: Option<Transit>) -> super::tables::Table {
    let (mut pre, mut post) = (Vec::new(), Vec::new());
    if let Some(transit) = transit {
        let doors = doors(net);
        for (forward, target) in forwards(net) {
            pre.push(format!(
                "-d {}/32 -i {} -p {p} -m {p} --dport {} -j DNAT --to-destination {}:{}",
                transit.inner(),
                names::UPLINK,
                doors[&forward.id],
                target.address,
                forward.target_port,
                p = forward.protocol,
            ));
        }
        post.push(format!(
            "-s {} -o {} -j SNAT --to-source {}",
            net.spec.cidr,
            names::UPLINK,
            transit.inner()
        ));
    }
    let mut nat = BTreeMap::new();
    chain(&mut nat, "PREROUTING", Some("ACCEPT"), pre);
    chain(&mut nat, "INPUT", Some("ACCEPT"), Vec::new());
    chain(&mut nat, "OUTPUT", Some("ACCEPT"), Vec::new());
    chain(&mut nat, "POSTROUTING", Some("ACCEPT"), post);
    nat
}

/// The rules of a port's chain, each once, in a fixed order; what none allows is dropped.
fn port_rules(port: &DesiredPort) -> Vec<String> {
    let rules: BTreeSet<&Rule> = port.rules.iter().collect();
    let mut lines: Vec<String> = Vec::new();
    for line in rules.into_iter().map(rule) {
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines.push("-j DROP".into());
    lines
}

/// One rule, as `iptables-save` prints it.
fn rule(rule: &Rule) -> String {
    let mut words = Vec::new();
    if let Some(from) = rule.from.filter(|net| net.prefix_len() > 0) {
        words.push(format!("-s {}", from.trunc()));
    }
    if rule.protocol != Protocol::Any {
        words.push(format!("-p {}", rule.protocol));
    }
    if let Some(ports) = rule.ports {
        let range = if ports.first() == ports.last() {
            ports.first().to_string()
        } else {
            format!("{}:{}", ports.first(), ports.last())
        };
        words.push(format!("-m {} --dport {range}", rule.protocol));
    }
    words.push("-j ACCEPT".into());
    words.join(" ")
}

/// The forwards with their targets, in the order of their ids.
pub(crate) fn forwards(net: &Validated<DesiredNetwork>) -> Vec<(&DesiredForward, &DesiredPort)> {
    let mut all: Vec<_> = net
        .forwards
        .iter()
        .filter_map(|f| net.ports.iter().find(|p| p.id == f.target).map(|p| (f, p)))
        .collect();
    all.sort_by_key(|(f, _)| f.id);
    all
}

/// The port of the transit address that each forward passes through, between host and namespace: the one it listens
/// on, or the next free one where two forwards listen on the same number at different addresses. Ids are ordered by
/// time, so a new forward does not move an old one.
pub fn doors(net: &Validated<DesiredNetwork>) -> BTreeMap<ForwardId, u16> {
    let mut taken = BTreeSet::new();
    let mut doors = BTreeMap::new();
    for (forward, _) in forwards(net) {
        let wish = forward.listen_port;
        let free = (wish..=u16::MAX)
            .chain(1..wish)
            .find(|p| taken.insert((forward.protocol, *p)));
        // 65535 doors and at most 1024 forwards: there is always one.
        doors.insert(forward.id, free.unwrap_or(wish));
    }
    doors
}

/// Whether a network has a way out.
pub(crate) fn has_uplink(net: &DesiredNetwork) -> bool {
    net.spec.mode == NetworkMode::Nat
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixture::lab;

    fn transit() -> Transit {
        Transit::new("169.254.64.2/31".parse().unwrap()).unwrap()
    }

    fn lines(tables: &Tables, table: &str, chain: &str) -> String {
        tables[table][chain].rules.join("\n")
    }

    #[test]
    fn a_port_is_shut_but_for_its_rules() {
        let tables = render(&lab(NetworkMode::Nat), Some(transit()));
        assert_eq!(
            lines(&tables, "filter", "VBM-P-0000000a"),
            "-p tcp -m tcp --dport 80 -j ACCEPT\n\
             -s 10.0.0.0/8 -p udp -m udp --dport 5000:5010 -j ACCEPT\n\
             -p icmp -j ACCEPT\n\
             -s 192.168.0.0/16 -j ACCEPT\n\
             -j DROP"
        );
        assert_eq!(lines(&tables, "filter", "VBM-P-0000000b"), "-j DROP");
    }

    #[test]
    fn all_traffic_towards_the_bridge_goes_through_the_ports_chains() {
        let tables = render(&lab(NetworkMode::Nat), Some(transit()));
        assert_eq!(
            lines(&tables, "filter", "FORWARD"),
            "-m conntrack --ctstate INVALID -j DROP\n\
             -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
             -i br0 -o up0 -p udp -m udp --dport 4789 -j DROP\n\
             -i br0 -o up0 -j ACCEPT\n\
             -o br0 -j VBM-TO"
        );
        assert_eq!(
            lines(&tables, "filter", "OUTPUT"),
            "-o br0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-o br0 -j VBM-TO"
        );
        assert_eq!(
            lines(&tables, "filter", "VBM-TO"),
            "-d 10.77.0.10/32 -j VBM-P-0000000a\n-d 10.77.0.11/32 -j VBM-P-0000000b\n-j DROP"
        );
        for chain in ["INPUT", "FORWARD"] {
            assert_eq!(tables["filter"][chain].policy.as_deref(), Some("DROP"));
        }
    }

    #[test]
    fn the_gateways_services_are_open_to_the_bridge_alone_and_shut_where_they_are_off() {
        let mut net = lab(NetworkMode::Nat).into_inner();
        let open = lines(&render(&lab(NetworkMode::Nat), None), "filter", "INPUT");
        assert!(open.ends_with(
            "-d 10.77.0.1/32 -i br0 -p udp -m udp --dport 53 -j ACCEPT\n\
             -d 10.77.0.1/32 -i br0 -p tcp -m tcp --dport 53 -j ACCEPT\n\
             -d 169.254.169.254/32 -i br0 -p tcp -m tcp --dport 80 -j ACCEPT"
        ));
        net.spec.serve_dns = false;
        net.spec.metadata = vbm_core::MetadataMode::Off;
        let shut = lines(
            &render(&Validated::<DesiredNetwork>::new(net).unwrap(), None),
            "filter",
            "INPUT",
        );
        assert!(!shut.contains("--dport"), "{shut}");
    }

    #[test]
    fn forwards_enter_by_the_transit_and_traffic_leaves_by_it() {
        let tables = render(&lab(NetworkMode::Nat), Some(transit()));
        assert_eq!(
            lines(&tables, "nat", "POSTROUTING"),
            "-s 10.77.0.0/24 -o up0 -j SNAT --to-source 169.254.64.3"
        );
        let pre = lines(&tables, "nat", "PREROUTING");
        assert!(
            pre.contains(
                "-d 169.254.64.3/32 -i up0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.77.0.10:80"
            ),
            "{pre}"
        );
    }

    #[test]
    fn what_leaves_for_another_host_is_let_through_and_what_comes_from_one_goes_through_the_ports_chains() {
        let tables = render(&crate::plan::fixture::spanning(), Some(transit()));
        let forward = lines(&tables, "filter", "FORWARD");
        assert!(
            forward
                .ends_with("-m physdev --physdev-out vx0 --physdev-is-bridged -j ACCEPT\n-o br0 -j VBM-TO")
        );
        assert!(!forward.contains("physdev-in"), "{forward}");
    }

    #[test]
    fn an_isolated_network_has_no_word_of_an_uplink() {
        let tables = render(&lab(NetworkMode::Isolated), None);
        assert!(!format!("{tables:?}").contains("up0"));
    }

    #[test]
    fn two_forwards_of_one_number_get_two_doors_and_keep_them() {
        let mut net = lab(NetworkMode::Nat).into_inner();
        net.forwards[1].protocol = Protocol::Tcp;
        net.forwards[0].listen_address = Some([192, 0, 2, 2].into());
        let net = Validated::<DesiredNetwork>::new(net).unwrap();
        let doors = doors(&net);
        let mut numbers: Vec<_> = doors.values().copied().collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [8080, 8081]);
    }

    #[test]
    fn a_source_of_zero_bits_is_anywhere_and_host_bits_are_cut() {
        assert_eq!(
            rule(&"tcp/1@0.0.0.0/0".parse().unwrap()),
            "-p tcp -m tcp --dport 1 -j ACCEPT"
        );
        assert_eq!(
            rule(&"any@10.1.2.3/8".parse().unwrap()),
            "-s 10.0.0.0/8 -j ACCEPT"
        );
    }
}
