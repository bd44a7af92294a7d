//! The guard: who a port may pretend to be, and what may be put on its wire. nft, family bridge.
//!
//! ```text
//!   tap --> prerouting (drop)  verdict map by tap --> in-<port>: its MAC, its ARP sender, its source, its neighbours' answers,
//!                                                     never a DHCP server or router, nothing but ARP and IP
//!   tap <-- postrouting (drop) verdict map by tap --> to-<port>: ARP; IP for its address; DHCP answers to its MAC
//! ```
//!
//!   vx0 --> prerouting          --> in-vx0: MAC and source of a known remote port, together; never the gateway's, never
//!                                           DHCP, ARP, neighbours' or routers' messages, never to everybody
//!   vx0 <-- postrouting         --> to-vx0: for MAC and address of a known remote port, together; never from the
//!                                           gateway, never DHCP, ARP, neighbours' or routers' messages
//!
//! What a remote port may be is an element of a set, so a thousand of them cost a packet what one does.
//!
//! Before either map: what is neither ARP nor IP, or is any of them behind a VLAN tag, is dropped, whoever sends it to whom.
//!
//! It runs at priority -300, before `br_netfilter` hands packets to iptables, so no `ESTABLISHED` can overtake
//! it. A tap that the maps do not name carries nothing. ARP probes (RFC 5227, sender 0.0.0.0) pass. A port without an address
//! of IPv6 neither says nor hears anything of it; how one with such an address may, is in `guard6`.

use super::{guard_leg, guard6, spelling};
use crate::{DesiredNetwork, DesiredPort, Validated, names};
use ipnet::IpNet;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::Ipv4Addr,
};
use vbm_core::{Mac, NetworkMode, network::METADATA_ADDRESS};

/// Before `br_netfilter` (0) and everything else.
const PRIORITY: i32 = -300;
/// Where `chaddr` stands behind the start of the UDP header: 8 bytes of UDP, 28 of BOOTP (RFC 951), in bits.
const CHADDR_AT_BITS: u32 = (8 + 28) * 8;
/// `ether type` is what stands on the wire; all else (`ip saddr`, `arp`, `meta protocol`) looks behind a VLAN tag, which the kernel
/// takes off, and `br_netfilter` passes a tagged packet by. To a guest the tag 0 is none (IEEE 802.1Q), so no tag passes at all.
const UNTAGGED: &str = "ether type != { 0x0800, 0x0806, 0x86dd } drop";
pub(super) const IN_MAP: &str = "in";
pub(super) const TO_MAP: &str = "to";
const MAPS: [&str; 2] = [IN_MAP, TO_MAP];
/// MAC and address of each port on another host.
const REMOTES: &str = "remotes";
/// The same of IPv6, where the network has it.
const REMOTES6: &str = "remotes6";

/// The guard of one namespace: chains by name, and the two maps from tap to chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    /// Lines of each chain, as `nft -s -nn list` prints them.
    pub chains: BTreeMap<String, Vec<String>>,
    /// Elements of each map: `"tap" : jump chain`.
    pub maps: BTreeMap<String, BTreeSet<String>>,
    /// Elements of each set: `mac . address`.
    pub sets: BTreeMap<String, BTreeSet<String>>,
}

/// The guard that is wanted.
pub fn render(net: &Validated<DesiredNetwork>) -> Guard {
    render_beside(net, &[])
}

/// The same where the host is a machine of the network's LAN itself, with these addresses.
pub fn render_beside(net: &Validated<DesiredNetwork>, host: &[Ipv4Addr]) -> Guard {
    let mut guard = Guard::default();
    for (hook, key, map) in [
        ("prerouting", "iifname", IN_MAP),
        ("postrouting", "oifname", TO_MAP),
    ] {
        let lines = vec![
            format!("type filter hook {hook} priority {PRIORITY}; policy drop;"),
            UNTAGGED.into(),
            format!("{key} vmap @{map}"),
        ];
        guard.chains.insert(hook.into(), lines);
        guard.maps.insert(map.into(), BTreeSet::new());
    }
    let macs = given_away(net);
    for port in &net.ports {
        let tap = names::tap(port.id);
        for (map, chain, lines) in [
            (
                IN_MAP,
                names::guard_in(port.id),
                from_port(net, port, &macs, host),
            ),
            (TO_MAP, names::guard_to(port.id), to_port(net, port)),
        ] {
            guard
                .maps
                .entry(map.into())
                .or_default()
                .insert(format!("\"{tap}\" : jump {chain}"));
            guard.chains.insert(chain, lines);
        }
    }
    if let Some(overlay) = &net.overlay {
        let vxlan = names::VXLAN;
        let (gateway, six) = (net.gateway_mac(), net.spec.ipv6.is_some());
        for (map, way, lines) in [
            (IN_MAP, "in", from_hosts(gateway, six)),
            (TO_MAP, "to", to_hosts(gateway, six)),
        ] {
            let chain = format!("{way}-{vxlan}");
            let element = format!("\"{vxlan}\" : jump {chain}");
            guard.maps.entry(map.into()).or_default().insert(element);
            guard.chains.insert(chain, lines);
        }
        let elements = overlay
            .remotes
            .iter()
            .map(|r| format!("{} . {}", r.mac, r.address));
        guard.sets.insert(REMOTES.into(), elements.collect());
        if six {
            let of = |r: &crate::RemotePort| {
                let address = spelling::address(r.address6?.into());
                Some(format!("{} . {address}", r.mac))
            };
            let elements = overlay.remotes.iter().filter_map(of);
            guard.sets.insert(REMOTES6.into(), elements.collect());
        }
    }
    guard_leg::add(&mut guard, net);
    guard
}

/// From other hosts. The gateway is on each host: nothing for it comes from another.
fn from_hosts(gateway: Mac, six: bool) -> Vec<String> {
    let mut lines = vec![of_hosts(six)];
    // To everybody: broadcast, multicast (linux/if_packet.h).
    lines.extend(["meta pkttype 1 drop".into(), "meta pkttype 2 drop".into()]);
    lines.push(format!("ether daddr {gateway} drop"));
    lines.extend(known(six, "saddr"));
    lines
}

fn to_hosts(gateway: Mac, six: bool) -> Vec<String> {
    let mut lines = vec![of_hosts(six)];
    lines.push(format!("ether saddr {gateway} drop"));
    lines.extend(known(six, "daddr"));
    lines
}

fn of_hosts(six: bool) -> String {
    let types = if six { "{ 0x0800, 0x86dd }" } else { "0x0800" };
    format!("ether type != {types} drop")
}

/// MAC and address together, at one end.
fn known(six: bool, end: &str) -> Vec<String> {
    let mut lines = no_dhcp().to_vec();
    if six {
        lines.extend(guard6::stays_on_its_host());
    }
    lines.push(format!("ether {end} . ip {end} @{REMOTES} accept"));
    if six {
        lines.push(format!("ether {end} . ip6 {end} @{REMOTES6} accept"));
    }
    lines.push("drop".into());
    lines
}

pub(super) fn no_dhcp() -> [String; 2] {
    ["udp sport 67-68 drop".into(), "udp dport 67-68 drop".into()]
}

/// The MACs of all ports, where a pair gives one: those of others it cannot give.
fn given_away(net: &DesiredNetwork) -> BTreeSet<Mac> {
    let gives = |port: &DesiredPort| port.policy.pairs.iter().any(|pair| pair.mac.is_some());
    if !net.ports.iter().any(gives) {
        return BTreeSet::new();
    }
    let remotes = net.overlay.iter().flat_map(|o| &o.remotes).map(|r| r.mac);
    net.ports.iter().map(|p| p.mac).chain(remotes).collect()
}

/// The addresses under which the gateway's services know a VM by its address; none where the gateway is not ours.
fn services(net: &DesiredNetwork) -> Vec<Ipv4Addr> {
    if net.spec.mode == NetworkMode::Bridged {
        return Vec::new();
    }
    vec![METADATA_ADDRESS, net.spec.gateway]
}

fn from_port(
    net: &DesiredNetwork,
    port: &DesiredPort,
    macs: &BTreeSet<Mac>,
    host: &[Ipv4Addr],
) -> Vec<String> {
    if !port.policy.pairs.is_empty() || port.has_ipv6() || !net.spec.serve_dhcp {
        return from_port_of_many(net, port, macs, host);
    }
    let (mac, ip) = (port.mac, port.address);
    let mut lines = vec![
        format!("ether saddr != {mac} drop"),
        format!("arp saddr ether != {mac} drop"),
        "arp operation 1 arp saddr ip 0.0.0.0 accept".into(),
        format!("arp saddr ip {ip} accept"),
        "ether type != 0x0800 drop".into(),
    ];
    lines.extend(guard_leg::turned_to_us(net));
    lines.extend([
        "ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept".into(),
        format!("ip saddr != {ip} drop"),
        "udp sport 67 drop".into(),
        "accept".into(),
    ]);
    lines
}

/// The same where a port may use more than one address. Each is allowed with its MAC, unless that is another port's of `all_macs`;
/// what none names is dropped. To the gateway's services it is its own address alone: by that they know whom they tell what.
fn from_port_of_many(
    net: &DesiredNetwork,
    port: &DesiredPort,
    all_macs: &BTreeSet<Mac>,
    host: &[Ipv4Addr],
) -> Vec<String> {
    let mut identities = guard_leg::identities(net, port);
    identities.retain(|(mac, _)| *mac == port.mac || !all_macs.contains(mac));
    let macs: BTreeSet<Mac> = identities.iter().map(|(mac, _)| *mac).collect();
    let of_ipv4 = || identities.iter().filter(|(_, net)| matches!(net, IpNet::V4(_)));
    let mut lines = guard_leg::not_another(net, host);
    lines.extend(
        macs.iter().map(|m| {
            format!("ether saddr {m} arp operation 1 arp saddr ether {m} arp saddr ip 0.0.0.0 accept")
        }),
    );
    lines.extend(of_ipv4().map(|(m, net)| {
        format!(
            "ether saddr {m} arp saddr ether {m} arp saddr ip {} accept",
            spelled(net)
        )
    }));
    lines.push("ether type 0x0806 drop".into());
    lines.extend(guard_leg::turned_to_us(net));
    lines.push(format!(
        "ether saddr {} ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept",
        port.mac
    ));
    lines.push("udp sport 67 drop".into());
    if of_ipv4().any(|(_, net)| net.addr() != port.address || net.prefix_len() < net.max_prefix_len()) {
        let only = |service| format!("ip daddr {service} ip saddr != {} drop", port.address);
        lines.extend(services(net).into_iter().map(only));
    }
    lines.extend(of_ipv4().map(|(m, net)| format!("ether saddr {m} ip saddr {} accept", spelled(net))));
    if port.has_ipv6() {
        lines.extend(guard6::from_port(&identities, &macs));
    }
    lines.push("drop".into());
    lines
}

/// As nft prints it: a single address without its length.
pub(super) fn spelled(net: &IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() {
        spelling::address(net.addr())
    } else {
        spelling::net(*net)
    }
}

fn to_port(net: &DesiredNetwork, port: &DesiredPort) -> Vec<String> {
    let mac: String = port.mac.octets().iter().map(|b| format!("{b:02x}")).collect();
    let mut nets: Vec<IpNet> = Vec::new();
    for (_, one) in guard_leg::identities(net, port) {
        if !nets.contains(&one) {
            nets.push(one);
        }
    }
    let of_ipv4: Vec<&IpNet> = nets.iter().filter(|net| matches!(net, IpNet::V4(_))).collect();
    let mut lines = vec!["ether type 0x0806 accept".into()];
    let dhcp = format!(
        "ip daddr 255.255.255.255 udp sport 67 udp dport 68 @th,{CHADDR_AT_BITS},48 0x{} accept",
        mac.trim_start_matches('0')
    );
    let accept = of_ipv4.iter().map(|one| guard_leg::heard(net, port, one));
    if of_ipv4.len() > 1 {
        lines.push(dhcp);
        // Else who claims a shared address would hear what is said to the port that has it.
        let only = |service| format!("ip saddr {service} ip daddr != {} drop", port.address);
        lines.extend(services(net).into_iter().map(only));
        lines.extend(accept);
    } else {
        lines.extend(accept);
        lines.push(dhcp);
    }
    if port.has_ipv6() {
        lines.extend(guard6::to_port(&nets));
    }
    lines.push("drop".into());
    lines
}

/// Reads `nft -s -nn list table bridge vbm`.
pub fn parse(text: &str) -> Guard {
    enum In {
        Nothing,
        Chain(String),
        Map(String),
        Set(String),
    }
    let mut guard = Guard::default();
    let mut inside = In::Nothing;
    let mut elements = false;
    for line in text.lines().map(str::trim) {
        if let Some(name) = block(line, "chain") {
            guard.chains.entry(name.clone()).or_default();
            inside = In::Chain(name);
        } else if let Some(name) = block(line, "map") {
            guard.maps.entry(name.clone()).or_default();
            inside = In::Map(name);
        } else if let Some(name) = block(line, "set") {
            guard.sets.entry(name.clone()).or_default();
            inside = In::Set(name);
        } else if line == "}" {
            inside = In::Nothing;
        } else {
            match &inside {
                In::Chain(name) if !line.is_empty() => {
                    guard
                        .chains
                        .entry(name.clone())
                        .or_default()
                        .push(line.to_owned());
                }
                In::Map(name) => {
                    let found = elements_of(line, &mut elements);
                    guard.maps.entry(name.clone()).or_default().extend(found);
                }
                In::Set(name) => {
                    let found = elements_of(line, &mut elements);
                    guard.sets.entry(name.clone()).or_default().extend(found);
                }
                _ => {}
            }
        }
    }
    guard
}

/// The elements on a line of a map or set. `within` is whether their list has begun and not ended.
fn elements_of(line: &str, within: &mut bool) -> Vec<String> {
    let begun = line.strip_prefix("elements = {");
    *within |= begun.is_some();
    if !*within {
        return Vec::new();
    }
    let rest = begun.unwrap_or(line);
    *within = !rest.contains('}');
    let found = rest.trim_end_matches('}').split(',').map(str::trim);
    found.filter(|e| !e.is_empty()).map(str::to_owned).collect()
}

fn block(line: &str, kind: &str) -> Option<String> {
    let name = line.strip_prefix(kind)?.strip_prefix(' ')?.strip_suffix(" {")?;
    (!name.contains(' ')).then(|| name.to_owned())
}

/// The script that turns the observed guard into the desired one, and a line a change; empty when they are equal.
/// One `nft -f` runs it as one transaction.
pub fn diff(want: &Guard, have: &Guard) -> (String, Vec<String>) {
    if want == have {
        return (String::new(), Vec::new());
    }
    let skeleton = |g: &Guard| -> Option<Vec<Vec<String>>> {
        let chains = ["prerouting", "postrouting"]
            .iter()
            .map(|c| g.chains.get(*c).cloned())
            .collect::<Option<_>>()?;
        MAPS.iter().all(|m| g.maps.contains_key(*m)).then_some(chains)
    };
    if skeleton(want) != skeleton(have) || !want.sets.keys().eq(have.sets.keys()) {
        return (whole(want, *have == Guard::default()), vec!["the guard".into()]);
    }
    changes(want, have)
}

/// The whole table, replacing what stands. Where nothing does, nothing is deleted: the kernel would take its time to forget it.
fn whole(want: &Guard, fresh: bool) -> String {
    let t = names::GUARD_TABLE;
    let mut script = String::new();
    if !fresh {
        script += &format!("table bridge {t}\ndelete table bridge {t}\n");
    }
    script += &format!("table bridge {t} {{\n");
    let mut put = |text: std::fmt::Arguments<'_>| {
        // A String never refuses to be written to.
        let _infallible = script.write_fmt(text);
    };
    for (name, elements) in &want.maps {
        put(format_args!("map {name} {{\ntype ifname : verdict\n"));
        if !elements.is_empty() {
            let all: Vec<_> = elements.iter().map(String::as_str).collect();
            put(format_args!("elements = {{ {} }}\n", all.join(", ")));
        }
        put(format_args!("}}\n"));
    }
    for (name, elements) in &want.sets {
        let family = if name == REMOTES6 { "ipv6" } else { "ipv4" };
        put(format_args!("set {name} {{\ntype ether_addr . {family}_addr\n"));
        if !elements.is_empty() {
            let all: Vec<_> = elements.iter().map(String::as_str).collect();
            put(format_args!("elements = {{ {} }}\n", all.join(", ")));
        }
        put(format_args!("}}\n"));
    }
    for (name, lines) in &want.chains {
        put(format_args!("chain {name} {{\n{}\n}}\n", lines.join("\n")));
    }
    script + "}\n"
}

/// Only the chains and elements that differ. Elements go before the chains that they jump to, and come after.
fn changes(want: &Guard, have: &Guard) -> (String, Vec<String>) {
    let t = names::GUARD_TABLE;
    let [mut first, mut chains, mut rules, mut last, mut gone] = [const { String::new() }; 5];
    let mut told = Vec::new();
    let element = |out: &mut String, verb: &str, map: &str, e: &str| {
        // Deleting takes the key alone.
        let e = if verb == "delete" {
            e.split(" : ").next().unwrap_or(e)
        } else {
            e
        };
        *out += &format!("{verb} element bridge {t} {map} {{ {e} }}\n");
    };
    for map in MAPS {
        let (w, h) = (&want.maps[map], &have.maps[map]);
        h.difference(w)
            .for_each(|e| element(&mut first, "delete", map, e));
        w.difference(h).for_each(|e| element(&mut last, "add", map, e));
    }
    let no_elements = BTreeSet::new();
    for (set, w) in &want.sets {
        let h = have.sets.get(set).unwrap_or(&no_elements);
        let (gone, new): (Vec<_>, Vec<_>) = (h.difference(w).collect(), w.difference(h).collect());
        gone.iter().for_each(|e| element(&mut first, "delete", set, e));
        new.iter().for_each(|e| element(&mut last, "add", set, e));
        told.extend(gone.iter().map(|e| format!("no more remote port {e}")));
        told.extend(new.iter().map(|e| format!("remote port {e}")));
    }
    for (name, lines) in want
        .chains
        .iter()
        .filter(|(n, lines)| have.chains.get(*n) != Some(lines))
    {
        told.push(format!("guard {name}"));
        chains += &format!("add chain bridge {t} {name}\n");
        if have.chains.contains_key(name) {
            chains += &format!("flush chain bridge {t} {name}\n");
        }
        for line in lines {
            rules += &format!("add rule bridge {t} {name} {line}\n");
        }
    }
    for name in have.chains.keys().filter(|n| !want.chains.contains_key(*n)) {
        told.push(format!("no more guard {name}"));
        gone += &format!("flush chain bridge {t} {name}\ndelete chain bridge {t} {name}\n");
    }
    if told.is_empty() {
        told.push("taps of the guard".into());
    }
    ([first, chains, rules, last, gone].concat(), told)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixture::lab;
    use proptest::prelude::*;
    use vbm_core::NetworkMode;

    const LISTED: &str = "table bridge vbm {\n\tmap in {\n\t\ttype ifname : verdict\n\t\telements = { \"tap0000000a\" : jump in-0000000a,\n\t\t\t     \"tap0000000b\" : jump in-0000000b }\n\t}\n\n\tmap to {\n\t\ttype ifname : verdict\n\t}\n\n\tchain prerouting {\n\t\ttype filter hook prerouting priority -300; policy drop;\n\t\tiifname vmap @in\n\t}\n}\n";

    #[test]
    fn what_nft_lists_is_read() {
        let guard = parse(LISTED);
        assert_eq!(guard.maps["in"].len(), 2);
        assert!(guard.maps["in"].contains("\"tap0000000b\" : jump in-0000000b"));
        assert!(guard.maps["to"].is_empty());
        assert_eq!(guard.chains["prerouting"][1], "iifname vmap @in");
    }

    #[test]
    fn what_is_written_whole_is_what_is_wanted() {
        let want = render(&lab(NetworkMode::Nat));
        let (script, told) = diff(&want, &Guard::default());
        assert_eq!(parse(&script), want);
        assert_eq!(told, ["the guard"]);
        assert_eq!(diff(&want, &want), (String::new(), Vec::new()));
    }

    #[test]
    fn a_port_may_be_nobody_but_itself() {
        let want = render(&lab(NetworkMode::Nat));
        assert_eq!(
            want.chains["in-0000000a"],
            [
                "ether saddr != 52:54:00:77:00:00 drop",
                "arp saddr ether != 52:54:00:77:00:00 drop",
                "arp operation 1 arp saddr ip 0.0.0.0 accept",
                "arp saddr ip 10.77.0.10 accept",
                "ether type != 0x0800 drop",
                "ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept",
                "ip saddr != 10.77.0.10 drop",
                "udp sport 67 drop",
                "accept",
            ]
        );
    }

    #[test]
    fn a_tagged_frame_goes_before_any_port_is_asked() {
        let want = render(&lab(NetworkMode::Nat));
        for hook in ["prerouting", "postrouting"] {
            assert_eq!(want.chains[hook][1], UNTAGGED);
        }
    }

    #[test]
    fn adding_and_removing_one_port_touches_no_other() {
        let both = render(&lab(NetworkMode::Nat));
        let mut one = lab(NetworkMode::Nat).into_inner();
        one.ports.pop();
        one.forwards.clear();
        let one = render(&Validated::<DesiredNetwork>::new(one).unwrap());
        let (script, _) = diff(&both, &one);
        assert!(
            script.contains("add chain bridge vbm in-0000000b") && !script.contains("0000000a"),
            "{script}"
        );
        let (script, _) = diff(&one, &both);
        assert_eq!(
            script,
            "delete element bridge vbm in { \"tap0000000b\" }\n\
             delete element bridge vbm to { \"tap0000000b\" }\n\
             flush chain bridge vbm in-0000000b\ndelete chain bridge vbm in-0000000b\n\
             flush chain bridge vbm to-0000000b\ndelete chain bridge vbm to-0000000b\n"
        );
    }

    proptest! {
        #[test]
        fn reading_garbage_never_panics(text in "(chain|map|elements = |[a-z {}\",:\\n\\t])*") { parse(&text); }
    }
}
