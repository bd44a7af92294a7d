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
//! - The *beat* renews presence, the life of the queues and the lease of what handlers work on.
//! - The *rescuer* takes over what dead members had taken. The *quarantine* runs requests alone whose workers died, and
//!   gives up on those that kill them again and again (dead letters).
//! - What steers (cancels, the control lane) has a stream of its own, read and written before all else.
//!
//! No clock of a client is trusted: ages come from the ids of entries, which carry Redis' time.
//! - Recorded answers and tickets (`records.rs`) go through the writer too.
//!
//! Behind it stands one server, the master that sentinels name, or a cluster (`connect.rs` is the supervisor of
//! connections); with TLS or without. What is lost when one of them dies: `docs/rpc/connections.md`.

pub mod acl;
mod admin;
mod beat;
mod cluster;
mod config;
mod connect;
mod countdown;
mod depth;
#[cfg(test)]
mod fuzz;
mod guard;
mod keys;
mod last_word;
mod lease;
mod leftovers;
mod letters;
mod pack;
mod presence;
mod quarantine;
mod reader;
mod records;
mod rescue;
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
    admin::{Admin, Stage},
    auth::{Counts, SecretIds},
    election::{LeaseAnswer, LeaseOp},
    envelope,
};
use admin::RedisAdmin;
use async_trait::async_trait;
use bytes::Bytes;
use connect::{Commands, Connector};
use countdown::Countdown;
use guard::Guard;
use keys::Keys;
use last_word::LastWord;
use letters::Letter;
use pack::Entry;
use quarantine::Suspect;
use std::{
    collections::{BTreeSet, HashMap},
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
/// The same for the control lane.
const CONTROL_QUEUE_MAX_BYTES: usize = 4 * 1024 * 1024;
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
    counts: Arc<Counts>,
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
            counts: Arc::default(),
        })
    }

    /// What is not as it should be with the server, one sentence each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// How many entries its attachments sealed, opened and refused; all zero with security off.
    pub fn entries(&self) -> &Counts {
        &self.counts
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
        let guard = Guard::new(
            &self.config.security,
            &self.config.namespace,
            &member,
            &self.counts,
        )?;
        let guarded = guard.is_some();
        let home = Keys::new(&self.config.namespace).node(&member.path);
        let connector = self.connector.clone().at_home(&home);
        let mut commands = connector.commands().await.map_err(unreachable)?;
        let (ops, queue) = mpsc::unbounded_channel();
        let (replicated, replicated_queue) = mpsc::unbounded_channel();
        let (urgent, urgent_queue) = mpsc::unbounded_channel();
        let (suspects, suspected) = mpsc::unbounded_channel();
        let token = presence::token(&mut commands).await.map_err(unreachable)?;
        let core = Arc::new(Core::new(
            &self.config,
            connector,
            (member, token),
            inbound,
            Queues {
                ops,
                urgent,
                replicated,
                suspects,
            },
            guard,
        ));
        let cursor = presence::register(&core, &mut commands, presence::Claim::Take)
            .await
            .map_err(unreachable)?
            .map_err(|refusal| refusal.into_error(&self.config, &core.me.path))?;
        core.conn.send_replace(Some(commands.clone()));
        let nonce = core.now_micros();
        let (feed, fed) = mpsc::unbounded_channel();
        core.spawn(writer::run(
            core.clone(),
            Lane::Fast,
            (Some(urgent_queue), queue),
            Some(commands),
        ));
        core.spawn(writer::run(
            core.clone(),
            Lane::Replicated,
            (None, replicated_queue),
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
        if !core.me.services.is_empty() {
            core.spawn(rescue::run(core.clone()));
        }
        core.spawn(quarantine::run(core.clone(), suspected));
        core.tasks.close();
        let mut attached = Attached::new(Arc::new(RedisLink { core }), nonce);
        if guarded {
            let ids = SecretIds::new().map_err(|e| BusError::Untrusted {
                path: self.config.to_string(),
                why: e.to_string(),
            })?;
            attached = attached.with_ids(Arc::new(ids));
        }
        Ok(attached)
    }

    fn admin(&self) -> Option<Arc<dyn Admin>> {
        Some(Arc::new(RedisAdmin::new(&self.config, self.connector.clone())))
    }
}

/// What the tasks of one attachment hand to each other. Unbounded in themselves: sends hold a permit of a room,
/// completions and suspects are as many as deliveries, which are bounded.
struct Queues {
    ops: mpsc::UnboundedSender<Op>,
    urgent: mpsc::UnboundedSender<Op>,
    /// Frames that a replica must have.
    replicated: mpsc::UnboundedSender<Op>,
    suspects: mpsc::UnboundedSender<Suspect>,
}

/// An entry that was given to the bus and is not yet removed from Redis.
struct HeldEntry {
    /// When the read was begun that brought it.
    asked: Instant,
    group: bool,
    /// It has been taken over by another: its completion is nobody's business any more.
    lost: bool,
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
    queues: Queues,
    room: Arc<Semaphore>,
    /// The room of the control lane.
    urgent_room: Arc<Semaphore>,
    depth_limit: usize,
    /// When somebody's presence is expected to run out: the rescuer looks then.
    deaths: watch::Sender<Option<Instant>>,
    /// From when on absence of others is believed after an outage.
    settled: Mutex<Instant>,
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
    /// By key and id.
    held: Mutex<HashMap<Arc<str>, HashMap<String, HeldEntry>>>,
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
    /// Entries were taken over and could not be admitted: the taker reads again what is its own.
    reread: AtomicBool,
    /// With security on: seals and opens entries.
    guard: Option<Guard>,
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
        queues: Queues,
        guard: Option<Guard>,
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
            queues,
            room: Arc::new(Semaphore::new(QUEUE_MAX_BYTES)),
            urgent_room: Arc::new(Semaphore::new(CONTROL_QUEUE_MAX_BYTES)),
            depth_limit: config.depth_limit,
            deaths: watch::Sender::new(None),
            settled: Mutex::new(Instant::now()),
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
            reread: AtomicBool::new(false),
            guard,
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

    /// Notes that this process has an entry; `false` when it had it already.
    fn hold(&self, key: &Arc<str>, id: &str, asked: Instant, group: bool) -> bool {
        let mut held = lock(&self.held);
        let entry = HeldEntry {
            asked,
            group,
            lost: false,
        };
        match held.get_mut(key) {
            Some(ids) if ids.contains_key(id) => return false,
            Some(ids) => drop(ids.insert(id.to_owned(), entry)),
            None => drop(held.insert(key.clone(), HashMap::from([(id.to_owned(), entry)]))),
        }
        true
    }

    /// Of entries with a group that were read more than `age` ago and are still worked on: their keys and ids.
    fn held_longer(&self, age: Duration) -> Vec<(Arc<str>, Vec<String>)> {
        let held = lock(&self.held);
        let old = |(id, entry): (&String, &HeldEntry)| {
            (entry.group && !entry.lost && entry.asked.elapsed() >= age).then(|| id.clone())
        };
        let by_key = held
            .iter()
            .map(|(key, ids)| (key.clone(), ids.iter().filter_map(old).collect::<Vec<_>>()));
        by_key.filter(|(_, ids)| !ids.is_empty()).collect()
    }

    /// These entries are another one's now.
    fn lose(&self, key: &str, ids: &[&str]) {
        tracing::warn!(
            key,
            entries = ids.len(),
            "requests that this process works on were taken over by another"
        );
        let mut held = lock(&self.held);
        let Some(entries) = held.get_mut(key) else { return };
        for id in ids {
            if let Some(entry) = entries.get_mut(*id) {
                entry.lost = true;
            }
        }
    }

    /// Runs a held entry's requests alone, in its turn.
    fn suspect(&self, suspect: Suspect) {
        if self.hold(&suspect.key, &suspect.entry.id, Instant::now(), suspect.group) {
            if !self.admits(&suspect.key, !suspect.group, &suspect.entry) {
                return self.complete(suspect.key, suspect.entry.id, suspect.group);
            }
            // Fails only when the process takes no more; the entry then stays.
            drop(self.queues.suspects.send(suspect));
        }
    }

    fn settled_at(&self) -> Instant {
        *lock(&self.settled)
    }

    /// Gives an entry's requests for the bus; nothing when it has them already. Garbage goes to the dead letters.
    /// `asked` is when the read was begun that brought it, and the so-many-th delivery it is. `again`:
    /// somebody else may have had it before.
    fn deliveries(
        self: &Arc<Self>,
        key: &Arc<str>,
        entry: Entry,
        (asked, deliveries): (Instant, u32),
        group: bool,
        again: bool,
    ) -> Vec<Delivery> {
        if !self.hold(key, &entry.id, asked, group) {
            return Vec::new();
        }
        // A group's entries were admitted as they were read; those that were not are judged here.
        if !self.admits(key, !group, &entry) {
            self.complete(key.clone(), entry.id, group);
            return Vec::new();
        }
        if entry.frames.is_empty() {
            tracing::warn!(%key, id = entry.id, "an entry that is no frame of the bus was removed");
            self.push(Op::Bury(Letter {
                queue: key.clone(),
                entry: entry.id.clone(),
                frame: Bytes::new(),
                reason: "not a frame of the bus: its entry cannot be read".into(),
                deliveries,
                worker: self.consumer.clone(),
            }));
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
            deliveries,
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
        self.push(Op::Complete { key, id, group });
    }

    fn push(&self, op: Op) {
        drop(self.queues.ops.send(op));
    }

    /// Puts a frame into the queue of its lane.
    fn push_send(&self, op: SendOp, durability: Durability) -> bool {
        let queue = match (durability, op.is_control()) {
            (Durability::Replicated, _) => &self.queues.replicated,
            (Durability::Fast, true) => &self.queues.urgent,
            (Durability::Fast, false) => &self.queues.ops,
        };
        queue.send(Op::Send(op)).is_ok()
    }

    fn room_of(&self, target: &Target) -> &Arc<Semaphore> {
        match target {
            Target::Control(_) => &self.urgent_room,
            _ => &self.room,
        }
    }

    /// Makes the writer look whether its connection lives.
    fn probe(&self) {
        self.push(Op::Probe);
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
    deliveries: u32,
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

    fn buried(&self, frame: Bytes, reason: &str) {
        self.core.push(Op::Bury(Letter {
            queue: self.key.clone(),
            entry: self.id.clone(),
            frame,
            reason: reason.to_owned(),
            deliveries: self.deliveries,
            worker: self.core.consumer.clone(),
        }));
        self.completed();
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
        let permit = match timeout_at(
            until,
            self.core
                .room_of(&target)
                .clone()
                .acquire_many_owned(room_for(&frame)),
        )
        .await
        {
            Ok(Ok(permit)) => permit,
            Ok(Err(_closed)) => return Err(SendError::Closed),
            Err(_late) => return Err(late()),
        };
        let (done, answer) = oneshot::channel();
        let claim = Arc::new(LastWord::new());
        let op = SendOp::new(target, frame, until, permit).answering(done, claim.clone());
        if !self.core.push_send(op, durability) {
            return Err(SendError::Closed);
        }
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
        target: Result<Target, (NodePath, crate::Service)>,
        frame: Bytes,
        ttl: Duration,
        permit: tokio::sync::OwnedSemaphorePermit,
        patient: bool,
    ) {
        let until = Instant::now() + ttl;
        let target = match target {
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
        let _ended = !self.core.push_send(op, Durability::Fast);
    }

    fn try_push(&self, to: Destination, frame: Bytes, ttl: Duration, patient: bool) -> bool {
        let target = Target::of(to, &frame);
        let room = target
            .as_ref()
            .map_or(&self.core.room, |target| self.core.room_of(target));
        match room.clone().try_acquire_many_owned(room_for(&frame)) {
            Ok(permit) if !self.core.stop.is_cancelled() => {
                self.push(target, frame, ttl, permit, patient);
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
        match Target::of(to.clone(), &frame) {
            Ok(target) => {
                let enqueued = self.enqueue(target, frame, until, durability).await;
                enqueued.map(|()| Sent::default())
            }
            Err((scope, service)) => self.send_to_all(&scope, &service, frame, until, durability).await,
        }
    }

    fn try_send(&self, to: &Destination, frame: &Bytes, until: Instant, watch: &Arc<dyn SendWatch>) -> bool {
        let Ok(target) = Target::of(to.clone(), frame) else {
            return false;
        };
        let room = self.core.room_of(&target).clone();
        let Ok(permit) = room.try_acquire_many_owned(room_for(frame)) else {
            return false;
        };
        let op = SendOp::new(target, frame.clone(), until, permit).watched(watch.clone());
        self.core.push_send(op, Durability::Fast)
    }

    async fn post(&self, to: Destination, frame: Bytes, ttl: Duration) {
        let target = Target::of(to, &frame);
        let room = target
            .as_ref()
            .map_or(&self.core.room, |target| self.core.room_of(target));
        if let Ok(permit) = room.clone().acquire_many_owned(room_for(&frame)).await {
            self.push(target, frame, ttl, permit, false);
        }
    }

    fn try_post(&self, to: Destination, frame: Bytes, ttl: Duration) -> bool {
        self.try_push(to, frame, ttl, false)
    }

    fn try_resend(&self, to: Destination, frame: Bytes, ttl: Duration) -> bool {
        self.try_push(to, frame, ttl, true)
    }

    fn note(&self, call: uuid::Uuid, stage: Stage, detail: String) {
        let me = &self.core.me;
        self.core.push(Op::Note(writer::Note {
            call,
            stage,
            by: format!("{} ({})", me.path, me.boot_id),
            detail,
        }));
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
            if self.core.queues.ops.send(Op::Flushed(done)).is_ok() && flushed.await.is_ok() {
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
        self.core.urgent_room.close();
        self.core.stop.cancel();
        self.core.tasks.wait().await;
    }

    fn sever(&self) {
        // First of all: who retires in peace takes back that a request was begun, and a crash must not.
        self.core.stop.cancel();
        self.core.retired.cancel();
        self.core.urgent_room.close();
        self.core.room.close();
    }

    fn results(&self) -> Option<Arc<dyn ResultStore>> {
        let core = self.core.clone();
        Some(Arc::new(results::RedisResults { core }))
    }
}

impl Target {
    /// Where a frame is written, or the scope and service of a broadcast, which needs presence first.
    fn of(to: Destination, frame: &[u8]) -> Result<Self, (NodePath, crate::Service)> {
        Ok(match to {
            Destination::Route(Route::Node(path)) if envelope::is_control(frame) => Self::Control(path),
            Destination::Route(Route::Node(path)) => Self::Node(path),
            Destination::Route(Route::Any { scope, service }) => Self::Any { scope, service },
            Destination::Route(Route::All { scope, service }) => return Err((scope, service)),
            Destination::Inbox { path, boot_id } => Self::Inbox { path, boot_id },
        })
    }
}
