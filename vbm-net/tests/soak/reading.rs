//! What stands on a host, read with the tools that an administrator has, and compared with what is wanted: by none of the code that
//! wrote it.

use crate::common::{Lab, Ns};
use crate::lan;
use crate::soak::{BRIDGE, INTERFACE, One, World, words};
use crate::tools::{Ask, Read};
use std::collections::BTreeSet;
use vbm_core::{Mac, NetworkId, NetworkMode};
use vbm_net::{NicKind, names};

/// What is not as it must be.
pub(crate) struct Judge {
    place: String,
    pub(crate) wrong: Vec<String>,
}

impl Judge {
    fn same<T: PartialEq + std::fmt::Debug>(&mut self, what: &str, wanted: &T, stands: &T) {
        if wanted != stands {
            self.wrong.push(format!(
                "{}: {what}: wanted {wanted:?}, there is {stands:?}",
                self.place
            ));
        }
    }
    fn holds(&mut self, what: &str, is: bool) {
        if !is {
            self.wrong.push(format!("{}: {what}", self.place));
        }
    }
}

/// All that is wrong with one network.
pub(crate) fn network(lab: &Lab, one: &One) -> Vec<String> {
    let net = &one.wanted;
    let place = lab.inside(net.id);
    let read = Read::of(
        &place,
        Ask::Inside {
            six: net.ports.iter().any(|p| p.has_ipv6()),
            spans: net.overlay.is_some(),
        },
    );
    let mut judge = Judge {
        place,
        wrong: Vec::new(),
    };
    links(&mut judge, one, &read);
    guard(&mut judge, one, &read);
    chains(&mut judge, one, &read);
    sets(&mut judge, one, &read);
    let settings: Vec<&str> = read.lines("set").iter().map(String::as_str).collect();
    judge.same("settings", &vec!["1", "1", "0"], &settings);
    if let Some(overlay) = &net.overlay {
        for remote in &overlay.remotes {
            let start = format!("{} dst {}", remote.mac, remote.host);
            judge.holds(
                &format!("the way to {}", remote.address),
                read.lines("fdb").iter().any(|l| l.starts_with(&start)),
            );
        }
        let ways = read.lines("fdb").iter().filter(|l| l.contains(" dst ")).count();
        judge.same("ways to other hosts", &overlay.remotes.len(), &ways);
    }
    judge.wrong
}

fn links(judge: &mut Judge, one: &One, read: &Read) {
    let net = &one.wanted;
    let mut wanted: BTreeSet<String> = ["lo", "br0"].map(str::to_owned).into();
    wanted.extend(net.spec.mode.goes_by_host().then(|| "up0".to_owned()));
    wanted.extend(net.overlay.is_some().then(|| "vx0".to_owned()));
    wanted.extend(one.is_bridged().then(|| "lan0".to_owned()));
    wanted.extend(one.open.keys().map(|p| names::tap(*p)));
    let links = read.links();
    let stands: BTreeSet<String> = links
        .keys()
        .filter(|n| !n.starts_with("lim"))
        .map(|n| (*n).to_owned())
        .collect();
    judge.same("links", &wanted, &stands);
    for (name, line) in &links {
        if *name == "lo" {
            continue;
        }
        let flags = line.split(['<', '>']).nth(1).unwrap_or_default();
        judge.holds(
            &format!("{name} is up: {line}"),
            flags.split(',').any(|f| f == "UP"),
        );
        if *name == "br0" || name.starts_with("tap") {
            judge.holds(
                &format!("MTU of {name}: {line}"),
                line.contains(&format!(" mtu {} ", net.spec.mtu)),
            );
        }
        if name.starts_with("tap") || ["vx0", "lan0"].contains(name) {
            judge.holds(
                &format!("{name} is on the bridge: {line}"),
                line.contains(" master br0 "),
            );
        }
    }
    let gateway = format!("inet {}/{}", net.spec.gateway, net.spec.cidr.prefix_len());
    let addresses: Vec<_> = read
        .lines("addr")
        .iter()
        .filter(|l| l.contains(" br0 ") && !l.contains(" 169.254.169.254/"))
        .collect();
    // On a LAN we have none: its router is the gateway.
    let right = match addresses[..] {
        [] => one.is_bridged(),
        [only] => !one.is_bridged() && only.contains(&gateway),
        _ => false,
    };
    judge.holds(&format!("addresses of br0: {addresses:?}"), right);
    for port in net.ports.iter().filter(|p| one.open.contains_key(&p.id)) {
        let limits = port.policy.limits;
        let tap = names::tap(port.id);
        let shaped = |device: &str| links.get(device).is_some_and(|line| line.contains(" qdisc tbf "));
        judge.same(
            &format!("limit to {tap}"),
            &limits.in_kbit_per_second.is_some(),
            &shaped(&tap),
        );
        judge.same(
            &format!("limit from {tap}"),
            &limits.out_kbit_per_second.is_some(),
            &shaped(&names::limit(port.id)),
        );
    }
}

/// Each port's MAC and address in its own chain, and nobody else's anywhere.
fn guard(judge: &mut Judge, one: &One, read: &Read) {
    let net = &one.wanted;
    let text = read.lines("guard").join("\n");
    for port in &net.ports {
        let start = text.find(&format!("chain {} {{", names::guard_in(port.id)));
        let chain = start.map_or("", |at| text[at..].split("\n\t}").next().unwrap_or(""));
        // Where the LAN's own server gives addresses, any of the LAN but its router's.
        let (address, router) = if one.is_bridged() && !net.spec.serve_dhcp {
            let gateway = net.spec.gateway;
            (net.spec.cidr.to_string(), format!("ip saddr {gateway} drop"))
        } else {
            (port.address.to_string(), String::new())
        };
        judge.holds(
            &format!("guard of {}: {chain}", port.address),
            chain.contains(&port.mac.to_string()) && chain.contains(&address) && chain.contains(&router),
        );
    }
    let of_links = ["vx0", "lan0"].map(|link| text.matches(&format!("chain in-{link} {{")).count());
    judge.same(
        "guards of what is not a port",
        &[net.overlay.is_some(), one.is_bridged()].map(usize::from),
        &of_links,
    );
    judge.same(
        "whether the gateway's MAC may come from elsewhere",
        &(one.is_bridged() || net.overlay.is_some()),
        &text.contains(&format!("ether saddr {} drop", net.gateway_mac())),
    );
    let chains = text.matches("chain in-").count() - of_links.iter().sum::<usize>();
    judge.same("guards", &net.ports.len(), &chains);
    let mut known: BTreeSet<String> = net.ports.iter().map(|p| p.mac.to_string()).collect();
    known.extend(
        net.overlay
            .iter()
            .flat_map(|o| &o.remotes)
            .map(|r| r.mac.to_string()),
    );
    let prefix = Mac::local(0).to_string()[..8].to_owned();
    let words = text.split(|c: char| c.is_whitespace() || ",{}".contains(c));
    let stands: BTreeSet<String> = words
        .filter(|w| w.starts_with(&prefix) && w.len() == 17)
        .map(str::to_owned)
        .collect();
    judge.same("MACs", &known, &stands);
}

fn chains(judge: &mut Judge, one: &One, read: &Read) {
    let net = &one.wanted;
    let rules = read.lines("rules");
    for chain in ["INPUT", "FORWARD"] {
        judge.holds(
            &format!("{chain} is shut"),
            rules.iter().any(|l| l.starts_with(&format!(":{chain} DROP"))),
        );
    }
    judge.holds(
        "nothing is let through whatever it is",
        !rules.iter().any(|l| l == "-A FORWARD -j ACCEPT"),
    );
    // Where no port may speak it, the guard lets none of it pass.
    if net.ports.iter().any(|p| p.has_ipv6()) {
        judge.holds(
            "FORWARD of IPv6 is shut",
            read.lines("rules6")
                .iter()
                .any(|l| l.starts_with(":FORWARD DROP")),
        );
    }
    let mut addresses = BTreeSet::new();
    for port in &net.ports {
        addresses.extend(port.policy.pairs.iter().map(|p| p.address.addr().to_string()));
        addresses.insert(port.address.to_string());
        let leaf = format!(" -d {}/32 -g ", port.address);
        let chain = rules
            .iter()
            .find(|l| l.starts_with("-A VBM-AT") && l.contains(&leaf))
            .and_then(|l| l.rsplit(' ').next());
        let Some(chain) = chain else {
            judge
                .wrong
                .push(format!("{}: no way to {}", judge.place, port.address));
            continue;
        };
        let start = format!("-A {chain} ");
        let stands: BTreeSet<String> = rules
            .iter()
            .filter_map(|l| l.strip_prefix(&start))
            .map(str::to_owned)
            .collect();
        judge.same(
            &format!("what may reach {}", port.address),
            &expected(one, port),
            &stands,
        );
    }
    let reached: BTreeSet<String> = rules
        .iter()
        .filter(|l| l.starts_with("-A VBM-AT"))
        .filter_map(|l| {
            l.split(" -d ")
                .nth(1)?
                .split("/32 ")
                .next()
                .filter(|a| !a.contains('/'))
                .map(str::to_owned)
        })
        .collect();
    judge.same("who may be reached", &addresses, &reached);
    let doors = rules
        .iter()
        .filter(|l| l.starts_with("-A PREROUTING") && l.contains("-j DNAT"))
        .count();
    let floating = net.ports.iter().filter(|p| p.policy.floating.is_some()).count();
    judge.same(
        "forwards and floating IPs",
        &(net.forwards.len() + floating),
        &doors,
    );
}

/// What the rules of a port and of its groups must be in the kernel.
fn expected(one: &One, port: &vbm_net::DesiredPort) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    if !port.rules.is_empty() || port.policy.groups.is_empty() {
        lines.extend(port.rules.iter().filter_map(|r| words::line(r, None)));
    }
    for group in one
        .wanted
        .groups
        .iter()
        .filter(|g| port.policy.groups.contains(&g.id))
    {
        let set = names::group_set(group.id, false);
        lines.extend(group.spec.rules.iter().filter_map(|r| words::line(r, Some(&set))));
    }
    lines
}

/// The members of each group whose rules speak of them.
fn sets(judge: &mut Judge, one: &One, read: &Read) {
    let net = &one.wanted;
    let mut wanted = BTreeSet::new();
    for group in &net.groups {
        if !group.spec.rules.iter().any(|r| r.peer.is_some()) {
            continue;
        }
        let set = names::group_set(group.id, false);
        wanted.extend(group.members.iter().map(|m| format!("{set} {}", m.addr())));
        for port in net.ports.iter().filter(|p| p.policy.groups.contains(&group.id)) {
            wanted.insert(format!("{set} {}", port.address));
            wanted.extend(
                port.policy
                    .pairs
                    .iter()
                    .map(|p| format!("{set} {}", p.address.addr())),
            );
        }
    }
    let stands: BTreeSet<String> = read
        .lines("sets")
        .iter()
        .filter_map(|l| l.strip_prefix("add vbm4-"))
        .map(|l| format!("vbm4-{l}"))
        .collect();
    judge.same("members of groups", &wanted, &stands);
}

/// All that is wrong on the host itself.
pub(crate) fn host(lab: &Lab, world: &World) -> Vec<String> {
    let read = Read::of(&lab.host.0, Ask::Host);
    let mut judge = Judge {
        place: "the host".into(),
        wrong: Vec::new(),
    };
    let all = || world.networks.values();
    let by_host = || all().filter(|one| one.wanted.spec.mode.goes_by_host());
    let mut links: BTreeSet<String> = lan::LINKS.map(str::to_owned).into();
    links.extend(["lo", "eth0"].map(str::to_owned));
    let on_bridge = || all().filter(|one| one.goes_by(BRIDGE));
    links.extend(on_bridge().map(|one| names::leg(one.wanted.id)));
    links.extend(by_host().map(|one| names::transit(one.wanted.id)));
    let interfaces = all()
        .flat_map(|one| &one.open)
        .filter(|(_, kind)| **kind == NicKind::Interface);
    links.extend(interfaces.map(|(port, _)| names::interface(*port)));
    judge.same(
        "links",
        &links,
        &read.links().keys().map(|n| (*n).to_owned()).collect(),
    );
    for one in on_bridge() {
        let leg = names::leg(one.wanted.id);
        let line = read.links().get(leg.as_str()).map_or("", |line| *line).to_owned();
        judge.holds(
            &format!("{leg} is on the host's bridge, and up: {line}"),
            line.contains(&format!(" master {BRIDGE} ")) && line.contains(",UP"),
        );
    }
    let lans: BTreeSet<&str> = [BRIDGE, INTERFACE]
        .into_iter()
        .flat_map(|name| {
            read.lines("addr")
                .iter()
                .filter(move |l| l.contains(&format!(": {name} ")))
        })
        .filter_map(|l| l.split_whitespace().nth(3))
        .collect();
    judge.same(
        "the host's own addresses on its LANs",
        &BTreeSet::from([lan::ADDRESS]),
        &lans,
    );
    let floating: BTreeSet<String> = all()
        .flat_map(|one| &one.wanted.ports)
        .filter_map(|p| p.policy.floating)
        .map(|a| a.to_string())
        .collect();
    let first = |heading: &str| -> BTreeSet<String> {
        read.lines(heading)
            .iter()
            .filter_map(|l| l.split_whitespace().next())
            .map(str::to_owned)
            .collect()
    };
    judge.same("floating IPs that are answered for", &floating, &first("proxy"));
    let routed = all().filter(|one| one.wanted.spec.mode == NetworkMode::Routed);
    let led = routed.flat_map(|one| {
        let far = one.wanted.overlay.iter().flat_map(|o| &o.remotes);
        let far = far.map(|r| r.address.to_string());
        far.chain([one.wanted.spec.cidr.to_string()])
    });
    let led: BTreeSet<String> = floating.iter().cloned().chain(led).collect();
    judge.same("addresses that lead somewhere", &led, &first("routes"));
    let listened: BTreeSet<String> = all()
        .flat_map(|one| &one.wanted.forwards)
        .map(|f| match f.count {
            1 => f.listen_port.to_string(),
            n => format!("{}:{}", f.listen_port, f.listen_port + n - 1),
        })
        .collect();
    let doors: BTreeSet<String> = read
        .lines("rules")
        .iter()
        .filter(|l| l.contains("-j DNAT"))
        .filter_map(|l| l.split("--dport ").nth(1)?.split(' ').next().map(str::to_owned))
        .collect();
    judge.same("forwards", &listened, &doors);
    if by_host().next().is_some() {
        judge.same("forwarding", &vec!["1".to_owned()], &read.lines("set").to_vec());
    }
    judge.same(
        "namespaces and records",
        &here(lab, &world.networks.keys().copied().collect::<Vec<_>>()),
        &named_here(lab),
    );
    judge.wrong
}

fn here(lab: &Lab, ids: &[NetworkId]) -> BTreeSet<String> {
    ids.iter()
        .flat_map(|id| [lab.inside(*id), format!("{}.json", lab.inside(*id))])
        .collect()
}

/// Names of namespaces and records of this lab's instance.
fn named_here(lab: &Lab) -> BTreeSet<String> {
    let any = NetworkId::from_uuid(uuid::Uuid::from_u128(0));
    let whole = lab.inside(any);
    let mark = whole.rsplit('-').next().unwrap().to_owned();
    let of_dir = |dir: &str| {
        std::fs::read_dir(dir)
            .into_iter()
            .flatten()
            .filter_map(|e| e.unwrap().file_name().into_string().ok())
            .collect::<Vec<_>>()
    };
    let all = of_dir("/run/netns").into_iter().chain(of_dir("/run/vbm/net"));
    all.filter(|n| n.starts_with("vbm-") && n.contains(&mark) && !n.contains(".tmp"))
        .collect()
}

/// Waits for nothing: names of links that only hold while their namespace is taken apart are passed over by the caller.
pub(crate) fn is_empty(ns: &Ns) -> bool {
    let read = Read::of(&ns.0, Ask::Host);
    let ours = |n: &&str| !["lo", "eth0"].contains(n) && !lan::LINKS.contains(n);
    !read.links().keys().any(ours)
}
