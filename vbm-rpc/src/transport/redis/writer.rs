//! The writer: the only task that writes frames, and the supervisor of the connection.
//!
//! ```text
//!   queue --> take all there is --> plan (pure) --> one batch --> settle each op by its answers --+
//!     ^                                               | connection broke                          |
//!     |                                               v                                           |
//!   parked (destination not back yet) <--- connect, register, raise the generation, same ops -----+
//! ```
//!
//! It runs twice: the *fast* lane as above, and the *replicated* lane for frames that a replica must have before they
//! count as kept. That one has a connection of its own, opened by the first such frame, and ends each batch with one
//! `WAIT`: `WAIT` holds its connection, and must never stand before what asked for no more than speed.

use super::{
    Core,
    admin::HOP_FIELDS,
    connect::{Answer, BACKOFF_MAX, Commands, Down, NODE_DOWN},
    depth::{Depth, admit},
    keys::{FIELD_FRAMES, FIELD_SCOPE, FIELD_SEAL, FIELD_SERVICE, GROUP},
    last_word::LastWord,
    letters::{self, Letter},
    lock,
    pack::{self, PACK_MAX_BYTES, PACK_MAX_FRAMES},
    presence::{self, Claim},
    records::{Recorded, StoreOp, StorePlan},
    scripts,
};
use crate::{
    Service,
    admin::Stage,
    limits::{HOPS_MAX, HOPS_TTL, PRESENCE_TTL},
    transport::{SendError, SendWatch},
};
use bytes::Bytes;
use redis::Pipeline;
use std::{
    collections::{BTreeMap, HashMap},
    mem,
    ops::Range,
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, oneshot},
    task::yield_now,
    time::{Instant, sleep_until},
};
use uuid::Uuid;
use vbm_core::NodePath;

/// The most operations of one batch.
const BATCH_MAX_OPS: usize = 4_096;
/// The most entries of a reply inbox; its reader trims it at each heartbeat.
const INBOX_MAX_ENTRIES: usize = 16_384;
/// What was held longer than this is completed only if it was not taken over meanwhile: half of the shortest time after
/// which an entry is.
const FENCE_AFTER: Duration = Duration::from_millis(500);
/// How often a frame whose destination is coming back is tried.
const PARK_EVERY: Duration = Duration::from_millis(100);
/// After a reconnect members register again; until this has passed, absence is not believed.
const SETTLE: Duration = BACKOFF_MAX.saturating_mul(3);
/// How long a replica may take to have what it must have.
const REPLICA_TIMEOUT: Duration = Duration::from_secs(1);
/// The replicas that must have a frame of the replicated lane.
const REPLICAS: u64 = 1;
/// The most destinations whose number of workers and whose depth are remembered.
const TARGETS_MAX_REMEMBERED: usize = 1_024;

/// Where a frame is written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Target {
    /// The control lane of a node.
    Control(NodePath),
    Node(NodePath),
    Any {
        scope: NodePath,
        service: Service,
    },
    Shard {
        shard: NodePath,
        scope: NodePath,
        service: Service,
    },
    Inbox {
        path: NodePath,
        boot_id: String,
    },
}

impl Target {
    /// Where it goes when a member that is there has no such queue: those of an older version have no control lane.
    fn of_older_version(&self) -> Option<Self> {
        match self {
            Self::Control(path) => Some(Self::Node(path.clone())),
            _ => None,
        }
    }
}

pub(super) enum Op {
    Send(SendOp),
    /// An entry is done with.
    Complete {
        key: Arc<str>,
        id: String,
        group: bool,
    },
    /// Something with recorded answers or tickets.
    Store(StoreOp),
    /// A request is given up.
    Bury(Letter),
    /// A hop of a traced call.
    Note(Note),
    /// Look whether the connection lives.
    Probe,
    /// Say when everything before this is written.
    Flushed(oneshot::Sender<()>),
}

/// Who is told what becomes of a frame.
enum Asker {
    Nobody,
    /// Waits for the end, or has given up: the word is taken before the first attempt.
    Waiting(oneshot::Sender<Result<(), SendError>>, Arc<LastWord>),
    /// Is not woken when all is well.
    Watching(Arc<dyn SendWatch>),
}

/// A hop of a traced call.
pub(super) struct Note {
    pub(super) call: Uuid,
    pub(super) stage: Stage,
    pub(super) by: String,
    pub(super) detail: String,
}

/// A frame to be written.
pub(super) struct SendOp {
    target: Target,
    frame: Bytes,
    until: Instant,
    /// The destination may be absent for a while.
    patient: bool,
    /// An attempt broke off: it may be in Redis, acknowledged or not.
    uncertain: bool,
    asker: Asker,
    _room: OwnedSemaphorePermit,
}

impl SendOp {
    pub(super) fn new(target: Target, frame: Bytes, until: Instant, room: OwnedSemaphorePermit) -> Self {
        Self {
            target,
            frame,
            until,
            patient: false,
            uncertain: false,
            asker: Asker::Nobody,
            _room: room,
        }
    }

    pub(super) fn answering(
        mut self,
        done: oneshot::Sender<Result<(), SendError>>,
        claim: Arc<LastWord>,
    ) -> Self {
        self.asker = Asker::Waiting(done, claim);
        self
    }

    pub(super) fn watched(mut self, watch: Arc<dyn SendWatch>) -> Self {
        self.asker = Asker::Watching(watch);
        self
    }

    pub(super) fn patient(mut self, patient: bool) -> Self {
        self.patient = patient;
        self
    }

    /// From now on it may be in Redis; `false` when it is not wanted any more.
    fn writing(&self) -> bool {
        match &self.asker {
            Asker::Nobody => true,
            Asker::Waiting(_, claim) => claim.take(),
            Asker::Watching(watch) => watch.writing(),
        }
    }

    pub(super) const fn is_control(&self) -> bool {
        matches!(self.target, Target::Control(_))
    }

    /// Whether it may be refused because its queue is deep: not what may be in the queue already.
    const fn can_be_refused(&self) -> bool {
        !self.uncertain && !self.patient
    }

    fn settle(self, result: Result<(), SendError>) {
        match (self.asker, result) {
            // An error means that the caller has given up.
            (Asker::Waiting(done, _), result) => drop(done.send(result)),
            (Asker::Watching(watch), Ok(())) => watch.kept(),
            (Asker::Watching(watch), Err(error)) => watch.failed(error),
            (Asker::Nobody, Ok(())) => {}
            (Asker::Nobody, Err(error)) => {
                tracing::debug!(?error, target = ?self.target, "a frame that nobody waits for was not written");
            }
        }
    }
}

/// All frames for one target, in order.
struct Group {
    target: Target,
    ops: Vec<SendOp>,
    chunks: Vec<Range<usize>>,
    /// The batch asks how deep the queue is.
    asks: bool,
}

/// What one batch does.
#[derive(Default)]
struct Plan {
    groups: Vec<Group>,
    /// Entries done with: by key and whether it has a group.
    completed: BTreeMap<(Arc<str>, bool), Vec<String>>,
    stores: StorePlan,
    letters: Vec<Letter>,
    notes: Vec<Note>,
    flushed: Vec<oneshot::Sender<()>>,
    probe: bool,
}

impl Plan {
    fn add(&mut self, index: &mut HashMap<Target, usize>, op: Op) {
        match op {
            Op::Send(op) => {
                // Mostly the same target as before.
                if let Some(last) = self.groups.last_mut().filter(|group| group.target == op.target) {
                    return last.ops.push(op);
                }
                let at = index.get(&op.target).copied().unwrap_or_else(|| {
                    index.insert(op.target.clone(), self.groups.len());
                    self.groups.push(Group {
                        target: op.target.clone(),
                        ops: Vec::new(),
                        chunks: Vec::new(),
                        asks: false,
                    });
                    self.groups.len() - 1
                });
                self.groups[at].ops.push(op);
            }
            Op::Complete { key, id, group } => self.completed.entry((key, group)).or_default().push(id),
            Op::Store(op) => self.stores.add(op),
            Op::Bury(letter) => self.letters.push(letter),
            Op::Note(note) => self.notes.push(note),
            Op::Probe => self.probe = true,
            Op::Flushed(done) => self.flushed.push(done),
        }
    }

    fn is_empty(&self) -> bool {
        self.groups.is_empty()
            && self.completed.is_empty()
            && self.stores.is_empty()
            && self.letters.is_empty()
            && self.notes.is_empty()
            && self.flushed.is_empty()
            && !self.probe
    }

    /// Ends what cannot be sealed: with security on, what is for somebody without a trusted key.
    fn refuse_strangers(&mut self, core: &Core) {
        let Some(guard) = &core.guard else { return };
        for group in &mut self.groups {
            if let Err(error) = guard.can_seal(&group.target) {
                for op in group.ops.drain(..) {
                    op.settle(Err(error.clone()));
                }
            }
        }
    }

    /// Ends what is too late or too much, and cuts the rest into entries; the control lane comes first. `workers` is the
    /// number of consumers last seen alive.
    fn cut(&mut self, now: Instant, workers: &HashMap<Target, usize>, depths: &Depths) {
        self.groups
            .sort_by_key(|group| !matches!(group.target, Target::Control(_)));
        for group in &mut self.groups {
            // Who has given up was told that it expired: it must not be written any more.
            let (late, ready): (Vec<_>, Vec<_>) = mem::take(&mut group.ops)
                .into_iter()
                .partition(|op| op.until <= now || !op.writing());
            for op in late {
                let error = match op.uncertain {
                    true => SendError::Uncertain("the connection to Redis broke while it was written".into()),
                    false => SendError::Expired("the queue of this process".into()),
                };
                op.settle(Err(error));
            }
            let ready = depths.refuse(group, ready, now);
            let share = match (&group.target, workers.get(&group.target)) {
                (Target::Any { .. }, Some(&workers)) => ready.len().div_ceil(workers.max(1)),
                (Target::Any { .. }, None) => 1,
                _ => PACK_MAX_FRAMES,
            };
            let sizes: Vec<usize> = ready.iter().map(|op| op.frame.len()).collect();
            group.chunks = chunks(&sizes, share.clamp(1, PACK_MAX_FRAMES), PACK_MAX_BYTES);
            group.ops = ready;
        }
        self.groups.retain(|group| !group.ops.is_empty());
    }
}

/// How deep queues are, as far as it is known.
struct Depths {
    limit: usize,
    known: HashMap<Target, Depth>,
}

impl Depths {
    /// Refuses what a deep queue has no room for; gives the rest, and notes whether to ask for the depth.
    fn refuse(&self, group: &mut Group, ready: Vec<SendOp>, now: Instant) -> Vec<SendOp> {
        group.asks = false;
        if !matches!(group.target, Target::Node(_) | Target::Any { .. }) || ready.is_empty() {
            return ready;
        }
        let admission = admit(self.known.get(&group.target), self.limit, now);
        group.asks = admission.ask;
        if admission.frames == usize::MAX {
            return ready;
        }
        let mut room = admission.frames;
        let mut kept = Vec::new();
        for op in ready {
            if !op.can_be_refused() {
                kept.push(op);
            } else if room > 0 {
                room -= 1;
                kept.push(op);
            } else {
                let why = format!("its queue holds {} entries or more (the depth limit)", self.limit);
                op.settle(Err(SendError::Overloaded(why)));
            }
        }
        kept
    }

    fn answered(&mut self, target: &Target, entries: usize) {
        if self.known.len() >= TARGETS_MAX_REMEMBERED {
            self.known.clear();
        }
        self.known
            .insert(target.clone(), Depth::answered(entries, Instant::now()));
    }

    fn wrote(&mut self, target: &Target, entries: usize) {
        if let Some(depth) = self.known.get_mut(target) {
            depth.wrote(entries);
        }
    }
}

/// Cuts frames of these sizes into runs of at most `max_frames` and, but for single ones, `max_bytes`.
fn chunks(sizes: &[usize], max_frames: usize, max_bytes: usize) -> Vec<Range<usize>> {
    let (mut cut, mut from, mut bytes) = (Vec::new(), 0, 0);
    for (at, size) in sizes.iter().enumerate() {
        if at > from && (at - from >= max_frames || bytes + size > max_bytes) {
            cut.push(from..at);
            (from, bytes) = (at, 0);
        }
        bytes += size;
    }
    if from < sizes.len() {
        cut.push(from..sizes.len());
    }
    cut
}

/// Which promise a writer keeps.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// The master has it. This one owns the connection, presence and generations.
    Fast,
    /// A replica has it too.
    Replicated,
}

/// The next operation of what steers; never, for a writer without that queue.
async fn urgent_op(urgent: &mut Option<mpsc::UnboundedReceiver<Op>>) -> Option<Op> {
    match urgent {
        Some(urgent) => urgent.recv().await,
        None => std::future::pending().await,
    }
}

/// Without `commands` it connects when there is something to write.
pub(super) async fn run(
    core: Arc<Core>,
    lane: Lane,
    (mut urgent, mut queue): (Option<mpsc::UnboundedReceiver<Op>>, mpsc::UnboundedReceiver<Op>),
    mut commands: Option<Commands>,
) {
    let mut writer = Writer {
        lane,
        connected_at: Instant::now(),
        again: false,
        parked: Vec::new(),
        workers: HashMap::new(),
        recorded: Recorded::default(),
        depths: Depths {
            limit: core.depth_limit,
            known: HashMap::new(),
        },
    };
    let (mut plan, mut index) = (Plan::default(), HashMap::new());
    let mut taken = Vec::new();
    loop {
        if plan.is_empty() {
            let next = writer.parked.iter().map(|(at, _)| *at).min();
            tokio::select! {
                biased;
                // Cancel safe: nothing is taken when another arm wins.
                op = urgent_op(&mut urgent) => match op {
                    Some(op) => plan.add(&mut index, op),
                    None => return,
                },
                count = queue.recv_many(&mut taken, BATCH_MAX_OPS) => if count == 0 { return },
                () = wait_until(next) => {}
            }
            // Who was woken together sends together: one batch, instead of one for the first and one for the rest.
            yield_now().await;
            while taken.len() < BATCH_MAX_OPS
                && let Ok(op) = queue.try_recv()
            {
                taken.push(op);
            }
        }
        while let Some(Ok(op)) = urgent.as_mut().map(mpsc::UnboundedReceiver::try_recv) {
            plan.add(&mut index, op);
        }
        for op in writer.due(Instant::now()) {
            plan.add(&mut index, Op::Send(op));
        }
        for op in taken.drain(..) {
            plan.add(&mut index, op);
        }
        let Some(connection) = &mut commands else {
            commands = writer.connect(&core).await;
            continue;
        };
        plan.refuse_strangers(&core);
        plan.cut(Instant::now(), &writer.workers, &writer.depths);
        match writer.flush(&core, connection, &mut plan).await {
            Ok(()) => {
                (plan, index) = (Plan::default(), HashMap::new());
            }
            Err(Down(why)) => {
                tracing::warn!(why, "the connection to {} broke", core.server);
                if lane == Lane::Fast {
                    core.conn.send_replace(None);
                }
                commands = None;
                for op in plan.groups.iter_mut().flat_map(|group| &mut group.ops) {
                    op.uncertain = true;
                }
                index = plan
                    .groups
                    .iter()
                    .enumerate()
                    .map(|(at, group)| (group.target.clone(), at))
                    .collect();
            }
        }
    }
}

async fn wait_until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

struct Writer {
    lane: Lane,
    connected_at: Instant,
    /// This is not the first connection.
    again: bool,
    /// Frames whose destination is coming back, and when to try again.
    parked: Vec<(Instant, SendOp)>,
    /// How many workers each anycast target had.
    workers: HashMap<Target, usize>,
    recorded: Recorded,
    depths: Depths,
}

impl Writer {
    fn due(&mut self, now: Instant) -> Vec<SendOp> {
        let (due, parked) = mem::take(&mut self.parked)
            .into_iter()
            .partition(|(at, _)| *at <= now);
        self.parked = parked;
        let due: Vec<(Instant, SendOp)> = due;
        due.into_iter().map(|(_, op)| op).collect()
    }

    /// Members may not be back yet after this process came back.
    fn settling(&self) -> bool {
        self.again && self.connected_at.elapsed() < SETTLE
    }

    /// Connects and registers again; returns when it has.
    async fn connect(&mut self, core: &Arc<Core>) -> Option<Commands> {
        for attempt in 0.. {
            let connecting = match self.lane {
                Lane::Fast => reconnect(core).await,
                Lane::Replicated => core.connector.commands().await,
            };
            match connecting {
                Ok(commands) if self.lane == Lane::Replicated => return Some(commands),
                Ok(commands) => {
                    self.connected_at = Instant::now();
                    self.again = true;
                    *lock(&core.settled) = self.connected_at + PRESENCE_TTL;
                    tracing::info!("connected to {} again", core.server);
                    core.conn.send_replace(Some(commands.clone()));
                    core.generations.send_modify(|generation| *generation += 1);
                    return Some(commands);
                }
                Err(Down(why)) => tracing::debug!(attempt, why, "{} is not back", core.server),
            }
            core.connector.pause(attempt, core.seed).await;
        }
        None
    }

    async fn flush(
        &mut self,
        core: &Arc<Core>,
        commands: &mut Commands,
        plan: &mut Plan,
    ) -> Result<(), Down> {
        let mut batch = redis::pipe();
        // First, so that no reply is there before its record is.
        let layout = self.recorded.add(core, &mut batch, &plan.stores);
        let mut uninteresting = 0;
        for note in &plan.notes {
            uninteresting += add_note(core, &mut batch, note);
        }
        for letter in &plan.letters {
            uninteresting += letters::add(&core.keys, &mut batch, letter, core.guard.is_some());
        }
        for group in &plan.groups {
            add_group(core, &mut batch, group);
        }
        for ((key, group), ids) in &plan.completed {
            match group {
                true => add_completions(core, &mut batch, key, ids),
                false => drop(batch.cmd("XDEL").arg(&**key).arg(ids)),
            }
        }
        if batch.is_empty() && plan.probe {
            batch.cmd("PING");
        }
        let (answers, replicas) = match self.lane {
            Lane::Fast => (commands.run(&mut batch).await?, None),
            Lane::Replicated => {
                let (answers, have) = commands
                    .run_replicated(&mut batch, REPLICAS, REPLICA_TIMEOUT)
                    .await?;
                (answers, Some(have))
            }
        };
        if plan.probe {
            core.conn.send_replace(Some(commands.clone()));
        }
        let mut answers = answers.into_iter();
        self.recorded
            .settle(mem::take(&mut plan.stores), layout, &mut answers);
        for answer in answers.by_ref().take(uninteresting) {
            if let Err(why) = answer {
                tracing::error!(why, "a dead letter or a hop was not written");
            }
        }
        plan.notes.clear();
        plan.letters.clear();
        for group in mem::take(&mut plan.groups) {
            self.settle(core, group, &mut answers, replicas);
        }
        if self.lane == Lane::Fast && commands.recovered() {
            // What a server of the cluster had may be forgotten.
            recovered(core, commands).await?;
        }
        let mut held = lock(&core.held);
        for ((key, _), ids) in mem::take(&mut plan.completed) {
            let Some(entries) = held.get_mut(&key) else {
                continue;
            };
            for id in ids {
                entries.remove(&id);
            }
            if entries.is_empty() {
                held.remove(&key);
            }
        }
        drop(held);
        for done in plan.flushed.drain(..) {
            if done.send(()).is_err() {
                tracing::debug!("nobody waits for the last write any more");
            }
        }
        Ok(())
    }

    /// Tells each op of a group how it went.
    fn settle(
        &mut self,
        core: &Arc<Core>,
        group: Group,
        answers: &mut impl Iterator<Item = Answer>,
        replicas: Option<i64>,
    ) {
        let alive = match &group.target {
            Target::Control(_) | Target::Node(_) | Target::Any { .. } => {
                let count = answers
                    .next()
                    .and_then(Result::ok)
                    .as_ref()
                    .and_then(pack::number)
                    .unwrap_or(0);
                usize::try_from(count).unwrap_or(0)
            }
            // Presence was looked at before.
            Target::Shard { .. } => 1,
            // Its reader made the stream: without a stream there is nobody.
            Target::Inbox { .. } => 0,
        };
        let inbox = matches!(group.target, Target::Inbox { .. });
        if group.asks {
            let depth = answers
                .next()
                .and_then(Result::ok)
                .as_ref()
                .and_then(pack::number);
            self.depths
                .answered(&group.target, usize::try_from(depth.unwrap_or(0)).unwrap_or(0));
        }
        self.depths.wrote(&group.target, group.chunks.len());
        if matches!(group.target, Target::Any { .. }) {
            if self.workers.len() >= TARGETS_MAX_REMEMBERED {
                self.workers.clear();
            }
            self.workers.insert(group.target.clone(), alive);
        }
        let settling = self.settling();
        let mut ops = group.ops.into_iter();
        for chunk in group.chunks {
            let answer = answers.next().unwrap_or_else(|| Err("no answer".into()));
            let refused = answer.as_ref().err().cloned();
            let id = answer.ok().as_ref().and_then(pack::text).map(str::to_owned);
            let chunk: Vec<SendOp> = ops.by_ref().take(chunk.len()).collect();
            if let Some(why) = refused {
                if why.starts_with(NODE_DOWN) {
                    // It may have got it before it went; it is tried until the deadline.
                    let again = Instant::now() + PARK_EVERY;
                    self.parked.extend(chunk.into_iter().map(|mut op| {
                        op.uncertain = true;
                        (again, op)
                    }));
                    continue;
                }
                for op in chunk {
                    op.settle(Err(refusal(&why)));
                }
                continue;
            }
            // With somebody there, or about to be, the entry stays; else it is taken out again.
            let stays = id.is_some() && (alive > 0 || inbox || settling || chunk.iter().any(|op| op.patient));
            if let (Some(id), false) = (id, stays) {
                core.complete(stream_key(core, &group.target).into(), id, false);
            }
            for op in chunk {
                if stays {
                    op.settle(kept(replicas));
                } else if let Some(fallback) = op.target.of_older_version().filter(|_| alive > 0) {
                    let fallback = SendOp {
                        target: fallback,
                        ..op
                    };
                    self.parked.push((Instant::now(), fallback));
                } else if op.patient || settling || alive > 0 {
                    // Somebody is there and makes the stream at the next heartbeat, or comes back.
                    self.parked.push((Instant::now() + PARK_EVERY, op));
                } else {
                    let why = absent(&op.target);
                    op.settle(Err(SendError::NoRoute(why)));
                }
            }
        }
    }
}

/// A frame is in the master's stream: whether that is enough.
fn kept(replicas: Option<i64>) -> Result<(), SendError> {
    match replicas {
        Some(have) if u64::try_from(have).unwrap_or(0) < REPLICAS => Err(SendError::Uncertain(format!(
            "no replica had it within {} ms; the master has it, and would forget it with a failover",
            REPLICA_TIMEOUT.as_millis()
        ))),
        _ => Ok(()),
    }
}

/// A refusal of one command by a server that works otherwise: nothing was written.
fn refusal(why: &str) -> SendError {
    if why.contains("OOM") {
        return SendError::Overloaded(format!("the memory of Redis is full: {why}"));
    }
    SendError::NoRoute(format!("Redis refused it: {why}"))
}

fn absent(target: &Target) -> String {
    match target {
        Target::Control(path) | Target::Node(path) => format!("no live process has the path {path}"),
        Target::Any { scope, service } | Target::Shard { scope, service, .. } => {
            format!("no live member below {scope} offers {service}")
        }
        Target::Inbox { path, .. } => format!("the asker {path} is gone"),
    }
}

fn stream_key(core: &Core, target: &Target) -> String {
    match target {
        Target::Control(path) => core.keys.control(path),
        Target::Node(path) => core.keys.node(path),
        Target::Any { scope, service } => core.keys.any(scope, service),
        Target::Shard { shard, .. } => core.keys.broadcast(shard),
        Target::Inbox { path, boot_id } => core.keys.inbox(path, boot_id),
    }
}

/// The commands that record a hop; gives how many.
fn add_note(core: &Core, batch: &mut Pipeline, note: &Note) -> usize {
    let key = core.keys.hops(note.call);
    let [stage, by, detail] = HOP_FIELDS;
    let add = batch
        .cmd("XADD")
        .arg(&key)
        .arg("MAXLEN")
        .arg("~")
        .arg(HOPS_MAX)
        .arg("*");
    add.arg(stage)
        .arg(note.stage.as_str())
        .arg(by)
        .arg(&note.by)
        .arg(detail)
        .arg(&note.detail);
    batch
        .cmd("PEXPIRE")
        .arg(&key)
        .arg(u64::try_from(HOPS_TTL.as_millis()).unwrap_or(u64::MAX));
    2
}

/// Completes entries of a group: at once what was held for a short time; if it is still ours what was held longer; not
/// at all what is known to be another one's.
fn add_completions(core: &Core, batch: &mut Pipeline, key: &Arc<str>, ids: &[String]) {
    let (mut fresh, mut old) = (Vec::new(), Vec::new());
    let held = lock(&core.held);
    let entries = held.get(key);
    for id in ids {
        match entries.and_then(|entries| entries.get(id)) {
            Some(entry) if entry.lost => {}
            Some(entry) if entry.asked.elapsed() > FENCE_AFTER => old.push(id),
            _ => fresh.push(id),
        }
    }
    drop(held);
    if !fresh.is_empty() {
        batch.cmd("XACK").arg(&**key).arg(GROUP).arg(&fresh);
        batch.cmd("XDEL").arg(&**key).arg(&fresh);
    }
    if !old.is_empty() {
        let eval = batch.cmd("EVAL").arg(scripts::COMPLETE_HELD).arg(1).arg(&**key);
        eval.arg(GROUP).arg(&core.consumer).arg(&old);
    }
}

/// The commands of one group: is somebody there, then its entries. `settle` reads the answers in the same order.
fn add_group(core: &Core, batch: &mut Pipeline, group: &Group) {
    match &group.target {
        Target::Control(path) | Target::Node(path) => {
            batch.cmd("EXISTS").arg(core.keys.presence(path));
        }
        Target::Any { scope, service } => {
            batch
                .cmd("ZCOUNT")
                .arg(core.keys.alive(scope, Some(service)))
                .arg(core.now_ms())
                .arg("+inf");
        }
        Target::Shard { .. } | Target::Inbox { .. } => {}
    }
    let key = stream_key(core, &group.target);
    if group.asks {
        batch.cmd("XLEN").arg(&key);
    }
    let now = Instant::now();
    for chunk in &group.chunks {
        let ops = group.ops[chunk.clone()].iter();
        let frames = pack::pack_within(ops.map(|op| (&op.frame, op.until.saturating_duration_since(now))));
        let add = batch.cmd("XADD").arg(&key).arg("NOMKSTREAM");
        if let Target::Inbox { .. } = &group.target {
            add.arg("MAXLEN").arg("~").arg(INBOX_MAX_ENTRIES);
        }
        add.arg("*").arg(FIELD_FRAMES).arg(&frames[..]);
        if let Some(guard) = &core.guard {
            let seal = guard.seal(&group.target, &key, &frames, core.now_ms());
            add.arg(FIELD_SEAL).arg(seal);
        }
        if let Target::Shard { scope, service, .. } = &group.target {
            add.arg(FIELD_SCOPE)
                .arg(scope.to_string())
                .arg(FIELD_SERVICE)
                .arg(service.as_str());
        }
    }
}

/// A new connection with everything registered on it. Fails for good only when another process took the path, and
/// then still gives the connection: replies go on.
async fn reconnect(core: &Arc<Core>) -> Result<Commands, Down> {
    let mut commands = core.connector.commands().await?;
    if core.retired.is_cancelled() {
        return Ok(commands);
    }
    match presence::register(core, &mut commands, Claim::Keep).await? {
        Ok(_cursor) => {}
        Err(presence::Refusal::Displaced(by)) => core.displaced(&by),
        Err(presence::Refusal::Redis(why)) => return Err(Down(why)),
    }
    Ok(commands)
}

/// A server of the cluster is back, perhaps without what it had.
async fn recovered(core: &Arc<Core>, commands: &mut Commands) -> Result<(), Down> {
    if !core.retired.is_cancelled()
        && let Err(presence::Refusal::Displaced(by)) = presence::register(core, commands, Claim::Keep).await?
    {
        core.displaced(&by);
    }
    core.generations.send_modify(|generation| *generation += 1);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn chunks_cover_every_frame_once_within_the_limits(
            sizes in proptest::collection::vec(0usize..100, 0..200), max_frames in 1usize..50, max_bytes in 1usize..300) {
            let cut = chunks(&sizes, max_frames, max_bytes);
            let covered: Vec<usize> = cut.iter().cloned().flatten().collect();
            prop_assert_eq!(covered, (0..sizes.len()).collect::<Vec<_>>());
            for chunk in cut {
                prop_assert!(chunk.len() <= max_frames);
                prop_assert!(chunk.len() == 1 || sizes[chunk].iter().sum::<usize>() <= max_bytes);
            }
        }
    }
}
