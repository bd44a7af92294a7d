//! The bus on Redis 7.0 or later.
//!
//! ```text
//!   send, post, complete                        Redis                                     the other process
//!        | queue                                                                               |
//!        v                                                                                     v
//!   +---------+  one batch at a time   n:<path>       XADD ... XREAD by cursor, XDEL      +--------+
//!   | writer  | --------------------->  g:<scope>:<s>  XADD ... XREADGROUP, XACK+XDEL      | reader |
//!   +---------+                         b              XADD ... XREAD by cursor            | taker  |
//!   | beat    | presence, takeover      r:<path>:<boot> XADD ... XREAD by cursor           +--------+
//!   +---------+
//! ```
//!
//! - The *writer* drains the queue, packs what goes to one key into as few entries as possible, sends all as one
//!   batch and takes the next batch when this one is answered: no timer, no latency added at one call. With each
//!   destination it asks in the same batch whether somebody is alive there. It owns the connection: when that breaks
//!   it makes another, registers again and raises the generation; what was not acknowledged goes again with the
//!   same ids.
//! - The *reader* blocks on one connection over the node's requests, its shard's broadcasts and the process' replies.
//!   Requests pass through the *feeder*, so that replies never wait behind them. Reads take nothing away: an entry
//!   goes when its requests are completed. After each reconnect the cursor of requests is set back to the
//!   beginning (what is left there is not done), and the others are compared with the stream's last id.
//! - The *taker* blocks on another connection over the groups of its services, in every scope above it.
//! - The *beat* renews presence and the life of the queues, takes over what dead members had taken, and gives up
//!   on requests that killed their workers again and again (dead letters).
//!
//! No clock of a client is trusted: ages come from the ids of entries, which carry Redis' time.
//! - Recorded answers and tickets (`records.rs`) go through the writer too.
//!
//! Behind it stands one server, the master that sentinels name, or a cluster (`connect.rs` is the supervisor of
//! connections); with TLS or without. What is lost when one of them dies: `docs/rpc/connections.md`.

mod beat;
mod cluster;
mod config;
mod connect;
mod countdown;
#[cfg(test)]
mod fuzz;
mod keys;
mod last_word;
mod lease;
mod pack;
mod presence;
mod reader;
mod records;
mod results;
mod scripts;
mod sentinel;
mod start;
mod taker;
mod tls;
mod writer;

pub use config::RedisConfig;

use super::{
    Attached, Completion, Delivery, Destination, Inbound, Keeper, Link, ResultStore, SendError, SendWatch,
    Sent, Transport,
};
use crate::{
    BusError, Durability, MemberInfo, Route,
    election::{LeaseAnswer, LeaseOp},
};
use async_trait::async_trait;
use bytes::Bytes;
use connect::{Commands, Connector};
use countdown::Countdown;
use keys::Keys;
use last_word::LastWord;
use pack::Entry;
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use vbm_core::{Name, NodePath};
use writer::{Lane, Op, SendOp, Target};

/// The most bytes of frames that wait in a process for the writer, and so the most that one batch holds.
const QUEUE_MAX_BYTES: usize = 32 * 1024 * 1024;
/// What a frame counts besides its own bytes.
const FRAME_OVERHEAD_BYTES: usize = 512;
/// How long closing waits for the last writes and for the clean-up.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a question about presence waits for a connection.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(5);

/// The atomics of the hand-made pieces, which a test replaces by those of loom.
mod atomic {
    pub(super) use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
}

/// A Redis server that was found fit to carry the bus.
#[derive(Clone, Debug)]
pub struct RedisTransport {
    config: RedisConfig,
    connector: Connector,
    warnings: Vec<String>,
}

impl RedisTransport {
    /// Reaches the server, or every master of a cluster, and checks that it can carry the bus: version 7.0 or later,
    /// a master, of the kind that the address names, with memory and room for clients, without eviction. What
    /// works but can lose something, such as no persistence, is a [warning](Self::warnings).
    ///
    /// # Errors
    /// [`BusError::Unreachable`] and [`BusError::Unsuitable`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn connect(config: RedisConfig) -> Result<Self, BusError> {
        let (connector, warnings) = start::check(&config).await?;
        for warning in &warnings {
            tracing::warn!("{warning}");
        }
        Ok(Self {
            config,
            connector,
            warnings,
        })
    }

    /// What is not as it should be with the server, one sentence each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

impl From<RedisTransport> for Arc<dyn Transport> {
    fn from(transport: RedisTransport) -> Self {
        Arc::new(transport)
    }
}

#[async_trait]
impl Transport for RedisTransport {
    async fn attach(&self, member: MemberInfo, inbound: Inbound) -> Result<Attached, BusError> {
        let unreachable = |down: connect::Down| BusError::Unreachable {
            server: self.config.to_string(),
            why: down.0,
        };
        let home = Keys::new(&self.config.namespace).node(&member.path);
        let connector = self.connector.clone().at_home(&home);
        let mut commands = connector.commands().await.map_err(unreachable)?;
        let (ops, queue) = mpsc::unbounded_channel();
        let (replicated, replicated_queue) = mpsc::unbounded_channel();
        let token = presence::token(&mut commands).await.map_err(unreachable)?;
        let core = Arc::new(Core::new(
            &self.config,
            connector,
            (member, token),
            inbound,
            (ops, replicated),
        ));
        let cursor = presence::register(&core, &mut commands, presence::Claim::Take)
            .await
            .map_err(unreachable)?
            .map_err(|refusal| refusal.into_error(&self.config, &core.me.path))?;
        core.conn.send_replace(Some(commands.clone()));
        let nonce = core.now_micros();
        let (feed, fed) = mpsc::unbounded_channel();
        core.spawn(writer::run(core.clone(), Lane::Fast, queue, Some(commands)));
        core.spawn(writer::run(
            core.clone(),
            Lane::Replicated,
            replicated_queue,
            None,
        ));
        let watched = core.clone();
        core.spawn(async move { watched.connector.watch(watched.seed).await });
        core.spawn(reader::feed(core.clone(), fed));
        core.spawn(reader::run(core.clone(), feed, cursor));
        core.spawn(beat::run(core.clone()));
        let queues = presence::served(&core.me);
        let queues = queues
            .iter()
            .map(|(scope, service)| core.keys.any(scope, service).into());
        for queues in core.connector.apart(queues.collect()) {
            if !queues.is_empty() {
                core.spawn(taker::run(core.clone(), queues));
            }
        }
        core.tasks.close();
        Ok(Attached::new(Arc::new(RedisLink { core }), nonce))
    }
}

/// What the tasks of one attachment share.
struct Core {
    server: String,
    keys: Keys,
    connector: Connector,
    me: MemberInfo,
    /// This attachment in presence: another one of the same process has another.
    token: String,
    consumer: String,
    inbound: Inbound,
    /// Unbounded in itself: sends hold a permit of `room`, completions are as many as deliveries, which are bounded.
    ops: mpsc::UnboundedSender<Op>,
    /// The same for frames that a replica must have.
    replicated: mpsc::UnboundedSender<Op>,
    room: Arc<Semaphore>,
    /// The writer's connection, while there is one.
    conn: watch::Sender<Option<Commands>>,
    generations: watch::Sender<u64>,
    ended: watch::Sender<Option<BusError>>,
    /// Another attachment has the path.
    disowned: AtomicBool,
    /// Takes no more requests.
    retired: CancellationToken,
    stop: CancellationToken,
    tasks: TaskTracker,
    /// Redis' time in microseconds at a point of this process' clock.
    clock: Mutex<(Instant, u64)>,
    /// Entries given to the bus and not yet removed from Redis: key and id.
    held: Mutex<HashSet<(Arc<str>, String)>>,
    /// Up to where replies were read.
    inbox_cursor: Mutex<String>,
    /// Requests between the reader and the bus.
    backlog: AtomicUsize,
    /// The destination of each queue that this member serves.
    homes: HashMap<String, Arc<Route>>,
    /// What was written up to then, in Redis' ms, may have been delivered to another process: before this one came,
    /// or before Redis forgot what was done.
    suspect_ms: AtomicU64,
    seed: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Core {
    fn new(
        config: &RedisConfig,
        connector: Connector,
        (me, token): (MemberInfo, String),
        inbound: Inbound,
        (ops, replicated): (mpsc::UnboundedSender<Op>, mpsc::UnboundedSender<Op>),
    ) -> Self {
        let consumer = keys::consumer(&me.path, &me.boot_id);
        let mut seed = DefaultHasher::new();
        consumer.hash(&mut seed);
        let keys = Keys::new(&config.namespace);
        let mut homes = HashMap::from([(keys.node(&me.path), Arc::new(Route::node(me.path.clone())))]);
        for (scope, service) in presence::served(&me) {
            homes.insert(keys.any(&scope, &service), Arc::new(Route::any(scope, service)));
        }
        Self {
            server: config.to_string(),
            keys,
            connector,
            me,
            token,
            consumer,
            inbound,
            ops,
            replicated,
            room: Arc::new(Semaphore::new(QUEUE_MAX_BYTES)),
            conn: watch::Sender::new(None),
            generations: watch::Sender::new(1),
            ended: watch::Sender::new(None),
            disowned: AtomicBool::new(false),
            retired: CancellationToken::new(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            clock: Mutex::new((Instant::now(), 0)),
            held: Mutex::default(),
            inbox_cursor: Mutex::new("0-0".into()),
            backlog: AtomicUsize::new(0),
            homes,
            suspect_ms: AtomicU64::new(0),
            seed: seed.finish(),
        }
    }

    /// Runs a task until the attachment ends.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            stop.run_until_cancelled(task).await;
        });
    }

    /// Redis' time, as this process reckons it.
    fn now_micros(&self) -> u64 {
        let (at, micros) = *lock(&self.clock);
        micros.saturating_add(u64::try_from(at.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    fn now_ms(&self) -> u64 {
        self.now_micros() / 1_000
    }

    /// When an entry was written, on this process' clock.
    fn written_at(&self, id: &str) -> Instant {
        let now = Instant::now();
        let age = pack::parse_id(id).map_or(0, |(ms, _)| self.now_ms().saturating_sub(ms));
        now.checked_sub(Duration::from_millis(age)).unwrap_or(now)
    }

    /// Gives an entry's requests for the bus; nothing when it has them already. Garbage is removed. `again`: somebody
    /// else may have had it before.
    fn deliveries(self: &Arc<Self>, key: &Arc<str>, entry: Entry, group: bool, again: bool) -> Vec<Delivery> {
        if !lock(&self.held).insert((key.clone(), entry.id.clone())) {
            return Vec::new();
        }
        if entry.frames.is_empty() {
            tracing::warn!(%key, id = entry.id, "an entry that is no frame of the bus was removed");
            self.complete(key.clone(), entry.id, group);
            return Vec::new();
        }
        let since = self.written_at(&entry.id);
        let held = Arc::new(Held {
            core: self.clone(),
            key: key.clone(),
            again: again || self.is_suspect(&entry.id),
            id: entry.id,
            group,
            home: self.homes.get(&**key).cloned(),
            left: Countdown::new(entry.frames.len()),
        });
        let delivery = |frame| Delivery {
            frame,
            since,
            done: Completion::new(held.clone()),
        };
        entry.frames.into_iter().map(delivery).collect()
    }

    /// Whether an entry is so old that another process may have had it.
    fn is_suspect(&self, id: &str) -> bool {
        pack::parse_id(id).is_none_or(|(ms, _)| ms <= self.suspect_ms.load(Ordering::Relaxed))
    }

    fn complete(&self, key: Arc<str>, id: String, group: bool) {
        // Fails only when the writer has ended; the entry then stays for the next process.
        drop(self.ops.send(Op::Complete { key, id, group }));
    }

    /// Makes the writer look whether its connection lives.
    fn probe(&self) {
        drop(self.ops.send(Op::Probe));
    }

    fn displaced(&self, by: &str) {
        let error = BusError::Displaced {
            path: self.me.path.to_string(),
            by: by.to_owned(),
        };
        tracing::error!(%error, "this process stops serving");
        self.retired.cancel();
        self.ended.send_replace(Some(error));
    }

    /// The writer's connection, once there is one.
    async fn commands(&self) -> Result<Commands, BusError> {
        let mut conn = self.conn.subscribe();
        let waited = timeout(QUESTION_TIMEOUT, conn.wait_for(Option::is_some)).await;
        let found = match waited {
            Ok(Ok(conn)) => conn.clone(),
            _ => None,
        };
        found.ok_or_else(|| BusError::Unreachable {
            server: self.server.clone(),
            why: format!("there was no connection for {} s", QUESTION_TIMEOUT.as_secs()),
        })
    }

    /// Runs a question about presence over the writer's connection, again when that breaks.
    async fn ask(&self, question: impl Fn() -> redis::Cmd + Send) -> Result<redis::Value, BusError> {
        let ask = async {
            loop {
                let mut commands = self.commands().await?;
                match commands.one(question()).await {
                    Ok(Ok(value)) => return Ok(value),
                    Ok(Err(why)) => {
                        return Err(BusError::Unreachable {
                            server: self.server.clone(),
                            why,
                        });
                    }
                    Err(down) => {
                        tracing::debug!(why = down.0, "a question is asked again");
                        self.conn.send_replace(None);
                        self.probe();
                    }
                }
            }
        };
        timeout(QUESTION_TIMEOUT, ask).await.unwrap_or_else(|_| {
            Err(BusError::Unreachable {
                server: self.server.clone(),
                why: "it does not answer".into(),
            })
        })
    }

    /// Who is alive below `scope` and offers `service`, by path.
    async fn alive(
        &self,
        scope: &NodePath,
        service: Option<&crate::Service>,
    ) -> Result<Vec<NodePath>, BusError> {
        let key = self.keys.alive(scope, service);
        let value = self
            .ask(|| {
                let mut command = redis::cmd("ZRANGEBYSCORE");
                command.arg(&key).arg(self.now_ms()).arg("+inf");
                command
            })
            .await?;
        let mut paths: Vec<NodePath> = pack::texts(&value)
            .iter()
            .filter_map(|text| text.parse().ok())
            .collect();
        paths.sort();
        Ok(paths)
    }
}

/// Completes an entry when all its requests are.
struct Held {
    core: Arc<Core>,
    key: Arc<str>,
    id: String,
    group: bool,
    home: Option<Arc<Route>>,
    again: bool,
    left: Countdown,
}

impl Keeper for Held {
    fn completed(&self) {
        if self.left.done() {
            self.core.complete(self.key.clone(), self.id.clone(), self.group);
        }
    }

    fn home(&self) -> Option<Arc<Route>> {
        self.home.clone()
    }

    fn again(&self) -> bool {
        self.again
    }
}

/// The room that a frame takes in the queue.
fn room_for(frame: &Bytes) -> u32 {
    u32::try_from((frame.len() + FRAME_OVERHEAD_BYTES).min(QUEUE_MAX_BYTES)).unwrap_or(u32::MAX)
}

struct RedisLink {
    core: Arc<Core>,
}

impl RedisLink {
    /// Puts one frame into the writer's queue and waits until Redis has it.
    async fn enqueue(
        &self,
        target: Target,
        frame: Bytes,
        until: Instant,
        durability: Durability,
    ) -> Result<(), SendError> {
        let late = || {
            SendError::Expired(format!(
                "the queue of this process ({} does not answer)",
                self.core.server
            ))
        };
        let permit =
            match timeout_at(until, self.core.room.clone().acquire_many_owned(room_for(&frame))).await {
                Ok(Ok(permit)) => permit,
                Ok(Err(_closed)) => return Err(SendError::Closed),
                Err(_late) => return Err(late()),
            };
        let (done, answer) = oneshot::channel();
        let claim = Arc::new(LastWord::new());
        let op = SendOp::new(target, frame, until, permit).answering(done, claim.clone());
        let lane = match durability {
            Durability::Fast => &self.core.ops,
            Durability::Replicated => &self.core.replicated,
        };
        lane.send(Op::Send(op)).map_err(|_| SendError::Closed)?;
        let mut answer = std::pin::pin!(answer);
        match timeout_at(until, &mut answer).await {
            Ok(answer) => answer.unwrap_or(Err(SendError::Closed)),
            Err(_late) if claim.give_up() => Err(late()),
            Err(_late) => {
                // Either it was answered this very moment, or it is on its way to Redis.
                answer.try_recv().unwrap_or_else(|_| {
                    Err(SendError::Uncertain(format!(
                        "{} did not say that it has it",
                        self.core.server
                    )))
                })
            }
        }
    }

    async fn send_to_all(
        &self,
        scope: &NodePath,
        service: &crate::Service,
        frame: Bytes,
        until: Instant,
        durability: Durability,
    ) -> Result<Sent, SendError> {
        let members =
            self.core
                .alive(scope, Some(service))
                .await
                .map_err(|error| match until <= Instant::now() {
                    true => SendError::Expired(error.to_string()),
                    false => SendError::Overloaded(error.to_string()),
                })?;
        if members.is_empty() {
            return Err(SendError::NoRoute(format!(
                "no live member below {scope} offers {service}"
            )));
        }
        let shards: BTreeSet<NodePath> = members.iter().map(keys::shard).collect();
        let sends = shards.into_iter().map(|shard| {
            let target = Target::Shard {
                shard,
                scope: scope.clone(),
                service: service.clone(),
            };
            self.enqueue(target, frame.clone(), until, durability)
        });
        for sent in futures::future::join_all(sends).await {
            sent?;
        }
        Ok(Sent { members })
    }

    fn push(
        &self,
        to: Destination,
        frame: Bytes,
        ttl: Duration,
        permit: tokio::sync::OwnedSemaphorePermit,
        patient: bool,
    ) {
        let until = Instant::now() + ttl;
        let target = match Target::of(to) {
            Ok(target) => target,
            Err((scope, service)) => {
                let link = Self {
                    core: self.core.clone(),
                };
                drop(permit);
                self.core.spawn(async move {
                    if let Err(error) = link
                        .send_to_all(&scope, &service, frame, until, Durability::Fast)
                        .await
                    {
                        tracing::debug!(?error, "a broadcast that nobody waits for was not sent");
                    }
                });
                return;
            }
        };
        let op = SendOp::new(target, frame, until, permit).patient(patient);
        // Fails only when the writer has ended.
        drop(self.core.ops.send(Op::Send(op)));
    }

    fn try_push(&self, to: Destination, frame: Bytes, ttl: Duration, patient: bool) -> bool {
        match self.core.room.clone().try_acquire_many_owned(room_for(&frame)) {
            Ok(permit) if !self.core.stop.is_cancelled() => {
                self.push(to, frame, ttl, permit, patient);
                true
            }
            _ => false,
        }
    }
}

#[async_trait]
impl Link for RedisLink {
    async fn send(&self, to: &Destination, frame: Bytes, ttl: Duration) -> Result<Sent, SendError> {
        self.send_durable(to, frame, ttl, Durability::Fast).await
    }

    async fn send_durable(
        &self,
        to: &Destination,
        frame: Bytes,
        ttl: Duration,
        durability: Durability,
    ) -> Result<Sent, SendError> {
        let until = Instant::now() + ttl;
        match Target::of(to.clone()) {
            Ok(target) => {
                let enqueued = self.enqueue(target, frame, until, durability).await;
                enqueued.map(|()| Sent::default())
            }
            Err((scope, service)) => self.send_to_all(&scope, &service, frame, until, durability).await,
        }
    }

    fn try_send(&self, to: &Destination, frame: &Bytes, until: Instant, watch: &Arc<dyn SendWatch>) -> bool {
        let Ok(target) = Target::of(to.clone()) else {
            return false;
        };
        let Ok(permit) = self.core.room.clone().try_acquire_many_owned(room_for(frame)) else {
            return false;
        };
        let op = SendOp::new(target, frame.clone(), until, permit).watched(watch.clone());
        self.core.ops.send(Op::Send(op)).is_ok()
    }

    async fn post(&self, to: Destination, frame: Bytes, ttl: Duration) {
        if let Ok(permit) = self.core.room.clone().acquire_many_owned(room_for(&frame)).await {
            self.push(to, frame, ttl, permit, false);
        }
    }

    fn try_post(&self, to: Destination, frame: Bytes, ttl: Duration) -> bool {
        self.try_push(to, frame, ttl, false)
    }

    fn try_resend(&self, to: Destination, frame: Bytes, ttl: Duration) -> bool {
        self.try_push(to, frame, ttl, true)
    }

    async fn members(&self, scope: &NodePath) -> Result<Vec<MemberInfo>, BusError> {
        presence::members(&self.core, scope).await
    }

    async fn lease(&self, name: &Name, op: &LeaseOp) -> Result<LeaseAnswer, BusError> {
        lease::ask(&self.core, name, op).await
    }

    fn generations(&self) -> watch::Receiver<u64> {
        self.core.generations.subscribe()
    }

    fn ended(&self) -> watch::Receiver<Option<BusError>> {
        self.core.ended.subscribe()
    }

    async fn retire(&self) {
        self.core.retired.cancel();
        if timeout(CLOSE_TIMEOUT, presence::retire(&self.core))
            .await
            .is_err()
        {
            tracing::warn!("presence could not be taken back; it runs out by itself");
        }
    }

    async fn close(&self) {
        let (done, flushed) = oneshot::channel();
        let last = async {
            if self.core.ops.send(Op::Flushed(done)).is_ok() && flushed.await.is_ok() {
                presence::forget(&self.core).await;
            }
        };
        if timeout(CLOSE_TIMEOUT, last).await.is_err() {
            tracing::warn!(
                "{} did not answer while the bus was closed; its queues run out by themselves",
                self.core.server
            );
        }
        self.core.room.close();
        self.core.stop.cancel();
        self.core.tasks.wait().await;
    }

    fn sever(&self) {
        self.core.retired.cancel();
        self.core.room.close();
        self.core.stop.cancel();
    }

    fn results(&self) -> Option<Arc<dyn ResultStore>> {
        let core = self.core.clone();
        Some(Arc::new(results::RedisResults { core }))
    }
}

impl Target {
    /// Where a frame is written, or the scope and service of a broadcast, which needs presence first.
    fn of(to: Destination) -> Result<Self, (NodePath, crate::Service)> {
        Ok(match to {
            Destination::Route(Route::Node(path)) => Self::Node(path),
            Destination::Route(Route::Any { scope, service }) => Self::Any { scope, service },
            Destination::Route(Route::All { scope, service }) => return Err((scope, service)),
            Destination::Inbox { path, boot_id } => Self::Inbox { path, boot_id },
        })
    }
}
