//! Networks, as the controller wants them on this node.

use super::Agent;
use crate::api::{Counted, TriedPath};
use crate::methods::{CountedNetwork, CountedPort, CountedRule, WantedNetwork, WantedVm};
use std::collections::BTreeSet;
use vbm_core::{Error, NetworkId, NetworkStatus, PortId, Result};
use vbm_net::{
    DesiredForward, DesiredGroup, DesiredNetwork, DesiredOverlay, DesiredPort, NetworkSeen, PortPolicy,
    RemotePort, metadata::Instance,
};

impl Agent {
    pub(super) async fn network_ensure(&self, wanted: WantedNetwork) -> Result<NetworkStatus> {
        let generation = wanted.generation;
        let seen = self
            .inner
            .networks
            .ensure(desired(wanted))
            .await
            .map_err(Error::from)?;
        if !seen.changed.is_empty() {
            tracing::info!(network = %seen.id, changed = ?seen.changed, "the network was made as wanted");
        }
        self.describe_again(&seen).await;
        Ok(NetworkStatus {
            observed: generation,
            ready: seen.ready,
            gateway_mac: Some(seen.gateway_mac),
            namespace: Some(seen.namespace),
            problem: None,
        })
    }

    /// What a VM's guest may read: its own id, name, keys and user data.
    fn instance(&self, want: &WantedVm) -> Result<Instance> {
        let user_data = want.guest.user_data.as_ref().map(|d| d.bytes()).transpose()?;
        Ok(Instance {
            id: format!("i-{}", want.id.uuid().simple()),
            name: Some(want.name.clone()),
            user_data,
            ssh_keys: want.guest.ssh_keys.clone(),
            macs: want.nics.iter().map(|n| n.mac).collect(),
            node: Some(self.inner.path.to_string()),
        })
    }

    /// Tells a network that was made anew what the guests on it may read. What fails is done by the next `ensure`.
    async fn describe_again(&self, seen: &NetworkSeen) {
        let untold: BTreeSet<PortId> = seen.ports.iter().filter(|p| !p.described).map(|p| p.id).collect();
        if untold.is_empty() {
            return;
        }
        let on_it = |want: &WantedVm| want.nics.iter().any(|n| untold.contains(&n.port));
        for want in self.wanted_vms().into_iter().filter(on_it) {
            let Ok(instance) = self.instance(&want) else {
                continue;
            };
            for nic in want.nics.iter().filter(|n| untold.contains(&n.port)) {
                let told = self
                    .inner
                    .networks
                    .describe(seen.id, nic.port, Some(instance.clone()));
                if let Err(error) = told.await {
                    tracing::debug!(vm = %want.id, %error, "its metadata is not told yet");
                }
            }
        }
    }

    /// Tells the networks of a VM what its guest may read.
    pub(super) async fn describe(&self, want: &WantedVm) -> Result<()> {
        let instance = self.instance(want)?;
        for nic in &want.nics {
            let told = self
                .inner
                .networks
                .describe(nic.network, nic.port, Some(instance.clone()));
            told.await.map_err(Error::from)?;
        }
        Ok(())
    }

    pub(super) async fn network_foresee(&self, wanted: WantedNetwork) -> Result<Vec<String>> {
        let lines = self.inner.networks.plan(desired(wanted)).await;
        lines.map_err(Error::from)
    }

    pub(super) async fn network_check(&self, (): ()) -> Result<Vec<TriedPath>> {
        let paths = self.inner.networks.check().await.map_err(Error::from)?;
        let tried = |p: vbm_net::PathSeen| TriedPath {
            from: p.from,
            to: p.to,
            address: p.address,
            way: p.way.to_string(),
            allowed: p.allowed,
            reached: p.reached,
        };
        Ok(paths.into_iter().map(tried).collect())
    }

    pub(super) async fn network_count(&self, id: NetworkId) -> Result<CountedNetwork> {
        let counters = self.inner.networks.counters(id).await.map_err(Error::from)?;
        let counted = |t: vbm_net::Traffic| Counted {
            packets: t.packets,
            bytes: t.bytes,
        };
        let port = |p: vbm_net::PortCounters| CountedPort {
            port: p.id,
            received: counted(p.received),
            sent: counted(p.sent),
            received_dropped: p.received_dropped,
            sent_dropped: p.sent_dropped,
            connections_refused: p.connections_refused,
        };
        let rule = |r: vbm_net::RuleCounters| CountedRule {
            group: r.group,
            rule: r.rule,
            passed: counted(r.passed),
        };
        Ok(CountedNetwork {
            ports: counters.ports.into_iter().map(port).collect(),
            rules: counters.rules.into_iter().map(rule).collect(),
        })
    }

    pub(super) async fn network_remove(&self, id: NetworkId) -> Result<()> {
        self.inner.networks.remove(id).await.map_err(Error::from)
    }
}

fn desired(wanted: WantedNetwork) -> DesiredNetwork {
    let port = |p: crate::methods::WantedPort| DesiredPort {
        id: p.id,
        mac: p.mac,
        address: p.address,
        address6: p.address6,
        hostname: p.hostname,
        metadata_route: p.metadata_route,
        rules: p.rules,
        policy: PortPolicy {
            groups: p.groups,
            pairs: p.pairs,
            limits: p.limits,
            floating: p.floating_ip,
        },
    };
    let group = |g: crate::methods::WantedGroup| DesiredGroup {
        id: g.id,
        name: g.name,
        spec: g.spec,
        members: g.members,
    };
    let forward = |f: crate::methods::WantedForward| DesiredForward {
        id: f.id,
        protocol: f.protocol,
        listen_address: f.listen_address,
        listen_port: f.listen_port,
        count: f.count,
        target: f.target,
        target_port: f.target_port,
    };
    let remote = |r: crate::methods::WantedRemote| RemotePort {
        mac: r.mac,
        address: r.address,
        address6: r.address6,
        host: r.host,
    };
    let overlay = |o: crate::methods::WantedOverlay| DesiredOverlay {
        vni: o.vni,
        local: o.local,
        names: o.names.into_iter().collect(),
        remotes: o.remotes.into_iter().map(remote).collect(),
    };
    DesiredNetwork {
        id: wanted.id,
        name: wanted.name,
        spec: wanted.spec,
        ports: wanted.ports.into_iter().map(port).collect(),
        forwards: wanted.forwards.into_iter().map(forward).collect(),
        overlay: wanted.overlay.map(overlay),
        groups: wanted.groups.into_iter().map(group).collect(),
    }
}
