//! Requests under suspicion are run alone.
//!
//! ```text
//!   delivered once, twice: with all others    after each death the count of the entry grows
//!   SUSPECT_AFTER deaths:  here, one request at a time, its own count written before it begins
//!   DELIVERIES_MAX:        dead letter
//! ```
//!
//! An entry holds up to 256 requests and a process many entries: when a process dies, all that it held is under the
//! same suspicion. Run alone, only the request that was running at the next death is blamed, and the innocent are done.
//! Counts stand beside the queue in a hash: `<entry>` how many processes died holding it, `<entry>/<n>` how often its
//! n-th request was begun alone, or [`DONE`].

use super::{
    Core,
    connect::BACKOFF_MAX,
    held::Source,
    keys::{Keys, STREAM_TTL},
    letters::{Letter, Proof},
    op::Op,
    pack::{self, Entry},
};
use crate::{
    Route,
    limits::{DELIVERIES_MAX, SUSPECT_AFTER},
    transport::{Completion, Delivery, Keeper},
};
use bytes::Bytes;
use redis::{Cmd, Value, cmd};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, sleep},
};

/// In place of a count: that request of the entry is done with.
const DONE: i64 = -1;

/// An entry whose holders died. It is held by this process already.
pub(super) struct Suspect {
    pub(super) key: Arc<str>,
    pub(super) entry: Entry,
    pub(super) group: bool,
    /// Who had it last.
    pub(super) worker: String,
}

/// What is to be done with one request of a suspect.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Skip,
    /// Run it alone; it is the so-many-th delivery.
    Run(u32),
    /// Delivered so often.
    Bury(u32),
}

/// By how often it was begun alone before.
fn judge(begun: i64) -> Verdict {
    if begun == DONE {
        return Verdict::Skip;
    }
    let before = SUSPECT_AFTER.saturating_add(u32::try_from(begun).unwrap_or(0));
    if before >= DELIVERIES_MAX {
        return Verdict::Bury(before);
    }
    Verdict::Run(before + 1)
}

pub(super) async fn run(core: Arc<Core>, mut suspects: mpsc::UnboundedReceiver<Suspect>) {
    while let Some(suspect) = suspects.recv().await {
        if core.retired.is_cancelled() || !alone(&core, suspect).await {
            // What was not begun stays for the next process, or is taken over.
            return;
        }
    }
}

fn field(entry: &str, at: usize) -> String {
    format!("{entry}/{at}")
}

/// Asks until Redis answers; an error that is no answer counts as nothing.
async fn insist(core: &Core, question: impl Fn() -> Cmd + Send + Sync) -> Value {
    loop {
        match core.ask(&question).await {
            Ok(value) => return value,
            Err(error) => tracing::debug!(%error, "the count of a suspect is not known yet"),
        }
        sleep(BACKOFF_MAX).await;
    }
}

/// Runs the requests of one entry, one after the other. `false` when the process takes no more.
async fn alone(core: &Arc<Core>, suspect: Suspect) -> bool {
    let Suspect {
        key,
        entry,
        group,
        worker,
    } = suspect;
    let proof = core.guard.as_ref().and_then(|_| Proof::of(&entry, group));
    let counts = Keys::counts(&key);
    let fields: Vec<String> = (0..entry.frames.len()).map(|at| field(&entry.id, at)).collect();
    let known = insist(core, || {
        let mut ask = cmd("HMGET");
        ask.arg(&counts).arg(&fields);
        ask
    })
    .await;
    let begun = |at: usize| match &known {
        Value::Array(list) => list.get(at).and_then(pack::number).unwrap_or(0),
        _ => 0,
    };
    tracing::warn!(%key, id = entry.id, requests = fields.len(), worker,
        "processes died with this entry: its requests are run alone");
    for (at, frame) in entry.frames.iter().enumerate() {
        match judge(begun(at)) {
            Verdict::Skip => {}
            Verdict::Bury(deliveries) => core.push(Op::Bury(Letter {
                queue: key.clone(),
                entry: entry.id.clone(),
                frame: frame.clone(),
                reason: "its process died with it again and again".into(),
                deliveries,
                worker: worker.clone(),
                proof: proof.clone(),
            })),
            Verdict::Run(deliveries) => {
                let one = One {
                    core,
                    since: core.sent_at(&entry.id, entry.sent_ms),
                    counts: &counts,
                    field: &fields[at],
                };
                let keeper = Arc::new(Alone {
                    source: Source {
                        core: core.clone(),
                        key: key.clone(),
                        id: entry.id.clone(),
                        deliveries,
                        proof: proof.clone(),
                    },
                    over: AtomicBool::new(false),
                    wake: Notify::new(),
                });
                if !one.run(frame, keeper).await {
                    return false;
                }
            }
        }
    }
    core.complete(key, entry.id.clone(), group);
    insist(core, || {
        let mut forget = cmd("HDEL");
        forget.arg(&counts).arg(&fields).arg(&entry.id);
        forget
    })
    .await;
    true
}

/// One request of a suspect.
struct One<'a> {
    core: &'a Arc<Core>,
    /// When it was sent.
    since: Instant,
    counts: &'a str,
    field: &'a str,
}

impl One<'_> {
    async fn count(&self, by: i64) {
        insist(self.core, || {
            let mut count = cmd("HINCRBY");
            count.arg(self.counts).arg(self.field).arg(by);
            count
        })
        .await;
    }

    async fn run(&self, frame: &Bytes, keeper: Arc<Alone>) -> bool {
        self.count(1).await;
        insist(self.core, || {
            let mut renew = cmd("PEXPIRE");
            renew
                .arg(self.counts)
                .arg(u64::try_from(STREAM_TTL.as_millis()).unwrap_or(u64::MAX));
            renew
        })
        .await;
        let delivery = Delivery {
            frame: frame.clone(),
            since: self.since,
            done: Completion::new(keeper.clone()),
        };
        if !self.core.inbound.request(delivery).await {
            self.count(-1).await;
            return false;
        }
        tokio::select! {
            // Cancel safe: both only wait.
            () = keeper.over() => {}
            () = self.core.retired.cancelled() => {
                // Who leaves in peace was not killed by it.
                self.count(-1).await;
                keeper.over().await;
            }
        }
        insist(self.core, || {
            let mut done = cmd("HSET");
            done.arg(self.counts).arg(self.field).arg(DONE);
            done
        })
        .await;
        true
    }
}

/// Tells when the one request is done with.
struct Alone {
    source: Source,
    over: AtomicBool,
    wake: Notify,
}

impl Alone {
    async fn over(&self) {
        while !self.over.load(Ordering::SeqCst) {
            // A permit is kept when nobody waits yet.
            self.wake.notified().await;
        }
    }
}

impl Keeper for Alone {
    fn home(&self) -> Option<Arc<Route>> {
        self.source.core.homes.get(&*self.source.key).cloned()
    }

    fn again(&self) -> bool {
        true
    }

    fn completed(&self) {
        self.over.store(true, Ordering::SeqCst);
        self.wake.notify_one();
    }

    fn buried(&self, frame: Bytes, reason: &str) {
        self.source.bury(frame, reason);
        self.completed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_run_alone_until_it_has_been_delivered_often_enough() {
        let verdicts: Vec<_> = (0..=3).map(judge).collect();
        assert_eq!(
            verdicts,
            [
                Verdict::Run(3),
                Verdict::Run(4),
                Verdict::Run(5),
                Verdict::Bury(5)
            ]
        );
        assert_eq!(judge(DONE), Verdict::Skip);
    }
}
