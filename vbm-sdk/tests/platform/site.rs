//! Simulated machines that share their disks, and a controller, in one process; each machine's cable can be pulled.

use crate::house::{PATIENCE, import, lan, request, unlist};
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{sync::watch, time::timeout};
use vbm_core::{Event, EventKind, NodeState, PowerState, VmId};
use vbm_hyper::{Driver, SimDriver, SimWorld};
use vbm_net::{NetworkBackend, SimNetwork};
use vbm_rpc::{
    BusError, MemberInfo, Transport,
    memory::MemoryBus,
    transport::{Attached, Destination, Inbound, Link, SendError, Sent},
};
use vbm_sdk::{
    api::{LaunchRequest, VmView},
    client::Client,
    server::{Builder, Role, Server},
    source::SystemClock,
    store::{MemoryStore, Store},
};

/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Where machines stand.
pub(crate) struct Site {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) bus: MemoryBus,
    store: MemoryStore,
    worlds: BTreeMap<&'static str, SimWorld>,
}

/// An agent on a machine.
pub(crate) struct Machine {
    server: Server,
    driver: Arc<SimDriver>,
    networks: SimNetwork,
    pub(crate) cable: Cable,
}

impl Drop for Site {
    fn drop(&mut self) {
        for entry in std::fs::read_dir(self.dir.path()).into_iter().flatten().flatten() {
            unlist(&entry.path());
        }
    }
}

impl Site {
    /// The machines `a` and `b`.
    pub(crate) fn new() -> Self {
        let a = SimWorld::instant();
        let b = a.beside();
        Self {
            dir: tempfile::tempdir().unwrap(),
            bus: MemoryBus::new(),
            store: MemoryStore::new(),
            worlds: BTreeMap::from([("a", a), ("b", b)]),
        }
    }

    pub(crate) fn world(&self, machine: &str) -> &SimWorld {
        &self.worlds[machine]
    }

    fn path(&self, of: &str) -> PathBuf {
        self.dir.path().join(of)
    }

    pub(crate) async fn controller(&self) -> (Server, Client) {
        let server = Server::builder(self.path("brain"))
            .run_dir(self.path("run-brain"))
            .ephemeral(true)
            .role(Role::Controller)
            .name("brain")
            .with_transport(self.bus.clone())
            .with_store(Arc::new(self.store.clone()) as Arc<dyn Store>)
            .start()
            .await
            .unwrap();
        let client = server.client().unwrap();
        (server, client)
    }

    /// The agent of a machine, at `lab/<machine>`, with shared disks and an address.
    pub(crate) async fn agent(&self, machine: &str) -> Machine {
        let host = if machine == "a" {
            [10, 9, 0, 1]
        } else {
            [10, 9, 0, 2]
        };
        let shared = self.path("shared");
        self.agent_with(machine, |b| b.underlay(host.into()).shared_storage(shared))
            .await
            .unwrap()
    }

    pub(crate) async fn agent_with(
        &self,
        machine: &str,
        change: impl FnOnce(Builder) -> Builder,
    ) -> vbm_core::Result<Machine> {
        let world = self.worlds.get(machine).cloned();
        let driver = SimDriver::open(world.unwrap_or_else(SimWorld::instant)).unwrap();
        let (driver, networks) = (Arc::new(driver), SimNetwork::new(Arc::new(SystemClock)));
        let cable = Cable::plugged_into(&self.bus);
        let builder = Server::builder(self.path(machine))
            .run_dir(self.path(&format!("run-{machine}")))
            .ephemeral(true)
            .role(Role::Agent)
            .node(format!("lab/{machine}").parse().unwrap())
            .with_transport(Arc::new(cable.clone()) as Arc<dyn Transport>)
            .with_drivers(vec![driver.clone()])
            .with_networks(Arc::new(networks.clone()));
        Ok(Machine {
            server: change(builder).start().await?,
            driver,
            networks,
            cable,
        })
    }

    /// An image and a network.
    pub(crate) async fn furnish(&self, client: &Client) {
        import(client, self.dir.path()).await;
        lan(client, "lan", "10.0.0.0/24").await;
    }
}

impl Machine {
    pub(crate) async fn shutdown(self) {
        self.server.shutdown().await;
    }

    /// How a VM is here; `None` when it is not.
    pub(crate) async fn power(&self, vm: VmId) -> Option<PowerState> {
        self.driver.inspect(vm).await.ok().map(|seen| seen.power)
    }

    pub(crate) async fn holds_no_vm(&self) -> bool {
        self.driver.inventory().await.unwrap().is_empty()
    }

    pub(crate) const fn networks(&self) -> &SimNetwork {
        &self.networks
    }

    /// Whether the first port of a VM is on its network here, and with its NIC open.
    pub(crate) async fn port(&self, vm: &VmView) -> Option<bool> {
        let port = vm.vm.spec.ports[0];
        let networks = self.networks.inventory().await.unwrap();
        let mut ports = networks.iter().flat_map(|n| &n.ports);
        ports.find(|p| p.id == port).map(|p| p.open)
    }
}

/// A request for a VM on `lan` and on this machine.
pub(crate) fn on(machine: &str, vm: &str) -> LaunchRequest {
    let mut request = request(vm);
    request.node = Some(format!("lab/{machine}").parse().unwrap());
    request
}

pub(crate) async fn until_node(client: &Client, node: &str, wanted: NodeState) -> vbm_core::Node {
    until_node_is(client, node, |n| n.status.state == wanted).await
}

pub(crate) async fn until_node_is(
    client: &Client,
    node: &str,
    so: impl Fn(&vbm_core::Node) -> bool,
) -> vbm_core::Node {
    let mut last = None;
    let seen = async {
        loop {
            last = client.nodes().get_opt(node).await.unwrap();
            if let Some(node) = last.clone().filter(|n| so(n)) {
                return node;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    let seen = timeout(2 * PATIENCE, seen).await;
    seen.unwrap_or_else(|_| panic!("{node} does not come to what is waited for: {last:?}"))
}

/// Looks until it is so.
pub(crate) async fn until_so(what: &str, so: impl AsyncFn() -> bool) {
    let seen = async {
        while !so().await {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    timeout(PATIENCE, seen).await.unwrap_or_else(|_| panic!("{what}"));
}

/// All events of a kind until now.
pub(crate) async fn events(client: &Client, kind: EventKind) -> Vec<Event> {
    let (mut events, mut found) = (client.events().open(), Vec::new());
    while let Some(event) = events.next().await {
        let event = event.unwrap().event;
        if event.kind == kind {
            found.push(event);
        }
    }
    found
}

/// A way to the bus that can be cut: then nothing that is said comes out, though what is kept for the machine still comes in.
#[derive(Clone)]
pub(crate) struct Cable {
    bus: MemoryBus,
    cut: Arc<AtomicBool>,
}

impl Cable {
    fn plugged_into(bus: &MemoryBus) -> Self {
        Self {
            bus: bus.clone(),
            cut: Arc::default(),
        }
    }

    pub(crate) fn cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::SeqCst);
    }
}

#[async_trait::async_trait]
impl Transport for Cable {
    async fn attach(&self, member: MemberInfo, inbound: Inbound) -> Result<Attached, BusError> {
        let attached = self.bus.attach(member, inbound).await?;
        let (link, cut) = (attached.link, self.cut.clone());
        Ok(Attached::new(Arc::new(Line { link, cut }), attached.nonce))
    }
}

struct Line {
    link: Arc<dyn Link>,
    cut: Arc<AtomicBool>,
}

impl Line {
    fn is_cut(&self) -> bool {
        self.cut.load(Ordering::SeqCst)
    }
}

#[async_trait::async_trait]
impl Link for Line {
    async fn send(&self, to: &Destination, frame: bytes::Bytes, ttl: Duration) -> Result<Sent, SendError> {
        if self.is_cut() {
            return Ok(Sent::default());
        }
        self.link.send(to, frame, ttl).await
    }
    async fn post(&self, to: Destination, frame: bytes::Bytes, ttl: Duration) {
        if !self.is_cut() {
            self.link.post(to, frame, ttl).await;
        }
    }
    fn try_post(&self, to: Destination, frame: bytes::Bytes, ttl: Duration) -> bool {
        self.is_cut() || self.link.try_post(to, frame, ttl)
    }
    async fn members(&self, scope: &vbm_core::NodePath) -> Result<Vec<MemberInfo>, BusError> {
        self.link.members(scope).await
    }
    fn generations(&self) -> watch::Receiver<u64> {
        self.link.generations()
    }
    fn ended(&self) -> watch::Receiver<Option<BusError>> {
        self.link.ended()
    }
    async fn retire(&self) {
        self.link.retire().await;
    }
    async fn close(&self) {
        self.link.close().await;
    }
    fn sever(&self) {
        self.link.sever();
    }
}
