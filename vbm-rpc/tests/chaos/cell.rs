//! One seed: what Redis there is, three workers, two callers, and what happens to them.

use crate::{
    common::dice::Dice,
    ledger::{Counts, Known, Ledger},
    servers::Servers,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};
use std::{
    process::Stdio,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tempfile::TempDir;
use tokio::{
    fs::File,
    process::{Child, Command},
    time::{Instant, sleep, sleep_until, timeout},
};
use vbm_core::NodePath;
use vbm_rpc::{Bus, CallOptions, Member, Method, Route, Router, Service, redis::RedisTransport};

#[derive(Serialize, Deserialize)]
struct Work {
    key: String,
    slow_ms: u64,
}

struct Put;
impl Method for Put {
    const NAME: &'static str = "chaos.put";
    type Request = Work;
    type Reply = String;
}

const WORKERS: [&str; 3] = ["eu/n1", "eu/n2", "us/n3"];
const CALLERS: [&str; 2] = ["c/c1", "eu/c2"];
/// Over how long the calls are made, for few calls.
const SPAN: Duration = Duration::from_millis(4_000);
/// A call ends at the latest after this.
const DEADLINE: Duration = Duration::from_secs(10);
/// The longest that somebody is stopped, or a connection stalled.
const STOP_MAX: Duration = Duration::from_millis(2_500);
/// The longest that somebody is dead.
const DEATH_MAX: Duration = Duration::from_millis(1_000);
/// The longest that a master under Sentinel is away: longer than a failover.
const MASTER_AWAY_MAX: Duration = Duration::from_secs(6);
/// After all works again, casts that were taken have had their effect within this: dead workers' entries are taken over
/// when their presence has run out (8 s), in the next second.
const OWED_MAX: Duration = Duration::from_secs(30);
/// Calls over which a caller takes longer than the span to make them.
const CALLS_A_SECOND: u64 = 2_000;
/// Nothing takes longer than this.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Clone, Debug)]
pub(crate) enum Trouble {
    KillWorker(usize),
    StartWorker(usize),
    StopWorker(usize),
    ContinueWorker(usize),
    /// Starts again at once, with calls of its own.
    KillCaller(usize),
    StopCaller(usize),
    ContinueCaller(usize),
    KillRedis,
    /// Killed, and what was on its disk is gone.
    ForgetRedis,
    StartRedis,
    StopRedis,
    ContinueRedis,
    /// Of the master that sentinels watch.
    KillMaster,
    StopMaster,
    /// What of the set is dead or stopped goes on; the old master becomes a replica, if there is another by then.
    HealSet,
    KillSentinel,
    Cut(usize),
    Stall(usize),
    Flow(usize),
}

pub(crate) struct Outcome {
    pub(crate) seed: u64,
    pub(crate) watched: bool,
    pub(crate) counts: Counts,
    pub(crate) wrong: Vec<String>,
    pub(crate) story: Vec<String>,
    pub(crate) recovery: Duration,
}

/// Under Sentinel the master goes once, for shorter or longer than it takes to have another one, besides the troubles of
/// workers and callers.
fn plan(dice: &mut Dice, watched: bool) -> Vec<(Duration, Trouble)> {
    let mut troubles = Vec::new();
    if watched {
        let begin = dice.span(Duration::from_millis(300), SPAN / 2);
        let back = begin + dice.span(STOP_MAX / 5, MASTER_AWAY_MAX);
        let how = match dice.one_in(2) {
            true => Trouble::KillMaster,
            false => Trouble::StopMaster,
        };
        troubles.extend([(begin, how), (back, Trouble::HealSet)]);
        if dice.one_in(3) {
            troubles.push((begin, Trouble::KillSentinel));
        }
    }
    for _ in 0..3 + dice.below(5) {
        let begin = dice.span(Duration::from_millis(300), SPAN);
        let (death, stop) = (
            begin + dice.span(Duration::ZERO, DEATH_MAX),
            begin + dice.span(Duration::ZERO, STOP_MAX),
        );
        let worker = usize::try_from(dice.below(WORKERS.len() as u64)).unwrap();
        let two = usize::try_from(dice.below(2)).unwrap();
        // One server has its own, which a set has not.
        troubles.extend(match dice.below(if watched { 6 } else { 11 }) {
            0..=2 => vec![
                (begin, Trouble::KillWorker(worker)),
                (death, Trouble::StartWorker(worker)),
            ],
            3 => vec![
                (begin, Trouble::StopWorker(worker)),
                (stop, Trouble::ContinueWorker(worker)),
            ],
            4 => vec![(begin, Trouble::KillCaller(two))],
            5 => vec![
                (begin, Trouble::StopCaller(two)),
                (stop, Trouble::ContinueCaller(two)),
            ],
            6 => vec![(begin, Trouble::KillRedis), (death, Trouble::StartRedis)],
            7 => vec![(begin, Trouble::ForgetRedis), (death, Trouble::StartRedis)],
            8 => vec![(begin, Trouble::StopRedis), (stop, Trouble::ContinueRedis)],
            9 => vec![(begin, Trouble::Cut(two))],
            _ => vec![(begin, Trouble::Stall(two)), (stop, Trouble::Flow(two))],
        });
    }
    troubles.sort_by_key(|(at, _)| *at);
    troubles
}

struct Process {
    child: Child,
    boot: String,
    stopped: Option<Instant>,
}

impl Process {
    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.child.id() {
            kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
        }
    }
}

struct Cell {
    seed: u64,
    calls: u64,
    dir: TempDir,
    servers: Servers,
    watched: bool,
    workers: Vec<Option<Process>>,
    callers: Vec<Process>,
    known: Known,
    lives: u64,
    story: Vec<String>,
    begin: Instant,
}

impl Cell {
    async fn new(seed: u64, calls: u64, watched: bool, dice: &mut Dice) -> Self {
        let fsync = if dice.one_in(2) { "always" } else { "everysec" };
        let servers = match watched {
            true => Servers::watched(fsync).await,
            false => Servers::one(fsync).await,
        };
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("effects")).unwrap();
        let mut cell = Self {
            seed,
            calls,
            dir,
            servers,
            watched,
            workers: Vec::new(),
            callers: Vec::new(),
            known: Known::default(),
            lives: 0,
            story: Vec::new(),
            begin: Instant::now(),
        };
        let what = if watched {
            "a set of three under Sentinel"
        } else {
            "one Redis"
        };
        cell.tell(format!("{what}, appendfsync {fsync}"));
        for at in WORKERS {
            let worker = cell.spawn("worker", at, 0, &[]).await;
            cell.workers.push(Some(worker));
        }
        cell
    }

    fn tell(&mut self, what: String) {
        self.story
            .push(format!("{:>7.3} s  {what}", self.begin.elapsed().as_secs_f64()));
    }

    /// What the processes wrote to their standard error.
    fn errors(&self) -> String {
        let files = std::fs::read_dir(self.dir.path())
            .unwrap()
            .map(|file| file.unwrap().path());
        let errors = files.filter(|path| path.extension().is_some_and(|end| end == "err"));
        errors
            .map(|path| std::fs::read_to_string(path).unwrap())
            .collect()
    }

    async fn spawn(&mut self, role: &str, at: &str, proxy: usize, numbers: &[u64]) -> Process {
        self.lives += 1;
        let boot = format!("{}{}", &role[..1], self.lives);
        let errors = File::create(self.dir.path().join(format!("{boot}.err")))
            .await
            .unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_chaos-member"))
            .args([role, &self.servers.url(proxy)])
            .arg(self.dir.path())
            .args([at, &boot])
            .args(numbers.iter().map(u64::to_string))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors.into_std().await)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Process {
            child,
            boot,
            stopped: None,
        }
    }

    /// What the processes have written. Reading that takes a while, in which the other seeds go on.
    async fn ledger(&self) -> Ledger {
        let dir = self.dir.path().to_owned();
        let reading = tokio::task::spawn_blocking(move || Ledger::read(&dir));
        reading.await.unwrap()
    }

    async fn caller(&mut self, which: usize) -> Process {
        let calls = self.calls / CALLERS.len() as u64;
        let span = SPAN.max(Duration::from_millis(calls * 1_000 / CALLS_A_SECOND));
        let numbers = [
            self.seed ^ (self.lives << 32),
            calls,
            ms(span),
            ms(DEADLINE),
            self.watched.into(),
        ];
        self.spawn("caller", CALLERS[which], 1, &numbers).await
    }

    async fn make(&mut self, trouble: Trouble) {
        self.tell(format!("{trouble:?}"));
        let clocks_off = match trouble {
            Trouble::StopRedis | Trouble::Stall(_) => STOP_MAX,
            // Whoever asks the stopped master is told when it goes on.
            Trouble::StopMaster => MASTER_AWAY_MAX,
            _ => Duration::ZERO,
        };
        self.known.clocks_off = self.known.clocks_off.max(clocks_off);
        match trouble {
            Trouble::KillWorker(which) => {
                if let Some(mut worker) = self.workers[which].take() {
                    worker.child.kill().await.unwrap();
                    self.known.killed.insert(worker.boot);
                }
            }
            Trouble::StartWorker(which) => {
                if self.workers[which].is_none() {
                    let worker = self.spawn("worker", WORKERS[which], 0, &[]).await;
                    self.tell(format!("{} is {}", WORKERS[which], worker.boot));
                    self.workers[which] = Some(worker);
                }
            }
            Trouble::StopWorker(which) => stop(self.workers[which].as_mut()),
            Trouble::ContinueWorker(which) => go_on(self.workers[which].as_mut(), &mut self.known),
            Trouble::KillCaller(which) => {
                let new = self.caller(which).await;
                let mut old = std::mem::replace(&mut self.callers[which], new);
                old.child.kill().await.unwrap();
                self.known.killed.insert(old.boot);
            }
            Trouble::StopCaller(which) => stop(self.callers.get_mut(which)),
            Trouble::ContinueCaller(which) => go_on(self.callers.get_mut(which), &mut self.known),
            Trouble::KillRedis => self.servers.kill(false).await,
            Trouble::ForgetRedis => self.servers.kill(true).await,
            Trouble::StopRedis => self.servers.signal(Signal::SIGSTOP),
            Trouble::ContinueRedis => self.servers.signal(Signal::SIGCONT),
            Trouble::KillMaster | Trouble::StopMaster => {
                let kill = matches!(trouble, Trouble::KillMaster);
                let which = self.servers.take_master(kill).await;
                self.tell(format!("the master was {which:?}"));
            }
            Trouble::KillSentinel => self.servers.kill_sentinel(),
            Trouble::StartRedis | Trouble::HealSet => self.servers.heal().await,
            Trouble::Cut(which) => self.servers.cut(which),
            Trouble::Stall(which) => self.servers.stall(which, true),
            Trouble::Flow(which) => self.servers.stall(which, false),
        }
    }

    /// Ends every trouble.
    async fn heal(&mut self) {
        self.make(Trouble::HealSet).await;
        for which in 0..WORKERS.len() {
            self.make(Trouble::ContinueWorker(which)).await;
            self.make(Trouble::StartWorker(which)).await;
        }
        for which in 0..CALLERS.len() {
            self.make(Trouble::ContinueCaller(which)).await;
            self.make(Trouble::Flow(which)).await;
        }
    }

    /// Waits until every way works, and gives how long that took.
    async fn probe(&mut self) -> Duration {
        let begin = Instant::now();
        let transport = loop {
            match RedisTransport::connect(self.servers.config()).await {
                Ok(transport) => break transport,
                Err(error) if begin.elapsed() > PATIENCE => panic!("{error}"),
                // A failover may be under way.
                Err(_error) => sleep(Duration::from_millis(100)).await,
            }
        };
        let member = Member::new("probe/p".parse().unwrap(), "probe");
        let bus = Bus::attach(transport, member, Router::new()).await.unwrap();
        let any = Route::any(NodePath::root(), Service::new("worker").unwrap());
        let nodes = WORKERS.map(|at| Route::node(at.parse().unwrap()));
        let log = self.dir.path().join("caller-probe.log");
        let mut lines = String::new();
        for (r, route) in nodes.into_iter().chain([any]).enumerate() {
            for attempt in 0.. {
                let (key, deadline) = (format!("probe-{r}-{attempt}"), Duration::from_secs(1));
                lines += &format!("B {key} {key} {} {}\n", deadline.as_millis(), unix_ms());
                let options = CallOptions::default().deadline(deadline).traceparent(key.clone());
                let begun = Instant::now();
                let ended = bus
                    .call::<Put>(
                        &route,
                        &Work {
                            key: key.clone(),
                            slow_ms: 0,
                        },
                        options,
                    )
                    .await;
                let word = match &ended {
                    Ok(_) => "done",
                    Err(fate) if fate.is_certainly_not_started() => "expired",
                    Err(_) => "lost",
                };
                lines += &format!("E {key} {word} {}\n", begun.elapsed().as_millis());
                if ended.is_ok() || begin.elapsed() > PATIENCE {
                    break;
                }
                self.tell(format!("{route} does not work yet: {ended:?}"));
                sleep(Duration::from_millis(50)).await;
            }
        }
        std::fs::write(log, lines).unwrap();
        bus.shutdown().await;
        begin.elapsed()
    }
}

fn ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap()
}

fn unix_ms() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()
}

fn stop(process: Option<&mut Process>) {
    if let Some(process) = process {
        process.signal(Signal::SIGSTOP);
        process.stopped.get_or_insert_with(Instant::now);
    }
}

fn go_on(process: Option<&mut Process>, known: &mut Known) {
    if let Some(process) = process {
        process.signal(Signal::SIGCONT);
        if let Some(since) = process.stopped.take() {
            *known.stopped.entry(process.boot.clone()).or_default() += since.elapsed();
        }
    }
}

pub(crate) async fn run(seed: u64, calls: u64, watched: bool) -> Outcome {
    let mut dice = Dice::new(seed, 2);
    let mut cell = Cell::new(seed, calls, watched, &mut dice).await;
    let troubles = plan(&mut dice, watched);
    for which in 0..CALLERS.len() {
        let caller = cell.caller(which).await;
        cell.callers.push(caller);
    }
    cell.begin = Instant::now();
    for (at, trouble) in troubles {
        sleep_until(cell.begin + at).await;
        cell.make(trouble).await;
    }
    cell.heal().await;
    cell.tell("all troubles are over".into());
    let recovery = cell.probe().await;
    cell.tell(format!("all works after {:.1} s", recovery.as_secs_f64()));
    let (mut wrong, mut living) = (Vec::new(), Vec::new());
    for caller in &mut cell.callers {
        living.push(caller.boot.clone());
        match timeout(PATIENCE, caller.child.wait()).await {
            Ok(Ok(status)) if status.success() => {}
            other => wrong.push(format!("caller {} did not end well: {other:?}", caller.boot)),
        }
    }
    let begin = Instant::now();
    while cell.ledger().await.owed() > 0 && begin.elapsed() < OWED_MAX {
        sleep(Duration::from_millis(200)).await;
    }
    for worker in cell.workers.iter_mut().flatten() {
        worker.child.kill().await.unwrap();
    }
    let ledger = cell.ledger().await;
    for boot in living {
        if !ledger.has_ended(&boot) {
            wrong.push(format!("caller {boot} did not bring all its calls to an end"));
        }
    }
    wrong.extend(ledger.judge(&cell.known));
    if !wrong.is_empty() {
        cell.tell(format!("what the processes said: {}", cell.errors()));
    }
    Outcome {
        seed,
        watched,
        counts: ledger.counts(),
        wrong,
        story: cell.story,
        recovery,
    }
}
