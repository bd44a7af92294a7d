//! The areas. Each is useful alone.

pub(crate) mod by_hand;
pub(crate) mod hyper;
pub(crate) mod net;
pub(crate) mod platform;
pub(crate) mod rpc;
