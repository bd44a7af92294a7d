//! The nouns of VBM and the rules that hold for them everywhere.
//!
//! ```text
//!   Meta (id, name, generation, labels, times)
//!    + FooSpec    what is wanted   written by people, through the API
//!    + FooStatus  what is seen     written by agents and controllers
//!    = Foo        one record of the store
//! ```
//!
//! The crate is pure: no I/O, no clock, no randomness, no async. Time and new ids come from what the
//! caller injects ([`Clock`], [`IdSource`]), so that a seed can replay a story.
//!
//! | module | holds |
//! |---|---|
//! | [`id`], [`name`], [`mac`], [`range`], [`path`], [`epoch`], [`time`] | the values that name and order things |
//! | [`vm`], [`image`], [`volume`], [`network`], [`addressing`], [`port`], [`bandwidth`], [`group`], [`forward`], [`floating`], [`snapshot`], [`node`] | specs and statuses |
//! | [`power`] | the power state machine, as a table |
//! | [`operation`], [`event`] | what is being done, what happened |
//! | [`error`] | one error form with outcome and retry advice |
//! | [`limits`] | every limit, with its unit |

pub mod addressing;
pub mod bandwidth;
pub mod dhcp;
pub mod digest;
pub mod epoch;
pub mod error;
pub mod event;
pub mod floating;
pub mod forward;
pub mod group;
pub mod guest;
pub mod id;
pub mod image;
pub mod limits;
pub mod mac;
pub mod metadata;
pub mod mode;
pub mod name;
pub mod network;
pub mod node;
pub mod object;
pub mod operation;
pub mod path;
pub mod port;
pub mod power;
pub mod range;
pub mod snapshot;
pub mod source;
mod text;
pub mod time;
pub mod uplink;
pub mod vm;
pub mod volume;

pub use addressing::{Ipv6Spec, Reservation, Reservation6};
pub use bandwidth::PortLimits;
pub use dhcp::DhcpSpec;
pub use digest::Digest;
pub use epoch::{Epoch, Generation};
pub use error::{Error, ErrorKind, Outcome, Result, RetryAdvice};
pub use event::{Event, EventKind};
pub use floating::{FloatingIp, FloatingIpSpec, FloatingPool};
pub use forward::{Forward, ForwardSpec};
pub use group::{Direction, Group, GroupSpec, IcmpKind, Peer, PortRange, Protocol, Rule};
pub use guest::{GuestData, UserData};
pub use id::{
    EventId, FloatingIpId, ForwardId, GroupId, ImageId, NetworkId, OperationId, PortId, SnapshotId, VmId,
    VolumeId,
};
pub use image::{Boot, DiskFormat, Image, ImageSpec};
pub use mac::Mac;
pub use metadata::MetadataMode;
pub use mode::{InterfaceName, NetworkMode};
pub use name::Name;
pub use network::{Network, NetworkSpec, NetworkStatus};
pub use node::{Capability, FacetKind, MissingFacet, Node, NodeSpec, NodeState, NodeStatus, Rival};
pub use object::{Kind, Meta, ObjectRef};
pub use operation::{Operation, OperationState, Step, StepState};
pub use path::NodePath;
pub use port::{AddressPair, Port, PortSpec, PortStatus};
pub use power::{CrashCause, PauseReason, PowerEvent, PowerState};
pub use range::{Ipv4Range, Ipv6Range};
pub use snapshot::{
    Consistency, Freeze, Snapshot, SnapshotContent, SnapshotSpec, SnapshotState, SnapshotStatus,
};
pub use source::{Clock, IdSource, SeededIds};
pub use time::Timestamp;
pub use uplink::{UPLINKS_MAX, Uplink};
pub use vm::{Accelerator, DriverKind, MoveHow, Vm, VmMove, VmRevert, VmSpec, VmStatus, WantedPower};
pub use volume::{Volume, VolumeSpec};
