//! Virtual machines on one host.
pub mod actor;
pub mod limits;
mod console;
mod driver;
mod error;
pub use actor::*;
pub use console::*;
pub use driver::*;
pub use error::*;
