//! What nodes say of a network when they are asked: what they would change, what passed.

use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;
use utoipa::ToSchema;
use vbm_core::{GroupId, NetworkId, NodePath, PortId, Rule};

/// What a node would change of a network now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeChanges {
    /// The node.
    pub node: NodePath,
    /// A line for each change; empty when all is as wanted.
    pub changes: Vec<String>,
    /// Why it could not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// A path that was tried with a real packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TriedPath {
    /// The network that it begins in.
    pub from: NetworkId,
    /// The network that it leads to; absent: the host itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<NetworkId>,
    /// Where to.
    #[schema(value_type = String)]
    pub address: Ipv4Addr,
    /// How: `ping` or `tcp/PORT`.
    pub way: String,
    /// Whether it may be there.
    pub allowed: bool,
    /// Whether somebody answered. Who may not be reached and answers is a hole.
    pub reached: bool,
}

impl TriedPath {
    /// Whether somebody answered who may not be reached.
    pub const fn is_hole(&self) -> bool {
        self.reached && !self.allowed
    }
}

/// The paths that a node tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodePaths {
    /// The node.
    pub node: NodePath,
    /// Its paths.
    pub paths: Vec<TriedPath>,
    /// Why it could not try.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Packets and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Counted {
    /// How many packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What passed a port since its NIC was opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PortCounts {
    /// The port.
    pub port: PortId,
    /// The node that counted.
    pub node: NodePath,
    /// The name of its VM.
    pub vm_name: String,
    /// Its address.
    #[schema(value_type = String)]
    pub address: Ipv4Addr,
    /// What reached the VM.
    pub received: Counted,
    /// What the VM sent.
    pub sent: Counted,
    /// Packets to the VM that its limit dropped.
    pub received_dropped: u64,
    /// Packets of the VM that its limit dropped.
    pub sent_dropped: u64,
    /// Packets that would have begun a connection beyond its limit.
    pub connections_refused: u64,
}

/// What a rule let begin, on all nodes together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RuleCounts {
    /// Its group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupId>,
    /// The name of its group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_name: Option<String>,
    /// The rule.
    pub rule: Rule,
    /// The packets that it let begin something.
    pub passed: Counted,
}

/// What passed on a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetworkCounts {
    /// By port.
    pub ports: Vec<PortCounts>,
    /// By rule.
    pub rules: Vec<RuleCounts>,
    /// What could not be asked, a line each.
    pub problems: Vec<String>,
}
