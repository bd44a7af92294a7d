//! What a server is made of, and how it is started.

use super::{
    Server,
    instance::{Instance, InstanceRecord},
    parts,
};
use crate::{
    agent::{Agent, AgentConfig},
    api::API_VERSION,
    controller::{Controller, ControllerConfig, Rivals},
    http::{ApiState, router, tcp::must_be_loopback},
    methods::{AGENT_SERVICE, CONTROLLER_SERVICE},
    source::{RandomIds, SystemClock},
    store::Store,
};
use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use vbm_core::{Clock, Epoch, Error, ErrorKind, IdSource, NodePath, Result};
use vbm_hyper::{Driver, ImageStore};
use vbm_net::{Dispatch, NetworkBackend};
use vbm_rpc::{
    Bus, Member, Router, Service, Transport,
    layers::{BusMetrics, TraceLayer},
};

/// How long a data directory may still be locked after its daemon was killed, before that counts as another daemon.
const CLAIM_PATIENCE: Duration = Duration::from_secs(2);
/// How often it is tried meanwhile.
const CLAIM_RETRY: Duration = Duration::from_millis(50);

/// What a server is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// One machine: controller and agent on a bus inside the process.
    #[default]
    All,
    /// The brain, on Redis.
    Controller,
    /// The hand, on Redis.
    Agent,
}

/// A hypervisor that an agent drives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum DriverChoice {
    /// QEMU.
    #[default]
    Qemu,
    /// VirtualBox.
    VirtualBox,
    /// Simulated VMs: nothing runs.
    Sim,
}

/// Where an agent makes networks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NetworkChoice {
    /// On this host: namespaces, bridges, rules. Needs root.
    #[default]
    Host,
    /// Simulated networks: nothing is made.
    Sim,
}

/// Where a controller keeps its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreChoice {
    /// In a file of its data directory. It is the only controller.
    Redb,
    /// On the Redis of the bus, with any number of other controllers. The default where there is one.
    Redis,
}

/// A server in the making.
#[derive(Clone)]
#[must_use]
pub struct Builder {
    pub(super) data_dir: PathBuf,
    pub(super) run_dir: Option<PathBuf>,
    socket: Option<PathBuf>,
    web: Option<SocketAddr>,
    role: Role,
    pub(super) redis: Option<String>,
    bus_keys: Option<(PathBuf, PathBuf)>,
    own_transport: Option<Arc<dyn Transport>>,
    store: Option<StoreChoice>,
    name: Option<String>,
    node: NodePath,
    pub(super) drivers: Vec<DriverChoice>,
    pub(super) network: NetworkChoice,
    pub(super) dispatch: Dispatch,
    ephemeral: bool,
    underlay: Option<Ipv4Addr>,
    shared_storage: Option<PathBuf>,
    pub(super) own_store: Option<Arc<dyn Store>>,
    pub(super) own_drivers: Option<Vec<Arc<dyn Driver>>>,
    pub(super) own_networks: Option<Arc<dyn NetworkBackend>>,
    pub(super) clock: Arc<dyn Clock>,
    ids: Arc<dyn IdSource>,
}

/// What the bus inside the process is known by.
const CONTROLLER_PATH: &str = "control";
/// Where an agent stands on the bus before it has its path.
const DOOR_PATH: &str = "door";
/// The longest name of a controller.
const NAME_MAX_BYTES: usize = 128;
/// The node of a server that is one machine.
const LOCAL_NODE: &str = "local";

impl Builder {
    pub(super) fn new(data_dir: PathBuf) -> Self {
        Self {
            data_dir,
            run_dir: None,
            socket: None,
            web: None,
            role: Role::All,
            redis: None,
            bus_keys: None,
            own_transport: None,
            store: None,
            name: None,
            node: LOCAL_NODE.parse().unwrap_or_default(),
            drivers: vec![DriverChoice::Qemu],
            network: NetworkChoice::Host,
            ephemeral: false,
            dispatch: Dispatch::default(),
            underlay: None,
            shared_storage: None,
            own_store: None,
            own_drivers: None,
            own_networks: None,
            clock: Arc::new(SystemClock),
            ids: Arc::new(RandomIds),
        }
    }

    /// Serves the API on this unix socket too. Without it, only clients inside the process reach it.
    pub fn socket(mut self, path: impl Into<PathBuf>) -> Self {
        self.socket = Some(path.into());
        self
    }

    /// Serves the API and the page of the web console to browsers that log in ([`Server::login_link`]), over TCP at this
    /// loopback address. Port 0 is one that is free ([`Server::web`]). Off when not said.
    pub const fn web(mut self, address: SocketAddr) -> Self {
        self.web = Some(address);
        self
    }

    /// Where sockets and manifests of VMs are; short, and gone after a boot of the host. `/run/vbm/<instance>` for root.
    pub fn run_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.run_dir = Some(path.into());
        self
    }

    /// What the server is. A controller or agent alone needs [`Builder::redis`].
    pub const fn role(mut self, role: Role) -> Self {
        self.role = role;
        self
    }

    /// The bus: a Redis server's URL.
    pub fn redis(mut self, url: impl Into<String>) -> Self {
        self.redis = Some(url.into());
        self
    }

    /// Seals what it says on the bus with the keys in `keys`, and believes only those whom the list in `trust` names. Both
    /// are files: see `vbm bus key`. Only where there is a Redis; a bus inside the process needs no seals.
    pub fn bus_security(mut self, keys: impl Into<PathBuf>, trust: impl Into<PathBuf>) -> Self {
        self.bus_keys = Some((keys.into(), trust.into()));
        self
    }

    /// Speaks over a bus of the caller's, instead of one of its own: a cluster in one process.
    pub fn with_transport(mut self, transport: impl Into<Arc<dyn Transport>>) -> Self {
        self.own_transport = Some(transport.into());
        self
    }

    /// Where the controller keeps its records.
    pub const fn store(mut self, store: StoreChoice) -> Self {
        self.store = Some(store);
        self
    }

    /// What people call the controller; the name of its host and its instance when nobody says otherwise.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Where the agent stands in the tree of nodes; `local` when nobody says otherwise.
    pub fn node(mut self, path: NodePath) -> Self {
        self.node = path;
        self
    }

    /// Which hypervisor the agent drives.
    pub fn driver(self, driver: DriverChoice) -> Self {
        self.drivers(vec![driver])
    }

    /// Which hypervisors the agent drives, each once. The processor's own means of virtualisation belong to one of them at a
    /// time; what that means on this host is told by the probe of each.
    pub fn drivers(mut self, mut drivers: Vec<DriverChoice>) -> Self {
        drivers.sort_unstable();
        drivers.dedup();
        self.drivers = drivers;
        self
    }

    /// Where the agent makes networks.
    pub const fn network(mut self, network: NetworkChoice) -> Self {
        self.network = network;
        self
    }

    /// Nothing of this server is worth keeping once it is gone: `vbm doctor --fix` removes it, VMs included.
    pub const fn ephemeral(mut self, ephemeral: bool) -> Self {
        self.ephemeral = ephemeral;
        self
    }

    /// What finds the policy of a packet's port on the real host; it may be another after a restart.
    pub const fn dispatch(mut self, dispatch: Dispatch) -> Self {
        self.dispatch = dispatch;
        self
    }

    /// This host's address among the nodes: networks span nodes by it (VXLAN), and running VMs move by it. Without one,
    /// they stay on this host.
    pub const fn underlay(mut self, address: Ipv4Addr) -> Self {
        self.underlay = Some(address);
        self
    }

    /// Keeps the agent's images and disks in a directory that other agents work in too, at the same path: VMs can move
    /// between them.
    pub fn shared_storage(mut self, dir: impl Into<PathBuf>) -> Self {
        self.shared_storage = Some(dir.into());
        self
    }

    /// Keeps the records in a store of the caller's, which stays open, instead of a redb file in the data directory.
    /// A server of [`Role::Controller`] takes it that other controllers are on that store too.
    pub fn with_store(mut self, store: Arc<dyn Store>) -> Self {
        self.own_store = Some(store);
        self
    }

    /// Drives hypervisors through drivers of the caller's, instead of [`Builder::driver`].
    pub fn with_drivers(mut self, drivers: Vec<Arc<dyn Driver>>) -> Self {
        self.own_drivers = Some(drivers);
        self
    }

    /// Makes networks through a backend of the caller's, instead of [`Builder::network`].
    pub fn with_networks(mut self, networks: Arc<dyn NetworkBackend>) -> Self {
        self.own_networks = Some(networks);
        self
    }

    /// Another clock.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Another source of ids.
    pub fn ids(mut self, ids: Arc<dyn IdSource>) -> Self {
        self.ids = ids;
        self
    }

    /// Claims the data directory, or says who has it. A child that a killed daemon had just forked holds the locks of its
    /// parent until it has become another program.
    async fn claim(&self) -> Result<(Instance, InstanceRecord)> {
        let until = tokio::time::Instant::now() + CLAIM_PATIENCE;
        loop {
            let (run_dir, socket) = (self.run_dir.clone(), self.socket.clone());
            match Instance::claim(&self.data_dir, run_dir, socket, self.ephemeral) {
                Err(e) if e.kind() == ErrorKind::Conflict && tokio::time::Instant::now() < until => {
                    tokio::time::sleep(CLAIM_RETRY).await;
                }
                done => return done,
            }
        }
    }

    /// Starts the server. When it fails, nothing of it is left running.
    ///
    /// # Errors
    /// The data is in use or cannot be read, the socket or Redis cannot be used, or the host lacks something.
    pub async fn start(self) -> Result<Server> {
        self.check_web()?;
        let (instance, record) = self.claim().await?;
        let mut server = Server {
            instance,
            controller: None,
            agent: None,
            buses: Vec::new(),
            router: None,
            api: None,
            socket: None,
            web: None,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        match self.fill(&mut server, &record).await {
            Ok(()) => Ok(server),
            Err(e) => {
                server.shutdown().await;
                Err(e)
            }
        }
    }

    async fn fill(&self, server: &mut Server, record: &super::instance::InstanceRecord) -> Result<()> {
        let transport = self.transport().await?;
        let metrics = BusMetrics::new();
        let images = ImageStore::open(record.data_dir.join("images"))
            .await
            .map_err(Error::from)?;
        if self.role != Role::Agent {
            if self.store == Some(StoreChoice::Redis) && self.redis.is_none() {
                return Err(Error::new(
                    ErrorKind::InvalidInput,
                    "no Redis was named for the store",
                    "the store on Redis is on that of the bus",
                    "give --redis redis://HOST:PORT, or --store redb",
                ));
            }
            let store = parts::store(self, record).await?;
            let config = ControllerConfig {
                store: Arc::clone(&store),
                images: images.clone(),
                clock: Arc::clone(&self.clock),
                ids: Arc::clone(&self.ids),
                name: self.controller_name(&record.tag)?,
                id: record.tag.clone(),
                rivals: self.rivals(),
            };
            let controller = Controller::open(config).await?;
            controller.count_commands(metrics.clone());
            server.controller = Some((controller.clone(), self.own_store.is_none().then_some(store)));
            let boot_id = self.ids.next().to_string();
            let path: NodePath = format!("{CONTROLLER_PATH}/c{}", record.tag).parse()?;
            let bus = attach(
                &transport,
                path,
                CONTROLLER_SERVICE,
                &boot_id,
                controller.epoch(),
                controller
                    .router()
                    .layer(TraceLayer::new())
                    .layer(metrics.layer()),
            )
            .await?;
            metrics.watch(&bus);
            server.buses.push(bus);
            let api = ApiState::new(controller, &record.tag).with_metrics(metrics.clone());
            server.router = Some(router(api.clone()));
            server.api = Some(api);
        }
        if self.role != Role::Controller {
            let storage = parts::storage(self.shared_storage.as_deref(), record, images).await?;
            let config = AgentConfig {
                path: self.node.clone(),
                drivers: parts::drivers(self, record).await?,
                networks: parts::networks(self, record).await?,
                images: storage.images,
                volumes: storage.volumes,
                epoch_file: record.data_dir.join("epoch"),
                clock: Arc::clone(&self.clock),
                identity: record.tag.clone(),
                underlay: self.underlay,
                shared_storage: storage.shared,
            };
            let agent = Agent::open(config, self.ids.next().to_string()).await?;
            server.agent = Some(agent.clone());
            match self.role {
                Role::Agent => knock(&transport, &agent, &record.tag).await?,
                _ => agent.admitted(),
            }
            let bus = attach(
                &transport,
                self.node.clone(),
                AGENT_SERVICE,
                agent.boot_id(),
                Epoch(0),
                agent.router().layer(TraceLayer::new()).layer(metrics.layer()),
            )
            .await?;
            metrics.watch(&bus);
            server.buses.push(bus.clone());
            agent.count_calls(metrics.clone());
            agent.start(bus)?;
        }
        // The agent listens before the controller speaks.
        if let Some((controller, _)) = &server.controller {
            controller.start(server.buses[0].clone())?;
        }
        if let (Some(socket), true) = (&self.socket, server.router.is_some()) {
            server.serve(socket).await?;
        }
        if let Some(address) = self.web {
            server.serve_web(address).await?;
        }
        tracing::info!(instance = %record.tag, role = ?self.role, api = API_VERSION, "serving");
        Ok(())
    }

    pub(super) fn store_choice(&self) -> StoreChoice {
        self.store.unwrap_or(match self.redis {
            Some(_) => StoreChoice::Redis,
            None => StoreChoice::Redb,
        })
    }

    /// Whether other controllers can be on the same store.
    fn rivals(&self) -> Rivals {
        match (&self.own_store, self.store_choice()) {
            (Some(_), _) if self.role == Role::Controller => Rivals::Possible,
            (None, StoreChoice::Redis) => Rivals::Possible,
            _ => Rivals::None,
        }
    }

    fn controller_name(&self, tag: &str) -> Result<String> {
        let Some(name) = &self.name else {
            let host = nix::unistd::gethostname().unwrap_or_default();
            return Ok(format!("{}-{tag}", host.to_string_lossy()));
        };
        if name.is_empty() || name.len() > NAME_MAX_BYTES || name.chars().any(char::is_control) {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "the controller's name cannot be used",
                format!("it must have 1 to {NAME_MAX_BYTES} bytes, without control characters"),
                "give another --name, or none",
            ));
        }
        Ok(name.clone())
    }

    fn check_web(&self) -> Result<()> {
        match self.web {
            Some(address) if self.role == Role::Agent => Err(Error::new(
                ErrorKind::InvalidInput,
                format!("cannot serve the web page on {address}"),
                "an agent alone has no API, and so no page",
                "give --web to the controller",
            )),
            Some(address) => must_be_loopback(address),
            None => Ok(()),
        }
    }

    async fn transport(&self) -> Result<Arc<dyn Transport>> {
        if let Some(transport) = &self.own_transport {
            return Ok(Arc::clone(transport));
        }
        match (&self.redis, self.role) {
            (Some(url), _) => parts::redis(url, self.bus_keys.as_ref()).await,
            (None, Role::All) => Ok(Arc::new(vbm_rpc::memory::MemoryBus::new())),
            (None, _) => Err(Error::new(
                ErrorKind::InvalidInput,
                "no bus was named",
                "a controller or an agent alone speaks over Redis",
                "give --redis redis://HOST:PORT, or run `vbmd` alone on one machine",
            )),
        }
    }
}

/// Asks whether this machine may have its path, from a place of its own on the bus.
async fn knock(transport: &Arc<dyn Transport>, agent: &Agent, tag: &str) -> Result<()> {
    let member = Member::new(format!("{DOOR_PATH}/a{tag}").parse()?, agent.boot_id());
    let bus = Bus::attach(Arc::clone(transport), member, Router::new()).await?;
    let word = agent.knock(&bus).await;
    bus.shutdown().await;
    word
}

async fn attach(
    transport: &Arc<dyn Transport>,
    path: NodePath,
    service: &str,
    boot_id: &str,
    epoch: Epoch,
    router: Router,
) -> Result<Bus> {
    let member = Member::new(path, boot_id)
        .service(Service::new(service)?)
        .epoch(epoch);
    Bus::attach(Arc::clone(transport), member, router)
        .await
        .map_err(Error::from)
}
