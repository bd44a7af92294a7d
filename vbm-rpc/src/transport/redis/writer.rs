//! The writer: the only task that writes frames, and the supervisor of the connection.
//!
//! ```text
//!   queue --> take all there is --> plan (pure) --> one batch --> settle each op by its answers --+
//!     ^                                               | connection broke                          |
//!     |                                               v                                           |
//!   parked (destination not back yet) <--- connect, register, raise the generation, same ops -----+
//! ```
//!
//! It runs twice: the *fast* lane as above, and the *replicated* lane for frames that replicas must have before they
//! count as kept. That one has a connection of its own, opened by the first such frame, and ends each batch with one
//! `WAIT`: `WAIT` holds its connection, and must never stand before what asked for no more than speed.

use super::{
    attachment::{Core, lock},
    batch::{add_completions, add_group, add_note, ask_who_is_there, stream_key},
    belief::Beliefs,
    connect::{Answer, BACKOFF_MAX, Commands, Down, NODE_DOWN},
    letters,
    op::{Op, SendOp, Target},
    pack,
    plan::{Depths, Group, Plan, Retraction, TARGETS_MAX_REMEMBERED},
    presence::{self, Claim},
    records::Recorded,
    replicas::{REPLICA_TIMEOUT, Replicas, kept},
    retract::{self, Verdict},
    unfit,
};
use crate::{limits::PRESENCE_TTL, transport::SendError};
use std::{collections::HashMap, mem, sync::Arc, time::Duration};
use tokio::{
    sync::mpsc,
    task::yield_now,
    time::{Instant, sleep_until},
};

/// The most operations of one batch.
const BATCH_MAX_OPS: usize = 4_096;
/// How often a frame whose destination is coming back is tried.
const PARK_EVERY: Duration = Duration::from_millis(100);
/// After a reconnect members register again; until this has passed, absence is not believed.
const SETTLE: Duration = BACKOFF_MAX.saturating_mul(3);

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
        retracting: Vec::new(),
        workers: HashMap::new(),
        recorded: Recorded::default(),
        beliefs: Beliefs::default(),
        asked: Instant::now(),
        depths: Depths {
            limit: core.depth_limit,
            known: HashMap::new(),
        },
    };
    let (mut plan, mut index) = (Plan::default(), HashMap::new());
    let mut taken = Vec::new();
    loop {
        plan.retractions.append(&mut writer.retracting);
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
        writer.asked = Instant::now();
        plan.cut(writer.asked, &writer.workers, &writer.depths, &writer.beliefs);
        match writer.flush(&core, connection, &mut plan).await {
            Ok(()) => {
                (plan, index) = (Plan::default(), HashMap::new());
            }
            Err(Down(why)) => {
                core.server_failed(&why);
                tracing::warn!(why, "the connection to {} broke", core.server);
                if lane == Lane::Fast {
                    core.conn.send_replace(None);
                }
                commands = None;
                writer.beliefs.clear();
                for op in plan.groups.iter_mut().flat_map(|group| &mut group.ops) {
                    op.uncertain = true;
                }
                for retraction in &mut plan.retractions {
                    retraction.broke = true;
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
    /// Entries for nobody, which the next batch takes back.
    retracting: Vec<Retraction>,
    /// How many workers each anycast target had.
    workers: HashMap<Target, usize>,
    recorded: Recorded,
    beliefs: Beliefs,
    /// When the batch that is under way was made.
    asked: Instant,
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
                Err(Down(why)) => {
                    core.server_failed(&why);
                    tracing::debug!(attempt, why, "{} is not back", core.server);
                }
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
            uninteresting += letters::add(core, &mut batch, letter);
        }
        for group in &plan.groups {
            add_group(core, &mut batch, group);
        }
        for retraction in &plan.retractions {
            let key = stream_key(core, &retraction.target);
            batch.cmd("XDEL").arg(key).arg(&retraction.id);
            ask_who_is_there(core, &mut batch, &retraction.target);
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
                let needed = core.connector.replicas().await?;
                let (answers, have) = commands
                    .run_replicated(&mut batch, needed, REPLICA_TIMEOUT)
                    .await?;
                let have = u64::try_from(have).unwrap_or(0);
                (answers, Some(Replicas { have, needed }))
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
        for retraction in mem::take(&mut plan.retractions) {
            let (gone, there) = (answers.next(), answers.next());
            self.taken_back(retraction, (gone, there), replicas);
        }
        if self.lane == Lane::Fast && commands.recovered() {
            // What a server of the cluster had may be forgotten.
            self.beliefs.clear();
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
        core: &Core,
        group: Group,
        answers: &mut impl Iterator<Item = Answer>,
        replicas: Option<Replicas>,
    ) {
        let node = matches!(group.target, Target::Control(_) | Target::Node(_));
        let believed = node && !group.looks;
        let alive = match &group.target {
            _ if believed => 1,
            Target::Control(_) | Target::Node(_) | Target::Any { .. } | Target::AnyControl { .. } => {
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
        let mut taken = true;
        let mut ops = group.ops.into_iter();
        for chunk in group.chunks {
            let answer = answers.next().unwrap_or_else(|| Err("no answer".into()));
            let refused = answer.as_ref().err().cloned();
            let id = answer.ok().as_ref().and_then(pack::text).map(str::to_owned);
            taken &= id.is_some();
            let chunk = ops.by_ref().take(chunk.len());
            if let Some(why) = refused {
                if why.starts_with(NODE_DOWN) {
                    // It may have got it before it went; it is tried until the deadline.
                    let again = Instant::now() + PARK_EVERY;
                    self.parked.extend(chunk.map(|mut op| {
                        op.uncertain = true;
                        (again, op)
                    }));
                    continue;
                }
                let _known = core.server_refused(&why);
                for op in chunk {
                    op.not_kept(unfit::refusal(&why));
                }
                continue;
            }
            // With somebody there, or about to be, the entry stays; else it is taken out again.
            let certain = id.is_some() && (alive > 0 || inbox || settling);
            let chunk: Vec<SendOp> = match certain {
                true => {
                    for op in chunk {
                        op.settle(kept(replicas));
                    }
                    continue;
                }
                false => chunk.collect(),
            };
            let stays = id.is_some() && chunk.iter().any(|op| op.patient);
            if let (Some(id), false) = (id, stays) {
                self.retracting.push(Retraction {
                    target: group.target.clone(),
                    id,
                    ops: chunk,
                    broke: false,
                });
                continue;
            }
            for op in chunk {
                if stays {
                    op.settle(kept(replicas));
                } else if believed {
                    // Believed too long: the next batch asks.
                    self.parked.push((Instant::now(), op));
                } else if let Some(fallback) = op.target.of_older_version().filter(|_| alive > 0) {
                    self.parked.push((Instant::now(), op.to(fallback)));
                } else if op.patient || settling || alive > 0 {
                    // Somebody is there and makes the stream at the next heartbeat, or comes back.
                    self.parked.push((Instant::now() + PARK_EVERY, op));
                } else {
                    let why = absent(&op.target);
                    op.not_kept(SendError::NoRoute(why));
                }
            }
        }
        if !taken {
            self.beliefs.doubt(&group.target);
        } else if group.looks && alive > 0 {
            self.beliefs.there(&group.target, self.asked);
        }
    }

    /// Tells the ops of an entry that was taken back what has become of them.
    fn taken_back(
        &mut self,
        retraction: Retraction,
        (gone, there): (Option<Answer>, Option<Answer>),
        replicas: Option<Replicas>,
    ) {
        let verdict = retract::judge(gone, there, retraction.broke);
        for mut op in retraction.ops {
            match verdict {
                Verdict::Unread => {
                    let why = absent(&op.target);
                    op.not_kept(SendError::NoRoute(why));
                }
                Verdict::Done => op.settle(kept(replicas)),
                Verdict::Somebody => {
                    op.uncertain = true;
                    self.parked.push((Instant::now(), op));
                }
                Verdict::Unknown => {
                    let why = format!("{}, and its entry may have been read", absent(&op.target));
                    op.settle(Err(SendError::Uncertain(why)));
                }
            }
        }
    }
}

fn absent(target: &Target) -> String {
    match target {
        Target::Control(path) | Target::Node(path) => format!("no live process has the path {path}"),
        Target::Any { scope, service }
        | Target::AnyControl { scope, service }
        | Target::Shard { scope, service, .. } => {
            format!("no live member below {scope} offers {service}")
        }
        Target::Inbox { path, .. } => format!("the asker {path} is gone"),
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
        Ok(_cursor) => core.look_again(&mut commands).await?,
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
