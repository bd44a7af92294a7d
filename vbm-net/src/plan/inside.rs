//! The rules inside a network's namespace: security groups, NAT, forwards.
//!
//! ```text
//!   FORWARD (drop)  invalid -> drop; answers -> accept
//!                   br0 -> anything                   VBM-FROM: may it leave its port?
//!                   br0 -> up0, to VXLAN's port       drop: only the host itself speaks with hosts
//!                   br0 -> up0                        accept: the way out of the network
//!                   br0 -> vx0, bridged               accept: the groups of the far host decide
//!                   between VMs, bridged              VBM-TO: may it enter its port? else drop
//!                   anything -> br0   (routed, forwarded)  -> VBM-AT, the same by address
//!   OUTPUT          anything -> br0   (the gateway itself) -> VBM-AT, else drop
//!   INPUT (drop)    answers; VBM-FROM; from br0: ping to the gateway, DNS at its address, metadata at 169.254.169.254
//! ```
//!
//! Mode `nat` rewrites what passes `up0`, mode `routed` passes it as it is. Mode `bridged` has `lan0` instead, a port of the bridge: what a VM
//! says to its LAN has passed VBM-FROM, what the LAN says passes VBM-TO, and DHCP answers where the LAN's server gives addresses.
//!
//! `bridge-nf-call-iptables` brings bridged packets here. Broadcast and multicast between VMs are dropped, but for ARP and what
//! IPv6 needs of its neighbours. The chains of ports are in `filter`. IPv6 has tables of its own, of the same shape, where a
//! port of the network may speak it.

use super::{
    Transit, connections,
    filter::{self, Family},
    floating,
    policy::Policies,
    routed, spelling,
    tables::{Table, Tables, chain},
};
use crate::{
    DesiredForward, DesiredNetwork, DesiredPort, Validated, dns, metadata, model::GATEWAY_LINK_LOCAL, names,
};
use std::{collections::BTreeMap, net::Ipv4Addr};
use vbm_core::{
    ForwardId, NetworkMode, Protocol,
    network::{METADATA_ADDRESS, VXLAN_PORT},
};

/// ICMP echo request (RFC 792), and that of ICMPv6 (RFC 4443).
const ICMP_ECHO_REQUEST: u8 = 8;
const ICMPV6_ECHO_REQUEST: u8 = 128;
const ANSWERS: &str = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT";
const INVALID: &str = "-m conntrack --ctstate INVALID -j DROP";
/// Between taps, or from the link to other hosts to one.
const BRIDGED: &str = "-m physdev --physdev-is-bridged";
/// Neighbour discovery (RFC 4861): solicitation and advertisement. The guard has seen to who says what.
const NEIGHBOURS: [u8; 2] = [135, 136];
/// What only a router may say: advertisement and redirect (RFC 4861).
const ROUTERS: [u8; 2] = [134, 137];

/// The tables of IPv4 of a namespace. `transit` is `None` for an isolated or bridged network.
pub fn render(net: &Validated<DesiredNetwork>, transit: Option<Transit>) -> Tables {
    let (br, up) = (names::BRIDGE, names::UPLINK);
    let mut filter = BTreeMap::new();
    let policies = Policies::new(net);
    let ping = format!(
        "-d {}/32 -i {br} -p icmp -m icmp --icmp-type {ICMP_ECHO_REQUEST} -j ACCEPT",
        net.spec.gateway
    );
    let from = format!("-i {br} -j {}", names::FROM_CHAIN);
    let mut input = vec![ANSWERS.into(), from.clone()];
    input.extend((!is_bridged(net)).then_some(ping));
    // From the bridge and nowhere else.
    input.extend(services(net).into_iter().map(|(to, protocol, port)| {
        format!("-d {to}/32 -i {br} -p {protocol} -m {protocol} --dport {port} -j ACCEPT")
    }));
    chain(&mut filter, "INPUT", Some("DROP"), input);
    let mut forward = vec![INVALID.into(), ANSWERS.into(), from];
    if transit.is_some() {
        // Else a VM could speak VXLAN to another host in this one's name, and so be in any network there.
        forward.push(format!(
            "-i {br} -o {up} -p udp -m udp --dport {VXLAN_PORT} -j DROP"
        ));
        forward.push(format!("-i {br} -o {up} -j ACCEPT"));
    }
    forward.extend(to_other_hosts(net));
    if is_bridged(net) && !net.spec.serve_dhcp {
        // No answer to what a VM asked, as connection tracking sees it: it asked everybody, and from no address.
        forward.push(format!(
            "-p udp -m physdev --physdev-in {} --physdev-is-bridged -m udp --sport 67 --dport 68 -j ACCEPT",
            names::LEG
        ));
    }
    forward.extend(to_the_lan(net));
    forward.extend(into_ports());
    chain(&mut filter, "FORWARD", Some("DROP"), forward);
    chain(&mut filter, "OUTPUT", Some("ACCEPT"), from_the_gateway());
    filter::ports(&mut filter, net, &policies, Family::V4);
    let mut tables = Tables::from([("filter".into(), filter), ("nat".into(), nat(net, transit))]);
    connections::add(&mut tables, net, Family::V4);
    tables
}

/// The groups of the far host decide.
fn to_other_hosts(net: &DesiredNetwork) -> Option<String> {
    let vxlan = names::VXLAN;
    let spans = net.overlay.is_some();
    spans.then(|| format!("-m physdev --physdev-out {vxlan} --physdev-is-bridged -j ACCEPT"))
}

/// Only VMs send by the leg: what came in by it does not go out there.
fn to_the_lan(net: &DesiredNetwork) -> Option<String> {
    let leg = names::LEG;
    is_bridged(net).then(|| format!("-m physdev --physdev-out {leg} --physdev-is-bridged -j ACCEPT"))
}

/// The last rules of FORWARD: bridged packets by their tap, others by their address.
fn into_ports() -> [String; 3] {
    [
        format!("{BRIDGED} -j {}", names::DISPATCH_CHAIN),
        format!("{BRIDGED} -j DROP"),
        format!("-o {} -j {}", names::BRIDGE, names::AT_CHAIN),
    ]
}

fn from_the_gateway() -> Vec<String> {
    let br = names::BRIDGE;
    vec![
        format!("-o {br} {ANSWERS}"),
        format!("-o {br} -j {}", names::AT_CHAIN),
        format!("-o {br} -j DROP"),
    ]
}

/// The tables of IPv6 of a namespace; none where no port may speak it and it has no way out, since the guard lets none of it pass then.
pub fn render6(net: &Validated<DesiredNetwork>) -> Tables {
    let leaves = routed::carries_ipv6(net);
    if !speaks_ipv6(net) {
        return Tables::new();
    }
    let (br, up) = (names::BRIDGE, names::UPLINK);
    let icmp = |kind: u8, way: &str, verdict: &str| {
        let way = if way.is_empty() {
            String::new()
        } else {
            format!("{way} {br} ")
        };
        format!("{way}-p ipv6-icmp -m icmp6 --icmpv6-type {kind} -j {verdict}")
    };
    let policies = Policies::new(net);
    let mut filter = Table::new();
    let from = format!("-i {br} -j {}", names::FROM_CHAIN);
    // From a router's tap none of these comes: here fragments are joined, which the guard cannot do.
    let mut forward: Vec<String> = ROUTERS.iter().map(|kind| icmp(*kind, "", "DROP")).collect();
    forward.push("-p udp -m udp --sport 547 -j DROP".into());
    forward.extend(NEIGHBOURS.iter().map(|kind| icmp(*kind, "", "ACCEPT")));
    forward.extend([INVALID.into(), ANSWERS.into(), from.clone()]);
    if leaves {
        forward.push(format!(
            "-i {br} -o {up} -p udp -m udp --dport {VXLAN_PORT} -j DROP"
        ));
        forward.push(format!("-i {br} -o {up} -j ACCEPT"));
    }
    forward.extend(to_other_hosts(net));
    forward.extend(to_the_lan(net));
    forward.extend(into_ports());
    let mut input: Vec<String> = NEIGHBOURS
        .iter()
        .map(|kind| icmp(*kind, "-i", "ACCEPT"))
        .collect();
    // The host's end of the transit asks for ours, and answers.
    let by_host =
        NEIGHBOURS.map(|kind| format!("-i {up} -p ipv6-icmp -m icmp6 --icmpv6-type {kind} -j ACCEPT"));
    input.extend(by_host.into_iter().filter(|_| leaves));
    input.extend([ANSWERS.into(), from]);
    if let Some(six) = &net.spec.ipv6 {
        let ping = |to: std::net::Ipv6Addr| {
            format!(
                "-d {}/128 -i {br} -p ipv6-icmp -m icmp6 --icmpv6-type {ICMPV6_ECHO_REQUEST} -j ACCEPT",
                spelling::address(to.into())
            )
        };
        input.extend([six.gateway, GATEWAY_LINK_LOCAL].map(ping));
    }
    let mut output: Vec<String> = NEIGHBOURS
        .iter()
        .chain(&ROUTERS[..1])
        .map(|kind| icmp(*kind, "-o", "ACCEPT"))
        .collect();
    output.extend(from_the_gateway());
    chain(&mut filter, "INPUT", Some("DROP"), input);
    chain(&mut filter, "FORWARD", Some("DROP"), forward);
    chain(&mut filter, "OUTPUT", Some("ACCEPT"), output);
    filter::ports(&mut filter, net, &policies, Family::V6);
    let mut tables = Tables::from([("filter".into(), filter)]);
    connections::add(&mut tables, net, Family::V6);
    tables
}

/// The tables of IPv6 when nobody speaks it any more: shut, and without a chain.
pub fn nothing6() -> Tables {
    let mut filter = Table::new();
    for (name, policy) in [("INPUT", "DROP"), ("FORWARD", "DROP"), ("OUTPUT", "ACCEPT")] {
        chain(&mut filter, name, Some(policy), Vec::new());
    }
    Tables::from([("filter".into(), filter)])
}

/// What VMs may reach of the gateway's services: address, protocol and port.
pub(super) fn services(net: &DesiredNetwork) -> Vec<(Ipv4Addr, &'static str, u16)> {
    let mut open = Vec::new();
    if net.spec.serve_dns {
        open.extend(["udp", "tcp"].map(|protocol| (net.spec.gateway, protocol, dns::PORT)));
    }
    if net.spec.serves_metadata() {
        open.push((METADATA_ADDRESS, "tcp", metadata::PORT));
    }
    open
}

pub(super) fn nat(net: &Validated<DesiredNetwork>, transit: Option<Transit>) -> Table {
    let (mut pre, mut post) = (Vec::new(), Vec::new());
    if let Some(transit) = transit.filter(|_| net.spec.mode == NetworkMode::Nat) {
        let doors = doors(net);
        for (forward, target) in forwards(net) {
            pre.push(format!(
                "-d {}/32 -i {} -p {p} -m {p} {}",
                transit.inner(),
                names::UPLINK,
                dnat(forward, doors[&forward.id], target.address, forward.target_port),
                p = forward.protocol,
            ));
        }
        let (own_pre, own_post) = floating::inside(net);
        pre.extend(own_pre);
        post.extend(own_post);
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

/// The forwards with their targets, in the order of their ids.
pub(crate) fn forwards(net: &DesiredNetwork) -> Vec<(&DesiredForward, &DesiredPort)> {
    let mut all: Vec<_> = net
        .forwards
        .iter()
        .filter_map(|f| net.ports.iter().find(|p| p.id == f.target).map(|p| (f, p)))
        .collect();
    all.sort_by_key(|(f, _)| f.id);
    all
}

/// The first port of the transit address that each forward passes through, between host and namespace: the one it listens
/// on, or the next with enough free ones behind it where two forwards listen on the same numbers at different addresses. Ids are ordered by
/// time, so a new forward does not move an old one. One for which there is no room is not there; a validated network has none.
pub fn doors(net: &DesiredNetwork) -> BTreeMap<ForwardId, u16> {
    let mut taken: Vec<(Protocol, u16, u16)> = Vec::new();
    let mut doors = BTreeMap::new();
    for (forward, _) in forwards(net) {
        let wish = forward.listen_port;
        let found = free(forward, wish, &taken).or_else(|| free(forward, 1, &taken));
        if let Some(door) = found {
            taken.push((forward.protocol, door, forward.last(door)));
            doors.insert(forward.id, door);
        }
    }
    doors
}

/// The first place from here on where none of a forward's ports is taken.
fn free(forward: &DesiredForward, from: u16, taken: &[(Protocol, u16, u16)]) -> Option<u16> {
    let mut at = from;
    loop {
        let last = at.checked_add(forward.count.saturating_sub(1))?;
        let in_the_way = |(protocol, first, end): &&(Protocol, u16, u16)| {
            *protocol == forward.protocol && *first <= last && at <= *end
        };
        match taken.iter().filter(in_the_way).map(|(_, _, end)| *end).max() {
            None => return Some(at),
            Some(end) => at = end.checked_add(1)?,
        }
    }
}

/// How the match and the target of a forward are written, from a first port to a first port at an address.
pub(crate) fn dnat(forward: &DesiredForward, from: u16, to: Ipv4Addr, at: u16) -> String {
    if forward.count == 1 {
        return format!("--dport {from} -j DNAT --to-destination {to}:{at}");
    }
    // What is behind the stroke goes to the first, and the others follow in step.
    format!(
        "--dport {from}:{} -j DNAT --to-destination {to}:{at}-{}/{from}",
        forward.last(from),
        forward.last(at)
    )
}

/// Whether a network has a way out by the host's routes.
pub(crate) fn has_uplink(net: &DesiredNetwork) -> bool {
    net.spec.mode.goes_by_host()
}

/// Whether anybody may speak IPv6 in a network's namespace: a port, or the two ends of its transit.
pub(super) fn speaks_ipv6(net: &DesiredNetwork) -> bool {
    routed::carries_ipv6(net) || net.ports.iter().any(DesiredPort::has_ipv6)
}

pub(super) fn is_bridged(net: &DesiredNetwork) -> bool {
    net.spec.mode == NetworkMode::Bridged
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
        let net = lab(NetworkMode::Nat);
        let tables = render(&net, Some(transit()));
        let policies = Policies::new(&net);
        let chain = |port: usize| names::ingress_chain(policies.key(&net.ports[port]));
        assert_eq!(
            lines(&tables, "filter", &chain(0)),
            "-p tcp -m tcp --dport 80 -j ACCEPT\n\
             -s 10.0.0.0/8 -p udp -m udp --dport 5000:5010 -j ACCEPT\n\
             -p icmp -j ACCEPT\n\
             -s 192.168.0.0/16 -j ACCEPT"
        );
        assert_eq!(lines(&tables, "filter", &chain(1)), "");
        assert_eq!(
            lines(&tables, "filter", "VBM-TO"),
            format!(
                "-m physdev --physdev-out tap0000000a -g {}\n-m physdev --physdev-out tap0000000b -g {}",
                chain(0),
                chain(1)
            )
        );
        assert_eq!(
            lines(&tables, "filter", "VBM-AT"),
            format!(
                "-d 10.77.0.10/32 -g {}\n-d 10.77.0.11/32 -g {}",
                chain(0),
                chain(1)
            )
        );
        assert_eq!(lines(&tables, "filter", "VBM-FROM"), "", "the way out is open");
    }

    #[test]
    fn a_port_that_may_not_say_all_is_asked_before_anything_else() {
        let mut net = lab(NetworkMode::Nat).into_inner();
        net.ports[1].rules = vec!["egress:udp/53".parse().unwrap()];
        let net = Validated::<DesiredNetwork>::new(net).unwrap();
        let tables = render(&net, Some(transit()));
        let chain = names::egress_chain(Policies::new(&net).key(&net.ports[1]));
        assert_eq!(
            lines(&tables, "filter", "VBM-FROM"),
            format!("-m physdev --physdev-in tap0000000b -g {chain}")
        );
        assert_eq!(
            lines(&tables, "filter", &chain),
            "-p udp -m udp --dport 53 -j RETURN\n-j DROP"
        );
    }

    #[test]
    fn all_traffic_towards_the_bridge_goes_through_the_ports_chains() {
        let tables = render(&lab(NetworkMode::Nat), Some(transit()));
        assert_eq!(
            lines(&tables, "filter", "FORWARD"),
            "-m conntrack --ctstate INVALID -j DROP\n\
             -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
             -i br0 -j VBM-FROM\n\
             -i br0 -o up0 -p udp -m udp --dport 4789 -j DROP\n\
             -i br0 -o up0 -j ACCEPT\n\
             -m physdev --physdev-is-bridged -j VBM-TO\n\
             -m physdev --physdev-is-bridged -j DROP\n\
             -o br0 -j VBM-AT"
        );
        assert_eq!(
            lines(&tables, "filter", "OUTPUT"),
            "-o br0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-o br0 -j VBM-AT\n-o br0 -j DROP"
        );
        for chain in ["INPUT", "FORWARD"] {
            assert_eq!(tables["filter"][chain].policy.as_deref(), Some("DROP"));
        }
    }

    #[test]
    fn ipv6_has_tables_only_where_a_port_may_speak_it_and_no_port_is_a_router() {
        let net = lab(NetworkMode::Nat);
        assert_eq!(render6(&net), Tables::new());
        let mut net = net.into_inner();
        net.ports[0].policy.pairs = vec![vbm_core::AddressPair::of("fd00::a".parse().unwrap())];
        let tables = render6(&Validated::<DesiredNetwork>::new(net).unwrap());
        let forward = lines(&tables, "filter", "FORWARD");
        assert!(
            forward.starts_with("-p ipv6-icmp -m icmp6 --icmpv6-type 134 -j DROP"),
            "{forward}"
        );
        assert!(lines(&tables, "filter", "VBM-AT").contains("-d fd00::a/128 -g VBM-P-"));
        assert!(lines(&tables, "filter", "VBM-AT").contains("-d fe80::5054:ff:fe77:0/128 -g VBM-P-"));
    }

    #[test]
    fn the_gateway_answers_pings_at_its_addresses_of_ipv6_and_nothing_else_there() {
        let mut net = lab(NetworkMode::Nat).into_inner();
        net.spec.ipv6 = Some(vbm_core::Ipv6Spec::new("fd00::/64".parse().unwrap()).unwrap());
        net.ports[0].address6 = Some("fd00::a".parse().unwrap());
        let tables = render6(&Validated::<DesiredNetwork>::new(net).unwrap());
        let input = lines(&tables, "filter", "INPUT");
        assert!(
            input.ends_with(
                "-i br0 -j VBM-FROM\n\
                 -d fd00::1/128 -i br0 -p ipv6-icmp -m icmp6 --icmpv6-type 128 -j ACCEPT\n\
                 -d fe80::1/128 -i br0 -p ipv6-icmp -m icmp6 --icmpv6-type 128 -j ACCEPT"
            ),
            "{input}"
        );
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
                .contains("-m physdev --physdev-out vx0 --physdev-is-bridged -j ACCEPT\n-m physdev --physdev-is-bridged -j VBM-TO")
        );
        assert!(!forward.contains("physdev-in"), "{forward}");
    }

    #[test]
    fn an_isolated_network_has_no_word_of_an_uplink() {
        let tables = render(&lab(NetworkMode::Isolated), None);
        assert!(!format!("{tables:?}").contains("up0"));
    }

    #[test]
    fn a_routed_network_has_the_way_out_and_translates_nothing() {
        let tables = render(&lab(NetworkMode::Routed), Some(transit()));
        assert!(lines(&tables, "filter", "FORWARD").contains("-i br0 -o up0 -j ACCEPT"));
        assert!(lines(&tables, "filter", "FORWARD").ends_with("-o br0 -j VBM-AT"));
        for chain in ["PREROUTING", "POSTROUTING"] {
            assert_eq!(lines(&tables, "nat", chain), "", "{chain}");
        }
    }

    #[test]
    fn a_bridged_network_has_its_lan_beyond_a_port_of_the_bridge_and_nothing_of_the_gateways() {
        let mut net = lab(NetworkMode::Bridged).into_inner();
        let forward = lines(&render(&lab(NetworkMode::Bridged), None), "filter", "FORWARD");
        assert_eq!(
            forward,
            "-m conntrack --ctstate INVALID -j DROP\n\
             -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
             -i br0 -j VBM-FROM\n\
             -p udp -m physdev --physdev-in lan0 --physdev-is-bridged -m udp --sport 67 --dport 68 -j ACCEPT\n\
             -m physdev --physdev-out lan0 --physdev-is-bridged -j ACCEPT\n\
             -m physdev --physdev-is-bridged -j VBM-TO\n\
             -m physdev --physdev-is-bridged -j DROP\n\
             -o br0 -j VBM-AT"
        );
        net.spec.serve_dhcp = true;
        let served = render(&Validated::<DesiredNetwork>::new(net).unwrap(), None);
        assert!(!lines(&served, "filter", "FORWARD").contains("--sport 67"));
        assert_eq!(
            lines(&served, "filter", "INPUT"),
            "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-i br0 -j VBM-FROM"
        );
    }

    #[test]
    fn a_range_is_forwarded_in_step_and_one_in_its_way_moves_behind_it() {
        let mut net = lab(NetworkMode::Nat).into_inner();
        for forward in &mut net.forwards {
            forward.protocol = vbm_core::Protocol::Tcp;
            forward.count = 10;
            forward.listen_address = None;
        }
        net.forwards[1].listen_port = 8_090;
        let apart = Validated::<DesiredNetwork>::new(net.clone()).unwrap();
        let tables = render(&apart, Some(transit()));
        let pre = lines(&tables, "nat", "PREROUTING");
        assert!(
            pre.contains("--dport 8080:8089 -j DNAT --to-destination 10.77.0.10:80-89/8080"),
            "{pre}"
        );
        for (forward, address) in net.forwards.iter_mut().zip([1u8, 2]) {
            forward.listen_address = Some([192, 0, 2, address].into());
        }
        net.forwards[1].listen_port = 8_085;
        let beside = Validated::<DesiredNetwork>::new(net.clone()).unwrap();
        let mut numbers: Vec<_> = doors(&beside).into_values().collect();
        numbers.sort_unstable();
        assert!(numbers[1] - numbers[0] >= 10, "{numbers:?}");
        net.forwards[1].listen_address = None;
        let error = Validated::<DesiredNetwork>::new(net).unwrap_err();
        assert!(vbm_core::Error::from(error).why().contains("listens there"));
    }

    #[test]
    fn two_forwards_of_one_number_get_two_doors_and_keep_them() {
        let mut net = lab(NetworkMode::Nat).into_inner();
        net.forwards[1].protocol = vbm_core::Protocol::Tcp;
        net.forwards[0].listen_address = Some([192, 0, 2, 2].into());
        let net = Validated::<DesiredNetwork>::new(net).unwrap();
        let doors = doors(&net);
        let mut numbers: Vec<_> = doors.values().copied().collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [8080, 8081]);
    }
}
