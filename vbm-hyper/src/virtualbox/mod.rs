//! VirtualBox, by VBoxManage.
//!
//! ```text
//!   VirtualBoxDriver --command--> runner: VBoxManage --> VBoxSVC --> VBoxHeadless, one per VM; both outlive us
//!      |                            ^                                  | pidfd     | serial socket  | VNC
//!      |  `-- Machine of VM <-------+------- watch: a list a second -----'           '--> hub (one task)
//!      `-- root: registry of our own, settings, what is written down                     see `record`
//! ```
//!
//! The registry is our own (`VBOX_USER_HOME`, and a VBoxSVC of its own by `VBOX_IPC_SOCKETID`): the VMs that the operator
//! keeps in theirs are out of reach. In ours a VM is ours when it has the id that VBM gave it **and** stands in the
//! group `/vbm`; any other is seen ([`VirtualBoxDriver::registered`]) and never touched. See `docs/adr/0006`.
//!
//! | module | does |
//! |---|---|
//! | `words`, `parse`, `life`, `argv` | decide, purely: complaints and retries; answers; power states; command lines |
//! | `probe` | what this host can do |
//! | `runner` | runs VBoxManage |
//! | `record`, `machine` | what is written down; one VM and who may change it |
//! | `make`, `start`, `watch`, `snapshots`, `saved`, `consoles`, `vnc` | act |

mod argv;
mod consoles;
mod life;
mod machine;
mod make;
mod parse;
mod probe;
mod record;
mod runner;
mod saved;
mod snapshots;
mod start;
mod vnc;
mod watch;
mod words;

use crate::{
    Adopted, Consoles, DiskKind, Driver, DriverEvent, Error, Facet, NicBackend, OpCx, Result, SavedState,
    Seen, Snapshots, SystemClock, VmDefinition, disk, files,
    limits::{self, PROBE_DEADLINE, PROBE_FALLBACK_TTL, VBOX_LIST_DEADLINE},
    scope::Scope,
};
use async_trait::async_trait;
use machine::Machine;
use parse::Told;
use probe::Facts;
use record::Places;
use runner::{Call, Runner};
use sha2::{Digest as _, Sha256};
use std::{
    collections::{BTreeMap, HashMap},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::{
    sync::{Notify, broadcast},
    time::Instant,
};
use vbm_core::{Accelerator, Capability, Clock, DriverKind, PauseReason, PowerEvent, PowerState, VmId};

/// Where and how VirtualBox is run.
#[derive(Clone)]
pub struct VirtualBoxConfig {
    /// Where the registry, the settings of VMs and their snapshots are kept. It must survive a boot of the host.
    pub root: PathBuf,
    /// Where the sockets of serial lines are. At most 66 bytes long.
    pub run: PathBuf,
    /// The program, if not the `VBoxManage` of the search path.
    pub program: Option<PathBuf>,
    /// Where the host's `/dev`, `/proc` and `/sys` are looked at. `/`, but in tests.
    pub host_root: PathBuf,
    /// The clock that start times are read from.
    pub clock: Arc<dyn Clock>,
}

impl VirtualBoxConfig {
    /// The VBoxManage of the search path, with all that lasts below `root` and sockets below `run`.
    pub fn new(root: impl Into<PathBuf>, run: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            run: run.into(),
            program: None,
            host_root: "/".into(),
            clock: Arc::new(SystemClock),
        }
    }

    /// The same with a chosen program.
    #[must_use]
    pub fn with_program(mut self, program: impl Into<PathBuf>) -> Self {
        self.program = Some(program.into());
        self
    }

    /// The same with another place to look for the host's `/dev`, `/proc` and `/sys`.
    #[must_use]
    pub fn with_host_root(mut self, root: impl Into<PathBuf>) -> Self {
        self.host_root = root.into();
        self
    }
}

impl std::fmt::Debug for VirtualBoxConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VirtualBoxConfig")
            .field("root", &self.root)
            .field("run", &self.run)
            .field("program", &self.program)
            .finish_non_exhaustive()
    }
}

/// A VM of the driver's registry, whoever made it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RegisteredVm {
    /// Its UUID.
    pub id: VmId,
    /// Its name in VirtualBox.
    pub name: String,
    /// Its power state, as VirtualBox tells it.
    pub power: PowerState,
    /// Whether it is this driver's. One that is not is never touched.
    pub ours: bool,
}

/// Runs VMs by VirtualBox.
#[derive(Debug)]
pub struct VirtualBoxDriver {
    shared: Arc<Shared>,
}

/// What the driver and its tasks share.
struct Shared {
    places: Places,
    host_root: PathBuf,
    runner: Runner,
    boot_id: String,
    clock: Arc<dyn Clock>,
    vms: Mutex<HashMap<VmId, Arc<Machine>>>,
    events: broadcast::Sender<DriverEvent>,
    scope: Scope,
    wake: Notify,
    /// Until when VMs are looked at more often.
    soon: Mutex<Option<Instant>>,
    accelerator: Mutex<Option<Accelerator>>,
    found: tokio::sync::Mutex<Option<(Found, Instant)>>,
    adopting: tokio::sync::Mutex<()>,
    /// VMs that are unknown are looked at too from the first adoption on.
    adopted: AtomicBool,
    owner: Mutex<Option<disk::Owner>>,
}

/// What a probe found.
#[derive(Clone, Debug)]
struct Found {
    version: String,
    facts: Facts,
}

impl Found {
    /// Why no VM can be started.
    fn problem(&self) -> Option<vbm_core::Error> {
        self.facts.problem(&self.version)
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("places", &self.places)
            .finish_non_exhaustive()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn tell(&self, event: DriverEvent) {
        // No subscriber is no failure.
        drop(self.events.send(event));
    }

    fn open(&self) -> Result<()> {
        if self.scope.is_over() {
            Err(Error::ShutDown("the VirtualBox driver"))
        } else {
            Ok(())
        }
    }

    fn machine(&self, id: VmId) -> Result<Arc<Machine>> {
        self.open()?;
        locked(&self.vms).get(&id).cloned().ok_or(Error::NoSuchVm(id))
    }

    fn machines(&self) -> Vec<Arc<Machine>> {
        locked(&self.vms).values().cloned().collect()
    }

    fn accelerator(&self) -> Option<Accelerator> {
        locked(&self.accelerator).clone()
    }

    /// Looks at the VMs as soon as possible: one of them has ended, or may have.
    fn look_soon(&self) {
        *locked(&self.soon) = Some(Instant::now() + limits::KILL_DEADLINE);
        self.wake.notify_one();
    }

    /// The version of VirtualBox and what the host offers it.
    async fn found(&self) -> Result<Found> {
        let mut known = self.found.lock().await;
        if let Some((found, again)) = &*known
            && Instant::now() < *again
        {
            return Ok(found.clone());
        }
        let call = |args: &[&str]| Call::new(args.iter().copied()).within(PROBE_DEADLINE);
        let version = probe::version(&self.runner.run(&call(&["--version"])).await?.said)?;
        let packs = self.runner.run(&call(&["list", "extpacks"])).await?.said;
        let vnc = parse::usable_extpacks(&packs).iter().any(|pack| pack == "VNC");
        let facts = Facts::read(&self.host_root, vnc);
        *locked(&self.accelerator) = facts.accelerator();
        let found = Found { version, facts };
        // What is wrong may be repaired any moment; what is right rarely changes.
        *known = found
            .problem()
            .is_none()
            .then(|| (found.clone(), Instant::now() + PROBE_FALLBACK_TTL));
        Ok(found)
    }

    /// The settings of a VM, with its state; `None` when the registry has no such VM.
    async fn info(&self, id: VmId) -> Result<Option<BTreeMap<String, String>>> {
        let call = Call::new([
            "showvminfo".to_owned(),
            id.to_string(),
            "--machinereadable".to_owned(),
        ]);
        match self.runner.run(&call).await {
            Ok(answer) => Ok(Some(parse::machine_readable(&answer.said))),
            Err(fault)
                if fault
                    .complaint()
                    .is_some_and(|c| c.code == Some(words::Code::NotFound)) =>
            {
                Ok(None)
            }
            Err(fault) => Err(fault.into()),
        }
    }

    /// What VirtualBox tells of a VM. One that is not registered is off.
    async fn ask(&self, id: VmId) -> Result<Told> {
        let info = self.info(id).await?;
        Ok(info.map_or(Told::Off, |info| {
            Told::parse(info.get("VMState").map_or("", String::as_str))
        }))
    }

    /// All VMs of the registry, by one process.
    async fn list(&self) -> Result<Vec<parse::Listed>> {
        let call = Call::new(["list", "vms", "--long"]).within(VBOX_LIST_DEADLINE);
        let answer = self.runner.ask(&call).await?;
        let list = parse::list_long(&answer.said);
        // A VM whose settings are broken is complained of, and the others are listed.
        match answer.complaint {
            Some(complaint) if list.is_empty() => Err(Error::Hypervisor {
                command: "VBoxManage list vms".into(),
                why: complaint.why,
            }),
            _ => Ok(list),
        }
    }

    /// The VMs that run or are paused, by one process, which is many times cheaper than [`Shared::list`].
    async fn running(&self) -> Result<Vec<VmId>> {
        let call = Call::new(["list", "runningvms"]).within(VBOX_LIST_DEADLINE);
        Ok(parse::list_short(&self.runner.run(&call).await?.said))
    }

    /// Whether a registered VM is one of ours.
    fn is_ours(&self, listed: &parse::Listed) -> bool {
        listed.groups == argv::GROUP && locked(&self.vms).contains_key(&listed.id)
    }
}

/// The environment that gives VBoxManage a registry and a VBoxSVC of its own.
fn environment(home: &Path) -> Vec<(&'static str, std::ffi::OsString)> {
    let tag = hex::encode(&Sha256::digest(home.as_os_str().as_bytes())[..6]);
    let mut env = vec![
        ("VBOX_USER_HOME", home.into()),
        ("VBOX_IPC_SOCKETID", format!("vbm-{tag}").into()),
        ("LC_ALL", "C.UTF-8".into()),
        ("LANGUAGE", "C".into()),
    ];
    // A service manager may leave it out; without it VBoxManage says "Failed to initialize COM".
    if std::env::var_os("LOGNAME").is_none() {
        env.push((
            "LOGNAME",
            std::env::var_os("USER").unwrap_or_else(|| "root".into()),
        ));
    }
    env
}

impl VirtualBoxDriver {
    /// Opens the directories, makes them if they are not there. Runs nothing and adopts nothing.
    ///
    /// # Errors
    /// [`Error::InUse`] when another process has them, [`Error::Invalid`] when a path is too long, [`Error::Io`].
    pub async fn open(config: VirtualBoxConfig) -> Result<Self> {
        let places = Places::new(&config.root, &config.run)?;
        places.create()?;
        let owner = disk::own(places.root())?;
        let program = config.program.unwrap_or_else(|| "VBoxManage".into());
        let mut vms = HashMap::new();
        for id in places.known()? {
            vms.insert(id, Arc::new(watch::remembered(&places, id)?));
        }
        let shared = Arc::new(Shared {
            runner: Runner::new(program, environment(&places.home())),
            places,
            host_root: config.host_root,
            boot_id: files::boot_id()?,
            clock: config.clock,
            vms: Mutex::new(vms),
            events: broadcast::channel(limits::EVENTS_MAX).0,
            scope: Scope::default(),
            wake: Notify::new(),
            soon: Mutex::default(),
            accelerator: Mutex::default(),
            found: tokio::sync::Mutex::default(),
            adopting: tokio::sync::Mutex::default(),
            adopted: AtomicBool::new(false),
            owner: Mutex::new(Some(owner)),
        });
        shared.scope.tasks.spawn(watch::run(Arc::clone(&shared)));
        Ok(Self { shared })
    }

    /// All VMs of the driver's registry, by one VBoxManage process, however many there are.
    ///
    /// # Errors
    /// [`Error::MissingProgram`], [`Error::Hypervisor`], [`Error::Timeout`].
    pub async fn registered(&self) -> Result<Vec<RegisteredVm>> {
        self.shared.open()?;
        let list = self.shared.list().await?;
        Ok(list
            .into_iter()
            .map(|vm| RegisteredVm {
                ours: self.shared.is_ours(&vm),
                power: vm.told.map_or(PowerState::Unknown, watch::power_of),
                id: vm.id,
                name: vm.name,
            })
            .collect())
    }

    /// The VMs of the driver's registry that run or are paused, whoever made them, by one VBoxManage process. This is how the
    /// driver looks at its VMs every second.
    ///
    /// # Errors
    /// Those of [`VirtualBoxDriver::registered`].
    pub async fn running(&self) -> Result<Vec<VmId>> {
        self.shared.open()?;
        self.shared.running().await
    }

    /// Runs a command on a VM that the power table allows `event` for, then lets it happen.
    async fn command(&self, id: VmId, event: PowerEvent, word: &str) -> Result<()> {
        let shared = &self.shared;
        let machine = shared.machine(id)?;
        machine.power().after(event)?;
        let _turn = machine.turn().await;
        machine.power().after(event)?;
        if matches!(event, PowerEvent::Pause(_)) {
            machine.state().life.will_pause();
        }
        let call = Call::new(["controlvm".to_owned(), id.to_string(), word.to_owned()])
            .within(limits::COMMAND_DEADLINE);
        match shared.runner.run(&call).await {
            Ok(_) => {
                machine.happened(shared, event);
                Ok(())
            }
            Err(fault) => Err(start::after_fault(shared, &machine, fault, event).await),
        }
    }
}

impl Drop for VirtualBoxDriver {
    /// Lets go of everything, as [`Driver::shutdown`] does, but does not wait for it.
    fn drop(&mut self) {
        self.shared.scope.finish();
    }
}

#[async_trait]
impl Driver for VirtualBoxDriver {
    fn kind(&self) -> DriverKind {
        DriverKind::VirtualBox
    }

    fn disk_kind(&self) -> DiskKind {
        DiskKind::Vdi
    }

    async fn probe(&self) -> Capability {
        let (version, accelerator, problem) = match self.shared.found().await {
            Ok(found) => {
                let problem = found.problem();
                let accelerator = found.facts.accelerator().filter(|_| problem.is_none());
                (found.version, accelerator, problem)
            }
            Err(error) => (String::new(), None, Some(error.into())),
        };
        Capability {
            driver: DriverKind::VirtualBox,
            version,
            accelerator,
            problem,
        }
    }

    async fn start(&self, cx: &OpCx, definition: &VmDefinition, nics: Vec<NicBackend>) -> Result<Seen> {
        self.shared.open()?;
        cx.run("a start", start::start(&self.shared, definition, nics))
            .await
    }

    async fn stop(&self, id: VmId) -> Result<()> {
        self.command(id, PowerEvent::Stop, "acpipowerbutton").await
    }

    async fn kill(&self, id: VmId) -> Result<()> {
        let machine = self.shared.machine(id)?;
        start::kill(&self.shared, &machine).await
    }

    async fn reset(&self, id: VmId) -> Result<()> {
        self.command(id, PowerEvent::Reset, "reset").await
    }

    async fn pause(&self, id: VmId) -> Result<()> {
        self.command(id, PowerEvent::Pause(PauseReason::Requested), "pause")
            .await
    }

    async fn resume(&self, id: VmId) -> Result<()> {
        self.command(id, PowerEvent::Resume, "resume").await
    }

    async fn inspect(&self, id: VmId) -> Result<Seen> {
        Ok(self.shared.machine(id)?.seen(&self.shared))
    }

    async fn inventory(&self) -> Result<Vec<(VmId, Seen)>> {
        self.shared.open()?;
        let machines = self.shared.machines();
        Ok(machines.iter().map(|vm| (vm.id, vm.seen(&self.shared))).collect())
    }

    async fn adopt(&self) -> Result<Vec<Adopted>> {
        self.shared.open()?;
        self.shared.adopted.store(true, Ordering::Release);
        watch::adopt(&self.shared).await
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

    fn missing(&self, facet: Facet) -> Option<String> {
        match facet {
            Facet::Consoles | Facet::HostInterfaceNics | Facet::Snapshots | Facet::SavedState => None,
            Facet::TapNics => Some("VirtualBox opens the interfaces of its NICs itself, by name".into()),
            Facet::Hotplug => Some(
                "VirtualBox adds no NIC to a VM that runs, and this driver gives VMs one disk and no CD drive".into(),
            ),
            Facet::Migration => Some(
                "VirtualBox teleports only between hosts with the same processor, from shared disks, and without snapshots on \
                 either side; this driver does not do it"
                    .into(),
            ),
        }
    }

    async fn undefine(&self, id: VmId) -> Result<()> {
        self.shared.open()?;
        make::undefine(&self.shared, id).await
    }

    async fn shutdown(&self) {
        self.shared.scope.finish();
        self.shared.scope.tasks.wait().await;
        locked(&self.shared.vms).clear();
        drop(locked(&self.shared.owner).take());
    }
}
