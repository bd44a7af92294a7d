//! The overseer: one task that looks at all records, places VMs, forgets what is gone, finishes
//! operations, and tells the keepers of the nodes when the world has changed.

use super::{Controller, keeper::Keepers, moving::Movers, plan::World, traces::Traces};
use crate::methods::LOST_AFTER;
use crate::records::{Edit, Held, Record, Records, until_uncrossed};
use crate::store::{Revision, StoreError};
use futures::StreamExt;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::Instant;
use vbm_core::{
    Error, ErrorKind, EventKind, Forward, Group, Image, Kind, Network, Node, NodePath, NodeState, ObjectRef,
    Port, PowerState, Result, Snapshot, Timestamp, Vm, Volume,
};

/// How often the world is looked at although nothing changed.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Changes that come together are looked at together.
const GATHER: Duration = Duration::from_millis(5);
/// After a failure of the store.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// How many events and finished operations are kept.
const HISTORY_MAX_RECORDS: usize = 5_000;
/// How often history is trimmed, in looks.
const TRIM_EVERY_LOOKS: u64 = 500;

impl Controller {
    /// Runs until its leadership ends. Failures of the store are logged and tried again: nothing else is possible
    /// without it.
    pub(super) async fn oversee(&self) {
        let mut keepers = Keepers::new(self.clone());
        let mut movers = Movers::new(self.clone(), self.stop().child_token());
        // A look that is dropped leaves transactions done or not done; the next one, of whoever leads then, goes on.
        self.stop()
            .run_until_cancelled(self.keep_looking(&mut keepers, &mut movers))
            .await;
        movers.shutdown().await;
        keepers.shutdown().await;
    }

    async fn keep_looking(&self, keepers: &mut Keepers, movers: &mut Movers) {
        let mut heard = Heard::default();
        let mut looks = 0_u64;
        loop {
            let next = match self.look(keepers, movers, &mut heard).await {
                Ok(revision) => self.until_changed(revision, keepers).await,
                Err(e) => Err(e),
            };
            if let Err(error) = next {
                tracing::warn!(error = %error.inline(), "the world could not be looked at");
                tokio::time::sleep(RETRY_AFTER).await;
            }
            looks += 1;
            if looks.is_multiple_of(TRIM_EVERY_LOOKS)
                && let Err(error) = self.trim_history(HISTORY_MAX_RECORDS).await
            {
                tracing::warn!(error = %error.inline(), "history could not be trimmed");
            }
        }
    }

    async fn look(&self, keepers: &mut Keepers, movers: &mut Movers, heard: &mut Heard) -> Result<Revision> {
        let mut world = World::load(self.records()).await?;
        let operations = self.open_operations().await?;
        world.traces = Traces::of(&operations);
        self.end_if_outrun(&world)?;
        self.mark_lost(&mut world, heard).await?;
        self.place_all(&mut world).await?;
        self.forget_gone(&mut world, keepers).await?;
        let revision = world.revision;
        let world = Arc::new(world);
        keepers.show(Arc::clone(&world));
        movers.show(&world, |node| keepers.reached(node));
        self.finish_operations(operations, &world, keepers).await?;
        Ok(revision)
    }

    /// Returns when a record has changed, a keeper has news, or time is up.
    async fn until_changed(&self, from: Revision, keepers: &Keepers) -> Result<()> {
        let mut changes = match self.records().store().watch("", from).await {
            Ok(changes) => changes,
            Err(StoreError::Compacted { .. }) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        let wait = async {
            while let Some(change) = changes.next().await {
                match change {
                    Ok(change) if !concerns(&change.key) => {}
                    _ => break,
                }
            }
            tokio::time::sleep(GATHER).await;
        };
        tokio::select! {
            () = wait => {}
            () = keepers.news() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        Ok(())
    }

    /// Nodes that were silent too long are lost; nobody can tell what their VMs do.
    async fn mark_lost(&self, world: &mut World, heard: &mut Heard) -> Result<()> {
        let now = self.inner.clock.now();
        for node in world.nodes.values_mut() {
            let silent = heard.silent_for(node);
            if node.status.state != NodeState::Ready || silent < LOST_AFTER {
                continue;
            }
            let (last, mut marked) = (node.status.seen_at, false);
            let reason = lost(node);
            *node = self
                .records()
                .update::<Node>(node.path.clone(), |n| {
                    marked = n.status.state == NodeState::Ready && n.status.seen_at == last;
                    if marked {
                        n.status.state = NodeState::Lost;
                        n.status.reason = Some(reason.clone());
                    }
                    Ok(marked)
                })
                .await?;
            if !marked {
                continue;
            }
            let event = self.event(
                EventKind::NodeLost,
                ObjectRef::node(&node.path),
                "it does not report itself any more",
            );
            self.records().commit(Edit::default().event(&event)).await?;
            let here = |vm: &&mut Vm| vm.spec.node.as_ref() == Some(&node.path);
            for vm in world.vms.values_mut().filter(here) {
                *vm = self
                    .records()
                    .update::<Vm>(vm.meta.id, |v| Ok(unknown(v, now)))
                    .await?;
            }
        }
        Ok(())
    }

    async fn place_all(&self, world: &mut World) -> Result<()> {
        let homeless: Vec<Vm> = world
            .vms
            .values()
            .filter(|v| v.spec.node.is_none() && !v.meta.deleting)
            .cloned()
            .collect();
        for vm in homeless {
            let placed = world.place(&vm);
            let changed = self
                .records()
                .update::<Vm>(vm.meta.id, |v| {
                    let before = (v.spec.node.clone(), v.status.problem.clone());
                    match &placed {
                        Ok(node) if v.spec.node.is_none() => {
                            v.spec.node = Some(node.clone());
                            v.status.problem = None;
                        }
                        Ok(_) => {}
                        Err(problem) => v.status.problem = Some(problem.clone()),
                    }
                    Ok(before != (v.spec.node.clone(), v.status.problem.clone()))
                })
                .await?;
            world.vms.insert(vm.meta.id, changed);
        }
        Ok(())
    }

    /// Removes the records of what is being deleted once no node holds it any more.
    async fn forget_gone(&self, world: &mut World, keepers: &Keepers) -> Result<()> {
        let gone: Vec<Vm> = world
            .vms
            .values()
            .filter(|v| {
                v.meta.deleting
                    && v.spec
                        .node
                        .as_ref()
                        .is_none_or(|n| keepers.vm_removed(n, v.meta.id))
            })
            .cloned()
            .collect();
        for vm in gone {
            self.forget_vm(&vm, world).await?;
        }
        let gone: Vec<Network> = world
            .networks
            .values()
            .filter(|n| {
                n.meta.deleting
                    && world
                        .nodes
                        .keys()
                        .all(|node| keepers.network_removed(node, n.meta.id, &world.nodes[node]))
            })
            .cloned()
            .collect();
        for network in gone {
            let target = ObjectRef::new(Kind::Network, network.meta.id, &network.meta.name);
            if let Some(held) = self.records().get::<Network>(network.meta.id).await? {
                let event = self.event(EventKind::NetworkDeleted, target, "");
                let mut edit = Edit::default()
                    .delete(&held)
                    .release(super::addresses::key(network.meta.id))
                    .event(&event);
                if let Some(vni) = network.spec.vni {
                    edit = edit.release(super::networks::vni_key(vni));
                }
                done_or_crossed(self.records().commit(edit).await)?;
            }
            world.networks.remove(&network.meta.id);
        }
        Ok(())
    }

    async fn forget_vm(&self, vm: &Vm, world: &mut World) -> Result<()> {
        // Launches on the same networks cross it often: they write the same addresses.
        until_uncrossed(|| self.forget_vm_once(vm, world)).await?;
        world.vms.remove(&vm.meta.id);
        world.snapshots.retain(|_, s| s.spec.vm != vm.meta.id);
        world.ports.retain(|_, p| p.spec.vm != vm.meta.id);
        world.forwards.retain(|f| !vm.spec.ports.contains(&f.spec.target));
        Ok(())
    }

    async fn forget_vm_once(&self, vm: &Vm, world: &World) -> Result<()> {
        let Some(held) = self.records().get::<Vm>(vm.meta.id).await? else {
            return Ok(());
        };
        let target = ObjectRef::new(Kind::Vm, vm.meta.id, &vm.meta.name);
        let mut edit = Edit::default()
            .delete(&held)
            .event(&self.event(EventKind::VmDeleted, target, ""));
        if let Some(volume) = self.records().get::<Volume>(vm.spec.root_volume).await? {
            edit = edit.delete(&volume);
        }
        let mut ports = Vec::with_capacity(vm.spec.ports.len());
        for port in &vm.spec.ports {
            ports.extend(self.records().get::<Port>(port).await?);
        }
        edit = self.release_ports(edit, &ports).await?;
        for forward in world
            .forwards
            .iter()
            .filter(|f| vm.spec.ports.contains(&f.spec.target))
        {
            if let Some(forward) = self.records().get::<Forward>(forward.meta.id).await? {
                edit = edit.delete(&forward);
            }
        }
        for snapshot in self.records().snapshots(vm.meta.id).await? {
            edit = edit.delete(&snapshot);
        }
        self.records().commit(edit).await.map(drop)
    }
}

/// When each node was heard of last, by this controller's own steady clock: the times in the records were written by
/// whichever controller took the report, and are no measure of how long ago that was.
#[derive(Default)]
struct Heard {
    nodes: BTreeMap<NodePath, (Timestamp, Instant)>,
}

impl Heard {
    /// How long the node's record has told nothing new.
    fn silent_for(&mut self, node: &Node) -> Duration {
        let now = Instant::now();
        let told = node.status.seen_at;
        let (last, since) = self.nodes.entry(node.path.clone()).or_insert((told, now));
        if *last != told {
            (*last, *since) = (told, now);
        }
        now.duration_since(*since)
    }
}

fn lost(node: &Node) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!("node {} does not answer", node.path),
        format!(
            "its agent has not reported itself for {} s; it was last heard of at {}",
            LOST_AFTER.as_secs(),
            node.status.seen_at
        ),
        "look whether the machine, its vbmd and its way to Redis are there; its VMs may run on, and are not started elsewhere",
    )
}

/// A crossing is no failure here: the next look sees the newer record.
fn done_or_crossed(done: Result<Revision>) -> Result<()> {
    match done {
        Err(e) if e.kind() == ErrorKind::Stale => Ok(()),
        other => other.map(|_| ()),
    }
}

fn unknown(vm: &mut Vm, now: vbm_core::Timestamp) -> bool {
    let problem = Error::new(
        ErrorKind::Unavailable,
        format!("nobody can tell what {} does", vm.meta.name),
        "its node does not answer; the VM may run on",
        "bring the node back; it is not started elsewhere, so that it never runs twice",
    );
    let changed = vm.status.power != PowerState::Unknown;
    if changed {
        vm.status.power = PowerState::Unknown;
        vm.status.since = now;
        vm.status.problem = Some(problem);
    }
    changed
}

/// Whether a change of this key is one of the world: names, events and operations are not.
fn concerns(key: &str) -> bool {
    [
        Vm::PREFIX,
        Network::PREFIX,
        Port::PREFIX,
        Group::PREFIX,
        Forward::PREFIX,
        Image::PREFIX,
        Volume::PREFIX,
        Snapshot::PREFIX,
        Node::PREFIX,
        "op/",
    ]
    .iter()
    .any(|prefix| key.starts_with(prefix))
}

impl World {
    /// Reads all records. The revision is taken first: a watch from it misses nothing.
    pub(super) async fn load(records: &Records) -> Result<Self> {
        fn table<K: Ord, T: Record>(held: Vec<Held<T>>, key: impl Fn(&T) -> K) -> BTreeMap<K, T> {
            held.into_iter().map(|h| (key(&h.value), h.value)).collect()
        }
        let revision = records.store().revision().await?;
        Ok(Self {
            revision,
            vms: table(records.all().await?, |r: &Vm| r.meta.id),
            networks: table(records.all().await?, |r: &Network| r.meta.id),
            ports: table(records.all().await?, |r: &Port| r.meta.id),
            groups: table(records.all().await?, |r: &Group| r.meta.id),
            forwards: records
                .all::<Forward>()
                .await?
                .into_iter()
                .map(|h| h.value)
                .collect(),
            images: table(records.all().await?, |r: &Image| r.meta.id),
            volumes: table(records.all().await?, |r: &Volume| r.meta.id),
            snapshots: table(records.all().await?, |r: &Snapshot| r.meta.id),
            nodes: table(records.all().await?, |r: &Node| r.path.clone()),
            traces: Traces::default(),
        })
    }
}
