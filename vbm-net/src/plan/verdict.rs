//! The rules of ports as nf_tables: a packet finds its port's policy by one lookup, however many ports there are.
//!
//! ```text
//!   bridge vbm-slots  prerouting -301  mark = slot of the tap it came by                     map in:  tap -> slot
//!                     forward     -10  mark |= slot of the tap it goes out by << 16          map out: tap -> out-<port>
//!   inet vbm-filter   forward (drop)   invalid, answers
//!                     from br0         mark & 0x0000ffff -> map from -> VBM-E-<policy>       may it leave its port?
//!                     to the world     accept                                                or to the LAN of a bridged network
//!                     bridged          mark & 0xffff0000 -> map to   -> VBM-P-<policy>       may it enter its port?
//!                     routed to br0    destination       -> map at4, at6 -> VBM-P-<policy>
//! ```
//!
//! The bridge family knows taps and, on many kernels, no flows; the inet family knows flows and, of a bridged packet, no tap. The mark
//! carries the one to the other. Nothing else here uses marks, and a packet loses it where it leaves the namespace.
//!
//! A slot is of 16 bits: found by the port's id, so it is the same after a restart; a port that comes moves none of those that are there
//! (ids are ordered by time). Where the tree of iptables has `-j VBM-FROM`, this has `jump`, and so on: see [`super::inside`] for what each
//! rule is there for.

mod counting;
mod rule;

pub(crate) use counting::{by_rule, counted};

use super::{
    Transit,
    dispatch::Nft,
    guard, inside,
    nft_table::{NftTable, Shape},
    policy::Policies,
    routed,
};
use crate::{DesiredNetwork, Validated, model::GATEWAY_LINK_LOCAL, names};
use ipnet::IpNet;
use rule::{aggregated4, aggregated6, policy};
use std::collections::{BTreeMap, BTreeSet};
use vbm_core::{Direction, PortId, network::VXLAN_PORT};

/// The marks' table.
pub(crate) const SLOTS: Shape = Shape {
    family: "bridge",
    name: names::SLOTS_TABLE,
    map_type: |map| {
        if map == IN {
            "ifname : mark"
        } else {
            "ifname : verdict"
        }
    },
    set_type: |_| "ifname",
};

/// The rules' table.
pub(crate) const FILTER: Shape = Shape {
    family: "inet",
    name: names::FILTER_TABLE,
    map_type: |map| match map {
        AT4 => "ipv4_addr : verdict",
        AT6 => "ipv6_addr : verdict",
        _ => "mark : verdict",
    },
    set_type: |set| {
        if set.starts_with(names::SET6_PREFIX) {
            "ipv6_addr\nflags interval"
        } else {
            "ipv4_addr\nflags interval"
        }
    },
};

/// Before the guard (-300), which lets packets pass for good.
const MARK_PRIORITY: i32 = -301;
/// Before `br_netfilter` (0) hands a bridged packet to the rules.
const OUT_PRIORITY: i32 = -10;
const IN: &str = "in";
const OUT: &str = "out";
const FROM: &str = "from";
const TO: &str = "to";
const AT: &str = "at";
const AT4: &str = "at4";
const AT6: &str = "at6";
/// The slot of the link to other hosts. No port has it, nor 0, which is none.
const VXLAN_SLOT: u16 = u16::MAX;
/// That of the leg to the LAN of a bridged network, the same.
const LEG_SLOT: u16 = u16::MAX - 1;
/// How `nft -nn` prints `invalid`, and `established,related`.
const INVALID: &str = "ct state 0x1 drop";
const ANSWERS: &str = "ct state 0x2,0x4 accept";

/// The slot of each port.
fn slots(net: &DesiredNetwork) -> BTreeMap<PortId, u16> {
    let mut ids: Vec<PortId> = net.ports.iter().map(|p| p.id).collect();
    ids.sort_unstable();
    let mut taken = BTreeSet::from([0, VXLAN_SLOT, LEG_SLOT]);
    let mut slots = BTreeMap::new();
    for id in ids {
        let [.., a, b, c, d] = *id.uuid().as_bytes();
        let mut slot = u16::from_be_bytes([a, b]) ^ u16::from_be_bytes([c, d]);
        // A network has far fewer ports than there are slots, see `NETWORK_MAX_PORTS`.
        while !taken.insert(slot) {
            slot = slot.wrapping_add(1);
        }
        slots.insert(id, slot);
    }
    slots
}

/// Which tap a packet came by, and which it goes out by.
pub(crate) fn slots_table(net: &Validated<DesiredNetwork>) -> NftTable {
    let mut table = NftTable::default();
    let hook =
        |hook: &str, priority: i32| format!("type filter hook {hook} priority {priority}; policy accept;");
    let mark = format!("meta mark set iifname map @{IN}");
    table
        .chains
        .insert("prerouting".into(), vec![hook("prerouting", MARK_PRIORITY), mark]);
    let out = format!("oifname vmap @{OUT}");
    table
        .chains
        .insert("forward".into(), vec![hook("forward", OUT_PRIORITY), out]);
    for map in [IN, OUT] {
        table.maps.insert(map.into(), BTreeSet::new());
    }
    let mut add = |link: String, short: &str, from: u16, to: u16| {
        let chain = format!("out-{short}");
        table.put(IN, format!("\"{link}\" : 0x{from:08x}"));
        table.put(OUT, format!("\"{link}\" : jump {chain}"));
        let lines = vec![format!("meta mark set meta mark | 0x{to:04x}0000")];
        table.chains.insert(chain, lines);
    };
    for (port, slot) in slots(net) {
        add(names::tap(port), &port.short(), slot, slot);
    }
    if net.overlay.is_some() {
        add(names::VXLAN.to_owned(), names::VXLAN, 0, VXLAN_SLOT);
    }
    if inside::is_bridged(net) {
        add(names::LEG.to_owned(), names::LEG, LEG_SLOT, LEG_SLOT);
    }
    table
}

/// The rules.
pub(crate) fn filter_table(net: &Validated<DesiredNetwork>, transit: Option<Transit>) -> NftTable {
    let mut table = NftTable::default();
    for map in [FROM, TO, AT4, AT6] {
        table.maps.insert(map.into(), BTreeSet::new());
    }
    let hooks = [("input", "drop"), ("forward", "drop"), ("output", "accept")];
    for (hook, policy) in hooks {
        let mut lines = vec![format!("type filter hook {hook} priority 0; policy {policy};")];
        lines.extend(match hook {
            "input" => input(net),
            "forward" => forward(net, transit.is_some()),
            _ => output(),
        });
        table.chains.insert(hook.into(), lines);
    }
    let policies = Policies::new(net);
    ports(&mut table, net, &policies);
    if net.overlay.is_some() {
        // The groups of the far host decide.
        table.put(TO, format!("0x{VXLAN_SLOT:04x}0000 : accept"));
    }
    if inside::is_bridged(net) {
        // Only VMs send by the leg: what came in by it does not go out there.
        table.put(TO, format!("0x{LEG_SLOT:04x}0000 : accept"));
    }
    for (group, members) in policies.members() {
        for (v6, text) in [(false, aggregated4(members)), (true, aggregated6(members))] {
            table.sets.insert(names::group_set(*group, v6), text);
        }
    }
    table
}

/// Neighbour discovery (RFC 4861): the guard has seen to who says what.
const NEIGHBOURS: [&str; 2] = ["icmpv6 type 135", "icmpv6 type 136"];

fn from_map() -> String {
    format!("meta mark & 0x0000ffff vmap @{FROM}")
}

fn input(net: &Validated<DesiredNetwork>) -> Vec<String> {
    let (br, up) = (names::BRIDGE, names::UPLINK);
    let mut lines: Vec<String> = NEIGHBOURS
        .iter()
        .map(|n| format!("iifname \"{br}\" {n} accept"))
        .collect();
    if routed::carries_ipv6(net) {
        // The host's end of the transit asks for ours, and answers.
        let by_host = NEIGHBOURS.iter().map(|n| format!("iifname \"{up}\" {n} accept"));
        lines.extend(by_host);
    }
    lines.extend([ANSWERS.into(), format!("iifname \"{br}\" jump {FROM}")]);
    if !inside::is_bridged(net) {
        lines.push(format!(
            "iifname \"{br}\" ip daddr {} icmp type 8 accept",
            net.spec.gateway
        ));
    }
    for (to, protocol, port) in inside::services(net) {
        lines.push(format!(
            "iifname \"{br}\" ip daddr {to} {protocol} dport {port} accept"
        ));
    }
    if let Some(six) = &net.spec.ipv6 {
        for to in [six.gateway, GATEWAY_LINK_LOCAL] {
            let to = guard::spelled(&IpNet::from(std::net::IpAddr::from(to)));
            lines.push(format!("iifname \"{br}\" ip6 daddr {to} icmpv6 type 128 accept"));
        }
    }
    lines
}

fn forward(net: &DesiredNetwork, way_out: bool) -> Vec<String> {
    let (br, up) = (names::BRIDGE, names::UPLINK);
    let mut lines: Vec<String> = ["icmpv6 type 134 drop", "icmpv6 type 137 drop"]
        .map(str::to_owned)
        .into();
    lines.push("meta nfproto 10 udp sport 547 drop".into());
    lines.extend(NEIGHBOURS.iter().map(|n| format!("{n} accept")));
    lines.extend([INVALID.into(), ANSWERS.into()]);
    lines.push(format!("iifname \"{br}\" jump {FROM}"));
    if way_out {
        // IPv6 only where it has a way out.
        let of = if routed::carries_ipv6(net) {
            ""
        } else {
            "meta nfproto 2 "
        };
        lines.push(format!(
            "{of}iifname \"{br}\" oifname \"{up}\" udp dport {VXLAN_PORT} drop"
        ));
        lines.push(format!("{of}iifname \"{br}\" oifname \"{up}\" accept"));
    }
    if inside::is_bridged(net) && !net.spec.serve_dhcp {
        // No answer to what a VM asked, as connection tracking sees it: it asked everybody, and from no address.
        lines.push(format!(
            "meta nfproto 2 meta mark & 0x0000ffff == 0x{LEG_SLOT:08x} udp sport 67 udp dport 68 accept"
        ));
    }
    // A routed packet has no tap it goes out by, and passes this one by.
    lines.push(format!("meta mark & 0xffff0000 vmap @{TO}"));
    lines.push(format!("oifname \"{br}\" jump {AT}"));
    lines
}

fn output() -> Vec<String> {
    let br = names::BRIDGE;
    let mut lines: Vec<String> = NEIGHBOURS
        .iter()
        .chain(&["icmpv6 type 134"])
        .map(|n| format!("oifname \"{br}\" {n} accept"))
        .collect();
    lines.push(format!("oifname \"{br}\" {ANSWERS}"));
    lines.push(format!("oifname \"{br}\" jump {AT}"));
    lines.push(format!("oifname \"{br}\" drop"));
    lines
}

/// Policies, and the ways to them.
fn ports(table: &mut NftTable, net: &DesiredNetwork, policies: &Policies<'_>) {
    let slots = slots(net);
    let mut at: BTreeMap<IpNet, BTreeSet<String>> = BTreeMap::new();
    for port in &net.ports {
        let (key, slot) = (policies.key(port), slots[&port.id]);
        let (into, out) = (names::ingress_chain(key), names::egress_chain(key));
        if !policies.egress_open(port) {
            table.put(FROM, format!("0x{slot:08x} : jump {out}"));
            table.chains.entry(out).or_insert_with(|| {
                let mut lines = policy(policies, port, Direction::Egress);
                lines.push("drop".into());
                lines
            });
        }
        table.put(TO, format!("0x{slot:04x}0000 : goto {into}"));
        let chain = table.chains.entry(into.clone());
        chain.or_insert_with(|| policy(policies, port, Direction::Ingress));
        for (_, net) in port.identities() {
            at.entry(net).or_default().insert(into.clone());
        }
    }
    table.chains.insert(FROM.into(), vec![from_map()]);
    by_address(table, at);
}

/// Single addresses by a map; wider ones, which are few, behind it.
fn by_address(table: &mut NftTable, at: BTreeMap<IpNet, BTreeSet<String>>) {
    let mut lines = vec![format!("ip daddr vmap @{AT4}"), format!("ip6 daddr vmap @{AT6}")];
    for (net, chains) in at {
        let v6 = matches!(net, IpNet::V6(_));
        let spelled = guard::spelled(&net);
        if net.prefix_len() < net.max_prefix_len() {
            let end = if v6 { "ip6 daddr" } else { "ip daddr" };
            lines.extend(chains.iter().map(|c| format!("{end} {spelled} jump {c}")));
            continue;
        }
        // A map has one answer: where several ports share an address, a chain that asks each.
        let target = match chains.first() {
            Some(only) if chains.len() == 1 => only.clone(),
            _ => {
                let all: Vec<String> = chains.iter().map(|c| format!("jump {c}")).collect();
                let name = names::shared_chain(names::fnv1a64(&all.join(",")));
                table.chains.insert(name.clone(), all);
                name
            }
        };
        table.put(if v6 { AT6 } else { AT4 }, format!("{spelled} : goto {target}"));
    }
    table.chains.insert(AT.into(), lines);
}

/// What is asked for after a change of `some`.
pub(crate) fn asking(some: &Nft) -> Vec<String> {
    let mut lines = super::nft_table::asking(&SLOTS, &some.slots);
    lines.extend(super::nft_table::asking(&FILTER, &some.filter));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixture::lab;
    use vbm_core::NetworkMode;

    #[test]
    fn a_port_that_comes_is_some_elements_and_moves_no_other() {
        let both = lab(NetworkMode::Nat);
        let mut one = both.clone().into_inner();
        one.ports.pop();
        one.forwards.clear();
        let one = Validated::<DesiredNetwork>::new(one).unwrap();
        assert!(slots(&both).iter().zip(slots(&one)).all(|(a, b)| *a.1 == b.1));
        let (script, _) =
            super::super::nft_table::diff(&FILTER, &filter_table(&both, None), &filter_table(&one, None));
        assert!(
            !script.contains("0x000a") && script.lines().count() < 8,
            "{script}"
        );
        let (script, _) = super::super::nft_table::diff(&SLOTS, &slots_table(&both), &slots_table(&one));
        assert_eq!(script.lines().count(), 4, "{script}");
    }

    #[test]
    fn slots_are_of_one_port_each_and_none_is_that_of_the_link_to_others() {
        let mut net = lab(NetworkMode::Isolated).into_inner();
        let first = net.ports[0].clone();
        // All want the same slot, or one that is kept.
        net.ports = (0..300_u128)
            .map(|n| {
                let mut port = first.clone();
                let low = (n << 16) | (n ^ 0xfffe);
                port.id = PortId::from_uuid(uuid::Uuid::from_u128(low));
                port
            })
            .collect();
        let slots = slots(&net);
        let all: BTreeSet<u16> = slots.values().copied().collect();
        assert!(all.len() == 300 && [0, VXLAN_SLOT, LEG_SLOT].iter().all(|kept| !all.contains(kept)));
    }

    #[test]
    fn a_bridged_network_has_its_lan_beyond_a_slot_and_nothing_of_the_gateways() {
        let mut net = lab(NetworkMode::Bridged).into_inner();
        let dhcp = "meta nfproto 2 meta mark & 0x0000ffff == 0x0000fffe udp sport 67 udp dport 68 accept";
        let table = filter_table(&lab(NetworkMode::Bridged), None);
        assert!(table.chains["forward"].iter().any(|l| l == dhcp), "{table:?}");
        assert!(table.maps[TO].contains("0xfffe0000 : accept"), "{table:?}");
        assert!(!table.chains["input"].iter().any(|l| l.contains("icmp type 8")));
        let slots = slots_table(&lab(NetworkMode::Bridged));
        assert!(slots.maps[IN].contains("\"lan0\" : 0x0000fffe"), "{slots:?}");
        net.spec.serve_dhcp = true;
        let served = filter_table(&Validated::<DesiredNetwork>::new(net).unwrap(), None);
        assert!(!served.chains["forward"].iter().any(|l| l == dhcp));
    }

    #[test]
    fn only_a_routed_network_has_a_way_out_for_ipv6() {
        let transit = Transit::new("169.254.64.2/31".parse().unwrap());
        let lines = |mode| {
            let mut net = lab(mode).into_inner();
            net.spec.ipv6 = Some(vbm_core::Ipv6Spec::new("fd00::/64".parse().unwrap()).unwrap());
            filter_table(&Validated::<DesiredNetwork>::new(net).unwrap(), transit)
        };
        let out = "iifname \"br0\" oifname \"up0\" accept".to_owned();
        let asked = "iifname \"up0\" icmpv6 type 135 accept".to_owned();
        let routed = lines(NetworkMode::Routed);
        assert!(routed.chains["forward"].contains(&out) && routed.chains["input"].contains(&asked));
        let nat = lines(NetworkMode::Nat);
        assert!(!nat.chains["forward"].contains(&out) && !nat.chains["input"].contains(&asked));
        assert!(nat.chains["forward"].contains(&format!("meta nfproto 2 {out}")));
    }
}
