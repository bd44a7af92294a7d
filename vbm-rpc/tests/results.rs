//! Recorded answers and tickets on the real server: what is delivered again, what survives, what is left behind, and the
//! window that is open.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, which clippy does not see as tests"
)]

mod common;

use common::{
    RedisServer, left_out,
    words::{PATIENCE, path, until, within, worker},
};
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::time::sleep;
use vbm_rpc::{
    Bus, Context, Fate, Member, Method, Route, Router, SubmitOptions, Ticket, TicketOutcome, TicketState,
    redis::RedisTransport,
};

const BRIEF: Duration = Duration::from_millis(300);

/// A number and how long to take.
type Work = (u64, u64);

struct Recorded;
impl Method for Recorded {
    const NAME: &'static str = "test.recorded";
    const RECORDED: bool = true;
    type Request = Work;
    type Reply = u64;
}
struct Plain;
impl Method for Plain {
    const NAME: &'static str = "test.plain";
    type Request = Work;
    type Reply = u64;
}
struct Told;
impl Method for Told {
    const NAME: &'static str = "test.told";
    const FENCED: bool = false;
    type Request = TicketOutcome;
    type Reply = ();
}

/// How often each number had its effect, which comes before the wait.
#[derive(Clone, Default)]
struct Effects(Arc<std::sync::Mutex<HashMap<u64, usize>>>);

impl Effects {
    fn of(&self, n: u64) -> usize {
        self.0.lock().unwrap().get(&n).copied().unwrap_or(0)
    }

    async fn work(self, (n, wait_ms): Work) -> Result<u64, vbm_core::Error> {
        *self.0.lock().unwrap().entry(n).or_default() += 1;
        sleep(Duration::from_millis(wait_ms)).await;
        Ok(n * 2)
    }

    fn router(&self) -> Router {
        let (recorded, plain) = (self.clone(), self.clone());
        Router::new()
            .method::<Recorded, _, _>(move |_context: Context, work| recorded.clone().work(work))
            .method::<Plain, _, _>(move |_context: Context, work| plain.clone().work(work))
    }
}

/// A run of a path: each has a boot id of its own.
async fn attach(transport: &RedisTransport, at: &str, router: Router) -> Bus {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    let boot = format!("boot-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let member = Member::new(path(at), boot).service(worker());
    Bus::attach(transport.clone(), member, router).await.unwrap()
}

/// An entry of a stream: its id, its fields.
type RawEntry = (String, Vec<(String, Vec<u8>)>);

/// The packed frames of every entry of a stream, by id.
async fn entries(server: &RedisServer, key: &str) -> Vec<(String, Vec<u8>)> {
    let list: Vec<RawEntry> = redis::cmd("XRANGE")
        .arg(key)
        .arg("-")
        .arg("+")
        .query_async(&mut server.raw().await)
        .await
        .unwrap();
    let frames = |fields: Vec<(String, Vec<u8>)>| fields.into_iter().find(|(name, _)| name == "f").unwrap().1;
    list.into_iter()
        .map(|(id, fields)| (id, frames(fields)))
        .collect()
}

async fn add_entry(server: &RedisServer, key: &str, frames: &[u8]) {
    let mut add = redis::cmd("XADD");
    add.arg(key).arg("*").arg("f").arg(frames);
    let _id: String = add.query_async(&mut server.raw().await).await.unwrap();
}

const QUEUE: &str = "vbm:v1:{eu}:n:eu/n1";

/// Sends one request, and keeps what the transport wrote for it while it ran.
async fn run_and_copy<M: Method<Request = Work, Reply = u64>>(
    server: &RedisServer,
    bus: &Bus,
    effects: &Effects,
    n: u64,
) -> Vec<u8> {
    let call = tokio::spawn(bus.call::<M>(&Route::node(path("eu/n1")), &(n, 300), within(PATIENCE)));
    until("it is running", async || effects.of(n) == 1).await;
    let copy = entries(server, QUEUE).await.pop().unwrap().1;
    assert_eq!(call.await.unwrap(), Ok(n * 2));
    until("it is completed", async || {
        entries(server, QUEUE).await.is_empty()
    })
    .await;
    copy
}

/// What Redis delivers again after the answer was recorded is not run again by the next process. Without a record it is:
/// that is what recording is for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recorded_request_that_is_delivered_again_is_not_run_again() {
    if left_out() {
        return;
    }
    let server = RedisServer::start().await;
    let transport = server.transport().await;
    let effects = Effects::default();
    let (n1, bus) = (
        attach(&transport, "eu/n1", effects.router()).await,
        attach(&transport, "c1", Router::new()).await,
    );
    let recorded = run_and_copy::<Recorded>(&server, &bus, &effects, 1).await;
    let plain = run_and_copy::<Plain>(&server, &bus, &effects, 2).await;
    n1.kill().await;
    // As a server does that has lost its newest deletes.
    add_entry(&server, QUEUE, &recorded).await;
    add_entry(&server, QUEUE, &plain).await;
    let n1 = attach(&transport, "eu/n1", effects.router()).await;
    until("both are completed", async || {
        entries(&server, QUEUE).await.is_empty()
    })
    .await;
    assert_eq!((effects.of(1), effects.of(2)), (1, 2));
    bus.shutdown().await;
    n1.shutdown().await;
}

/// A caller that sends again (attempt 2) finds the record at once; a request that is certainly new is not looked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_sent_again_is_looked_for_and_a_new_one_is_not() {
    if left_out() {
        return;
    }
    let server = RedisServer::start().await;
    let transport = server.transport().await;
    let effects = Effects::default();
    let (n1, bus) = (
        attach(&transport, "eu/n1", effects.router()).await,
        attach(&transport, "c1", Router::new()).await,
    );
    let mut copy = run_and_copy::<Recorded>(&server, &bus, &effects, 1).await;
    n1.kill().await;
    let n1 = attach(&transport, "eu/n1", effects.router()).await;
    let route = Route::node(path("eu/n1"));
    assert_eq!(
        bus.call::<Recorded>(&route, &(7, 0), within(PATIENCE)).await,
        Ok(14)
    );
    let looked = calls_of(&server, "hmget").await;
    assert_eq!(
        bus.call::<Recorded>(&route, &(8, 0), within(PATIENCE)).await,
        Ok(16)
    );
    assert_eq!(calls_of(&server, "hmget").await, looked, "it is certainly new");
    // Behind the length of the frame (4 bytes), the attempt stands at byte 6.
    copy[4 + 6..4 + 8].copy_from_slice(&2u16.to_be_bytes());
    add_entry(&server, QUEUE, &copy).await;
    until("it is completed", async || {
        entries(&server, QUEUE).await.is_empty()
    })
    .await;
    assert_eq!(effects.of(1), 1);
    assert!(calls_of(&server, "hmget").await > looked);
    bus.shutdown().await;
    n1.shutdown().await;
}

/// Requests that were packed together and of which one is done when the worker dies: the next process runs the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_half_done_entry_only_the_rest_is_run_again() {
    if left_out() {
        return;
    }
    let server = RedisServer::start().await;
    let transport = server.transport().await;
    let effects = Effects::default();
    let (n1, bus) = (
        attach(&transport, "eu/n1", effects.router()).await,
        attach(&transport, "c1", Router::new()).await,
    );
    // A worker that is dead and not known to be: requests wait in the queue.
    n1.kill().await;
    let route = Route::node(path("eu/n1"));
    let done = tokio::spawn(bus.call::<Recorded>(&route, &(1, 0), within(PATIENCE)));
    until("it waits", async || entries(&server, QUEUE).await.len() == 1).await;
    let rest = tokio::spawn(bus.call::<Recorded>(&route, &(2, 1_000), within(PATIENCE)));
    until("both wait", async || entries(&server, QUEUE).await.len() == 2).await;
    let mut raw = server.raw().await;
    let mut packed = Vec::new();
    for (id, frames) in entries(&server, QUEUE).await {
        packed.extend(frames);
        let _gone: usize = redis::cmd("XDEL")
            .arg(QUEUE)
            .arg(id)
            .query_async(&mut raw)
            .await
            .unwrap();
    }
    add_entry(&server, QUEUE, &packed).await;
    let n1 = attach(&transport, "eu/n1", effects.router()).await;
    assert_eq!(done.await.unwrap(), Ok(2));
    until("the other is running", async || effects.of(2) == 1).await;
    n1.kill().await;
    let n1 = attach(&transport, "eu/n1", effects.router()).await;
    assert_eq!(rest.await.unwrap(), Ok(4));
    assert_eq!((effects.of(1), effects.of(2)), (1, 2));
    until("the entry is completed", async || {
        entries(&server, QUEUE).await.is_empty()
    })
    .await;
    bus.shutdown().await;
    n1.shutdown().await;
}

/// The window that is open: a process that dies between effect and record lets the request run again, with a key too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_killed_between_effect_and_record_has_the_effect_again() {
    if left_out() {
        return;
    }
    let server = RedisServer::start().await;
    let transport = server.transport().await;
    let effects = Effects::default();
    let (n1, bus) = (
        attach(&transport, "eu/n1", effects.router()).await,
        attach(&transport, "c1", Router::new()).await,
    );
    let options = within(PATIENCE).idempotency_key("k");
    let call = tokio::spawn(bus.call::<Recorded>(&Route::node(path("eu/n1")), &(1, 300), options));
    until("it is running", async || effects.of(1) == 1).await;
    n1.kill().await;
    let n1 = attach(&transport, "eu/n1", effects.router()).await;
    assert_eq!(call.await.unwrap(), Ok(2));
    assert_eq!(effects.of(1), 2);
    bus.shutdown().await;
    n1.shutdown().await;
}

/// How often the server ran a command.
async fn calls_of(server: &RedisServer, command: &str) -> u64 {
    let info: String = redis::cmd("INFO")
        .arg("commandstats")
        .query_async(&mut server.raw().await)
        .await
        .unwrap();
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
}

/// A plain call costs nothing of this: no command of the store runs for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_call_touches_no_store() {
    if left_out() {
        return;
    }
    let server = RedisServer::start().await;
    let transport = server.transport().await;
    let effects = Effects::default();
    let (n1, bus) = (
        attach(&transport, "eu/n1", effects.router()).await,
        attach(&transport, "c1", Router::new()).await,
    );
    let route = Route::node(path("eu/n1"));
    for n in 0..50 {
        assert_eq!(
            bus.call::<Plain>(&route, &(n, 0), within(PATIENCE)).await,
            Ok(n * 2)
        );
    }
    for command in ["hset", "hmget", "hsetnx", "hdel", "zrem"] {
        assert_eq!(calls_of(&server, command).await, 0, "{command}");
    }
    bus.call::<Recorded>(&route, &(60, 0), within(PATIENCE))
        .await
        .unwrap();
    assert_eq!(
        calls_of(&server, "hset").await,
        1,
        "a recorded one is written once"
    );
    assert_eq!(calls_of(&server, "hmget").await, 0, "and not looked for");
    let keyed = within(PATIENCE).idempotency_key("k");
    bus.call::<Plain>(&route, &(61, 0), keyed).await.unwrap();
    assert_eq!(calls_of(&server, "hset").await, 2);
    assert!(
        calls_of(&server, "hmget").await > 0,
        "one with a key is looked for"
    );
    bus.shutdown().await;
    n1.shutdown().await;
}

/// Whatever is kept has an end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_that_is_kept_runs_out() {
    if left_out() {
        return;
    }
    let server = RedisServer::start().await;
    let transport = server.transport().await;
    let effects = Effects::default();
    let told = Arc::new(AtomicUsize::new(0));
    let count = told.clone();
    let listener = Router::new().method::<Told, _, _>(move |_context: Context, _outcome: TicketOutcome| {
        count.fetch_add(1, Ordering::SeqCst);
        async move { Ok(()) }
    });
    let (n1, bus) = (
        attach(&transport, "eu/n1", effects.router()).await,
        attach(&transport, "c1", listener).await,
    );
    let (node, any) = (Route::node(path("eu/n1")), Route::any(path("eu"), worker()));
    let back = Route::node(path("c1"));
    for route in [&node, &any] {
        let keyed = within(PATIENCE).idempotency_key("k");
        bus.call::<Plain>(route, &(1, 0), keyed).await.unwrap();
        for (n, wait, deadline) in [(2, 0, PATIENCE), (3, 5_000, BRIEF), (4, 5_000, PATIENCE)] {
            let options = SubmitOptions::from(within(deadline)).keep(PATIENCE);
            let options = options.callback::<Told>(&back);
            let ticket = bus.submit::<Plain>(route, &(n, wait), options).await.unwrap();
            let handle = bus.ticket(&ticket).unwrap();
            if n == 4 {
                until("it is running", async || {
                    matches!(handle.poll().await, Ok(TicketState::Running { .. }))
                })
                .await;
                handle.cancel().await.unwrap();
            } else {
                assert!(handle.wait(PATIENCE).await.unwrap().is_final());
            }
        }
    }
    until("all are told", async || told.load(Ordering::SeqCst) >= 6).await;
    let mut raw = server.raw().await;
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut raw).await.unwrap();
    let kept: Vec<_> = keys
        .iter()
        .filter(|key| key.contains("}:idem:") || key.contains("}:t:") || key.contains("}:due"))
        .collect();
    let of = |part: &str| kept.iter().filter(|key| key.contains(part)).count();
    // Of the calls and of the callbacks; a span of answers may have ended in between, then there are two for each.
    assert!(of("}:idem:n:eu/n1:") >= 1 && of("}:idem:n:c1:") >= 1, "{kept:?}");
    assert_eq!(of("}:t:"), 6, "{kept:?}");
    for key in kept {
        let left: i64 = redis::cmd("PTTL").arg(key).query_async(&mut raw).await.unwrap();
        assert!(left > 0, "{key} has no end");
    }
    until("nothing is due any more", async || {
        let due: usize = redis::cmd("ZCARD")
            .arg("vbm:v1:{eu}:due")
            .query_async(&mut raw)
            .await
            .unwrap();
        due == 0
    })
    .await;
    bus.shutdown().await;
    n1.shutdown().await;
}

async fn state(bus: &Bus, text: &str) -> TicketState<u64> {
    let ticket: Ticket<Plain> = text.parse().unwrap();
    bus.ticket(&ticket).unwrap().wait(PATIENCE).await.unwrap()
}

/// Tickets and answers outlive a server that keeps its data, and all processes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tickets_and_answers_survive_a_restart_of_everything() {
    if left_out() {
        return;
    }
    let mut server = RedisServer::with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let effects = Effects::default();
    let route = Route::node(path("eu/n1"));
    let keyed = || within(PATIENCE).idempotency_key("k");
    let texts: Vec<String> = {
        let transport = server.transport().await;
        let (n1, bus) = (
            attach(&transport, "eu/n1", effects.router()).await,
            attach(&transport, "c1", Router::new()).await,
        );
        assert_eq!(bus.call::<Plain>(&route, &(1, 0), keyed()).await, Ok(2));
        let ended = bus
            .submit::<Plain>(&route, &(2, 0), within(PATIENCE).into())
            .await
            .unwrap();
        assert_eq!(state(&bus, &ended.to_string()).await, TicketState::Ended(Ok(4)));
        let open = bus
            .submit::<Plain>(&route, &(3, 60_000), within(PATIENCE).into())
            .await
            .unwrap();
        until("it is running", async || effects.of(3) == 1).await;
        n1.kill().await;
        bus.kill().await;
        vec![ended.to_string(), open.to_string()]
    };
    server.kill().await;
    server.restart().await;
    let transport = server.transport().await;
    let again = Effects::default();
    let bus = attach(&transport, "c1", Router::new()).await;
    let quick = again.clone();
    let router = Router::new()
        .method::<Plain, _, _>(move |_context: Context, (n, _): Work| quick.clone().work((n, 0)));
    let n1 = attach(&transport, "eu/n1", router).await;
    assert_eq!(state(&bus, &texts[0]).await, TicketState::Ended(Ok(4)));
    assert_eq!(
        state(&bus, &texts[1]).await,
        TicketState::Ended(Ok(6)),
        "the next process did it"
    );
    assert_eq!(bus.call::<Plain>(&route, &(1, 0), keyed()).await, Ok(2));
    assert_eq!([again.of(1), again.of(2), again.of(3)], [0, 0, 1]);
    bus.shutdown().await;
    n1.shutdown().await;
}

/// A server that forgets everything forgets tickets; that is said, and is not an expiry or a loss.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ticket_that_the_server_forgot_is_unknown() {
    if left_out() {
        return;
    }
    let mut server = RedisServer::start().await;
    let transport = server.transport().await;
    let effects = Effects::default();
    let (n1, bus) = (
        attach(&transport, "eu/n1", effects.router()).await,
        attach(&transport, "c1", Router::new()).await,
    );
    let route = Route::node(path("eu/n1"));
    let ticket = bus
        .submit::<Plain>(&route, &(1, 0), within(PATIENCE).into())
        .await
        .unwrap();
    assert_eq!(state(&bus, &ticket.to_string()).await, TicketState::Ended(Ok(2)));
    server.kill().await;
    let handle = bus.ticket(&ticket).unwrap();
    assert!(
        handle.poll().await.is_err(),
        "a server that is away is an error, not a state"
    );
    server.restart().await;
    assert_eq!(state(&bus, &ticket.to_string()).await, TicketState::Unknown);
    let fate: Result<u64, Fate> = bus.call::<Plain>(&route, &(2, 0), within(PATIENCE)).await;
    assert_eq!(fate, Ok(4), "the bus works on");
    bus.shutdown().await;
    n1.shutdown().await;
}

/// Misfortune by seed on the memory transport, with a worker that dies in between: every ticket has one end, the same for
/// two readers, by its deadline and the grace; no effect comes twice but in the window of the dying worker.
#[tokio::test(start_paused = true)]
async fn every_ticket_has_one_end_whatever_happens() {
    use vbm_rpc::memory::{Faults, MemoryBus};
    const TICKETS: u64 = 60;
    let mut ends = [0; 2];
    for seed in 0..30 {
        let hub = MemoryBus::with_faults(Faults {
            reorder_per_mille: 0,
            seed,
            drop_per_mille: 100,
            duplicate_per_mille: 200,
            delay_max: Duration::from_millis(300),
        });
        let attach = async |at: &str, boot: &str, router| {
            let member = Member::new(path(at), boot).service(worker());
            Bus::attach(hub.clone(), member, router).await.unwrap()
        };
        let (first, second) = (Effects::default(), Effects::default());
        let n1 = attach("eu/n1", "boot-1", first.router()).await;
        let (c1, c2) = (
            attach("c1", "b", Router::new()).await,
            attach("c2", "b", Router::new()).await,
        );
        let (deadline, keep) = (Duration::from_secs(2), Duration::from_secs(600));
        let mut tickets = Vec::new();
        for n in 0..TICKETS {
            let options = SubmitOptions::from(within(deadline).idempotency_key(format!("k{n}"))).keep(keep);
            let route = Route::node(path("eu/n1"));
            tickets.push(
                c1.submit::<Plain>(&route, &(n, n % 7 * 10), options)
                    .await
                    .unwrap(),
            );
        }
        sleep(Duration::from_millis(100 + seed * 5)).await;
        n1.kill().await;
        let dying: Vec<usize> = (0..TICKETS).map(|n| first.of(n)).collect();
        let n1 = attach("eu/n1", "boot-2", second.router()).await;
        for (n, ticket) in (0..).zip(&tickets) {
            let (a, b) = (c1.ticket(ticket).unwrap(), c2.ticket(ticket).unwrap());
            let (a, b) = tokio::join!(a.wait(PATIENCE), b.wait(PATIENCE));
            assert_eq!(a, b, "seed {seed}: ticket {n} has two ends");
            match a.unwrap() {
                TicketState::Ended(Ok(reply)) => {
                    assert_eq!(reply, n * 2);
                    ends[0] += 1;
                }
                TicketState::Ended(Err(Fate::Lost { .. } | Fate::Expired { .. })) => ends[1] += 1,
                other => panic!("seed {seed}, ticket {n}: {other:?}"),
            }
            let (before, after) = (dying[usize::try_from(n).unwrap()], second.of(n));
            assert!(
                before <= 1 && after <= 1,
                "seed {seed}: effect {n} came {before} + {after} times"
            );
        }
        for bus in [c1, c2, n1] {
            bus.shutdown().await;
        }
    }
    assert!(
        ends.iter().all(|count| *count > 50),
        "both ends are seen: {ends:?}"
    );
}
