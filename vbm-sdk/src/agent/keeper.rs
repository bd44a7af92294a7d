//! Keepers: one task per VM that brings it to what is wanted and tells how it is.

use super::{
    Agent,
    decide::{Memory, Step, decide},
    errands::{self, Errand, Ledger, Next},
};
use crate::methods::{GoneVm, SnapshotFate, VmSeen, WantedVm};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use vbm_core::{DriverKind, Error, ErrorKind, Generation, PowerState, Result, RetryAdvice, VmId, VmStatus};
use vbm_hyper::{VmHandle, VmSeen as MachineSeen};
use vbm_rpc::layers::{Ambient, TraceContext};

/// After the first failure; doubled with each further one.
const RETRY_FIRST: Duration = Duration::from_millis(500);
/// The longest wait after a failure.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// A failure that may pass is told after so many tries.
const TRIES_BEFORE_PROBLEM: u32 = 3;

/// How long a call waits until networks know what a VM is told: their actors may be busy.
const DESCRIBE_MAX: Duration = Duration::from_secs(1);

/// The handle of a keeper.
#[derive(Clone)]
pub(super) struct VmKeeper {
    wanted: watch::Sender<Option<WantedVm>>,
    trace: Arc<Mutex<Option<TraceContext>>>,
    status: watch::Receiver<VmStatus>,
    end: CancellationToken,
    ended: CancellationToken,
}

impl VmKeeper {
    /// `adopted` says that the VM was found running after a restart of the agent.
    pub(super) fn spawn(agent: &Agent, driver: DriverKind, id: VmId, adopted: bool) -> Self {
        let (wanted, wanted_seen) = watch::channel(None);
        let power = agent
            .machines(driver)
            .map_or(PowerState::Off, |m| m.vm(id).watch().borrow().power());
        let (status, status_seen) = watch::channel(VmStatus {
            power,
            ..VmStatus::default()
        });
        let (end, ended) = (agent.inner.stop.child_token(), CancellationToken::new());
        let trace = Arc::default();
        let keeper = Keeper {
            trace: Arc::clone(&trace),
            agent: agent.clone(),
            id,
            driver,
            memory: Memory::default(),
            ledger: Ledger::default(),
            failures: 0,
            problem: None,
            told: None,
            adopted,
            status,
        };
        let (stop, done) = (end.clone(), ended.clone().drop_guard());
        agent.inner.tasks.spawn(async move {
            keeper.run(wanted_seen, stop).await;
            drop(done);
        });
        Self {
            wanted,
            trace,
            status: status_seen,
            end,
            ended,
        }
    }

    /// Says what is wanted. An older generation than the one known is ignored.
    pub(super) fn want(&self, wanted: WantedVm) {
        self.wanted.send_if_modified(|now| {
            let newer = now
                .as_ref()
                .is_none_or(|n| n.generation <= wanted.generation && *n != wanted);
            if newer {
                // Of the request that this is for: what the keeper does from now on stands in its name.
                *self.trace.lock().unwrap_or_else(PoisonError::into_inner) = Ambient::current().trace;
                *now = Some(wanted);
            }
            newer
        });
    }

    /// What is wanted, as far as anybody said it.
    pub(super) fn wants(&self) -> Option<WantedVm> {
        self.wanted.borrow().clone()
    }

    pub(super) fn status(&self) -> VmStatus {
        self.status.borrow().clone()
    }

    /// Ends the task and waits for it.
    pub(super) async fn end(&self) {
        self.end.cancel();
        self.ended.cancelled().await;
    }
}

/// What a keeper does.
#[derive(Clone, Debug)]
pub(super) enum Doing {
    /// A step towards the power state that is wanted.
    Step(Step),
    /// Something beside it.
    Errand(Errand),
}

/// How an act ended.
enum Acted {
    Done(Option<SnapshotFate>),
    Failed(Error),
    WantedChanged,
    NobodyWants,
}

pub(super) struct Keeper {
    pub(super) agent: Agent,
    id: VmId,
    driver: DriverKind,
    memory: Memory,
    ledger: Ledger,
    failures: u32,
    problem: Option<Error>,
    /// For what its networks know what the guest may read.
    told: Option<WantedVm>,
    /// Found running after a restart of the agent, which is still to be told.
    adopted: bool,
    status: watch::Sender<VmStatus>,
    /// Of the request for what is wanted.
    trace: Arc<Mutex<Option<TraceContext>>>,
}

impl Keeper {
    async fn run(mut self, mut wanted: watch::Receiver<Option<WantedVm>>, stop: CancellationToken) {
        tokio::select! {
            () = self.keep(&mut wanted) => {}
            () = stop.cancelled() => {}
        }
    }

    /// Looks, acts, and looks again. Ends when nobody can want anything any more.
    ///
    /// Dropping it in the middle of an act does not undo the act: jobs belong to the VM's actor, a disk is made
    /// whole or not at all, and the next look sees what came of it.
    async fn keep(&mut self, wanted: &mut watch::Receiver<Option<WantedVm>>) {
        let machine = self.agent.machines(self.driver).map(|m| m.vm(self.id));
        let mut known = None;
        loop {
            let Some(want) = wanted.borrow_and_update().clone() else {
                if wanted.changed().await.is_err() {
                    return;
                }
                continue;
            };
            if known.replace(want.generation) != Some(want.generation) {
                self.failures = 0;
                self.problem = None;
            }
            let machine = match &machine {
                Ok(machine) => machine,
                Err(problem) => {
                    self.problem = Some(problem.clone());
                    self.report(None, &want, None);
                    if wanted.changed().await.is_err() {
                        return;
                    }
                    continue;
                }
            };
            let mut seen = machine.watch();
            self.ledger.prune(&want);
            let doing = self.next(&want, &seen.borrow_and_update());
            self.report(Some(machine), &want, None);
            // An adoption happened once, whatever is wanted by now; the reporter keeps it until it was heard.
            self.adopted = false;
            let gone = match doing {
                None => {
                    let untold = seen.borrow().power().is_live() && self.told.as_ref() != Some(&want);
                    let gone = tokio::select! {
                        changed = wanted.changed() => Some(changed.is_err()),
                        changed = seen.changed() => Some(changed.is_err()),
                        () = self.tell_guest(&want), if untold => None,
                    };
                    if gone.is_none() {
                        self.told = Some(want);
                    }
                    gone.unwrap_or(false)
                }
                Some(doing) => {
                    let span = self.span();
                    let acting = async {
                        tracing::info!(name = %want.name, ?doing, "working on a VM");
                        let acted = self.act_and_tell(&doing, &want, machine, wanted, &mut seen).await;
                        self.settle(acted, &doing, &want, machine, wanted).await
                    };
                    acting.instrument(span).await
                }
            };
            if gone {
                return;
            }
        }
    }

    /// Tells the VM's networks what its guest may read, and tries again until all of them know: after a start of the agent they may
    /// not be here yet, and until then the guest is answered nothing.
    ///
    /// # Cancel safety
    /// Saying it again changes nothing.
    async fn tell_guest(&self, want: &WantedVm) {
        let mut wait = RETRY_FIRST;
        loop {
            match timeout(DESCRIBE_MAX, self.agent.describe(want)).await {
                Ok(Ok(())) => return,
                Ok(Err(error)) => {
                    tracing::debug!(vm = %self.id, error = %error.inline(), "its metadata is not told yet");
                }
                Err(_) => {
                    tracing::debug!(vm = %self.id, "its metadata is not told yet: its networks are busy")
                }
            }
            tokio::time::sleep(wait).await;
            wait = wait.saturating_mul(2).min(RETRY_MAX);
        }
    }

    fn span(&self) -> tracing::Span {
        let trace = *self.trace.lock().unwrap_or_else(PoisonError::into_inner);
        let span = tracing::info_span!("vm", id = %self.id, trace_id = tracing::field::Empty);
        if let Some(trace) = trace {
            span.record(
                "trace_id",
                tracing::field::display(format_args!("{:032x}", trace.trace_id)),
            );
        }
        span
    }

    /// What to do next; `None` when nothing is to be done until something changes.
    fn next(&mut self, want: &WantedVm, seen: &MachineSeen) -> Option<Doing> {
        let power = seen.power();
        if want.held {
            return None;
        }
        match errands::next(want, power, seen.busy.is_some(), &self.ledger) {
            Next::Do(errand) => return Some(Doing::Errand(errand)),
            Next::Hold => return None,
            Next::Power => {}
        }
        match decide(want.power, want.generation, power, self.memory) {
            Step::Settled => {
                self.memory.reached = Some(want.generation);
                self.problem = None;
                None
            }
            Step::Wait => None,
            step => Some(Doing::Step(step)),
        }
    }

    /// Acts, and tells each state that the VM is in meanwhile.
    async fn act_and_tell(
        &self,
        doing: &Doing,
        want: &WantedVm,
        machine: &VmHandle,
        wanted: &mut watch::Receiver<Option<WantedVm>>,
        seen: &mut watch::Receiver<MachineSeen>,
    ) -> Acted {
        let act = self.act(doing, want, machine);
        tokio::pin!(act);
        loop {
            tokio::select! {
                done = &mut act => return done.map_or_else(Acted::Failed, Acted::Done),
                changed = wanted.changed() => {
                    if changed.is_err() {
                        return Acted::NobodyWants;
                    }
                    let newer = wanted.borrow_and_update();
                    let ends = newer.as_ref().is_none_or(|newer| match doing {
                        Doing::Step(_) => errands::ends_step(newer, want),
                        Doing::Errand(_) => errands::ends_errand(newer, want),
                    });
                    if ends {
                        return Acted::WantedChanged;
                    }
                }
                Ok(()) = seen.changed() => {
                    seen.borrow_and_update();
                    // That the guest is halted for a moment is told with the snapshot.
                    if matches!(doing, Doing::Errand(Errand::Take(_))) {
                        continue;
                    }
                    self.report(Some(machine), want, None);
                }
            }
        }
    }

    /// Remembers how an act ended, and waits before what failed is tried again. True when nobody can want anything any more.
    async fn settle(
        &mut self,
        acted: Acted,
        doing: &Doing,
        want: &WantedVm,
        machine: &VmHandle,
        wanted: &mut watch::Receiver<Option<WantedVm>>,
    ) -> bool {
        match (acted, doing) {
            (Acted::WantedChanged, _) => false,
            (Acted::NobodyWants, _) => true,
            (Acted::Done(fate), doing) => {
                self.failures = 0;
                match (doing, fate) {
                    (Doing::Errand(Errand::Take(id)), Some(fate)) => self.ledger.taken(*id, fate),
                    (Doing::Errand(errand), _) => self.ledger.done(errand),
                    (Doing::Step(_), _) => {}
                }
                false
            }
            (Acted::Failed(error), Doing::Step(_)) => self.failed(error, want, machine, wanted).await,
            (Acted::Failed(error), Doing::Errand(errand)) => self.errand_failed(error, errand, wanted).await,
        }
    }

    /// An errand is idempotent: what may pass, and what nobody knows the end of, is tried again a few times.
    async fn errand_failed(
        &mut self,
        error: Error,
        errand: &Errand,
        wanted: &mut watch::Receiver<Option<WantedVm>>,
    ) -> bool {
        self.failures = self.failures.saturating_add(1);
        tracing::warn!(vm = %self.id, ?errand, failures = self.failures, error = %error.inline(), "an errand failed");
        let may_pass = error.retry_advice() != RetryAdvice::Never && error.kind() != ErrorKind::Cancelled;
        let final_word = error.kind() == ErrorKind::Conflict;
        if !may_pass || final_word || self.failures >= TRIES_BEFORE_PROBLEM {
            self.failures = 0;
            self.ledger.failed(errand, error);
            return false;
        }
        tokio::select! {
            () = tokio::time::sleep(self.pause()) => false,
            changed = wanted.changed() => changed.is_err(),
        }
    }

    /// How long to wait before the next try: doubled with each failure.
    fn pause(&self) -> Duration {
        RETRY_FIRST
            .saturating_mul(1 << self.failures.min(10))
            .min(RETRY_MAX)
    }

    /// Waits before the next try; ends the wait when something else is wanted. True when nobody can want anything any more.
    async fn failed(
        &mut self,
        error: Error,
        want: &WantedVm,
        machine: &VmHandle,
        wanted: &mut watch::Receiver<Option<WantedVm>>,
    ) -> bool {
        self.failures = self.failures.saturating_add(1);
        tracing::warn!(vm = %want.name, failures = self.failures, error = %error.inline(), "the VM is not as wanted");
        let passing = error.is_retryable();
        if !passing || self.failures >= TRIES_BEFORE_PROBLEM {
            self.problem = Some(error);
        }
        self.report(Some(machine), want, None);
        let wait = if passing { self.pause() } else { RETRY_MAX };
        tokio::select! {
            () = tokio::time::sleep(wait) => false,
            changed = wanted.changed() => changed.is_err(),
        }
    }

    /// Tells how the VM is.
    pub(super) fn report(&self, machine: Option<&VmHandle>, want: &WantedVm, doing: Option<&str>) {
        let seen = machine.map(|m| m.watch().borrow().seen.clone());
        let told_off = self.problem.is_some();
        let status = VmStatus {
            power: seen.as_ref().map_or(PowerState::Off, |s| s.power),
            observed: if told_off {
                want.generation
            } else {
                self.memory.reached.unwrap_or(Generation(0))
            },
            accelerator: seen.as_ref().and_then(|s| s.accelerator.clone()),
            pid: seen.as_ref().and_then(|s| s.pid),
            since: self.agent.inner.clock.now(),
            problem: self.problem.clone(),
        };
        self.status.send_replace(status.clone());
        self.agent.inner.reporter.tell(VmSeen {
            id: self.id,
            status,
            doing: doing.map(str::to_owned),
            adopted: self.adopted,
            snapshots: self.ledger.snapshots(),
            reverted: self.ledger.reverted(),
        });
    }
}

impl Agent {
    pub(super) async fn vm_ensure(&self, wanted: WantedVm) -> Result<VmStatus> {
        let keeper = self.keeper(wanted.driver, wanted.id, false);
        // For one that runs already: who asked for it may count on it. Where its networks are not here yet, its keeper says it again.
        if !matches!(timeout(DESCRIBE_MAX, self.describe(&wanted)).await, Ok(Ok(()))) {
            tracing::debug!(vm = %wanted.id, "its metadata is not told yet");
        }
        keeper.want(wanted);
        Ok(keeper.status())
    }

    /// Ends a VM and removes all that this node holds of it. Goes past failures and gives the first one back.
    pub(super) async fn vm_remove(&self, gone: GoneVm) -> Result<()> {
        self.forget_move(gone.id);
        if let Some(keeper) = self.forget_keeper(gone.id) {
            keeper.end().await;
        }
        let mut first = None;
        let mut note = |done: Result<()>| {
            if let Err(e) = done {
                first.get_or_insert(e);
            }
        };
        if let Ok((_, machine)) = self.machine(gone.id) {
            if machine.watch().borrow().power() == PowerState::Saved {
                note(machine.discard_saved().await.map_err(Error::from));
            }
            note(machine.force_off().await.map_err(Error::from));
            note(machine.remove().await.map_err(Error::from));
        }
        for (network, port) in gone.nics {
            note(
                self.inner
                    .networks
                    .close_nic(network, port)
                    .await
                    .map_err(Error::from),
            );
        }
        if !gone.keep_volume {
            note(self.inner.volumes.remove(gone.volume).await.map_err(Error::from));
        }
        note(self.inner.reverts.forget(gone.id));
        first.map_or(Ok(()), Err)
    }

    pub(super) async fn vm_reset(&self, id: VmId) -> Result<()> {
        let (_, machine) = self.machine(id)?;
        machine.reset().await.map_err(Error::from)?;
        tracing::info!(vm = %id, "the reset button was pressed");
        Ok(())
    }
}
