//! Keepers: one task per node that brings the node to its plan.
//!
//! A keeper remembers what it told the node last, and sends what differs: networks first, then VMs, since
//! a NIC opens only on a network whose rules are in the kernel. A node that was restarted (new boot id) is told
//! everything again. What fails is tried again, later each time.

use super::{
    Controller,
    plan::{NodePlan, World},
};
use crate::methods::{GoneVm, NetworkEnsure, NetworkRemove, VmEnsure, VmRemove, WantedNetwork, WantedVm};
use crate::store::Revision;
use futures::{FutureExt, future::join_all};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use vbm_core::{
    Error, ErrorKind, EventKind, Kind, Network, NetworkId, NetworkStatus, Node, NodePath, NodeState,
    ObjectRef, PowerState, Result, Vm, VmId,
};
use vbm_rpc::{CallOptions, Fate, Method, Route};

/// How many VMs of one node are told at once.
const VMS_AT_ONCE: usize = 16;
/// The longest that a node may take to make a network what it shall be.
const NETWORK_DEADLINE: Duration = Duration::from_secs(60);
/// The longest that a node may take to answer anything else.
const NODE_DEADLINE: Duration = Duration::from_secs(20);
/// After the first failure; doubled with each further one.
const RETRY_FIRST: Duration = Duration::from_millis(250);
/// The longest wait after a failure.
const RETRY_MAX: Duration = Duration::from_secs(15);
/// Networks are told again so often, so that what somebody else broke on the host is mended.
const HEAL_EVERY: Duration = Duration::from_secs(5);

/// How far a node is.
#[derive(Clone, Debug, Default)]
pub(super) struct Reached {
    boot_id: String,
    /// Everything that the world of this revision asks for was told to the node and done, where it is quickly done.
    pub(super) revision: Revision,
    removed_vms: BTreeSet<VmId>,
    removed_networks: BTreeSet<NetworkId>,
    /// Why not everything was done, and in the world of which revision.
    pub(super) problem: Option<(Revision, Error)>,
}

/// All keepers.
pub(super) struct Keepers {
    controller: Controller,
    keepers: BTreeMap<NodePath, (watch::Sender<Arc<World>>, watch::Receiver<Reached>)>,
    news: Arc<Notify>,
    stop: CancellationToken,
    tasks: tokio_util::task::TaskTracker,
}

impl Keepers {
    pub(super) fn new(controller: Controller) -> Self {
        let stop = controller.stop().child_token();
        Self {
            controller,
            keepers: BTreeMap::new(),
            news: Arc::default(),
            stop,
            tasks: tokio_util::task::TaskTracker::new(),
        }
    }

    /// Shows the world to every keeper; nodes that are new get one.
    pub(super) fn show(&mut self, world: Arc<World>) {
        for path in world.nodes.keys() {
            if !self.keepers.contains_key(path) {
                let (show, seen) = watch::channel(Arc::new(World::default()));
                let (tell, reached) = watch::channel(Reached::default());
                let keeper = Keeper {
                    controller: self.controller.clone(),
                    path: path.clone(),
                    told: Told::default(),
                    failures: 0,
                    reached: tell,
                    news: Arc::clone(&self.news),
                };
                self.tasks.spawn(keeper.run(seen, self.stop.clone()));
                self.keepers.insert(path.clone(), (show, reached));
            }
        }
        for (show, _) in self.keepers.values() {
            show.send_replace(Arc::clone(&world));
        }
    }

    /// Returns when a keeper got further.
    pub(super) async fn news(&self) {
        self.news.notified().await;
    }

    pub(super) fn reached(&self, node: &NodePath) -> Reached {
        self.keepers
            .get(node)
            .map(|(_, r)| r.borrow().clone())
            .unwrap_or_default()
    }

    pub(super) fn vm_removed(&self, node: &NodePath, vm: VmId) -> bool {
        self.keepers
            .get(node)
            .is_some_and(|(_, r)| r.borrow().removed_vms.contains(&vm))
    }

    /// A lost node need not be waited for: it is told what is surplus when it comes back.
    pub(super) fn network_removed(&self, path: &NodePath, network: NetworkId, node: &Node) -> bool {
        node.status.state != NodeState::Ready
            || self
                .keepers
                .get(path)
                .is_some_and(|(_, r)| r.borrow().removed_networks.contains(&network))
    }

    pub(super) async fn shutdown(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

fn is_ready(world: &World, node: &NodePath) -> bool {
    world
        .nodes
        .get(node)
        .is_some_and(|n| n.status.state == NodeState::Ready)
}

/// Returns when a newer world has the node lost or refused.
async fn turned_away(world: &mut watch::Receiver<Arc<World>>, node: &NodePath) {
    let gone = world.wait_for(|w| !is_ready(w, node)).await.is_err();
    if gone {
        std::future::pending::<()>().await;
    }
}

/// What a node was told last and did.
#[derive(Default)]
struct Told {
    networks: HashMap<NetworkId, WantedNetwork>,
    vms: HashMap<VmId, WantedVm>,
}

struct Keeper {
    controller: Controller,
    path: NodePath,
    told: Told,
    failures: u32,
    reached: watch::Sender<Reached>,
    news: Arc<Notify>,
}

impl Keeper {
    async fn run(mut self, mut world: watch::Receiver<Arc<World>>, stop: CancellationToken) {
        let mut heal = tokio::time::interval(HEAL_EVERY);
        heal.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let now = Arc::clone(&world.borrow_and_update());
            let (path, mut later) = (self.path.clone(), world.clone());
            // Dropping a pass leaves commands that the node may have done; they are idempotent and sent again.
            tokio::select! {
                () = self.pass(&now) => {}
                // What a node that is lost now was asked before is not waited for.
                () = turned_away(&mut later, &path), if is_ready(&now, &path) => {}
                () = stop.cancelled() => return,
            }
            let retry = self.retry_after();
            tokio::select! {
                changed = world.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(retry), if self.failures > 0 => {}
                _ = heal.tick() => self.told.networks.clear(),
                () = stop.cancelled() => return,
            }
        }
    }

    fn retry_after(&self) -> Duration {
        RETRY_FIRST
            .saturating_mul(1 << self.failures.min(10))
            .min(RETRY_MAX)
    }

    async fn pass(&mut self, world: &World) {
        let Some(node) = world
            .nodes
            .get(&self.path)
            .filter(|_| is_ready(world, &self.path))
        else {
            // What it holds when it comes back, nobody knows now: it is told, and asked, again.
            self.told = Told::default();
            return;
        };
        if self.reached.borrow().boot_id != node.status.boot_id {
            self.told = Told::default();
            self.reached.send_replace(Reached {
                boot_id: node.status.boot_id.clone(),
                ..Reached::default()
            });
        }
        let plan = world.node_plan(&self.path);
        let failed = self.keep(&plan, world).await;
        self.failures = if failed.is_some() {
            self.failures.saturating_add(1)
        } else {
            0
        };
        let before = self.reached.borrow().clone();
        let mut after = before.clone();
        match failed {
            None => {
                after.revision = world.revision;
                after.problem = None;
            }
            Some(problem) => after.problem = Some((world.revision, problem)),
        }
        // Ids are never used again, but what a set holds must not grow for ever.
        after
            .removed_vms
            .retain(|v| plan.remove_vms.iter().any(|g| g.id == *v));
        after
            .removed_networks
            .retain(|n| plan.remove_networks.contains(n));
        let news = before.revision != after.revision || before.problem != after.problem;
        self.reached.send_replace(after);
        if news {
            self.news.notify_one();
        }
    }

    /// Does what is to be done; gives the first failure back after trying everything.
    async fn keep(&mut self, plan: &NodePlan, world: &World) -> Option<Error> {
        let mut first: Option<Error> = None;
        let mut failed: BTreeMap<NetworkId, Error> = BTreeMap::new();
        for gone in &plan.remove_vms {
            if let Err(e) = self.remove_vm(gone).await {
                first.get_or_insert(e);
            }
        }
        for wanted in &plan.networks {
            if let Err(e) = self.ensure_network(wanted).await {
                failed.insert(wanted.id, e.clone());
                first.get_or_insert(e);
            }
        }
        for id in &plan.remove_networks {
            if let Err(e) = self.remove_network(*id).await {
                first.get_or_insert(e);
            }
        }
        let told = self.ensure_vms(plan, &failed, world).await;
        first.or(told)
    }

    async fn ensure_network(&mut self, wanted: &WantedNetwork) -> Result<()> {
        if self.told.networks.get(&wanted.id) == Some(wanted) {
            return Ok(());
        }
        let options = CallOptions::default().deadline(NETWORK_DEADLINE);
        let done = match self
            .controller
            .call_node::<NetworkEnsure>(&self.path, wanted, options)
            .await
        {
            Ok(status) => Ok(status),
            Err(Fate::Refused(problem)) => Err(problem),
            // The node did not answer: that says nothing of the network.
            Err(silence) => return Err(silence.into()),
        };
        let status = match &done {
            Ok(status) => NetworkStatus {
                observed: wanted.generation,
                ..status.clone()
            },
            Err(problem) => NetworkStatus {
                observed: wanted.generation,
                problem: Some(problem.clone()),
                ..NetworkStatus::default()
            },
        };
        self.controller.saw_network(wanted.id, status).await?;
        done?;
        self.told.networks.insert(wanted.id, wanted.clone());
        Ok(())
    }

    async fn remove_network(&mut self, id: NetworkId) -> Result<()> {
        if self.reached.borrow().removed_networks.contains(&id) {
            return Ok(());
        }
        self.told.networks.remove(&id);
        self.controller.ask_node::<NetworkRemove>(&self.path, &id).await?;
        self.reached.send_modify(|r| {
            r.removed_networks.insert(id);
        });
        self.news.notify_one();
        Ok(())
    }

    async fn remove_vm(&mut self, gone: &GoneVm) -> Result<()> {
        let id = gone.id;
        if self.reached.borrow().removed_vms.contains(&id) {
            return Ok(());
        }
        self.told.vms.remove(&id);
        self.controller.ask_node::<VmRemove>(&self.path, gone).await?;
        self.reached.send_modify(|r| {
            r.removed_vms.insert(id);
        });
        self.news.notify_one();
        Ok(())
    }

    async fn ensure_vms(
        &mut self,
        plan: &NodePlan,
        failed: &BTreeMap<NetworkId, Error>,
        world: &World,
    ) -> Option<Error> {
        // One of which nobody can tell is asked again: its node was away, however shortly.
        let is_known = |id: &VmId| {
            let vm = world.vms.get(id);
            vm.is_none_or(|v| v.status.power != PowerState::Unknown)
        };
        self.told
            .vms
            .retain(|id, _| is_known(id) && plan.vms.iter().any(|v| v.id == *id));
        let news: Vec<&WantedVm> = plan
            .vms
            .iter()
            .filter(|v| self.told.vms.get(&v.id) != Some(*v))
            .collect();
        let mut first = None;
        let mut told = Vec::new();
        for some in news.chunks(VMS_AT_ONCE) {
            let asked: Vec<_> = some
                .iter()
                .map(|wanted| self.ensure_vm(wanted, failed, world).boxed())
                .collect();
            for (wanted, result) in some.iter().zip(join_all(asked).await) {
                match result {
                    Ok(()) => told.push((*wanted).clone()),
                    Err(e) => drop(first.get_or_insert(e)),
                }
            }
        }
        self.told
            .vms
            .extend(told.into_iter().map(|wanted| (wanted.id, wanted)));
        first
    }

    async fn ensure_vm(
        &self,
        wanted: &WantedVm,
        failed: &BTreeMap<NetworkId, Error>,
        world: &World,
    ) -> Result<()> {
        if let Some(problem) = wanted.nics.iter().find_map(|n| failed.get(&n.network)) {
            let live = world
                .vms
                .get(&wanted.id)
                .is_some_and(|v| v.status.power.is_live());
            if !live {
                self.controller
                    .vm_has_problem(wanted.id, wanted.generation, problem)
                    .await?;
                return Err(problem.clone());
            }
        }
        let status = self.controller.ask_node::<VmEnsure>(&self.path, wanted).await?;
        self.controller.saw_vm(&self.path, wanted.id, &status).await
    }
}

fn is_stale(fate: &Fate) -> bool {
    matches!(fate, Fate::Refused(error) if error.kind() == ErrorKind::Stale)
}

impl Controller {
    /// Asks a node, in the name of the present leadership.
    pub(super) async fn ask_node<M: Method>(
        &self,
        node: &NodePath,
        request: &M::Request,
    ) -> Result<M::Reply> {
        let options = CallOptions::default().deadline(NODE_DEADLINE);
        self.call_node::<M>(node, request, options)
            .await
            .map_err(Error::from)
    }

    async fn call_node<M: Method>(
        &self,
        node: &NodePath,
        request: &M::Request,
        options: CallOptions,
    ) -> Result<M::Reply, Fate> {
        let (bus, route) = (self.commands().map_err(Fate::Refused)?, Route::node(node.clone()));
        let epoch = self.epoch();
        let fate = match bus.call::<M>(&route, request, options.clone().epoch(epoch)).await {
            Err(fate) if self.mandate.is_none() && is_stale(&fate) => fate,
            done => return done,
        };
        // Whoever speaks for the present leadership may not have heard of the newest one yet.
        self.look_who_leads().await.map_err(Fate::Refused)?;
        if self.epoch() <= epoch {
            return Err(fate);
        }
        bus.call::<M>(&route, request, options.epoch(self.epoch())).await
    }

    /// Writes down how a network is.
    async fn saw_network(&self, id: NetworkId, status: NetworkStatus) -> Result<()> {
        let mut turned = None;
        let updated = self
            .records()
            .update::<Network>(id, |n| {
                turned = match (n.status.ready, status.ready) {
                    (false, true) => Some(EventKind::NetworkReady),
                    _ if status.problem.is_some() && n.status.problem != status.problem => {
                        Some(EventKind::NetworkFailed)
                    }
                    _ => None,
                };
                let changed = n.status != status;
                n.status = status.clone();
                Ok(changed)
            })
            .await;
        let network = match updated {
            Err(e) if e.is_not_found() => return Ok(()),
            other => other?,
        };
        if let Some(kind) = turned {
            let target = ObjectRef::new(Kind::Network, id, &network.meta.name);
            let message = status.problem.as_ref().map(Error::inline).unwrap_or_default();
            self.records()
                .commit(crate::records::Edit::default().event(&self.event(kind, target, message)))
                .await?;
        }
        Ok(())
    }

    async fn vm_has_problem(
        &self,
        id: VmId,
        generation: vbm_core::Generation,
        problem: &Error,
    ) -> Result<()> {
        let updated = self
            .records()
            .update::<Vm>(id, |v| {
                let changed = v.status.problem.as_ref() != Some(problem) || v.status.observed != generation;
                v.status.problem = Some(problem.clone());
                v.status.observed = generation;
                Ok(changed)
            })
            .await;
        match updated {
            Err(e) if e.is_not_found() => Ok(()),
            other => other.map(|_| ()),
        }
    }
}
