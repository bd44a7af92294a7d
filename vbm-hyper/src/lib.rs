//! Virtual machines on one host.
pub mod actor;
pub mod conformance;
pub mod disk;
pub mod limits;
pub mod qemu;
pub mod sim;
mod clock;
mod console;
mod driver;
mod error;
pub use actor::*;
pub use clock::*;
pub use disk::*;
pub use console::*;
pub use driver::*;
pub use error::*;
pub use qemu::*;
pub use sim::*;
