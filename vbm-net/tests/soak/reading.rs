//! What stands on a host, read with the tools that an administrator has, and compared with what is wanted: by none of the code that
//! wrote it.

use crate::common::{Lab, Ns};
use crate::soak::{One, World, words};
use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};
use vbm_core::{Mac, NetworkId, NetworkMode};
use vbm_net::{NicKind, names};

const INSIDE: &str = "
echo '## link';   ip -o link show
echo '## addr';   ip -o -4 addr show
echo '## rules';  iptables-save
echo '## rules6'; ip6tables-save
echo '## guard';  nft list table bridge vbm
echo '## sets';   ipset save
echo '## fdb';    [ -e /sys/class/net/vx0 ] && bridge fdb show dev vx0
echo '## queues'; tc qdisc show
echo '## set';    cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/bridge/bridge-nf-call-iptables /proc/sys/net/netfilter/nf_conntrack_tcp_loose
";

const AT_HOST: &str = "
echo '## link';   ip -o link show
echo '## rules';  iptables-save
echo '## proxy';  ip neigh show proxy
echo '## routes'; ip route show proto 86
echo '## set';    cat /proc/sys/net/ipv4/ip_forward
";

/// What was read, by its heading.
struct Read(BTreeMap<String, Vec<String>>);

impl Read {
    fn of(namespace: &str, script: &str) -> Self {
        let out = Command::new("ip")
            .args(["netns", "exec", namespace, "sh", "-c", script])
            .output()
            .unwrap();
        let mut all = BTreeMap::<String, Vec<String>>::new();
        let mut heading = String::new();
        for line in String::from_utf8_lossy(&out.stdout).lines() {
            match line.strip_prefix("## ") {
                Some(next) => {
                    heading = next.to_owned();
                    all.entry(heading.clone()).or_default();
                }
                None => all.entry(heading.clone()).or_default().push(line.to_owned()),
            }
        }
        Self(all)
    }
    fn lines(&self, heading: &str) -> &[String] {
        self.0.get(heading).map_or(&[], Vec::as_slice)
    }
    /// Names of links, each with its line.
    fn links(&self) -> BTreeMap<&str, &str> {
        let name = |line: &'_ String| -> Option<(usize, usize)> {
            let start = line.find(": ")? + 2;
            let end = start + line[start..].find([':', '@'])?;
            Some((start, end))
        };
        let lines = self.lines("link").iter();
        lines
            .filter_map(|l| name(l).map(|(a, b)| (&l[a..b], l.as_str())))
            .collect()
    }
}

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
    let read = Read::of(&place, INSIDE);
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
        if name.starts_with("tap") || *name == "vx0" {
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
    judge.holds(
        &format!("addresses of br0: {addresses:?}"),
        addresses.len() == 1 && addresses[0].contains(&gateway),
    );
    for port in net.ports.iter().filter(|p| one.open.contains_key(&p.id)) {
        let limits = port.policy.limits;
        let tap = names::tap(port.id);
        let shaped = |device: &str| {
            read.lines("queues").iter().any(|l| {
                l.contains(" root ")
                    && l.contains(&format!(" dev {device} "))
                    && !l.contains("noqueue")
                    && !l.contains("fq_codel")
                    && !l.contains("pfifo")
            })
        };
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
        judge.holds(
            &format!("guard of {}", port.address),
            chain.contains(&port.mac.to_string()) && chain.contains(&port.address.to_string()),
        );
    }
    let chains = text.matches("chain in-").count() - text.matches("chain in-vx0").count();
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
    let read = Read::of(&lab.host.0, AT_HOST);
    let mut judge = Judge {
        place: "the host".into(),
        wrong: Vec::new(),
    };
    let all = || world.networks.values();
    let by_host = || all().filter(|one| one.wanted.spec.mode.goes_by_host());
    let mut links: BTreeSet<String> = ["lo", "eth0"].map(str::to_owned).into();
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
    let read = Read::of(&ns.0, "echo '## link'; ip -o link show");
    read.links().keys().all(|n| ["lo", "eth0"].contains(n))
}
