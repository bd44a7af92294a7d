//! DHCP servers beside each other: CPU per exchange (DISCOVER to ACK), by perfdhcp over a veth.
//!
//! ```text
//!   the harness's namespace: bd0 10.64.0.1/16 ==== veth ==== bd1 10.64.255.1 :a namespace of its own
//!     vbm-benches serve-dhcp | dnsmasq | kea-dhcp4                 perfdhcp, which speaks as a relay
//! ```
//!
//! Each server is a process, started anew for each sample, keeps its leases on disk, and finds as many as the row says in its file when it
//! starts. What is counted is the processor time of that process while further clients get theirs, user and system.

use crate::harness::{
    child::{Talker, command, run as run_program},
    clock::SystemClock,
    duel::{duel, solo},
    fault::{During, Fault, Outcome},
    ground::{Ground, which},
    row::Row,
    rows::{Rows, say},
};
use std::{collections::BTreeMap, ffi::OsString, fs, net::Ipv4Addr, path::Path, sync::Arc, time::Duration};
use tempfile::TempDir;
use tokio::time::Instant;
use uuid::Uuid;
use vbm_core::{Clock as _, Mac, NetworkId};
use vbm_net::dhcp::{
    DhcpServer, Relays, ServerConfig, Subnet,
    book::{ClientKey, LeaseRecord},
    store::{AppendLog, LeaseStore},
};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 1);
const RELAY: Ipv4Addr = Ipv4Addr::new(10, 64, 255, 1);
const NET: &str = "10.64.0.0/16";
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 10);
const LAST: Ipv4Addr = Ipv4Addr::new(10, 64, 254, 254);
const LEASE: Duration = Duration::from_secs(24 * 3_600);
const LINK: &str = "bd0";
/// The word by which the harness starts itself as a server.
const SERVE: &str = "serve-dhcp";
const STEP_WITHIN: Duration = Duration::from_secs(20);
const LOAD_WITHIN: Duration = Duration::from_secs(400);
/// How many leases there are before; quick: those of the second.
const LEASES: [usize; 3] = [100, 1_000, 10_000];
const LEASES_QUICK: [usize; 2] = [100, 1_000];
/// The most leases, for ours alone: it should not grow.
const LEASES_MOST: usize = 60_000;
/// How many exchanges are counted, and how many a second.
const EXCHANGES: usize = 1_000;
const EXCHANGES_QUICK: usize = 500;
const RATE: usize = 250;
/// dnsmasq with 10,000 leases takes 16 ms for one.
const RATE_SLOW: usize = 40;
/// A storm: how many exchanges a second, and how many.
const STORM_RATE: usize = 2_000;
const STORM: usize = 6_000;
const STORM_QUICK: usize = 4_000;
/// The leases of a restart.
const RESTART_LEASES: u32 = 65_535;
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Ours,
    Dnsmasq,
    Kea,
}

impl Who {
    const fn program(self) -> &'static str {
        match self {
            Self::Ours => SERVE,
            Self::Dnsmasq => "dnsmasq",
            Self::Kea => "kea-dhcp4",
        }
    }
    fn is_there(self) -> bool {
        self == Self::Ours || which(self.program()).is_some()
    }
}

pub(crate) async fn run(ground: &Ground, rows: &mut Rows) {
    rows.measure(&restart_name(), "ms", restart(ground)).await;
    if which("perfdhcp").is_none() {
        let missing = Fault::new("perfdhcp is missing (Debian: kea-admin)");
        rows.put(Row::failed("CPU per DHCP lease", "us", &missing));
        return;
    }
    let sizes: &[usize] = if ground.quick { &LEASES_QUICK } else { &LEASES };
    for leases in sizes {
        let names = [Who::Kea, Who::Dnsmasq].map(|peer| name(*leases, peer));
        let planned: Vec<(&str, &'static str)> = names.iter().map(|n| (n.as_str(), "us")).collect();
        rows.measure_all(&planned, beside(ground, *leases)).await;
    }
    let growth = format!(
        "CPU per DHCP lease among {LEASES_MOST}, beside ours among {}",
        LEASES[0]
    );
    rows.measure(&growth, "us", growing(ground, &growth)).await;
    let storm = format!("DHCP exchanges lost at {STORM_RATE} a second");
    rows.measure(&storm, "%", storming(ground, &storm)).await;
}

/// Ours with few and with many leases, in turn.
async fn growing(ground: &Ground, name: &str) -> Outcome<Row> {
    ground.namespace()?;
    let wire = Wire::make().await?;
    let samples = duel(
        ground.rounds(),
        async |_| Ok(one(ground, &wire, Who::Ours, LEASES_MOST).await?.micros),
        async |_| Ok(one(ground, &wire, Who::Ours, LEASES[0]).await?.micros),
    )
    .await?;
    Ok(Row::new(name, "us", samples.ours)
        .against(format!("ours among {}", LEASES[0]), samples.peer)
        .goal("<= 1.2x"))
}

/// More than most servers can do.
async fn storming(ground: &Ground, name: &str) -> Outcome<Row> {
    ground.namespace()?;
    let wire = Wire::make().await?;
    let mut lost: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for _ in 0..3 {
        for who in [Who::Ours, Who::Kea, Who::Dnsmasq]
            .into_iter()
            .filter(|w| w.is_there())
        {
            let dir = tempfile::Builder::new().prefix("vbm-bench-").tempdir()?;
            let mut server = start(who, dir.path(), 0).await.during(who.program())?;
            let all = ground.size(STORM, STORM_QUICK);
            let done = wire.load(all, STORM_RATE, "mac=02:cc:00:00:00:00").await?;
            server.child.kill().await?;
            #[expect(clippy::cast_precision_loss, reason = "thousands")]
            let part = 1.0 - done as f64 / all as f64;
            lost.entry(who.program()).or_default().push(part.max(0.0) * 100.0);
        }
    }
    let of = |who: Who| lost.get(who.program()).cloned();
    let row = Row::new(name, "%", of(Who::Ours).unwrap_or_default());
    let row = match of(Who::Kea) {
        Some(theirs) => row.against(Who::Kea.program(), theirs),
        None => row.without(Who::Kea.program(), "it is not installed"),
    };
    let dnsmasq = of(Who::Dnsmasq).and_then(|all| all.into_iter().reduce(f64::min));
    Ok(row.goal("<= 0.1").noted(dnsmasq.map_or_else(
        || "dnsmasq is not installed".to_owned(),
        |lost| format!("dnsmasq lost {lost:.1} % at best"),
    )))
}

fn name(leases: usize, peer: Who) -> String {
    format!("CPU per DHCP lease among {leases}, beside {}", peer.program())
}

fn restart_name() -> String {
    format!("DHCP: start with {RESTART_LEASES} leases until it listens")
}

/// All three in turn, three times.
async fn beside(ground: &Ground, leases: usize) -> Outcome<Vec<Row>> {
    ground.namespace()?;
    let mut spent: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let mut lost: BTreeMap<&str, f64> = BTreeMap::new();
    let wire = Wire::make().await?;
    for _ in 0..3 {
        for who in [Who::Ours, Who::Kea, Who::Dnsmasq]
            .into_iter()
            .filter(|w| w.is_there())
        {
            let cost = one(ground, &wire, who, leases).await.during(who.program())?;
            spent.entry(who.program()).or_default().push(cost.micros);
            let worst = lost.entry(who.program()).or_default();
            *worst = worst.max(cost.lost);
        }
    }
    let of = |who: Who| spent.get(who.program()).cloned();
    let ours = of(Who::Ours).unwrap_or_default();
    let row = |peer: Who, goal: Option<&str>| {
        let row = Row::new(name(leases, peer), "us", ours.clone());
        let row = match of(peer) {
            Some(theirs) => row.against(peer.program(), theirs),
            None => row.without(peer.program(), "it is not installed"),
        };
        let row = goal.map_or_else(|| row.clone(), |goal| row.clone().goal(goal));
        let part = |who: Who| lost.get(who.program()).copied().unwrap_or_default() * 100.0;
        row.noted(format!(
            "lost at most: ours {:.1} %, {} {:.1} %; dora is not in the run: Debian has no package of it",
            part(Who::Ours),
            peer.program(),
            part(peer)
        ))
    };
    let dnsmasq = match leases {
        1_000 => Some("<= 0.1x"),
        10_000 => Some("<= 0.0125x"),
        _ => None,
    };
    Ok(vec![row(Who::Kea, Some("<= 0.5x")), row(Who::Dnsmasq, dnsmasq)])
}

struct Cost {
    micros: f64,
    /// The part of exchanges that were not completed.
    lost: f64,
}

/// What `who` spends on an exchange when it has so many leases already.
async fn one(ground: &Ground, wire: &Wire, who: Who, leases: usize) -> Outcome<Cost> {
    let dir = tempfile::Builder::new().prefix("vbm-bench-").tempdir()?;
    let mut server = start(who, dir.path(), leases).await?;
    let slow = who == Who::Dnsmasq && leases > 1_000;
    let exchanges = ground.size(EXCHANGES, EXCHANGES_QUICK);
    let exchanges = if slow { exchanges / 4 } else { exchanges };
    let before = processor_time(server.pid()?)?;
    let done = wire
        .load(
            exchanges,
            if slow { RATE_SLOW } else { RATE },
            "mac=02:bb:00:00:00:00",
        )
        .await?;
    let after = processor_time(server.pid()?)?;
    // Its port and its file are free when it has ended, not before.
    server.child.kill().await?;
    if done == 0 {
        return Err(Fault::new("no exchange was completed"));
    }
    #[expect(clippy::cast_precision_loss, reason = "thousands")]
    let (done, all) = (done as f64, exchanges as f64);
    Ok(Cost {
        micros: (after - before) * 1e6 / done,
        lost: 1.0 - done / all,
    })
}

/// Starts a server that finds so many leases in its file.
async fn start(who: Who, dir: &Path, leases: usize) -> Outcome<Talker> {
    fill(who, dir, leases).during("its leases")?;
    let mut command = match who {
        Who::Ours => {
            let mut command = command(std::env::current_exe()?);
            command.arg(SERVE).arg(dir.join("leases"));
            command
        }
        Who::Dnsmasq => {
            let mut command = command("dnsmasq");
            command.args([
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--port=0",
                "--user=root",
            ]);
            command.args([
                "--log-facility=-",
                "--no-ping",
                "--dhcp-authoritative",
                "--pid-file=",
            ]);
            command.arg(format!("--interface={LINK}"));
            command.args(["--dhcp-lease-max=100000", "--quiet-dhcp"]);
            command.arg(format!("--dhcp-range={FIRST},{LAST},255.255.0.0,24h"));
            command.arg(format!("--dhcp-leasefile={}", dir.join("leases").display()));
            command
        }
        Who::Kea => {
            let file = dir.join("kea.json");
            fs::write(&file, kea(dir))?;
            let mut command = command("kea-dhcp4");
            command.arg("-c").arg(file).env("KEA_PIDFILE_DIR", dir);
            command.env("KEA_LOCKFILE_DIR", dir);
            command
        }
    };
    let mut server = Talker::start(&mut command)?;
    let word = match who {
        Who::Ours => "serving",
        Who::Dnsmasq => "IP range",
        Who::Kea => "DHCP4_STARTED",
    };
    server.hear(word, STEP_WITHIN).await?;
    Ok(server)
}

fn kea(dir: &Path) -> String {
    let leases = dir.join("leases.csv");
    format!(
        r#"{{"Dhcp4":{{"interfaces-config":{{"interfaces":["{LINK}"],"dhcp-socket-type":"udp"}},
"lease-database":{{"type":"memfile","persist":true,"name":"{}","lfc-interval":0}},
"valid-lifetime":86400,"authoritative":true,
"multi-threading":{{"enable-multi-threading":false}},
"subnet4":[{{"subnet":"{NET}","pools":[{{"pool":"{FIRST} - {LAST}"}}]}}],
"loggers":[{{"name":"kea-dhcp4","severity":"INFO","output_options":[{{"output":"stdout"}}]}},
{{"name":"kea-dhcp4.leases","severity":"WARN"}}]}}}}"#,
        leases.display()
    )
}

/// Writes the file of leases of a server: of other clients than those that are counted.
fn fill(who: Who, dir: &Path, leases: usize) -> Outcome<()> {
    let path = dir.join(if who == Who::Kea { "leases.csv" } else { "leases" });
    let until = SystemClock.now().plus(LEASE);
    if who == Who::Ours {
        let all: Vec<LeaseRecord> = (0..u32::try_from(leases)?).map(|n| record(n, until)).collect();
        return Ok(AppendLog::open(&path)?.commit(&all)?);
    }
    let seconds = until.micros() / 1_000_000;
    let lines = (0..u32::try_from(leases)?).map(|n| {
        let (address, mac) = (Ipv4Addr::from(u32::from(FIRST) + n), Mac::local(n));
        if who == Who::Kea {
            format!("{address},{mac},,{},{seconds},1,0,0,,0,\n", LEASE.as_secs())
        } else {
            format!("{seconds} {mac} {address} * *\n")
        }
    });
    let header = "address,hwaddr,client_id,valid_lifetime,expire,subnet_id,fqdn_fwd,fqdn_rev,hostname,state,user_context\n";
    let header = if who == Who::Kea { header } else { "" };
    Ok(fs::write(path, header.to_owned() + &lines.collect::<String>())?)
}

fn record(number: u32, until: vbm_core::Timestamp) -> LeaseRecord {
    LeaseRecord {
        address: Ipv4Addr::from(u32::from(FIRST) + number),
        client: Some(ClientKey::Mac(Mac::local(number))),
        until,
    }
}

/// Seconds of the processor that the threads of a process took.
fn processor_time(pid: u32) -> Outcome<f64> {
    let mut nanos = 0.0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end while we look.
        let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else {
            continue;
        };
        let first = text
            .split_whitespace()
            .next()
            .and_then(|word| word.parse::<f64>().ok());
        nanos += first.ok_or_else(|| Fault::new("the kernel tells no times of threads"))?;
    }
    Ok(nanos / 1e9)
}

/// The veth, and the namespace of the clients.
struct Wire(String);

impl Wire {
    async fn make() -> Outcome<Self> {
        let wire = Self(format!("bench-dhcp-{}", std::process::id()));
        let ns = &wire.0;
        for line in [
            format!("netns add {ns}"),
            format!("link add {LINK} type veth peer name bd1 netns {ns}"),
            format!("address add {SERVER}/16 dev {LINK}"),
            format!("link set {LINK} up"),
            format!("-n {ns} address add {RELAY}/16 dev bd1"),
            format!("-n {ns} link set bd1 up"),
        ] {
            run_program(command("ip").args(line.split(' ')), STEP_WITHIN).await?;
        }
        Ok(wire)
    }

    /// Runs so many exchanges, each of another client; how many were completed.
    async fn load(&self, exchanges: usize, rate: usize, base: &str) -> Outcome<usize> {
        Ok(self.answers(exchanges, rate, base).await?.1)
    }

    /// The same: how many were offered something, and how many got it. perfdhcp does not wait for the ACK of the very last one.
    async fn answers(&self, exchanges: usize, rate: usize, base: &str) -> Outcome<(usize, usize)> {
        let mut perfdhcp = command("ip");
        perfdhcp.args(["netns", "exec", &self.0, "perfdhcp", "-4", "-l", "bd1"]);
        let count = exchanges.to_string();
        perfdhcp.args(["-R", &count, "-n", &count, "-r", &rate.to_string(), "-b", base]);
        perfdhcp.args(["-W", "1000000", "-g", "single", &SERVER.to_string()]);
        perfdhcp.stdout(std::process::Stdio::piped());
        perfdhcp.stderr(std::process::Stdio::piped());
        // It ends with 3 when something was lost, which is a result here.
        let ended = tokio::time::timeout(LOAD_WITHIN, perfdhcp.output())
            .await
            .map_err(|_late| Fault::new("perfdhcp does not end"))?
            .during("perfdhcp")?;
        let text = String::from_utf8_lossy(&ended.stdout);
        let mut received = text
            .lines()
            .filter_map(|line| line.strip_prefix("received packets:"))
            .filter_map(|number| number.trim().parse().ok());
        match (received.next(), received.next()) {
            (Some(offers), Some(acks)) => Ok((offers, acks)),
            _ => Err(Fault::new(format!(
                "perfdhcp said nothing of ACKs: {}",
                String::from_utf8_lossy(&ended.stderr).trim()
            ))),
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        // The link goes with it.
        for args in [vec!["link", "delete", LINK], vec!["netns", "delete", &self.0]] {
            let done = std::process::Command::new("ip").args(&args).output();
            if !done.is_ok_and(|output| output.status.success()) {
                say(&format!("warning: `ip {}` failed", args.join(" ")));
            }
        }
    }
}

fn config(mac: Mac) -> Outcome<ServerConfig> {
    let mut link = Subnet::new(NET.parse().during("the network")?, LEASE);
    link.pool = Some(FIRST..=LAST);
    let mut config = ServerConfig::new(SERVER, mac, link);
    config.authoritative = true;
    config.relays = Relays::Only([RELAY].into());
    Ok(config)
}

/// Serves until it is killed, when the command line asks for that: ours as a process of its own.
pub(crate) fn serve_if_asked() -> Option<Outcome<()>> {
    let mut words = std::env::args_os().skip(1);
    if words.next()? != SERVE {
        return None;
    }
    Some(
        words
            .next()
            .map_or_else(|| Err(Fault::new("no file for leases")), serve),
    )
}

fn serve(log: OsString) -> Outcome<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mac = fs::read_to_string(format!("/sys/class/net/{LINK}/address"));
        // /sys may be of another namespace; the MAC matters to nobody who answers what he was asked.
        let mac = mac
            .ok()
            .and_then(|m| m.trim().parse().ok())
            .unwrap_or(Mac::local(1));
        let network = NetworkId::from_uuid(Uuid::now_v7());
        let store = AppendLog::open(log)?;
        let _server = DhcpServer::start(LINK, network, config(mac)?, store, Arc::new(SystemClock)).await?;
        say("serving");
        std::future::pending().await
    })
}

/// From the start of a server with a full log to its first answer.
async fn restart(ground: &Ground) -> Outcome<Row> {
    ground.namespace()?;
    let wire = Wire::make().await?;
    let dir = TempDir::new()?;
    let path = dir.path().join("leases");
    let mut log = AppendLog::open(&path)?;
    let until = SystemClock.now().plus(LEASE);
    // More than the pool: those outside it are read too.
    let all: Vec<LeaseRecord> = (0..RESTART_LEASES).map(|n| record(n, until)).collect();
    log.commit(&all)?;
    drop(log);
    let samples = solo(ground.rounds(), async |_| {
        let begin = Instant::now();
        let mut server = command(std::env::current_exe()?);
        let mut server = Talker::start(server.arg(SERVE).arg(&path))?;
        server.hear("serving", STEP_WITHIN).await?;
        let listening = begin.elapsed();
        // Of one who has a lease. perfdhcp takes a second to end, so the clock has stopped before.
        let (offers, _) = wire.answers(1, 1, &format!("mac={}", Mac::local(5))).await?;
        server.child.kill().await?;
        let took = listening.as_secs_f64() * 1e3;
        if offers == 1 {
            Ok(took)
        } else {
            Err(Fault::new("the first client was not answered"))
        }
    })
    .await?;
    Ok(Row::new(restart_name(), "ms", samples)
        .goal("<= 1000")
        .noted("until it listens, all leases read; the client behind that was answered"))
}
