//! A thin client of Redis Cluster: who owns which slot, and a batch split by owner.
//!
//! ```text
//!   batch:  EXISTS {eu/r1}..  XADD {eu/r1}..  ZCOUNT {eu}..  XADD {eu}..  TIME
//!   wires:  |---- node of slot(eu/r1) ----|   |- of slot(eu) -|           home
//!                      answers put together again in the order of the batch
//! ```
//!
//! - All keys of a command carry one hash tag, so the first key says where it goes. Commands without a key go *home*:
//!   to the owner of the member's own slot.
//! - A `MOVED` corrects the map and is followed, an `ASK` is followed without remembering it, at most
//!   [`REDIRECTS_MAX`] times. A node that cannot be reached makes the map be asked anew.
//! - While home is reachable, commands for an unreachable node fail by themselves ([`NODE_DOWN`]) and disturb no
//!   others; when it is back, [`Many::recovered`] says so once. Without home everything is [`Down`].

mod slots;

pub(super) use slots::{Redirect, Slots, by_slot, slot};

use super::{
    config::Host,
    connect::{Answer, Down, NODE_DOWN, Shared, Wire, is_down},
    lock, pack,
};
use futures::{StreamExt, future::join_all, stream::FuturesUnordered};
use redis::{Cmd, Pipeline, Value, cmd};
use slots::key;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::time::{Instant, timeout};

/// The longest one node may take to be reached and to tell who owns what.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
/// How often a command is sent on to another node.
const REDIRECTS_MAX: usize = 3;
/// A node that could not be reached is left alone for so long.
const AVOID: Duration = Duration::from_millis(300);

/// Who owns what, by the first of these that answers.
pub(super) async fn ask(shared: &Shared, nodes: &[Host]) -> Result<Slots, Down> {
    let mut asking: FuturesUnordered<_> = nodes
        .iter()
        .map(|node| async move {
            let ask = async {
                let answer = shared.wire(node).await?.one(cmd("CLUSTER").arg("SLOTS")).await?;
                answer.map(|answer| Slots::read(&answer, node)).map_err(Down)
            };
            match timeout(ASK_TIMEOUT, ask).await {
                Ok(answer) => answer.map_err(|Down(why)| format!("{node}: {why}")),
                Err(_late) => Err(format!("{node}: no answer within {} s", ASK_TIMEOUT.as_secs())),
            }
        })
        .collect();
    let mut troubles = Vec::new();
    while let Some(answer) = asking.next().await {
        match answer {
            Ok(slots) if !slots.is_empty() => return Ok(slots),
            Ok(_) => troubles.push("it owns no slots and knows nobody who does".to_owned()),
            Err(why) => troubles.push(why),
        }
    }
    Err(Down(format!(
        "no node of the cluster tells its slots: {}",
        troubles.join("; ")
    )))
}

/// Wires to the masters of a cluster. Clones share them.
#[derive(Clone)]
pub(super) struct Many {
    shared: Arc<Shared>,
    home: u16,
    wires: Arc<Mutex<Wires>>,
    recovered: Arc<AtomicBool>,
}

#[derive(Default)]
struct Wires {
    open: HashMap<Host, Wire>,
    /// Broke, and was not reached again.
    broken: HashSet<Host>,
    /// Is left alone until then.
    avoid: HashMap<Host, Instant>,
}

/// Where one command goes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Way {
    to: Host,
    asking: bool,
}

/// What one node answered.
struct Part {
    way: Way,
    places: Vec<usize>,
    answers: Result<Vec<redis::RedisResult<Value>>, Down>,
}

impl Many {
    pub(super) fn new(shared: Arc<Shared>, home: u16) -> Self {
        Self {
            shared,
            home,
            wires: Arc::default(),
            recovered: Arc::default(),
        }
    }

    pub(super) fn recovered(&self) -> bool {
        self.recovered.swap(false, Ordering::AcqRel)
    }

    /// Without home there is nothing.
    pub(super) async fn open_home(&self) -> Result<(), Down> {
        let home = self.owner(self.home)?;
        self.wire(&home).await.map(drop)
    }

    fn owner(&self, slot: u16) -> Result<Host, Down> {
        let owner = lock(&self.shared.slots).owner(slot);
        owner.ok_or_else(|| Down(format!("nobody in the cluster has the slot {slot}")))
    }

    async fn wire(&self, host: &Host) -> Result<Wire, Down> {
        {
            let wires = lock(&self.wires);
            if let Some(wire) = wires.open.get(host) {
                return Ok(wire.clone());
            }
            if wires.avoid.get(host).is_some_and(|until| *until > Instant::now()) {
                return Err(Down(format!("{host} could not be reached a moment ago")));
            }
        }
        match self.shared.wire(host).await {
            Ok(wire) => {
                let mut wires = lock(&self.wires);
                wires.avoid.remove(host);
                if wires.broken.remove(host) {
                    self.recovered.store(true, Ordering::Release);
                }
                // Two may have opened one: the last is kept, the other one ends with its answers.
                wires.open.insert(host.clone(), wire.clone());
                Ok(wire)
            }
            Err(down) => {
                self.broke(host);
                if let Err(Down(why)) = self.shared.refresh_slots().await {
                    tracing::debug!(why, "the slots could not be asked for");
                }
                Err(down)
            }
        }
    }

    fn broke(&self, host: &Host) {
        let mut wires = lock(&self.wires);
        wires.open.remove(host);
        wires.broken.insert(host.clone());
        wires.avoid.insert(host.clone(), Instant::now() + AVOID);
    }

    /// Runs a batch over all nodes it concerns; `last` goes to each of them at the end, and its smallest answer is
    /// given besides those of the batch.
    pub(super) async fn run(
        &self,
        batch: &Pipeline,
        limit: Duration,
        last: Option<&Cmd>,
    ) -> Result<(Vec<Answer>, i64), Down> {
        let commands: Vec<&Cmd> = batch.cmd_iter().collect();
        let home = self.owner(self.home)?;
        let mut answers: Vec<Answer> = vec![Err(NODE_DOWN.into()); commands.len()];
        let mut ways: BTreeMap<Way, Vec<usize>> = BTreeMap::new();
        for (place, command) in commands.iter().enumerate() {
            let slot = key(command).map_or(self.home, slot);
            match self.owner(slot) {
                Ok(to) => ways.entry(Way { to, asking: false }).or_default().push(place),
                Err(Down(why)) => answers[place] = Err(format!("{NODE_DOWN} {why}")),
            }
        }
        let mut fewest = i64::MAX;
        for _ in 0..=REDIRECTS_MAX {
            if ways.is_empty() {
                break;
            }
            let running = ways
                .into_iter()
                .map(|(way, places)| self.part(way, places, &commands, limit, last));
            let parts = join_all(running).await;
            ways = BTreeMap::new();
            for part in parts {
                fewest = fewest.min(self.settle(part, &home, &mut answers, &mut ways, last.is_some())?);
            }
        }
        Ok((answers, if fewest == i64::MAX { 0 } else { fewest }))
    }

    async fn part(
        &self,
        way: Way,
        places: Vec<usize>,
        commands: &[&Cmd],
        limit: Duration,
        last: Option<&Cmd>,
    ) -> Part {
        let mut batch = redis::pipe();
        for &place in &places {
            if way.asking {
                batch.cmd("ASKING");
            }
            batch.add_command(Cmd::clone(commands[place]));
        }
        if let Some(last) = last {
            batch.add_command(last.clone());
        }
        let mut answers = match self.wire(&way.to).await {
            Ok(mut wire) => wire
                .batch(&mut batch, limit)
                .await
                .inspect_err(|_| self.broke(&way.to)),
            Err(down) => Err(down),
        };
        if let (true, Ok(all)) = (way.asking, &mut answers) {
            // Those of ASKING itself stand before each.
            let mut kept = Vec::with_capacity(all.len());
            for (at, answer) in all.drain(..).enumerate() {
                if at % 2 == 1 || at == 2 * places.len() {
                    kept.push(answer);
                }
            }
            *all = kept;
        }
        Part { way, places, answers }
    }

    /// Puts the answers of one node at their places; what it sends on goes into `ways`. Gives how many replicas have it.
    fn settle(
        &self,
        part: Part,
        home: &Host,
        answers: &mut [Answer],
        ways: &mut BTreeMap<Way, Vec<usize>>,
        replicated: bool,
    ) -> Result<i64, Down> {
        let Part {
            way,
            places,
            answers: got,
        } = part;
        let mut got = match got {
            Ok(got) => got,
            Err(Down(why)) => {
                if way.to == *home {
                    return Err(Down(why));
                }
                for place in places {
                    answers[place] = Err(format!("{NODE_DOWN} {}: {why}", way.to));
                }
                // Its commands are told apart by their errors.
                return Ok(i64::MAX);
            }
        };
        let mut have = i64::MAX;
        if replicated {
            have = got
                .pop()
                .and_then(Result::ok)
                .as_ref()
                .and_then(pack::number)
                .unwrap_or(0);
        }
        for (place, answer) in places.into_iter().zip(got) {
            let error = match answer {
                Ok(value) => {
                    answers[place] = Ok(value);
                    continue;
                }
                Err(error) => error,
            };
            if let Some(redirect) = Redirect::of(&error) {
                lock(&self.shared.slots).learn(&redirect);
                let next = Way {
                    asking: !redirect.for_good,
                    to: redirect.to,
                };
                answers[place] = Err(format!("{NODE_DOWN} {error}"));
                ways.entry(next).or_default().push(place);
            } else if is_down(&error) {
                if way.to == *home {
                    return Err(Down(error.to_string()));
                }
                answers[place] = Err(format!("{NODE_DOWN} {}: {error}", way.to));
            } else {
                answers[place] = Err(error.to_string());
            }
        }
        Ok(have)
    }
}
