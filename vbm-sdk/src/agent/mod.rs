//! The agent: the hand of the platform on a node.
//!
//! ```text
//!   bus --network.ensure--> NetworkBackend          DHCP, NAT, rules
//!   bus --vm.ensure-------> keeper of the VM        one task per VM: image, disk, NICs, power
//!   bus --console.*-------> consoles
//!        <--node.report, vm.report, port.report-- reporter
//! ```
//!
//! The agent keeps nothing of its own: what is wanted comes from the controller, what is there is asked of
//! the host. After a restart it adopts the VMs that run on, reports itself with a new boot id, and is told the rest.

mod acts;
mod consoles;
mod decide;
mod epoch;
mod errands;
mod flows;
mod images;
mod keeper;
mod moving;
mod networks;
mod prepare;
mod report;
mod reverts;

use crate::methods::{
    ConsoleClose, ConsoleLog, ConsoleOpen, ConsoleWrite, NetworkCheck, NetworkCount, NetworkEnsure,
    NetworkForesee, NetworkRemove, NicFlowsOf, NicTakeFlows, VmAbandon, VmCheckArrive, VmCheckLeave,
    VmEnsure, VmFinish, VmLook, VmReceive, VmRemove, VmReset, VmScreenshot, VmSend,
};
use consoles::OpenConsoles;
use keeper::VmKeeper;
use report::Reporter;
use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    net::Ipv4Addr,
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use vbm_core::{
    Capability, Clock, DriverKind, Error, ErrorKind, FacetKind, MissingFacet, NodePath, Result, VmId,
};
use vbm_hyper::{Driver, Facet, ImageStore, Machines, MachinesConfig, Pool, Registry, VmHandle};
use vbm_net::NetworkBackend;
use vbm_rpc::{
    Bus, Router,
    bus::BoxedCaller,
    layers::{BusMetrics, TraceLayer},
};

/// What an agent stands on.
pub struct AgentConfig {
    /// Where it stands.
    pub path: NodePath,
    /// The hypervisors of this host.
    pub drivers: Vec<Arc<dyn Driver>>,
    /// The networks of this host.
    pub networks: Arc<dyn NetworkBackend>,
    /// The images that are on this host.
    pub images: ImageStore,
    /// The disks that are on this host.
    pub volumes: Pool,
    /// Where the highest epoch that was obeyed is kept. What else must outlive the agent stands beside it.
    pub epoch_file: PathBuf,
    /// Tells the time.
    pub clock: Arc<dyn Clock>,
    /// Stays with this agent's data: tells this machine from another under the same path.
    pub identity: String,
    /// This host's address among the nodes: networks and VMs reach other nodes by it. Without one, they stay here.
    pub underlay: Option<Ipv4Addr>,
    /// The word for the directory of images and disks, when other agents work in it too.
    pub shared_storage: Option<String>,
}

/// An agent. Cheap to clone; all clones are the same one.
#[derive(Clone)]
pub struct Agent {
    inner: Arc<Inner>,
}

struct Inner {
    path: NodePath,
    boot_id: String,
    machines: BTreeMap<DriverKind, Machines>,
    capabilities: Vec<Capability>,
    missing: Vec<MissingFacet>,
    networks: Arc<dyn NetworkBackend>,
    images: ImageStore,
    fetching: crate::fetch::Fetching,
    volumes: Pool,
    epoch: Arc<epoch::EpochFile>,
    reverts: reverts::Reverts,
    clock: Arc<dyn Clock>,
    identity: String,
    underlay: Option<Ipv4Addr>,
    shared_storage: Option<String>,
    moves: moving::Moves,
    /// Where its calls are counted, when they are.
    metrics: OnceLock<BusMetrics>,
    /// The bus, for its own calls.
    calls: OnceLock<BoxedCaller>,
    /// Whether the path is known to be this machine's.
    admitted: watch::Sender<bool>,
    keepers: Mutex<HashMap<VmId, VmKeeper>>,
    consoles: OpenConsoles,
    reporter: Reporter,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agent")
            .field("path", &self.inner.path)
            .finish_non_exhaustive()
    }
}

impl Agent {
    /// An agent of this host; adopts the VMs that run here already. `boot_id` must differ from that of every
    /// agent before it on this path.
    ///
    /// # Errors
    /// A driver cannot say what runs, or the epoch file cannot be read.
    pub async fn open(config: AgentConfig, boot_id: String) -> Result<Self> {
        let mut machines = BTreeMap::new();
        let mut capabilities = Vec::new();
        let mut missing = Vec::new();
        let registry = Registry::new();
        for driver in config.drivers {
            let kind = driver.kind();
            registry.add(Arc::clone(&driver))?;
            capabilities.push(registry.report(kind).await?.capability);
            missing.extend(missing_facets(driver.as_ref()));
            let jobs = config.epoch_file.with_file_name("jobs").join(kind.to_string());
            let kept = MachinesConfig::new()
                .with_journal(jobs)
                .with_gate(Arc::new(registry.clone()))
                .with_clock(Arc::clone(&config.clock));
            machines.insert(kind, Machines::open_with(driver, kept).await?);
        }
        let inner = Inner {
            path: config.path,
            boot_id,
            machines,
            capabilities,
            missing,
            networks: config.networks,
            images: config.images,
            fetching: crate::fetch::Fetching::default(),
            volumes: config.volumes,
            reverts: reverts::Reverts::open(config.epoch_file.with_file_name("reverts"))?,
            epoch: Arc::new(epoch::EpochFile::open(config.epoch_file)?),
            clock: config.clock,
            identity: config.identity,
            underlay: config.underlay,
            shared_storage: config.shared_storage,
            moves: moving::Moves::default(),
            metrics: OnceLock::new(),
            calls: OnceLock::new(),
            admitted: watch::Sender::new(false),
            keepers: Mutex::default(),
            consoles: OpenConsoles::default(),
            reporter: Reporter::default(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        let agent = Self {
            inner: Arc::new(inner),
        };
        // What is wanted is a state, and keepers go there from whatever is seen: what a job of before came to is for the log.
        for machines in agent.inner.machines.values() {
            for ended in machines.ended_jobs() {
                machines.heard_of(ended);
            }
        }
        // Before any command can come: the first to ask for a keeper decides whether its VM counts as adopted.
        for (kind, machines) in &agent.inner.machines {
            for adopted in machines.adopted() {
                // One that ended while nobody looked did not run on.
                agent.keeper(*kind, adopted.id, adopted.seen.power.is_live());
            }
        }
        Ok(agent)
    }

    /// Counts the calls that it makes. Call before [`Self::start`]; later it is too late.
    pub fn count_calls(&self, metrics: BusMetrics) {
        self.inner.metrics.get_or_init(|| metrics);
    }

    /// Begins to report, over this bus. Call once.
    ///
    /// # Errors
    /// It was started before.
    pub fn start(&self, bus: Bus) -> Result<()> {
        let traced = bus.layered(TraceLayer::new());
        let calls = match self.inner.metrics.get() {
            Some(metrics) => traced.layered(metrics.layer()).boxed(),
            None => traced.boxed(),
        };
        self.inner
            .calls
            .set(calls)
            .map_err(|_| Error::internal("the agent was started twice", "start is for once"))?;
        let this = self.clone();
        self.inner.tasks.spawn(async move { this.report_self().await });
        let this = self.clone();
        self.inner.tasks.spawn(async move { this.report_vms().await });
        let this = self.clone();
        self.inner.tasks.spawn(async move { this.report_leases().await });
        let this = self.clone();
        self.inner.tasks.spawn(async move { this.sweep_consoles().await });
        Ok(())
    }

    /// Ends its tasks and lets go of the host. VMs and networks run on.
    pub async fn shutdown(&self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
        for machines in self.inner.machines.values() {
            machines.shutdown().await;
        }
        self.inner.networks.shutdown().await;
    }

    /// Whether this host holds neither a VM that may run nor a network of this agent.
    pub async fn holds_nothing(&self) -> bool {
        let still = self
            .inner
            .machines
            .values()
            .flat_map(Machines::list)
            .all(|(_, vm)| !vm.power().is_live());
        still
            && self
                .inner
                .networks
                .inventory()
                .await
                .is_ok_and(|networks| networks.is_empty())
    }

    /// The id of this start of the agent.
    pub fn boot_id(&self) -> &str {
        &self.inner.boot_id
    }

    /// The bus, for its own calls.
    fn calls(&self) -> Result<&BoxedCaller> {
        self.inner
            .calls
            .get()
            .ok_or_else(|| Error::internal("the agent has no bus", "it was not started"))
    }

    /// What this agent answers on the bus, once it is [taken in](Self::knock). Commands of an epoch that is not the highest one seen are refused.
    pub fn router(&self) -> Router {
        macro_rules! answer {
            ($router:expr, $($method:ident => $handler:ident),* $(,)?) => {{
                let router = $router;
                $(let this = self.clone();
                let router = router.method::<$method, _, _>(move |_, request| {
                    let this = this.clone();
                    async move {
                        this.when_admitted().await?;
                        this.$handler(request).await
                    }
                });)*
                router
            }};
        }
        let this = self.clone();
        let router = Router::new()
            .with_epoch_gate(self.inner.epoch.clone())
            .stream::<ConsoleOpen, _, _>(move |_, request, items| {
                let this = this.clone();
                async move {
                    this.when_admitted().await?;
                    this.console_open(request, items).await
                }
            });
        answer!(
            router,
            NetworkEnsure => network_ensure,
            NetworkRemove => network_remove,
            NetworkForesee => network_foresee,
            NetworkCount => network_count,
            NetworkCheck => network_check,
            VmEnsure => vm_ensure,
            VmRemove => vm_remove,
            VmReceive => vm_receive,
            VmSend => vm_send,
            VmFinish => vm_finish,
            VmCheckLeave => vm_check_leave,
            VmCheckArrive => vm_check_arrive,
            VmLook => vm_look,
            VmAbandon => vm_abandon,
            NicFlowsOf => nic_flows,
            NicTakeFlows => nic_take_flows,
            VmReset => vm_reset,
            VmScreenshot => vm_screenshot,
            ConsoleLog => console_log,
            ConsoleWrite => console_write,
            ConsoleClose => console_close,
        )
    }

    /// The keeper of a VM; made when there is none.
    fn keeper(&self, driver: DriverKind, id: VmId, adopted: bool) -> VmKeeper {
        let mut keepers = self.inner.keepers.lock().unwrap_or_else(PoisonError::into_inner);
        keepers
            .entry(id)
            .or_insert_with(|| VmKeeper::spawn(self, driver, id, adopted))
            .clone()
    }

    /// What is wanted of the VMs here, of those of which anybody said it since the start.
    fn wanted_vms(&self) -> Vec<crate::methods::WantedVm> {
        let keepers = self.inner.keepers.lock().unwrap_or_else(PoisonError::into_inner);
        keepers.values().filter_map(VmKeeper::wants).collect()
    }

    fn forget_keeper(&self, id: VmId) -> Option<VmKeeper> {
        self.inner
            .keepers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&id)
    }

    fn machines(&self, driver: DriverKind) -> Result<&Machines> {
        self.inner.machines.get(&driver).ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                format!("node {} has no driver {driver}", self.inner.path),
                "its agent was started without it",
                "choose another driver or node; `vbm node list` shows what they have",
            )
        })
    }

    /// The handle of a VM that is on this node, whatever its driver.
    fn machine(&self, id: VmId) -> Result<(&Machines, VmHandle)> {
        let machines = self
            .inner
            .machines
            .values()
            .find(|m| m.list().iter().any(|(vm, _)| *vm == id));
        let machines = machines.ok_or_else(|| {
            Error::new(
                ErrorKind::Conflict,
                "the VM is not on its node yet",
                format!("node {} has not started it so far", self.inner.path),
                "start it, and try again when it runs",
            )
        })?;
        Ok((machines, machines.vm(id)))
    }
}

/// What a driver cannot do, in the words of the core.
fn missing_facets(driver: &dyn Driver) -> Vec<MissingFacet> {
    let facets = [
        (Facet::Consoles, FacetKind::Consoles),
        (Facet::Snapshots, FacetKind::Snapshots),
        (Facet::SavedState, FacetKind::SavedState),
        (Facet::Migration, FacetKind::Migration),
        (Facet::Hotplug, FacetKind::Hotplug),
    ];
    let missing = |(facet, kind)| {
        driver.missing(facet).map(|why| MissingFacet {
            driver: driver.kind(),
            facet: kind,
            why,
        })
    };
    facets.into_iter().filter_map(missing).collect()
}
