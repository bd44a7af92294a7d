//! The state of a memory bus: who is present, what is kept for whom. Synchronous; one lock, held for map operations.
//! What is done to the state under that lock is in `state.rs`, who sits at it in `seat.rs`, what a test orders in `orders.rs`.

mod orders;
mod seat;
mod state;

use super::{
    QUEUE_MAX_PER_NODE,
    desk::{Desk, Given},
    faults::{Dice, Faults},
    trouble::{Said, Trouble},
};
use crate::{
    BusError, MemberInfo, Route, Service,
    admin::{Queue, QueueKind},
    envelope, limits,
    transport::{Completion, Delivery, Destination, Inbound, SendError, Sent},
};
use bytes::Bytes;
use seat::{Kept, Origin};
pub(super) use seat::{Next, Pumped, Seat};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use vbm_core::NodePath;

#[derive(Default)]
pub(super) struct Hub {
    state: Mutex<State>,
    pub(super) desk: Desk,
}

#[derive(Default)]
struct State {
    nodes: BTreeMap<NodePath, Node>,
    /// For a service that nobody offers now: its last member went with it undone.
    orphans: Vec<Entry>,
    next: u64,
    dice: Dice,
    trouble: Trouble,
}

/// What belongs to a path.
#[derive(Default)]
struct Node {
    kept: BTreeMap<u64, Entry>,
    /// Of `kept`, what the present process was not given yet, by when it may be.
    ready: BTreeSet<(Instant, u64)>,
    /// The same for the control lane.
    urgent: BTreeSet<(Instant, u64)>,
    /// Of `kept`, what processes died with: one at a time.
    suspects: BTreeSet<u64>,
    /// The suspect that runs now.
    alone: Option<u64>,
    /// How much was ever put in.
    added: u64,
    replies: BTreeMap<(Instant, u64), Bytes>,
    /// Of `kept`, what a partition holds up.
    held_up: BTreeSet<u64>,
    /// Replies held up by a partition.
    cut_off: VecDeque<Bytes>,
    present: Option<Present>,
}

struct Present {
    info: MemberInfo,
    inbound: Inbound,
    seat: Arc<Seat>,
    /// Gone without a word: counts as present until then.
    dead_at: Option<Instant>,
    /// Retired: gets replies only.
    retired: bool,
    /// Paused: it says nothing, and counts as present until then.
    silent: Option<Silence>,
    /// What it has said since and nobody has heard.
    said: VecDeque<Said>,
}

struct Silence {
    until: Instant,
    /// What it had taken for a service was given to others.
    given: bool,
}

impl Present {
    fn live(&self, now: Instant) -> bool {
        !self.retired
            && self.dead_at.is_none_or(|at| now < at)
            && self.silent.as_ref().is_none_or(|silence| now < silence.until)
    }
}

struct Entry {
    from: NodePath,
    frame: Bytes,
    since: Instant,
    until: Instant,
    origin: Origin,
    /// Somebody was given it.
    given: bool,
    /// How often it was given to a process.
    deliveries: u32,
}

impl Node {
    /// A kept entry may be given to the present process from then on.
    fn ready(&mut self, at: Instant, serial: u64) {
        let Some(entry) = self.kept.get(&serial) else {
            return;
        };
        let ready = match envelope::is_control(&entry.frame) {
            true => &mut self.urgent,
            false => &mut self.ready,
        };
        ready.insert((at, serial));
    }

    /// Nothing is with a process.
    fn forget_ready(&mut self) {
        self.ready.clear();
        self.urgent.clear();
        self.suspects.clear();
        self.alone = None;
    }

    /// An entry is done with. The next suspect may run: `true` when there is one.
    fn over(&mut self, serial: u64, now: Instant) -> bool {
        self.kept.remove(&serial);
        if self.alone == Some(serial) {
            self.alone = None;
            if let Some(next) = self.suspects.pop_first() {
                self.ready.insert((now, next));
                return true;
            }
        }
        false
    }
}

impl Hub {
    /// The queues of the nodes below a scope.
    pub(super) fn queues(&self, scope: &NodePath) -> Vec<Queue> {
        let state = self.lock();
        let below = state.nodes.iter().filter(|(path, _)| scope.contains(path));
        below
            .map(|(path, node)| Queue {
                kind: QueueKind::Node,
                name: path.to_string(),
                depth: u64::try_from(node.kept.len()).unwrap_or(u64::MAX),
                added: node.added,
                takers: Vec::new(),
            })
            .collect()
    }

    pub(super) fn new(faults: Faults) -> Self {
        let state = State {
            dice: Dice::new(faults),
            ..State::default()
        };
        Self {
            state: Mutex::new(state),
            desk: Desk::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_faults(&self, faults: Faults) {
        self.lock().dice = Dice::new(faults);
    }

    pub(super) fn queued(&self, path: &NodePath) -> usize {
        self.lock().nodes.get(path).map_or(0, |node| node.kept.len())
    }

    pub(super) fn attach(&self, info: MemberInfo, inbound: Inbound) -> Arc<Seat> {
        let now = Instant::now();
        let mut state = self.lock();
        state.next += 1;
        let seat = Arc::new(Seat {
            path: info.path.clone(),
            serial: state.next,
            requests: Notify::new(),
            urgent: Notify::new(),
            replies: Notify::new(),
            voice: Notify::new(),
            generations: watch::Sender::new(1),
            ended: watch::Sender::new(None),
            severed: AtomicBool::new(false),
        });
        let path = info.path.clone();
        let node = state.nodes.entry(path.clone()).or_default();
        let present = Present {
            info: info.clone(),
            inbound,
            seat: seat.clone(),
            dead_at: None,
            retired: false,
            silent: None,
            said: VecDeque::new(),
        };
        if let Some(old) = node.present.replace(present) {
            old.seat.ended.send_replace(Some(BusError::Displaced {
                path: info.path.to_string(),
                by: info.boot_id.clone(),
            }));
            old.seat.requests.notify_one();
            old.seat.urgent.notify_one();
            old.seat.replies.notify_one();
            old.seat.voice.notify_waiters();
        }
        state.silence(now);
        state.give_away(&path, now);
        for entry in std::mem::take(&mut state.orphans) {
            state.give(entry, now);
        }
        // What the process before left undone, this one gets.
        state.make_ready(&path, now);
        seat
    }

    pub(super) fn members(&self, scope: &NodePath, now: Instant) -> Vec<MemberInfo> {
        let state = self.lock();
        let present = state.nodes.values().filter_map(|node| node.present.as_ref());
        present
            .filter(|p| p.live(now) && scope.contains(&p.info.path))
            .map(|p| p.info.clone())
            .collect()
    }

    /// Whether nothing that this seat says is heard now.
    pub(super) fn is_mute(&self, seat: &Seat) -> bool {
        self.lock().trouble.is_mute(&seat.path)
    }

    pub(super) fn send(
        &self,
        seat: &Seat,
        to: &Destination,
        frame: Bytes,
        ttl: Duration,
        now: Instant,
    ) -> Result<Sent, SendError> {
        let mut state = self.lock();
        let (sent, direct) = state.send(&seat.path, to, &frame, now + ttl, now)?;
        drop(state);
        hand_over(direct);
        Ok(sent)
    }

    /// Puts a frame back into the queue of a route, on behalf of nobody.
    pub(super) fn replay(
        &self,
        to: &Destination,
        frame: &Bytes,
        ttl: Duration,
        now: Instant,
    ) -> Result<Sent, SendError> {
        let (sent, direct) = self.lock().send(&NodePath::root(), to, frame, now + ttl, now)?;
        hand_over(direct);
        Ok(sent)
    }

    /// The same without an answer; a muted seat is heard later. `false` when there is no room for that.
    pub(super) fn post(
        &self,
        seat: &Seat,
        to: Destination,
        frame: Bytes,
        ttl: Duration,
        now: Instant,
    ) -> bool {
        let mut state = self.lock();
        if state.trouble.is_mute(&seat.path) {
            let Some(present) = state.present(seat) else {
                return true;
            };
            if present.said.len() >= QUEUE_MAX_PER_NODE {
                return false;
            }
            let until = now + ttl;
            present.said.push_back(Said::Post { to, frame, until });
            return true;
        }
        match state.send(&seat.path, &to, &frame, now + ttl, now) {
            Ok((_sent, direct)) => {
                drop(state);
                hand_over(direct);
            }
            Err(error) => tracing::debug!(?error, %to, "a message that nobody waits for was not delivered"),
        }
        true
    }

    /// What a pump moves next.
    pub(super) fn next(self: &Arc<Self>, seat: &Arc<Seat>, lane: Pumped, now: Instant) -> Next {
        let mut state = self.lock();
        state.take_over(now);
        let death = state.next_death();
        let Some(node) = state.nodes.get_mut(&seat.path) else {
            return Next::Ended;
        };
        if node
            .present
            .as_ref()
            .is_none_or(|present| present.seat.serial != seat.serial)
        {
            return Next::Ended;
        }
        if state.trouble.is_mute(&seat.path) {
            return Next::Wait(death);
        }
        let Some(node) = state.nodes.get_mut(&seat.path) else {
            return Next::Ended;
        };
        if lane == Pumped::Replies {
            return match node.replies.first_key_value() {
                Some((&(at, serial), _)) if at <= now => node
                    .replies
                    .remove(&(at, serial))
                    .map_or(Next::Wait(None), Next::Reply),
                Some((&(at, _), _)) => Next::Wait(Some(at)),
                None => Next::Wait(None),
            };
        }
        let retired = node.present.as_ref().is_some_and(|present| present.retired);
        loop {
            let ready = match lane {
                Pumped::Urgent => &mut node.urgent,
                _ => &mut node.ready,
            };
            let Some(&(at, serial)) = ready.first() else { break };
            if retired {
                break;
            }
            if at > now {
                return Next::Wait(Some(death.map_or(at, |death| death.min(at))));
            }
            ready.pop_first();
            let Some(entry) = node.kept.get_mut(&serial) else {
                continue;
            };
            if entry.until <= now {
                node.over(serial, now);
                continue;
            }
            if entry.deliveries >= limits::DELIVERIES_MAX {
                let given = Given {
                    deliveries: entry.deliveries,
                    worker: seat.path.to_string(),
                    since: entry.since,
                };
                let (route, frame) = (entry.origin.route(&seat.path), entry.frame.clone());
                self.desk
                    .bury(route, frame, "its process died with it again and again", &given);
                node.over(serial, now);
                continue;
            }
            if entry.deliveries >= limits::SUSPECT_AFTER {
                if node.alone.is_some() {
                    node.suspects.insert(serial);
                    continue;
                }
                node.alone = Some(serial);
            }
            entry.deliveries += 1;
            let keeper = Kept {
                hub: self.clone(),
                seat: seat.clone(),
                serial,
                again: std::mem::replace(&mut entry.given, true),
            };
            return Next::Request(Delivery {
                frame: entry.frame.clone(),
                since: entry.since,
                done: Completion::new(Arc::new(keeper)),
            });
        }
        Next::Wait(death)
    }

    /// Takes the member off presence; what it took for a service and has not begun goes to others at `forget`.
    pub(super) fn leave(&self, seat: &Seat, now: Instant) {
        let mut state = self.lock();
        if let Some(present) = state.present(seat) {
            present.retired = true;
        }
        state.take_over(now);
    }

    pub(super) fn forget(&self, seat: &Seat, now: Instant) {
        let mut state = self.lock();
        if state.present(seat).is_none() {
            return;
        }
        // Who leaves in peace was killed by nothing.
        if let Some(node) = state.nodes.get_mut(&seat.path) {
            for entry in node.kept.values_mut() {
                entry.deliveries = entry.deliveries.saturating_sub(1);
            }
        }
        state.vacate(&seat.path, now);
    }

    pub(super) fn sever(&self, seat: &Seat, now: Instant) {
        seat.severed.store(true, Ordering::SeqCst);
        let mut state = self.lock();
        let path = &seat.path;
        state.trouble.tell(format_args!("SEVERED: {path}"));
        if let Some(present) = state.present(seat) {
            present.dead_at = Some(now + limits::PRESENCE_TTL);
            present.retired = false;
            present.said.clear();
        }
        state.wake_all();
        seat.voice.notify_waiters();
    }
}

/// Replies on their way into a process.
type Direct = Vec<(Inbound, Bytes)>;

/// Without the lock: what takes them is not ours.
fn hand_over(direct: Direct) {
    for (inbound, frame) in direct {
        inbound.control(frame);
    }
}

fn nobody(scope: &NodePath, service: &Service) -> SendError {
    SendError::NoRoute(format!("no live member below {scope} offers {service}"))
}
