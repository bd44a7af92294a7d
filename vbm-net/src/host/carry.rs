//! Flows of a port that moves, read and written by `conntrack`: [`crate::plan::carry`] says which.

use super::{exec, netns::NetNs};
use crate::{
    DesiredNetwork, DesiredPort, NetError, Validated,
    plan::{
        Transit,
        carry::{self, PortFlow},
    },
};

async fn list(ns: &NetNs, doing: &str) -> Result<String, NetError> {
    let mut text = String::new();
    for family in ["ipv4", "ipv6"] {
        text += &exec::must(ns, exec::Program::Conntrack, &["-L", "-f", family], "", doing).await?;
    }
    Ok(text)
}

/// The flows that may go along with a port.
pub(super) async fn read(
    ns: &NetNs,
    net: &DesiredNetwork,
    port: &DesiredPort,
) -> Result<Vec<PortFlow>, NetError> {
    let text = list(ns, "reading the flows of a port").await?;
    Ok(carry::of_port(net, port, &text))
}

/// Takes in what came with a port, as far as the rules let it; answers how many.
pub(super) async fn write(
    ns: &NetNs,
    net: &Validated<DesiredNetwork>,
    transit: Option<Transit>,
    port: &DesiredPort,
    came: &[PortFlow],
) -> Result<usize, NetError> {
    let doing = "taking in the flows of a port";
    let standing = list(ns, doing).await?;
    let lines = carry::to_write(net, transit, port, came, &standing);
    if lines.is_empty() {
        return Ok(0);
    }
    let script = lines.join("\n") + "\n";
    exec::must(ns, exec::Program::Conntrack, &["-R", "-"], &script, doing).await?;
    Ok(lines.len())
}
