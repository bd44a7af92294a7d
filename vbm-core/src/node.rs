//! Nodes: the machines that run VMs.

use crate::{Accelerator, DriverKind, Epoch, Error, NodePath, Timestamp, Uplink};
use serde::{Deserialize, Serialize};
use std::{fmt, net::Ipv4Addr};

/// A node: its record in the store. Its path is its id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Node {
    /// Where it stands.
    pub path: NodePath,
    /// What is wanted.
    pub spec: NodeSpec,
    /// What is seen.
    pub status: NodeStatus,
}

/// What is wanted of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct NodeSpec {
    /// Whether new VMs may be placed on it.
    #[serde(default)]
    pub cordoned: bool,
}

/// Whether a node answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum NodeState {
    /// It answers.
    Ready,
    /// It was heard of before and does not answer now. What runs on it may run on.
    Lost,
    /// It answers, and may not take part: the reason says why.
    Refused,
    /// It was never heard of.
    #[default]
    Unknown,
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ready => "ready",
            Self::Lost => "lost",
            Self::Refused => "refused",
            Self::Unknown => "unknown",
        })
    }
}

/// What one driver can do on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Capability {
    /// The driver.
    pub driver: DriverKind,
    /// Its version, as it tells it.
    pub version: String,
    /// How it runs guests, and why so.
    pub accelerator: Option<Accelerator>,
    /// Why it cannot be used, if so.
    pub problem: Option<Error>,
}

/// A machine that reports itself under the path of another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Rival {
    /// Its identity.
    pub identity: String,
    /// When it was last heard of.
    pub seen_at: Timestamp,
}

/// What one driver cannot do on a node, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct MissingFacet {
    /// The driver.
    pub driver: DriverKind,
    /// What it cannot do.
    pub facet: FacetKind,
    /// Why.
    pub why: String,
}

/// What only some drivers, versions or hosts can do with a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum FacetKind {
    /// Serial line, screenshot, display.
    Consoles,
    /// Going back to how a VM was.
    Snapshots,
    /// Memory kept on disk while the VM does not run.
    SavedState,
    /// Moving a running VM to another host.
    Migration,
    /// Disks, NICs and media that come and go while the VM runs.
    Hotplug,
}

impl fmt::Display for FacetKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Consoles => "consoles",
            Self::Snapshots => "snapshots",
            Self::SavedState => "saved memory",
            Self::Migration => "live migration",
            Self::Hotplug => "hot-plug",
        })
    }
}

/// What is seen of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct NodeStatus {
    /// Whether it answers.
    pub state: NodeState,
    /// Its drivers.
    #[serde(default)]
    pub capabilities: Vec<Capability>,
    /// What its drivers cannot do.
    #[serde(default)]
    pub missing: Vec<MissingFacet>,
    /// Its processors.
    #[serde(default)]
    pub cpus: u32,
    /// Its memory in MiB.
    #[serde(default)]
    pub memory_mib: u64,
    /// Memory not in use, in MiB.
    #[serde(default)]
    pub memory_free_mib: u64,
    /// Changes with each start of its agent.
    #[serde(default)]
    pub boot_id: String,
    /// The highest epoch it has obeyed.
    #[serde(default)]
    pub epoch: Epoch,
    /// When it was last heard of.
    #[serde(default)]
    pub seen_at: Timestamp,
    /// The version of its agent.
    #[serde(default)]
    pub version: String,
    /// Stays with the agent's data directory: tells two machines with one path apart.
    #[serde(default)]
    pub identity: String,
    /// Why it is lost or refused.
    #[serde(default)]
    pub reason: Option<Error>,
    /// What somebody should look at, though the node works: a clock that is off, say.
    #[serde(default)]
    pub warnings: Vec<Error>,
    /// Another machine that reports itself under the same path.
    #[serde(default)]
    pub rival: Option<Rival>,
    /// Its address among the nodes: overlays and migrations go there. Without one, its networks stay on it alone.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
    pub underlay: Option<Ipv4Addr>,
    /// Which directory of images and disks it works in, when that is shared with others: the same word on each.
    #[serde(default)]
    pub shared_storage: Option<String>,
    /// Its interfaces that networks may name; nothing: it does not tell, and nobody knows before it tries.
    #[serde(default)]
    pub uplinks: Option<Vec<Uplink>>,
}
