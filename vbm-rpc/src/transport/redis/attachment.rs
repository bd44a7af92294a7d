//! What the tasks of one attachment share.

use super::{
    clock::Clock,
    config::{RedisConfig, Topology},
    connect::{Commands, Connector},
    guard::Guard,
    held::HeldEntry,
    keys::{self, Keys},
    op::{Op, SendOp, Target},
    pack, presence,
    quarantine::Suspect,
};
use crate::{BusError, Durability, MemberInfo, Route, transport::Inbound};
use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize},
    },
    time::Duration,
};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    time::{Instant, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use vbm_core::NodePath;

/// The most bytes of frames that wait in a process for the writer, and so the most that one batch holds.
pub(super) const QUEUE_MAX_BYTES: usize = 32 * 1024 * 1024;
/// The same for the control lane.
const CONTROL_QUEUE_MAX_BYTES: usize = 4 * 1024 * 1024;
/// How long a question about presence waits for a connection.
pub(super) const QUESTION_TIMEOUT: Duration = Duration::from_secs(5);

/// What the tasks of one attachment hand to each other. Unbounded in themselves: sends hold a permit of a room,
/// completions and suspects are as many as deliveries, which are bounded.
pub(super) struct Queues {
    pub(super) ops: mpsc::UnboundedSender<Op>,
    pub(super) urgent: mpsc::UnboundedSender<Op>,
    /// Frames that a replica must have.
    pub(super) replicated: mpsc::UnboundedSender<Op>,
    pub(super) suspects: mpsc::UnboundedSender<Suspect>,
}

/// What the tasks of one attachment share.
pub(super) struct Core {
    pub(super) server: String,
    pub(super) keys: Keys,
    pub(super) connector: Connector,
    pub(super) me: MemberInfo,
    /// This attachment in presence: another one of the same process has another.
    pub(super) token: String,
    pub(super) consumer: String,
    pub(super) inbound: Inbound,
    pub(super) queues: Queues,
    pub(super) room: Arc<Semaphore>,
    /// The room of the control lane.
    pub(super) urgent_room: Arc<Semaphore>,
    pub(super) depth_limit: usize,
    /// When somebody's presence is expected to run out: the rescuer looks then.
    pub(super) deaths: watch::Sender<Option<Instant>>,
    /// From when on absence of others is believed after an outage.
    pub(super) settled: Mutex<Instant>,
    /// The writer's connection, while there is one.
    pub(super) conn: watch::Sender<Option<Commands>>,
    pub(super) generations: watch::Sender<u64>,
    pub(super) ended: watch::Sender<Option<BusError>>,
    /// Another attachment has the path.
    pub(super) disowned: AtomicBool,
    /// Takes no more requests.
    pub(super) retired: CancellationToken,
    pub(super) stop: CancellationToken,
    pub(super) tasks: TaskTracker,
    pub(super) clock: Mutex<Clock>,
    /// Until when this member is surely in presence.
    pub(super) present_until: watch::Sender<Instant>,
    /// By key and id.
    pub(super) held: Mutex<HashMap<Arc<str>, HashMap<String, HeldEntry>>>,
    /// Up to where replies were read.
    pub(super) inbox_cursor: Mutex<String>,
    /// Requests between the reader and the bus.
    pub(super) backlog: AtomicUsize,
    /// The destination of each queue that this member serves.
    pub(super) homes: HashMap<String, Arc<Route>>,
    /// What was written up to then, in Redis' ms, may have been delivered to another process: before this one came,
    /// or before Redis forgot what was done.
    pub(super) suspect_ms: AtomicU64,
    pub(super) seed: u64,
    /// How often entries were taken over and could not be admitted: each taker then reads again what is its own.
    pub(super) reread: AtomicU64,
    /// With security on: seals and opens entries.
    pub(super) guard: Option<Guard>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Core {
    pub(super) fn new(
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
            let lanes = keys.lanes(&scope, &service);
            let home = Arc::new(Route::any(scope, service));
            homes.extend(lanes.map(|queue| (queue, home.clone())));
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
            clock: Mutex::default(),
            present_until: watch::Sender::new(Instant::now()),
            held: Mutex::default(),
            inbox_cursor: Mutex::new("0-0".into()),
            backlog: AtomicUsize::new(0),
            homes,
            suspect_ms: AtomicU64::new(0),
            seed: seed.finish(),
            reread: AtomicU64::new(0),
            guard,
        }
    }

    /// Runs a task until the attachment ends.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            stop.run_until_cancelled(task).await;
        });
    }

    /// Redis' time, as this process reckons it.
    pub(super) fn now_micros(&self) -> u64 {
        lock(&self.clock).read(Instant::now())
    }

    pub(super) fn now_ms(&self) -> u64 {
        self.now_micros() / 1_000
    }

    /// The latest that it can be now, for what is sent. Not in a cluster: the clock of another master may say something else.
    pub(super) fn sent_now(&self) -> Option<u64> {
        let clock = lock(&self.clock).read_at_most(Instant::now());
        let known = clock > 0 && !matches!(self.connector.topology(), Topology::Cluster { .. });
        known.then(|| clock.div_ceil(1_000))
    }

    /// When an entry was written, on this process' clock.
    pub(super) fn written_at(&self, id: &str) -> Instant {
        self.time_of(pack::parse_id(id).map(|(ms, _)| ms))
    }

    /// When a sender gave an entry to its connection, on this process' clock: it may have been on its way for long.
    pub(super) fn sent_at(&self, id: &str, sent_ms: Option<u64>) -> Instant {
        let written = pack::parse_id(id).map(|(ms, _)| ms);
        self.time_of(written.map(|ms| ms.min(sent_ms.unwrap_or(ms))))
    }

    /// A time of Redis, no later than now, on this process' clock.
    fn time_of(&self, ms: Option<u64>) -> Instant {
        let now = Instant::now();
        let age = ms.map_or(0, |ms| self.now_ms().saturating_sub(ms));
        now.checked_sub(Duration::from_millis(age)).unwrap_or(now)
    }

    pub(super) fn settled_at(&self) -> Instant {
        *lock(&self.settled)
    }

    pub(super) fn push(&self, op: Op) {
        drop(self.queues.ops.send(op));
    }

    /// Puts a frame into the queue of its lane.
    pub(super) fn push_send(&self, op: SendOp, durability: Durability) -> bool {
        let queue = match (durability, op.is_control()) {
            (Durability::Replicated, _) => &self.queues.replicated,
            (Durability::Fast, true) => &self.queues.urgent,
            (Durability::Fast, false) => &self.queues.ops,
        };
        queue.send(Op::Send(op)).is_ok()
    }

    pub(super) fn room_of(&self, target: &Target) -> &Arc<Semaphore> {
        match target.is_control() {
            true => &self.urgent_room,
            false => &self.room,
        }
    }

    /// Makes the writer look whether its connection lives.
    pub(super) fn probe(&self) {
        self.push(Op::Probe);
    }

    pub(super) fn displaced(&self, by: &str) {
        let error = BusError::Displaced {
            path: self.me.path.to_string(),
            by: by.to_owned(),
        };
        tracing::error!(%error, "this process stops serving");
        self.retired.cancel();
        self.ended.send_replace(Some(error));
    }

    /// The writer's connection, once there is one.
    pub(super) async fn commands(&self) -> Result<Commands, BusError> {
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
    pub(super) async fn ask(
        &self,
        question: impl Fn() -> redis::Cmd + Send,
    ) -> Result<redis::Value, BusError> {
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
    pub(super) async fn alive(
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
