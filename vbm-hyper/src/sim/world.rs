//! The world that simulated VMs live in.

use super::guest::{self, Memory, Site};
use crate::{
    DriverEvent, Error, NicBackend, Result, Seen, SystemClock, VmDefinition,
    console::SerialReader,
    limits::{EVENTS_MAX, SERIAL_SCROLLBACK_BYTES},
};
use bytes::{Bytes, BytesMut};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{broadcast, mpsc},
    time::sleep,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use vbm_core::{Accelerator, Clock, CrashCause, PauseReason, PowerEvent, PowerState, VmId};

/// How long things take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latency {
    /// From the start to running processors.
    pub start: Duration,
    /// From the button to the end of an obedient guest.
    pub shutdown: Duration,
    /// From the kill to the end.
    pub kill: Duration,
    /// Any other command.
    pub command: Duration,
    /// Until a hypervisor that does not answer is given up.
    pub silence: Duration,
    /// Until a memory is written, read or sent.
    pub transfer: Duration,
}

impl Latency {
    /// Nothing takes time.
    pub const NONE: Self = Self {
        start: Duration::ZERO,
        shutdown: Duration::ZERO,
        kill: Duration::ZERO,
        command: Duration::ZERO,
        silence: Duration::ZERO,
        transfer: Duration::ZERO,
    };
}

impl Default for Latency {
    fn default() -> Self {
        Self {
            start: Duration::from_millis(100),
            shutdown: Duration::from_millis(200),
            kill: Duration::from_millis(10),
            command: Duration::from_millis(1),
            silence: Duration::from_secs(10),
            transfer: Duration::from_millis(50),
        }
    }
}

/// What goes wrong with a VM from now on. Faults stay until they are cleared, but for those of the next time.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The next start fails, with these words.
    NextStartFails(String),
    /// The next snapshot cannot be taken, with these words.
    NextSnapshotFails(String),
    /// The next time its memory cannot be written, with these words.
    NextSaveFails(String),
    /// The next time its memory cannot be read back, with these words.
    NextRestoreFails(String),
    /// The next time it cannot be sent away, with these words.
    NextMigrationFails(String),
    /// The file systems of the guest cannot be frozen, for this reason.
    CannotFreeze(String),
    /// The next time that it was sent away, its source does not hear that it has come.
    NextConfirmationIsLost,
    /// The next time it is asked to let go of a device, the guest refuses, with these words.
    NextUnplugRefused(String),
    /// The guest does not answer when it is asked to let go of a device.
    KeepsDevices,
    /// The guest ignores its power button.
    IgnoresButton,
    /// The hypervisor does not answer for it.
    Silent,
}

/// What outlives a driver: one simulated host and its VMs. Cheap to clone; all clones are the same host.
#[derive(Clone, Debug)]
pub struct SimWorld {
    inner: Arc<Inner>,
}

pub(super) struct Inner {
    /// What it shares with the hosts beside it.
    site: Arc<Site>,
    vms: Mutex<BTreeMap<VmId, SimVm>>,
    faults: Mutex<BTreeMap<VmId, Vec<Fault>>>,
    latency: Mutex<Latency>,
    events: broadcast::Sender<DriverEvent>,
    clock: Arc<dyn Clock>,
    owned: AtomicBool,
    runs: AtomicU64,
    pids: AtomicU32,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimWorld").finish_non_exhaustive()
    }
}

/// One simulated VM.
#[derive(Debug)]
pub(super) struct SimVm {
    pub(super) definition: VmDefinition,
    pub(super) seen: Seen,
    /// Which run of it this is; tells a late timer that it is late.
    pub(super) run: u64,
    /// What its guest remembers.
    pub(super) memory: Memory,
    /// While it is to arrive.
    pub(super) arrival: super::migration::Arrival,
    /// Held as a hypervisor would.
    pub(super) nics: Vec<NicBackend>,
    /// Whether it has a CD drive.
    pub(super) drive: bool,
    pub(super) silent: bool,
    /// It ended while no driver looked.
    pub(super) unseen_end: bool,
    pub(super) said: BytesMut,
    pub(super) readers: Vec<SerialReader>,
    pub(super) input: Option<mpsc::Sender<Bytes>>,
    pub(super) screens: Screens,
}

/// The open VNC sessions of one run.
#[derive(Clone, Debug, Default)]
pub(super) struct Screens {
    pub(super) sessions: TaskTracker,
    /// Cancelled when the run is over.
    pub(super) over: CancellationToken,
}

impl Default for SimWorld {
    fn default() -> Self {
        Self::new(Latency::default(), Arc::new(SystemClock))
    }
}

pub(super) fn accelerator() -> Accelerator {
    Accelerator {
        name: "sim".into(),
        reason: "nothing is run; everything is simulated".into(),
    }
}

impl SimWorld {
    /// A world without VMs.
    pub fn new(latency: Latency, clock: Arc<dyn Clock>) -> Self {
        Self::on(Arc::default(), latency, clock)
    }

    /// Another host that sees the same disks, and that VMs of this one can move to. Things take as long there.
    #[must_use]
    pub fn beside(&self) -> Self {
        let (site, clock) = (Arc::clone(&self.inner.site), Arc::clone(&self.inner.clock));
        Self::on(site, self.latency(), clock)
    }

    fn on(site: Arc<Site>, latency: Latency, clock: Arc<dyn Clock>) -> Self {
        Self {
            inner: Arc::new(Inner {
                site,
                vms: Mutex::default(),
                faults: Mutex::default(),
                latency: Mutex::new(latency),
                events: broadcast::channel(EVENTS_MAX).0,
                clock,
                owned: AtomicBool::new(false),
                runs: AtomicU64::new(1),
                pids: AtomicU32::new(1),
            }),
        }
    }

    /// A world in which nothing takes time.
    pub fn instant() -> Self {
        Self::new(Latency::NONE, Arc::new(SystemClock))
    }

    /// From now on things take this long.
    pub fn set_latency(&self, latency: Latency) {
        *self.inner.latency.lock().unwrap_or_else(PoisonError::into_inner) = latency;
    }

    /// From now on this goes wrong.
    pub fn add_fault(&self, id: VmId, fault: Fault) {
        if fault == Fault::Silent
            && let Some(vm) = self.vms().get_mut(&id)
        {
            vm.silent = true;
        }
        self.faults().entry(id).or_default().push(fault);
    }

    /// From now on nothing goes wrong with it.
    pub fn clear_faults(&self, id: VmId) {
        self.faults().remove(&id);
        let mut vms = self.vms();
        if let Some(vm) = vms.get_mut(&id) {
            vm.silent = false;
            if vm.seen.power == PowerState::Unresponsive {
                self.apply(id, vm, PowerEvent::Started);
            }
        }
    }

    /// It ends without being asked to.
    pub fn crash(&self, id: VmId, cause: CrashCause) {
        self.end(id, PowerEvent::Crash(cause));
    }

    /// Its guest shuts down by itself.
    pub fn guest_shuts_down(&self, id: VmId) {
        self.end(id, PowerEvent::ShutDown);
    }

    /// How many are connected to its serial line and to its screen.
    pub fn viewers(&self, id: VmId) -> (usize, usize) {
        self.vms().get(&id).map_or((0, 0), |vm| {
            let readers = vm.readers.iter().filter(|reader| !reader.is_closed()).count();
            (readers, vm.screens.sessions.len())
        })
    }

    /// Its disk fails: it is halted.
    pub fn disk_fails(&self, id: VmId) {
        self.happens(id, PowerEvent::Pause(PauseReason::DiskError));
    }

    pub(super) fn vms(&self) -> MutexGuard<'_, BTreeMap<VmId, SimVm>> {
        self.inner.vms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn faults(&self) -> MutexGuard<'_, BTreeMap<VmId, Vec<Fault>>> {
        self.inner.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn site(&self) -> &Site {
        &self.inner.site
    }

    pub(super) fn downgrade(&self) -> Weak<Inner> {
        Arc::downgrade(&self.inner)
    }

    pub(super) fn upgrade(world: &Weak<Inner>) -> Option<Self> {
        Weak::upgrade(world).map(|inner| Self { inner })
    }

    /// Takes the first fault of its kind away, and says its words.
    pub(super) fn fails_now(&self, id: VmId, kind: impl Fn(Fault) -> Option<String>) -> Option<String> {
        let mut faults = self.faults();
        let faults = faults.get_mut(&id)?;
        let at = faults.iter().position(|fault| kind(fault.clone()).is_some())?;
        kind(faults.remove(at))
    }

    /// What a fault that stays says.
    pub(super) fn lasting(&self, id: VmId, kind: impl Fn(&Fault) -> Option<String>) -> Option<String> {
        self.faults().get(&id)?.iter().find_map(kind)
    }

    pub(super) fn has_fault(&self, id: VmId, fault: &Fault) -> bool {
        self.faults()
            .get(&id)
            .is_some_and(|faults| faults.contains(fault))
    }

    pub(super) fn latency(&self) -> Latency {
        *self.inner.latency.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn own(&self) -> bool {
        !self.inner.owned.swap(true, Ordering::AcqRel)
    }

    pub(super) fn disown(&self) {
        self.inner.owned.store(false, Ordering::Release);
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<DriverEvent> {
        self.inner.events.subscribe()
    }

    pub(super) fn tell(&self, event: DriverEvent) {
        // No subscriber is no failure.
        drop(self.inner.events.send(event));
    }

    /// Begins a run by `event`, with what its guest remembers. The caller ends it with [`Self::finish_start`] or
    /// [`Self::fail_start`].
    pub(super) fn begin(
        &self,
        definition: &VmDefinition,
        nics: Vec<NicBackend>,
        event: PowerEvent,
        memory: Memory,
    ) -> Result<u64> {
        let id = definition.id;
        let mut vms = self.vms();
        let power = vms.get(&id).map_or(PowerState::Off, |vm| vm.seen.power);
        let power = power.after(event)?;
        let run = self.inner.runs.fetch_add(1, Ordering::Relaxed);
        let pid = self.inner.pids.fetch_add(1, Ordering::Relaxed);
        let seen = Seen::live(power, pid, Some(accelerator()), self.inner.clock.now());
        let vm = SimVm {
            definition: definition.clone(),
            seen: seen.clone(),
            run,
            memory,
            arrival: super::migration::Arrival::new(),
            nics,
            drive: definition.hardware.cdrom.is_some() || vms.get(&id).is_some_and(|before| before.drive),
            silent: self.has_fault(id, &Fault::Silent),
            unseen_end: false,
            said: BytesMut::new(),
            readers: Vec::new(),
            input: None,
            screens: Screens::default(),
        };
        vms.insert(id, vm);
        drop(vms);
        self.tell(DriverEvent::new(id, event, seen));
        Ok(run)
    }

    /// Its processors run, unless it was ended in between.
    pub(super) fn finish_start(&self, id: VmId, run: u64) -> Result<Seen> {
        let mut vms = self.vms();
        let vm = vms
            .get_mut(&id)
            .filter(|vm| vm.run == run && is_begun(vm.seen.power));
        let Some(vm) = vm else {
            return Err(Error::StartFailed {
                why: "it was ended while it started".into(),
            });
        };
        let boots = vm.seen.power == PowerState::Starting;
        self.apply(id, vm, PowerEvent::Started);
        if boots {
            let greeting = format!(
                "[sim] this VM is simulated: no guest runs behind this line\r\n[sim] ready hostname={}\r\n/ # ",
                vm.definition.name
            );
            vm.say(&Bytes::from(greeting));
        }
        if vm.memory.count.is_some() {
            guest::counts(self, id, run);
        }
        Ok(vm.seen.clone())
    }

    /// Ends a run that did not get beyond its beginning, by `event`.
    pub(super) fn fail_start(&self, id: VmId, run: u64, event: PowerEvent) {
        let mut vms = self.vms();
        let vm = vms.get_mut(&id).filter(|vm| vm.run == run);
        if let Some(vm) = vm.filter(|vm| is_begun(vm.seen.power)) {
            vm.rest();
            self.apply(id, vm, event);
        }
    }

    /// An obedient guest ends after a while.
    pub(super) fn press_button(&self, id: VmId) {
        if self.has_fault(id, &Fault::IgnoresButton) {
            return;
        }
        let Some(run) = self.vms().get(&id).map(|vm| vm.run) else {
            return;
        };
        let (world, takes) = (Arc::downgrade(&self.inner), self.latency().shutdown);
        // Ends by itself after `takes`, and holds the world up for nobody.
        tokio::spawn(async move {
            sleep(takes).await;
            if let Some(inner) = Weak::upgrade(&world) {
                let world = Self { inner };
                let same = world
                    .vms()
                    .get(&id)
                    .is_some_and(|vm| vm.run == run && vm.seen.power == PowerState::Stopping);
                if same {
                    world.end(id, PowerEvent::ShutDown);
                }
            }
        });
    }

    /// It is over, by `event`, if the power table allows that.
    pub(super) fn end(&self, id: VmId, event: PowerEvent) {
        let seen_by_somebody = self.inner.owned.load(Ordering::Acquire);
        let mut vms = self.vms();
        if let Some(vm) = vms.get_mut(&id)
            && vm.seen.power.after(event).is_ok()
        {
            if vm.seen.power == PowerState::Off {
                return;
            }
            vm.rest();
            vm.unseen_end = !seen_by_somebody;
            self.apply(id, vm, event);
        }
    }

    pub(super) fn happens(&self, id: VmId, event: PowerEvent) {
        let mut vms = self.vms();
        if let Some(vm) = vms.get_mut(&id) {
            self.apply(id, vm, event);
        }
    }

    /// What the power table does not allow does not happen.
    pub(super) fn apply(&self, id: VmId, vm: &mut SimVm, event: PowerEvent) {
        if let Ok(power) = vm.seen.power.after(event) {
            vm.seen.power = power;
            self.tell(DriverEvent::new(id, event, vm.seen.clone()));
        }
    }
}

/// Whether a run has begun and does not run yet.
const fn is_begun(power: PowerState) -> bool {
    matches!(
        power,
        PowerState::Starting | PowerState::Restoring | PowerState::MigratingIn
    )
}

impl SimVm {
    /// Nothing of it runs any more; its power says why.
    pub(super) fn rest(&mut self) {
        self.seen = Seen::resting(self.seen.power);
        self.readers.clear();
        self.input = None;
        self.screens.over.cancel();
    }

    /// Its serial line says something.
    pub(super) fn say(&mut self, text: &Bytes) {
        self.said.extend_from_slice(text);
        if self.said.len() > SERIAL_SCROLLBACK_BYTES {
            self.said = self.said.split_off(self.said.len() - SERIAL_SCROLLBACK_BYTES);
        }
        self.readers.retain(|reader| reader.send(text));
    }
}
