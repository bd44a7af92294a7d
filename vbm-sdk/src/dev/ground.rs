//! The ground of a cluster: namespaces, and the bridge that joins them.

use super::plan::Plan;
use std::{path::Path, process::Stdio};
use tokio::process::Command;
use vbm_core::{Error, ErrorKind, Result};

/// Where `ip netns` binds namespaces.
const NAMESPACES: &str = "/run/netns";

/// Makes the namespaces and joins them. What an earlier try left is taken away first.
pub(super) async fn make(plan: &Plan) -> Result<()> {
    remove(plan).await?;
    let hub = plan.hub();
    for namespace in namespaces(plan) {
        ip(&["netns", "add", namespace]).await?;
        ip(&["-n", namespace, "link", "set", "lo", "up"]).await?;
    }
    ip(&["-n", hub, "link", "add", "br0", "type", "bridge"]).await?;
    let address = format!("{}/24", plan.hub_address());
    ip(&["-n", hub, "address", "add", &address, "dev", "br0"]).await?;
    ip(&["-n", hub, "link", "set", "br0", "up"]).await?;
    for node in plan.nodes() {
        let (name, namespace) = (&*node.name, &*node.namespace);
        let address = format!("{}/24", node.address);
        ip(&[
            "-n", hub, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", namespace,
        ])
        .await?;
        ip(&["-n", hub, "link", "set", name, "master", "br0", "up"]).await?;
        ip(&["-n", namespace, "address", "add", &address, "dev", "eth0"]).await?;
        ip(&["-n", namespace, "link", "set", "eth0", "up"]).await?;
        let gateway = plan.hub_address().to_string();
        ip(&["-n", namespace, "route", "add", "default", "via", &gateway]).await?;
    }
    Ok(())
}

/// Puts a node's cable in, or takes it out.
pub(super) async fn set_cable(plan: &Plan, node: &str, plugged: bool) -> Result<()> {
    let state = if plugged { "up" } else { "down" };
    ip(&["-n", plan.hub(), "link", "set", node, state]).await
}

/// Takes the namespaces away, and with them all that is in them.
pub(super) async fn remove(plan: &Plan) -> Result<()> {
    let mut first = None;
    for namespace in namespaces(plan) {
        if Path::new(NAMESPACES).join(namespace).exists()
            && let Err(e) = ip(&["netns", "delete", namespace]).await
        {
            first.get_or_insert(e);
        }
    }
    first.map_or(Ok(()), Err)
}

fn namespaces(plan: &Plan) -> impl Iterator<Item = &str> {
    std::iter::once(plan.hub()).chain(plan.nodes().map(|n| n.namespace.as_str()))
}

async fn ip(words: &[&str]) -> Result<()> {
    let failed = |why: String| {
        Error::new(
            ErrorKind::Unavailable,
            "the network of the cluster cannot be made",
            format!("ip {}: {why}", words.join(" ")),
            "run it as root, on Linux with iproute2 (apt-get install --no-install-recommends iproute2)",
        )
    };
    let done = Command::new("ip")
        .args(words)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|e| failed(e.to_string()))?;
    if done.status.success() {
        return Ok(());
    }
    Err(failed(String::from_utf8_lossy(&done.stderr).trim().to_owned()))
}
