//! A bus with keys and users, and what an onlooker or a member that was taken over does to it.

use crate::{
    common::{
        RedisServer,
        words::{PATIENCE, path, within, worker},
    },
    guarded::Guarded,
};
use bytes::Bytes;
use redis::{aio::MultiplexedConnection, streams::StreamRangeReply};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::time::sleep;
use uuid::Uuid;
use vbm_core::Epoch;
use vbm_rpc::{
    Bus, Codec, Context, Fate, Member, Method, Route, Router, Transport,
    auth::{Bound, KeyPair, Speaker, Trusted, Way, seal_for_one},
    envelope::{Envelope, Kind},
    redis::acl::Reach,
};

pub(crate) const N1: &str = "vbm:v1:{eu/r1}:n:eu/r1/n1";
pub(crate) const ANY: &str = "vbm:v1:{eu/r1}:g:eu/r1:worker";
pub(crate) const ALL: &str = "vbm:v1:{eu/r1}:b";
pub(crate) const INBOX: &str = "vbm:v1:{eu/r1}:r:eu/r1/c1:boot-c";

pub(crate) struct Double;
impl Method for Double {
    const NAME: &'static str = "test.double";
    type Request = usize;
    type Reply = usize;
}

/// Answers only after a while.
pub(crate) struct Slow;
impl Method for Slow {
    const NAME: &'static str = "test.slow";
    type Request = ();
    type Reply = String;
}

pub(crate) fn node() -> Route {
    Route::node(path("eu/r1/n1"))
}
pub(crate) fn any() -> Route {
    Route::any(path("eu/r1"), worker())
}
pub(crate) fn all() -> Route {
    Route::all(path("eu/r1"), worker())
}

pub(crate) fn router(ran: &Arc<AtomicUsize>) -> Router {
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

pub(crate) struct World {
    pub(crate) server: RedisServer,
    pub(crate) bus: Arc<Guarded>,
    pub(crate) ran: Arc<AtomicUsize>,
}

impl World {
    pub(crate) async fn new() -> Self {
        let server = RedisServer::start().await;
        let bus = Arc::new(Guarded::new(&server));
        Self {
            server,
            bus,
            ran: Arc::default(),
        }
    }
    pub(crate) fn ran(&self) -> usize {
        self.ran.load(Ordering::SeqCst)
    }
    pub(crate) async fn serve(&self, at: &str, boot: &str) -> Bus {
        let member = Member::new(path(at), boot).service(worker());
        let transport: Arc<dyn Transport> = self.bus.clone();
        Bus::attach(transport, member, router(&self.ran)).await.unwrap()
    }
    pub(crate) async fn client(&self) -> Bus {
        let transport: Arc<dyn Transport> = self.bus.clone();
        Bus::attach(transport, Member::new(path("eu/r1/c1"), "boot-c"), Router::new())
            .await
            .unwrap()
    }
    /// Redis' time.
    pub(crate) async fn now_ms(&self) -> u64 {
        let (seconds, micros): (u64, u64) = redis::cmd("TIME")
            .query_async(&mut self.server.raw().await)
            .await
            .unwrap();
        seconds * 1_000 + micros / 1_000
    }
}

pub(crate) type Fields = Vec<(String, Vec<u8>)>;

/// What an onlooker sees of a stream.
pub(crate) async fn look(raw: &mut MultiplexedConnection, key: &str) -> Vec<Fields> {
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

pub(crate) async fn add(
    raw: &mut MultiplexedConnection,
    key: &str,
    fields: &Fields,
) -> redis::RedisResult<String> {
    let mut command = redis::cmd("XADD");
    command.arg(key).arg("NOMKSTREAM").arg("*");
    for (name, value) in fields {
        command.arg(name).arg(value);
    }
    command.query_async(raw).await
}

pub(crate) async fn call(bus: &Bus, route: &Route) -> Result<usize, Fate> {
    bus.call::<Double>(route, &21, within(PATIENCE)).await
}

pub(crate) fn packed(frames: &[Bytes]) -> Vec<u8> {
    let mut out = Vec::new();
    for frame in frames {
        out.extend_from_slice(&u32::try_from(frame.len()).unwrap().to_be_bytes());
        out.extend_from_slice(frame);
    }
    out
}

pub(crate) fn frame(kind: Kind, caller: &str, method: &str) -> Envelope {
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

pub(crate) fn speaker(at: &str, seq: u64, time_ms: u64) -> Speaker {
    Speaker {
        path: path(at),
        boot_id: "boot-x".into(),
        session: 77,
        seq,
        time_ms,
    }
}

/// An entry as `from` would seal it for the node or inbox `to` with these keys.
pub(crate) fn sealed(
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

pub(crate) fn field<'a>(fields: &'a mut Fields, name: &str) -> &'a mut Vec<u8> {
    &mut fields.iter_mut().find(|(known, _)| known == name).unwrap().1
}

/// A connection as the user of a node.
pub(crate) async fn as_user(world: &World, at: &str, reach: &Reach) -> MultiplexedConnection {
    let login = world.bus.login(&path(at), &[worker()], reach).await;
    let client = redis::Client::open(login).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}
