//! The platform on a simulated host: everything but the kernel and the hypervisor is real.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod addresses;
mod allowed;
mod cluster;
mod faults;
mod floating;
mod flows;
mod groups;
mod house;
mod life;
mod limits;
mod modes;
mod moves;
mod nodes;
mod redis;
#[path = "../common/redis.rs"]
mod redis_server;
mod restart;
mod site;
mod snapshots;
