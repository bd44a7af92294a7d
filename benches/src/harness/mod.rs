//! What all benches share: rows, statistics, children, the machine, the report.

pub(crate) mod child;
#[cfg(feature = "net")]
pub(crate) mod clock;
#[cfg(feature = "net")]
pub(crate) mod cpu;
pub(crate) mod duel;
pub(crate) mod fault;
pub(crate) mod goal;
pub(crate) mod ground;
pub(crate) mod machine;
pub(crate) mod report;
pub(crate) mod row;
pub(crate) mod rows;
#[cfg(feature = "net")]
pub(crate) mod space;
pub(crate) mod stats;
pub(crate) mod table;
