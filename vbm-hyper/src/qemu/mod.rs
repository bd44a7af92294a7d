//! QEMU.
//!
//! ```text
//!   QemuDriver --start--> QEMU process (own session, outlives us)
//!      |  |                 ^ pidfd      ^ monitor      ^ serial socket
//!      |  `-- entry of VM --+------------+--------------+
//!      |                  keeper (one task): power state     hub (one task): serial line
//!      `-- run directory: manifests, sockets, logs           see `record`
//! ```
//!
//! | module | does |
//! |---|---|
//! | `argv`, `slots`, `lifecycle` | decide, purely: the command line; where devices are; what reports mean for the power state |
//! | `qmp` | the monitor's protocol |
//! | `record`, `books` | run directory; what of it changes during a run |
//! | `probe` | what this host can do |
//! | `start`, `keeper`, `adopt` | act |
//! | [`orphans`] | what no daemon looks after |
//! | `hotplug`, `plug` | devices that come and go; what a restart of the daemon may cut in two |
//! | `transfer`, `memory`, `errand` | memory on its way; on disk; what a restart of the daemon may cut in two |
//! | `foresee`, `mirror`, `arrival` | a migration: looked at before; its disks; its last step |
//! | `snapshots`, `saved`, `migration` | the facets made of these |

mod adopt;
mod argv;
mod arrival;
mod books;
mod consoles;
mod errand;
mod firmware;
mod foresee;
mod hotplug;
pub(crate) mod img;
mod keeper;
mod lifecycle;
mod memory;
mod migration;
mod mirror;
pub mod orphans;
mod plug;
mod probe;
mod qmp;
mod record;
mod saved;
mod slots;
mod snapshots;
mod start;
mod transfer;

pub use orphans::{Orphan, OrphanKind};
pub use probe::AcceleratorChoice;
pub(crate) use probe::DEBIAN_PACKAGE;
#[cfg(test)]
pub(crate) use qmp::makes_sense as qmp_makes_sense;

use crate::{
    Adopted, Consoles, Driver, DriverEvent, Error, Facet, Hotplug, Migration, NicBackend, OpCx, Result,
    SavedState, Seen, Snapshots, SystemClock, VmDefinition, disk, files,
    limits::{self, COMMAND_DEADLINE, KILL_DEADLINE, PROBE_FALLBACK_TTL},
    process, scope, serial,
};
use async_trait::async_trait;
use keeper::Machine;
use lifecycle::Input;
use probe::Found;
use process::Proc;
use record::VmDir;
use scope::Scope;
use serde_json::Value;
use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::{
    sync::broadcast,
    time::{Instant, timeout},
};
use vbm_core::{Capability, Clock, DriverKind, PauseReason, PowerEvent, PowerState, VmId};

/// Where and how QEMU is run.
#[derive(Clone)]
pub struct QemuConfig {
    /// The run directory: manifests, sockets and logs. At most 66 bytes long, for the sake of unix sockets. It must not
    /// survive a boot of the host as a rule, but may: `/run/vbm`, for example.
    pub root: PathBuf,
    /// The directory for what must survive a boot of the host: the hardware of VMs, and which of them are saved. The run
    /// directory, if there is no other. The memory itself lies beside the VM's disk.
    pub state: Option<PathBuf>,
    /// The program, if not the `qemu-system-x86_64` of the search path.
    pub program: Option<PathBuf>,
    /// The accelerator, if not the best that works.
    pub accelerator: Option<AcceleratorChoice>,
    /// The folder with the UEFI firmware (`OVMF_CODE_4M.fd`, `OVMF_VARS_4M.fd`), if not where distributions keep it.
    pub firmware: Option<PathBuf>,
    /// The device of KVM.
    pub kvm_device: PathBuf,
    /// The clock that start times are read from.
    pub clock: Arc<dyn Clock>,
    /// Who freezes the file systems of guests for snapshots.
    pub freezer: Arc<dyn crate::Freezer>,
}

impl QemuConfig {
    /// The best QEMU of the search path, with runs recorded below `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            state: None,
            program: None,
            accelerator: None,
            firmware: None,
            kvm_device: PathBuf::from("/dev/kvm"),
            clock: Arc::new(SystemClock),
            freezer: Arc::new(crate::NoAgent),
        }
    }

    /// The same with somebody who freezes the file systems of guests.
    #[must_use]
    pub fn with_freezer(mut self, freezer: Arc<dyn crate::Freezer>) -> Self {
        self.freezer = freezer;
        self
    }

    /// The same with a chosen accelerator.
    #[must_use]
    pub fn with_accelerator(mut self, choice: AcceleratorChoice) -> Self {
        self.accelerator = Some(choice);
        self
    }

    /// The same with a directory for what must survive a boot of the host.
    #[must_use]
    pub fn with_state(mut self, dir: impl Into<PathBuf>) -> Self {
        self.state = Some(dir.into());
        self
    }

    /// The same with the UEFI firmware of a folder.
    #[must_use]
    pub fn with_firmware(mut self, dir: impl Into<PathBuf>) -> Self {
        self.firmware = Some(dir.into());
        self
    }

    /// The same with a chosen program.
    #[must_use]
    pub fn with_program(mut self, program: impl Into<PathBuf>) -> Self {
        self.program = Some(program.into());
        self
    }
}

impl std::fmt::Debug for QemuConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QemuConfig")
            .field("root", &self.root)
            .field("state", &self.state)
            .field("program", &self.program)
            .field("accelerator", &self.accelerator)
            .field("firmware", &self.firmware)
            .finish_non_exhaustive()
    }
}

/// Runs VMs by QEMU: with KVM where it works, else by emulation.
#[derive(Debug)]
pub struct QemuDriver {
    shared: Arc<Shared>,
}

/// What the driver and its tasks share.
struct Shared {
    config: QemuConfig,
    root: PathBuf,
    state: PathBuf,
    boot_id: String,
    firmware: firmware::Places,
    clock: Arc<dyn Clock>,
    vms: Mutex<HashMap<VmId, Entry>>,
    events: broadcast::Sender<DriverEvent>,
    scope: Scope,
    /// What the probe found, and when it should be looked again.
    found: tokio::sync::Mutex<Option<(Arc<Found>, Option<Instant>)>>,
    adopting: tokio::sync::Mutex<()>,
    /// Told when a reservation ends.
    settled: tokio::sync::Notify,
    owner: Mutex<Option<disk::Owner>>,
    /// Which snapshots are exported.
    readers: snapshots::Readers,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

/// What is known of a VM. One that runs is its keeper's; this only points at it.
#[derive(Clone, Debug)]
enum Entry {
    /// No process of it is known. `Unknown` when a manifest says that there may be one.
    Resting(Seen),
    /// A start is preparing its process, or its disk is worked on.
    Reserved,
    /// It has a process and a keeper.
    Live(Arc<Machine>),
}

impl Entry {
    fn seen(&self) -> Seen {
        match self {
            Self::Resting(seen) => seen.clone(),
            Self::Reserved => Seen::resting(PowerState::Starting),
            Self::Live(machine) => machine.seen(),
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<VmId, Entry>> {
        self.vms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of a VM; one that is not known is off.
    fn known(&self, id: VmId) -> Entry {
        let off = || Entry::Resting(Seen::resting(PowerState::Off));
        self.lock().get(&id).cloned().unwrap_or_else(off)
    }

    /// Where what must survive a boot is kept of a VM.
    fn keep(&self, id: VmId) -> VmDir {
        VmDir::new(&self.state, id)
    }

    fn saved(&self, id: VmId) -> memory::SavedRecord {
        memory::SavedRecord::of(self.keep(id))
    }

    fn tell(&self, event: DriverEvent) {
        // No subscriber is no failure.
        drop(self.events.send(event));
    }

    /// The process of a VM has ended.
    fn rest(&self, id: VmId, process: &Arc<Proc>, seen: Seen) {
        let mut vms = self.lock();
        if matches!(vms.get(&id), Some(Entry::Live(machine)) if Arc::ptr_eq(&machine.process, process)) {
            vms.insert(id, Entry::Resting(seen));
        }
    }

    fn open(&self) -> Result<()> {
        if self.scope.is_over() {
            Err(Error::ShutDown("the QEMU driver"))
        } else {
            Ok(())
        }
    }

    fn entry(&self, id: VmId) -> Result<Entry> {
        self.open()?;
        self.lock().get(&id).cloned().ok_or(Error::NoSuchVm(id))
    }

    /// The process of a VM, if the power table allows `event` now.
    fn live(&self, id: VmId, event: PowerEvent) -> Result<Arc<Machine>> {
        let entry = self.entry(id)?;
        entry.seen().power.after(event)?;
        match entry {
            Entry::Live(machine) => Ok(machine),
            Entry::Resting(_) | Entry::Reserved => Err(Error::Busy { vm: id, job: "start" }),
        }
    }

    /// Waits until nobody holds the place of a VM.
    async fn settled(&self, id: VmId) -> Result<()> {
        let free = async {
            loop {
                let mut told = std::pin::pin!(self.settled.notified());
                told.as_mut().enable();
                if !matches!(self.lock().get(&id), Some(Entry::Reserved)) {
                    return;
                }
                told.await;
            }
        };
        timeout(KILL_DEADLINE, free).await.map_err(|_| Error::Busy {
            vm: id,
            job: "work on its disk",
        })
    }

    /// What this host can do; asked once a boot, and again after a time if the answer was the slower one.
    async fn found(&self) -> Result<Arc<Found>> {
        let mut known = self.found.lock().await;
        if let Some((found, again)) = &*known
            && again.is_none_or(|again| Instant::now() < again)
        {
            return Ok(Arc::clone(found));
        }
        let found = probe::probe(
            self.config.program.as_deref(),
            self.config.accelerator,
            &self.config.kvm_device,
            &self.scope,
        )
        .await?;
        let may_improve = found.accelerator.name != "kvm" && self.config.accelerator.is_none();
        let again = may_improve.then(|| Instant::now() + PROBE_FALLBACK_TTL);
        let found = Arc::new(found);
        *known = Some((Arc::clone(&found), again));
        Ok(found)
    }
}

impl QemuDriver {
    /// Opens the run directory, makes it if it is not there. Starts and adopts nothing.
    ///
    /// # Errors
    /// [`Error::InUse`] when another process has it, [`Error::Invalid`] when its path is too long, [`Error::Io`].
    pub async fn open(config: QemuConfig) -> Result<Self> {
        let root = std::path::absolute(&config.root).map_err(Error::io("find", &config.root))?;
        record::check_root(&root)?;
        let state = config.state.as_ref().unwrap_or(&root);
        let state = std::path::absolute(state).map_err(Error::io("find", state))?;
        let owner = disk::own(&root)?;
        std::fs::create_dir_all(&state).map_err(Error::io("create", &state))?;
        let vms = adopt::known(&root, &state)?;
        let shared = Shared {
            boot_id: files::boot_id()?,
            firmware: config
                .firmware
                .as_deref()
                .map_or_else(firmware::Places::default, firmware::Places::below),
            clock: Arc::clone(&config.clock),
            vms: Mutex::new(vms),
            events: broadcast::channel(limits::EVENTS_MAX).0,
            scope: Scope::default(),
            found: tokio::sync::Mutex::default(),
            adopting: tokio::sync::Mutex::default(),
            settled: tokio::sync::Notify::new(),
            owner: Mutex::new(Some(owner)),
            readers: snapshots::Readers::default(),
            root,
            state,
            config,
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }
}

impl Drop for QemuDriver {
    /// Lets go of everything, as [`Driver::shutdown`] does, but does not wait for it.
    fn drop(&mut self) {
        self.shared.scope.finish();
    }
}

#[async_trait]
impl Driver for QemuDriver {
    fn kind(&self) -> DriverKind {
        DriverKind::Qemu
    }

    async fn probe(&self) -> Capability {
        let found = self.shared.found().await;
        let (version, accelerator, problem) = match found {
            Ok(found) => (found.version.clone(), Some(found.accelerator.clone()), None),
            Err(error) => (String::new(), None, Some(error.into())),
        };
        Capability {
            driver: DriverKind::Qemu,
            version,
            accelerator,
            problem,
        }
    }

    async fn probe_again(&self) -> Capability {
        *self.shared.found.lock().await = None;
        self.probe().await
    }

    async fn start(&self, cx: &OpCx, definition: &VmDefinition, nics: Vec<NicBackend>) -> Result<Seen> {
        self.shared.open()?;
        snapshots::settle_at_rest(&self.shared, definition).await?;
        cx.run("a start", start::start(&self.shared, definition, nics))
            .await
    }

    async fn stop(&self, id: VmId) -> Result<()> {
        let machine = self.shared.live(id, PowerEvent::Stop)?;
        machine.tell(Input::StopAsked).await;
        machine.command("system_powerdown", Value::Null).await.map(drop)
    }

    async fn kill(&self, id: VmId) -> Result<()> {
        self.shared.settled(id).await?;
        match self.shared.entry(id)? {
            Entry::Live(machine) => {
                machine.tell(Input::KillAsked).await;
                // For whoever finds it ended, should we go before we have seen it.
                adopt::note_kill(&self.shared, id)?;
                machine.process.kill();
                let over = timeout(KILL_DEADLINE, machine.wait_for(|_| false)).await;
                over.map_err(|_| Error::Timeout {
                    command: "the end of the process".into(),
                    after: KILL_DEADLINE,
                })?;
                // Its memory may have been written in the last moment; and a failed restore keeps it.
                saved::discard(&self.shared, id)?;
                self.shared.saved(id).discard()
            }
            Entry::Reserved => Err(Error::Busy { vm: id, job: "start" }),
            Entry::Resting(seen) if seen.power == PowerState::Unknown => {
                adopt::kill_unknown(&self.shared, id).await
            }
            Entry::Resting(seen) if seen.power == PowerState::Saved => saved::discard(&self.shared, id),
            Entry::Resting(_) => {
                VmDir::new(&self.shared.root, id).end_run(None)?;
                self.shared
                    .lock()
                    .insert(id, Entry::Resting(Seen::resting(PowerState::Off)));
                Ok(())
            }
        }
    }

    async fn reset(&self, id: VmId) -> Result<()> {
        let machine = self.shared.live(id, PowerEvent::Reset)?;
        let before = machine.view.borrow().resets;
        machine.command("system_reset", Value::Null).await?;
        reached(&machine, "system_reset", |view| view.resets > before).await
    }

    async fn pause(&self, id: VmId) -> Result<()> {
        let machine = self.shared.live(id, PowerEvent::Pause(PauseReason::Requested))?;
        machine.tell(Input::PauseAsked).await;
        machine.command("stop", Value::Null).await?;
        reached(&machine, "stop", |view| {
            matches!(view.seen.power, PowerState::Paused(_))
        })
        .await
    }

    async fn resume(&self, id: VmId) -> Result<()> {
        let machine = self.shared.live(id, PowerEvent::Resume)?;
        machine.command("cont", Value::Null).await?;
        reached(&machine, "cont", |view| view.seen.power == PowerState::Running).await
    }

    async fn inspect(&self, id: VmId) -> Result<Seen> {
        Ok(self.shared.entry(id)?.seen())
    }

    async fn inventory(&self) -> Result<Vec<(VmId, Seen)>> {
        self.shared.open()?;
        let vms = self.shared.lock();
        Ok(vms.iter().map(|(id, entry)| (*id, entry.seen())).collect())
    }

    async fn adopt(&self) -> Result<Vec<Adopted>> {
        self.shared.open()?;
        adopt::adopt(&self.shared).await
    }

    fn events(&self) -> broadcast::Receiver<DriverEvent> {
        self.shared.events.subscribe()
    }

    fn consoles(&self) -> Option<&dyn Consoles> {
        Some(self)
    }

    fn snapshots(&self) -> Option<&dyn Snapshots> {
        Some(self)
    }

    fn saved_state(&self) -> Option<&dyn SavedState> {
        Some(self)
    }

    fn migration(&self) -> Option<&dyn Migration> {
        Some(self)
    }

    fn hotplug(&self) -> Option<&dyn Hotplug> {
        Some(self)
    }

    fn missing(&self, facet: Facet) -> Option<String> {
        match facet {
            Facet::Consoles
            | Facet::TapNics
            | Facet::Snapshots
            | Facet::SavedState
            | Facet::Migration
            | Facet::Hotplug => None,
            Facet::HostInterfaceNics => Some("QEMU takes open tap devices only".into()),
        }
    }

    async fn undefine(&self, id: VmId) -> Result<()> {
        self.shared.open()?;
        // Held while the files go, so that no start comes in between.
        let mut vms = self.shared.lock();
        let power = vms.get(&id).map_or(PowerState::Off, |entry| entry.seen().power);
        if !matches!(power, PowerState::Off | PowerState::Crashed(_)) {
            return Err(crate::driver::not_off(power));
        }
        VmDir::new(&self.shared.root, id).remove()?;
        self.shared.keep(id).remove()?;
        vms.remove(&id);
        Ok(())
    }

    async fn shutdown(&self) {
        self.shared.scope.finish();
        self.shared.scope.tasks.wait().await;
        self.shared.lock().clear();
        drop(
            self.shared
                .owner
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
    }
}

/// Waits until what QEMU has accepted has happened.
async fn reached(machine: &Machine, command: &str, wanted: impl FnMut(&keeper::View) -> bool) -> Result<()> {
    match timeout(COMMAND_DEADLINE, machine.wait_for(wanted)).await {
        Ok(view) if !view.over => Ok(()),
        Ok(_) => Err(Error::Disconnected {
            command: command.to_owned(),
        }),
        Err(_) => Err(Error::Timeout {
            command: command.to_owned(),
            after: COMMAND_DEADLINE,
        }),
    }
}
