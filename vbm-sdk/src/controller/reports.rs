//! What agents tell, and what is made of it.

use super::Controller;
use crate::methods::{
    ImageRead, NodeReport, NodeReportReply, NodeReportRequest, PortReport, PortReportRequest, VmReport,
    VmReportRequest,
};
use crate::records::Edit;
use vbm_core::{
    Error, EventKind, Kind, Network, Node, NodePath, NodeSpec, NodeState, NodeStatus, ObjectRef, Port,
    PowerState, Result, Vm, VmId, VmStatus, WantedPower,
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
        let now = self.inner.clock.now();
        let known = self.records().get::<Node>(&report.path).await?;
        let before = known
            .as_ref()
            .map_or(NodeState::Unknown, |n| n.value.status.state);
        let status = NodeStatus {
            state: NodeState::Ready,
            capabilities: report.capabilities,
            cpus: report.cpus,
            memory_mib: report.memory_mib,
            memory_free_mib: report.memory_free_mib,
            boot_id: report.boot_id,
            epoch: report.epoch,
            seen_at: now,
            version: report.version,
            identity: report.identity,
            reason: None,
            warnings: Vec::new(),
            underlay: report.underlay,
            shared_storage: report.shared_storage,
        };
        let spec = known.map_or_else(NodeSpec::default, |n| n.value.spec);
        let node = Node {
            path: report.path.clone(),
            spec,
            status,
        };
        let mut edit = Edit::default().put(&node);
        let event = self.event(
            EventKind::NodeReady,
            ObjectRef::node(&report.path),
            format!("version {}", node.status.version),
        );
        if before != NodeState::Ready {
            edit = edit.event(&event);
        }
        self.records().commit(edit).await?;
        let mut reply = NodeReportReply {
            epoch: self.epoch(),
            surplus_networks: Vec::new(),
            orphan_vms: Vec::new(),
        };
        for id in report.networks {
            if self.records().get::<Network>(id).await?.is_none() {
                reply.surplus_networks.push(id);
            }
        }
        for id in report.vms {
            if self.records().get::<Vm>(id).await?.is_none() {
                reply.orphan_vms.push(id);
            }
        }
        Ok(reply)
    }

    async fn vm_report(&self, report: VmReportRequest) -> Result<()> {
        for seen in report.vms {
            if let Some(doing) = &seen.doing {
                self.note_step(seen.id, doing).await?;
            }
            self.saw_vm(&report.node, seen.id, &seen.status, seen.adopted)
                .await?;
        }
        Ok(())
    }

    /// Writes down how a VM is, and tells what happened to it.
    pub(super) async fn saw_vm(
        &self,
        node: &NodePath,
        id: VmId,
        status: &VmStatus,
        adopted: bool,
    ) -> Result<()> {
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
                let before = vm.clone();
                vm.status = VmStatus {
                    since: vm.status.since,
                    ..status.clone()
                };
                if vm.status.power != before.status.power {
                    vm.status.since = now;
                }
                settle_guest_shutdown(vm);
                happened = event_of(&before, vm, adopted);
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

/// A guest that shut itself down is wanted off from now on: it said so itself.
fn settle_guest_shutdown(vm: &mut Vm) {
    let reached = vm.status.observed == vm.meta.generation && vm.status.problem.is_none();
    if reached
        && vm.status.power == PowerState::Off
        && matches!(vm.spec.power, WantedPower::Running | WantedPower::Paused)
    {
        vm.spec.power = WantedPower::Off;
        vm.meta.generation = vm.meta.generation.next();
    }
}

/// The event that the step from one record to the next is, for people.
fn event_of(before: &Vm, after: &Vm, adopted: bool) -> Option<(EventKind, String)> {
    use PowerState as P;
    let (was, is) = (before.status.power, after.status.power);
    if let Some(problem) = &after.status.problem
        && before.status.problem.as_ref() != Some(problem)
    {
        return Some((EventKind::VmFailed, Error::inline(problem)));
    }
    match (was, is) {
        _ if adopted && is.is_live() => Some((
            EventKind::VmAdopted,
            format!("found {is} after a restart of the agent"),
        )),
        (P::Paused(_), P::Running) => Some((EventKind::VmResumed, String::new())),
        (P::Running | P::Unknown | P::Unresponsive | P::Stopping, P::Running) => None,
        (_, P::Running) => Some((EventKind::VmStarted, String::new())),
        (P::Off, P::Off) => None,
        (P::Paused(_), P::Paused(_)) => None,
        (_, P::Off) => Some((EventKind::VmStopped, String::new())),
        (_, P::Paused(_)) => Some((EventKind::VmPaused, is.to_string())),
        (P::Crashed(_), P::Crashed(_)) => None,
        (_, P::Crashed(_)) => Some((EventKind::VmCrashed, is.to_string())),
        _ => None,
    }
}
