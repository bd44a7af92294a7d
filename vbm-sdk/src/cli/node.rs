//! `vbm node` and `vbm version`.

use super::{args::Node, human, info::Lines, session::Session, table::Table};
use vbm_core::{Capability, DriverKind, Error, Timestamp, Uplink};

const NONE_YET: &str = "no nodes: `vbmd` alone is one, `vbmd agent --redis URL` joins another";

pub(super) async fn run(on: &Session<'_>, verb: Node) -> Result<(), Error> {
    match verb {
        Node::List => {
            let nodes = on.client.nodes().list().all().await?;
            on.out
                .list(&nodes, |n| n.path.to_string(), &table(&nodes, on.now()), NONE_YET)
        }
        Node::Info(args) => {
            let node = on.client.nodes().get(&args.node).await?;
            on.out
                .item(&node, &node.path.to_string(), &detail(&node, on.now()))
        }
    }
}

/// `vbm version`: says its own version even when no vbmd answers.
pub(super) async fn version(on: &Session<'_>) -> Result<(), Error> {
    #[derive(serde::Serialize)]
    struct Both {
        vbm: &'static str,
        vbmd: Option<crate::api::Version>,
    }
    let (vbmd, failure) = match on.client.version().await {
        Ok(version) => (Some(version), None),
        Err(error) => (None, Some(error)),
    };
    let mut lines = Lines::default();
    lines.put("vbm", env!("CARGO_PKG_VERSION"));
    if let Some(version) = &vbmd {
        lines.put(
            "vbmd",
            format!(
                "{} (API {}, instance {})",
                version.version, version.api, version.instance
            ),
        );
        lines.put("Controller", &*version.controller);
        lines.put("Leader", leader(version));
    }
    let both = Both {
        vbm: env!("CARGO_PKG_VERSION"),
        vbmd,
    };
    on.out.item(&both, both.vbm, &lines.text())?;
    failure.map_or(Ok(()), Err)
}

/// Who leads, and whether it is who answered.
fn leader(version: &crate::api::Version) -> String {
    match &version.leader {
        Some(leader) if leader.name == version.controller => format!("this one, in epoch {}", leader.epoch),
        Some(leader) => format!("{}, in epoch {}", leader.name, leader.epoch),
        None => "nobody just now; a controller takes over within seconds".into(),
    }
}

/// `qemu/tcg`, or `qemu (missing)`.
fn driver(capability: &Capability) -> String {
    match (&capability.problem, &capability.accelerator) {
        (Some(_), _) => format!("{} (!)", capability.driver),
        (None, Some(accelerator)) => format!("{}/{}", capability.driver, accelerator.name),
        (None, None) => capability.driver.to_string(),
    }
}

/// What a driver cannot do, and why: `snapshots (why), live migration (why)`.
fn missing(node: &vbm_core::Node, of: DriverKind) -> String {
    let missing = node.status.missing.iter().filter(|m| m.driver == of);
    let told = missing.map(|m| format!("{} ({})", m.facet, m.why));
    told.collect::<Vec<_>>().join(", ")
}

fn state(node: &vbm_core::Node) -> String {
    let mut state = node.status.state.to_string();
    if node.spec.cordoned {
        state.push_str(", cordoned");
    }
    if !node.status.warnings.is_empty() || node.status.rival.is_some() {
        state.push_str(" (!)");
    }
    state
}

fn table(nodes: &[vbm_core::Node], now: Timestamp) -> Table {
    let mut table = Table::new(
        &["NODE", "STATE", "CPUS", "MEMORY", "FREE", "DRIVERS", "SEEN"],
        &["VERSION", "EPOCH"],
    );
    for node in nodes {
        let status = &node.status;
        table.row([
            node.path.to_string(),
            state(node),
            status.cpus.to_string(),
            human::mib(status.memory_mib),
            human::mib(status.memory_free_mib),
            status
                .capabilities
                .iter()
                .map(driver)
                .collect::<Vec<_>>()
                .join(","),
            format!("{} ago", human::age(now, status.seen_at)),
            status.version.clone(),
            status.epoch.to_string(),
        ]);
    }
    table
}

/// The names of some interfaces.
fn named(uplinks: &[Uplink], some: impl Fn(&Uplink) -> bool) -> String {
    let names = uplinks.iter().filter(|u| some(u)).map(|u| u.name.to_string());
    names.collect::<Vec<_>>().join(", ")
}

fn detail(node: &vbm_core::Node, now: Timestamp) -> String {
    let status = &node.status;
    let mut lines = Lines::default();
    lines.put("Node", node.path.to_string());
    lines.put(
        "State",
        format!("{}, seen {} ago", state(node), human::age(now, status.seen_at)),
    );
    lines.problem(status.reason.as_ref());
    for warning in &status.warnings {
        lines.problem(Some(warning));
    }
    if let Some(rival) = &status.rival {
        lines.put(
            "Rival",
            format!(
                "machine {} reports itself under the same path, {} ago; start its agent with another --node",
                rival.identity,
                human::age(now, rival.seen_at)
            ),
        );
    }
    if let Some(address) = status.underlay {
        lines.put(
            "Address",
            format!("{address}, for networks and VMs between nodes"),
        );
    }
    if let Some(storage) = &status.shared_storage {
        lines.put("Storage", format!("shared: {storage}"));
    }
    if let Some(uplinks) = &status.uplinks {
        lines.put("Uplinks", named(uplinks, |u| u.unfit.is_none()));
        lines.put("  routed only", named(uplinks, |u| u.unfit.is_some()));
    }
    lines.put("CPUs", status.cpus.to_string());
    lines.put(
        "Memory",
        format!(
            "{}, {} free",
            human::mib(status.memory_mib),
            human::mib(status.memory_free_mib)
        ),
    );
    lines.put("Version", &*status.version);
    for capability in &status.capabilities {
        lines.put("Driver", format!("{} {}", capability.driver, capability.version));
        if let Some(accelerator) = &capability.accelerator {
            lines.put(
                "  runs by",
                format!("{} ({})", accelerator.name, accelerator.reason),
            );
        }
        lines.put("  lacks", missing(node, capability.driver));
        lines.problem(capability.problem.as_ref());
    }
    lines.text()
}

#[cfg(test)]
mod tests {
    use super::*;
    use vbm_core::{Accelerator, ErrorKind, FacetKind, MissingFacet, NodeSpec, NodeState, NodeStatus};

    fn sample() -> vbm_core::Node {
        let missing = Error::new(
            ErrorKind::MissingDependency,
            "VirtualBox is missing",
            "no VBoxManage",
            "install it",
        );
        vbm_core::Node {
            path: "n1".parse().unwrap(),
            spec: NodeSpec::default(),
            status: NodeStatus {
                state: NodeState::Ready,
                capabilities: vec![
                    Capability {
                        driver: DriverKind::Qemu,
                        version: "9.2".into(),
                        accelerator: Some(Accelerator {
                            name: "tcg".into(),
                            reason: "no /dev/kvm".into(),
                        }),
                        problem: None,
                    },
                    Capability {
                        driver: DriverKind::VirtualBox,
                        version: String::new(),
                        accelerator: None,
                        problem: Some(missing),
                    },
                ],
                cpus: 2,
                memory_mib: 4_096,
                memory_free_mib: 2_048,
                seen_at: Timestamp::from_micros(0),
                ..NodeStatus::default()
            },
        }
    }

    #[test]
    fn a_node_is_listed_with_what_it_can_run() {
        assert_eq!(
            table(&[sample()], Timestamp::from_micros(2_000_000)).render(false, Some(80)),
            "NODE  STATE  CPUS  MEMORY  FREE  DRIVERS                   SEEN\n\
             n1    ready  2     4G      2G    qemu/tcg,virtual-box (!)  2s ago"
        );
    }

    #[test]
    fn the_detail_of_a_node_says_why_a_driver_cannot_be_used() {
        let text = detail(&sample(), Timestamp::from_micros(0));
        assert!(
            text.contains("tcg (no /dev/kvm)") && text.contains("VirtualBox is missing"),
            "{text}"
        );
    }

    #[test]
    fn the_detail_of_a_node_says_what_its_drivers_cannot_do() {
        let mut node = sample();
        node.status.missing.push(MissingFacet {
            driver: DriverKind::Qemu,
            facet: FacetKind::Migration,
            why: "its disks are its own".into(),
        });
        let text = detail(&node, Timestamp::from_micros(0));
        assert!(text.contains("live migration (its disks are its own)"), "{text}");
    }
}
