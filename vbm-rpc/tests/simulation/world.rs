//! The workers, the callers and the hand that makes the trouble.

use crate::{
    Outcome,
    common::dice::Dice,
    flows::{self, Books},
    ledger::{Call, Counts, End, Excuses, Ledger, Run, Verb, is_refused},
    plan::{Plan, SPAN, Trouble},
};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use vbm_core::{Error, ErrorKind, NodePath};
use vbm_rpc::{Bus, CallOptions, Context, Member, Method, Route, Router, Service, limits, memory::MemoryBus};

pub(crate) const WORKERS: [&str; 4] = ["eu/r1/n1", "eu/r1/n2", "eu/r2/n3", "us/n4"];
const CALLERS: [&str; 3] = ["c/c1", "c/c2", "eu/r1/c3"];
/// The longest pause between two calls of one caller.
const GAP_MAX: Duration = Duration::from_millis(300);
/// Longer than a seed takes: a cast that the bus took must run in the end.
const CAST_DEADLINE: Duration = Duration::from_secs(300);
/// Nothing may hang for longer than this, in simulated time.
const PATIENCE: Duration = Duration::from_secs(600);
/// After the last trouble: presence runs out, dead members' work is taken over.
const SETTLE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Work {
    pub(crate) key: u64,
    pub(crate) slow_ms: u64,
}

pub(crate) struct Put;
impl Method for Put {
    const NAME: &'static str = "simulation.put";
    type Request = Work;
    type Reply = u64;
}

pub(crate) type Shared = Arc<Mutex<Ledger>>;

pub(crate) fn path(text: &str) -> NodePath {
    text.parse().unwrap()
}

pub(crate) fn service() -> Service {
    Service::new("worker").unwrap()
}

fn router(at: &'static str, boot: &str, ledger: &Shared) -> Router {
    let (boot, ledger) = (boot.to_owned(), ledger.clone());
    Router::new().method::<Put, _, _>(move |context: Context, work: Work| {
        let run = Run {
            // The trace names the call: two calls with one key and one content differ in it alone.
            call: context.traceparent.as_deref().unwrap().parse().unwrap(),
            key: work.key,
            at,
            boot: boot.clone(),
            when: Instant::now(),
        };
        ledger.lock().unwrap().run(run);
        async move {
            sleep(Duration::from_millis(work.slow_ms)).await;
            match is_refused(work.key) {
                true => Err(Error::new(
                    ErrorKind::Conflict,
                    "no",
                    "such a key",
                    "take another",
                )),
                false => Ok(work.key),
            }
        }
    })
}

struct World {
    hub: MemoryBus,
    ledger: Shared,
    /// Of streams and tickets, where there are any.
    book: Option<Books>,
    workers: Vec<Option<Bus>>,
    callers: Arc<Mutex<Vec<Bus>>>,
    lives: u64,
}

impl World {
    async fn worker(&mut self, which: usize) {
        if self.workers[which].is_some() {
            return;
        }
        self.lives += 1;
        let (at, boot) = (WORKERS[which], format!("w{}", self.lives));
        let member = Member::new(path(at), boot.clone()).service(service());
        let mut router = router(at, &boot, &self.ledger);
        if let Some(book) = &self.book {
            router = router.merge(flows::router(book));
        }
        let bus = Bus::attach(self.hub.clone(), member, router).await;
        self.hub.note(&format!("STARTED: {at} as {boot}"));
        self.workers[which] = Some(bus.unwrap());
    }

    async fn caller(&mut self, which: usize) -> Bus {
        self.lives += 1;
        let member = Member::new(path(CALLERS[which]), format!("c{}", self.lives));
        Bus::attach(self.hub.clone(), member, Router::new())
            .await
            .unwrap()
    }

    async fn make(&mut self, trouble: Trouble) {
        match trouble {
            Trouble::Partition(from, to) => self.hub.partition(&from, &to),
            Trouble::Heal => self.hub.heal(),
            Trouble::Pause(who) => self.hub.pause(&who),
            Trouble::Resume(who) => self.hub.resume(&who),
            Trouble::Outage => self.hub.outage(),
            Trouble::Restore => self.hub.restore(),
            Trouble::LoseMemory => self.hub.lose_memory(),
            Trouble::KillWorker(which) => {
                if let Some(bus) = self.workers[which].take() {
                    bus.kill().await;
                }
            }
            Trouble::StopWorker(which) => {
                if let Some(bus) = self.workers[which].take() {
                    self.hub.note(&format!("STOPPED: {}", WORKERS[which]));
                    bus.shutdown().await;
                }
            }
            Trouble::StartWorker(which) => self.worker(which).await,
            Trouble::KillCaller(which) => {
                let old = self.callers.lock().unwrap()[which].clone();
                old.kill().await;
                let new = self.caller(which).await;
                self.callers.lock().unwrap()[which] = new;
            }
        }
    }
}

/// One caller: calls until the span is over, never waiting for one before it makes the next.
async fn load(which: usize, seed: u64, callers: Arc<Mutex<Vec<Bus>>>, ledger: Shared) {
    let (mut dice, end) = (Dice::new(seed, 10 + which as u64), Instant::now() + SPAN);
    let mut flying = JoinSet::new();
    let mut key = which as u64 * 1_000_000;
    while Instant::now() < end {
        sleep(dice.span(Duration::ZERO, GAP_MAX)).await;
        // Now and then many at once.
        let burst = if dice.one_in(20) { 10 } else { 1 };
        for _ in 0..burst {
            key += 1;
            let bus = callers.lock().unwrap()[which].clone();
            flying.spawn(one(bus, ledger.clone(), dice.clone(), key));
            dice.roll();
        }
    }
    while let Some(ended) = flying.join_next().await {
        ended.unwrap();
    }
}

async fn one(bus: Bus, ledger: Shared, mut dice: Dice, key: u64) {
    let slow_ms = if dice.one_in(4) { dice.below(3_000) } else { 0 };
    let work = Work { key, slow_ms };
    let deadline = dice.span(Duration::from_millis(50), Duration::from_secs(15));
    let node = (!dice.one_in(3)).then(|| dice.pick(&WORKERS));
    let scope = path(dice.pick(&["/", "eu", "eu/r1", "us"]));
    let route = match node {
        Some(node) => Route::node(path(node)),
        None => Route::any(scope.clone(), service()),
    };
    match dice.below(10) {
        0 => {
            let verb = Verb::Cast;
            let (n, options) = issue(&ledger, verb, node, key, CAST_DEADLINE);
            let cast = bus.cast::<Put>(&route, &work, options);
            let end = cast.await.map_or_else(End::from, |()| End::Done(key));
            ledger.lock().unwrap().end(n, end);
        }
        1 => broadcast(&bus, &ledger, &Route::all(scope, service()), work, deadline).await,
        2 => {
            let (n, options) = issue(&ledger, Verb::Dropped, node, key, deadline);
            let patience = dice.span(Duration::ZERO, deadline);
            let call = timeout(patience, bus.call::<Put>(&route, &work, options)).await;
            let end = call.map_or(End::Dropped, |ended| ended.map_or_else(End::from, End::Done));
            ledger.lock().unwrap().end(n, end);
        }
        _ => {
            // Some are tried again with the same key, as the advice of their fate allows.
            for _ in 0..=dice.below(3) {
                let (n, options) = issue(&ledger, Verb::Call, node, key, deadline);
                let ended = bus.call::<Put>(&route, &work, options).await;
                let again = ended.as_ref().is_err_and(vbm_rpc::Fate::is_retryable);
                let end = ended.map_or_else(End::from, End::Done);
                ledger.lock().unwrap().end(n, end);
                if !again {
                    break;
                }
            }
        }
    }
}

async fn broadcast(bus: &Bus, ledger: &Shared, route: &Route, work: Work, deadline: Duration) {
    let (n, options) = issue(ledger, Verb::Broadcast, None, work.key, deadline);
    let end = match bus.broadcast::<Put>(route, &work, options).await {
        Err(fate) => fate.into(),
        Ok(mut replies) => {
            let (silent, mut answered, mut end) = (replies.silent(), Vec::new(), End::Lost);
            while let Some((from, answer)) = replies.next().await {
                answered.push(from);
                match answer {
                    Ok(key) => end = End::Done(key),
                    Err(fate) if end == End::Lost => end = fate.into(),
                    Err(_fate) => {}
                }
            }
            let mut all = [replies.silent(), answered].concat();
            all.sort();
            if all != silent {
                let text = format!("broadcast {n} went to {silent:?}, and answered or silent are {all:?}");
                ledger.lock().unwrap().wrong.push(text);
            }
            end
        }
    };
    ledger.lock().unwrap().end(n, end);
}

pub(crate) fn issue(
    ledger: &Shared,
    verb: Verb,
    node: Option<&'static str>,
    key: u64,
    deadline: Duration,
) -> (usize, CallOptions) {
    let call = Call {
        verb,
        node,
        key,
        issued: Instant::now(),
        deadline,
        ends: Vec::new(),
    };
    let n = ledger.lock().unwrap().issue(call);
    let options = CallOptions::default()
        .deadline(deadline)
        .idempotency_key(format!("k{key}"))
        .traceparent(n.to_string());
    (n, options)
}

/// When nothing is wrong any more, everything works: each node, any, all.
async fn prove_it_works(world: &World, ledger: &Shared) -> Vec<String> {
    let mut wrong = Vec::new();
    let callers = world.callers.lock().unwrap().clone();
    for (c, bus) in callers.into_iter().enumerate() {
        let nodes = WORKERS.iter().map(|node| (Some(*node), Route::node(path(node))));
        let any = ["/", "eu", "us"].map(|scope| (None, Route::any(path(scope), service())));
        for (i, (node, route)) in nodes.chain(any).enumerate() {
            let key = 19 * (10_000_000 + c as u64 * 100 + i as u64);
            let (n, options) = issue(ledger, Verb::Call, node, key, Duration::from_secs(1));
            let ended = bus.call::<Put>(&route, &Work { key, slow_ms: 0 }, options).await;
            if ended != Ok(key) {
                wrong.push(format!("after all was healed {route} gave {ended:?}"));
            }
            ledger
                .lock()
                .unwrap()
                .end(n, ended.map_or_else(End::from, End::Done));
        }
        let work = Work {
            key: 19 * (20_000_000 + c as u64),
            slow_ms: 0,
        };
        let all = Route::all(NodePath::root(), service());
        let (n, options) = issue(ledger, Verb::Broadcast, None, work.key, Duration::from_secs(1));
        let replies = bus.broadcast::<Put>(&all, &work, options).await;
        let good = match replies {
            Ok(replies) => {
                replies
                    .filter(|(_, answer)| std::future::ready(answer.is_ok()))
                    .count()
                    .await
            }
            Err(_fate) => 0,
        };
        if good != WORKERS.len() {
            wrong.push(format!(
                "after all was healed {good} of {} answered a broadcast",
                WORKERS.len()
            ));
        }
        ledger.lock().unwrap().end(n, End::Done(work.key));
    }
    wrong
}

/// `with_flows`: streams and tickets too.
pub(crate) async fn run(seed: u64, with_flows: bool) -> Outcome {
    let plan = Plan::of(seed, &WORKERS, &CALLERS);
    let ledger = Shared::default();
    let mut world = World {
        hub: MemoryBus::new(),
        ledger: ledger.clone(),
        book: with_flows.then(Books::default),
        workers: WORKERS.iter().map(|_| None).collect(),
        callers: Arc::default(),
        lives: 0,
    };
    world.hub.note(&format!("seed {seed}: {:?}", plan.dice));
    for which in 0..WORKERS.len() {
        world.worker(which).await;
    }
    for which in 0..CALLERS.len() {
        let bus = world.caller(which).await;
        world.callers.lock().unwrap().push(bus);
    }
    let watcher = match &world.book {
        Some(book) => Some((flows::watcher(&world.hub, book).await, book.clone())),
        None => None,
    };
    world.hub.set_faults(plan.dice);
    let begin = Instant::now();
    let mut loads = JoinSet::new();
    for which in 0..CALLERS.len() {
        loads.spawn(load(which, seed, world.callers.clone(), ledger.clone()));
    }
    if let Some((watcher, book)) = &watcher {
        for which in 0..CALLERS.len() {
            let books = (ledger.clone(), book.clone());
            loads.spawn(flows::load(
                which,
                seed,
                world.callers.clone(),
                watcher.clone(),
                books,
            ));
        }
    }
    let forgets = plan
        .troubles
        .iter()
        .any(|(_, trouble)| matches!(trouble, Trouble::LoseMemory));
    for (at, trouble) in plan.troubles {
        sleep_until(begin + at).await;
        world.make(trouble).await;
    }
    let mut wrong = Vec::new();
    let all = async { while loads.join_next().await.transpose().unwrap().is_some() {} };
    if timeout(PATIENCE, all).await.is_err() {
        wrong.push("a call hangs".to_owned());
    }
    world.hub.set_faults(vbm_rpc::memory::Faults::default());
    world.hub.note("all troubles are over");
    for which in 0..WORKERS.len() {
        world.worker(which).await;
    }
    sleep(SETTLE.max(limits::PRESENCE_TTL)).await;
    wrong.extend(prove_it_works(&world, &ledger).await);
    let mut buses: Vec<Bus> = std::mem::take(&mut *world.callers.lock().unwrap());
    let mut flow_counts = flows::FlowCounts::default();
    if let Some((watcher, book)) = watcher {
        wrong.extend(
            flows::close(
                &watcher,
                &buses,
                &ledger,
                &book,
                (forgets, plan.requests_are_lost),
            )
            .await,
        );
        flow_counts = book.lock().unwrap().counts.clone();
        buses.push(watcher);
    }
    for bus in buses.into_iter().chain(world.workers.into_iter().flatten()) {
        if timeout(PATIENCE, bus.shutdown()).await.is_err() {
            wrong.push("a shutdown hangs".to_owned());
        }
    }
    let ledger = ledger.lock().unwrap();
    wrong.extend(ledger.judge(Excuses {
        requests_are_lost: plan.requests_are_lost,
    }));
    Outcome {
        counts: Counts {
            troubles: plan.count,
            flows: flow_counts,
            ..ledger.counts()
        },
        wrong,
        story: world.hub.story(),
    }
}
