//! What a port costs that comes to a network of many, or leaves it: beside `iptables` rule by rule, and Neutron's way.
//!
//! ```text
//!   ours      DesiredNetwork with one port more ---> ensure: what differs is written and read back, DHCP and DNS know it
//!   by rule   24 calls of iptables in a namespace with as many VMs, each a chain of 21 rules and 3 jumps
//!   Neutron   iptables-save of all, compared with what is wanted, what is new by one iptables-restore -n
//! ```
//!
//! Each row is wall time, and below it the same as processor time of all programs that took part.

use super::lab::{Lab, network, port};
use crate::harness::{
    cpu,
    fault::{During, Fault, Outcome},
    ground::Ground,
    row::Row,
    rows::Rows,
    space::Space,
};
use std::{collections::BTreeSet, fmt::Write as _};
use tokio::time::Instant;
use vbm_net::{DesiredNetwork, Dispatch};

/// How many ports there are before.
const PORTS: [usize; 3] = [100, 1_000, 4_000];
/// The small network of the goal of growth.
const FEW_PORTS: usize = 200;
/// The rules of a VM in the peers' tables, with those that lead to its chain.
const PEER_RULES: usize = 21;
/// Adds and removes in one sample of ours: several, so that one that splits a chain is not all of it.
const CHANGES: usize = 4;

/// Wall time and processor time of one thing, in ms.
#[derive(Clone, Copy, Debug, Default)]
struct Took {
    wall: f64,
    cpu: f64,
}

struct Watch(Instant, f64);

impl Watch {
    fn start() -> Outcome<Self> {
        Ok(Self(Instant::now(), cpu::spent_ms()?))
    }
    fn read(&self) -> Outcome<Took> {
        Ok(Took {
            wall: self.0.elapsed().as_secs_f64() * 1e3,
            cpu: cpu::spent_ms()? - self.1,
        })
    }
}

/// Samples of several competitors.
#[derive(Debug, Default)]
struct Times(Vec<Took>);

impl Times {
    fn wall(&self) -> Vec<f64> {
        self.0.iter().map(|t| t.wall).collect()
    }
    fn cpu(&self) -> Vec<f64> {
        self.0.iter().map(|t| t.cpu).collect()
    }
}

fn names(ports: usize) -> [String; 9] {
    let add = format!("add a port to {ports}");
    [
        format!("{add}, beside `iptables` by rule"),
        format!("{add}, beside `iptables` by rule: CPU"),
        format!("{add}, beside Neutron's way"),
        format!("{add}, beside Neutron's way: CPU"),
        format!("{add}, dispatch nft beside iptables"),
        format!("{add}, dispatch nft beside iptables: CPU"),
        format!("remove a port of {ports}"),
        format!("ensure {ports} ports again, nothing to change"),
        format!("all {ports} ports from nothing, beside one iptables-restore of the peers' rules"),
    ]
}

pub(super) async fn run(ground: &Ground, rows: &mut Rows) {
    for ports in PORTS {
        let names = names(ports);
        let planned: Vec<(&str, &'static str)> = names.iter().map(|n| (n.as_str(), "ms")).collect();
        rows.measure_all(&planned, at(ground, ports, &names)).await;
    }
    let growth = format!("add a port to 1000, beside one of {FEW_PORTS}");
    rows.measure(&growth, "ms", growing(ground, &growth)).await;
}

/// A network of ours that grows and shrinks.
struct Ours {
    lab: Lab,
    wanted: DesiredNetwork,
    made: Took,
    next: usize,
}

impl Ours {
    async fn make(ground: &Ground, ports: usize, dispatch: Dispatch) -> Outcome<Self> {
        let lab = Lab::dispatched(ground, dispatch).await?;
        let wanted = network(ports)?;
        // Apart from it: what a network costs without ports, and what all share.
        let mut empty = wanted.clone();
        empty.ports.clear();
        lab.ensure(&empty).await?;
        let watch = Watch::start()?;
        lab.ensure(&wanted).await.during("making it")?;
        let made = watch.read()?;
        Ok(Self {
            lab,
            wanted,
            made,
            next: ports,
        })
    }

    /// Ports that come one by one, and go again: what one of each took.
    async fn change(&mut self) -> Outcome<(Took, Took)> {
        let watch = Watch::start()?;
        for _ in 0..CHANGES {
            self.wanted.ports.push(port(self.next)?);
            self.next += 1;
            self.ensure(true).await?;
        }
        let added = watch.read()?;
        let watch = Watch::start()?;
        for _ in 0..CHANGES {
            self.wanted.ports.pop();
            self.ensure(true).await?;
        }
        // No address twice: the book of DHCP need not be asked whether it is free again.
        let each = |t: Took| Took {
            wall: t.wall / CHANGES as f64,
            cpu: t.cpu / CHANGES as f64,
        };
        Ok((each(added), each(watch.read()?)))
    }

    async fn ensure(&self, changes: bool) -> Outcome<()> {
        let seen = self.lab.ensure(&self.wanted).await?;
        if seen.changed.is_empty() == changes {
            return Err(Fault::new(format!("it changed {:?}", seen.changed)));
        }
        Ok(())
    }
}

async fn at(ground: &Ground, ports: usize, names: &[String; 9]) -> Outcome<Vec<Row>> {
    let mut ours = Ours::make(ground, ports, Dispatch::Iptables).await?;
    let mut nft = Ours::make(ground, ports, Dispatch::Nft)
        .await
        .during("dispatch nft")?;
    let [rule, neutron] = [
        Peer::make("rule", ports).await?,
        Peer::make("neutron", ports).await?,
    ];
    let [
        mut add,
        mut add_nft,
        mut gone,
        mut same,
        mut by_rule,
        mut by_neutron,
    ] = [const { Times(Vec::new()) }; 6];
    for round in 0..ground.rounds() {
        let (added, removed) = ours.change().await?;
        add.0.push(added);
        gone.0.push(removed);
        by_rule.0.push(rule.by_rule(ports + round)?);
        add_nft.0.push(nft.change().await.during("dispatch nft")?.0);
        by_neutron.0.push(neutron.save_and_restore(ports + round)?);
        let watch = Watch::start()?;
        ours.ensure(false).await?;
        same.0.push(watch.read()?);
    }
    let [a, b, c, d, e, f, g, h, i] = names;
    let goal = |row: Row| if ports == 1_000 { row.goal("<= 50") } else { row };
    let by_calls = "a chain, 21 rules and 3 jumps, a call each";
    let saved = "iptables-save, compare, iptables-restore -n";
    Ok(vec![
        goal(Row::new(a, "ms", add.wall()).against(by_calls, by_rule.wall())),
        Row::new(b, "ms", add.cpu()).against(by_calls, by_rule.cpu()),
        goal(Row::new(c, "ms", add.wall()).against(saved, by_neutron.wall())),
        Row::new(d, "ms", add.cpu()).against(saved, by_neutron.cpu()),
        goal(Row::new(e, "ms", add_nft.wall()).against("the same by iptables", add.wall())),
        Row::new(f, "ms", add_nft.cpu()).against("the same by iptables", add.cpu()),
        goal(Row::new(g, "ms", gone.wall())).noted("flows are looked through for those that must end"),
        Row::new(h, "ms", same.wall()),
        Row::new(i, "ms", vec![ours.made.wall])
            .against(
                format!("{} rules", ports * (PEER_RULES + 3)),
                vec![rule.loaded.wall],
            )
            .noted(format!(
                "once; ours with guard, DHCP and DNS, read back; dispatch nft {:.0} ms",
                nft.made.wall
            )),
    ])
}

async fn growing(ground: &Ground, name: &str) -> Outcome<Row> {
    let mut large = Ours::make(ground, 1_000, Dispatch::Iptables).await?;
    let mut small = Ours::make(ground, FEW_PORTS, Dispatch::Iptables).await?;
    let (mut ours, mut peer) = (Times::default(), Times::default());
    for _ in 0..ground.rounds() {
        ours.0.push(large.change().await?.0);
        peer.0.push(small.change().await?.0);
    }
    Ok(Row::new(name, "ms", ours.wall())
        .against(format!("the same with {FEW_PORTS} ports"), peer.wall())
        .goal("<= 1.3x"))
}

/// A namespace with the rules of so many VMs, as one would type them.
struct Peer {
    space: Space,
    loaded: Took,
}

impl Peer {
    async fn make(what: &str, vms: usize) -> Outcome<Self> {
        let space = Space::make(&format!("{what}-{vms}")).await?;
        let mut script = String::from("*filter\n:FORWARD ACCEPT [0:0]\n");
        for vm in 0..vms {
            for line in lines_of(vm) {
                // A String never refuses to be written to.
                let _infallible = writeln!(script, "{line}");
            }
        }
        script += "COMMIT\n";
        let watch = Watch::start()?;
        space.run("iptables-restore", &["-n"], &script)?;
        let loaded = watch.read()?;
        Ok(Self { space, loaded })
    }

    /// A call for each line.
    fn by_rule(&self, vm: usize) -> Outcome<Took> {
        let watch = Watch::start()?;
        for line in lines_of(vm) {
            let line = line.replace(" - [0:0]", "").replace(':', "-N ");
            let words: Vec<&str> = line.split(' ').collect();
            self.space.run("iptables", &words, "")?;
        }
        watch.read()
    }

    /// Reads all, finds out what is missing, writes that.
    fn save_and_restore(&self, vm: usize) -> Outcome<Took> {
        let watch = Watch::start()?;
        let text = self.space.run("iptables-save", &["-t", "filter"], "")?;
        let stands: BTreeSet<&str> = text.lines().collect();
        let missing: Vec<String> = (0..=vm)
            .flat_map(lines_of)
            .filter(|line| !stands.contains(line.as_str()))
            .collect();
        if missing.is_empty() || missing.len() > 2 * (PEER_RULES + 4) * (vm + 1) {
            return Err(Fault::new("nothing was missing"));
        }
        let fresh: Vec<String> = lines_of(vm);
        let script = format!("*filter\n{}\nCOMMIT\n", fresh.join("\n"));
        self.space.run("iptables-restore", &["-n"], &script)?;
        watch.read()
    }
}

/// What stands for one VM: in the form of `iptables-save`, chain first.
fn lines_of(vm: usize) -> Vec<String> {
    let (chain, tap) = (format!("vm{vm:05}"), format!("tap{vm:05}"));
    let address = std::net::Ipv4Addr::from(0x0a09_0100 + u32::try_from(vm).unwrap_or(0));
    let mut lines = vec![format!(":{chain} - [0:0]")];
    lines.push(format!(
        "-A {chain} -m state --state RELATED,ESTABLISHED -j RETURN"
    ));
    for port in 0..PEER_RULES - 2 {
        lines.push(format!(
            "-A {chain} -p tcp -m tcp --dport {} -j RETURN",
            8_000 + port
        ));
    }
    lines.push(format!("-A {chain} -j DROP"));
    lines.push(format!(
        "-A FORWARD -m physdev --physdev-out {tap} --physdev-is-bridged -j {chain}"
    ));
    lines.push(format!("-A FORWARD -s {address}/32 -j ACCEPT"));
    lines.push(format!("-A FORWARD -d {address}/32 -j {chain}"));
    lines
}
