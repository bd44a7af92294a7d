//! What agents tell, and what is made of it.

use super::{
    Controller,
    admission::{self, Admission},
};
use crate::methods::{
    GoneVm, ImageRead, NodeReport, NodeReportReply, NodeReportRequest, PortReport, PortReportRequest,
    VmReport, VmReportRequest,
};
use crate::records::{Edit, Held, until_uncrossed};
use vbm_core::{
    Error, EventKind, Kind, Network, Node, NodePath, NodeSpec, NodeState, NodeStatus, ObjectRef, Port,
    PowerState, Result, Rival, Timestamp, Vm, VmId, VmStatus, WantedPower,
};
use vbm_rpc::Router;

impl Controller {
    /// What this controller answers on the bus.
    pub fn router(&self) -> Router {
        let (a, b, c, d) = (self.clone(), self.clone(), self.clone(), self.clone());
        Router::new()
            .method::<NodeReport, _, _>(move |_, r| {
                let this = a.clone();
                async move { this.node_report(r).await }
            })
            .method::<VmReport, _, _>(move |_, r| {
                let this = b.clone();
                async move { this.vm_report(r).await }
            })
            .method::<PortReport, _, _>(move |_, r| {
                let this = c.clone();
                async move { this.port_report(r).await }
            })
            .method::<ImageRead, _, _>(move |_, r| {
                let this = d.clone();
                async move { this.read_image(&r).await }
            })
    }

    async fn node_report(&self, report: NodeReportRequest) -> Result<NodeReportReply> {
        let vms = self.records().all::<Vm>().await?;
        let has_vms = vms
            .iter()
            .any(|v| v.value.spec.node.as_ref() == Some(&report.path));
        until_uncrossed(|| self.admit(&report, has_vms)).await?;
        let mut reply = NodeReportReply {
            epoch: self.epoch(),
            surplus_networks: Vec::new(),
            orphan_vms: Vec::new(),
            stray_vms: Vec::new(),
        };
        for id in &report.networks {
            if self.records().get::<Network>(id).await?.is_none() {
                reply.surplus_networks.push(*id);
            }
        }
        for id in &report.vms {
            match vms.iter().find(|v| v.value.meta.id == *id) {
                None => reply.orphan_vms.push(*id),
                Some(held) if is_stray(&held.value, &report.path) => {
                    reply.stray_vms.push(self.stray(&held.value).await?);
                }
                Some(_) => {}
            }
        }
        Ok(reply)
    }

    /// Judges a report, and writes down what came of it where nobody crosses.
    async fn admit(&self, report: &NodeReportRequest, has_vms: bool) -> Result<()> {
        let now = self.inner.clock.now();
        let known = self.records().get::<Node>(&report.path).await?;
        match admission::judge(report, known.as_ref().map(|n| &n.value), has_vms, now) {
            Admission::Accepted(warnings) => self.node_accepted(report, known, warnings, now).await,
            Admission::Incompatible(problem) => {
                self.node_refused(report, known, &problem, now).await?;
                Err(problem)
            }
            Admission::Rival(problem) => {
                self.note_rival(report, now).await?;
                Err(problem)
            }
        }
    }

    async fn node_accepted(
        &self,
        report: &NodeReportRequest,
        known: Option<Held<Node>>,
        warnings: Vec<Error>,
        now: Timestamp,
    ) -> Result<()> {
        let before = known.as_ref().map(|n| n.value.status.clone()).unwrap_or_default();
        let mut status = status_of(report, now);
        status.state = NodeState::Ready;
        status.rival = before
            .rival
            .filter(|r| now.since(r.seen_at) < admission::RIVAL_SHOWN);
        status.warnings = warnings;
        let node = Node {
            path: report.path.clone(),
            spec: spec_of(known.as_ref()),
            status,
        };
        let mut edit = written(known.as_ref(), &node);
        if before.state != NodeState::Ready {
            let message = format!("version {}", node.status.version);
            edit = edit.event(&self.event(EventKind::NodeReady, ObjectRef::node(&node.path), message));
        }
        self.records().commit(edit).await.map(drop)
    }

    /// A node of another version is shown with the reason; what runs on it runs on.
    async fn node_refused(
        &self,
        report: &NodeReportRequest,
        known: Option<Held<Node>>,
        problem: &Error,
        now: Timestamp,
    ) -> Result<()> {
        let before = known
            .as_ref()
            .map_or(NodeState::Unknown, |n| n.value.status.state);
        let mut status = status_of(report, now);
        status.state = NodeState::Refused;
        status.reason = Some(problem.clone());
        let node = Node {
            path: report.path.clone(),
            spec: spec_of(known.as_ref()),
            status,
        };
        let mut edit = written(known.as_ref(), &node);
        if before != NodeState::Refused {
            let event = self.event(
                EventKind::NodeRefused,
                ObjectRef::node(&node.path),
                problem.inline(),
            );
            edit = edit.event(&event);
        }
        self.records().commit(edit).await.map(drop)
    }

    async fn note_rival(&self, report: &NodeReportRequest, now: Timestamp) -> Result<()> {
        let mut new = false;
        self.records()
            .update::<Node>(report.path.clone(), |n| {
                let rival = n.status.rival.as_ref();
                new = rival.is_none_or(|r| r.identity != report.identity);
                n.status.rival = Some(Rival {
                    identity: report.identity.clone(),
                    seen_at: now,
                });
                Ok(true)
            })
            .await?;
        if new {
            let message = format!("machine {} reports itself under the same path", report.identity);
            let event = self.event(EventKind::NodeRefused, ObjectRef::node(&report.path), message);
            self.records().commit(Edit::default().event(&event)).await?;
        }
        Ok(())
    }

    /// What a node shall give up of a VM that is another's.
    async fn stray(&self, vm: &Vm) -> Result<GoneVm> {
        let mut nics = Vec::new();
        for port in &vm.spec.ports {
            if let Some(port) = self.records().get::<Port>(port).await? {
                nics.push((port.value.spec.network, port.value.meta.id));
            }
        }
        Ok(GoneVm {
            id: vm.meta.id,
            volume: vm.spec.root_volume,
            nics,
            keep_volume: true,
        })
    }

    async fn vm_report(&self, report: VmReportRequest) -> Result<()> {
        for seen in report.vms {
            if let Some(doing) = &seen.doing {
                self.note_step(seen.id, doing).await?;
            }
            if seen.adopted {
                self.saw_adoption(&report.node, seen.id).await?;
            }
            self.saw_vm(&report.node, seen.id, &seen.status).await?;
            self.saw_snapshots(&report.node, &seen).await?;
        }
        Ok(())
    }

    /// Tells that a node found a VM that had run on without its agent. It happened, also when something newer is wanted by now
    /// and when the VM has been stopped before this was heard.
    async fn saw_adoption(&self, node: &NodePath, id: VmId) -> Result<()> {
        let Some(vm) = self.records().get::<Vm>(id).await? else {
            return Ok(());
        };
        if vm.value.spec.node.as_ref() != Some(node) {
            return Ok(());
        }
        let target = ObjectRef::new(Kind::Vm, id, &vm.value.meta.name);
        let event = self.event(
            EventKind::VmAdopted,
            target,
            "it had run on while its agent was away".to_owned(),
        );
        self.records().commit(Edit::default().event(&event)).await?;
        Ok(())
    }

    /// Writes down how a VM is, and tells what happened to it.
    pub(super) async fn saw_vm(&self, node: &NodePath, id: VmId, status: &VmStatus) -> Result<()> {
        let now = self.inner.clock.now();
        let mut happened = None;
        let mut ended = false;
        let updated = self
            .records()
            .update::<Vm>(id, |vm| {
                happened = None;
                if vm.spec.node.as_ref() != Some(node) || status.observed < vm.status.observed {
                    return Ok(false);
                }
                if left_on_the_way(vm, status) {
                    return Ok(false);
                }
                let before = vm.clone();
                vm.status = VmStatus {
                    since: vm.status.since,
                    ..status.clone()
                };
                if vm.status.power != before.status.power {
                    vm.status.since = now;
                }
                settle_guest_shutdown(vm);
                happened = event_of(&before, vm);
                let was_on = before.status.power.is_live() || before.status.power == PowerState::Unknown;
                ended = was_on && !vm.status.power.is_live() && vm.status.power != PowerState::Unknown;
                Ok(*vm != before)
            })
            .await;
        let vm = match updated {
            Err(e) if e.is_not_found() => return Ok(()),
            other => other?,
        };
        if let Some((kind, message)) = happened {
            let target = ObjectRef::new(Kind::Vm, id, &vm.meta.name);
            self.records()
                .commit(Edit::default().event(&self.event(kind, target, message)))
                .await?;
        }
        if ended {
            self.end_leases(&vm).await?;
        }
        Ok(())
    }

    /// A VM that is off holds no lease.
    async fn end_leases(&self, vm: &Vm) -> Result<()> {
        for port in &vm.spec.ports {
            let ended = self
                .records()
                .update::<Port>(port, |p| {
                    let had = p.status.leased_at.is_some();
                    (p.status.leased_at, p.status.leased_until) = (None, None);
                    Ok(had)
                })
                .await;
            match ended {
                Err(e) if e.is_not_found() => {}
                other => drop(other?),
            }
        }
        Ok(())
    }

    async fn port_report(&self, report: PortReportRequest) -> Result<()> {
        let mut kind = None;
        let updated = self
            .records()
            .update::<Port>(report.port, |p| {
                kind = match (p.status.leased_at, report.until) {
                    _ if report.declined => Some(EventKind::PortDeclined),
                    (None, Some(_)) => Some(EventKind::PortLeased),
                    (Some(_), None) => Some(EventKind::PortReleased),
                    _ => None,
                };
                p.status.leased_at = report.until.map(|_| report.at);
                p.status.leased_until = report.until;
                Ok(true)
            })
            .await;
        let port = match updated {
            Err(e) if e.is_not_found() => return Ok(()),
            other => other?,
        };
        if let Some(kind) = kind {
            let vm = self.records().get::<Vm>(port.spec.vm).await?;
            let name = vm.map_or_else(|| port.meta.name.clone(), |v| v.value.meta.name);
            let target = ObjectRef::new(Kind::Port, port.meta.id, name);
            self.records()
                .commit(Edit::default().event(&self.event(kind, target, port.spec.address.to_string())))
                .await?;
        }
        Ok(())
    }
}

fn spec_of(known: Option<&Held<Node>>) -> NodeSpec {
    known.map(|n| n.value.spec.clone()).unwrap_or_default()
}

/// What others wrote into the record meanwhile is not written over.
fn written(known: Option<&Held<Node>>, node: &Node) -> Edit {
    match known {
        Some(held) => Edit::default().update(held, node),
        None => Edit::default().create(node),
    }
}

/// A VM that moves is over on its source before it is written down as another node's: that is no end of it.
fn left_on_the_way(vm: &Vm, status: &VmStatus) -> bool {
    vm.spec.moving.is_some() && !status.power.is_live()
}

/// Whether a VM that a node holds is another node's: it went there while this one was away. One that is on its
/// way is its mover's business.
fn is_stray(vm: &Vm, node: &NodePath) -> bool {
    vm.spec.moving.is_none() && vm.spec.node.as_ref().is_some_and(|home| home != node)
}

fn status_of(report: &NodeReportRequest, now: Timestamp) -> NodeStatus {
    NodeStatus {
        capabilities: report.capabilities.clone(),
        missing: report.missing.clone(),
        cpus: report.cpus,
        memory_mib: report.memory_mib,
        memory_free_mib: report.memory_free_mib,
        boot_id: report.boot_id.clone(),
        epoch: report.epoch,
        seen_at: now,
        version: report.version.clone(),
        identity: report.identity.clone(),
        underlay: report.underlay,
        shared_storage: report.shared_storage.clone(),
        uplinks: report.uplinks.clone(),
        ..NodeStatus::default()
    }
}

/// A guest that shut itself down is wanted off from now on: it said so itself.
fn settle_guest_shutdown(vm: &mut Vm) {
    let reached = vm.status.observed == vm.meta.generation && vm.status.problem.is_none();
    if reached
        && vm.status.power == PowerState::Off
        && matches!(
            vm.spec.power,
            WantedPower::Running | WantedPower::Paused | WantedPower::Saved
        )
    {
        vm.spec.power = WantedPower::Off;
        vm.meta.generation = vm.meta.generation.next();
    }
}

/// The event that the step from one record to the next is, for people.
fn event_of(before: &Vm, after: &Vm) -> Option<(EventKind, String)> {
    use PowerState as P;
    let (was, is) = (before.status.power, after.status.power);
    if let Some(problem) = &after.status.problem
        && before.status.problem.as_ref() != Some(problem)
    {
        return Some((EventKind::VmFailed, Error::inline(problem)));
    }
    match (was, is) {
        (P::Paused(_), P::Running) => Some((EventKind::VmResumed, String::new())),
        (P::Running | P::Unknown | P::Unresponsive | P::Stopping, P::Running) => None,
        (P::MigratingOut | P::MigratingIn, P::Running) => None,
        (_, P::Running) => Some((EventKind::VmStarted, String::new())),
        (P::Off, P::Off) => None,
        (P::Saved, P::Saved) => None,
        (_, P::Saved) => Some((EventKind::VmSaved, String::new())),
        (P::Paused(_), P::Paused(_)) => None,
        (_, P::Off) => Some((EventKind::VmStopped, String::new())),
        (_, P::Paused(_)) => Some((EventKind::VmPaused, is.to_string())),
        (P::Crashed(_), P::Crashed(_)) => None,
        (_, P::Crashed(_)) => Some((EventKind::VmCrashed, is.to_string())),
        _ => None,
    }
}
