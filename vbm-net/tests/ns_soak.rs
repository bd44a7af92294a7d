//! Thousands of random changes, breakages and kills on real hosts; after each all is as it is wanted, and at the end the host is as before.
//!
//! In CI two thousand operations, on four hosts beside each other. More, or another story:
//!
//! ```text
//! VBM_SOAK_OPS=8000 VBM_SOAK_SEED=7 cargo test -p vbm-net --test ns_soak -- --nocapture
//! ```
//!
//! After each operation a second `ensure` must change nothing, `plan` must be empty, and what stands is read by `ip`, `iptables-save`,
//! `nft`, `ipset` and `bridge` and compared with what is wanted (`soak/reading.rs`): the network that was touched and the host each time,
//! all networks now and then, and after each restart and removal.

#![allow(clippy::unwrap_used, reason = "a helper of a test that cannot go on panics")]
#![allow(clippy::print_stdout, reason = "a test tells what it did")]

mod common;
#[path = "soak/lan.rs"]
mod lan;
#[path = "soak/reading.rs"]
mod reading;
mod soak;
#[path = "soak/tools.rs"]
mod tools;

use common::Lab;
use soak::{Kill, Op, World};
use std::{
    collections::{BTreeMap, BTreeSet},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;
use vbm_core::{NetworkId, PortId};
use vbm_net::{HostNetwork, NetworkBackend, Nic, NicKind};

/// Operations in CI.
const OPS: u64 = 2_000;
/// Hosts beside each other, each with a story of its own: what one of them waits for the kernel, the others use.
const LANES: u64 = 4;
/// How often all networks are looked at, and not only the one that was changed.
const ALL_EVERY: usize = 20;
const CHILD: &str = "VBM_SOAK_CHILD";

fn number(key: &str, usual: u64) -> u64 {
    std::env::var(key).map_or(usual, |text| text.parse().expect("a number"))
}

struct Soak {
    lab: Lab,
    /// Where bridged networks are.
    _lan: common::Ns,
    world: World,
    seed: u64,
    nonce: u64,
    /// Taps that a VM holds.
    held: BTreeMap<(NetworkId, PortId), Nic>,
    killed: usize,
    harmed: usize,
    healed: usize,
    story: Vec<String>,
    /// On operations, plans, second `ensure`s and reading.
    spent: [Duration; 4],
}

impl Soak {
    async fn new(seed: u64) -> Self {
        let lab = Lab::new().await;
        let nonce = u64::from_str_radix(&common::fresh("")[..8], 16).unwrap();
        Self {
            world: World::new(seed, nonce),
            _lan: lan::join(&lab.host),
            lab,
            seed,
            nonce,
            held: BTreeMap::new(),
            killed: 0,
            harmed: 0,
            healed: 0,
            story: Vec::new(),
            spent: [Duration::ZERO; 4],
        }
    }

    fn fail(&self, what: &str) -> ! {
        let last = self.story.len().saturating_sub(25);
        panic!(
            "seed {}, operation {}: {what}\n{}",
            self.seed,
            self.story.len(),
            self.story[last..].join("\n")
        );
    }

    async fn step(&mut self, at: usize) {
        let began = Instant::now();
        let op = self.world.step();
        self.story.push(format!("{at:5} {op:?}"));
        self.held.retain(|(network, port), _| {
            self.world
                .networks
                .get(network)
                .is_some_and(|one| one.open.contains_key(port))
        });
        let touched = match &op {
            Op::Ensure(id, _, kill) => {
                if let Some(kill) = kill {
                    self.kill(at, *kill).await;
                }
                self.ensure(*id).await;
                Some(*id)
            }
            Op::Remove(id, kill) => {
                if let Some(kill) = kill {
                    self.kill(at, *kill).await;
                }
                if let Err(error) = self.lab.net.remove(*id).await {
                    self.fail(&format!("remove: {error}"));
                }
                None
            }
            Op::Open(id, port, kind) => {
                match self.lab.net.open_nic(*id, *port, *kind).await {
                    Ok(nic @ Nic::Tap { .. }) => drop(self.held.insert((*id, *port), nic)),
                    Ok(_) => {}
                    Err(error) => self.fail(&format!("open: {}", vbm_core::Error::from(error))),
                }
                Some(*id)
            }
            Op::Close(id, port) => {
                // Half of the VMs end by themselves.
                if self.held.remove(&(*id, *port)).is_none() || at.is_multiple_of(2) {
                    self.lab.net.close_nic(*id, *port).await.unwrap();
                }
                self.ensure(*id).await;
                Some(*id)
            }
            Op::Harm(id, harm) => {
                let place = if harm.at_host {
                    self.lab.host.0.clone()
                } else {
                    self.lab.inside(*id)
                };
                let done = common::in_netns(&place, &harm.command);
                self.harmed += usize::from(done.status.success());
                self.ensure_harmed(harm.at_host, *id).await;
                Some(*id)
            }
            Op::Restart => {
                self.restart().await;
                None
            }
        };
        self.spent[0] += began.elapsed();
        self.look(at, touched).await;
    }

    /// Where the host was harmed, each network may have been.
    async fn ensure_harmed(&mut self, at_host: bool, id: NetworkId) {
        let all: Vec<NetworkId> = self.world.networks.keys().copied().collect();
        for one in all.into_iter().filter(|one| at_host || *one == id) {
            let foreseen = self.lab.net.plan(self.world.networks[&one].wanted.clone()).await;
            let foreseen =
                foreseen.unwrap_or_else(|e| self.fail(&format!("plan: {}", vbm_core::Error::from(e))));
            let changed = self.ensure(one).await;
            self.healed += usize::from(!changed.is_empty());
            if foreseen.is_empty() != changed.is_empty() {
                self.fail(&format!("foreseen {foreseen:?}, changed {changed:?}"));
            }
        }
    }

    async fn ensure(&mut self, id: NetworkId) -> Vec<String> {
        match self.lab.net.ensure(self.world.networks[&id].wanted.clone()).await {
            Ok(seen) => {
                if !seen.ready || seen.ports.iter().any(|p| !p.guarded) {
                    self.fail(&format!("not ready: {seen:?}"));
                }
                seen.changed
            }
            Err(error) => self.fail(&format!("ensure: {}", vbm_core::Error::from(error))),
        }
    }

    /// A process of its own does the operation, and dies in it; then the daemon starts again.
    async fn kill(&mut self, at: usize, kill: Kill) {
        use std::os::unix::process::{CommandExt, ExitStatusExt};
        self.lab.net.shutdown().await;
        let orders = [
            self.lab.owner.clone(),
            self.lab.host.path().display().to_string(),
            self.lab.dir.path().display().to_string(),
            self.seed.to_string(),
            self.nonce.to_string(),
            at.to_string(),
            match kill {
                Kill::AtStep(step) => format!("step {step}"),
                Kill::AfterMs(ms) => format!("ms {ms}"),
            },
        ];
        let child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "child_that_is_killed",
                "--test-threads=1",
                "--nocapture",
            ])
            .env(CHILD, orders.join("|"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let group = child.id();
        let output = child.wait_with_output().unwrap();
        let status = output.status;
        if !status.success() && status.signal() != Some(9) {
            self.fail(&format!(
                "the child failed: {}",
                String::from_utf8_lossy(&output.stderr)
            ));
        }
        self.killed += usize::from(status.signal() == Some(9));
        // A program that it ran outlives it for a moment, and ends what it was told. A daemon that is started again takes longer.
        common::eventually("the end of what the killed process ran", || {
            !somebody_is_in(group)
        })
        .await;
        self.restart().await;
    }

    async fn restart(&mut self) {
        self.lab.reopen().await;
        let all: Vec<NetworkId> = self.world.networks.keys().copied().collect();
        for id in all {
            self.ensure(id).await;
        }
    }

    /// Nothing is left to do, and what stands is what is wanted.
    async fn look(&mut self, at: usize, touched: Option<NetworkId>) {
        let all = touched.is_none() || at.is_multiple_of(ALL_EVERY);
        let looked: Vec<NetworkId> = self
            .world
            .networks
            .keys()
            .copied()
            .filter(|id| all || touched == Some(*id))
            .collect();
        for id in looked {
            let began = Instant::now();
            let wanted = self.world.networks[&id].wanted.clone();
            match self.lab.net.plan(wanted).await {
                Ok(lines) if lines.is_empty() => {}
                other => self.fail(&format!("a plan is left: {other:?}")),
            }
            let planned = Instant::now();
            self.spent[1] += planned - began;
            let changed = self.ensure(id).await;
            self.spent[2] += planned.elapsed();
            if !changed.is_empty() {
                self.fail(&format!("a second ensure changed {changed:?}"));
            }
            let began = Instant::now();
            let wrong = reading::network(&self.lab, &self.world.networks[&id]);
            self.spent[3] += began.elapsed();
            if !wrong.is_empty() {
                self.fail(&wrong.join("\n"));
            }
        }
        let began = Instant::now();
        let wrong = reading::host(&self.lab, &self.world);
        self.spent[3] += began.elapsed();
        if !wrong.is_empty() {
            self.fail(&wrong.join("\n"));
        }
    }

    /// All is taken away, half of it by a sweep.
    async fn end(mut self, clean: &str) {
        self.held.clear();
        let all: Vec<NetworkId> = self.world.networks.keys().copied().collect();
        if let Some(first) = all.first() {
            self.lab.net.remove(*first).await.unwrap();
        }
        self.lab.net.sweep(&BTreeSet::new()).await.unwrap();
        assert_eq!(common::footprint(&self.lab.host, &self.world.ids), clean);
        assert!(reading::is_empty(&self.lab.host), "a link is left on the host");
    }
}

/// Whether a process of a group lives; one that nobody has waited for does not.
fn somebody_is_in(group: u32) -> bool {
    let group = group.to_string();
    let entries = std::fs::read_dir("/proc").unwrap();
    let stats = entries.filter_map(|e| std::fs::read_to_string(e.ok()?.path().join("stat")).ok());
    // The name is in brackets, and may hold blanks; then come state, parent and group.
    stats
        .filter_map(|text| text.rsplit_once(") ").map(|(_, rest)| rest.to_owned()))
        .any(|rest| {
            let mut words = rest.split(' ');
            let state = words.next();
            !matches!(state, Some("Z" | "X")) && words.nth(1) == Some(&group)
        })
}

/// One lane; answers what was done.
async fn lane(seed: u64, ops: usize) -> String {
    let mut soak = Soak::new(seed).await;
    let clean = common::footprint(&soak.lab.host, &[]);
    let began = Instant::now();
    for at in 0..ops {
        soak.step(at).await;
    }
    let [done, plans, seconds, reading] = soak.spent.map(|d| d.as_secs());
    let told = format!(
        "seed {seed}: {ops} operations in {} s (done {done}, planned {plans}, ensured again {seconds}, read {reading}): \
         {} kills, {} breakages, {} networks healed, {} networks made",
        began.elapsed().as_secs(),
        soak.killed,
        soak.harmed,
        soak.healed,
        soak.world.ids.len()
    );
    soak.end(&clean).await;
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn after_each_of_many_random_operations_all_is_as_wanted_and_at_the_end_the_host_is_as_before() {
    needs_namespaces!();
    let all = usize::try_from(number("VBM_SOAK_OPS", OPS)).unwrap();
    let lanes = number("VBM_SOAK_LANES", LANES);
    let first = number("VBM_SOAK_SEED", 1);
    let each = all / usize::try_from(lanes).unwrap();
    let lanes: Vec<_> = (first..first + lanes)
        .map(|seed| tokio::spawn(lane(seed, each)))
        .collect();
    // All of them end before one that failed ends the test, and takes their backends away.
    for ended in futures::future::join_all(lanes).await {
        match ended {
            Ok(told) => println!("{told}"),
            Err(failed) => std::panic::resume_unwind(failed.into_panic()),
        }
    }
}

/// Not a test of its own: the process that dies. It is this program, run with an environment that says where and when.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_that_is_killed() {
    let Ok(orders) = std::env::var(CHILD) else { return };
    let words: Vec<&str> = orders.split('|').collect();
    let [owner, host, dir, seed, nonce, at, kill] = words[..] else {
        panic!("{orders}")
    };
    let mut world = World::new(seed.parse().unwrap(), nonce.parse().unwrap());
    let mut op = world.step();
    for _ in 0..at.parse::<usize>().unwrap() {
        op = world.step();
    }
    let mut config = vbm_net::HostConfig::new(owner, dir, Arc::new(common::SystemClock)).in_namespace(host);
    let dies = || nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL).unwrap();
    let (how, when) = kill.split_once(' ').unwrap();
    let when: usize = when.parse().unwrap();
    if how == "step" {
        let count = AtomicUsize::new(0);
        config.on_step = Some(Arc::new(move |_: &str| {
            if count.fetch_add(1, Ordering::SeqCst) == when {
                dies();
            }
        }));
    }
    let net = HostNetwork::open(config).await.unwrap();
    if how == "ms" {
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(when as u64)).await;
            dies();
        });
    }
    match op {
        Op::Ensure(id, ..) => net
            .ensure(world.networks[&id].wanted.clone())
            .await
            .map(drop)
            .unwrap(),
        Op::Remove(id, _) => net.remove(id).await.unwrap(),
        other => panic!("nobody dies of {other:?}"),
    }
}

/// NICs of both kinds are in the stories.
#[test]
fn a_seed_makes_the_same_story_twice_and_the_stories_have_all_that_can_happen() {
    let story = |nonce| {
        let mut world = World::new(3, nonce);
        (0..4_000).map(|_| world.step()).collect::<Vec<_>>()
    };
    let told = story(1);
    assert_eq!(told, story(1));
    let has = |what: fn(&Op) -> bool| told.iter().filter(|op| what(op)).count() > 10;
    assert!(has(|op| matches!(op, Op::Ensure(_, _, Some(Kill::AtStep(_))))));
    assert!(has(|op| matches!(op, Op::Ensure(_, _, Some(Kill::AfterMs(_))))));
    assert!(has(|op| matches!(op, Op::Remove(_, _))));
    assert!(has(|op| matches!(op, Op::Open(_, _, NicKind::Interface))));
    assert!(has(|op| matches!(op, Op::Harm(_, harm) if harm.at_host)));
    assert!(has(|op| matches!(op, Op::Harm(_, harm) if harm.kills.is_some())));
    assert!(has(|op| matches!(op, Op::Restart)));
    let broken = |word: &str| {
        let of = |op: &&Op| matches!(op, Op::Harm(_, harm) if harm.command.contains(word));
        told.iter().filter(of).count() > 3
    };
    for word in ["vx0", "lan0", "vbl", "vbu", "tap"] {
        assert!(broken(word), "{word}");
    }
    let changed = |word: &str| {
        let of = |op: &&Op| matches!(op, Op::Ensure(_, what, _) if what.contains(word));
        told.iter().filter(of).count() > 3
    };
    for word in [
        "LAN of br-lan",
        "LAN of eth2",
        "our own DHCP",
        "remote ports",
        "floating IP",
        "forward of",
    ] {
        assert!(changed(word), "{word}");
    }
}
