//! The trait behind which networks are made real, or simulated.

use crate::{
    DesiredNetwork, NetError, NetEvent, NetworkCounters, NetworkSeen, Nic, NicKind, PathSeen, PortFlow,
    metadata::Instance,
};
use async_trait::async_trait;
use std::collections::BTreeSet;
use tokio::sync::broadcast;
use vbm_core::{NetworkId, PortId, Uplink};

/// How many events a slow listener may lag behind before it loses the oldest.
pub const EVENTS_MAX_PENDING: usize = 1_024;

/// Makes networks on one host. [`crate::HostNetwork`] does it; [`crate::SimNetwork`] pretends to.
///
/// Each network has one actor, which alone changes it; calls for one network queue up, calls for several run side
/// by side.
///
/// # Cancel safety
/// Dropping a call's future does not stop work that its network's actor has begun; the next `ensure` finds what
/// it left. All calls may be repeated.
#[async_trait]
pub trait NetworkBackend: Send + Sync {
    /// Makes the kernel hold what is wanted, reads it back, and serves DHCP, DNS and metadata for it. Level-triggered and
    /// idempotent: a second call changes nothing (`changed` is empty); a call after anything was flushed, killed or half
    /// made repairs it. Ports that are no longer wanted lose tap, guard and rules; flows that the rules no longer
    /// allow are cut.
    ///
    /// # Errors
    /// [`NetError::Invalid`] before anything is touched; otherwise what failed. Ports whose guard and rules could not be read back stay shut.
    async fn ensure(&self, desired: DesiredNetwork) -> Result<NetworkSeen, NetError>;

    /// Removes a network with all that belongs to it. One that is not here is fine.
    ///
    /// # Errors
    /// Goes past failures and returns them all; repeat it.
    async fn remove(&self, id: NetworkId) -> Result<(), NetError>;

    /// Opens the NIC of a port: a new tap on the bridge, or a new interface on the host that leads there. Refused unless guard and rules of that port stand in the
    /// kernel now (fail closed).
    ///
    /// # Errors
    /// [`NetError::NotHere`] before `ensure` named the port; [`NetError::Conflict`] when it is open already;
    /// [`NetError::NotVerified`], also after an `ensure` that failed: what it left undone may be what shuts the port off.
    async fn open_nic(&self, network: NetworkId, port: PortId, kind: NicKind) -> Result<Nic, NetError>;

    /// Removes the NIC of a port, of either kind; whoever holds it sees it dead. One that is not open is fine.
    ///
    /// # Errors
    /// What the kernel refused.
    async fn close_nic(&self, network: NetworkId, port: PortId) -> Result<(), NetError>;

    /// What the metadata service tells the VM behind a port from now on; `None`: only what the port itself tells. It is held for as long as
    /// this process runs and the port is wanted: say it again after a start and after the network was removed, which is where
    /// [`crate::PortSeen::described`] is false. Until then the VM is told to ask again.
    ///
    /// # Errors
    /// [`NetError::NotHere`] before `ensure` named the port; [`NetError::Invalid`] for what is too large.
    async fn describe(
        &self,
        network: NetworkId,
        port: PortId,
        instance: Option<Instance>,
    ) -> Result<(), NetError>;

    /// The flows of a port with others of its network, which may go along when its VM moves to another host. Those by which the world
    /// is reached, or reaches it, stay behind: they are known by this host's address. None where the kernel is asked by nobody.
    ///
    /// # Errors
    /// [`NetError::NotHere`] before `ensure` named the port; what could not be read.
    async fn flows_of(&self, network: NetworkId, port: PortId) -> Result<Vec<PortFlow>, NetError>;

    /// Takes in the flows of a port that came from another host: those that its rules here would let begin now, and that are not here
    /// already. Answers how many. Ask before the VM runs here, or soon after: what it says meanwhile is dropped, and said again by TCP.
    ///
    /// # Errors
    /// [`NetError::NotHere`] before `ensure` named the port; [`NetError::NotVerified`] after an `ensure` that failed; what the kernel refused.
    async fn take_flows(
        &self,
        network: NetworkId,
        port: PortId,
        flows: Vec<PortFlow>,
    ) -> Result<usize, NetError>;

    /// What `ensure` would change now, one line each, in the words in which it reports it; empty when all is as wanted. Changes nothing.
    ///
    /// # Errors
    /// As `ensure`, for what can be known before.
    async fn plan(&self, desired: DesiredNetwork) -> Result<Vec<String>, NetError>;

    /// Tries every path between the networks of this host, and from them to the host, with real probes; answers which are there and
    /// which may be. Takes a second or so for each network.
    ///
    /// # Errors
    /// More networks than [`crate::check::CHECK_MAX_NETWORKS`]; what the kernel refused.
    async fn check(&self) -> Result<Vec<PathSeen>, NetError>;

    /// What passed each port since its NIC was opened, and what each rule let begin since it was written.
    ///
    /// # Errors
    /// [`NetError::NotHere`] before this process ensured the network; what could not be read.
    async fn counters(&self, network: NetworkId) -> Result<NetworkCounters, NetError>;

    /// What of ours is on this host, whether or not this process made it. Ports are listed for networks that
    /// were ensured since this process started.
    ///
    /// # Errors
    /// What could not be read.
    async fn inventory(&self) -> Result<Vec<NetworkSeen>, NetError>;

    /// Removes whatever bears our owner tag and is not of these networks; returns a line for each thing removed.
    ///
    /// # Errors
    /// Goes past failures and returns them all.
    async fn sweep(&self, keep: &BTreeSet<NetworkId>) -> Result<Vec<String>, NetError>;

    /// The interfaces of this host that a network may name as its uplink, as they are now. What is made by VBM is none, nor is the
    /// loopback. A forecast: what [`Self::ensure`] finds then counts.
    ///
    /// # Errors
    /// What could not be read.
    async fn uplinks(&self) -> Result<Vec<Uplink>, NetError>;

    /// What happens from now on. Slow listeners lose the oldest of [`EVENTS_MAX_PENDING`].
    fn events(&self) -> broadcast::Receiver<NetEvent>;

    /// Stops the servers and all tasks. What is in the kernel stays: VMs keep their traffic. Later calls fail with
    /// [`NetError::Stopped`].
    async fn shutdown(&self);
}
