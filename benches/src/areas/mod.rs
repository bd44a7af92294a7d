//! The areas. Each is useful alone.

#[cfg(feature = "platform")]
pub(crate) mod by_hand;
#[cfg(feature = "platform")]
pub(crate) mod dhcp;
#[cfg(feature = "platform")]
pub(crate) mod hyper;
#[cfg(feature = "platform")]
mod ipam;
#[cfg(feature = "platform")]
pub(crate) mod net;
#[cfg(feature = "platform")]
pub(crate) mod platform;
pub(crate) mod rpc;
