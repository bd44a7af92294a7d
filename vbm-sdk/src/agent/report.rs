//! Reports: what the agent tells the controller, until it was heard.
//!
//! Of each VM and port only the newest is kept: a report says how things are, not what changed, so
//! nothing is lost when two become one.

use super::Agent;
use crate::methods::{
    CONTROLLER_SERVICE, NodeReport, NodeReportRequest, PROTOCOL_VERSION, PortReport, PortReportRequest,
    REPORT_EVERY, VmReport, VmReportRequest, VmSeen,
};
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::{Notify, broadcast::error::RecvError};
use vbm_core::{Error, ErrorKind, NodePath, Result, UPLINKS_MAX, Uplink, VmId};
use vbm_net::NetEvent;
use vbm_rpc::{Bus, CallOptions, Fate, Method, Route, Service, bus::BoxedCaller};

/// The longest that a controller may take to answer a report.
const REPORT_DEADLINE: Duration = Duration::from_secs(10);
/// The longest that a start waits for the word of a controller.
const KNOCK_MAX: Duration = Duration::from_secs(3);
/// The longest that a command waits until this machine is taken in.
const ADMISSION_MAX: Duration = Duration::from_secs(5);
/// After a report that was not heard.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// The most VMs of one report.
const VMS_PER_REPORT: usize = 128;

/// What is still to be told.
#[derive(Default)]
pub(super) struct Reporter {
    vms: Mutex<BTreeMap<VmId, VmSeen>>,
    news: Notify,
}

impl Reporter {
    /// Tells this of a VM, instead of what was still to be told of it.
    pub(super) fn tell(&self, seen: VmSeen) {
        let mut vms = self.vms.lock().unwrap_or_else(PoisonError::into_inner);
        let adopted = seen.adopted || vms.get(&seen.id).is_some_and(|s| s.adopted);
        vms.insert(seen.id, VmSeen { adopted, ..seen });
        drop(vms);
        self.news.notify_one();
    }

    fn take(&self) -> Vec<VmSeen> {
        let mut vms = self.vms.lock().unwrap_or_else(PoisonError::into_inner);
        let some: Vec<VmId> = vms.keys().copied().take(VMS_PER_REPORT).collect();
        some.iter().filter_map(|id| vms.remove(id)).collect()
    }

    /// Puts back what was not heard, where nothing newer came in between; that a VM was adopted is still to be told.
    fn put_back(&self, seen: Vec<VmSeen>) {
        let mut vms = self.vms.lock().unwrap_or_else(PoisonError::into_inner);
        for vm in seen {
            let adopted = vm.adopted;
            vms.entry(vm.id).or_insert(vm).adopted |= adopted;
        }
    }
}

impl Agent {
    async fn tell_controller<M: Method>(&self, request: &M::Request) -> Result<M::Reply> {
        tell_over::<M>(self.calls()?, request).await
    }
}

/// Tells any controller; when that one cannot write it down (it is cut off from the store), each of the others.
async fn tell_over<M: Method>(calls: &BoxedCaller, request: &M::Request) -> Result<M::Reply> {
    let (root, service) = (NodePath::root(), Service::new(CONTROLLER_SERVICE)?);
    let options = CallOptions::default().deadline(REPORT_DEADLINE);
    let any = Route::any(root.clone(), service.clone());
    let failure = match calls.call::<M>(&any, request, options.clone()).await {
        Err(Fate::Refused(e)) if e.kind() == ErrorKind::Unavailable => e,
        done => return done.map_err(Error::from),
    };
    for member in calls.bus().members(&root).await? {
        if member.serves(&root, &service)
            && let Ok(reply) = calls
                .call::<M>(&Route::node(member.path), request, options.clone())
                .await
        {
            return Ok(reply);
        }
    }
    Err(failure)
}

impl Agent {
    /// Asks, over a bus that it has under another path, whether this machine may be its node: who attaches to the bus
    /// under a path takes it from whoever has it. No answer is no refusal: then it is told by the first report.
    ///
    /// # Errors
    /// The path is another machine's.
    ///
    /// # Cancel safety
    /// Dropping the future may leave the node shown as ready until it counts as lost.
    pub async fn knock(&self, bus: &Bus) -> Result<()> {
        let report = self.own_report().await?;
        match tokio::time::timeout(KNOCK_MAX, tell_over::<NodeReport>(&bus.caller().boxed(), &report)).await {
            Ok(Err(e)) if e.kind() == ErrorKind::AlreadyExists => Err(e),
            Ok(Ok(_)) => {
                self.admitted();
                Ok(())
            }
            Ok(Err(_)) | Err(_) => Ok(()),
        }
    }

    /// From now on commands are obeyed: the path is known to be this machine's.
    pub fn admitted(&self) {
        self.inner.admitted.send_replace(true);
    }

    /// Returns when a controller has taken this machine in. Who has the path of another would run its VMs a second time.
    ///
    /// # Errors
    /// None has for a while.
    pub(super) async fn when_admitted(&self) -> Result<()> {
        let mut admitted = self.inner.admitted.subscribe();
        let waited = tokio::time::timeout(ADMISSION_MAX, admitted.wait_for(|yes| *yes)).await;
        match waited {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Error::new(
                ErrorKind::Unavailable,
                format!("this machine does nothing as node {}", self.inner.path),
                "no controller has taken it in since its agent was started",
                "see `vbm node list` and the agent's log: another machine may have its path",
            )),
        }
    }

    /// Tells of the node, now and then, until shutdown.
    pub(super) async fn report_self(&self) {
        loop {
            let wait = match self.report_self_once().await {
                Ok(()) => REPORT_EVERY,
                Err(e) => {
                    tracing::warn!(error = %e.inline(), "no controller heard this node");
                    RETRY_AFTER
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.inner.stop.cancelled() => return,
            }
        }
    }

    async fn own_report(&self) -> Result<NodeReportRequest> {
        let (memory_mib, memory_free_mib) = memory_mib();
        let networks = self.inner.networks.inventory().await.map_err(Error::from)?;
        let live = self
            .inner
            .machines
            .values()
            .flat_map(|m| m.list())
            .filter(|(_, vm)| vm.power().is_live());
        let vms = live.map(|(id, _)| id).collect();
        Ok(NodeReportRequest {
            path: self.inner.path.clone(),
            boot_id: self.inner.boot_id.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: PROTOCOL_VERSION,
            identity: self.inner.identity.clone(),
            at: self.inner.clock.now(),
            underlay: self.inner.underlay,
            shared_storage: self.inner.shared_storage.clone(),
            uplinks: self.uplinks().await,
            capabilities: self.inner.capabilities.clone(),
            missing: self.inner.missing.clone(),
            cpus: std::thread::available_parallelism()
                .map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
            memory_mib,
            memory_free_mib,
            epoch: self.inner.epoch.highest(),
            vms,
            networks: networks.iter().map(|n| n.id).collect(),
        })
    }

    /// What networks may name here; nothing where it is not known, or too many to tell: the node is no worse for it.
    async fn uplinks(&self) -> Option<Vec<Uplink>> {
        match self.inner.networks.uplinks().await {
            Ok(all) if all.len() <= UPLINKS_MAX => Some(all),
            Ok(all) => {
                tracing::debug!(
                    count = all.len(),
                    "the interfaces of this node are too many to tell"
                );
                None
            }
            Err(e) => {
                tracing::warn!(error = %Error::from(e).inline(), "the interfaces of this node could not be listed");
                None
            }
        }
    }

    async fn report_self_once(&self) -> Result<()> {
        let report = self.own_report().await?;
        let reply = match self.tell_controller::<NodeReport>(&report).await {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                self.inner.admitted.send_replace(false);
                return Err(e);
            }
            told => told?,
        };
        self.admitted();
        for id in reply.surplus_networks {
            tracing::info!(network = %id, "removing a network that no record knows");
            if let Err(e) = self.inner.networks.remove(id).await {
                tracing::warn!(network = %id, error = %Error::from(e).inline(), "a surplus network could not be removed");
            }
        }
        for gone in reply.stray_vms {
            tracing::info!(vm = %gone.id, "taking a VM off that is another node's now");
            if let Err(e) = self.vm_remove(gone).await {
                tracing::warn!(error = %e.inline(), "a VM of another node could not be taken off");
            }
        }
        for id in reply.orphan_vms {
            tracing::warn!(vm = %id, "this VM runs here and no record knows it; `vbm doctor` shows it");
        }
        Ok(())
    }

    /// Tells of VMs as they change, until shutdown.
    pub(super) async fn report_vms(&self) {
        loop {
            let seen = self.inner.reporter.take();
            if seen.is_empty() {
                tokio::select! {
                    () = self.inner.reporter.news.notified() => continue,
                    () = self.inner.stop.cancelled() => return,
                }
            }
            let report = VmReportRequest {
                node: self.inner.path.clone(),
                vms: seen,
            };
            if let Err(e) = self.tell_controller::<VmReport>(&report).await {
                tracing::debug!(error = %e.inline(), "a report was not heard; it is told again");
                self.inner.reporter.put_back(report.vms);
                tokio::select! {
                    () = tokio::time::sleep(RETRY_AFTER) => {}
                    () = self.inner.stop.cancelled() => return,
                }
            }
        }
    }

    /// Tells of leases, until shutdown.
    pub(super) async fn report_leases(&self) {
        let mut events = self.inner.networks.events();
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                () = self.inner.stop.cancelled() => return,
            };
            let report = match event {
                Ok(NetEvent::PortLeased {
                    port, since, until, ..
                }) => PortReportRequest {
                    port,
                    at: since,
                    until: Some(until),
                    declined: false,
                },
                Ok(NetEvent::PortReleased { port, .. }) => PortReportRequest {
                    port,
                    at: self.inner.clock.now(),
                    until: None,
                    declined: false,
                },
                Ok(NetEvent::PortDeclined { port, .. }) => PortReportRequest {
                    port,
                    at: self.inner.clock.now(),
                    until: None,
                    declined: true,
                },
                // The controller counts leases of IPv4 alone.
                Ok(NetEvent::PortLeased6 { .. } | NetEvent::PortReleased6 { .. }) => continue,
                Ok(other) => {
                    tracing::warn!(event = ?other, "something happened on a network");
                    continue;
                }
                Err(RecvError::Lagged(lost)) => {
                    tracing::warn!(lost, "leases came faster than they could be told");
                    continue;
                }
                Err(RecvError::Closed) => return,
            };
            while let Err(e) = self.tell_controller::<PortReport>(&report).await {
                tracing::debug!(error = %e.inline(), "a lease was not heard; it is told again");
                tokio::select! {
                    () = tokio::time::sleep(RETRY_AFTER) => {}
                    () = self.inner.stop.cancelled() => return,
                }
            }
        }
    }
}

/// The memory of this host in MiB: all of it, and what is available (proc(5), meminfo).
fn memory_mib() -> (u64, u64) {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find(|l| l.starts_with(name))?;
        line.split_whitespace()
            .nth(1)?
            .parse::<u64>()
            .ok()
            .map(|kib| kib / 1024)
    };
    (
        field("MemTotal:").unwrap_or(0),
        field("MemAvailable:").unwrap_or(0),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use vbm_core::{PowerState, VmStatus};

    fn seen(adopted: bool, power: PowerState) -> VmSeen {
        VmSeen {
            id: VmId::from_uuid(uuid::Uuid::from_u128(7)),
            status: VmStatus {
                power,
                ..VmStatus::default()
            },
            doing: None,
            adopted,
            snapshots: Vec::new(),
            reverted: None,
        }
    }

    #[test]
    fn an_adoption_that_was_not_heard_is_told_with_what_came_after_it() {
        let reporter = Reporter::default();
        reporter.tell(seen(true, PowerState::Unknown));
        let unheard = reporter.take();
        reporter.tell(seen(false, PowerState::Running));
        reporter.put_back(unheard);
        assert_eq!(reporter.take(), [seen(true, PowerState::Running)]);
    }
}
