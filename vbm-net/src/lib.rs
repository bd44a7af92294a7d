//! A network on a host is one namespace.
#![doc = "TBD"]
pub mod backend;
pub mod conformance;
pub mod dhcp;
pub mod doctor;
mod error;
mod host;
pub mod ipam;
pub mod model;
pub mod names;
pub mod plan;
mod sim;

pub use backend::NetworkBackend;
pub use error::{NetError, Result};
pub use host::{HostConfig, HostNamespace, HostNetwork};
pub use model::{
    DesiredForward, DesiredNetwork, DesiredPort, LeaseSeen, NetEvent, NetworkSeen, Nic, PortSeen, Validated,
    gateway_mac,
};
pub use sim::SimNetwork;
