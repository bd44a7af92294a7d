//! The areas. Each is useful alone.

#[cfg(feature = "hyper")]
pub(crate) mod by_hand;
#[cfg(feature = "net")]
pub(crate) mod dhcp;
#[cfg(feature = "hyper")]
pub(crate) mod hyper;
#[cfg(feature = "net")]
mod ipam;
#[cfg(feature = "net")]
pub(crate) mod net;
#[cfg(feature = "platform")]
pub(crate) mod platform;
pub(crate) mod rpc;
