//! What somebody can do who reads Redis, writes to it, or has taken over a member: nothing that counts.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, which clippy does not see as tests"
)]

mod common;
mod guarded;

use bytes::Bytes;
use common::{RedisServer, left_out};
use guarded::{Guarded, path};
use redis::{aio::MultiplexedConnection, streams::StreamRangeReply};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::time::{sleep, timeout};
use uuid::Uuid;
use vbm_core::{Epoch, NodePath};
use vbm_rpc::{
    Bus, BusError, CallOptions, Codec, Context, Fate, Member, Method, Route, Router, Service, Transport,
    auth::{
        Bound, Epochs, KeyPair, Keys, Ring, Security, Speaker, Trust, Trusted, Way, seal_for_any,
        seal_for_one,
    },
    envelope::{Envelope, Kind},
    redis::{RedisConfig, RedisTransport, acl::Reach},
};

const PATIENCE: Duration = Duration::from_secs(60);
const N1: &str = "vbm:v1:{eu/r1}:n:eu/r1/n1";
const ANY: &str = "vbm:v1:{eu/r1}:g:eu/r1:worker";
const ALL: &str = "vbm:v1:{eu/r1}:b";
const INBOX: &str = "vbm:v1:{eu/r1}:r:eu/r1/c1:boot-c";

struct Double;
impl Method for Double {
    const NAME: &'static str = "test.double";
    type Request = usize;
    type Reply = usize;
}

/// Answers only after a while.
struct Slow;
impl Method for Slow {
    const NAME: &'static str = "test.slow";
    type Request = ();
    type Reply = String;
}

fn worker() -> Service {
    Service::new("worker").unwrap()
}
fn within(deadline: Duration) -> CallOptions {
    CallOptions::default().deadline(deadline)
}
fn node() -> Route {
    Route::node(path("eu/r1/n1"))
}
fn any() -> Route {
    Route::any(path("eu/r1"), worker())
}
fn all() -> Route {
    Route::all(path("eu/r1"), worker())
}

fn router(ran: &Arc<AtomicUsize>) -> Router {
    let ran = ran.clone();
    Router::new()
        .method::<Double, _, _>(move |_context: Context, n: usize| {
            let ran = ran.clone();
            async move {
                ran.fetch_add(1, Ordering::SeqCst);
                Ok(n * 2)
            }
        })
        .method::<Slow, _, _>(|_context: Context, ()| async move {
            sleep(Duration::from_millis(1_500)).await;
            Ok("true".to_owned())
        })
}

struct World {
    server: RedisServer,
    bus: Arc<Guarded>,
    ran: Arc<AtomicUsize>,
}

impl World {
    async fn new() -> Self {
        let server = RedisServer::start().await;
        let bus = Arc::new(Guarded::new(&server));
        Self {
            server,
            bus,
            ran: Arc::default(),
        }
    }
    fn ran(&self) -> usize {
        self.ran.load(Ordering::SeqCst)
    }
    async fn serve(&self, at: &str, boot: &str) -> Bus {
        let member = Member::new(path(at), boot).service(worker());
        let transport: Arc<dyn Transport> = self.bus.clone();
        Bus::attach(transport, member, router(&self.ran)).await.unwrap()
    }
    async fn client(&self) -> Bus {
        let transport: Arc<dyn Transport> = self.bus.clone();
        Bus::attach(transport, Member::new(path("eu/r1/c1"), "boot-c"), Router::new())
            .await
            .unwrap()
    }
    /// Redis' time.
    async fn now_ms(&self) -> u64 {
        let (seconds, micros): (u64, u64) = redis::cmd("TIME")
            .query_async(&mut self.server.raw().await)
            .await
            .unwrap();
        seconds * 1_000 + micros / 1_000
    }
}

async fn until(what: &str, mut is_true: impl AsyncFnMut() -> bool) {
    let watch = async {
        while !is_true().await {
            sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(timeout(PATIENCE, watch).await.is_ok(), "{what}");
}

type Fields = Vec<(String, Vec<u8>)>;

/// What an onlooker sees of a stream.
async fn look(raw: &mut MultiplexedConnection, key: &str) -> Vec<Fields> {
    let seen: StreamRangeReply = redis::cmd("XRANGE")
        .arg(key)
        .arg("-")
        .arg("+")
        .query_async(raw)
        .await
        .unwrap();
    let fields = |map: std::collections::HashMap<String, redis::Value>| {
        map.into_iter()
            .map(|(name, value)| (name, redis::from_redis_value(value).unwrap()))
            .collect()
    };
    seen.ids.into_iter().map(|entry| fields(entry.map)).collect()
}

async fn add(raw: &mut MultiplexedConnection, key: &str, fields: &Fields) -> redis::RedisResult<String> {
    let mut command = redis::cmd("XADD");
    command.arg(key).arg("NOMKSTREAM").arg("*");
    for (name, value) in fields {
        command.arg(name).arg(value);
    }
    command.query_async(raw).await
}

async fn call(bus: &Bus, route: &Route) -> Result<usize, Fate> {
    bus.call::<Double>(route, &21, within(PATIENCE)).await
}

fn packed(frames: &[Bytes]) -> Vec<u8> {
    let mut out = Vec::new();
    for frame in frames {
        out.extend_from_slice(&u32::try_from(frame.len()).unwrap().to_be_bytes());
        out.extend_from_slice(frame);
    }
    out
}

fn frame(kind: Kind, caller: &str, method: &str) -> Envelope {
    Envelope {
        kind,
        codec: Codec::MessagePack,
        attempt: 1,
        id: Uuid::from_u128(9),
        ttl_ms: 60_000,
        epoch: Epoch(0),
        method: method.into(),
        caller: path(caller),
        boot_id: "boot-x".into(),
        traceparent: None,
        idempotency_key: None,
        body: Bytes::from_static(&[21]),
    }
}

fn speaker(at: &str, seq: u64, time_ms: u64) -> Speaker {
    Speaker {
        path: path(at),
        boot_id: "boot-x".into(),
        session: 77,
        seq,
        time_ms,
    }
}

/// An entry as `from` would seal it for the node or inbox `to` with these keys.
fn sealed(
    keys: &KeyPair,
    (from, to): (&str, &str),
    theirs: &Trusted,
    stream: &str,
    speaker: Speaker,
    frames: Vec<u8>,
) -> Fields {
    let (from, to) = (path(from), path(to));
    let pair = keys
        .pair(&theirs.key, "vbm", Way::Sending { from: &from, to: &to })
        .unwrap();
    let bound = Bound {
        stream,
        scope: "",
        service: "",
        frames: &frames,
    };
    let seal = seal_for_one(keys.id(), theirs.id, &pair, speaker, &bound);
    vec![("f".into(), frames), ("a".into(), seal)]
}

fn field<'a>(fields: &'a mut Fields, name: &str) -> &'a mut Vec<u8> {
    &mut fields.iter_mut().find(|(known, _)| known == name).unwrap().1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copied_request_does_not_run_twice_wherever_it_is_put() {
    if left_out() {
        return;
    }
    let world = World::new().await;
    let (n1, c1) = (world.serve("eu/r1/n1", "boot-1").await, world.client().await);
    // While the node is dead, what is for it lies there to be copied.
    n1.kill().await;
    let waiting = [node(), any()].map(|route| {
        let c1 = c1.clone();
        tokio::spawn(async move { call(&c1, &route).await })
    });
    let mut raw = world.server.raw().await;
    until("both are queued", async || {
        look(&mut raw, N1).await.len() + look(&mut raw, ANY).await.len() == 2
    })
    .await;
    let copies = [look(&mut raw, N1).await, look(&mut raw, ANY).await].map(|mut entries| entries.remove(0));
    let (n1, n2) = (
        world.serve("eu/r1/n1", "boot-2").await,
        world.serve("eu/r1/n2", "boot-2").await,
    );
    for call in waiting {
        assert_eq!(timeout(PATIENCE, call).await.unwrap().unwrap(), Ok(42));
    }
    assert_eq!(world.ran(), 2);
    for copy in &copies {
        for key in [
            N1,
            ANY,
            ALL,
            "vbm:v1:{eu/r1}:n:eu/r1/n2",
            "vbm:v1:{eu}:g:eu:worker",
            INBOX,
        ] {
            let mut copy = copy.clone();
            if key == ALL {
                copy.extend([("s".into(), b"eu".to_vec()), ("v".into(), b"worker".to_vec())]);
            }
            for _ in 0..3 {
                add(&mut raw, key, &copy).await.unwrap();
            }
        }
    }
    until("every copy was looked at", async || {
        // 6 streams, 2 copies, 3 times; of the broadcasts each of two members looks at its own.
        world.bus.refused().values().sum::<u64>() >= 42
    })
    .await;
    let refused = world.bus.refused();
    assert_eq!(refused["replayed"], 6, "{refused:?}: the stream it was made for");
    assert!(
        refused["wrong-seal"] > 0 && refused["wrong-sort"] > 0,
        "{refused:?}"
    );
    assert_eq!(call(&c1, &node()).await, Ok(42));
    assert_eq!(world.ran(), 3, "copies ran nothing");
    for key in [N1, ANY] {
        until("copies are removed", async || {
            look(&mut raw, key).await.is_empty()
        })
        .await;
    }
    for bus in [c1, n1, n2] {
        bus.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copied_broadcast_and_a_copied_reply_do_nothing() {
    if left_out() {
        return;
    }
    let world = World::new().await;
    let (n1, c1) = (world.serve("eu/r1/n1", "boot-1").await, world.client().await);
    let mut replies = c1
        .broadcast::<Double>(&all(), &21, within(PATIENCE))
        .await
        .unwrap();
    assert_eq!(replies.next().await, Some((path("eu/r1/n1"), Ok(42))));
    let mut raw = world.server.raw().await;
    let (broadcast, reply) = (
        look(&mut raw, ALL).await.remove(0),
        look(&mut raw, INBOX).await.remove(0),
    );
    add(&mut raw, ALL, &broadcast).await.unwrap();
    add(&mut raw, INBOX, &reply).await.unwrap();
    until("both copies were refused", async || {
        world.bus.refused_for("replayed") == 2
    })
    .await;
    assert_eq!((call(&c1, &node()).await, world.ran()), (Ok(42), 2));
    c1.shutdown().await;
    n1.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_without_a_seal_or_with_a_damaged_one_are_refused_and_disturb_nobody() {
    if left_out() {
        return;
    }
    let world = World::new().await;
    let (n1, c1) = (world.serve("eu/r1/n1", "boot-1").await, world.client().await);
    let mut raw = world.server.raw().await;
    let me = world.bus.keys(&path("eu/r1/c1"));
    let theirs = Trusted::new(*world.bus.keys(&path("eu/r1/n1")).active().public());
    let now = world.now_ms().await;
    let frames = packed(&[frame(Kind::Request, "eu/r1/c1", "test.double").encode()]);
    let good = |seq| {
        let way = ("eu/r1/c1", "eu/r1/n1");
        sealed(
            me.active(),
            way,
            &theirs,
            N1,
            speaker("eu/r1/c1", seq, now),
            frames.clone(),
        )
    };
    let mut expected = Vec::new();
    let mut try_one = async |entry: Fields, reason: &'static str| {
        add(&mut raw, N1, &entry).await.unwrap();
        expected.push(reason);
        let count = expected.iter().filter(|known| **known == reason).count();
        until(reason, async || {
            world.bus.refused_for(reason) == u64::try_from(count).unwrap()
        })
        .await;
    };
    try_one(vec![("f".into(), frames.clone())], "missing").await;
    try_one(vec![("x".into(), b"y".to_vec())], "missing").await;
    for end in [0, 1, 43, 60, 90] {
        let mut entry = good(1);
        field(&mut entry, "a").truncate(end);
        try_one(entry, "malformed").await;
    }
    let mut entry = good(1);
    field(&mut entry, "a").extend_from_slice(&[0; 8_192]);
    try_one(entry, "malformed").await;
    let mut entry = good(1);
    field(&mut entry, "a")[0] = 9;
    try_one(entry, "version").await;
    // Each part that can be changed: my key, session, number, time, tag, and the frames.
    for at in [12, 20, 30, 36] {
        let mut entry = good(1);
        field(&mut entry, "a")[at] ^= 1;
        try_one(entry, if at == 12 { "not-for-me" } else { "wrong-seal" }).await;
    }
    let mut entry = good(1);
    *field(&mut entry, "a").last_mut().unwrap() ^= 1;
    try_one(entry, "wrong-seal").await;
    let mut entry = good(1);
    *field(&mut entry, "f").last_mut().unwrap() ^= 1;
    try_one(entry, "wrong-seal").await;
    let mut entry = good(1);
    *field(&mut entry, "f") = vec![0; 2 * 1024 * 1024];
    try_one(entry, "oversized").await;
    assert_eq!(world.ran(), 0);
    // The same entry unharmed is taken: it was the damage that was refused.
    add(&mut raw, N1, &good(1)).await.unwrap();
    until("it runs", async || world.ran() == 1).await;
    assert_eq!(call(&c1, &node()).await, Ok(42));
    until("nothing is left", async || look(&mut raw, N1).await.is_empty()).await;
    c1.shutdown().await;
    n1.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_taken_over_speaks_for_itself_only() {
    if left_out() {
        return;
    }
    let world = World::new().await;
    let (n1, c1) = (world.serve("eu/r1/n1", "boot-1").await, world.client().await);
    let mut raw = world.server.raw().await;
    // Trusted, but commands in no epoch: a node like any other.
    let evil = KeyPair::generate().unwrap();
    world
        .bus
        .ring
        .add(&path("eu/r1/evil"), Trusted::new(*evil.public()));
    let theirs = Trusted::new(*world.bus.keys(&path("eu/r1/n1")).active().public());
    let now = world.now_ms().await;
    let own = ("eu/r1/evil", "eu/r1/n1");
    let entry = |from: (&str, &str), at: &str, seq: u64, time: u64, what: Envelope| {
        sealed(
            &evil,
            from,
            &theirs,
            N1,
            speaker(at, seq, time),
            packed(&[what.encode()]),
        )
    };
    let command = |epoch| Envelope {
        epoch: Epoch(epoch),
        ..frame(Kind::Request, "eu/r1/evil", "test.double")
    };
    let minute = 60_000;
    let tries = [
        // In another's name, sealed with its own key.
        (
            "unknown-key",
            entry(
                ("eu/r1/c1", "eu/r1/n1"),
                "eu/r1/c1",
                1,
                now,
                frame(Kind::Request, "eu/r1/c1", "test.double"),
            ),
        ),
        // In its own name, with another's frame inside: a request, and a cancel of somebody's call.
        (
            "wrong-caller",
            entry(
                own,
                "eu/r1/evil",
                2,
                now,
                frame(Kind::Request, "eu/r1/c1", "test.double"),
            ),
        ),
        (
            "wrong-caller",
            entry(own, "eu/r1/evil", 3, now, frame(Kind::Cancel, "eu/r1/c1", "")),
        ),
        // A command in an epoch of which it is no controller, so that nobody else could command any more.
        ("wrong-epoch", entry(own, "eu/r1/evil", 4, now, command(u64::MAX))),
        // Made in store, to be used later; and dated ahead.
        (
            "wrong-time",
            entry(own, "eu/r1/evil", 5, now - minute, command(0)),
        ),
        (
            "wrong-time",
            entry(own, "eu/r1/evil", 6, now + minute, command(0)),
        ),
    ];
    let mut before = std::collections::BTreeMap::new();
    for (reason, entry) in tries {
        add(&mut raw, N1, &entry).await.unwrap();
        let count: &mut u64 = before.entry(reason).or_default();
        *count += 1;
        until(reason, async || world.bus.refused_for(reason) == *count).await;
    }
    assert_eq!(world.ran(), 0);
    // What it may do, it may: ask in its own name.
    add(&mut raw, N1, &entry(own, "eu/r1/evil", 7, now, command(0)))
        .await
        .unwrap();
    until("it runs", async || world.ran() == 1).await;
    assert_eq!(call(&c1, &node()).await, Ok(42));
    c1.shutdown().await;
    n1.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_reply_is_refused_and_the_true_one_arrives() {
    if left_out() {
        return;
    }
    let world = World::new().await;
    let (n1, c1) = (world.serve("eu/r1/n1", "boot-1").await, world.client().await);
    let evil = KeyPair::generate().unwrap();
    world
        .bus
        .ring
        .add(&path("eu/r1/evil"), Trusted::new(*evil.public()));
    let waiting = {
        let c1 = c1.clone();
        tokio::spawn(async move { c1.call::<Slow>(&node(), &(), within(PATIENCE)).await })
    };
    // It even knows the id of the call: it looked into Redis.
    let mut raw = world.server.raw().await;
    let mut request = Vec::new();
    until("the request is there", async || {
        request = look(&mut raw, N1).await;
        !request.is_empty()
    })
    .await;
    let content = field(&mut request[0], "f");
    let id = Uuid::from_slice(&content[12..28]).unwrap();
    let answer = |caller: &str| {
        let body = Bytes::from_static(b"\xa5false");
        packed(&[Envelope {
            id,
            body,
            ..frame(Kind::Reply, caller, "")
        }
        .encode()])
    };
    let theirs = Trusted::new(*world.bus.keys(&path("eu/r1/c1")).active().public());
    let now = world.now_ms().await;
    // Its rights on Redis let it add to the inbox: it must, to answer.
    let login = world
        .bus
        .login(&path("eu/r1/evil"), &[worker()], &Reach::Answers)
        .await;
    let client = redis::Client::open(login).unwrap();
    let mut evil_raw = client.get_multiplexed_async_connection().await.unwrap();
    let bare = vec![("f".to_owned(), answer("eu/r1/n1"))];
    let as_n1 = sealed(
        &evil,
        ("eu/r1/n1", "eu/r1/c1"),
        &theirs,
        INBOX,
        speaker("eu/r1/n1", 1, now),
        answer("eu/r1/n1"),
    );
    let inside = sealed(
        &evil,
        ("eu/r1/evil", "eu/r1/c1"),
        &theirs,
        INBOX,
        speaker("eu/r1/evil", 2, now),
        answer("eu/r1/n1"),
    );
    let honest = sealed(
        &evil,
        ("eu/r1/evil", "eu/r1/c1"),
        &theirs,
        INBOX,
        speaker("eu/r1/evil", 3, now),
        answer("eu/r1/evil"),
    );
    for (reason, entry) in [
        ("missing", bare),
        ("unknown-key", as_n1),
        ("wrong-caller", inside),
    ] {
        add(&mut evil_raw, INBOX, &entry).await.unwrap();
        until(reason, async || world.bus.refused_for(reason) == 1).await;
    }
    // Well sealed and in its own name, but it was not asked.
    add(&mut evil_raw, INBOX, &honest).await.unwrap();
    assert!(!waiting.is_finished());
    assert_eq!(
        timeout(PATIENCE, waiting).await.unwrap().unwrap(),
        Ok("true".to_owned())
    );
    c1.shutdown().await;
    n1.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_well_sealed_by_a_trusted_member_disturbs_nobody() {
    if left_out() {
        return;
    }
    let world = World::new().await;
    let (n1, c1) = (world.serve("eu/r1/n1", "boot-1").await, world.client().await);
    let mut raw = world.server.raw().await;
    let me = world.bus.keys(&path("eu/r1/c1"));
    let ring = world.bus.trust().ring();
    let now = world.now_ms().await;
    let good = frame(Kind::Cast, "eu/r1/c1", "test.double");
    let version = {
        let mut bytes = good.encode().to_vec();
        bytes[2] = 99;
        bytes
    };
    let cut = good.encode().slice(..30).to_vec();
    let unknown = Envelope {
        id: Uuid::from_u128(10),
        ..frame(Kind::Request, "eu/r1/c1", "test.unknown")
    };
    let no_body = Envelope {
        id: Uuid::from_u128(11),
        body: Bytes::from_static(&[0xc1]),
        ..good.clone()
    };
    let too_late = Envelope {
        id: Uuid::from_u128(12),
        ttl_ms: 0,
        ..good.clone()
    };
    let reply_to_nobody = frame(Kind::Reply, "eu/r1/c1", "");
    let frames: Vec<Bytes> = vec![
        version.into(),
        cut.into(),
        unknown.encode(),
        no_body.encode(),
        too_late.encode(),
        reply_to_nobody.encode(),
        Bytes::new(),
        good.encode(),
    ];
    let mut seq = 0;
    for (stream, to) in [(N1, "eu/r1/n1"), (INBOX, "eu/r1/c1")] {
        seq += 1;
        let theirs = ring.first(&path(to)).unwrap();
        let entry = sealed(
            me.active(),
            ("eu/r1/c1", to),
            theirs,
            stream,
            speaker("eu/r1/c1", seq, now),
            packed(&frames),
        );
        add(&mut raw, stream, &entry).await.unwrap();
    }
    for (stream, scope) in [(ANY, ""), (ALL, "eu")] {
        seq += 1;
        let service = if scope.is_empty() { "" } else { "worker" };
        let content = packed(&frames);
        let bound = Bound {
            stream,
            scope,
            service,
            frames: &content,
        };
        let seal = seal_for_any(me.active(), speaker("eu/r1/c1", seq, now), &bound);
        let mut entry = vec![("f".to_owned(), content), ("a".to_owned(), seal)];
        if !scope.is_empty() {
            entry.extend([
                ("s".to_owned(), scope.as_bytes().to_vec()),
                ("v".to_owned(), service.as_bytes().to_vec()),
            ]);
        }
        add(&mut raw, stream, &entry).await.unwrap();
    }
    // The good frame among them is one request under one id, however often it comes.
    until("the good frame runs", async || world.ran() == 1).await;
    for route in [node(), any()] {
        assert_eq!(call(&c1, &route).await, Ok(42));
    }
    assert_eq!(
        (world.ran(), world.bus.refused()),
        (3, std::collections::BTreeMap::new())
    );
    for key in [N1, ANY] {
        until("nothing is left", async || look(&mut raw, key).await.is_empty()).await;
    }
    c1.shutdown().await;
    n1.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_changed_while_calls_go_on() {
    if left_out() {
        return;
    }
    let world = World::new().await;
    let (at, c1_at) = (path("eu/r1/n1"), path("eu/r1/c1"));
    let (old, new) = (|| KeyPair::from_secret([1; 32]), || KeyPair::from_secret([2; 32]));
    let line = |pair: &KeyPair| Trusted::new(*pair.public()).commands(Epochs::ANY);
    let rings = [
        vec![line(&old())],
        vec![line(&old()), line(&new())],
        vec![line(&new()), line(&old())],
        vec![line(&new())],
    ];
    let caller = || KeyPair::from_secret([3; 32]);
    world.bus.set_keys(&c1_at, vec![caller()]);
    let with_caller = |of_n1: &[Trusted]| {
        let mut ring = Ring::new();
        of_n1
            .iter()
            .for_each(|one| ring.add(at.clone(), one.clone()).unwrap());
        ring.add(c1_at.clone(), line(&caller())).unwrap();
        ring
    };
    world.bus.ring.set(with_caller(&rings[0]));
    world.bus.set_keys(&at, vec![old()]);
    let (mut n1, c1) = (world.serve("eu/r1/n1", "boot-0").await, world.client().await);
    // 1: the node opens with both. 2: all trust both. 3: the node seals with the new one. 4: entries for it are
    // sealed for the new one. 5: the old one is forgotten, here and there. Each step is taken while the last one holds.
    for step in 1..=5 {
        match step {
            1 => world.bus.set_keys(&at, vec![old(), new()]),
            2 => world.bus.ring.set(with_caller(&rings[1])),
            3 => world.bus.set_keys(&at, vec![new(), old()]),
            4 => world.bus.ring.set(with_caller(&rings[2])),
            _ => world.bus.ring.set(with_caller(&rings[3])),
        }
        for route in [node(), any()] {
            assert_eq!(
                call(&c1, &route).await,
                Ok(42),
                "step {step}, before the node restarts"
            );
        }
        let again = world.serve("eu/r1/n1", &format!("boot-{step}")).await;
        n1.kill().await;
        n1 = again;
        for route in [node(), any()] {
            assert_eq!(call(&c1, &route).await, Ok(42), "step {step}");
        }
    }
    assert_eq!(world.bus.refused(), std::collections::BTreeMap::new());
    c1.shutdown().await;
    n1.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_trusted_is_told_at_the_start_and_has_no_route() {
    if left_out() {
        return;
    }
    let world = World::new().await;
    let c1 = world.client().await;
    let stranger = Security::On(Keys::generate().unwrap(), Trust::fixed(Ring::new()));
    let transport = RedisTransport::connect(world.server.config().security(stranger))
        .await
        .unwrap();
    let member = Member::new(path("eu/r1/n9"), "boot");
    let error = Bus::attach(transport, member.clone(), Router::new())
        .await
        .unwrap_err();
    assert!(
        matches!(&error, BusError::Untrusted { path, .. } if path == "eu/r1/n9"),
        "{error}"
    );
    assert!(vbm_core::Error::from(error).fix().contains("vbm bus key show"));
    // Present without keys of its own: nobody has a key to seal for it.
    let plain = Bus::attach(world.server.transport().await, member, Router::new())
        .await
        .unwrap();
    let fate = call(&c1, &Route::node(path("eu/r1/n9"))).await;
    assert!(
        matches!(&fate, Err(Fate::NoRoute { why, .. }) if why.contains("key")),
        "{fate:?}"
    );
    c1.shutdown().await;
    plain.shutdown().await;
}

/// A connection as the user of a node.
async fn as_user(world: &World, at: &str, reach: &Reach) -> MultiplexedConnection {
    let login = world.bus.login(&path(at), &[worker()], reach).await;
    let client = redis::Client::open(login).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_user_of_a_node_does_what_it_needs_and_nothing_else() {
    if left_out() {
        return;
    }
    let world = World::new().await;
    let (n1, c1) = (world.serve("eu/r1/n1", "boot-1").await, world.client().await);
    let mut user = as_user(&world, "eu/r1/evil", &Reach::Answers).await;
    let forbidden = [
        // Another's queue, inbox, presence.
        "XREAD STREAMS vbm:v1:{eu/r1}:n:eu/r1/n1 0",
        "XRANGE vbm:v1:{eu/r1}:n:eu/r1/n1 - +",
        "XREAD STREAMS vbm:v1:{eu/r1}:r:eu/r1/c1:boot-c 0",
        "XADD vbm:v1:{eu/r1}:n:eu/r1/n1 * f x",
        "XADD vbm:v1:{eu/r1}:g:eu/r1:controller * f x",
        "XDEL vbm:v1:{eu/r1}:n:eu/r1/n1 1-1",
        "XTRIM vbm:v1:{eu/r1}:n:eu/r1/n1 MAXLEN 0",
        "DEL vbm:v1:{eu/r1}:n:eu/r1/n1",
        "DEL vbm:v1:{eu/r1}:r:eu/r1/c1:boot-c",
        "UNLINK vbm:v1:{eu/r1}:n:eu/r1/n1",
        "PEXPIRE vbm:v1:{eu/r1}:n:eu/r1/n1 1",
        "RENAME vbm:v1:{eu/r1}:n:eu/r1/n1 x",
        "SET vbm:v1:{eu/r1}:p:eu/r1/n1 x",
        "ZADD vbm:v1:{eu/r1}:l:eu/r1:controller 1 eu/r1/evil",
        "ZREM vbm:v1:{eu/r1}:l:eu/r1:controller eu/r1/c1",
        "XGROUP CREATE vbm:v1:{eu/r1}:g:eu/r1:controller g 0",
        // Through a script.
        "EVAL return(redis.call('DEL','vbm:v1:{eu/r1}:n:eu/r1/n1')) 0",
        "EVAL return(redis.call('XRANGE',KEYS[1],'-','+')) 1 vbm:v1:{eu/r1}:n:eu/r1/n1",
        "EVAL return(redis.call('KEYS','*')) 0",
        // Other keys, and the server.
        "GET other",
        "SET other x",
        "KEYS *",
        "SCAN 0",
        "RANDOMKEY",
        "DBSIZE",
        "FLUSHALL",
        "FLUSHDB",
        "SWAPDB 0 1",
        "CONFIG GET *",
        "CONFIG SET maxmemory 1",
        "ACL LIST",
        "ACL SETUSER x on",
        "CLIENT KILL TYPE normal",
        "CLIENT LIST",
        "CLIENT PAUSE 100",
        "SHUTDOWN NOSAVE",
        "REPLICAOF NO ONE",
        "FAILOVER",
        "MONITOR",
        "SAVE",
        "BGREWRITEAOF",
        "MODULE LIST",
        "SCRIPT FLUSH",
        "FUNCTION LIST",
        "SLOWLOG GET",
        "PUBLISH x y",
        "SUBSCRIBE x",
        "MIGRATE h 1 k 0 1",
        "OBJECT ENCODING vbm:v1:{eu/r1}:n:eu/r1/n1",
        "DUMP vbm:v1:{eu/r1}:n:eu/r1/n1",
        "COPY vbm:v1:{eu/r1}:n:eu/r1/n1 vbm:v1:{eu/r1}:n:eu/r1/evil",
    ];
    for line in forbidden {
        let mut words = line.split(' ');
        let mut command = redis::cmd(words.next().unwrap());
        words.for_each(|word| {
            command.arg(word);
        });
        let answer: redis::RedisResult<redis::Value> = command.query_async(&mut user).await;
        let error = answer.expect_err(line).to_string();
        assert!(
            ["NOPERM", "permissions", "can't run this command", "can't access"]
                .iter()
                .any(|word| error.contains(word)),
            "{line}: {error}"
        );
    }
    // What it was not given, it was not given by the wider reach either; but it may ask.
    let mut asking = as_user(&world, "eu/r1/evil", &Reach::Everybody).await;
    let added: redis::RedisResult<String> = redis::cmd("XADD")
        .arg(N1)
        .arg("*")
        .arg("f")
        .arg("x")
        .query_async(&mut asking)
        .await;
    assert!(added.is_ok());
    for command in ["DEL", "TTL", "GET"] {
        let denied: redis::RedisResult<redis::Value> =
            redis::cmd(command).arg(N1).query_async(&mut asking).await;
        assert!(denied.is_err(), "{command}");
    }
    until("the unsealed entry was refused", async || {
        world.bus.refused_for("missing") == 1
    })
    .await;
    assert_eq!(call(&c1, &node()).await, Ok(42));
    c1.shutdown().await;
    n1.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_life_on_the_bus_is_never_denied_anything() {
    if left_out() {
        return;
    }
    let world = World::new().await;
    let (n1, n2, c1) = (
        world.serve("eu/r1/n1", "boot-1").await,
        world.serve("eu/r1/deep/x/n2", "boot-1").await,
        world.client().await,
    );
    for route in [node(), any(), Route::any(NodePath::root(), worker())] {
        assert_eq!(call(&c1, &route).await, Ok(42));
    }
    let everywhere = Route::all(NodePath::root(), worker());
    let mut replies = c1
        .broadcast::<Double>(&everywhere, &21, within(PATIENCE))
        .await
        .unwrap();
    let mut answered = 0;
    while replies.next().await.is_some() {
        answered += 1;
    }
    assert_eq!(answered, 2);
    assert!(call(&c1, &Route::node(path("eu/r1/gone"))).await.is_err());
    // A death, so that its work and its consumer are looked after; two heartbeats and more.
    n2.kill().await;
    sleep(vbm_rpc::limits::PRESENCE_TTL + vbm_rpc::limits::HEARTBEAT_EVERY * 2).await;
    assert_eq!(call(&c1, &node()).await, Ok(42));
    c1.shutdown().await;
    n1.shutdown().await;
    let denied: Vec<redis::Value> = redis::cmd("ACL")
        .arg("LOG")
        .query_async(&mut world.server.raw().await)
        .await
        .unwrap();
    // CONFIG GET would tell passwords too: a member may not, and its look at the start goes without.
    let denied: Vec<_> = denied
        .iter()
        .filter(|entry| !format!("{entry:?}").contains("config|get"))
        .collect();
    assert!(denied.is_empty(), "{denied:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trust_list_in_a_file_counts_from_the_next_heartbeat_on() {
    if left_out() {
        return;
    }
    let server = RedisServer::start().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trust");
    let (k1, k2) = (Keys::generate().unwrap(), Keys::generate().unwrap());
    let c1_line = format!("c1 {}\n", k1.active().public());
    std::fs::write(&file, &c1_line).unwrap();
    let attach = async |keys: &Keys, at: &str| {
        let security = Security::On(keys.clone(), Trust::file(&file).unwrap());
        let config: RedisConfig = server.config().security(security);
        let transport = RedisTransport::connect(config).await.unwrap();
        Bus::attach(transport, Member::new(path(at), "boot"), router(&Arc::default())).await
    };
    let c1 = attach(&k1, "c1").await.unwrap();
    assert!(matches!(attach(&k2, "n1").await, Err(BusError::Untrusted { .. })));
    std::fs::write(&file, format!("{c1_line}n1 {}\n", k2.active().public())).unwrap();
    let n1 = attach(&k2, "n1").await.unwrap();
    until("c1 has read the list again", async || {
        call(&c1, &Route::node(path("n1"))).await == Ok(42)
    })
    .await;
    c1.shutdown().await;
    n1.shutdown().await;
}
