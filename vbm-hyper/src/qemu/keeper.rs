//! The keeper: one task for each QEMU process. It alone knows what the VM's power state is.
//!
//! ```text
//!    pidfd ----ended---->  .--------.
//!    monitor --events--->  | keeper | --Lifecycle--> watch: View        (inspect, inventory)
//!    driver ---notes---->  |        |           `--> broadcast: DriverEvent
//!                          `--------'  lost monitor? reconnect, ask, go on
//! ```

use super::{
    Entry, Shared,
    books::Books,
    cause,
    errand::{self, Errand, Settled},
    lifecycle::{Exit, Input, Lifecycle, RunState},
    plug,
    process::Proc,
    qmp::{Connected, Qmp, QmpEvent},
    record::{Ended, VmDir},
    serial::{self, Hub},
    slots::Slots,
};
use crate::{
    DriverEvent, Error, Result, Seen, VmDefinition,
    limits::{ADOPT_DEADLINE, LAST_WORDS_DEADLINE, MONITOR_LOST_GRACE, MONITOR_RETRY, UNPLUGS_MAX},
};
use serde_json::Value;
use std::{future::Future, pin::Pin, sync::Arc};
use tokio::{
    sync::{broadcast, mpsc, oneshot, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use vbm_core::{Accelerator, PowerEvent, PowerState, Timestamp, VmId};

/// Notes that wait for a keeper.
const NOTES_MAX: usize = 64;

/// What a keeper is told by its driver.
#[derive(Debug)]
pub(super) enum Note {
    /// A report; the word back comes when it is in effect.
    Take(Input, oneshot::Sender<()>),
    /// The monitor is connected.
    Monitor(Connected),
}

/// What a guest did with a device that it was asked to let go of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unplug {
    Gone(String),
    Refused(String),
}

/// What a keeper shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct View {
    pub(super) seen: Seen,
    /// Resets seen in this run.
    pub(super) resets: u64,
    /// How often it went on after a halt.
    pub(super) resumes: u64,
    /// The process is gone, and what it left is cleared away.
    pub(super) over: bool,
}

/// One QEMU process, as the driver holds it.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) id: VmId,
    pub(super) books: Arc<Books>,
    pub(super) process: Arc<Proc>,
    pub(super) view: watch::Receiver<View>,
    pub(super) monitor: watch::Receiver<Option<Qmp>>,
    pub(super) serial: Hub,
    pub(super) has_display: bool,
    pub(super) qemu_version: String,
    /// The one place for an errand.
    pub(super) errand: Arc<tokio::sync::Mutex<()>>,
    /// How long it is still waited for, while it is to arrive.
    pub(super) lease: super::arrival::Lease,
    /// Held while a device comes or goes.
    pub(super) plugging: tokio::sync::Mutex<()>,
    /// What becomes of devices that go.
    pub(super) unplugs: broadcast::Sender<Unplug>,
    notes: mpsc::Sender<Note>,
}

impl Machine {
    /// What it is now: hot-plug changes it.
    pub(super) fn definition(&self) -> Arc<VmDefinition> {
        self.books.definition()
    }

    /// Tells the keeper, and waits until it has taken it.
    pub(super) async fn tell(&self, input: Input) {
        let (done, taken) = oneshot::channel();
        if self.notes.send(Note::Take(input, done)).await.is_ok() {
            // An error means that the keeper has ended, and with it the VM.
            drop(taken.await);
        }
    }

    /// Gives up a start, from where nobody can wait.
    pub(super) fn give_up(&self) {
        let (done, _) = oneshot::channel();
        if self
            .notes
            .try_send(Note::Take(Input::StartGivenUp, done))
            .is_err()
        {
            tracing::debug!(id = %self.id, "the keeper has ended or is busy");
        }
        self.process.kill();
    }

    pub(super) async fn hand_monitor(&self, connected: Connected) -> Result<()> {
        let sent = self.notes.send(Note::Monitor(connected)).await;
        sent.map_err(|_| Error::StartFailed {
            why: "it ended".into(),
        })
    }

    /// Runs a command on the monitor. A time-out makes the VM unresponsive, not failed.
    pub(super) async fn command(&self, command: &str, arguments: Value) -> Result<Value> {
        let qmp = self.qmp(command)?;
        let result = qmp.execute(command, arguments).await;
        if let Err(Error::Timeout { .. }) = result {
            self.tell(Input::Silent).await;
        }
        result
    }

    pub(super) fn qmp(&self, command: &str) -> Result<Qmp> {
        self.monitor.borrow().clone().ok_or_else(|| Error::Disconnected {
            command: command.to_owned(),
        })
    }

    pub(super) fn seen(&self) -> Seen {
        self.view.borrow().seen.clone()
    }

    /// Waits until the view is as wanted, or the VM is over.
    pub(super) async fn wait_for(&self, mut wanted: impl FnMut(&View) -> bool) -> View {
        let mut view = self.view.clone();
        match view.wait_for(|v| v.over || wanted(v)).await {
            Ok(view) => view.clone(),
            // The keeper has ended without a word: the daemon is going down.
            Err(_) => self.view.borrow().clone(),
        }
    }
}

/// What a keeper begins with.
pub(super) struct Begin {
    pub(super) definition: VmDefinition,
    /// Where its devices are.
    pub(super) slots: Slots,
    pub(super) process: Proc,
    pub(super) accelerator: Accelerator,
    pub(super) started_at: Timestamp,
    pub(super) has_display: bool,
    pub(super) qemu_version: String,
    /// `Unknown` for a process that was found: it is connected to by the keeper.
    pub(super) power: PowerState,
    /// Its memory stays on disk when it cannot be read back.
    pub(super) keeps_memory: bool,
}

/// What a look at a VM has found.
struct Found {
    /// A new connection, if there was none.
    connected: Option<Connected>,
    state: RunState,
    /// What came of an errand of an earlier daemon.
    settled: Option<Settled>,
}

/// A look at a VM over a new or an old connection.
type Look = Pin<Box<dyn Future<Output = Option<Found>> + Send>>;

struct Keeper {
    shared: Arc<Shared>,
    id: VmId,
    dir: VmDir,
    disk: std::path::PathBuf,
    books: Arc<Books>,
    unplugs: broadcast::Sender<Unplug>,
    process: Arc<Proc>,
    life: Lifecycle,
    view: watch::Sender<View>,
    monitor: watch::Sender<Option<Qmp>>,
    events: Option<mpsc::Receiver<QmpEvent>>,
    look: Option<Look>,
    notes: mpsc::Receiver<Note>,
    serial: Hub,
    /// Ends the serial hub with the run.
    end: CancellationToken,
}

/// Enters a process among the VMs and starts its keeper, in this order: its end comes after its entry.
pub(super) fn enter(shared: &Arc<Shared>, begin: Begin) -> Arc<Machine> {
    let id = begin.definition.id;
    let dir = VmDir::new(&shared.root, id);
    let (notes, queue) = mpsc::channel(NOTES_MAX);
    let process = Arc::new(begin.process);
    let seen = Seen::live(
        begin.power,
        process.pid(),
        Some(begin.accelerator),
        begin.started_at,
    );
    let (view_sender, view) = watch::channel(View {
        seen,
        resets: 0,
        resumes: 0,
        over: false,
    });
    let (monitor_sender, monitor) = watch::channel(None);
    let unplugs = broadcast::channel(UNPLUGS_MAX).0;
    let end = shared.scope.end.child_token();
    let disk = begin.definition.root_disk.clone();
    let books = Arc::new(Books::new(
        dir.clone(),
        shared.keep(id),
        begin.definition,
        begin.slots,
    ));
    let machine = Arc::new(Machine {
        id,
        books: Arc::clone(&books),
        process: Arc::clone(&process),
        view,
        monitor,
        serial: Hub::start(dir.serial_line(), end.clone(), &shared.scope.tasks),
        has_display: begin.has_display,
        qemu_version: begin.qemu_version,
        errand: Arc::default(),
        lease: super::arrival::Lease::new(),
        plugging: tokio::sync::Mutex::default(),
        unplugs: unplugs.clone(),
        notes,
    });
    let mut keeper = Keeper {
        shared: Arc::clone(shared),
        id,
        dir,
        disk,
        books,
        unplugs,
        process,
        life: match Lifecycle::new(begin.power) {
            life if begin.keeps_memory => life.keeping_memory(),
            life => life,
        },
        view: view_sender,
        monitor: monitor_sender,
        events: None,
        look: None,
        notes: queue,
        serial: machine.serial.clone(),
        end,
    };
    if begin.power == PowerState::Unknown {
        keeper.look = Some(keeper.connect(std::time::Duration::ZERO));
    }
    shared.lock().insert(id, Entry::Live(Arc::clone(&machine)));
    shared.scope.tasks.spawn(keeper.run());
    machine
}

impl Keeper {
    /// Ends with the process, or with the driver; then the process runs on.
    async fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let process = Arc::clone(&self.process);
        loop {
            let (events, look) = (&mut self.events, &mut self.look);
            let said = async {
                match events {
                    Some(events) => events.recv().await,
                    None => std::future::pending().await,
                }
            };
            let looked = async {
                match look {
                    Some(look) => look.await,
                    None => std::future::pending().await,
                }
            };
            // Cancel safe: receiving loses nothing; the look stays in `self.look`; the exit status stays with the kernel.
            tokio::select! {
                () = shared.scope.end.cancelled() => return,
                exit = process.exited() => return self.over(exit).await,
                event = said => match event {
                    Some(event) => self.heard(event),
                    None => self.lost_monitor(),
                },
                found = looked => self.looked(found),
                note = self.notes.recv() => match note {
                    Some(Note::Take(input, done)) => {
                        let silent = input == Input::Silent;
                        self.take(input);
                        say(done);
                        if silent {
                            self.ask();
                        }
                    }
                    Some(Note::Monitor(connected)) => self.use_monitor(connected),
                    // The driver holds the other end as long as the process lives.
                    None => return,
                },
            }
        }
    }

    fn heard(&mut self, event: QmpEvent) {
        match event {
            QmpEvent::DeviceDeleted { device } => return self.unplugged(device),
            QmpEvent::UnplugRefused { device } => {
                // Nobody may be waiting.
                drop(self.unplugs.send(Unplug::Refused(device)));
                return;
            }
            _ => {}
        }
        let arrived = event == QmpEvent::MigrationCompleted;
        self.take(Input::Said(event));
        if arrived && self.life.power == PowerState::MigratingIn {
            // It runs already, or it came as a paused one.
            self.ask();
        }
    }

    /// Tells who waits for it, and sees to it that nothing stays behind if nobody does.
    fn unplugged(&self, device: String) {
        drop(self.unplugs.send(Unplug::Gone(device.clone())));
        let late = super::hotplug::let_go(Arc::clone(&self.shared), self.id, device);
        self.shared.scope.tasks.spawn(late);
    }

    fn use_monitor(&mut self, connected: Connected) {
        self.events = Some(connected.events);
        self.monitor.send_replace(Some(connected.qmp));
    }

    /// The process lives, but its monitor is gone: reconnect, and if that takes long, say so.
    fn lost_monitor(&mut self) {
        self.events = None;
        self.monitor.send_replace(None);
        self.look = Some(self.connect(MONITOR_LOST_GRACE));
    }

    /// A silent monitor is asked once, for as long as it takes.
    fn ask(&mut self) {
        let qmp = self.monitor.borrow().clone();
        if let (Some(qmp), None) = (qmp, &self.look) {
            self.look = Some(Box::pin(async move {
                let status = qmp.send("query-status", Value::Null, None).await.ok()?;
                Some(Found {
                    connected: None,
                    state: run_state(&status),
                    settled: None,
                })
            }));
        }
    }

    /// Connects after a pause to one of the two monitors and asks for the run state.
    fn connect(&self, pause: std::time::Duration) -> Look {
        let (dir, id, scope) = (self.dir.clone(), self.id, self.shared.scope.clone());
        let (disk, adopts) = (self.disk.clone(), self.life.power == PowerState::Unknown);
        let books = Arc::clone(&self.books);
        Box::pin(async move {
            sleep(pause).await;
            for path in [dir.monitor(), dir.spare_monitor()] {
                let connected = match Qmp::connect(&path, ADOPT_DEADLINE, &scope).await {
                    Ok(connected) => connected,
                    Err(error) => {
                        tracing::debug!(%id, %error, "a monitor cannot be reached");
                        continue;
                    }
                };
                match meet(&connected.qmp, id, &dir, &disk, &books, adopts).await {
                    Ok((state, settled)) => {
                        return Some(Found {
                            connected: Some(connected),
                            state,
                            settled,
                        });
                    }
                    Err(error) => tracing::warn!(%id, %error, "a monitor is not what it should be"),
                }
            }
            None
        })
    }

    fn looked(&mut self, found: Option<Found>) {
        self.look = None;
        match found {
            Some(found) => {
                if let Some(connected) = found.connected {
                    self.use_monitor(connected);
                }
                match found.settled {
                    Some(Settled::Arriving { waits }) => {
                        self.take(Input::FoundArriving);
                        if waits {
                            self.take(Input::WaitsForWord);
                        }
                        let watch = super::arrival::watch(Arc::clone(&self.shared), self.id);
                        self.shared.scope.tasks.spawn(watch);
                    }
                    Some(Settled::Away) => return self.end_now(),
                    // The daemon died between manifest and first instruction; nobody was told that it started.
                    _ if self.life.power == PowerState::Unknown
                        && matches!(found.state, RunState::Prelaunch | RunState::InMigrate) =>
                    {
                        return self.end_now();
                    }
                    _ => {}
                }
                self.take(Input::Answered(found.state));
            }
            None if self.monitor.borrow().is_none() => {
                self.take(Input::Silent);
                self.look = Some(self.connect(MONITOR_RETRY));
            }
            // The monitor it was asked over is gone; that is noticed as the end of its events.
            None => {}
        }
    }

    fn end_now(&mut self) {
        self.take(Input::KillAsked);
        self.process.kill();
    }

    /// Takes a report, shows and tells what happened by it.
    fn take(&mut self, input: Input) {
        for event in self.life.take(input) {
            let power = self.life.power;
            let mut seen = self.view.borrow().seen.clone();
            seen.power = power;
            // Shown and told in one go: who hears of it sees it, and who sees it can have heard of it.
            self.view.send_modify(|view| {
                view.seen.clone_from(&seen);
                view.resets += u64::from(event == PowerEvent::Reset);
                view.resumes += u64::from(event == PowerEvent::Resume);
                self.shared.tell(DriverEvent::new(self.id, event, seen));
            });
        }
    }

    /// The process has ended: hear its last words, clear up, say how it ended.
    async fn over(mut self, exit: Exit) {
        if let Some(mut events) = self.events.take() {
            let last_words = async {
                while let Some(event) = events.recv().await {
                    self.take(Input::Said(event));
                }
            };
            if timeout(LAST_WORDS_DEADLINE, last_words).await.is_err() {
                tracing::debug!(id = %self.id, "the monitor outlives its process");
            }
        }
        while let Ok(note) = self.notes.try_recv() {
            if let Note::Take(input, done) = note {
                self.take(input);
                say(done);
            }
        }
        if let Ok(Some(heard)) = timeout(LAST_WORDS_DEADLINE, self.serial.past()).await
            && let Err(error) = serial::complete_log(&self.dir.serial_line(), &heard)
        {
            tracing::debug!(id = %self.id, %error, "the serial log may lack its last bytes");
        }
        self.end.cancel();
        let events = self.life.take(Input::Exited(exit));
        let seen = Seen::resting(self.life.power);
        let reason = self.life.shutdown_reason();
        let cause = cause::of_end(self.life.power, exit, reason, &self.dir.log_tail());
        let ended = matches!(self.life.power, PowerState::Crashed(_)).then(|| Ended {
            power: self.life.power,
            at: self.shared.clock.now(),
            cause,
        });
        self.books.close();
        if let Err(error) = self.dir.end_run(ended.as_ref()) {
            tracing::warn!(id = %self.id, %error, "what a VM left cannot be cleared away");
        }
        self.shared.rest(self.id, &self.process, seen.clone());
        self.view.send_modify(|view| {
            view.seen.clone_from(&seen);
            view.over = true;
            for event in events {
                self.shared.tell(DriverEvent::new(self.id, event, seen.clone()));
            }
        });
    }
}

/// The driver may not be waiting any more.
fn say(done: oneshot::Sender<()>) {
    if done.send(()).is_err() {
        tracing::trace!("nobody waited");
    }
}

fn run_state(status: &Value) -> RunState {
    RunState::parse(status["status"].as_str().unwrap_or_default())
}

/// Meets a process: makes sure that it is the VM, and if it was found, brings to an end what was being done with it.
async fn meet(
    qmp: &Qmp,
    id: VmId,
    dir: &VmDir,
    disk: &std::path::Path,
    books: &Books,
    adopts: bool,
) -> Result<(RunState, Option<Settled>)> {
    let state = verify(qmp, id).await?;
    // Also after a monitor was lost: what devices did meanwhile nobody has heard.
    if let Err(error) = plug::settle(qmp, dir, books).await {
        tracing::warn!(%id, %error, "the devices of a VM are not looked through; the journal stays");
    }
    match Errand::noted(dir).filter(|_| adopts) {
        Some(errand) => {
            let settled = errand::settle(qmp, dir, disk, errand).await?;
            let status = qmp.execute("query-status", Value::Null).await?;
            Ok((run_state(&status), Some(settled)))
        }
        None => Ok((state, None)),
    }
}

/// Makes sure that a monitor is that of the VM, and asks for its run state.
pub(super) async fn verify(qmp: &Qmp, id: VmId) -> Result<RunState> {
    let uuid = qmp.execute("query-uuid", Value::Null).await?;
    let found = uuid["UUID"].as_str().unwrap_or_default();
    if found != id.to_string() {
        return Err(Error::Hypervisor {
            command: "query-uuid".into(),
            why: format!("it says that it is VM {found}"),
        });
    }
    Ok(run_state(&qmp.execute("query-status", Value::Null).await?))
}
