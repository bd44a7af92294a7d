//! The platform on a simulated host: everything but the kernel and the hypervisor is real.

mod faults;
mod house;
mod life;
mod limits;
mod redis;
mod restart;
