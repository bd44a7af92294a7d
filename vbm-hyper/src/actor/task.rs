//! The task that owns one VM.

use super::{
    Job, StopOutcome, VmSeen,
    changes::Teller,
    job::{AnyJob, Reply, Typed, answer},
    machines::Gate,
    policy,
    work::{About, Desk},
};
use crate::{Driver, DriverEvent, Error, NicBackend, OpCx, Result, Seen, VmDefinition, limits};
use std::{collections::VecDeque, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use vbm_core::{Clock, OperationId, PowerState, VmId};

/// Makes a job of a driver.
pub(super) type BeginWith = Box<dyn FnOnce(Arc<dyn Driver>, Option<GateOf>) -> Box<dyn AnyJob> + Send>;
/// The gate of a VM.
pub(super) type GateOf = (Arc<dyn Gate>, VmId);

/// What an actor can be told: its whole command surface.
pub(super) enum Command {
    Start(OpCx, Box<VmDefinition>, Vec<NicBackend>, Reply<Seen>),
    Stop(OpCx, Duration, Reply<StopOutcome>),
    ForceOff(Reply<()>),
    /// Reset, pause, resume, remove.
    Simple(Job, Reply<()>),
    /// Work of a facet: hands the actor a job to begin.
    Facet(Errand, BeginWith),
    /// Calls off what runs, if it is that operation's.
    Cancel(Option<OperationId>, Reply<bool>),
    /// The driver reported something; `None`: something was missed, look.
    Saw(Option<DriverEvent>),
}

/// What a job is known by.
pub(super) struct Errand {
    pub(super) job: Job,
    pub(super) cx: OpCx,
    pub(super) about: About,
}

impl Errand {
    const fn new(job: Job, cx: OpCx) -> Self {
        let about = None;
        Self { job, cx, about }
    }
}

/// What an actor begins with.
pub(super) struct Begin {
    pub(super) id: VmId,
    pub(super) driver: Arc<dyn Driver>,
    pub(super) queue: mpsc::Receiver<Command>,
    pub(super) seen: watch::Sender<VmSeen>,
    pub(super) changes: Arc<Teller>,
    pub(super) end: CancellationToken,
    pub(super) desk: Desk,
    pub(super) gate: Option<Arc<dyn Gate>>,
    pub(super) clock: Arc<dyn Clock>,
}

/// Why an actor ended.
#[derive(PartialEq, Eq)]
pub(super) enum Ended {
    Removed,
    Shutdown,
}

pub(super) struct Actor {
    id: VmId,
    driver: Arc<dyn Driver>,
    queue: mpsc::Receiver<Command>,
    seen: watch::Sender<VmSeen>,
    changes: Arc<Teller>,
    end: CancellationToken,
    desk: Desk,
    gate: Option<Arc<dyn Gate>>,
    clock: Arc<dyn Clock>,
    running: Option<(Job, Box<dyn AnyJob>)>,
    /// Callers of force-off that came while one ran.
    force_offs: VecDeque<Reply<()>>,
}

impl Actor {
    pub(super) fn new(begin: Begin) -> Self {
        let Begin {
            id,
            driver,
            queue,
            seen,
            changes,
            end,
            desk,
            gate,
            clock,
        } = begin;
        Self {
            id,
            driver,
            queue,
            seen,
            changes,
            end,
            desk,
            gate,
            clock,
            running: None,
            force_offs: VecDeque::new(),
        }
    }

    pub(super) async fn run(mut self) -> Ended {
        loop {
            let running = &mut self.running;
            let job_done = std::future::poll_fn(|cx| match running {
                Some((_, job)) => job.poll(cx),
                None => std::task::Poll::Pending,
            });
            // Cancel safe: `recv` and `moved` lose nothing, and the job stays in `self.running` and goes on next time round.
            tokio::select! {
                () = self.end.cancelled() => return Ended::Shutdown,
                success = job_done => {
                    let job = self.running.take().map(|(job, _)| job);
                    self.desk.end();
                    if job == Some(Job::Remove) && success {
                        return Ended::Removed;
                    }
                    self.look().await;
                    self.next_force_off();
                }
                () = self.desk.moved() => self.desk.show(),
                command = self.queue.recv() => match command {
                    Some(command) => self.take(command).await,
                    None => return Ended::Shutdown,
                },
            }
        }
    }

    async fn take(&mut self, command: Command) {
        let (driver, id) = (Arc::clone(&self.driver), self.id);
        match command {
            Command::Saw(event) => self.saw(event).await,
            Command::ForceOff(reply) => {
                self.force_offs.push_back(reply);
                if !matches!(self.running, Some((Job::ForceOff, _))) {
                    self.next_force_off();
                }
            }
            Command::Cancel(operation, reply) => answer(reply, Ok(self.desk.call_off(operation))),
            Command::Start(cx, definition, nics, reply) => {
                let errand = Errand::new(Job::Start, cx.clone());
                let (gate, kind) = (self.gate.clone().map(|gate| (gate, id)), driver.kind());
                let work = async move { driver.start(&cx, &definition, nics).await };
                self.begin(errand, Typed::new(through(gate, kind, work), reply));
            }
            Command::Stop(_, _, reply) if self.rests() && self.running.is_none() => {
                answer(reply, Ok(ALREADY_OFF))
            }
            Command::Stop(cx, grace, reply) => {
                let errand = Errand::new(Job::Stop, cx.clone());
                let stop = stop(driver, id, self.seen.subscribe(), grace);
                let work = async move { cx.run("a stop", stop).await };
                self.begin(errand, Typed::new(work, reply));
            }
            Command::Simple(job, reply) => {
                let work = async move {
                    match job {
                        Job::Reset => driver.reset(id).await,
                        Job::Pause => driver.pause(id).await,
                        Job::Resume => driver.resume(id).await,
                        _ => driver.undefine(id).await,
                    }
                };
                self.begin(Errand::new(job, OpCx::new()), Typed::new(work, reply));
            }
            Command::Facet(errand, work) => {
                let gate = self.gate.clone().filter(|_| policy::makes_run(errand.job));
                let work = work(driver, gate.map(|gate| (gate, id)));
                self.begin_any(errand, work);
            }
        }
    }

    fn begin<T: Send + 'static>(&mut self, errand: Errand, work: Typed<T>) {
        self.begin_any(errand, Box::new(work));
    }

    /// Begins a job when the power table allows it and no other runs that it may not end. What has no power event the
    /// driver judges.
    fn begin_any(&mut self, errand: Errand, work: Box<dyn AnyJob>) {
        let job = errand.job;
        let running = self.running.as_ref().map(|(running, _)| *running);
        if let Some(running) = running.filter(|running| !policy::preempts(job, *running)) {
            let busy = Error::Busy {
                vm: self.id,
                job: running.as_str(),
            };
            return work.refuse(busy);
        }
        if let Some(event) = policy::event_of(job)
            && let Err(refused) = self.power().after(event)
        {
            return work.refuse(Error::Refused(refused));
        }
        self.preempt();
        self.put(errand, work);
    }

    /// Ends what runs.
    fn preempt(&mut self) {
        if let Some((job, work)) = self.running.take() {
            work.refuse(Error::Preempted {
                vm: self.id,
                job: job.as_str(),
            });
            self.desk.end();
        }
    }

    fn put(&mut self, errand: Errand, work: Box<dyn AnyJob>) {
        let Errand { job, cx, about } = errand;
        self.desk.begin(job, cx, about, &*self.clock);
        self.running = Some((job, work));
        self.seen.send_modify(|seen| seen.busy = Some(job));
    }

    /// Begins the next force-off that was asked for; whatever runs is ended for it.
    fn next_force_off(&mut self) {
        let Some(reply) = self.force_offs.pop_front() else {
            return;
        };
        self.preempt();
        let (driver, id) = (Arc::clone(&self.driver), self.id);
        let work = async move {
            match driver.kill(id).await {
                Err(Error::NoSuchVm(_)) => Ok(()),
                result => result,
            }
        };
        let errand = Errand::new(Job::ForceOff, OpCx::new());
        self.put(errand, Box::new(Typed::new(work, reply)));
    }

    async fn saw(&mut self, event: Option<DriverEvent>) {
        self.look().await;
        if let Some(event) = event {
            self.changes.tell(event);
        }
    }

    /// Asks the driver instead of trusting an event, which may be older than the last look.
    async fn look(&mut self) {
        let busy = self.running.as_ref().map(|(job, _)| *job);
        let seen = match timeout(limits::INSPECT_DEADLINE, self.driver.inspect(self.id)).await {
            Ok(Ok(seen)) => seen,
            Ok(Err(Error::NoSuchVm(_))) => Seen::resting(PowerState::Off),
            Ok(Err(_)) | Err(_) => Seen::resting(PowerState::Unknown),
        };
        let now = VmSeen { seen, busy };
        self.seen.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
    }

    fn power(&self) -> PowerState {
        self.seen.borrow().power()
    }

    fn rests(&self) -> bool {
        matches!(
            self.power(),
            PowerState::Off | PowerState::Crashed(_) | PowerState::Saved
        )
    }
}

const ALREADY_OFF: StopOutcome = StopOutcome::Off {
    pressed: 0,
    took: Duration::ZERO,
};

/// Presses the button until the VM is off or the grace has passed. Press failures are only told when the first one fails.
async fn stop(
    driver: Arc<dyn Driver>,
    id: VmId,
    mut seen: watch::Receiver<VmSeen>,
    grace: Duration,
) -> Result<StopOutcome> {
    let begun = Instant::now();
    let deadline = begun + grace;
    let mut pressed = 0;
    loop {
        match timeout_at(deadline, driver.stop(id)).await {
            Ok(Ok(())) | Err(_) => pressed += 1,
            Ok(Err(error)) if pressed == 0 => return Err(error),
            Ok(Err(error)) => tracing::debug!(%id, %error, "the button could not be pressed again"),
        }
        let next = (Instant::now() + policy::pause_after(pressed.max(1))).min(deadline);
        let off = seen.wait_for(|seen| !seen.power().is_live() && seen.power() != PowerState::Unknown);
        match timeout_at(next, off).await {
            Ok(Ok(_)) => {
                let took = begun.elapsed();
                return Ok(StopOutcome::Off { pressed, took });
            }
            Ok(Err(_)) => return Err(Error::ShutDown("the actor of this VM")),
            Err(_) if Instant::now() >= deadline => {
                let waited = begun.elapsed();
                return Ok(StopOutcome::StillRunning { pressed, waited });
            }
            Err(_) => {}
        }
    }
}

/// Does what makes a VM run when its gate lets it, and tells the gate how it went.
pub(super) async fn through<T>(
    gate: Option<GateOf>,
    driver: vbm_core::DriverKind,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let Some((gate, vm)) = gate else {
        return work.await;
    };
    let _pass = gate.may_start(driver, vm).await?;
    let result = work.await;
    gate.has_started(driver, result.as_ref().err());
    result
}
