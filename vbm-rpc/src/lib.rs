//! The bus: typed calls, casts and broadcasts between the nodes of a system, over memory or Redis.
#![doc = ""]
pub mod codec;
pub mod conformance;
mod dedupe;
pub mod bus;
pub mod envelope;
mod error;
mod fate;
pub mod limits;
mod member;
mod method;
mod options;
mod route;
mod router;
pub mod transport;

pub use bus::{Bus, Replies};
pub use codec::Codec;
pub use error::BusError;
pub use fate::Fate;
pub use member::{Member, MemberInfo};
pub use method::Method;
pub use options::CallOptions;
pub use route::{Route, Service};
pub use router::{Context, EpochGate, MemoryEpochGate, Router, stale_epoch};
pub use transport::{Transport, memory, redis};
