//! The platform on a simulated host: everything but the kernel and the hypervisor is real.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod faults;
mod house;
mod life;
mod limits;
mod redis;
mod restart;
mod snapshots;
