//! The interfaces of a node by which routed and bridged networks may meet the world.

use crate::InterfaceName;
use serde::{Deserialize, Serialize};

/// The most that a node tells. One that has more, for the containers on it, tells none: then nobody knows before it tries.
pub const UPLINKS_MAX: usize = 128;

/// An interface of a node that a network may name as its uplink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Uplink {
    /// As `ip link` shows it.
    pub name: InterfaceName,
    /// Why no bridged network can be on its LAN; nothing: one can. A routed network goes by it all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unfit: Option<String>,
}
