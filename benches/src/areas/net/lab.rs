//! What the benches of networks stand on: a backend of their own, and networks of any size.

use crate::harness::{
    clock::SystemClock,
    fault::{Fault, Outcome},
    ground::Ground,
    rows::say,
};
use std::{collections::BTreeSet, net::Ipv4Addr, sync::Arc, time::Duration};
use tempfile::TempDir;
use tokio::time::timeout;
use uuid::Uuid;
use vbm_core::{Mac, NetworkId, NetworkMode, NetworkSpec, PortId, network::parse_cidr};
use vbm_net::{
    DesiredNetwork, DesiredPort, Dispatch, HostConfig, HostNetwork, NetworkBackend, NetworkSeen, doctor,
    names,
};

/// The longest that clearing up may take.
const CLEAR_WITHIN: Duration = Duration::from_secs(120);
/// UDP that may reach each port: for packets that are counted.
pub(super) const OPEN_PORT: u16 = 7_777;

/// A backend with an owner of its own. What it made is removed when it is dropped, whatever happened.
pub(super) struct Lab {
    pub(super) net: HostNetwork,
    owner: String,
    state: TempDir,
}

impl Lab {
    pub(super) async fn open(ground: &Ground) -> Outcome<Self> {
        Self::dispatched(ground, Dispatch::Iptables).await
    }

    pub(super) async fn dispatched(ground: &Ground, dispatch: Dispatch) -> Outcome<Self> {
        ground.namespace()?;
        let state = tempfile::Builder::new().prefix("vbm-bench-").tempdir()?;
        let owner = format!("bench-{}", Uuid::now_v7().simple());
        let config = HostConfig::new(&owner, state.path(), Arc::new(SystemClock)).with_dispatch(dispatch);
        let net = HostNetwork::open(config).await?;
        Ok(Self { net, owner, state })
    }

    /// As an agent that is started again.
    pub(super) async fn reopen(&mut self) -> Outcome<()> {
        self.net.shutdown().await;
        let config = HostConfig::new(&self.owner, self.state.path(), Arc::new(SystemClock));
        self.net = HostNetwork::open(config).await?;
        Ok(())
    }

    pub(super) async fn ensure(&self, wanted: &DesiredNetwork) -> Outcome<NetworkSeen> {
        let seen = self.net.ensure(wanted.clone()).await?;
        if seen.ready {
            Ok(seen)
        } else {
            Err(Fault::new("it is not ready"))
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let (net, owner) = (self.net.clone(), self.owner.clone());
        // A runtime of its own: this one may be in the middle of being interrupted.
        let cleared = std::thread::spawn(move || -> Outcome<()> {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                drop(timeout(CLEAR_WITHIN, net.shutdown()).await);
                timeout(CLEAR_WITHIN, doctor::remove_owners(&BTreeSet::from([owner]))).await??;
                Ok(())
            })
        });
        if let Ok(Err(fault)) = cleared.join() {
            say(&format!(
                "warning: a network of the bench was not cleared up: {fault}"
            ));
        }
    }
}

/// A network of mode NAT with so many ports, each of the same rules.
pub(super) fn network(ports: usize) -> Outcome<DesiredNetwork> {
    let id = NetworkId::from_uuid(Uuid::now_v7());
    let spec = NetworkSpec::new(NetworkMode::Nat, parse_cidr("10.9.0.0/16")?)?;
    let ports = (0..ports).map(port).collect::<Outcome<Vec<_>>>()?;
    Ok(DesiredNetwork {
        id,
        name: "bench".parse()?,
        spec,
        ports,
        forwards: Vec::new(),
        overlay: None,
        groups: vec![],
    })
}

pub(super) fn port(number: usize) -> Outcome<DesiredPort> {
    let number = u32::try_from(number)?;
    let rules = ["tcp/22", "tcp/80-90", "icmp", "tcp/5201", "udp/7777"];
    Ok(DesiredPort {
        id: PortId::from_uuid(Uuid::now_v7()),
        mac: Mac::local(number + 1),
        address: Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 9, 1, 0)) + number),
        address6: None,
        hostname: format!("guest-{number}").parse()?,
        metadata_route: true,
        rules: rules.into_iter().map(str::parse).collect::<Result<_, _>>()?,
        policy: Default::default(),
    })
}

/// The name of a network's namespace: the harness's own namespace is bound to no path.
pub(super) fn space_of(wanted: &DesiredNetwork) -> String {
    names::namespace(wanted.id)
}
