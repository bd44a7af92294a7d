//! Networks on a real host: namespaces, netlink, iptables, nft, packet sockets.
//!
//! ```text
//!   HostNetwork --registry--> actor of network A --> apply / teardown --> kernel
//!        |                    actor of network B        ^ netns: a thread for each visit
//!        |                          +-- DHCP server     | exec:  iptables-restore, nft, conntrack
//!        +-- owner lock, events                         | link:  netlink
//! ```

mod actor;
mod apply;
mod blob;
mod carry;
mod check;
mod counting;
pub(crate) mod exec;
mod fdb;
mod floating;
mod flows;
mod foresee;
mod generation;
pub(crate) mod hooks;
mod leg;
mod limits;
pub(crate) mod link;
mod link6;
mod netlink;
pub(crate) mod netns;
mod nic;
mod offload;
mod overlay;
mod present;
mod probe;
pub(crate) mod record;
mod routed;
mod rules;
mod services;
mod stand;
mod steps;
mod sysctl;
mod tap;
pub(crate) mod teardown;
mod uplinks;
mod whole;

use crate::{
    DesiredNetwork, Dispatch, NetError, NetEvent, NetworkBackend, NetworkCounters, NetworkSeen, Nic, NicKind,
    PortFlow, Validated, backend::EVENTS_MAX_PENDING, check::PathSeen, metadata::Instance, names,
};
use actor::{Actor, Command};
use async_trait::async_trait;
use ipnet::Ipv4Net;
use netns::NetNs;
use record::{OwnerLock, Record};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::Ipv4Addr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use vbm_core::{Clock, NetworkId, PortId, Uplink};

/// Called with the name of each step of `ensure` as it is done: for tests that crash there.
pub type StepHook = Arc<dyn Fn(&str) + Send + Sync>;

/// Which network namespace is the host's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum HostNamespace {
    /// That of this process.
    #[default]
    Current,
    /// The one bound to this path, for example `/run/netns/lab`.
    Path(PathBuf),
}

/// How a [`HostNetwork`] is to work.
#[derive(Clone)]
#[non_exhaustive]
pub struct HostConfig {
    /// The tag on everything this instance makes: 1 to 64 of `A-Z a-z 0-9 - _ .`. Two instances on one host need two.
    pub owner: String,
    /// Where the host's side is.
    pub host_namespace: HostNamespace,
    /// Where the pairs between host and namespaces come from.
    pub transit_pool: Ipv4Net,
    /// Where records are kept that outlive a reboot.
    pub state_dir: PathBuf,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// The host's list of DNS servers, which are asked where a network names none; `/etc/resolv.conf`.
    pub resolver_list: PathBuf,
    /// Which part of the kernel's firewall finds a port's policy. May be another after a restart: what stands is replaced.
    pub dispatch: Dispatch,
    #[doc(hidden)]
    pub on_step: Option<StepHook>,
}

impl HostConfig {
    /// The usual settings.
    pub fn new(owner: impl Into<String>, state_dir: impl Into<PathBuf>, clock: Arc<dyn Clock>) -> Self {
        Self {
            owner: owner.into(),
            host_namespace: HostNamespace::Current,
            transit_pool: crate::plan::transit::DEFAULT_POOL,
            state_dir: state_dir.into(),
            clock,
            resolver_list: PathBuf::from("/etc/resolv.conf"),
            dispatch: Dispatch::default(),
            on_step: None,
        }
    }

    /// The host's list of DNS servers is this file.
    #[must_use]
    pub fn with_resolver_list(mut self, path: impl Into<PathBuf>) -> Self {
        self.resolver_list = path.into();
        self
    }

    /// Packets find their port's policy this way.
    #[must_use]
    pub const fn with_dispatch(mut self, dispatch: Dispatch) -> Self {
        self.dispatch = dispatch;
        self
    }

    /// The host's side is in this namespace.
    #[must_use]
    pub fn in_namespace(mut self, path: impl Into<PathBuf>) -> Self {
        self.host_namespace = HostNamespace::Path(path.into());
        self
    }

    /// Pairs between host and namespaces come from here; at least a /31.
    #[must_use]
    pub const fn with_transit_pool(mut self, pool: Ipv4Net) -> Self {
        self.transit_pool = pool;
        self
    }
}

impl fmt::Debug for HostConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostConfig")
            .field("owner", &self.owner)
            .field("host_namespace", &self.host_namespace)
            .field("transit_pool", &self.transit_pool)
            .field("state_dir", &self.state_dir)
            .field("dispatch", &self.dispatch)
            .finish_non_exhaustive()
    }
}

/// What all actors share.
pub(crate) struct HostShared {
    owner: String,
    host: NetNs,
    /// Whether the host is a namespace beside others on one machine.
    beside: bool,
    transit_pool: Ipv4Net,
    state_dir: PathBuf,
    clock: Arc<dyn Clock>,
    resolver_list: PathBuf,
    dispatch: Dispatch,
    /// Under which metadata's tokens are made: this process's.
    token_key: crate::metadata::TokenKey,
    on_step: Option<StepHook>,
    events: broadcast::Sender<NetEvent>,
    stop: CancellationToken,
    tracker: TaskTracker,
    /// Chains that nft has printed before.
    forms: Mutex<blob::Forms>,
    /// One change to the owner's host chains at a time.
    host_rules: tokio::sync::Mutex<()>,
    /// What was read of them last.
    host_seen: Mutex<hooks::HostSeen>,
    lock: Mutex<Option<OwnerLock>>,
}

impl HostShared {
    /// The name of a network's namespace.
    fn namespace(&self, network: NetworkId) -> String {
        if self.beside {
            names::namespace_beside(&self.owner, network)
        } else {
            names::namespace(network)
        }
    }

    fn step(&self, name: &str) {
        if let Some(hook) = &self.on_step {
            hook(name);
        }
    }
}

/// Networks on a real host. Cheap to clone; clones are the same.
#[derive(Clone)]
pub struct HostNetwork {
    shared: Arc<HostShared>,
    actors: Arc<Mutex<BTreeMap<NetworkId, mpsc::Sender<Command>>>>,
}

impl fmt::Debug for HostNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostNetwork")
            .field("owner", &self.shared.owner)
            .finish_non_exhaustive()
    }
}

impl HostNetwork {
    /// Opens the host: checks rights, programs, kernel and the firewall's backend, and takes the lock of this instance.
    /// Makes nothing. Must be called on a tokio runtime with time and I/O.
    ///
    /// # Errors
    /// [`NetError::NotRoot`], [`NetError::MissingProgram`], [`NetError::MissingFacility`], [`NetError::Firewall`];
    /// [`NetError::Conflict`] when another process has this instance's networks; [`NetError::Invalid`] for a bad tag or pool.
    pub async fn open(config: HostConfig) -> Result<Self, NetError> {
        check(&config)?;
        let host = match &config.host_namespace {
            HostNamespace::Current => NetNs::current(),
            HostNamespace::Path(path) => NetNs::at(path),
        };
        let beside = host.is_bound_by_name();
        probe::probe(&host).await?;
        let lock = OwnerLock::take(&config.owner)?;
        let (events, _) = broadcast::channel(EVENTS_MAX_PENDING);
        let shared = HostShared {
            owner: config.owner,
            host,
            beside,
            transit_pool: config.transit_pool.trunc(),
            state_dir: config.state_dir,
            clock: config.clock,
            resolver_list: config.resolver_list,
            dispatch: config.dispatch,
            token_key: crate::metadata::TokenKey::random()?,
            on_step: config.on_step,
            events,
            stop: CancellationToken::new(),
            tracker: TaskTracker::new(),
            forms: Mutex::default(),
            host_rules: tokio::sync::Mutex::new(()),
            host_seen: Mutex::default(),
            lock: Mutex::new(Some(lock)),
        };
        Ok(Self {
            shared: Arc::new(shared),
            actors: Arc::default(),
        })
    }

    fn registry(&self) -> MutexGuard<'_, BTreeMap<NetworkId, mpsc::Sender<Command>>> {
        self.actors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks a network's actor, which is started if there is none.
    async fn ask<T>(
        &self,
        id: NetworkId,
        command: impl FnOnce(actor::Answer<T>) -> Command,
    ) -> Result<T, NetError> {
        if self.shared.stop.is_cancelled() {
            return Err(NetError::Stopped);
        }
        let queue = {
            let mut actors = self.registry();
            actors
                .entry(id)
                .or_insert_with(|| Actor::start(Arc::clone(&self.shared), id))
                .clone()
        };
        let (answer, result) = oneshot::channel();
        queue.send(command(answer)).await.map_err(|_| NetError::Stopped)?;
        result.await.unwrap_or(Err(NetError::Stopped))
    }

    async fn remove_one(&self, id: NetworkId) -> Result<Vec<String>, NetError> {
        let removed = self.ask(id, Command::Remove).await?;
        // Queues are cloned under this lock only, so one that nobody else holds and that is empty can be closed.
        let mut actors = self.registry();
        if actors
            .get(&id)
            .is_some_and(|q| q.strong_count() == 1 && q.capacity() == q.max_capacity())
        {
            actors.remove(&id);
        }
        Ok(removed)
    }

    /// The host's own addresses, but for loopback and transits.
    async fn own_addresses(&self) -> Result<Vec<Ipv4Addr>, NetError> {
        let links = link::Links::open(&self.shared.host).await?;
        let of_transits_or_lo = |l: &link::Link| l.loopback || l.name.starts_with(names::TRANSIT_PREFIX);
        let inner: BTreeSet<u32> = links
            .list()
            .await?
            .iter()
            .filter(|l| of_transits_or_lo(l))
            .map(|l| l.index)
            .collect();
        let all = links.addresses().await?.into_iter();
        let outer = all.filter(|(index, ..)| !inner.contains(index));
        Ok(outer.map(|(_, net, _)| net.addr()).collect())
    }

    fn our_records(&self) -> Result<(Vec<Record>, Vec<NetError>), NetError> {
        let (mut records, errors) = Record::all()?;
        records.retain(|r| r.owner == self.shared.owner);
        Ok((records, errors))
    }

    /// Host rules of ours that no record speaks of: somebody removed the record by hand.
    async fn sweep_rules(&self, records: &[Record]) -> Result<Vec<String>, NetError> {
        if !records.is_empty() {
            return Ok(Vec::new());
        }
        let _one_at_a_time = self.shared.host_rules.lock().await;
        let mut changes = Vec::new();
        for family in hooks::FAMILIES {
            let observed = family.read(&self.shared.host).await?;
            let diff = crate::plan::host::remove_all(&self.shared.owner, &observed);
            if !diff.script.is_empty() {
                family.write(&self.shared.host, &diff.script).await?;
            }
            changes.extend(diff.changes);
        }
        Ok(changes)
    }
}

fn check(config: &HostConfig) -> Result<(), NetError> {
    let invalid = |what: String, why: &str, fix: &str| {
        Err(NetError::Invalid(vbm_core::Error::new(
            vbm_core::ErrorKind::InvalidInput,
            what,
            why,
            fix,
        )))
    };
    if !names::is_owner(&config.owner) {
        return invalid(
            format!("'{}' cannot be an owner tag", config.owner),
            "it is not 1 to 64 of letters, digits, '-', '_' and '.', beginning with a letter or digit",
            "choose one such as vbm-1",
        );
    }
    if config.transit_pool.prefix_len() > 31 {
        return invalid(
            format!("{} cannot be a transit pool", config.transit_pool),
            "it holds no pair of addresses",
            "choose a wider one, or leave it out",
        );
    }
    Ok(())
}

#[async_trait]
impl NetworkBackend for HostNetwork {
    async fn ensure(&self, desired: DesiredNetwork) -> Result<NetworkSeen, NetError> {
        if self.shared.stop.is_cancelled() {
            return Err(NetError::Stopped);
        }
        let wanted = Box::new(Validated::<DesiredNetwork>::new(desired)?);
        self.ask(wanted.id, |answer| Command::Ensure(wanted, answer))
            .await
    }

    async fn remove(&self, id: NetworkId) -> Result<(), NetError> {
        self.remove_one(id).await.map(drop)
    }

    async fn open_nic(&self, network: NetworkId, port: PortId, kind: NicKind) -> Result<Nic, NetError> {
        self.ask(network, |answer| Command::OpenNic(port, kind, answer))
            .await
    }

    async fn close_nic(&self, network: NetworkId, port: PortId) -> Result<(), NetError> {
        self.ask(network, |answer| Command::CloseNic(port, answer)).await
    }

    async fn describe(
        &self,
        network: NetworkId,
        port: PortId,
        instance: Option<Instance>,
    ) -> Result<(), NetError> {
        if let Some(instance) = &instance {
            instance.check().map_err(NetError::Invalid)?;
        }
        let instance = instance.map(Box::new);
        self.ask(network, |answer| Command::Describe(port, instance, answer))
            .await
    }

    async fn flows_of(&self, network: NetworkId, port: PortId) -> Result<Vec<PortFlow>, NetError> {
        self.ask(network, |answer| Command::FlowsOf(port, answer)).await
    }

    async fn take_flows(
        &self,
        network: NetworkId,
        port: PortId,
        flows: Vec<PortFlow>,
    ) -> Result<usize, NetError> {
        self.ask(network, |answer| Command::TakeFlows(port, flows, answer))
            .await
    }

    async fn plan(&self, desired: DesiredNetwork) -> Result<Vec<String>, NetError> {
        let wanted = Box::new(Validated::<DesiredNetwork>::new(desired)?);
        self.ask(wanted.id, |answer| Command::Foresee(wanted, answer))
            .await
    }

    async fn check(&self) -> Result<Vec<PathSeen>, NetError> {
        let ids: Vec<NetworkId> = self.registry().keys().copied().collect();
        let mut known = Vec::new();
        for id in ids {
            known.extend(self.ask(id, Command::Tell).await?);
        }
        let mut paths = crate::check::paths(&known, &self.own_addresses().await?)?;
        for of_one in paths.chunk_by_mut(|a, b| a.from == b.from) {
            if let Some(from) = of_one.first().map(|p| p.from) {
                let ns = NetNs::named(&self.shared.namespace(from));
                check::from(&ns, of_one).await?;
            }
        }
        Ok(paths)
    }

    async fn counters(&self, network: NetworkId) -> Result<NetworkCounters, NetError> {
        self.ask(network, Command::Count).await
    }

    async fn inventory(&self) -> Result<Vec<NetworkSeen>, NetError> {
        let (records, errors) = self.our_records()?;
        let mut seen = Vec::new();
        for record in records {
            seen.extend(self.ask(record.network, Command::Look).await?);
        }
        NetError::join(errors).map(|()| seen)
    }

    async fn sweep(&self, keep: &BTreeSet<NetworkId>) -> Result<Vec<String>, NetError> {
        let (records, mut errors) = self.our_records()?;
        let (mut removed, mut kept) = (Vec::new(), Vec::new());
        for record in records {
            if keep.contains(&record.network) {
                kept.push(record);
                continue;
            }
            match self.remove_one(record.network).await {
                Ok(lines) => removed.extend(lines),
                Err(error) => errors.push(error),
            }
        }
        match self.sweep_rules(&kept).await {
            Ok(lines) => removed.extend(lines),
            Err(error) => errors.push(error),
        }
        NetError::join(errors).map(|()| removed)
    }

    async fn uplinks(&self) -> Result<Vec<Uplink>, NetError> {
        if self.shared.stop.is_cancelled() {
            return Err(NetError::Stopped);
        }
        uplinks::list(&self.shared.host).await
    }

    fn events(&self) -> broadcast::Receiver<NetEvent> {
        self.shared.events.subscribe()
    }

    async fn shutdown(&self) {
        self.shared.stop.cancel();
        self.registry().clear();
        self.shared.tracker.close();
        self.shared.tracker.wait().await;
        drop(
            self.shared
                .lock
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
    }
}
